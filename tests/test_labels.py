"""Labels arrive late: from a folder, a person or a list; nothing is lost, everything is history, reviewed cells come
first."""

from __future__ import annotations

import getpass
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from labref.asking.references import NEAR_EQUAL, prefer
from labref.bundles.bundle import Bundle
from labref.cli import app
from labref.lab import Lab
from labref.store import Neighbour
from labref.web.desk import ask
from tests.labs import make_lab, once, running_agent

PATIENT, UNSIGNED, SIGNED = "P1/O1", "Unsigned slides", "Signed slides"


@pytest.fixture(scope="module")
def filled(starter: Bundle, drawn_cells: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lab and its export, as CellaVision lays it out: twelve cells that nobody has reviewed."""
    folder = tmp_path_factory.mktemp("filled")
    unsigned = folder / "export" / PATIENT / UNSIGNED
    unsigned.mkdir(parents=True)
    for number, file in enumerate(sorted(drawn_cells.rglob("*.jpg"))[:24:2]):
        shutil.copy(file, unsigned / f"S1_{number:03d}.jpg")
    once(make_lab(folder / "lab", folder / "export", starter))
    return folder


@pytest.fixture
def lab(filled: Path, tmp_path: Path) -> Lab:
    """A copy of it."""
    shutil.copytree(filled / "export", tmp_path / "export")
    shutil.copytree(filled / "lab", tmp_path / "lab")
    config = tmp_path / "lab" / "labref.toml"
    config.write_text(
        f"[watch]\nfolders = ['{tmp_path / 'export'}']\nstable_seconds = 0.0\ncomplete_seconds = 0.2\n",
        encoding="utf-8",
    )
    lab = Lab.open(tmp_path / "lab")
    once(lab)  # the copies of its files are other paths of the same cells
    return lab


def labref(lab: Lab, *words: str) -> Result:
    return CliRunner().invoke(app, ["label", *words, "--lab", str(lab.folder)])


def rows(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


def history(lab: Lab, cell: str) -> dict[str, Any]:
    (row,) = rows(labref(lab, "history", cell, "--json"))
    return row


def an_unsigned(lab: Lab, number: int = 0) -> Path:
    return lab.watched[0] / PATIENT / UNSIGNED / f"S1_{number:03d}.jpg"


def test_a_cell_that_moves_to_signed_slides_becomes_reviewed_and_stays_the_same_cell(lab: Lab) -> None:
    file = an_unsigned(lab)
    before = history(lab, str(file))
    assert before["label_source"] == "predicted"
    signed = lab.watched[0] / PATIENT / SIGNED / "Band neutrophils" / "BNE_1.jpg"
    signed.parent.mkdir(parents=True)
    file.rename(signed)
    summary = once(lab)
    assert (summary.duplicate, summary.embedded) == (1, 0)
    after = history(lab, str(signed))
    assert after["cell_id"] == before["cell_id"]
    assert (after["label"], after["label_source"]) == ("neutrophil", "reviewed")
    (change,) = after["changes"]
    assert (change["path"], change["who"]) == (str(signed), None)
    assert (change["previous"], change["previous_source"]) == (before["label"], "predicted")
    told = {Path(path["path"]).name: path["label"] for path in after["paths"]}
    assert (told["BNE_1.jpg"], told[file.name]) == ("neutrophil", None)


def test_a_persons_label_is_kept_with_who_gave_it_and_what_it_was(lab: Lab) -> None:
    before = history(lab, str(an_unsigned(lab)))
    cell, other = before["cell_id"], "monocyte" if before["label"] != "monocyte" else "basophil"
    (row,) = rows(labref(lab, "set", cell, other, "--who", "A. Lind", "--json"))
    assert (row["outcome"], row["previous"]) == ("changed", before["label"])
    (row,) = rows(labref(lab, "set", str(an_unsigned(lab)), other.upper() + "s", "--json"))
    assert (row["outcome"], row["label"]) == ("same", other)
    assert labref(lab, "set", cell, "lymphocyte", "--who", "B. Ek").exit_code == 0
    after = history(lab, cell)
    assert [(c["label"], c["who"], c["previous"]) for c in after["changes"]] == [
        (other, "A. Lind", before["label"]),
        (other, getpass.getuser(), other),
        ("lymphocyte", "B. Ek", other),
    ]
    assert after["stored_as"] == {"label": before["label"], "label_source": "predicted"}
    text = labref(lab, "history", cell).stdout
    assert "by A. Lind" in text and "by B. Ek" in text and "predicts" in text
    # a later path of the file does not undo what a person said
    once(lab)
    assert history(lab, cell)["label"] == "lymphocyte"


def test_a_misspelt_class_is_refused_unless_it_is_meant(lab: Lab) -> None:
    cell = history(lab, str(an_unsigned(lab)))["cell_id"]
    refused = labref(lab, "set", cell, "monocyt")
    assert refused.exit_code == 1 and "did you mean 'monocyte'" in refused.output
    assert labref(lab, "set", cell, "hairy cell", "--new").exit_code == 0
    assert history(lab, cell)["label"] == "hairy cell"
    assert labref(lab, "set", "0" * 16, "monocyte").exit_code == 1


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_list_is_written_as_far_as_it_can_be_used_and_the_rest_is_named_by_line(
    lab: Lab, tmp_path: Path, separator: str
) -> None:
    cells = [history(lab, str(an_unsigned(lab, number)))["cell_id"] for number in range(5)]
    lines: Sequence[Sequence[str]] = [
        ("Path", "cell_id", "Label", "who", "when"),
        (str(an_unsigned(lab, 0)), "", "Basophil", "Eva", "2026-01-02"),
        (f"{PATIENT}/{UNSIGNED}/S1_001.jpg", "", "eosinophil", "", ""),  # below the watched folder
        ("", cells[2], "monocyte", "", "2026-01-02T10:30"),
        ("nowhere.jpg", "", "monocyte", "", ""),
        ("", cells[4], "monocyt", "", ""),
        ("", cells[3], "monocyte", "", "soon"),
        ("", "", "monocyte", "", ""),
    ]
    file = tmp_path / "review.csv"
    file.write_text("\ufeff" + "\n".join(separator.join(line) for line in lines) + "\n", encoding="utf-8")
    tried = labref(lab, "import", str(file), "--who", "round", "--dry-run", "--json")
    assert tried.exit_code == 1 and rows(tried)[-1]["changed"] == 3
    assert history(lab, cells[0])["changes"] == []
    done = labref(lab, "import", str(file), "--who", "round", "--json")
    assert done.exit_code == 1
    *problems, summary = rows(done)
    assert [problem["line"] for problem in problems] == [5, 6, 7, 8]
    assert summary == {"rows": 7, "changed": 3, "same": 0, "older": 0, "unknown": 4, "dry_run": False}
    labels = [history(lab, cell) for cell in cells]
    assert [cell["label"] for cell in labels[:3]] == ["basophil", "eosinophil", "monocyte"]
    assert [cell["changes"][0]["who"] for cell in labels[:3]] == ["Eva", "round", "round"]
    assert labels[3]["label_source"] == "predicted"
    again = rows(labref(lab, "import", str(file), "--who", "round", "--json"))[-1]
    assert (again["changed"], again["same"]) == (0, 3)


def test_an_older_list_does_not_undo_a_newer_label(lab: Lab, tmp_path: Path) -> None:
    cell = history(lab, str(an_unsigned(lab)))["cell_id"]
    labref(lab, "set", cell, "basophil")
    file = tmp_path / "old.csv"
    file.write_text(f"cell_id,label,when\n{cell},monocyte,2020-05-01\n", encoding="utf-8")
    (summary,) = rows(labref(lab, "import", str(file), "--json"))
    assert (summary["older"], summary["changed"]) == (1, 0)
    assert history(lab, cell)["label"] == "basophil"


@pytest.mark.parametrize("text", ["", "path\nx\n", "label\nmonocyte\n", "a\tb\n"])
def test_a_list_without_its_columns_is_refused_whole(lab: Lab, tmp_path: Path, text: str) -> None:
    file = tmp_path / "bad.csv"
    file.write_text(text, encoding="utf-8")
    refused = labref(lab, "import", str(file))
    assert refused.exit_code == 1 and "columns label and path or cell_id" in refused.output


def test_labels_given_while_the_agent_runs_show_in_its_answers_at_once(lab: Lab) -> None:
    image = an_unsigned(lab)
    with running_agent(lab):
        shown = ask(lab, image.read_bytes(), name="x")["references"][0]
        other = "monocyte" if shown["label"] != "monocyte" else "basophil"
        assert labref(lab, "set", shown["cell_id"], other, "--who", "A").exit_code == 0
        answer = ask(lab, image.read_bytes(), name="x")
        found = next(r for r in answer["references"] if r["cell_id"] == shown["cell_id"])
        assert (found["label"], found["label_source"]) == (other, "reviewed")
        assert other in answer["distribution"]["weights"]


def test_predicted_references_are_marked_in_text(lab: Lab) -> None:
    result = CliRunner().invoke(app, ["query", str(an_unsigned(lab)), "--lab", str(lab.folder)])
    assert "?  " in result.stdout and "predicted" in result.stdout


def near(*distances: float) -> list[Neighbour]:
    return [Neighbour(f"{number:016x}", distance) for number, distance in enumerate(distances)]


def trust(neighbours: list[Neighbour], weights: Sequence[int]) -> dict[str, int]:
    return {neighbour.cell_id: weight for neighbour, weight in zip(neighbours, weights, strict=True)}


def test_a_reviewed_cell_is_shown_rather_than_one_about_as_near() -> None:
    cells = near(1.0, 2.0, 2.02, 2.05)
    chosen = prefer(cells, trust(cells, [0, 0, 0, 2]), 2)
    assert [cell.distance for cell in chosen] == [1.0, 2.05]
    # the analyser's over a prediction, a person's over the analyser's
    chosen = prefer(cells, trust(cells, [0, 0, 1, 2]), 3)
    assert [cell.distance for cell in chosen] == [1.0, 2.02, 2.05]


def test_a_clearly_nearer_cell_is_never_pushed_out_however_long_the_chain() -> None:
    steps = [1.04**n for n in range(40)]  # each about as near as the one before, the last far from the first
    cells = near(*steps)
    for k in (1, 3, 8, 20):
        chosen = prefer(cells, trust(cells, [0] * 20 + [2] * 20), k)
        assert len(chosen) == k
        left_out = [cell for cell in cells if cell not in chosen]
        nearest_left_out = min(cell.distance for cell in left_out)
        assert max(cell.distance for cell in chosen) <= (1 + NEAR_EQUAL) * nearest_left_out
        assert [cell.distance for cell in chosen] == sorted(cell.distance for cell in chosen)


def test_without_a_difference_in_trust_the_nearest_are_the_references() -> None:
    cells = near(1.0, 1.01, 1.02, 1.03)
    assert prefer(cells, trust(cells, [1] * 4), 2) == cells[:2]
    cells = near(0.0, 0.0, 0.0)
    assert [cell.cell_id for cell in prefer(cells, trust(cells, [0, 0, 2]), 1)] == [cells[2].cell_id]
