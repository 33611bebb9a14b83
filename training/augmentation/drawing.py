"""The random numbers of a batch, of which a process that trains on a part of it takes those of its part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import tensorflow as tf

__all__ = ["Drawing"]


@dataclass(frozen=True)
class Drawing:
    """Random numbers of a stateless generator, which gives a seed and an index the same numbers each time.

    seed : int32[2].  count : of images.  part : (first, all) where they are those of a batch of `all` images from
    `first` on. Numbers are those of the whole batch, all in number, so that what is reckoned from them is the same to
    the last bit: the processor takes several numbers at a time, and a sine at the end of a row otherwise than in its
    middle. `own` takes the part.
    """

    seed: Any
    count: Any
    part: tuple[int, int] | None = None

    def uniform(self, index: int, low: float, high: float, *shape: Any) -> Any:
        """float32[all, *shape] between two limits."""
        return tf.random.stateless_uniform([self._drawn, *shape], tf.add(self.seed, [index, 0]), low, high)

    def normal(self, index: int, *shape: Any) -> Any:
        """float32[all, *shape] of mean 0 and standard deviation 1."""
        return tf.random.stateless_normal([self._drawn, *shape], tf.add(self.seed, [index, 0]))

    @property
    def _drawn(self) -> Any:
        return self.count if self.part is None else self.part[1]

    def own(self, values: Any) -> Any:
        """Of values [all, ...] those of the images, [count, ...]."""
        return values if self.part is None else values[self.part[0] : self.part[0] + self.count]
