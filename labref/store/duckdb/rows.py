"""Rows of the tables and the values they stand for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from datetime import UTC, datetime
from typing import Any

import duckdb
import numpy as np
from numpy.typing import NDArray

from labref.store.duckdb import sequence
from labref.store.duckdb.vocabulary import word
from labref.store.recording import CellState, FileRow
from labref.store.text import from_column, from_nullable, to_column
from labref.store.values import Cell, FileState, LedgerRow
from labref.words import REMOVED, LabelSource, Outcome, SlideId

__all__ = [
    "CELL",
    "FILE",
    "NEIGHBOURS",
    "carried",
    "cells",
    "cells_of_files",
    "cells_of_slide",
    "file_rows",
    "files_like",
    "keep_history",
    "latents",
    "ledger",
    "look_up",
    "now",
    "path_labels",
    "recent",
    "slide_id",
    "states",
    "states_of_files",
]

CELL = {
    "cell_id": "VARCHAR",
    "digest": "VARCHAR",
    "path": "VARCHAR",
    "size_bytes": "BIGINT",
    "width": "INTEGER",
    "height": "INTEGER",
    "label": "VARCHAR",
    "label_source": "VARCHAR",
    "slide": "VARCHAR",
    "analyser": "VARCHAR",
    "captured_at": "TIMESTAMP",
    "duplicate_of": "VARCHAR",
    "duplicate_verdict": "VARCHAR",
    "duplicate_group": "VARCHAR",
    "added_at": "TIMESTAMP",
    "folder": "VARCHAR",
}
"""Columns of table `cell` and their types, in the order of `Cell`'s fields."""
FILE = {
    "path": "VARCHAR",
    "size_bytes": "BIGINT",
    "mtime_ns": "BIGINT",
    "outcome": "VARCHAR",
    "reason": "VARCHAR",
    "cell_id": "VARCHAR",
    "label": "VARCHAR",
    "label_source": "VARCHAR",
    "slide": "VARCHAR",
    "duplicate_of": "VARCHAR",
    "recorded_at": "TIMESTAMP",
    "ctime_ns": "BIGINT",
    "inode": "UBIGINT",
    "folder": "VARCHAR",
}
"""Columns of table `file` and their types, in the order of `FileRow`'s fields."""
_NEIGHBOURS = """
    SELECT cell, other FROM (
        SELECT cell, other, arg_max(verdict, number) AS verdict FROM ({alike}) GROUP BY cell, other
    ) ANTI JOIN (
        SELECT cell, other FROM duplicate_decision GROUP BY cell, other HAVING last(decision ORDER BY number) <> 'undone'
    ) decided USING (cell, other) WHERE verdict = 'neighbour'"""
NEIGHBOURS = _NEIGHBOURS.format(alike="SELECT cell, other, verdict, number FROM resemblance")
"""Query for the pairs of cells that labref called neighbours, and that no person called anything else: cell, other."""
_NEIGHBOURS_OF = _NEIGHBOURS.format(
    alike="""
        SELECT cell, other, verdict, number FROM resemblance r SEMI JOIN asked ON asked.id = r.cell
        UNION SELECT cell, other, verdict, number FROM resemblance r SEMI JOIN asked ON asked.id = r.other"""
)
_AT_ONCE = 256
_RECENT = 2048  # numbers among which the last cells are looked for first
_FEW = 1024  # paths that are looked up by their key
_ROWS = 16_384  # of the ledger, read at once


def now() -> datetime:
    """This moment as the database keeps it: UTC without a zone."""
    return datetime.now(UTC).replace(tzinfo=None)


def look_up(
    cursor: duckdb.DuckDBPyConnection, table: str, columns: Sequence[str], key: str, values: Sequence[str]
) -> Iterator[tuple[Any, ...]]:
    """Rows of a table by its primary key; keys it does not have are left out.

    Constants in IN go by the key's index, 3 ms for a hundred of a million rows; a join would read the whole column.
    """
    for start in range(0, len(values), _AT_ONCE):
        part = values[start : start + _AT_ONCE]
        yield from cursor.execute(
            f"SELECT {', '.join(columns)} FROM {table} WHERE {key} IN ({', '.join('?' * len(part))})", part
        ).fetchall()


