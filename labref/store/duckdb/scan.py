"""Latents straight from DuckDB: read in blocks for the index, or searched once where no index is worth building."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import duckdb
import numpy as np
from numpy.typing import NDArray

from labref.store.memory import distances

__all__ = ["blocks", "nearest"]

_ID = "('0x' || cell_id)::UBIGINT AS id"


def blocks(
    cursor: duckdb.DuckDBPyConnection, table: str, latent_size: int, rows: int
) -> Iterator[tuple[NDArray[np.uint64], NDArray[np.float32]]]:
    """All cells of an embedding table as of one moment, in the order they lie there: ids uint64[n] and latents
    float32[n, L], n <= rows."""
    # a column a number: reading arrays makes a Python object of each, five times slower
    numbers = ", ".join(f"latent[{i}] AS l{i}" for i in range(1, latent_size + 1))
    cursor.begin()  # all of one moment: rows that are deleted meanwhile would let others move up
    try:
        # rowid is where a row lies, so a range of them is read without looking at the rest; it says nothing of order
        last = cursor.execute(f"SELECT max(rowid) FROM {table}").fetchone()
        for start in range(0, (last[0] if last and last[0] is not None else -1) + 1, rows):
            found = cursor.execute(
                f"SELECT {_ID}, {numbers} FROM {table} WHERE rowid BETWEEN ? AND ?", [start, start + rows - 1]
            ).fetchnumpy()
            ids = np.asarray(found.pop("id"), np.uint64)
            latents = np.empty((len(ids), latent_size), np.float32)
            for i, column in enumerate(found.values()):
                latents[:, i] = column
            yield ids, latents
    finally:
        cursor.rollback()


def nearest(
    cursor: duckdb.DuckDBPyConnection,
    table: str,
    query: NDArray[np.float32],
    k: int,
    condition: str = "TRUE",
    values: Mapping[str, str | None] | None = None,
) -> tuple[NDArray[np.uint64], NDArray[np.float64]]:
    """The k nearest cells to query float32[L]: ids uint64[k] and distances float64[k], as `Index.nearest` gives them.

    condition : only cells for which this SQL holds, with `values` for its parameters.

    DuckDB's distances are float32 and only choose candidates: the first scan takes a few more than k; where rounding
    or ties could hide another beyond them, a second takes all that could be as near as the k-th.
    """
    size = len(query)
    away = f"array_distance(latent, $query::FLOAT[{size}])"
    given: dict[str, object] = {"query": query.tolist(), **(values or {})}
    rows = cursor.execute(
        f"SELECT {_ID}, latent, {away} AS away FROM {table} WHERE {condition} ORDER BY away LIMIT {k + max(16, k // 2)}",
        given,
    ).fetchall()
    ids, found = _exactly(rows, query)
    if len(found) > k:
        kth = float(np.partition(found, k - 1)[k - 1])
        # sums of positive terms: a relative error of at most about size / 2 units, doubled twice over for safety
        reach = float(np.sqrt(kth * size)) * (1 + (size + 16) * 2.0**-22) + 1e-17
        if rows[-1][2] <= reach:
            rows = cursor.execute(
                f"SELECT {_ID}, latent FROM {table} WHERE {away} <= $reach::DOUBLE AND {condition}",
                given | {"reach": reach},
            ).fetchall()
            ids, found = _exactly(rows, query)
    nearest = distances.order(found, ids, k)
    return ids[nearest], found[nearest]


def _exactly(
    rows: list[tuple[object, ...]], query: NDArray[np.float32]
) -> tuple[NDArray[np.uint64], NDArray[np.float64]]:
    ids = np.array([row[0] for row in rows], np.uint64)
    latents = np.array([row[1] for row in rows], np.float32).reshape(len(rows), len(query))
    return ids, distances.exact(latents, query)
