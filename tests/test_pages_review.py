"""The review queues and the blinded readings: what they hold, how a decision is undone, what a reader never sees."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import scipy
from PIL import Image
from typer.testing import CliRunner

from labref.asking import agreement
from labref.bundles.bundle import Bundle
from labref.cli import app
from labref.demo.cells import LABELS, OPTICS, draw_cell, encode_jpeg, make_slides
from labref.errors import LabrefError
from labref.lab import Lab
from labref.operations import review
from labref.web.desk import Desk, run
from tests.labs import ledger, make_lab, once, running_agent, wait_until
from tests.pages import Answered, Browser, let_in
from training.measure.triplets import TripletSet, judged, read_votes

TURNED, MOVED = 3.0, (5, -7)  # degrees, as PIL turns; pixels right and down


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, starter: Bundle) -> Lab:
    """A lab of 64 drawn cells with a map, three of which a person may have captured twice, and two under a wrong class.
    Every cell has the analyser's label, but for those of the last two classes, which people reviewed."""
    export = tmp_path_factory.mktemp("export")
    slides = make_slides(2, seed=4)
    for label in LABELS:
        (export / label).mkdir(exist_ok=True)
        for number in range(8):
            slide = slides[number % 2]
            picture = draw_cell(
                label, OPTICS[slide.optics], slide, np.random.default_rng([11, number, LABELS.index(label)])
            )
            wrong = number == 4 and label in LABELS[:2]
            into = LABELS[5] if wrong else label
            (export / into).mkdir(exist_ok=True)
            (export / into / f"{label}_{number}.jpg").write_bytes(encode_jpeg(picture))
            if number == 0 and label in LABELS[:3]:
                again = Image.fromarray(picture).rotate(
                    TURNED, Image.Resampling.BICUBIC, translate=MOVED, fillcolor=tuple(map(int, picture[2, 2]))
                )
                again.save(export / label / f"{label}_again.jpg", quality=92)
    lab = make_lab(tmp_path_factory.mktemp("lab") / "lab", export, starter)
    once(lab)
    with lab.open_store() as store, store._transaction() as connection:
        connection.execute("UPDATE resemblance SET verdict = 'possible_duplicate' WHERE verdict = 'duplicate'")
        connection.execute("UPDATE cell SET label_source = 'analyser'")
        connection.execute("UPDATE cell SET label_source = 'reviewed' WHERE list_contains(?, label)", [LABELS[-2:]])
    with Desk.open(lab) as desk:
        for pair in [row for row in desk.run("duplicates.list", verdict="duplicate") if row["kind"] == "pair"]:
            list(desk.run("duplicates.confirm", cell=pair["cell_id"]))
            list(desk.run("duplicates.undo", cell=pair["cell_id"]))
        list(desk.run("map.train", rows=6, columns=6, seed=1))
    return lab


@pytest.fixture(scope="module")
def lab(folder: Lab) -> Iterator[Lab]:
    with running_agent(folder):
        yield folder


@pytest.fixture(scope="module")
def reviewer(lab: Lab) -> Browser:
    return let_in(lab, "Åsa Lind", "review")


def ask(lab: Lab, name: str, **parameters: Any) -> list[dict[str, Any]]:
    return list(run(lab, name, **parameters))


def api(browser: Browser, name: str, **parameters: Any) -> Answered:
    path = f"/api/v1/{name.replace('.', '/')}"
    return browser.ask("POST", path, json.dumps(parameters).encode(), Content_Type="application/json")


def rows(answered: Answered) -> list[dict[str, Any]]:
    assert answered.status == 200, answered.text
    return [json.loads(line) for line in answered.text.splitlines()]


# queues


def test_each_queue_says_how_many_are_left_and_leads_to_its_page(lab: Lab, reviewer: Browser) -> None:
    (left,) = ask(lab, "review.queues")
    assert left["duplicates"] == 3
    page = reviewer.get("/review").text
    for queue in ("duplicates", "suspects", "unidentified", "doubtful", "novel"):
        assert f'href="/review/{queue}"' in page
        shown = reviewer.get(f"/review/{queue}")
        assert shown.status == 200
        assert re.search(rf'id="left">{left[queue]}<', shown.text), queue
        assert ask(lab, "review.queues", queue=queue)[0][queue] == left[queue]


