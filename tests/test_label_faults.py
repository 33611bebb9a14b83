"""Lists of labels that are wrong, large or cut off; cells and classes named in ways that could be misunderstood."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
from typer.testing import CliRunner, Result

from labref import failpoints
from labref.agent.moves import Moves
from labref.agent.service import _Agent
from labref.bundles.bundle import Bundle
from labref.cli import app
from labref.errors import AgentError, LabrefError
from labref.export.roots import Roots
from labref.lab import Lab
from labref.lab.log import open_log
from labref.operations import naming
from labref.store import NewCell, Rejected, SeenAgain, Store
from labref.store.duckdb.reviews import Review
from labref.store.memory.books import id_to_int
from labref.web.desk import Desk, ledger_rows
from tests.benchmarks.exports import labref_process
from tests.labs import ledger, make_lab, once, running_agent, wait_until
from tests.stores import BUNDLE, digest_of, new_cell, new_store

COUNT = 12


def filled_with(store: Store, lab: Lab, cells: Sequence[int], **changes: Any) -> list[str]:
    """Store made-up cells of the files `<first watched folder>/P1/<number>.jpg`; their ids."""
    active = store.active_bundle()
    assert active is not None
    (space,) = (bundle for bundle in store.bundles() if bundle.digest == active)
    made = [
        new_cell(
            number,
            **{
                "path": str(lab.watched[0] / "P1" / f"{number}.jpg"),
                "label": "neutrophil",
                "latent": np.full(space.latent_size, number % 100, np.float32),
                "probabilities": np.full(len(space.labels), 1 / len(space.labels), np.float32),
                "fingerprints": (),
            }
            | changes,
        )
        for number in cells
    ]
    for start in range(0, len(made), 1000):
        store.record(made[start : start + 1000], bundle=active)
    return [cell.cell_id for cell in made]


@pytest.fixture(scope="module")
def made(starter: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    for name in ("export", "second"):
        (folder / name / "P1").mkdir(parents=True)
    lab = Lab.create(folder / "lab", [folder / "export", folder / "second"], starter.folder)
    with lab.open_store() as store:
        filled_with(store, lab, range(COUNT))
    return folder


@pytest.fixture
def lab(made: Path, tmp_path: Path) -> Lab:
    """A lab that watches two folders, `export` with twelve cells and `second`."""
    shutil.copytree(made / "lab", tmp_path / "lab")
    return Lab.open(tmp_path / "lab")


@pytest.fixture
def ids() -> list[str]:
    return [new_cell(number).cell_id for number in range(COUNT)]


def labref(lab: Lab, *words: str) -> Result:
    return CliRunner().invoke(app, ["label", *words, "--lab", str(lab.folder)])


def rows(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


def imported(lab: Lab, text: str | bytes, *words: str) -> Result:
    file = lab.folder / "review.csv"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return labref(lab, "import", str(file), *words)


def labels(lab: Lab) -> dict[str, str]:
    with lab.open_store() as store:
        return store.labels([new_cell(number).cell_id for number in range(COUNT)])


TOMORROW = (datetime.now() + timedelta(days=1)).date().isoformat()
REFUSED: dict[str, tuple[Callable[[list[str]], str | bytes], str]] = {
    "a comma that is not quoted": (
        lambda ids: f"cell_id,label,who,when\n{ids[0]},monocyte,NN,\n{ids[1]},monocyte, reactive,NN,\n",
        ":3: it has 5 values, and the header has 4 columns",
    ),
    "fewer values": (lambda ids: f"cell_id,label,who\n{ids[0]},monocyte\n", ":2: it has 2 values"),
    "a value below no name": (lambda ids: f"cell_id,label,\n{ids[0]},monocyte,NN\n", ":2: it has a value in a column"),
    "a column named twice": (lambda ids: f"cell_id,label,Label\n{ids[0]},monocyte,blast\n", "names the column label twice"),
    "two classes of one cell": (
        lambda ids: f"cell_id,label\n{ids[0]},monocyte\n{ids[1]},monocyte\n{ids[0]},basophil\n",
        ":4: cell {0} is called 'basophil' here and 'monocyte' in line 2",
    ),
    "two classes of one cell, by id and by path": (
        lambda ids: f"cell_id,path,label\n{ids[0]},,monocyte\n,P1/0.jpg,basophil\n",
        ":3: cell {0} is called 'basophil'",
    ),
    "two classes of one cell, one on a day that there is not": (
        lambda ids: f"cell_id,label,when\n{ids[1]},monocyte,\n{ids[0]},monocyte,2026-02-30\n{ids[0]},basophil,2026-02-28\n",
        ":4: cell {0} is called 'basophil' here and 'monocyte' in line 3",
    ),
    "two classes of one cell, one of them none": (
        lambda ids: f"cell_id,label\n{ids[0]},basophil\n{ids[0]},basophagus\n",
        ":3: cell {0} is called 'basophagus' here and 'basophil' in line 2",
    ),
    "two classes of one cell, both of no use": (
        lambda ids: f"cell_id,label,when\n{ids[0]},basophagus,\n{ids[1]},blast,\n{ids[0]},blast,1066-10-14\n",
        ":4: cell {0} is called 'blast'",
    ),
    "two classes of one cell, one row with the path of none": (
        lambda ids: f"cell_id,path,label\n{ids[0]},,monocyte\n{ids[0]},P1/none.jpg,blast\n",
        ":3: cell {0} is called 'blast'",
    ),
    "two classes of a cell that is not there": (
        lambda ids: "path,label\nP1/0.jpg,monocyte\nP1/none.jpg,monocyte\nP1/none.jpg,blast\n",
        ":4: cell P1/none.jpg is called 'blast'",
    ),
    "a name that is a letter": (lambda ids: f"cell_id,label,who\n{ids[0]},monocyte,{'A' * 201}\n", ":2: who has at most 200"),
    "an id and a path that are two cells": (
        lambda ids: f"cell_id,path,label\n{ids[0]},P1/1.jpg,monocyte\n",
        ":2: cell_id and path are of two cells",
    ),
    "a review in the future": (
        lambda ids: f"cell_id,label,when\n{ids[0]},monocyte,\n{ids[1]},monocyte,{TOMORROW}T12:00\n",
        ":3: the review of",
    ),
    "a review in the last year there is": (lambda ids: f"cell_id,label,when\n{ids[0]},monocyte,9999-12-31\n", ":2: the review of"),
    "no reviewer": (lambda ids: f"cell_id,label,who\n{ids[0]},monocyte,NN\n{ids[1]},monocyte, \n", ":3: it names no reviewer"),
    "a line break in a label": (lambda ids: f'cell_id,label\n{ids[0]},"mono\ncyte"\n', ":2: label 'mono\\ncyte' holds the character U+000A"),
    "an escape code in a name": (lambda ids: f"cell_id,label,who\n{ids[0]},monocyte,\x1b[31mA\n", ":2: who"),
    "a letter turned round": (lambda ids: f"cell_id,label\n{ids[0]},\u202emonocyte\n", ":2: label"),
    "UTF-16": (lambda ids: f"cell_id\tlabel\n{ids[0]}\tmonocyte\n".encode("utf-16"), "is UTF-16"),
    "UTF-16 without a mark": (lambda ids: f"cell_id\tlabel\n{ids[0]}\tmonocyte\n".encode("utf-16-le"), "is UTF-16"),
    "Latin-1": (
        lambda ids: f"cell_id,label,who\n{ids[0]},monocyte,Söderström\n".encode("latin-1"),
        "line 2 holds the byte 0xf6, as a file in Latin-1",
    ),
    "a letter that was lost": (lambda ids: f"cell_id,label,who\n{ids[0]},monocyte,S\ufffdderstr\n", "line 2: a letter was lost"),
    "a workbook": (lambda ids: b"PK\x03\x04\x14\0\0\0", "is a workbook of Excel"),
    "a quotation mark that is not closed": (lambda ids: f'cell_id,label\n{ids[0]},"monocyte\n{ids[1]},blast\n', "is refused, line"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_a_list_that_cannot_be_trusted_is_refused_and_nothing_of_it_is_written(
    lab: Lab, ids: list[str], kind: str
) -> None:
    text, told = REFUSED[kind]
    before = labels(lab)
    refused = imported(lab, text(ids))
    assert refused.exit_code == 1 and not isinstance(refused.exception, UnicodeError | ValueError)
    assert told.format(*ids) in refused.output, refused.output
    assert "othing of it was written" in refused.output or "othing was written" in refused.output
    assert labels(lab) == before
    assert rows(labref(lab, "imports", "--json")) == []


def test_a_list_from_excel_is_read(lab: Lab, ids: list[str]) -> None:
    """Semicolons, the line that says so, a mark of the encoding, empty columns at the end, lines of nothing."""
    text = f"\ufeffsep=;\r\nCell_ID;Label;;\r\n{ids[0]};Monocytes;;\r\n;;;;;\r\n{ids[0]};monocyte;;\r\n"
    done = imported(lab, text, "--json")
    assert done.exit_code == 0 and rows(done)[-1]["changed"] == 1
    assert labels(lab)[ids[0]] == "monocyte"
    assert "columns date are not used" in imported(lab, f"cell_id,label,date\n{ids[0]},monocyte,2026\n").output


def test_what_is_wrong_with_one_row_refuses_that_row(lab: Lab, ids: list[str]) -> None:
    lines = [
        f"{ids[0]},,monocyte,0001-01-01",
        f"{ids[1]},,monocyte,1899-12-30",
        f",{'x' * 5000}.jpg,monocyte,",
        ",~nobody/x.jpg,monocyte,",
        ",../../../../../../etc/passwd,monocyte,",
        f"{ids[2]},,monocyte,2026-02-30",
        f"{ids[3]},,monocyte,2026-02-28",
    ]
    done = imported(lab, "cell_id,path,label,when\n" + "\n".join(lines) + "\n", "--json")
    assert done.exit_code == 1
    *problems, summary = rows(done)
    assert [problem["line"] for problem in problems] == [2, 3, 4, 5, 6, 7]
    assert (summary["changed"], summary["unknown"]) == (1, 6)
    # the same over HTTP, where nobody has read the text before
    with Desk.open(lab) as desk:
        asked = [{"line": 1, "path": "\0", "label": "blast"}, {"line": 2, "cell_id": ids[4], "label": "blast"}]
        *_, summary = desk.run("label.import", rows=asked)
    assert (summary["changed"], summary["unknown"]) == (1, 1)


def test_clocks_may_differ_a_little(lab: Lab, ids: list[str]) -> None:
    for cell, minutes, changed in ((ids[0], 8, True), (ids[1], 13, False)):
        soon = (datetime.now(UTC) + timedelta(minutes=minutes)).isoformat()
        imported(lab, f"cell_id,label,when\n{cell},monocyte,{soon}\n")
        assert (labels(lab)[cell] == "monocyte") is changed


@pytest.mark.parametrize(
    ("who", "told"),
    [
        ("  ", "who is empty"),
        ("A\x07", "U+0007"),
        ("\u202eA", "U+202E"),
        ("A" * 100_001, "at most 200 characters, this one has 100001"),
    ],
)
def test_who_says_something_is_a_name_that_can_be_read(lab: Lab, ids: list[str], who: str, told: str) -> None:
    """In the command, and as the agent is asked over HTTP."""
    words = ("label set", "monocyte"), ("duplicates confirm",), ("duplicates reject",), ("duplicates undo",)
    for verb, *rest in words:
        refused = CliRunner().invoke(app, [*verb.split(), ids[0], *rest, "--who", who, "--lab", str(lab.folder)])
        assert refused.exit_code == 1 and told in refused.output and len(refused.output) < 1000, verb
    refused = imported(lab, f"cell_id,label\n{ids[0]},monocyte\n", "--who", who)
    assert refused.exit_code == 1 and told in refused.output
    asked: dict[str, dict[str, Any]] = {
        "label.set": {"cell": ids[0], "label": "monocyte", "who": who},
        "label.import": {"rows": [{"line": 7, "cell_id": ids[0], "label": "monocyte", "who": who}]},
        "duplicates.confirm": {"cell": ids[1], "of": ids[0], "who": who},
        "duplicates.reject": {"cell": ids[1], "who": who},
        "duplicates.undo": {"cell": ids[1], "who": who},
    }
    with Desk.open(lab) as desk:
        for name, parameters in asked.items():
            said = ""
            with pytest.raises(LabrefError) as error:
                for row in desk.run(name, **parameters):
                    said += row.get("problem", "")
            assert told in said + str(error.value) and len(said + str(error.value)) < 1000, name
    assert labels(lab)[ids[0]] == "neutrophil"


def test_no_new_class_looks_like_one_that_is_there(lab: Lab, ids: list[str]) -> None:
    alike = [
        "\uff4donocyte",
        "mono-cyte",
        "mono cyte",
        "rnonocyte",
        "m\xf3nocyte",
        "m\u03bfn\u03bfcyte",
        "\u1d0d\u1d0fnocyte",
    ]
    for label in alike:
        done = labref(lab, "set", ids[0], label, "--new")
        assert done.exit_code == 1 and "which looks the same" in done.output and "'monocyte'" in done.output, label
    for label in ["m\u043enocyte", "\u0432\u0430sophil", "b\u0561sophil"]:  # Cyrillic, Armenian
        done = labref(lab, "set", ids[0], label, "--new")
        assert done.exit_code == 1 and "letters of two scripts" in done.output, label
    for label in [
        "\u03b3\u03b4T cell",
        "\u0431\u0430\u0437\u043e\u0444\u0438\u043b",
        "B-\u043a\u043b\u0435\u0442\u043a\u0430",
        "\u30d0\u30f3\u30c9\u7403",
    ]:
        assert imported(lab, f"cell_id,label\n{ids[0]},{label}\n", "--new", "--dry-run").exit_code == 0, label
    done = imported(
        lab,
        f"cell_id,label\n{ids[0]},Fuss ball\n{ids[1]},fuss_balls\n{ids[2]},\ufb00\n{ids[3]},ff\n",
        "--new",
        "--dry-run",
        "--json",
    )
    assert [problem["line"] for problem in rows(done)[:-1]] == [3, 5]
    assert set(labels(lab).values()) <= {"neutrophil"}


def test_a_name_is_kept_without_space_around_it_and_a_label_can_be_read(lab: Lab, ids: list[str]) -> None:
    assert labref(lab, "set", ids[0], "mono\x1b[0m", "--new").exit_code == 1
    assert labels(lab)[ids[0]] == "neutrophil"
    assert labref(lab, "set", ids[0], "monocyte", "--who", f" {'Å' * 200} ").exit_code == 0
    (row,) = rows(labref(lab, "history", ids[0], "--json"))
    assert [change["who"] for change in row["changes"]] == ["Å" * 200]


# reviews that confirm


@pytest.fixture(scope="module")
def asking(
    made: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Store, Callable[..., dict[str, Any]]]]:
    """The store of a lab, and how to ask for an operation there: its last row. Each test has cells of its own."""
    folder = tmp_path_factory.mktemp("asking") / "lab"
    shutil.copytree(made / "lab", folder)
    lab = Lab.open(folder)
    with lab.open_store() as store:
        desk = Desk(lab, None, store)
        yield store, lambda name, **asked: list(desk.run(name, **asked))[-1]


def reviewed(store: Store, name: str, label: str = "monocyte") -> str:
    """A cell that a file in `Signed slides` calls so."""
    active = store.active_bundle()
    assert active is not None
    (space,) = (bundle for bundle in store.bundles() if bundle.digest == active)
    values = {
        "latent": np.zeros(space.latent_size, np.float32),
        "probabilities": np.full(len(space.labels), 0.1, np.float32),
    }
    path = f"/export/P1/Signed slides/{label}/{name}.jpg"
    cell = new_cell(name, path=path, label=label, label_source="reviewed", fingerprints=(), **values)
    store.record([cell], bundle=active)
    return cell.cell_id


def said_of(store: Store, cell: str) -> list[tuple[str, str, str | None]]:
    """The history of a cell: previous label, label, who."""
    return [(change.previous, change.label, change.who) for change in store.reviews.history(cell)]


def listed_row(cell: str, label: str, who: str | None, when: str | None = None) -> dict[str, Any]:
    return {"line": 2, "cell_id": cell, "label": label, "who": who, "when": when}


@pytest.mark.parametrize("how", ["set", "list", "dated list"])
def test_a_person_who_confirms_a_label_stands_above_files_and_older_lists(
    asking: tuple[Store, Callable[..., dict[str, Any]]], how: str
) -> None:
    store, ask = asking
    cell = reviewed(store, how)
    for who in ("A", "B"):
        if how == "set":
            assert ask("label.set", cell=cell, label="monocyte", who=who)["outcome"] == "same"
        else:
            row = listed_row(cell, "monocyte", who, "2026-03-05" if how == "dated list" else None)
            told = ask("label.import", rows=[row])
            assert (told["same"], told["changed"]) == (1, 0)
    assert said_of(store, cell) == [("monocyte", "monocyte", "A"), ("monocyte", "monocyte", "B")]
    assert ask("label.import", rows=[listed_row(cell, "basophil", "C", "2026-03-01")])["older"] == 1
    found, active = store.cell(cell), store.active_bundle()
    assert found is not None and active is not None
    elsewhere = f"/export/P1/Signed slides/Basophil/{how}.jpg"
    store.record([SeenAgain(elsewhere, 1, 1, found.digest, "basophil", "reviewed", "P1")], bundle=active)
    store.follow({cell: {found.path}})
    moved = store.cell(cell)
    assert moved is not None and (moved.label, moved.path) == ("monocyte", elsewhere)
    assert len(said_of(store, cell)) == 2
    assert ask("label.import", rows=[listed_row(cell, "basophil", "C")])["changed"] == 1


@pytest.mark.parametrize("when", [None, "2026-03-05", "2026-03-05T14:05"])
def test_the_same_list_again_does_not_grow_the_history(
    asking: tuple[Store, Callable[..., dict[str, Any]]], when: str | None
) -> None:
    store, ask = asking
    cell, other, third = (reviewed(store, f"{when} {number}") for number in range(3))
    row, changed = listed_row(cell, "monocyte", "A", when), listed_row(other, "basophil", "A", when)
    for rows in (
        [row, row, changed],
        [row, row, changed],
        [row, listed_row(third, "blast", "A", when)],
        [changed, row],
    ):
        ask("label.import", rows=rows)
    assert said_of(store, cell) == [("monocyte", "monocyte", "A")]
    assert said_of(store, other) == [("monocyte", "basophil", "A")]
    ask("label.import", rows=[listed_row(cell, "monocyte", "B", when)], dry_run=True)
    assert len(said_of(store, cell)) == 1, "a dry run writes nothing"
    ask("label.set", cell=cell, label="monocyte", who="A")
    assert len(said_of(store, cell)) == 2, "a person who says it today says it anew"


def test_a_confirmation_with_an_older_date_is_kept_and_takes_nothing_back(
    asking: tuple[Store, Callable[..., dict[str, Any]]],
) -> None:
    store, ask = asking
    cell = reviewed(store, "older", "blast")

    def dated(label: str, who: str, day: int) -> dict[str, Any]:
        return ask("label.import", rows=[listed_row(cell, label, who, f"2026-03-{day:02d}")])

    assert dated("monocyte", "A", 20)["changed"] == 1
    assert dated("monocyte", "B", 10)["same"] == 1
    assert dated("basophil", "C", 15)["older"] == 1, "B's older review does not make A's older"
    assert [who for *_, who in said_of(store, cell)] == ["A", "B"]
    assert dated("basophil", "C", 25)["changed"] == 1
    assert dated("monocyte", "B", 22)["older"] == 1


# large lists, and lists that are cut off


@pytest.fixture(scope="module")
def made_large(made: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Lab, list[str]]:
    folder = tmp_path_factory.mktemp("large") / "lab"
    shutil.copytree(made / "lab", folder)
    lab = Lab.open(folder)
    with lab.open_store() as store:
        return lab, filled_with(store, lab, range(100, 3100))


@pytest.fixture
def large(lab: Lab, made_large: tuple[Lab, list[str]]) -> list[str]:
    """Three thousand cells more."""
    shutil.copy(made_large[0].store_file, lab.store_file)
    return made_large[1]


def listed(cells: Sequence[str], label: str) -> str:
    return "cell_id,label\n" + "".join(f"{cell},{label}\n" for cell in cells)


def test_a_large_list_is_written_in_parts_and_other_writers_come_between(lab: Lab, large: list[str]) -> None:
    with Desk.open(lab) as desk:
        parts, said = [], []
        asked = [{"line": n, "cell_id": cell, "label": "monocyte"} for n, cell in enumerate(large, 2)]
        for row in desk.run("label.import", rows=asked):
            if "progress" in row and row["progress"]["text"] == "labels written":
                (state,) = desk.run("label.imports")
                parts.append((state["state"], state["done"], row["progress"]["done"]))
                desk.run("label.set", cell=large[0], label="basophil")
            said.append(row)
    assert parts == [("running", n, n) for n in (1000, 2000, 3000)]
    assert said[-1]["changed"] == 3000
    (state,) = rows(labref(lab, "imports", "--json"))
    assert (state["state"], state["done"], state["changed"]) == ("done", 3000, 3000)
    with lab.open_store() as store:
        assert set(store.labels(large).values()) == {"monocyte"}
        (change,) = store.reviews.history(large[7])
        assert (change.label, change.previous) == ("monocyte", "neutrophil")


def test_a_list_that_was_cut_off_says_how_far_it_is_and_can_be_repeated(
    lab: Lab, large: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = lab.folder / "large.csv"
    file.write_text(listed(large, "monocyte"))
    monkeypatch.setenv("LABREF_FAILPOINTS", "label.commit=kill@3")
    killed = labref_process("label", "import", file, "--lab", lab.folder, passed=["LABREF_FAILPOINTS"])
    killed.communicate(timeout=120)
    assert killed.returncode == failpoints.KILLED
    (state,) = rows(labref(lab, "imports", "--json"))
    assert (state["state"], state["rows"], state["done"]) == ("interrupted", 3000, 2000)
    with lab.open_store() as store:
        assert sum(label == "monocyte" for label in store.labels(large).values()) == 2000
    # what somebody said since then is newer than the list
    assert labref(lab, "set", large[0], "basophil").exit_code == 0
    (summary,) = rows(labref(lab, "import", str(file), "--json"))
    assert (summary["changed"], summary["same"], summary["older"]) == (1000, 1999, 1)
    assert [row["state"] for row in rows(labref(lab, "imports", "--json"))] == ["done", "interrupted"]
    with lab.open_store() as store:
        assert store.labels(large[:2]) == {large[0]: "basophil", large[1]: "monocyte"}


def test_a_disk_that_fills_in_between_is_told_with_what_was_written(lab: Lab, large: list[str]) -> None:
    failpoints.arm("label.commit=enospc@2")
    try:
        failed = imported(lab, listed(large, "monocyte"))
    finally:
        failpoints.disarm()
    assert failed.exit_code == 1
    assert "1000 of 3000 rows were written. Import the same list again" in failed.output


def test_a_list_has_a_limit_of_its_own(lab: Lab, ids: list[str]) -> None:
    row = {"line": 2, "cell_id": ids[0], "label": "monocyte"}
    with Desk.open(lab) as desk, pytest.raises(LabrefError, match="at most 200000 entries, not 200001"):
        list(desk.run("label.import", rows=[row] * 200_001))
    assert labels(lab)[ids[0]] == "neutrophil"


def test_a_list_larger_than_an_image_may_be_reaches_the_agent(
    lab: Lab, large: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And an agent that is killed while it writes is no reason to be wrong about what was written."""
    with running_agent(lab, max_file_megabytes=0.05):
        done = imported(lab, listed(large, "monocyte"), "--json")
        assert done.exit_code == 0 and rows(done)[-1]["changed"] == 3000
    monkeypatch.setenv("LABREF_FAILPOINTS", "label.commit=kill@2")
    with running_agent(lab, passed=["LABREF_FAILPOINTS"]) as agent:
        cut = imported(lab, listed(large, "basophil"))
        assert agent.wait(60) == failpoints.KILLED
    assert cut.exit_code == 1 and "1000 of 3000 rows were written" in cut.output


