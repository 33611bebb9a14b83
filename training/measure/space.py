"""The latent space of a run, measured: precision, attributes, SVOMEN and ROTMES, each with its interval."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from rich.progress import Progress

from labref.cells.image import decode, prepare_pixels
from labref.cpus import usable_cpus
from labref.errors import UnreadableImageError
from training.data.images import Item, load_attributes, require_pictures, resize_crop
from training.measure.evaluate import K, attribute_shares, nearest, precision_by_level, turn, vote
from training.measure.latents import Latents
from training.measure.statistics import bootstrap
from training.measure.triplets import attribute_triplets, score
from training.networks.architecture import build_feature_model
from training.networks.devices import forward
from training.networks.vae import plain_features
from training.run import Run, RunError, load_part

__all__ = ["CHANGES", "EXPERTS", "Cells", "Space", "encode", "map_references", "measure", "rotmes"]

EXPERTS = 0.961
"""Agreement between two experts on WBCAtt's attributes, by their own re-annotation (Tsutsui et al., NeurIPS 2023)."""
_BLOCK = 64

Change = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]


def _zoomed(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    picture = Image.fromarray(pixels)
    size = (round(picture.width * 1.05), round(picture.height * 1.05))
    return np.asarray(picture.resize(size, Image.Resampling.BICUBIC))


def _recaptured(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    blurred = np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(0.5)))[2:, 2:]
    return np.clip(blurred * np.array([1.03, 1.0, 0.97]), 0, 255).astype(np.uint8)


CHANGES: dict[str, Change] = {
    "turned 90°": lambda pixels: turn(pixels, 90, False),
    "flipped left to right": lambda pixels: turn(pixels, 0, True),
    "flipped top to bottom": lambda pixels: turn(pixels, 180, True),
    "turned 37°": lambda pixels: turn(pixels, 37, False),
    "zoomed by 5 %": _zoomed,
    "recaptured (shift 2 px, colour ±3 %, blur 0.5 px)": _recaptured,
}
"""What is done to an image before it is prepared. ROTMES is the mean over the first three (the thesis' section 4.7);
the others are what it asks for as future work."""
_ROTMES = tuple(CHANGES)[:3]


@dataclass(frozen=True)
class Cells:
    """Cells of a run and where they are. items : n.  features : [n, h, w, c], plain crops, memory mapped."""

    items: tuple[Item, ...]
    features: NDArray[np.float16]


@dataclass(frozen=True)
class Space:
    """What is asked for and what is answered with. queries : held out, never trained on (the validation part where
    nothing is held out).  references : the cells trained on, and those of the validation part where that is not asked
    for itself."""

    queries: Cells
    references: Cells

    @staticmethod
    def of(run: Run, progress: Progress) -> Space:
        """Features of the run's cells, from its cache where they are there. Raises `RunError` where it is not
        trained."""
        if not (run.folder / "classifier.keras").exists():
            raise RunError(
                f"{run.folder} has no classifier yet; `python -m training resume {run.folder}` goes on with it"
            )

        def cells(part: str) -> Cells:
            features = plain_features(run, part, progress)
            _, rows, _ = load_part(run, part)
            items = run.split.part(part)
            return Cells(tuple(items[row] for row in rows), features)

        known = [cells("train")]
        if run.split.holdout:
            asked = cells("holdout")
            if run.split.validation:
                known.append(cells("validation"))
        else:
            asked = cells("validation")
        whole = known[0] if len(known) == 1 else Cells(known[0].items + known[1].items, _joined(known))
        if len(whole.items) <= K or not asked.items:
            raise RunError(
                f"{run.folder}: more than {K} cells trained on and at least one held out are needed to measure it"
            )
        return Space(asked, whole)


def _joined(parts: Sequence[Cells]) -> Any:
    return np.concatenate([part.features for part in parts])


def encode(encoder: Any, features: NDArray[Any]) -> NDArray[np.float32]:
    """Latent means float32[n, L] of features [n, h, w, c], in blocks. encoder : as `build_vae_parts` makes it."""
    step = forward(encoder)
    blocks = [step(features[start : start + 512])[0] for start in range(0, len(features), 512)]
    return np.concatenate(blocks)


