"""Several optics, expert attributes and heads: one run over two folders of real cells, by the command."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import Result

from tests.trainings import command, eager, shallow  # noqa: F401
from training.config import Augmentation, ClassifierConfig, RunConfig, override
from training.data.images import list_images
from training.measure.unseen import adapt
from training.run import Run, RunError, domain_codes, load_attribute_codes

pytestmark = pytest.mark.filterwarnings("ignore:Even though the `tf.config.experimental_run_functions_eagerly`")
ALIASES = {"segmented_neutrophil": "neutrophil"}
OPTICS = Augmentation(
    contrast_low=0.3, contrast_high=1.2, stain=0.4, mixing=0.2, tint=0.2, focus=0.8, noise=5.0, cut=0.3
)


@pytest.fixture(scope="module", autouse=True)
def _networks() -> None:
    """What loads TensorFlow: only the worker that runs this file does, not each that collects it."""
    global keras, tf, augment, AttributeLoss, ReverseGradient, build_classifier, start_from, neighbour_loss
    import keras
    import tensorflow as tf

    from training.augmentation.augment import augment
    from training.networks.architecture import AttributeLoss, ReverseGradient, build_classifier, start_from
    from training.networks.vae import neighbour_loss


@pytest.fixture(scope="module")
def two_optics(real_cells: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight cells of each of two classes from each of two optics, and the attributes of some."""
    folder = tmp_path_factory.mktemp("optics")
    for domain, names in {"pbc": ("neutrophil", "lymphocyte"), "bonemarrow": (*ALIASES, "lymphocyte")}.items():
        for name in names:
            (folder / domain / name).mkdir(parents=True)
            for image in sorted((real_cells / domain / name).glob("*.jpg"))[:8]:
                shutil.copy(image, folder / domain / name)
    with (real_cells / "pbc" / "attributes.csv").open(newline="") as source:
        rows = [row for row in csv.reader(source) if row[0] == "path" or (folder / "pbc" / row[0]).exists()]
    with (folder / "attributes.csv").open("w", newline="") as out:
        csv.writer(out).writerows(rows)
    assert len(rows) > 4
    return folder


def settings(*more: str) -> list[str]:
    chosen = [
        "classifier.width=0.125", "classifier.input_size=32", "classifier.epochs=1", "classifier.batch_size=8",
        "classifier.middle_repeats=0", "validation=0.2", "holdout=0.2", "orientations=1", "vae.epochs=1", "vae.width=16",
        "vae.batch_size=8", "vae.views=1", "vae.attribute_weight=5", 'domains=["pbc","bonemarrow"]',
        f"aliases={json.dumps(ALIASES)}", "attributes=attributes.csv", "classifier.attribute_weight=1",
        "classifier.domain_weight=0.1", *more,
    ]  # fmt: skip
    return [word for setting in chosen for word in ("--set", setting)]


def leave_one_out(run: Run) -> None:
    """Trained on the one, asked about the other: every row has both stores, and is not trained again."""
    words = ("training", "unseen", run.folder, "--variant", "run", "--leave", "bonemarrow")
    (row,) = json.loads(command(*words, "--json").stdout)["rows"]
    assert (row["left"], row["trained_on"], row["queries"]) == ("bonemarrow", ["pbc"], 16)
    assert row["classes"] == {"lymphocyte": 8, "neutrophil": 8}
    assert row["own_store"]["macro"] is None, "eight cells of a class cannot have eight others"
    own, central = row["own_store"]["micro"], row["central_store"]["micro"]
    assert own["low"] <= own["value"] <= own["high"] and own["value"] <= 7 / 8
    assert row["won"]["value"] == pytest.approx(own["value"] - central["value"])
    trained = Run.open(run.folder / "unseen" / "run-bonemarrow")
    assert {item.path.split("/")[0] for item in trained.split.train} == {"pbc"} and row["split"] == trained.split.digest
    again = command(*words)
    assert "bonemarrow, run: own store" in again.stdout and "epoch" not in again.stdout + again.stderr
    nothing = command(*words, "--variant", "adapted")
    assert "no batch normalisation to adapt" in nothing.stderr + nothing.stdout
    assert "no variant 'none'" in command(*words, "--variant", "none", code=1).stderr


