"""Files that were moved, or replaced by others, in the analyser's folder: cells are called as the files say that hold
them now."""

from __future__ import annotations

import os
from array import array
from collections import deque
from collections.abc import Collection, Sequence
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from labref.errors import StoreError
from labref.export.paths import path_from_text
from labref.export.roots import Roots
from labref.export.scan import look
from labref.store import FileOfCell, Store

__all__ = ["Moves"]

_AT_ONCE: Final = 1000  # cells in one transaction


class Moves:
    """Which of the paths of cells do not hold them any more. One thread asks; any may add to `changed`.

    changed : paths, as text, that hold something else than before, or bytes that are a cell already.
    """

    def __init__(self, store: Store, roots: Roots, extensions: Collection[str]) -> None:
        """roots : the watched folders.  extensions : endings of the files that are looked at, with the dot."""
        self._store = store
        self._roots = roots
        self._extensions = tuple(extensions)
        # innermost first
        self._folders = sorted(roots.folders, key=len, reverse=True)
        self._filled: Collection[str] = ()
        self._gone: set[str] = set()
        self._replaced: set[FileOfCell] = set()  # that hold something else; looked at
        self._first = True
        self._home = cache(self._home_of)
        self.changed: deque[str] = deque()

    def follow_scan(self, met: array[int], filled: Collection[str]) -> int:
        """Look at all cells that may have been moved, after a whole scan; returns how many changed.

        met : hashes of the paths, as text, of all known files that the scan met unchanged.  filled : the watched
        folders in which it met files. In one without any nothing counts as gone: that may be the empty place of a share
        which is not there.
        """
        self._filled = filled
        files = self._store.shared_files()
        hashes = np.fromiter((hash(file.path) for file in files), np.int64, len(files))
        followed = self._follow(files, np.isin(hashes, np.array(met, np.int64)), again=self._first)
        self._first = False
        self._replaced &= {file for file in files if not file.holds}
        return followed

    def follow_changed(self) -> int:
        """Look at the cells that the files of `changed` hold, or held, which keeps them where the store fails; returns
        how many changed."""
        paths = {self.changed.popleft() for _ in range(len(self.changed))}
        try:
            files = self._store.shared_files(self._store.cells_at(paths))
            return self._follow(files, np.zeros(len(files), np.bool_), again=True)
        except StoreError:
            self.changed.extend(paths)
            raise

    def _follow(self, files: Sequence[FileOfCell], there: NDArray[np.bool_], *, again: bool) -> int:
        """there : bool[n], which of the files were met.  again : look also at the cells of those that were gone
        before, are not watched, or hold something else."""
        looked_at: set[str] = set()
        lost: set[str] = set()
        back: set[str] = set()
        replaced: set[FileOfCell] = set()
        gone: dict[str, set[str]] = {}
        for file, met in zip(files, there.tolist(), strict=True):
            if not file.holds:
                is_gone, new = True, again or file not in self._replaced
                replaced.add(file)
            elif met:
                is_gone, new = False, file.path in self._gone
            elif file.path in self._gone and not again:
                is_gone, new = True, False
            elif not self._is_watched(file.path):
                is_gone, new = True, again
            else:
                is_gone = self._is_gone(file.path)
                new = is_gone or file.path in self._gone
                if is_gone:
                    lost.add(file.path)
            if is_gone:
                gone.setdefault(file.cell_id, set()).add(file.path)
            elif file.path in self._gone:
                back.add(file.path)
            if new:
                looked_at.add(file.cell_id)
        cells = _doubtful(files, gone, looked_at)
        parts = [cells[start : start + _AT_ONCE] for start in range(0, len(cells), _AT_ONCE)]
        followed = sum(
            self._store.follow({cell: gone[cell] for cell in part}, is_gone=cache(self._is_gone)) for part in parts
        )
        # only now: what the store did not take is looked at again
        self._gone = (self._gone - back) | lost
        self._replaced |= replaced
        self._home.cache_clear()  # links may lead elsewhere by then
        return followed

    def _is_gone(self, name: str) -> bool:
        """Whether it is certain that there is nothing at this path."""
        path = path_from_text(name)
        root = self._root(path)
        return root in self._filled and root is not None and look(path, root) is None

    def _is_watched(self, name: str) -> bool:
        """Whether a scan would look at this path, be there a file or not. One that was watched once, and is not any
        more, says nothing against one that is."""
        folder, name = os.path.split(path_from_text(name))
        return self._home(folder) and name.lower().endswith(self._extensions) and not self._roots.is_reserved(name)

    def _home_of(self, folder: str) -> bool:
        """Whether a scan would look at the files of this folder, under this name."""
        file = os.path.join(folder, "_")  # noqa: PTH118
        root = self._root(file)
        home = None if root is None else self._roots.home(file, root)
        return home is not None and home[0] == file

    def _root(self, path: str) -> str | None:
        """The innermost watched folder in which this path lies, as text."""
        return next((root for root in self._folders if path.startswith(os.path.join(root, ""))), None)  # noqa: PTH118


def _doubtful(files: Sequence[FileOfCell], gone: dict[str, set[str]], looked_at: set[str]) -> list[str]:
    """Those of the cells looked at that may be called otherwise: which do not go by a file that holds them, or carry a
    label that none of these says while another is said. Asking the store takes a hundred times as long."""
    own: set[str] = set()
    said: dict[str, bool] = {}
    for file in files:
        if file.cell_id in looked_at and file.path not in gone.get(file.cell_id, ()):
            if file.own:
                own.add(file.cell_id)
            if file.agrees is not None:
                said[file.cell_id] = file.agrees or said.get(file.cell_id, False)
    return [cell for cell in gone if cell in looked_at and (cell not in own or not said.get(cell, True))]
