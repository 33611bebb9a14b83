"""The map's benchmarks work, at a small size."""

from __future__ import annotations

from pathlib import Path

from labref.bundles.bundle import Bundle, starter_bundle
from tests.benchmarks import map as holding_up
from tests.benchmarks import map_optics, suspects


def test_most_changed_labels_are_among_the_first_suspects(real_cells: Path, starter: Bundle, tmp_path: Path) -> None:
    figures = suspects.measure(tmp_path, real_cells / "pbc", bundle=starter, cells=112, share=0.05, first=0.1, seeds=1)
    assert figures["classes"]["changed"] == 6
    assert figures["found"] >= 0.6
    assert figures["fine"]["labels"] > figures["classes"]["labels"]
    assert figures["classes"]["of_the_first"] >= 0.5


def test_ingest_and_queries_are_measured_while_a_map_is_trained(drawn_cells: Path, tmp_path: Path) -> None:
    figures = holding_up.measure(
        tmp_path, bundle_file=starter_bundle(), cells=200, files=6, rounds=1, queries=3, images=drawn_cells
    )
    assert figures["trainings"] >= 1
    assert figures["ingest_ratio"] > 0
    assert figures["queries"]["rest"] == figures["queries"]["training"] == 3
    assert figures["map"]["rows"] == 14


def test_one_map_is_compared_with_a_map_for_each_analyser(real_cells: Path, starter: Bundle, tmp_path: Path) -> None:
    figures = map_optics.measure(tmp_path, real_cells, bundle=starter, trees=("pbc", "bccd"), cells=70, seeds=1)
    for tree in ("pbc", "bccd"):
        assert figures["cells"][tree] == 70
        assert set(figures[tree]["agree"]) == set(figures[tree]["found"]) == {"one", "own"}
        assert figures[tree]["nodes"]["one"] > figures[tree]["nodes"]["own"]
        assert min(figures[tree]["agree"].values()) > 0.4
