"""A day of an analyser, in minutes: what an agent does to memory, open files, threads and the ledger as hours go by.

    python -m tests.benchmarks.soak --minutes 20 --json
    python -m tests.benchmarks.soak --minutes 20 --hours 6 --json
    python -m tests.benchmarks.soak --minutes 68 --hours 720 --pace 20 --running-clock --json

An analyser exports cells of ../shared/data (drawn ones where that is absent), copies, recaptures, cells that move from
unsigned to signed, files that are written in two parts, and mutated pictures (`tests.benchmarks.mutations`), as fast as
the agent takes them in, after 70 cells that were there before: so the hours that a lab would have needed are
`simulated_hours`, at an analyser's pace of 200 files an hour (--pace); with --hours the files of no more hours come,
evenly. With --running-clock the agent's clock goes through these hours too, so that what it does once a day is done as
often.

Meanwhile people ask. At set shares of the time the agent is ended and killed and started anew, its clock jumps by days,
forwards and back, maps are trained, another bundle is activated and the first one again, and a backup is made. Three
times, or three times a week, the share goes (in some cases an empty folder stands in its place) and comes, and the
lab's disk (a small ext4 file system, where this system lets it mount one) is really full.

Three agents live; what grows is looked for in the one that lived longest, after the first tenth of the time. Memory is
that of the agent and of the processes in which it decodes pictures. Equal states are compared: while the bundle is
changed the networks of two are open, so samples of then are left out of what grows, and told beside it (`changing`).
Of the others the median of the last tenth may be `_MOST_MEMORY_MB` above that of the first, and `_MOST_KB_A_CELL` more
for each cell stored meanwhile, which the lab keeps in memory; a line through all would be bent by where the samples
that are left out lie. A change that does not end in time is a fault of its own. Open files and threads of the last
tenth may be a few more than those of the first. In the end the agent is asked to end, two passes are made, and the
ledger is checked: each file that is in the export has one outcome, each image one cell with its bytes and one latent,
and the second pass finds nothing to do.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import math
import os
import random
import shutil
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil
from PIL import Image

from labref.bundles.bundle import install, starter_bundle
from labref.cells.image import decode
from labref.demo.analyser import Source
from labref.errors import LabrefError
from labref.lab import Lab
from labref.web import desk
from tests.benchmarks.exports import REPOSITORY, choose_source, labref_process, tell
from tests.benchmarks.mutations import Original, mutate, originals
from tests.benchmarks.small_disks import SmallDisk, mount_for_oneself
from tests.bundles import another

__all__ = ["main", "soak"]

_FILES_AN_HOUR: Final = 200
_WEEK: Final = 168.0  # hours
_BEFORE: Final = 70  # cells are in the export when the first agent starts: a map needs 64
_MOST_SECONDS: Final = 5400.0  # what happens may last longer than the time, on a computer with other work
_OUTSTANDING: Final = 24  # files without an outcome, before the analyser waits
_SAMPLE_SECONDS: Final = 2.0
_ASK_SECONDS: Final = 5.0
_FIRST: Final = 0.1  # of the time
_MOST_MEMORY_MB: Final = 64.0
_MOST_KB_A_CELL: Final = 40.0
_MOST_FILES: Final = 8
_MOST_THREADS: Final = 3
_LEAST_SAMPLES: Final = 20
_LEAST_MINUTES: Final = 5.0  # of a run in which growth is judged: what starts takes memory
_DISK_MEGABYTES: Final = 768
_IDLE_SECONDS: Final = 5.0  # after which an agent has taken in what it will: there was room on the full disk
_PATIENCE_SECONDS: Final = 900.0  # of an event, on a computer with other work
_DAY: Final = 86_400.0
_QUICK: Final[dict[str, Any]] = {"stable_seconds": 0.2, "complete_seconds": 0.4, "poll_seconds": 2.0}

_AGENT: Final = """
import mmap, struct, sys, time
import datetime as module

with open(sys.argv.pop(1), "r+b") as file:
    offset = mmap.mmap(file.fileno(), 8)
real, clock = module.datetime, time.time

class Clock(type):
    def __instancecheck__(cls, value):
        return isinstance(value, real)

    def __getattr__(cls, name):
        return getattr(real, name)

