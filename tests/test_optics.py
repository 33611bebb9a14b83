"""References come from the query's own optics; each optics is measured, drift is told; a young lab's novelty allows for
its size."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from typer.testing import CliRunner

from labref.asking.analysers import Telling, by_optics, of_file
from labref.asking.drift import overview
from labref.asking.references import find
from labref.bundles.bundle import Bundle, Manifest, NoveltyThreshold, manifest_bytes
from labref.cells.image import prepare
from labref.cells.optics import DRIFT, measure, shifts, statistics
from labref.cli import app
from labref.config import load_config
from labref.errors import ConfigError, LabrefError
from labref.export.layout import Layout
from labref.lab import Lab
from labref.store import NewCell, Store
from labref.store.memory.index import Index
from labref.web import desk
from labref.web.desk import Desk, status
from labref.words import MEASURES
from tests.labs import make_lab, once, running_agent
from tests.stores import BUNDLE, brute_force, new_cell, new_store
from training.measure.latents import Latents


def cells_of(counts: dict[str | None, int]) -> list[NewCell]:
    return [
        new_cell(f"{analyser}-{number}", analyser=analyser)
        for analyser, count in counts.items()
        for number in range(count)
    ]


@pytest.fixture(params=["index", "scan"])
def store(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Store]:
    with new_store(tmp_path) as store:
        if request.param == "index":
            store.build_index()
        yield store


def test_the_search_in_one_optics_is_exact_with_and_without_an_index(store: Store) -> None:
    cells = cells_of({"DC-1": 60, "DM96": 25, None: 40})
    store.record(cells[:90], bundle=BUNDLE)
    store.record(cells[90:], bundle=BUNDLE)
    query = new_cell("query").latent
    for analyser in ("DC-1", "DM96"):
        of = [cell for cell in cells if cell.analyser == analyser]
        expected = brute_force(np.stack([c.latent for c in of]), [c.cell_id for c in of], query, 30)
        found = store.nearest(query, bundle=BUNDLE, k=30, analyser=analyser)
        assert [n.cell_id for n in found] == [cell_id for cell_id, _ in expected]
        assert [n.distance for n in found] == pytest.approx([distance for _, distance in expected], rel=1e-12)
    assert store.nearest(query, bundle=BUNDLE, k=8, analyser="unheard of") == []
    assert store.analysers() == {"DC-1": 60, "DM96": 25, None: 40}
    assert store.is_of(cells[0].cell_id, "DC-1") and not store.is_of(cells[0].cell_id, "DM96")


def test_an_index_read_from_the_store_knows_the_optics_of_its_cells(tmp_path: Path) -> None:
    cells = cells_of({"DC-1": 40, "DM96": 30, None: 10})
    with new_store(tmp_path) as store:
        store.record(cells, bundle=BUNDLE)
    query = new_cell("query").latent
    with Store.open(tmp_path / "store.duckdb") as store:
        by_scan = store.nearest(query, bundle=BUNDLE, k=12, analyser="DM96")
        store.build_index()
        assert store.nearest(query, bundle=BUNDLE, k=12, analyser="DM96") == by_scan
        late = new_cell("late", analyser="new one", latent=query)
        store.record([late], bundle=BUNDLE)
        (only,) = store.nearest(query, bundle=BUNDLE, k=12, analyser="new one")
        assert only.cell_id == late.cell_id


def test_many_blocks_restricted_to_one_group_lose_no_neighbour() -> None:
    rng = np.random.default_rng(4)
    latents = rng.standard_normal((2500, 20)).astype(np.float32)
    groups = rng.integers(0, 3, 2500).astype(np.uint32)
    groups[400:800] = 1  # a block without any of group 2
    index = Index(20, block_rows=400)
    index.add(np.arange(2500, dtype=np.uint64), latents, groups)
    for query in rng.standard_normal((20, 20)).astype(np.float32):
        ids, _ = index.nearest(query, 50, group=2)
        away = ((latents.astype(np.float64) - query) ** 2).sum(axis=1)
        away[groups != 2] = np.inf
        assert ids.tolist() == np.argsort(away)[:50].tolist()
    few, _ = index.nearest(latents[0], 50, group=9)
    assert len(few) == 0


def answer_optics(store: Store, bundle: Bundle, **asked: Any) -> tuple[set[str | None], Any]:
    values: dict[str, Any] = {"latent": new_cell("query").latent, "digest": None} | asked
    found = find(store, bundle=bundle, **values)
    return {reference.analyser for reference in found.references}, found.optics


@pytest.fixture
def bundle(starter: Bundle) -> Bundle:
    return replace(starter, digest=BUNDLE)


def test_the_optics_of_a_query_is_the_one_named_or_that_of_the_stored_cell_or_the_only_one(
    store: Store, bundle: Bundle
) -> None:
    assert answer_optics(store, bundle)[1].how == "unknown"
    cells = cells_of({"DC-1": 20})
    store.record(cells, bundle=BUNDLE)
    _, optics = answer_optics(store, bundle)
    assert (optics.analyser, optics.only, optics.how, optics.cells) == ("DC-1", True, "single", 20)
    store.record(cells_of({"DM96": 15}), bundle=BUNDLE)
    seen, optics = answer_optics(store, bundle)
    assert (seen, optics.only, optics.how, optics.cells) == ({"DC-1", "DM96"}, False, "unknown", 35)
    seen, optics = answer_optics(store, bundle, latent=cells[0].latent, digest=cells[0].digest)
    assert (seen, optics.how) == ({"DC-1"}, "stored")
    seen, optics = answer_optics(store, bundle, analyser="DM96")
    assert (seen, optics.how, optics.cells) == ({"DM96"}, "asked", 15)
    seen, optics = answer_optics(store, bundle, analyser="DM96", any_optics=True)
    assert (seen, optics.how, optics.only) == ({"DC-1", "DM96"}, "any", False)
    with pytest.raises(LabrefError, match="there is DC-1, DM96"):
        answer_optics(store, bundle, analyser="DM-96")


@pytest.fixture(scope="module")
def two(starter: Bundle, drawn_cells: Path, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """A lab of two analysers, one to a folder, with twelve cells of each."""
    folder = tmp_path_factory.mktemp("two")
    files = sorted(drawn_cells.rglob("*.jpg"))
    for name, part in (("west", files[::2][:12]), ("east", files[1::2][:12])):
        (folder / name).mkdir()
        for file in part:
            shutil.copy(file, folder / name / f"{file.parent.name}{file.name}")
    lab = make_lab(folder / "lab", folder / "west", starter)
    lab.config_file.write_text(
        f"[watch]\nfolders = ['{folder / 'west'}', '{folder / 'east'}']\nanalyser = 'DC-1'\nstable_seconds = 0.0\n"
        f"[watch.analysers]\n'{folder / 'east'}' = 'DM96'\n",
        encoding="utf-8",
    )
    lab = Lab.open(lab.folder)
    once(lab)
    return lab


def test_each_folder_has_its_analyser_and_its_cells_their_references(two: Lab) -> None:
    assert status(two)["analysers"] == {"DC-1": 12, "DM96": 12}
    image = next(two.watched[1].iterdir())
    with Desk.open(two) as desk:
        answer = desk.ask(image.read_bytes(), name="x")
        assert {r["analyser"] for r in answer["references"]} == {"DM96"}
        assert answer["optics"] == {"analyser": "DM96", "only": True, "how": "stored", "cells": 12}
        wider = desk.ask(image.read_bytes(), name="x", k=20, any_optics=True)
        assert {r["analyser"] for r in wider["references"]} == {"DC-1", "DM96"}
    told = CliRunner().invoke(app, ["query", str(image), "--lab", str(two.folder)]).output
    assert "references from DM96 alone (12 cells); --any-optics takes all" in told
    wide = CliRunner().invoke(
        app, ["query", str(image), "--any-optics", "-k", "20", "--json", "--lab", str(two.folder)]
    )
    assert json.loads(wide.stdout)["references"] == wider["references"]


def test_a_file_that_is_not_stored_has_the_analyser_of_its_watched_folder(two: Lab, tmp_path: Path) -> None:
    west, east = two.watched
    asked = tmp_path / "asked.jpg"
    Image.open(next(west.iterdir())).transpose(Image.Transpose.TRANSPOSE).rotate(33).save(asked)
    with Desk.open(two) as desk:
        answer = desk.ask(asked.read_bytes(), name="x", path=east / "monocyte" / "not there.jpg")
    assert answer["optics"] == {"analyser": "DM96", "only": True, "how": "folder", "cells": 12}
    (tmp_path / "link").symlink_to(east)
    with two.open_store() as store:
        told = {
            path: of_file(two, store, ("monocyte",), str(path))
            for path in (west / "x.jpg", tmp_path / "link" / "x.jpg", east.with_name("east-2") / "x.jpg", east, asked)
        }
    assert list(told.values()) == ["DC-1", "DM96", None, None, None]


def test_a_recapture_has_the_analyser_of_the_cell_that_it_repeats_and_a_new_analyser_gets_all(
    store: Store, bundle: Bundle
) -> None:
    cells = cells_of({"DC-1": 12, "DM96": 15})
    store.record(cells, bundle=BUNDLE)
    seen, optics = answer_optics(store, bundle, repeats=[cells[20].cell_id])
    assert (seen, optics.analyser, optics.how) == ({"DM96"}, "DM96", "recapture")
    seen, optics = answer_optics(store, bundle, repeats=[cells[20].cell_id], telling=Telling("DC-1"))
    assert (seen, optics.how) == ({"DC-1"}, "folder")
    seen, optics = answer_optics(store, bundle, telling=Telling("one that is new"))
    assert (seen, optics.analyser, optics.only) == ({"DC-1", "DM96"}, "one that is new", False)


def test_optics_tell_the_analyser_where_they_are_clearly_those_of_one(
    tmp_path: Path, bundle: Bundle, pbc: NDArray[np.float32], real_cells: Path
) -> None:
    files = sorted((real_cells / "chula").rglob("*.jpg"))[::9][:56]
    chula = np.stack([measure(prepare(file.read_bytes())) for file in files])
    with new_store(tmp_path) as store:
        for name, values in (("DM96", pbc[:120]), ("phone", chula[:52])):
            cells = [new_cell(f"{name}{n}", analyser=name, measures=one) for n, one in enumerate(values)]
            store.record(cells, bundle=BUNDLE)
        told = [by_optics(store, one) for one in pbc[120:]]
        assert told.count("DM96") >= 0.8 * len(told) and "phone" not in told
        assert {by_optics(store, one) for one in chula[52:]} <= {"phone", None}
        strange = pbc[120] + np.array([0, -90, -90, 0, 0, 0, 0], np.float32)
        assert by_optics(store, strange) is None, "the optics of neither"
        assert answer_optics(store, bundle, telling=Telling(measures=lambda: pbc[130]))[1].how == "optics"
        store.record(cells_of({None: 1}), bundle=BUNDLE)
        assert by_optics(store, pbc[120]) is None, "cells without a named analyser may have any optics"


def test_two_analysers_of_the_same_optics_are_not_told_apart(tmp_path: Path, pbc: NDArray[np.float32]) -> None:
    with new_store(tmp_path) as store:
        for name, values in (("A", pbc[:60]), ("B", pbc[60:120])):
            store.record(
                [new_cell(f"{name}{n}", analyser=name, measures=v) for n, v in enumerate(values)], bundle=BUNDLE
            )
        assert [by_optics(store, one) for one in pbc[120:]].count(None) >= 58


def test_the_agent_answers_in_one_optics_as_the_command_does(two: Lab) -> None:
    image = next(two.watched[0].iterdir())

    def asked() -> list[Any]:
        with Desk.open(two) as desk:
            return [
                desk.ask(image.read_bytes(), name="x", **question)["references"]
                for question in ({}, {"analyser": "DM96"}, {"any_optics": True, "k": 20})
            ]

    alone = asked()
    with running_agent(two):
        assert asked() == alone
        found = status(two)
        assert {optics["analyser"]: optics["cells"] for optics in found["optics"]} == {"DC-1": 12, "DM96": 12}


def test_a_pattern_in_the_path_goes_before_the_folders_analyser(tmp_path: Path) -> None:
    file = tmp_path / "labref.toml"
    file.write_text(
        "[watch]\nfolders = ['/a', '/b']\n[[watch.layout]]\npattern = '(?P<analyser>DM[^/]+)/.+'\n"
        "[watch.analysers]\n'/b' = 'B'\n",
        encoding="utf-8",
    )
    layout = Layout(load_config(file).watch, ("monocyte",), {"/b": "B"})
    assert layout.place("DM9600/x.jpg", "/b").analyser == "DM9600"
    assert layout.place("x.jpg", "/b").analyser == "B"
    assert layout.place("x.jpg", "/a").analyser is None


def test_an_analyser_of_a_folder_that_is_not_watched_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "labref.toml"
    file.write_text("[watch]\nfolders = ['/a']\n[watch.analysers]\n'/b' = 'B'\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="none of the folders"):
        load_config(file)


def blurred(file: Path, radius: float) -> float:
    picture = Image.open(file).convert("RGB").filter(ImageFilter.GaussianBlur(radius))
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=90)
    return float(measure(prepare(data.getvalue()))[MEASURES.index("focus")])


def test_focus_falls_with_blur_on_real_cells_of_every_optics(real_cells: Path) -> None:
    for source in ("pbc", "chula", "bccd", "bonemarrow"):
        files = sorted((real_cells / source).rglob("*.jpg"))
        chosen = [files[i] for i in np.random.default_rng(1).permutation(len(files))[:12]]
        steps = np.array([[blurred(file, radius) for radius in (0.7, 1.5, 3.0)] for file in chosen])
        assert (np.diff(steps, axis=1) < 0).mean() >= 0.9, source


@pytest.fixture(scope="module")
def pbc(real_cells: Path) -> NDArray[np.float32]:
    files = sorted((real_cells / "pbc").rglob("*.jpg"))
    chosen = np.random.default_rng(2).permutation(len(files))[:180]
    return np.stack([measure(prepare(files[i].read_bytes())) for i in chosen])


def test_another_day_of_the_same_optics_is_no_drift_and_other_optics_are(
    pbc: NDArray[np.float32], real_cells: Path
) -> None:
    assert max(map(abs, shifts(pbc[:60], pbc[60:]).values())) < DRIFT
    for source in ("chula", "bccd", "bonemarrow"):
        files = sorted((real_cells / source).rglob("*.jpg"))[::9][:30]
        others = np.stack([measure(prepare(file.read_bytes())) for file in files])
        assert max(map(abs, shifts(others, pbc).values())) > DRIFT, source
    known = statistics(pbc[60:])
    assert known["cells"] == 120 and set(known["measures"]) == set(MEASURES)
    assert shifts(pbc[:60], known) == pytest.approx(shifts(pbc[:60], pbc[60:]), abs=0.02)


def test_status_warns_when_todays_cells_leave_the_labs_past_or_the_bundles_training(
    tmp_path: Path, bundle: Bundle, pbc: NDArray[np.float32]
) -> None:
    many = pbc[np.random.default_rng(3).integers(0, len(pbc), 320)]
    darker = many[:60] + np.array([0, 0, 0, 0, 0.3, 0.4, 0.1], np.float32)
    with new_store(tmp_path) as store:
        past = [new_cell(f"p{n}", measures=values) for n, values in enumerate(many[:260])]
        store.record(past, bundle=BUNDLE)
        tomorrow = datetime.now(UTC) + timedelta(hours=30)
        (row,) = overview(store, bundle)
        assert (row["cells"], row["today"], row["drift"], row["warnings"]) == (260, 260, None, [])
        (row,) = overview(store, bundle, now=tomorrow)
        assert (row["today"], row["drift"]) == (0, None)
        with store._transaction() as connection:  # as if they had come the week before
            connection.execute("UPDATE measure SET added_at = added_at - INTERVAL 7 DAY")
        store.record([new_cell(f"t{n}", measures=values) for n, values in enumerate(darker)], bundle=BUNDLE)
        (row,) = overview(store, bundle)
        assert row["today"] == 60
        assert {(w["measure"], w["than"]) for w in row["warnings"]} >= {
            ("density_red", "past"),
            ("density_green", "past"),
        }
        assert "focus" not in {w["measure"] for w in row["warnings"]}
        trained = replace(bundle, manifest=replace(bundle.manifest, optics=statistics(pbc)))
        (row,) = overview(store, trained)
        assert row["from_training"].keys() == set(MEASURES)
        assert "training" in {warning["than"] for warning in row["warnings"]}


def test_cells_stored_without_measures_are_measured_from_their_kept_bytes(two: Lab, tmp_path: Path) -> None:
    lab = Lab.open(Path(shutil.copytree(two.folder, tmp_path / "lab")))
    with lab.open_store() as store:
        assert store.optics.counts() == (24, 24)
        before = store.optics.latest("DM96", since=datetime.now(UTC) - timedelta(days=1), most=100)[0]
        with store._transaction() as connection:
            connection.execute("DELETE FROM measure")
    *_, row = desk.run(lab, "optics.measure")
    assert row == {"measured": 24}
    with lab.open_store() as store:
        after = store.optics.latest("DM96", since=datetime.now(UTC) - timedelta(days=1), most=100)[0]
    np.testing.assert_allclose(np.sort(after, axis=0), np.sort(before, axis=0))
    told = CliRunner().invoke(app, ["status", "--lab", str(lab.folder)]).output
    assert "DM96: 12 cells, 12 today; background " in told


def test_the_manifest_carries_what_novelty_and_optics_were_calibrated_on(bundle: Bundle) -> None:
    told = replace(
        bundle.manifest,
        novelty=NoveltyThreshold(0.5, 1, "how", cells=1000, dimension=5.5),
        optics=statistics(np.ones((3, 7), np.float32)),
    )
    assert Manifest.from_json(json.loads(manifest_bytes(told))) == told
    old = replace(bundle.manifest, novelty=NoveltyThreshold(0.5, 1, "how"), optics={})
    values = json.loads(manifest_bytes(old))
    assert set(values["novelty"]) == {"threshold", "k", "how"} and "optics" not in values
    assert Manifest.from_json(values) == old


def test_the_novelty_threshold_grows_as_a_lab_gets_smaller_and_is_left_alone_elsewhere() -> None:
    threshold = NoveltyThreshold(0.1, 1, "how", cells=6400, dimension=4.0)
    assert [threshold.among(n) for n in (6400, 1600, 400)] == pytest.approx([0.1, 0.2, 0.4])
    assert threshold.among(1_000_000) == 0.1
    told = NoveltyThreshold(0.1, 1, "99% of 347 validation cells have ... the nearest 1 of 6,147 training cells")
    assert told.among(6147) == 0.1 < told.among(600) < told.among(60)
    assert NoveltyThreshold(0.1, 1, "for these tests").among(5) == 0.1


def test_known_cells_are_seldom_novel_in_a_young_lab(real_latents: Latents, starter: Bundle) -> None:
    """Latents of real cells: with the threshold as it is for all of them, a lab with a tenth of them would find most
    cells novel."""
    latents = real_latents.values.astype(np.float64)
    order = np.random.default_rng(5).permutation(len(latents))
    apart = ((latents[order, None] - latents[None, order]) ** 2).mean(axis=2)
    np.fill_diagonal(apart, np.inf)
    whole = NoveltyThreshold(
        float(np.quantile(apart.min(axis=1), 0.97)),
        1,
        "",
        cells=len(order) - 1,
        dimension=starter.manifest.novelty.dimension,
    )
    plain, allowed = [], []
    for start in range(10):
        few = apart[:, start::10]
        nearest = few.min(axis=1)
        plain.append(float((nearest > whole.threshold).mean()))
        allowed.append(float((nearest > whole.among(few.shape[1])).mean()))
    assert np.mean(plain) > 0.25
    assert np.mean(allowed) < 0.7 * np.mean(plain)
