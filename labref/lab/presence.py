"""How an agent proves that it is the agent of one folder, and of no copy of it.

A copy of a lab (`cp -a`, a restored disk) has the original's token and the record of its agent. So the agent proves
more than the token: which folder it works in, by device, inode and real path, as it sees them at this moment. Where
these say something else to the command than to the agent (a bind mount, a share that is mounted twice, a file system
that numbers anew), the command makes a file of a random name in the folder that it means, and the agent says whether
that is in its own.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Final

__all__ = ["OwnFolder", "clear_marks", "identity", "marked", "proof"]

_MARK: Final = ".labref-here-"
_NAME: Final = re.compile(r"[0-9a-f]{32}")


def identity(folder: Path) -> str:
    """What tells a folder from every other of this computer, as this process sees it; empty where it is not there."""
    try:
        found = folder.stat()
        return f"{found.st_dev}:{found.st_ino}:{os.path.realpath(folder)}"
    except (OSError, ValueError):
        return ""


def proof(token: str, nonce: str, where: str) -> str:
    """What only one who knows the lab's token, and means the folder `where`, can answer to `nonce`: HMAC-SHA-256,
    hexadecimal.

    where : the folder's `identity`, or the name of a mark that was found in it.
    """
    said = b"labref agent:" + nonce.encode() + b":" + os.fsencode(where)
    return hmac.new(token.encode(), said, hashlib.sha256).hexdigest()


@contextlib.contextmanager
def marked(folder: Path) -> Iterator[str | None]:
    """A mark in a folder for as long as the block lasts: its name, or None where none can be made."""
    name = secrets.token_hex(16)
    path = folder / f"{_MARK}{name}"
    try:
        path.touch(mode=0o600, exist_ok=False)
    except OSError:
        yield None
        return
    try:
        yield name
    finally:
        with contextlib.suppress(OSError):
            path.unlink()


def clear_marks(folder: Path) -> None:
    """Remove marks that killed commands left."""
    with contextlib.suppress(OSError):
        for path in folder.glob(f"{_MARK}*"):
            if _NAME.fullmatch(path.name.removeprefix(_MARK)):
                path.unlink()


class OwnFolder:
    """The folder that an agent works in, held from its start to its end, whatever becomes of its name."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        # Windows lets nobody move a folder in which a file is open, as the store is
        self._held = None if os.name == "nt" else os.open(folder, os.O_RDONLY)

    def is_here(self) -> bool | None:
        """Whether the folder is still where it was at the start: False where it was moved, and something else may
        have its name; None where that cannot be said now."""
        if self._held is None:
            return True
        try:
            return os.path.samestat(os.fstat(self._held), self._folder.stat()) or self._is_marked()
        except FileNotFoundError:
            return self._lives_elsewhere()
        except OSError:
            return None

    def proofs(self, token: str, nonce: str, mark: str | None) -> str | None:
        """The answer to a command: the proof of the folder's identity, or, to one that made a mark, of this mark; None
        where the folder is not here, or the mark not in it."""
        if not self.is_here():
            return None
        if mark is None:
            return proof(token, nonce, identity(self._folder))
        there = _NAME.fullmatch(mark) and os.path.exists(self._folder / f"{_MARK}{mark}")  # noqa: PTH110
        return proof(token, nonce, mark) if there else None

    def close(self) -> None:
        """Let the folder go."""
        if self._held is not None:
            os.close(self._held)
            self._held = None

    def _lives_elsewhere(self) -> bool | None:
        """False where the folder can still be read, though not under its name; None where it is a disk that is away."""
        assert self._held is not None
        try:
            os.stat("labref.toml", dir_fd=self._held)
        except OSError:
            return None
        return False

    def _is_marked(self) -> bool:
        """For file systems that number folders anew: is what is made in the folder held found under its name?"""
        assert self._held is not None
        name = f"{_MARK}{secrets.token_hex(16)}"
        os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=self._held))
        try:
            return os.path.exists(self._folder / name)  # noqa: PTH110
        finally:
            os.unlink(name, dir_fd=self._held)
