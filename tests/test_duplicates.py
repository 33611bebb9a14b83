"""The same cell captured again is recognised, other cells are not: from pictures to verdicts."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import imagehash
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from labref.bundles.bundle import Bundle
from labref.cells.hashes import WINDOW, digest, fingerprint, hash_windows, shifted_fingerprints
from labref.cells.image import CellImage, decode, prepare, prepare_pixels
from labref.cells.landmarks import landmarks
from labref.cells.registration import Alignment, align, view
from labref.cells.sameness import DEFAULTS, Thresholds, ruling, without_frame
from labref.lab import Lab
from labref.lab.judge import Judge
from labref.store.memory.books import HashBook
from labref.words import STORED, Fingerprint, Verdict
from tests.benchmarks.duplicates import KINDS, field_of_two, measure, measure_neighbours, recapture
from tests.labs import make_lab


@pytest.fixture(scope="module")
def pictures(drawn_cells: Path) -> list[NDArray[np.uint8]]:
    """Drawn cells, four of each class."""
    return [decode(path.read_bytes()) for path in sorted(drawn_cells.glob("*/*.jpg"))]


@pytest.fixture(scope="module")
def real_pictures(real_cells: Path) -> list[NDArray[np.uint8]]:
    """Real cells of every set and class, two each."""
    folders = sorted(
        folder for name in ("pbc", "chula", "bccd", "bonemarrow") for folder in (real_cells / name).iterdir()
    )
    return [decode(path.read_bytes()) for folder in folders if folder.is_dir() for path in sorted(folder.iterdir())[:2]]


@pytest.fixture(scope="module")
def pbc(real_cells: Path) -> list[NDArray[np.uint8]]:
    """Real cells of one analyser, two of each of its eight classes, which lie in the middle of their pictures."""
    folders = sorted((real_cells / "pbc").glob("*/"))
    return [decode(path.read_bytes()) for folder in folders for path in sorted(folder.glob("*.jpg"))[:2]]


def png(pixels: NDArray[np.uint8]) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def compared(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> Alignment:
    """How two pictures lie on each other, as the judge sees them."""
    return align(*(view(without_frame(pixels, prepare_pixels(pixels))) for pixels in (a, b)))


def moved(pixels: NDArray[np.uint8], rows: float, columns: float, degrees: float = 0.0) -> NDArray[np.uint8]:
    """The picture turned about its middle, counter-clockwise, and then shifted."""
    picture, paper = Image.fromarray(pixels), tuple(pixels[0, 0].tolist())
    picture = picture.rotate(degrees, Image.Resampling.BICUBIC, fillcolor=paper)
    shift = (1.0, 0.0, -columns, 0.0, 1.0, -rows)
    return np.asarray(
        picture.transform(picture.size, Image.Transform.AFFINE, shift, Image.Resampling.BICUBIC, fillcolor=paper)
    )


def test_a_cell_agrees_with_itself_fully(pictures: list[NDArray[np.uint8]]) -> None:
    found = compared(pictures[0], pictures[0])
    assert found.score == pytest.approx(1, abs=1e-6)
    assert found.shift == (0, 0) and found.middles == 0
    assert ruling(found, DEFAULTS) is Verdict.DUPLICATE


@pytest.mark.parametrize(("rows", "columns", "degrees"), [(6, -3, 0), (-2.5, 4.25, 0), (0, 0, 2), (5, 5, -1.5)])
def test_shift_and_turn_are_found_below_a_pixel(
    pictures: list[NDArray[np.uint8]], rows: float, columns: float, degrees: float
) -> None:
    original = pictures[9]
    found = compared(original, moved(original, rows, columns, degrees))
    assert found.score > 0.98
    assert found.middles == pytest.approx(float(np.hypot(rows, columns)), abs=1.0)
    assert abs(found.turn) == pytest.approx(abs(degrees), abs=0.3)


def test_gains_of_colours_and_sharpness_do_not_count(pictures: list[NDArray[np.uint8]]) -> None:
    original = pictures[4]
    tinted = np.clip(original * np.array([0.93, 1.0, 0.96]), 0, 255).astype(np.uint8)
    assert compared(original, tinted).score > 0.995
    assert (
        compared(original, np.asarray(Image.fromarray(original).reduce(2).resize(original.shape[1::-1]))).score > 0.97
    )


def test_recaptures_of_real_cells_are_duplicates_and_other_cells_are_not(
    real_pictures: list[NDArray[np.uint8]],
) -> None:
    rng = np.random.default_rng(3)
    cells = real_pictures[::2]
    again = [decode(recapture(pixels, KINDS["strong"], rng)) for pixels in cells]
    same = [ruling(compared(a, b), DEFAULTS) for a, b in zip(cells, again, strict=True)]
    assert same.count(Verdict.DUPLICATE) >= len(cells) - 1
    others = [compared(a, b) for a, b in zip(cells, again[1:], strict=False)]
    assert [ruling(found, DEFAULTS) for found in others] == [Verdict.DIFFERENT] * len(others)
    assert max(found.score for found in others) < DEFAULTS.possible_from


def two_of_one_field(
    one: NDArray[np.uint8], two: NDArray[np.uint8], rows: int, columns: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Two pictures of one field, around a cell each; the middle of the second lies `rows`, `columns` from that of the
    first."""
    corner = [(a - b) // 2 for a, b in zip(one.shape, two.shape, strict=True)]
    return field_of_two(one, two, (corner[0] + rows, corner[1] + columns))


@pytest.mark.parametrize(("rows", "columns"), [(0, 105), (-80, 70), (60, -95), (120, 10)])
def test_two_pictures_of_one_field_are_neighbours(pbc: list[NDArray[np.uint8]], rows: int, columns: int) -> None:
    found = [compared(*two_of_one_field(pbc[i], pbc[i + 3], rows, columns)) for i in range(0, 12, 2)]
    assert min(laid.score for laid in found) > DEFAULTS.possible_from, "the field is the same, so the pictures agree"
    assert [ruling(laid, DEFAULTS) for laid in found] == [Verdict.NEIGHBOUR] * len(found)


def test_a_picture_of_a_neighbour_has_a_landmark_of_the_stored_one(pbc: list[NDArray[np.uint8]]) -> None:
    for i in range(0, 12, 2):
        first, second = (
            landmarks(pixels, prepare_pixels(pixels)) for pixels in two_of_one_field(pbc[i], pbc[i + 3], -80, 70)
        )
        assert 1 <= len(first) <= 6
        assert any(
            landmark_differs(stored.marks[0], shown) <= DEFAULTS.candidate_bits / 64
            for stored in first[:STORED]
            for shown in second
        )
        other = landmarks(pbc[i + 1], prepare_pixels(pbc[i + 1]))
        assert all(landmark_differs(other[0].marks[0], shown) > DEFAULTS.candidate_bits / 64 for shown in second)


def landmark_differs(stored: Fingerprint, shown: Any) -> float:
    """The share of the bits shown in which a stored landmark and one of a picture differ, of the hash that differs
    more."""
    return min(
        max(
            ((one ^ two) & bits).bit_count() / bits.bit_count()
            for one, two, bits in zip(stored, mark, shown.shown, strict=True)
        )
        for mark in shown.marks
    )


def test_what_lies_beyond_the_edge_of_a_picture_is_no_part_of_its_landmarks(pbc: list[NDArray[np.uint8]]) -> None:
    whole = pbc[0]
    cell = prepare_pixels(whole)
    (inner,) = landmarks(whole, cell)[:1]
    assert inner.shown == Fingerprint(2**64 - 1, 2**64 - 1)
    row, column = (round(at) for at in cell.centre)
    part = np.ascontiguousarray(whole[row - 60 :, column - 120 :])  # the window reaches 112 px up: the top is missing
    (outer,) = landmarks(part, prepare_pixels(part))[:1]
    assert 32 <= outer.shown.across.bit_count() < 64
    assert landmark_differs(inner.marks[0], outer) <= DEFAULTS.candidate_bits / 64
    empty = np.full((360, 360, 3), 235, np.uint8)
    assert landmarks(empty, prepare_pixels(empty)) == ()


def test_one_cell_is_told_by_its_centre_or_by_the_middles_of_its_pictures() -> None:
    same = Alignment(score=0.99, shift=(3.0, 2.0), turn=0.0, middles=8.0, overlap=0.9)
    assert ruling(same, DEFAULTS) is Verdict.DUPLICATE
    assert ruling(replace(same, score=0.94), DEFAULTS) is Verdict.POSSIBLE
    assert ruling(replace(same, score=0.9), DEFAULTS) is Verdict.DIFFERENT
    assert ruling(replace(same, shift=(60.0, 2.0)), DEFAULTS) is Verdict.DUPLICATE, "the analyser meant one cell"
    assert ruling(replace(same, middles=60.0), DEFAULTS) is Verdict.DUPLICATE, "cut from a field in two ways"
    assert ruling(replace(same, middles=60.0, score=0.94), DEFAULTS) is Verdict.POSSIBLE
    apart = replace(same, shift=(44.0, 12.0), middles=46.0)
    assert ruling(apart, DEFAULTS) is Verdict.NEIGHBOUR
    assert ruling(replace(apart, score=0.94), DEFAULTS) is Verdict.NEIGHBOUR
    assert ruling(replace(apart, score=0.9), DEFAULTS) is Verdict.DIFFERENT
    assert ruling(replace(apart, shift=(22.0, 20.0), middles=30.0), DEFAULTS) is Verdict.NEIGHBOUR, "platelets"


def test_each_picture_with_a_nucleus_in_its_middle_is_of_its_own_cell_though_one_was_found_in_both() -> None:
    found = Alignment(score=0.99, shift=(3.0, 2.0), turn=0.0, middles=75.0, overlap=0.9, stained=0.95)
    assert ruling(found, DEFAULTS) is Verdict.NEIGHBOUR
    assert ruling(replace(found, stained=0.3), DEFAULTS) is Verdict.DUPLICATE
    assert ruling(replace(found, middles=26.0), DEFAULTS) is Verdict.DUPLICATE, "one nucleus is that large"


def test_two_stained_middles_that_may_lie_in_one_nucleus_are_for_a_person_to_decide() -> None:
    found = Alignment(score=0.99, shift=(3.0, 2.0), turn=0.0, middles=50.0, overlap=0.9, stained=0.95)
    assert ruling(found, DEFAULTS) is Verdict.POSSIBLE, "one large cell, or two that touch"
    assert ruling(replace(found, middles=35.0), DEFAULTS) is Verdict.POSSIBLE, "two platelets, or one cell"
    assert ruling(replace(found, stained=0.3), DEFAULTS) is Verdict.DUPLICATE, "nothing stands in one of the middles"
    assert ruling(replace(found, shift=(30.0, 20.0)), DEFAULTS) is Verdict.NEIGHBOUR, "two centres were found"
    near = replace(found, shift=(18.0, 15.0))
    assert ruling(near, DEFAULTS) is Verdict.POSSIBLE, "two centres that one nucleus has room for"
    assert ruling(replace(near, middles=70.0), DEFAULTS) is Verdict.NEIGHBOUR, "two cells were meant"


def test_where_two_pictures_share_little_their_structure_has_to_agree_further() -> None:
    """A large cell in the middle fills what two pictures share: cells of bccd agree to 0.79 with others."""
    found = Alignment(score=0.75, shift=(3.0, 2.0), turn=0.0, middles=6.0, overlap=0.5, structure=0.78)
    assert ruling(found, DEFAULTS) is Verdict.DIFFERENT
    assert ruling(replace(found, structure=0.85), DEFAULTS) is Verdict.POSSIBLE
    assert ruling(replace(found, overlap=0.7), DEFAULTS) is Verdict.POSSIBLE


def test_the_same_cell_cut_from_a_large_field_in_two_ways_is_a_duplicate(pbc: list[NDArray[np.uint8]]) -> None:
    cell = pbc[8]
    paper = np.median(cell.reshape(-1, 3), axis=0).astype(np.uint8)
    fields = []
    for top, left in ((60, 150), (60, 90)):
        field = np.empty((480, 640, 3), np.uint8)
        field[:] = paper
        field[top : top + cell.shape[0], left : left + cell.shape[1]] = cell
        fields.append(field)
    found = compared(*fields)
    assert found.middles == pytest.approx(60, abs=3)
    assert ruling(found, DEFAULTS) is Verdict.DUPLICATE


def test_empty_pictures_agree_with_nothing(pictures: list[NDArray[np.uint8]]) -> None:
    empty = np.full((360, 360, 3), 235, np.uint8)
    grey = np.full((360, 360, 3), 120, np.uint8)
    for other in (empty, grey, pictures[0]):
        assert ruling(compared(empty, other), DEFAULTS) is Verdict.DIFFERENT


@pytest.mark.parametrize("size", [(32, 32), (33, 600), (256, 256), (2000, 1500)])
def test_pictures_of_any_size_can_be_compared(pictures: list[NDArray[np.uint8]], size: tuple[int, int]) -> None:
    other = np.asarray(Image.fromarray(pictures[0]).resize(size))
    assert -1 <= compared(pictures[0], other).score <= 1
    assert compared(other, other).score == pytest.approx(1, abs=1e-5)


def test_a_black_frame_is_no_part_of_a_cell(pictures: list[NDArray[np.uint8]]) -> None:
    original = pictures[3]
    framed = original.copy()
    framed[:9] = framed[:, -6:] = 0
    cell = prepare_pixels(framed)
    bare = without_frame(framed, cell)
    assert bare.size == (original.shape[0] - 11, original.shape[1] - 8)
    clean = prepare_pixels(original)
    assert without_frame(original, clean) is clean
    assert near(shifted_fingerprints(bare.surroundings), fingerprint(clean.surroundings)) <= DEFAULTS.candidate_bits
    assert ruling(align(view(clean), view(bare)), DEFAULTS) is Verdict.DUPLICATE


def near(marks: tuple[Fingerprint, ...], other: Fingerprint) -> int:
    return min(max((m.across ^ other.across).bit_count(), (m.down ^ other.down).bit_count()) for m in marks)


def test_comparing_changes_nothing_of_what_the_networks_see(pictures: list[NDArray[np.uint8]]) -> None:
    data = png(pictures[0])
    assert np.array_equal(prepare_pixels(decode(data)).crop, prepare(data).crop)


def test_the_first_of_the_shifted_fingerprints_is_the_cells(pictures: list[NDArray[np.uint8]]) -> None:
    crop = prepare_pixels(pictures[0]).surroundings
    marks = shifted_fingerprints(crop)
    assert len(marks) == 5 and marks[0] == fingerprint(crop)
    shifted = np.roll(crop, 8, axis=0)
    assert near(marks, fingerprint(shifted)) < near(marks[:1], fingerprint(shifted))


def test_windows_are_hashed_as_imagehash_does(pictures: list[NDArray[np.uint8]]) -> None:
    grey = np.asarray(Image.fromarray(pictures[5]).convert("L").reduce(4))
    corners = [(3, 7), (20, 11), (0, 30)]
    for (top, left), ours in zip(corners, hash_windows(grey, corners), strict=True):
        window = Image.fromarray(grey[top : top + WINDOW, left : left + WINDOW])
        theirs = [imagehash.dhash(window), imagehash.dhash_vertical(window)]
        for mine, their in zip(ours, theirs, strict=True):
            assert (mine ^ int(str(their), 16)).bit_count() <= 5, "but for what rounding decides"


def test_the_book_finds_exactly_the_cells_within_the_bits() -> None:
    rng = np.random.default_rng(0)
    size = 70_000  # more than one block
    bases = rng.integers(0, 2**64, (50, 2), np.uint64)
    across, down = (bases[np.arange(size) % 50, k].copy() for k in (0, 1))
    for hashes in (across, down):
        for _ in range(12):
            hashes ^= np.uint64(1) << rng.integers(0, 64, size).astype(np.uint64)
    book = HashBook()
    for start in range(0, size, 9_000):
        part = slice(start, start + 9_000)
        numbers = np.arange(size, dtype=np.uint64)[part]
        book.add(across[part], down[part], numbers + np.uint64(7), numbers.astype(np.uint32))
    marks = [Fingerprint(int(a), int(d)) for a, d in bases[:3]]
    differ = np.min(
        [
            np.maximum(np.bitwise_count(across ^ np.uint64(mark.across)), np.bitwise_count(down ^ np.uint64(mark.down)))
            for mark in marks
        ],
        axis=0,
    )
    expected = sorted((int(differ[i]), int(i), int(i) + 7) for i in np.flatnonzero(differ <= 10))
    assert len(expected) > 100
    assert book.within(marks, 10) == expected
    assert len(book) == size and book.next_age == size
    shown = Fingerprint(2**64 - 2**32, 2**64 - 2**16)
    one, two = (
        np.stack([np.bitwise_count((hashes ^ np.uint64(mark[k])) & np.uint64(shown[k])) for mark in marks])
        for k, hashes in enumerate((across, down))
    )
    # of 32 and of 48 bits that count, as many in proportion as 10 of 64
    differ = np.where((one <= 5) & (two <= 7), np.maximum(one, two), 99).min(axis=0)
    expected = sorted((int(differ[i]), int(i), int(i) + 7) for i in np.flatnonzero(differ < 99))
    assert len(expected) > 100
    assert book.within(marks, 10, shown) == expected


def test_a_book_of_the_last_ones_forgets_what_came_before() -> None:
    book = HashBook(most=3)
    numbers = np.arange(5, dtype=np.uint64)
    book.add(numbers, numbers, numbers, numbers.astype(np.uint32))
    assert sorted(number for _, _, number in book.within([Fingerprint(0, 0)], 64)) == [2, 3, 4]


def test_thresholds_come_with_the_bundle_and_older_bundles_get_defaults(starter: Bundle) -> None:
    own = Thresholds(8, 0.97, 0.94, 20.0, "for this test")
    assert Thresholds.of(own.to_json()) == own
    assert Thresholds.of({}) == DEFAULTS
    old = {"hash": "average_hash", "duplicate_below": 2, "possible_up_to": 3, "how": "the thesis' rule, section 4.2"}
    assert Thresholds.of(old) == DEFAULTS
    for_preparation_2 = {key: value for key, value in own.to_json().items() if key != "same_within"} | {
        "farthest": 32.0
    }
    assert Thresholds.of(for_preparation_2) == replace(own, same_within=DEFAULTS.same_within)
    assert Thresholds.of(starter.manifest.duplicates).candidate_bits > 0


@pytest.fixture
def lab(tmp_path: Path, starter: Bundle) -> Iterator[Lab]:
    (tmp_path / "export").mkdir()
    yield make_lab(tmp_path / "lab", tmp_path / "export", starter)


def test_the_judge_compares_kept_bytes_and_leaves_out_what_it_cannot_read(
    lab: Lab, pictures: list[NDArray[np.uint8]]
) -> None:
    files = [png(pictures[0]), recapture(pictures[0], KINDS["mild"], np.random.default_rng(0)), png(pictures[12])]
    names = [digest(data) for data in files]
    for data, name in zip(files, names, strict=True):
        lab.store_image(data, name)
    judge = Judge(lab, DEFAULTS)
    same, other = judge(names[0], names[1]), judge(names[0], names[2])
    assert same is not None and same.verdict is Verdict.DUPLICATE
    assert other is not None and other.verdict is Verdict.DIFFERENT
    assert judge(names[0], digest(b"not kept")) is None
    lab.image_path(names[2]).write_bytes(b"damaged")
    assert Judge(lab, DEFAULTS)(names[0], names[2]) is None


def test_the_middle_and_the_box_of_a_view_follow_the_image() -> None:
    crop = np.full((256, 256, 3), 240, np.uint8)
    cell = CellImage(crop, crop, (60.0, 125.0), (), (200, 252), (240.0, 240.0, 240.0), True)
    shown = view(cell)
    assert shown.middle == (39.5, 0.5)
    assert shown.box == (17, 1, 64, 63)


def test_the_benchmark_of_duplicates_measures_what_it_says(real_cells: Path, tmp_path: Path) -> None:
    found = measure(real_cells, recaptured=12, neighbours=4, limit=2, look_up=5_000, sheet=tmp_path / "pairs.png")
    assert found["pairs"]["cells"] == sum(found["pairs"]["by_set"][name]["cells"] for name in found["pairs"]["by_set"])
    for kind in ("mild", "strong"):
        share = found["recaptures"][kind]
        assert share["cells"] == 12
        assert 0.7 <= share["duplicate"] <= share["duplicate_or_possible"] <= share["candidate"] <= 1
    assert found["look_up"]["cells"] == 5_000
    assert found["neighbours"]["pairs"] == 4
    with Image.open(tmp_path / "pairs.png") as picture:
        assert picture.width > 500


def test_pictures_of_one_field_are_found_and_called_neighbours(real_cells: Path) -> None:
    found = measure_neighbours(sorted((real_cells / "pbc").glob("*/*.jpg")), 40, 5)
    for kind in ("one_capture", "captured_apart"):
        assert found[kind]["ruling"].get("neighbour", 0) >= 0.95
        assert found[kind]["end_to_end"].get("neighbour", 0) >= 0.95
        assert found[kind]["registered_with_others_per_picture"] <= 1
