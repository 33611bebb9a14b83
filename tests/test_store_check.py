"""What `labref store check` and `labref ledger --check` see: every block of the store's file, and wrong latents."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
from typer.testing import CliRunner

from labref.bundles.bundle import Bundle
from labref.cli import app
from labref.errors import StoreError
from labref.lab import Lab
from labref.store import Store
from labref.web import desk
from tests.labs import make_lab, once
from tests.stores import BUNDLE, activate, new_cell, use_map

HEADERS = 3 * 4096


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, drawn_cells: Path, starter: Bundle) -> Lab:
    """A lab with 32 cells, its store in small blocks; tests leave it as it is."""
    root = tmp_path_factory.mktemp("check")
    shutil.copytree(drawn_cells, root / "export")
    lab = make_lab(root / "lab", root / "export", starter)
    once(lab)
    whole = lab.store_file.with_name("whole")
    lab.store_file.rename(whole)
    with duckdb.connect() as connection:
        connection.execute(f"ATTACH '{whole}' AS whole (READ_ONLY)")
        connection.execute(f"ATTACH '{lab.store_file}' AS small (BLOCK_SIZE 16384)")
        connection.execute("COPY FROM DATABASE whole TO small")
    whole.unlink()
    return lab


@pytest.fixture
def lab(tmp_path: Path, made: Lab) -> Lab:
    """A copy of it."""
    shutil.copytree(made.folder, tmp_path / "lab")
    return Lab.open(tmp_path / "lab")


def flip(file: Path, at: int) -> None:
    """Change one bit."""
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)


def checked(lab: Lab) -> dict[str, Any]:
    return list(desk.run(lab, "store.check"))[-1]


def of_indexes(connection: duckdb.DuckDBPyConnection) -> list[int]:
    """The numbers of the blocks that hold no table and no list of tables."""
    total = connection.execute("SELECT total_blocks FROM pragma_database_size()").fetchall()[0][0]
    known = {block for (block,) in connection.execute("SELECT block_id FROM pragma_metadata_info()").fetchall()}
    for (table,) in connection.execute("SELECT table_name FROM duckdb_tables()").fetchall():
        blocks = f"SELECT unnest(list_append(additional_block_ids, block_id)) FROM pragma_storage_info('{table}')"
        known |= {block for (block,) in connection.execute(blocks).fetchall()}
    return sorted(set(range(total)) - known)


def test_a_flipped_bit_is_seen_in_every_block(lab: Lab) -> None:
    sound = checked(lab)
    assert sound["ok"] and sound["damaged"] == {}
    whole = lab.store_file.read_bytes()
    blocks = (len(whole) - HEADERS) // 16384
    assert sound["blocks"] == blocks + 3 and blocks >= 10
    with duckdb.connect(str(lab.store_file), read_only=True) as connection:
        indexes = of_indexes(connection)
    assert indexes
    rng = np.random.default_rng(1)
    for block in sorted({*range(0, blocks, 3), *indexes[:4]}):  # a third of them, whatever they hold
        flip(lab.store_file, HEADERS + block * 16384 + int(rng.integers(16384)))
        try:
            row = checked(lab)
        except StoreError as error:  # it cannot even be opened
            assert "damaged" in str(error) or "cannot be read" in str(error) or "orrupt" in str(error)
            assert block not in indexes
        else:
            assert not row["ok"] and row["faults"]["block_damaged"] == 1
            if block in indexes:
                assert row["damaged"] == {"an index, or nothing any more": 1} and row["tables"]["cell"] == 32
        lab.store_file.write_bytes(whole)
        lab.store_file.with_name("store.duckdb.wal").unlink(missing_ok=True)
    assert checked(lab)["ok"]


@pytest.mark.skipif(sys.platform == "win32", reason="the blocks of an open store cannot be read there")
def test_the_store_stays_locked_when_its_blocks_were_read(lab: Lab) -> None:
    """A lock of POSIX ends when its process closes the file, wherever it does so."""
    other = [sys.executable, "-c", f"import duckdb; duckdb.connect({str(lab.store_file)!r})"]
    with lab.open_store() as store:
        for _ in range(2):
            assert store.blocks() is not None
            done = subprocess.run(other, capture_output=True, text=True)
            assert done.returncode == 1 and "lock" in done.stderr
    assert subprocess.run(other).returncode == 0


def test_what_is_damaged_while_the_store_is_open_is_seen(lab: Lab) -> None:
    """DuckDB has the blocks in its memory, and would not look again."""
    with lab.open_store() as store:
        store.read_all()
        before = store.blocks()
        assert before is not None and before.damaged == ()
        with store._reading() as cursor:
            block = of_indexes(cursor)[0]
        flip(lab.store_file, HEADERS + block * 16384 + 100)
        flip(lab.store_file, 4096 + 50)
        after = store.blocks()
        assert after is not None
        assert sorted(after.damaged) == ["an index, or nothing any more", "the file's header"]


def test_a_lab_with_a_damaged_index_loses_nothing(lab: Lab, tmp_path: Path) -> None:
    with duckdb.connect(str(lab.store_file), read_only=True) as connection:
        indexes = of_indexes(connection)
    for block in indexes:
        flip(lab.store_file, HEADERS + block * 16384 + 1000)
    done = CliRunner().invoke(app, ["store", "check", "--lab", str(lab.folder)])
    assert done.exit_code == 1
    assert "DAMAGED" in done.stdout and "labref store backup" in done.stderr
    where = ["--lab", str(lab.folder)]
    done = CliRunner().invoke(app, ["store", "backup", str(tmp_path / "backup"), *where])
    assert done.exit_code == 0, done.output
    done = CliRunner().invoke(app, ["store", "restore", str(tmp_path / "backup"), str(tmp_path / "back"), "--json"])
    assert done.exit_code == 0 and json.loads(done.stdout)["cells"] == 32
    back = Lab.open(tmp_path / "back")
    assert checked(back)["ok"]
    with back.open_store() as store:
        activate(store)
        store.record([new_cell(1)], bundle=BUNDLE)
        assert store.counts().cells == 33


def test_blocks_are_sound_while_the_store_is_written(tmp_path: Path) -> None:
    """A block that is being written is no damaged one; nor is one that was let go."""
    with Store.create(tmp_path / "store.duckdb") as store:
        activate(store)
        done = threading.Event()

        def write() -> None:
            try:
                for start in range(0, 250, 50):
                    store.record([new_cell(n) for n in range(start, start + 50)], bundle=BUNDLE)
                    with store._transaction() as connection:
                        connection.execute("DELETE FROM fingerprint")
                    # refused where blocks are just being read; the next one comes
                    with contextlib.suppress(StoreError), store.quiet(), store._reading() as cursor:
                        cursor.execute("CHECKPOINT")
            finally:
                done.set()  # what failed here, pytest tells

        writer = threading.Thread(target=write)
        writer.start()
        found = []
        while not done.wait(0.02):  # without a pause, the writer would hardly have its turn
            found.append(store.blocks())
        writer.join()
        found.append(store.blocks())
        assert len(found) > 2 and all(blocks is not None and blocks.damaged == () for blocks in found)


# latents


def found(lab: Lab, **how: Any) -> tuple[dict[str, list[str]], dict[str, Any]]:
    """Faults by kind, and the last row, of `ledger.check`."""
    told = list(desk.run(lab, "ledger.check", **how))
    return {row["fault"]: sorted(row["examples"]) for row in told if "fault" in row}, told[-1]


def test_a_latent_that_is_not_its_cells_or_not_finite_is_noticed_and_made_anew(lab: Lab) -> None:
    faults, ended = found(lab)
    assert faults == {} and ended["checked"]["latents"]["compared"] == 32
    assert 0 <= ended["checked"]["latents"]["largest"] < 0.02
    with duckdb.connect(str(lab.store_file)) as connection:
        ids = [row[0] for row in connection.execute("SELECT cell_id FROM cell ORDER BY cell_id").fetchall()]
        before = connection.execute("SELECT cell_id, latent FROM embedding_1 ORDER BY cell_id").fetchall()
        swapped, one, two, three = ids[3:5], ids[7], ids[9], ids[11]
        connection.execute(
            "UPDATE embedding_1 SET latent = o.latent FROM embedding_1 o WHERE embedding_1.cell_id IN (?, ?) "
            "AND o.cell_id IN (?, ?) AND o.cell_id <> embedding_1.cell_id",
            [*swapped, *swapped],
        )
        for cell_id, column, value in (
            (one, "latent", "nan"),
            (two, "latent", "-inf"),
            (three, "probabilities", "inf"),
        ):
            connection.execute(
                f"UPDATE embedding_1 SET {column} = list_transform({column}, lambda x, i: "
                f"CASE WHEN i = 3 THEN '{value}'::FLOAT ELSE x END) WHERE cell_id = ?",
                [cell_id],
            )
    faults, ended = found(lab)
    assert faults == {"latent_not_finite": sorted([one, two, three]), "latent_of_another_cell": sorted(swapped)}
    assert not ended["ok"]
    assert found(lab, quick=True)[0] == {"latent_not_finite": sorted([one, two, three])}, "without the networks"
    assert found(lab, latents=0)[1]["checked"]["latents"] is None
    done = CliRunner().invoke(app, ["ledger", "--check", "--lab", str(lab.folder)])
    assert done.exit_code == 1 and "latent_of_another_cell" in done.stderr
    assert found(lab, repair=True)[1]["ok"]
    assert found(lab)[0] == {}
    with duckdb.connect(str(lab.store_file)) as connection:
        after = connection.execute("SELECT cell_id, latent FROM embedding_1 ORDER BY cell_id").fetchall()
    assert [cell for cell, _ in after] == ids
    assert np.array([x for _, x in after]) == pytest.approx(np.array([x for _, x in before]), abs=1e-3)


# other values that cannot be


def test_values_that_cannot_be_are_noticed_and_put_right(lab: Lab, starter: Bundle) -> None:
    """Of each kind one cell, or two that changed places."""
    with lab.open_store() as store:
        parts = [latents for _, latents in store.maps.latents(starter.digest)]
        use_map(store, starter.digest, np.concatenate(parts)[:30].reshape(5, 6, -1))
        ids = sorted(store.sample(32))
    damaged = iter(ids)
    whose = "WHERE cell_id = '{}'"
    set_all = "UPDATE embedding_1 SET {0} = list_transform({0}, lambda x: {1}::FLOAT) " + whose
    expected: dict[str, list[str]] = {}

    def damage(kind: str, *statements: str) -> None:
        for statement in statements:
            cell = next(damaged)
            expected.setdefault(kind, []).append(cell)
            with duckdb.connect(str(lab.store_file)) as connection:
                connection.execute(statement.format("{0}", cell) if "{0}" in statement else statement.format(cell))

    damage("latent_not_finite", set_all.replace("{0}", "latent").replace("{1}", "1e18"))
    damage(
        "prediction_impossible",
        *(set_all.replace("{0}", "probabilities").replace("{1}", value) for value in ("0.9", "-0.9", "0")),
        f"UPDATE embedding_1 SET predicted_label = 'unicorn' {whose}",
        f"UPDATE embedding_1 SET predicted_probability = 7 {whose}",
    )
    damage(
        "place_off_map",
        f"UPDATE map_position SET node = 30 {whose}",
        f"UPDATE map_position SET node = -1 {whose}",
        f"UPDATE map_position SET quantization_error = 'nan' {whose}",
    )
    damage("measure_not_finite", f"UPDATE measure SET focus = 'nan' {whose}")
    damage(
        "duplicate_of_nothing",
        f"UPDATE cell SET duplicate_of = cell_id, duplicate_verdict = 'duplicate' {whose}",
        f"UPDATE cell SET duplicate_of = (SELECT max(cell_id) FROM cell) {whose}",
    )
    damage("cell_without_valid_label", f"UPDATE cell SET label_source = 'oracle' {whose}")
    faults, _ = found(lab, quick=True)
    assert faults == {kind: sorted(cells) for kind, cells in expected.items()}
    assert checked(lab)["faults"] == {kind: len(cells) for kind, cells in expected.items()}
    # whoever looks meanwhile meets no place that the map does not have, and no number that is none
    with lab.open_store() as store:
        active = store.maps.active(starter.digest)
        assert active is not None and len(active.positions) == 30
        assert len(list(store.maps.cells(starter.digest))) == 30
    assert json.loads(CliRunner().invoke(app, ["status", "--json", "--lab", str(lab.folder)]).stdout)["cells"] == 32
    # what only the networks and the map can say
    wrong = next(damaged), next(damaged)
    with duckdb.connect(str(lab.store_file)) as connection:
        connection.execute("UPDATE cell SET label_source = 'analyser'")
        connection.execute("UPDATE map_position SET node = (node + 15) % 30 WHERE cell_id = ?", [wrong[0]])
        connection.execute(
            "UPDATE embedding_1 SET predicted_probability = 0.2, predicted_label = CASE predicted_label WHEN 'blast' "
            "THEN 'monocyte' ELSE 'blast' END WHERE cell_id = ?",
            [wrong[1]],
        )
    told = list(desk.run(lab, "ledger.check", repair=True))
    repaired = {row["repaired"]: row["count"] for row in told if "repaired" in row}
    del expected["cell_without_valid_label"]
    assert repaired == {kind: len(cells) for kind, cells in expected.items()} | {
        "place_of_another_cell": 1,
        "prediction_of_another_cell": 1,
    }
    assert told[-1]["ok"], told
    with lab.open_store() as store:
        active = store.maps.active(starter.digest)
        assert active is not None and len(active.positions) == 32


OTHER_WORDS = {
    "file_history.outcome": "INSERT INTO file_history BY NAME SELECT * REPLACE ('oracle' AS outcome), recorded_at AS "
    "replaced_at, 0 AS number FROM file LIMIT 1",
    "file.label_source": "UPDATE file SET label_source = 'oracle'",
    "label_change.previous_source": "UPDATE label_change SET previous_source = 'oracle'",
    "resemblance.verdict": "INSERT INTO resemblance (cell, other, score, verdict, found_at, number) SELECT cell_id, "
    "cell_id, 0.5, 'oracle', added_at, 0 FROM cell LIMIT 1",
    "duplicate_decision.decision": "INSERT INTO duplicate_decision (cell, other, decision, decided_at, number) SELECT "
    "cell_id, cell_id, 'oracle', added_at, 0 FROM cell LIMIT 1",
    "person.role": "UPDATE person SET role = 'oracle'",
    "quality.reason": "UPDATE quality SET reason = 'oracle', is_cell = FALSE",
}


@pytest.mark.parametrize(
    "command", [["query", "PATH"], ["label", "set", "CELL", "basophil"], ["label", "history", "CELL"]]
)
def test_a_label_source_that_nobody_knows_is_an_error_that_says_where(lab: Lab, command: list[str]) -> None:
    where = ["--lab", str(lab.folder)]
    with duckdb.connect(str(lab.store_file)) as connection:
        ((cell, path),) = connection.execute("SELECT min(cell_id), arg_min(path, cell_id) FROM cell").fetchall()
        connection.execute("UPDATE cell SET label_source = 'oracle' WHERE cell_id = ?", [cell])
    done = CliRunner().invoke(app, [{"CELL": cell, "PATH": path}.get(word, word) for word in command] + where)
    assert done.exit_code == 1 and isinstance(done.exception, SystemExit)
    assert "'oracle' as" in done.stderr and "label source" in done.stderr and "labref ledger --check" in done.stderr
    done = CliRunner().invoke(app, ["store", "check", *where])
    assert done.exit_code == 1 and "1 x cell_without_valid_label" in done.stderr
    done = CliRunner().invoke(app, ["ledger", "--check", "--quick", *where])
    assert done.exit_code == 1 and cell in done.output


def test_any_word_that_nobody_knows_is_named_by_the_checks(lab: Lab) -> None:
    """Of each column that holds one of a few words."""
    where = ["--lab", str(lab.folder)]
    runner = CliRunner()
    assert runner.invoke(app, ["user", "add", "Anna", *where]).exit_code == 0
    with lab.open_store() as store:
        cell = sorted(store.sample(32))[0]
    assert runner.invoke(app, ["label", "set", cell, "basophil", *where]).exit_code == 0
    with duckdb.connect(str(lab.store_file)) as connection:
        for statement in OTHER_WORDS.values():
            ((count,),) = connection.execute(statement).fetchall()
            assert count > 0, statement
    faults, _ = found(lab, quick=True)
    assert faults == {"word_unknown": [f"{column}: 'oracle'" for column in sorted(OTHER_WORDS)]}
    assert checked(lab)["faults"] == {"word_unknown": len(OTHER_WORDS)}
    for command in (["user", "list"], ["label", "history", cell], ["duplicates", "list"], ["ledger"], ["query", cell]):
        done = runner.invoke(app, [*command, *where])
        assert done.exception is None or isinstance(done.exception, SystemExit), (command, done.exception)
