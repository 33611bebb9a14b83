"""Some cells of each class with their latents, in memory: enough to say how near a class comes that is not near.

A search for nearest neighbours ends long before it meets a rare class beside a common one. So of each class the cells
with the smallest ids are kept. An id is the beginning of a digest, so that is a random sample, the same one whoever
draws it and in whatever order the cells came; of a class with fewer cells it is all of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping
from typing import Final, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from labref.store.memory import distances
from labref.store.memory.books import CellBook

__all__ = ["MOST_EXAMPLES", "Examples"]

MOST_EXAMPLES: Final = 500
"""Cells that are kept of a class."""
_NEAR: Final = 32  # of a class; their distances are computed exactly
_LARGE, _SECONDS = 100_000, 2.0  # among so many cells, examples are chosen anew no oftener than so

_Value = TypeVar("_Value", bound=Hashable)


class _Held(NamedTuple):
    """The examples of a class. chosen : their ids, those without a latent too.  ids, latents : uint64[n] and
    float32[n, L] of those that have one."""

    chosen: list[int]
    ids: NDArray[np.uint64]
    latents: NDArray[np.float32]


class Examples:
    """The examples of all classes in one latent space. Safe from several threads: what is read never changes."""

    def __init__(self) -> None:
        self._chosen: dict[str, list[int]] = {}
        self._held: dict[str, _Held] = {}
        self._book: object = None
        self._changes = -1
        self._chosen_at = 0.0

    def follow(self, book: CellBook[_Value], label_of: Callable[[_Value], str]) -> None:
        """Choose the examples again where labels have changed since the last time.

        book : what each cell carries.  label_of : its class.
        """
        changes = book.changes
        recent = len(book) > _LARGE and time.monotonic() - self._chosen_at < _SECONDS
        if self._book is book and (recent or self._changes == changes):
            return
        self._chosen = book.firsts(label_of, MOST_EXAMPLES)
        self._book, self._changes, self._chosen_at = book, changes, time.monotonic()

    def chosen(self, label: str) -> list[int]:
        """Ids of the examples of a class, those without a latent too."""
        return self._chosen.get(label, [])

    @property
    def labels(self) -> list[str]:
        """The classes that cells have."""
        return list(self._chosen)

    def nearest(
        self,
        query: NDArray[np.float32],
        label: str,
        latents_of: Callable[[list[int]], Mapping[int, NDArray[np.float32]]],
    ) -> list[tuple[int, float]]:
        """The examples of a class that are nearest to the query float32[L], at most 32: (id, mean squared error),
        nearest first.

        latents_of : the latents of cells, by id, without those that have none; asked for examples that are new.
        """
        _, ids, latents = self._of(label, latents_of)
        if len(ids) > _NEAR:
            # sums in float32 choose; the few that are left are measured as all searches do
            away = np.square(latents - query).sum(axis=1)
            near = np.argpartition(away, _NEAR)[:_NEAR]
            ids, latents = ids[near], latents[near]
        if not len(ids):
            return []
        exact = distances.exact(latents, query)
        return [(int(ids[at]), float(exact[at])) for at in distances.order(exact, ids, _NEAR)]

    def _of(self, label: str, latents_of: Callable[[list[int]], Mapping[int, NDArray[np.float32]]]) -> _Held:
        chosen, held = self._chosen.get(label, []), self._held.get(label)
        if held is None or (held.chosen is not chosen and held.chosen != chosen):
            had = {} if held is None else dict(zip(held.ids.tolist(), held.latents, strict=True))
            missing = [number for number in chosen if number not in had]
            had |= latents_of(missing) if missing else {}
            there = [number for number in chosen if number in had]
            latents = np.stack([had[number] for number in there]) if there else np.empty((0, 1), np.float32)
            held = self._held[label] = _Held(chosen, np.array(there, np.uint64), latents)
        return held
