"""`labref store`: the life of the store."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from labref.cli._shared import (
    JsonOption,
    LabOption,
    WhoOption,
    a_path,
    counted,
    here,
    named,
    perform,
    print_json,
    say,
    without_progress,
)
from labref.errors import LabrefError
from labref.printing import printable
from labref.times import local

__all__ = ["add_to"]

_FEW = 5  # files or cells that are named

_HELP = """Look after the lab's store: is it sound, back it up, restore it, take it to other programs.

Works while the agent runs, and while it does not. What labref.toml's [retention] lets go of: `labref store retain`; how it
comes back: `labref store trash`.

\b
Examples:
  labref store check
  labref store backup E:/labref-backup
  labref store restore E:/labref-backup D:/lab
  labref store export cells.parquet
  labref store remove --slide 26-1174 --why "consent withdrawn" --dry-run
"""

_CHECK = """Read every block of the store and every file of its bundles, and say whether all is sound.

The blocks are read from the disk, those of indexes too, whatever labref holds in memory (but not on Windows).

Exit code 1 where something is not. For each file and each cell: `labref ledger --check`.

With --json, one object.

@store.StoreChecked
"""

_BACKUP = """Copy the whole lab, as of one moment, to a safe place: store, original bytes of every cell, bundles, maps, labref.toml.

TARGET is a folder, or a new file where its name ends in .zip. The same folder can be used again: only cells that it does
not have are copied, and the earlier backup is whole until the new one is. Every file written is read back. The lab's token,
a secret, is not copied. Slides and paths are in it: keep it as safe as the lab.

\b
Examples:
  labref store backup E:/labref-backup           every night, from the system's scheduler
  labref store backup /mnt/usb/lab-2026-11.zip

With --json, one object. Where something is missing, ok is false and the exit code 1.

@store.BackedUp
"""

_RESTORE = """Make a lab anew from a backup, here or on another computer.

FOLDER must be empty or not exist. Every file is compared with its digest, the store is read whole and brought to this
labref's schema; where anything fails, nothing is left. A backup by a newer labref is refused, with its version.

--watch gives the export folders another name, as on another computer; all else in labref.toml stays. Give as many as the
lab had, in its order: each has the analyser of the one in whose place it stands. Of more or fewer, only a folder of the
same name keeps its analyser. Slides and approvals go with the folder that they lie in.

\b
Examples:
  labref store restore E:/labref-backup D:/lab
  labref store restore lab-2026-11.zip lab --watch "D:/CellaVision/Export"

With --json, one object.

@lab.LabRestored
"""

_EXPORT = """Write all cells into one Parquet file, which DuckDB, pandas and Embedding Atlas open.

Columns: cell_id, label, label_source, analyser, captured_at, added_at (UTC), width, height, predicted_label,
predicted_probability, probabilities {label: p}, latent, map_row, map_column, map_error (null without a map), duplicate_of,
duplicate_verdict, digest, is_cell and doubt (whether the picture shows one cell, and what is wrong with it), thumbnail
{bytes: a JPEG of the prepared crop, path}, bundle. With --identifying also slide, folder (the watched folder of the slide) and path, which can name a patient. Without it, label is null where only the name of a folder says the class, which could be a
patient's; a class of the bundle, of CellaVision, of [watch.labels], or that people gave is written.

\b
Examples:
  labref store export cells.parquet
  embedding-atlas cells.parquet --vector latent
  duckdb -c "SELECT label, count(*) FROM 'cells.parquet' GROUP BY ALL"

With --json, one object.

@store.Exported
"""

_RETAIN = """Let go of the cells that labref.toml's [retention] no longer keeps; the agent does so once a day by itself.

By default a lab keeps every cell. A cell that goes is said in the ledger (rejected, with the reason), and no file brings it
back; for [retention] trash_days `labref store bring-back` does, then its kept bytes are deleted. Reviewed cells go last, if
at all. In a day no more than [retention] percent_a_day of all cells go, however often this is called.

