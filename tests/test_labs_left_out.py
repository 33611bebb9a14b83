"""Each lab of a pool is left out in its turn, and a bundle is judged in each: on real cells of three microscopes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest

from labref.bundles.bundle import Bundle, starter_bundle
from labref.bundles.inference import Embedder
from labref.cells.image import prepare
from labref.packs import CELLS as CELLS_FILE
from tests.packs import Given, GivingLab
from tests.trainings import command, eager, shallow  # noqa: F401
from training.config import RunConfig, override
from training.data.ingest import ingest, trust
from training.data.pool import PACKS, Pool
from training.measure import labs
from training.measure.evaluate import nearest
from training.measure.statistics import bootstrap, bootstrap_of_seeds
from training.run import Run

pytestmark = [
    pytest.mark.usefixtures("eager", "shallow"),
    pytest.mark.filterwarnings("ignore:Even though the `tf.config.experimental_run_functions_eagerly`"),
]
SMALL = [
    *("classifier.width=0.125", "classifier.input_size=32", "classifier.epochs=1", "classifier.batch_size=8"),
    *("classifier.middle_repeats=0", "holdout=0.2", "validation=0.2", "orientations=1"),
    *("vae.epochs=1", "vae.width=16", "vae.batch_size=8", "vae.views=1"),
]
CELLS = {"neutrophil": 10, "lymphocyte": 9}


def given(lab: GivingLab, folder: Path, cells: dict[str, int], *, first: int = 0) -> dict[str, list[Given]]:
    """Cells of a set of real pictures, each class of two analysers by turns."""
    made: dict[str, list[Given]] = {}
    for label, many in cells.items():
        names = [name for name in (label, f"segmented_{label}") if (folder / name).is_dir()]
        for number, file in enumerate(sorted((folder / names[0]).glob("*.jpg"))[first : first + many]):
            cell = f"{len(made)}{number + first:03x}{lab.id}"[:16]
            optics = ("0" if number % 2 else "a") * 12
            made.setdefault(label, []).append(Given(cell, label, prepare(file.read_bytes()).crop, optics))
    return made


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory, real_cells: Path) -> tuple[Path, list[GivingLab]]:
    """A pool of three labs; the last has cells of one class alone."""
    folder = tmp_path_factory.mktemp("pool")
    given_by = [GivingLab("Lund"), GivingLab("Oslo"), GivingLab("Umeå")]
    sets = (("pbc", CELLS), ("bonemarrow", CELLS), ("bccd", {"eosinophil": 9}))
    for lab, (name, cells) in zip(given_by, sets, strict=True):
        trust(folder / "pool", lab.public(folder))
        lab.pack(
            folder / f"{lab.name}.pack", [one for of in given(lab, real_cells / name, cells).values() for one in of]
        )
        assert ingest(folder / "pool", folder / f"{lab.name}.pack", lambda _, __: lambda _: None).recaptures == 0
    return folder / "pool", given_by


@pytest.fixture(scope="module")
def run(three: tuple[Path, list[GivingLab]], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run on the pool, with the smallest networks."""
    return Run.create(tmp_path_factory.mktemp("runs") / "of-labs", three[0], override(RunConfig(), SMALL))


def unseen(run: Run, *words: object, code: int = 0) -> Any:
    return command("training", "unseen", run.folder, "--labs", *words, code=code)


