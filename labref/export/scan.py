"""The scan: every file of the export folders as it stands. It is the truth; file events are only hints to look
sooner."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Final, Literal

from labref.export.roots import Roots, real_path
from labref.words import within_64_bits

__all__ = [
    "GONE",
    "UNREACHABLE",
    "Candidate",
    "ScanReport",
    "Signature",
    "condition",
    "left_alone",
    "look",
    "refusal",
    "scan",
]

GONE: Final = "deleted before it could be read; it is read if it comes back"
"""The reason of a file that was found and then was not there any more."""
UNREACHABLE: Final = "its folder cannot be read; it is read once the folder can"
"""The reason of a file of which nobody can say whether it is still there."""
_LOOP_WINERROR: Final = 1921  # ERROR_CANT_RESOLVE_FILENAME
_TOO_LONG_WINERROR: Final = 206  # ERROR_FILENAME_EXCED_RANGE
_MAX_PATH: Final = 260  # of Windows, with the closing zero
_LONGEST_ENDING: Final = 12
_FEW_ENDINGS: Final = 4


@dataclass(frozen=True)
class Signature:
    """What a file's metadata said at one look: size in bytes, times in nanoseconds since 1970.

    `ctime_ns` is the last change of the file's inode (of its creation on Windows): a copy tool that gives the copy its
    original's mtime cannot set it. Times before 1677 or after 2262 are those limits: 64 bits hold no others. `inode` is
    the file's number; two looks that differ in it alone are of one file, as network shares number files anew (see
    `labref.export.roots.is_network_folder`).
    """

    size_bytes: int
    mtime_ns: int
    ctime_ns: int
    inode: int = field(default=0, compare=False)

    @staticmethod
    def of(status: os.stat_result) -> Signature:
        return Signature(
            status.st_size,
            # NTFS and Samba can say 1601, and a wrong clock the year 3000; what is compared must be what is stored
            within_64_bits(status.st_mtime_ns),
            within_64_bits(status.st_ctime_ns),
            status.st_ino & (2**64 - 1),  # ReFS has longer ones
        )

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
    """What one scan met beside its candidates.

    others : files that are no images by their names, counted by their ending; "" for those without one, "hidden" for
    those whose name begins with a dot.  reserved : hidden folders, and folders and files with a name of the system's,
    not looked at.
    unreachable : watched folders, and unreadable : what lies below them, that could not be read.  walked : inode
    numbers of the folders in each watched folder, those behind links left out.
    """

    others: Counter[str] = field(default_factory=Counter)
    reserved: int = 0
    unreachable: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    walked: dict[str, set[int]] = field(default_factory=dict)

    @property
    def ignored(self) -> int:
        """How many files are no images by their names."""
        return self.others.total()


def left_alone(others: Mapping[str, int], reserved: int) -> list[str]:
    """What people are told of the files that a scan left alone; see `ScanReport`."""
    lines = []
    if others:
        named = sorted(others, key=lambda ending: (-others[ending], ending))
        words = ", ".join(ending or "no ending" for ending in named[:_FEW_ENDINGS])
        more = " …" if len(named) > _FEW_ENDINGS else ""
        number = sum(others.values())
        lines.append(
            f"{number} other file{'s' * (number != 1)} ({words}{more}) left alone: [watch] extensions names the endings "
            "of images."
        )
    if reserved:
        lines.append(
            f"{reserved} of the system's own folders and files ([watch] system_names), or hidden folders, not looked at."
        )
    return lines


def look(path: str, root: str) -> Candidate | None:
    """The candidate at `path` as it is now; None where nothing is there any more.

    "Not found" alone is no proof of that: the folder must be readable, and not list the name.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        reason = refusal(path, root, error)
        return None if reason == GONE else Candidate(path, root, None, reason)
    if stat.S_ISREG(status.st_mode):
        return Candidate(path, root, Signature.of(status))
    if stat.S_ISDIR(status.st_mode):
        return Candidate(path, root, None, "a folder, not an image file, although its name ends like one")
    return Candidate(path, root, None, "not a regular file (a device, pipe or socket)")


def condition(root: Path) -> Literal["missing", "unreadable"] | None:
    """What is wrong with a watched folder; None where it can be listed."""
    try:
        with os.scandir(root):
            return None
    except (FileNotFoundError, NotADirectoryError):
        return "missing"
    except OSError:
        return "unreadable"


def refusal(path: str, root: str, error: OSError) -> str:
    """Why the file at `path` below the watched folder `root` cannot be used, fit for the ledger; `error` is what the
    system said. `GONE` only where it is certain that the file is not there."""
    winerror = getattr(error, "winerror", None)
    too_long = error.errno == errno.ENAMETOOLONG or winerror == _TOO_LONG_WINERROR
    if too_long or (os.name == "nt" and len(path) >= _MAX_PATH and isinstance(error, FileNotFoundError)):
        return f"its path is longer than this system takes ({len(path)} characters); shorten the names of its folders"
    if os.path.islink(path):  # noqa: PTH114  # Path.is_symlink raises where a folder cannot be entered
        if error.errno == errno.ELOOP or winerror == _LOOP_WINERROR:
            return "a symbolic link that leads back to itself"
        if isinstance(error, FileNotFoundError):
            return "a symbolic link to a file that is not there"
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return _absence(path, root)
    if isinstance(error, PermissionError):
        return "no permission to read it; give the agent's user read access"
    return f"cannot be read: {error.strerror or error}"


