"""The uncertainty of figures: bootstrap intervals of a mean, and Wilson's interval of a share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Estimate", "bootstrap", "bootstrap_of_seeds", "share"]

LEVEL = 0.95
_RESAMPLES = 1000
_DRAWN_AT_ONCE = 100_000  # values
_SEED = 1


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval: `value`, `low`, `high`. n : number of independent draws.  how : the kind of the
    interval."""

    value: float
    low: float
    high: float
    n: int
    how: str

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)


def bootstrap(
    values: ArrayLike, *, strata: Sequence[Any] | None = None, clusters: Sequence[Any] | None = None
) -> Estimate:
    """The mean of values with the interval of the percentile bootstrap (Efron & Tibshirani 1993, section 13.3; 1,000
    resamples).

    values : float[n]; no values give NaN.  strata : n group names; the figure is then the mean of the groups' means,
    and each group is resampled separately.  clusters : n names of clusters, such as the reference image of a triplet;
    whole clusters are then resampled. Strata and clusters cannot be combined.
    """
    numbers = np.asarray(values, dtype=np.float64)
    if strata is not None and clusters is not None:
        raise ValueError("strata or clusters, not both")
    if not len(numbers):
        return Estimate(float("nan"), float("nan"), float("nan"), 0, "nothing to measure")
    rng = np.random.default_rng(_SEED)
    if strata is not None:
        names, code = np.unique(np.asarray(strata), return_inverse=True)
        groups = [numbers[code == number] for number in range(len(names))]
        means = np.mean([_means(group, np.ones(len(group)), rng) for group in groups], axis=0)
        value = float(np.mean([group.mean() for group in groups]))
        return _interval(value, means, len(numbers), f"bootstrap within {len(names)} groups")
    sums, counts = numbers, np.ones(len(numbers))
    if clusters is not None:
        _, code = np.unique(np.asarray(clusters), return_inverse=True)
        sums, counts = np.bincount(code, numbers).astype(np.float64), np.bincount(code).astype(np.float64)
    how = "bootstrap" if clusters is None else f"bootstrap over {len(sums)} clusters"
    return _interval(float(numbers.mean()), _means(sums, counts, rng), len(sums), how)


def bootstrap_of_seeds(values: NDArray[np.float64], *, strata: Sequence[Any] | None = None) -> Estimate:
    """As `bootstrap`, of the mean over seeds: seeds and cells are resampled together (Davison & Hinkley 1997, section
    3.8). With few seeds the interval is too narrow for the scatter between them.

    values : float64[s, n], of s trainings that differ by their seed alone, on the same n cells.  strata : as there.
    """
    seeds, n = values.shape
    if seeds == 1 or not n:
        return bootstrap(values[0] if seeds else np.empty(0), strata=strata)
    rng = np.random.default_rng(_SEED)
    _, code = np.unique(np.zeros(n) if strata is None else np.asarray(strata), return_inverse=True)
    groups = [np.flatnonzero(code == number) for number in range(code.max() + 1)]
    found = np.empty(_RESAMPLES)
    for number in range(_RESAMPLES):
        drawn = values[rng.integers(0, seeds, seeds)].mean(axis=0)
        found[number] = np.mean([drawn[group[rng.integers(0, len(group), len(group))]].mean() for group in groups])
    value = float(np.mean([values[:, group].mean() for group in groups]))
    return _interval(value, found, n, f"bootstrap over {seeds} seeds and {n} cells")


def _means(sums: NDArray[np.float64], counts: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """The mean of each resample, float64[_RESAMPLES]. Many are drawn at once: with few values, each by itself would
    take twenty times as long, and the same numbers are drawn."""
    parts = []
    at_once = max(1, _DRAWN_AT_ONCE // len(sums))
    for first in range(0, _RESAMPLES, at_once):
        drawn = rng.integers(0, len(sums), (min(at_once, _RESAMPLES - first), len(sums)))
        parts.append(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1))
    return np.concatenate(parts)


def _interval(value: float, means: NDArray[np.float64], n: int, how: str) -> Estimate:
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value, float(low), float(high), n, how)


def share(successes: int, n: int) -> Estimate:
    """`successes` of `n` with Wilson's score interval (Wilson 1927), which holds near 0 and 1. n = 0 gives NaN."""
    if n == 0:
        return Estimate(float("nan"), float("nan"), float("nan"), 0, "nothing to measure")
    from scipy.stats import binomtest  # a second and a half to import, and most who import this module need no share

    interval = binomtest(successes, n).proportion_ci(LEVEL, method="wilson")
    return Estimate(successes / n, float(interval.low), float(interval.high), n, "Wilson")
