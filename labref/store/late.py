"""Fingerprints that stored cells get late, and the links that follow; inside the caller's transaction.

A lab of an earlier version has cells without them, or with those of another kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import duckdb

from labref.failpoints import failpoint
from labref.fingerprint import Verdict
from labref.store import rows
from labref.store.duplicates import (
    Learnt,
    decided,
    set_link,
    unlink_unconfirmed,
    write_fingerprints,
    write_resemblances,
)
from labref.store.known import HashChanges, id_to_int, int_to_id
from labref.store.recording import MOST_CANDIDATES, Comparing, alike, reason_of
from labref.store.values import Outcome, Resemblance

__all__ = ["learn"]


def learn(
    connection: duckdb.DuckDBPyConnection, learnt: Sequence[Learnt], changes: HashChanges, comparing: Comparing
) -> None:
    """Write the fingerprints of `learnt` and link those cells with earlier ones, and later ones with them; see `Store`."""
    at = rows.now()
    peoples = decided(connection)
    ids = [cell.cell_id for cell in learnt]
    stored = _looked_up(connection, ids)
    connection.execute("DELETE FROM fingerprint WHERE cell_id IN (SELECT unnest(?::VARCHAR[]))", [ids])
    made = [(cell.cell_id, next(iter(cell.fingerprints), None)) for cell in learnt if cell.cell_id in stored]
    write_fingerprints(connection, made)
    failpoint("fingerprint.write")
    for cell in learnt:
        if not cell.fingerprints or cell.cell_id not in stored:
            continue
        digest, age, _ = stored[cell.cell_id]
        near = [int_to_id(n) for _, _, n in changes.within(cell.fingerprints, comparing.candidate_bits)]
        others = _looked_up(connection, near[:MOST_CANDIDATES])
        if cell.cell_id not in peoples:
            earlier = [(other, others[other][0]) for other in others if others[other][1] < age]
            match = alike(cell.cell_id, digest, earlier, comparing)
            if match is None:
                unlink_unconfirmed(connection, cell.cell_id, at)
            else:
                _link(connection, cell.cell_id, match, at)
        for other, (other_digest, other_age, linked) in others.items():
            if other_age > age and linked is None and other not in peoples:
                match = alike(other, other_digest, [(cell.cell_id, digest)], comparing)
                if match is not None:
                    _link(connection, other, match, at)
        changes.add(id_to_int(cell.cell_id), cell.fingerprints[0], age)


def _link(connection: duckdb.DuckDBPyConnection, cell_id: str, match: tuple[str, Resemblance], at: datetime) -> None:
    other, found = match
    assert found.verdict is not Verdict.DIFFERENT
    write_resemblances(connection, [(cell_id, other, found)], at)
    set_link(
        connection,
        cell_id,
        (other, found.verdict),
        outcome=Outcome(found.verdict),
        reason=reason_of(other, found),
        at=at,
    )


def _looked_up(connection: duckdb.DuckDBPyConnection, ids: Sequence[str]) -> dict[str, tuple[str, int, str | None]]:
    """Digest, age and link of cells, in the order of `ids`; those that are not there are left out."""
    columns = ["cell_id", "digest", "rowid", "duplicate_of"]
    found = {
        cell_id: (str(digest), int(age), linked)
        for cell_id, digest, age, linked in rows.look_up(connection, "cell", columns, "cell_id", ids)
    }
    return {cell_id: found[cell_id] for cell_id in ids if cell_id in found}
