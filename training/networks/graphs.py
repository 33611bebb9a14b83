"""Reading the weights of a shipped bundle's graphs back into the Keras networks that the graphs were made of.

tf2onnx arranges a layer's weights differently, and folds the batch normalisation after a convolution into its kernel
and a bias. The graph therefore holds everything that it computes. It lacks two things that training needs: how a folded
scale was divided between kernel and normalisation, and the batch statistics. `settle_normalisation` chooses these so
that training can continue.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import onnx
from keras import layers
from numpy.typing import NDArray

from training.networks.architecture import build_vae_parts
from training.networks.devices import forward
from training.run import RunError

__all__ = ["Graph", "build_encoder", "fill_classifier", "settle_normalisation"]

_LAID_OUT = {"Transpose", "Squeeze", "Unsqueeze", "Reshape", "Identity", "Cast"}
"""Operators that only change the layout of values."""
_LARGEST_SCALE = 1e3  # limit of the factor on a filter that is almost zero


class Graph:
    """An ONNX graph, walked from its outputs to its inputs. Errors are `RunError`s that name the graph."""

    def __init__(self, data: bytes, name: str) -> None:
        self.name = name
        try:
            graph = onnx.load_from_string(data).graph
        except Exception as error:  # protobuf's own, of no common base
            raise RunError(f"{name} is no ONNX graph: {type(error).__name__} {error}") from None
        self.makers = {value: node for node in graph.node for value in node.output}
        self.constants: Mapping[str, NDArray[Any]] = {
            kept.name: onnx.numpy_helper.to_array(kept) for kept in graph.initializer
        }

    def maker(self, value: str, *kinds: str, through: frozenset[str] = frozenset()) -> Any:
        """The node of one of `kinds` that makes `value`. Operators of layout, and those of `through`, are skipped: the
        search follows their first input."""
        node = self.makers.get(value)
        while node is not None and node.op_type not in kinds and node.op_type in _LAID_OUT | through:
            node = self.makers.get(node.input[0])
        if node is None or node.op_type not in kinds:
            found = "nothing" if node is None else f"{node.op_type} ({node.name})"
            raise RunError(
                f"{self.name}: expected {' or '.join(kinds)}, found {found}; labref's exporter writes no such graph"
            )
        return node

    def kind(self, value: str) -> str:
        """The operator that makes `value`; operators of layout are skipped. Empty for an input of the graph."""
        node = self.makers.get(value)
        while node is not None and node.op_type in _LAID_OUT:
            node = self.makers.get(node.input[0])
        return "" if node is None else str(node.op_type)

    def constant(self, node: Any, place: int) -> NDArray[np.float32]:
        """Weights at `place` among the inputs of `node`."""
        found = self.constants.get(node.input[place]) if place < len(node.input) else None
        if found is None:
            raise RunError(f"{self.name}: {node.op_type} ({node.name}) has no weights at input {place}")
        return np.asarray(found, np.float32)

    def peel(self, value: str, kind: str, size: int, neutral: float) -> tuple[str, NDArray[np.float32]]:
        """The input of the operator `kind` (Add, Sub, Mul) that makes `value` with a vector, and that vector
        float32[size]. Where there is no such operator, `value` itself and `neutral`: tf2onnx leaves out an operator
        that changes nothing."""
        node = self.makers.get(value)
        if node is not None and node.op_type == kind:
            for place in (1, 0):
                vector = self.constants.get(node.input[place])
                if vector is not None and vector.size in (1, size):
                    return node.input[1 - place], np.broadcast_to(vector.ravel(), (size,)).astype(np.float32)
        return value, np.full(size, neutral, np.float32)

    def dense(self, value: str, size: int) -> tuple[str, list[NDArray[np.float32]]]:
        """Input of x·kernel·scale + bias, and these three: float32[i, size], float32[size], float32[size]."""
        value, bias = self.peel(value, "Add", size, 0.0)
        value, scale = self.peel(value, "Mul", size, 1.0)
        node = self.maker(value, "MatMul")
        return node.input[0], [self.constant(node, 1), scale, bias]


def _set(layer: Any, graph: Graph, *weights: NDArray[np.float32]) -> None:
    try:
        layer.set_weights(list(weights))
    except ValueError:
        wanted, found = [tuple(w.shape) for w in layer.weights], [w.shape for w in weights]
        raise RunError(
            f"{graph.name}: {layer.name} takes weights of {wanted}, the graph has {found}; the settings are not those of the "
            "bundle's network"
        ) from None


def _plain_normalisation(
    layer: Any, scale: NDArray[np.float32], bias: NDArray[np.float32]
) -> list[NDArray[np.float32]]:
    """Weights of a batch normalisation that gives scale × x + bias."""
    return [scale, bias, np.zeros_like(bias), np.full_like(bias, 1.0 - layer.epsilon)]


def fill_classifier(classifier: keras.Model, graph: Graph) -> None:
    """Give `classifier`, as `build_classifier` makes it, the weights of the trunk `graph` of any number of
    orientations, which all share them. Batch normalisations get what was folded: a bias. Raises `RunError` where the
    graph is of another network."""
    if any(isinstance(layer, layers.GroupNormalization) for layer in classifier.layers):
        raise RunError("a network with group normalisation cannot be read back from its graph yet")
    makers = {id(layer.output): layer for layer in classifier.layers}
    # averages over orientations: one of them is enough
    softmax = graph.maker("probabilities", "Softmax", through=frozenset({"Mul", "Add"}))
    waiting = [(classifier.get_layer("probabilities"), str(softmax.input[0]))]
    seen = set()
    while waiting:
        layer, value = waiting.pop()
        if layer.name in seen:
            continue
        seen.add(layer.name)
        if isinstance(layer, (layers.InputLayer, layers.Rescaling)):
            continue
        if isinstance(layer, layers.Add):
            waiting += _paired(graph, value, [makers[id(tensor)] for tensor in layer.input])
            continue
        waiting.append((makers[id(layer.input)], _fill(layer, graph, value)))


def _fill(layer: Any, graph: Graph, value: str) -> str:
    """Give `layer`, which computes `value`, its weights; returns its input."""
    if isinstance(layer, layers.Dense):
        before, (kernel, scale, bias) = graph.dense(value, layer.units)
        _set(layer, graph, kernel * scale, bias)
        return before
    if isinstance(layer, layers.BatchNormalization):
        node = graph.maker(value, "Conv")
        bias = graph.constant(node, 2) if len(node.input) > 2 else np.zeros(layer.beta.shape, np.float32)
        _set(layer, graph, *_plain_normalisation(layer, np.ones_like(bias), bias))
        return value  # one convolution does both
    if isinstance(layer, layers.SeparableConv2D):
        pointwise = graph.maker(value, "Conv")
        depthwise = graph.maker(pointwise.input[0], "Conv")
        _set(
            layer,
            graph,
            graph.constant(depthwise, 1).transpose(2, 3, 0, 1),  # [c, 1, h, w]
            graph.constant(pointwise, 1).transpose(2, 3, 1, 0),  # [out, in, 1, 1]
        )
        return str(depthwise.input[0])
    if isinstance(layer, layers.Conv2D):
        node = graph.maker(value, "Conv")
        _set(layer, graph, graph.constant(node, 1).transpose(2, 3, 1, 0))
        return str(node.input[0])
    kinds = {layers.ReLU: "Relu", layers.MaxPooling2D: "MaxPool", layers.GlobalAveragePooling2D: "GlobalAveragePool"}
    if type(layer) not in kinds:
        raise RunError(f"{graph.name}: the weights of a layer {type(layer).__name__} cannot be read back")
    return str(graph.maker(value, kinds[type(layer)]).input[0])


def _paired(graph: Graph, value: str, before: list[Any]) -> list[tuple[Any, str]]:
    """The two inputs of a sum, each with the layer that makes it: they are told apart by their operators."""
    first, second = graph.maker(value, "Add").input
    kinds = {layers.MaxPooling2D: "MaxPool", layers.BatchNormalization: "Conv", layers.Add: "Add", layers.ReLU: "Relu"}
    wanted = [kinds.get(type(layer), "") for layer in before]
    for one, other in ((first, second), (second, first)):
        if [graph.kind(one), graph.kind(other)] == wanted:
            return [(before[0], str(one)), (before[1], str(other))]
    raise RunError(f"{graph.name}: a sum of {graph.kind(first)} and {graph.kind(second)} where {wanted} is expected")


def build_encoder(graph: Graph, config: Any, feature_shape: tuple[int, int, int]) -> keras.Model:
    """The encoder as `build_vae_parts` makes it, with the weights of the encoder `graph`.

    config : the run's `VaeConfig`.  feature_shape : (h, w, c) at the break. A bundle does not hold how wide the
    latent's distribution is: the log-variance is zero everywhere. Raises `RunError` where the graph is of another
    network.
    """
    value, (kernel, scale, bias) = graph.dense("latent", config.latent_size)
    filled = [[kernel * scale, bias]]
    normalised = []
    for _ in range(config.layers):
        relu = graph.maker(value, "Relu")
        value, (kernel, scale, bias) = graph.dense(str(relu.input[0]), config.width)
        filled.append([kernel])
        normalised.append((scale, bias))
    size = len(filled[-1][0])
    value, deviation = graph.peel(value, "Mul", size, 1.0)
    value, mean = graph.peel(value, "Sub", size, 0.0)
    try:
        encoder, _, _ = build_vae_parts(feature_shape, config, 1, mean, np.ones_like(mean))
    except ValueError as error:
        raise RunError(f"{graph.name}: {size} features are not those of the bundle's settings: {error}") from None
    encoder.get_layer("standardise").set_weights([mean, deviation])
    mean_layer, wide_layer = encoder.get_layer("latent_mean"), encoder.get_layer("latent_log_variance")
    hidden = [layer for layer in encoder.layers if isinstance(layer, layers.Dense)][: config.layers]
    norms = [layer for layer in encoder.layers if isinstance(layer, layers.BatchNormalization)]
    for layer, weights in zip([mean_layer, *reversed(hidden)], filled, strict=True):
        _set(layer, graph, *weights)
    for layer, (scale, bias) in zip(reversed(norms), normalised, strict=True):
        _set(layer, graph, *_plain_normalisation(layer, scale, bias))
    wide_layer.set_weights([np.zeros(weight.shape, np.float32) for weight in wide_layer.weights])
    return encoder


def settle_normalisation(classifier: keras.Model, crops: NDArray[np.float32], batch_size: int = 32) -> None:
    """Prepare a classifier that was read from a graph for further training, without changing its outputs.

    Each batch normalisation gets the statistics of `crops`, float32[n, s, s, 3]. Each filter before a batch
    normalisation is scaled to the size of a newly drawn filter. Training then continues as if the network had never
    been exported: its outputs stay about the same when normalised by a batch, and a step of the optimiser changes a
    filter by about the usual amount.

    Let x be the output of a filter, m its mean and v its variance. With the filter scaled by s, x' = s·x. The batch
    normalisation then has γ = √(s²v + ε)/s instead of 1, and β + m instead of β.
    """
    norms = [layer for layer in classifier.layers if isinstance(layer, layers.BatchNormalization)]
    makers = {id(layer.output): layer for layer in classifier.layers}
    step = forward(keras.Model(classifier.input, [layer.input for layer in norms]))
    total: list[Any] = [0.0] * len(norms)
    square: list[Any] = [0.0] * len(norms)
    batches = [crops[start : start + batch_size] for start in range(0, len(crops), batch_size)]
    for batch in batches:
        for number, values in enumerate(step(batch)):
            flat = values.reshape(-1, values.shape[-1]).astype(np.float64)
            total[number] += flat.mean(axis=0) * len(batch) / len(crops)
            square[number] += (flat**2).mean(axis=0) * len(batch) / len(crops)
    for layer, mean, squared in zip(norms, total, square, strict=True):
        variance = np.maximum(squared - mean**2, 0.0)
        gamma, beta, offset, spread = (np.asarray(w, np.float64) for w in layer.get_weights())
        factor = gamma / np.sqrt(spread + layer.epsilon)
        filters = makers[id(layer.input)]
        *others, kernel = filters.get_weights()
        # Keras draws filters from a uniform distribution of this deviation (Glorot & Bengio 2010, eq. 16)
        usual = np.sqrt(2.0 / (np.prod(kernel.shape[:-2]) * sum(kernel.shape[-2:])))
        size = np.sqrt((kernel.astype(np.float64) ** 2).mean(axis=(0, 1, 2)))
        scale = np.minimum(usual / np.maximum(size, 1e-30), _LARGEST_SCALE)
        filters.set_weights([*others, (kernel * scale).astype(np.float32)])
        layer.set_weights(
            [
                weight.astype(np.float32)
                for weight in (
                    factor * np.sqrt(scale**2 * variance + layer.epsilon) / scale,
                    beta + factor * (mean - offset),
                    scale * mean,
                    scale**2 * variance,
                )
            ]
        )
