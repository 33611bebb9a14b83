"""What the lab's references are worth, before it goes live: the report that was made last."""

from __future__ import annotations

import json
from typing import Any

from starlette.responses import Response

from labref.errors import LabrefError
from labref.progress import Row
from labref.roles import Role
from labref.web.pages import NotThereError, Visit, page
from labref.web.report import as_file, shown_with


@page("/report")
def report(visit: Visit) -> Response:
    return _report(visit)


@page("/report", methods=("POST",), role=Role.REVIEW)
def make(visit: Visit) -> Response:
    form = {name: values[0].strip() for name, values in visit.form().items()}
    asked: dict[str, Any] = {name: form[name] for name in ("sample", "seed") if form.get(name)}
    try:
        list(visit.ask("report.make", wait=False, **asked))
    except LabrefError as error:
        return _report(visit, visit.problem(error), 400)
    return visit.go("/report")


@page("/report/file")
def file(visit: Visit) -> Response:
    made = as_file(_made(visit), visit.texts.language, lambda cell_id: visit.pictures.of_cell(cell_id, "thumb"))
    return _saved(made, "text/html; charset=utf-8", "labref-report.html")


@page("/report/numbers.json")
def numbers(visit: Visit) -> Response:
    text = json.dumps(_made(visit, counts_only=True), allow_nan=False, indent=1)
    return _saved(f"{text}\n", "application/json", "labref-report-numbers.json")


def _report(visit: Visit, problem: str | None = None, status: int = 200) -> Response:
    state = visit.one("report.show")
    return visit.show(
        "report.html",
        status=status,
        making=state["making"],
        problem=problem or state["problem"],
        **shown_with(
            state["report"],
            visit.texts.language,
            lambda cell_id: (
                None if visit.pictures.mark(cell_id, "thumb") is None else f"/cell/{cell_id}/picture?view=thumb"
            ),
        ),
    )


def _made(visit: Visit, *, counts_only: bool = False) -> Row:
    found: Row | None = visit.one("report.show", counts_only=counts_only)["report"]
    if found is None:
        raise NotThereError(visit.texts.gettext("No report has been made yet."))
    return found


def _saved(text: str, kind: str, name: str) -> Response:
    return Response(text, media_type=kind, headers={"Content-Disposition": f'attachment; filename="{name}"'})
