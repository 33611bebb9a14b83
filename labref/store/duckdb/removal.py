"""Taking cells out of a store for good: which ones may go, and what stays of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import duckdb
import numpy as np
from numpy.typing import NDArray

from labref.failpoints import failpoint
from labref.store.duckdb import rows
from labref.store.duckdb.upkeep import tables_of_cells
from labref.store.text import from_column, from_nullable, to_column
from labref.words import LabelSource, Outcome

__all__ = ["Due", "due", "reason", "reason_of", "remove", "removed_digests", "removed_ids"]


@dataclass(frozen=True, slots=True)
class Due:
    """A cell that may go. why : "older than 400 days", or the like."""

    cell_id: str
    digest: str
    label: str
    label_source: LabelSource
    analyser: str | None
    why: str


def due(
    cursor: duckdb.DuckDBPyConnection, *, days: int, cells: int, at_least: int, reviewed: bool, limit: int
) -> list[Due]:
    """Cells that are too old or too many of their class and optics, at most `limit`, those first that are missed least.

    days : older ones may go; 0 for none. Age counts back from the newest cell, not from this computer's clock, which
    may be wrong;
    `at_least` of each class and optics stay however old they are. cells : so many of each class and optics stay; 0 for
    all.
    reviewed : whether reviewed cells may go as well, when all others of their class and optics have gone. A cell that
    other cells are linked with as duplicates stays until those have gone.
    """
    found = cursor.execute(
        """
        WITH ranked AS (
            SELECT cell_id, digest, label, label_source, analyser, added_at,
                   date_diff('second', added_at, max(added_at) OVER ()) / 86400.0 AS days,
                   row_number() OVER (
                       PARTITION BY label, analyser
                       ORDER BY label_source = 'reviewed' DESC, added_at DESC, cell_id
                   ) AS place
            FROM cell
        )
        SELECT cell_id, digest, label, label_source, analyser,
               CASE WHEN $cells > 0 AND place > $cells THEN 'more than ' || $cells || ' of its class and optics'
                    ELSE 'older than ' || $days || ' days' END
        FROM ranked
        WHERE (($cells > 0 AND place > $cells) OR ($days > 0 AND days > $days AND place > $at_least))
          AND ($reviewed OR label_source <> 'reviewed')
          AND cell_id NOT IN (SELECT duplicate_of FROM cell WHERE duplicate_of IS NOT NULL)
          AND cell_id NOT IN (SELECT duplicate_group FROM cell WHERE duplicate_group IS NOT NULL AND duplicate_group <> cell_id)
        ORDER BY label_source = 'reviewed', label_source = 'analyser', added_at, cell_id
        LIMIT $limit""",
        {"days": days, "cells": cells, "at_least": at_least, "reviewed": reviewed, "limit": limit},
    ).fetchall()
    return [
        Due(cell_id, digest, from_column(label), LabelSource(source), from_nullable(analyser), why)
        for cell_id, digest, label, source, analyser, why in found
    ]


def reason_of(cell_id: str, why: str) -> str:
    """What the ledger says of a file whose cell was removed."""
    return f"removed by the lab's retention: {why}; it was cell {cell_id}"


def remove(connection: duckdb.DuckDBPyConnection, cells: Sequence[Due]) -> None:
    """Remove cells, their embeddings and places, and that they were neighbours of others. Their files are from now on
    rejected, for a reason that says so; what they were before is in the history. Their digests stay, so that no file
    brings them back."""
    at = rows.now()
    ids = [cell.cell_id for cell in cells]
    listed = "cell_id IN (SELECT cell_id FROM going)"
    connection.execute(
        "CREATE OR REPLACE TEMP TABLE going AS SELECT unnest(?::VARCHAR[]) AS cell_id, unnest(?::VARCHAR[]) AS reason",
        [ids, [to_column(reason_of(cell.cell_id, cell.why)) for cell in cells]],
    )
    failpoint("retention.removed")
    connection.execute(
        "INSERT INTO removed_cell SELECT cell.cell_id, digest, label, label_source, slide, analyser, added_at, ?, reason "
        "FROM cell JOIN going USING (cell_id)",
        [at],
    )
    failpoint("retention.files")
    rows.keep_history(connection, listed, [], at)
    connection.execute(
        "UPDATE file SET outcome = ?, reason = going.reason, cell_id = NULL, duplicate_of = NULL, recorded_at = ? "
        "FROM going WHERE file.cell_id = going.cell_id",
        [str(Outcome.REJECTED), at],
    )
    connection.execute(
        "DELETE FROM resemblance WHERE verdict = 'neighbour' AND (cell IN (SELECT cell_id FROM going) "
        "OR other IN (SELECT cell_id FROM going))"
    )
    for table in (*tables_of_cells(connection), "cell"):
        failpoint("retention.cells")
        connection.execute(f"DELETE FROM {table} WHERE {listed}")
    connection.execute("DROP TABLE temp.going")


def removed_ids(cursor: duckdb.DuckDBPyConnection) -> NDArray[np.uint64]:
    """Ids of all cells that were removed, sorted: uint64[n]."""
    found = cursor.execute("SELECT ('0x' || cell_id)::UBIGINT AS id FROM removed_cell ORDER BY id").fetchnumpy()["id"]
    return np.asarray(found, np.uint64)


def removed_digests(cursor: duckdb.DuckDBPyConnection) -> list[str]:
    """Digests of all cells that were removed."""
    return [digest for (digest,) in cursor.execute("SELECT digest FROM removed_cell").fetchall()]


def reason(cursor: duckdb.DuckDBPyConnection, cell_id: str) -> str | None:
    """Why a cell was removed, in the words of the ledger; None where it was not."""
    row = cursor.execute("SELECT reason FROM removed_cell WHERE cell_id = ?", [cell_id]).fetchone()
    return None if row is None else from_column(row[0])
