"""The life of a store: checked, backed up while it is used, restored elsewhere, exported, thinned out, upgraded."""

from __future__ import annotations

import io
import json
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import duckdb
import pytest
from PIL import Image
from typer.testing import CliRunner

from labref.bundles.bundle import Bundle
from labref.cli import app
from labref.config import RetentionConfig
from labref.errors import LabError, LabrefError, StoreError, StoreTooNewError
from labref.lab import Lab
from labref.lab.log import open_log
from labref.progress import rows_of
from labref.store import Store
from labref.store.duckdb import migrations
from labref.tasks.backup import restore, write
from labref.tasks.context import Context
from labref.tasks.jobs import Job, Jobs, Running
from labref.tasks.retention_job import keep_retention
from labref.web import desk
from labref.web.desk import Desk, ask, ledger_rows
from tests.labs import ledger, make_lab, once, running_agent

SCHEMAS = Path(__file__).parent / "schemas"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, drawn_cells: Path, starter: Bundle) -> Lab:
    """A lab with 32 cells; tests leave it as it is."""
    root = tmp_path_factory.mktemp("life")
    shutil.copytree(drawn_cells, root / "export")
    made = make_lab(root / "lab", root / "export", starter)
    once(made)
    return made


@pytest.fixture
def own(tmp_path: Path, lab: Lab) -> Lab:
    """A copy of it, to be changed; it watches the same export."""
    shutil.copytree(lab.folder, tmp_path / "own")
    return replace(lab, folder=tmp_path / "own")


def result(steps: Any) -> Any:
    """What steps return."""
    rows = rows_of(steps)
    try:
        while True:
            next(rows)
    except StopIteration as ended:
        return ended.value


def last(lab: Lab, name: str, **parameters: Any) -> dict[str, Any]:
    return list(desk.run(lab, name, **parameters))[-1]


def answers(lab: Lab) -> list[Any]:
    """What the lab says to some questions, but for the time it took."""
    images = [path for path in sorted(lab.images.rglob("*")) if path.is_file()][:2]
    with Desk.open(lab) as desk:
        found = [desk.ask(path.read_bytes(), name="x") for path in images]
    return [{key: value for key, value in answer.items() if key != "timings_ms"} for answer in found]


# check


def test_a_sound_store_is_read_whole(lab: Lab) -> None:
    found = last(lab, "store.check")
    assert found["ok"] and found["faults"] == {}
    assert found["tables"]["cell"] == 32 and found["tables"]["embedding_1"] == 32
    assert found["schema"] == migrations.latest_version()
    assert [bundle["state"] for bundle in found["bundles"]] == ["sound"]


def test_a_damaged_bundle_is_said(own: Lab) -> None:
    trunk = next(own.bundles.rglob("trunk.onnx"))
    data = bytearray(trunk.read_bytes())
    data[1000] ^= 1
    trunk.write_bytes(data)
    found = last(own, "store.check")
    assert not found["ok"] and found["bundles"][0]["state"] == "damaged"


def test_a_damaged_block_is_said(own: Lab) -> None:
    data = bytearray(own.store_file.read_bytes())
    for at in range(3 * 4096, len(data), 9973):
        data[at] ^= 0xFF
    own.store_file.write_bytes(data)
    with pytest.raises(LabrefError, match="backup"):
        last(own, "store.check")


# backup


@pytest.mark.parametrize("name", ["copy", "copy.zip"])
def test_a_restored_lab_answers_alike(lab: Lab, tmp_path: Path, name: str) -> None:
    told = last(lab, "store.backup", target=str(tmp_path / name))
    assert told["ok"] and told["cells"] == 32 and told["images_copied"] == 32 and told["missing"] == []
    back = result(restore(tmp_path / name, tmp_path / "back"))
    assert answers(back) == answers(lab)
    assert list(ledger_rows(back)) == list(ledger_rows(lab))
    assert list(desk.run(back, "ledger.check"))[-1]["ok"]
    assert back.token() != lab.token(), "a secret is not in a backup"
    again = once(back)
    assert again.embedded == 0 and again.unchanged == again.found


def test_a_backup_of_a_lab_in_use_is_of_one_moment(own: Lab, tmp_path: Path) -> None:
    with running_agent(own):
        done = threading.Event()

        def ask_on() -> None:
            while not done.is_set():
                assert ask(own, next(path for path in own.images.rglob("*") if path.is_file()).read_bytes(), name="x")

        asking = threading.Thread(target=ask_on)
        asking.start()
        try:
            told = last(own, "store.backup", target=str(tmp_path / "copy"))
        finally:
            done.set()
            asking.join()
        assert told["ok"] and told["cells"] == 32
    back = result(restore(tmp_path / "copy", tmp_path / "back"))
    assert answers(back) == answers(own)


