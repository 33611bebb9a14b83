"""Trunks of reduced precision: float16 for GPUs, int8 for CPUs. Each is admitted only where its nearest neighbours
agree with those of the full trunk."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.compose
import onnx.utils
import onnxruntime
from numpy.typing import NDArray
from rich.progress import Progress

from labref.bundles.bundle import Precision, Trunk
from training.measure.evaluate import K, nearest
from training.measure.statistics import Estimate, bootstrap

__all__ = [
    "LIMIT",
    "PRECISIONS",
    "Latents",
    "add_reduced",
    "agreement",
    "milliseconds",
    "open_sessions",
    "reduce_trunk",
    "round_graph",
    "round_weights",
    "run_trunk",
]

LIMIT = 7.8
"""The mean number of a query's eight references by the full trunk that the reduced trunk must find as well."""
PRECISIONS: tuple[Precision, ...] = ("float16", "int8")
_BATCH = 16


@dataclass(frozen=True)
class Latents:
    """Latents float32[n, L] of queries and of references by one trunk."""

    queries: NDArray[np.float32]
    references: NDArray[np.float32]


def round_weights(values: NDArray[np.float32], bits: int) -> NDArray[np.float32]:
    """Round float32 numbers to `bits` explicit bits of mantissa (IEEE 754 has 23), ties away from zero. A file of such
    numbers compresses better. The relative error is at most 2^-(bits + 1)."""
    if not 1 <= bits <= 23:
        raise ValueError(f"a float32 has 1 to 23 bits of mantissa, not {bits}")
    drop = 23 - bits
    if not drop:
        return values
    words = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = ((words + np.uint32(1 << (drop - 1))) >> np.uint32(drop)) << np.uint32(drop)
    return rounded.view(np.float32)


def round_graph(graph: Path, bits: int) -> None:
    """Round the float32 weights of an ONNX graph in place, as `round_weights` does; 23 leaves the file as it is, and
    what turns crops upright is left, too."""
    if bits == 23:
        return
    proto = onnx.load(graph)
    exact = {name for node in _before_weights(proto.graph) if node.op_type != "Conv" for name in node.input}
    for weights in proto.graph.initializer:
        values = onnx.numpy_helper.to_array(weights)
        if values.dtype == np.float32 and values.ndim > 1 and weights.name not in exact:
            weights.CopyFrom(onnx.numpy_helper.from_array(round_weights(values, bits), weights.name))
    graph.write_bytes(proto.SerializeToString(deterministic=True))


def reduce_trunk(full: Path, precision: Precision, out: Path, crops: NDArray[np.uint8]) -> None:
    """Write the trunk `full` with reduced precision; its inputs and outputs keep their types.

    float16 : weights and arithmetic are reduced, except for the resize and for what turns crops upright.  int8 :
    weights (by channel) and activations are quantised statically (QDQ), with the ranges found on the calibration crops
    uint8[n, 256, 256, 3]; the first convolutions, and what comes before them, are not quantised. The weights use all
    eight bits. On a CPU without VNNI, sums may therefore saturate; the golden outputs then differ, and that computer
    uses the full trunk.
    """
    if precision == "float16":
        proto = _halved(onnx.load(full))
        out.write_bytes(proto.SerializeToString(deterministic=True))
    else:
        _quantise(full, out, crops)
    proto = onnx.load(out)
    proto.doc_string = ""
    del proto.metadata_props[:]
    onnx.checker.check_model(proto)
    out.write_bytes(proto.SerializeToString(deterministic=True))


