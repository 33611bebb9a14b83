"""Keras → ONNX by tf2onnx, checked: names, no custom operators, no data outside the file, parity on real crops."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

__all__ = ["ExportError", "Parity", "convert", "measure_parity"]

OPSET = 17


class ExportError(Exception):
    """The run cannot be shipped; the message says why."""


@dataclass(frozen=True)
class Parity:
    """Largest absolute differences between Keras and ONNX Runtime on the same crops."""

    crops: int
    probabilities: float
    features: float
    latents: float


def convert(model: Any, input_name: str, dtype: Any, output_names: list[str], out: Path) -> None:
    """Write the Keras `model` as ONNX with input `input_name` and outputs `output_names`, batch size free.

    Raises `ExportError` where the graph has operators outside the ONNX standard or keeps data outside the file, and
    where Keras does not run on TensorFlow here (a run that JAX trained is read by either).
    """
    import keras
    import tensorflow as tf
    import tf2onnx

    if keras.backend.backend() != "tensorflow":
        raise ExportError(f"Keras runs on {keras.backend.backend()} here; export with KERAS_BACKEND=tensorflow")
    shape = [None, *model.input_shape[1:]]
    spec = tf.TensorSpec(shape, dtype, name=input_name)
    function = tf.function(lambda x: _ordered(model(x, training=False), output_names), input_signature=[spec])
    proto, _ = tf2onnx.convert.from_function(function, input_signature=[spec], opset=OPSET)
    graph = proto.graph
    _rename(graph, graph.input[0].name, input_name)
    if len(graph.output) != len(output_names):
        raise ExportError(f"{out.name}: expected outputs {output_names}, the graph has {len(graph.output)}")
    for value, name in zip(list(graph.output), output_names, strict=True):
        _rename(graph, value.name, name)
    foreign = sorted({node.domain for node in graph.node} - {"", "ai.onnx"})
    outside = [i.name for i in graph.initializer if i.data_location == onnx.TensorProto.EXTERNAL]
    if foreign or outside:
        raise ExportError(f"{out.name}: operators of {foreign} or outside data {outside}; a bundle carries neither")
    proto.doc_string = ""
    onnx.checker.check_model(proto, full_check=True)
    out.write_bytes(proto.SerializeToString(deterministic=True))


def _ordered(outputs: Any, names: list[str]) -> list[Any]:
    if isinstance(outputs, dict):
        return [outputs[name] for name in names]
    return list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]


def _rename(graph: Any, old: str, new: str) -> None:
    if old == new:
        return
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        node.output[:] = [new if name == old else name for name in node.output]
    for value in [*graph.input, *graph.output, *graph.value_info]:
        if value.name == old:
            value.name = new


def measure_parity(trunk: Any, encoder: Any, folder: Path, crops: NDArray[np.uint8]) -> Parity:
    """Run crops uint8[n, 256, 256, 3] through the Keras models and through the graphs in `folder`; compare."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    sessions = [
        onnxruntime.InferenceSession(str(folder / name), options, providers=["CPUExecutionProvider"])
        for name in ("trunk.onnx", "encoder.onnx")
    ]
    worst = np.zeros(3)
    for start in range(0, len(crops), 16):
        batch = crops[start : start + 16]
        expected = trunk(batch, training=False)
        latent = np.asarray(encoder(expected["features"], training=False))
        probabilities, features = sessions[0].run(["probabilities", "features"], {"crops": batch})
        (found,) = sessions[1].run(["latent"], {"features": features})
        worst = np.maximum(
            worst,
            [
                np.abs(probabilities - np.asarray(expected["probabilities"])).max(),
                np.abs(features - np.asarray(expected["features"])).max(),
                np.abs(found - latent).max(),
            ],
        )
    return Parity(len(crops), *(float(value) for value in worst))
