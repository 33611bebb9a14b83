"""The demo: its cells, its analyser, and the whole of it as a person runs it."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from PIL import Image

from labref.cells.image import prepare
from labref.demo import show
from labref.demo.analyser import FolderSource, SyntheticSource, exports, put
from labref.demo.cells import LABELS, OPTICS, SIZE, draw_cell, encode_jpeg, make_slides
from labref.errors import AgentError, LabrefError
from labref.lab import Lab
from tests.labs import wait_until
from tests.pages import Browser
from tests.test_cli import labref


def rng(seed: int = 5) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("optics", OPTICS)
@pytest.mark.parametrize("label", LABELS)
def test_every_class_is_drawn_under_both_optics_with_a_stained_cell_in_its_middle(label: str, optics: str) -> None:
    for slide in make_slides(4, seed=2):
        picture = draw_cell(label, OPTICS[optics], slide, rng())
        assert picture.shape == (*SIZE, 3)
        assert picture.dtype == np.uint8
        # azure dyes absorb red: the cell is darker in red than the empty glass, which is most of what is bright
        red = picture[..., 0].astype(float)
        middle = np.percentile(red[160:204, 158:202], 25)
        assert middle < np.percentile(red, 90) - 25


@pytest.mark.parametrize("label", [name for name in LABELS if name != "platelet"])
def test_the_nucleus_of_a_drawn_cell_is_found_near_its_middle(label: str) -> None:
    for i, slide in enumerate(make_slides(4, seed=3)):
        cell = prepare(encode_jpeg(draw_cell(label, OPTICS[slide.optics], slide, rng(i))))
        assert cell.nucleus_found
        assert np.hypot(cell.centre[0] - SIZE[0] / 2, cell.centre[1] - SIZE[1] / 2) < 45


def test_the_same_seed_draws_the_same_cell_and_another_seed_another() -> None:
    slide = make_slides(1, seed=1)[0]
    optics = OPTICS[slide.optics]
    one, same, other = (draw_cell("monocyte", optics, slide, rng(seed)) for seed in (1, 1, 2))
    assert (one == same).all()
    assert (one != other).any()


def test_slides_differ_in_stain_and_come_from_both_optics() -> None:
    slides = make_slides(12, seed=1)
    assert len({s.name for s in slides}) == 12
    assert len({s.stain for s in slides}) == 12
    assert {s.optics for s in slides} == set(OPTICS)
    assert make_slides(12, seed=1) == slides


def test_a_class_that_cannot_be_drawn_is_refused_by_name() -> None:
    slide = make_slides(1)[0]
    with pytest.raises(ValueError, match="no cell 'smudge' can be drawn; the classes are basophil"):
        draw_cell("smudge", OPTICS[slide.optics], slide, rng())


def test_the_analyser_exports_cells_of_every_class_and_every_accident() -> None:
    files = list(exports(SyntheticSource(seed=4).take(48), seed=4))
    kinds = [f.kind for f in files]
    assert kinds.count("cell") + kinds.count("slow") == 48
    assert {"copy", "recapture", "truncated", "text", "slow"} <= set(kinds)
    paths = [f.path for f in files]
    assert len(set(paths)) == len(paths)
    signed = {p.parent.name for p in paths if p.parent.parent.name == "Signed slides"}
    assert len(signed) == 8
    assert any(p.parent.name == "Unsigned slides" for p in paths)
    by_digest: dict[str, list[str]] = {}
    for f in files:
        by_digest.setdefault(hashlib.sha256(f.data).hexdigest(), []).append(f.kind)
    twins = [group for group in by_digest.values() if len(group) > 1]
    assert len(twins) == kinds.count("copy")
    assert all("copy" in group for group in twins)


def test_a_slow_file_is_whole_in_the_end(tmp_path: Path) -> None:
    slow = next(f for f in exports(SyntheticSource(seed=4).take(8), seed=4) if f.kind == "slow")
    path = put(slow, tmp_path, pieces=4, pause_s=0.01)
    assert path.read_bytes() == slow.data
    assert path == tmp_path / slow.path


def class_folders(folder: Path, per_class: dict[str, int]) -> Path:
    slide = make_slides(1, seed=9)[0]
    for label, n in per_class.items():
        (folder / label).mkdir(parents=True)
        for i in range(n):
            cell = draw_cell("lymphocyte", OPTICS["warm"], slide, rng(i))
            (folder / label / f"{i}.jpg").write_bytes(encode_jpeg(cell))
    return folder


def test_real_images_are_sampled_evenly_over_class_folders(tmp_path: Path) -> None:
    source = FolderSource(class_folders(tmp_path, {"a": 9, "b": 2, "c": 9}), seed=1)
    taken = [s.label for s in source.take(9)]
    assert source.found == 20
    assert (taken.count("a") + taken.count("c"), taken.count("b")) == (7, 2)
    assert len(list(source.take(100))) == 11


def test_a_flat_folder_of_images_has_no_classes(tmp_path: Path) -> None:
    class_folders(tmp_path, {"x": 20})
    specimens = list(FolderSource(tmp_path / "x", seed=1).take(3))
    assert [s.label for s in specimens] == [None] * 3
    paths = [f.path for f in exports(iter(specimens), seed=1)]
    assert all(p.parent.name == "Unsigned slides" for p in paths)


def test_a_folder_without_images_is_refused_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("none here")
    with pytest.raises(LabrefError, match=r"^0 images .* without --images the demo draws its own"):
        FolderSource(tmp_path, seed=1)


def run_demo(*arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "labref", "demo", *map(str, arguments)]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8", **variables}
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=300, env=environment)


def test_the_demo_runs_to_its_end_and_says_what_to_do_next(tmp_path: Path) -> None:
    folder = tmp_path / "a demo"
    # a real lab's variables must not make the demo's agent watch a real lab's folder
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "cell.jpg").write_bytes(b"a patient's")
    real = {"LABREF_WATCH__FOLDERS": json.dumps([str(tmp_path / "real")]), "LABREF_LAB": str(tmp_path / "no lab")}
    done = run_demo("--keep", folder, "--cells", 20, **real)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert "inference on the" in done.stdout
    assert "stored" in done.stdout
    assert re.search(r"^ +2  rejected$", done.stdout, re.MULTILINE)
    assert re.search(r"notes.jpg: not an image", done.stdout)
    assert re.search(r"truncated: the image ends before it is complete", done.stdout)
    assert f"labref query '{folder}" in done.stdout or f'labref query "{folder}' in done.stdout
    pictures = sorted((folder / "pictures").glob("*.png"))
    assert len(pictures) == 8
    with Image.open(io.BytesIO(pictures[0].read_bytes())) as picture:
        assert picture.width == 976
    # the young lab's answers show cells of the bundle's atlas, which say where they are from
    central = int(re.search(r"^(\d+) of these references are central", done.stdout, re.MULTILINE)[1])
    query = min((folder / "queries").iterdir())
    stdout, _ = labref("query", str(query), "--lab", str(folder / "lab"), "--json")
    references = json.loads(stdout)["references"]
    sources = {one["source"] for one in references if one["origin"] == "central"}
    assert sources == {"cells drawn for labref's demo"}
    assert sum(one["origin"] == "central" for one in references) <= central


def test_the_demo_uses_real_images_and_opens_the_pages_until_it_is_ended(real_cells: Path, tmp_path: Path) -> None:
    # a browser that only writes down what it is to open
    opened, browser = tmp_path / "opened.txt", tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {opened}.part && mv {opened}.part {opened}\n')
    browser.chmod(0o755)
    words = ["--keep", tmp_path / "demo", "--images", real_cells / "pbc", "--cells", 40, "--open"]
    command = [sys.executable, "-m", "labref", "demo", *map(str, words)]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8", "BROWSER": str(browser)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as demo:
        try:
            wait_until(lambda: opened.exists() or demo.poll() is not None)
            assert demo.poll() is None, demo.communicate()[0]
            link = re.fullmatch(r"http://127\.0\.0\.1:(\d+)/sign-in#(\S+)\s*", opened.read_text())
            assert link is not None
            visitor = Browser(int(link[1]))
            assert visitor.sign_in(link[2]).status == 303
            assert visitor.get("/").status == 200
        finally:
            demo.send_signal(signal.SIGINT)
            said = demo.communicate(timeout=120)[0]
    assert demo.returncode == 0, said
    assert "real cells from" in said
    assert "central" not in said  # drawn cells beside real ones would teach nothing
    share = int(said.split("On average ")[1].split("%")[0])
    assert share > 50


def test_the_demo_leaves_a_folder_with_something_in_it_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    done = run_demo("--keep", tmp_path)
    assert done.returncode == 1
    assert "is not empty" in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("stuck_after", [None, 40])
def test_the_demo_waits_as_long_as_files_are_taken_in_and_says_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stuck_after: int | None
) -> None:
    """On a computer that takes a minute for each file; and on one whose agent does nothing more."""
    files = {str(tmp_path / f"{number}.jpg"): "cell" for number in range(83)}
    now = [1000.0]

    def ledger_rows(_: Lab) -> list[dict[str, str]]:
        done = int((now[0] - 1000) // 60)
        return [{"path": path} for path in list(files)[: done if stuck_after is None else min(done, stuck_after)]]

    monkeypatch.setattr(show, "ledger_rows", ledger_rows)
    monkeypatch.setattr(
        show, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=lambda seconds: now.append(now.pop() + seconds))
    )
    said: list[str] = []
    lab = cast("Lab", SimpleNamespace(folder=tmp_path))
    if stuck_after is None:
        show._wait_for_outcomes(lab, files, lambda: None, said.append)
        assert now[0] == pytest.approx(1000 + 83 * 60)
    else:
        with pytest.raises(AgentError, match="43 of 83 files have no outcome yet, and for 180 s none got one"):
            show._wait_for_outcomes(lab, files, lambda: None, said.append)
        assert now[0] < 1000 + 60 * stuck_after + 200
    assert "  20 of 83 files are taken in ..." in said

    def ended() -> None:
        raise AgentError("the agent ended by itself")

    with pytest.raises(AgentError, match="by itself"):
        show._wait_for_outcomes(lab, files, ended, said.append)
