"""The agent's HTTP side: what programs ask, and the pages that people look at.

    GET  /health                              no token; {status, version, proof?}: whether it runs, and (with ?nonce=)
                                              whose it is
    GET  /metrics                             no token; Prometheus' text; counts only
    GET  /api/v1/openapi.json                 what can be asked, and what is answered
    GET  /api/v1/reference/{cell_id}/image    the kept original bytes
    POST /api/v1/{group}/{verb}               an operation of `labref.operations`; the body is a JSON object of
                                              parameters, the answer JSON lines
    POST /api/v1/query?k=8                    the body is an image file; the answer of `labref query --json`
    GET  /api/v1/status, /api/v1/ledger       as `labref status --json` and `labref ledger --json`

    GET  /, /sign-in, /static/…               pages; see `labref.web.pages`
    GET  /events                              that something is new, for pages; see `labref.web.events`

All under /api needs `Authorization: Bearer <content of LAB/token>`, or the cookie of somebody who signed in and whose
role allows it; see `labref.web.guard`. A failure is {"error": {"kind", "message"}}; a failure after the first of many
rows is a last line of this form. A request of a stranger gets one answer; its body is not kept, and its connection is
closed; see `labref.web.connections`.
"""

from __future__ import annotations

import inspect
import itertools
import json
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Final

from fastapi import Body, FastAPI, Query
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException as AnyHTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import ASGIApp

from labref import __version__
from labref.errors import AgentError, LabrefError, StoreError, UnreadableImageError
from labref.lab.log import Log
from labref.lab.pictures import Pictures
from labref.operations import PREFIX, Operation, every_operation, explain
from labref.progress import Row
from labref.web.documentation import IMAGE_RESPONSES, LINES, bytes_body, document, responses
from labref.web.events import Events
from labref.web.failures import failure, for_person, told, unexpected
from labref.web.guard import Elsewhere, Guard, in_api
from labref.web.metrics import METRICS_TYPE, Metrics
from labref.web.pages import add_pages
from labref.web.texts import texts_for
from labref.web.visitors import VISITOR, Entrance, Visitors, visitor_of

__all__ = ["Answers", "make_app"]

_NOWHERE: Final = Elsewhere()
_ROWS_AT_ONCE: Final = 500
_FOR_PROGRAMS: Final = ("/health", "/metrics")
_ON_DISK: Final = frozenset({"file", "folder", "target"})
"""Parameters that name a file or folder of the agent's computer. Who has the lab's token may give them; a person in a
browser, who may be elsewhere, may not."""

_Endpoint = Callable[..., Awaitable[Response]]


@dataclass(frozen=True)
class Answers:
    """The functions of the agent that the application calls.

    proof : (nonce, mark) → the proof that this is the lab's agent (`labref.lab.presence`), or None where it cannot be
    given.  perform : (operation, parameters, bytes) → rows.  image : cell id → original bytes, or None.
    healthy : → "ok", or the fault, without anything secret: "storage" where cells cannot be stored, "folder" where a
    watched folder is missing, "no progress" where one piece of work takes longer than any should; and what somebody has
    to see to before it is a fault: "provider" where a GPU is here that is not used, "disk" where the lab's fills,
    "backup" where the last one is old, "shared" where the shared store has not been told of cells for an hour.
    entrance : who the people are that may look at the pages.  pictures : of cells, for pages.
    latest : → the largest number of the store's sequence.
    """

    perform: Callable[[str, Mapping[str, Any] | BaseModel, bytes | None], Iterator[Row]]
    image: Callable[[str], bytes | None]
    healthy: Callable[[], str]
    proof: Callable[[str, str | None], str | None]
    entrance: Entrance
    latest: Callable[[], int]
    pictures: Pictures


