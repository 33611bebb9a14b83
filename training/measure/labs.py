"""Leave one lab out: networks are trained on a pool without one lab, and asked about its cells as that lab would ask;
and what a bundle that exists does in each lab of a pool.

A lab is judged by its own store: each of its cells is a question, left out in turn, and the others are its references.
A pool has one picture of each physical cell, so cells are counted and not pictures.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress

from labref.asking.novelty import by_threshold
from labref.bundles.inference import Embedder
from labref.words import name_key
from training.config import RunConfig, override
from training.data.classes import common_name
from training.data.images import Item
from training.data.pool import Pool, is_pool
from training.measure.evaluate import digest_of_all, nearest
from training.measure.statistics import bootstrap, bootstrap_of_seeds
from training.measure.sweep import size_of
from training.measure.unseen import FOLDER, LEAST, LIMIT, VARIANTS, Asked, ask, configs_of, sample
from training.run import Run, RunError, read_arrays, read_json, write_json

__all__ = ["Lab", "evaluate_labs", "labs_of", "leave_labs_out", "results"]

_LABS: Final = "labs"
_STATE: Final = "state.json"
_FIGURES: Final = "figures.json"
_CELLS: Final = "cells.npz"
_AT_ONCE: Final = 4096
_DOMAIN: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{8}")
_PER_CELL: Final = ("own", "central", "right")
_OF_STATE: Final = ("command", "size", "settings", "limit", "not_judged")
_OF_ROW: Final = ("variant", "what", "left", "seed", "queries", "classes", "not_trained_on")


@dataclass(frozen=True)
class Lab:
    """A lab of a pool. id : of its key.  domains : one for each of its optics.  items : its cells that count."""

    id: str
    domains: tuple[str, ...]
    items: tuple[Item, ...]

    @property
    def short(self) -> str:
        """What its domains begin with."""
        return self.id[:8]

    @property
    def labels(self) -> tuple[str, ...]:
        """Its classes."""
        return tuple(sorted({item.label for item in self.items}))


def labs_of(folder: Path, aliases: Mapping[str, str] | None = None) -> dict[str, Lab]:
    """The labs of a pool by id, with their cells as training names them. Raises `PackError` where it cannot be read,
    and `RunError` where it is no pool."""
    if not is_pool(folder):
        raise RunError(f"{folder} is no pool of labs' packs; `python -m training ingest PACK --into POOL` makes one")
    found: dict[str, list[Item]] = {}
    for path, cell in sorted(Pool.open(folder).cells.items()):
        found.setdefault(cell.lab, []).append(Item(path, (aliases or {}).get(cell.label, cell.label)))
    return {
        lab: Lab(lab, tuple(sorted({item.path.split("/", 1)[0] for item in items})), tuple(items))
        for lab, items in sorted(found.items())
    }


def _why_not(lab: Lab) -> str | None:
    """Why a lab cannot be judged; None where it can."""
    if len(lab.items) < LEAST:
        return f"it has {len(lab.items)} cells that count, and at least {LEAST} are needed"
    if len(lab.labels) == 1:
        return f"all its cells are called {lab.labels[0]}: whatever networks do, all its references are right"
    return None


def _why_not_without(lab: Lab, labs: Mapping[str, Lab]) -> str | None:
    """Why networks cannot be trained without a lab; None where they can."""
    rest = {label for other in labs.values() if other.id != lab.id for label in other.labels}
    if len(rest) < 2:
        return f"without it there are cells of {len(rest)} class to train on, and a classifier needs two"
    return None


# a lab is left out


def leave_labs_out(
    run: Run,
    left: Sequence[str],
    variants: Sequence[str],
    seeds: int,
    settings: Sequence[str],
    progress: Progress,
    *,
    limit: int = LIMIT,
) -> dict[str, Any]:
    """For each variant, lab and seed: train on all other labs of the run's pool and ask about the cells of this one.
    Returns `results`.

    left : ids of labs, or their beginnings; none for every lab.  seeds : so many trainings of each, from the run's seed
    on.  limit : at most so many cells of each class and optics are asked about. Rows lie in `RUN/unseen/labs/` and are
    kept, so the same call goes on after a stop.

    Raises ValueError for an unknown variant or setting and `RunError` where the pool has one lab only, a named lab
    cannot be judged, or rows are of other settings or of other cells, all before anything is trained.
    """
    labs = labs_of(run.data, run.config.aliases)
    configs = configs_of(run.config, variants, settings)
    if len(labs) < 2:
        raise RunError(
            f"{run.data} has cells of {len(labs)} lab, and of two at least one can be left out: take in packs of another"
        )
    why = {lab.id: _why_not(lab) or _why_not_without(lab, labs) for lab in labs.values()}
    chosen = [_named(labs, name) for name in left] or list(labs)
    if left and (wrong := next((lab for lab in chosen if why[lab] is not None), None)):
        raise RunError(f"the lab {wrong} cannot be judged: {why[wrong]}")
    judged = [lab for lab in dict.fromkeys(chosen) if why[lab] is None]
    if not judged:
        raise RunError(
            f"no lab of {run.data} can be judged: " + "; ".join(f"{lab}: {text}" for lab, text in why.items())
        )
    folder = run.folder / FOLDER / _LABS
    command = [
        "python",
        "-m",
        "training",
        "unseen",
        str(run.folder),
        "--labs",
        "--seeds",
        str(seeds),
        "--limit",
        str(limit),
    ]
    command += [part for name in left for part in ("--leave", name)]
    command += [part for variant in variants for part in ("--variant", variant)]
    command += [part for setting in settings for part in ("--set", setting)]
    size = size_of(next(iter(configs.values())))
    _begin(
        folder,
        labs,
        list(settings),
        limit,
        {"command": shlex.join(command), "size": size, "not_judged": {k: v for k, v in why.items() if v}},
    )
    wanted = [(variant, labs[lab], run.config.seed + n) for n in range(seeds) for variant in variants for lab in judged]
    task = progress.add_task("labs left out", total=len(wanted), info="")
    for variant, lab, seed in wanted:
        progress.update(task, info=f"{variant}, {lab.short}")
        if not (folder / _name(variant, lab, seed) / _FIGURES).exists():
            _row(run, folder, configs[variant], variant, lab, labs, seed, limit, progress)
        progress.update(task, advance=1)
    found = results(run)
    assert found is not None
    return found


def _named(labs: Mapping[str, Lab], name: str) -> str:
    fitting = [lab for lab in labs if lab.startswith(name.strip().lower())] if name.strip() else []
    if len(fitting) != 1:
        told = "several labs begin" if fitting else "no lab of the pool begins"
        raise RunError(f"{told} with {name!r}; there are {', '.join(labs)}")
    return fitting[0]


def _name(variant: str, lab: Lab, seed: int) -> str:
    return f"{variant}-{lab.short}-{seed}"


def _begin(folder: Path, labs: Mapping[str, Lab], settings: Sequence[str], limit: int, told: Mapping[str, Any]) -> None:
    """Write down what the rows are of. Raises `RunError` where those that are there are of something else."""
    cells = digest_of_all([f"{item.path} {item.label}" for lab in labs.values() for item in lab.items])
    state: dict[str, Any] = {"cells": cells, "settings": list(settings), "limit": limit}
    before = read_json(folder / _STATE, (), f"Delete {folder} to judge anew.")
    for key, what in (("cells", "other cells of the pool"), ("settings", "other settings"), ("limit", "another limit")):
        if before.get(key, state[key]) != state[key]:
            raise RunError(
                f"{folder} holds rows of {what}: they do not compare. Delete that folder to judge anew, or give the same command"
                f"{'' if key == 'cells' else ': ' + str(before.get('command'))}"
            )
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / _STATE, {**state, **told})


def _row(
    run: Run,
    folder: Path,
    config: RunConfig,
    variant: str,
    lab: Lab,
    labs: Mapping[str, Lab],
    seed: int,
    limit: int,
    progress: Progress,
) -> None:
    """Train without a lab, and write what its cells got: `cells.npz`, and then `figures.json`, which says that the row
    is done."""
    how = VARIANTS[variant]
    others = [other for other in labs.values() if other.id != lab.id]
    domains = sorted(domain for other in others for domain in other.domains)
    config = override(config, [f"domains={json.dumps(domains)}", "classifier.initial=", f"seed={seed}"])
    if how.adapted and config.classifier.normalisation != "batch":
        progress.console.print("left out: the networks have no batch normalisation to adapt")
        return
    progress.console.print(f"{variant}, without the lab {lab.id}, seed {seed}: {how.what}")
    place = folder / _name(variant, lab, seed)
    trained = Run.create(folder / _name("run", lab, seed) if how.adapted else place, run.data, config)
    asked = ask(trained, lab.domains, how.adapted, progress, limit=limit)
    place.mkdir(parents=True, exist_ok=True)
    _keep(place / _CELLS, asked)
    known = set(trained.split.labels)
    write_json(
        place / _FIGURES,
        {
            "variant": variant,
            "what": how.what,
            "left": lab.id,
            "domains": list(lab.domains),
            "seed": seed,
            "trained_on": [other.id for other in others],
            "split": trained.split.digest,
            "central": asked.trained_on,
            "queries": len(asked.items),
            "digest": digest_of_all(asked.digests),
            "classes": dict(asked.classes),
            "not_trained_on": [label for label in asked.classes if label not in known],
            "size": size_of(config),
        },
    )
    shutil.rmtree(trained.folder / "features", ignore_errors=True)  # of each row anew: 25 kB a cell and view


def _keep(file: Path, asked: Asked) -> None:
    part = file.with_name("cells.part.npz")
    np.savez_compressed(
        part,
        path=np.array([item.path for item in asked.items]),
        label=np.array([item.label for item in asked.items]),
        own=asked.own,
        central=asked.central,
        right=asked.right.astype(np.float64),
    )
    os.replace(part, file)


def results(run: Run) -> dict[str, Any] | None:
    """What is done of the labs that were left out; None where nothing was begun.

    JSON: `command`, `size`, `settings`, `limit`; `rows` [{`variant`, `left` (the lab), `seed`, `trained_on`,
    `domains`, `queries`, `central`, `classes` {name: cells}, `not_trained_on`, `digest`, `split`}]; `labs` [{`variant`,
    `what`, `left`, `seeds`, `queries`, `own_store`, `central_store` {`micro`, `macro`, `by_class`, `by_optics`
    {domain: {`micro`, `macro`}}}, `won`, `accuracy`, `not_trained_on`}]; `means` [{`variant`, `labs`, `own_store`,
    `central_store`, `won`, `accuracy`}], over the cells of each lab and then over labs, each alike; `not_judged`
    {lab: why}. Estimates are over cells, and over seeds too where there are several.
    """
    folder = run.folder / FOLDER / _LABS
    state = read_json(folder / _STATE, _OF_STATE, f"Delete {folder} to judge anew.")
    if not state:
        return None
    files = sorted(folder.glob(f"*/{_FIGURES}"))
    done = [read_json(file, _OF_ROW, _asked_anew(file)) | {"file": file} for file in files]
    if strange := next((row for row in done if row["variant"] not in VARIANTS), None):
        raise RunError(f"{strange['file']} is of a variant that this labref does not know: {strange['variant']!r}.")
    done.sort(key=lambda row: (row["left"], [*VARIANTS].index(row["variant"]), row["seed"]))
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in done:
        groups.setdefault((row["variant"], row["left"]), []).append(row)
    cells = {key: _cells(rows) for key, rows in groups.items()}
    variants = [variant for variant in VARIANTS if any(key[0] == variant for key in groups)]
    return {
        **{key: state[key] for key in _OF_STATE},
        "rows": [{key: value for key, value in row.items() if key != "file"} for row in done],
        "labs": [_of_lab(rows, cells[key]) for key, rows in groups.items()],
        "means": [_mean(variant, [found for key, found in cells.items() if key[0] == variant]) for variant in variants],
    }


def _asked_anew(figures: Path) -> str:
    return f"Delete {figures}, and give the command of these rows again: it asks anew what was asked there, and trains nothing."


def _cells(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of one lab and variant: `path`, `label` and `optics` str[n]; `own`, `central`, `right` float64[seeds, n]."""
    parts = []
    for row in rows:
        parts.append(
            read_arrays(row["file"].with_name(_CELLS), ("path", "label", *_PER_CELL), _asked_anew(row["file"]))
        )
    if any(part["path"].tolist() != parts[0]["path"].tolist() for part in parts):
        raise RunError(f"{rows[0]['file'].parent.parent} holds rows of different cells: delete it, and judge anew")
    stacked = {key: np.stack([part[key] for part in parts]) for key in _PER_CELL}
    optics = np.array([path.split("/", 1)[0] for path in parts[0]["path"].tolist()])
    return {"label": parts[0]["label"], "optics": optics, "often": _often(rows[0]["classes"])} | stacked


