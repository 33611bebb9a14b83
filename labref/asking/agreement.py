"""How well people agree with each other and with a truth, each figure with its 95 % interval.

Shares have Wilson's score interval (1927) where the answers are independent, and so have means of shares; what is
pooled over people or compared between arms has the percentile bootstrap over cells (Efron & Tibshirani 1993, section
13.3), since the answers to one cell belong together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import scipy  # its parts load when they are first used
from numpy.typing import NDArray

__all__ = [
    "Figure",
    "cohen",
    "difference",
    "fleiss",
    "mean_over_cells",
    "mean_share",
    "median",
    "share",
    "sign_test",
    "weighted",
]

_LEVEL: Final = 0.95
_NORMAL: Final = 1.959963984540054  # quantile of the normal distribution that belongs to it
_RESAMPLES: Final = 2000
_SEED: Final = 1

F64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure with its 95 % interval, None where there is nothing to measure. n : number of independent draws: answers
    for a share, cells for all else."""

    value: float | None
    low: float | None
    high: float | None
    n: int


NOTHING: Final = Figure(None, None, None, 0)


def share(right: int, n: int) -> Figure:
    """`right` of n, with Wilson's interval."""
    return _wilson(right / n, n, n) if n else NOTHING


def mean_share(values: Sequence[float]) -> Figure:
    """The mean of shares, 0 to 1, of cells that were drawn independently, with Wilson's interval for as many answers of
    yes or no. No shares with that mean scatter more than these do, so the interval is never too narrow; unlike the
    bootstrap's it has a width where all shares are 1."""
    return _wilson(math.fsum(values) / len(values), len(values), len(values)) if values else NOTHING


def weighted(parts: Sequence[tuple[float, Figure]]) -> Figure:
    """The weighted mean of shares of several strata, with Wilson's interval for the number of independent draws that
    would scatter as much (Kish 1965, Survey Sampling, section 11.7). parts : (weight, share) of each stratum; those
    without a value are left out."""
    known = [(weight, part.value, part.n) for weight, part in parts if part.value is not None and weight > 0]
    if not known:
        return NOTHING
    total = math.fsum(weight for weight, _, _ in known)
    mean = math.fsum(weight * value for weight, value, _ in known) / total
    draws = total**2 / math.fsum(weight**2 / n for weight, _, n in known)
    return _wilson(mean, draws, sum(n for _, _, n in known))


def _wilson(mean: float, draws: float, n: int) -> Figure:
    mean, square = min(max(mean, 0.0), 1.0), _NORMAL**2
    middle = (mean + square / (2 * draws)) / (1 + square / draws)
    half = _NORMAL / (1 + square / draws) * math.sqrt(mean * (1 - mean) / draws + square / (4 * draws**2))
    return Figure(mean, max(0.0, middle - half), min(1.0, middle + half), n)


def mean_over_cells(values: Mapping[Any, Sequence[float]]) -> Figure:
    """The mean of all values, with the bootstrap over cells. values : of each cell."""
    cells = [np.asarray(of_cell, np.float64) for of_cell in values.values() if len(of_cell)]
    if not cells:
        return NOTHING
    sums, counts = np.array([one.sum() for one in cells]), np.array([float(len(one)) for one in cells])
    drawn = _resamples(len(cells))
    return _figure(float(sums.sum() / counts.sum()), sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1), len(cells))


def difference(pairs: Mapping[Any, Sequence[tuple[float, float]]]) -> Figure:
    """The mean of second minus first, with the bootstrap over cells. pairs : of each cell, of one person each."""
    return mean_over_cells({cell: [second - first for first, second in of_cell] for cell, of_cell in pairs.items()})


def median(values: Mapping[Any, Sequence[float]]) -> Figure:
    """The median of all values, with the bootstrap over cells."""
    cells = [np.asarray(of_cell, np.float64) for of_cell in values.values() if len(of_cell)]
    if not cells:
        return NOTHING
    found = [float(np.median(np.concatenate([cells[at] for at in drawn]))) for drawn in _resamples(len(cells), 500)]
    return _figure(float(np.median(np.concatenate(cells))), np.array(found), len(cells))


def sign_test(better: int, worse: int) -> float | None:
    """McNemar's exact test: how probable so uneven a split is where an arm changes nothing; None without any."""
    return float(scipy.stats.binomtest(better, better + worse).pvalue) if better + worse else None


def cohen(first: Sequence[str], second: Sequence[str]) -> Figure:
    """Cohen's kappa (1960) of two people on the same cells; 1 where neither ever said anything else."""
    if not first:
        return NOTHING
    names = sorted({*first, *second})
    one, other = _columns(first, names), _columns(second, names)
    agreed = (one * other).sum(axis=1)

    def kappa(drawn: NDArray[np.intp]) -> F64:
        by_chance = (one[drawn].mean(axis=-2) * other[drawn].mean(axis=-2)).sum(axis=-1)
        return _above_chance(agreed[drawn].mean(axis=-1), by_chance)

    return _figure(float(kappa(np.arange(len(first)))), _in_parts(kappa, len(first)), len(first))


def fleiss(answers: Sequence[Sequence[str]]) -> Figure:
    """Fleiss' kappa (1971) of several people. answers : of each cell those of all, each time of the same number of
    people, at least two."""
    if not answers:
        return NOTHING
    people = len(answers[0])
    if people < 2 or any(len(of_cell) != people for of_cell in answers):
        raise ValueError("each cell needs the answers of the same number of people, at least two")
    names = sorted({name for of_cell in answers for name in of_cell})
    counts = np.array([[float(list(of_cell).count(name)) for name in names] for of_cell in answers])
    agreed = ((counts**2).sum(axis=1) - people) / (people * (people - 1))

    def kappa(drawn: NDArray[np.intp]) -> F64:
        by_chance = ((counts[drawn].mean(axis=-2) / people) ** 2).sum(axis=-1)
        return _above_chance(agreed[drawn].mean(axis=-1), by_chance)

    return _figure(float(kappa(np.arange(len(answers)))), _in_parts(kappa, len(answers)), len(answers))


def _columns(said: Sequence[str], names: Sequence[str]) -> F64:
    chosen: F64 = (np.array(said)[:, None] == np.array(names)[None, :]).astype(np.float64)
    return chosen


def _above_chance(agreed: Any, by_chance: Any) -> F64:
    agreed, by_chance = np.asarray(agreed, np.float64), np.asarray(by_chance, np.float64)
    certain = by_chance > 1 - 1e-12
    kappa: F64 = np.where(certain, 1.0, (agreed - by_chance) / np.where(certain, 1.0, 1 - by_chance))
    return kappa


def _resamples(n: int, times: int = _RESAMPLES) -> NDArray[np.intp]:
    return np.random.default_rng(_SEED).integers(0, n, (times, n))


def _in_parts(kappa: Any, n: int) -> F64:
    """Of resamples, some at a time: with a thousand cells and twenty classes all at once would take gigabytes."""
    drawn = _resamples(n)
    return np.concatenate([kappa(drawn[start : start + 50]) for start in range(0, len(drawn), 50)])


def _figure(value: float, resampled: F64, n: int) -> Figure:
    low, high = np.quantile(resampled, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return Figure(value, float(low), float(high), n)