# paths and ids


def two_files(lab: Lab, path: str) -> None:
    """A file of that path in each of the two watched folders."""
    with lab.open_store() as store:
        for number, root in enumerate(lab.watched):
            filled_with(store, lab, [500 + number], path=str(root / path))


@pytest.mark.parametrize("said", ["P9/x.jpg", "./P9/x.jpg", "P1/../P9/x.jpg", "P9//x.jpg"])
def test_a_path_that_two_watched_folders_have_is_refused(lab: Lab, ids: list[str], said: str) -> None:
    two_files(lab, "P9/x.jpg")
    for words in (("set", said, "monocyte"), ("history", said)):
        refused = labref(lab, *words)
        assert refused.exit_code == 1 and "two files have this path" in refused.output
        assert all(str(root / "P9" / "x.jpg") in refused.output for root in lab.watched)
    refused = imported(lab, f"path,label\nP1/0.jpg,monocyte\n{said},monocyte\n")
    assert refused.exit_code == 1 and ":3: two files have this path" in refused.output
    assert labels(lab)[ids[0]] == "neutrophil"
    assert labref(lab, "set", str(lab.watched[1] / "P9" / "x.jpg"), "monocyte").exit_code == 0
    (row,) = rows(labref(lab, "history", str(lab.watched[0] / "P9" / "x.jpg"), "--json"))
    assert row["label"] == "neutrophil"


