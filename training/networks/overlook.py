"""Overlooking neighbours: an encoder learns to give a cell with neighbours the latent of the cell alone.

The preparation fades other cells, but neither the parts where they cover the cell nor their exact borders. So whole
pictures are made of training cells with neighbours, and prepared as in the lab. Then the last, linear layer of the
encoder is computed again by ridge regression (Hoerl & Kennard, Technometrics 12:55, 1970). For a crop with neighbours,
and for a crop without, it shall give the latent that the encoder gave for the cell alone. The classifier and all
features stay unchanged.

Where expert attributes are known, cells of one class are also drawn together, the more attributes they share: the
wanted latent of a cell lies halfway between its own latent and the weighted mean of similar cells.
"""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import keras
import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress

from labref.cells.image import decode, prepare_pixels
from labref.cpus import usable_cpus
from labref.errors import UnreadableImageError
from training.augmentation.composites import beside
from training.data.images import Item, require_pictures, resize_crop
from training.networks.architecture import build_feature_model
from training.networks.devices import forward
from training.run import Run, RunError, load_attribute_codes, require_networks, require_new

__all__ = ["Overlooked", "drawn_together", "overlook", "solve"]

NEAR_FAR: Final = (88.0, 132.0)
"""Distance of a neighbour's middle from the cell's, pixels."""
_APART: Final = np.pi / 3
_SECOND: Final = 0.5  # share of the cells that get two neighbours
_AT_ONCE: Final = 8  # cells, each in all orientations; more only need more memory
_DRAWN: Final = 0.5  # share of the way from a cell's latent to the mean of cells with its class and attributes
_COMPARED: Final = 256  # cells that are compared with all others of their class at once
_ALIKE: Final = 0.7  # the weight of another cell's latent is exp(-number of attributes that differ / this)

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]


@dataclass(frozen=True)
class Overlooked:
    """A run whose encoder overlooks neighbours.

    cells : number of cells that the layer was computed from.  before, after : mean squared error between the latent of
    a cell with neighbours and that of the cell alone, over cells left out, with the earlier and the new encoder.
    alone : mean squared error between the latents of the two encoders, of the same cells without neighbours.
    """

    run: Run
    cells: int
    before: float
    after: float
    alone: float


def overlook(run: Run, folder: Path, progress: Progress, *, cells: int = 3000, ridge: float = 3.0) -> Overlooked:
    """Make a run in `folder` like `run`, with an encoder that overlooks neighbours. `run` itself is not changed.

    cells : number of training cells, evenly chosen, that get neighbours; a tenth of them is left out and only measured.
    ridge : the larger, the less the layer changes. Raises `RunError`, and ValueError where the run is on a pool.
    """
    require_new(folder)
    require_pictures(run.data)
    require_networks(run)
    items = run.split.train
    chosen = np.unique(np.linspace(0, len(items) - 1, min(cells, len(items))).astype(int))
    if len(chosen) < 20:
        raise RunError(f"{run.folder} is trained on {len(items)} images; at least 20 are needed")
    classifier = keras.models.load_model(run.folder / "classifier.keras", compile=False)
    encoder = keras.models.load_model(run.folder / "encoder.keras", compile=False)
    layer = encoder.get_layer("latent_mean")
    features = forward(build_feature_model(classifier, run.config.orientations))
    hidden = forward(keras.Model(encoder.input, layer.input))
    size = run.config.classifier.input_size
    alone: list[F32] = []
    crowded: list[F32] = []
    used: list[int] = []
    task = progress.add_task("cells beside others", total=len(chosen), info="")

    def pair(number: int) -> tuple[U8, U8] | None:
        try:
            picture, crowd = _crowded(run, items, number)
        except (UnreadableImageError, OSError):
            return None
        return tuple(resize_crop(prepare_pixels(pixels).crop, size) for pixels in (picture, crowd))  # type: ignore[return-value]

    with ThreadPoolExecutor(max_workers=usable_cpus()) as pool:
        for start in range(0, len(chosen), _AT_ONCE):
            numbers = chosen[start : start + _AT_ONCE].tolist()
            pairs = list(zip(numbers, pool.map(pair, numbers), strict=True))
            made = [both for _, both in pairs if both is not None]
            used += [number for number, both in pairs if both is not None]
            if made:
                for values, index in ((alone, 0), (crowded, 1)):
                    values.append(hidden(features(np.stack([both[index] for both in made]))))
            progress.update(task, advance=min(_AT_ONCE, len(chosen) - start))
    if not alone:
        raise RunError(f"none of {len(chosen)} images of {run.data} can be read")
    by_itself, among = np.concatenate(alone), np.concatenate(crowded)
    judging = np.arange(len(by_itself)) % 10 == 0
    kernel, bias = layer.get_weights()
    latents = by_itself @ kernel + bias
    drawn = drawn_together(run, np.array(used)[~judging], latents[~judging], _DRAWN)
    solved = solve(kernel, bias, by_itself[~judging], among[~judging], ridge, drawn)
    wanted = latents[judging]

    def error(values: F32, weights: tuple[F32, F32]) -> float:
        return float(((values[judging] @ weights[0] + weights[1] - wanted) ** 2).mean())

    layer.set_weights(list(solved))
    origin = dict(run.adopted or {}) | {
        "overlooks_neighbours": {
            "cells": int((~judging).sum()),
            "ridge": ridge,
            "drawn": _DRAWN * bool(run.config.attributes),
        }
        | ({"of_student": True} if "distilled" in (run.adopted or {}) else {})
    }
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(run.folder / "classifier.keras", folder / "classifier.keras")
    encoder.save(folder / "encoder.keras")
    made_run = Run.create(folder, run.data, run.config, run.split, adopted=origin)
    return Overlooked(
        made_run,
        int((~judging).sum()),
        error(among, (kernel, bias)),
        error(among, solved),
        error(by_itself, solved),
    )


