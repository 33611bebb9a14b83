"""What an operation or a background task works on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from labref.tasks.turns import Turns

if TYPE_CHECKING:
    from labref.bundles.bundle import Bundle
    from labref.bundles.inference import Embedder
    from labref.lab import Lab
    from labref.lab.suspects import Suspects
    from labref.shared.asking import Asking
    from labref.store import Store
    from labref.tasks.jobs import Jobs
    from labref.tasks.publishing import Publisher

__all__ = ["Adoption", "Context"]


@dataclass(frozen=True)
class Adoption:
    """A bundle that is ready to answer. embedder : its networks, open.  use : makes them answer, from the next question
    on."""

    embedder: Embedder
    use: Callable[[], None]


@dataclass(frozen=True)
class Context:
    """What an operation or a background task works on.

    embedder : returns the active bundle's networks; the first call opens them.  jobs : the agent's background jobs;
    None where no agent runs, and an operation must do its work before it returns.  adopt : opens the bundle that shall
    replace the active one.  agent_status : returns the agent's own part of `labref status`, {`watch`, `agent`}; None
    where no agent runs.  suspects : returns the cells on which labref crashed; None where nobody counts.
    publisher : the agent's thread that publishes to the shared store; None where no agent runs, or the lab has none.
    asking : where cells of other labs are asked for; None where the lab has no shared store.
    turns : of new cells and of a change of the bundle.
    """

    lab: Lab
    store: Store
    embedder: Callable[[], Embedder]
    jobs: Jobs | None
    adopt: Callable[[Bundle], Adoption]
    agent_status: Callable[[], dict[str, Any]] | None = None
    suspects: Callable[[], Suspects] | None = None
    publisher: Publisher | None = None
    asking: Asking | None = None
    turns: Turns = field(default_factory=Turns)
