"""Files that survive a power cut, that strangers on the computer do not read, and that are read to an end.

Folders are 700 and files 600, whatever the umask; with `[access] group = true` in labref.toml 2770 and 660. Windows has
no such modes: there a file takes the rights of the folder it is made in. A folder in a user's profile is that user's
and the administrators'; one made elsewhere, such as C:\\labref, is usually readable by every user of the computer,
and `icacls` or the folder's properties change that. labref changes no such list.

What a person names, or what took the place of a file, may be a device, a pipe, or a file that is written to all the
time. `open_file` takes files only, without waiting; what reads them stops at the size that they had.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

__all__ = [
    "GROUP",
    "OPEN_FLAGS",
    "OWNER",
    "LargeFileError",
    "NoFileError",
    "Rights",
    "copy_file",
    "digest_of",
    "follow",
    "give",
    "give_all",
    "new_files",
    "open_file",
    "own_process",
    "read_file",
    "replace_file",
    "sync_folder",
]

OPEN_FLAGS: Final = (
    os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
)
"""To open a file for reading by `os.open`; without O_NONBLOCK, a pipe that took its place would be waited for."""
_CHUNK: Final = 1 << 20  # bytes
_KINDS: Final = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
)


class NoFileError(OSError):
    """A folder, a device, a pipe or a socket, where a file has to be. `strerror` says which."""


class LargeFileError(OSError):
    """More bytes than are read. `strerror` says how many may be."""


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


def open_file(path: str | Path) -> BinaryIO:
    """A file, opened for reading. Raises `NoFileError` where it is a device, a pipe, a folder or a socket, and OSError
    where it cannot be opened; it never waits."""
    _check(os.stat(path).st_mode)  # first: opening a device can do something
    descriptor = os.open(path, OPEN_FLAGS)
    try:
        _check(os.fstat(descriptor).st_mode)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_file(path: str | Path, most: int | None = None, *, streams: bool = False) -> bytes:
    """The bytes of a file, as many as it had when it was opened. Raises OSError.

    most : raise `LargeFileError` where it has more bytes.  streams : a device or a pipe is read too, to its end or as
    far as `most`, for what a person's own command is given.
    """
    with open(path, "rb") if streams else open_file(path) as file:  # noqa: PTH123
        if most is None:
            return b"".join(_parts(file))
        data = file.read(most + 1)
    if len(data) > most:
        raise LargeFileError(errno.EFBIG, f"it is larger than {most / 1e6:g} MB")
    return data


def digest_of(path: str | Path) -> str:
    """The SHA-256 of a file, 64 hexadecimal characters, of the bytes that it had when it was opened. Raises OSError."""
    digest = hashlib.sha256()
    with open_file(path) as file:
        for part in _parts(file):
            digest.update(part)
    return digest.hexdigest()


def copy_file(source: Path, target: Path) -> None:
    """Copy the bytes that a file had when it was opened. Raises OSError."""
    with open_file(source) as file, target.open("wb") as out:
        for part in _parts(file):
            out.write(part)


def replace_file(path: Path, content: str | bytes, *, mode: int | None = None) -> None:
    """Write a file, a text as UTF-8, in the place of the one before, which stays whole until the new one is: first
    under another name beside it. After a power cut either may be there, so this is for what can be made again. Several
    threads may write one file. Raises OSError.

    mode : its permission bits, but on Windows; by default those that this process gives new files.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}.{os.urandom(4).hex()}.part")
    try:
        part.write_bytes(content.encode() if isinstance(content, str) else content)
        if mode is not None and os.name != "nt":
            part.chmod(mode)
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise


def _parts(file: BinaryIO) -> Iterator[bytes]:
    left = os.fstat(file.fileno()).st_size
    while left > 0 and (part := file.read(min(_CHUNK, left))):
        left -= len(part)
        yield part


def _check(mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = next((name for is_one, name in _KINDS if is_one(mode)), "a device")
        raise NoFileError(errno.EINVAL, f"it is {kind}, and no file")
