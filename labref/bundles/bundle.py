"""One shipped model version: a folder named by its digest, verified before any byte of it reaches the runtime.

A bundle holds `manifest.json`, `trunk.onnx`, `encoder.onnx`, `golden.npz` (inputs and outputs measured at export) and
`MODEL_CARD.md`; it may carry an atlas, cells of the central team's own (`labref.bundles.atlas`). It is shipped as one
zip file with the ending `.labref`. The manifest carries the SHA-256 of every other file, so the SHA-256 of the
manifest's bytes names, and vouches for, the whole. Who made it, a signature says (`labref.bundles.signing`).
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import lzma
import os
import re
import secrets
import shutil
import stat
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from labref.bundles.atlas import ARRAYS, PICTURES, Atlas
from labref.bundles.atlas import read as read_atlas
from labref.bundles.graph import check_graph
from labref.bundles.schema import MAX_MANIFEST_BYTES, WITH_ATLAS, check_manifest, parse_json
from labref.bundles.signing import (
    DETACHED,
    MAX_DOCUMENT_BYTES,
    SIGNATURE_FILE,
    Signature,
    Trust,
    Verdict,
    archive_parts,
    ends_whole,
    judge,
    read_signature,
)
from labref.cells.image import PREPARATION
from labref.errors import BundleError, OutdatedBundleError
from labref.failpoints import failpoint
from labref.files import LargeFileError, NoFileError, copy_file, digest_of, open_file, read_file
from labref.printing import printable

__all__ = [
    "FORMAT_VERSION",
    "MAX_BYTES",
    "NO_ARCHIVE",
    "SUFFIX",
    "WITHOUT_ATLAS",
    "Bundle",
    "Golden",
    "Manifest",
    "NoveltyThreshold",
    "Precision",
    "Trunk",
    "describe",
    "golden_terms",
    "install",
    "manifest_bytes",
    "pack",
    "remove",
    "starter_bundle",
    "unpacked",
]

FORMAT_VERSION = WITH_ATLAS
"""The newest bundle format that this labref reads: that of a bundle with an atlas."""
WITHOUT_ATLAS = 1
"""The format of a bundle without one, which every labref reads."""
SUFFIX = ".labref"
"""Ending of a bundle shipped as one file."""
MAX_BYTES = 2_000_000_000
"""Unpacked; a bundle larger than this is no bundle."""
NO_ARCHIVE = (
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    LookupError,
    NotImplementedError,
    OverflowError,
    RuntimeError,
    ValueError,
    EOFError,
)
"""What reading a file that is no sound zip archive raises."""
_MANIFEST = "manifest.json"
_DIMENSION = 6.0  # intrinsic dimension of a bundle's latents where it does not say: the first starter had 5.6
_REQUIRED = frozenset({"trunk.onnx", "encoder.onnx", "golden.npz", "MODEL_CARD.md"})
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
_MOST_FILES = 20
_ATLAS = frozenset({ARRAYS, PICTURES})
_MOST_BYTES = {
    _MANIFEST: MAX_MANIFEST_BYTES,
    "MODEL_CARD.md": 1_000_000,
    "golden.npz": 500_000_000,
    ARRAYS: 100_000_000,
    PICTURES: 1_000_000_000,
}
"""Of the files that are no graphs; a graph may have what is left of `MAX_BYTES`."""
_MOST_GOLDEN = 1_000  # crops
_ROUNDING = 0.02  # of a sum of probabilities, of a trunk of reduced precision
_TERMS = (
    "classes",
    "preparation",
    "features",
    "orientations",
    "latent",
    "novelty",
    "duplicates",
    "golden_tolerance",
    "optics",
    "quality",
    "trunks",
    "atlas",
)
"""Fields of a manifest that bear on answers."""
# a novelty threshold, times the mean distance of two cells; of the starters it was 0.08 to 0.13, of tiny trainings 0.6
_FARTHEST, _NEAREST = 2.0, 1e-4
_YOUNG = 100  # cells of a lab in which some must still be novel


@dataclass(frozen=True)
class NoveltyThreshold:
    """When nothing in the lab resembles a cell: the mean distance (mean squared error in latent space) of the `k`
    nearest is above `threshold`; `how` tells how it was calibrated.

    cells : among how many cells the nearest were looked for then.  dimension : intrinsic dimension of those cells'
    latents. Both are None in bundles made before they were kept; see `among`.
    """

    threshold: float
    k: int
    how: str
    cells: int | None = None
    dimension: float | None = None

    def among(self, cells: int) -> float:
        """The threshold for a lab with so many cells.

        Among n cells of intrinsic dimension d the nearest is about n^(-1/d) away, its mean squared error n^(-2/d)
        (Levina & Bickel 2004, eq. 4-8), so in a young lab everything is far: the threshold grows by (calibrated cells /
        cells)^(2/d). Measured with the starter on 300 cells of pbc, all of known classes: among 30 others 31 % of them
        were called novel without this and
        2.4 % with it; among 100, 9.7 % and 0.3 %; among 300, 4.5 % and 0.4 %. In a lab with more cells than were
        calibrated on it stays: whether a cell nearer than any between two known ones is novel, nobody has measured.
        """
        calibrated = self.cells
        if calibrated is None:
            told = re.search(r"of (\d[\d,]{0,12}) training cells", self.how)
            calibrated = int(told[1].replace(",", "")) if told else None
        if calibrated is None or not 0 < cells < calibrated:
            return self.threshold
        return float(self.threshold * (calibrated / cells) ** (2 / (self.dimension or _DIMENSION)))

    def to_json(self) -> dict[str, Any]:
        """As the manifest has it."""
        values: dict[str, Any] = {"threshold": self.threshold, "k": self.k, "how": self.how}
        return values | {
            name: value for name, value in (("cells", self.cells), ("dimension", self.dimension)) if value is not None
        }


Precision = Literal["full", "float16", "int8"]
"""Arithmetic of a trunk: float32 ("full"), float16 for GPUs, int8 for CPUs."""


@dataclass(frozen=True)
class Trunk:
    """A trunk of reduced precision beside the full one.

    file : its graph; empty where it was not admitted, and its figures only say why.  agreement : by kind of store, how
    many of a query's eight references stay, with an interval.  golden_tolerance : as the manifest's, for this trunk.
    measured : on how many cells, and how fast, at export.
    """

    precision: Precision
    file: str
    admitted: bool
    agreement: Mapping[str, Mapping[str, Any]]
    golden_tolerance: float
    measured: Mapping[str, Any]


@dataclass(frozen=True)
class Manifest:
    """What a bundle says of itself.

    labels : class names in the order of the trunk's probabilities.  class_ids, class_groups : id and group by class
    name.
    preparation : how crops were prepared; must equal `labref.cells.image.PREPARATION`.
    features : shape [h, w, c] at the break.  orientations : turns and mirrors averaged inside the trunk.
    duplicates : thresholds of the duplicate verdict.  golden_tolerance : largest absolute difference from the golden
    outputs that a runtime may show.  training, figures : where the model comes from and how it was measured, with the
    commands.
    files : SHA-256 and size in bytes of every other file of the bundle.
    optics : background, focus and colour of the training cells, as `labref.cells.optics.statistics` gives them; empty
    where not measured.
    quality : thresholds by which a picture is not that of one cell, see `labref.cells.quality`; empty where labref's
    own serve.
    trunks : trunks of reduced precision, those that may be used and those that were measured and may not.
    atlas : how many cells of the central team's own the bundle carries, of which classes and sources, under which
    licences, and how they were chosen; empty where it carries none.
    """

    format_version: int
    name: str
    version: str
    labels: tuple[str, ...]
    class_ids: Mapping[str, str]
    class_groups: Mapping[str, str]
    preparation: Mapping[str, Any]
    features: tuple[int, int, int]
    orientations: int
    latent_size: int
    latent_scale: float
    novelty: NoveltyThreshold
    duplicates: Mapping[str, Any]
    golden_tolerance: float
    training: Mapping[str, Any]
    figures: Mapping[str, Any]
    files: Mapping[str, Mapping[str, Any]]
    trunks: tuple[Trunk, ...] = ()
    optics: Mapping[str, Any] = field(default_factory=dict)
    quality: Mapping[str, Any] = field(default_factory=dict)
    atlas: Mapping[str, Any] = field(default_factory=dict)

    def trunk(self, precision: Precision) -> Trunk | None:
        """The admitted trunk of a reduced precision, or None."""
        return next((trunk for trunk in self.trunks if trunk.precision == precision and trunk.admitted), None)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values: the content of `manifest.json`."""
        return {
            "format_version": self.format_version,
            "name": self.name,
            "version": self.version,
            "classes": [
                {"index": i, "id": self.class_ids[label], "name": label, "group": self.class_groups[label]}
                for i, label in enumerate(self.labels)
            ],
            "preparation": dict(self.preparation),
            "features": list(self.features),
            "orientations": self.orientations,
            "latent": {"size": self.latent_size, "scale": self.latent_scale},
            "novelty": self.novelty.to_json(),
            "duplicates": dict(self.duplicates),
            "golden_tolerance": self.golden_tolerance,
            "training": dict(self.training),
            "figures": dict(self.figures),
            "files": {name: dict(entry) for name, entry in self.files.items()},
            **({"trunks": [vars(trunk) for trunk in self.trunks]} if self.trunks else {}),
            **({"optics": dict(self.optics)} if self.optics else {}),
            **({"quality": dict(self.quality)} if self.quality else {}),
            **({"atlas": dict(self.atlas)} if self.atlas else {}),
        }

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Manifest:
        """Read `manifest.json`'s values. Raises ValueError, naming each field that is wrong, where they are no
        manifest's (`labref.bundles.schema`)."""
        check_manifest(values)
        classes = sorted(values["classes"], key=lambda entry: int(entry["index"]))
        height, width, channels = (int(n) for n in values["features"])
        manifest = Manifest(
            format_version=int(values["format_version"]),
            name=str(values["name"]),
            version=str(values["version"]),
            labels=tuple(str(entry["name"]) for entry in classes),
            class_ids={str(entry["name"]): str(entry["id"]) for entry in classes},
            class_groups={str(entry["name"]): str(entry["group"]) for entry in classes},
            preparation=dict(values["preparation"]),
            features=(height, width, channels),
            orientations=int(values["orientations"]),
            latent_size=int(values["latent"]["size"]),
            latent_scale=float(values["latent"]["scale"]),
            novelty=NoveltyThreshold(
                float(values["novelty"]["threshold"]),
                int(values["novelty"]["k"]),
                str(values["novelty"]["how"]),
                None if values["novelty"].get("cells") is None else int(values["novelty"]["cells"]),
                None if values["novelty"].get("dimension") is None else float(values["novelty"]["dimension"]),
            ),
            duplicates=dict(values["duplicates"]),
            golden_tolerance=float(values["golden_tolerance"]),
            training=dict(values["training"]),
            figures=dict(values["figures"]),
            files={str(name): dict(entry) for name, entry in values["files"].items()},
            trunks=tuple(_trunk(entry) for entry in values.get("trunks", ())),
            optics=dict(values.get("optics") or {}),
            quality=dict(values.get("quality") or {}),
            atlas=dict(values.get("atlas") or {}),
        )
        _check_novelty(manifest)
        return manifest


