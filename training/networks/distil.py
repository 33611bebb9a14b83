"""Distillation: a trunk that looks at a crop once learns what a trunk that looks many times finds in it.

The teacher is a trained run, or a bundle that was adopted. It looks at each training crop at several angles, in all of
its orientations, and what it finds is averaged: features pooled over the turns and mirrors of the grid, and class
probabilities; the latents are those of the mean features. Such averages hardly depend on how the cell lies, but cost a
pass through the trunk for each view.

The student begins with the teacher's weights, and learns to give these averages in few passes, also where a crop's
optics are changed and other cells are laid beside its cell (Hinton, Vinyals & Dean, arXiv 1503.02531; for features
Romero et al., arXiv 1412.6550). However a picture is turned or mirrored, the student sees its cell lie alike
(`ClassifierConfig.upright`). What the corners hold changes as a cell is turned, so both look at the inscribed circle
alone (`ClassifierConfig.circle`).
"""

from __future__ import annotations

import csv
import hashlib
import math
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from rich.progress import Progress

from labref.cells.image import BACKGROUND
from labref.files import replace_file
from training.augmentation.augment import VIEW, augment, with_optics
from training.augmentation.moving import moved, transforms
from training.augmentation.neighbours import draw_neighbours
from training.config import Augmentation, RunConfig, override
from training.data.images import batches
from training.networks.architecture import (
    Circle,
    OrbitPooling,
    build_classifier,
    build_oriented,
    start_from,
    with_features,
)
from training.networks.classifier import note_epoch, save_checkpoint
from training.networks.devices import forward
from training.networks.overlook import drawn_together
from training.run import (
    HALF_TAUGHT,
    Run,
    RunError,
    domain_codes,
    fill_rows,
    held,
    load_part,
    read_json,
    require_networks,
    require_new,
    rows_done,
    write_json,
)

__all__ = ["Distilled", "Lesson", "distil"]

F32 = NDArray[np.float32]

_CHECKPOINT_SECONDS: Final = 300.0
_TURN: Final = Augmentation(rotation_degrees=180, flip=True, shift=0, zoom=0, gain=0, brightness=0, blur=0)
_WARMUP: Final = 0.3  # epochs in which the learning rate rises
_CLIP: Final = 1.0  # largest norm of a step's gradient
_BESIDE: Final = 0.5  # probability of a neighbour, and of a second one, where the run lays none


@dataclass(frozen=True)
class Lesson:
    """How a student is taught.

    epochs : passes over all training cells.  batch_size : crops in a step.  learning_rate : of Adam, at its highest; it
    falls to zero by a cosine.  angles : at which the teacher looks at each crop, evenly over a quarter turn.  changed :
    share of the crops that are also changed in their optics, and half of these beside other cells.  features, classes :
    weights of the errors of the pooled features and of the probabilities; that of the latents has the weight 1.
    drawn : share of the way that latents are to go to the mean of the cells with their class and similar attributes.
    orientations : in which the student is shipped; it learns from one look at a time. begin : folder of an earlier
    student's run, whose weights it begins with; those of the teacher where it is empty.
    """

    epochs: int = 20
    batch_size: int = 32
    learning_rate: float = 5e-4
    angles: int = 4
    changed: float = 0.4
    features: float = 0.2
    classes: float = 0.3
    drawn: float = 0.0
    orientations: int = 1
    begin: str = ""


@dataclass(frozen=True)
class Distilled:
    """A run that holds a student's networks.

    before, after : mean squared error of the latents of validation cells, each turned at random, from those that the
    teacher gives, as a share of the latents' variance: of the student before it is taught, and taught.
    """

    run: Run
    before: float
    after: float


