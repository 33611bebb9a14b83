"""The answer says where in its picture the cell was found: in numbers, in words and in the picture that is drawn of
it."""

from __future__ import annotations

import http.client
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner

from labref.bundles.bundle import Bundle
from labref.cells.image import decode, measure_background, prepare_pixels
from labref.cli import app
from labref.lab import Lab
from labref.web.client import read_agent_record
from tests.labs import make_lab, once, running_agent

U8 = NDArray[np.uint8]
FIRST_TILE, TILE, STEP_DOWN, STEP_RIGHT = (116, 34), 288, 418, 310  # of a grid without bands, pixels
MIDDLE_TILE = (FIRST_TILE[0] + STEP_DOWN, FIRST_TILE[1] + STEP_RIGHT)


@pytest.fixture(autouse=True)
def _no_lab_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LABREF_LAB", raising=False)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, real_cells: Path, starter: Bundle) -> Lab:
    """A lab that has taken in four real cells of each of four classes."""
    folder = tmp_path_factory.mktemp("centring")
    for label in ("basophil", "eosinophil", "lymphocyte", "monocyte"):
        (folder / "export" / label).mkdir(parents=True)
        for path in cells(real_cells, label)[1:5]:
            shutil.copy(path, folder / "export" / label / path.name)
    made = make_lab(folder / "lab", folder / "export", starter, analyser="DM96")
    once(made)
    return made


def cells(real_cells: Path, label: str) -> list[Path]:
    return sorted((real_cells / "pbc" / label).glob("*.jpg"))


def cell(real_cells: Path, label: str, number: int = 0) -> U8:
    """One real cell that is not in the lab; it lies in the middle."""
    return decode(cells(real_cells, label)[number].read_bytes())


def background(pixels: U8) -> U8:
    return np.rint(measure_background(pixels[::4, ::4])).astype(np.uint8)


def padded(pixels: U8, *, top: int = 0, right: int = 0, bottom: int = 0, left: int = 0) -> U8:
    """A picture with strips of its background beside it, so that its cell is off the middle."""
    height, width = pixels.shape[:2]
    larger = np.empty((top + height + bottom, left + width + right, 3), np.uint8)
    larger[:] = background(pixels)
    larger[top : top + height, left : left + width] = pixels
    return larger


EMPTY = np.full((360, 363, 3), (232, 222, 205), np.uint8)
"""Two pale red cells in the corners, and none in the middle; a picture that holds nothing is refused."""
for _row, _column in ((30, 30), (330, 335)):
    EMPTY[np.hypot(np.arange(360)[:, None] - _row, np.arange(363) - _column) < 28] = (192, 182, 165)


def field(placed: list[tuple[U8, int, int]]) -> U8:
    """A field of 640×480 pixels: pieces of 200×200 about the middle of each picture, laid at (row, column)."""
    made = np.empty((480, 640, 3), np.uint8)
    made[:] = background(placed[0][0])
    for pixels, row, column in placed:
        y, x = pixels.shape[0] // 2 - 100, pixels.shape[1] // 2 - 100
        top, left = max(row - 100, 0), max(column - 100, 0)
        piece = pixels[y + top - (row - 100) : y + 200, x + left - (column - 100) : x + 200]
        space = made[top : top + piece.shape[0], left : left + piece.shape[1]]
        space[:] = piece[: space.shape[0], : space.shape[1]]
    return made


def png(pixels: U8) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def labref(*arguments: str | Path) -> str:
    done = CliRunner().invoke(app, [str(a) for a in arguments], prog_name="labref")
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout


def ask(lab: Lab, image: Path) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(labref("query", image, "--json", "--lab", lab.folder))
    return answer


def asked(lab: Lab, folder: Path, data: bytes) -> tuple[dict[str, Any], str, U8]:
    """The answer's `cell`, the answer for people, and the picture of it."""
    image, out = folder / "asked.png", folder / "grid.png"
    image.write_bytes(data)
    text = labref("query", image, "--lab", lab.folder, "--grid", out)
    return ask(lab, image)["cell"], text, np.asarray(Image.open(out).convert("RGB"))


def ask_place(lab: Lab, folder: Path, pixels: U8) -> dict[str, Any]:
    image = folder / "place.png"
    image.write_bytes(png(pixels))
    found: dict[str, Any] = ask(lab, image)["cell"]
    return found


def tile_of(pixels: U8, found: dict[str, Any]) -> tuple[U8, tuple[float, float], float]:
    """The tile that should show a picture, without a mark; (row, column) of the cell on it; its scale."""
    height, width = pixels.shape[:2]
    side = min(height, width, 384)
    upper = min(max(int(found["row"] - (side - 1) / 2), 0), height - side)
    left = min(max(int(found["column"] - (side - 1) / 2), 0), width - side)
    box = (left, upper, left + side, upper + side)
    tile = np.asarray(Image.fromarray(pixels).resize((TILE, TILE), Image.Resampling.LANCZOS, box=box))
    scale = TILE / side
    return tile, ((found["row"] + 0.5 - upper) * scale, (found["column"] + 0.5 - left) * scale), scale


