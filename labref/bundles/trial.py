"""The first run of a bundle's networks on this computer, in a process of its own that can be ended.

    shown = tried(bundle, Inference())

A graph made elsewhere may compute for ever, take all memory, or crash ONNX Runtime and the process with it. So the
golden cells run in a child process (`labref.bundles.trial_process`) first, which is killed where it takes too long or
too much, and where whoever asked has to end. `labref.bundles.proof` remembers what was shown.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from typing import IO, Any, Final, Literal

from labref.bundles.bundle import Bundle, Precision
from labref.bundles.inference import Device, Embedder
from labref.errors import BundleError
from labref.processes import start_child

__all__ = ["STARTED", "Inference", "Shown", "leave_off", "tried"]

STARTED: Final = b"started\n"
"""What the child writes first: from here on its time and memory count."""
_WATCH_SECONDS: Final = 0.05
_START_SECONDS: Final = 120.0
_running: Final[dict[subprocess.Popen[bytes], bool]] = {}
"""The trials of this process, and whether each was left off."""
_changing: Final = threading.Lock()


@dataclass(frozen=True)
class Inference:
    """How a lab runs networks; see `labref.config.InferenceConfig`.

    threads : None takes every CPU that this process may use.  batch_size : crops that go through the networks at once;
    None takes the device's own.
    """

    device: Device = "auto"
    threads: int | None = None
    batch_size: int | None = None
    precision: Literal["auto", "full"] = "auto"
    trial_seconds: float = 90.0
    trial_memory_megabytes: int = 4096

    def open(self, bundle: Bundle, *, precision: Literal["auto"] | Precision | None = None) -> Embedder:
        """`Embedder.open` so. precision : instead of this one's."""
        return Embedder.open(
            bundle,
            device=self.device,
            threads=self.threads,
            batch_size=self.batch_size,
            precision=precision or self.precision,
        )


@dataclass(frozen=True)
class Shown:
    """What a trial has shown. provider, precision, provider_line : of the `Embedder` that gave the golden outputs.
    difference : the largest from these."""

    provider: str
    precision: Precision
    provider_line: str
    difference: float


def tried(bundle: Bundle, how: Inference) -> Shown:
    """Run the golden cells of `bundle` in a child process.

    Raises `BundleError` where they do not give the golden outputs, contradict the manifest, take longer or more memory
    than `how` allows, or crash; and after `leave_off`. An interruption (Ctrl-C) ends the child at once.
    """
    order = json.dumps({"folder": str(bundle.folder), "digest": bundle.digest, **asdict(how)})
    with tempfile.TemporaryFile() as errors:
        try:
            child = start_child("labref.bundles.trial_process", order, errors=errors)
        except OSError as error:
            raise BundleError(
                f"bundle {bundle.title} cannot be checked: no process could be started: {error}"
            ) from None
        with _changing:
            _running[child] = False
        try:
            answer = _followed(child, bundle, how)
            if answer is None:
                raise BundleError(_ended(child, bundle, errors))
        finally:
            with _changing:
                del _running[child]
            child.kill()
            child.wait()
            for pipe in (child.stdin, child.stdout):
                assert pipe is not None
                pipe.close()
    if "problem" in answer:
        raise BundleError(answer["problem"])
    return Shown(**answer)


def leave_off() -> None:
    """End the trials that this process runs: whoever waits for one gets a `BundleError`."""
    with _changing:
        for child in _running:
            _running[child] = True
            child.kill()


def _followed(child: subprocess.Popen[bytes], bundle: Bundle, how: Inference) -> dict[str, Any] | None:
    """What the child says at its end; None where it ends without a word. Raises `BundleError` where it has to be
    ended."""
    lines: list[bytes] = []
    assert child.stdout is not None
    reading = threading.Thread(target=lambda: lines.extend(iter(child.stdout.readline, b"")), daemon=True)  # type: ignore[union-attr]
    reading.start()
    began, before = time.monotonic(), None
    while reading.is_alive():
        reading.join(_WATCH_SECONDS)
        if not lines:
            if time.monotonic() - began > _START_SECONDS:
                return None
            continue
        if before is None:
            before, began = _memory(child.pid), time.monotonic()
        _require_within(bundle, how, time.monotonic() - began, (_memory(child.pid) - before) / 1e6)
    answer: dict[str, Any] | None = None if len(lines) < 2 else json.loads(lines[-1])
    return answer


def _require_within(bundle: Bundle, how: Inference, seconds: float, megabytes: float) -> None:
    """Raise `BundleError` where a trial takes more than it may."""
    for found, most, unit, what, setting in (
        (seconds, how.trial_seconds, "s", "long", "trial_seconds"),
        (megabytes, how.trial_memory_megabytes, "MB", "much memory", "trial_memory_megabytes"),
    ):
        if found > most:
            raise BundleError(
                f"bundle {bundle.title} takes too {what} on this computer: its golden cells took more than {most:g} {unit}, and "
                f"were ended. Do not use it; where it is known to need more, set {setting} in labref.toml, [inference], or "
                f"LABREF_INFERENCE__{setting.upper()}."
            )


def _memory(pid: int) -> int:
    """Bytes that the process has in memory; 0 where it has ended."""
    import psutil  # not needed where a bundle is known

    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0


def _ended(child: subprocess.Popen[bytes], bundle: Bundle, errors: IO[bytes]) -> str:
    """Why a child that said nothing is no more."""
    with _changing:
        if _running[child]:
            return f"the check of bundle {bundle.title} was given up, as labref had to end; start again."
    try:
        status = child.wait(_WATCH_SECONDS)
    except subprocess.TimeoutExpired:
        return f"bundle {bundle.title} cannot be checked: the process for it did not start within {_START_SECONDS:g} s."
    errors.seek(0)
    said = errors.read().decode("utf-8", "replace").strip().splitlines()
    how = f"signal {-status}" if status < 0 else f"exit status {status:#x}" if status > 255 else f"status {status}"
    last = f", {said[-1][:300]}" if said else ""
    return (
        f"bundle {bundle.title} ends the process that runs it on this computer ({how}{last}). Do not use it. Where it is known to work, try "
        'device = "cpu" and precision = "full" in labref.toml, [inference].'
    )
