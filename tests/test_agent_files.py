"""Which files the agent finds, what their place says, and when they count as finished."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from labref.agent import reader
from labref.agent.reader import Known, NotYet, Prepared, Refused, read_cell
from labref.cells.decoding import Limits, decoder
from labref.cells.quality import judge
from labref.config import LayoutPattern, WatchConfig
from labref.export.layout import Layout, PathMeaning
from labref.export.paths import path_from_text, path_to_text
from labref.export.roots import FileNumbers, is_network_folder, kind_of, mount_in
from labref.export.scan import GONE, Candidate, ScanReport, look, scan
from labref.export.settle import Settling

PBC = ("basophil", "eosinophil", "erythroblast", "ig", "lymphocyte", "monocyte", "neutrophil", "platelet")


@pytest.mark.parametrize(
    ("path", "slide", "label", "source"),
    [
        ("P1/O1/Signed slides/Segmented neutrophils/SNE_1.jpg", "P1/O1", "neutrophil", "reviewed"),
        ("P1/Signed slides/Band neutrophils/BNE_2.jpg", "P1", "neutrophil", "reviewed"),
        ("P1/Signed slides/Metamyelocyte/MMY_2.jpg", "P1", "ig", "reviewed"),
        ("P1/Signed slides/Erythroblast/ERB_1.jpg", "P1", "erythroblast", "reviewed"),
        ("P1/Signed slides/Giant thrombocyte/GT_1.jpg", "P1", "platelet", "reviewed"),
        ("P1/Signed slides/Plasma cells/PC_1.jpg", "P1", "Plasma cells", "reviewed"),
        ("P1/Signed slides/Arifact/ART_1.jpg", "P1", "Arifact", "reviewed"),
        ("P1/SIGNED SLIDES/Lymphocyte, variant/VLY_1.jpg", "P1", "lymphocyte", "reviewed"),
        ("P1/O1/Unsigned slides/S77_001.jpg", "S77", None, "predicted"),
        ("P1/Unsigned slides/S_77_b_0013.jpg", "S_77_b", None, "predicted"),
        ("P1/Unsigned slides/odd.jpg", "P1", None, "predicted"),
        ("neutrophil/a.jpg", None, "neutrophil", "analyser"),
        ("Neutrophils/a.jpg", None, "neutrophil", "analyser"),
        ("SNE/a.jpg", None, "neutrophil", "analyser"),
        ("2024-05/run 7/Monocytes/a.jpg", "2024-05/run 7", "monocyte", "analyser"),
        ("hairy cell/a.jpg", "hairy cell", None, "predicted"),
        ("slide 12/a.jpg", "slide 12", None, "predicted"),
        ("a.jpg", None, None, "predicted"),
    ],
)
def test_a_path_says_slide_label_and_who_gave_it(path: str, slide: str | None, label: str | None, source: str) -> None:
    assert Layout(WatchConfig(), PBC).place(path) == PathMeaning(slide, label, source, None)  # type: ignore[arg-type]


def test_a_bundle_that_knows_the_finer_class_gets_it() -> None:
    place = Layout(WatchConfig(), (*PBC, "Band neutrophil")).place("P1/Signed slides/Band neutrophils/BNE_2.jpg")
    assert place.label == "Band neutrophil"


def test_a_lab_s_own_patterns_and_names_come_first() -> None:
    watch = WatchConfig(
        analyser="DC-1",
        layout=(
            LayoutPattern(pattern=r"(?P<analyser>[^/]+)/(?P<slide>[^/]+)/(?P<label>\w+)-.*", label_source="reviewed"),
        ),
        labels={"segs": "neutrophil"},
    )
    layout = Layout(watch, PBC)
    assert layout.place("scope 2/S1/Segs-01.jpg") == PathMeaning("S1", "neutrophil", "reviewed", "scope 2")
    assert layout.place("monocyte/a.jpg") == PathMeaning(None, "monocyte", "analyser", "DC-1")


@pytest.mark.parametrize(
    "name", ["a b.jpg", "Å.jpg", "日本.jpg", r"a\xe9.jpg", r"a\b.jpg", "caf\udce9.jpg", r"c\udce9\xe9.jpg"]
)
def test_a_path_s_text_is_valid_and_leads_back(name: str) -> None:
    text = path_to_text(name)
    text.encode("utf-8")
    assert path_from_text(text) == name


def test_no_two_names_have_one_text() -> None:
    assert path_to_text("caf\udce9.jpg") != path_to_text(r"caf\xe9.jpg")


def found(*roots: Path, excluded: tuple[Path, ...] = ()) -> tuple[list[str], ScanReport]:
    report = ScanReport()
    candidates = scan(roots, extensions=(".jpg",), excluded=excluded, report=report)
    return [Path(candidate.path).relative_to(roots[0]).as_posix() for candidate in candidates], report


def test_the_scan_finds_every_image_once_and_counts_the_rest(tmp_path: Path) -> None:
    for name in ("b/2.JPG", "b/1.jpg", "a.jpg", "b/c/3.jpg", "b/Thumbs.db", "x.jpg.tmp", ".a.jpg", "own/4.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "b" / "c" / "up").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "also b").symlink_to(tmp_path / "b", target_is_directory=True)
    names, report = found(tmp_path, tmp_path / "b", excluded=(tmp_path / "own",))
    assert names == ["a.jpg", "b/1.jpg", "b/2.JPG", "b/c/3.jpg"]
    assert report.ignored == 3
    assert report.unreachable == []


def test_a_folder_elsewhere_is_reached_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "1.jpg").touch()
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "link").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert found(tmp_path / "export")[0] == ["link/1.jpg"]


def test_a_watched_folder_that_is_not_there_is_reported(tmp_path: Path) -> None:
    names, report = found(tmp_path / "missing")
    assert names == []
    assert report.unreachable == [str(tmp_path / "missing")]


class Clock:
    """Monotonic seconds that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def settling(clock: Clock) -> Settling:
    return Settling(WatchConfig(stable_seconds=2, complete_seconds=10, settle_limit_seconds=60), clock)


