"""Every page is usable by everybody: axe-core finds no serious fault on any, light or dark, in Chromium."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser as Chromium
from playwright.sync_api import Page

from labref.bundles.bundle import Bundle
from labref.cells.hashes import digest
from labref.demo.cells import OPTICS, draw_cell, encode_jpeg, make_slides
from labref.lab import Lab
from labref.store import cell_id_of
from tests.browser import open_page
from tests.labs import running_agent
from tests.maps import lab_with_map
from tests.screenshots import addresses, fill, settled
from tests.stores import JUDGED, mark, new_cell


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, starter: Bundle) -> Iterator[Lab]:
    """Three drawn cells of each class on a map, and two that may be one."""
    lab = lab_with_map(tmp_path_factory.mktemp("access"), starter)
    slide = make_slides(1)[0]
    pictures = [
        encode_jpeg(draw_cell("monocyte", OPTICS[slide.optics], slide, np.random.default_rng(n))) for n in (1, 2)
    ]
    two = [
        new_cell(
            f"twin {n}",
            digest=digest(picture),
            cell_id=cell_id_of(digest(picture)),
            label="monocyte",
            fingerprints=mark(3 * n),
            latent=np.ones(starter.manifest.latent_size, np.float32),
            probabilities=np.full(len(starter.manifest.labels), 1 / len(starter.manifest.labels), np.float32),
        )
        for n, picture in enumerate(pictures)
    ]
    with lab.open_store() as store:
        for picture, cell in zip(pictures, two, strict=True):
            lab.store_image(picture, cell.digest)
            store.record([cell], bundle=starter.digest, **JUDGED)
    fill(lab)
    with running_agent(lab):
        yield lab


OF_COLOUR = ["color-contrast", "link-in-text-block"]
"""The rules whose answer depends on the colours of a page; for all others its light and its dark one are the same."""


def serious(page: Page, rules: list[str] | None = None) -> list[str]:
    """The faults of a page that keep somebody from using it: rule, what it is, and where. rules : all, if None."""
    every = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
    found = Axe().run(
        page,
        options={
            "runOnly": every if rules is None else {"type": "rule", "values": rules},
            "resultTypes": ["violations"],  # of what is well one example is enough, in half the time
        },
    )
    return [
        f"{fault['id']} ({fault['help']}): {node['html'][:160]} {node.get('failureSummary', '')[:300]}"
        for fault in found.response["violations"]
        if fault["impact"] in ("serious", "critical")
        for node in fault["nodes"][:4]
    ]


def test_no_page_has_a_serious_fault_light_or_dark(lab: Lab, browser: Chromium) -> None:
    faults = {}

    def look(page: Page, name: str) -> None:
        for scheme, rules in (("light", None), ("dark", OF_COLOUR)):
            page.emulate_media(color_scheme=scheme)
            if found := serious(page, rules):
                faults[f"{name}, {scheme}"] = found

    with open_page(browser, lab, "Looker", "admin") as page:
        page.set_default_timeout(120_000)
        grounds = set()
        for name, address in addresses(lab).items():
            page.emulate_media(color_scheme="light")
            answer = page.goto(address)
            assert answer is not None and answer.ok, (address, answer and answer.status)
            settled(page)
            look(page, name)
            grounds.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        page.emulate_media(color_scheme="light")
        grounds.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert len(grounds) == 2, "the dark page was looked at dark"
        page.keyboard.press("?")
        look(page, "keys")
        # the check sees what is wrong, in either scheme
        page.evaluate(
            "document.querySelector('#keys h2').style.background = '#777'; document.querySelector('#keys h2').style.color = '#888'"
        )
        for scheme, rules in (("light", None), ("dark", OF_COLOUR)):
            page.emulate_media(color_scheme=scheme)
            assert "color-contrast" in "".join(serious(page, rules))
    assert not faults, "\n".join(f"{name}: {line}" for name, lines in faults.items() for line in lines)