class Shifted(metaclass=Clock):
    def __new__(cls, *arguments, **named):
        return real(*arguments, **named)

    @staticmethod
    def now(zone=None):
        return real.now(zone) + module.timedelta(seconds=struct.unpack("d", offset[:])[0])

time.time = lambda: clock() + struct.unpack("d", offset[:])[0]
import importlib

for name in sys.argv.pop(1).split():
    importlib.import_module(name).datetime = Shifted
kept = sys.argv.pop(1)
if kept:
    from pathlib import Path
    from labref.bundles.bundle import Bundle
    from tests.remembered import remembering

    starter, answers = map(Path, kept.split("\\n"))
    remembering(Bundle.open(starter), answers).__enter__()
from labref.cli import main
main()
"""
"""The `labref` command whose clock is ahead by as many seconds as stand in a file. DuckDB's and the system's go on.
Where two folders are named, of the starter and of answers, its networks remember (`tests.remembered`)."""


_SAME_PRIORITY: Final = """
import os

os.nice = lambda _: 0
os.setpriority = lambda *_: None
"""
"""In an agent and its children: background work has the priority of the agent, and no other program goes before it."""

_READ_THE_CLOCK: Final = (
    "labref.asking.answer",
    "labref.asking.drift",
    "labref.asking.room",
    "labref.lab.backups",
    "labref.store.duckdb.rows",
    "labref.tasks.jobs",
    "labref.tasks.mapping",
    "labref.tasks.retention_job",
    "labref.times",
)
"""Modules of the agent whose clock jumps; `time.time` does in all."""


@dataclass
class _Sample:
    at: float  # share of the time
    own_mb: float
    decoding_mb: float
    processes: int  # that decode
    is_changing: bool  # the bundle
    files: int
    threads: int
    cells: int

    @property
    def memory_mb(self) -> float:
        return self.own_mb + self.decoding_mb


@dataclass
class _Day:
    """All that happened. samples : of each agent, by its number."""

    samples: dict[int, list[_Sample]] = field(default_factory=dict)
    events: Counter[str] = field(default_factory=Counter)
    took: dict[str, list[float]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    written: Counter[str] = field(default_factory=Counter)
    asked: int = 0
    not_answered: int = 0


class _Analyser:
    """Writes the files of an analyser. `write` is one file, or one change of a file, and says what it was."""

    def __init__(self, export: Path, source: Source, choices: list[Original], rng: random.Random) -> None:
        self.export, self._source, self._choices, self._rng = export, source, choices, rng
        self._unsigned: list[Path] = []
        self._last: list[bytes] = []
        self._number = 0

    def write(self) -> str:
        what = self._rng.random()
        if what < 0.12 and self._last:
            self._put(self._rng.choice(self._last))
            return "copy"
        if what < 0.22 and self._last:
            self._put(_recaptured(self._rng.choice(self._last), self._rng))
            return "recapture"
        if what < 0.32 and self._unsigned:
            moved = self._unsigned.pop(self._rng.randrange(len(self._unsigned)))
            target = self.export / "patient 1" / "Signed slides" / "Monocyte" / moved.name
            target.parent.mkdir(parents=True, exist_ok=True)
            moved.rename(target)
            return "signed"
        if what < 0.47:
            original, data = mutate(self._rng, self._choices)
            self._put(data, "." + original.kind.lower())
            return "mutated"
        if what < 0.52:
            data = self._cell()
            path = self._put(data[: len(data) // 3])
            with path.open("ab") as file:
                file.write(data[len(data) // 3 :])
            return "in two parts"
        self.write_cell()
        return "cell"

    def write_cell(self) -> int:
        """One more cell."""
        data = self._cell()
        path = self._put(data)
        if self._rng.random() < 0.5:
            self._unsigned.append(path)
        self._last = [*self._last[-40:], data]
        return 1

    def _cell(self) -> bytes:
        for specimen in self._source.take(1):
            return specimen.data
        # all were exported: one of them again, a little different, is another picture
        return _recaptured(self._rng.choice(self._last), self._rng)

    def _put(self, data: bytes, suffix: str = ".jpg") -> Path:
        self._number += 1
        slide = self._number // 100 + 1
        path = self.export / f"patient {slide % 7}" / "Unsigned slides" / f"S{slide:03d}_{self._number:05d}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path


def _recaptured(data: bytes, rng: random.Random) -> bytes:
    with Image.open(io.BytesIO(data)) as opened:
        pixels = np.asarray(opened.convert("RGB"), np.float32)
    moved = np.roll(pixels, (rng.randint(-2, 2), rng.randint(-2, 2)), (0, 1)) * rng.uniform(0.98, 1.02)
    file = io.BytesIO()
    Image.fromarray(np.clip(moved, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=rng.randint(85, 93))
    return file.getvalue()


class _Soak:
    def __init__(
        self,
        folder: Path,
        seed: int,
        minutes: float,
        images: Path | None,
        *,
        same_priority: bool,
        hours: float | None = None,
        pace: float = _FILES_AN_HOUR,
        running_clock: bool = False,
        remember: bool = False,
    ) -> None:
        self.rng, self.day = random.Random(seed), _Day()
        self._folder, self._minutes = folder, minutes
        self._files = math.inf if hours is None else hours * pace
        self._runs_for = hours * 3600.0 if hours is not None and running_clock else 0.0  # seconds, of its clock
        self._weeks = max(1, round((hours or 0.0) / _WEEK))
        self._jumped = 0.0  # seconds by which the clock is wrong
        source, self.source = choose_source(images, seed)
        # no sound copies among what is mutated: a picture of 64 pixels is no cell that a lab has twice
        few = [decode(specimen.data) for specimen in choose_source(images, seed + 1)[0].take(3)]
        self._site = folder / "site" if same_priority else None
        if self._site is not None:
            self._site.mkdir()
            (self._site / "sitecustomize.py").write_text(_SAME_PRIORITY, encoding="utf-8")
        export = folder / "export"
        export.mkdir()
        self.analyser = _Analyser(export, source, originals(few), self.rng)
        self._clock = folder / "clock"
        self._clock.write_bytes(struct.pack("d", 0.0))
        why_not = mount_for_oneself()
        self.disk: SmallDisk | None = None
        place = folder / "disk"
        place.mkdir()
        if why_not is None:
            try:
                self.disk = SmallDisk(folder / "image", place, megabytes=_DISK_MEGABYTES)
            except OSError as error:
                why_not = str(error)
        if why_not is not None:
            self.day.skipped["full disk"] = why_not
        starter = install(starter_bundle(), folder / "starter")
        self._remembered = f"{starter.folder}\n{folder / 'answers'}" if remember else ""
        self.other = another(starter, folder)
        self.lab = Lab.create(place / "lab", [export])
        self.agent: subprocess.Popen[str] | None = None
        self._agents = 0
        self._watched: psutil.Process | None = None
        self._cells = 0
        self._is_changing = False
        self._sampled = self._asked = 0.0
        self._began = time.monotonic()

    # time

    @property
    def at(self) -> float:
        """Share of the time that is over."""
        return (time.monotonic() - self._began) / (60 * self._minutes)

    def run(self) -> None:
        events = self._events()
        for _ in range(_BEFORE):
            self.day.written["cell"] += self.analyser.write_cell()
        self._start()
        self._until(lambda: self._waiting() <= 0, "the cells of before")
        self._began = time.monotonic()
        try:
            while self.at < 1 or (events and time.monotonic() - self._began < _MOST_SECONDS):
                while events and events[0][0] <= self.at:
                    _, name, do = events.pop(0)
                    self._happen(name, do)
                self._go_on()
            for _, name, _ in events:
                self.day.faults.append(f"{name} did not happen: the time was over")
        finally:
            self._end()
        self._settle()

    def _go_on(self, *, export: bool = True) -> None:
        """A moment of the day: a sample, a question, some files."""
        now = time.monotonic()
        if now - self._sampled > _SAMPLE_SECONDS:
            self._sampled = now
            self._sample()
        if now - self._asked > _ASK_SECONDS:
            self._asked = now
            self._ask()
        if self._runs_for:
            self._set_clock(self._jumped)
        due = _BEFORE + self._files * self.at
        if export and sum(self.day.written.values()) < due and self._waiting() < _OUTSTANDING:
            for _ in range(4):
                self.day.written[self.analyser.write()] += 1
        else:
            time.sleep(0.3)

    def _happen(self, name: str, do: Callable[[], None]) -> None:
        began = time.monotonic()
        try:
            do()
            self.day.events[name] += 1
            self.day.took.setdefault(name, []).append(round(time.monotonic() - began, 1))
        except Exception as error:
            self.day.faults.append(f"{name} at {self.at:.0%}: {type(error).__name__}: {error}")

    def _events(self) -> list[tuple[float, str, Callable[[], None]]]:
        """What happens, when (share of the time), in order."""
        events: list[tuple[float, str, Callable[[], None]]] = [
            (0.02, "restart", lambda: self._restart(signal.SIGTERM)),
            (0.05, "kill", lambda: self._restart(signal.SIGKILL)),
            (0.15, "map", self._train_map),
            (0.25, "clock ahead", lambda: self._set_clock(3 * _DAY)),
            (0.32, "clock right", lambda: self._set_clock(0.0)),
            (0.35, "bundle", lambda: self._activate("other")),
            (0.47, "map", self._train_map),
            (0.60, "clock behind", lambda: self._set_clock(-2 * 3600.0)),
            (0.66, "clock right", lambda: self._set_clock(0.0)),
            (0.68, "bundle back", lambda: self._activate("starter")),
            (0.80, "map", self._train_map),
            (0.86, "backup", self._back_up),
        ]
        weeks = [(week + share) / self._weeks for week in range(self._weeks) for share in (0.20, 0.42, 0.75)]
        events += [(at, "share lost and back", self._lose_share) for at in weeks]
        if self.disk is not None:
            weeks = [(week + share) / self._weeks for week in range(self._weeks) for share in (0.12, 0.55, 0.83)]
            events += [(at, "full disk", self._fill_disk) for at in weeks]
        return sorted(events, key=lambda event: event[0])

    # the agent

    def _start(self) -> None:
        self._agents += 1
        environment = {name: value for name, value in os.environ.items() if not name.startswith("LABREF_")}
        environment |= {f"LABREF_WATCH__{name.upper()}": str(value) for name, value in _QUICK.items()}
        if self._site is not None:
            paths = [str(self._site), environment.get("PYTHONPATH", "")]
            environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        self.agent = subprocess.Popen(
            [
                sys.executable,
                "-c",
                _AGENT,
                str(self._clock),
                " ".join(_READ_THE_CLOCK),
                self._remembered,
                "agent",
                "--json",
                "--lab",
                str(self.lab.folder),
            ],
            stdout=subprocess.PIPE,
            stderr=(self._folder / f"agent-{self._agents}.txt").open("w"),
            text=True,
            cwd=REPOSITORY,
            env=environment,
        )
        assert self.agent.stdout is not None
        ready = self.agent.stdout.readline()
        if '"ready"' not in ready:
            raise RuntimeError(f"the agent did not start: {self._said()}")
        self._watched = psutil.Process(self.agent.pid)

    def _said(self) -> str:
        return (self._folder / f"agent-{self._agents}.txt").read_text(encoding="utf-8", errors="replace")[-400:]

    def _end(self, how: int = signal.SIGTERM) -> None:
        if self.agent is None:
            return
        self.agent.send_signal(how)
        try:
            code = self.agent.wait(120)
        except subprocess.TimeoutExpired:
            self.day.faults.append("the agent did not end within two minutes")
            self.agent.kill()
            code = self.agent.wait()
        if how == signal.SIGTERM and code != 0:
            self.day.faults.append(f"the agent ended with {code}: {self._said()}")
        assert self.agent.stdout is not None
        self.agent.stdout.close()
        self.agent = None

    def _restart(self, how: int) -> None:
        self._end(how)
        self._start()

    def _status(self) -> dict[str, Any]:
        try:
            found = desk.status(self.lab)
            self._is_changing = found["bundle_change"] is not None
            return found
        except LabrefError as error:
            if self.agent is not None and self.agent.poll() is not None:
                code, self.agent = self.agent.returncode, None
                self.day.faults.append(f"the agent ended by itself with {code} at {self.at:.0%}: {self._said()}")
                self._start()
            return {"agent": None, "error": str(error)}

    def _waiting(self) -> int:
        """Files that the analyser wrote and the agent has not taken in; many where that cannot be said."""
        found = self._status()
        if not found.get("outcomes"):
            return _OUTSTANDING if self.day.written else 0
        self._cells = found["cells"]
        return sum(1 for path in self.analyser.export.rglob("*.*") if path.is_file()) - self._here(found)

    def _here(self, found: dict[str, Any]) -> int:
        # files that moved are in the ledger twice, at the old path and the new one
        taken: int = sum(found["outcomes"].values())
        return taken - self.day.written["signed"]

    def _sample(self) -> None:
        if self._watched is None:
            return
        with contextlib.suppress(psutil.Error):
            decoding = []
            for child in self._watched.children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if "decoding_worker" in " ".join(child.cmdline()):
                        decoding.append(child.memory_info().rss / 1e6)
            sample = _Sample(
                self.at,
                self._watched.memory_info().rss / 1e6,
                sum(decoding),
                len(decoding),
                self._is_changing,
                self._watched.num_fds(),
                self._watched.num_threads(),
                self._cells,
            )
            self.day.samples.setdefault(self._agents, []).append(sample)

    def _ask(self) -> None:
        self.day.asked += 1
        try:
            answer = desk.ask(self.lab, self.analyser._cell(), name="a cell")
            if self._cells > 20 and len(answer["references"]) != 8:
                self.day.faults.append(f"{len(answer['references'])} references at {self.at:.0%}")
        except LabrefError as error:
            self.day.not_answered += 1
            if self.disk is None or "space" not in str(error):
                self.day.faults.append(f"a question at {self.at:.0%}: {error}")

    # what happens

    def _until(self, true: Callable[[], bool], what: str, *, export: bool = False) -> None:
        """Wait for it. Meanwhile people ask. export : new files come as well, as fast as they are taken in, until the
        time is over."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not true():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{what} not within {_PATIENCE_SECONDS:.0f} s")
            self._go_on(export=export and self.at < 1)

    def _train_map(self) -> None:
        # the agent trains maps by itself as well, and may begin just before this one
        for tries_left in reversed(range(5)):
            self._until(lambda: not self._works_on("map"), "no map in training")
            try:
                for _ in desk.run(self.lab, "map.train", rows=12, columns=12):
                    pass
                return
            except LabrefError:
                if not tries_left:
                    raise

    def _works_on(self, job: str) -> bool:
        jobs = (self._status().get("agent") or {}).get("jobs") or {"running": None, "waiting": []}
        return job in jobs["waiting"] or (jobs["running"] or {}).get("name") == job

    def _set_clock(self, wrong: float) -> None:
        """wrong : seconds by which the clock is ahead of what it is to be."""
        self._jumped = wrong
        gone = min(1.0, self.at) * max(0.0, self._runs_for - 60.0 * self._minutes)
        with self._clock.open("r+b") as file:
            file.write(struct.pack("d", wrong + gone))

    def _activate(self, name: str) -> None:
        if name == "other" and not any(row.get("name") == name for row in desk.run(self.lab, "bundle.list")):
            for _ in desk.run(self.lab, "bundle.install", file=str(self.other), unsigned=True):
                pass
        for _ in desk.run(self.lab, "bundle.activate", bundle=name, yes=True, leave_out=True):
            pass
        self._until(lambda: self._status().get("bundle", {}).get("name") == name, f"bundle {name} in use", export=True)

    def _lose_share(self) -> None:
        export, away = self.analyser.export, self.analyser.export.with_name("away")
        export.rename(away)
        if self.rng.random() < 0.5:
            export.mkdir()  # the mount point of a share that is not mounted
        before = sum(self._status().get("outcomes", {}).values())
        deadline = time.monotonic() + 3 * _QUICK["poll_seconds"]
        while time.monotonic() < deadline and not any(
            row["how"] == "missing" for row in self._status().get("watch") or []
        ):
            time.sleep(0.3)
        with contextlib.suppress(FileNotFoundError):
            export.rmdir()
        away.rename(export)
        if sum(self._status().get("outcomes", {}).values()) < before:
            raise RuntimeError("outcomes are gone")
        self._until(lambda: self._waiting() < _OUTSTANDING, "files taken in after the share was back")

    def _fill_disk(self) -> None:
        assert self.disk is not None
        with self.disk.full(self.rng.choice((0, 20_000, 400_000))):
            for _ in range(12):
                self.day.written[self.analyser.write()] += 1
            deadline, busy = time.monotonic() + 60, time.monotonic()
            while time.monotonic() < deadline and time.monotonic() - busy < _IDLE_SECONDS:
                agent = self._status().get("agent") or {}
                if agent.get("problem"):
                    self.day.events["full disk told of"] += 1
                    break
                if agent.get("waiting") or agent.get("in_flight"):
                    busy = time.monotonic()
                time.sleep(0.3)
        self._until(lambda: self._status().get("agent") is not None, "the agent's answer")
        self._until(lambda: not self._status()["agent"]["problem"], "an agent that goes on")
        self._until(lambda: self._waiting() < _OUTSTANDING, "files taken in after there was room")

    def _back_up(self) -> None:
        for _ in desk.run(self.lab, "store.backup", target=str(self._folder / "backup")):
            pass

    # the end

    def _settle(self) -> None:
        """Two passes, and the ledger."""
        self._set_clock(0.0)
        for _ in range(2):
            process = labref_process("agent", "--once", "--json", "--lab", self.lab.folder, **_QUICK)
            out, err = process.communicate()
            if process.returncode:
                self.day.faults.append(f"the last pass ended with {process.returncode}: {err.strip()[-300:]}")
                return
        summary = json.loads(out)
        if summary["embedded"] or summary["found"] != summary["unchanged"]:
            self.day.faults.append(f"the second pass found something to do: {summary}")
        files = {str(path): path for path in self.analyser.export.rglob("*.*") if path.is_file()}
        with self.lab.open_store() as store:
            rows = list(store.ledger())
            paths = Counter(row.path for row in rows)
            here = [row for row in rows if row.path in files]
            if twice := [path for path, n in paths.items() if n > 1]:
                self.day.faults.append(f"{len(twice)} files have two outcomes")
            if lost := files.keys() - paths.keys():
                self.day.faults.append(f"{len(lost)} files have no outcome, as {sorted(lost)[:2]}")
            digests = {
                hashlib.sha256(files[row.path].read_bytes()).hexdigest() for row in here if row.outcome != "rejected"
            }
            stored = store.digests().keys()
            if missing := digests - stored:
                self.day.faults.append(f"{len(missing)} images are no cells")
            if strange := stored - digests:
                self.day.faults.append(f"{len(strange)} cells have no file")
            self.cells, self.files = len(stored), len(files)
            self.outcomes = Counter(
                str(row.outcome.value if hasattr(row.outcome, "value") else row.outcome) for row in here
            )
        checked = list(desk.run(self.lab, "ledger.check", digests=True))
        self.day.faults += [
            f"{row['count']} x {row['fault']}: {row['examples'][:2]}" for row in checked if "fault" in row
        ]
        if not checked[-1].get("ok"):
            self.day.faults.append(f"the ledger's check: {checked[-1]}")

    def growth(self) -> dict[str, Any]:
        """Of the agent that lived longest, from the first tenth of the time to the end."""
        lived = [one for one in max(self.day.samples.values(), key=len) if one.at >= _FIRST]
        samples = [one for one in lived if not one.is_changing]
        changing = [one.memory_mb for one in lived if one.is_changing]
        if len(samples) < _LEAST_SAMPLES:
            return {"samples": len(samples)}
        part = max(2, len(samples) // 10)
        early, late = samples[:part], samples[-part:]
        of_early, of_late = (statistics.median(one.memory_mb for one in some) for some in (early, late))
        rise = of_late - of_early
        new_cells = samples[-1].cells - samples[0].cells
        allowed = _MOST_MEMORY_MB + _MOST_KB_A_CELL * max(0, new_cells) / 1000
        files = round(statistics.median(one.files for one in late) - statistics.median(one.files for one in early))
        threads = round(
            statistics.median(one.threads for one in late) - statistics.median(one.threads for one in early)
        )
        is_long = self._minutes >= _LEAST_MINUTES
        if is_long and rise > allowed:
            self.day.faults.append(f"memory rose by {rise:.0f} MB, {allowed:.0f} are allowed")
        if is_long and files > _MOST_FILES:
            self.day.faults.append(f"{files} more open files")
        if is_long and threads > _MOST_THREADS:
            self.day.faults.append(f"{threads} more threads")
        return {
            "samples": len(samples),
            "memory_mb": {
                "early": round(of_early, 1),
                "late": round(of_late, 1),
                "most": round(max(one.memory_mb for one in samples), 1),
                "rise": round(rise, 1),
                "allowed": round(allowed, 1),
                "changing": round(max(changing), 1) if changing else None,
            },
            "agent_mb": [round(statistics.median(one.own_mb for one in some), 1) for some in (early, late)],
            "course_mb": _course(lived),
            "decoding_mb": [round(statistics.median(one.decoding_mb for one in some), 1) for some in (early, late)],
            "decoding_processes": max(one.processes for one in lived),
            "cells_meanwhile": new_cells,
            "open_files": {"late": late[-1].files, "more": files, "allowed": _MOST_FILES},
            "threads": {"late": late[-1].threads, "more": threads, "allowed": _MOST_THREADS},
        }

    def remove(self) -> None:
        if self.disk is not None:
            self.disk.remove()


def soak(
    folder: Path,
    *,
    minutes: float,
    seed: int,
    images: Path | None = None,
    same_priority: bool = False,
    hours: float | None = None,
    pace: float = _FILES_AN_HOUR,
    running_clock: bool = False,
    remember: bool = False,
) -> dict[str, Any]:
    """Run it in `folder`, an empty folder. Returns the figures; `faults` is empty where all is well.

    hours : of an analyser's work, whose files come; None for as many files as are taken in.  pace : files an hour.
    running_clock : whether the agent's clock goes through these hours.
    same_priority : background work has the priority of the agent.
    remember : each picture is shown to the starter's trunk by one agent, and by none that comes after, nor for another
    bundle with that trunk; what grows is then not that of a lab.
    """
    started = time.monotonic()
    day = _Soak(
        folder, seed, minutes, images, same_priority=same_priority, hours=hours, pace=pace, running_clock=running_clock,
        remember=remember,
    )  # fmt: skip
    try:
        day.run()
    finally:
        day.remove()
    growth = day.growth()
    written = sum(day.day.written.values())
    return {
        "minutes": minutes,
        "seconds": round(time.monotonic() - started, 1),
        "simulated_hours": round(written / pace, 1),
        "files_an_hour": pace,
        "running_clock": running_clock,
        "written": dict(day.day.written),
        "events": dict(day.day.events),
        "seconds_of_events": day.day.took,
        "skipped": day.day.skipped,
        "agents": day._agents,
        "questions": day.day.asked,
        "questions_on_a_full_disk": day.day.not_answered,
        "files": getattr(day, "files", None),
        "cells": getattr(day, "cells", None),
        "outcomes": dict(getattr(day, "outcomes", {})),
        "growth": growth,
        "source": day.source,
        "seed": seed,
        "same_priority": same_priority,
        "faults": day.day.faults,
        "ok": not day.day.faults,
    }


def _course(samples: list[_Sample]) -> dict[str, tuple[float, float]]:
    """Medians of the memory of the agent and of its decoding processes in each twentieth of the time: a step tells of
    an event, a slope of a leak."""
    parts: dict[int, list[_Sample]] = {}
    for one in samples:
        parts.setdefault(int(20 * one.at), []).append(one)
    return {
        f"{part / 20:.0%}": (
            round(statistics.median(one.own_mb for one in some), 1),
            round(statistics.median(one.decoding_mb for one in some), 1),
        )
        for part, some in sorted(parts.items())
    }


@contextmanager
def _scratch(keep: Path | None) -> Iterator[Path]:
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="labref-soak-", dir=keep))
    try:
        yield folder
    finally:
        if keep is None:
            shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    """Run the benchmark. Returns 1 where there are faults."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20.0, help="how long the analyser works (default 20)")
    parser.add_argument("--hours", type=float, help="of an analyser (default: as many files as are taken in)")
    parser.add_argument("--pace", type=float, default=_FILES_AN_HOUR, help="files an hour (default 200)")
    parser.add_argument("--running-clock", action="store_true", help="the agent's clock goes through --hours")
    parser.add_argument("--seed", type=int, default=1, help="of everything (default 1)")
    parser.add_argument("--images", type=Path, help="folder of images (default ../shared/data/pbc, else drawn cells)")
    parser.add_argument("--keep", type=Path, help="folder in which what the agents said is left")
    parser.add_argument(
        "--same-priority",
        action="store_true",
        help="background work has the agent's priority: beside other programs, which else go before it",
    )
    parser.add_argument("--remember", action="store_true", help="show no picture to the starter's trunk twice")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    with _scratch(options.keep) as folder:
        figures = soak(
            folder,
            minutes=options.minutes,
            seed=options.seed,
            images=options.images,
            same_priority=options.same_priority,
            hours=options.hours,
            pace=options.pace,
            running_clock=options.running_clock,
            remember=options.remember,
        )
    tell(figures, as_json=options.json)
    return 0 if figures["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
