"""Neighbouring cells: other cells drawn beside the cell in the middle, as in a real picture, and faded as the
preparation fades them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from labref.cells.image import BACKGROUND, CROP_SIZE
from training.augmentation.drawing import Drawing
from training.augmentation.moving import moved, transforms
from training.config import Augmentation

__all__ = ["NEIGHBOURS", "draw_neighbours", "lay_beside"]

NEIGHBOURS = 2
"""The most neighbouring cells of one cell."""
_CANDIDATES = 8
# pixels from the middle of a crop: nothing changes within the first, everything may from the second on
_MIDDLE = (20.0, 36.0)
# pixels from the neighbour's middle: its picture is full up to the first, and absent from the second on
_CELL = (75.0, 105.0)
_SEED = 50  # the first of the numbers that this module adds to the seed; those of `augment` differ from them


def draw_neighbours(
    batch: NDArray[np.int64],
    rows: NDArray[np.int64],
    targets: NDArray[np.int64],
    domains: NDArray[np.int64],
    generator: np.random.Generator,
) -> NDArray[np.int64]:
    """Draw the neighbouring cells of a batch: rows int64[n, NEIGHBOURS].

    batch : int64[n], rows of the cells in the middle.  targets, domains : int64[all], class and optics of each row. A
    neighbour is drawn from `rows`; where a few random draws find one, it has the same optics and another class.
    """
    found = generator.choice(rows, (len(batch), NEIGHBOURS, _CANDIDATES))
    own = batch[:, None, None]
    fits = 2 * (domains[found] == domains[own]) + (targets[found] != targets[own])
    return np.take_along_axis(found, fits.argmax(axis=2)[:, :, None], axis=2)[:, :, 0]


def lay_beside(images: Any, others: Any, config: Augmentation, draw: Drawing) -> Any:
    """Images float32[n, s, s, 3] with neighbouring cells beside their own, as `config` asks (see `Augmentation`).

    others : uint8[n, NEIGHBOURS, s, s, 3], the neighbouring cells.  draw : the random numbers. Each
    pixel is the darker one of the two pictures, as where light passes through both cells.
    """
    shape = tf.shape(images)
    count, side, own = shape[0], tf.cast(shape[1], tf.float32), draw.own
    pixel, middle = side / CROP_SIZE, (side - 1.0) / 2.0
    place = (tf.range(side) - middle) / pixel  # pixels of a crop, from its middle
    across, down = place[None, None, :], place[None, :, None]
    far_enough = _rise(tf.sqrt(across**2 + down**2), *_MIDDLE)
    faded = tf.zeros([count, shape[1], shape[2]])
    direction: Any = None
    for number in range(NEIGHBOURS):

        def uniform(index: int, low: float, high: float, number: int = number) -> Any:
            return draw.uniform(_SEED + 20 * number + index, low, high, 1, 1)

        if direction is None:
            direction = uniform(0, -math.pi, math.pi)
            there = uniform(1, 0.0, 1.0) < config.neighbour
        else:  # on another side
            direction += uniform(0, math.pi / 3, 5 * math.pi / 3)
            there &= uniform(1, 0.0, 1.0) < config.neighbour_second
        away = uniform(2, config.neighbour_near, config.neighbour_far)
        column, row = away * tf.cos(direction), away * tf.sin(direction)
        by = transforms(side, uniform(3, -math.pi, math.pi), uniform(4, -1.0, 1.0) > 0, column * pixel, row * pixel)
        turned = moved(tf.cast(others[:, number], tf.float32), own(by), 255.0)
        near = 1.0 - _rise(tf.sqrt((across - own(column)) ** 2 + (down - own(row)) ** 2), *_CELL)
        shown = tf.where(own(there), near * far_enough, 0.0)[..., None]
        images = tf.minimum(images, 255.0 + shown * (turned - 255.0))

        # the region that the preparation gives to the neighbour: a disc so large that its edge, between the two cells,
        # is nearly straight
        towards = direction + uniform(5, -0.35, 0.35)
        edge = away * uniform(6, 0.4, 0.7)
        radius, softness = (
            tf.exp(uniform(7, math.log(50.0), math.log(600.0))),
            tf.exp(uniform(8, math.log(1.5), math.log(8.0))),
        )
        centre = edge + radius
        x, y = own(centre * tf.cos(towards)), own(centre * tf.sin(towards))
        beyond = own(radius) - tf.sqrt((across - x) ** 2 + (down - y) ** 2)
        territory = tf.sigmoid(beyond / own(softness)) * own(uniform(9, 0.75, 1.0)) * far_enough
        chosen = own(there & (uniform(10, 0.0, 1.0) < config.neighbour_faded))
        faded = tf.where(chosen, tf.maximum(faded, territory), faded)
    return images + faded[..., None] * (float(BACKGROUND) - images)


def _rise(distance: Any, low: float, high: float) -> Any:
    """0 up to `low`, 1 from `high` on, smooth between."""
    x = tf.clip_by_value((distance - low) / (high - low), 0.0, 1.0)
    return x * x * (3.0 - 2.0 * x)
