"""Processes of labref that tests start, forked from one that has imported labref already: an agent needs as long to
import what it needs as to do most of what a test wants of it.

A forked process is one of its own, with its own number, signals, streams and exit status; it differs from one that is
started by not having imported anything itself, and by what `tests.remembered` keeps. The places where it is to fail are
set as labref sets them when it is imported. `tests.fork_server` is the process that they are forked from. The processes
in which the tests and forked agents have pictures decoded, bundles tried and maps trained are forked from it too;
`starting` ends that for a file of tests that is about such a process. Processes that train on JAX are forked from one
that has imported what trains (`forking_training`).
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from labref import processes
from labref.bundles import trial
from labref.bundles.bundle import Bundle
from labref.cells import decoding
from labref.som import child_process
from tests.benchmarks import exports

__all__ = ["fork_workers", "forking", "forking_training", "starting"]

_ROOT = Path(__file__).parents[1]


class _Server:
    """The process that forks, started when it is first needed, with the environment of now.

    words : what `tests.fork_server` is told.  variables : of its environment, over those of now.
    """

    def __init__(self, *words: str | Path, **variables: str) -> None:
        self.closed = False
        self._words = [str(word) for word in words]
        self._environment = os.environ | variables
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._orders: socket.socket | None = None

    def fork(self, order: dict[str, Any], files: Sequence[int]) -> int:
        """Have a process forked as `order` says, but for its umask; its number. With the priority of the calling
        thread, as a child has.

        order, files : see `tests.fork_server`.
        """
        order = order | {"priority": os.getpriority(os.PRIO_PROCESS, threading.get_native_id())}
        with self._lock:
            umask = os.umask(0)
            os.umask(umask)
            if self._orders is None:
                self._orders, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                with theirs:
                    self._process = subprocess.Popen(
                        [sys.executable, "-m", "tests.fork_server", str(theirs.fileno()), *self._words],
                        pass_fds=[theirs.fileno()], cwd=_ROOT, env=self._environment,
                        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                    )  # fmt: skip
            return _ask(self._orders, order | {"umask": umask}, files)

    def close(self) -> None:
        self.closed = True
        with self._lock:
            if self._orders is not None and self._process is not None:
                self._orders.close()
                self._process.wait()


def _ask(orders: socket.socket, order: dict[str, Any], files: Sequence[int]) -> int:
    socket.send_fds(orders, [json.dumps(order).encode()], list(files))
    answer = orders.recv(100)
    assert answer, "the process that forks has ended"
    return int(answer)


class _Caller:
    """In a process that was forked: asks the one that forked it, at `address`, to fork another."""

    closed = False

    def __init__(self, address: str) -> None:
        self._address = address

    def fork(self, order: dict[str, Any], files: Sequence[int]) -> int:
        """As `_Server.fork`; with the priority of the calling thread, as a child has."""
        priority = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as orders:
            orders.connect(self._address)
            return _ask(orders, order | {"umask": 0o077, "priority": priority}, files)


class _Forked(subprocess.Popen[Any]):
    """A process that `server` forks; for whoever started it, one like any other. It does `python -m module
    arguments`, or `python -c code arguments`."""

    def __init__(
        self, server: _Server | _Caller, module: str, arguments: Sequence[str], *, code: str | None = None, **how: Any
    ) -> None:
        self._server, self._does = server, {"module": module} if code is None else {"code": code}
        super().__init__(arguments, **how)

    def _execute_child(  # type: ignore[no-untyped-def]
        self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, startupinfo, creationflags, shell,
        p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite, *_more,
    ) -> None:  # fmt: skip
        self._ended, status = os.pipe()
        try:
            streams = [own if given == -1 else given for own, given in enumerate((p2cread, c2pwrite, errwrite))]
            order = {**self._does, "arguments": list(args), "environment": dict(env), "folder": str(cwd)}
            self.pid = self._server.fork(order, [*streams, status])
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
        assert said or self._server.closed, "the process that forks has ended: how this one did is not known"
        code = int(said or 0)
        return self.pid, -code if code < 0 else code << 8

    def _internal_poll(self, _deadstate: int | None = None, **_: Any) -> int | None:
        if _deadstate is not None and self.returncode is None:
            # nobody has it any more, or this process ends: the one that forks may have ended before
            with contextlib.suppress(AssertionError, OSError):
                return self._look()
            self.returncode = _deadstate
        return self._look()

    def _look(self) -> int | None:
        if self.returncode is None and self._waitpid_lock.acquire(False):  # type: ignore[attr-defined]
            with contextlib.ExitStack() as ending:
                ending.callback(self._waitpid_lock.release)  # type: ignore[attr-defined]
                if self.returncode is None:
                    pid, status = self._try_wait(os.WNOHANG)
                    if pid:
                        self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode


@contextmanager
def forking(starter: Bundle, answers: Path) -> Iterator[None]:
    """Until it ends, the processes of `tests.benchmarks.exports` and those of this process' labref are forked; on Linux
    only.

    starter, answers : see `tests.remembered.remembering`.
    """
    if sys.platform != "linux":
        yield
        return
    server = _Server(starter.folder, answers)
    try:
        with patch.object(exports, "_started", _started(server)), contextlib.ExitStack() as patched:
            for module in _STARTING:
                patched.enter_context(patch.object(module, "start_child", _start_child(server)))
            yield
    finally:
        server.close()


@contextmanager
def forking_training() -> Iterator[Callable[..., subprocess.Popen[Any]]]:
    """What starts `python -c code arguments` until it ends, on JAX, as `subprocess.Popen([sys.executable, "-c", code,
    *arguments], **how)` does, with the environment `how["env"]`; on Linux forked from one process that has imported
    JAX, Keras and TensorFlow, which takes 6 s of a core."""
    server = _Server(KERAS_BACKEND="jax", TF_CPP_MIN_LOG_LEVEL="3")

    def started(words: Sequence[str], **how: Any) -> subprocess.Popen[Any]:
        python, option, code, *arguments = words
        assert (python, option) == (sys.executable, "-c")
        if sys.platform != "linux":
            return subprocess.Popen(words, cwd=_ROOT, **how)
        return _Forked(server, "", arguments, code=code, cwd=_ROOT, **how)

    try:
        yield started
    finally:
        server.close()


_STARTING: tuple[Any, ...] = (decoding, trial, child_process)
"""Modules that start processes of labref."""


@contextmanager
def starting() -> Iterator[None]:
    """Until it ends, this process' labref starts its processes as ever."""
    with contextlib.ExitStack() as patched:
        for module in _STARTING:
            patched.enter_context(patch.object(module, "start_child", processes.start_child))
        yield


def fork_workers(address: str) -> None:
    """From now on this process, and those that are forked from it, have labref's processes forked by the one that
    listens at `address`."""
    vars(exports)["_started"] = _started(_Caller(address))
    for module in _STARTING:
        vars(module)["start_child"] = _start_child(_Caller(address))


def _started(server: _Server | _Caller) -> Any:
    """What stands in for `tests.benchmarks.exports._started`."""

    def started(module: str, arguments: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[str]:
        return _Forked(
            server, module, arguments,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=_ROOT, env=environment,
        )  # fmt: skip

    return started


def _start_child(server: _Server | _Caller) -> Any:
    """What stands in for `labref.processes.start_child`. It forks nothing where Python looks for modules elsewhere: a
    test has put something into the process' way."""
    paths = os.environ.get("PYTHONPATH")

    def start_child(
        module: str,
        *arguments: str,
        errors: Any,
        low_priority: bool = False,
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.Popen[bytes]:
        if os.environ.get("PYTHONPATH") != paths:
            return processes.start_child(module, *arguments, errors=errors, environment=dict(environment or {}))
        return _Forked(
            server, module, arguments,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, cwd=_ROOT, env=os.environ | (environment or {}),
        )  # fmt: skip

    return start_child
