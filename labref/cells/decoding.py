"""Pictures decoded in processes of their own, which can be ended: no picture can stop, crash or fill what asks.

    examined = decoder.examine(data)      # as if it were done here; a few tenths of a millisecond more

Bytes that come from outside are decoded by C libraries, where a picture can take minutes, gigabytes or the whole
process with it. So each is handed to a worker process (`labref.cells.decoding_worker`) through a pipe, which also finds
the cell and hashes it, and hands back the crop. A worker that takes too long or too much is killed, and a new one takes
its place; that costs the one picture, by `DecodingLimitError`. Workers are started when they are needed. Of those that
nobody has needed for a minute one is kept.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import pickle
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, cast

from labref.cpus import usable_cpus
from labref.errors import DecodingLimitError, UnreadableImageError
from labref.processes import start_child

if TYPE_CHECKING:
    from labref.cells.examination import Examined, Searched
    from labref.cells.image import U8, CellImage
    from labref.cells.quality import Measured
    from labref.cells.registration import View

__all__ = [
    "HEADER",
    "OUT_OF_MEMORY",
    "WALL_FACTOR",
    "Answer",
    "Decoder",
    "Limits",
    "StoppedError",
    "decoder",
    "is_of_the_moment",
    "names_other_limits",
]

HEADER: Final = struct.Struct(">BQ")
"""Before each message in a pipe: to a worker the length of the task's name, from it an `Answer`; then the bytes that
follow."""
OUT_OF_MEMORY: Final = 41
"""Exit status of a worker to which the system gave no more memory."""
WALL_FACTOR: Final = 3.0
"""A picture is given so many times its processor time by the clock: other work may keep the processors busy."""
_TOO_LONG: Final = "takes too long to decode"
_TOO_MUCH: Final = "takes too much memory to decode"
_CRASHED: Final = "damaged image: the decoder crashed on it"
_WATCH_SECONDS: Final = 0.05
_START_SECONDS: Final = 120.0
_STOPPED_SECONDS: Final = 1.0  # whoever has to end waits so long for a picture that may be done at any moment
_GROW_AFTER: Final = 32  # pictures; with fewer than these one more process would cost more than it brings
_CLOSE_SECONDS: Final = 2.0
_SPARE_SECONDS: Final = 60.0
_LOOK_SECONDS: Final = 1.0  # for workers to spare


@dataclass(frozen=True)
class Limits:
    """What one picture may take.

    seconds : of a processor; `WALL_FACTOR` times as many by the clock.  memory_megabytes : beyond what the process has
    at its start.  megapixels : its size; checked before it is decoded.
    """

    seconds: float
    memory_megabytes: int
    megapixels: float


class Answer:
    """First byte of what a worker sends. READY : it has started.  DONE : the pickled result.  UNREADABLE, LIMIT : the
    reason as text, of an `UnreadableImageError` or a `DecodingLimitError`."""

    READY, DONE, UNREADABLE, LIMIT = range(4)


class StoppedError(Exception):
    """The picture was left undone because whoever asked has to end; nothing is known of it."""


class _EndedError(Exception):
    """The worker ended before it answered. retry : whether the same picture may do better in a new one."""

    def __init__(self, reason: str, *, retry: bool) -> None:
        super().__init__(reason)
        self.retry = retry


class _Worker:
    """One process. For one caller at a time, but for `watch` and `kill`."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.answered = 0
        self.priority = _priority()
        self.free_since = time.monotonic()
        self._lock = threading.Lock()
        self._began: float | None = None
        self._cpu_began: float | None = None
        self._stopped: Callable[[], bool] | None = None
        self._stopping_since: float | None = None
        self._ended_by: _EndedError | StoppedError | None = None
        self._memory = 0
        with tempfile.TemporaryFile() as errors:
            # one thread: the pictures are many, not large
            single = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
            self._process = start_child(
                "labref.cells.decoding_worker", json.dumps(asdict(limits)), errors=errors, environment=single
            )
            timer = threading.Timer(_START_SECONDS, self._process.kill)
            timer.daemon = True
            try:
                timer.start()
                self._receive()
                import psutil  # not needed before a picture is decoded

                self._watched = psutil.Process(self._process.pid)
            except _EndedError as error:
                self.close(0)
                errors.seek(0)
                said = errors.read().decode("utf-8", "replace").strip().splitlines()
                why = f"it was not ready after {_START_SECONDS:.0f} s" if timer.finished.is_set() else str(error)
                raise OSError(f"a decoding process did not start ({said[-1] if said else why})") from None
            except BaseException as error:
                self.close(0)
                if isinstance(error, Exception) and not isinstance(error, OSError):
                    raise _not_started(error) from error
                raise
            finally:
                timer.cancel()
        with contextlib.suppress(psutil.Error):
            self._memory = self._watched.memory_info().rss

    def ask(self, task: str, data: bytes, stopped: Callable[[], bool] | None) -> tuple[int, bytes]:
        """What the worker makes of `data`: an `Answer` and its bytes. Raises `_EndedError` and `StoppedError`, after
        which it is of no more use."""
        with self._lock:
            self._began, self._cpu_began = time.monotonic(), None
            self._stopped, self._stopping_since = stopped, None
        try:
            assert self._process.stdin is not None
            try:
                self._process.stdin.write(HEADER.pack(len(task), len(data)) + task.encode())
                self._process.stdin.write(data)
                self._process.stdin.flush()
            except OSError:  # it ended while it was given the picture
                raise self._end() from None
            answer = self._receive()
        finally:
            with self._lock:
                self._began = None
        self.answered += 1
        return answer

    def _receive(self) -> tuple[int, bytes]:
        assert self._process.stdout is not None
        head = self._process.stdout.read(HEADER.size)
        if len(head) < HEADER.size:
            raise self._end()
        kind, size = HEADER.unpack(head)
        payload = self._process.stdout.read(size)
        if len(payload) < size:
            raise self._end()
        return kind, payload

    def _end(self) -> _EndedError | StoppedError:
        """Why the process is no more."""
        self.close()
        status = self._process.returncode
        with self._lock:
            if self._ended_by is not None:
                return self._ended_by
        if status == OUT_OF_MEMORY:
            return _too_much(self.limits)
        how = f"signal {-status}" if status < 0 else f"exit status {status:#x}" if status > 255 else f"status {status}"
        return _EndedError(f"{_CRASHED} ({how})", retry=True)

    def watch(self, now: float) -> None:
        """Kill the process where its picture takes too long or too much, or nobody may wait for it any more."""
        import psutil

        with self._lock:
            if self._began is None or self._ended_by is not None:
                return
            reason: _EndedError | StoppedError | None = None
            try:
                times, memory = self._watched.cpu_times(), self._watched.memory_info().rss
            except psutil.Error:
                return  # it is ending by itself
            spent = times.user + times.system
            if self._cpu_began is None:
                self._cpu_began = spent
            wall, seconds = now - self._began, self.limits.seconds
            if wall > seconds * WALL_FACTOR or (
                wall > seconds and spent - self._cpu_began > seconds - 2 * _WATCH_SECONDS
            ):
                reason = _EndedError(
                    f"{_TOO_LONG}: more than {seconds:g} s (labref.toml, [decoding] seconds)", retry=False
                )
            elif memory - self._memory > self.limits.memory_megabytes * 1e6:
                reason = _too_much(self.limits)
            elif self._stopped is not None and self._stopped():
                self._stopping_since = self._stopping_since or now
                if now - self._stopping_since > _STOPPED_SECONDS:
                    reason = StoppedError()
            if reason is not None:
                self._ended_by = reason
                self._process.kill()

    def stop(self) -> None:
        """Give up the picture in work, if there is one."""
        with self._lock:
            if self._began is not None and self._ended_by is None:
                self._ended_by = StoppedError()
                self._process.kill()

    @property
    def ended(self) -> bool:
        """Whether `watch` or `stop` has killed the process."""
        with self._lock:
            return self._ended_by is not None

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def close(self, seconds: float = _CLOSE_SECONDS) -> None:
        """End the process, which has no picture: it reads that nothing more comes. After so many seconds it is
        killed."""
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Decoder:
    """Has pictures decoded in worker processes. Safe from any number of threads; each waits for its own picture.

    limits : of each picture.  most : processes at once.
    All methods raise `UnreadableImageError` with a reason fit for the ledger, of which `DecodingLimitError` is the kind
    for pictures that were ended or crashed, and OSError where the system starts no process.
    """

    def __init__(self, limits: Limits, *, most: int | None = None) -> None:
        self.limits = limits
        self._most = most or max(8, 2 * usable_cpus())
        self._changed = threading.Condition()
        self._idle: list[_Worker] = []
        self._busy: set[_Worker] = set()
        self._count = 0
        self._starting = 0
        self._answered = 0  # since the last start
        self._failure: OSError | None = None
        self._watching = False

    def decode(self, data: bytes) -> U8:
        """See `labref.cells.image.decode`."""
        return cast("U8", self._run("decode", data))

    def prepare(self, data: bytes) -> CellImage:
        """See `labref.cells.image.prepare`."""
        return cast("CellImage", self._run("prepare", data))

    def examine(self, data: bytes, *, stopped: Callable[[], bool] | None = None) -> Examined:
        """All that is stored of a cell. stopped : once it says True the picture is given up soon, by `StoppedError`."""
        return cast("Examined", self._run("examine", data, stopped))

    def search(self, data: bytes) -> Searched:
        """The prepared cell and what stored captures of it are found by."""
        return cast("Searched", self._run("search", data))

    def judge(self, data: bytes) -> tuple[CellImage, Measured]:
        """The prepared cell, and what `labref.cells.quality.judge` needs."""
        return cast("tuple[CellImage, Measured]", self._run("judge", data))

    def view(self, data: bytes) -> View:
        """See `labref.cells.sameness.seen`."""
        return cast("View", self._run("view", data))

    def show(self, data: bytes, view: str) -> bytes:
        """A picture for a browser, JPEG or PNG. view : a name in `labref.cells.display.RENDERERS`."""
        return cast("bytes", self._run(f"show {view}", data))

    def warm(self) -> None:
        """Have a process started, without waiting for it, where there is none yet."""
        with self._changed:
            if not self._count:
                self._grow()

    def leave_off(self) -> None:
        """Give up the pictures in work: whoever waits for one gets `StoppedError`."""
        with self._changed:
            busy = list(self._busy)
        for worker in busy:
            worker.stop()

    def close(self) -> None:
        """Give up the pictures in work and end all processes; a call after this starts new ones."""
        self.leave_off()
        with self._changed:
            idle = self._idle.copy()
            self._idle.clear()
            self._count -= len(idle)
        for worker in idle:
            worker.close()

    def _run(self, task: str, data: bytes, stopped: Callable[[], bool] | None = None) -> Any:
        worker = self._take(stopped)
        while True:
            fresh = not worker.answered
            try:
                kind, payload = self._ask(worker, task, data, stopped)
                break
            except _EndedError as error:
                self._lose()
                # it may have been ended from outside, or by what pictures before have left behind
                if fresh or not error.retry:
                    raise DecodingLimitError(str(error)) from None
                worker = self._replace()
            except BaseException:
                worker.close(0)
                self._lose()
                raise
        if worker.ended:  # in the instant after its answer
            worker.close(0)
            self._lose()
        else:
            self._give_back(worker)
        if kind == Answer.DONE:
            return pickle.loads(payload)  # of this labref's own child, which has no other rights than this process
        error_type = DecodingLimitError if kind == Answer.LIMIT else UnreadableImageError
        raise error_type(payload.decode("utf-8", "replace"))

    def _ask(self, worker: _Worker, task: str, data: bytes, stopped: Callable[[], bool] | None) -> tuple[int, bytes]:
        with self._changed:
            if not self._watching:
                try:
                    threading.Thread(target=self._watch, name="labref-decoding", daemon=True).start()
                except RuntimeError as error:  # no more threads; unwatched it could take for ever
                    raise _not_started(error) from error
                self._watching = True
            self._busy.add(worker)
            self._changed.notify_all()  # the watch may look less often
        try:
            return worker.ask(task, data, stopped)
        finally:
            with self._changed:
                self._busy.discard(worker)

    def _watch(self) -> None:
        """Look at the workers, for as long as one is busy or one may become too many."""
        while True:
            now = time.monotonic()
            with self._changed:
                busy, spare = list(self._busy), self._spare(now)
                if not busy and not spare:
                    if self._count < 2:
                        self._watching = False
                        return
                    self._changed.wait(_LOOK_SECONDS)
                    continue
            for worker in busy:
                worker.watch(now)
            for worker in spare:
                worker.close(0)
            time.sleep(_WATCH_SECONDS)

    def _spare(self, now: float) -> list[_Worker]:
        """Take out those that have been free for long; one of the highest priority stays."""
        if not self._idle:
            return []
        kept = min(self._idle, key=lambda worker: (worker.priority, -worker.free_since))
        spare = [worker for worker in self._idle if worker is not kept and now - worker.free_since > _SPARE_SECONDS]
        for worker in spare:
            self._idle.remove(worker)
        self._count -= len(spare)
        return spare

    # the workers

    def _take(self, stopped: Callable[[], bool] | None = None) -> _Worker:
        """A worker that is free and has this thread's priority. Raises `StoppedError` once `stopped` says so."""
        priority, waited_since = _priority(), time.monotonic()
        with self._changed:
            while True:
                found = next((worker for worker in reversed(self._idle) if worker.priority == priority), None)
                if found is not None:
                    self._idle.remove(found)
                    if found.alive:
                        return found
                    found.close()
                    self._count -= 1
                    continue
                if stopped is not None and stopped():
                    raise StoppedError
                if self._failure is not None and not self._starting:
                    failure, self._failure = self._failure, None
                    raise failure
                waiting = time.monotonic() - waited_since > _WATCH_SECONDS or self._answered >= _GROW_AFTER
                others = all(worker.priority != priority for worker in self._busy)
                if not self._starting and (not self._count or others or (waiting and self._count < self._most)):
                    self._grow()
                self._changed.wait(_WATCH_SECONDS)

    def _grow(self) -> None:
        """Start one more in a thread, which has the priority of this one."""
        self._starting += 1
        self._count += 1
        self._answered = 0
        try:
            threading.Thread(target=self._start, name="labref-decoding-start", daemon=True).start()
        except RuntimeError as error:  # no more threads
            self._fail(error)

    def _start(self) -> None:
        try:
            worker = _Worker(self.limits)
        except Exception as error:  # whatever it is, nobody may wait for this process
            self._fail(error)
            return
        with self._changed:
            self._starting -= 1
            worker.free_since = time.monotonic()
            self._idle.append(worker)
            self._changed.notify_all()

    def _fail(self, error: Exception) -> None:
        with self._changed:
            self._failure = _not_started(error)
            self._count -= 1
            self._starting -= 1
            self._changed.notify_all()

    def _replace(self) -> _Worker:
        worker = _Worker(self.limits)
        with self._changed:
            self._count += 1
        return worker

    def _give_back(self, worker: _Worker) -> None:
        with self._changed:
            self._answered += 1
            worker.free_since = time.monotonic()
            self._idle.append(worker)
            self._changed.notify_all()

    def _lose(self) -> None:
        with self._changed:
            self._count -= 1
            self._changed.notify_all()


