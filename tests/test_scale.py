"""The benchmark of a lab of a million cells, at a small size: it measures what it says, and the checks find no
fault."""

from __future__ import annotations

from pathlib import Path

from tests.benchmarks.scale import measure


def test_the_scale_benchmark_measures_a_sound_lab(tmp_path: Path) -> None:
    found = measure(tmp_path, cells=1000, queries=4, rate=100.0, images=5, seconds=0.5)
    assert found["cells"] == 1000
    assert found["check"]["ok"] and found["store_check"]["ok"]
    assert found["agent"]["first_answer_seconds"] > found["agent"]["ready_seconds"] > 0
    assert found["query"]["alone"]["queries"] == 4 and found["query"]["beside_ingest"]["queries"] > 0
    assert found["record"]["bulk_alone"]["cells"] > 0 and found["digests"]["images"] == 5
