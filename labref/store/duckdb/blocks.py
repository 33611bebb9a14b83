"""The blocks of a store's file as they lie on the disk, each compared with its checksum.

DuckDB compares the checksum of a block when it reads the block. What is in its memory it does not read again, and a
block of an index only when something is looked up there. So all are read here. The file begins with three headers of
4096 bytes; then come blocks of one size. Each begins with the checksum of the rest: its 64-bit words, each times a
constant, exclusive-or'ed (DuckDB, `src/common/checksum.cpp`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import IO, Final

import duckdb
import numpy as np
from numpy.typing import NDArray

from labref.store.duckdb import upkeep

__all__ = ["Blocks", "read"]

_HEADER: Final = 4096
_HEADERS: Final = 3
_FACTOR: Final = np.uint64(0xBF58476D1CE4E5B9)
_START: Final = np.uint64(5381)


@dataclass(frozen=True, slots=True)
class Blocks:
    """What reading the blocks gave.

    read : how many, headers too.  damaged : what each damaged one holds, such as "table cell", "an index, or nothing
    any more", "the file's header" or "the list of tables".
    """

    read: int
    damaged: tuple[str, ...]


def read(
    cursor: duckdb.DuckDBPyConnection, file: IO[bytes], quiet: Callable[[], AbstractContextManager[None]]
) -> Blocks | None:
    """Read every block of the file from the disk; None where a DuckDB reckons checksums in another way.

    file : the store's, open for reading. It must stay open as long as the database is: DuckDB's lock of the file ends
    when this process closes the file anywhere (POSIX locks belong to the process).
    quiet : while it is entered nobody writes. It is entered only where a block seems damaged: so does one that is being
    written.
    """
    sizes = _sizes(cursor)
    bad = [number for number, sound in _compared(file, sizes) if not sound]
    if len(bad) == len(sizes):
        return None
    if bad:
        with quiet():
            again = _sizes(cursor)
            bad = [number for number, sound in _compared(file, again, frozenset(bad)) if not sound]
    return Blocks(len(sizes), tuple(_told(cursor, [number - _HEADERS for number in bad])))


def _sizes(cursor: duckdb.DuckDBPyConnection) -> list[int]:
    """Bytes of each header and block, in the order they lie in the file."""
    row = cursor.execute("SELECT block_size, total_blocks FROM pragma_database_size()").fetchone()
    assert row is not None
    return [_HEADER] * _HEADERS + [int(row[0])] * int(row[1])


def _compared(file: IO[bytes], sizes: list[int], only: frozenset[int] | None = None) -> Iterator[tuple[int, bool]]:
    """The number of each block, or of these only, and whether it is sound."""
    start = 0
    for number, size in enumerate(sizes):
        if only is None or number in only:
            file.seek(start)
            data = file.read(size)
            yield number, len(data) == size and _sound(np.frombuffer(data, "<u8"))
        start += size


def _sound(words: NDArray[np.uint64]) -> bool:
    return bool(np.bitwise_xor.reduce(words[1:] * _FACTOR) ^ _START == words[0])


def _told(cursor: duckdb.DuckDBPyConnection, blocks: list[int]) -> Iterator[str]:
    """What damaged blocks hold, as far as it can be known."""
    if not blocks:
        return
    holds: dict[int, str] = {}
    with contextlib.suppress(duckdb.Error):  # what says it may itself be damaged
        for table in upkeep.tables(cursor):
            found = cursor.execute(
                "SELECT DISTINCT unnest(list_append(additional_block_ids, block_id)) FROM pragma_storage_info(?)",
                [table],
            )
            holds |= {block: f"table {table}" for (block,) in found.fetchall() if block is not None}
        found = cursor.execute("SELECT block_id FROM pragma_metadata_info()")
        holds |= {block: "the list of tables" for (block,) in found.fetchall()}
    for block in blocks:
        yield "the file's header" if block < 0 else holds.get(block, "an index, or nothing any more")
