"""Whether the agent keeps up with the networks: `python -m tests.benchmarks.ingest --json`.

The same cells are embedded in two ways, in turn, `--repeats` times in one run. The figure of each way is the median of
its cells per second:

- bare ONNX Runtime: the bundle's two graphs, fed with crops that are ready in memory, in the batch size that is fastest
  on this computer;
- the agent: `labref agent --once` in a process of its own and a new lab, over the files: scan, read, digest, decode,
  crop, hash, embed, duplicate verdict, original bytes kept and flushed to the disk, transactions committed.

The start of the process counts for neither. ONNX Runtime's graphs are loaded before its clock starts. The agent's clock
is that of its pass: it starts when the store is open and ends when all is committed, and the agent loads its graphs
within it. The figures also hold the agent's speed over its whole process.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from labref.bundles.bundle import Bundle, install, starter_bundle
from labref.bundles.inference import Embedder
from labref.cells.image import prepare
from labref.lab import Lab
from tests.benchmarks.exports import choose_source, labref_process, write_cells

__all__ = ["main", "measure"]

_BATCH_SIZES = (1, 4, 8, 16, 32, 64, 128)
_TRIAL_CELLS = 128


class _Bare:
    """The bundle's graphs in ONNX Runtime, nothing around them. batch_size : the fastest of `_BATCH_SIZES` here."""

    def __init__(self, bundle: Bundle, provider: str, crops: NDArray[np.uint8]) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = os.cpu_count() or 1
        providers = [provider] if provider == "CPUExecutionProvider" else [provider, "CPUExecutionProvider"]
        self._trunk, self._encoder = (
            onnxruntime.InferenceSession(bundle.folder / name, options, providers=providers)
            for name in ("trunk.onnx", "encoder.onnx")
        )
        trial = crops[:_TRIAL_CELLS]
        self.batch_size = 1
        self.by_batch_size: dict[int, float] = {}
        for size in _BATCH_SIZES:
            if size <= len(trial):
                self.batch_size = size
                self.cells_per_second(trial[: 2 * size])  # warm
                self.by_batch_size[size] = round(self.cells_per_second(trial), 2)
        self.batch_size = max(self.by_batch_size, key=lambda size: self.by_batch_size[size])

    def cells_per_second(self, crops: NDArray[np.uint8]) -> float:
        """Embed crops uint8[n, 256, 256, 3]; cells per second."""
        started = time.perf_counter()
        for start in range(0, len(crops), self.batch_size):
            batch = crops[start : start + self.batch_size]
            _, features = self._trunk.run(["probabilities", "features"], {"crops": batch})
            self._encoder.run(["latent"], {"features": features})
        return len(crops) / (time.perf_counter() - started)


def measure(
    folder: Path, *, bundle_file: Path, cells: int, repeats: int, images: Path | None, seed: int
) -> dict[str, Any]:
    """Measure in `folder`, an empty folder; returns the figures. Raises RuntimeError where a pass fails or misses a
    file."""
    source, what = choose_source(images, seed)
    export = folder / "export"
    files = write_cells(source, export, cells)
    written = time.monotonic()
    bundle = install(bundle_file, folder / "bundles")
    with Embedder.open(bundle) as embedder:
        provider, provider_line = embedder.provider, embedder.provider_line
    crops = np.stack([prepare(path.read_bytes()).crop for path in files])
    bare = _Bare(bundle, provider, crops)
    bare_speeds: list[float] = []
    passes: list[dict[str, float]] = []
    for repeat in range(repeats):
        lab = Lab.create(folder / f"lab-{repeat}", [export], bundle_file, unsigned=True)
        # a file that is still fresh is waited for, which is not what is measured
        time.sleep(max(0.0, lab.config.watch.stable_seconds + 0.5 - (time.monotonic() - written)))
        if repeat % 2:
            passes.append(_pass(lab, len(files)))
            bare_speeds.append(bare.cells_per_second(crops))
        else:
            bare_speeds.append(bare.cells_per_second(crops))
            passes.append(_pass(lab, len(files)))
    second = _pass(lab, len(files), again=True)
    agent = statistics.median(one["cells_per_second"] for one in passes)
    ready = statistics.median(bare_speeds)
    return {
        "ratio": round(agent / ready, 4),
        "agent_cells_per_s": round(agent, 2),
        "onnxruntime_cells_per_s": round(ready, 2),
        "agent_process_cells_per_s": round(statistics.median(one["process_cells_per_second"] for one in passes), 2),
        "startup": "excluded from both; the agent's time includes loading its graphs, ONNX Runtime's does not",
        "provider": provider,
        "provider_line": provider_line,
        "cells": len(files),
        "source": what,
        "repeats": repeats,
        "agent_cells_per_s_each": [round(one["cells_per_second"], 2) for one in passes],
        "onnxruntime_cells_per_s_each": [round(speed, 2) for speed in bare_speeds],
        "onnxruntime_batch_size": bare.batch_size,
        "onnxruntime_cells_per_s_by_batch_size": bare.by_batch_size,
        "second_pass_share_of_first": round(second["seconds"] / passes[-1]["seconds"], 4),
        "cpu_count": os.cpu_count(),
        "bundle": bundle.short,
    }


def _pass(lab: Lab, files: int, *, again: bool = False) -> dict[str, float]:
    started = time.perf_counter()
    process = labref_process("agent", "--once", "--json", "--lab", lab.folder)
    out, err = process.communicate()
    whole = time.perf_counter() - started
    if process.returncode != 0:
        raise RuntimeError(f"labref agent --once exited {process.returncode}: {err.strip()}")
    summary = json.loads(out)
    if summary["found"] != files or (again and summary["embedded"]) or summary["rejected"]:
        raise RuntimeError(f"the pass did not do what was asked: {summary}")
    return {
        "seconds": summary["seconds"],
        "cells_per_second": files / summary["seconds"],
        "process_cells_per_second": files / whole,
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.ingest",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--images", type=Path, help="folder of images (default ../shared/data/pbc, else drawn cells)")
    parser.add_argument("--cells", type=int, default=512, help="how many (default 512)")
    parser.add_argument("--repeats", type=int, default=5, help="of each way (default 5)")
    parser.add_argument("--seed", type=int, default=1, help="of the choice of cells (default 1)")
    parser.add_argument("--bundle", type=Path, help="bundle file (default: the starter bundle)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="labref-ingest-") as folder:
        figures = measure(
            Path(folder),
            bundle_file=options.bundle or starter_bundle(),
            cells=options.cells,
            repeats=options.repeats,
            images=options.images,
            seed=options.seed,
        )
    if options.json:
        print(json.dumps(figures))
    else:
        print(
            f"agent {figures['agent_cells_per_s']} cells/s, bare ONNX Runtime {figures['onnxruntime_cells_per_s']} cells/s"
        )
        print(f"ratio {figures['ratio']} ({figures['provider_line']}, {figures['cells']} cells)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
