"""`labref ledger --check`: does every file have its outcome, every cell its bytes and its embedding, and the other way
round."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from labref import som
from labref.asking.answer import ledger_json
from labref.cells.image import HOLDS_NOTHING
from labref.errors import BundleError, LabError, LabrefError, UnreadableImageError
from labref.export.paths import path_from_text, path_to_text
from labref.export.roots import FileNumbers
from labref.export.scan import ScanReport, scan
from labref.failpoints import failpoint
from labref.files import digest_of, read_file
from labref.lab import Lab
from labref.lab.mounts import is_unmounted
from labref.operations import operation
from labref.operations.models import Answer, FilePath, Limit, Progress, Text, Who
from labref.operations.naming import person
from labref.progress import Pace, Row, progress
from labref.roles import Role
from labref.store import Store
from labref.tasks.context import Context
from labref.tasks.reembedding import catch_up
from labref.words import LabelSource, Outcome

__all__ = [
    "REMEDIES",
    "UNCLAIMED",
    "CheckEnded",
    "CheckSummary",
    "Checked",
    "CheckedExport",
    "CheckedImages",
    "CheckedLatents",
    "Fault",
    "LedgerCheck",
    "LedgerCounts",
    "LedgerEntry",
    "Repaired",
    "TakenIn",
    "check",
]

_AT_ONCE: Final = 4096
_READ_AT_ONCE: Final = 512
_FEW_CELLS: Final = 20_000
_FEW: Final = 20  # examples given of each kind of fault
_GRACE_SECONDS: Final = 600.0  # bytes this fresh may belong to a cell that is just being stored
_EMBED_AT_ONCE: Final = 32
_LATENTS: Final = (
    "latent_not_finite",
    "latent_of_another_cell",
    "prediction_impossible",
    "prediction_of_another_cell",
)
_PLACES: Final = ("place_off_map", "place_of_another_cell")
_OTHER_PREDICTION: Final = 0.25  # by which no probability of a cell differs between two ways to run its bundle
_OTHER_PLACE: Final = 1.001  # times as far from its node as from the nearest one; what is rounded is nearer
_ROUNDED: Final = 1e-6
UNCLAIMED: Final = "unclaimed"
"""Folder of the lab for kept bytes that belong to no cell."""

REMEDIES: Final = {
    "file_without_outcome": "the agent takes it in at its next scan; without one, run `labref agent --once`",
    "file_changed": "the agent looks at it again at its next scan; without one, run `labref agent --once`",
    "file_differs": "--repair has the agent read it again at its next scan; without one, run `labref agent --once`",
    "file_unreadable": "give labref's user read access to it, or mend its disk, and check again",
    "file_without_valid_outcome": "--repair forgets the outcome, and the file is taken in again",
    "outcome_without_cell": "--repair forgets the outcome, and the file is taken in again",
    "cell_without_file": "--repair gives the path that the cell was stored from its outcome back",
    "cell_misnamed": "restore a backup",
    "duplicate_of_nothing": "--repair removes the link",
    "cell_without_embedding": "--repair embeds the cell again from its kept bytes",
    "embedding_without_cell": "--repair removes it",
    "latent_not_finite": "--repair embeds the cell again from its kept bytes",
    "latent_of_another_cell": "--repair embeds the cell again from its kept bytes; only a sample of all cells was looked at "
    "(--latents)",
    "prediction_impossible": "--repair embeds the cell again from its kept bytes",
    "prediction_of_another_cell": "--repair embeds the cell again from its kept bytes; only a sample of all cells was looked "
    "at (--latents)",
    "place_off_map": "--repair places the cell on the map again",
    "place_of_another_cell": "--repair places the cell on the map again; only a sample of all cells was looked at "
    "(--latents)",
    "measure_not_finite": "--repair forgets what was measured of its optics, and the agent measures it again",
    "cell_without_valid_label": "restore a backup",
    "word_unknown": "restore a backup",
    "image_missing": "--repair takes the bytes from the export file, where that is still the same; else restore a backup",
    "image_damaged": "--repair takes the bytes from the export file, where that is still the same; else restore a backup",
    "image_without_cell": f"--repair moves it to the lab's folder {UNCLAIMED}",
    "folder_unreadable": "mount it, or give labref's user access, and check again",
    "index_differs": "--repair reads the index again",
}


class LedgerEntry(Answer):
    """What became of one file."""

    path: str = Field(description="The file; its path can name a patient.")
    outcome: Outcome = Field(description="What became of it.")
    reason: str | None = Field(description="Why, where it was rejected or is a duplicate; else null.")
    cell_id: str | None = Field(description="The cell that it is; null where it was rejected.")
    label: str | None = Field(description="The class that the path says; else the one that the cell carries.")
    label_source: LabelSource | None = Field(description="Who gave that class.")
    slide: str | None = Field(description="The slide; it can name a patient.")
    at: str = Field(description="When the outcome was recorded, ISO 8601, UTC.")
    duplicate_of: str | None = Field(description="The cell that it repeats.")
    conflict: list[str] | None = Field(
        description="The classes that the files with these bytes say, where they say different ones; else null."
    )
    neighbours: list[str] = Field(description="Cells beside this one, whose pictures show the same field.")


class LedgerCounts(Answer):
    """How much the store holds."""

    files: int = Field(description="Files with an outcome.")
    outcomes: dict[Outcome, int] = Field(description="Files by outcome.")
    cells: int = Field(description="Cells.")
    embeddings: int = Field(description="Cells with a latent in the active bundle's space.")


class CheckSummary(Answer):
    """What the store holds; it comes as soon as the store has answered, and once more after a repair."""

    summary: LedgerCounts


class Fault(Answer):
    """One kind of fault."""

    fault: str = Field(description="The kind; `labref.operations.ledger.REMEDIES` lists all kinds.")
    count: int = Field(description="How often.")
    examples: list[str] = Field(description="The first faults: cells, digests or paths, which can name a patient.")
    remedy: str = Field(description="What to do about it.")


class Repaired(Answer):
    """What was put right."""

    repaired: str = Field(description="Which kind of fault.")
    count: int = Field(description="How often.")


class CheckedExport(Answer):
    """The files in the export folders."""

    on_disk: int = Field(description="Files found.")
    with_outcome: int = Field(description="Those that have an outcome and have not changed since.")
    without_outcome: int = Field(description="Those without.")
    changed: int = Field(description="Those that changed since.")
    gone: int = Field(description="Files with an outcome that are no longer there.")
    unreadable_folders: int = Field(description="Folders that could not be read.")
    others: dict[str, int] = Field(
        description='Files that are no images by their names, by ending: "" without one, `hidden` for names that begin '
        "with a dot."
    )
    reserved: int = Field(
        description="Hidden folders, and folders and files with a name of the system's own, which are not looked at."
    )


class CheckedImages(Answer):
    """The kept bytes of cells."""

    read: int = Field(description="Images read.")
    in_trash: int = Field(description="Those among them of removed cells that can be brought back.")
    bytes: int = Field(description="Their size.")


class CheckedLatents(Answer):
    """The latents of some cells, chosen at random, computed again from their kept bytes."""

    compared: int = Field(description="Cells whose latent was computed again.")
    largest: float | None = Field(
        description="The largest difference of a number from the stored one, among latents that are their cell's."
    )


class Checked(Answer):
    """What was looked at; null for what was not."""

    store: Literal[True] = Field(description="The store itself: true.")
    export: CheckedExport | None = Field(description="The files in the export folders.")
    images: CheckedImages | None = Field(description="The kept bytes of cells.")
    latents: CheckedLatents | None = Field(
        description="The latents of some cells, computed again; also null where the active bundle cannot be used."
    )


class CheckEnded(Answer):
    """What the check came to."""

    ok: bool = Field(description="Whether there is no fault.")
    seconds: float = Field(description="How long it took.")
    checked: Checked = Field(description="What was looked at.")


class LedgerCheck(Answer):
    """All that a check found, as `labref ledger --check --json` prints it."""

    ok: bool = Field(description="Whether there is no fault.")
    summary: LedgerCounts | None = Field(description="How much the store holds.")
    checked: Checked | None = Field(description="What was looked at.")
    faults: list[Fault] = Field(description="What is wrong.")
    repaired: dict[str, int] = Field(description="How many faults of each kind were repaired.")
    seconds: float | None = Field(description="How long it took.")


class TakenIn(Answer):
    """A rejected file that is to be taken in all the same."""

    path: str = Field(description="The file; its path can name a patient.")
    reason: str = Field(description="Why it was rejected.")


@operation("ledger", LedgerEntry, method="GET", hurried=False, role=Role.VIEW)
def entries(
    context: Context,
    *,
    outcome: Annotated[Outcome | None, Field(description="Only files with this outcome.")] = None,
    path: Annotated[
        Text | None, Field(description="Only this file: its absolute path, as the ledger writes it.")
    ] = None,
    limit: Annotated[Limit | None, Field(description="How many files at most; the newest are given.")] = None,
    removed: Annotated[
        bool | None, Field(description="Only files of cells that were removed; false: only the others.")
    ] = None,
) -> Iterator[Row]:
    """Say what became of every file found in the export folders: a row for each file, the oldest first."""
    yield from map(ledger_json, context.store.ledger(path=path, outcome=outcome, limit=limit, removed=removed))


@operation("ledger.take_in", TakenIn)
def take_in(
    context: Context,
    *,
    path: Annotated[FilePath, Field(description="The file, as the ledger writes it, or a folder of such files.")],
    who: Who = None,
) -> Iterator[Row]:
    """Have files taken in all the same that were rejected because they seem to hold nothing.

    The agent takes them in at its next scan, and does not reject them again.
    """
    who = person(who)
    below = path.rstrip("/\\")
    rejected = [
        row
        for row in context.store.ledger(outcome=Outcome.REJECTED)
        if row.path == path or row.path.startswith((below + "/", below + "\\"))
    ]
    if not rejected:
        raise LabrefError(
            f"no rejected file is called {path} or lies below it; `labref ledger --outcome rejected` lists all"
        )
    wanted = [row for row in rejected if (row.reason or "").startswith(HOLDS_NOTHING)]
    if not wanted:
        raise LabrefError(f"{path} cannot be taken in: {rejected[0].reason}. Only what {HOLDS_NOTHING} can be.")
    digests = []
    for row in wanted:
        try:
            digests.append(digest_of(path_from_text(row.path)))
        except OSError as error:
            raise LabrefError(f"{row.path} cannot be read: {error.strerror or error}. Nothing was changed.") from None
    context.store.qualities.admit(digests, who)
    context.store.read_again([row.path for row in wanted])
    for row in wanted:
        yield {"path": row.path, "reason": row.reason}


@operation("ledger.check", Progress, CheckSummary, Fault, Repaired, CheckEnded)
def check(
    context: Context,
    *,
    quick: Annotated[
        bool,
        Field(
            description="Only what the store itself can say, in a second; else also each file in the export folders, and "
            "the digest of every kept image."
        ),
    ] = False,
    repair: Annotated[bool, Field(description="Repair what can be repaired, and check again.")] = False,
    digests: Annotated[
        bool,
        Field(
            description="Also read each file in the export folders, and compare its digest with that of the cell that the "
            "ledger names; not with `quick`."
        ),
    ] = False,
    latents: Annotated[
        int,
        Field(
            ge=0,
            le=2**62,
            description="Of so many cells, chosen at random, the latent is made anew and compared; not where `quick`. Some "
            "30 ms each.",
        ),
    ] = 100,
) -> Iterator[Row]:
    """Check that ledger, cells, kept bytes and embeddings agree.

    There is a row for each kind of fault, a row for each kind that was repaired, and a last row that says whether all
    is well.
    """
    started = time.perf_counter()
    found: dict[str, list[str]] = {}
    checked = yield from _examine(context, found, quick=quick, digests=digests, latents=latents)
    if repair and found:
        yield from _repair(context, found)
        found = {}
        checked = yield from _examine(context, found, quick=quick, digests=digests, latents=latents)
    for kind, what in found.items():
        remedy = REMEDIES.get(kind, "--repair removes it")
        yield {"fault": kind, "count": len(what), "examples": what[:_FEW], "remedy": remedy}
    yield {"ok": not found, "seconds": round(time.perf_counter() - started, 3), "checked": checked}


def _examine(
    context: Context, found: dict[str, list[str]], *, quick: bool, digests: bool, latents: int
) -> Generator[Row, None, Row]:
    store = context.store
    faults = store.faults()
    found.update({kind: list(what) for kind, what in faults.found.items()})
    active = store.active_bundle()
    if active is not None and not store.index_agrees(active):
        found["index_differs"] = [active]
    yield {
        "summary": {
            "files": faults.files,
            "outcomes": dict(faults.outcomes),
            "cells": faults.cells,
            "embeddings": faults.embeddings,
        }
    }
    checked: dict[str, Any] = {"store": True, "export": None, "images": None, "latents": None}
    if not quick:
        checked["export"] = yield from _compare_export(context, found, digests=digests)
        checked["images"] = yield from _compare_images(context, found)
        if latents and active is not None:
            checked["latents"] = yield from _compare_latents(context, found, active, latents)
    return checked


def _compare_export(context: Context, found: dict[str, list[str]], *, digests: bool) -> Generator[Row, None, Row]:
    """Compare the files in the export folders with the ledger: every file has its outcome, and has not changed
    since."""
    lab, store = context.lab, context.store
    report, pace = ScanReport(), Pace()
    looked = 0
    filled: set[str] = set()
    by_bytes: dict[str, list[str]] = {"file_differs": [], "file_unreadable": []}
    with store.comparison() as comparison:
        part: list[tuple[str, int | None, int | None, int | None, int | None]] = []
        numbers = FileNumbers()
        for candidate in scan(
            lab.watched,
            extensions=lab.config.watch.extensions,
            excluded=lab.excluded(),
            reserved=lab.config.watch.system_names,
            report=report,
        ):
            path, seen = path_to_text(candidate.path), candidate.signature
            filled.add(candidate.root)
            if seen is None:
                part.append((path, None, None, None, None))
            else:
                inode = numbers.of(candidate.root, seen.inode)
                part.append((path, seen.size_bytes, seen.mtime_ns, seen.ctime_ns, inode))
            looked += 1
            if len(part) == (_READ_AT_ONCE if digests else _AT_ONCE):
                comparison.add(part)
                if digests:
                    _compare_bytes(context, part, by_bytes)
                part = []
            if pace.due():
                yield progress(looked, 0, "files in the export folders")
        if part:
            comparison.add(part)
            if digests:
                _compare_bytes(context, part, by_bytes)
        files = comparison.result()
    # the agent goes on taking files in meanwhile
    waiting = [path for path in files.without_outcome if not any(True for _ in store.ledger(path=path))]
    report.unreachable += [str(root) for root in lab.watched if str(root) not in filled and is_unmounted(lab, root)]
    unreadable = [path_to_text(folder) for folder in (*report.unreachable, *report.unreadable)]
    for kind, what in (
        ("file_without_outcome", waiting),
        ("file_changed", files.changed),
        ("file_differs", sorted(set(by_bytes["file_differs"]) - set(files.changed))),
        ("file_unreadable", by_bytes["file_unreadable"]),
        ("folder_unreadable", unreadable),
    ):
        if what:
            found[kind] = list(what)
    return {
        "on_disk": files.on_disk,
        "with_outcome": files.on_disk - len(waiting) - len(files.changed),
        "without_outcome": len(waiting),
        "changed": len(files.changed),
        "gone": files.gone,
        "unreadable_folders": len(unreadable),
        "others": dict(report.others.most_common()),
        "reserved": report.reserved,
    }


def _compare_bytes(
    context: Context, files: Sequence[tuple[str, *tuple[Any, ...]]], found: dict[str, list[str]]
) -> None:
    """Find those of these files whose bytes are not those of the cell that the ledger names."""
    cells = context.store.file_digests([path for path, *_ in files])
    for path, named in cells.items():
        try:
            if digest_of(path_from_text(path)) != named:
                found["file_differs"].append(path)
        except FileNotFoundError:
            continue  # gone meanwhile
        except OSError:
            found["file_unreadable"].append(path)


def _compare_images(context: Context, found: dict[str, list[str]]) -> Generator[Row, None, Row]:
    """Compare kept bytes with cells: every cell has its original bytes, with the right digest, and all kept bytes
    belong to a cell."""
    lab, store, pace = context.lab, context.store, Pace()
    total = store.counts().cells
    read = size = 0
    few = store.digests() if total <= _FEW_CELLS else None  # the digests of many cells are read in parts
    faults: dict[str, list[str]] = {"image_missing": [], "image_damaged": [], "image_without_cell": []}
    for number in range(256):
        prefix = f"{number:02x}"
        wanted = (
            store.digests(prefix) if few is None else {name: n for name, n in few.items() if name.startswith(prefix)}
        )
        there = set(_kept(lab, prefix))
        for digest in sorted(wanted):
            if digest not in there:
                faults["image_missing"].append(digest)
                continue
            try:
                size += len(lab.read_image(digest))
            except LabError:
                faults["image_damaged"].append(digest)
            read += 1
            if pace.due():
                yield progress(read, total, "kept images read")
        faults["image_without_cell"] += [name for name in there - wanted.keys() if not _is_being_stored(context, name)]
    found.update({kind: what for kind, what in faults.items() if what})
    return {"read": read, "in_trash": len(store.trash), "bytes": size}


def _compare_latents(
    context: Context, found: dict[str, list[str]], bundle: str, most: int
) -> Generator[Row, None, Row | None]:
    """Compare latents of cells chosen at random with those that the networks compute from the kept bytes. None where
    the bundle cannot be used, which `labref store check` reports."""
    store, pace = context.store, Pace()
    try:
        embedder = context.embedder()
    except BundleError:
        return None
    # each of the two runtimes may be off by the tolerance, and twice that is still far less than two cells differ
    allowed = 4 * embedder.bundle.manifest.golden_tolerance
    ids, others, mistaken = store.sample(most), [], []
    known = {cell_id for kind in ("latent_not_finite", "prediction_impossible") for cell_id in found.get(kind, ())}
    compared, largest = 0, 0.0
    for start in range(0, len(ids), _EMBED_AT_ONCE):
        part = store.cells(ids[start : start + _EMBED_AT_ONCE])
        stored = store.latents(list(part), bundle=bundle, from_disk=True)
        said = store.queues.predictions(bundle, list(part))
        crops = {}
        for cell_id in stored:
            with contextlib.suppress(LabError, UnreadableImageError):  # reported as image_missing or image_damaged
                crops[cell_id] = context.lab.decoder.prepare(context.lab.read_image(part[cell_id].digest)).crop
        for cell_id, made in zip(crops, embedder.describe(list(crops.values())), strict=True):
            if made is None or cell_id in known or cell_id not in said:
                continue  # reported already, or removed meanwhile
            compared += 1
            label, probability = said[cell_id]
            sure = max(made.probability, probability) > 0.5 + _OTHER_PREDICTION / 2
            if sure if label != made.label else abs(made.probability - probability) > _OTHER_PREDICTION:
                mistaken.append(cell_id)
            difference = float(np.abs(made.latent - stored[cell_id]).max())
            if difference > allowed:
                others.append(cell_id)
            else:
                largest = max(largest, difference)
        if pace.due():
            yield progress(start, len(ids), "latents made anew")
    for kind, what in (
        ("latent_of_another_cell", others),
        ("prediction_of_another_cell", sorted(set(mistaken) - set(others))),
        ("place_of_another_cell", _misplaced(store, bundle, ids)),
    ):
        if what:
            found[kind] = what
    return {"compared": compared, "largest": round(largest, 6) if compared > len(others) else None}


def _misplaced(store: Store, bundle: str, ids: Sequence[str]) -> list[str]:
    """Those of these cells that lie on a map in use clearly farther from their node than from the nearest one."""
    wrong: set[str] = set()
    found: dict[str, NDArray[np.float32]] = {}
    for active in store.maps.in_space(bundle):
        places = {cell.cell_id: cell.node for cell in store.maps.cells(bundle, ids, active.version.analyser)}
        if unread := [cell_id for cell_id in places if cell_id not in found]:
            found |= store.latents(unread, bundle=bundle, from_disk=True)
        latents = {one: found[one] for one in places if one in found and np.isfinite(found[one]).all()}
        if not latents:
            continue
        weights = som.load(store.maps.weights_file(active.version.number)).get_weights()
        nodes = weights.reshape(-1, weights.shape[-1])[[places[cell_id] for cell_id in latents]]
        data = np.stack(list(latents.values())).astype(np.float64)
        _, nearest = active.placer.place(data)
        far = np.linalg.norm(data - nodes, axis=1) > _OTHER_PLACE * nearest.astype(np.float64) + _ROUNDED
        wrong |= {cell_id for cell_id, is_far in zip(latents, far.tolist(), strict=True) if is_far}
    return [cell_id for cell_id in ids if cell_id in wrong]


def _kept(lab: Lab, prefix: str) -> Iterator[str]:
    """The files below images/<prefix>/: by name where they lie at `Lab.image_path`, else by their path from images/."""
    top = lab.images / prefix
    if not top.is_dir():
        return
    for folder in sorted(os.scandir(top), key=lambda entry: entry.name):
        inside = os.scandir(folder) if folder.is_dir(follow_symlinks=False) else [folder]
        for entry in inside:
            right = lab.image_path(entry.name) == Path(entry.path)
            yield entry.name if right else Path(entry.path).relative_to(lab.images).as_posix()


def _is_being_stored(context: Context, name: str) -> bool:
    """Whether kept bytes may belong to a cell that is being stored: bytes are kept before their cell is stored, so
    fresh bytes are no fault while an agent runs."""
    if len(name) == 64 and context.store.has_digest(name) is not None:
        return True
    if context.jobs is None:
        return False
    with contextlib.suppress(OSError):
        path = context.lab.images / name if "/" in name else context.lab.image_path(name)
        return abs(time.time() - path.stat().st_mtime) < _GRACE_SECONDS
    return True  # gone meanwhile


def _repair(context: Context, found: dict[str, list[str]]) -> Iterator[Row]:
    lab, store = context.lab, context.store
    before = store.faults()
    if before.found:
        store.remove_faults(before)
        left = store.faults().found
        for kind, what in before.found.items():
            yield from _put_right(kind, len(set(what) - set(left.get(kind, ()))))
    elif "index_differs" in found:
        store.reload()
    active = store.active_bundle()
    if "index_differs" in found and active is not None:
        yield from _put_right("index_differs", int(store.index_agrees(active)))
    if "file_differs" in found:
        store.read_again(found["file_differs"])
        yield from _put_right("file_differs", len(found["file_differs"]))
    for kind in ("image_missing", "image_damaged"):
        yield from _put_right(kind, sum(_take_back(context, digest) for digest in found.get(kind, ())))
    yield from _put_right(
        "image_without_cell", sum(_set_aside(lab, name) for name in found.get("image_without_cell", ()))
    )
    wrong = {kind: found[kind] for kind in _LATENTS if kind in found}
    lost = store.faults().found.get("cell_without_embedding", ())
    if active is not None and wrong:
        store.forget_latents([cell_id for ids in wrong.values() for cell_id in ids], bundle=active)
    if active is not None and (misplaced := [cell_id for kind in _PLACES for cell_id in found.get(kind, ())]):
        store.maps.place_again(active, misplaced)
        yield from _put_right("place_of_another_cell", len(found.get("place_of_another_cell", ())))
    if active is not None and store.changes.missing(active):
        yield from catch_up(context, context.embedder(), stopped=lambda: False)
    for kind, ids in (*wrong.items(), ("cell_without_embedding", lost)):
        if active is not None and ids:
            yield from _put_right(kind, len(store.latents(list(ids), bundle=active, from_disk=True)))


def _put_right(kind: str, count: int) -> Iterator[Row]:
    if count:
        yield {"repaired": kind, "count": count}


def _take_back(context: Context, digest: str) -> bool:
    """Keep the bytes of a cell again, from a file in the export folders that has not changed."""
    lab, store = context.lab, context.store
    cell = store.cell(digest[:16])
    for path in dict.fromkeys([*store.paths(digest[:16]), *([] if cell is None else [cell.path])]):
        with contextlib.suppress(OSError):
            data = read_file(path_from_text(path))
            if hashlib.sha256(data).hexdigest() == digest:
                failpoint("repair.image")
                lab.image_path(digest).unlink(missing_ok=True)
                lab.store_image(data, digest)
                lab.sync_images([digest])
                return True
    return False


def _set_aside(lab: Lab, name: str) -> bool:
    """Move kept bytes that no cell has out of the way; they may be the only copy, so they are not deleted."""
    path = lab.images / name if "/" in name else lab.image_path(name)
    target = lab.folder / UNCLAIMED / path.name
    try:
        target.parent.mkdir(exist_ok=True)
        failpoint("repair.unclaimed")
        os.replace(path, target)
    except OSError as error:
        raise LabError(f"{path} cannot be moved to {target.parent}: {error.strerror or error}.") from None
    return True
