"""Everything an export folder can hold that is no good cell: each has its clear outcome, and the agent goes on."""

from __future__ import annotations

import ctypes
import os
import struct
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from labref.agent import pipeline
from labref.agent.service import Summary
from labref.bundles.bundle import Bundle
from labref.export.paths import path_from_text, path_to_text
from labref.export.scan import Candidate
from labref.export.settle import Settling
from labref.lab import Lab
from tests.labs import ledger, make_lab, once, wait_until

WINDOWS = os.name == "nt"
LONG_NAME = "n" * 196 + ".jpg"
ODD_NAMES = ["a name with spaces.jpg", "Å.jpg", "日本.jpg", "%41 &'\";$(x).jpg", LONG_NAME]
REJECTED = {
    "empty.jpg": "the file is empty (0 bytes)",
    "truncated.jpg": "truncated: the image ends before it is complete",
    "text.jpg": "not an image",
    "one pixel.png": "too small to hold a cell: 1×1 px",
    "bomb.png": "too large: 30000×30000 px",
    "folder.jpg": "a folder, not an image file",
    "itself.jpg": "a symbolic link that leads back to itself",
    "nowhere.jpg": "a symbolic link to a file that is not there",
    "gone.jpg": "deleted before it could be read",
    "fleeting.jpg": "deleted before it could be read",
}
if not WINDOWS:  # permission bits, pipes and names of any bytes are POSIX' own
    ODD_NAMES.append(os.fsdecode(b"caf\xe9.jpg"))
    REJECTED["secret.jpg"] = "no permission to read it"
    REJECTED["pipe.jpg"] = "not a regular file"
GROWING_SECONDS = 10


@dataclass(frozen=True)
class Pass:
    """What one pass over the bad folder came to."""

    lab: Lab
    export: Path
    cell: bytes
    summary: Summary
    rows: dict[str, dict[str, Any]]


def png_of(width: int, height: int) -> bytes:
    """A whole, valid PNG of that size, one bit a pixel: 30,000×30,000 px compress to about 100 kB."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    packer = zlib.compressobj(1)
    row = bytes(1 + (width + 7) // 8)
    packed = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def without_rights_beyond_the_file_modes(work: Callable[[], Summary]) -> Summary:
    """Run `work` as an ordinary user would: the superuser's right to read any file is given up, in a thread of its
    own."""
    result: list[Summary] = []
    failure: list[BaseException] = []

    def limited() -> None:
        try:
            if sys.platform == "linux":
                _give_up_capabilities()
            result.append(work())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=limited)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return result[0]


def _give_up_capabilities() -> None:
    """Linux: CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH (bits 1 and 2) of this thread and those that it starts."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = struct.pack("Ii", 0x20080522, 0)
    data = ctypes.create_string_buffer(24)
    assert libc.capget(header, data) == 0
    effective, *rest = struct.unpack("6I", data.raw)
    assert libc.capset(header, struct.pack("6I", effective & ~0b110, *rest)) == 0, os.strerror(ctypes.get_errno())


