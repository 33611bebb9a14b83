"""`labref store`: is it sound, take it to a safe place, take it to other programs, let go of what is old."""

from __future__ import annotations

import io
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final, Literal

from PIL import Image
from pydantic import Field

from labref import __version__
from labref.bundles.bundle import Bundle
from labref.cells.image import prepare
from labref.errors import BundleError, LabError, LabrefError, UnreadableImageError
from labref.failpoints import failpoint
from labref.files import give
from labref.lab import absolute
from labref.operations import operation
from labref.operations.models import Answer, FilePath, Progress
from labref.progress import Pace, Row, progress, rows_of
from labref.store.duckdb.exporting import Export
from labref.tasks import backup, retention
from labref.tasks.context import Context
from labref.words import LabelSource

__all__ = [
    "BackedUp",
    "BundleChecked",
    "CellDue",
    "CellsDue",
    "CellsRemoved",
    "Exported",
    "StoreChecked",
]

_AT_ONCE: Final = 256
_QUALITY: Final = 90


class BundleChecked(Answer):
    """The files of one bundle."""

    digest: str = Field(description="The bundle.")
    active: bool = Field(description="Whether it is the active one.")
    state: Literal["sound", "damaged", "missing"] = Field(description="How its files are.")
    problem: str | None = Field(description="What is wrong with them; else null.")


class StoreChecked(Answer):
    """What checking the store came to."""

    ok: bool = Field(description="Whether all is sound.")
    labref: str = Field(description="Version of labref.")
    # a field called `schema` would hide a method of pydantic's
    schema_: int = Field(alias="schema", description="Version of the store's schema.")
    file: str = Field(description="The store's file.")
    bytes: int = Field(description="Its size.")
    free_bytes: int = Field(description="Free space of its disk.")
    tables: dict[str, int] = Field(description="Rows read, by table.")
    bundles: list[BundleChecked] = Field(description="The bundles.")
    faults: dict[str, int] = Field(description="How often each kind of fault was found.")


class BackedUp(Answer):
    """What backing up came to."""

    ok: bool = Field(description="Whether nothing is missing.")
    target: str = Field(description="Where the backup is.")
    bytes: int = Field(description="Its size.")
    cells: int = Field(description="Cells in it.")
    images_copied: int = Field(description="Images that were copied; the others were there.")
    missing: list[str] = Field(description="Digests of cells whose bytes the lab itself has lost.")


class Exported(Answer):
    """What exporting came to."""

    target: str = Field(description="The file.")
    cells: int = Field(description="Cells in it.")
    bytes: int = Field(description="Its size.")
    without_thumbnail: int = Field(description="Cells without a picture in it.")


class CellDue(Answer):
    """A cell that would go."""

    cell_id: str = Field(description="The cell.")
    label: str = Field(description="Its class.")
    label_source: LabelSource = Field(description="Who gave it.")
    analyser: str | None = Field(description="Its analyser.")
    why: str = Field(description="Why it would go.")


class CellsDue(Answer):
    """How many cells would go."""

    due: int


class CellsRemoved(Answer):
    """How many cells went."""

    removed: int


@operation("store.check", Progress, StoreChecked)
def check(context: Context) -> Iterator[Row]:
    """Read every block of the store and every file of its bundles, and say whether all is sound.

    `ledger.check` looks at kept bytes and export folders.
    """
    lab, store = context.lab, context.store
    yield progress(0, 3, "the store is read")
    tables = store.read_all()
    yield progress(1, 3, "the store is compared with itself")
    faults = {kind: len(what) for kind, what in store.faults().found.items()}
    yield progress(2, 3, "the bundles are verified")
    active = store.active_bundle()
    bundles: list[Row] = []
    for known in store.bundles():
        state, problem = "sound", None
        try:
            Bundle.open(lab.bundles / known.digest[:12])
        except BundleError as error:
            state, problem = ("damaged" if (lab.bundles / known.digest[:12]).exists() else "missing"), str(error)
        bundles.append({"digest": known.digest, "active": known.digest == active, "state": state, "problem": problem})
    # a bundle that no longer answers may have been removed; one that answers may not
    sound = all(
        bundle["state"] == "sound" or (bundle["state"] == "missing" and not bundle["active"]) for bundle in bundles
    )
    yield {
        "ok": sound and not faults,
        "labref": __version__,
        "schema": store.schema_version,
        "file": str(store.path),
        "bytes": sum(path.stat().st_size for path in store.path.parent.glob(f"{store.path.name}*")),
        "free_bytes": shutil.disk_usage(lab.folder).free,
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
    if not retention.UPKEEP.acquire(timeout=60):
        raise LabrefError("the lab is being backed up, or old cells are being removed; try again later")
    try:
        written = yield from rows_of(backup.write(context.lab, context.store, absolute(Path(target))))
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
    context.lab.refuse_in_export(path)
    if os.path.lexists(path):
        raise LabError(f"{path} is there already. Choose another name; an export never replaces a file.")
    without = 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # the file too is made in there: it is nobody else's until it is whole, and no name of the user's is taken
        with tempfile.TemporaryDirectory(prefix=".labref-export-", dir=path.parent) as scratch:
            part = Path(scratch) / "cells"
            with context.store.exporting(Path(scratch) / "thumbnails") as rows:
                cells = len(rows)
                if thumbnails:
                    for done, missing in _thumbnails(context, rows, pixels):
                        without = missing
                        yield progress(done, cells, "thumbnails")
                yield progress(cells, cells, "the file is written")
                failpoint("export.write")
                rows.write(part, identifying=identifying)
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
    yield {"target": str(path), "cells": cells, "bytes": size, "without_thumbnail": without if thumbnails else cells}


def _thumbnails(context: Context, rows: Export, pixels: int) -> Iterator[tuple[int, int]]:
    """Make and add them; yields how many cells are done and how many have none, every second."""
    pace, without, done = Pace(), 0, 0
    made: list[tuple[str, bytes, str]] = []
    for digest in rows.digests():
        done += 1
        try:
            crop = prepare(context.lab.read_image(digest)).crop
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
    """Remove the cells that labref.toml's [retention] no longer keeps. A dry run says which these are."""
    keep = context.lab.config.retention
    if not keep.days and not keep.cells:
        raise LabrefError(
            f"{context.lab.config_file} keeps all cells. To let go of old ones set days or cells in its section [retention]."
        )
    if dry_run:
        cells = retention.due(context.lab, context.store, limit=1_000_000_000)
        for cell in cells:
            yield {
                "cell_id": cell.cell_id,
                "label": cell.label,
                "label_source": str(cell.label_source),
                "analyser": cell.analyser,
                "why": cell.why,
            }
        yield {"due": len(cells)}
        return
    yield progress(0, 0, "old cells are removed")
    yield {"removed": retention.retain(context.lab, context.store, stopped=lambda: False, report=lambda _: None)}
