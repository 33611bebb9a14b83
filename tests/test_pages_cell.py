"""Pictures of cells for pages, the colours of their classes, and the page of one cell."""

from __future__ import annotations

import html
import io
import itertools
import json
import os
import re
import shutil
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from typer.testing import CliRunner

from labref.bundles.bundle import Bundle
from labref.cells.display import RENDERERS, THUMB_SIZE, nucleus_brightened
from labref.cells.image import decode
from labref.cli import app
from labref.lab import Lab
from labref.lab import pictures as lab_pictures
from labref.lab.pictures import VIEWS, Pictures, forget_thumbnail
from labref.pictures.colours import LISTED, Colour, colour_of
from labref.store import Store
from labref.web.desk import run
from tests.labs import ledger, make_lab, once, running_agent
from tests.pages import Browser, let_in
from tests.stores import BUNDLE, new_cell, new_store


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, drawn_cells: Path, starter: Bundle) -> Iterator[Lab]:
    """Drawn cells of the eight classes; three of them are also there as BMP, TIFF and PNG with transparency."""
    export = tmp_path_factory.mktemp("export")
    shutil.copytree(drawn_cells, export, dirs_exist_ok=True)
    drawn = sorted(drawn_cells.glob("monocyte/*.jpg"))
    with Image.open(drawn[0]) as opened:
        opened.rotate(90).save(export / "monocyte" / "turned.bmp")
    with Image.open(drawn[1]) as opened:
        opened.rotate(90).save(export / "monocyte" / "turned.tif")
    with Image.open(drawn[2]) as opened:
        clear = opened.rotate(90).convert("RGBA")
        clear.putalpha(200)
        clear.save(export / "monocyte" / "clear.png")
    lab = make_lab(tmp_path_factory.mktemp("lab") / "lab", export, starter)
    once(lab)
    with running_agent(lab):
        yield lab


@pytest.fixture(scope="module")
def cells(lab: Lab) -> dict[str, str]:
    """The cell of each file, by its path below the export folder."""
    return {path: row["cell_id"] for path, row in ledger(lab).items() if row["cell_id"]}


@pytest.fixture(scope="module")
def reviewer(lab: Lab) -> Browser:
    return let_in(lab, "Åsa Lind", "review")


def picture(data: bytes) -> Image.Image:
    with Image.open(io.BytesIO(data)) as opened:
        opened.load()
        return opened.convert("RGB")


def test_the_page_and_the_command_show_the_same_row_of_contrast(
    lab: Lab, cells: dict[str, str], reviewer: Browser, tmp_path: Path
) -> None:
    rows = {path: next(iter(run(lab, "cell.show", cell=cell_id))) for path, cell_id in cells.items()}
    path, shown = max(rows.items(), key=lambda row: len(row[1]["contrast"]))
    assert shown["contrast"], "four cells of a class leave room for others"
    assert {one["label"] for one in shown["contrast"]}.isdisjoint(one["label"] for one in shown["references"])
    page = reviewer.get(f"/cell/{cells[path]}").text
    for one in shown["contrast"]:
        assert f'href="/cell/{one["cell_id"]}' in page
    assert "Other classes to compare" in page, "one that the networks think possible can lie far off"
    file, out = str(lab.watched[0] / path), tmp_path / "grid.png"
    done = CliRunner().invoke(app, ["query", file, "--lab", str(lab.folder), "--grid", str(out)])
    assert done.exit_code == 0, done.output
    assert "other classes to compare" in done.stdout
    assert all(one["cell_id"] in done.stdout for one in shown["contrast"])
    with Image.open(out) as drawn:
        assert drawn.width == 976


# pictures


