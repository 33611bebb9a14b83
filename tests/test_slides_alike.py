"""Two watched folders that each hold a slide of one name have two slides: in the store, in answers, on pages."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest
from typer.testing import CliRunner

from labref.bundles.bundle import Bundle
from labref.cli import app
from labref.errors import LabrefError
from labref.export.paths import path_to_text
from labref.lab import Lab
from labref.operations.naming import earlier_slide_keys
from labref.store import Store
from labref.store.values import SeenAgain
from labref.tasks.context import Context
from labref.tasks.jobs import Jobs
from labref.web.desk import run
from labref.words import SlideId
from tests.labs import once, running_agent
from tests.maps import lab_with_map
from tests.pages import Browser, let_in
from tests.stores import BUNDLE, digest_of, new_cell, new_store

A, B = SlideId("/a", "S-1"), SlideId("/b", "S-1")


def watching_two(folder: Path, cells: Path, bundle: Bundle) -> Lab:
    """A lab of two watched folders: both have a slide S-1, of two cells and of three; the second has S-2 as well."""
    pictures = iter(sorted(cells.rglob("*.jpg"))[::3])
    for place, count in (("one/S-1", 2), ("two/S-1", 3), ("two/S-2", 1)):
        (folder / place).mkdir(parents=True)
        for number in range(count):
            shutil.copy(next(pictures), folder / place / f"{number}.jpg")
    made = Lab.create(folder / "lab", [folder / "one", folder / "two"], bundle.folder)
    text = made.config_file.read_text(encoding="utf-8")
    made.config_file.write_text(
        text.replace("[watch]\n", "[watch]\nstable_seconds = 0.2\ncomplete_seconds = 0.4\n", 1), encoding="utf-8"
    )
    lab = Lab.open(made.folder)
    assert once(lab).rejected == 0
    return lab


@pytest.fixture(scope="module")
def still(tmp_path_factory: pytest.TempPathFactory, drawn_cells: Path, starter: Bundle) -> Lab:
    """The lab without an agent; tests change copies of it alone."""
    return watching_two(tmp_path_factory.mktemp("alike"), drawn_cells, starter)


@pytest.fixture
def own(still: Lab, tmp_path: Path) -> Lab:
    return Lab.open(shutil.copytree(still.folder, tmp_path / "lab"))


@pytest.fixture(scope="module")
def lab(still: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Another copy, with an agent."""
    lab = Lab.open(shutil.copytree(still.folder, tmp_path_factory.mktemp("served") / "lab"))
    with running_agent(lab):
        yield lab


def listed(lab: Lab) -> dict[tuple[str, str | None], dict[str, Any]]:
    """Slides by name and the end of their folder."""
    rows = [row for row in run(lab, "slide.list") if "name" in row]
    return {(row["name"], row["folder"] and Path(row["folder"]).name): row for row in rows}


def command(lab: Lab, *words: str, code: int = 0) -> str:
    done = CliRunner().invoke(app, [*words, "--lab", str(lab.folder)])
    assert done.exit_code == code, done.output
    return done.output


# the store


def test_cells_of_two_watched_folders_are_never_of_one_slide(tmp_path: Path) -> None:
    with new_store(tmp_path) as store:
        of_a = [new_cell(i, slide="S-1", folder="/a") for i in range(2)]
        of_b = [new_cell(i, slide="S-1", folder="/b") for i in range(2, 5)]
        store.record([*of_a, *of_b, new_cell(9, slide=None, folder="/a")], bundle=BUNDLE)
        for _ in range(2):
            book = store.slides.book
            assert {slide.id: slide.cells for slide in book.newest()} == {A: 2, B: 3}
            assert book.named("S-1") == [B, A] and book.named("S") == []
            ids = [cell.cell_id for cell in of_b]
            assert list(store.cells_of_slide(B, ids)) == ids
            assert store.cells([ids[0]])[ids[0]].slide_id == B
            origins = store.origins()
            assert set(origins.slide_ids) == {A, B} and store.counts().by_slide == {A: 2, B: 3, None: 1}
            store.reload()
        store.record([new_cell(5, slide="S-1", folder="/c")], bundle=BUNDLE)
        assert set(store.origins().slide_ids) == {A, B, SlideId("/c", "S-1")}
        assert {slide.id for slide in store.slides.book.newest()} == {A, B, SlideId("/c", "S-1")}
        assert store.slides.book.named("S-1") == [SlideId("/c", "S-1"), B, A]


