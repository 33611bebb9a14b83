"""Cross-validation: settings are chosen on the cells that a run trains on. The held-out cells then judge the choice,
and take no part in it."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress

from labref.cells.hashes import digest
from training.config import RunConfig, override
from training.data.images import Item, Split, load_attributes, name_fraction
from training.measure.statistics import bootstrap
from training.measure.sweep import size_of
from training.run import Run, RunError, read_arrays, read_json, write_json

__all__ = ["FOLDER", "RUN", "cross_validate", "fold_of", "results"]

FOLDER = "folds"
RUN = "run"
"""The row with the run's own settings, which the other rows are compared with."""
_NOT_HERE = ("holdout", "validation", "domains", "aliases", "classifier.initial")


def fold_of(item: Item, folds: int) -> int:
    """The number of the fold, of `folds`, that an image is in. It depends on the file's name alone, as the split
    does."""
    return int(name_fraction(item.path.rsplit("/", 1)[-1], "labref-fold") * folds)


def cross_validate(
    run: Run, folds: int, tries: Sequence[str], settings: Sequence[str], attributes: Path | None, progress: Progress
) -> dict[str, Any]:
    """Cross-validate the run's settings and each of `tries`: for each fold, train on all other folds and measure on
    this one. Returns `results`.

    The folds divide the run's training and validation parts; the held-out part is not used. tries : settings that
    replace the run's, several in one text separated by spaces, as "vae.beta=1 vae.class_weight=20". Tries that change
    only the VAE share one classifier in each fold; others train their own. Finished rows are kept in
    `RUN/folds/<folds>/`, so the same call continues after a stop. Raises ValueError for an unknown setting, and
    `RunError` where a fold would be empty, or where rows with other settings are there.
    """
    for text in (*settings, *tries):
        for setting in text.split():
            if setting.partition("=")[0] in _NOT_HERE:
                raise ValueError(
                    f"{setting}: cross-validation cannot change which cells the folds have, or from which network it starts"
                )
    base = override(replace(run.config, classifier=replace(run.config.classifier, initial="")), [*settings])
    rows = {RUN: base} | {text: override(base, text.split()) for text in tries}
    if attributes is not None:
        load_attributes(attributes)
    items = (*run.split.train, *run.split.validation)
    file = run.folder / FOLDER / str(folds) / "folds.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    known = _read(file)
    told = {"settings": [*settings], "attributes": None if attributes is None else digest(attributes.read_bytes())}
    for key, value in told.items():
        if known.get(key, value) != value:
            raise RunError(
                f"{file.parent} holds rows with other {key}, {known[key] or 'none'}; say the same, or take another number of folds"
            )
    names = list(dict.fromkeys([*known.get("rows", []), *rows]))
    command = ["python", "-m", "training", "folds", str(run.folder), "--folds", str(folds)]
    command += [part for text in names if text != RUN for part in ("--try", text)]
    command += [part for setting in settings for part in ("--set", setting)]
    write_json(
        file,
        {
            "folds": folds,
            "rows": names,
            "size": size_of(base),
            "split": run.split.digest,
            "command": shlex.join(command),
        }
        | told,
    )
    task = progress.add_task("folds", total=folds * len(rows), info="")
    for number in range(folds):
        asked = tuple(item for item in items if fold_of(item, folds) == number)
        rest = [item for item in items if fold_of(item, folds) != number]
        if not asked or not rest:
            raise RunError(f"{len(items)} images do not fill {folds} folds; take fewer")
        checked = [name_fraction(i.path.rsplit("/", 1)[-1], "labref-validation") < base.validation for i in rest]
        train, validation = (
            tuple(i for i, c in zip(rest, checked, strict=True) if c is kept) for kept in (False, True)
        )
        split = Split(train, validation, asked, tuple(sorted({item.label for item in items})))
        whole = run.folder / FOLDER / str(folds) / str(number)
        for name, config in rows.items():
            folder = whole / "rows" / _slug(name)
            if not (folder / "cells.npz").exists():
                progress.console.print(f"fold {number + 1} of {folds}, {name}")
                _one(run, whole, folder, split, base, config, attributes, progress)
            progress.update(task, advance=1, info=name)
        # every fold has its own crops and features of all cells; they are deleted, and the next row makes them again
        for left in (
            file.parent / "cache",
            whole / "features",
            whole / "rows" / "cache",
            *whole.glob("rows/*/features"),
        ):
            shutil.rmtree(left, ignore_errors=True)
    (found,) = (one for one in results(run) if one["folds"] == folds)
    return found


def _slug(name: str) -> str:
    """A short folder name for a row; it is unique on any file system."""
    return f"{re.sub(r'[^a-z0-9.=-]+', '_', name.lower())[:40]}-{digest(name.encode())[:8]}"


def _read(file: Path) -> dict[str, Any]:
    return read_json(file, ("folds", "rows", "settings", "attributes"), f"Delete {file.parent} to begin anew.")


def _one(
    run: Run,
    whole: Path,
    folder: Path,
    split: Split,
    base: RunConfig,
    config: RunConfig,
    attributes: Path | None,
    progress: Progress,
) -> None:
    """Measure one row of one fold, and write `cells.npz`. For each cell of the fold it holds `path`, `label`, `hits`
    (share of the eight references that have its class), `found` and `random` (share of attributes in common with the
    eight references, and with a random cell of its class; NaN where unknown), and `right` (whether the classifier
    predicts its class)."""
    import keras

    from training.measure.evaluate import attributes_of_each, nearest
    from training.measure.space import Space, encode
    from training.networks.classifier import predict, train_classifier
    from training.networks.vae import train_vae
    from training.run import load_part

    shared = replace(config, vae=base.vae) == base
    views = (config.vae.views, config.vae.optics_views) == (base.vae.views, base.vae.optics_views)
    if shared and views:
        trained = Run.create(whole, run.data, base, split)
    else:
        trained = Run.create(folder, run.data, config, split)
        if shared and not (folder / "classifier.keras").exists():
            shutil.copy(whole / "classifier.keras", folder)  # the first row, the run's own, has trained it
    train_classifier(trained, progress)
    space = Space.of(trained, progress)
    folder.mkdir(parents=True, exist_ok=True)
    encoder = keras.models.load_model(train_vae(trained, progress, config.vae, folder / "encoder.keras"), compile=False)
    asked, known = (encode(encoder, cells.features) for cells in (space.queries, space.references))
    near, _ = nearest(asked, known, None)
    own, labels = (np.array([item.label for item in cells.items]) for cells in (space.queries, space.references))
    found = random = np.full(len(own), np.nan)
    if attributes is not None:
        found, random = attributes_of_each(space.queries.items, space.references.items, near, attributes)
    classifier = keras.models.load_model(trained.folder / "classifier.keras", compile=False)
    crops, rows, targets = load_part(trained, "holdout")
    right = predict(classifier, crops, rows).argmax(axis=1) == targets[rows]
    hits = (labels[near] == own[:, None]).mean(axis=1)
    temporary = folder / "cells.part.npz"
    paths = np.array([item.path for item in space.queries.items])
    np.savez_compressed(temporary, path=paths, label=own, hits=hits, found=found, random=random, right=right)
    temporary.replace(folder / "cells.npz")


def results(run: Run) -> list[dict[str, Any]]:
    """The finished rows, one entry for each number of folds.

    JSON of an entry: `folds`, `size`, `split` (the split whose training and validation parts the folds divide),
    `command`, and `rows` [{`row`, `cells`, `done` (number of finished folds), `precision_at_8` {`macro`, `micro`},
    `share_of_the_way`, `accuracy`, `won` {`micro`, `share_of_the_way`}}]. `won` is the difference from the run's own
    settings over the same cells. Estimates are pooled over the cells of all folds.
    """
    found = []
    files = [file for file in run.folder.glob(f"{FOLDER}/*/folds.json") if file.parent.name.isdigit()]
    for file in sorted(files, key=lambda path: int(path.parent.name)):
        told = _read(file)
        cells = {name: _cells(file.parent, name, told["folds"]) for name in told["rows"]}
        if cells[RUN]:
            found.append(told | {"rows": [_row(name, cells) for name in told["rows"] if cells[name]]})
    return found


def _cells(folder: Path, name: str, folds: int) -> dict[str, Any]:
    files = [folder / str(number) / "rows" / _slug(name) / "cells.npz" for number in range(folds)]
    files = [file for file in files if file.exists()]
    parts = []
    for file in files:
        again = "Delete it, and give the command of these folds again: it measures that row of that fold anew."
        parts.append(read_arrays(file, ("path", "label", "hits", "found", "random", "right"), again))
    if not parts:
        return {}
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]} | {"done": len(parts)}


def _row(name: str, cells: dict[str, dict[str, Any]]) -> dict[str, Any]:
    mine, base = cells[name], cells[RUN]
    won: dict[str, Any] = {}
    if name != RUN:
        _, here, there = np.intersect1d(mine["path"], base["path"], assume_unique=True, return_indices=True)
        both = {key: values[here] for key, values in mine.items() if key != "done"}
        won = {
            "micro": bootstrap(both["hits"] - base["hits"][there]).to_json(),
            "share_of_the_way": _way(both, base["found"][there]),
        }
    return {
        "row": name,
        "cells": len(mine["hits"]),
        "done": mine["done"],
        "precision_at_8": {
            "macro": bootstrap(mine["hits"], strata=mine["label"].tolist()).to_json(),
            "micro": bootstrap(mine["hits"]).to_json(),
        },
        "share_of_the_way": _way(mine, mine["random"]),
        "accuracy": bootstrap(mine["right"]).to_json(),
        "won": won,
    }


def _way(cells: dict[str, Any], against: NDArray[np.float64]) -> dict[str, Any] | None:
    """Share of attributes in common with the eight references, minus `against`, scaled so that random cells of the
    class have 0 and two experts have 1."""
    from training.measure.space import EXPERTS

    measured = np.isfinite(cells["found"]) & np.isfinite(against)
    if not measured.any():
        return None
    chance = float(cells["random"][measured].mean())
    return bootstrap((cells["found"] - against)[measured] / (EXPERTS - chance)).to_json()
