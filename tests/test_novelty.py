"""What the lab does not know it says: p-values among its own cells, and the one rule for the networks' prediction."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from labref.asking import novelty
from labref.asking.analysers import Optics
from labref.asking.novelty import NEAREST, UNUSUAL, Novelty, yardstick
from labref.asking.prediction import far_from_training, judged, lacks
from labref.asking.references import find
from labref.bundles.bundle import Bundle
from labref.cells.optics import statistics
from labref.export.layout import ClassNames
from labref.store import NewCell, Store
from labref.store.duckdb.reviews import Review
from labref.tasks.context import Context
from labref.tasks.jobs import Jobs
from labref.tasks.novelty_job import keep_novelty
from tests.stores import BUNDLE, JUDGED, mark, new_cell, new_store
from training.measure.latents import Latents

NAMES = ClassNames(("neutrophil", "monocyte", "blast"), {"Neutros": "neutrophil"})


@pytest.fixture
def bundle(starter: Bundle) -> Bundle:
    return replace(starter, digest=BUNDLE)


def mixture(n: int, seed: int, classes: int = 3) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    middles = 6 * np.random.default_rng(0).standard_normal((classes, 50))
    of = rng.integers(0, classes, n)
    return (middles[of] + rng.standard_normal((n, 50))).astype(np.float32), of


def cells_of(latents: NDArray[np.float32], classes: NDArray[np.int64], **changes: Any) -> list[NewCell]:
    return [
        new_cell(f"{i}", latent=latent, label=f"class {of}", **changes)
        for i, (latent, of) in enumerate(zip(latents, classes.tolist(), strict=True))
    ]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A store of 400 cells of two classes."""
    with new_store(tmp_path_factory.mktemp("mixed")) as store:
        store.build_index()
        store.record(cells_of(*mixture(400, 1, classes=2)), bundle=BUNDLE)
        yield store


def test_the_yardstick_is_the_distance_of_each_cell_from_its_nearest_three_others(mixed: Store) -> None:
    cells = cells_of(*mixture(400, 1, classes=2))
    latents = np.stack([cell.latent for cell in cells]).astype(np.float64)
    apart = np.square(latents[:, None] - latents[None]).mean(axis=2)
    np.fill_diagonal(apart, np.inf)
    means = np.sort(apart, axis=1)[:, :NEAREST].mean(axis=1)
    sample = sorted(range(len(cells)), key=lambda i: cells[i].cell_id)[:256]
    found = yardstick(mixed, BUNDLE, None)
    assert found is not None
    np.testing.assert_allclose(found.near, np.sort(means[sample]), rtol=1e-9)
    assert set(found.by_class) == {"class 0", "class 1"}
    assert yardstick(mixed, BUNDLE, "unheard of") is None


def test_the_yardstick_is_the_same_without_an_index_and_of_one_analyser(tmp_path: Path) -> None:
    latents, classes = mixture(240, 2)
    with new_store(tmp_path) as store:
        store.record(cells_of(latents[:120], classes[:120], analyser="A"), bundle=BUNDLE)
        more = zip(latents[120:], classes[120:].tolist(), strict=True)
        store.record(
            [new_cell(f"b{i}", latent=v, label=f"class {c}", analyser="B") for i, (v, c) in enumerate(more)],
            bundle=BUNDLE,
        )
        scanned = {of: yardstick(store, BUNDLE, of) for of in (None, "A", "B")}
    with Store.open(tmp_path / "store.duckdb") as store:
        store.build_index()
        for of, by_scan in scanned.items():
            by_index = yardstick(store, BUNDLE, of)
            assert by_scan is not None and by_index is not None
            np.testing.assert_allclose(by_index.near, by_scan.near, rtol=1e-9)
            np.testing.assert_allclose(by_index.pooled, by_scan.pooled, rtol=1e-9)
    assert scanned["A"] is not None and len(scanned["A"].near) == 120


def test_captures_of_one_cell_do_not_make_the_others_look_far(tmp_path: Path) -> None:
    latents, classes = mixture(100, 3)
    cells = [
        new_cell(i, latent=v, label=f"class {c}", fingerprints=mark(i << 8))
        for i, (v, c) in enumerate(zip(latents, classes, strict=True))
    ]
    again = [
        new_cell(f"again {i}", latent=latents[i], label=cells[i].label, fingerprints=mark((i << 8) | 1))
        for i in range(20)
    ]
    with new_store(tmp_path) as store:
        store.record(cells, bundle=BUNDLE)
        alone = yardstick(store, BUNDLE, None)
        store.record(again, bundle=BUNDLE, **JUDGED)
        assert len(store.groups) == 20
        twice = yardstick(store, BUNDLE, None)
    assert alone is not None and twice is not None
    assert twice.near.min() >= alone.near.min() * (1 - 1e-9), "a cell is none of its own neighbours"


