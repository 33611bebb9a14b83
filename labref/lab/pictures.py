"""Pictures of a lab's cells for pages. They are decoded in the decoding processes, never here.

Thumbnails are kept in LAB/thumbnails: a gallery shows hundreds. At most some 100,000 are kept, about 600 MB; the oldest
go first. They are no more than a cache: whatever is missing or damaged is made again, and where they cannot be written
they are not kept. Of the larger pictures those that were asked for last are kept in memory: the same references stand
beside many cells.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal, get_args

from labref.errors import LabrefError
from labref.files import replace_file
from labref.lab.kept import Kept
from labref.lab.lab import Lab
from labref.words import cell_id_of

__all__ = ["VIEWS", "Pictures", "View", "forget_thumbnail"]

View = Literal["captured", "cell", "thumb", "normalised", "nucleus"]
"""See `labref.cells.display.RENDERERS`."""
VIEWS: Final[tuple[View, ...]] = get_args(View)
_CELL_ID: Final = re.compile("[0-9a-f]{16}")
_VERSION: Final = 1  # grows when a view comes to look otherwise
_MOST: Final = 400  # thumbnails in one of the 256 folders
_GO_AT_ONCE: Final = 50
_IN_MEMORY: Final = 32_000_000  # bytes of pictures
_JPEG: Final = (b"\xff\xd8", b"\xff\xd9")  # its first and last bytes


class Pictures:
    """The pictures of one lab's cells. Methods may be called from any thread."""

    def __init__(
        self,
        lab: Lab,
        is_stored: Callable[[str], bool],
        of_others: Callable[[str, str], bytes | None] | None = None,
        is_removed: Callable[[str], bool] = lambda _: False,
    ) -> None:
        """is_stored : whether a cell of this id is in the store.  of_others : the thumbnail of a cell of another lab,
        by names of lab and cell; None where the lab has no shared store.  is_removed : whether a cell of this id was
        removed, and can be brought back."""
        self._lab, self._is_stored, self._of_others = lab, is_stored, of_others
        self._is_removed = is_removed
        self._made: Kept[bytes] = Kept(_IN_MEMORY)

    def mark(self, cell_id: str, view: View) -> str | None:
        """What stands for a picture: it is another where the picture would be. None where there is no such cell."""
        if not _CELL_ID.fullmatch(cell_id) or not self._is_stored(cell_id):
            return None
        return f"{cell_id}-{view}-{_VERSION}"

    def of_cell(self, cell_id: str, view: View) -> bytes | None:
        """JPEG or PNG of a stored cell; None where there is no such cell, or its bytes are missing. Raises
        `UnreadableImageError` where they cannot be decoded any more, within the limits of labref.toml."""
        mark = self.mark(cell_id, view)
        if mark is None:
            return None
        path, made = _thumbnail(self._lab, cell_id), self._made.get(mark)
        if made is not None:
            return made
        if view == "thumb":
            with contextlib.suppress(OSError):
                made = path.read_bytes()
                if made.startswith(_JPEG[0]) and made.endswith(_JPEG[1]):
                    return made
        data = self._lab.kept_image(cell_id)
        if data is None:
            return None
        made = self.of_bytes(data, view)
        if view == "thumb":
            with contextlib.suppress(OSError):
                _keep(path, made)
        else:
            self._made.put(mark, made, len(made))
        return made

    def of_removed(self, cell_id: str) -> bytes | None:
        """JPEG of a removed cell that can be brought back, small, which is kept nowhere; None where there is no such
        cell, or its bytes are missing. Raises `UnreadableImageError`, as `of_cell` does."""
        if not _CELL_ID.fullmatch(cell_id) or not self._is_removed(cell_id):
            return None
        data = self._lab.kept_image(cell_id)
        return None if data is None else self.of_bytes(data, "thumb")

    def of_central(self, bundle: str, cell_id: str, view: View) -> bytes | None:
        """JPEG or PNG of a cell of the atlas that an installed bundle carries; None where there is none. bundle : the
        first 12 characters of its digest. Raises `UnreadableImageError`, as `of_cell` does."""
        made = self._made.get((bundle, cell_id, view))
        if made is not None:
            return made
        data = self._lab.central_image(bundle, cell_id)
        if data is None:
            return None
        made = self.of_bytes(data, view)
        self._made.put((bundle, cell_id, view), made, len(made))
        return made

    @property
    def shares(self) -> bool:
        """Whether there can be cells of other labs."""
        return self._of_others is not None

    def of_shared(self, lab: str, cell_id: str) -> bytes | None:
        """JPEG of a cell of another lab, small; None where there is none, or the shared store is out of reach."""
        if self._of_others is None or not _CELL_ID.fullmatch(cell_id):
            return None
        made = self._made.get((lab, cell_id))
        if made is None:
            made = self._of_others(lab, cell_id)
            if made is not None:
                self._made.put((lab, cell_id), made, len(made))
        return made

    def of_bytes(self, data: bytes, view: View) -> bytes:
        """JPEG or PNG of a picture that is not stored. Raises `UnreadableImageError`."""
        if view not in VIEWS:
            raise LabrefError(f"there is no view {view!r} of a cell; there is {', '.join(VIEWS)}")
        return self._lab.decoder.show(data, view)


def forget_thumbnail(lab: Lab, digest: str) -> None:
    """Delete the thumbnail of a cell that is gone. digest : of its bytes."""
    with contextlib.suppress(OSError):
        _thumbnail(lab, cell_id_of(digest)).unlink()


def _thumbnail(lab: Lab, cell_id: str) -> Path:
    return lab.thumbnails / cell_id[:2] / f"{cell_id}-{_VERSION}.jpg"


def _keep(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with os.scandir(path.parent) as entries:
        there = list(entries)
    if len(there) >= _MOST:
        oldest = sorted(there, key=lambda entry: entry.stat().st_mtime_ns)
        for entry in oldest[: len(there) - _MOST + _GO_AT_ONCE]:
            with contextlib.suppress(OSError):
                Path(entry).unlink()
    replace_file(path, data)
