"""The order in which rows came: each gets a number larger than all before it, whatever the clock did.

Table `sequence`: one row, the largest number given so far, in whatever table. It is written in the transaction that
writes the rows, so a crash takes back both or none. It never falls, so no number is given again after its row was
deleted. A row that describes a cell (`measure`, `landmark`) has the number of the cell.
"""

from __future__ import annotations

import duckdb

from labref.store.recording import Numbers

__all__ = ["begin", "keep"]


def begin(connection: duckdb.DuckDBPyConnection) -> Numbers:
    """Numbers for the rows of one transaction. Nobody else may write until they are kept."""
    row = connection.execute("SELECT last_number FROM sequence").fetchone()
    assert row is not None
    return Numbers(int(row[0]))


def keep(connection: duckdb.DuckDBPyConnection, numbers: Numbers) -> None:
    """Write down which numbers were given, in the transaction that writes their rows."""
    if numbers.given:
        connection.execute("UPDATE sequence SET last_number = ?", [numbers.last])
