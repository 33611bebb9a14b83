"""Slide, analyser and time of every cell, read from table `cell` into memory (`labref.store.memory.origins`)."""

from __future__ import annotations

import duckdb
import numpy as np

from labref.store.memory.origins import NOTHING, Origins
from labref.store.text import from_column, to_column

__all__ = ["read_on"]


def read_on(cursor: duckdb.DuckDBPyConnection, before: Origins) -> Origins:
    """What `before` has and the cells that came since: `before` itself where there are none. A second for a million
    cells, a millisecond for few."""
    row = cursor.execute("SELECT count(*), max(number) FROM cell WHERE number > ?", [before.last]).fetchone()
    if row is None or not row[0]:
        return before
    first, last = before.last, int(row[1])
    names = {}
    for column, known in (("slide", before.slide_names), ("analyser", before.analyser_names)):
        found = cursor.execute(
            f"SELECT DISTINCT {column} FROM cell WHERE number > ? AND number <= ? AND {column} IS NOT NULL ORDER BY {column}",
            [first, last],
        ).fetchall()
        names[column] = tuple(dict.fromkeys([*known, *(from_column(name) for (name,) in found)]))
    columns = cursor.execute(
        "SELECT ('0x' || cell_id)::UBIGINT AS id, coalesce(s.code, -1)::INTEGER AS slide, "
        "coalesce(a.code, -1)::INTEGER AS analyser, coalesce(epoch(captured_at)::BIGINT, $5) AS seconds FROM cell "
        "LEFT JOIN (SELECT unnest($1::VARCHAR[]) AS name, unnest(range(len($1::VARCHAR[]))) AS code) s ON s.name = cell.slide "
        "LEFT JOIN (SELECT unnest($2::VARCHAR[]) AS name, unnest(range(len($2::VARCHAR[]))) AS code) a ON a.name = cell.analyser "
        "WHERE number > $3 AND number <= $4",
        [
            [to_column(name) for name in names["slide"]],
            [to_column(name) for name in names["analyser"]],
            first,
            last,
            NOTHING,
        ],
    ).fetchnumpy()
    return before.joined(
        np.asarray(columns["id"], np.uint64),
        np.asarray(columns["slide"], np.int32),
        np.asarray(columns["analyser"], np.int32),
        np.asarray(columns["seconds"], np.int64),
        names["slide"],
        names["analyser"],
        last,
    )
