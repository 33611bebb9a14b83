"""Whether DuckDB's log of the last changes (`store.duckdb.wal`) is whole, before DuckDB replays it.

DuckDB keeps a checksum of each entry, but not of an entry's length. Where a length is damaged, it takes the rest for an
entry that was being written when the power went, and leaves it out without a word: changes that were confirmed, such as
labels, would be gone. A log that was cut by a crash ends in the middle of an entry; one that ends with the mark of a
finished transaction, and whose entries do not lead there, is damaged.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Final

import duckdb

from labref.errors import StoreError
from labref.files import read_file

__all__ = ["check_log"]

_KNOWN: Final = ("2.0.",)
"""Versions of DuckDB whose log was looked at; a test does so for the one that is installed."""
_HEAD: Final = struct.Struct("<QQ")  # of an entry: its length, and its checksum
_BEGINNING: Final = bytes.fromhex("640062650002660010")  # of the log: its version, and that an id of 16 bytes follows
_FINISHED: Final = bytes.fromhex("640064ffff")  # the entry that ends a transaction
_FINISHED_CHECKSUM: Final = bytes.fromhex("e7fe7d722fed3d5e")


def check_log(store: Path) -> None:
    """Raise `StoreError` where the log of the store in the file `store` is damaged in a way that DuckDB does not
    see."""
    log = store.with_name(f"{store.name}.wal")
    if not duckdb.__version__.startswith(_KNOWN):
        return
    try:
        data = read_file(log)
    except OSError:  # there is none; what else is wrong with it, DuckDB says
        return
    first, end = _first_entry(data), len(data)
    whole = data[end - 5 :] == _FINISHED or data[end - 13 : end - 5] == _FINISHED_CHECKSUM
    if first is None or not whole or _leads_to_the_end(data, first):
        return
    raise StoreError(
        f"{log} is damaged: the changes made last, such as labels that were given just before the computer went down, would be left out. "
        f"Restore a backup of the lab (`labref store restore`). To go on without these changes, move {log.name} to another folder."
    )


def _first_entry(data: bytes) -> int | None:
    """Where the first entry begins: after the id, which is written as numbers of one or two bytes, and the count of
    checkpoints. None where the log begins otherwise."""
    at = len(_BEGINNING)
    if data[:at] != _BEGINNING:
        return None
    for _ in range(16):
        at = _after_number(data, at)
    if data[at : at + 2] != b"\x67\x00":
        return None
    at = _after_number(data, at + 2)
    return at + 2 if data[at : at + 2] == b"\xff\xff" else None


def _after_number(data: bytes, at: int) -> int:
    """The place after a number whose bytes but the last have their highest bit set (LEB128)."""
    while at < len(data) and data[at] & 0x80:
        at += 1
    return at + 1


def _leads_to_the_end(data: bytes, at: int) -> bool:
    """Whether entries follow one another from here to the end."""
    while at + _HEAD.size < len(data):
        at += _HEAD.size + _HEAD.unpack_from(data, at)[0]
    return at == len(data)
