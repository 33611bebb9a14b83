"""How a moment is written: in UTC with a Z for programs, in this computer's time with its offset for people."""

from __future__ import annotations

from datetime import UTC, datetime

__all__ = ["local", "utc", "utc_now"]


def utc(moment: datetime, *, timespec: str = "auto") -> str:
    """A moment, which knows its time zone, as ISO 8601 in UTC: `2026-11-26T08:22:27Z`.

    timespec : of `datetime.isoformat`; by default fractions of a second are written where there are some.
    Raises ValueError where the moment knows no time zone: it could be any of a day's.
    """
    if moment.tzinfo is None:
        raise ValueError(f"{moment} has no time zone")
    return moment.astimezone(UTC).isoformat(timespec=timespec).removesuffix("+00:00") + "Z"


def utc_now() -> str:
    """This second, as `utc` writes it."""
    return utc(datetime.now(UTC), timespec="seconds")


def local(written: str, *, day: bool = False) -> str:
    """A moment as `utc` wrote it, for people: `2026-11-26 09:22:27+01:00` in this computer's time zone.

    day : only the day: `2026-11-26`.
    A moment that this computer cannot bring into its time zone (of the year 1 or 9999, say) stays in UTC, and a text
    that is no moment is given back as it is.
    """
    try:
        moment = datetime.fromisoformat(written)
    except ValueError:
        return written
    try:
        moment = moment.astimezone()
    except (OverflowError, OSError, ValueError):
        moment = moment.astimezone(UTC)
    return moment.date().isoformat() if day else moment.isoformat(sep=" ", timespec="seconds")
