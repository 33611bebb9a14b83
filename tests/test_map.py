"""The lab's map through the command and the agent, on real cells: trained, shown, asked, kept up to date."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil  # type: ignore[import-untyped]
import pytest
from PIL import Image
from pydantic import ValidationError
from typer.testing import CliRunner

from labref import som
from labref.asking.places import locate
from labref.bundles.bundle import Bundle
from labref.cli import app
from labref.config import MapConfig
from labref.errors import LabrefError
from labref.lab import Lab
from labref.pictures import map as picture
from labref.som.child_process import Task, train_apart
from labref.tasks import mapping
from labref.tasks.mapping import retrain
from labref.web import desk
from labref.web.desk import Desk, ask
from tests.labs import make_lab, once, running_agent, wait_until

CLASSES = ("eosinophil", "erythroblast", "lymphocyte", "neutrophil", "platelet")
MOVED = 3  # images put into the folder of another class


def labref(*arguments: object, code: int = 0) -> str:
    """What `labref map ...` prints."""
    done = CliRunner().invoke(app, ["map", *map(str, arguments)])
    assert done.exit_code == code, (done.output, done.exception)
    return done.stdout if code == 0 else done.output


def rows(*arguments: object) -> list[dict[str, Any]]:
    return [json.loads(line) for line in labref(*arguments, "--json").splitlines()]


@pytest.fixture(scope="module")
def export(real_cells: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two slides of 45 real cells each in class folders; three eosinophils lie in the folder of the lymphocytes."""
    folder = tmp_path_factory.mktemp("export")
    for number, label in enumerate(CLASSES):
        for i, source in enumerate(sorted((real_cells / "pbc" / label).iterdir())[:18]):
            wrong = label == "eosinophil" and i < MOVED
            target = folder / f"P{i % 2}" / f"S{number}{i % 2}" / ("lymphocyte" if wrong else label)
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target / source.name)
    return folder


