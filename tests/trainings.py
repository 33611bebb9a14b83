"""Training in tests: the commands of `training` and `exporters` in this process, where TensorFlow is loaded once, and
networks without graphs, or of few layers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import pytest
from typer.testing import CliRunner, Result

from exporters.__main__ import app as exporters_app
from training.cli.app import app as training_app
from training.config import ClassifierConfig

if TYPE_CHECKING:
    import keras

__all__ = ["command", "eager", "eagerly", "shallow", "shallowly"]

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


def _of_few_layers(config: ClassifierConfig, classes: int) -> keras.Model:
    """As `build_classifier`: the same kinds of layers, the same break, a tenth of the layers."""
    from keras import Input, Model, layers

    from training.networks.architecture import BREAK

    def norm(name: str | None = None) -> Any:
        if config.normalisation == "group":
            return layers.GroupNormalization(groups=8, name=name)
        return layers.BatchNormalization(momentum=config.batch_norm_momentum, name=name)

    inputs = Input((config.input_size, config.input_size, 3), name="crop")
    x = layers.Rescaling(1.0 / 255.0)(inputs)
    x = layers.Conv2D(16, 3, strides=4, padding="same", use_bias=False)(x)
    x = layers.ReLU()(norm()(x))
    x = layers.MaxPooling2D(8, 8, padding="same")(x)
    x = layers.SeparableConv2D(config.break_channels, 3, padding="same", use_bias=False)(x)
    x = layers.ReLU()(norm(name=BREAK)(x))
    x = layers.GlobalAveragePooling2D()(x)
    outputs = layers.Dense(classes, activation="softmax", dtype="float32", name="probabilities")(x)
    return Model(inputs, outputs, name="modified_xception")


@contextmanager
def shallowly() -> Iterator[None]:
    """Classifiers are trained that have few layers: where a test is of what is done with a network, and not of the
    network."""
    from training.networks import classifier

    with patch.object(classifier, "build_classifier", _of_few_layers):
        yield


@pytest.fixture(scope="module")
def shallow() -> Iterator[None]:
    """Every test of the file that comes after trains classifiers of few layers (`shallowly`)."""
    with shallowly():
        yield
