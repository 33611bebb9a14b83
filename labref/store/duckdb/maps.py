"""The maps of a lab: every version with how good it is, which are in use in each latent space, and where cells lie on
them.

In each latent space one map is of all cells. Where the lab has several analysers, there can be one for each as well, of
its cells alone: cells of two microscopes lie apart on a map, and each then has a part of it only.

Tables: `map` (a row a version), `map_activation` (its last row of a latent space and an analyser, or none, names the
map in use there), `map_position` (where each cell lies on the maps in use). Weights: LAB/maps/<number>.npz, written and
read by what the store is handed; whole before the row that names them is there.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import duckdb
import numpy as np
from numpy.typing import NDArray

from labref.errors import LabrefError, StoreError
from labref.failpoints import failpoint
from labref.files import sync_folder
from labref.store.duckdb import bundles, scan
from labref.store.duckdb.rows import now
from labref.store.duckdb.tables import Access, Tables
from labref.store.memory.books import int_to_id
from labref.store.memory.positions import OpenPlacer, Placed, Placer, Positions
from labref.store.text import from_column, from_nullable, to_column, to_nullable

__all__ = ["KEPT_WEIGHTS", "ActiveMap", "MapCell", "Maps", "StoredMap", "Verdict"]

KEPT_WEIGHTS: Final = 5
"""Weights of so many newest versions stay on the disk, beside those in use; of older ones the figures stay."""
_LONG_SECONDS: Final = 0.05
_REST: Final = 30  # what took longer than that is asked again after so many times as long
_PLACE_ROWS: Final = (
    8192  # cells placed and written at once: a commit of some ten milliseconds, so ingest gets in between
)
_COLUMNS: Final = (
    "number, bundle, rows, columns, sigma, seed, trainer, started_from, cells, qe, te, qe_before, te_before, moved_far, "
    "verdict, seconds, trained_at, analyser"
)

_Space = tuple[str, str | None]  # a bundle's digest, and whose cells alone
Verdict = str
"""Of a version: "first" (there was none to compare with), "better" (no worse: taken into use), "worse" (kept, not used)
or "resized" (the one before has another size, so their errors cannot be compared: taken into use)."""


@dataclass(frozen=True)
class StoredMap:
    """One version.

    bundle : digest of the bundle whose latents it orders.  analyser : whose cells alone it is of; None for a map of all
    cells.  sigma : final radius, nodes.  started_from : the version
    whose weights it
    went on from, None for a training from the start.  cells : how many it was trained on.  qe, te : quantisation error
    (mean Euclidean distance to the best node) and topographic error, on the sample; qe_before, te_before: of the
    version that was in
    use, on the same sample.  moved_far : share of the cells that were placed before which moved more than 3 nodes (as
    the grid is now).  seconds : how long training took.  trained_at : UTC.
    """

    number: int
    bundle: str
    rows: int
    columns: int
    sigma: float
    seed: int
    trainer: str
    started_from: int | None
    cells: int
    qe: float
    te: float
    qe_before: float | None
    te_before: float | None
    moved_far: float | None
    verdict: Verdict
    seconds: float
    trained_at: datetime
    analyser: str | None = None


@dataclass(frozen=True)
class ActiveMap:
    """The map in use in one latent space: its figures, a search for nodes, and the cells on it. Read from any
    thread."""

    version: StoredMap
    placer: Placer
    positions: Positions


@dataclass(frozen=True, slots=True)
class MapCell:
    """A cell on the map. node : row * columns + column.  error : quantisation error.  predicted : the bundle's
    class."""

    cell_id: str
    node: int
    error: float
    label: str
    label_source: str
    predicted: str
    slide: str | None
    analyser: str | None
    folder: str


class Maps(Tables):
    """The maps of one store; `Store.maps`. Methods may be called from any thread."""

    def __init__(self, access: Access, folder: Path, open_placer: OpenPlacer | None) -> None:
        """access : the store's.  folder : of the weights.  open_placer : reads weights; without it no map is in use."""
        super().__init__(access)
        self.folder, self._open_placer = folder, open_placer
        self.own = True
        """Whether maps of one analyser's cells are used, where there are such; a setting of the lab."""
        self._loaded: dict[_Space, ActiveMap | None] = {}
        self._problems: dict[_Space, str] = {}
        self._own: dict[str, tuple[str, ...]] = {}
        self._counted: dict[str, tuple[float, dict[str | None, int]]] = {}
        self._changing = threading.Lock()  # one version at a time is written and put in use

    # what there is

    def weights_file(self, number: int) -> Path:
        """Where the weights of a version are, or were."""
        return self.folder / f"{number}.npz"

    def every(self) -> list[StoredMap]:
        """All versions, in the order they were trained."""
        with self._reading() as cursor:
            return [_version(*row) for row in cursor.execute(f"SELECT {_COLUMNS} FROM map ORDER BY number").fetchall()]

    def in_use(self) -> set[int]:
        """The versions in use: in each latent space one of all cells, and those of single analysers."""
        with self._reading() as cursor:
            return _in_use(cursor)

    def active(self, bundle: str, analyser: str | None = None) -> ActiveMap | None:
        """The map in use in the latent space of a bundle, or None. Microseconds but for the first time, which reads it.

        analyser : the map of this one's cells alone; None: that of all cells.
        """
        space = bundle, analyser
        if analyser is not None and not self.own:
            return None
        if space in self._loaded:
            return self._loaded[space]
        with self._quiet():
            if space not in self._loaded:
                self._loaded[space] = self._load(space)
            return self._loaded[space]

    def own_of(self, bundle: str) -> tuple[str, ...]:
        """The analysers that have a map of their own in the latent space of a bundle, sorted. Microseconds but for the
        first time."""
        if not self.own:
            return ()
        found = self._own.get(bundle)
        if found is None:
            with self._quiet(), self._reading() as cursor:
                rows = cursor.execute(
                    "SELECT DISTINCT m.analyser FROM map_activation a JOIN map m ON a.map = m.number "
                    "WHERE m.bundle = ? AND m.analyser IS NOT NULL",
                    [bundle],
                ).fetchall()
                found = self._own[bundle] = tuple(sorted(from_column(name) for (name,) in rows))
        return found

    def in_space(self, bundle: str) -> list[ActiveMap]:
        """All maps in use in a latent space: that of all cells first."""
        found = (self.active(bundle, analyser) for analyser in (None, *self.own_of(bundle)))
        return [active for active in found if active is not None]

    def best(self, bundle: str, analyser: str | None) -> ActiveMap | None:
        """The map on which cells of an analyser are looked at: its own where it has one, else that of all cells."""
        own = None if analyser is None else self.active(bundle, analyser)
        return self.active(bundle) if own is None else own

    def problem(self, bundle: str, analyser: str | None = None) -> str | None:
        """Why a map that should be in use is not: its weights are missing or damaged."""
        self.active(bundle, analyser)
        return self._problems.get((bundle, analyser))

    def cells(self, bundle: str, ids: Sequence[str] | None = None, analyser: str | None = None) -> Iterator[MapCell]:
        """The cells on the map in use, with what they carry: all in the order they came, or those with these ids.

        analyser : those on the map of this one's own, where it has one.
        """
        active = self.best(bundle, analyser)
        if active is None:
            return
        number, nodes = active.version.number, active.version.rows * active.version.columns
        with self._reading() as cursor:
            table, _ = bundles.space(cursor, bundle)
            chosen = "" if ids is None else "AND p.cell_id IN (SELECT unnest($2::VARCHAR[]))"
            cursor.execute(
                f"""SELECT p.cell_id, p.node, p.quantization_error, c.label, c.label_source, e.predicted_label,
                           c.slide, c.analyser, c.folder
                    FROM map_position p JOIN cell c USING (cell_id) JOIN {table} e USING (cell_id)
                    WHERE p.map = $1 AND p.node >= 0 AND p.node < {nodes} {chosen} ORDER BY c.number""",
                [number] if ids is None else [number, list(ids)],
            )
            while found := cursor.fetchmany(4096):
                for cell_id, node, error, label, source, predicted, slide, analyser, folder in found:
                    yield MapCell(
                        cell_id,
                        node,
                        error,
                        from_column(label),
                        source,
                        from_column(predicted),
                        from_nullable(slide),
                        from_nullable(analyser),
                        from_column(folder or ""),
                    )

    def cells_of_patient(self, name: str) -> set[str]:
        """Ids of the cells with a folder called `name` on any of their paths."""
        with self._reading() as cursor:
            found = cursor.execute(
                "SELECT DISTINCT cell_id FROM file WHERE cell_id IS NOT NULL AND "
                "list_contains(string_split(replace(path, '\\', '/'), '/')[:-2], ?)",
                [to_column(name)],
            ).fetchall()
        return {str(cell_id) for (cell_id,) in found}

    def embedded(self, bundle: str, analyser: str | None = None) -> int:
        """How many cells have a latent in the space of a bundle; of one analyser, if one is named. As `analysers`."""
        if analyser is not None:
            return self.analysers(bundle).get(analyser, 0)
        with self._reading() as cursor:
            return _count(cursor, bundles.space(cursor, bundle)[0])

    def analysers(self, bundle: str) -> dict[str | None, int]:
        """How many cells each analyser has in the space of a bundle; None for cells of which none is known.

        Milliseconds where all cells have a latent there. Else a third of a second for a million cells, which is taken
        seldom: then the numbers may be older by some seconds.
        """
        known = self._counted.get(bundle)
        if known is not None and time.monotonic() < known[0]:
            return known[1]
        begun = time.monotonic()
        with self._reading() as cursor:
            table, _ = bundles.space(cursor, bundle)
            of_all = _count(cursor, table) == _count(cursor, "cell")
            which = "" if of_all else f"SEMI JOIN {table} e USING (cell_id)"
            found = cursor.execute(f"SELECT c.analyser, count(*) FROM cell c {which} GROUP BY c.analyser").fetchall()
        counts = {from_nullable(name): int(cells) for name, cells in found}
        took = time.monotonic() - begun
        if took > _LONG_SECONDS:
            self._counted[bundle] = time.monotonic() + _REST * took, counts
        return counts

    def latents(
        self, bundle: str, rows: int = _PLACE_ROWS, analyser: str | None = None
    ) -> Iterator[tuple[NDArray[np.uint64], NDArray[np.float32]]]:
        """Ids uint64[n] and latents float32[n, L] of all cells of a latent space, n at most `rows`, in the order they
        came; of one analyser, if one is named."""
        with self._reading() as cursor:
            table, space = bundles.space(cursor, bundle)
            theirs = None
            if analyser is not None:
                of_one, values = _of_analyser(table, analyser)
                found = cursor.execute(f"SELECT ('0x' || cell_id)::UBIGINT AS id FROM {of_one}", values).fetchnumpy()
                theirs = np.sort(np.asarray(found["id"], np.uint64))
                if not len(theirs):
                    return
            for ids, latents in scan.blocks(cursor, table, space.latent_size, rows):
                if theirs is None:
                    yield ids, latents
                    continue
                kept = theirs[np.minimum(np.searchsorted(theirs, ids), len(theirs) - 1)] == ids
                if kept.any():
                    yield ids[kept], latents[kept]

    # new cells

    def place(
        self, bundle: str, ids: NDArray[np.uint64], latents: NDArray[np.float32], analysers: Sequence[str | None]
    ) -> list[tuple[int, Placed]]:
        """Where new cells lie on the maps in use, for `write` and `remember`: the versions and the places; none while
        there is no map. analysers : of each cell."""
        found: list[tuple[int, Placed]] = []
        for active in self.in_space(bundle) if len(ids) else ():
            of_one = active.version.analyser
            kept = np.array([of_one is None or name == of_one for name in analysers], np.bool_)
            if kept.any():
                found.append((active.version.number, Placed(ids[kept], *active.placer.place(latents[kept]))))
        return found

    def write(self, connection: duckdb.DuckDBPyConnection, placed: Sequence[tuple[int, Placed]]) -> None:
        """Write places, in the caller's transaction."""
        if placed:
            failpoint("map.place")
        for number, cells in placed:
            _insert(connection, number, cells)

    def remember(self, bundle: str, placed: Sequence[tuple[int, Placed]]) -> None:
        """Show places that are written to those who look."""
        for number, cells in placed:
            for space, active in self._loaded.items():
                if active is not None and space[0] == bundle and active.version.number == number:
                    active.positions.add(cells)

    def place_again(self, bundle: str, ids: Sequence[str]) -> None:
        """Place cells anew on the maps in use, wherever they lie now; those that lie nowhere as well."""
        numbers = [active.version.number for active in self.in_space(bundle)]
        if numbers:
            with self._quiet():
                with self._transaction() as connection:
                    connection.execute(
                        "DELETE FROM map_position WHERE map IN (SELECT unnest(?::INTEGER[])) "
                        "AND cell_id IN (SELECT unnest(?::VARCHAR[]))",
                        [numbers, list(ids)],
                    )
                self.drop_cached()
            self.catch_up(bundle)

    def lacks_places(self, bundle: str) -> bool:
        """Whether cells of a latent space lie nowhere on a map in use. Milliseconds."""
        return any(
            len(active.positions) < self.embedded(bundle, active.version.analyser) for active in self.in_space(bundle)
        )

    def catch_up(self, bundle: str) -> None:
        """Place the cells of a latent space that lie nowhere on its maps yet."""
        for analyser in (None, *self.own_of(bundle)):
            self._catch_up((bundle, analyser))

    def _catch_up(self, space: _Space) -> None:
        active = self.active(*space)
        if active is not None:  # a place that the map does not have is none
            with self._transaction() as connection:
                connection.execute(
                    "DELETE FROM map_position WHERE map = ? AND (node < 0 OR node >= ?)",
                    [active.version.number, active.version.rows * active.version.columns],
                )
        while active is not None:
            with self._quiet():
                active = self._loaded.get(space)
                if active is None:
                    break
                with self._transaction() as connection:
                    missing = _missing(connection, active.version, _PLACE_ROWS)
                    if missing is None:
                        break
                    placed = Placed(missing[0], *active.placer.place(missing[1]))
                    self.write(connection, [(active.version.number, placed)])
                active.positions.add(placed)

    # a new version

    def keep(self, trained: StoredMap, save: Callable[[Path], None]) -> StoredMap:
        """Keep a version that is not to be used: its weights, then its row. `trained.number` is given here.

        save : writes the weights to a file, whole or not at all.
        """
        with self._changing:
            trained = self._save(trained, save)
            with self._transaction() as connection:
                _add(connection, trained)
            self.prune()
        return trained

    def switch(self, trained: StoredMap, save: Callable[[Path], None], cells: Placed) -> StoredMap:
        """Keep a version and put it in use: its weights, the places of all cells, and then in one transaction its row,
        the places of cells that came meanwhile, and the switch. Until then the map before stays in use, whatever
        happens.

        save : writes the weights to a file, whole or not at all.  cells : where the cells lie that were there when the
        training began.
        """
        with self._changing:
            saved = self._save(trained, save)
            parts = (
                cells.of(np.arange(start, min(start + _PLACE_ROWS, len(cells))))
                for start in range(0, len(cells), _PLACE_ROWS)
            )
            self._use(saved, parts, lambda connection: _add(connection, saved))
        return saved

    def use(self, number: int) -> StoredMap:
        """Put a version that is kept in use, whatever its figures. Raises `StoreError` where it, or its weights, are
        not there."""
        with self._changing:
            version = next((version for version in self.every() if version.number == number), None)
            if version is None:
                raise StoreError(f"there is no map {number}; see `labref map list`")
            if not self.weights_file(number).exists():
                raise StoreError(
                    f"the weights of map {number} are gone: those of the {KEPT_WEIGHTS} newest are kept. Train another with "
                    "`labref map train`."
                )
            active = self.active(version.bundle, version.analyser)
            if active is None or active.version.number != number:
                placer = self._placer(number)
                cells = self.latents(version.bundle, analyser=version.analyser)
                parts = (Placed(ids, *placer.place(latents)) for ids, latents in cells)
                self._use(version, parts, lambda connection: None)
        return version

    # inside

    def drop_cached(self) -> None:
        """Read everything anew when it is next asked for."""
        self._loaded.clear()
        self._own.clear()
        self._counted.clear()

    def _load(self, space: _Space) -> ActiveMap | None:
        bundle, analyser = space
        self._problems.pop(space, None)
        with self._reading() as cursor:
            row = cursor.execute(
                f"SELECT {_COLUMNS} FROM map WHERE number = (SELECT a.map FROM map_activation a JOIN map m ON a.map = m.number "
                "WHERE m.bundle = ? AND m.analyser IS NOT DISTINCT FROM ? ORDER BY a.number DESC LIMIT 1)",
                [bundle, to_nullable(analyser)],
            ).fetchone()
            if row is None:
                return None
            version = _version(*row)
            try:
                placer = self._placer(version.number)
                if (placer.rows, placer.cols) != (version.rows, version.columns):
                    raise LabrefError(f"the weights of map {version.number} are those of another map")
            except LabrefError as error:
                self._problems[space] = str(error)
                return None
            table, _ = bundles.space(cursor, bundle)
            of_one, values = _of_analyser(table, analyser)
            found = cursor.execute(
                "SELECT ('0x' || p.cell_id)::UBIGINT AS id, p.node, p.quantization_error FROM map_position p "
                f"SEMI JOIN (SELECT cell_id FROM {of_one}) USING (cell_id) WHERE p.map = ? AND p.node >= 0 AND p.node < ?",
                [*values, version.number, version.rows * version.columns],
            ).fetchnumpy()
        cells = Placed(
            np.asarray(found["id"], np.uint64),
            np.asarray(found["node"], np.int64),
            np.asarray(found["quantization_error"], np.float32),
        )
        return ActiveMap(version, placer, Positions(version.rows, version.columns, cells))

    def _placer(self, number: int) -> Placer:
        if self._open_placer is None:
            raise StoreError("the store was opened without what reads maps; open it by `Lab.open_store`")
        return self._open_placer(self.weights_file(number))

    def _save(self, trained: StoredMap, save: Callable[[Path], None]) -> StoredMap:
        with self._reading() as cursor:
            row = cursor.execute("SELECT coalesce(max(number), 0) + 1 FROM map").fetchone()
        number = int(row[0]) if row else 1
        try:
            self.folder.mkdir(exist_ok=True)
            failpoint("map.write")
            save(self.weights_file(number))
            failpoint("map.sync")
            sync_folder(self.folder)
            failpoint("map.written", may_fail=False)
        except OSError as error:
            raise StoreError(
                f"the map cannot be written to {self.folder}: {error.strerror or error}. The map before stays in use; look at "
                "the free disk space and the rights of the lab folder."
            ) from error
        return replace(trained, number=number)

    def _use(
        self, version: StoredMap, parts: Iterator[Placed], first: Callable[[duckdb.DuckDBPyConnection], None]
    ) -> None:
        placer = self._placer(version.number)
        with self._transaction() as connection:  # what a training that was killed had placed
            connection.execute("DELETE FROM map_position WHERE map = ?", [version.number])
        placed: list[Placed] = []
        for part in parts:  # a transaction each, so that ingest gets in between
            with self._transaction() as connection:
                failpoint("map.positions")
                _insert(connection, version.number, part)
            placed.append(part)
        with self._quiet():
            with self._transaction() as connection:
                while (missing := _missing(connection, version, _PLACE_ROWS)) is not None:
                    placed.append(Placed(missing[0], *placer.place(missing[1])))
                    _insert(connection, version.number, placed[-1])
                first(connection)
                connection.execute(
                    "INSERT INTO map_activation SELECT coalesce(max(number), 0) + 1, ?, ? FROM map_activation",
                    [version.number, now()],
                )
                failpoint("map.switch")
            positions = Positions(version.rows, version.columns, Placed.joined(placed))
            space = version.bundle, version.analyser
            self._problems.pop(space, None)
            self._loaded[space] = ActiveMap(version, placer, positions)
            self._own.pop(version.bundle, None)
        failpoint("map.switched", may_fail=False)
        self.prune()

    def prune(self) -> None:
        """Let go of what is not needed any more: places on maps not in use, and weights of old ones."""
        with self._transaction() as connection:
            used = _in_use(connection)
            connection.execute(
                "DELETE FROM map_position WHERE map NOT IN (SELECT unnest(?::INTEGER[]))", [sorted(used)]
            )
            versions = connection.execute("SELECT number, analyser FROM map ORDER BY number").fetchall()
        numbers = [number for number, _ in versions]
        alike: dict[str | None, list[int]] = {}
        for number, analyser in versions:
            alike.setdefault(analyser, []).append(number)
        kept = used.union(*(of_one[-KEPT_WEIGHTS:] for of_one in alike.values()))
        for number in numbers:
            if number not in kept:
                failpoint("map.prune", may_fail=False)
                with contextlib.suppress(OSError):  # tried again after the next training
                    self.weights_file(number).unlink(missing_ok=True)


