"""`labref duplicates`: cells captured twice, and what people decide of them."""

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from labref.cli._shared import JsonOption, LabOption, WhoOption, a_path, named, perform, print_json, say
from labref.errors import LabrefError
from labref.printing import printable
from labref.times import local

if TYPE_CHECKING:
    from labref.lab import Lab

__all__ = ["add_to"]

_HELP = """Cells that were captured twice: list them, look at them side by side, decide.

A new cell is compared with all stored ones, whatever their class. Two pictures of the same cell agree almost fully once
they are laid over each other; pictures of different cells do not, unless they show the same field (below). In between
lies a possible duplicate: it is kept as a cell like any other, and listed here until somebody decides. A duplicate is
kept as well, but is no reference for its own twin. Nothing is ever dropped. Decisions are remembered, with who and
when, and can be undone; a rejected pair is never linked again.

Two cells side by side in one field have pictures that agree where they overlap, each with its own cell in the middle. They
are neighbours: two cells, and nothing to decide. --only neighbour lists them; they are in no other list.

A file with the very bytes of another is one more path of the same cell. Where such files, or two pictures of one cell,
are filed under different classes (by the export or by people, not by labref), that is a conflict, and listed here too.

\b
  labref duplicates
  labref duplicates --only possible --grid pairs.png
  labref duplicates --only conflict
  labref duplicates confirm 3f2a9c0d11e87b64
  labref duplicates reject 3f2a9c0d11e87b64 --who "A. Lind"
  labref duplicates undo 3f2a9c0d11e87b64

With --json, one object a line: pairs, and conflicts.

@duplicates.DuplicatePair @duplicates.ConflictOfFiles @duplicates.ConflictOfCaptures
"""
_CONFIRM = """Say that a cell is the same cell as the one it is linked with, or, with --of, as another one.

\b
  labref duplicates confirm 3f2a9c0d11e87b64
  labref duplicates confirm 3f2a9c0d11e87b64 --of 90b1c3aa5e6f0d42      a pair that labref did not see

With --json, one object.

@duplicates.DuplicatePair
"""
_REJECT = """Say that a cell is not the one it is linked with. They are never linked again.

\b
  labref duplicates reject 3f2a9c0d11e87b64

With --json, one object.

@duplicates.DuplicatePair
"""
_UNDO = """Take back the last decision on a cell. What labref saw itself holds again.

\b
  labref duplicates undo 3f2a9c0d11e87b64

With --json, one object.

@duplicates.DuplicatePair
"""
_HISTORY = """Tell what people decided of a cell: who, when.

With --json, one object a line, oldest first.

@duplicates.Decided
"""
_FIND = """Compare cells that were stored by an earlier labref, which compared them in another way. The agent does it by itself.

With --json, one object.

@duplicates.Compared
"""
_MOST_DRAWN = 60


class Only(StrEnum):
    """Which pairs to list."""

    POSSIBLE = "possible"
    DUPLICATE = "duplicate"
    REJECTED = "rejected"
    CONFLICT = "conflict"
    NEIGHBOUR = "neighbour"


CellArgument = Annotated[str, typer.Argument(metavar="CELL", help="The id of the later cell.", show_default=False)]
app = typer.Typer(invoke_without_command=True, rich_markup_mode=None)


