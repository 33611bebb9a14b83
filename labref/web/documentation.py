"""The OpenAPI document of the agent: made from the registry of operations, so it says what the routes do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from labref import __version__
from labref.operations import PREFIX, Operation
from labref.operations.models import Failure

__all__ = ["IMAGE_RESPONSES", "LINES", "bytes_body", "document", "responses"]

LINES: Final = "application/x-ndjson"
"""Media type of JSON lines."""

_TITLE: Final = "labref agent"
_ABOUT: Final = """What the agent of one lab can be asked, by programs on the same computer.

Every request needs the lab's token, `Authorization: Bearer <content of LAB/token>`, or the cookie of somebody who signed
in to the pages and whose role allows it. It has to name 127.0.0.1 or localhost
as its host.

An answer of type `application/x-ndjson` is JSON lines: one JSON object a line, each of the schema that is given. Lines
that hold `progress` only say how far the work is. An operation that fails after its first line ends with a line that
holds only `error`; one that fails before has a status of its own. Fields are only ever added."""
_WHY: Final = {
    400: "The request is not one that this lab can answer.",
    401: "The lab's token is missing or wrong.",
    403: "Whoever is signed in may not do this, or a page of another site sent it.",
    404: "There is no such thing.",
    413: "The body is too large.",
    421: "The request names another host than 127.0.0.1 or localhost.",
    422: "The bytes are no image that labref can use.",
    503: "The agent cannot answer now.",
}
_REF: Final = "#/components/schemas/{model}"


def _ref(name: str) -> dict[str, str]:
    return {"$ref": _REF.format(model=name)}


def _failures(*codes: int) -> dict[int | str, dict[str, Any]]:
    content = {"application/json": {"schema": _ref(Failure.__name__)}}
    return {code: {"description": _WHY[code], "content": content} for code in codes}


IMAGE_RESPONSES: Final[Mapping[int | str, dict[str, Any]]] = {
    200: {
        "description": "The original bytes of the cell's file.",
        "content": {
            kind: {} for kind in ("image/jpeg", "image/png", "image/bmp", "image/tiff", "application/octet-stream")
        },
    },
    **_failures(400, 401, 403, 404, 421, 503),
}
"""Responses of the route that gives a cell's image."""


def responses(operation: Operation) -> dict[int | str, dict[str, Any]]:
    """Every response that the operation's route can give."""
    models: list[type[BaseModel]] = [*operation.answers, Failure]
    given: dict[str, Any]
    if operation.single:
        given = {"application/json": {"schema": _ref(models[0].__name__)}}
        about = models[0].__doc__ or ""
    else:
        given = {LINES: {"schema": {"anyOf": [_ref(model.__name__) for model in models]}}}
        about = "JSON lines, each of them one of these. A line that holds only `error` is the last."
    failures = [400, 401, 403, 421, 503]
    if operation.method == "POST":
        failures.append(413)
    if operation.takes_bytes:
        failures.append(422)
    return {200: {"description": about, "content": given}, **_failures(*sorted(failures))}


def bytes_body(about: str) -> dict[str, Any]:
    """The request body of an operation that takes bytes."""
    content = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
    return {"requestBody": {"description": about, "required": True, "content": content}}


def document(app: FastAPI, operations: Sequence[Operation]) -> dict[str, Any]:
    """The OpenAPI 3.1 document."""
    made = get_openapi(
        title=_TITLE, version=__version__, openapi_version="3.1.0", description=_ABOUT, routes=app.routes
    )
    schemas = made["components"]["schemas"]
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    for path in made["paths"].values():
        for route in path.values():
            if "HTTPValidationError" in str(route["responses"].get("422")):
                del route["responses"]["422"]  # FastAPI's own: such a request is answered with 400 here
    models = {answer for operation in operations for answer in operation.answers} | {Failure}
    listed = sorted(models, key=lambda model: model.__name__)
    _, found = models_json_schema([(model, "validation") for model in listed], ref_template=_REF)
    made["components"]["schemas"] = dict(sorted((schemas | found["$defs"]).items()))
    made["components"]["securitySchemes"] = {
        "token": {"type": "http", "scheme": "bearer", "description": "The content of LAB/token."}
    }
    made["security"] = [{"token": []}]
    groups = sorted({operation.group for operation in operations})
    made["tags"] = [{"name": group} for group in groups]
    made["servers"] = [{"url": "/", "description": f"The agent; all routes are under {PREFIX}"}]
    return made
