"""The page of one cell in Chromium, as a technologist uses it, on real cells."""

from __future__ import annotations

import base64
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser as Chromium
from playwright.sync_api import Page, expect

from labref.bundles.bundle import Bundle
from labref.lab import Lab
from labref.web.desk import run
from tests.browser import open_page
from tests.labs import ledger, make_lab, once, running_agent

CLASSES = ("monocyte", "neutrophil", "lymphocyte")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, real_cells: Path, starter: Bundle) -> Iterator[Lab]:
    """Five real cells of each of three classes, on one slide."""
    export = tmp_path_factory.mktemp("export")
    for name in CLASSES:
        (export / "slide 1" / name).mkdir(parents=True)
        for cell in sorted((real_cells / "pbc" / name).glob("*.jpg"))[:5]:
            shutil.copy(cell, export / "slide 1" / name)
    lab = make_lab(tmp_path_factory.mktemp("lab") / "lab", export, starter)
    once(lab)
    with running_agent(lab):
        yield lab


def of_class(lab: Lab, name: str) -> str:
    return next(str(row["cell_id"]) for path, row in ledger(lab).items() if f"/{name}/" in path)


def ready(page: Page, cell: str) -> None:
    page.set_default_timeout(120_000)
    expect.set_options(timeout=120_000)
    page.goto(f"/cell/{cell}")
    page.wait_for_load_state("networkidle")


def test_a_class_is_set_by_its_key_and_a_bad_reference_left_out_and_both_undone(lab: Lab, browser: Chromium) -> None:
    cell = of_class(lab, "monocyte")
    with open_page(browser, lab, "Åsa", height=400) as page:
        ready(page, cell)
        page.keyboard.press("l")
        expect(page.locator("#label")).to_have_text("lymphocyte")
        written = page.locator("#record li").last
        expect(written).to_contain_text("lymphocyte, Åsa")
        noted = written.inner_text()
        assert page.evaluate("scrollY") == 0, "the pictures stay where they are"
        expect(page.locator("#source")).to_have_text("reviewed by a person")
        # the first reference, by keyboard alone
        page.keyboard.press("ArrowUp")
        first = page.locator("[data-reference]").nth(1)
        expect(first.locator(".about")).to_be_visible()
        expect(first.locator(".about")).to_contain_text("slide 1")
        poor = str(first.get_attribute("data-reference"))
        page.keyboard.press("N")
        expect(first).to_have_class("tile left-out")
        (history,) = run(lab, "label.history", cell=cell)
        assert (history["label"], history["changes"][-1]["who"]) == ("lymphocyte", "Åsa")
        (shown,) = run(lab, "cell.show", cell=cell)
        assert poor not in [one["cell_id"] for one in shown["references"]]
        page.keyboard.press("u")
        expect(first).to_have_class("tile")
        page.keyboard.press("u")
        expect(page.locator("#label")).to_have_text("monocyte")
        expect(page.locator("#source")).to_have_text("the analyser's class")
        (shown,) = run(lab, "cell.show", cell=cell)
        assert poor in [one["cell_id"] for one in shown["references"]]
        assert (shown["label"], shown["label_source"]) == ("monocyte", "analyser")
        # what the script wrote into the record stands there in the same words when the page is loaded anew
        page.reload()
        (line,) = [one for one in page.locator("#record li").all() if "lymphocyte" in one.inner_text()]
        form = r"\d{1,2} (Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sept?|Oct|Nov|Dec) \d{4} \d\d:\d\d lymphocyte, Åsa"
        assert re.fullmatch(form, noted) and re.fullmatch(form, line.inner_text()), (noted, line.inner_text())


