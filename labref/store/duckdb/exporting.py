"""Cells as one Parquet file: what they are, where they lie, and how they look."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import duckdb

from labref.store.duckdb import bundles
from labref.store.text import from_column

__all__ = ["Export"]

_numbers = itertools.count(1)


class Export:
    """The cells of one moment on their way into a Parquet file; see `Store.exporting`."""

    def __init__(self, cursor: duckdb.DuckDBPyConnection, scratch: Path) -> None:
        """scratch : a file that does not exist yet, for thumbnails; whoever made it removes it."""
        self._cursor = cursor
        self._side = f"labref_export_{next(_numbers)}"  # several people may export at once
        cursor.execute(f"ATTACH '{_quoted(scratch)}' AS {self._side}")
        cursor.execute(f"CREATE TABLE {self._side}.wanted AS SELECT cell_id, digest FROM cell")
        cursor.execute(f"CREATE TABLE {self._side}.thumb (cell_id VARCHAR, thumbnail BLOB, name VARCHAR)")

    def __len__(self) -> int:
        row = self._cursor.execute(f"SELECT count(*) FROM {self._side}.wanted").fetchone()
        return int(row[0]) if row else 0

    def digests(self) -> Iterator[str]:
        """Digests of the cells that are exported."""
        with contextlib.closing(self._cursor.cursor()) as cursor:
            cursor.execute(f"SELECT digest FROM {self._side}.wanted")
            while part := cursor.fetchmany(1024):
                yield from (digest for (digest,) in part)

    def add_thumbnails(self, thumbnails: Sequence[tuple[str, bytes, str]]) -> None:
        """Pictures of cells: (cell_id, bytes of a picture file, its name)."""
        columns = [list(column) for column in zip(*thumbnails, strict=True)]
        self._cursor.execute(
            f"INSERT INTO {self._side}.thumb SELECT unnest($1::VARCHAR[]), unnest($2::BLOB[]), unnest($3::VARCHAR[])",
            columns,
        )

    def write(self, target: Path, *, identifying: bool, is_class: Callable[[str], bool]) -> int:
        """Write the file. identifying : with slide, path, and every class, which can name a patient.  is_class :
        whether a label is a class that somebody declared; one that people gave is, too.

        Returns how many cells have no label in the file, because a folder's name is all that speaks for theirs.
        """
        cursor = self._cursor
        found = cursor.execute(
            "SELECT DISTINCT c.label, g.label IS NOT NULL FROM cell c LEFT JOIN "
            "(SELECT DISTINCT label FROM label_change WHERE path = '' AND label_source = 'reviewed') g ON g.label = c.label"
        ).fetchall()
        kept = [label for label, given in found if identifying or given or is_class(from_column(label))]
        cursor.execute(f"CREATE TABLE {self._side}.class AS SELECT unnest(?::VARCHAR[]) AS label", [kept])
        active = bundles.active(cursor)
        assert active is not None
        space, bundle = bundles.space(cursor, active)
        on_map = cursor.execute(
            "SELECT map.number, columns FROM map_activation JOIN map ON map.number = map_activation.map "
            "WHERE bundle = ? AND map.analyser IS NULL ORDER BY map_activation.number DESC LIMIT 1",
            [active],
        ).fetchone()
        number, columns = on_map or (-1, 1)
        who = "c.slide, coalesce(c.folder, '') AS folder, c.path," if identifying else ""
        labels = ", ".join(f"'{label.replace(chr(39), 2 * chr(39))}'" for label in bundle.labels)
        cursor.execute(
            f"""
            COPY (
                SELECT c.cell_id, k.label, c.label_source, c.analyser, {who} c.captured_at, c.added_at, c.width, c.height,
                       e.predicted_label, e.predicted_probability,
                       map_from_entries(list_zip([{labels}]::VARCHAR[], e.probabilities::FLOAT[])) AS probabilities,
                       e.latent::FLOAT[] AS latent,
                       p.node // {columns:d} AS map_row, p.node % {columns:d} AS map_column,
                       p.quantization_error AS map_error,
                       c.duplicate_of, c.duplicate_verdict, c.digest, q.is_cell, lower(q.reason) AS doubt,
                       CASE WHEN t.thumbnail IS NOT NULL
                            THEN struct_pack(bytes := t.thumbnail, path := t.name) END AS thumbnail,
                       '{active}' AS bundle
                FROM cell c JOIN {self._side}.wanted w ON w.cell_id = c.cell_id
                LEFT JOIN quality q ON q.cell_id = c.cell_id
                LEFT JOIN {self._side}.class k ON k.label = c.label
                LEFT JOIN {space} e ON e.cell_id = c.cell_id
                LEFT JOIN (SELECT * FROM map_position WHERE map = {number:d}) p ON p.cell_id = c.cell_id
                LEFT JOIN {self._side}.thumb t ON t.cell_id = c.cell_id
            ) TO '{_quoted(target)}' (FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE 20000)"""
        )
        row = cursor.execute(
            f"SELECT count(*) FROM cell JOIN {self._side}.wanted USING (cell_id) ANTI JOIN {self._side}.class USING (label)"
        ).fetchone()
        return 0 if row is None else int(row[0])

    def close(self) -> None:
        """Let go of the scratch file."""
        with contextlib.suppress(duckdb.Error):
            self._cursor.execute(f"DETACH {self._side}")


def _quoted(path: Path) -> str:
    return str(path).replace("'", "''")