def test_a_pair_is_shown_large_decided_and_taken_back(lab: Lab, reviewer: Browser) -> None:
    pair = next(row for row in ask(lab, "duplicates.list", verdict="possible_duplicate") if row["kind"] == "pair")
    page = reviewer.get("/review/duplicates").text
    for cell in (pair["cell_id"], pair["duplicate_of"]):
        assert f"/cell/{cell}/picture?view=cell" in page
        assert reviewer.get(f"/cell/{cell}/picture?view=cell").status == 200
    for decision in ("duplicates.confirm", "duplicates.reject"):
        rows(api(reviewer, decision, cell=pair["cell_id"]))
        assert ask(lab, "review.queues")[0]["duplicates"] == 2
        assert pair["cell_id"] not in reviewer.get("/review/duplicates").text
        rows(api(reviewer, "duplicates.undo", cell=pair["cell_id"]))
        assert ask(lab, "review.queues")[0]["duplicates"] == 3
    history = ask(lab, "duplicates.history", cell=pair["cell_id"])
    assert [one["who"] for one in history][-4:] == ["Åsa Lind"] * 4


def test_a_picture_is_laid_on_the_other_as_it_was_turned(lab: Lab) -> None:
    for pair in ask(lab, "duplicates.list", verdict="possible_duplicate"):
        (laid,) = ask(lab, "duplicates.overlay", cell=pair["cell_id"], other=pair["duplicate_of"])
        again = pair["cell"]["path"].endswith("_again.jpg")
        assert laid["score"] > 0.9
        assert laid["turn"] == pytest.approx(TURNED if again else -TURNED, abs=0.6)
        assert math.hypot(laid["rows"], laid["columns"]) < 8  # both pieces lie around the cell
    cells = list(ledger(lab).values())
    (laid,) = ask(lab, "duplicates.overlay", cell=cells[0]["cell_id"], other=cells[-1]["cell_id"])
    assert laid["score"] is None or laid["score"] > 0.9 or (laid["rows"], laid["columns"], laid["turn"]) == (0, 0, 0)
    with pytest.raises(LabrefError, match="no cell"):
        ask(lab, "duplicates.overlay", cell="0" * 16, other=cells[0]["cell_id"])


@pytest.mark.parametrize("queue", ["suspects", "doubtful"])
@pytest.mark.parametrize("change", [False, True])
def test_a_decided_cell_leaves_its_queue_and_comes_back_when_that_is_undone(
    lab: Lab, reviewer: Browser, queue: str, change: bool
) -> None:
    asked = {"queue": queue, "limit": 50, **({"below": 1.0} if queue == "doubtful" else {})}
    before = ask(lab, "review.cells", **asked)
    assert before, queue
    cell = before[0]
    assert len(cell["neighbours"]) == 8 and sum(cell["weights"].values()) == pytest.approx(1)
    assert (cell["neighbourhood"] is not None) == (queue == "suspects")
    said = reviewer.get(f"/review/{queue}").text
    assert ("about it whose class a person or the analyser gave" in said) == (queue == "suspects")
    assert "The nearest hundred, also those that only the network named" in said
    label = next(name for name in LABELS if name != cell["label"]) if change else None
    (decided,) = rows(api(reviewer, "review.decide", cell=cell["cell_id"], queue=queue, label=label))
    assert (decided["label"], decided["label_source"]) == (label or cell["label"], "reviewed")
    assert cell["cell_id"] not in {row["cell_id"] for row in ask(lab, "review.cells", **asked)}
    (undone,) = rows(api(reviewer, "review.undo", cell=cell["cell_id"], queue=queue))
    assert (undone["label"], undone["label_source"]) == (cell["label"], cell["label_source"])
    # the survey of the map may be behind by twenty times what it takes to make
    wait_until(lambda: ask(lab, "review.cells", **asked)[0]["cell_id"] == cell["cell_id"])
    refused = api(reviewer, "review.undo", cell=cell["cell_id"], queue=queue)
    assert refused.status == 400 and "nothing to take back" in refused.text