def measure(
    run: Run,
    space: Space,
    queries: NDArray[np.float32],
    references: NDArray[np.float32],
    attributes: Path | None,
    ranked: tuple[NDArray[np.int64], NDArray[np.float64]] | None = None,
    places: NDArray[np.float32] | None = None,
) -> dict[str, Any]:
    """Figures of one set of latents float32[n, L], each with its 95 % interval.

    ranked : rows and distances of the references where they are not the nearest in these latents (by a map, say).
    places : where the queries lie for SVOMEN, where that is not these latents.
    JSON: `precision_at_8` {group, class, fine}, `knn_accuracy`, where the run has several optics `by_optics` {name:
    {`from_all`, `from_own`}}, class precision@8 of its queries among all references and among those of the same optics,
    and where `attributes` are given `attribute_agreement_at_8` {`references`, `random_same_class`, `share_of_the_way`
    to experts} and `svomen` (see `training.measure.triplets.score`).
    """
    rows, distances = ranked or nearest(queries, references, None)
    known = np.array([item.label for item in space.references.items])
    own = np.array([item.label for item in space.queries.items])
    figures: dict[str, Any] = {
        "precision_at_8": precision_by_level(space.queries.items, space.references.items, rows),
        "knn_accuracy": bootstrap(vote(known[rows], distances) == own).to_json(),
    }
    if run.config.domains and ranked is None:
        figures["by_optics"] = {
            domain: _one_optics(space, domain, rows, queries, references) for domain in run.config.domains
        }
    if attributes is not None:
        figures |= _visual(run, space, rows, places if places is not None else queries, attributes)
    return figures


def _one_optics(
    space: Space,
    domain: str,
    rows: NDArray[np.int64],
    queries: NDArray[np.float32],
    references: NDArray[np.float32],
) -> dict[str, Any]:
    asked, known = (
        [number for number, item in enumerate(cells.items) if item.path.startswith(f"{domain}/")]
        for cells in (space.queries, space.references)
    )
    figures: dict[str, Any] = {"n_queries": len(asked), "n_references": len(known), "from_all": None, "from_own": None}
    if not asked or len(known) < K:
        return figures
    items = [space.queries.items[number] for number in asked]
    own, _ = nearest(queries[asked], references[known], None)
    from_all = precision_by_level(items, space.references.items, rows[asked])
    from_own = precision_by_level(items, [space.references.items[number] for number in known], own)
    return figures | {"from_all": from_all["class"]["macro"], "from_own": from_own["class"]["macro"]}


def _visual(
    run: Run, space: Space, rows: NDArray[np.int64], places: NDArray[np.float32], attributes: Path
) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    found, random = attribute_shares(space.queries.items, space.references.items, rows, attributes)
    if len(found):
        chance = float(random.mean())
        # the bootstrap of the ratio, with the same queries above and below the line
        way = bootstrap((found - random) / (EXPERTS - chance))
        figures["attribute_agreement_at_8"] = {
            "references": bootstrap(found).to_json(),
            "random_same_class": bootstrap(random).to_json(),
            "share_of_the_way": way.to_json(),
        }
    items = space.queries.items
    try:
        drawn = attribute_triplets(items, load_attributes(attributes), per_draw=min(1000, len(items)), seed=1)
    except ValueError:  # too few cells with attributes
        return figures
    figures["svomen"] = score(drawn, Latents(items, places, run.config.name))
    return figures


