"""Slides: what the store knows of them, their operations, and their pages over HTTP."""

from __future__ import annotations

import http.client
import json
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
import pytest
from typer.testing import CliRunner

from labref.asking.differential import Kind, differential, kind_of
from labref.bundles.bundle import Bundle
from labref.cli import app
from labref.errors import LabrefError, StoreError
from labref.lab import Lab
from labref.operations.slide import _away
from labref.store import Store
from labref.store.duckdb.removal import Due
from labref.store.duckdb.reviews import Review
from labref.store.values import SeenAgain
from labref.web.desk import run
from labref.words import LabelSource, SlideId
from tests.labs import make_lab, once, running_agent
from tests.pages import Browser, let_in
from tests.stores import BUNDLE, activate, digest_of, new_cell, new_store

NAMES = ("Ålund <b>&amp; 1", "Ålund 2")
"""Names of slides that a page has to show as they are."""
S = SlideId("", "s")


def lay_out(cells: Path, export: Path) -> None:
    """The drawn cells as an analyser's export: those of one slide signed, the others of two slides unsigned."""
    for number, picture in enumerate(sorted(cells.glob("*/*.jpg"))):
        if number % 4 < 2:
            place = export / "order" / "Unsigned slides" / f"{NAMES[number % 2]}_{number:03d}.jpg"
        else:
            place = export / "Signed" / "Signed slides" / picture.parent.name / f"{number:03d}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(picture, place)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, drawn_cells: Path, starter: Bundle) -> Iterator[Lab]:
    export = tmp_path_factory.mktemp("export")
    lay_out(drawn_cells, export)
    lab = make_lab(tmp_path_factory.mktemp("lab") / "lab", export, starter)
    once(lab)
    with running_agent(lab):
        yield lab


@pytest.fixture(scope="module")
def reviewer(lab: Lab) -> Browser:
    return let_in(lab, "Reviewer", "review")


def keys(lab: Lab) -> dict[str, str]:
    return {row["name"]: row["slide"] for row in run(lab, "slide.list") if "name" in row}


def shown(lab: Lab, key: str, **asked: Any) -> tuple[dict[str, Any], list[dict[str, Any]], list[dict[str, Any]]]:
    """What is said of a slide, its classes, its cells."""
    about, *rows = run(lab, "slide.show", slide=key, **asked)
    return about, [row for row in rows if "kind" in row], [row for row in rows if "cell_id" in row]


# the store


def test_a_slide_has_the_cells_that_the_store_has_whatever_became_of_them(tmp_path: Path) -> None:
    with new_store(tmp_path) as store:
        store.record([new_cell(i, slide=f"s{i % 2}") for i in range(6)], bundle=BUNDLE)
        assert [(slide.id.name, slide.cells) for slide in store.slides.book.newest()] == [("s1", 3), ("s0", 3)]
        store.record([new_cell(6, slide="s0"), new_cell(7, slide=None), new_cell(8, slide="new")], bundle=BUNDLE)
        # a person's file says more than the analyser's, and where the cell is
        again = SeenAgain("/export/r.jpg", 1, 1, digest_of(0), "monocyte", "reviewed", "s1")
        store.record([again], bundle=BUNDLE)
        # a folder was renamed: cells follow their files
        moved = SeenAgain("/export/moved.jpg", 1, 1, digest_of(1), None, "predicted", "renamed")
        store.record([moved], bundle=BUNDLE)
        store.follow({new_cell(1).cell_id: {"/export/1.jpg"}})
        lived = {slide.id.name: store.slides.book.cells(slide.id) for slide in store.slides.book.newest()}
        order = [slide.id.name for slide in store.slides.book.newest()]
        store.reload()
        assert {slide.id.name: store.slides.book.cells(slide.id) for slide in store.slides.book.newest()} == lived
        assert [slide.id.name for slide in store.slides.book.newest()] == order
        assert set(lived) == {"s0", "s1", "new", "renamed"} and sum(map(len, lived.values())) == 8
        assert int(new_cell(0).cell_id, 16) == lived["s1"][0], "in the order the cells came"


