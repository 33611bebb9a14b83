"""Where a lab is asked: its running agent, or the store itself while none runs. Both ways give the same answer."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, Self

from labref.asking.answer import answer, check_question, ledger_json, open_embedder, store_status
from labref.bundles.bundle import Bundle
from labref.bundles.inference import Embedder
from labref.errors import StoreLockedError
from labref.export.paths import path_from_text, path_to_text
from labref.lab import Lab, absolute
from labref.operations import perform
from labref.progress import Row
from labref.store import Store
from labref.tasks.context import Adoption, Context
from labref.web.client import AgentClient

__all__ = ["Desk", "ask", "ledger_rows", "open_free_store", "run", "status"]

_PATIENCE_SECONDS: Final = 20.0  # another command has the store for a moment; an agent that starts soon answers


class Desk:
    """Where a lab is asked: the running agent, or the store itself while none runs. Opened once for many questions."""

    def __init__(self, lab: Lab, agent: AgentClient | None, store: Store | None) -> None:
        self.lab = lab
        self._agent = agent
        self._store = store
        self._embedder: Embedder | None = None

    @staticmethod
    def open(lab: Lab) -> Desk:
        """Find the lab's agent, else open its store. Raises `StoreLockedError` where another process keeps the store."""
        store, agent = open_free_store(lab, or_agent=lambda: AgentClient.find(lab))
        return Desk(lab, agent, store)

    def ask(
        self,
        data: bytes,
        *,
        name: str,
        k: int = 8,
        by: str = "latent",
        analyser: str | None = None,
        any_optics: bool = False,
    ) -> dict[str, Any]:
        """As `answer`."""
        name = path_to_text(name)
        if self._agent is not None:
            return self._agent.query(data, name=name, k=k, by=by, analyser=analyser, any_optics=any_optics)
        check_question(k, by)
        return answer(
            self.lab,
            self._open_store(),
            self._open_embedder(),
            data,
            name=name,
            k=k,
            by=by,
            analyser=analyser,
            any_optics=any_optics,
        )

    def ledger_rows(
        self, *, outcome: str | None = None, path: str | None = None, limit: int | None = None
    ) -> Iterator[dict[str, Any]]:
        """One row for each file found, as JSON values: `path`, `outcome`, `reason`, `cell_id`, `label`, `label_source`, `slide`,
        `at`, `duplicate_of`, `neighbours`, `conflict`; only those with `outcome`, or of the file `path`, at most `limit`."""
        if path is not None:
            path = path_to_text(str(absolute(Path(path_from_text(path)))))
        if self._agent is not None:
            yield from self._agent.ledger(outcome=outcome, path=path, limit=limit)
            return
        for row in self._open_store().ledger(path=path, outcome=outcome, limit=limit):
            yield ledger_json(row)

    def status(self) -> dict[str, Any]:
        """As `status`."""
        if self._agent is not None:
            return self._agent.status()
        watch = [
            {"folder": path_to_text(str(folder)), "how": "unwatched" if folder.is_dir() else "missing"}
            for folder in self.lab.watched
        ]
        return store_status(self.lab, self._open_store(), self._open_embedder()) | {"watch": watch, "agent": None}

    def close(self) -> None:
        """Close what was opened."""
        if self._embedder is not None:
            self._embedder.close()
        if self._store is not None:
            self._store.close()

    def _open_store(self) -> Store:
        assert self._store is not None
        return self._store

    def _open_embedder(self) -> Embedder:
        if self._embedder is None:
            self._embedder = open_embedder(self.lab, self.lab.bundle(self._open_store()))
        return self._embedder

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def ask(lab: Lab, data: bytes, *, name: str, k: int = 8, by: str = "latent") -> dict[str, Any]:
    """References for one image, by the agent or without one; see `answer`. For several images, keep a `Desk` open."""
    with Desk.open(lab) as desk:
        return desk.ask(data, name=name, k=k, by=by)


def ledger_rows(
    lab: Lab, *, outcome: str | None = None, path: str | None = None, limit: int | None = None
) -> Iterator[dict[str, Any]]:
    """What became of every file found, by the agent or without one; see `Desk.ledger_rows`."""
    with Desk.open(lab) as desk:
        yield from desk.ledger_rows(outcome=outcome, path=path, limit=limit)


def status(lab: Lab) -> dict[str, Any]:
    """How a lab and its agent are, as JSON values.

    `lab`, `version`, `bundle` {`name`, `version`, `digest`}, `without_latent` (cells still to be embedded by it),
    `optics` [see `labref.asking.drift.overview`], `bundle_change` (null, or the change under way: see `labref.asking.change.describe`), `provider`, `provider_line`, `cells`, `outcomes` {outcome: files},
    `labels`, `label_sources`, `slides`, `analysers` {name: cells}, `watch` [{`folder`, `how`}], `agent` (null where none runs)
    {`pid`, `port`, `started_at`, `state`, `problem`, `waiting`, `in_flight`, `embedded`, `last_scan_at`, `last_scan_seconds`}.
    """
    with Desk.open(lab) as desk:
        return desk.status()


def open_free_store(
    lab: Lab, *, or_agent: Callable[[], AgentClient | None], patience_seconds: float = _PATIENCE_SECONDS
) -> tuple[Store | None, AgentClient | None]:
    """The lab's agent if `or_agent` finds one, else its store, waiting while another command has it.

    Raises `StoreLockedError` after `patience_seconds`.
    """
    deadline = time.monotonic() + patience_seconds
    while True:
        agent = or_agent()
        if agent is not None:
            return None, agent
        try:
            return lab.open_store(), None
        except StoreLockedError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.1)


def run(lab: Lab, name: str, **parameters: Any) -> Iterator[Row]:
    """Rows of an operation, by the lab's agent where one runs, else here. Parameters are JSON values."""
    store, agent = open_free_store(lab, or_agent=lambda: AgentClient.find(lab))
    if agent is not None:
        yield from agent.perform(name, parameters)
        return
    assert store is not None
    with contextlib.ExitStack() as stack:
        stack.callback(store.close)
        opened: list[Embedder] = []

        def embedder() -> Embedder:
            if not opened:
                opened.append(stack.enter_context(open_embedder(lab, lab.bundle(store))))
            return opened[-1]

        def adopt(bundle: Bundle) -> Adoption:
            ready = stack.enter_context(open_embedder(lab, bundle))
            return Adoption(ready, lambda: opened.append(ready))

        yield from perform(Context(lab, store, embedder, None, adopt), name, parameters)
