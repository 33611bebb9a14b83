"""What trains: Keras' backend (TensorFlow or JAX), the devices of one computer, and the precision.

TensorFlow feeds the batches on both backends, from the processor; on JAX it must leave the GPUs alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

__all__ = ["forward", "over_devices", "precision"]

tf.get_logger().setLevel("ERROR")  # that many small models are traced, each once, is meant
if keras.backend.backend() != "tensorflow":
    tf.config.set_visible_devices([], "GPU")


def _devices(kind: str) -> list[str]:
    if keras.backend.backend() == "tensorflow":
        return [device.name for device in tf.config.list_logical_devices(kind)]
    try:
        return [str(name) for name in keras.distribution.list_devices(kind.lower())]
    except RuntimeError:  # JAX: no such device in this computer
        return []


def over_devices(batch: int, kind: str = "GPU") -> contextlib.AbstractContextManager[Any]:
    """A context to build or load a model in and to fit it, so that `fit` splits each batch over the devices of `kind`
    and sums the gradients: `keras.distribution.DataParallel` on JAX, `tf.distribute.MirroredStrategy` on TensorFlow,
    for which Keras' distribution API has no data parallelism. With fewer than two devices it changes nothing.

    batch : images of a batch, which stays that of the run: with n devices each sees an nth of it, n the largest number
    that divides it. On TensorFlow each device normalises by the statistics of its own share, on JAX all do by those of
    the batch.
    """
    found = _devices(kind)
    found = found[: max((n for n in range(1, len(found) + 1) if batch % n == 0), default=1)]
    if len(found) < 2:
        return contextlib.nullcontext()
    scope: contextlib.AbstractContextManager[Any]
    if keras.backend.backend() == "tensorflow":
        scope = tf.distribute.MirroredStrategy(found).scope()
    else:
        scope = keras.distribution.DataParallel(devices=found, auto_shard_dataset=False).scope()
    return scope


@contextlib.contextmanager
def precision(mixed: bool) -> Iterator[None]:
    """Layers built inside compute in mixed precision where `mixed`: float16 on GPUs (with the loss scaled), bfloat16 on
    the processor, which has no fast float16; weights stay float32."""
    before = keras.config.dtype_policy()
    if mixed:
        keras.config.set_dtype_policy("mixed_float16" if _devices("GPU") else "mixed_bfloat16")
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def forward(model: Any) -> Callable[[NDArray[Any]], Any]:
    """The compiled inference of `model`, which is not trained on meanwhile: float32[n, ...] → its outputs as NumPy
    arrays."""
    if keras.backend.backend() == "tensorflow":
        graph = tf.function(lambda x: model(x, training=False), reduce_retracing=True)
        return lambda x: keras.tree.map_structure(np.asarray, graph(tf.constant(np.asarray(x, np.float32))))
    import jax

    trained, fixed = ([v.value for v in found] for found in (model.trainable_variables, model.non_trainable_variables))
    compiled = jax.jit(lambda t, f, x: model.stateless_call(t, f, x, training=False)[0])
    return lambda x: keras.tree.map_structure(np.asarray, compiled(trained, fixed, np.asarray(x, np.float32)))
