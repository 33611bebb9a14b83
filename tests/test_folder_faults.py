"""Faults of folders, files and their names: each file has its outcome or is named, and none stops the others."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import shutil
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import duckdb
import pytest
import structlog
from rich.console import Console
from typer.testing import CliRunner

from labref.agent import pipeline, reader, run
from labref.agent.pipeline import Pipeline, Settled
from labref.agent.reader import Prepared, Refused, read_cell
from labref.agent.service import _Agent
from labref.bundles.bundle import Bundle
from labref.cells.quality import judge
from labref.cli import app
from labref.config import LayoutPattern, WatchConfig
from labref.errors import AgentError, LabError, LayoutError, StoreError, UnstorableError
from labref.export.layout import Layout, PathMeaning
from labref.export.paths import path_to_text
from labref.export.roots import Roots
from labref.export.scan import GONE, UNREACHABLE, Candidate, ScanReport, Signature, left_alone, look, scan
from labref.export.watch import Watcher
from labref.lab import Lab
from labref.lab.log import open_log
from labref.lab.mounts import is_unmounted, remember_mounts
from labref.pictures import lettering
from labref.printing import printable, unprintable
from labref.store import Rejected, SeenAgain, Store
from labref.tasks.context import Context
from labref.web import desk
from tests.labs import ledger, make_lab, once, running_agent, wait_until
from tests.stores import BUNDLE, new_cell, new_store
from tests.test_bad_input import without_rights_beyond_the_file_modes

FEW = 6


@pytest.fixture
def export(tmp_path: Path, drawn_cells: Path) -> Path:
    """A flat folder of a few drawn cells, `0.jpg` and so on."""
    folder = tmp_path / "export"
    folder.mkdir()
    for number, path in enumerate(sorted(drawn_cells.rglob("*.jpg"))[:FEW]):
        shutil.copy(path, folder / f"{number}.jpg")
    return folder


@pytest.fixture
def lab(tmp_path: Path, export: Path, starter: Bundle) -> Lab:
    return make_lab(tmp_path / "lab", export, starter)


def faults(lab: Lab) -> dict[str, list[str]]:
    """What `labref ledger --check` finds: examples by kind of fault."""
    return {row["fault"]: row["examples"] for row in desk.run(lab, "ledger.check") if "fault" in row}


# one row never stops the lab


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder in memory, where files can have any time."""
    if not os.access("/dev/shm", os.W_OK):
        pytest.skip("no file system in memory here")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


def test_a_file_of_any_time_is_stored_with_the_others(
    memory: Path, tmp_path: Path, export: Path, starter: Bundle
) -> None:
    shutil.copytree(export, memory / "export")
    seconds = (-11_644_473_600, 32_503_680_000, -(2**62), 2**62, -1)  # 1601, the year 3000, the limits, 1969
    for number, second in enumerate(seconds):
        os.utime(memory / "export" / f"{number}.jpg", (second, second))
    lab = make_lab(tmp_path / "lab", memory / "export", starter)
    summary = once(lab)
    assert (summary.stored, summary.rejected) == (FEW, 0)
    assert faults(lab) == {}
    assert once(lab).unchanged == FEW, "what is stored is what is seen again"
    assert faults(lab) == {}
    with lab.open_store() as store:
        cells = {Path(cell.path).name: cell for cell in store.cells(store_ids(store)).values()}
    assert cells["4.jpg"].captured_at == datetime(1969, 12, 31, 23, 59, 59, tzinfo=UTC)
    assert cells["0.jpg"].captured_at is not None and cells["0.jpg"].captured_at.year == 1677
    assert cells["1.jpg"].captured_at is not None and cells["1.jpg"].captured_at.year == 2262


def store_ids(store: Store) -> list[str]:
    return [row.cell_id for row in store.ledger() if row.cell_id is not None]


