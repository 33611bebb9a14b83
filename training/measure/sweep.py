"""Sweeps: rows of one run that each change one thing. All rows have the same data, split and measurement, and each can
be resumed."""

from __future__ import annotations

import csv
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.progress import Progress

from training.config import Augmentation, RunConfig, override
from training.measure.statistics import share
from training.run import Run, read_json, write_json

__all__ = ["SWEEPS", "Row", "default_attributes", "read_history", "results", "run_sweep", "size_of"]

_PLAIN = {"gain": 0.0, "brightness": 0.0, "blur": 0.0}


@dataclass(frozen=True)
class Row:
    """One row of a sweep. name : of the row and of its folder.  what : a description for people.  settings : they
    replace the run's, as with `--set`.  network : True trains the whole network again, False only the VAE on the run's
    features.  pca : principal components instead of a VAE."""

    name: str
    what: str
    settings: tuple[str, ...] = ()
    network: bool = False
    pca: bool = False
    augmentation: Augmentation | None = field(default=None)

    def config(self, base: RunConfig, extra: Sequence[str]) -> RunConfig:
        """The row's whole configuration. Raises ValueError naming a setting that is none."""
        if self.augmentation is not None:
            base = replace(base, classifier=replace(base.classifier, augmentation=self.augmentation))
        return override(base, [*self.settings, *extra])


def _augmentations() -> tuple[Row, ...]:
    # both flips with ±90° reach the same orientations as one mirror with ±180°
    a = Augmentation(rotation_degrees=180, flip=True, shift=0.1, zoom=0.1, **_PLAIN)
    b = Augmentation(rotation_degrees=90, flip=False, shift=0.0, zoom=0.1, **_PLAIN)
    c = Augmentation(rotation_degrees=0, flip=False, shift=0.0, zoom=0.0, **_PLAIN)
    one = ("orientations=1",)
    return (
        Row("A", "zoom 0.1, rotation ±90°, both flips, shift 0.1", one, True, augmentation=a),
        Row("B", "zoom 0.1, rotation ±90°", one, True, augmentation=b),
        Row("C", "none", one, True, augmentation=c),
    )


_NO_HEADS = ("vae.class_weight=0", "vae.attribute_weight=0", "vae.neighbour_weight=0")

SWEEPS: dict[str, tuple[str, tuple[Row, ...]]] = {
    "augmentation": ("Augmentations A, B and C (tables 3, 6 and 7, figures 53 to 55)", _augmentations()),
    "latent": (
        "Size of the latent space (table 8)",
        tuple(Row(str(n), f"L = {n}", (f"vae.latent_size={n}",)) for n in (2, 10, 25, 50, 75, 100)),
    ),
    "models": (
        "Plain AE, β-VAE and PCA beside the VAE (section 4.4; future work)",
        (
            Row("run", "the run's own VAE, trained again"),
            Row("vae", "VAE without heads, as the thesis'", (*_NO_HEADS, "vae.beta=1")),
            Row("ae", "plain autoencoder: no KL term, no sampling, no heads", (*_NO_HEADS, "vae.beta=0")),
            Row("beta-4", "β-VAE without heads, β = 4", (*_NO_HEADS, "vae.beta=4")),
            Row("pca", "principal components of the flattened features", pca=True),
        ),
    ),
    "balance": (
        "Weights of classes against their imbalance",
        tuple(
            Row(how, what, (f"classifier.class_weights={how}",), True)
            for how, what in (
                ("none", "every image counts the same"),
                ("sqrt", "by the inverse square root of the class's size"),
                ("balanced", "every class counts the same"),
            )
        ),
    ),
}
"""Sweeps by name: title, and rows."""


def default_attributes(run: Run, given: Path | None) -> Path | None:
    """The file of expert attributes: the one given, else that of the run, else `attributes.csv` in the folder of its
    images, else None."""
    beside = run.data / (run.config.attributes or "attributes.csv")
    return given or (beside if beside.exists() else None)


