"""A technologist at the slides, in Chromium."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser as Chromium
from playwright.sync_api import expect

from labref.bundles.bundle import Bundle
from labref.demo.cells import LABELS, OPTICS, draw_cell, encode_jpeg, make_slides
from labref.lab import Lab
from labref.web.desk import run
from tests.browser import open_page
from tests.labs import make_lab, once, running_agent

CELLS = 100
PATIENCE_MS = 120_000  # Chromium on a busy computer


def put(export: Path, name: str, number: int) -> None:
    """Draw one cell of an unsigned slide."""
    slide, label = make_slides(1, seed=6)[0], LABELS[number % len(LABELS)]
    picture = draw_cell(label, OPTICS[slide.optics], slide, np.random.default_rng([11, number]))
    place = export / "order" / "Unsigned slides" / f"{name}_{number:03d}.jpg"
    place.parent.mkdir(parents=True, exist_ok=True)
    drawn = place.with_suffix(".part")
    drawn.write_bytes(encode_jpeg(picture))
    shutil.move(drawn, place)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, starter: Bundle) -> Iterator[Lab]:
    """A slide of a hundred cells that nobody has reviewed."""
    export = tmp_path_factory.mktemp("export")
    for number in range(CELLS):
        put(export, "Smear 1", number)
    lab = make_lab(tmp_path_factory.mktemp("lab") / "lab", export, starter)
    once(lab)
    with running_agent(lab):
        yield lab


def test_a_slide_of_a_hundred_cells_is_reviewed_by_keyboard_with_few_keys(lab: Lab, browser: Chromium) -> None:
    (slide,) = [row["slide"] for row in run(lab, "slide.list") if "slide" in row]
    (about, *_) = run(lab, "slide.show", slide=slide)
    assert (about["cells"], about["awaiting"]) == (CELLS, CELLS)
    with open_page(browser, lab, "Technologist") as page:
        page.set_default_timeout(PATIENCE_MS)
        pressed: Counter[str] = Counter()

        def press(key: str) -> None:
            pressed[key] += 1
            page.keyboard.press(key)

        page.goto(f"/slide/{slide}")
        page.evaluate("window.loaded = 'once'")
        # a slide that nobody has reviewed is approved by who says so once more, and by nobody else
        asks, approval = page.locator("#unreviewed"), page.locator("#approval")
        for answer, approved in (("Escape", False), ("n", False), ("Enter", True), ("y", True)):
            page.keyboard.press("A")
            expect(asks).to_contain_text("Nobody has reviewed 100 of the 100 cells.")
            page.keyboard.down(answer)
            expect(asks).not_to_be_visible()
            for _ in range(2):
                page.keyboard.down(answer)  # held on: it must not confirm a cell
            page.keyboard.up(answer)
            if approved:
                expect(approval).to_contain_text("approved by Technologist", timeout=PATIENCE_MS)
                page.keyboard.press("u")
            expect(approval).to_have_text("not approved", timeout=PATIENCE_MS)
        expect(page.locator("#awaiting")).to_have_text(f"{CELLS} await review")
        press("N")
        for number in range(CELLS):
            current = page.locator(".tile.now")
            assert current.get_attribute("data-source") == "predicted", number
            if number % 10 == 4:  # one in ten is called otherwise
                press("m" if current.get_attribute("data-label") != "monocyte" else "e")
            else:
                press("Enter")
        expect(page.locator("#awaiting")).to_have_text("all reviewed", timeout=PATIENCE_MS)
        for _ in range(3):  # Enter is pressed on: what is said again stands once
            page.keyboard.press("Enter")
        expect(page.locator("#said p", has_text="All cells are reviewed.")).to_have_count(1)
        press("A")  # all reviewed: at once
        expect(approval).to_contain_text("approved by Technologist", timeout=PATIENCE_MS)
        page.keyboard.press("Enter")
        expect(page.locator("#said p").last).to_have_text("No cell here awaits review.")
        # the keys, all of them at once on the screen of an analyser
        page.keyboard.press("?")
        expect(page.locator("#keys-title")).to_be_in_viewport(ratio=1)
        expect(page.locator("#keys button")).to_be_in_viewport(ratio=1)
        caps = page.locator("#keys-list kbd").all_inner_texts()
        assert {"Space", "Esc"} <= set(caps) and all(cap.strip() for cap in caps)
        page.keyboard.press("Escape")
        assert pressed.total() <= 1.3 * CELLS, pressed
        about, *rows = run(lab, "slide.show", slide=slide)
        assert about["awaiting"] == 0 and about["approval"]["standing"] == "approved"
        shown = {row["label"]: row["cells"] for row in rows if "kind" in row}
        for label, count in shown.items():
            expect(page.locator(f'tr[data-class="{label}"] [data-count-of]')).to_have_text(str(count))
        assert page.evaluate("window.loaded") == "once", "a hundred classes were given without loading the page anew"
        # to the middle of the smear at once: a class by its link, the ends by their keys
        last = page.locator(".jump a").last
        last.click()
        of_class = page.locator(f".of-class[id='{str(last.get_attribute('href'))[1:]}']")
        expect(of_class.locator(".tile").first).to_be_in_viewport()
        page.keyboard.press("Home")
        expect(page.locator(".tile").first).to_be_in_viewport()
        page.keyboard.press("End")
        expect(page.locator(".tile").last).to_be_in_viewport()
        expect(page.locator(".tile").last).to_have_class(re.compile("now"))
        # one more change ends the approval, and taking it back leaves the cell as it was
        first = page.locator(".tile").first
        cell, label = first.get_attribute("data-cell"), first.get_attribute("data-label")
        first.hover()
        page.keyboard.press("a" if label != "basophil" else "e")
        moved = page.locator(f'[data-cell="{cell}"]')
        expect(moved).not_to_have_attribute("data-label", str(label))
        expect(page.locator("#approval")).to_contain_text("labels changed", timeout=PATIENCE_MS)
        page.keyboard.press("u")
        expect(moved).to_have_attribute("data-label", str(label), timeout=PATIENCE_MS)
        (history,) = run(lab, "label.history", cell=cell)
        assert history["label"] == label and history["changes"][-1]["undo"]
        assert {change["who"] for change in history["changes"]} == {"Technologist"}


def test_several_cells_are_chosen_with_shift_and_go_together(lab: Lab, browser: Chromium) -> None:
    (slide,) = [row["slide"] for row in run(lab, "slide.list") if "slide" in row]
    with open_page(browser, lab, "Chooser") as page:
        page.set_default_timeout(PATIENCE_MS)
        page.goto(f"/slide/{slide}?order=arrival")
        # of a mouse at rest a browser tells as well once a page is there, and a finger that scrolls is over cells
        for kind, screen_x, over, meant in (
            ("mouse", 3, 3, -1), ("mouse", 3, 3, -1), ("mouse", 4, 4, 4), ("touch", 8, 8, 4), ("mouse", 4, 5, 4), ("mouse", 9, 9, 9),
        ):  # fmt: skip
            at = page.evaluate(
                f"""() => {{
                const tiles = [...document.querySelectorAll(".tile")], screenX = {screen_x}, pointerType = "{kind}";
                tiles[{over}].dispatchEvent(new PointerEvent("pointermove", {{ bubbles: true, screenX, pointerType }}));
                return tiles.findIndex((tile) => tile.classList.contains("now")); }}"""
            )
            assert at == meant, (kind, over)
        page.keyboard.press("Home")
        for _ in range(2):
            page.keyboard.press("Shift+ArrowRight")
        chosen = page.locator('.tile[aria-selected="true"]')
        expect(chosen).to_have_count(3)
        cells = [one.get_attribute("data-cell") for one in chosen.all()]
        before = [one.get_attribute("data-label") for one in chosen.all()]
        page.keyboard.press("h")
        expect(page.locator("#said")).to_contain_text("3 cells are platelet", timeout=PATIENCE_MS)
        assert {run_one["label"] for cell in cells for run_one in run(lab, "label.history", cell=cell)} == {"platelet"}
        page.keyboard.press("u")
        for cell, label in zip(cells, before, strict=True):
            tile = page.locator(f'[data-cell="{cell}"]')
            expect(tile).to_have_attribute("data-label", str(label), timeout=PATIENCE_MS)
        page.locator("#white").fill("6")
        row = page.locator('tr[data-class="monocyte"]')
        share = float(str(row.locator("[data-share-of]").text_content()).split()[0])
        expect(row.locator("[data-absolute-of]")).to_have_text(re.compile(r"\d"))
        assert float(str(row.locator("[data-absolute-of]").text_content())) == pytest.approx(0.06 * share, abs=0.01)


def test_cells_that_come_in_appear_by_themselves(lab: Lab, browser: Chromium) -> None:
    with open_page(browser, lab, "Watcher", "view") as page:
        page.set_default_timeout(PATIENCE_MS)
        page.goto("/")
        expect(page.locator("#state")).to_have_text("Updates by itself.", timeout=PATIENCE_MS)
        (watched,) = lab.watched
        put(Path(watched), "Smear 2", CELLS)
        first = page.locator(".coming").first
        expect(first.locator("h2")).to_contain_text("Smear 2", timeout=PATIENCE_MS)
        expect(first.locator(".fresh")).to_have_count(1)
        # the mark of a new cell never hides which one the keys are on
        new = first.locator(".fresh a")
        expect(new).to_have_css("outline-style", "dotted")
        page.keyboard.press("ArrowRight")
        expect(new).to_be_focused()
        expect(new).to_have_css("outline-style", "solid")
        expect(page.locator("[data-unmarked]")).to_have_count(0, timeout=PATIENCE_MS)


def test_a_picture_that_is_missing_says_so(lab: Lab, browser: Chromium) -> None:
    slide = next(row["slide"] for row in run(lab, "slide.list") if "slide" in row)
    with open_page(browser, lab, "Missing") as page:
        page.set_default_timeout(PATIENCE_MS)
        page.route("**/picture*", lambda route: route.fulfill(content_type="image/jpeg", body="none"))
        page.goto(f"/slide/{slide}")
        expect(page.locator(".tile img.missing").first).to_have_attribute("alt", "The picture is missing.")
        box = page.locator(".tile img.missing").first.bounding_box()
        assert box is not None and box["width"] > 40 and box["height"] > 40
        page.unroute("**/picture*")
        page.evaluate("for (const image of document.querySelectorAll('.tile img')) image.src += '#again'")
        expect(page.locator(".tile img").first).to_have_attribute("alt", "")
        expect(page.locator(".tile img.missing")).to_have_count(0, timeout=PATIENCE_MS)
