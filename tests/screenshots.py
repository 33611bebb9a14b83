"""Screenshots of every page, to be looked at: `python -m tests.screenshots OUT [--cells DIR | --drawn] [--lab LAB]`.

Each page is taken at three sizes, light and dark, as `OUT/<page>-<width>-<light|dark>.png`. Without --lab they are of a
lab that is made for it: real cells from ../shared/data/pbc (or DIR, with a folder for each class), or drawn ones with
--drawn; on three slides, some reviewed, with a map, a picture that may repeat another, one that was rejected, and
readings. It needs Chromium.
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import re
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image
from playwright.sync_api import Page

from labref.bundles.bundle import Bundle, install, starter_bundle
from labref.demo.cells import LABELS, OPTICS, draw_cell, encode_jpeg, make_slides
from labref.lab import Lab
from labref.web import pages
from labref.web.desk import Desk, run
from tests.browser import chromium, open_page
from tests.labs import make_lab, once, running_agent

__all__ = ["addresses", "fill", "settled", "shown_lab"]

SIZES: Final = ((1366, 768), (1920, 1080), (3840, 2160))
CELLS: Final = Path(__file__).parents[2] / "shared" / "data" / "pbc"
ABSENT: Final = "absent"  # stands in an address for what the lab has none of

NOT_SEEN: Final = (  # asked for by pages, not looked at
    r"/classes\.css", r"/live/new", r"/map/tiles/.*", r"/map/picture/.*", r"/map/at/.*", r"/map/node", r".*/picture.*", r".*\.json", r".*\.csv", r"/report/file",
)  # fmt: skip


def drawn(folder: Path, each: int) -> None:
    """Class folders of drawn cells, `each` of a class, of one microscope."""
    slides = [slide for slide in make_slides(12, seed=3) if slide.optics == make_slides(12, seed=3)[0].optics]
    for at, label in enumerate(LABELS):
        (folder / label).mkdir(parents=True)
        for n in range(each):
            slide = slides[n % len(slides)]
            cell = draw_cell(label, OPTICS[slide.optics], slide, np.random.default_rng([at, n]))
            (folder / label / f"{n:03d}.jpg").write_bytes(encode_jpeg(cell))


def shown_lab(folder: Path, bundle: Bundle, cells: Path, *, each: int = 13, rows: int = 8, columns: int = 12) -> Lab:
    """A lab with something on every page. cells : a folder of images for each class, of which `each` are taken."""
    export = folder / "Export"
    for at, of_class in enumerate(sorted(one for one in cells.iterdir() if one.is_dir())):
        for n, image in enumerate(sorted(of_class.glob("*.jpg"))[:each]):
            place = export / f"26-{1174 + n % 3}" / of_class.name
            place.mkdir(parents=True, exist_ok=True)
            shutil.copy(image, place / f"{at}{n:02d}.jpg")
            if n == 0 and at % 3 == 0:
                with Image.open(image) as opened:
                    again = opened.rotate(2.0, Image.Resampling.BICUBIC, translate=(6, -9), fillcolor=(225, 205, 200))
                    again.save(place / f"{at}99.jpg", quality=85)
    (export / "26-1174" / "report.jpg").write_text("not a picture\n")
    lab = make_lab(folder / "lab", export, bundle)
    once(lab)
    run(lab, "map.train", rows=rows, columns=columns)
    fill(lab)
    return lab


def fill(lab: Lab) -> None:
    """Make what repeats a cell in a lab a possible duplicate; give it an approved slide, a reading of each kind, and
    a report."""
    with lab.open_store() as store, store._transaction() as connection:
        connection.execute("UPDATE resemblance SET verdict = 'possible_duplicate' WHERE verdict = 'duplicate'")
    with Desk.open(lab) as desk:

        def ask(name: str, **parameters: Any) -> list[dict[str, Any]]:
            return [row for row in desk.run(name, **parameters) if set(row) != {"progress"}]

        for pair in ask("duplicates.list", verdict="duplicate"):
            if pair["kind"] == "pair":
                ask("duplicates.confirm", cell=pair["cell_id"])
                ask("duplicates.undo", cell=pair["cell_id"])
        ask("report.make", sample=40)
        for kind, title in (("classes", "Hard cells, spring"), ("triplets", "Which is more alike")):
            ask("reading.start", title=title, kind=kind, n=16, sources=["reviewed", "analyser"], who="A. Lind")
        slides = [row["slide"] for row in ask("slide.list") if "slide" in row]
        ask("slide.approve", slide=slides[-1], who="A. Lind")


def addresses(lab: Lab) -> dict[str, str]:
    """An address of every page that people look at, by a short name, but for pages of what the lab has none of (slides,
    readings). Fails for a page of which it knows no address."""
    slides = [row["slide"] for row in run(lab, "slide.list") if "slide" in row]
    shown = run(lab, "slide.show", slide=slides[0]) if slides else run(lab, "live.cells")
    cell = next(row["cell_id"] for row in shown if "cell_id" in row)
    readings = len([row for row in run(lab, "reading.list") if "reading" in row])
    ways = {"cell_id": cell, "side:int": "10", "key": slides[0] if slides else ABSENT}
    ways["number:int"] = "1" if readings else ABSENT
    ways |= {"row:int": "2", "column:int": "3", "last_row:int": "3", "last_column:int": "5"}
    for module in pkgutil.iter_modules(pages.__path__):
        importlib.import_module(f"{pages.__name__}.{module.name}")
    found: dict[str, str] = {}
    for one in pages._PAGES:
        if "GET" not in one.methods or any(re.fullmatch(pattern, one.path) for pattern in NOT_SEEN):
            continue
        address = one.path
        for part, value in ways.items():
            address = address.replace(f"{{{part}}}", value)
        assert "{" not in address, f"which one of {one.path} is shown?"
        if ABSENT in address or (one.path == "/slides/beside" and len(slides) < 2):
            continue
        if one.path == "/slides/beside":
            address += f"?slide={slides[0]}&slide={slides[1]}"
        if one.path == "/map":
            found["map-classes"], address = address, f"{address}?cell={cell}"
        if one.path == "/reading/{number:int}" and readings > 1:
            found["reading-triplets"] = "/reading/2"
        name = "-".join(part for part in one.path.split("/") if part and "{" not in part) or "live"
        found[f"{name}-one" if name in found else name] = address
    assert len(found) > 10, found
    return found


def settled(page: Page) -> None:
    """Wait until a page has its pictures, and what its scripts add."""
    page.wait_for_load_state("load")
    page.evaluate(
        "document.fonts.ready.then(() => new Promise((done) => requestAnimationFrame(() => setTimeout(done, 500))))"
    )
    page.wait_for_function("[...document.images].every((one) => one.complete || one.loading === 'lazy')")


def shots(lab: Lab, out: Path, wanted: str = "") -> Iterator[Path]:
    """Take the screenshots of a lab whose agent runs. wanted : a regular expression that names pages, all if empty."""
    out.mkdir(parents=True, exist_ok=True)
    asked = out / "asked.jpg"
    slide = make_slides(1)[0]
    asked.write_bytes(encode_jpeg(draw_cell("monocyte", OPTICS[slide.optics], slide, np.random.default_rng(1))))
    with chromium() as browser:
        for width, height in SIZES:
            for dark in (False, True):
                who = f"Screen {secrets.token_hex(2)}"  # a lab that is there has people
                with open_page(browser, lab, who, "admin", width=width, height=height, dark=dark) as page:
                    page.set_default_timeout(120_000)
                    for name, address in addresses(lab).items():
                        if not re.search(wanted, name):
                            continue
                        page.goto(address)
                        settled(page)
                        yield _taken(page, out, name, width, dark)
                        if name == "ask":
                            page.locator("main input[type=file]").set_input_files(asked)
                            page.locator("main form button").click()
                            page.wait_for_load_state("load")
                            settled(page)
                            yield _taken(page, out, "ask-answer", width, dark)


def _taken(page: Page, out: Path, name: str, width: int, dark: bool) -> Path:
    path = out / f"{name}-{width}-{'dark' if dark else 'light'}.png"
    page.screenshot(path=path)
    return path


def main() -> int:
    """Take them, and say which file has which."""
    said = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    said.add_argument("out", type=Path, help="where the pictures go")
    said.add_argument("--cells", type=Path, default=CELLS, help="a folder with a folder of images for each class")
    said.add_argument("--drawn", action="store_true", help="drawn cells, that may be shown to anybody")
    said.add_argument("--each", type=int, default=13, help="cells of each class")
    said.add_argument("--lab", type=Path, help="a lab that is there, whose agent runs; it gets people of its own")
    said.add_argument("--pages", default="", help="only pages whose name fits this regular expression")
    asked = said.parse_args()
    with ExitStack() as stack:
        if asked.lab is not None:
            lab = Lab.open(asked.lab)
        else:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            if asked.drawn:
                drawn(folder / "drawn", asked.each)
                asked.cells = folder / "drawn"
            lab = shown_lab(folder, install(starter_bundle(), folder / "bundles"), asked.cells, each=asked.each)
            stack.enter_context(running_agent(lab))
        for path in shots(lab, asked.out, asked.pages):
            print(path, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