def test_two_copies_of_one_cell_are_no_question(lab: Lab) -> None:
    with lab.open_store() as store:
        cell = new_cell(0)
        active = store.active_bundle()
        assert active is not None
        store.record([SeenAgain(str(lab.watched[1] / "P1" / "0.jpg"), 1, 1, cell.digest)], bundle=active)
    assert labref(lab, "set", "P1/0.jpg", "monocyte").exit_code == 0


def test_a_path_may_be_written_as_windows_or_another_unicode_form_does(lab: Lab) -> None:
    with lab.open_store() as store:
        (cell,) = filled_with(store, lab, [600], path=str(lab.watched[0] / "P2" / "Bla\u030a.jpg"))
    for said in (
        "P2/Bl\u00e5.jpg",
        "P2\\Bl\u00e5.jpg",
        "P2\\Bla\u030a.jpg",
        str(lab.watched[0] / "P2" / "Bl\u00e5.jpg"),
    ):
        (row,) = rows(labref(lab, "history", said, "--json"))
        assert row["cell_id"] == cell


def test_upper_and_lower_case_are_one_where_the_file_system_says_so(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    assert labref(lab, "history", "p1/0.JPG").exit_code == 1
    monkeypatch.setattr(naming, "_ignores_case", lambda folder: True)
    (row,) = rows(labref(lab, "history", "p1/0.JPG", "--json"))
    assert row["cell_id"] == new_cell(0).cell_id
    two_files(lab, "P9/x.jpg")
    assert "two files have this path" in labref(lab, "history", "p9/X.jpg").output
    with lab.open_store() as store:  # copied from a system where they are two
        filled_with(store, lab, [700], path=str(lab.watched[0] / "p1" / "0.JPG"))
    (row,) = rows(labref(lab, "history", "P1/0.jpg", "--json"))
    assert row["cell_id"] == new_cell(0).cell_id, "a file that is written exactly so comes first"


def test_a_cell_is_named_by_any_beginning_of_its_id_that_no_other_has(lab: Lab, ids: list[str]) -> None:
    for said in (ids[0][:4], ids[0][:9].upper(), ids[0].upper()):
        (row,) = rows(labref(lab, "history", said, "--json"))
        assert row["cell_id"] == ids[0]
    assert labref(lab, "history", ids[0][:3]).exit_code == 1
    twin = ids[0][:8] + "0" * 56
    with lab.open_store() as store:
        filled_with(store, lab, [800], cell_id=twin[:16], digest=twin, path="/elsewhere.jpg")
    refused = labref(lab, "set", ids[0][:6], "monocyte")
    assert refused.exit_code == 1 and ids[0] in refused.output and twin[:16] in refused.output
    refused = imported(lab, f"cell_id,label\n{ids[1]},monocyte\n{ids[0][:8]},monocyte\n")
    assert refused.exit_code == 1 and ":3: several cells' ids begin with" in refused.output
    assert set(labels(lab).values()) == {"neutrophil"}
    assert imported(lab, f"cell_id,label\n{ids[1][:6]},monocyte\n{ids[0]},monocyte\n").exit_code == 0


def test_duplicates_and_images_take_the_beginning_of_an_id_too(lab: Lab, ids: list[str]) -> None:
    runner = CliRunner()
    words = ["duplicates", "confirm", ids[1][:6], "--of", ids[0][:6], "--lab", str(lab.folder), "--json"]
    done = runner.invoke(app, words)
    assert done.exit_code == 0, done.output
    assert {rows(done)[0]["cell_id"], rows(done)[0]["duplicate_of"]} == {ids[0], ids[1]}
    for verb in ("history", "undo"):
        assert runner.invoke(app, ["duplicates", verb, ids[1][:6], "--lab", str(lab.folder)]).exit_code == 0
    assert runner.invoke(app, ["duplicates", "reject", "ffff", "--lab", str(lab.folder)]).exit_code == 1


# classes


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("baso", "did you mean 'basophil'?"),
        ("lymph", "did you mean 'lymphocyte'?"),
        ("eos", "did you mean 'eosinophil'?"),
        ("segs", "did you mean 'neutrophil'?"),
        ("monocytt", "did you mean 'monocyte'?"),
        ("moncoyte", "did you mean 'monocyte'?"),
        ("b", "did you mean one of"),
        ("blaso", "did you mean one of 'basophil', 'blast'?"),
        ("mastocyte", "known are"),
        ("xyz", "known are"),
        ("???", "known are"),
    ],
)
def test_a_class_is_proposed_only_where_it_is_clearly_meant(lab: Lab, ids: list[str], said: str, told: str) -> None:
    refused = labref(lab, "set", ids[0], said)
    assert refused.exit_code == 1 and told in refused.output, refused.output
    assert labels(lab)[ids[0]] == "neutrophil"


