"""The store's maps: versions, the switch from one to the next, where cells lie; whatever happens in the middle."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from labref import som
from labref.config import MapConfig
from labref.errors import LabrefError, StoreError
from labref.failpoints import KILLED
from labref.som.placing import Placer, open_placer
from labref.store import NewCell, Placed, Positions, Store, StoredMap
from labref.store.duckdb.maps import KEPT_WEIGHTS
from labref.store.memory.books import int_to_id
from labref.tasks import mapping
from labref.tasks.mapping import FEWEST, due, due_own, size
from tests.stores import BUNDLE, activate, new_cell, new_store

OTHER = "cd" * 32


def trained(
    store: Store, *, rows: int = 9, cols: int = 7, seed: int = 1, analyser: str | None = None
) -> tuple[StoredMap, Callable[[Path], None], Placed]:
    """A map of the store's cells, or of one analyser's, as `Maps.switch` takes it: the version, what writes its
    weights, the places."""
    parts = list(store.maps.latents(BUNDLE, analyser=analyser))
    ids, latents = np.concatenate([i for i, _ in parts]), np.concatenate([x for _, x in parts])
    made = som.train(latents, rows=rows, cols=cols, seed=seed)
    nodes, errors = som.winners(made, latents)
    version = StoredMap(
        0,
        BUNDLE,
        rows,
        cols,
        1.5,
        seed,
        "batch",
        None,
        len(ids),
        1.0,
        0.1,
        None,
        None,
        None,
        "first",
        0.5,
        datetime.now(UTC),
        analyser,
    )
    return version, partial(som.save, made), Placed(ids, nodes, errors.astype(np.float32))


def latents_by_id(store: Store) -> dict[str, NDArray[np.float32]]:
    return {
        int_to_id(cell): latent
        for ids, latents in store.maps.latents(BUNDLE)
        for cell, latent in zip(ids.tolist(), latents, strict=True)
    }


def check_places(store: Store, bundle: str = BUNDLE) -> None:
    """Every cell lies where MiniSom's own `winner` puts it, in memory and in the database."""
    active = store.maps.active(bundle)
    assert active is not None
    made = som.load(store.maps.weights_file(active.version.number))
    latents = latents_by_id(store)
    every = active.positions.every()
    assert sorted(map(int_to_id, every.ids.tolist())) == sorted(latents)
    for cell, node in zip(every.ids.tolist(), every.nodes.tolist(), strict=True):
        assert divmod(node, active.version.columns) == made.winner(latents[int_to_id(cell)])
    written = {cell.cell_id: (cell.node, np.float32(cell.error)) for cell in store.maps.cells(bundle)}
    known = zip(every.ids.tolist(), every.nodes.tolist(), every.errors, strict=True)
    assert written == {int_to_id(cell): (node, error) for cell, node, error in known}


def test_a_map_is_in_use_after_the_switch_and_new_cells_are_placed_as_they_are_recorded(tmp_path: Path) -> None:
    with new_store(tmp_path) as store:
        store.record([new_cell(i) for i in range(90)], bundle=BUNDLE)
        assert store.maps.active(BUNDLE) is None
        version = store.maps.switch(*trained(store))
        assert version.number == 1
        check_places(store)
        store.record([new_cell(i) for i in range(90, 130)], bundle=BUNDLE)
        check_places(store)
    with Store.open(tmp_path / "store.duckdb", open_placer=open_placer) as store:
        check_places(store)
        assert store.maps.every() == [version]
        assert store.maps.in_use() == {1}


def test_cells_that_come_while_a_map_is_put_in_use_lie_on_it(tmp_path: Path) -> None:
    with new_store(tmp_path) as store:
        store.record([new_cell(i) for i in range(90)], bundle=BUNDLE)
        version = trained(store)
        store.record([new_cell(i) for i in range(90, 120)], bundle=BUNDLE)
        store.maps.switch(*version)
        check_places(store)


