"""Who may use the shared store: each lab, and each reader, has a role of PostgreSQL of its own. Its owner makes
them."""

from __future__ import annotations

import re
import secrets
import unicodedata
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from labref.errors import SharedError
from labref.shared.address import Address
from labref.shared.connection import connect, in_words, moment
from labref.shared.migrations import require

if TYPE_CHECKING:
    import psycopg

__all__ = ["Access", "Reader", "SharedLab", "add", "labs", "readers", "remove", "remove_reader"]


@dataclass(frozen=True)
class Access:
    """What a lab, or a reader, needs to get in. url : for labref.toml.  password : shown once, kept nowhere.
    renewed : the name was there already, and its password of before lets nobody in any more."""

    name: str
    url: str
    password: str
    renewed: bool


@dataclass(frozen=True)
class SharedLab:
    """A lab in the shared store. cells : of it that are there, by the bundle that the most are of and all others.
    published_at : when it published last, UTC."""

    name: str
    role: str
    cells: int
    published_at: datetime | None


@dataclass(frozen=True)
class Reader:
    """Somebody who reads the shared store and writes nothing, such as a reading room."""

    name: str
    role: str


def add(address: Address, password: str | None, name: str, *, reads_only: bool = False) -> Access:
    """Make the role of a lab, or of somebody who only reads; for a name that is there already, a new password.

    Raises `SharedError` where the user is not the owner.
    """
    from psycopg import sql

    named = _named(name)
    if not named or len(named) > 100 or not named.isprintable() or "," in named:
        raise SharedError(
            f"{name!r} cannot be the name of a lab: it has 1 to 100 characters that can be shown, and no comma."
        )
    if named.lower() in ("own", "optics", "all"):
        raise SharedError(
            f"{named!r} cannot be the name of a lab: questions use it for something else (`labref query --shared`). Give the "
            "lab another name."
        )
    secret = secrets.token_urlsafe(24)
    with connect(address, password) as connection, in_words(address), connection.transaction():
        require(connection, address)
        role = _role_of_reader(connection, address, named) if reads_only else _role_of(connection, named)
        renewed = _make_role(connection, address, role, secret, "labref_reader" if reads_only else "labref_lab")
        if reads_only:
            connection.execute(
                sql.SQL("COMMENT ON ROLE {} IS {}").format(
                    sql.Identifier(role), sql.Literal(_reads(address.database) + named)
                )
            )
        else:
            connection.execute(
                "INSERT INTO lab (name, role) VALUES (%s, %s) ON CONFLICT (name) DO NOTHING", [named, role]
            )
    parameters = dict(address.parameters)
    options = {key: value for key, value in parameters.items() if key not in ("sslcert", "sslkey")}
    host = address.host
    if host.startswith("/"):
        options, host = {"host": host} | options, ""
    query = "&".join(f"{key}={quote(value, safe='/:')}" for key, value in options.items())
    where = f"[{host}]" if ":" in host else host
    url = f"postgresql://{role}@{where}:{address.port}/{quote(address.database)}{'?' + query if query else ''}"
    return Access(named, url, secret, renewed)


def labs(address: Address, password: str | None) -> list[SharedLab]:
    """The labs of a shared store, by name. Raises `SharedError`."""
    with connect(address, password) as connection, in_words(address):
        require(connection, address)
        found = connection.execute(
            f"SELECT name, role, (SELECT count(*) FROM cell WHERE cell.lab = lab.id), {moment('published_at')} FROM lab "
            "ORDER BY name".encode()
        ).fetchall()
    return [SharedLab(*row) for row in found]


def readers(address: Address, password: str | None) -> list[Reader]:
    """Who reads a shared store beside its labs, by name. Raises `SharedError`."""
    prefix = _reads(address.database)
    with connect(address, password) as connection, in_words(address):
        require(connection, address)
        found = connection.execute(_READERS.encode(), {"prefix": prefix}).fetchall()
    return sorted((Reader(said.removeprefix(prefix), role) for role, said in found), key=lambda one: one.name)


def remove_reader(address: Address, password: str | None, name: str) -> None:
    """Take the role of a reader away. Raises `SharedError`."""
    known = readers(address, password)
    role = next((one.role for one in known if one.name == _named(name)), None)
    if role is None:
        raise SharedError(
            f"the shared store has no reader {name!r}; it has {', '.join(one.name for one in known) or 'none at all'}."
        )
    with connect(address, password) as connection, in_words(address), connection.transaction():
        _drop_role(connection, address, role)


