"""Leave-one-optics-out: networks are trained on all domains except one, and measured on the cells of that domain."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress

from labref.cells.hashes import digest
from training.config import RunConfig, override
from training.data.images import Item, batches, cache_crops, list_images, name_fraction, read_bytes
from training.measure.statistics import bootstrap
from training.measure.sweep import size_of
from training.run import Run, RunError, load_part, read_json, write_json

__all__ = [
    "FOLDER",
    "LEAST",
    "LIMIT",
    "VARIANTS",
    "Asked",
    "Variant",
    "adapt",
    "ask",
    "configs_of",
    "leave_out",
    "results",
    "sample",
]

FOLDER = "unseen"
LEAST = 9
"""Cells of a class, so that eight others can be right."""
LIMIT = 500
"""Cells of each class and optics of a lab that are asked about, unless somebody wants more or fewer."""
_ASKED = "labref-asked"  # what the drawing of cells to ask about is named
_AT_ONCE = 4096  # pictures that are read together


@dataclass(frozen=True)
class Variant:
    """A variant of the run. what : a description for people.  settings : they replace the run's.  adapted : number of
    unlabelled cells of the left-out optics from which the batch normalisations of the run's own networks take new
    statistics; 0 for none."""

    what: str
    settings: tuple[str, ...] = ()
    adapted: int = 0


VARIANTS: dict[str, Variant] = {
    "run": Variant("the run's own settings, from scratch"),
    "adapted": Variant("the same networks, adapted to 100 unlabelled cells of that optics", adapted=100),
    "plain": Variant("no changes of optics in the augmentation", ("classifier.augmentation.optics_share=0",)),
    "group": Variant("group instead of batch normalisation", ("classifier.normalisation=group",)),
    "reversal": Variant("domain-adversarial: gradient reversal, weight 0.3", ("classifier.domain_weight=0.3",)),
}
"""The variants that are compared on left-out optics, by name."""


def leave_out(
    run: Run, left: Sequence[str], variants: Sequence[str], settings: Sequence[str], progress: Progress
) -> list[dict[str, Any]]:
    """For each variant and each domain of `left`: train on all other domains and measure on this one. Returns the
    figures of all finished rows.

    The domains are those of the run and those of `left`, folders among the run's images. Rows lie in
    `RUN/unseen/<variant>-<left>/` and are kept, so the same call goes on after a stop. Raises ValueError for an unknown
    variant or setting, before anything is trained, and `RunError` where no domain is left to train on or a folder holds
    no images.
    """
    domains = tuple(dict.fromkeys((*run.config.domains, *left)))
    configs = configs_of(run.config, variants, settings)
    for variant in variants:
        for domain in left:
            folder = run.folder / FOLDER / f"{variant}-{domain}"
            how = VARIANTS[variant]
            if (folder / "figures.json").exists():
                continue
            others = tuple(name for name in domains if name != domain)
            if not others:
                raise RunError(
                    f"{run.folder} has one domain only; name others with --leave, so that one can be left out"
                )
            progress.console.print(f"{variant}, without {domain}: {how.what}")
            config = override(configs[variant], [f"domains={json.dumps(others)}", "classifier.initial="])
            if how.adapted and config.classifier.normalisation != "batch":
                progress.console.print("left out: the networks have no batch normalisation to adapt")
                continue
            command = ["python", "-m", "training", "unseen", str(run.folder), "--variant", variant]
            command += [part for name in left for part in ("--leave", name)]
            command += [part for setting in settings for part in ("--set", setting)]
            networks = folder.with_name(f"run-{domain}") if how.adapted else folder
            figures = _one(Run.create(networks, run.data, config), (domain,), how.adapted, progress)
            folder.mkdir(parents=True, exist_ok=True)
            row = {"variant": variant, "what": how.what, "left": domain, "trained_on": list(others)}
            write_json(
                folder / "figures.json", row | {"size": size_of(config), "command": shlex.join(command)} | figures
            )
    return results(run)


def results(run: Run) -> list[dict[str, Any]]:
    """Figures of the rows that are done, by the domain left out and then in the order of `VARIANTS`."""
    files = sorted((run.folder / FOLDER).glob("*/figures.json"))
    again = "Delete it, and give `python -m training unseen` again: it measures anew, and trains nothing."
    rows = [
        read_json(file, ("variant", "left", "own_store", "central_store", "won", "accuracy"), again) for file in files
    ]
    rows = [row for row in rows if row["variant"] in VARIANTS]
    return sorted(rows, key=lambda row: (row["left"], [*VARIANTS].index(row["variant"])))


def configs_of(config: RunConfig, variants: Sequence[str], settings: Sequence[str]) -> dict[str, RunConfig]:
    """The settings of each variant of a run. Raises ValueError for an unknown variant or setting."""
    for variant in variants:
        if variant not in VARIANTS:
            raise ValueError(f"no variant {variant!r}; there are {', '.join(VARIANTS)}")
    return {variant: override(config, [*VARIANTS[variant].settings, *settings]) for variant in variants}


@dataclass(frozen=True)
class Asked:
    """Cells that networks never saw, asked about. items : n of those that can be read.  digests : of their bytes.
    own, central : float64[n], class precision@8 with references from their own store (leave-one-out, identical bytes
    left out) and from the cells trained on.  right : bool[n], whether the classifier gives their class.  trained_on :
    number of the cells trained on.  classes : cells of each class in the store."""

    items: tuple[Item, ...]
    digests: tuple[str, ...]
    own: NDArray[np.float64]
    central: NDArray[np.float64]
    right: NDArray[np.bool_]
    trained_on: int
    classes: Mapping[str, int]


def sample(items: Sequence[Item], limit: int | None) -> NDArray[np.int64]:
    """The rows of the items that are asked about: of each class and folder, or domain, at most `limit`, always the
    same; None for all."""
    if limit is None:
        return np.arange(len(items))
    taken: dict[tuple[str, str], int] = {}
    chosen = []
    for row in sorted(range(len(items)), key=lambda row: name_fraction(items[row].path.rsplit("/", 1)[-1], _ASKED)):
        key = items[row].label, items[row].path.split("/", 1)[0]
        taken[key] = taken.get(key, 0) + 1
        if taken[key] <= limit:
            chosen.append(row)
    return np.sort(np.array(chosen, np.int64))


def ask(run: Run, domains: Sequence[str], adapted: int, progress: Progress, *, limit: int | None = None) -> Asked:
    """Train the run to its end, and ask it about the cells of `domains`, none of which it trained on. adapted : as in
    `Variant`.  limit : as in `sample`; references are all. Raises `RunError` where there are too few cells to ask
    about."""
    import keras

    from training.measure.evaluate import nearest
    from training.measure.space import encode
    from training.networks.architecture import build_feature_model
    from training.networks.classifier import predict, train_classifier
    from training.networks.devices import forward
    from training.networks.vae import extract_features, train_vae

    train_classifier(run, progress)
    encoder = keras.models.load_model(train_vae(run, progress), compile=False)
    known = extract_features(run, "train", run.config.vae.views, progress)
    classifier = keras.models.load_model(run.folder / "classifier.keras", compile=False)
    items = list_images(run.data, domains, run.config.aliases)
    crops, good = cache_crops(run.data, items, run.config.classifier.input_size, run.cache, lambda _: None)
    rows = np.flatnonzero(good)
    items = [items[row] for row in rows]
    if len(items) < LEAST:
        raise RunError(
            f"{run.data}: {len(items)} readable images of {', '.join(domains)}, and at least {LEAST} are needed to ask about them"
        )
    if adapted:
        some = np.random.default_rng(run.config.seed).permutation(rows)[:adapted]
        adapt(classifier, crops[np.sort(some)].astype(np.float32))
    step = forward(build_feature_model(classifier, run.config.orientations))
    guesses = predict(classifier, crops, rows).argmax(axis=1)
    queries = encode(encoder, np.concatenate([step(crops[batch]) for batch in batches(rows, 64, seed=None)]))
    central = encode(encoder, known.views[:, 0])
    trained = run.split.part("train")
    labels = np.array([trained[row].label for row in load_part(run, "train")[1]])
    own = np.array([item.label for item in items])
    digests = [
        name
        for start in range(0, len(items), _AT_ONCE)
        for name in map(digest, read_bytes(run.data, items[start : start + _AT_ONCE]))
    ]
    places: dict[str, list[int]] = {}
    for row, name in enumerate(digests):
        places.setdefault(name, []).append(row)
    asked = sample(items, limit)
    near, _ = nearest(queries[asked], queries, [np.array(places[digests[row]], np.int64) for row in asked])
    far, _ = nearest(queries[asked], central, None)
    from_own, from_central = ((names == own[asked, None]).mean(axis=1) for names in (own[near], labels[far]))
    right = (np.array(run.split.labels)[guesses] == own)[asked]
    classes = {name: int((own == name).sum()) for name in sorted(set(own.tolist()))}
    chosen, names = tuple(items[row] for row in asked), tuple(digests[row] for row in asked)
    return Asked(chosen, names, from_own, from_central, right, len(central), classes)


def _one(run: Run, domains: Sequence[str], adapted: int, progress: Progress) -> dict[str, Any]:
    """JSON: `split` trained on, `queries` and `central` (how many cells), `digest` of the queries' bytes, `classes`
    {name: cells}; class precision@8 of the unseen optics' cells with references from the `own_store` (leave-one-out,
    identical bytes left out) and from the `central_store` (the cells trained on), each {`micro` over cells, `macro`
    over classes of at least 9 cells}; `won`: own minus central, over cells; and the classifier's `accuracy`."""
    from training.measure.evaluate import digest_of_all

    asked = ask(run, domains, adapted, progress)
    own = np.array([item.label for item in asked.items])
    return {
        "split": run.split.digest,
        "queries": len(asked.items),
        "central": asked.trained_on,
        "digest": digest_of_all(asked.digests),
        "classes": dict(asked.classes),
        "own_store": _both(asked.own, own),
        "central_store": _both(asked.central, own),
        "won": bootstrap(asked.own - asked.central).to_json(),
        "accuracy": bootstrap(asked.right).to_json(),
    }


def adapt(classifier: Any, crops: NDArray[np.float32]) -> None:
    """Take the mean and variance of every batch normalisation anew from crops float32[n, s, s, 3] of one optics,
    without their labels (AdaBN, Li et al., arXiv 1603.04779). Raises `RunError` where the network has no batch
    normalisation."""
    import keras

    found = [layer for layer in classifier.layers if isinstance(layer, keras.layers.BatchNormalization)]
    if not found:
        raise RunError(
            "the networks have no batch normalisation to adapt; leave `adapted` out, or set normalisation=batch"
        )
    before = [layer.momentum for layer in found]
    for layer in found:
        layer.momentum = 0.0
    classifier(crops, training=True)
    for layer, momentum in zip(found, before, strict=True):
        layer.momentum = momentum


def _both(hits: NDArray[Any], labels: NDArray[np.str_]) -> dict[str, Any]:
    names, counts = np.unique(labels, return_counts=True)
    often = np.isin(labels, names[counts >= LEAST])
    return {
        "micro": bootstrap(hits).to_json(),
        "macro": bootstrap(hits[often], strata=labels[often].tolist()).to_json() if often.any() else None,
        "per_class": {str(name): float(hits[labels == name].mean()) for name in names},
    }
