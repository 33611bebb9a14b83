"""Which cells of a pack show a cell that the pool has already, found as a lab finds recaptures."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import duckdb
import numpy as np
from numpy.typing import NDArray

from labref.cells.image import prepare_pixels
from labref.cells.registration import View
from labref.cells.sameness import DEFAULTS, compared, marks, seen
from labref.cpus import usable_cpus
from labref.errors import PackError
from labref.failpoints import failpoint
from labref.packs import CELLS, Manifest, crop_in
from labref.store.memory.books import HashBook
from labref.store.recording import Search, stored_landmarks
from labref.words import Fingerprint, Landmark
from training.data.pool import INDEX, PACKS, connect, name_in_pool, table
from training.data.pooled import LINKS, MARKS, copy_table

__all__ = ["compare"]

_AT_ONCE: Final = 256
_VIEWS: Final = 2048  # of cells that were compared last, kept in memory


@dataclass(frozen=True)
class _Found:
    """What a cell is searched by."""

    name: str
    pixels: str
    fingerprints: tuple[Fingerprint, ...]
    landmarks: tuple[Landmark, ...]


def compare(
    folder: Path,
    waiting: Path,
    manifest: Manifest,
    source: Path,
    step: Callable[[str, int], Callable[[int], None]],
) -> int:
    """Compare the cells of a pack with all of the pool and with each other, as a lab does: candidates by fingerprint
    and landmark, then by laying one picture over the other. Writes `marks.parquet` and `links.parquet` into its folder,
    in parts, and returns how many cells show one that came before."""
    with closing(connect()) as database, ThreadPoolExecutor(max_workers=usable_cpus()) as threads:
        database.execute("CREATE TEMP TABLE place (name VARCHAR, file VARCHAR, cell VARCHAR)")
        books, known = _books(folder, database)
        cells = [
            cell for (cell,) in database.execute(f"SELECT cell FROM {table(waiting / CELLS)} ORDER BY cell").fetchall()
        ]
        own = [[name_in_pool(manifest.lab, cell) for cell in cells], cells]
        database.execute(
            "INSERT INTO place SELECT unnest($1::VARCHAR[]), $3, unnest($2::VARCHAR[])", [*own, str(waiting / CELLS)]
        )
        search, views = Search(*books), _Views(database)
        advance = step("cells compared", len(cells))
        linked: set[str] = set()
        for number, start in enumerate(range(0, len(cells), _AT_ONCE)):
            part = cells[start : start + _AT_ONCE]
            marks_file, links_file = (waiting / f"{what}-{number:06d}.parquet" for what in ("marks", "links"))
            if links_file.exists() and marks_file.exists():
                linked |= _again(database, marks_file, links_file, search, known)
            else:
                found = _search_marks(database, waiting / CELLS, part, manifest.lab, source, threads, views)
                links = list(_links(found, search, known, views))
                linked |= {name for name, *_ in links}
                _write_marks(database, found, marks_file)
                _write_links(database, links, links_file)
                failpoint("pool.compared", may_fail=False)
            advance(len(part))
        for name, empty in ((MARKS, [_EMPTY_MARKS]), (LINKS, [_EMPTY_LINKS])):
            parts = sorted(waiting.glob(f"{name.split('.')[0]}-*.parquet"))
            listed = [f"SELECT * FROM {table(file)}" for file in parts]
            copy_table(database, " UNION ALL ".join([*empty, *listed]), waiting / name)
            for file in parts:
                file.unlink()
    (waiting / "state.json").unlink()
    return len(linked)


_EMPTY_MARKS: Final = (
    "SELECT NULL::VARCHAR AS name, NULL::VARCHAR AS pixels, NULL::UBIGINT AS across, NULL::UBIGINT AS down, "
    "NULL::UBIGINT[] AS spots_across, NULL::UBIGINT[] AS spots_down WHERE false"
)
_EMPTY_LINKS: Final = (
    "SELECT NULL::VARCHAR AS name, NULL::VARCHAR AS other, NULL::VARCHAR AS verdict, NULL::DOUBLE AS score WHERE false"
)


def _books(folder: Path, database: duckdb.DuckDBPyConnection) -> tuple[tuple[HashBook, HashBook], dict[str, str]]:
    """Fingerprints and landmarks of the cells in the pool, and their names by the digest of their pixels. Enters in the
    table `place` where each lies."""
    fingerprints, landmarks, known = HashBook(), HashBook(), dict[str, str]()
    if not (folder / INDEX).is_file():
        return (fingerprints, landmarks), known
    age = 0
    for lab, pack, _ in database.execute(
        f"SELECT DISTINCT lab, pack, taken FROM {table(folder / INDEX)} ORDER BY taken"
    ).fetchall():
        place = folder / PACKS / lab / pack
        database.execute(
            f"INSERT INTO place SELECT name, $1, cell FROM {table(folder / INDEX)} WHERE lab = $2 AND pack = $3",
            [str(place / CELLS), lab, pack],
        )
        rows = database.execute(
            f"SELECT m.* FROM {table(place / MARKS)} m SEMI JOIN (SELECT name FROM {table(folder / INDEX)} "
            "WHERE lab = $1 AND pack = $2) i ON i.name = m.name ORDER BY m.name",
            [lab, pack],
        ).fetchall()
        age = _enter(rows, fingerprints, landmarks, known, age)
    return (fingerprints, landmarks), known


def _enter(
    rows: Sequence[tuple[Any, ...]], fingerprints: HashBook, landmarks: HashBook, known: dict[str, str], age: int
) -> int:
    """Enter rows of `marks.parquet` into the books, from this age on; returns the next."""
    if not rows:
        return age
    ids = np.array([int(row[0], 16) for row in rows], np.uint64)
    ages = np.arange(age, age + len(rows), dtype=np.uint32)
    across, down = (np.array([row[at] for row in rows], np.uint64) for at in (2, 3))
    fingerprints.add(across, down, ids, ages)
    spots = [
        (a, d, row[0], at)
        for row, at in zip(rows, ages.tolist(), strict=True)
        for a, d in zip(row[4], row[5], strict=True)
    ]
    if spots:
        landmarks.add(
            np.array([spot[0] for spot in spots], np.uint64),
            np.array([spot[1] for spot in spots], np.uint64),
            np.array([int(spot[2], 16) for spot in spots], np.uint64),
            np.array([spot[3] for spot in spots], np.uint32),
        )
    for row in rows:
        known.setdefault(row[1], row[0])
    return age + len(rows)


def _again(
    database: duckdb.DuckDBPyConnection, marks_file: Path, links_file: Path, search: Search, known: dict[str, str]
) -> set[str]:
    """A part that was compared before this command was cut off."""
    for name, pixels, across, down, spots_across, spots_down in database.execute(
        f"SELECT * FROM {table(marks_file)}"
    ).fetchall():
        spots = [
            Landmark((Fingerprint(a, d),), Fingerprint(0, 0)) for a, d in zip(spots_across, spots_down, strict=True)
        ]
        search.add(name, [Fingerprint(across, down)], spots)
        known.setdefault(pixels, name)
    search.apply()
    return {name for (name,) in database.execute(f"SELECT name FROM {table(links_file)}").fetchall()}


class _Views:
    """Pictures of cells, ready to be laid over each other: those asked for last stay in memory."""

    def __init__(self, database: duckdb.DuckDBPyConnection) -> None:
        """database : its table `place` says where each cell lies."""
        self._database = database
        self._kept: dict[str, View | NDArray[np.uint8]] = {}

    def keep(self, name: str, crop: NDArray[np.uint8]) -> None:
        """A picture that is at hand."""
        self._kept[name] = crop  # most are compared with none, and made ready for nothing
        while len(self._kept) > _VIEWS:
            del self._kept[next(iter(self._kept))]

    def of(self, name: str) -> View:
        """The picture of a cell."""
        if name not in self._kept:
            self.fetch([name])
        found = self._kept[name]
        if isinstance(found, np.ndarray):
            found = self._kept[name] = seen(found)
        return found

    def fetch(self, names: Sequence[str]) -> None:
        """Read those of these that are not at hand, by file."""
        wanted = [name for name in dict.fromkeys(names) if name not in self._kept]
        rows = self._database.execute(
            "SELECT file, list(name), list(cell) FROM place WHERE name IN (SELECT unnest(?::VARCHAR[])) GROUP BY file",
            [wanted],
        ).fetchall()
        for file, found, cells in rows:
            by_cell = dict(zip(cells, found, strict=True))
            pictures = self._database.execute(
                f"SELECT cell, crop FROM {table(Path(file))} WHERE cell IN (SELECT unnest(?::VARCHAR[]))",
                [cells],
            ).fetchall()
            for cell, picture in pictures:
                self.keep(by_cell[cell], crop_in(picture))


def _search_marks(
    database: duckdb.DuckDBPyConnection,
    file: Path,
    cells: Sequence[str],
    lab: str,
    source: Path,
    threads: ThreadPoolExecutor,
    views: _Views,
) -> list[_Found]:
    """By what some cells of a pack are searched. Raises `PackError` where a picture is none of a pack."""
    pictures = database.execute(
        f"SELECT cell, crop FROM {table(file)} WHERE cell IN (SELECT unnest(?::VARCHAR[])) ORDER BY cell",
        [list(cells)],
    ).fetchall()

    def one(row: tuple[str, bytes]) -> tuple[_Found, NDArray[np.uint8]]:
        cell, picture = row
        try:
            crop = crop_in(picture)
        except ValueError as error:
            raise PackError(f"{source} is no pack: the picture of its cell {cell}: {error}.") from None
        pixels = hashlib.sha256(crop.tobytes()).hexdigest()[:32]
        return _Found(name_in_pool(lab, cell), pixels, *marks(crop, prepare_pixels(crop))), crop

    found = list(threads.map(one, pictures))
    for each, crop in found:
        views.keep(each.name, crop)
    return [each for each, _ in found]


def _links(
    found: Sequence[_Found], search: Search, known: dict[str, str], views: _Views
) -> Iterator[tuple[str, str, str, float]]:
    """(cell, an earlier one that shows the same, verdict, score) of each pair."""
    for each in found:
        same = known.get(each.pixels)
        if same is not None and same != each.name:
            yield each.name, same, "identical", 1.0
        else:
            near = search.candidates(each.fingerprints, each.landmarks, DEFAULTS.candidate_bits)
            others = [other for other in near if other != each.name]
            views.fetch([*others, each.name])
            for other in others:
                result = compared(views.of(other), views.of(each.name), DEFAULTS)
                if result.verdict.is_one_cell:
                    yield each.name, other, str(result.verdict), float(result.found.score)
        known.setdefault(each.pixels, each.name)
        search.add(each.name, each.fingerprints, each.landmarks)
        search.apply()


def _write_marks(database: duckdb.DuckDBPyConnection, found: Sequence[_Found], file: Path) -> None:
    spots = [stored_landmarks(each.landmarks) for each in found]
    database.execute(
        "CREATE OR REPLACE TEMP TABLE marks AS SELECT unnest($1::VARCHAR[]) AS name, unnest($2::VARCHAR[]) AS pixels, "
        "unnest($3::UBIGINT[]) AS across, unnest($4::UBIGINT[]) AS down, unnest($5::UBIGINT[][]) AS spots_across, "
        "unnest($6::UBIGINT[][]) AS spots_down",
        [
            [each.name for each in found],
            [each.pixels for each in found],
            [each.fingerprints[0].across for each in found],
            [each.fingerprints[0].down for each in found],
            [[spot.across for spot in one] for one in spots],
            [[spot.down for spot in one] for one in spots],
        ],
    )
    copy_table(database, "FROM marks", file)


def _write_links(database: duckdb.DuckDBPyConnection, links: Sequence[tuple[str, str, str, float]], file: Path) -> None:
    columns = [[link[at] for link in links] for at in range(4)]
    database.execute(
        "CREATE OR REPLACE TEMP TABLE links AS SELECT unnest($1::VARCHAR[]) AS name, unnest($2::VARCHAR[]) AS other, "
        "unnest($3::VARCHAR[]) AS verdict, unnest($4::DOUBLE[]) AS score",
        columns,
    )
    copy_table(database, "FROM links", file)
