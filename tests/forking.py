"""Processes of labref that tests start, forked from one that has imported labref already: an agent needs as long to
import what it needs as to do most of what a test wants of it.

A forked process is one of its own, with its own number, signals, streams and exit status; it differs from one that is
started by not having imported anything itself. `tests.fork_server` is the process that they are forked from.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from tests.benchmarks import exports

__all__ = ["forking"]

_ROOT = Path(__file__).parents[1]


class _Server:
    """The process that forks, started when it is first needed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._orders: socket.socket | None = None

    def fork(self, arguments: Sequence[str], environment: Mapping[str, str], folder: Path, files: Sequence[int]) -> int:
        """Have a process forked that does `python -m labref arguments`; its number.

        files : its three streams, and the pipe that gets its exit status.
        """
        order: dict[str, Any] = {"arguments": list(arguments), "environment": dict(environment), "folder": str(folder)}
        with self._lock:
            order["umask"] = os.umask(0)
            os.umask(order["umask"])
            if self._orders is None:
                self._orders, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                with theirs:
                    self._process = subprocess.Popen(
                        [sys.executable, "-m", "tests.fork_server", str(theirs.fileno())],
                        pass_fds=[theirs.fileno()], cwd=_ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                    )  # fmt: skip
            socket.send_fds(self._orders, [json.dumps(order).encode()], list(files))
            answer = self._orders.recv(100)
        assert answer, "the process that forks has ended"
        return int(answer)

    def close(self) -> None:
        with self._lock:
            if self._orders is not None and self._process is not None:
                self._orders.close()
                self._process.wait()


class _Forked(subprocess.Popen[str]):
    """A process that `server` forks; for whoever started it, one like any other."""

    def __init__(self, server: _Server, arguments: Sequence[str], **how: Any) -> None:
        self._server = server
        super().__init__(arguments, **how)

    def _execute_child(  # type: ignore[no-untyped-def]
        self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, startupinfo, creationflags, shell,
        p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite, *_more,
    ) -> None:  # fmt: skip
        self._ended, status = os.pipe()
        try:
            streams = [own if given == -1 else given for own, given in enumerate((p2cread, c2pwrite, errwrite))]
            self.pid = self._server.fork(args, env, cwd, [*streams, status])
            self._child_created = True
        finally:
            os.close(status)
            self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)  # type: ignore[attr-defined]

    def _try_wait(self, flags: int) -> tuple[int, int]:
        """As `os.waitpid`, for a process that is the child of another; the status is that which `_handle_exitstatus`
        takes."""
        if flags and not select.select([self._ended], [], [], 0)[0]:
            return 0, 0
        said = os.read(self._ended, 100)
        os.close(self._ended)
        assert said, "the process that forks has ended: how this one did is not known"
        code = int(said)
        return self.pid, -code if code < 0 else code << 8

    def _internal_poll(self, *_: Any, **__: Any) -> int | None:
        if self.returncode is None and self._waitpid_lock.acquire(False):  # type: ignore[attr-defined]
            with contextlib.ExitStack() as ending:
                ending.callback(self._waitpid_lock.release)  # type: ignore[attr-defined]
                if self.returncode is None:
                    pid, status = self._try_wait(os.WNOHANG)
                    if pid:
                        self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode


@contextmanager
def forking() -> Iterator[None]:
    """Until it ends, `tests.benchmarks.exports.labref_process` has its processes forked. Not where labref is to fail at
    some point, which it reads when it is imported; and on Linux only."""
    if sys.platform != "linux":
        yield
        return
    server, real = _Server(), exports._started

    def started(arguments: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[str]:
        if any(name.startswith("LABREF_FAILPOINTS") for name in environment):
            return real(arguments, environment)
        return _Forked(
            server, arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=_ROOT, env=environment
        )

    try:
        with patch.object(exports, "_started", started):
            yield
    finally:
        server.close()