def test_a_run_over_two_optics_with_attributes(
    two_optics: Path,
    tmp_path: Path,
    eager: None,  # noqa: F811
    shallow: None,  # noqa: F811
) -> None:
    def train(name: str, *more: str, code: int = 0) -> Result:
        return command("training", "train", two_optics, "--run", tmp_path / name, *settings(*more), code=code)

    changes = ("classifier.augmentation.contrast_low=0.3", "classifier.augmentation.neighbour=0.5")
    train("one", *changes, "classifier.normalisation=group", "vae.views=2", "vae.optics_views=1")
    run = Run.open(tmp_path / "one")
    assert run.split.labels == ("lymphocyte", "neutrophil")
    assert {item.path.split("/")[0] for item in run.split.train} == {"pbc", "bonemarrow"}
    classifier = keras.models.load_model(tmp_path / "one" / "classifier.keras", compile=False)
    assert len(classifier.outputs) == 1, "what is shipped has the class head alone"
    leave_one_out(run)
    assert not any(isinstance(layer, keras.layers.BatchNormalization) for layer in classifier.layers)

    first = tmp_path / "one" / "classifier.keras"
    train("two", "classifier.normalisation=group", f"classifier.initial={first}")
    assert "has other layers" in train("three", f"classifier.initial={first}", code=1).stderr


def test_attributes_and_domains_follow_the_split(two_optics: Path, tmp_path: Path) -> None:
    config = override(RunConfig(), settings()[1::2])
    run = Run.create(tmp_path / "run", two_optics, config)
    train, held = load_attribute_codes(run, "train"), load_attribute_codes(run, "holdout")
    assert len(train.sizes) == 11
    assert train.codes.shape == (len(run.split.train), 11)
    assert held.codes.shape == (len(run.split.holdout), 11)
    from_pbc = domain_codes(run, "train") == 0
    assert 0 < from_pbc.sum() < len(from_pbc)
    assert (train.codes[~from_pbc] == -1).all(), "nobody described these cells"
    assert (train.codes < np.array(train.sizes)).all()
    (two_optics / "none.csv").write_text("path,shape\nx/y.jpg,round\n")
    with pytest.raises(RunError, match="has no line for any training image"):
        load_attribute_codes(Run(run.folder, override(config, ["attributes=none.csv"]), run.data, run.split), "train")


def test_adapting_takes_the_statistics_of_the_cells_given() -> None:
    classifier = build_classifier(ClassifierConfig(width=0.125, input_size=64, middle_repeats=0), 3)
    crops = np.random.default_rng(1).uniform(0, 255, (24, 64, 64, 3)).astype(np.float32)
    weights = [np.array(weight) for weight in classifier.trainable_variables]
    adapt(classifier, crops)
    as_trained, as_asked = (np.asarray(classifier(crops, training=training)) for training in (True, False))
    np.testing.assert_allclose(as_asked, as_trained, atol=1e-4)
    for before, after in zip(weights, classifier.trainable_variables, strict=True):
        np.testing.assert_array_equal(before, np.array(after))
    with pytest.raises(RunError, match="no batch normalisation"):
        adapt(
            build_classifier(ClassifierConfig(width=0.125, input_size=64, middle_repeats=0, normalisation="group"), 3),
            crops,
        )


def test_a_domain_without_images_is_named(two_optics: Path) -> None:
    with pytest.raises(ValueError, match=r"chula: no images"):
        list_images(two_optics, ["pbc", "chula"])