def _check_novelty(manifest: Manifest) -> None:
    """Raise ValueError where the threshold and the other numbers it is used with make every cell novel, or none."""
    novelty, scale = manifest.novelty, manifest.latent_scale
    if novelty.dimension is not None and novelty.dimension > max(2 * manifest.latent_size, 4):
        raise ValueError(
            f"novelty.dimension is {novelty.dimension:g}, where latents have {manifest.latent_size} numbers (latent.size)"
        )
    for threshold, where in ((novelty.threshold, ""), (novelty.among(_YOUNG), f" in a lab of {_YOUNG} cells")):
        if threshold > _FARTHEST * scale:
            raise ValueError(
                f"novelty.threshold is {threshold:.3g}{where}, where cells are {scale:.3g} apart in the mean (latent.scale): no "
                "cell would be novel"
            )
    if novelty.threshold < _NEAREST * scale:
        raise ValueError(
            f"novelty.threshold is {novelty.threshold:.3g}, where cells are {scale:.3g} apart in the mean (latent.scale): every "
            "cell would be novel"
        )


def _trunk(entry: Mapping[str, Any]) -> Trunk:
    return Trunk(
        precision=entry["precision"],
        file=str(entry["file"]),
        admitted=bool(entry["admitted"]),
        agreement={str(name): dict(values) for name, values in entry["agreement"].items()},
        golden_tolerance=float(entry["golden_tolerance"]),
        measured=dict(entry["measured"]),
    )


