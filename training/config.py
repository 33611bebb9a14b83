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
    """

    rotation_degrees: float = 180.0
    flip: bool = True
    shift: float = 0.06
    zoom: float = 0.1
    gain: float = 0.12
    brightness: float = 0.05
    blur: float = 0.2


@dataclass(frozen=True)
class ClassifierConfig:
    """The modified Xception and its training.

    width : factor on the number of filters (1.0 is the thesis').  input_size : pixels the crop is rescaled to.
    middle_repeats : times the middle flow is repeated (thesis: three).  break_channels : channels at the break (thesis: 256).
    schedule : "constant" or "cosine" to zero after `warmup_epochs`.
    """

    width: float = 1.0
    input_size: int = 224
    middle_repeats: int = 3
    break_channels: int = 256
    batch_norm_momentum: float = 0.9
    batch_size: int = 32
    epochs: int = 50
    learning_rate: float = 1e-3
    schedule: Literal["constant", "cosine"] = "cosine"
    warmup_epochs: float = 0.5
    label_smoothing: float = 0.0
    class_weights: Literal["none", "sqrt", "balanced"] = "none"
    mixed_precision: bool = False
    augmentation: Augmentation = field(default_factory=Augmentation)


@dataclass(frozen=True)
class VaeConfig:
    """The variational autoencoder on the features at the break (Keng's: dense layers of equal width).

    pooling : "flatten" (the thesis': height × width × channels), or "orbits", the mean over the cells of the feature grid
    that turns by 90° and mirrors carry into each other, which makes the latent indifferent to them.
    views : augmented views of each training cell whose features it is trained on; it reconstructs the mean of the views
    from any one of them, so what differs between turns of a cell is noise to it. 1: plain features of the plain crop.
    beta : weight of the KL term.  class_weight : weight of a class head on the latent mean (0: none, as in the thesis).
    """

    latent_size: int = 50
    width: int = 512
    layers: int = 2
    dropout: float = 0.2
    pooling: Literal["flatten", "orbits"] = "flatten"
    views: int = 1
    beta: float = 1.0
    class_weight: float = 0.0
    batch_size: int = 128
    epochs: int = 20
    learning_rate: float = 1e-3


@dataclass(frozen=True)
class RunConfig:
    """All of a run.

    holdout : share held out by name hash, never trained on.  validation : share of the rest for curves.
    orientations : turns and mirrors of the crop averaged inside the exported trunk: 1, 2, 4 or 8.
    """

    name: str = "thesis"
    seed: int = 1
    holdout: float = 0.2
    validation: float = 0.05
    orientations: int = 1
    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)
    vae: VaeConfig = field(default_factory=VaeConfig)

    def to_json(self) -> dict[str, Any]:
        """The run as plain JSON values; `from_json` is its inverse."""
        return asdict(self)

    @staticmethod
    def from_json(values: dict[str, Any]) -> RunConfig:
        """The run that `to_json` wrote. Raises TypeError where a field is unknown."""
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
}
"""`thesis`: its table 3 (A) and 4. `full`: the thesis' network with what was found better. `starter`: narrow and small, for two cores."""


def override(config: RunConfig, settings: list[str]) -> RunConfig:
    """`config` with `key=value` settings laid over it, as in `classifier.epochs=3`. Raises ValueError naming a wrong key."""
    values = config.to_json()
    for setting in settings:
        key, equals, text = setting.partition("=")
        *path, last = key.strip().split(".")
        place: Any = values
        for part in path:
            place = place.get(part) if isinstance(place, dict) else None
        if not equals or not isinstance(place, dict) or last not in place or isinstance(place[last], dict):
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
