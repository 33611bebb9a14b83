"""Central cells stand in among the references where the lab has too few of a class, are marked, and are counted
nowhere."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageChops
from typer.testing import CliRunner

from labref.asking.central import Central
from labref.asking.references import Found, find
from labref.bundles.atlas import CENTRAL_ID, Atlas, AtlasSource
from labref.bundles.bundle import Bundle, install
from labref.cli import app
from labref.demo.cells import LABELS, OPTICS, draw_cell, encode_jpeg, make_slides
from labref.export.layout import ClassNames
from labref.lab import Lab
from labref.operations.query import QueryAnswer
from labref.pictures import grid
from labref.store import Store
from labref.store import store as stores
from labref.store.duckdb.reviews import Review
from labref.store.memory import examples
from labref.web.desk import run, status
from tests.benchmarks import atlas as benchmark
from tests.bundles import SOURCE, carrying
from tests.labs import make_lab, once, running_agent
from tests.pages import let_in
from tests.stores import BUNDLE, JUDGED, mark, new_cell, new_store, put_on_map
from tests.test_grid import answer, drawn, picture
from tests.test_references import at
from training.measure.latents import Latents

BASOPHIL = {"basophil": 0.9, "neutrophil": 0.1}


@pytest.fixture
def bundle(starter: Bundle) -> Bundle:
    return replace(starter, digest=BUNDLE)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with new_store(tmp_path) as store:
        store.build_index()
        yield store


def central(cells: Mapping[str, list[float]], own: Mapping[str, str] | None = None) -> Central:
    """An atlas of cells at these distances from the origin, by class. own : the lab's names, [watch.labels]."""
    labels = [label for label, away in cells.items() for _ in away]
    ids = tuple(f"{CENTRAL_ID}{row:016x}" for row in range(len(labels)))
    atlas = Atlas(
        Path("nowhere"),
        ids,
        tuple(labels),
        np.stack([at(distance) for away in cells.values() for distance in away]),
        tuple(AtlasSource("A data set", "CC BY 4.0") for _ in labels),
        {cell_id: row for row, cell_id in enumerate(ids)},
        tuple(b"" for _ in labels),
        tuple(range(len(labels))),
    )
    return Central(atlas, ClassNames(("basophil", "eosinophil", "neutrophil"), own or {}))


def ask(
    store: Store, bundle: Bundle, filled: Central | None, latent: NDArray[np.float32] | None = None, **how: Any
) -> Found:
    probabilities = how.pop("probabilities", BASOPHIL)
    return find(
        store,
        bundle=bundle,
        latent=at(0) if latent is None else latent,
        digest=None,
        probabilities=probabilities,
        central=filled,
        **how,
    )


def origins(found: Found) -> list[str]:
    return [one.origin for one in found.references]


def test_a_central_cell_says_what_it_is_and_where_it_is_from(store: Store, bundle: Bundle) -> None:
    store.record([new_cell(i, latent=at(3 + i)) for i in range(3)], bundle=BUNDLE)
    found = ask(store, bundle, central({"basophil": [1.0, 2.0]}))
    assert [(one.label, one.origin) for one in found.references] == [("basophil", "central")] * 2 + [
        ("neutrophil", "lab")
    ] * 3
    first = found.references[0]
    assert first.distance == pytest.approx(1) and first.cell_id.startswith(CENTRAL_ID)
    assert (first.label_source, first.source, first.licence) == ("central", "A data set", "CC BY 4.0")
    assert (first.path, first.slide, first.analyser, first.captured_at) == ("", None, None, None)
    own = found.references[-1]
    assert (own.origin, own.source, own.licence) == ("lab", None, None)


def test_an_empty_lab_is_shown_central_cells_and_still_told_that_it_has_none(store: Store, bundle: Bundle) -> None:
    found = ask(store, bundle, central({"basophil": [1.0] * 4, "eosinophil": [0.5] * 4}))
    assert [one.label for one in found.references] == ["basophil"] * 4, (
        "eosinophils are near, and nothing speaks for them"
    )
    assert found.novelty.is_novel and found.distribution.n == 0


