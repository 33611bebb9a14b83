"""Taking a slide or a cell out of the lab, as where a patient withdraws consent: what would go is shown first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from starlette.responses import Response

from labref.errors import LabrefError
from labref.roles import Role
from labref.web.pages import NotThereError, Visit, page

_SHOWN: Final = 400  # cells whose pictures are shown
_WHY: Final = "looked at on its page"  # of what only is looked at the ledger says nothing


@page("/slide/{key}/remove", role=Role.ADMIN)
def slide(visit: Visit, key: str) -> Response:
    return _looked_at(visit, slide=key)


@page("/slide/{key}/remove", methods=("POST",), role=Role.ADMIN)
def removed_slide(visit: Visit, key: str) -> Response:
    return _removed(visit, slide=key)


@page("/cell/{cell_id}/remove", role=Role.ADMIN)
def cell(visit: Visit, cell_id: str) -> Response:
    return _looked_at(visit, cell=cell_id)


@page("/cell/{cell_id}/remove", methods=("POST",), role=Role.ADMIN)
def removed_cell(visit: Visit, cell_id: str) -> Response:
    return _removed(visit, cell=cell_id)


def _looked_at(
    visit: Visit, slide: str = "", cell: str = "", *, problem: str | None = None, given: dict[str, str] | None = None
) -> Response:
    """What would go, and the form that lets it go. problem : why it did not.  given : what the form said then."""
    *going, total = visit.named("store.remove", **_what(slide, cell), why=_WHY, erase=True, dry_run=True)
    return visit.show(
        "remove.html",
        status=400 if problem else 200,
        slide=slide,
        cell=cell,
        name=_name(visit, slide),
        going=[row for row in going if not row["in_trash"]],
        total=total,
        most=_SHOWN,
        problem=problem,
        given=given or {},
        done=None,
        erased=False,
    )


def _removed(visit: Visit, slide: str = "", cell: str = "") -> Response:
    fields = visit.form()
    form = {name: values[0] for name, values in fields.items()}
    erase = form.get("how") == "erase"
    name = _name(visit, slide)
    *_, total = visit.named("store.remove", **_what(slide, cell), why=_WHY, erase=True, dry_run=True)
    if form.get("cells") != str(total["going"] + total["in_trash"]):
        problem = visit.texts.gettext("Other cells came or went meanwhile: look at what would go now, then remove it.")
        return _looked_at(visit, slide, cell, problem=problem, given=form)
    try:
        (done,) = visit.named(
            "store.remove",
            **_what(slide, cell, fields.get("also", [])),
            why=form.get("why", ""),
            who=None if visit.visitor is None else visit.visitor.name,
            erase=erase,
        )
    except NotThereError:
        raise
    except LabrefError as error:
        return _looked_at(visit, slide, cell, problem=str(error), given=form)
    return visit.show("remove.html", slide=slide, cell=cell, name=name, done=done, erased=erase, most=_SHOWN)


def _what(slide: str, cell: str, also: Sequence[str] = ()) -> dict[str, Any]:
    return {"slides": [slide] if slide else [], "cells": [*([cell] if cell else []), *also]}


def _name(visit: Visit, slide: str) -> str:
    """The name of a slide, while it has cells."""
    rows = list(visit.ask("slide.list", slide=slide)) if slide else []
    return str(rows[1]["name"]) if len(rows) > 1 else ""