def test_the_same_folder_takes_the_next_backup(own: Lab, tmp_path: Path, drawn_cells: Path) -> None:
    target = tmp_path / "copy"
    last(own, "store.backup", target=str(target))
    export = tmp_path / "more"
    export.mkdir()
    picture = Image.open(next(drawn_cells.rglob("*.jpg"))).transpose(Image.Transpose.ROTATE_90)
    picture.save(export / "new.jpg", quality=95)
    watch = own.config.watch.model_copy(update={"folders": (export,)})
    once(replace(own, config=own.config.model_copy(update={"watch": watch})))
    told = last(own, "store.backup", target=str(target))
    assert told["cells"] == 33 and told["images_copied"] == 1
    record = json.loads((target / "backup.json").read_text())
    assert {path.name for path in (target / "files").iterdir()} == {f["sha256"] for f in record["files"].values()}
    assert answers(result(restore(target, tmp_path / "back"))) == answers(own)


def test_a_damaged_backup_is_not_restored(lab: Lab, tmp_path: Path) -> None:
    target = tmp_path / "copy"
    last(lab, "store.backup", target=str(target))
    image = next(path for path in (target / "images").rglob("*") if path.is_file())
    image.write_bytes(image.read_bytes()[:-1] + b"?")
    with pytest.raises(LabError, match=r"damaged; use another"):
        result(restore(target, tmp_path / "back"))
    assert not (tmp_path / "back").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy"], "nothing is left"
    last(lab, "store.backup", target=str(target))  # the next backup mends it
    assert result(restore(target, tmp_path / "back")).store_file.exists()


def test_lost_bytes_are_said_and_the_rest_is_saved(own: Lab, tmp_path: Path) -> None:
    lost = next(path for path in own.images.rglob("*") if path.is_file())
    lost.unlink()
    told = last(own, "store.backup", target=str(tmp_path / "copy"))
    assert not told["ok"] and told["missing"] == [lost.name] and told["images_copied"] == 31


def test_a_backup_replaces_nothing_else(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("mine")
    (tmp_path / "full.zip").write_text("mine")
    for target in (tmp_path / "full", tmp_path / "full.zip", lab.folder / "images" / "b", lab.watched[0] / "b.zip"):
        with pytest.raises(LabError):
            last(lab, "store.backup", target=str(target))
    assert (tmp_path / "full.zip").read_text() == "mine"
    with pytest.raises(LabError, match="no backup"):
        result(restore(tmp_path / "full", tmp_path / "back"))
    last(lab, "store.backup", target=str(tmp_path / "good"))
    with pytest.raises(LabError, match="not empty"):
        result(restore(tmp_path / "good", tmp_path / "full"))


def test_a_backup_of_a_newer_labref_is_refused_with_its_version(lab: Lab, tmp_path: Path) -> None:
    target = tmp_path / "copy"
    with lab.open_store() as store:
        result(write(lab, store, target))
    record = json.loads((target / "backup.json").read_text())
    (target / "backup.json").write_text(json.dumps(record | {"format": 2, "labref": "9.1"}))
    with pytest.raises(LabError, match=r"made by labref 9\.1"):
        result(restore(target, tmp_path / "back"))


def test_the_commands(lab: Lab, tmp_path: Path) -> None:
    def run(*arguments: str) -> Any:
        done = CliRunner().invoke(app, ["store", *arguments, "--json"])
        assert done.exit_code == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()][-1]

    where = ("--lab", str(lab.folder))
    (tmp_path / "elsewhere").mkdir()
    assert run("check", *where)["ok"]
    assert run("backup", str(tmp_path / "b.zip"), *where)["cells"] == 32
    back = run("restore", str(tmp_path / "b.zip"), str(tmp_path / "back"), "--watch", str(tmp_path / "elsewhere"))
    assert back["cells"] == 32
    assert Lab.open(tmp_path / "back").watched == (tmp_path / "elsewhere",)
    assert run("export", str(tmp_path / "cells.parquet"), *where)["cells"] == 32
    refused = CliRunner().invoke(app, ["store", "retain", *where])
    assert refused.exit_code == 1 and "keeps all cells" in refused.stderr


# export


