"""`labref store`: check, back up and export the store, and remove cells."""

from __future__ import annotations

import io
import os
import shutil
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Final, Literal

from PIL import Image
from pydantic import Field

from labref import __version__
from labref.bundles.bundle import Bundle
from labref.errors import BundleError, LabError, LabrefError, OutdatedBundleError, StoreError, UnreadableImageError
from labref.export.layout import ClassNames
from labref.export.paths import path_from_text
from labref.failpoints import failpoint
from labref.files import give
from labref.lab import absolute
from labref.lab.backups import LastBackup, remember_backup
from labref.operations import operation
from labref.operations.duplicates import compare_left
from labref.operations.models import Answer, FilePath, Folder, Progress, Text, Who
from labref.operations.naming import (
    LEAST_ID,
    NoCellError,
    NoSuchNameError,
    SeveralSlidesError,
    find_cells,
    person,
    slide_keys,
)
from labref.operations.scratch import scratch
from labref.operations.slide import SlideKin, kin_of, slide_named
from labref.printing import unprintable
from labref.progress import Pace, Row, progress, rows_of
from labref.store import Due
from labref.store.duckdb.exporting import Export
from labref.store.duckdb.trash import Trashed
from labref.store.duckdb.withdrawal import Because, Named
from labref.tasks import backup, retention
from labref.tasks.context import Context
from labref.tasks.reembedding import embed_left
from labref.times import utc, utc_now
from labref.words import REMOVED, LabelSource, SlideId

__all__ = [
    "BackedUp",
    "BroughtBack",
    "BundleChecked",
    "CellDue",
    "CellGoing",
    "CellInTrash",
    "CellsDue",
    "CellsGoing",
    "CellsRemoved",
    "CellsWithdrawn",
    "Exported",
    "FileStillThere",
    "Jump",
    "StoreChecked",
    "TrashEmptied",
]

_AT_ONCE: Final = 256
_QUALITY: Final = 90
_FEW: Final = 10  # jumps of the clock that are named
_MOST_REASON: Final = 200


class BundleChecked(Answer):
    """The files of one bundle."""

    digest: str = Field(description="The bundle.")
    active: bool = Field(description="Whether it is the active one.")
    state: Literal["sound", "damaged", "missing", "outdated"] = Field(
        description="How its files are; `outdated`: it was made for a labref that prepares pictures otherwise. Only of the "
        "active bundle is that, or that it is missing, a fault."
    )
    problem: str | None = Field(description="What is wrong with them; else null.")


class StoreChecked(Answer):
    """The result of checking the store."""

    ok: bool = Field(description="Whether all is sound.")
    labref: str = Field(description="Version of labref.")
    # a field called `schema` would hide a method of pydantic's
    schema_: int = Field(alias="schema", description="Version of the store's schema.")
    file: str = Field(description="The store's file.")
    bytes: int = Field(description="Its size.")
    free_bytes: int = Field(description="Free space of its disk.")
    blocks: int | None = Field(
        description="Blocks of the file that were read from the disk, all of them; null where that cannot be done, as on "
        "Windows while the store is open: blocks of indexes were not looked at then."
    )
    damaged: dict[str, int] = Field(description="Damaged blocks, by what they hold.")
    tables: dict[str, int] = Field(description="Rows read, by table; none where a table cannot be read.")
    bundles: list[BundleChecked] = Field(description="The bundles.")
    faults: dict[str, int] = Field(description="How often each kind of fault was found.")


class BackedUp(Answer):
    """The result of a backup."""

    ok: bool = Field(description="Whether nothing is missing.")
    target: str = Field(description="Where the backup is.")
    bytes: int = Field(description="Its size.")
    cells: int = Field(description="Cells in it.")
    images_copied: int = Field(description="Images that were copied; the others were there.")
    missing: list[str] = Field(description="Digests of cells whose bytes the lab itself has lost.")


