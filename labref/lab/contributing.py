"""What a lab keeps of the packs that it gave to the centre: its own key, and what the last pack left the centre with.

LAB/key, LAB/key.pub  the lab's own key (`labref.bundles.keyfile`), made when it is first asked for. Whoever has it can
                      sign as this lab, and say which cell a pseudonym stands for
LAB/packs/last.npz    which cells the centre has after the last pack, as which class

Both stay in the lab, and neither is in a backup. Without the second the next pack holds all that the lab gives.
"""

from __future__ import annotations

import contextlib
import hmac
import io
import os
import threading
import zipfile
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Final

import numpy as np
from numpy.typing import NDArray

from labref.bundles.keyfile import SigningKey, check_key_name, new_key, public_of, write_new
from labref.errors import KeyFileError, LabError
from labref.failpoints import failpoint
from labref.files import give, read_file, sync_folder
from labref.lab.lab import Lab

__all__ = ["Given", "Pseudonyms", "known_key", "own_key"]

_NAME: Final = "a lab"
_FOLDER: Final = "packs"
_FILE: Final = "last.npz"
_MOST_BYTES: Final = 2_000_000_000
_MOST_DAYS: Final = 3650
_making = threading.Lock()


def own_key(lab: Lab, name: str | None = None) -> tuple[SigningKey, bool]:
    """The lab's own key, made where it has none; and whether it was made now. name : whose it is, for people; one that
    has another name gets this one, and stays the same key.

    Raises `KeyFileError` where it is lost or cannot be used.
    """
    file, group = lab.folder / "key", lab.config.access.group
    with _making:
        if public_of(file).exists() and not file.exists():
            raise KeyFileError(
                f"{file}, the lab's own key, is missing. Put it back; where it is lost, delete {public_of(file)}: the lab then gets "
                "another key, the centre has to trust that, and counts it as another lab."
            )
        if public_of(file).exists():
            opened = SigningKey.open(file, group=group)
            return (opened if name in (None, opened.public.name) else _renamed(lab, opened, str(name))), False
        if file.exists():  # the public one is made of it
            SigningKey.restore_public(file, name or _NAME)
            give(public_of(file), lab.rights)
            return SigningKey.open(file, group=group), False
        draft = lab.folder / f".key-{os.urandom(6).hex()}"
        try:
            public = new_key(draft, name or _NAME)
            failpoint("key.made")
            for path in (draft, public_of(draft)):
                give(path, lab.rights)
            os.replace(draft, file)
            failpoint("key.renamed", may_fail=False)
            os.replace(public_of(draft), public_of(file))
            sync_folder(lab.folder)
        finally:
            for path in (draft, public_of(draft)):
                path.unlink(missing_ok=True)
        opened = SigningKey.open(file, group=group)
        assert opened.public.id == public.id
        return opened, True


def _renamed(lab: Lab, key: SigningKey, name: str) -> SigningKey:
    """The same key, its public file with another name: the name is no part of the key, and of no pack."""
    check_key_name(name)
    file = public_of(lab.folder / "key")
    draft = file.with_name(f".{file.name}-{os.urandom(6).hex()}")
    try:
        write_new(draft, replace(key.public, name=name).to_bytes(), 0o644)
        give(draft, lab.rights)
        os.replace(draft, file)
        sync_folder(lab.folder)
    finally:
        draft.unlink(missing_ok=True)
    return SigningKey.open(lab.folder / "key", group=lab.config.access.group)


def known_key(lab: Lab) -> SigningKey | None:
    """The lab's own key; None where it has none, or none that can be used. No key is made."""
    try:
        return SigningKey.open(lab.folder / "key", group=lab.config.access.group)
    except KeyFileError:
        return None


