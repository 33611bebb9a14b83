"""Who may look at the lab's pages: people, and the sessions that they signed in to.

Table `person`: one row for everybody who was ever let in; one who was revoked stays, so that their reviews have a name.
Table `session`: one row for each browser that is signed in.

Codes and session tokens are random (80 and 256 bits), and only their SHA-256 is kept: at that length a slow hash would
add nothing. Both tables are small, and kept in memory once they were read.
"""

from __future__ import annotations

import hashlib
import threading
import unicodedata
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from labref.errors import StoreError
from labref.failpoints import failpoint
from labref.roles import Role
from labref.store.duckdb import rows, sequence
from labref.store.duckdb.tables import Access, Tables
from labref.store.duckdb.vocabulary import word
from labref.store.recording import utc_naive
from labref.store.text import from_column, to_column

__all__ = ["People", "Person", "hashed"]

_CLOCK_MOVES: Final = timedelta(days=1)  # by so much a clock is put right without more
_SEEN_EVERY: Final = timedelta(minutes=5)  # how often it is written down that a session is used


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody who may look at the lab's pages. expires_at, revoked_at : UTC, None where they are not set."""

    number: int
    name: str
    role: Role
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None

    def may_enter(self) -> bool:
        """Whether they are let in now. Who was let in for a time while the clock was ahead is not: that time would not
        end for as long as it was."""
        now = rows.now()
        in_time = self.expires_at is None or (self.created_at - _CLOCK_MOVES < now < self.expires_at)
        return self.revoked_at is None and in_time


@dataclass(frozen=True, slots=True)
class _Session:
    person: int
    seen_at: datetime
    expires_at: datetime


