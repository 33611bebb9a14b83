"""Taking a slide or a cell out of the lab, as where a patient withdraws consent: what would go is shown first, and what
went can be brought back."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from starlette.responses import Response

from labref.errors import LabrefError
from labref.progress import Row
from labref.roles import Role
from labref.web.pages import NotThereError, Visit, page, page_number
from labref.web.pages.pictures import made_picture

_SHOWN: Final = 400  # cells whose pictures are shown
_EACH: Final = 60  # of those that were removed together
_A_PAGE: Final = 20  # groups of cells that were removed together
_WHY: Final = "looked at on its page"  # of what only is looked at the ledger says nothing


@page("/slide/{key}/remove", role=Role.ADMIN)
@page("/cell/{cell_id}/remove", role=Role.ADMIN)
def look(
    visit: Visit, key: str = "", cell_id: str = "", *, problem: str | None = None, given: dict[str, str] | None = None
) -> Response:
    """What would go, and the form that lets it go. problem : why it did not.  given : what the form said then."""
    *going, total = visit.named("store.remove", **_what(key, cell_id), why=_WHY, erase=True, dry_run=True)
    return visit.show(
        "remove.html",
        status=400 if problem else 200,
        slide=key,
        cell=cell_id,
        name=_name(visit, key),
        going=[row for row in going if not row["in_trash"]],
        total=total,
        most=_SHOWN,
        problem=problem,
        given=given or {},
        done=None,
        erased=False,
    )


@page("/slide/{key}/remove", methods=("POST",), role=Role.ADMIN)
@page("/cell/{cell_id}/remove", methods=("POST",), role=Role.ADMIN)
def remove(visit: Visit, key: str = "", cell_id: str = "") -> Response:
    fields = visit.form()
    form = {name: values[0] for name, values in fields.items()}
    erase = form.get("how") == "erase"
    name = _name(visit, key)
    *_, total = visit.named("store.remove", **_what(key, cell_id), why=_WHY, erase=True, dry_run=True)
    if form.get("cells") != str(total["going"] + total["in_trash"]):
        problem = visit.texts.gettext("Other cells came or went meanwhile: look at what would go now, then remove it.")
        return look(visit, key, cell_id, problem=problem, given=form)
    try:
        (done,) = visit.named(
            "store.remove",
            **_what(key, cell_id, fields.get("also", [])),
            why=form.get("why", ""),
            who=None if visit.visitor is None else visit.visitor.name,
            erase=erase,
        )
    except NotThereError:
        raise
    except LabrefError as error:
        return look(visit, key, cell_id, problem=visit.problem(error), given=form)
    return visit.show("remove.html", slide=key, cell=cell_id, name=name, done=done, erased=erase, most=_SHOWN)


@page("/removed", role=Role.ADMIN)
def removed(visit: Visit, *, problem: str | None = None, back: Row | None = None) -> Response:
    """The cells that can be brought back, by when and why they went. problem : why some did not come back.  back : what
    became of cells that were to."""
    groups = _together(visit)
    pages = max(1, -(-len(groups) // _A_PAGE))
    number = min(page_number(visit.query.get("page")), pages)
    shown, most = [], _SHOWN
    for group in groups[(number - 1) * _A_PAGE : number * _A_PAGE]:
        shown.append((group, group.cells[: min(_EACH, most)]))
        most -= len(shown[-1][1])
    return visit.show(
        "removed.html",
        status=400 if problem or (back and not back["cells"] and not back["already"]) else 200,
        groups=shown,
        number=number,
        pages=pages,
        classes={row["label"]: row for row in visit.ask("classes.list")},
        problem=problem,
        back=back,
    )


@page("/removed", methods=("POST",), role=Role.ADMIN)
def bring_back(visit: Visit) -> Response:
    form = visit.form()
    cells, key = form.get("cell", []), form.get("all", [""])[0]
    if key:
        cells = [row["cell_id"] for group in _together(visit) if group.key == key for row in group.cells]
    if not cells:
        said = (
            visit.texts.gettext("These cells are not here any more: they are back, or gone for good.")
            if key
            else visit.texts.gettext("Tick the cells that are to come back.")
        )
        return removed(visit, problem=said)
    try:
        back = visit.one("store.bring_back", cells=cells, there_only=True)
    except LabrefError as error:
        return removed(visit, problem=visit.problem(error))
    rest = {*cells}.difference(back["cells"], back["already"])
    # somebody may have removed some of them just now
    gone = rest - {row["cell_id"] for row in visit.ask("store.trash")} if rest else rest
    return removed(visit, back=back | {"gone": len(gone), "most": _EACH})


@page("/removed/{cell_id}/picture", role=Role.ADMIN)
def removed_picture(visit: Visit, cell_id: str) -> Response:
    return made_picture(lambda: visit.pictures.of_removed(cell_id), {"Cache-Control": "no-store"})


@dataclass(frozen=True)
class _Together:
    """Cells that were removed at the same moment, for the same reason. key : that stands for both."""

    key: str
    why: str
    cells: list[Row]


def _together(visit: Visit) -> list[_Together]:
    """The cells in the trash, those first that went last."""
    groups: dict[str, _Together] = {}
    for row in visit.ask("store.trash"):
        why = row["reason"].removesuffix(f"; it was cell {row['cell_id']}")
        key = hashlib.sha256(f"{row['removed_at']} {why}".encode()).hexdigest()[:16]
        groups.setdefault(key, _Together(key, why, [])).cells.append(row)
    return list(groups.values())[::-1]


def _what(slide: str, cell: str, also: Sequence[str] = ()) -> dict[str, Any]:
    return {"slides": [slide] if slide else [], "cells": [*([cell] if cell else []), *also]}


def _name(visit: Visit, slide: str) -> str:
    """The name of a slide, while it has cells."""
    rows = list(visit.ask("slide.list", slide=slide)) if slide else []
    return str(rows[1]["name"]) if len(rows) > 1 else ""
