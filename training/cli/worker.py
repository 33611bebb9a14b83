"""One of several processes that train a classifier; `training.networks.workers` starts it.

    python -m training.cli.worker RUN DATA NUMBER COUNT COORDINATOR

Number 0 tells on its standard output how far it is: JSON lines, {"task", "done", "total", "info"} or {"say"}.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from labref.errors import LabrefError
from training.environment import prepare_environment
from training.networks.workers import LOCAL, REFUSED, check_port
from training.run import Run, RunError

__all__ = ["main"]

_EVERY_SECONDS = 0.5


class _Telling(Progress):
    """Progress that is told to whoever started this process."""

    def __init__(self, *, is_first: bool) -> None:
        super().__init__(console=_Saying(is_first=is_first), disable=True)
        self._is_first, self._last = is_first, 0.0

    def update(self, task_id: Any, **values: Any) -> None:
        super().update(task_id, **values)
        task = self._tasks[task_id]
        if self._is_first and (time.monotonic() - self._last > _EVERY_SECONDS or task.completed == task.total):
            self._last = time.monotonic()
            _tell(
                {"task": task.description, "done": task.completed, "total": task.total, "info": values.get("info", "")}
            )


class _Saying(Console):
    def __init__(self, *, is_first: bool) -> None:
        super().__init__(stderr=True)
        self._is_first = is_first

    def print(self, *objects: Any, **_: Any) -> None:
        if self._is_first:
            _tell({"say": " ".join(map(str, objects))})


def _tell(row: dict[str, Any]) -> None:
    print(json.dumps(row), flush=True)


def _end_with_starter() -> None:
    """End where the process that started this one is gone, even if it was killed: nobody else would end this one. It
    holds the other end of the standard input, which then ends, on Windows too."""
    with contextlib.suppress(OSError):
        while os.read(0, 1):  # not `sys.stdin`, whose lock this thread would hold at the end of the process
            pass
    os._exit(1)


def main() -> None:
    """See the module."""
    threading.Thread(target=_end_with_starter, daemon=True).start()
    folder, data, number, count, coordinator = sys.argv[1:]
    prepare_environment()
    # where all begin again, what was compiled is there
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(folder).resolve() / "workers" / "compiled"))
    import jax

    # JAX would listen on all addresses of the computer
    own = coordinator if coordinator.startswith(f"{LOCAL}:") else None
    try:
        if number == "0" and own is None:
            check_port(coordinator)  # once more: two trainings may have begun together
        jax.distributed.initialize(coordinator, int(count), int(number), coordinator_bind_address=own)
        from training.networks.classifier import train_here

        run = Run.open(Path(folder), Path(data))
        train_here(run, run.folder / "classifier.keras", _Telling(is_first=number == "0"))
    except (RunError, LabrefError) as error:  # no ValueError: JAX raises one where another process is lost
        print(f"error: {error}", file=sys.stderr, flush=True)
        time.sleep(_EVERY_SECONDS)  # the others may be about to say the same, and end with this one
        os._exit(REFUSED)  # to end in good order, JAX would wait for the others, and they for this one
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    jax.distributed.shutdown()


if __name__ == "__main__":
    main()