@dataclass(frozen=True)
class Golden:
    """Crops uint8[n, 256, 256, 3] and what they gave at export: probabilities float32[n, c], latents float32[n, L]."""

    crops: NDArray[np.uint8]
    probabilities: NDArray[np.float32]
    latents: NDArray[np.float32]


@dataclass(frozen=True)
class Bundle:
    """A verified bundle on disk.

    folder : where it lies.  digest : SHA-256 of its manifest, 64 hexadecimal characters.  manifest : what it says of
    itself.
    """

    folder: Path
    digest: str
    manifest: Manifest

    @property
    def short(self) -> str:
        """First 12 characters of the digest: the bundle's name in folders, tables and answers."""
        return self.digest[:12]

    @property
    def title(self) -> str:
        """Its name, version and digest, for messages."""
        return f"{self.manifest.name}/{self.manifest.version} ({self.short})"

    @staticmethod
    def open(folder: Path, source: Path | None = None, *, signature: Signature | None = None) -> Bundle:
        """Open and verify the bundle in `folder`: every file there, none besides but its signature, each with its
        digest; the manifest makes sense.

        It reads every byte (10 MB of the starter: 30 ms). Raises `BundleError` naming the file or the field that is
        wrong. source : where the bundle came from, for that message, if the folder is only made for a while.
        signature : what somebody signed (`labref.bundles.signing.judge`); a manifest that is another one is not read.
        """
        where = source or folder
        raw = _read_small(folder, _MANIFEST)
        if signature is not None and hashlib.sha256(raw).hexdigest() != signature.bundle:
            raise BundleError(f"bundle at {where}: its {_MANIFEST} is not the one that was signed. Fetch it again.")
        manifest = _read_manifest(raw, where)
        if signature is not None and manifest.name != signature.name:
            raise BundleError(
                f"bundle at {where} is called {manifest.name}, and was signed as {printable(signature.name)}. Have it signed again."
            )
        try:
            present = {entry.name for entry in folder.iterdir()} - {_MANIFEST, SIGNATURE_FILE}
            expected = set(manifest.files)
            if present != expected:
                odd = ", ".join(sorted(ascii(name)[1:-1] for name in present ^ expected)[:_MOST_FILES])
                raise BundleError(f"bundle at {where} is not whole: missing or unknown {odd}. Install it again.")
            for name, entry in manifest.files.items():
                file = folder / name
                if file.is_symlink():
                    raise BundleError(f"bundle at {where}: {name} is a link to elsewhere. Install it again.")
                # a folder has a size too: what is no file is told by digest_of
                other_size = file.is_file() and file.stat().st_size != entry["bytes"]
                if other_size or digest_of(file) != entry["sha256"]:
                    raise BundleError(
                        f"bundle at {where} is damaged: {name} does not have its digest. Install it again."
                    )
        except NoFileError:
            raise BundleError(f"bundle at {where} is damaged: {name} is no file. Install it again.") from None
        except OSError as error:
            raise BundleError(f"bundle at {where} cannot be read: {error}. Install it again.") from None
        return Bundle(folder, hashlib.sha256(raw).hexdigest(), manifest)

    @staticmethod
    def installed(bundles: Path, digest: str) -> Bundle:
        """The bundle with this digest (64 hexadecimal characters) in the folder `bundles`, verified.

        Raises `BundleError`, also where its folder holds another bundle, however whole.
        """
        folder = bundles / digest[:12]
        found = Bundle.open(folder)
        if found.digest != digest:
            raise BundleError(
                f"the folder {folder} holds another bundle, {found.manifest.name}/{found.manifest.version} with the "
                f"digest {found.digest[:12]}. Install the bundle {digest[:12]} again: `labref bundle install FILE`."
            )
        return found

    @staticmethod
    def in_its_folder(folder: Path) -> Bundle:
        """The installed bundle in `folder`, verified; it must be the one that the folder is named after. Raises
        `BundleError`."""
        found = Bundle.open(folder)
        if found.short != folder.name:
            raise BundleError(
                f"the folder {folder} holds another bundle than its name says: {found.manifest.name}/"
                f"{found.manifest.version} with the digest {found.short}. Delete the folder, and install both again."
            )
        return found

    def signature(self) -> Signature | None:
        """The signature in its folder; whether it holds, `labref.bundles.signing.judge` says. None where it has none,
        or one that cannot be read."""
        with contextlib.suppress(OSError, BundleError):
            return read_signature(read_file(self.folder / SIGNATURE_FILE, MAX_DOCUMENT_BYTES), self.folder)
        return None

    def read(self, name: str) -> bytes:
        """The bytes of one of its files, the very ones that the manifest tells of. Raises `BundleError`."""
        try:
            raw = read_file(self.folder / name, int(self.manifest.files[name]["bytes"]))
        except OSError as error:
            raise BundleError(f"bundle {self.title}: {name} cannot be read: {error.strerror or error}") from None
        if hashlib.sha256(raw).hexdigest() != self.manifest.files[name]["sha256"]:
            raise BundleError(f"bundle {self.title}: {name} was changed since it was verified. Install it again.")
        return raw

    def check_graphs(self) -> None:
        """Raise `BundleError` where a graph of the bundle holds what none may (`labref.bundles.graph`)."""
        for name in self.manifest.files:
            if name.endswith(".onnx"):
                check_graph(self.read(name), name)

    @cached_property
    def atlas(self) -> Atlas | None:
        """The cells of the central team's own that the bundle carries; None where it carries none. Raises `BundleError`
        where its files hold no atlas, or another one than the manifest says."""
        manifest = self.manifest
        if not manifest.atlas:
            return None
        try:
            return read_atlas(self.folder, manifest.atlas, labels=manifest.labels, latent_size=manifest.latent_size)
        except (*NO_ARCHIVE, TypeError, KeyError, OSError) as error:
            raise BundleError(f"bundle {self.title}: its atlas cannot be used: {error}") from None

    def check_contents(self) -> None:
        """Raise `BundleError` where a graph of the bundle holds what none may, or its atlas is none."""
        self.check_graphs()
        _ = self.atlas

    def model_card(self) -> str:
        """The text of its model card, characters that would steer a terminal as their codes. Raises `BundleError`."""
        text = _read_small(self.folder, "MODEL_CARD.md").decode("utf-8", "replace")
        return "\n".join(map(printable, text.replace("\r\n", "\n").split("\n")))

    def golden(self, precision: Precision = "full") -> Golden:
        """The golden inputs, and the outputs that the trunk of that precision gave. Raises `BundleError` where the file
        holds no arrays of the manifest's shapes, or numbers that are not finite, or where the manifest has another
        order of classes, or other numbers, than the bundle that gave these outputs (`golden_terms`)."""
        ending = "" if precision == "full" else f"_{precision}"
        raw = self.read("golden.npz")
        try:
            with zipfile.ZipFile(io.BytesIO(raw)) as archive:
                unpacked_bytes = sum(info.file_size for info in archive.infolist())
            if unpacked_bytes > _MOST_BYTES["golden.npz"]:
                raise ValueError(f"it unpacks to {unpacked_bytes / 1e6:.0f} MB")
            with np.load(io.BytesIO(raw), allow_pickle=False) as arrays:
                golden = Golden(arrays["crops"], arrays[f"probabilities{ending}"], arrays[f"latents{ending}"])
                terms = str(arrays["terms"]) if "terms" in arrays else None
            _check_golden(golden, self.manifest)
            if terms is not None:  # bundles made before lack it
                _check_terms(terms, self.manifest)
        except (*NO_ARCHIVE, TypeError, OSError) as error:
            raise BundleError(f"bundle {self.title}: golden.npz cannot be used: {error}") from None
        return golden


