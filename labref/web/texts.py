"""The words of the pages, in the language of whoever looks.

English is in the code and the templates. `labref/web/locale/<language>.po` has what it is in other languages (gettext's
format, edited with any tool for it, such as Poedit). `python -m tests.texts` adds the texts that are new in the code;
`tests/test_texts.py` fails while one is not translated. Such a text is shown in English.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cache
from importlib import resources
from io import BytesIO
from typing import Final

from babel.core import Locale, negotiate_locale
from babel.messages.pofile import read_po
from starlette.requests import Request

__all__ = ["LANGUAGES", "Texts", "language_for", "texts_for", "texts_in"]

LANGUAGES: Final = ("en", "sv", "de")
"""Languages of the pages; the first is that of the code."""
_PLACES: Final[Mapping[str, str]] = {"en": "en_GB"}
"""Whose way of writing is meant where a language has several: 28 Nov 2026 and 14:05 can be read in one way only."""


class Texts:
    """The texts of one language. locale : how that language writes numbers and dates.  tag : the same for a browser, as
    BCP 47 has it."""

    def __init__(
        self, language: str, texts: Mapping[str, str | tuple[str, ...]], of_scripts: Collection[str] = ()
    ) -> None:
        """texts : by the English text; a text with a plural has its forms.  of_scripts : those that scripts show."""
        self.language = language
        self.locale = Locale.parse(_PLACES.get(language, language))
        self.tag = str(self.locale).replace("_", "-")
        self._texts = texts
        self._of_scripts = of_scripts

    def gettext(self, text: str) -> str:
        """A text in this language."""
        found = self._texts.get(text)
        return found if isinstance(found, str) and found else text

    def ngettext(self, one: str, several: str, number: int) -> str:
        """A text about a number of things."""
        found = self._texts.get(one)
        if isinstance(found, tuple) and all(found):
            return found[0 if number == 1 else -1]  # so far all languages here have two forms
        return one if number == 1 else several

    def of_scripts(self) -> dict[str, str]:
        """The texts that scripts show, by the English ones."""
        return {english: self.gettext(english) for english in self._of_scripts}


@cache
def texts_in(language: str) -> Texts:
    """The texts of one of `LANGUAGES`."""
    if language == LANGUAGES[0]:
        return Texts(language, {})
    data = resources.files("labref.web").joinpath("locale", f"{language}.po").read_bytes()
    found: dict[str, str | tuple[str, ...]] = {}
    of_scripts = []
    for message in read_po(BytesIO(data)):
        if isinstance(message.id, tuple):
            found[message.id[0]] = tuple(message.string)
        elif message.id:
            found[message.id] = str(message.string)
            if any(name.endswith(".js") for name, _ in message.locations):
                of_scripts.append(message.id)
    return Texts(language, found, of_scripts)


def texts_for(request: Request) -> Texts:
    """The texts in the language of whoever asks."""
    return texts_in(language_for(request.cookies.get("labref-language"), request.headers.get("accept-language", "")))


def language_for(chosen: str | None, accepted: str) -> str:
    """The language to show. chosen : what the person chose, if anything.  accepted : the header Accept-Language."""
    if chosen in LANGUAGES:
        return str(chosen)
    wanted = [part.partition(";")[0].strip() for part in accepted[:500].split(",")]
    return negotiate_locale([name for name in wanted if name], LANGUAGES, sep="-") or LANGUAGES[0]
