"""Environment variables that must be set before TensorFlow and Keras are imported."""

from __future__ import annotations

import os

from training.run import RunError

__all__ = ["BACKENDS", "prepare_environment"]

BACKENDS = ("tensorflow", "jax")
"""Backends of Keras that can train a run, chosen as in `KERAS_BACKEND=jax python -m training train …`."""


def prepare_environment() -> None:
    """Set quiet logs, and the backend TensorFlow where `KERAS_BACKEND` is not set. Raises `RunError` where it names a
    backend that is not in `BACKENDS`."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    backend = os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    if backend not in BACKENDS:
        raise RunError(f"KERAS_BACKEND is {backend}; a run is trained by {' or '.join(BACKENDS)}")