# names of folders


def test_a_folder_that_is_no_class_is_a_slide_and_its_name_goes_nowhere(
    starter: Bundle, drawn_cells: Path, tmp_path: Path
) -> None:
    names = ["Anna Svensson", "Monocytes", "Plasma cells", "Hairy cells", "hairy cell", "Anna Svensson/ig", "Mast cell"]
    export = tmp_path / "export"
    for name, file in zip(names, sorted(drawn_cells.rglob("*.jpg")), strict=False):
        (export / name).mkdir(parents=True, exist_ok=True)
        shutil.copy(file, export / name / "a.jpg")
    lab = make_lab(tmp_path / "lab", export, starter, labels={"Hairy cells": "hairy cell"})
    with lab.open_store() as store:  # as a lab has it where a person, or an earlier labref, made it a class
        filled_with(store, lab, [0], label="mast cell", path=str(tmp_path / "gone" / "mast cell" / "0.jpg"))
    once(lab)
    said = {
        Path(row["path"]).parent.relative_to(export).as_posix(): (
            None if row["label_source"] == "predicted" else row["label"],
            row["slide"],
        )
        for row in ledger_rows(lab)
        if row["path"].startswith(str(export))
    }
    assert said == {
        "Anna Svensson": (None, "Anna Svensson"),
        "Monocytes": ("monocyte", None),
        "Plasma cells": ("Plasma cells", None),
        "Hairy cells": ("hairy cell", None),
        "hairy cell": ("hairy cell", None),
        "Anna Svensson/ig": ("ig", "Anna Svensson"),
        "Mast cell": ("mast cell", None),
    }