def _insert(connection: duckdb.DuckDBPyConnection, number: int, placed: Placed) -> None:
    connection.execute(
        "INSERT INTO map_position SELECT $1::INTEGER, unnest($2::VARCHAR[]), unnest($3::INTEGER[]), unnest($4::FLOAT[])",
        [number, [int_to_id(cell) for cell in placed.ids.tolist()], placed.nodes.tolist(), placed.errors.tolist()],
    )


def _count(cursor: duckdb.DuckDBPyConnection, table: str) -> int:
    row = cursor.execute(f"SELECT count(*) FROM {table}").fetchone()
    return int(row[0]) if row else 0


def _of_analyser(table: str, analyser: str | None) -> tuple[str, list[str | None]]:
    """What follows FROM for the latents of one analyser's cells, or of all where it is None, and its values."""
    if analyser is None:
        return f"{table} e", []
    return f"{table} e JOIN (SELECT cell_id FROM cell WHERE analyser = ?) USING (cell_id)", [to_column(analyser)]


def _missing(
    connection: duckdb.DuckDBPyConnection, version: StoredMap, most: int
) -> tuple[NDArray[np.uint64], NDArray[np.float32]] | None:
    """Ids and latents of cells that do not lie on a map yet, at most so many; None where all do."""
    table, space = bundles.space(connection, version.bundle)
    of_one, values = _of_analyser(table, version.analyser)
    found = connection.execute(
        f"SELECT ('0x' || e.cell_id)::UBIGINT AS id, e.latent FROM {of_one} ANTI JOIN "
        f"(SELECT cell_id FROM map_position WHERE map = ?) p ON p.cell_id = e.cell_id LIMIT {most:d}",
        [*values, version.number],
    ).fetchall()
    if not found:
        return None
    latents = np.array([latent for _, latent in found], np.float32).reshape(len(found), space.latent_size)
    return np.array([cell for cell, _ in found], np.uint64), latents


def _add(connection: duckdb.DuckDBPyConnection, version: StoredMap) -> None:
    of_version = asdict(version) | {
        "trained_at": version.trained_at.astimezone(UTC).replace(tzinfo=None),
        "analyser": to_nullable(version.analyser),
    }
    values = [of_version[name] for name in _COLUMNS.split(", ")]
    failpoint("map.row")
    connection.execute(f"INSERT INTO map ({_COLUMNS}) VALUES ({', '.join('?' * len(values))})", values)


def _in_use(connection: duckdb.DuckDBPyConnection) -> set[int]:
    found = connection.execute(
        "SELECT arg_max(a.map, a.number) FROM map_activation a JOIN map m ON a.map = m.number GROUP BY m.bundle, m.analyser"
    ).fetchall()
    return {int(number) for (number,) in found}


def _version(*row: Any) -> StoredMap:
    values = dict(zip(_COLUMNS.split(", "), row, strict=True))
    return StoredMap(
        **values
        | {"trained_at": values["trained_at"].replace(tzinfo=UTC), "analyser": from_nullable(values["analyser"])}
    )
