"""Random changes of crops, such as other slides, other optics and recaptures of the same cells cause."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import tensorflow as tf

from labref.cells.image import BACKGROUND
from training.augmentation.drawing import Drawing
from training.augmentation.moving import moved
from training.augmentation.neighbours import lay_beside
from training.config import Augmentation

__all__ = ["VIEW", "augment", "with_optics"]

VIEW = Augmentation(rotation_degrees=180, flip=True, shift=0.02, zoom=0.04, gain=0.04, brightness=0.02, blur=0.1)
"""The changes between views of a cell that must not change its latent: turns, mirrors, and the differences between
recaptures."""


def augment(
    crops: Any, config: Augmentation, seed: Any, others: Any = None, *, part: tuple[int, int] | None = None
) -> Any:
    """Randomly changed crops: uint8[n, s, s, 3] → float32[n, s, s, 3], 0 to 255.

    One projective transform rotates, mirrors, shifts and zooms (bilinear; beyond the edge it fills in background).
    seed : int32[2], of a stateless generator: the same seed gives the same batch.
    others : uint8[n, NEIGHBOURS, s, s, 3], the neighbouring cells; needed where `config.neighbour` is above zero.
    part : (first, all) where the crops are those of a batch of `all` crops from `first` on: they are changed as they
    would be in the whole batch.
    Raises ValueError where they are needed and missing.
    """
    shape = tf.shape(crops)
    side, draw = tf.cast(shape[1], tf.float32), Drawing(seed, shape[0], part)

    def uniform(index: int, limit: float, *columns: int) -> Any:
        return draw.uniform(index, -limit, limit, *columns)

    angle = uniform(1, config.rotation_degrees * math.pi / 180.0)
    scale = 1.0 / (1.0 + uniform(2, config.zoom))
    dx, dy = uniform(3, config.shift) * side, uniform(4, config.shift) * side
    mirror = tf.where((uniform(5, 1.0) > 0) & config.flip, -1.0, 1.0)
    cosine, sine, middle = tf.cos(angle) * scale, tf.sin(angle) * scale, (side - 1.0) / 2.0
    a0, a1, b0, b1 = cosine * mirror, -sine * mirror, sine, cosine
    a2 = middle + dx - a0 * middle - a1 * middle
    b2 = middle + dy - b0 * middle - b1 * middle
    zeros = tf.zeros_like(a0)
    images = tf.cast(crops, tf.float32)
    if config.neighbour:
        if others is None:
            raise ValueError("neighbouring cells are asked for (neighbour above zero), and none are given (others)")
        images = lay_beside(images, others, config, draw)
    by = draw.own(tf.stack([a0, a1, a2, b0, b1, b2, zeros, zeros], axis=1))
    images = moved(images, by, float(BACKGROUND))
    if config.blur > 0:
        kernel = tf.constant([1.0, 2.0, 1.0])[:, None] * tf.constant([1.0, 2.0, 1.0])[None, :] / 16.0
        padded = tf.pad(images, [[0, 0], [1, 1], [1, 1], [0, 0]], "SYMMETRIC")
        blurred = tf.nn.depthwise_conv2d(
            padded, tf.tile(kernel[:, :, None, None], [1, 1, 3, 1]), strides=[1, 1, 1, 1], padding="VALID"
        )
        chosen = draw.own(draw.uniform(6, 0.0, 1.0, 1, 1, 1) < config.blur)
        images = tf.where(chosen, blurred, images)
    if config.changes_optics:
        changed = draw.own(draw.uniform(19, 0.0, 1.0, 1, 1, 1) < config.optics_share)
        images = tf.where(changed, _other_optics(images, config, draw), images)
    gain = draw.own((1.0 + uniform(7, config.gain, 3)) * (1.0 + uniform(8, config.brightness, 1)))
    return tf.clip_by_value(images * gain[:, None, None, :], 0.0, 255.0)


def _other_optics(images: Any, config: Augmentation, draw: Drawing) -> Any:
    """Images float32[n, s, s, 3] changed as by another stain, lamp, focus and camera; see `Augmentation`."""
    side, uniform, own = tf.shape(images)[1], draw.uniform, draw.own
    density = -tf.math.log((images + 1.0) / (BACKGROUND + 1.0))
    contrast = tf.exp(uniform(20, math.log(config.contrast_low), math.log(config.contrast_high), 1, 1, 1))
    stain = tf.exp(uniform(21, -config.stain, config.stain, 1, 1, 3))
    others = uniform(22, -config.mixing, config.mixing, 3, 3) * (1.0 - tf.eye(3))
    density = tf.einsum("nijc,ncd->nijd", density * own(contrast) * own(stain), own(tf.eye(3) + others))
    axis = tf.linspace(-1.0, 1.0, side)
    level, right, down = (own(uniform(index, -config.tint, config.tint, 1, 1, 3)) for index in (23, 24, 25))
    density += tf.nn.relu(0.5 * (level + right * axis[None, None, :, None] + down * axis[None, :, None, None]))
    images = (BACKGROUND + 1.0) * tf.exp(-density) - 1.0
    if config.focus:
        # the wide blur: the image reduced to a quarter of its scale, and enlarged again
        small = tf.nn.avg_pool2d(images, 4, 4, "SAME")
        wide = tf.image.resize(small, [side, side], method="bilinear")
        images += own(uniform(26, -config.focus, config.focus, 1, 1, 1)) * (wide - images)
    if config.noise:
        deviation = uniform(27, 0.0, config.noise, 1, 1, 1)
        images += own(deviation * draw.normal(28, *tf.unstack(tf.shape(images))[1:]))
    if config.cut:
        # a straight edge in a random direction, at a third to a half of the side from the middle
        angle, far = uniform(29, -math.pi, math.pi, 1, 1), uniform(30, 0.3, 1.0, 1, 1)
        beyond = tf.cos(angle) * axis[None, None, :] + tf.sin(angle) * axis[None, :, None] > far
        cut = own((uniform(31, 0.0, 1.0, 1, 1) < config.cut) & beyond)
        images = tf.where(cut[..., None], float(BACKGROUND), images)
    return images


def with_optics(augmentation: Augmentation) -> Augmentation:
    """`VIEW` together with the changes of optics of another augmentation, applied to every crop, and its
    neighbouring cells."""
    names = ["contrast_low", "contrast_high", "stain", "mixing", "tint", "focus", "noise", "cut"]
    names += [name for name in vars(augmentation) if name.startswith("neighbour")]
    return replace(VIEW, **{name: getattr(augmentation, name) for name in names}, optics_share=1.0)
