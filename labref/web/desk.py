"""Where a lab is asked: its running agent, or the store itself while none runs. Both ways give the same answer."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final, Self

from labref.asking.answer import open_embedder
from labref.bundles.bundle import Bundle
from labref.bundles.inference import Embedder
from labref.errors import StoreLockedError
from labref.export.paths import path_from_text, path_to_text
from labref.lab import Lab, absolute
from labref.lab.suspects import Suspects
from labref.operations import perform
from labref.progress import Pace, Row, waiting
from labref.shared.asking import Asking
from labref.store import Store
from labref.tasks.context import Adoption, Context
from labref.tasks.publishing import asking_of
from labref.web.client import AgentClient

__all__ = ["Desk", "ask", "here", "ledger_rows", "open_free_store", "run", "status"]

_PATIENCE_SECONDS: Final = 20.0  # another command has the store for a moment; an agent that starts soon answers


class Desk:
    """Where a lab is asked: the running agent, or the store itself while none runs. Opened once for many questions."""

    def __init__(
        self, lab: Lab, agent: AgentClient | None, store: Store | None, *, asking: Asking | None = None
    ) -> None:
        """asking : where cells of other labs are asked for, where that is not what labref.toml names."""
        self.lab = lab
        self._agent = agent
        self._opened = contextlib.ExitStack()
        self._embedder: Embedder | None = None
        if store is not None:
            self._opened.callback(store.close)
            suspects = cache(lambda: Suspects(lab.suspects_file))
            if asking is None and (asking := asking_of(lab)) is not None:
                self._opened.callback(asking.close)
            self._context = Context(
                lab, store, self._open_embedder, None, self._adopt, suspects=suspects, asking=asking
            )

    @staticmethod
    def open(lab: Lab) -> Desk:
        """Find the lab's agent, else open its store. Raises `StoreLockedError` where another process keeps the
        store."""
        store, agent = open_free_store(lab, or_agent=lambda: AgentClient.find(lab))
        return Desk(lab, agent, store)

    def run(self, name: str, /, *, data: bytes | None = None, **parameters: Any) -> Iterator[Row]:
        """Rows of an operation; see `labref.operations`. Parameters are JSON values. data : the bytes that it takes, if
        any."""
        if self._agent is not None:
            return self._agent.perform(name, parameters, data)
        return perform(self._context, name, parameters, data)

    def ask(
        self,
        data: bytes,
        *,
        name: str,
        k: int = 8,
        by: str = "latent",
        analyser: str | None = None,
        any_optics: bool = False,
        path: Path | None = None,
        shared: str = "own",
    ) -> Row:
        """References for the image `data`, the bytes of its file: a `labref.operations.query.QueryAnswer`. path : that
        file, whose watched folder tells the analyser.  shared : whose cells are references beside the lab's own."""
        asked = {"name": path_to_text(name), "k": k, "by": by, "analyser": analyser, "any_optics": any_optics}
        asked |= {} if shared == "own" else {"shared": shared}
        asked |= {} if path is None else {"path": path_to_text(str(absolute(path)))}
        return next(self.run("query", data=data, **asked))

    def ledger_rows(
        self, *, outcome: str | None = None, path: str | None = None, limit: int | None = None
    ) -> Iterator[Row]:
        """A `labref.operations.ledger.LedgerEntry` for each file found; only those with `outcome`, or of the file
        `path`, which may be relative, at most `limit`."""
        if path is not None:
            path = path_to_text(str(absolute(Path(path_from_text(path)))))
        return self.run("ledger", outcome=outcome, path=path, limit=limit)

    def status(self) -> Row:
        """How the lab and its agent are: a `labref.operations.status.Status`."""
        return next(self.run("status"))

    def close(self) -> None:
        """Close what was opened."""
        self._opened.close()

    def _open_embedder(self) -> Embedder:
        if self._embedder is None:
            bundle = self.lab.bundle(self._context.store)
            with self.lab.ways_out(self._context.store):
                self._embedder = self._opened.enter_context(open_embedder(self.lab, bundle))
        return self._embedder

    def _adopt(self, bundle: Bundle) -> Adoption:
        ready = self._opened.enter_context(open_embedder(self.lab, bundle))

        def use() -> None:
            self._embedder = ready

        return Adoption(ready, use)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def ask(lab: Lab, data: bytes, *, name: str, k: int = 8, by: str = "latent") -> Row:
    """References for one image, by the agent or without one; see `Desk.ask`. For several images, keep a `Desk` open."""
    with Desk.open(lab) as desk:
        return desk.ask(data, name=name, k=k, by=by)


def ledger_rows(
    lab: Lab, *, outcome: str | None = None, path: str | None = None, limit: int | None = None
) -> Iterator[Row]:
    """What became of every file found, by the agent or without one; see `Desk.ledger_rows`."""
    with Desk.open(lab) as desk:
        yield from desk.ledger_rows(outcome=outcome, path=path, limit=limit)


def status(lab: Lab) -> Row:
    """How a lab and its agent are; see `Desk.status`."""
    with Desk.open(lab) as desk:
        return desk.status()


def run(lab: Lab, name: str, /, **parameters: Any) -> Iterator[Row]:
    """Rows of an operation, by the lab's agent where one runs, else here; see `Desk.run`. While another command has the
    store, rows say so."""
    store, agent = yield from _free_store(lab, lambda: AgentClient.find(lab), _PATIENCE_SECONDS)
    with Desk(lab, agent, store) as desk:
        yield from desk.run(name, **parameters)


def here() -> str | None:
    """The folder that this process is in, as text; None where it is no longer there."""
    try:
        return path_to_text(str(Path.cwd()))
    except OSError:
        return None


def open_free_store(
    lab: Lab, *, or_agent: Callable[[], AgentClient | None], patience_seconds: float = _PATIENCE_SECONDS
) -> tuple[Store | None, AgentClient | None]:
    """The lab's agent where `or_agent` finds one, else its store. It waits while another command has the store open.

    Raises `StoreLockedError` after `patience_seconds`.
    """
    waits = _free_store(lab, or_agent, patience_seconds)
    while True:
        try:
            next(waits)
        except StopIteration as ended:
            found: tuple[Store | None, AgentClient | None] = ended.value
            return found


def _free_store(
    lab: Lab, or_agent: Callable[[], AgentClient | None], patience_seconds: float
) -> Generator[Row, None, tuple[Store | None, AgentClient | None]]:
    """The same; yields every second what it waits for."""
    deadline, pace = time.monotonic() + patience_seconds, Pace()
    while True:
        agent = or_agent()
        if agent is not None:
            return None, agent
        try:
            return lab.open_store(), None
        except StoreLockedError as error:
            if time.monotonic() > deadline:
                raise
            if pace.due():
                yield waiting(f"waits for another command: {error}")
        time.sleep(0.1)
