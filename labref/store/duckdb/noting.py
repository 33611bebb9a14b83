"""Writing down, in the transaction in which it happens, which cells the shared store is to be told of: table
`outbox`, see `labref.store.duckdb.outbox`. Where the lab has no shared store, nothing is written."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Final

import duckdb

from labref.store.duckdb import rows, sequence

__all__ = ["BEGIN", "CELL", "END", "is_on", "note", "note_all", "refill"]

BEGIN: Final = "begin"
CELL: Final = "cell"
END: Final = "end"


def note(connection: duckdb.DuckDBPyConnection, ids: Sequence[str]) -> None:
    """Write down that something happened to these cells, in the transaction in which it did."""
    if not ids or not is_on(connection):
        return
    numbers = sequence.begin(connection)
    first = numbers.last + 1
    numbers.take(len(ids))
    connection.execute(
        "INSERT INTO outbox SELECT unnest(range($1, $2)), $3, unnest($4::VARCHAR[]), $5, $6",
        [first, numbers.last + 1, CELL, list(ids), secrets.token_hex(8), rows.now()],
    )
    sequence.keep(connection, numbers)


def note_all(connection: duckdb.DuckDBPyConnection) -> None:
    """The same of every cell."""
    if is_on(connection):
        _every_cell(connection, secrets.token_hex(8))


def refill(connection: duckdb.DuckDBPyConnection) -> None:
    """Let every cell be published again, and what else the shared store has of this lab go."""
    if not is_on(connection):
        return
    tag = secrets.token_hex(8)
    connection.execute("DELETE FROM outbox")
    _mark(connection, BEGIN, tag)
    _every_cell(connection, tag)
    _mark(connection, END, tag)


def _mark(connection: duckdb.DuckDBPyConnection, kind: str, tag: str) -> None:
    numbers = sequence.begin(connection)
    connection.execute("INSERT INTO outbox VALUES (?, ?, NULL, ?, ?)", [numbers.take(), kind, tag, rows.now()])
    sequence.keep(connection, numbers)


def _every_cell(connection: duckdb.DuckDBPyConnection, tag: str) -> None:
    numbers = sequence.begin(connection)
    row = connection.execute(
        "INSERT INTO outbox SELECT $1 + row_number() OVER (ORDER BY number), $2, cell_id, $3, $4 FROM cell",
        [numbers.last, CELL, tag, rows.now()],
    ).fetchone()
    numbers.take(0 if row is None else int(row[0]))
    sequence.keep(connection, numbers)


def is_on(cursor: duckdb.DuckDBPyConnection) -> bool:
    """Whether the lab has a shared store."""
    row = cursor.execute("SELECT is_on FROM publication").fetchone()
    assert row is not None
    return bool(row[0])
