"""What a lab can be asked to do: named operations, done by the running agent, or here while none runs.

The agent alone opens the store while it runs, so a command names an operation and its parameters, and gets JSON rows
back; it does not know who did the work. An operation `group.verb` is a function of `labref.operations.<group>`:

    @operation("label.set")
    def set_label(context: Context, *, cell_id: str, label: str) -> Iterator[Row]: ...

Rows are yielded as they come. One that takes long yields `progress(done, total, text)` every few seconds, at least:
a connection that is silent for two minutes counts as dead, and one whose asker has gone ends at its next row.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from labref.errors import LabrefError

if TYPE_CHECKING:
    from labref.agent.jobs import Jobs
    from labref.bundle import Bundle
    from labref.inference import Embedder
    from labref.lab import Lab
    from labref.store import Store

__all__ = ["Adoption", "Context", "Operation", "Row", "operation", "perform", "progress", "run"]

Row = dict[str, Any]
"""One JSON object of an operation's answer."""
Operation = Callable[..., Iterator[Row]]


@dataclass(frozen=True)
class Adoption:
    """Another bundle, ready to answer. embedder : its networks, open.  use : lets them answer, from the next question on."""

    embedder: Embedder
    use: Callable[[], None]


@dataclass(frozen=True)
class Context:
    """What an operation works on. embedder : opens the active bundle's networks when first called.  jobs : the agent's
    background jobs, or None where no agent runs and an operation has to do its work before it returns.  adopt : opens a bundle
    to take the place of the active one."""

    lab: Lab
    store: Store
    embedder: Callable[[], Embedder]
    jobs: Jobs | None
    adopt: Callable[[Bundle], Adoption]


_REGISTRY: dict[str, Operation] = {}


def operation(name: str) -> Callable[[Operation], Operation]:
    """Register a function as the operation `group.verb`, in the module `labref.operations.<group>`."""

    def register(function: Operation) -> Operation:
        if name in _REGISTRY:
            raise ValueError(f"operation {name} is there already")
        _REGISTRY[name] = function
        return function

    return register


def progress(done: int, total: int, text: str) -> Row:
    """A row that says how far an operation is; the asker shows it and does not keep it."""
    return {"progress": {"done": done, "total": total, "text": text}}


def perform(context: Context, name: str, parameters: dict[str, Any]) -> Iterator[Row]:
    """Do an operation here. Raises `LabrefError` where it is unknown, or takes other parameters, before the first row; and
    where the operating system fails it, such as by a full disk."""
    function = _find(name)
    try:
        inspect.signature(function).bind(context, **parameters)
    except TypeError as error:
        raise LabrefError(f"operation {name}: {error}. The command and the agent are of different versions.") from None
    return _in_words(context, function(context, **parameters))


def _in_words(context: Context, rows: Iterator[Row]) -> Iterator[Row]:
    try:
        yield from rows
    except OSError as error:  # its file name could name a patient
        raise LabrefError(
            f"{error.strerror or type(error).__name__}: what was begun in {context.lab.folder} is not finished. Look at the free disk "
            "space and the rights of the folder, and do it again."
        ) from error


def run(lab: Lab, name: str, **parameters: Any) -> Iterator[Row]:
    """Rows of an operation, by the lab's agent where one runs, else here. Parameters are JSON values."""
    from labref.agent.client import AgentClient
    from labref.query import open_embedder, open_free_store

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


def _find(name: str) -> Operation:
    group = name.split(".")[0]
    if name not in _REGISTRY and group.isidentifier() and importlib.util.find_spec(f"{__name__}.{group}"):
        importlib.import_module(f"{__name__}.{group}")
    if name not in _REGISTRY:
        raise LabrefError(f"this labref has no operation {name!r}; the command and the agent are of different versions")
    return _REGISTRY[name]