@pytest.mark.parametrize(
    ("what", "standing"),
    [
        ("nothing", "approved"),
        ("a cell elsewhere", "approved"),
        ("a cell", "cells came"),
        ("a label", "labels changed"),
        ("a label that was taken back", "labels changed"),
        ("a file with a label", "labels changed"),
        ("two labels, one for the other", "labels changed"),
        ("a cell for another", "cells came"),
        ("a cell away", "cells left"),
        ("a cell removed", "approved"),
        ("another bundle", "labels changed"),
        ("approved again", "approved"),
        ("taken back", None),
    ],
)
def test_an_approval_ends_by_itself_when_cells_come_or_labels_change(
    tmp_path: Path, what: str, standing: str | None
) -> None:
    with new_store(tmp_path) as store:
        cells = [new_cell(i, slide="s", label=None, label_source="predicted") for i in range(3)]
        store.record([new_cell(8, slide="t"), *cells], bundle=BUNDLE)
        if "one for the other" in what:
            store.reviews.give(
                [Review(cells[0].cell_id, "monocyte", "A", None), Review(cells[1].cell_id, "blast", "A", None)]
            )
        store.slides.approve(S, "A")
        assert store.slides.approvals([S])[S].standing == "approved"
        first = cells[0].cell_id
        if what == "a cell elsewhere":
            store.record([new_cell(9, slide="t")], bundle=BUNDLE)
        elif what == "a cell":
            store.record([new_cell(9, slide="s")], bundle=BUNDLE)
        elif "one for the other" in what:
            store.reviews.give(
                [Review(cells[0].cell_id, "blast", "B", None), Review(cells[1].cell_id, "monocyte", "B", None)]
            )
        elif what in ("a cell for another", "a cell away"):
            store.record([SeenAgain("/moved", 1, 1, digest_of(0), "blast", "reviewed", "t")], bundle=BUNDLE)
            if "another" in what:  # as many as before, and none that is new
                store.record([SeenAgain("/came", 1, 1, digest_of(8), "blast", "reviewed", "s")], bundle=BUNDLE)
        elif what == "a cell removed":
            cell = cells[0]
            assert store.remove([Due(cell.cell_id, cell.digest, "blast", LabelSource.PREDICTED, None, "old")]) == 1
        elif what.startswith("a label"):
            store.reviews.give([Review(first, "monocyte", "B", None)])
            if "back" in what:
                store.reviews.undo(first, "B")
        elif what == "a file with a label":
            store.record([SeenAgain("/r.jpg", 1, 1, digest_of(0), "monocyte", "reviewed", "s")], bundle=BUNDLE)
        elif what == "another bundle":
            activate(store, "cd" * 32)
        elif what == "approved again":
            store.reviews.give([Review(first, "monocyte", "B", None)])
            store.slides.approve(S, "B")
        elif what == "taken back":
            store.slides.unapprove(S, "B")
        before = store.slides.approvals([S, SlideId("", "t")])
    with Store.open(tmp_path / "store.duckdb") as store:
        found = store.slides.approvals([S, SlideId("", "t")])
        assert found == before, "and so it is for who opens the store again"
        assert (found[S].standing if found else None) == standing
        if what == "approved again":
            assert found[S].who == "B" and found[S].cells == 3


def test_who_approves_a_slide_has_seen_what_others_changed_on_it(lab: Lab) -> None:
    key = keys(lab)[NAMES[0]]
    about, _, cells = shown(lab, key)
    first, second = cells[0], next(cell for cell in cells if cell["label"] != cells[0]["label"])
    for cell, label in ((first, second["label"]), (second, first["label"])):  # as many of each class as before
        list(run(lab, "label.set", cell=cell["cell_id"], label=label, who="B"))
    try:
        with pytest.raises(LabrefError, match="others changed the class of 2 cells"):
            list(run(lab, "slide.approve", slide=key, cells=about["cells"], seen=about["seen"], who="A"))
        assert shown(lab, key)[0]["approval"] is None
        approved = list(run(lab, "slide.approve", slide=key, cells=about["cells"], seen=about["seen"], who="B"))
        assert approved[0]["approval"]["standing"] == "approved", "who changed them has seen it"
        list(run(lab, "slide.unapprove", slide=key, who="B"))
        again = shown(lab, key)[0]
        list(run(lab, "slide.approve", slide=key, cells=again["cells"], seen=again["seen"], who="A"))
    finally:
        for cell in (first, second):
            list(run(lab, "label.undo", cell=cell["cell_id"], who="B"))
    assert shown(lab, key)[0]["approval"]["standing"] == "labels changed"
    list(run(lab, "slide.unapprove", slide=key, who="A"))


