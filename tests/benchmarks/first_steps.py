"""Do two processes take the steps of one: `python -m tests.benchmarks.first_steps --json`.

The first steps of one training, by the thesis-size network (Xception of full width, 224 px) on pictures of pbc, are
done by one process and by two, with the same seed and data, on JAX. `one` and `two` are the loss of each step, `apart`
their relative difference. An epoch is one batch, and the pictures are the same in each.

In float32 a sum in another order is rounded otherwise, and Adam, which divides by the size of a gradient, carries that
on. So the same is done in float64, where only a difference that is no rounding would stay. `from_float64` is how far
one process in float32 is from that.

`--width`, `--size` and `--middle` take a smaller network. Full size: 13 minutes on two cores, 7 GB.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import patch

from tests.benchmarks.exports import REAL_CELLS

__all__ = ["main", "measure"]

# What a worker does beside its work: it computes in `floatx` everywhere, and writes each epoch's loss unrounded.
_WORKER = """
import keras, os
from types import SimpleNamespace
from training.cli import worker
floatx = os.environ["FIRST_STEPS_IN"]
keras.config.set_floatx(floatx)
keras.config.set_dtype_policy(floatx)
from keras.src import backend  # where a float64 meets a float32, Keras goes on in float32
from keras.src.backend.common import dtypes
usual = dtypes.result_type
def widest(*kinds):
    return floatx if any(getattr(kind, "name", kind) == floatx for kind in kinds) else usual(*kinds)
backend.result_type = dtypes.result_type = widest
from training.networks import architecture, classifier
def dense(*words, dtype=None, **more):
    return keras.layers.Dense(*words, dtype=floatx if dtype == "float32" else dtype, **more)
architecture.layers = SimpleNamespace(**{**vars(keras.layers), "Dense": dense})
note = classifier._note_epoch
def noted(history, epoch, values, *more):
    with history.with_name("losses.txt").open("a") as file:
        file.write(f"{values['loss']!r}\\n")
    note(history, epoch, values, *more)
classifier._note_epoch = noted
worker.main()
"""


def measure(
    folder: Path,
    tree: Path,
    *,
    steps: int,
    batch: int,
    width: float,
    size: int,
    middle: int,
    floats: tuple[str, ...] = ("float32", "float64"),
) -> dict[str, Any]:
    """Train in `folder`, an empty one, on the first pictures of each class in `tree`, which are one batch; returns the
    figures."""
    images = folder / "images"
    kinds = sorted(path for path in tree.iterdir() if path.is_dir())
    for kind in kinds:
        (images / kind.name).mkdir(parents=True)
        for path in sorted(kind.iterdir())[: -(-batch // len(kinds))]:
            (images / kind.name / path.name).write_bytes(path.read_bytes())
    settings = [
        f"classifier.width={width}", f"classifier.input_size={size}", f"classifier.middle_repeats={middle}",
        f"classifier.epochs={steps}", f"classifier.batch_size={batch}", "holdout=0", "validation=0",
    ]  # fmt: skip
    figures: dict[str, Any] = {"steps": steps, "batch": batch, "width": width, "size": size, "middle_repeats": middle}
    for floatx in floats:
        losses, seconds = {}, {}
        for count in (1, 2):
            began = time.monotonic()
            losses[count] = _losses(folder / f"{floatx}-{count}", images, settings, count, floatx, steps)
            seconds[count] = round(time.monotonic() - began)
            print(f"{floatx}, {count} process(es): {losses[count]}, {seconds[count]} s", file=sys.stderr)
        apart = [abs(two - one) / one for one, two in zip(losses[1], losses[2], strict=True)]
        figures[floatx] = {"one": losses[1], "two": losses[2], "apart": apart, "seconds": list(seconds.values())}
    if len(floats) > 1:
        exact = figures["float64"]["one"]
        figures["from_float64"] = [
            abs(one - right) / right for one, right in zip(figures["float32"]["one"], exact, strict=True)
        ]
    return figures


def _losses(folder: Path, images: Path, settings: list[str], count: int, floatx: str, steps: int) -> list[float]:
    """The loss of each step, which is an epoch, of a training by `count` processes."""
    from rich.progress import Progress

    from training.config import PRESETS, override
    from training.networks import workers
    from training.networks.classifier import train_classifier
    from training.networks.workers import Workers, train_over
    from training.run import Run

    run = Run.create(folder, images, override(PRESETS["thesis"], settings))
    program = patch.object(workers, "_PROGRAM", ("-c", _WORKER))
    with program, patch.dict(os.environ, _environment(floatx)), Progress(disable=True) as progress:
        train_classifier(run, progress, lambda *words: train_over(Workers(count).check(), *words))
    return [float(line) for line in (folder / "losses.txt").read_text().split()]


def _environment(floatx: str) -> dict[str, str]:
    made = {"KERAS_BACKEND": "jax", "FIRST_STEPS_IN": floatx, "JAX_ENABLE_X64": "1" if floatx == "float64" else "0"}
    if version("jaxlib").startswith("0.10."):  # its fused loops on the CPU do not know some of Keras' convolutions
        flags = "--xla_cpu_use_fusion_emitters=false"
        made["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()
    return made


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tree", type=Path, default=REAL_CELLS, help="folders of classes")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--batch", type=int, default=8, help="pictures of a step")
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--size", type=int, default=224, help="side in pixels")
    parser.add_argument("--middle", type=int, default=3, help="repeats of the middle flow; the thesis has three")
    parser.add_argument("--json", action="store_true")
    words = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(
            Path(folder), words.tree, steps=words.steps, batch=words.batch, width=words.width, size=words.size,
            middle=words.middle,
        )  # fmt: skip
    print(json.dumps(figures) if words.json else "\n".join(f"{name}: {value}" for name, value in figures.items()))


if __name__ == "__main__":
    main()
