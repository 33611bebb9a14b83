"""What waits for a person: possible duplicates, suspects, unidentified, doubtful and novel cells, doubtful pictures."""

from __future__ import annotations

from starlette.responses import Response

from labref.web.pages import Visit, page


@page("/review")
def review(visit: Visit) -> Response:
    return visit.show("review.html", left=visit.one("review.queues"))


@page("/review/duplicates")
def duplicates(visit: Visit) -> Response:
    pairs = list(visit.ask("duplicates.list", verdict="possible_duplicate", limit=1))
    left = visit.one("review.queues", queue="duplicates")["duplicates"]
    return visit.show("review-duplicates.html", pair=pairs[0] if pairs else None, left=left, styles=_styles(visit))


@page("/review/suspects")
def suspects(visit: Visit) -> Response:
    return _queue(visit, "suspects")


@page("/review/unidentified")
def unidentified(visit: Visit) -> Response:
    return _queue(visit, "unidentified")


@page("/review/doubtful")
def doubtful(visit: Visit) -> Response:
    return _queue(visit, "doubtful")


@page("/review/novel")
def novel(visit: Visit) -> Response:
    return _queue(visit, "novel")


@page("/review/pictures")
def pictures(visit: Visit) -> Response:
    return _queue(visit, "pictures")


def _queue(visit: Visit, queue: str) -> Response:
    left = visit.one("review.queues", queue=queue)[queue]
    cells = list(visit.ask("review.cells", queue=queue, limit=1)) if left else []
    classes = list(visit.ask("classes.list"))
    return visit.show(
        "review-cells.html",
        queue=queue,
        left=left,
        cell=cells[0] if cells else None,
        classes=classes,
        styles=_styles(visit),
    )


def _styles(visit: Visit) -> dict[str, str]:
    return {row["label"]: row["style"] for row in visit.ask("classes.list")}
