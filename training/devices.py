"""Several GPUs in one computer: each takes its share of every batch (data parallelism)."""

from __future__ import annotations

import contextlib
from typing import Any

import tensorflow as tf

__all__ = ["over_devices"]


def over_devices(kind: str = "GPU") -> contextlib.AbstractContextManager[Any]:
    """A context to build or load a model in, so that `fit` splits each batch over all devices of `kind` and sums the gradients
    (`tf.distribute.MirroredStrategy`, Keras' way on TensorFlow). With fewer than two it changes nothing.

    The batch size stays that of the run: with n GPUs each sees an nth of it, so a run repeats alike on any number of them.
    """
    found = tf.config.list_logical_devices(kind)
    if len(found) < 2:
        return contextlib.nullcontext()
    scope: contextlib.AbstractContextManager[Any] = tf.distribute.MirroredStrategy([d.name for d in found]).scope()
    return scope