@dataclass(frozen=True)
class _Part:
    """One part of the split, as the student learns it.

    crops : uint8[n, s, s, 3].  rows : int64[m], those that can be read.  Of these rows: targets, domains : int64[m],
    class and optics.  told : what the teacher finds: "pooled" float32[m, d], standardised, "probabilities" float32[m,
    c], "latent" float32[m, L].
    """

    crops: NDArray[np.uint8]
    rows: NDArray[np.int64]
    targets: NDArray[np.int64]
    domains: NDArray[np.int64]
    told: dict[str, F32]

    @property
    def variance(self) -> float:
        """Of a number of the latents, the mean over all of them."""
        return float(self.told["latent"].var(axis=0).mean())


@keras.saving.register_keras_serializable("labref")
class Student(keras.Model):
    """A network that computes in training what it computes in a lab: its batch normalisations keep the statistics that
    they have, and nothing is dropped. Their scales and offsets are trained."""

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """The outputs, as in inference: Keras hands `training` on to all layers."""
        return super().call(inputs, training=False, mask=mask)


def distil(run: Run, folder: Path, progress: Progress, lesson: Lesson | None = None) -> Distilled:
    """Make in `folder` a run with a student of `run`, which is only read. A student that was begun there with the same
    lesson goes on from its last checkpoint. One GPU is used.

    Raises `RunError` where `run` is not trained, where its encoder does not pool over orbits, and where `folder` holds
    something else; `SettingsError` where the lesson's orientations are none; OSError where the disk is full.
    """
    lesson = lesson or Lesson()
    config = override(
        run.config,
        [
            f"orientations={lesson.orientations}",
            "classifier.circle=true",
            "classifier.upright=true",
            "classifier.initial=",
        ],
    )
    require_new(folder)
    require_networks(run)
    if run.config.vae.pooling != "orbits":
        raise RunError(
            f"{run.folder}: vae.pooling is {run.config.vae.pooling}, and only features that are pooled over orbits can be "
            "averaged over angles"
        )
    if lesson.drawn and not run.config.attributes:
        raise RunError(f"{run.folder} has no attributes, and cells are drawn together by theirs; leave out --drawn")
    folder.mkdir(parents=True, exist_ok=True)
    with held(folder):
        digest = hashlib.sha256((run.folder / "classifier.keras").read_bytes())
        digest.update((run.folder / "encoder.keras").read_bytes())
        told = {"teacher": digest.hexdigest(), "split": run.split.digest, "lesson": asdict(lesson)}
        begun = read_json(folder / HALF_TAUGHT, ("teacher", "split", "lesson"), f"Delete {folder} and begin again.")
        if begun and {name: begun[name] for name in told} != told:
            raise RunError(f"{folder} was begun by another teacher or with other settings; name a new folder")
        if not begun:
            write_json(folder / HALF_TAUGHT, told)
        teacher = keras.models.load_model(run.folder / "classifier.keras", compile=False)
        encoder = keras.models.load_model(run.folder / "encoder.keras", compile=False)
        student = build_classifier(config.classifier, len(run.split.labels))
        of_latents = _begin(student, run, teacher, encoder, lesson)
        parts = {
            part: _taught(run, part, teacher, encoder, folder, lesson, progress) for part in ("train", "validation")
        }
        if not len(parts["train"].rows):
            raise RunError(f"none of {len(run.split.train)} images of {run.data} can be read")
        _latent_layers(encoder).set_weights(of_latents)
        model, before, after = _teach(run, folder, student, encoder, parts, lesson, progress)
        with_features(student).set_weights(model.get_layer("with_features").get_weights())
        _latent_layers(encoder).set_weights(model.get_layer("latents").get_weights())
        student.save(folder / "classifier.keras")
        encoder.save(folder / "encoder.keras")
        origin = dict(run.adopted or {}) | {
            "distilled": asdict(lesson)
            | {
                "begin": Path(lesson.begin).name,
                "teacher_orientations": run.config.orientations,
                "error": after if math.isfinite(after) else None,  # without validation cells there is none
            }
        }
        made = Run.create(folder, run.data, config, run.split, adopted=origin)
        (folder / HALF_TAUGHT).unlink()
        return Distilled(made, before, after)


