"""Several processes that train one classifier on JAX, on one computer or on several: starting them, watching them, and
beginning anew from the last checkpoint where one ends.

Keras splits each batch over all of their devices (`training.networks.devices`), and each process reads its part of the
cached crops alone. JAX's own coordination (`jax.distributed`) brings them together: it needs no further program, where
Ray would be one to install and to look after on each computer. The folder of the run and its crops have to be seen by
all of them, as on a shared drive.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from rich.progress import Progress

from training.run import Run, RunError

__all__ = ["REFUSED", "Workers", "join", "train_over"]

_FAILURES: Final = 3  # in a row, without a new checkpoint
_SECONDS: Final = 0.2
_PROGRAM: Final = ("-m", "training.cli.worker")
REFUSED: Final = 3
"""Exit status of a process whose run cannot be trained, whoever tries."""


@dataclass(frozen=True)
class Workers:
    """Processes that train together. count : of all.  first, here : those of this computer are so many, from number
    `first` on.  coordinator : "host:port", where number 0 is met; None where all are on this computer."""

    count: int
    first: int = 0
    here: int | None = None
    coordinator: str | None = None

    @property
    def numbers(self) -> range:
        """Of the processes of this computer."""
        return range(self.first, self.first + (self.count if self.here is None else self.here))

    def check(self) -> Workers:
        """Itself. Raises `RunError` where they cannot train."""
        numbers = self.numbers
        if not (numbers and numbers[0] >= 0 and numbers[-1] < self.count):
            raise RunError(
                f"of {self.count} processes, numbers {numbers.start} to {numbers.stop - 1} are none; --first and --here name those "
                "of this computer, counted from 0"
            )
        if self.coordinator is None and len(numbers) < self.count:
            raise RunError(
                "where processes run on several computers, --coordinator HOST:PORT says where the first of them is met: "
                "a name of that computer, and a port that is free there"
            )
        if self.coordinator is not None and not self.coordinator.rpartition(":")[2].isdecimal():
            raise RunError(f"--coordinator is {self.coordinator}; it has to be HOST:PORT, as gpu1.example.org:7711")
        if os.environ.get("KERAS_BACKEND") != "jax":
            raise RunError("several processes train on JAX: KERAS_BACKEND=jax python -m training …")
        return self


def train_over(workers: Workers, run: Run, final: Path, progress: Progress) -> None:
    """Train the classifier of `run` in these processes, until the file `final` is there; the first of them is here. The
    caller holds the run. Raises `RunError` where they fail again and again."""
    from training.networks.classifier import load_crops

    if run.config.classifier.batch_size % workers.count:
        raise RunError(
            f"a batch of {run.config.classifier.batch_size} images cannot be divided among {workers.count} processes; set "
            "classifier.batch_size"
        )
    load_crops(run, progress)
    _until(final, workers, run, progress)


def join(workers: Workers, run: Run, progress: Progress) -> None:
    """Have processes of this computer train with those of another, until the classifier is there."""
    _until(run.folder / "classifier.keras", workers, run, progress)


def _until(final: Path, workers: Workers, run: Run, progress: Progress) -> None:
    failures, before = 0, None
    while not final.exists():
        with _started(workers, run, progress) as processes:
            ended = _first_end(processes)
        if final.exists():
            return
        place = _place(run)
        failures = 1 if place != before else failures + 1
        before = place
        logs = run.folder / "workers"
        if ended == REFUSED or failures >= _FAILURES:
            raise RunError(
                f"the processes that train ended with {ended}, and cannot go on: {_last_words(logs)}. See {logs}."
            )
        progress.console.print(
            f"a process that trains ended ({ended}); all begin again from the last checkpoint: {_last_words(logs)}",
            highlight=False,
            markup=False,
        )


def _place(run: Run) -> str:
    with contextlib.suppress(OSError):
        return (run.folder / "checkpoint.json").read_text(encoding="utf-8")
    return ""


def _last_words(logs: Path) -> str:
    """What the process that ended first said last."""
    files = sorted((file for file in logs.glob("*.log") if file.stat().st_size), key=lambda file: file.stat().st_mtime)
    for file in files:
        lines = [line.strip() for line in file.read_text(encoding="utf-8", errors="replace").splitlines()]
        told = [line for line in lines if line.startswith(("error:", "RunError", "ValueError")) or "Error:" in line]
        if told:
            return f"{file.stem}: {told[-1][:300]}"
    return "none of them said why"


@contextlib.contextmanager
def _started(workers: Workers, run: Run, progress: Progress) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes of this computer, which end with the block."""
    coordinator = workers.coordinator or f"127.0.0.1:{_free_port()}"
    logs = run.folder / "workers"
    logs.mkdir(exist_ok=True)
    processes: list[subprocess.Popen[bytes]] = []
    showing: list[threading.Thread] = []
    try:
        for number in workers.numbers:
            order = [str(run.folder), str(run.data), str(number), str(workers.count), coordinator]
            with (logs / f"{number}.log").open("wb") as log:
                process = subprocess.Popen(
                    [sys.executable, *_PROGRAM, *order],
                    stdin=subprocess.DEVNULL, stdout=log if number else subprocess.PIPE, stderr=log,
                    start_new_session=True,
                )  # fmt: skip
            processes.append(process)
            if process.stdout is not None:
                showing.append(threading.Thread(target=_show, args=(process.stdout, progress), daemon=True))
                showing[-1].start()
        yield processes
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()
        for thread in showing:
            thread.join()


def _first_end(processes: list[subprocess.Popen[bytes]]) -> int:
    """Wait until all have ended well, or one has not: its exit status."""
    while True:
        found = [process.poll() for process in processes]
        if wrong := [status for status in found if status]:
            return wrong[0]
        if all(status == 0 for status in found):
            return 0
        time.sleep(_SECONDS)


def _show(told: IO[bytes], progress: Progress) -> None:
    """Show what the first process tells of its training."""
    tasks: dict[str, Any] = {}
    with told, contextlib.suppress(OSError):
        for line in told:
            try:
                row = json.loads(line)
            except ValueError:
                continue  # JAX's own words, or half a line of a process that was killed
            if "say" in row:
                progress.console.print(row["say"], highlight=False, markup=False)
                continue
            task = tasks.get(row["task"])
            if task is None:
                task = tasks[row["task"]] = progress.add_task(row["task"], total=row["total"], info="")
            progress.update(task, completed=row["done"], info=row["info"])


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port
