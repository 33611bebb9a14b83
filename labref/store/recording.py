"""From a batch of files to the rows of one transaction: who is new, who is seen again, who resembles whom."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np

from labref.errors import StoreError
from labref.store.memory import distances
from labref.store.memory.books import HashBook, HashChanges, id_to_int, int_to_id
from labref.store.text import to_column, to_nullable
from labref.store.values import CellEmbedding, Judge, LedgerRow, NewCell, Rejected, Resemblance, SeenAgain, StoredBundle
from labref.words import (
    SHIFTED,
    STORED,
    Fingerprint,
    LabelSource,
    Landmark,
    Outcome,
    SlideId,
    Verdict,
    cell_id_of,
    within_64_bits,
)

__all__ = [
    "CellState",
    "Comparing",
    "FileRow",
    "Found",
    "LabelChange",
    "Numbers",
    "Plan",
    "Search",
    "check_embedding",
    "check_new_cell",
    "compare",
    "draw_up",
    "reason_of",
    "stored_landmarks",
    "utc_naive",
]

_MOST_CANDIDATES = 32  # cells that one is registered with because their fingerprints resemble its own
_MOST_BESIDE = 4  # cells that one is registered with because of one landmark
# cells stored last, and the bits more in which their fingerprints may differ: one cell is often taken again at once
_LATEST = ((64, 4), (8, 7))
_BESIDE_LATEST = (8, 4)  # the same of landmarks
_MOST_LATEST = 8  # cells that one is registered with because of that
_LATEST_TURNED = 50_000  # cells stored last, among which turned and mirrored copies are looked for
_MOST_TURNED = 4


def utc_naive(moment: datetime) -> datetime:
    """The moment as the database keeps it: UTC without a zone. Raises ValueError for one that has no zone."""
    if moment.tzinfo is None:
        raise ValueError(f"{moment} has no time zone; the store keeps UTC and does not guess")
    return moment.astimezone(UTC).replace(tzinfo=None)


@dataclass(frozen=True, slots=True)
class CellState:
    """What recording must know of a cell that is there already, or further up in the same batch."""

    digest: str
    label: str
    label_source: LabelSource
    slide: SlideId | None
    duplicate_group: str | None


@dataclass(frozen=True, slots=True)
class Comparing:
    """How new cells are compared with those that are there.

    judge : compares two cells, None where nobody can.  candidate_bits : in so many bits, at most, the fingerprints of
    two cells differ that are compared.  rejected : pairs of cell ids that a person called different.
    """

    judge: Judge | None = None
    candidate_bits: int = 0
    rejected: Set[frozenset[str]] = frozenset()


@dataclass(frozen=True, slots=True)
class FileRow:
    """One row of the ledger as the database holds it; label, source and slide as the path itself gives them."""

    path: str
    size_bytes: int | None
    mtime_ns: int | None
    outcome: Outcome
    reason: str | None
    cell_id: str | None
    label: str | None
    label_source: str | None
    slide: str | None
    duplicate_of: str | None
    recorded_at: datetime
    ctime_ns: int | None = None
    inode: int | None = None
    folder: str = ""

    def said(self) -> tuple[Any, ...]:
        """What it says of the file; two rows that say the same are one outcome, and no history."""
        return self.outcome, self.reason, self.cell_id

    def values(self) -> tuple[Any, ...]:
        """The columns of table `file`, in order."""
        return (
            to_column(self.path),
            None if self.size_bytes is None else within_64_bits(self.size_bytes),
            None if self.mtime_ns is None else within_64_bits(self.mtime_ns),
            str(self.outcome),
            to_nullable(self.reason),
            self.cell_id,
            to_nullable(self.label),
            self.label_source,
            to_nullable(self.slide),
            self.duplicate_of,
            self.recorded_at,
            None if self.ctime_ns is None else within_64_bits(self.ctime_ns),
            self.inode,
            to_column(self.folder),
        )


@dataclass(frozen=True, slots=True)
class LabelChange:
    """What a cell is called from now on, and was before (previous, previous_source).

    path : the file that says so, which the cell goes by from now on, with its slide. None where a person said it: path
    and slide stay, `who` and `given_at` (UTC, without a zone) are what the person said.  undoes : the number of the
    change that this one takes back.
    """

    cell_id: str
    path: str | None
    slide: SlideId | None
    label: str
    label_source: LabelSource
    previous: str
    previous_source: LabelSource
    who: str | None = None
    given_at: datetime | None = None
    undoes: int | None = None

    @property
    def is_history(self) -> bool:
        """Whether its label, or who gave it, changed, or a person confirmed it: not where only the file moved."""
        return (
            self.path is None
            or self.undoes is not None
            or (self.label, self.label_source) != (self.previous, self.previous_source)
        )


@dataclass(slots=True)
class Numbers:
    """Gives rows their numbers, in the order they come. last : the largest there is.  given : how many here."""

    last: int
    given: int = 0

    def take(self, count: int = 1) -> int:
        """Give the next `count` numbers; returns the last of them."""
        self.last += count
        self.given += count
        return self.last


@dataclass(slots=True)
class Plan:
    """All that one transaction writes, and the ledger rows to hand back, in the order of the batch.

    numbers: of the new cells; the last value of a row of `cells` is its number. known_paths: the paths that have a row
    in the ledger already. groups: of each new cell that repeats another, its group. resemblances: the later cell of a
    pair, the earlier one, and what comparing them gave. linked: whether a new cell is linked with another.
    """

    at: datetime
    numbers: Numbers
    known_paths: Set[str]
    search: Search
    cells: list[tuple[Any, ...]] = field(default_factory=list)
    embedded: list[NewCell] = field(default_factory=list)
    groups: dict[str, str] = field(default_factory=dict)
    files: dict[str, FileRow] = field(default_factory=dict)
    replaced: list[FileRow] = field(default_factory=list)
    fingerprints: list[tuple[str, Fingerprint]] = field(default_factory=list)
    landmarks: list[tuple[str, Fingerprint, int]] = field(default_factory=list)
    resemblances: list[tuple[str, str, Resemblance]] = field(default_factory=list)
    label_changes: list[LabelChange] = field(default_factory=list)
    rows: list[LedgerRow] = field(default_factory=list)
    linked: bool = False


@dataclass(frozen=True, slots=True)
class Found:
    """What comparing a cell with others gave.

    link : the cell that it repeats or may repeat, if any.  others : further cells of which that is true: other captures
    of the same cell, if labref is right.  neighbours : the cells beside it in the same field.
    """

    link: tuple[str, Resemblance] | None = None
    others: Sequence[tuple[str, Resemblance]] = ()
    neighbours: Sequence[tuple[str, Resemblance]] = ()

    @property
    def resemblances(self) -> Sequence[tuple[str, Resemblance]]:
        """All of them."""
        return (*(() if self.link is None else (self.link,)), *self.others, *self.neighbours)


class Search:
    """Looks for the cells that one is to be compared with, among those stored and those of a batch that are to be."""

    def __init__(self, fingerprints: HashBook, landmarks: HashBook) -> None:
        """fingerprints : of all cells, one each.  landmarks : the last ones stored, several of a cell."""
        self._fingerprints, self._landmarks = HashChanges(fingerprints), HashChanges(landmarks)

    def candidates(self, fingerprints: Sequence[Fingerprint], landmarks: Sequence[Landmark], bits: int) -> list[str]:
        """Ids of the cells whose fingerprints are like one of a cell's own; then, among the cells stored last, of those
        whose fingerprints are somewhat like it: pictures taken in other focus differ more, and come soon; of those that
        are like its picture turned or mirrored; and then of those with a landmark of its picture, or, among the cells
        stored last, one somewhat like it.

        Of each kind only some, those first that differ least, the oldest of equals.  bits : of 64, in which they differ
        at most.
        """
        upright, turned = fingerprints[:SHIFTED], fingerprints[SHIFTED:]
        near = _cells(self._fingerprints.within(upright, bits))[:_MOST_CANDIDATES]
        for latest, more in _LATEST:
            near += _cells(self._fingerprints.within(upright, bits + more, latest=latest))[:_MOST_LATEST]
        near += _cells(self._fingerprints.within(turned, bits, latest=_LATEST_TURNED))[:_MOST_TURNED]
        latest, more = _BESIDE_LATEST
        for landmark in landmarks:
            near += _cells(self._landmarks.within(landmark.marks, bits, landmark.shown))[:_MOST_BESIDE]
            near += _cells(self._landmarks.within(landmark.marks, bits + more, landmark.shown, latest=latest * STORED))[
                :_MOST_BESIDE
            ]
        return [int_to_id(number) for number in dict.fromkeys(near)]

    def add(
        self,
        cell_id: str,
        fingerprints: Sequence[Fingerprint],
        landmarks: Sequence[Landmark],
        age: int | None = None,
    ) -> None:
        """A cell that others are compared with from now on; a new one where no age is given."""
        number = id_to_int(cell_id)
        self._fingerprints.add(number, fingerprints[0], age)
        for mark in stored_landmarks(landmarks):
            self._landmarks.add(number, mark, age)

    def apply(self) -> None:
        """Keep what was added, now that it is committed."""
        self._fingerprints.apply()
        self._landmarks.apply()


def _cells(found: Sequence[tuple[int, int, int]]) -> list[int]:
    """The cells of what a book found, each once."""
    return list(dict.fromkeys(number for _, _, number in found))


def stored_landmarks(landmarks: Sequence[Landmark]) -> list[Fingerprint]:
    """What is stored of the landmarks of a picture."""
    return [landmark.marks[0] for landmark in landmarks[:STORED]]


def check_new_cell(cell: NewCell, bundle: StoredBundle) -> None:
    """Raise StoreError where a cell does not fit the bundle, before it can spoil a latent space."""
    if cell.cell_id != cell_id_of(cell.digest) or len(cell.digest) != 64:
        raise StoreError(f"cell {cell.cell_id} is not named after its digest: the caller must use `cell_id_of`.")
    check_embedding(cell, bundle)


def check_embedding(cell: NewCell | CellEmbedding, bundle: StoredBundle) -> None:
    """Raise StoreError where a latent or probabilities are not finite, or not of the bundle's shape."""
    if cell.latent.shape != (bundle.latent_size,) or cell.probabilities.shape != (len(bundle.labels),):
        raise StoreError(
            f"cell {cell.cell_id} has a latent of shape {cell.latent.shape} and probabilities of shape "
            f"{cell.probabilities.shape}; bundle {bundle.digest[:12]} makes ({bundle.latent_size},) and "
            f"({len(bundle.labels)},). It was embedded by another bundle: restart the agent."
        )
    # not (a <= b) also catches NaN
    for what, values in (("a latent", cell.latent), ("probabilities", cell.probabilities)):
        if float(np.abs(values).max(initial=0.0)) <= distances.LARGEST_VALUE:
            continue
        raise StoreError(
            f"cell {cell.cell_id} has {what} not finite or above {distances.LARGEST_VALUE:g}; bundle "
            f"{bundle.digest[:12]} or its runtime is broken. Verify the bundle and try --device cpu."
        )


