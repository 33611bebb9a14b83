"""Blinded readings: who reads sees pictures and classes to choose from, and nothing that names the cell."""

from __future__ import annotations

import json
from typing import Any, Final

from starlette.responses import Response

from labref.errors import LabrefError
from labref.roles import Role
from labref.web.pages import Visit, page

_KEPT_SECONDS: Final = 3600


@page("/reading")
def readings(visit: Visit) -> Response:
    return _readings(visit)


@page("/reading", methods=("POST",), role=Role.REVIEW)
def start(visit: Visit) -> Response:
    form = visit.form()

    def first(name: str, default: str) -> str:
        return form.get(name, [default])[0].strip() or default

    asked: dict[str, Any] = {
        "title": first("title", visit.texts.gettext("Reading")),
        "kind": first("kind", "classes"),
        "n": first("n", "100"),
        "seed": first("seed", "1"),
        "arms": form.get("arms") or None,
        "sources": form.get("sources") or None,
        "bundle_is": first("bundle_is", "any"),
        "who": _who(visit),
    }
    try:
        visit.one("reading.start", **asked)
    except LabrefError as error:
        return _readings(visit, visit.problem(error), 400)
    return visit.go("/reading")


def _readings(visit: Visit, problem: str | None = None, status: int = 200) -> Response:
    rows = list(visit.ask("reading.list", who=_who(visit)))
    return visit.show("readings.html", readings=rows, problem=problem, status=status)


@page("/reading/{number:int}")
def read(visit: Visit, number: int) -> Response:
    (found,) = visit.named("reading.next", reading=number, who=_who(visit))
    title = next(row for row in visit.ask("reading.list", who=_who(visit)) if row["reading"] == found["reading"])
    classes = list(visit.ask("classes.list")) if found["kind"] == "classes" else []
    # how many cells of the lab carry a class is nothing that a reader should see
    shown = [{name: row[name] for name in ("label", "key", "style", "code")} for row in classes]
    return visit.show("reading.html", reading=title, next=found, classes=shown, styles=_styles(shown))


@page("/reading/{number:int}/picture/{task:int}/{arm}/{part:int}")
def picture(visit: Visit, number: int, task: int, arm: str, part: int) -> Response:
    (found,) = visit.named("reading.cell", reading=number, task=task, arm=arm, part=part)
    made = visit.pictures.of_cell(found["cell_id"], "cell")
    if made is None:
        return Response("no picture is kept of this cell", 404, media_type="text/plain; charset=utf-8")
    # no ETag, no name: nothing in the answer tells which cell this is
    return Response(made, media_type="image/jpeg", headers={"Cache-Control": f"private, max-age={_KEPT_SECONDS}"})


@page("/reading/{number:int}/end", methods=("POST",), role=Role.REVIEW)
def end(visit: Visit, number: int) -> Response:
    again = "again" in visit.form()
    visit.named("reading.end", reading=number, again=again, who=_who(visit))
    return visit.go("/reading")


@page("/reading/{number:int}/report", role=Role.REVIEW)
def report(visit: Visit, number: int) -> Response:
    rows = visit.named("reading.report", reading=number)
    title = next(row for row in visit.ask("reading.list") if row["reading"] == number)
    return visit.show(
        "reading-report.html",
        reading=title,
        accuracy=[row for row in rows if row["about"] == "accuracy"],
        differences=[row for row in rows if row["about"] == "difference"],
        agreements=[row for row in rows if row["about"] == "agreement"],
    )


@page("/reading/{number:int}/set.json", role=Role.REVIEW)
def triplets(visit: Visit, number: int) -> Response:
    (made,) = visit.named("reading.triplets", reading=number)
    text = json.dumps(made["set"], indent=0, ensure_ascii=False) + "\n"
    return _file(text, "application/json", f"reading-{number}-set.json")


@page("/reading/{number:int}/votes.csv", role=Role.REVIEW)
def votes(visit: Visit, number: int) -> Response:
    (made,) = visit.named("reading.triplets", reading=number)
    return _file(made["votes"], "text/csv; charset=utf-8", f"reading-{number}-votes.csv")


def _file(text: str, kind: str, name: str) -> Response:
    return Response(text, media_type=kind, headers={"Content-Disposition": f'attachment; filename="{name}"'})


def _who(visit: Visit) -> str | None:
    return None if visit.visitor is None else visit.visitor.name


def _styles(classes: list[dict[str, Any]]) -> dict[str, str]:
    return {row["label"]: row["style"] for row in classes}