def latents(cursor: duckdb.DuckDBPyConnection, table: str, ids: Sequence[str]) -> dict[str, NDArray[np.float32]]:
    """Latents float32[L] of a bundle's table by cell; cells that it does not have are left out."""
    found: dict[str, NDArray[np.float32]] = {}
    for start in range(0, len(ids), _AT_ONCE):
        part = ids[start : start + _AT_ONCE]
        # as NumPy's arrays: Python's own numbers would take five times longer
        columns = cursor.execute(
            f"SELECT cell_id, latent FROM {table} WHERE cell_id IN ({', '.join('?' * len(part))})", part
        ).fetchnumpy()
        for cell_id, latent in zip(columns["cell_id"].tolist(), columns["latent"], strict=True):
            found[cell_id] = np.asarray(latent, np.float32)
    return found


def carried(
    cursor: duckdb.DuckDBPyConnection, *columns: str
) -> tuple[NDArray[np.uint64], NDArray[np.uint32], list[tuple[str, ...]]]:
    """What all cells have in some columns, where none is NULL: ids uint64[n], where in the list that is which each has,
    uint32[n], and the list. The caller lets nobody write meanwhile.

    A number a cell: making Python's texts of a million rows takes twice as long.
    """
    names = [f"v{i}" for i in range(len(columns))]
    named = ", ".join(f"{column} AS {name}" for column, name in zip(columns, names, strict=True))
    values = cursor.execute(f"SELECT DISTINCT {named} FROM cell ORDER BY ALL").fetchall()
    given = ", ".join(f"unnest(${i}::VARCHAR[]) AS {name}" for i, name in enumerate(names, 1))
    found = cursor.execute(
        f"SELECT id, code FROM (SELECT ('0x' || cell_id)::UBIGINT AS id, {named} FROM cell) "
        f"JOIN (SELECT {given}, unnest(range({len(values)}))::UINTEGER AS code) USING ({', '.join(names)})",
        [[value[i] for value in values] for i in range(len(columns))],
    ).fetchnumpy()
    return np.asarray(found["id"], np.uint64), np.asarray(found["code"], np.uint32), values


def cells(cursor: duckdb.DuckDBPyConnection, ids: Sequence[str]) -> dict[str, Cell]:
    """Cells by id."""
    return {row[0]: _cell(row) for row in look_up(cursor, "cell", list(CELL), "cell_id", ids)}


def slide_id(slide: str | None, folder: str | None) -> SlideId | None:
    """The slide that two columns name; None where they name none."""
    return None if slide is None else SlideId(from_column(folder or ""), from_column(slide))


def cells_of_slide(cursor: duckdb.DuckDBPyConnection, slide: SlideId, first: int, last: int) -> dict[str, Cell]:
    """The cells of a slide by id. first, last : numbers between which they came: DuckDB passes over what is not between
    them, and takes a fifth of the time of a look at the key for each."""
    found = cursor.execute(
        f"SELECT {', '.join(CELL)} FROM cell WHERE number >= ? AND number <= ? AND slide = ? AND coalesce(folder, '') = ?",
        [first, last, to_column(slide.name), to_column(slide.folder)],
    ).fetchall()
    return {row[0]: _cell(row) for row in found}


def recent(cursor: duckdb.DuckDBPyConnection, after: int, before: int | None, limit: int) -> list[tuple[int, Cell]]:
    """Numbers and cells, the last first; see `Store.recent`."""
    end = sequence.begin(cursor).last + 1
    end = end if before is None else min(before, end)
    reach = _RECENT
    while True:
        # DuckDB skips the blocks of lower numbers; sorting all cells for the last few takes a hundred times longer
        found = cursor.execute(
            f"SELECT {', '.join(CELL)}, number FROM cell WHERE number > ? AND number < ? ORDER BY number DESC LIMIT ?",
            [max(after, end - reach), end, limit],
        ).fetchall()
        if len(found) >= limit or end - reach <= after:
            return [(row[-1], _cell(row[:-1])) for row in found]
        reach *= 16