def draw_up(
    batch: Sequence[NewCell | SeenAgain | Rejected],
    *,
    states: dict[str, CellState],
    files: dict[str, FileRow],
    search: Search,
    state_of: Callable[[str], CellState],
    comparing: Comparing,
    at: datetime,
    numbers: Numbers,
) -> Plan:
    """Work out what a batch writes, without writing.

    states : the cells of the batch that the store has already, by id; grows by the batch's own.
    files : the ledger rows of the batch's paths so far. search : among the cells in the store; grows by the batch's
    own.
    state_of : looks up a cell of the store that is not in states. at : now, UTC, without a zone. numbers : for
    the new cells.
    """
    plan = Plan(at, numbers, files.keys(), search)
    made: dict[str, FileRow] = {}
    new: dict[str, NewCell] = {}
    for item in batch:
        if isinstance(item, NewCell) and item.cell_id not in states:
            new.setdefault(item.cell_id, item)
    rows: list[FileRow] = []
    for item in batch:
        before = plan.files.get(item.path) or files.get(item.path)
        if isinstance(item, Rejected):
            after = _rejected(item, before, at)
        else:
            cell_id = cell_id_of(item.digest)
            if cell_id not in states:  # a copy may stand before its cell
                made[cell_id] = _add_cell(plan, new.get(cell_id) or _unknown(item), states, state_of, comparing)
            if states[cell_id].digest != item.digest:
                raise StoreError(
                    f"its bytes are not those of cell {cell_id}, but their digest begins with the same 16 characters, which "
                    "are a cell's id; save the picture in another way."
                )
            if new.get(cell_id) is item:
                after = made[cell_id]
            else:
                after = _again(item, cell_id, before, at)
                _promote(plan, item, cell_id, states)
        if before is not None and before.said() != after.said():
            plan.replaced.append(before)
        plan.files[item.path] = after
        rows.append(after)
    plan.rows = [_ledger_row(row, states) for row in rows]
    return plan


