"""A shipped bundle's networks, taken over into a run: shipped anew they give the same latents, and training goes on
from them."""

from __future__ import annotations

import csv
import json
import math
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.progress import Progress
from typer.testing import CliRunner

from exporters.__main__ import app as exporters_app
from exporters.card import _adopted
from labref.bundles.bundle import Bundle, install, starter_bundle
from labref.bundles.inference import Embedder
from labref.cells.image import PREPARATION, prepare
from labref.errors import BundleError
from tests.trainings import command
from training.augmentation.composites import beside
from training.config import PRESETS, RunConfig, override
from training.networks.shipped import read_bundle
from training.run import Run, RunError
from training.settings import SettingsError

CONFIG = override(
    PRESETS["starter"],
    [
        "name=small", "classifier.width=0.125", "classifier.input_size=32", "classifier.middle_repeats=0",
        "classifier.batch_size=8", "validation=0.3", "orientations=2", "vae.layers=1", "vae.width=16", "vae.latent_size=6",
        'aliases={"platelet":"neutrophil"}',
    ],
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _networks() -> None:
    """What loads TensorFlow: only the worker that runs this file does, not each that collects it."""
    global keras, ExportError, export_bundle, with_figures, adopting, training_classifier, adopt
    global build_classifier, build_vae_parts, orbit_matrix, Graph, build_encoder, fill_classifier, settle_normalisation
    global overlook, overlooking, solve, distil, Lesson, distilling, draw_weights, load_part, Circle
    import keras

    from exporters.bundles import ExportError, export_bundle, with_figures
    from training.networks import adopt as adopting
    from training.networks import classifier as training_classifier
    from training.networks import distil as distilling
    from training.networks import overlook as overlooking
    from training.networks.adopt import adopt
    from training.networks.architecture import Circle, build_classifier, build_vae_parts, draw_weights, orbit_matrix
    from training.networks.distil import Lesson, distil
    from training.networks.graphs import Graph, build_encoder, fill_classifier, settle_normalisation
    from training.networks.overlook import overlook, solve
    from training.run import load_part


def with_drawn_weights(model: keras.Model, seed: int) -> keras.Model:
    """As a trained one: nothing is 0 or 1, normalisations have statistics of their own."""
    generator = np.random.default_rng(seed)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.set_weights([generator.uniform(0.6, 1.4, w.shape) for w in layer.get_weights()])
        elif layer.weights:
            layer.set_weights([w + generator.normal(0, 0.05, w.shape) for w in layer.get_weights()])
    return model


@pytest.fixture(scope="module")
def shipped(drawn_cells: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a small bundle, of a run whose networks have drawn weights."""
    folder = tmp_path_factory.mktemp("shipped")
    run = Run.create(folder / "run", drawn_cells, CONFIG)
    keras.utils.set_random_seed(3)
    classifier = with_drawn_weights(build_classifier(CONFIG.classifier, len(run.split.labels)), 3)
    shape = classifier.get_layer("break").output.shape[1:]
    size = orbit_matrix(shape[0]).shape[1] * shape[2]
    generator = np.random.default_rng(4)
    mean, deviation = generator.normal(size=size).astype("f4"), generator.uniform(0.5, 2, size).astype("f4")
    encoder, _, _ = build_vae_parts(shape, CONFIG.vae, len(run.split.labels), mean, deviation)
    classifier.save(run.folder / "classifier.keras")
    with_drawn_weights(encoder, 5).save(run.folder / "encoder.keras")
    with Progress(disable=True) as progress:
        export_bundle(run, folder / "small.labref", progress, precisions=(), mantissa_bits=13)
    assert not (run.folder / "features").exists(), "an export needs no views, nor Keras for all cells"
    return folder / "small.labref"


def rewritten(source: Path, out: Path, **changes: bytes) -> Path:
    """The bundle `source` with other bytes in some files, by name without its ending."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            new.writestr(name, changes.get(name.split(".")[0], old.read(name)))
    return out


def of_an_older_preparation(source: Path, out: Path, **more: object) -> Path:
    values = json.loads(zipfile.ZipFile(source).read("manifest.json"))
    values["preparation"] = {**PREPARATION, "version": PREPARATION["version"] - 1}
    return rewritten(source, out, manifest=json.dumps(values | more).encode())


def test_a_bundle_of_an_older_preparation_ships_anew_with_the_same_latents(
    shipped: Path, drawn_cells: Path, tmp_path: Path
) -> None:
    old = of_an_older_preparation(shipped, tmp_path / "old.labref")
    with pytest.raises(BundleError, match="was trained on crops prepared as"):
        install(old, tmp_path / "bundles")
    done = command("training", "adopt", old, drawn_cells, "--run", tmp_path / "runs" / "again")
    assert "split as the bundle's" in done.stdout and "python -m exporters bundle" in done.stderr.replace("\n", " ")

    run = Run.open(tmp_path / "runs" / "again")
    assert run.config == replace(CONFIG, name="again"), "the bundle's own settings, aliases and share held out"
    assert run.adopted is not None and run.adopted["bundle"] == read_bundle(old).digest
    with Progress(disable=True) as progress:
        export_bundle(run, tmp_path / "new.labref", progress, precisions=(), mantissa_bits=13)
    bundle = install(tmp_path / "new.labref", tmp_path / "bundles")
    assert bundle.manifest.training["adopted"]["preparation"]["version"] == PREPARATION["version"] - 1
    assert read_bundle(old).digest[:12] in (bundle.folder / "MODEL_CARD.md").read_text(encoding="utf-8")

    crops = np.stack([prepare(path.read_bytes()).crop for path in sorted(drawn_cells.rglob("*.jpg"))])
    with Embedder.open(install(shipped, tmp_path / "bundles"), device="cpu") as first:
        before = first.embed(crops)
    with Embedder.open(bundle, device="cpu") as second:
        after = second.embed(crops)
    np.testing.assert_allclose(after.latents, before.latents, atol=1e-4)
    np.testing.assert_allclose(after.probabilities, before.probabilities, atol=1e-5)
    with pytest.raises(RunError, match="was not trained: it holds the networks of bundle"):
        Run.repeat(run.folder, tmp_path / "runs" / "repeated")


def test_training_begins_with_the_networks_taken_over(shipped: Path, drawn_cells: Path, tmp_path: Path) -> None:
    with Progress(disable=True) as progress:
        done = adopt(shipped, drawn_cells, tmp_path / "adopted", ["name=mine"], progress)
    assert done.same_split and done.run.config == replace(CONFIG, name="mine")
    assert max(done.probabilities, done.latents) < 1e-5
    file = tmp_path / "adopted" / "classifier.keras"
    config = override(CONFIG, [f"classifier.initial={file}"])
    model = training_classifier._new_model(Run.create(tmp_path / "next", drawn_cells, config), (), 4)
    crops = np.random.default_rng(1).uniform(0, 255, (4, 32, 32, 3)).astype("f4")
    taken = keras.models.load_model(file, compile=False)
    np.testing.assert_array_equal(np.asarray(model(crops, training=False)), np.asarray(taken(crops, training=False)))
    with pytest.raises(RunError, match="holds a run already"), Progress(disable=True) as progress:
        adopt(shipped, drawn_cells, tmp_path / "adopted", [], progress)


def test_normalised_by_a_batch_the_network_gives_what_it_gave() -> None:
    config = CONFIG.classifier
    plain = with_drawn_weights(build_classifier(config, 5), 1)
    settled = keras.models.clone_model(plain)
    settled.set_weights(plain.get_weights())
    crops = np.random.default_rng(2).uniform(0, 255, (16, 32, 32, 3)).astype("f4")
    settle_normalisation(settled, crops, batch_size=5)
    before = np.asarray(plain(crops, training=False))
    np.testing.assert_allclose(np.asarray(settled(crops, training=False)), before, atol=1e-5)
    assert np.abs(np.asarray(plain(crops, training=True)) - before).max() > 0.05, "without, a batch changes everything"
    np.testing.assert_allclose(np.asarray(settled(crops, training=True)), before, atol=1e-3)
    for layer in settled.layers:
        if isinstance(layer, keras.layers.Conv2D):
            kernel = layer.get_weights()[0]
            size = np.sqrt((kernel**2).mean(axis=(0, 1, 2)))
            np.testing.assert_allclose(
                size, np.sqrt(2 / (np.prod(kernel.shape[:2]) * sum(kernel.shape[2:]))), rtol=1e-3
            )


def test_the_starter_is_read_back() -> None:
    found = read_bundle(starter_bundle())
    config = RunConfig.from_json(dict(found.manifest.training["config"]))
    classifier = build_classifier(config.classifier, len(found.manifest.labels))
    fill_classifier(classifier, Graph(found.files["trunk.onnx"], "trunk.onnx"))
    encoder = build_encoder(Graph(found.files["encoder.onnx"], "encoder.onnx"), config.vae, found.manifest.features)
    assert max(adopting._differences(classifier, encoder, config, found)) < adopting.LIMIT


@pytest.mark.parametrize("name", ["trunk", "encoder", "golden", "MODEL_CARD"])
def test_a_damaged_bundle_is_refused(shipped: Path, tmp_path: Path, name: str) -> None:
    whole = read_bundle(shipped)
    (full_name,) = [file for file in whole.files if file.startswith(name)]
    changed = bytearray(whole.files[full_name])
    changed[len(changed) // 2] ^= 1
    damaged = rewritten(shipped, tmp_path / "damaged.labref", **{name: bytes(changed)})
    with pytest.raises(BundleError, match=rf"damaged: {full_name} is missing or does not have its digest"):
        read_bundle(damaged)


def test_what_is_no_bundle_is_refused(shipped: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.labref").write_bytes(shipped.read_bytes()[:2000])
    for source, message in (
        (tmp_path / "none.labref", "no bundle at"),
        (tmp_path / "cut.labref", "is no labref bundle, or is damaged"),
        (rewritten(shipped, tmp_path / "a.labref", manifest=b"{}"), "has no usable manifest"),
        (of_an_older_preparation(shipped, tmp_path / "b.labref", format_version=99), "newer format"),
    ):
        with pytest.raises(BundleError, match=message):
            read_bundle(source)
    folder = Bundle.open(install(shipped, tmp_path / "bundles").folder).folder
    assert read_bundle(folder).digest == read_bundle(shipped).digest
    (folder / "encoder.onnx").unlink()
    with pytest.raises(BundleError, match="encoder.onnx is missing"):
        read_bundle(folder)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("classifier.width=0.25", "the settings are not those of the bundle's network"),
        ("classifier.middle_repeats=2", "a sum of|expected"),
        ("classifier.normalisation=group", "group normalisation"),
        ("vae.layers=0", "features are not those of the bundle's settings|expected"),
        ("orientations=1", "do not give what its graphs give"),
        ('aliases={}', "has the classes"),
    ],
)  # fmt: skip
def test_settings_of_another_network_are_refused(
    shipped: Path, drawn_cells: Path, tmp_path: Path, setting: str, message: str
) -> None:
    with pytest.raises(RunError, match=message), Progress(disable=True) as progress:
        adopt(shipped, drawn_cells, tmp_path / "run", [setting], progress)
    assert not (tmp_path / "run").exists(), "nothing is written before the check"


def test_an_encoder_is_taught_to_overlook_neighbours(shipped: Path, drawn_cells: Path, tmp_path: Path) -> None:
    with Progress(disable=True) as progress:
        run = adopt(shipped, drawn_cells, tmp_path / "run", [], progress).run
        done = overlook(run, tmp_path / "taught", progress, cells=40)
        again = overlook(run, tmp_path / "again", progress, cells=40)
        with pytest.raises(RunError, match="holds a run already"):
            overlook(run, tmp_path / "taught", progress)
    assert done.cells >= 18 and done.alone >= 0 and done.before > 0
    assert (done.before, done.after, done.alone) == (again.before, again.after, again.alone)
    told = json.loads((tmp_path / "taught" / "run.json").read_text())["adopted"]
    assert told["overlooks_neighbours"]["cells"] == done.cells and told["bundle"]
    assert (tmp_path / "taught" / "classifier.keras").read_bytes() == (run.folder / "classifier.keras").read_bytes()
    old, new = (keras.models.load_model(f / "encoder.keras", compile=False) for f in (run.folder, done.run.folder))
    changed = [a.name for a, b in zip(old.layers, new.layers, strict=True) if not same_weights(a, b)]
    assert changed == ["latent_mean"]


@pytest.fixture(scope="module")
def teacher(drawn_cells: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that looks at a crop in eight orientations, with an encoder that knows how its features vary."""
    config = override(CONFIG, ["orientations=8", "vae.layers=0"])
    run = Run.create(tmp_path_factory.mktemp("teacher") / "run", drawn_cells, config)
    classifier = build_classifier(config.classifier, len(run.split.labels))
    draw_weights(classifier, 1)
    crops, rows, _ = load_part(run, "train")
    circled = np.asarray(Circle()(crops[rows].astype("f4")))
    for _ in range(40):  # its normalisations get the statistics of these crops
        classifier(circled, training=True)
    _, features = distilling._looking(classifier, CONFIG)(crops[rows].astype("f4"), training=False)
    mean, deviation = np.asarray(features).mean(axis=0), np.asarray(features).std(axis=0) + 1e-2
    shape = classifier.get_layer("break").output.shape[1:]
    encoder, _, _ = build_vae_parts(shape, config.vae, len(run.split.labels), mean, deviation)
    draw_weights(encoder.get_layer("latent_mean"), 2)
    classifier.save(run.folder / "classifier.keras")
    encoder.save(run.folder / "encoder.keras")
    return run


def test_a_student_that_looks_once_learns_what_its_teacher_finds(
    teacher: Run, drawn_cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after its first step and gone on with, it ends where one ends that was never stopped."""
    run = teacher
    words = ["--epochs", 6, "--batch-size", 16, "--angles", 2, "--learning-rate", 0.0003]
    command("training", "distil", run.folder, "--run", tmp_path / "whole", *words)

    saving, saved = distilling.save_checkpoint, []

    def stop(model: object, folder: Path, epoch: int, step: int) -> None:
        saving(model, folder, epoch, step)
        saved.append((epoch, step))
        if len(saved) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(distilling, "save_checkpoint", stop)
    monkeypatch.setattr(distilling, "_CHECKPOINT_SECONDS", -1.0)  # at each step
    with Progress(disable=True) as progress:
        lesson = Lesson(epochs=6, batch_size=16, angles=2, learning_rate=0.0003)
        with pytest.raises(KeyboardInterrupt):
            distil(run, tmp_path / "parts", progress, lesson)
        for words in (["resume", tmp_path / "parts"], ["train", drawn_cells, "--run", tmp_path / "parts"]):
            assert "not taught to its end" in " ".join(command("training", *words, code=1).output.split())
        with pytest.raises(RunError, match="was begun by another teacher or with other settings"):
            distil(run, tmp_path / "parts", progress, replace(lesson, epochs=7))
        done = distil(run, tmp_path / "parts", progress, lesson)
    assert (saved[0], saved[-1]) == ((0, 1), (6, 0))
    with pytest.raises(RunError, match="was taught by another run"):
        Run.repeat(done.run.folder, tmp_path / "repeated")
    with (tmp_path / "parts" / "distil_history.csv").open(newline="") as file:
        losses = [float(line["loss"]) for line in csv.DictReader(file) if line["loss"]]
    assert losses[-1] < 0.8 * max(losses), "it learns, of cells that are too few to tell of others"
    assert done.run.config.orientations == 1
    assert done.run.config.classifier.circle and done.run.config.classifier.upright
    whole = Run.open(tmp_path / "whole")
    assert whole.adopted is not None and whole.adopted["distilled"]["error"] == pytest.approx(done.after, rel=0.02)
    assert whole.adopted["distilled"]["teacher_orientations"] == 8

    with Progress(disable=True) as progress:
        export_bundle(done.run, tmp_path / "student.labref", progress, precisions=())
    bundle = install(tmp_path / "student.labref", tmp_path / "bundles")
    assert "learned from a trunk" in (bundle.folder / "MODEL_CARD.md").read_text(encoding="utf-8")
    crop = np.stack([prepare(path.read_bytes()).crop for path in sorted(drawn_cells.rglob("*.jpg"))[:4]])
    corner = crop.copy()
    corner[:, :30, :30] = 0
    turned = np.rot90(crop, 1, (1, 2))
    with Embedder.open(bundle, device="cpu") as embedder:
        found = embedder.embed(np.concatenate([crop, corner, turned, turned[:, :, ::-1]])).latents.reshape(
            4, len(crop), -1
        )
    for number, what in enumerate(("what a corner holds", "a quarter turn", "a mirror"), 1):
        np.testing.assert_allclose(found[number], found[0], atol=1e-3, err_msg=f"{what} changes nothing")
    adopted = adopt(tmp_path / "student.labref", drawn_cells, tmp_path / "student", [], Progress(disable=True)).run
    assert adopted.config.classifier.circle and adopted.config.classifier.upright


def test_only_what_can_be_averaged_is_taught(teacher: Run, tmp_path: Path) -> None:
    flat = replace(teacher, config=replace(teacher.config, vae=replace(teacher.config.vae, pooling="flatten")))
    untrained = replace(teacher, folder=tmp_path / "untrained")
    smaller = tmp_path / "smaller"
    shutil.copytree(teacher.folder, smaller)
    classifier = override(CONFIG, ["classifier.width=0.25"]).classifier
    build_classifier(classifier, len(teacher.split.labels)).save(smaller / "classifier.keras")
    with Progress(disable=True) as progress:
        for run, folder, lesson, message in (
            (flat, tmp_path / "no", Lesson(), "vae.pooling is flatten"),
            (teacher, teacher.folder, Lesson(), "holds a run already"),
            (untrained, tmp_path / "no", Lesson(), "has no classifier.keras"),
            (teacher, tmp_path / "begun", Lesson(begin=str(smaller)), "the network to start from has other layers"),
            (teacher, tmp_path / "begun too", Lesson(begin=str(tmp_path)), "holds no run"),
        ):
            with pytest.raises(RunError, match=message):
                distil(run, folder, progress, lesson)
        with pytest.raises(SettingsError, match="orientations=3: must be 1, 2, 4 or 8"):
            distil(teacher, tmp_path / "no", progress, Lesson(orientations=3))
    assert not (tmp_path / "no").exists()
    assert not list(tmp_path.glob("begun*/told-*")), "the teacher looks once all fits"


def test_a_student_without_cells_to_check_it_is_taught_and_ships(
    teacher: Run, drawn_cells: Path, tmp_path: Path
) -> None:
    config = override(teacher.config, ["validation=0.0"])
    run = Run.create(tmp_path / "run", drawn_cells, config)
    for name in ("classifier.keras", "encoder.keras"):
        shutil.copy(teacher.folder / name, run.folder / name)
    with Progress(disable=True) as progress:
        done = distil(run, tmp_path / "student", progress, Lesson(epochs=1, batch_size=16, angles=1, changed=0.0))
    assert math.isnan(done.after)
    assert json.loads((tmp_path / "student" / "run.json").read_text())["adopted"]["distilled"]["error"] is None


def test_cells_that_share_attributes_are_drawn_together(shipped: Path, drawn_cells: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(drawn_cells, tmp_path / "data"))
    with Progress(disable=True) as progress:
        run = adopt(shipped, data, tmp_path / "run", [], progress).run
        names = [item.path for item in run.split.train]
        lines = [f"{name},{'round' if number % 2 else 'oval'},big" for number, name in enumerate(names)]
        (data / "attributes.csv").write_text("\n".join(["path,shape,size", *lines]) + "\n")
        with_attributes = replace(run, config=replace(run.config, attributes="attributes.csv"))
        plain = overlook(run, tmp_path / "plain", progress, cells=40, ridge=0.001)
        drawn = overlook(with_attributes, tmp_path / "drawn", progress, cells=40, ridge=0.001)
    told = [json.loads((done.run.folder / "run.json").read_text())["adopted"] for done in (plain, drawn)]
    assert [values["overlooks_neighbours"]["drawn"] for values in told] == [0.0, 0.5]
    assert drawn.alone > plain.alone, (
        "cells move towards those like them, here where one layer can do all that it is asked"
    )
    assert "Cells of one class were drawn together" in " ".join(_adopted({"adopted": told[1]}))
    assert "drawn together" not in " ".join(_adopted({"adopted": told[0]}))


def test_a_student_is_told_that_cells_with_the_same_attributes_are_alike(
    teacher: Run, drawn_cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = Path(shutil.copytree(drawn_cells, tmp_path / "data"))
    items = teacher.split.train
    names = sorted({Path(item.path).name for item in items})  # attributes go by the name alone
    shapes = ["round" if names.index(Path(item.path).name) % 2 else "oval" for item in items]
    lines = [f"{item.path},{shape}" for item, shape in zip(items, shapes, strict=True)]
    (data / "attributes.csv").write_text("\n".join(["path,shape", *lines]) + "\n")
    run = replace(teacher, data=data, config=replace(teacher.config, attributes="attributes.csv"))
    latents = np.random.default_rng(1).normal(size=(len(items), 3)).astype(np.float32)
    monkeypatch.setattr(overlooking, "_COMPARED", 3)  # fewer than there are of a class
    found = overlooking.drawn_together(run, np.arange(len(items)), latents, 0.25)
    for number in range(len(items)):
        like = [k for k in range(len(items)) if k != number and items[k].label == items[number].label]
        weights = [1.0 if shapes[k] == shapes[number] else math.exp(-1 / 0.7) for k in like]
        mean = np.average(latents[like], axis=0, weights=weights)
        np.testing.assert_allclose(found[number], latents[number] + 0.25 * (mean - latents[number]), atol=1e-5)
    lesson = Lesson(epochs=1, batch_size=16, angles=1, changed=0.0, drawn=0.25)
    with Progress(disable=True) as progress:
        done = distil(run, tmp_path / "student", progress, lesson)
        with pytest.raises(RunError, match="has no attributes"):
            distil(teacher, tmp_path / "no", progress, lesson)
    told = {"config": done.run.config.to_json(), "adopted": done.run.adopted}
    assert "Cells of one class were drawn together" in " ".join(_adopted(told))


def same_weights(one: keras.Layer, two: keras.Layer) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one.get_weights(), two.get_weights(), strict=True))


def test_the_layer_solved_for_takes_neighbours_out_and_leaves_lone_cells() -> None:
    rng = np.random.default_rng(1)
    alone = rng.normal(size=(400, 20)).astype("f4")
    crowded = alone.copy()
    crowded[:, 15:] += rng.normal(3, 2, (400, 5)).astype("f4")  # neighbours show in five of the inputs
    alone[:, 15:] *= 0.1
    kernel, bias = rng.normal(size=(20, 4)).astype("f4"), rng.normal(size=4).astype("f4")
    solved = solve(kernel, bias, alone, crowded, ridge=1.0)
    wanted = alone @ kernel + bias

    def error(values: np.ndarray, weights: tuple[np.ndarray, np.ndarray]) -> float:
        return float(((values @ weights[0] + weights[1] - wanted) ** 2).mean())

    assert error(crowded, solved) < 0.05 * error(crowded, (kernel, bias))
    assert error(alone, solved) < 0.05 * float(wanted.var())
    np.testing.assert_allclose(solve(kernel, bias, alone, alone, ridge=1.0)[0], kernel, atol=1e-4)


@pytest.mark.parametrize(("down", "right"), [(0, 120), (-100, 0), (60.4, -80.2), (500, 500)])
def test_a_cell_laid_beside_another_leaves_the_darker_pixel(down: float, right: float) -> None:
    rng = np.random.default_rng(2)
    picture, other = (rng.integers(0, 256, (side, 360, 3), dtype=np.uint8) for side in (363, 366))
    both = beside(picture, other, down, right)
    assert both.shape == picture.shape and (both <= picture).all()
    if abs(down) < 300:
        row, column = 181 + round(down), 180 + round(right)
        near = other[183 - 2 : 183 + 3, 180 - 2 : 180 + 3].min()
        assert both[row - 2 : row + 3, column - 2 : column + 3].min() <= max(near, 40)
    else:
        assert np.array_equal(both, picture)


def test_figures_are_put_into_a_bundle_without_exporting_it_again(shipped: Path, tmp_path: Path) -> None:
    before = read_bundle(shipped)
    figures = tmp_path / "figures.json"
    measured = {
        "model_version": before.manifest.version,
        "command": "python -m training evaluate",
        "n_queries": 9,
        "n_references": 90,
        "precision_at_8": {"micro": 0.5, "macro": 0.5, "per_class": {"ig": 0.5}},
        "classifier_accuracy": 0.5,
        "knn_accuracy": 0.5,
    }
    figures.write_text(json.dumps(measured))
    made = with_figures(shipped, figures, tmp_path / "told.labref")
    after = read_bundle(tmp_path / "told.labref")
    assert after.manifest.figures["knn_accuracy"] == 0.5 and after.digest == made.digest != before.digest
    kept = set(after.files) - {"MODEL_CARD.md"}
    assert {name: after.files[name] for name in kept} == {name: before.files[name] for name in kept}
    figures.write_text(json.dumps({"model_version": "another"}))
    with pytest.raises(ExportError, match="was measured on model another"):
        with_figures(shipped, figures, tmp_path / "no.labref")
    figures.write_text("[1, 2]")
    with pytest.raises(ExportError, match="holds no JSON object"):
        with_figures(shipped, figures, tmp_path / "no.labref")
    done = CliRunner().invoke(
        exporters_app, ["figures", str(shipped), "--figures", str(figures), "--out", str(tmp_path / "no.labref")]
    )
    assert done.exit_code == 1 and "holds no JSON object" in " ".join(done.output.split())
    assert not (tmp_path / "no.labref").exists()


def test_what_was_taught_stands_on_the_card_whether_the_run_was_adopted_or_not() -> None:
    taught = {"overlooks_neighbours": {"cells": 40, "ridge": 30.0}}
    came = {"bundle": "ab" * 32, "preparation": {"version": 2}}
    assert _adopted({}) == [] == _adopted({"adopted": None})
    assert ["40 cells" in line for line in _adopted({"adopted": taught})] == [True]
    assert ["abababababab" in line for line in _adopted({"adopted": came})] == [True]
    assert len(_adopted({"adopted": came | taught})) == 2
    student = {"teacher_orientations": 8, "angles": 2, "epochs": 3, "changed": 0.4}
    order = []
    for solved in ({}, {"of_student": True}):  # in the order in which it was done
        steps = {"distilled": student, "overlooks_neighbours": taught["overlooks_neighbours"] | solved}
        lines = _adopted({"config": {"classifier": {}}, "adopted": steps})
        order.append(["solved for again" in line for line in lines])
    assert order == [[True, False], [False, True]]


def test_a_run_that_was_taught_and_not_adopted_says_how_to_repeat_it(drawn_cells: Path, tmp_path: Path) -> None:
    Run.create(tmp_path / "taught", drawn_cells, CONFIG, adopted={"overlooks_neighbours": {"cells": 40, "ridge": 30.0}})
    with pytest.raises(RunError, match="repeat the run that it was made of"):
        Run.repeat(tmp_path / "taught", tmp_path / "again")
