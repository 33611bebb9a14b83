"""What a process imports when it looks at a picture, a name a line: nothing where it was forked (`tests.forking`).

python -m tests.late_imports PICTURE
"""

from __future__ import annotations

import sys
from pathlib import Path

from labref.cells.examination import TASKS


def _main() -> None:
    data, before = Path(sys.argv[1]).read_bytes(), set(sys.modules)
    for task in ("examine", "search", "judge"):
        TASKS[task](data, 40_000_000)
    print(*sorted(set(sys.modules) - before), sep="\n")


if __name__ == "__main__":
    _main()
