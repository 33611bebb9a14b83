"""The pages: who may look at them, and that nobody else does."""

from __future__ import annotations

import html
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from labref.bundles.bundle import Bundle
from labref.cli import app
from labref.config import WebConfig
from labref.lab import Lab
from labref.operations.user import _links
from labref.web.desk import run
from tests.labs import make_lab, once, running_agent, wait_until
from tests.pages import Browser, let_in


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, drawn_cells: Path, starter: Bundle) -> Iterator[Lab]:
    export = tmp_path_factory.mktemp("export") / "export"
    shutil.copytree(drawn_cells, export)  # other tests read the drawn cells too
    lab = make_lab(tmp_path_factory.mktemp("lab") / "lab", export, starter)
    once(lab)
    with running_agent(lab):
        yield lab


@pytest.fixture(scope="module")
def reviewer(lab: Lab) -> Browser:
    return let_in(lab, "Åsa Lind", "review")


def test_a_stranger_is_sent_to_sign_in_and_a_wrong_code_lets_nobody_in(lab: Lab) -> None:
    stranger = Browser.of(lab)
    sent = stranger.get("/slides?x=1")
    assert (sent.status, sent.headers["location"]) == (303, "/sign-in?next=%2Fslides%3Fx%3D1")
    assert stranger.get("/", Accept="application/json").status == 401
    page = stranger.get("/sign-in?next=/slides")
    assert page.status == 200 and 'value="/slides"' in page.text
    wrong = stranger.sign_in("AAAA-BBBB-CCCC-DDDD")
    assert wrong.status == 401 and "This code lets nobody in" in wrong.text
    assert stranger.get("/").status == 303


def test_a_code_signs_in_in_lower_case_and_without_hyphens_and_signing_out_ends_it(lab: Lab) -> None:
    (row,) = run(lab, "user.add", name="Nurse", role="view")
    browser = Browser.of(lab)
    entered = browser.sign_in(row["code"].lower().replace("-", " "), "/map")
    assert (entered.status, entered.headers["location"]) == (303, "/map")
    cookie = entered.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie
    page = browser.get("/")
    assert page.status == 200 and "Nurse" in page.text
    token = browser.cookies["labref"]
    assert browser.post("/sign-out").status == 303
    browser.cookies["labref"] = token
    assert browser.get("/").status == 303


def test_pages_tell_browsers_what_they_may_do(lab: Lab, reviewer: Browser) -> None:
    page = reviewer.get("/")
    assert "script-src 'self'" in page.headers["content-security-policy"]
    assert "unsafe-inline" not in page.headers["content-security-policy"]
    assert page.headers["cache-control"] == "no-store"
    assert page.headers["x-content-type-options"] == "nosniff"
    loaded = re.findall(r'(?:src|href)="(/static/[^"]+)"', page.text)
    assert len(loaded) >= 3
    for address in loaded:
        assert reviewer.get(address).status == 200
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", page.text)


def test_only_this_agent_s_pages_change_something(lab: Lab, reviewer: Browser) -> None:
    (cell, *_) = run(lab, "ledger", limit=1)
    asked = json.dumps({"cell": cell["cell_id"], "label": "monocyte"}).encode()
    kind = {"Content_Type": "application/json"}
    for headers in ({"Origin": "http://evil.example"}, {"Origin": ""}, {"Origin": "null"}):
        assert reviewer.ask("POST", "/api/v1/label/set", asked, **kind, **headers).status == 403
    done = reviewer.ask("POST", "/api/v1/label/set", asked, **kind)
    assert done.status == 200, done.text
    (history,) = run(lab, "label.history", cell=cell["cell_id"])
    assert history["changes"][-1]["who"] == "Åsa Lind"


def test_nobody_reviews_under_another_s_name_and_a_viewer_reviews_nothing(lab: Lab, reviewer: Browser) -> None:
    (cell, *_) = run(lab, "ledger", limit=1)
    asked = json.dumps({"cell": cell["cell_id"], "label": "basophil", "who": "Somebody Else"}).encode()
    kind = {"Content_Type": "application/json"}
    assert reviewer.ask("POST", "/api/v1/label/set", asked, **kind).status == 200
    (history,) = run(lab, "label.history", cell=cell["cell_id"])
    assert history["changes"][-1]["who"] == "Åsa Lind"
    viewer = let_in(lab, "Viewer", "view")
    assert viewer.ask("POST", "/api/v1/label/set", asked, **kind).status == 403
    assert (
        viewer.ask(
            "POST", "/api/v1/label/history", asked[:0] or b'{"cell": "%s"}' % cell["cell_id"].encode(), **kind
        ).status
        == 200
    )
    assert reviewer.ask("POST", "/api/v1/user/add", b'{"name": "x"}', **kind).status == 403
    assert reviewer.ask("POST", "/api/v1/store/empty_trash", b"{}", **kind).status == 403


