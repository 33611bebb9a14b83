"""References are the nearest other cells, weighed by distance; the cell itself and its duplicates are not among
them."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from labref.asking.references import BANDWIDTH_RANK, Found, find, weights
from labref.bundles.bundle import Bundle, NoveltyThreshold
from labref.bundles.inference import Embedder
from labref.cells.hashes import digest
from labref.cells.image import prepare
from labref.store import NewCell, Store, cell_id_of
from labref.store.duckdb.reviews import Review
from tests.stores import BUNDLE, JUDGED, activate, brute_force, digest_of, mark, new_cell, new_store, put_on_map

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
    by: str = "latent",
    repeats: Sequence[str] = (),
    may_repeat: Sequence[str] = (),
    withheld: Collection[str] = (),
    show_same: bool = True,
) -> Found:
    """References of the origin, or of a cell."""
    return find(
        store,
        bundle=bundle,
        latent=at(0) if cell is None else cell.latent,
        digest=None if cell is None else cell.digest,
        by=by,
        repeats=repeats,
        may_repeat=may_repeat,
        withheld=withheld,
        show_same=show_same,
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
    assert other.captured_at == "2024-05-01T07:30:00Z"
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
        assert shown(found) == others[:1], "what may be one cell takes one place"
    found = ask(store, bundle, possible)
    assert new_cell("like it").cell_id in [reference.cell_id for reference in found.references]
    (marked,) = [reference for reference in found.references if reference.cell_id == new_cell("like it").cell_id]
    assert marked.duplicate_of == possible.cell_id and marked.may_be_same, "a possible duplicate stays, and says so"
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


# cells captured more than once


def captured(
    store: Store, name: str, distances: Sequence[float], sources: Sequence[str] = (), labels: Sequence[str] = ()
) -> list[str]:
    """Record captures of one cell at these distances from the origin; their ids. Where nothing else is said the
    analyser labelled them."""
    number = int(digest_of(name)[:15], 16)
    cells = [
        new_cell(
            f"{name} {i}",
            latent=at(distance),
            fingerprints=mark(number << 1 | i % 2),
            label_source=sources[i] if sources else "analyser",
            label=labels[i] if labels else "neutrophil",
        )
        for i, distance in enumerate(distances)
    ]
    store.record(cells, bundle=BUNDLE, **JUDGED)
    assert store.duplicate_group(cells[-1].cell_id) == [cell.cell_id for cell in cells]
    return [cell.cell_id for cell in cells]


def shown(found: Found) -> list[str]:
    return [reference.cell_id for reference in found.references]


def test_of_a_cell_captured_many_times_the_nearest_capture_is_shown_and_says_how_many_there_are(
    store: Store, bundle: Bundle
) -> None:
    again = captured(store, "again", [1.3, 1.2, 1.1, 1.0, 1.4], labels=["monocyte"] * 5)
    others = [new_cell(i, latent=at(2 + i)) for i in range(20)]
    store.record(others, bundle=BUNDLE)
    found = ask(store, bundle)
    assert shown(found) == [again[3], *(cell.cell_id for cell in others[:7])]
    assert [reference.captures for reference in found.references] == [5, 1, 1, 1, 1, 1, 1, 1]
    assert found.distribution.n == 21
    share = math.exp(-1 / 8) / math.fsum(math.exp(-d / 8) for d in [1, *range(2, 22)])
    assert found.distribution.weights["monocyte"] == pytest.approx(share), (
        "one cell counts once, the width is the eighth's"
    )
    assert found.novelty.score == pytest.approx((1.0 + 1.1 + 1.2 + 1.3) / 4 / 2), "of the nearest captures"


@pytest.mark.parametrize(
    ("sources", "distances", "stands"),
    [
        (("predicted", "reviewed"), (1.0, 1.04), 1),
        (("predicted", "reviewed"), (1.0, 1.06), 0),
        (("analyser", "reviewed", "reviewed"), (1.0, 1.03, 1.02), 2),
        (("predicted", "analyser", "reviewed"), (1.0, 1.01, 1.04), 2),
        (("predicted", "analyser", "reviewed"), (1.0, 1.04, 1.06), 1),
        (("reviewed", "reviewed"), (1.01, 1.0), 1),
    ],
)
def test_a_more_trusted_capture_stands_for_one_that_is_about_as_near(
    store: Store, bundle: Bundle, sources: Sequence[str], distances: Sequence[float], stands: int
) -> None:
    names = ["monocyte", "basophil", "eosinophil"]
    again = captured(store, "again", distances, sources, names[: len(sources)])
    store.record([new_cell("other", latent=at(5))], bundle=BUNDLE)
    found = ask(store, bundle)
    assert shown(found) == [again[stands], new_cell("other").cell_id]
    assert found.references[0].distance == pytest.approx(distances[stands])
    assert set(found.distribution.weights) == {names[stands], "neutrophil"}, "the spread counts what is shown"


def test_a_label_that_a_person_only_confirms_makes_its_capture_the_one_that_is_shown(
    store: Store, bundle: Bundle
) -> None:
    again = captured(store, "again", [1.0, 1.02])
    assert shown(ask(store, bundle)) == again[:1]
    store.reviews.give([Review(again[1], "neutrophil", "A", None)])
    assert shown(ask(store, bundle)) == again[1:]


def test_what_is_clearly_nearer_is_not_left_out_for_a_capture_that_is_not_the_nearest_of_its_cell(
    store: Store, bundle: Bundle
) -> None:
    again = captured(store, "again", [1.0, 1.04], ["predicted", "analyser"])
    store.record([new_cell("reviewed", latent=at(1.08), label_source="reviewed")], bundle=BUNDLE)
    assert shown(ask(store, bundle, k=1)) == again[1:], "1.08 is near 1.04, but not 1.0"
    store.record([new_cell("nearest", latent=at(0.97), label_source="predicted")], bundle=BUNDLE)
    assert shown(ask(store, bundle, k=1)) == [new_cell("nearest").cell_id], "1.04 is near 1.0, but not 0.97"


def test_behind_a_cell_captured_hundreds_of_times_there_are_still_eight_and_a_hundred(
    store: Store, bundle: Bundle
) -> None:
    again = captured(store, "again", [1 + i / 1000 for i in range(280)], ["predicted"] * 40 + ["reviewed"] * 240)
    others = [new_cell(i, latent=at(2 + i)) for i in range(120)]
    assert [reference.captures for reference in ask(store, bundle).references] == [280], "no more cells than there are"
    store.record(others, bundle=BUNDLE)
    found = ask(store, bundle)
    assert shown(found) == [again[40], *(cell.cell_id for cell in others[:7])]
    assert found.distribution.n == 100
    assert shown(ask(store, bundle, k=100))[1:] == [cell.cell_id for cell in others[:99]]


def test_a_possible_duplicate_takes_no_place_of_its_own_until_a_person_says_that_it_is_another_cell(
    store: Store, bundle: Bundle
) -> None:
    cells = [
        new_cell("first", fingerprints=mark(0), latent=at(1)),
        new_cell("like it", fingerprints=mark(7), latent=at(2)),
        new_cell("another", latent=at(3)),
    ]
    ids = [cell.cell_id for cell in cells]
    store.record(cells, bundle=BUNDLE, **JUDGED)
    found = ask(store, bundle)
    assert (shown(found), [one.captures for one in found.references]) == ([ids[0], ids[2]], [1, 1])
    assert not any(one.may_be_same for one in found.references), "of another cell than the one that is asked about"
    assert found.distribution.n == 2
    store.duplicates.confirm(ids[1], "A")
    found = ask(store, bundle)
    assert (shown(found), [one.captures for one in found.references]) == ([ids[0], ids[2]], [2, 1])
    store.duplicates.reject(ids[1], "A")
    assert shown(ask(store, bundle)) == ids
    store.duplicates.undo(ids[1], "A")
    assert shown(ask(store, bundle)) == [ids[0], ids[2]]
    assert store.duplicates.possible() == {ids[1]}


def test_all_cells_that_one_may_repeat_take_one_place_with_it(store: Store, bundle: Bundle) -> None:
    """Two cells that are not like each other, and a later one that is like both: it is linked with one of them."""
    cells = [
        new_cell("left", fingerprints=mark(0b111), latent=at(1)),
        new_cell("right", fingerprints=mark(0b111 << 10), latent=at(2)),
    ]
    left, right = (cell.cell_id for cell in cells)
    store.record(cells, bundle=BUNDLE, **JUDGED)
    assert shown(ask(store, bundle)) == [left, right]
    middle = new_cell("middle", fingerprints=mark(0), latent=at(3))
    store.record([middle], bundle=BUNDLE, **JUDGED)
    of_middle = store.cell(middle.cell_id)
    assert of_middle is not None and of_middle.duplicate_of in (left, right)
    assert shown(ask(store, bundle)) == [left]
    assert store.may_be_same(left) == {right, middle.cell_id}
    linked = of_middle.duplicate_of
    store.duplicates.reject(middle.cell_id, "A")
    other = right if linked == left else left
    assert store.may_be_same(middle.cell_id) == {other}, "only what the person spoke of is another cell"
    assert len(shown(ask(store, bundle))) == 2


def test_where_a_person_said_that_two_are_apart_a_third_does_not_bring_them_together(
    store: Store, bundle: Bundle
) -> None:
    cells = [
        new_cell("first", fingerprints=mark(0), latent=at(1)),
        new_cell("like it", fingerprints=mark(7), latent=at(2)),
    ]
    ids = [cell.cell_id for cell in cells]
    store.record(cells, bundle=BUNDLE, **JUDGED)
    store.duplicates.reject(ids[1], "A")
    third = new_cell("third", fingerprints=mark(7 << 10), latent=at(3))
    beside = new_cell("beside", fingerprints=mark(7 | 7 << 10), latent=at(4))
    store.record([third, beside], bundle=BUNDLE, **JUDGED)
    assert len(shown(ask(store, bundle))) == 4, "the possible ones of such a group do not count"
    assert not store.may_be_same(ids[0])


@pytest.mark.parametrize("by", ["latent", "map"])
def test_what_may_be_the_very_cell_is_marked_takes_one_place_and_can_be_kept_out(
    store: Store, bundle: Bundle, by: str
) -> None:
    cells = [
        new_cell("first", fingerprints=mark(0), latent=at(1)),
        new_cell("like it", fingerprints=mark(7), latent=at(2), label="monocyte"),
        new_cell("like it too", fingerprints=mark(7 << 10), latent=at(3)),
        new_cell("another", latent=at(4)),
    ]
    first, *_, another = ids = [cell.cell_id for cell in cells]
    store.record(cells, bundle=BUNDLE, **JUDGED)
    if by == "map":
        put_on_map(store, BUNDLE, [at(0), turned(1000)])
    for asked in cells[:3]:
        found = ask(store, bundle, asked, by=by)
        same = [one for one in found.references if one.may_be_same]
        assert len(same) == 1 and same[0].cell_id in set(ids[:3]) - {asked.cell_id}
        assert [one.cell_id for one in found.references if not one.may_be_same] == [another]
        assert shown(ask(store, bundle, asked, by=by, show_same=False)) == [another]
    assert not any(one.may_be_same for one in ask(store, bundle, cells[3], by=by).references)
    outside = ask(store, bundle, by=by, may_repeat=[first])
    assert [(one.cell_id, one.may_be_same) for one in outside.references] == [(first, True), (another, False)]
    two = ask(store, bundle, by=by, may_repeat=[first, another])
    assert len(two.references) == 1 and two.references[0].may_be_same, "one cell, whichever of them it is"


def test_captures_left_out_make_room_for_others_of_the_same_cell(store: Store, bundle: Bundle) -> None:
    again = captured(store, "again", [1.0, 2.0, 3.0])
    assert shown(ask(store, bundle, withheld=again[:1])) == again[1:2]
    found = find(store, bundle=bundle, latent=at(0), digest=None, analyser="DC-1", withheld=again[:2])
    assert [(one.cell_id, one.captures) for one in found.references] == [(again[2], 3)]


@pytest.mark.parametrize("seed", range(4))
def test_the_promise_holds_for_any_cells_and_captures(tmp_path: Path, bundle: Bundle, seed: int) -> None:
    """Eight different cells; a nearer one that is left out is nearer by at most 5 %; and the more trusted of near
    captures."""
    rng = np.random.default_rng(seed)
    with new_store(tmp_path) as store:
        cells = []
        for number in range(60):
            distances = rng.choice([0.9, 1.0, 1.2]) + 0.3 * rng.random(int(rng.choice([1, 1, 2, 3, 8])))
            sources = rng.choice(["predicted", "analyser", "reviewed"], len(distances), p=[0.6, 0.3, 0.1])
            ids = captured(store, f"{seed} {number}", distances.tolist(), sources.tolist())
            cells.append(dict(zip(ids, zip(distances.tolist(), sources.tolist(), strict=True), strict=True)))
        scanned = [ask(store, bundle, k=k) for k in (1, 8, 20)]
        store.build_index()
        assert [ask(store, bundle, k=k) for k in (1, 8, 20)] == scanned, "the same with the index and without"
    for k, found in zip((1, 8, 20), scanned, strict=True):
        chosen = {one.cell_id: one.distance for one in found.references}
        assert list(chosen.values()) == sorted(chosen.values())
        assert len(chosen) == k
        assert found.distribution.n == 60
        assert sum(any(cell_id in chosen for cell_id in captures) for captures in cells) == k, "as many different cells"
        farthest = max(chosen.values())
        for captures in cells:
            nearest = min(distance for distance, _ in captures.values())
            standing = [cell_id for cell_id in captures if cell_id in chosen]
            if not standing:
                assert farthest <= 1.05 * nearest * (1 + 1e-6)
                continue
            near = {trust: cell_id for cell_id, (d, trust) in captures.items() if d <= 1.05 * nearest}
            best = next(trust for trust in ("reviewed", "analyser", "predicted") if trust in near)
            assert captures[standing[0]][1] == best


def turned(distance: float) -> NDArray[np.float32]:
    """A latent as far from the origin as `at` gives, in another direction."""
    return np.roll(at(distance), 1)


def test_by_map_a_cell_is_shown_once_too_and_counts_once_on_its_node(store: Store, bundle: Bundle) -> None:
    again = captured(store, "again", [1 + i / 100 for i in range(90)], ["predicted"] * 90)
    others = [new_cell(i, latent=at(2 + i)) for i in range(20)]
    store.record(others, bundle=BUNDLE)
    put_on_map(store, BUNDLE, [at(0), turned(1000)])
    found = find(store, bundle=bundle, latent=at(0), digest=None, by="map")
    assert shown(found) == [again[0], *(cell.cell_id for cell in others[:7])]
    assert [reference.captures for reference in found.references] == [90, 1, 1, 1, 1, 1, 1, 1]
    assert found.place is not None
    assert (found.place.cells, found.place.share) == (21, pytest.approx(1))
    few = find(store, bundle=bundle, latent=at(0), digest=None, by="map", k=100, withheld=again[:5])
    assert shown(few) == [again[5], *(cell.cell_id for cell in others)], "and no more than there are"


@pytest.mark.parametrize(("away", "stands"), [(1.04, True), (1.06, False)])
def test_by_map_a_more_trusted_capture_on_another_node_stands_for_the_first_if_about_as_near(
    store: Store, bundle: Bundle, away: float, stands: bool
) -> None:
    cells = [
        new_cell("first", fingerprints=mark(0), latent=at(1), label_source="predicted"),
        new_cell("reviewed", fingerprints=mark(0), latent=turned(away), label_source="reviewed"),
        new_cell(
            "of another analyser", fingerprints=mark(0), latent=turned(1), label_source="reviewed", analyser="DM96"
        ),
        new_cell("other", latent=at(1.5)),
    ]
    store.record(cells, bundle=BUNDLE, **JUDGED)
    put_on_map(store, BUNDLE, [at(0), turned(2)])
    ids = [cell.cell_id for cell in cells]
    found = find(store, bundle=bundle, latent=at(0), digest=None, by="map", analyser="DC-1")
    assert shown(found) == [ids[1] if stands else ids[0], ids[3]]
    assert found.references[0].distance == pytest.approx(away if stands else 1)
    assert shown(find(store, bundle=bundle, latent=at(0), digest=None, by="map")) == [ids[2], ids[3]]
    left = find(store, bundle=bundle, latent=at(0), digest=None, by="map", withheld=ids[1:3])
    assert [(one.cell_id, one.captures) for one in left.references] == [(ids[0], 3), (ids[3], 1)]


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
