"""The configuration of a run: one frozen value, written as `run.json`, from which the run can be repeated.

Each setting is declared once, here: its type, its range, its default and its effect.
`python -m training settings` lists them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, field, replace
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, ValidationInfo, WrapValidator, field_validator
from pydantic.dataclasses import dataclass

from labref.bundles.schema import check_name
from labref.printing import unprintable
from training.settings import SettingsError, override_settings, read_settings

__all__ = ["PRESETS", "Augmentation", "ClassifierConfig", "RunConfig", "VaeConfig", "override"]

_CHECKED = ConfigDict(extra="forbid", strict=True, validate_default=True, allow_inf_nan=False)
_LARGEST_SEED = 2_000_000  # a thousand times the seed, and the epochs, must fit into 32 bits


def _as_written(value: Any, check: Any) -> Any:
    number = check(value)
    return value if type(value) is int else number


Number = Annotated[float, WrapValidator(_as_written)]
"""A finite number. A whole number stays as written, 90 or 90.0, because a model's version is a digest of the JSON."""
Share = Annotated[Number, Field(ge=0, le=1)]
Weight = Annotated[Number, Field(ge=0)]
Rate = Annotated[Number, Field(gt=0, le=1)]
Epochs = Annotated[int, Field(ge=1, le=10_000)]
BatchSize = Annotated[int, Field(ge=1, le=65_536)]
Name = Annotated[str, Field(min_length=1)]


def _at_least(value: float, info: ValidationInfo, other: str) -> float:
    low = info.data.get(other)  # missing where the other setting is itself wrong
    if low is not None and value < low:
        raise ValueError(f"must not be below {other}, which is {low:g}")
    return value


@dataclass(frozen=True, config=_CHECKED)
class Augmentation:
    """Random changes of a training crop; thesis table 3, with rotations over ±180° (its future work)."""

    rotation_degrees: Number = Field(default=180.0, ge=0, le=180, description="Turn the crop by up to ± this angle.")
    flip: bool = Field(default=True, description="Mirror the crop at random.")
    shift: Share = Field(default=0.06, description="Shift the crop by up to ± this share of its side.")
    zoom: Number = Field(default=0.1, ge=0, lt=1, description="Scale the crop by 1 ± up to this.")
    gain: Share = Field(default=0.12, description="Multiply each colour channel by 1 ± up to this.")
    brightness: Share = Field(default=0.05, description="Multiply all channels together by 1 ± up to this.")
    blur: Share = Field(
        default=0.2, description="Probability of a 3×3 binomial blur, as of a cell that is out of focus."
    )

    # The effects of other microscopes, stains and scanners, as changes of optical density (absorbance).
    contrast_low: Number = Field(
        default=1.0, gt=0, le=10, description="Lowest factor on all optical densities; it is drawn log-uniformly."
    )
    contrast_high: Number = Field(
        default=1.0, gt=0, le=10, description="Highest factor on all optical densities; not below contrast_low."
    )
    stain: Number = Field(
        default=0.0, ge=0, le=3, description="Multiply the optical density of each channel by exp(± up to this)."
    )
    mixing: Share = Field(
        default=0.0, description="Add up to ± this share of each other channel's optical density to a channel's own."
    )
    tint: Number = Field(
        default=0.0,
        ge=0,
        le=3,
        description="Lay an optical density of up to this over the crop, a sloping plane in each channel: uneven "
        "light.",
    )
    focus: Number = Field(
        default=0.0,
        ge=0,
        le=2,
        description="Blend in up to this much of a wide blur, or take as much away: the halos of a sharpening camera.",
    )
    noise: Number = Field(
        default=0.0,
        ge=0,
        le=255,
        description="Add noise of a standard deviation of 0 to this; intensities are 0 to 255.",
    )
    cut: Share = Field(
        default=0.0, description="Probability that background cuts the crop off beside the cell, as at an image's edge."
    )
    optics_share: Share = Field(
        default=1.0, description="Probability that a crop is changed in its optics, from contrast_low to cut, at all."
    )

    # Neighbouring cells, drawn before all other changes. The middle of the crop (20 px) and the label are not changed.
    neighbour: Share = Field(
        default=0.0,
        description="Probability that another training cell, of the same optics and if possible another class, is laid "
        "beside the cell, at any angle, by the darker pixel of each.",
    )
    neighbour_near: Number = Field(
        default=80.0,
        ge=0,
        le=256,
        description="Least distance of a neighbour from the middle, pixels of the 256-px crop.",
    )
    neighbour_far: Number = Field(
        default=130.0, ge=0, le=256, description="Largest distance of a neighbour; not below neighbour_near."
    )
    neighbour_second: Share = Field(default=0.25, description="Probability of a second neighbour, where there is one.")
    neighbour_faded: Share = Field(
        default=0.5,
        description="Probability that what lies beyond a soft edge between the two cells is faded to the background, "
        "as the preparation fades other cells.",
    )

    @field_validator("contrast_high")
    @classmethod
    def _contrast_in_order(cls, value: float, info: ValidationInfo) -> float:
        return _at_least(value, info, "contrast_low")

    @field_validator("neighbour_far")
    @classmethod
    def _neighbours_in_order(cls, value: float, info: ValidationInfo) -> float:
        return _at_least(value, info, "neighbour_near")

    @property
    def changes_optics(self) -> bool:
        """Whether any change of optical density, focus or noise is switched on."""
        moved = (self.stain, self.mixing, self.tint, self.focus, self.noise, self.cut)
        return any(moved) or (self.contrast_low, self.contrast_high) != (1.0, 1.0)


