"""Cells laid beside the one in the middle: the middle and the label stay, what surrounds them changes, and nothing
unless asked for."""

from __future__ import annotations

import json

import numpy as np
import pytest

from labref.cells.image import BACKGROUND
from training.config import PRESETS, Augmentation, ClassifierConfig, RunConfig

STILL = {
    "rotation_degrees": 0.0, "flip": False, "shift": 0.0, "zoom": 0.0, "gain": 0.0, "brightness": 0.0, "blur": 0.0,
}  # fmt: skip
SIDE = 128
ROWS, COLUMNS = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2
FROM_MIDDLE = np.hypot(ROWS, COLUMNS) * 256 / SIDE


@pytest.fixture(scope="module", autouse=True)
def _networks() -> None:
    """What loads TensorFlow: only the worker that runs this file does, not each that collects it."""
    global tf, augment, with_optics, NEIGHBOURS, draw_neighbours, _dataset, SEED
    import tensorflow as tf

    from training.augmentation.augment import augment, with_optics
    from training.augmentation.neighbours import NEIGHBOURS, draw_neighbours
    from training.networks.classifier import _dataset

    SEED = tf.constant([3, 4], tf.int32)


def discs(count: int, radius: float, colour: int) -> np.ndarray:
    """Crops uint8[count, SIDE, SIDE, 3] of one disc of `radius` px of the 256-px crop."""
    crop = np.where(FROM_MIDDLE[..., None] < radius, colour, BACKGROUND).astype(np.uint8)
    return np.repeat(np.repeat(crop, 3, axis=2)[None], count, axis=0)


def beside(crops: np.ndarray, others: np.ndarray, **values: float) -> np.ndarray:
    config = Augmentation(**{**STILL, "neighbour": 1.0, "neighbour_second": 0.0, "neighbour_faded": 0.0, **values})
    out = np.asarray(augment(crops, config, SEED, np.repeat(others[:, None], NEIGHBOURS, axis=1)))
    assert out.shape == crops.shape and out.min() >= 0 and out.max() <= 255
    return out


def test_it_is_off_by_default_and_old_runs_read_as_before() -> None:
    assert Augmentation().neighbour == 0.0
    assert all(preset.classifier.augmentation.neighbour == 0.0 for preset in PRESETS.values())
    values = json.loads(json.dumps(PRESETS["experts"].to_json()))
    augmentation = values["classifier"]["augmentation"]
    values["classifier"]["augmentation"] = {
        name: value for name, value in augmentation.items() if not name.startswith("neighbour")
    }
    assert RunConfig.from_json(values) == PRESETS["experts"]
    crops = discs(3, 40, 120)
    np.testing.assert_allclose(augment(crops, Augmentation(**STILL), SEED), crops, atol=1e-3)
    with pytest.raises(ValueError, match="none are given"):
        augment(crops, Augmentation(neighbour=0.5), SEED)


@pytest.mark.parametrize("faded", [0.0, 1.0])
def test_the_middle_stays_and_the_rest_changes(faded: float) -> None:
    generator = np.random.default_rng(1)
    crops, others = (generator.integers(0, 200, (12, SIDE, SIDE, 3)).astype(np.uint8) for _ in range(2))
    out = beside(crops, others, neighbour_faded=faded, neighbour_second=1.0)
    np.testing.assert_allclose(out[:, FROM_MIDDLE < 20], crops[:, FROM_MIDDLE < 20], atol=1e-3)
    changed = np.abs(out - crops).max(axis=-1) > 1
    assert (changed[:, (FROM_MIDDLE > 60) & (FROM_MIDDLE < 120)].mean(axis=1) > 0.1).all()


def test_the_neighbour_lies_as_far_as_asked_by_the_darker_pixel() -> None:
    crops, others = discs(40, 40, 150), discs(40, 15, 30)
    out = beside(crops, others, neighbour_near=80.0, neighbour_far=130.0)
    dark = out[..., 0] < 80
    away, angles = [], []
    for one in dark:
        row, column = ROWS[one].mean() * 2, COLUMNS[one].mean() * 2
        away.append(np.hypot(row, column))
        angles.append(np.arctan2(row, column))
    whole = np.array([one.sum() > 0.9 * dark.sum(axis=(1, 2)).max() for one in dark])  # not cut off at the edge
    assert whole.sum() > 20
    assert np.all((np.array(away)[whole] > 79) & (np.array(away)[whole] < 131))
    assert np.ptp(np.array(away)[whole]) > 25
    assert len(set(np.sign(np.cos(angles))) | set(2 * np.sign(np.sin(angles)))) == 4, "on every side"
    assert (out <= crops + 1e-3).all()


