"""The map's pages, tiles and operations."""

from __future__ import annotations

import ast
import gzip
import io
import json
import re
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import labref
from labref import som
from labref.bundles.bundle import Bundle
from labref.demo.cells import LABELS
from labref.errors import LabrefError
from labref.lab import Lab
from labref.pictures import tiles
from labref.web.desk import Desk, run
from labref.web.failures import without_commands
from labref.web.pages.map import Layer
from tests.labs import running_agent
from tests.maps import FIRST_DAY, lab_with_map
from tests.pages import Browser, let_in

WEB = Path(__file__).parents[1] / "labref" / "web"
EACH = 3


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, starter: Bundle) -> Iterator[Lab]:
    lab = lab_with_map(tmp_path_factory.mktemp("map"), starter, each=EACH)
    with running_agent(lab):
        yield lab


@pytest.fixture(scope="module")
def viewer(lab: Lab) -> Browser:
    return let_in(lab, "Vera", "view")


def one(lab: Lab, name: str, **parameters: Any) -> dict[str, Any]:
    (row,) = run(lab, name, **parameters)
    return row


def picture(data: bytes) -> Image.Image:
    with Image.open(io.BytesIO(data)) as opened:
        return opened.convert("RGB")


def tiles_address(viewer: Browser, query: str = "") -> str:
    found = re.search(r'data-light="([^"]+)"', viewer.get(f"/map{query}").text)
    assert found is not None
    return found[1]


# what is drawn


