"""Features at the classifier's break, and the VAE that turns them into latents."""

from __future__ import annotations

import csv
import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from rich.progress import Progress

from training.classifier import augment
from training.config import Augmentation, VaeConfig
from training.data import batches
from training.networks import AttributeLoss, build_feature_model, build_vae_parts, orbit_matrix
from training.run import Run, RunError, load_attribute_codes, load_part, write_json

__all__ = ["Features", "extract_features", "neighbour_loss", "train_vae"]

VIEW = Augmentation(rotation_degrees=180, flip=True, shift=0.02, zoom=0.04, gain=0.04, brightness=0.02, blur=0.1)
"""Changes between views of a cell that must not change its latent: turns, mirrors, and what a recapture differs by."""


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
    `run.config.vae.optics_views` of them also in their optics.
    """
    folder = run.folder / "features"
    folder.mkdir(exist_ok=True)
    crops, rows, targets = load_part(run, part)
    targets = targets[rows]
    optics = min(run.config.vae.optics_views, views - 1)
    name = f"{part}-{views}" + (f"-{optics}" if optics else "")
    path, state = folder / f"{name}.npy", folder / f"{name}.json"
    changes = [VIEW] * (views - optics) + [_with_optics(run.config.classifier.augmentation)] * optics
    classifier = keras.models.load_model(run.folder / "classifier.keras", compile=False)
    model = build_feature_model(classifier, run.config.orientations)
    shape = (len(rows), views, *model.output_shape[1:])
    done = json.loads(state.read_text())["done"] if state.exists() and path.exists() else 0
    if done == 0:
        np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape).flush()
    task = progress.add_task(f"features, {part}", total=len(rows), completed=done, info="")
    if done < len(rows):
        step = tf.function(lambda x: model(x, training=False), reduce_retracing=True)
        out = np.lib.format.open_memmap(path, mode="r+")
        for start in range(done, len(rows), 64):
            batch = rows[start : start + 64]
            raw = tf.constant(crops[batch])
            out[start : start + len(batch), 0] = step(tf.cast(raw, tf.float32)).numpy()
            for view in range(1, views):
                seed = tf.constant([run.config.seed * 100_000 + start, view * 100], tf.int32)
                out[start : start + len(batch), view] = step(augment(raw, changes[view], seed)).numpy()
            if (start // 64) % 10 == 9 or start + 64 >= len(rows):
                out.flush()
                write_json(state, {"done": start + len(batch)})
            progress.update(task, advance=len(batch))
    return Features(np.load(path, mmap_mode="r"), targets, load_attribute_codes(run, part).codes[rows])


def _with_optics(augmentation: Augmentation) -> Augmentation:
    """`VIEW`, with the changes of optics of another augmentation, always."""
    names = ("contrast_low", "contrast_high", "stain", "mixing", "tint", "focus", "noise", "cut")
    return replace(VIEW, **{name: getattr(augmentation, name) for name in names}, optics_share=1.0)


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
    """-log of how well neighbours in latent space agree, mean over a batch: neighbourhood components analysis (Goldberger et
    al., NIPS 17, 2004, eq. 1 to 4, Euclidean), with a graded agreement instead of the class alone.

    latents : float32[n, L].  labels : int64[n].  codes : int64[n, a], -1 where unknown. Two cells agree by 0 where their
    classes differ; else by the fourth power of how far the share of attributes they have in common is above one half (1: all),
    and by 0.5 where the attributes of one are not known.
    """
    square = tf.reduce_sum(tf.square(latents), axis=1)
    distances = square[:, None] + square[None, :] - 2.0 * tf.matmul(latents, latents, transpose_b=True)
    nearness = tf.nn.softmax(-0.5 * distances - 1e9 * tf.eye(tf.shape(latents)[0]), axis=1)
    same = tf.cast(labels[:, None] == labels[None, :], tf.float32)
    agreement = 0.5 * same
    if codes.shape[1]:
        known = tf.reduce_all(codes >= 0, axis=1)
        shared = tf.reduce_mean(tf.cast(codes[:, None, :] == codes[None, :, :], tf.float32), axis=2)
        graded = tf.nn.relu(2.0 * shared - 1.0) ** 4
        agreement = tf.where(known[:, None] & known[None, :], same * graded, agreement)
    return -tf.reduce_mean(tf.math.log(tf.reduce_sum(nearness * agreement, axis=1) + 1e-6))


def train_vae(run: Run, progress: Progress, config: VaeConfig | None = None, out: Path | None = None) -> Path:
    """Train the VAE of `run` on the features at the break, or return the one it has: `encoder.keras`.

    The loss is the evidence lower bound with unit variance: half the squared error summed over standardised features, plus
    β times the KL divergence to the unit normal (Kingma & Welling, arXiv 1312.6114, eq. 10), plus the class head's cross
    entropy where `class_weight` asks for it, and that of the attributes' heads. With β = 0 nothing is sampled: a plain autoencoder. Writes `vae_history.csv`
    beside it. Raises `RunError` where the classifier is missing.
    """
    config = config or run.config.vae
    final = out or run.folder / "encoder.keras"
    if final.exists():
        return final
    if not (run.folder / "classifier.keras").exists():
        raise RunError(
            f"{run.folder} has no trained classifier yet; `python -m training resume {run.folder}` trains it"
        )
    train = extract_features(run, "train", config.views, progress)
    validation = extract_features(run, "validation", config.views, progress)
    mean, deviation = _moments(train, config.pooling)
    keras.utils.set_random_seed(run.config.seed)
    shape = train.views.shape[2:]
    sizes = load_attribute_codes(run, "train").sizes if config.attribute_weight else ()
    encoder, decoder, head = build_vae_parts(shape, config, len(run.split.labels), mean, deviation, sizes)
    told = AttributeLoss(sizes)
    variables = [*encoder.trainable_variables, *decoder.trainable_variables]
    if config.class_weight:
        variables += head.get_layer("classes").trainable_variables
    if sizes:
        variables += head.get_layer("attributes").trainable_variables
    steps = max(len(train.targets) // config.batch_size, 1)
    rate = keras.optimizers.schedules.CosineDecay(config.learning_rate, config.epochs * steps)
    optimiser = keras.optimizers.Adam(rate)
    optimiser.build(variables)
    classes = len(run.split.labels)

    def losses(features: Any, target: Any, labels: Any, codes: Any, training: bool) -> Any:
        latent_mean, log_variance = encoder(features, training=training)
        log_variance = tf.clip_by_value(log_variance, -10.0, 10.0)
        noise = tf.random.normal(tf.shape(latent_mean)) if training and config.beta else 0.0
        decoded = decoder(latent_mean + tf.exp(0.5 * log_variance) * noise, training=training)
        reconstruction = 0.5 * tf.reduce_mean(tf.reduce_sum(tf.square(decoded - target), axis=1))
        divergence = 0.5 * tf.reduce_mean(
            tf.reduce_sum(tf.exp(log_variance) + tf.square(latent_mean) - 1.0 - log_variance, axis=1)
        )
        entropy = tf.constant(0.0)
        if config.class_weight or sizes:
            guess, logits = head(latent_mean, training=training)
            wanted = tf.one_hot(labels, classes)
            entropy = config.class_weight * tf.reduce_mean(keras.losses.categorical_crossentropy(wanted, guess))
            if sizes:
                entropy += config.attribute_weight * told(codes, logits)
        if config.neighbour_weight:
            entropy += config.neighbour_weight * neighbour_loss(latent_mean, labels, codes)
        return reconstruction + config.beta * divergence + entropy, reconstruction, divergence

    @tf.function(reduce_retracing=True)
    def step(features: Any, target: Any, labels: Any, codes: Any) -> Any:
        with tf.GradientTape() as tape:
            values = losses(features, target, labels, codes, True)
        optimiser.apply_gradients(zip(tape.gradient(values[0], variables), variables, strict=True))
        return tf.stack(values)

    @tf.function(reduce_retracing=True)
    def check(features: Any, target: Any, labels: Any, codes: Any) -> Any:
        return tf.stack(losses(features, target, labels, codes, False))

    def draw(data: Features, batch: NDArray[np.int64], generator: np.random.Generator | None) -> tuple[Any, ...]:
        views = data.views[batch]
        goal = (_pool(views, config.pooling).mean(axis=1) - mean) / deviation
        # from any one view, the mean of all: a turn of the cell is noise that the latent learns to leave out
        one = np.zeros(len(batch), int) if generator is None else generator.integers(0, views.shape[1], len(batch))
        chosen = views[np.arange(len(batch)), one].astype(np.float32)
        return chosen, goal.astype(np.float32), data.targets[batch], data.codes[batch]

    rows, valid = np.arange(len(train.targets)), np.arange(len(validation.targets))
    history = final.with_name("vae_history.csv")
    lines: list[list[str]] = []
    task = progress.add_task("training the VAE", total=config.epochs * steps, info="")
    for epoch in range(config.epochs):
        began = time.monotonic()
        generator = np.random.default_rng(run.config.seed * 1000 + epoch)
        sums: Any = np.zeros(3)
        plan = batches(rows, config.batch_size, seed=run.config.seed * 1000 + epoch, drop_last=True)
        for batch in plan:
            sums = sums + step(*map(tf.constant, draw(train, batch, generator))).numpy()
            progress.update(task, advance=1)
        checks: Any = np.zeros(3)
        for batch in batches(valid, 256, seed=None):
            checks = checks + check(*map(tf.constant, draw(validation, batch, None))).numpy() * len(batch)
        checks = checks / max(len(valid), 1)
        progress.update(task, info=f"loss {sums[0] / steps:.1f} validation {checks[0]:.1f}")
        numbers = [*(sums / steps), *checks]
        lines.append([str(epoch + 1), *(f"{n:.4f}" for n in numbers), f"{time.monotonic() - began:.1f}"])
        with history.open("w", newline="") as file:
            writer = csv.writer(file)
            names = ["loss", "reconstruction", "divergence"]
            writer.writerow(["epoch", *names, *(f"validation_{n}" for n in names), "seconds"])
            writer.writerows(lines)
    temporary = final.with_name("encoder.part.keras")
    encoder.save(temporary)
    os.replace(temporary, final)
    return final