def make_app(
    answers: Answers,
    metrics: Metrics,
    *,
    token: str,
    max_bytes: int,
    log: Log,
    elsewhere: Elsewhere = _NOWHERE,
    pictures_a_minute: int = 60,
) -> ASGIApp:
    """The application. max_bytes : size of the largest image that is accepted, bytes.  elsewhere : how other computers
    reach it.  pictures_a_minute : that a person may ask about."""
    operations = every_operation()
    # no pages: those of FastAPI load their scripts from elsewhere, and a lab has no internet
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    _add_plain_routes(app, answers, metrics)
    visitors = Visitors(answers.entrance, token)
    # before the operations: a page has a dozen pictures, and the first route that fits is taken
    failure_page = add_pages(app, answers.perform, answers.image, visitors, answers.pictures)
    for operation in operations:
        endpoint = _endpoint(operation, answers, metrics, log)
        app.add_api_route(
            operation.path,
            endpoint,
            methods=[operation.method],
            response_class=Response,
            responses=responses(operation),
            summary=operation.summary,
            description=operation.description,
            operation_id=operation.name.replace(".", "_"),
            tags=[operation.group],
            openapi_extra=bytes_body("An image file of one cell.") if operation.takes_bytes else None,
        )
    made: list[dict[str, Any]] = []

    async def openapi(request: Request) -> Response:
        if not made:
            made.append(document(app, operations))
        return JSONResponse(made[0])

    app.add_route(f"{PREFIX}/openapi.json", openapi, include_in_schema=False)
    of_images = {"/ask", *(operation.path for operation in operations if operation.takes_bytes)}
    app.add_route("/events", Events(answers.latest, visitors).endpoint, include_in_schema=False)
    _add_failures(app, {operation.path: operation for operation in operations}, failure_page)
    roles = {operation.path: operation.role for operation in operations}
    return Guard(
        app,
        visitors,
        elsewhere=elsewhere,
        roles=roles,
        of_images=of_images,
        image_bytes=max_bytes,
        pictures_a_minute=pictures_a_minute,
        log=log,
    )


def _add_plain_routes(app: FastAPI, answers: Answers, metrics: Metrics) -> None:
    async def health(request: Request) -> Response:
        state = answers.healthy()
        values = {"status": state, "version": __version__}
        nonce, mark = request.query_params.get("nonce"), request.query_params.get("mark")
        if nonce is not None and len(nonce) <= 64:
            given = await run_in_threadpool(answers.proof, nonce, mark)
            if given is not None:
                values["proof"] = given
        return JSONResponse(values)

    async def metrics_text(request: Request) -> Response:
        return Response(await run_in_threadpool(metrics.text), media_type=METRICS_TYPE)

    async def image(cell_id: str) -> Response:
        data = await run_in_threadpool(answers.image, cell_id)
        if data is None:
            return failure(404, LabrefError("no image is kept for this cell"))
        return Response(data, media_type=_media_type(data), headers={"X-Content-Type-Options": "nosniff"})

    app.add_route("/health", health, include_in_schema=False)
    app.add_route("/metrics", metrics_text, include_in_schema=False)
    app.add_api_route(
        f"{PREFIX}/reference/{{cell_id}}/image",
        image,
        response_class=Response,
        responses=dict(IMAGE_RESPONSES),
        summary="Give the original bytes of a cell's file",
        operation_id="reference_image",
        tags=["reference"],
    )


def _endpoint(operation: Operation, answers: Answers, metrics: Metrics, log: Log) -> _Endpoint:
    """The function that FastAPI calls: its parameter `asked` is the operation's request."""
    in_query = operation.takes_bytes or operation.method == "GET"
    names_asker = "who" in operation.request.model_fields

    async def endpoint(request: Request, asked: BaseModel) -> Response:
        asker = visitor_of(request).name
        if asker is not None:
            named = sorted(name for name in _ON_DISK & asked.model_fields_set if getattr(asked, name) is not None)
            if named:
                why = f"{named[0]} names a file or folder of the lab's computer; only the command on that computer may"
                return failure(403, AgentError(why))
            if names_asker:
                asked = asked.model_copy(update={"who": asker})
        if not operation.single:
            rows = answers.perform(operation.name, asked, None)
            return await _lines(rows, log, partial(_for_person, request), hurried=operation.hurried)
        data = await request.body() if operation.takes_bytes else None
        started, result = time.perf_counter(), "failed"
        try:
            row = await run_in_threadpool(_only, answers.perform, operation.name, asked, data)
            result = "answered"
            if "novelty" in row:
                metrics.asked.labels(novel=str(row["novelty"]["is_novel"]).lower()).inc()
        finally:
            if operation.takes_bytes:
                metrics.queries.labels(result=result).observe(time.perf_counter() - started)
        return JSONResponse(row)

    optional = not any(field.is_required() for field in operation.request.model_fields.values())
    given = inspect.Parameter(
        "asked",
        inspect.Parameter.KEYWORD_ONLY,
        annotation=Annotated[operation.request, Query() if in_query else Body()],
        default=operation.request() if optional and not in_query else inspect.Parameter.empty,
    )
    asking = inspect.Parameter("request", inspect.Parameter.KEYWORD_ONLY, annotation=Request)
    endpoint.__signature__ = inspect.Signature([asking, given])  # type: ignore[attr-defined]
    return endpoint


def _only(
    perform: Callable[[str, Mapping[str, Any] | BaseModel, bytes | None], Iterator[Row]],
    name: str,
    asked: BaseModel,
    data: bytes | None,
) -> Row:
    (row,) = perform(name, asked, data)
    return row


