"""The pages that people look at in a browser.

A page is a function of a module of this package:

    @page("/slides")
    def slides(visit: Visit) -> Response:
        return visit.show("slides.html", slides=list(visit.ask("slide.list")))

It asks the operations of `labref.operations` and nothing else: never the store. Its template is in
`labref/web/templates`, what it looks like in `labref/web/static`; every text goes through the catalogue of
`labref.web.texts`. Buttons and keys call operations under /api/v1 from the browser (`labref.js`), so what a person may
do is decided in one place, by the role of the operation. Everything works without script but what only script can do.

Names of slides and files can identify a patient: they stand in pages, never in an address. A slide is addressed by
`slide_key` of `labref.operations.naming`.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import mimetypes
import pkgutil
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from functools import cache, lru_cache
from importlib import resources
from typing import Any, Final
from urllib.parse import parse_qs

from anyio import CapacityLimiter, to_thread
from babel import dates, numbers
from fastapi import FastAPI
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from labref import __version__
from labref.cpus import usable_cpus
from labref.errors import LabrefError
from labref.lab.pictures import Pictures
from labref.operations.classes import ABBREVIATIONS
from labref.operations.naming import NoSuchNameError
from labref.printing import printable
from labref.progress import Row
from labref.roles import Role
from labref.web.failures import for_person, without_commands
from labref.web.texts import LANGUAGES, Texts, texts_for, texts_in
from labref.web.visitors import Visitor, Visitors
from labref.words import name_key

__all__ = [
    "NAVIGATION",
    "NotThereError",
    "Visit",
    "add_pages",
    "file",
    "has_static",
    "page",
    "page_number",
    "rendered",
    "static_text",
    "whole_number",
]

Perform = Callable[[str, Mapping[str, Any] | BaseModel, bytes | None], Iterator[Row]]

NAVIGATION: Final[Sequence[tuple[str, str, str]]] = (
    ("/", "Live", "l"),
    ("/slides", "Slides", "s"),
    ("/map", "Map", "m"),
    ("/ask", "Ask", "a"),
    ("/review", "Review", "r"),
    ("/reading", "Reading", "b"),
    ("/condition", "Condition", "h"),
)
"""Where the head of every page leads: address, text, and the key that goes there after `g`."""


_MOST_DIGITS: Final = 18
_MOST_FIELDS: Final = 500  # of a form
_IMPORT: Final = re.compile(rb"""(^import [^;]*?["'])\./([\w./-]+\.js)(["'])""", re.MULTILINE)
"""What a script imports from beside it."""
_UNUSUAL: Final = re.compile(r"[^\n -~\u00a0-\u00ac\u00ae-\u024f]")
"""All but Latin letters and signs, which `printable` leaves as they are: it is slow, and pages are long."""


@dataclass(frozen=True)
class _Page:
    path: str
    function: Callable[..., Response]
    methods: tuple[str, ...]
    role: Role | None
    brief: bool


_PAGES: list[_Page] = []


def page(
    path: str, *, methods: Sequence[str] = ("GET",), role: Role | None = Role.VIEW, brief: bool = False
) -> Callable[[Callable[..., Response]], Callable[..., Response]]:
    """Register a function as a page. It is called in a worker thread with the `Visit`, and the parts of the path in
    braces by name. role : what a person has to be at least; None: anybody may see it.  brief : whether it takes tens of
    milliseconds, and never waits for anything; only a few of those are made at a time. Ten at once would all be ready
    together, after ten times as long."""

    def register(function: Callable[..., Response]) -> Callable[..., Response]:
        _PAGES.append(_Page(path, function, tuple(methods), role, brief))
        return function

    return register


class NotThereError(LabrefError):
    """An address names something that is not there."""


class Visit:
    """One request of a page: who asks, in which language, and the means to answer.

    body : the request's body.  image : cell id → the kept bytes.  pictures : of cells, as a browser shows them.
    navigation : where the head of the page leads.
    """

    def __init__(
        self,
        request: Request,
        body: bytes,
        perform: Perform,
        image: Callable[[str], bytes | None],
        visitors: Visitors,
        pictures: Pictures,
        navigation: Sequence[tuple[str, str, str]] = NAVIGATION,
    ) -> None:
        self.request = request
        self.body = body
        self.pictures = pictures
        self.image = image
        self.visitors = visitors
        self.navigation = navigation
        self.visitor: Visitor | None = request.scope["labref.visitor"]
        self.texts = texts_for(request)
        self._perform = perform

    @property
    def query(self) -> Mapping[str, str]:
        """Parameters in the address."""
        return self.request.query_params

    def form(self) -> dict[str, list[str]]:
        """What a form sent: the values of each field, in their order. Raises `LabrefError` where it is no form."""
        try:
            return parse_qs(self.body.decode("utf-8", "replace"), max_num_fields=_MOST_FIELDS)
        except ValueError:
            raise LabrefError(f"a form of this labref has at most {_MOST_FIELDS} fields; load the page again") from None

    def ask(self, name: str, /, *, data: bytes | None = None, **parameters: Any) -> Iterator[Row]:
        """Rows of an operation but those of its progress. Raises `LabrefError` as it does."""
        for row in self._perform(name, parameters, data):
            if set(row) != {"progress"}:
                yield row

    def one(self, name: str, /, *, data: bytes | None = None, **parameters: Any) -> Row:
        """The only row of an operation."""
        (row,) = self.ask(name, data=data, **parameters)
        return row

    def named(self, name: str, /, **parameters: Any) -> list[Row]:
        """Rows of an operation about what the address names. Raises `NotThereError` where nothing has this name."""
        try:
            return list(self.ask(name, **parameters))
        except NoSuchNameError as error:
            raise NotThereError(str(error)) from None

    def may(self, role: str) -> bool:
        """Whether whoever asks may do what this role may."""
        return self.visitor is not None and self.visitor.role.covers(Role(role))

    def words(self, said: str) -> str:
        """What an operation says, for whoever is at the page: only an admin has a command line to use commands at."""
        return said if self.may("admin") else without_commands(said)

    def problem(self, error: Exception | str) -> str:
        """What an error says, for whoever is at the page, and whom they can ask."""
        return for_person(str(error), self.visitor, self.texts)

    def show(self, template: str, /, *, status: int = 200, **values: Any) -> Response:
        """A page from a template."""
        content = rendered(
            template,
            self.texts.language,
            visit=self,
            path=self.request.url.path,
            languages=LANGUAGES,
            navigation=self.navigation,
            scripts=_script_texts(self.texts),
            abbreviations=_ABBREVIATIONS,
            **values,
        )
        return Response(content, status, media_type="text/html; charset=utf-8")

    def fail(self, status: int, problem: str) -> Response:
        """A page that says what is wrong, and where to go from there."""
        return self.show("problem.html", status=status, problem=problem, nothing_there=status == 404)

    def go(self, address: str) -> Response:
        """Send the browser to another page of this agent."""
        return RedirectResponse(address, 303)


def rendered(template: str, language: str, /, **values: Any) -> str:
    """A template of `labref/web/templates` in one of `labref.web.texts.LANGUAGES`, with these values."""
    made = (
        _environment(language)
        .get_template(template)
        .render(language=language, tag=texts_in(language).tag, version=__version__, **values)
    )
    return _shown(made)


def static_text(name: str) -> str:
    """A text file of `labref/web/static`."""
    return _static()[name].decode()


def whole_number(text: str | None, otherwise: int, *, most: int = 10**18) -> int:
    """The whole number, 0 to `most`, that stands in an address or a form; `otherwise` for what is none."""
    if not text or not text.isascii() or not text.isdecimal() or len(text) > _MOST_DIGITS:
        return otherwise
    return min(int(text), most)


def page_number(text: str | None) -> int:
    """The number of a page of a list, from 1, as it stands in an address or a form; 1 for what is none."""
    return max(1, whole_number(text, 1, most=1_000_000))


def add_pages(
    app: FastAPI,
    perform: Perform,
    image: Callable[[str], bytes | None],
    visitors: Visitors,
    pictures: Pictures,
) -> Callable[[Request, int, str], Response]:
    """Add every page, and what is in `labref/web/static`, to the application. Returns what makes the page of a failure:
    (request, status, what is wrong) → the page."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    few = CapacityLimiter(usable_cpus() + 1)
    for one in _PAGES:
        app.add_route(
            one.path,
            _endpoint(one, perform, image, visitors, pictures, few if one.brief else None),
            methods=list(one.methods),
            include_in_schema=False,
        )
    app.add_route("/static/{name:path}", file, include_in_schema=False)

    def failed(request: Request, status: int, problem: str) -> Response:
        visit = Visit(request, b"", perform, image, visitors, pictures)
        return visit.fail(
            status, visit.texts.gettext("Nothing is at this address.") if status == 404 else visit.problem(problem)
        )

    return failed


def _endpoint(
    of: _Page,
    perform: Perform,
    image: Callable[[str], bytes | None],
    visitors: Visitors,
    pictures: Pictures,
    limiter: CapacityLimiter | None,
) -> Callable[[Request], Any]:
    async def endpoint(request: Request) -> Response:
        body = await request.body() if request.method == "POST" else b""
        visit = Visit(request, body, perform, image, visitors, pictures)
        return await to_thread.run_sync(_answered, of, visit, limiter=limiter)

    return endpoint


def _answered(of: _Page, visit: Visit) -> Response:
    """A page, or what is wrong, as a page."""
    if of.role is not None and not visit.may(of.role):
        if visit.visitor is None:
            return visit.go("/sign-in")
        return visit.fail(403, visit.texts.gettext("Your role does not allow this."))
    try:
        return of.function(visit, **visit.request.path_params)
    except LabrefError as error:
        return visit.fail(404 if isinstance(error, NotThereError) else 400, visit.problem(error))


def _shown(content: str) -> str:
    """A page whose names cannot hide or turn round what stands beside them; see `labref.printing`. Each line of it
    stays a line."""
    parts, end = [], 0
    while found := _UNUSUAL.search(content, end):
        start = content.rfind("\n", end, found.start()) + 1 or end
        parts.append(content[end:start])
        end = content.find("\n", start)
        end = len(content) if end < 0 else end
        parts.append(printable(content[start:end]))
    return "".join([*parts, content[end:]])


async def file(request: Request) -> Response:
    """What pages load: a file of `labref/web/static`."""
    name: str = request.path_params["name"]
    data = _static().get(name)
    if data is None:
        raise HTTPException(404)
    kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
    if name.endswith((".js", ".mjs")):
        kind = "text/javascript"  # Windows' registry may say otherwise
    # its address names its content, so it can be kept for ever
    return Response(data, media_type=kind, headers={"Cache-Control": "public, max-age=31536000, immutable"})


@cache
def _static() -> dict[str, bytes]:
    """The files that pages load, by name: what a request names is looked up here, and never on the disk.

    What a script imports from beside it is named by the address of its content, as in a template: a browser would load
    a module twice that has two addresses, and would keep one without for ever.
    """
    found = _files()
    done: dict[str, bytes] = {}

    def addressed(name: str) -> bytes:
        if name not in done:
            done[name] = _IMPORT.sub(
                lambda imported: imported[1] + address(imported[2].decode()) + imported[3], found[name]
            )
        return done[name]

    def address(name: str) -> bytes:
        return _address(name, addressed(name)).encode()

    return {name: addressed(name) if name.endswith(".js") else data for name, data in found.items()}


def _files() -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    root = resources.files("labref.web").joinpath("static")
    folders = [("", root)]
    while folders:
        prefix, folder = folders.pop()
        for entry in folder.iterdir():
            if entry.is_dir():
                folders.append((f"{prefix}{entry.name}/", entry))
            else:
                found[f"{prefix}{entry.name}"] = entry.read_bytes()
    return found


def has_static(name: str) -> bool:
    """Whether pages can load a file of this name: other people's scripts may not be there (`build_backend.py`)."""
    return name in _static()


def _address_of(name: str) -> str:
    """The address of a file of `labref/web/static`; it changes with the file's content."""
    return _address(name, _static()[name])


def _address(name: str, data: bytes) -> str:
    return f"/static/{name}?{hashlib.sha256(data).hexdigest()[:12]}"


@cache
def _environment(language: str) -> Environment:
    texts = texts_in(language)
    made = Environment(
        loader=PackageLoader("labref.web"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.i18n"],
    )
    made.install_gettext_callables(texts.gettext, texts.ngettext, newstyle=True)  # type: ignore[attr-defined]

    # jinja2's own makes Markup of each text anew, and looks through it for what stands in for values, in texts without
    # any too: a tenth of the time of a slide's page
    @cache
    def marked(text: str) -> tuple[Markup, Markup]:
        found = Markup(texts.gettext(text))
        return found, Markup(found.replace("%%", "%"))

    def gettext(text: str, **values: Any) -> Markup:
        form, whole = marked(text)
        return form % values if values else whole

    made.globals.update(static=_address_of, has_static=has_static, gettext=gettext, _=gettext)

    # the same few numbers and moments stand hundreds of times in a page, and Babel takes as long for each as a page for
    # a line
    @lru_cache(maxsize=20_000)
    def number(value: float) -> str:
        value = value if round(value, 3) else 0  # what is written as 0 has no sign
        return str(numbers.format_decimal(value, locale=texts.locale))

    @lru_cache(maxsize=20_000)
    def rounded_share(value: Decimal, digits: int) -> str:
        # a no-break space, or "35 %" is torn apart at the end of a line
        form = "#,##0" + ("." + "0" * digits if digits else "") + "\u00a0%"
        return str(numbers.format_percent(value or Decimal(0), format=form, locale=texts.locale))

    def share(value: float, digits: int = 0) -> str:
        return rounded_share(Decimal(str(value)).quantize(Decimal(1).scaleb(-2 - digits)), digits)

    @lru_cache(maxsize=20_000)
    def moment(value: str | None) -> str | Markup:
        return _moment(value, texts, "short")

    @lru_cache(maxsize=20_000)
    def day(value: str | None) -> str | Markup:
        return _moment(value, texts, None)

    def full_name(label: str) -> str:
        return ABBREVIATIONS.get(name_key(label), "")

    made.filters.update(full_name=full_name, number=number, share=share, moment=moment, day=day)
    return made


def _moment(value: str | None, texts: Texts, time: Any) -> str | Markup:
    """A moment, as operations give it, in this computer's time and the language's way; its exact value on hover."""
    if value is None:
        return ""
    try:
        at = datetime.fromisoformat(value).astimezone()
    except (ValueError, OverflowError, OSError):
        return value
    shown = (
        dates.format_date(at, "medium", texts.locale)
        if time is None
        else f"{dates.format_date(at, 'medium', texts.locale)} {dates.format_time(at, time, locale=texts.locale)}"
    )
    return Markup('<time datetime="{}" title="{}">{}</time>').format(value, at.isoformat(sep=" "), shown)


_ABBREVIATIONS: Final = Markup(json.dumps(dict(ABBREVIATIONS)))
"""What the classes in short stand for, as JSON that stands in a page."""


@cache
def _script_texts(texts: Texts) -> Markup:
    """The texts that scripts show, as JSON that stands in a page."""
    return Markup(json.dumps(texts.of_scripts(), ensure_ascii=True).replace("<", "\\u003c"))
