"""One process that has imported labref, of which `tests.forking` has agents and commands forked.

    python -m tests.fork_server SOCKET STARTER ANSWERS
    python -m tests.fork_server SOCKET

What is forked remembers the answers of the bundle in the folder STARTER in the folder ANSWERS (`tests.remembered`).
Without these two it has imported what trains instead, on the backend of KERAS_BACKEND.
SOCKET is the number of a socket that it inherits. Each message there is an order: {"module" or "code", "arguments",
"environment", "folder", "umask"} and perhaps {"priority"} of the process to be, with four files: its standard input,
output and error, and a pipe to which this process writes its exit status, as `os.waitstatus_to_exitcode` gives it. The
answer is its number. It ends with the socket. Processes that it has forked connect to it, each for one order.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import pkgutil
import runpy
import select
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any, Final
from unittest.mock import MagicMock

from labref import failpoints
from labref.bundles import inference
from labref.bundles.bundle import Bundle
from labref.cpus import usable_cpus
from tests.forking import fork_workers
from tests.remembered import remembering

__all__ = ["import_labref"]

_LONGEST: Final = 1 << 20  # bytes of an order
_LATER: Final = (
    "PIL.BmpImagePlugin",
    "PIL.GifImagePlugin",
    "PIL.JpegImagePlugin",
    "PIL.PngImagePlugin",
    "PIL.PpmImagePlugin",
    "PIL.TiffImagePlugin",
    "anyio._backends._asyncio",
    "anyio.streams.tls",
    "encodings.ascii",
    "encodings.cp437",
    "encodings.idna",
    "encodings.utf_8_sig",
    "numpy.ma",
    "numpy.random",
    "onnxruntime",
    "scipy.fft",
    "scipy.ndimage",
    "typer._adapters",
    "typer._click.decorators",
    "uvicorn.lifespan.off",
    "uvicorn.loops.asyncio",
)
"""What an agent, or a process that decodes pictures, imports only when it first needs it: NumPy's masked arrays, when
it first looks for what two arrays share; scipy.ndimage, which takes 0.2 s of a core, for the first picture."""


def _serve(orders: socket.socket, listening: socket.socket) -> dict[str, Any] | None:
    """Fork what is ordered; in a forked process, return its order. None at the end."""
    ended, woken = os.pipe()
    os.set_blocking(woken, False)
    signal.set_wakeup_fd(woken)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tests, whose end ends this process
    running: dict[int, int] = {}
    awaited: list[Any] = [orders, listening, ended]
    while True:
        ready, _, _ = select.select(awaited, [], [])
        if ended in ready:
            os.read(ended, 4096)
            for pid in list(running):
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    pipe = running.pop(pid)
                    with contextlib.suppress(BrokenPipeError):  # nobody asks any more
                        os.write(pipe, str(os.waitstatus_to_exitcode(status)).encode())
                    os.close(pipe)
        for asking in [one for one in (orders, listening) if one in ready]:
            asked = orders if asking is orders else listening.accept()[0]
            order, files, _, _ = socket.recv_fds(asked, _LONGEST, 4)
            if not order and asked is orders:
                return None
            if order:
                *streams, pipe = files
                pid = os.fork()
                if not pid:
                    for own in (ended, woken, pipe, *running.values()):
                        os.close(own)
                    for one in {orders, listening, asked}:
                        one.close()
                    return _become(json.loads(order), streams)
                running[pid] = pipe
                for stream in streams:
                    os.close(stream)
                asked.send(str(pid).encode())
            if asked is not orders:
                asked.close()


def _become(order: dict[str, Any], streams: list[int]) -> dict[str, Any]:
    """Take the standard streams, signals, environment and folder that a process started by itself would have."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    for stream in streams:
        os.close(stream)
    os.environ.clear()
    os.environ.update(order["environment"])
    failpoints.arm(os.environ.get("LABREF_FAILPOINTS", ""), os.environ.get("LABREF_FAILPOINTS_LOG"))
    time.tzset()
    os.chdir(order["folder"])
    os.umask(order["umask"])
    if "priority" in order:
        os.setpriority(os.PRIO_PROCESS, 0, order["priority"])
    return order


def import_labref() -> None:
    """All of labref that an agent imports, and what that imports; and its application once, for the models of the
    requests that are made with it, and for what FastAPI imports when it meets the first of them."""
    import labref

    for found in pkgutil.walk_packages(labref.__path__, "labref."):
        if found.name.rpartition(".")[2] not in ("__main__", "decoding_worker", "trial_process", "child_process"):
            with contextlib.suppress(ImportError):  # a module of another system
                importlib.import_module(found.name)
    for name in _LATER:
        with contextlib.suppress(ImportError):  # of another version of theirs
            importlib.import_module(name)
    from labref.web.application import make_app
    from labref.web.metrics import Metrics

    make_app(MagicMock(), Metrics(), token="t" * 43, max_bytes=1, log=MagicMock())


def _main() -> None:
    orders = socket.socket(fileno=int(sys.argv[1]))
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listening.bind(f"\0labref-tests-{os.getpid()}")  # Linux: a name that is no file
    listening.listen(16)
    with contextlib.ExitStack() as remembered:
        if sys.argv[2:]:
            import_labref()
            fork_workers(listening.getsockname().decode())
            starter = Bundle.open(Path(sys.argv[2]))
            remembered.enter_context(remembering(starter, Path(sys.argv[3])))
            # opened for all that are forked: it takes 0.6 s of a core, and has no thread of its own (`remembering`)
            _ = inference._session(starter, "trunk.onnx", ["CPUExecutionProvider"], usable_cpus())._session
        else:
            _import_training()
        threads = len(os.listdir("/proc/self/task"))
        assert threads == 1, f"{threads} threads: a forked process would have one of them, and perhaps the locks of all"
        gc.freeze()
        order = _serve(orders, listening)
        if order is None:
            return
        sys.argv[1:] = order["arguments"]
        if "code" in order:
            exec(order["code"], {"__name__": "__main__"})
        else:
            runpy.run_module(order["module"], run_name="__main__", alter_sys=True)


def _import_training() -> None:
    """What trains networks: 6 s of a core. No device is looked for yet, and no thread started."""
    for name in ("jax", "tensorflow", "keras", "training.networks.classifier", "training.cli.worker"):
        importlib.import_module(name)


if __name__ == "__main__":
    _main()