def test_each_lab_is_left_out_and_asked_as_it_would_ask_itself(
    run: Run, three: tuple[Path, list[GivingLab]], monkeypatch: pytest.MonkeyPatch
) -> None:
    lund, oslo, umea = (lab.id for lab in three[1])
    real = labs.write_json

    def killed(path: Path, values: Any) -> None:
        if path.name == "figures.json":
            raise KeyboardInterrupt
        real(path, values)

    with monkeypatch.context() as patched:
        patched.setattr(labs, "write_json", killed)
        assert "the same command goes on" in unseen(run, "--leave", lund[:6], code=130).stderr
    done = unseen(run, "--leave", lund[:6], "--json")
    found = json.loads(done.stdout)
    assert "epoch" not in done.stderr, "what was trained before the stop is not trained again"
    (row,), (lab,) = found["rows"], found["labs"]
    assert (row["left"], row["seed"], sorted(row["trained_on"])) == (lund, run.config.seed, sorted((oslo, umea)))
    assert (row["queries"], row["classes"], row["not_trained_on"]) == (19, dict(sorted(CELLS.items())), [])
    trained = Run.open(run.folder / "unseen" / "labs" / f"run-{lund[:8]}-{run.config.seed}")
    seen = {item.path.split("/")[0] for part in ("train", "validation", "holdout") for item in trained.split.part(part)}
    assert seen and not any(domain.startswith(lund[:8]) for domain in seen)
    assert not (trained.folder / "features").exists() and row["split"] == trained.split.digest
    own = lab["own_store"]
    assert set(own["by_class"]) == set(CELLS) and own["by_class"]["neutrophil"]["n"] == 10
    assert {name: one["micro"]["n"] for name, one in own["by_optics"].items()} == {
        f"{lund[:8]}-{'a' * 8}": 10,
        f"{lund[:8]}-{'0' * 8}": 9,
    }
    assert own["micro"]["low"] <= own["micro"]["value"] <= own["micro"]["high"]
    by_hand = (10 * own["by_class"]["neutrophil"]["value"] + 9 * own["by_class"]["lymphocyte"]["value"]) / 19
    assert own["micro"]["value"] == pytest.approx(by_hand)
    assert lab["won"]["value"] == pytest.approx(own["micro"]["value"] - lab["central_store"]["micro"]["value"])
    assert "all its cells are called eosinophil" in found["not_judged"][umea]

    assert f"without the lab {oslo}" in unseen(run).stderr.replace("\n", " ")
    # what was written of a row is damaged: it is named, and asked anew where its figures are deleted
    place = run.folder / "unseen" / "labs" / f"run-{lund[:8]}-{run.config.seed}"
    told = json.loads((place / "figures.json").read_text())
    for name, damaged in (
        ("cells.npz", (place / "cells.npz").read_bytes()[:-100]),
        ("cells.npz", b"PK\x03\x04"),
        ("cells.npz", b""),
        ("figures.json", b"{"),
        ("figures.json", b"[]"),
        ("figures.json", json.dumps(told | {"variant": "of tomorrow"}).encode()),
        ("../state.json", b"\xff"),
    ):
        whole = (place / name).read_bytes()
        (place / name).write_bytes(damaged)
        assert str((place / name).resolve()) in unseen(run, code=1).stderr.replace("\n", ""), (name, damaged)
        (place / name).write_bytes(whole)
    np.savez(
        place / "cells.npz",
        **dict.fromkeys(("path", "label", "own", "central", "right"), np.zeros(3)) | {"own": np.zeros(2)},
    )
    assert f"Delete {place / 'figures.json'}" in unseen(run, code=1).stderr.replace("\n", "")
    (place / "figures.json").unlink()
    found = json.loads(unseen(run, "--leave", lund, "--seeds", 2, "--json").stdout)
    assert [(row["left"], row["seed"] - run.config.seed) for row in found["rows"]] == sorted(
        [(lund, 0), (lund, 1), (oslo, 0)]
    )
    (mean,) = found["means"]
    assert mean["labs"] == 2
    assert mean["own_store"]["value"] == pytest.approx(
        np.mean([one["own_store"]["micro"]["value"] for one in found["labs"]])
    )
    both = next(one for one in found["labs"] if one["left"] == lund)
    assert both["seeds"] == [run.config.seed, run.config.seed + 1] and "2 seeds" in both["own_store"]["micro"]["how"]
    again = unseen(run)
    assert "without the lab" not in again.stderr and "own store" in again.stdout
    assert f"the lab {umea} is not judged" in again.stderr.replace("\n", " ")


def test_what_cannot_be_judged_or_does_not_compare_is_said(
    run: Run, three: tuple[Path, list[GivingLab]], real_cells: Path, tmp_path: Path
) -> None:
    pool, (lund, oslo, umea) = three
    fresh = Run.create(tmp_path / "fresh", pool, run.config)
    assert "no lab of the pool begins with 'zz'" in unseen(fresh, "--leave", "zz", code=1).stderr
    assert "cannot be judged: all its cells" in unseen(fresh, "--leave", umea.id, code=1).stderr.replace("\n", " ")
    assert "no variant 'none'" in unseen(fresh, "--variant", "none", code=1).stderr
    assert not (fresh.folder / "unseen").exists(), "nothing is begun"
    labs._begin(fresh.folder / "unseen" / "labs", labs.labs_of(pool), [], 500, {"command": "as before"})
    assert "rows of another limit" in unseen(fresh, "--limit", 3, code=1).stderr
    assert "rows of other settings" in unseen(fresh, "--set", "vae.epochs=2", code=1).stderr
    copied = Path(shutil.copytree(pool, tmp_path / "pool"))
    more = given(oslo, real_cells / "bonemarrow", {"monocyte": 2})["monocyte"]
    digest = oslo.pack(tmp_path / "more.pack", more, number=2)
    assert digest
    assert ingest(copied, tmp_path / "more.pack", lambda _, __: lambda _: None).cells == 2
    told = unseen(fresh, "--data", copied, code=1).stderr.replace("\n", " ")
    assert "rows of other cells of the pool" in told
    # one lab alone, and what is no pool
    one = tmp_path / "one"
    trust(one, lund.public(tmp_path))
    ingest(one, pool.parent / "Lund.pack", lambda _, __: lambda _: None)
    assert "has cells of 1 lab" in unseen(fresh, "--data", one, code=1).stderr
    assert "is no pool" in unseen(fresh, "--data", real_cells, code=1).stderr
    # without Lund and Oslo there is one class to train on
    two = tmp_path / "two"
    for lab in (lund, umea):
        trust(two, lab.public(tmp_path))
        ingest(two, pool.parent / f"{lab.name}.pack", lambda _, __: lambda _: None)
    told = unseen(fresh, "--data", two, code=1).stderr.replace("\n", " ")
    assert "no lab of" in told and "without it there are cells of 1 class to train on" in told


