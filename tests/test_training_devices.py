"""Several devices train one run; here two halves of the processor stand for two GPUs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
TRAIN = """
import sys
from pathlib import Path
import tensorflow as tf

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import training.networks.classifier as classifier
from rich.progress import Progress
from tests.trainings import shallowly
from training.config import PRESETS, override
from training.networks.devices import over_devices
from training.run import Run

told = []

classifier.over_devices = lambda batch: over_devices(batch, "CPU")
real = classifier._new_model

def new(*args):
    told.append(tf.distribute.get_strategy().num_replicas_in_sync)
    return real(*args)

classifier._new_model = new
settings = ["classifier.width=0.125", "classifier.input_size=32", "classifier.epochs=1", "classifier.batch_size=8"]
settings += ["classifier.middle_repeats=0", "validation=0.2"]
run = Run.create(Path(sys.argv[2]), Path(sys.argv[1]), override(PRESETS["starter"], settings))
with shallowly(), Progress(disable=True) as progress:
    classifier.train_classifier(run, progress)
print("replicas", told[-1])
"""


def test_a_run_trains_over_two_devices(drawn_cells: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", TRAIN, str(drawn_cells), str(tmp_path / "run")], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split()[-2:] == ["replicas", "2"]
    assert (tmp_path / "run" / "classifier.keras").stat().st_size > 0
    assert len((tmp_path / "run" / "history.csv").read_text().splitlines()) == 2
