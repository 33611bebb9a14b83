"""Duplicates in a lab: through the agent, the command, and a lab that an earlier labref filled."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from labref.bundles.bundle import Bundle
from labref.cells.image import decode
from labref.cli import app
from labref.lab import Lab
from labref.web import desk
from labref.web.desk import ask
from tests.benchmarks.duplicates import KINDS, field_of_two, jpeg, recapture
from tests.labs import ledger, make_lab, once, running_agent, wait_until
from tests.stores import put_on_map


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory, drawn_cells: Path, starter: Bundle) -> Lab:
    """A lab with 16 cells, four of them captured again and filed under another class, and a copy of one under another
    class."""
    folder = tmp_path_factory.mktemp("duplicates")
    export = folder / "export"
    rng = np.random.default_rng(0)
    for number, path in enumerate(sorted(drawn_cells.glob("*/*.jpg"))[::2]):
        target = export / path.parent.name / f"{number:02d}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    (export / "monocyte").mkdir(exist_ok=True)
    for number in (1, 4, 8, 15):
        (source,) = export.glob(f"*/{number:02d}.jpg")
        again = recapture(decode(source.read_bytes()), KINDS["mild"], rng)
        (export / "monocyte" / f"zz again {number:02d}.jpg").write_bytes(again)
    (source,) = export.glob("*/02.jpg")
    shutil.copyfile(source, export / "monocyte" / "zz copy of 02.jpg")
    lab = make_lab(folder / "lab", export, starter)
    once(lab)
    return lab


@pytest.fixture
def lab(tmp_path: Path, filled: Lab) -> Iterator[Lab]:
    """A copy of `filled` that a test may change."""
    shutil.copytree(filled.folder, tmp_path / "lab")
    yield replace(filled, folder=tmp_path / "lab")


def labref(lab: Lab, *arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["duplicates", *arguments, "--lab", str(lab.folder)])
    assert result.exit_code == code, result.output
    return result.output


def listed(lab: Lab, *arguments: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in labref(lab, "--json", *arguments).splitlines()]


def originals(lab: Lab) -> dict[str, str]:
    """Of each cell captured again its number, and the id of the cell that it repeats."""
    rows = ledger(lab)
    again = {path: row for path, row in rows.items() if " again " in path}
    return {path[-6:-4]: row["duplicate_of"] for path, row in again.items()}


def test_cells_captured_again_are_recognised_under_another_class_and_kept(filled: Lab) -> None:
    rows = ledger(filled)
    pairs = [(path, row) for path, row in rows.items() if row["outcome"] == "duplicate"]
    by_id = {row["cell_id"]: path for path, row in rows.items() if row["outcome"] != "duplicate" or " again " in path}
    # whichever of the two files with the same bytes came first, the other is a duplicate of their own cell
    other_cell = [(path, row["duplicate_of"]) for path, row in pairs if row["duplicate_of"] != row["cell_id"]]
    recaptured = {(path[-6:-4], by_id[cell_id][-6:-4]) for path, cell_id in other_cell}
    assert {frozenset(pair) for pair in recaptured} == {frozenset([number]) for number in ("01", "04", "08", "15")}
    assert len(pairs) == 5
    assert len({row["cell_id"] for row in rows.values()}) == 20, "a recapture is kept, a copy is the same cell"


def test_a_copy_under_another_class_is_one_cell_with_a_conflict(filled: Lab) -> None:
    (conflict,) = [row for row in listed(filled, "--only", "conflict") if row["duplicate_of"] is None]
    assert conflict["kind"] == "conflict"
    assert len({path["label"] for path in conflict["paths"]}) == 2
    rows = ledger(filled)
    marked = [path for path, row in rows.items() if row["conflict"]]
    assert len(marked) == 2 and any(" copy " in path for path in marked)
    assert "CONFLICT: its files say" in labref(filled)


def test_two_pictures_of_a_cell_under_two_classes_are_one_conflict(filled: Lab, tmp_path: Path) -> None:
    pairs = {(row["cell_id"], row["duplicate_of"]): row for row in listed(filled, "--only", "duplicate")}
    expected = {pair for pair, row in pairs.items() if row["cell"]["label"] != row["other"]["label"]}
    conflicts = [row for row in listed(filled, "--only", "conflict") if row["duplicate_of"] is not None]
    assert len(expected) >= 3 and len(conflicts) == len(expected)
    assert {(row["cell_id"], row["duplicate_of"]) for row in conflicts} == expected
    assert {pair for pair, row in pairs.items() if row["conflict"]} == expected
    for row in conflicts:
        assert row["kind"] == "conflict" and row["verdict"] == "duplicate" and row["score"] > 0.95
        assert row["label"] == row["cell"]["label"] and row["other"]["label_source"] == "analyser"
        assert {(said["cell_id"], said["label"]) for said in row["paths"]} >= {
            (row["cell_id"], row["cell"]["label"]),
            (row["duplicate_of"], row["other"]["label"]),
        }
        assert row["cell"]["path"] in {said["path"] for said in row["paths"]}
    said = labref(filled)
    for cell_id, _ in expected:
        (line,) = [line for line in said.splitlines() if line.startswith(cell_id)]
        assert "CONFLICT: one cell under two classes" in line, "shown once, as what it is"
    labref(filled, "--only", "conflict", "--grid", str(tmp_path / "conflicts.png"))
    with Image.open(tmp_path / "conflicts.png") as picture:
        assert picture.width > 800


def test_pairs_are_listed_with_both_cells_and_drawn_side_by_side(filled: Lab, tmp_path: Path) -> None:
    rows = listed(filled, "--only", "duplicate")
    assert len(rows) == 4
    for row in rows:
        assert row["verdict"] == row["found"] == "duplicate"
        assert 0.95 < row["score"] <= 1
        assert row["cell"]["label"] and row["other"]["path"]
    assert listed(filled, "--only", "possible") == []
    labref(filled, "--grid", str(tmp_path / "pairs.png"))
    with Image.open(tmp_path / "pairs.png") as picture:
        assert picture.format == "PNG" and picture.width > 800
    assert "Give --grid a file name" in labref(filled, "--grid", str(tmp_path / "no folder" / "x.png"), code=1)


@pytest.fixture(scope="module")
def of_one_field(tmp_path_factory: pytest.TempPathFactory, real_cells: Path, starter: Bundle) -> Lab:
    """A lab of real cells: `left` and `right` stand beside each other in one field, with a picture around each, and the
    left one was captured again; `elsewhere` is alone."""
    export = tmp_path_factory.mktemp("fields") / "export"
    cells = {label: sorted((real_cells / "pbc" / label).glob("*.jpg")) for label in ("eosinophil", "lymphocyte", "ig")}
    one, two = (decode(cells[label][3].read_bytes()) for label in ("eosinophil", "lymphocyte"))
    corner = [(a - b) // 2 for a, b in zip(one.shape[:2], two.shape[:2], strict=True)]
    left, right = field_of_two(one, two, (corner[0] + 40, corner[1] + 90))
    files = {
        "eosinophil/left.jpg": jpeg(left),
        "eosinophil/left again.jpg": recapture(left, KINDS["strong"], np.random.default_rng(4)),
        "lymphocyte/right.jpg": jpeg(right),
        "ig/elsewhere.jpg": cells["ig"][0].read_bytes(),
    }
    for name, data in files.items():
        (export / name).parent.mkdir(parents=True, exist_ok=True)
        (export / name).write_bytes(data)
    lab = make_lab(export.parent / "lab", export, starter)
    once(lab)
    return lab


def test_pictures_of_one_field_are_neighbours_and_nobodys_work(of_one_field: Lab, tmp_path: Path) -> None:
    rows = ledger(of_one_field)
    left, again, right, elsewhere = (
        rows[name]
        for name in ("eosinophil/left.jpg", "eosinophil/left again.jpg", "lymphocyte/right.jpg", "ig/elsewhere.jpg")
    )
    assert {left["outcome"], again["outcome"]} == {"stored", "duplicate"}, "a recapture of one of them is still found"
    assert (right["outcome"], right["duplicate_of"], right["conflict"]) == ("stored", None, None)
    assert set(right["neighbours"]) == {left["cell_id"], again["cell_id"]}
    assert right["cell_id"] in left["neighbours"] and right["cell_id"] in again["neighbours"]
    assert elsewhere["neighbours"] == []
    found = listed(of_one_field, "--only", "neighbour")
    assert {frozenset((row["cell_id"], row["duplicate_of"])) for row in found} == {
        frozenset((right["cell_id"], other["cell_id"])) for other in (left, again)
    }
    for row in found:
        assert row["kind"] == "pair" and row["verdict"] == row["found"] == "neighbour" and row["score"] > 0.93
        assert not row["conflict"], "two cells may well have two classes"
    everything = listed(of_one_field)
    assert [row["verdict"] for row in everything] == ["duplicate"]
    assert listed(of_one_field, "--only", "possible") == listed(of_one_field, "--only", "conflict") == []
    with of_one_field.open_store() as store:
        assert store.duplicate_group(right["cell_id"]) == [right["cell_id"]]
        assert store.duplicates.possible() == set()
    said = CliRunner().invoke(app, ["ledger", "--lab", str(of_one_field.folder)]).output
    assert f"beside cell {right['cell_id']} in one field" in said
    labref(of_one_field, "--only", "neighbour", "--grid", str(tmp_path / "neighbours.png"))
    assert (tmp_path / "neighbours.png").stat().st_size > 1000


def test_neighbours_that_version_1_called_possible_are_taken_back(of_one_field: Lab, tmp_path: Path) -> None:
    shutil.copytree(of_one_field.folder, tmp_path / "lab")
    lab = replace(of_one_field, folder=tmp_path / "lab")
    pair = listed(lab, "--only", "neighbour")[0]
    with lab.open_store() as store, store._transaction() as connection:
        connection.execute("UPDATE fingerprint SET version = 1")
        connection.execute("DELETE FROM landmark")
        connection.execute("UPDATE resemblance SET verdict = 'possible_duplicate' WHERE verdict = 'neighbour'")
        connection.execute(
            "UPDATE cell SET duplicate_of = ?, duplicate_verdict = 'possible_duplicate' WHERE cell_id = ?",
            [pair["duplicate_of"], pair["cell_id"]],
        )
    assert [row["cell_id"] for row in listed(lab, "--only", "possible")] == [pair["cell_id"]]
    assert json.loads(labref(lab, "find", "--json")) == {"compared": 4}
    assert listed(lab, "--only", "possible") == []
    assert len(listed(lab, "--only", "neighbour")) == 2
    assert [row["verdict"] for row in listed(lab)] == ["duplicate"]


def test_decisions_are_made_remembered_and_undone_by_the_command(lab: Lab) -> None:
    cell, other = (listed(lab, "--only", "duplicate")[0][name] for name in ("cell_id", "duplicate_of"))
    assert "rejected" in labref(lab, "reject", cell, "--who", "A. Lind")
    (row,) = listed(lab, "--only", "rejected")
    assert (row["cell_id"], row["duplicate_of"], row["who"]) == (cell, other, "A. Lind")
    labref(lab, "undo", cell)
    labref(lab, "confirm", cell, "--who", "B")
    (row,) = [row for row in listed(lab, "--only", "duplicate") if row["cell_id"] == cell]
    assert (row["decision"], row["who"]) == ("confirmed", "B")
    said = labref(lab, "history", cell)
    assert [line.split(": ")[1].split()[0] for line in said.splitlines()] == ["rejected", "undone", "confirmed"]
    assert "no cell 0000" in labref(lab, "reject", "0" * 16, code=1)


def test_a_new_capture_that_is_asked_about_names_the_stored_cell_and_does_not_get_it(filled: Lab) -> None:
    (source,) = filled.watched[0].glob("*/06.jpg")
    itself = ledger(filled)[source.relative_to(filled.watched[0]).as_posix()]["cell_id"]
    again = recapture(decode(source.read_bytes()), KINDS["strong"], np.random.default_rng(1))
    answer = ask(filled, again, name="again")
    assert answer["duplicate_of"] == itself
    assert itself not in {reference["cell_id"] for reference in answer["references"]}


def test_what_came_while_a_cell_was_away_is_compared_with_it_once_it_is_back(lab: Lab, tmp_path: Path) -> None:
    (source,) = lab.watched[0].glob("*/06.jpg")
    gone = ledger(lab)[source.relative_to(lab.watched[0]).as_posix()]["cell_id"]
    pairs = [{row["cell_id"], row["duplicate_of"]} for row in listed(lab, "--only", "duplicate")]
    more = tmp_path / "more"
    watch = lab.config.watch.model_copy(update={"folders": (*lab.config.watch.folders, more)})
    wider = replace(lab, config=lab.config.model_copy(update={"watch": watch}))
    list(desk.run(lab, "store.remove", cells=[gone], why="by mistake"))
    (more / "monocyte").mkdir(parents=True)
    picture = recapture(decode(source.read_bytes()), KINDS["mild"], np.random.default_rng(1))
    (more / "monocyte" / "again.jpg").write_bytes(picture)
    assert once(wider).stored == 1
    list(desk.run(lab, "store.bring_back", cells=[gone]))
    (pair,) = [row for row in listed(lab, "--only", "duplicate") if {row["cell_id"], row["duplicate_of"]} not in pairs]
    assert pair["duplicate_of"] == gone and pair["cell_id"] == hashlib.sha256(picture).hexdigest()[:16]
    assert list(desk.run(lab, "ledger.check", latents=0))[-1]["ok"]


@pytest.mark.parametrize("by", ["latent", "map"])
def test_cells_captured_twice_are_references_once_by_the_agent_and_by_the_command(
    lab: Lab, drawn_cells: Path, by: str
) -> None:
    pairs = [{row["cell_id"], row["duplicate_of"]} for row in listed(lab, "--only", "duplicate")]
    assert len(pairs) == 4
    with lab.open_store() as store:
        bundle = str(store.active_bundle())
        _, latents = next(store.maps.latents(bundle))
        put_on_map(store, bundle, list(latents[:5]))
    asked = sorted(drawn_cells.glob("*/*.jpg"))[1].read_bytes()

    def answer() -> dict[str, Any]:
        return {key: value for key, value in ask(lab, asked, name="x", k=20, by=by).items() if key != "timings_ms"}

    alone = answer()
    references = {reference["cell_id"]: reference["captures"] for reference in alone["references"]}
    assert len(references) == alone["distribution"]["n"] == 16
    for pair in pairs:
        assert [references[cell_id] for cell_id in pair if cell_id in references] == [2]
    assert sorted(references.values()) == [1] * 12 + [2] * 4
    with running_agent(lab):
        assert answer() == alone


def test_unreviewed_possible_duplicates_are_references_unless_the_lab_says_no(lab: Lab) -> None:
    row = listed(lab, "--only", "duplicate")[0]
    with lab.open_store() as store, store._transaction() as connection:
        connection.execute("UPDATE resemblance SET verdict = 'possible_duplicate' WHERE cell = ?", [row["cell_id"]])
    labref(lab, "confirm", row["cell_id"])
    labref(lab, "undo", row["cell_id"])  # what labref found holds again: a possible duplicate
    (found,) = listed(lab, "--only", "possible")
    assert found["cell_id"] == row["cell_id"]
    query = lab.watched[0].joinpath(*Path(row["cell"]["path"]).parts[-2:]).read_bytes()
    turned = decode(query)[::-1].copy()  # looks like it, but is stored nowhere

    def references(lab: Lab) -> set[str]:
        answer = ask(lab, _png(turned), name="turned", k=20)
        return {reference["cell_id"] for reference in answer["references"]}

    assert row["cell_id"] in references(lab)
    withheld = lab.config.duplicates.model_copy(update={"withhold_possible": True})
    lab = replace(lab, config=lab.config.model_copy(update={"duplicates": withheld}))
    assert row["cell_id"] not in references(lab)


def _png(pixels: Any) -> bytes:
    import io

    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def as_an_earlier_labref_left_it(lab: Lab) -> None:
    """Take what this version found out of a lab's store, and link two cells as the thesis' rule might have."""
    with lab.open_store() as store, store._transaction() as connection:
        for table in ("fingerprint", "resemblance", "duplicate_decision"):
            connection.execute(f"DELETE FROM {table}")
        connection.execute("UPDATE cell SET duplicate_of = NULL, duplicate_verdict = NULL, duplicate_group = NULL")
        connection.execute(
            "UPDATE file SET outcome = 'stored', reason = NULL, duplicate_of = NULL WHERE outcome = 'duplicate' AND duplicate_of <> cell_id"
        )
        first, last = (
            connection.execute(
                f"SELECT {which}(cell_id ORDER BY number) FROM cell WHERE path NOT LIKE '%again%'"
            ).fetchall()[0][0]
            for which in ("first", "last")
        )
        connection.execute(
            "UPDATE cell SET duplicate_of = ?, duplicate_group = ?, duplicate_verdict = 'duplicate' WHERE cell_id = ?",
            [first, first, last],
        )


def test_a_lab_of_an_earlier_labref_is_compared_anew(filled: Lab, lab: Lab) -> None:
    expected = {frozenset((row["cell_id"], row["duplicate_of"])) for row in listed(filled, "--only", "duplicate")}
    as_an_earlier_labref_left_it(lab)
    assert len(listed(lab, "--only", "duplicate")) == 1
    assert json.loads(labref(lab, "find", "--json")) == {"compared": 20}
    assert {frozenset((row["cell_id"], row["duplicate_of"])) for row in listed(lab, "--only", "duplicate")} == expected
    assert json.loads(labref(lab, "find", "--json")) == {"compared": 0}


def test_the_agent_compares_them_by_itself_and_decides_for_the_command(filled: Lab, lab: Lab) -> None:
    expected = len(listed(filled, "--only", "duplicate"))
    as_an_earlier_labref_left_it(lab)
    with running_agent(lab):
        wait_until(lambda: len(list(desk.run(lab, "duplicates.list", verdict="duplicate"))) == expected)
        row = listed(lab, "--only", "duplicate")[0]
        labref(lab, "reject", row["cell_id"])
        assert [found["cell_id"] for found in listed(lab, "--only", "rejected")] == [row["cell_id"]]
    assert [found["cell_id"] for found in listed(lab, "--only", "rejected")] == [row["cell_id"]]
