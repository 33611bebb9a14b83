"""The review queues and the readings in Chromium, as a person uses them, on real cells."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Browser as Chromium
from playwright.sync_api import Page, expect

from labref.bundles.bundle import Bundle
from labref.lab import Lab
from labref.web.desk import Desk, run
from tests.browser import open_page
from tests.labs import make_lab, once, running_agent, wait_until


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, real_cells: Path, starter: Bundle) -> Iterator[Lab]:
    """Four real cells of each class; three of them may have been captured twice, turned a little."""
    export = tmp_path_factory.mktemp("export")
    for at, folder in enumerate(one for one in sorted((real_cells / "pbc").iterdir()) if one.is_dir()):
        (export / folder.name).mkdir()
        for number, cell in enumerate(sorted(folder.glob("*.jpg"))[:4]):
            shutil.copy(cell, export / folder.name)
            if number == 0 and at < 3:
                with Image.open(cell) as opened:
                    again = opened.rotate(2.0, Image.Resampling.BICUBIC, translate=(6, -9), fillcolor=(225, 205, 200))
                    again.save(export / folder.name / "again.jpg", quality=85)
    lab = make_lab(tmp_path_factory.mktemp("lab") / "lab", export, starter)
    once(lab)
    with lab.open_store() as store, store._transaction() as connection:
        connection.execute("UPDATE resemblance SET verdict = 'possible_duplicate' WHERE verdict = 'duplicate'")
    with Desk.open(lab) as desk:
        for pair in [row for row in desk.run("duplicates.list", verdict="duplicate") if row["kind"] == "pair"]:
            list(desk.run("duplicates.confirm", cell=pair["cell_id"]))
            list(desk.run("duplicates.undo", cell=pair["cell_id"]))
        for kind, title in (("classes", "Classes"), ("triplets", "Triplets")):
            list(desk.run("reading.start", title=title, kind=kind, n=16, sources=["reviewed", "analyser"]))
    with running_agent(lab):
        yield lab


def reading(lab: Lab, title: str) -> int:
    return next(int(row["reading"]) for row in run(lab, "reading.list") if row["title"] == title)


def done(lab: Lab, title: str, who: str) -> int:
    (row,) = [row for row in run(lab, "reading.list", who=who) if row["title"] == title]
    return int(row["done"])


def ready(page: Page) -> str:
    """The task whose pictures are shown."""
    section = page.locator("#reading")
    expect(section).to_have_attribute("data-task", re.compile("."))  # the script has asked for the first one
    expect(section).to_have_attribute("data-ready", section.get_attribute("data-task") or "")
    return section.get_attribute("data-task") or ""


def test_duplicates_are_compared_in_one_place_and_decided_by_one_key_each(lab: Lab, browser: Chromium) -> None:
    with open_page(browser, lab, "Pairs") as page:
        page.set_default_timeout(120_000)
        expect.set_options(timeout=60_000)
        page.goto("/review")
        page.keyboard.press("D")
        pair = page.locator("#pair[data-ready]")
        expect(pair).to_be_visible()
        left = page.locator("#left")
        expect(left).to_have_text("3")
        box = page.locator("#cell").bounding_box()
        assert box is not None and box["width"] > 450 and box["height"] > 450, "large at 1366 × 768"
        seen = []
        for _ in range(3):  # no pair is passed over, in one place neither
            seen.append(pair.get_attribute("data-cell"))
            page.keyboard.press("ArrowRight")
            page.wait_for_timeout(300)
        assert len(set(seen)) == 3
        page.keyboard.press(" ")
        stage = page.locator(".stage")
        expect(stage).to_have_attribute("data-laid", "registered")
        expect(page.locator("#other")).to_be_visible()
        expect(page.locator("#cell")).not_to_be_visible()
        page.keyboard.press(" ")
        expect(page.locator("#cell")).to_be_visible()
        expect(page.locator("#other")).not_to_be_visible()
        one, other = page.locator(".earlier .plate").bounding_box(), page.locator(".later .plate").bounding_box()
        assert one == other, "in one place"
        for back in (0, 1, 2, 1, 0, 2):  # laid over each other, arrows pass over no pair either, and leave them so
            at = seen.index(pair.get_attribute("data-cell") or "")
            for _ in range(abs(back - at)):
                page.keyboard.press("ArrowRight" if back > at else "ArrowLeft")
            expect(pair).to_have_attribute("data-cell", seen[back] or "")
            expect(stage).to_have_attribute("data-mode", "flicker")
        page.keyboard.press("ArrowLeft")
        expect(pair).to_have_attribute("data-cell", seen[1] or "")
        page.keyboard.press("B")
        page.keyboard.press("Y")
        expect(left).to_have_text("2")
        expect(pair).to_have_attribute("data-cell", seen[2] or "")
        page.keyboard.press("N")
        expect(left).to_have_text("1")
        verdicts = {row["cell_id"]: row["verdict"] for row in run(lab, "duplicates.list")}
        assert (verdicts[seen[1]], verdicts[seen[2]]) == ("duplicate", "rejected")
        page.keyboard.press("u")
        expect(left).to_have_text("2")
        expect(pair).to_have_attribute("data-cell", seen[2] or "")
        page.keyboard.press("u")
        expect(left).to_have_text("3")
        assert {row["verdict"] for row in run(lab, "duplicates.list")} == {"possible_duplicate"}


def test_an_uncertain_cell_is_decided_by_the_key_of_its_class_and_enter(lab: Lab, browser: Chromium) -> None:
    with open_page(browser, lab, "Queue") as page:
        page.set_default_timeout(120_000)
        waiting = list(run(lab, "review.cells", queue="doubtful"))
        page.goto("/review/doubtful")
        if not waiting:
            expect(page.locator("#nothing")).to_be_visible()
            return
        queue = page.locator("#queue[data-ready]")
        expect(queue).to_have_attribute("data-cell", waiting[0]["cell_id"])
        expect(page.locator(".neighbours li")).to_have_count(8)
        left = int(page.locator("#left").inner_text())
        page.keyboard.down("m")
        expect(page.locator("#left")).to_have_text(str(left - 1))
        for _ in range(3):
            page.keyboard.down("m")  # held on: it must not decide the cells after it
        page.keyboard.up("m")
        (history,) = run(lab, "label.history", cell=waiting[0]["cell_id"])
        assert (history["label"], history["changes"][-1]["who"]) == ("monocyte", "Queue")
        page.keyboard.press("u")
        expect(queue).to_have_attribute("data-cell", waiting[0]["cell_id"])
        expect(page.locator("#left")).to_have_text(str(left))
        page.keyboard.press("Enter")
        expect(page.locator("#left")).to_have_text(str(left - 1))
        (history,) = run(lab, "label.history", cell=waiting[0]["cell_id"])
        assert (history["label"], history["label_source"]) == (waiting[0]["label"], "reviewed")


@pytest.mark.parametrize(("title", "presses"), [("Classes", "mnleN"), ("Triplets", "12021")])
def test_five_tasks_are_answered_and_whoever_comes_back_goes_on(
    lab: Lab, browser: Chromium, title: str, presses: str
) -> None:
    with open_page(browser, lab, f"Reader of {title}", "view") as page:
        page.set_default_timeout(120_000)
        expect.set_options(timeout=60_000)
        page.goto(f"/reading/{reading(lab, title)}")
        seen = []
        for key in presses:
            seen.append(ready(page))
            page.keyboard.press(key)
            expect(page.locator("#reading")).not_to_have_attribute("data-task", seen[-1])
        sixth = ready(page)
        assert len({*seen, sixth}) == 6
        expect(page.locator("#done")).to_have_text("5")
        wait_until(lambda: done(lab, title, f"Reader of {title}") == 5)
        page.goto("/reading")
        page.locator("tr", has_text=title).locator("a.go").click()
        expect(page.locator("#reading")).to_have_attribute("data-task", sixth)
        assert done(lab, title, f"Reader of {title}") == 5
        page.keyboard.press("u")
        expect(page.locator("#reading")).to_have_attribute("data-task", seen[-1])
        ready(page)
        page.keyboard.press(presses[-1])
        expect(page.locator("#reading")).to_have_attribute("data-task", sixth)
        expect(page.locator("#done")).to_have_text("5")
        page.wait_for_timeout(500)
        html = page.content()
        assert "/cell/" not in html and ".jpg" not in html
