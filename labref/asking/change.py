"""The progress of a change from one bundle to another."""

from __future__ import annotations

from typing import Final

from labref.progress import Row
from labref.store import Store

__all__ = ["describe"]

_FAILURES_LISTED: Final = 20


def describe(store: Store, digest: str) -> Row:
    """The progress of the change to the bundle with this digest.

    {`bundle` {name, version, digest}, `state`, `cells`, `embedded`, `failed`, `failures` [{cell_id, reason}] (the first
    20), `switch` (true where the agent switches by itself), `report` (of `labref.tasks.reembedding.compare`, or null)}.

    state: "active" (this bundle answers), "re-embedding", "comparing", "held" (some cells cannot be embedded, and the
    change waits for a person), "ready" (to be switched), or "none" (no change to this bundle is under way).
    """
    stored = next((bundle for bundle in store.bundles() if bundle.digest == digest), None)
    pending = store.changes.pending()
    pending = pending if pending is not None and pending.digest == digest else None
    name, version = (None, None) if stored is None else (stored.name, stored.version)
    row: Row = {
        "bundle": {"name": name, "version": version, "digest": digest},
        "state": "none",
        "cells": 0,
        "embedded": 0,
        "failed": 0,
        "failures": [],
        "switch": pending is not None and pending.switch,
        "report": None if pending is None else pending.report,
    }
    if stored is None:
        return row
    coverage = store.changes.coverage(digest)
    row |= {"cells": coverage.cells, "embedded": coverage.embedded, "failed": coverage.failed}
    if coverage.failed:
        failures = list(store.changes.failures(digest).items())[:_FAILURES_LISTED]
        row["failures"] = [{"cell_id": cell_id, "reason": reason} for cell_id, reason in failures]
    if pending is None:
        row["state"] = "active" if store.active_bundle() == digest else "none"
    elif pending.report is None:
        row["state"] = "re-embedding" if coverage.missing else "comparing"
    elif coverage.failed and not pending.leave_out:
        row["state"] = "held"
    else:
        row["state"] = "ready"
    return row