def _check_golden(golden: Golden, manifest: Manifest) -> None:
    count = len(golden.crops) if golden.crops.ndim else 0
    if not 1 <= count <= _MOST_GOLDEN:
        raise ValueError(f"it must hold 1 to {_MOST_GOLDEN} crops, and holds {count}")
    wanted = {
        "crops": ((count, 256, 256, 3), np.uint8),
        "probabilities": ((count, len(manifest.labels)), np.float32),
        "latents": ((count, manifest.latent_size), np.float32),
    }
    for name, (shape, dtype) in wanted.items():
        array = getattr(golden, name)
        if array.shape != shape or array.dtype != dtype:
            raise ValueError(
                f"{name} must be {np.dtype(dtype)}{list(shape)}, and they are {array.dtype}{list(array.shape)}"
            )
        if not np.isfinite(array).all():
            raise ValueError(f"{name} must be finite")

    if (golden.probabilities < 0).any() or (np.abs(golden.probabilities.sum(axis=1) - 1) > _ROUNDING).any():
        raise ValueError("probabilities must be 0 or more, and those of a crop must add up to 1")


def golden_terms(manifest: Manifest) -> str:
    """What of a manifest bears on answers, class names and all numbers, as the JSON text that `golden.npz` holds under
    `terms`: the golden outputs are true of these only."""
    values = manifest.to_json()
    return json.dumps({name: values[name] for name in _TERMS if name in values}, ensure_ascii=False, sort_keys=True)


