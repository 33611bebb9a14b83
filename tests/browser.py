"""Chromium for tests of the pages, as a person uses them: Debian's own, driven by playwright."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser as Chromium
from playwright.sync_api import ConsoleMessage, Page, sync_playwright

from labref.lab import Lab
from labref.web.client import AgentClient
from labref.web.desk import run

__all__ = ["chromium", "executable", "open_page"]


def executable() -> str | None:
    """Where Chromium is: LABREF_TEST_CHROMIUM, else on the PATH; None where it is not installed."""
    names = ("chromium", "chromium-browser", "google-chrome", "msedge")
    return os.environ.get("LABREF_TEST_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)


@contextmanager
def chromium() -> Iterator[Chromium]:
    """A headless Chromium. Skips the test where there is none; on CI that fails it."""
    path = executable()
    if path is None:
        assert "CI" not in os.environ, ".ci/run installs Chromium"
        pytest.skip("there is no Chromium: apt-get install chromium, or set LABREF_TEST_CHROMIUM")
    with sync_playwright() as driver:
        # a container has no sandbox to give; /dev/shm may be small there
        launched = driver.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
        )
        try:
            yield launched
        finally:
            launched.close()


@contextmanager
def open_page(
    browser: Chromium,
    lab: Lab,
    name: str,
    role: str = "review",
    *,
    width: int = 1366,
    height: int = 768,
    dark: bool = False,
    refused: str | None = None,
) -> Iterator[Page]:
    """A page of the lab's agent, by somebody who was let in and signed in by their link.

    It fails at the end where a script failed, or the page asked for something that is not there, or from
    outside. refused : the end of an address that may answer 400.
    """
    agent = AgentClient.find(lab)
    assert agent is not None
    (row,) = run(lab, "user.add", name=name, role=role)
    faults: list[str] = []
    context = browser.new_context(
        base_url=f"http://127.0.0.1:{agent.record.port}",
        viewport={"width": width, "height": height},
        color_scheme="dark" if dark else "light",
        locale="en-GB",
        reduced_motion="reduce",
    )
    try:
        page = context.new_page()
        page.on("pageerror", lambda error: faults.append(f"script: {error}"))

        def note(said: ConsoleMessage) -> None:
            meant = refused is not None and said.location["url"].endswith(refused) and " 400 " in said.text
            if said.type == "error" and not meant:
                faults.append(f"console: {said.text}")

        page.on("console", note)
        page.on("requestfailed", lambda asked: faults.append(f"failed: {asked.url} {asked.failure}"))
        page.goto(f"/sign-in#{row['code']}")
        page.wait_for_url(lambda url: "sign-in" not in url)
        yield page
        # what was left on purpose, such as the stream of a page that was closed, is no fault
        left = [fault for fault in faults if "ERR_ABORTED" not in fault]
        assert left == []
    finally:
        context.close()
