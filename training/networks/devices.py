"""What trains: Keras' backend (TensorFlow or JAX), the devices of one computer or, on JAX, of several processes, and
the precision.

TensorFlow feeds the batches on both backends, from the processor; on JAX it must leave the GPUs alone. Where several
processes train one network (`training.networks.workers`), all do the same steps in the same order: whatever makes,
loads, fits or saves a network is done by all of them.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from training.run import RunError

__all__ = ["Share", "forward", "over_devices", "precision", "require_same", "share", "total"]

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


@dataclass(frozen=True)
class Share:
    """Which of the processes this one is. rank : 0 for the one that writes the run's files.  count : of all."""

    rank: int = 0
    count: int = 1

    def of(self, rows: NDArray[Any]) -> NDArray[Any]:
        """This process's part of a batch: consecutive rows, as many as each other process has."""
        return rows[self.first(len(rows)) :][: len(rows) // self.count]

    def first(self, batch: int) -> int:
        """The place in a batch of so many where this process's part begins."""
        return self.rank * (batch // self.count)


def share() -> Share:
    """Which of the processes that train together this one is; the only one on TensorFlow."""
    if keras.backend.backend() == "tensorflow":
        return Share()
    import jax

    return Share(jax.process_index(), jax.process_count())


def total(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The sum of what each process gives, float64 of its shape. All call it, in the same order."""
    if share().count == 1:
        return values
    # as bytes: JAX would compute in float32
    told = _of_all(values.tobytes())
    return np.stack([np.frombuffer(row, np.float64) for row in told]).sum(axis=0).reshape(values.shape)


def require_same(told: Mapping[str, str | bytes]) -> None:
    """Raise `RunError`, in all processes, where one has something else than the first. told : by what it is, as many
    in each process. All call it, in the same order."""
    if share().count == 1:
        return
    digests = [hashlib.sha256(one.encode() if isinstance(one, str) else one).digest() for one in told.values()]
    first, *others = (
        [row[start : start + 32] for start in range(0, len(row), 32)] for row in _of_all(b"".join(digests))
    )
    for number, own in enumerate(others, 1):
        if wrong := [name for name, mine, its in zip(told, own, first, strict=True) if mine != its]:
            raise RunError(
                f"process {number} has other {' and '.join(wrong)} than process 0: all processes need the same, and one folder "
                "of the run and its crops"
            )


def _of_all(told: bytes) -> list[bytes]:
    """What each process tells, in their order; as many bytes from each."""
    from jax.experimental import multihost_utils

    return [row.tobytes() for row in multihost_utils.process_allgather(np.frombuffer(told, np.uint8))]


def over_devices(batch: int, kind: str = "GPU") -> contextlib.AbstractContextManager[Any]:
    """A context to build or load a model in and to fit it, so that `fit` splits each batch over the devices of `kind`
    and sums the gradients: `keras.distribution.DataParallel` on JAX, `tf.distribute.MirroredStrategy` on TensorFlow,
    for which Keras' distribution API has no data parallelism. With fewer than two devices it changes nothing.

    batch : images of a batch, which stays that of the run: with n devices each sees an nth of it, n the largest number
    that divides it. On TensorFlow each device normalises by the statistics of its own share, on JAX all do by those of
    the batch. Where several processes train together, all of their devices do, as many of each as divide its part.
    Raises ValueError where the batch cannot be divided among the processes.
    """
    count = share().count
    if count > 1:
        return _over_processes(batch, count)
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


def _over_processes(batch: int, count: int) -> contextlib.AbstractContextManager[Any]:
    import jax

    if batch % count:
        raise ValueError(
            f"a batch of {batch} images cannot be divided among {count} processes; set classifier.batch_size"
        )
    of_each: dict[int, list[str]] = {}
    for device in jax.devices():
        of_each.setdefault(device.process_index, []).append(f"{device.platform}:{device.id}")
    fewest = min(map(len, of_each.values()))
    each = max(n for n in range(1, fewest + 1) if batch // count % n == 0)
    found = [name for rank in sorted(of_each) for name in of_each[rank][:each]]
    scope: contextlib.AbstractContextManager[Any] = keras.distribution.DataParallel(
        devices=found, auto_shard_dataset=False
    ).scope()
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

    # each process has all weights, and computes alone
    trained, fixed = (
        [v.value if v.value.is_fully_addressable else v.value.addressable_data(0) for v in found]
        for found in (model.trainable_variables, model.non_trainable_variables)
    )
    compiled = jax.jit(lambda t, f, x: model.stateless_call(t, f, x, training=False)[0])
    return lambda x: keras.tree.map_structure(np.asarray, compiled(trained, fixed, np.asarray(x, np.float32)))
