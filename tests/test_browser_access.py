"""Every page is usable by everybody: axe-core finds no serious fault on any, light or dark, in Chromium."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page

from labref.bundles.bundle import Bundle
from labref.cells.hashes import digest
from labref.demo.cells import OPTICS, draw_cell, encode_jpeg, make_slides
from labref.lab import Lab
from labref.store import cell_id_of
from tests.browser import chromium, open_page
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


def serious(page: Page) -> list[str]:
    """The faults of a page that keep somebody from using it: rule, what it is, and where."""
    found = Axe().run(
        page, options={"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}
    )
    return [
        f"{fault['id']} ({fault['help']}): {node['html'][:160]} {node.get('failureSummary', '')[:300]}"
        for fault in found.response["violations"]
        if fault["impact"] in ("serious", "critical")
        for node in fault["nodes"][:4]
    ]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_no_page_has_a_serious_fault(lab: Lab, dark: bool) -> None:
    faults = {}
    with (
        chromium() as browser,
        open_page(browser, lab, "Dark" if dark else "Light", "admin", dark=dark) as page,
    ):
        page.set_default_timeout(120_000)
        for name, address in addresses(lab).items():
            answer = page.goto(address)
            assert answer is not None and answer.ok, (address, answer and answer.status)
            settled(page)
            if found := serious(page):
                faults[name] = found
        page.keyboard.press("?")
        if found := serious(page):
            faults["keys"] = found
        # the check sees what is wrong
        page.evaluate(
            "document.querySelector('#keys h2').style.background = '#777'; document.querySelector('#keys h2').style.color = '#888'"
        )
        assert "color-contrast" in "".join(serious(page))
    assert not faults, "\n".join(f"{name}: {line}" for name, lines in faults.items() for line in lines)
