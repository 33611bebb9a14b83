"""The slides: which there are, one as a gallery by class, two beside each other."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from starlette.responses import Response

from labref.errors import LabrefError
from labref.operations.naming import SeveralSlidesError
from labref.progress import Row
from labref.web.pages import Visit, page, page_number

_A_PAGE: Final = 50
_CELLS_A_PAGE: Final = 1000


@dataclass
class _Shown:
    """A slide as `slide.show` tells of it. classes : each with its `rows`, the cells."""

    about: Row
    classes: list[Row] = field(default_factory=list)
    kin: list[Row] = field(default_factory=list)
    cells: int = 0


@page("/slides", brief=True)
def slides(visit: Visit) -> Response:
    return _list(visit, "", page_number(visit.query.get("page")))


@page("/slides", methods=("POST",))
def found_slides(visit: Visit) -> Response:
    """What is searched for can name a patient, so it comes in the body, and stands in no address."""
    form = visit.form()
    return _list(visit, form.get("search", [""])[0][:200], page_number(form.get("page", [""])[0]))


@page("/slides/beside")
def beside(visit: Visit) -> Response:
    """Two slides beside each other. A form sends their keys as `slide`, twice."""
    keys = visit.request.query_params.getlist("slide")
    if len(keys) != 2:
        raise LabrefError(visit.texts.gettext("Choose two slides, then look at them beside each other."))
    both = [_shown(visit, key, limit=400) for key in keys]
    of_class = [{row["label"]: row for row in one.classes} for one in both]
    labels = list(dict.fromkeys(row["label"] for one in both for row in one.classes))
    rows = [(label, [found.get(label) for found in of_class]) for label in labels]
    return visit.show("slides-beside.html", both=both, rows=rows, classes=_classes(visit))


@page("/slide/{key}", brief=True)
def slide(visit: Visit, key: str) -> Response:
    order = "arrival" if visit.query.get("order") == "arrival" else "similarity"
    number = page_number(visit.query.get("page"))
    try:
        shown = _shown(visit, key, order=order, limit=_CELLS_A_PAGE, offset=(number - 1) * _CELLS_A_PAGE)
    except SeveralSlidesError:  # a link from before watched folders counted
        found, *rows = visit.ask("slide.list", slide=key)
        return visit.show("slides.html", status=300, slides=rows, found=found["slides"], search="", number=1, pages=1)
    classes = _classes(visit)
    there = {row["label"] for row in shown.classes}
    # a cell can be moved into each class
    empty = [
        {"label": label, "cells": 0, "awaiting": 0, "kind": row["kind"], "share": None, "rows": []}
        for label, row in classes.items()
        if label not in there
    ]
    return visit.show(
        "slide.html",
        slide=shown.about,
        shown=shown,
        sections=shown.classes + empty,
        classes=classes,
        number=number,
        pages=-(-shown.about["cells"] // _CELLS_A_PAGE),
        whole=shown.cells == shown.about["cells"],
    )


def _list(visit: Visit, search: str, number: int) -> Response:
    found, *rows = visit.ask("slide.list", search=search, limit=_A_PAGE, offset=(number - 1) * _A_PAGE)
    if not rows and found["slides"]:  # beyond the last
        return _list(visit, search, -(-found["slides"] // _A_PAGE))
    return visit.show(
        "slides.html",
        slides=rows,
        found=found["slides"],
        search=search,
        number=number,
        pages=max(1, -(-found["slides"] // _A_PAGE)),
    )


def _shown(visit: Visit, key: str, **asked: Any) -> _Shown:
    about, *rows = visit.named("slide.show", slide=key, **asked)
    shown = _Shown(about)
    by_label: dict[str, Row] = {}
    for row in rows:
        if "kind" in row:
            by_label[row["label"]] = {**row, "rows": []}
        elif "cell_id" in row:
            by_label[row["label"]]["rows"].append(row)
            shown.cells += 1
        else:
            shown.kin.append(row)
    shown.classes = list(by_label.values())
    return shown


def _classes(visit: Visit) -> dict[str, Row]:
    """The lab's classes by label."""
    return {row["label"]: row for row in visit.ask("classes.list")}