def _often(classes: Mapping[str, int]) -> frozenset[str]:
    return frozenset(name for name, n in classes.items() if n >= LEAST)


def figures(
    values: NDArray[np.float64], labels: NDArray[np.str_], optics: NDArray[np.str_], often: frozenset[str]
) -> dict[str, Any]:
    """Estimates of cells: `micro` over cells, `macro` over the classes in `often`, None without any; `by_class` {name:
    estimate}; `by_optics` {domain: {`micro`, `macro`}}.

    values : float64[s, n], of each seed and cell.  labels, optics : str[n].  often : classes of at least 9 cells.
    """

    def over(rows: NDArray[np.bool_]) -> dict[str, Any]:
        counted = rows & np.isin(labels, sorted(often))
        return {
            "micro": bootstrap_of_seeds(values[:, rows]).to_json(),
            "macro": bootstrap_of_seeds(values[:, counted], strata=labels[counted].tolist()).to_json()
            if counted.any()
            else None,
        }

    return over(np.ones(len(labels), np.bool_)) | {
        "by_class": {
            name: bootstrap_of_seeds(values[:, labels == name]).to_json() for name in sorted(set(labels.tolist()))
        },
        "by_optics": {name: over(optics == name) for name in sorted(set(optics.tolist()))},
    }