@app.callback(help=_HELP)
def duplicates(
    context: typer.Context,
    lab: LabOption = None,
    only: Annotated[Only | None, typer.Option("--only", help="Only these.", show_default=False)] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="At most this many pairs, and conflicts.", show_default=False)
    ] = None,
    grid: Annotated[
        Path | None,
        typer.Option(
            "--grid",
            parser=a_path,
            metavar="OUT.png",
            help=f"Also draw the pairs side by side, the first {_MOST_DRAWN}.",
            show_default=False,
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    if context.invoked_subcommand is not None:
        return
    from labref.lab import Lab

    where = Lab.find(lab)
    if grid is not None:
        where.refuse_output(grid)
    verdict = "possible_duplicate" if only is Only.POSSIBLE else None if only is None else only.value
    rows = list(perform(where, "duplicates.list", verdict=verdict, limit=limit))
    shown = rows if json else _once(rows)
    for row in shown:
        if json:
            print_json(row)
        else:
            said = printable(row)
            typer.echo(_pair(said) if said["kind"] == "pair" else _conflict(said))
    if not rows and not json:
        say("no duplicates" if only is None else f"none that is {only.value}")
    if grid is not None:
        _draw(where, [row for row in _once(rows) if row.get("duplicate_of")], grid, only)


@app.command(help=_CONFIRM, short_help="Say that two cells are the same.")
def confirm(
    cell: CellArgument,
    lab: LabOption = None,
    of: Annotated[
        str | None, typer.Option("--of", metavar="OTHER", help="The cell it repeats.", show_default=False)
    ] = None,
    who: WhoOption = None,
    json: JsonOption = False,
) -> None:
    _decide(lab, "duplicates.confirm", json, cell=cell, who=named(who), of=of)


@app.command(help=_REJECT, short_help="Say that two cells are not the same.")
def reject(cell: CellArgument, lab: LabOption = None, who: WhoOption = None, json: JsonOption = False) -> None:
    _decide(lab, "duplicates.reject", json, cell=cell, who=named(who))


@app.command(help=_UNDO, short_help="Take back the last decision.")
def undo(cell: CellArgument, lab: LabOption = None, who: WhoOption = None, json: JsonOption = False) -> None:
    _decide(lab, "duplicates.undo", json, cell=cell, who=named(who))


@app.command(help=_HISTORY, short_help="What was decided of a cell, by whom.")
def history(cell: CellArgument, lab: LabOption = None, json: JsonOption = False) -> None:
    from labref.lab import Lab

    rows = list(perform(Lab.find(lab), "duplicates.history", cell=cell))
    for row in rows:
        if json:
            print_json(row)
        else:
            row = printable(row)
            by = f" by {row['who']}" if row["who"] else ""
            say(f"{local(row['at'])}  {row['cell_id']} of {row['duplicate_of']}: {row['decision']}{by}")
    if not rows and not json:
        say(f"nobody has decided on {cell}")


@app.command(help=_FIND, short_help="Compare cells that an earlier labref stored.")
def find(lab: LabOption = None, json: JsonOption = False) -> None:
    from labref.lab import Lab

    (row,) = perform(Lab.find(lab), "duplicates.find")
    if json:
        print_json(row)
    else:
        say(f"{row['compared']} cells compared with all others")


def _decide(lab: Path | None, operation: str, json: bool, **parameters: Any) -> None:
    from labref.lab import Lab

    (row,) = perform(Lab.find(lab), operation, **parameters)
    if json:
        print_json(row)
    else:
        typer.echo(_pair(printable(row)))


def _once(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without the conflicts that are among the pairs, where they are marked: people see each pair of pictures once."""
    pairs = {(row["cell_id"], row["duplicate_of"]) for row in rows if row["kind"] == "pair"}
    return [row for row in rows if row["kind"] == "pair" or (row["cell_id"], row.get("duplicate_of")) not in pairs]


def _pair(row: dict[str, Any]) -> str:
    """A pair in one line, and its two files below it."""
    score = "not compared" if row["score"] is None else f"agree to {row['score']:.3f}"
    said = ""
    if row["decision"] is not None:
        by = f" by {row['who']}" if row["who"] else ""
        said = f"; {row['decision']}{by}, {local(row['decided_at'], day=True)}"
    conflict = "" if row["kind"] == "pair" and not row.get("conflict") else "  CONFLICT: one cell under two classes"
    lines = [f"{row['cell_id']}  {row['verdict']} of {row['duplicate_of']}  ({score}{said}){conflict}"]
    for name in ("cell", "other"):
        if row[name] is not None:
            lines.append(f"    {row[name]['label']} ({row[name]['label_source']})  {row[name]['path']}")
    return "\n".join(lines)


def _conflict(row: dict[str, Any]) -> str:
    """A conflict in one line, and what its files say below it."""
    if row.get("duplicate_of"):
        return _pair(row)
    lines = [
        f"{row['cell_id']}  CONFLICT: its files say different classes; it carries {row['label']} ({row['label_source']})"
    ]
    lines += [f"    {path['label']} ({path['label_source']})  {path['path']}" for path in row["paths"]]
    return "\n".join(lines)


def _draw(lab: "Lab", pairs: Sequence[dict[str, Any]], out: Path, only: Only | None) -> None:
    from labref.pictures.saving import save
    from labref.pictures.sheet import Tile, draw_sheet

    title, earlier = "Cells captured twice", "the earlier one"
    if only is Only.NEIGHBOUR:
        title = "Neighbours: two cells in pictures of one field"
    elif only is Only.CONFLICT:
        title, earlier = "One cell under two labels", "the other capture"
    tiles = []
    for row in pairs[:_MOST_DRAWN]:
        score = "not compared" if row["score"] is None else f"agree to {row['score']:.3f}"
        for cell_id, cell, lines in (
            (row["cell_id"], row["cell"], (row["cell_id"], f"{row['verdict']}, {score}")),
            (row["duplicate_of"], row["other"], (row["duplicate_of"], earlier)),
        ):
            kept = lab.kept_image(cell_id)
            label = "no longer there" if cell is None else cell["label"]
            tiles.append(Tile(None if kept is None else lab.decoder.decode(kept), label, lines))
    shown = min(len(pairs), _MOST_DRAWN)
    subtitle = f"{shown} of {len(pairs)} pairs; each cell with {earlier} on its right"
    try:
        save(draw_sheet(title, subtitle, tiles, columns=4), out)
    except (OSError, ValueError) as error:
        raise LabrefError(
            f"the picture could not be written to {out}: {error}. Give --grid a file name that ends in .png, in a folder "
            "that exists and can be written to."
        ) from None


def add_to(parent: typer.Typer) -> None:
    parent.add_typer(app, name="duplicates", short_help="Cells captured twice: list, look, decide.")