def test_a_label_is_taken_back_step_by_step_to_what_the_cell_carried_before(tmp_path: Path) -> None:
    with new_store(tmp_path) as store:
        store.record([new_cell(1, label=None, label_source="predicted"), new_cell(2)], bundle=BUNDLE)
        one, two = new_cell(1).cell_id, new_cell(2).cell_id
        for label in ("monocyte", "basophil"):
            store.reviews.give([Review(one, label, "A", None)])
        assert store.reviews.undo(one, "A") == ("monocyte", LabelSource.REVIEWED)
        assert store.reviews.undo(one, "A") == ("neutrophil", LabelSource.PREDICTED)
        with pytest.raises(StoreError, match="nothing to take back"):
            store.reviews.undo(one, "A")
        with pytest.raises(StoreError, match="nothing to take back"):
            store.reviews.undo(two, "A")
        store.reviews.give([Review(two, "monocyte", "A", None)])
        assert store.reviews.undo(two, "B") == ("neutrophil", LabelSource.ANALYSER)
        assert store.labelled([one, two]) == {
            one: ("neutrophil", LabelSource.PREDICTED),
            two: ("neutrophil", LabelSource.ANALYSER),
        }
        history = store.reviews.history(one)
        assert [change.undo for change in history] == [False, False, True, True]
        assert [change.who for change in store.reviews.history(two)] == ["A", "B"]
        # a file that brings a label afterwards stays what it is
        store.reviews.give([Review(two, "monocyte", "A", None)])
        store.record([SeenAgain("/r.jpg", 1, 1, digest_of(2), "basophil", "reviewed", None)], bundle=BUNDLE)
        # nothing said that it is a person's: files that move are followed again
        store.record([SeenAgain("/other.jpg", 1, 1, digest_of(1), "eosinophil", "analyser", None)], bundle=BUNDLE)
        assert store.labelled([one])[one] == ("eosinophil", LabelSource.ANALYSER)


# the differential


def test_a_differential_counts_leukocytes_alone() -> None:
    made = differential(
        {"neutrophil": 60, "Lymphocytes": 39, "hairy cell": 1, "NRBC": 5, "platelet": 50, "Artefact": 3}
    )
    assert made.leukocytes == 100 and made.erythroblasts == 5.0
    assert made.shares == {"neutrophil": 0.6, "Lymphocytes": 0.39, "hairy cell": 0.01}
    assert differential({"erythroblast": 3}).erythroblasts is None
    for label in ("Smudge cells", "Giant thrombocyte", "Thrombocyte aggregation", "Arifact", "Unidentified", "no cell"):
        assert kind_of(label) is Kind.OTHER
    assert kind_of("Erythroblast") is Kind.ERYTHROBLAST


def test_a_cell_unlike_its_class_is_odd() -> None:
    rng = np.random.default_rng(0)
    latents = {str(i): rng.normal(size=8).astype(np.float32) for i in range(30)}
    latents["far"] = np.full(8, 9, np.float32)
    found = _away(latents, dict.fromkeys(latents, "monocyte"))
    assert max(found, key=lambda cell: found[cell][0]) == "far" and found["far"][1]
    assert sum(odd for _, odd in found.values()) <= 3
    alone = _away({"a": latents["far"], "b": latents["0"]}, {"a": "x", "b": "y"})
    assert alone == {"a": (0.0, False), "b": (0.0, False)}


# operations and pages


def test_slides_are_listed_and_found_by_their_name_which_stands_in_no_address(lab: Lab, reviewer: Browser) -> None:
    found = list(run(lab, "slide.list"))
    assert found[0] == {"slides": 3}
    assert {row["name"]: (row["cells"], row["awaiting"]) for row in found[1:]} == {
        NAMES[0]: (8, 8),
        NAMES[1]: (8, 8),
        "Signed": (16, 0),
    }
    page = reviewer.get("/slides")
    assert "Ålund &lt;b&gt;&amp;amp; 1" in page.text and "<b>&" not in page.text
    for address in re.findall(r'(?:href|src|action)="([^"]*)"', page.text):
        assert "lund" not in address
    searched = reviewer.post("/slides", {"search": " ålund <B>"})
    assert searched.status == 200 and "1 slide<" in searched.text and "Signed" not in searched.text
    assert "No slide has this" in reviewer.post("/slides", {"search": "%_nobody"}).text
    for number in ("2", "0", "-1", "x", "999999999999", "%D9%A3"):
        assert "Signed" in reviewer.get(f"/slides?page={number}").text
    assert [row["name"] for row in run(lab, "slide.list", limit=1, offset=1) if "name" in row] == [found[2]["name"]]