def seen(path: Path) -> Candidate:
    candidate = look(str(path), str(path.parent))
    assert candidate is not None
    return candidate


def paths(candidates: Any) -> list[str]:
    return [Path(candidate.path).name for candidate in candidates]


def old(path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Let the file be that old: its ctime cannot be set, so the clock is."""
    now = path.stat().st_ctime + seconds
    monkeypatch.setattr("labref.export.scan.time.time", lambda: now)


def test_an_old_file_is_settled_at_once(tmp_path: Path, settling: Settling, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x")
    old(tmp_path / "a.jpg", monkeypatch, 60)
    assert settling.add(seen(tmp_path / "a.jpg"))
    assert len(settling) == 0


def test_a_fresh_copy_with_its_original_s_time_is_waited_for(tmp_path: Path, settling: Settling, clock: Clock) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x")
    os.utime(tmp_path / "a.jpg", (1e9, 1e9))
    assert not settling.add(seen(tmp_path / "a.jpg"))
    assert paths(settling.settled()) == []
    clock.now += 2.0
    assert paths(settling.settled()) == ["a.jpg"]
    assert len(settling) == 0


def test_a_file_is_settled_two_seconds_after_its_last_change(tmp_path: Path, settling: Settling, clock: Clock) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"")
    settling.add(seen(path), observe=True)
    for size in range(1, 8):
        clock.now += 1.5
        path.write_bytes(b"x" * size)
        assert paths(settling.settled()) == []
    clock.now += 1.9
    assert paths(settling.settled()) == []
    clock.now += 0.1
    (candidate,) = settling.settled()
    assert candidate.signature is not None
    assert candidate.signature.size_bytes == 7


def test_a_file_that_never_stands_still_is_given_up_for_now(tmp_path: Path, settling: Settling, clock: Clock) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"")
    settling.add(seen(path), observe=True)
    given: list[Candidate] = []
    for size in range(1, 80):
        clock.now += 1.0
        path.write_bytes(b"x" * size)
        given += settling.settled()
        if given:
            break
    assert size == 61
    assert given[0].signature is None
    assert "still being written after 60 s" in str(given[0].refusal)


def test_a_file_that_is_deleted_while_it_is_waited_for_is_said_to_be_gone(tmp_path: Path, settling: Settling) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x")
    settling.add(seen(tmp_path / "a.jpg"), observe=True)
    (tmp_path / "a.jpg").unlink()
    assert [candidate.refusal for candidate in settling.settled()] == [GONE]


def test_a_file_that_is_no_image_yet_is_given_time_to_become_one(
    tmp_path: Path, settling: Settling, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"half")
    assert settling.unfinished(seen(path))
    clock.now += 5
    assert paths(settling.settled()) == []
    path.write_bytes(b"half and half")
    assert paths(settling.settled()) == []
    clock.now += 2
    assert paths(settling.settled()) == ["a.jpg"]
    old(path, monkeypatch, 11)
    assert not settling.unfinished(seen(path))


@pytest.mark.parametrize("kind", ["another size than its bytes", "written to now and then"])
def test_a_file_that_is_no_use_each_time_it_is_read_is_given_up(
    tmp_path: Path, settling: Settling, clock: Clock, kind: str
) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"x")
    given_up, began = None, clock.now
    while given_up is None and clock.now < began + 200:
        if kind == "another size than its bytes":  # as in /proc: each reading says that it changed
            given_up = settling.changed(seen(path))
        else:
            path.write_bytes(path.read_bytes() + b"x")
            given_up = None if settling.unfinished(seen(path)) else seen(path)
        while given_up is None and not paths(settling.settled()):
            path.write_bytes(path.read_bytes() + b"x")
            clock.now += 2
    assert given_up is not None
    assert 60 < clock.now - began < 80
    if kind == "another size than its bytes":
        assert "still being written after 60 s" in str(given_up.refusal)
    # at the next scan it has as long again
    clock.now += 900
    assert settling.unfinished(seen(path))


def read(path: Path, *, max_bytes: int = 10_000_000, removed: str | None = None) -> Any:
    kept: list[bytes] = []
    return read_cell(
        seen(path),
        place=lambda _: PathMeaning(None, None, "predicted", None),
        removed=lambda digest: removed,
        is_stored=lambda _: False,
        keep=lambda data, _: kept.append(data),
        heal=lambda data, _: kept.append(data),
        examine=decoder(Limits(seconds=10, memory_megabytes=1024, megapixels=40)).examine,
        judge=judge,
        is_admitted=lambda _: False,
        max_bytes=max_bytes,
    )


def test_whether_a_removed_cell_is_still_gone_is_for_the_store_to_say(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"removed")
    assert isinstance(read(tmp_path / "a.jpg", removed="removed by the lab's retention"), Known)


@pytest.mark.parametrize("optics", ["pbc", "chula", "bccd", "bonemarrow"])
def test_a_real_cell_is_read_whole_and_left_as_it_was(real_cells: Path, optics: str) -> None:
    path = next((real_cells / optics).rglob("*.jpg"))
    before = path.stat()
    cell = read(path)
    assert isinstance(cell, Prepared)
    assert cell.crop.shape == (256, 256, 3)
    after = path.stat()
    assert (before.st_size, before.st_mtime_ns, before.st_ctime_ns) == (
        after.st_size,
        after.st_mtime_ns,
        after.st_ctime_ns,
    )


def appended(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def replaced(path: Path) -> None:
    other = path.with_name("other")
    shutil.copy2(path, other)
    os.replace(other, path)


@pytest.mark.parametrize("change", [appended, replaced])
def test_a_file_that_changes_while_it_is_read_is_waited_for(
    drawn_cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None]
) -> None:
    path = tmp_path / "a.jpg"
    shutil.copy2(next(drawn_cells.rglob("*.jpg")), path)
    real = os.read
    calls = 0

    def read_then_change(descriptor: int, count: int) -> bytes:
        nonlocal calls
        data = real(descriptor, count)
        calls += 1
        if calls == 1:
            change(path)
        return data

    monkeypatch.setattr(reader.os, "read", read_then_change)
    result = read(path)
    assert isinstance(result, NotYet)
    assert result.changed


def test_a_file_larger_than_any_image_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "a.jpg").open("wb") as file:
        file.truncate(20_000_000)
    result = read(tmp_path / "a.jpg")
    assert isinstance(result, Refused)
    assert result.reason == "too large: a file of 20 MB, at most 10 MB are read"
    assert result.signature is not None, "it is not tried again until it changes"


MOUNTS = """\
overlay / overlay rw 0 0
//server/lab /mnt/analyser\\040export cifs rw 0 0
/dev/sdb1 /mnt/analyser\\040export/local ext4 rw 0 0
nurse@host: /home/x fuse.sshfs rw 0 0
"""


@pytest.mark.parametrize(
    ("folder", "kind"),
    [
        ("/srv/export", "overlay"),
        ("/mnt/analyser export", "cifs"),
        ("/mnt/analyser export/2024", "cifs"),
        ("/mnt/analyser exports", "overlay"),
        ("/mnt/analyser export/local/a", "ext4"),
        ("/home/x/export", "fuse.sshfs"),
    ],
)
def test_the_file_system_of_a_folder_is_that_of_the_nearest_mount(folder: str, kind: str) -> None:
    assert mount_in(folder, MOUNTS)[1] == kind


def test_memory_is_no_network_share() -> None:
    assert not is_network_folder(Path("/dev") if os.name != "nt" else Path("C:/"))


@pytest.mark.parametrize(
    ("kind", "kept"),
    [("ext4", 7), ("xfs", 7), ("ntfs", 7), ("tmpfs", 7)]
    + [
        (kind, None) for kind in ("vfat", "exfat", "msdos", "fat32", "fuseblk", "cifs", "nfs4", "fuse.sshfs", "", "odd")
    ],
)
def test_the_numbers_of_files_count_only_where_they_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, kept: int | None
) -> None:
    monkeypatch.setattr("labref.export.roots.kind_of", lambda _: kind)
    assert FileNumbers().of(str(tmp_path), 7) == kept


def test_the_kind_of_a_file_system_is_found_without_proc_mounts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Windows and a Mac."""
    mounts = [SimpleNamespace(mountpoint=place, fstype=fs) for place, fs in (("/", "APFS"), (str(tmp_path), "ExFAT"))]
    monkeypatch.setattr("psutil.disk_partitions", lambda all: mounts)
    monkeypatch.setattr("labref.export.roots._MOUNTS", tmp_path / "none")
    assert kind_of(tmp_path / "a" / "b") == "exfat"
    assert kind_of(tmp_path.parent) == "apfs"
