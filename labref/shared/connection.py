"""A connection to the shared store, and its errors in words."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from labref.errors import SharedError
from labref.shared.address import PASSWORD, Address

if TYPE_CHECKING:
    import psycopg

__all__ = ["CONNECT_SECONDS", "connect", "in_words", "moment", "plain"]

CONNECT_SECONDS: Final = 2
"""How long a server may take to answer at all."""
_NONE_GIVEN: Final = re.compile("no password supplied")
_ANOTHER: Final = re.compile("password authentication failed")
_UNVERIFIED: Final = re.compile("certificate")
_SETTINGS: Final = {"search_path": "labref, public", "TimeZone": "UTC", "DateStyle": "ISO, YMD"}
"""Of each connection, whatever the server or the role has: in another zone the last day of the year 9999 is in a year
that Python does not know."""
_KEPT_ALIVE: Final = {"keepalives_idle": 5, "keepalives_interval": 2, "keepalives_count": 3, "tcp_user_timeout": 15_000}


def connect(
    address: Address, password: str | None, *, statement_seconds: float = 60.0
) -> psycopg.Connection[tuple[Any, ...]]:
    """Open a connection; every statement outside of `transaction()` is committed by itself.

    statement_seconds : after which a statement is given up. Raises `SharedError` where it cannot be opened.
    """
    with in_words(address):
        import psycopg

        connection = psycopg.connect(
            **(address.keywords() | _KEPT_ALIVE),
            password=password,
            connect_timeout=CONNECT_SECONDS,
            application_name="labref",
            autocommit=True,
            client_encoding="utf8",
        )
        try:
            settings = _SETTINGS | {"statement_timeout": str(round(1000 * statement_seconds))}
            given = ", ".join("set_config(%s, %s, false)" for _ in settings)
            connection.execute(f"SELECT {given}".encode(), [part for one in settings.items() for part in one])
        except BaseException:
            connection.close()
            raise
    return connection


@contextlib.contextmanager
def in_words(address: Address) -> Iterator[None]:
    """Raise psycopg's errors as `SharedError`: what failed, where, and what to do; without the password."""
    try:
        import psycopg
    except ImportError:
        raise SharedError(
            "the shared store needs the package psycopg, which is not installed: pip install 'labref[shared]'."
        ) from None
    try:
        yield
    except psycopg.errors.InsufficientPrivilege as error:
        raise SharedError(
            f"the shared store {address} refuses that to {address.user}: {_said(error)}. Let its owner do it."
        ) from error
    except (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn, psycopg.errors.UndefinedFunction) as error:
        raise SharedError(
            f"{address} is no shared store, or none of this labref: {_said(error)}. Its owner makes it with `labref shared "
            "init`, and brings it up to date with `labref shared migrate`."
        ) from error
    except psycopg.OperationalError as error:
        # what fails before there is a connection has no code
        if _NONE_GIVEN.search(str(error)):
            raise SharedError(
                f"the shared store {address} wants a password of {address.user}, and none was given. Put it into the variable {PASSWORD}, or "
                "into a file that [shared] password_file or --password-file names."
            ) from error
        if _ANOTHER.search(str(error)):
            raise SharedError(
                f"the shared store {address} does not take the password of {address.user}. `labref shared lab add`, with the "
                "name of the lab or reader, makes a new one."
            ) from error
        if _UNVERIFIED.search(str(error)):
            raise SharedError(
                f"the shared store {address} is not trusted: {_said(error)}. In its URL, sslrootcert=FILE names the "
                "certificate of the authority that signed the server's, and the host is the name that it is for."
            ) from error
        raise SharedError(f"the shared store {address} cannot be reached: {_said(error)}.") from error
    except psycopg.Error as error:
        raise SharedError(f"the shared store {address} failed: {_said(error)}.") from error


def moment(column: str) -> str:
    """A column of moments in SQL, as Python can read it: PostgreSQL knows moments before the year 1 and after 9999, and
    infinity, and one row that has such must not cost all others their answer."""
    first, last = "timestamptz '0001-01-01 00:00:00+00'", "timestamptz '9999-12-31 23:59:59+00'"
    return f"CASE WHEN {column} < {first} THEN {first} WHEN {column} > {last} THEN {last} ELSE {column} END"


def plain(text: str, most: int) -> str:
    """A text as PostgreSQL keeps it, at most so many characters. What is no character, of a folder's name that is not
    UTF-8, becomes its code, `\\udce5`: one such name must not keep all that comes after it from being told."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")[:most]


def _said(error: Exception) -> str:
    """The first line of an error. What it quotes of values stands in later lines."""
    primary = getattr(getattr(error, "diag", None), "message_primary", None)
    lines = (primary or str(error)).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
