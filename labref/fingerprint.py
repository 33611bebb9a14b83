"""What tells one cell image from another: the digest of its bytes, perceptual hashes of its crop, the thesis' duplicate rule.

labref's own verdict needs more than hashes: see `labref.duplicates`. The thesis' rule stays to be measured beside it.
"""

from __future__ import annotations

import hashlib
from enum import StrEnum
from typing import Final, NamedTuple

import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from labref.image import CROP_SIZE

__all__ = [
    "DUPLICATE_BELOW",
    "POSSIBLE_UP_TO",
    "VERSION",
    "Fingerprint",
    "Verdict",
    "average_hash",
    "digest",
    "fingerprint",
    "hamming",
    "shifted_fingerprints",
    "verdict",
]

VERSION: Final = 1
"""How `fingerprint` makes fingerprints; those of another version in a store are made anew from the kept bytes."""

DUPLICATE_BELOW = 2
"""Cells of one class whose average hashes differ in fewer bits are duplicates (thesis, section 4.2)."""
POSSIBLE_UP_TO = 3
"""The thesis looked at a difference of three by hand; two and three are kept here for review."""


class Verdict(StrEnum):
    """What comparing two cells gave; the values are the ledger's words."""

    DUPLICATE = "duplicate"
    POSSIBLE = "possible_duplicate"
    DIFFERENT = "different"


class Fingerprint(NamedTuple):
    """Difference hashes of a crop, each 64 bit, unsigned: whether the grey value grows from left to right, and from top to bottom."""

    across: int
    down: int


_REDUCE: Final = 4
_WINDOW: Final = 224 // _REDUCE  # what is hashed of the crop; most of what lies farther out belongs to other cells
_EDGE: Final = (CROP_SIZE // _REDUCE - _WINDOW) // 2
_STEP: Final = 8 // _REDUCE


def digest(data: bytes) -> str:
    """SHA-256 of the bytes, 64 lower-case hexadecimal characters."""
    return hashlib.sha256(data).hexdigest()


def average_hash(crop: NDArray[np.uint8]) -> int:
    """Average hash of a crop uint8[256, 256, 3] as an unsigned 64-bit integer (imagehash; thesis, section 3.7)."""
    # quartering by a box filter first makes the Lanczos resize inside imagehash ten times cheaper
    return _number(imagehash.average_hash(Image.fromarray(crop).convert("L").reduce(8)))


def fingerprint(crop: NDArray[np.uint8]) -> Fingerprint:
    """Difference hashes (imagehash's `dhash` and `dhash_vertical`) of the middle of a crop uint8[256, 256, 3].

    The crop is centred on the nucleus, so that a shift of the whole image cancels. Both together tell cells apart some
    hundred times better than one.
    """
    return _hashed(_small(crop), 0, 0)


def shifted_fingerprints(crop: NDArray[np.uint8]) -> tuple[Fingerprint, ...]:
    """The fingerprint of a crop uint8[256, 256, 3], and those with its middle a third of a hash's cell up, down, left and right.

    A search with all of them finds a cell whose nucleus was found a little elsewhere when it was stored.
    """
    small = _small(crop)
    return tuple(
        _hashed(small, row, column) for row, column in ((0, 0), (-_STEP, 0), (_STEP, 0), (0, -_STEP), (0, _STEP))
    )


def _small(crop: NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(crop).convert("L").reduce(_REDUCE)


def _hashed(small: Image.Image, row: int, column: int) -> Fingerprint:
    top, left = _EDGE + row, _EDGE + column
    inner = small.crop((left, top, left + _WINDOW, top + _WINDOW))
    return Fingerprint(_number(imagehash.dhash(inner)), _number(imagehash.dhash_vertical(inner)))


def _number(hashed: imagehash.ImageHash) -> int:
    return int.from_bytes(np.packbits(hashed.hash.ravel()).tobytes(), "big")


def hamming(a: int, b: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """Number of differing bits between one hash and each of b uint64[n], as uint8[n]."""
    return np.bitwise_count(np.bitwise_xor(np.uint64(a), b))


def verdict(distance: int) -> Verdict:
    """Verdict by the thesis' rule on the Hamming distance between average hashes of two cells of one class."""
    if distance < DUPLICATE_BELOW:
        return Verdict.DUPLICATE
    return Verdict.POSSIBLE if distance <= POSSIBLE_UP_TO else Verdict.DIFFERENT
