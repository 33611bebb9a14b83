"""A pool: the cells of many labs that the centre trains on. What it holds, and how it is read.

POOL/pool.json                       that it is one, and its format
POOL/labs/<lab>.json                 each lab's public key; whether it is trusted; the number of its newest pack
POOL/packs/<lab>/<digest>/           each pack that counts: its manifest, its tables, and what was found of its cells:
                                     marks.parquet (by what they are searched), links.parquet (which show one cell)
POOL/cells.parquet, POOL/index.json  which cells there are, in which domain, as which class; made of the packs
POOL/cache/                          crops as runs train on them; made again where they are missing

`training.data.ingest` writes it. A cell's name in the pool is a digest of its lab and of the lab's pseudonym for it.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import duckdb

from labref.cells.image import CROP_SIZE, CellImage
from labref.errors import PackError
from labref.packs import CELLS, crop_in
from labref.words import MEASURES

__all__ = [
    "CACHE",
    "INDEX",
    "PACKS",
    "STATE",
    "Pool",
    "PooledCell",
    "connect",
    "in_words",
    "index_digest",
    "is_pool",
    "name_in_pool",
    "table",
]

POOL: Final = "pool.json"
PACKS: Final = "packs"
INDEX: Final = "cells.parquet"
STATE: Final = "index.json"
CACHE: Final = "cache"
SUFFIX: Final = ".webp"
_AT_ONCE: Final = 512


@dataclass(frozen=True)
class PooledCell:
    """A cell that counts. name : in the pool, 16 hexadecimal characters.  lab, pack : where it lies.  cell : the lab's
    pseudonym of it.  domain : lab and optics.  label : its class."""

    name: str
    lab: str
    pack: str
    cell: str
    domain: str
    label: str

    @property
    def path(self) -> str:
        """How training names it, as a file of class folders in the folder of its domain."""
        return f"{self.domain}/{self.label}/{self.name}{SUFFIX}"


def is_pool(folder: Path) -> bool:
    """Whether a folder is a pool, and not one of pictures."""
    return (folder / POOL).is_file()


def index_digest(folder: Path) -> str | None:
    """SHA-256 of what a pool says of its cells; None where that is missing or cannot be read."""
    try:
        with (folder / INDEX).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def name_in_pool(lab: str, cell: str) -> str:
    """The name in the pool of a lab's cell: 16 hexadecimal characters."""
    return hashlib.sha256(f"{lab}:{cell}".encode()).hexdigest()[:16]


def connect() -> duckdb.DuckDBPyConnection:
    """DuckDB, to read and write tables of a pool; nothing is fetched from elsewhere. Tables that are made in it are
    TEMP: they belong to this connection, and end with it."""
    return _database().cursor()


@functools.cache
def _database() -> duckdb.DuckDBPyConnection:
    """The DuckDB of this process: to make one takes 25 ms, and a pool is read in many small questions."""
    return duckdb.connect(
        config={
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
            "enable_external_file_cache": False,  # a file is read anew each time, as packs come and go
            "python_enable_replacements": False,
            "memory_limit": "2GiB",
        }
    )


def table(path: Path) -> str:
    """A Parquet file in SQL: this one alone, whatever its name looks like, and its own columns alone. A folder above it
    that is called `site=1` is no column of it."""
    text = str(path).replace("'", "''")
    text = "".join(f"[{sign}]" if sign in "*?[" else sign for sign in text)
    return f"read_parquet('{text}', hive_partitioning = false)"


@contextlib.contextmanager
def in_words(folder: Path) -> Iterator[None]:
    """Raise DuckDB's errors about files of a pool as `PackError`: what failed, where, and what to do."""
    try:
        yield
    except duckdb.Error as error:
        raise PackError(
            f"{folder} cannot be read or written: {str(error).splitlines()[0]}. Look at the free space and the rights of its disk, "
            "then give the command again: it goes on where it was."
        ) from error


