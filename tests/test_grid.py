"""The picture of an answer: everything the answer says can be seen on it, whatever its names and its size."""

from __future__ import annotations

import copy
import functools
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageChops

from labref.demo.cells import OPTICS, draw_cell, make_slides
from labref.pictures import grid, lettering


@functools.cache
def picture(label: str, seed: int) -> NDArray[np.uint8]:
    """Drawn once: it cannot be written into."""
    slide = make_slides(12, seed=3)[seed % 12]
    drawn = draw_cell(label, OPTICS[slide.optics], slide, np.random.default_rng(seed))
    drawn.flags.writeable = False
    return drawn


def answer(k: int = 8, **changed: Any) -> dict[str, Any]:
    labels = ["monocyte", "ig", "neutrophil"]
    sources = ["reviewed", "analyser", "predicted"]
    return {
        "image": "cell.jpg",
        "bundle": "5f3a9c21b7e4" + "0" * 52,
        "cell": {"found": True, "row": 181.0, "column": 179.5, "moved": 0.0, "others": 0},
        "predicted": {"label": "monocyte", "probability": 0.97},
        "probabilities": {"monocyte": 0.97, "ig": 0.03},
        "references": [
            {
                "cell_id": f"{i:016x}",
                "label": labels[i % 3],
                "label_source": sources[i % 3],
                "distance": 0.03 * (i + 1),
                "slide": f"S-{i}",
                "analyser": "DC-1",
                "captured_at": "2026-01-02T03:04:05+00:00",
                "path": f"/export/{i}.jpg",
                "duplicate_of": None,
            }
            for i in range(k)
        ],
        "distribution": {"n": 100 if k else 0, "weights": {"monocyte": 0.75, "ig": 0.25} if k else {}},
        "novelty": {"score": 0.4, "is_novel": False} if k else {"score": None, "is_novel": True},
        "duplicate_of": None,
        "map": None,
        "timings_ms": {"total": 41.0},
        **changed,
    }


def drawn(said: dict[str, Any]) -> Image.Image:
    images = [picture("monocyte", i + 1) for i in range(len(said["references"]))]
    return grid.draw(said, picture("monocyte", 0), images)


