"""Long work of the agent, one job at a time, in a thread of low priority: re-embedding, map training, housekeeping."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from labref.errors import LabrefError
from labref.heap import give_back
from labref.lab.log import Log
from labref.times import utc, utc_now

__all__ = ["Job", "Jobs", "Running", "lower_priority"]

_STOP_SECONDS: Final = 60.0
_NICENESS: Final = 15


class Running:
    """The state of a running job: whether it is asked to stop, and how far it has come."""

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop
        self.done, self.total, self.text = 0, 0, ""

    @property
    def stopped(self) -> bool:
        """True once the job is asked to stop. It then keeps what it has finished; a later job continues from there."""
        return self._stop.is_set()

    def wait(self, seconds: float) -> bool:
        """Sleep for `seconds`, or until the job is asked to stop; returns `stopped`."""
        return self._stop.wait(seconds)

    def report(self, done: int, total: int, text: str = "") -> None:
        """Set how far the job has come: `done` of `total`. text : shown in `status`; it must name no patient."""
        self.done, self.total, self.text = done, total, text


@dataclass(frozen=True)
class Job:
    """Work with a name. work : does it; it looks at `Running.stopped` at least every second, and raises where it
    fails."""

    name: str
    work: Callable[[Running], None]


class Jobs:
    """The agent's jobs. Of each name at most one job waits or runs. A failure is shown in `status` and logged; it does
    not stop other jobs."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._stop = threading.Event()
        self._changed = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._current: tuple[Job, Running, datetime] | None = None
        self._ended: dict[str, dict[str, Any]] = {}
        self._thread = threading.Thread(target=self._run, name="labref-jobs", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> bool:
        """Queue a job. Returns False where a job of this name waits or runs already, or the queue is closed."""
        with self._changed:
            if self._stop.is_set() or self.has(job.name):
                return False
            self._waiting.append(job)
            self._changed.notify_all()
            return True

    def has(self, name: str) -> bool:
        """Whether a job of this name waits or runs."""
        with self._changed:
            running = self._current is not None and self._current[0].name == name
            return running or any(job.name == name for job in self._waiting)

    def failed_within(self, name: str, wait: timedelta) -> bool:
        """Whether the latest job of this name failed, less than `wait` ago. It would most likely fail again at once."""
        with self._changed:
            ended = self._ended.get(name)
        if ended is None or ended["outcome"] != "failed":
            return False
        return abs(datetime.now(UTC) - datetime.fromisoformat(ended["at"])) < wait  # the clock may have been ahead

    def wait_idle(self, seconds: float) -> bool:
        """Wait until no job waits or runs. Returns False where that takes longer than `seconds`."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting and self._current is None, seconds)

    def status(self) -> dict[str, Any]:
        """`running` {name, done, total, text, started_at} or null, `waiting` [name], `ended` {name: {at, outcome,
        message}} with outcome "done", "stopped" or "failed"."""
        with self._changed:
            running = None
            if self._current is not None:
                job, state, started = self._current
                running = {
                    "name": job.name,
                    "done": state.done,
                    "total": state.total,
                    "text": state.text,
                    "started_at": utc(started, timespec="seconds"),
                }
            return {"running": running, "waiting": [job.name for job in self._waiting], "ended": dict(self._ended)}

    def close(self) -> None:
        """Ask the running job to stop, and wait up to 60 seconds for it. Waiting jobs are dropped."""
        self._stop.set()
        with self._changed:
            self._waiting.clear()
            self._changed.notify_all()
        self._thread.join(_STOP_SECONDS)

    def _run(self) -> None:
        lower_priority()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._stop.is_set())
                if self._stop.is_set():
                    return
                job, running = self._waiting.popleft(), Running(self._stop)
                self._current = (job, running, datetime.now(UTC))
            outcome, message = "done", None
            try:
                job.work(running)
                if running.stopped:
                    outcome = "stopped"
            except LabrefError as error:
                outcome, message = "failed", str(error)
            except Exception as error:  # a job's fault must not end the agent; its message may name a file
                outcome, message = "failed", f"it met {type(error).__name__}; see the log"
                self._log.error("a job failed", job=job.name, error=type(error).__name__)
            give_back()
            with self._changed:
                self._ended[job.name] = {"at": utc_now(), "outcome": outcome, "message": message}
                self._current = None
                self._changed.notify_all()
            self._log.info("job ended", job=job.name, outcome=outcome)


def lower_priority() -> None:
    """Lower the priority of this thread. Linux and Windows can do this for one thread; elsewhere nothing is changed."""
    with contextlib.suppress(OSError, AttributeError):
        if sys.platform == "linux":
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
        elif sys.platform == "win32":
            import ctypes

            kernel = ctypes.windll.kernel32
            kernel.SetThreadPriority(kernel.GetCurrentThread(), -2)