def _halved(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The trunk with weights and arithmetic of float16, but for what comes before the first convolutions where crops
    are turned upright."""
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    if not any(node.op_type == "ArgMax" for node in proto.graph.node):
        return convert_float_to_float16(proto, keep_io_types=True)
    begin = sorted({node.input[0] for node in _before_weights(proto.graph) if node.op_type == "Conv"})
    known = onnx.shape_inference.infer_shapes(proto)
    before = onnx.utils.Extractor(known).extract_model([known.graph.input[0].name], begin)
    after = onnx.utils.Extractor(known).extract_model(begin, [value.name for value in known.graph.output])
    halved = convert_float_to_float16(after, keep_io_types=True)
    OnnxModel(halved).topological_sort()
    for part in (before, halved):
        del part.graph.value_info[:]
    return onnx.compose.merge_models(before, halved, io_map=[(name, name) for name in begin])


def _quantise(full: Path, out: Path, crops: NDArray[np.uint8]) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Crops(CalibrationDataReader):
        def __init__(self) -> None:
            self._left: Iterator[NDArray[np.uint8]] = iter(np.array_split(crops, -(-len(crops) // _BATCH)))

        def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
            batch = next(self._left, None)
            return None if batch is None else {"crops": batch}

    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # its warning advises a step that tf2onnx has already done
    try:
        quantize_static(
            str(full),
            str(out),
            Crops(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=["Conv", "Relu", "Add", "MaxPool", "MatMul"],
            nodes_to_exclude=[node.name for node in _before_weights(onnx.load(full).graph)],
        )
    finally:
        root.setLevel(level)


def _before_weights(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """What is done with the pixels up to the first convolutions, and these. Few numbers are computed there, and their
    rounding errors affect all following layers; places in a crop do not stand them at all."""
    seen = {"crops"}
    found = []
    for node in graph.node:
        if seen & set(node.input):
            found.append(node)
            if node.op_type != "Conv":
                seen |= set(node.output)
    return found


def open_sessions(trunk: Path, encoder: Path, threads: int = 0) -> tuple[Any, Any]:
    """ONNX Runtime sessions of both graphs on the CPU."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    providers = ["CPUExecutionProvider"]
    first, second = (onnxruntime.InferenceSession(str(p), options, providers=providers) for p in (trunk, encoder))
    return first, second


def run_trunk(
    sessions: tuple[Any, Any], crops: NDArray[np.uint8], advance: Callable[[int], None] = lambda _: None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Probabilities float32[n, c] and latents float32[n, L] of crops uint8[n, 256, 256, 3]."""
    probabilities, latents = [], []
    for start in range(0, len(crops), _BATCH):
        batch = crops[start : start + _BATCH]
        found, features = sessions[0].run(["probabilities", "features"], {"crops": batch})
        probabilities.append(found)
        latents.append(sessions[1].run(["latent"], {"features": features})[0])
        advance(len(batch))
    return np.concatenate(probabilities), np.concatenate(latents)


def agreement(full: Latents, reduced: Latents) -> dict[str, Estimate]:
    """The number of the full trunk's eight references that the reduced trunk finds, mean over the queries.

    `own` : in a store that the reduced trunk filled.  `moved` : in a store that the full trunk filled.  `mixed` : in a
    store that the two filled in turn, cell by cell. The latter two occur where a lab's computer gains or loses its GPU.
    """
    expected, _ = nearest(full.queries, full.references, None)
    mixed = full.references.copy()
    mixed[::2] = reduced.references[::2]
    found = {}
    for name, references in (("own", reduced.references), ("moved", full.references), ("mixed", mixed)):
        rows, _ = nearest(reduced.queries, references, None)
        found[name] = bootstrap([len(np.intersect1d(a, b)) for a, b in zip(expected, rows, strict=True)])
    return found


def milliseconds(sessions: list[tuple[Any, Any]], crops: NDArray[np.uint8], repeats: int = 7) -> list[float]:
    """Milliseconds of processor time that each pair of sessions takes for one cell: the median of `repeats` runs on a
    batch of crops.

    The sessions have one thread, and take turns. Processor time depends little on the other work of the computer.
    """
    batch = crops[:_BATCH]
    times: list[list[float]] = [[] for _ in sessions]
    for repeat in range(repeats + 1):
        for one, pair in zip(times, sessions, strict=True):
            began = time.thread_time()
            run_trunk(pair, batch)
            if repeat:  # the first run only warms up
                one.append((time.thread_time() - began) * 1000 / len(batch))
    return [float(np.median(one)) for one in times]


def add_reduced(
    folder: Path,
    precisions: Sequence[Precision],
    calibration: NDArray[np.uint8],
    queries: NDArray[np.uint8],
    references: NDArray[np.uint8],
    tolerance: float,
    progress: Progress,
) -> tuple[Trunk, ...]:
    """Try reduced trunks beside `trunk.onnx` in the bundle's `folder`. The admitted ones stay there, with their own
    golden outputs.

    calibration : crops trained on.  queries : crops held out, never trained on, at least one.  references : crops
    trained on, more than eight; all uint8[n, 256, 256, 3].  tolerance : of the full trunk's golden outputs.
    """
    full_file, encoder = folder / "trunk.onnx", folder / "encoder.onnx"
    with np.load(folder / "golden.npz", allow_pickle=False) as arrays:
        golden = dict(arrays)
    rounds = len(precisions) + 1
    task = progress.add_task("reduced precision", total=rounds * (len(queries) + len(references)), info="full")

    def embedded(sessions: tuple[Any, Any]) -> Latents:
        return Latents(
            *(
                run_trunk(sessions, crops, lambda n: progress.update(task, advance=n))[1]
                for crops in (queries, references)
            )
        )

    single = open_sessions(full_file, encoder, threads=1)
    full = embedded(open_sessions(full_file, encoder))
    trunks = []
    for precision in precisions:
        progress.update(task, info=precision)
        file = folder / f"trunk.{precision}.onnx"
        reduce_trunk(full_file, precision, file, calibration)
        found = agreement(full, embedded(open_sessions(file, encoder)))
        probabilities, latents = run_trunk(open_sessions(file, encoder), golden["crops"])
        difference = max(
            float(np.abs(probabilities - golden["probabilities"]).max()),
            float(np.abs(latents - golden["latents"]).max()),
        )
        speed = milliseconds([open_sessions(file, encoder, threads=1), single], queries)
        counts = (len(queries), len(references))
        trunk = _described(precision, file, found, counts, (difference, tolerance), (speed[0], speed[1]))
        if trunk.admitted:
            golden |= {f"probabilities_{precision}": probabilities, f"latents_{precision}": latents}
        else:
            file.unlink()
        trunks.append(trunk)
    np.savez_compressed(folder / "golden.npz", **golden)
    return tuple(trunks)


def _described(
    precision: Precision,
    file: Path,
    found: dict[str, Estimate],
    counts: tuple[int, int],
    golden: tuple[float, float],
    speed: tuple[float, float],
) -> Trunk:
    """The manifest's entry for a reduced trunk. counts : number of queries and of references that it was measured on.
    golden : its difference from the full trunk on the golden crops, and the tolerance of the full trunk.  speed :
    milliseconds a cell of the reduced and of the full trunk, with one thread, at export."""
    worst = min(estimate.value for estimate in found.values())
    admitted = worst >= LIMIT
    return Trunk(
        precision=precision,
        file=file.name if admitted else "",
        admitted=admitted,
        agreement={name: estimate.to_json() for name, estimate in found.items()},
        # another CPU or GPU may round differently, by at most half of the change that the precision itself causes
        golden_tolerance=max(golden[1], golden[0] / 2),
        measured={
            "k": K,
            "limit": LIMIT,
            "queries": counts[0],
            "references": counts[1],
            "difference_from_full_on_golden": golden[0],
            "bytes": file.stat().st_size,
            "ms_per_cell_one_thread": speed[0],
            "ms_per_cell_one_thread_full": speed[1],
        },
    )
