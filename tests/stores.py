"""Made-up cells and stores for the tests of the store and its benchmark; what is about images uses real ones."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from minisom import MiniSom
from numpy.typing import NDArray

from labref import som
from labref.som.placing import open_placer
from labref.store import NewCell, Placed, Resemblance, Store, StoredMap, cell_id_of
from labref.words import Fingerprint, Verdict

LABELS = ("basophil", "eosinophil", "lymphocyte", "monocyte", "neutrophil")
BUNDLE = "ab" * 32
_MARKS: dict[str, Fingerprint] = {}


def digest_of(number: int | str) -> str:
    """A digest for the made-up file of that number."""
    return hashlib.sha256(str(number).encode()).hexdigest()


def new_cell(number: int | str, **changes: Any) -> NewCell:
    """A cell whose every value follows from its number; far from all others in hash unless told otherwise."""
    digest = digest_of(number)
    rng = np.random.default_rng(int(digest[:8], 16))
    values: dict[str, Any] = {
        "cell_id": cell_id_of(digest),
        "digest": digest,
        "path": f"/export/{number}.jpg",
        "size_bytes": 30_000,
        "mtime_ns": 1_700_000_000_000_000_000,
        "width": 360,
        "height": 363,
        "label": "neutrophil",
        "label_source": "analyser",
        "slide": "slide 1",
        "analyser": "DC-1",
        "captured_at": None,
        "predicted_label": "neutrophil",
        "predicted_probability": 0.75,
        "fingerprints": (Fingerprint(int(digest[16:32], 16), int(digest[32:48], 16)),),
        "latent": rng.standard_normal(50).astype(np.float32),
        "probabilities": np.array([0.05, 0.05, 0.05, 0.1, 0.75], np.float32),
    }
    cell = NewCell(**(values | changes))
    if cell.fingerprints and ("fingerprints" in changes or cell.digest not in _MARKS):
        _MARKS[cell.digest] = cell.fingerprints[0]
    return cell


def mark(bits: int) -> tuple[Fingerprint]:
    """A fingerprint of which only the first hash counts, as `NewCell` takes it."""
    return (Fingerprint(bits, 0),)


def by_bits(digest: str, other: str) -> Resemblance:
    """Stands in for a judge where there are no images: one bit of difference makes a duplicate, three a possible
    one."""
    one, two = _MARKS[digest], _MARKS[other]
    bits = max((one.across ^ two.across).bit_count(), (one.down ^ two.down).bit_count())
    verdict = Verdict.DUPLICATE if bits < 2 else Verdict.POSSIBLE if bits <= 3 else Verdict.DIFFERENT
    return Resemblance(1 - bits / 64, verdict)


JUDGED: dict[str, Any] = {"judge": by_bits, "candidate_bits": 10}
"""Arguments of `Store.record` that let `by_bits` judge."""


def activate(store: Store, digest: str = BUNDLE, *, latent_size: int = 50, labels: Sequence[str] = LABELS) -> None:
    """Give the store a bundle of that shape."""
    store.set_active_bundle(digest, name="made up", version="1", latent_size=latent_size, labels=labels)


@contextmanager
def new_store(folder: Path) -> Iterator[Store]:
    """An empty store with a bundle."""
    with Store.create(folder / "store.duckdb", open_placer=open_placer) as store:
        activate(store)
        yield store


def brute_force(
    latents: NDArray[np.float32], ids: Sequence[str], query: NDArray[np.float32], k: int
) -> list[tuple[str, float]]:
    """The k nearest by looking at all, in float64 from the first step: (cell_id, mean squared error)."""
    away = ((latents.astype(np.float64) - query.astype(np.float64)) ** 2).sum(axis=1) / latents.shape[1]
    return sorted(zip(ids, away.tolist(), strict=True), key=lambda pair: (pair[1], pair[0]))[:k]


def put_on_map(store: Store, bundle: str, nodes: Sequence[NDArray[np.float32]]) -> None:
    """Put a map of one row with these nodes, float32[L] each, in use, and the store's cells on it."""
    use_map(store, bundle, np.stack(nodes)[None])


def use_map(store: Store, bundle: str, weights: NDArray[np.floating[Any]], analyser: str | None = None) -> None:
    """Put the map with these weights float[rows, columns, L] in use, and the store's cells on it, or one analyser's."""
    made = MiniSom(*weights.shape)
    made._weights = weights.astype(np.float64)
    parts = list(store.maps.latents(bundle, analyser=analyser))
    ids, latents = np.concatenate([i for i, _ in parts]), np.concatenate([x for _, x in parts])
    where, errors = som.winners(made, latents)
    version = StoredMap(
        number=0,
        bundle=bundle,
        rows=weights.shape[0],
        columns=weights.shape[1],
        sigma=1.5,
        seed=0,
        trainer="batch",
        started_from=None,
        cells=len(ids),
        qe=1.0,
        te=0.0,
        qe_before=None,
        te_before=None,
        moved_far=None,
        verdict="first",
        seconds=1.0,
        trained_at=datetime.now(UTC),
        analyser=analyser,
    )
    store.maps.switch(version, partial(som.save, made), Placed(ids, where, errors.astype(np.float32)))