def test_an_export_that_identifies_nobody_holds_only_classes_that_somebody_declared(lab: Lab, ids: list[str]) -> None:
    """A lab that an earlier labref filled has the names of patients as classes."""
    with lab.open_store() as store:
        named, given, known = (
            filled_with(store, lab, [number], label=label)[0]
            for number, label in ((900, "Anna Svensson"), (901, "Anna Svensson"), (902, "Plasma cells"))
        )
    assert labref(lab, "set", given, "hairy cell", "--new").exit_code == 0
    written = {}
    for words in ([], ["--identifying"]):
        target = lab.folder.parent / f"cells{len(words)}.parquet"
        call = ["store", "export", str(target), "--no-thumbnails", "--lab", str(lab.folder), "--json", *words]
        done = CliRunner().invoke(app, call)
        assert done.exit_code == 0, done.output
        assert rows(done)[0]["without_label"] == (0 if words else 1)
        written[bool(words)] = dict(duckdb.sql(f"SELECT cell_id, label FROM '{target}'").fetchall())
        assert (b"Anna" in target.read_bytes()) is bool(words)
    assert written[False] == written[True] | {named: None}
    assert (written[False][given], written[False][known]) == ("hairy cell", "Plasma cells")


# corrections in the analyser

SIGNED = "P1/Signed slides"


@pytest.fixture
def analysed(starter: Bundle, drawn_cells: Path, tmp_path: Path) -> tuple[Lab, Path]:
    """A lab, and its export: eight signed cells, all called monocytes, of which two lie unsigned as well."""
    export = tmp_path / "export"
    for number, file in enumerate(sorted(drawn_cells.rglob("*.jpg"))[:8]):
        put(file, export / SIGNED / "Monocyte" / f"MO_{number}.jpg")
        if number in (3, 4):
            put(file, export / "P1" / "Unsigned slides" / f"S1_{number:03d}.jpg")
    lab = make_lab(tmp_path / "lab", export, starter)
    once(lab)
    return lab, export