@pytest.fixture(scope="module")
def lab(export: Path, starter: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """The lab of that export, taken in, without a map."""
    lab = make_lab(tmp_path_factory.mktemp("lab") / "lab", export, starter)
    once(lab)
    return lab


@pytest.fixture(scope="module")
def mapped(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """A copy of the lab, with a map trained by the command."""
    folder = tmp_path_factory.mktemp("mapped") / "lab"
    shutil.copytree(lab.folder, folder)
    (row,) = rows("train", "--lab", folder)
    assert (row["number"], row["verdict"], row["in_use"], row["cells"]) == (1, "first", True, 90)
    assert (row["rows"], row["columns"]) == som.size_for(90)
    return Lab.open(folder)


@pytest.fixture
def own(mapped: Lab, tmp_path: Path) -> Lab:
    """A copy that a test may change."""
    shutil.copytree(mapped.folder, tmp_path / "own")
    return Lab.open(tmp_path / "own")


@pytest.fixture(scope="module")
def unseen(real_cells: Path) -> Path:
    return sorted((real_cells / "pbc" / "neutrophil").iterdir())[40]


def test_without_a_map_there_is_none_and_each_command_says_what_to_do(lab: Lab, unseen: Path) -> None:
    (status,) = rows("status", "--lab", lab.folder)
    assert status["map"] is None
    assert status["due"] == "there is no map for this bundle yet"
    assert "no map yet" in labref("status", "--lab", lab.folder)
    assert ask(lab, unseen.read_bytes(), name="x")["map"] is None
    for command in (["suspects"], ["node", 0, 0], ["classify"], ["show", "--out", "x.png"]):
        assert "train one with `labref map train`" in labref(*command, "--lab", lab.folder, code=1)
    with pytest.raises(LabrefError, match="no map has been trained"):
        ask(lab, unseen.read_bytes(), name="x", by="map")


def test_the_status_and_the_list_tell_of_the_map(mapped: Lab) -> None:
    (status,) = rows("status", "--lab", mapped.folder)
    assert (status["cells"], status["placed"], status["due"], status["problem"]) == (90, 90, None, None)
    assert rows("list", "--lab", mapped.folder) == [status["map"]]
    assert "90 of 90 cells lie on it" in labref("status", "--lab", mapped.folder)


def test_references_by_the_map_are_those_of_the_thesis_rule(mapped: Lab, unseen: Path) -> None:
    by_map = ask(mapped, unseen.read_bytes(), name="x", by="map", k=12)
    by_latent = ask(mapped, unseen.read_bytes(), name="x", k=12)
    assert by_map["map"] == by_latent["map"]
    assert by_map["distribution"] == by_latent["distribution"]
    for by, said in (("map", True), ("latent", False)):  # whoever reads the list is told its order
        listed = CliRunner().invoke(app, ["query", str(unseen), "--by", by, "--lab", str(mapped.folder)])
        assert listed.exit_code == 0 and ("by map: first the cells on the same node" in listed.stdout) is said
    with mapped.open_store() as store, Desk(mapped, None, store) as desk:
        embedder = desk._open_embedder()
        from labref.cells.image import prepare

        query = embedder.embed(prepare(unseen.read_bytes()).crop[None]).latents[0]
        made = som.load(store.maps.weights_file(1))
        spot = made.winner(query)
        assert (by_map["map"]["row"], by_map["map"]["column"]) == spot
        rule = []
        for ids, latents in store.maps.latents(embedder.bundle.digest):
            for number, latent in zip(ids.tolist(), latents, strict=True):
                node = made.winner(latent)
                error = np.float32(np.linalg.norm(latent - made.get_weights()[node]))
                away = (node[0] - spot[0]) ** 2 + (node[1] - spot[1]) ** 2
                mse = float(np.mean((latent.astype(np.float64) - query) ** 2))
                rule.append((away, round(float(error), 4), f"{number:016x}", mse))
        rule.sort()
        assert [r["cell_id"] for r in by_map["references"]] == [cell for _, _, cell, _ in rule[:12]]
        assert [r["distance"] for r in by_map["references"]] == pytest.approx([mse for _, _, _, mse in rule[:12]])


def test_a_stored_cell_is_not_its_own_reference_by_the_map(mapped: Lab, export: Path) -> None:
    image = next((export / "P0" / "S30").rglob("*.jpg"))
    answer = ask(mapped, image.read_bytes(), name="x", by="map")
    assert answer["duplicate_of"] is not None
    assert answer["duplicate_of"] not in [reference["cell_id"] for reference in answer["references"]]
    assert len(answer["references"]) == 8
    (told,) = rows("classify", image, "--lab", mapped.folder)
    assert told["map"] == answer["map"]
    assert answer["map"]["label"] == "neutrophil"


def test_labels_that_were_given_wrongly_are_the_first_suspects(mapped: Lab, tmp_path: Path) -> None:
    found = rows("suspects", "--limit", 5, "--lab", mapped.folder)
    wrong = [row for row in found if row["label"] == "lymphocyte" and row["neighbourhood"] == "eosinophil"]
    assert len(wrong) == MOVED
    assert all(row["share"] > row["share_of_label"] and row["surprise"] > 0 for row in found)
    assert [row["surprise"] for row in found] == sorted((row["surprise"] for row in found), reverse=True)
    labref("suspects", "--limit", 5, "--grid", tmp_path / "grid.png", "--lab", mapped.folder)
    with Image.open(tmp_path / "grid.png") as sheet:
        assert sheet.width > 200 * len(found)  # a tile for each
    *classes, every = rows("classify", "--lab", mapped.folder)
    assert {row["label"] for row in classes} == set(CLASSES)
    assert every["cells"] == sum(row["cells"] for row in classes) == 90
    assert every["agree"] == pytest.approx(sum(row["agree"] * row["cells"] for row in classes) / 90)


def test_a_node_lists_its_cells_nearest_first(mapped: Lab, tmp_path: Path) -> None:
    first = rows("suspects", "--limit", 1, "--lab", mapped.folder)[0]
    found = rows("node", first["row"], first["column"], "--lab", mapped.folder)
    assert first["cell_id"] in [row["cell_id"] for row in found]
    errors = [row["quantization_error"] for row in found]
    assert errors == sorted(errors)
    labref("node", first["row"], first["column"], "--grid", tmp_path / "node.png", "--lab", mapped.folder)
    with Image.open(tmp_path / "node.png") as sheet:
        assert np.asarray(sheet.convert("RGB")).std() > 20
    assert "rows go from 0 to" in labref("node", 99, 0, "--lab", mapped.folder, code=1)


def test_the_map_is_drawn_whole_by_class_and_by_slide(mapped: Lab, tmp_path: Path) -> None:
    pictures = {
        "both": (),
        "digits": ("--what", "digits"),
        "umatrix": ("--what", "umatrix"),
        "class": ("--class", "lymphocyte"),
        "slides": ("--slide", "P0/S00", "--slide", "P1/S31"),
        "patients": ("--patient", "P0", "--patient", "P1"),
    }
    seen = {}
    for name, options in pictures.items():
        labref("show", "--out", tmp_path / f"{name}.png", *options, "--lab", mapped.folder)
        with Image.open(tmp_path / f"{name}.png") as drawn:
            seen[name] = np.asarray(drawn.convert("RGB"))
    assert len({image.tobytes() for image in seen.values()}) == len(pictures)
    red = (200, 16, 46)
    assert (seen["class"] == red).all(axis=2).sum() > 500  # the eosinophils among them, which the network knows
    assert not (seen["both"] == red).all(axis=2).any()
    assert "classes are: eosinophil" in labref(
        "show", "--out", "x.png", "--class", "ox", "--lab", mapped.folder, code=1
    )
    assert "no cell of it" in labref("show", "--out", "x.png", "--slide", "no", "--lab", mapped.folder, code=1)
    assert "--out map.png" in labref("show", "--lab", mapped.folder, code=2)


def test_what_is_where_can_be_had_as_json(mapped: Lab) -> None:
    (shown,) = rows("show", "--patient", "P1", "--lab", mapped.folder)
    cells = shown["cells"]
    assert {len(column) for column in cells.values()} == {90}
    assert cells["patient"].count("P1") == 45
    assert all(
        (patient == "P1") == slide.startswith("P1/")
        for patient, slide in zip(cells["patient"], cells["slide"], strict=True)
    )
    assert np.shape(shown["umatrix"]) == (shown["map"]["rows"], shown["map"]["columns"])
    assert max(cells["row"]) < shown["map"]["rows"]


def test_the_u_matrix_is_minisoms_distance_map() -> None:
    latents = np.random.default_rng(0).standard_normal((300, 9)).astype(np.float32)
    made = som.train(latents, rows=11, cols=8, seed=0)
    assert som.u_matrix(made.get_weights()) == pytest.approx(made.distance_map("mean"))
    assert som.u_matrix(np.zeros((1, 1, 3))).tolist() == [[0.0]]


def test_a_large_map_with_many_classes_is_drawn(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = np.array([f"class {i:02d}" for i in range(40)] * 500)
    shown = picture.Shown(
        rng.random((248, 248)), rng.integers(0, 248 * 248, len(labels)), labels, labels, "A map", "of many"
    )
    assert picture.draw_map(shown).width > 248 * 9
    assert picture.draw_spread(shown, [("one", labels == "class 00"), ("none", labels == "")]).height > 1000
    with pytest.raises(ValueError, match="ox"):
        picture.draw_class(shown, "ox")


def test_what_comes_out_worse_is_kept_and_not_used_until_told_to(own: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapping, "QE_TOLERANCE", -0.9)  # as if it had to be ten times as near
    (worse,) = rows("train", "--lab", own.folder)
    assert (worse["number"], worse["verdict"], worse["in_use"]) == (2, "worse", False)
    assert worse["qe"] > 0.1 * worse["qe_before"]
    assert "labref map use 2" in worse["said"]
    (status,) = rows("status", "--lab", own.folder)
    assert status["map"]["number"] == 1
    (used,) = rows("use", 2, "--lab", own.folder)
    assert used["in_use"]
    (status,) = rows("status", "--lab", own.folder)
    assert (status["map"]["number"], status["placed"]) == (2, 90)


@pytest.mark.parametrize("size", [(2, 2), (5, 12)])
def test_a_map_of_another_size_is_called_neither_better_nor_worse(own: Lab, size: tuple[int, int]) -> None:
    (other,) = rows("train", "--rows", size[0], "--cols", size[1], "--lab", own.folder)
    assert (other["rows"], other["columns"]) == size
    assert (other["verdict"], other["in_use"]) == ("resized", True)
    assert f"{size[0]}×{size[1]} nodes, another size" in other["said"] and "cannot be compared" in other["said"]
    assert "worse" not in other["said"]
    (before,) = rows("use", 1, "--lab", own.folder)
    assert before["in_use"], "and back"


def test_a_retrain_goes_on_from_the_map_before_and_cells_stay(own: Lab) -> None:
    (again,) = rows("train", "--lab", own.folder)
    assert (again["number"], again["started_from"], again["verdict"]) == (2, 1, "better")
    assert again["moved_far"] <= 0.05
    (anew,) = rows(
        "train", "--full", "--seed", 5, "--trainer", "minisom", "--rows", 8, "--cols", 8, "--lab", own.folder
    )
    assert (anew["started_from"], anew["trainer"], anew["seed"]) == (None, "minisom", 5)


def test_cells_taken_in_later_lie_on_the_map_at_once(own: Lab, export: Path, real_cells: Path) -> None:
    added = export / "P2" / "S9" / "platelet"
    added.mkdir(parents=True)
    try:
        for source in sorted((real_cells / "pbc" / "platelet").iterdir())[30:34]:
            shutil.copy(source, added / source.name)
        assert once(own).stored == 4
    finally:
        shutil.rmtree(export / "P2")
    (status,) = rows("status", "--lab", own.folder)
    assert (status["cells"], status["placed"]) == (94, 94)
    with own.open_store() as store:
        bundle = str(store.active_bundle())
        active = store.maps.active(bundle)
        assert active is not None
        places = dict(zip(active.positions.every().ids.tolist(), active.positions.every().nodes.tolist(), strict=True))
        for ids, latents in store.maps.latents(bundle):
            for number, latent in zip(ids.tolist(), latents, strict=True):
                spot = locate(store, bundle, latent)
                assert spot is not None
                assert spot.node == places[number]


@pytest.mark.usefixtures("processes_started")
def test_a_training_that_is_stopped_leaves_no_process_no_file_and_the_old_map(own: Lab) -> None:
    with own.open_store() as store:
        steps = retrain(
            store, MapConfig(), str(store.active_bundle()), trainer="minisom", rows=200, cols=200, full=True
        )
        for _, _, text in steps:
            if "MiniSom" in text:
                break
        children = psutil.Process().children()  # among them those that decode pictures
        (child,) = [child for child in children if "labref.som.child_process" in child.cmdline()]
        steps.close()
        assert not child.is_running()
        assert [path.name for path in store.maps.folder.iterdir()] == ["1.npz"]
        assert store.maps.in_use() == {1}


def test_the_device_of_the_map_is_a_setting_and_gives_the_same_map(tmp_path: Path) -> None:
    latents = np.random.default_rng(3).normal(size=(200, 5)).astype(np.float32)
    every, maps = np.arange(200), []
    for device in ("cpu", "auto"):
        folder = tmp_path / device
        folder.mkdir()
        task = Task(6, 6, None, 0, "batch", warm=False, device=MapConfig(device=device).device)
        list(train_apart(folder, latents, trained=every, sample=every, before=None, task=task))
        maps.append(som.load(folder / "map.npz").get_weights())
    assert np.abs(maps[0] - maps[1]).max() < 1e-3
    with pytest.raises(ValidationError, match="device"):
        MapConfig(device="gpu")


@pytest.mark.usefixtures("processes_started")
def test_a_training_that_fails_says_why(tmp_path: Path) -> None:
    latents = np.full((70, 5), np.nan, np.float32)
    every = np.arange(70)
    steps = train_apart(
        tmp_path, latents, trained=every, sample=every, before=None, task=Task(5, 5, None, 0, "batch", warm=False)
    )
    with pytest.raises(LabrefError, match=r"status 2: ValueError: latents must be finite.*stays in use"):
        list(steps)


def wait_for_a_map(lab: Lab) -> Iterator[dict[str, Any]]:
    status: dict[str, Any] = {}

    def there() -> bool:
        (row,) = [row for row in desk.run(lab, "map.status") if "progress" not in row]
        status.update(row)
        return row["map"] is not None

    wait_until(there)
    yield status


def test_the_agent_trains_a_map_by_itself_and_answers_as_the_command_does(
    lab: Lab, unseen: Path, tmp_path: Path
) -> None:
    shutil.copytree(lab.folder, tmp_path / "served")
    served = Lab.open(tmp_path / "served")
    with running_agent(served):
        (status,) = wait_for_a_map(served)
        assert (status["placed"], status["map"]["verdict"]) == (90, "first")
        asked = ask(served, unseen.read_bytes(), name="x", by="map")
        (again,) = rows("train", "--lab", served.folder)
        assert (again["number"], again["started_from"]) == (2, 1)
        by_agent = rows("suspects", "--lab", served.folder)
        (status,) = rows("status", "--lab", served.folder)
        assert status["last"]["outcome"] == "done"
        after = ask(served, unseen.read_bytes(), name="x", by="map")
    direct = ask(served, unseen.read_bytes(), name="x", by="map")
    assert {**direct, "timings_ms": 0} == {**after, "timings_ms": 0}
    assert asked["map"]["map"] == 1
    assert rows("suspects", "--lab", served.folder) == by_agent


def test_the_agent_leaves_the_map_alone_where_it_is_told_to(lab: Lab, tmp_path: Path) -> None:
    shutil.copytree(lab.folder, tmp_path / "served")
    served = Lab.open(tmp_path / "served")
    text = served.config_file.read_text(encoding="utf-8")
    served.config_file.write_text(text.replace("# enabled = true", "enabled = false"), encoding="utf-8")
    with running_agent(served):
        wait_until(lambda: served.log_file.read_text(encoding="utf-8").count("scan ended") >= 1)
        (status,) = rows("status", "--lab", served.folder)
        assert (status["map"], status["due"], status["training"]) == (None, None, None)
        assert status["config"]["enabled"] is False


@pytest.mark.parametrize("command", ["train", "status", "list", "use", "show", "node", "suspects", "classify"])
def test_every_map_command_teaches(command: str) -> None:
    text = labref(command, "--help")
    assert "Examples:" in text
    assert "--json" in text
