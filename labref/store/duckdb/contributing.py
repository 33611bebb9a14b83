"""The reviewed cells of a lab on their way into a pack for the centre; see `labref.packs`."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

import duckdb

from labref.store.duckdb import bundles
from labref.store.text import from_column, from_nullable, to_column
from labref.words import MEASURES

__all__ = ["Contribution", "PackedCell", "ReviewedCell"]

_numbers = itertools.count(1)
_AT_ONCE: Final = 4096
_REVIEWED: Final = """
    SELECT c.cell_id, c.digest, c.label, c.analyser, c.captured_at, coalesce(h.by_person, false),
           coalesce(h.decisions, 0), coalesce(h.history, ''), c.number > $1 OR coalesce(h.last > $1, false)
    FROM cell c LEFT JOIN (
        SELECT cell_id, max(number) AS last, arg_max(path = '', number) AS by_person,
               count(*) FILTER (path = '' AND label_source = 'reviewed') AS decisions,
               string_agg(concat_ws(chr(31), label, label_source, previous, previous_source, path = '', coalesce(who, ''),
                                    coalesce(given_at, changed_at), coalesce(undoes, 0)), chr(30) ORDER BY number) AS history
        FROM label_change GROUP BY cell_id
    ) h ON h.cell_id = c.cell_id
    WHERE c.label_source = 'reviewed' OR c.number > $1 OR coalesce(h.last > $1, false)
"""


@dataclass(frozen=True, slots=True)
class ReviewedCell:
    """A cell whose label a person gave, as the lab has it.

    captured_at : UTC, naive.  by_person : whether the person gave the label in labref, and not in the analyser.
    decisions : how often people gave it a label in labref.  history : all that was said of its label, as one text.
    later : whether it came, or its label changed, after the moment that was asked for; then it may have any label.
    """

    cell_id: str
    digest: str
    label: str
    analyser: str | None
    captured_at: datetime | None
    by_person: bool
    decisions: int
    history: str
    later: bool


@dataclass(frozen=True, slots=True)
class PackedCell:
    """A cell as a pack has it; see `labref.packs.COLUMNS`. cell_id : the lab's own name of it, which is not in the
    pack."""

    cell_id: str
    cell: str
    label: str
    label_source: str
    history: str
    decisions: int
    optics: str
    captured_at: datetime | None
    crop: bytes


class Contribution:
    """Reads the reviewed cells, and writes those that were chosen into Parquet files; see `Store.contributing`."""

    def __init__(self, cursor: duckdb.DuckDBPyConnection, scratch: Path | None) -> None:
        """scratch : a file that does not exist yet, for the cells that are added; None where none will be."""
        self._cursor = cursor
        self._attached = scratch is not None
        self._side = f"labref_pack_{next(_numbers)}"
        active = bundles.active(cursor)
        assert active is not None
        self.bundle = active
        """Digest of the bundle whose latents are written."""
        self._space, stored = bundles.space(cursor, active)
        self.latent_size = stored.latent_size
        """How many numbers a latent has."""
        if scratch is not None:
            cursor.execute(f"ATTACH '{_quoted(scratch)}' AS {self._side}")
            measures = ", ".join(f"{name} FLOAT" for name in MEASURES)
            cursor.execute(
                f"CREATE TABLE {self._side}.chosen (cell VARCHAR, label VARCHAR, label_source VARCHAR, history VARCHAR, decisions "
                f"INTEGER, optics VARCHAR, {measures}, latent FLOAT[], crop BLOB, captured_at TIMESTAMP)"
            )

    def reviewed(self, as_of: int) -> Iterator[ReviewedCell]:
        """The cells whose label a person gave, and those that changed after the number `as_of` of the store's
        sequence."""
        with contextlib.closing(self._cursor.cursor()) as cursor:
            cursor.execute(_REVIEWED, [as_of])
            while part := cursor.fetchmany(_AT_ONCE):
                for cell_id, digest, label, analyser, captured_at, by_person, decisions, history, later in part:
                    yield ReviewedCell(
                        cell_id,
                        digest,
                        from_column(label),
                        from_nullable(analyser),
                        captured_at,
                        by_person,
                        decisions,
                        history,
                        later,
                    )

    def given(self) -> set[str]:
        """The classes that people gave to cells in labref."""
        found = self._cursor.execute(
            "SELECT DISTINCT label FROM label_change WHERE path = '' AND label_source = 'reviewed'"
        ).fetchall()
        return {from_column(label) for (label,) in found}

    def add(self, cells: Sequence[PackedCell]) -> None:
        """Cells that come into the pack, after those that were added before."""
        columns: list[list[object]] = [
            [one.cell_id for one in cells],
            [one.cell for one in cells],
            [to_column(one.label) for one in cells],
            [one.label_source for one in cells],
            [one.history for one in cells],
            [one.decisions for one in cells],
            [one.optics for one in cells],
            [one.captured_at for one in cells],
            [one.crop for one in cells],
        ]
        measures = ", ".join(f"m.{name}" for name in MEASURES)
        self._cursor.execute(
            f"""
            INSERT INTO {self._side}.chosen
            SELECT n.cell, n.label, n.label_source, n.history, n.decisions, n.optics, {measures}, e.latent::FLOAT[], n.crop, n.captured_at
            FROM (SELECT unnest($1::VARCHAR[]) AS cell_id, unnest($2::VARCHAR[]) AS cell, unnest($3::VARCHAR[]) AS label,
                         unnest($4::VARCHAR[]) AS label_source, unnest($5::VARCHAR[]) AS history,
                         unnest($6::INTEGER[]) AS decisions, unnest($7::VARCHAR[]) AS optics,
                         unnest($8::TIMESTAMP[]) AS captured_at, unnest($9::BLOB[]) AS crop) n
            LEFT JOIN measure m ON m.cell_id = n.cell_id
            LEFT JOIN {self._space} e ON e.cell_id = n.cell_id
            ORDER BY n.cell""",
            columns,
        )

    def write(self, target: Path, *, dates: bool) -> None:
        """Write the cells that were added, in their order. dates : with `captured_at`, as it was given."""
        left_out = "" if dates else "EXCLUDE (captured_at)"
        self._copy(f"SELECT * {left_out} FROM {self._side}.chosen", target)

    def write_removed(self, cells: Sequence[str], target: Path) -> None:
        """Write the names, in packs, of cells that are given no more."""
        self._cursor.execute(f"CREATE TABLE {self._side}.removed AS SELECT unnest(?::VARCHAR[]) AS cell", [list(cells)])
        self._copy(f"SELECT cell FROM {self._side}.removed ORDER BY cell", target)

    def _copy(self, query: str, target: Path) -> None:
        self._cursor.execute(
            f"COPY ({query}) TO '{_quoted(target)}' (FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE 2048)"
        )

    def close(self) -> None:
        """Let go of the scratch file."""
        if self._attached:
            with contextlib.suppress(duckdb.Error):
                self._cursor.execute(f"DETACH {self._side}")


def _quoted(path: Path) -> str:
    return str(path).replace("'", "''")
