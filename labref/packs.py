"""Packs: what a lab gives to the centre, de-identified. Their format, written in a lab and read by the centre.

A pack is one file, a zip archive whose members are stored as they are:

    manifest.json      `Manifest`: which lab, which pack of it, what is in it, the digest of the other files
    cells.parquet      a row for each cell, in the order of `cell`; see `COLUMNS`
    removed.parquet    `cell` of those that earlier packs had and that the lab no longer gives

Its comment is the lab's signature (`labref.bundles.signing.PackSignature`), which holds every other byte of the file.
Nothing of a pack is looked at before that is seen to hold.

A pack holds what is new or has another label since the pack that it `follows`. The packs of a lab are a chain. Its
first one, and one that was asked to hold all, follows none.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Final, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from labref.bundles.bundle import NO_ARCHIVE
from labref.bundles.keyfile import SigningKey
from labref.bundles.schema import line, parse_json
from labref.bundles.signing import (
    MAX_NUMBER,
    KnownKey,
    PackSignature,
    archive_parts,
    canonical,
    ends_whole,
    first_fault,
    judge_pack,
    read_pack_signature,
)
from labref.cells.image import CROP_SIZE
from labref.errors import PackError
from labref.files import open_file
from labref.words import MEASURES

__all__ = [
    "CELLS",
    "COLUMNS",
    "CONSENT",
    "DATED",
    "MANIFEST",
    "MOST_CROP",
    "REMOVED",
    "Manifest",
    "Pack",
    "crop_in",
    "picture_of",
    "read_manifest",
    "take_in",
    "write",
]

FORMAT: Final = 1
MANIFEST: Final = "manifest.json"
CELLS: Final = "cells.parquet"
REMOVED: Final = "removed.parquet"
COLUMNS: Final[Mapping[str, tuple[str, str]]] = {
    "cell": ("VARCHAR", "which cell it is, under a pseudonym made with the lab's key: 16 hexadecimal characters"),
    "label": ("VARCHAR", "the class that a person gave it"),
    "label_source": ("VARCHAR", "where the person did so: in `labref`, or in the analyser, whose `export` says it"),
    "history": (
        "VARCHAR",
        "a fingerprint of who gave it which label when, made with the lab's key: the centre sees only whether any of that changed",
    ),
    "decisions": ("INTEGER", "how often people gave it a label in labref"),
    "optics": ("VARCHAR", "which analyser it is from, under a pseudonym made with the lab's key"),
    **dict.fromkeys(MEASURES, ("FLOAT", "a measure of the picture: background, focus or stain")),
    "latent": (
        "FLOAT[]",
        "its place in the latent space of the lab's bundle: numbers that the networks made of the picture",
    ),
    "crop": ("BLOB", "its prepared picture, 256×256, WebP without loss; no other text or data is in it"),
}
"""The columns of `cells.parquet`, in order: type, and what it is."""
DATED: Final = (
    "captured_at",
    "TIMESTAMP",
    "the day it was captured on, moved by one number of days that only the lab knows; never the time of day",
)
"""The column beside them where the lab gives shifted dates."""
MOST_CROP: Final = CROP_SIZE * CROP_SIZE * 4 + 4096
"""Bytes of a picture in a pack, at most: WebP makes noise hardly larger than it is."""
_LETTERS: Final = "A-Za-zÀ-ÖØ-öø-ÿ0-9"
CONSENT: Final = f"^[{_LETTERS}](?:[{_LETTERS} .,_:/+-]{{0,58}}[{_LETTERS}.+])?$"
"""What the lab's word for the licence or the consent looks like, as `CC BY 4.0` or `Samtycke: forskning, Skåne`."""

_DATE: Final = (1980, 1, 1, 0, 0, 0)  # of the members: a pack does not say when its files were made
_MOST_MANIFEST: Final = 1_000_000  # bytes
_MOST_CLASSES: Final = 1000
_CHUNK: Final = 1 << 20

_Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Entry(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    sha256: _Digest
    bytes: Annotated[int, Field(ge=0, le=2**50)]


class Manifest(BaseModel):
    """What a pack says of itself.

    lab : id of its key.  number : grows from pack to pack of a lab.  follows : digest of the archive of the pack before
    it, or None.  preparation : version of `labref.cells.image.PREPARATION`.  bundle : digest of the bundle whose
    latents are in it, of `latent_size` numbers each; None and 0 without.  consent : on what ground the lab gives it.
    classes : cells of each label.  files : digest and size of the other members.
    """

    model_config = ConfigDict(strict=True, extra="forbid")

    kind: Literal["labref pack"] = "labref pack"
    format: Annotated[int, Field(ge=1)] = FORMAT
    labref: Annotated[str, Field(pattern=r"^[0-9A-Za-z.+-]{1,40}$")]
    lab: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    number: Annotated[int, Field(ge=1, le=MAX_NUMBER)]
    follows: _Digest | None
    preparation: Annotated[int, Field(ge=1)]
    bundle: _Digest | None
    latent_size: Annotated[int, Field(ge=0, le=4096)]
    consent: Annotated[str, Field(pattern=CONSENT)]
    dates: Literal["none", "shifted"]
    cells: Annotated[int, Field(ge=0, le=2**40)]
    removed: Annotated[int, Field(ge=0, le=2**40)]
    classes: Annotated[dict[str, Annotated[int, Field(ge=1)]], Field(max_length=_MOST_CLASSES)]
    files: dict[str, _Entry]

    @property
    def columns(self) -> dict[str, str]:
        """Names and types of the columns of its `cells.parquet`, in order."""
        own = {name: kind for name, (kind, _) in COLUMNS.items()}
        return own | ({DATED[0]: DATED[1]} if self.dates == "shifted" else {})


@dataclass(frozen=True)
class Pack:
    """A pack whose signature holds, unpacked. digest : of its archive.  folder : where its members lie."""

    manifest: Manifest
    signature: PackSignature
    folder: Path

    @property
    def digest(self) -> str:
        """SHA-256 of its archive, 64 hexadecimal characters, by which the next pack names it."""
        return self.signature.archive


def picture_of(crop: NDArray[np.uint8]) -> bytes:
    """A crop uint8[256, 256, 3] as a pack holds it."""
    made = io.BytesIO()
    # this effort makes 56 kB of a cell in 14 ms; the most makes 53 in 90 (24 cells of five optics)
    Image.fromarray(crop).save(made, "WEBP", lossless=True, method=1, quality=20)
    return made.getvalue()


def crop_in(picture: bytes) -> NDArray[np.uint8]:
    """The crop uint8[256, 256, 3] in a pack's picture. Raises ValueError where it is no picture of that size, or holds
    anything beside its pixels."""
    if not 25 < len(picture) <= MOST_CROP or picture[:4] != b"RIFF" or picture[8:16] != b"WEBPVP8L":
        raise ValueError("it is no lossless WebP")
    size = int.from_bytes(picture[16:20], "little")
    if int.from_bytes(picture[4:8], "little") != len(picture) - 8 or size + size % 2 + 20 != len(picture):
        raise ValueError("it holds more than its pixels")
    sides = int.from_bytes(picture[21:25], "little")
    if picture[20] != 0x2F or (1 + (sides & 0x3FFF), 1 + (sides >> 14 & 0x3FFF)) != (CROP_SIZE, CROP_SIZE):
        raise ValueError(f"it is not {CROP_SIZE}×{CROP_SIZE}")
    try:
        with Image.open(io.BytesIO(picture), formats=("WEBP",)) as opened:
            crop = np.asarray(opened)
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"it cannot be decoded: {error}") from None
    if crop.shape != (CROP_SIZE, CROP_SIZE, 3):
        raise ValueError("it is not opaque")
    return crop


def write(folder: Path, manifest: Manifest, key: SigningKey, out: Path) -> str:
    """Write the members in `folder` as the signed pack `out`, a new file, and return the digest of its archive. The
    same members give the same bytes.

    manifest : its `files` are measured here. The file is flushed to the disk. Raises OSError.
    """
    files = {name: _entry(folder / name) for name in (CELLS, REMOVED)}
    told = manifest.model_copy(update={"files": files})
    with zipfile.ZipFile(out, "x", compression=zipfile.ZIP_STORED) as archive:
        archive.writestr(_member(MANIFEST), canonical(told.model_dump()))
        for name in files:
            with (folder / name).open("rb") as source, archive.open(_member(name), "w", force_zip64=True) as target:
                while part := source.read(_CHUNK):
                    target.write(part)
    with out.open("rb+") as file:
        digest, _ = archive_parts(file, os.fstat(file.fileno()).st_size)
        unsigned = PackSignature(digest, key.public.id)
        comment = replace(unsigned, value=key.sign(unsigned.message())).to_bytes()
        file.seek(-2, io.SEEK_END)  # the length of the comment, which was none
        file.write(len(comment).to_bytes(2, "little") + comment)
        file.flush()
        os.fsync(file.fileno())
    return digest