class Exported(Answer):
    """The result of an export."""

    target: str = Field(description="The file.")
    cells: int = Field(description="Cells in it.")
    bytes: int = Field(description="Its size.")
    without_thumbnail: int = Field(description="Cells without a picture in it.")
    without_label: int = Field(description="Cells without a label in it: only the name of a folder speaks for theirs.")


class _Named(Answer):
    cell_id: str = Field(description="The cell.")
    label: str = Field(description="Its class.")
    label_source: LabelSource = Field(description="Who gave it.")
    analyser: str | None = Field(description="Its analyser.")


class CellDue(_Named):
    """A cell that would go."""

    why: str = Field(description="Why it would go.")


class Jump(Answer):
    """A step of the clock that is not counted as time."""

    since: datetime = Field(description="The last time that was seen before it, UTC.")
    until: datetime = Field(description="The first that was seen after it.")


class CellsDue(Answer):
    """How many cells would go."""

    due: int = Field(description="All of them, in the days to come.")
    now: int = Field(description="Those that would go at once: no more than may go in a day.")
    not_counted: list[Jump] = Field(description="Steps of the clock that are not counted as time, the last ones.")


class CellsRemoved(Answer):
    """How many cells were removed."""

    removed: int = Field(description="Cells that were moved to the trash.")


class CellGoing(_Named):
    """A cell that would be removed."""

    slide: str | None = Field(description="Its slide; it can name a patient.")
    because: Because = Field(
        description="`named`; `on the slide`: one of its files is on a slide that was named; `capture`: it is another capture "
        "of such a cell."
    )
    in_trash: bool = Field(description="Whether it was removed before, and is still in the trash.")


class CellsGoing(Answer):
    """How many cells would be removed."""

    going: int = Field(description="Cells that would be removed from the lab.")
    in_trash: int = Field(description="Cells of the trash that would be erased with them; 0 where nothing is erased.")
    captures: int = Field(description="How many of all these are other captures of cells that were named.")
    staying: list[str] = Field(
        description="Cells that may be captures of these, which nobody has decided on, and would stay."
    )
    other_slides: list[SlideKin] = Field(
        description="Other slides of the same patients, where the folders say so, that were not named, and would stay."
    )


class FileStillThere(Answer):
    """A file of a cell that was erased, still in the export folder."""

    path: str = Field(description="The file.")
    cell_id: str | None = Field(description="The cell that was erased; null where none came from it.")


class CellsWithdrawn(Answer):
    """Cells were removed because somebody said so."""

    removed: int = Field(description="Cells that were in the lab.")
    staying: list[str] = Field(
        description="Cells that may be captures of these, which nobody has decided on: they stay, each as a cell of its own."
    )
    erased: int = Field(
        description="Cells that are gone for good, with all that names them; 0 where nothing is erased."
    )
    files: int = Field(description="Files that the ledger names no longer.")
    still_there: list[FileStillThere] = Field(
        description="Files of erased cells and slides that are still in the export folder, so that the ledger has to name them."
    )


class CellInTrash(_Named):
    """A removed cell that can be brought back."""

    reason: str = Field(description="Why it was removed, as the ledger says it.")
    removed_at: datetime = Field(description="When, UTC.")
    days_left: float = Field(
        description="How many more days it can be brought back; only days that the lab sees pass count."
    )
    bytes: int = Field(description="Size of its kept bytes.")


class BroughtBack(Answer):
    """Which cells came back."""

    cells: list[str] = Field(description="Their ids.")
    without_bytes: list[str] = Field(description="Those of them whose kept bytes are gone or damaged.")
    already: list[str] = Field(description="Those that were named but are in the lab already; with `there_only`.")


class TrashEmptied(Answer):
    """The result of emptying the trash."""

    removed: int = Field(description="Cells that were deleted for good.")