def test_the_networks_class_is_withheld_in_a_queue_as_on_the_cells_page(lab: Lab, reviewer: Browser) -> None:
    every = ask(lab, "review.cells", queue="doubtful", limit=50, below=1.0)
    for row in every[:: max(1, len(every) // 8)]:
        (shown,) = ask(lab, "cell.show", cell=row["cell_id"])
        assert row["because"] == shown["prediction"]["because"]
    assert {row["because"] for row in every} >= {None, "neighbours"}
    first = ask(lab, "review.cells", queue="doubtful", limit=1)[0]
    page = reviewer.get("/review/doubtful").text
    beside = page.partition('id="neighbours"')[2].partition("</ol>")[0]
    assert beside.count("✓") == sum(one["label_source"] == "reviewed" for one in first["neighbours"])
    said = re.search(r'id="why"[^>]*>(.*?)</p>', page, re.DOTALL)
    assert said is not None
    if first["because"]:
        assert "class is withheld: " in said[1] and first["predicted"] not in said[1]
    else:
        assert f"The network says {first['predicted']}, with" in said[1]


def test_doubtful_cells_come_in_order_in_parts_and_none_that_was_reviewed(lab: Lab) -> None:
    every = ask(lab, "review.cells", queue="doubtful", limit=50, below=1.0)
    assert [row["probability"] for row in every] == sorted(row["probability"] for row in every)
    assert "reviewed" not in {row["label_source"] for row in every}
    few = ask(lab, "review.cells", queue="doubtful", limit=3, below=1.0)
    assert [row["cell_id"] for row in few] == [row["cell_id"] for row in every[:3]]
    parts: list[str] = []
    while part := ask(lab, "review.cells", queue="doubtful", limit=40, below=1.0, leave_out=parts):
        parts += [row["cell_id"] for row in part]
    assert parts[:50] == [row["cell_id"] for row in every]
    assert len(parts) == len(set(parts)) == ask(lab, "review.queues", queue="doubtful", below=1.0)[0]["doubtful"]


def test_a_label_that_somebody_gave_since_stays_when_an_older_decision_is_undone(lab: Lab, reviewer: Browser) -> None:
    cell = ask(lab, "review.cells", queue="doubtful", below=1.0)[-1]
    rows(api(reviewer, "review.decide", cell=cell["cell_id"], queue="doubtful", label=None))
    other = next(name for name in LABELS if name != cell["label"])
    ask(lab, "label.set", cell=cell["cell_id"], label=other, who="B")
    refused = api(reviewer, "review.undo", cell=cell["cell_id"], queue="doubtful")
    assert refused.status == 400 and other in refused.text
    ask(lab, "label.undo", cell=cell["cell_id"])
    rows(api(reviewer, "review.undo", cell=cell["cell_id"], queue="doubtful"))


# two people at once


def history(lab: Lab, cell: str) -> list[tuple[str | None, str]]:
    return [(change["who"], change["label"]) for change in ask(lab, "label.history", cell=cell)[0]["changes"]]


def refused(name: str, lab: Lab, match: str, **parameters: Any) -> None:
    with pytest.raises(LabrefError, match=match):
        ask(lab, name, **parameters)


def test_nobody_confirms_or_overwrites_a_class_that_they_did_not_see(lab: Lab) -> None:
    row = ask(lab, "review.cells", queue="doubtful", below=1.0)[-1]
    cell, seen = row["cell_id"], row["label"]
    new, third = [name for name in LABELS if name != seen][:2]
    ask(lab, "review.decide", cell=cell, queue="doubtful", label=new, seen=seen, who="A")
    told = history(lab, cell)
    for label in (None, third):
        refused(
            "review.decide", lab, f"{new}' by A by now", cell=cell, queue="doubtful", label=label, seen=seen, who="B"
        )
    refused("label.set", lab, f"{new}' by A by now", cell=cell, label=third, seen=seen, who="B")
    assert history(lab, cell) == told
    (given,) = ask(lab, "label.set", cell=cell, label=third, seen=new, who="B")
    assert (given["previous"], given["outcome"]) == (new, "changed")
    for who in ("B", "A"):
        ask(lab, "label.undo", cell=cell, label=third if who == "B" else new, who=who)
    assert ask(lab, "label.history", cell=cell)[0]["label"] == seen


def test_undo_takes_back_what_one_did_oneself_not_what_others_said_since(lab: Lab) -> None:
    row = ask(lab, "review.cells", queue="suspects")[-1]
    cell, new = row["cell_id"], next(name for name in LABELS if name != row["label"])
    ask(lab, "review.decide", cell=cell, queue="suspects", label=new, who="A")
    ask(lab, "label.set", cell=cell, label=new, who="B")  # confirms it
    told = history(lab, cell)
    refused("review.undo", lab, "B gave or confirmed", cell=cell, queue="suspects", who="A")
    refused("label.undo", lab, "B gave or confirmed", cell=cell, label=new, who="A")
    assert history(lab, cell) == told
    ask(lab, "label.undo", cell=cell, label=new, who="B")
    ask(lab, "review.decide", cell=cell, queue="suspects", who="B")
    refused("review.undo", lab, "B decided", cell=cell, queue="suspects", who="A")
    ask(lab, "review.undo", cell=cell, queue="suspects", who="B")
    ask(lab, "label.undo", cell=cell, who="whoever")  # the last of all, as the command does
    ask(lab, "label.undo", cell=cell, label=new, who="A")
    (now,) = ask(lab, "label.history", cell=cell)
    assert (now["label"], now["label_source"]) == (row["label"], row["label_source"])


def test_two_people_at_one_pair_do_not_undo_each_other(lab: Lab) -> None:
    pair = next(row for row in ask(lab, "duplicates.list", verdict="possible_duplicate") if row["kind"] == "pair")
    cell, other = pair["cell_id"], pair["duplicate_of"]
    ask(lab, "duplicates.confirm", cell=cell, undecided=True, who="A")
    for name in ("duplicates.reject", "duplicates.confirm"):
        refused(name, lab, r"by A \(confirmed\)", cell=cell, undecided=True, who="B")
    refused("duplicates.undo", lab, "A decided", cell=cell, of=other, own=True, who="B")
    third = next(row["cell_id"] for row in ask(lab, "ledger") if row["cell_id"] not in (None, cell, other))
    refused("duplicates.undo", lab, "nobody has decided", cell=cell, of=third, own=True)
    ask(lab, "duplicates.reject", cell=cell, who="B")  # knowingly
    refused("duplicates.undo", lab, "B decided", cell=cell, of=other, own=True, who="A")
    assert [one["who"] for one in ask(lab, "duplicates.history", cell=cell)][-2:] == ["A", "B"]
    ask(lab, "duplicates.undo", cell=cell, of=other, own=True, who="B")
    assert ask(lab, "review.queues")[0]["duplicates"] == 3


def test_a_cell_is_novel_where_nothing_resembles_it(
    lab: Lab, reviewer: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ask(lab, "review.cells", queue="novel", limit=50) == [
        row for row in ask(lab, "review.cells", queue="novel", limit=50) if row["is_novel"]
    ]


@pytest.mark.parametrize("novel", [0, 3, 7, 40])
def test_novel_cells_are_looked_for_beyond_the_first_step_until_one_has_none(
    monkeypatch: pytest.MonkeyPatch, novel: int
) -> None:
    cells = [f"{number:016x}" for number in range(40)]
    monkeypatch.setattr(review, "_farthest", lambda *_: (cells[at : at + 3] for at in range(0, 40, 3)))
    asked: list[str] = []

    def novel_of(store: Any, bundle: Any, step: list[str]) -> list[str]:
        asked.extend(step)
        return [one for one in step if int(one, 16) < novel]

    monkeypatch.setattr(review, "_novel_of", novel_of)
    assert review._novel(SimpleNamespace(store=None), None) == cells[:novel]  # type: ignore[arg-type]
    assert len(asked) == min(40, 3 * (-(-novel // 3) + 1)), "and no farther"
    monkeypatch.setattr(review, "_MOST_NOVEL", 5)
    assert len(review._novel(SimpleNamespace(store=None), None)) == min(novel, 5)  # type: ignore[arg-type]


def test_a_viewer_decides_nothing(lab: Lab) -> None:
    viewer = let_in(lab, "Viewer", "view")
    assert 'data-do="Y"' not in viewer.get("/review/duplicates").text
    cell = ask(lab, "review.cells", queue="doubtful", below=1.0)[0]["cell_id"]
    for name in ("review.decide", "review.undo"):
        assert api(viewer, name, cell=cell, queue="doubtful").status == 403
    assert api(viewer, "duplicates.confirm", cell=cell).status == 403
    assert api(viewer, "reading.start", title="x").status == 403
    assert api(viewer, "reading.report", reading=1).status == 403
    assert api(viewer, "reading.cell", reading=1, task=0, arm="none", part=0).status == 403
    assert viewer.post("/reading", {"title": "x"}).status == 403
    assert viewer.get("/reading/1/report").status == 403


# readings


def start(lab: Lab, **more: Any) -> int:
    sources = ["reviewed", "analyser"]
    row = ask(lab, "reading.start", **({"title": "T", "n": 16, "sources": sources, "who": "A"} | more))[-1]
    return int(row["reading"])


def test_a_reading_is_balanced_drawn_by_its_seed_and_read_in_each_arm_once(lab: Lab) -> None:
    numbers = [start(lab, seed=seed, arms=["none", "latent", "map"]) for seed in (5, 5, 6)]
    orders = []
    drawn = []
    for number in numbers:
        tasks = ask_all(lab, number, "Reader")
        orders.append(tasks)
        cells = {task: shown(lab, number, task, "none") for task, _ in tasks}
        drawn.append([cells[task] for task in sorted(cells)])
        assert len(tasks) == 48 and len(set(tasks)) == 48
        assert {task for task, _ in tasks[:16]} == set(range(16)), "no cell comes again before all have been shown"
        first = Counter(arm for _, arm in tasks[:16])
        assert max(first.values()) - min(first.values()) <= 1
    assert drawn[0] == drawn[1] != drawn[2]
    assert set(Counter(label for label, _ in labelled(lab, drawn[0]).values()).values()) == {2}, "two of each class"
    assert ask_all(lab, numbers[0], "Reader") == orders[0] != ask_all(lab, numbers[0], "Another")


def ask_all(lab: Lab, number: int, who: str) -> list[tuple[int, str]]:
    """The whole order in which a reader is asked: as if all were answered one after the other."""
    from labref.operations.reading import _order

    with Desk.open(lab) as desk:
        (one,) = [row for row in desk.run("reading.list") if row["reading"] == number]
    found: list[tuple[int, str]] = []
    ahead = ask(lab, "reading.next", reading=number, who=who, limit=10)
    order = _order(_Like(number, one), who)  # type: ignore[arg-type]
    found = [(row["task"], row["arm"]) for row in ahead]
    assert order[: len(found)] == found
    return order


class _Like:
    def __init__(self, number: int, row: dict[str, Any]) -> None:
        self.number, self.arms, self.seed, self.tasks = number, tuple(row["arms"]), row["seed"], row["cells"]


def shown(lab: Lab, number: int, task: int, arm: str, part: int = 0) -> str:
    return str(ask(lab, "reading.cell", reading=number, task=task, arm=arm, part=part)[0]["cell_id"])


def labelled(lab: Lab, cells: list[str]) -> dict[str, tuple[str, str]]:
    by_cell = {row["cell_id"]: row for row in ledger(lab).values()}
    found = {}
    for cell in cells:
        (history,) = ask(lab, "label.history", cell=cell)
        found[cell] = (history["label"], by_cell[cell]["path"])
    return found


def test_nothing_that_a_reader_gets_names_the_cell_or_its_class(lab: Lab) -> None:
    number = start(lab, seed=8)
    reader = let_in(lab, "Blind", "view")
    page = reader.get(f"/reading/{number}")
    (task,) = rows(api(reader, "reading.next", reading=number))
    cell = shown(lab, number, task["task"], task["arm"])
    (label, path) = labelled(lab, [cell])[cell]
    picture = reader.get(f"/reading/{number}/picture/{task['task']}/{task['arm']}/0")
    assert picture.status == 200 and Image.open(io.BytesIO(picture.body)).size == (256, 256)
    answered = rows(
        api(reader, "reading.answer", reading=number, task=task["task"], arm=task["arm"], choice=LABELS[0], seconds=2)
    )
    for text in (page.text, json.dumps(task), json.dumps(answered), str(picture.headers), str(page.headers)):
        for secret in (cell, Path(path).name, path, "predicted"):
            assert secret not in text, secret
    # the class stands in the page only where every class does: among the choices, or beside a reference
    inside = re.sub(
        r'<div class="choices".*?</div>|<ol class="references".*?</ol>|<script type="application/json".*?</script>',
        "",
        page.text,
        flags=re.S,
    )
    assert label not in inside
    assert api(reader, "label.history", cell=str(task["task"])).status == 400
    (unread,) = [row for row in rows(api(reader, "reading.list")) if row["reading"] == number]
    assert unread["done"] == 1


def test_references_are_eight_and_no_picture_of_the_cell_itself(lab: Lab) -> None:
    pairs = {row["cell_id"]: row["duplicate_of"] for row in ask(lab, "duplicates.list", verdict="possible_duplicate")}
    number = start(lab, n=40, seed=3, arms=["latent", "none"])
    seen = 0
    for row in ask(lab, "reading.next", reading=number, who="X", limit=10):
        cell = shown(lab, number, row["task"], row["arm"])
        beside = [shown(lab, number, row["task"], row["arm"], part["part"]) for part in row["parts"]]
        assert len(beside) == (8 if row["arm"] == "latent" else 0) and cell not in beside
        assert not {pairs.get(cell)} & set(beside)
        assert not [one for one in beside if one in pairs], "possible duplicates are withheld"
        reviewed = [label in LABELS[-2:] for label, _ in labelled(lab, beside).values()] if beside else []
        assert [part["reviewed"] for part in row["parts"]] == reviewed
        seen += bool(beside)
    assert seen >= 3


def test_answers_are_kept_by_person_resumed_and_taken_back(lab: Lab) -> None:
    number = start(lab, seed=9)
    one, other = let_in(lab, "One", "view"), let_in(lab, "Other", "view")
    first = rows(api(one, "reading.next", reading=number, limit=6))
    for row in first[:5]:
        rows(
            api(one, "reading.answer", reading=number, task=row["task"], arm=row["arm"], choice=LABELS[1], seconds=1.5)
        )
    (resumed,) = rows(api(one, "reading.next", reading=number))
    assert (resumed["done"], resumed["task"], resumed["arm"]) == (5, first[5]["task"], first[5]["arm"])
    assert rows(api(other, "reading.next", reading=number))[0]["done"] == 0
    again = {"reading": number, "task": first[0]["task"], "arm": first[0]["arm"]}
    assert rows(api(one, "reading.answer", **again, choice=LABELS[1]))[0]["done"] == 5
    refused = api(one, "reading.answer", **again, choice=LABELS[2])
    assert refused.status == 400 and "take that back first" in refused.text
    (undone,) = rows(api(one, "reading.undo", reading=number))
    assert (undone["task"], undone["arm"], undone["done"]) == (first[4]["task"], first[4]["arm"], 4)
    assert rows(api(one, "reading.next", reading=number))[0]["task"] == first[4]["task"]
    assert "4 of 32" in one.get("/reading").text
    assert api(other, "reading.undo", reading=number).status == 400
    for wrong in ({"choice": "no such class"}, {"task": 99}, {"arm": "map"}, {"seconds": -1}, {"seconds": 1e9}):
        assert api(other, "reading.answer", **(again | {"choice": LABELS[0]} | wrong)).status in (400, 422), wrong
    ask(lab, "reading.end", reading=number)
    ended = api(other, "reading.answer", **again, choice=LABELS[0])
    assert ended.status == 400 and "ended" in ended.text
    ask(lab, "reading.end", reading=number, again=True)
    # nobody answers for somebody else
    rows(api(other, "reading.answer", **again, choice=LABELS[0], who="One"))
    assert next(row for row in ask(lab, "reading.list") if row["reading"] == number)["readers"] == {
        "One": 4,
        "Other": 1,
    }


def test_the_report_has_accuracy_time_agreement_and_what_references_change(lab: Lab, reviewer: Browser) -> None:
    number = start(lab, seed=10, title="Report <b>")
    order = ask_all(lab, number, "A")
    truth = {task: labelled(lab, [shown(lab, number, task, "none")]) for task in range(16)}
    label = {task: next(iter(found.values()))[0] for task, found in truth.items()}

    def say(who: str, wrong: set[tuple[int, str]], unsaid: int | None = None) -> None:
        for task, arm in order:
            said = None if task == unsaid else LABELS[0] if label[task] != LABELS[0] else LABELS[1]
            choice = said if (task, arm) in wrong or task == unsaid else label[task]
            seconds = 2.0 if arm == "none" else 3.5
            ask(lab, "reading.answer", reading=number, task=task, arm=arm, choice=choice, seconds=seconds, who=who)

    say("A", {(task, "none") for task in range(8)})
    say("B", {(task, "none") for task in range(4)}, unsaid=15)
    report = ask(lab, "reading.report", reading=number)
    accuracy = {(row["person"], row["arm"]): row for row in report if row["about"] == "accuracy"}
    wilson = scipy.stats.binomtest(8, 16).proportion_ci(method="wilson")
    assert accuracy["A", "none"]["reviewed"] == pytest.approx(
        {"value": 0.5, "low": wilson.low, "high": wilson.high, "n": 16}
    )
    assert accuracy["A", "latent"]["reviewed"]["value"] == 1
    assert (accuracy["B", "latent"]["reviewed"]["value"], accuracy["B", "latent"]["unsaid"]) == (15 / 16, 1)
    together = accuracy[None, "none"]["reviewed"]
    assert together["value"] == pytest.approx(19 / 32) and together["low"] < 19 / 32 < together["high"]
    assert accuracy["A", "latent"]["seconds"]["value"] == 3.5
    (change,) = [row for row in report if row["about"] == "difference" and row["person"] == "A"]
    assert (change["arm"], change["base"], change["better"], change["worse"]) == ("latent", "none", 8, 0)
    assert change["reviewed"]["value"] == 0.5 and change["reviewed"]["low"] > 0.2
    assert change["p"] == pytest.approx(2 / 2**8) and change["seconds"]["value"] == pytest.approx(1.5)
    (kappa,) = [row for row in report if row["about"] == "agreement" and row["arm"] == "latent"]
    assert kappa["kind"] == "cohen" and kappa["agreed"]["value"] == 15 / 16 and 0.8 < kappa["kappa"]["value"] < 1
    page = reviewer.get(f"/reading/{number}/report")
    assert page.status == 200 and "50.0\u00a0%" in page.text and "<b>" not in page.text
    for task, arm in order:
        seconds = 2.0 if arm == "none" else 1.98
        ask(lab, "reading.answer", reading=number, task=task, arm=arm, choice=label[task], seconds=seconds, who="C")
    assert not re.search(r"[>\s][-−]0(.0+)?[\s<]", reviewer.get(f"/reading/{number}/report").text)
    ask(lab, "reading.undo", reading=number, who="A")
    last = order[-1]
    ask(lab, "reading.answer", reading=number, task=last[0], arm=last[1], choice=label[last[0]], seconds=30, who="A")
    (twice,) = [
        row
        for row in ask(lab, "reading.report", reading=number)
        if row["about"] == "difference" and row["person"] == "A"
    ]
    took = 30 / 16 if last[1] == "latent" else -30 / 16
    assert twice["seconds"]["value"] == pytest.approx(1.5 + took), "the seconds of an answer taken back count"


def test_triplets_are_read_by_training_as_they_are_exported(lab: Lab, reviewer: Browser, tmp_path: Path) -> None:
    number = start(lab, kind="triplets", n=24, seed=2)
    for who, choices in (("Anna", "1201"), ("Oscar", "1102")):
        for choice in choices:
            (task,) = ask(lab, "reading.next", reading=number, who=who)
            assert [part["label"] for part in task["parts"]] == [None, None]
            for wrong in ("3", LABELS[0], None):
                with pytest.raises(LabrefError):
                    ask(
                        lab, "reading.answer", reading=number, task=task["task"], arm=task["arm"], choice=wrong, who=who
                    )
            ask(lab, "reading.answer", reading=number, task=task["task"], arm=task["arm"], choice=choice, who=who)
        assert ask(lab, "reading.next", reading=number, who=who)[0]["done"] == 4
    drawn, said = reviewer.get(f"/reading/{number}/set.json"), reviewer.get(f"/reading/{number}/votes.csv")
    (tmp_path / "set.json").write_bytes(drawn.body)
    (tmp_path / "votes.csv").write_bytes(said.body)
    found = TripletSet.load(tmp_path / "set.json")
    assert found.kind == "human" and 16 <= len(found.triplets) <= 24
    assert {one.draw for one in found.triplets} <= {"close-close", "close-class", "close-random"}
    for one in found.triplets:
        three = [one.reference, one.alternative_1, one.alternative_2]
        assert len(set(three)) == 3
        assert one.same_class == (len({path.split("/")[0] for path in three}) == 1)
    votes = read_votes([tmp_path / "votes.csv"], found)
    assert sorted(Counter(c for of in votes.values() for c in of.values()).items()) == [(0, 2), (1, 4), (2, 2)]
    assert {person for of in votes.values() for person in of} == {"Anna", "Oscar"}
    judged(found, votes, people=2, agree=2)
    assert {row["person"] for row in csv.DictReader(io.StringIO(said.text))} == {"Anna", "Oscar"}
    with pytest.raises(LabrefError, match="triplets"):
        ask(lab, "reading.report", reading=number)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"title": " "}, "title"),
        ({"title": "a\u202eb"}, "title"),
        ({"n": 0}, "n"),
        ({"n": 5001}, "n"),
        ({"sources": ["predicted"]}, "no cell"),
        ({"arms": ["som"]}, "arms"),
    ],
)
def test_a_reading_that_cannot_be_drawn_says_why_and_is_not_there(lab: Lab, more: dict[str, Any], message: str) -> None:
    before = len(ask(lab, "reading.list"))
    with pytest.raises(LabrefError, match=message):
        start(lab, **more)
    assert len(ask(lab, "reading.list")) == before


def test_a_form_starts_a_reading_and_what_is_wrong_with_it_is_said_there(lab: Lab, reviewer: Browser) -> None:
    made = reviewer.post("/reading", {"title": "By <form>", "n": "8", "sources": "analyser", "arms": "none"})
    assert (made.status, made.headers["location"]) == (303, "/reading")
    page = reviewer.get("/reading").text
    assert "By &lt;form&gt;" in page
    wrong = reviewer.post("/reading", {"title": "x", "n": "many"})
    assert wrong.status == 400 and "whole number" in wrong.text
    for address in (
        "/reading/none",
        "/reading/999",
        "/reading/999/report",
        "/reading/999/votes.csv",
        "/reading/1/picture/0/none/8",
    ):
        assert reviewer.get(address).status == 404, address
    for address in ("/reading/1/picture/0/none/9", "/reading/1/picture/0/..%2F/0"):
        assert reviewer.get(address).status in (400, 404), address


# figures


def test_kappa_is_that_of_the_textbook() -> None:
    # Cohen's own kind of example: 50 cases, 20 yes-yes, 15 no-no, 5 and 10 apart
    first = ["y"] * 25 + ["n"] * 25
    second = ["y"] * 20 + ["n"] * 5 + ["y"] * 10 + ["n"] * 15
    found = agreement.cohen(first, second)
    assert found.value == pytest.approx(0.4)
    assert found.low is not None and found.high is not None and found.low < 0.4 < found.high
    # Fleiss (1971) as in Wikipedia: 10 subjects, 14 raters, 5 categories
    counts = [
        (0, 0, 0, 0, 14), (0, 2, 6, 4, 2), (0, 0, 3, 5, 6), (0, 3, 9, 2, 0), (2, 2, 8, 1, 1),
        (7, 7, 0, 0, 0), (3, 2, 6, 3, 0), (2, 5, 3, 2, 2), (6, 5, 2, 1, 0), (0, 2, 2, 3, 7),
    ]  # fmt: skip
    said = [[str(name) for name, count in enumerate(row) for _ in range(count)] for row in counts]
    assert agreement.fleiss(said).value == pytest.approx(0.210, abs=5e-4)
    assert agreement.cohen(["a", "a"], ["a", "a"]).value == 1
    assert agreement.cohen([], []).value is agreement.fleiss([]).value is agreement.share(0, 0).value is None
    with pytest.raises(ValueError, match="same number"):
        agreement.fleiss([["a", "b"], ["a"]])


def test_an_interval_over_cells_is_wider_where_the_answers_to_a_cell_belong_together() -> None:
    rng = np.random.default_rng(1)
    of_cells = rng.integers(0, 2, 40).astype(float)
    together = agreement.mean_over_cells({cell: [value] * 5 for cell, value in enumerate(of_cells)})
    apart = agreement.mean_over_cells({(cell, n): [value] for cell, value in enumerate(of_cells) for n in range(5)})
    assert together.value == apart.value
    assert together.low is not None and apart.low is not None and together.high is not None and apart.high is not None
    assert together.high - together.low > 1.7 * (apart.high - apart.low)


# commands


def command(lab: Lab, *words: str, fails: str = "") -> str:
    done = CliRunner().invoke(app, [*words, "--lab", str(lab.folder)], prog_name="labref")
    assert done.exit_code == (1 if fails else 0), done.output
    assert fails in done.output
    return done.stdout


def test_commands_decide_on_the_cells_of_queues_as_the_pages_do(lab: Lab) -> None:
    left = ask(lab, "review.queues")[0]
    assert json.loads(command(lab, "review", "queues", "--json")) == left
    assert f"suspects      {left['suspects']}\n" in command(lab, "review", "queues")
    listed = [json.loads(line) for line in command(lab, "review", "list", "suspects", "--json").splitlines()]
    assert [row["cell_id"] for row in listed] == [row["cell_id"] for row in ask(lab, "review.cells", queue="suspects")]
    first = listed[0]
    assert f"{first['cell_id']}  {first['label']} (" in command(lab, "review", "list", "suspects", "--limit", "1")
    said = command(lab, "review", "decide", "suspects", first["cell_id"], "monocyte", "--who", "C")
    assert said == f"{first['cell_id']}: monocyte (reviewed), was {first['label']}\n"
    assert ask(lab, "label.history", cell=first["cell_id"])[0]["changes"][-1]["who"] == "C"
    command(lab, "review", "undo", "suspects", first["cell_id"], "--who", "C")
    assert ask(lab, "review.queues") == [left]
    command(lab, "review", "undo", "suspects", first["cell_id"], fails="nobody decided on cell")
    assert CliRunner().invoke(app, ["review", "list", "nosuch"]).exit_code == 2


def test_commands_start_end_report_and_export_readings(lab: Lab, tmp_path: Path) -> None:
    words = ("reading", "start", "By command", "--cells", "4", "--shown", "none", "--truth", "analyser", "--who", "C")
    made = json.loads(command(lab, *words, "--json"))
    assert (made["arms"], made["cells"], made["started_by"]) == (["none"], 4, "C")
    number = str(made["reading"])
    assert f"{number}  By command  classes (none), 4 cells, 4 tasks; answered: nobody yet" in command(
        lab, "reading", "list"
    )
    assert command(lab, "reading", "report", number) == "nobody has answered yet\n"
    for row in ask(lab, "reading.next", reading=made["reading"], who="D", limit=4):
        answer = {"task": row["task"], "arm": "none", "choice": LABELS[0], "seconds": 1.0}
        ask(lab, "reading.answer", reading=made["reading"], who="D", **answer)
    assert re.search(r"accuracy +none +D: 4 answers", command(lab, "reading", "report", number))
    rows_ = [json.loads(line) for line in command(lab, "reading", "report", number, "--json").splitlines()]
    assert rows_ == ask(lab, "reading.report", reading=made["reading"])
    assert "ended" in command(lab, "reading", "end", number)
    assert "ended" not in command(lab, "reading", "end", number, "--again")
    words = ("reading", "start", "Triplets", "--kind", "triplets", "--cells", "4", "--truth", "analyser", "--json")
    triplets = str(json.loads(command(lab, *words))["reading"])
    command(lab, "reading", "export", triplets, fails="say with --out into which folder")
    command(lab, "reading", "export", triplets, "--out", str(tmp_path / "out"))
    exported = ask(lab, "reading.triplets", reading=int(triplets))[0]
    assert json.loads((tmp_path / "out" / "set.json").read_text(encoding="utf-8")) == exported["set"]
    assert (tmp_path / "out" / "votes.csv").read_bytes().decode() == exported["votes"]
    command(lab, "reading", "report", "999", fails="there is no reading 999")
    command(lab, "reading", "export", triplets, "--out", str(lab.watched[0] / "x"), fails="export")