def about(tile: U8, at: tuple[float, float], half: int = 30) -> U8:
    """A square of the tile about `at` (row, column)."""
    y, x = round(at[0]), round(at[1])
    return tile[y - half : y + half, x - half : x + half]


def query_tile(page: U8) -> U8:
    return page[MIDDLE_TILE[0] : MIDDLE_TILE[0] + TILE, MIDDLE_TILE[1] : MIDDLE_TILE[1] + TILE]


def test_of_a_cell_in_the_middle_nothing_is_said(lab: Lab, real_cells: Path, tmp_path: Path) -> None:
    pixels = cell(real_cells, "basophil")
    found, text, page = asked(lab, tmp_path, png(pixels))
    height, width = pixels.shape[:2]
    assert found.keys() == {"found", "row", "column", "moved", "others"}
    assert found["found"] is True
    assert found["moved"] <= 25
    away = np.hypot(found["row"] - (height - 1) / 2, found["column"] - (width - 1) / 2)
    assert found["moved"] == pytest.approx(away, abs=0.1)
    for key in ("row", "column", "moved"):
        assert found[key] == round(found[key], 1)
    assert "from the middle" not in text
    assert "WARNING: no cell" not in text
    assert (query_tile(page) == tile_of(pixels, found)[0]).all(), "the picture, with no mark"


@pytest.mark.parametrize(
    ("label", "strips"),
    [
        ("basophil", {"top": 70, "right": 60}),
        ("lymphocyte", {"left": 80}),
        ("monocyte", {"bottom": 60, "left": 60}),
        ("basophil", {"top": 80}),
    ],
)
def test_a_cell_off_the_middle_is_told_of_and_marked(
    label: str, strips: dict[str, int], lab: Lab, real_cells: Path, tmp_path: Path
) -> None:
    pixels = cell(real_cells, label)
    plain = ask_place(lab, tmp_path, pixels)
    larger = padded(pixels, **strips)
    found, text, page = asked(lab, tmp_path, png(larger))
    assert found["found"] is True
    # of a large or lobed nucleus far off the middle, the parts nearest to the middle may be taken for all of it
    slack = {"monocyte": 30}.get(label, 6)
    assert found["row"] == pytest.approx(plain["row"] + strips.get("top", 0), abs=slack)
    assert found["column"] == pytest.approx(plain["column"] + strips.get("left", 0), abs=slack)
    height, width = larger.shape[:2]
    away = np.hypot(found["row"] - (height - 1) / 2, found["column"] - (width - 1) / 2)
    assert found["moved"] == pytest.approx(away, abs=0.1)
    assert found["moved"] > 25
    (line,) = [line for line in text.splitlines() if "from the middle" in line]
    assert line == f"  the cell lies {found['moved']:.0f} px from the middle of the picture"

    bare, (y, x), scale = tile_of(larger, found)
    shown = query_tile(page)
    touched = np.argwhere((shown != bare).any(axis=2))
    (top, first), (bottom, last) = touched.min(axis=0), touched.max(axis=0)
    assert (top + bottom) / 2 == pytest.approx(y, abs=2)
    assert (first + last) / 2 == pytest.approx(x, abs=2)
    assert np.abs(touched - (y, x)).max(axis=1).min() > 45 * scale, "the nucleus is not hidden"
    mark = shown[touched[:, 0], touched[:, 1]].astype(int)
    assert (mark.sum(axis=1) == 765).any()
    assert (mark.sum(axis=1) < 120).any()


def test_an_empty_picture_warns_that_its_middle_was_compared(lab: Lab, tmp_path: Path) -> None:
    found, text, page = asked(lab, tmp_path, png(EMPTY))
    assert found == {"found": False, "row": 179.5, "column": 181.0, "moved": 0.0, "others": 0}
    assert (
        "  WARNING: no cell was found in the middle of the picture; the middle itself was compared" in text.splitlines()
    )
    warned = (page == (0xFF, 0xF1, 0xD6)).all(axis=2).any(axis=1).sum()
    assert warned >= 40, "a band"


