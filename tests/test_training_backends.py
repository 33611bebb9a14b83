"""TensorFlow and JAX train the same run to the same bundle; mixed precision; several devices on either."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
import pytest

from labref.bundles.bundle import install
from labref.bundles.inference import Embedder
from tests.trainings import command, eager, shallowly  # noqa: F401
from training.config import PRESETS, override
from training.data.images import list_images
from training.measure.evaluate import embed_tree, nearest
from training.run import Run, load_attribute_codes

pytestmark = [
    pytest.mark.usefixtures("eager"),
    pytest.mark.filterwarnings("ignore:Even though the `tf.config.experimental_run_functions_eagerly`"),
]
ROOT = Path(__file__).parents[1]
LABELS = ("eosinophil", "lymphocyte", "neutrophil")
SETTINGS = [
    "classifier.width=0.125", "classifier.input_size=32", "classifier.middle_repeats=0", "classifier.epochs=1",
    "classifier.attribute_weight=1", "attributes=attributes.csv", "holdout=0.3", "validation=0.1", "orientations=2",
    "vae.epochs=4", "vae.layers=0", "vae.batch_size=16", "vae.views=2", "vae.attribute_weight=5", "vae.neighbour_weight=5",
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _networks() -> None:
    """What loads TensorFlow: only the worker that runs this file does, not each that collects it."""
    global keras, classifier, devices, build_trunk
    import keras

    from training.networks import classifier, devices
    from training.networks.architecture import build_trunk


@pytest.fixture(scope="module")
def cells(real_cells: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty real cells of each of three classes, with the experts' attributes."""
    folder = tmp_path_factory.mktemp("cells")
    for label in LABELS:
        (folder / label).mkdir()
        for image in sorted((real_cells / "pbc" / label).glob("*.jpg"))[:40]:
            shutil.copy(image, folder / label)
    shutil.copy(real_cells / "pbc" / "attributes.csv", folder)
    return folder


Command = Callable[..., str]
"""`python -m <program> <words>` → what it says; it has to end well."""

JAX = """
import tests.environment
import contextlib, json, sys, traceback
from pathlib import Path

answers, sys.stdout = sys.stdout, sys.stderr
import jax, keras
from rich.progress import Progress
from tests.trainings import command, shallowly
from training.networks import classifier, devices
from training.run import Run

assert keras.backend.backend() == "jax"
# what XLA compiled is kept: a second model of the same network is not compiled again
jax.config.update("jax_compilation_cache_dir", sys.argv[1])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def train_classifier(run, split=lambda batch: devices.over_devices(batch, "CPU")):
    told = []
    real = classifier._new_model, classifier.over_devices

    def new(*args):
        model = real[0](*args)
        told.append(len(model.trainable_variables[0].value.devices()))
        return model

    classifier._new_model, classifier.over_devices = new, split
    try:
        with Progress(disable=True) as progress:
            classifier.train_classifier(Run.open(Path(run)), progress)
    finally:
        classifier._new_model, classifier.over_devices = real
    return " ".join(map(str, ("devices", *told)))


OWN = {"over two": train_classifier, "over one": lambda run: train_classifier(run, devices.over_devices)}
for line in sys.stdin:
    program, *words = json.loads(line)
    program, _, layers = program.partition(", ")
    try:
        with shallowly() if layers else contextlib.nullcontext():
            said = OWN[program](*words) if program in OWN else command(program, *words).output
        answer = {"said": said}
    except BaseException:
        answer = {"failed": traceback.format_exc()}
    print(json.dumps(answer), file=answers, flush=True)
"""
"""A process on JAX, which has two devices: it does command after command. `over one` trains the classifier of a run on
one of them, `over two` over both. After `<program>, shallow` classifiers have few layers (`shallowly`)."""