def changes(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Whether two answers with the same references look different."""
    one, other = drawn(a), drawn(b)
    return one.size != other.size or ImageChops.difference(one, other).getbbox() is not None


def counted(page: Image.Image, colour: str) -> int:
    rgb = tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return int((np.asarray(page) == rgb).all(axis=2).sum())


def where_is(page: Image.Image, cell: NDArray[np.uint8]) -> tuple[int, int] | None:
    """Column and row of a cell's picture among the nine places of a grid for eight."""
    height, width = cell.shape[:2]
    side = min(height, width)
    left, top = (width - side) // 2, (height - side) // 2
    whole = Image.fromarray(cell)
    square = whole.resize((288, 288), Image.Resampling.LANCZOS, box=(left, top, left + side, top + side))
    wanted = np.asarray(square)[100:180, 100:180]
    pixels = np.asarray(page)
    for y in range(page.height - 80):
        for column, x in enumerate((34, 34 + 310, 34 + 620)):
            if (pixels[y, x + 100 : x + 180] == wanted[0]).all() and (
                pixels[y : y + 80, x + 100 : x + 180] == wanted
            ).all():
                return column, (y - 100) // 380
    return None


def test_the_query_is_in_the_middle_and_its_references_around_it_nearest_first() -> None:
    said = answer()
    page = drawn(said)
    assert where_is(page, picture("monocyte", 0)) == (1, 1)
    places = [where_is(page, picture("monocyte", i + 1)) for i in range(8)]
    assert places == [(0, 0), (1, 0), (2, 0), (0, 1), (2, 1), (0, 2), (1, 2), (2, 2)]


@pytest.mark.parametrize("k", [0, 1, 2, 3, 5, 7, 8, 9, 16, 24, 25])
def test_any_number_of_references_has_room(k: int) -> None:
    columns, rows, middle = grid._arrange(k)
    assert columns * rows >= k + 1
    assert 0 <= middle < columns * rows
    if k >= 8:
        assert middle == (rows // 2) * columns + columns // 2
        assert columns % 2 == 1


@pytest.mark.parametrize("k", [0, 1, 5, 12])
def test_other_numbers_than_eight_are_drawn(k: int) -> None:
    page = drawn(answer(k))
    assert page.mode == "RGB"
    assert page.width >= 900


@pytest.mark.parametrize(
    "change",
    [
        {"label": "lymphocyte"},
        {"distance": 0.5},
        {"label_source": "predicted"},
        {"slide": "another slide"},
        {"analyser": "another analyser"},
        {"duplicate_of": "00ff00ff00ff00ff"},
        {"may_be_same": True},
    ],
)
def test_all_that_is_said_of_a_reference_shows(change: dict[str, Any]) -> None:
    said = answer()
    other = copy.deepcopy(said)
    other["references"][0] |= change
    assert changes(said, other)


@pytest.mark.parametrize(
    "change",
    [
        {"image": "another.jpg"},
        {"cell": {"found": False, "row": 181.0, "column": 179.5, "moved": 0.0, "others": 0}},
        {"cell": {"found": True, "row": 221.0, "column": 209.5, "moved": 50.0, "others": 0}},
        {"predicted": {"label": "ig", "probability": 0.97}},
        {"predicted": {"label": "monocyte", "probability": 0.55}},
        {"novelty": {"score": 1.7, "is_novel": True}},
        {"novelty": {"score": 0.5, "is_novel": False}},
        {"novelty": {"score": 0.4, "is_novel": False, "p": 0.3, "no_class": True}},
        {"prediction": {"label": "monocyte", "probability": 0.97, "shown": False, "reason": "no cell is called so"}},
        {"duplicate_of": "00ff00ff00ff00ff"},
        {"distribution": {"n": 57, "weights": {"monocyte": 0.75, "ig": 0.25}}},
    ],
)
def test_all_that_is_said_of_the_query_shows(change: dict[str, Any]) -> None:
    assert changes(answer(), answer(**change))


def test_what_is_said_of_a_novel_cell_is_so_in_a_small_lab_too() -> None:
    assert grid.how_far(0.004) == "0.4% of the lab's own lie as far off"
    assert grid.how_far(1 / 27) == "none of the lab's own lies as far off", "of 26 cells none can be rarer"
    of_few = answer(novelty={"score": 1.7, "is_novel": True, "p": 1 / 27, "no_class": True})
    of_many = answer(novelty={"score": 1.7, "is_novel": True, "p": 0.004, "no_class": True})
    assert changes(of_few, of_many)


def test_a_middle_without_a_cell_is_warned_of_and_an_answer_that_does_not_tell_of_it_is_drawn_all_the_same() -> None:
    said = answer()
    nothing = {"found": False, "row": 181.0, "column": 179.5, "moved": 0.0, "others": 0}
    band = 976 * 30
    assert counted(drawn(said), grid._WARN_PAPER) == 0
    assert counted(drawn(said | {"cell": nothing}), grid._WARN_PAPER) > band
    del said["cell"]
    assert counted(drawn(said), grid._WARN_PAPER) == 0


def test_a_cell_away_from_the_middle_is_marked_where_it_lies_and_its_nucleus_is_not_hidden() -> None:
    cell = np.full((363, 360, 3), 120, np.uint8)  # neither white nor as dark as a mark's edge
    images = [cell] * 8
    scale = 288 / 360
    for row, column in [(181.0, 179.5), (200.0, 190.0), (150.0, 250.0), (240.0, 110.0)]:
        moved = float(np.hypot(row - 181, column - 179.5))
        found = {"found": True, "row": row, "column": column, "moved": round(moved, 1), "others": 0}
        pixels = np.asarray(grid.draw(answer(cell=found), cell, images))
        top = 116 + grid._TILE + grid._CAPTION + grid._GAP
        tile = pixels[top : top + 288, 344 : 344 + 288]
        touched = np.argwhere((tile != 120).any(axis=2))
        if moved <= 25:
            assert len(touched) == 0
            continue
        upper = min(max(int(row - 179.5), 0), 3)
        y, x = (row + 0.5 - upper) * scale, (column + 0.5) * scale
        top, left = touched.min(axis=0)
        bottom, right = touched.max(axis=0)
        assert (top + bottom) / 2 == pytest.approx(y, abs=1.5)
        assert (left + right) / 2 == pytest.approx(x, abs=1.5)
        assert np.abs(touched - (y, x)).max(axis=1).min() > 45 * scale, "nothing is drawn over the nucleus"
        assert (tile == 255).all(axis=2).sum() > 100
        assert (tile < 40).all(axis=2).sum() > 100, "white with a dark edge: seen on any cell"


def test_a_reference_is_shown_about_its_cell_and_marked_where_that_is_not_the_middle() -> None:
    field = np.full((480, 640, 3), 200, np.uint8)
    field[100:140, 520:560] = (90, 40, 130)  # the cell, which the middle square of the picture does not hold
    said = answer(cell={"found": True, "row": 239.5, "column": 319.5, "moved": 0.0, "others": 0})
    centres: list[tuple[float, float] | None] = [(119.5, 539.5), None, *[(239.5, 319.5)] * 6]
    page = np.asarray(grid.draw(said, field, [field] * 8, centres))
    first, second = page[116 : 116 + 288, 34 : 34 + 288], page[116 : 116 + 288, 344 : 344 + 288]
    seen = np.argwhere((first == (90, 40, 130)).all(axis=2))
    assert len(seen) > 600
    assert seen.mean(axis=0) == pytest.approx([120 * 0.75, 284 * 0.75], abs=1.5), (
        "384 pixels of the picture, kept within it"
    )
    assert (first == 255).all(axis=2).sum() > 100 + (second == 255).all(axis=2).sum()
    assert not (second == (90, 40, 130)).all(axis=2).any()


def test_the_spread_is_drawn_to_scale_in_the_colours_of_the_classes() -> None:
    def bars(weights: dict[str, float]) -> dict[str, int]:
        page = drawn(answer(distribution={"n": 100, "weights": weights}))
        below = page.crop((0, page.height - 46 - 34 - 34 * len(weights) - 10, page.width, page.height))
        return {label: counted(below, lettering.class_colour(label)) for label in weights}

    even = bars({"platelet": 0.5, "basophil": 0.5})
    assert even["platelet"] == pytest.approx(even["basophil"], rel=0.02)
    uneven = bars({"platelet": 0.8, "basophil": 0.2})
    assert uneven["platelet"] == pytest.approx(4 * uneven["basophil"], rel=0.05)


def test_many_classes_end_in_one_bar_for_the_rest() -> None:
    weights = {f"class {i}": 1 / 30 for i in range(30)}
    shares = grid._shares(weights)
    assert len(shares) == 10
    assert shares[-1][0] == "21 other classes"
    assert sum(share for _, share, _ in shares) == pytest.approx(1.0)


def test_a_class_has_one_colour_whatever_its_case_and_other_classes_have_others() -> None:
    assert lettering.class_colour("Monocyte") == lettering.class_colour("monocyte")
    names = ["basophil", "eosinophil", "erythroblast", "ig", "lymphocyte", "monocyte", "neutrophil", "platelet"]
    assert len({lettering.class_colour(n) for n in [*names, "Blast, no lineage spec", "Smudge cells"]}) == 10


@pytest.mark.parametrize("fonts", ["system", "built in"])
@pytest.mark.parametrize("name", ["Ångström", "日本", "日 and Å, " + "very long " * 30, "x" * 300, "a\nb\tc", "😀", ""])
def test_names_of_any_script_and_length_stay_in_their_place(
    name: str, fonts: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fonts == "built in":
        monkeypatch.setattr(lettering, "_LATIN", ())
        monkeypatch.setattr(lettering, "_EAST_ASIAN", ())
    lettering.faces.cache_clear()
    try:
        said = answer(image=name, distribution={"n": 100, "weights": {name: 0.6, "ig": 0.4}})
        said["references"][0] |= {"label": name, "slide": name, "analyser": name}
        page = drawn(said)
        assert lettering.length(lettering.fit(name, 22, True, 288, "end"), 22, True) <= 288
    finally:
        lettering.faces.cache_clear()
    pixels = np.asarray(page)
    margin, gap = pixels[:, :33], pixels[120 : 120 + 288 + 90, 34 + 289 : 34 + 288 + 21]
    assert (margin == 255).all()
    assert (gap == 255).all()


def test_two_names_that_no_font_can_set_do_not_look_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lettering, "_LATIN", ())
    monkeypatch.setattr(lettering, "_EAST_ASIAN", ())
    lettering.faces.cache_clear()
    try:
        one, other = answer(), answer()
        one["references"][0]["label"] = "日"
        other["references"][0]["label"] = "本"
        assert changes(one, other)
    finally:
        lettering.faces.cache_clear()


def test_a_reference_without_an_image_keeps_its_place() -> None:
    said = answer()
    images: list[NDArray[np.uint8] | None] = [picture("ig", i) for i in range(8)]
    images[3] = None
    assert grid.draw(said, picture("ig", 9), images).size == drawn(said).size


def test_images_of_any_shape_are_drawn() -> None:
    shapes = [(480, 640), (640, 480), (33, 400), (256, 256), (1, 1), (363, 360), (900, 900), (2, 50)]
    images = [np.full((*shape, 3), 120, np.uint8) for shape in shapes]
    assert grid.draw(answer(), picture("ig", 1), images).width == 976


def test_a_missing_image_is_the_callers_mistake() -> None:
    with pytest.raises(ValueError, match="8 references, but 7 images"):
        grid.draw(answer(), picture("ig", 0), [picture("ig", 1)] * 7)
    with pytest.raises(ValueError, match="8 images of references and 1 centres"):
        grid.draw(answer(), picture("ig", 0), [picture("ig", 1)] * 8, [(3.0, 3.0)])
