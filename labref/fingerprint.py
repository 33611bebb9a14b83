"""What tells one cell image from another: the digest of its bytes, a perceptual hash of its crop, the duplicate verdict."""

from __future__ import annotations

import hashlib
from enum import StrEnum

import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["DUPLICATE_BELOW", "POSSIBLE_UP_TO", "Verdict", "average_hash", "digest", "hamming", "verdict"]

DUPLICATE_BELOW = 2
"""Cells of one class whose average hashes differ in fewer bits are duplicates (thesis, section 4.2)."""
POSSIBLE_UP_TO = 3
"""The thesis looked at a difference of three by hand; two and three are kept here for review."""


class Verdict(StrEnum):
    """What comparing two cells of one class gave; the values are the ledger's words."""

    DUPLICATE = "duplicate"
    POSSIBLE = "possible_duplicate"
    DIFFERENT = "different"


def digest(data: bytes) -> str:
    """SHA-256 of the bytes, 64 lower-case hexadecimal characters."""
    return hashlib.sha256(data).hexdigest()


def average_hash(crop: NDArray[np.uint8]) -> int:
    """Average hash of a crop uint8[256, 256, 3] as an unsigned 64-bit integer (imagehash; thesis, section 3.7)."""
    # quartering by a box filter first makes the Lanczos resize inside imagehash ten times cheaper
    bits = imagehash.average_hash(Image.fromarray(crop).convert("L").reduce(8)).hash
    return int.from_bytes(np.packbits(bits.ravel()).tobytes(), "big")


def hamming(a: int, b: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """Number of differing bits between one hash and each of b uint64[n], as uint8[n]."""
    return np.bitwise_count(np.bitwise_xor(np.uint64(a), b))


def verdict(distance: int) -> Verdict:
    """Verdict by the thesis' rule on the Hamming distance between average hashes of two cells of one class."""
    if distance < DUPLICATE_BELOW:
        return Verdict.DUPLICATE
    return Verdict.POSSIBLE if distance <= POSSIBLE_UP_TO else Verdict.DIFFERENT
