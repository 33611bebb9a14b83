"""The report of a lab as one HTML file that needs nothing beside it: no script, and no address outside."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator
from typing import Any, Final

from markupsafe import Markup
from PIL import Image

from labref.errors import UnreadableImageError
from labref.operations.classes import style_of
from labref.progress import Row
from labref.web.pages import rendered, static_text
from labref.web.pages.condition import words
from labref.web.pages.pictures import class_colours
from labref.web.texts import texts_in

__all__ = ["as_file", "shown_with"]

_SIDE: Final = 112  # of a picture, pixels: sharp at the 20 mm that it has on paper
_QUALITY: Final = 80


def as_file(report: Row, language: str, picture: Callable[[str], bytes | None]) -> str:
    """The HTML of a report, a `labref.operations.report.LabReport`. language : one of `labref.web.texts.LANGUAGES`.
    picture : cell id → its thumbnail, JPEG; None where there is none."""
    made: dict[str, str | None] = {}

    def source(cell_id: str) -> str | None:
        if cell_id not in made:
            made[cell_id] = _data(cell_id, picture)
        return made[cell_id]

    style = "".join((static_text("labref.css"), static_text("report.css"), class_colours(sorted(set(_labels(report))))))
    # the style sheets are labref's own, and what stands in them of a lab is a digest
    return rendered("report-file.html", language, style=Markup(style), **shown_with(report, language, source))


def shown_with(report: Row | None, language: str, source: Callable[[str], str | None]) -> dict[str, Any]:
    """The values that `report-body.html` shows. source : cell id → the address of its picture; None where there is
    none."""
    return {"report": report, "source": source, "style_of": style_of, "words": words(texts_in(language))}


def _data(cell_id: str, picture: Callable[[str], bytes | None]) -> str | None:
    try:
        found = picture(cell_id)
    except UnreadableImageError:
        return None
    if found is None:
        return None
    file = io.BytesIO()
    with Image.open(io.BytesIO(found), formats=("JPEG",)) as opened:  # labref's own thumbnail
        opened.resize((_SIDE, _SIDE), Image.Resampling.LANCZOS).save(file, "JPEG", quality=_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def _labels(report: Row) -> Iterator[str]:
    for row in report["analysers"]:
        for one in row["classes"]:
            yield from filter(None, (one["label"], one["instead"]))
        for example in (*row["drawn"], *row["worst"]):
            yield from (example["label"], *(reference["label"] for reference in example["references"]))
