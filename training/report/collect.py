"""Every experiment of the thesis on a run: figures as JSON, to be drawn by `training.report.page` and compared by
`training.measure.compare`."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress

from training.data.pool import is_pool
from training.measure import folds, labs, unseen
from training.measure.statistics import share
from training.measure.sweep import SWEEPS, default_attributes, read_history, results
from training.run import Run, RunError, read_json, write_json

__all__ = ["PER_CLASS", "REPORT", "collect", "load_report"]

REPORT = "report.json"
PER_CLASS = 100
_TWO = "the VAE trained with L = 2"
_VERSION = 2  # of the measurements; the parts of a report with an older version are measured again


def collect(
    run: Run, attributes: Path | None, progress: Progress, again: bool = False, per_class: int = PER_CLASS
) -> dict[str, Any]:
    """Measure what the run has, take in its finished sweeps, and write all as `report.json` in its folder.

    per_class : images of each class that ROTMES is measured on. Parts that were measured before on the same networks,
    split and attributes are not measured again, except those in `again`. Raises `RunError` where the run is not fully
    trained.
    """
    for name in ("classifier.keras", "encoder.keras", "classifier.json"):
        if not (run.folder / name).exists():
            raise RunError(f"{run.folder} has no {name} yet; `python -m training resume {run.folder}` goes on with it")
    attributes = default_attributes(run, attributes)
    identity = _identity(run, attributes)
    before = load_report(run.folder) if (run.folder / REPORT).exists() and not again else {}
    parts: dict[str, Any] = dict(before.get("parts", {})) if before.get("identity") == identity else {}
    if is_pool(run.data):
        parts["rotmes"] = None  # it needs whole pictures, and a pool has crops
    elif parts.get("rotmes", {}).get("per_class") != per_class:
        parts.pop("rotmes", None)
    if parts.get("plane", {}).get("how") != _TWO and _two_dimensional(run).exists():
        parts.pop("plane", None)
    command = ["python", "-m", "training", "report", str(run.folder)]
    if per_class != PER_CLASS:
        command += ["--per-class", str(per_class)]
    report: dict[str, Any] = {
        "version": _VERSION,
        "run": run.folder.name,
        "folder": str(run.folder),
        "config": run.config.to_json(),
        "split": run.split.digest,
        "data": run.data.name,
        "identity": identity,
        "command": shlex.join(command),
        "parts": parts,
    }
    measured: dict[str, Callable[[], Any]] = {
        "classifier": lambda: _classifier(run),
        "classes": lambda: _classes(run),
    }
    if not {"space", "map", "pca", "rotmes", "plane"} <= set(parts):
        measured |= _measured(run, attributes, progress, per_class)
    for name, work in measured.items():
        if name not in parts:
            parts[name] = work()
            write_json(run.folder / REPORT, report)  # a stop costs one part
    parts["sweeps"] = {name: results(run, name) for name in SWEEPS}
    parts["folds"] = folds.results(run)
    parts["unseen"] = unseen.results(run)
    parts["labs"] = labs.results(run)
    shipped = run.folder / "figures.json"
    parts["shipped"] = read_json(shipped, (), "Write it again: `python -m training evaluate … --json`.") or None
    write_json(run.folder / REPORT, report)
    return report


def load_report(folder: Path) -> dict[str, Any]:
    """The `report.json` of a run's folder. Raises `RunError` where there is none that this version reads."""
    try:
        report: Any = json.loads((folder / REPORT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise RunError(f"{folder} has no report yet; make it with `python -m training report {folder}`") from None
    if not isinstance(report, dict) or report.get("version") != _VERSION:
        return {"identity": None}
    return dict(report)


def _identity(run: Run, attributes: Path | None) -> dict[str, Any]:
    def digest(path: Path | None) -> str | None:
        return hashlib.sha256(path.read_bytes()).hexdigest() if path else None

    return {
        "classifier": digest(run.folder / "classifier.keras"),
        "encoder": digest(run.folder / "encoder.keras"),
        "attributes": digest(attributes),
        "split": run.split.digest,
    }


def _classifier(run: Run) -> dict[str, Any]:
    again = f"Delete it: `python -m training resume {run.folder}` makes it again."
    figures = read_json(run.folder / "classifier.json", ("part", "labels", "confusion"), again)
    counts = np.array(figures["confusion"])
    recalls = np.diag(counts) / np.maximum(counts.sum(axis=1), 1)
    return {
        "part": figures["part"],
        "accuracy": share(int(np.trace(counts)), int(counts.sum())).to_json(),
        "balanced_accuracy": float(recalls[counts.sum(axis=1) > 0].mean()),
        "confusion": {"labels": figures["labels"], "counts": figures["confusion"]},
        # a run whose networks were taken over has no epochs of its own
        "history": [] if run.adopted else read_history(run.folder / "history.csv"),
        "vae": [] if run.adopted else read_history(run.folder / "vae_history.csv"),
    }


def _classes(run: Run) -> dict[str, Any]:
    counts = {
        part: {label: sum(item.label == label for item in run.split.part(part)) for label in run.split.labels}
        for part in ("train", "validation", "holdout")
    }
    sizes = [n for n in counts["train"].values() if n]
    return {"counts": counts, "largest_to_smallest": max(sizes) / min(sizes)}


def _measured(run: Run, attributes: Path | None, progress: Progress, per_class: int) -> dict[str, Callable[[], Any]]:
    import keras

    from training.measure.space import Space, encode, map_references, measure, rotmes
    from training.networks.pca import principal_components

    space = Space.of(run, progress)
    encoder = keras.models.load_model(run.folder / "encoder.keras", compile=False)
    queries, references = (encode(encoder, cells.features) for cells in (space.queries, space.references))

    def by_map() -> dict[str, Any]:
        from labref.som import quality, size_for, train

        rows, cols = size_for(len(references))
        task = progress.add_task("training a map", total=None, info="")
        trained = train(
            references,
            rows=rows,
            cols=cols,
            seed=run.config.seed,
            progress=lambda done, total, text: progress.update(task, completed=done, total=total, info=text),
        )
        found, away, places = map_references(trained, queries, references)
        figures = measure(run, space, queries, references, attributes, ranked=(found, away), places=places)
        return {"rows": rows, "columns": cols, "quality": quality(trained, references), **figures}

    def pca() -> dict[str, Any]:
        found = principal_components(space.references.features, 50)
        latents = [found.latents(cells.features) for cells in (space.queries, space.references)]
        return {
            "size": len(found.kept),
            "kept": float(found.kept.sum()),
            "curve": np.cumsum(found.kept).tolist(),
            **measure(run, space, latents[0], latents[1], attributes),
        }

    def plane() -> dict[str, Any]:
        two = _two_dimensional(run)
        if two.exists():
            small = keras.models.load_model(two, compile=False)
            points, how = encode(small, space.queries.features), _TWO
        else:
            points, how = _first_two(references, queries), "the first two principal components of the run's latents"
        return {
            "how": how,
            "points": np.round(points, 3).tolist(),
            "labels": [item.label for item in space.queries.items],
        }

    return {
        "space": lambda: measure(run, space, queries, references, attributes),
        "pca": pca,
        "map": by_map,
        "plane": plane,
        "rotmes": lambda: rotmes(run, space, encoder, progress, per_class) | {"per_class": per_class},
    }


def _two_dimensional(run: Run) -> Path:
    """The encoder of the sweep over latent sizes with L = 2: written when it is trained to its end."""
    return run.folder / "sweeps" / "latent-2" / "encoder.keras"


def _first_two(known: NDArray[np.float32], asked: NDArray[np.float32]) -> NDArray[np.float32]:
    mean = known.mean(axis=0)
    _, _, axes = np.linalg.svd(known - mean, full_matrices=False)
    return np.asarray((asked - mean) @ axes[:2].T, dtype=np.float32)