def test_an_approval_is_of_one_watched_folder(tmp_path: Path) -> None:
    with new_store(tmp_path) as store:
        store.record([new_cell(i, slide="S-1", folder="/a") for i in range(2)], bundle=BUNDLE)
        store.record([new_cell(i, slide="S-1", folder="/b") for i in range(2, 5)], bundle=BUNDLE)
        store.slides.approve(A, "A")
        store.slides.approve(B, "B")
        store.record([new_cell(7, slide="S-1", folder="/b")], bundle=BUNDLE)
        for _ in range(2):
            found = store.slides.approvals([A, B])
            assert (found[A].who, found[A].standing, found[A].cells) == ("A", "approved", 2)
            assert (found[B].who, found[B].standing, found[B].cells) == ("B", "cells came", 3)
            store.reload()
        store.slides.unapprove(B, "B")
        assert set(store.slides.approvals([A, B])) == {A}
        # its file is now in the other folder's slide of the same name
        store.record([SeenAgain("/b/S-1/0.jpg", 1, 1, digest_of(0), slide="S-1", folder="/b")], bundle=BUNDLE)
        store.slides.approve(B, "B")
        store.follow({new_cell(0).cell_id: {"/export/0.jpg"}})
        for _ in range(2):
            assert {slide.id: slide.cells for slide in store.slides.book.newest()} == {A: 1, B: 5}
            assert store.slides.book.named("S-1") == [B, A]
            found = store.slides.approvals([A, B])
            assert (found[A].standing, found[B].standing) == ("cells left", "cells came")
            store.reload()
        store.record([SeenAgain("/b/S-1/1.jpg", 1, 1, digest_of(1), slide="S-1", folder="/b")], bundle=BUNDLE)
        store.follow({new_cell(1).cell_id: {"/export/1.jpg"}})
        assert store.slides.book.named("S-1") == [B], "the last cell left the other"


def test_a_label_of_a_file_without_a_slide_leaves_the_cell_on_its_slide(tmp_path: Path) -> None:
    with new_store(tmp_path) as store:
        store.record([new_cell(0, slide="S-1", folder="/a")], bundle=BUNDLE)
        again = SeenAgain("/b/0.jpg", 1, 1, digest_of(0), "monocyte", "reviewed", None, folder="/b")
        store.record([again], bundle=BUNDLE)
        for _ in range(2):
            cell = store.cell(new_cell(0).cell_id)
            assert cell is not None and (cell.path, cell.label, cell.slide_id) == ("/b/0.jpg", "monocyte", A)
            assert [slide.id for slide in store.slides.book.newest()] == [A]
            store.reload()


@pytest.mark.parametrize(
    ("watched", "path", "folder"),
    [
        (["/a", "/b"], "/b/S-1/0.jpg", "/b"),
        (["/a", "/a/inner"], "/a/inner/S-1/0.jpg", "/a/inner"),
        (["/a", "/a/inner"], "/a/innermost/S-1/0.jpg", "/a"),
        (["/"], "/S-1/0.jpg", "/"),
        (["/a", "/b"], "/gone/S-1/0.jpg", ""),
        ([], "/a/S-1/0.jpg", ""),
        (["D:\\Export", "D:\\"], "D:\\Export\\S-1\\0.jpg", "D:\\Export"),
        (["D:\\Export", "D:\\"], "D:\\Exports\\S-1\\0.jpg", "D:\\"),
        (["/å\udce9"], "/å\udce9/S-1/0.jpg", "/å\udce9"),
    ],
)
def test_cells_of_an_older_labref_get_their_watched_folder(
    tmp_path: Path, watched: list[str], path: str, folder: str
) -> None:
    with new_store(tmp_path) as store:
        store.record([new_cell(0, path=path, slide="S-1")], bundle=BUNDLE)
        forget(store)
        for _ in range(2):
            store.slides.locate(watched)
            assert [slide.id for slide in store.slides.book.newest()] == [SlideId(folder, "S-1")]
        assert not store._connection.execute("SELECT path FROM file WHERE folder IS NULL").fetchall()