def test_a_file_that_is_no_image_has_its_outcome_however_slow_the_reader_is(
    lab: Lab, export: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is given back, and offered again before the thread that read it goes on."""
    for path in export.iterdir():
        path.unlink()
    (export / "bad.jpg").write_bytes(b"no image")
    done = Pipeline._done

    def late(self: Pipeline, *candidates: Candidate) -> None:
        time.sleep(0.8)
        done(self, *candidates)

    monkeypatch.setattr(Pipeline, "_done", late)
    assert once(lab).rejected == 1


def test_a_pass_loses_no_file_where_another_work_of_the_process_ends(lab: Lab) -> None:
    """Whoever ends gives up all pictures in work; the pass goes on and has its own decoded again."""
    ended, pictures = threading.Event(), 0

    def end_others() -> None:
        nonlocal pictures
        while not ended.wait(0.005) and pictures < 4:
            pictures += bool(lab.decoder._busy)
            lab.decoder.leave_off()

    ending = threading.Thread(target=end_others)
    ending.start()
    summary = once(lab)
    ended.set()
    ending.join()
    assert pictures
    assert (summary.found, summary.stored) == (FEW, FEW)


def test_a_file_that_is_deleted_while_it_is_read_has_its_outcome(
    lab: Lab, export: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deleted(path: str, most: int) -> Any:
        Path(path).unlink()
        return None, Signature(1, 1, 1)  # what was read is not what was there before

    read = reader._read_whole
    monkeypatch.setattr(
        reader, "_read_whole", lambda path, most: (deleted if path.endswith("0.jpg") else read)(path, most)
    )
    summary = once(lab)
    assert (summary.found, summary.stored, summary.vanished) == (FEW, FEW - 1, 1)
    assert ledger(lab)["0.jpg"]["reason"] == GONE


def test_a_pass_finds_a_file_again_that_came_to_no_outcome_and_says_where_one_stays_so(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, lost = Pipeline._read, 1

    def losing(self: Pipeline, candidate: Candidate) -> Any:
        nonlocal lost
        if candidate.path.endswith(("0.jpg", "new.jpg")) and lost:
            lost -= 1
            return None
        return real(self, candidate)

    monkeypatch.setattr(Pipeline, "_read", losing)
    summary = once(lab)
    assert (summary.found, summary.stored, summary.unchanged) == (FEW, FEW, 0)
    shutil.copy(lab.watched[0] / "1.jpg", lab.watched[0] / "new.jpg")
    lost = 99
    with pytest.raises(AgentError, match="1 of the files found came to no outcome"):
        once(lab)
    lost = 0
    assert once(lab).duplicate == 1


def test_a_store_that_cannot_be_read_for_a_moment_ends_no_agent_and_rejects_no_file(
    lab: Lab, export: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ledger at the first scan, the housekeepers, the question whether a file is stored: each fails twice."""
    for number in range(2, FEW):
        (export / f"{number}.jpg").unlink()
    left = {"known_files": 2, "has_digest": 2, "counts": 2}
    told: list[str] = []

    def failing(name: str) -> Callable[..., Any]:
        real = getattr(Store, name)

        def read(self: Store, *arguments: Any, **options: Any) -> Any:
            if serving and left[name]:
                left[name] -= 1
                raise StoreError(f"{name} cannot be read") from OSError()
            return real(self, *arguments, **options)

        return read

    def housekeep(context: Context) -> None:
        serving.append(True)
        assert context.agent_status is not None
        agent = context.agent_status.__self__  # type: ignore[attr-defined]
        told.append(str(agent._problem()))
        context.store.counts()
        if context.store.has_digest("0" * 64) is None and len(list(context.store.ledger())) == 2:
            agent.stop()

    serving: list[bool] = []
    for name in left:
        monkeypatch.setattr(Store, name, failing(name))
    monkeypatch.setattr("labref.agent.housekeeping.housekeep", housekeep)
    monkeypatch.setattr("labref.agent.housekeeping.SECONDS", 0.1)
    monkeypatch.setattr("labref.agent.service._STORE_AGAIN_SECONDS", 0.1)
    summary = run(lab, console=Console(file=io.StringIO()))
    assert (summary.stored + summary.duplicate + summary.possible_duplicate, summary.rejected) == (2, 0)
    assert not any(left.values()) and "known_files cannot be read" in told
    assert "the store cannot be read" in lab.log_file.read_text()


def spoil(changes: dict[str, dict[str, Any]]) -> Callable[..., Any]:
    """Reads cells, and gives those of some files values that no store can keep."""

    def read(candidate: Any, **how: Any) -> Any:
        made = reader.read_cell(candidate, **how)
        wrong = changes.get(Path(candidate.path).name)
        return replace(made, **wrong) if wrong is not None and isinstance(made, Prepared) else made

    return read


UNSTORABLE: dict[str, dict[str, Any]] = {
    "1.jpg": {"width": -(2**40)},  # the database refuses it
    "2.jpg": {"captured_at": datetime(2024, 1, 1)},  # labref does
    "3.jpg": {"width": "wide"},
    "4.jpg": {"height": 2**40},
}


def test_a_row_that_cannot_be_stored_is_rejected_alone(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "read_cell", spoil(UNSTORABLE))
    summary = once(lab)
    assert (summary.stored, summary.rejected, summary.found) == (FEW - 4, 4, FEW)
    rows = ledger(lab)
    for name in UNSTORABLE:
        assert rows[name]["outcome"] == "rejected"
        assert rows[name]["reason"].startswith("the store cannot keep it: "), rows[name]["reason"]
    assert "no time zone" in rows["2.jpg"]["reason"]
    log = lab.log_file.read_text(encoding="utf-8")
    assert log.count("a file could not be stored") == 4
    assert "no time zone" not in log, "what quotes a row is not logged"
    again = once(lab)
    assert (again.unchanged, again.rejected) == (FEW, 0), "the same rejection is not written again"
    monkeypatch.undo()
    assert once(lab).stored == 4, "they are tried again"
    assert "image_missing" not in faults(lab)


def test_a_rejection_that_cannot_be_stored_is_left_to_the_check(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Store.record

    def record(store: Store, batch: Any, **how: Any) -> Any:
        if any(Path(item.path).name == "0.jpg" for item in batch):
            raise UnstorableError("the store cannot keep it: whatever it is")
        return real(store, batch, **how)

    monkeypatch.setattr(Store, "record", record)
    with pytest.raises(AgentError, match="1 of the files found came to no outcome"):
        once(lab)
    assert sum(row["outcome"] == "stored" for row in ledger(lab).values()) == FEW - 1
    assert [Path(path).name for path in faults(lab)["file_without_outcome"]] == ["0.jpg"]


@pytest.mark.parametrize(
    ("cell", "why"),
    [
        (new_cell(1, width=2**64), "Conversion"),
        (new_cell(1, height=2**31), "Conversion"),
        (new_cell(1, captured_at=datetime(2024, 1, 1)), "no time zone"),
        (new_cell(1, label_source="an oracle"), "an oracle"),
        (new_cell(1, digest="00" * 32), "not named after its digest"),
    ],
)
def test_the_store_says_that_a_row_is_at_fault_and_not_the_disk(tmp_path: Path, cell: Any, why: str) -> None:
    with new_store(tmp_path) as store:
        with pytest.raises(UnstorableError, match=why):
            store.record([new_cell(0), cell], bundle=BUNDLE)
        assert store.counts().files == 0
        store.record([new_cell(0)], bundle=BUNDLE)


def test_a_full_disk_is_no_row_s_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with new_store(tmp_path) as store:
        monkeypatch.setattr("labref.store.store.write", full)
        with pytest.raises(StoreError) as caught:
            store.record([new_cell(0)], bundle=BUNDLE)
        assert not isinstance(caught.value, UnstorableError)


@pytest.mark.parametrize("number", [-(2**63) - 1, 2**63, -(2**80), 2**80])
def test_sizes_and_times_outside_64_bits_are_brought_to_the_limits(tmp_path: Path, number: int) -> None:
    limit = -(2**63) if number < 0 else 2**63 - 1
    with new_store(tmp_path) as store:
        store.record(
            [new_cell(0, size_bytes=number, mtime_ns=number), Rejected("/export/x.jpg", number, number, "no image")],
            bundle=BUNDLE,
        )
        states = store.known_files()
        assert {(state.size_bytes, state.mtime_ns) for state in states.values()} == {(limit, limit)}
    seen = Signature.of(
        os.stat_result((0o100644, 1, 1, 1, 0, 0, 5, 0, 0, 0), {"st_mtime_ns": number, "st_ctime_ns": number})
    )
    assert (seen.mtime_ns, seen.ctime_ns) == (limit, limit)


# only what is certainly gone counts as gone


def scanned(*roots: Path, **how: Any) -> tuple[dict[str, Candidate], ScanReport]:
    """What a scan finds: candidates by path below the first root, and its report."""
    report = ScanReport()
    how = {"extensions": (".jpg",), "excluded": ()} | how
    found = list(scan(roots, report=report, **how))
    named = {Path(os.path.relpath(candidate.path, roots[0])).as_posix(): candidate for candidate in found}
    assert len(named) == len(found), "a file was found twice"
    return named, report


def refuse(monkeypatch: pytest.MonkeyPatch, below: Path, number: int, *calls: str) -> None:
    """Let system calls on what lies below a folder fail with this error number, as a share or a disk does."""
    for name in calls:
        real = getattr(os, name)

        def call(path: Any = ".", *rest: Any, real: Any = real, **named: Any) -> Any:
            if isinstance(path, str | Path) and str(path).startswith(str(below) + os.sep):
                raise OSError(number, os.strerror(number), path)
            return real(path, *rest, **named)

        monkeypatch.setattr(os, name, call)


POSIX = pytest.mark.skipif(os.name == "nt", reason="permission bits, and paths of any length, are POSIX' own")


@POSIX
def test_a_folder_that_may_be_listed_but_not_entered_hides_nothing(lab: Lab, export: Path) -> None:
    (export / "shut" / "deeper").mkdir(parents=True)
    (export / "0.jpg").rename(export / "shut" / "0.jpg")
    (export / "1.jpg").rename(export / "shut" / "deeper" / "1.jpg")
    (export / "shut").chmod(0o444)
    try:
        summary, found = without_rights_beyond_the_file_modes(lambda: (once_and_fail(lab), faults(lab)))
    finally:
        (export / "shut").chmod(0o755)
    assert (summary["stored"], summary["rejected"]) == (FEW - 2, 1)
    assert summary["unreachable"] == [str(export / "shut" / "deeper")]
    assert found["folder_unreadable"] == [str(export / "shut" / "deeper")]
    assert ledger(lab)["shut/0.jpg"]["reason"] == "no permission to read it; give the agent's user read access"
    assert once(lab).stored == 2, "they are taken in as soon as they can be"
    assert faults(lab) == {}


def once_and_fail(lab: Lab) -> dict[str, Any]:
    """One pass that ends with an error for its unreadable folders; its summary."""
    said = io.StringIO()
    with pytest.raises(AgentError, match="folders could not be read"), contextlib.redirect_stdout(said):
        run(lab, once=True, json=True)
    summary: dict[str, Any] = json.loads(said.getvalue())
    return summary


@POSIX
def test_paths_longer_than_the_system_takes_have_an_outcome(lab: Lab, export: Path) -> None:
    cell = (export / "0.jpg").read_bytes()
    part = "n" * 250
    inside = os.open(export, os.O_RDONLY)
    length = len(str(export))
    deep: list[int] = [inside]
    while length < 4096:
        if length + 251 + 6 < 4096 <= length + 251 + 200:
            with open(os.open("m" * 196 + ".jpg", os.O_CREAT | os.O_WRONLY, dir_fd=deep[-1]), "wb") as file:  # noqa: PTH123
                file.write(cell)
        os.mkdir(part, dir_fd=deep[-1])
        deep.append(os.open(part, os.O_RDONLY, dir_fd=deep[-1]))
        length += 251
        for name in ("a.jpg", "m" * 196 + ".jpg"):
            with open(os.open(name, os.O_CREAT | os.O_WRONLY, dir_fd=deep[-1]), "wb") as file:  # noqa: PTH123
                file.write(cell)
    try:
        named, report = scanned(export)
        everything = 2 * (len(deep) - 1) + FEW
        assert len(named) == everything - 2, "all but those of the one folder that cannot be listed"
        assert len(report.unreadable) == 1
        refused = [candidate.refusal for candidate in named.values() if candidate.refusal]
        assert all(str(why).startswith("its path is longer than this system takes (4") for why in refused)
        assert len(faults(lab)["folder_unreadable"]) == 1
    finally:
        for number in range(len(deep) - 1, 0, -1):
            for name in os.listdir(deep[number]):
                with contextlib.suppress(IsADirectoryError):
                    os.unlink(name, dir_fd=deep[number])
            os.close(deep[number])
            os.rmdir(part, dir_fd=deep[number - 1])
        os.close(inside)


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.EACCES, "no permission to read it"),
        (errno.EIO, "cannot be read: Input/output error"),
        (errno.ESTALE, "cannot be read: Stale file handle"),
        (errno.ENAMETOOLONG, "its path is longer than this system takes"),
        (errno.ENOENT, "listed in its folder, but the system does not find it"),
    ],
)
@pytest.mark.parametrize("calls", [("stat", "lstat"), ("open",)])
def test_a_file_that_is_there_and_cannot_be_read_has_an_outcome(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, reason: str, calls: tuple[str, ...]
) -> None:
    (tmp_path / "1.jpg").write_bytes(b"x")
    seen = look(str(tmp_path / "1.jpg"), str(tmp_path))
    assert seen is not None
    refuse(monkeypatch, tmp_path, number, *calls)
    if "stat" in calls:
        again = look(str(tmp_path / "1.jpg"), str(tmp_path))
        assert again is not None and str(again.refusal).startswith(reason)
    read = read_cell(
        seen,
        place=lambda _: PathMeaning(None, None, "predicted", None),
        removed=lambda _: None,
        is_stored=lambda _: False,
        keep=lambda *_: None,
        heal=lambda *_: None,
        examine=lambda _: pytest.fail("there is nothing to examine"),
        judge=judge,
        is_admitted=lambda _: False,
        max_bytes=1000,
    )
    assert isinstance(read, Refused) and read.reason.startswith(reason)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE, errno.ENAMETOOLONG])
