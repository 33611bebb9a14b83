"""`labref ledger --check`: a sound lab is found sound, every kind of damage is found, and what can be is put right."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import pytest
from typer.testing import CliRunner

from labref.bundles.bundle import Bundle
from labref.cli import app
from labref.lab import Lab
from labref.web import desk
from labref.web.desk import ask
from tests.labs import make_lab, once, running_agent, wait_until


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory, drawn_cells: Path, starter: Bundle) -> tuple[Path, Path]:
    """A lab folder with its eight cells taken in, and its export, to be copied by each test: each check runs the
    networks on every cell."""
    root = tmp_path_factory.mktemp("filled")
    export = root / "export"
    for label in ("monocyte", "platelet"):
        shutil.copytree(drawn_cells / label, export / label)
    first = next(export.rglob("*.jpg"))
    (export / "copy.jpg").write_bytes(first.read_bytes())
    (export / "text.jpg").write_bytes(b"no image at all")
    once(make_lab(root / "lab", export, starter))
    return root / "lab", export


@pytest.fixture
def lab(filled: tuple[Path, Path], tmp_path: Path) -> Lab:
    shutil.copytree(filled[0], tmp_path / "lab")
    shutil.copytree(filled[1], tmp_path / "export")
    (tmp_path / "lab" / "labref.toml").write_text(
        f"[watch]\nfolders = ['{tmp_path / 'export'}']\nstable_seconds = 0.1\ncomplete_seconds = 0.2\n"
    )
    with duckdb.connect(str(tmp_path / "lab" / "store.duckdb")) as connection:
        for table in ("cell", "file"):
            connection.execute(
                f"UPDATE {table} SET path = replace(path, ?, ?)", [str(filled[1]), str(tmp_path / "export")]
            )
        connection.execute("UPDATE file SET ctime_ns = NULL, inode = NULL")  # of the copied files they are others
    return Lab.open(tmp_path / "lab")


def check(lab: Lab, **how: int) -> tuple[bool, dict[str, int], dict[str, int]]:
    """Whether all is well, faults by kind, and repairs by kind."""
    rows = list(desk.run(lab, "ledger.check", **how))
    faults = {row["fault"]: row["count"] for row in rows if "fault" in row}
    repaired = {row["repaired"]: row["count"] for row in rows if "repaired" in row}
    assert rows[-1]["ok"] is (not faults)
    return rows[-1]["ok"], faults, repaired


def sql(*statements: str) -> Callable[[Lab], None]:
    def damage(lab: Lab) -> None:
        with duckdb.connect(str(lab.store_file)) as connection:
            for statement in statements:
                connection.execute(statement)

    return damage


def kept(lab: Lab) -> list[Path]:
    return sorted(path for path in lab.images.rglob("*") if path.is_file())


def spoil(lab: Lab) -> None:
    data = bytearray(kept(lab)[0].read_bytes())
    data[len(data) // 2] ^= 1
    kept(lab)[0].write_bytes(data)


def add_stray(lab: Lab) -> None:
    lab.store_image(b"bytes of nobody", "ab" * 32)


A_CELL = "(SELECT min(cell_id) FROM cell)"


def test_a_sound_lab_is_found_sound(lab: Lab) -> None:
    rows = list(desk.run(lab, "ledger.check"))
    assert rows[0]["summary"] == {
        "files": 10,
        "outcomes": {"stored": 8, "duplicate": 1, "possible_duplicate": 0, "rejected": 1},
        "cells": 8,
        "embeddings": 8,
    }
    assert rows[-1]["ok"] is True
    export, images = rows[-1]["checked"]["export"], rows[-1]["checked"]["images"]
    assert export == {
        "on_disk": 10,
        "with_outcome": 10,
        "without_outcome": 0,
        "changed": 0,
        "gone": 0,
        "unreadable_folders": 0,
        "others": {},
        "reserved": 0,
    }
    assert images == {"read": 8, "in_trash": 0, "bytes": sum(path.stat().st_size for path in kept(lab))}


@pytest.mark.parametrize(
    ("kind", "damage"),
    [
        ("cell_without_embedding", sql(f"DELETE FROM embedding_1 WHERE cell_id = {A_CELL}")),
        (
            "embedding_without_cell",
            sql(
                "INSERT INTO embedding_1 SELECT '0123456789abcdef', latent, probabilities, predicted_label, "
                "predicted_probability FROM embedding_1 LIMIT 1"
            ),
        ),
        ("outcome_without_cell", sql("UPDATE file SET cell_id = '0123456789abcdef' WHERE path LIKE '%copy.jpg'")),
        ("cell_without_file", sql(f"DELETE FROM file WHERE cell_id = {A_CELL}")),
        ("file_without_valid_outcome", sql("UPDATE file SET outcome = 'lost' WHERE path LIKE '%text.jpg'")),
        (
            "duplicate_of_nothing",
            sql(f"UPDATE cell SET duplicate_of = '0123456789abcdef' WHERE cell_id = {A_CELL}"),
        ),
        ("image_missing", lambda lab: kept(lab)[0].unlink()),
        ("image_damaged", spoil),
        ("image_without_cell", add_stray),
    ],
)
def test_damage_is_found_and_repaired(lab: Lab, kind: str, damage: Callable[[Lab], None]) -> None:
    image = next((lab.watched[0] / "monocyte").iterdir()).read_bytes()
    before = ask(lab, image, name="x")
    damage(lab)
    ok, faults, _ = check(lab)
    assert not ok and faults[kind] >= 1
    _, left, repaired = check(lab, repair=True)
    assert repaired[kind] >= 1
    once(replace(lab, config=lab.config))  # what was forgotten is taken in again
    assert check(lab) == (True, {}, {}), left
    after = ask(lab, image, name="x")
    assert without_time(after) == without_time(before)


def without_time(answer: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in answer.items() if key != "timings_ms"}


def test_a_cell_outlives_its_file(lab: Lab) -> None:
    files = sorted(path for path in lab.watched[0].rglob("*.jpg") if path.parent.name in ("monocyte", "platelet"))[:6]
    with closing(lab.open_store()) as store:
        cells = store.cells_of_files(map(str, files))
    by_new, by_stored, by_text, by_folder, gone, other = files
    by_new.write_bytes(other.read_bytes() + b"\0")
    by_stored.write_bytes(other.read_bytes())
    by_text.write_bytes(b"no image any more")
    by_folder.unlink()
    by_folder.mkdir()
    gone.unlink()
    once(lab)
    assert check(lab, latents=0, repair=True) == (True, {}, {})
    with closing(lab.open_store()) as store:
        assert all(cell is not None and store.cell(cell) is not None for cell in cells.values())


def test_cells_that_the_ledger_does_not_know_come_back_once_a_path(lab: Lab) -> None:
    """Two cells of one path: it was replaced. Nothing of the ledger is left of it."""
    one, other = sorted((lab.watched[0] / "monocyte").iterdir())[:2]
    one.write_bytes(other.read_bytes() + b"\0")
    once(lab)
    with duckdb.connect(str(lab.store_file)) as connection:
        for table in ("file", "file_history"):
            connection.execute(f"DELETE FROM {table} WHERE path = ?", [str(one)])
    _, left, repaired = check(lab, repair=True, latents=0)
    assert (left, repaired) == ({"file_changed": 1}, {"cell_without_file": 2})
    once(lab)
    assert check(lab, quick=True) == (True, {}, {})


def test_a_repair_says_what_it_did_and_no_more(lab: Lab) -> None:
    """A cell whose bytes are gone cannot be embedded again; an outcome that was its only one comes back."""
    sql(f"UPDATE embedding_1 SET predicted_probability = 'nan' WHERE cell_id = {A_CELL}")(lab)
    with duckdb.connect(str(lab.store_file)) as connection:
        (found,) = connection.execute(f"SELECT digest FROM cell WHERE cell_id = {A_CELL}").fetchall()
        paths = connection.execute(f"SELECT path FROM file WHERE cell_id = {A_CELL}").fetchall()
    lab.image_path(found[0]).unlink()
    for (path,) in paths:
        Path(path).unlink()
    sql("UPDATE file SET outcome = 'lost' WHERE cell_id = (SELECT max(cell_id) FROM cell)")(lab)
    _, left, repaired = check(lab, repair=True, latents=0)
    assert left.pop("image_missing") == 1 and set(repaired) == {"file_without_valid_outcome"}
    assert set(left) == {"file_changed"}, "the outcome was forgotten, its cell was not"
    with duckdb.connect(str(lab.store_file)) as connection:
        assert connection.execute("SELECT count(*) FROM file_history WHERE outcome = 'lost'").fetchall() == [(0,)]


def test_bytes_that_are_nowhere_else_stay_a_fault(lab: Lab) -> None:
    digest = kept(lab)[0].name
    with closing(lab.open_store()) as store:
        (path,) = [Path(path) for path in store.paths(digest[:16])][:1]
        paths = [Path(path) for path in store.paths(digest[:16])]
    for path in paths:
        path.unlink()
    kept(lab)[0].unlink()
    ok, faults, repaired = check(lab, repair=True)
    assert (ok, faults, repaired) == (False, {"image_missing": 1}, {})


def test_lost_bytes_come_back_with_a_copy_of_the_file(lab: Lab) -> None:
    """The file was moved since, so `--repair` cannot know where it lies; the agent meets it there."""
    lost = kept(lab)[0]
    with closing(lab.open_store()) as store:
        paths = [Path(path) for path in store.paths(lost.name[:16])]
    data = paths[0].read_bytes()
    for path in paths:
        path.unlink()
    lost.unlink()
    (lab.watched[0] / "moved.jpg").write_bytes(data)
    once(lab)
    assert lost.read_bytes() == data
    assert check(lab) == (True, {}, {})


def test_bytes_of_nobody_are_set_aside_not_deleted(lab: Lab) -> None:
    add_stray(lab)
    check(lab, repair=True)
    assert (lab.folder / "unclaimed" / ("ab" * 32)).read_bytes() == b"bytes of nobody"


def test_new_and_changed_files_wait_for_the_agent(lab: Lab) -> None:
    one, other = sorted(lab.watched[0].rglob("*.jpg"))[:2]
    (lab.watched[0] / "new.jpg").write_bytes(one.read_bytes() + b"more")
    os.utime(other, ns=(1, 1))
    assert check(lab) == (False, {"file_without_outcome": 1, "file_changed": 1}, {})
    once(lab)
    assert check(lab)[0]


def test_a_missing_share_is_no_proof(lab: Lab) -> None:
    lab.watched[0].rename(lab.watched[0].with_name("away"))
    rows = list(desk.run(lab, "ledger.check"))
    assert [row["fault"] for row in rows if "fault" in row] == ["folder_unreadable"]
    assert rows[-1]["checked"]["export"]["gone"] == 10
    assert check(lab, quick=True)[0], "the store itself is sound"
    lab.watched[0].with_name("away").rename(lab.watched[0])
    assert check(lab)[0]


def test_the_running_agent_checks_and_repairs(lab: Lab) -> None:
    kept(lab)[0].unlink()
    sql("UPDATE file SET cell_id = '0123456789abcdef' WHERE path LIKE '%copy.jpg'")(lab)
    with running_agent(lab):
        assert set(check(lab)[1]) == {"image_missing", "outcome_without_cell"}
        _, _, repaired = check(lab, repair=True)
        assert repaired == {"outcome_without_cell": 1, "image_missing": 1}
        wait_until(lambda: check(lab)[0])
        add_stray(lab)
        assert check(lab)[0], "bytes this fresh may belong to a cell that is just being stored"


@pytest.fixture
def command() -> Iterator[CliRunner]:
    yield CliRunner()


def test_the_command_says_it_and_exits_with_it(lab: Lab, command: CliRunner) -> None:
    done = command.invoke(app, ["ledger", "--check", "--json", "--lab", str(lab.folder)])
    said = json.loads(done.stdout)
    assert done.exit_code == 0 and said["ok"] and said["faults"] == [] and said["summary"]["cells"] == 8
    kept(lab)[0].unlink()
    done = command.invoke(app, ["ledger", "--check", "--lab", str(lab.folder)])
    assert done.exit_code == 1
    assert "FAULT: 1 x image_missing; --repair" in done.stdout
    assert command.invoke(app, ["ledger", "--quick", "--lab", str(lab.folder)]).exit_code == 2