def test_a_version_that_is_not_to_be_used_is_kept_and_can_be_put_in_use(tmp_path: Path) -> None:
    with new_store(tmp_path) as store:
        store.record([new_cell(i) for i in range(90)], bundle=BUNDLE)
        store.maps.switch(*trained(store))
        version, save, _ = trained(store, rows=3, cols=3)
        worse = store.maps.keep(replace(version, verdict="worse"), save)
        assert [v.verdict for v in store.maps.every()] == ["first", "worse"]
        active = store.maps.active(BUNDLE)
        assert active is not None
        assert active.version.number == 1
        assert store.maps.use(worse.number) == worse
        check_places(store)
        assert store.maps.in_use() == {2}
        with pytest.raises(StoreError, match="there is no map 9"):
            store.maps.use(9)


def test_only_the_newest_weights_are_kept_and_places_of_maps_in_use(tmp_path: Path) -> None:
    with new_store(tmp_path) as store:
        store.record([new_cell(i) for i in range(90)], bundle=BUNDLE)
        for seed in range(KEPT_WEIGHTS + 2):
            store.maps.switch(*trained(store, seed=seed))
        kept = sorted(int(file.stem) for file in store.maps.folder.glob("*.npz"))
        assert kept == list(range(3, KEPT_WEIGHTS + 3))
        assert len(list(store.maps.cells(BUNDLE))) == 90
        with pytest.raises(StoreError, match="weights of map 1 are gone"):
            store.maps.use(1)
    with Store.open(tmp_path / "store.duckdb", open_placer=open_placer) as store:
        check_places(store)


@pytest.mark.parametrize("harm", ["missing", "damaged", "another"])
def test_without_its_weights_there_is_no_map_until_the_next_training(tmp_path: Path, harm: str) -> None:
    with new_store(tmp_path) as store:
        store.record([new_cell(i) for i in range(90)], bundle=BUNDLE)
        store.maps.switch(*trained(store))
        file = store.maps.weights_file(1)
        if harm == "another":
            trained(store, rows=4, cols=4)[1](file)
    if harm == "missing":
        file.unlink()
    elif harm == "damaged":
        file.write_bytes(file.read_bytes()[:200])
    with Store.open(tmp_path / "store.duckdb", open_placer=open_placer) as store:
        store.record([new_cell(i) for i in range(90, 95)], bundle=BUNDLE)
        assert store.maps.active(BUNDLE) is None
        assert "map" in str(store.maps.problem(BUNDLE))
        assert due(store, MapConfig(), BUNDLE) == "the weights of the map are missing"
        store.maps.switch(*trained(store))
        assert store.maps.problem(BUNDLE) is None
        check_places(store)


def test_each_bundle_has_its_own_map_and_going_back_finds_the_old_one(tmp_path: Path) -> None:
    with new_store(tmp_path) as store:
        store.record([new_cell(i) for i in range(90)], bundle=BUNDLE)
        store.maps.switch(*trained(store))
        activate(store, OTHER)
        store.record([new_cell(i) for i in range(90, 90 + FEWEST)], bundle=OTHER)
        assert store.maps.active(OTHER) is None
        assert due(store, MapConfig(), OTHER) == "there is no map for this bundle yet"
        activate(store, BUNDLE)
        check_places(store)


KILL = """
import sys
from collections.abc import Callable
from pathlib import Path
from tests.test_map_store import trained
from labref.som.placing import open_placer
from labref.store import Store
with Store.open(Path(sys.argv[1]), open_placer=open_placer) as store:
    store.maps.switch(*trained(store, seed=7, analyser=sys.argv[2] if sys.argv[2:] else None))
"""