How old a cell is counts by the time that the lab has seen pass, not by what its computer's clock says now: a jump of the
clock, or months in which nothing ran, do not count. --dry-run names them.

\b
Examples:
  labref store retain --dry-run          which cells would go, and why
  labref store retain

With --json, objects a line: of a dry run one for each cell, and one at the end.

@store.CellDue @store.CellsDue @store.CellsRemoved
"""

_REMOVE = """Remove cells or whole slides, as where a patient withdraws consent.

A cell is named by its id, the beginning of it, or the path of a file; a slide by its name or its key. All other captures of a
cell go with it, on whatever slide they are. What may be a capture, and nobody has decided on, stays as a cell of its own:
--dry-run names such cells, `labref duplicates confirm` decides. If a capture is really another cell: `labref duplicates reject`. The ledger says why each file has no cell any more, and no file brings it back. What other labs
see of these cells goes as well.

Without --erase they can be brought back for [retention] trash_days: `labref store bring-back`. With it they are gone for good, with
those of them that were in the trash before: images, latents, labels, and the paths and slides by which the ledger names them. Delete their files in the export
folder first: a file that is still there keeps its line in the ledger, until the command is given again. What labref cannot reach: backups
that were made before, Parquet files and reports that were written, pictures that people printed. The store's own file may
hold unreadable remains until it is written anew, by `labref store backup` and `labref store restore`.

\b
Examples:
  labref store remove --slide 26-1174 --why "consent withdrawn" --dry-run      which cells would go
  labref store remove --slide 26-1174 --why "consent withdrawn" --erase
  labref store remove 3f0c2a9b --why "taken by mistake"

With --json, of a dry run one object a line for each cell, and one at the end; else one object.

@store.CellGoing @store.CellsGoing @store.CellsWithdrawn
"""

_TRASH = """List the removed cells that can be brought back, those first that were removed first.

They stay for [retention] trash_days of labref.toml, counted over days that the lab saw pass, and take as much room as
before. To have that room at once: `labref store empty-trash`.

With --json, one object a line.

@store.CellInTrash
"""

_BRING_BACK = """Bring removed cells back as they were: bytes, labels, latents, places on the map, links.

Their files get back the outcomes that they had. For retention such a cell counts as if it had come today.

\b
Examples:
  labref store bring-back 3f0c2a9b        the beginning of its id will do
  labref store bring-back --all

With --json, one object. Exit code 1 where kept bytes of a cell are gone.

@store.BroughtBack
"""

_EMPTY_TRASH = """Let go for good of the removed cells, with their kept bytes, so that the disk has their room.

With --json, one object.

