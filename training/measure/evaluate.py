"""Figures of a bundle on any two class-folder trees: references and queries.

The measurement runs the same code as a lab: the shipped graphs, by `labref.cells.image` and `labref.bundles.inference`;
the search, by `labref.store.memory.index`; spread and novelty, by `labref.asking.references`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from labref.asking.novelty import by_threshold
from labref.asking.references import distribution_of
from labref.bundles.inference import Embedder
from labref.cells.hashes import digest
from labref.cells.image import decode, measure_background, prepare_pixels
from labref.cpus import usable_cpus
from labref.errors import UnreadableImageError
from labref.store.memory.index import Index
from training.data.classes import LEVELS, at_level
from training.data.images import Item, list_images, load_attributes
from training.data.recaptures import recapture_groups
from training.measure.statistics import bootstrap

__all__ = [
    "TURNS",
    "Embedded",
    "attribute_agreement",
    "attribute_shares",
    "attributes_of_each",
    "digest_of_all",
    "embed_tree",
    "evaluate",
    "load_attributes",
    "nearest",
    "precision_by_level",
    "same_image",
    "turn",
    "vote",
]

K = 8
TURNS: dict[str, tuple[float, bool]] = {
    "turned 90°": (90.0, False),
    "turned 180°": (180.0, False),
    "turned 270°": (270.0, False),
    "turned 37°": (37.0, False),
    "mirrored": (0.0, True),
}
"""The changes of a query under which its eight references should stay: degrees counter-clockwise, mirrored left to
right."""


@dataclass(frozen=True)
class Embedded:
    """The embedded images of a tree. items : the n images.  digests : SHA-256 of their bytes.  probabilities :
    float32[n, c].  latents : float32[n, L].  unreadable : images that could not be prepared, with the reason."""

    items: tuple[Item, ...]
    digests: tuple[str, ...]
    probabilities: NDArray[np.float32]
    latents: NDArray[np.float32]
    unreadable: tuple[tuple[str, str], ...] = ()

    def rows(self, chosen: NDArray[np.int64]) -> Embedded:
        """Only these images."""
        items, digests = (tuple(values[row] for row in chosen) for values in (self.items, self.digests))
        return Embedded(items, digests, self.probabilities[chosen], self.latents[chosen], self.unreadable)


def turn(pixels: NDArray[np.uint8], degrees: float, mirrored: bool) -> NDArray[np.uint8]:
    """An image uint8[h, w, 3] turned counter-clockwise and then mirrored, as if the slide had lain like that. The
    picture grows where needed; the new corners show the smear's background."""
    if degrees % 90 == 0:
        turned = np.rot90(pixels, int(degrees // 90) % 4)
    else:
        background = measure_background(np.asarray(Image.fromarray(pixels).reduce(4)))
        fill = (round(background[0]), round(background[1]), round(background[2]))
        picture = Image.fromarray(pixels).rotate(degrees, Image.Resampling.BICUBIC, expand=True, fillcolor=fill)
        turned = np.asarray(picture)
    return np.ascontiguousarray(turned[:, ::-1] if mirrored else turned)


def embed_tree(
    embedder: Embedder,
    tree: Path,
    items: Sequence[Item],
    change: tuple[float, bool] = (0.0, False),
    advance: Callable[[int], None] = lambda _: None,
) -> Embedded:
    """Prepare and embed `items` of `tree`, each turned by `change` first; batches only, so memory stays small."""
    parts: list[Any] = []
    kept: list[Item] = []
    digests: list[str] = []
    unreadable: list[tuple[str, str]] = []

    def one(item: Item) -> tuple[str, Any]:
        data = (tree / item.path).read_bytes()
        try:
            pixels = decode(data)
            return digest(data), prepare_pixels(turn(pixels, *change) if change != (0.0, False) else pixels).crop
        except UnreadableImageError as error:
            return digest(data), str(error)

    size = embedder.batch_size * 4
    with ThreadPoolExecutor(max_workers=usable_cpus()) as pool:
        for start in range(0, len(items), size):
            crops = []
            for item, (name, crop) in zip(
                items[start : start + size], pool.map(one, items[start : start + size]), strict=True
            ):
                if isinstance(crop, str):
                    unreadable.append((item.path, crop))
                else:
                    crops.append(crop)
                    kept.append(item)
                    digests.append(name)
            if crops:
                parts.append(embedder.embed(np.stack(crops)))
            advance(min(size, len(items) - start))
    manifest = embedder.bundle.manifest
    return Embedded(
        tuple(kept),
        tuple(digests),
        np.concatenate([np.zeros((0, len(manifest.labels)), np.float32), *(p.probabilities for p in parts)]),
        np.concatenate([np.zeros((0, manifest.latent_size), np.float32), *(p.latents for p in parts)]),
        tuple(unreadable),
    )


def nearest(
    queries: NDArray[np.float32],
    references: NDArray[np.float32],
    same: NDArray[np.bool_] | Sequence[NDArray[np.int64]] | None,
    k: int = K,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Rows and mean squared errors, int64[n, k] and float64[n, k], of the k nearest references, nearest first and equal
    ones by row, as a lab's own index finds them.

    queries float32[n, L], references float32[m, L]; same : bool[n, m], True where a reference is the query's own image,
    or for each query the rows of these. Raises ValueError where fewer than k references are left for a query.
    """
    index = Index(references.shape[1])
    index.add(np.arange(len(references), dtype=np.uint64), references)
    rows = np.empty((len(queries), k), dtype=np.int64)
    distances = np.empty((len(queries), k))
    for number, query in enumerate(queries):
        barred = np.empty(0, np.int64) if same is None else same[number]
        if barred.dtype == np.bool_:
            barred = np.flatnonzero(barred)
        ids, away = index.nearest(query, k + len(barred))
        kept = np.flatnonzero(~np.isin(ids.astype(np.int64), barred))[:k]
        if len(kept) < k:
            raise ValueError(
                f"query {number} has {len(kept)} references that are not its own image, and {k} are needed"
            )
        rows[number], distances[number] = ids[kept], away[kept]
    return rows, distances


def digest_of_all(digests: Sequence[str]) -> str:
    """SHA-256 of a list of digests, whatever their order; it identifies the images that a figure was measured on."""
    return digest("\n".join(sorted(digests)).encode())


def same_image(queries: Sequence[str], references: Sequence[str]) -> NDArray[np.bool_]:
    """bool[n, m]: True where a reference has the digest of a query, and so is its own image."""
    places: dict[str, list[int]] = {}
    for row, name in enumerate(references):
        places.setdefault(name, []).append(row)
    same = np.zeros((len(queries), len(references)), dtype=bool)
    for row, name in enumerate(queries):
        same[row, places.get(name, [])] = True
    return same


def vote(labels: NDArray[np.str_], distances: NDArray[np.float64]) -> NDArray[np.str_]:
    """The label with the largest share of each query's references: str[n] from labels str[n, k] and distances
    float64[n, k], nearest first. Shares are those of a lab's spread (`labref.asking.references.distribution_of`)."""
    shares = (distribution_of(*pair).weights for pair in zip(labels.tolist(), distances.tolist(), strict=True))
    return np.array([next(iter(of_each)) for of_each in shares])


def attribute_agreement(
    queries: Sequence[Item], references: Sequence[Item], rows: NDArray[np.int64], attributes: Path
) -> dict[str, float]:
    """Share of expert attributes that a query has in common with its references, and with a random one of its class.

    attributes : CSV with a column `path` (`<class>/<name>`) and one column for each attribute. Queries and references
    without a line are left out. `random_same_class` is exact: the mean over every reference of the query's class.
    """
    found, random = attribute_shares(queries, references, rows, attributes)
    if not len(found):
        return {"n_queries": 0, "references": float("nan"), "random_same_class": float("nan")}
    return {
        "n_queries": len(found),
        "references": float(np.mean(found)),
        "random_same_class": float(np.mean(random)),
    }


def attribute_shares(
    queries: Sequence[Item], references: Sequence[Item], rows: NDArray[np.int64], attributes: Path
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """`attribute_agreement` of each query that has attributes, float64[m] with its references and with a random one of
    its class."""
    found, random = attributes_of_each(queries, references, rows, attributes)
    told = np.isfinite(found)
    return found[told], random[told]


def attributes_of_each(
    queries: Sequence[Item], references: Sequence[Item], rows: NDArray[np.int64], attributes: Path
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """`attribute_shares` of every query, float64[n] both, NaN where its attributes or those of all its references are
    not known."""
    table = load_attributes(attributes)
    codes: dict[tuple[int, str], int] = {}
    known = {
        name: np.array([codes.setdefault((i, v), len(codes)) for i, v in enumerate(values)])
        for name, values in table.items()
    }

    def of(item: Item) -> Any:
        return known.get(item.path.rsplit("/", 1)[-1])

    coded = [of(item) for item in references]
    by_class: dict[str, Any] = {}
    for item, values in zip(references, coded, strict=True):
        if values is not None:
            by_class.setdefault(item.label, []).append(values)
    # the share of each value in a class: a cell's expected agreement with a random cell is the mean of the shares of
    # its own values
    often = {
        label: np.bincount(np.concatenate(values), minlength=len(codes)) / len(values)
        for label, values in by_class.items()
    }
    found, random = np.full(len(queries), np.nan), np.full(len(queries), np.nan)
    for number, (item, chosen) in enumerate(zip(queries, rows, strict=True)):
        own = of(item)
        shown = [coded[row] for row in chosen if coded[row] is not None]
        if own is None or not shown or item.label not in by_class:
            continue
        found[number] = np.mean([(own == other).mean() for other in shown])
        random[number] = often[item.label][own].mean()
    return found, random


def precision_by_level(
    queries: Sequence[Item], references: Sequence[Item], rows: NDArray[np.int64]
) -> dict[str, dict[str, Any]]:
    """Precision@8 of references int64[n, 8] at each level of the hierarchy (`training.data.classes`): group, class,
    fine.

    For each level: `macro` (mean over the level's names) and `micro` (mean over queries), estimates with 95 %
    intervals, and `per_class` {name: {`precision`, `n_queries`, `n_references`}}. At the fine level, a query of unknown
    fine class is left out, and a reference of unknown fine class does not count among the eight.
    """
    figures: dict[str, dict[str, Any]] = {}
    for level in LEVELS:
        own = np.array([at_level(i.label, i.path.rsplit("/", 1)[-1], level) or "" for i in queries])
        known = np.array([at_level(i.label, i.path.rsplit("/", 1)[-1], level) or "" for i in references])
        told = known[rows] != ""
        hits = ((known[rows] == own[:, None]) & told).sum(axis=1) / np.maximum(told.sum(axis=1), 1)
        counted = (own != "") & told.any(axis=1)
        hits, names = hits[counted], own[counted]
        figures[level] = {
            "macro": bootstrap(hits, strata=names.tolist()).to_json() if len(hits) else None,
            "micro": bootstrap(hits).to_json() if len(hits) else None,
            "per_class": {
                name: {
                    "precision": float(hits[names == name].mean()),
                    "n_queries": int((names == name).sum()),
                    "n_references": int((known == name).sum()),
                }
                for name in sorted(set(names.tolist()))
            },
        }
    return figures


def evaluate(
    embedder: Embedder,
    references: Path,
    queries: Path,
    *,
    attributes: Path | None = None,
    rotations: bool = True,
    limit: int | None = None,
    distinct: bool = False,
    step: Callable[[str, int], Callable[[int], None]] = lambda _name, _total: lambda _done: None,
) -> dict[str, Any]:
    """Measure the bundle in `embedder`: `queries` against `references`, two folders of class folders.

    An image with the same bytes as the query is not its reference. limit : the most queries of each class.
    distinct : count cells and not images. Of the images of one cell (`training.data.recaptures`), each tree then keeps
    one, and an image of a query's cell is not its reference.
    step : called with (name, total) at the start of each stage; it returns a function that is called with the number of
    images done. Raises ValueError for empty trees.
    """
    reference_items, query_items = list_images(references), list_images(queries)
    if limit is not None:
        taken: Counter[str] = Counter()
        chosen = []
        for item in query_items:
            taken[item.label] += 1
            if taken[item.label] <= limit:
                chosen.append(item)
        query_items = chosen
    known = embed_tree(embedder, references, reference_items, advance=step("references", len(reference_items)))
    asked = embed_tree(embedder, queries, query_items, advance=step("queries", len(query_items)))
    if len(known.items) <= K or not asked.items:
        raise ValueError(f"{references} must hold more than {K} readable images, and {queries} at least one")
    same = same_image(asked.digests, known.digests)
    left_out = {}
    if distinct:
        files = [root / i.path for root, t in ((references, known), (queries, asked)) for i in t.items]
        groups = recapture_groups(files, step("recaptures", len(files)))
        parts = groups[: len(known.items)], groups[len(known.items) :]
        kept = [np.unique(part, return_index=True)[1] for part in parts]
        left_out = {"references": len(parts[0]) - len(kept[0]), "queries": len(parts[1]) - len(kept[1])}
        known, asked = known.rows(np.sort(kept[0])), asked.rows(np.sort(kept[1]))
        same = parts[1][np.sort(kept[1])][:, None] == parts[0][np.sort(kept[0])][None, :]
        if len(known.items) <= K:
            raise ValueError(f"{references} shows {len(known.items)} different cells; more than {K} are needed")
    rows, distances = nearest(asked.latents, known.latents, same)
    reference_labels = np.array([item.label for item in known.items])
    query_labels = np.array([item.label for item in asked.items])
    hits = (reference_labels[rows] == query_labels[:, None]).mean(axis=1)
    classes = sorted(set(query_labels.tolist()))
    per_class = {label: float(hits[query_labels == label].mean()) for label in classes}

    votes = vote(reference_labels[rows], distances)
    known_labels = np.array(embedder.bundle.manifest.labels)
    predicted = known_labels[asked.probabilities.argmax(axis=1)]
    in_bundle = np.isin(query_labels, known_labels)
    confusion = {
        label: {name: int(((query_labels == label) & (predicted == name)).sum()) for name in known_labels.tolist()}
        for label in classes
    }
    novelty = embedder.bundle.manifest.novelty
    figures: dict[str, Any] = {
        "bundle": embedder.bundle.digest,
        "model_version": embedder.bundle.manifest.version,
        "provider": embedder.provider,
        "n_queries": len(asked.items),
        "n_references": len(known.items),
        **({"recaptures_left_out": left_out} if distinct else {}),
        "unreadable": [
            {"tree": name, "path": path, "reason": reason}
            for name, tree in (("references", known), ("queries", asked))
            for path, reason in tree.unreadable
        ],
        "precision_at_8": {
            "micro": float(hits.mean()),
            "macro": float(np.mean(list(per_class.values()))),
            "per_class": per_class,
        },
        "precision_at_8_by_level": precision_by_level(asked.items, known.items, rows),
        "knn_accuracy": float((votes == query_labels).mean()),
        "classifier_accuracy": float((predicted == query_labels)[in_bundle].mean()) if in_bundle.any() else None,
        "confusion": confusion,
        "novel_share": float(
            np.mean([by_threshold(away, novelty.threshold).is_novel for away in distances[:, : novelty.k].tolist()])
        ),
        "queries_digest": digest_of_all(asked.digests),
        "references_digest": digest_of_all(known.digests),
    }
    if rotations:
        overlap = {}
        for name, change in TURNS.items():
            turned = embed_tree(embedder, queries, asked.items, change, step(f"queries {name}", len(asked.items)))
            if len(turned.items) != len(asked.items):
                raise ValueError(f"{queries}: {turned.unreadable[0]} could be read before and cannot now")
            again, _ = nearest(turned.latents, known.latents, same)
            overlap[name] = float(np.mean([len(np.intersect1d(a, b)) for a, b in zip(rows, again, strict=True)]))
        overlap["mean"] = float(np.mean(list(overlap.values())))
        figures["rotation_overlap_at_8"] = overlap
    if attributes is not None:
        figures["attribute_agreement_at_8"] = attribute_agreement(asked.items, known.items, rows, attributes)
    return figures
