"""The page of a cell of a lab with a shared store, in Chromium: whose each reference is can be read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser as Chromium
from playwright.sync_api import FloatRect, Locator, expect

from labref.bundles.bundle import Bundle
from labref.lab import Lab
from labref.web.desk import run
from tests.browser import open_page
from tests.labs import ledger, once, running_agent
from tests.postgres import database, server
from tests.test_shared import lab_with_pictures

OTHER = "Emergency laboratory of ward 7 (St Göran's hospital in Stockholm)"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, starter: Bundle, drawn_cells: Path) -> Iterator[Lab]:
    """A lab of two cells by a DM96, with an agent; another lab, of a long name, has eight by a DC-1 in the store of
    both."""
    folder = tmp_path_factory.mktemp("labs")
    pictures = {"other": sorted(drawn_cells.glob("*/*_000.jpg")), "own": sorted(drawn_cells.glob("*/*_001.jpg"))[:2]}
    with server() as running:
        shared = database(running)
        made = []
        for name, analyser in (("other", "DC-1"), ("own", "DM96")):
            address, secret = shared.lab(OTHER if name == "other" else "Room 3")
            url = f"postgresql://{address.user}@{address.host}:{address.port}/{address.database}"
            made.append(lab_with_pictures(folder / name, starter, pictures[name], url, secret, analyser=analyser))
            once(made[-1])
        assert list(run(Lab.open(made[0].folder), "shared.publish"))[-1]["cells"] == len(pictures["other"])
        with running_agent(made[1]):
            yield made[1]


def box(of: Locator) -> FloatRect:
    found = of.bounding_box()
    assert found is not None
    return found


def test_the_lab_and_the_microscope_of_each_reference_can_be_read(lab: Lab, browser: Chromium) -> None:
    cell = next(str(row["cell_id"]) for row in ledger(lab).values())
    with open_page(browser, lab, "Åsa") as page:
        page.set_default_timeout(60_000)
        expect.set_options(timeout=60_000)
        page.goto(f"/cell/{cell}?labs=all")
        page.wait_for_load_state("networkidle")
        tile = page.locator(".tile.central").first
        mark, frame = tile.locator(".mark"), box(tile.locator(".frame"))
        expect(mark).to_contain_text("DC-1")
        for part in (mark, mark.locator("span").first):  # from the first letter on, within the picture
            at = box(part)
            assert frame["x"] <= at["x"] and at["x"] + at["width"] <= frame["x"] + frame["width"], (at, frame)
        assert mark.get_attribute("title") == f"{OTHER}, DC-1"
        tile.locator(".frame").hover()
        about, choices = tile.locator(".about"), page.locator(".choices")
        expect(about).to_contain_text(OTHER)
        expect(about).to_contain_text("DC-1")
        below = box(about)["y"] + box(about)["height"]
        assert below <= box(choices)["y"], "it lies over no button, in however many rows they are"
        assert about.evaluate("one => one.scrollHeight <= one.clientHeight"), "all of it is seen"
        page.goto(f"/cell/{cell}?labs=optics")
        said = page.locator(".others")
        expect(said).to_have_text("No other lab has cells of the same optics in the space of this bundle.")
        assert box(said)["y"] < 600, "seen without scrolling"
        page.goto("/condition")
        expect(page.locator("main")).to_contain_text("Shared store")
        expect(page.locator("main")).to_contain_text("nothing to tell")
