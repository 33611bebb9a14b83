"""Pages in a large lab: their benchmark at a small size, and what they rely on to be fast."""

from __future__ import annotations

import contextlib
import http.client
import socket
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from babel import numbers

from labref.asking import survey as surveys
from labref.asking.places import locate
from labref.demo.cells import LABELS as CELL_LABELS
from labref.demo.cells import OPTICS, draw_cell, encode_jpeg, make_slides
from labref.errors import StoreError
from labref.lab import Lab
from labref.lab.kept import Kept
from labref.lab.pictures import Pictures
from labref.printing import printable
from labref.som.placing import open_placer
from labref.store import Store
from labref.store import store as stores
from labref.store.memory import index as indexes
from labref.store.memory.books import CellBook, id_to_int, int_to_id
from labref.web.connections import CONNECTION
from labref.web.pages import _environment, _shown
from labref.web.texts import LANGUAGES, texts_in
from labref.words import SlideId
from tests.benchmarks.web import measure
from tests.labs import served, wait_until
from tests.stores import BUNDLE, LABELS, activate, new_cell, use_map


@pytest.mark.slow
def test_people_look_at_a_small_lab_while_cells_come_in(tmp_path: Path) -> None:
    found = measure(tmp_path, cells=600, side=6, viewers=2, rate=4.0, think=0.02, seconds=2.0, pictures=4, pile=2)
    for part in ("ingest_alone", "people", "flat_out", "without_ingest"):
        assert found[part]["errors"] == {}
    assert set(found["requirements"]) <= {"cell page", "map tile", "slide page"}
    asked = found["people"]["requests"] | found["flat_out"]["requests"]
    assert {"/health", "cell page", "picture"} <= set(asked) and asked["cell page"]["p99_ms"] > 0
    came = found["ingest_alone"]["ingest"]
    assert came["written"] == came["stored"] > 2 and came["pile_cells_a_second"] > 0


def test_a_book_counts_as_it_is_written() -> None:
    book = CellBook(np.array([5, 3, 9], np.uint64), np.array([0, 1, 0], np.uint32), ["one", "two", "none"])
    assert book.counts() == {"one": 2, "two": 1}
    for number in range(100, 100 + 8192):  # beyond the merge
        book.add(number, "three")
    for number, value in ((3, "one"), (100, "four"), (100, "four"), (7, "one")):  # no cell 7 is there
        book.change(number, value)
    book.add(7, "two")
    assert book.counts() == {"one": 3, "two": 1, "three": 8191, "four": 1}


def test_the_bundle_in_use_is_known_at_once_and_a_closed_store_says_nothing(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "store.duckdb")
    assert store.active_bundle() is None and store.bundles() == []
    activate(store)
    assert store.active_bundle() == BUNDLE and [bundle.digest for bundle in store.bundles()] == [BUNDLE]
    other = "cd" * 32
    store.add_bundle(other, name="other", version="1", latent_size=3, labels=LABELS)
    assert store.active_bundle() == BUNDLE and len(store.bundles()) == 2
    store.set_active_bundle(other, name="other", version="1", latent_size=3, labels=LABELS)
    assert store.active_bundle() == other
    with pytest.raises(StoreError, match="holds no latents"):
        store.latents(["0" * 16], bundle="ef" * 32)
    store.close()
    with pytest.raises(StoreError, match="closed"):
        store.active_bundle()


