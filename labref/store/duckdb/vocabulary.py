"""Columns that hold one of a few words: who gave a label, what became of a file, what somebody may do.

labref writes no other word there; a hand, or a damaged disk, may. Whoever reads the row hears which word stands where.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from enum import StrEnum
from typing import Final, TypeVar

import duckdb

from labref.errors import StoreError
from labref.roles import Role
from labref.words import LabelSource, Outcome, Reason, Verdict

__all__ = ["Decision", "How", "KeyState", "unknown", "word"]

_Word = TypeVar("_Word", bound=StrEnum)


class Decision(StrEnum):
    """What a person said of a pair."""

    CONFIRMED = "confirmed"
    REJECTED = "rejected"
    UNDONE = "undone"


class How(StrEnum):
    """Why a bundle came in. `before`: when labref knew no signatures; `dropped`: it went again."""

    SIGNED = "signed"
    UNSIGNED = "unsigned"
    BEFORE = "before"
    DROPPED = "dropped"


class KeyState(StrEnum):
    """What a lab thinks of a key."""

    TRUSTED = "trusted"
    REPLACED = "replaced"
    REVOKED = "revoked"


_COLUMNS: Final[tuple[tuple[str, str, Collection[str]], ...]] = (
    ("file", "label_source", tuple(LabelSource)),
    ("file_history", "label_source", tuple(LabelSource)),
    ("file_history", "outcome", tuple(Outcome)),
    ("label_change", "label_source", tuple(LabelSource)),
    ("label_change", "previous_source", tuple(LabelSource)),
    ("trash_cell", "label_source", tuple(LabelSource)),
    ("resemblance", "verdict", tuple(Verdict)),
    ("duplicate_decision", "decision", tuple(Decision)),
    ("person", "role", tuple(Role)),
    ("signing_key", "state", tuple(KeyState)),
    ("admission", "how", tuple(How)),
    ("quality", "reason", Reason.__members__),
)
"""Table, column and its words; those of `cell`, and the outcome in `file`, have checks of their own."""


def word(kind: type[_Word], stored: str, where: str, *, by_name: bool = False) -> _Word:
    """The word that a column holds. where : the column and the row, for people.  by_name : the column holds names of
    `kind`, not values.

    Raises StoreError where it is none of `kind`.
    """
    try:
        return kind[stored] if by_name else kind(stored)
    except (KeyError, ValueError):
        raise StoreError(
            f"the store holds {stored!r} as {where}, which is none of {', '.join(kind.__members__ if by_name else kind)}: something other than labref wrote it, or it "
            "is damaged. `labref ledger --check --quick` names all such rows; restore a backup (`labref store restore`)."
        ) from None


def unknown(cursor: duckdb.DuckDBPyConnection) -> Iterator[str]:
    """Each word that a column holds and labref does not know, as `table.column: 'word'`."""
    for table, column, known in _COLUMNS:
        found = cursor.execute(
            f"SELECT DISTINCT {column} FROM {table} WHERE {column} NOT IN (SELECT unnest(?::VARCHAR[])) ORDER BY 1",
            [list(map(str, known))],
        ).fetchall()
        for (stored,) in found:
            yield f"{table}.{column}: {stored!r}"