@dataclass(frozen=True, config=_CHECKED)
class ClassifierConfig:
    """The modified Xception and its training."""

    width: Number = Field(default=1.0, gt=0, le=8, description="Factor on the number of filters; 1 is the thesis'.")
    input_size: int = Field(
        default=224,
        ge=32,
        le=512,
        multiple_of=32,  # it is halved five times
        description="Side in pixels to which the crop of 256 px is rescaled.",
    )
    circle: bool = Field(
        default=False,
        description="Look at the circle inscribed in the crop alone: what the corners hold changes as a cell is "
        "turned.",
    )
    upright: bool = Field(
        default=False,
        description="Turn and mirror each crop first so that a cell lies alike however its picture was turned, by where "
        "its density lies; what is turned in from beyond its corners is left out by circle.",
    )
    middle_repeats: int = Field(
        default=3, ge=0, le=100, description="Times that the middle flow is repeated; the thesis has three."
    )
    break_channels: int = Field(
        default=256, ge=1, le=8192, description="Channels at the break, where features are taken; the thesis has 256."
    )
    normalisation: Literal["batch", "group"] = Field(
        default="batch",
        description="batch is the thesis'; group, over 8 groups of channels (Wu & He, arXiv 1803.08494), does not "
        "depend on the statistics of the optics trained on.",
    )
    batch_norm_momentum: Number = Field(
        default=0.9,
        ge=0,
        lt=1,
        description="Share of the old value in the running statistics of a batch normalisation.",
    )
    batch_size: BatchSize = Field(default=32, description="Crops in a step of training.")
    epochs: Epochs = Field(default=50, description="Passes over all training cells.")
    learning_rate: Rate = Field(default=1e-3, description="Learning rate of Adam, at its highest.")
    schedule: Literal["constant", "cosine"] = Field(
        default="cosine",
        description="Course of the learning rate: constant, or falling to zero by a cosine after warmup_epochs.",
    )
    warmup_epochs: Number = Field(
        default=0.5, ge=0, description="Epochs in which the rate of a cosine schedule rises; no more than epochs."
    )
    label_smoothing: Number = Field(
        default=0.0, ge=0, lt=1, description="Share of each label that is spread evenly over all classes."
    )
    class_weights: Literal["none", "sqrt", "balanced"] = Field(
        default="none",
        description="How classes count: each image the same, by the inverse square root of the class's size, or each "
        "class the same.",
    )
    mixed_precision: bool = Field(
        default=False,
        description="Compute in half precision, float16 on GPUs and bfloat16 on the processor; what is shipped is "
        "float32.",
    )
    attribute_weight: Weight = Field(
        default=0.0,
        description="Weight of a head for each expert attribute, where the run has some: features then hold what "
        "experts see beyond the class.",
    )
    domain_weight: Weight = Field(
        default=0.0,
        description="Weight of a head that tells the run's domains apart, with its gradient reversed (Ganin & "
        "Lempitsky, arXiv 1409.7495): features learn not to hold the optics.",
    )
    initial: str = Field(
        default="",
        description="A classifier.keras to start from, trained or of a bundle (python -m training adopt), layer by "
        "layer where shapes agree.",
    )
    augmentation: Augmentation = field(default_factory=Augmentation)

    @field_validator("normalisation")
    @classmethod
    def _channels_in_groups(cls, value: str, info: ValidationInfo) -> str:
        channels = info.data.get("break_channels", 8)
        if value == "group" and channels % 8:
            raise ValueError(f"needs break_channels to be a multiple of 8, and it is {channels}")
        return value

    @field_validator("warmup_epochs")
    @classmethod
    def _warmed_up_in_time(cls, value: float, info: ValidationInfo) -> float:
        epochs = info.data.get("epochs")
        if epochs is not None and info.data.get("schedule") == "cosine" and value > epochs:
            raise ValueError(f"must not be above epochs, which is {epochs}")
        return value


