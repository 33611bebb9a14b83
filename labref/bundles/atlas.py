"""The atlas of a bundle: cells of the central team's own, which stand in where a lab has too few cells of a class.

A bundle that carries one has two files more. `atlas.npz` holds `latents` float32[n, L], in the bundle's own latent
space; `classes` int16[n], rows of the manifest's classes; `sources` int16[n], rows of the manifest's `atlas.sources`;
`digests` uint8[n, 32], SHA-256 of each picture; and `ends` int64[n], where each picture ends in `atlas.jpegs`, which
holds them one after the other. The pictures are JPEG; nothing here decodes one.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["ARRAYS", "CENTRAL_ID", "MOST_CELLS", "PICTURES", "Atlas", "AtlasCell", "AtlasSource", "read", "write"]

ARRAYS: Final = "atlas.npz"
PICTURES: Final = "atlas.jpegs"
MOST_CELLS: Final = 20_000
CENTRAL_ID: Final = "central-"
"""What the id of a cell of the atlas begins with; 16 hexadecimal characters of its picture's digest follow. No cell of
a lab has such an id."""
_MOST_BYTES: Final = 200_000  # of one picture
_MOST_UNPACKED: Final = 100_000_000  # bytes of the arrays
_JPEG: Final = (b"\xff\xd8", b"\xff\xd9")  # its first and last bytes


@dataclass(frozen=True)
class AtlasSource:
    """Where cells of an atlas are from. name : the data set, as it is to be cited.  licence : under which it is
    used."""

    name: str
    licence: str


@dataclass(frozen=True)
class AtlasCell:
    """A cell to be put into an atlas. latent : float32[L].  label : its class.  source : row of the sources.  jpeg :
    its picture."""

    latent: NDArray[np.float32]
    label: str
    source: int
    jpeg: bytes


@dataclass(frozen=True, eq=False)
class Atlas:
    """The n cells of an atlas.

    file : that holds the pictures.  ids : of each cell, `CENTRAL_ID` and 16 hexadecimal characters.  labels : class of
    each.  latents : float32[n, L].  sources : of each.
    """

    file: Path
    ids: tuple[str, ...]
    labels: tuple[str, ...]
    latents: NDArray[np.float32]
    sources: tuple[AtlasSource, ...]
    rows: Mapping[str, int]
    digests: tuple[bytes, ...]
    ends: tuple[int, ...]

    def distances(self, latent: NDArray[np.float32]) -> NDArray[np.float64]:
        """Mean squared error of each cell's latent from float32[L]: float64[n]."""
        away = self.latents.astype(np.float64) - latent.astype(np.float64)
        found: NDArray[np.float64] = np.einsum("nl,nl->n", away, away) / self.latents.shape[1]
        return found

    def picture(self, cell_id: str) -> bytes | None:
        """The JPEG of a cell; None where there is no such cell, or where the file no longer holds it as it was
        verified."""
        row = self.rows.get(cell_id)
        if row is None:
            return None
        start = self.ends[row - 1] if row else 0
        try:
            with self.file.open("rb") as file:
                file.seek(start)
                data = file.read(self.ends[row] - start)
        except OSError:
            return None
        return data if hashlib.sha256(data).digest() == self.digests[row] else None


def write(
    folder: Path, cells: Sequence[AtlasCell], *, labels: Sequence[str], sources: Sequence[AtlasSource], how: str
) -> dict[str, Any]:
    """Write the two files of an atlas into the folder of a bundle. labels : the manifest's classes, in order.  how :
    how the cells were chosen, in words.

    Returns the manifest's entry `atlas`. The same cells always give the same bytes. Raises ValueError where a cell
    cannot be part of an atlas.
    """
    for cell in cells:
        if cell.label not in labels:
            raise ValueError(f"{cell.label!r} is none of the bundle's classes")
        if not (cell.jpeg.startswith(_JPEG[0]) and cell.jpeg.endswith(_JPEG[1])) or len(cell.jpeg) > _MOST_BYTES:
            raise ValueError(f"a picture of an atlas is a whole JPEG of at most {_MOST_BYTES} bytes")
    arrays: dict[str, NDArray[Any]] = {
        "latents": np.stack([cell.latent for cell in cells]).astype(np.float32),
        "classes": np.array([labels.index(cell.label) for cell in cells], np.int16),
        "sources": np.array([cell.source for cell in cells], np.int16),
        "digests": np.stack([np.frombuffer(hashlib.sha256(cell.jpeg).digest(), np.uint8) for cell in cells]),
        "ends": np.cumsum([len(cell.jpeg) for cell in cells], dtype=np.int64),
    }
    with zipfile.ZipFile(folder / ARRAYS, "w", compression=zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            content = io.BytesIO()
            np.save(content, array, allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0)), content.getvalue())
    (folder / PICTURES).write_bytes(b"".join(cell.jpeg for cell in cells))
    return {
        "cells": len(cells),
        "classes": {label: int((arrays["classes"] == row).sum()) for row, label in enumerate(labels)},
        "sources": [
            {"name": source.name, "licence": source.licence, "cells": int((arrays["sources"] == row).sum())}
            for row, source in enumerate(sources)
        ],
        "how": how,
    }


