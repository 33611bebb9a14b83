"""A trained run → one bundle file: graphs, golden outputs, calibrated thresholds, manifest, model card."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress

from exporters.atlas import add_atlas
from exporters.card import model_card
from exporters.graphs import ExportError, Parity, convert, measure_parity
from exporters.precision import PRECISIONS, add_reduced, open_sessions, round_graph, run_trunk
from labref.bundles.bundle import (
    WITHOUT_ATLAS,
    Bundle,
    Manifest,
    NoveltyThreshold,
    Precision,
    Trunk,
    describe,
    pack,
    unpacked,
)
from labref.bundles.inference import Embedder
from labref.bundles.schema import WITH_ATLAS
from labref.bundles.signing import SIGNATURE_FILE
from labref.cells.image import PREPARATION, CellImage, prepare_pixels
from labref.cells.optics import measure, statistics
from labref.cells.sameness import DEFAULTS as DUPLICATES
from labref.demo.cells import LABELS, OPTICS, draw_cell, make_slides
from training.data.classes import class_group, class_id
from training.data.images import Item, read_cells
from training.data.pool import Pool, is_pool
from training.measure.evaluate import K, nearest
from training.measure.space import encode
from training.networks.architecture import build_trunk
from training.networks.vae import kept_features
from training.run import Run

__all__ = ["ExportError", "export_bundle", "intrinsic_dimension", "with_atlas", "with_figures"]

PARITY_LIMIT = 1e-3
GOLDEN_TOLERANCE = 2e-2  # difference of latents and probabilities between computers, which sum in different orders
_DIMENSION_K = 20  # neighbours that the intrinsic dimension is estimated from
OPTICS_CELLS = 2_000
"""Number of training cells from which background, focus and colour are measured."""
NOVELTY_K = 1  # a cell is novel where even its nearest cell is far; in a young lab the eighth is always far
NOVELTY_QUANTILE = 0.99
_BLOCK = 256  # images prepared at once
PER_CLASS = 60
"""Cells of each class in an atlas, unless another number is asked for."""
CALIBRATION = 128  # crops whose activations give the ranges of int8


def export_bundle(
    run: Run,
    out: Path,
    progress: Progress,
    figures: Path | None = None,
    parity_crops: int = 64,
    precisions: Sequence[Precision] = PRECISIONS,
    agreement_cells: tuple[int, int] = (500, 3000),
    mantissa_bits: int = 23,
    atlas: Path | None = None,
    per_class: int = PER_CLASS,
) -> tuple[Bundle, Parity]:
    """Ship `run` as the one file `out`.

    figures : the JSON of `python -m training evaluate` for this model; it goes into the manifest and the model card.
    precisions : reduced trunks to try. Each is shipped only where its references agree with those of the full trunk;
    this is measured on up to `agreement_cells` held-out cells and as many training cells.
    mantissa_bits : the trunk's weights are rounded to this number of bits, for a smaller file (23 keeps them). The
    parity is measured on the rounded graph.
    atlas : folder with the central team's own cells that the bundle shall carry (`exporters.atlas`), up to `per_class`
    of each class; None for a bundle without.
    Returns the bundle as it was packed (its folder no longer exists), and the parity between Keras and ONNX Runtime on
    `parity_crops` held-out crops. Raises `ExportError` where parity fails or the run is not fully trained.
    """
    for name in ("classifier.keras", "encoder.keras"):
        if not (run.folder / name).exists():
            raise ExportError(
                f"{run.folder} has no {name} yet; `python -m training resume {run.folder}` goes on with it"
            )
    note = progress.console.print
    classifier = keras.models.load_model(run.folder / "classifier.keras", compile=False)
    full_encoder = keras.models.load_model(run.folder / "encoder.keras", compile=False)
    trunk = build_trunk(classifier, run.config.orientations)
    encoder = keras.Model(full_encoder.input, full_encoder.outputs[0], name="encoder")
    with tempfile.TemporaryDirectory(prefix="labref-export-") as scratch:
        folder = Path(scratch) / "bundle"
        folder.mkdir()
        note("converting to ONNX")
        convert(trunk, "crops", np.uint8, ["probabilities", "features"], folder / "trunk.onnx")
        convert(encoder, "features", np.float32, ["latent"], folder / "encoder.onnx")
        round_graph(folder / "trunk.onnx", mantissa_bits)
        note("comparing with Keras on held-out crops")
        parity = measure_parity(trunk, encoder, folder, _holdout_crops(run, parity_crops))
        if max(parity.probabilities, parity.latents) > PARITY_LIMIT:
            raise ExportError(f"ONNX and Keras differ by more than {PARITY_LIMIT}: {parity}")
        note("calibrating novelty on the validation part")
        novelty, scale = _calibrate(run, folder, full_encoder, progress)
        _write_golden(folder, trunk, encoder)
        trunks: tuple[Trunk, ...] = ()
        if precisions:
            note(f"trying trunks of {' and '.join(precisions)}")
            asked, known = agreement_cells
            references = _crops(run, run.split.train, known)
            if len(references) <= K:
                raise ExportError(f"more than {K} cells are needed to compare references; ship without reduced trunks")
            trunks = add_reduced(
                folder,
                precisions,
                references[:: max(len(references) // CALIBRATION, 1)][:CALIBRATION],
                _holdout_crops(run, asked),
                references,
                GOLDEN_TOLERANCE,
                progress,
            )
        version = _version(trunk, encoder, run)
        measured = _read_figures(figures) if figures else {}
        if figures and measured:
            _check_figures(figures, measured, version)
        manifest = Manifest(
            format_version=WITHOUT_ATLAS,
            name=run.config.name,
            version=version,
            labels=run.split.labels,
            class_ids={label: class_id(label) for label in run.split.labels},
            class_groups={label: class_group(label) for label in run.split.labels},
            preparation=PREPARATION,
            features=tuple(trunk.output["features"].shape[1:]),
            orientations=run.config.orientations,
            latent_size=run.config.vae.latent_size,
            latent_scale=scale,
            novelty=novelty,
            duplicates=DUPLICATES.to_json(),
            golden_tolerance=GOLDEN_TOLERANCE,
            training={
                "config": run.config.to_json(),
                "data": run.data.name,
                "split_digest": run.split.digest,
                "images": {part: len(run.split.part(part)) for part in ("train", "validation", "holdout")},
                "parity": asdict(parity),
                "weights": {"trunk": int(trunk.count_params()), "encoder": int(encoder.count_params())},
                **({"adopted": dict(run.adopted)} if run.adopted else {}),
                **({"consents": _consents(run)} if is_pool(run.data) else {}),
            },
            figures=measured,
            files={},
            trunks=trunks,
            optics=_optics(run),
            quality=_quality(run),
        )
        _describe(folder, manifest)
        bundle = Bundle.open(folder)
        for precision in ("full", "auto"):
            with Embedder.open(bundle, device="cpu", precision=precision) as embedder:
                embedder.golden_difference()
        if atlas is not None:
            _put_atlas(bundle, atlas, per_class, progress)
        out.parent.mkdir(parents=True, exist_ok=True)
        return pack(folder, out), parity


def with_figures(source: Path, figures: Path, out: Path) -> Bundle:
    """Write the bundle `source` as the file `out`, with the figures of the JSON file `figures` in its manifest and on
    its model card.

    Its networks, thresholds and golden outputs are not changed. Raises `ExportError` where the figures are of another
    model.
    """
    measured = _read_figures(figures)
    with unpacked(source) as (bundle, _), tempfile.TemporaryDirectory(prefix="labref-export-") as scratch:
        _check_figures(figures, measured, bundle.manifest.version)
        folder = _copy(bundle, Path(scratch))
        (folder / "manifest.json").unlink()
        try:
            _describe(folder, replace(bundle.manifest, figures=measured))
        except KeyError as error:
            raise ExportError(f"{figures} lacks {error}: it is no JSON of `python -m training evaluate`") from None
        return pack(folder, out)


def with_atlas(source: Path, atlas: Path, out: Path, progress: Progress, per_class: int = PER_CLASS) -> Bundle:
    """Write the bundle `source` as the file `out`, with an atlas of up to `per_class` cells of each class from the
    folder `atlas` (`exporters.atlas`), in place of the one it carried, if it did.

    Its networks, thresholds and golden outputs are not changed. Raises `ExportError` and `BundleError`.
    """
    with unpacked(source) as (bundle, _), tempfile.TemporaryDirectory(prefix="labref-export-") as scratch:
        folder = _copy(bundle, Path(scratch))
        _put_atlas(replace(bundle, folder=folder), atlas, per_class, progress)
        return pack(folder, out)


def _copy(bundle: Bundle, scratch: Path) -> Path:
    """A copy of the bundle's folder in `scratch`, to change: without its signature, which would not hold any more."""
    return Path(shutil.copytree(bundle.folder, scratch / "bundle", ignore=shutil.ignore_patterns(SIGNATURE_FILE)))


