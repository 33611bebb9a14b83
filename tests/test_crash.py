"""Killed anywhere, disk full, disk broken, folder read-only, clock wrong: nothing is lost, nothing is there twice."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from labref import failpoints
from labref.bundles.bundle import Bundle
from labref.errors import AgentError, LabError, LabrefError, StoreError
from labref.failpoints import failpoint
from labref.lab import Lab
from labref.store.duckdb import rows
from labref.tasks.backup import Backup
from labref.web import desk
from labref.web.desk import status
from tests.benchmarks.exports import REPOSITORY
from tests.labs import ledger, make_lab, once, running_agent, wait_until


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    failpoints.disarm()


@pytest.fixture
def export(tmp_path: Path, drawn_cells: Path) -> Path:
    """Eight cells and a file that is no image."""
    folder = tmp_path / "export"
    folder.mkdir()
    for number, path in enumerate(sorted(drawn_cells.rglob("*.jpg"))[::4]):
        shutil.copy(path, folder / f"{number}.jpg")
    (folder / "text.jpg").write_bytes(b"no image at all")
    return folder


@pytest.fixture
def lab(tmp_path: Path, export: Path, starter: Bundle) -> Lab:
    return make_lab(tmp_path / "lab", export, starter)


def is_whole(lab: Lab, cells: int) -> bool:
    rows = list(desk.run(lab, "ledger.check"))
    assert rows[-1]["ok"], rows
    return bool(rows[0]["summary"]["cells"] == cells)


# failpoints


def test_a_failpoint_does_nothing_by_itself() -> None:
    failpoint("store.commit")


def test_a_failpoint_fails_the_nth_time_and_only_then() -> None:
    failpoints.arm("a.write=enospc@2, b.*=eio@3")
    failpoint("a.write")
    with pytest.raises(OSError) as caught:
        failpoint("a.write")
    assert caught.value.errno == errno.ENOSPC
    failpoint("a.write")
    failpoint("b.write")
    failpoint("b.fsync")
    failpoint("b.renamed", may_fail=False)  # does not count: the disk cannot fail it there
    with pytest.raises(OSError) as caught:
        failpoint("b.rename")
    assert caught.value.errno == errno.EIO


def test_points_that_were_met_are_told(tmp_path: Path) -> None:
    failpoints.arm("", str(tmp_path / "met"))
    failpoint("a.write")
    failpoint("a.renamed", may_fail=False)
    assert (tmp_path / "met").read_text().split() == ["a.write", "a.renamed"]


@pytest.mark.parametrize("plan", ["a.write", "a.write=explode", "=kill", "a.write=kill@0", "a=delay:x"])
def test_a_plan_that_says_nothing_is_refused(plan: str) -> None:
    with pytest.raises(ValueError, match="LABREF_FAILPOINTS"):
        failpoints.arm(plan)


def test_a_process_is_killed_where_it_was_asked_to(tmp_path: Path) -> None:
    code = "from labref.failpoints import failpoint; failpoint('x.y'); print('after', flush=True); failpoint('x.y'); print('never')"
    environment = os.environ | {"LABREF_FAILPOINTS": "x.y=kill@2"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd=REPOSITORY, check=False
    )
    assert (done.returncode, done.stdout.split()) == (failpoints.KILLED, ["after"])


# rounds of the benchmark


def test_a_lab_outlives_rounds_of_kills_and_failures() -> None:
    """Eight rounds of what the benchmark does thousands of times."""
    # started, not forked from another process of the tests: it has mounts of its own, and so have its children
    words = ["--json", "--rounds", "8", "--cells", "16", "--agent-rounds", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.crash", *words],
        capture_output=True, text=True, cwd=REPOSITORY, check=False,
    )  # fmt: skip
    assert done.stdout, done.stderr
    found = json.loads(done.stdout)
    assert found["faults"] == []
    assert found["ok"] and done.returncode == 0
    assert found["rounds"] == 8 and found["agent_rounds"] == 1
    assert found["ended"].get("killed", 0) > 0 and found["ended"].get("failed and said so", 0) > 0
    if found["disks"] == "ext4":
        assert found["harm"]["power cut"] and found["harm"]["disk full in truth"]
    else:
        assert found["disks"].startswith("none of its own: ")


DISK = """
import json, os, pathlib, random, sys
from tests.benchmarks.small_disks import SmallDisk, mount_for_oneself
folder = pathlib.Path(sys.argv[1])
found = {"why_not": mount_for_oneself()}
if found["why_not"] is None:
    place = folder / "place"
    place.mkdir()
    disk = SmallDisk(folder / "image", place, megabytes=32)
    kept = place / "kept"
    with kept.open("wb") as file:
        file.write(b"flushed")
        file.flush()
        os.fsync(file.fileno())
    os.sync()
    (place / "lost").write_bytes(b"never flushed")
    with kept.open("ab") as file:
        file.write(b" and more" * 5000)
    disk.write_out_some(random.Random(1))
    disk.cut_power()
    found["names"] = sorted(path.name for path in place.iterdir() if path.is_file())
    found["kept"] = kept.read_bytes()[:7].decode()
    found["size"] = kept.stat().st_size
    with disk.full(100_000):
        written = 0
        try:
            with (place / "large").open("wb", buffering=0) as file:
                while written < 10_000_000:
                    written += file.write(bytes(4096))
        except OSError as error:
            found["error"] = error.errno
        found["written"] = written
    (place / "after").write_bytes(bytes(1_000_000))
    disk.remove()
    found["left"] = [path.name for path in place.iterdir()]
