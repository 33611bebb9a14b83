"""Other systems: links in, links out; label changes once, whatever is sent twice."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from labref import failpoints
from labref.bundles.bundle import Bundle
from labref.config import LayoutPattern
from labref.errors import LabrefError
from labref.web.desk import Desk
from tests.labs import make_lab, once


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory, drawn_cells: Path, starter: Bundle) -> Iterator[Desk]:
    pattern = LayoutPattern(pattern=r"(?P<label>[^/]+)/(?P<slide>[^_/]+)_[^/]+", label_source="analyser")
    lab = make_lab(tmp_path_factory.mktemp("lab") / "lab", drawn_cells, starter, layout=(pattern,))
    once(lab)
    with Desk.open(lab) as opened:
        yield opened


def test_an_accession_gives_addresses_that_name_no_patient(desk: Desk) -> None:
    _, first, *_ = desk.run("slide.list")
    slide, *cells = desk.run("event.links", slide=first["name"])
    assert slide["address"] == f"/slide/{first['slide']}" and first["name"] not in slide["address"]
    assert slide["cells"] == len(cells) == first["cells"]
    assert len(slide["bundle"]) == 64 and slide["map"] is None
    assert [cell["address"] for cell in cells] == [f"/cell/{cell['cell_id']}" for cell in cells]
    assert list(desk.run("event.links", slide=first["slide"])) == [slide, *cells]
    ledger = {row["cell_id"]: row for row in desk.run("ledger")}
    for name in (cells[0]["cell_id"], ledger[cells[0]["cell_id"]]["path"]):
        assert list(desk.run("event.links", slide=first["name"], cell=name)) == [slide, cells[0]]
    for wrong in ("no such file.jpg", ""):
        with pytest.raises(LabrefError, match="none is called so"):
            list(desk.run("event.links", slide=first["name"], cell=wrong))
    with pytest.raises(LabrefError, match="no slide of this lab"):
        list(desk.run("event.links", slide="nobody"))


def test_an_event_sent_twice_is_done_once(desk: Desk) -> None:
    cell = next(row for row in desk.run("ledger") if row["label"] != "basophil")["cell_id"]
    known = max((event["number"] for event in desk.run("event.labels", limit=10_000)), default=0)
    sent = {"key": "LIS 17", "cell": cell, "label": "basophil", "at": "2026-03-31T14:05:00+02:00", "who": "LIS"}
    (first,) = desk.run("event.give", **sent)
    assert (first["outcome"], first["repeated"]) == ("changed", False)
    (again,) = desk.run("event.give", **sent)
    assert again == first | {"repeated": True}
    (event,) = desk.run("event.labels", after=known)
    assert (event["cell_id"], event["label"], event["who"]) == (cell, "basophil", "LIS")
    assert list(desk.run("event.labels", after=event["number"])) == []
    with pytest.raises(LabrefError, match="this key came before with another event"):
        list(desk.run("event.give", **(sent | {"label": "monocyte"})))
    (history,) = desk.run("label.history", cell=cell)
    assert history["label"] == "basophil" and len(history["changes"]) == 1


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"at": "2026-03-31T14:05:00"}, "no time zone"),
        ({"at": "2999-01-01T00:00:00Z"}, "future"),
        ({"key": ""}, "key must not be empty"),
        ({"label": "nonsense"}, "no class of this lab"),
        ({"cell": "ffff0000ffff0000"}, "no cell"),
        ({"who": "\x1b[31m"}, "cannot be seen"),
    ],
)
def test_an_event_that_cannot_be_is_refused_and_its_key_is_still_free(
    desk: Desk, changed: dict[str, str], why: str
) -> None:
    cell = next(desk.run("ledger"))["cell_id"]
    sent = {"key": f"bad {sorted(changed.items())}", "cell": cell, "label": "monocyte"}
    with pytest.raises(LabrefError, match=why):
        list(desk.run("event.give", **(sent | changed)))
    if "key" not in changed:
        (given,) = desk.run("event.give", **sent)
        assert not given["repeated"]


def test_a_key_that_comes_many_times_at_once_gives_one_label(desk: Desk) -> None:
    cell = next(row for row in desk.run("ledger") if row["label"] not in ("basophil", "monocyte"))["cell_id"]
    before = len(next(desk.run("label.history", cell=cell))["changes"])
    sent = [{"key": "race", "cell": cell, "label": label} for label in ("basophil", "monocyte") * 4]

    def give(one: dict[str, str]) -> dict[str, Any] | LabrefError:
        try:
            return next(desk.run("event.give", **one))
        except LabrefError as error:
            return error

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(give, sent))
    given = [answer for answer in answers if isinstance(answer, dict)]
    assert [answer["repeated"] for answer in given].count(False) == 1
    assert len(given) == 4 and len({answer["label"] for answer in given}) == 1
    assert all("another event" in str(answer) for answer in answers if isinstance(answer, LabrefError))
    (history,) = desk.run("label.history", cell=cell)
    assert (len(history["changes"]), history["label"]) == (before + 1, given[0]["label"])


@pytest.mark.parametrize("point", ["label.commit", "events.keep", "store.commit"])
def test_an_event_that_was_cut_off_is_given_as_if_it_had_never_come(desk: Desk, point: str) -> None:
    cell = next(desk.run("ledger"))["cell_id"]
    (before,) = desk.run("label.history", cell=cell)
    other = "basophil" if before["label"] == "monocyte" else "monocyte"
    sent = {"key": f"cut off at {point}", "cell": cell, "label": other}
    failpoints.arm(f"{point}=eio@1")
    try:
        with pytest.raises(LabrefError):
            list(desk.run("event.give", **sent))
    finally:
        failpoints.disarm()
    assert list(desk.run("label.history", cell=cell)) == [before]
    (given,) = desk.run("event.give", **sent)
    assert (given["outcome"], given["repeated"]) == ("changed", False)
    list(desk.run("label.undo", cell=cell))


def test_classes_have_their_names_in_other_systems(desk: Desk) -> None:
    named = {row["label"]: (row["icsh"], row["loinc"]) for row in desk.run("classes.list")}
    assert named["basophil"] == ("Basophil", "30180-4")
    assert named["eosinophil"] == ("Eosinophil", "26450-7")
    assert named["blast"] == ("Blast cell", "26446-5")
    keys = [row["key"] for row in desk.run("classes.list") if row["key"]]
    assert len(keys) == len(set(keys)) and not {"u", "g"} & set(keys)
