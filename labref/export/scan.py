"""The scan: every file of the export folders as it stands. It is the truth; file events are only hints to look
sooner."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

__all__ = ["GONE", "Candidate", "ScanReport", "Signature", "look", "scan"]

GONE: Final = "deleted before it could be read; it is read if it comes back"
"""The reason of a file that was found and then was not there any more."""
_LOOP_WINERROR: Final = 1921  # ERROR_CANT_RESOLVE_FILENAME


@dataclass(frozen=True)
class Signature:
    """What a file's metadata said at one look: size in bytes, times in nanoseconds since 1970.

    `ctime_ns` is the last change of the file's inode (of its creation on Windows): a copy tool that gives the copy its
    original's mtime cannot set it. Times before 1677 or after 2262 are those limits: 64 bits hold no others.
    """

    size_bytes: int
    mtime_ns: int
    ctime_ns: int

    @staticmethod
    def of(status: os.stat_result) -> Signature:
        return Signature(status.st_size, _within_64_bits(status.st_mtime_ns), _within_64_bits(status.st_ctime_ns))

    def age_seconds(self) -> float:
        """Seconds since the file was last touched, by this computer's clock; negative where the file's clock is
        ahead."""
        return time.time() - max(self.mtime_ns, self.ctime_ns) / 1e9


@dataclass(frozen=True)
class Candidate:
    """A file with an image's name.

    path : as Python holds it.  root : the watched folder it lies in.  signature : None where it cannot be read.
    refusal : why it cannot be used, fit for the ledger; always there where the signature is None.
    """

    path: str
    root: str
    signature: Signature | None
    refusal: str | None = None


@dataclass
class ScanReport:
    """What one scan met beside its candidates: counts, and the folders it could not read."""

    ignored: int = 0
    unreachable: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)


def look(path: str, root: str) -> Candidate | None:
    """The candidate at `path` as it is now; None where nothing is there any more."""
    try:
        status = os.stat(path)
    except OSError as error:
        if not os.path.lexists(path):
            return None
        return Candidate(path, root, None, _refusal(path, error))
    if stat.S_ISREG(status.st_mode):
        return Candidate(path, root, Signature.of(status))
    if stat.S_ISDIR(status.st_mode):
        return Candidate(path, root, None, "a folder, not an image file, although its name ends like one")
    return Candidate(path, root, None, "not a regular file (a device, pipe or socket)")


def _refusal(path: str, error: OSError) -> str:
    if Path(path).is_symlink():
        if error.errno == errno.ELOOP or getattr(error, "winerror", None) == _LOOP_WINERROR:
            return "a symbolic link that leads back to itself"
        if isinstance(error, FileNotFoundError):
            return "a symbolic link to a file that is not there"
    if isinstance(error, PermissionError):
        return "no permission to read it; give the agent's user read access"
    return f"cannot be read: {error.strerror or error}"


def scan(
    roots: Sequence[Path], *, extensions: Iterable[str], excluded: Iterable[Path], report: ScanReport
) -> Iterator[Candidate]:
    """Every file below `roots` whose name ends in one of `extensions`, folder by folder, sorted by name.

    Hidden files, and names with other endings, are counted in `report` and not told of. Links to folders are followed,
    after the folders themselves; no folder is walked twice, so that loops end. The folders `excluded` are not entered.
    """
    endings = tuple(extensions)
    seen = {identity for folder in excluded if (identity := _identity(str(folder))) is not None}
    linked: list[tuple[str, str]] = []
    waiting: list[tuple[str, str]] = []
    for watched in roots:
        if watched.is_dir():
            waiting.append((str(watched), str(watched)))
        else:
            report.unreachable.append(str(watched))
    waiting.reverse()
    while waiting or linked:
        folder, root = waiting.pop() if waiting else linked.pop(0)
        identity = _identity(folder)
        if identity is None or identity in seen:
            continue
        seen.add(identity)
        try:
            with os.scandir(folder) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError:
            (report.unreachable if folder == root else report.unreadable).append(folder)
            continue
        below: list[tuple[str, str]] = []
        for entry in found:
            image_name = entry.name.lower().endswith(endings) and not entry.name.startswith(".")
            try:
                is_folder = entry.is_dir(follow_symlinks=False)
                is_link = entry.is_symlink()
            except OSError:
                is_folder = is_link = False
            if is_folder:
                below.append((entry.path, root))
            elif is_link and Path(entry.path).is_dir():
                linked.append((entry.path, root))
            elif not image_name:
                report.ignored += 1
            if image_name and (candidate := _candidate(entry, root, is_link=is_link)) is not None:
                yield candidate
        waiting.extend(reversed(below))


def _candidate(entry: os.DirEntry[str], root: str, *, is_link: bool) -> Candidate | None:
    # on Windows an entry's own status comes with the listing, but lags for files still being written
    if not is_link and os.name != "nt":
        try:
            status = entry.stat(follow_symlinks=False)
        except OSError:
            return look(entry.path, root)
        if stat.S_ISREG(status.st_mode):
            return Candidate(entry.path, root, Signature.of(status))
    return look(entry.path, root)


def _within_64_bits(nanoseconds: int) -> int:
    # NTFS and Samba can say 1601, and a wrong clock the year 3000; what is compared must be what is stored
    return min(max(nanoseconds, -(2**63)), 2**63 - 1)


def _identity(folder: str) -> tuple[int, int] | None:
    try:
        status = os.stat(folder)
    except OSError:
        return None
    return status.st_dev, status.st_ino