@dataclass(frozen=True, config=_CHECKED)
class VaeConfig:
    """The variational autoencoder on the features at the break (Keng's: dense layers of equal width)."""

    latent_size: int = Field(default=50, ge=1, le=4096, description="Numbers in a latent.")
    width: int = Field(default=512, ge=1, le=65_536, description="Units of each hidden layer.")
    layers: int = Field(default=2, ge=0, le=20, description="Hidden layers of the encoder, and as many of the decoder.")
    dropout: Number = Field(default=0.2, ge=0, lt=1, description="Share of a hidden layer's units left out of a step.")
    pooling: Literal["flatten", "orbits"] = Field(
        default="flatten",
        description="flatten, the thesis', takes height × width × channels; orbits, the mean over cells of the feature "
        "grid that turns by 90° and mirrors carry into each other, makes the latent indifferent to them.",
    )
    views: int = Field(
        default=1,
        ge=1,
        le=1000,
        description="Views of each training cell; the VAE reconstructs their mean from any one, so turns of a cell are "
        "noise to it. 1: the plain crop alone.",
    )
    optics_views: int = Field(
        default=0,
        ge=0,
        le=999,
        description="So many of the views, the last ones and never the first, are also changed as the classifier's "
        "augmentation changes optics and lays neighbours.",
    )
    beta: Weight = Field(default=1.0, description="Weight of the KL term; 0 gives a plain autoencoder.")
    class_weight: Weight = Field(
        default=0.0, description="Weight of a class head on the latent mean; 0, as in the thesis, is without."
    )
    attribute_weight: Weight = Field(
        default=0.0,
        description="Weight of a head for each expert attribute on the latent mean, where the run has some.",
    )
    neighbour_weight: Weight = Field(
        default=0.0,
        description="Weight of the neighbours' agreement: cells near in latent space are drawn to be of one class and "
        "share attributes (as neighbourhood components analysis, Goldberger et al. 2004).",
    )
    batch_size: BatchSize = Field(default=128, description="Cells in a step of training.")
    epochs: Epochs = Field(default=20, description="Passes over all training cells.")
    learning_rate: Rate = Field(
        default=1e-3, description="Learning rate of Adam at the start; it falls to zero by a cosine."
    )


