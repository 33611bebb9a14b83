"""What the fields of a bundle's `manifest.json` may be: their types, ranges and lengths, and what must agree.

Nothing unknown, twice, not finite or absurd goes further: a bundle comes from elsewhere, and its digest says only that
it arrived as it was sent.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from labref.bundles.atlas import MOST_CELLS
from labref.printing import unprintable
from labref.words import MEASURES, look_of, name_key

__all__ = ["MAX_MANIFEST_BYTES", "WITH_ATLAS", "check_manifest", "check_name", "line", "parse_json"]

MAX_MANIFEST_BYTES: Final = 4_000_000
"""A longer manifest is none; the starter's has 12 kB."""
WITH_ATLAS: Final = 2
"""Format of a bundle that carries an atlas: a labref that knows no atlas refuses it, and says to upgrade."""
_LONGEST: Final = 100  # characters of a name
_MOST_TOLD: Final = 5  # faults of one manifest in a message
_LOOSEST: Final = 2.0  # of a golden tolerance: latents are of the size of one
_DEEPEST: Final = 12  # lists and objects in each other, in the free part of a manifest
_WINDOWS: Final = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
_DIGEST: Final = re.compile(r"[0-9a-fA-F]{12,64}")


def parse_json(raw: bytes) -> Any:
    """The JSON value in `raw`. Raises ValueError where it is none, too long, or too deep, or holds a name twice or a
    number that is not finite."""
    if len(raw) > MAX_MANIFEST_BYTES:
        raise ValueError(f"it is longer than {MAX_MANIFEST_BYTES / 1e6:g} MB")
    try:
        return json.loads(raw, object_pairs_hook=_once, parse_constant=_no_number)
    except RecursionError:
        raise ValueError("its lists and objects are nested too deep") from None


def check_manifest(values: Any) -> None:
    """Raise ValueError, naming each field that is wrong and why, where `values` are not those of a manifest."""
    try:
        _Manifest.model_validate(values)
    except ValidationError as error:
        told = [f"{_place(fault['loc'])}: {_reason(fault)}" for fault in error.errors(include_url=False)]
        more = [f"and {len(told) - _MOST_TOLD} more"] if len(told) > _MOST_TOLD else []
        raise ValueError("; ".join(told[:_MOST_TOLD] + more)) from None


def check_name(name: str) -> str:
    """The name of a bundle. Raises ValueError where it cannot be one."""
    if not 1 <= len(name) <= _LONGEST:
        raise ValueError(f"must have 1 to {_LONGEST} characters")
    return _no_digest(_nameable(line(name)))


def line(text: str) -> str:
    """The text, where it is one line of printable characters. Raises ValueError where it is not."""
    if unprintable(text) is not None or text != text.strip():
        raise ValueError("must be one line of printable text without spaces around it")
    return text


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for number, (name, _) in enumerate(pairs) if name in dict(pairs[:number]))
        raise ValueError(f"it holds the name {_shown(twice)} twice")
    return found


def _no_number(text: str) -> Any:
    raise ValueError(f"it holds {text}, which is no number of JSON")


def _place(where: Iterable[int | str]) -> str:
    return ".".join(part if isinstance(part, str) and part.isidentifier() else _shown(part) for part in where) or "all"


def _reason(fault: Mapping[str, Any]) -> str:
    said = str(fault["msg"]).removeprefix("Value error, ")
    said = {"Extra inputs are not permitted": "no such field", "Field required": "missing"}.get(said, said)
    given = fault["input"]
    return f"{said} (it is {_shown(given)})" if isinstance(given, bool | int | float | str) else said


def _shown(value: Any) -> str:
    """A value of a stranger's file, short and on one line."""
    text = ascii(value) if isinstance(value, str) else str(value)[:60]
    return text if len(text) <= 60 else f"{text[:57]}…"


def _nameable(text: str) -> str:
    if set(text) & set('/\\:*?"<>|'):
        raise ValueError('must hold none of / \\ : * ? " < > |')
    if not (text[0].isalnum() or text[0] == "_") or text.endswith("."):
        raise ValueError("must begin with a letter or a digit, and not end with a dot")
    if _WINDOWS.fullmatch(text):
        raise ValueError("is a name that Windows keeps for itself")
    return text


def _no_digest(text: str) -> str:
    if _DIGEST.fullmatch(text):
        raise ValueError("must not look like a digest")
    return text


def _label(text: str) -> str:
    if not name_key(text):
        raise ValueError("must hold letters or digits")
    if text[0] in "-." or "\\" in text or "\N{REPLACEMENT CHARACTER}" in text:
        raise ValueError("must not begin with - or a dot, nor hold a backslash")
    return text


def _printable(text: str) -> str:
    if unprintable(text.replace("\n", "")) is not None:
        raise ValueError("must hold printable text only")
    return text


