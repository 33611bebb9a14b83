"""A folder of class folders → a trained run → a shipped bundle → its figures, by the commands a central team types."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from typer.testing import CliRunner

from labref.bundles.bundle import Bundle, install
from labref.bundles.inference import Embedder
from labref.cli import app
from labref.demo.cells import LABELS, OPTICS, draw_cell, encode_jpeg, make_slides
from labref.lab import Lab
from tests.conftest import DATA
from tests.labs import once
from tests.trainings import command, eager  # noqa: F401
from training.config import PRESETS, RunConfig, override
from training.data.images import Item, Split, batches, cache_crops, list_images, make_split, name_fraction
from training.measure.evaluate import TURNS, attribute_agreement, nearest, turn
from training.run import Run, RunError

pytestmark = pytest.mark.filterwarnings("ignore:Even though the `tf.config.experimental_run_functions_eagerly`")
ROOT = Path(__file__).parents[1]
TINY = [
    "classifier.width=0.125",
    "classifier.input_size=32",
    "classifier.epochs=2",
    "classifier.batch_size=8",
    "classifier.middle_repeats=0",
    "validation=0.2",
    "orientations=2",
    "vae.epochs=1",
    "vae.width=32",
    "vae.batch_size=16",
    "vae.views=2",
]


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders: twelve of each of three classes, and one file that is no image. Real cells where there are any,
    else drawn ones."""
    folder = tmp_path_factory.mktemp("classes")
    slides = make_slides(12, seed=7)
    for label in ("eosinophil", "lymphocyte", "neutrophil"):
        (folder / label).mkdir()
        for number, path in enumerate(sorted((DATA / "pbc" / label).glob("*.jpg"))[:12]):
            shutil.copyfile(path, folder / label / f"{label[:2].upper()}_{number:04d}.jpg")
        for number, slide in enumerate(slides if not (DATA / "pbc").is_dir() else ()):
            picture = draw_cell(
                label, OPTICS[slide.optics], slide, np.random.default_rng([number, LABELS.index(label)])
            )
            (folder / label / f"{label[:2].upper()}_{number:04d}.jpg").write_bytes(encode_jpeg(picture))
    (folder / "neutrophil" / "NE_broken.jpg").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def trained(cells: Path, tmp_path_factory: pytest.TempPathFactory, eager: None) -> Path:  # noqa: F811
    run = tmp_path_factory.mktemp("runs") / "tiny"
    sets = [word for setting in TINY for word in ("--set", setting)]
    process = subprocess.Popen(
        [sys.executable, "-m", "training", "train", str(cells), "--run", str(run), *sets],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    # stop it once the first epoch is written down, as a person with Ctrl-C would
    deadline = time.monotonic() + 300
    while not (run / "checkpoint.json").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    if process.poll() is None:
        process.send_signal(signal.SIGINT if os.name == "posix" else signal.SIGTERM)
    process.communicate()
    assert (run / "checkpoint.json").exists() and not (run / "classifier.keras").exists(), "stopped before its end"
    with (run / "history.csv").open("a") as file:
        file.write("2,9.9,0.1,9.9,0.1,9.9\n2,9")  # what a kill leaves between the line of an epoch and its checkpoint
    done = command("training", "resume", run)
    assert "held-out accuracy" in done.stderr
    assert "{'" not in done.stderr and "Namespace" not in done.stderr, "words for people, and no dictionary"
    return run


def test_a_stopped_run_goes_on_and_is_whole(trained: Path) -> None:
    with (trained / "history.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"] and "9.9" not in rows[1].values()
    for name in ("classifier.keras", "encoder.keras", "split.csv", "curves.png", "vae_curves.png", "confusion.png"):
        assert (trained / name).stat().st_size > 0
    figures = json.loads((trained / "classifier.json").read_text())
    split = Run.open(trained).split
    assert figures["n"] == sum(map(sum, figures["confusion"])) == len(split.holdout)


def test_training_says_after_a_few_steps_how_long_it_will_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from training.networks import classifier  # loads Keras

    clock, said = 0.0, list[str]()
    monkeypatch.setattr(classifier, "time", SimpleNamespace(monotonic=lambda: clock))
    progress = SimpleNamespace(update=lambda *_, **__: None, console=SimpleNamespace(print=said.append))
    counted = classifier._Checkpoint(tmp_path, 0, 0, progress, None, left=1006)  # type: ignore[arg-type]
    for step in range(20):
        clock += 40.0 if step == 0 else 2.0  # the first builds the network
        counted.on_train_batch_end(step)
    assert said == [
        "the classifier will take about 33 minutes: 1,006 steps of 2.00 s; then come its features and the VAE"
    ]


def test_resuming_a_finished_run_changes_nothing(trained: Path) -> None:
    before = {p.name: p.read_bytes() for p in trained.glob("*.keras")}
    command("training", "resume", str(trained))
    assert {p.name: p.read_bytes() for p in trained.glob("*.keras")} == before


@pytest.fixture(scope="module")
def shipping(trained: Path, cells: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the centre made a key, a bundle and its figures by the commands of the help, and signed it."""
    folder = tmp_path_factory.mktemp("shipping")
    out, held, drawn = folder / "tiny.labref", folder / "held", folder / "confusion.png"
    command("exporters", "key", "new", folder / "old.key", "--name", "Our centre")
    said = command("exporters", "bundle", str(trained), "--out", str(out)).stdout
    assert "largest difference from Keras" in said
    command("training", "split", str(cells), "--out", str(held))
    words = ["evaluate", "--bundle", out, "--references", held / "references", "--queries", held / "queries"]
    figures = command("training", *words, "--json", "--confusion", drawn).stdout
    (folder / "figures.json").write_text(figures)
    # the same figures go into the bundle's card, by the third command of the help
    more = ("--figures", folder / "figures.json", "--no-reduced")  # the reduced trunks were shipped above
    said = command("exporters", "bundle", trained, "--out", out, *more, "--key", folder / "old.key").stdout
    assert "signed by the key Our centre" in said
    return folder


def test_export_and_evaluate_as_the_help_says(trained: Path, tmp_path: Path, shipping: Path) -> None:
    held, split = shipping / "held", Run.open(trained).split
    assert {p.name for p in (held / "queries").rglob("*.jpg")} == {i.path.split("/")[-1] for i in split.holdout}
    figures = json.loads((shipping / "figures.json").read_text())
    assert figures["n_queries"] == len(split.holdout)
    assert figures["n_references"] == 36 - len(split.holdout)
    assert [entry["path"] for entry in figures["unreadable"]] == ["neutrophil/NE_broken.jpg"]
    assert 0 <= figures["precision_at_8"]["macro"] <= 1
    assert set(figures["precision_at_8"]["per_class"]) == {item.label for item in split.holdout}
    assert set(figures["rotation_overlap_at_8"]) == {*TURNS, "mean"}
    assert (shipping / "confusion.png").stat().st_size > 0
    bundle = install(shipping / "tiny.labref", tmp_path / "bundles")
    assert bundle.manifest.figures["precision_at_8"] == figures["precision_at_8"]
    assert f"{figures['precision_at_8']['macro']:.4f}" in (bundle.folder / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert bundle.manifest.training["parity"]["latents"] < 1e-3
    with Embedder.open(bundle, device="cpu") as embedder:
        assert embedder.golden_difference() < 1e-3
    assert Bundle.open(bundle.folder).digest == bundle.digest


def test_a_signed_bundle_is_installed_activated_rolled_back_and_its_key_handed_over(
    shipping: Path, cells: Path, tmp_path: Path
) -> None:
    """From the run above to a lab, by the commands alone."""
    bundle, export, lab = shipping / "tiny.labref", tmp_path / "export", tmp_path / "lab"
    shutil.copytree(cells / "neutrophil", export / "neutrophil")
    for path in sorted((export / "neutrophil").iterdir())[3:]:
        path.unlink()

    def labref(*words: object, code: int = 0) -> str:
        done = CliRunner().invoke(app, [*map(str, words), "--lab", str(lab)])
        assert done.exit_code == code, done.output
        return " ".join(done.output.split())

    assert CliRunner().invoke(app, ["init", str(lab), "--watch", str(export)]).exit_code == 0
    assert once(Lab.open(lab)).stored == 3
    assert "which this lab does not trust" in labref("bundle", "install", bundle, code=1)
    labref("key", "trust", shipping / "old.key.pub")
    assert "signed by Our centre" in labref("bundle", "install", bundle)
    assert "is active" in labref("bundle", "activate", "tiny", "--yes")
    assert "bundle tiny" in labref("status") and "signed by Our centre" in labref("status")
    assert len(json.loads(labref("query", next(cells.rglob("NE_0009.jpg")), "--json"))["references"]) == 3
    assert "starter/" in labref("bundle", "rollback") and "signed by labref starter" in labref("status")

    command("exporters", "key", "new", shipping / "new.key", "--name", "Our centre, 2")
    record = shipping / "new.rotation"
    command("exporters", "key", "rotate", shipping / "old.key", shipping / "new.key.pub", "--out", record)
    command("exporters", "key", "sign", bundle, "--key", shipping / "new.key", "--rotation", record)
    assert "signed by Our centre, 2" in labref("bundle", "install", bundle)
    listed = labref("key", "list", "--json").replace("} {", "}\n{").splitlines()
    assert [json.loads(line)["state"] for line in listed] == ["trusted", "replaced", "trusted"]
    assert "is active" in labref("bundle", "activate", "tiny", "--yes")

    figures = json.loads((shipping / "figures.json").read_text()) | {"measured_again": True}
    (tmp_path / "figures.json").write_text(json.dumps(figures))
    later = tmp_path / "later.labref"
    words = ("figures", bundle, "--figures", tmp_path / "figures.json", "--out", later, "--key")
    command("exporters", *words, shipping / "old.key")
    assert "which was replaced by a newer key" in labref("bundle", "install", later, code=1)
    command("exporters", *words, shipping / "new.key")
    labref("bundle", "install", later)


def test_an_untrained_run_is_not_shipped(cells: Path, tmp_path: Path) -> None:
    Run.create(tmp_path / "run", cells, PRESETS["starter"])
    done = command("exporters", "bundle", tmp_path / "run", "--out", tmp_path / "x.labref", code=1)
    assert "python -m training resume" in done.stderr.replace("\n", " ")


def test_wrong_words_teach(cells: Path, tmp_path: Path) -> None:
    done = command("training", "train", tmp_path, "--run", tmp_path / "run", code=1)
    assert "<class>" in done.stderr
    wrong = command("training", "train", cells, "--run", "x", "--set", "classifier.depth=3", code=2)
    assert "classifier.depth" in wrong.stderr
    help_text = command("training", "--help").stdout
    assert "resume" in help_text and "exporters bundle" in help_text


def test_the_split_depends_on_names_alone(cells: Path) -> None:
    items = list_images(cells)
    split = make_split(items, holdout=0.2, validation=0.1)
    again = make_split(items[5:], holdout=0.2, validation=0.1)
    assert set(again.holdout) == set(split.holdout) & set(items[5:])
    assert Split.from_csv(split.to_csv()) == split
    assert not {i.path for i in split.train} & {i.path for i in split.holdout}


def test_the_share_held_out_is_as_asked_and_never_moves() -> None:
    fractions = np.array([name_fraction(f"SNE_{n}.jpg", "labref-holdout") for n in range(20_000)])
    assert abs((fractions < 0.2).mean() - 0.2) < 0.01
    assert name_fraction("BA_100102.jpg", "labref-holdout") == pytest.approx(0.885042386, abs=1e-8)


def test_a_split_that_was_changed_is_refused(cells: Path, tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", cells, PRESETS["starter"])
    text = (run.folder / "split.csv").read_text()
    (run.folder / "split.csv").write_text(text.replace("holdout", "train", 1))
    with pytest.raises(RunError, match="changed after the run began"):
        Run.open(run.folder)


def test_another_configuration_in_the_same_folder_is_refused(cells: Path, tmp_path: Path) -> None:
    Run.create(tmp_path / "run", cells, PRESETS["starter"])
    with pytest.raises(RunError, match="other settings"):
        Run.create(tmp_path / "run", cells, replace(PRESETS["starter"], seed=2))


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_read_back(name: str) -> None:
    assert RunConfig.from_json(json.loads(json.dumps(PRESETS[name].to_json()))) == PRESETS[name]


def test_settings_are_checked() -> None:
    changed = override(PRESETS["thesis"], ["classifier.epochs=3", "vae.beta=2", "name=mine"])
    assert (changed.classifier.epochs, changed.vae.beta, changed.name) == (3, 2.0, "mine")
    for wrong in (
        "classifier.epochs",
        "vae.depth=1",
        "classifier=1",
        "classifier.epochs=many",
        "classifier.epochs=1.5",
    ):
        with pytest.raises(ValueError, match="--set"):
            override(PRESETS["thesis"], [wrong])


def test_the_cache_is_made_once_and_names_what_it_could_not_read(cells: Path, tmp_path: Path) -> None:
    items = list_images(cells)
    crops, good = cache_crops(cells, items, 64, tmp_path)
    assert crops.shape == (len(items), 64, 64, 3) and isinstance(crops, np.memmap)
    assert [items[i].path for i in np.flatnonzero(~good)] == ["neutrophil/NE_broken.jpg"]
    done: list[int] = []
    again, _ = cache_crops(Path("/nowhere"), items, 64, tmp_path, done.append)  # nothing is read a second time
    assert np.array_equal(again, crops) and done == [len(items)]
    (state,) = tmp_path.glob("*.state.npy")
    state.write_bytes(state.read_bytes()[:130])  # as a full disk leaves it
    anew, _ = cache_crops(cells, items, 64, tmp_path, done.append)
    assert np.array_equal(anew, crops) and sum(done) == 2 * len(items)


def test_a_resumed_epoch_takes_the_batches_that_were_left() -> None:
    rows = np.arange(103)
    whole = list(batches(rows, 10, seed=4, drop_last=True))
    rest = list(batches(rows, 10, seed=4, start=6, drop_last=True))
    assert len(whole) == 10 and all(np.array_equal(a, b) for a, b in zip(whole[6:], rest, strict=True))
    assert sorted(np.concatenate(list(batches(rows, 10, seed=4))).tolist()) == rows.tolist()


def test_nearest_agrees_with_a_plain_sort() -> None:
    rng = np.random.default_rng(2)
    queries, references = rng.normal(size=(30, 50)).astype(np.float32), rng.normal(size=(200, 50)).astype(np.float32)
    same = np.zeros((30, 200), bool)
    same[3, :50] = True
    rows, distances = nearest(queries, references, same)
    for q in range(30):
        d = ((references.astype(float) - queries[q].astype(float)) ** 2).mean(axis=1)
        d[same[q]] = np.inf
        assert rows[q].tolist() == np.argsort(d)[:8].tolist()
        assert np.allclose(distances[q], np.sort(d)[:8])


def test_turns_of_a_picture() -> None:
    picture = np.random.default_rng(1).integers(0, 255, (60, 80, 3)).astype(np.uint8)
    assert np.array_equal(turn(turn(picture, 90, False), 270, False), picture)
    assert np.array_equal(turn(picture, 0, True), picture[:, ::-1])
    assert turn(picture, 37, False).shape[0] > 60


def test_attribute_agreement_by_hand(tmp_path: Path) -> None:
    table = tmp_path / "attributes.csv"
    table.write_text("path,shape,colour\na/1.jpg,round,blue\na/2.jpg,round,red\na/3.jpg,oval,red\nb/4.jpg,round,blue\n")
    known = [Item("a/2.jpg", "a"), Item("a/3.jpg", "a"), Item("b/4.jpg", "b"), Item("b/5.jpg", "b")]
    found = attribute_agreement(
        [Item("a/1.jpg", "a"), Item("a/9.jpg", "a")], known, np.array([[0, 2, 3], [0, 1, 2]]), table
    )
    assert found == {"n_queries": 1, "references": 0.75, "random_same_class": 0.25}
