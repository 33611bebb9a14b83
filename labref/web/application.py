"""The agent's HTTP side, on 127.0.0.1 only.

    GET  /health                        no token; {status, version, proof?}: whether it runs, and (with ?nonce=) whose it is
    GET  /metrics                       no token; Prometheus' text; counts only
    POST /api/query?k=8&by=latent&name= the body is an image file; the answer of `labref query --json`. &analyser= names the one
                                        it came from; &any_optics=1 takes references from all
    GET  /api/status                    as `labref status --json`
    GET  /api/ledger?outcome=&path=&limit=   JSON lines, as `labref ledger --json`
    GET  /api/reference/{cell_id}/image the kept original bytes
    POST /api/do/{operation}            the body is a JSON object of parameters; JSON lines, the rows of labref.operations;
                                        a failure after the first row is a last line {"error": ...}

All under /api needs `Authorization: Bearer <content of LAB/token>`. A failure is {"error": {"kind", "message"}}.
"""

from __future__ import annotations

import hmac
import itertools
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Self

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from labref import __version__
from labref.errors import AgentError, LabrefError, UnreadableImageError
from labref.lab.log import Log
from labref.web.client import proof
from labref.web.metrics import Metrics

__all__ = ["Answers", "Server", "make_app"]

_HOSTS: Final = frozenset({"127.0.0.1", "localhost"})
_START_SECONDS: Final = 20.0
_STOP_SECONDS: Final = 5


@dataclass(frozen=True)
class Answers:
    """What the agent answers with.

    query : (bytes, name, k, by, analyser, any_optics) → answer.  status : () → values.  ledger : (outcome, path, limit) → rows.
    image : cell id → original bytes, or None.  perform : (operation, parameters) → rows.  healthy : "ok", or what is the matter, without anything secret.
    """

    query: Callable[[bytes, str, int, str, str | None, bool], dict[str, Any]]
    status: Callable[[], dict[str, Any]]
    ledger: Callable[[str | None, str | None, int | None], Iterator[dict[str, Any]]]
    image: Callable[[str], bytes | None]
    perform: Callable[[str, dict[str, Any]], Iterator[dict[str, Any]]]
    healthy: Callable[[], str]


def make_app(answers: Answers, metrics: Metrics, *, token: str, max_bytes: int, log: Log) -> ASGIApp:
    """The application. max_bytes : largest image taken."""

    async def health(request: Request) -> Response:
        state = answers.healthy()
        values = {"status": state, "version": __version__}
        nonce = request.query_params.get("nonce")
        if nonce is not None and len(nonce) <= 64:
            values["proof"] = proof(token, nonce)
        return JSONResponse(values)

    async def metrics_text(request: Request) -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    async def query(request: Request) -> Response:
        try:
            k = int(request.query_params.get("k", "8"))
        except ValueError:
            raise LabrefError("k is no whole number; give ?k=8") from None
        data = await _body(request, max_bytes)
        name, by = request.query_params.get("name", ""), request.query_params.get("by", "latent")
        analyser = request.query_params.get("analyser") or None
        any_optics = request.query_params.get("any_optics", "0") not in ("0", "", "false")
        started = time.perf_counter()
        result = "failed"
        try:
            found = await run_in_threadpool(answers.query, data, name, k, by, analyser, any_optics)
            result = "answered"
        finally:
            metrics.queries.labels(result=result).observe(time.perf_counter() - started)
        return JSONResponse(found)

    async def status(request: Request) -> Response:
        return JSONResponse(await run_in_threadpool(answers.status))

    async def ledger(request: Request) -> Response:
        wanted = request.query_params
        try:
            limit = int(wanted["limit"]) if "limit" in wanted else None
        except ValueError:
            raise LabrefError("limit is no whole number; give ?limit=100") from None
        rows = answers.ledger(wanted.get("outcome"), wanted.get("path"), limit)
        return StreamingResponse(_lines(rows), media_type="application/x-ndjson")

    async def image(request: Request) -> Response:
        data = await run_in_threadpool(answers.image, request.path_params["cell_id"])
        if data is None:
            return _failure(404, LabrefError("no image is kept for this cell"))
        return Response(data, media_type=_media_type(data), headers={"X-Content-Type-Options": "nosniff"})

    async def perform(request: Request) -> Response:
        try:
            parameters = json.loads(await _body(request, max_bytes))
            if not isinstance(parameters, dict):
                raise ValueError
        except ValueError:
            raise LabrefError("the body is no JSON object; send the operation's parameters as one") from None
        rows = answers.perform(request.path_params["operation"], parameters)
        first = await run_in_threadpool(next, rows, None)  # fails here, with its own status, or not at all
        if first is None:
            return Response(b"", media_type="application/x-ndjson")
        return StreamingResponse(_flushed(itertools.chain([first], rows)), media_type="application/x-ndjson")

    app = Starlette(
        routes=[
            Route("/health", health),
            Route("/metrics", metrics_text),
            Route("/api/query", query, methods=["POST"]),
            Route("/api/status", status),
            Route("/api/ledger", ledger),
            Route("/api/reference/{cell_id}/image", image),
            Route("/api/do/{operation}", perform, methods=["POST"]),
        ],
        exception_handlers={
            UnreadableImageError: lambda _, error: _failure(422, error),
            _BodyTooLargeError: lambda _, error: _failure(413, error),
            AgentError: lambda _, error: _failure(503, error),
            LabrefError: lambda _, error: _failure(400, error),
        },
    )
    return _Guard(app, token, log)


