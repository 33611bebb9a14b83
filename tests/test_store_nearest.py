"""The nearest are exactly the nearest, however they are found: against brute force, with ties, twins and hard
numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from labref.store import NewCell, Store
from labref.store.memory import distances
from labref.store.memory.books import int_to_id
from labref.store.memory.index import Index
from tests.stores import BUNDLE, activate, brute_force, new_cell, new_store

Latents = NDArray[np.float32]


def spread_evenly(rng: np.random.Generator, n: int, size: int) -> Latents:
    return rng.standard_normal((n, size)).astype(np.float32)


def in_clusters(rng: np.random.Generator, n: int, size: int) -> Latents:
    scale = 0.75 ** np.arange(size)
    return (
        2 * rng.standard_normal((12, size))[rng.integers(0, 12, n)] * scale
        + 0.3 * rng.standard_normal((n, size)) * scale
    ).astype(np.float32)


def far_from_the_origin(rng: np.random.Generator, n: int, size: int) -> Latents:
    return (1000 + 0.001 * rng.standard_normal((n, size))).astype(np.float32)


def on_a_grid(rng: np.random.Generator, n: int, size: int) -> Latents:
    """Few values, so that most distances are shared by many."""
    return rng.integers(0, 2, (n, size)).astype(np.float32)


def few_vectors(rng: np.random.Generator, n: int, size: int) -> Latents:
    return rng.standard_normal((7, size)).astype(np.float32)[rng.integers(0, 7, n)]


def all_the_same(rng: np.random.Generator, n: int, size: int) -> Latents:
    return np.full((n, size), 0.1, np.float32)


def huge_and_tiny(rng: np.random.Generator, n: int, size: int) -> Latents:
    return (rng.standard_normal((n, size)) * 10.0 ** rng.integers(-30, 14, (n, 1))).astype(np.float32)


def in_one_dimension(rng: np.random.Generator, n: int, size: int) -> Latents:
    latents = np.zeros((n, size), np.float32)
    latents[:, size // 2] = rng.standard_normal(n)
    return latents


CLOUDS = [
    spread_evenly,
    in_clusters,
    far_from_the_origin,
    on_a_grid,
    few_vectors,
    all_the_same,
    huge_and_tiny,
    in_one_dimension,
]


@pytest.mark.parametrize("size", [1, 2, 10, 50, 75])
@pytest.mark.parametrize("cloud", CLOUDS)
def test_the_index_finds_what_looking_at_all_finds(
    cloud: Callable[[np.random.Generator, int, int], Latents], size: int
) -> None:
    rng = np.random.default_rng(size)
    n = 1500
    latents = cloud(rng, n, size)
    numbers = rng.permutation(np.arange(1, n + 1, dtype=np.uint64)) * np.uint64(7_919_000_000_000)
    ids = [int_to_id(number) for number in numbers.tolist()]
    index = Index(size, block_rows=400)  # three full blocks and a part
    for start in range(0, n, 130):
        index.add(numbers[start : start + 130], latents[start : start + 130])
    assert len(index) == n
    # a cell itself, something new, and something far away
    queries = np.concatenate([latents[:2], cloud(rng, 2, size), 50 * rng.standard_normal((1, size)).astype(np.float32)])
    for query in queries:
        for k in (1, 8, 100, n + 5):
            found, away = index.nearest(query, k)
            expected = brute_force(latents, ids, query, k)
            assert list(zip(map(int_to_id, found.tolist()), away.tolist(), strict=True)) == expected


def test_full_blocks_of_clustered_cells_are_searched_by_a_few_axes_and_spread_ones_in_full() -> None:
    rng = np.random.default_rng(0)
    for cloud, turned in ((in_clusters, True), (spread_evenly, False)):
        index = Index(50, block_rows=8192)
        index.add(np.arange(8192, dtype=np.uint64), cloud(rng, 8192, 50))
        assert (index._blocks[0].axes is not None) is turned


@pytest.mark.parametrize("cloud", CLOUDS)
def test_bounds_are_never_above_the_distance(cloud: Callable[[np.random.Generator, int, int], Latents]) -> None:
    rng = np.random.default_rng(3)
    latents = cloud(rng, 4096, 50)
    index = Index(50, block_rows=4096)
    index.add(np.arange(4096, dtype=np.uint64), latents)
    (block,) = index._blocks
    for query in np.concatenate([latents[:5], cloud(rng, 5, 50)]):
        bounds, base = block.bounds(query, 4096)
        assert (bounds.astype(np.float64) + base <= distances.exact(latents, query) * 50 * (1 + 1e-12) + 1e-36).all()


def test_a_distance_does_not_depend_on_the_rows_beside_it() -> None:
    rng = np.random.default_rng(1)
    for size in (1, 3, 8, 50, 75, 129, 300):
        latents, query = spread_evenly(rng, 257, size), spread_evenly(rng, 1, size)[0]
        together = distances.exact(latents, query)
        for n in (1, 2, 3, 64):
            alone = np.concatenate([distances.exact(latents[i : i + n], query) for i in range(0, 257, n)])
            assert (alone == together).all()


def record_all(store: Store, latents: Latents) -> list[NewCell]:
    cells = [new_cell(i, latent=latent) for i, latent in enumerate(latents)]
    store.record(cells, bundle=BUNDLE)
    return cells


@pytest.mark.parametrize("cloud", CLOUDS)
def test_with_and_without_memory_the_answers_are_the_same_to_the_last_bit(
    tmp_path: Path, cloud: Callable[[np.random.Generator, int, int], Latents]
) -> None:
    rng = np.random.default_rng(2)
    latents = cloud(rng, 700, 50)
    queries = np.concatenate([latents[:2], cloud(rng, 2, 50)])
    with new_store(tmp_path) as store:
        cells = record_all(store, latents)
        ids = [cell.cell_id for cell in cells]
        scanned = [[store.nearest(query, bundle=BUNDLE, k=k) for k in (1, 8, 100)] for query in queries]
        store.build_index()
        indexed = [[store.nearest(query, bundle=BUNDLE, k=k) for k in (1, 8, 100)] for query in queries]
    assert scanned == indexed
    for query, answers in zip(queries, scanned, strict=True):
        for k, answer in zip((1, 8, 100), answers, strict=True):
            assert [(near.cell_id, near.distance) for near in answer] == brute_force(latents, ids, query, k)


@pytest.mark.parametrize("indexed", [True, False], ids=["index", "scan"])
def test_excluded_cells_make_room_for_the_next(tmp_path: Path, indexed: bool) -> None:
    latents = in_clusters(np.random.default_rng(4), 300, 50)
    with new_store(tmp_path) as store:
        record_all(store, latents)
        if indexed:
            store.build_index()
        everything = store.nearest(latents[0], bundle=BUNDLE, k=300)
        barred = {near.cell_id for near in everything[:150:2]}
        left = store.nearest(latents[0], bundle=BUNDLE, k=20, exclude=barred)
        assert left == [near for near in everything if near.cell_id not in barred][:20]
        everyone = [near.cell_id for near in everything]
        assert store.nearest(latents[0], bundle=BUNDLE, k=8, exclude=everyone) == []
        assert store.nearest(latents[0], bundle=BUNDLE, k=1000) == everything


def test_the_index_keeps_up_with_what_is_recorded_and_is_the_same_after_reopening(tmp_path: Path) -> None:
    latents = in_clusters(np.random.default_rng(5), 400, 50)
    with new_store(tmp_path) as store:
        store.build_index()
        assert store.nearest(latents[0], bundle=BUNDLE, k=8) == []
        for start in range(0, 400, 50):
            cells = [new_cell(i, latent=latents[i]) for i in range(start, start + 50)]
            store.record(cells, bundle=BUNDLE)
            newest = store.nearest(latents[start + 49], bundle=BUNDLE, k=1)
            assert newest[0].cell_id == cells[49].cell_id and newest[0].distance == 0
        store.record([new_cell(0, path="/export/copy.jpg", latent=latents[0])], bundle=BUNDLE)
        kept = store.nearest(latents[7], bundle=BUNDLE, k=400)
        assert len(kept) == 400, "a copy is no further cell"
    with Store.open(tmp_path / "store.duckdb") as store:
        store.build_index()
        assert store.nearest(latents[7], bundle=BUNDLE, k=400) == kept


def test_an_index_may_be_kept_for_a_bundle_that_is_not_active(tmp_path: Path) -> None:
    other = "cd" * 32
    with new_store(tmp_path) as store:
        record_all(store, in_clusters(np.random.default_rng(6), 50, 50))
        store.add_bundle(other, name="narrow", version="2", latent_size=2, labels=("a",))
        store.build_index(other)
        narrow = new_cell("narrow", latent=np.ones(2, np.float32), probabilities=np.ones(1, np.float32))
        store.record([narrow], bundle=other)
        assert [near.cell_id for near in store.nearest(narrow.latent, bundle=other, k=8)] == [narrow.cell_id]
        activate(store)
        assert len(store.nearest(new_cell(1).latent, bundle=BUNDLE, k=100)) == 50


@pytest.mark.parametrize("indexed", [True, False], ids=["index", "scan"])
def test_a_query_that_does_not_fit_is_refused(tmp_path: Path, indexed: bool) -> None:
    with new_store(tmp_path) as store:
        if indexed:
            store.build_index()
        with pytest.raises(ValueError, match="shape"):
            store.nearest(np.zeros(49, np.float32), bundle=BUNDLE, k=8)
        with pytest.raises(ValueError, match="not finite"):
            store.nearest(np.full(50, np.nan, np.float32), bundle=BUNDLE, k=8)