def _put_atlas(bundle: Bundle, atlas: Path, per_class: int, progress: Progress) -> None:
    entry = add_atlas(bundle, atlas, per_class, progress)
    (bundle.folder / "manifest.json").unlink()
    _describe(bundle.folder, replace(bundle.manifest, format_version=WITH_ATLAS, atlas=entry))


def _read_figures(figures: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises `ExportError` where it holds none."""
    try:
        measured = json.loads(figures.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ExportError(f"{figures} cannot be read as figures: {error}") from None
    if not isinstance(measured, dict):
        raise ExportError(f"{figures} holds no JSON object: name the output of `python -m training evaluate --json`")
    return measured


def _check_figures(figures: Path, measured: dict[str, Any], version: str) -> None:
    if measured.get("model_version") != version:
        raise ExportError(
            f"{figures} was measured on model {measured.get('model_version')}, this is model {version}; measure the bundle exported from "
            "this run"
        )


def _describe(folder: Path, manifest: Manifest) -> None:
    """Write the model card and the manifest beside the other files of a bundle in `folder`, and into its golden outputs
    what they are true of."""
    (folder / "MODEL_CARD.md").write_text(model_card(manifest), encoding="utf-8")
    describe(folder, manifest)


def _version(trunk: Any, encoder: Any, run: Run) -> str:
    """The version of the model: a digest of its weights and of the settings that shape its graphs. It is the same at
    every export of a run."""
    digest = hashlib.sha256(json.dumps(run.config.to_json(), sort_keys=True).encode())
    for weights in (*trunk.get_weights(), *encoder.get_weights()):
        digest.update(np.ascontiguousarray(weights).tobytes())
    return digest.hexdigest()[:12]


def _holdout_crops(run: Run, count: int) -> NDArray[np.uint8]:
    return _crops(run, run.split.holdout or run.split.validation or run.split.train, count)


def _read(run: Run, items: Sequence[Item], take: Callable[[CellImage], NDArray[Any]]) -> list[NDArray[Any]]:
    """The result of `take` for the prepared cell of each item; unreadable images are left out."""

    return [found for found in read_cells(run.data, items, take) if found is not None]


def _some(run: Run, items: Sequence[Item], count: int, take: Callable[[CellImage], NDArray[Any]]) -> NDArray[Any]:
    """`_read` of up to `count` of `items`, evenly taken, stacked. Raises `ExportError` where none can be read."""
    chosen = np.linspace(0, len(items) - 1, min(count, len(items))).astype(int)
    found = _read(run, [items[index] for index in chosen], take)
    if not found:
        raise ExportError(f"none of {len(chosen)} images of {run.data} can be read")
    return np.stack(found)


def _optics(run: Run) -> dict[str, Any]:
    """Background, focus and colour of cells trained on, for the drift that `labref status` warns of."""
    return statistics(_some(run, run.split.train, OPTICS_CELLS, measure))


def _consents(run: Run) -> dict[str, list[str]]:
    """Of a run on a pool: under which licence or consent labs gave its cells, by domain."""
    items = [item for part in ("train", "validation", "holdout") for item in run.split.part(part)]
    return Pool.open(run.data).consents([item.path for item in items])


def _quality(run: Run) -> dict[str, Any]:
    """What `python -m training quality --out RUN/quality.json` calibrated; without it labref's own thresholds serve."""
    calibrated = run.folder / "quality.json"
    if not calibrated.is_file():
        return {}
    found: dict[str, Any] = json.loads(calibrated.read_text(encoding="utf-8"))
    return found


def _crop(cell: CellImage) -> NDArray[np.uint8]:
    return cell.crop


def _crops(run: Run, items: Sequence[Item], count: int) -> NDArray[np.uint8]:
    """Crops uint8[n, 256, 256, 3] of up to `count` of `items`; see `_some`."""
    return _some(run, items, count, _crop)


def _write_golden(folder: Path, trunk: Any, encoder: Any) -> None:
    """Write the golden inputs and outputs. The inputs are cells drawn by labref: a bundle holds no patient's image."""
    slides = make_slides(len(LABELS), seed=1)
    stacked = np.stack(
        [
            prepare_pixels(draw_cell(label, OPTICS[slide.optics], slide, np.random.default_rng(number))).crop
            for number, (label, slide) in enumerate(zip(LABELS, slides, strict=True))
        ]
    )
    outputs = trunk(stacked, training=False)
    latents = np.asarray(encoder(outputs["features"], training=False))
    np.savez_compressed(
        folder / "golden.npz",
        crops=stacked,
        probabilities=np.asarray(outputs["probabilities"], dtype=np.float32),
        latents=latents.astype(np.float32),
    )


def _latents(run: Run, part: str, folder: Path, encoder: Any, progress: Progress) -> NDArray[np.float32]:
    """The latents of `part`, from the features that the run has kept; without these, from the graphs in `folder`, which
    are faster than Keras on a CPU."""
    kept = kept_features(run, part)
    if kept is not None:
        return encode(encoder, kept)
    items = run.split.part(part)
    sessions = open_sessions(folder / "trunk.onnx", folder / "encoder.onnx")
    task = progress.add_task(f"latents, {part}", total=len(items), info="")
    found = []
    for start in range(0, len(items), _BLOCK):
        block = items[start : start + _BLOCK]
        crops = _read(run, block, _crop)
        if crops:
            found.append(run_trunk(sessions, np.stack(crops))[1])
        progress.update(task, advance=len(block))
    return np.concatenate(found) if found else np.empty((0, run.config.vae.latent_size), np.float32)


def _calibrate(run: Run, folder: Path, encoder: Any, progress: Progress) -> tuple[NoveltyThreshold, float]:
    """The novelty threshold, and the mean squared error between random pairs of training cells (the latent scale)."""
    known, unseen = (_latents(run, part, folder, encoder, progress) for part in ("train", "validation"))
    if not len(unseen):
        raise ExportError("the run has no validation part to calibrate novelty on; set validation above 0")
    _, distances = nearest(unseen, known, None, NOVELTY_K)
    threshold = float(np.quantile(distances.mean(axis=1), NOVELTY_QUANTILE))
    rng = np.random.default_rng(run.config.seed)
    pairs = rng.integers(0, len(known), (2, 20_000))
    scale = float(((known[pairs[0]] - known[pairs[1]]) ** 2).mean())
    how = (
        f"{NOVELTY_QUANTILE:.0%} of {len(unseen)} validation cells have a smaller mean distance to the nearest "
        f"{NOVELTY_K} of {len(known)} training cells"
    )
    _, near = nearest(unseen, known, None, min(_DIMENSION_K, len(known)))
    return NoveltyThreshold(threshold, NOVELTY_K, how, len(known), round(intrinsic_dimension(near), 3)), scale


def intrinsic_dimension(distances: NDArray[np.floating[Any]]) -> float:
    """Intrinsic dimension of latents, from the distances float[n, k] (mean squared error, nearest first) of n cells to
    their k nearest others: the maximum-likelihood estimate of Levina & Bickel (2004, eq. 8), averaged with the
    correction of MacKay & Ghahramani (2005)."""
    # the factor 0.5 gives logarithms of distances, not of their squares
    logs = 0.5 * np.log(np.maximum(distances, np.finfo(np.float64).tiny))
    inverse = (logs[:, -1:] - logs[:, :-1]).mean(axis=1)
    return float(1 / inverse.mean())
