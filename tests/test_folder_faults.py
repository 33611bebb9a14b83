"""Faults of folders, files and their names: each file has its outcome or is named, and none stops the others."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from labref.agent import pipeline, reader
from labref.agent.reader import Prepared
from labref.bundles.bundle import Bundle
from labref.errors import StoreError, UnstorableError
from labref.export.scan import Signature
from labref.lab import Lab
from labref.store import Rejected, Store
from labref.web import desk
from tests.labs import ledger, make_lab, once
from tests.stores import BUNDLE, new_cell, new_store

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
        cells = {Path(cell.path).name: cell for cell in store.cells(store_ids(lab, store)).values()}
    assert cells["4.jpg"].captured_at == datetime(1969, 12, 31, 23, 59, 59, tzinfo=UTC)
    assert cells["0.jpg"].captured_at is not None and cells["0.jpg"].captured_at.year == 1677
    assert cells["1.jpg"].captured_at is not None and cells["1.jpg"].captured_at.year == 2262


def store_ids(lab: Lab, store: Store) -> list[str]:
    return [row.cell_id for row in store.ledger() if row.cell_id is not None]


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
    assert once(lab).stored == FEW - 1
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
