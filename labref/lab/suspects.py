"""Cells that the networks were at work on when an agent died: a crash of ONNX Runtime takes the process with it, and
the next start would meet the same picture again, be it a new one or one that is embedded for another bundle.

Before the networks run, the names of their cells are written to LAB/logs/embedding.json, and taken out when they are
done. What an agent finds there at its start was at work when another crashed: each such cell goes through the networks
alone, after all others, and one that was there again is given up. A file in memory would be lost with the process; one
that is not flushed to the disk outlives it, and after a power cut nobody is to blame. The same holds for a command that
opened the store itself.

An agent that is killed from outside has not crashed. Python's fault handler tells them apart: of a crash (a
segmentation fault, an abort) it writes LAB/logs/crash.txt, of a kill or a power cut it cannot.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from labref.bundles.inference import Described, Embedder, describe_each
from labref.cells.image import U8

__all__ = ["KILLED", "Suspects"]

KILLED: Final = (
    "the agent crashed twice while the networks ran on it (ONNX Runtime?); it is read again when its file changes"
)
"""The reason of a cell that is not tried a third time."""
_MOST_DEATHS: Final = 2


class Suspects:
    """Which cells the networks were at work on when agents crashed. Methods may be called from any thread.

    file : where that is written down; what cannot be read there, or not be written, is nothing known. crash.txt beside
    it is what the fault handler writes; a process that has its own fault handler keeps that, and its crashes count for
    nothing.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._at_work: list[str] = []
        crashes = file.with_name("crash.txt")
        self._deaths = _deaths(file, crashed=_holds_something(crashes))
        self._write()  # what is counted is not counted again
        with contextlib.suppress(OSError):
            crashes.unlink(missing_ok=True)
        if not faulthandler.is_enabled():
            with contextlib.suppress(OSError):
                # open for as long as the process lives; its umask says who may read it
                self._crashes = os.open(crashes, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
                faulthandler.enable(self._crashes, all_threads=False)

    def describe(self, embedder: Embedder, names: Sequence[str], crops: Sequence[U8]) -> list[Described | str]:
        """What the networks say of each cell, or why they say nothing: `KILLED` of one that is not to go through them.

        names : what tells the cells, and what is done with them, from others.  crops : uint8[256, 256, 3]. Raises what
        `describe_each` raises.
        """
        groups, refused = self.order(names)
        described: dict[int, Described | str] = dict.fromkeys(refused, KILLED)
        for group in groups:
            with self.at_work([names[at] for at in group]):
                described |= zip(group, describe_each(embedder, [crops[at] for at in group]), strict=True)
        return [described[at] for at in range(len(names))]

    def order(self, names: Sequence[str]) -> tuple[list[list[int]], list[int]]:
        """The places of `names` in the groups in which they go through the networks, those that are suspected last
        and each alone; and the places of those that are not to."""
        together = [at for at, name in enumerate(names) if name not in self._deaths]
        alone = [[at] for at, name in enumerate(names) if 0 < self._deaths.get(name, 0) < _MOST_DEATHS]
        refused = [at for at, name in enumerate(names) if self._deaths.get(name, 0) >= _MOST_DEATHS]
        return [group for group in (together, *alone) if group], refused

    @contextlib.contextmanager
    def at_work(self, names: Sequence[str]) -> Iterator[None]:
        """The networks are at work on these cells for as long as the block lasts, however it ends but by the process's
        death."""
        with self._lock:
            self._at_work += names
            self._write()
        try:
            yield
        except Exception:
            self._end(names)
            raise
        self._end(names, cleared=True)

    def _end(self, names: Sequence[str], *, cleared: bool = False) -> None:
        with self._lock:
            for name in names:
                self._at_work.remove(name)
                if cleared:
                    self._deaths.pop(name, None)
            self._write()

    def _write(self) -> None:
        text = json.dumps({"at_work": self._at_work, "deaths": self._deaths})
        with contextlib.suppress(OSError):  # a full disk: nothing can be stored either
            descriptor = os.open(self._file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
            with os.fdopen(descriptor, "w", encoding="ascii") as file:
                file.write(text)


def _holds_something(file: Path) -> bool:
    try:
        return file.stat().st_size > 0
    except OSError:
        return False


def _deaths(file: Path, *, crashed: bool) -> dict[str, int]:
    """How often agents crashed while the networks were at work on a cell, by its name. crashed : whether the last one
    did."""
    try:
        found: Any = json.loads(file.read_text(encoding="ascii"))
        deaths = {str(name): int(number) for name, number in found["deaths"].items()}
        at_work = [str(name) for name in found["at_work"]]
        for name in at_work if crashed else ():
            deaths[name] = deaths.get(name, 0) + 1
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}
    return deaths