def test_the_parquet_file_has_all_of_a_cell(lab: Lab, tmp_path: Path, embedder: Any) -> None:
    target = tmp_path / "cells.parquet"
    told = last(lab, "store.export", target=str(target), pixels=64)
    assert told["cells"] == 32 and told["without_thumbnail"] == 0
    with duckdb.connect() as connection:
        found = connection.execute(f"SELECT * FROM '{target}'")
        columns = [column[0] for column in found.description or ()]
        cells = [dict(zip(columns, row, strict=True)) for row in found.fetchall()]
    assert "path" not in columns and "slide" not in columns
    with lab.open_store() as store:
        bundle = store.active_bundle() or ""
        latents = store.latents([cell["cell_id"] for cell in cells], bundle=bundle)
        for cell in cells:
            assert cell["latent"] == latents[cell["cell_id"]].tolist()
            stored = store.cell(cell["cell_id"])
            assert stored is not None and (stored.label, str(stored.label_source)) == (
                cell["label"],
                cell["label_source"],
            )
            assert max(cell["probabilities"], key=cell["probabilities"].get) == cell["predicted_label"]
            with Image.open(io.BytesIO(cell["thumbnail"]["bytes"])) as picture:
                assert picture.size == (64, 64)
    with pytest.raises(LabError, match="never replaces"):
        last(lab, "store.export", target=str(target))
    last(lab, "store.export", target=str(tmp_path / "all.parquet"), thumbnails=False, identifying=True)
    with duckdb.connect() as connection:
        (paths,) = connection.execute(f"SELECT count(DISTINCT path) FROM '{tmp_path / 'all.parquet'}'").fetchall()
    assert paths == (32,)


# retention


def keeping(lab: Lab, **how: Any) -> Lab:
    return replace(
        lab, config=lab.config.model_copy(update={"retention": RetentionConfig(**{"percent_a_day": 100} | how)})
    )


def test_a_lab_keeps_everything_unless_told(own: Lab) -> None:
    with pytest.raises(LabrefError, match="keeps all cells"):
        last(own, "store.retain")


def test_the_newest_of_each_class_stay_and_reviewed_ones_longest(own: Lab) -> None:
    with duckdb.connect(str(own.store_file)) as connection:
        connection.execute("UPDATE cell SET duplicate_of = NULL, duplicate_group = NULL")
        connection.execute(
            "UPDATE cell SET label_source = 'reviewed' WHERE cell_id IN "
            "(SELECT min(cell_id) FROM cell WHERE label = 'monocyte')"
        )
        (reviewed,) = connection.execute("SELECT cell_id FROM cell WHERE label_source = 'reviewed'").fetchone() or ("",)
        connection.execute("UPDATE cell SET added_at = added_at - INTERVAL 100 DAY WHERE cell_id = ?", [reviewed])
        rows = connection.execute("SELECT label, count(*) FROM cell GROUP BY label").fetchall()
    tight = keeping(own, cells=2)
    before = ledger(own)
    dry = list(desk.run(tight, "store.retain", dry_run=True))
    assert dry[-1]["due"] == dry[-1]["now"] == sum(max(0, n - 2) for _, n in rows) == len(dry) - 1
    assert reviewed not in {row.get("cell_id") for row in dry}
    assert ledger(own) == before, "a dry run changes nothing"
    assert last(tight, "store.retain")["removed"] == dry[-1]["due"]
    after = ledger(own)
    assert after.keys() == before.keys(), "every file still has its outcome"
    gone = [row for row in after.values() if row["outcome"] == "rejected"]
    assert len(gone) == dry[-1]["due"]
    assert all("removed by the lab's retention: more than 2 of its class" in row["reason"] for row in gone)
    with own.open_store() as store:
        assert store.cell(reviewed) is not None
        assert all(n == 2 for n in store.counts().by_label.values())
    assert list(desk.run(own, "ledger.check"))[-1]["ok"]
    assert answers(own)


def test_what_was_removed_is_not_taken_in_again(own: Lab, tmp_path: Path) -> None:
    tight = keeping(own, cells=1, reviewed=True)
    removed = last(tight, "store.retain")["removed"]
    assert removed > 0
    again = once(own)
    assert again.embedded == 0 and again.stored == 0
    gone = next(row for row in ledger_rows(own) if row["outcome"] == "rejected")
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(gone["path"], other / "copy.jpg")
    watch = own.config.watch.model_copy(update={"folders": (other,)})
    summary = once(replace(own, config=own.config.model_copy(update={"watch": watch})))
    assert (summary.rejected, summary.embedded) == (1, 0), "nor under another name"
    assert list(desk.run(own, "ledger.check"))[-1]["checked"]["images"]["read"] == 32, "those in the trash, too"