def put(file: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(file, to)


def move(file: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    file.rename(to)


def carried(lab: Lab, cell: str) -> tuple[str, str, str]:
    """Label, source, and the name of the slide's folder of a cell, by its id."""
    with lab.open_store() as store:
        found = store.cell(cell)
        assert found is not None and found.slide is not None
        return found.label, str(found.label_source), found.slide


def cells_of(lab: Lab) -> dict[str, str]:
    """The cell of each file, by the file's name."""
    return {Path(row["path"]).name: row["cell_id"] for row in ledger_rows(lab)}


def test_a_correction_in_the_analyser_is_followed(analysed: tuple[Lab, Path]) -> None:
    lab, export = analysed
    cells = [cells_of(lab)[f"MO_{number}.jpg"] for number in range(8)]
    monocyte, basophil = export / SIGNED / "Monocyte", export / SIGNED / "Basophil"
    assert labref(lab, "set", cells[2], "eosinophil", "--who", "A").exit_code == 0
    for number in (0, 2, 3):  # 2: a person said something else meanwhile; 3: lies unsigned as well
        move(monocyte / f"MO_{number}.jpg", basophil / f"BA_{number}.jpg")
    put(monocyte / "MO_1.jpg", basophil / "BA_1.jpg")  # in two classes
    (monocyte / "MO_4.jpg").unlink()  # what is left says nothing of the class
    (monocyte / "MO_5.jpg").unlink()  # nothing is left
    move(monocyte / "MO_6.jpg", export / "P9" / "Signed slides" / "Monocyte" / "MO_6.jpg")  # another patient's
    once(lab)
    assert [carried(lab, cell) for cell in cells] == [
        ("basophil", "reviewed", "P1"),
        ("monocyte", "reviewed", "P1"),
        ("eosinophil", "reviewed", "P1"),
        ("basophil", "reviewed", "P1"),
        ("monocyte", "reviewed", "S1"),
        ("monocyte", "reviewed", "P1"),
        ("monocyte", "reviewed", "P9"),
        ("monocyte", "reviewed", "P1"),
    ]
    (told,) = rows(labref(lab, "history", cells[0], "--json"))
    (change,) = told["changes"]
    assert (change["path"], change["label"], change["previous"]) == (str(basophil / "BA_0.jpg"), "basophil", "monocyte")
    once(lab)
    assert len(rows(labref(lab, "history", cells[0], "--json"))[0]["changes"]) == 1, "once is enough"
    # back again, where the ledger knows the file; and one of two classes is taken away
    move(basophil / "BA_0.jpg", monocyte / "MO_0.jpg")
    (monocyte / "MO_1.jpg").unlink()
    move(export / "P1", export / "P2")
    once(lab)
    assert carried(lab, cells[0]) == ("monocyte", "reviewed", "P2")
    assert carried(lab, cells[1]) == ("basophil", "reviewed", "P2")
    assert carried(lab, cells[2]) == ("eosinophil", "reviewed", "P2")
    assert carried(lab, cells[7]) == ("monocyte", "reviewed", "P2")


@pytest.mark.parametrize("how", ["away", "empty", "locked"])
def test_a_share_that_drops_is_no_correction(
    analysed: tuple[Lab, Path], tmp_path: Path, starter: Bundle, how: str
) -> None:
    """Its cells lie in another watched folder too, under other classes."""
    lab, export = analysed
    other = tmp_path / "other"
    for number in range(2):
        put(export / SIGNED / "Monocyte" / f"MO_{number}.jpg", other / SIGNED / "Basophil" / f"BA_{number}.jpg")
    watch = lab.config.watch.model_copy(update={"folders": (export, other)})
    lab = replace(lab, config=lab.config.model_copy(update={"watch": watch}))
    once(lab)
    cells = cells_of(lab)
    assert cells["MO_0.jpg"] == cells["BA_0.jpg"]
    if how == "locked":
        if os.name == "nt" or os.geteuid() == 0:
            pytest.skip("nothing is locked for this user")
        (export / "P1").chmod(0)
    else:
        export.rename(tmp_path / "unplugged")
        if how == "empty":
            export.mkdir()
    try:
        with contextlib.suppress(AgentError):
            once(lab)
    finally:
        if how == "locked":
            (export / "P1").chmod(0o700)
    assert carried(lab, cells["MO_0.jpg"])[0] == "monocyte"


@pytest.mark.parametrize("by", ["scan", "copy"])
def test_a_correction_outlasts_a_full_disk(analysed: tuple[Lab, Path], by: str) -> None:
    lab, export = analysed
    first, second = export / SIGNED / "Monocyte" / "MO_0.jpg", export / SIGNED / "Basophil" / "BA_0.jpg"
    cell = cells_of(lab)[first.name]
    put(first, second)
    once(lab)
    with lab.open_store() as store, open_log(lab) as log:
        agent = _Agent(lab, store, log, once=False)
        agent._filled = {str(export)}
        if by == "copy":
            agent._follow_moves()
            agent._moves.changed.append(str(second))
        first.unlink()
        failpoints.arm("moves.write=enospc@1")
        try:
            agent._follow_moves_patiently()
            agent._follow_moves_patiently()
            assert store.labels([cell]) == {cell: "monocyte"}, "a disk that was full just now is left alone"
            agent._follow_due = 0.0
            agent._follow_moves_patiently()
        finally:
            failpoints.disarm()
        assert store.labels([cell]) == {cell: "basophil"}
        assert agent._filled is None and not agent._moves.changed


def test_an_agent_that_runs_follows_at_once(analysed: tuple[Lab, Path]) -> None:
    lab, export = analysed
    file = export / SIGNED / "Monocyte" / "MO_0.jpg"
    cell = cells_of(lab)[file.name]
    with running_agent(lab), Desk.open(lab) as desk:
        wait_until(lambda: desk.status()["agent"]["last_scan_at"] is not None)
        move(file, export / SIGNED / "Basophil" / "BA_0.jpg")
        wait_until(lambda: next(desk.run("label.history", cell=cell))["label"] == "basophil", 60)
        # and two files that change places, of which no path is new
        basophil, monocyte = export / SIGNED / "Basophil" / "BA_0.jpg", export / SIGNED / "Monocyte" / "MO_1.jpg"
        other = next(desk.run("label.history", cell=str(monocyte)))["cell_id"]
        move(basophil, export / "between")
        move(monocyte, basophil)
        move(export / "between", monocyte)
        for one, label in ((cell, "monocyte"), (other, "basophil")):
            wait_until(lambda one=one, label=label: next(desk.run("label.history", cell=one))["label"] == label, 60)


# another cell where a cell was

CLASSES = {"B": "basophil", "E": "eosinophil", "M": "monocyte"}
MOVED: dict[str, tuple[list[dict[str, str]], dict[str, str]]] = {
    "its number is another's now": ([{"M/1": "a"}, {"M/1": "b", "B/1": "a"}], {"a": "S1/B/1", "b": "S1/M/1"}),
    "two change places": ([{"M/1": "a", "B/1": "b"}, {"M/1": "b", "B/1": "a"}], {"a": "S1/B/1", "b": "S1/M/1"}),
    "three change places": (
        [{"B/1": "a", "E/1": "b", "M/1": "c"}, {"B/1": "c", "E/1": "a", "M/1": "b"}],
        {"a": "S1/E/1", "b": "S1/M/1", "c": "S1/B/1"},
    ),
    "all numbers move up": (
        [{"M/1": "a", "M/2": "b"}, {"M/2": "a", "B/1": "b"}, {"B/1": "a", "E/1": "b", "M/2": "c"}],
        {"a": "S1/B/1", "b": "S1/E/1", "c": "S1/M/2"},
    ),
    "replaced and moved back": (
        [{"M/1": "a"}, {"M/1": "b", "B/1": "a"}, {"M/1": "a", "B/1": "b"}],
        {"a": "S1/M/1", "b": "S1/B/1"},
    ),
    "away, and back later": ([{"M/1": "a"}, {"M/1": "b"}, {"M/1": "b", "B/1": "a"}], {"a": "S1/B/1", "b": "S1/M/1"}),
    "one of two copies replaced": ([{"B/1": "a", "M/1": "a"}, {"B/1": "b", "M/1": "a"}], {"a": "S1/M/1"}),
    "in both places": ([{"M/1": "a"}, {"B/1": "a", "M/1": "a"}], {"a": "S1/M/1"}),
    "replaced, and nowhere else": ([{"M/1": "a"}, {"M/1": "b"}], {"a": "S1/M/1", "b": "S1/M/1"}),
    "replaced by no picture": ([{"M/1": "a"}, {"M/1": "?", "B/1": "a"}], {"a": "S1/B/1"}),
    "the number of another slide": ([{"M/1": "a"}, {"M/1": "b", "S2/M/1": "a"}], {"a": "S2/M/1", "b": "S1/M/1"}),
    "slides change places": ([{"M/1": "a", "S2/B/1": "b"}, {"M/1": "b", "S2/B/1": "a"}], {"a": "S2/B/1", "b": "S1/M/1"}),
    "two others disagree": ([{"B/1": "a"}, {"B/1": "b", "E/1": "a", "M/1": "a"}], {"a": "S1/E/1 B"}),
    "two others disagreed": (
        [{"B/1": "a"}, {"B/1": "b", "E/1": "a", "M/1": "a"}, {"B/1": "b", "E/1": "c", "M/1": "a"}],
        {"a": "S1/M/1"},
    ),
    "a person said otherwise": ([{"M/1": "a", "M/2": "p"}, {"M/2": "a", "B/1": "p"}], {"a": "S1/M/2", "p": "S1/B/1 E"}),
}  # fmt: skip
"""Which cell each file `[<slide>/]<class>/<number>` holds, at one time after another; ? is no picture. And where each
cell is said to be in the end, with its class where that is another's than the file's."""


@pytest.fixture(scope="module")
def moving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Store, Path]]:
    """A store of made-up cells, and a folder for their files."""
    folder = tmp_path_factory.mktemp("moving")
    with new_store(folder) as store:
        yield store, folder


