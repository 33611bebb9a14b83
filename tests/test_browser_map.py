"""The map in Chromium, as a person uses it."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser as Chromium
from playwright.sync_api import Page, Route, expect

from labref.bundles.bundle import Bundle
from labref.lab import Lab
from labref.operations.classes import ABBREVIATIONS
from labref.web.desk import run
from labref.web.pages import has_static
from labref.words import name_key
from tests.browser import open_page
from tests.labs import running_agent
from tests.maps import lab_with_map

needs_viewer = pytest.mark.skipif(
    not has_static("vendor/openseadragon.min.js"), reason="the viewer is not there: `make web` gets it"
)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, starter: Bundle) -> Iterator[Lab]:
    lab = lab_with_map(tmp_path_factory.mktemp("map"), starter)
    with running_agent(lab):
        yield lab


def opened(page: Page, address: str = "/map") -> None:
    page.set_default_timeout(120_000)
    expect.set_options(timeout=120_000)
    page.goto(address)
    expect(page.locator("#map[data-open]")).to_be_visible()


@needs_viewer
def test_a_click_and_the_keyboard_show_the_cells_of_nodes_and_keys_relabel_them(lab: Lab, browser: Chromium) -> None:
    suspect = next(iter(run(lab, "map.suspects")))
    row, column = suspect["row"], suspect["column"]
    with open_page(browser, lab, "Map", width=1366, height=768) as page:
        opened(page, f"/map?cell={suspect['cell_id']}")
        cells = page.locator("#map-cells")
        # the page shows the cell's node in the middle: a click there opens it
        expect(page.locator(".spot")).to_be_visible()
        mark = page.locator(".spot").bounding_box()
        assert mark is not None
        page.mouse.click(mark["x"] + mark["width"] / 2, mark["y"] + mark["height"] / 2)
        expect(cells).to_contain_text(f"Node {row}, {column}")
        tile = cells.locator(f'[data-cell="{suspect["cell_id"]}"]')
        expect(tile.locator("img")).to_have_js_property("naturalWidth", 160)
        # by key, and back
        expect(page.locator("#keys-list")).not_to_be_visible()
        tile.locator("img").hover()
        page.keyboard.press("l" if suspect["label"] != "lymphocyte" else "m")
        new = "lymphocyte" if suspect["label"] != "lymphocyte" else "monocyte"
        expect(tile).to_have_attribute("data-label", new)
        page.keyboard.press("u")
        expect(tile).to_have_attribute("data-label", suspect["label"])
        # by the keyboard alone: to a neighbour, and to its cells
        page.locator("#map").focus()
        step, to = ("ArrowDown", row + 1) if row < 5 else ("ArrowUp", row - 1)
        page.keyboard.press(step)
        expect(page.locator("#map-says")).to_contain_text(f"Node {to}, {column}")
        page.keyboard.press("Enter")
        expect(cells).to_contain_text(f"Node {to}, {column}")
        # a region from there
        page.keyboard.press("R")
        for key in ("ArrowLeft", "ArrowLeft", "ArrowRight", "ArrowRight", "ArrowRight")[: 2 if column >= 2 else 5]:
            page.keyboard.press(key)
        page.keyboard.press("Enter")
        expect(cells).to_contain_text(re.compile(r"Nodes \d, \d to \d, \d"))


@needs_viewer
def test_the_map_zooms_pans_and_changes_what_it_draws_without_loading_the_page_anew(
    lab: Lab, browser: Chromium
) -> None:
    with open_page(browser, lab, "Zoom") as page:
        asked: list[str] = []
        page.on("request", lambda one: asked.append(one.url) if "/map/tiles/" in one.url else None)
        opened(page)
        page.evaluate("window.kept = true")
        page.locator("#map").focus()
        page.keyboard.press("ArrowRight")  # the node in the middle
        for _ in range(3):
            page.keyboard.press("+")
        page.wait_for_timeout(500)
        expect(page.locator(".here")).to_be_visible()
        wide = page.locator(".here").bounding_box()
        page.keyboard.press("Home")
        page.wait_for_timeout(500)
        narrow = page.locator(".here").bounding_box()
        assert wide is not None and narrow is not None and wide["width"] > 2 * narrow["width"]
        # Shift and the mouse select a region
        box = page.locator("#map").bounding_box()
        assert box is not None
        middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        page.keyboard.down("Shift")
        page.mouse.move(*middle)
        page.mouse.down()
        page.mouse.move(middle[0] + 120, middle[1] + 80, steps=4)
        page.mouse.up()
        page.keyboard.up("Shift")
        expect(page.locator("#map-cells")).to_contain_text("Nodes")
        # what is drawn
        page.keyboard.press("D")
        expect(page).to_have_url(re.compile("doubtful=1"))
        page.get_by_label("monocyte").first.check()
        expect(page.locator("#map-count")).to_contain_text("3 of 24 cells")
        page.wait_for_timeout(500)
        assert any("~c" in url and "~m" in url for url in asked)
        # D opens the suspect labels; they are asked for then, and a key relabels one of them
        (suspect, *_) = run(lab, "map.suspects")
        tile = page.locator(f'#map-suspects [data-cell="{suspect["cell_id"]}"]')
        expect(tile.locator("img")).to_have_js_property("naturalWidth", 160)
        # a cell that slides under a mouse at rest is not pointed at, or its label would be changed
        slides = "tile => tile.dispatchEvent(new PointerEvent('pointermove', {bubbles: true, screenX: 7, screenY: 7}))"
        last = page.locator("#map-suspects .tile").last
        last.evaluate(slides)
        expect(last).to_have_class("tile now")
        tile.locator("a").first.focus()
        last.evaluate(slides)
        expect(tile).to_have_class("tile now")
        with page.expect_response(re.compile("/map/suspects.*part=1")):  # the list is another after that
            page.keyboard.press("l" if suspect["label"] != "lymphocyte" else "m")
        with page.expect_response(re.compile("/map/suspects.*part=1")):
            page.keyboard.press("u")
        expect(tile).to_have_attribute("data-label", suspect["label"])
        # of two answers that pass each other the one that was asked for last stands; where none comes it is said
        waiting: list[Route] = []
        page.route("**/map/suspects*", lambda route: route.continue_() if waiting else waiting.append(route))
        for _ in range(2):
            page.evaluate("document.getElementById('map-suspects').dispatchEvent(new Event('toggle'))")
        expect(page.locator("#map-suspects > [aria-busy]")).to_have_count(0)
        with page.expect_response(re.compile("/map/suspects.*part=1")):
            waiting[0].fulfill(body='<ul class="suspects"><li id="of-before"></li></ul>', content_type="text/html")
        page.wait_for_timeout(300)
        expect(page.locator("#of-before")).to_have_count(0)
        for route, happens in (
            ("/map/suspects", "document.getElementById('map-suspects').dispatchEvent(new Event('toggle'))"),
            (r"/map\?", "document.getElementById('map-filter').requestSubmit()"),
            ("/map/node/", "document.getElementById('map').focus()"),
        ):
            page.route(re.compile(route), lambda route: route.abort("aborted"))
            page.evaluate("document.getElementById('said').replaceChildren()")
            page.evaluate(happens)
            if "node" in route:
                page.keyboard.press("Enter")
            expect(page.locator("#said .failed")).to_have_text("The agent does not answer. Try again in a minute.")
        expect(page.locator("#map-suspects > [aria-busy]")).to_have_count(0)
        # scripts write numbers and read classes as the lab's own part does
        shared = "async () => { const { fullName, number } = await import("
        shared += "document.querySelector('script[src*=\"/map.js\"]').src.replace('map.js', 'labref.js')); return "
        names = ("IG", " -IG", "PLTs", "plt s", "constructor", "PMO")
        assert page.evaluate(f"{shared} {[*names]}.map(fullName) }}") == [
            ABBREVIATIONS.get(name_key(name), "") for name in names
        ]
        written = page.evaluate(
            f"{shared} [number(-0), number(-0.004, 2), number(-0.4, 0), number(-1.5), number(0)] }}"
        )
        assert written == ["0", "0.00", "0", "-1.5", "0"]
        assert page.evaluate("window.kept") is True


def test_without_the_viewer_the_map_is_a_picture_and_a_click_leads_to_a_node(lab: Lab, browser: Chromium) -> None:
    with open_page(browser, lab, "Plain") as page:
        page.set_default_timeout(120_000)
        page.route("**/vendor/**", lambda route: route.fulfill(body="", content_type="text/javascript"))
        page.goto("/map")
        picture = page.locator("#map-picture img")
        expect(picture).to_be_visible()
        before = picture.get_attribute("src")
        page.keyboard.press("D")  # what is drawn changes on the picture too
        expect(page.get_by_label("Suspect labels in red")).to_be_checked()
        expect(picture).not_to_have_attribute("src", str(before))
        side = int(picture.get_attribute("width") or 0) // 9
        picture.click(position={"x": 4 * side + 3, "y": 2 * side + 3})
        page.wait_for_url(re.compile(r"/map/node/2/4\?doubtful=1$"))
        expect(page.locator("#map-cells")).to_contain_text("Node 2, 4")
