"""What people take out of a lab by name: whole cells with all their captures, back again, or without a trace."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import duckdb
import pytest
from click.testing import Result
from typer.testing import CliRunner

from labref import failpoints
from labref.bundles.bundle import Bundle
from labref.cli import app
from labref.errors import StoreError
from labref.lab import Lab
from labref.operations.naming import NoSuchNameError
from labref.operations.store import _in_trash
from labref.som.placing import open_placer
from labref.store import SeenAgain, Store
from labref.store.duckdb.duplicates import set_link
from labref.store.duckdb.reviews import Review
from labref.web import desk
from labref.words import Outcome, SlideId, Verdict
from tests.labs import ledger, make_lab, once, running_agent
from tests.pages import let_in
from tests.stores import BUNDLE, JUDGED, mark, new_cell, new_store

FORM = {"Content_Type": "application/x-www-form-urlencoded"}
AT = datetime(2026, 1, 5)
WHY = "removed by A. Lind: consent withdrawn"
A, B = SlideId("/export", "26-1174"), SlideId("/export", "26-1175")


def on(slide: SlideId, name: str, **changes: Any) -> Any:
    """A cell of a slide."""
    placed = {"slide": slide.name, "folder": slide.folder, "path": f"{slide.folder}/{slide.name}/{name}.jpg"}
    return new_cell(name, **(placed | changes))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """Two slides. `first` was captured again on the other slide (`again`), and a third cell there may be the same
    (`perhaps`)."""
    with new_store(tmp_path) as store:
        for cell in (
            on(A, "first", fingerprints=mark(0)),
            on(A, "second"),
            on(B, "again", fingerprints=mark(1)),
            on(B, "perhaps", fingerprints=mark(0b11100)),
            on(B, "other"),
        ):
            store.record([cell], bundle=BUNDLE, **JUDGED)
        store.record([SeenAgain(f"{A.folder}/{A.name}/copy.jpg", 1, 1, new_cell("second").digest)], bundle=BUNDLE)
        store.reviews.give([Review(new_cell("second").cell_id, "basophil", "B. Berg", None)])
        store.slides.approve(A, "B. Berg")
        yield store


def ids(*names: str) -> list[str]:
    return [new_cell(name).cell_id for name in names]


def told(path: Path, *words: str) -> list[str]:
    """The tables of a store that hold one of these words."""
    with duckdb.connect(str(path), read_only=True) as connection:
        names = [name for (name,) in connection.execute("SELECT table_name FROM duckdb_tables()").fetchall()]
        return [
            name
            for name in names
            if any(word in str(connection.execute(f'FROM "{name}"').fetchall()) for word in words)
        ]


def test_a_slide_goes_with_every_capture_of_its_cells_and_nothing_else(store: Store) -> None:
    assert store.cells(ids("perhaps"))[ids("perhaps")[0]].duplicate_verdict == "possible_duplicate"
    found = {cell.cell_id: (cell.because, cell.in_trash) for cell in store.withdrawal.named([], [A])}
    first, second, again = ids("first", "second", "again")
    assert found == {first: ("on the slide", False), second: ("on the slide", False), again: ("capture", False)}
    assert store.withdrawal.possible(store.withdrawal.named([], [A])) == ids("perhaps")
    done = store.withdrawal.take([], [A], WHY)
    assert (done.removed, list(done.staying), done.erased) == (3, ids("perhaps"), 0)
    assert store.faults().found == {} and store.index_agrees(BUNDLE)
    assert sorted(store.cells(ids("perhaps", "other"))) == sorted(ids("perhaps", "other"))
    assert store.duplicates.possible() == set()
    assert store.withdrawal.possible(store.withdrawal.named(ids("perhaps"), [])) == [], "its link is gone"
    (gone,) = [row for row in store.ledger() if row.path.endswith("copy.jpg")]
    assert gone.reason == f"{WHY}; it was cell {second}" == store.removed(new_cell("second").digest)


def test_what_comes_back_has_its_possible_repetitions_again(store: Store) -> None:
    before = store.duplicates.pairs()
    store.withdrawal.take([], [A], WHY)
    store.trash.bring_back(ids("first", "second", "again"))
    assert [(p.cell_id, p.other, p.verdict) for p in store.duplicates.pairs()] == [
        (p.cell_id, p.other, p.verdict) for p in before
    ]
    assert store.labels(ids("second")) == {ids("second")[0]: "basophil"}
    assert store.slides.approvals([A])[A].standing == "approved"
    assert store.faults().found == {}


def test_what_a_person_said_meanwhile_of_a_possible_repetition_stays(store: Store) -> None:
    assert store.withdrawal.possible(store.withdrawal.named(ids("perhaps"), [])) == ids("first")
    store.duplicates.reject(ids("perhaps")[0], "B. Berg")
    store.withdrawal.take(ids("first"), [], WHY)
    store.trash.bring_back(ids("first"))
    assert store.duplicates.possible() == set() and store.faults().found == {}


def test_nothing_of_an_erased_slide_is_left_in_the_store(store: Store) -> None:
    kept = store.cells(ids("perhaps", "other"))
    done = store.withdrawal.take([], [A], WHY, erase=True)
    assert (done.removed, done.erased, done.files, done.left) == (3, 3, 4, [])
    assert store.faults().found == {} and len(store.trash) == 0
    assert {cell.cell_id: cell.label for cell in store.cells(list(kept)).values()} == dict.fromkeys(kept, "neutrophil")
    assert store.removed(new_cell("first").digest) == f"{WHY}; it was cell {ids('first')[0]}"
    assert sorted(store.removed_digests()) == sorted(new_cell(name).digest for name in ("first", "second", "again"))
    path = store.path
    store.close()
    assert told(path, A.name, "first.jpg", "second.jpg", "again.jpg", "copy.jpg") == []
    assert "cell" in told(path, "perhaps.jpg")


def test_erasing_takes_what_is_in_the_trash_and_what_went_long_ago(store: Store) -> None:
    store.withdrawal.take(ids("second"), [], "removed by A. Lind: a mistake")
    store.trash.empty()
    store.withdrawal.take(ids("first"), [], "removed by A. Lind: a mistake")
    assert store.withdrawal.slides() == {A, B}
    done = store.withdrawal.take([], [A], WHY, erase=True)
    assert (done.removed, done.erased) == (0, 2), "first and again, out of the trash"
    assert store.withdrawal.slides() == {B} and store.faults().found == {}
    path = store.path
    store.close()
    assert told(path, A.name, "second.jpg") == []


def test_a_file_that_is_still_there_is_named_until_it_is_gone(store: Store) -> None:
    done = store.withdrawal.take([], [A], WHY, erase=True, is_there=lambda path: "again" in path or "first" in path)
    assert [(Path(file.path).name, file.cell_id) for file in done.left] == [
        ("first.jpg", ids("first")[0]),
        ("again.jpg", ids("again")[0]),
    ]
    assert done.files == 2 and store.faults().found == {}
    assert store.withdrawal.slides() == {A, B}
    assert store.withdrawal.take([], [A], WHY, erase=True).files == 1
    # the capture was on the other slide: it is named by its id
    assert store.withdrawal.gone(ids("again")[0][:6]) == ids("again")
    assert store.withdrawal.take(ids("again"), [], WHY, erase=True).files == 1
    path = store.path
    store.close()
    assert told(path, A.name, "again.jpg") == []


def test_a_path_that_another_cell_has_as_well_stays(store: Store) -> None:
    """The analyser wrote another cell into a file of the same name: the first stays, and the ledger knows it by the
    path alone."""
    path = on(A, "first").path
    store.record([on(A, "instead", path=path, mtime_ns=2)], bundle=BUNDLE)
    done = store.withdrawal.take(ids("instead"), [], WHY, erase=True)
    assert (done.removed, done.files) == (1, 0)
    assert store.faults().found == {}


def test_reviewed_cells_go_when_they_are_named_and_links_made_meanwhile_hold_cells_from_retention(store: Store) -> None:
    due = store.due(days=0, cells=1, at_least=0, reviewed=True, limit=9)
    assert {cell.cell_id for cell in due} == set(ids("perhaps", "other", "again")) - set(ids("other"))
    store.record([on(B, "yet again", fingerprints=mark(0b11101))], bundle=BUNDLE, **JUDGED)
    assert store.remove(due) < len(due)
    assert store.faults().found == {}


@pytest.mark.parametrize("point", ["withdraw.removed", "withdraw.names", "withdraw.history", "retention.cells"])
def test_what_fails_halfway_has_changed_nothing(store: Store, point: str) -> None:
    before = store.counts(), [(row.path, row.outcome) for row in store.ledger()]
    failpoints.arm(f"{point}=enospc@1")
    try:
        with pytest.raises(StoreError):
            store.withdrawal.take([], [A], WHY, erase=True)
    finally:
        failpoints.disarm()
    assert store.faults().found == {} and store.index_agrees(BUNDLE)
    assert before == (store.counts(), [(row.path, row.outcome) for row in store.ledger()])


def test_two_slides_of_one_name_are_told_apart(tmp_path: Path) -> None:
    here, there = SlideId("/one", "7"), SlideId("/two", "7")
    with new_store(tmp_path) as store:
        store.record([on(here, "a"), on(there, "b")], bundle=BUNDLE)
        store.withdrawal.take([], [here], WHY, erase=True)
        assert list(store.cells(ids("a", "b"))) == ids("b") and store.faults().found == {}
        path = store.path
    assert told(path, "/one/") == [] and "file" in told(path, "/two/7/b.jpg")


def test_a_store_made_by_names_alone_survives_opening(store: Store) -> None:
    store.withdrawal.take([], [A], WHY, erase=True)
    path = store.path
    store.close()
    with Store.open(path, open_placer=open_placer) as again:
        again.build_index(BUNDLE)
        assert again.counts().cells == 2 and again.index_agrees(BUNDLE)


# the command


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, drawn_cells: Path, starter: Bundle) -> Lab:
    root = tmp_path_factory.mktemp("withdrawal")
    for number, folder in enumerate(sorted(drawn_cells.iterdir())):
        for picture in sorted(folder.iterdir())[:2]:
            slide = root / "export" / ("26-1174" if number % 2 else "26-1175") / "Signed slides" / folder.name
            slide.mkdir(parents=True, exist_ok=True)
            shutil.copy(picture, slide)
    lab = make_lab(root / "lab", root / "export", starter)
    once(lab)
    return lab


@pytest.fixture
def lab(tmp_path: Path, made: Lab) -> Iterator[Lab]:
    """A copy of the lab; the export folder is the same, and as it was afterwards."""
    shutil.copytree(made.folder, tmp_path / "lab")
    shutil.copytree(made.watched[0], tmp_path / "export")
    found = Lab.open(tmp_path / "lab")
    yield replace(found, config=found.config.model_copy(update={"watch": made.config.watch}))
    shutil.copytree(tmp_path / "export", made.watched[0], dirs_exist_ok=True)


def call(lab: Lab, *arguments: str, **more: Any) -> Result:
    return CliRunner().invoke(app, ["store", "remove", *arguments, "--lab", str(lab.folder)], **more)


def rows(done: Result) -> list[dict[str, Any]]:
    assert done.exit_code == 0, done.output
    return [json.loads(line) for line in done.stdout.splitlines()]


def slides(lab: Lab) -> dict[str, int]:
    found = list(desk.run(lab, "slide.list"))[1:]
    return {row["name"]: row["cells"] for row in found}


def test_the_command_names_removes_brings_back_and_erases(lab: Lab) -> None:
    before = slides(lab)
    name, cells = next(iter(before.items()))
    *listed, total = rows(call(lab, "--slide", name, "--why", "consent withdrawn", "--dry-run", "--json"))
    assert (
        total == {"going": cells, "in_trash": 0, "captures": 0, "staying": [], "other_slides": []}
        and len(listed) == cells
        and slides(lab) == before
    )
    assert all(row["slide"] == name and row["because"] == "on the slide" for row in listed)
    (done,) = rows(call(lab, "--slide", name, "--why", "consent withdrawn", "--who", "A. Lind", "--json"))
    assert done["removed"] == cells and done["erased"] == 0 and name not in slides(lab)
    said = {row["reason"] for row in ledger(lab).values() if row["outcome"] == "rejected"}
    assert len(said) == cells and all(line.startswith(f"{WHY}; it was cell ") for line in said)
    again = call(lab, "--slide", name, "--why", "consent withdrawn")
    assert again.exit_code == 1 and "in the trash already" in again.stderr
    assert once(lab).stored == 0, "no file brings them back"
    *_, back = desk.run(lab, "store.bring_back", every=True)
    assert len(back["cells"]) == cells and slides(lab) == before

    refused = call(lab, "--slide", name, "--why", "consent withdrawn", "--erase", input="n\n")
    assert refused.exit_code == 1 and f"{cells} cells of the lab" in refused.stderr and slides(lab) == before
    erased = call(lab, "--slide", name, "--why", "consent withdrawn", "--erase", "--yes")
    assert erased.exit_code == 0 and f"{cells} cells erased" in erased.stdout, erased.output
    assert f"{cells} files of them" in erased.stdout and "still in the export folder" in erased.stdout
    assert not any(lab.image_path(digest).exists() for digest in _digests(lab, listed))
    assert list(desk.run(lab, "ledger.check", latents=0))[-1]["ok"]
    assert once(lab).stored == 0
    assert list(desk.run(lab, "ledger.check", latents=0))[-1]["ok"]
    # a file that is there is named by the ledger, as every file; without them nothing names them
    for path in ledger(lab):
        if name in path:
            (lab.watched[0] / path).unlink()
    (last,) = rows(call(lab, "--slide", name, "--why", "consent withdrawn", "--erase", "--yes", "--json"))
    assert (last["erased"], last["files"], last["still_there"]) == (0, cells, [])
    assert not any(name in path for path in ledger(lab))
    missing = call(lab, "--slide", name, "--why", "consent withdrawn", "--erase", "--yes")
    assert missing.exit_code == 1 and "no slide of this lab" in missing.stderr


def _digests(lab: Lab, listed: list[dict[str, Any]]) -> list[str]:
    with lab.open_store() as store:
        return [digest for digest in store.removed_digests() if any(digest.startswith(r["cell_id"]) for r in listed)]


def test_a_cell_is_named_by_its_id_or_its_file_and_what_is_wrong_is_said(lab: Lab) -> None:
    path, row = next((path, row) for path, row in ledger(lab).items() if row["cell_id"])
    (one, total) = rows(call(lab, path, "--why", "a mistake", "--dry-run", "--json"))
    assert one["cell_id"] == row["cell_id"] and one["because"] == "named" and total["going"] == 1
    assert f"{row['cell_id']}  " in call(lab, row["cell_id"][:8], "--why", "a mistake", "--dry-run").stdout
    for arguments, message in (
        ((), "Missing option '--why'"),
        (("--why", "x"), "name cells or slides"),
        ((path, "--why", " "), "say why they are removed"),
        ((path, "--why", "a" * 201), "at most 200 characters"),
        ((path, "--why", "a\u202eb"), "cannot be seen"),
        (("zz", "--why", "x"), "no cell 'zz' in this lab"),
        (("--slide", "zz", "--why", "x"), "no slide of this lab"),
    ):
        failed = call(lab, *arguments)
        assert failed.exit_code in (1, 2) and message in failed.stderr, failed.output
    assert rows(call(lab, row["cell_id"], "--why", "a mistake", "--json"))[0]["removed"] == 1
    # from the trash, by its id
    erased = rows(call(lab, row["cell_id"][:10], "--why", "a mistake", "--erase", "--yes", "--json"))
    assert erased[0]["erased"] == 1 and erased[0]["removed"] == 0


def test_who_asks_for_a_cell_that_is_removed_in_this_moment_is_told_so(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = next(iter(ledger(lab).values()))["cell_id"]
    list(desk.run(lab, "label.set", cell=cell, label="monocyte"))
    *_, all_ = desk.run(lab, "reading.start", title="T", n=16, arms=["latent"])
    latents = Store.latents
    without = lambda self, ids, *, bundle: latents(self, [one for one in ids if one != cell], bundle=bundle)  # noqa: E731
    monkeypatch.setattr(Store, "latents", without)
    *_, left = desk.run(lab, "reading.start", title="T", n=16, arms=["latent"])
    assert left["tasks"] == all_["tasks"] - 1 > 0
    monkeypatch.setattr(Store, "cell", lambda self, cell_id: None)
    for name in ("cell.show", "label.history"):
        with pytest.raises(NoSuchNameError, match="in this lab any more"):
            list(desk.run(lab, name, cell=cell))


# the pages


def test_an_administrator_removes_a_slide_and_a_cell_on_their_pages(lab: Lab) -> None:
    stays = list(slides(lab))[-1]
    early, late = [row["cell_id"] for path, row in ledger(lab).items() if path.startswith(stays)][:2]
    with lab.open_store() as store, store._transaction() as connection:
        set_link(connection, late, (early, Verdict.POSSIBLE), outcome=Outcome.POSSIBLE_DUPLICATE, reason="", at=AT)
    with running_agent(lab):
        admin, reviewer = let_in(lab, "A. Lind", "admin"), let_in(lab, "B. Berg", "review")
        first = list(desk.run(lab, "slide.list"))[1]
        key, cells = first["slide"], first["cells"]
        assert f"/slide/{key}/remove" in admin.get(f"/slide/{key}").text
        assert f"/slide/{key}/remove" not in reviewer.get(f"/slide/{key}").text
        assert reviewer.get(f"/slide/{key}/remove").status == 403
        sent = urlencode({"cells": cells, "why": "consent withdrawn", "how": "erase"}).encode()
        assert reviewer.ask("POST", f"/slide/{key}/remove", sent, **FORM).status == 403
        shown = admin.get(f"/slide/{key}/remove").text
        assert f"{cells} cells go" in shown and shown.count("picture?view=thumb") == cells and first["name"] in shown
        for said, problem in (
            ({"cells": cells + 1, "why": "x"}, "Other cells came or went meanwhile"),
            ({"cells": cells, "why": " "}, "say why they are removed"),
        ):
            refused = admin.ask("POST", f"/slide/{key}/remove", urlencode(said).encode(), **FORM)
            assert refused.status == 400 and problem in refused.text
        assert slides(lab)[first["name"]] == cells
        done = admin.ask("POST", f"/slide/{key}/remove", sent, **FORM)
        assert done.status == 200 and f"{cells} cells are gone for good" in done.text
        assert done.text.count("/Signed slides/") == cells, "their files are still there"
        assert first["name"] not in slides(lab) and admin.get(f"/slide/{key}").status == 404
        assert "Its cells are gone already" in admin.get(f"/slide/{key}/remove").text
        for path in ledger(lab):
            if first["name"] in path:
                (lab.watched[0] / path).unlink()
        again = admin.ask(
            "POST", f"/slide/{key}/remove", urlencode({"cells": 0, "why": "x", "how": "erase"}).encode(), **FORM
        )
        assert again.status == 200 and "export folder" not in again.text
        assert admin.get(f"/slide/{key}/remove").status == 404
        assert not any(first["name"] in path for path in ledger(lab))

        one = early
        assert f"/cell/{one}/remove" in admin.get(f"/cell/{one}").text
        assert "1 cell goes" in admin.get(f"/cell/{one}/remove").text
        assert f'name="also" value="{late}"' in admin.get(f"/cell/{one}/remove").text, "perhaps the same cell"
        said = {"cells": 1, "why": "taken by mistake", "how": "remove", "also": late}
        assert "2 cells were removed" in admin.ask("POST", f"/cell/{one}/remove", urlencode(said).encode(), **FORM).text
        assert admin.get(f"/cell/{one}").status == admin.get(f"/cell/{late}").status == 404
        trashed = {row["cell_id"]: row["reason"] for row in desk.run(lab, "store.trash")}
        assert trashed.keys() == {early, late}
        assert all(reason.startswith("removed by A. Lind: taken by mistake") for reason in trashed.values())
        assert "1 was removed before" in admin.get(f"/cell/{one}/remove").text
        assert "taken by mistake" in admin.get("/removed").text and 'href="/removed"' in admin.get("/condition").text
        assert reviewer.get("/removed").status == reviewer.get(f"/removed/{one}/picture").status == 403
        seen = reviewer.get("/condition").text
        assert 'href="/removed"' not in seen and "taken by mistake" not in seen, "whose cells went is not for everybody"
        assert admin.get(f"/removed/{one}/picture").body.startswith(b"\xff\xd8")
        assert admin.get(f"/cell/{one}/picture").status == 404
        back = partial(admin.ask, "POST", "/removed", **FORM)
        assert back(b"").status == 400 and "Tick the cells" in back(b"").text
        assert back(b"cell=0000000000000000").status == 400
        gone = back(b"cell=0000000000000000&cell=zz")
        assert gone.status == 400 and "2 cells are gone for good" in gone.text
        gone = back(b"all=0123456789abcdef")  # somebody else brought them back while this page was open
        assert gone.status == 400 and "These cells are not here any more" in gone.text and "Tick" not in gone.text
        first = re.findall(r"<button[^>]*>", admin.get("/removed").text.partition('class="tiles"')[2])[0]
        assert "name=" not in first, "Enter at a cell presses the first button: only what is ticked comes back"
        (key,) = re.findall(r'name="all" value="([0-9a-f]{16})"', admin.get("/removed").text)
        assert "1 cell is back" in back(f"cell={late}".encode()).text
        assert admin.get(f"/cell/{late}").status == 200 and admin.get(f"/cell/{early}").status == 404
        some = back(f"cell={late}&cell={early}".encode()).text  # somebody else brought one of them back meanwhile
        assert "1 cell is back." in some and "1 cell was back already" in some and f'href="/cell/{late}"' in some
        again = admin.ask("POST", f"/cell/{early}/remove", urlencode(said | {"also": ""}).encode(), **FORM)
        assert "1 cell was removed" in again.text
        (key,) = re.findall(r'name="all" value="([0-9a-f]{16})"', admin.get("/removed").text)
        assert "1 cell is back" in back(f"all={key}".encode()).text
        assert admin.get(f"/cell/{early}").status == 200 and "None." in admin.get("/removed").text
        assert admin.get(f"/removed/{one}/picture").status == 404
        assert admin.get("/cell/0000000000000000/remove").status == 404


def test_other_slides_of_the_patient_are_named_before(lab: Lab) -> None:
    with lab.open_store() as store, store._transaction() as connection:
        for table in ("cell", "file"):  # two orders of a patient
            connection.execute(f"UPDATE {table} SET slide = CASE slide WHEN '26-1174' THEN 'P7' ELSE 'P7/2' END")
    *_, total = rows(call(lab, "--slide", "P7", "--why", "x", "--dry-run", "--json"))
    assert [(one["name"], one["cells"]) for one in total["other_slides"]] == [("P7/2", 8)]
    told = call(lab, "--slide", "P7", "--why", "x", "--dry-run").stdout
    assert "Another slide of the same patient would stay: P7/2" in told
    *_, total = rows(call(lab, "--slide", "P7", "--slide", "P7/2", "--why", "x", "--dry-run", "--json"))
    assert total["other_slides"] == []


def test_twenty_thousand_cells_are_found_in_the_trash_by_their_ids_at_once() -> None:
    ids = {f"{number:016x}": None for number in range(20_000)}
    began = time.process_time()
    assert [_in_trash(name, ids) for name in ids] == list(ids)
    assert time.process_time() - began < 2, "each was compared with all others: half a minute"