@pytest.mark.parametrize("view", VIEWS)
def test_each_view_of_each_format_is_a_picture_that_browsers_show(
    lab: Lab, cells: dict[str, str], reviewer: Browser, view: str
) -> None:
    jpeg = next(path for path in cells if path.endswith(".jpg"))
    for path in (jpeg, "monocyte/turned.bmp", "monocyte/turned.tif", "monocyte/clear.png"):
        got = reviewer.get(f"/cell/{cells[path]}/picture?view={view}")
        assert got.status == 200, (path, got.text)
        assert got.headers["content-type"] in ("image/jpeg", "image/png")
        assert got.headers["cache-control"].startswith("private")
        shown = picture(got.body)
        kept = (lab.watched[0] / path).read_bytes()
        whole = picture(kept).size
        assert shown.size == {"captured": whole, "thumb": (THUMB_SIZE, THUMB_SIZE)}.get(view, (256, 256))
        if view == "captured":
            assert (got.body == kept) == path.endswith(".jpg")
        again = reviewer.get(f"/cell/{cells[path]}/picture?view={view}", If_None_Match=f"W/{got.headers['etag']}")
        assert (again.status, again.body) == (304, b"")


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/cell/0000000000000000/picture", 404),
        ("/cell/..%2F..%2Ftoken/picture", 404),
        ("/cell/%00/picture?view=thumb", 404),
        ("/cell/ABCDEF0123456789/picture?view=thumb", 404),
        ("/cell/<script>/picture", 404),
        ("/cell/{cell}/picture?view=../token", 400),
        ("/cell/{cell}/picture?view=", 400),
    ],
)
def test_what_is_no_cell_or_no_view_has_no_picture(
    cells: dict[str, str], reviewer: Browser, path: str, status: int
) -> None:
    got = reviewer.get(path.replace("{cell}", next(iter(cells.values()))))
    assert got.status == status
    assert b"<script>" not in got.body


def test_a_stranger_sees_no_picture(lab: Lab, cells: dict[str, str]) -> None:
    stranger = Browser.of(lab)
    address = f"/cell/{next(iter(cells.values()))}/picture?view=thumb"
    assert stranger.get(address).status == 303
    assert stranger.get(address, Accept="image/*").status == 401
    assert stranger.get("/classes.css", Accept="text/css").status == 401


