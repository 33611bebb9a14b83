"""`labref user`: who may look at the lab's pages, and what they may do there."""

from __future__ import annotations

import ipaddress
import secrets
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Annotated, Final, Literal

from pydantic import Field

from labref.config import WebConfig
from labref.errors import LabrefError
from labref.operations import operation
from labref.operations.models import Answer, Text
from labref.operations.naming import NoSuchNameError
from labref.printing import unprintable
from labref.progress import Row
from labref.roles import Role
from labref.store.duckdb.people import Person
from labref.tasks.context import Context
from labref.times import utc

__all__ = ["User", "UserCode"]

_LETTERS: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"  # Crockford's: none of them is taken for another
_HTTPS: Final = 443  # the port that no address has to name
_CODE_LENGTH: Final = 16  # 80 bits
_MOST_NAME: Final = 100  # characters


class User(Answer):
    """Somebody who may look at the lab's pages, or who was."""

    name: str = Field(description="Their name, which each of their reviews carries.")
    role: Role = Field(description="What they may do: `view`; `review`, give labels as well; `admin`, all.")
    created_at: str = Field(description="Since when, ISO 8601, UTC.")
    expires_at: str | None = Field(description="Until when they are let in, ISO 8601, UTC; null: no end is set.")
    state: Literal["active", "expired", "revoked"] = Field(description="Whether they are let in now.")


class UserCode(User):
    """Somebody who may look at the lab's pages, and the code that they sign in with."""

    code: str = Field(description="The code. It is shown this once: the lab keeps only its digest.")
    links: list[str] = Field(
        description="The addresses that sign them in on other computers, as [web] in labref.toml is set; they hold the code."
    )


_Name = Annotated[Text, Field(description="Their name.", min_length=1, max_length=_MOST_NAME)]
_Days = Annotated[
    int | None, Field(ge=1, le=36_500, description="They are let in for so many days; null: until they are revoked.")
]


@operation("user.add", UserCode)
def add(
    context: Context,
    *,
    name: _Name,
    role: Annotated[Role, Field(description="What they may do.")] = Role.VIEW,
    days: _Days = None,
) -> Iterator[Row]:
    """Let somebody look at the lab's pages, and make the code that they sign in with."""
    if unprintable(name) is not None or not name.strip() or name != name.strip():
        raise LabrefError(f"{name!r} is no name; give one of characters that can be seen, without space around it.")
    code = _new_code()
    if context.store.people.named(name) is not None:
        raise LabrefError(
            f"{name} is let in already. `labref user renew` gives a new code; `labref user revoke` ends it."
        )
    added = context.store.people.add(name, role, code, _end(days))
    yield {**_described(added), "code": code, "links": _links(context.lab.config.web, code)}


@operation("user.renew", UserCode)
def renew(context: Context, *, name: _Name, days: _Days = None) -> Iterator[Row]:
    """Give somebody a new code. The one before, and wherever they are signed in with it, ends."""
    code = _new_code()
    renewed = context.store.people.renew(_person(context, name), code, _end(days))
    yield {**_described(renewed), "code": code, "links": _links(context.lab.config.web, code)}


@operation("user.revoke", User)
def revoke(context: Context, *, name: _Name) -> Iterator[Row]:
    """Let somebody look at the pages no more. Wherever they are signed in, that ends at once; their reviews stay."""
    person = _person(context, name)
    context.store.people.revoke(person)
    yield next(_described(one) for one in context.store.people.all() if one.number == person.number)


@operation("user.list", User)
def list_(context: Context) -> Iterator[Row]:
    """List everybody who may look at the lab's pages, and who might before."""
    yield from map(_described, context.store.people.all())


def _person(context: Context, name: str) -> Person:
    person = context.store.people.named(name)
    if person is None:
        raise NoSuchNameError(f"nobody called {name!r} is let in; `labref user list` shows who is.")
    return person


def _new_code() -> str:
    code = "".join(secrets.choice(_LETTERS) for _ in range(_CODE_LENGTH))
    return "-".join(code[start : start + 4] for start in range(0, _CODE_LENGTH, 4))


def _links(web: WebConfig, code: str) -> list[str]:
    """The addresses that sign somebody with this code in on other computers; the names first."""
    if web.certificate is None:
        return [f"https://{name}/sign-in#{code}" for name in web.names]  # the proxy's
    where = ipaddress.ip_address(web.address)
    hosts = list(web.names)
    if not (where.is_unspecified or where.is_loopback):
        hosts.append(f"[{where}]" if where.version == 6 else str(where))
    port = "" if web.port == _HTTPS else f":{web.port}"
    return [f"https://{host}{port}/sign-in#{code}" for host in hosts]


def _end(days: int | None) -> datetime | None:
    return None if days is None else datetime.now(UTC) + timedelta(days=days)


def _described(person: Person) -> Row:
    state = "revoked" if person.revoked_at is not None else "active" if person.may_enter() else "expired"
    end = None if person.expires_at is None else utc(person.expires_at.replace(tzinfo=UTC))
    return {
        "name": person.name,
        "role": str(person.role),
        "created_at": utc(person.created_at.replace(tzinfo=UTC)),
        "expires_at": end,
        "state": state,
    }
