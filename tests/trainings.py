"""Training in tests: the commands of `training` and `exporters` in this process, where TensorFlow is loaded once, and
networks without graphs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from typer.testing import CliRunner, Result

from exporters.__main__ import app as exporters_app
from training.cli.app import app as training_app

__all__ = ["command", "eager", "eagerly"]

_APPS = {"training": training_app, "exporters": exporters_app}


def command(program: str, *words: object, code: int = 0) -> Result:
    """`python -m <program> <words>`, which has to exit with `code`."""
    done = CliRunner().invoke(_APPS[program], [str(word) for word in words])
    assert done.exit_code == code, (done.output, done.exception)
    return done


@contextmanager
def eagerly() -> Iterator[None]:
    """TensorFlow computes step by step: to trace the graph of a training step takes ten times as long as to do one.

    Runs that are trained by graphs are those of processes of their own: test_training.py, test_training_backends.py,
    test_training_devices.py. What the pipeline of images does stays a graph, and TensorFlow warns of it.
    """
    import tensorflow as tf

    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(False)


@pytest.fixture(scope="module")
def eager() -> Iterator[None]:
    """Every test of the file that comes after computes `eagerly`."""
    with eagerly():
        yield
