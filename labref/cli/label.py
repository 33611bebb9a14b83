"""`labref label`: what people call the cells."""

from __future__ import annotations

import csv
import getpass
import io
from pathlib import Path
from typing import Annotated, Any

import typer

from labref.cli._shared import JsonOption, LabOption, perform, print_json
from labref.errors import LabrefError
from labref.times import local

__all__ = ["add_to"]

_HELP = """Labels that people give: one by one, or from a list; and how each cell came to its label.

A label from a person (reviewed) counts more than the analyser's, and that more than a prediction. A cell whose file
moves from `Unsigned slides` to `Signed slides` becomes reviewed by itself: it is the same cell. Nothing is overwritten:
`labref label history` tells who gave which label, when, and what it was before.

Reviewed cells are preferred as references: among cells that are about as near (within 5 % of the distance), a reviewed
one is shown rather than one from the analyser, and that rather than a predicted one. A clearly nearer cell is never
pushed out.

\b
  labref label set 3f2a9c0d11e87b64 monocyte --who "A. Lind"
  labref label import review.csv --dry-run
  labref label history 3f2a9c0d11e87b64
"""
_SET = """Give a cell a label: it is reviewed from now on.

CELL is the cell's id, or the path of its file. Classes are named as the bundle, the lab's cells or CellaVision call
them; a class that is new to the lab needs --new, so that a slip of the keyboard does not become one.

With --json, one object: cell_id, label, previous, previous_source, outcome (changed, or same: it was that already).
"""
_IMPORT = """Give many cells labels from a list.

FILE.csv has a header and the columns path (as `labref ledger` shows it, or below a watched folder) or cell_id, label,
and if you like who and when (2026-03-31, or 2026-03-31T14:05 in this computer's time zone). Commas, semicolons and
tabs all separate. Rows that can be used are written together; every other one is named by its line, with the reason,
and the exit code is 1. A label older than the one a person gave since does not replace it. --dry-run writes nothing.

\b
  labref label import review.csv --dry-run
  labref label import review.csv --who "morning round"

With --json, an object {line, problem} for each row that cannot be used, and last {rows, changed, same, older, unknown
(how many cannot be used), dry_run}.
"""
_HISTORY = """Tell how a cell came to its label: who gave it, when, and what it was before.

With --json, one object: cell_id, label, label_source, stored_at, stored_as {label, label_source}, changes [{at,
given_at, who, path, label, label_source, previous, previous_source}], paths [{path, label, label_source}] (what each of
its files says; null where it says nothing), predictions [{bundle, label, probability}] (by each bundle with its latent).
"""
_COLUMNS = ("path", "cell_id", "label", "who", "when")

NewOption = Annotated[bool, typer.Option("--new", help="Allow classes that are new to this lab.", show_default=False)]
CellArgument = Annotated[str, typer.Argument(metavar="CELL", help="A cell's id, or its file.", show_default=False)]


def set_(
    cell: CellArgument,
    label: Annotated[str, typer.Argument(metavar="LABEL", help="The class.", show_default=False)],
    lab: LabOption = None,
    who: Annotated[
        str | None,
        typer.Option("--who", metavar="NAME", help="Who gives it. Default: your login name.", show_default=False),
    ] = None,
    new: NewOption = False,
    json: JsonOption = False,
) -> None:
    from labref.lab import Lab

    (row,) = perform(Lab.find(lab), "label.set", cell=cell, label=label, who=who or _login(), new=new)
    if json:
        print_json(row)
    elif row["outcome"] == "same":
        typer.echo(f"{row['cell_id']} is reviewed as {row['label']} already")
    else:
        typer.echo(f"{row['cell_id']}: {row['label']} (was {row['previous']}, {row['previous_source']})")


