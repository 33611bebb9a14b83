"""What of a stored cell deserves a look: it is new to the lab, or its neighbours are called otherwise.

Looking for neighbours takes milliseconds a cell, so what was found is kept in memory for the latest that were asked
for: `known` gives that, `found` looks as well.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final
from weakref import WeakKeyDictionary

from labref.asking import references
from labref.asking.prediction import Because, predict
from labref.bundles.bundle import Bundle
from labref.export.layout import ClassNames
from labref.store import Cell, Embedded, Store

__all__ = ["Marks", "found", "known"]

_MOST_KEPT: Final = 20_000
_DISAGREE: Final = 0.5  # of the spread another class has to have


@dataclass(frozen=True, slots=True)
class Marks:
    """What was found of a cell. novelty : above 1 it is unlike the cells of the lab; None where there is no other.
    no_class : no class of the lab resembles it.  because : why the class that the networks give is withheld; None where
    it is shown.  label, share : the most frequent class among the nearest hundred, weighted by distance; None where
    there is none."""

    novelty: float | None
    is_novel: bool
    no_class: bool
    because: Because | None
    label: str | None
    share: float | None

    def disagrees(self, label: str) -> bool:
        """Whether most of its neighbours are called otherwise than the cell is."""
        return self.label is not None and self.label != label and (self.share or 0) > _DISAGREE


_KEPT: WeakKeyDictionary[Store, dict[tuple[str, str], Marks]] = WeakKeyDictionary()
_LOOKING = threading.Lock()


def known(store: Store, bundle: str, ids: Sequence[str]) -> dict[str, Marks]:
    """What is kept of these cells, by id. bundle : digest of the one that answers."""
    kept = _KEPT.get(store, {})
    return {cell_id: made for cell_id in ids if (made := kept.get((bundle, cell_id))) is not None}


def found(store: Store, bundle: Bundle, cells: Sequence[Cell], names: ClassNames) -> dict[str, Marks]:
    """What is kept of these cells, or found now, by id; cells without a latent are left out. names : of classes."""
    kept = _KEPT.setdefault(store, {})
    marks = known(store, bundle.digest, [cell.cell_id for cell in cells])
    missing = [cell for cell in cells if cell.cell_id not in marks]
    embedded = store.embedded([cell.cell_id for cell in missing], bundle=bundle.digest)
    for cell in missing:
        said = embedded.get(cell.cell_id)
        if said is None:
            continue
        with _LOOKING:  # everybody who has the live page open asks about a new cell in the same moment
            made = known(store, bundle.digest, [cell.cell_id]).get(cell.cell_id)
            if made is None:
                made = kept[(bundle.digest, cell.cell_id)] = _looked(store, bundle, cell, said, names)
        marks[cell.cell_id] = made
    while len(kept) > _MOST_KEPT:
        kept.pop(next(iter(kept)), None)
    return marks


def _looked(store: Store, bundle: Bundle, cell: Cell, said: Embedded, names: ClassNames) -> Marks:
    predicted = (said.label, said.probability)
    near = references.find(
        store,
        bundle=bundle,
        latent=said.latent,
        digest=cell.digest,
        stored=cell,
        k=1,
        probabilities=dict([predicted]),
        placed=False,
    )
    label, share = next(iter(near.distribution.weights.items()), (None, None))
    prediction = predict(store, bundle, predicted, near, names, partial(store.optics.of, cell.cell_id))
    novelty = near.novelty
    return Marks(novelty.score, novelty.is_novel, novelty.no_class, prediction.because, label, share)
