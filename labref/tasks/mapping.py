"""When the lab's maps are trained again, on which cells, and whether the result is put in use.

There is one map of all cells. Where cells of several analysers are in the lab, each analyser with enough of them gets a
map of its own as well."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Generator, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np

from labref import som
from labref.config import MapConfig
from labref.errors import LabrefError, StoreError
from labref.som.child_process import MAP_FILE, Task, train_apart
from labref.store import Placed, Store, StoredMap

__all__ = [
    "FEWEST",
    "FEWEST_OWN",
    "QE_TOLERANCE",
    "SAMPLE",
    "TE_TOLERANCE",
    "TRAINED_MOST",
    "due",
    "due_own",
    "own_to_come",
    "retrain",
    "size",
]

FEWEST: Final = 64
"""The fewest cells that a map is trained on."""
FEWEST_OWN: Final = 200
"""The fewest cells of an analyser that gets a map of its own."""
_MOST_OWN: Final = 16
"""So many analysers get a map of their own at most, those with the most cells: names can be wrong by the hundred."""
SAMPLE: Final = 2000
"""Number of cells that two maps are compared on: the cells with the smallest ids. Ids are digests, so the choice is
random, and only new cells change it."""
TRAINED_MOST: Final = 200_000
"""The most cells that a map is trained on, about three for each node of the largest map. In a larger lab these are
the cells with the smallest ids; all cells are placed on the map."""
QE_TOLERANCE: Final = 0.02
"""A new map is worse where its quantisation error on the sample exceeds that of the map in use by more than this
share."""
TE_TOLERANCE: Final = 0.02
"""A new map is worse where its topographic error (a share of the sample) exceeds that of the map in use by more than
this, as a difference."""
_RESIZE_AT: Final = 1.5  # the size stays until the number of nodes would change by this factor: people know the places
_REST: Final = 10  # pause after a training, in durations of that training: training takes at most a tenth of the time
_TEMPORARY: Final = ".training-"


def due(
    store: Store, config: MapConfig, bundle: str, analyser: str | None = None, *, at: datetime | None = None
) -> str | None:
    """Why the map of a bundle's latent space is due for training, in a few words; None where it is not due.

    analyser : whose cells' own map; None: the map of all cells.  at : the time to judge at, with a time zone; by
    default now. Takes milliseconds.
    """
    if not config.enabled:
        return None
    cells = store.maps.embedded(bundle, analyser)
    if cells < (FEWEST if analyser is None else FEWEST_OWN):
        return None
    of_bundle = [version for version in store.maps.every() if version.bundle == bundle]
    versions = [version for version in of_bundle if version.analyser == analyser]
    now = at or datetime.now(UTC)
    if store.maps.active(bundle, analyser) is None:
        if analyser is not None and _rests(of_bundle, now):
            return None
        return "the weights of the map are missing" if versions else "there is no map for this bundle yet"
    last = versions[-1]
    if _rests(of_bundle, now):
        return None
    if cells >= last.cells * (1 + config.retrain_growth):
        return f"the store grew from {last.cells} to {cells} cells"
    # the clock may have been ahead
    if cells > last.cells and abs(now - last.trained_at) >= timedelta(hours=config.retrain_hours):
        return "there are new cells, and the map is old"
    return None


def due_own(store: Store, config: MapConfig, bundle: str) -> str | None:
    """The analyser whose own map is due for training; None where none is. A lab with cells of one analyser alone has
    no such maps: they would be the map of all cells."""
    if not (config.enabled and config.per_analyser):
        return None
    return next((name for name in _with_own(store, bundle) if due(store, config, bundle, name) is not None), None)


def own_to_come(store: Store, config: MapConfig, bundle: str) -> list[str]:
    """The analysers that get a map of their own and have none yet, the one with most cells first: they are trained one
    after another, with a rest between."""
    if not (config.enabled and config.per_analyser):
        return []
    return [name for name in _with_own(store, bundle) if store.maps.active(bundle, name) is None]


def _with_own(store: Store, bundle: str) -> list[str]:
    """The analysers that get a map of their own, the one with most cells first."""
    cells = store.maps.analysers(bundle)
    if len(cells) < 2:
        return []
    named = sorted((-n, name) for name, n in cells.items() if name is not None and n >= FEWEST_OWN)
    return [name for _, name in named[:_MOST_OWN]]


def _rests(versions: Sequence[StoredMap], at: datetime) -> bool:
    """Whether the last training, of whichever map, was so lately that none is begun."""
    return bool(versions) and abs(at - versions[-1].trained_at) < timedelta(seconds=_REST * versions[-1].seconds)


def size(cells: int, before: StoredMap | None, most: int) -> tuple[int, int]:
    """Rows and columns of a map for this number of cells, each at most `most`.

    The size of the map `before` is kept, until the right number of nodes is 1.5 times as large or 1.5 times as small.
    """
    rows, cols = (min(side, most) for side in som.size_for(cells))
    if before is not None and max(before.rows, before.columns) <= most:
        ratio = rows * cols / (before.rows * before.columns)
        if 1 / _RESIZE_AT < ratio < _RESIZE_AT:
            return before.rows, before.columns
    return rows, cols


def retrain(
    store: Store,
    config: MapConfig,
    bundle: str,
    *,
    analyser: str | None = None,
    rows: int | None = None,
    cols: int | None = None,
    sigma: float | None = None,
    seed: int | None = None,
    trainer: str = "batch",
    full: bool = False,
) -> Generator[tuple[int, int, str], None, StoredMap]:
    """Train the map of a bundle's latent space, and put it in use unless it is as large as the map in use, and worse.

    Yields (done, total, text), and returns the new version. Where the generator is closed before its end, or the
    process is killed, the map in use stays in use.

    analyser : the map of this one's cells alone; None: that of all cells.  rows, cols : by default chosen by `size`.
    sigma : radius at the start, in nodes.  seed : by default the seed of the map in use.  trainer : "batch" or
    "minisom", see `labref.som.train`.  full : train from the start; else training
    continues from the map in use. Raises `LabrefError` where there are too few cells, or training fails.
    """
    active = store.maps.active(bundle, analyser)
    before = None if active is None else active.version
    folder = store.maps.folder
    try:
        folder.mkdir(exist_ok=True)
        for left in folder.glob(f"{_TEMPORARY}*"):
            shutil.rmtree(left, ignore_errors=True)  # of a training that was killed
        temporary = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=folder))
    except OSError as error:
        raise StoreError(
            f"a map cannot be trained in {folder}: {error.strerror or error}. Look at its rights and the disk."
        ) from error
    try:
        parts = list(store.maps.latents(bundle, analyser=analyser))
        cells = sum(len(ids) for ids, _ in parts)
        if cells < FEWEST:
            whose = "the lab" if analyser is None else f"the analyser {analyser!r}"
            raise LabrefError(f"a map needs at least {FEWEST} cells, and {whose} has {cells}; take in more first")
        ids = np.concatenate([ids for ids, _ in parts])
        latents = np.concatenate([latents for _, latents in parts])
        parts.clear()
        chosen = size(cells, before, config.max_side)
        by_id = np.argsort(ids)
        task = Task(
            rows or chosen[0],
            cols or chosen[1],
            sigma,
            seed if seed is not None else 0 if before is None else before.seed,
            trainer,
            warm=before is not None and not full,
            device=config.device,
        )
        result = yield from train_apart(
            temporary,
            latents,
            trained=np.sort(by_id[:TRAINED_MOST]),
            sample=np.sort(by_id[:SAMPLE]),
            before=None if before is None else store.maps.weights_file(before.number),
            task=task,
        )
        del latents
        verdict = "first"
        if before is not None:
            assert result.qe_before is not None
            assert result.te_before is not None
            worse = result.qe > result.qe_before * (1 + QE_TOLERANCE) or result.te > result.te_before + TE_TOLERANCE
            # fewer nodes lie farther from the cells, whatever the map is worth
            same_size = (before.rows, before.columns) == (task.rows, task.cols)
            verdict = "resized" if not same_size else "worse" if worse else "better"
        version = StoredMap(
            number=0,
            bundle=bundle,
            rows=task.rows,
            columns=task.cols,
            sigma=result.sigma,
            seed=task.seed,
            trainer=trainer,
            started_from=before.number if before is not None and task.warm else None,
            cells=cells,
            qe=result.qe,
            te=result.te,
            qe_before=result.qe_before,
            te_before=result.te_before,
            moved_far=result.moved_far,
            verdict=verdict,
            seconds=round(result.seconds, 3),
            trained_at=datetime.now(UTC),
            analyser=analyser,
        )
        save = partial(som.save, som.load(temporary / MAP_FILE))
        yield cells, cells, "writing the map"
        if verdict == "worse":
            return store.maps.keep(version, save)
        return store.maps.switch(version, save, Placed(ids, result.nodes, result.errors))
    except OSError as error:
        raise LabrefError(
            f"the map could not be trained: {error.strerror or error}. The earlier map stays in use; look at the free disk space."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
