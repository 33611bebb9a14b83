"""Taking cells out of a store: which ones may go, how many in a day, and what stays of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import duckdb
import numpy as np
from numpy.typing import NDArray

from labref.failpoints import failpoint
from labref.store.duckdb import clock, rows, sequence, trash
from labref.store.duckdb.noting import note
from labref.store.duckdb.upkeep import tables_of_cells
from labref.store.duckdb.vocabulary import word
from labref.store.text import from_column, from_nullable, to_column
from labref.words import REMOVED, LabelSource, Outcome

__all__ = [
    "Due",
    "allowance",
    "due",
    "reason",
    "remove",
    "removed_digests",
    "removed_ids",
    "take_out",
]

_DAY: Final = 72_000.0  # seconds; passes a day apart come a little early, too


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

    days : older ones may go; 0 for none. Age is the time that the lab has seen pass, back from the newest cell; see
    `labref.store.duckdb.clock`. `at_least` of each class and optics stay however old they are. cells : so many of each
    class and optics stay, those that came last; 0 for all. A cell that was brought back came then.
    reviewed : whether reviewed cells may go as well, when all others of their class and optics have gone. A cell that
    other cells are linked with as duplicates stays until those have gone.
    """
    found = cursor.execute(
        f"""
        WITH seen AS ({clock.SEEN}), back AS (
            SELECT cell_id, max(number) AS number FROM restored_cell GROUP BY cell_id
        ), came AS (
            SELECT cell_id, digest, label, label_source, analyser, coalesce(back.number, cell.number) AS number,
                   CASE WHEN back.number IS NULL THEN added_at END AS at
            FROM cell LEFT JOIN back USING (cell_id)
        ), aged AS (
            SELECT came.*, {clock.age("came.at")} AS age FROM came ASOF LEFT JOIN seen ON came.number >= seen.number
        ), ranked AS (
            SELECT *, (age - first_value(age) OVER (ORDER BY number DESC)) / 86400.0 AS days,
                   row_number() OVER (
                       PARTITION BY label, analyser ORDER BY label_source = 'reviewed' DESC, number DESC
                   ) AS place
            FROM aged
        )
        SELECT cell_id, digest, label, label_source, analyser,
               CASE WHEN $cells > 0 AND place > $cells THEN 'more than ' || $cells || ' of its class and optics'
                    ELSE 'older than ' || $days || ' days' END
        FROM ranked
        WHERE (($cells > 0 AND place > $cells) OR ($days > 0 AND days > $days AND place > $at_least))
          AND ($reviewed OR label_source <> 'reviewed')
          AND cell_id NOT IN (SELECT duplicate_of FROM cell WHERE duplicate_of IS NOT NULL)
          AND cell_id NOT IN (SELECT duplicate_group FROM cell WHERE duplicate_group IS NOT NULL AND duplicate_group <> cell_id)
        ORDER BY label_source = 'reviewed', label_source = 'analyser', number
        LIMIT $limit""",
        {"days": days, "cells": cells, "at_least": at_least, "reviewed": reviewed, "limit": limit} | clock.values(days),
    ).fetchall()
    return [
        Due(
            cell_id,
            digest,
            from_column(label),
            word(LabelSource, source, f"the label source of cell {cell_id}"),
            from_nullable(analyser),
            why,
        )
        for cell_id, digest, label, source, analyser, why in found
    ]


def allowance(cursor: duckdb.DuckDBPyConnection, percent: float) -> int:
    """How many cells may go now, where so many per cent of all may in a day; at least one in a day. What was removed
    in the last day counts whether or not it is still in the trash."""
    row = cursor.execute(
        f"""
        WITH seen AS ({clock.SEEN})
        SELECT (SELECT count(*) FROM cell), count(*) FROM removed_cell r ASOF LEFT JOIN seen ON r.number >= seen.number
        WHERE r.number IS NOT NULL AND {clock.age("r.removed_at")} < $day""",
        clock.values(1) | {"day": _DAY},
    ).fetchone()
    cells, lately = (0, 0) if row is None else map(int, row)
    most = max(1, int((cells + lately) * percent / 100))
    return max(0, most - int(lately))


def remove(connection: duckdb.DuckDBPyConnection, cells: Sequence[Due]) -> int:
    """Remove cells by the lab's retention; see `take_out`. A cell that was reviewed since it was found due stays, and
    so does one that others were linked with since. Returns how many were removed."""
    ids = [cell.cell_id for cell in cells]
    found = connection.execute(
        "SELECT cell_id FROM cell WHERE label_source = 'reviewed' AND cell_id IN (SELECT unnest(?::VARCHAR[]))",
        [[cell.cell_id for cell in cells if cell.label_source != LabelSource.REVIEWED]],
    ).fetchall()
    stay = {cell_id for (cell_id,) in found} | set(trash.linked_with(connection, ids).values())
    return take_out(
        connection,
        {cell.cell_id: f"{REMOVED}the lab's retention: {cell.why}" for cell in cells if cell.cell_id not in stay},
    )


def take_out(connection: duckdb.DuckDBPyConnection, cells: Mapping[str, str]) -> int:
    """Remove cells, their embeddings and places, and that they were neighbours of others; all of it is in the trash
    from then on. Their files are from now on rejected, for a reason that says so; what they were before is in the
    history. Their digests stay, so that no file brings them back. Returns how many were removed.

    cells : what the ledger says of each, by id; the id is added. No cell that stays is linked with one of them.
    """
    at = rows.now()
    ids = list(cells)
    listed = "cell_id IN (SELECT cell_id FROM going)"
    connection.execute(
        "CREATE OR REPLACE TEMP TABLE going AS SELECT unnest(?::VARCHAR[]) AS cell_id, unnest(?::VARCHAR[]) AS reason",
        [ids, [to_column(f"{said}; it was cell {cell_id}") for cell_id, said in cells.items()]],
    )
    failpoint("retention.removed")
    numbers = sequence.begin(connection)
    connection.execute(
        "INSERT INTO removed_cell (cell_id, digest, label, label_source, slide, analyser, added_at, removed_at, reason, number) "
        "SELECT cell.cell_id, digest, label, label_source, slide, analyser, added_at, ?, reason, "
        "? + row_number() OVER (ORDER BY cell.number) FROM cell JOIN going USING (cell_id)",
        [at, numbers.last],
    )
    numbers.take(len(ids))
    sequence.keep(connection, numbers)
    note(connection, ids)
    trash.keep(connection)
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
    return len(cells)


def removed_ids(cursor: duckdb.DuckDBPyConnection) -> NDArray[np.uint64]:
    """Ids of all cells that were removed, sorted: uint64[n]."""
    found = cursor.execute("SELECT ('0x' || cell_id)::UBIGINT AS id FROM removed_cell ORDER BY id").fetchnumpy()["id"]
    return np.asarray(found, np.uint64)


def removed_digests(cursor: duckdb.DuckDBPyConnection) -> list[str]:
    """Digests of all cells that were removed for good: those in the trash are not among them."""
    found = cursor.execute("SELECT digest FROM removed_cell ANTI JOIN trash_cell USING (cell_id)").fetchall()
    return [digest for (digest,) in found]


def reason(cursor: duckdb.DuckDBPyConnection, cell_id: str) -> str | None:
    """Why a cell was removed, in the words of the ledger; None where it was not."""
    row = cursor.execute("SELECT reason FROM removed_cell WHERE cell_id = ?", [cell_id]).fetchone()
    return None if row is None else from_column(row[0])
