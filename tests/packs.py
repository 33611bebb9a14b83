"""Packs for tests, made without a lab: of any cells, and wrong in any way."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from labref.bundles.keyfile import SigningKey
from labref.bundles.signing import PackSignature, archive_parts, canonical
from labref.cells.image import PREPARATION
from labref.packs import CELLS, REMOVED, Manifest, picture_of, write
from labref.words import MEASURES

__all__ = ["Given", "GivingLab", "members", "sealed"]

OPTICS = "0123456789ab"


@dataclass(frozen=True)
class Given:
    """A cell of a pack. crop : uint8[256, 256, 3], or the bytes that stand for it."""

    cell: str
    label: str
    crop: NDArray[np.uint8] | bytes
    optics: str = OPTICS
    latent: tuple[float, ...] = (0.5, -1.0)


@dataclass
class GivingLab:
    """A lab that gives packs."""

    name: str
    key: SigningKey = field(init=False)

    def __post_init__(self) -> None:
        self.key = SigningKey(Ed25519PrivateKey.generate(), self.name)

    @property
    def id(self) -> str:
        return self.key.public.id

    def public(self, folder: Path) -> Path:
        """The file of its public key."""
        file = folder / f"{self.id}.pub"
        file.write_bytes(self.key.public.to_bytes())
        return file

    def pack(
        self,
        out: Path,
        cells: Sequence[Given],
        *,
        number: int = 1,
        follows: str | None = None,
        gone: Sequence[str] = (),
        table: str = "FROM cells",
        **changed: Any,
    ) -> str:
        """Write a pack; returns its digest. table : what its `cells.parquet` holds.  changed : of its manifest."""
        folder = out.with_name(f"{out.name}.d")
        folder.mkdir(exist_ok=True)
        measures = ", ".join(f"0.5::FLOAT AS {name}" for name in MEASURES)
        with duckdb.connect() as database:
            pictures = [one.crop if isinstance(one.crop, bytes) else picture_of(one.crop) for one in cells]
            database.execute(
                f"CREATE TABLE cells AS SELECT cell, label, label_source, history, decisions, optics, {measures}, latent, crop FROM "
                "(SELECT unnest($1::VARCHAR[]) AS cell, unnest($2::VARCHAR[]) AS label, 'export' AS label_source, "
                "repeat('0', 32) AS history, 0::INTEGER AS decisions, unnest($3::VARCHAR[]) AS optics, "
                "unnest($4::FLOAT[][]) AS latent, unnest($5::BLOB[]) AS crop)",
                [
                    [one.cell for one in cells],
                    [one.label for one in cells],
                    [one.optics for one in cells],
                    [list(one.latent) for one in cells],
                    pictures,
                ],
            )
            database.execute("CREATE TABLE removed AS SELECT unnest(?::VARCHAR[]) AS cell", [list(gone)])
            database.execute(f"COPY ({table}) TO '{folder / CELLS}' (FORMAT parquet, COMPRESSION zstd)")
            database.execute(f"COPY (FROM removed) TO '{folder / REMOVED}' (FORMAT parquet, COMPRESSION zstd)")
        classes: dict[str, int] = {}
        for one in cells:
            classes[one.label] = classes.get(one.label, 0) + 1
        told: dict[str, Any] = {
            "labref": "0.1.0",
            "lab": self.id,
            "number": number,
            "follows": follows,
            "preparation": PREPARATION["version"],
            "bundle": "ab" * 32,
            "latent_size": 2,
            "consent": "CC BY 4.0",
            "dates": "none",
            "cells": len(cells),
            "removed": len(gone),
            "classes": classes,
            "files": {},
        }
        return write(folder, Manifest.model_construct(**{**Manifest(**told).model_dump(), **changed}), self.key, out)

    def seals(self, archive: bytes) -> bytes:
        """An archive with its signature."""
        digest, _ = archive_parts(io.BytesIO(archive), len(archive))
        unsigned = PackSignature(digest, self.id)
        return sealed(archive, replace(unsigned, value=self.key.sign(unsigned.message())).to_bytes())


def sealed(archive: bytes, comment: bytes) -> bytes:
    """An archive without a comment, with this one."""
    assert archive[-2:] == b"\0\0"
    return archive[:-2] + len(comment).to_bytes(2, "little") + comment


def members(pack: Path) -> dict[str, bytes]:
    """What a pack holds, by name."""
    with zipfile.ZipFile(pack) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zipped(parts: dict[str, bytes], change: Callable[[zipfile.ZipInfo], None] = lambda _: None) -> bytes:
    """These members as an archive without a comment, stored as they are. change : of each entry, first."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in parts.items():
            entry = zipfile.ZipInfo(name)
            entry.external_attr = 0o100600 << 16
            change(entry)
            archive.writestr(entry, data)
    return out.getvalue()


def with_manifest(parts: dict[str, bytes], **changed: Any) -> dict[str, bytes]:
    """Members whose manifest says something else."""
    return {**parts, "manifest.json": canonical({**json.loads(parts["manifest.json"]), **changed})}