@operation("store.check", Progress, StoreChecked)
def check(context: Context) -> Iterator[Row]:
    """Read every block of the store and every file of its bundles, and say whether all is sound.

    `ledger.check` looks at kept bytes and export folders.
    """
    lab, store = context.lab, context.store
    yield progress(0, 4, "the blocks of the store are read from the disk")
    blocks = store.blocks()
    damaged = () if blocks is None else blocks.damaged
    tables: dict[str, int] = {}
    faults: dict[str, int] = {}
    try:
        yield progress(1, 4, "the store is read")
        tables = store.read_all()
        yield progress(2, 4, "the store is compared with itself")
        faults |= {kind: len(what) for kind, what in store.faults().found.items()}
    except StoreError:
        if not damaged:
            raise
    if damaged:
        faults["block_damaged"] = len(damaged)
    yield progress(3, 4, "the bundles are verified")
    active = store.active_bundle()
    bundles: list[Row] = []
    for known in store.bundles():
        state, problem = "sound", None
        try:
            Bundle.installed(lab.bundles, known.digest)
        except OutdatedBundleError as error:
            state, problem = "outdated", str(error)
        except BundleError as error:
            state, problem = ("damaged" if (lab.bundles / known.digest[:12]).exists() else "missing"), str(error)
        bundles.append({"digest": known.digest, "active": known.digest == active, "state": state, "problem": problem})
    # a bundle that is not active may have been removed, or be of a labref of before; the active one may not
    sound = all(
        bundle["state"] == "sound" or (bundle["state"] in ("missing", "outdated") and not bundle["active"])
        for bundle in bundles
    )
    yield {
        "ok": sound and not faults,
        "labref": __version__,
        "schema": store.schema_version,
        "file": str(store.path),
        "bytes": sum(path.stat().st_size for path in store.path.parent.glob(f"{store.path.name}*")),
        "free_bytes": shutil.disk_usage(lab.folder).free,
        "blocks": None if blocks is None else blocks.read,
        "damaged": dict(Counter(damaged)),
        "tables": tables,
        "bundles": bundles,
        "faults": faults,
    }


@operation("store.backup", Progress, BackedUp)
def back_up(
    context: Context,
    *,
    target: Annotated[
        FilePath,
        Field(description="A folder, or a new file that ends in .zip; its absolute path on the lab's computer."),
    ],
) -> Iterator[Row]:
    """Copy the whole lab, as of one moment, to a safe place. See `labref store backup --help`."""
    yield from retention.UPKEEP.take(f"a backup is written to {target}")
    try:
        written = yield from rows_of(backup.write(context.lab, context.store, absolute(Path(target))))
        made = LastBackup(utc_now(), written["target"], written["cells"], len(written["missing"]))
        remember_backup(context.lab, made)
        yield {"ok": not written["missing"]} | written
    finally:
        retention.UPKEEP.release()


@operation("store.export", Progress, Exported)
def export(
    context: Context,
    *,
    target: Annotated[FilePath, Field(description="A new file; its absolute path on the lab's computer.")],
    thumbnails: Annotated[bool, Field(description="With a JPEG of each prepared crop.")] = True,
    pixels: Annotated[int, Field(ge=16, le=256, description="Width and height of these.")] = 96,
    identifying: Annotated[bool, Field(description="With slide and path, which can name a patient.")] = False,
) -> Iterator[Row]:
    """Write all cells into one Parquet file. See `labref store export --help` for its columns."""
    path = absolute(Path(target))
    context.lab.refuse_output(path)
    if os.path.lexists(path):
        raise LabError(f"{path} is there already. Choose another name; an export never replaces a file.")
    without = 0
    labels = [label for bundle in context.store.bundles() for label in bundle.labels]
    names = ClassNames(labels, context.lab.config.watch.labels)
    try:
        with scratch(context.lab, path, "export") as made:
            part = made / "cells"
            with context.store.exporting(made / "thumbnails") as rows:
                cells = len(rows)
                if thumbnails:
                    for done, missing in _thumbnails(context, rows, pixels):
                        without = missing
                        yield progress(done, cells, "thumbnails")
                yield progress(cells, cells, "the file is written")
                failpoint("export.write")
                unlabelled = rows.write(part, identifying=identifying, is_class=names.is_class)
            give(part, context.lab.rights)
            with part.open("rb+") as written:
                failpoint("export.fsync")
                os.fsync(written.fileno())
                size = os.fstat(written.fileno()).st_size
            failpoint("export.rename")
            if os.path.lexists(path):
                raise LabError(f"{path} is there now. Choose another name; an export never replaces a file.")
            os.replace(part, path)
    except OSError as error:
        raise LabError(f"{path} cannot be written: {error.strerror or error}. Look at its disk.") from None
    yield {
        "target": str(path),
        "cells": cells,
        "bytes": size,
        "without_thumbnail": without if thumbnails else cells,
        "without_label": unlabelled,
    }


