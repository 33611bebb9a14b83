"""The pages: who may look at them, and that nobody else does."""

from __future__ import annotations

import html
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from labref.bundles.bundle import Bundle
from labref.lab import Lab
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
