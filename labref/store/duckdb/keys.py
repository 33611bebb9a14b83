"""Which keys sign the bundles that a lab takes in, and why each of its bundles came in.

Table `signing_key`: what the lab thinks of a key, from when on; the last row of a key holds.
Table `admission`: why a bundle came in, or that it was dropped; the last row of a digest holds. The numbers of all rows
count against an old bundle that is offered again.
Table `before_signatures`: one row, whether a labref that knew no signatures left bundles that nobody has taken over
yet.

Nothing here knows what a signature is: `labref.lab.trust` decides, within the transaction that writes it down.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from labref.failpoints import failpoint
from labref.store.duckdb import rows, sequence
from labref.store.duckdb.tables import Tables
from labref.store.duckdb.vocabulary import How, KeyState, word
from labref.store.text import from_column, from_nullable, to_column, to_nullable

__all__ = ["Admission", "How", "KeyChange", "KeyState", "Keys", "Known"]


@dataclass(frozen=True, slots=True)
class KeyChange:
    """What the lab thinks of a key. key : 64 hexadecimal characters.  because : the id of the key that this followed
    from; None where a person said it.  changed_at : UTC; None where it is still to be written."""

    key: str
    name: str
    state: KeyState
    because: str | None = None
    changed_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Admission:
    """Why a bundle came in. digest : 64 hexadecimal characters.  name, bundle_number, key_id : as they were signed;
    None where it is unsigned.  admitted_at : UTC; None where it is still to be written."""

    digest: str
    how: How
    name: str | None = None
    bundle_number: int | None = None
    key_id: str | None = None
    admitted_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Known:
    """keys : the last word on each key, by key.  admissions : the last of each bundle, by digest.  numbers : the
    largest number, by name."""

    keys: dict[str, KeyChange]
    admissions: dict[str, Admission]
    numbers: dict[str, int]


class Keys(Tables):
    """The keys of one store, and why its bundles came in; `Store.keys`. Methods may be called from any thread."""

    def known(self) -> Known:
        """All that holds now."""
        with self._reading() as cursor:
            return _known(cursor)

    def change(self, decide: Callable[[Known], Iterable[KeyChange | Admission]]) -> None:
        """Write down what `decide` makes of what holds now; nobody else writes meanwhile. Where it raises, nothing is
        written."""
        with self._transaction() as connection:
            self._write(connection, decide(_known(connection)))
            failpoint("keys.change")

    def take_over(self, find: Callable[[], Iterable[Admission]]) -> None:
        """Write down the bundles that a labref without signatures left, once. find : says which."""
        with self._reading() as cursor:
            waits = cursor.execute("SELECT waits FROM before_signatures").fetchone()
        if waits is None or not waits[0]:
            return
        found = list(find())
        with self._transaction() as connection:
            self._write(connection, found)
            connection.execute("UPDATE before_signatures SET waits = FALSE")
            failpoint("keys.take-over")

    def _write(self, connection: Any, changes: Iterable[KeyChange | Admission]) -> None:
        numbers, at = sequence.begin(connection), rows.now()
        for change in changes:
            if isinstance(change, KeyChange):
                connection.execute(
                    "INSERT INTO signing_key VALUES (?, ?, ?, ?, ?, ?)",
                    [numbers.take(), change.key, to_column(change.name), str(change.state), change.because, at],
                )
            else:
                connection.execute(
                    "INSERT INTO admission VALUES (?, ?, ?, ?, ?, ?, ?)",
                    [
                        numbers.take(),
                        change.digest,
                        str(change.how),
                        to_nullable(change.name),
                        change.bundle_number,
                        change.key_id,
                        at,
                    ],
                )
        sequence.keep(connection, numbers)


def _known(cursor: Any) -> Known:
    keys = cursor.execute("SELECT key, name, state, because, changed_at FROM signing_key ORDER BY number").fetchall()
    admissions = cursor.execute(
        "SELECT digest, how, name, bundle_number, key_id, admitted_at FROM admission ORDER BY number"
    ).fetchall()
    numbers: dict[str, int] = {}
    for _, _, name, number, _, _ in admissions:
        if name is not None and number is not None:
            numbers[from_column(name)] = max(number, numbers.get(from_column(name), 0))
    return Known(
        {
            key: KeyChange(key, from_column(name), word(KeyState, state, f"what holds of the key {key}"), because, at)
            for key, name, state, because, at in keys
        },
        {
            digest: Admission(
                digest,
                word(How, how, f"why the bundle {digest[:12]} came in"),
                from_nullable(name),
                number,
                key_id,
                at,
            )
            for digest, how, name, number, key_id, at in admissions
        },
        numbers,
    )
