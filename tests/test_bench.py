"""`labref bench`, on the real starter bundle: each way is measured, the best one written, and an agent takes it."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import psutil
import pytest
from typer.testing import CliRunner

from labref.bundles.bundle import Bundle
from labref.cli import app
from labref.config import load_config, set_values
from labref.cpus import usable_cpus
from labref.doctor import speed
from labref.errors import ConfigError
from labref.lab import Lab
from labref.operations.condition import Speed
from tests.labs import make_lab, running_agent


def made(cells: float | None, left: float | None, problem: str | None = None, threads: int = 1) -> Speed:
    return Speed(
        device="cpu",
        threads=threads,
        precision="full",
        priority="low",
        cells_a_second=cells,
        milliseconds_a_cell=None if cells is None else 1000 / cells,
        left=left,
        problem=problem,
    )


def test_the_best_is_the_fastest_that_leaves_others_their_share() -> None:
    fast, fair, slow, broken = made(20, 0.4), made(10, 0.9), made(5, 1.0), made(None, None, "no GPU")
    assert speed.best([broken, fast, fair, slow]) is fair
    assert speed.best([broken, fast, fair, slow], 0.3) is fast
    assert speed.best([broken, fast, made(30, 0.2)]) is fast  # none leaves enough: the one that leaves most
    assert speed.best([broken]) is None


def test_another_batch_has_to_be_faster_by_more_than_figures_vary() -> None:
    usual = made(10, 0.9)
    assert speed.of_best_batch(usual, [made(10.4, 0.9), made(None, None, "no memory")]) is usual
    assert speed.of_best_batch(usual, [made(14, 0.5)]) is usual  # leaves too little
    more = made(11, 0.9)
    assert speed.of_best_batch(usual, [made(10.7, 0.9), more]) is more
    tried = speed.other_batches(usual)
    assert {way.batch_size for way in tried} == {4, 8, 32} and {way.threads for way in tried} == {usual.threads}


@pytest.mark.parametrize("cpus", [1, 2, 6, 64])
def test_every_sensible_number_of_threads_is_a_way_and_cuda_only_where_it_is(
    cpus: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "usable_cpus", lambda: cpus)
    trunks = [SimpleNamespace(precision=name, admitted=name == "float16") for name in ("int8", "float16")]
    bundle = cast(Bundle, SimpleNamespace(manifest=SimpleNamespace(trunks=trunks)))
    monkeypatch.setattr(speed, "cuda_problem", lambda: "no NVIDIA driver on this computer")
    found = speed.ways(bundle)
    assert {way.device for way in found} == {"cpu"} and len(set(found)) == len(found)
    threads = {way.threads for way in found}
    assert {1, cpus} <= threads and max(threads) == cpus and min(threads) == 1
    assert {way.precision for way in found} == {"full"}  # its int8 trunk was not admitted
    monkeypatch.setattr(speed, "cuda_problem", lambda: None)
    more = [way for way in speed.ways(bundle) if way.device == "cuda"]
    assert {way.precision for way in more} == {"auto", "full"}


def test_this_computer_is_measured_and_the_best_settings_are_written_and_taken(
    tmp_path: Path, starter: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "export").mkdir()
    lab = make_lab(tmp_path / "lab", tmp_path / "export", starter)
    before = lab.config_file.read_text(encoding="utf-8")
    monkeypatch.setattr(speed, "ways", lambda bundle: [speed.Way("cpu", 1, "full", name) for name in ("normal", "low")])
    monkeypatch.setattr(speed, "other_batches", lambda best: [speed.Way("cpu", 1, "full", best.priority, 2)])
    monkeypatch.setattr(speed, "_GAIN", 0.01)  # the other batch is taken
    monkeypatch.setattr(speed, "best", lambda found, left: found[-1])
    done = CliRunner().invoke(
        app, ["bench", "--seconds", "0.2", "--leave", "0", "--write", "--json", "--lab", str(lab.folder)]
    )
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(row["priority"], row["batch_size"]) for row in rows] == [("normal", 16), ("low", 16), ("low", 2)]
    assert [row["best"] for row in rows] == [False, False, True]
    for row in rows:
        assert row["problem"] is None and row["trunk"] == "full" and 0 < row["left"] <= 1
        assert row["cells_a_second"] > 0.2 and row["milliseconds_a_cell"] < 5000
    config = load_config(lab.config_file)
    inference = config.inference
    assert (inference.device, inference.threads, inference.batch_size, config.agent.priority) == ("cpu", 1, 2, "low")
    assert config.inference.precision == "auto"  # this bundle has one trunk: nothing to say
    after = lab.config_file.read_text(encoding="utf-8")
    assert [line for line in before.splitlines() if line.startswith("#")] == [
        line for line in after.splitlines() if line.startswith("#")
    ]
    if os.name == "posix":
        assert lab.config_file.stat().st_mode & 0o777 == 0o600
    set_values(lab.config_file, {("agent", "cpus"): 1})
    with running_agent(Lab.open(lab.folder)) as running:
        pid = json.loads(lab.agent_file.read_text(encoding="utf-8"))["pid"]
        assert running is not None
        if sys.platform != "win32":
            assert psutil.Process(pid).nice() >= 10
        if hasattr(psutil.Process, "cpu_affinity"):
            for process in (psutil.Process(pid), *psutil.Process(pid).children()):
                assert len(process.cpu_affinity()) == 1


def test_a_way_that_cannot_be_run_says_why(tmp_path: Path, starter: Bundle) -> None:
    way = speed.Way("cuda", 1, "full", "normal")
    (tmp_path / "empty").mkdir()
    told = speed.measure(cast(Bundle, SimpleNamespace(folder=tmp_path / "empty")), way, 0.1)
    assert told.problem is not None and "empty" in told.problem and told.cells_a_second is None
    if speed.cuda_problem() is not None:
        told = speed.measure(starter, way, 0.1)
        assert told.problem is not None and speed.cuda_problem() in told.problem
    told = speed.measure(starter, speed.Way("cpu", usable_cpus(), "no such", "normal"), 0.1)
    assert told.problem is not None or told.trunk == "full"


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_settings_are_set_where_they_stand_and_all_else_stays(tmp_path: Path, newline: str) -> None:
    file = tmp_path / "labref.toml"
    text = (
        "# the lab's own words\n[inference]\n# threads = 0\ndevice = 'auto' # as found\n\n[watch]\nfolders = ['/e']\n"
    )
    file.write_bytes(text.replace("\n", newline).encode())
    set_values(file, {("inference", "device"): "cpu", ("inference", "threads"): 3, ("agent", "priority"): "low"})
    config = load_config(file)
    assert (config.inference.device, config.inference.threads, config.agent.priority) == ("cpu", 3, "low")
    kept = file.read_bytes().decode()
    for line in ("# the lab's own words", "# threads = 0", "# as found", "folders = ['/e']"):
        assert line in kept
    assert ("\r\n" in kept) == (newline == "\r\n") and "\r\r" not in kept


@pytest.mark.parametrize("text", ["[inference", "inference = 3", "\ufeff[a]\nb", "a.b = 1\n[a]\n[a]"])
def test_a_file_that_cannot_be_changed_is_left_as_it_is(tmp_path: Path, text: str) -> None:
    file = tmp_path / "labref.toml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"labref\.toml"):
        set_values(file, {("inference", "threads"): 3})
    assert file.read_text(encoding="utf-8") == text
    assert [one.name for one in tmp_path.iterdir()] == ["labref.toml"]
