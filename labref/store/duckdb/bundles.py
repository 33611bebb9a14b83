"""The bundles whose latents a store holds, each in a table of its own, and which of them is active."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import duckdb

from labref.errors import StoreError
from labref.store.duckdb.rows import now
from labref.store.values import StoredBundle

__all__ = ["activate", "active", "add", "space", "spaces"]

_COLUMNS = "digest, name, version, latent_size, labels, added_at"


def add(
    connection: duckdb.DuckDBPyConnection,
    digest: str,
    *,
    name: str,
    version: str,
    latent_size: int,
    labels: Sequence[str],
) -> None:
    """Make the table of a bundle's latents, unless it is there. Raises StoreError where it is there in another
    shape."""
    known = connection.execute("SELECT latent_size, labels FROM bundle WHERE digest = ?", [digest]).fetchone()
    if known is not None:
        if known != (latent_size, list(labels)):
            raise StoreError(
                f"bundle {digest[:12]} is in the store with {known[0]} latents and classes {', '.join(known[1])}; "
                "a bundle of that name with others is damaged. Install it again."
            )
        return
    last = connection.execute("SELECT coalesce(max(number), 0) FROM bundle").fetchone()
    number = 1 + (last[0] if last else 0)
    connection.execute(
        "INSERT INTO bundle VALUES (?, ?, ?, ?, ?, ?, ?)",
        [number, digest, name, version, latent_size, list(labels), now()],
    )
    connection.execute(f"""
        CREATE TABLE embedding_{number} (
            cell_id               VARCHAR PRIMARY KEY,
            latent                FLOAT[{latent_size:d}] NOT NULL,
            probabilities         FLOAT[{len(labels):d}] NOT NULL,
            predicted_label       VARCHAR NOT NULL,
            predicted_probability FLOAT NOT NULL
        )""")


def activate(connection: duckdb.DuckDBPyConnection, digest: str) -> None:
    """Make a bundle the one that answers."""
    if active(connection) != digest:
        connection.execute(
            "INSERT INTO activation SELECT coalesce(max(number), 0) + 1, ?, ? FROM activation", [digest, now()]
        )


def active(connection: duckdb.DuckDBPyConnection) -> str | None:
    """Digest of the bundle that answers, or None before the first."""
    row = connection.execute("SELECT digest FROM activation ORDER BY number DESC LIMIT 1").fetchone()
    return None if row is None else str(row[0])


def spaces(connection: duckdb.DuckDBPyConnection) -> dict[str, tuple[str, StoredBundle]]:
    """All bundles with the names of the tables of their latents, by digest, in the order they came. The whole table is
    read, not its index: a damaged index hides no bundle."""
    rows = connection.execute(f"SELECT number, {_COLUMNS} FROM bundle ORDER BY number").fetchall()
    found = [(f"embedding_{row[0]}", _bundle(*row[1:])) for row in rows]
    return {bundle.digest: (table, bundle) for table, bundle in found}


def space(connection: duckdb.DuckDBPyConnection, digest: str) -> tuple[str, StoredBundle]:
    """Name of the table of a bundle's latents, and the bundle. Raises StoreError where the store does not know it."""
    row = connection.execute(f"SELECT number, {_COLUMNS} FROM bundle WHERE digest = ?", [digest]).fetchone()
    if row is None:
        raise StoreError(f"the store holds no latents of bundle {digest[:12]}; add or activate the bundle first.")
    return f"embedding_{row[0]}", _bundle(*row[1:])


def _bundle(
    digest: str, name: str, version: str, latent_size: int, labels: list[str], added_at: datetime
) -> StoredBundle:
    return StoredBundle(digest, name, version, latent_size, tuple(labels), added_at.replace(tzinfo=UTC))
