"""`labref reading`: blinded readings, with and without references, and SVOMEN triplets."""

import json as json_
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from labref.cli._shared import JsonOption, LabOption, WhoOption, a_path, named, perform, print_json, say
from labref.errors import LabrefError
from labref.printing import printable
from labref.times import local

__all__ = ["add_to"]

_HELP = """Blinded readings: people classify cells with and without references, or say which of two cells is more like a third.

They read on the page `/reading` that the agent serves, each at their own pace. Nothing that they get names a cell, its slide
or its class. Here readings are started, ended, reported and exported.

\b
  labref reading start "Hard cells, spring" --cells 100
  labref reading list
  labref reading report 1
  labref reading export 2 --out triplets
"""
_START = """Start a blinded reading. Its cells are drawn at random, as many of each class as can be.

Only cells whose class a person gave are drawn, unless --truth says otherwise.

With --json, one object.

@reading.ReadingListed
"""
_LIST = """List the readings, the last first, and how many answers each reader has given.

With --json, one object a reading.

@reading.ReadingListed
"""
_END = """End a reading: nobody answers any more. --again lets it go on.

With --json, one object.

@reading.ReadingListed
"""
_REPORT = """Report a reading of classes: accuracy and time of each reader, with and without references, what references change, and
how well readers agree. In brackets the 95 % interval.

With --json, one object a row.

@reading.ReadingAccuracy @reading.ReadingDifference @reading.ReadingAgreement
"""
_EXPORT = """Export a reading of triplets as `python -m training svomen` reads it: DIR/set.json and DIR/votes.csv.

With --json, one object, and no file is needed.

@reading.ReadingTriplets
"""


class Kind(StrEnum):
    """What is asked."""

    CLASSES = "classes"
    TRIPLETS = "triplets"


class Arm(StrEnum):
    """How a cell is shown."""

    NONE = "none"
    LATENT = "latent"
    MAP = "map"


class Truth(StrEnum):
    """Whose labels are the truth."""

    REVIEWED = "reviewed"
    ANALYSER = "analyser"
    PREDICTED = "predicted"


class Network(StrEnum):
    """What the networks call the cells that are drawn."""

    ANY = "any"
    RIGHT = "right"
    WRONG = "wrong"


NumberArgument = Annotated[
    int, typer.Argument(metavar="NUMBER", min=1, help="Number of the reading.", show_default=False)
]


def start(
    title: Annotated[str, typer.Argument(metavar="TITLE", help="What it is called.", show_default=False)],
    lab: LabOption = None,
    kind: Annotated[Kind, typer.Option("--kind", help="Classes of cells, or triplets.")] = Kind.CLASSES,
    cells: Annotated[int, typer.Option("--cells", min=1, max=5000, help="How many cells.")] = 100,
    arms: Annotated[
        list[Arm] | None,
        typer.Option(
            "--shown",
            help="How each cell is shown; give it once for each way. Default: none and latent.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the draw.")] = 1,
    truth: Annotated[
        list[Truth] | None,
        typer.Option(
            "--truth", help="Whose labels are the truth; several may be given. Default: reviewed.", show_default=False
        ),
    ] = None,
    network: Annotated[
        Network, typer.Option("--network", help="Only cells that the networks call as they are labelled, or otherwise.")
    ] = Network.ANY,
    who: WhoOption = None,
    json: JsonOption = False,
) -> None:
    from labref.lab import Lab

    asked: dict[str, Any] = {"title": title, "kind": kind.value, "n": cells, "seed": seed, "bundle_is": network.value}
    asked |= {"arms": [arm.value for arm in arms or ()] or None, "sources": [one.value for one in truth or ()] or None}
    *_, row = perform(Lab.find(lab), "reading.start", who=named(who), **asked)
    _print(row, json)


def list_(lab: LabOption = None, json: JsonOption = False) -> None:
    from labref.lab import Lab

    rows = list(perform(Lab.find(lab), "reading.list"))
    for row in rows:
        _print(row, json)
    if not rows and not json:
        say("no readings")