@pytest.mark.parametrize("call", ["stat", "scandir"])
def test_a_folder_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, call: str
) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "1.jpg").touch()
    refuse(monkeypatch, tmp_path / "a", number, call)
    named, report = scanned(tmp_path)
    assert list(named) == ["c/1.jpg"]
    assert report.unreadable == [str(tmp_path / "a" / "b")]


def test_what_is_gone_is_gone_and_what_is_out_of_reach_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export = tmp_path / "export"
    (export / "a").mkdir(parents=True)
    path = str(export / "a" / "1.jpg")
    assert look(path, str(export)) is None
    (export / "a").rmdir()
    assert look(path, str(export)) is None, "it went with its folder"
    export.rename(tmp_path / "away")
    seen = look(path, str(export))
    assert seen is not None and seen.refusal == UNREACHABLE, "the share went: nobody can say"
    (tmp_path / "away").rename(export)
    (export / "a").symlink_to(tmp_path / "not mounted", target_is_directory=True)
    seen = look(path, str(export))
    assert seen is not None and seen.refusal == UNREACHABLE
    (export / "a").unlink()
    refuse(monkeypatch, tmp_path, errno.EACCES, "scandir")
    seen = look(path, str(export))
    assert seen is not None and seen.refusal == UNREACHABLE, "a folder that cannot be listed proves nothing"