def _thumbnails(context: Context, rows: Export, pixels: int) -> Iterator[tuple[int, int]]:
    """Make the thumbnails and add them. Yields every second how many cells are done, and how many of them have none."""
    pace, without, done = Pace(), 0, 0
    made: list[tuple[str, bytes, str]] = []
    for digest in rows.digests():
        done += 1
        try:
            crop = context.lab.decoder.prepare(context.lab.read_image(digest)).crop
        except (LabError, UnreadableImageError):
            without += 1
        else:
            picture = io.BytesIO()
            small = Image.fromarray(crop).resize((pixels, pixels), Image.Resampling.LANCZOS)
            small.save(picture, "JPEG", quality=_QUALITY)
            made.append((digest[:16], picture.getvalue(), f"{digest[:16]}.jpg"))
        if len(made) == _AT_ONCE:
            rows.add_thumbnails(made)
            made = []
        if pace.due():
            yield done, without
    if made:
        rows.add_thumbnails(made)
    yield done, without


@operation("store.retain", Progress, CellDue, CellsDue, CellsRemoved)
def retain(
    context: Context, *, dry_run: Annotated[bool, Field(description="Only say which cells would go.")] = False
) -> Iterator[Row]:
    """Move the cells that labref.toml's [retention] no longer keeps to the trash, no more than may go in a day. A dry
    run says which these are."""
    keep = context.lab.config.retention
    if not keep.days and not keep.cells:
        raise LabrefError(
            f"{context.lab.config_file} keeps all cells. To let go of old ones set days or cells in its section [retention]."
        )
    if dry_run:
        cells = retention.due(context.lab, context.store, limit=1_000_000_000)
        for cell in cells:
            yield {
                **_named(cell),
                "why": cell.why,
            }
        jumps = [tuple(map(utc, jump)) for jump in context.store.jumps(keep.days)] if keep.days else []
        now = min(len(cells), context.store.allowance(keep.percent_a_day))
        yield {
            "due": len(cells),
            "now": now,
            "not_counted": [{"since": since, "until": until} for since, until in jumps[-_FEW:]],
        }
        return
    yield from retention.UPKEEP.take(retention.REMOVAL)
    try:
        yield progress(0, 0, retention.REMOVAL)
        removed = retention.remove(context.lab, context.store, stopped=lambda: False, report=lambda _: None)
    finally:
        retention.UPKEEP.release()
    yield {"removed": removed}


