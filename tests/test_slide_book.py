"""The books in memory say what a dictionary would, whatever came and moved."""

from __future__ import annotations

import numpy as np
import pytest

from labref.store.memory.books import CellBook
from labref.store.memory.slides import SlideBook
from labref.words import SlideId

NAMES = ("p1/a", "p1/b", "p1/c", "p2/a", "flat", "other")


def made(of: dict[int, tuple[SlideId | None, int]]) -> SlideBook:
    slides = list(dict.fromkeys(slide for slide, _ in of.values()))
    return SlideBook(
        np.array(list(of), np.uint64),
        np.array([came for _, came in of.values()], np.int64),
        np.array([slides.index(slide) for slide, _ in of.values()], np.uint32),
        slides,
    )


def test_newest_and_kin_are_those_of_a_book_made_anew() -> None:
    rng = np.random.default_rng(7)
    slides = [SlideId(folder, name) for folder in ("/in", "/far") for name in NAMES]
    known: dict[int, tuple[SlideId | None, int]] = {}
    book = made(known)
    for came in range(1, 200):
        number = int(rng.integers(1, 2**63))
        slide = None if rng.random() < 0.1 else slides[int(rng.integers(len(slides)))]
        known[number] = slide, came
        book.add(number, slide, came)
        if rng.random() < 0.3:
            # when a cell without a slide came the book does not know
            number = int(rng.choice([one for one, (slide, _) in known.items() if slide is not None]))
            slide = None if rng.random() < 0.1 else slides[int(rng.integers(len(slides)))]
            known[number] = slide, known[number][1]
            book.move(number, slide)
        if rng.random() < 0.5:
            anew = made(known)
            assert list(book.newest()) == list(anew.newest())
            assert [one.id for one in book.newest()] == sorted(
                {one for one, _ in known.values() if one is not None},
                key=lambda one: -max(came for slide, came in known.values() if slide == one),
            )
            for one in slides:
                kin = [
                    other.id
                    for other in anew.newest()
                    if other.id != one and other.id.folder == one.folder and one.name[:2] == "p1" == other.id.name[:2]
                ]
                if one.name[:2] == "p1":
                    assert book.kin(one) == kin
                else:
                    assert book.kin(one) == anew.kin(one)
                assert book.named(one.name) == anew.named(one.name)


@pytest.mark.parametrize("spread", ["even", "small", "large", "one", "none", "alike"])
def test_a_book_of_cells_finds_each_whatever_ids_they_have(spread: str) -> None:
    random = np.random.default_rng(3)
    ids = {
        "even": random.integers(0, 2**64, 40_000, dtype=np.uint64),
        "small": random.integers(0, 1000, 500, dtype=np.uint64),
        "large": np.uint64(2**64 - 1) - random.integers(0, 300, 200, dtype=np.uint64),
        "one": np.array([7], np.uint64),
        "none": np.empty(0, np.uint64),
        "alike": np.uint64(0xABCDEF0123456000) + np.arange(3000, dtype=np.uint64),
    }[spread]
    ids = random.permutation(np.unique(ids))
    codes = random.integers(0, 3, len(ids)).astype(np.uint32)
    book = CellBook(ids, codes, ["a", "b", "c"])
    carried = {number: "abc"[code] for number, code in zip(ids.tolist(), codes.tolist(), strict=True)}
    for number in (11, 2**64 - 5000, 12):  # added later; some books have them already
        if number not in carried:
            book.add(number, "later")
            carried[number] = "later"
    near = [number + step for number in ids[:50].tolist() for step in (-1, 1) if 0 <= number + step < 2**64]
    asked = [*ids.tolist(), 11, 12, 0, 2**64 - 1, 2**63, 2**64 - 5000, *near]
    assert book.of(asked) == [carried.get(number) for number in asked]
    found = book.codes_of(np.array(asked, np.uint64)).tolist()
    assert [None if code < 0 else book.values[code] for code in found] == [carried.get(number) for number in asked]
    assert [book.get(number) for number in asked] == book.of(asked)