def test_a_thumbnail_is_kept_made_again_where_damaged_and_goes_with_its_cell(
    lab: Lab, cells: dict[str, str], reviewer: Browser
) -> None:
    cell = cells["monocyte/turned.bmp"]
    address = f"/cell/{cell}/picture?view=thumb"
    first = reviewer.get(address).body
    (kept,) = lab.thumbnails.glob(f"*/{cell}*")
    assert kept.read_bytes() == first
    if os.name != "nt":
        assert kept.stat().st_mode & 0o077 == 0
    kept.write_bytes(first[: len(first) // 2])
    assert reviewer.get(address).body == first == kept.read_bytes()
    digest = next(path.name for path in lab.images.glob(f"*/*/{cell}*"))
    forget_thumbnail(lab, digest)
    assert not kept.exists()


def test_only_so_many_thumbnails_are_kept_and_a_folder_that_cannot_be_written_costs_no_picture(
    lab: Lab, cells: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lab_pictures, "_MOST", 4)
    monkeypatch.setattr(lab_pictures, "_GO_AT_ONCE", 2)
    here = lab.thumbnails / "zz"
    for number in range(9):
        lab_pictures._keep(here / f"{number}.jpg", b"x")
        os.utime(here / f"{number}.jpg", (number, number))
    assert len(list(here.iterdir())) <= 4
    assert (here / "8.jpg").exists()
    shutil.rmtree(here)
    cell = next(iter(cells.values()))
    shown = Pictures(lab, lambda _: True)
    monkeypatch.setattr(lab_pictures, "_keep", lambda *_: (_ for _ in ()).throw(OSError("full")))
    monkeypatch.setattr(Lab, "thumbnails", lab.folder / "token")  # a file, no folder
    made = shown.of_cell(cell, "thumb")
    assert made is not None and picture(made).size == (THUMB_SIZE, THUMB_SIZE)
    assert shown.of_cell("f" * 16, "thumb") is None


def test_thumbnails_are_never_taken_in_as_cells(lab: Lab) -> None:
    assert lab.thumbnails in list(lab.own_folders())


def test_a_dark_nucleus_becomes_brighter_and_keeps_its_texture_and_all_else() -> None:
    crop = np.full((256, 256, 3), 240, np.uint8)
    rows, columns = np.indices((256, 256)) - 128
    away = np.hypot(rows, columns)
    crop[away < 90] = (200, 180, 215)  # cytoplasm
    crop[away < 60] = (70, 30, 110)
    crop[(away < 60) & (rows % 8 < 3)] = (95, 50, 135)  # chromatin
    bright = nucleus_brightened(crop)
    inside, outside = away < 50, away > 64
    assert (bright[outside] == crop[outside]).all()
    assert (bright[inside].mean(axis=0) > crop[inside].mean(axis=0) + 40).all()
    assert bright[inside][:, 0].std() > 0.8 * crop[inside][:, 0].std()
    # the hue of the stain stays: red between green and blue
    assert (bright[inside][:, 2] > bright[inside][:, 0]).all() and (bright[inside][:, 0] > bright[inside][:, 1]).all()
    # no bright rim where the nucleus ends
    assert bright[(away > 55) & (away < 62)].max() <= 215


# colours


def test_the_stylesheet_has_a_colour_for_every_class_in_light_and_in_dark(lab: Lab, reviewer: Browser) -> None:
    got = reviewer.get("/classes.css", Accept="text/css")
    assert (got.status, got.headers["content-type"].partition(";")[0]) == (200, "text/css")
    light, dark = got.text.split("@media (prefers-color-scheme: dark)")
    rows = list(run(lab, "classes.list"))
    assert len(rows) >= 8
    for row in rows:
        colour = colour_of(row["label"])
        assert f".{row['style']} {{ --class: {colour.light}; }}" in light
        assert f".{row['style']} {{ --class: {colour.dark}; }}" in dark
        assert row["label"] not in got.text
    assert reviewer.get("/classes.css", If_None_Match=got.headers["etag"]).status == 304
    assert sum(row["cells"] for row in rows) == len(set(ledger_cells(lab)))


def ledger_cells(lab: Lab) -> list[str]:
    return [row["cell_id"] for row in ledger(lab).values() if row["cell_id"]]


_SIGHT = {
    "normal": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
}


def linear(colour: str) -> np.ndarray:
    values = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def oklab(values: np.ndarray) -> np.ndarray:
    cones = np.array(
        [
            [0.4122214708, 0.5363325363, 0.0514459929],
            [0.2119034982, 0.6806995451, 0.1073969566],
            [0.0883024619, 0.2817188376, 0.6299787005],
        ]
    )
    axes = np.array(
        [
            [0.2104542553, 0.7936177850, -0.0040720468],
            [1.9779984951, -2.4285922050, 0.4505937099],
            [0.0259040371, 0.7827717662, -0.8086757660],
        ]
    )
    return axes @ np.cbrt(cones @ values)


@pytest.mark.parametrize("sight", _SIGHT)
@pytest.mark.parametrize("ground", Colour._fields)
def test_classes_are_told_apart_by_those_who_do_not_see_all_colours(sight: str, ground: str) -> None:
    def least(names: Sequence[str]) -> float:
        seen = [oklab(np.clip(_SIGHT[sight] @ linear(getattr(LISTED[name], ground)), 0, 1)) for name in names]
        return min(float(np.linalg.norm(one - other)) for one, other in itertools.combinations(seen, 2))

    names = list(LISTED)
    assert least(names[:8]) > 0.12
    assert least(names) > 0.05
    paper = {"light": "#f7f7f5", "dark": "#14161a"}[ground]
    for name in names:
        bright = [float(linear(c) @ [0.2126, 0.7152, 0.0722]) for c in (getattr(LISTED[name], ground), paper)]
        assert (max(bright) + 0.05) / (min(bright) + 0.05) >= 3.0, name


def test_a_class_has_its_colour_by_any_of_its_names() -> None:
    assert colour_of("Segmented_Neutrophils") == LISTED["segmented neutrophil"]
    assert colour_of("Blast, no lineage spec") == LISTED["blast"]
    assert colour_of("Arifact") == LISTED["artefact"]
    assert colour_of("Zelle Ü") == colour_of("zelle  ü")


# the cell among its references


def test_a_stored_cell_is_shown_with_the_answer_that_its_bytes_would_get(
    lab: Lab, cells: dict[str, str], reviewer: Browser
) -> None:
    for path in ("neutrophil/S03-001_000.jpg", "monocyte/turned.bmp"):
        (shown,) = run(lab, "cell.show", cell=cells[path])
        asked = query(reviewer, (lab.watched[0] / path).read_bytes())
        assert [one["cell_id"] for one in shown["references"]] == [one["cell_id"] for one in asked["references"]]
        for mine, its in zip(shown["references"], asked["references"], strict=True):
            assert mine["distance"] == pytest.approx(its["distance"], rel=1e-4, abs=1e-6)
            assert {name: mine[name] for name in its if name != "distance"} == {
                name: value for name, value in its.items() if name != "distance"
            }
        assert shown["predicted"]["label"] == asked["predicted"]["label"]
        assert shown["distribution"]["weights"] == pytest.approx(asked["distribution"]["weights"], rel=1e-3)
        assert shown["novelty"]["score"] == pytest.approx(asked["novelty"]["score"], rel=1e-3)
        assert (shown["optics"], shown["map"]) == (asked["optics"], asked["map"])
        assert asked["duplicate_of"] == shown["cell_id"]


def query(browser: Browser, data: bytes) -> dict[str, Any]:
    got = browser.ask("POST", "/api/v1/query?k=8", data, Content_Type="image/jpeg")
    assert got.status == 200, got.text
    found: dict[str, Any] = json.loads(got.body)
    return found


def test_the_page_shows_the_cell_amid_eight_references_and_what_is_known_of_each(
    lab: Lab, cells: dict[str, str], reviewer: Browser
) -> None:
    cell = cells["neutrophil/S03-001_000.jpg"]
    got = reviewer.get(f"/cell/{cell}")
    assert got.status == 200, got.text
    (shown,) = run(lab, "cell.show", cell=cell)
    named = re.findall(r'data-reference="([0-9a-f]{16})"', got.text)
    assert named == [one["cell_id"] for one in shown["references"]] and len(named) == 8
    for one in named:
        assert f'href="/cell/{one}' in got.text and f"/cell/{one}/picture?view=cell" in got.text
    assert f"/map/node/{shown['map']['row']}/{shown['map']['column']}" in got.text if shown["map"] else True
    assert 'data-label="monocyte"' in got.text and "<svg" in got.text
    assert "of the lab's own lie as far off" in html.unescape(got.text)
    assert "By map:" not in got.text and ">By map<" in got.text if shown["map"] else True
    assert (
        "view=nucleus" in reviewer.get(f"/cell/{cell}?view=nucleus").text.partition("data-cell=")[2].partition("alt")[0]
    )
    for other in ("?by=map", "?optics=any&view=thumb", "?by=x&view=<script>"):
        assert reviewer.get(f"/cell/{cell}{other}").status in (200, 400)
    (ig,) = [row for row in run(lab, "classes.list") if row["label"] == "ig"]
    assert ig["full_name"] == "immature granulocyte"
    known = json.loads(got.text.partition('id="abbreviations">')[2].partition("</script>")[0])
    assert known["ig"] == "immature granulocyte" and not {"pmo", "erc"} & known.keys(), "these mean two things"
    short = next(cell_id for path, cell_id in cells.items() if path.startswith("ig/"))
    assert re.search(r">ig</span></span> <small[^>]*>immature granulocyte<", reviewer.get(f"/cell/{short}").text)
    viewer = let_in(lab, "Viewer of cells", "view").get(f"/cell/{cell}")
    assert viewer.status == 200 and "Set class" not in viewer.text


@pytest.mark.parametrize("name", ["0000000000000000", "%2e%2e%5Ctoken", "%3Cscript%3Ealert(1)", "%00", "x" * 5000])
def test_a_cell_that_is_not_there_is_a_page_that_says_so(reviewer: Browser, name: str) -> None:
    got = reviewer.get(f"/cell/{name}")
    assert got.status in (400, 404) and "<script>alert" not in got.text
    # what is no path at all never reaches the pages
    assert 'role="alert"' in got.text or (got.status, got.text) == (404, "nothing is at this address")


def call(browser: Browser, name: str, **asked: Any) -> Any:
    got = browser.ask(
        "POST", f"/api/v1/{name.replace('.', '/')}", json.dumps(asked).encode(), Content_Type="application/json"
    )
    assert got.status == 200, got.text
    return json.loads(got.body)


def references(lab: Lab, cell: str) -> list[str]:
    (shown,) = run(lab, "cell.show", cell=cell)
    return [one["cell_id"] for one in shown["references"]]


def test_what_is_called_no_good_reference_is_left_out_for_that_cell_or_for_all_until_it_is_taken_back(
    lab: Lab, cells: dict[str, str], reviewer: Browser
) -> None:
    cell = cells["lymphocyte/S03-001_000.jpg"]
    before = references(lab, cell)
    poor = before[0]
    other = next(one for one in cells.values() if one != cell and poor in references(lab, one))
    said = call(reviewer, "reference.reject", cell=poor, query=cell, who="Somebody Else")
    assert said == {"cell_id": poor, "query": cell, "rejected": True, "changed": True}
    assert not call(reviewer, "reference.reject", cell=poor, query=cell)["changed"]
    assert poor not in references(lab, cell) and references(lab, cell)[:7] == before[1:8]
    assert poor not in [one["cell_id"] for one in query(reviewer, kept(lab, cell))["references"]]
    assert poor in references(lab, other), "it is no good for that cell only"
    (record,) = run(lab, "cell.show", cell=poor)
    assert [(row["who"], row["query"], row["rejected"]) for row in record["judgements"]] == [("Åsa Lind", cell, True)]
    call(reviewer, "reference.reject", cell=poor)
    assert poor not in references(lab, other)
    call(reviewer, "reference.undo", cell=poor)
    assert poor in references(lab, other) and poor not in references(lab, cell)
    call(reviewer, "reference.undo", cell=poor, query=cell)
    assert references(lab, cell) == before
    page = reviewer.get(f"/cell/{poor}").text
    assert "no good reference for this cell" in page and "may be a reference again" in page
    viewer = let_in(lab, "Only looks", "view")
    refused = viewer.ask(
        "POST", "/api/v1/reference/reject", b'{"cell": "%s"}' % poor.encode(), Content_Type="application/json"
    )
    assert refused.status == 403


def kept(lab: Lab, cell: str) -> bytes:
    data = lab.kept_image(cell)
    assert data is not None
    return data


def test_a_judgement_stays_when_the_store_is_opened_again_and_names_cells_that_are_there(tmp_path: Path) -> None:
    with new_store(tmp_path) as store:
        store.record([new_cell(number) for number in range(3)], bundle=BUNDLE)
        one, two, three = (new_cell(number).cell_id for number in range(3))
        assert store.rejections.reject(one, two, "A") and store.rejections.reject(three, None, None)
        path = store.path
    with Store.open(path) as store:
        assert store.rejections.for_queries([two]) == {one} and store.rejections.for_any() == {three}
        assert store.rejections.undo(one, two, "B") and not store.rejections.undo(one, two, "B")
        assert store.rejections.for_queries([two]) == set()
        assert [(said.rejected, said.who) for said in store.rejections.history(one)] == [(True, "A"), (False, "B")]


# a picture that is not stored


def form(data: bytes, name: str = "cell.jpg") -> tuple[bytes, dict[str, str]]:
    head = f'--bound\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\nContent-Type: image/jpeg\r\n\r\n'
    return head.encode() + data + b"\r\n--bound--\r\n", {"Content_Type": "multipart/form-data; boundary=bound"}


def test_a_picture_is_asked_about_by_a_form_and_nothing_of_it_is_stored(
    lab: Lab, drawn_cells: Path, reviewer: Browser
) -> None:
    assert 'action="/ask"' in reviewer.get("/ask").text
    with Image.open(next(drawn_cells.glob("basophil/*.jpg"))) as opened:
        file = io.BytesIO()
        opened.rotate(180).save(file, "TIFF")
    count = len(list(run(lab, "ledger")))
    there = sorted(lab.images.rglob("*"))
    body, headers = form(file.getvalue())
    got = reviewer.ask("POST", "/ask", body, **headers)
    assert got.status == 200, got.text
    assert got.text.count("data-reference=") == 8 and "data:image/jpeg;base64," in got.text
    assert "Set class" not in got.text and "Not stored" in got.text
    plain = reviewer.ask("POST", "/ask", file.getvalue(), Content_Type="image/tiff")
    assert plain.text.count("data-reference=") == 8
    assert len(list(run(lab, "ledger"))) == count and sorted(lab.images.rglob("*")) == there


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "No picture was chosen"),
        (b"<html><script>alert(1)</script>", "not an image"),
        (b"GIF89a" + bytes(100), "not an image"),
        (b"\xff\xd8\xff\xe0" + bytes(500), "image"),
    ],
)
def test_what_is_no_picture_is_told_so(reviewer: Browser, data: bytes, says: str) -> None:
    for body, headers in (form(data), (data, {"Content_Type": "application/octet-stream"})):
        got = reviewer.ask("POST", "/ask", body, **headers)
        assert got.status == 422 and says in got.text and "<script>alert" not in got.text
        assert 'role="alert"' in got.text and 'type="file"' in got.text


