"""Whether a JPEG of several scans has all of them, to their end.

A progressive JPEG shows its whole picture from the first scan on, only coarser; so a copy that broke off, and was
closed with an end mark, looks like a picture. Each scan's header says what it brings: of which components, which of the
64 coefficients, down to which bit (ITU-T T.81, B.2.3 and G.1.1). A JPEG whose scans do not bring all is not whole.
Where the last scan itself broke off, its decoder takes whatever is put behind its bytes for more of the picture; behind
a scan that is whole it passes over that.
"""

from __future__ import annotations

import hashlib
import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from PIL import Image

from labref.errors import UnreadableImageError

__all__ = ["require_scans"]

_COEFFICIENTS: Final = 64
_NOT_YET: Final = 0xFF  # no bit of a coefficient has come
_END: Final = 0xD9
_SCAN: Final = 0xDA
_FRAMES: Final = {0xC0: False, 0xC1: False, 0xC2: True, 0xC9: False, 0xCA: True}
"""Markers of the frames that Pillow decodes: whether these are progressive."""
_ARITHMETIC: Final = (0xC9, 0xCA)
_NOISE: Final = hashlib.shake_128(b"more of the picture").digest(512).replace(b"\xff", b"")
_PUT_BEHIND: Final = _NOISE + b"".join(bytes((0xFF, 0xD0 + number)) + _NOISE for number in range(8))
"""Bytes that no scan understands as nothing to change; after each of the eight restart marks again, for a scan that
ends with one of its intervals."""


@dataclass(frozen=True)
class _Scan:
    """One scan. components : their numbers.  first, last : its coefficients.  bit : the lowest that it brings of each.
    end : where the marker after its data begins."""

    components: bytes
    first: int
    last: int
    bit: int
    end: int


@dataclass(frozen=True)
class _Frame:
    """What the file says that it holds. kind : its marker.  components : their numbers."""

    kind: int
    components: bytes


def require_scans(data: bytes, image: Image.Image) -> None:
    """Raise `UnreadableImageError` where a JPEG of several scans, or a progressive one, lacks some, or its last one
    broke off. image : `data` opened and loaded; of an MPO, the first picture is looked at."""
    frame, scans = _parts(data)
    if frame is None or not scans:
        return
    progressive = _FRAMES[frame.kind]
    missing = _missing(frame, scans, progressive=progressive)
    if missing:
        raise UnreadableImageError(
            f"truncated: the JPEG ends after {len(scans)} scans, which do not bring {missing}; copy it again"
        )
    if (progressive or len(scans) > 1) and frame.kind not in _ARITHMETIC and _goes_on(data, scans[-1].end, image):
        raise UnreadableImageError(
            f"truncated: the last of the {len(scans)} scans of the JPEG ends before its last block; copy it again"
        )


def _parts(data: bytes) -> tuple[_Frame | None, list[_Scan]]:
    """The frame of the first picture, and its scans whose headers are whole."""
    frame, scans = None, []
    for marker, body, after in _segments(data):
        if marker in _FRAMES and len(body) >= 6:
            frame = _Frame(marker, body[6::3][: body[5]])
        elif marker == _SCAN and body and len(body) >= 4 + 2 * body[0]:
            count = body[0]
            first, last, bits = body[1 + 2 * count : 4 + 2 * count]
            scans.append(_Scan(body[1 : 1 + 2 * count : 2], first, last, bits & 0x0F, after))
    return frame, scans


def _segments(data: bytes) -> Iterator[tuple[int, bytes, int]]:
    """The segments of the first picture: marker, what it says, and where it ends, a scan with its data; not those
    without a length."""
    at = 2
    while True:
        at = data.find(b"\xff", at)
        if at < 0 or at + 4 > len(data):
            return
        marker = data[at + 1]
        if marker in (0x00, 0xFF):  # of a scan, or one byte more before the marker
            at += 1
            continue
        if marker == _END:
            return
        if 0xD0 <= marker <= 0xD8 or marker == 0x01:
            at += 2
            continue
        (size,) = struct.unpack_from(">H", data, at + 2)
        end = at + 2 + max(2, size)
        after = _after_scan(data, end) if marker == _SCAN else end
        yield marker, data[at + 4 : end], after
        at = after


def _after_scan(data: bytes, at: int) -> int:
    """Where the marker after the data of a scan begins, which begin at `at`; restart marks are among the data."""
    while True:
        at = data.find(b"\xff", at)
        if at < 0 or at + 1 >= len(data):
            return len(data)
        if data[at + 1] not in (0x00, 0xFF) and not 0xD0 <= data[at + 1] <= 0xD7:
            return at
        at += 1


def _missing(frame: _Frame, scans: list[_Scan], *, progressive: bool) -> str:
    """What no scan brings, for people; empty where nothing is missing."""
    if not progressive:
        brought = {component for scan in scans for component in scan.components}
        without = len(set(frame.components) - brought)
        return f"{without} of its {len(frame.components)} colours" if without else ""
    lowest = {component: bytearray([_NOT_YET]) * _COEFFICIENTS for component in frame.components}
    for scan in scans:
        for component in set(scan.components).intersection(lowest):
            here = range(scan.first, min(scan.last, _COEFFICIENTS - 1) + 1)
            lowest[component][here.start : here.stop] = bytes([scan.bit]) * len(here)
    whole = bytes(_COEFFICIENTS)
    rough = sum(bits != whole for bits in lowest.values())
    return f"all of {rough} of its {len(lowest)} colours" if rough else ""


def _goes_on(data: bytes, end: int, image: Image.Image) -> bool:
    """Whether the decoder takes bytes behind the last scan, which ends at `end`, for more of the picture."""
    more = io.BytesIO(data[:end] + _PUT_BEHIND + b"\xff\xd9")
    with Image.open(more, formats=("JPEG",)) as other:
        other.load()
        return other.mode == image.mode and other.size == image.size and other.tobytes() != image.tobytes()