print(json.dumps(found))
"""


def test_a_small_disk_really_fills_up_and_a_power_cut_leaves_what_was_flushed(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", DISK, str(tmp_path)], capture_output=True, text=True, cwd=REPOSITORY, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    if found["why_not"] is not None:
        pytest.skip(found["why_not"])
    assert found["names"] == ["kept"] and found["kept"] == "flushed"
    assert found["size"] < 45_000, "not all of what was never flushed"
    assert found["error"] == errno.ENOSPC and 0 < found["written"] < 400_000
    assert found["left"] == [], "it is mounted no more, and what was on it is not in the folder"
    assert not any(str(tmp_path) in line for line in Path("/proc/mounts").read_text().splitlines())


# disks


@pytest.mark.parametrize(
    "point", ["images.write", "images.fsync", "images.rename", "images.sync", "store.begin", "store.commit"]
)
def test_a_pass_on_a_full_disk_says_so_and_the_next_finishes_it(lab: Lab, point: str) -> None:
    failpoints.arm(f"{point}=enospc@1")
    with pytest.raises(AgentError, match=r"(?i)nothing more can be stored.*no space left"):
        once(lab)
    failpoints.disarm()
    once(lab)
    assert is_whole(lab, 8)
    assert len(ledger(lab)) == 9


@pytest.mark.parametrize("point", ["label.commit", "review.settle", "store.commit"])
def test_half_a_decision_is_never_written_nor_taken_back(lab: Lab, point: str) -> None:
    once(lab)

    def waiting() -> list[dict[str, Any]]:
        return list(desk.run(lab, "review.cells", queue="doubtful", below=1.0, limit=50))

    def told() -> dict[str, Any]:
        return next(desk.run(lab, "label.history", cell=cell))

    def failing(name: str, point: str, **parameters: Any) -> None:
        failpoints.arm(f"{point}=eio@1")
        with pytest.raises(LabrefError):
            list(desk.run(lab, name, cell=cell, queue="doubtful", who="A", **parameters))
        failpoints.disarm()

    queue = waiting()
    cell, label = queue[0]["cell_id"], next(row["label"] for row in queue if row["label"] != queue[0]["label"])
    before = told()
    failing("review.decide", point, label=label)
    assert (waiting(), told()) == (queue, before)
    list(desk.run(lab, "review.decide", cell=cell, queue="doubtful", label=label, who="A"))
    decided = told()
    assert decided["label"] == label
    failing("review.undo", "label.undo" if point == "label.commit" else point)
    assert told() == decided
    list(desk.run(lab, "review.undo", cell=cell, queue="doubtful", who="A"))
    assert waiting() == queue


def test_an_agent_waits_while_its_disk_is_broken_and_goes_on(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = "images.write=eio@2,images.sync=enospc@1,store.commit=enospc@2"
    monkeypatch.setenv("LABREF_FAILPOINTS", plan)
    with running_agent(lab, passed=("LABREF_FAILPOINTS",)):
        wait_until(lambda: len(ledger(lab)) == 9)
        assert status(lab)["agent"]["problem"] is None
    assert is_whole(lab, 8)


def test_a_full_disk_stops_a_backup_and_leaves_the_one_before(lab: Lab, tmp_path: Path) -> None:
    once(lab)
    target = tmp_path / "backup"
    list(desk.run(lab, "store.backup", target=str(target)))
    before = (target / "backup.json").read_bytes()
    with lab.config_file.open("a", encoding="utf-8") as file:
        file.write("# a later thought\n")
    for point in ("backup.write", "backup.fsync", "backup.rename", "backup.copied"):
        failpoints.arm(f"{point}=enospc@1")
        with pytest.raises(LabrefError, match=r"(?i)no space left"):
            list(desk.run(lab, "store.backup", target=str(target)))
        failpoints.disarm()
        assert (target / "backup.json").read_bytes() == before
        with Backup.open(target) as backup:
            assert list(backup.verify()) == [], "the one before is whole"
    list(desk.run(lab, "store.backup", target=str(target)))
    assert not [path for path in target.rglob("*") if path.name.endswith(".part") or "labref-backup" in path.name]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MB, where this system lets a test mount one."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = shutil.which("mount")
    command = [mount or "mount", "-t", "tmpfs", "-o", "size=64m", "labref-test", str(folder)]
    if sys.platform != "linux" or mount is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("only root of a Linux that allows it can mount a small file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_is_full_in_truth_loses_nothing(small_disk: Path, export: Path, starter: Bundle) -> None:
    lab = make_lab(small_disk / "lab", export, starter)
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(bytes(4096))
    with pytest.raises((AgentError, LabError, StoreError)):
        once(lab)
    filler.unlink()
    once(lab)
    assert is_whole(lab, 8)


@pytest.fixture
def read_only(lab: Lab) -> Iterator[Lab]:
    """The lab, its folder read-only: for root by a mount, for others by its rights."""
    once(lab)
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        bind = ["mount", "--bind", str(lab.folder), str(lab.folder)]
        if shutil.which("mount") is None or subprocess.run(bind, capture_output=True, check=False).returncode:
            pytest.skip("root may write everywhere here")
        subprocess.run(["mount", "-o", "remount,ro,bind", str(lab.folder)], check=True)
        yield lab
        subprocess.run(["umount", "-l", str(lab.folder)], check=True)
        return
    if sys.platform == "win32":
        pytest.skip("Windows does not keep files from being made in a folder that is read-only")
    folders = [lab.folder, *(path for path in lab.folder.rglob("*") if path.is_dir())]
    for path in (lab.store_file, *folders):
        path.chmod(path.stat().st_mode & ~0o222)
    yield lab
    for path in (lab.store_file, *folders):
        path.chmod(path.stat().st_mode | 0o200)


def test_a_read_only_lab_is_said_to_be_so_and_stays_whole(read_only: Lab, export: Path, drawn_cells: Path) -> None:
    shutil.copy(sorted(drawn_cells.rglob("*.jpg"))[1], export / "new.jpg")
    with pytest.raises(LabrefError, match=r"rights|cannot be (?:written|opened)|access|read-only|Read-only"):
        once(read_only)


def test_after_it_was_read_only_a_lab_goes_on(
    lab: Lab, export: Path, drawn_cells: Path, request: pytest.FixtureRequest
) -> None:
    once(lab)
    before = ledger(lab)
    store = lab.store_file.read_bytes()
    failpoints.arm("store.begin=eio@1")
    shutil.copy(sorted(drawn_cells.rglob("*.jpg"))[1], export / "new.jpg")
    with pytest.raises(AgentError):
        once(lab)
    failpoints.disarm()
    assert ledger(lab) == before
    assert len(store) == lab.store_file.stat().st_size
    once(lab)
    assert is_whole(lab, 9)


# shares and clocks


def test_files_that_are_gone_keep_their_outcome_and_come_back_unchanged(lab: Lab, export: Path) -> None:
    once(lab)
    before = ledger(lab)
    export.rename(export.with_name("away"))
    export.mkdir()  # the mount point of a share that is not mounted: empty, and not an error
    assert once(lab).found == 0
    assert ledger(lab) == before
    export.rmdir()
    export.with_name("away").rename(export)
    assert once(lab).unchanged == 9
    assert ledger(lab) == before and is_whole(lab, 8)


def test_a_clock_set_back_a_day_loses_and_repeats_nothing(
    lab: Lab, export: Path, drawn_cells: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    once(lab)
    before = ledger(lab)
    day = timedelta(days=1)
    right, now = time.time, rows.now

    def yesterday() -> datetime:
        return now() - day

    monkeypatch.setattr(time, "time", lambda: right() - day.total_seconds())
    for module in [module for name, module in sys.modules.items() if name.startswith("labref.store")]:
        if getattr(module, "now", None) is now:
            monkeypatch.setattr(module, "now", yesterday)
    shutil.copy(sorted(drawn_cells.rglob("*.jpg"))[1], export / "new.jpg")
    os.utime(export / "new.jpg", (right() - day.total_seconds(), right() - day.total_seconds()))
    summary = once(lab)
    assert (summary.embedded, summary.unchanged) == (1, 9)
    # a file whose own time lies in what is now the future
    os.utime(export / "0.jpg", (right() + 60, right() + 60))
    once(lab)
    after = ledger(lab)
    assert {name: row["cell_id"] for name, row in after.items() if name in before} == {
        name: row["cell_id"] for name, row in before.items()
    }
    monkeypatch.undo()
    assert once(lab).embedded == 0
    with closing(lab.open_store()) as store:
        assert store.history(str(export / "0.jpg")) == []
    assert is_whole(lab, 9)
