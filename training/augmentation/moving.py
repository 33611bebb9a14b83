"""Moving crops: one projective transform turns, mirrors and shifts each."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

__all__ = ["moved", "transforms"]


def transforms(side: Any, angle: Any, mirrored: Any, column: Any, row: Any) -> Any:
    """Projective transforms float32[n, 8] that turn a picture of so many pixels by `angle`, in radians, mirror it, and
    move it by (column, row) pixels, each [n, 1, 1]."""
    middle = (side - 1.0) / 2.0
    mirror = tf.where(mirrored, -1.0, 1.0)
    a0, a1 = tf.cos(angle) * mirror, -tf.sin(angle) * mirror
    b0, b1 = tf.sin(angle), tf.cos(angle)
    x, y = middle + column, middle + row
    zeros = tf.zeros_like(x)
    found = tf.stack([a0, a1, middle - a0 * x - a1 * y, b0, b1, middle - b0 * x - b1 * y, zeros, zeros], axis=-1)
    return tf.reshape(found, [-1, 8])


def moved(images: Any, by: Any, beyond: float) -> Any:
    """Images float32[n, s, s, 3] changed by projective transforms float32[n, 8], bilinear. beyond : what lies beyond
    their edges."""
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=by,
        output_shape=tf.shape(images)[1:3],
        fill_value=beyond,
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
    )
