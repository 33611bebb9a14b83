"""The maps of a lab: every version with how good it is, which one is in use in each latent space, and where cells lie
on it.

Tables: `map` (a row a version), `map_activation` (the last row of a latent space names the map in use there),
`map_position` (where each cell lies on the maps in use). Weights: LAB/maps/<number>.npz, written and read by what the
store is handed; whole before the row that names them is there.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
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
from labref.store.text import from_column, from_nullable, to_column

__all__ = ["KEPT_WEIGHTS", "ActiveMap", "MapCell", "Maps", "StoredMap", "Verdict"]

KEPT_WEIGHTS: Final = 5
"""Weights of so many newest versions stay on the disk, beside those in use; of older ones the figures stay."""
_PLACE_ROWS: Final = (
    8192  # cells placed and written at once: a commit of some ten milliseconds, so ingest gets in between
)
_COLUMNS: Final = (
    "number, bundle, rows, columns, sigma, seed, trainer, started_from, cells, qe, te, qe_before, te_before, moved_far, "
    "verdict, seconds, trained_at"
)

Verdict = str
"""Of a version: "first" (there was none to compare with), "better" (no worse: taken into use), "worse" (kept, not used)
or "resized" (the one before has another size, so their errors cannot be compared: taken into use)."""


@dataclass(frozen=True)
class StoredMap:
    """One version.

    bundle : digest of the bundle whose latents it orders.  sigma : final radius, nodes.  started_from : the version
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
        self._loaded: dict[str, ActiveMap | None] = {}
        self._problems: dict[str, str] = {}
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
        """The versions in use, one in each latent space that has one."""
        with self._reading() as cursor:
            return _in_use(cursor)

    def active(self, bundle: str) -> ActiveMap | None:
        """The map in use in the latent space of a bundle, or None. Microseconds but for the first time, which reads
        it."""
        if bundle in self._loaded:
            return self._loaded[bundle]
        with self._quiet():
            if bundle not in self._loaded:
                self._loaded[bundle] = self._load(bundle)
            return self._loaded[bundle]

    def problem(self, bundle: str) -> str | None:
        """Why a map that should be in use is not: its weights are missing or damaged."""
        self.active(bundle)
        return self._problems.get(bundle)

    def cells(self, bundle: str, ids: Sequence[str] | None = None) -> Iterator[MapCell]:
        """The cells on the map in use, with what they carry: all in the order they came, or those with these
        ids."""
        active = self.active(bundle)
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

    def embedded(self, bundle: str) -> int:
        """How many cells have a latent in the space of a bundle. A millisecond."""
        with self._reading() as cursor:
            table, _ = bundles.space(cursor, bundle)
            row = cursor.execute(f"SELECT count(*) FROM {table}").fetchone()
        return int(row[0]) if row else 0

    def latents(self, bundle: str, rows: int = _PLACE_ROWS) -> Iterator[tuple[NDArray[np.uint64], NDArray[np.float32]]]:
        """Ids uint64[n] and latents float32[n, L] of all cells of a latent space, n at most `rows`, in the order they
        came."""
        with self._reading() as cursor:
            table, space = bundles.space(cursor, bundle)
            yield from scan.blocks(cursor, table, space.latent_size, rows)

    # new cells

    def place(self, bundle: str, ids: NDArray[np.uint64], latents: NDArray[np.float32]) -> tuple[int, Placed] | None:
        """Where new cells lie: the version and the places, for `write` and `remember`; None while there is no map."""
        active = self.active(bundle) if len(ids) else None
        if active is None:
            return None
        return active.version.number, Placed(ids, *active.placer.place(latents))

    def write(self, connection: duckdb.DuckDBPyConnection, placed: tuple[int, Placed] | None) -> None:
        """Write places, in the caller's transaction."""
        if placed is not None and len(placed[1]):
            failpoint("map.place")
            _insert(connection, *placed)

    def remember(self, bundle: str, placed: tuple[int, Placed] | None) -> None:
        """Show places that are written to those who look."""
        active = self._loaded.get(bundle)
        if placed is not None and active is not None:
            assert active.version.number == placed[0]
            active.positions.add(placed[1])

    def place_again(self, bundle: str, ids: Sequence[str]) -> None:
        """Place cells anew on the map in use, wherever they lie now; those that lie nowhere as well."""
        active = self.active(bundle)
        if active is not None:
            with self._quiet():
                with self._transaction() as connection:
                    connection.execute(
                        "DELETE FROM map_position WHERE map = ? AND cell_id IN (SELECT unnest(?::VARCHAR[]))",
                        [active.version.number, list(ids)],
                    )
                self.drop_cached()
            self.catch_up(bundle)

    def catch_up(self, bundle: str) -> None:
        """Place the cells of a latent space that lie nowhere on its map yet."""
        active = self.active(bundle)
        if active is not None:  # a place that the map does not have is none
            with self._transaction() as connection:
                connection.execute(
                    "DELETE FROM map_position WHERE map = ? AND (node < 0 OR node >= ?)",
                    [active.version.number, active.version.rows * active.version.columns],
                )
        while active is not None:
            with self._quiet():
                active = self._loaded.get(bundle)
                if active is None:
                    break
                with self._transaction() as connection:
                    missing = _missing(connection, bundle, active.version.number, _PLACE_ROWS)
                    if missing is None:
                        break
                    placed = Placed(missing[0], *active.placer.place(missing[1]))
                    self.write(connection, (active.version.number, placed))
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
            active = self.active(version.bundle)
            if active is None or active.version.number != number:
                placer = self._placer(number)
                parts = (Placed(ids, *placer.place(latents)) for ids, latents in self.latents(version.bundle))
                self._use(version, parts, lambda connection: None)
        return version

    # inside

    def drop_cached(self) -> None:
        """Read everything anew when it is next asked for."""
        self._loaded.clear()

    def _load(self, bundle: str) -> ActiveMap | None:
        self._problems.pop(bundle, None)
        with self._reading() as cursor:
            row = cursor.execute(
                f"SELECT {_COLUMNS} FROM map WHERE number = (SELECT a.map FROM map_activation a JOIN map m ON a.map = m.number "
                "WHERE m.bundle = ? ORDER BY a.number DESC LIMIT 1)",
                [bundle],
            ).fetchone()
            if row is None:
                return None
            version = _version(*row)
            try:
                placer = self._placer(version.number)
                if (placer.rows, placer.cols) != (version.rows, version.columns):
                    raise LabrefError(f"the weights of map {version.number} are those of another map")
            except LabrefError as error:
                self._problems[bundle] = str(error)
                return None
            table, _ = bundles.space(cursor, bundle)
            found = cursor.execute(
                "SELECT ('0x' || p.cell_id)::UBIGINT AS id, p.node, p.quantization_error FROM map_position p "
                f"SEMI JOIN {table} e USING (cell_id) WHERE p.map = ? AND p.node >= 0 AND p.node < ?",
                [version.number, version.rows * version.columns],
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
                while (missing := _missing(connection, version.bundle, version.number, _PLACE_ROWS)) is not None:
                    placed.append(Placed(missing[0], *placer.place(missing[1])))
                    _insert(connection, version.number, placed[-1])
                first(connection)
                connection.execute(
                    "INSERT INTO map_activation SELECT coalesce(max(number), 0) + 1, ?, ? FROM map_activation",
                    [version.number, now()],
                )
                failpoint("map.switch")
            positions = Positions(version.rows, version.columns, Placed.joined(placed))
            self._problems.pop(version.bundle, None)
            self._loaded[version.bundle] = ActiveMap(version, placer, positions)
        failpoint("map.switched", may_fail=False)
        self.prune()

    def prune(self) -> None:
        """Let go of what is not needed any more: places on maps not in use, and weights of old ones."""
        with self._transaction() as connection:
            used = _in_use(connection)
            connection.execute(
                "DELETE FROM map_position WHERE map NOT IN (SELECT unnest(?::INTEGER[]))", [sorted(used)]
            )
            numbers = [number for (number,) in connection.execute("SELECT number FROM map ORDER BY number").fetchall()]
        kept = used | set(numbers[-KEPT_WEIGHTS:])
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


def _missing(
    connection: duckdb.DuckDBPyConnection, bundle: str, number: int, most: int
) -> tuple[NDArray[np.uint64], NDArray[np.float32]] | None:
    """Ids and latents of cells that do not lie on a map yet, at most so many; None where all do."""
    table, space = bundles.space(connection, bundle)
    found = connection.execute(
        f"SELECT ('0x' || e.cell_id)::UBIGINT AS id, e.latent FROM {table} e ANTI JOIN "
        f"(SELECT cell_id FROM map_position WHERE map = ?) p USING (cell_id) LIMIT {most:d}",
        [number],
    ).fetchall()
    if not found:
        return None
    latents = np.array([latent for _, latent in found], np.float32).reshape(len(found), space.latent_size)
    return np.array([cell for cell, _ in found], np.uint64), latents


def _add(connection: duckdb.DuckDBPyConnection, version: StoredMap) -> None:
    values: list[Any] = [getattr(version, name) for name in _COLUMNS.split(", ")]
    values[-1] = version.trained_at.astimezone(UTC).replace(tzinfo=None)
    failpoint("map.row")
    connection.execute(f"INSERT INTO map ({_COLUMNS}) VALUES ({', '.join('?' * len(values))})", values)


def _in_use(connection: duckdb.DuckDBPyConnection) -> set[int]:
    found = connection.execute(
        "SELECT arg_max(a.map, a.number) FROM map_activation a JOIN map m ON a.map = m.number GROUP BY m.bundle"
    ).fetchall()
    return {int(number) for (number,) in found}


def _version(*row: Any) -> StoredMap:
    values = dict(zip(_COLUMNS.split(", "), row, strict=True))
    return StoredMap(**values | {"trained_at": values["trained_at"].replace(tzinfo=UTC)})