def test_the_share_of_central_cells_falls_as_the_lab_grows_and_ends(store: Store, bundle: Bundle) -> None:
    filled = central({"basophil": [1.0 + i / 100 for i in range(10)]})
    shares = []
    for number in range(81):  # eight times as many as the atlas has
        shares.append(origins(ask(store, bundle, filled)).count("central"))
        store.record([new_cell(number, latent=at(0.9), label="basophil")], bundle=BUNDLE)
    assert shares == sorted(shares, reverse=True)
    assert shares[0] == 8 and shares[80] == 0 and len(set(shares)) > 4, "little by little"


def test_recaptures_of_one_cell_do_not_make_a_class_large(store: Store, bundle: Bundle) -> None:
    """The neutrophil is nearer than the central basophil counts as, once the lab has two basophils or more."""
    filled = central({"basophil": [1.0, 1.1]})
    store.record([new_cell("neutrophil", latent=at(0.73))], bundle=BUNDLE)
    for number in range(4):  # each differs in a bit from the one before
        cell = new_cell(f"again {number}", latent=at(2), label="basophil", fingerprints=mark(2**number - 1))
        store.record([cell], bundle=BUNDLE, **JUDGED)
    assert store.label_counts()["basophil"] == 4 and store.distinct(["basophil"]) == {"basophil": 1}
    assert origins(ask(store, bundle, filled, k=1)) == ["central"]
    store.record([new_cell("other", latent=at(2), label="basophil")], bundle=BUNDLE)
    assert store.distinct(["basophil", "platelet"]) == {"basophil": 2, "platelet": 0}
    assert origins(ask(store, bundle, filled, k=1)) == ["lab"]


def test_only_cells_from_the_optics_that_are_searched_count(store: Store, bundle: Bundle) -> None:
    filled = central({"basophil": [1.0, 1.1]})
    for analyser, basophils in (("A", 2), ("B", 1)):
        cells = [
            new_cell(f"{analyser}{i}", latent=at(2), label="basophil", analyser=analyser) for i in range(basophils)
        ]
        near = new_cell(f"{analyser} near", latent=at(0.73), analyser=analyser)
        store.record([*cells, near], bundle=BUNDLE)
    assert origins(ask(store, bundle, filled, k=1, analyser="A")) == ["lab"]
    assert origins(ask(store, bundle, filled, k=1, analyser="B")) == ["central"]
    assert origins(ask(store, bundle, filled, k=1, any_optics=True)) == ["lab"]