class _BodyTooLargeError(UnreadableImageError):
    pass


async def _body(request: Request, max_bytes: int) -> bytes:
    parts, total = [], 0
    async for part in request.stream():
        parts.append(part)
        total += len(part)
        if total > max_bytes:
            raise _BodyTooLargeError(f"too large: at most {max_bytes / 1e6:.0f} MB are read")
    return b"".join(parts)


def _lines(rows: Iterator[dict[str, Any]]) -> Iterator[bytes]:
    block: list[str] = []
    for row in rows:
        block.append(json.dumps(row, ensure_ascii=True))
        if len(block) >= 500:
            yield ("\n".join(block) + "\n").encode()
            block.clear()
    if block:
        yield ("\n".join(block) + "\n").encode()


def _flushed(rows: Iterator[dict[str, Any]]) -> Iterator[bytes]:
    """A line for every row at once; the error that ends them, where one does, as the last."""
    try:
        for row in rows:
            yield (json.dumps(row, ensure_ascii=True) + "\n").encode()
    except LabrefError as error:
        yield (json.dumps({"error": _told(error)}) + "\n").encode()


def _media_type(data: bytes) -> str:
    for start, kind in ((b"\xff\xd8", "jpeg"), (b"\x89PNG", "png"), (b"BM", "bmp"), (b"II", "tiff"), (b"MM", "tiff")):
        if data.startswith(start):
            return f"image/{kind}"
    return "application/octet-stream"


def _failure(code: int, error: Exception) -> JSONResponse:
    return JSONResponse({"error": _told(error)}, status_code=code)


def _told(error: Exception) -> dict[str, str]:
    kind = next(base.__name__ for base in type(error).__mro__ if not base.__name__.startswith("_"))
    return {"kind": kind, "message": str(error)}


class _Guard:
    """Lets in only requests that name this computer as their host (a web page elsewhere cannot, by rebinding its name in the
    DNS), and under /api only those with the lab's token."""

    def __init__(self, app: ASGIApp, token: str, log: Log) -> None:
        self._app = app
        self._log = log
        self._expected = f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1").rsplit(":", 1)[0].lower()
        refusal = None
        if host not in _HOSTS:
            refusal = _failure(421, AgentError("labref answers only to requests for 127.0.0.1 or localhost"))
        elif scope["path"] not in ("/health", "/metrics") and not hmac.compare_digest(
            headers.get(b"authorization", b""), self._expected
        ):
            refusal = _failure(
                401, AgentError("this needs the lab's token: Authorization: Bearer <content of LAB/token>")
            )
        started = False

        async def watch_start(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await (refusal or self._app)(scope, receive, watch_start)
        except Exception as error:
            # its message could name a file, and would be printed with a page of trace
            self._log.error("a request failed", path=scope["path"].split("/")[1:3], error=type(error).__name__)
            if not started:
                failed = AgentError(f"the agent failed to answer ({type(error).__name__}); see its log")
                await _failure(500, failed)(scope, receive, send)


class Server:
    """Serves an application on 127.0.0.1 from a thread of its own."""

    def __init__(self, app: ASGIApp, port: int) -> None:
        self._app = app
        self._wanted = port
        self.port = 0

    def __enter__(self) -> Self:
        listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            if hasattr(socket, "SO_EXCLUSIVEADDRUSE"):  # Windows: or another program could listen on the same port
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
            else:
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(("127.0.0.1", self._wanted))
            listening.listen(64)
        except OSError as error:
            listening.close()
            raise AgentError(
                f"port {self._wanted} of this computer cannot be used ({error.strerror}). Choose another in labref.toml, [agent] "
                "port, or 0 for any free one."
            ) from None
        self.port = listening.getsockname()[1]
        self._socket = listening
        config = uvicorn.Config(
            self._app,
            log_config=None,
            access_log=False,
            lifespan="off",
            loop="asyncio",
            http="h11",
            ws="none",
            server_header=False,
            timeout_graceful_shutdown=_STOP_SECONDS,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [listening]}, name="labref-http", daemon=True
        )
        self._thread.start()
        deadline = time.monotonic() + _START_SECONDS
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > deadline:
                raise AgentError("the agent's HTTP side did not start; see its log")
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(timeout=2 * _STOP_SECONDS)
        self._socket.close()