def run_sweep(
    run: Run,
    name: str,
    settings: Sequence[str],
    rows: Sequence[str] | None,
    attributes: Path | None,
    progress: Progress,
) -> list[dict[str, Any]]:
    """Train and measure the rows of a sweep that have no figures yet. Returns the figures of all finished rows.

    It may be stopped at any time; the same call continues. A row is kept in `RUN/sweeps/<sweep>-<row>/`, with
    `figures.json` when it is finished. Raises ValueError for unknown rows, and `RunError` where a row was made with
    other settings.
    """
    known = {row.name: row for row in SWEEPS[name][1]}
    unknown = sorted(set(rows or ()) - set(known))
    if unknown:
        raise ValueError(f"sweep {name} has no row {unknown[0]}; it has {', '.join(known)}")
    configs = {row.name: row.config(run.config, settings) for row in known.values()}
    for row in known.values():
        folder = run.folder / "sweeps" / f"{name}-{row.name}"
        if (rows and row.name not in rows) or (folder / "figures.json").exists():
            continue
        folder.mkdir(parents=True, exist_ok=True)
        progress.console.print(f"{name}, {row.name}: {row.what}")
        config = configs[row.name]
        figures = (_network if row.network else _latent_space)(run, row, config, folder, attributes, progress)
        command = ["python", "-m", "training", "sweep", name, str(run.folder)]
        for setting in settings:
            command += ["--set", setting]
        write_json(
            folder / "figures.json",
            {
                "sweep": name,
                "row": row.name,
                "what": row.what,
                "settings": [*row.settings, *settings],
                "size": size_of(config),
                "split": run.split.digest,
                "command": shlex.join([*command, "--row", row.name]),
                **figures,
            },
        )
    return results(run, name)


def results(run: Run, name: str) -> list[dict[str, Any]]:
    """Figures of the sweep's rows that are done, in order."""
    files = [run.folder / "sweeps" / f"{name}-{row.name}" / "figures.json" for row in SWEEPS[name][1]]
    again = f"Delete it, and give `python -m training sweep {name} {run.folder}` again."
    return [found for file in files if (found := read_json(file, ("row", "settings", "size"), again))]


def size_of(config: RunConfig) -> str:
    """The size of the network and the length of its training, in words; every figure is shown with it."""
    c = config.classifier
    return f"{c.input_size} px, width {c.width:g}, {c.epochs} epochs; VAE {config.vae.epochs} epochs"


def _latent_space(
    run: Run, row: Row, config: RunConfig, folder: Path, attributes: Path | None, progress: Progress
) -> dict[str, Any]:
    import keras

    from training.measure.space import Space, encode, measure
    from training.networks.pca import principal_components
    from training.networks.vae import train_vae

    space = Space.of(run, progress)
    if row.pca:
        found = principal_components(space.references.features, config.vae.latent_size)
        queries, references = (found.latents(cells.features) for cells in (space.queries, space.references))
        figures: dict[str, Any] = {"variance_kept": float(found.kept.sum())}
    else:
        encoder = keras.models.load_model(train_vae(run, progress, config.vae, folder / "encoder.keras"), compile=False)
        queries, references = (encode(encoder, cells.features) for cells in (space.queries, space.references))
        figures = {"vae": read_history(folder / "vae_history.csv")[-1]}
    return figures | measure(run, space, queries, references, attributes)


def _network(
    run: Run, row: Row, config: RunConfig, folder: Path, attributes: Path | None, progress: Progress
) -> dict[str, Any]:
    import keras

    from training.measure.space import Space, encode, measure, rotmes
    from training.networks.classifier import evaluate_classifier, train_classifier
    from training.networks.vae import train_vae

    sub = Run.create(folder, run.data, replace(config, name=f"{run.config.name}, {row.name}"))
    train_classifier(sub, progress)
    classified = evaluate_classifier(sub, progress)
    encoder = keras.models.load_model(train_vae(sub, progress), compile=False)
    space = Space.of(sub, progress)
    queries, references = (encode(encoder, cells.features) for cells in (space.queries, space.references))
    right = sum(row_[number] for number, row_ in enumerate(classified["confusion"]))
    recalls = [row_[n] / sum(row_) for n, row_ in enumerate(classified["confusion"]) if sum(row_)]
    return {
        "accuracy": share(right, classified["n"]).to_json(),
        "balanced_accuracy": sum(recalls) / len(recalls),
        "confusion": {"labels": classified["labels"], "counts": classified["confusion"]},
        "history": read_history(folder / "history.csv"),
        "rotmes": rotmes(sub, space, encoder, progress),
        **measure(sub, space, queries, references, attributes),
    }


def read_history(file: Path) -> list[dict[str, float]]:
    """The epochs of a history file, as numbers."""
    with file.open(newline="") as text:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(text)]
