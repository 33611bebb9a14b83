"""A whole picture with another cell beside its own, of two pictures. TensorFlow is not loaded for it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["beside"]

U8 = NDArray[np.uint8]


def beside(picture: U8, other: U8, down: float, right: float) -> U8:
    """`picture` uint8[h, w, 3] with `other` beside it; each pixel is the darker of the two. down, right : distance of
    the middle of `other` from the middle of `picture`, pixels."""
    both = picture.copy()
    (height, width), (tall, wide) = picture.shape[:2], other.shape[:2]
    top, left = round((height - tall) / 2 + down), round((width - wide) / 2 + right)
    rows, columns = slice(max(top, 0), min(top + tall, height)), slice(max(left, 0), min(left + wide, width))
    if rows.start >= rows.stop or columns.start >= columns.stop:
        return both
    part = other[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
    both[rows, columns] = np.minimum(both[rows, columns], part)
    return both