def test_a_slide_is_a_gallery_by_class_with_its_differential(lab: Lab, reviewer: Browser) -> None:
    key = keys(lab)["Signed"]
    about, classes, cells = shown(lab, key)
    assert (about["cells"], about["leukocytes"], about["erythroblasts"]) == (16, 12, pytest.approx(100 * 2 / 12))
    assert sum(row["share"] or 0 for row in classes) == pytest.approx(1)
    assert [row["kind"] for row in classes] == ["leukocyte"] * 6 + ["erythroblast", "other"]
    assert {row["cell_id"] for row in cells} == set(
        re.findall(r'data-cell="(\w+)"', reviewer.get(f"/slide/{key}").text)
    )
    distances = [row["distance"] for row in cells if row["label"] == cells[0]["label"]]
    assert distances == sorted(distances, reverse=True)
    assert all(row["confidence"] is None for row in cells)
    *_, unsigned = shown(lab, keys(lab)[NAMES[0]])
    assert all(0 < row["confidence"] <= 1 for row in unsigned)
    first, second = shown(lab, key, limit=10)[2], shown(lab, key, limit=10, offset=10)[2]
    assert [row["cell_id"] for row in first + second] == [row["cell_id"] for row in cells]
    newest = shown(lab, key, order="arrival")
    assert newest[0]["order"] == "arrival" and newest[2][0]["distance"] is None
    page = reviewer.get(f"/slide/{key}").text
    assert page.count('role="option"') == 16 and "12 leukocytes counted." in page
    two = reviewer.get(f"/slides/beside?slide={key}&slide={keys(lab)[NAMES[0]]}")
    assert two.status == 200 and "12 leukocytes" in two.text and "&lt;b&gt;" in two.text
    assert "Choose two slides" in reviewer.get(f"/slides/beside?slide={key}").text


@pytest.mark.parametrize("key", ["0" * 20, "x", "..%2F..%2Fetc", "%00", "%3Cscript%3E", "a" * 5000])
def test_an_address_without_a_slide_says_so(reviewer: Browser, key: str) -> None:
    page = reviewer.get(f"/slide/{key}")
    assert page.status in (400, 404) and "<script>" not in page.text.replace("<script type", "")


def test_what_is_refused_for_another_reason_is_not_called_missing(reviewer: Browser) -> None:
    for address in (f"/reading/{10**12}", f"/reading/1/picture/{10**9}/none/0"):
        page = reviewer.get(address)
        assert page.status == 400 and 'role="alert"' in page.text and "Nothing is here" not in page.text, address
    for address in ("/reading/7", "/reading/7/picture/1/none/0", "/slide/unknown"):
        page = reviewer.get(address)
        assert page.status == 404 and "Nothing is here" in page.text, address


def test_a_viewer_looks_and_a_reviewer_approves_under_their_own_name(lab: Lab, reviewer: Browser) -> None:
    key = keys(lab)[NAMES[1]]
    viewer = let_in(lab, "Viewer", "view")
    assert "data-give" not in viewer.get(f"/slide/{key}").text and "data-give" in reviewer.get(f"/slide/{key}").text
    json, asked = {"Content_Type": "application/json"}, b'{"slide": "%s", "cells": 8, "who": "Else"}' % key.encode()
    for operation in ("slide/approve", "slide/unapprove", "label/undo"):
        assert viewer.ask("POST", f"/api/v1/{operation}", asked, **json).status == 403
    wrong = reviewer.ask("POST", "/api/v1/slide/approve", asked.replace(b": 8", b": 7"), **json)
    assert wrong.status == 400 and "has 8 cells by now" in wrong.text
    assert reviewer.ask("POST", "/api/v1/slide/approve", asked, **json).status == 200
    assert "approved by Reviewer" in viewer.get(f"/slide/{key}").text
    assert "approved by Reviewer" in viewer.get("/slides").text
    *_, cells = shown(lab, key)
    (given,) = run(lab, "label.set", cell=cells[0]["cell_id"], label="blast", new=True)
    assert given["outcome"] == "changed"
    assert "labels changed since it was approved" in viewer.get(f"/slide/{key}").text
    with pytest.raises(LabrefError, match="by now"):
        list(run(lab, "label.undo", cell=cells[0]["cell_id"], label="monocyte"))
    (back,) = run(lab, "label.undo", cell=cells[0]["cell_id"], label="blast", who="A")
    assert (back["label"], back["label_source"]) == (cells[0]["label"], "predicted")
    (history,) = run(lab, "label.history", cell=cells[0]["cell_id"])
    assert [change["undo"] for change in history["changes"]] == [False, True]
    list(run(lab, "slide.unapprove", slide=key))
    with pytest.raises(LabrefError, match="nobody has approved"):
        list(run(lab, "slide.unapprove", slide=key))