@store.TrashEmptied
"""

store = typer.Typer(
    help=_HELP,
    short_help="Check, back up, restore and export the store.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@store.command(help=_CHECK, short_help="Is the store sound?")
def check(lab: LabOption = None, json: JsonOption = False) -> None:
    from labref.lab import Lab

    (row,) = perform(Lab.find(lab), "store.check")
    if json:
        print_json(row)
    else:
        say(
            f"{row['file']}: schema {row['schema']}, {row['bytes'] / 1e6:.1f} MB, {row['free_bytes'] / 1e9:.1f} GB free"
        )
        if row["blocks"] is None:
            say("  its blocks cannot be read from the disk here while it is open; indexes were not looked at")
        else:
            say(f"  {'blocks':<20} {row['blocks']:>10} read from the disk")
        for what, n in row["damaged"].items():
            say(f"  DAMAGED: {n} blocks, of {what}")
        for name, rows in row["tables"].items():
            say(f"  {name:<20} {rows:>10} rows read")
        for bundle in row["bundles"]:
            active = ", active" if bundle["active"] else ""
            say(f"  bundle {bundle['digest'][:12]}{active}: {bundle['state']}")
        say("All is sound." if row["ok"] else "Not all is sound.")
    if not row["ok"]:
        wrong = [f"{n} x {kind}" for kind, n in row["faults"].items()]
        wrong += [str(bundle["problem"]) for bundle in row["bundles"] if bundle["problem"]]
        if row["damaged"] and row["tables"]:
            raise LabrefError(
                f"the store is not sound: {'; '.join(wrong)}. All its rows can still be read: look at the disk, make a backup "
                "with `labref store backup`, and a lab from it with `labref store restore`, which makes the indexes anew."
            )
        raise LabrefError(
            f"the store is not sound: {'; '.join(wrong)}. Look at `labref ledger --check`, or restore a backup."
        )


@store.command(help=_BACKUP, short_help="Copy the lab to a safe place, while the agent runs.")
def backup(
    target: Annotated[
        Path, typer.Argument(parser=a_path, metavar="TARGET", help="A folder, or a new file ending in .zip.")
    ],
    lab: LabOption = None,
    json: JsonOption = False,
) -> None:
    from labref.lab import Lab, absolute

    (row,) = perform(Lab.find(lab), "store.backup", target=str(absolute(target)))
    if json:
        print_json(row)
    else:
        say(
            f"{row['cells']} cells, {row['bytes'] / 1e6:.1f} MB, are in {row['target']}; {row['images_copied']} images were "
            "copied, the others were there. All was read back."
        )
    if not row["ok"]:
        raise LabrefError(
            f"{len(row['missing'])} cells have lost their original bytes and are in the backup without; see `labref ledger --check`"
        )


@store.command(help=_RESTORE, short_help="Make a lab anew from a backup.")
def restore(
    source: Annotated[Path, typer.Argument(parser=a_path, metavar="BACKUP", help="A backup: a folder or a .zip file.")],
    folder: Annotated[Path, typer.Argument(parser=a_path, metavar="FOLDER", help="Where the lab is to be.")],
    watch: Annotated[
        list[Path] | None,
        typer.Option(
            "--watch",
            parser=a_path,
            metavar="DIR",
            help="Export folder to watch from now on; several times for several.",
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    from labref.lab import Lab
    from labref.progress import rows_of
    from labref.tasks.backup import Backup
    from labref.tasks.backup import restore as bring_back

    with Backup.open(source) as found:
        record, named = found.record, found.analysers()

    def steps() -> Iterator[dict[str, Any]]:
        lab = yield from rows_of(bring_back(source, folder, watch=watch or ()))
        with lab.open_store() as opened:
            yield {"lab": str(lab.folder), "cells": opened.counts().cells, "schema": opened.schema_version}

    (row,) = without_progress(steps())
    lab = Lab.open(Path(row["lab"]))
    kept = lab.config.watch.analysers.values()
    row |= {
        "made_at": record["at"],
        "made_by": record["labref"],
        "watch": [
            {
                "folder": str(folder),
                "there": os.path.isdir(folder),  # noqa: PTH112
                "analyser": lab.analysers.get(str(folder)),
            }
            for folder in lab.watched
        ],
        "without_folder": {folder: analyser for folder, analyser in named.items() if analyser not in kept},
    }
    if json:
        print_json(row)
    else:
        say(
            f"{row['cells']} cells are in {row['lab']}, as they were at {local(row['made_at'])} (labref {row['made_by']})."
        )
        for watched in row["watch"]:
            analyser = f" (analyser {watched['analyser']})" if watched["analyser"] else ""
            gone = "" if watched["there"] else f", which is not here; change [watch] folders in {lab.config_file}"
            say(f"It watches {watched['folder']}{analyser}{gone}.")
        for before, analyser in row["without_folder"].items():
            say(
                f"The analyser of {before}, {analyser}, has no folder any more; name its new one in [watch.analysers] of "
                f"{lab.config_file}."
            )
        secret = lab.shared_password_file
        if lab.config.shared.url and secret is not None and not secret.exists():
            say(
                f"The password of the shared store is in no backup: put it into {secret}. `labref shared lab add`, with the lab's name of "
                "before, makes a new one."
            )


@store.command(help=_EXPORT, short_help="Write all cells into a Parquet file.")
def export(
    target: Annotated[
        Path, typer.Argument(parser=a_path, metavar="FILE", help="A new file, usually ending in .parquet.")
    ],
    lab: LabOption = None,
    thumbnails: Annotated[
        bool, typer.Option("--thumbnails/--no-thumbnails", help="With a small picture of each cell.")
    ] = True,
    pixels: Annotated[int, typer.Option("--pixels", min=16, max=256, help="Width and height of the pictures.")] = 96,
    identifying: Annotated[
        bool, typer.Option("--identifying", help="With slide and path, which can name a patient.")
    ] = False,
    json: JsonOption = False,
) -> None:
    from labref.lab import Lab, absolute

    where = str(absolute(target))
    how = {"thumbnails": thumbnails, "pixels": pixels, "identifying": identifying}
    (row,) = perform(Lab.find(lab), "store.export", target=where, **how)
    if json:
        print_json(row)
    else:
        say(f"{row['cells']} cells, {row['bytes'] / 1e6:.1f} MB, are in {row['target']}.")
        if row["without_label"]:
            say(
                f"{row['without_label']} of them without a label: only the name of a folder says it, which can be a patient's. "
                "To write it, name the class in [watch.labels]."
            )


@store.command(help=_RETAIN, short_help="Let go of old cells, where labref.toml says so.")
def retain(
    lab: LabOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say which cells would go.")] = False,
    json: JsonOption = False,
) -> None:
    from labref.lab import Lab

    for row in perform(Lab.find(lab), "store.retain", dry_run=dry_run):
        if json:
            print_json(row)
        elif "why" in row:
            say(f"{row['cell_id']}  {row['label']} ({row['label_source']}), {row['analyser'] or '-'}: {row['why']}")
        elif "due" in row:
            for jump in row["not_counted"]:
                say(
                    f"Not counted as time, because nobody saw it pass: {local(jump['since'])} to {local(jump['until'])}."
                )
            say(f"{row['due']} cells would go, {row['now']} of them today.")
        else:
            say(f"{row['removed']} cells were removed; `labref store trash` lists what can be brought back.")


@store.command("remove", help=_REMOVE, short_help="Remove cells or slides, as where consent is withdrawn.")
def remove(
    why: Annotated[str, typer.Option("--why", metavar="TEXT", help="Why, for the ledger; do not name the patient.")],
    cells: Annotated[
        list[str] | None, typer.Argument(metavar="CELL...", help="Cells: ids, beginnings of ids, or paths of files.")
    ] = None,
    slides: Annotated[
        list[str] | None,
        typer.Option("--slide", metavar="SLIDE", help="All cells of this slide; several times for several."),
    ] = None,
    lab: LabOption = None,
    who: WhoOption = None,
    erase: Annotated[
        bool, typer.Option("--erase", help="For good, with all that the store says of them; asks first.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say which cells would go.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    json: JsonOption = False,
) -> None:
    from labref.lab import Lab

    found = Lab.find(lab)
    what = {
        "cells": cells or [],
        "slides": slides or [],
        "why": why,
        "who": named(who),
        "erase": erase,
        "folder": here(),
    }
    if erase and not dry_run and not yes:
        *_, would = perform(found, "store.remove", **what, dry_run=True)
        typer.confirm(
            f"{counted(would['going'], 'cell')} of the lab and {would['in_trash']} of its trash, {would['captures']} of them other "
            f"captures, cannot be brought back afterwards; {len(would['staying'])} that may be captures stay. Erase them?",
            abort=True,
            err=True,
        )
    for row in perform(found, "store.remove", **what, dry_run=dry_run):
        if json:
            print_json(row)
        elif "because" in row:
            row = printable(row)
            trashed = ", in the trash" if row["in_trash"] else ""
            say(
                f"{row['cell_id']}  {row['label']} ({row['label_source']}), {row['analyser'] or '-'}, slide {row['slide'] or '-'}: "
                f"{row['because']}{trashed}"
            )
        elif "going" in row:
            erased = f", and {row['in_trash']} of the trash" if row["in_trash"] else ""
            say(f"{counted(row['going'], 'cell')} would go{erased}; {row['captures']} of them are other captures.")
            for other in row["other_slides"]:
                say(
                    f"Another slide of the same patient would stay: {other['name']} ({other['slide']}), {counted(other['cells'], 'cell')}."
                )
            if row["staying"]:
                say(
                    f"{counted(len(row['staying']), 'cell')} that may be captures of these would stay: {_some(row['staying'])}. Decide on "
                    "them first: `labref duplicates`, or the page /review/duplicates."
                )
        else:
            _say_removed(row, erase=erase)


def _some(cells: list[str]) -> str:
    return ", ".join(cells[:_FEW]) + (", …" if len(cells) > _FEW else "")


def _say_removed(row: "dict[str, Any]", *, erase: bool) -> None:
    if not erase:
        say(f"{counted(row['removed'], 'cell')} removed; `labref store bring-back` brings them back.")
    else:
        say(
            f"{counted(row['erased'], 'cell')} erased; the ledger no longer names {counted(row['files'], 'file')} of them."
        )
    if row["staying"]:
        say(
            f"{counted(len(row['staying']), 'cell')} that may be captures of these stayed, each as a cell of its own: "
            f"{_some(row['staying'])}. Look at them, and remove those that are."
        )
    there = row["still_there"]
    for file in there[:_FEW]:
        of = f", of cell {file['cell_id']}" if file["cell_id"] else ""
        say(f"  {file['path']}{of}")
    if there:
        are, it = ("is", "it") if len(there) == 1 else ("are", "them")
        more = f" (the first {_FEW} are named above)" if len(there) > _FEW else ""
        say(
            f"{counted(len(there), 'file')} of them {are} still in the export folder{more}, so the ledger has to name {it}: delete {it} there, "
            "and name the slides and cells to this command again."
        )
    say("Backups, exports and reports that were made before may still hold them.")


@store.command(help=_TRASH, short_help="List the removed cells that can be brought back.")
def trash(lab: LabOption = None, json: JsonOption = False) -> None:
    from labref.lab import Lab

    rows = list(perform(Lab.find(lab), "store.trash"))
    for row in rows:
        if json:
            print_json(row)
        else:
            row = printable(row)
            say(
                f"{row['cell_id']}  {row['label']} ({row['label_source']}), {row['analyser'] or '-'}: {row['reason']}; "
                f"for {row['days_left']:.0f} more days"
            )
    if not json:
        say(f"{len(rows)} cells, {sum(row['bytes'] for row in rows) / 1e6:.1f} MB, can be brought back.")


@store.command("bring-back", help=_BRING_BACK, short_help="Bring removed cells back.")
def bring_back(
    cells: Annotated[
        list[str] | None, typer.Argument(metavar="CELL...", help="Cells as `labref store trash` lists them.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="All that can be brought back.")] = False,
    lab: LabOption = None,
    json: JsonOption = False,
) -> None:
    from labref.lab import Lab

    (row,) = perform(Lab.find(lab), "store.bring_back", cells=cells or [], every=every)
    if json:
        print_json(row)
    else:
        say(f"{len(row['cells'])} cells are back.")
    if row["without_bytes"]:
        raise LabrefError(
            f"{len(row['without_bytes'])} of them have lost their original bytes: {', '.join(row['without_bytes'][:5])}. See "
            "`labref ledger --check`."
        )


@store.command("empty-trash", help=_EMPTY_TRASH, short_help="Let go of removed cells for good.")
def empty_trash(
    lab: LabOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    json: JsonOption = False,
) -> None:
    from labref.lab import Lab

    found = Lab.find(lab)
    if not yes:
        typer.confirm("The cells in the trash cannot be brought back afterwards. Empty it?", abort=True, err=True)
    (row,) = perform(found, "store.empty_trash")
    if json:
        print_json(row)
    else:
        say(f"{row['removed']} cells are gone for good.")


def add_to(app: typer.Typer) -> None:
    app.add_typer(store, name="store")
