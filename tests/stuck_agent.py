"""An agent that gets stuck in one of its steps.

    python -m tests.stuck_agent MODULE FUNCTION SECONDS agent --lab FOLDER

FUNCTION of labref's MODULE takes 1000 s. SECONDS is how long the agent waits for its steps when it has to end.
"""

from __future__ import annotations

import importlib
import sys
import time
from typing import Any

import labref.agent.service
from labref.cli import main


def _stuck(*_: Any, **__: Any) -> None:
    time.sleep(1000)


if __name__ == "__main__":
    module, function, seconds, *sys.argv[1:] = sys.argv[1:]
    setattr(importlib.import_module(f"labref.{module}"), function, _stuck)
    labref.agent.service._END_SECONDS = float(seconds)
    main()
