"""`labref slide`: the slides, what is on each, who approved it."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from labref.cli._shared import JsonOption, LabOption, WhoOption, named, perform, print_json, say
from labref.printing import printable
from labref.times import local

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["add_to"]

_HELP = """The slides of the lab: which there are, the differential of each, who approved it.

A slide is named by its key, which `labref slide list` shows and the pages' addresses have, or by its name. Slides of one name
in two watched folders are two slides: each is shown with its folder, and named by its key. An approval ends
by itself when a cell comes to the slide or moves away from it, or one of its cells gets another class.

\b
  labref slide list
  labref slide show 26-1174
  labref slide approve 26-1174 --who "A. Lind"
"""
_LIST = """List the slides; first the one whose last cell came last.

With --json, one object that says how many there are, and one for each slide.

@slide.SlidesFound @slide.SlideListed
"""
_SHOW = """Show a slide: its differential, and with --cells each of its cells.

Per cent are of the leukocytes; erythroblasts and what is none of either are counted apart.

With --json, one object of the slide, one for each of its classes, with --cells one for each cell, and one for each other
slide of the same patient, where the folders say so.

@slide.SlideShown @slide.SlideClass @slide.SlideCell @slide.SlideKin
"""
_APPROVE = """Approve a slide as it is now.

With --json, one object.

@slide.SlideListed
"""
_UNAPPROVE = """Take the approval of a slide back.

With --json, one object.

@slide.SlideListed
"""

SlideArgument = Annotated[
    str, typer.Argument(metavar="SLIDE", help="The slide: its key or its name.", show_default=False)
]
_STANDING = {
    "approved": "",
    "cells came": ", ended: cells came",
    "cells left": ", ended: cells left",
    "labels changed": ", ended: labels changed",
}


def list_(
    lab: LabOption = None,
    search: Annotated[
        str, typer.Option("--search", metavar="TEXT", help="Only slides whose name has this in it.", show_default=False)
    ] = "",
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="At most this many.")] = 50,
    offset: Annotated[int, typer.Option("--offset", min=0, help="Pass over so many.")] = 0,
    json: JsonOption = False,
) -> None:
    from labref.lab import Lab

    found, *rows = perform(Lab.find(lab), "slide.list", search=search, limit=limit, offset=offset)
    if json:
        for row in (found, *rows):
            print_json(row)
        return
    for row in rows:
        typer.echo(_line(row))
    if len(rows) < found["slides"]:
        say(f"{len(rows)} of {found['slides']} slides; --offset {offset + len(rows)} goes on")
    elif not rows:
        say("no slides")


def show(
    slide: SlideArgument,
    lab: LabOption = None,
    cells: Annotated[bool, typer.Option("--cells", help="Each of its cells too.", show_default=False)] = False,
    json: JsonOption = False,
) -> None:
    from labref.lab import Lab

    about, *rows = perform(Lab.find(lab), "slide.show", slide=slide, limit=3000 if cells else 0)
    if json:
        for row in (about, *rows):
            print_json(row)
        return
    typer.echo(_line(about))
    for row in map(printable, rows):
        if "kind" in row:
            share = "" if row["share"] is None else f"{row['share']:.1%}"
            left = f", {row['awaiting']} not reviewed" if row["awaiting"] else ""
            typer.echo(f"  {row['label']:<24} {row['cells']:>6} {share:>7}{left}")
        elif "cell_id" in row:
            odd = ", odd" if row["odd"] else ""
            typer.echo(f"  {row['cell_id']}  {row['label']} ({row['label_source']}){odd}")
        else:
            typer.echo(f"  same patient: {_name(row)}  {row['slide']}  {row['cells']} cells")
    if about["erythroblasts"]:
        typer.echo(f"  {about['erythroblasts']:.1f} erythroblasts for 100 leukocytes")


def approve(slide: SlideArgument, lab: LabOption = None, who: WhoOption = None, json: JsonOption = False) -> None:
    _decide("slide.approve", slide, lab, who, json)


def unapprove(slide: SlideArgument, lab: LabOption = None, who: WhoOption = None, json: JsonOption = False) -> None:
    _decide("slide.unapprove", slide, lab, who, json)


def _decide(operation: str, slide: str, lab: "Path | None", who: str | None, json: bool) -> None:
    from labref.lab import Lab

    (row,) = perform(Lab.find(lab), operation, slide=slide, who=named(who))
    if json:
        print_json(row)
    else:
        typer.echo(_line(row))


def _line(row: dict[str, Any]) -> str:
    """A slide in one line."""
    row = printable(row)
    waiting = f"{row['awaiting']} not reviewed" if row["awaiting"] else "all reviewed"
    given, said = row["approval"], "not approved"
    if given is not None:
        by = f" by {given['who']}" if given["who"] else ""
        said = f"approved{by}, {local(given['at'])}{_STANDING[given['standing']]}"
    return f"{row['slide']}  {_name(row)}  {row['cells']} cells, {waiting}; last {local(row['latest_at'])}; {said}"


def _name(row: dict[str, Any]) -> str:
    """What a slide is called, with its watched folder where several are called so."""
    return row["name"] if row["folder"] is None else f"{row['name']} ({row['folder']})"


def add_to(app: typer.Typer) -> None:
    group = typer.Typer(
        help=_HELP, short_help="Slides: list, differential, approve.", no_args_is_help=True, rich_markup_mode=None
    )
    group.command("list", help=_LIST, short_help="List the slides.")(list_)
    group.command("show", help=_SHOW, short_help="Show a slide's differential.")(show)
    group.command("approve", help=_APPROVE, short_help="Approve a slide as it is now.")(approve)
    group.command("unapprove", help=_UNAPPROVE, short_help="Take an approval back.")(unapprove)
    app.add_typer(group, name="slide")