@operation("store.remove", Progress, CellGoing, CellsGoing, CellsWithdrawn)
def remove(
    context: Context,
    *,
    cells: Annotated[
        list[Text],
        Field(description="Cells: their ids, beginnings of these, or paths of their files; those in the trash by id."),
    ] = [],  # noqa: B006
    slides: Annotated[list[Text], Field(description="Slides: their keys, as `slide.list` gives them, or names.")] = [],  # noqa: B006
    why: Annotated[
        Text,
        Field(
            description="Why, as the ledger is to say it, without what names a patient: at most 200 characters, each of which "
            "can be seen."
        ),
    ],
    who: Who = None,
    erase: Annotated[
        bool, Field(description="For good, and with all that the store says of them; else they can be brought back.")
    ] = False,
    dry_run: Annotated[bool, Field(description="Only say which cells would go.")] = False,
    folder: Folder = None,
) -> Iterator[Row]:
    """Remove cells and slides that are named, with all other captures of each cell.

    They can be brought back while they are in the trash, unless they are erased."""
    lab, store = context.lab, context.store
    said = f"{REMOVED}{person(who) or 'a person'}: {_reason(why)}"
    if not cells and not slides:
        raise LabrefError("name cells or slides that are to be removed; `labref slide list` lists the slides.")
    if dry_run:  # nobody waits for it until a backup is written
        yield from _would_go(context, *_meant(context, cells, slides, folder, erase=erase), erase=erase)
        return
    yield from retention.UPKEEP.take("cells are removed")
    try:
        ids, named = _meant(context, cells, slides, folder, erase=erase)
        yield progress(0, 0, "cells are removed")
        done = store.withdrawal.take(ids, named, said, erase=erase, is_there=_is_there)
        if erase:
            retention.delete_bytes(lab, store)
        elif not done.removed:
            raise LabrefError("these cells are in the trash already. To let them go for good now, erase them.")
    finally:
        retention.UPKEEP.release()
    yield {
        "removed": done.removed,
        "staying": list(done.staying),
        "erased": done.erased,
        "files": done.files,
        "still_there": [{"path": file.path, "cell_id": file.cell_id} for file in done.left],
    }


def _named(cell: Due | Named | Trashed) -> Row:
    """A cell as each row of a cell that goes or went begins."""
    return {
        "cell_id": cell.cell_id,
        "label": cell.label,
        "label_source": str(cell.label_source),
        "analyser": cell.analyser,
    }


def _would_go(context: Context, ids: Sequence[str], slides: Sequence[SlideId], *, erase: bool) -> Iterator[Row]:
    """A row for each cell that would go, and one for all."""
    withdrawal = context.store.withdrawal
    going = [cell for cell in withdrawal.named(ids, slides) if erase or not cell.in_trash]
    for cell in going:
        yield {
            **_named(cell),
            "slide": None if cell.slide is None else cell.slide.name,
            "because": cell.because,
            "in_trash": cell.in_trash,
        }
    trashed = sum(cell.in_trash for cell in going)
    named = set(slide_keys(context, slides).values())
    kin = {row["slide"]: row for slide in slides for row in kin_of(context, slide)}.values()
    yield {
        "going": len(going) - trashed,
        "in_trash": trashed,
        "captures": sum(cell.because == "capture" for cell in going),
        "staying": withdrawal.possible(going),
        "other_slides": [row for row in kin if row["slide"] not in named],
    }


def _is_there(path: str) -> bool:
    return os.path.lexists(path_from_text(path))


def _reason(why: str) -> str:
    """A reason as the ledger can hold it. Raises `LabrefError`."""
    reason = unicodedata.normalize("NFC", why.strip())
    if not reason:
        raise LabrefError("say why they are removed, as 'consent withdrawn': the ledger says it of each file.")
    if len(reason) > _MOST_REASON:
        raise LabrefError(f"the reason has at most {_MOST_REASON} characters, this one has {len(reason)}.")
    if (character := unprintable(reason)) is not None:
        raise LabrefError(
            f"the reason {reason!r} holds the character {character}, which cannot be seen; write it anew."
        )
    return reason


def _meant(
    context: Context, cells: Sequence[str], slides: Sequence[str], folder: str | None, *, erase: bool
) -> tuple[list[str], list[SlideId]]:
    """The cells, in the lab or in the trash, with `erase` those that are gone already too, and the slides. Raises
    `LabrefError`."""
    store, ids = context.store, list[str]()
    in_trash = {cell.cell_id for cell in store.trash.cells(context.lab.config.retention.trash_days)}
    for name, found in find_cells(context, cells, folder=folder).items():
        if isinstance(found, NoCellError) and any(cell_id.startswith(name.lower()) for cell_id in in_trash if name):
            found = _in_trash(name, in_trash)
        elif isinstance(found, NoCellError) and erase and len(name) >= LEAST_ID:
            gone = store.withdrawal.gone(name.lower())
            found = gone[0] if len(gone) == 1 else found
        if isinstance(found, LabrefError):
            raise found
        ids.append(found)
    return ids, [_slide_remembered(context, slide) for slide in slides]