def test_old_cells_go_but_some_of_each_class_stay(own: Lab) -> None:
    with duckdb.connect(str(own.store_file)) as connection:
        connection.execute("UPDATE cell SET duplicate_of = NULL, duplicate_group = NULL")
        connection.execute(
            "UPDATE cell SET added_at = added_at + INTERVAL 30 DAY * (number - (SELECT max(number) FROM cell))"
        )
    assert last(keeping(own, days=400), "store.retain")["removed"] == 0, "at least 100 of each stay"
    dry = list(desk.run(keeping(own, days=400, at_least=1), "store.retain", dry_run=True))
    assert dry[-1]["due"] > 0 and {row["why"] for row in dry[:-1]} == {"older than 400 days"}
    assert last(keeping(own, days=400, at_least=1), "store.retain")["removed"] == dry[-1]["due"]


def test_the_agent_lets_go_once_a_day(own: Lab) -> None:
    tight = keeping(own, cells=1, reviewed=True)
    with open_log(tight) as log, tight.open_store() as store:
        jobs = Jobs(log)
        try:
            context = Context(
                tight, store, lambda: pytest.fail("no networks"), jobs, lambda _: pytest.fail("no bundle")
            )
            assert keep_retention(replace(context, lab=own)) is None, "off by default"
            job = keep_retention(context)
            assert job is not None and jobs.submit(job)
            assert jobs.wait_idle(60)
            assert jobs.status()["ended"]["retention"]["outcome"] == "done"
            assert all(n == 1 for n in store.counts().by_label.values())
            assert keep_retention(context) is None
        finally:
            jobs.close()


def test_a_job_that_failed_is_not_due_again_at_once(own: Lab) -> None:
    def fails(_: Running) -> None:
        raise StoreError("the disk is full")

    with open_log(own) as log:
        jobs = Jobs(log)
        try:
            assert not jobs.failed_within("map", timedelta(hours=1)), "it never ran"
            assert jobs.submit(Job("map", fails)) and jobs.submit(Job("optics", lambda _: None))
            assert jobs.wait_idle(60)
            assert jobs.failed_within("map", timedelta(hours=1))
            assert not jobs.failed_within("map", timedelta(0)), "long enough ago"
            assert not jobs.failed_within("optics", timedelta(hours=1)), "it was done"
        finally:
            jobs.close()


# upgrades


@pytest.fixture(params=sorted(SCHEMAS.glob("*.duckdb")), ids=lambda path: f"schema {path.stem}")
def released(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "store.duckdb"
    shutil.copy(request.param, path)
    path.chmod(0o644)
    yield path


def test_every_released_store_is_brought_up_to_date_with_all_it_holds(released: Path) -> None:
    columns = {
        "cell": "cell_id, digest, path, label, label_source, slide, analyser, captured_at, added_at",
        "file": "path, size_bytes, mtime_ns, outcome, reason, cell_id, label, label_source, slide, recorded_at",
        "file_history": "path, outcome, reason, cell_id, replaced_at",
        "embedding_1": "cell_id, latent, probabilities, predicted_label",
        "activation": "digest, activated_at",
    }

    def content() -> dict[str, Any]:
        with duckdb.connect(str(released)) as connection:
            return {
                table: connection.execute(f"SELECT {names} FROM {table} ORDER BY ALL").fetchall()
                for table, names in columns.items()
            }

    before = content()
    with Store.open(released) as store:
        assert store.schema_version == migrations.latest_version()
        assert store.faults().found == {}
        assert store.counts().cells == 17 and store.counts().files == 20
        bundle = store.active_bundle()
        assert bundle is not None
        (latent,) = store.latents([before["cell"][0][0]], bundle=bundle).values()
        assert store.nearest(latent, bundle=bundle, k=1)[0].cell_id == before["cell"][0][0]
        (replaced,) = [row.path for row in store.ledger() if store.history(row.path)]
        assert store.history(replaced)[0].outcome == "rejected"
    assert content() == before
    with duckdb.connect(str(released)) as connection:
        left = {name for name, *_ in connection.execute("DESCRIBE cell").fetchall()}
    assert "number" in left and "average_hash" not in left


def test_a_newer_store_is_refused_with_the_version_that_wrote_it(released: Path) -> None:
    with duckdb.connect(str(released)) as connection:
        connection.execute("INSERT INTO migration VALUES (999, 'from the future', now()::TIMESTAMP, '7.5.1')")
    data = released.read_bytes()
    with pytest.raises(StoreTooNewError, match=r"labref 7\.5\.1 \(schema 999\)"):
        Store.open(released)
    assert released.read_bytes() == data
