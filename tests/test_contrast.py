"""The row of contrast: the nearest cell of each plausible class that the references do not show."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from labref.asking import references
from labref.bundles.bundle import Bundle
from labref.store import Store
from labref.store.duckdb.reviews import Review
from labref.store.memory import examples
from labref.store.memory.books import id_to_int
from labref.words import LabelSource
from tests.stores import BUNDLE, new_cell, new_store
from tests.test_references import at


@pytest.fixture
def bundle(starter: Bundle) -> Bundle:
    return replace(starter, digest=BUNDLE)


@pytest.fixture(params=["index", "scan"])
def store(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Store]:
    with new_store(tmp_path) as store:
        if request.param == "index":
            store.build_index()
        yield store


def row(
    store: Store, bundle: Bundle, latent: NDArray[np.float32] | None = None, **how: object
) -> list[tuple[str, str]]:
    """(class, cell) of the row for the origin, or for a latent."""
    found = references.find(
        store,
        bundle=bundle,
        latent=at(0) if latent is None else latent,
        digest=None,
        contrast=True,
        **how,  # type: ignore[arg-type]
    )
    assert {one.label for one in found.references}.isdisjoint(one.label for one in found.contrast)
    return [(one.label, one.cell_id) for one in found.contrast]


def test_a_rare_class_is_not_drowned_by_two_hundred_nearer_cells(store: Store, bundle: Bundle) -> None:
    common = [new_cell(i, latent=at(1 + i / 200), label="neutrophil") for i in range(200)]
    rare = [new_cell(f"rare{i}", latent=at(2.5 + i / 4), label="basophil") for i in range(3)]
    far = [new_cell("far", latent=at(60), label="platelet")]
    store.record([*common, *rare, *far], bundle=BUNDLE)
    assert row(store, bundle) == [("basophil", rare[0].cell_id)], "a platelet is sixty times as far: no contrast"
    assert row(store, bundle, probabilities={"platelet": 0.3}) == [
        ("basophil", rare[0].cell_id),
        ("platelet", far[0].cell_id),
    ], "unless the networks think of one"
    assert row(store, bundle, withheld=[rare[0].cell_id]) == [("basophil", rare[1].cell_id)]


def test_labels_that_change_are_followed_at_once(store: Store, bundle: Bundle) -> None:
    cells = [new_cell(i, latent=at(1 + i / 200), label="neutrophil") for i in range(200)]
    store.record(cells, bundle=BUNDLE)
    assert row(store, bundle) == []
    store.reviews.give([Review(cells[150].cell_id, "blast", "NN", None)])
    assert row(store, bundle) == [("blast", cells[150].cell_id)]
    more = new_cell("more", latent=at(1.5), label="blast")
    store.record([more], bundle=BUNDLE)
    assert row(store, bundle) == [("blast", more.cell_id)]


def test_the_trusted_of_two_about_equally_near_cells_is_shown(store: Store, bundle: Bundle) -> None:
    common = [new_cell(i, latent=at(1 + i / 1000), label="neutrophil") for i in range(12)]
    guessed = new_cell("guessed", latent=at(2), label="basophil", label_source=LabelSource.PREDICTED)
    said = new_cell("said", latent=at(2.05), label="basophil", label_source=LabelSource.REVIEWED)
    store.record([*common, guessed, said], bundle=BUNDLE)
    assert row(store, bundle) == [("basophil", said.cell_id)]


def test_only_cells_of_the_query_s_analyser_are_shown(store: Store, bundle: Bundle) -> None:
    cells = [new_cell(i, latent=at(1 + i / 1000), analyser="A", label="neutrophil") for i in range(200)]
    other = new_cell("other", latent=at(1.5), analyser="B", label="basophil")
    mine = new_cell("mine", latent=at(2.5), analyser="A", label="basophil")
    store.record([*cells, other, mine], bundle=BUNDLE)
    assert row(store, bundle, analyser="A") == [("basophil", mine.cell_id)]
    assert row(store, bundle, any_optics=True) == [("basophil", other.cell_id)]


def test_an_empty_store_and_one_of_a_single_class_have_no_contrast(store: Store, bundle: Bundle) -> None:
    assert row(store, bundle) == []
    store.record([new_cell(1, latent=at(1))], bundle=BUNDLE)
    assert row(store, bundle) == []


def test_of_a_large_class_the_same_sample_is_taken_by_everybody(
    tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(examples, "MOST_EXAMPLES", 40)
    common = [new_cell(i, latent=at(1 + i / 1000), label="neutrophil") for i in range(180)]
    large = [new_cell(f"large{i}", latent=at(2 + i / 100), label="basophil") for i in range(90)]
    chosen = sorted(large, key=lambda cell: id_to_int(cell.cell_id))[:40]
    expected = min(chosen, key=lambda cell: float(cell.latent[0])).cell_id
    with new_store(tmp_path) as store:
        store.record([*common, *large], bundle=BUNDLE)
        assert row(store, bundle) == [("basophil", expected)]
        store.build_index()
        store.reload()
        assert row(store, bundle) == [("basophil", expected)]
