"""Files that were moved in the analyser's folder: their cells are called as the files say that are still there."""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from labref.errors import StoreError
from labref.export.paths import path_from_text
from labref.export.scan import look
from labref.store import Store

__all__ = ["Moves"]

_AT_ONCE: Final = 1000  # cells in one transaction


class Moves:
    """Which of the paths of cells with several are gone. One thread asks; any may add to `copied`.

    copied : paths, as text, at which bytes were found that are a cell already.
    """

    def __init__(self, store: Store, roots: Sequence[Path]) -> None:
        """roots : the watched folders."""
        self._store = store
        # innermost first
        self._roots = sorted((str(root) for root in roots), key=len, reverse=True)
        self._filled: Collection[str] = ()
        self._gone: set[str] = set()
        self.copied: deque[str] = deque()

    def follow_scan(self, met: array[int], filled: Collection[str]) -> int:
        """Look at all cells with several paths, after a whole scan; returns how many changed.

        met : hashes of the paths, as text, of all known files that the scan met unchanged.  filled : the watched
        folders in which it met files. In one without any nothing counts as gone: that may be the empty place of a share
        which is not there.
        """
        self._filled = filled
        files = self._store.shared_files()
        hashes = np.fromiter((hash(path) for _, path in files), np.int64, len(files))
        return self._follow(files, np.isin(hashes, np.array(met, np.int64)), again=False)

    def follow_copies(self) -> int:
        """Look at the cells of `copied`, which keeps them where the store fails; returns how many changed."""
        paths = {self.copied.popleft() for _ in range(len(self.copied))}
        try:
            cells = {cell for cell in self._store.cells_of_files(paths).values() if cell is not None}
            files = self._store.shared_files(cells)
            return self._follow(files, np.zeros(len(files), np.bool_), again=True)
        except StoreError:
            self.copied.extend(paths)
            raise

    def _follow(self, files: Sequence[tuple[str, str]], there: NDArray[np.bool_], *, again: bool) -> int:
        """there : bool[n], which of the files were met.  again : look also at those that were gone before."""
        changed: set[str] = set()
        lost: set[str] = set()
        back: set[str] = set()
        for (cell, path), met in zip(files, there.tolist(), strict=True):
            if not met and path in self._gone and not again:
                continue
            if not met and self._is_gone(path):
                lost.add(path)
                changed.add(cell)
            elif path in self._gone:
                back.add(path)
                changed.add(cell)
        all_gone = (self._gone - back) | lost
        gone: dict[str, set[str]] = {}
        for cell, path in files:
            if cell in changed and path in all_gone:
                gone.setdefault(cell, set()).add(path)
        cells = list(gone)
        parts = [cells[start : start + _AT_ONCE] for start in range(0, len(cells), _AT_ONCE)]
        followed = sum(self._store.follow({cell: gone[cell] for cell in part}) for part in parts)
        self._gone = all_gone  # only now: what the store did not take is looked at again
        return followed

    def _is_gone(self, name: str) -> bool:
        """Whether it is certain that there is no file at this path."""
        path = path_from_text(name)
        root = next((root for root in self._roots if Path(path).is_relative_to(root)), None)
        return root in self._filled and root is not None and look(path, root) is None
