"""Figures count cells and not images: recaptures of a cell are found among real ones, and left out of an evaluation."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from typer.testing import CliRunner

from labref.bundles.bundle import Bundle, starter_bundle
from labref.cells.hashes import oriented
from labref.cells.image import decode
from labref.cells.registration import align
from labref.cells.sameness import DEFAULTS, ruling, seen
from labref.cli import app as query_app
from labref.lab import Lab
from labref.store.memory.books import HashBook, int_to_id
from labref.store.recording import Search
from labref.web.desk import Desk, run
from labref.words import Fingerprint, Landmark, Verdict
from tests.benchmarks.duplicates import KINDS, recapture
from tests.benchmarks.recaptures import looked_at, same_cells
from tests.labs import ledger, make_lab, once, running_agent
from tests.pages import let_in
from training.cli.app import app
from training.data.recaptures import recapture_groups


@pytest.fixture
def tree(real_cells: Path, tmp_path: Path) -> Path:
    """Ten real cells of each of two classes; the first is there twice more, captured again and as the same file, in the
    other class too, and one image cannot be read."""
    for label in ("eosinophil", "neutrophil"):
        (tmp_path / label).mkdir()
        for number, image in enumerate(sorted((real_cells / "pbc" / label).glob("*.jpg"))[:10]):
            shutil.copy(image, tmp_path / label / f"{number}.jpg")
    first = (tmp_path / "eosinophil" / "0.jpg").read_bytes()
    again = recapture(decode(first), KINDS["mild"], np.random.default_rng(3))
    (tmp_path / "eosinophil" / "again.jpg").write_bytes(again)
    (tmp_path / "neutrophil" / "same.jpg").write_bytes(first)
    (tmp_path / "neutrophil" / "torn.jpg").write_bytes(first[:300])
    for label in ("eosinophil", "neutrophil"):  # nothing to lay over each other: the same bytes all the same
        Image.new("RGB", (90, 90), (230, 225, 228)).save(tmp_path / label / "plain.png")
    return tmp_path


def test_recaptures_are_one_cell_whatever_their_class(tree: Path) -> None:
    files = sorted(tree.glob("*/*.*"))
    names = [file.name for file in files]
    done: list[int] = []
    groups = recapture_groups(files, done.append)
    assert sum(done) == len(files) == 25
    first = files.index(tree / "eosinophil" / "0.jpg")
    expected = np.arange(len(files))
    expected[[names.index("again.jpg"), names.index("same.jpg")]] = first
    expected[files.index(tree / "neutrophil" / "plain.png")] = files.index(tree / "eosinophil" / "plain.png")
    assert groups.tolist() == expected.tolist()


def test_a_search_that_is_kept_open_finds_as_a_new_one_does() -> None:
    """What was added once was once added again by every `apply`, until copies of one cell took all the places."""
    rng = np.random.default_rng(4)
    prints = [Fingerprint(int(a), int(b)) for a, b in rng.integers(0, 2**63, (45, 2))]
    prints[1] = prints[0]
    kept = Search(HashBook(), HashBook())
    for number, fingerprint in enumerate(prints):
        places = [Landmark((fingerprint,), Fingerprint(2**64 - 1, 2**64 - 1))] * 2
        kept.add(int_to_id(number), [fingerprint], places)
        kept.apply()
    landmark = Landmark((prints[0],), Fingerprint(2**64 - 1, 2**64 - 1))
    assert kept.candidates([prints[0]], [], 0) == [int_to_id(0), int_to_id(1)]
    assert kept.candidates([prints[9]], [landmark], 0) == [int_to_id(9), int_to_id(0), int_to_id(1)]


def test_an_evaluation_counts_cells(tree: Path) -> None:
    words = [
        "evaluate",
        "--bundle",
        str(starter_bundle()),
        "--references",
        str(tree),
        "--queries",
        str(tree),
        "--no-rotations",
    ]
    found = {}
    for more in ((), ("--distinct",)):
        done = CliRunner().invoke(app, [*words, "--json", *more])
        assert done.exit_code == 0, done.output
        found[more] = json.loads(done.stdout)
    images, cells = found.values()
    assert (images["n_queries"], cells["n_queries"], cells["n_references"]) == (24, 21, 21)
    assert "recaptures_left_out" not in images
    assert cells["recaptures_left_out"] == {"references": 3, "queries": 3}
    assert cells["precision_at_8"]["micro"] > 0.8


# real pictures of one cell, in other light and focus: the list by eye of tests/recaptures


def _ruled(real_cells: Path, pairs: Sequence[tuple[str, str]]) -> list[Verdict]:
    views = {name: seen(decode((real_cells / "chula" / name).read_bytes())) for pair in pairs for name in pair}
    return [ruling(align(views[first], views[second]), DEFAULTS) for first, second in pairs]


def test_pictures_of_one_cell_in_other_light_and_focus_are_possible_duplicates(real_cells: Path) -> None:
    """By their colours alone two in a hundred of these agree enough."""
    by_cell: dict[str, list[str]] = {}
    for image, cell in same_cells("chula").items():
        by_cell.setdefault(cell, []).append(image)
    pairs = [(images[0], images[-1]) for images in by_cell.values()][::4]
    verdicts = _ruled(real_cells, pairs)
    assert len(pairs) >= 20
    assert np.mean([verdict.is_one_cell for verdict in verdicts]) >= 0.7
    assert np.mean([verdict is not Verdict.DIFFERENT for verdict in verdicts]) >= 0.8


def test_other_cells_of_the_same_series_are_not(real_cells: Path) -> None:
    known = same_cells("chula")
    series: dict[str, list[str]] = {}
    for path in sorted((real_cells / "chula").glob("*/*.jpg")):
        series.setdefault(path.stem.rsplit("_", 2)[0], []).append(f"{path.parent.name}/{path.name}")
    doubtful = {frozenset(pair) for pair in looked_at("chula", "cannot tell")}
    pairs = [
        (first, second)
        for names in series.values()
        for first, second in itertools.pairwise(names)
        if known.get(first, first) != known.get(second, second) and frozenset((first, second)) not in doubtful
    ][::3]
    assert len(pairs) >= 30
    for (first, second), verdict in zip(pairs, _ruled(real_cells, pairs), strict=True):
        # two cells of one frame are named alike but for the last number; such pictures show one field
        of_one_frame = Path(first).stem.rsplit("_", 1)[0] == Path(second).stem.rsplit("_", 1)[0]
        assert verdict is Verdict.DIFFERENT or (of_one_frame and verdict is Verdict.NEIGHBOUR), (first, second)


def test_the_structure_agrees_where_light_and_focus_changed(real_cells: Path) -> None:
    """A simulated change beyond what colours bear: half the light, another cast, out of focus."""
    pixels = decode(sorted((real_cells / "pbc" / "eosinophil").iterdir())[3].read_bytes())
    other = decode(sorted((real_cells / "pbc" / "eosinophil").iterdir())[4].read_bytes())

    def changed(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        ramp = np.linspace(0.45, 0.8, picture.shape[1])[None, :, None] * np.array([1.0, 0.85, 1.1])
        blurred = Image.fromarray(picture).filter(ImageFilter.GaussianBlur(3))
        return np.clip(np.asarray(blurred) * ramp + 20, 0, 255).astype(np.uint8)

    found = align(seen(pixels), seen(changed(pixels)))
    assert found.structure > 0.75 and abs(found.turn) < 1 and found.middles < 4
    assert ruling(found, DEFAULTS).is_one_cell
    assert align(seen(pixels), seen(changed(other))).structure < 0.6


def lab_of(images: list[str], real_cells: Path, starter: Bundle, folder: Path) -> Lab:
    """A lab that has taken in these pictures of chula, named from its folder on."""
    export = folder / "export"
    for image in images:
        (export / image).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(real_cells / "chula" / image, export / image)
    lab = make_lab(folder / "lab", export, starter)
    once(lab)
    return lab


def test_a_lab_asks_a_person_about_them_and_lays_one_on_the_other(
    real_cells: Path, starter: Bundle, tmp_path: Path
) -> None:
    """Four pictures of each of four cells, each taken in other light and focus, through an agent's whole pass."""
    by_cell: dict[str, list[str]] = {}
    for image, cell in same_cells("chula").items():
        by_cell.setdefault(cell, []).append(image)
    chosen = [images[:4] for images in by_cell.values() if len(images) >= 4][:4]
    cell_of = {Path(image).name: number for number, images in enumerate(chosen) for image in images}
    of_name = {Path(image).name: image for images in chosen for image in images}
    lab = lab_of([image for images in chosen for image in images], real_cells, starter, tmp_path)
    pairs = [row for row in run(lab, "duplicates.list") if row["kind"] == "pair"]
    names = {row["cell_id"]: Path(path).name for path, row in ledger(lab).items()}
    assert len(pairs) >= 6
    assert all(cell_of[names[pair["cell_id"]]] == cell_of[names[pair["duplicate_of"]]] for pair in pairs)
    by_structure = 0
    for pair in (pair for pair in pairs if pair["verdict"] == "possible_duplicate"):
        (laid,) = run(lab, "duplicates.overlay", cell=pair["cell_id"], other=pair["duplicate_of"])
        assert laid["score"] == pytest.approx(pair["score"], abs=0.01)
        assert (laid["rows"], laid["columns"]) != (0, 0), "not registered: nothing to compare by flicker"
        pictures = [real_cells / "chula" / of_name[names[pair[which]]] for which in ("cell_id", "duplicate_of")]
        by_structure += align(*(seen(decode(file.read_bytes())) for file in pictures)).score < DEFAULTS.possible_from
    assert by_structure >= 3


