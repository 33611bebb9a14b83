"""Several processes train one classifier: in the same steps as one, each from its own part of a batch, and from the
last checkpoint where one of them is killed."""

from __future__ import annotations

import contextlib
import csv
import functools
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
from rich.progress import Progress
from typer.testing import CliRunner

from training.cli import worker
from training.cli.app import app
from training.config import PRESETS, override
from training.networks import workers
from training.networks.workers import REFUSED, Workers, train_over
from training.run import Run, RunError

ROOT = Path(__file__).parents[1]
SETTINGS = [
    "classifier.width=0.125", "classifier.input_size=32", "classifier.middle_repeats=0", "classifier.epochs=2",
    "classifier.batch_size=8", "validation=0.2",
]  # fmt: skip
SHALLOW = """
from tests.trainings import shallowly
from training.cli import worker
with shallowly():
    worker.main()
"""


@pytest.fixture(scope="module", autouse=True)
def _networks() -> None:
    """What loads TensorFlow: only the worker that runs this file does, not each that collects it."""
    global NEIGHBOURS, VIEW, augment, train_classifier, devices, Share, total
    from training.augmentation.augment import VIEW, augment
    from training.augmentation.neighbours import NEIGHBOURS
    from training.networks import devices
    from training.networks.classifier import train_classifier
    from training.networks.devices import Share, total


@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_part_of_a_batch_is_changed_as_in_the_whole(count: int) -> None:
    config = override(
        PRESETS["optics"], ["classifier.augmentation.neighbour=0.7", "classifier.augmentation.noise=4"]
    ).classifier.augmentation
    random = np.random.default_rng(0)
    crops = random.integers(0, 255, (8, 32, 32, 3), np.uint8)
    beside = random.integers(0, 255, (8, NEIGHBOURS, 32, 32, 3), np.uint8)
    for how in (config, VIEW):
        seed = np.array([3, 5], np.int32)
        others = (beside,) if how.neighbour else ()
        whole = augment(crops, how, seed, *others).numpy()
        parts = []
        for rank in range(count):
            own = Share(rank, count)
            told = (own.of(beside),) if how.neighbour else ()
            parts.append(augment(own.of(crops), how, seed, *told, part=(own.first(8), 8)).numpy())
        np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_one_process_has_the_whole_batch_and_its_own_sum() -> None:
    assert Share().of(np.arange(8)).tolist() == list(range(8))
    assert Share(1, 2).of(np.arange(8)).tolist() == [4, 5, 6, 7]
    assert total(np.array([1.5, 2.0])).tolist() == [1.5, 2.0]


def trained(
    folder: Path, cells: Path, count: int, killed: Sequence[subprocess.Popen[bytes]] | None = None
) -> list[dict[str, str]]:
    """The history of a classifier that so many processes trained. killed : the processes that are started, the last of
    which is killed after an epoch."""
    run = Run.create(folder, cells, override(PRESETS["starter"], SETTINGS))
    ended = []

    def kill() -> None:
        while not (folder / "checkpoint.json").exists():
            time.sleep(0.05)
        assert killed is not None and len(killed) == count
        if killed[-1].poll() is None:
            killed[-1].kill()
            ended.append(killed[-1].pid)

    killing = threading.Thread(target=kill)
    if killed is not None:
        killing.start()
    with Progress(disable=True) as progress:
        train_classifier(run, progress, functools.partial(train_over, Workers(count).check()))
    if killed is not None:
        killing.join()
        assert len(ended) == 1 and len(killed) == 2 * count
    return list(csv.DictReader((folder / "history.csv").read_text().splitlines()))