def states(cursor: duckdb.DuckDBPyConnection, ids: Sequence[str]) -> dict[str, CellState]:
    """Of cells, what recording must know, by id."""
    columns = ["cell_id", "digest", "label", "label_source", "slide", "folder", "duplicate_group"]
    return {
        cell_id: CellState(
            digest,
            from_column(label),
            word(LabelSource, source, f"the label source of cell {cell_id}"),
            slide_id(slide, folder),
            group,
        )
        for cell_id, digest, label, source, slide, folder, group in look_up(cursor, "cell", columns, "cell_id", ids)
    }


def file_rows(cursor: duckdb.DuckDBPyConnection, paths: Sequence[str]) -> dict[str, FileRow]:
    """Rows of the ledger by path."""
    found = look_up(cursor, "file", list(FILE), "path", [to_column(path) for path in paths])
    return {row.path: row for row in map(_file_row, found)}


def cells_of_files(cursor: duckdb.DuckDBPyConnection, paths: Sequence[str]) -> dict[str, str | None]:
    """The cell of each of these files, by path; None for one without a cell."""
    return {from_column(path): cell_id for path, cell_id in _of_files(cursor, paths, ["path", "cell_id"])}


def states_of_files(cursor: duckdb.DuckDBPyConnection, paths: Sequence[str]) -> dict[str, FileState]:
    """How each of these files looked when it was read, by path."""
    columns = ["path", "size_bytes", "mtime_ns", "outcome", "ctime_ns", "inode"]
    return {from_column(path): FileState(*state) for path, *state in _of_files(cursor, paths, columns)}


def _of_files(
    cursor: duckdb.DuckDBPyConnection, paths: Sequence[str], columns: Sequence[str]
) -> Sequence[tuple[Any, ...]]:
    """These columns of the ledger's rows of some files."""
    wanted = [to_column(path) for path in paths]
    if len(wanted) <= _FEW:
        return list(look_up(cursor, "file", columns, "path", wanted))
    # one pass over all paths, instead of a look at the key for each
    return cursor.execute(
        f"SELECT {', '.join(columns)} FROM file SEMI JOIN (SELECT unnest(?::VARCHAR[]) AS path) USING (path)", [wanted]
    ).fetchall()


def files_like(
    cursor: duckdb.DuckDBPyConnection, paths: Sequence[str], *, ignore_case: bool
) -> dict[str, dict[str, str | None]]:
    """Files whose paths differ from one of these in Unicode form, or case, only; see `Store.files_like`."""
    folded = "nfc_normalize(lower(nfc_normalize({})))" if ignore_case else "nfc_normalize({})"
    rows = cursor.execute(
        f"SELECT asked.path, f.path, f.cell_id FROM file f JOIN (SELECT path, {folded.format('path')} AS folded FROM "
        f"(SELECT unnest(?::VARCHAR[]) AS path)) asked ON {folded.format('f.path')} = asked.folded "
        # bytes that are no UTF-8 are kept with a NUL, at which DuckDB's function ends: such names have no other form
        "WHERE NOT contains(f.path, ?)",
        [[path for path in map(to_column, paths) if "\0" not in path], "\0"],
    ).fetchall()
    found: dict[str, dict[str, str | None]] = {}
    for asked, path, cell_id in rows:
        found.setdefault(from_column(asked), {})[from_column(path)] = cell_id
    return found


def keep_history(connection: duckdb.DuckDBPyConnection, condition: str, values: Sequence[Any], at: datetime) -> None:
    """Write the rows of the ledger for which this SQL holds, with `values` for its parameters, to the history of their
    paths: they are about to be replaced."""
    names = ", ".join(FILE)
    numbers = sequence.begin(connection)
    row = connection.execute(
        f"INSERT INTO file_history ({names}, replaced_at, number) SELECT {names}, ?, ? + row_number() OVER (ORDER BY path) "
        f"FROM file WHERE {condition}",
        [at, numbers.last, *values],
    ).fetchone()
    numbers.take(0 if row is None else int(row[0]))
    sequence.keep(connection, numbers)


