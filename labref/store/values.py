"""The values that go into the store and come out of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from labref.words import Fingerprint, LabelSource, Landmark, Outcome, Quality, SlideId, Verdict

__all__ = [
    "Cell",
    "CellEmbedding",
    "Counts",
    "Embedded",
    "FileOfCell",
    "FileState",
    "Judge",
    "LedgerRow",
    "Neighbour",
    "NewCell",
    "Rejected",
    "Resemblance",
    "SeenAgain",
    "StoredBundle",
]


@dataclass(frozen=True, slots=True, eq=False)
class NewCell:
    """A file that is a readable cell image not known yet, with all that was measured on it.

    latent : float32[L] and probabilities : float32[c], both from one bundle; width and height: pixels of the original;
    mtime_ns: nanoseconds since 1970, UTC; captured_at: with a time zone.
    ctime_ns and inode: the file's last change of any kind, and its number, where they are known.
    measures: float32[7] of its optics, see `labref.cells.optics`; None leaves them to be measured later.
    quality: whether its picture shows one stained cell; None leaves it to be judged later.
    fingerprints: those of `labref.cells.hashes.shifted_fingerprints`, of which the first is the cell's, and of
    `turned_fingerprints`; without them they are made later, and the cell is compared with no other until then.
    landmarks: of its picture, `labref.cells.landmarks`, nearest to its centre first.
    folder: the watched folder that it lies in, as text; two of them can have slides of one name.
    label: None where neither a person nor the analyser gave one; the cell then has predicted_label as its label, with
    the source "predicted".
    """

    cell_id: str
    digest: str
    path: str
    size_bytes: int
    mtime_ns: int
    width: int
    height: int
    label: str | None
    label_source: str
    slide: str | None
    analyser: str | None
    captured_at: datetime | None
    predicted_label: str
    predicted_probability: float
    latent: NDArray[np.float32]
    probabilities: NDArray[np.float32]
    measures: NDArray[np.float32] | None = None
    quality: Quality | None = None
    fingerprints: tuple[Fingerprint, ...] = ()
    landmarks: tuple[Landmark, ...] = ()
    ctime_ns: int | None = None
    inode: int | None = None
    folder: str = ""

    @property
    def slide_id(self) -> SlideId | None:
        """The slide that it is of; None where it has none."""
        return None if self.slide is None else SlideId(self.folder, self.slide)

    def carries(self) -> tuple[str, LabelSource]:
        """The label that the cell gets, and its source."""
        if self.label is None:
            return self.predicted_label, LabelSource.PREDICTED
        return self.label, LabelSource(self.label_source)


@dataclass(frozen=True, slots=True, eq=False)
class CellEmbedding:
    """A stored cell's place in the space of one bundle. latent : float32[L]. probabilities : float32[c]."""

    cell_id: str
    latent: NDArray[np.float32]
    probabilities: NDArray[np.float32]
    predicted_label: str
    predicted_probability: float


@dataclass(frozen=True, slots=True, eq=False)
class Embedded:
    """What the networks of a bundle say of a cell. latent : float32[L].  label, probability : the most probable
    class."""

    latent: NDArray[np.float32]
    label: str
    probability: float


@dataclass(frozen=True, slots=True)
class SeenAgain:
    """A file whose bytes are those of a cell already stored: one more path of that cell. folder : the watched folder
    that it lies in."""

    path: str
    size_bytes: int
    mtime_ns: int
    digest: str
    label: str | None = None
    label_source: str = "predicted"
    slide: str | None = None
    ctime_ns: int | None = None
    inode: int | None = None
    folder: str = ""


@dataclass(frozen=True, slots=True)
class Rejected:
    """A file that cannot become a cell, and the reason. Size and time are None where they could not be read either."""

    path: str
    size_bytes: int | None
    mtime_ns: int | None
    reason: str
    ctime_ns: int | None = None
    inode: int | None = None