def test_who_is_refused_since_somebody_else_was_first_sees_what_it_is_now(lab: Lab, browser: Chromium) -> None:
    cell = of_class(lab, "neutrophil")
    with open_page(browser, lab, "Second", refused="/label/set") as page:
        ready(page, cell)
        list(run(lab, "label.set", cell=cell, label="monocyte", who="First"))
        page.keyboard.press("l")
        expect(page.locator("#said .failed")).to_contain_text("'monocyte' by First by now")
        expect(page.locator("#label")).to_have_text("monocyte")
        page.keyboard.press("l")  # now that it was looked at again
        expect(page.locator("#label")).to_have_text("lymphocyte")
        expect(page.locator("#said")).to_contain_text("it was monocyte")
        page.keyboard.press("u")
        expect(page.locator("#label")).to_have_text("monocyte")
        list(run(lab, "label.undo", cell=cell, who="First"))
        # the same where a slide is reviewed
        (slide,) = [row["slide"] for row in run(lab, "slide.list") if "slide" in row]
        page.goto(f"/slide/{slide}")
        tile = page.locator(f'[data-cell="{cell}"]')
        expect(tile).to_have_attribute("data-label", "neutrophil")
        list(run(lab, "label.set", cell=cell, label="monocyte", who="First"))
        page.mouse.move(0, 0)
        tile.hover()
        page.keyboard.press("l")
        expect(page.locator("#said .failed")).to_contain_text("by First by now")
        expect(tile).to_have_attribute("data-label", "monocyte")
        list(run(lab, "label.undo", cell=cell, who="First"))


def test_all_nine_are_zoomed_and_moved_together_and_shown_otherwise(lab: Lab, browser: Chromium) -> None:
    with open_page(browser, lab, "Bo") as page:
        ready(page, of_class(lab, "neutrophil"))

        def transforms() -> set[str]:
            return set(
                page.evaluate("[...document.querySelectorAll('.nine img')].map(i => getComputedStyle(i).transform)")
            )

        still = transforms()
        page.keyboard.press("+")
        page.keyboard.press("+")
        larger = transforms()
        assert len(still) == len(larger) == 1 and still != larger
        box = page.locator("#query .frame").bounding_box()
        assert box is not None
        page.mouse.move(box["x"] + 60, box["y"] + 60)
        page.mouse.down()
        page.mouse.move(box["x"] + 30, box["y"] + 40, steps=4)
        page.mouse.up()
        moved = transforms()
        assert len(moved) == 1 and moved != larger
        # zoomed, the arrows go from one to the next as ever, and leave the zoom as it is
        page.locator("#query").focus()
        around = page.evaluate("[...document.querySelectorAll('.nine .tile')].map(t => t.dataset.reference ?? 'query')")
        for key, place in (("ArrowRight", 5), ("ArrowDown", 8), ("ArrowLeft", 7), ("ArrowLeft", 6), ("ArrowUp", 3)):
            page.keyboard.press(key)
            now = "document.activeElement.closest('.tile').dataset.reference ?? 'query'"
            assert page.evaluate(now) == around[place], key
            assert transforms() == moved
        page.keyboard.press("Z")
        assert transforms() == still
        page.keyboard.press("V")
        page.keyboard.press("V")
        expect(page.locator(".nine img[src$='=nucleus']")).to_have_count(9)
        shown = (
            "Promise.all([...document.querySelectorAll('.nine img')].map(i => i.decode().then(() => i.naturalWidth)))"
        )
        assert page.evaluate(shown) == [256] * 9
        # everything fits the window
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        last = page.locator(".nine .tile").last.bounding_box()
        assert last is not None and last["y"] + last["height"] <= 768


@pytest.mark.parametrize("how", ["drop", "paste"])
def test_a_picture_that_is_dropped_or_pasted_on_any_page_is_asked_about(
    lab: Lab, browser: Chromium, real_cells: Path, how: str
) -> None:
    picture = sorted((real_cells / "pbc" / "eosinophil").glob("*.jpg"))[30].read_bytes()
    with open_page(browser, lab, f"By {how}", role="view") as page:
        page.set_default_timeout(120_000)
        expect.set_options(timeout=120_000)
        page.goto("/ask")
        page.evaluate(
            """([how, data]) => {
                const carried = new DataTransfer();
                const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
                carried.items.add(new File([bytes], "cell.jpg", { type: "image/jpeg" }));
                const given = { bubbles: true, cancelable: true };
                document.body.dispatchEvent(how === "drop"
                    ? new DragEvent("drop", { ...given, dataTransfer: carried })
                    : new ClipboardEvent("paste", { ...given, clipboardData: carried }));
            }""",
            [how, base64.b64encode(picture).decode()],
        )
        expect(page.locator("[data-reference]")).to_have_count(8)
        expect(page.locator(".marks")).to_contain_text("Not stored")
        assert page.evaluate("document.querySelector('#query img').naturalWidth") == 256
        page.keyboard.press("V")
        assert page.evaluate("document.querySelector('#query img').src.startsWith('data:image/jpeg')")
    assert len(ledger(lab)) == 15