def test_a_large_class_is_counted_by_a_sample(store: Store, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (examples, stores):
        monkeypatch.setattr(module, "MOST_EXAMPLES", 40)
    cells = [new_cell(i, label="basophil", analyser="A" if i % 4 else "B") for i in range(200)]
    store.record(cells, bundle=BUNDLE)
    assert store.distinct(["basophil"]) == {"basophil": 200}
    assert 100 <= store.distinct(["basophil"], analyser="A")["basophil"] <= 190, "150 are"
    assert 10 <= store.distinct(["basophil"], analyser="B")["basophil"] <= 100, "50 are"


def test_a_class_that_nothing_speaks_for_is_not_filled(store: Store, bundle: Bundle) -> None:
    store.record([new_cell(i, latent=at(3 + i)) for i in range(9)], bundle=BUNDLE)
    filled = central({"basophil": [1.0], "eosinophil": [0.1]})
    assert [one.label for one in ask(store, bundle, filled).references].count("eosinophil") == 0
    likely = ask(store, bundle, filled, probabilities={"neutrophil": 0.79, "eosinophil": 0.2, "basophil": 0.01})
    assert [one.label for one in likely.references][:2] == ["eosinophil", "neutrophil"]
    store.record([new_cell("near", latent=at(1), label="eosinophil")], bundle=BUNDLE)
    assert ask(store, bundle, filled).references[0].label == "eosinophil", "the lab's own references speak for it"


@pytest.mark.parametrize(("away", "comes"), [(1.4, True), (1.5, False)])
def test_a_central_cell_may_be_farther_than_an_own_one_by_so_much(
    store: Store, bundle: Bundle, away: float, comes: bool
) -> None:
    store.record([new_cell(i, latent=at(1)) for i in range(8)], bundle=BUNDLE)
    found = ask(store, bundle, central({"basophil": [away]}))
    assert ("central" in origins(found)) is comes
    distances = [one.distance for one in found.references]
    assert distances == sorted(distances) and len(distances) == 8, "nearest first, by the distance itself"


def test_central_cells_are_counted_nowhere(store: Store, bundle: Bundle) -> None:
    store.record([new_cell(i, latent=at(1 + i / 9)) for i in range(30)], bundle=BUNDLE)
    without, filled = (ask(store, bundle, of) for of in (None, central({"basophil": [0.5] * 9})))
    assert "central" in origins(filled)
    for name in ("distribution", "novelty", "duplicate_of", "place", "optics"):
        assert getattr(filled, name) == getattr(without, name)


def test_by_the_map_the_lab_s_own_cells_are_shown_alone(store: Store, bundle: Bundle) -> None:
    store.record([new_cell(i, latent=at(1 + i)) for i in range(3)], bundle=BUNDLE)
    put_on_map(store, BUNDLE, [at(1), at(3)])
    filled = central({"basophil": [0.5] * 9})
    assert origins(ask(store, bundle, filled, by="map")) == ["lab"] * 3
    assert ask(store, bundle, filled, by="map").references == ask(store, bundle, None, by="map").references


def test_a_central_cell_is_called_as_the_lab_calls_its_class(store: Store, bundle: Bundle) -> None:
    filled = central({"basophil": [1.0, 1.1]}, own={"basophil": "Baso"})
    found = ask(store, bundle, filled)
    assert [one.label for one in found.references] == ["Baso", "Baso"]
    store.record([new_cell("neutrophil", latent=at(0.73))], bundle=BUNDLE)
    assert origins(ask(store, bundle, filled, k=1)) == ["central"]
    store.record([new_cell(i, latent=at(2), label="Baso") for i in range(4)], bundle=BUNDLE)
    assert origins(ask(store, bundle, filled, k=1)) == ["lab"], "the lab's four count as basophils"


def test_the_contrast_has_a_central_cell_of_a_class_that_the_lab_has_none_of(store: Store, bundle: Bundle) -> None:
    store.record([new_cell(i, latent=at(1 + i / 9)) for i in range(9)], bundle=BUNDLE)
    filled = central({"eosinophil": [2.0, 3.0], "basophil": [90.0]})
    one = {"neutrophil": 1.0}
    assert [
        (c.label, c.origin, c.distance) for c in ask(store, bundle, filled, probabilities=one, contrast=True).contrast
    ] == [("eosinophil", "central", pytest.approx(2))]
    own = new_cell("own", latent=at(2.5))
    store.record([own], bundle=BUNDLE)
    store.reviews.give([Review(own.cell_id, "eosinophil", "NN", None)])
    found = ask(store, bundle, filled, probabilities=one, contrast=True)
    assert [(c.label, c.origin) for c in found.contrast] == [("eosinophil", "lab")], "own first"
    assert ask(store, bundle, None, probabilities=one, contrast=True).contrast == found.contrast


def test_the_contrast_takes_a_class_for_the_same_whatever_the_lab_calls_it(store: Store, bundle: Bundle) -> None:
    store.record([new_cell(i, latent=at(1 + i / 9)) for i in range(9)], bundle=BUNDLE)
    own = new_cell("own", latent=at(2.5))
    store.record([own], bundle=BUNDLE)
    store.reviews.give([Review(own.cell_id, "Eosinophils", "NN", None)])
    filled = central({"eosinophil": [2.0], "basophil": [90.0]}, {"basophil": "Baso"})
    said = {"neutrophil": 0.9, "basophil": 0.1}
    found = ask(store, bundle, filled, probabilities=said, contrast=True).contrast
    assert [(one.label, one.origin) for one in found] == [("Eosinophils", "lab"), ("Baso", "central")]


# a lab


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, drawn_cells: Path, starter: Bundle) -> Iterator[Lab]:
    """A lab of monocytes and neutrophils, whose bundle's atlas has basophils and eosinophils; its agent runs. Beside it
    lies a copy without an agent."""
    export, folder = tmp_path_factory.mktemp("export"), tmp_path_factory.mktemp("carrying")
    for label in ("monocyte", "neutrophil"):
        shutil.copytree(drawn_cells / label, export / label)
    atlas = {label: sorted((drawn_cells / label).glob("*.jpg")) for label in ("basophil", "eosinophil")}
    bundle = install(carrying(starter, folder, atlas), folder / "bundles")
    lab = make_lab(tmp_path_factory.mktemp("lab") / "lab", export, bundle)
    once(lab)
    shutil.copytree(lab.folder, lab.folder.with_name("copy"))
    with running_agent(lab):
        yield lab