def _slide_remembered(context: Context, slide: str) -> SlideId:
    """The slide with this key or name; one without cells, too, where the ledger or the trash names it. Raises
    `LabrefError`."""
    try:
        return slide_named(context, slide)
    except NoSuchNameError:
        keys = slide_keys(context, context.store.withdrawal.slides())
        found = [one for one, key in keys.items() if slide in (key, one.name)]
        if len(found) > 1:
            raise SeveralSlidesError(
                f"{len(found)} slides had this name: {', '.join(keys[one] for one in found)}. Give the key of the one that is "
                "meant."
            ) from None
        if not found:
            raise
        return found[0]


@operation("store.trash", CellInTrash)
def trash(context: Context) -> Iterator[Row]:
    """List the removed cells that can be brought back: a row for each cell, the first removed first."""
    for cell in context.store.trash.cells(context.lab.config.retention.trash_days):
        yield {
            **_named(cell),
            "reason": cell.reason,
            "removed_at": utc(cell.removed_at, timespec="seconds"),
            "days_left": round(cell.days_left, 1),
            "bytes": cell.size_bytes,
        }


@operation("store.bring_back", Progress, BroughtBack)
def bring_back(
    context: Context,
    *,
    cells: Annotated[
        list[Text], Field(description="Ids of cells in the trash, or the beginnings of them that no other there has.")
    ] = [],  # noqa: B006
    every: Annotated[bool, Field(description="All that are in the trash.")] = False,
    there_only: Annotated[
        bool,
        Field(description="Pass over named cells that are not in the trash: somebody else may have brought them back."),
    ] = False,
) -> Iterator[Row]:
    """Bring removed cells back as they were, with labels, latents and places; all that are named, or none. With
    `there_only` those that are in the trash come."""
    lab, store = context.lab, context.store
    yield from retention.UPKEEP.take("cells are brought back")
    try:
        there = {cell.cell_id: cell for cell in store.trash.cells(lab.config.retention.trash_days)}
        if every == bool(cells):
            raise LabrefError(
                "name the cells that are to come back, or say that all are; `labref store trash` lists them."
            )
        ids = list(there) if every else [_in_trash(name, there) for name in cells if not there_only or name in there]
        yield progress(0, len(ids), "cells are brought back")
        back = store.trash.bring_back(ids)
        if context.jobs is None:  # else jobs of the agent do this
            # those that went before the bundle changed have no latent of it; those that came since were not compared
            yield from embed_left(context, stopped=lambda: False)
            yield from compare_left(context)
    finally:
        retention.UPKEEP.release()
    without = []
    for cell_id in back:
        try:
            lab.read_image(there[cell_id].digest)
        except LabError:
            without.append(cell_id)
    already = sorted(store.cells({*cells}.difference(back))) if there_only else []
    yield {"cells": back, "without_bytes": without, "already": already}


def _in_trash(name: str, there: Collection[str]) -> str:
    """The one cell in the trash whose id begins so. Raises `LabrefError` where there is none, or several."""
    if name.lower() in there:  # as pages name them; of thousands each would be compared with all others
        return name.lower()
    found = [cell_id for cell_id in there if name and cell_id.startswith(name.lower())]
    if len(found) == 1:
        return found[0]
    if found:
        raise LabrefError(
            f"{len(found)} cells in the trash begin with {name!r}: {', '.join(found[:_FEW])}. Give more of the id."
        )
    raise LabrefError(
        f"no cell {name!r} is in the trash; `labref store trash` lists those that are. A cell whose days are over is gone for "
        "good, but its file in the export folder, or a backup, may still be there."
    )


@operation("store.empty_trash", Progress, TrashEmptied)
def empty_trash(context: Context) -> Iterator[Row]:
    """Delete all cells in the trash for good, with their kept bytes, which frees their room on the disk."""
    yield from retention.UPKEEP.take("the trash is emptied")
    try:
        removed = retention.empty_trash(context.lab, context.store)
    finally:
        retention.UPKEEP.release()
    yield {"removed": removed}
