"""Fingerprints that stored cells get late, and the links that follow; inside the caller's transaction.

A lab of an earlier version has cells without them, or with those of another kind, and links that this version may not
make.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from datetime import datetime
from typing import Final, NamedTuple

import duckdb

from labref.failpoints import failpoint
from labref.store.duckdb import rows
from labref.store.duckdb.duplicates import (
    Learnt,
    decided,
    drop_marks,
    link_as_found,
    measured,
    set_link,
    write_fingerprints,
    write_landmarks,
    write_resemblances,
)
from labref.store.duckdb.noting import note
from labref.store.recording import Comparing, Found, Search, compare, stored_landmarks
from labref.store.values import Resemblance
from labref.words import Outcome

__all__ = ["learn"]

_NOT_CONFIRMED: Final = "no recapture: registration does not confirm what an earlier version had found"


class _Stored(NamedTuple):
    """What must be known of a cell. age : of two cells the later one has the larger.  linked : the cell it is linked
    with, if any."""

    digest: str
    age: int
    linked: str | None


def learn(
    connection: duckdb.DuckDBPyConnection, learnt: Sequence[Learnt], search: Search, comparing: Comparing
) -> None:
    """Write the fingerprints and landmarks of `learnt` and link those cells with earlier ones, and later ones with
    them; see `Store`."""
    at = rows.now()
    peoples = decided(connection)
    ids = [cell.cell_id for cell in learnt]
    stored = _looked_up(connection, ids)
    drop_marks(connection, ids)
    made = [(cell.cell_id, next(iter(cell.fingerprints), None)) for cell in learnt if cell.cell_id in stored]
    write_fingerprints(connection, made)
    of_pictures = [(cell.cell_id, mark) for cell in learnt for mark in stored_landmarks(cell.landmarks)]
    write_landmarks(
        connection, [(cell_id, mark, stored[cell_id].age) for cell_id, mark in of_pictures if cell_id in stored]
    )
    note(connection, list(stored))
    failpoint("fingerprint.write")
    for cell in learnt:
        if cell.fingerprints and cell.cell_id in stored:
            _compare_late(connection, cell, stored[cell.cell_id], search, comparing, peoples, at)
            search.add(cell.cell_id, cell.fingerprints, cell.landmarks, stored[cell.cell_id].age)


def _compare_late(
    connection: duckdb.DuckDBPyConnection,
    cell: Learnt,
    own: _Stored,
    search: Search,
    comparing: Comparing,
    peoples: Set[str],
    at: datetime,
) -> None:
    """Compare one cell with earlier ones, and later ones with it. peoples : cells whose link a person decided on; those
    stay."""
    near = search.candidates(cell.fingerprints, cell.landmarks, comparing.candidate_bits)
    # the cell that it is linked with now is asked about again, whether its fingerprint is like it or not
    ids = near if own.linked is None or own.linked in near else [*near, own.linked]
    others = _looked_up(connection, ids)
    earlier = [(other, found.digest) for other, found in others.items() if found.age < own.age]
    found = compare(cell.cell_id, own.digest, earlier, comparing)
    _write_others(connection, cell.cell_id, found, at)
    if cell.cell_id not in peoples:
        if found.link is not None:
            _link(connection, cell.cell_id, found.link, at)
        elif own.linked is not None:
            _unlink(connection, cell.cell_id, own, others, comparing, at)
    for other, theirs in others.items():
        if theirs.age > own.age:
            found = compare(other, theirs.digest, [(cell.cell_id, own.digest)], comparing)
            _write_others(connection, other, found, at)
            if found.link is not None and theirs.linked is None and other not in peoples:
                _link(connection, other, found.link, at)


def _link(connection: duckdb.DuckDBPyConnection, cell_id: str, match: tuple[str, Resemblance], at: datetime) -> None:
    other, found = match
    write_resemblances(connection, [(cell_id, other, found)], at)
    link_as_found(connection, cell_id, other, found, at)


def _unlink(
    connection: duckdb.DuckDBPyConnection,
    cell_id: str,
    own: _Stored,
    others: Mapping[str, _Stored],
    comparing: Comparing,
    at: datetime,
) -> None:
    """Take out a link that comparing does not confirm: the thesis' rule made it, or registration did when its rule was
    another.

    What registration found stays where the pictures cannot be compared now.
    """
    assert own.linked is not None
    found = None
    if comparing.judge is not None and own.linked in others:
        found = comparing.judge(own.digest, others[own.linked].digest)
    before = measured(connection, cell_id, own.linked)
    if found is None and before is not None:
        return
    if found is not None and before is not None and found.verdict is not before.verdict:
        write_resemblances(connection, [(cell_id, own.linked, found)], at)
    set_link(connection, cell_id, None, outcome=Outcome.STORED, reason=_NOT_CONFIRMED, at=at)


def _write_others(connection: duckdb.DuckDBPyConnection, cell_id: str, found: Found, at: datetime) -> None:
    """Remember what a cell is found to be like beside the one that it is linked with, where that is not remembered."""
    for other, resemblance in (*found.others, *found.neighbours):
        before = measured(connection, cell_id, other)
        if before is None or before.verdict is not resemblance.verdict:
            write_resemblances(connection, [(cell_id, other, resemblance)], at)


def _looked_up(connection: duckdb.DuckDBPyConnection, ids: Sequence[str]) -> dict[str, _Stored]:
    """Cells by id, in the order of `ids`; those that are not there are left out."""
    columns = ["cell_id", "digest", "number", "duplicate_of"]
    found = {
        cell_id: _Stored(str(digest), int(age), linked)
        for cell_id, digest, age, linked in rows.look_up(connection, "cell", columns, "cell_id", ids)
    }
    return {cell_id: found[cell_id] for cell_id in ids if cell_id in found}
