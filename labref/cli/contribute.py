"""`labref contribute`: reviewed cells for the centre, without anything that names a patient."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from labref.cli._shared import JsonOption, LabOption, a_path, counted, perform, print_json, say
from labref.errors import LabrefError

if TYPE_CHECKING:
    from labref.lab import Lab

__all__ = ["add_to"]

_HELP = """Give reviewed cells to the centre: one signed file, without anything that names a patient.

Only cells whose label a person gave leave, in labref or in the analyser. Of each: its prepared picture of 256×256 pixels (no
EXIF and no text of the file), its class, where that was said and how often, measures of the picture, its latent, and
pseudonyms of the cell and its analyser. No slide, patient, folder, file, date and reviewer leaves; --shift-dates gives the
days of capture, moved by a number of days that only this lab's key knows, without the time of day. What is burnt into the
pixels beside a cell can be seen in its picture: look at the sheet of --preview.

--preview says exactly what leaves, and what stays and why, draws some of the pictures, and asks before it writes. Give it
before the first pack, and to whoever has to agree.

A pack holds what is new, or has another label, since the one before, and names the cells that the lab no longer has or no
longer calls reviewed, so that the centre drops them. --everything gives all, where the centre lost a pack. The pack is signed
with the lab's own key, made when it is first needed: `labref key own` shows its id, by which the centre comes to trust it.
How the file goes to the centre is up to you; a stick will do.

\b
Examples:
  labref contribute --preview --sheet sheet.png
  labref contribute --out E:/lund-1.pack --consent "CC BY 4.0" --preview
  labref contribute --out E:/lund-2.pack --consent "CC BY 4.0"

With --json, one object: of --preview alone what would leave, else what was written.