@pytest.mark.parametrize("indexed", [False, True])
def test_latents_are_read_as_they_were_written(tmp_path: Path, indexed: bool) -> None:
    cells = [new_cell(number) for number in range(300)]  # more than are looked up at once
    with Store.create(tmp_path / "store.duckdb") as store:
        activate(store)
        if indexed:
            store.build_index()
        store.record(cells, bundle=BUNDLE)
        found = store.latents([cell.cell_id for cell in cells] + ["0" * 16], bundle=BUNDLE)
        assert len(found) == 300
        of_disk = store.latents(list(found), bundle=BUNDLE, from_disk=True)
        assert of_disk.keys() == found.keys() and all(np.array_equal(of_disk[one], found[one]) for one in found)
        for cell in cells:
            assert found[cell.cell_id].dtype == np.float32 and np.array_equal(found[cell.cell_id], cell.latent)
        said = store.predicted([cells[0].cell_id, "0" * 16], bundle=BUNDLE)
        assert said == {cells[0].cell_id: ("neutrophil", 0.75)}


def test_latents_are_found_by_id_in_full_blocks_and_in_those_that_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexes, "_UNSORTED", 4)
    rng = np.random.default_rng(3)
    ids = rng.permutation(np.arange(1000, dtype=np.uint64) * np.uint64(2**50))
    latents = rng.standard_normal((1000, 5)).astype(np.float32)
    index = indexes.Index(5, block_rows=64)
    there = 0
    for size in (1, 3, 60, 64, 200, 7, 2, 663):
        index.add(ids[there : there + size], latents[there : there + size])
        there += size
        wanted = np.concatenate(
            [ids[rng.integers(0, 1000, 20)], ids[[0, there - 1]], np.array([1, 2**64 - 1], np.uint64)]
        )
        found = index.latents(wanted)
        places = [at for at in range(there) if ids[at] in set(wanted.tolist())]
        assert found.keys() == {int(ids[at]) for at in places}
        assert all(np.array_equal(found[int(ids[at])], latents[at]) for at in places)
    assert indexes.Index(5).latents(ids[:3]) == {} == index.latents(ids[:0])


def test_the_cells_of_a_slide_are_found_however_they_came(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store.create(tmp_path / "store.duckdb") as store:
        activate(store)
        store.record([new_cell(number, slide=f"s {number % 3}") for number in range(30)], bundle=BUNDLE)
        for apart in (0, 100):  # by their keys, and as a part of the table
            monkeypatch.setattr(stores, "_APART", apart)
            for slide in (SlideId("", name) for name in ("s 0", "s 1", "none")):
                ids = [int_to_id(number) for number in store.slides.book.cells(slide)]
                assert store.cells_of_slide(slide, ids) == store.cells(ids) and len(ids) == (
                    10 if slide.name != "none" else 0
                )
                assert list(store.cells_of_slide(slide, ids[:2])) == ids[:2]
        store.record([new_cell("late", slide="s 1", captured_at=datetime.now(UTC))], bundle=BUNDLE)
        late = store.cells_of_slide(SlideId("", "s 1"), [new_cell("late").cell_id])
        assert late == store.cells([new_cell("late").cell_id])


def test_slides_of_one_folder_are_kin_and_those_of_one_name_alone_are_not(tmp_path: Path) -> None:
    with Store.create(tmp_path / "store.duckdb") as store:
        activate(store)
        names = ["P/1", "P/2", "P", "Q", "QQ/1", "R/1/a", "R/2"]
        store.record([new_cell(name, slide=name) for name in names], bundle=BUNDLE)
        book = store.slides.book

        def kin(name: str) -> list[str]:
            return sorted(one.name for one in book.kin(SlideId("", name)))

        assert {name: kin(name) for name in names} == {
            "P/1": ["P", "P/2"],
            "P/2": ["P", "P/1"],
            "P": ["P/1", "P/2"],
            "Q": [],
            "QQ/1": [],
            "R/1/a": ["R/2"],
            "R/2": ["R/1/a"],
        }
        store.record([new_cell("late", slide="Q/9")], bundle=BUNDLE)
        assert kin("Q") == ["Q/9"] and kin("none") == []
        store.record([new_cell("far", slide="Q/10", folder="/other")], bundle=BUNDLE)
        assert kin("Q") == ["Q/9"], "in another watched folder it may be another patient"


def test_what_was_said_of_a_reference_and_taken_back_stays_its_history(tmp_path: Path) -> None:
    cells = [new_cell(number) for number in range(3)]
    one, other, third = (cell.cell_id for cell in cells)
    with Store.create(tmp_path / "store.duckdb") as store:
        activate(store)
        store.record(cells, bundle=BUNDLE)
        assert store.rejections.history(one) == []
        assert store.rejections.reject(one, other, "A") and store.rejections.undo(one, other, "B")
        for asked in (one, other):
            assert [(said.rejected, said.who) for said in store.rejections.history(asked)] == [
                (True, "A"),
                (False, "B"),
            ]
        assert store.rejections.history(third) == [] and not store.rejections.for_queries([other])
        store.rejections.accept(third, "C")
        assert [said.who for said in store.rejections.history(third)] == ["C"]


def test_an_answer_is_sent_at_once_and_does_not_wait_for_the_other_side() -> None:
    said: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        accepted = scope[CONNECTION].transport.get_extra_info("socket")
        said.append(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    with served(app, 0) as server, contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.port)) as asking:
        asking.request("GET", "/")
        assert asking.getresponse().status == 204
    assert len(said) == 1 and said[0] != 0


