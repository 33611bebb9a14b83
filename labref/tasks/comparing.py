"""Duplicates among cells that an earlier labref stored: these cells are compared with all others in the background."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from labref.cells.sameness import Thresholds
from labref.errors import LabrefError
from labref.failpoints import failpoint
from labref.lab import Lab
from labref.lab.judge import Judge
from labref.store import Store
from labref.store.duckdb.duplicates import Learnt
from labref.words import VERSION, Fingerprint, Landmark

__all__ = ["catch_up"]

_AT_ONCE: Final = 32


def catch_up(lab: Lab, store: Store, thresholds: Thresholds) -> Iterator[tuple[int, int, str]]:
    """Give each cell that lacks a fingerprint of the present version one, from its kept bytes, and compare the cell
    with all others.

    Cells are taken in the order in which they were stored, 32 in one transaction. People's decisions on duplicates
    stay. Links between duplicates that an earlier version found, and that are not found again, are removed. Yields
    (done, total, text) after each transaction. Closing the generator ends the work; the next call continues it.
    """
    judge = Judge(lab, thresholds)
    missing = store.duplicates.without_fingerprint(VERSION)
    for start in range(0, len(missing), _AT_ONCE):
        ids = missing[start : start + _AT_ONCE]
        cells = store.cells(ids)
        learnt = [Learnt(cell_id, *_marks_of_kept(lab, cells[cell_id].digest)) for cell_id in ids if cell_id in cells]
        failpoint("fingerprint.commit")
        store.learn_fingerprints(learnt, judge=judge, candidate_bits=thresholds.candidate_bits)
        yield start + len(ids), len(missing), "cells compared with all others"


def _marks_of_kept(lab: Lab, digest: str) -> tuple[tuple[Fingerprint, ...], tuple[Landmark, ...]]:
    try:
        cell = lab.decoder.examine(lab.read_image(digest))
    except LabrefError:
        return (), ()
    return cell.fingerprints, cell.landmarks