@contribute.PackPreview @contribute.PackWritten
"""
_NOBODY = (
    "Nothing in a pack names a slide, patient, folder, file or person, nor the lab or its analysers. What is burnt into a picture beside "
    "its cell would be seen: look at --sheet."
)
_REASONS = {
    "not_reviewed": "no person gave its label",
    "class_not_declared": "only the name of a folder says its class, which could be a patient's; name it in [watch.labels]",
    "changed_since": "it came, or got another label, since this was looked at; the next pack has it",
    "bytes_lost": "its kept picture is missing or damaged; see `labref ledger --check`",
}


def contribute(
    lab: LabOption = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", parser=a_path, metavar="PACK", help="A new file, usually ending in .pack.", show_default=False
        ),
    ] = None,
    consent: Annotated[
        str | None,
        typer.Option(
            "--consent",
            metavar="WORDS",
            help="On what ground the lab gives them: a licence or a consent, in a word or two. Needed with --out.",
            show_default=False,
        ),
    ] = None,
    preview: Annotated[
        bool,
        typer.Option("--preview", help="Show what leaves; with --out, ask before it is written.", show_default=False),
    ] = False,
    sheet: Annotated[
        Path | None,
        typer.Option(
            "--sheet",
            parser=a_path,
            metavar="OUT.png",
            help="Draw some of the pictures that leave.",
            show_default=False,
        ),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--everything", help="All, not only what is new since the last pack.", show_default=False)
    ] = False,
    shift_dates: Annotated[
        bool, typer.Option("--shift-dates", help="With days of capture, moved.", show_default=False)
    ] = False,
    json: JsonOption = False,
) -> None:
    from labref.lab import Lab, absolute

    if out is None and not preview and sheet is None:
        raise typer.BadParameter("say where the pack goes: --out lund-1.pack, or ask for --preview")
    if out is not None and consent is None:
        raise typer.BadParameter('say on what ground the cells are given: --consent "CC BY 4.0"')
    where = Lab.find(lab)
    how = {"everything": everything, "shift_dates": shift_dates}
    as_of = None
    if preview or sheet is not None:
        if sheet is not None:
            where.refuse_output(sheet)
        (shown,) = perform(where, "contribute.preview", **how)
        as_of = shown["as_of"]
        if json and out is None:
            print_json(shown)
        else:
            _show(shown, err=json)
        if sheet is not None and not shown["samples"]:
            say(f"No picture would leave, so {sheet} is not drawn.", err=json)
        elif sheet is not None:
            _draw(where, shown, sheet)
            say(f"Pictures of {counted(len(shown['samples']), 'cell')} are in {sheet}.", err=json)
        if out is None:
            return
        if preview:
            if not shown["cells"] and not shown["removed"]:
                say("Nothing is new since the last pack; none is written.", err=json)
            else:
                typer.confirm(f"Write this into {out}, given under the words {consent!r}?", abort=True, err=True)
    assert out is not None and consent is not None
    (row,) = perform(where, "contribute.write", target=str(absolute(out)), consent=consent, as_of=as_of, **how)
    if json:
        print_json(row)
        return
    if row["target"] is None:
        say("Nothing is new since the last pack, so none was written.")
        return
    say(
        f"{row['target']} holds {_changes(row)}: {row['bytes'] / 1e6:.1f} MB, signed by the lab's key {row['lab']}. Bring it to the "
        "centre, which takes it in once it trusts that key: `labref key own` gives its public file."
    )
    for reason, number in row["left_out"].items():
        say(f"  {number:>8}  stay: {_REASONS[reason]}")


def _show(row: dict[str, Any], *, err: bool) -> None:
    """What would leave, for people."""
    after = "all that the lab gives" if row["follows"] is None else f"what is new since pack {row['follows']}"
    say(f"A pack of the lab {row['lab']}: {after}, as of now.", err=err)
    say("What leaves of each cell:", err=err)
    for column in row["columns"]:
        say(f"  {column['name']:<17} {column['type']:<10} {column['what']}", err=err)
    say(f"It would hold {_changes(row)}.", err=err)
    if row["given_before"]:
        say(f"The centre has {counted(row['given_before'], 'cell')} already, as they are now.", err=err)
    for label, number in row["classes"].items():
        say(f"  {number:>8}  {label}", err=err)
    for optics, number in row["optics"].items():
        name = row["analysers"][optics]
        whose = "an analyser without a name" if name is None else f"the analyser {name}"
        say(f"  {number:>8}  from {whose}, called {optics} there", err=err)
    for reason, number in row["left_out"].items():
        say(f"  {number:>8}  stay: {_REASONS[reason]}", err=err)
    say(_NOBODY, err=err)


def _changes(row: Mapping[str, Any]) -> str:
    """How many cells a pack holds, and how many the centre is told to drop."""
    told = counted(row["cells"], "cell")
    if row["again"]:
        told += f" ({row['again']} of them given before, with another label or history now)"
    if row["removed"]:
        told += f", and {counted(row['removed'], 'cell')} for the centre to drop"
    return told


def _draw(lab: "Lab", row: dict[str, Any], out: Path) -> None:
    from labref.errors import UnreadableImageError
    from labref.pictures.saving import save
    from labref.pictures.sheet import Tile, draw_sheet

    tiles = []
    for one in row["samples"]:
        data, crop = lab.kept_image(one["cell_id"]), None
        if data is not None:
            try:
                crop = lab.decoder.prepare(data).crop
            except UnreadableImageError:
                crop = None
        tiles.append(Tile(crop, one["label"], (f"analyser {one['optics']}",)))
    title = f"{counted(row['cells'], 'cell')} would leave; here are {len(tiles)}"
    subtitle = "Each picture as it leaves, 256×256 pixels, with its class and the pseudonym of its analyser"
    try:
        save(draw_sheet(title, subtitle, tiles), out)
    except (OSError, ValueError) as error:
        raise LabrefError(
            f"{out} could not be written: {getattr(error, 'strerror', None) or error}. Give --sheet a name that ends in .png, in a folder "
            "that can be written."
        ) from None


def add_to(app: typer.Typer) -> None:
    app.command(help=_HELP, short_help="Give reviewed cells to the centre, de-identified.")(contribute)
