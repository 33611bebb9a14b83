"""When a lab was last backed up: `logs/backup.json`, which `labref.tasks.backup` writes when a backup is whole."""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from labref.errors import LabrefError
from labref.files import read_file, replace_file
from labref.lab.lab import Lab

__all__ = ["LastBackup", "age_of_backup", "is_old", "last_backup", "remember_backup"]

_FILE: Final = ("logs", "backup.json")
_MOST: Final = 1_000_000  # bytes


@dataclass(frozen=True)
class LastBackup:
    """at : when it was whole, ISO 8601, UTC.  target : the folder or file.  cells : in its store.  missing : how many
    kept images it could not have."""

    at: str
    target: str
    cells: int
    missing: int

    @property
    def moment(self) -> datetime:
        """`at`, with a time zone. Raises `ValueError` where it is no moment."""
        moment = datetime.fromisoformat(self.at)
        return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def remember_backup(lab: Lab, made: LastBackup) -> None:
    """Write down that a backup is whole. Raises `LabrefError` where the lab's folder takes no file."""
    file = lab.folder.joinpath(*_FILE)
    try:
        file.parent.mkdir(exist_ok=True)
        replace_file(file, json.dumps(asdict(made)) + "\n")
    except OSError as error:
        raise LabrefError(
            f"the backup is whole, but {file} cannot be written: {error.strerror or error}. Look at the lab's disk; "
            "until then `labref status` takes the backup for older than it is."
        ) from None


def last_backup(lab: Lab) -> LastBackup | None:
    """The last whole backup of this lab; None where there was none, or what is written down cannot be read."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
        found: Any = json.loads(read_file(lab.folder.joinpath(*_FILE), _MOST))
        made = LastBackup(str(found["at"]), str(found["target"]), int(found["cells"]), int(found["missing"]))
        _ = made.moment  # raises ValueError where it is none
        return made
    return None


def age_of_backup(lab: Lab, now: datetime) -> timedelta | None:
    """How old the last backup is; where there was none, how long the lab is there: since it was made, or restored. None
    where nothing says so.

    now : with a time zone.
    """
    made = last_backup(lab)
    if made is not None:
        return now - made.moment
    try:
        return now - datetime.fromtimestamp((lab.folder / "token").stat().st_mtime, UTC)
    except (OSError, ValueError, OverflowError):
        return None


def is_old(lab: Lab, cells: int) -> bool:
    """Whether the last backup is older than [health] in labref.toml allows. cells : in the lab; an empty one needs
    none."""
    most, age = lab.config.health.backup_days, age_of_backup(lab, datetime.now(UTC))
    # the clock may have been ahead
    return bool(most and cells) and age is not None and abs(age) > timedelta(days=most)
