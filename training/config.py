"""What describes a run: one frozen value, written as `run.json`, from which the run can be repeated."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

__all__ = ["PRESETS", "Augmentation", "ClassifierConfig", "RunConfig", "VaeConfig", "override"]


@dataclass(frozen=True)
class Augmentation:
    """Random changes of a training crop; thesis table 3, with rotations over ±180° (its future work).

    rotation_degrees : turn by up to ± this.  flip : mirror at random.  shift : up to ± this share of the side.
    zoom : scale by 1 ± this.  gain : colour gain of each channel by 1 ± this.  brightness : common gain by 1 ± this.
    blur : probability of a 3×3 binomial blur, for cells out of focus.

    What other microscopes, stains and scanners do, in optical density (absorbance, which adds along the light's path):
    contrast_low, contrast_high : all densities times a factor drawn log-uniformly between them.  stain : each channel's
    density times exp(± this).  mixing : each channel takes up to ± this share of each other channel's density.
    tint : a density of up to this, a plane of random slope in each channel, laid over the crop (uneven light).
    focus : blend of up to this much of a wide blur, or the same taken away (halos of a sharpening camera).
    noise : standard deviation of the noise added, 0 to this (intensity, 0 to 255).  cut : probability that the crop is
    cut off beside the cell, by background, as where the cell lay at the image's edge.  optics_share : probability that
    a crop is changed in these ways at all.

    What stands beside a cell, before all other changes; the middle of the crop (20 px) and the label stay:
    neighbour : probability that another cell trained on, of the same optics and of another class where chance finds one, is laid
    beside the cell, at any angle, by the darker pixel of each.  neighbour_near, neighbour_far : its distance from the middle,
    in pixels of the 256-px crop.  neighbour_second : probability that there is a second one then.  neighbour_faded :
    probability that what lies beyond a soft edge between the two cells is faded to the background, more or less, as the
    preparation does with cells that it tells apart.
    """

    rotation_degrees: float = 180.0
    flip: bool = True
    shift: float = 0.06
    zoom: float = 0.1
    gain: float = 0.12
    brightness: float = 0.05
    blur: float = 0.2
    contrast_low: float = 1.0
    contrast_high: float = 1.0
    stain: float = 0.0
    mixing: float = 0.0
    tint: float = 0.0
    focus: float = 0.0
    noise: float = 0.0
    cut: float = 0.0
    optics_share: float = 1.0
    neighbour: float = 0.0
    neighbour_near: float = 80.0
    neighbour_far: float = 130.0
    neighbour_second: float = 0.25
    neighbour_faded: float = 0.5

    @property
    def changes_optics(self) -> bool:
        """Whether any of the changes in optical density, focus or noise is on."""
        moved = (self.stain, self.mixing, self.tint, self.focus, self.noise, self.cut)
        return any(moved) or (self.contrast_low, self.contrast_high) != (1.0, 1.0)


@dataclass(frozen=True)
class ClassifierConfig:
    """The modified Xception and its training.

    width : factor on the number of filters (1.0 is the thesis').  input_size : pixels the crop is rescaled to.
    middle_repeats : times the middle flow is repeated (thesis: three).  break_channels : channels at the break (thesis: 256).
    schedule : "constant" or "cosine" to zero after `warmup_epochs`.
    normalisation : "batch" (the thesis'), or "group" (groups of 8 channels; Wu & He, arXiv 1803.08494), which does not
    depend on the statistics of the optics trained on.
    attribute_weight : weight of a head for each expert attribute, where the run has some: the features then hold what
    experts see beyond the class.  domain_weight : weight of a head that tells the run's domains apart, whose gradient is
    reversed (Ganin & Lempitsky, arXiv 1409.7495): the features learn not to hold the optics.
    initial : a trained `classifier.keras`, or a bundle's that was taken over (`python -m training adopt`), to start from, layer by layer
    where shapes agree.
    """

    width: float = 1.0
    input_size: int = 224
    middle_repeats: int = 3
    break_channels: int = 256
    normalisation: Literal["batch", "group"] = "batch"
    batch_norm_momentum: float = 0.9
    batch_size: int = 32
    epochs: int = 50
    learning_rate: float = 1e-3
    schedule: Literal["constant", "cosine"] = "cosine"
    warmup_epochs: float = 0.5
    label_smoothing: float = 0.0
    class_weights: Literal["none", "sqrt", "balanced"] = "none"
    mixed_precision: bool = False
    attribute_weight: float = 0.0
    domain_weight: float = 0.0
    initial: str = ""
    augmentation: Augmentation = field(default_factory=Augmentation)


@dataclass(frozen=True)
class VaeConfig:
    """The variational autoencoder on the features at the break (Keng's: dense layers of equal width).

    pooling : "flatten" (the thesis': height × width × channels), or "orbits", the mean over the cells of the feature grid
    that turns by 90° and mirrors carry into each other, which makes the latent indifferent to them.
    views : augmented views of each training cell whose features it is trained on; it reconstructs the mean of the views
    from any one of them, so what differs between turns of a cell is noise to it. 1: plain features of the plain crop.
    optics_views : so many of the views, the last ones, are also changed as the classifier's augmentation changes optics, and have
    such neighbours.
    beta : weight of the KL term.  class_weight : weight of a class head on the latent mean (0: none, as in the thesis).
    attribute_weight : weight of a head for each expert attribute on the latent mean, where the run has some.
    neighbour_weight : weight of the neighbours' agreement: of cells drawn by their nearness in latent space (as in
    neighbourhood components analysis, Goldberger et al. 2004), those of the class that share its attributes.
    """

    latent_size: int = 50
    width: int = 512
    layers: int = 2
    dropout: float = 0.2
    pooling: Literal["flatten", "orbits"] = "flatten"
    views: int = 1
    optics_views: int = 0
    beta: float = 1.0
    class_weight: float = 0.0
    attribute_weight: float = 0.0
    neighbour_weight: float = 0.0
    batch_size: int = 128
    epochs: int = 20
    learning_rate: float = 1e-3


@dataclass(frozen=True)
class RunConfig:
    """All of a run.

    holdout : share held out by name hash, never trained on.  validation : share of the rest for curves.
    orientations : turns and mirrors of the crop averaged inside the exported trunk: 1, 2, 4 or 8.
    domains : folders in the data folder, one for each optics, that hold the class folders; none: the data folder does.
    aliases : label by the name of a class folder, where they differ.  attributes : CSV of expert attributes, from the data
    folder, with a column `path` whose last part is an image's name, and one column for each attribute.
    """

    name: str = "thesis"
    seed: int = 1
    holdout: float = 0.2
    validation: float = 0.05
    orientations: int = 1
    domains: tuple[str, ...] = ()
    aliases: dict[str, str] = field(default_factory=dict)
    attributes: str = ""
    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)
    vae: VaeConfig = field(default_factory=VaeConfig)

    def to_json(self) -> dict[str, Any]:
        """The run as plain JSON values; `from_json` is its inverse."""
        return asdict(self) | {"domains": list(self.domains)}

    @staticmethod
    def from_json(values: dict[str, Any]) -> RunConfig:
        """The run that `to_json` wrote. Raises TypeError where a field is unknown."""
        values = {**values, "domains": tuple(values.get("domains", ()))}
        classifier = dict(values["classifier"])
        classifier["augmentation"] = Augmentation(**classifier["augmentation"])
        return RunConfig(
            **{k: v for k, v in values.items() if k not in ("classifier", "vae")},
            classifier=ClassifierConfig(**classifier),
            vae=VaeConfig(**values["vae"]),
        )

    @staticmethod
    def load(path: Path) -> RunConfig:
        """Read a `run.json`."""
        return RunConfig.from_json(json.loads(path.read_text(encoding="utf-8")))


_OPTICS = RunConfig(
    name="starter",
    classifier=ClassifierConfig(
        width=0.5,
        input_size=128,
        epochs=14,
        learning_rate=1e-3,
        label_smoothing=0.05,
        class_weights="sqrt",
        attribute_weight=1.0,
        augmentation=Augmentation(
            shift=0.08,
            zoom=0.25,
            gain=0.08,
            blur=0.3,
            contrast_low=0.2,
            contrast_high=1.3,
            stain=0.5,
            mixing=0.25,
            tint=0.25,
            focus=0.9,
            noise=6.0,
            cut=0.2,
            optics_share=0.6,
        ),
    ),
    orientations=8,
    vae=VaeConfig(
        layers=0,
        pooling="orbits",
        views=4,
        optics_views=2,
        beta=4.0,
        class_weight=80.0,
        attribute_weight=400.0,
        neighbour_weight=50.0,
        epochs=40,
    ),
)

PRESETS: dict[str, RunConfig] = {
    "thesis": RunConfig(
        name="thesis",
        classifier=ClassifierConfig(
            schedule="constant",
            augmentation=Augmentation(rotation_degrees=90, shift=0.1, zoom=0.1, gain=0.0, brightness=0.0, blur=0.0),
        ),
    ),
    "full": RunConfig(
        name="full",
        classifier=ClassifierConfig(learning_rate=1.5e-3, label_smoothing=0.05, class_weights="sqrt"),
        vae=VaeConfig(pooling="orbits", views=3, class_weight=20.0),
    ),
    "starter": RunConfig(
        name="starter",
        classifier=ClassifierConfig(
            width=0.5,
            input_size=128,
            epochs=24,
            learning_rate=1.5e-3,
            label_smoothing=0.05,
            class_weights="sqrt",
        ),
        orientations=8,
        vae=VaeConfig(pooling="orbits", views=3, class_weight=20.0, epochs=60),
    ),
    "optics": _OPTICS,
    "experts": replace(
        _OPTICS,
        classifier=replace(
            _OPTICS.classifier,
            epochs=9,
            learning_rate=5e-4,
            attribute_weight=5.0,
            augmentation=replace(_OPTICS.classifier.augmentation, zoom=0.1),
        ),
    ),
}
"""`thesis`: its table 3 (A) and 4. `full`: the thesis' network with what was found better. `starter`: narrow and small, for two cores. `optics`: a starter
taught other optics, from a trained starter's weights (`classifier.initial`). `experts`: one of those taught better what experts see (the
size of a cell too, so it is hardly zoomed any more), from its weights; what labref ships."""


def override(config: RunConfig, settings: list[str]) -> RunConfig:
    """`config` with `key=value` settings laid over it, as in `classifier.epochs=3`. Raises ValueError naming a wrong key."""
    values = config.to_json()
    for setting in settings:
        key, equals, text = setting.partition("=")
        *path, last = key.strip().split(".")
        place: Any = values
        for part in path:
            place = place.get(part) if isinstance(place, dict) else None
        if (
            not equals
            or not isinstance(place, dict)
            or last not in place
            or (isinstance(place[last], dict) and last != "aliases")
        ):
            raise ValueError(
                f"--set {setting!r}: no such setting; write key=value with a key of run.json, as classifier.epochs=3"
            )
        old = place[last]
        try:
            place[last] = json.loads(text) if not isinstance(old, str) else text
        except json.JSONDecodeError:
            raise ValueError(f"--set {setting!r}: {text!r} is no value for {key}") from None
        if isinstance(old, float) and isinstance(place[last], int):
            place[last] = float(place[last])
        if type(old) is not type(place[last]):
            raise ValueError(f"--set {setting!r}: {key} takes a {type(old).__name__}")
    return replace(RunConfig.from_json(values))
