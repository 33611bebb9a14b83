"""Whether a store agrees with itself, and how what does not is put right. Everything here is inside the caller's
transaction."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import duckdb

from labref.errors import StoreError
from labref.failpoints import failpoint
from labref.store.duckdb import bundles, rows, vocabulary
from labref.store.memory import distances
from labref.store.text import from_column, to_column
from labref.words import MEASURES, LabelSource, Outcome, Verdict

__all__ = [
    "TRASH",
    "Comparison",
    "DiskFiles",
    "Faults",
    "checksum",
    "copy_database",
    "digests",
    "digests_of",
    "faults",
    "file_digests",
    "file_states",
    "fingerprints",
    "growth",
    "learn_file_numbers",
    "read_again",
    "remove_faults",
    "sample",
    "tables",
    "tables_of_cells",
]

TRASH: Final = "trash_"
"""What the names of tables with rows of removed cells begin with; see `labref.store.duckdb.trash`."""
_HISTORY = frozenset({"file_history", "label_change", "removed_cell"})
"""Tables that may name cells that are no longer there."""
_DIGESTS: Final = f"SELECT digest, size_bytes FROM cell UNION ALL SELECT digest, size_bytes FROM {TRASH}cell"
_STATES = 16_384
_LARGEST: Final = distances.LARGEST_VALUE**2  # of the squares of a latent together; no network comes near it
_ROUNDED: Final = 0.02
_OFF_MAP: Final = "p.node < 0 OR p.node >= m.rows * m.columns OR NOT isfinite(p.quantization_error)"
_LOST: Final = (
    "cell ANTI JOIN file USING (cell_id) WHERE cell.path NOT IN (SELECT path FROM file) AND cell.cell_id NOT IN "
    "(SELECT cell_id FROM file_history SEMI JOIN file USING (path) WHERE cell_id IS NOT NULL)"
)
"""Cells that the ledger does not know. One whose file was replaced stays, and the file has another outcome since."""
_IDS = "SELECT {table}.cell_id FROM {table} ANTI JOIN cell USING (cell_id) WHERE {table}.cell_id IS NOT NULL"


@dataclass(frozen=True)
class Faults:
    """What a store holds, and what in it does not agree.

    files, cells, embeddings : how many; embeddings in the space of the active bundle. outcomes : files by outcome.
    found : kind of fault → what has it: cell ids, or paths for faults of the ledger. Kinds without a fault are left
    out.
    """

    files: int
    outcomes: Mapping[str, int]
    cells: int
    embeddings: int
    found: Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class DiskFiles:
    """Files in the export folders beside the ledger's.

    on_disk, recorded : how many are there, and how many of those have an outcome, looking as they did then.
    without_outcome, changed : paths that have none, or that changed since. gone : files with an outcome that are no
    longer there, which is no fault.
    """

    on_disk: int
    recorded: int
    without_outcome: Sequence[str]
    changed: Sequence[str]
    gone: int


def faults(cursor: duckdb.DuckDBPyConnection) -> Faults:
    """All that a store can say of itself without reading a file. Under a second for a million cells."""
    cursor.begin()  # one moment for all of it
    try:
        outcomes: dict[str, int] = dict.fromkeys(map(str, Outcome), 0)
        outcomes.update(cursor.execute("SELECT outcome, count(*) FROM file GROUP BY outcome").fetchall())
        active = bundles.active(cursor)
        space, bundle = (None, None) if active is None else bundles.space(cursor, active)
        checks = dict(_checks(cursor, space, () if bundle is None else bundle.labels))
        found = {kind: list(map(from_column, _column(cursor, query))) for kind, query in checks.items()}
        found["word_unknown"] = list(map(from_column, vocabulary.unknown(cursor)))
        cells = _number(cursor, "SELECT count(*) FROM cell")
        embeddings = 0 if space is None else _number(cursor, f"SELECT count(*) FROM {space}")
    finally:
        cursor.rollback()
    return Faults(sum(outcomes.values()), outcomes, cells, embeddings, {k: v for k, v in found.items() if v})


def _checks(cursor: duckdb.DuckDBPyConnection, space: str | None, labels: Sequence[str]) -> Iterator[tuple[str, str]]:
    """labels : of the bundle in use, whose space this is."""
    known, sources, verdicts = (", ".join(map(_quoted, kind)) for kind in (Outcome, LabelSource, Verdict))
    yield (
        "file_without_valid_outcome",
        (
            f"SELECT path FROM file WHERE outcome NOT IN ({known}) OR (outcome = '{Outcome.REJECTED}') = (cell_id IS NOT NULL)"
        ),
    )
    yield (
        "outcome_without_cell",
        ("SELECT file.path FROM file ANTI JOIN cell USING (cell_id) WHERE file.cell_id IS NOT NULL"),
    )
    yield "cell_without_file", f"SELECT cell.cell_id FROM {_LOST}"
    yield "cell_misnamed", "SELECT cell_id FROM cell WHERE cell_id <> digest[1:16] OR length(digest) <> 64"
    yield (
        "duplicate_of_nothing",
        (
            "SELECT c.cell_id FROM cell c LEFT JOIN cell o ON c.duplicate_of = o.cell_id WHERE c.duplicate_of IS NOT NULL "
            f"AND (o.cell_id IS NULL OR o.cell_id = c.cell_id OR coalesce(c.duplicate_verdict, '') NOT IN ({verdicts}))"
        ),
    )
    yield (
        "cell_without_valid_label",
        f"SELECT cell_id FROM cell WHERE label = '' OR label_source NOT IN ({sources})",
    )
    numbers = " AND ".join(f"isfinite({name})" for name in MEASURES)
    yield "measure_not_finite", f"SELECT cell_id FROM measure WHERE NOT ({numbers})"
    yield "place_off_map", f"SELECT cell_id FROM map_position p JOIN map m ON p.map = m.number WHERE {_OFF_MAP}"
    if space is not None:
        # cells that the networks cannot be given are told of when the bundle is activated
        yield (
            "cell_without_embedding",
            (
                f"SELECT cell.cell_id FROM cell ANTI JOIN {space} USING (cell_id) ANTI JOIN (SELECT cell_id FROM embedding_failure "
                "WHERE digest = (SELECT digest FROM activation ORDER BY number DESC LIMIT 1)) AS failed USING (cell_id)"
            ),
        )
        # a product with itself is finite where every number is
        yield (
            "latent_not_finite",
            f"SELECT cell_id FROM {space} WHERE NOT (array_inner_product(latent, latent) <= {_LARGEST:e} "
            "AND isfinite(array_inner_product(probabilities, probabilities)) AND isfinite(predicted_probability))",
        )
        # the squares of n probabilities add up to 1/n at least and 1 at most
        squares = "array_inner_product(probabilities, probabilities)"
        yield (
            "prediction_impossible",
            f"SELECT cell_id FROM {space} WHERE isfinite({squares}) AND isfinite(predicted_probability) AND "
            f"({squares} NOT BETWEEN {1 / max(1, len(labels)) - _ROUNDED} AND {1 + _ROUNDED} "
            f"OR predicted_probability NOT BETWEEN 0 AND {1 + _ROUNDED} "
            f"OR predicted_label NOT IN ({', '.join(map(_quoted, map(to_column, labels))) or 'NULL'}))",
        )
    spaces = {f"embedding_{number}" for (number,) in cursor.execute("SELECT number FROM bundle").fetchall()}
    for table in tables_of_cells(cursor):
        kind = "embedding_without_cell" if table in spaces else f"{table}_without_cell"
        if kind == "embedding_without_cell" and table != space:
            kind = f"{table}_without_cell"
        yield kind, _IDS.format(table=table)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def tables_of_cells(cursor: duckdb.DuckDBPyConnection) -> list[str]:
    """Tables with a row for a cell, beside `cell` and `file` themselves and what is history."""
    found = _column(
        cursor,
        "SELECT table_name FROM duckdb_columns() WHERE column_name = 'cell_id' AND database_name = current_database() "
        "AND NOT internal",
    )
    return sorted(name for name in set(found) - {"cell", "file"} - _HISTORY if not name.startswith(TRASH))


def tables(cursor: duckdb.DuckDBPyConnection) -> list[str]:
    """All tables of the store."""
    return _column(
        cursor,
        "SELECT table_name FROM duckdb_tables() WHERE database_name = current_database() AND NOT internal AND NOT temporary",
    )


def digests(cursor: duckdb.DuckDBPyConnection, prefix: str) -> dict[str, int]:
    """Digest and size in bytes of the original of every cell whose digest begins with `prefix`, those in the trash as
    well."""
    found = cursor.execute(f"FROM ({_DIGESTS}) WHERE starts_with(digest, ?)", [prefix])
    return dict(found.fetchall())


def digests_of(path: Path) -> Iterator[tuple[str, int]]:
    """Digest and size in bytes of the original of every cell of a store that nobody has open, such as a copy; of
    those in the trash as well."""
    with duckdb.connect(str(path), read_only=True, config={"memory_limit": "1GiB", "threads": 2}) as connection:
        connection.execute(_DIGESTS)
        while part := connection.fetchmany(4096):
            yield from part


class Comparison:
    """The ledger beside the files that are there, told in parts; see `Store.comparison`."""

    def __init__(self, cursor: duckdb.DuckDBPyConnection) -> None:
        self._cursor = cursor
        cursor.execute(
            "CREATE OR REPLACE TEMP TABLE on_disk (path VARCHAR, size_bytes BIGINT, mtime_ns BIGINT, ctime_ns BIGINT, "
            "inode UBIGINT)"
        )

    def add(self, part: Sequence[tuple[str, int | None, int | None, int | None, int | None]]) -> None:
        """Tell of files: path, size in bytes, mtime and ctime in nanoseconds, inode number; None for all of a file that
        cannot be read, and for a number that means nothing."""
        columns = [list(column) for column in zip(*part, strict=True)]
        columns[0] = list(map(to_column, columns[0]))
        self._cursor.execute(
            "INSERT INTO on_disk SELECT unnest($1::VARCHAR[]), unnest($2::BIGINT[]), unnest($3::BIGINT[]), "
            "unnest($4::BIGINT[]), unnest($5::UBIGINT[])",
            columns,
        )

    def result(self) -> DiskFiles:
        """What the two have in common and what not. A file that cannot be read counts as unchanged."""
        cursor = self._cursor
        cursor.execute("CREATE OR REPLACE TEMP TABLE here AS SELECT DISTINCT ON (path) * FROM on_disk")
        there = _number(cursor, "SELECT count(*) FROM here")
        missing = _column(cursor, "SELECT here.path FROM here ANTI JOIN file USING (path)")
        changed = _column(
            cursor,
            "SELECT here.path FROM here JOIN file USING (path) WHERE here.size_bytes IS NOT NULL AND file.size_bytes "
            "IS NOT NULL AND ((here.size_bytes, here.mtime_ns) <> (file.size_bytes, file.mtime_ns) "
            "OR coalesce(here.ctime_ns <> file.ctime_ns, FALSE) OR coalesce(here.inode <> file.inode, FALSE))",
        )
        gone = _number(cursor, "SELECT count(*) FROM file ANTI JOIN here USING (path)")
        recorded = there - len(missing) - len(changed)
        return DiskFiles(there, recorded, list(map(from_column, missing)), list(map(from_column, changed)), gone)


def remove_faults(connection: duckdb.DuckDBPyConnection, found: Mapping[str, Sequence[str]]) -> None:
    """Take out rows that stand for nothing, or for what cannot be: as `faults` found them. The files they belong to are
    taken in again.

    Outcomes without a cell go to the history of their path; rows of other tables whose cell is gone are deleted; a cell
    that the ledger does not know gets back the outcome of the path it was stored from.
    """
    for kind in ("outcome_without_cell", "file_without_valid_outcome"):
        paths = list(map(to_column, found.get(kind, ())))
        listed = "path IN (SELECT unnest(?::VARCHAR[]))"
        # an outcome that is none of the words is no history either: nobody could read it
        known = ", ".join(map(_quoted, Outcome))
        rows.keep_history(connection, f"{listed} AND outcome IN ({known})", [paths], rows.now())
        connection.execute(f"DELETE FROM file WHERE {listed}", [paths])
    failpoint("repair.files")
    for table in tables_of_cells(connection):
        connection.execute(f"DELETE FROM {table} WHERE cell_id IN ({_IDS.format(table=table)})")
    connection.execute(
        "UPDATE cell SET duplicate_of = NULL, duplicate_verdict = NULL, duplicate_group = NULL "
        "WHERE cell_id IN (SELECT unnest(?::VARCHAR[]))",
        [list(found.get("duplicate_of_nothing", ()))],
    )
    connection.execute(
        "DELETE FROM measure WHERE cell_id IN (SELECT unnest(?::VARCHAR[]))",
        [list(found.get("measure_not_finite", ()))],
    )
    connection.execute(f"DELETE FROM map_position p USING map m WHERE p.map = m.number AND ({_OFF_MAP})")
    failpoint("repair.cells")
    # mtime 0 never equals a file's: the next scan looks at it again and finds the bytes it knows; asked anew, as the
    # outcomes taken out above may have been a cell's only ones
    connection.execute(
        "INSERT INTO file (path, size_bytes, mtime_ns, outcome, cell_id, label, label_source, slide, folder, "
        "duplicate_of, recorded_at) SELECT DISTINCT ON (path) path, size_bytes, 0, coalesce(duplicate_verdict, 'stored'), cell_id, "
        "CASE WHEN label_source <> 'predicted' THEN label END, CASE WHEN label_source <> 'predicted' THEN label_source END, "
        f"slide, folder, duplicate_of, ? FROM {_LOST} ORDER BY path, number DESC",
        [rows.now()],
    )


def copy_database(cursor: duckdb.DuckDBPyConnection, target: Path) -> dict[str, int]:
    """Copy everything, as of one moment, into a new database file, while others write; returns the rows of each table.

    Raises StoreError where the copy is not the same, value for value.
    """
    failpoint("backup.attach")
    cursor.execute(f"ATTACH '{str(target).replace(chr(39), 2 * chr(39))}' AS labref_copy")
    try:
        here = _column(cursor, "SELECT current_database()")[0]
        cursor.begin()
        try:
            cursor.execute(f'COPY FROM DATABASE "{here}" TO labref_copy')
            failpoint("backup.copied")
            original, copy = fingerprints(cursor, here), fingerprints(cursor, "labref_copy")
            cursor.commit()
        except BaseException:
            with contextlib.suppress(duckdb.Error):  # a failed commit leaves nothing to undo
                cursor.rollback()
            raise
        if original != copy:
            raise StoreError(f"the copy {target} is not what the store holds; try again, and check the disk.")
        failpoint("backup.checkpoint")
        cursor.execute("CHECKPOINT labref_copy")
    except BaseException:
        with contextlib.suppress(duckdb.Error):  # what failed before is what people must hear of
            cursor.execute("DETACH labref_copy")
        raise
    cursor.execute("DETACH labref_copy")
    return {table: count for table, (count, _) in original.items()}


def fingerprints(cursor: duckdb.DuckDBPyConnection, database: str | None = None) -> dict[str, tuple[int, int]]:
    """Rows of each table, and a hash of all their values that does not depend on their order. Reads every block."""
    database = database or _column(cursor, "SELECT current_database()")[0]
    tables = cursor.execute("SELECT table_name FROM duckdb_tables() WHERE database_name = ?", [database]).fetchall()
    found: dict[str, tuple[int, int]] = {}
    for (table,) in sorted(tables):
        row = cursor.execute(
            f'SELECT count(*), coalesce(bit_xor(hash(t)), 0) FROM "{database}".main."{table}" t'
        ).fetchone()
        assert row is not None
        found[table] = (int(row[0]), int(row[1]))
    return found


def file_states(cursor: duckdb.DuckDBPyConnection) -> Iterator[dict[str, Any]]:
    """Columns path, size_bytes, mtime_ns, outcome, ctime_ns and inode of the ledger as NumPy arrays, in parts, so that
    other threads get their turn between them; all of one moment."""
    cursor.begin()
    try:
        # rowid is where a row lies, so a range of them is read without looking at the rest; it says nothing of order
        last = _column(cursor, "SELECT max(rowid) FROM file")[0]
        for start in range(0, 1 + (-1 if last is None else last), _STATES):
            yield cursor.execute(
                "SELECT path, size_bytes, mtime_ns, outcome, ctime_ns, inode FROM file WHERE rowid >= ? AND rowid < ?",
                [start, start + _STATES],
            ).fetchnumpy()
    finally:
        cursor.rollback()


def learn_file_numbers(connection: duckdb.DuckDBPyConnection, files: Sequence[tuple[str, int, int | None]]) -> None:
    """Write down ctime in nanoseconds and inode number of files, by path, of which a store of an older labref has
    none."""
    columns = [list(column) for column in zip(*files, strict=True)]
    columns[0] = list(map(to_column, columns[0]))
    connection.execute(
        "UPDATE file SET ctime_ns = learnt.ctime_ns, inode = learnt.inode FROM (SELECT unnest($1::VARCHAR[]) AS path, "
        "unnest($2::BIGINT[]) AS ctime_ns, unnest($3::UBIGINT[]) AS inode) AS learnt "
        "WHERE file.path = learnt.path AND file.ctime_ns IS NULL",
        columns,
    )


def read_again(connection: duckdb.DuckDBPyConnection, paths: Sequence[str]) -> None:
    """Let the next scan read these files again, whatever they look like."""
    # no file has such a size
    connection.execute(
        "UPDATE file SET size_bytes = -1 WHERE path IN (SELECT unnest(?::VARCHAR[]))", [list(map(to_column, paths))]
    )


def file_digests(cursor: duckdb.DuckDBPyConnection, paths: Sequence[str]) -> dict[str, str]:
    """The digest of the cell that came from each of these files, by path; those without a cell are left out."""
    found = cursor.execute(
        "SELECT file.path, cell.digest FROM file JOIN cell USING (cell_id) WHERE file.path IN (SELECT unnest(?::VARCHAR[]))",
        [list(map(to_column, paths))],
    )
    return {from_column(path): digest for path, digest in found.fetchall()}


def sample(cursor: duckdb.DuckDBPyConnection, most: int) -> list[str]:
    """Ids of so many cells at most, other ones each time."""
    return _column(cursor, f"SELECT cell_id FROM cell USING SAMPLE {most:d} ROWS")


def growth(cursor: duckdb.DuckDBPyConnection, since: datetime) -> tuple[int, int, datetime | None]:
    """The cells that were added after `since` (UTC, without a zone): how many, the bytes of their originals, and when
    the first of them was; None where there is none."""
    row = cursor.execute(
        "SELECT count(*), coalesce(sum(size_bytes), 0), min(added_at) FROM cell WHERE added_at > ? AND added_at <= ?",
        [since, rows.now()],
    ).fetchone()
    assert row is not None
    return int(row[0]), int(row[1]), row[2]


def checksum(cursor: duckdb.DuckDBPyConnection, table: str) -> tuple[int, int]:
    """How many cells a table has, and all their ids, as numbers, exclusive-or'ed; see `Index.checksum`."""
    row = cursor.execute(f"SELECT count(*), coalesce(bit_xor(('0x' || cell_id)::UBIGINT), 0) FROM {table}").fetchone()
    assert row is not None
    return int(row[0]), int(row[1])


def _column(cursor: duckdb.DuckDBPyConnection, query: str) -> list[Any]:
    return [value for (value,) in cursor.execute(query).fetchall()]


def _number(cursor: duckdb.DuckDBPyConnection, query: str) -> int:
    return int(_column(cursor, query)[0])
