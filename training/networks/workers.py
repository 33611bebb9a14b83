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
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from rich.progress import Progress

from training.run import Run, RunError, is_seen

__all__ = ["LOCAL", "REFUSED", "Workers", "check_port", "join", "train_over"]

_FAILURES: Final = 3  # in a row, without a new checkpoint
_SECONDS: Final = 0.2
_WORDS: Final = re.compile(r"^error: |Error: \S|^F\d{4} ")  # labref's, Python's, and those with which JAX aborts
_PROGRAM: Final = ("-m", "training.cli.worker")
REFUSED: Final = 3
"""Exit status of a process whose run cannot be trained, whoever tries."""
LOCAL: Final = "127.0.0.1"
"""Where processes of one computer meet: nobody from outside can."""


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
        if self.coordinator is not None:
            host, _, port = self.coordinator.rpartition(":")
            if not (host and port.isascii() and port.isdecimal() and 0 < int(port) < 65536):
                raise RunError(f"--coordinator is {self.coordinator}; it has to be HOST:PORT, as gpu1.example.org:7711")
        if os.environ.get("KERAS_BACKEND") != "jax":
            raise RunError("several processes train on JAX: KERAS_BACKEND=jax python -m training …")
        return self


def train_over(workers: Workers, run: Run, final: Path, progress: Progress) -> None:
    """Train the classifier of `run` in these processes, until the file `final` is there; the first of them is here. The
    caller holds the run. Raises `RunError` where they fail again and again, or the coordinator's port is in use."""
    from training.networks.classifier import load_crops

    if run.config.classifier.batch_size % workers.count:
        raise RunError(
            f"a batch of {run.config.classifier.batch_size} images cannot be divided among {workers.count} processes; set "
            "classifier.batch_size"
        )
    if workers.coordinator is not None:
        check_port(workers.coordinator)
    images = load_crops(run, progress)
    if images < run.config.classifier.batch_size and images % workers.count:
        raise RunError(
            f"the {images} images to train on are one batch, which cannot be divided among {workers.count} processes; "
            "train with fewer"
        )
    _until(final, workers, run, progress)


def join(workers: Workers, run: Run, progress: Progress) -> None:
    """Have processes of this computer train with those of another, until the classifier is there."""
    _until(run.folder / "classifier.keras", workers, run, progress)


def _until(final: Path, workers: Workers, run: Run, progress: Progress) -> None:
    failures, before = 0, None
    logs = run.folder / "workers"
    while not final.exists():
        since = _empty(logs, workers.numbers)
        with _started(workers, run, progress) as processes:
            ended = _first_end(processes)
        if final.exists() or (ended == 0 and is_seen(final)):
            return
        place = _place(run)
        failures = 1 if place != before else failures + 1
        before = place
        said = _last_words(logs, since)
        if ended == REFUSED or failures >= _FAILURES:
            raise RunError(f"the processes that train ended with {ended}, and cannot go on: {said}. See {logs}.")
        progress.console.print(
            f"a process that trains ended ({ended}); all begin again from the last checkpoint: {said}",
            highlight=False,
            markup=False,
        )


def _place(run: Run) -> str:
    with contextlib.suppress(OSError):
        return (run.folder / "checkpoint.json").read_text(encoding="utf-8")
    return ""


def _empty(logs: Path, numbers: range) -> float:
    """Empty the logs of these processes: when, by the clock of the disk, which other computers may share."""
    logs.mkdir(exist_ok=True)
    return min(_emptied(logs / f"{number}.log") for number in numbers)


def _emptied(log: Path) -> float:
    log.write_bytes(b"")
    return log.stat().st_mtime


def _last_words(logs: Path, since: float) -> str:
    """What the process that ended first said last. since : logs that nobody has written to from then on are of an
    earlier training."""
    times = {file: found.st_mtime for file in logs.glob("*.log") if (found := file.stat()).st_size}
    for file in sorted((file for file, time_ in times.items() if time_ >= since), key=times.__getitem__):
        lines = [line.strip() for line in file.read_text(encoding="utf-8", errors="replace").splitlines()]
        told = [line for line in lines if _WORDS.search(line)]
        if told:
            return f"{file.stem}: {told[-1][:300]}"
    return "none of them said why"


@contextlib.contextmanager
def _started(workers: Workers, run: Run, progress: Progress) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes of this computer, which end with the block."""
    coordinator = workers.coordinator or f"{LOCAL}:{_free_port()}"
    logs = run.folder / "workers"
    processes: list[subprocess.Popen[bytes]] = []
    showing: list[threading.Thread] = []
    try:
        for number in workers.numbers:
            order = [str(run.folder), str(run.data), str(number), str(workers.count), coordinator]
            with (logs / f"{number}.log").open("ab") as log:
                process = subprocess.Popen(
                    [sys.executable, *_PROGRAM, *order],
                    # its standard input ends with this process, and it ends with that
                    stdin=subprocess.PIPE, stdout=log if number else subprocess.PIPE, stderr=log,
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
            if process.stdin is not None:
                process.stdin.close()
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
    with told, contextlib.suppress(OSError):
        for line in told:
            try:
                row = json.loads(line)
            except ValueError:
                continue  # JAX's own words, or half a line of a process that was killed
            if not isinstance(row, dict):
                continue  # a word that happens to be JSON, as a number
            if "say" in row:
                progress.console.print(row["say"], highlight=False, markup=False)
            elif "task" in row:
                # one bar for each task, also where all began again
                task = next((one.id for one in progress.tasks if one.description == row["task"]), None)
                if task is None:
                    task = progress.add_task(row["task"], total=row["total"], info="")
                progress.update(task, completed=row["done"], total=row["total"], info=row["info"])


def check_port(coordinator: str) -> None:
    """Raise `RunError` where the coordinator's port is in use on this computer: JAX would share it with another
    training, and bring together processes of both."""
    port = int(coordinator.rpartition(":")[2])
    with socket.socket() as one:
        if os.name != "nt":  # there it would take a port that is in use
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind(("", port))
        except OSError as error:
            raise RunError(
                f"port {port} of this computer cannot be used: {error.strerror}. Stop what uses it, or name another with "
                "--coordinator, on all computers"
            ) from None


def _free_port() -> int:
    with socket.socket() as one:
        one.bind((LOCAL, 0))
        port: int = one.getsockname()[1]
        return port