def test_a_bundle_is_judged_in_each_lab_of_a_pool(
    three: tuple[Path, list[GivingLab]], starter: Bundle, tmp_path: Path
) -> None:
    pool, (lund, oslo, umea) = three
    found = json.loads(command("training", "evaluate", "--bundle", starter_bundle(), "--pool", pool, "--json").stdout)
    assert found["bundle"] == starter.digest and found["left_out"] is False
    assert sorted(row["lab"] for row in found["labs"]) == sorted((lund.id, oslo.id)) and umea.id in found["not_judged"]
    row = next(row for row in found["labs"] if row["lab"] == oslo.id)
    assert row["trained_on"] is None, "it was trained on folders, which may hold these very cells"
    items = [
        (path, cell.crop)
        for path, cell in Pool.open(pool).prepared([p for p, c in Pool.open(pool).cells.items() if c.lab == oslo.id])
    ]
    labels = np.array([path.split("/")[1] for path, _ in items])
    with Embedder.open(starter, device="cpu") as embedder:
        latents = embedder.embed(np.stack([crop for _, crop in items])).latents
    near, _ = nearest(latents, latents, np.eye(len(latents), dtype=np.bool_))
    assert row["own_store"]["micro"]["value"] == pytest.approx((labels[near] == labels[:, None]).mean(), abs=0.02)
    assert (row["queries"], row["references"], row["classes"]) == (19, 19, dict(sorted(CELLS.items())))
    assert row["accuracy"] is not None and row["accuracy"]["n"] == 19
    told = command("training", "evaluate", "--bundle", starter_bundle(), "--pool", pool, "--limit", 2)
    assert f"({oslo.id}): class precision@8" in told.stdout and "8 of 19 cells asked" in told.stdout
    assert "no lab was left out" in told.stdout and f"({umea.id}): not judged" in told.stdout, (
        "by the name that the lab gave itself"
    )
    assert (
        "name --references and --queries, or --pool"
        in command("training", "evaluate", "--bundle", starter_bundle(), code=2).stderr
    )
    damaged = Path(shutil.copytree(pool, tmp_path / "pool"))
    (pack,) = (damaged / PACKS / oslo.id).iterdir()
    part = pack / "part.parquet"
    duckdb.sql(f"COPY (FROM read_parquet('{pack / CELLS_FILE}') LIMIT 16) TO '{part}' (FORMAT parquet)")
    part.replace(pack / CELLS_FILE)
    told = command("training", "evaluate", "--bundle", starter_bundle(), "--pool", damaged, code=1).stderr
    assert "lacks the pictures of 3 cells" in told.replace("\n", " ")
    (pack / CELLS_FILE).write_bytes(b"PAR1")
    told = command("training", "evaluate", "--bundle", starter_bundle(), "--pool", damaged, code=1).stderr
    assert f"{damaged} cannot be read" in told.replace("\n", "")


def test_several_seeds_are_resampled_with_the_cells() -> None:
    rng = np.random.default_rng(1)
    cells = rng.random((1, 40))
    assert bootstrap_of_seeds(cells) == bootstrap(cells[0])
    same = bootstrap_of_seeds(np.repeat(cells, 4, axis=0))
    apart = bootstrap_of_seeds(cells + np.array([[-0.3], [-0.1], [0.1], [0.3]]))
    assert same.value == pytest.approx(apart.value) == pytest.approx(cells.mean())
    assert apart.high - apart.low > 1.5 * (same.high - same.low), "the scatter between seeds counts"
    strata = ["a"] * 30 + ["b"] * 10
    assert bootstrap_of_seeds(np.repeat(cells, 2, axis=0), strata=strata).value == pytest.approx(
        (cells[0, :30].mean() + cells[0, 30:].mean()) / 2
    )
