"""The process in which a bundle's networks run for the first time; see `labref.bundles.trial`, which starts it.

It says that it has started, runs the golden cells, and says as JSON what came of it: the fields of a `Shown`, or a
`problem`. Signals by which a service or a terminal ends labref are not for it: whoever started it ends it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from labref.bundles.bundle import Bundle
from labref.bundles.sense import check_golden_cells
from labref.bundles.trial import STARTED, Inference
from labref.errors import BundleError
from labref.processes import end_with_parent


def work(folder: Path, digest: str, how: Inference) -> dict[str, Any]:
    """Run the golden cells of the bundle in `folder`, in this process. Raises `BundleError`."""
    bundle = Bundle.open(folder)
    if bundle.digest != digest:
        raise BundleError(f"the bundle in {folder} changed while it was looked at. Install it again.")
    with how.open(bundle) as embedder:
        difference = check_golden_cells(embedder)
        return {
            "provider": embedder.provider,
            "precision": embedder.precision,
            "provider_line": embedder.provider_line,
            "difference": difference,
        }


def _main() -> None:
    for name in ("SIGINT", "SIGTERM", "SIGBREAK"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 1)  # what libraries print is no answer
    end_with_parent()
    _limit()
    order = json.loads(sys.argv[1])
    folder, digest = Path(order.pop("folder")), order.pop("digest")
    answers.write(STARTED)
    answers.flush()
    try:
        answer = work(folder, digest, Inference(**order))
    except BundleError as error:
        answer = {"problem": str(error)}
    except MemoryError:
        answer = {"problem": f"the bundle in {folder} takes more memory than this computer has"}
    answers.write(json.dumps(answer).encode())
    answers.flush()
    os._exit(0)


def _limit() -> None:
    """What the system itself can see to; the parent watches time and memory."""
    if sys.platform == "win32":
        import ctypes

        ctypes.windll.kernel32.SetErrorMode(0x0001 | 0x0002)  # a crash asks nobody to click
        return
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):  # Linux; where memory ends, this process goes first
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


if __name__ == "__main__":
    _main()
