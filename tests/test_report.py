"""The central team's comparisons: sweeps that resume, one page with every figure and its interval, runs side by side
and again."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from rich.progress import Progress
from typer.testing import Result

from labref.demo.cells import LABELS, OPTICS, draw_cell, encode_jpeg, make_slides
from tests import trainings
from tests.trainings import eager, shallow  # noqa: F401
from training.config import PRESETS, override
from training.measure.folds import _slug
from training.measure.sweep import read_history
from training.networks.pca import principal_components
from training.run import Run, RunError, held

pytestmark = [
    pytest.mark.usefixtures("eager", "shallow"),
    pytest.mark.filterwarnings("ignore:Even though the `tf.config.experimental_run_functions_eagerly`"),
]
SMALL = [
    "classifier.width=0.125",
    "classifier.input_size=32",
    "classifier.epochs=1",
    "classifier.batch_size=16",
    "classifier.middle_repeats=0",
    "holdout=0.3",
    "validation=0.2",
    "orientations=1",
    "vae.epochs=1",
    "vae.width=16",
    "vae.batch_size=8",
    "vae.views=1",
]


def command(*words: object, code: int = 0) -> Result:
    return trainings.command("training", *words, code=code)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, eager: None, shallow: None) -> Path:  # noqa: F811
    """A tiny run on drawn cells, with attributes made up so that they go with the file's number."""
    from training.networks.classifier import evaluate_classifier, train_classifier
    from training.networks.vae import train_vae

    data = tmp_path_factory.mktemp("data")
    rows = ["path,size,shape,colour,grain"]
    for label in ("eosinophil", "ig", "neutrophil"):
        (data / label).mkdir()
        for number, slide in enumerate(make_slides(16, seed=7)):
            like = label if label in LABELS else "monocyte"
            picture = draw_cell(like, OPTICS[slide.optics], slide, np.random.default_rng([number, len(label)]))
            name = f"{('SNE', 'BNE')[number % 2] if label == 'neutrophil' else 'MY' if label == 'ig' else 'EO'}_{number:03d}.jpg"
            (data / label / name).write_bytes(encode_jpeg(picture))
            bits = [f"{b}{(number >> b) & 1}" for b in range(4)]
            rows.append(f"{label}/{name},{','.join(bits)}")
    (data / "attributes.csv").write_text("\n".join(rows) + "\n")
    folder = tmp_path_factory.mktemp("runs") / "small"
    made = Run.create(folder, data, override(PRESETS["starter"], SMALL))
    with Progress(disable=True) as progress:
        train_classifier(made, progress)
        evaluate_classifier(made, progress)
        train_vae(made, progress)
    return folder


