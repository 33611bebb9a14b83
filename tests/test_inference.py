"""The embedder gives what the bundle promised, on whatever device there is, and says which."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest

import labref.bundles.inference
from labref.bundles.bundle import Bundle
from labref.bundles.inference import Embedder
from labref.cells.image import prepare
from labref.errors import BundleError
from tests.bundles import describe, read_manifest


def some_crops(folder: Path, count: int) -> np.ndarray:
    files = sorted(folder.rglob("*.jpg"))
    return np.stack([prepare(path.read_bytes()).crop for path in files[:: max(len(files) // count, 1)][:count]])


def test_golden_outputs_come_out_here_too(embedder: Embedder) -> None:
    assert embedder.golden_difference() < 1e-3


def test_shapes_and_batches(embedder: Embedder, drawn_cells: Path) -> None:
    crops = some_crops(drawn_cells, embedder.batch_size + 5)
    whole = embedder.embed(crops)
    assert (
        whole.probabilities.shape == (len(crops), len(embedder.bundle.manifest.labels))
        and whole.probabilities.dtype == np.float32
    )
    assert whole.latents.shape == (len(crops), 50) and whole.latents.dtype == np.float32
    assert np.allclose(whole.probabilities.sum(axis=1), 1, atol=1e-4)
    alone = np.concatenate([embedder.embed(crops[i : i + 1]).latents for i in range(len(crops))])
    assert np.abs(alone - whole.latents).max() < 1e-4
    assert embedder.embed(crops[:0]).latents.shape == (0, 50)


def test_features_that_stay_in_the_memory_of_a_device_give_the_same(embedder: Embedder, drawn_cells: Path) -> None:
    with Embedder.open(embedder.bundle, device="cpu", batch_size=2) as plain:
        assert plain.batch_size == 2
        sessions = [getattr(session, "_session", session) for session in (plain._trunk, plain._encoder)]
        bound = Embedder(embedder.bundle, *sessions, labref.bundles.inference._CUDA, "")
        bound.batch_size, bound._memory = 2, "cpu"  # as on a GPU, in the memory that there is
        crops = some_crops(drawn_cells, 3)
        expected, found = plain.embed(crops), bound.embed(crops)
    assert np.array_equal(found.latents, expected.latents)
    assert np.array_equal(found.probabilities, expected.probabilities)


def test_wrong_crops_are_refused(embedder: Embedder) -> None:
    with pytest.raises(ValueError, match=r"uint8\[n, 256, 256, 3\]"):
        embedder.embed(np.zeros((1, 128, 128, 3), np.uint8))
    with pytest.raises(ValueError, match="float32"):
        embedder.embed(np.zeros((1, 256, 256, 3), np.float32))  # type: ignore[arg-type]


def test_threads_share_one_embedder(embedder: Embedder, drawn_cells: Path) -> None:
    crops = some_crops(drawn_cells, 6)
    expected = embedder.embed(crops).latents
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: embedder.embed(crops).latents, range(8)):
            assert np.array_equal(found, expected)


class _Session:
    """A trunk that says how it was run. waits : a large batch does so.  refuses : to let go of memory, as a build of
    ONNX Runtime without such does."""

    def __init__(self, bundle: Bundle, *, refuses: bool = False) -> None:
        self._sizes = len(bundle.manifest.labels), bundle.manifest.features
        self._refuses = refuses
        self.lets_go: list[tuple[int, bool]] = []
        self.began, self.waits = threading.Event(), threading.Event()
        self.waits.set()

    def run(self, _: object, inputs: dict[str, np.ndarray], options: object = None) -> list[np.ndarray]:
        crops = len(inputs["crops"])
        if crops > 1:
            self.began.set()
            assert self.waits.wait(20)
        if options is not None and self._refuses:
            raise RuntimeError("not an arena based allocator")
        self.lets_go.append((crops, options is not None))
        return [
            np.zeros((crops, size) if isinstance(size, int) else (crops, *size), np.float32) for size in self._sizes
        ]


def _embedder_of(bundle: Bundle, trunk: _Session) -> Embedder:
    latents = SimpleNamespace(
        run=lambda _, given: [np.zeros((len(given["features"]), bundle.manifest.latent_size), np.float32)]
    )
    return Embedder(bundle, trunk, latents, "CPUExecutionProvider", "")


def test_memory_that_many_cells_took_beside_a_few_is_let_go_by_the_next_few(starter: Bundle) -> None:
    trunk = _Session(starter)
    embedder = _embedder_of(starter, trunk)
    crops = np.zeros((16, 256, 256, 3), np.uint8)
    embedder.embed(crops[:1])
    trunk.waits.clear()
    trunk.began.clear()
    with ThreadPoolExecutor(1) as beside:
        many = beside.submit(embedder.embed, crops)
        assert trunk.began.wait(20)
        embedder.embed(crops[:1])
        trunk.waits.set()
        many.result(20)
    for _ in range(2):
        embedder.embed(crops[:1])
    assert trunk.lets_go == [(1, False), (1, True), (16, False), (1, True), (1, False)]


def test_a_runtime_that_cannot_let_go_of_memory_runs_all_the_same(starter: Bundle) -> None:
    trunk = _Session(starter, refuses=True)
    embedder = _embedder_of(starter, trunk)
    for crops in (16, 1, 16, 1):
        assert len(embedder.embed(np.zeros((crops, 256, 256, 3), np.uint8)).latents) == crops
    assert trunk.lets_go == [(16, False), (1, False), (16, False), (1, False)]


def test_a_quarter_turn_or_a_mirror_leaves_the_latent(starter: Bundle, embedder: Embedder, drawn_cells: Path) -> None:
    crops = some_crops(drawn_cells, 4)
    straight = embedder.embed(crops).latents
    for turns in (1, 2, 3):
        turned = embedder.embed(np.ascontiguousarray(np.rot90(crops, turns, axes=(1, 2)))).latents
        assert ((turned - straight) ** 2).mean() < 1e-6 * starter.manifest.latent_scale + 1e-9


def test_real_classes_are_recognised(embedder: Embedder, real_cells: Path) -> None:
    right = []
    for number, label in enumerate(embedder.bundle.manifest.labels):
        folder = real_cells / ("bonemarrow" if label == "blast" else "pbc") / label
        probabilities = embedder.embed(some_crops(folder, 8)).probabilities
        right.append((probabilities.argmax(axis=1) == number).mean())
    assert np.mean(right) >= 0.9


def test_the_line_says_which_device_and_why(starter: Bundle) -> None:
    with Embedder.open(starter, device="cpu", threads=1) as opened:
        assert opened.provider == "CPUExecutionProvider"
        assert "CPU, 1 thread (" in opened.provider_line and "asked for" in opened.provider_line
        assert "\n" not in opened.provider_line


def test_auto_falls_back_to_the_cpu_with_a_reason(starter: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labref.bundles.inference, "cuda_problem", lambda: "no NVIDIA driver on this computer")
    with Embedder.open(starter) as opened:
        assert opened.provider_line.endswith("no NVIDIA driver on this computer")
    with pytest.raises(BundleError, match="CUDA was asked for, but no NVIDIA driver"):
        Embedder.open(starter, device="cuda")


@pytest.mark.skipif(
    "CUDAExecutionProvider" not in onnxruntime.get_available_providers(), reason="this onnxruntime has no CUDA provider"
)
def test_a_driver_without_cuda_libraries_is_one_line_and_no_noise(starter: Bundle) -> None:
    code = (
        "import labref.bundles.inference as i, pathlib; i.cuda_problem = lambda: None; from labref.bundles.bundle import Bundle;"
        f"e = i.Embedder.open(Bundle.open(pathlib.Path({str(starter.folder)!r}))); print(e.provider, e.provider_line, sep='|')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    provider, line = done.stdout.strip().split("|")
    assert done.stderr == ""
    assert provider == "CUDAExecutionProvider" or "labref[cuda]" in line or "CUDA failed to start" in line


def test_a_graph_that_cannot_run_is_a_bundle_error(starter: Bundle, tmp_path: Path) -> None:
    for name in ("trunk.onnx", "encoder.onnx"):
        (tmp_path / name).write_bytes(b"no graph")
    describe(tmp_path, starter.manifest)
    with pytest.raises(BundleError, match=r"trunk\.onnx cannot be run"):
        Embedder.open(Bundle(tmp_path, starter.digest, read_manifest(tmp_path)), device="cpu")


def test_the_runtime_keeps_and_sends_no_record_of_its_use(tmp_path: Path) -> None:
    """Newer versions of ONNX Runtime keep one below the home folder, and send it."""
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    (tmp_path / "export").mkdir()
    environment |= {name: str(tmp_path / "home") for name in ("HOME", "USERPROFILE", "XDG_CACHE_HOME")}
    done = subprocess.run(
        [sys.executable, "-m", "labref", "init", str(tmp_path / "lab"), "--watch", str(tmp_path / "export")],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "home").exists(), sorted((tmp_path / "home").rglob("*"))