def forget(store: Store) -> None:
    """As an older labref left it: which watched folder something lies in is not known."""
    with store._transaction() as connection:
        for table in ("cell", "file", "slide_approval", "slide_move"):
            connection.execute(f"UPDATE {table} SET folder = NULL")
    store.reload()


# answers


@pytest.mark.parametrize("served", [False, True])
def test_a_name_that_two_slides_have_is_never_taken_for_one_of_them(
    request: pytest.FixtureRequest, served: bool
) -> None:
    lab: Lab = request.getfixturevalue("lab" if served else "own")
    slides = listed(lab)
    assert {who: row["cells"] for who, row in slides.items()} == {
        ("S-1", "one"): 2,
        ("S-1", "two"): 3,
        ("S-2", None): 1,
    }
    first, second = slides["S-1", "one"], slides["S-1", "two"]
    assert first["folder"] == str(lab.watched[0]) and first["slide"] != second["slide"]
    for words in (["slide", "show"], ["slide", "approve"], ["slide", "unapprove"]):
        said = command(lab, *words, "S-1", code=1)
        assert "2 slides have this name" in said
        for row in (first, second):
            assert f"{row['slide']} in {row['folder']}" in said
    with pytest.raises(LabrefError, match="2 slides have this name"):
        list(run(lab, "event.links", slide="S-1"))
    link, *cells = run(lab, "event.links", slide=second["slide"])
    assert link["address"] == f"/slide/{second['slide']}" and len(cells) == link["cells"] == 3
    assert "  S-2  1 cells" in command(lab, "slide", "show", "S-2")
    assert f"S-1 ({second['folder']})" in command(lab, "slide", "list")
    command(lab, "slide", "approve", second["slide"], "--who", "A. Lind")
    slides = listed(lab)
    assert slides["S-1", "one"]["approval"] is None
    assert slides["S-1", "two"]["approval"]["cells"] == 3
    command(lab, "slide", "unapprove", second["slide"], "--who", "A. Lind")
    (status,) = run(lab, "status")
    assert status["slides"] == {
        f"S-1 ({second['folder']})": 3,
        f"S-1 ({first['folder']})": 2,
        "S-2": 1,
    }


def test_pages_show_two_slides_of_one_name_with_their_folders(lab: Lab) -> None:
    reviewer, slides = let_in(lab, "Reviewer", "review"), listed(lab)
    rows = re.findall(r"<tr>.*?</tr>", reviewer.get("/slides").text, re.S)[1:]
    for (name, _), row in slides.items():
        (shown,) = [text for text in rows if f'href="/slide/{row["slide"]}"' in text]
        assert f">{name}</a>" in shown
        assert (str(row["folder"]) in shown) == (name == "S-1")
    one, two = slides["S-1", "one"], slides["S-1", "two"]
    page = reviewer.get(f"/slide/{two['slide']}").text
    heading = re.search(r"<h1>.*?</h1>", page, re.S)
    assert heading is not None and two["folder"] in heading[0] and one["folder"] not in page
    assert page.count('data-cell="') == 3
    beside = reviewer.get(f"/slides/beside?slide={one['slide']}&slide={two['slide']}").text
    assert one["folder"] in beside and two["folder"] in beside
    live = reviewer.get("/").text
    assert sorted(re.findall(r'data-slide="(\w+)"', live)) == sorted(row["slide"] for row in slides.values())
    assert one["folder"] in live and two["folder"] in live
    cell = re.search(r'data-cell="(\w+)"', page)
    assert cell is not None
    shown = reviewer.get(f"/cell/{cell[1]}").text
    assert f'<a href="/slide/{two["slide"]}">S-1</a>' in shown and two["folder"] in shown
    assert reviewer.get("/slide/S-1").status == 300
    asked = json.dumps({"slide": "S-1", "cells": 3}).encode()
    refused = reviewer.ask("POST", "/api/v1/slide/approve", asked, Content_Type="application/json")
    assert refused.status == 400 and two["slide"] in refused.text


