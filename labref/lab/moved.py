"""Watched folders that got another name, as another drive letter or mount point: their slides, and who approved them,
go with them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final

from labref.export.paths import path_from_text
from labref.store import Store

__all__ = ["follow_folders"]

_LOOKED_AT: Final = 20  # of the cells that came last


def follow_folders(store: Store, watched: Sequence[str]) -> None:
    """Let slides go with the watched folders that lie elsewhere now. watched : the lab's, as text.

    A folder is taken for one of before that is watched no more where both are one folder, by a link or another case; or
    where that one is not there any more, and this one alone holds most of the files of the cells that came from it
    last, each of its size. A folder that has cells of its own is left alone.
    """
    new = [folder for folder in watched if not store.slides.has(folder)]
    if not new:
        return
    found: dict[str, str] = {}
    for old in store.slides.folders() - {"", *watched}:
        holding = [folder for folder in new if _is_same(old, folder)]
        if not os.path.lexists(path_from_text(old)):
            files = store.slides.files(old, _LOOKED_AT)
            holding = [folder for folder in new if 2 * _held(files, old, folder) > len(files)]
        if len(holding) == 1:
            found[old] = holding[0]
    if len(set(found.values())) == len(found):  # else two came together in one, and nobody can say which it was
        store.slides.rename(found)


def _is_same(old: str, new: str) -> bool:
    try:
        return os.path.samefile(path_from_text(old), path_from_text(new))  # noqa: PTH121
    except (OSError, ValueError):
        return False


def _held(files: Sequence[tuple[str, int]], old: str, new: str) -> int:
    """How many of the files below one folder lie in another, at the same place and of the same size."""
    held = 0
    for path, size_bytes in files:
        if path.startswith(old):
            try:
                held += os.stat(path_from_text(new + path[len(old) :])).st_size == size_bytes
            except (OSError, ValueError):
                continue
    return held
