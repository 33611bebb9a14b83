"""Features at the classifier's break, and the VAE that turns them into latents."""

from __future__ import annotations

import csv
import os
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from rich.progress import Progress

from training.augmentation.augment import VIEW, augment, with_optics
from training.augmentation.neighbours import draw_neighbours
from training.config import VaeConfig
from training.data.images import batches
from training.networks.architecture import (
    AttributeLoss,
    build_feature_model,
    build_vae_parts,
    draw_weights,
    orbit_matrix,
)
from training.networks.devices import forward
from training.run import Run, RunError, domain_codes, fill_rows, held, load_attribute_codes, load_part, rows_done

__all__ = ["Features", "extract_features", "kept_features", "neighbour_loss", "plain_features", "train_vae"]


class Features:
    """Features of one part of a run.

    views : float16 memory map [n, v, h, w, c]; view 0 is the plain crop.  targets : int64[n], class indices.  codes :
    int64[n, a], expert attributes, -1 where unknown.
    """

    def __init__(self, views: NDArray[np.float16], targets: NDArray[np.int64], codes: NDArray[np.int64]) -> None:
        self.views = views
        self.targets = targets
        self.codes = codes


def extract_features(run: Run, part: str, views: int, progress: Progress) -> Features:
    """Features of `part` ("train" or "validation"), cached in the run's folder as a float16 memory map; resumable.

    View 0 is the plain crop, the others are turned, mirrored and slightly changed (`VIEW`), the last
    `run.config.vae.optics_views` of them also in their optics and with neighbours.
    """
    path, optics = _place(run, part, views)
    folder = path.parent
    folder.mkdir(exist_ok=True)
    crops, rows, targets = load_part(run, part)
    targets = targets[rows]
    domains = domain_codes(run, part)[rows]
    changes = [VIEW] * (views - optics) + [with_optics(run.config.classifier.augmentation)] * optics
    task = progress.add_task(f"features, {part}", total=len(rows), completed=_done(path), info="")
    if not path.exists() or _done(path) < len(rows):
        # the rows of one run share its features; complete features are only read, and need no network
        with held(folder, wait=True):
            progress.update(task, completed=_done(path))
            file = run.folder / "classifier.keras"
            step, size = _feature_step(file, file.stat().st_mtime_ns, run.config.orientations)

            def features_of(start: int, end: int) -> NDArray[np.float16]:
                batch = rows[start:end]
                raw = tf.constant(crops[batch])
                made = np.empty((len(batch), views, *size), np.float16)
                made[:, 0] = step(crops[batch])
                for view in range(1, views):
                    number = [run.config.seed * 100_000 + start, view * 100]
                    beside = []
                    if changes[view].neighbour:
                        generator = np.random.default_rng(number)
                        own = np.arange(start, end)
                        chosen = draw_neighbours(own, np.arange(len(rows)), targets, domains, generator)
                        beside = [crops[rows[chosen]]]
                    changed = augment(raw, changes[view], tf.constant(number, tf.int32), *beside)
                    made[:, view] = step(changed.numpy())
                return made

            fill_rows(
                path,
                (len(rows), views, *size),
                np.float16,
                features_of,
                at_once=64,
                remedy=_remedy(path),
                advance=lambda count: progress.update(task, advance=count),
            )
    return Features(np.load(path, mmap_mode="r"), targets, load_attribute_codes(run, part).codes[rows])


@lru_cache(maxsize=1)  # part after part of a run is asked for
def _feature_step(
    classifier: Path, changed_ns: int, orientations: int
) -> tuple[Callable[[NDArray[Any]], Any], tuple[int, ...]]:
    """What gives the features at the break of crops, and the shape of one crop's. changed_ns : when the file was
    written: another one is loaded anew."""
    model = build_feature_model(keras.models.load_model(classifier, compile=False), orientations)
    return forward(model), tuple(model.output_shape[1:])


def _place(run: Run, part: str, views: int) -> tuple[Path, int]:
    """The file of the features, and the number of views with changed optics."""
    optics = min(run.config.vae.optics_views, views - 1)
    name = f"{part}-{views}" + (f"-{optics}" if optics else "")
    return run.folder / "features" / f"{name}.npy", optics


def _done(path: Path) -> int:
    return rows_done(path, _remedy(path))


def _remedy(path: Path) -> str:
    return f"Delete {path.parent}: the features are extracted again."


def kept_features(run: Run, part: str) -> NDArray[np.float16] | None:
    """Features float16[n, h, w, c] of the plain crops of `part`, where they were extracted before, alone or for the
    VAE; else None."""
    for views in (run.config.vae.views, 1):
        path, _ = _place(run, part, views)
        if path.exists():
            found: NDArray[np.float16] = np.load(path, mmap_mode="r")
            if _done(path) == len(found):
                return found[:, 0]
    return None


def plain_features(run: Run, part: str, progress: Progress) -> NDArray[np.float16]:
    """`kept_features`, or these extracted now."""
    kept = kept_features(run, part)
    return extract_features(run, part, 1, progress).views[:, 0] if kept is None else kept