def _latent_layers(encoder: Any) -> Any:
    """What the encoder does with standardised features: float32[n, d] → latents float32[n, L]."""
    first, last = encoder.get_layer("standardise"), encoder.get_layer("latent_mean")
    return keras.Model(first.output, last.output, name="latents")


def _turned(crops: NDArray[np.uint8], angle: float) -> Any:
    """Crops uint8[n, s, s, 3] turned by an angle in radians: float32[n, s, s, 3]; beyond their edges is background."""
    angles, still = tf.fill([len(crops), 1, 1], np.float32(angle)), tf.zeros([len(crops), 1, 1])
    by = transforms(float(crops.shape[1]), angles, tf.zeros_like(still, tf.bool), still, still)
    return moved(tf.constant(crops, tf.float32), by, float(BACKGROUND))


def _taught(run: Run, part: str, teacher: Any, encoder: Any, folder: Path, lesson: Lesson, progress: Progress) -> _Part:
    """A part of the split with what the teacher finds. That is kept in `folder`, float32[m, d + c]; resumable."""
    crops, rows, targets = load_part(run, part)
    path = folder / f"told-{part}.npy"
    remedy = f"Delete {path}: the teacher looks again."
    pooled, classes = int(_latent_layers(encoder).input_shape[-1]), len(run.split.labels)
    done = rows_done(path, remedy)
    task = progress.add_task(f"the teacher looks, {part}", total=len(rows), completed=done, info="")
    if done < len(rows) or not path.exists():
        look = forward(_looking(teacher, run.config))
        turns = min(run.config.orientations, 4)  # of the orientations, the others are mirrored
        count = 1 if run.config.classifier.upright else lesson.angles  # of a crop that it turns itself, all are one
        angles = np.arange(count) * (2 * math.pi / turns / count)

        def seen(start: int, end: int) -> F32:
            batch = crops[rows[start:end]]
            found = [look(_turned(batch, angle)) for angle in angles.tolist()]
            probabilities, features = (np.mean(outputs, axis=0) for outputs in zip(*found, strict=True))
            return np.concatenate([features, probabilities], axis=1)

        fill_rows(
            path,
            (len(rows), pooled + classes),
            np.float32,
            seen,
            at_once=32,
            remedy=remedy,
            advance=lambda count: progress.update(task, advance=count),
        )
    kept = np.load(path, mmap_mode="r")
    if kept.shape != (len(rows), pooled + classes):
        raise RunError(f"{path} is of other cells than there are now. {remedy}")
    standardise = encoder.get_layer("standardise")
    middle, scale = (np.asarray(weight) for weight in standardise.get_weights())
    features = (kept[:, :pooled] - middle) * scale
    latents = forward(_latent_layers(encoder))
    told = {
        "pooled": features,
        "probabilities": np.asarray(kept[:, pooled:]),
        "latent": np.concatenate([latents(features[at : at + 4096]) for at in range(0, max(len(rows), 1), 4096)]),
    }
    if part == "train" and lesson.drawn:
        told["latent"] = drawn_together(run, rows, told["latent"], lesson.drawn)
    return _Part(crops, rows, targets[rows], domain_codes(run, part)[rows], told)


def _looking(teacher: Any, config: RunConfig) -> Any:
    """Crops float32[n, s, s, 3] → probabilities float32[n, c] and pooled features float32[n, d] of what is within their
    circle."""
    crops = keras.Input(teacher.input_shape[1:])
    within = crops if config.classifier.circle else Circle()(crops)
    probabilities, features = build_oriented(teacher, config.orientations)(within)
    return keras.Model(crops, [probabilities, OrbitPooling()(features)])


