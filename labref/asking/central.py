"""Central cells among the references: cells of the bundle's atlas (`labref.bundles.atlas`) stand in where the lab has
too few of its own.

Own cells come first. A cell of the atlas may stand in only for a class that is *plausible* for the query: the class of
one of the lab's own references, the networks' most probable class, or one that they give at least 20 %.

Among these and the lab's own references the k nearest are shown. A central cell is from another microscope, so the
lab's own cells of other classes are nearer to the query by their optics alone. For this choice its distance is
therefore multiplied by 0.7 + 0.3 n / 8a, where n is how many cells of its class the lab has, and a how many the atlas
has: by 0.7 where the lab has none, by 1 where it has eight times as many as the atlas. So the share of central cells
falls as the lab grows, twice over: its own cells come nearer, and those of the atlas count as farther. The
lab's cells of a class are those from the optics that are searched; a physical cell counts once, however often it was
captured. What is told of a central cell is the distance itself.

The numbers were chosen on labs of 50 to 4,900 cells of pbc and of up to 80 of chula, by class precision@8
(`tests.benchmarks.atlas`, whose figures are of other cells). Central cells are never counted: not in the spread, the
novelty, the map, the status or the ledger. They have no place on the map, so `by="map"` shows none.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from labref.bundles.atlas import Atlas, AtlasSource
from labref.export.layout import ClassNames
from labref.store import Neighbour, Store

__all__ = ["AS_NEAR", "NEARER", "PLAUSIBLE", "Central", "as_called", "fill", "nearest_of", "plausible"]

NEARER: Final = 0.7
"""The distance of a central cell counts as so much of what it is where the lab has no cell of its class."""
AS_NEAR: Final = 8.0
"""It counts as what it is where the lab has so many times as many cells of the class as the atlas."""
PLAUSIBLE: Final = 0.2
"""A class is plausible to which the networks give at least this probability."""


@dataclass(frozen=True)
class Central:
    """The atlas as a lab sees it. names : which names stand for which class in the lab."""

    atlas: Atlas
    names: ClassNames

    @cached_property
    def labels(self) -> NDArray[np.str_]:
        """The class of each cell of the atlas, as the lab calls it: str[n]."""
        called = {label: self.names.label(label) for label in set(self.atlas.labels)}
        return np.array([called[label] for label in self.atlas.labels])

    @cached_property
    def rows(self) -> Mapping[str, NDArray[np.int64]]:
        """The rows of each class, as the lab calls it."""
        return {label: np.flatnonzero(self.labels == label) for label in sorted(set(self.labels.tolist()))}

    def label(self, cell_id: str) -> str:
        """The class of a cell of the atlas, as the lab calls it."""
        return str(self.labels[self.atlas.rows[cell_id]])

    def source(self, cell_id: str) -> AtlasSource:
        """Where a cell of the atlas is from."""
        return self.atlas.sources[self.atlas.rows[cell_id]]


@lru_cache(maxsize=4)
def as_called(atlas: Atlas, classes: tuple[str, ...], own: tuple[tuple[str, str], ...]) -> Central:
    """The atlas of a bundle with these classes, in a lab whose labref.toml names classes so ([watch.labels]). It is
    made once."""
    return Central(atlas, ClassNames(classes, dict(own)))


def plausible(central: Central, references: Collection[str], probabilities: Mapping[str, float]) -> set[str]:
    """The classes of the atlas, as the lab calls them, that the query may be of. references : classes of the lab's own
    references.  probabilities : of the networks, by class."""
    likely = {label for label, probability in probabilities.items() if probability >= PLAUSIBLE}
    if probabilities:
        likely.add(max(probabilities, key=lambda label: probabilities[label]))
    named = {central.names.label(label) for label in (*references, *likely)}
    return named & set(central.rows)


def fill(
    store: Store,
    central: Central,
    latent: NDArray[np.float32],
    *,
    own: Sequence[Neighbour],
    labels: Collection[str],
    probabilities: Mapping[str, float],
    k: int,
    analyser: str | None,
) -> list[Neighbour]:
    """The k references, nearest first: of the lab's own, and of the atlas where it stands in.

    latent : float32[L] of the query.  own : the lab's own references, nearest first, at most k.  labels : their
    classes.  probabilities : of the networks, by class.  analyser : whose cells were searched; None for all.
    """
    classes = plausible(central, labels, probabilities)
    called = [label for label in store.label_counts() if central.names.label(label) in classes]
    counted: dict[str, int] = {}
    for label, cells in store.distinct(called, analyser=analyser).items():
        known = central.names.label(label)
        counted[known] = counted.get(known, 0) + cells
    rows = np.concatenate([np.empty(0, np.int64), *(central.rows[label] for label in sorted(classes))])
    away = central.atlas.distances(latent)[rows]
    factors = [np.full(len(central.rows[label]), _factor(central, label, counted)) for label in sorted(classes)]
    counts_as = away * np.concatenate([np.empty(0), *factors])
    first = np.argsort(counts_as, kind="stable")[:k].tolist()
    order = sorted(
        [
            *((one.distance, 0, one) for one in own),
            *((float(counts_as[at]), 1, Neighbour(central.atlas.ids[rows[at]], float(away[at]))) for at in first),
        ],
        key=lambda of_one: (of_one[0], of_one[1], of_one[2].cell_id),
    )
    return sorted((one for *_, one in order[:k]), key=lambda one: (one.distance, one.cell_id))


def _factor(central: Central, label: str, counted: Mapping[str, int]) -> float:
    """What the distance of a central cell of this class is multiplied by. counted : the lab's cells, by class."""
    share = counted.get(label, 0) / (AS_NEAR * len(central.rows[label]))
    return NEARER + (1 - NEARER) * share


def nearest_of(central: Central, latent: NDArray[np.float32]) -> dict[str, Neighbour]:
    """By class, as the lab calls it, the cell of the atlas that is nearest to latent float32[L]."""
    away = central.atlas.distances(latent)
    nearest = {label: int(rows[away[rows].argmin()]) for label, rows in central.rows.items()}
    return {label: Neighbour(central.atlas.ids[row], float(away[row])) for label, row in nearest.items()}