def take_in(source: Path, keys: Mapping[str, KnownKey], folder: Path) -> Pack:
    """Copy the pack `source` into the empty folder `folder`, verified and unpacked.

    What is verified is the copy. keys : those that are trusted, by id; nothing of the pack is looked at before one of
    them is seen to have signed it whole. Raises `PackError`, also where it cannot be read or copied.
    """
    copy = folder / "pack"
    try:
        with open_file(source) as file, copy.open("xb") as out:
            digest, comment = archive_parts(file, os.fstat(file.fileno()).st_size, out)
        with copy.open("rb") as file:
            if comment is None and ends_whole(file):
                raise PackError(f"{source} is not signed, so no lab vouches for it. Ask the lab for a signed one.")
            if comment is None:
                raise PackError(
                    f"{source} is no whole pack: it does not end as a pack ends. It was cut off or changed; copy or fetch it again."
                )
            signature = read_pack_signature(comment, source)
            judge_pack(signature, keys, source)
            if signature.archive != digest:
                raise PackError(
                    f"{source} is damaged, or was changed after it was signed: it does not have the digest that the key {signature.key} "
                    "signed. Copy or fetch it again."
                )
            manifest = _unpack(file, folder, source)
        copy.unlink()
    except OSError as error:
        raise PackError(
            f"{source} cannot be read, or copied into {folder}: {getattr(error, 'strerror', None) or error}."
        ) from None
    if manifest.lab != signature.key:
        raise PackError(f"{source} says that it is of the lab {manifest.lab}, and the key {signature.key} signed it.")
    return Pack(manifest, signature, folder)


def _member(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, date_time=_DATE)
    entry.external_attr = (stat.S_IFREG | 0o600) << 16
    return entry


def _entry(file: Path) -> _Entry:
    digest = hashlib.sha256()
    with file.open("rb") as source:
        while part := source.read(_CHUNK):
            digest.update(part)
        return _Entry(sha256=digest.hexdigest(), bytes=source.tell())


def _unpack(file: BinaryIO, folder: Path, source: Path) -> Manifest:
    """Unpack an archive whose signature holds: a lab's own labref may still be another, or nobody's. Raises
    `PackError`."""
    names = {MANIFEST, CELLS, REMOVED}
    try:
        with zipfile.ZipFile(file) as archive:
            infos = archive.infolist()
            if sorted(info.filename for info in infos) != sorted(names):
                raise PackError(f"{source} is no pack: it holds other files than {', '.join(sorted(names))}.")
            for info in infos:
                kind = stat.S_IFMT(info.external_attr >> 16)
                if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size or info.is_dir():
                    raise PackError(f"{source} is no pack: {info.filename} is not stored as it is.")
                if kind not in (0, stat.S_IFREG):
                    raise PackError(f"{source} is no pack: {info.filename} is a link in it, or no plain file.")
            if archive.getinfo(MANIFEST).file_size > _MOST_MANIFEST:
                raise PackError(f"{source} is no pack: its manifest is longer than {_MOST_MANIFEST / 1e6:g} MB.")
            manifest = _manifest(archive.read(MANIFEST), source)
            for name in (CELLS, REMOVED):
                with archive.open(name) as part, (folder / name).open("xb") as out:
                    while data := part.read(_CHUNK):
                        out.write(data)
                    out.flush()
                    os.fsync(out.fileno())
                if _entry(folder / name) != manifest.files[name]:
                    raise PackError(f"{source} is damaged: {name} is not what its manifest says.")
            (folder / MANIFEST).write_bytes(canonical(manifest.model_dump()))
    except NO_ARCHIVE as error:
        raise PackError(f"{source} is no pack, or is damaged: {error}.") from None
    return manifest


def _manifest(raw: bytes, source: Path) -> Manifest:
    """Raises `PackError`."""
    try:
        values: Any = parse_json(raw)
        kind, version = (values.get("kind"), values.get("format")) if isinstance(values, dict) else (None, None)
        if kind != "labref pack":
            raise ValueError("it is not that of a pack")
        if type(version) is int and version > FORMAT:
            raise ValueError(f"it has format {str(version)[:20]}, this labref knows up to {FORMAT}; upgrade labref")
        manifest = Manifest.model_validate(values)
        for label in manifest.classes:
            if not 1 <= len(label) <= 100:
                raise ValueError("a class has no name, or one of more than 100 characters")
            line(label)
        if set(manifest.files) != {CELLS, REMOVED}:
            raise ValueError("it names other files than a pack has")
        if sum(manifest.classes.values()) != manifest.cells:
            raise ValueError("its counts do not agree")
    except ValidationError as error:
        raise PackError(f"{source} has no usable manifest: {first_fault(error)}.") from None
    except ValueError as error:
        raise PackError(f"{source} has no usable manifest: {error}.") from None
    return manifest


def read_manifest(file: Path) -> Manifest:
    """The manifest of a pack that was taken in. Raises `PackError`."""
    try:
        return _manifest(file.read_bytes(), file)
    except OSError as error:
        raise PackError(f"{file} cannot be read: {error.strerror or error}.") from None