@pytest.fixture(scope="module")
def on_jax(
    tmp_path_factory: pytest.TempPathFactory, start_on_jax: Callable[..., subprocess.Popen[str]]
) -> Iterator[Command]:
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2"
    # XLA's newer way to fuse operations takes twice as long to compile, for networks that then do five steps; an XLA
    # that has no such switch (jaxlib 0.12) ends at once where it is given
    if version("jaxlib").startswith("0.10."):
        flags += " --xla_cpu_use_fusion_emitters=false"
    folder = tmp_path_factory.mktemp("jax")
    environment = {**os.environ, "KERAS_BACKEND": "jax", "XLA_FLAGS": flags}
    said = folder / "said"
    with (
        said.open("w") as errors,
        start_on_jax(
            [sys.executable, "-c", JAX, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
            text=True, env=environment,
        ) as process,
    ):  # fmt: skip
        assert process.stdin is not None and process.stdout is not None

        def ask(program: str, *words: object) -> str:
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write(json.dumps([program, *map(str, words)]) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
            assert line, said.read_text()[-3000:]
            answer = json.loads(line)
            assert "failed" not in answer, answer["failed"]
            return str(answer["said"])

        yield ask
        process.stdin.close()


def on_tensorflow(program: str, *words: object) -> str:
    program, _, layers = program.partition(", ")
    with shallowly() if layers else contextlib.nullcontext():
        return command(program, *words).output


@pytest.fixture(params=["tensorflow", "jax"])
def backend(request: pytest.FixtureRequest) -> Command:
    return on_tensorflow if request.param == "tensorflow" else request.getfixturevalue("on_jax")


def train(ask: Command, cells: Path, run: Path, *settings: str, program: str = "training") -> str:
    more = [word for setting in (*SETTINGS, *settings) for word in ("--set", setting)]
    return ask(program, "train", cells, "--run", run, "--preset", "starter", *more)


def weights(file: Path) -> np.ndarray:
    model = keras.models.load_model(file, compile=False)
    return np.concatenate([weight.ravel() for weight in model.get_weights()])


@pytest.fixture(scope="module")
def runs(cells: Path, tmp_path_factory: pytest.TempPathFactory, eager: None, on_jax: Command) -> dict[str, Path]:  # noqa: F811
    """One run on each backend, whose classifier is trained by one batch: more would let rounding grow. JAX trains the
    classifier alone: its features and VAE are asked about with the classifier of the other."""
    folder = tmp_path_factory.mktemp("backends")
    train(on_tensorflow, cells, folder / "tensorflow", "classifier.batch_size=64")
    config = override(PRESETS["starter"], [*SETTINGS, "classifier.batch_size=64"])
    assert on_jax("over one", Run.create(folder / "jax", cells, config).folder) == "devices 1"
    return {name: folder / name for name in ("tensorflow", "jax")}


def test_both_backends_take_the_same_step(runs: dict[str, Path]) -> None:
    with (runs["jax"] / "history.csv").open() as one, (runs["tensorflow"] / "history.csv").open() as other:
        losses = [[float(value) for value in list(file)[1].split(",")[1:5]] for file in (one, other)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-3)
    mine, theirs = (weights(runs[name] / "classifier.keras") for name in ("jax", "tensorflow"))
    # Adam's first step is ± the learning rate by the gradient's sign, which rounding turns where it is all but zero
    assert np.abs(mine - theirs).mean() < 1e-6


def test_both_backends_give_the_same_bundle(
    runs: dict[str, Path], cells: Path, tmp_path: Path, on_jax: Command
) -> None:
    begun = tmp_path / "jax"
    begun.mkdir()
    for name in ("run.json", "split.csv", "history.csv", "classifier.keras", "classifier.json"):
        shutil.copy(runs["tensorflow"] / name, begun)
    on_jax("training", "resume", begun)  # the same classifier; features and VAE by JAX
    features = [np.load(run / "features" / "train-2.npy").astype(np.float32) for run in (begun, runs["tensorflow"])]
    np.testing.assert_allclose(features[0], features[1], atol=1e-4)

    asked, manifests = [], []
    for run in (begun, runs["tensorflow"]):
        file = tmp_path / f"{run.name}.labref"
        words = ("exporters", "bundle", run, "--out", file, "--no-reduced")
        if run == begun:  # said for JAX, shipped by TensorFlow, which tf2onnx reads
            environment = {**os.environ, "KERAS_BACKEND": "jax"}
            subprocess.run([sys.executable, "-m", *map(str, words)], check=True, cwd=ROOT, env=environment)
        else:
            command(*words)
        with zipfile.ZipFile(file) as opened:
            manifests.append(json.loads(opened.read("manifest.json")))
        with Embedder.open(install(file, tmp_path / "bundles"), device="cpu") as embedder:
            asked.append(embed_tree(embedder, cells, list_images(cells)).latents)
    for key in ("classes", "features", "orientations", "preparation"):
        assert manifests[0][key] == manifests[1][key]
    spread = asked[1].std()
    assert np.abs(asked[0] - asked[1]).mean() < 0.01 * spread
    eights = [nearest(latents, latents, np.eye(len(latents), dtype=bool))[0] for latents in asked]
    stay = [len(np.intersect1d(one, other)) for one, other in zip(*eights, strict=True)]
    assert np.mean(stay) > 7.8


def test_a_backend_that_does_not_train_is_named(cells: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "training", "train", str(cells), "--run", str(tmp_path / "run")]
    environment = {**os.environ, "KERAS_BACKEND": "torch"}
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 1
    assert "KERAS_BACKEND is torch; a run is trained by tensorflow or jax" in done.stderr


def test_mixed_precision_trains_and_ships_a_full_one(cells: Path, tmp_path: Path, backend: Command) -> None:
    run = tmp_path / "run"
    small = ("classifier.batch_size=16", "orientations=1", "vae.epochs=1", "vae.views=1")
    train(backend, cells, run, "classifier.mixed_precision=true", *small, program="training, shallow")
    checkpoint = keras.models.load_model(next(run.glob("checkpoint-*.keras")), compile=False)
    policies = {layer.dtype_policy.name for layer in checkpoint.layers}
    assert "mixed_bfloat16" in policies, "the networks computed in half precision"
    plain = keras.models.load_model(run / "classifier.keras", compile=False)
    encoder = keras.models.load_model(run / "encoder.keras", compile=False)
    assert build_trunk(plain).output["features"].dtype == "float32"
    assert {layer.dtype_policy.name for model in (plain, encoder) for layer in model.layers} == {"float32"}
    crops = np.random.default_rng(1).uniform(0, 255, (4, 32, 32, 3)).astype(np.float32)
    mixed, _ = checkpoint(crops, training=False)  # classes, and attributes
    # bfloat16 has 8 bits of mantissa
    np.testing.assert_allclose(np.asarray(mixed), np.asarray(plain(crops, training=False)), atol=0.05)
    out = command("exporters", "bundle", run, "--out", tmp_path / "mixed.labref", "--no-reduced").stdout
    assert "mixed.labref: bundle" in out.replace("\n", "")
    with zipfile.ZipFile(tmp_path / "mixed.labref") as opened:
        graph = onnx.load_from_string(opened.read("trunk.onnx")).graph
    assert {onnx.TensorProto.DataType.Name(tensor.data_type) for tensor in graph.initializer} <= {
        "FLOAT",
        "INT64",
        "INT32",
    }


@pytest.mark.parametrize("heads", [0.0, 1.0])
def test_float16_scales_the_loss_and_keeps_its_optimiser(
    cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, heads: float
) -> None:
    monkeypatch.setattr(devices, "_devices", lambda kind: ["one"])  # as if there were a GPU
    settings = [*SETTINGS, "classifier.mixed_precision=true", f"classifier.attribute_weight={heads}"]
    run = Run.create(tmp_path / "run", cells, override(PRESETS["starter"], settings))
    model = classifier._new_model(run, load_attribute_codes(run, "train").sizes, 4)
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert "mixed_float16" in {layer.dtype_policy.name for layer in model.layers}
    model.optimizer.build(model.trainable_variables)
    model.optimizer.inner_optimizer.iterations.assign(3)
    classifier.save_checkpoint(model, run.folder, 1, 0)
    again = keras.models.load_model(run.folder / "checkpoint-1-0.keras")
    assert isinstance(again.optimizer, keras.optimizers.LossScaleOptimizer)
    assert int(again.optimizer.inner_optimizer.iterations.numpy()) == 3, "a stop does not begin the schedule anew"
    assert keras.config.dtype_policy().name == "float32"


def test_a_batch_is_split_over_as_many_devices_as_divide_it(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[list[str]] = []

    class Strategy:
        def __init__(self, names: list[str]) -> None:
            made.append(names)

        def scope(self) -> contextlib.AbstractContextManager[None]:
            return contextlib.nullcontext()

    monkeypatch.setattr(devices.tf.distribute, "MirroredStrategy", Strategy)
    for found, batch in ((3, 32), (8, 32), (6, 9), (2, 7)):
        monkeypatch.setattr(devices, "_devices", lambda kind, n=found: [str(i) for i in range(n)])
        devices.over_devices(batch)
    assert [len(names) for names in made] == [2, 8, 3]


def test_jax_trains_over_two_devices_as_over_one(cells: Path, tmp_path: Path, on_jax: Command) -> None:
    config = override(PRESETS["starter"], [*SETTINGS, "classifier.batch_size=64"])
    for number, name in ((1, "one"), (2, "two")):
        run = Run.create(tmp_path / name, cells, config)
        assert on_jax(f"over {name}, shallow", run.folder) == f"devices {number}"
    one, two = (weights(tmp_path / name / "classifier.keras") for name in ("one", "two"))
    assert np.abs(one - two).mean() < 1e-6