def test_other_optics_change_a_crop_and_share_tells_how_many() -> None:
    rng = np.random.default_rng(1)
    smooth = np.cumsum(np.cumsum(rng.normal(0, 1, (4, 32, 32, 3)), 1), 2)
    crops = tf.constant(np.clip(160 + smooth, 0, 240).astype(np.uint8))
    still = {
        "rotation_degrees": 0.0,
        "flip": False,
        "shift": 0.0,
        "zoom": 0.0,
        "gain": 0.0,
        "brightness": 0.0,
        "blur": 0.0,
    }
    seed = tf.constant([3, 4], tf.int32)

    def changed(**values: float) -> np.ndarray:
        out = augment(crops, Augmentation(**{**vars(OPTICS), **still, **values}), seed).numpy()
        assert out.shape == crops.shape
        assert out.min() >= 0
        assert out.max() <= 255
        return np.abs(out - crops.numpy()).mean(axis=(1, 2, 3))

    assert (changed() > 1).all()
    assert (changed(optics_share=0.0) < 1e-3).all()
    some = changed(optics_share=0.5)
    assert 0 < (some > 1).sum() < 4 or np.array_equal(some, changed(optics_share=0.5))
    plain = Augmentation(**still)
    assert not plain.changes_optics
    assert Augmentation(contrast_low=0.5).changes_optics
    # with no noise, only a factor on every density: densities stay in proportion
    only = Augmentation(**still, contrast_low=0.5, contrast_high=0.5)
    before = -np.log((crops.numpy().astype(float) + 1) / 241)
    after = -np.log((augment(crops, only, seed).numpy() + 1) / 241)
    np.testing.assert_allclose(after, 0.5 * before, atol=1e-3)


def test_the_loss_of_attributes_by_hand() -> None:
    logits = np.log(np.array([[0.25, 0.75, 0.5, 0.3, 0.2], [0.5, 0.5, 0.1, 0.1, 0.8]], np.float32))
    codes = np.array([[1, 0], [-1, 2]])
    found = AttributeLoss((2, 3), reduction=None)(codes, logits).numpy()
    np.testing.assert_allclose(found, [-(np.log(0.75) + np.log(0.5)) / 2, -np.log(0.8)], rtol=1e-5)
    assert AttributeLoss((2,), reduction=None)(np.array([[-1]]), logits[:1, :2]).numpy() == 0


def test_a_reversed_gradient() -> None:
    x = tf.Variable([1.0, 2.0])
    with tf.GradientTape() as tape:
        y = ReverseGradient()(x)
        loss = tf.reduce_sum(3.0 * y)
    assert y.numpy().tolist() == [1.0, 2.0]
    assert tape.gradient(loss, x).numpy().tolist() == [-3.0, -3.0]


def test_starting_from_trained_weights_leaves_only_the_last_layer_new() -> None:
    config = ClassifierConfig(width=0.125, input_size=64, middle_repeats=0)
    source, target = build_classifier(config, 3), build_classifier(config, 5)
    layers = sum(bool(layer.weights) for layer in target.layers)
    assert start_from(target, source) == layers - 1
    for mine, theirs in zip(target.get_weights()[:-2], source.get_weights()[:-2], strict=True):
        np.testing.assert_array_equal(mine, theirs)
    narrow = build_classifier(ClassifierConfig(width=0.25, input_size=64, middle_repeats=0), 3)
    with pytest.raises(ValueError, match="other layers"):
        start_from(target, narrow)


def test_neighbours_that_agree_cost_less() -> None:
    latents = tf.constant([[0.0, 0.0], [0.1, 0.0], [9.0, 0.0], [9.1, 0.0]])
    labels = tf.constant([0, 0, 1, 1])
    same = tf.constant([[0, 1], [0, 1], [2, 0], [2, 0]])
    half = tf.constant([[0, 1], [0, 0], [2, 0], [2, 1]])
    nobody = tf.constant([[-1, -1]] * 4)
    found = [float(neighbour_loss(latents, labels, codes)) for codes in (same, nobody, half)]
    np.testing.assert_allclose(found, [0.0, -np.log(0.5), -np.log(1e-6)], atol=1e-3)
    mixed = float(neighbour_loss(latents, tf.constant([0, 1, 0, 1]), same))
    assert mixed > 10, "the nearest are of another class"