def test_p_values_of_cells_of_the_lab_are_spread_evenly_and_those_of_another_class_are_small(
    mixed: Store, bundle: Bundle
) -> None:
    known, of = mixture(300, 9, classes=2)
    p = np.array([asked(mixed, bundle, latent).p for latent in known])
    assert abs(float((p <= 0.2).mean()) - 0.2) < 0.08
    assert float((p <= UNUSUAL).mean()) <= 0.02
    latents, classes = mixture(400, 10)
    new = [asked(mixed, bundle, latent) for latent in latents[classes == 2][:40]]
    assert all(one.is_novel and one.no_class and one.words == "nothing here resembles this cell" for one in new)
    first = asked(mixed, bundle, known[0])
    assert first.class_label == f"class {of[0]}" and first.words is None


def test_the_networks_word_counts_where_the_lab_has_no_such_cells_and_the_cell_lies_apart(
    mixed: Store, bundle: Bundle
) -> None:
    latents, _ = mixture(300, 11, classes=2)
    far = next(v for v in latents if 0.05 < (asked(mixed, bundle, v).p or 0) < 0.15)
    near = next(v for v in latents if (asked(mixed, bundle, v).p or 0) > 0.5)
    said = asked(mixed, bundle, far, probabilities={"blast": 0.9})
    assert (said.is_novel, said.no_class, said.words) == (False, True, "no class of this lab resembles this cell")
    assert not asked(mixed, bundle, far, probabilities={"blast": 0.4}).no_class
    assert not asked(mixed, bundle, far, probabilities={"neutrophil": 0.9}).no_class, "the networks call cells here so"
    assert not asked(mixed, bundle, near, probabilities={"blast": 0.9}).no_class, "it lies among the lab's cells"


def asked(store: Store, bundle: Bundle, latent: NDArray[np.float32], **more: Any) -> Novelty:
    return find(store, bundle=bundle, latent=latent, digest=None, k=1, **more).novelty


def test_a_class_of_real_cells_that_the_lab_has_none_of_is_not_taken_for_another(
    real_latents: Latents, bundle: Bundle, tmp_path: Path
) -> None:
    labels = [item.label for item in real_latents.items]
    shares, false = [], []
    for left_out in ("platelet", "monocyte"):
        folder = tmp_path / left_out
        folder.mkdir()
        with new_store(folder) as store:
            store.build_index()
            stored = [
                new_cell(f"{i}", latent=latent, label=label)
                for i, (latent, label) in enumerate(zip(real_latents.values, labels, strict=True))
                if label != left_out
            ]
            store.record(stored, bundle=BUNDLE)
            new = [v for v, label in zip(real_latents.values, labels, strict=True) if label == left_out]
            shares.append(np.mean([(n := asked(store, bundle, v)).is_novel or n.no_class for v in new]))
            said = [find(store, bundle=bundle, latent=c.latent, digest=c.digest, k=1).novelty for c in stored[::4]]
            false.append(np.mean([one.is_novel or one.no_class for one in said]))
    assert np.mean(shares) >= 0.8
    assert np.mean(false) <= 0.03


def test_a_young_lab_goes_by_the_bundles_threshold(tmp_path: Path, bundle: Bundle) -> None:
    latents, classes = mixture(60, 4, classes=1)
    other, _ = mixture(1, 5, classes=1)
    with new_store(tmp_path) as store:
        store.record(cells_of(latents[:19], classes[:19]), bundle=BUNDLE)
        first = asked(store, bundle, other[0])
        assert (first.p, first.is_novel) == (None, True) and first.score is not None and first.score > 1
        store.record(cells_of(latents, classes)[19:], bundle=BUNDLE)
        known = asked(store, bundle, other[0])
        assert known.score is not None and known.score > 1, "by the bundle's threshold all cells here are far"
        assert known.p is not None and known.p > 0.02 and not known.is_novel, "as far as the lab's own are"
        assert asked(store, bundle, other[0] + 20).is_novel


FINE = Novelty(0.5, False)