def test_of_a_field_the_piece_around_its_cell_is_shown(lab: Lab, real_cells: Path, tmp_path: Path) -> None:
    middle = cell(real_cells, "basophil")
    plain = ask_place(lab, tmp_path, middle)
    others = [(cell(real_cells, "eosinophil"), 70, 90), (cell(real_cells, "lymphocyte"), 400, 60)]
    pixels = field([(middle, 262, 356), *others])
    found, text, page = asked(lab, tmp_path, png(pixels))
    assert found["found"] is True
    assert found["row"] == pytest.approx(262 + plain["row"] - middle.shape[0] // 2, abs=6)
    assert found["column"] == pytest.approx(356 + plain["column"] - middle.shape[1] // 2, abs=6)
    assert found["moved"] == pytest.approx(np.hypot(found["row"] - 239.5, found["column"] - 319.5), abs=0.1)
    assert found["others"] >= 1
    assert f"{found['moved']:.0f} px from the middle" in text
    bare, at, scale = tile_of(pixels, found)
    assert scale == 0.75
    assert (about(query_tile(page), at) == about(bare, at)).all(), (
        "384 pixels about the cell, and its nucleus not hidden"
    )
    assert about(bare, at).mean() < bare.mean() - 20, "the cell is there"


def test_the_place_is_that_of_the_picture_as_a_person_sees_it(lab: Lab, real_cells: Path, tmp_path: Path) -> None:
    larger = padded(cell(real_cells, "basophil"), top=90, right=70)
    upright, turned = tmp_path / "upright.jpg", tmp_path / "turned.jpg"
    Image.fromarray(larger).save(upright, quality=95)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    Image.fromarray(np.rot90(larger)).save(turned, quality=95, exif=exif)
    here, there = ask(lab, upright)["cell"], ask(lab, turned)["cell"]
    assert there["found"] == here["found"]
    for key in ("row", "column", "moved"):
        assert there[key] == pytest.approx(here[key], abs=2), key


def test_references_are_shown_about_their_cells(real_cells: Path, starter: Bundle, tmp_path: Path) -> None:
    export = tmp_path / "export" / "basophil"
    export.mkdir(parents=True)
    fields = []
    for number, which in ((1, 1), (2, 3)):  # the second and third basophil look alike where nothing else is shown
        placed = [(cell(real_cells, "basophil", which), 265, 360), (cell(real_cells, "monocyte", number), 70, 90)]
        fields.append(field(placed))
        (export / f"{number}.png").write_bytes(png(fields[-1]))
    lab = make_lab(tmp_path / "lab", tmp_path / "export", starter)
    once(lab)
    image, out = tmp_path / "asked.png", tmp_path / "grid.png"
    image.write_bytes(png(cell(real_cells, "basophil")))
    labref("query", image, "--lab", lab.folder, "--grid", out)
    places = {Path(r["path"]).name: i for i, r in enumerate(ask(lab, image)["references"])}
    assert places.keys() == {"1.png", "2.png"}
    page = np.asarray(Image.open(out).convert("RGB"))
    first_row = page[: page.shape[0] // 2]
    for number, shown in enumerate(fields, 1):
        row, column = prepare_pixels(shown).centre  # the answer rounds it
        bare, at, _ = tile_of(shown, {"row": row, "column": column})
        wanted = about(bare, at)
        assert holds(first_row, wanted), f"reference {number} shows its cell"


def holds(page: U8, wanted: U8) -> bool:
    """Whether a picture holds another, pixel for pixel."""
    height, width = wanted.shape[:2]
    corners = (page[: -height + 1, : -width + 1] == wanted[0, 0]).all(axis=2)
    return any((page[y : y + height, x : x + width] == wanted).all() for y, x in np.argwhere(corners))


def test_the_agent_tells_the_same(lab: Lab, real_cells: Path, tmp_path: Path) -> None:
    pictures = {
        "middle": cell(real_cells, "basophil"),
        "off": padded(cell(real_cells, "eosinophil"), top=80),
        "field": field([(cell(real_cells, "monocyte"), 262, 356), (cell(real_cells, "lymphocyte"), 70, 90)]),
        "empty": EMPTY,
    }
    images = [tmp_path / f"{name}.png" for name in pictures]
    for image, pixels in zip(images, pictures.values(), strict=True):
        image.write_bytes(png(pixels))
    alone = [ask(lab, image) for image in images]
    texts = [labref("query", image, "--lab", lab.folder) for image in images]
    assert [answer["cell"]["found"] for answer in alone] == [True, True, True, False]
    with running_agent(lab):
        record = read_agent_record(lab)
        assert record is not None
        for image, before, text in zip(images, alone, texts, strict=True):
            connection = http.client.HTTPConnection("127.0.0.1", record.port, timeout=60)
            headers = {"Authorization": f"Bearer {lab.token()}"}
            connection.request("POST", f"/api/v1/query?name={image.name}", image.read_bytes(), headers)
            response = connection.getresponse()
            raw = response.read().decode()
            connection.close()
            assert response.status == 200
            told = json.loads(raw)
            assert told["cell"] == before["cell"]
            assert list(told) == list(before)
            assert {**told, "timings_ms": 0, "image": 0} == {**before, "timings_ms": 0, "image": 0}
            assert re.search(r'"cell": ?\{"found"', raw)
            assert ask(lab, image)["cell"] == before["cell"]
            assert labref("query", image, "--lab", lab.folder) == text
