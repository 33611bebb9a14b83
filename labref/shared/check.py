"""Whether a shared store is whole, and who has published what to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from labref.shared.address import Address
from labref.shared.connection import connect, in_words
from labref.shared.indexing import Partition, partitions
from labref.shared.labs import SharedLab, labs
from labref.shared.migrations import applied, latest, require

__all__ = ["Found", "check"]

_COUNTS: Final = {
    "cells that have two rows": (
        "SELECT count(*) FROM (SELECT FROM cell GROUP BY lab, cell_id HAVING count(*) > 1) twice"
    ),
    "cells whose digest is not that of their id": (
        "SELECT count(*) FROM cell WHERE left(encode(digest, 'hex'), 16) <> cell_id"
    ),
    "thumbnails without a cell": (
        "SELECT count(*) FROM thumbnail t WHERE NOT EXISTS (SELECT FROM cell WHERE cell.lab = t.lab AND cell.cell_id = t.cell_id)"
    ),
    "bundles whose table of cells is gone": (
        "SELECT count(*) FROM bundle WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_inherits WHERE inhparent = 'labref.cell'::regclass "
        "AND inhrelid = to_regclass('labref.cell_' || number))"
    ),
    "bundles without the index by optics": (
        "SELECT count(*) FROM bundle WHERE to_regclass('labref.cell_' || number) IS NOT NULL "
        "AND to_regclass('labref.cell_' || number || '_optics') IS NULL AND (SELECT max(version) FROM migration) >= 3"
    ),
    "labs whose role is gone": ("SELECT count(*) FROM lab WHERE role NOT IN (SELECT rolname FROM pg_catalog.pg_roles)"),
    "tables that everybody can write": (
        "SELECT count(*) FROM pg_catalog.pg_class WHERE relnamespace = 'labref'::regnamespace AND relkind IN ('r', 'p') "
        "AND relname IN ('lab', 'bundle', 'cell', 'thumbnail', 'named') AND NOT relrowsecurity"
    ),
}


@dataclass(frozen=True)
class Found:
    """What `check` found. version, newest : of the schema, and the newest one that this labref knows.  bytes : of the
    database.  bundles : the cells of each.  faults : what is wrong, with how often."""

    version: int
    newest: int
    bytes: int
    labs: list[SharedLab]
    bundles: list[Partition]
    faults: dict[str, int]


def check(address: Address, password: str | None) -> Found:
    """Look whether a shared store is whole. Raises `SharedError` where it cannot be asked."""
    with connect(address, password, statement_seconds=3600) as connection, in_words(address):
        require(connection, address)
        counted = {}
        for what, query in _COUNTS.items():
            row = connection.execute(query.encode()).fetchone()
            counted[what] = 0 if row is None else int(row[0])
        row = connection.execute("SELECT pg_database_size(current_database())").fetchone()
        size = 0 if row is None else int(row[0])
        version, bundles = applied(connection), partitions(connection)
    faults = {what: number for what, number in counted.items() if number}
    return Found(version, latest(), size, labs(address, password), bundles, faults)
