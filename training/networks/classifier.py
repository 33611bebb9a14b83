"""Training of the classifier: augmented batches streamed from the cache, checkpoints that resume to the batch."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from rich.progress import Progress

from labref import __version__
from labref.files import replace_file
from training.augmentation.augment import augment
from training.augmentation.neighbours import NEIGHBOURS, draw_neighbours
from training.config import ClassifierConfig
from training.data.images import batches
from training.networks.architecture import AttributeLoss, build_classifier, draw_weights, start_from, with_heads
from training.networks.devices import Share, forward, over_devices, precision, require_same, share, total
from training.run import (
    Run,
    RunError,
    domain_codes,
    held,
    is_seen,
    load_attribute_codes,
    load_part,
    read_json,
    write_json,
)

__all__ = [
    "class_weights",
    "evaluate_classifier",
    "load_crops",
    "note_epoch",
    "predict",
    "save_checkpoint",
    "train_classifier",
    "train_here",
]

_CHECKPOINT_SECONDS = 300.0
_MEASURED_STEPS = 5  # after the first, by which the time of training is estimated
_COMPARED = 64  # crops by which processes see that they have the same ones
_ASKED_STEPS = 16  # after which several processes ask each other whether a checkpoint is due


def _in_words(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 90 * 60 else f"{seconds / 3600:.1f} hours"


def _load_shown(run: Run, part: str, progress: Progress) -> tuple[Any, Any, Any]:
    task = progress.add_task(f"preparing {part} crops", total=len(run.split.part(part)), info="")
    return load_part(run, part, lambda done: progress.update(task, advance=done))


def class_weights(labels: NDArray[np.int64], classes: int, how: str) -> NDArray[np.float32]:
    """Weight of each class, float32[classes], mean 1 over the images: "none", "sqrt" or "balanced" inverse
    frequency."""
    counts = np.maximum(np.bincount(labels, minlength=classes), 1).astype(np.float64)
    weights = {"none": np.ones(classes), "sqrt": counts**-0.5, "balanced": counts**-1.0}[how]
    return np.asarray(weights * counts.sum() / (weights * counts).sum(), dtype=np.float32)


def predict(
    model: Any, crops: NDArray[np.uint8], rows: NDArray[np.int64], batch_size: int = 128
) -> NDArray[np.float32]:
    """Class probabilities float32[len(rows), c] of cached crops, batch by batch."""
    step = forward(model)
    parts = [step(crops[np.sort(b)]) for b in batches(rows, batch_size, seed=None)]
    return np.concatenate(parts) if parts else np.zeros((0, model.output_shape[1]), np.float32)


class _Checkpoint(keras.callbacks.Callback):
    """Writes model, optimiser and place within the epoch every few minutes, so that a stop costs at most that.

    left : steps to the end of training, or None. Where it is given, a message after a few steps says how long they will
    take.
    """

    def __init__(
        self, folder: Path, epoch: int, first_step: int, progress: Progress, task: Any, left: int | None = None
    ) -> None:
        super().__init__()
        self.left = left
        self.folder, self.epoch, self.done = folder, epoch, first_step
        self.progress, self.task = progress, task
        self.last = time.monotonic()
        self.first, self.began = first_step, self.last

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        """Count the step, show the losses, and write a checkpoint when it is time."""
        self.done += 1
        values = logs or {}
        self.progress.update(
            self.task, advance=1, info=f"loss {values.get('loss', 0):.3f} acc {values.get('accuracy', 0):.3f}"
        )
        taken = self.done - self.first
        if taken == 1:
            self.began = time.monotonic()  # the first step builds the network
        elif self.left is not None and taken == 1 + _MEASURED_STEPS:
            step = (time.monotonic() - self.began) / _MEASURED_STEPS
            self.progress.console.print(
                f"the classifier will take about {_in_words(step * (self.left - taken))}: "
                f"{self.left:,} steps of {step:.2f} s; then come its features and the VAE"
            )
        is_due = time.monotonic() - self.last > _CHECKPOINT_SECONDS
        if share().count > 1:  # the clock of the first decides
            is_due = self.done % _ASKED_STEPS == 0 and total(np.array([is_due and share().rank == 0], float))[0] > 0
        if is_due:
            save_checkpoint(self.model, self.folder, self.epoch, self.done)
            self.last = time.monotonic()


def save_checkpoint(model: Any, folder: Path, epoch: int, step: int) -> None:
    """Write `checkpoint-E-S.keras` and then point `checkpoint.json` to it; the older one goes last. Where several
    processes train, all call it, and the first one's stays."""
    if hasattr(model, "jax_state_sync"):  # within an epoch JAX trains a copy of the variables
        model.jax_state_sync()
    name = _checkpoint(epoch, step)
    if not _save(model, folder / name):
        return
    write_json(folder / "checkpoint.json", {"file": name, "epoch": epoch, "step": step})
    for old in folder.glob("checkpoint-*.keras"):
        if old.name != name:
            old.unlink()