def _compiled(student: Any, encoder: Any, lesson: Lesson, *, variance: float, steps: int) -> Any:
    """What is trained: the student, with the encoder behind it. variance : see `_Part`.  steps : of an epoch."""
    crops = keras.Input(student.input_shape[1:], name="crop")
    probabilities, features = with_features(student)(crops)
    pooled = encoder.get_layer("standardise")(OrbitPooling()(features))
    latent = _latent_layers(encoder)(pooled)
    model = Student(crops, {"pooled": pooled, "probabilities": probabilities, "latent": latent})
    warmup = max(int(_WARMUP * steps), 1)
    rate = keras.optimizers.schedules.CosineDecay(
        lesson.learning_rate / 20,
        max(lesson.epochs * steps - warmup, 1),
        warmup_target=lesson.learning_rate,
        warmup_steps=warmup,
    )
    if not variance > 0:
        raise RunError("the teacher's latents of the training cells do not vary: there is nothing to learn from them")
    model.compile(
        optimizer=keras.optimizers.Adam(rate, clipnorm=_CLIP),
        loss={"pooled": "mse", "probabilities": "kl_divergence", "latent": "mse"},
        loss_weights={"pooled": lesson.features, "probabilities": lesson.classes, "latent": 1.0 / variance},
    )
    return model


def _begin(student: Any, run: Run, teacher: Any, encoder: Any, lesson: Lesson) -> list[F32]:
    """Give `student` the weights of the teacher, or of the earlier student that the lesson names, and return those of
    its `_latent_layers`. Raises `RunError` where they do not fit."""
    own: list[F32] = _latent_layers(encoder).get_weights()
    if not lesson.begin:
        start_from(student, teacher)
        return own
    earlier = Run.open(Path(lesson.begin))
    try:
        classifier, found = (
            keras.models.load_model(earlier.folder / name, compile=False)
            for name in ("classifier.keras", "encoder.keras")
        )
        start_from(student, classifier)
    except (OSError, ValueError) as error:
        raise RunError(f"--begin {earlier.folder}: {error}") from None
    theirs: list[F32] = _latent_layers(found).get_weights()
    if earlier.split.labels != run.split.labels or [w.shape for w in own] != [w.shape for w in theirs]:
        raise RunError(f"--begin {earlier.folder}: it has other classes, or latents of another size")
    return theirs


