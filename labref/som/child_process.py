"""Training in a child process of low priority, so that neither the ingest nor a query waits for it.

    result = yield from train_apart(folder, latents, trained=..., sample=..., before=None, task=Task(...))

In the agent's own process, the matrix products of training would run at the agent's priority and hold Python's global
lock. The child process reads the latents from a file, trains, finds the node of every cell and measures the map. It
writes its progress to its standard output, and it ends when its parent ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from labref.errors import LabrefError
from labref.failpoints import failpoint
from labref.processes import end_with_parent, start_child
from labref.som.graph import Device

__all__ = ["FAR", "Result", "Task", "train_apart"]

FAR: Final = 3
"""In nodes: a cell that moved farther than this is no longer where people remember it."""
_NICENESS: Final = 15
_LATENTS, _TRAINED, _SAMPLE, _BEFORE, _PLACES = "latents.npy", "trained.npy", "sample.npy", "before.npz", "places.npz"
MAP_FILE: Final = "map.npz"


@dataclass(frozen=True)
class Task:
    """What to train: see `som.train`. warm : continue from the map in the file `before.npz`, where the file exists. The
    new map is compared with that map whether `warm` is set or not."""

    rows: int
    cols: int
    sigma: float | None
    seed: int
    trainer: str
    warm: bool
    device: Device = "cpu"


@dataclass(frozen=True)
class Result:
    """The measures of a trained map; the map itself is in the folder's MAP_FILE.

    qe, te : quantisation and topographic error on the sample.  qe_before, te_before : of the earlier map, on the same
    sample; None without one.  moved_far : share of the sample that lies more than `FAR` nodes from its node on the
    earlier map, which is stretched to the new size.  sigma : radius at the end, in nodes.  seconds : duration of the
    training alone.  nodes : int64[n], and errors : float32[n], the node and the quantisation error of each latent.
    """

    qe: float
    te: float
    qe_before: float | None
    te_before: float | None
    moved_far: float | None
    sigma: float
    seconds: float
    nodes: NDArray[np.int64]
    errors: NDArray[np.float32]


def train_apart(
    folder: Path,
    latents: NDArray[np.float32],
    *,
    trained: NDArray[np.intp],
    sample: NDArray[np.intp],
    before: Path | None,
    task: Task,
) -> Generator[tuple[int, int, str], None, Result]:
    """Train a map in a child process. Yields (done, total, text) at least every second, and returns the `Result`.

    folder : an empty folder, for the files that the two processes exchange.  latents : float32[n, L], of all cells that
    get a node.  trained : int[m], indices of the latents to train on.  sample : int[k], indices of the latents that the
    maps are measured on.  before : file of the earlier map, or None. Closing the generator kills the child. Raises
    `LabrefError` where the child fails.
    """
    failpoint("map.prepare")
    np.save(folder / _LATENTS, latents)
    np.save(folder / _TRAINED, trained)
    np.save(folder / _SAMPLE, sample)
    if before is not None:
        (folder / _BEFORE).write_bytes(before.read_bytes())
    child = _start(folder, task)
    try:
        figures = yield from _follow(child)
    finally:
        if child.poll() is None:
            child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                pipe.close()
    if figures is None:
        errors = (folder / "stderr.txt").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise LabrefError(
            f"the training of the map ended with status {child.returncode}: {errors[-1] if errors else 'no message'}. The "
            "earlier map stays in use."
        )
    with np.load(folder / _PLACES, allow_pickle=False) as file:
        return Result(**figures, nodes=file["nodes"], errors=file["errors"])


def _start(folder: Path, task: Task) -> subprocess.Popen[bytes]:
    with (folder / "stderr.txt").open("wb") as errors:
        return start_child(
            "labref.som.child_process", str(folder), json.dumps(asdict(task)), errors=errors, low_priority=True
        )


def _follow(child: subprocess.Popen[bytes]) -> Generator[tuple[int, int, str], None, dict[str, Any] | None]:
    """Yield the child's progress until it ends. Returns its figures (see `work`), or None where it failed."""
    latest: list[tuple[int, int, str]] = [(0, 1, "starting")]
    figures: list[dict[str, Any]] = []
    line_read = threading.Event()

    def read() -> None:
        assert child.stdout is not None
        for line in child.stdout:
            with contextlib.suppress(ValueError):
                values = json.loads(line)
                if "figures" in values:
                    figures.append(values["figures"])
                else:
                    latest[0] = (values["done"], values["total"], values["text"])
            line_read.set()

    reader = threading.Thread(target=read, name="labref-map-reader", daemon=True)
    reader.start()
    while reader.is_alive():
        yield latest[0]
        line_read.wait(1.0)
        line_read.clear()
        reader.join(0.02)
    child.wait()
    return figures[0] if figures and child.returncode == 0 else None


# --- in the child ---


def work(folder: Path, task: Task) -> dict[str, Any]:
    """Train in this process, on the files in `folder` that `train_apart` wrote. Returns the fields of `Result` without
    its arrays; these are written to a file."""
    from labref import som
    from labref.som.training import resize

    latents = np.load(folder / _LATENTS, mmap_mode="r", allow_pickle=False)
    before = som.load(folder / _BEFORE) if (folder / _BEFORE).exists() else None
    started = time.perf_counter()
    trained = som.train(
        np.asarray(latents[np.load(folder / _TRAINED, allow_pickle=False)]),
        rows=task.rows,
        cols=task.cols,
        sigma=task.sigma,
        seed=task.seed,
        initial=before.get_weights() if before is not None and task.warm else "pca",
        trainer="minisom" if task.trainer == "minisom" else "batch",
        device=task.device,
        progress=_report,
    )
    seconds = time.perf_counter() - started
    _report(1, 1, "measuring the map")
    sample = np.asarray(latents[np.load(folder / _SAMPLE, allow_pickle=False)])
    quality = som.quality(trained, sample)
    quality_before = None if before is None else som.quality(before, sample)
    moved_far = None
    if before is not None:
        stretched = resize(before.get_weights().astype(np.float32), task.rows, task.cols)
        moved_far = float((som.moved(stretched, trained, sample) > FAR).mean())
    nodes, errors = np.empty(len(latents), np.int64), np.empty(len(latents), np.float32)
    for start in range(0, len(latents), 65_536):
        _report(start, len(latents), "finding the node of every cell")
        part = slice(start, start + 65_536)
        nodes[part], errors[part] = som.winners(trained, np.asarray(latents[part]))
    np.savez(folder / _PLACES, nodes=nodes, errors=errors)
    som.save(trained, folder / MAP_FILE)
    return {
        "qe": quality["qe"],
        "te": quality["te"],
        "qe_before": None if quality_before is None else quality_before["qe"],
        "te_before": None if quality_before is None else quality_before["te"],
        "moved_far": moved_far,
        "sigma": float(trained._sigma),
        "seconds": seconds,
    }


def _report(done: int, total: int, text: str) -> None:
    print(json.dumps({"done": done, "total": total, "text": text}), flush=True)


def _main() -> None:
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the agent, which then ends this process
    if sys.platform != "win32":
        os.nice(_NICENESS)
    try:
        figures = work(Path(sys.argv[1]), Task(**json.loads(sys.argv[2])))
    except (LabrefError, ValueError, OSError, MemoryError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        os._exit(2)
    print(json.dumps({"figures": figures}), flush=True)
    os._exit(0)


if __name__ == "__main__":
    _main()
