"""Asking a lab: references for an image, what became of files, how the lab is. By the agent where one runs, else directly.

Both ways give the same answer (but for `timings_ms`): the same code makes it, and an image is always embedded by itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import Any, Final, Self

from labref import __version__, reembedding, references
from labref.agent.client import AgentClient
from labref.agent.paths import path_from_text, path_to_text
from labref.bundle import Bundle
from labref.centring import whereabouts
from labref.duplicates import Judge, Thresholds, repeated
from labref.errors import LabrefError, StoreLockedError
from labref.fingerprint import digest
from labref.image import decode, prepare_pixels
from labref.inference import Embedder
from labref.lab import Lab, absolute
from labref.operations.optics import overview
from labref.store import LedgerRow, Store

__all__ = [
    "Desk",
    "answer",
    "ask",
    "ledger_json",
    "ledger_rows",
    "open_embedder",
    "open_free_store",
    "status",
    "store_status",
]

MOST_REFERENCES: Final = 100
_PATIENCE_SECONDS: Final = 20.0  # another command has the store for a moment; an agent that starts soon answers


def answer(
    lab: Lab,
    store: Store,
    embedder: Embedder,
    data: bytes,
    *,
    name: str,
    k: int = 8,
    by: str = "latent",
    analyser: str | None = None,
    any_optics: bool = False,
) -> dict[str, Any]:
    """References for the image `data`, the bytes of its file, as the JSON values that DESIGN.md lists.

    name : what the answer calls the image.  k : how many references, 1 to 100.  by : "latent", or "map" once the lab has one.
    analyser : that the image came from, where it is known; references come from the same one.  any_optics : from all.
    `cell` says where in the picture the cell was found, see `labref.centring.whereabouts`.
    Raises `UnreadableImageError` where the bytes are no usable image.
    """
    check_question(k, by)
    started = time.perf_counter()
    pixels = decode(data)
    cell = prepare_pixels(pixels)
    prepared = time.perf_counter()
    # one image alone: in a batch with others its numbers could differ in the last bit
    embeddings = embedder.embed(cell.crop[None])
    embedded = time.perf_counter()
    probabilities, latent = embeddings.probabilities[0], embeddings.latents[0]
    labels = embedder.bundle.manifest.labels
    best = int(probabilities.argmax())
    named = digest(data)
    repeats: list[str] = []
    if store.has_digest(named) is None:
        judge = Judge(lab, Thresholds.of(embedder.bundle.manifest.duplicates))
        repeats = repeated(store, judge, pixels, cell)
    found = references.find(
        store,
        bundle=embedder.bundle,
        latent=latent,
        digest=named,
        k=k,
        by=by,
        analyser=analyser,
        any_optics=any_optics,
        repeats=repeats,
        withheld=store.duplicates.possible() if lab.config.duplicates.withhold_possible else (),
    )
    searched = time.perf_counter()
    return {
        "image": name,
        "bundle": embedder.bundle.digest,
        "cell": whereabouts(cell),
        "predicted": {"label": labels[best], "probability": float(probabilities[best])},
        "probabilities": {label: float(p) for label, p in zip(labels, probabilities, strict=True)},
        "references": [_plain(asdict(reference)) for reference in found.references],
        "distribution": _plain(asdict(found.distribution)),
        "novelty": _plain(asdict(found.novelty)),
        "optics": asdict(found.optics),
        "duplicate_of": found.duplicate_of,
        "map": None if found.place is None else asdict(found.place),
        "timings_ms": {
            "prepare": round(1e3 * (prepared - started), 3),
            "embed": round(1e3 * (embedded - prepared), 3),
            "search": round(1e3 * (searched - embedded), 3),
            "total": round(1e3 * (searched - started), 3),
        },
    }


def check_question(k: int, by: str) -> None:
    """Raise `LabrefError` where so many references, or this way to find them, cannot be asked for."""
    if not 1 <= k <= MOST_REFERENCES:
        raise LabrefError(f"{k} references cannot be given; ask for 1 to {MOST_REFERENCES} with -k")
    if by not in ("latent", "map"):
        raise LabrefError(f"references cannot be found by {by!r}; ask with --by latent or --by map")


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
    `optics` [see `labref.operations.optics.overview`], `bundle_change` (null, or the change under way: see `labref.reembedding.describe`), `provider`, `provider_line`, `cells`, `outcomes` {outcome: files},
    `labels`, `label_sources`, `slides`, `analysers` {name: cells}, `watch` [{`folder`, `how`}], `agent` (null where none runs)
    {`pid`, `port`, `started_at`, `state`, `problem`, `waiting`, `in_flight`, `embedded`, `last_scan_at`, `last_scan_seconds`}.
    """
    with Desk.open(lab) as desk:
        return desk.status()


def store_status(lab: Lab, store: Store, embedder: Embedder) -> dict[str, Any]:
    """The part of `status` that does not depend on who asks."""
    counts = store.counts()
    bundle = embedder.bundle
    pending = store.changes.pending()
    return {
        "lab": path_to_text(str(lab.folder)),
        "version": __version__,
        "bundle": {"name": bundle.manifest.name, "version": bundle.manifest.version, "digest": bundle.digest},
        "without_latent": store.changes.coverage(bundle.digest).missing,
        "optics": overview(store, bundle),
        "bundle_change": None if pending is None else reembedding.describe(store, pending.digest),
        "provider": embedder.provider,
        "provider_line": embedder.provider_line,
        "cells": counts.cells,
        "outcomes": {str(name): number for name, number in counts.outcomes.items()},
        "labels": dict(counts.by_label),
        "label_sources": {str(name): number for name, number in counts.by_label_source.items()},
        "slides": {name: number for name, number in counts.by_slide.items() if name is not None},
        "analysers": {name: number for name, number in counts.by_analyser.items() if name is not None},
    }


def ledger_json(row: LedgerRow) -> dict[str, Any]:
    """A ledger row as JSON values; `at` in ISO 8601, UTC."""
    values: dict[str, Any] = _plain(asdict(row))
    return values


def open_embedder(lab: Lab, bundle: Bundle) -> Embedder:
    """The lab's embedder, on the device its configuration asks for."""
    inference = lab.config.inference
    return Embedder.open(
        bundle, device=inference.device, threads=inference.threads or None, precision=inference.precision
    )


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


def _plain(value: Any) -> Any:
    """`value` with its dates, enumerations and paths as JSON has them."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    if isinstance(value, Enum):
        return value.value
    return str(value) if isinstance(value, Path) else value
