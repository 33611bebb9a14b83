"""Places where a test can have labref killed, failed or slowed: at each write, flush, rename and commit.

Nothing happens at them unless the environment variable LABREF_FAILPOINTS is set when labref starts (or `arm` is
called): a comma-separated list of `POINT=ACTION@N`, each done once, when the point is met for the N-th time. POINT is a
name, a prefix with `*` ("image.*"), or `*` for all of them counted together. ACTION is

    kill            the process ends at once, with exit status 97, as if it were killed: nothing is flushed or closed
    enospc, eio     OSError with that errno, as the operating system says a full disk or a broken one
    delay:SECONDS   the process goes on after so many seconds

LABREF_FAILPOINTS_LOG names a file to which each point met is appended, a line each, so that a test knows them.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

__all__ = ["KILLED", "arm", "disarm", "failpoint"]

KILLED: Final = 97
"""Exit status of a process that a failpoint killed."""
_ERRNO: Final = {"enospc": errno.ENOSPC, "eio": errno.EIO}


@dataclass
class _Trap:
    matches: Callable[[str], bool]
    action: str
    left: int
    """how many more times the point has to be met"""


class _Armed:
    def __init__(self, traps: list[_Trap], log: str | None) -> None:
        self._traps, self._log, self._lock = traps, log, threading.Lock()

    def met(self, name: str, may_fail: bool) -> None:
        due: list[str] = []
        with self._lock:
            if self._log:
                with open(self._log, "a", encoding="ascii") as file:  # noqa: PTH123
                    file.write(name + "\n")
            for trap in self._traps:
                if trap.left > 0 and trap.matches(name) and (may_fail or trap.action not in _ERRNO):
                    trap.left -= 1
                    if trap.left == 0:
                        due.append(trap.action)
        for action in due:
            _act(name, action)


_armed: _Armed | None = None


def failpoint(name: str, *, may_fail: bool = True) -> None:
    """Do what was asked for at this place, "area.what"; by default nothing.

    may_fail : False where the operating system cannot fail the program, such as between a commit and what follows it;
    there only kills and delays happen.
    """
    if _armed is not None:
        _armed.met(name, may_fail)


def arm(plan: str, log: str | None = None) -> None:
    """Set the traps of `plan`, written as LABREF_FAILPOINTS, in place of those set before. log : file of points met.

    Raises ValueError where the plan cannot be read.
    """
    global _armed
    traps = [_parse(entry.strip()) for entry in plan.split(",") if entry.strip()]
    _armed = _Armed(traps, log) if traps or log else None


def disarm() -> None:
    """Set all traps aside."""
    global _armed
    _armed = None


def _parse(entry: str) -> _Trap:
    try:
        point, _, what = entry.partition("=")
        action, _, count = what.partition("@")
        left = int(count or "1")
        seconds = float(action.removeprefix("delay:")) if action.startswith("delay:") else 0.0
        if (
            not point
            or left < 1
            or seconds < 0
            or (not action.startswith("delay:") and action not in ("kill", *_ERRNO))
        ):
            raise ValueError
    except ValueError:
        raise ValueError(f"LABREF_FAILPOINTS: {entry!r} is not POINT=kill|enospc|eio|delay:SECONDS@N") from None
    if point.endswith("*"):
        prefix = point[:-1]
        return _Trap(lambda name: name.startswith(prefix), action, left)
    return _Trap(lambda name: name == point, action, left)


def _act(name: str, action: str) -> None:
    if action == "kill":
        os._exit(KILLED)
    if action in _ERRNO:
        raise OSError(_ERRNO[action], f"{os.strerror(_ERRNO[action])} (failpoint {name})")
    time.sleep(float(action.removeprefix("delay:")))


arm(os.environ.get("LABREF_FAILPOINTS", ""), os.environ.get("LABREF_FAILPOINTS_LOG"))