def test_python_is_shared_finely_while_pages_are_served() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        pass

    before = sys.getswitchinterval()
    with served(app) as server:
        server.begin()
        wait_until(lambda: sys.getswitchinterval() < 0.002, 30)
    assert sys.getswitchinterval() == before


def test_the_node_of_a_stored_cell_is_known(tmp_path: Path) -> None:
    cells = [new_cell(number) for number in range(12)]
    with Store.create(tmp_path / "store.duckdb", open_placer=open_placer) as store:
        activate(store)
        store.record(cells[:6], bundle=BUNDLE)
        use_map(store, BUNDLE, np.random.default_rng(1).standard_normal((3, 4, 50)))
        for cell in cells[6:]:  # each is a part of its own in memory
            store.record([cell], bundle=BUNDLE)
        active = store.maps.active(BUNDLE)
        assert active is not None and active.positions.node_of(0) is None
        for cell in cells:
            nodes, _ = active.placer.place(cell.latent[None])
            assert active.positions.node_of(id_to_int(cell.cell_id)) == nodes[0]
            stored, anew = (locate(store, BUNDLE, cell.latent, one) for one in (cell.cell_id, None))
            assert stored is not None and anew is not None and stored.node == anew.node
        other = locate(store, BUNDLE, cells[0].latent, "0" * 16)  # it is not on the map yet
        assert other is not None and other.node == active.positions.node_of(id_to_int(cells[0].cell_id))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        "é\nplain",
        "plain\n…\n",
        "\n\n\u202e\n",
        "x\u202ey\u200b\r\t\nplain",
        "\u202e",
        "…\n\u200d\n\n",
        "ü\x00\nö",
    ],
)
def test_what_hides_in_a_page_is_shown_line_by_line(text: str) -> None:
    assert _shown(text) == "\n".join(map(printable, text.split("\n")))


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_share_is_written_as_babel_writes_it(language: str) -> None:
    filters, locale = _environment(language).filters, texts_in(language).locale
    values = [0, 1, 0.5, 0.005, 0.015, 0.025, 0.12345, 0.9949999, 0.995, 1e-9, 12.5, *np.linspace(0, 1, 97).tolist()]
    for value in values:
        for digits, form in ((0, "#,##0\u00a0%"), (1, "#,##0.0\u00a0%")):
            wanted = numbers.format_percent(value, format=form, locale=locale)
            assert filters["share"](value, digits) == wanted, (value, digits)
    assert filters["number"](1234567) == numbers.format_decimal(1234567, locale=locale)


