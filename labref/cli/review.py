"""`labref review`: the cells that wait for a person's decision."""

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from labref.cli._shared import JsonOption, LabOption, WhoOption, named, perform, print_json, say
from labref.printing import printable

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["add_to"]

_HELP = """Cells that wait for a person's decision, in queues.

\b
suspects      suspect labels: their class disagrees with the cells about them
unidentified  their label is no opinion, as "Unidentified"; the cells about them suggest a class
doubtful      nobody reviewed them, and no class is probable
novel         nobody reviewed them, and nothing in the lab resembles them
pictures      their picture is doubted, so they are no references until somebody decides

Possible duplicates wait as well; `labref duplicates` lists them.

\b
  labref review queues
  labref review list suspects
  labref review decide suspects 3f2a9c0d11e87b64 monocyte
  labref review undo suspects 3f2a9c0d11e87b64
"""
_QUEUES = """Say how much waits in each queue.

With --json, one object.

@review.ReviewQueues
"""
_LIST = """List the first cells of a queue, each with the classes of the nearest hundred.

With --json, one object a cell.

@review.CellInQueue
"""
_DECIDE = """Decide on a cell of a queue: give it a class, or, without LABEL, say that the one it carries is right.

With --json, one object.

@review.ReviewDecided
"""
_UNDO = """Take back the last decision on a cell of a queue: it waits again.

With --json, one object.

@review.ReviewDecided
"""


class Queue(StrEnum):
    """A queue of single cells."""

    SUSPECTS = "suspects"
    UNIDENTIFIED = "unidentified"
    DOUBTFUL = "doubtful"
    NOVEL = "novel"
    PICTURES = "pictures"


QueueArgument = Annotated[Queue, typer.Argument(help="Which queue.", show_default=False)]
CellArgument = Annotated[
    str, typer.Argument(metavar="CELL", help="The cell's id, or its beginning.", show_default=False)
]


def queues(lab: LabOption = None, json: JsonOption = False) -> None:
    from labref.lab import Lab

    (row,) = perform(Lab.find(lab), "review.queues")
    if json:
        print_json(row)
        return
    for name in ("duplicates", "suspects", "unidentified", "doubtful", "novel", "pictures"):
        typer.echo(f"{name:<13} {'no map yet' if row[name] is None else row[name]}")


def list_(
    queue: QueueArgument,
    lab: LabOption = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=50, help="At most this many.")] = 10,
    json: JsonOption = False,
) -> None:
    from labref.lab import Lab

    rows = list(perform(Lab.find(lab), "review.cells", queue=queue.value, limit=limit))
    for row in rows:
        if json:
            print_json(row)
            continue
        row = printable(row)
        why = f"the networks say {row['predicted']}, {row['probability']:.0%}"
        if row["neighbourhood"] is not None:
            why = f"of the cells about it, {row['share']:.0%} are {row['neighbourhood']}"
        if row["doubt"] is not None:
            why = row["doubt"]
        near = ", ".join(f"{label} {share:.0%}" for label, share in list(row["weights"].items())[:3] if share >= 0.005)
        typer.echo(f"{row['cell_id']}  {row['label']} ({row['label_source']}); {why}; near: {near}")
    if not rows and not json:
        say(f"nothing waits in {queue.value}")


def decide(
    queue: QueueArgument,
    cell: CellArgument,
    label: Annotated[
        str | None,
        typer.Argument(metavar="[LABEL]", help="The class. Default: the one it carries.", show_default=False),
    ] = None,
    lab: LabOption = None,
    who: WhoOption = None,
    json: JsonOption = False,
) -> None:
    _decided("review.decide", lab, json, queue=queue.value, cell=cell, label=label, who=named(who))


def undo(
    queue: QueueArgument, cell: CellArgument, lab: LabOption = None, who: WhoOption = None, json: JsonOption = False
) -> None:
    _decided("review.undo", lab, json, queue=queue.value, cell=cell, who=named(who))


def _decided(operation: str, lab: "Path | None", json: bool, **parameters: Any) -> None:
    from labref.lab import Lab

    (row,) = perform(Lab.find(lab), operation, **parameters)
    if json:
        print_json(row)
    else:
        say(f"{row['cell_id']}: {row['label']} ({row['label_source']}), was {row['previous']}")


def add_to(app: typer.Typer) -> None:
    group = typer.Typer(
        help=_HELP, short_help="Cells that wait for a decision.", no_args_is_help=True, rich_markup_mode=None
    )
    group.command("queues", help=_QUEUES, short_help="How much waits.")(queues)
    group.command("list", help=_LIST, short_help="The first cells of a queue.")(list_)
    group.command("decide", help=_DECIDE, short_help="Decide on a cell.")(decide)
    group.command("undo", help=_UNDO, short_help="Take back the last decision.")(undo)
    app.add_typer(group, name="review")
