"""Signing in and out, and the choice of language."""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit

from starlette.responses import Response

from labref.web.pages import Visit, page
from labref.web.texts import LANGUAGES
from labref.web.visitors import COOKIE, LASTS

_LANGUAGE_SECONDS: Final = 365 * 86_400


@page("/sign-in", role=None)
def sign_in(visit: Visit) -> Response:
    return visit.show("sign-in.html", next=_own(visit.query.get("next", "/")), problem=None)


@page("/sign-in", methods=("POST",), role=None)
def signed_in(visit: Visit) -> Response:
    form = visit.form()
    code, address = form.get("code", [""])[0], _own(form.get("next", ["/"])[0])
    client = visit.request.client
    here = client.host if client is not None else ""
    waiting = visit.visitors.wait_seconds(here)
    if waiting > 0:
        problem = visit.texts.gettext("Too many attempts. Wait a few minutes, then try again.")
        refused = visit.show("sign-in.html", status=429, next=address, problem=problem)
        refused.headers["Retry-After"] = str(int(waiting) + 1)
        return refused
    entered = visit.visitors.sign_in(code, here)
    if entered is None:
        problem = visit.texts.gettext("This code lets nobody in. Ask whoever looks after labref for a new one.")
        return visit.show("sign-in.html", status=401, next=address, problem=problem)
    response = visit.go(address)
    response.set_cookie(
        COOKIE,
        entered[1],
        max_age=int(LASTS.total_seconds()),
        httponly=True,
        samesite="strict",
        secure=visit.request.url.scheme == "https",
    )
    return response


@page("/sign-out", methods=("POST",))
def sign_out(visit: Visit) -> Response:
    visit.visitors.sign_out(dict(visit.request.scope["headers"]))
    response = visit.go("/sign-in")
    response.delete_cookie(COOKIE)
    return response


@page("/language", methods=("POST",))
def language(visit: Visit) -> Response:
    form = visit.form()
    response = visit.go(_own(form.get("next", ["/"])[0]))
    chosen = form.get("language", [""])[0]
    if chosen in LANGUAGES:
        response.set_cookie("labref-language", chosen, max_age=_LANGUAGE_SECONDS, samesite="strict", httponly=True)
    return response


def _own(address: str) -> str:
    """An address of this agent; anything else, such as another site's, is the first page."""
    parts = urlsplit(address)
    plain = address.startswith("/") and not address.startswith(("//", "/\\")) and address.isprintable()
    return address if plain and not parts.scheme and not parts.netloc and "\\" not in address else "/"