def placed(store: Store, slides: Path, files: Mapping[str, str], ending: str = ".jpg") -> tuple[list[str], array[int]]:
    """Let these slides hold these files, and no other, and the ledger what reading them gives; the paths of files that
    hold something else now, and the hashes of those that stayed as they were."""
    wanted = {}
    for name, cell in files.items():
        *slide, of, number = name.split("/")
        wanted[slides / (slide or ["S1"])[0] / CLASSES[of] / f"{number}{ending}"] = cell, CLASSES[of]
    for path in slides.rglob("*.jpg"):
        if path not in wanted:
            path.unlink()
    read: list[NewCell | SeenAgain | Rejected] = []
    stayed = array("q")
    for path, (cell, label) in wanted.items():
        if path.exists() and path.read_text() == cell:
            stayed.append(hash(str(path)))
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(cell)
        slide, name = f"{slides.name} {path.parts[-3]}", f"{slides.name} {cell}"
        said: dict[str, Any] = {"path": str(path), "label": label, "label_source": "reviewed", "slide": slide}
        if cell == "?":
            read.append(Rejected(str(path), 1, 1, "no picture"))
        elif store.has_digest(digest_of(name)) or any(
            isinstance(r, NewCell) and r.digest == digest_of(name) for r in read
        ):
            read.append(SeenAgain(size_bytes=1, mtime_ns=1, digest=digest_of(name), **said))
        else:
            read.append(new_cell(name, **said))
    store.record(read, bundle=BUNDLE)
    return [item.path for item in read], stayed


def called(store: Store, slides: Path, cell: str) -> tuple[str, str | None, str]:
    """Label, slide, and path below its slides of a cell."""
    found = store.cell(new_cell(f"{slides.name} {cell}").cell_id)
    assert found is not None
    return found.label, found.slide, Path(found.path).relative_to(slides).as_posix()


@pytest.mark.parametrize("agent", ["off", "scans", "hears"])
@pytest.mark.parametrize("kind", MOVED)
def test_a_cell_is_called_as_the_files_say_that_hold_it_now(moving: tuple[Store, Path], kind: str, agent: str) -> None:
    """Whether the agent was off meanwhile, or scanned, or heard of the files that changed."""
    store, folder = moving
    slides = folder / f"{list(MOVED).index(kind)} {agent}"
    stages, ends = MOVED[kind]
    moves = Moves(store, Roots([folder]), [".jpg"])
    for time, files in enumerate(stages):
        changed, stayed = placed(store, slides, files)
        if agent == "off":
            moves = Moves(store, Roots([folder]), [".jpg"])
        if agent == "hears" and time > 0:
            moves.changed.extend(changed)
            moves.follow_changed()
        else:
            moves.follow_scan(stayed, {str(folder)})
        if time == 0 and "p" in files.values():
            store.reviews.give([Review(new_cell(f"{slides.name} p").cell_id, "eosinophil", "A", None)])
    for cell, where in ends.items():
        place, _, other = where.partition(" ")
        slide, of, number = place.split("/")
        end = CLASSES[other or of], f"{slides.name} {slide}", f"{slide}/{CLASSES[of]}/{number}.jpg"
        assert called(store, slides, cell) == end, cell
        history = store.reviews.history(new_cell(f"{slides.name} {cell}").cell_id)
        labels = [change.previous for change in history[:1]] + [change.label for change in history]
        assert labels[-1:] in ([], [end[0]]) and all(one != other for one, other in pairwise(labels)), "each once"


RENAMED: dict[str, tuple[dict[str, str], dict[str, str], bool, str]] = {
    "its folder got another name": ({}, {"S2/M/1": "a"}, True, "S2"),
    "and more cells have come to it": ({}, {"S2/M/1": "a", "S2/E/9": "n"}, True, "S1"),
    "a file went to another slide": ({}, {"S2/M/1": "a"}, False, "S1"),
    "its files went to a slide that there was": ({"S2/B/7": "o"}, {"S2/M/1": "a", "S2/B/7": "o"}, True, "S1"),
    "its files went to two slides": ({"S1/M/3": "c"}, {"S2/M/1": "a", "S3/M/3": "c"}, True, "S1"),
    "another class, too": ({}, {"S2/E/1": "a"}, True, "S1"),
}
"""What else there was beside S1/M/1 with cell a and S1/M/2 with cell b, what there is after b was deleted, whether the
folder S1 is gone, and the slide of b in the end."""


@pytest.mark.parametrize("kind", RENAMED)
def test_a_cell_without_a_file_goes_with_its_slide_where_the_folder_of_that_was_renamed(
    moving: tuple[Store, Path], kind: str
) -> None:
    store, folder = moving
    slides = folder / f"renamed {list(RENAMED).index(kind)}"
    more, after, is_gone, end = RENAMED[kind]
    placed(store, slides, {"S1/M/1": "a", "S1/M/2": "b"} | more)
    stayed = placed(store, slides, {"S1/M/1": "a"} | more)[1]
    moves = Moves(store, Roots([folder]), [".jpg"])
    moves.follow_scan(stayed, {str(folder)})
    assert called(store, slides, "b")[1] == f"{slides.name} S1", "a file that is deleted changes nothing"
    stayed = placed(store, slides, after)[1]
    if is_gone:
        shutil.rmtree(slides / "S1")
    moves.follow_scan(stayed, {str(folder)})
    assert called(store, slides, "b") == ("monocyte", f"{slides.name} {end}", "S1/monocyte/2.jpg")
    assert called(store, slides, "a")[1] == f"{slides.name} S2"
    in_memory = store.slides.book.slide(id_to_int(new_cell(f"{slides.name} b").cell_id))
    assert in_memory is not None and in_memory.name == f"{slides.name} {end}"