def solve(kernel: F32, bias: F32, alone: F32, crowded: F32, ridge: float, wanted: F32 | None = None) -> tuple[F32, F32]:
    """The linear layer, kernel float32[d, L] and bias float32[L], whose outputs for `alone` and for `crowded` are as
    close to `wanted` as `ridge` allows (ridge regression towards the layer given; each input is scaled by its spread).

    alone, crowded : float32[n, d], inputs of the same cells without and with neighbours.  wanted : float32[n, L]; by
    default the outputs of the layer given for `alone`.
    """
    ones = np.ones((len(alone), 1))
    a, b = np.hstack([alone.astype(np.float64), ones]), np.hstack([crowded.astype(np.float64), ones])
    weights = np.vstack([kernel, bias]).astype(np.float64)
    outputs = a @ weights if wanted is None else wanted.astype(np.float64)
    spread = np.append(alone.astype(np.float64).var(axis=0) + 1e-6, 1.0)
    left = a.T @ a + b.T @ b + ridge * np.diag(spread)
    changed = weights + np.linalg.solve(left, a.T @ (outputs - a @ weights) + b.T @ (outputs - b @ weights))
    return changed[:-1].astype(np.float32), changed[-1].astype(np.float32)


def drawn_together(run: Run, numbers: NDArray[np.intp], latents: F32, share: float) -> F32:
    """The wanted latents float32[n, L] of the training cells `numbers`: each goes `share` of the way to the mean of the
    cells with its class, which count the more of its attributes they have. Without attributes they are the latents
    themselves."""
    if not run.config.attributes:
        return latents
    codes = load_attribute_codes(run, "train").codes[numbers]
    labels = np.array([run.split.train[number].label for number in numbers.tolist()])
    result = latents.copy()
    for label in sorted(set(labels.tolist())):
        rows = np.flatnonzero((labels == label) & (codes >= 0).all(axis=1))
        for start in range(0, len(rows), _COMPARED):
            some = rows[start : start + _COMPARED]
            weights = np.exp(-(codes[some][:, None] != codes[rows][None]).sum(axis=2) / _ALIKE)
            weights[np.arange(len(some)), start + np.arange(len(some))] = 0.0
            total = weights.sum(axis=1, keepdims=True)
            like = total[:, 0] > 1e-6
            mean = (weights[like] @ latents[rows]) / total[like]
            result[some[like]] += (share * (mean - latents[some[like]])).astype(np.float32)
    return result


def _crowded(run: Run, items: tuple[Item, ...], number: int) -> tuple[U8, U8]:
    """The picture of item `number`, and the same with one or two cells of other classes beside its own."""
    rng = np.random.default_rng([run.config.seed, number])
    item = items[number]
    picture = decode((run.data / item.path).read_bytes())
    same_optics = item.path.split("/")[0] + "/" if run.config.domains else ""
    crowd, angle = picture, rng.uniform(0, 2 * np.pi)
    for _ in range(2 if rng.random() < _SECOND else 1):
        other = item
        for _ in range(50):  # of another class and the same optics, where there is one
            other = items[int(rng.integers(len(items)))]
            if other.label != item.label and other.path.startswith(same_optics):
                break
        laid: Any = decode((run.data / other.path).read_bytes())
        distance = rng.uniform(*NEAR_FAR)
        crowd = beside(crowd, laid, distance * np.sin(angle), distance * np.cos(angle))
        angle += rng.uniform(_APART, 2 * np.pi - _APART)
    return picture, crowd
