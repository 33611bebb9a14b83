"""Which ONNX graphs a bundle may carry: plain operators, all weights inside the file, no control flow.

The file is read by protobuf itself, as ONNX Runtime reads it, and not run. Only the fields of ONNX's `onnx.proto3` that
are looked at are declared here; the numbers are those of the standard.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from labref.errors import BundleError
from labref.printing import printable

__all__ = ["MAX_NUMBERS", "OPERATORS", "check_graph"]

_OPERATORS: Final = (
    # arithmetic, element by element
    "Abs Add And Ceil Clip Div Equal Erf Exp Floor Greater GreaterOrEqual Less LessOrEqual Log Max Mean Min Mod Mul Neg "
    "Not Or Pow Reciprocal Round Sign Sqrt Sub Sum Where Xor "
    # activations
    "Celu Elu Gelu HardSigmoid HardSwish LeakyRelu LogSoftmax Mish PRelu Relu Selu Sigmoid Softmax Softplus Softsign Tanh "
    # layers
    "AveragePool BatchNormalization Conv ConvTranspose Dropout Gemm GlobalAveragePool GlobalMaxPool GroupNormalization "
    "InstanceNormalization LayerNormalization LpNormalization MatMul MaxPool "
    # sums over axes
    "ArgMax ArgMin ReduceL1 ReduceL2 ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare "
    # shapes
    "Cast Concat Constant ConstantOfShape DepthToSpace Expand Flatten Gather GatherElements GatherND Identity Pad Reshape "
    "Resize ReverseSequence Shape Size Slice SpaceToDepth Split Squeeze Tile Transpose Unsqueeze "
    # eight bits
    "ConvInteger DequantizeLinear DynamicQuantizeLinear MatMulInteger QLinearConv QLinearMatMul QuantizeLinear"
)
OPERATORS: Final = frozenset(_OPERATORS.split())
"""Operators of ONNX that a bundle's graphs may use: what labref's exporters write, and plain ones like them. None
loops, branches, draws at random or reads a file."""
MAX_NODES: Final = 20_000
"""Most operators in one graph; the starter's trunk has 350."""
MAX_NUMBERS: Final = 100_000_000
"""Most numbers in one tensor of a graph; the starter's largest has 188,416."""
_MOST_SIDES: Final = 8
_ALLOWED: Final = frozenset(name.encode() for name in OPERATORS)  # as files have them: a trunk has hundreds
_STANDARD: Final = (b"", b"ai.onnx")
_EXTERNAL: Final = 1  # TensorProto.DataLocation

# message: {field: (number, type or message, repeated)}
_FIELDS: Final[Mapping[str, Mapping[str, tuple[int, str, bool]]]] = {
    "Model": {"graph": (7, "Graph", False), "opset_import": (8, "Opset", True), "functions": (25, "bytes", True)},
    "Opset": {"domain": (1, "bytes", False)},
    "Graph": {
        "node": (1, "Node", True),
        "initializer": (5, "Tensor", True),
        "sparse_initializer": (15, "bytes", True),
    },
    "Node": {"name": (3, "bytes", False), "op_type": (4, "bytes", False), "attribute": (5, "Attribute", True),
             "domain": (7, "bytes", False)},
    "Attribute": {
        "t": (5, "Tensor", False),
        "g": (6, "bytes", False),
        "tensors": (10, "Tensor", True),
        "graphs": (11, "bytes", True),
        "sparse_tensor": (22, "bytes", False),
        "sparse_tensors": (23, "bytes", True),
    },
    "Tensor": {
        "dims": (1, "int64", True),
        "name": (8, "bytes", False),
        "external_data": (13, "bytes", True),
        "data_location": (14, "int32", False),
    },
}  # fmt: skip


@functools.cache
def _model() -> Any:
    """The class of a message that holds what `_FIELDS` declares of an ONNX model."""
    file = descriptor_pb2.FileDescriptorProto(name="labref_graph.proto", package="labref.graph", syntax="proto2")
    kinds = descriptor_pb2.FieldDescriptorProto
    plain = {"bytes": kinds.TYPE_BYTES, "int32": kinds.TYPE_INT32, "int64": kinds.TYPE_INT64}
    for message, fields in _FIELDS.items():
        made = file.message_type.add(name=message)
        for name, (number, kind, repeated) in fields.items():
            field = made.field.add(name=name, number=number)
            field.label = kinds.LABEL_REPEATED if repeated else kinds.LABEL_OPTIONAL
            if kind in plain:
                field.type = plain[kind]
            else:
                field.type, field.type_name = kinds.TYPE_MESSAGE, f".labref.graph.{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("labref.graph.Model"))


def check_graph(raw: bytes, name: str) -> None:
    """Raise `BundleError` where the bytes `raw` of the file `name` are no ONNX graph, or hold what no bundle carries:
    an operator outside `OPERATORS`, a graph inside an operator, a function of its own, weights in another file, or a
    tensor of more than `MAX_NUMBERS`."""
    why = _fault(raw)
    if why is not None:
        raise BundleError(f"{name} cannot be run: {why}")


def _fault(raw: bytes) -> str | None:
    try:
        model = _model().FromString(raw)
    except DecodeError:
        return "it is no ONNX graph"
    graph = model.graph
    if not 1 <= len(graph.node) <= MAX_NODES:
        return f"it has {len(graph.node)} operators; 1 to {MAX_NODES} may be"
    if model.functions:
        return "it brings functions of its own; only operators of the ONNX standard are run"
    tensors = list(graph.initializer)
    sparse = bool(graph.sparse_initializer)
    for node in graph.node:
        if node.domain not in _STANDARD:
            return f"it uses the operator {_text(node.op_type)} of {_text(node.domain)}; only operators of the ONNX standard are run"
        if node.op_type not in _ALLOWED:
            return (
                f"it uses the operator {_text(node.op_type)}, which is not among those a bundle may use: it could loop, branch, draw at "
                "random or reach outside the file, or labref does not know it"
            )
        for attribute in node.attribute:
            if attribute.HasField("g") or attribute.graphs:
                return f"its operator {_text(node.op_type)} holds a graph of its own, which is not run"
            sparse |= attribute.HasField("sparse_tensor") or bool(attribute.sparse_tensors)
            tensors += [*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors]
    outside = [tensor for tensor in tensors if tensor.data_location == _EXTERNAL or tensor.external_data]
    if outside:
        return f"it keeps {_text(outside[0].name)} outside the file; a bundle's weights lie inside"
    for tensor in tensors:
        sides = list(tensor.dims)
        if len(sides) > _MOST_SIDES or any(side < 0 for side in sides) or math.prod(sides) > MAX_NUMBERS:
            return (
                f"its tensor {_text(tensor.name)} has the shape {str(sides)[:100]}; it may have {MAX_NUMBERS:,} numbers and {_MOST_SIDES} sides "
                "at most"
            )
    return "it holds sparse weights, which no labref writes" if sparse else None


def _text(raw: bytes) -> str:
    """A name in a file, for a message."""
    return printable(raw[:60].decode("utf-8", "replace"))
