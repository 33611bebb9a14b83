"""Labels to look at again, in a lab with two analysers: by the command, on real cells of two microscopes."""

from __future__ import annotations

import json
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from labref.asking import mislabelled
from labref.asking import survey as surveys
from labref.asking.differential import is_abstention, kind_of
from labref.asking.survey import GIVEN, survey
from labref.bundles.bundle import Bundle
from labref.bundles.proof import prove
from labref.lab import Lab
from labref.store.duckdb.reviews import Review
from labref.store.memory.books import int_to_id
from labref.web.desk import ask, run
from tests.labs import once, running_agent
from tests.test_map import labref, rows

NEAR, FAR = "DM96", "far microscope"
CLASSES = ("eosinophil", "lymphocyte", "neutrophil")


@pytest.fixture(scope="module")
def lab(real_cells: Path, starter: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """Cells of two microscopes, each with a watched folder of its own; of each two eosinophils lie in the folder of
    the lymphocytes, and two neutrophils are "Unidentified". There are two basophils in all. With a map."""
    folder = tmp_path_factory.mktemp("two")
    for tree, name in (("pbc", NEAR), ("raabin", FAR)):
        for label in CLASSES:
            for i, source in enumerate(sorted((real_cells / tree / label).iterdir())[:16]):
                given = label
                if i < 2:
                    given = {"eosinophil": "lymphocyte", "neutrophil": "Unidentified"}.get(label, label)
                (folder / name / given).mkdir(parents=True, exist_ok=True)
                shutil.copy(source, folder / name / given / f"{label}_{source.name}")
    (folder / NEAR / "basophil").mkdir()
    for source in sorted((real_cells / "pbc" / "basophil").iterdir())[:2]:
        shutil.copy(source, folder / NEAR / "basophil" / f"basophil_{source.name}")
    made = Lab.create(folder / "lab", [folder / NEAR, folder / FAR], starter.folder)
    told = "".join(f"'{folder / name}' = '{name}'\n" for name in (NEAR, FAR))
    settings = "[watch]\nstable_seconds = 0.2\ncomplete_seconds = 0.4\n"
    text = made.config_file.read_text(encoding="utf-8")
    text = text.replace("[watch]\n", settings, 1) + f"\n[watch.analysers]\n{told}"
    made.config_file.write_text(text, encoding="utf-8")
    lab = Lab.open(made.folder)
    prove(starter, lab.folder, lab.inference)
    assert once(lab).found == 98
    labref("train", "--lab", lab.folder)
    return lab


def meant(row: dict[str, Any]) -> str:
    """The class that a cell has, by its file."""
    return Path(row["path"]).name.split("_")[0]


def test_each_label_is_judged_by_the_cells_of_its_own_analyser(lab: Lab) -> None:
    found = rows("suspects", "--lab", lab.folder)
    # a fifth among the first ones: a picture of a neutrophil beside a lymphocyte, whose middle is between them
    wrong = [row for row in found[:5] if meant(row) != row["label"]]
    assert sorted((row["analyser"], row["label"], row["neighbourhood"]) for row in wrong) == sorted(
        [(NEAR, "lymphocyte", "eosinophil"), (FAR, "lymphocyte", "eosinophil")] * 2
    )
    assert [row["surprise"] for row in found] == sorted((row["surprise"] for row in found), reverse=True)
    for name in (NEAR, FAR):
        assert rows("suspects", "--analyser", name, "--lab", lab.folder) == [
            row for row in found if row["analyser"] == name
        ]
    # no cell of the other microscope is a reason for anything
    with lab.open_store() as store:
        known = survey(store, lab.bundle(store).digest)
        assert known is not None
        far = known.analyser == known.analysers.index(FAR)
        assert "basophil" not in {known.labels[code] for code in known.label[far].tolist()}
    assert "basophil" not in {row["neighbourhood"] for row in found if row["analyser"] == FAR}


def test_a_class_of_few_cells_is_no_surprise_by_that_alone(lab: Lab) -> None:
    found = rows("suspects", "--lab", lab.folder)
    assert "basophil" not in {row["label"] for row in found[:5]}
    with lab.open_store() as store:
        known = survey(store, lab.bundle(store).digest)
        assert known is not None
        same = np.array([0.8]), np.array([0.05])
        few, many = known.surprise(*same, np.array([2])), known.surprise(*same, np.array([300]))
    assert few[0] == pytest.approx(np.log(16) + np.log(2 / 12))
    assert many[0] == pytest.approx(np.log(16) + np.log(300 / 310))


def test_a_label_that_is_no_opinion_gets_a_class_suggested_and_is_no_suspect(lab: Lab, tmp_path: Path) -> None:
    assert "unidentified" not in {row["label"].casefold() for row in rows("suspects", "--lab", lab.folder)}
    found = rows("unidentified", "--lab", lab.folder)
    assert sorted((row["analyser"], row["suggested"]) for row in found) == sorted(
        [(NEAR, "neutrophil"), (FAR, "neutrophil")] * 2
    )
    assert [row["share"] for row in found] == sorted((row["share"] for row in found), reverse=True)
    assert len(rows("unidentified", "--analyser", FAR, "--limit", 1, "--lab", lab.folder)) == 1
    said = labref("unidentified", "--grid", tmp_path / "grid.png", "--lab", lab.folder)
    assert said.count("about it neutrophil") == 4
    with Image.open(tmp_path / "grid.png") as sheet:
        assert sheet.width > 200 * len(found)
    # they are no reason to doubt others, and no class of their own in the table
    assert "Unidentified" not in {row["neighbourhood"] for row in rows("suspects", "--lab", lab.folder)}
    assert "Unidentified" not in {row["label"] for row in rows("classify", "--lab", lab.folder)}


def test_the_table_of_classes_and_the_picture_can_be_of_one_analyser(lab: Lab, tmp_path: Path) -> None:
    *classes, every = rows("classify", "--lab", lab.folder)
    parts = [rows("classify", "--analyser", name, "--lab", lab.folder) for name in (NEAR, FAR)]
    for row in [*classes, every]:
        of_parts = [one for part in parts for one in part if one["label"] == row["label"]]
        assert row["cells"] == sum(one["cells"] for one in of_parts)
        assert row["agree"] * row["cells"] == pytest.approx(sum(one["agree"] * one["cells"] for one in of_parts))
    out = tmp_path / "far.png"
    shown = json.loads(labref("show", "--analyser", FAR, "--out", out, "--json", "--lab", lab.folder))
    assert set(shown["cells"]["analyser"]) == {FAR} and len(shown["cells"]["row"]) == 48
    with Image.open(out) as picture:
        assert np.asarray(picture.convert("RGB")).std() > 20
    for command in ("suspects", "unidentified", "classify"):
        refused = labref(command, "--analyser", "Dm96", "--lab", lab.folder, code=1)
        assert f"no cell on the map is from the analyser 'Dm96'; analysers are: {NEAR}, {FAR}" in refused
    refused = labref("show", "--analyser", "x", "--out", out, "--lab", lab.folder, code=1)
    assert "no cell on the map is from the analyser 'x'" in refused


def test_a_querys_place_is_told_by_its_own_analyser(lab: Lab, real_cells: Path) -> None:
    image = sorted((real_cells / "raabin" / "lymphocyte").iterdir())[20]
    (own,) = run(lab, "query", data=image.read_bytes(), name="x", analyser=FAR)
    (every,) = run(lab, "query", data=image.read_bytes(), name="x", any_optics=True)
    assert own["map"]["label"] == "lymphocyte"
    assert own["map"]["cells"] <= every["map"]["cells"]
    (told,) = rows("classify", image, "--analyser", FAR, "--lab", lab.folder)
    assert told["map"] == own["map"]


def test_unidentified_cells_wait_for_review_and_leave_with_a_class(lab: Lab, tmp_path: Path) -> None:
    shutil.copytree(lab.folder, tmp_path / "lab")
    own = Lab.open(tmp_path / "lab")
    (left,) = run(own, "review.queues")
    assert left["unidentified"] == 4
    first, second, *_ = run(own, "review.cells", queue="unidentified")
    assert (first["label"], first["neighbourhood"]) == ("Unidentified", "neutrophil")
    assert first["share"] > 0.5 and len(first["neighbours"]) == 8
    list(run(own, "review.decide", cell=first["cell_id"], queue="unidentified", label="neutrophil", who="A"))
    list(run(own, "review.decide", cell=second["cell_id"], queue="unidentified", who="A"))  # nobody can tell
    (left,) = run(own, "review.queues", queue="unidentified")
    assert left["unidentified"] == 2
    list(run(own, "review.undo", cell=second["cell_id"], queue="unidentified", who="A"))
    assert next(run(own, "review.queues", queue="unidentified"))["unidentified"] == 3


def test_the_answer_is_the_same_with_an_agent(lab: Lab) -> None:
    alone = [rows(command, "--lab", lab.folder) for command in ("suspects", "unidentified", "classify")]
    with running_agent(lab):
        served = [rows(command, "--lab", lab.folder) for command in ("suspects", "unidentified", "classify")]
    assert served == alone


def test_cells_that_came_since_are_judged_too(lab: Lab, real_cells: Path, tmp_path: Path) -> None:
    """The list is kept for the same cells only."""
    shutil.copytree(lab.folder, tmp_path / "lab")
    own = Lab.open(tmp_path / "lab")
    with own.open_store() as store:
        digest = own.bundle(store).digest
        known = survey(store, digest)
        assert known is not None
        at, _ = known.doubt(GIVEN)
        assert len(at)
    source = sorted((real_cells / "pbc" / "eosinophil").iterdir())[30]
    shutil.copy(source, lab.watched[0] / "lymphocyte" / f"eosinophil_late_{source.name}")
    try:
        once(own)
        first = rows("suspects", "--limit", 5, "--lab", own.folder)
        assert [row for row in first if "late" in row["path"]]
    finally:
        (lab.watched[0] / "lymphocyte" / f"eosinophil_late_{source.name}").unlink()
    assert ask(own, source.read_bytes(), name="x")["map"]["label"] == "eosinophil"


def test_where_looking_takes_long_nobody_waits_for_it_twice(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    real, looked = mislabelled._look, threading.Event()

    def look(*args: Any) -> Any:
        looked.set()
        return real(*args)

    monkeypatch.setattr(mislabelled, "_look", look)
    monkeypatch.setattr(surveys, "LONG", 1e9)  # each survey is waited for
    monkeypatch.setattr(surveys, "REST", 0)
    monkeypatch.setattr(mislabelled, "LONG", -1.0)
    monkeypatch.setattr(mislabelled, "REST", 1e9)
    with lab.open_store() as store:
        bundle = lab.bundle(store).digest

        def found() -> tuple[list[int], list[float]]:
            known = survey(store, bundle)
            assert known is not None
            at, said = mislabelled.suspects(store, known, GIVEN)
            return known.cells.ids[at].tolist(), said.surprise.tolist()

        first = found()
        assert first[0] and looked.is_set()
        looked.clear()
        assert found() == first and not looked.is_set()
        # one of them gets the class that the cells about it have: it is gone at once, though nobody looked anew
        gone = int_to_id(first[0][0])
        before = store.cells([gone])[gone].label
        known = survey(store, bundle)
        assert known is not None
        _, said = mislabelled.suspects(store, known, GIVEN)
        store.reviews.give([Review(gone, known.labels[int(said.majority[0])], "NN", None)])
        second = found()
        assert first[0][0] not in second[0] and second[0] and not looked.is_set()
        # too old: whoever asks gets what there is, and one thread looks
        (kept,) = (kept for kept in mislabelled._KEPT[store].values() if kept.heard is not None)
        heard = kept.heard
        assert heard is not None
        kept.heard = old = replace(heard, rests=0.0)
        kept.looking.acquire()
        third = found()
        assert not looked.is_set()  # somebody looks already
        kept.looking.release()
        store.reviews.give([Review(gone, before, "NN", None)])
        found()
        assert looked.wait(30)
        with kept.looking:
            assert kept.heard is not old
        assert third[0] == second[0] and found()[0] == first[0]


@pytest.mark.parametrize(
    "name", ["Unidentified", "UI", "young unidentified", "Not classed", "Ej identifierad", "Okänd"]
)
def test_names_that_are_no_opinion(name: str) -> None:
    assert is_abstention(name)
    assert kind_of(name) == "other"


@pytest.mark.parametrize("name", ["neutrophil", "artefact", "smudge cell", "blast", "unusual lymphocyte"])
def test_names_that_are_one(name: str) -> None:
    assert not is_abstention(name)
