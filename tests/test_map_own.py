"""A map of each analyser's own cells: by commands, in answers, on the pages."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import closing
from html import unescape
from pathlib import Path
from typing import Any

import pytest
import tomlkit
from PIL import Image
from typer.testing import CliRunner

from labref.asking.places import locate
from labref.bundles.bundle import Bundle
from labref.cli import app
from labref.errors import LabrefError
from labref.lab import Lab
from labref.lab.log import open_log
from labref.operations.ledger import _misplaced
from labref.store.text import to_column
from labref.tasks.context import Context
from labref.tasks.jobs import Jobs
from labref.tasks.map_job import keep_map
from labref.web.desk import Desk, run
from labref.web.pages.map import key_of
from tests.labs import running_agent, wait_until
from tests.maps import ANALYSERS, give_own_map, lab_with_map
from tests.pages import Browser, let_in

EACH = 16
OWN, OTHER = ANALYSERS
CELLS = 4 * EACH
"""Of each of the two."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, starter: Bundle) -> Lab:
    """A lab with a map of all cells, and one of the first analyser's."""
    lab = lab_with_map(tmp_path_factory.mktemp("own"), starter, each=EACH, rows=8, columns=9)
    give_own_map(lab, starter, OWN)
    return lab


@pytest.fixture
def lab(made: Lab, tmp_path: Path) -> Lab:
    return Lab.open(Path(shutil.copytree(made.folder, tmp_path / "lab")))