def _checkpoint(epoch: int, step: int) -> str:
    return f"checkpoint-{epoch}-{step}.keras"


def _save(model: Any, file: Path) -> bool:
    """Write a model; whether this process is the one that did. Keras asks all processes for what it saves."""
    if share().rank == 0:
        model.save(file)
        return True
    with tempfile.TemporaryDirectory() as nowhere:
        model.save(Path(nowhere) / file.name)
    return False


def _place(folder: Path) -> tuple[int, int] | None:
    """Epoch and step of the run's checkpoint; None where it has none. What the first process sees holds for all."""
    told = np.zeros(3)
    if share().rank == 0 and (folder / "checkpoint.json").exists():
        file = folder / "checkpoint.json"
        place = read_json(file, ("epoch", "step"), f"Delete it: {folder} is then trained from its beginning.")
        told = np.array([1, place["epoch"], place["step"]], float)
    exists, epoch, step = (int(value) for value in total(told))
    return (epoch, step) if exists else None


def _load(file: Path) -> Any:
    if share().rank:
        is_seen(file)
    return keras.models.load_model(file)


def _dataset(
    crops: NDArray[np.uint8],
    targets: NDArray[np.int64],
    rows: NDArray[np.int64],
    config: ClassifierConfig,
    weights: NDArray[np.float32],
    seed: int,
    first_step: int,
    heads: Sequence[NDArray[np.int64]] = (),
    domains: NDArray[np.int64] | None = None,
    own: Share | None = None,
) -> Any:
    """Batches of (crops, targets, weights); where there are heads beside the classes, targets and weights are tuples,
    with the targets int64[n, ...] of each head after those of the classes. domains : int64[all], optics of each crop
    (None: one for all), among which neighbours are chosen.  own : this process's part of each batch, the whole by
    default; the rest is not read."""
    own = own or Share()
    optics = np.zeros(len(targets), np.int64) if domains is None else domains

    def generate() -> Iterator[tuple[Any, ...]]:
        plain = batches(rows, config.batch_size, seed=seed, start=first_step, drop_last=True)
        for number, whole in enumerate(plain, start=first_step):
            batch = own.of(whole)
            labels = targets[batch]
            told = tuple(head[batch] for head in heads)
            beside: tuple[Any, ...] = ()
            if config.augmentation.neighbour:
                # of the batch's number, so that a resumed epoch goes on as it would have
                chosen = draw_neighbours(whole, rows, targets, optics, np.random.default_rng([seed, number]))
                beside = (crops[own.of(chosen)],)
            place = np.array([own.first(len(whole)), len(whole)], np.int32)
            yield crops[batch], labels, told, weights[labels], np.array([seed, number], np.int32), place, beside

    size, classes = crops.shape[1], len(weights)
    signature = (
        tf.TensorSpec((None, size, size, 3), tf.uint8),
        tf.TensorSpec((None,), tf.int64),
        tuple(tf.TensorSpec((None, *head.shape[1:]), tf.int64) for head in heads),
        tf.TensorSpec((None,), tf.float32),
        tf.TensorSpec((2,), tf.int32),
        tf.TensorSpec((2,), tf.int32),
        (tf.TensorSpec((None, NEIGHBOURS, size, size, 3), tf.uint8),) if config.augmentation.neighbour else (),
    )

    def prepare(images: Any, labels: Any, told: Any, weight: Any, batch_seed: Any, place: Any, beside: Any) -> Any:
        part = None if own.count == 1 else (place[0], place[1])
        changed = augment(images, config.augmentation, batch_seed * [1000, 10], *beside, part=part)
        wanted = tf.one_hot(labels, classes)
        if not heads:
            return changed, wanted, weight
        return changed, (wanted, *told), (weight, *(tf.ones_like(weight) for _ in heads))

    data = tf.data.Dataset.from_generator(generate, output_signature=signature)
    options = tf.data.Options()
    # several GPUs of one computer share this one stream of batches
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return data.map(prepare, num_parallel_calls=2).prefetch(4).with_options(options)