def _plain(value: Any, deep: int = 0) -> Any:
    """Any JSON value that is finite and not too deep."""
    if deep > _DEEPEST:
        raise ValueError(f"must not be nested deeper than {_DEEPEST}")
    if isinstance(value, float) and not abs(value) < float("inf"):
        raise ValueError(f"must be finite, and holds {value}")
    if isinstance(value, dict):
        for name, item in value.items():
            if not isinstance(name, str):
                raise ValueError("must hold JSON only")
            _plain(item, deep + 1)
    elif isinstance(value, list | tuple):
        for item in value:
            _plain(item, deep + 1)
    elif not isinstance(value, str | int | float | None):
        raise ValueError("must hold JSON only")
    return value


Name = Annotated[str, Field(min_length=1, max_length=_LONGEST), AfterValidator(line)]
"""A name of one line."""
_Simple = Annotated[Name, AfterValidator(_nameable)]
_Label = Annotated[Name, AfterValidator(_label)]
_Words = Annotated[str, Field(max_length=2000), AfterValidator(_printable)]
_Count = Annotated[int, Field(ge=1, le=10**12)]
_Positive = Annotated[float, Field(gt=0, le=1e6)]
_Share = Annotated[float, Field(gt=0, le=1)]
_Free = Annotated[dict[Annotated[str, Field(max_length=1000)], Any], BeforeValidator(_plain)]
_Graph = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,93}\.onnx$")]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class _Class(_Strict):
    index: Annotated[int, Field(ge=0, lt=1000)]
    id: _Label
    name: _Label
    group: Name


class _Latent(_Strict):
    size: Annotated[int, Field(ge=1, le=4096)]
    scale: Annotated[float, Field(ge=1e-9, le=1e9)]


class _Novelty(_Strict):
    threshold: Annotated[float, Field(ge=1e-12, le=1e9)]
    k: Annotated[int, Field(ge=1, le=100)]
    how: _Words
    cells: Annotated[int, Field(ge=1, le=10**9)] | None = None
    # the threshold grows by a power of 2/dimension
    dimension: Annotated[float, Field(ge=0.5, le=4096)] | None = None

    @model_validator(mode="after")
    def _enough(self) -> _Novelty:
        if self.cells is not None and self.k > self.cells:
            raise ValueError(f"k must not be above cells, which is {self.cells}")
        return self


class _Duplicates(_Strict):
    """Thresholds of `labref.cells.sameness`; `farthest` is what bundles made for preparation 2 have instead of
    `same_within`.

    Ranges: of unrelated pictures some 32 of 64 bits differ, of simulated recaptures up to 10. Recaptures correlate by
    0.9 and more once registered, and are shifted by some 12 pixels; neighbouring cells are 30 pixels apart and more.
    """

    hash: Literal["dhash"]
    candidate_bits: Annotated[int, Field(ge=4, le=20)]
    duplicate_from: Annotated[float, Field(ge=0.9, le=0.995)]
    possible_from: Annotated[float, Field(ge=0.85, le=0.995)]
    same_within: Annotated[float, Field(ge=4, le=28)] | None = None
    farthest: Annotated[float, Field(ge=4, le=256)] | None = None
    how: _Words

    @model_validator(mode="after")
    def _in_order(self) -> _Duplicates:
        if self.possible_from > self.duplicate_from:
            raise ValueError(f"possible_from must not be above duplicate_from, which is {self.duplicate_from:g}")
        return self


class _OldDuplicates(_Strict):
    """The thesis' rule, of bundles before labref's own."""

    hash: Literal["average_hash"]
    duplicate_below: Annotated[int, Field(ge=1, le=20)]
    possible_up_to: Annotated[int, Field(ge=1, le=20)]
    how: _Words


class _NoDuplicates(_Strict):
    """Of bundles that leave it to labref."""


class _File(_Strict):
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    bytes: Annotated[int, Field(ge=0)]


class _Agreement(_Strict):
    value: Annotated[float, Field(ge=0, le=1000)]
    low: Annotated[float, Field(ge=0, le=1000)] | None
    high: Annotated[float, Field(ge=0, le=1000)] | None
    n: Annotated[int, Field(ge=0)]
    how: _Words


class _Trunk(_Strict):
    precision: Literal["float16", "int8"]
    file: _Graph | Literal[""]
    admitted: bool
    agreement: Annotated[dict[Name, _Agreement], Field(max_length=20)]
    golden_tolerance: _Positive
    measured: _Free

    @model_validator(mode="after")
    def _usable(self) -> _Trunk:
        if self.admitted != bool(self.file):
            raise ValueError("an admitted trunk has a file, and only that has")
        if self.admitted and self.golden_tolerance > _LOOSEST:
            raise ValueError(f"golden_tolerance of an admitted trunk must not be above {_LOOSEST:g}")
        if self.file in ("trunk.onnx", "encoder.onnx"):
            raise ValueError(f"file must be another one than {self.file}")
        return self


class _Measure(_Strict):
    median: Annotated[float, Field(ge=-1, le=255)]
    deviation: Annotated[float, Field(ge=0, le=128)]