def _check_terms(terms: str, manifest: Manifest) -> None:
    """Raise ValueError where the manifest says other things than when the golden outputs were written."""
    then, now = parse_json(terms.encode()), json.loads(golden_terms(manifest))
    if not isinstance(then, dict):
        raise ValueError("its terms must be a JSON object")
    for name in _TERMS:
        if then.get(name) != now.get(name):
            raise ValueError(
                f"its outputs are of a bundle with other {name} than the manifest says: {_first_difference(then.get(name), now.get(name))}"
            )


def _first_difference(then: Any, now: Any) -> str:
    """The first place where two JSON values differ, on one line."""
    if isinstance(then, dict) and isinstance(now, dict):
        name = next(name for name in {**then, **now} if then.get(name) != now.get(name))
        return f"{ascii(name)[1:-1]}: {_first_difference(then.get(name), now.get(name))}"
    if isinstance(then, list) and isinstance(now, list) and len(then) == len(now):
        at = next(at for at, (one, other) in enumerate(zip(then, now, strict=True)) if one != other)
        return f"{at}: {_first_difference(then[at], now[at])}"
    return f"{ascii(then)[:60]} there, {ascii(now)[:60]} in the manifest"


def _read_small(folder: Path, name: str) -> bytes:
    """The bytes of a file of a bundle that is read whole. Raises `BundleError`."""
    try:
        return read_file(folder / name, _MOST_BYTES[name])
    except LargeFileError:
        raise BundleError(f"bundle at {folder}: {name} is longer than {_MOST_BYTES[name] / 1e6:g} MB") from None
    except NoFileError:
        raise BundleError(f"bundle at {folder} is damaged: {name} is no file. Install it again.") from None
    except OSError as error:
        raise BundleError(
            f"no bundle at {folder}: {error.strerror or error}. Install one with `labref init --bundle FILE`."
        ) from None


