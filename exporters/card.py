"""The model card of a bundle: what it was trained on, how it was measured, what it must not be used for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from labref.bundles.bundle import Manifest

__all__ = ["model_card"]

_DRAWN: Final = "Cells of one class were drawn together the more of the experts' attributes they share."

_SOURCES = {
    "pbc": """\
Cells: *A dataset of microscopic peripheral blood cell images for development of automatic recognition systems*,
Acevedo, Merino, Alférez, Molina, Boldú, Rodellar, Data in Brief 30:105474 (2020), doi 10.17632/snkd93bnjr.1,
licence CC BY 4.0 (https://creativecommons.org/licenses/by/4.0/). Healthy donors, Hospital Clínic Barcelona,
CellaVision DM96, May-Grünwald-Giemsa.""",
    "bonemarrow": """\
Cells: *Highly accurate differentiation of bone marrow cell morphologies using deep neural networks on a large image
data set*, Matek, Krappe, Münzenmayer, Haferlach, Marr, Blood 138:1917 (2021), TCIA doi 10.7937/TCIA.AXH3-T579,
licence CC BY 4.0. Bone-marrow smears, another scanner and stain.""",
}
_ATTRIBUTES = """\
Attributes: WBCAtt, Tsutsui, Pang, Wen, NeurIPS 2023, eleven expert attributes of cells of the first source, licence MIT."""


def _data(training: Mapping[str, Any], total: int, atlas: Mapping[str, Any]) -> list[str]:
    """Where the images come from, and under which licence."""
    config = training["config"]
    domains = list(config.get("domains") or [training["data"]])
    given: Mapping[str, Sequence[str]] = training.get("consents", {})
    lines = [
        f"Cells that a lab gave, of one of its analysers (`{name}` in the pool), under: {', '.join(given[name])}."
        if name in given
        else _SOURCES.get(name, f"Class folders named `{name}`.")
        for name in domains
    ]
    if config.get("attributes"):
        lines.append(_ATTRIBUTES if "pbc" in domains else f"Attributes: `{config['attributes']}`.")
    carried = (
        "of the images of cells only those of the\natlas are part of this bundle"
        if atlas
        else "no image is part of this bundle"
    )
    lines.append(
        f"{total:,} of these images were used as described here, cropped and normalised; {carried}: the\n"
        "golden inputs are cells drawn by labref itself."
    )
    if atlas:
        lines.append(
            f"Atlas: {atlas['cells']:,} cells, {atlas['how']}. It stands in where a lab has too few cells of a class, marked as central.\n"
            + "\n".join(f"- {one['cells']:,} of {one['name']}, licence {one['licence']}" for one in atlas["sources"])
        )
    return "\n\n".join(lines).split("\n")


def model_card(manifest: Manifest) -> str:
    """Markdown text of `MODEL_CARD.md`, from nothing but the manifest: no figure is written by hand."""
    training, config = manifest.training, manifest.training["config"]
    images: Mapping[str, int] = training["images"]
    classifier, vae, parity = config["classifier"], config["vae"], training["parity"]
    total = sum(images.values())
    pooling = "flattened" if vae["pooling"] == "flatten" else "averaged over turns and mirrors of the grid"
    grid = "×".join(str(n) for n in manifest.features)
    turns = manifest.orientations
    lines = [
        f"# Model card: labref bundle “{manifest.name}”, version {manifest.version}",
        "",
        f"Latents of {manifest.latent_size} numbers and probabilities of {len(manifest.labels)} classes "
        f"({', '.join(manifest.labels)}) for one blood-cell image.",
        "",
        "## Use",
        "To find a lab's own cells that look like a given one, beside a person who decides. It makes no diagnosis: its class",
        "names are a hint, its distances a way to look.",
        "",
        "## Data and licence",
        *_data(training, total, manifest.atlas),
        "",
        f"Split by name hash, SHA-256 of the list `{training['split_digest'][:16]}…`: {images['train']:,} trained on, "
        f"{images['validation']:,} for curves and the novelty threshold, {images['holdout']:,} held out and never trained on.",
        "Patients are unknown in this data, so a donor's cells lie on both sides of the split.",
        "",
        "## Model",
        f"Modified Xception (middle flow ×{classifier['middle_repeats']}), width {classifier['width']}, input "
        f"{classifier['input_size']} px from a 256 px crop, features {grid} at the sixth layer from the end"
        + (f", averaged over {turns} orientations of the crop" if turns > 1 else "")
        + f"; VAE on these, {pooling}, {vae['layers']} hidden layers of {vae['width']}, {manifest.latent_size} latents. "
        f"{training['weights']['trunk']:,} and {training['weights']['encoder']:,} weights.",
        f"Trained for {classifier['epochs']} epochs with Adam, rotations of ±{classifier['augmentation']['rotation_degrees']:g}°, "
        f"then the VAE for {vae['epochs']} epochs on {vae['views']} views of each cell.",
        *_optics(classifier, vae),
        *_adopted(training),
        "",
        f"ONNX against Keras on {parity['crops']} held-out crops, largest absolute difference: probabilities "
        f"{parity['probabilities']:.2g}, features {parity['features']:.2g}, latents {parity['latents']:.2g}.",
        "",
        "## Figures",
        *_figures(manifest.figures),
        "",
        *_precisions(manifest),
        "## Novelty",
        f"A cell counts as novel when the mean distance to the nearest {manifest.novelty.k} is above "
        f"{manifest.novelty.threshold:.4g}: {manifest.novelty.how}.",
        "",
        "## Limits",
        "On another microscope, camera or stain than those above neither its classes nor its neighbours can be trusted before",
        "they are measured there (`python -m training evaluate`).",
        *_weakest(manifest.figures),
        "",
    ]
    return "\n".join(lines)


def _optics(classifier: Mapping[str, Any], vae: Mapping[str, Any]) -> list[str]:
    augmentation = classifier["augmentation"]
    lines = []
    if augmentation.get("contrast_low", 1.0) != 1.0:
        lines.append(
            f"Of the crops {augmentation['optics_share']:.0%} were changed as another stain, lamp, focus and camera might: contrast × "
            f"{augmentation['contrast_low']:g} to {augmentation['contrast_high']:g}, colours mixed, tinted, blurred, sharpened, cut off."
        )
    if augmentation.get("neighbour"):
        lines.append(
            f"Beside {augmentation['neighbour']:.0%} of the crops another cell was laid, {augmentation['neighbour_near']:g} to "
            f"{augmentation['neighbour_far']:g} px from the middle."
        )
    if classifier.get("initial"):
        lines.append("The classifier started from the weights of an earlier one.")
    if vae.get("neighbour_weight"):
        lines.append(
            "The latents were also drawn so that neighbours share class and attributes (neighbourhood components analysis)."
        )
    return lines


def _adopted(training: Mapping[str, Any]) -> list[str]:
    """How the networks were changed after their training: adopted from an earlier bundle, or changed to overlook
    neighbours."""
    adopted = training.get("adopted") or {}
    lines = []
    if "bundle" in adopted:
        lines.append(
            f"All this was done for bundle {adopted['bundle'][:12]}, on cells prepared by version "
            f"{adopted['preparation'].get('version')}; its networks were taken over (`python -m training adopt`)."
        )
    solved = adopted.get("overlooks_neighbours") or {}
    if solved and not solved.get("of_student"):
        lines += _solved(solved)
    if "distilled" in adopted:
        taught, upright = adopted["distilled"], training["config"]["classifier"].get("upright")
        lines.append(
            f"The trunk then learned from a trunk of {taught['teacher_orientations']} orientations, which looked at "
            f"{taught['angles']} angles, to find in few looks what that found in all: {taught['epochs']} epochs; "
            f"{taught['changed']:.0%} of its crops were changed in their optics, half of these beside other cells. "
            "It looks at the circle inscribed in the crop"
            + (
                ", which it first turns and mirrors by where its density lies, so that a cell lies alike in each picture"
                if upright
                else ""
            )
            + " (`python -m training distil`)."
        )
        if taught.get("drawn"):
            lines.append(_DRAWN)
    if solved.get("of_student"):
        lines += _solved(solved)
    return lines


def _solved(taught: Mapping[str, Any]) -> list[str]:
    told = (
        f"The encoder's last layer was then solved for again on {taught['cells']:,} cells laid beside others (`python -m training "
        "overlook`)."
    )
    return [told, _DRAWN] if taught.get("drawn") else [told]


def _precisions(manifest: Manifest) -> list[str]:
    if not manifest.trunks:
        return []
    lines = [
        "## Reduced precision",
        "Of a held-out cell's eight references by the full trunk, how many the reduced one finds (95 %): in a store it filled itself,",
        "in one that the full trunk filled, and in one half and half. It is shipped where each is at least "
        f"{manifest.trunks[0].measured['limit']}. Speed: processor time on one core of the computer that exported.",
        "",
        "| trunk | shipped | own store | full store | mixed store | ms a cell | full, ms a cell |",
        "|---|---|---|---|---|---|---|",
    ]
    for trunk in manifest.trunks:
        stay = [
            f"{found['value']:.2f} ({found['low']:.2f} to {found['high']:.2f})"
            for found in (trunk.agreement[name] for name in ("own", "moved", "mixed"))
        ]
        speed = [f"{trunk.measured[key]:.1f}" for key in ("ms_per_cell_one_thread", "ms_per_cell_one_thread_full")]
        lines.append(f"| {' | '.join([trunk.precision, 'yes' if trunk.admitted else 'no', *stay, *speed])} |")
    return [*lines, ""]


def _weakest(figures: Mapping[str, Any]) -> list[str]:
    if not figures:
        return []
    per_class: Mapping[str, float] = figures["precision_at_8"]["per_class"]
    worst = sorted(per_class, key=per_class.__getitem__)[:2]
    return [f"By class precision@8 the weakest classes are {' and '.join(worst)}."]


def _figures(figures: Mapping[str, Any]) -> list[str]:
    if not figures:
        return ["Not measured yet (`python -m training evaluate`, then export again with `--figures`)."]
    precision = figures["precision_at_8"]
    rows = [
        f"Measured by `{figures['command']}`: {figures['n_queries']:,} queries never trained on, "
        f"{figures['n_references']:,} references.",
        "",
        "| figure | value |",
        "|---|---|",
        f"| class precision@8, mean over classes | {precision['macro']:.4f} |",
        f"| class precision@8, mean over queries | {precision['micro']:.4f} |",
        *(f"| class precision@8, {label} | {value:.4f} |" for label, value in precision["per_class"].items()),
        f"| classifier accuracy | {figures['classifier_accuracy']:.4f} |",
        f"| accuracy of the weighted vote of eight | {figures['knn_accuracy']:.4f} |",
    ]
    overlap = figures.get("rotation_overlap_at_8")
    if overlap:
        rows += [
            f"| of the eight stay, {'mean of these' if how == 'mean' else f'query {how}'} | {value:.2f} |"
            for how, value in overlap.items()
        ]
    attributes = figures.get("attribute_agreement_at_8")
    if attributes:
        rows += [
            f"| attribute agreement@8 (WBCAtt, 11 attributes) | {attributes['references']:.4f} |",
            f"| … of a random reference of the same class | {attributes['random_same_class']:.4f} |",
        ]
    for name, measured in figures.get("other_optics", {}).items():
        for how, found in measured.items():
            rows.append(
                f"| class precision@8 on `{name}`, never trained on, {how}, over cells (over classes with more than 8) | "
                f"{found['micro']:.4f} ({found['macro_of_classes_above_8']:.4f}) |"
            )
    return rows