@pytest.mark.parametrize(
    ("changed", "because", "words"),
    [
        ({}, None, None),
        ({"novelty": Novelty(2.0, True, 0.004, 0.004, "monocyte", True)}, "nothing", "nothing in this lab"),
        ({"novelty": Novelty(0.9, False, 0.02, 0.004, "monocyte", True)}, "no class", "no class of this lab"),
        ({"lacking": True}, "no class", "no cell called neutrophil"),
        ({"strange": "focus by 12 deviations"}, "optics", "focus by 12 deviations"),
        ({"spread": {"monocyte": 0.8, "neutrophil": 0.2}}, "neighbours", "monocyte, 80%"),
        ({"spread": {"monocyte": 0.4, "neutrophil": 0.3, "blast": 0.3}}, None, None),
        ({"spread": {"Neutros": 0.4, "segmented neutrophil": 0.3, "monocyte": 0.3}}, None, None),
        ({"spread": {}}, None, None),
        ({"lacking": True, "strange": "focus", "novelty": Novelty(None, True)}, "nothing", "nothing"),
    ],
)
def test_the_prediction_is_withheld_with_the_reason(
    changed: dict[str, Any], because: str | None, words: str | None
) -> None:
    evidence: dict[str, Any] = {
        "novelty": FINE,
        "spread": {"neutrophil": 1.0},
        "lacking": False,
        "strange": None,
        "names": NAMES,
    }
    said = judged("neutrophil", 0.9, **(evidence | changed))
    assert (said.label, said.probability) == ("neutrophil", 0.9)
    assert (said.shown, said.because) == (because is None, because)
    assert (said.reason is None) == (words is None) and (words or "") in (said.reason or "")


def test_a_lab_lacks_a_class_that_nobody_gave_to_any_of_its_cells(tmp_path: Path) -> None:
    with new_store(tmp_path) as store:
        assert not lacks(store, "blast", NAMES), "nobody called any cell anything"
        store.record([new_cell(1, label=None, label_source="predicted", predicted_label="blast")], bundle=BUNDLE)
        assert not lacks(store, "blast", NAMES)
        store.record([new_cell(2, label="Segmented neutrophil")], bundle=BUNDLE)
        assert lacks(store, "blast", NAMES) and lacks(store, "monocyte", NAMES)
        assert not lacks(store, "neutrophil", NAMES), "a narrower class is one of it"