def test_a_share_that_goes_while_files_are_read_takes_no_outcome_back(
    lab: Lab, export: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    once(lab)
    before = {name: row["outcome"] for name, row in ledger(lab).items()}
    for path in export.iterdir():
        os.utime(path, ns=(1, 1))
    real = pipeline.read_cell

    def read(candidate: Any, **how: Any) -> Any:
        with contextlib.suppress(OSError):
            export.rename(export.with_name("away"))
        return real(candidate, **how)

    monkeypatch.setattr(pipeline, "read_cell", read)
    once(lab)
    export.with_name("away").rename(export)
    assert {name: row["outcome"] for name, row in ledger(lab).items()} == before


def test_folders_of_one_number_are_all_walked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Network shares number folders badly: on some each is 0."""
    names = ["a/1.jpg", "a/b/2.jpg", "a/b/c/3.jpg", "d/1.jpg", "d/b/2.jpg", "elsewhere/4.jpg"]
    for name in names:
        (tmp_path / "export" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "export" / name).touch()
    (tmp_path / "lab").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "5.jpg").touch()
    (tmp_path / "export" / "link").symlink_to(tmp_path / "out", target_is_directory=True)
    (tmp_path / "export" / "d" / "loop").symlink_to(tmp_path / "export", target_is_directory=True)
    real = os.stat

    def numbered(path: Any, **how: Any) -> os.stat_result:
        seen = real(path, **how)
        return os.stat_result((seen.st_mode, 0, 0, *tuple(seen)[3:])) if stat.S_ISDIR(seen.st_mode) else seen

    monkeypatch.setattr(os, "stat", numbered)
    named, report = scanned(tmp_path / "export", excluded=[tmp_path / "lab"])
    assert sorted(named) == sorted([*names, "link/5.jpg"])
    assert report.unreadable == report.unreachable == []


def test_a_folder_that_a_server_shows_in_itself_is_named_and_not_walked_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.jpg").touch()
    real_scan, real_stat = os.scandir, os.stat

    def inside(path: str) -> str:
        return path.replace("/again", "")

    class Again:
        name = "again"

        def __init__(self, folder: str) -> None:
            self.path = folder + "/again"

        def is_symlink(self) -> bool:
            return False

        def is_dir(self, *, follow_symlinks: bool) -> bool:
            return True

    @contextlib.contextmanager
    def listing(path: str) -> Iterator[Any]:
        with real_scan(inside(path)) as entries:
            yield [*entries, Again(path)] if inside(path) == str(tmp_path / "a") else list(entries)

    monkeypatch.setattr(os, "scandir", listing)
    monkeypatch.setattr(os, "stat", lambda path, **how: real_stat(inside(path), **how))
    named, report = scanned(tmp_path)
    assert list(named) == ["a/1.jpg"]
    assert report.unreadable == [str(tmp_path / "a" / "again")]


def test_status_names_a_watched_folder_that_cannot_be_listed(
    lab: Lab, export: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert desk.status(lab)["watch"] == [{"folder": str(export), "how": "unwatched"}]
    refuse(monkeypatch, export.parent, errno.EACCES, "scandir")
    assert desk.status(lab)["watch"] == [{"folder": str(export), "how": "unreadable"}]
    monkeypatch.undo()
    export.rename(export.with_name("away"))
    assert desk.status(lab)["watch"] == [{"folder": str(export), "how": "missing"}]


# what is no image by its name


def test_an_empty_folder_in_the_place_of_a_share_that_is_not_mounted_is_a_missing_folder(
    lab: Lab, export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = tmp_path / "mounts"
    monkeypatch.setattr("labref.export.roots._MOUNTS", mounts)
    mounts.write_text(f"disk / ext4 rw 0 0\nshare {str(export).replace(' ', chr(92) + '040')} ext4 rw 0 0\n")
    assert once(lab).unreachable == []
    mounts.write_text("disk / ext4 rw 0 0\n")
    away = export.rename(tmp_path / "away")
    export.mkdir()
    with pytest.raises(AgentError, match="1 folders could not be read: .*Mount them"):
        once(lab)
    assert list(faults(lab)) == ["folder_unreadable"]
    (told,) = desk.status(lab)["attention"]
    assert told.startswith(f"the watched folder {export} is not there; mount it")
    # whoever exports into the folder itself from now on means it
    shutil.copy(away / "0.jpg", export)
    assert once(lab).unreachable == []
    assert desk.status(lab)["attention"] == [] and "folder_unreadable" not in faults(lab)
    # a lab that is moved at this moment ends its agent with other words than these
    lab.folder.rename(tmp_path / "moved")
    remember_mounts(lab, [str(export)])
    assert not lab.folder.exists() and not is_unmounted(lab, export)


def test_files_that_are_left_alone_are_told_of(lab: Lab, export: Path) -> None:
    cell = (export / "0.jpg").read_bytes()
    for path in export.iterdir():
        path.unlink()
    for name in ("a.jp2", "b.JP2", "c.webp", "readme", ".hidden.jpg", "d." + "x" * 40):
        (export / name).write_bytes(cell)
    done = CliRunner().invoke(app, ["agent", "--once", "--lab", str(lab.folder)])
    assert "6 other files (no ending, .jp2, .webp, hidden) left alone" in done.stdout
    done = CliRunner().invoke(app, ["ledger", "--check", "--lab", str(lab.folder)])
    assert "6 other files (no ending, .jp2, .webp, hidden) left alone" in done.stdout
    (export / "e.jxl").write_bytes(cell)
    done = CliRunner().invoke(app, ["agent", "--once", "--json", "--lab", str(lab.folder)])
    said = json.loads(done.stdout)
    assert (said["found"], said["ignored"]) == (0, 7)
    assert said["others"] == {".jp2": 2, "": 2, ".webp": 1, "hidden": 1, ".jxl": 1}
    assert left_alone({".jp2": 1}, 0)[0].startswith("1 other file (.jp2) left alone")
    assert "(a, b, c, d …)" in left_alone(dict.fromkeys("abcde", 1), 0)[0]


def test_a_jfif_is_a_jpeg(lab: Lab, export: Path) -> None:
    (export / "0.jpg").rename(export / "0.JFIF")
    assert once(lab).stored == FEW
    assert ledger(lab)["0.JFIF"]["outcome"] == "stored"


# what platforms and file servers keep for themselves

SYSTEM = ["@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", ".Trash-1000", "lost+found", "#Snapshot"]
SYSTEM += [".@__thumb", "~snapshot", ".zfs", "@Recently-Snapshot", ".Trashes", "__MACOSX", "@GMT-2024.01.01-00.00.00"]
SYSTEM += [".sync", "_gsdata_", ".dropbox.cache", ".rsync-partial", ".~tmp~", ".stversions", ".tmp.drivedownload"]
SYSTEM += ["found.000", "FOUND.001", "OneDriveTemp", ".deleted", ".git"]


def test_system_folders_are_not_entered_and_counted(lab: Lab, export: Path) -> None:
    for number, name in enumerate(SYSTEM):
        (export / name / "basophil").mkdir(parents=True)
        shutil.copy(export / "0.jpg", export / name / f"{number}.jpg")
        shutil.copy(export / "0.jpg", export / name / "basophil" / f"{number}.jpg")
    for name in ("Thumbs.db", "desktop.ini", "._0.jpg"):
        (export / name).touch()
    summary = once(lab)
    assert (summary.found, summary.stored, summary.reserved, summary.ignored) == (FEW, FEW, len(SYSTEM) + 3, 0)
    assert faults(lab) == {}
    with lab.open_store() as store:
        assert not any("recycle" in str(slide) for slide in store.counts().by_slide)


def test_the_list_of_system_names_is_a_setting(tmp_path: Path) -> None:
    for name in ("@eaDir", "bin 1", "old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.jpg").touch()
    assert list(scanned(tmp_path, reserved=())[0]) == ["@eaDir/1.jpg", "bin 1/1.jpg", "old/1.jpg"]
    (tmp_path / ".export").mkdir()
    (tmp_path / ".export" / "1.jpg").touch()
    (tmp_path / "link").symlink_to(tmp_path / ".export")
    assert list(scanned(tmp_path / ".export")[0]) == ["1.jpg"], "who watches a hidden one means it"
    (tmp_path / "link").rename(tmp_path / ".link")
    assert list(scanned(tmp_path, reserved=())[0]) == ["@eaDir/1.jpg", "bin 1/1.jpg", "old/1.jpg"]
    shutil.rmtree(tmp_path / ".export")
    (tmp_path / ".link").unlink()
    named, report = scanned(tmp_path, reserved=("BIN*", "Old"))
    assert (list(named), report.reserved) == (["@eaDir/1.jpg"], 2)
    assert list(scanned(tmp_path / "old", reserved=("old",))[0]) == ["1.jpg"], "who watches one means it"
    with pytest.raises(ValueError, match="one folder or file"):
        WatchConfig(system_names=("a/b",))
    with pytest.raises(ValueError, match="one folder or file"):
        WatchConfig(system_names=("*",))


# one watched folder in another


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("linked", [False, True])
def test_the_innermost_watched_folder_counts(tmp_path: Path, order: int, linked: bool) -> None:
    outer, inner = tmp_path / "export", tmp_path / "export" / "scope 2" / "cells"
    inner.mkdir(parents=True)
    for folder in (outer, inner.parent, inner):
        (folder / "1.jpg").touch()
    (outer / "link").symlink_to(inner, target_is_directory=True)
    if linked:
        (tmp_path / "inner").symlink_to(inner, target_is_directory=True)
        inner = tmp_path / "inner"
    roots = [outer, inner][::order]
    report = ScanReport()
    found = {c.path: c.root for c in scan(roots, extensions=(".jpg",), excluded=(), report=report)}
    assert found == {
        str(outer / "1.jpg"): str(outer),
        str(outer / "scope 2" / "1.jpg"): str(outer),
        str(inner / "1.jpg"): str(inner),
    }
    homes = Roots(roots)
    event = str(outer / "scope 2" / "cells" / "1.jpg")
    assert homes.home(event, str(outer)) == (str(inner / "1.jpg"), str(inner))
    assert homes.home(str(outer / "scope 2" / "1.jpg"), str(outer)) == (str(outer / "scope 2" / "1.jpg"), str(outer))
    assert homes.home(str(inner / "1.jpg"), str(inner)) == (str(inner / "1.jpg"), str(inner))


def test_an_event_is_looked_at_only_where_a_scan_would_look(tmp_path: Path) -> None:
    homes = Roots([tmp_path], excluded=[tmp_path / "lab" / "images"], reserved=("@eaDir",))
    root = str(tmp_path)
    assert homes.home(str(tmp_path / "a" / "1.jpg"), root) == (str(tmp_path / "a" / "1.jpg"), root)
    assert homes.home(str(tmp_path / "a" / "@EAdir" / "1.jpg"), root) is None
    assert homes.home(str(tmp_path / "a" / ".git" / "1.jpg"), root) is None
    assert homes.home(str(tmp_path / "lab" / "images" / "ab" / "1.jpg"), root) is None
    inside = Roots([tmp_path, tmp_path / "@eaDir"], reserved=("@eaDir",))
    assert inside.home(str(tmp_path / "@eaDir" / "1.jpg"), root) == (
        str(tmp_path / "@eaDir" / "1.jpg"),
        str(tmp_path / "@eaDir"),
    )


def test_one_folder_watched_under_two_names_is_walked_once(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.jpg").touch()
    (tmp_path / "b").symlink_to(tmp_path / "a", target_is_directory=True)
    named, _ = scanned(tmp_path / "a", tmp_path / "b", tmp_path / "c" / ".." / "a")
    assert list(named) == ["1.jpg"]


def test_slide_and_analyser_come_from_the_innermost_folder(tmp_path: Path, export: Path, starter: Bundle) -> None:
    inner = export / "run 2" / "scope"
    (inner / "S1").mkdir(parents=True)
    (export / "0.jpg").rename(inner / "S1" / "0.jpg")
    made = make_lab(tmp_path / "lab", export, starter)
    watch = made.config.watch.model_copy(
        update={"folders": (export, inner), "analyser": "A", "analysers": {inner: "B"}}
    )
    nested = replace(made, config=made.config.model_copy(update={"watch": watch}))
    once(nested)
    with nested.open_store() as store:
        cells = {Path(cell.path).name: cell for cell in store.cells(store_ids(store)).values()}
    assert (cells["0.jpg"].slide, cells["0.jpg"].analyser) == ("S1", "B")
    assert {cell.analyser for name, cell in cells.items() if name != "0.jpg"} == {"A"}
    assert faults(nested) == {}


# nothing is written into a watched folder

WRITERS = {
    "query": ["query", "IMAGE", "--grid"],
    "duplicates": ["duplicates", "--grid"],
    "map show": ["map", "show", "--out"],
    "map node": ["map", "node", "0", "0", "--grid"],
    "map suspects": ["map", "suspects", "--grid"],
    "export": ["store", "export"],
    "backup": ["store", "backup"],
    "report": ["report", "--out"],
}


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory, drawn_cells: Path, starter: Bundle) -> Lab:
    """A lab that has taken in a few cells of its export, and a link to the export beside it."""
    folder = tmp_path_factory.mktemp("filled")
    (folder / "export" / "deeper").mkdir(parents=True)
    for number, path in enumerate(sorted(drawn_cells.rglob("*.jpg"))[:FEW]):
        shutil.copy(path, folder / "export" / f"{number}.jpg")
    (folder / "link").symlink_to(folder / "export" / "deeper", target_is_directory=True)
    (folder / "out.png").symlink_to(folder / "export" / "linked.png")
    made = make_lab(folder / "lab", folder / "export", starter)
    once(made)
    return made


@pytest.mark.parametrize("writer", WRITERS)
def test_nothing_is_written_into_a_watched_folder(filled: Lab, writer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    export = filled.watched[0]
    before = sorted(export.rglob("*"))
    command = [str(export / "0.jpg") if part == "IMAGE" else part for part in WRITERS[writer]]
    monkeypatch.chdir(export)
    for out in (
        str(export / "out.png"),
        str(export / "new folder" / "out.png"),
        str(export.parent / "link" / "out.png"),
        str(export.parent / "lab" / ".." / "export" / "out.png"),
        str(export.parent / "out.png"),
        "out.png",
    ):
        done = CliRunner().invoke(app, [*command, out, "--lab", str(filled.folder)])
        assert done.exit_code == 1
        assert "which labref watches and never writes to" in done.stderr, out
    assert sorted(export.rglob("*")) == before
    filled.refuse_output(export.with_name("export 2") / "out.png")


@pytest.mark.parametrize("writer", WRITERS)
def test_nothing_is_written_over_what_a_lab_works_with(filled: Lab, tmp_path: Path, writer: str) -> None:
    command = [str(filled.watched[0] / "0.jpg") if part == "IMAGE" else part for part in WRITERS[writer]]
    (tmp_path / "link.png").symlink_to(filled.config_file)
    other = tmp_path / "another"
    other.mkdir()
    shutil.copy(filled.config_file, other)
    files = {
        path: path.read_bytes() for path in filled.folder.rglob("*") if path.is_file() and "logs" not in path.parts
    }
    own = ("labref.toml", "store.duckdb", "store.duckdb.wal", "token", "images/out.png", "logs/out.png", "maps")
    for out in (*(filled.folder / name for name in own), tmp_path / "link.png", other / "store.duckdb"):
        done = CliRunner().invoke(app, [*command, str(out), "--lab", str(filled.folder)])
        assert done.exit_code == 1
        assert "would be lost" in done.stderr, out
    assert all(path.read_bytes() == data for path, data in files.items())
    assert [path.name for path in other.iterdir()] == ["labref.toml"]
    filled.refuse_output(filled.folder / "out.png")
    filled.refuse_output(tmp_path / "store.duckdb")


def test_the_picture_of_an_answer_never_takes_the_place_of_an_image(filled: Lab, tmp_path: Path) -> None:
    image, other, export = tmp_path / "own.png", tmp_path / "own-2.png", filled.watched[0]
    for path in (image, other):
        shutil.copy(export / "0.jpg", path)
    (tmp_path / "linked-1.png").symlink_to(export / "linked.png")
    whole, before = image.read_bytes(), sorted(export.iterdir())
    for images, grid, why in (
        ([image], image, "is an image that is asked about"),
        ([image, other], image, "is an image that is asked about"),  # own-2.png would be written
        ([image, other], tmp_path / "linked.png", "which labref watches and never writes to"),
    ):
        words = ["query", *map(str, images), "--grid", str(grid), "--lab", str(filled.folder)]
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 1 and why in done.stderr, done.output
    assert image.read_bytes() == other.read_bytes() == whole
    assert sorted(export.iterdir()) == before


# a watch is known to be alive


@pytest.fixture
def watcher(tmp_path: Path) -> Iterator[Watcher]:
    (tmp_path / "watched" / "deeper").mkdir(parents=True)
    made = Watcher(
        [tmp_path / "watched"], extensions=(".jpg",), polling=False, wake=threading.Event(), log=structlog.get_logger()
    )
    with contextlib.closing(made):
        assert made.ensure()
        assert not made.ensure(), "nothing came since"
        yield made


def hinted(watcher: Watcher, path: Path) -> bool:
    """Whether writing a file is noticed by its event."""
    path.write_bytes(b"x")
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if str(path) in watcher.hints()[0]:
            return True
        time.sleep(0.02)
    return False


def test_a_folder_deleted_and_made_again_with_the_same_number_is_watched_again(
    watcher: Watcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "watched"
    assert hinted(watcher, folder / "1.jpg")
    monkeypatch.setattr("labref.export.watch._identity", lambda _: (1, 1))
    watcher._watches[folder] = ((1, 1), watcher._watches[folder][1])
    shutil.rmtree(folder)
    folder.mkdir()
    wait_until(watcher.ensure, 10)
    assert not watcher.ensure()
    assert hinted(watcher, folder / "2.jpg")
    assert watcher.methods() == {folder: "events"}


LINUX = pytest.mark.skipif(sys.platform != "linux", reason="Linux says what it watches")


@LINUX
def test_a_watch_that_the_system_dropped_is_made_again(watcher: Watcher, tmp_path: Path) -> None:
    """As when a share is unmounted and mounted again: the watching thread lives on, and hears nothing."""
    folder = tmp_path / "watched"
    (emitter,) = watcher._observer.emitters  # type: ignore[union-attr]
    group = emitter._inotify
    with group._lock:
        group._remove_callbacks(list(group._active_callbacks_by_watch))
    assert emitter.is_alive()
    assert watcher.ensure(), "it came back, and is scanned"
    assert hinted(watcher, folder / "1.jpg")


@LINUX
def test_a_folder_of_which_a_part_brings_no_events_is_polled(watcher: Watcher, tmp_path: Path) -> None:
    """As where the system's limit of watches was reached."""
    folder = tmp_path / "watched"

    def compared() -> bool:
        report = ScanReport()
        list(scan([folder], extensions=(".jpg",), excluded=(), report=report))
        watcher.compare(report.walked)
        return watcher.must_poll()

    assert not compared()
    (emitter,) = watcher._observer.emitters  # type: ignore[union-attr]
    group = emitter._inotify
    deeper = os.fsencode(folder / "deeper")
    with group._lock:
        group._remove_callbacks([group._active_callbacks_by_path[deeper]])
    assert not compared(), "one that has just come is watched a moment later"
    assert compared()
    assert watcher.methods() == {folder: "polling"}
    assert not watcher.ensure(), "the rest goes on bringing events"
    with group._lock:
        group._add_callback(deeper)
    assert not compared()


# a file replaced by another


def swap(one: Path, other: Path) -> None:
    """Two files of one size change places, and keep their names' times, as a careful tool can do it."""
    assert one.stat().st_size == other.stat().st_size
    times = [(path.stat().st_atime_ns, path.stat().st_mtime_ns) for path in (one, other)]
    spare = one.with_name("spare")
    one.rename(spare)
    other.rename(one)
    spare.rename(other)
    for path, ns in zip((one, other), times, strict=True):
        os.utime(path, ns=ns)


@pytest.fixture
def equal(lab: Lab, export: Path) -> tuple[Path, Path]:
    """Two files of one size and time that the lab has taken in."""
    files = export / "0.jpg", export / "1.jpg"
    size = max(path.stat().st_size for path in files)
    for path in files:
        path.write_bytes(path.read_bytes().ljust(size, b"\0"))
        os.utime(path, (1.6e9, 1.6e9))
    once(lab)
    return files


def cells_of(lab: Lab, *files: Path) -> list[str]:
    rows = ledger(lab)
    return [rows[path.name]["cell_id"] for path in files]


def test_files_that_changed_places_are_seen(lab: Lab, equal: tuple[Path, Path]) -> None:
    before = cells_of(lab, *equal)
    assert once(lab).unchanged == FEW
    swap(*equal)
    assert list(faults(lab)) == ["file_changed"]
    once(lab)
    assert cells_of(lab, *equal) == before[::-1]
    assert cells_of(lab, equal[0]) == [hashlib.sha256(equal[0].read_bytes()).hexdigest()[:16]]
    assert faults(lab) == {}
    assert once(lab).unchanged == FEW


@pytest.mark.parametrize("number", ["ctime_ns", "inode"])
def test_either_number_tells_a_file_from_another(lab: Lab, equal: tuple[Path, Path], number: str) -> None:
    with duckdb.connect(str(lab.store_file)) as connection:
        connection.execute(f"UPDATE file SET {number} = 7 WHERE path LIKE '%0.jpg'")
    assert list(faults(lab)) == ["file_changed"]
    summary = once(lab)
    assert summary.unchanged == FEW - 1 and summary.embedded == 0, "it is read, and found to be the same"
    assert faults(lab) == {}


def test_a_share_that_numbers_its_files_anew_is_not_read_again(
    lab: Lab, equal: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("labref.export.roots.is_network_folder", lambda _: True)
    with duckdb.connect(str(lab.store_file)) as connection:
        connection.execute("UPDATE file SET inode = 7")
    assert once(lab).unchanged == FEW
    assert faults(lab) == {}


def test_a_store_of_an_older_labref_learns_the_numbers_without_reading(
    lab: Lab, equal: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with duckdb.connect(str(lab.store_file)) as connection:
        connection.execute("UPDATE file SET ctime_ns = NULL, inode = NULL")
    assert faults(lab) == {}
    monkeypatch.setattr(pipeline, "read_cell", None)
    assert once(lab).unchanged == FEW
    monkeypatch.undo()
    with lab.open_store() as store:
        states = store.known_files()
    for path in equal:
        assert states[str(path)][3:] == (path.stat().st_ctime_ns, path.stat().st_ino)
    swap(*equal)
    assert list(faults(lab)) == ["file_changed"]


def test_digests_find_what_no_number_tells(lab: Lab, equal: tuple[Path, Path]) -> None:
    before = cells_of(lab, *equal)
    swap(*equal)
    with duckdb.connect(str(lab.store_file)) as connection:
        for path in equal:
            seen = path.stat()
            connection.execute(
                "UPDATE file SET ctime_ns = ?, inode = ? WHERE path = ?", [seen.st_ctime_ns, seen.st_ino, str(path)]
            )
    assert faults(lab) == {}
    done = CliRunner().invoke(app, ["ledger", "--check", "--digests", "--lab", str(lab.folder)])
    assert done.exit_code == 1 and "FAULT: 2 x file_differs" in done.stdout
    CliRunner().invoke(app, ["ledger", "--check", "--digests", "--repair", "--lab", str(lab.folder)])
    once(lab)
    assert cells_of(lab, *equal) == before[::-1]
    done = CliRunner().invoke(app, ["ledger", "--check", "--digests", "--lab", str(lab.folder)])
    assert done.exit_code == 0, done.stdout


def test_an_event_makes_a_file_be_read_again(lab: Lab, equal: tuple[Path, Path]) -> None:
    before = cells_of(lab, *equal)
    with running_agent(lab, polling=False, rescan_seconds=3600):
        wait_until(lambda: desk.status(lab)["agent"]["last_scan_at"])
        swap(*equal)
        wait_until(lambda: cells_of(lab, *equal) == before[::-1], 60)


def test_a_scan_keeps_that_an_event_told_of_a_file(lab: Lab, export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = look(str(export / "0.jpg"), str(export))
    assert file is not None
    with lab.open_store() as store, open_log(lab) as log:
        agent = _Agent(lab, store, log, once=False)
        monkeypatch.setattr(agent, "_pipeline", SimpleNamespace(holds=lambda path: True), raising=False)
        told = []
        for event in (False, True, False):
            agent._consider(file, observe=True, event=event)
            told.append(agent._held[file.path][1])
        assert told == [False, True, True]


def stored_nothing(agent: _Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give an agent that was not started what its summary asks of the pipeline."""
    monkeypatch.setattr(agent, "_pipeline", SimpleNamespace(tally=SimpleNamespace(embedded=0)), raising=False)


def test_what_is_stored_while_the_ledger_is_read_is_remembered(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    once(lab)
    seen = Signature(1, 2, 3, 4)
    with lab.open_store() as store, open_log(lab) as log:
        agent = _Agent(lab, store, log, once=False)
        stored_nothing(agent, monkeypatch)
        read = store.known_files

        def known_files() -> Any:
            known = read()
            agent._note([Settled("/new.jpg", seen, "stored", None), Settled("/no.jpg", None, "rejected", "why")])
            return known

        monkeypatch.setattr(store, "known_files", known_files)
        agent._remember_files()
        assert len(agent._known) == FEW + 2
        assert agent._is_recorded("/no.jpg", "why") and not agent._is_recorded("/new.jpg", "why")
        summary = agent._summary(1.0, interrupted=False)
        assert (summary.stored, summary.rejected) == (1, 1)


def test_files_may_be_stored_while_the_agent_counts_or_reads(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    interval = sys.getswitchinterval()
    ended = threading.Event()
    with lab.open_store() as store, open_log(lab) as log:
        agent = _Agent(lab, store, log, once=False)
        stored_nothing(agent, monkeypatch)
        agent._note([Settled(f"/{number}.jpg", None, "rejected", "why") for number in range(20_000)])
        monkeypatch.setattr(store, "known_files", lambda: agent._known.copy())

        def note() -> None:
            number = 20_000
            while not ended.is_set():
                agent._note([Settled(f"/{number}.jpg", None, "rejected", "why")])
                agent._is_recorded(f"/{number}.jpg", "why")
                number += 1

        storing = threading.Thread(target=note)
        sys.setswitchinterval(1e-5)
        storing.start()
        try:
            for revision in range(5):
                agent._revision = -1 - revision
                agent._remember_files()
                agent._summary(1.0, interrupted=False)
        finally:
            ended.set()
            storing.join()
            sys.setswitchinterval(interval)
        assert agent._summary(1.0, interrupted=False).rejected == len(agent._known) > 20_000


# names that a terminal would obey

OBEYED = [
    "a\nb",
    "\x1b[31mred",
    "\x1b]0;title\x07",
    "\x9b31m",
    "\u202ecod.gpj",
    "a\rb",
    "\u2028x",
    "\ufeffx",
    "\u2066y",
    "zero\u200bwidth",
    "word\u2060joiner",
    "soft\u00adhyphen",
    "hangul\u3164filler",
    "mono\u200dcyte",
    "blast\ufe0f",
    "tag\U000e0041",
]


@pytest.mark.parametrize("name", OBEYED)
def test_what_a_terminal_would_obey_is_written_as_its_code(name: str) -> None:
    shown = printable(name)
    assert shown.isprintable() and "\\" in shown
    assert printable({name: [name, 1, None]}) == {shown: [shown, 1, None]}


@pytest.mark.parametrize(
    "name", ["Å.jpg", "日本", "דם", "👩\u200d🔬", "C:\\x\\n", "می\u200cخواهم", "❤\ufe0f\u200d🔥", "1\ufe0f\u20e3"]
)
def test_what_is_only_unusual_is_shown_as_it_is(name: str) -> None:
    assert printable(name) == name and unprintable(name) is None


@pytest.mark.parametrize("name", OBEYED)
def test_a_picture_shows_what_a_terminal_would_obey_as_its_code(name: str) -> None:
    assert lettering.length(name, 20, False) == lettering.length(printable(name), 20, False)


@POSIX
def test_a_summary_line_gives_no_command_to_the_terminal(tmp_path: Path, starter: Bundle) -> None:
    odd = tmp_path / "a\x1b[31mb"
    odd.mkdir()
    (tmp_path / "export").mkdir()
    lab = make_lab(tmp_path / "lab", tmp_path / "export", starter)
    for words in (["export", odd / "x.parquet"], ["backup", odd / "backup"], ["backup", odd / "b.zip"]):
        done = CliRunner().invoke(app, ["store", *map(str, words), "--lab", str(lab.folder)])
        assert done.exit_code == 0 and "\x1b" not in done.stdout and "a\\x1b[31mb" in done.stdout
    done = CliRunner().invoke(app, ["store", "restore", str(odd / "backup"), str(odd / "lab")])
    assert done.exit_code == 0 and "\x1b" not in done.output


@POSIX
def test_names_of_files_and_slides_give_no_command_to_the_terminal(lab: Lab, export: Path) -> None:
    for number, name in enumerate(OBEYED):
        (export / f"slide 1 {name}").mkdir()
        shutil.copy(export / f"{number % FEW}.jpg", export / f"slide 1 {name}" / f"{name}.jpg")
        (export / f"{name}.txt").touch()
        (export / f"bad {name}.jpg").write_bytes(b"no image")
    (export / "odd.e\x1b[1mx").touch()
    invoke = CliRunner().invoke
    where = ["--lab", str(lab.folder)]
    said = invoke(app, ["agent", "--once", *where]).stdout
    first = str(export / "slide 1 a\nb" / "a\nb.jpg")
    said += invoke(app, ["ledger", *where]).stdout + invoke(app, ["ledger", "--path", first, *where]).stdout
    said += invoke(app, ["query", first, *where]).stdout + invoke(app, ["status", *where]).stdout
    failed = invoke(app, ["query", str(export / "bad \x1b[31mred.jpg"), "no\nsuch.jpg", *where])
    said += failed.stdout + failed.stderr
    cell = hashlib.sha256((export / "0.jpg").read_bytes()).hexdigest()[:16]
    said += invoke(app, ["label", "history", cell, *where]).stdout
    (export / "\x1b[2Jnew.jpg").write_bytes(b"")
    checked = invoke(app, ["ledger", "--check", *where])
    said += checked.stdout + checked.stderr + invoke(app, ["duplicates", *where]).stdout
    assert "\\x1b[31mred" in said and "\\x1b[2Jnew" in said
    for line in said.split("\n"):
        assert line.isprintable(), line
    rows = invoke(app, ["ledger", *where]).stdout.splitlines()
    assert len(rows) == FEW + 2 * len(OBEYED), "a line a file"
    log = lab.log_file.read_text(encoding="utf-8")
    assert all(line.isprintable() for line in log.split("\n"))


@pytest.mark.parametrize("label", OBEYED)
def test_a_label_that_gives_commands_is_refused(filled: Lab, label: str) -> None:
    before = ledger(filled)
    cell = before["0.jpg"]["cell_id"]
    done = CliRunner().invoke(app, ["label", "set", cell, f"x{label}y", "--new", "--lab", str(filled.folder)])
    assert done.exit_code == 1
    assert "cannot be se" in done.stderr or "cannot be shown" in done.stderr
    assert ledger(filled) == before
    with pytest.raises(ValueError, match="cannot be shown"):
        WatchConfig(labels={"Segs": f"x{label}y"})
    assert Layout(WatchConfig(), ("monocyte",)).place(f"x{label}y/1.jpg").label is None


# one name in two forms

COMPOSED, DECOMPOSED = "Kr\u00f6melzelle", "Kro\u0308melzelle"


def test_two_forms_of_a_name_are_one_class_one_slide_and_one_analyser() -> None:
    layout = Layout(WatchConfig(labels={DECOMPOSED: "odd"}), ("monocyte", "lymphoc\u00fdte"))
    assert layout.place(f"{COMPOSED}/1.jpg").label == layout.place(f"{DECOMPOSED}/1.jpg").label == "odd"
    plain = Layout(WatchConfig(), ("monocyte", "lymphoc\u00fdte"))
    assert plain.place(f"S1/{COMPOSED}/1.jpg") == plain.place(f"S1/{DECOMPOSED}/1.jpg")
    assert plain.place("lymphocy\u0301te/1.jpg").label == "lymphoc\u00fdte"
    assert plain.place(f"{DECOMPOSED} 1/1.jpg").slide == f"{COMPOSED} 1"
    own = WatchConfig(layout=(LayoutPattern(pattern="(?P<analyser>[^/]+)/[^/]+"),))
    assert Layout(own, ()).place(f"{DECOMPOSED}/1.jpg").analyser == COMPOSED


def test_a_class_that_no_table_has_is_one_however_its_folders_are_written() -> None:
    def labels(*folders: str, given: Sequence[str] = ()) -> set[str | None]:
        layout = Layout(WatchConfig(), ("monocyte",), None, lambda: given)
        return {layout.place(f"x/Signed slides/{folder}/1.jpg").label for folder in folders}

    assert labels("Hairy cells", "hairy cell", "Hairy-Cell") == {"Hairy cells"}
    assert labels("hairy cell", "HAIRY CELLS", given=["Odd", "Hairy cells"]) == {"Hairy cells"}
    assert labels("Hairy cells", "Hairless cells") == {"Hairy cells", "Hairless cells"}
    assert labels("Plasma cells", "plasma cell") == {"Plasma cells"}, "a name of CellaVision's that the bundle has not"


def test_a_list_in_the_other_form_finds_its_files(lab: Lab, export: Path, tmp_path: Path) -> None:
    for number, name in enumerate((f"{DECOMPOSED}.jpg", f"{COMPOSED} 2.jpg")):
        (export / f"{number}.jpg").rename(export / name)
    (export / "2.jpg").rename(export / os.fsdecode(b"Kr\xf6melzelle.jpg"))
    once(lab)
    listed = tmp_path / "labels.csv"
    listed.write_text(
        f"path,label\n{COMPOSED}.jpg,monocyte\n{export / DECOMPOSED} 2.jpg,blast\n{DECOMPOSED}.jpg,monocyte\n",
        encoding="utf-8",
    )
    done = CliRunner().invoke(app, ["label", "import", str(listed), "--new", "--lab", str(lab.folder)])
    assert done.exit_code == 0, done.stderr
    said = CliRunner().invoke(
        app, ["ledger", "--json", "--path", str(export / f"{COMPOSED}.jpg"), "--lab", str(lab.folder)]
    )
    (row,) = map(json.loads, said.stdout.splitlines())
    assert row["path"] == str(export / f"{DECOMPOSED}.jpg"), "the bytes of the name are kept"
    for other in (b"Kr\xf6nung.jpg", b"Kr"):
        named = path_to_text(str(export / os.fsdecode(other)))
        assert CliRunner().invoke(app, ["ledger", "--path", named, "--lab", str(lab.folder)]).stdout == "", (
            "no other is like it"
        )
        assert CliRunner().invoke(app, ["label", "history", named, "--lab", str(lab.folder)]).exit_code == 1
    with lab.open_store() as store:
        cell = store.cell(row["cell_id"])
        assert cell is not None and (cell.label, str(cell.label_source)) == ("monocyte", "reviewed")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems keep one form of a name")
def test_two_files_whose_names_differ_in_the_form_alone_are_two(lab: Lab, export: Path) -> None:
    (export / "0.jpg").rename(export / f"{DECOMPOSED}.jpg")
    (export / "1.jpg").rename(export / f"{COMPOSED}.jpg")
    assert once(lab).stored == FEW
    assert faults(lab) == {}
    with lab.open_store() as store:
        paths = [str(export / f"{form}.jpg") for form in (COMPOSED, DECOMPOSED)]
        found = store.cells_of_files(paths)
        assert set(found) == set(paths) and len(set(found.values())) == 2
        assert [len(list(store.ledger(path=path))) for path in paths] == [1, 1]


# a pattern of the lab's own


@pytest.mark.parametrize("pattern", ["(a+)+", "(a|aa)*b", "([^/]+/?)*[.]png", "(.*)(.*)(.*)(.*)(.*)(.*)/x"])
def test_a_repeat_inside_a_repeat_does_not_hold_the_agent_up(pattern: str) -> None:
    layout = Layout(WatchConfig(layout=(LayoutPattern(pattern=pattern),)), [])
    started = time.process_time()
    assert layout.place(f"slide/{'a' * 200}.jpg").slide == "slide"
    assert time.process_time() - started < 0.9, "less than the time limit: the pattern itself is found not to match"


FOR_EVER = r"(q*)(q*)(q*)(q*)(q*)\5\4\3\2\1[.]jpg"


@pytest.mark.parametrize("built_in", [False, True])
def test_a_pattern_that_takes_for_ever_costs_little_once_that_is_known(
    monkeypatch: pytest.MonkeyPatch, built_in: bool
) -> None:
    monkeypatch.setattr("labref.export.layout._MOST_SECONDS", 0.1)
    monkeypatch.setattr("labref.export.layout._SLOW_SECONDS", 0.01)
    pattern = LayoutPattern(pattern=FOR_EVER)
    if built_in:
        monkeypatch.setattr("labref.export.layout.BUILT_IN", (pattern,))
    layout = Layout(WatchConfig(layout=() if built_in else (pattern,)), [])
    paths = [f"{'q' * 120}{number}z.jpg" for number in range(20)]
    started = time.process_time()
    for path in paths + 50 * paths:
        with pytest.raises(LayoutError, match="labref's own" if built_in else r"of \[\[watch.layout\]\]"):
            layout.place(path)
    assert time.process_time() - started < 1.5, "not a second for each of 1020"
    assert layout.place("qq.jpg").label is None, "other paths are placed"
    (told,) = layout.slow
    assert (
        FOR_EVER.replace("\\", "\\\\") in told
        and "20 paths" in told
        and ("[[watch.layout]] takes" in told) is not built_in
    )


def test_a_pattern_that_takes_for_ever_on_one_path_costs_that_file_alone(
    lab: Lab, export: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("labref.export.layout._MOST_SECONDS", 0.2)
    (export / "0.jpg").rename(export / f"{'q' * 120}z.jpg")
    with lab.config_file.open("a", encoding="utf-8") as settings:
        settings.write("\n[[watch.layout]]\npattern = '(q*)(q*)(q*)(q*)(q*)\\5\\4\\3\\2\\1[.]jpg'\n")
    once(Lab.open(lab.folder))
    rows = ledger(lab)
    (refused,) = [row for row in rows.values() if row["outcome"] == "rejected"]
    assert "of [[watch.layout]] takes too long on this path" in refused["reason"]
    assert len(rows) == FEW and {row["outcome"] for row in rows.values()} == {"rejected", "stored"}
    assert "a pattern of the layout takes too long" in lab.log_file.read_text()


# labs and analysers where they do not belong


@pytest.mark.parametrize("other", ["{export}/../export", "{link}", "{export}"])
def test_one_folder_under_two_names_has_one_analyser(tmp_path: Path, export: Path, starter: Bundle, other: str) -> None:
    lab = Lab.create(tmp_path / "lab", [export], starter.folder)
    (tmp_path / "link").symlink_to(export, target_is_directory=True)
    again = other.format(export=export, link=tmp_path / "link")
    text = lab.config_file.read_text() + f"\n[watch.analysers]\n'{export}' = 'A'\n"
    text = text.replace(f"'{export}',\n", f"'{export}',\n    '{again}',\n")
    for line, refused in ((f"'{again}' = 'B'\n", again != str(export)), (f"'{again}' = 'A'\n", False), ("", True)):
        if again == str(export) and line:
            continue  # TOML itself refuses a key twice
        lab.config_file.write_text(text + line)
        if refused and again != str(export):
            with pytest.raises(LabError, match="are one folder, and .* gives it two analysers, A and"):
                Lab.open(lab.folder)
        else:
            assert Lab.open(lab.folder).analysers[str(export)] == "A"


def test_the_pictures_that_another_lab_makes_are_no_cells(tmp_path: Path) -> None:
    made = tmp_path / "other lab" / "thumbnails" / "ab" / "1.jpg"
    taken = tmp_path / "thumbnails" / "2.jpg"  # a folder of that name elsewhere
    inside = tmp_path / "other lab" / "export" / "3.jpg"
    for path in (made, taken, inside, tmp_path / "other lab" / "labref.toml", tmp_path / "other lab" / "store.duckdb"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    report = ScanReport()
    found = {c.path for c in scan([tmp_path], extensions=(".jpg",), excluded=(), report=report)}
    assert found == {str(taken), str(inside)} and report.reserved == 1
    homes = Roots([tmp_path])
    assert homes.home(str(made), str(tmp_path)) is None
    for path in (taken, inside):
        assert homes.home(str(path), str(tmp_path)) == (str(path), str(tmp_path))


@pytest.mark.parametrize("together", [True, False])
def test_another_picture_with_the_id_of_a_cell_is_no_copy_of_it(tmp_path: Path, together: bool) -> None:
    first = new_cell(0)
    other = first.digest[:16] + "0" * 48
    twin = new_cell(0, digest=other, path="/export/twin.jpg")
    with new_store(tmp_path) as store:
        if not together:
            store.record([first], bundle=BUNDLE)
        seen = SeenAgain(twin.path, 1, 1, other)
        for batch in ([first, twin], [first, seen]) if together else ([twin], [seen]):
            with pytest.raises(UnstorableError, match=f"not those of cell {first.cell_id}"):
                store.record(batch, bundle=BUNDLE)
        store.record([first, Rejected(twin.path, None, None, "why")], bundle=BUNDLE)
        assert {row.path: row.cell_id for row in store.ledger()} == {first.path: first.cell_id, twin.path: None}