@pytest.mark.parametrize("how", ["renamed", "copied", "system", "ending"])
def test_a_path_that_is_not_watched_any_more_holds_no_label(tmp_path: Path, how: str) -> None:
    """Its folder was the watched one, has a name of the system's by now, or its ending is none of a picture's."""
    before, after = {"M/1": "a", "M/2": "b", "M/3": "c", "M/4": "p"}, {"B/1": "a", "M/2": "b", "B/4": "p"}
    old, new = tmp_path / "old" / "x", tmp_path / "new" / "x"
    watched, ending = (tmp_path, ".bmp") if how == "ending" else (tmp_path / "new", ".jpg")
    if how == "system":
        old = watched / "#recycle" / "x"
    with new_store(tmp_path) as store:
        placed(store, old, before, ending)
        store.reviews.give([Review(new_cell("x p").cell_id, "eosinophil", "A", None)])
        placed(store, new, after)
        if how == "renamed":
            shutil.rmtree(tmp_path / "old")
        for _ in range(2):
            moves = Moves(store, Roots([watched], reserved=["#recycle"]), [".jpg"])
            moves.follow_scan(array("q"), {str(watched)})
        assert {cell: called(store, new, cell)[::2] for cell in "abp"} == {
            "a": ("basophil", "S1/basophil/1.jpg"),
            "b": ("monocyte", "S1/monocyte/2.jpg"),
            "p": ("eosinophil", "S1/basophil/4.jpg"),
        }
        assert called(store, old, "c") == ("monocyte", "x S1", f"S1/monocyte/3{ending}"), "nothing else holds it"


# files that hold something else by now


@pytest.fixture
def replaced(starter: Bundle, drawn_cells: Path, tmp_path: Path) -> tuple[Lab, Path, bytes]:
    """A lab, its only file, and the bytes that this held when the lab took it in: now it holds another cell's, of equal
    size and mtime."""
    one, other = sorted(drawn_cells.rglob("*.jpg"))[:2]
    size = max(one.stat().st_size, other.stat().st_size)
    file = tmp_path / "export" / "1.jpg"
    file.parent.mkdir()
    was = one.read_bytes().ljust(size, b"\0")
    file.write_bytes(was)
    os.utime(file, (1.6e9, 1.6e9))
    lab = make_lab(tmp_path / "lab", file.parent, starter)
    once(lab)
    file.write_bytes(other.read_bytes().ljust(size, b"\0"))
    os.utime(file, (1.6e9, 1.6e9))
    return lab, file, was


def test_a_label_for_a_file_reaches_no_cell_that_the_file_does_not_hold(replaced: tuple[Lab, Path, bytes]) -> None:
    lab, file, was = replaced
    digest = hashlib.sha256(was).hexdigest()
    (before,) = ledger(lab).values()
    for words in (("set", str(file), "monocyte"), ("set", "1.jpg", "monocyte"), ("history", "1.jpg")):
        refused = labref(lab, *words)
        assert refused.exit_code == 1 and f"holds other bytes by now than those of cell {digest[:16]}" in refused.output
    refused = imported(lab, f"path,label\n1.jpg,monocyte\n{file},monocyte\n")
    assert refused.exit_code == 1 and refused.output.count("holds other bytes by now") == 2
    assert ledger(lab)["1.jpg"] == before, "nothing was written"
    # whatever the file holds, the cell can be said by its id and by its digest
    assert labref(lab, "set", digest[:16], "monocyte").exit_code == 0
    # a file that was only touched, or is gone, is what it was
    file.write_bytes(was)
    assert labref(lab, "set", "1.jpg", "basophil").exit_code == 0
    file.unlink()
    assert imported(lab, "path,label\n1.jpg,eosinophil\n").exit_code == 0
    (row,) = rows(labref(lab, "history", digest, "--json"))
    assert [change["label"] for change in row["changes"]] == ["monocyte", "basophil", "eosinophil"]


@pytest.mark.parametrize("column", ["cell_id", "sha256", "Digest"])
def test_a_cell_is_named_by_its_digest(lab: Lab, ids: list[str], column: str) -> None:
    digest = digest_of(0)
    assert imported(lab, f"{column},label\n{digest.upper()},monocyte\n").exit_code == 0
    assert labels(lab)[ids[0]] == "monocyte"
    assert labref(lab, "set", digest[:40], "basophil").exit_code == 0
    wrong = digest[:63] + ("0" if digest[63] != "0" else "1")  # of other bytes, whose first characters are the same
    refused = imported(lab, f"{column},label\n{wrong},eosinophil\n")
    assert refused.exit_code == 1 and "no cell" in refused.output
    assert labels(lab)[ids[0]] == "basophil"


@pytest.mark.parametrize("order", [1, -1])
def test_a_path_that_two_watched_folders_have_in_two_forms_is_refused(lab: Lab, order: int) -> None:
    names = ["P9/Bl\u00e5.jpg", "P9/Bla\u030a.jpg"][::order]
    with lab.open_store() as store:
        for number, (root, name) in enumerate(zip(lab.watched, names, strict=True)):
            filled_with(store, lab, [500 + number], path=str(root / name))
    for said in names:
        refused = labref(lab, "set", said, "monocyte")
        assert refused.exit_code == 1 and "two files have this path" in refused.output
        assert imported(lab, f"path,label\n{said},monocyte\n").exit_code == 1
    assert labref(lab, "set", str(lab.watched[0] / names[0]), "monocyte").exit_code == 0
    with lab.open_store() as store:  # of two in one folder, the one that is written so
        filled_with(store, lab, [700], path=str(lab.watched[0] / "P8/Bl\u00e5.jpg"))
        filled_with(store, lab, [701], path=str(lab.watched[0] / "P8/Bla\u030a.jpg"))
    (row,) = rows(labref(lab, "history", "P8/Bla\u030a.jpg", "--json"))
    assert row["cell_id"] == new_cell(701).cell_id


def test_upper_and_lower_case_in_two_watched_folders_are_one_where_the_file_system_says_so(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    with lab.open_store() as store:
        for number, (root, name) in enumerate(zip(lab.watched, ["P9/x.jpg", "p9/X.JPG"], strict=True)):
            filled_with(store, lab, [500 + number], path=str(root / name))
    assert labref(lab, "set", "P9/x.jpg", "monocyte").exit_code == 0
    monkeypatch.setattr(naming, "_ignores_case", lambda folder: True)
    assert "two files have this path" in labref(lab, "set", "P9/x.jpg", "basophil").output