def _read_manifest(raw: bytes, where: Path) -> Manifest:
    try:
        values = parse_json(raw)
        version = values.get("format_version") if isinstance(values, dict) else None
        if type(version) is int and version > FORMAT_VERSION:
            raise BundleError(
                f"bundle at {where} has format {str(version)[:20]}, this labref knows up to {FORMAT_VERSION}. Upgrade labref."
            )
        manifest = Manifest.from_json(values)
    except ValueError as error:
        raise BundleError(f"bundle at {where} has no usable manifest: {error}") from None
    if not set(manifest.files) >= _REQUIRED or not all(_FILE_NAME.fullmatch(name) for name in manifest.files):
        raise BundleError(
            f"bundle at {where}: its manifest must name {', '.join(sorted(_REQUIRED))}, by plain file names"
        )
    trunks = {trunk.file for trunk in manifest.trunks if trunk.admitted}
    if not trunks <= set(manifest.files):
        raise BundleError(f"bundle at {where}: its manifest tells of a trunk that is not among its files")
    of_atlas = _ATLAS if manifest.atlas else frozenset()
    if not of_atlas <= set(manifest.files):
        raise BundleError(f"bundle at {where}: its manifest tells of an atlas that is not among its files")
    if unknown := set(manifest.files) - _REQUIRED - trunks - of_atlas:
        raise BundleError(
            f"bundle at {where}: its manifest names files that no bundle has: {', '.join(sorted(unknown))}"
        )
    sizes = {name: int(entry["bytes"]) for name, entry in manifest.files.items()}
    large = [name for name, size in sizes.items() if size > _MOST_BYTES.get(name, MAX_BYTES)]
    if large or sum(sizes.values()) > MAX_BYTES:
        raise BundleError(
            f"bundle at {where}: its manifest names files of impossible size: {', '.join(large or sizes)}"
        )
    if dict(manifest.preparation) != PREPARATION:
        raise OutdatedBundleError(
            f"bundle at {where} was trained on crops prepared as {dict(manifest.preparation)}, this labref prepares them "
            f"as {PREPARATION}. Use the labref that came with the bundle, or a bundle that was made for this one."
        )
    return manifest


def manifest_bytes(manifest: Manifest) -> bytes:
    """The bytes of `manifest.json`; their SHA-256 is the bundle's digest."""
    return (json.dumps(manifest.to_json(), indent=1, ensure_ascii=False, sort_keys=True) + "\n").encode()


def starter_bundle() -> Path:
    """The bundle that comes with labref, as one file."""
    path = Path(__file__).parents[1] / "starter" / f"starter{SUFFIX}"
    if not path.is_file():
        raise BundleError(f"the starter bundle is missing from this installation ({path}). Install labref again.")
    return path


def describe(folder: Path, manifest: Manifest) -> None:
    """Write the manifest of the files in a bundle's folder, and into its golden outputs what they are true of.

    manifest : without `files`, which are measured here; a signature is left out of them.
    """
    with np.load(folder / "golden.npz", allow_pickle=False) as arrays:
        golden = dict(arrays) | {"terms": np.array(golden_terms(manifest))}
    np.savez_compressed(folder / "golden.npz", **golden)
    files = {
        path.name: {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "bytes": path.stat().st_size}
        for path in sorted(folder.iterdir())
        if path.name not in (_MANIFEST, SIGNATURE_FILE)
    }
    (folder / _MANIFEST).write_bytes(manifest_bytes(replace(manifest, files=files)))


def pack(folder: Path, out: Path) -> Bundle:
    """Pack the bundle in `folder` as the one file `out`, after verifying it. The same bundle always gives the same
    bytes. Raises `BundleError`."""
    bundle = Bundle.open(folder)
    bundle.check_contents()
    temporary = out.with_name(out.name + ".part")
    with zipfile.ZipFile(temporary, "w", compression=zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name in [_MANIFEST, *sorted(bundle.manifest.files)]:
            entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, (folder / name).read_bytes())
    os.replace(temporary, out)
    return bundle


