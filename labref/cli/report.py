"""`labref report`: what the lab's references are worth, before it goes live."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from labref.cli._shared import JsonOption, LabOption, a_path, perform, print_json, say
from labref.errors import LabrefError

if TYPE_CHECKING:
    from labref.lab import Lab

__all__ = ["add_to"]

_HELP = """Say what the lab's own references are worth, for each analyser: read it before the lab goes live.

Cells that people reviewed are asked as if they were new: none is its own reference, nor is another picture of it. The
report gives the share of the eight references that have the cell's class, class by class, with intervals, and says
which classes are too small to trust. Beside that: recaptures, cells that nothing resembles, pictures that are no cell,
focus and colour against what the bundle was trained on, twenty answers drawn at random, and the twenty worst. It says
what to settle first; whether the lab goes live, a person decides.

The HTML is one file that needs nothing beside it, and prints on A4. Cells stand in it by their id, class and day, with
their picture; no slide and no file is named. --counts-only leaves the numbers alone, to send to the centre: no picture,
no cell, no name of an analyser, and of classes only the names that every labref knows; the id of the lab's own key and
pseudonyms of its analysers, as its packs carry them, where it has such a key. Of each analyser at most --sample
cells are asked, drawn class by class with --seed, so that it takes minutes in a lab of a million cells too.

\b
Examples:
  labref report --out report.html
  labref report --json --counts-only > numbers.json  to send to the centre
  labref report --out numbers.html --counts-only     the same for people
  labref report --out report.html --sample 5000 --seed 7 --language sv

Works while the agent runs, in its background, and while it does not. The pages show the report made last at /report.

With --json, one object.

@report.LabReport
"""


class Language(StrEnum):
    """Language of the file."""

    EN = "en"
    SV = "sv"
    DE = "de"


def report(
    lab: LabOption = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", parser=a_path, metavar="FILE.html", help="Where the report goes.", show_default=False),
    ] = None,
    counts_only: Annotated[
        bool, typer.Option("--counts-only", help="The numbers alone: no picture, and no name of the lab's.")
    ] = False,
    sample: Annotated[
        int, typer.Option("--sample", min=20, max=20_000, help="Cells of each analyser to ask, at most.")
    ] = 1000,
    seed: Annotated[int, typer.Option("--seed", min=0, max=2**32 - 1, help="Seed of what is drawn.")] = 1,
    language: Annotated[Language, typer.Option("--language", help="Language of the file.")] = Language.EN,
    json: JsonOption = False,
) -> None:
    from labref.lab import Lab

    if out is None and not json:
        raise typer.BadParameter("say where the report goes: --out report.html, or ask for --json")
    where = Lab.find(lab)
    if out is not None:
        where.refuse_output(out)
        _refuse_no_place(out)
    (made,) = perform(where, "report.make", sample=sample, seed=seed, counts_only=counts_only)
    if out is not None:
        _write(where, made, language.value, out)
    if json:
        print_json(made)
        return
    for row in made["analysers"]:
        say(_line(row))
    say(f"written to {out}")


def _refuse_no_place(out: Path) -> None:
    """Raise `LabrefError` at once where the file could not be written minutes later."""
    if out.is_dir() or not out.absolute().parent.is_dir():
        raise LabrefError(f"{out} cannot be written: give --out a file name in a folder that exists.")


def _write(lab: "Lab", made: dict[str, Any], language: str, out: Path) -> None:
    from labref.lab.pictures import Pictures
    from labref.web.report import as_file

    pictures = Pictures(lab, lambda _: True)  # the agent may have the store; the bytes are looked for by the id
    text = as_file(made, language, lambda cell_id: pictures.of_cell(cell_id, "thumb"))
    try:
        out.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise LabrefError(
            f"{out} could not be written: {error.strerror or error}. Look at the free disk space and the rights of the folder."
        ) from None


def _line(row: dict[str, Any]) -> str:
    """One analyser, for people."""
    name, figure = row["analyser"] or "(analyser without a name)", row["precision"]
    settle = sum(one["level"] == "settle" for one in row["findings"])
    if row["basis"] != "reviewed" or figure["value"] is None:
        told = "precision not known, as nobody reviewed a cell" if row["basis"] != "reviewed" else "precision not known"
    else:
        told = (
            f"precision {figure['value']:.1%} ({figure['low']:.1%} to {figure['high']:.1%}) over cells, "
            f"{row['precision_of_classes']['value']:.1%} over classes"
        )
    things = "nothing to settle first" if not settle else f"{settle} thing{'s' if settle > 1 else ''} to settle first"
    return f"{name}: {row['asked']} of {row['distinct']} distinct cells asked, {told}; {things}"


def add_to(app: typer.Typer) -> None:
    app.command(help=_HELP, short_help="What the references are worth, before going live.")(report)
