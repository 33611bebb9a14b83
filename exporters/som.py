"""The small graph that finds a map's winning nodes on a GPU: `python -m exporters.som` writes labref/som/nearest.onnx.

It is kept in the repository, so that a lab needs no `onnx`; a test builds it again and compares.
"""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import TensorProto, helper

__all__ = ["GRAPH", "nearest_graph"]

GRAPH = Path(__file__).resolve().parents[1] / "labref" / "som" / "nearest.onnx"


def nearest_graph() -> onnx.ModelProto:
    """The graph: latents float32[n, k] and nodes float32[k, N] → best int64[n], the first node with the largest
    product. With latents and nodes as `labref.som.search` extends them, k is L + 1 and that node is the nearest."""
    inputs = [
        helper.make_tensor_value_info("latents", TensorProto.FLOAT, ["n", "k"]),
        helper.make_tensor_value_info("nodes", TensorProto.FLOAT, ["k", "N"]),
    ]
    outputs = [helper.make_tensor_value_info("best", TensorProto.INT64, ["n"])]
    steps = [
        helper.make_node("MatMul", ["latents", "nodes"], ["scores"]),
        helper.make_node("ArgMax", ["scores"], ["best"], axis=1, keepdims=0),
    ]
    graph = helper.make_graph(steps, "nearest", inputs, outputs)
    model = helper.make_model(graph, producer_name="labref", opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    return model


if __name__ == "__main__":
    GRAPH.write_bytes(nearest_graph().SerializeToString())
    print(f"{GRAPH}: {GRAPH.stat().st_size} bytes")
