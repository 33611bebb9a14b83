"""Child processes of this very labref."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO, Any, Final

__all__ = ["end_with_parent", "lower_own_priority", "start_child"]

_NICENESS: Final = 10


def start_child(
    module: str,
    *arguments: str,
    errors: IO[Any] | int,
    low_priority: bool = False,
    environment: dict[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start `python -m module arguments`, with pipes to its standard input and from its standard output.

    errors : where its standard error goes.  low_priority : on Windows; elsewhere a child has the priority of the thread
    that starts it and can lower it itself.  environment : variables over those of this process. Raises OSError.
    """
    flags = 0
    if sys.platform == "win32":
        flags = subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW
        flags |= subprocess.BELOW_NORMAL_PRIORITY_CLASS if low_priority else 0
    root = Path(__file__).parents[1]  # of this very labref, wherever the parent was started
    paths = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
        [sys.executable, "-P", "-m", module, *arguments],  # -P: nothing is imported from the folder where it starts
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        creationflags=flags,
        env=os.environ | {"PYTHONPATH": paths} | (environment or {}),
    )


def end_with_parent() -> None:
    """In a child: end this process when its standard input ends, as its parent is then gone."""

    def wait() -> None:
        with contextlib.suppress(OSError, ValueError):
            sys.stdin.buffer.read()
        os._exit(1)

    threading.Thread(target=wait, name="labref-parent", daemon=True).start()


def lower_own_priority() -> None:
    """Let other programs of this computer go before this process and all that it starts from here on, where the system
    allows it."""
    with contextlib.suppress(OSError):
        if sys.platform == "win32":
            import ctypes

            kernel = ctypes.windll.kernel32
            kernel.SetPriorityClass(kernel.GetCurrentProcess(), subprocess.BELOW_NORMAL_PRIORITY_CLASS)
        else:
            os.nice(max(0, _NICENESS - os.nice(0)))
