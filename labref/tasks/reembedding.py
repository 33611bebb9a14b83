"""Re-embedding: the latents of all cells are computed again for another bundle, from the kept bytes; then that bundle
is switched to.

Each batch is one transaction, so a kill loses at most one batch. The work left is always the cells that have no latent
in the new latent space. The old bundle answers until the switch. Before the switch, the index of the new latent space
is built and the new bundle's networks are opened.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Generator, Sequence
from typing import Any, Final

import numpy as np

from labref.asking import references
from labref.bundles.bundle import Bundle
from labref.bundles.inference import Embedder, describe_each
from labref.errors import BundleError, LabError, UnreadableImageError
from labref.failpoints import failpoint
from labref.lab import Lab
from labref.lab.suspects import KILLED
from labref.progress import Row, progress
from labref.store import CellEmbedding, Store
from labref.store.memory.books import id_to_int
from labref.tasks.context import Context

__all__ = ["SAMPLE_PER_CLASS", "catch_up", "compare", "embed_left", "installed", "switch"]

SAMPLE_PER_CLASS: Final = 250
"""The most cells of a class that the report before a switch is made of."""
_AT_ONCE: Final = 32
_REFERENCES: Final = 8
_CRASHED: Final = "labref crashed twice while the bundle's networks ran on it (ONNX Runtime?)"

Stopped = Callable[[], bool]


def installed(lab: Lab, digest: str) -> Bundle:
    """The installed bundle with this digest, verified. Raises `BundleError`."""
    return Bundle.installed(lab.bundles, digest)


def catch_up(context: Context, embedder: Embedder, *, stopped: Stopped) -> Generator[Row, None, bool]:
    """Embed every cell that has no latent in the latent space of the embedder's bundle. Yields progress.

    Returns True when all cells are embedded, False where `stopped()` became true before. Where new cells come
    meanwhile, it goes on until few had come: those that come while it embeds the last few are left, or it would have no
    end. A cell whose kept bytes are missing or damaged, or on which labref crashed twice, is left out; the store keeps
    the reason.
    """
    store, digest = context.store, embedder.bundle.digest
    with context.turns.embedding_again():
        while missing := store.changes.missing(digest):
            for start in range(0, len(missing), _AT_ONCE):
                if stopped():
                    return False
                some = missing[start : start + _AT_ONCE]
                embed(context, embedder, some)
                context.turns.embedded_again(len(some))
                coverage = store.changes.coverage(digest)
                yield progress(
                    coverage.embedded + coverage.failed, coverage.cells, f"cells embedded by bundle {digest[:12]}"
                )
            if len(missing) <= _AT_ONCE:
                break
    return True


def embed_left(context: Context, *, stopped: Stopped) -> Generator[Row, None, None]:
    """Embed every cell that has no latent of the bundle in use: one that came back after the bundle had changed, or
    that was left at a change. Yields progress; nothing where no cell is left, or the bundle cannot be used."""
    store = context.store
    active = store.active_bundle()
    if active is None or not store.changes.coverage(active).missing:
        return
    yield progress(0, 0, "opening the networks")
    with contextlib.suppress(BundleError):
        yield from catch_up(context, context.embedder(), stopped=stopped)
        store.changes.predict()


def embed(context: Context, embedder: Embedder, ids: Sequence[str]) -> int:
    """Embed these cells from their kept bytes, and store their latents in one transaction.

    Returns the number of cells embedded. For each other cell the store keeps the reason.
    """
    lab, store, bundle = context.lab, context.store, embedder.bundle
    crops, found, names, reasons = [], [], [], {}
    for cell_id, cell in store.cells(ids).items():
        try:
            crops.append(lab.decoder.prepare(lab.read_image(cell.digest)).crop)
            found.append(cell_id)
            names.append(f"{bundle.short} {cell.digest}")  # another bundle may do what this one cannot
        except (LabError, UnreadableImageError) as error:
            reasons[cell_id] = str(error)
    made = []
    described = (
        describe_each(embedder, crops)
        if context.suspects is None
        else context.suspects().describe(embedder, names, crops)
    )
    for cell_id, embedded in zip(found, described, strict=True):
        if isinstance(embedded, str):
            reasons[cell_id] = _CRASHED if embedded == KILLED else embedded
        else:
            made.append(
                CellEmbedding(cell_id, embedded.latent, embedded.probabilities, embedded.label, embedded.probability)
            )
    failpoint("reembed.commit", may_fail=False)
    with store.quiet():
        present = store.cells([embedding.cell_id for embedding in made])  # retention may have removed some meanwhile
        made = [embedding for embedding in made if embedding.cell_id in present]
        store.add_embeddings(made, bundle=bundle.digest)
        if reasons:
            store.changes.fail(bundle.digest, reasons)
    failpoint("reembed.committed", may_fail=False)
    return len(made)


def compare(
    store: Store,
    old: Bundle,
    new: Bundle,
    *,
    stopped: Stopped,
    withheld: Collection[str] = (),
    per_class: int = SAMPLE_PER_CLASS,
) -> Generator[Row, None, Row | None]:
    """How the references of the lab's own cells change from one bundle to another.

    For up to `per_class` cells of each class, the eight references are found in both latent spaces, as `labref query`
    finds them. withheld : ids of cells that are never references.

    Yields progress, and returns None where `stopped()` became true, else {`cells`, `sampled`, `changed` (number of the
    eight references that are other cells), `same_class_before`, `same_class_after` (share of the eight that have the
    cell's own label), `classes` {label: the same figures for the class}}. The figures over all classes are means that
    weight each class by its number of cells.
    """
    sample = store.changes.sample(per_class)
    total = sum(len(ids) for _, ids in sample.values())
    done = 0
    classes: dict[str, dict[str, Any]] = {}
    for label, (count, ids) in sample.items():
        changed: list[float] = []
        before: list[float] = []
        after: list[float] = []
        for cell_id in ids:
            if stopped():
                return None
            olds, news = (_references(store, bundle, cell_id, withheld) for bundle in (old, new))
            done += 1
            if done % 20 == 0:
                yield progress(done, total, "cells compared in both spaces")
            if olds and news:
                changed.append(float(len(_physical(store, news) - _physical(store, olds))))
                before.append(sum(r.label == label for r in olds) / len(olds))
                after.append(sum(r.label == label for r in news) / len(news))
        if changed:
            classes[label] = {
                "cells": count,
                "sampled": len(changed),
                "changed": _mean(changed),
                "same_class_before": _mean(before),
                "same_class_after": _mean(after),
            }
    weights = [entry["cells"] for entry in classes.values()]
    means = {
        key: round(float(np.average([entry[key] for entry in classes.values()], weights=weights)), 4)
        if weights
        else None
        for key in ("changed", "same_class_before", "same_class_after")
    }
    cells = sum(count for count, _ in sample.values())
    return {"cells": cells, "sampled": sum(e["sampled"] for e in classes.values()), **means, "classes": classes}


def switch(context: Context, bundle: Bundle, *, complete: bool) -> None:
    """Make `bundle` the one that answers, from now on.

    complete : True embeds first the cells that still lack a latent of `bundle`; writers wait meanwhile. With False,
    such cells are no references until `catch_up` has embedded them. Raises `LabrefError` where the bundle cannot be
    used; nothing has then changed.
    """
    store = context.store
    before = store.active_bundle()
    store.build_index(bundle.digest)
    adoption = context.adopt(bundle)
    adoption.embedder.golden_difference()
    with store.quiet():
        if complete:
            for _ in catch_up(context, adoption.embedder, stopped=lambda: False):
                pass
        failpoint("bundle.before")
        store.changes.switch(bundle.digest)
        failpoint("bundle.switched", may_fail=False)
        adoption.use()
    if before is not None and before != bundle.digest:
        store.drop_index(before)


def _references(store: Store, bundle: Bundle, cell_id: str, withheld: Collection[str]) -> list[references.Reference]:
    latent = store.latents([cell_id], bundle=bundle.digest).get(cell_id)
    cell = store.cell(cell_id)
    if latent is None or cell is None:
        return []
    found = references.find(
        store,
        bundle=bundle,
        latent=latent,
        digest=cell.digest,
        k=_REFERENCES,
        withheld=withheld,
    )
    return found.references


def _physical(store: Store, found: Sequence[references.Reference]) -> set[int]:
    """Group numbers of the physical cells that these references show: captures of one cell have the same number."""
    return set(store.groups.of(np.array([id_to_int(one.cell_id) for one in found], np.uint64)).tolist())


def _mean(values: Sequence[float]) -> float:
    return round(float(np.mean(values)), 4)