def install(
    source: Path,
    bundles: Path,
    check: Callable[[Bundle], object] | None = None,
    *,
    trust: Trust | None = None,
    admit: Callable[[Bundle, Verdict], object] | None = None,
) -> Bundle:
    """Bring the bundle at `source` (a `.labref` file or a folder) into the folder `bundles`, as `bundles/<short>/`.

    It is copied first; what is verified, before and after it is unpacked, is the copy. What is half-copied is never
    visible under its name; installing twice changes nothing. Its signature comes with it, as `signature.json`.
    check : called with the verified bundle; where it raises, nothing is installed.
    trust : what the lab believes; whoever else signed is refused before anything of the bundle is looked at. None, for
    the centre's own tools, asks for no signature.
    admit : called last, before the bundle gets its name, with why it may come in. Raises `BundleError`.
    """
    if not source.exists():
        raise BundleError(f"no bundle at {source}: there is no such file or folder")
    incoming = bundles / f".incoming-{secrets.token_hex(8)}"
    staging = incoming / "bundle"
    try:
        staging.mkdir(parents=True)  # with the rights of the folder around it, in a lab that its group shares
        failpoint("bundle.write")
        bundle, verdict = _take_in(source, incoming, staging, trust)
        failpoint("bundle.fsync")
        for path in staging.iterdir():
            with path.open("rb+") as file:
                os.fsync(file.fileno())
        if check is not None:
            check(bundle)
        if admit is not None:
            admit(bundle, verdict)
        target = bundles / bundle.short
        if target.exists() or target.is_symlink():
            try:
                there = Bundle.installed(bundles, bundle.digest)
                _carry_signature(staging, there)
                return there
            except BundleError:  # a damaged copy, or another bundle: the verified one takes its place
                shutil.rmtree(target) if target.is_dir() and not target.is_symlink() else target.unlink()
        failpoint("bundle.rename")
        os.replace(staging, target)
        failpoint("bundle.renamed", may_fail=False)
        return Bundle(target, bundle.digest, bundle.manifest)
    except OSError as error:
        raise BundleError(f"cannot install the bundle {source} into {bundles}: {error}") from None
    finally:
        shutil.rmtree(incoming, ignore_errors=True)


@contextlib.contextmanager
def unpacked(source: Path, trust: Trust | None = None) -> Iterator[tuple[Bundle, Verdict]]:
    """The bundle in a `.labref` file (or a folder), verified, for as long as the block lasts, and why it may come in.

    trust : as for `install`. Raises `BundleError`.
    """
    if source.is_dir() and trust is None:
        bundle = Bundle.open(source)
        bundle.check_contents()
        yield bundle, Verdict()
        return
    if not source.exists():
        raise BundleError(f"no bundle at {source}: there is no such file or folder")
    with tempfile.TemporaryDirectory(prefix="labref-bundle-", ignore_cleanup_errors=True) as folder:
        staging = Path(folder, "bundle")
        staging.mkdir()
        yield _take_in(source, Path(folder), staging, trust)


def _take_in(source: Path, incoming: Path, staging: Path, trust: Trust | None) -> tuple[Bundle, Verdict]:
    """Copy and unpack the bundle at `source` into the empty folder `staging`, verified; other copies go to `incoming`.

    Nothing of it is looked at before `trust` has judged its signature.
    """
    verdict = Verdict()
    if source.is_dir():
        raw = _beside(source / SIGNATURE_FILE)
        signature = None if raw is None else _signature(raw, source, trust)
        if trust is not None:
            verdict = judge(signature, trust, source)
        _copy_folder(source, staging, None if trust is None else signature)
    else:
        archive = incoming / "archive"
        digest, raw = _copy_archive(source, archive)
        if raw is None:
            raw = _beside(source.with_name(source.name + DETACHED))
        signature = None if raw is None else _signature(raw, source, trust)
        if signature is None and trust is not None and not _is_whole(archive):
            raise BundleError(
                f"{source} is no whole bundle: it does not end as a bundle's file ends. It was cut off or changed; copy or fetch it again."
            )
        if trust is not None:
            verdict = judge(signature, trust, source)
            if signature is not None and signature.archive != digest:
                raise BundleError(
                    f"{source} is damaged, or was changed after it was signed: it does not have the digest that the key {signature.key} "
                    "signed. Fetch it again from whoever made it."
                )
        _unpack(archive, staging, source)
        archive.unlink()
    bundle = Bundle.open(staging, source, signature=None if trust is None else signature)
    bundle.check_contents()
    if signature is not None and signature.bundle == bundle.digest:
        (staging / SIGNATURE_FILE).write_bytes(signature.to_bytes())
    return bundle, verdict


def _signature(raw: bytes, source: Path, trust: Trust | None) -> Signature | None:
    """What `raw` says; where nobody asks for a signature, what is none is left out."""
    try:
        return read_signature(raw, source)
    except BundleError:
        if trust is None:
            return None
        raise


def _beside(file: Path) -> bytes | None:
    """The bytes of a signature; None where there is no such file. Raises `BundleError` where it is none, or too
    long."""
    try:
        return read_file(file, MAX_DOCUMENT_BYTES)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BundleError(f"{file} is no signature: {error.strerror or error}.") from None


