"""The schema of the shared store: numbered files of SQL in `sql/`, each applied together with its record.

A file is never edited once it was released; the next change is a new file.

The labs of one shared store are upgraded one by one, and its owner comes when there is time. So a labref works with
every version from `LEAST` on; and a file says in its first line, as in `-- serves 3`, which is the oldest version
whose labref still works with what it makes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any, Final

from labref import __version__
from labref.errors import SharedError
from labref.shared.address import Address
from labref.shared.connection import connect, in_words

if TYPE_CHECKING:
    import psycopg

__all__ = ["LEAST", "Step", "applied", "latest", "make", "migrate", "require", "steps"]

_LOCK: Final = 6_102_017_001
"""Number of the advisory lock that whoever migrates holds."""
_FILE: Final = re.compile(r"(\d{3})_(\w+)\.sql")
_SERVES: Final = re.compile(r"-- serves (\d+)\n")
LEAST: Final = 2
"""The oldest version that this labref works with: what came later makes questions faster."""
_LEAST_VECTOR: Final = (0, 8)
_MENDED: Final = 3
"""From this version on `migrate` makes again what was dropped by hand."""


@dataclass(frozen=True)
class Step:
    """One step: the version that it leads to, its name, its SQL, and the oldest version whose labref may work with what
    it makes."""

    version: int
    name: str
    sql: str
    serves: int


def steps() -> list[Step]:
    """All steps that this labref knows, in order."""
    found = []
    for file in resources.files("labref.shared").joinpath("sql").iterdir():
        named = _FILE.fullmatch(file.name)
        if named:
            sql, version = file.read_text("utf-8"), int(named[1])
            serves = _SERVES.match(sql)
            found.append(Step(version, named[2], sql, int(serves[1]) if serves else version))
    found.sort(key=lambda step: step.version)
    assert [step.version for step in found] == list(range(1, len(found) + 1)), "numbers count up without a gap"
    return found


def latest() -> int:
    """The newest version that this labref knows."""
    return len(steps())


def make(address: Address, password: str | None) -> int:
    """Make a shared store in an empty database, or finish one that was begun; returns its version. The user owns it
    from then on. Raises `SharedError`."""
    return _bring(address, password, new=True)


def migrate(address: Address, password: str | None) -> int:
    """Bring a shared store up to date, and mend what was dropped of it by hand; returns its version. Raises
    `SharedError` where it is none, or a newer labref made it."""
    return _bring(address, password, new=False)


def applied(connection: psycopg.Connection[tuple[Any, ...]]) -> int:
    """The version of the shared store; 0 where the database is none."""
    return _applied(connection)[0]


def _applied(connection: psycopg.Connection[tuple[Any, ...]]) -> tuple[int, int]:
    """The version of the shared store, and the oldest one whose labref may work with it; 0 where the database is
    none."""
    row = connection.execute("SELECT to_regclass('labref.migration') IS NOT NULL").fetchone()
    if row is None or not row[0]:
        return 0, 0
    row = connection.execute(
        # the column came with version 3
        "SELECT version, coalesce((to_jsonb(m) ->> 'serves')::integer, version) FROM labref.migration m "
        "ORDER BY version DESC LIMIT 1"
    ).fetchone()
    return (0, 0) if row is None else (int(row[0]), int(row[1]))


def require(connection: psycopg.Connection[tuple[Any, ...]], address: Address) -> None:
    """Raise `SharedError` where this labref cannot work with the shared store."""
    version, serves = _applied(connection)
    if version == 0:
        raise SharedError(f"{address} is no shared store yet. Its owner makes it: `labref shared init`.")
    if version < LEAST:
        raise SharedError(
            f"the shared store {address} is of version {version}, and this labref needs {LEAST}. Its owner brings it up to "
            "date: `labref shared migrate`."
        )
    if serves > latest():
        raise SharedError(_too_new(address, version, latest()))


def _too_new(address: Address, version: int, wanted: int) -> str:
    return (
        f"the shared store {address} is of version {version}; this labref {__version__} knows versions up to {wanted}. "
        "Install a newer labref."
    )


def _bring(address: Address, password: str | None, *, new: bool) -> int:
    known = steps()
    with connect(address, password, statement_seconds=3600) as connection, in_words(address):
        connection.execute("SELECT pg_advisory_lock(%s)", [_LOCK])
        version = applied(connection)
        if version == 0 and not new:
            raise SharedError(f"{address} is no shared store. Make one: `labref shared init`.")
        if version > len(known):
            raise SharedError(_too_new(address, version, len(known)))
        if version == 0:
            _prepare(connection, address)
        schema = _vector(connection, address)
        for step in known[version:]:
            with connection.transaction():
                connection.execute("SET LOCAL search_path = labref, public")
                connection.execute(step.sql.replace("{vector}", schema).encode())
                connection.execute(
                    "INSERT INTO labref.migration (version, name, labref_version) VALUES (%s, %s, %s)",
                    [step.version, step.name, __version__],
                )
                if step.serves < step.version:
                    connection.execute(
                        "UPDATE labref.migration SET serves = %s WHERE version = %s", [step.serves, step.version]
                    )
        if len(known) >= _MENDED:
            _mend(connection)
    return len(known)


def _mend(connection: psycopg.Connection[tuple[Any, ...]]) -> None:
    """Make again what is not there of the newest version: a table or an index may have been dropped by hand, and a lab
    may have added a bundle as one of before, beside the step to this version."""
    with connection.transaction():
        found = connection.execute(
            "SELECT number, latent_size, to_regclass('labref.cell_' || number) IS NOT NULL FROM bundle "
            "WHERE to_regclass('labref.cell_' || number || '_optics') IS NULL"
        ).fetchall()
        for number, size, is_there in found:
            if is_there:
                connection.execute("SELECT lay_out(%s::smallint, %s)", [number, size])
            else:
                connection.execute("DELETE FROM bundle WHERE number = %s", [number])
        if not all(is_there for *_, is_there in found):
            connection.execute("UPDATE lab SET sent = NULL, tag = NULL")  # so each publishes its cells again


def _prepare(connection: psycopg.Connection[tuple[Any, ...]], address: Address) -> None:
    """Make what the first step needs, unless an attempt that was broken off has."""
    from psycopg import sql

    begun = connection.execute("SELECT to_regclass('labref.migration') IS NOT NULL").fetchone()
    if begun is not None and begun[0]:
        return
    there = connection.execute("SELECT to_regnamespace('labref') IS NOT NULL").fetchone()
    if there is not None and there[0]:
        raise SharedError(f"{address} has a schema named labref that is no shared store. Take another database.")
    with connection.transaction():
        connection.execute("CREATE SCHEMA labref")
        connection.execute("CREATE EXTENSION IF NOT EXISTS vector WITH SCHEMA labref")
        # who has a role in another database of the same server has no business here
        connection.execute(
            sql.SQL("REVOKE CONNECT, TEMPORARY ON DATABASE {} FROM PUBLIC").format(sql.Identifier(address.database))
        )
        connection.execute(
            "CREATE TABLE labref.migration (version integer PRIMARY KEY, name text NOT NULL, labref_version text NOT NULL, "
            "applied_at timestamptz NOT NULL DEFAULT now())"
        )


def _vector(connection: psycopg.Connection[tuple[Any, ...]], address: Address) -> str:
    """The schema of pgvector. Raises `SharedError` where it is too old, or in a schema where it is not looked for."""
    row = connection.execute(
        "SELECT extversion, nspname FROM pg_extension JOIN pg_namespace n ON n.oid = extnamespace WHERE extname = 'vector'"
    ).fetchone()
    version, schema = ("0", "") if row is None else (str(row[0]), str(row[1]))
    if tuple(map(int, version.split(".")[:2])) < _LEAST_VECTOR:
        raise SharedError(
            f"{address} has pgvector {version}; the shared store needs 0.8 or later. Update it: ALTER EXTENSION vector UPDATE."
        )
    if schema not in ("labref", "public"):
        raise SharedError(
            f"{address} has pgvector in the schema {schema}; it is looked for in labref or public: ALTER EXTENSION vector "
            "SET SCHEMA public."
        )
    return schema