def test_two_processes_train_as_one_and_go_on_where_one_is_killed(
    drawn_cells: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    start_on_jax: Callable[..., subprocess.Popen[bytes]],
) -> None:
    processes: list[subprocess.Popen[bytes]] = []

    def start(words: Sequence[str], *, start_new_session: bool, **how: Any) -> subprocess.Popen[bytes]:
        processes.append(start_on_jax(words, env=dict(os.environ), **how))
        return processes[-1]

    monkeypatch.setenv("KERAS_BACKEND", "jax")
    if version("jaxlib").startswith("0.10."):  # as in test_training_backends.py
        monkeypatch.setenv("XLA_FLAGS", f"{os.environ['XLA_FLAGS']} --xla_cpu_use_fusion_emitters=false")
    monkeypatch.setattr(workers, "_PROGRAM", ("-c", SHALLOW))
    one = trained(tmp_path / "one", drawn_cells, 1)  # started as ever
    monkeypatch.setattr(workers, "subprocess", SimpleNamespace(Popen=start, PIPE=subprocess.PIPE))
    two = trained(tmp_path / "two", drawn_cells, 2, processes)
    assert [row["epoch"] for row in two] == ["1", "2"], "no epoch is lost, none is done twice"
    for mine, other in zip(one, two, strict=True):
        for name in ("loss", "validation_loss"):
            assert float(mine[name]) == pytest.approx(float(other[name]), rel=0.002)
    assert (tmp_path / "two" / "classifier.keras").stat().st_size > 0
    assert not list((tmp_path / "two").glob("*.part*"))