@pytest.fixture(scope="module")
def served(made: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    lab = Lab.open(Path(shutil.copytree(made.folder, tmp_path_factory.mktemp("served") / "lab")))
    say(lab, enabled=False)
    lab = Lab.open(lab.folder)
    with running_agent(lab):
        yield lab


@pytest.fixture(scope="module")
def viewer(served: Lab) -> Browser:
    return let_in(served, "Vera", "view")


def say(lab: Lab, **settings: bool) -> None:
    """Write these settings into the section [map] of labref.toml."""
    document = tomlkit.parse(lab.config_file.read_text(encoding="utf-8"))
    document.setdefault("map", tomlkit.table()).update(settings)
    lab.config_file.write_text(tomlkit.dumps(document), encoding="utf-8")


def labref(*words: object, code: int = 0) -> str:
    done = CliRunner().invoke(app, ["map", *map(str, words)])
    assert done.exit_code == code, (done.output, done.exception)
    return done.stdout if code == 0 else done.output


def rows(*words: object) -> list[dict[str, Any]]:
    return [json.loads(line) for line in labref(*words, "--json").splitlines()]


def one(lab: Lab, name: str, **parameters: Any) -> dict[str, Any]:
    (row,) = run(lab, name, **parameters)
    return row


# by commands


def test_the_command_trains_lists_and_uses_the_map_of_one_analyser(lab: Lab) -> None:
    (first,) = (row for row in rows("list", "--lab", lab.folder) if row["analyser"] == OWN)
    trained = rows("train", "--analyser", OWN, "--full", "--lab", lab.folder)[-1]
    assert (trained["analyser"], trained["cells"], trained["verdict"], trained["in_use"]) == (
        OWN,
        CELLS,
        "resized",
        True,
    )
    other = rows("train", "--analyser", OTHER, "--lab", lab.folder)[-1]
    assert (other["analyser"], other["cells"], other["verdict"]) == (OTHER, CELLS, "first")
    (state,) = rows("status", "--lab", lab.folder)
    assert state["map"]["analyser"] is None and state["placed"] == state["cells"] == 2 * CELLS
    assert [(row["analyser"], row["number"]) for row in state["own"]] == sorted(
        [(OWN, trained["number"]), (OTHER, other["number"])]
    )
    assert f"of {OTHER}  " in labref("status", "--lab", lab.folder)
    assert rows("use", first["number"], "--lab", lab.folder)[-1]["number"] == first["number"]
    assert {row["number"] for row in rows("list", "--lab", lab.folder) if row["in_use"]} == {
        state["map"]["number"], first["number"], other["number"],
    }  # fmt: skip
    assert "from the analyser 'nobody'; analysers are: " in labref(
        "train", "--analyser", "nobody", "--lab", lab.folder, code=1
    )


def test_the_cells_of_one_analyser_are_drawn_listed_and_judged_on_its_own_map(lab: Lab, tmp_path: Path) -> None:
    whole = {row["number"] for row in rows("list", "--lab", lab.folder) if row["analyser"] is None}
    pictures = {}
    for analyser in ANALYSERS:
        words = ("show", "--analyser", analyser, "--out", tmp_path / f"{analyser[1]}.png", "--lab", lab.folder)
        (shown,) = rows(*words)
        assert len(shown["cells"]["cell_id"]) == CELLS and set(shown["cells"]["analyser"]) == {analyser}
        assert (shown["map"]["analyser"], shown["map"]["number"] in whole) == (
            (OWN, False) if analyser == OWN else (None, True)
        )
        assert (
            max(shown["cells"]["row"]) < shown["map"]["rows"]
            and max(shown["cells"]["column"]) < shown["map"]["columns"]
        )
        pictures[analyser] = shown
        with Image.open(tmp_path / f"{analyser[1]}.png") as picture:
            assert min(picture.size) > 100
    at = pictures[OWN]["cells"]
    row, column = at["row"][0], at["column"][0]
    on_node = rows("node", row, column, "--analyser", OWN, "--lab", lab.folder)
    assert {cell["cell_id"] for cell in on_node} == {
        cell for cell, r, c in zip(at["cell_id"], at["row"], at["column"], strict=True) if (r, c) == (row, column)
    }
    for words in (("node", 0, 0), ("train",), ("suspects",), ("classify",)):
        refused = labref(*words, "--analyser", "Nobody", "--lab", lab.folder, code=1)
        assert "from the analyser 'Nobody'; analysers are: " in refused and OWN in refused, words
    said = labref("show", "--analyser", OTHER, "--out", tmp_path / "other.png", "--lab", lab.folder)
    assert f"of all cells, as {OTHER} has none of its own, {CELLS} cells" in said
    assert "no node 7 8" in labref("node", 7, 8, "--analyser", OWN, "--lab", lab.folder, code=1)
    everything = rows("classify", "--analyser", OWN, "--lab", lab.folder)[-1]
    assert everything["label"] is None and everything["cells"] == CELLS
    suspects = rows("suspects", "--analyser", OWN, "--lab", lab.folder)
    placed = dict(zip(at["cell_id"], zip(at["row"], at["column"], strict=True), strict=True))
    assert suspects and all((cell["row"], cell["column"]) == placed[cell["cell_id"]] for cell in suspects)
    assert {cell["map"] for cell in suspects} == {pictures[OWN]["map"]["number"]}
    assert {cell["label_source"] for cell in suspects} == {"reviewed"}, "those that were called otherwise on purpose"


def test_the_state_names_the_maps_that_are_to_come(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    assert rows("status", "--lab", lab.folder)[0]["own_to_come"] == []  # too few cells
    monkeypatch.setattr("labref.tasks.mapping.FEWEST_OWN", CELLS)
    assert rows("status", "--lab", lab.folder)[0]["own_to_come"] == [OTHER]
    assert f"to come, one after another, for: {OTHER}" in labref("status", "--lab", lab.folder)
    say(lab, per_analyser=False)
    assert rows("status", "--lab", lab.folder)[0]["own_to_come"] == []
    assert "per_analyser = false" in labref("status", "--lab", lab.folder)


def test_a_lab_can_do_without(lab: Lab) -> None:
    say(lab, per_analyser=False)
    assert rows("status", "--lab", lab.folder)[0]["own"] == []
    (shown,) = rows("show", "--analyser", OWN, "--lab", lab.folder)
    assert shown["map"]["analyser"] is None and len(shown["cells"]["cell_id"]) == CELLS
    assert "per_analyser = false" in labref("train", "--analyser", OWN, "--lab", lab.folder, code=1)


def test_a_place_that_is_wrong_on_the_own_map_alone_is_found(lab: Lab) -> None:
    with lab.open_store() as store:
        bundle = lab.bundle(store).digest
        own = store.maps.active(bundle, OWN)
        assert own is not None
        every = [cell.cell_id for cell in store.maps.cells(bundle)]
        assert _misplaced(store, bundle, every) == []
        wrong, off = (cell.cell_id for cell, _ in zip(store.maps.cells(bundle, analyser=OWN), range(2), strict=False))
        for cell_id, node in ((wrong, "(node + 10) % 20"), (off, "4000")):
            store._connection.execute(
                f"UPDATE map_position SET node = {node} WHERE map = ? AND cell_id = ?", [own.version.number, cell_id]
            )
        store.reload()
        assert _misplaced(store, bundle, every) == [wrong]
        assert store.faults().found == {"place_off_map": [off]}
        store.maps.place_again(bundle, [wrong, off])
        assert _misplaced(store, bundle, every) == [] and not store.faults().found
        again = store.maps.active(bundle, OWN)
        assert again is not None and len(again.positions) == CELLS


ODD = ["dc-1", "DC-1 ", "a\x1b[31mb\nc", "' OR 1=1 --", "\udce5", "x" * 3000]


def called(lab: Lab, names: list[str]) -> None:
    """Call the analysers of its cells otherwise, one after the other."""
    with lab.open_store() as store:
        ids = [cell for (cell,) in store._connection.execute("SELECT cell_id FROM cell ORDER BY number").fetchall()]
        for n, name in enumerate(names):
            store._connection.execute(
                "UPDATE cell SET analyser = ? WHERE cell_id IN (SELECT unnest(?::VARCHAR[]))",
                [to_column(name), ids[n :: len(names)]],
            )


def test_an_analyser_that_no_cell_came_from_is_refused_and_not_shown_as_one_without_faults(lab: Lab) -> None:
    for command in (
        ["node", 0, 0],
        ["suspects"],
        ["unidentified"],
        ["classify"],
        ["show", "--out", lab.folder / "../x.png"],
    ):
        for name in ("dc-1", "DC-1 left", "", "a\x1b[31mb"):
            said = labref(*command, "--analyser", name, "--lab", lab.folder, code=1)
            assert "no cell on the map is from the analyser" in said and "\x1b" not in said, (command, name)
            assert "analysers are: <DI-60>, DC-1" in said
    with pytest.raises(LabrefError, match="from the analyser 'nobody'"):
        one(lab, "map.picture", analysers=[OWN, "nobody"])
    for name, more in (("map.facets", {}), ("map.spot", {"cell": "0" * 16})):
        with pytest.raises(LabrefError, match="from the analyser 'nobody'"):
            one(lab, name, analyser="nobody", **more)


def test_on_the_map_of_all_cells_a_node_lists_those_of_the_analyser_alone(lab: Lab) -> None:
    listed: dict[str, list[str]] = {}
    with Desk.open(lab) as desk:
        for analyser in (None, OTHER):
            asked = {} if analyser is None else {"analyser": analyser}
            found = [
                cell
                for row in range(8)
                for column in range(9)
                for cell in desk.run("map.node", row=row, column=column, **asked)
            ]
            assert analyser is None or {cell["analyser"] for cell in found} == {analyser}
            listed[str(analyser)] = [cell["cell_id"] for cell in found]
    assert (len(listed["None"]), len(listed[OTHER])) == (2 * CELLS, CELLS)


def test_a_lab_that_does_without_own_maps_has_none_in_use(lab: Lab) -> None:
    (own,) = (row for row in rows("list", "--lab", lab.folder) if row["analyser"] == OWN)
    assert own["in_use"]
    say(lab, per_analyser=False)
    (own,) = (row for row in rows("list", "--lab", lab.folder) if row["analyser"] == OWN)
    assert not own["in_use"] and own["weights_kept"]
    assert "per_analyser = false" in labref("use", own["number"], "--lab", lab.folder, code=1)
    say(lab, per_analyser=True)
    assert rows("status", "--lab", lab.folder)[0]["own"][0]["number"] == own["number"]


def test_an_analyser_whose_cells_are_all_gone_has_no_page_and_breaks_none(lab: Lab) -> None:
    called(lab, [OTHER])
    say(lab, enabled=False)
    (state,) = rows("status", "--lab", lab.folder)
    assert (state["placed"], [one["analyser"] for one in state["own"]]) == (2 * CELLS, [OWN])
    assert "analysers are: DC-1" in labref("suspects", "--analyser", OWN, "--lab", lab.folder, code=1)
    lab = Lab.open(lab.folder)
    with running_agent(lab):
        viewer = let_in(lab, "Vera", "view")
        for path in ("/map", f"/map?analyser={key_of(OWN)}", f"/map/region/0/0/2/2?analyser={key_of(OWN)}"):
            assert viewer.get(path).status == 200, path


def test_analysers_with_odd_names_get_maps_but_no_more_than_some(
    lab: Lab, starter: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("FEWEST", "FEWEST_OWN"):
        monkeypatch.setattr(f"labref.tasks.mapping.{name}", 2)
    monkeypatch.setattr("labref.tasks.mapping._REST", 0)
    monkeypatch.setattr("labref.tasks.mapping._MOST_OWN", len(ODD) - 1)
    called(lab, ODD)

    def none() -> Any:
        raise AssertionError("no map needs a network")

    with lab.open_store() as store, open_log(lab) as log, closing(Jobs(log)) as jobs:
        context = Context(lab, store, none, jobs, none)
        for _ in range(40):
            job = keep_map(context)
            if job is None:
                break
            assert jobs.submit(job)
            wait_until(lambda: not jobs.has("map") and not jobs.has("map places"), 60)
            assert jobs.status()["ended"][job.name]["outcome"] == "done", jobs.status()
        own = [name for name in store.maps.own_of(starter.digest) if name != OWN]  # it had one, and has no cells now
        assert len(own) == len(ODD) - 1 and set(own) < set(ODD)
        for name in own:
            active = store.maps.active(starter.digest, name)
            assert active is not None and len(active.positions) == store.analysers()[name]
            assert {cell.analyser for cell in store.maps.cells(starter.digest, analyser=name)} == {name}
    for name in own:
        if "\udce5" not in name:
            (shown,) = rows("show", "--analyser", name, "--json", "--lab", lab.folder)[:1]
            assert set(shown["cells"]["analyser"]) == {name}
    status = labref("status", "--lab", lab.folder)
    assert "\x1b" not in status
    say(lab, enabled=False)
    lab = Lab.open(lab.folder)
    with running_agent(lab):
        viewer = let_in(lab, "Vera", "view")
        for name in own:
            if "\udce5" in name:  # no parameter holds it
                continue
            page = viewer.get(f"/map?analyser={key_of(name)}")
            assert page.status == 200 and "data-rows" in page.text, name[:20]
            address, *_ = tiles_of(page.text)
            assert viewer.get(f"{address}/9/0_0.png").status == 200


# in answers


def test_the_place_of_a_cell_is_on_the_map_of_its_analyser(lab: Lab, starter: Bundle) -> None:
    with lab.open_store() as store:
        own = store.maps.active(starter.digest, OWN)
        assert own is not None
        for ids, latents in store.maps.latents(starter.digest, analyser=OWN):
            for number, latent in zip(ids.tolist()[:10], latents, strict=False):
                spot = locate(store, starter.digest, latent, f"{number:016x}", OWN)
                assert spot is not None and spot.active is own and spot.node == own.positions.node_of(number)
                unseen = locate(store, starter.digest, latent, None, OWN)
                assert unseen is not None and unseen.node == spot.node
        (cell,) = [int(number) for number in ids[:1]]
    shown = one(lab, "cell.show", cell=f"{cell:016x}")
    assert shown["map"]["analyser"] == OWN and shown["map"]["map"] == own.version.number
    any_of_them = one(lab, "cell.show", cell=f"{cell:016x}", any_optics=True)
    assert any_of_them["map"]["analyser"] is None
    by_map = one(lab, "cell.show", cell=f"{cell:016x}", by="map")
    assert by_map["references"] and {row["analyser"] for row in by_map["references"]} == {OWN}


# on the pages


def tiles_of(text: str) -> tuple[str, int, int]:
    found = re.search(r'data-rows="(\d+)" data-columns="(\d+)"\s+data-light="([^"]+)"', text)
    assert found is not None
    return found[3], int(found[1]), int(found[2])


def test_the_page_of_one_microscope_shows_its_own_map(served: Lab, viewer: Browser) -> None:
    key = key_of(OWN)
    text = viewer.get(f"/map?analyser={key}").text
    assert "Map of &lt;DI-60&gt;" in text and OWN not in text
    address, rows_, columns = tiles_of(text)
    assert (rows_, columns) == (4, 5)
    assert f"{CELLS} cells" in text and f"of {2 * CELLS}" not in text
    tile = viewer.get(f"{address}/9/0_0.png")
    assert tile.status == 200 and "immutable" in tile.headers["cache-control"]
    whole, all_rows, all_columns = tiles_of(viewer.get("/map").text)
    assert (all_rows, all_columns) == (8, 9) and whole != address
    assert f'<a href="/map?analyser={key}" aria-current="page">&lt;DI-60&gt;</a>' in text
    assert f'<a href="/map?analyser={key}">&lt;DI-60&gt;</a>' in viewer.get("/map").text
    for name in ANALYSERS:  # both can still be chosen
        assert f'value="{key_of(name)}"' in text

    found = re.search(r'<a href="/map/at/(\d+)/([0-9a-f]{8})">', text)
    assert found is not None and found[2] == key
    side = int(found[1])
    click = viewer.get(f"/map/at/{side}/{key}?{side + 1},{side * 2 + 1}").headers["location"]
    assert click == f"/map/node/2/1?analyser={key}"
    assert viewer.get(f"/map/at/{side}/{key}?nonsense").headers["location"] == f"/map?analyser={key}"
    assert viewer.get(f"/map/node?row=2&column=3&analyser={key}").headers["location"] == f"/map/node/2/3?analyser={key}"
    lying = sum(
        int(re.search(r'data-cells="(\d+)"', viewer.get(f"/map/region/{row}/0/{row}/4?analyser={key}").text)[1])  # type: ignore[index]
        for row in range(4)
    )
    assert lying == CELLS
    assert viewer.get(f"/map/node/5/0?analyser={key}").status == 400, "its own map has four rows"
    suspect = one_suspect(served)
    address = re.search(r'data-later="([^"]+)"', text)
    assert address is not None and address[1] == f"/map/suspects?analyser={key}"
    assert f'href="/map/node/{suspect["row"]}/{suspect["column"]}?analyser={key}"' in viewer.get(address[1]).text


def one_suspect(lab: Lab) -> dict[str, Any]:
    return next(iter(run(lab, "map.suspects", analysers=[OWN])))


def test_a_microscope_without_a_map_of_its_own_is_shown_on_that_of_all(viewer: Browser) -> None:
    text = viewer.get(f"/map?analyser={key_of(OTHER)}").text
    assert tiles_of(text)[1:] == (8, 9) and f"{CELLS} of {2 * CELLS} cells" in text
    assert '<h1 id="map-title">Map</h1>' in text
    assert "/map/at/" in text and f'/{key_of(OTHER)}"' not in text
    assert tiles_of(viewer.get(f"/map?analyser={key_of(OWN)}&analyser={key_of(OTHER)}").text)[1:] == (8, 9)


def test_a_cell_leads_to_its_place_on_the_map_of_its_microscope(served: Lab, viewer: Browser) -> None:
    key, suspect = key_of(OWN), one_suspect(served)
    page = unescape(viewer.get(f"/cell/{suspect['cell_id']}").text)
    assert f'href="/map/node/{suspect["row"]}/{suspect["column"]}?analyser={key}"' in page
    assert f'href="/map?cell={suspect["cell_id"]}&analyser={key}"' in page
    text = viewer.get(f"/map?cell={suspect['cell_id']}&analyser={key}").text
    assert f'data-spot="{suspect["row"]},{suspect["column"]}"' in text
    # on the map of another microscope it lies nowhere, and that is no fault
    elsewhere = next(row for row in run(served, "map.suspects", analysers=[OTHER]))
    text = viewer.get(f"/map?cell={elsewhere['cell_id']}&analyser={key}").text
    assert "data-spot" not in text
    assert viewer.get(f"/map?cell=0000000000000000&analyser={key}").status == 400
    with pytest.raises(LabrefError, match="that is of the cells of <DI-60>"):
        one(served, "map.spot", cell=elsewhere["cell_id"], analyser=OWN)


# by the agent


def test_the_agent_trains_a_map_for_each_analyser_with_enough_cells(
    lab: Lab, starter: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("labref.tasks.mapping.FEWEST_OWN", CELLS)
    monkeypatch.setattr("labref.tasks.mapping._REST", 0)  # the map of all cells was trained a moment ago

    def none() -> Any:
        raise AssertionError("no map needs a network")

    with lab.open_store() as store, open_log(lab) as log, closing(Jobs(log)) as jobs:
        context = Context(lab, store, none, jobs, none)
        job = keep_map(context)
        assert job is not None and jobs.submit(job)
        assert keep_map(context) is None, "one at a time"
        wait_until(lambda: not jobs.has(job.name), 60)
        assert store.maps.own_of(starter.digest) == tuple(sorted(ANALYSERS))
        own = store.maps.active(starter.digest, OTHER)
        assert own is not None and own.version.cells == len(own.positions) == CELLS
        assert keep_map(context) is None
        # cells that came while nobody placed them lie on both maps again
        with store._transaction() as connection:
            connection.execute(
                "DELETE FROM map_position WHERE map = ? AND cell_id IN (SELECT min(cell_id) FROM cell WHERE analyser = ?)",
                [own.version.number, OTHER],
            )
        store.maps.drop_cached()
        again = keep_map(context)
        assert again is not None and again.name == "map places" and jobs.submit(again)
        wait_until(lambda: not jobs.has(again.name), 60)
        own = store.maps.active(starter.digest, OTHER)
        assert own is not None and len(own.positions) == CELLS