@dataclass(frozen=True, config=_CHECKED)
class RunConfig:
    """All of a run."""

    name: Name = Field(
        default="thesis", description="Name of the bundle made of the run; `train` takes the name of the run's folder."
    )
    seed: int = Field(
        default=1,
        ge=0,
        le=_LARGEST_SEED,
        description="Seed of all that is drawn at random; the split does not depend on it.",
    )
    holdout: Number = Field(
        default=0.2, ge=0, lt=1, description="Share of the images held out by name hash and never trained on."
    )
    validation: Number = Field(
        default=0.05, ge=0, lt=1, description="Share of the rest that the curves are measured on."
    )
    orientations: Literal[1, 2, 4, 8] = Field(
        default=1, description="Turns and mirrors of the crop that are averaged inside the exported trunk."
    )
    domains: tuple[Name, ...] = Field(
        default=(),
        examples=[["pbc", "bonemarrow"]],
        description="Folders in the data folder, one for each optics, that hold the class folders; none: the data "
        "folder does.",
    )
    aliases: dict[Name, Name] = Field(
        default_factory=dict,
        examples=[{"promyelocyte": "ig"}],
        description="Label for the name of a class folder, where they differ.",
    )
    attributes: str = Field(
        default="",
        description="CSV of expert attributes, its path from the data folder: a column path whose last part is an "
        "image's name, and one column for each attribute.",
    )
    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)
    vae: VaeConfig = field(default_factory=VaeConfig)

    @field_validator("name")
    @classmethod
    def _one_line(cls, value: str) -> str:
        if (
            unprintable(value) is not None
            or value != value.strip()
            or len(value) > 100
            or "/" in value
            or "\\" in value
        ):
            raise ValueError("must be one line of up to 100 characters, without slashes and without spaces around it")
        return value

    @field_validator("domains")
    @classmethod
    def _folder_names(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name in (".", "..") or "/" in name or "\\" in name:
                raise ValueError(f"names {name!r}, which is no folder of the data folder itself")
            if value.count(name) > 1:
                raise ValueError(f"names {name!r} twice")
        return value

    def to_json(self) -> dict[str, Any]:
        """The run as plain JSON values; `from_json` is its inverse."""
        values = asdict(self) | {"domains": list(self.domains)}
        for name in ("circle", "upright"):  # younger than shipped bundles: a model's version is a digest of the rest
            if not values["classifier"][name]:
                del values["classifier"][name]
        return values

    @staticmethod
    def from_json(values: Any) -> RunConfig:
        """The run that `to_json` wrote, of this labref or an earlier one. Raises `SettingsError`."""
        return read_settings(RunConfig, values)


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
            augmentation=Augmentation(
                rotation_degrees=90, flip=False, shift=0.0, zoom=0.1, gain=0.0, brightness=0.0, blur=0.0
            ),
        ),
        vae=VaeConfig(batch_size=32),
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
"""The presets by name. `thesis`: model B of the thesis' table 3, which it chose (section 5.1), its table 4, and the VAE
of its section 5.2; what a rotation leaves blank is background, and was black there. `full`: the thesis' network with
later improvements. `starter`: a narrow and small network, for two cores. `optics`: a starter trained further on other
optics, from the weights of a trained starter (`classifier.initial`). `experts`: an `optics` network trained further on
expert attributes, from its weights; crops are hardly zoomed, as experts also judge the size of a cell. labref ships
it."""


def override(config: RunConfig, settings: Sequence[str]) -> RunConfig:
    """`config` with `key=value` settings laid over it, as `classifier.epochs=3`. Raises `SettingsError`, also where no
    bundle may have the name that they give: that would be said only after the training."""
    made = override_settings(RunConfig, config.to_json(), settings)
    try:
        check_name(made.name)
    except ValueError as error:
        if made.name != config.name:
            raise SettingsError([f"name={made.name}: a bundle may not be called so, it {error}"], "--set") from None
    return made
