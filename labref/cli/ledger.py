"""`labref ledger`: what became of every file."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from labref.cli._shared import JsonOption, LabOption, print_json

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["add_to"]

_HELP = """Say what became of every file found in the export folder: one line a file.

Outcomes: stored (a new cell), duplicate (of a stored cell), possible_duplicate (kept, for review), rejected (no
usable image; the reason says why and, where it helps, what to do). Works while the agent runs and while it does not.

\b
Examples:
  labref ledger
  labref ledger --outcome rejected                which files could not be used, and why
  labref ledger --path "D:/Export/a/LY_1.jpg"     what became of this file
  labref ledger --json > ledger.jsonl

\b
With --json, one JSON object a line for each file found: path, outcome, reason (null unless rejected or a duplicate),
cell_id (null when rejected), label, label_source (reviewed, analyser, predicted), slide, at (when it was decided,
ISO 8601, UTC), duplicate_of (the cell it duplicates, or null).
"""


class Outcome(StrEnum):
    """What can become of a file."""

    STORED = "stored"
    DUPLICATE = "duplicate"
    POSSIBLE_DUPLICATE = "possible_duplicate"
    REJECTED = "rejected"


def ledger(
    lab: LabOption = None,
    outcome: Annotated[
        Outcome | None, typer.Option("--outcome", help="Only files with this outcome.", show_default=False)
    ] = None,
    path: Annotated[
        str | None, typer.Option("--path", metavar="FILE", help="Only this file.", show_default=False)
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="At most this many lines.", show_default=False)
    ] = None,
    json: JsonOption = False,
) -> None:
    from labref.lab import Lab
    from labref.query import ledger_rows

    for row in ledger_rows(Lab.find(lab), outcome=outcome and outcome.value, path=path, limit=limit):
        if json:
            print_json(row)
        else:
            typer.echo(_line(row))


def _line(row: Mapping[str, Any]) -> str:
    cell = f"{row['cell_id']}  {row['label']} ({row['label_source']})" if row["cell_id"] else None
    what = "; ".join(part for part in (cell, row["reason"]) if part)
    return f"{row['at'][:19]}  {row['outcome']:<18}  {row['path']}  {what}"


def add_to(app: typer.Typer) -> None:
    app.command(help=_HELP, short_help="What became of every file found.")(ledger)
