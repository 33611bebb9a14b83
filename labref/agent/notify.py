"""What the agent tells systemd (`Type=notify`, sd_notify(3)): that it is ready, at work, or ending."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Final

__all__ = ["tell", "watched"]

_SOCKET: Final = "NOTIFY_SOCKET"


def tell(*lines: str) -> bool:
    """Send lines such as `READY=1`; True where systemd listens. Nothing that goes wrong here ends the agent."""
    where = os.environ.get(_SOCKET, "")
    if not where.startswith(("/", "@")) or not hasattr(socket, "AF_UNIX"):
        return False
    address = f"\0{where[1:]}" if where.startswith("@") else where
    with contextlib.suppress(OSError, ValueError):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
            out.settimeout(1.0)
            out.sendto("\n".join(lines).encode(), address)
        return True
    return False


@contextlib.contextmanager
def watched(at_work: Callable[[], bool]) -> Iterator[None]:
    """Within the block systemd is told that the agent is ready, and, as often as its watchdog asks, that it is at work,
    as long as `at_work` says so: an agent that hangs is ended and started again. At the end of the block, that it ends.
    """
    if not tell("READY=1"):
        yield
        return
    seconds = _seconds_between()
    ended = threading.Event()

    def tell_again() -> None:
        while not ended.wait(seconds):
            if at_work():
                tell("WATCHDOG=1")

    thread = None
    if seconds is not None:
        thread = threading.Thread(target=tell_again, name="labref-watchdog", daemon=True)
        thread.start()
    try:
        yield
    finally:
        ended.set()
        if thread is not None:
            thread.join(5)
        tell("STOPPING=1")


def _seconds_between() -> float | None:
    """Half of what the watchdog allows; None where there is none for this process."""
    asked, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if not asked.isdecimal() or int(asked) == 0 or (pid and pid != str(os.getpid())):
        return None
    return max(int(asked) / 2e6, 0.05)