async def _lines(rows: Iterator[Row], log: Log, words: Callable[[Exception], str], *, hurried: bool) -> Response:
    """The rows as JSON lines. A failure before the first row is raised here, so that the response gets its status.
    words : what is said of a later one."""
    first = await run_in_threadpool(next, rows, None)
    if first is None:
        return Response(b"", media_type=LINES)
    return StreamingResponse(
        _encoded(itertools.chain([first], rows), log, words, 1 if hurried else _ROWS_AT_ONCE), media_type=LINES
    )


def _encoded(rows: Iterator[Row], log: Log, words: Callable[[Exception], str], at_once: int) -> Iterator[bytes]:
    """The lines, several in one piece. Where an error ends them, it is the last line."""
    block: list[str] = []
    try:
        for row in rows:
            block.append(json.dumps(row, ensure_ascii=True))
            if len(block) >= at_once:
                yield ("\n".join(block) + "\n").encode()
                block.clear()
    except LabrefError as error:
        block.append(json.dumps({"error": told(error) | {"message": words(error)}}))
    except Exception as error:
        log.error("an answer failed on its way", error=type(error).__name__)
        block.append(json.dumps({"error": told(unexpected(error))}))
    if block:
        yield ("\n".join(block) + "\n").encode()


def _for_person(request: Request, error: Exception) -> str:
    """What an error says to whoever asks: a script of a page shows it to a person."""
    return for_person(str(error), request.scope.get(VISITOR), texts_for(request))


def _add_failures(
    app: FastAPI, by_path: Mapping[str, Operation], page: Callable[[Request, int, str], Response]
) -> None:
    """Every failure as {"error": {"kind", "message"}}; outside /api, where people are, as a page.

    page : (request, status, what is wrong) → the page.
    """

    async def fail(request: Request, code: int, error: Exception, headers: Mapping[str, str] | None = None) -> Response:
        accepted = request.headers.get("accept", "*/*")
        for_programs = in_api(request.url.path) or request.url.path in _FOR_PROGRAMS
        if for_programs or not ("text/html" in accepted or accepted.startswith("*/*")):
            return failure(code, error, headers, message=_for_person(request, error))
        shown = await run_in_threadpool(page, request, code, str(error))
        shown.headers.update(headers or {})
        return shown

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        found = error.errors()
        if any(one["loc"] == ("body",) or one["type"] == "json_invalid" for one in found):
            return await fail(
                request,
                400,
                LabrefError(
                    "the body is no JSON object; send the operation's parameters as one, with Content-Type: application/json"
                ),
            )
        operation = by_path.get(request.url.path)
        request_model = None if operation is None else operation.request
        return await fail(
            request, 400, LabrefError(explain([one | {"loc": one["loc"][1:]} for one in found], request_model))
        )

    async def not_there(request: Request, error: Exception) -> Response:
        assert isinstance(error, AnyHTTPException)
        told: LabrefError = LabrefError(f"{error.detail}: the request cannot be read")
        if error.status_code == 404:
            told = LabrefError("nothing is at this address; perhaps another version of labref asks")
        elif error.status_code == 405:
            told = LabrefError("this address takes another method than this")
        elif error.status_code == 413:
            operation = by_path.get(request.url.path)
            of_image = operation is not None and operation.takes_bytes
            told = (UnreadableImageError if of_image else LabrefError)(error.detail)
        return await fail(request, error.status_code, told, error.headers)

    def failing(code: int) -> Callable[[Request, Exception], Awaitable[Response]]:
        async def answer(request: Request, error: Exception) -> Response:
            return await fail(request, code, error)

        return answer

    async def failed(request: Request, error: Exception) -> Response:
        return await fail(request, 500, unexpected(error))

    app.add_exception_handler(Exception, failed)
    app.add_exception_handler(RequestValidationError, refused)
    app.add_exception_handler(AnyHTTPException, not_there)
    app.add_exception_handler(UnreadableImageError, failing(422))

    async def unread(request: Request, error: Exception) -> Response:
        # what the database itself failed at is not the asker's fault
        return await fail(request, 400 if error.__cause__ is None else 503, error)

    app.add_exception_handler(AgentError, failing(503))
    app.add_exception_handler(StoreError, unread)
    app.add_exception_handler(LabrefError, failing(400))


def _media_type(data: bytes) -> str:
    for start, kind in ((b"\xff\xd8", "jpeg"), (b"\x89PNG", "png"), (b"BM", "bmp"), (b"II", "tiff"), (b"MM", "tiff")):
        if data.startswith(start):
            return f"image/{kind}"
    return "application/octet-stream"