def grow(path: Path, data: bytes) -> None:
    """Write a file as a slow network copy does: empty first, then in pieces."""
    pieces = 12
    step = -(-len(data) // pieces)
    with path.open("wb", buffering=0) as file:
        for start in range(0, len(data), step):
            time.sleep(GROWING_SECONDS / pieces)
            file.write(data[start : start + step])


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory, starter: Bundle, drawn_cells: Path) -> Iterator[Pass]:
    """One pass over a folder of bad input, with a good cell first and last."""
    folder = tmp_path_factory.mktemp("bad")
    export = folder / "export"
    export.mkdir()
    cells = [path.read_bytes() for path in sorted(drawn_cells.rglob("*.jpg"))]
    (export / "a good cell.jpg").write_bytes(cells[0])
    (export / "z good cell.jpg").write_bytes(cells[1])
    for number, name in enumerate(ODD_NAMES, 2):
        (export / name).write_bytes(cells[number])
    (export / "empty.jpg").write_bytes(b"")
    (export / "truncated.jpg").write_bytes(cells[10][: len(cells[10]) // 2])
    (export / "text.jpg").write_text("Patient: Anna Andersson\n")
    Image.new("RGB", (1, 1)).save(export / "one pixel.png")
    (export / "bomb.png").write_bytes(png_of(30_000, 30_000))
    (export / "folder.jpg").mkdir()
    (export / "folder.jpg" / "inside.jpg").write_bytes(cells[11])
    (export / "itself.jpg").symlink_to("itself.jpg")
    (export / "nowhere.jpg").symlink_to("nothing.jpg")
    (export / "link to a cell.jpg").symlink_to("a good cell.jpg")
    (export / "round").symlink_to(export, target_is_directory=True)
    (export / "gone.jpg").write_bytes(cells[12])  # deleted once it has settled, before it is read
    (export / "fleeting.jpg").write_bytes(cells[12])  # deleted while it is waited for
    (export / "Thumbs.db").write_bytes(b"x")
    (export / "half.jpg.tmp").write_bytes(cells[13][:100])
    (export / ".hidden.jpg").write_bytes(cells[13])
    if not WINDOWS:
        (export / "secret.jpg").write_bytes(cells[14])
        (export / "secret.jpg").chmod(0)
        os.mkfifo(export / "pipe.jpg")
    lab = make_lab(folder / "lab", export, starter, stable_seconds=2.0)

    with pytest.MonkeyPatch.context() as patch:
        real_read = pipeline.read_cell

        def delete_then_read(candidate: Candidate, **how: Any) -> Any:
            if candidate.path.endswith("gone.jpg"):
                Path(candidate.path).unlink()
            return real_read(candidate, **how)

        real_add = Settling.add

        def add_then_delete(settling: Settling, candidate: Candidate, *, observe: bool = False) -> bool:
            is_settled = real_add(settling, candidate, observe=observe)
            if candidate.path.endswith("fleeting.jpg"):
                Path(candidate.path).unlink(missing_ok=True)
            return is_settled

        patch.setattr(pipeline, "read_cell", delete_then_read)
        patch.setattr(Settling, "add", add_then_delete)
        growing = threading.Thread(target=grow, args=(export / "growing.jpg", cells[15]))
        growing.start()
        wait_until((export / "growing.jpg").exists)
        summary = without_rights_beyond_the_file_modes(lambda: once(lab))
        growing.join()
    yield Pass(lab, export, cells[12], summary, ledger(lab))


@pytest.mark.parametrize("name", REJECTED)
def test_bad_input_is_rejected_with_its_reason(bad: Pass, name: str) -> None:
    row = bad.rows[name]
    assert row["outcome"] == "rejected"
    assert row["reason"].startswith(REJECTED[name])
    assert row["cell_id"] is None


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_name_is_only_a_name(bad: Pass, name: str) -> None:
    row = bad.rows[path_to_text(name)]
    assert row["outcome"] == "stored"
    row["path"].encode("utf-8")
    assert path_from_text(row["path"]) == str(bad.export / name)


def test_a_file_that_grows_for_ten_seconds_is_read_once_it_is_whole(bad: Pass) -> None:
    assert bad.rows["growing.jpg"]["outcome"] == "stored"
    kept = bad.lab.kept_image(bad.rows["growing.jpg"]["cell_id"])
    assert kept == (bad.export / "growing.jpg").read_bytes()


def test_the_agent_goes_on_to_the_last_good_cell(bad: Pass) -> None:
    for name in ("z good cell.jpg", "folder.jpg/inside.jpg"):
        assert bad.rows[name]["outcome"] == "stored"
    # whichever of the two names of one file was read first, the other is its copy
    both = [bad.rows[name]["outcome"] for name in ("a good cell.jpg", "link to a cell.jpg")]
    assert sorted(both) == ["duplicate", "stored"]


def test_every_file_with_an_image_s_name_has_one_outcome_and_no_other_file_has(bad: Pass) -> None:
    good = {"a good cell.jpg", "z good cell.jpg", "folder.jpg/inside.jpg", "link to a cell.jpg", "growing.jpg"}
    assert bad.rows.keys() == good | {path_to_text(name) for name in ODD_NAMES} | REJECTED.keys()
    assert bad.summary.found == len(bad.rows)
    assert bad.summary.rejected == len(REJECTED)
    assert bad.summary.ignored == 2  # half.jpg.tmp, .hidden.jpg
    assert bad.summary.reserved == 1  # Thumbs.db


def test_the_log_names_no_file_and_no_folder(bad: Pass) -> None:
    log = bad.lab.log_file.read_text(encoding="utf-8")
    assert log
    for name in (bad.export.name, "Andersson", "text.jpg", "empty", *ODD_NAMES[:4]):
        assert name not in log.replace("the file is empty", "")


def test_what_was_bad_is_not_tried_in_vain_and_is_taken_in_once_it_is_good(bad: Pass) -> None:
    """The last test of the folder: it changes it."""
    before = bad.rows
    again = without_rights_beyond_the_file_modes(lambda: once(bad.lab))
    assert (again.embedded, again.stored, again.rejected) == (0, 0, 0)
    assert again.unchanged == again.found == len(before) - 2  # the two that were deleted are not there to be found
    assert ledger(bad.lab) == before, "a deleted file keeps its outcome"

    for name in ("gone.jpg", "truncated.jpg", "empty.jpg", "nothing.jpg"):
        (bad.export / name).write_bytes(bad.cell)
    if not WINDOWS:
        (bad.export / "secret.jpg").chmod(0o644)
    mended = once(bad.lab)
    rows = ledger(bad.lab)
    assert mended.rejected == 0
    names = ["gone.jpg", "truncated.jpg", "empty.jpg", "nowhere.jpg"]
    assert sorted(rows[name]["outcome"] for name in names) == ["duplicate"] * 3 + ["stored"]
    if not WINDOWS:
        assert rows["secret.jpg"]["outcome"] == "stored"
    with bad.lab.open_store() as store:
        earlier = store.history(str(bad.export / "truncated.jpg"))
    assert [row.outcome for row in earlier] == ["rejected"]