def test_tiles_make_up_the_whole_map_at_every_level(viewer: Browser) -> None:
    address = tiles_address(viewer)
    first, last = tiles.levels(6, 9)
    assert tiles.size(6, 9) == (9 * tiles.NODE, 6 * tiles.NODE)
    for level in range(first, last + 1):
        side = tiles.NODE >> (last - level)
        width, height = 9 * side, 6 * side
        whole = Image.new("RGB", (width, height))
        for x in range(-(-width // tiles.TILE)):
            for y in range(-(-height // tiles.TILE)):
                answer = viewer.get(f"{address}/{level}/{x}_{y}.png")
                assert answer.status == 200 and "immutable" in answer.headers["cache-control"]
                part = picture(answer.body)
                assert part.size == (min(256, width - 256 * x), min(256, height - 256 * y))
                whole.paste(part, (256 * x, 256 * y))
        assert len(whole.getcolors(1_000_000) or ()) > 4, level
    assert viewer.get(f"{address}/{last}/5_0.png").status == 404
    assert viewer.get(f"{address}/{last + 1}/0_0.png").status == 404
    assert viewer.get(f"{address}/{first - 1}/0_0.png").status == 404


@pytest.mark.parametrize(
    "layer", ["classes", "classes-blue", "secrets-light", "classes-light~sAnna", "classes-light~x"]
)
def test_a_layer_that_is_none_has_no_tiles(viewer: Browser, layer: str) -> None:
    assert viewer.get(f"/map/tiles/0123456789abcdef/{layer}/8/0_0.png").status == 404
    assert viewer.get(f"/map/picture/0123456789abcdef/{layer}.png").status == 404


def test_a_version_that_is_gone_shows_the_newest_and_is_not_kept(viewer: Browser) -> None:
    answer = viewer.get("/map/tiles/0123456789abcdef/umatrix-dark/8/0_0.png")
    assert answer.status == 200 and answer.headers["cache-control"] == "no-store"


def test_the_layer_in_an_address_is_what_the_page_was_asked_for_and_names_nobody(lab: Lab, viewer: Browser) -> None:
    facets = one(lab, "map.facets")
    slide = facets["slides"][0]
    style = next(row["style"] for row in run(lab, "classes.list") if row["label"] == "monocyte")[2:]
    query = f"?class={style}&slide={slide['key']}&source=reviewed&since=2026-03-01&until=2026-12-31&doubtful=1"
    address = tiles_address(viewer, query)
    layer = Layer.of_text(address.rsplit("/", 1)[1])
    assert layer is not None
    assert layer == Layer.of_text(layer.text(dark=False))
    assert (layer.classes, layer.slide, layer.sources, layer.doubtful) == ((style,), slide["key"], ("reviewed",), True)
    assert "Anna" not in address and "monocyte" not in address
    assert viewer.get(f"{address}/9/0_0.png").status == 200
    assert tiles_address(viewer, "?class=%3Cscript%3E&slide=Anna&since=yesterday&page=-1") == tiles_address(viewer)


def test_a_filter_leaves_only_its_cells_and_red_marks_those_that_disagree(lab: Lab, viewer: Browser) -> None:
    keys = [slide["key"] for slide in one(lab, "map.facets")["slides"]]
    seen = {
        picture(viewer.get(f"{tiles_address(viewer, query)}/9/0_0.png").body).tobytes()
        for query in ("", f"?slide={keys[0]}", f"?slide={keys[0]}&against={keys[1]}", "?what=umatrix", "?doubtful=1")
    }
    assert len(seen) == 5
    red = picture(viewer.get(f"{tiles_address(viewer, '?doubtful=1')}/9/0_0.png").body).getcolors(100_000) or []
    assert (200, 16, 46) in {colour for _, colour in red}


# what lies where


def test_the_nodes_have_what_lies_on_them(lab: Lab) -> None:
    row = one(lab, "map.picture")
    cells: dict[str, list[Any]] = {}
    for part in list(run(lab, "map.cells"))[1:]:
        for name, values in part.items():
            cells.setdefault(name, []).extend(values)
    assert row["chosen"] == row["placed"] == len(cells["cell_id"]) == 8 * EACH
    assert row["by_class"] == [cells["label"].count(label) for label in row["classes"]]
    for node in range(54):
        here = [label for at, label in zip(cells["node"], cells["label"], strict=True) if at == node]
        assert row["cells"][node] == len(here)
        if here:
            assert Counter(here)[row["classes"][row["label"][node]]] == max(Counter(here).values())
            assert cells["node"][cells["cell_id"].index(row["cell_id"][node])] == node
        else:
            assert (row["label"][node], row["cell_id"][node]) == (-1, None)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"classes": ["monocyte", "no such"]}, EACH),
        ({"sources": ["reviewed"]}, 8),
        ({"sources": ["predicted"]}, 0),
        ({"analysers": ["<DI-60>"]}, 4 * EACH),
        ({"slides": ["0" * 20]}, 0),
        ({"since": (FIRST_DAY + timedelta(days=20)).date().isoformat()}, 4),
        ({"until": FIRST_DAY.date().isoformat()}, 1),
        ({"since": "2027-01-01"}, 0),
        ({"until": "9999-12-31", "since": "0001-01-01"}, 8 * EACH),
    ],
)
def test_a_filter_counts_its_cells(lab: Lab, asked: dict[str, Any], expected: int) -> None:
    assert one(lab, "map.picture", **asked)["chosen"] == expected
    summary, *cells = run(lab, "map.region", row=0, column=0, last_row=5, last_column=8, **asked)
    assert (summary["cells"], len(cells)) == (expected, expected)


def test_a_region_is_paged_without_loss_and_says_its_classes(lab: Lab) -> None:
    whole = {"row": 0, "column": 0, "last_row": 5, "last_column": 8}
    summary, *cells = run(lab, "map.region", **whole)
    assert summary["by_class"] == dict.fromkeys(LABELS, EACH)
    paged = [
        row["cell_id"]
        for at in range(0, 24, 5)
        for row in list(run(lab, "map.region", **whole, offset=at, limit=5))[1:]
    ]
    assert paged == [row["cell_id"] for row in cells]
    (counted,) = run(lab, "map.region", **whole, limit=0)
    assert counted == summary
    key = one(lab, "map.facets")["slides"][0]["key"]
    assert next(iter(run(lab, "map.region", **whole, slides=[key])))["slides"] == 1


def test_a_node_that_is_none_is_refused_in_words(viewer: Browser) -> None:
    for address in ("/map/node/6/0", "/map/node/0/9", "/map/region/3/3/2/4", "/map/node?row=1&column=x"):
        answer = viewer.get(address)
        assert answer.status == 400 and "from 0" in answer.text, address