def test_who_is_revoked_or_renewed_is_out_at_once(lab: Lab) -> None:
    browser = let_in(lab, "Leaver", "review")
    assert browser.get("/").status == 200
    run_all = list(run(lab, "user.revoke", name="leaver"))
    assert run_all[0]["state"] == "revoked"
    assert browser.get("/").status == 303
    again = let_in(lab, "Leaver", "view")
    (renewed,) = run(lab, "user.renew", name="Leaver")
    assert again.get("/").status == 303
    assert again.sign_in(renewed["code"]).status == 303


def test_another_host_is_refused(lab: Lab, reviewer: Browser) -> None:
    for host in ("evil.example", "127.0.0.1.evil.example", ""):
        assert reviewer.get("/", Host=host or "x").status == 421
    assert reviewer.get("/sign-in?next=//evil.example").text.count("evil.example") == 0


def test_pages_speak_the_browser_s_language(lab: Lab, reviewer: Browser) -> None:
    assert '<html lang="sv"' in reviewer.get("/", Accept_Language="sv-SE,sv;q=0.9,en;q=0.8").text
    assert reviewer.post("/language", {"language": "de", "next": "/"}).status == 303
    assert '<html lang="de"' in reviewer.get("/", Accept_Language="sv").text
    reviewer.cookies.pop("labref-language")


def test_the_condition_is_told_with_what_was_rejected_and_why(lab: Lab, reviewer: Browser) -> None:
    (lab.watched[0] / "basophil" / "broken <b>.jpg").write_bytes(b"\xff\xd8 no picture")
    wait_until(lambda: list(run(lab, "ledger", outcome="rejected")))
    page = reviewer.get("/condition")
    assert page.status == 200
    assert "broken &lt;b&gt;.jpg" in page.text and "<b>.jpg" not in page.text
    (row,) = run(lab, "ledger", outcome="rejected")
    assert html.escape(row["reason"]) in page.text.replace("&#34;", "&quot;").replace("&#39;", "&#x27;")
    assert str(lab.watched[0]) in page.text
    assert 'href="/users"' not in page.text


def test_an_admin_lets_people_in_on_a_page_and_others_do_not(lab: Lab, reviewer: Browser) -> None:
    assert reviewer.get("/users").status == 403
    assert reviewer.post("/users", {"what": "add", "name": "Sneak", "role": "admin"}).status == 403
    admin = let_in(lab, "Chief", "admin")
    made = admin.post("/users", {"what": "add", "name": "New <i>One</i>", "role": "view", "days": "3"})
    assert made.status == 200 and "New &lt;i&gt;One" in made.text
    code = re.search(r'class="code">([^<]+)<', made.text)
    assert code is not None
    newcomer = Browser.of(lab)
    assert newcomer.sign_in(code[1]).status == 303
    assert "let in already" in admin.post("/users", {"what": "add", "name": "new <i>one</i>", "role": "view"}).text
    assert admin.post("/users", {"what": "revoke", "name": "New <i>One</i>"}).status == 200
    assert newcomer.get("/").status == 303
    assert admin.post("/users", {"what": "nonsense"}).status == 400
    assert "Sneak" not in admin.get("/users").text


@pytest.mark.parametrize(
    "address",
    [
        "/nosuch",
        "/cell/ffffffffffffffff",
        "/slide/unknown",
        "/slides/x/y",
        "/map/nosuch",
        "/reading/999",
        "/reading/999/picture/0/none/0",
    ],
)
def test_an_address_that_leads_nowhere_is_a_page_that_says_so_and_where_to_go(reviewer: Browser, address: str) -> None:
    for accepts in ("text/html,*/*;q=0.8", "*/*", ""):
        page = reviewer.get(address, Accept=accepts)
        assert page.status == 404 and page.headers["content-type"].startswith("text/html"), accepts
        assert "Nothing is here" in page.text and 'role="alert"' in page.text
        assert {"/slides", "/map", "/review"} <= set(re.findall(r'<li><a href="([^"]+)">', page.text))
        assert "script-src 'self'" in page.headers["content-security-policy"]
    swedish = reviewer.get(address, Accept_Language="sv")
    assert "Här finns ingenting" in swedish.text


def test_programs_get_json_where_nothing_is_and_so_does_everybody_under_api(lab: Lab, reviewer: Browser) -> None:
    for address in ("/api/nosuch", "/api/v1/cell/nosuch", "/api"):
        answered = reviewer.get(address, Accept="text/html")
        assert answered.status == 404 and json.loads(answered.body)["error"]["message"].startswith("nothing is at this")
    assert json.loads(reviewer.get("/nosuch", Accept="application/json").body)["error"]["kind"] == "LabrefError"
    wrong = reviewer.post("/condition")
    assert wrong.status == 405 and wrong.headers["content-type"].startswith("text/html")


