"""A folder for the meantime beside a new file outside the lab, as on a stick."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from labref.lab import Lab

__all__ = ["scratch"]

_in_use: set[Path] = set()
_changing = threading.Lock()


@contextlib.contextmanager
def scratch(lab: Lab, target: Path, what: str) -> Iterator[Path]:
    """A folder in that of `target`, deleted at the end: nobody sees the new file before it is whole, and no name of the
    user's is taken. The folder of `target` is made where it is not there.

    What a process of this lab that was killed left there is deleted first: it holds pictures, and can name patients.
    One process has a lab's store open at a time, so it is at work in none of them but its own.  what : a word for the
    name of the folder. Raises OSError.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    # labs of several computers can have the same path, and one folder of a server for what they write
    whose = hashlib.sha256(f"scratch {lab.token()}".encode()).hexdigest()[:12]
    prefix = f".labref-{what}-{whose}-"
    with _changing:
        for left in target.parent.glob(f"{prefix}*"):
            if left not in _in_use:
                shutil.rmtree(left, ignore_errors=True)
        made = tempfile.TemporaryDirectory(prefix=prefix, dir=target.parent)
        folder = Path(made.name)
        _in_use.add(folder)
    try:
        with made:
            yield folder
    finally:
        with _changing:
            _in_use.discard(folder)