def _carry_signature(staging: Path, there: Bundle) -> None:
    """Give an installed bundle the signature that it came with this time."""
    if (staging / SIGNATURE_FILE).exists():
        os.replace(staging / SIGNATURE_FILE, there.folder / SIGNATURE_FILE)


def _copy_folder(source: Path, staging: Path, signature: Signature | None) -> None:
    """Copy the files of the bundle in the folder `source`. Raises `BundleError`, also for links: what they lead to can
    be changed from elsewhere."""
    original = Bundle.open(source, signature=signature)
    for name in [_MANIFEST, *original.manifest.files]:
        found = (source / name).lstat()
        if stat.S_ISLNK(found.st_mode) or found.st_nlink > 1:
            kind = "link to elsewhere" if stat.S_ISLNK(found.st_mode) else "hard link, so it has another name as well"
            raise BundleError(f"bundle at {source}: {name} is a {kind}. Copy the folder, and install the copy.")
        copy_file(source / name, staging / name)


def _is_whole(archive: Path) -> bool:
    with archive.open("rb") as file:
        return ends_whole(file)


def _copy_archive(source: Path, archive: Path) -> tuple[str, bytes | None]:
    """Copy a bundle's file; its digest and the comment, as `archive_parts` gives them. Raises `BundleError`."""
    try:
        with open_file(source) as file, archive.open("wb") as out:
            size = os.fstat(file.fileno()).st_size
            if size > MAX_BYTES:
                raise BundleError(f"{source} is no labref bundle: it is larger than {MAX_BYTES // 10**9} GB")
            return archive_parts(file, size, out)
    except NoFileError as error:
        raise BundleError(f"{source} is no labref bundle: {error.strerror}.") from None
    except OSError as error:
        raise BundleError(f"{source} cannot be read, or copied into {archive.parent}: {error.strerror}.") from None


def remove(bundles: Path, digest: str) -> None:
    """Delete the installed bundle with this digest from the folder `bundles`, if it is there. Raises `BundleError`."""
    target = bundles / digest[:12]
    if not target.exists():
        return
    try:
        # under another name first: a half-deleted bundle is never there under its own
        going = Path(tempfile.mkdtemp(prefix=".outgoing-", dir=bundles)) / target.name
        failpoint("bundle.remove")
        os.replace(target, going)
        shutil.rmtree(going.parent)
    except OSError as error:
        raise BundleError(
            f"the bundle in {target} cannot be deleted: {error.strerror or error}. Delete it by hand."
        ) from None


def _unpack(packed: Path, folder: Path, source: Path) -> None:
    """Unpack the file `packed` into `folder`. source : where it came from, for messages. Raises `BundleError`."""
    try:
        with open_file(packed) as file, zipfile.ZipFile(file) as archive:
            infos = archive.infolist()
            names = [info.filename for info in infos]
            if _MANIFEST not in names or len({name.lower() for name in names}) != len(names):
                raise BundleError(f"{source} is no labref bundle: it has no {_MANIFEST}, or a name twice")
            if not all(_FILE_NAME.fullmatch(name) for name in names):
                raise BundleError(f"{source} is no labref bundle: it holds names that are not plain file names")
            if len(infos) > _MOST_FILES:
                raise BundleError(f"{source} is no labref bundle: it holds {len(infos)} files")
            if any(info.file_size > _MOST_BYTES.get(info.filename, MAX_BYTES) for info in infos) or (
                sum(info.file_size for info in infos) > MAX_BYTES
            ):
                raise BundleError(f"{source} is no labref bundle: it unpacks to more than {MAX_BYTES // 10**9} GB")
            if linked := [name for name, info in zip(names, infos, strict=True) if _is_odd(info)]:
                raise BundleError(f"{source} is no labref bundle: {linked[0]} is a link in it, or no plain file")
            if any(info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for info in infos):
                raise BundleError(f"{source} is no labref bundle: it is packed by another method than `deflate`")
            for info in infos:
                with archive.open(info) as part, (folder / info.filename).open("wb") as out:
                    shutil.copyfileobj(part, out)
    except NO_ARCHIVE as error:
        raise BundleError(f"{source} is no labref bundle, or is damaged: {error}. Fetch it again.") from None
    except OSError as error:
        if error.errno is None:  # of a decompressor, not of the disk
            raise BundleError(f"{source} is no labref bundle, or is damaged: {error}. Fetch it again.") from None
        raise BundleError(f"{source} cannot be read, or unpacked into {folder}: {error.strerror}.") from None


def _is_odd(info: zipfile.ZipInfo) -> bool:
    kind = stat.S_IFMT(info.external_attr >> 16)
    return info.is_dir() or kind not in (0, stat.S_IFREG)
