"""Whether the agent of the lab in LABREF_LAB answers and is at work: exit code 0, else 1 with a word.

Warnings (a GPU that is not used, a disk that fills, an old backup, a shared store that is not told) are none of a
container's: `labref status` tells them.
"""

import json
import os
import sys
import urllib.request
from pathlib import Path

_WELL = {"ok", "provider", "disk", "backup", "shared"}

try:
    record = json.loads(Path(os.environ["LABREF_LAB"], "agent.json").read_text(encoding="utf-8"))
    with urllib.request.urlopen(f"http://127.0.0.1:{record['port']}/health", timeout=10) as answer:
        state = json.load(answer)["status"]
except (OSError, ValueError, KeyError) as error:
    sys.exit(f"the agent does not answer: {error}")
print(state)
sys.exit(state not in _WELL)
