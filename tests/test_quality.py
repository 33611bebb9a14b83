"""Whether a picture shows one stained cell: what is refused, what is marked, and what becomes of it in a lab."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from labref.asking.answer import answer, withheld
from labref.bundles.bundle import Bundle
from labref.bundles.inference import Embedder
from labref.bundles.schema import check_manifest
from labref.cells.image import U8, decode
from labref.cells.quality import DEFAULTS, Measured, Thresholds, judge
from labref.cli import app
from labref.demo.cells import LABELS, OPTICS, draw_cell, encode_jpeg, make_slides
from labref.errors import LabrefError
from labref.lab import Lab
from labref.operations import perform
from labref.pictures.grid import draw
from labref.store import Store
from labref.tasks.context import Adoption, Context
from labref.words import Reason
from tests.labs import ledger, make_lab, once
from training.measure.quality import KINDS, calibrate, cells_of, doubted, field_of_nine, measured

SETS = ("pbc", "chula", "bccd", "bonemarrow")


def drawn(label: str = "lymphocyte", seed: int = 3) -> U8:
    """A cell as labref draws it."""
    slide = make_slides(1, seed=seed)[0]
    return decode(encode_jpeg(draw_cell(label, OPTICS[slide.optics], slide, np.random.default_rng(seed))))


def real(folder: Path, domain: str, most: int) -> list[U8]:
    """Pictures on which no threshold was calibrated."""
    items = cells_of(folder, domain, calibration=False, most=most)
    return [decode((folder / item.path).read_bytes()) for item in items]


def asking(lab: Lab, store: Store, embedder: Embedder) -> Context:
    """What operations work on where no agent runs."""

    def no(bundle: Bundle) -> Adoption:
        raise AssertionError(f"nobody adopts {bundle.digest}")

    return Context(lab, store, lambda: embedder, None, no)


def red_cells_only() -> U8:
    """Six red cells, as pale rings without anything blue."""
    rows, columns = np.mgrid[:360, :360]
    picture = np.full((360, 360, 3), (246, 236, 226), np.float32)
    for row, column in ((70, 80), (90, 230), (180, 150), (200, 300), (280, 70), (290, 220)):
        away = np.hypot(rows - row, columns - column)
        picture[away < 32] = (214, 172, 165)
        picture[away < 12] = (232, 206, 198)
    return np.asarray(Image.fromarray(picture.astype(np.uint8)).resize((360, 360)))


@pytest.mark.parametrize("label", LABELS)
def test_a_drawn_cell_is_a_cell(label: str) -> None:
    assert doubted(drawn(label)) == ""


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"red_cells", "red_cells_enlarged", "coarse_noise", "motion_40"}))
def test_a_bad_picture_of_a_drawn_cell_is_refused_or_marked(kind: str) -> None:
    made = KINDS[kind](drawn(), np.random.default_rng(0))
    assert made is not None
    assert doubted(made)


def test_red_cells_hold_nothing_and_a_field_is_no_cell() -> None:
    assert doubted(red_cells_only()) == "nothing"
    assert doubted(field_of_nine([drawn(seed=seed) for seed in range(9)])) == "several"


def test_a_black_frame_or_a_shift_does_not_make_a_cell_doubtful(tmp_path: Path) -> None:
    """As software leaves it that moves pictures; judged by the decoding process, which leaves the frame out."""
    from labref.cells.examination import TASKS

    framed = drawn().copy()
    framed[:20] = framed[:, :14] = 0
    examined = TASKS["examine"](encode_jpeg(framed), 10**7)
    assert judge(examined.judged_by).reason is None


@pytest.mark.parametrize("domain", SETS)
def test_real_cells_are_cells(real_cells: Path, domain: str) -> None:
    said = [doubted(pixels) for pixels in real(real_cells, domain, 24)]
    assert sum(map(bool, said)) <= 1, said


@pytest.mark.parametrize(
    "kind", ["blank", "noise", "red_cells", "blur_15", "inverted", "grey", "one_channel", "one_channel_inverted"]
)
def test_bad_pictures_of_real_cells_are_refused_or_marked(real_cells: Path, kind: str) -> None:
    rng = np.random.default_rng(1)
    made = [KINDS[kind](pixels, rng) for pixels in real(real_cells, "pbc", 12)]
    said = [doubted(one) for one in made if one is not None]
    assert len(said) >= 6
    assert sum(map(bool, said)) >= 0.9 * len(said), said


def test_reasons_are_told_in_their_order() -> None:
    good = Measured(True, 1.4, 0.5, 0.8, 0.4, 0.5, 0.2, -5.0, 0.0, 0, 0.0)
    assert judge(good).is_cell and judge(good).reason is None
    for changes, reason, is_cell in (
        ({"chroma": 0.0}, Reason.COLOUR, False),
        ({"chroma": 2.0}, Reason.COLOUR, False),
        ({"inverted": 9.0, "found": False}, Reason.COLOUR, False),
        ({"found": False}, Reason.NOTHING, False),
        ({"darkness": 0.2, "blueness": 0.01, "focus": 0.01}, Reason.NOTHING, False),
        ({"darkness": 0.2}, None, True),
        ({"blueness": 0.01}, None, True),
        ({"greenness": 0.0}, Reason.COLOUR, False),
        ({"focus": 0.05, "cut": 2.0}, Reason.BLURRED, False),
        ({"beside": 8}, Reason.SEVERAL, False),
        ({"crowd": 9.0}, Reason.SEVERAL, False),
        ({"cut": 2.0}, Reason.CUT, True),
    ):
        found = judge(replace(good, **changes))
        assert (found.reason, found.is_cell) == (reason, is_cell), changes


def test_thresholds_come_from_the_bundle_or_are_labrefs_own(starter: Bundle) -> None:
    assert Thresholds.of(starter.manifest.quality) == DEFAULTS  # made before there were any
    strict = Thresholds.of(DEFAULTS.to_json() | {"focus": 0.4})
    found = measured(drawn())
    assert found is not None and judge(found, strict).focus == judge(found).focus
    values = starter.manifest.to_json() | {"quality": strict.to_json()}
    check_manifest(values)
    for wrong in ({"focus": 7.0}, {"crowd": 0.0}, {"how": 3}):
        with pytest.raises(ValueError, match="quality"):
            check_manifest(values | {"quality": strict.to_json() | wrong})


def test_calibration_doubts_few_of_what_it_is_given(drawn_cells: Path, tmp_path: Path, starter: Bundle) -> None:
    (tmp_path / "drawn").symlink_to(drawn_cells, target_is_directory=True)
    found = calibrate(tmp_path, ["drawn"])
    assert found.how and 0 < found.focus <= 0.5
    items = cells_of(tmp_path, "drawn", calibration=True)
    assert items and not {item.path for item in items} & {
        item.path for item in cells_of(tmp_path, "drawn", calibration=False)
    }
    check_manifest(starter.manifest.to_json() | {"quality": found.to_json()})
    said = [doubted(decode((tmp_path / item.path).read_bytes()), found) for item in items]
    assert not any(said), said
    with pytest.raises(ValueError, match="no images"):
        calibrate(tmp_path, ["absent"])


def test_a_lab_refuses_what_holds_nothing_marks_what_is_doubtful_and_takes_in_what_a_person_says(
    tmp_path: Path, starter: Bundle, embedder: Embedder
) -> None:
    export = tmp_path / "export"
    export.mkdir()
    cells = {f"good{seed}": drawn(seed=seed) for seed in range(3)}
    cells["blurred"] = KINDS["blur_15"](drawn(seed=7), np.random.default_rng(0))  # type: ignore[assignment]
    cells["red"] = red_cells_only()
    for name, pixels in cells.items():
        (export / f"{name}.jpg").write_bytes(encode_jpeg(pixels))
    lab = make_lab(tmp_path / "lab", export, starter)
    once(lab)
    rows = ledger(lab)
    red = rows["red.jpg"]
    assert red["outcome"] == "rejected" and red["reason"].startswith("holds nothing: nothing is stained")
    assert "--take-in" in red["reason"]
    blurred = rows["blurred.jpg"]["cell_id"]
    assert rows["blurred.jpg"]["outcome"] == "stored"

    with lab.open_store() as store:
        context = asking(lab, store, embedder)
        assert store.qualities.doubted() == {blurred} == withheld(lab, store)
        assert store.qualities.of([blurred])[blurred].reason is Reason.BLURRED
        assert store.qualities.counts() == (4, 4)
        question = encode_jpeg(drawn(seed=5))
        said = answer(lab, store, embedder, question, name="q")
        assert said["quality"]["is_cell"] and said["quality"]["reason"] is None and said["quality"]["focus"] > 0.2
        assert blurred not in {one["cell_id"] for one in said["references"]}
        bad = answer(lab, store, embedder, (export / "blurred.jpg").read_bytes(), name="q")
        assert bad["quality"] == {"is_cell": False, "reason": str(Reason.BLURRED), "focus": bad["quality"]["focus"]}
        shown = next(iter(perform(context, "cell.show", {"cell": blurred})))
        assert shown["is_doubted"] and shown["quality"] == bad["quality"]
        picture = draw(bad, cells["blurred"], [None] * len(bad["references"]))
        assert picture.height > draw(said, cells["good0"], [None] * len(said["references"])).height

        # a person decides: a good reference all the same, and back
        assert next(iter(perform(context, "review.queues", {})))["pictures"] == 1
        waiting = list(perform(context, "review.cells", {"queue": "pictures"}))
        assert [(row["cell_id"], row["doubt"]) for row in waiting] == [(blurred, Reason.BLURRED)]
        assert next(iter(perform(context, "reference.undo", {"cell": blurred, "who": "Ana"})))["changed"]
        assert not store.qualities.doubted()
        said = answer(lab, store, embedder, question, name="q")
        assert blurred in {one["cell_id"] for one in said["references"]}
        next(iter(perform(context, "reference.reject", {"cell": blurred})))
        said = answer(lab, store, embedder, question, name="q")
        assert blurred not in {one["cell_id"] for one in said["references"]}

        with pytest.raises(LabrefError, match="no rejected file"):
            list(perform(context, "ledger.take_in", {"path": str(export / "absent.jpg")}))

    done = CliRunner().invoke(app, ["ledger", "--take-in", str(export), "--lab", str(lab.folder)])
    assert done.exit_code == 0 and "red.jpg" in done.stdout, done.output
    once(lab)
    taken = ledger(lab)["red.jpg"]
    assert taken["outcome"] == "stored"
    once(lab)  # and it stays
    assert ledger(lab)["red.jpg"]["outcome"] == "stored"
    with lab.open_store() as store:
        assert store.qualities.of([taken["cell_id"]])[taken["cell_id"]].reason is Reason.NOTHING
        assert taken["cell_id"] in store.qualities.doubted()
        # somebody gives it a class: that decides
        context = asking(lab, store, embedder)
        list(perform(context, "review.decide", {"cell": taken["cell_id"], "queue": "pictures"}))
        assert not store.qualities.doubted()


def test_cells_stored_before_are_judged_from_their_kept_bytes(
    tmp_path: Path, starter: Bundle, embedder: Embedder
) -> None:
    from labref.operations.quality import due

    export = tmp_path / "export"
    export.mkdir()
    for name, pixels in (("a", drawn()), ("b", KINDS["blur_15"](drawn(seed=9), np.random.default_rng(0)))):
        assert pixels is not None
        (export / f"{name}.jpg").write_bytes(encode_jpeg(pixels))
    lab = make_lab(tmp_path / "lab", export, starter)
    once(lab)
    with lab.open_store() as store:
        with store._transaction() as connection:  # as a lab of before has it after the migration
            connection.execute("DELETE FROM quality")
        store.qualities.drop_cached()
        context = asking(lab, store, embedder)
        assert store.qualities.counts() == (2, 0) and not store.qualities.doubted()
        assert due(context) is not None
        cell = store.qualities.missing()[0]
        assert next(iter(perform(context, "cell.show", {"cell": cell})))["quality"] is None
        *_, last = perform(context, "quality.judge", {})
        assert last == {"judged": 2, "doubted": 1}
        assert due(context) is None
