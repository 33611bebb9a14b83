"""`labref ledger`: what became of every file."""

import os
from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from labref.cli._shared import JsonOption, LabOption, a_path, named, perform, print_json
from labref.errors import LabrefError
from labref.printing import printable
from labref.times import local

if TYPE_CHECKING:
    from labref.lab import Lab

__all__ = ["add_to"]

_HELP = """Say what became of every file found in the export folder: one line a file.

Outcomes: stored (a new cell), duplicate (of a stored cell), possible_duplicate (kept, for review), rejected (no
usable image; the reason says why and, where it helps, what to do). Works while the agent runs and while it does not.

\b
Examples:
  labref ledger
  labref ledger --outcome rejected                which files could not be used, and why
  labref ledger --path "D:/Export/a/LY_1.jpg"     what became of this file; exit code 1 where it has no outcome
  labref ledger --take-in "D:/Export/a/PLT_7.jpg" this file, or those of a folder, though they seem to hold nothing
  labref ledger --json > ledger.jsonl
  labref ledger --check                           prove that nothing is lost and nothing is there twice
  labref ledger --check --quick                   only what the store can say by itself, in a second
  labref ledger --check --digests                 and that each exported file still has the bytes of its cell
  labref ledger --check --repair                  put right what can be

With --json, one object a line for each file.

@ledger.LedgerEntry

--check looks whether each file in the export folders has its outcome and looks as it did then, whether each cell has its
original bytes with the right digest, and its embedding in the active bundle, all of it finite; whether of --latents N cells,
chosen at random, the latent is the one that the networks make of these bytes (some 30 ms each); and whether there are
outcomes, embeddings or kept bytes without a cell. With --digests each exported file is read as well, and its digest
compared with that of its cell: this finds a file that was replaced by one of equal size and times. Exit code 1 where there
is a fault. --repair embeds again, takes lost bytes from the export
file where that is still the same, removes links and embeddings of cells that are not there, has files taken in again
whose outcome stands for nothing, and moves bytes that no cell has to the lab's folder `unclaimed`.

--take-in has the agent take in, at its next scan, files that were rejected because they hold nothing: a blank picture, or
one without a stained cell. Each becomes a cell that is marked as doubtful, and no reference until a person decides.
With --take-in --json, one object for each file.

@ledger.TakenIn

With --check --json, one object.

@ledger.LedgerCheck
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
    take_in: Annotated[
        str | None,
        typer.Option(
            "--take-in",
            metavar="PATH",
            help="Take this file, or those of this folder, in although they seem to hold nothing.",
            show_default=False,
        ),
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Prove it, file by file and cell by cell.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="With --check: only the store against itself.")] = False,
    repair: Annotated[bool, typer.Option("--repair", help="With --check: put right what can be.")] = False,
    digests: Annotated[
        bool, typer.Option("--digests", help="With --check: read each exported file and compare its bytes, too.")
    ] = False,
    latents: Annotated[
        int,
        typer.Option("--latents", min=0, metavar="N", help="With --check: of so many cells the latent is made anew."),
    ] = 100,
    json: JsonOption = False,
) -> None:
    from labref.lab import Lab, absolute
    from labref.web.desk import ledger_rows

    if (quick or repair or digests) and not check:
        raise typer.BadParameter("--quick, --repair and --digests go with --check")
    if take_in is not None:
        if check or outcome or path or limit:
            raise typer.BadParameter("--take-in goes alone")
        for row in perform(Lab.find(lab), "ledger.take_in", path=str(absolute(a_path(take_in))), who=named(None)):
            if json:
                print_json(row)
            else:
                typer.echo(f"to be taken in at the next scan: {printable(row)['path']}")
        return
    if quick and digests:
        raise typer.BadParameter("--quick reads no file; leave out --digests")
    if check:
        if outcome or path or limit:
            raise typer.BadParameter("--check looks at every file; leave out --outcome, --path and --limit")
        _check(Lab.find(lab), quick=quick, repair=repair, digests=digests, latents=latents, json=json)
        return
    where, wanted = Lab.find(lab), outcome and outcome.value
    if path is not None:
        a_path(path)
    told = False
    for row in ledger_rows(where, outcome=wanted, path=path, limit=limit):
        told = True
        if json:
            print_json(row)
        else:
            typer.echo(_line(printable(row)))
    if told:
        return
    if path is not None:
        raise LabrefError(_why_none(where, path, wanted))
    if not json:
        typer.echo("No file has an outcome yet." if wanted is None else f"No file is {wanted.replace('_', ' ')}.")


def _why_none(lab: "Lab", path: str, outcome: str | None) -> str:
    """Why the ledger has no row of a file, and what to do."""
    from labref.lab import absolute
    from labref.web.desk import ledger_rows

    if outcome is not None:
        for row in ledger_rows(lab, path=path):
            return f"{row['path']} is {row['outcome']}, not {outcome}; leave out --outcome"
    file = absolute(Path(path))
    none = f"no outcome is recorded of {file}"
    if file.is_dir():
        return f"{none}: it is a folder; name one file, or leave out --path and look through all"
    if not os.path.lexists(file):
        return f"{none}, and no such file is there; look for its name in `labref ledger`"
    if not any(file.is_relative_to(folder) for folder in lab.watched):
        folders = ", ".join(str(folder) for folder in lab.watched) or "none"
        return f"{none}: it lies in no watched folder ({folders}); name it as it lies there"
    if not file.name.lower().endswith(lab.config.watch.extensions):
        return f"{none}: its name does not end like an image's ([watch] extensions in {lab.config_file})"
    return f"{none} yet; a running agent takes it in soon, else `labref agent --once` does"


def _line(row: Mapping[str, Any]) -> str:
    cell = f"{row['cell_id']}  {row['label']} ({row['label_source']})" if row["cell_id"] else None
    conflict = f"CONFLICT: files with these bytes say {' and '.join(row['conflict'])}" if row["conflict"] else None
    beside = f"beside cell {' and '.join(row['neighbours'])} in one field" if row.get("neighbours") else None
    what = "; ".join(part for part in (cell, row["reason"], conflict, beside) if part)
    return f"{local(row['at'])}  {row['outcome']:<18}  {row['path']}  {what}"


def _check(lab: "Lab", *, quick: bool, repair: bool, digests: bool, latents: int, json: bool) -> None:
    said: dict[str, Any] = {
        "ok": False,
        "summary": None,
        "checked": None,
        "faults": [],
        "repaired": {},
        "seconds": None,
    }
    for row in perform(lab, "ledger.check", quick=quick, repair=repair, digests=digests, latents=latents):
        if "fault" in row:
            said["faults"].append(row)
        elif "repaired" in row:
            said["repaired"][row["repaired"]] = row["count"]
        else:
            said |= row
        if not json:
            typer.echo("\n".join(_told(printable(row))))
    if json:
        print_json(said)
    if not said["ok"]:
        kinds = ", ".join(fault["fault"] for fault in said["faults"])
        raise LabrefError(
            f"the ledger does not agree with what is there: {kinds}. What to do about each is said with it."
        )


def _told(row: Mapping[str, Any]) -> Iterator[str]:
    from labref.export.scan import left_alone

    if "summary" in row:
        summary = row["summary"]
        outcomes = " + ".join(f"{n} {name}" for name, n in summary["outcomes"].items())
        yield f"{summary['files']} files = {outcomes}"
        yield f"{summary['cells']} cells, {summary['embeddings']} embeddings in the active bundle's space"
    elif "repaired" in row:
        done = "will be read again" if row["repaired"] == "file_differs" else "repaired"
        yield f"{done}: {row['count']} x {row['repaired']}"
    elif "fault" in row:
        yield f"FAULT: {row['count']} x {row['fault']}; {row['remedy']}"
        yield from (f"  {example}" for example in row["examples"])
    else:
        if export := row["checked"]["export"]:
            gone = f", {export['gone']} with an outcome are gone from there" if export["gone"] else ""
            yield f"{export['with_outcome']} of {export['on_disk']} files in the export folders have their outcome{gone}"
            yield from left_alone(export["others"], export["reserved"])
        if images := row["checked"]["images"]:
            trashed = f", {images['in_trash']} of them of removed cells in the trash" if images["in_trash"] else ""
            yield f"{images['read']} kept images read{trashed}, {images['bytes'] / 1e6:.0f} MB"
        if latents := row["checked"]["latents"]:
            yield f"{latents['compared']} latents made anew from the kept bytes, of cells chosen at random"
        yield f"{'All is well' if row['ok'] else 'Not all is well'}, after {row['seconds']:.1f} s."


def add_to(app: typer.Typer) -> None:
    app.command(help=_HELP, short_help="What became of every file found.")(ledger)