@pytest.fixture(scope="module")
def basophil(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A drawn basophil that is in no lab and no atlas."""
    slide = make_slides(9, seed=5)[7]
    file = tmp_path_factory.mktemp("asked") / "basophil.jpg"
    file.write_bytes(encode_jpeg(draw_cell("basophil", OPTICS[slide.optics], slide, np.random.default_rng([9, 9]))))
    return file


def command(*words: object) -> str:
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_the_command_marks_central_cells_in_words(lab: Lab, basophil: Path, tmp_path: Path) -> None:
    assert "basophil" in LABELS
    told = json.loads(command("query", basophil, "--json", "--lab", lab.folder))
    QueryAnswer.model_validate(told)
    theirs = [one for one in told["references"] if one["origin"] == "central"]
    assert theirs and {one["source"] for one in theirs} == {SOURCE.name}
    text = command("query", basophil, "--lab", lab.folder, "--grid", tmp_path / "grid.png")
    assert f"central: {len(theirs)} of 8 references" in text
    for one in theirs:
        assert re.search(rf"central +{one['cell_id']}  {re.escape(SOURCE.name)}, {SOURCE.licence}", text)
    with Image.open(tmp_path / "grid.png") as shown:
        assert shown.width == 976
    assert status(lab)["cells"] == 8 and set(status(lab)["labels"]) == {"monocyte", "neutrophil"}
    assert not [row for row in run(lab, "ledger") if "central" in json.dumps(row)]


def test_a_setting_turns_them_off_and_without_an_agent_the_answer_is_the_same(
    lab: Lab, basophil: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = json.loads(command("query", basophil, "--json", "--lab", lab.folder))
    copy = lab.folder.with_name("copy")
    told = json.loads(command("query", basophil, "--json", "--lab", copy))
    assert told["references"] == asked["references"] and told["contrast"] == asked["contrast"]
    monkeypatch.setenv("LABREF_ATLAS__ENABLED", "false")
    told = json.loads(command("query", basophil, "--json", "--lab", copy))
    assert {one["origin"] for one in told["references"]} == {"lab"}
    assert told["distribution"] == asked["distribution"] and told["novelty"] == asked["novelty"]


def test_the_page_marks_central_cells_in_words_and_shows_their_pictures(lab: Lab, basophil: Path) -> None:
    browser = let_in(lab, "Mona Ek", "review")
    page = browser.ask("POST", "/ask", basophil.read_bytes(), Content_Type="image/jpeg").text
    theirs = re.findall(r'data-central="(central-[0-9a-f]{16})"', page)
    assert theirs and page.count('<span class="mark">central</span>') >= len(theirs)
    assert f"{SOURCE.name}, {SOURCE.licence}" in page
    assert "it came with the bundle, from another microscope" in page
    assert "/cell/central-" not in page, "there is no page of a cell that the lab does not have"
    for address in set(re.findall(r'"(/central/[^"]+)"', page)):
        got = browser.get(address.replace("&amp;", "&"))
        assert got.status == 200, address
        with Image.open(io.BytesIO(got.body)) as opened:
            assert opened.size == (256, 256)
    short = theirs[0]
    bundle = re.findall(r"/central/([0-9a-f]{12})/", page)[0]
    for wrong in (
        f"/central/{bundle}/central-0000000000000000",
        f"/central/{'0' * 12}/{short}",
        f"/central/..%2f..%2f/{short}",
    ):
        assert browser.get(f"{wrong}/picture").status == 404
    assert browser.get(f"/central/{bundle}/{short}/picture?view=none").status == 400


def test_the_page_of_a_stored_cell_has_them_too(lab: Lab) -> None:
    cell = next(row["cell_id"] for row in run(lab, "ledger") if row["cell_id"])
    (shown,) = run(lab, "cell.show", cell=cell)
    page = let_in(lab, "Mona Lo", "view").get(f"/cell/{cell}").text
    for one in (*shown["references"], *shown["contrast"]):
        if one["origin"] == "central":
            assert one["slide_key"] is None
            assert f"/central/{shown['bundle'][:12]}/{one['cell_id']}/picture" in page


# the picture


def test_the_picture_says_that_a_cell_is_central_and_where_it_is_from() -> None:
    before = answer()
    after = answer()
    change = {"origin": "central", "label_source": "central", "source": "A data set", "licence": "CC BY 4.0"}
    after["references"][2] |= change
    one, other = drawn(before), drawn(after)
    box = ImageChops.difference(one, other).getbbox()
    assert box is not None
    left, top, right, bottom = box
    assert right - left <= 310 and bottom - top <= 400, "its own tile alone has changed"
    after["references"][2]["source"] = "Another data set"
    assert ImageChops.difference(other, drawn(after)).getbbox() is not None
    assert grid._SOURCES["central"] not in (grid._SOURCES["reviewed"], grid._SOURCES["analyser"])
    said = answer(contrast=[after["references"][2]])
    images = [picture("monocyte", i + 1) for i in range(8)]
    rows = [
        grid.draw(
            answer(contrast=[{**after["references"][2], "label_source": source}]),
            images[0],
            images,
            None,
            [(images[0], None)],
        )
        for source in ("central", "reviewed")
    ]
    assert ImageChops.difference(*rows).getbbox() is not None and said["contrast"]


# the benchmark


def test_the_benchmark_compares_own_central_and_both_on_cells_that_are_in_none_of_them(
    real_latents: Latents, starter: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "_PER_CLASS", 5)
    labels = np.array([item.label for item in real_latents.items])
    known = starter.manifest.labels
    said = np.array([[0.9 if name == label else 0.1 / (len(known) - 1) for name in known] for label in labels])
    cells = benchmark.Cells(real_latents.items, labels, real_latents.values, said.astype(np.float32))
    asked: list[set[str]] = []
    compared = benchmark._compared

    def seen(labs: Any, central: Central, *rest: Any) -> dict[str, Any]:
        for lab, queries in labs:
            stored = {item.path for item in lab.items}
            asked.append({item.path for item in queries.items})
            assert not stored & asked[-1]
            atlas = {latent.tobytes() for latent in central.atlas.latents}
            assert not atlas & {latent.tobytes() for latent in (*lab.latents, *queries.latents)}
        return compared(labs, central, *rest)

    monkeypatch.setattr(benchmark, "_compared", seen)
    found = benchmark.measure(cells, {}, bundle=starter, folder=tmp_path, sizes=(30,), repeats=2)
    assert [(lab["set"], lab["cells"], lab["draws"]) for lab in found["labs"]] == [("pbc", 30, 2)]
    assert found["atlas"] == 40 and asked[0] == asked[1]
    (lab,) = found["labs"]
    assert lab["queries"] == 2 * len(asked[0]) and 0 < lab["share"] < 1
    for over in lab["over"].values():
        assert over["own"] < over["both"], "thirty cells of eight classes, and the networks are right"
        assert over["won"]["value"] == pytest.approx(over["both"] - max(over["own"], over["central"]), abs=2e-4)
    contrast = benchmark.measure_contrast(cells, cells, bundle=starter, folder=tmp_path)
    assert contrast["queries"] == contrast["among"] == 160 and contrast["classes"] == 8
    assert contrast["by_references_alone"] < contrast["held"]["value"] == 1.0, (
        "nine tenths are enough for a place in the row"
    )