def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE.csv", help="The list.", show_default=False)],
    lab: LabOption = None,
    who: Annotated[
        str | None,
        typer.Option(
            "--who", metavar="NAME", help="Who gave the labels, where a row does not say.", show_default=False
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would happen, and write nothing.", show_default=False)
    ] = False,
    new: NewOption = False,
    json: JsonOption = False,
) -> None:
    from labref.lab import Lab

    rows = _read(file, who or _login())
    summary: dict[str, Any] = {}
    for row in perform(Lab.find(lab), "label.import", rows=rows, dry_run=dry_run, new=new):
        if json:
            print_json(row)
        elif "problem" in row:
            typer.echo(f"{file}:{row['line']}: {row['problem']}", err=True)
        if "problem" not in row:
            summary = row
    if not json:
        done = "would change" if dry_run else "changed"
        typer.echo(
            f"{summary['rows']} rows: {summary['changed']} {done}, {summary['same']} were so already, {summary['older']} "
            f"older than the label the cell has, {summary['unknown']} cannot be used"
        )
    if summary["unknown"]:
        raise typer.Exit(1)


def history(cell: CellArgument, lab: LabOption = None, json: JsonOption = False) -> None:
    from labref.lab import Lab

    (row,) = perform(Lab.find(lab), "label.history", cell=cell)
    if json:
        print_json(row)
        return
    typer.echo(f"{row['cell_id']}: {row['label']} ({row['label_source']})")
    typer.echo(
        f"  {local(row['stored_at'])}  stored as {row['stored_as']['label']} ({row['stored_as']['label_source']})"
    )
    for change in row["changes"]:
        by = f" by {change['who']}" if change["who"] else f" from {change['path']}" if change["path"] else ""
        when = f", given {local(change['given_at'])}" if change["given_at"] else ""
        typer.echo(
            f"  {local(change['at'])}  {change['label']} ({change['label_source']}){by}{when}; was {change['previous']} "
            f"({change['previous_source']})"
        )
    for path in row["paths"]:
        says = (
            "says nothing of the class" if path["label"] is None else f"says {path['label']} ({path['label_source']})"
        )
        typer.echo(f"  {path['path']} {says}")
    for made in row["predictions"]:
        typer.echo(f"  bundle {made['bundle'][:12]} predicts {made['label']} {made['probability']:.1%}")


def _read(file: Path, who: str) -> list[dict[str, Any]]:
    """The rows of a list, each with the line it begins on."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise LabrefError(f"{file} cannot be read: {error.strerror or error}.") from None
    except UnicodeDecodeError:
        raise LabrefError(f"{file} is not UTF-8; save it as `CSV UTF-8`.") from None
    header = text.partition("\n")[0]
    separator = max(",;\t", key=header.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    try:
        columns = [name.strip().lower() for name in next(reader, [])]
        if "label" not in columns or not {"path", "cell_id"} & set(columns):
            raise LabrefError(
                f"{file} needs a header with the columns label and path or cell_id (and who, when, if you like); it has "
                f"{', '.join(columns) or 'none'}."
            )
        rows = []
        line = reader.line_num + 1
        for values in reader:
            row: dict[str, Any] = dict(zip(columns, (value.strip() for value in values), strict=False))
            if any(row.values()):
                row["who"] = row.get("who") or who
                rows.append({"line": line} | {name: row.get(name) or None for name in _COLUMNS})
            line = reader.line_num + 1
    except csv.Error as error:
        raise LabrefError(f"{file}, line {reader.line_num}: {error}. Save it as CSV again.") from None
    return rows


def _login() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # a service account without a name
        return "unknown"


def add_to(app: typer.Typer) -> None:
    group = typer.Typer(
        help=_HELP,
        short_help="Labels that people give, and their history.",
        no_args_is_help=True,
        rich_markup_mode=None,
    )
    group.command("set", help=_SET, short_help="Give one cell a label.")(set_)
    group.command("import", help=_IMPORT, short_help="Give many cells labels from a list.")(import_)
    group.command("history", help=_HISTORY, short_help="How a cell came to its label.")(history)
    app.add_typer(group, name="label")
