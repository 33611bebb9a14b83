"""Other cells laid beside the one in the middle, as they stand in a picture, and faded as the preparation fades
them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from labref.cells.image import BACKGROUND, CROP_SIZE
from training.config import Augmentation

__all__ = ["NEIGHBOURS", "draw_neighbours", "lay_beside"]

NEIGHBOURS = 2
"""At most so many cells are laid beside one."""
_CANDIDATES = 8
_MIDDLE = (20.0, 36.0)  # pixels of a crop: within the first nothing changes, from the second on all may
_CELL = (
    75.0,
    105.0,
)  # pixels from the neighbour's middle: to the first it is whole, from the second on there is nothing of its picture
_SEED = 50  # this and the next are this module's numbers among those of `augment`


def draw_neighbours(
    batch: NDArray[np.int64],
    rows: NDArray[np.int64],
    targets: NDArray[np.int64],
    domains: NDArray[np.int64],
    generator: np.random.Generator,
) -> NDArray[np.int64]:
    """Rows int64[n, NEIGHBOURS] of cells to lay beside those of `batch` int64[n]: any of `rows`, but of the same optics
    and of another
    class where chance finds one. targets, domains : int64[all], class and optics of each row."""
    found = generator.choice(rows, (len(batch), NEIGHBOURS, _CANDIDATES))
    own = batch[:, None, None]
    fits = 2 * (domains[found] == domains[own]) + (targets[found] != targets[own])
    return np.take_along_axis(found, fits.argmax(axis=2)[:, :, None], axis=2)[:, :, 0]


def lay_beside(images: Any, others: Any, config: Augmentation, seed: Any) -> Any:
    """Images float32[n, s, s, 3] with the cells of `others` uint8[n, NEIGHBOURS, s, s, 3] beside their own, as `config`
    has it: the darker pixel of each, so that what overlaps looks as where light went through both; see `Augmentation`.

    seed : int32[2] of a stateless generator.
    """
    shape = tf.shape(images)
    count, side = shape[0], tf.cast(shape[1], tf.float32)
    pixel, middle = side / CROP_SIZE, (side - 1.0) / 2.0
    place = (tf.range(side) - middle) / pixel  # pixels of a crop, from its middle
    across, down = place[None, None, :], place[None, :, None]
    far_enough = _rise(tf.sqrt(across**2 + down**2), *_MIDDLE)
    faded = tf.zeros([count, shape[1], shape[2]])
    direction: Any = None
    for number in range(NEIGHBOURS):

        def uniform(index: int, low: float, high: float, number: int = number) -> Any:
            at = tf.add(seed, [_SEED + 20 * number + index, 0])
            return tf.random.stateless_uniform([count, 1, 1], at, low, high)

        if direction is None:
            direction = uniform(0, -math.pi, math.pi)
            there = uniform(1, 0.0, 1.0) < config.neighbour
        else:  # on another side
            direction += uniform(0, math.pi / 3, 5 * math.pi / 3)
            there &= uniform(1, 0.0, 1.0) < config.neighbour_second
        away = uniform(2, config.neighbour_near, config.neighbour_far)
        column, row = away * tf.cos(direction), away * tf.sin(direction)
        turned = _moved(
            others[:, number], uniform(3, -math.pi, math.pi), uniform(4, -1.0, 1.0) > 0, column * pixel, row * pixel
        )
        near = 1.0 - _rise(tf.sqrt((across - column) ** 2 + (down - row) ** 2), *_CELL)
        shown = tf.where(there, near * far_enough, 0.0)[..., None]
        images = tf.minimum(images, 255.0 + shown * (turned - 255.0))

        # what the preparation takes to be the neighbour's: a disc so large that its edge, between the cells, is more or
        # less straight
        towards = direction + uniform(5, -0.35, 0.35)
        edge = away * uniform(6, 0.4, 0.7)
        radius, softness = (
            tf.exp(uniform(7, math.log(50.0), math.log(600.0))),
            tf.exp(uniform(8, math.log(1.5), math.log(8.0))),
        )
        centre = edge + radius
        beyond = radius - tf.sqrt((across - centre * tf.cos(towards)) ** 2 + (down - centre * tf.sin(towards)) ** 2)
        territory = tf.sigmoid(beyond / softness) * uniform(9, 0.75, 1.0) * far_enough
        chosen = there & (uniform(10, 0.0, 1.0) < config.neighbour_faded)
        faded = tf.where(chosen, tf.maximum(faded, territory), faded)
    return images + faded[..., None] * (float(BACKGROUND) - images)


def _rise(distance: Any, low: float, high: float) -> Any:
    """0 up to `low`, 1 from `high` on, smooth between."""
    x = tf.clip_by_value((distance - low) / (high - low), 0.0, 1.0)
    return x * x * (3.0 - 2.0 * x)


def _moved(crops: Any, angle: Any, mirrored: Any, column: Any, row: Any) -> Any:
    """Crops uint8[n, s, s, 3] turned by `angle`, mirrored, and their middle moved by (column, row) pixels, as float32;
    white beyond."""
    shape = tf.shape(crops)
    middle = (tf.cast(shape[1], tf.float32) - 1.0) / 2.0
    mirror = tf.where(mirrored, -1.0, 1.0)
    a0, a1 = tf.cos(angle) * mirror, -tf.sin(angle) * mirror
    b0, b1 = tf.sin(angle), tf.cos(angle)
    x, y = middle + column, middle + row
    zeros = tf.zeros_like(a0)
    transforms = tf.stack([a0, a1, middle - a0 * x - a1 * y, b0, b1, middle - b0 * x - b1 * y, zeros, zeros], axis=-1)
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=tf.cast(crops, tf.float32),
        transforms=tf.reshape(transforms, [-1, 8]),
        output_shape=shape[1:3],
        fill_value=255.0,
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
    )