def end(
    number: NumberArgument,
    lab: LabOption = None,
    again: Annotated[bool, typer.Option("--again", help="Let one that was ended go on.", show_default=False)] = False,
    json: JsonOption = False,
) -> None:
    from labref.lab import Lab

    (row,) = perform(Lab.find(lab), "reading.end", reading=number, again=again)
    _print(row, json)


def report(number: NumberArgument, lab: LabOption = None, json: JsonOption = False) -> None:
    from labref.lab import Lab

    rows = list(perform(Lab.find(lab), "reading.report", reading=number))
    for row in rows:
        if json:
            print_json(row)
        else:
            typer.echo(_reported(printable(row)))
    if not rows and not json:
        say("nobody has answered yet")


def export(
    number: NumberArgument,
    lab: LabOption = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", parser=a_path, metavar="DIR", help="The folder to write into.", show_default=False),
    ] = None,
    json: JsonOption = False,
) -> None:
    from labref.lab import Lab

    if out is None and not json:
        raise LabrefError("say with --out into which folder set.json and votes.csv are written, or ask for --json.")
    where = Lab.find(lab)
    if out is not None:
        where.refuse_output(out)
    (row,) = perform(where, "reading.triplets", reading=number)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "set.json").write_text(json_.dumps(row["set"], indent=0, ensure_ascii=False) + "\n", encoding="utf-8")
        (out / "votes.csv").write_text(row["votes"], encoding="utf-8", newline="")
    if json:
        print_json(row)
    else:
        say(f"{len(row['cells'])} pictures named in {out}/set.json, choices in {out}/votes.csv")


def _print(row: dict[str, Any], json: bool) -> None:
    if json:
        print_json(row)
        return
    row = printable(row)
    readers = ", ".join(f"{name or 'the lab'} {count}" for name, count in row["readers"].items()) or "nobody yet"
    ended = f", ended {local(row['ended_at'])}" if row["ended_at"] else ""
    typer.echo(
        f"{row['reading']}  {row['title']}  {row['kind']} ({', '.join(row['arms'])}), {row['cells']} cells, {row['tasks']} "
        f"tasks; answered: {readers}; since {local(row['started_at'], day=True)}{ended}"
    )


def _reported(row: dict[str, Any]) -> str:
    """A row of the report in one line."""
    if row["about"] == "agreement":
        people = ", ".join(name or "the lab" for name in row["people"])
        return f"agreement   {row['arm']:<8} {people}: kappa {_figure(row['kappa'])}, said the same {_figure(row['agreed'], True)}"
    who = "all" if row["person"] is None else row["person"] or "the lab"
    if row["about"] == "difference":
        p = "" if row["p"] is None else f", p {row['p']:.3f}"
        return (
            f"difference  {row['arm']:<8} against {row['base']}, {who}: accuracy {_figure(row['reviewed'], True)}{p}, seconds "
            f"{_figure(row['seconds'])}"
        )
    return (
        f"accuracy    {row['arm']:<8} {who}: {row['answers']} answers, {row['unsaid']} untold, as reviewed "
        f"{_figure(row['reviewed'], True)}, as the networks {_figure(row['predicted'], True)}, seconds {_figure(row['seconds'])}"
    )


def _figure(value: dict[str, Any], share: bool = False) -> str:
    if value["value"] is None:
        return "-"
    shown = [f"{value[part]:.1%}" if share else f"{value[part]:.2f}" for part in ("value", "low", "high")]
    return f"{shown[0]} ({shown[1]} to {shown[2]})"


def add_to(app: typer.Typer) -> None:
    group = typer.Typer(
        help=_HELP, short_help="Blinded readings: start, report, export.", no_args_is_help=True, rich_markup_mode=None
    )
    group.command("start", help=_START, short_help="Start a reading.")(start)
    group.command("list", help=_LIST, short_help="List the readings.")(list_)
    group.command("end", help=_END, short_help="End a reading.")(end)
    group.command("report", help=_REPORT, short_help="How the readers did.")(report)
    group.command("export", help=_EXPORT, short_help="Triplets, for training.")(export)
    app.add_typer(group, name="reading")
