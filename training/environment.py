"""What must be said before TensorFlow and Keras are imported."""

from __future__ import annotations

import os

from training.run import RunError

__all__ = ["BACKENDS", "prepare_environment"]

BACKENDS = ("tensorflow", "jax")
"""Backends of Keras that train a run: `KERAS_BACKEND=jax python -m training train …`."""


def prepare_environment() -> None:
    """Quiet logs, and TensorFlow where `KERAS_BACKEND` names no other. Raises `RunError` for a backend that is none of
    `BACKENDS`."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    backend = os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    if backend not in BACKENDS:
        raise RunError(f"KERAS_BACKEND is {backend}; a run is trained by {' or '.join(BACKENDS)}")
