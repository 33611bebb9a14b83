"""Files that survive a power cut, and that strangers on the computer do not read.

Folders are 700 and files 600, whatever the umask; with `[access] group = true` in labref.toml 2770 and 660. Windows has
no such modes: there a file takes the rights of the folder it is made in. A folder in a user's profile is that user's
and the administrators'; one made elsewhere, such as C:\\labref, is usually readable by every user of the computer,
and `icacls` or the folder's properties change that. labref changes no such list.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = ["GROUP", "OWNER", "Rights", "follow", "give", "give_all", "new_files", "own_process", "sync_folder"]


@dataclass(frozen=True)
class Rights:
    """Modes of folders and files."""

    folder: int
    file: int

    @property
    def umask(self) -> int:
        """The umask under which a process makes such folders and files."""
        return 0o777 & ~self.folder


OWNER: Final = Rights(0o700, 0o600)
"""For the owner alone."""
GROUP: Final = Rights(0o2770, 0o660)
"""For the group of the lab's folder too, which what is made in it inherits."""

_own = False


def own_process() -> None:
    """This process is labref's own command: all it makes from now on is for its owner, or a lab's group; see
    `follow`."""
    global _own
    _own = True
    follow(OWNER)


def follow(rights: Rights) -> None:
    """Where this process is labref's own: what it makes from now on has these rights."""
    if _own:
        os.umask(rights.umask)


@contextlib.contextmanager
def new_files(rights: Rights) -> Iterator[None]:
    """What this process makes within the block has these rights; the umask belongs to all its threads."""
    before = os.umask(rights.umask)
    try:
        yield
    finally:
        os.umask(before)


def give(path: str | Path, rights: Rights, *, passed: int = 0) -> bool:
    """Give one file or folder its rights; True where it had others. Links are left alone, and so is what the system
    does not let this user change.

    passed : more bits for a folder, such as 0o011: everybody may pass through it to a folder in it.
    """
    if os.name == "nt":
        return False
    with contextlib.suppress(OSError):
        mode = os.lstat(path).st_mode
        if stat.S_ISDIR(mode):
            wanted = rights.folder | passed
        elif stat.S_ISREG(mode):
            wanted = rights.file
        else:
            return False
        if mode & 0o777 != wanted & 0o777:
            os.chmod(path, wanted)  # noqa: PTH101
            # some file systems take a mode and keep their own
            return os.lstat(path).st_mode != mode
    return False


def give_all(top: Path, rights: Rights) -> bool:
    """Give `top`, a file or a folder, and all below it their rights; True where any had others.

    A folder that has its rights is not entered: it is given them last, after all below it.
    """
    if os.name == "nt":
        return False
    with contextlib.suppress(OSError):
        real = top.resolve()
        mode = real.stat().st_mode
        if stat.S_ISDIR(mode) and mode & 0o777 != rights.folder & 0o777:
            changed = False
            for below, folders, files in os.walk(real, topdown=False):
                for name in (*files, *folders):
                    changed |= give(f"{below}{os.sep}{name}", rights)
            return give(real, rights) or changed
        return give(real, rights)
    return False


def sync_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk (nothing to do on Windows)."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
