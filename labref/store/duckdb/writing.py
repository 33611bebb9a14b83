"""A plan becomes rows, inside a transaction that is the caller's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, Final

import duckdb

from labref.failpoints import failpoint
from labref.store.duckdb import duplicates, optics, qualities, rows, sequence
from labref.store.duckdb.noting import note
from labref.store.recording import LabelChange, Plan
from labref.store.text import to_column, to_nullable
from labref.store.values import CellEmbedding, NewCell, StoredBundle

__all__ = ["insert", "write", "write_embeddings", "write_labels"]

_NUMBER: Final = {"number": "BIGINT"}
_LABEL_CHANGE: Final = {
    "cell_id": "VARCHAR",
    "changed_at": "TIMESTAMP",
    "path": "VARCHAR",
    "label": "VARCHAR",
    "label_source": "VARCHAR",
    "previous": "VARCHAR",
    "previous_source": "VARCHAR",
    "who": "VARCHAR",
    "given_at": "TIMESTAMP",
    "undoes": "BIGINT",
    "number": "BIGINT",
}
_SLIDE_MOVE: Final = {"number": "BIGINT", "slide": "VARCHAR", "folder": "VARCHAR", "came": "BOOLEAN"}


def write(connection: duckdb.DuckDBPyConnection, plan: Plan, table: str, space: StoredBundle) -> None:
    """Write a plan. table : of the latents of the bundle `space`."""
    failpoint("record.cells")
    insert(connection, "INSERT INTO cell", rows.CELL | _NUMBER, plan.cells)
    sequence.keep(connection, plan.numbers)
    failpoint("record.embeddings")
    write_embeddings(connection, plan.embedded, table, space)
    failpoint("record.measures")
    measured = [
        (cell, row[-1]) for cell, row in zip(plan.embedded, plan.cells, strict=True) if cell.measures is not None
    ]
    optics.write(
        connection, [(cell.cell_id, to_nullable(cell.analyser), plan.at, n, cell.measures) for cell, n in measured]
    )
    qualities.write(connection, [(cell.cell_id, cell.quality) for cell in plan.embedded if cell.quality is not None])
    failpoint("record.fingerprints")
    duplicates.write_fingerprints(connection, plan.fingerprints)
    duplicates.write_landmarks(connection, plan.landmarks)
    duplicates.write_resemblances(connection, plan.resemblances, plan.at)
    failpoint("record.labels")
    write_labels(connection, plan.label_changes, plan.at)
    note(connection, [cell.cell_id for cell in plan.embedded])
    failpoint("record.files")
    numbers = sequence.begin(connection)
    replaced = [(*row.values(), plan.at, numbers.take()) for row in plan.replaced]
    insert(connection, "INSERT INTO file_history", rows.FILE | {"replaced_at": "TIMESTAMP"} | _NUMBER, replaced)
    # replacing costs ten times what inserting does, so only paths that have a row are replaced
    for into, known in (("INSERT INTO file", False), ("INSERT OR REPLACE INTO file", True)):
        written = [row.values() for path, row in plan.files.items() if (path in plan.known_paths) is known]
        insert(connection, into, rows.FILE, written)
    sequence.keep(connection, numbers)


def write_labels(connection: duckdb.DuckDBPyConnection, changes: Sequence[LabelChange], at: datetime) -> None:
    """Let cells be called as these changes say, the last one of several of a cell, and write the history of all.

    at : now, UTC, without a zone.
    """
    last = {change.cell_id: change for change in changes}.values()
    if not last:
        return
    moves = _moves(connection, [change for change in last if change.path is not None])
    connection.execute(
        "UPDATE cell SET label = said.label, label_source = said.source, path = coalesce(said.path, cell.path), "
        "slide = CASE WHEN said.path IS NULL THEN cell.slide ELSE said.slide END, "
        "folder = CASE WHEN said.path IS NULL THEN cell.folder ELSE said.folder END FROM (SELECT "
        "unnest($1::VARCHAR[]) AS cell_id, unnest($2::VARCHAR[]) AS label, unnest($3::VARCHAR[]) AS source, "
        "unnest($4::VARCHAR[]) AS path, unnest($5::VARCHAR[]) AS slide, unnest($6::VARCHAR[]) AS folder) said "
        "WHERE cell.cell_id = said.cell_id",
        [
            [change.cell_id for change in last],
            [to_column(change.label) for change in last],
            [str(change.label_source) for change in last],
            [to_nullable(change.path) for change in last],
            *_columns(last),
        ],
    )
    numbers = sequence.begin(connection)
    insert(
        connection,
        "INSERT INTO label_change",
        _LABEL_CHANGE,
        [
            (
                change.cell_id,
                at,
                to_column(change.path or ""),
                to_column(change.label),
                str(change.label_source),
                to_column(change.previous),
                str(change.previous_source),
                to_nullable(change.who),
                change.given_at,
                change.undoes,
                numbers.take(),
            )
            for change in changes
            if change.is_history
        ],
    )
    insert(connection, "INSERT INTO slide_move", _SLIDE_MOVE, [(numbers.take(), *move) for move in moves])
    sequence.keep(connection, numbers)
    note(connection, [change.cell_id for change in last])


def _columns(changes: Iterable[LabelChange]) -> tuple[list[str | None], list[str]]:
    """Names and watched folders of the slides of some changes."""
    slides = [change.slide for change in changes]
    return (
        [None if slide is None else to_column(slide.name) for slide in slides],
        ["" if slide is None else to_column(slide.folder) for slide in slides],
    )


def _moves(connection: duckdb.DuckDBPyConnection, changes: Sequence[LabelChange]) -> list[tuple[str, str, bool]]:
    """The slides that cells leave (False) and come to (True) by changes that name the slide, before these are made:
    name and watched folder of each."""
    if not changes:
        return []
    return connection.execute(
        "WITH move AS (SELECT cell.slide AS before, coalesce(cell.folder, '') AS from_folder, said.slide AS after, "
        "said.folder AS to_folder FROM cell JOIN (SELECT unnest($1::VARCHAR[]) AS cell_id, unnest($2::VARCHAR[]) AS slide, "
        "unnest($3::VARCHAR[]) AS folder) said USING (cell_id) "
        "WHERE cell.slide IS DISTINCT FROM said.slide OR coalesce(cell.folder, '') <> said.folder) "
        "SELECT before, from_folder, false FROM move WHERE before IS NOT NULL "
        "UNION SELECT after, to_folder, true FROM move WHERE after IS NOT NULL",
        [[change.cell_id for change in changes], *_columns(changes)],
    ).fetchall()


def write_embeddings(
    connection: duckdb.DuckDBPyConnection, cells: Sequence[NewCell | CellEmbedding], table: str, space: StoredBundle
) -> None:
    """Write the places of cells in the space of a bundle; `duckdb.ConstraintException` where one has a place there
    already."""
    insert(
        connection,
        f"INSERT INTO {table}",
        {
            "cell_id": "VARCHAR",
            "latent": f"FLOAT[{space.latent_size}]",
            "probabilities": f"FLOAT[{len(space.labels)}]",
            "predicted_label": "VARCHAR",
            "predicted_probability": "FLOAT",
        },
        [
            (
                cell.cell_id,
                cell.latent.tolist(),
                cell.probabilities.tolist(),
                to_column(cell.predicted_label),
                float(cell.predicted_probability),
            )
            for cell in cells
        ],
    )


def insert(
    connection: duckdb.DuckDBPyConnection, into: str, types: dict[str, str], values: Sequence[Sequence[Any]]
) -> None:
    """Insert rows by one statement, a list a column: a sixth of the time of `executemany`.

    into : "INSERT INTO table", or another verb. types : the columns of a row of values, and their types.
    """
    if values:
        columns = ", ".join(f"unnest(${i}::{kind}[])" for i, kind in enumerate(types.values(), 1))
        connection.execute(
            f"{into} ({', '.join(types)}) SELECT {columns}", [list(column) for column in zip(*values, strict=True)]
        )