def _absence(path: str, root: str) -> str:
    """What it means that `path` was not found."""
    missing = path
    while path != root:
        folder, name = os.path.split(path)
        try:
            with os.scandir(folder):  # it can be read
                # names listed a moment ago serve for other files of a large folder, but may be out of date
                recent = path != missing or name in _names(folder, int(time.monotonic()))
                listed = recent and name in _listing(folder)
        except (FileNotFoundError, NotADirectoryError):
            if folder == path:
                break
            path = folder  # is the folder gone, or what it lies in not there?
            continue
        except OSError:
            break
        if not listed:
            return GONE
        if path == missing:
            return "listed in its folder, but the system does not find it; rename it"
        break
    return UNREACHABLE


@lru_cache(1)
def _names(folder: str, _second: int) -> frozenset[str]:
    return _listing(folder)


def _listing(folder: str) -> frozenset[str]:
    with os.scandir(folder) as entries:
        return frozenset(entry.name for entry in entries)


@dataclass(frozen=True)
class _Folder:
    """A folder to be walked. real : its path without links. above : identities and names of the folders it lies in.
    linked : it is reached by a link."""

    path: str
    root: str
    real: str
    above: dict[tuple[int, int], list[frozenset[str]]]
    linked: bool = False


def scan(
    roots: Sequence[Path],
    *,
    extensions: Iterable[str],
    excluded: Iterable[Path],
    report: ScanReport,
    reserved: Iterable[str] = (),
) -> Iterator[Candidate]:
    """Every file below `roots` whose name ends in one of `extensions`, folder by folder, sorted by name.

    Hidden files, and names with other endings, are counted in `report` and not told of. A folder that lies in several
    of `roots` is walked once, as part of the innermost. Links to folders are followed, after the folders themselves; no
    folder is walked twice, so that loops end. The folders `excluded` are not entered, nor hidden ones, nor what has one
    of the names `reserved`, nor the pictures that a lab makes; see `labref.export.roots.Roots`. What cannot be read is
    named in `report`.
    """
    endings = tuple(extensions)
    within = Roots(roots, excluded, reserved)
    walked: set[str] = set()
    waiting: list[_Folder] = []
    linked: list[tuple[str, str]] = []
    for watched in within.folders:
        try:
            there = stat.S_ISDIR(os.stat(watched).st_mode)
        except OSError:
            there = False
        if there:
            waiting.append(_Folder(watched, watched, real_path(watched), {}))
        else:
            report.unreachable.append(watched)
    waiting.reverse()
    while waiting or linked:
        if waiting:
            folder = waiting.pop()
        else:
            path, root = linked.pop(0)
            folder = _Folder(path, root, real_path(path), {}, linked=True)
        # by path, not by number: on network shares two folders can have one number
        if folder.real in walked or within.is_excluded(folder.real):
            continue
        if folder.path != folder.root and within.is_root(folder.real):
            continue
        walked.add(folder.real)
        try:
            identity = _identity(folder.path)
            with os.scandir(folder.path) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            if refusal(folder.path, folder.root, error) != GONE or folder.path == folder.root:
                (report.unreachable if folder.path == folder.root else report.unreadable).append(folder.path)
            continue
        if not folder.linked:
            report.walked.setdefault(folder.root, set()).add(identity[1])
        names = frozenset(entry.name for entry in found)
        if names and names in folder.above.get(identity, ()):
            report.unreadable.append(folder.path)  # a folder in itself, as a server that follows links can show
            continue
        above = folder.above | {identity: [*folder.above.get(identity, ()), names]}
        below: list[_Folder] = []
        for entry in found:
            kind = _kind(entry)
            is_folder = kind in ("folder", "link to a folder")
            if within.is_reserved(entry.name, folder=is_folder) or within.is_of_a_lab(entry.name, names.__contains__):
                report.reserved += 1
                continue
            image_name = entry.name.lower().endswith(endings) and not entry.name.startswith(".")
            if kind == "folder":
                real = f"{folder.real.rstrip(os.sep)}{os.sep}{os.path.normcase(entry.name)}"
                below.append(_Folder(entry.path, folder.root, real, above, folder.linked))
            elif kind == "link to a folder":
                linked.append((entry.path, folder.root))
            elif kind == "unreadable" and not image_name:
                report.unreadable.append(entry.path)
            elif not image_name:
                report.others[_ending(entry.name)] += 1
            if image_name and (candidate := _candidate(entry, folder.root, is_link=kind != "file")) is not None:
                yield candidate
        waiting.extend(reversed(below))


def _kind(entry: os.DirEntry[str]) -> str:
    """What an entry of a listing is: "file", "link", "folder", "link to a folder", or "unreadable": nobody can say."""
    try:
        is_link = entry.is_symlink() or (os.name == "nt" and _is_junction(entry))
        if not is_link:
            return "folder" if entry.is_dir(follow_symlinks=False) else "file"
        return "link to a folder" if stat.S_ISDIR(os.stat(entry.path).st_mode) else "link"
    except OSError as error:
        # a link to nothing, or to itself, hides no folder
        return "link" if isinstance(error, FileNotFoundError) or error.errno == errno.ELOOP else "unreadable"


def _is_junction(entry: os.DirEntry[str]) -> bool:
    tag = getattr(entry.stat(follow_symlinks=False), "st_reparse_tag", 0)
    return bool(tag and tag == getattr(stat, "IO_REPARSE_TAG_MOUNT_POINT", None))


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


def _ending(name: str) -> str:
    if name.startswith("."):
        return "hidden"
    ending = os.path.splitext(name)[1].lower()  # noqa: PTH122
    return ending if len(ending) <= _LONGEST_ENDING else ""


def _identity(folder: str) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino
