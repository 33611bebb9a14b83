"""What a lab answers, as JSON values: references for an image, a row of the ledger, the lab's status.

The answer is the same with an agent and without one, except for `timings_ms`: an image is always embedded alone.
"""

from __future__ import annotations

import functools
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from enum import Enum
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from labref import __version__
from labref.asking import change, references
from labref.asking.analysers import Telling, of_file
from labref.asking.central import Central, as_called
from labref.asking.drift import overview
from labref.asking.prediction import predict
from labref.asking.sharing import Others
from labref.bundles.bundle import Bundle
from labref.bundles.inference import Embedder
from labref.bundles.proof import open_proven
from labref.cells.centring import whereabouts
from labref.cells.hashes import digest
from labref.cells.optics import measure
from labref.cells.quality import Thresholds as QualityThresholds
from labref.cells.quality import judge
from labref.cells.sameness import Thresholds
from labref.errors import BundleError, LabrefError
from labref.export.layout import ClassNames
from labref.export.paths import path_to_text
from labref.lab import Lab
from labref.lab.judge import Judge, repeated
from labref.lab.trust import standing
from labref.shared.asking import Reply
from labref.store import Cell, LedgerRow, Store
from labref.times import utc
from labref.words import Quality, SlideId

__all__ = [
    "MOST_REFERENCES",
    "answer",
    "answer_for_stored",
    "central_of",
    "ledger_json",
    "open_embedder",
    "probability_by_label",
    "quality_json",
    "store_status",
    "withheld",
]

MOST_REFERENCES: Final = 100
"""The largest number of references that one question can ask for."""


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
    path: str | None = None,
    others: Others | None = None,
) -> dict[str, Any]:
    """References for an image, as the JSON values that `labref.operations.query.QueryAnswer` describes.

    data : the bytes of the image's file.  name : what the answer calls the image.  k : number of references, 1 to 100.
    by : "latent" for the nearest in latent space, or "map" for the nearest on the lab's map, once there is a map.
    analyser : the analyser that the image came from, or None where it is not told; references come from the same
    analyser.  any_optics : references come from all analysers.  path : the image's file, absolute; where it lies in a
    watched folder, that tells the analyser.  others : whose cells of other labs are references as well.

    In the answer, `cell` says where in the picture the cell was found: see `labref.cells.centring.whereabouts`.
    Raises `UnreadableImageError` where the bytes are no usable image, and `LabrefError` where the question cannot be
    asked (see `check_question` and `labref.asking.references.find`).
    """
    check_question(k, by)
    started = time.perf_counter()
    named = digest(data)
    searched = lab.decoder.search(data) if store.has_digest(named) is None else None
    cell, judged_by = lab.decoder.judge(data) if searched is None else (searched.cell, searched.judged_by)
    prepared = time.perf_counter()
    # the image is embedded alone: in a batch with others its numbers could differ in the last bit
    embeddings = embedder.embed(cell.crop[None])
    embedded = time.perf_counter()
    probabilities, latent = embeddings.probabilities[0], embeddings.latents[0]
    measures = functools.cache(lambda: measure(cell))  # of the optics; not every answer needs them
    repeats: list[str] = []
    may_repeat: list[str] = []
    if searched is not None:
        repeats, may_repeat = repeated(store, Judge(lab, Thresholds.of(embedder.bundle.manifest.duplicates)), searched)
    found = references.find(
        store,
        bundle=embedder.bundle,
        latent=latent,
        digest=named,
        k=k,
        by=by,
        analyser=analyser,
        any_optics=any_optics,
        telling=Telling(None if path is None else of_file(lab, store, embedder.bundle.manifest.labels, path), measures),
        repeats=repeats,
        may_repeat=may_repeat,
        withheld=withheld(lab, store),
        show_same=not lab.config.duplicates.withhold_possible,
        probabilities=probability_by_label(embedder.bundle, probabilities),
        contrast=True,
        central=_central(lab, embedder.bundle),
        sharing=others,
        fingerprint=searched.fingerprints[0] if searched is not None and searched.fingerprints else None,
    )
    told = _told(lab, store, embedder.bundle, probabilities, found, measures)
    ended = time.perf_counter()
    return {
        "image": name,
        "cell": whereabouts(cell),
        "quality": quality_json(judge(judged_by, QualityThresholds.of(embedder.bundle.manifest.quality))),
        **told,
        "timings_ms": {
            "prepare": round(1e3 * (prepared - started), 3),
            "embed": round(1e3 * (embedded - prepared), 3),
            "search": round(1e3 * (ended - embedded), 3),
            "total": round(1e3 * (ended - started), 3),
        },
    }


def answer_for_stored(
    lab: Lab,
    store: Store,
    bundle: Bundle,
    cell: Cell,
    *,
    k: int = 8,
    by: str = "latent",
    any_optics: bool = False,
    others: Others | None = None,
) -> dict[str, Any] | None:
    """The same for a cell of the store, from the latent that is stored: nothing is decoded and no network runs.

    None where the cell has no latent of this bundle; its kept bytes can then be asked about. Of the fields of `answer`
    it has those that are about the cell and not about its picture: not `image`, `cell` and `timings_ms`.
    """
    check_question(k, by)
    embedding = store.embedding(cell.cell_id, bundle=bundle.digest)
    if embedding is None:
        return None
    latent, probabilities = embedding
    measures = functools.cache(lambda: store.optics.of(cell.cell_id))
    found = references.find(
        store,
        bundle=bundle,
        latent=latent,
        digest=cell.digest,
        stored=cell,
        k=k,
        by=by,
        any_optics=any_optics,
        telling=Telling(measures=measures),
        withheld=withheld(lab, store),
        show_same=not lab.config.duplicates.withhold_possible,
        probabilities=probability_by_label(bundle, probabilities),
        contrast=True,
        central=_central(lab, bundle),
        sharing=others,
    )
    quality = store.qualities.of([cell.cell_id]).get(cell.cell_id)
    told = _told(lab, store, bundle, probabilities, found, measures)
    return {"quality": quality_json(quality), **told}


def central_of(lab: Lab, bundle: Bundle) -> Central | None:
    """The atlas of the bundle, as the lab calls its classes; None where there is none."""
    atlas = bundle.atlas
    return None if atlas is None else as_called(atlas, bundle.manifest.labels, tuple(lab.config.watch.labels.items()))


def _central(lab: Lab, bundle: Bundle) -> Central | None:
    """The same; None too where the lab wants none."""
    return central_of(lab, bundle) if lab.config.atlas.enabled else None


def withheld(lab: Lab, store: Store) -> Set[str]:
    """Ids of the cells that are no references until a person says so: those whose picture is doubted, and possible
    duplicates where the lab's setting says that."""
    doubted = store.qualities.doubted()
    return doubted | store.duplicates.possible() if lab.config.duplicates.withhold_possible else doubted


def quality_json(quality: Quality | None) -> dict[str, Any] | None:
    """A judgement as JSON values; None for a picture that is not judged."""
    return None if quality is None else _plain(asdict(quality))


def _told(
    lab: Lab,
    store: Store,
    bundle: Bundle,
    probabilities: NDArray[np.float32],
    found: references.Found,
    measures: Callable[[], NDArray[np.float32] | None],
) -> dict[str, Any]:
    """What the networks and the search say of a cell, as JSON values. measures : returns those of its optics."""
    labels = bundle.manifest.labels
    by_label = probability_by_label(bundle, probabilities)
    label, probability = max(by_label.items(), key=lambda of_one: of_one[1])
    prediction = predict(
        store, bundle, (label, probability), found, ClassNames(labels, lab.config.watch.labels), measures
    )
    return {
        "bundle": bundle.digest,
        "predicted": {"label": label, "probability": probability},
        "prediction": asdict(prediction),
        "probabilities": by_label,
        # `vars`, as their fields hold nothing that `asdict` would have to go into
        "references": [_plain(vars(reference)) for reference in found.references],
        "contrast": [_plain(vars(reference)) for reference in found.contrast],
        "distribution": _plain(vars(found.distribution)),
        "novelty": _plain(vars(found.novelty)),
        "optics": asdict(found.optics),
        "duplicate_of": found.duplicate_of,
        "map": None if found.place is None else asdict(found.place),
        "shared": _replied(found.reply, found.references),
    }


def _replied(reply: Reply | None, shown: Sequence[references.Reference]) -> dict[str, Any] | None:
    """What the shared store answered; None where nobody asked it."""
    if reply is None:
        return None
    labs = sorted({one.lab for one in shown if one.lab is not None})
    exact = None if reply.problem is not None else reply.exact
    have_cells = None if reply.problem is not None else bool(reply.cells)
    return {
        "labs": labs,
        "problem": reply.problem,
        "have_cells": have_cells,
        "exact": exact,
        "waited_ms": reply.milliseconds,
    }


def probability_by_label(bundle: Bundle, probabilities: NDArray[np.float32]) -> dict[str, float]:
    """{class of the bundle: probability}. probabilities : float32[c], of one cell."""
    return {label: float(p) for label, p in zip(bundle.manifest.labels, probabilities, strict=True)}


def check_question(k: int, by: str) -> None:
    """Raise `LabrefError` where `k` is not 1 to 100, or `by` is neither "latent" nor "map"."""
    if not 1 <= k <= MOST_REFERENCES:
        raise LabrefError(f"{k} references cannot be given; ask for 1 to {MOST_REFERENCES} with -k")
    if by not in ("latent", "map"):
        raise LabrefError(f"references cannot be found by {by!r}; ask with --by latent or --by map")


def store_status(lab: Lab, store: Store, embedder: Embedder | BundleError) -> dict[str, Any]:
    """The part of `status` that is the same with an agent and without one. embedder : the networks in use, or why they
    cannot be used; what the store holds is said all the same."""
    counts = store.counts()
    if isinstance(embedder, BundleError):
        digest = store.active_bundle()
        stored = next((known for known in store.bundles() if known.digest == digest), None)
        if digest is None or stored is None:
            raise embedder
        name, version, optics = stored.name, stored.version, overview(store, None)
        fallback = None
        provider, provider_line = "none", f"the bundle cannot be used: {embedder}"
    else:
        manifest, digest = embedder.bundle.manifest, embedder.bundle.digest
        name, version, optics = manifest.name, manifest.version, overview(store, embedder.bundle)
        provider, provider_line, fallback = embedder.provider, embedder.provider_line, embedder.fallback
    pending = store.changes.pending()
    return {
        "lab": path_to_text(str(lab.folder)),
        "version": __version__,
        "bundle": {"name": name, "version": version, "digest": digest},
        "signature": standing(store, digest).to_json(),
        "without_latent": store.changes.coverage(digest).missing,
        "optics": optics,
        "bundle_change": None if pending is None else change.describe(store, pending.digest),
        "provider": provider,
        "provider_line": provider_line,
        "fallback": fallback,
        "cells": counts.cells,
        "trash": _trash(lab, store),
        "outcomes": {str(name): number for name, number in counts.outcomes.items()},
        "labels": dict(counts.by_label),
        "label_sources": {str(name): number for name, number in counts.by_label_source.items()},
        "slides": _slides(counts.by_slide),
        "analysers": {name: number for name, number in counts.by_analyser.items() if name is not None},
    }


def _trash(lab: Lab, store: Store) -> dict[str, Any] | None:
    """The cells that retention removed and that can be brought back; None where there are none."""
    cells, size, first, last = store.trash.summary(lab.config.retention.trash_days)
    if not cells:
        return None
    now = datetime.now(UTC)
    until = [utc(now + timedelta(days=days), timespec="seconds") for days in (first, last)]
    return {"cells": cells, "bytes": size, "first_until": until[0], "last_until": until[1]}


def ledger_json(row: LedgerRow) -> dict[str, Any]:
    """A ledger row as JSON values; `at` is in ISO 8601, UTC."""
    values: dict[str, Any] = _plain(asdict(row))
    return values


def open_embedder(lab: Lab, bundle: Bundle) -> Embedder:
    """The bundle's networks, on the device and in the precision that the lab's configuration asks for.

    Before the first use of a bundle on this computer its golden cells are run (seconds, in a process of its own).
    Raises `BundleError` where the networks do not give the golden outputs, or cannot be opened.
    """
    return open_proven(bundle, lab.folder, lab.inference)


def _plain(value: Any) -> Any:
    """`value` with its dates, enumerations and paths as JSON values."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, datetime):
        return utc(value)
    if isinstance(value, Enum):
        return value.value
    return str(value) if isinstance(value, Path) else value


def _slides(by_slide: Mapping[SlideId | None, int]) -> dict[str, int]:
    """Cells by the name of their slide, with the watched folder where several slides have the name."""
    slides = {slide: cells for slide, cells in by_slide.items() if slide is not None}
    named = Counter(slide.name for slide in slides)
    return {
        slide.name if named[slide.name] == 1 else f"{slide.name} ({slide.folder})": cells
        for slide, cells in slides.items()
    }