class Pool:
    """A pool that is read: the cells that count, one of each physical cell."""

    def __init__(self, folder: Path, cells: Mapping[str, PooledCell]) -> None:
        """Not called directly: see `open`."""
        self.folder = folder
        self.cells = cells
        """By path."""

    @staticmethod
    def open(folder: Path) -> Pool:
        """Raises `PackError` where it is no pool, or was cut off while it was changed."""
        try:
            state: Any = json.loads((folder / STATE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            state = {}
        there = sorted(
            f"{lab.name}/{pack.name}" for lab in (folder / PACKS).glob("*") for pack in lab.glob("[0-9a-f]*")
        )
        index = index_digest(folder)
        known = (state.get("packs"), state.get("index", index)) if isinstance(state, dict) else None
        if not is_pool(folder) or index is None or known != (there, index):
            raise PackError(
                f"{folder} is no pool, was cut off while it was changed, or is damaged. `python -m training pool {folder}` brings it to its "
                "end."
            )
        with in_words(folder), closing(connect()) as database:
            rows = database.execute(
                f"SELECT name, lab, pack, cell, domain, class FROM {table(folder / INDEX)} WHERE kept ORDER BY name"
            ).fetchall()
        cells = (PooledCell(*row) for row in rows)
        return Pool(folder, MappingProxyType({cell.path: cell for cell in cells}))

    @property
    def domains(self) -> tuple[str, ...]:
        """One for each lab and optics, in order."""
        return tuple(sorted({cell.domain for cell in self.cells.values()}))

    def consents(self, paths: Collection[str]) -> dict[str, list[str]]:
        """Under which licence or consent labs gave these cells, each named once, by domain; of those that the pool has
        not any more nothing."""
        wanted = {self.cells[path].name for path in paths if path in self.cells}
        found: dict[str, set[str]] = {}
        with in_words(self.folder), closing(connect()) as database:
            rows = database.execute(f"SELECT name, domain, consent FROM {table(self.folder / INDEX)}").fetchall()
        for name, domain, consent in rows:
            if name in wanted:
                found.setdefault(domain, set()).add(consent)
        return {domain: sorted(consents) for domain, consents in sorted(found.items())}

    def pictures(self, paths: Sequence[str]) -> Iterator[tuple[str, bytes, tuple[float, float, float]]]:
        """Path, WebP bytes and background (R, G, B, 0 to 255; 0 where it is not known) of cells, each once, in any
        order. Raises `PackError` for one that the pool has not any more, and where a pack's are missing or damaged."""
        if gone := [path for path in paths if path not in self.cells]:
            raise PackError(
                f"{self.folder} has {len(gone)} of these cells no more, {gone[0]} the first: a lab withdrew or took them back, or gave them "
                "another class. A run that was begun with them cannot go on; begin a new one: `python -m training train`."
            )
        by_pack: dict[tuple[str, str], dict[str, str]] = {}
        for path in paths:
            cell = self.cells[path]
            by_pack.setdefault((cell.lab, cell.pack), {})[cell.cell] = path
        background = ", ".join(MEASURES[:3])
        with closing(connect()) as database:
            for (lab, pack), wanted in by_pack.items():
                file = self.folder / PACKS / lab / pack / CELLS
                names = sorted(wanted)
                for start in range(0, len(names), _AT_ONCE):
                    some = names[start : start + _AT_ONCE]
                    with in_words(self.folder):
                        rows = database.execute(
                            f"SELECT cell, crop, {background} FROM {table(file)} WHERE cell IN (SELECT unnest(?::VARCHAR[])) "
                            "AND crop IS NOT NULL",
                            [some],
                        ).fetchall()
                    if len(rows) != len(some):
                        lacking = len(some) - len(rows)
                        raise PackError(
                            f"{file} lacks the pictures of {lacking} cells. Restore the pool, or withdraw the lab."
                        )
                    for name, picture, *colour in rows:
                        red, green, blue = (0.0 if value is None else value for value in colour)
                        yield wanted[name], picture, (red, green, blue)

    def prepared(self, paths: Sequence[str]) -> Iterator[tuple[str, CellImage]]:
        """Cells as they were prepared in their labs, as `pictures` gives them. `surroundings` and `centre` are not
        known: they are those of the crop."""
        middle = (CROP_SIZE - 1) / 2
        for path, picture, background in self.pictures(paths):
            crop = crop_in(picture)
            yield path, CellImage(crop, crop, (middle, middle), (), (CROP_SIZE, CROP_SIZE), background, True)
