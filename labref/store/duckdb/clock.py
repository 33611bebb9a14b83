"""How much time a lab has seen pass, whatever its computer's clock said.

A clock can be wrong for a while, and be put right. So time counts only where it was seen to pass: from one sign of life
to the next one, in the order they came, and only where the two are not far apart. A step that is longer than that,
forward or back, is a jump of the clock, or a time in which nobody saw the lab; it does not count. Signs of life are the
first cell of each day, and the rows of table `clock`, one for each pass of retention.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

import duckdb

from labref.store.duckdb import rows, sequence

__all__ = ["SEEN", "age", "jumps", "sign", "values"]

_DAY: Final = 86_400.0
_NEW_SIGNS: Final = """
    SELECT number, added_at AS seen_at FROM (
        SELECT number, added_at, lag(added_at::DATE) OVER (ORDER BY number) AS before FROM cell
        WHERE number > (SELECT coalesce(max(number), 0) FROM clock)
    ) WHERE before IS DISTINCT FROM added_at::DATE"""
_STEPS: Final = f"""
    SELECT number, seen_at, lead(seen_at) OVER (ORDER BY number) AS next_at, epoch(next_at) - epoch(seen_at) AS step
    FROM (FROM clock UNION ALL {_NEW_SIGNS} UNION ALL SELECT {2**63 - 1}, $now)"""
SEEN: Final = f"""
    SELECT number, seen_at,
           sum(CASE WHEN abs(step) <= $longest THEN step ELSE 0 END) OVER (ORDER BY number DESC) AS seconds
    FROM ({_STEPS})"""
"""Query for the signs of life, with the seconds that were seen to pass since each: number, seen_at, seconds. Its
parameters are those of `values`."""


def values(days: float) -> dict[str, Any]:
    """The parameters of `SEEN`, where what counts is whether so many days have passed.

    Steps of at most an eighth of them count, at least two days and at most 31: a jump of the clock that nobody can tell
    from a holiday then brings nothing forward by more than that.
    """
    return {"now": rows.now(), "longest": _DAY * min(max(days / 8, 2.0), 31.0)}


def age(at: str) -> str:
    """SQL: the seconds that were seen to pass since a row that was written at that time by the clock, once its number
    is joined to `SEEN` by ASOF LEFT JOIN … seen ON number >= seen.number."""
    since = f"least(greatest(epoch({at}) - epoch(seen.seen_at), 0), {_DAY})"  # of one day with its sign of life
    return f"coalesce(greatest(seen.seconds - {since}, 0), 0)"


def sign(connection: duckdb.DuckDBPyConnection) -> None:
    """Write down that the lab is alive now, and which signs of life its cells were, in the caller's transaction."""
    connection.execute(f"INSERT INTO clock {_NEW_SIGNS}")
    numbers = sequence.begin(connection)
    connection.execute("INSERT INTO clock VALUES (?, ?)", [numbers.take(), rows.now()])
    sequence.keep(connection, numbers)


def jumps(cursor: duckdb.DuckDBPyConnection, parameters: Mapping[str, Any]) -> list[tuple[datetime, datetime]]:
    """The steps that do not count, UTC, oldest first. parameters : of `values`."""
    found = cursor.execute(
        f"SELECT seen_at, next_at FROM ({_STEPS}) WHERE abs(step) > $longest ORDER BY number", dict(parameters)
    ).fetchall()
    return [(seen.replace(tzinfo=UTC), after.replace(tzinfo=UTC)) for seen, after in found]