def test_a_cell_that_comes_to_one_of_two_slides_of_a_name_ends_the_approval_of_that_one(
    tmp_path: Path, drawn_cells: Path, starter: Bundle
) -> None:
    lab = watching_two(tmp_path, drawn_cells, starter)
    for row in listed(lab).values():
        list(run(lab, "slide.approve", slide=row["slide"], who="A"))
    shutil.copy(sorted(drawn_cells.rglob("*.jpg"))[-1], tmp_path / "one" / "S-1" / "new.jpg")
    once(lab)
    standing = {who: row["approval"]["standing"] for who, row in listed(lab).items()}
    assert standing == {("S-1", "one"): "cells came", ("S-1", "two"): "approved", ("S-2", None): "approved"}


def test_the_exported_table_tells_slides_of_one_name_apart(own: Lab, tmp_path: Path) -> None:
    command(own, "store", "export", str(tmp_path / "all.parquet"), "--no-thumbnails", "--identifying")
    found = duckdb.sql(f"SELECT slide, folder, count(*) FROM '{tmp_path / 'all.parquet'}' GROUP BY ALL").fetchall()
    one, two = (path_to_text(str(folder)) for folder in own.watched)
    assert sorted(found) == [("S-1", one, 2), ("S-1", two, 3), ("S-2", two, 1)]
    command(own, "store", "export", str(tmp_path / "few.parquet"), "--no-thumbnails")
    columns = duckdb.sql(f"DESCRIBE SELECT * FROM '{tmp_path / 'few.parquet'}'").fetchall()
    assert not {"slide", "folder", "path"} & {name for name, *_ in columns}


def test_the_map_tells_slides_of_one_name_apart(tmp_path: Path, starter: Bundle) -> None:
    lab = lab_with_map(tmp_path, starter)
    with lab.open_store() as store:
        names = [slide.id.name for slide in store.slides.book.newest()]
        with store._transaction() as connection:
            connection.execute("UPDATE cell SET folder = CASE slide WHEN ? THEN '/a' ELSE '/b' END", [names[0]])
            connection.execute("UPDATE cell SET slide = 'S-1'")
    facets = next(run(lab, "map.facets"))["slides"]
    assert sorted((row["slide"], row["folder"]) for row in facets) == [("S-1", "/a"), ("S-1", "/b")]
    every = sum(next(run(lab, "map.picture"))["cells"])
    parts = [sum(next(run(lab, "map.picture", slides=[row["key"]]))["cells"]) for row in facets]
    assert parts == [row["cells"] for row in facets] and sum(parts) == every and min(parts) > 0
    keys = [row["key"] for row in facets]
    out = str(tmp_path / "slide.png")
    said = command(lab, "map", "show", "--slide", "S-1", "--out", out, code=1)
    assert "2 slides are called S-1" in said and all(key in said for key in keys)
    command(lab, "map", "show", "--slide", keys[0], "--slide", keys[1], "--out", out)
    assert Path(out).stat().st_size > 1000


# labs made before


def test_links_and_approvals_of_an_older_lab_hold_where_a_slide_is_alone_of_its_name(own: Lab) -> None:
    slides = listed(own)
    with own.open_store() as store:
        forget(store)
        for row in slides.values():
            store.slides.approve(SlideId("", row["name"]), "A")  # as the older one did, by the name
        forget(store)
        context = Context(own, store, lambda: None, Jobs(None), None, None)  # type: ignore[arg-type]
        kept = earlier_slide_keys(context, ["S-1", "S-2"])
    again = listed(own)
    assert {who: row["slide"] for who, row in again.items()} == {who: row["slide"] for who, row in slides.items()}
    assert again["S-2", None]["approval"]["standing"] == "approved"
    assert again["S-1", "one"]["approval"] is again["S-1", "two"]["approval"] is None, "nobody approved one of them"
    about, *_ = run(own, "slide.show", slide=kept["S-2"])
    assert about["slide"] == again["S-2", None]["slide"]
    with pytest.raises(LabrefError, match="2 slides have this name"):
        list(run(own, "slide.show", slide=kept["S-1"]))
    with running_agent(own):
        browser: Browser = let_in(own, "Reviewer", "view")
        assert browser.get(f"/slide/{kept['S-2']}").status == 200
        asked = browser.get(f"/slide/{kept['S-1']}")
        assert asked.status == 300 and "Choose the one that is meant" in asked.text
        linked = set(re.findall(r'href="/slide/(\w+)"', asked.text))
        assert linked == {again["S-1", name]["slide"] for name in ("one", "two")}


