"""Looking at what is in a shared store: which labs have cells of which optics and class, and which these are."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from labref.shared.connection import moment
from labref.words import LabelSource

if TYPE_CHECKING:
    import psycopg

__all__ = ["Group", "Shown", "cells", "groups"]


@dataclass(frozen=True)
class Group:
    """Cells of one lab, optics and class. optics : None where the lab names none.  cells : how many."""

    lab: str
    optics: str | None
    label: str
    cells: int


@dataclass(frozen=True)
class Shown:
    """A cell in a list. stored_at : when its lab stored it, UTC."""

    lab: str
    cell_id: str
    label: str
    label_source: LabelSource
    analyser: str | None
    optics: str | None
    stored_at: datetime


def groups(connection: psycopg.Connection[tuple[Any, ...]]) -> list[Group]:
    """All groups, by lab, optics and class."""
    rows = connection.execute(
        "SELECT lab.name, found.optics, found.label, found.cells FROM "
        "(SELECT lab AS number, optics, label, count(*) AS cells FROM cell GROUP BY 1, 2, 3) AS found "
        "JOIN lab ON lab.id = number ORDER BY 1, 2, 3"
    ).fetchall()
    return [Group(lab, optics, label, number) for lab, optics, label, number in rows]


def cells(
    connection: psycopg.Connection[tuple[Any, ...]],
    *,
    lab: str = "",
    optics: str = "",
    label: str = "",
    limit: int,
    offset: int,
) -> list[Shown]:
    """Some of the cells of a lab, an optics and a class, the newest first. lab, optics, label : "" for all."""
    rows = connection.execute(
        f"SELECT lab.name, cell_id, label, label_source, analyser, optics, {moment('stored_at')} FROM cell JOIN lab ON lab.id = cell.lab "
        "WHERE (%(lab)s = '' OR cell.lab = (SELECT id FROM lab WHERE name = %(lab)s)) "
        "AND (%(optics)s = '' OR optics = %(optics)s) AND (%(label)s = '' OR label = %(label)s) "
        "ORDER BY stored_at DESC, cell_id, lab.name LIMIT %(limit)s OFFSET %(offset)s".encode(),
        {"lab": lab, "optics": optics, "label": label, "limit": limit, "offset": offset},
        prepare=False,
    ).fetchall()
    return [
        Shown(of, cell_id, given, LabelSource(source), analyser, group, at)
        for of, cell_id, given, source, analyser, group, at in rows
    ]