def test_as_many_have_neighbours_as_asked() -> None:
    crops, others = discs(200, 40, 150), discs(200, 15, 30)

    def neighbours(**values: float) -> np.ndarray:
        """Share of a whole neighbour's pixels in each crop."""
        dark = (beside(crops, others, neighbour_near=80.0, neighbour_far=90.0, **values)[..., 0] < 80).sum(axis=(1, 2))
        return dark / (others[0, ..., 0] < 80).sum()

    assert 0.4 < (neighbours(neighbour=0.5) > 0).mean() < 0.6
    assert neighbours().max() < 1.3
    twice = neighbours(neighbour_second=0.5) > 1.5
    assert 0.4 < twice.mean() < 0.6


def test_what_is_faded_is_the_neighbour() -> None:
    crops, others = discs(40, 30, 150), discs(40, 30, 30)
    plain, faded = beside(crops, others), beside(crops, others, neighbour_faded=1.0)
    theirs = plain[..., 0] < 60
    lighter = (faded - plain)[..., 0]
    assert lighter.min() > -1e-3
    assert lighter[theirs].mean() > 120, "most of a neighbour's density is gone"
    own = FROM_MIDDLE < 25
    assert lighter[:, own].mean() < 5


def test_others_are_of_the_same_optics_and_another_class_where_there_are_some() -> None:
    generator = np.random.default_rng(1)
    rows = np.arange(100, 300)
    targets, domains = np.arange(300) % 4, np.arange(300) // 150
    batch = np.array([101, 140, 160, 299])
    found = np.concatenate([draw_neighbours(batch, rows, targets, domains, generator) for _ in range(50)], axis=1)
    assert found.shape == (4, 50 * NEIGHBOURS) and np.isin(found, rows).all()
    fits = (domains[found] == domains[batch][:, None]) & (targets[found] != targets[batch][:, None])
    assert fits.mean() > 0.85
    assert len(np.unique(found)) > 100
    alone = draw_neighbours(batch, batch[:1], targets, domains, generator)
    assert (alone == batch[0]).all(), "where there is no other, any will do"


def test_labels_and_weights_stay_and_a_resumed_epoch_goes_on() -> None:
    generator = np.random.default_rng(2)
    crops = generator.integers(0, 255, (20, 32, 32, 3)).astype(np.uint8)
    targets, rows = generator.integers(0, 3, 20), np.arange(20)
    weights = np.array([0.5, 1.0, 2.0], np.float32)
    codes = generator.integers(-1, 3, (20, 2))

    def stream(neighbour: float, first: int = 0) -> list:
        config = ClassifierConfig(batch_size=5, augmentation=Augmentation(neighbour=neighbour))
        return [
            [np.asarray(part) for part in (images, *wanted, *shares)]
            for images, wanted, shares in _dataset(crops, targets, rows, config, weights, 7, first, [codes])
        ]

    plain, laid, resumed = stream(0.0), stream(1.0), stream(1.0, 2)
    assert len(plain) == len(laid) == 4 and len(resumed) == 2
    for one, other in zip(plain, laid, strict=True):
        assert np.abs(one[0] - other[0]).max() > 1
        for before, after in zip(one[1:], other[1:], strict=True):
            np.testing.assert_array_equal(before, after)
    for one, other in zip(laid[2:], resumed, strict=True):
        np.testing.assert_array_equal(one[0], other[0])


def test_views_of_other_optics_have_the_neighbours_too() -> None:
    asked = Augmentation(stain=0.3, neighbour=0.4, neighbour_far=120.0, shift=0.3)
    made = with_optics(asked)
    assert (made.neighbour, made.neighbour_far, made.stain) == (0.4, 120.0, 0.3)
    assert made.shift < asked.shift
