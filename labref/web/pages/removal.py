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
        return look(visit, key, cell_id, problem=str(error), given=form)
    return visit.show("remove.html", slide=key, cell=cell_id, name=name, done=done, erased=erase, most=_SHOWN)


def _what(slide: str, cell: str, also: Sequence[str] = ()) -> dict[str, Any]:
    return {"slides": [slide] if slide else [], "cells": [*([cell] if cell else []), *also]}


def _name(visit: Visit, slide: str) -> str:
    """The name of a slide, while it has cells."""
    rows = list(visit.ask("slide.list", slide=slide)) if slide else []
    return str(rows[1]["name"]) if len(rows) > 1 else ""
