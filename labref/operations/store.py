"""`labref store`: is it sound, take it to a safe place, take it to other programs, let go of what is old."""

from __future__ import annotations

import io
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from PIL import Image

from labref import __version__
from labref.bundles.bundle import Bundle
from labref.cells.image import prepare
from labref.errors import BundleError, LabError, LabrefError, UnreadableImageError
from labref.failpoints import failpoint
from labref.lab import absolute
from labref.operations import operation
from labref.progress import Pace, Row, progress, rows_of
from labref.store.duckdb.exporting import Export
from labref.tasks import backup, retention
from labref.tasks.context import Context

__all__: list[str] = []

_AT_ONCE: Final = 256
_QUALITY: Final = 90


@operation("store.check")
def check(context: Context) -> Iterator[Row]:
    """Read every block of the store and every file of its bundles.

    Last row: {`ok`, `labref`, `schema`, `file`, `bytes`, `free_bytes`, `tables` {name: rows}, `bundles` [{`digest`, `active`, `state`,
    `problem`}], `faults` {kind: count}}; `state` is sound, damaged or missing. See `ledger.check` for bytes and export.
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


@operation("store.backup")
def back_up(context: Context, *, target: str) -> Iterator[Row]:
    """Back the lab up; see `labref.tasks.backup.write`. Last row: what that returns, and `ok`."""
    if not retention.UPKEEP.acquire(timeout=60):
        raise LabrefError("the lab is being backed up, or old cells are being removed; try again later")
    try:
        written = yield from rows_of(backup.write(context.lab, context.store, absolute(Path(target))))
        yield {"ok": not written["missing"]} | written
    finally:
        retention.UPKEEP.release()


@operation("store.export")
def export(
    context: Context, *, target: str, thumbnails: bool = True, pixels: int = 96, identifying: bool = False
) -> Iterator[Row]:
    """Write all cells into the Parquet file `target`. Last row: {`target`, `cells`, `bytes`, `without_thumbnail`}.

    thumbnails : with a JPEG of the prepared crop, `pixels` wide and high. identifying : with slide and path.
    """
    path = absolute(Path(target))
    if path.exists():
        raise LabError(f"{path} is there already. Choose another name; an export never replaces a file.")
    if not 16 <= pixels <= 256:
        raise LabrefError(f"thumbnails cannot have {pixels} pixels; choose 16 to 256")
    part = path.with_name(path.name + ".part")
    without = 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with (
            tempfile.TemporaryDirectory(prefix=".labref-export-", dir=path.parent) as scratch,
            context.store.exporting(Path(scratch) / "thumbnails") as rows,
        ):
            cells = len(rows)
            if thumbnails:
                for done, missing in _thumbnails(context, rows, pixels):
                    without = missing
                    yield progress(done, cells, "thumbnails")
            yield progress(cells, cells, "the file is written")
            failpoint("export.write")
            rows.write(part, identifying=identifying)
        with part.open("rb+") as written:
            failpoint("export.fsync")
            os.fsync(written.fileno())
            size = os.fstat(written.fileno()).st_size
        failpoint("export.rename")
        os.replace(part, path)
    except OSError as error:
        raise LabError(f"{path} cannot be written: {error.strerror or error}. Look at its disk.") from None
    finally:
        part.unlink(missing_ok=True)
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


@operation("store.retain")
def retain(context: Context, *, dry_run: bool = False) -> Iterator[Row]:
    """Remove the cells that labref.toml's [retention] no longer keeps; with `dry_run` only say which those are.

    Rows of a dry run: {`cell_id`, `label`, `label_source`, `analyser`, `why`}. Last row: {`due`} or {`removed`}, a number.
    """
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