def _unknown(item: NewCell | SeenAgain) -> NewCell:
    raise StoreError(
        f"no cell {cell_id_of(item.digest)} is in the store, so nothing can be seen again; record it as a new cell."
    )


def compare(cell_id: str, digest: str, others: Sequence[tuple[str, str]], comparing: Comparing) -> Found:
    """Compare a cell with others: the one that it repeats or may repeat is a duplicate rather than a possible one, then
    the most alike, then the first given.

    others : id and digest of each, fewest differing bits first, then oldest. Pairs that a person called different are
    left out.
    """
    if comparing.judge is None:
        return Found()
    alike: list[tuple[str, Resemblance]] = []
    neighbours: list[tuple[str, Resemblance]] = []
    for other, other_digest in others:
        if frozenset((cell_id, other)) in comparing.rejected:
            continue
        found = comparing.judge(digest, other_digest)
        if found is None:
            continue
        if found.verdict is Verdict.NEIGHBOUR:
            neighbours.append((other, found))
        elif found.verdict.is_one_cell:
            alike.append((other, found))
    if not alike:
        return Found(None, (), neighbours)
    link = max(alike, key=lambda of_one: _rank(of_one[1]))  # the first of equals
    return Found(link, [one for one in alike if one is not link], neighbours)


def _rank(found: Resemblance) -> tuple[bool, float]:
    return found.verdict is Verdict.DUPLICATE, found.score


