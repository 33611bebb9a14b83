"""Adopting a shipped bundle: a run is made that holds the bundle's networks, with this labref's preparation. The run
can be shipped again, or trained further."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import tensorflow as tf
from numpy.typing import NDArray
from rich.progress import Progress

from labref.cells.image import CROP_SIZE
from training.augmentation.augment import augment
from training.augmentation.neighbours import draw_neighbours
from training.config import RunConfig, override
from training.data.images import read_cells, resize_crop
from training.networks.architecture import build_classifier, build_trunk
from training.networks.devices import forward
from training.networks.graphs import Graph, build_encoder, fill_classifier, settle_normalisation
from training.networks.shipped import Shipped, read_bundle
from training.run import Run, RunError, require_new
from training.settings import SettingsError

__all__ = ["Adopted", "adopt"]

LIMIT = 1e-4
"""Largest difference of probabilities and latents between the networks read back and the graphs."""
_SETTLED_ON = 512
"""Number of training cells from which the statistics of the batch normalisations are taken."""


@dataclass(frozen=True)
class Adopted:
    """A run that holds a bundle's networks, and how it was checked.

    run : the run.  shipped : the bundle.  probabilities, latents : largest differences from the bundle's graphs on its
    golden crops.
    same_split : whether the images are split as those that the bundle was trained on.  accuracy : of the classifier on
    `cells` cells trained on, prepared as today.
    """

    run: Run
    shipped: Shipped
    probabilities: float
    latents: float
    same_split: bool
    accuracy: float
    cells: int


def adopt(source: Path, data: Path, folder: Path, settings: list[str], progress: Progress) -> Adopted:
    """Make in `folder` a run whose `classifier.keras` and `encoder.keras` hold the networks of the bundle `source`.

    The run has the bundle's settings, with `settings` laid over them, and its split of the images of `data`, by name;
    cells are prepared as this labref does. Batch normalisations get the statistics of cells trained on, changed as in
    training, so that a run that names this classifier as its `classifier.initial` goes on from it. The networks are
    checked against the graphs on the bundle's golden crops before anything is written. Raises `RunError` and
    `BundleError`.
    """
    require_new(folder)
    shipped = read_bundle(source)
    manifest = shipped.manifest
    try:
        config = RunConfig.from_json(dict(manifest.training["config"]))
    except (KeyError, TypeError, SettingsError) as error:
        raise RunError(
            f"{source} does not say by which settings it was trained, or this labref does not know them: {error}"
        ) from None
    config = override(config, settings)
    classifier = build_classifier(config.classifier, len(manifest.labels))
    fill_classifier(classifier, Graph(shipped.files["trunk.onnx"], "trunk.onnx"))
    encoder = build_encoder(Graph(shipped.files["encoder.onnx"], "encoder.onnx"), config.vae, manifest.features)

    made = Run.plan(folder, data, config)
    if made.split.labels != manifest.labels:
        raise RunError(
            f"{data} has the classes {', '.join(made.split.labels)}, the bundle {', '.join(manifest.labels)}"
        )
    crops, targets = _training_crops(made, progress)
    settle_normalisation(classifier, _changed(crops, targets, config), config.classifier.batch_size)
    differences = _differences(classifier, encoder, config, shipped)
    if not max(differences) <= LIMIT:
        raise RunError(
            f"the networks read from {source} do not give what its graphs give: probabilities differ by {differences[0]:.2g}, latents "
            f"by {differences[1]:.2g}, at most {LIMIT:g} is allowed. It was exported by another exporter, or --set changes its networks."
        )
    right = float((forward(classifier)(crops).argmax(axis=1) == targets).mean())
    told = {
        "bundle": shipped.digest,
        "name": manifest.name,
        "version": manifest.version,
        "preparation": dict(manifest.preparation),
        "split": manifest.training.get("split_digest"),
        "differences": {"probabilities": differences[0], "latents": differences[1]},
    }
    folder.mkdir(parents=True, exist_ok=True)
    classifier.save(folder / "classifier.keras")
    encoder.save(folder / "encoder.keras")
    run = Run.create(folder, data, config, made.split, adopted=told)
    same = manifest.training.get("split_digest") == run.split.digest
    return Adopted(run, shipped, *differences, same, right, len(crops))


def _training_crops(run: Run, progress: Progress) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Crops uint8[n, s, s, 3] of cells trained on, evenly taken and at the network's input size, and their classes
    int64[n]."""
    items = run.split.train
    chosen = np.unique(np.linspace(0, len(items) - 1, min(_SETTLED_ON, len(items))).astype(int))
    crops, targets = [], []
    task = progress.add_task("preparing cells", total=len(chosen), info="")
    size = run.config.classifier.input_size
    for start in range(0, len(chosen), 128):
        part = [items[index] for index in chosen[start : start + 128].tolist()]
        made = read_cells(run.data, part, lambda cell: resize_crop(cell.crop, size))
        progress.update(task, advance=len(part))
        crops += [crop for crop in made if crop is not None]
        targets += [
            run.split.labels.index(item.label) for item, crop in zip(part, made, strict=True) if crop is not None
        ]
    if not crops:
        raise RunError(f"none of {len(chosen)} images of {run.data} can be read")
    order = np.random.default_rng(run.config.seed).permutation(len(crops))
    return np.stack(crops)[order], np.array(targets, np.int64)[order]


def _changed(crops: NDArray[np.uint8], targets: NDArray[np.int64], config: RunConfig) -> NDArray[np.float32]:
    """Crops float32[n, s, s, 3] changed as in training."""
    augmentation, seed = config.classifier.augmentation, tf.constant([config.seed, 0], tf.int32)
    others = None
    if augmentation.neighbour:
        rows, generator = np.arange(len(crops)), np.random.default_rng(config.seed)
        others = crops[draw_neighbours(rows, rows, targets, np.zeros_like(targets), generator)]
    return np.asarray(augment(crops, augmentation, seed, others))


def _differences(classifier: Any, encoder: Any, config: RunConfig, shipped: Shipped) -> tuple[float, float]:
    """The largest difference of a probability, and of a latent value, between the Keras networks and the graphs, on the
    bundle's golden crops."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    trunk, second = (
        onnxruntime.InferenceSession(shipped.files[name], options, providers=["CPUExecutionProvider"])
        for name in ("trunk.onnx", "encoder.onnx")
    )
    with np.load(io.BytesIO(shipped.files["golden.npz"]), allow_pickle=False) as arrays:
        crops = arrays["crops"]
    if crops.shape[1:] != (CROP_SIZE, CROP_SIZE, 3) or not len(crops):
        raise RunError(f"the bundle's golden crops are {crops.shape}; there must be some of {CROP_SIZE}×{CROP_SIZE}×3")
    probabilities, features = trunk.run(["probabilities", "features"], {"crops": crops})
    (latents,) = second.run(["latent"], {"features": features})
    found = build_trunk(classifier, config.orientations)(crops, training=False)
    mean, _ = encoder(found["features"], training=False)
    return (
        float(np.abs(np.asarray(found["probabilities"]) - probabilities).max()),
        float(np.abs(np.asarray(mean) - latents).max()),
    )