def test_the_condition_is_told_in_the_reader_s_language(reviewer: Browser) -> None:
    for language, words in (
        ("sv", ("bevakar mapparna", "processorn")),
        ("de", ("überwacht die Ordner", "dem Prozessor")),
    ):
        page = reviewer.get("/condition", Accept_Language=language)
        told = re.sub(r'<(\w+)[^>]* lang="en">.*?</\1>', "", page.text)  # sentences that operations make are marked
        assert all(word in told for word in words), language
        assert not re.search(r">\s*(watching|scanning|background_|density_|CPUExec|focus\b)", told), language


def test_per_cent_and_moments_are_written_in_one_way_and_no_line_tears_them_apart() -> None:
    from labref.web.pages import _environment, _static

    for language, shown in (("en", "35\u00a0%"), ("sv", "35\u00a0%"), ("de", "35\u00a0%")):
        made = _environment(language).from_string("{{ 0.351|share }} {{ 0.351|share(1) }}").render()
        assert made.startswith(shown) and made.count("\u00a0%") == 2
        # every month is a word or stands where it is expected, the day is shown in 24 hours, and nothing is "-0"
        when = "{{ '2026-11-02T14:05:00'|moment }} {{ -0.02|round(1)|number }} {{ -0.0001|share(1) }}"
        said = _environment(language).from_string(when).render()
        date = {"en": "2 Nov 2026", "sv": "2 nov. 2026", "de": "02.11.2026"}[language]
        assert re.sub("<[^>]*>", "", said).replace("0,0", "0.0") == f"{date} 14:05 0 0.0\u00a0%"
    scripts = {name: data.decode() for name, data in _static().items() if name.endswith(".js") and "/" not in name}
    assert "\\u00a0%" in scripts["labref.js"]
    for name, code in scripts.items():  # they are written by `share`, `moment` and `number` of labref.js alone
        assert name == "labref.js" or not re.search(r"toLocale|Intl\.|toFixed| %`", code), name


def test_a_cell_s_page_has_room_for_what_comes_and_shows_nothing_there(lab: Lab, reviewer: Browser) -> None:
    cell = next(row["cell_id"] for row in run(lab, "ledger") if row.get("cell_id"))
    page = reviewer.get(f"/cell/{cell}").text
    assert re.search(r'<div class="below">\s*</div>', page)
    from labref.web.pages import _environment

    blocks = _environment("en").get_template("cell.html").blocks
    assert {"below_nine", "quality", "atlas"} <= set(blocks)


@pytest.mark.parametrize(
    ("web", "links"),
    [
        ({}, []),
        ({"names": ["labref.example.org"], "proxy": True}, ["https://labref.example.org/sign-in#"]),
        (
            {"names": ["a.example", "b.example"], "address": "0.0.0.0", "certificate": "c", "key": "k"},
            ["https://a.example:8443/sign-in#", "https://b.example:8443/sign-in#"],
        ),
        (
            {"names": ["a.example"], "address": "192.168.1.20", "port": 443, "certificate": "c", "key": "k"},
            ["https://a.example/sign-in#", "https://192.168.1.20/sign-in#"],
        ),
        ({"address": "fe80::1", "certificate": "c", "key": "k"}, ["https://[fe80::1]:8443/sign-in#"]),
    ],
)
def test_a_code_comes_with_the_links_of_other_computers(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, web: dict[str, Any], links: list[str]
) -> None:
    found = _links(WebConfig(**web), "AAAA")
    assert found == [f"{link}AAAA" for link in links]
    row = {"name": "N", "role": "view", "code": "AAAA", "links": found}
    monkeypatch.setattr("labref.cli.user.perform", lambda *_, **__: [row])
    said = CliRunner().invoke(app, ["user", "add", "N", "--lab", str(lab.folder)])
    assert said.exit_code == 0 and "http://127.0.0.1:" in said.output
    assert all(f"  {link}\n" in said.output for link in found) and ("other computers" in said.output) == bool(found)


def test_no_page_has_a_key_that_a_class_can_have() -> None:
    from labref.operations.classes import _KNOWN, _SPARE
    from labref.web.pages import NAVIGATION, _static

    of_classes = {known.key for known in _KNOWN.values()} | set(_SPARE)
    assert not of_classes & {"u", "g", "?"}
    used: dict[str, set[str]] = {}
    for name, data in _static().items():
        if name.endswith(".js") and "/" not in name:
            code = data.decode()
            found = re.findall(
                r'(?:^|[{,]\s*|actions\.)"?([^\s",.{}]|[A-Z]\w+)"?\s*[:=] (?:\[text\(|way\()', code, re.MULTILINE
            )
            used[name] = set(found)
    assert (
        {"N", "A", "Enter"} <= used["slide.js"]
        and {"D", "R"} <= used["map.js"]
        and {"Y"} <= used["review-duplicates.js"]
    )
    for name, names in used.items():  # a reading of triplets has no classes: its keys are those of SVOMEN
        assert not names & of_classes - ({"0", "1", "2"} if name == "reading.js" else set()), name
    assert all(len(key) == 1 and key.islower() for _, _, key in NAVIGATION), "after g, so no class is meant"
