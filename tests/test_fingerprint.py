"""Digest, average hash and the thesis' duplicate rule."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from labref.cells.hashes import average_hash, digest, verdict
from labref.cells.image import prepare, prepare_pixels
from labref.words import Verdict, hamming


def test_digest_is_sha256() -> None:
    assert digest(b"") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


@pytest.mark.parametrize(
    ("distance", "expected"),
    [
        (0, Verdict.DUPLICATE),
        (1, Verdict.DUPLICATE),
        (2, Verdict.POSSIBLE),
        (3, Verdict.POSSIBLE),
        (4, Verdict.DIFFERENT),
    ],
)
def test_the_rule_of_the_thesis(distance: int, expected: Verdict) -> None:
    assert verdict(distance) is expected


def test_hamming_counts_bits() -> None:
    others = np.array([0, 1, 0b1011, 2**64 - 1], dtype=np.uint64)
    assert hamming(0, others).tolist() == [0, 1, 3, 64]
    assert hamming(2**64 - 1, others).tolist() == [64, 63, 61, 0]


def test_the_hash_follows_the_picture() -> None:
    half = np.zeros((256, 256, 3), np.uint8)
    half[:, 128:] = 255
    assert average_hash(half) == 0x0F0F0F0F0F0F0F0F
    assert average_hash(half[:, ::-1].copy()) == 0xF0F0F0F0F0F0F0F0


def test_a_real_cell_is_near_itself_recompressed_and_far_from_others(real_cells: Path) -> None:
    files = sorted((real_cells / "pbc" / "eosinophil").glob("*.jpg"))[:40]
    crops = [prepare(path.read_bytes()).crop for path in files]
    hashes = np.array([average_hash(crop) for crop in crops], dtype=np.uint64)
    for crop, value in zip(crops, hashes, strict=True):
        noisy = np.clip(crop.astype(int) + np.random.default_rng(1).integers(-2, 3, crop.shape), 0, 255).astype(
            np.uint8
        )
        assert hamming(average_hash(prepare_pixels(noisy).crop), np.array([value], np.uint64))[0] <= 12
        assert hamming(average_hash(noisy), np.array([value], np.uint64))[0] <= 3
    apart = [int(np.partition(hamming(int(value), hashes), 1)[1]) for value in hashes]
    assert np.median(apart) >= 3