def _pool(views: NDArray[Any], pooling: str) -> NDArray[np.float32]:
    """Pooled features float32[..., d] of views [..., h, w, c], as the encoder pools them."""
    *lead, height, width, channels = views.shape
    values = views.astype(np.float32)
    if pooling == "flatten":
        return values.reshape(*lead, height * width * channels)
    matrix = orbit_matrix(height)
    flat = np.swapaxes(values.reshape(*lead, height * width, channels), -1, -2)
    return np.asarray((flat @ matrix).reshape(*lead, channels * matrix.shape[1]), dtype=np.float32)


def _moments(features: Features, pooling: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and standard deviation float32[d] of the pooled plain features, in one pass over blocks."""
    total: Any = 0.0
    square: Any = 0.0
    for start in range(0, len(features.targets), 1024):
        block = _pool(features.views[start : start + 1024, 0], pooling).astype(np.float64)
        total, square = total + block.sum(axis=0), square + (block**2).sum(axis=0)
    mean = total / len(features.targets)
    deviation = np.sqrt(np.maximum(square / len(features.targets) - mean**2, 0.0))
    # a channel that hardly varies carries nothing, and must not be blown up to unit variance
    floor = 0.05 * float(np.median(deviation)) + 1e-6
    return mean.astype(np.float32), np.maximum(deviation, floor).astype(np.float32)


def neighbour_loss(latents: Any, labels: Any, codes: Any) -> Any:
    """The negative logarithm of the agreement between neighbours in latent space, mean over a batch.

    This is neighbourhood components analysis (Goldberger et al., NIPS 17, 2004, eq. 1 to 4, Euclidean), with a graded
    agreement instead of equal classes. latents : float32[n, L].  labels : int64[n].  codes : int64[n, a], -1 where
    unknown.

    Two cells of different classes have the agreement 0. Let s be the share of attributes that two cells of one class
    have in common. Their agreement is the fourth power of the part of s above one half, scaled to 1 where s = 1; it is
    0.5 where the attributes of one of them are unknown.
    """
    ops = keras.ops
    square = ops.sum(ops.square(latents), axis=1)
    distances = square[:, None] + square[None, :] - 2.0 * ops.matmul(latents, ops.transpose(latents))
    nearness = ops.softmax(-0.5 * distances - 1e9 * ops.eye(ops.shape(latents)[0]), axis=1)
    same = ops.cast(ops.equal(labels[:, None], labels[None, :]), "float32")
    agreement = 0.5 * same
    if codes.shape[1]:
        known = ops.all(codes >= 0, axis=1)
        shared = ops.mean(ops.cast(ops.equal(codes[:, None, :], codes[None, :, :]), "float32"), axis=2)
        graded = ops.relu(2.0 * shared - 1.0) ** 4
        agreement = ops.where(ops.logical_and(known[:, None], known[None, :]), same * graded, agreement)
    return -ops.mean(ops.log(ops.sum(nearness * agreement, axis=1) + 1e-6))


class _Vae(keras.Model):
    """Encoder, decoder and heads with their loss, as `fit` trains them on any backend of Keras.

    Inputs: features float32[n, h, w, c], and noise float32[n, L] of unit variance (zeros: nothing is sampled). Targets:
    `pooled` float32[n, d], `labels` int32[n], `codes` int32[n, a], -1 where unknown.
    """

    def __init__(self, parts: tuple[Any, Any, Any], config: VaeConfig, classes: int, sizes: tuple[int, ...]) -> None:
        super().__init__(name="vae")
        self.encoder, self.decoder, self.head = parts
        self.settings, self.classes, self.sizes = config, classes, sizes
        self.told = AttributeLoss(sizes)
        self.reconstruction = keras.metrics.Mean(name="reconstruction")
        self.divergence = keras.metrics.Mean(name="divergence")
        # a head with weight 0 gets no gradient, and is not trained
        self.head.get_layer("classes").trainable = bool(config.class_weight)
        self.head.get_layer("attributes").trainable = bool(sizes)

    def call(self, inputs: Any, training: bool = False) -> Any:
        """Means and log-variances float32[n, L], decoded float32[n, d], and what the heads say of the means."""
        features, noise = inputs
        mean, log_variance = self.encoder(features, training=training)
        log_variance = keras.ops.clip(log_variance, -10.0, 10.0)
        decoded = self.decoder(mean + keras.ops.exp(0.5 * log_variance) * noise, training=training)
        return mean, log_variance, decoded, self.head(mean, training=training)

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Any:
        """The loss of `train_vae`, mean over the batch."""
        ops, config = keras.ops, self.settings
        mean, log_variance, decoded, (guess, logits) = y_pred
        reconstruction = 0.5 * ops.sum(ops.square(decoded - y["pooled"]), axis=1)
        divergence = 0.5 * ops.sum(ops.exp(log_variance) + ops.square(mean) - 1.0 - log_variance, axis=1)
        self.reconstruction.update_state(reconstruction)
        self.divergence.update_state(divergence)
        total = ops.mean(reconstruction) + config.beta * ops.mean(divergence)
        if config.class_weight:
            wanted = ops.one_hot(y["labels"], self.classes)
            total += config.class_weight * ops.mean(keras.losses.categorical_crossentropy(wanted, guess))
        if self.sizes:
            total += config.attribute_weight * self.told(y["codes"], logits)
        if config.neighbour_weight:
            total += config.neighbour_weight * neighbour_loss(mean, y["labels"], y["codes"])
        return total


def train_vae(run: Run, progress: Progress, config: VaeConfig | None = None, out: Path | None = None) -> Path:
    """Train the VAE of `run` on the features at the break, or return the one it has: `encoder.keras`.

    The loss is the evidence lower bound with unit variance: half the squared error summed over standardised features,
    plus β times the KL divergence to the unit normal (Kingma & Welling, arXiv 1312.6114, eq. 10), plus the class head's
    cross entropy where `class_weight` asks for it, and that of the attributes' heads. With β = 0 nothing is sampled: a
    plain autoencoder. Writes `vae_history.csv` beside it. Raises `RunError` where the classifier is missing, and where
    another command trains it.
    """
    config = config or run.config.vae
    final = out or run.folder / "encoder.keras"
    if final.exists():
        return final
    if not (run.folder / "classifier.keras").exists():
        raise RunError(
            f"{run.folder} has no trained classifier yet; `python -m training resume {run.folder}` trains it"
        )
    with held(final.parent):
        if not final.exists():
            _train(run, config, final, progress)
    return final


def _train(run: Run, config: VaeConfig, final: Path, progress: Progress) -> None:
    train = extract_features(run, "train", config.views, progress)
    validation = extract_features(run, "validation", config.views, progress)
    mean, deviation = _moments(train, config.pooling)
    keras.utils.set_random_seed(run.config.seed)
    shape = train.views.shape[2:]
    sizes = load_attribute_codes(run, "train").sizes if config.attribute_weight else ()
    parts = build_vae_parts(shape, config, len(run.split.labels), mean, deviation, sizes)
    for number, part in enumerate(parts):
        draw_weights(part, run.config.seed + number)
    encoder = parts[0]
    vae = _Vae(parts, config, len(run.split.labels), sizes)
    steps = max(len(train.targets) // config.batch_size, 1)
    rate = keras.optimizers.schedules.CosineDecay(config.learning_rate, config.epochs * steps)
    vae.compile(optimizer=keras.optimizers.Adam(rate))

    def draw(data: Features, batch: NDArray[np.int64], generator: np.random.Generator | None) -> tuple[Any, Any]:
        views = data.views[batch]
        goal = (_pool(views, config.pooling).mean(axis=1) - mean) / deviation
        # the input is one view, the target the mean of all: the latent learns to ignore how the cell is turned
        one = np.zeros(len(batch), int) if generator is None else generator.integers(0, views.shape[1], len(batch))
        chosen = views[np.arange(len(batch)), one].astype(np.float32)
        # the noise is drawn here, because the backends of Keras draw differently
        noise = np.zeros((len(batch), config.latent_size), np.float32)
        if generator is not None and config.beta:
            noise = generator.standard_normal(noise.shape, np.float32)
        told = {
            "pooled": goal.astype(np.float32),
            "labels": data.targets[batch].astype(np.int32),
            "codes": data.codes[batch].astype(np.int32),
        }
        return (chosen, noise), told

    rows, valid = np.arange(len(train.targets)), np.arange(len(validation.targets))
    history = final.with_name("vae_history.csv")
    lines: list[list[str]] = []
    names = ["loss", "reconstruction", "divergence"]
    task = progress.add_task("training the VAE", total=config.epochs * steps, info="")
    for epoch in range(config.epochs):
        began = time.monotonic()
        generator = np.random.default_rng(run.config.seed * 1000 + epoch)
        seen, totals = [0, 0], np.zeros((2, len(names)))  # trained on, checked: Keras' figures are of each batch alone
        for batch in batches(rows, config.batch_size, seed=run.config.seed * 1000 + epoch, drop_last=True):
            logs = vae.train_on_batch(*draw(train, batch, generator), return_dict=True)
            seen[0], totals[0] = seen[0] + len(batch), totals[0] + [float(logs[n]) * len(batch) for n in names]
            progress.update(task, advance=1)
        for batch in batches(valid, 256, seed=None):
            logs = vae.test_on_batch(*draw(validation, batch, None), return_dict=True)
            seen[1], totals[1] = seen[1] + len(batch), totals[1] + [float(logs[n]) * len(batch) for n in names]
        numbers = (totals / np.maximum(seen, 1)[:, None]).ravel().tolist()
        progress.update(task, info=f"loss {numbers[0]:.1f} validation {numbers[3]:.1f}")
        lines.append([str(epoch + 1), *(f"{n:.4f}" for n in numbers), f"{time.monotonic() - began:.1f}"])
        with history.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["epoch", *names, *(f"validation_{n}" for n in names), "seconds"])
            writer.writerows(lines)
    temporary = final.with_name("encoder.part.keras")
    encoder.save(temporary)
    os.replace(temporary, final)