def reason_of(other: str, found: Resemblance) -> str:
    """What the ledger says of a cell that repeats, or may repeat, another."""
    if found.verdict is Verdict.DUPLICATE:
        return f"a recapture of cell {other} (laid over each other they agree to {found.score:.3f}); kept"
    return (
        f"may be a recapture of cell {other} (they agree to {found.score:.3f}); kept, for review by `labref duplicates`"
    )


def _add_cell(
    plan: Plan,
    cell: NewCell,
    states: dict[str, CellState],
    state_of: Callable[[str], CellState],
    comparing: Comparing,
) -> FileRow:
    label, source = cell.carries()

    def state(cell_id: str) -> CellState:
        return states.get(cell_id) or state_of(cell_id)

    number = plan.numbers.take()
    compared = Found()
    if cell.fingerprints:
        if comparing.judge is not None:
            ids = plan.search.candidates(cell.fingerprints, cell.landmarks, comparing.candidate_bits)
            compared = compare(cell.cell_id, cell.digest, [(other, state(other).digest) for other in ids], comparing)
        plan.search.add(cell.cell_id, cell.fingerprints, cell.landmarks, number)
        plan.fingerprints.append((cell.cell_id, cell.fingerprints[0]))
        plan.landmarks += [(cell.cell_id, mark, number) for mark in stored_landmarks(cell.landmarks)]
    plan.resemblances += [(cell.cell_id, other, found) for other, found in compared.resemblances]
    outcome, reason, group, resembles = Outcome.STORED, None, None, None
    if compared.link is not None:
        resembles, found = compared.link
        outcome, reason = Outcome(found.verdict), reason_of(resembles, found)
        plan.linked = True
        if found.verdict is Verdict.DUPLICATE:
            group = plan.groups[cell.cell_id] = state(resembles).duplicate_group or resembles
    states[cell.cell_id] = CellState(cell.digest, label, source, cell.slide_id, group)
    plan.cells.append(
        (
            cell.cell_id,
            cell.digest,
            to_column(cell.path),
            within_64_bits(cell.size_bytes),
            cell.width,
            cell.height,
            to_column(label),
            str(source),
            to_nullable(cell.slide),
            to_nullable(cell.analyser),
            None if cell.captured_at is None else utc_naive(cell.captured_at),
            resembles,
            None if resembles is None else str(outcome),
            group,
            plan.at,
            to_column(cell.folder),
            number,
        )
    )
    plan.embedded.append(cell)
    return FileRow(
        cell.path,
        cell.size_bytes,
        cell.mtime_ns,
        outcome,
        reason,
        cell.cell_id,
        cell.label,
        None if cell.label is None else str(source),
        cell.slide,
        resembles,
        plan.at,
        cell.ctime_ns,
        cell.inode,
        cell.folder,
    )


