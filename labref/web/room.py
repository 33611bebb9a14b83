"""A reading room's pages over a shared store: `labref web --shared`, without a lab of its own.

They show which labs there are, their cells by optics and class, and the references of all labs for a picture that
somebody chooses. Nothing is written: not there, as the role only reads, and not here, as a picture that is asked about
is not stored. Guard, sign-in and languages are those of the agent's pages.
"""

from __future__ import annotations

import contextlib
import hmac
import math
import secrets
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

from anyio import to_thread
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from labref.errors import LabrefError, SharedError, UnreadableImageError
from labref.lab import Lab
from labref.lab.log import open_log
from labref.lab.pictures import Pictures
from labref.operations.classes import style_of
from labref.progress import Row
from labref.roles import Role
from labref.shared.address import Address
from labref.shared.asking import Asking
from labref.shared.browsing import Group, cells, groups
from labref.shared.indexing import partitions
from labref.web.desk import Desk
from labref.web.guard import Elsewhere, Guard
from labref.web.pages import NotThereError, Visit, file, page_number
from labref.web.pages import cell as cell_page
from labref.web.pages import entrance as entrance_pages
from labref.web.pages import pictures as picture_pages
from labref.web.server import Server
from labref.web.serving import serving
from labref.web.visitors import IDLE, LASTS, Entrance, Visitor, Visitors

__all__ = ["OpenRoom", "open_room"]

_NAVIGATION: Final = (("/", "Labs", "l"), ("/cells", "Cells", "c"), ("/ask", "Ask", "a"))
_A_PAGE: Final = 60
_FRESH_SECONDS: Final = 60.0
_WAIT_SECONDS: Final = 30.0
_IMAGE_BYTES: Final = 50_000_000
_PICTURES_A_MINUTE: Final = 60
_LETTERS: Final = "ABCDEFGHJKMNPQRSTUVWXYZ23456789"
_CODE_LENGTH: Final = 16


@dataclass(frozen=True)
class OpenRoom:
    """Pages that are served. link : signs in whoever opens it first.  server, labs, cells : whose they are, as they
    were at the start.  log : where what goes wrong is written, until they end."""

    link: str
    server: str
    labs: int
    cells: int
    log: Path


class _Room:
    """What the pages show."""

    def __init__(self, asking: Asking, desk: Desk, server: str, labels: Sequence[str]) -> None:
        """labels : classes of the bundle."""
        self.server = server
        self.labels = labels
        self.asking = asking
        self._desk = desk
        self._asks = threading.Lock()
        self._groups: tuple[float, list[Group]] | None = None

    def groups(self) -> list[Group]:
        """The labs' cells by optics and class; what was counted serves for a minute."""
        known = self._groups
        if known is None or time.monotonic() - known[0] > _FRESH_SECONDS:
            known = self._groups = (time.monotonic(), self.asking.read(groups))
        return known[1]

    def ask(self, data: bytes) -> Row:
        """The references of all labs for a picture, a `labref.operations.query.QueryAnswer`."""
        with self._asks:
            (row,) = (row for row in self._desk.run("query", data=data, shared="all") if set(row) != {"progress"})
        return row


class _Door:
    """Lets in whoever shows the code, once. Methods may be called from any thread."""

    def __init__(self) -> None:
        code = "".join(secrets.choice(_LETTERS) for _ in range(_CODE_LENGTH))
        self.code = "-".join(code[start : start + 4] for start in range(0, _CODE_LENGTH, 4))
        self._spent = False
        self._sessions: dict[str, tuple[float, float]] = {}  # since when, and when it was used last, monotonic
        self._lock = threading.Lock()

    def entrance(self) -> Entrance:
        """As the visitors' book takes it."""
        return Entrance(self._sign_in, self._signed_in, self._stays, self._out)

    def _sign_in(self, code: str, session: str) -> Visitor | None:
        with self._lock:
            if self._spent or not hmac.compare_digest(code.encode(), self.code.encode()):
                return None
            self._spent = True
            self._sessions[session] = (time.monotonic(),) * 2
        return Visitor("reading room", Role.VIEW)

    def _signed_in(self, session: str) -> Visitor | None:
        with self._lock:
            if not self._stays(session):
                return None
            self._sessions[session] = self._sessions[session][0], time.monotonic()
        return Visitor("reading room", Role.VIEW)

    def _stays(self, session: str) -> bool:
        since, used = self._sessions.get(session, (-math.inf, -math.inf))
        now = time.monotonic()
        return now - since < LASTS.total_seconds() and now - used < IDLE.total_seconds()

    def _out(self, session: str) -> None:
        with self._lock:
            self._sessions.pop(session, None)