def test_the_history_of_the_vae_is_of_whole_epochs(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from training.networks import vae

    told: dict[str, list[tuple[int, float]]] = {"train_on_batch": [], "test_on_batch": []}
    for name in told:
        real = getattr(vae._Vae, name)

        def spy(self: object, x: tuple[np.ndarray, ...], y: object, real=real, name=name, **more: object) -> dict:  # type: ignore[no-untyped-def]
            logs = real(self, x, y, **more)
            told[name].append((len(x[0]), float(logs["loss"])))
            return logs

        monkeypatch.setattr(vae._Vae, name, spy)
    opened = Run.open(run)
    with Progress(disable=True) as progress:
        vae.train_vae(opened, progress, out=tmp_path / "encoder.keras")
    (row,) = read_history(tmp_path / "vae_history.csv")
    for key, name in (("loss", "train_on_batch"), ("validation_loss", "test_on_batch")):
        sizes, losses = zip(*told[name], strict=True)
        assert row[key] == pytest.approx(np.average(losses, weights=sizes), abs=1e-3)
    assert len(told["train_on_batch"]) > 1


def test_two_commands_do_not_train_the_same(run: Path, tmp_path: Path) -> None:
    begun = tmp_path / "run"
    begun.mkdir()
    for name in ("run.json", "split.csv"):
        (begun / name).write_bytes((run / name).read_bytes())
    with held(begun):
        assert "another command is training in" in " ".join(command("resume", begun, code=1).stderr.split())
        assert not (begun / "history.csv").exists()
    with held(begun):
        pass


def test_settings_are_compared_by_folds_of_what_the_run_trains_on(run: Path, tmp_path: Path) -> None:
    words = ("folds", run, "--folds", 2, "--try", "vae.beta=0", "--set", "vae.epochs=2")
    found = json.loads(command(*words, "--json").stdout)
    split = Run.open(run).split
    names = {item.path for item in (*split.train, *split.validation)}
    assert [row["row"] for row in found["rows"]] == ["run", "vae.beta=0"] and found["split"] == split.digest
    asked: list[str] = []
    for number in range(2):
        fold = Run.open(run / "folds" / "2" / str(number))
        held = {item.path for item in fold.split.holdout}
        assert held and held.isdisjoint(item.path for item in (*fold.split.train, *fold.split.validation))
        asked += sorted(held)
    assert sorted(asked) == sorted(names), (
        "every cell that is trained on is asked about once, and none that is held out"
    )
    for row in found["rows"]:
        assert row["cells"] == len(names) and row["done"] == 2
        for figure in (*row["precision_at_8"].values(), row["accuracy"]):
            assert 0 <= figure["low"] <= figure["value"] <= figure["high"] <= 1
        assert row["share_of_the_way"]["n"] == len(names)
    one, other = found["rows"]
    assert one["won"] == {}
    micro = [row["precision_at_8"]["micro"]["value"] for row in (other, one)]
    assert other["won"]["micro"]["value"] == pytest.approx(micro[0] - micro[1])
    way = [row["share_of_the_way"]["value"] for row in (other, one)]
    assert other["won"]["share_of_the_way"]["value"] == pytest.approx(way[0] - way[1])

    # what is done is kept, another row joins it with its own network, other settings are refused, and nonsense is named
    kept = (run / "folds" / "2" / "0" / "classifier.keras").stat().st_mtime_ns
    another = command(*words, "--try", "classifier.attribute_weight=1 attributes=attributes.csv", "--json")
    more = json.loads(another.stdout)
    assert more["rows"][:2] == found["rows"] and len(more["rows"]) == 3
    assert (run / "folds" / "2" / "0" / "classifier.keras").stat().st_mtime_ns == kept
    said = command(
        "folds", run, "--folds", 2, "--try", "vae.beta=2", "--set", "vae.epochs=2", "--set", "seed=2", code=1
    )
    assert "other settings" in " ".join(said.stderr.split())
    assert "no such setting" in command("folds", run, "--try", "vae.gamma=1", code=1).stderr
    assert "cannot change which cells the folds have" in " ".join(
        command("folds", run, "--try", "holdout=0.1", code=1).stderr.split()
    )
    other = tmp_path / "other.csv"
    other.write_text("path,size\nx/y.jpg,large\n")
    said = command(*words, "--attributes", other, code=1)
    assert "rows with other attributes" in " ".join(said.stderr.split())
    long = "vae.beta=0 " * 40
    assert len(_slug(long)) < 60 and _slug("a=_") != _slug("a=,")
    table = json.loads(command("report", run, "--per-class", 3, "--json").stdout)[str(run)]["parts"]["folds"]
    assert table == [more] and more["command"].count("--try") == 2
    assert not list((run / "folds").glob("**/features")), "crops and features of a fold that is done are not kept"
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "2 folds of" in page and "Class precision against attributes of 3 settings" in page


def test_sweeps_go_on_where_they_stopped_and_the_report_shows_them(run: Path) -> None:
    size = ("--set", "vae.epochs=1")
    command("sweep", "latent", run, *size, "--row", 2)
    first = (run / "sweeps" / "latent-2" / "figures.json").read_text()
    said = command("sweep", "latent", run, *size, "--row", 2, "--row", 10).stdout
    assert "2 of 6 rows" in said and (run / "sweeps" / "latent-2" / "figures.json").read_text() == first
    command("sweep", "models", run, *size, "--row", "pca", "--row", "ae")
    found = json.loads(command("report", run, "--per-class", 3, "--json").stdout)[str(run)]
    parts = found["parts"]
    split = Run.open(run).split
    for part in (parts["space"], parts["map"], parts["pca"], *parts["sweeps"]["latent"], *parts["sweeps"]["models"]):
        for level in ("group", "class", "fine"):
            estimate = part["precision_at_8"][level]["macro"]
            assert 0 <= estimate["low"] <= estimate["value"] <= estimate["high"] <= 1
    assert parts["classes"]["counts"]["train"].keys() == {"eosinophil", "ig", "neutrophil"}
    assert set(parts["space"]["precision_at_8"]["fine"]["per_class"]) <= {"EO", "MY", "SNE", "BNE"}
    assert [row["row"] for row in parts["sweeps"]["latent"]] == ["2", "10"]
    assert all(row["split"] == split.digest and "--row" in row["command"] for row in parts["sweeps"]["latent"])
    assert 0 < parts["sweeps"]["models"][-1]["variance_kept"] <= 1
    assert parts["plane"]["how"] == "the VAE trained with L = 2" and len(parts["plane"]["points"]) == len(split.holdout)
    assert parts["rotmes"]["latents"]["rotmes"]["value"] > 0
    assert len(parts["rotmes"]["overlap_at_8"]) == 6

    page = (run / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"(src|href)=\"(?!data:|#)", page)  # needs nothing beside it
    assert page.count("<img ") == page.count('alt="') == len(re.findall(r"data:image/png;base64,", page))
    assert 'alt=""' not in page and '<html lang="en">' in page
    assert split.digest[:16] in page and "Not measured yet: 25, 50, 75, 100" in page
    assert f"sweep augmentation {run}" in page

    # measured once: the same command again changes no figure
    again = json.loads(command("report", run, "--per-class", 3, "--json").stdout)[str(run)]
    assert again == found
    table = json.loads(command("compare", run, run, "--json").stdout)
    assert table["same_split"] and table["settings"] == []
    names = [row["name"] for row in table["figures"]]
    assert "classifier accuracy, held out" in names and "class precision@8 by map" in names
    command("compare", run, run, "--html", run / "compare.html")
    assert "Runs side by side" in (run / "compare.html").read_text(encoding="utf-8")
    assert "class precision@8" in command("compare", run).stdout.replace("\n", " ")


def test_a_run_is_repeated_from_its_description_alone(run: Path, tmp_path: Path) -> None:
    described = tmp_path / "described"
    described.mkdir()
    (described / "run.json").write_text((run / "run.json").read_text())
    new = Run.repeat(described, tmp_path / "new")
    old = Run.open(run)
    assert (new.config, new.split, new.data) == (old.config, old.split, old.data)
    values = json.loads((run / "run.json").read_text()) | {"split": "0" * 64}
    (described / "run.json").write_text(json.dumps(values))
    with pytest.raises(RunError, match="added, removed"):
        Run.repeat(described, tmp_path / "other")
    with pytest.raises(RunError, match="holds no run"):
        Run.repeat(tmp_path, tmp_path / "other")


def test_what_is_not_there_is_said_with_the_remedy(run: Path, tmp_path: Path) -> None:
    assert "latent" in command("sweep", "nothing", run, code=2).stderr
    assert "has no row" in command("sweep", "latent", run, "--row", "7", code=1).stderr
    assert "holds no run" in " ".join(command("report", tmp_path, code=1).stderr.split())
    assert "training report" in command("compare", tmp_path, code=1).stderr.replace("\n", " ")


def test_principal_components_agree_with_an_exact_decomposition() -> None:
    rng = np.random.default_rng(4)
    hidden = rng.normal(size=(700, 30)) * np.geomspace(8, 0.5, 30)
    features = (
        (hidden @ rng.normal(size=(30, 96)) + rng.normal(size=(700, 96))).astype(np.float16).reshape(700, 4, 4, 6)
    )
    found = principal_components(features, 10)
    flat = features.reshape(700, -1).astype(float)
    centred = flat - flat.mean(axis=0)
    _, singular, axes = np.linalg.svd(centred, full_matrices=False)
    exact = singular**2 / (singular**2).sum()
    assert np.allclose(found.kept, exact[:10], rtol=1e-4)
    assert np.allclose(np.abs((found.axes[:5] * axes[:5]).sum(axis=1)), 1, atol=1e-3)
    assert np.allclose(np.abs(found.latents(features)[:, 0]), np.abs(centred @ axes[0]), atol=0.05)