@pytest.mark.parametrize(
    ("point", "switched"),
    [
        ("map.written", False),
        ("map.positions", False),
        ("map.switch", False),
        ("store.committed@4", True),
        ("map.switched", True),
    ],
)
def test_killed_while_a_map_is_put_in_use_the_old_one_or_the_new_one_is_whole(
    tmp_path: Path, point: str, switched: bool
) -> None:
    with new_store(tmp_path) as store:
        store.record([new_cell(i) for i in range(90)], bundle=BUNDLE)
        store.maps.switch(*trained(store))
    name, _, count = point.partition("@")
    done = subprocess.run(
        [sys.executable, "-c", KILL, str(tmp_path / "store.duckdb")],
        env={**_environment(), "LABREF_FAILPOINTS": f"{name}=kill@{count or 1}"},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == KILLED, done.stderr
    with Store.open(tmp_path / "store.duckdb", open_placer=open_placer) as store:
        assert store.maps.in_use() == {2 if switched else 1}
        check_places(store)
        store.record([new_cell(i) for i in range(90, 100)], bundle=BUNDLE)
        check_places(store)
        version = store.maps.switch(*trained(store, seed=8))
        assert store.maps.in_use() == {version.number}
        check_places(store)


@pytest.mark.parametrize("point", ["map.written", "map.positions", "map.row", "map.switch", "map.switched"])
def test_killed_while_an_own_map_is_put_in_use_neither_map_is_half(tmp_path: Path, point: str) -> None:
    names = ("DM96", "DC-1")
    with new_store(tmp_path) as store:
        store.record([new_cell(i, analyser=names[i % 2]) for i in range(90)], bundle=BUNDLE)
        store.maps.switch(*trained(store))
        store.maps.switch(*trained(store, analyser="DM96", rows=4, cols=5))
    done = subprocess.run(
        [sys.executable, "-c", KILL, str(tmp_path / "store.duckdb"), "DM96"],
        env={**_environment(), "LABREF_FAILPOINTS": f"{point}=kill@1"},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == KILLED, done.stderr
    with Store.open(tmp_path / "store.duckdb", open_placer=open_placer) as store:
        assert store.maps.in_use() == {1, 3 if point == "map.switched" else 2}
        # the next training takes the number that the killed one had
        for analyser in (None, "DC-1", "DM96"):
            store.record([new_cell(100 + len(store.maps.every()), analyser="DM96")], bundle=BUNDLE)
            store.maps.switch(*trained(store, seed=8, analyser=analyser))
            check_places(store)
            for name in store.maps.own_of(BUNDLE):
                active = store.maps.active(BUNDLE, name)
                assert active is not None and len(active.positions) == store.analysers()[name]
                assert {cell.analyser for cell in store.maps.cells(BUNDLE, analyser=name)} == {name}
        row = store._connection.execute("SELECT count(*) FROM map_position WHERE map NOT IN (SELECT number FROM map)")
        assert row.fetchone() == (0,) and not store.maps.lacks_places(BUNDLE) and not store.faults().found


def _environment() -> dict[str, str]:
    import os

    return {key: value for key, value in os.environ.items() if not key.startswith("LABREF_FAIL")}


def test_a_store_opened_without_what_reads_maps_says_so_and_loses_nothing(tmp_path: Path) -> None:
    with new_store(tmp_path) as store:
        store.record([new_cell(i) for i in range(90)], bundle=BUNDLE)
        store.maps.switch(*trained(store))
    with Store.open(tmp_path / "store.duckdb") as store:
        store.record([new_cell(i) for i in range(90, 95)], bundle=BUNDLE)
        assert store.maps.active(BUNDLE) is None
        assert "without what reads maps" in (store.maps.problem(BUNDLE) or "")
        with pytest.raises(StoreError, match="without what reads maps"):
            store.maps.use(1)
    with Store.open(tmp_path / "store.duckdb", open_placer=open_placer) as store:
        store.maps.catch_up(BUNDLE)
        check_places(store)


# places on the grid


def random_positions(rng: np.random.Generator, rows: int, cols: int, n: int) -> Placed:
    # few different errors, so that ids decide as well
    errors = rng.integers(1, 4, n).astype(np.float32)
    return Placed(rng.choice(2**40, n, replace=False).astype(np.uint64), rng.integers(0, rows * cols, n), errors)


@pytest.mark.parametrize(("rows", "cols", "n", "k"), [(6, 9, 200, 8), (1, 1, 30, 8), (40, 3, 25, 100), (5, 5, 0, 3)])
def test_the_nearest_on_the_map_are_those_of_the_thesis_rule(rows: int, cols: int, n: int, k: int) -> None:
    rng = np.random.default_rng(n)
    cells = random_positions(rng, rows, cols, n)
    half = np.arange(n) % 2 == 0
    positions = Positions(rows, cols, cells.of(half))
    for part in np.array_split(np.flatnonzero(~half), 7):
        positions.add(cells.of(part))
    for node in range(0, rows * cols, 5):
        for allowed in (None, cells.ids % 3 > 0):
            rule = []
            for i in range(n):
                if allowed is None or allowed[i]:
                    r, c = divmod(int(cells.nodes[i]), cols)
                    away = ((r - node // cols) ** 2 + (c - node % cols) ** 2) ** 0.5
                    rule.append((away, float(cells.errors[i]), int(cells.ids[i])))
            keep = None if allowed is None else lambda ids: ids % 3 > 0
            assert positions.nearest(node, k, keep).ids.tolist() == [cell for _, _, cell in sorted(rule)[:k]]


def test_many_cells_added_one_by_one_are_all_found() -> None:
    rng = np.random.default_rng(5)
    cells = random_positions(rng, 10, 10, 9000)
    positions = Positions(10, 10, cells.of(np.arange(0)))
    for start in range(0, 9000, 30):
        positions.add(cells.of(np.arange(start, start + 30)))
    assert len(positions) == 9000
    assert sorted(positions.every().ids.tolist()) == sorted(cells.ids.tolist())
    at = positions.at(42)
    assert sorted(at.ids.tolist()) == sorted(cells.ids[cells.nodes == 42].tolist())
    assert (np.diff(at.errors) >= 0).all()
    with pytest.raises(ValueError, match="no node 100"):
        positions.at(100)


def test_a_latent_is_placed_where_minisom_places_it() -> None:
    rng = np.random.default_rng(1)
    latents = rng.standard_normal((400, 50)).astype(np.float32)
    made = som.train(latents, rows=40, cols=30, seed=1)
    placer = Placer(made.get_weights())
    nodes, errors = placer.place(latents)
    assert [divmod(node, 30) for node in nodes.tolist()] == [made.winner(latent) for latent in latents]
    expected = [np.linalg.norm(latent - made.get_weights()[made.winner(latent)]) for latent in latents]
    assert errors == pytest.approx(expected, rel=1e-5)
    assert [int(placer.place(latent[None])[0][0]) for latent in latents[:20]] == nodes[:20].tolist()
    many = np.tile(latents, (21, 1))  # searched in another way
    found = placer.place(many)
    assert (found[0] == np.tile(nodes, 21)).all()
    assert found[1] == pytest.approx(np.tile(errors, 21), rel=1e-5) and found[1].dtype == np.float32


# when it is due


def version_of(cells: int, *, age: timedelta, seconds: float = 1.0, side: int = 9) -> StoredMap:
    at = datetime.now(UTC) - age
    return StoredMap(
        0, BUNDLE, side, side, 1.5, 1, "batch", None, cells, 1, 0.1, None, None, None, "first", seconds, at
    )


@pytest.mark.parametrize(
    ("trained_on", "age", "seconds", "config", "expected"),
    [
        (90, timedelta(hours=30), 1.0, MapConfig(), None),
        (89, timedelta(hours=3), 1.0, MapConfig(), None),
        (89, timedelta(hours=30), 1.0, MapConfig(), "there are new cells, and the map is old"),
        (89, timedelta(hours=30), 1.0, MapConfig(retrain_hours=40), None),
        (75, timedelta(hours=3), 1.0, MapConfig(), "the store grew from 75 to 90 cells"),
        (75, timedelta(hours=3), 1.0, MapConfig(retrain_growth=0.5), None),
        (75, timedelta(hours=3), 1.0, MapConfig(enabled=False), None),
        (75, timedelta(seconds=8), 1.0, MapConfig(), None),
        (75, timedelta(seconds=12), 1.0, MapConfig(), "the store grew from 75 to 90 cells"),
    ],
)
def test_a_map_is_due_by_growth_and_by_age_and_rests_in_between(
    tmp_path: Path, trained_on: int, age: timedelta, seconds: float, config: MapConfig, expected: str | None
) -> None:
    with new_store(tmp_path) as store:
        store.record([new_cell(i) for i in range(90)], bundle=BUNDLE)
        _, save, cells = trained(store, rows=9, cols=9)
        store.maps.switch(version_of(trained_on, age=age, seconds=seconds), save, cells)
        assert due(store, config, BUNDLE) == expected


def test_too_few_cells_make_no_map(tmp_path: Path) -> None:
    with new_store(tmp_path) as store:
        store.record([new_cell(i) for i in range(FEWEST - 1)], bundle=BUNDLE)
        assert due(store, MapConfig(), BUNDLE) is None
        store.record([new_cell(FEWEST)], bundle=BUNDLE)
        assert due(store, MapConfig(), BUNDLE) is not None


def test_a_map_keeps_its_size_until_it_should_be_half_as_large_again() -> None:
    before = version_of(900, age=timedelta(), side=30)
    assert size(900, None, 248) == (30, 30)
    assert size(1300, before, 248) == (30, 30)
    assert size(1400, before, 248) == (37, 37)
    assert size(10**6, before, 248) == (248, 248)
    assert size(900, before, 20) == (20, 20)


def test_a_map_of_a_lab_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    with new_store(tmp_path) as store:
        store.record([new_cell(i) for i in range(90)], bundle=BUNDLE)
        store.maps.folder.write_bytes(b"a file where the folder of the maps should be")
        with pytest.raises(LabrefError, match="cannot be written"):
            store.maps.switch(*trained(store))
        assert store.maps.active(BUNDLE) is None


def test_analysers_have_maps_of_their_own_cells(tmp_path: Path) -> None:
    """Cells of two analysers and of none: those of one lie on its own map too, as they are recorded, after a switch to
    another version, when they are placed again, and in a store that is opened anew."""

    def cells(numbers: range) -> list[NewCell]:
        return [new_cell(i, analyser=("DM96", "DC-1", None)[i % 3]) for i in numbers]

    def of(analyser: str | None, last: int) -> set[str]:
        return {
            new_cell(i).cell_id
            for i in range(last)
            if analyser is None or ("DM96", "DC-1")[i % 3 : i % 3 + 1] == (analyser,)
        }

    def check(store: Store, last: int) -> None:
        for analyser in (None, "DM96"):
            active = store.maps.active(BUNDLE, analyser)
            assert active is not None and active.version.analyser == analyser
            every = active.positions.every()
            assert {int_to_id(cell) for cell in every.ids.tolist()} == of(analyser, last)
            made, latents = som.load(store.maps.weights_file(active.version.number)), latents_by_id(store)
            for cell, node in zip(every.ids.tolist(), every.nodes.tolist(), strict=True):
                assert divmod(node, active.version.columns) == made.winner(latents[int_to_id(cell)])
            assert {cell.cell_id for cell in store.maps.cells(BUNDLE, analyser=analyser)} == of(analyser, last)
        assert store.maps.own_of(BUNDLE) == ("DM96",)
        assert store.maps.active(BUNDLE, "DC-1") is None
        whole, own = store.maps.active(BUNDLE), store.maps.active(BUNDLE, "DM96")
        assert store.maps.best(BUNDLE, "DC-1") is whole is store.maps.best(BUNDLE, None) is not own
        assert store.maps.best(BUNDLE, "DM96") is own

    with new_store(tmp_path) as store:
        store.record(cells(range(90)), bundle=BUNDLE)
        assert store.maps.analysers(BUNDLE) == {"DM96": 30, "DC-1": 30, None: 30}
        assert store.maps.embedded(BUNDLE, "DM96") == 30 and store.maps.embedded(BUNDLE) == 90
        store.maps.switch(*trained(store))
        assert store.maps.own_of(BUNDLE) == ()
        store.maps.switch(*trained(store, analyser="DM96", rows=4, cols=5))
        check(store, 90)
        store.record(cells(range(90, 120)), bundle=BUNDLE)
        check(store, 120)
        first = store.maps.active(BUNDLE, "DM96")
        assert first is not None
        store.maps.switch(*trained(store, analyser="DM96", rows=3, cols=3))
        check(store, 120)
        assert store.maps.in_use() == {1, 3}
        assert store.maps.use(first.version.number) == first.version
        check(store, 120)
        store.maps.place_again(BUNDLE, sorted(of(None, 6)))
        check(store, 120)
        assert not store.maps.lacks_places(BUNDLE)
        assert not store.faults().found
    with Store.open(tmp_path / "store.duckdb", open_placer=open_placer) as store:
        check(store, 120)
        store.maps.own = False  # as a lab sets it
        assert store.maps.own_of(BUNDLE) == () and store.maps.active(BUNDLE, "DM96") is None
        assert store.maps.best(BUNDLE, "DM96") is store.maps.active(BUNDLE)
        store.record(cells(range(120, 123)), bundle=BUNDLE)
        store.maps.own = True  # what came meanwhile is placed when the agent next looks
        store.maps.drop_cached()
        assert store.maps.lacks_places(BUNDLE)
        store.maps.catch_up(BUNDLE)
        check(store, 123)


def test_cells_of_each_analyser_are_counted_where_not_all_have_a_latent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with new_store(tmp_path) as store:
        store.record([new_cell(i, analyser=("DM96", "DC-1")[i % 2]) for i in range(30)], bundle=BUNDLE)
        activate(store, OTHER)
        store.record([new_cell(i, analyser=("DM96", "DC-1", None)[i % 3]) for i in range(30, 36)], bundle=OTHER)
        assert store.maps.analysers(OTHER) == {"DM96": 2, "DC-1": 2, None: 2}
        assert store.maps.analysers(BUNDLE) == {"DM96": 15, "DC-1": 15}
        assert (store.maps.embedded(OTHER, "DM96"), store.maps.embedded(OTHER, "nobody")) == (2, 0)
        # where counting takes long it is not done each time
        monkeypatch.setattr("labref.store.duckdb.maps._LONG_SECONDS", 0.0)
        monkeypatch.setattr("labref.store.duckdb.maps._REST", 1_000_000)
        assert store.maps.embedded(OTHER, "DM96") == 2
        store.record([new_cell(36, analyser="DM96")], bundle=OTHER)
        assert store.maps.embedded(OTHER, "DM96") == 2
        store.maps.drop_cached()
        assert store.maps.embedded(OTHER, "DM96") == 3


def test_of_each_analysers_maps_the_newest_weights_are_kept(tmp_path: Path) -> None:
    with new_store(tmp_path) as store:
        store.record([new_cell(i, analyser=("DM96", "DC-1")[i % 2]) for i in range(90)], bundle=BUNDLE)
        store.maps.switch(*trained(store))
        for seed in range(KEPT_WEIGHTS + 2):
            store.maps.switch(*trained(store, analyser="DM96", seed=seed))
        kept = sorted(int(file.stem) for file in store.maps.folder.glob("*.npz"))
        assert kept == [1, *range(4, KEPT_WEIGHTS + 4)]


def test_an_own_map_is_due_where_there_are_several_analysers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapping, "FEWEST_OWN", 40)
    config = MapConfig()
    with new_store(tmp_path) as store:
        store.record([new_cell(i, analyser="DM96") for i in range(90)], bundle=BUNDLE)
        version, save, places = trained(store)
        store.maps.switch(replace(version, seconds=0.0), save, places)
        assert due_own(store, config, BUNDLE) is None, "one analyser: its map would be that of all cells"
        store.record([new_cell(i, analyser="DC-1") for i in range(90, 129)], bundle=BUNDLE)
        assert due_own(store, config, BUNDLE) == "DM96"
        assert due_own(store, MapConfig(per_analyser=False), BUNDLE) is None
        assert due_own(store, MapConfig(enabled=False), BUNDLE) is None
        version, save, places = trained(store, analyser="DM96")
        store.maps.switch(replace(version, seconds=0.0), save, places)
        assert due_own(store, config, BUNDLE) is None, "DC-1 has one cell too few"
        store.record([new_cell(129, analyser="DC-1")], bundle=BUNDLE)
        assert due_own(store, config, BUNDLE) == "DC-1"
        version, save, places = trained(store, analyser="DC-1")
        store.maps.switch(replace(version, seconds=3600.0), save, places)
        store.record([new_cell(i, analyser="DM96") for i in range(200, 300)], bundle=BUNDLE)
        assert due_own(store, config, BUNDLE) is None, "a training took an hour: the computer rests"
        assert due(store, config, BUNDLE) is None
        later = datetime.now(UTC) + timedelta(hours=11)
        assert "grew from 90 to 190" in (due(store, config, BUNDLE, "DM96", at=later) or "")
        assert "grew from 90 to 230" in (due(store, config, BUNDLE, at=later) or "")
