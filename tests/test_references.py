"""References are the nearest other cells, weighed by distance; the cell itself and its duplicates are not among them."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from labref.bundle import Bundle, NoveltyThreshold
from labref.fingerprint import average_hash, digest
from labref.image import prepare
from labref.inference import Embedder
from labref.references import BANDWIDTH_RANK, Found, find, weights
from labref.store import NewCell, Store, cell_id_of
from tests.stores import BUNDLE, JUDGED, activate, brute_force, mark, new_cell, new_store

LATENT_SIZE = 50


def at(distance: float) -> NDArray[np.float32]:
    """A latent at that mean squared error from the origin (to float32's precision)."""
    latent = np.zeros(LATENT_SIZE, np.float32)
    latent[0] = math.sqrt(distance * LATENT_SIZE)
    return latent


@pytest.fixture
def bundle(starter: Bundle) -> Bundle:
    manifest = replace(starter.manifest, novelty=NoveltyThreshold(2.0, 4, "for these tests"))
    return replace(starter, digest=BUNDLE, manifest=manifest)


@pytest.fixture(params=["index", "scan"])
def store(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Store]:
    with new_store(tmp_path) as store:
        if request.param == "index":
            store.build_index()
        yield store


def ask(
    store: Store,
    bundle: Bundle,
    cell: NewCell | None = None,
    *,
    k: int = 8,
    spread: int = 100,
    repeats: Sequence[str] = (),
    withheld: Collection[str] = (),
) -> Found:
    """References of the origin, or of a cell."""
    return find(
        store,
        bundle=bundle,
        latent=at(0) if cell is None else cell.latent,
        digest=None if cell is None else cell.digest,
        repeats=repeats,
        withheld=withheld,
        k=k,
        spread=spread,
    )


def test_an_empty_store_has_no_references_and_everything_is_new(store: Store, bundle: Bundle) -> None:
    found = ask(store, bundle)
    assert found.references == []
    assert (found.distribution.n, found.distribution.weights) == (0, {})
    assert (found.novelty.score, found.novelty.is_novel) == (None, True)
    assert found.duplicate_of is None


def test_references_tell_all_that_is_shown_of_them(store: Store, bundle: Bundle) -> None:
    captured = datetime(2024, 5, 1, 9, 30, tzinfo=timezone(timedelta(hours=2)))
    store.record(
        [new_cell(1, latent=at(4), captured_at=captured), new_cell(2, latent=at(1), slide=None)], bundle=BUNDLE
    )
    nearest, other = ask(store, bundle).references
    assert (nearest.cell_id, nearest.slide, nearest.captured_at) == (new_cell(2).cell_id, None, None)
    assert (other.label, other.label_source, other.analyser) == ("neutrophil", "analyser", "DC-1")
    assert other.captured_at == "2024-05-01T07:30:00+00:00"
    assert (other.path, other.duplicate_of) == ("/export/1.jpg", None)
    assert [nearest.distance, other.distance] == pytest.approx([1, 4])


def test_the_spread_is_weighed_by_distance_and_sums_to_one(store: Store, bundle: Bundle) -> None:
    labels = ["monocyte", "neutrophil", "lymphocyte"]
    cells = [new_cell(i, latent=at(i + 1), label=labels[i % 3]) for i in range(150)]
    store.record(cells, bundle=BUNDLE)
    spread = ask(store, bundle).distribution
    expected = dict.fromkeys(labels, 0.0)
    for i in range(100):
        expected[labels[i % 3]] += math.exp(-(i + 1) / BANDWIDTH_RANK)
    total = sum(expected.values())
    assert spread.n == 100
    assert spread.weights == pytest.approx({label: weight / total for label, weight in expected.items()}, rel=1e-6)
    assert list(spread.weights) == labels, "the largest share first"
    assert sum(spread.weights.values()) == pytest.approx(1, abs=1e-12)
    assert ask(store, bundle, k=3).distribution == spread, "the number of references shown changes nothing"
    assert ask(store, bundle, spread=10).distribution.n == 10


def test_weights_fall_from_one_to_1_over_e_at_the_width() -> None:
    assert weights([0, 2, 4], 2) == pytest.approx([1, math.exp(-1), math.exp(-2)])
    assert weights([0, 0, 1e-300, 5], 0) == [1, 1, 0, 0]
    assert weights([], 3) == []


def test_eight_twins_of_the_query_take_all_the_weight(store: Store, bundle: Bundle) -> None:
    twins = [new_cell(i, latent=at(0), label="monocyte") for i in range(BANDWIDTH_RANK)]
    store.record([*twins, new_cell("other", latent=at(1))], bundle=BUNDLE)
    found = ask(store, bundle)
    assert found.distribution.weights == {"monocyte": 1.0, "neutrophil": 0.0}
    assert [reference.cell_id for reference in found.references] == sorted(cell.cell_id for cell in twins)


@pytest.mark.parametrize(("away", "is_novel"), [(1.9, False), (2.1, True)])
def test_a_cell_is_new_where_its_nearest_are_farther_than_the_bundles_threshold(
    store: Store, bundle: Bundle, away: float, is_novel: bool
) -> None:
    near = [new_cell(i, latent=at(away)) for i in range(4)]
    store.record([*near, *(new_cell(100 + i, latent=at(50)) for i in range(4))], bundle=BUNDLE)
    novelty = ask(store, bundle).novelty
    assert novelty.score == pytest.approx(away / 2)
    assert novelty.is_novel is is_novel
    assert ask(store, bundle, k=1).novelty == novelty, "the bundle's k counts, not how many are shown"


def test_a_cell_in_the_store_and_its_duplicates_are_not_its_references(store: Store, bundle: Bundle) -> None:
    chain = [new_cell(f"chain {i}", fingerprints=mark(2**i - 1), latent=at(i)) for i in range(3)]
    possible = new_cell("possible", fingerprints=mark(2**40 - 1), latent=at(5))
    store.record(chain, bundle=BUNDLE, **JUDGED)
    store.record([possible, new_cell("like it", fingerprints=mark(2**38 - 1), latent=at(6))], bundle=BUNDLE, **JUDGED)
    others = [possible.cell_id, new_cell("like it").cell_id]
    for cell in chain:
        found = ask(store, bundle, cell)
        assert found.duplicate_of == cell.cell_id
        assert [reference.cell_id for reference in found.references] == others
    found = ask(store, bundle, possible)
    assert new_cell("like it").cell_id in [reference.cell_id for reference in found.references]
    (marked,) = [reference for reference in found.references if reference.cell_id == new_cell("like it").cell_id]
    assert marked.duplicate_of == possible.cell_id, "a possible duplicate stays, and says so"
    withheld = store.duplicates.possible()
    assert withheld == {new_cell("like it").cell_id}
    assert new_cell("like it").cell_id not in [r.cell_id for r in ask(store, bundle, withheld=withheld).references]


def test_a_new_capture_of_a_stored_cell_names_it_and_does_not_get_it(store: Store, bundle: Bundle) -> None:
    stored = [
        new_cell("first", fingerprints=mark(0b1), latent=at(0)),
        new_cell("again", fingerprints=mark(0b0), label="monocyte", latent=at(0)),
        new_cell("another", latent=at(0)),
    ]
    store.record(stored, bundle=BUNDLE, **JUDGED)
    found = ask(store, bundle, new_cell("query", latent=at(0)), repeats=[stored[1].cell_id])
    assert found.duplicate_of == stored[1].cell_id
    assert [reference.cell_id for reference in found.references] == [stored[2].cell_id], "nor a duplicate of it"


def embed(embedder: Embedder, files: list[Path]) -> list[NewCell]:
    prepared = [prepare(file.read_bytes()) for file in files]
    embedded = embedder.embed(np.stack([cell.crop for cell in prepared]))
    labels = embedder.bundle.manifest.labels
    cells = []
    for file, cell, probabilities, latent in zip(
        files, prepared, embedded.probabilities, embedded.latents, strict=True
    ):
        named = digest(file.read_bytes())
        cells.append(
            NewCell(
                cell_id_of(named),
                named,
                str(file),
                file.stat().st_size,
                file.stat().st_mtime_ns,
                cell.size[1],
                cell.size[0],
                file.parent.name,
                "analyser",
                None,
                "DM96",
                datetime.now(UTC),
                labels[int(probabilities.argmax())],
                float(probabilities.max()),
                average_hash(cell.crop),
                latent,
                probabilities,
            )
        )
    return cells


def test_real_cells_find_the_nearest_real_cells(tmp_path: Path, real_cells: Path, embedder: Embedder) -> None:
    files = [
        file
        for folder in sorted((real_cells / "pbc").iterdir())
        if folder.is_dir()
        for file in sorted(folder.iterdir())[:7]
    ]
    cells = embed(embedder, files)
    bundle = embedder.bundle
    with Store.create(tmp_path / "store.duckdb") as store:
        activate(store, bundle.digest, labels=bundle.manifest.labels)
        stored = [cell for i, cell in enumerate(cells) if i % 7]
        store.record(stored, bundle=bundle.digest)
        latents, ids = np.stack([cell.latent for cell in stored]), [cell.cell_id for cell in stored]
        right = 0
        for cell in cells:
            found = ask(store, bundle, cell)
            group = {cell.cell_id, *store.duplicate_group(cell.cell_id)}
            allowed = [pair for pair in brute_force(latents, ids, cell.latent, 48) if pair[0] not in group]
            assert [(one.cell_id, one.distance) for one in found.references] == allowed[:8]
            assert sum(found.distribution.weights.values()) == pytest.approx(1)
            right += sum(reference.label == cell.label for reference in found.references)
        assert right / (8 * len(cells)) > 2 / 8, "of eight classes, a cell's own comes far more often than by chance"
        scanned = [ask(store, bundle, cell) for cell in cells]
        store.build_index()
        assert [ask(store, bundle, cell) for cell in cells] == scanned, "the same answer with the index and without"
        noise = np.random.default_rng(0).normal(0, 30, LATENT_SIZE).astype(np.float32)
        far = find(store, bundle=bundle, latent=noise, digest=None)
        assert far.novelty.is_novel