def _again(item: NewCell | SeenAgain, cell_id: str, before: FileRow | None, at: datetime) -> FileRow:
    source = None if item.label is None else str(LabelSource(item.label_source))
    if before is not None and before.cell_id == cell_id:  # the same file read again: its outcome stands
        return replace(
            before,
            size_bytes=item.size_bytes,
            mtime_ns=item.mtime_ns,
            ctime_ns=item.ctime_ns,
            inode=item.inode,
            label=item.label,
            label_source=source,
            slide=item.slide,
            folder=item.folder,
        )
    return FileRow(
        item.path,
        item.size_bytes,
        item.mtime_ns,
        Outcome.DUPLICATE,
        f"the same bytes as cell {cell_id}",
        cell_id,
        item.label,
        source,
        item.slide,
        cell_id,
        at,
        item.ctime_ns,
        item.inode,
        item.folder,
    )


def _rejected(item: Rejected, before: FileRow | None, at: datetime) -> FileRow:
    if before is not None and before.outcome is Outcome.REJECTED and before.reason == item.reason:
        at = before.recorded_at  # the outcome stands
    return FileRow(
        item.path,
        item.size_bytes,
        item.mtime_ns,
        Outcome.REJECTED,
        item.reason,
        None,
        None,
        None,
        None,
        None,
        at,
        item.ctime_ns,
        item.inode,
    )


def _promote(plan: Plan, item: NewCell | SeenAgain, cell_id: str, states: dict[str, CellState]) -> None:
    """Give the cell the path's label where that counts more: a copy in `Signed slides` makes its cell reviewed.

    Of two labels that count alike the first stays; each path keeps its own, so a conflict can be shown.
    """
    state = states[cell_id]
    if item.label is None:
        return
    source = LabelSource(item.label_source)
    if source.weight <= state.label_source.weight:
        return
    slide = state.slide if item.slide is None else SlideId(item.folder, item.slide)
    plan.label_changes.append(
        LabelChange(cell_id, item.path, slide, item.label, source, state.label, state.label_source)
    )
    states[cell_id] = replace(state, label=item.label, label_source=source, slide=slide)


def _ledger_row(row: FileRow, states: dict[str, CellState]) -> LedgerRow:
    state = None if row.cell_id is None else states[row.cell_id]
    carried: tuple[str | None, str | None] = (None, None) if state is None else (state.label, str(state.label_source))
    label, source = carried if row.label is None else (row.label, row.label_source)
    return LedgerRow(
        row.path,
        row.outcome,
        row.reason,
        row.cell_id,
        label,
        source,
        row.slide or (None if state is None or state.slide is None else state.slide.name),
        row.recorded_at.replace(tzinfo=UTC),
        row.duplicate_of,
    )