def test_doubts_are_those_of_the_neighbourhood() -> None:
    rng = np.random.default_rng(2)
    nodes, codes = rng.integers(0, 12 * 7, 500), rng.integers(0, 4, 500)
    labels = np.array(list("abcd"))[codes]
    about = som.neighbourhood(nodes, labels, rows=12, cols=7)
    found = som.doubts(nodes, codes, rows=12, cols=7, classes=4)
    assert found.surprise == pytest.approx(som.suspicion(about, labels))
    assert found.majority.tolist() == about.majority.tolist()
    assert found.share == pytest.approx(about.shares.max(axis=1))
    empty = som.doubts(nodes[:0], codes[:0], rows=12, cols=7, classes=0)
    assert len(empty.surprise) == 0


# pages


def test_the_page_shows_the_map_as_a_picture_whose_clicks_lead_to_nodes(lab: Lab, viewer: Browser) -> None:
    text = viewer.get("/map").text
    assert "Suspect labels in red" in text and ">Suspect labels<" in text
    assert "24 cells" in text and "6×9" in text and "ismap" in text and "Anna Berg 1" in text
    assert "&lt;DI-60&gt;" in text and "<DI-60>" not in text
    found = re.search(r'<img src="(/map/picture/[^"]+)" ismap width="(\d+)" height="(\d+)"', text)
    assert found is not None
    assert picture(viewer.get(found[1]).body).size == (int(found[2]), int(found[3]))
    doubted = viewer.get("/map/suspects").text
    assert (
        re.findall('data-cell="([0-9a-f]{16})"', doubted) == [row["cell_id"] for row in run(lab, "map.suspects")][:40]
    )
    assert "<html" in doubted and "<html" not in viewer.get("/map/suspects?part=1").text
    assert viewer.get("/map/suspects?analyser=01234567").status == 404
    side = int(found[2]) // 9
    node = next(row for row in run(lab, "map.suspects"))
    click = viewer.get(f"/map/at/{side}?{node['column'] * side + 1},{node['row'] * side + side - 1}")
    assert click.headers["location"] == f"/map/node/{node['row']}/{node['column']}"
    assert node["cell_id"] in viewer.get(click.headers["location"]).text
    assert viewer.get(f"/map/at/{side}?nonsense").headers["location"] == "/map"
    assert viewer.get("/map/node?row=2&column=3").headers["location"] == "/map/node/2/3"


def test_the_page_says_where_a_cell_lies(lab: Lab, viewer: Browser) -> None:
    cell = next(iter(run(lab, "map.suspects")))
    text = viewer.get(f"/map?cell={cell['cell_id']}").text
    assert f'data-spot="{cell["row"]},{cell["column"]}"' in text
    assert viewer.get("/map?cell=0000000000000000").status == 400


def test_only_who_is_let_in_sees_tiles(lab: Lab, viewer: Browser) -> None:
    stranger = Browser.of(lab)
    address = tiles_address(viewer)
    for path in (f"{address}/9/0_0.png", "/map", "/map/node/0/0"):
        assert stranger.get(path, Accept="image/png").status == 401


def test_a_new_label_is_another_version_and_its_markup_is_shown_as_text(lab: Lab, viewer: Browser) -> None:
    before = one(lab, "map.facets")["version"]
    cell = next(iter(run(lab, "map.suspects")))
    one(lab, "label.set", cell=cell["cell_id"], label="<b>Odd</b>", new=True)
    place = cell["row"], cell["column"]
    assert "&lt;b&gt;Odd&lt;/b&gt;" in viewer.get("/map/node/{}/{}".format(*place)).text
    after = one(lab, "map.facets")
    assert after["version"] != before and after["classes"]["<b>Odd</b>"] == 1
    assert "<b>" not in viewer.get("/map").text


def test_a_lab_without_a_map_says_so(tmp_path: Path, starter: Bundle) -> None:
    lab = lab_with_map(tmp_path, starter, each=1)
    with lab.open_store() as store:
        for path in store.maps.folder.iterdir():
            path.unlink()
    with Desk.open(lab) as desk, pytest.raises(LabrefError, match="map 1.npz cannot be read"):
        list(desk.run("map.picture"))


