"""From a settled file to a prepared cell: its bytes read whole, digested, decoded, cropped and hashed."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

import numpy as np
from numpy.typing import NDArray

from labref.cells.examination import Examined
from labref.cells.hashes import digest
from labref.cells.image import HOLDS_NOTHING, U8
from labref.cells.quality import Measured
from labref.errors import DecodingLimitError, UnreadableImageError
from labref.export.layout import PathMeaning
from labref.export.scan import Candidate, Signature, refusal
from labref.files import OPEN_FLAGS
from labref.words import Fingerprint, Landmark, Quality, Reason

__all__ = ["Known", "NotYet", "Prepared", "Read", "Refused", "StorageError", "read_cell"]

_CHUNK = 1 << 20
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Prepared:
    """A cell ready for the networks. crop : uint8[256, 256, 3].  height, width : of the original, pixels.  measures :
    float32[7], of its optics (`labref.cells.optics`).  quality : whether its picture shows one stained cell."""

    candidate: Candidate
    signature: Signature
    digest: str
    crop: U8
    height: int
    width: int
    fingerprints: tuple[Fingerprint, ...]
    landmarks: tuple[Landmark, ...]
    place: PathMeaning
    captured_at: datetime
    measures: NDArray[np.float32]
    quality: Quality


@dataclass(frozen=True)
class Known:
    """A file whose very bytes are stored already, or were until retention removed them: which, the store says when it
    writes the file down."""

    candidate: Candidate
    signature: Signature
    digest: str
    place: PathMeaning


@dataclass(frozen=True)
class Refused:
    """A file that is not used, and why. signature : None where it is to be tried again though it looks the same."""

    candidate: Candidate
    signature: Signature | None
    reason: str


@dataclass(frozen=True)
class NotYet:
    """A file to be waited for. changed : it changed while being read; else it is no usable image yet, because of
    `reason`."""

    candidate: Candidate
    changed: bool
    reason: str


Read = Prepared | Known | Refused | NotYet


class StorageError(Exception):
    """The lab's own disk takes nothing; the message says why. The file that was read is not at fault."""


def read_cell(
    candidate: Candidate,
    *,
    place: Callable[[Candidate], PathMeaning],
    is_stored: Callable[[str], bool],
    removed: Callable[[str], str | None],
    keep: Callable[[bytes, str], object],
    heal: Callable[[bytes, str], object],
    examine: Callable[[bytes], Examined],
    judge: Callable[[Measured], Quality],
    is_admitted: Callable[[str], bool],
    max_bytes: int,
) -> Read:
    """Read and prepare one file, which is opened for reading only.

    place : what a path says of its cell.  is_stored : whether a cell with this digest is stored.  removed : why the
    cell with this digest was removed, or None; it may be brought back before the file is written down.  keep : keeps a
    usable image's bytes under their digest.  heal : the same for a cell that is stored, whose bytes may have been lost.
    examine : what is stored of a picture; what it raises other than `UnreadableImageError` is passed on.  judge :
    whether it shows a cell.  is_admitted : whether a person had the file with this digest taken in, whatever it shows.
    max_bytes : largest file that is read.
    Raises `StorageError` where the bytes cannot be kept.
    """
    if candidate.refusal is not None:
        return Refused(candidate, candidate.signature, candidate.refusal)
    where = place(candidate)  # before it is read: where this fails, it fails at each scan
    try:
        data, signature = _read_whole(candidate.path, max_bytes)
    except _TooLargeError as error:
        return Refused(candidate, error.signature, str(error))
    except OSError as error:
        return Refused(candidate, None, refusal(candidate.path, candidate.root, error))
    if data is None:
        return NotYet(candidate, True, "changed while it was read")
    name = digest(data)
    if is_stored(name):
        _keep(heal, data, name)
        return Known(candidate, signature, name, where)
    if removed(name) is not None:
        return Known(candidate, signature, name, where)
    try:
        cell = examine(data)
        quality = judge(cell.judged_by)
        empty = cell.empty or (f"{HOLDS_NOTHING}: {quality.reason}" if quality.reason is Reason.NOTHING else None)
        if empty is not None and not is_admitted(name):
            raise UnreadableImageError(f"{empty}; `labref ledger --take-in` takes it in all the same")
    except DecodingLimitError as error:
        return Refused(candidate, signature, str(error))
    except UnreadableImageError as error:
        # the beginning of an image is often no image at all; whoever asked knows how long the file has stood still
        return NotYet(Candidate(candidate.path, candidate.root, signature), False, str(error))
    height, width = cell.size
    _keep(keep, data, name)
    captured = _EPOCH + timedelta(seconds=signature.mtime_ns // 1_000_000_000)  # from 1677 to 2262
    return Prepared(
        candidate=candidate,
        signature=signature,
        digest=name,
        crop=cell.crop,
        height=height,
        width=width,
        fingerprints=cell.fingerprints,
        landmarks=cell.landmarks,
        place=where,
        captured_at=captured,
        measures=cell.measures,
        quality=quality,
    )


def _keep(keep: Callable[[bytes, str], object], data: bytes, name: str) -> None:
    try:
        keep(data, name)
    except OSError as error:
        raise StorageError(error.strerror or type(error).__name__) from None


class _TooLargeError(Exception):
    def __init__(self, signature: Signature, max_bytes: int) -> None:
        self.signature = signature
        size, most = signature.size_bytes / 1e6, max_bytes / 1e6
        super().__init__(f"too large: a file of {size:.0f} MB, at most {most:.0f} MB are read")


def _read_whole(path: str, max_bytes: int) -> tuple[bytes | None, Signature]:
    """A file's bytes and its signature; None for the bytes where it was changed or replaced meanwhile."""
    descriptor = os.open(path, OPEN_FLAGS)
    try:
        before = os.fstat(descriptor)
        if not stat.S_ISREG(before.st_mode):
            return None, Signature.of(before)
        if before.st_size > max_bytes:
            raise _TooLargeError(Signature.of(before), max_bytes)
        parts = []
        total = 0
        while part := os.read(descriptor, min(_CHUNK, before.st_size - total + 1)):
            parts.append(part)
            total += len(part)
            if total > before.st_size:
                return None, Signature.of(before)
        after = os.stat(path)
        # the same file still has its name, and nothing of it changed while it was read
        same = (before.st_ino, before.st_dev) == (after.st_ino, after.st_dev)
        unchanged = Signature.of(before) == Signature.of(after) and total == before.st_size
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        return (data if same and unchanged else None), Signature.of(before)
    finally:
        os.close(descriptor)