def test_cells_that_came_are_shown_by_slide_the_last_first(lab: Lab, reviewer: Browser) -> None:
    cells = list(run(lab, "live.cells"))
    assert len(cells) == 32 and [cell["number"] for cell in cells] == sorted(
        (cell["number"] for cell in cells), reverse=True
    )
    page = reviewer.get("/").text
    assert sorted(re.findall(r'data-cell="(\w+)"', page)) == sorted(cell["cell_id"] for cell in cells)
    assert re.findall(r'data-slide="(\w+)"', page) == list(dict.fromkeys(cell["slide"] for cell in cells))
    middle = cells[10]["number"]
    assert [cell["number"] for cell in run(lab, "live.cells", after=middle)] == [c["number"] for c in cells[:10]]
    assert [cell["number"] for cell in run(lab, "live.cells", before=middle, limit=5)] == [
        cell["number"] for cell in cells[11:16]
    ]
    assert reviewer.get(f"/?before={middle}").text.count("data-cell=") == 21
    assert reviewer.get(f"/live/new?after={middle}").text.count("data-cell=") == 10
    for wrong in ("x", "-1", "9" * 40, "", "%D9%A3"):
        assert reviewer.get(f"/?before={wrong}").status == 200 == reviewer.get(f"/live/new?after={wrong}").status
    ids = [cell["cell_id"] for cell in cells[:3]]
    (*found,) = run(lab, "live.marks", cells=[*ids, "0" * 16, "no id"])
    assert [row["cell_id"] for row in found] == ids
    known = {cell["cell_id"]: cell["marks"] for cell in run(lab, "live.cells")}
    assert {row["cell_id"]: row["marks"] for row in found}.items() <= known.items(), "it is not looked for again"
    other = found[0]["marks"]["neighbours"]
    list(run(lab, "label.set", cell=ids[0], label="never seen before", new=True))
    assert known[ids[0]]["neighbours"] == other
    after = {cell["cell_id"]: cell["marks"] for cell in run(lab, "live.cells")}[ids[0]]
    assert after["disagrees"] is ((after["share"] or 0) > 0.5)
    list(run(lab, "label.undo", cell=ids[0]))


def test_a_stream_says_that_something_is_new_until_whoever_listens_is_revoked(lab: Lab) -> None:
    listener = let_in(lab, "Listener", "view")
    connection = http.client.HTTPConnection("127.0.0.1", listener.port, timeout=60)
    cookie = "; ".join(f"{name}={value}" for name, value in listener.cookies.items())
    connection.request("GET", "/events", headers={"Cookie": cookie})
    stream = connection.getresponse()
    assert stream.getheader("content-type", "").startswith("text/event-stream")

    def next_number() -> int:
        while not (line := stream.readline()).startswith(b"data: "):
            assert line, "the stream ended"
        return int(line.split()[1])

    before = next_number()
    cell = next(iter(run(lab, "live.cells", limit=1)))
    list(run(lab, "label.set", cell=cell["cell_id"], label=cell["label"], who="A"))
    assert next_number() > before
    list(run(lab, "user.revoke", name="Listener"))
    while stream.readline():
        pass
    connection.close()
    refused = Browser.of(lab).get("/events", Accept="text/event-stream")
    assert refused.status == 401


def test_a_script_imports_another_by_the_address_of_its_content(reviewer: Browser) -> None:
    page = reviewer.get("/slides").text
    (base,) = re.findall(r'src="(/static/labref\.js\?\w+)"', page)
    (own,) = re.findall(r'src="(/static/slides\.js\?\w+)"', page)
    assert f'from "{base}"' in reviewer.get(own).text, "else a browser loads it twice"


