"""Every text of the pages is there in every language, says the same, and reaches pages and scripts."""

from __future__ import annotations

import json

import pytest
from babel.messages.catalog import Catalog

from labref.web.pages import _environment, _script_texts
from labref.web.texts import LANGUAGES, texts_in
from tests import texts

OTHERS = LANGUAGES[1:]


@pytest.mark.parametrize("language", OTHERS)
def test_every_text_is_translated_and_no_other_is_there(language: str) -> None:
    assert "\n".join(texts.faults(language)) == ""


def test_texts_are_found_wherever_they_stand() -> None:
    found = texts.used()
    for text in (
        "Sign out",  # {% trans %}
        "the lab",  # gettext in a template
        "Your role does not allow this.",  # gettext in a page
        "Undone.",  # text() in a script
        "approved by %(who)s",
        "Condition",  # the navigation
    ):
        assert found.get(text) is not None, text
    assert found["%(number)s slide"].pluralizable


def test_a_catalogue_that_lacks_or_spoils_a_text_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    page, has = Catalog(), Catalog(locale="sv")
    for text in ("kept", "by %(who)s", "at {place}", "empty", ("%(n)s cell", "%(n)s cells")):
        page.add(text, locations=[("a.html", 0)])
    page.add("lacking", locations=[("a.html", 0)])
    has.add("kept", "kvar", locations=[("a.html", 0)])
    has.add("by %(who)s", "av %(vem)s", locations=[("a.html", 0)])
    has.add("at {place}", "där", locations=[("b.html", 0)])
    has.add("empty", "", locations=[("a.html", 0)])
    has.add(("%(n)s cell", "%(n)s cells"), ("%(n)s cell", ""), locations=[("a.html", 0)])
    has.add("gone", "borta")
    monkeypatch.setattr(texts, "used", lambda: page)
    monkeypatch.setattr(texts, "translated", lambda language: has)
    said = "\n".join(texts.faults("sv"))
    assert "kvar" not in said and "'kept'" not in said
    for part in (
        "'av %(vem)s'",
        "'där'",
        "translation of 'empty'",
        "of ('%(n)s cell'",
        "lacks 'lacking'",
        "has 'gone'",
    ):
        assert part in said
    assert said.count("\n") == 6  # the place of one text is not right either


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_template_with_values_and_plurals_is_in_each_language(language: str) -> None:
    shown = _environment(language).from_string(
        "{% trans who='<b>' %}approved by {{ who }}{% endtrans %};"
        "{% for n in (1, 2) %}{% trans count=n, number=n %}{{ number }} slide{% pluralize %}{{ number }} slides{% endtrans %};{% endfor %}"
    )
    assert (
        shown.render()
        == {
            "en": "approved by &lt;b&gt;;1 slide;2 slides;",
            "sv": "godkänt av &lt;b&gt;;1 glas;2 glas;",
            "de": "freigegeben von &lt;b&gt;;1 Ausstrich;2 Ausstriche;",
        }[language]
    )


@pytest.mark.parametrize("language", OTHERS)
def test_pages_carry_the_texts_of_scripts_alone(language: str) -> None:
    carried = json.loads(_script_texts(texts_in(language)))
    wanted = {str(one.id) for one in texts.used() if any(name.endswith(".js") for name, _ in one.locations)}
    assert set(carried) == wanted
    assert all(carried.values())