def ledger(
    cursor: duckdb.DuckDBPyConnection,
    table: str,
    where: dict[str, str],
    limit: int | None = None,
    *,
    removed: bool | None = None,
) -> Iterator[LedgerRow]:
    """Rows of `file` or `file_history` whose columns have these values, oldest first; of more than limit the newest.
    removed : only those of cells that were removed, or only the others."""
    # history is read in the order it was written, whatever the clock did
    order = "f.number" if table == "file_history" else "f.recorded_at, f.path"
    condition = " AND ".join(["TRUE", *(f"f.{column} = ?" for column in where)])
    if removed is not None:
        condition += f" AND {'' if removed else 'NOT '}starts_with(coalesce(f.reason, ''), '{REMOVED}')"
    query = f"""
        SELECT f.path, f.outcome, f.reason, f.cell_id, coalesce(f.label, c.label),
               CASE WHEN f.label IS NULL THEN c.label_source ELSE f.label_source END,
               coalesce(f.slide, c.slide), f.recorded_at, f.duplicate_of, said.classes
        FROM {table} f LEFT JOIN cell c USING (cell_id) LEFT JOIN (
            SELECT cell_id, list_sort(list(DISTINCT label)) AS classes FROM file
            WHERE label IS NOT NULL GROUP BY cell_id HAVING count(DISTINCT label) > 1
        ) said USING (cell_id) WHERE {condition}"""
    if limit is None:
        query += f" ORDER BY {order}"
    else:
        query = f"FROM ({query} ORDER BY f.recorded_at DESC, f.path DESC LIMIT {limit:d}) f ORDER BY {order}"
    cursor.execute(query, list(where.values()))
    meanwhile = cursor.cursor()
    while rows := cursor.fetchmany(_ROWS):
        beside = _neighbours(meanwhile, {row[3] for row in rows if row[3] is not None})
        for path, outcome, reason, cell_id, label, source, slide, at, duplicate_of, classes in rows:
            yield LedgerRow(
                from_column(path),
                word(Outcome, outcome, "the outcome of a file"),
                from_nullable(reason),
                cell_id,
                from_nullable(label),
                source,
                from_nullable(slide),
                at.replace(tzinfo=UTC),
                duplicate_of,
                None if classes is None else tuple(map(from_column, classes)),
                tuple(sorted(beside.get(cell_id, ()))),
            )


def _neighbours(cursor: duckdb.DuckDBPyConnection, ids: Set[str]) -> dict[str, set[str]]:
    """The neighbours of cells in one field, by cell; those that have none are left out."""
    pairs = cursor.execute(f"WITH asked AS (SELECT unnest(?::VARCHAR[]) AS id) {_NEIGHBOURS_OF}", [list(ids)])
    found: dict[str, set[str]] = {}
    for cell, other in pairs.fetchall():
        found.setdefault(cell, set()).add(other)
        found.setdefault(other, set()).add(cell)
    return found


def path_labels(cursor: duckdb.DuckDBPyConnection, cell_id: str) -> list[dict[str, str | None]]:
    """What each file of a cell says itself, oldest first; None where it says nothing."""
    found = cursor.execute(
        "SELECT path, label, label_source FROM file WHERE cell_id = ? ORDER BY recorded_at, path", [cell_id]
    ).fetchall()
    return [
        {"path": from_column(path), "label": from_nullable(label), "label_source": source}
        for path, label, source in found
    ]


def _cell(row: Sequence[Any]) -> Cell:
    cell_id, digest, path, size, width, height, label, source, slide, analyser, captured, of, verdict, group, *more = (
        row
    )
    added, folder = more
    return Cell(
        cell_id,
        digest,
        from_column(path),
        size,
        width,
        height,
        from_column(label),
        word(LabelSource, source, f"the label source of cell {cell_id}"),
        from_nullable(slide),
        from_nullable(analyser),
        None if captured is None else captured.replace(tzinfo=UTC),
        of,
        None if verdict is None else word(Outcome, verdict, f"the verdict on cell {cell_id}"),
        group,
        added.replace(tzinfo=UTC),
        from_column(folder or ""),
    )


def _file_row(row: Sequence[Any]) -> FileRow:
    value = dict(zip(FILE, row, strict=True))
    for column in ("path", "reason", "label", "slide"):
        value[column] = from_nullable(value[column])
    value["folder"] = from_column(value["folder"] or "")
    value["outcome"] = word(Outcome, value["outcome"], "the outcome of a file")
    return FileRow(**value)