def _of_lab(rows: Sequence[Mapping[str, Any]], cells: Mapping[str, Any]) -> dict[str, Any]:
    first = rows[0]
    told = (cells["label"], cells["optics"], cells["often"])
    return {
        **{key: first[key] for key in ("variant", "what", "left", "queries", "classes", "not_trained_on")},
        "seeds": [row["seed"] for row in rows],
        "own_store": figures(cells["own"], *told),
        "central_store": figures(cells["central"], *told),
        "won": bootstrap_of_seeds(cells["own"] - cells["central"]).to_json(),
        "accuracy": bootstrap_of_seeds(cells["right"]).to_json(),
    }


def _mean(variant: str, labs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Over the cells of each lab, the mean over seeds, and then over labs, each alike: the cells of each are
    resampled."""
    names = [number for number, lab in enumerate(labs) for _ in lab["label"]]

    def over(of: Callable[[Mapping[str, Any]], NDArray[np.float64]]) -> dict[str, Any]:
        return bootstrap(np.concatenate([of(lab).mean(axis=0) for lab in labs]), strata=names).to_json()

    return {
        "variant": variant,
        "labs": len(labs),
        "own_store": over(lambda lab: lab["own"]),
        "central_store": over(lambda lab: lab["central"]),
        "won": over(lambda lab: lab["own"] - lab["central"]),
        "accuracy": over(lambda lab: lab["right"]),
    }


# a bundle that exists


def evaluate_labs(
    embedder: Embedder,
    folder: Path,
    *,
    limit: int = LIMIT,
    step: Callable[[str, int], Callable[[int], None]] = lambda _name, _total: lambda _done: None,
) -> dict[str, Any]:
    """Judge the bundle in `embedder` on each lab of a pool, by the code that a lab runs. No lab is left out.

    limit : at most so many cells of each class and optics are asked about; references are all.  step : as in
    `training.measure.evaluate.evaluate`.

    JSON: `bundle`, `model_version`, `provider`; `labs` [{`lab`, `trained_on` (whether cells of it were in the bundle's
    training; null where it does not say), `queries`, `references`, `classes`, `own_store` {`micro`, `macro`,
    `by_class`, `by_optics`}, `accuracy` (of the classes that the bundle has; null without any), `novel`}];
    `mean` {`micro`, `labs` (how many)} over labs, each alike; `not_judged` {lab: why}; `left_out`: false. Raises
    `RunError` where no lab can be judged.
    """
    labs = labs_of(folder)
    why = {lab.id: text for lab in labs.values() if (text := _why_not(lab)) is not None}
    judged = [lab for lab in labs.values() if lab.id not in why]
    if not judged:
        told = "; ".join(f"{lab}: {text}" for lab, text in why.items()) or "it has no cells that count"
        raise RunError(f"no lab of {folder} can be judged: {told}")
    pool, rows, hits = Pool.open(folder), [], []
    trained = _trained_on(embedder)
    for lab in judged:
        found, own = _in_lab(embedder, pool, lab, limit, step(f"lab {lab.short}", len(lab.items)))
        rows.append(
            {"lab": lab.id, "trained_on": None if trained is None else not trained.isdisjoint(lab.domains)} | found
        )
        hits.append(own)
    names = [number for number, own in enumerate(hits) for _ in own]
    return {
        "bundle": embedder.bundle.digest,
        "model_version": embedder.bundle.manifest.version,
        "provider": embedder.provider,
        "pool": folder.name,
        "limit": limit,
        "left_out": False,
        "labs": rows,
        "mean": {"micro": bootstrap(np.concatenate(hits), strata=names).to_json(), "labs": len(rows)},
        "not_judged": why,
    }


def _trained_on(embedder: Embedder) -> set[str] | None:
    """The domains of labs that a bundle says it was trained on; None where it names none, or folders of pictures, which
    may hold the cells of any lab."""
    config = embedder.bundle.manifest.training.get("config")
    domains = config.get("domains") if isinstance(config, Mapping) else None
    named = {str(name) for name in domains or ()}
    return named if named and all(map(_DOMAIN.fullmatch, named)) else None


def _in_lab(
    embedder: Embedder, pool: Pool, lab: Lab, limit: int, advance: Callable[[int], None]
) -> tuple[dict[str, Any], NDArray[np.float64]]:
    manifest = embedder.bundle.manifest
    place = {item.path: row for row, item in enumerate(lab.items)}
    latents = np.empty((len(lab.items), manifest.latent_size), np.float32)
    probabilities = np.empty((len(lab.items), len(manifest.labels)), np.float32)
    paths = sorted(place)
    for start in range(0, len(paths), _AT_ONCE):
        cells = pool.prepared(paths[start : start + _AT_ONCE])
        while batch := list(islice(cells, 4 * embedder.batch_size)):
            made = embedder.embed(np.stack([cell.crop for _, cell in batch]))
            rows = [place[path] for path, _ in batch]
            latents[rows], probabilities[rows] = made.latents, made.probabilities
            advance(len(rows))
    asked = sample(lab.items, limit)
    labels = np.array([item.label for item in lab.items])
    optics = np.array([item.path.split("/", 1)[0] for item in lab.items])
    near, away = nearest(latents[asked], latents, [np.array([row], np.int64) for row in asked])
    own = (labels[near] == labels[asked, None]).mean(axis=1)
    classes = {name: int((labels == name).sum()) for name in lab.labels}
    known = {name_key(common_name(name)): number for number, name in enumerate(manifest.labels)}
    wanted = np.array([known.get(name_key(common_name(name)), -1) for name in labels[asked].tolist()])
    right = probabilities[asked].argmax(axis=1) == wanted
    novelty = manifest.novelty
    novel = [by_threshold(one, novelty.threshold).is_novel for one in away[:, : novelty.k].tolist()]
    return {
        "queries": len(asked),
        "references": len(labels),
        "classes": classes,
        "own_store": figures(own[None], labels[asked], optics[asked], _often(classes)),
        "accuracy": bootstrap(right[wanted >= 0]).to_json() if (wanted >= 0).any() else None,
        "novel": bootstrap(novel).to_json(),
    }, own