def _not_started(error: Exception) -> OSError:
    if isinstance(error, OSError):
        return error
    return OSError(f"a decoding process did not start ({type(error).__name__}: {error})")


def _too_much(limits: Limits) -> _EndedError:
    most = limits.memory_megabytes
    return _EndedError(f"{_TOO_MUCH}: more than {most} MB (labref.toml, [decoding] memory_megabytes)", retry=True)


def is_of_the_moment(reason: str) -> bool:
    """Whether a picture may do better another time that was refused for this reason: the computer may have been short
    of memory or time."""
    return reason.startswith((_TOO_LONG, _TOO_MUCH, _CRASHED))


def names_other_limits(reason: str, limits: Limits) -> bool:
    """Whether a picture was refused for this reason by limits other than these."""
    if reason.startswith(_TOO_LONG):
        return f"more than {limits.seconds:g} s " not in reason
    if reason.startswith(_TOO_MUCH):
        return f"more than {limits.memory_megabytes} MB " not in reason
    return " million pixels are decoded" in reason and f"at most {limits.megapixels:g} million" not in reason


def _priority() -> int:
    """The calling thread's. A child begins with it, and must not serve those of higher priority."""
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) if sys.platform == "linux" else 0


@lru_cache
def decoder(limits: Limits) -> Decoder:
    """This process' decoder with these limits; its workers end with the process."""
    made = Decoder(limits)
    atexit.register(made.close)
    return made
