"""What an operation or a background task works on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from labref.bundles.bundle import Bundle
    from labref.bundles.inference import Embedder
    from labref.lab import Lab
    from labref.store import Store
    from labref.tasks.jobs import Jobs

__all__ = ["Adoption", "Context"]


@dataclass(frozen=True)
class Adoption:
    """Another bundle, ready to answer. embedder : its networks, open.  use : lets them answer, from the next question
    on."""

    embedder: Embedder
    use: Callable[[], None]


@dataclass(frozen=True)
class Context:
    """What an operation works on. embedder : opens the active bundle's networks when first called.  jobs : the agent's
    background jobs, or None where no agent runs and an operation has to do its work before it returns.  adopt : opens a
    bundle to take the place of the active one.  agent_status : what the agent says of itself, {`watch`, `agent`} as in
    `labref status`; None where no agent runs."""

    lab: Lab
    store: Store
    embedder: Callable[[], Embedder]
    jobs: Jobs | None
    adopt: Callable[[Bundle], Adoption]
    agent_status: Callable[[], dict[str, Any]] | None = None