class Pseudonyms:
    """The names under which a lab gives its cells and analysers: nobody can turn them back without its key."""

    def __init__(self, key: SigningKey) -> None:
        """key : the lab's own."""
        self._secret = key.secret("labref pack pseudonyms 1")

    def _digest(self, what: str, of: str) -> bytes:
        return hmac.new(self._secret, f"{what}\n{of}".encode("utf-8", "surrogatepass"), sha256).digest()

    def cell(self, cell_id: str) -> str:
        """A cell, 16 hexadecimal characters."""
        return self._digest("cell", cell_id).hex()[:16]

    def optics(self, analyser: str | None) -> str:
        """An analyser, or all without a name: 12 hexadecimal characters."""
        return self._digest("optics" if analyser is not None else "no optics", analyser or "").hex()[:12]

    def history(self, text: str) -> str:
        """All that was said of a label, 32 hexadecimal characters."""
        return self._digest("history", text).hex()[:32]

    def content(self, text: str) -> int:
        """What a pack says of a cell, as an unsigned 64-bit integer."""
        return int.from_bytes(self._digest("content", text)[:8], "big")

    def days(self) -> int:
        """By how many days this lab moves dates into the past, always the same: 1 to 3650."""
        return 1 + int.from_bytes(self._digest("days", "")[:8], "big") % _MOST_DAYS


@dataclass(frozen=True, eq=False)
class Given:
    """What the centre has of a lab after its last pack.

    pack : digest of its archive, None before the first.  number : of it.  last : the largest number that a pack was
    given, which may have been cut off while it was written.  cells : uint64[n], ids as integers, ascending.  contents :
    uint64[n], what the packs say of each (`Pseudonyms.content`).
    """

    pack: str | None
    number: int
    last: int
    cells: NDArray[np.uint64]
    contents: NDArray[np.uint64]

    @staticmethod
    def nothing(last: int = 0) -> Given:
        """Before the first pack. last : the largest number that a pack was given."""
        return Given(None, 0, last, np.empty(0, np.uint64), np.empty(0, np.uint64))

    @staticmethod
    def load(lab: Lab, key: str) -> Given:
        """What was kept; nothing where that was of another key of the lab. Raises `LabError` where it is damaged."""
        file = lab.folder / _FOLDER / _FILE
        try:
            with np.load(io.BytesIO(read_file(file, _MOST_BYTES)), allow_pickle=False) as arrays:
                if str(arrays["key"]) != key:
                    return Given.nothing()
                found = Given(
                    str(arrays["pack"]) or None,
                    int(arrays["number"]),
                    int(arrays["last"]),
                    arrays["cells"].astype(np.uint64),
                    arrays["contents"].astype(np.uint64),
                )
        except FileNotFoundError:
            return Given.nothing()
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise LabError(
                f"{file} says what the centre has of this lab, and cannot be read: {error}. Restore it, or delete it: the next pack then "
                "holds all that the lab gives."
            ) from None
        if found.cells.shape != found.contents.shape or not (found.cells[1:] > found.cells[:-1]).all():
            raise LabError(f"{file} is damaged. Delete it: the next pack then holds all that the lab gives.")
        return found

    def save(self, lab: Lab, key: str) -> None:
        """Keep it in the place of what was kept, whole or not at all."""
        made = io.BytesIO()
        np.savez(
            made,
            key=np.array(key),
            pack=np.array(self.pack or ""),
            number=np.array(self.number, np.int64),
            last=np.array(self.last, np.int64),
            cells=self.cells,
            contents=self.contents,
        )
        folder = lab.folder / _FOLDER
        folder.mkdir(exist_ok=True)
        give(folder, lab.rights)
        draft = folder / f"{_FILE}.{os.urandom(6).hex()}.part"
        try:
            write_new(draft, made.getvalue(), lab.rights.file)
            failpoint("pack.state")
            os.replace(draft, folder / _FILE)
            sync_folder(folder)
        finally:
            with contextlib.suppress(OSError):
                draft.unlink(missing_ok=True)

    def of(self, cells: NDArray[np.uint64]) -> NDArray[np.intp]:
        """Where cells stand in `cells`: intp[n], -1 for those that the centre has not. cells : uint64[n]."""
        at = np.searchsorted(self.cells, cells)
        there = at < len(self.cells)
        there[there] = self.cells[at[there]] == cells[there]
        return np.where(there, at, -1)
