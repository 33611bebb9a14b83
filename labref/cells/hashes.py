"""What tells one cell image from another: the digest of its bytes, perceptual hashes of its crop, the thesis' duplicate
rule.

labref's own verdict needs more than hashes: see `labref.cells.sameness`. The thesis' rule, and the average hash that it
asks, are not used on a lab's cells; they stay so that both can be measured side by side
(`tests/benchmarks/duplicates.py`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Final, TypeVar

import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from labref.cells.image import CROP_SIZE
from labref.words import Fingerprint, Verdict

__all__ = [
    "DUPLICATE_BELOW",
    "ORIENTATIONS",
    "POSSIBLE_UP_TO",
    "REDUCE",
    "WINDOW",
    "average_hash",
    "digest",
    "fingerprint",
    "hash_windows",
    "oriented",
    "oriented_fingerprints",
    "shifted_fingerprints",
    "to_int",
    "turned_fingerprints",
    "verdict",
]


DUPLICATE_BELOW = 2
"""Cells of one class whose average hashes differ in fewer bits are duplicates (thesis, section 4.2)."""
POSSIBLE_UP_TO = 3
"""The thesis looked at a difference of three by hand; two and three are kept here for review."""


ORIENTATIONS: Final = 8
"""Ways to turn a picture by quarters and to mirror it, none of both among them."""
REDUCE: Final = 4
"""Factor by which a picture is reduced before it is hashed: 4×4 pixels become one."""
WINDOW: Final = 224 // REDUCE
"""Side of the hashed window, reduced pixels. Farther from a crop's middle, most of the picture shows other cells."""
_Value = TypeVar("_Value", bound=np.generic)
_EDGE: Final = (CROP_SIZE // REDUCE - WINDOW) // 2
_STEP: Final = 8 // REDUCE
_SHIFTS: Final = ((0, 0), (-_STEP, 0), (_STEP, 0), (0, -_STEP), (0, _STEP))


def digest(data: bytes) -> str:
    """SHA-256 of the bytes, 64 lower-case hexadecimal characters."""
    return hashlib.sha256(data).hexdigest()


def average_hash(crop: NDArray[np.uint8]) -> int:
    """Average hash of a crop uint8[256, 256, 3] as an unsigned 64-bit integer (imagehash; thesis, section 3.7)."""
    # quartering by a box filter first makes the Lanczos resize inside imagehash ten times cheaper
    return to_int(imagehash.average_hash(Image.fromarray(crop).convert("L").reduce(8)).hash)


def fingerprint(crop: NDArray[np.uint8]) -> Fingerprint:
    """The fingerprint of a crop uint8[256, 256, 3]: the difference hashes of its middle (imagehash's `dhash` and
    `dhash_vertical`).

    The crop is centred on the nucleus, so a shift of the whole image does not change the hashes. Both hashes together
    separate cells about a hundred times better than one.
    """
    return shifted_fingerprints(crop)[0]


def shifted_fingerprints(crop: NDArray[np.uint8]) -> tuple[Fingerprint, ...]:
    """The fingerprint of a crop uint8[256, 256, 3], and four more, of a window shifted up, down, left and right by
    about a third of the width that one bit compares.

    A search with all five finds a stored cell whose nucleus was located slightly differently.
    """
    small = Image.fromarray(crop).convert("L").reduce(REDUCE)
    return hash_windows(np.asarray(small), [(_EDGE + row, _EDGE + column) for row, column in _SHIFTS])


def turned_fingerprints(crop: NDArray[np.uint8]) -> tuple[Fingerprint, ...]:
    """The fingerprints of a crop uint8[256, 256, 3] turned by quarters and mirrored: seven, in the order of
    `labref.cells.registration.turned`, from 1 on."""
    small = Image.fromarray(crop).convert("L").reduce(REDUCE)
    return oriented_fingerprints(np.asarray(small), range(1, ORIENTATIONS))


def oriented_fingerprints(
    small: NDArray[np.uint8], numbers: Sequence[int] = range(ORIENTATIONS)
) -> tuple[Fingerprint, ...]:
    """The fingerprints of a crop in grey, reduced to uint8[64, 64], in some of its eight orientations: those of
    `oriented`."""
    window = small[_EDGE : _EDGE + WINDOW, _EDGE : _EDGE + WINDOW].astype(np.float32)
    return _hashed(np.stack([oriented(window, number) for number in numbers]))


def oriented(picture: NDArray[_Value], number: int) -> NDArray[_Value]:
    """A picture [h, h, …] turned by `number` quarters counter-clockwise; from 4 on first mirrored, left for right.
    number : 0 to 7."""
    return np.rot90(np.fliplr(picture) if number >= ORIENTATIONS // 2 else picture, number % 4)


def hash_windows(grey: NDArray[np.uint8], corners: Sequence[tuple[int, int]]) -> tuple[Fingerprint, ...]:
    """The fingerprints of windows of 56×56 pixels in a reduced grey picture.

    grey : uint8[h, w].  corners : (row, column) of the upper left pixel of each window. All windows are resized at
    once, by a product with the weights of Pillow's Lanczos filter. imagehash uses the same filter, but rounds.
    """
    windows = np.empty((len(corners), WINDOW, WINDOW), np.float32)
    for window, (top, left) in zip(windows, corners, strict=True):
        window[:] = grey[top : top + WINDOW, left : left + WINDOW]
    return _hashed(windows)


def _hashed(windows: NDArray[np.float32]) -> tuple[Fingerprint, ...]:
    """The fingerprints of windows float32[n, 56, 56]."""
    eight, nine = _lanczos(8), _lanczos(9)
    across = eight.T @ windows @ nine
    down = nine.T @ windows @ eight
    bits = np.stack([across[:, :, 1:] > across[:, :, :-1], down[:, 1:] > down[:, :-1]], axis=1)
    packed = np.packbits(bits.reshape(-1, 64), axis=1).tobytes()
    ints = [int.from_bytes(packed[at : at + 8], "big") for at in range(0, len(packed), 8)]
    return tuple(map(Fingerprint, ints[::2], ints[1::2]))


@lru_cache
def _lanczos(size: int) -> NDArray[np.float32]:
    """The weights of the Lanczos filter that resizes a line of 56 pixels to `size`: float32[56, size]."""
    each = Image.fromarray(np.eye(WINDOW, dtype=np.float32))
    return np.asarray(each.resize((size, WINDOW), Image.Resampling.LANCZOS))


def to_int(bits: NDArray[np.bool_]) -> int:
    """The 64 bits bool[8, 8] of a hash as an unsigned integer."""
    return int.from_bytes(np.packbits(bits.ravel()).tobytes(), "big")


def verdict(distance: int) -> Verdict:
    """Verdict by the thesis' rule on the Hamming distance between average hashes of two cells of one class."""
    if distance < DUPLICATE_BELOW:
        return Verdict.DUPLICATE
    return Verdict.POSSIBLE if distance <= POSSIBLE_UP_TO else Verdict.DIFFERENT