class _Optics(_Strict):
    cells: _Count
    measures: Annotated[dict[Name, _Measure], Field(min_length=1)]

    @model_validator(mode="after")
    def _known(self) -> _Optics:
        for name, measure in self.measures.items():
            if name not in MEASURES:
                raise ValueError(f"{_shown(name)} is none of {', '.join(MEASURES)}")
            # density is a logarithm of at most 240, focus a ratio of deviations
            if not name.startswith("background") and max(measure.median, measure.deviation) > 10:
                raise ValueError(f"{name} must not be above 10")
        return self


class _Quality(_Strict):
    """Thresholds of `labref.cells.quality`. Ranges: such that neither every cell nor none can be doubted."""

    darkness: Annotated[float, Field(ge=0, le=1)]
    blueness: Annotated[float, Field(ge=0, le=0.5)]
    focus: Annotated[float, Field(ge=0, le=0.5)]
    grey: Annotated[float, Field(ge=0, le=0.1)]
    chroma: Annotated[float, Field(ge=0.8, le=4)]
    greenness: Annotated[float, Field(ge=-1, le=0.3)]
    redness: Annotated[float, Field(ge=-1, le=0.1)]
    inverted: Annotated[float, Field(ge=-5, le=20)]
    crowd: Annotated[float, Field(ge=1, le=100)]
    beside: Annotated[int, Field(ge=2, le=100)]
    cut: Annotated[float, Field(ge=0.5, le=4)]
    how: _Words


class _AtlasSource(_Strict):
    name: Annotated[str, Field(min_length=1, max_length=500), AfterValidator(line)]
    licence: Name
    cells: Annotated[int, Field(ge=0, le=MOST_CELLS)]


class _Atlas(_Strict):
    """What `labref.bundles.atlas` keeps: so many cells of each class, and where they are from."""

    cells: Annotated[int, Field(ge=1, le=MOST_CELLS)]
    classes: Annotated[dict[_Label, Annotated[int, Field(ge=0, le=MOST_CELLS)]], Field(max_length=1000)]
    sources: Annotated[list[_AtlasSource], Field(min_length=1, max_length=50)]
    how: _Words

    @model_validator(mode="after")
    def _adds_up(self) -> _Atlas:
        for name, counts in (("classes", self.classes.values()), ("sources", [one.cells for one in self.sources])):
            if sum(counts) != self.cells:
                raise ValueError(f"the cells of its {name} must add up to {self.cells}")
        return self


def _one_kind(value: Any) -> Any:
    """The thresholds as the model that fits their `hash`, so that a fault is told of that one."""
    kind = value.get("hash") if isinstance(value, Mapping) else None
    model: type[_Strict] = _Duplicates
    if kind == "average_hash":
        model = _OldDuplicates
    elif value == {}:
        model = _NoDuplicates
    return model.model_validate(value)


class _Manifest(_Strict):
    format_version: Annotated[int, Field(ge=1, le=1000)]
    name: Annotated[_Simple, AfterValidator(check_name)]
    version: _Simple
    classes: Annotated[list[_Class], Field(min_length=2, max_length=1000)]
    preparation: Annotated[dict[Name, Annotated[int, Field(ge=0, le=10**6)]], Field(max_length=20)]
    features: Annotated[list[Annotated[int, Field(ge=1, le=8192)]], Field(min_length=3, max_length=3)]
    orientations: Literal[1, 2, 4, 8]
    latent: _Latent
    novelty: _Novelty
    duplicates: Annotated[_Duplicates | _OldDuplicates | _NoDuplicates, BeforeValidator(_one_kind)]
    golden_tolerance: Annotated[float, Field(gt=0, le=_LOOSEST)]
    training: _Free
    figures: _Free
    files: Annotated[dict[str, _File], Field(max_length=20)]
    trunks: Annotated[list[_Trunk], Field(max_length=2)] = []
    optics: _Optics | None = None
    quality: _Quality | None = None
    atlas: _Atlas | None = None

    @model_validator(mode="after")
    def _atlas_of_these(self) -> _Manifest:
        if self.atlas is not None:
            if self.format_version < WITH_ATLAS:
                raise ValueError(f"a bundle with an atlas has format_version {WITH_ATLAS}")
            if strange := set(self.atlas.classes) - {one.name for one in self.classes}:
                raise ValueError(f"the atlas has cells of {_shown(min(strange))}, which is none of the classes")
        return self

    @model_validator(mode="after")
    def _each_once(self) -> _Manifest:
        if sorted(one.index for one in self.classes) != list(range(len(self.classes))):
            raise ValueError("the indices of classes must be 0, 1, 2 … each once")
        for kind, names in (("name", [one.name for one in self.classes]), ("id", [one.id for one in self.classes])):
            seen: dict[str, str] = {}
            for name in names:
                if (other := seen.get(look_of(name))) is not None:
                    raise ValueError(
                        f"two classes have the {kind}s {_shown(other)} and {_shown(name)}, which people cannot tell apart: case, "
                        "accents, punctuation and the plural make no difference"
                    )
                seen[look_of(name)] = name
        precisions = [one.precision for one in self.trunks]
        files = [one.file for one in self.trunks if one.file]
        if len(set(precisions)) < len(precisions) or len({name.lower() for name in files}) < len(files):
            raise ValueError("two trunks have one precision or one file")
        return self