def test_a_cell_taken_again_in_other_focus_takes_one_place_in_every_answer(
    real_cells: Path, starter: Bundle, tmp_path: Path
) -> None:
    """All pictures of four cells whose fingerprints differ in more than 14 bits, or whose centre was found elsewhere on
    the nucleus: of each cell some were once stored as others."""
    by_cell: dict[str, list[str]] = {}
    for image, cell in same_cells("chula").items():
        by_cell.setdefault(cell, []).append(image)
    odd = (
        "eosinophil/E-14_0464_0.jpg",
        "eosinophil/E-15_0505_0.jpg",
        "lymphocyte/L-8_0569_0.jpg",
        "neutrophil/N-2B_0157_0.jpg",
    )
    chosen = [images for images in by_cell.values() if set(odd) & {*images}]
    cell_of = {Path(image).name: number for number, images in enumerate(chosen) for image in images}
    assert len(chosen) == len(odd) < len(cell_of)
    lab = lab_of([image for images in chosen for image in images], real_cells, starter, tmp_path)
    rows = ledger(lab)
    with Desk.open(lab) as desk:
        for path, row in rows.items():
            (shown,) = desk.run("cell.show", cell=row["cell_id"])
            cells = [cell_of[Path(one["path"]).name] for one in shown["references"]]
            assert len(cells) == len(set(cells)), path
            asked = cell_of[Path(path).name]
            assert all(
                one["may_be_same"] for one, cell in zip(shown["references"], cells, strict=True) if cell == asked
            )