def test_optics_far_from_the_training_are_told_by_the_analysers_cells_or_else_by_the_cell_itself(
    tmp_path: Path, bundle: Bundle
) -> None:
    rng = np.random.default_rng(6)
    usual = (np.array([240, 220, 200, 0.9, 0.25, 0.4, 0.1]) + 0.02 * rng.standard_normal((80, 7))).astype(np.float32)
    other = usual + np.array([-80, -80, -60, 0, 0, 0, 0], np.float32)
    trained = replace(bundle, manifest=replace(bundle.manifest, optics=statistics(usual)))
    untold = replace(bundle, manifest=replace(bundle.manifest, optics={}))
    with new_store(tmp_path) as store:
        for name, values in (("A", usual), ("B", other), ("C", other[:5])):
            store.record(
                [new_cell(f"{name}{i}", analyser=name, measures=v) for i, v in enumerate(values[:60])], bundle=BUNDLE
            )
        by: dict[str, Any] = {name: Optics(name, True, "stored", 60) for name in "ABC"}
        unknown = Optics(None, False, "unknown", 125)
        assert far_from_training(store, trained, by["A"], lambda: other[0]) is None, "its cells speak for the analyser"
        assert far_from_training(store, trained, by["B"]) == "background red by 20 deviations"
        assert far_from_training(store, trained, by["C"], lambda: other[0]) is not None, "five cells say nothing"
        assert far_from_training(store, trained, unknown, lambda: usual[70]) is None
        assert far_from_training(store, trained, unknown, lambda: other[70]) is not None
        assert far_from_training(store, trained, unknown) is None
        assert far_from_training(store, untold, by["B"]) is None


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a store of 200 cells whose yardstick is kept in a file, as that of a lab with many."""
    monkeypatch.setattr(novelty, "_LARGE", 100)
    monkeypatch.setattr(novelty, "_EXACT", 100)
    with new_store(tmp_path) as store:
        store.build_index()
        store.record(cells_of(*mixture(200, 2, classes=2)), bundle=BUNDLE)
        assert yardstick(store, BUNDLE, None) is not None
    return tmp_path


@contextmanager
def opened(folder: Path) -> Iterator[tuple[Store, list[str | None]]]:
    """The store, opened again; and of which analysers a yardstick is made anew."""
    anew: list[str | None] = []
    made = novelty._made

    def counted(store: Store, bundle: str, analyser: str | None, stopped: Any) -> Any:
        anew.append(analyser)
        return made(store, bundle, analyser, stopped)

    with pytest.MonkeyPatch.context() as patch, Store.open(folder / "store.duckdb") as store:
        patch.setattr(novelty, "_made", counted)
        yield store, anew


def test_the_yardstick_of_a_large_lab_outlives_a_start(large: Path) -> None:
    with opened(large) as (store, anew):
        assert not novelty.ready(store, BUNDLE, None)
        kept = yardstick(store, BUNDLE, None)
        assert anew == [] and novelty.ready(store, BUNDLE, None)
        made = novelty._made(store, BUNDLE, None, lambda: False)
        assert kept is not None and made is not None
        assert np.array_equal(kept.near, made.near) and np.array_equal(kept.pooled, made.pooled)
        assert (kept.called, kept.sample) == (made.called, made.sample) and len(kept.sample) == 128
        anew.clear()
        yardstick(store, BUNDLE, "DC-1")  # of these cells alone nothing is kept yet
        assert anew == ["DC-1"]
    with opened(large) as (store, anew):
        assert (
            yardstick(store, BUNDLE, "DC-1") is not None and yardstick(store, BUNDLE, None) is not None and anew == []
        )


def relabel(store: Store, of: int) -> None:
    sample = sorted(cell.cell_id for cell in cells_of(*mixture(200, 2, classes=2)))[:128]
    store.reviews.give([Review(cell_id, "another class", "somebody", None) for cell_id in sample[:of]])


@pytest.mark.parametrize(
    ("change", "stale"),
    [
        (lambda store: relabel(store, 10), False),
        (lambda store: relabel(store, 20), True),
        (lambda store: store.record([new_cell(f"late {i}") for i in range(15)], bundle=BUNDLE), False),
        (lambda store: store.record([new_cell(f"late {i}") for i in range(25)], bundle=BUNDLE), True),
    ],
    ids=("few labels changed", "many labels changed", "few cells came", "many cells came"),
)
def test_a_yardstick_of_another_lab_than_this_is_not_taken_from_the_file(
    large: Path, change: Callable[[Store], None], stale: bool
) -> None:
    with opened(large) as (store, _):
        change(store)
    with opened(large) as (store, anew):
        assert yardstick(store, BUNDLE, None) is not None and bool(anew) == stale
    with opened(large) as (store, anew):  # what was made anew is kept in its place
        assert yardstick(store, BUNDLE, None) is not None and anew == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda _: b"",
        lambda _: b"[1, 2]",
        lambda _: b"\xff\x00",
        lambda data: data.replace(b"0.", b"1.", 1),
        lambda data: data.replace(b'"version": 1', b'"version": 0'),
        lambda _: None,
    ],
    ids=("cut off", "empty", "something else", "no text", "a number changed", "another version", "a folder"),
)
def test_a_damaged_file_of_yardsticks_is_made_anew(large: Path, damage: Callable[[bytes], bytes | None]) -> None:
    file = large / "logs" / "novelty.json"
    data = damage(file.read_bytes())
    file.unlink()
    if data is None:
        file.mkdir()
    else:
        file.write_bytes(data)
    with opened(large) as (store, anew):
        kept = yardstick(store, BUNDLE, None)
        assert kept is not None and len(kept.near) == 128 and anew == [None]
    with opened(large) as (store, anew):
        assert yardstick(store, BUNDLE, None) is not None and anew == ([] if data is not None else [None])
    assert [path.name for path in file.parent.iterdir()] == [file.name]  # no draft is left


def test_what_is_prepared_ends_when_it_is_told_to_and_keeps_nothing_half_made(large: Path) -> None:
    (large / "logs" / "novelty.json").unlink()
    with opened(large) as (store, anew):
        for after in (0, 1):
            novelty.prepare(store, BUNDLE, None, iter([*[False] * after, True]).__next__)
            assert not novelty.ready(store, BUNDLE, None) and not (large / "logs" / "novelty.json").exists()
        with novelty._MAKING:  # somebody makes one: nobody waits for that who is told to stop
            novelty.prepare(store, BUNDLE, None, lambda: True)
        anew.clear()
        novelty.prepare(store, BUNDLE, None, lambda: False)
        assert novelty.ready(store, BUNDLE, None) and yardstick(store, BUNDLE, None) is not None and anew == [None]


def test_the_agent_has_the_yardsticks_of_a_large_lab_ready_before_somebody_asks(large: Path) -> None:
    jobs = Jobs(cast(Any, SimpleNamespace(info=lambda *_, **__: None, error=lambda *_, **__: None)))
    with opened(large) as (store, anew):
        store.record([new_cell(f"other {i}", analyser=None) for i in range(5)], bundle=BUNDLE)
        context = cast(Context, SimpleNamespace(store=store, jobs=jobs))
        job = keep_novelty(context)
        assert job is not None and jobs.submit(job) and keep_novelty(context) is None and jobs.wait_idle(60)
        assert jobs.status()["ended"]["novelty"]["outcome"] == "done"
        assert anew == ["DC-1"]  # that of all cells is in the file; of five cells it is made when it is asked for
        assert keep_novelty(context) is None
    jobs.close()