def map_references(
    trained: Any, queries: NDArray[np.float32], references: NDArray[np.float32], k: int = K
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float32]]:
    """References by a map as the thesis chose them (section 4.6): those of the query's node by their quantisation
    error, then those of the nearest nodes. Rows int64[n, k], distances on the map float64[n, k] (nodes), places of the
    queries float32[n, 2]."""
    from labref.som import winners

    columns = np.shape(trained.get_weights())[1]
    nodes, errors = winners(trained, references)
    asked, _ = winners(trained, queries)
    places = np.stack([asked // columns, asked % columns], axis=1)
    known = np.stack([nodes // columns, nodes % columns], axis=1)
    rows = np.empty((len(queries), k), dtype=np.int64)
    away = np.empty((len(queries), k))
    for number, place in enumerate(places):
        squares = ((known - place) ** 2).sum(axis=1)
        rows[number] = np.lexsort((errors, squares))[:k]
        away[number] = np.sqrt(squares[rows[number]])
    return rows, away, places.astype(np.float32)


def rotmes(run: Run, space: Space, encoder: Any, progress: Progress, per_class: int = 100) -> dict[str, Any]:
    """ROTMES (the thesis' section 4.7) on up to `per_class` held-out images of each class, in the latents and at the
    break.

    JSON: `n`; for `latents` and `features`: `rotmes` (mean squared error between an image and its turn and two flips),
    the same `per_random_pair` (divided by that between random cells, so that models compare) and `by_change`; and
    `overlap_at_8` {change: of the eight references stay}.
    """
    require_pictures(run.data)
    rows = _sample(space.queries.items, per_class)
    classifier = keras.models.load_model(run.folder / "classifier.keras", compile=False)
    model = build_feature_model(classifier, run.config.orientations)
    step = forward(model)
    size = run.config.classifier.input_size
    plain = space.queries.features[rows].astype(np.float32)
    straight = encode(encoder, plain)
    known = encode(encoder, space.references.features)
    eight, _ = nearest(straight, known, None)
    scale = {"latents": _pairs(straight), "features": _pairs(plain.reshape(len(plain), -1))}
    errors: dict[str, dict[str, NDArray[np.float64]]] = {"latents": {}, "features": {}}
    overlap = {}
    task = progress.add_task("ROTMES", total=len(CHANGES) * len(rows), info="")
    for name, change in CHANGES.items():
        changed = np.empty_like(plain)
        for start in range(0, len(rows), _BLOCK):
            part = slice(start, start + _BLOCK)
            crops = _changed(run.data, [space.queries.items[row] for row in rows[part]], change, size)
            changed[part] = step(crops)
            progress.update(task, advance=len(crops), info=name)
        latents = encode(encoder, changed)
        errors["latents"][name] = ((latents - straight) ** 2).mean(axis=1).astype(np.float64)
        errors["features"][name] = ((changed - plain) ** 2).reshape(len(plain), -1).mean(axis=1).astype(np.float64)
        again, _ = nearest(latents, known, None)
        stay = [len(np.intersect1d(a, b)) for a, b in zip(eight, again, strict=True)]
        overlap[name] = bootstrap(stay).to_json()
    figures: dict[str, Any] = {"n": len(rows), "overlap_at_8": overlap}
    for where, by_change in errors.items():
        mean = np.mean([by_change[name] for name in _ROTMES], axis=0)
        figures[where] = {
            "rotmes": bootstrap(mean).to_json(),
            "per_random_pair": bootstrap(mean / scale[where]).to_json(),
            "by_change": {name: bootstrap(values / scale[where]).to_json() for name, values in by_change.items()},
        }
    return figures


def _sample(items: Sequence[Item], per_class: int) -> NDArray[np.int64]:
    rng = np.random.default_rng(1)
    labels = np.array([item.label for item in items])
    chosen = [rng.permutation(np.flatnonzero(labels == label))[:per_class] for label in sorted(set(labels.tolist()))]
    return np.sort(np.concatenate(chosen))


def _pairs(values: NDArray[np.float32]) -> float:
    """Mean squared error between random pairs of different rows."""
    rng = np.random.default_rng(1)
    pairs = rng.integers(0, len(values), (2, 4000))
    pairs = pairs[:, pairs[0] != pairs[1]]
    total = [float(((values[a] - values[b]) ** 2).mean()) for a, b in pairs.T]
    return max(float(np.mean(total)), 1e-30) if total else 1.0


def _changed(data: Path, items: Sequence[Item], change: Change, size: int) -> NDArray[np.uint8]:
    def one(item: Item) -> NDArray[np.uint8]:
        try:
            return resize_crop(prepare_pixels(change(decode((data / item.path).read_bytes()))).crop, size)
        except UnreadableImageError as error:
            raise RunError(f"{data / item.path} could be read when the run began and cannot now: {error}") from None

    with ThreadPoolExecutor(max_workers=usable_cpus()) as pool:
        return np.stack(list(pool.map(one, items)))