def test_a_turned_or_mirrored_copy_of_a_stored_picture_is_a_possible_duplicate(
    real_cells: Path, starter: Bundle, tmp_path: Path
) -> None:
    """Fourteen real cells; of each a copy, of seven kinds. What is laid over what, a person sees in one place."""
    files = [
        path for label in ("basophil", "lymphocyte") for path in sorted((real_cells / "pbc" / label).glob("*.jpg"))[:7]
    ]
    export = tmp_path / "export"
    export.mkdir()
    kinds = {}
    for number, path in enumerate(files):
        shutil.copy(path, export / f"a{number:02}.jpg")
        kind = kinds[f"b{number:02}.png"] = number % 7 + 1
        Image.fromarray(oriented(decode(path.read_bytes()), kind)).save(export / f"b{number:02}.png")
    lab = make_lab(tmp_path / "lab", export, starter)
    once(lab)
    rows = ledger(lab)
    for name, kind in kinds.items():
        # whichever of the two came later repeats the earlier one
        copy, original = (rows[each] for each in (name, f"a{name[1:3]}.jpg"))
        links = {(row["outcome"], row["duplicate_of"]) for row in (copy, original)}
        assert links & {("possible_duplicate", copy["cell_id"]), ("possible_duplicate", original["cell_id"])}, (
            name,
            kind,
        )
        (laid,) = run(lab, "duplicates.overlay", cell=copy["cell_id"], other=original["cell_id"])
        mirrored = kind >= 4
        assert laid["mirrored"] is mirrored
        # clockwise turns of a picture that is mirrored first: a mirrored quarter is undone by the same quarter
        assert round(laid["turn"]) % 360 == (-90 * kind if mirrored else 90 * kind) % 360
        assert laid["score"] > 0.97