def _learning_rate(config: ClassifierConfig, steps_per_epoch: int) -> Any:
    if config.schedule == "constant":
        return config.learning_rate
    warmup = int(config.warmup_epochs * steps_per_epoch)
    return keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=config.learning_rate / 20,
        warmup_target=config.learning_rate,
        warmup_steps=max(warmup, 1),
        decay_steps=max(config.epochs * steps_per_epoch - warmup, 1),
    )


def train_classifier(run: Run, progress: Progress, train: Callable[[Run, Path, Progress], None] | None = None) -> Path:
    """Train the classifier of `run`, or go on with it; returns `classifier.keras`.

    Writes a checkpoint every five minutes and after each epoch, `history.csv` (one line an epoch) and at the end the
    model. train : what does it, `train_here` by default. Raises `RunError` where another command trains it.
    """
    final = run.folder / "classifier.keras"
    if not final.exists():
        with held(run.folder):
            if not final.exists():
                (train or train_here)(run, final, progress)
    return final


def _programs() -> str:
    """What trains, as text that differs where another would train otherwise: the versions, and the code of a
    checkout."""
    code = hashlib.sha256()
    for file in sorted(Path(__file__).parents[1].rglob("*.py"), key=lambda file: file.as_posix()):
        code.update(file.read_bytes().replace(b"\r\n", b"\n"))
    return f"{__version__} {keras.__version__} {version('jax')} {code.hexdigest()}"


def load_crops(run: Run, progress: Progress) -> int:
    """Have the crops in the cache that the classifier is trained on, for the processes that will; returns how many can
    be read."""
    _, rows, _ = _load_shown(run, "train", progress)
    _load_shown(run, "validation", progress)
    return len(rows)


