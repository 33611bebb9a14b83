"""`labref contribute`: reviewed cells for the centre, without anything that names a patient."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
from pydantic import Field

from labref import __version__
from labref.bundles.keyfile import number_of_now
from labref.bundles.schema import line
from labref.cells.image import PREPARATION
from labref.errors import LabError, UnreadableImageError
from labref.export.layout import ClassNames
from labref.failpoints import failpoint
from labref.files import give, sync_folder
from labref.lab import absolute
from labref.lab.contributing import Given, Pseudonyms, own_key
from labref.operations import operation
from labref.operations.models import Answer, FilePath, Progress
from labref.operations.scratch import scratch
from labref.packs import CELLS, COLUMNS, CONSENT, DATED, REMOVED, Manifest, picture_of
from labref.packs import write as write_pack
from labref.progress import Pace, Row, progress
from labref.store.duckdb.contributing import Contribution, PackedCell, ReviewedCell
from labref.store.memory.books import id_to_int, int_to_id
from labref.tasks import retention
from labref.tasks.context import Context

__all__ = ["PackColumn", "PackPreview", "PackSample", "PackWritten"]

_AT_ONCE: Final = 256
_SAMPLES: Final = 4  # of each class
_MOST_SAMPLES: Final = 60
_LONGEST: Final = 100  # characters of a class


class PackColumn(Answer):
    """One thing that leaves of each cell."""

    name: str = Field(description="Its name.")
    type: str = Field(description="Its type in the Parquet file.")
    what: str = Field(description="What it is.")


class PackSample(Answer):
    """A cell that would leave, for a picture of it."""

    cell_id: str = Field(description="The lab's own name of the cell; it does not leave.")
    label: str = Field(description="Its class.")
    optics: str = Field(description="The pseudonym of its analyser.")


class PackPreview(Answer):
    """What a pack that is written now would hold."""

    lab: str = Field(description="Id of the lab's own key, which the pack names it by.")
    as_of: int = Field(
        description="The moment that this is true of; `contribute.write` with it gives no more than this."
    )
    follows: int | None = Field(description="Number of the pack before it; null where this one holds all.")
    columns: list[PackColumn] = Field(description="What leaves of each cell.")
    cells: int = Field(description="Cells that leave.")
    again: int = Field(description="Of these, those that an earlier pack had, with another label or history.")
    removed: int = Field(description="Cells that the centre is told to drop.")
    given_before: int = Field(description="Cells that the centre has and that are as they were.")
    classes: dict[str, int] = Field(description="Cells that leave, by class.")
    optics: dict[str, int] = Field(description="Cells that leave, by the pseudonym of their analyser.")
    analysers: dict[str, str | None] = Field(
        description="The lab's own names of these analysers, by their pseudonyms; null for cells of one without a name. They do not leave."
    )
    left_out: dict[str, int] = Field(
        description="Cells that stay, by the reason. `not_reviewed`: no person gave its label; `class_not_declared`: only the name of a "
        "folder says its class, which could be a patient's; `changed_since`: it came, or got another label, after `as_of`."
    )
    samples: list[PackSample] = Field(description="Some of those that leave, of each class.")


class PackWritten(Answer):
    """The result of writing a pack."""

    target: str | None = Field(description="The file; null where there was nothing new, and none was written.")
    lab: str = Field(description="Id of the lab's own key, which signed it.")
    number: int | None = Field(description="Its number; null where none was written.")
    digest: str | None = Field(description="SHA-256 of what is signed; null where none was written.")
    bytes: int = Field(description="Its size.")
    cells: int = Field(description="Cells in it.")
    again: int = Field(description="Of these, those that an earlier pack had.")
    removed: int = Field(description="Cells that the centre is told to drop.")
    classes: dict[str, int] = Field(description="Cells in it, by class.")
    left_out: dict[str, int] = Field(
        description="Cells that stay, by the reason: as in the preview, and `bytes_lost`: its kept picture is missing or damaged."
    )


@dataclass
class _Chosen:
    """Which cells leave. cells : those, by pseudonym.  contents : what the pack says of every cell that the centre has
    afterwards, by id as integer; those that are in no pack yet among them.  removed : pseudonyms."""

    given: Given
    cells: dict[str, ReviewedCell] = field(default_factory=dict)
    contents: dict[int, int] = field(default_factory=dict)
    removed: list[str] = field(default_factory=list)
    again: int = 0
    left_out: Counter[str] = field(default_factory=Counter)

    @property
    def same(self) -> int:
        """Cells that the centre has and that are as they were."""
        return len(self.contents) - len(self.cells)


_Everything = Annotated[
    bool,
    Field(description="All that the lab gives, as in a first pack: where the centre lost packs, or never got them."),
]
_Dates = Annotated[
    bool,
    Field(
        description="With the day of capture, moved by a number of days that only the lab's key knows, the same for all its cells; without the time of day."
    ),
]


@operation("contribute.preview", PackPreview)
def preview(context: Context, *, everything: _Everything = False, shift_dates: _Dates = False) -> Iterator[Row]:
    """Say what a pack that is written now would hold: each column, how many cells by class, and what stays and why.

    Nothing is written, but for the lab's own key, where it had none. Whether the kept picture of each cell can be read
    is seen when the pack is written.
    """
    key, _ = own_key(context.lab)
    names, as_of = Pseudonyms(key), context.store.last_number()
    given = _given(context, key.public.id, everything)
    with context.store.contributing() as rows:
        chosen = _choose(context, rows, names, given, as_of)
    columns = dict(COLUMNS) | ({DATED[0]: DATED[1:]} if shift_dates else {})
    classes = Counter(cell.label for cell in chosen.cells.values())
    shown: Counter[str] = Counter()
    samples: list[dict[str, Any]] = []
    each = max(1, min(_SAMPLES, _MOST_SAMPLES // max(1, len(classes))))
    for name in sorted(chosen.cells):
        cell = chosen.cells[name]
        shown[cell.label] += 1
        if shown[cell.label] <= each and len(samples) < _MOST_SAMPLES:
            samples.append({"cell_id": cell.cell_id, "label": cell.label, "optics": names.optics(cell.analyser)})
    yield {
        "lab": key.public.id,
        "as_of": as_of,
        "follows": None if given.pack is None else given.number,
        "columns": [{"name": name, "type": kind, "what": what} for name, (kind, what) in columns.items()],
        "cells": len(chosen.cells),
        "again": chosen.again,
        "removed": len(chosen.removed),
        "given_before": chosen.same,
        "classes": dict(sorted(classes.items())),
        "optics": dict(sorted(Counter(names.optics(cell.analyser) for cell in chosen.cells.values()).items())),
        "analysers": {names.optics(name): name for name in {cell.analyser for cell in chosen.cells.values()}},
        "left_out": dict(sorted(chosen.left_out.items())),
        "samples": sorted(samples, key=lambda one: one["label"]),
    }


@operation("contribute.write", Progress, PackWritten)
def write(
    context: Context,
    *,
    target: Annotated[FilePath, Field(description="A new file; its absolute path on the lab's computer.")],
    consent: Annotated[
        str,
        Field(
            pattern=CONSENT,
            description="The licence or consent under which the lab gives these cells, in a word or two, as `CC BY 4.0`: letters of western "
            "Europe, digits, spaces and . , _ : / + -, at most 60.",
        ),
    ],
    as_of: Annotated[
        int | None,
        Field(
            ge=0,
            le=10**15,
            description="Give no more than a preview said: its `as_of`. What changed since comes with the next.",
        ),
    ] = None,
    everything: _Everything = False,
    shift_dates: _Dates = False,
) -> Iterator[Row]:
    """Write the reviewed cells that are new or have another label since the last pack into a signed file for the
    centre. See `labref contribute --help`."""
    path = absolute(Path(target))
    context.lab.refuse_output(path)
    _refuse_taken(path)
    yield from retention.UPKEEP.take("a pack for the centre is written")
    try:
        yield from _write(context, path, consent, as_of, everything, shift_dates)
    finally:
        retention.UPKEEP.release()


def _write(
    context: Context, path: Path, consent: str, as_of: int | None, everything: bool, shift_dates: bool
) -> Iterator[Row]:
    lab, store = context.lab, context.store
    key, _ = own_key(lab)
    names, given = Pseudonyms(key), _given(context, key.public.id, everything)
    until = store.last_number() if as_of is None else as_of
    try:
        with scratch(lab, path, "pack") as made:
            with store.contributing(made / "rows") as rows:
                chosen = _choose(context, rows, names, given, until)
                days = timedelta(days=names.days()) if shift_dates else None
                packed: Counter[str] = Counter()
                for done in _add(context, rows, names, chosen, days, packed):
                    yield progress(done, len(chosen.cells), "pictures of cells")
                number, lost = sum(packed.values()), len(chosen.cells) - sum(packed.values())
                if lost:
                    chosen.left_out["bytes_lost"] += lost
                row = {
                    "lab": key.public.id,
                    "cells": number,
                    "again": chosen.again,
                    "removed": len(chosen.removed),
                    "classes": dict(sorted(packed.items())),
                    "left_out": dict(sorted(chosen.left_out.items())),
                }
                if not number and not chosen.removed:
                    yield row | {"target": None, "number": None, "digest": None, "bytes": 0}
                    return
                yield progress(len(chosen.cells), len(chosen.cells), "the file is written")
                failpoint("pack.write")
                rows.write(made / CELLS, dates=shift_dates)
                rows.write_removed(chosen.removed, made / REMOVED)
                manifest = Manifest(
                    labref=__version__,
                    lab=key.public.id,
                    number=max(number_of_now(), given.last + 1),
                    follows=given.pack,
                    preparation=int(PREPARATION["version"]),
                    bundle=rows.bundle,
                    latent_size=rows.latent_size,
                    consent=consent,
                    dates="shifted" if shift_dates else "none",
                    cells=number,
                    removed=len(chosen.removed),
                    classes=dict(sorted(packed.items())),
                    files={},
                )
            draft = made / "pack"
            digest = write_pack(made, manifest, key, draft)
            give(draft, lab.rights)
            size = draft.stat().st_size
            # first: no other pack gets its number, wherever this ends
            replace(Given.load(lab, key.public.id), last=manifest.number).save(lab, key.public.id)
            failpoint("pack.rename")
            _refuse_taken(path)
            os.replace(draft, path)
            sync_folder(path.parent)
        failpoint("pack.renamed", may_fail=False)
        _after(chosen, digest, manifest.number).save(lab, key.public.id)
    except OSError as error:
        raise LabError(f"{path} cannot be written: {error.strerror or error}. Look at its disk.") from None
    yield row | {"target": str(path), "number": manifest.number, "digest": digest, "bytes": size}


def _day(at: datetime) -> datetime:
    """The day of a moment: a minute of it would be found again in the records of the hospital."""
    return at.replace(hour=0, minute=0, second=0, microsecond=0)


def _refuse_taken(path: Path) -> None:
    if os.path.lexists(path):
        raise LabError(f"{path} is there already. Choose another name; a pack never replaces a file.")


def _given(context: Context, key: str, everything: bool) -> Given:
    given = Given.load(context.lab, key)
    return Given.nothing(given.last) if everything else given


def _choose(context: Context, rows: Contribution, names: Pseudonyms, given: Given, as_of: int) -> _Chosen:
    """Which cells leave, of those that the lab had at the moment `as_of`."""
    chosen = _Chosen(given)
    labels = [label for bundle in context.store.bundles() for label in bundle.labels]
    classes, said = ClassNames(labels, context.lab.config.watch.labels), rows.given()
    reviewed = later = 0
    kept = np.zeros(len(given.cells), np.bool_)
    for cell in rows.reviewed(as_of):
        number = id_to_int(cell.cell_id)
        (at,) = given.of(np.array([number], np.uint64)).tolist()
        if cell.later:
            later += 1
            if at >= 0:  # as the centre has it, until the next pack
                kept[at] = True
                chosen.contents[number] = int(given.contents[at])
            continue
        reviewed += 1
        if not ((cell.label in said or classes.is_class(cell.label)) and _is_line(cell.label)):
            chosen.left_out["class_not_declared"] += 1
            continue
        content = names.content("\n".join((cell.label, str(cell.by_person), cell.history, str(PREPARATION["version"]))))
        chosen.contents[number] = content
        if at >= 0:
            kept[at] = True
            if int(given.contents[at]) == content:
                continue
            chosen.again += 1
        chosen.cells[names.cell(cell.cell_id)] = cell
    chosen.removed = [names.cell(int_to_id(int(number))) for number in given.cells[~kept]]
    chosen.left_out["not_reviewed"] = len(context.store.label_book) - reviewed - later
    chosen.left_out["changed_since"] = later
    chosen.left_out = +chosen.left_out
    return chosen


def _is_line(label: str) -> bool:
    try:
        return 1 <= len(line(label)) <= _LONGEST
    except ValueError:
        return False


def _add(
    context: Context,
    rows: Contribution,
    names: Pseudonyms,
    chosen: _Chosen,
    days: timedelta | None,
    packed: Counter[str],
) -> Iterator[int]:
    """Add the chosen cells, in the order of their pseudonyms, which says nothing of when they came. Yields every second
    how many are done. packed : gets how many of each class were added."""
    pace, waiting = Pace(), list[PackedCell]()
    for done, name in enumerate(sorted(chosen.cells), 1):
        cell = chosen.cells[name]
        try:
            crop = context.lab.decoder.prepare(context.lab.read_image(cell.digest)).crop
        except (LabError, UnreadableImageError):
            number = id_to_int(cell.cell_id)
            del chosen.contents[number]
            (at,) = chosen.given.of(np.array([number], np.uint64)).tolist()
            if at >= 0:  # the centre may keep what it has
                chosen.contents[number] = int(chosen.given.contents[at])
                chosen.again -= 1
        else:
            at_time = None if days is None or cell.captured_at is None else _day(cell.captured_at - days)
            packed[cell.label] += 1
            source = "labref" if cell.by_person else "export"
            history, optics = names.history(cell.history), names.optics(cell.analyser)
            waiting.append(
                PackedCell(
                    cell.cell_id, name, cell.label, source, history, cell.decisions, optics, at_time, picture_of(crop)
                )
            )
        if len(waiting) == _AT_ONCE:
            rows.add(waiting)
            waiting = []
        if pace.due():
            yield done
    if waiting:
        rows.add(waiting)


def _after(chosen: _Chosen, digest: str, number: int) -> Given:
    """What the centre has after this pack."""
    cells = np.fromiter(chosen.contents, np.uint64, len(chosen.contents))
    contents = np.fromiter(chosen.contents.values(), np.uint64, len(chosen.contents))
    order = np.argsort(cells)
    return Given(digest, number, number, cells[order], contents[order])