def test_a_bomb_and_a_flood_are_refused(lab: Lab, reviewer: Browser) -> None:
    bomb = io.BytesIO()
    Image.new("1", (30_000, 30_000)).save(bomb, "PNG")
    body, headers = form(bomb.getvalue())
    got = reviewer.ask("POST", "/ask", body, **headers)
    assert got.status == 422 and "million pixels" in got.text
    got = reviewer.ask("POST", "/ask", b"", Content_Type="image/png", Content_Length="2000000000")
    assert got.status == 413 and got.text.startswith("too large")
    eager = let_in(lab, "Eager", "view")
    answers = [eager.ask("POST", "/ask", b"no picture") for _ in range(34)]
    assert {one.status for one in answers[:30]} == {422}
    assert answers[-1].status == 429 and int(answers[-1].headers["retry-after"]) >= 1
    stranger = Browser.of(lab).ask("POST", "/ask", body, **headers)
    assert stranger.status == 401
    assert reviewer.ask("POST", "/ask", body, Origin="http://evil.example", **headers).status == 403


NAME = "Zuzanna Qvistgaard"


def told(kind: str) -> bytes:
    """A picture whose file names a patient in one of the ways in which files do."""
    cell = Image.fromarray(np.random.default_rng(3).integers(90, 250, (64, 64, 3)).astype(np.uint8))
    file, exif, info = io.BytesIO(), Image.Exif(), PngInfo()
    exif[0x010E], exif[0x0112] = NAME, 6  # ImageDescription; turned
    info.add_text("Patient", NAME)
    info.add_itxt("XML:com.adobe.xmp", f"<x>{NAME}</x>")
    options: dict[str, dict[str, Any]] = {
        "JPEG, EXIF": {"exif": exif},
        "JPEG, comment": {"comment": NAME.encode()},
        "JPEG, XMP": {"xmp": NAME.encode()},
        "PNG, text": {"pnginfo": info},
        "PNG, EXIF": {"exif": exif},
    }
    cell.save(file, kind.partition(",")[0], **options.get(kind, {}))
    data = file.getvalue()
    if kind == "PNG, text behind":  # after the pixels, where Pillow reads it last
        body = b"tEXtPatient\0" + NAME.encode()
        chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
        return data[:-12] + chunk + data[-12:]
    return data + NAME.encode() if kind.endswith("after the end") else data


@pytest.mark.parametrize(
    "kind",
    [
        *("JPEG, EXIF", "JPEG, comment", "JPEG, XMP", "JPEG, after the end"),
        *("PNG, text", "PNG, EXIF", "PNG, text behind", "PNG, after the end"),
    ],
)
def test_a_picture_that_is_shown_says_no_words_of_its_file(kind: str) -> None:
    data = told(kind)
    assert b"Qvistgaard" in data
    for view in VIEWS:
        made = RENDERERS[view](data, 10**6)
        assert b"Qvistgaard" not in made, view
    assert np.array_equal(np.asarray(picture(RENDERERS["captured"](data, 10**6))), decode(data)), "the same pixels"
    plain = told(kind.partition(",")[0])
    assert RENDERERS["captured"](plain, 10**6) == plain, "without words, the very bytes"