def train_here(run: Run, final: Path, progress: Progress) -> None:
    """Train the classifier in this process, alone or as one of several, and write it to the file `final`. The caller
    holds the run."""
    config, split = run.config.classifier, run.split
    if share().count > 1:
        require_same({"programs (labref, Keras, JAX)": _programs()})
    crops, targets, rows = {}, {}, {}
    for part in ("train", "validation"):
        crops[part], rows[part], targets[part] = _load_shown(run, part, progress)
    weights = class_weights(targets["train"][rows["train"]], len(split.labels), config.class_weights)

    attributes = load_attribute_codes(run, "train")
    heads = []
    if config.attribute_weight and attributes.sizes:
        heads.append(attributes.codes)
    if config.domain_weight and len(run.config.domains) > 1:
        heads.append(domain_codes(run, "train"))

    if share().count > 1:
        seen = {part: crops[part][:: max(len(crops[part]) // _COMPARED, 1)] for part in crops}
        require_same(
            {
                "settings": json.dumps(run.config.to_json(), sort_keys=True),
                "splits": split.digest,
                "images": b"".join(rows[part].tobytes() + seen[part].tobytes() for part in crops),
                "attributes": b"".join(head.tobytes() for head in heads),
            }
        )
    with over_devices(min(config.batch_size, len(rows["train"]))):
        model = _fit(run, crops, targets, rows, weights, attributes.sizes, heads, progress)
        # whatever it was trained in, what is kept computes in float32: features, and the exported graphs
        plain = build_classifier(config, len(run.split.labels))
        start_from(plain, _plain(model))
    temporary = final.with_name("classifier.part.keras")
    if _save(plain, temporary):
        os.replace(temporary, final)


def _fit(
    run: Run,
    crops: dict[str, NDArray[np.uint8]],
    targets: dict[str, NDArray[np.int64]],
    rows: dict[str, NDArray[np.int64]],
    weights: NDArray[np.float32],
    attributes: tuple[int, ...],
    heads: Sequence[NDArray[np.int64]],
    progress: Progress,
) -> Any:
    """The model at the end of its last epoch, begun anew or from the run's checkpoint."""
    config, folder = run.config.classifier, run.folder
    steps = max(len(rows["train"]) // config.batch_size, 1)
    keras.utils.set_random_seed(run.config.seed)
    epoch, first_step = 0, 0
    own, place = share(), _place(folder)
    if place is not None:
        epoch, first_step = place
        model = _load(folder / _checkpoint(epoch, first_step))
        if first_step >= steps:
            epoch, first_step = epoch + 1, 0
    else:
        model = _new_model(run, attributes, steps)
    history = folder / "history.csv"
    if own.rank == 0 and not history.exists():
        history.write_text("epoch,loss,accuracy,validation_loss,validation_accuracy,seconds\n")
    task = progress.add_task(
        "training the classifier", total=config.epochs * steps, completed=epoch * steps + first_step, info=""
    )
    left = (config.epochs - epoch) * steps - first_step
    for number in range(epoch, config.epochs):
        began = time.monotonic()
        skip = first_step if number == epoch else 0
        data = _dataset(
            crops["train"],
            targets["train"],
            rows["train"],
            config,
            weights,
            run.config.seed * 1000 + number,
            skip,
            heads,
            domain_codes(run, "train"),
            own,
        )
        fit = model.fit(
            data,
            steps_per_epoch=steps - skip,
            shuffle=False,
            verbose=0,
            callbacks=[_Checkpoint(folder, number, skip, progress, task, left if number == epoch else None)],
        )
        values = {key.removeprefix("probabilities_"): float(v[-1]) for key, v in fit.history.items()}
        validation = _validate(model, crops["validation"], targets["validation"], rows["validation"], own)
        if own.rank == 0:
            seconds = time.monotonic() - began
            _note_epoch(history, number + 1, values, validation, seconds)
            progress.console.print(
                f"epoch {number + 1}/{config.epochs}: loss {values['loss']:.4f}, accuracy {values['accuracy']:.4f}, "
                f"validation accuracy {validation[1]:.4f}, {seconds:.0f} s"
            )
        save_checkpoint(model, folder, number + 1, 0)
    return model


def _note_epoch(
    history: Path, epoch: int, values: dict[str, float], validation: tuple[float, float], seconds: float
) -> None:
    """Write the line of an epoch to `history.csv`. validation : loss and accuracy."""
    numbers = (values["loss"], values["accuracy"], *validation)
    note_epoch(history, epoch, [*(f"{number:.5f}" for number in numbers), f"{seconds:.1f}"])


def note_epoch(history: Path, epoch: int, values: Sequence[str]) -> None:
    """Write the line of an epoch to a history that has a head, in the place of those that are there of it or of later
    ones: a process that is killed between a line and its checkpoint does the epoch again."""
    head, *rows = csv.reader(history.read_text(encoding="utf-8").splitlines())
    before = [row for row in rows if len(row) == len(head) and int(row[0]) < epoch]
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([head, *before, [epoch, *values]])
    replace_file(history, text.getvalue())


def _validate(
    model: Any, crops: NDArray[np.uint8], targets: NDArray[np.int64], rows: NDArray[np.int64], own: Share
) -> tuple[float, float]:
    """Cross entropy and accuracy over all rows, of which each process predicts its part; NaN without any."""
    told = np.zeros(3)
    part = np.sort(rows)[own.rank :: own.count]
    if len(part):
        probabilities = predict(_plain(model), crops, part)
        right = probabilities[np.arange(len(part)), targets[part]]
        told[:] = (
            -np.log(np.maximum(right, 1e-7)).sum(dtype=np.float64),
            (probabilities.argmax(1) == targets[part]).sum(),
            len(part),
        )
    loss, hits, count = total(told)
    return (float(loss / count), float(hits / count)) if count else (float("nan"), float("nan"))


def _new_model(run: Run, attributes: tuple[int, ...], steps: int) -> Any:
    """The compiled model that is trained: the classifier, with heads for attributes where the run weighs them."""
    config = run.config.classifier
    with precision(config.mixed_precision):
        model = build_classifier(config, len(run.split.labels))
        half = keras.config.dtype_policy().name
    draw_weights(model, run.config.seed)
    if config.initial:
        try:
            start_from(model, keras.models.load_model(config.initial, compile=False))
        except (OSError, ValueError) as error:
            raise RunError(f"classifier.initial, {config.initial}: {error}") from None
    losses: list[Any] = [keras.losses.CategoricalCrossentropy(label_smoothing=config.label_smoothing)]
    metrics: list[Any] = [["accuracy"]]
    shares = [1.0]
    if config.attribute_weight and attributes:
        losses.append(AttributeLoss(attributes))
        metrics.append([])
        shares.append(config.attribute_weight)
    domains = len(run.config.domains) if config.domain_weight and len(run.config.domains) > 1 else 0
    if domains:
        losses.append(keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        metrics.append([])
        shares.append(config.domain_weight)
    if len(losses) > 1:
        model = with_heads(model, attributes if config.attribute_weight else (), domains)
        for number, name in enumerate(("attributes", "optics", "domain")):
            if any(layer.name == name for layer in model.layers):
                draw_weights(model.get_layer(name), run.config.seed + number + 1)
    optimizer: Any = keras.optimizers.Adam(_learning_rate(config, steps))
    if half == "mixed_float16":
        # named here: Keras scales the loss by itself only where the whole process computes in float16
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    model.compile(
        optimizer=optimizer,
        loss=losses if len(losses) > 1 else losses[0],
        loss_weights=shares if len(losses) > 1 else None,
        auto_scale_loss=False,
        weighted_metrics=[],
        metrics=metrics if len(losses) > 1 else metrics[0],
    )
    return model


def _plain(model: Any) -> Any:
    """The classifier alone: crops → probabilities."""
    return keras.Model(model.input, model.outputs[0], name="modified_xception")


def evaluate_classifier(run: Run, progress: Progress) -> dict[str, Any]:
    """Accuracy and confusion matrix of the held-out part (of the validation part where nothing was held out).

    Returns `part`, `n`, `accuracy`, `confusion` (int[c][c], rows: the class people gave), written as `classifier.json`.
    """
    out = run.folder / "classifier.json"
    if out.exists():
        needs = ("part", "n", "accuracy", "confusion")
        return read_json(out, needs, "Delete it: `python -m training resume` of the run measures it again.")
    part = "holdout" if run.split.holdout else "validation"
    crops, rows, targets = _load_shown(run, part, progress)
    targets = targets[rows]
    model = keras.models.load_model(run.folder / "classifier.keras", compile=False)
    guesses = predict(model, crops, rows).argmax(axis=1)
    confusion = np.zeros((len(run.split.labels),) * 2, dtype=int)
    np.add.at(confusion, (targets, guesses), 1)
    figures = {
        "part": part,
        "n": len(rows),
        "accuracy": float((guesses == targets).mean()) if len(rows) else float("nan"),
        "labels": list(run.split.labels),
        "confusion": confusion.tolist(),
    }
    write_json(out, figures)
    return figures
