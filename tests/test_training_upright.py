"""Crops turned upright: a cell lies alike however its picture was turned and mirrored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from labref.bundles.graph import check_graph
from labref.cells.image import decode, prepare, prepare_pixels
from training.config import PRESETS, override
from training.measure.evaluate import turn

SIDE = 128
VIEWS = [(0.0, False), (90.0, False), (180.0, True), (0.0, True), (37.0, False), (200.0, False), (75.0, True)]
EXACT = 4  # so many of these only exchange pixels


@pytest.fixture(scope="module", autouse=True)
def _networks() -> None:
    """What loads TensorFlow: only the worker that runs this file does, not each that collects it."""
    global Upright, _before_weights, build_classifier, build_trunk, convert, draw_weights, keras, onnx, onnxruntime
    global reduce_trunk
    import keras
    import onnx
    import onnxruntime

    from exporters.bundles import convert
    from exporters.precision import _before_weights, reduce_trunk
    from training.networks.architecture import Upright, build_classifier, build_trunk, draw_weights


def crops_of(folder: Path, count: int) -> NDArray[np.uint8]:
    """The crops of the first pictures below a folder: uint8[count, 256, 256, 3]."""
    return np.stack([prepare(path.read_bytes()).crop for path in sorted(folder.rglob("*.jpg"))[:count]])


def small(crops: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Crops uint8[n, 256, 256, 3] at the size of a network: float32[n, 128, 128, 3]."""
    return crops.reshape(len(crops), SIDE, 2, SIDE, 2, 3).mean((2, 4)).astype(np.float32)


def upright(crops: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Crops uint8[n, 256, 256, 3] at the size of a network, upright: float32[n, 128, 128, 3]."""
    return np.asarray(Upright()(small(crops)))


def within() -> NDArray[np.bool_]:
    """bool[128, 128]: what is in sight whichever way a crop is turned."""
    place = np.arange(SIDE) - (SIDE - 1) / 2
    return np.hypot(place[:, None], place[None]) < 0.47 * SIDE


@pytest.mark.parametrize("collection", ["pbc", "chula", "bccd", "bonemarrow", "raabin"])
def test_a_real_cell_lies_alike_however_its_picture_is_turned(real_cells: Path, collection: str) -> None:
    """The difference in grey values, mean over the circle, of each view of a cell from its first one: as it lies, and
    upright."""
    folders = sorted(path for path in (real_cells / collection).iterdir() if path.is_dir())
    pictures = [decode(path.read_bytes()) for folder in folders for path in sorted(folder.glob("*.jpg"))[:4]]
    crops = np.stack([[prepare_pixels(turn(picture, *view)).crop for picture in pictures] for view in VIEWS])
    stood = np.stack([upright(view) for view in crops])
    lay = crops[:, :, ::2, ::2].astype(np.float32)
    apart_before, apart = (np.abs(a[1:] - a[0]).mean(-1)[..., within()].mean(-1) for a in (lay, stood))
    assert np.median(apart_before) > 10
    assert np.median(apart[: EXACT - 1]) < 1
    assert np.median(apart) < 3.5
    assert np.mean(apart < 0.5 * np.median(apart_before)) > 0.8  # corners that a turned picture lacks also count


def test_where_nothing_lies_in_any_direction_nothing_is_lost() -> None:
    """An empty crop, and one whose cell is round: as many pixels of each grey as before."""
    empty = np.full((1, 256, 256, 3), 240, np.uint8)
    np.testing.assert_allclose(upright(empty), 240, atol=1e-3)
    row, column = np.mgrid[:256, :256] - 127.5
    round_cell = np.where(np.hypot(row, column) < 60, 90, 240).astype(np.uint8)[None, :, :, None].repeat(3, axis=3)
    assert np.isfinite(upright(round_cell)).all()
    assert abs(upright(round_cell).mean() - round_cell.mean()) < 0.5


def test_a_batch_is_turned_as_each_of_its_crops_alone(drawn_cells: Path) -> None:
    crops = crops_of(drawn_cells, 5)
    together = upright(crops)
    for crop, stood in zip(crops, together, strict=True):
        np.testing.assert_allclose(upright(crop[None])[0], stood, atol=0.05)


def test_the_layer_is_kept_with_its_network(tmp_path: Path, drawn_cells: Path) -> None:
    seen = keras.Input((SIDE, SIDE, 3))
    keras.Model(seen, Upright(name="upright")(seen)).save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    crops = crops_of(drawn_cells, 1)
    np.testing.assert_allclose(np.asarray(again(small(crops))), upright(crops), atol=1e-3)


@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_a_reduced_trunk_turns_crops_as_the_full_one_does(precision: str, tmp_path: Path, drawn_cells: Path) -> None:
    """What says how a cell lies is not reduced: a crop that is turned otherwise has other features."""
    settings = ["width=0.125", "input_size=64", "middle_repeats=0", "circle=true", "upright=true"]
    classifier = build_classifier(
        override(PRESETS["starter"], [f"classifier.{word}" for word in settings]).classifier, 9
    )
    draw_weights(classifier, 1)
    crops = crops_of(drawn_cells, 8)
    convert(build_trunk(classifier, 1), "crops", np.uint8, ["probabilities", "features"], tmp_path / "full.onnx")
    reduce_trunk(tmp_path / "full.onnx", precision, tmp_path / "reduced.onnx", crops)  # type: ignore[arg-type]
    check_graph((tmp_path / "reduced.onnx").read_bytes(), "reduced.onnx")
    if precision == "int8":
        before = [node.op_type for node in _before_weights(onnx.load(tmp_path / "reduced.onnx").graph)]
        assert "ArgMax" in before and "QuantizeLinear" not in before
        return
    full, reduced = (
        onnxruntime.InferenceSession(str(tmp_path / name), providers=["CPUExecutionProvider"]).run(
            ["features"], {"crops": crops}
        )[0]
        for name in ("full.onnx", "reduced.onnx")
    )
    assert np.abs(reduced - full).mean() < 0.02 * np.abs(full - full.mean(axis=0)).mean()