def read(folder: Path, entry: Mapping[str, Any], *, labels: Sequence[str], latent_size: int) -> Atlas:
    """The atlas in the folder of a bundle. entry : the manifest's, checked.  labels : the manifest's classes.

    Raises ValueError, OSError and what reading a zip archive raises, where the files hold no atlas, or another one than
    the manifest says.
    """
    with zipfile.ZipFile(folder / ARRAYS) as archive:
        unpacked = sum(info.file_size for info in archive.infolist())
        if unpacked > _MOST_UNPACKED:
            raise ValueError(f"{ARRAYS} unpacks to {unpacked / 1e6:.0f} MB")
    count = int(entry["cells"])
    shapes: dict[str, tuple[tuple[int, ...], Any]] = {
        "latents": ((count, latent_size), np.float32),
        "classes": ((count,), np.int16),
        "sources": ((count,), np.int16),
        "digests": ((count, 32), np.uint8),
        "ends": ((count,), np.int64),
    }
    found: dict[str, NDArray[Any]] = {}
    with np.load(folder / ARRAYS, allow_pickle=False) as arrays:
        if set(arrays.files) != set(shapes):
            raise ValueError(f"{ARRAYS} must hold {', '.join(shapes)}, and holds {', '.join(sorted(arrays.files)[:9])}")
        for name, (shape, dtype) in shapes.items():
            found[name] = arrays[name]
            if found[name].shape != shape or found[name].dtype != dtype:
                raise ValueError(
                    f"{name} must be {np.dtype(dtype)}{list(shape)}, and they are {found[name].dtype}{list(found[name].shape)}"
                )
    if not np.isfinite(found["latents"]).all():
        raise ValueError("latents must be finite")
    for name, known in (("classes", len(labels)), ("sources", len(entry["sources"]))):
        if ((found[name] < 0) | (found[name] >= known)).any():
            raise ValueError(f"{name} must be rows of the manifest's {known}")
    counted = np.bincount(found["classes"], minlength=len(labels))
    told = [int(entry["classes"].get(label, 0)) for label in labels]
    if counted.tolist() != told:
        raise ValueError("its cells are of other classes than the manifest says")
    by_source = np.bincount(found["sources"], minlength=len(entry["sources"]))
    if by_source.tolist() != [int(source["cells"]) for source in entry["sources"]]:
        raise ValueError("its cells are of other sources than the manifest says")
    sizes = np.diff(found["ends"], prepend=0)
    if (sizes < 4).any() or (sizes > _MOST_BYTES).any() or found["ends"][-1] != (folder / PICTURES).stat().st_size:
        raise ValueError(f"its pictures are not those of {PICTURES}, each of at most {_MOST_BYTES} bytes")
    ids = tuple(CENTRAL_ID + bytes(digest[:8]).hex() for digest in found["digests"])
    if len(set(ids)) < count:
        raise ValueError("it holds a picture twice")
    sources = [AtlasSource(str(source["name"]), str(source["licence"])) for source in entry["sources"]]
    found["latents"].flags.writeable = False
    return Atlas(
        folder / PICTURES,
        ids,
        tuple(labels[row] for row in found["classes"].tolist()),
        found["latents"],
        tuple(sources[row] for row in found["sources"].tolist()),
        {cell_id: row for row, cell_id in enumerate(ids)},
        tuple(bytes(digest) for digest in found["digests"]),
        tuple(found["ends"].tolist()),
    )