_THREE_OF_EACH = (
    ("basophil/B-53_0091_0.jpg", "basophil/B-53_0092_0.jpg", "basophil/B-53_0093_0.jpg"),
    ("eosinophil/E-11_0981_0.jpg", "eosinophil/E-11_0982_0.jpg", "eosinophil/E-11_0983_0.jpg"),
    ("lymphocyte/L-9_0243_0.jpg", "lymphocyte/L-9_0244_0.jpg", "lymphocyte/L-9_0246_0.jpg"),
    ("monocyte/M-8_0694_0.jpg", "monocyte/M-8_0696_0.jpg", "monocyte/M-8_0697_0.jpg"),
)
"""Pictures of one cell each, in `chula`."""


def test_a_reference_that_may_be_the_very_cell_says_so_wherever_answers_are_read(
    real_cells: Path, starter: Bundle, tmp_path: Path
) -> None:
    """Three pictures of each of four cells but one picture, which is asked about."""
    cell_of = {Path(image).name: number for number, images in enumerate(_THREE_OF_EACH) for image in images}
    out, kept, *_ = _THREE_OF_EACH[0]
    outside, export = real_cells / "chula" / out, tmp_path / "export"
    for image in (image for images in _THREE_OF_EACH for image in images if image != out):
        (export / image).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(real_cells / "chula" / image, export / image)
    lab = make_lab(tmp_path / "lab", export, starter)
    once(lab)
    with running_agent(lab):
        stored = ledger(lab)[kept]["cell_id"]
        (shown,) = run(lab, "cell.show", cell=stored)
        done = CliRunner().invoke(query_app, ["query", str(outside), "--json", "--lab", str(lab.folder)])
        asked = json.loads(done.stdout)
        for answer in (shown, asked):
            cells = [cell_of[Path(one["path"]).name] for one in answer["references"]]
            assert [one["may_be_same"] for one in answer["references"]] == [cell == 0 for cell in cells]
            assert sorted(cells) == [0, 1, 2, 3]
        grid = tmp_path / "grid.png"
        done = CliRunner().invoke(query_app, ["query", str(outside), "--grid", str(grid), "--lab", str(lab.folder)])
        assert done.exit_code == 0 and done.stdout.count("may be the very cell") == 1
        reviewer = let_in(lab, "Åsa Lind")
        for language, words in (
            ("en", "may be the very cell"),
            ("sv", "kan vara samma cell"),
            ("de", "vielleicht dieselbe Zelle"),
        ):
            assert words in reviewer.get(f"/cell/{stored}", Accept_Language=language).text
