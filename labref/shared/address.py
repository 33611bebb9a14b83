"""Where the shared store is, and whether one may go there: TLS, verified, but on this very computer."""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

from labref.errors import SharedError
from labref.files import read_file

__all__ = ["PASSWORD", "Address", "read_password"]

PASSWORD: Final = "LABREF_SHARED_PASSWORD"
"""The variable that holds the password."""
_PARAMETERS: Final = frozenset({"host", "sslmode", "sslrootcert", "sslcert", "sslkey"})
_MOST_PASSWORD_BYTES: Final = 10_000


@dataclass(frozen=True)
class Address:
    """One database. host : a name, an address, or the folder of a Unix socket.  parameters : what else the connection
    takes, such as `sslmode`."""

    host: str
    port: int
    database: str
    user: str
    parameters: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, url: str) -> Address:
        """The address that a URL names: postgresql://USER@HOST[:PORT]/DATABASE[?sslrootcert=FILE].

        Raises `SharedError` where it is none, holds a password, or leads over a network without verified TLS.
        """
        try:
            parts = urlsplit(url)
            port = parts.port
            given = dict(parse_qsl(parts.query, strict_parsing=bool(parts.query), keep_blank_values=True))
        except ValueError as error:
            raise SharedError(f"the URL of the shared store cannot be read: {error}.") from None
        if parts.scheme not in ("postgresql", "postgres") or parts.fragment:
            raise SharedError("the URL of the shared store is written as postgresql://USER@HOST/DATABASE.")
        if parts.password is not None or "password" in given:
            raise SharedError(
                f"the URL of the shared store holds a password. Take it out: it stands in the variable {PASSWORD}, or in a file, which "
                "--password-file or [shared] password_file names."
            )
        if unknown := sorted(set(given) - _PARAMETERS):
            raise SharedError(
                f"the URL of the shared store has the parameter {unknown[0]!r}; it can have {', '.join(sorted(_PARAMETERS))}."
            )
        host = unquote(_host(parts.netloc)) or given.pop("host", "")
        database, user = unquote(parts.path.lstrip("/")), unquote(parts.username or "")
        if not host or not database or not user or "," in host or "host" in given:
            raise SharedError(
                "the URL of the shared store names one host, a database and a user: postgresql://USER@HOST/DATABASE."
            )
        if any(not part.isprintable() for part in (host, database, user, *given.values())):
            raise SharedError("the URL of the shared store holds a character that cannot be shown.")
        mode = given.get("sslmode")
        if not _is_here(host):
            if mode not in (None, "verify-full"):
                raise SharedError(
                    f"the URL of the shared store asks for sslmode={mode}, by which anybody on the way could read or change what is sent. "
                    "Use sslmode=verify-full, with sslrootcert=FILE where the server's certificate is of the hospital's own."
                )
            given |= {"sslmode": "verify-full"} | ({} if "sslrootcert" in given else {"sslrootcert": "system"})
        return cls(host, port or 5432, database, user, tuple(sorted(given.items())))

    def __str__(self) -> str:
        """For people, without the user."""
        return f"{self.host}:{self.port}/{self.database}"

    def keywords(self) -> dict[str, Any]:
        """As psycopg takes it."""
        return {
            "host": self.host,
            "port": self.port,
            "dbname": self.database,
            "user": self.user,
            **dict(self.parameters),
        }


def read_password(file: Path | None = None, *, of_lab: Path | None = None) -> str | None:
    """The password: the first line of `file`, which a command names; else the variable LABREF_SHARED_PASSWORD; else the
    first line of the file that labref.toml names. None where there is none, as where PostgreSQL asks for a certificate.
    Raises `SharedError` where the file cannot be read."""
    if file is None:
        given = os.environ.get(PASSWORD)
        if given:
            return given
        file = of_lab
    if file is None:
        return None
    try:
        text = read_file(file, _MOST_PASSWORD_BYTES).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        said = error.strerror if isinstance(error, OSError) else "it is no text"
        raise SharedError(
            f"{file}, the file of the shared store's password, cannot be read: {said}. Its first line is the password that `labref shared "
            "lab add` printed; with the same name `labref shared lab add` makes a new one."
        ) from None
    return text.splitlines()[0] if text else None


def _host(netloc: str) -> str:
    """The host as it is written: `urlsplit` makes it lower case, and the folder of a Unix socket can have capitals."""
    place = netloc.rpartition("@")[2]
    return place[1:].partition("]")[0] if place.startswith("[") else place.partition(":")[0]


def _is_here(host: str) -> bool:
    """Whether a host is this very computer: a Unix socket, or a loopback address."""
    if host.startswith("/") or re.match(r"[A-Za-z]:[\\/]", host):
        return True
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
