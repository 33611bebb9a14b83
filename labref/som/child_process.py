"""Training in a process of its own, at low priority, so that neither the ingest nor a query waits for it.

    with Apart(folder, latents_file=..., ...) as training: ...

Inside one process the products of training would keep every core busy at the priority of the agent, and Python's lock
besides. Here a child process reads the latents from a file, trains, finds every cell's node and measures the map; it
tells how far it is on its standard output, and ends when its parent does.
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
from labref.som.graph import Device

__all__ = ["FAR", "Result", "Task", "train_apart"]

FAR: Final = 3
"""Nodes; a cell that moved farther is not where people remember it."""
_NICENESS: Final = 15
_LATENTS, _TRAINED, _SAMPLE, _BEFORE, _PLACES = "latents.npy", "trained.npy", "sample.npy", "before.npz", "places.npz"
MAP_FILE: Final = "map.npz"


@dataclass(frozen=True)
class Task:
    """What to train: see `som.train`. warm : go on from the map in the file `before.npz`, where one is; it is compared
    in any case."""

    rows: int
    cols: int
    sigma: float | None
    seed: int
    trainer: str
    warm: bool
    device: Device = "cpu"


@dataclass(frozen=True)
class Result:
    """A trained map in MAP_FILE of the folder, and what was measured.

    qe, te : on the sample; qe_before, te_before : of the map before, on the same sample.  moved_far : share of the
    cells that lie more
    than `FAR` nodes from where the map before, stretched to this size, had them.  sigma : final radius, nodes.  nodes :
    int64[n],
    errors : float32[n], of all latents.  seconds : of the training alone.
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
    """Train a map in a child process; yields (done, total, text) at least every second and returns the `Result`.

    folder : empty, for the files between the two processes.  latents : float32[n, L], of all cells to place.
    trained : places of those to train on.  sample : of those that the maps are measured on.  before : file of the map
    before. Closing the generator ends the child. Raises `LabrefError` where the child fails.
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
        said = (folder / "stderr.txt").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise LabrefError(
            f"the training of the map ended with status {child.returncode}: {said[-1] if said else 'nothing was said'}. The map "
            "before stays in use."
        )
    with np.load(folder / _PLACES, allow_pickle=False) as file:
        return Result(**figures, nodes=file["nodes"], errors=file["errors"])


def _start(folder: Path, task: Task) -> subprocess.Popen[str]:
    flags = 0
    if sys.platform == "win32":
        flags = (
            subprocess.BELOW_NORMAL_PRIORITY_CLASS | subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW
        )
    command = [sys.executable, "-m", "labref.som.child_process", str(folder), json.dumps(asdict(task))]
    root = Path(__file__).parents[2]  # of this very labref, wherever the agent was started
    paths = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    with (folder / "stderr.txt").open("wb") as errors:
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            encoding="utf-8",
            creationflags=flags,
            env=os.environ | {"PYTHONPATH": paths},
        )


def _follow(child: subprocess.Popen[str]) -> Generator[tuple[int, int, str], None, dict[str, Any] | None]:
    """Pass on what the child tells, until it ends; returns its figures, None where it has none."""
    told: list[tuple[int, int, str]] = [(0, 1, "starting")]
    figures: list[dict[str, Any]] = []
    news = threading.Event()

    def read() -> None:
        assert child.stdout is not None
        for line in child.stdout:
            with contextlib.suppress(ValueError):
                values = json.loads(line)
                if "figures" in values:
                    figures.append(values["figures"])
                else:
                    told[0] = (values["done"], values["total"], values["text"])
            news.set()

    reader = threading.Thread(target=read, name="labref-map-reader", daemon=True)
    reader.start()
    while reader.is_alive():
        yield told[0]
        news.wait(1.0)
        news.clear()
        reader.join(0.02)
    child.wait()
    return figures[0] if figures and child.returncode == 0 else None


# --- in the child ---


def work(folder: Path, task: Task) -> dict[str, Any]:
    """Train in this process, on the files in `folder`; see `train_apart`. Returns the figures of `Result`."""
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
        progress=_tell,
    )
    seconds = time.perf_counter() - started
    _tell(1, 1, "measuring the map")
    sample = np.asarray(latents[np.load(folder / _SAMPLE, allow_pickle=False)])
    now = som.quality(trained, sample)
    then = None if before is None else som.quality(before, sample)
    moved_far = None
    if before is not None:
        stretched = resize(before.get_weights().astype(np.float32), task.rows, task.cols)
        moved_far = float((som.moved(stretched, trained, sample) > FAR).mean())
    nodes, errors = np.empty(len(latents), np.int64), np.empty(len(latents), np.float32)
    for start in range(0, len(latents), 65_536):
        _tell(start, len(latents), "finding the node of every cell")
        part = slice(start, start + 65_536)
        nodes[part], errors[part] = som.winners(trained, np.asarray(latents[part]))
    np.savez(folder / _PLACES, nodes=nodes, errors=errors)
    som.save(trained, folder / MAP_FILE)
    return {
        "qe": now["qe"],
        "te": now["te"],
        "qe_before": None if then is None else then["qe"],
        "te_before": None if then is None else then["te"],
        "moved_far": moved_far,
        "sigma": float(trained._sigma),
        "seconds": seconds,
    }


def _tell(done: int, total: int, text: str) -> None:
    print(json.dumps({"done": done, "total": total, "text": text}), flush=True)


def _end_with_parent() -> None:
    """End this process when its standard input does: its parent is gone."""

    def wait() -> None:
        with contextlib.suppress(OSError, ValueError):
            sys.stdin.buffer.read()
        os._exit(1)

    threading.Thread(target=wait, name="labref-map-parent", daemon=True).start()


def _main() -> None:
    _end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the agent, which then ends this
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