def _labs(visit: Visit, room: _Room) -> Response:
    found = room.groups()
    rows = []
    for name in dict.fromkeys(one.lab for one in found):
        own = [one for one in found if one.lab == name]
        rows.append(
            {
                "lab": name,
                "cells": sum(one.cells for one in own),
                "optics": sorted({one.optics for one in own if one.optics is not None}),
                "labels": _counted(own),
            }
        )
    return visit.show("room-labs.html", server=room.server, rows=rows, styles=_styles(found), link=_link)


def _cells(visit: Visit, room: _Room) -> Response:
    found = room.groups()
    names = ("lab", "optics", "label")
    chosen = {name: visit.query.get(name, "") for name in names}
    known = {name: sorted({value for one in found if (value := getattr(one, name)) is not None}) for name in names}
    if any(value and value not in known[name] for name, value in chosen.items()):
        raise NotThereError(visit.texts.gettext("No cell in the shared store is of this lab, optics and class."))
    meant = [one for one in found if all(chosen[name] in ("", getattr(one, name)) for name in names)]
    pages = max(1, -(-sum(one.cells for one in meant) // _A_PAGE))
    number = min(page_number(visit.query.get("page")), pages)
    lab, optics, label = chosen.values()
    rows = room.asking.read(
        partial(cells, lab=lab, optics=optics, label=label, limit=_A_PAGE, offset=(number - 1) * _A_PAGE)
    )
    return visit.show(
        "room-cells.html",
        rows=rows,
        chosen=chosen,
        known=known,
        found=sum(one.cells for one in meant),
        number=number,
        pages=pages,
        styles=_styles(found),
        link=_link,
        picture=_picture,
    )


def _choose(visit: Visit, room: _Room) -> Response:
    return visit.show("ask.html", problem=None)


def _answer(visit: Visit, room: _Room) -> Response:
    try:
        data = cell_page.upload(visit.request.headers.get("content-type", ""), visit.body)
        if not data:
            raise UnreadableImageError(visit.texts.gettext("No picture was chosen."))
        asked = room.ask(data)
        shown = cell_page.inline(visit.pictures.of_bytes(data, "cell"))
    except LabrefError as error:
        return visit.show("ask.html", status=422, problem=visit.problem(error))
    labels = {asked["predicted"]["label"], *(one["label"] for one in asked["references"])}
    styles = {label: style_of(label) for label in labels}
    return visit.show(
        "room-answer.html", asked=asked, shown=shown, styles=styles, picture=_picture, three=cell_page.three
    )


def _colours(visit: Visit, room: _Room) -> Response:
    labels = {one.label for one in room.groups()} | set(room.labels)
    return Response(picture_pages.class_colours(sorted(labels)), media_type="text/css")


def _without_room(page: Callable[[Visit], Response]) -> Callable[[Visit, _Room], Response]:
    return lambda visit, _: page(visit)


_PAGES: Final[Sequence[tuple[str, str, Callable[[Visit, _Room], Response]]]] = (
    ("/", "GET", _labs),
    ("/cells", "GET", _cells),
    ("/ask", "GET", _choose),
    ("/ask", "POST", _answer),
    ("/classes.css", "GET", _colours),
    ("/shared/picture", "GET", _without_room(picture_pages.of_others)),
    ("/sign-in", "GET", _without_room(entrance_pages.sign_in)),
    ("/sign-in", "POST", _without_room(entrance_pages.signed_in)),
    ("/sign-out", "POST", _without_room(entrance_pages.sign_out)),
    ("/language", "POST", _without_room(entrance_pages.language)),
)


def _application(room: _Room, pictures: Pictures, door: _Door, log: Any) -> ASGIApp:
    visitors = Visitors(door.entrance(), secrets.token_urlsafe(32))

    def visit_of(request: Request, body: bytes) -> Visit:
        return Visit(request, body, _no_operation, lambda _: None, visitors, pictures, _NAVIGATION)

    def endpoint(page: Callable[[Visit, _Room], Response]) -> Callable[[Request], Any]:
        def answered(visit: Visit) -> Response:
            try:
                return page(visit, room)
            except LabrefError as error:
                status = 404 if isinstance(error, NotThereError) else 503 if isinstance(error, SharedError) else 400
                return visit.fail(status, visit.problem(error))

        async def answer(request: Request) -> Response:
            body = await request.body() if request.method == "POST" else b""
            return await to_thread.run_sync(answered, visit_of(request, body))

        return answer

    async def failed(request: Request, error: Exception) -> Response:
        status: int = getattr(error, "status_code", 500)
        visit = visit_of(request, b"")
        nothing = visit.texts.gettext("Nothing is at this address.")
        problem = nothing if status == 404 else str(getattr(error, "detail", error))
        return await to_thread.run_sync(visit.fail, status, problem)

    routes = [Route(path, endpoint(page), methods=[method]) for path, method, page in _PAGES]
    routes.append(Route("/static/{name:path}", file))
    return Guard(
        Starlette(routes=routes, exception_handlers={404: failed, 405: failed, 413: failed}),
        visitors,
        elsewhere=Elsewhere(),
        roles={},
        of_images={"/ask"},
        image_bytes=_IMAGE_BYTES,
        pictures_a_minute=_PICTURES_A_MINUTE,
        log=log,
    )


@contextlib.contextmanager
def open_room(
    address: Address,
    password: str | None,
    *,
    bundle: Path | None = None,
    keys: Sequence[Path] = (),
    unsigned: bool = False,
    port: int = 0,
) -> Iterator[OpenRoom]:
    """Serve the pages on 127.0.0.1 until the context ends.

    bundle, keys, unsigned : as `Lab.create` has them; a picture is compared in the space of this bundle.  port : 0 for
    any free one. Raises `SharedError` where the shared store cannot be asked, the role is not a reader's, or it has no
    cell in the bundle's space; `BundleError` where the bundle cannot be used.
    """
    with contextlib.ExitStack() as opened:
        asking = opened.enter_context(closing(Asking(address, lambda: password, _WAIT_SECONDS)))
        mine, spaces = asking.read(lambda connection: (connection.execute(_MINE).fetchone(), partitions(connection)))
        name, writes = mine or (None, False)
        if name is not None or writes:
            whose = "may write there" if name is None else f"is the role of the lab {name}, which may write"
            raise SharedError(
                f"{address.user} {whose}. A room that only reads has a role of its own: `labref shared lab add NAME --reader`."
            )
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="labref-room-")))
        nothing = folder / "nothing"
        nothing.mkdir()
        # networks, limits of pictures and the processes that decode them are a lab's; this one has no cell, ever
        lab = Lab.create(folder / "room", [nothing], bundle, keys=keys, unsigned=unsigned)
        store = lab.open_store()
        desk = opened.enter_context(Desk(lab, None, store, asking=asking))
        used = lab.bundle(store)
        if used.digest not in {one.bundle for one in spaces if one.cells}:
            there = ", ".join(f"{one.name} ({one.bundle[:12]})" for one in spaces if one.cells) or "none"
            raise SharedError(
                f"the shared store {address} has no cell in the space of the bundle {used.manifest.name} ({used.short}); its "
                f"cells are of: {there}. --bundle FILE gives another bundle."
            )
        room, door = _Room(asking, desk, str(address), used.manifest.labels), _Door()
        pictures = Pictures(lab, lambda _: False, asking.thumbnail)
        log = opened.enter_context(open_log(lab))
        app = _application(room, pictures, door, log)
        server = opened.enter_context(Server(lambda: partial(serving, app), port))
        counted = room.groups()
        yield OpenRoom(
            f"http://127.0.0.1:{server.port}/sign-in#{door.code}",
            str(address),
            len({one.lab for one in counted}),
            sum(one.cells for one in counted),
            lab.log_file,
        )


_MINE: Final = "SELECT (SELECT name FROM lab WHERE role = current_user), has_table_privilege(current_user, 'labref.cell', 'INSERT')"


def _no_operation(name: str, asked: object, data: bytes | None) -> Iterator[Row]:
    raise LabrefError(f"a reading room has no lab to ask for {name}")


def _counted(of: Sequence[Group]) -> list[tuple[str, int]]:
    """Classes with their cells, the most first."""
    by_label: dict[str, int] = {}
    for one in of:
        by_label[one.label] = by_label.get(one.label, 0) + one.cells
    return sorted(by_label.items(), key=lambda item: (-item[1], item[0]))


def _styles(of: Sequence[Group]) -> dict[str, str]:
    return {one.label: style_of(one.label) for one in of}


def _link(**chosen: str | int) -> str:
    """The address of a list of cells."""
    return "/cells?" + urlencode({name: value for name, value in chosen.items() if value})


def _picture(lab: str, cell_id: str) -> str:
    return "/shared/picture?" + urlencode({"lab": lab, "cell": cell_id})
