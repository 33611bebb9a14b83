"""What the map is made of: products, sums, searches, measures, labels, the graph for a GPU, and its benchmark."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

import labref.bundles.inference
from exporters.som import nearest_graph
from labref import som
from labref.errors import LabrefError
from labref.som import graph
from labref.som.products import gaussian, product, spread
from labref.som.quality import trustworthiness
from labref.som.search import extend, find, find_near
from tests.benchmarks.som import TABLE_9, main, tiled
from tests.test_som import cells
from training.measure.latents import Latents, save_latents


@pytest.mark.parametrize(("m", "k", "n"), [(1, 3, 1), (500, 51, 16), (700, 51, 1000), (3, 600, 2000)])
def test_a_product_in_pieces_is_the_product(m: int, k: int, n: int) -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((m, k), (k, n)))
    np.testing.assert_allclose(product(a, b), a @ b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sigma", [0.4, 1.0, 9.0])
def test_separable_sums_are_the_sums_over_all_nodes(sigma: float) -> None:
    sums = np.random.default_rng(1).random((11, 19, 3)).astype(np.float32)
    rows, cols = np.indices((11, 19))
    spread_out = spread(sums, sigma)
    for row, col in ((0, 0), (5, 18), (10, 7)):
        weights = np.exp(-((rows - row) ** 2 + (cols - col) ** 2) / (2 * sigma**2))
        expected = (weights[:, :, None] * sums).sum(axis=(0, 1))
        np.testing.assert_allclose(spread_out[row, col], expected, rtol=1e-4)
    assert gaussian(4, 1.0)[0, 1] == pytest.approx(np.exp(-0.5))


def _grid(latents: NDArray[np.float32], rows: int, cols: int) -> NDArray[np.float32]:
    trained: NDArray[np.float32] = som.train(latents, rows=rows, cols=cols).get_weights().astype(np.float32)
    return trained


def test_a_search_near_the_last_node_finds_the_best_within_reach() -> None:
    latents = cells(400)
    grid = _grid(latents, 50, 45)
    best = find(extend(latents), grid)
    start = np.clip(best // 45 + 3, 0, 49) * 45 + np.clip(best % 45 - 3, 0, 44)
    found, scores = find_near(extend(latents), grid, start, 3)
    flat = grid.reshape(-1, 12)
    assert (found == best).mean() > 0.99
    expected = np.einsum("ij,ij->i", latents, flat[found]) - 0.5 * (flat[found] ** 2).sum(axis=1)
    np.testing.assert_allclose(scores, expected, rtol=1e-3, atol=1e-3)
    assert (
        find(extend(latents), grid, start) == best
    ).mean() > 0.999  # looking first at the wrong place is only slower


def test_trustworthiness_is_one_for_the_same_neighbours_and_a_half_for_chance() -> None:
    rng = np.random.default_rng(0)

    def ranks(values: NDArray[np.float64]) -> NDArray[np.int64]:
        return np.argsort(np.argsort(values, axis=1), axis=1)

    def apart(points: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.linalg.norm(points[:, None] - points, axis=2)

    one, other = apart(rng.standard_normal((300, 2))), apart(rng.standard_normal((300, 2)))
    assert trustworthiness(ranks(one), ranks(one)) == 1
    assert trustworthiness(ranks(one), ranks(other)) == pytest.approx(0.5, abs=0.03)


def test_maps_of_two_sizes_are_not_compared() -> None:
    with pytest.raises(ValueError, match="different sizes"):
        som.moved(np.zeros((3, 3, 2)), np.zeros((3, 4, 2)), np.zeros((1, 2)))


def test_a_wrong_label_is_the_most_surprising() -> None:
    latents = cells(600)
    middles = np.random.default_rng(0).permutation(600)[:5]
    labels = np.where(latents[:, 0] > np.median(latents[:, 0]), "high", "low")
    nodes, _ = som.winners(
        som.train(latents[:, :1].repeat(2, axis=1), rows=20, cols=20), latents[:, :1].repeat(2, axis=1)
    )
    given = labels.copy()
    far = middles[np.abs(latents[middles, 0] - np.median(latents[:, 0])) > 1]
    assert len(far) >= 2
    given[far] = np.where(labels[far] == "high", "low", "high")
    about = som.neighbourhood(nodes, given, rows=20, cols=20)
    surprise = som.suspicion(about, given)
    assert set(np.argsort(-surprise)[: len(far)].tolist()) == set(far.tolist())
    np.testing.assert_allclose(about.shares.sum(axis=1), 1)
    agrees = np.array(about.labels)[about.majority] == given
    assert (surprise[agrees] == 0).all() and (surprise[~agrees] > 0).all()


def test_a_cell_is_not_its_own_neighbour_and_an_empty_place_says_what_is_common() -> None:
    labels = np.array(["a", "b", "b", "b"])
    about = som.neighbourhood(np.array([0, 0, 0, 99]), labels, rows=10, cols=10, radius=1.0)
    assert about.labels == ("a", "b")
    assert about.majority.tolist() == [1, 1, 1, 1]
    assert about.weight[0] == pytest.approx(2) and about.weight[3] == pytest.approx(0)
    np.testing.assert_allclose(about.shares[3], [0.25, 0.75])
    there = som.neighbourhood(np.array([0, 0, 0, 99]), labels, rows=10, cols=10, radius=1.0, at=np.array([0, 50]))
    assert there.weight[0] == pytest.approx(3)
    np.testing.assert_allclose(there.shares[1], [0.25, 0.75], atol=1e-3)


# --- the graph for a GPU ---


def test_the_shipped_graph_is_the_one_that_exporters_make() -> None:
    assert onnx.load(graph._FILE) == nearest_graph()


def test_the_graph_finds_the_nodes_that_the_search_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = graph.NearestGraph("CPUExecutionProvider")
    latents = cells(500)
    grid = _grid(latents, 40, 35)
    monkeypatch.setattr(graph, "_SCORES", 100 * 40 * 35)  # so that it takes several runs
    found = opened.find(extend(latents), grid, lambda: None)
    assert (found == find(extend(latents), grid)).mean() > 0.999
    monkeypatch.setattr("labref.som.training.open_graph", lambda _device: opened)
    by_graph = som.train(latents, rows=20, cols=20, device="cuda")
    monkeypatch.undo()
    by_search = som.train(latents, rows=20, cols=20, device="cpu")
    here, there = (som.quality(trained, latents) for trained in (by_search, by_graph))
    assert there["qe"] == pytest.approx(here["qe"], rel=0.02)


def test_cuda_is_taken_where_it_works_and_insisting_on_it_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labref.bundles.inference, "cuda_problem", lambda: "no NVIDIA GPU in this computer")
    assert graph.open_graph("auto") is None and graph.open_graph("cpu") is None
    with pytest.raises(LabrefError, match=r"no NVIDIA GPU in this computer\. Use device"):
        som.train(cells(20), rows=3, cols=3, device="cuda")
    monkeypatch.setattr(labref.bundles.inference, "cuda_problem", lambda: None)
    monkeypatch.setattr(graph, "_CUDA", "CPUExecutionProvider")  # a device that works
    opened = graph.open_graph("auto")
    assert opened is not None and opened.provider == "CPUExecutionProvider"
    monkeypatch.setattr(graph, "_agrees", lambda _graph: False)  # and one that does not
    assert graph.open_graph("auto") is None


# --- the benchmark ---


def test_latents_are_repeated_with_noise_only_where_there_are_too_few() -> None:
    latents = cells(100)
    assert {row.tobytes() for row in tiled(latents, 60, seed=0)} <= {row.tobytes() for row in latents}
    more = tiled(latents, 250, seed=0)
    assert more.shape == (250, 12) and len({row.tobytes() for row in more}) == 250


def test_the_benchmark_measures_and_sweeps(
    tmp_path: Path, real_latents: Latents, real_cells: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_latents(real_latents, tmp_path / "real.npz")
    common = ["--latents", str(tmp_path / "real.npz"), "--attributes", str(real_cells / "pbc" / "attributes.csv")]
    small = ["--cells", "600", "--side", "24", "--equal-cells", "150", "--equal-side", "12", "--repeats", "1"]
    assert main([*common, *small, "--minisom-steps", "20", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["speedup_over_minisom"] > 1 and figures["seconds"] > 0
    assert figures["minisom_steps"] == 500 * 24 * 24
    assert figures["qe"] > 0 and 0 <= figures["te"] <= 1
    assert figures["equal_terms"]["qe"] > 0 and figures["equal_terms"]["minisom_iterations"] >= 1
    assert figures["warm"]["within_3_nodes"] >= 0.95
    assert figures["mislabels"]["classes"]["found"] >= 0.6
    assert 0.4 < figures["svomen"]["map"]["value"] <= 1
    assert main([*common, "--cells", "600", "--sweep", "--scale", "0.08"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert rows[0]["setting"] == "latent space" and len(rows) == 1 + len(TABLE_9)
    assert [row["thesis_svomen"] for row in rows[1:-1]] == [68.1, 74.9, 67.6, 69.5, 71.1, 73.0, 75.0, 72.7, 71.9]
    assert all(row["svomen"]["value"] > 0.4 and row["qe"] > 0 for row in rows[1:])
    assert (
        main([*common, "--cells", "300", "--sweep", "--scale", "0.04", "--trainer", "minisom", "--share", "0.0002"])
        == 0
    )
    by_minisom = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert by_minisom[1]["iterations"] == 200 and by_minisom[2]["alpha"] == 0.25