def remove(address: Address, password: str | None, name: str) -> int:
    """Take a lab out: its cells, and its role. Returns how many cells went. Raises `SharedError`."""
    from psycopg import sql

    with connect(address, password, statement_seconds=3600) as connection, in_words(address), connection.transaction():
        require(connection, address)
        # a batch of the lab that is under way ends first: its cells go too
        row = connection.execute("SELECT id, role FROM lab WHERE name = %s FOR UPDATE", [_named(name)]).fetchone()
        if row is None:
            known = [str(one) for (one,) in connection.execute("SELECT name FROM lab ORDER BY name").fetchall()]
            raise SharedError(
                f"the shared store has no lab {name!r}; it has {', '.join(known) if known else 'none at all'}."
            )
        lab, role = row
        gone = connection.execute("DELETE FROM cell WHERE lab = %s", [lab]).rowcount
        for table in ("thumbnail", "named"):
            connection.execute(
                sql.SQL("DELETE FROM {} WHERE lab = %s").format(sql.Identifier(table)), [lab]
            )  # before the lab itself
        connection.execute("DELETE FROM lab WHERE id = %s", [lab])
        _drop_role(connection, address, role)
    return gone


_READERS: Final = (
    "SELECT rolname, shobj_description(oid, 'pg_authid') FROM pg_catalog.pg_roles "
    "WHERE starts_with(shobj_description(oid, 'pg_authid'), %(prefix)s)"
)


def _reads(database: str) -> str:
    """How the comment of a reader's role begins; its name follows. Roles are of the whole server."""
    return f"labref: reads {database} as "


def _named(name: str) -> str:
    return unicodedata.normalize("NFC", name.strip())


def _drop_role(connection: psycopg.Connection[tuple[Any, ...]], address: Address, role: str) -> None:
    from psycopg import sql

    of_role = sql.Identifier(role)
    if connection.execute("SELECT FROM pg_catalog.pg_roles WHERE rolname = %s", [role]).fetchone() is None:
        return  # dropped by hand
    connection.execute(
        sql.SQL("REVOKE CONNECT ON DATABASE {} FROM {}").format(sql.Identifier(address.database), of_role)
    )
    connection.execute(sql.SQL("DROP ROLE {}").format(of_role))


def _slug(name: str) -> str:
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "_", plain).strip("_")[:30] or "lab"


def _role_of(connection: psycopg.Connection[tuple[Any, ...]], name: str) -> str:
    """The role of a lab: the one that it has, else a new name, as roles are of the whole server."""
    row = connection.execute("SELECT role FROM lab WHERE name = %s", [name]).fetchone()
    if row is not None:
        return str(row[0])
    return _free_role(connection, f"labref_{_slug(name)}")


def _role_of_reader(connection: psycopg.Connection[tuple[Any, ...]], address: Address, name: str) -> str:
    """The same of a reader, which its role's comment names: another of a like name keeps its password."""
    prefix = _reads(address.database)
    for role, said in connection.execute(_READERS.encode(), {"prefix": prefix}).fetchall():
        if said == prefix + name:
            return str(role)
    return _free_role(connection, f"labref_reader_{_slug(name)}")


def _free_role(connection: psycopg.Connection[tuple[Any, ...]], wanted: str) -> str:
    taken = connection.execute("SELECT FROM pg_catalog.pg_roles WHERE rolname = %s", [wanted]).fetchone()
    return wanted if taken is None else f"{wanted}_{secrets.token_hex(3)}"


def _make_role(
    connection: psycopg.Connection[tuple[Any, ...]], address: Address, role: str, secret: str, group: str
) -> bool:
    """Make a role, or give the one that is there this password. Returns whether it was there."""
    from psycopg import sql

    there = connection.execute("SELECT FROM pg_catalog.pg_roles WHERE rolname = %s", [role]).fetchone()
    verb = sql.SQL("CREATE" if there is None else "ALTER")
    named = sql.Identifier(role)
    # as the server keeps it: its log may hold every statement
    kept = connection.pgconn.encrypt_password(secret.encode(), role.encode()).decode()
    connection.execute(sql.SQL("{} ROLE {} LOGIN PASSWORD {}").format(verb, named, sql.Literal(kept)))
    connection.execute(sql.SQL("GRANT labref_reader TO {}").format(named))
    if group != "labref_reader":
        connection.execute(sql.SQL("GRANT {} TO {}").format(sql.Identifier(group), named))
    connection.execute(sql.SQL("GRANT CONNECT ON DATABASE {} TO {}").format(sql.Identifier(address.database), named))
    return there is not None
