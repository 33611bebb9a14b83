"""Damaged and malicious pictures, given to the very processes in which the agent has pictures decoded.

    python -m tests.benchmarks.mutated --images 100000 --seed 1 --json
    python -m tests.benchmarks.mutated --images 1000000 --seed 1 --state mutated.json --json

Cells of ../shared/data (drawn ones where that is absent) are written small as JPEG, PNG, BMP and TIFF of many kinds,
and changed (`tests.benchmarks.mutations`). A picture's number and the seed say what it is. Each goes through
`labref.cells.decoding` with the limits that a lab has by default: a crop is made of it, and of every eighth all that
is stored of a cell. Right is a sound crop, or a rejection of labref's own with a reason that can be printed. Faults
are: an exception that nobody foresaw (in the decoding process, or here), a decoder that crashed, a picture that hangs,
a decoding process that makes something else of a sound picture than it did, and memory, files or threads that grow.

A picture may wait long by the clock where other work has the processors. So one that was slow, or was ended as such, is
asked again alone, up to three times, and it is measured how long it had a processor, and on Linux how long it waited
for one. It hangs where each time it did neither for most of the time until it was ended, or had more than the limit.

--state : file that counts are kept in, from which the next run goes on (after a kill, some pictures of the last seconds
again); with another seed or other limits it is refused.  --again : the pictures of faults in it are asked again first,
alone; those that are right now are `settled`; what had grown is looked for anew.  --seconds : ends after so many, with
`ok` false where pictures are left.  --keep : folder for the pictures of faults.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil

from labref.cells.decoding import _TOO_LONG, WALL_FACTOR, Decoder, Limits
from labref.cells.image import CellImage, decode
from labref.config import DecodingConfig
from labref.cpus import usable_cpus
from labref.errors import UnreadableImageError
from labref.files import replace_file
from labref.printing import printable
from tests.benchmarks.exports import choose_source, tell
from tests.benchmarks.mutations import Original, mutate, originals

__all__ = ["main", "run"]

_CELLS: Final = 6
_ALL_OF_IT: Final = 8  # of so many pictures one is examined, of the others a crop is made
_SOUND_EVERY: Final = 1000  # pictures, after which a sound one is decoded again
_SAMPLE_SECONDS: Final = 5.0
_TRIES: Final = 3
_OVER_SECONDS: Final = 0.5  # of a processor, by which a picture may miss the limit either way
_LOOK_SECONDS: Final = 0.05
_ASLEEP: Final = 2.0  # so many times what it had and waited for a processor
_LONGEST_REASON: Final = 300
_MOST_FAULTS: Final = 100  # are listed
_LEAST_SAMPLES: Final = 30  # of a process, before its memory is judged
_MOST_GROWTH_MB: Final = 48.0
_MOST_NEW_FILES: Final = 4
_CRASHED: Final = "damaged image: the decoder crashed"
_FOREIGN: Final = "damaged image: cannot be used ("


@dataclass
class Tally:
    """What is kept from run to run. seconds : by the clock, of all runs.  reasons : numbers in them left out.
    slowest_seconds : by the clock.  asked_again : pictures, alone.  ended_by_limit : so many of these, rightly.
    settled : faults that were none when asked again."""

    seed: int
    limits: dict[str, float]
    done: int = 0
    seconds: float = 0.0
    decoded: int = 0
    rejected: int = 0
    by_format: dict[str, dict[str, int]] = field(default_factory=dict)
    reasons: dict[str, int] = field(default_factory=dict)
    slowest_seconds: float = 0.0
    asked_again: int = 0
    ended_by_limit: int = 0
    most_processor_seconds: float = 0.0
    most_growth_mb: float = 0.0
    most_memory_mb: float = 0.0
    faults: int = 0
    listed: list[dict[str, Any]] = field(default_factory=list)
    settled: list[dict[str, Any]] = field(default_factory=list)


class _Watch:
    """Memory, files and threads of this process, and memory of those that decode, a sample every few seconds."""

    def __init__(self) -> None:
        self._looked = time.monotonic()
        self._memory: dict[int, list[float]] = {}
        self._own: list[tuple[int, int]] = []
        self._process = psutil.Process()

    def sample(self) -> None:
        self._own.append((self._process.num_fds() if os.name == "posix" else 0, self._process.num_threads()))
        self._note([self._process])

    def look(self, decoder: Decoder) -> None:
        """A sample of the processes that have no picture: on a busy computer one has a large picture for long."""
        if time.monotonic() - self._looked > _SAMPLE_SECONDS:
            self._looked = time.monotonic()
            self._note([worker._watched for worker in list(decoder._idle)])

    def _note(self, processes: Sequence[psutil.Process]) -> None:
        for one in processes:
            with contextlib.suppress(psutil.Error):  # it has ended
                self._memory.setdefault(one.pid, []).append(one.memory_info().rss / 1e6)

    def growth_mb(self) -> float:
        """Of the process that grew most, after the first fifth of its samples: the least of the last fifth against that
        of the second."""
        grown = [0.0]
        for samples in self._memory.values():
            if len(samples) >= _LEAST_SAMPLES:
                part = len(samples) // 5
                grown.append(min(samples[-part:]) - min(samples[part : 2 * part]))
        return max(grown)

    def most_memory_mb(self) -> float:
        return max((max(samples) for samples in self._memory.values()), default=0.0)

    def new_files_and_threads(self) -> tuple[int, int]:
        if len(self._own) < _LEAST_SAMPLES:
            return 0, 0
        part = len(self._own) // 5
        early, late = self._own[part : 2 * part], self._own[-part:]
        return (
            max(files for files, _ in late) - max(files for files, _ in early),
            max(threads for _, threads in late) - max(threads for _, threads in early),
        )


class _Run:
    def __init__(
        self, tally: Tally, until: int, choices: Sequence[Original], limits: Limits, keep: Path | None
    ) -> None:
        self.tally, self._until, self._choices, self._limits, self._keep = tally, until, choices, limits, keep
        self.decoder = Decoder(limits, most=max(2, usable_cpus()))
        self.watch = _Watch()
        self._lock = threading.Lock()
        self._turn = threading.Condition()
        self._beside, self._alone = 0, False
        self._next = tally.done
        self._sound = [one for one in choices if one.name.endswith(" 0") and "two colours" not in one.name]
        self._crops: dict[str, bytes] = {}
        self.ended = threading.Event()

    def work(self) -> None:
        """Take pictures until there are no more. One thread of several."""
        while not self.ended.is_set():
            with self._lock:
                number = self._next
                if number >= self._until:
                    return
                self._next += 1
            original, data = self._picture(number)
            with self._among_others():
                if number % _SOUND_EVERY == 0:
                    self._require_sound(number)
                was_slow = self._try(number, original, data)
                with self._lock:
                    self.watch.look(self.decoder)
            if was_slow:
                wrong = self._hangs(number, data)
                if wrong:
                    self._fault(number, original, data, wrong)

    def ask_again(self) -> None:
        """Ask the pictures of the faults that are listed again, alone, before `work`."""
        left: list[dict[str, Any]] = []
        for fault in self.tally.listed:
            number = fault.get("number")
            _, data = self._picture(number or 0)
            wrong = number is None or _ask(self.decoder, number, data)[2] or self._hangs(number, data)
            (left if wrong else self.tally.settled).append(fault)
        self.tally.faults -= len(self.tally.listed) - len(left)
        self.tally.listed = left
        self.tally.most_growth_mb = 0.0

    def _picture(self, number: int) -> tuple[Original, bytes]:
        return mutate(random.Random((self.tally.seed << 40) + number), self._choices)

    @contextmanager
    def _among_others(self) -> Iterator[None]:
        with self._turn:
            self._turn.wait_for(lambda: not self._alone)
            self._beside += 1
        try:
            yield
        finally:
            with self._turn:
                self._beside -= 1
                self._turn.notify_all()

    @contextmanager
    def _as_only_one(self) -> Iterator[None]:
        with self._turn:
            self._turn.wait_for(lambda: not self._alone)
            self._alone = True
            self._turn.wait_for(lambda: not self._beside)
        try:
            yield
        finally:
            with self._turn:
                self._alone = False
                self._turn.notify_all()

    def _hangs(self, number: int, data: bytes) -> str:
        """Ask a picture that was slow again, while nothing else is asked. Returns what is wrong with it, or nothing."""
        wrong, had, ended = "", 0.0, False
        with self._as_only_one():
            for _ in range(_TRIES):
                had, waited, took, reason = self._measured(number, data)
                ended = reason.startswith(_TOO_LONG)
                slept = ended and took > _ASLEEP * (had + waited)
                if not slept and had <= self._limits.seconds + _OVER_SECONDS:
                    wrong = ""
                    break
                wrong = f"it hangs: of {took:.1f} s it had a processor for {had:.1f} and waited for one {waited:.1f}"
        with self._lock:
            self.tally.asked_again += 1
            self.tally.ended_by_limit += ended and not wrong
            self.tally.most_processor_seconds = round(max(self.tally.most_processor_seconds, had), 2)
        return wrong

    def _measured(self, number: int, data: bytes) -> tuple[float, float, float, str]:
        """A picture by a process of its own: seconds in which that had a processor and waited for one, seconds by the
        clock, and the reason."""
        decoder = Decoder(self._limits, most=1)
        reasons: list[str] = []
        try:
            while not decoder._idle:  # until one has started, and loaded what it needs
                with contextlib.suppress(UnreadableImageError):
                    decoder.prepare(self._sound[0].data)
            process = decoder._idle[0]._watched
            before = last = _processor_seconds(process)
            began = time.monotonic()
            asking = threading.Thread(target=lambda: reasons.append(_ask(decoder, number, data)[1]))
            asking.start()
            while asking.is_alive():
                with contextlib.suppress(psutil.Error, OSError):  # it is gone: as when it was last looked at
                    last = _processor_seconds(process)
                asking.join(_LOOK_SECONDS)
            return last[0] - before[0], last[1] - before[1], time.monotonic() - began, reasons[0]
        finally:
            decoder.close()

    def _require_sound(self, number: int) -> None:
        one = self._sound[number // _SOUND_EVERY % len(self._sound)]
        try:
            crop = self.decoder.prepare(one.data).crop.tobytes()
        except UnreadableImageError as error:
            if "not enough image data" not in str(error):
                self._fault(number, one, one.data, f"a sound picture was rejected: {error}")
            return
        with self._lock:
            first = self._crops.setdefault(one.name, crop)
        if crop != first:
            self._fault(number, one, one.data, "a sound picture became another crop than before")

    def _try(self, number: int, original: Original, data: bytes) -> bool:
        """Ask a picture, and count what came of it. Returns whether it was slow."""
        began = time.monotonic()
        outcome, reason, wrong = _ask(self.decoder, number, data)
        took = time.monotonic() - began
        with self._lock:
            tally = self.tally
            tally.done += 1
            tally.decoded += outcome == "decoded"
            tally.rejected += outcome == "rejected"
            _count(tally.by_format.setdefault(original.kind, {}), outcome)
            if reason:
                _count(tally.reasons, re.sub(r"\d+(\.\d+)?(e[+-]?\d+)?", "N", reason)[:80])
            tally.slowest_seconds = round(max(tally.slowest_seconds, took), 2)
        if wrong:
            self._fault(number, original, data, wrong)
        return took > self._limits.seconds * WALL_FACTOR or reason.startswith(_TOO_LONG)

    def _fault(self, number: int, original: Original, data: bytes, what: str) -> None:
        with self._lock:
            self.tally.faults += 1
            if len(self.tally.listed) < _MOST_FAULTS:
                self.tally.listed.append({"number": number, "from": original.name, "bytes": len(data), "fault": what})
        print(f"picture {number}, from {original.name}: {what}", file=sys.stderr, flush=True)
        if self._keep is not None:
            self._keep.mkdir(parents=True, exist_ok=True)
            (self._keep / f"{self.tally.seed}-{number}.{original.kind.lower()}").write_bytes(data)


def _ask(decoder: Decoder, number: int, data: bytes) -> tuple[str, str, str]:
    """The outcome, the reason of a rejection, and what is wrong with it; the last two may be empty."""
    outcome, reason, wrong = "decoded", "", ""
    try:
        wrong = _unsound(decoder.examine(data) if number % _ALL_OF_IT == 0 else decoder.prepare(data))
    except UnreadableImageError as error:
        outcome, reason = "rejected", str(error)
        if reason.startswith((_CRASHED, _FOREIGN)):
            wrong = reason
        elif not reason or reason != printable(reason) or "\n" in reason or len(reason) > _LONGEST_REASON:
            wrong = f"not a reason to print: {reason[:_LONGEST_REASON]!r}"
    except Exception as error:
        outcome, reason = "failed", type(error).__name__
        wrong = f"{type(error).__name__}: {error}"
    return outcome, reason, wrong


def _processor_seconds(process: psutil.Process) -> tuple[float, float]:
    """For how long the process had a processor, and on Linux for how long its first thread waited for one."""
    times, waited = process.cpu_times(), 0.0
    if sys.platform == "linux":
        waited = int(Path(f"/proc/{process.pid}/schedstat").read_text(encoding="ascii").split()[1]) / 1e9
    return times.user + times.system, waited


def _count(counts: dict[str, int], name: str) -> None:
    counts[name] = counts.get(name, 0) + 1


def _unsound(made: Any) -> str:
    """What is wrong with a crop that was made, empty where nothing is."""
    if made.crop.shape != (256, 256, 3) or made.crop.dtype != np.uint8:
        return f"a crop of {made.crop.dtype}{list(made.crop.shape)}"
    if isinstance(made, CellImage):
        numbers = [*made.centre, *made.background]
    else:
        numbers = [*made.measures.tolist(), *(value for value in asdict(made.judged_by).values() if value is not None)]
    flat = np.concatenate([np.ravel(np.asarray(value, dtype=np.float64)) for value in numbers])
    return "" if np.isfinite(flat).all() else "numbers of the cell that are not finite"


def run(
    images: int,
    *,
    seed: int,
    limits: Limits | None = None,
    state: Path | None = None,
    keep: Path | None = None,
    cells: Path | None = None,
    seconds: float | None = None,
    again: bool = False,
) -> dict[str, Any]:
    """Try the first `images` pictures of this seed; returns the figures. seconds : stop after so many, at the latest.
    again : ask the pictures of faults in `state` again first.

    Raises ValueError where `state` is of another seed or other limits.
    """
    allowed = DecodingConfig()
    limits = limits or Limits(allowed.seconds, allowed.memory_megabytes, allowed.megapixels)
    tally = Tally(seed, asdict(limits))
    if state is not None and state.exists():
        tally = Tally(**json.loads(state.read_text(encoding="utf-8")))
        if (tally.seed, tally.limits) != (seed, asdict(limits)):
            raise ValueError(f"{state} is of seed {tally.seed} and the limits {tally.limits}")
    source, what = choose_source(cells, seed)
    choices = originals([decode(specimen.data) for specimen in source.take(_CELLS)])
    work = _Run(tally, images, choices, limits, keep)
    watch = work.watch
    if again:
        work.ask_again()
    began, before = time.monotonic(), tally.seconds
    threads = [threading.Thread(target=work.work, name=f"pictures-{n}") for n in range(max(2, usable_cpus()))]
    for thread in threads:
        thread.start()
    try:
        while any(thread.is_alive() for thread in threads):
            next(thread for thread in threads if thread.is_alive()).join(_SAMPLE_SECONDS)
            watch.sample()
            spent = time.monotonic() - began
            if seconds is not None and spent > seconds:
                work.ended.set()
            _save(work, before + spent, watch, state)
    finally:
        work.ended.set()
        for thread in threads:
            thread.join()
        work.decoder.close()
    _save(work, before + time.monotonic() - began, watch, state)
    files, more_threads = watch.new_files_and_threads()
    if tally.most_growth_mb > _MOST_GROWTH_MB or files > _MOST_NEW_FILES or more_threads > 1:
        tally.faults += 1
        tally.listed.append(
            {"fault": f"grown by {tally.most_growth_mb:.0f} MB, {files} open files, {more_threads} threads"}
        )
    figures = asdict(tally)
    figures |= {
        "originals": len(choices),
        "source": what,
        "pictures_a_second": round(tally.done / max(tally.seconds, 1e-9), 1),
        "reasons": dict(sorted(tally.reasons.items(), key=lambda item: -item[1])),
        "growth_limit_mb": _MOST_GROWTH_MB,
        "ok": not tally.faults and tally.done >= images,
    }
    return figures


def _save(work: _Run, seconds: float, watch: _Watch, state: Path | None) -> None:
    tally = work.tally
    with work._lock:
        tally.seconds = round(seconds, 1)
        tally.most_growth_mb = round(max(tally.most_growth_mb, watch.growth_mb()), 1)
        tally.most_memory_mb = round(max(tally.most_memory_mb, watch.most_memory_mb()), 1)
        text = json.dumps(asdict(tally))
    if state is not None:
        replace_file(state, text.encode())


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns 1 where there are faults, or pictures are left."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000, help="pictures (default 10000)")
    parser.add_argument("--seed", type=int, default=1, help="of the pictures (default 1)")
    parser.add_argument("--state", type=Path, help="file of the counts, to go on from")
    parser.add_argument("--keep", type=Path, help="folder for the pictures of faults")
    parser.add_argument("--cells", type=Path, help="folder of cells (default ../shared/data/pbc, else drawn ones)")
    parser.add_argument("--seconds", type=float, help="stop after so many")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--again", action="store_true", help="ask the pictures of faults again first")
    chosen = parser.parse_args(arguments)
    figures = run(
        chosen.images,
        seed=chosen.seed,
        state=chosen.state,
        keep=chosen.keep,
        cells=chosen.cells,
        seconds=chosen.seconds,
        again=chosen.again,
    )
    tell(figures, as_json=chosen.json)
    return 0 if figures["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