def test_slides_go_with_their_watched_folder_when_a_backup_is_restored_to_another(own: Lab, tmp_path: Path) -> None:
    slides = listed(own)
    for row in slides.values():
        list(run(own, "slide.approve", slide=row["slide"], who="A"))
    command(own, "store", "backup", str(tmp_path / "backup"))
    with own.open_store() as store:
        forget(store)  # the backup of an older labref says nothing of folders either
    command(own, "store", "backup", str(tmp_path / "older"))
    for name in ("one", "two"):
        (tmp_path / "new" / name).mkdir(parents=True)
    new = [str(tmp_path / "new" / name) for name in ("two", "one")]  # in the order of the lab's folders
    for backup in ("backup", "older"):
        target = tmp_path / f"again {backup}"
        words = ["store", "restore", str(tmp_path / backup), str(target), "--watch", new[0], "--watch", new[1]]
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, done.output
        found = {(row["name"], row["folder"]): row for row in listed(Lab.open(target)).values()}
        assert {who: row["cells"] for who, row in found.items()} == {
            ("S-1", new[0]): 2,
            ("S-1", new[1]): 3,
            ("S-2", None): 1,
        }
        if backup == "backup":
            assert {row["approval"]["standing"] for row in found.values()} == {"approved"}


def test_a_cell_that_is_brought_back_is_of_its_own_slide(own: Lab) -> None:
    slides = listed(own)
    with own.open_store() as store:
        (gone,) = [cell for cell in store.cells(ids(store)).values() if cell.path.endswith("one/S-1/1.jpg")]
        from labref.store.duckdb.removal import Due

        store.remove([Due(gone.cell_id, gone.digest, gone.label, gone.label_source, None, "old")])
        with store._transaction() as connection:  # by an older labref, that is
            connection.execute("UPDATE trash_cell SET folder = NULL")
            connection.execute("UPDATE trash_file SET folder = NULL")
        store.reload()
    assert listed(own)["S-1", "one"]["cells"] == 1
    command(own, "store", "bring-back", gone.cell_id)
    assert {who: row["cells"] for who, row in listed(own).items()} == {who: row["cells"] for who, row in slides.items()}


def ids(store: Store) -> list[str]:
    return [row.cell_id for row in store.ledger() if row.cell_id is not None]


@pytest.mark.parametrize(
    "to", ["another name", "another name, with most of its files", "another name beside it", "another folder"]
)
def test_slides_and_approvals_go_with_a_watched_folder_that_got_another_name(
    tmp_path: Path, drawn_cells: Path, starter: Bundle, to: str
) -> None:
    lab = watching_two(tmp_path, drawn_cells, starter)
    for row in listed(lab).values():
        list(run(lab, "slide.approve", slide=row["slide"], who="A"))
    if to == "another name beside it":
        (tmp_path / "new").symlink_to(tmp_path / "two")
    elif to == "another folder":  # other cells, in a slide of the same name
        (tmp_path / "new" / "S-1").mkdir(parents=True)
        shutil.copy(sorted(drawn_cells.rglob("*.jpg"))[-1], tmp_path / "new" / "S-1" / "0.jpg")
        shutil.rmtree(tmp_path / "two")
    else:
        (tmp_path / "two").rename(tmp_path / "new")
        if "most" in to:
            for path in sorted((tmp_path / "new").rglob("*.jpg"))[:1]:
                path.unlink()
    text = lab.config_file.read_text(encoding="utf-8")
    lab.config_file.write_text(text.replace(str(tmp_path / "two"), str(tmp_path / "new")), encoding="utf-8")
    lab = Lab.open(lab.folder)
    once(lab)
    found = {who: (row["cells"], row["approval"] and row["approval"]["standing"]) for who, row in listed(lab).items()}
    others = {("S-1", "one"): (2, "approved"), ("S-2", None): (1, "approved")}
    if to == "another folder":
        assert found == others | {("S-1", "two"): (3, "approved"), ("S-1", "new"): (1, None)}
    else:
        assert found == others | {("S-1", "new"): (3, "approved")}
