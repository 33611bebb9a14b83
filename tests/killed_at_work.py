"""A process that is killed while cells `a` and `b` are at work.

python -m tests.killed_at_work FILE SIGNAL
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from labref.lab.suspects import Suspects

if __name__ == "__main__":
    with Suspects(Path(sys.argv[1])).at_work(["a", "b"]):
        os.kill(os.getpid(), signal.Signals[sys.argv[2]])