def command(lab: Lab, *words: str) -> str:
    done = CliRunner().invoke(app, [*words, "--lab", str(lab.folder)], prog_name="labref")
    assert done.exit_code == 0, done.output
    return done.stdout


def test_commands_list_show_and_approve_slides_as_the_pages_do(lab: Lab) -> None:
    key = keys(lab)[NAMES[1]]
    listed = [json.loads(line) for line in command(lab, "slide", "list", "--json").splitlines()]
    assert listed == list(run(lab, "slide.list"))
    assert f"{key}  {NAMES[1]}  " in command(lab, "slide", "list", "--search", NAMES[1])
    assert "1 of 3 slides; --offset 1 goes on" in command(lab, "slide", "list", "--limit", "1")
    assert command(lab, "slide", "list", "--search", "nosuch") == "no slides\n"
    about, classes, cells = shown(lab, key)
    told = [json.loads(line) for line in command(lab, "slide", "show", NAMES[1], "--cells", "--json").splitlines()]
    assert [row for row in told if "cell_id" in row] == cells and told[0]["slide"] == key
    said = command(lab, "slide", "show", key, "--cells")
    assert all(f"  {row['label']:<24} {row['cells']:>6}" in said for row in classes)
    assert all(cell["cell_id"] in said for cell in cells) and about["name"] in said
    assert not any(cell["cell_id"] in command(lab, "slide", "show", key) for cell in cells)
    assert "approved by C" in command(lab, "slide", "approve", key, "--who", "C")
    assert shown(lab, key)[0]["approval"]["who"] == "C"
    assert "not approved" in command(lab, "slide", "unapprove", NAMES[1], "--who", "C")
    wrong = CliRunner().invoke(app, ["slide", "show", "nosuch", "--lab", str(lab.folder)])
    assert wrong.exit_code == 1 and "no slide of this lab" in wrong.output


def test_two_administrators_remove_and_bring_back_the_same_cells_at_once(lab: Lab) -> None:
    admins = [let_in(lab, name, "admin") for name in ("A. Lind", "B. Berg")]
    (slide, *_) = [row["slide"] for row in run(lab, "slide.list") if "slide" in row]
    before = sorted(row["cell_id"] for row in shown(lab, slide)[2])
    ticked = [("cell", cell) for cell in before]
    for number in range(2):
        removal = {"cells": len(before), "why": f"round {number}", "how": "remove"}
        for path, fields in ((f"/slide/{slide}/remove", removal.items()), ("/removed", ticked)):
            with ThreadPoolExecutor() as pool:
                body = urlencode([*fields]).encode()
                form = {"Content_Type": "application/x-www-form-urlencoded"}
                answers = [*pool.map(lambda one: one.ask("POST", path, body, **form), admins)]  # noqa: B023
            assert max(one.status for one in answers) <= 400
            done = r"\d+ cells were removed|\d+ cells are back\."
            assert sum(len(re.findall(done, one.text)) for one in answers) == 1, "one of them did it"
            there, trashed = (
                sorted(row["cell_id"] for row in rows)
                for rows in (shown(lab, slide)[2] if path == "/removed" else [], run(lab, "store.trash"))
            )
            assert there + trashed == before
        assert sum("were back already" in one.text for one in answers) == 1
    *_, last = run(lab, "ledger.check")
    assert last["ok"]


def test_cells_that_were_removed_one_by_one_are_listed_in_pages(lab: Lab) -> None:
    admin = let_in(lab, "C. Dahl", "admin")
    cells = [row["cell_id"] for slide in keys(lab).values() for row in shown(lab, slide)[2]][:22]
    for number, cell in enumerate(cells):
        list(run(lab, "store.remove", cells=[cell], why=f"reason {number}."))
    listed = [re.findall(r"reason \d+\.", admin.get(f"/removed{page}").text) for page in ("", "?page=2", "?page=99")]
    assert listed[0] + listed[1] == [f"reason {number}." for number in reversed(range(22))]
    assert len(listed[0]) == 20 and listed[2] == listed[1]
    assert 'href="/removed?page=2"' in admin.get("/removed").text
    came = admin.post("/removed?page=2", {"cell": cells[0]}).text
    assert "1 cell is back." in came and "reason 1." in came and "reason 21." not in came
    list(run(lab, "store.bring_back", every=True))
