"""The map: a MiniSom, trained by the batch algorithm, no worse than MiniSom's own training."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import minisom
import numpy as np
import pytest
from numpy.typing import NDArray

from labref import som
from labref.errors import LabrefError
from labref.som.training import resize
from training.measure.latents import Latents


def cells(count: int, length: int = 12, seed: int = 0) -> NDArray[np.float32]:
    """Made-up latents float32[count, length] in six clusters."""
    rng = np.random.default_rng(seed)
    middles = 3 * rng.standard_normal((6, length))
    drawn: NDArray[np.float32] = (middles[rng.integers(6, size=count)] + rng.standard_normal((count, length))).astype(
        np.float32
    )
    return drawn


def nearest(weights: NDArray[np.float64], latents: NDArray[np.float32]) -> NDArray[np.float64]:
    """Distance of every latent from every node, in float64, one by one: float64[n, nodes]."""
    flat = weights.reshape(-1, weights.shape[2])
    return np.stack([np.linalg.norm(flat - latent, axis=1) for latent in latents.astype(np.float64)])


# --- the schedule ---


@pytest.mark.parametrize(
    ("count", "side"), [(0, 8), (1, 8), (64, 8), (100, 10), (8_091, 90), (61_504, 248), (62_000, 248), (10**7, 248)]
)
def test_a_map_has_about_as_many_nodes_as_there_are_cells(count: int, side: int) -> None:
    assert som.size_for(count) == (side, side)


def test_training_begins_coarse_and_wide_and_ends_at_the_size_and_radius_asked_for() -> None:
    steps = som.stages(248, 248)
    assert (steps[0].rows, steps[0].cols) == (8, 8)
    assert (steps[-1].rows, steps[-1].cols) == (248, 248)
    assert steps[0].sigmas[0] * 248 / 8 == pytest.approx(124)
    assert steps[-1].sigmas[-1] == som.FINAL_SIGMA
    widths = [sigma * 248 / step.rows for step in steps for sigma in step.sigmas]
    assert all(later <= earlier * 1.001 for earlier, later in pairwise(widths))


@pytest.mark.parametrize(("sigma", "final"), [(30.0, 10.0), (None, 23.0), (10.0, 10.0), (2.0, 0.5)])
def test_a_map_that_stays_wide_is_trained_at_its_full_size_too(sigma: float | None, final: float) -> None:
    steps = som.stages(40, 30, sigma=sigma, final_sigma=final)
    assert (steps[-1].rows, steps[-1].cols, steps[-1].sigmas[-1]) == (40, 30, final)
    trained = som.train(cells(200), rows=40, cols=30, sigma=sigma, final_sigma=final)
    assert trained.get_weights().shape == (40, 30, 12) and trained._sigma == final


@pytest.mark.parametrize(
    ("rows", "cols", "sigma", "final"), [(0, 5, None, 1.0), (5, 5, 1.0, 2.0), (5, 5, None, 0.0), (5, 5, -1.0, 1.0)]
)
def test_a_schedule_that_makes_no_map_is_refused(rows: int, cols: int, sigma: float | None, final: float) -> None:
    with pytest.raises(ValueError, match=r"map needs|radius"):
        som.stages(rows, cols, sigma=sigma, final_sigma=final)


# --- what is trained ---


def test_the_map_is_a_minisom_on_which_its_own_methods_work(real_latents: Latents) -> None:
    trained = som.train(real_latents.values, rows=12, cols=15, seed=1)
    assert isinstance(trained, minisom.MiniSom)
    nodes, errors = som.winners(trained, real_latents.values)
    assert [trained.winner(latent) for latent in real_latents.values] == [(node // 15, node % 15) for node in nodes]
    assert trained.quantization_error(real_latents.values) == pytest.approx(errors.mean(), rel=1e-6)
    figures = som.quality(trained, real_latents.values)
    assert figures["cells"] == len(real_latents.paths)
    assert figures["qe"] == pytest.approx(trained.quantization_error(real_latents.values), rel=1e-6)
    assert figures["te"] == pytest.approx(trained.topographic_error(real_latents.values), abs=1e-9)
    borders = trained.distance_map()
    assert borders.shape == (12, 15) and borders.max() == 1 and borders.min() > 0


def test_it_is_no_worse_than_minisom_at_the_same_size_and_final_radius(real_latents: Latents) -> None:
    ours = som.train(real_latents.values, rows=15, cols=15)
    theirs = minisom.MiniSom(15, 15, 50, sigma=3 * som.FINAL_SIGMA, learning_rate=0.5, random_seed=0)
    theirs.pca_weights_init(real_latents.values)
    theirs.train(real_latents.values, 4000, random_order=True)  # some seconds; ours took less than one
    assert theirs._sigma / 3 == ours._sigma
    assert ours.quantization_error(real_latents.values) <= theirs.quantization_error(real_latents.values)
    assert ours.topographic_error(real_latents.values) <= max(0.05, theirs.topographic_error(real_latents.values))


def test_cells_of_a_class_lie_together(real_latents: Latents) -> None:
    labels = np.array([item.label for item in real_latents.items])
    rows, cols = som.size_for(len(labels))
    nodes, _ = som.winners(som.train(real_latents.values, rows=rows, cols=cols), real_latents.values)
    about = som.neighbourhood(nodes, labels, rows=rows, cols=cols)
    assert (np.array(about.labels)[about.majority] == labels).mean() > 0.8


def test_minisoms_own_training_stays_available_step_for_step() -> None:
    latents = cells(300)
    start = som.train(latents, rows=6, cols=7, initial="random", seed=2).get_weights()
    ours = som.train(latents, rows=6, cols=7, initial=start, trainer="minisom", iterations=500, sigma=2.0, seed=5)
    theirs = minisom.MiniSom(6, 7, 12, sigma=2.0, learning_rate=0.5, random_seed=5)
    theirs._weights = start.copy()
    theirs.train(latents, 500, random_order=True)
    np.testing.assert_allclose(ours.get_weights(), theirs.get_weights(), atol=1e-4)
    assert ours._sigma == pytest.approx(2.0 / 3)


@pytest.mark.parametrize("initial", ["pca", "random"])
def test_the_same_call_gives_the_same_map(initial: str) -> None:
    latents = cells(2000)
    first, second = (som.train(latents, rows=40, cols=40, seed=3, initial=initial) for _ in range(2))  # type: ignore[arg-type]
    assert (first.get_weights() == second.get_weights()).all()
    if initial == "random":
        other = som.train(latents, rows=40, cols=40, seed=4, initial="random")
        assert (first.get_weights() != other.get_weights()).any()


def test_the_map_does_not_depend_on_the_threads_of_blas() -> None:
    code = (
        "import hashlib, numpy as np; from labref import som; from tests.test_som import cells;"
        "print(hashlib.sha256(som.train(cells(3000, 50), rows=48, cols=48).get_weights().tobytes()).hexdigest())"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"OPENBLAS_NUM_THREADS": threads, "OMP_NUM_THREADS": threads},
            cwd=Path(__file__).parents[1],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for threads in ("1", "2")
    }
    assert len(found) == 1 and len(found.pop()) == 64


def test_from_the_last_map_old_cells_stay_where_they_were() -> None:
    latents = cells(2100, 20)
    before = som.train(latents[:2000], rows=45, cols=45)
    after = som.train(latents, rows=45, cols=45, initial=before.get_weights())
    assert (som.moved(before, after, latents[:2000]) <= 3).mean() >= 0.95
    old, new = (som.quality(trained, latents) for trained in (before, after))
    assert new["qe"] <= old["qe"]


def test_a_map_can_go_on_at_another_size() -> None:
    latents = cells(1200)
    before = som.train(latents, rows=20, cols=20)
    after = som.train(latents, rows=24, cols=22, initial=before.get_weights())
    assert after.get_weights().shape == (24, 22, 12)
    stretched = resize(before.get_weights().astype(np.float32), 24, 22)
    assert (som.moved(stretched, after, latents) <= 3).mean() >= 0.95


@pytest.mark.parametrize(
    ("count", "length", "rows", "cols"), [(1, 5, 3, 3), (2, 1, 4, 4), (40, 3, 1, 1), (40, 3, 1, 9), (40, 3, 30, 2)]
)
def test_little_maps_and_few_cells_are_no_trouble(count: int, length: int, rows: int, cols: int) -> None:
    latents = cells(count, length)
    trained = som.train(latents, rows=rows, cols=cols)
    assert np.isfinite(trained.get_weights()).all()
    nodes, errors = som.winners(trained, latents)
    assert nodes.max() < rows * cols and np.isfinite(errors).all()
    assert np.isfinite(list(som.quality(trained, latents).values())).all()


def test_what_is_no_latents_is_refused() -> None:
    good = cells(10)
    for wrong in (good[0], good[:0], np.full((4, 3), np.nan, np.float32)):
        with pytest.raises(ValueError, match="latents must be"):
            som.train(wrong, rows=3, cols=3)
    with pytest.raises(ValueError, match="initial"):
        som.train(good, rows=3, cols=3, initial=np.zeros((3, 3, 4)))
    with pytest.raises(ValueError, match="trainer"):
        som.train(good, rows=3, cols=3, trainer="other")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="must end on the grid"):
        som.train(good, rows=3, cols=3, schedule=som.stages(4, 4))
    with pytest.raises(ValueError, match="latents must be"):
        som.winners(np.zeros((3, 3, 4)), good)


@pytest.mark.parametrize("trainer", ["batch", "minisom"])
def test_training_tells_how_far_it_is_and_leaves_off_when_told(trainer: str) -> None:
    told: list[tuple[int, int, str]] = []
    som.train(
        cells(200),
        rows=12,
        cols=12,
        trainer=trainer,  # type: ignore[arg-type]
        iterations=300,
        progress=lambda done, total, text: told.append((done, total, text)),
    )
    assert [done for done, _, _ in told] == sorted(done for done, _, _ in told)
    assert told[-1][0] == told[-1][1] and len({total for _, total, _ in told}) == 1
    told.clear()
    with pytest.raises(som.TrainingStopped):
        som.train(
            cells(200),
            rows=12,
            cols=12,
            trainer=trainer,  # type: ignore[arg-type]
            progress=lambda done, total, text: told.append((done, total, text)),
            stopped=lambda: len(told) >= 2,
        )
    assert len(told) == 2


# --- the search ---


@pytest.mark.parametrize("kind", ["smooth", "structureless"])
def test_winners_are_the_nearest_of_all_nodes(kind: str) -> None:
    latents = cells(700, 10)
    if kind == "smooth":
        weights = som.train(latents, rows=53, cols=37).get_weights()
    else:
        weights = np.random.default_rng(1).standard_normal((53, 37, 10)) * 4 + 100
        latents = latents + np.float32(100)
    away = nearest(weights, latents)
    nodes, errors = som.winners(weights, latents)
    np.testing.assert_allclose(errors, away.min(axis=1), rtol=1e-6)
    assert (nodes == away.argmin(axis=1)).mean() > 0.999


# --- files ---


def test_a_map_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    latents = cells(300)
    trained = som.train(latents, rows=9, cols=11)
    som.save(trained, tmp_path / "map.npz")
    again = som.load(tmp_path / "map.npz")
    assert (again.get_weights() == trained.get_weights()).all()
    assert again._sigma == trained._sigma
    assert (som.winners(again, latents)[0] == som.winners(trained, latents)[0]).all()
    assert [path.name for path in tmp_path.iterdir()] == ["map.npz"]
    with np.load(tmp_path / "map.npz", allow_pickle=False) as file:
        assert all(file[name].dtype != object for name in file.files)


def test_a_save_that_fails_leaves_the_map_that_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = som.train(cells(50), rows=4, cols=4), som.train(cells(50, seed=9), rows=4, cols=4)
    som.save(first, tmp_path / "map.npz")

    def fail(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no space"):
        som.save(second, tmp_path / "map.npz")
    assert (som.load(tmp_path / "map.npz").get_weights() == first.get_weights()).all()
    assert [path.name for path in tmp_path.iterdir()] == ["map.npz"]


def test_a_file_that_is_no_map_is_named_with_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / "map.npz"
    with pytest.raises(LabrefError, match=r"map\.npz cannot be read .*labref map train"):
        som.load(path)
    som.save(som.train(cells(50), rows=4, cols=4), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(LabrefError, match="cannot be read"):
        som.load(path)
    np.savez(path, format=99, weights=np.zeros((2, 2, 2), np.float32), sigma=1.0, learning_rate=0.5)
    with pytest.raises(LabrefError, match="newer labref"):
        som.load(path)
    np.savez(path, format=1, weights=np.full((2, 2, 2), np.nan, np.float32), sigma=1.0, learning_rate=0.5)
    with pytest.raises(LabrefError, match="damaged"):
        som.load(path)
    np.savez(path, format=1, weights=np.array([[[{"pickled": 1}]]], dtype=object), sigma=1.0, learning_rate=0.5)
    with pytest.raises(LabrefError, match="cannot be read"):
        som.load(path)