def _teach(
    run: Run,
    folder: Path,
    student: Any,
    encoder: Any,
    parts: dict[str, _Part],
    lesson: Lesson,
    progress: Progress,
) -> tuple[Any, float, float]:
    """What was trained, with the student's error before and after. student, encoder : with the weights to begin with;
    a training that goes on has those of its checkpoint."""
    keras.utils.set_random_seed(run.config.seed)
    train = parts["train"]
    size = min(lesson.batch_size, len(train.rows))
    steps = max(len(train.rows) // size, 1)
    place = read_json(folder / "checkpoint.json", ("file", "epoch", "step"), "Delete it: the student begins again.")
    history = folder / "distil_history.csv"
    if place:
        model = keras.models.load_model(folder / place["file"])
        _errors(history)
    else:
        model = _compiled(student, encoder, lesson, variance=train.variance, steps=steps)
        error = _error(model, parts, run.config.seed)
        replace_file(history, "epoch,loss,validation_error,seconds\n")
        note_epoch(history, 0, ["", f"{error:.5f}", "0"])
        progress.console.print(f"before: validation error {error:.4f}")
    epoch, step = (int(place.get(name, 0)) for name in ("epoch", "step"))
    task = progress.add_task("the student learns", total=lesson.epochs * steps, completed=epoch * steps + step, info="")
    augmentations = _augmentations(run)
    saved = time.monotonic()
    for number in range(epoch, lesson.epochs):
        began, losses = time.monotonic(), []
        seed = run.config.seed * 1000 + number
        begin = step if number == epoch else 0
        order = batches(np.arange(len(train.rows)), size, seed=seed, start=begin, drop_last=True)
        for at, batch in enumerate(order, begin):
            images = _views(train, batch, lesson, augmentations, seed, at)
            logs = model.train_on_batch(
                images, {name: told[batch] for name, told in train.told.items()}, return_dict=True
            )
            losses.append(float(logs["loss"]))
            progress.update(task, advance=1, info=f"loss {np.mean(losses[-50:]):.4f}")
            if time.monotonic() - saved > _CHECKPOINT_SECONDS:
                save_checkpoint(model, folder, number, at + 1)
                saved = time.monotonic()
        error = _error(model, parts, run.config.seed)
        seconds = time.monotonic() - began
        if losses and not np.isfinite(losses[-1]):
            raise RunError(f"the student's error grew beyond all numbers; delete {folder}, and lower --learning-rate")
        loss = f"{np.mean(losses):.5f}" if losses else ""
        note_epoch(history, number + 1, [loss, f"{error:.5f}", f"{seconds:.1f}"])
        progress.console.print(f"epoch {number + 1}/{lesson.epochs}: validation error {error:.4f}, {seconds:.0f} s")
        save_checkpoint(model, folder, number + 1, 0)
        saved = time.monotonic()
    return model, *_errors(history)


def _errors(history: Path) -> tuple[float, float]:
    """The first and the last error of a history: of the student before it is taught, and now."""
    try:
        with history.open(encoding="utf-8", newline="") as file:
            errors = [float(line["validation_error"]) for line in csv.DictReader(file)]
        return errors[0], errors[-1]
    except (OSError, ValueError, TypeError, KeyError, IndexError) as error:
        raise RunError(
            f"{history} is damaged, or cannot be read: {error}. Delete {history.parent} and begin again."
        ) from None


def _augmentations(run: Run) -> tuple[Augmentation, Augmentation]:
    """The changes of a crop that leaves its optics as they are, and of one that does not."""
    own = run.config.classifier.augmentation
    beside = own if own.neighbour else replace(own, neighbour=_BESIDE, neighbour_second=_BESIDE)
    return VIEW, with_optics(beside)


def _views(
    part: _Part,
    batch: NDArray[np.int64],
    lesson: Lesson,
    augmentations: tuple[Augmentation, Augmentation],
    seed: int,
    at: int,
) -> F32:
    """A view of each of the cells `batch`, float32[n, s, s, 3]: the last ones with changed optics, beside others."""
    plain = len(batch) - round(lesson.changed * len(batch))
    made = []
    for kind, chosen in enumerate((batch[:plain], batch[plain:])):
        if not len(chosen):
            continue
        beside = []
        if augmentations[kind].neighbour:
            generator = np.random.default_rng([seed, at])
            others = draw_neighbours(chosen, np.arange(len(part.rows)), part.targets, part.domains, generator)
            beside = [tf.constant(part.crops[part.rows[others]])]
        place = tf.constant([seed, at], tf.int32) * [1000, 100] + [kind, 0]
        made.append(_changed(tf.constant(part.crops[part.rows[chosen]]), augmentations[kind], place, *beside).numpy())
    return np.concatenate(made)


@tf.function(reduce_retracing=True)
def _changed(crops: Any, augmentation: Augmentation, seed: Any, *beside: Any) -> Any:
    return augment(crops, augmentation, seed, *beside)


def _error(model: Any, parts: dict[str, _Part], seed: int) -> float:
    """Mean squared error of the latents of validation cells, each turned at random, as a share of their variance; NaN
    without any."""
    part = parts["validation"]
    look, square = forward(model), []
    for batch in batches(np.arange(len(part.rows)), 64, seed=None):
        place = tf.constant([seed, int(batch[0])], tf.int32)
        found = look(_changed(tf.constant(part.crops[part.rows[batch]]), _TURN, place))
        square.append((np.asarray(found["latent"]) - part.told["latent"][batch]) ** 2)
    if not square:
        return float("nan")
    return float(np.concatenate(square).mean()) / parts["train"].variance