def test_a_process_ends_where_the_one_that_started_it_was_killed_however_early(tmp_path: Path) -> None:
    child = (
        "import os, sys, time; from pathlib import Path; folder = Path(sys.argv[1]); "
        "(folder / 'part').write_text(str(os.getpid())); (folder / 'part').rename(folder / 'pid')\n"
        "while not (folder / 'killed').exists(): time.sleep(0.05)\n"  # to import JAX takes seconds
        "from training.cli import worker; worker.prepare_environment = lambda: time.sleep(600); worker.main()"
    )
    starter = (
        "import sys; from pathlib import Path; from types import SimpleNamespace; from rich.progress import Progress; "
        "from training.networks import workers; from training.networks.workers import Workers, join; "
        f"folder = Path(sys.argv[1]); workers._PROGRAM = ('-c', {child!r}); "
        "join(Workers(1), SimpleNamespace(folder=folder, data=folder), Progress(disable=True))"
    )
    deadline = time.monotonic() + 60
    with subprocess.Popen([sys.executable, "-c", starter, str(tmp_path)], cwd=ROOT) as parent:
        while not (tmp_path / "pid").exists():
            assert parent.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        process = psutil.Process(int((tmp_path / "pid").read_text()))
        parent.kill()
    assert process.is_running()
    (tmp_path / "killed").touch()
    with contextlib.suppress(psutil.NoSuchProcess):
        while process.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_processes_that_cannot_train_are_refused(
    drawn_cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RunError, match="KERAS_BACKEND=jax"):
        Workers(2).check()
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    for wrong, told in (
        (Workers(2, 0, 1), "--coordinator HOST:PORT"),
        (Workers(2, 2, 1, "gpu1:7711"), "counted from 0"),
        *((Workers(2, 0, 1, wrong), "has to be HOST:PORT") for wrong in ("gpu1", ":7711", "gpu1:0", "gpu1:70000")),
    ):
        with pytest.raises(RunError, match=told):
            wrong.check()
    run = Run.create(tmp_path / "run", drawn_cells, override(PRESETS["starter"], SETTINGS))
    with Progress(disable=True) as progress, pytest.raises(RunError, match="cannot be divided among 3 processes"):
        train_classifier(run, progress, functools.partial(train_over, Workers(3)))
    few = Run.create(tmp_path / "few", drawn_cells, override(run.config, ["classifier.batch_size=64"]))
    assert len(few.split.train) % 16, "else they could be divided"
    with Progress(disable=True) as progress, pytest.raises(RunError, match="images to train on are one batch"):
        train_classifier(few, progress, functools.partial(train_over, Workers(16)))
    with socket.create_server(("", 0)) as taken, Progress(disable=True) as progress:
        several = Workers(2, 0, 1, f"localhost:{taken.getsockname()[1]}").check()
        with pytest.raises(RunError, match="of this computer cannot be used: Address already in use"):
            train_classifier(run, progress, functools.partial(train_over, several))
    words = ["train", str(drawn_cells), "--run", str(tmp_path / "alone"), "--here", "1"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 2 and "are of several processes" in done.output


def test_what_is_said_at_a_stop_goes_on_with_the_same_processes_and_images(
    drawn_cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    def said(*words: object) -> str:
        done = CliRunner().invoke(app, [str(word) for word in words])
        assert done.exit_code == 130, done.output
        return done.stderr.splitlines()[-1]

    monkeypatch.setenv("KERAS_BACKEND", "jax")
    run, moved = tmp_path / "my run", tmp_path / "moved"
    moved.symlink_to(drawn_cells)
    begin = ("train", drawn_cells, "--run", run, *(part for one in SETTINGS for part in ("--set", one)))
    with monkeypatch.context() as early:
        early.setattr("training.run.make_split", stopped)
        assert said(*begin) == "stopped; the same command begins anew"
    monkeypatch.setattr("training.cli.app._train", stopped)
    assert said(*begin) == f"stopped; go on with `python -m training resume '{run}'`"
    several = ("--processes", 2, "--here", 1, "--coordinator", "gpu1:7711")
    again = f"KERAS_BACKEND=jax python -m training resume '{run}'"
    assert said(*begin, *several[:2]) == f"stopped; go on with `{again} --processes 2`"
    told = said("resume", run, *several)
    assert told == f"stopped; go on with `{again} --processes 2 --here 1 --coordinator gpu1:7711`"
    elsewhere = shutil.copytree(drawn_cells, tmp_path / "elsewhere")
    assert said("resume", run, "--data", moved) == f"stopped; go on with `python -m training resume '{run}'`"
    told = said("resume", run, "--data", elsewhere, *several[:2])
    assert told == f"stopped; go on with `{again} --data {elsewhere} --processes 2`"


def test_processes_that_would_train_differently_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[bytes] = []
    monkeypatch.setattr(devices, "share", lambda: Share(0, 2))
    monkeypatch.setattr(devices, "_of_all", lambda own: [told.append(own) or own, told[0]])
    devices.require_same({"settings": "a", "images": b"b"})
    with pytest.raises(RunError, match="process 1 has other images than process 0"):
        devices.require_same({"settings": "a", "images": b"c"})


@pytest.mark.parametrize(
    ("error", "status"), [(RunError("no run"), REFUSED), (ValueError("UNKNOWN: Gloo AllGather failed"), 1)]
)
def test_a_lost_process_is_no_reason_to_give_up(
    monkeypatch: pytest.MonkeyPatch, drawn_cells: Path, tmp_path: Path, error: Exception, status: int
) -> None:
    """Where another process is lost while all tell each other something, JAX raises ValueError."""
    import jax

    from training.networks import classifier

    def fail(*_: object) -> None:
        raise error

    run = Run.create(tmp_path / "run", drawn_cells, override(PRESETS["starter"], SETTINGS))
    monkeypatch.setattr(sys, "argv", ["worker", str(run.folder), str(drawn_cells), "0", "2", "gpu1:7711"])
    monkeypatch.setattr(worker, "_end_with_starter", lambda: None)
    monkeypatch.setattr(jax.distributed, "initialize", lambda *_, **__: None)
    monkeypatch.setattr(classifier, "train_here", fail)
    monkeypatch.setattr(os, "_exit", sys.exit)
    with pytest.raises(SystemExit) as ended:
        worker.main()
    assert ended.value.code == status


def test_processes_that_fail_again_and_again_are_given_up_with_their_words(
    drawn_cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # what JAX prints is no word of a process, whatever it looks like; more of it than a pipe holds
    monkeypatch.setattr(workers, "_PROGRAM", ("-c", "print('7\\n' * 40_000); raise OSError('no room')"))
    run = Run.create(tmp_path / "run", drawn_cells, override(PRESETS["starter"], SETTINGS))
    earlier = run.folder / "workers" / "2.log"  # of a training of three processes
    earlier.parent.mkdir()
    earlier.write_text("error: another fault\n")
    os.utime(earlier, (1e9, 1e9))
    with Progress(disable=True) as progress, pytest.raises(RunError, match="cannot go on.*no room"):
        train_classifier(run, progress, functools.partial(train_over, Workers(2)))


def test_a_computer_joins_the_training_of_another(
    drawn_cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run.create(tmp_path / "run", drawn_cells, override(PRESETS["starter"], SETTINGS))
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    final = run.folder / "classifier.keras"
    monkeypatch.setattr(
        workers, "_PROGRAM", ("-c", f"import sys; open({str(final)!r}, 'w').write(' '.join(sys.argv[1:]))")
    )
    words = ["join", str(run.folder), "--processes", "3", "--first", "2", "--coordinator", "gpu1:7711"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert final.read_text() == f"{run.folder} {run.data} 2 3 gpu1:7711"
    assert CliRunner().invoke(app, ["join", str(tmp_path / "none"), *words[2:]]).exit_code == 1
