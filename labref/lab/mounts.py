"""Where the watched folders are mounted: `logs/mounts.json`, for each folder how deep in the tree the mount point lies
on which its files were met last. Where a share is not mounted, an empty folder stands in its place, and looks like an
export that was emptied."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, Literal

from labref.errors import LabError
from labref.export.roots import mount_of
from labref.export.scan import condition
from labref.files import read_file, replace_file
from labref.lab.lab import Lab

__all__ = ["condition_of", "is_unmounted", "remember_mounts"]

_FILE: Final = ("logs", "mounts.json")
_MOST: Final = 1_000_000  # bytes


def remember_mounts(lab: Lab, folders: Iterable[str]) -> None:
    """Write down where these watched folders, in which files were met, are mounted. Where the lab's folder takes no
    file, or is not there at the moment, what was written before stays."""
    with contextlib.suppress(OSError, LabError):
        known = _known(lab)
        now = known | {lab.pseudonym(folder): _depth(Path(folder)) for folder in folders}
        if now != known:
            file = lab.folder.joinpath(*_FILE)
            file.parent.mkdir(exist_ok=True)
            replace_file(file, json.dumps(now) + "\n")


def is_unmounted(lab: Lab, folder: Path) -> bool:
    """Whether the files of a watched folder were met on a file system that is not mounted there now."""
    with contextlib.suppress(LabError):  # a lab without a token
        before = _known(lab).get(lab.pseudonym(str(folder)))
        return before is not None and 0 < _depth(folder) < before
    return False


def condition_of(lab: Lab, folder: Path) -> Literal["missing", "unreadable"] | None:
    """What is wrong with a watched folder, as `condition` says it; it is missing, too, where its share is not
    mounted."""
    return condition(folder) or ("missing" if is_unmounted(lab, folder) else None)


def _known(lab: Lab) -> dict[str, int]:
    with contextlib.suppress(OSError, ValueError, RecursionError):
        found: Any = json.loads(read_file(lab.folder.joinpath(*_FILE), _MOST))
        if isinstance(found, dict) and all(isinstance(depth, int) for depth in found.values()):
            return found
    return {}


def _depth(folder: Path) -> int:
    """Parts of the path of the mount point of a folder; 0 where it cannot be found out."""
    point = mount_of(folder)[0]
    return len(Path(point).parts) if point else 0
