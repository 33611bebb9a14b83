"""Whether the class that the networks give a cell is shown, and if not, why: the one rule for answers, pictures, pages.

The references speak first. The prediction is withheld where

    nothing     nothing in the lab resembles the cell
    no class    no class of the lab does, or the lab has no cell of the predicted class
    optics      the optics are not those that the networks were trained on, as `labref status` warns
                (`labref.asking.drift`): what they say there nobody has measured
    neighbours  most of the cells nearest to it, weighted by likeness, are of another class

The class stays in the answer, for machines; a person sees it grey or not at all, with the reason in words.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from labref.asking.analysers import Optics
from labref.asking.drift import from_training
from labref.asking.novelty import Novelty
from labref.asking.references import Found
from labref.bundles.bundle import Bundle
from labref.cells.optics import FROM_TRAINING, shifts
from labref.export.layout import ClassNames
from labref.store import Store
from labref.words import LabelSource

__all__ = ["Because", "Prediction", "at_a_glance", "far_from_training", "judged", "lacks", "predict"]

Because = Literal["nothing", "no class", "optics", "neighbours"]
_MOST: Final = 0.5  # of the spread that another class has to have
_SECONDS: Final = 60.0  # for which it is remembered how far an analyser is off, while no cell comes
_ALONE: Final = 4 * FROM_TRAINING  # deviations of a single cell whose analyser is not known


@dataclass(frozen=True)
class Prediction:
    """The class that the networks give, and whether a person is shown it.

    label, probability : the most probable class.  shown : whether it is shown.  because : why it is not, one of
    `Because`; None where it is.  reason : that in words.
    """

    label: str
    probability: float
    shown: bool
    because: Because | None
    reason: str | None


def judged(
    label: str,
    probability: float,
    *,
    novelty: Novelty,
    spread: Mapping[str, float],
    lacking: bool,
    strange: str | None,
    names: ClassNames,
) -> Prediction:
    """The prediction, by the rule in this module's description.

    spread : share of each class among the nearest cells.  lacking : the lab has no cell of the class (`lacks`).
    strange : how the optics differ from what the networks were trained on, in words (`far_from_training`); None where
    they do not.  names : which names stand for which class.
    """
    shares: dict[str, float] = {}
    for name, share in spread.items():
        known = names.label(name)
        shares[known] = shares.get(known, 0.0) + share
    other, most = max(shares.items(), key=lambda item: item[1], default=(label, 0.0))

    def withheld(because: Because, reason: str) -> Prediction:
        return Prediction(label, probability, False, because, reason)

    if novelty.is_novel:
        return withheld("nothing", "nothing in this lab resembles the cell")
    if lacking:
        return withheld("no class", f"this lab has no cell called {label}")
    if novelty.no_class:
        return withheld("no class", "no class of this lab resembles the cell")
    if strange is not None:
        return withheld("optics", f"the optics are not those that the networks were trained on: {strange}")
    if other != names.label(label) and most > _MOST:
        return withheld("neighbours", f"most of the cells like it are called otherwise: {other}, {most:.0%}")
    return Prediction(label, probability, True, None, None)


def predict(
    store: Store,
    bundle: Bundle,
    predicted: tuple[str, float],
    found: Found,
    names: ClassNames,
    measures: Callable[[], NDArray[np.float32] | None],
) -> Prediction:
    """The prediction of a cell whose references were found. predicted : class and probability that the networks give.
    measures : returns those of its optics, float32[7]."""
    label, probability = predicted
    return judged(
        label,
        probability,
        novelty=found.novelty,
        spread=found.distribution.weights,
        lacking=lacks(store, label, names),
        strange=far_from_training(store, bundle, found.optics, measures),
        names=names,
    )


def at_a_glance(store: Store, bundle: Bundle, label: str, analyser: str | None, names: ClassNames) -> Because | None:
    """Why the predicted class of a stored cell is withheld, without looking for its neighbours: the lab has no such
    class, or its analyser's optics are not those of the training. Microseconds; None where neither is so."""
    if lacks(store, label, names):
        return "no class"
    how = "unknown" if analyser is None else "stored"
    return None if far_from_training(store, bundle, Optics(analyser, False, how, 0)) is None else "optics"


def lacks(store: Store, label: str, names: ClassNames) -> bool:
    """Whether the lab has no cell that a person or the analyser called so. False in a lab where nobody calls any cell
    anything. Milliseconds for a million cells, from memory."""
    changes = store.label_book.changes
    kept = _GIVEN.get(store)
    if kept is None or kept[0] is not store.label_book or kept[1] != changes:
        given = {name for (name, source) in store.label_book.counts() if source is not LabelSource.PREDICTED}
        kept = _GIVEN[store] = (store.label_book, changes, given)
    return bool(kept[2]) and names.label(label) not in {names.label(name) for name in kept[2]}


_GIVEN: WeakKeyDictionary[Store, tuple[object, int, set[str]]] = WeakKeyDictionary()
_Known = dict[tuple[str, str | None], tuple[int, float, dict[str, float] | None]]
_KEPT: WeakKeyDictionary[Store, _Known] = WeakKeyDictionary()


def far_from_training(
    store: Store, bundle: Bundle, optics: Optics, measures: Callable[[], NDArray[np.float32] | None] | None = None
) -> str | None:
    """How the optics of the query's analyser differ from those that the networks were trained on, in words; None where
    they do not, or nothing is known of either. It is what `labref status` warns of.

    measures : returns float32[7] of the query itself, which tells where its analyser is not known, or has fewer than 50
    measured cells; one cell may be four times as far off.
    """
    trained_on = bundle.manifest.optics
    if not trained_on:
        return None
    names = store.analysers()
    if optics.analyser in names and (optics.how not in ("unknown", "any") or len(names) == 1):
        kept = _KEPT.setdefault(store, {})
        key, cells = (bundle.digest, optics.analyser), names[optics.analyser]
        now = time.monotonic()
        if key not in kept or kept[key][0] != cells or now > kept[key][1] + _SECONDS:
            kept[key] = (cells, now, from_training(store, bundle, optics.analyser))
        shift = kept[key][2]
        if shift is not None:
            return _worst(shift, FROM_TRAINING)
    own = None if measures is None else measures()
    if own is None or not np.isfinite(own).all():
        return None
    return _worst(shifts(own[None], trained_on), _ALONE)


def _worst(found: Mapping[str, float], limit: float) -> str | None:
    """The measure that is farthest off, in words; None where none is beyond the limit."""
    name, shift = max(found.items(), key=lambda item: abs(item[1]), default=("", 0.0))
    return f"{name.replace('_', ' ')} by {abs(shift):.0f} deviations" if abs(shift) >= limit else None
