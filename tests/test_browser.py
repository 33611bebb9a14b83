"""The pages in Chromium, as a person uses them, on real cells."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser as Chromium
from playwright.sync_api import expect

from labref.bundles.bundle import Bundle
from labref.lab import Lab
from tests.browser import open_page
from tests.labs import make_lab, once, running_agent


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, real_cells: Path, starter: Bundle) -> Iterator[Lab]:
    """Six real cells of each class, on two slides."""
    export = tmp_path_factory.mktemp("export")
    for folder in sorted((real_cells / "pbc").iterdir()):
        for number, cell in enumerate(sorted(folder.glob("*.jpg"))[:6]) if folder.is_dir() else ():
            place = export / f"slide {number % 2 + 1}" / folder.name
            place.mkdir(parents=True, exist_ok=True)
            shutil.copy(cell, place)
    lab = make_lab(tmp_path_factory.mktemp("lab") / "lab", export, starter)
    once(lab)
    with running_agent(lab):
        yield lab


def test_a_link_signs_in_and_keys_lead_everywhere(lab: Lab, browser: Chromium) -> None:
    with open_page(browser, lab, "Keys") as page:
        expect(page.locator(".who")).to_have_text("Keys")
        page.keyboard.press("?")
        expect(page.locator("#keys")).to_be_visible()
        expect(page.locator("#keys-list")).to_contain_text("Go to Slides")
        page.keyboard.press("Escape")
        page.keyboard.press("g")
        page.keyboard.press("l")
        expect(page).to_have_url("/")