def test_who_looks_at_a_large_map_waits_for_no_survey_but_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(surveys, "LONG", -1.0)
    monkeypatch.setattr(surveys, "REST", 0)
    cells = [new_cell(number) for number in range(20)]
    with Store.create(tmp_path / "store.duckdb", open_placer=open_placer) as store:
        activate(store)
        store.record(cells, bundle=BUNDLE)
        use_map(store, BUNDLE, np.random.default_rng(1).standard_normal((3, 4, 50)))
        first = surveys.survey(store, BUNDLE)
        assert first is not None and len(first.cells) == 20 and surveys.survey(store, BUNDLE) is first
        store.record([new_cell(20)], bundle=BUNDLE)
        assert surveys.survey(store, BUNDLE) is first  # another thread makes the next
        deadline = time.monotonic() + 30
        while surveys.survey(store, BUNDLE) is first:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        second = surveys.survey(store, BUNDLE)
        assert second is not None and len(second.cells) == 21 and second.digest != first.digest
        monkeypatch.setattr(surveys, "_STALE_SECONDS", -1.0)  # too long ago: made at once
        store.record([new_cell(21)], bundle=BUNDLE)
        third = surveys.survey(store, BUNDLE)
        assert third is not None and len(third.cells) == 22


def test_the_facets_of_a_survey_are_counted(tmp_path: Path) -> None:
    with Store.create(tmp_path / "store.duckdb", open_placer=open_placer) as store:
        activate(store)
        few = [new_cell(number, slide=f"slide {number % 2}", label=LABELS[number % 3]) for number in range(7)]
        store.record(few, bundle=BUNDLE)
        use_map(store, BUNDLE, np.random.default_rng(1).standard_normal((3, 4, 50)))
        found = surveys.survey(store, BUNDLE)
        assert found is not None
        assert found.facets.classes == {LABELS[0]: 3, LABELS[1]: 2, LABELS[2]: 2}
        assert {slide.name: count for slide, count in found.facets.slides.items()} == {"slide 0": 4, "slide 1": 3}
        assert found.facets.first is None
        at, doubts = found.doubt(surveys.GIVEN)
        assert found.doubtful.sum() == len(at) == len(doubts.surprise) and (doubts.surprise > 0).all()
        assert (np.diff(doubts.surprise) <= 0).all()


def test_pictures_asked_for_again_are_not_made_again_and_a_cell_that_is_gone_has_none(tmp_path: Path) -> None:
    data = encode_jpeg(
        draw_cell(CELL_LABELS[0], next(iter(OPTICS.values())), make_slides(1, seed=1)[0], np.random.default_rng(1))
    )
    lab = SimpleNamespace(
        thumbnails=tmp_path / "thumbnails", kept_image=lambda _: data, decoder=SimpleNamespace(show=lambda *_: made())
    )
    stored, shown = {"0" * 16, "1" * 16}, []

    def made() -> bytes:
        shown.append(1)
        return data

    pictures = Pictures(cast(Lab, lab), stored.__contains__)
    assert pictures.of_cell("0" * 16, "cell") == pictures.of_cell("0" * 16, "cell") == data and len(shown) == 1
    assert pictures.of_cell("0" * 16, "nucleus") == data and len(shown) == 2
    stored.remove("0" * 16)
    assert pictures.of_cell("0" * 16, "cell") is None and pictures.of_cell("1" * 16, "cell") == data


def test_what_is_kept_is_bounded_and_what_was_used_last_stays() -> None:
    kept: Kept[str] = Kept(10)
    kept.put("a", "one", 4)
    kept.put("b", "two", 4)
    assert kept.get("a") == "one"
    kept.put("c", "three", 4)
    assert (kept.get("a"), kept.get("b"), kept.get("c")) == ("one", None, "three")
    kept.put("a", "four", 2)
    kept.put("d", "five", 4)
    assert (kept.get("a"), kept.get("c"), kept.get("d")) == ("four", "three", "five")
    kept.put("e", "large", 99)
    assert kept.get("e") == "large" and kept.get("a") is None