class People(Tables):
    """The people of one store; `Store.people`. Methods may be called from any thread."""

    def __init__(self, access: Access) -> None:
        super().__init__(access)
        self._lock = threading.Lock()
        self._people: dict[int, Person] | None = None
        self._codes: dict[str, int] = {}
        self._sessions: dict[str, _Session] = {}

    def all(self) -> list[Person]:
        """Everybody who was ever let in, in the order they were added."""
        with self._lock:
            return list(self._known().values())

    def named(self, name: str) -> Person | None:
        """The person of that name who was not revoked; upper and lower case alike."""
        return next((one for one in self.all() if one.revoked_at is None and _key(one.name) == _key(name)), None)

    def add(self, name: str, role: Role, code: str, expires_at: datetime | None) -> Person:
        """Let somebody in. code : what they sign in with.  expires_at : until when, with a time zone.

        Raises `StoreError` where somebody has that name already.
        """
        end = None if expires_at is None else utc_naive(expires_at)
        with self._lock:
            known = self._known()
            if any(one.revoked_at is None and _key(one.name) == _key(name) for one in known.values()):
                raise StoreError(f"somebody called {name} is let in already")
            with self._transaction() as connection:
                numbers = sequence.begin(connection)
                person = Person(numbers.take(), name, role, rows.now(), end, None)
                connection.execute(
                    "INSERT INTO person VALUES (?, ?, ?, ?, ?, ?, ?)",
                    [
                        person.number,
                        to_column(name),
                        str(role),
                        hashed(code),
                        person.created_at,
                        end,
                        None,
                    ],
                )
                sequence.keep(connection, numbers)
                failpoint("people.add")
            known[person.number] = person
            self._codes[hashed(code)] = person.number
            return person

    def renew(self, person: Person, code: str, expires_at: datetime | None) -> Person:
        """Give somebody a new code; the one before, and the sessions that it opened, end.

        expires_at : until when it lets them in, with a time zone.
        """
        end = None if expires_at is None else utc_naive(expires_at)
        with self._lock:
            known = self._known()
            since = min(known[person.number].created_at, rows.now())  # the clock may have been ahead
            with self._transaction() as connection:
                connection.execute(
                    "UPDATE person SET code_hash = ?, expires_at = ?, created_at = ? WHERE number = ?",
                    [hashed(code), end, since, person.number],
                )
                connection.execute("DELETE FROM session WHERE person = ?", [person.number])
                failpoint("people.renew")
            renewed = replace(known[person.number], expires_at=end, created_at=since)
            known[person.number] = renewed
            self._forget_sessions(person.number)
            self._codes = {code: number for code, number in self._codes.items() if number != person.number}
            self._codes[hashed(code)] = person.number
            return renewed

    def revoke(self, person: Person) -> None:
        """Let somebody in no more; their sessions end at once."""
        with self._lock:
            known, at = self._known(), rows.now()
            with self._transaction() as connection:
                connection.execute("UPDATE person SET revoked_at = ? WHERE number = ?", [at, person.number])
                connection.execute("DELETE FROM session WHERE person = ?", [person.number])
                failpoint("people.revoke")
            known[person.number] = replace(known[person.number], revoked_at=at)
            self._forget_sessions(person.number)

    def sign_in(self, code: str, token: str, lasts: timedelta) -> Person | None:
        """Open a session for whoever has this code; None where nobody has it, or they are no longer let in.

        token : what the browser shows from now on.  lasts : how long, at most.
        """
        now = rows.now()
        with self._lock:
            known = self._known()
            person = known.get(self._codes.get(hashed(code), -1))
            if person is None or not person.may_enter():
                return None
            session = _Session(person.number, now, now + lasts)
            with self._transaction() as connection:
                connection.execute("DELETE FROM session WHERE expires_at < ?", [now])
                connection.execute(
                    "INSERT INTO session VALUES (?, ?, ?, ?, ?)",
                    [hashed(token), person.number, now, now, session.expires_at],
                )
                failpoint("people.sign-in")
            self._sessions = {key: one for key, one in self._sessions.items() if one.expires_at >= now}
            self._sessions[hashed(token)] = session
            return person

    def of_session(self, token: str, idle: timedelta, *, used: bool = True) -> Person | None:
        """Who is signed in with this token; None where nobody is, the session is over, or unused for longer than
        `idle`. Microseconds, but for a write every five minutes.

        used : whether that counts as a use of the session.
        """
        now, key = rows.now(), hashed(token)
        with self._lock:
            known = self._known()
            session = self._sessions.get(key)
            # one that was opened while the clock was ahead would not end for as long as it was
            if session is None or now >= session.expires_at or abs(now - session.seen_at) > idle:
                return None
            person = known[session.person]
            if not person.may_enter():
                return None
            if used and now - session.seen_at > _SEEN_EVERY:
                self._sessions[key] = replace(session, seen_at=now)
                with self._transaction() as connection:
                    connection.execute("UPDATE session SET seen_at = ? WHERE token_hash = ?", [now, key])
            return person

    def sign_out(self, token: str) -> None:
        """End a session; one that is none is no error."""
        with self._lock:
            self._known()
            if self._sessions.pop(hashed(token), None) is not None:
                with self._transaction() as connection:
                    connection.execute("DELETE FROM session WHERE token_hash = ?", [hashed(token)])

    def _known(self) -> dict[int, Person]:
        """By number; the caller has the lock."""
        if self._people is None:
            with self._reading() as cursor:
                people = cursor.execute(
                    "SELECT number, name, role, created_at, expires_at, revoked_at, code_hash FROM person ORDER BY number"
                ).fetchall()
                sessions = cursor.execute("SELECT token_hash, person, seen_at, expires_at FROM session").fetchall()
            self._people = {
                number: Person(
                    number,
                    from_column(name),
                    word(Role, role, f"the role of {from_column(name)!r}"),
                    created,
                    expires,
                    revoked,
                )
                for number, name, role, created, expires, revoked, _ in people
            }
            self._codes = {row[-1]: row[0] for row in people}
            self._sessions = {key: _Session(person, seen, expires) for key, person, seen, expires in sessions}
        return self._people

    def _forget_sessions(self, person: int) -> None:
        self._sessions = {key: one for key, one in self._sessions.items() if one.person != person}


def hashed(secret: str) -> str:
    """SHA-256 of a code or token, 64 hexadecimal characters."""
    return hashlib.sha256(secret.encode()).hexdigest()


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