@dataclass(frozen=True, slots=True)
class LedgerRow:
    """What became of one file.

    label and label_source: those that the file's path gives, else those that the cell has now. at: when this outcome
    was recorded, UTC. duplicate_of: the cell that this one repeats; for byte-identical files, the cell itself.
    reason: None for a plain `stored`. conflict: the classes that the paths of this cell's files give, where these
    differ. neighbours: the cells beside this one, in overlapping pictures of one field. Only the ledger fills conflict
    and neighbours; `record` leaves them empty.
    """

    path: str
    outcome: Outcome
    reason: str | None
    cell_id: str | None
    label: str | None
    label_source: str | None
    slide: str | None
    at: datetime
    duplicate_of: str | None
    conflict: tuple[str, ...] | None = None
    neighbours: tuple[str, ...] = ()


class FileOfCell(NamedTuple):
    """A file that holds a cell, or the one that the cell goes by.

    holds : False where the ledger knows that something else is at this path by now.  own : whether it is the one that
    the cell goes by.  agrees : whether it says the label that the cell carries; None where it says none.
    """

    cell_id: str
    path: str
    holds: bool
    own: bool
    agrees: bool | None


class FileState(NamedTuple):
    """The recorded state of a file, which a scan compares the file with; None for what is not known. It is a tuple
    because every scan makes one for each of up to a million files."""

    size_bytes: int | None
    mtime_ns: int | None
    outcome: str
    ctime_ns: int | None = None
    inode: int | None = None

    def is_of(self, size_bytes: int, mtime_ns: int, ctime_ns: int, inode: int | None) -> bool:
        """Whether a file still looks as it did. inode : None where the file's number means nothing."""
        return (
            self.size_bytes == size_bytes
            and self.mtime_ns == mtime_ns
            and (self.ctime_ns is None or self.ctime_ns == ctime_ns)
            and (self.inode is None or inode is None or self.inode == inode)
        )


@dataclass(frozen=True, slots=True)
class Cell:
    """One stored cell, without its embedding.

    path: where it was found; of several paths, the one that gave the label. duplicate_of and duplicate_verdict
    ("duplicate" or "possible_duplicate"): the earlier cell it resembles, or None. duplicate_group: cell_id of the
    first of a chain of duplicates, None for a cell that is no duplicate. folder: the watched folder of its slide, as
    text; empty where that is not known.
    """

    cell_id: str
    digest: str
    path: str
    size_bytes: int
    width: int
    height: int
    label: str
    label_source: LabelSource
    slide: str | None
    analyser: str | None
    captured_at: datetime | None
    duplicate_of: str | None
    duplicate_verdict: Outcome | None
    duplicate_group: str | None
    added_at: datetime
    folder: str = ""

    @property
    def slide_id(self) -> SlideId | None:
        """The slide that it is of; None where it has none."""
        return None if self.slide is None else SlideId(self.folder, self.slide)


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A stored cell and its distance to the query: mean squared error between the latents."""

    cell_id: str
    distance: float


@dataclass(frozen=True, slots=True)
class Resemblance:
    """How similar two cells are. score : correlation after registration, -1 to 1."""

    score: float
    verdict: Verdict


Judge = Callable[[str, str], Resemblance | None]
"""Compares the two cells with these digests; None where they cannot be compared."""


@dataclass(frozen=True, slots=True)
class StoredBundle:
    """A bundle whose latents the store holds. labels : names of the columns of its probabilities, in order."""

    digest: str
    name: str
    version: str
    latent_size: int
    labels: tuple[str, ...]
    added_at: datetime


@dataclass(frozen=True, slots=True)
class Counts:
    """What a store holds: files in total and by outcome (all four, also where 0), and cells in total, by label, label
    source, slide and analyser."""

    files: int
    cells: int
    outcomes: Mapping[str, int]
    by_label: Mapping[str, int]
    by_label_source: Mapping[str, int]
    by_slide: Mapping[SlideId | None, int]
    by_analyser: Mapping[str | None, int]
