"""The texts of the pages, taken from their code: `python -m tests.texts` writes new ones into labref/web/locale/*.po.

Texts that are not used any more are taken out; what was translated stays. It prints what lacks a translation.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Final

from babel.messages.catalog import Catalog, Message
from babel.messages.extract import extract
from babel.messages.pofile import read_po, write_po

from labref.web.pages import NAVIGATION
from labref.web.texts import LANGUAGES

__all__ = ["LOCALE", "faults", "translated", "used"]

WEB: Final = Path(__file__).parents[1] / "labref" / "web"
LOCALE: Final = WEB / "locale"

_WAYS: Final[tuple[tuple[str, str, tuple[str, ...], dict[str, str]], ...]] = (  # where texts stand, how babel finds them, and what they are given to
    ("templates/*.html", "jinja2.ext:babel_extract", ("gettext", "ngettext"), {"newstyle_gettext": "true", "trim_blocks": "true", "lstrip_blocks": "true", "silent": "false"}),
    ("**/*.py", "python", ("gettext", "ngettext"), {}),
    ("static/**/*.js", "javascript", ("text",), {"parse_template_string": "true"}),
)  # fmt: skip
_HEADER: Final = r"""# Texts of labref's pages.
msgid ""
msgstr ""
"Language: {language}\n"
"MIME-Version: 1.0\n"
"Content-Type: text/plain; charset=UTF-8\n"
"Content-Transfer-Encoding: 8bit\n"
"Plural-Forms: nplurals=2; plural=(n != 1);\n"

"""
_ARGUMENTS: Final = {"gettext": None, "ngettext": (1, 2), "text": None}
_PLACE: Final = re.compile(r"%\((\w+)\)[a-z]|\{(\w+)\}")


def used() -> Catalog:
    """Every text that templates, pages and scripts show, with the files it stands in."""
    found = Catalog(fuzzy=False)
    for pattern, method, keywords, options in _WAYS:
        for path in sorted(WEB.glob(pattern)):
            if path.name.startswith("openseadragon"):
                continue  # other people's, put there by the build
            with path.open("rb") as file:
                for _, text, _, _ in extract(
                    method, file, {name: _ARGUMENTS[name] for name in keywords}, (), {**options, "encoding": "utf-8"}
                ):
                    found.add(text, locations=[(path.relative_to(WEB).as_posix(), 0)])
    for _, text, _ in NAVIGATION:
        found.add(text, locations=[("pages/__init__.py", 0)])
    for message in found:
        message.locations = sorted(set(message.locations))
    return found


@cache
def translated(language: str) -> Catalog:
    """What a language's catalogue has."""
    return read_po(BytesIO((LOCALE / f"{language}.po").read_bytes()), locale=language)


def faults(language: str) -> Iterator[str]:
    """What is wrong with a language's catalogue, a line each."""
    texts, has = used(), translated(language)
    for message in texts:
        if message.id:
            there = has.get(message.id)
            if there is None:
                yield f"lacks {message.id!r}: python -m tests.texts adds it"
            else:
                yield from _wrong(message, there)
                if sorted(name for name, _ in there.locations) != [name for name, _ in message.locations]:
                    yield f"does not know where {message.id!r} stands: python -m tests.texts writes it"
    for message in has:
        if message.id and texts.get(message.id) is None:
            yield f"has {message.id!r}, which no page shows: python -m tests.texts takes it out"


def _wrong(text: Message, there: Message) -> Iterator[str]:
    english = text.id if isinstance(text.id, tuple) else (text.id,)
    if isinstance(there.id, tuple) != isinstance(text.id, tuple):
        yield f"{text.id!r} has a plural at one place only"
        return
    forms = there.string if isinstance(there.string, tuple) else (there.string,)
    if len(forms) < len(english) or not all(forms):
        yield f"has no translation of {text.id!r}"
        return
    for form in forms:
        # the one of a plural may leave out the number, as in English
        wanted = [_places(one) for one in english]
        if _places(form) not in wanted:
            yield f"{text.id!r} is {form!r}, with other names in braces"
        if form.strip() != form and english[0].strip() == english[0]:
            yield f"{text.id!r} is {form!r}, with space around it"


def _places(text: str) -> set[str]:
    return {match[0] for match in _PLACE.finditer(text)}


def main() -> int:
    """Bring the catalogues up to what the code shows."""
    lacking = 0
    for language in LANGUAGES[1:]:
        new, old = used(), translated(language)
        made = Catalog(locale=language, fuzzy=False)
        for message in new:
            if message.id:
                there = old.get(message.id)
                string = there.string if there is not None and isinstance(there.id, type(message.id)) else None
                made.add(message.id, string or "", locations=message.locations)
                if not string or not all(string):
                    lacking += 1
                    print(f"{language}: {message.id!r}")
        with (LOCALE / f"{language}.po").open("wb") as file:
            file.write(_HEADER.format(language=language).encode())
            write_po(file, made, width=0, include_lineno=False, omit_header=True, sort_by_file=True)
    return min(lacking, 1)


if __name__ == "__main__":
    sys.exit(main())
