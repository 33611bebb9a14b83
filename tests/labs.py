"""Labs for tests: made quickly, run in this process or another, their ledger read back."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from labref.agent import run
from labref.agent.service import Summary
from labref.bundles.bundle import Bundle
from labref.bundles.proof import prove
from labref.lab import Lab
from labref.web.certificate import TLS
from labref.web.client import AgentClient
from labref.web.desk import ledger_rows
from labref.web.server import Server
from labref.web.serving import serving
from tests.benchmarks.exports import labref_process

__all__ = ["ledger", "make_lab", "once", "running_agent", "served", "wait_until"]

QUICK = {"stable_seconds": 0.2, "complete_seconds": 0.4}
"""Waiting for fresh files, shortened: most tests write theirs just before the agent looks."""


def make_lab(folder: Path, export: Path, bundle: Bundle, **watch: Any) -> Lab:
    """A lab in `folder` that watches `export`; `watch` are keys of labref.toml's [watch], over `QUICK`."""
    lab = Lab.create(folder, [export], bundle.folder, unsigned=True)
    prove(bundle, folder, lab.inference)  # once in this process: no agent of a process of its own does it again
    changed = lab.config.watch.model_copy(update=QUICK | watch)
    return replace(lab, config=lab.config.model_copy(update={"watch": changed}))


def once(lab: Lab) -> Summary:
    """One pass over the lab's export, in this process."""
    return run(lab, once=True)


def served(app: Any, port: int = 0, tls: TLS | None = None) -> Server:
    """A server of this application, as the agent's is."""
    return Server(lambda: partial(serving, app), port, tls)


def ledger(lab: Lab) -> dict[str, dict[str, Any]]:
    """The ledger's rows by the path below the first watched folder, with `/` between folders; each path has one row."""
    rows = list(ledger_rows(lab))
    found = {Path(row["path"]).relative_to(lab.watched[0]).as_posix(): row for row in rows}
    assert len(found) == len(rows), "a path has two outcomes"
    return found


def wait_until(true: Any, seconds: float = 180.0) -> None:
    """Wait until `true()`; fails after `seconds`, far more than it takes."""
    deadline = time.monotonic() + seconds
    began = time.monotonic()
    while not true():
        now = time.monotonic()
        assert now < deadline, "did not come true in time"
        time.sleep(max(0.1, 3 * (now - began)))  # longer than the look took: what is waited for needs the processor
        began = time.monotonic()


@contextmanager
def running_agent(lab: Lab, *, passed: Sequence[str] = (), **watch: object) -> Iterator[subprocess.Popen[str]]:
    """`labref agent` in a process of its own, answering; ended by SIGTERM (Ctrl-Break on Windows) where it still runs.

    passed : names of LABREF_* variables that it gets from this process; `watch`: keys of labref.toml's [watch].
    """
    process = labref_process("agent", "--json", "--lab", lab.folder, passed=passed, **{**QUICK, **watch})
    try:
        assert process.stdout is not None
        ready = process.stdout.readline()
        assert ready, process.communicate()[1]
        assert json.loads(ready)["event"] == "ready"
        assert AgentClient.find(lab) is not None
        yield process
    finally:
        if process.poll() is None:
            if sys.platform == "win32":
                process.send_signal(signal.CTRL_BREAK_EVENT)
            else:
                process.send_signal(signal.SIGTERM)
            try:
                process.communicate(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
                raise
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