def test_who_has_no_command_line_is_told_of_no_command(lab: Lab, viewer: Browser) -> None:
    admin = let_in(lab, "Admin of the map", "admin")
    body = json.dumps({"cell": "0" * 16}).encode()

    def refused(browser: Browser) -> str:
        answered = browser.ask("POST", "/api/v1/duplicates/history", body, Content_Type="application/json")
        return str(json.loads(answered.body)["error"]["message"])

    with pytest.raises(LabrefError) as command:
        list(run(lab, "duplicates.history", cell="0" * 16))
    assert "`labref " in str(command.value) and refused(admin) == str(command.value)
    assert refused(viewer).startswith(str(command.value).partition(";")[0])
    assert "`labref" not in refused(viewer) and refused(viewer).endswith("in your lab can help.")


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("this lab has no map yet; train one with `labref map train`", "this lab has no map yet."),
        ("all one colour; `labref ledger --take-in` takes it in all the same", "all one colour."),
        ("it takes too much memory: more than 9 MB (labref.toml, [decoding] memory)", "it takes too much memory: more than 9 MB."),
        ("no map yet for it; `labref map train` at once. Until then ask with --by latent", "no map yet for it."),
        ("`labref status` says more", ""),
        ("no cell 'ab' is in the trash; `labref store trash` lists them. It may be gone.", "no cell 'ab' is in the trash. It may be gone."),
        ("it is damaged. `labref ledger --check` names it; restore a backup.", "it is damaged. Restore a backup."),
        ("see `labref status`, e.g. its first line. It is full.", "It is full."),
        ("it is full, e.g. of files. See `labref status`.", "it is full, e.g. of files."),
        ("'x' is no class; did you mean 'y'? With --new it becomes one.", "'x' is no class; did you mean 'y'?"),
        ("/labref.toml/a--x/--b.png is empty; see `labref ledger`.", "/labref.toml/a--x/--b.png is empty."),
        ("correct [watch] in /lab/labref.toml. Nobody reads '--x'.", "Nobody reads '--x'."),
        ("a file is cut off; choose another (of one cell)", "a file is cut off; choose another (of one cell)"),
    ],
)  # fmt: skip
def test_what_names_a_command_is_left_out_and_all_else_stays(said: str, told: str) -> None:
    assert without_commands(said) == told


def test_of_every_error_is_left_what_is_wrong_to_who_has_no_command() -> None:
    """What is wrong stands first: were that cut off, a remedy would be left for nobody knows what."""
    for path in sorted(Path(labref.__file__).parent.rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        if not re.search("`labref|labref.toml|--[a-z]", source) or {"cli", "demo", "service"} & {*path.parts}:
            continue
        for raised in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Raise)):
            for value in getattr(raised.exc, "args", []):
                said = _message(value)
                wrong = re.split(r"[.;(:?]", said)[0]
                assert without_commands(said).startswith(wrong), f"{path}:{raised.lineno}: {said}"


def _message(value: ast.expr) -> str:
    """A message as it is written, with `X` for what is filled in."""
    if isinstance(value, ast.JoinedStr):
        return "".join(map(_message, value.values))
    return value.value if isinstance(value, ast.Constant) and isinstance(value.value, str) else "X"


# scripts of others


def test_the_scripts_of_others_are_pinned_without_addresses_and_small() -> None:
    lock = json.loads((WEB / "scripts" / "package-lock.json").read_text())
    wanted = json.loads((WEB / "scripts" / "package.json").read_text())["dependencies"]
    for name, version in wanted.items():
        locked = lock["packages"][f"node_modules/{name}"]
        assert locked["version"] == version and locked["integrity"].startswith("sha512-")
    assert "resolved" not in json.dumps(lock)
    # on the path of every build, where another file would hide a module of Python's
    there = {path.name for path in (WEB / "scripts").iterdir() if path.name != "__pycache__"}
    assert there == {"build_backend.py", "package.json", "package-lock.json"}
    files = list((WEB / "static" / "vendor").glob("*.js"))
    if not files:
        pytest.skip("the scripts are not there: `make web` gets them")
    assert sum(len(gzip.compress(path.read_bytes())) for path in files) < 150_000
