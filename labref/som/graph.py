"""Best nodes by ONNX Runtime on a GPU: the products of `labref.som.search` for all nodes, without leaving any out."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from labref.errors import LabrefError
from labref.som.search import Check, Floats, Nodes, as_columns, extend, extend_nodes

__all__ = ["Device", "NearestGraph", "open_graph"]

Device = Literal["auto", "cpu", "cuda"]
_FILE: Final = Path(__file__).with_name("nearest.onnx")  # made by exporters/som.py
_CPU, _CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
_SCORES: Final = 2**26  # scores (latents × nodes) at once: 256 MiB on the device


class NearestGraph:
    """The graph, opened by one of ONNX Runtime's execution providers. Raises ONNX Runtime's own errors where the
    provider cannot run it."""

    def __init__(self, provider: str) -> None:
        import onnxruntime

        onnxruntime.set_default_logger_severity(4)  # labref reports failures itself, once
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        providers = [provider] if provider == _CPU else [provider, _CPU]
        self._runtime: Any = onnxruntime
        self._session: Any = onnxruntime.InferenceSession(str(_FILE), options, providers=providers)
        self.provider: str = self._session.get_providers()[0]
        self._device = "cpu" if self.provider == _CPU else "cuda"

    def find(self, latents: Floats, grid: Floats, check: Check) -> Nodes:
        """The best node of each latent: int64[n].

        latents : float32[n, L + 1], and grid : float32[rows, cols, L], as in `labref.som.search.find`.  check : called
        before each block of latents, and may raise. The nodes are sent to the device once.
        """
        nodes = as_columns(extend_nodes(grid))
        nodes_on_device = self._runtime.OrtValue.ortvalue_from_numpy(nodes, self._device, 0)
        found = np.empty(len(latents), np.int64)
        step = max(1, _SCORES // nodes.shape[1])
        for start in range(0, len(latents), step):
            check()
            binding = self._session.io_binding()
            binding.bind_cpu_input("latents", np.ascontiguousarray(latents[start : start + step]))
            binding.bind_ortvalue_input("nodes", nodes_on_device)
            binding.bind_output("best", "cpu")
            self._session.run_with_iobinding(binding)
            (found[start : start + step],) = binding.copy_outputs_to_cpu()
        return found


def open_graph(device: Device) -> NearestGraph | None:
    """The graph on the GPU, or None where the search on the CPU shall be used.

    device : "auto" uses CUDA where it works, as the embedder does; "cuda" raises `LabrefError` where CUDA does not
    work. The graph is first tried on a small map; it is not used where it finds wrong nodes.
    """
    if device == "cpu":
        return None
    problem = _problem()
    if problem is None:
        try:
            graph = NearestGraph(_CUDA)
            if graph.provider == _CUDA and _agrees(graph):
                return graph
            problem = "CUDA does not start, or finds other nodes than the CPU does"
        except Exception as error:  # onnxruntime raises its own types, and RuntimeError
            problem = f"CUDA failed to start ({type(error).__name__})"
    if device == "cuda":
        raise LabrefError(f'training the map on CUDA was asked for, but {problem}. Use device "auto" or "cpu".')
    return None


def _problem() -> str | None:
    from labref.bundles.inference import cuda_problem

    return cuda_problem()


def _agrees(graph: NearestGraph) -> bool:
    """Whether the graph finds the right node for latents that equal the nodes of a random map."""
    grid: NDArray[np.float32] = np.random.default_rng(0).standard_normal((12, 12, 20)).astype(np.float32)
    flat = grid.reshape(-1, 20)
    return bool((graph.find(extend(flat), grid, lambda: None) == np.arange(len(flat))).all())
