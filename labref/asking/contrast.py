"""The nearest cell of each plausible class that is not among the references, so that a rare class is not drowned by a
common one.

A class is plausible where its nearest cell is not much farther than the references are, or where the networks give it
some probability. Of the nearest neighbours that were searched anyway, the nearest of the class is taken; of a class
that has none among them, the nearest of its examples (`Store.examples`); and of a class that the lab has none of, the
nearest of the bundle's atlas, where there is one (`labref.asking.central`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence, Set
from typing import Final

import numpy as np
from numpy.typing import NDArray

from labref.store import Neighbour, Store
from labref.words import LabelSource

__all__ = ["MOST_CONTRASTS", "contrasting"]

MOST_CONTRASTS: Final = 4
"""Classes in the row of contrast, at most."""
_FARTHEST: Final = 3.0
"""A class is plausible where its nearest cell is at most so many times as far as the references are on average."""
_PROBABLE: Final = 0.02
"""Or where the networks give it at least this probability."""

_Labelled = Mapping[str, tuple[str, LabelSource]]


def contrasting(
    store: Store,
    bundle: str,
    latent: NDArray[np.float32],
    *,
    references: Sequence[Neighbour],
    shown: Set[str],
    neighbours: Sequence[Neighbour],
    labelled: _Labelled,
    probabilities: Mapping[str, float],
    barred: Collection[str],
    may: Callable[[Collection[str]], Set[str]],
    choose: Callable[[Sequence[Neighbour], Mapping[str, int]], Neighbour],
    central: Mapping[str, Neighbour],
    called: Callable[[str], str],
) -> list[Neighbour]:
    """The nearest cell of each plausible class that the references do not show, the nearest first, at most
    `MOST_CONTRASTS`.

    latent : float32[L], in the latent space of `bundle`.  references, shown : what is shown, and its classes.
    neighbours : what the search found, nearest first.  labelled : {cell id: (class, who gave it)} of these.
    probabilities : of the networks, by class.  barred : ids of cells that may not be shown.  may : those of some cells,
    by id, that are among those asked.  choose : of cells of one class, nearest first, and the weights of their labels,
    the one that is shown.  central : by class, the nearest cell of the atlas.  called : the class that a label of the
    lab or of the bundle stands for, as the classes of `central` are called.
    """
    if not references:
        return []
    near: dict[str, list[Neighbour]] = {}
    for one in neighbours:
        near.setdefault(labelled[one.cell_id][0], []).append(one)
    others = store.examples(latent, bundle=bundle, without={*shown, *near}, exclude=barred)
    allowed = may([one.cell_id for cells in others.values() for one in cells])
    near |= {label: [one for one in cells if one.cell_id in allowed] for label, cells in others.items()}
    farthest = _FARTHEST * sum(one.distance for one in references) / len(references)
    found: list[Neighbour] = []
    for label, cells in near.items():
        plausible = cells and (cells[0].distance <= farthest or probabilities.get(label, 0.0) >= _PROBABLE)
        if plausible and label not in shown:
            carried = store.labelled([one.cell_id for one in cells])
            found.append(choose(cells, {cell_id: source.weight for cell_id, (_, source) in carried.items()}))
    had = {called(label) for label in (*shown, *(label for label, cells in near.items() if cells))}
    likely = {called(label) for label, probability in probabilities.items() if probability >= _PROBABLE}
    found += [
        one for label, one in central.items() if label not in had and (one.distance <= farthest or label in likely)
    ]
    return sorted(found, key=lambda one: (one.distance, one.cell_id))[:MOST_CONTRASTS]
