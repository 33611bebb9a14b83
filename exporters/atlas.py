"""The atlas of a bundle: which cells of the central team's own it carries (`labref.bundles.atlas`).

The cells come from a folder with a file `atlas.toml`, which names each source with its licence:

    [[source]]
    folder = "pbc"                         # below this folder, with class folders; "." for this folder itself
    name = "Acevedo et al. 2020, Data in Brief 30:105474, doi 10.17632/snkd93bnjr.1"
    licence = "CC BY 4.0"

    [labels]                               # class by class folder, where the bundle's names differ
    promyelocyte = "ig"

Left out are: what the run held out to be measured on; pictures that cannot be read or are doubted, and copies of a
picture; and cells whose eight nearest others mostly carry another label, as an atlas must not teach a wrong one. Of the
others of each class those are taken that cover it best: the medoids, such that the mean distance of the class' cells to
the nearest of them is small (Kaufman & Rousseeuw 1990, Finding Groups in Data, ch. 2: BUILD, then the faster exchange
of Park & Jun 2009).
"""

from __future__ import annotations

import io
import tomllib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from rich.progress import Progress

from exporters.graphs import ExportError
from labref.bundles.atlas import MOST_CELLS, AtlasCell, AtlasSource, write
from labref.bundles.bundle import Bundle, Manifest
from labref.bundles.inference import Embedder
from labref.cells.hashes import digest
from labref.cells.image import U8, cut, opened, prepare_seen, reduced
from labref.cells.quality import Thresholds, examine, judge
from labref.cpus import usable_cpus
from labref.errors import UnreadableImageError
from labref.export.layout import ClassNames
from training.data.images import Item, list_images, name_fraction
from training.measure.evaluate import K, nearest

__all__ = ["DESCRIPTION", "add_atlas", "covering", "trusted"]

DESCRIPTION: Final = "atlas.toml"
_MOST_CANDIDATES: Final = 2_000  # of a class: the distances between all of them are kept
_EXCHANGES: Final = 50
_QUALITY: Final = 85  # of the JPEGs, some 12 kB each
_BLOCK: Final = 128  # pictures prepared at once


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Source(_Strict):
    folder: str
    name: str = Field(min_length=1, max_length=500)
    licence: str = Field(min_length=1, max_length=100)


class _Description(_Strict):
    source: list[_Source] = Field(min_length=1, max_length=50)
    labels: dict[str, str] = Field(default_factory=dict)


@dataclass(frozen=True)
class _Candidate:
    """A cell that may be taken. source : row of the sources.  jpeg : the piece of the picture around it."""

    label: str
    source: int
    crop: U8
    jpeg: bytes


def add_atlas(bundle: Bundle, cells: Path, per_class: int, progress: Progress) -> dict[str, Any]:
    """Choose up to `per_class` cells of each class from the folder `cells`, and write them as an atlas into the folder
    of `bundle`, which then is not whole until its manifest has the entry `atlas` that is returned.

    Raises `ExportError` where the folder does not say what it holds, or no cell of it can be taken.
    """
    manifest = bundle.manifest
    sources, items = _listed(cells, manifest)
    found, latents = _embedded(bundle, cells, items, progress)
    labels = np.array([one.label for one in found])
    if len(found) < 2:
        raise ExportError(f"{cells}: {len(found)} cells can be taken, which is no atlas")
    kept = np.flatnonzero(trusted(latents, labels))
    chosen = [kept[row] for row in covering(latents[kept], labels[kept], per_class)]
    if not 0 < len(chosen) <= MOST_CELLS:
        raise ExportError(f"{len(chosen)} cells are no atlas: 1 to {MOST_CELLS:,} are; change --per-class")
    how = (
        f"the {per_class} medoids of each class, of {len(kept):,} cells; {len(items) - len(found):,} others could not be read, were copies "
        f"or are doubted, and of {len(found) - len(kept):,} most of the eight nearest carry another label"
    )
    atlas = [AtlasCell(latents[row], found[row].label, found[row].source, found[row].jpeg) for row in chosen]
    return write(bundle.folder, atlas, labels=manifest.labels, sources=sources, how=how)


def trusted(latents: NDArray[np.float32], labels: NDArray[np.str_]) -> NDArray[np.bool_]:
    """Which cells, by latents float32[n, L] and labels, have their label borne out: at least half of their eight
    nearest others carry it, or of as many as the class has others. bool[n]."""
    near, _ = nearest(latents, latents, np.eye(len(latents), dtype=bool), min(K, len(latents) - 1))
    alike = np.cumsum(labels[near] == labels[:, None], axis=1)
    names, sizes = np.unique(labels, return_counts=True)
    others = np.minimum(sizes[np.searchsorted(names, labels)] - 1, near.shape[1])
    borne_out = 2 * alike[np.arange(len(labels)), np.maximum(others, 1) - 1] >= others
    found: NDArray[np.bool_] = borne_out
    return found


def covering(latents: NDArray[np.float32], labels: NDArray[np.str_], per_class: int) -> list[int]:
    """Rows of up to `per_class` medoids of each class, by class and then by row."""
    found: list[int] = []
    for label in sorted(set(labels.tolist())):
        rows = np.flatnonzero(labels == label)
        found += rows[_medoids(latents[rows], per_class)].tolist()
    return found


def _medoids(latents: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Rows of `count` cells, such that the mean distance of all to the nearest of them is small; sorted."""
    if len(latents) <= count:
        return np.arange(len(latents))
    squares = np.einsum("nl,nl->n", latents, latents)
    away = np.sqrt(np.maximum(squares[:, None] + squares[None, :] - 2 * latents @ latents.T, 0.0))
    chosen = [int(away.sum(axis=0).argmin())]
    nearest_chosen = away[:, chosen[0]]
    while len(chosen) < count:
        won = np.maximum(nearest_chosen[:, None] - away, 0.0).sum(axis=0)
        won[chosen] = -1.0
        chosen.append(int(won.argmax()))
        nearest_chosen = np.minimum(nearest_chosen, away[:, chosen[-1]])
    medoids = np.array(chosen)
    for _ in range(_EXCHANGES):
        group = away[:, medoids].argmin(axis=1)
        better = medoids.copy()
        for number in range(count):
            members = np.flatnonzero(group == number)
            if len(members):  # a copy of another medoid has none
                better[number] = members[away[np.ix_(members, members)].sum(axis=0).argmin()]
        if (better == medoids).all():
            break
        medoids = better
    return np.unique(medoids)


def _listed(cells: Path, manifest: Manifest) -> tuple[list[AtlasSource], list[tuple[int, Item]]]:
    """The sources, and (row of its source, image) of each image that may be taken."""
    described = _description(cells / DESCRIPTION)
    config = manifest.training.get("config", {})
    held_out = float(config.get("holdout", 0.0))
    names = ClassNames(manifest.labels, {**config.get("aliases", {}), **described.labels})
    items: list[tuple[int, Item]] = []
    for row, source in enumerate(described.source):
        try:
            listed = list_images(cells / source.folder)
        except (ValueError, OSError) as error:
            raise ExportError(f"{cells / DESCRIPTION}: {error}") from None
        for item in listed:
            label = names.label(item.label)
            if label not in manifest.labels:
                raise ExportError(
                    f"{cells / source.folder}: the class folder {item.label!r} is none of the bundle's classes, "
                    f"{', '.join(manifest.labels)}. Say in {DESCRIPTION}, [labels], which it is, or move it away."
                )
            if name_fraction(item.path.rsplit("/", 1)[-1], "labref-holdout") >= held_out:
                items.append((row, Item((Path(source.folder) / item.path).as_posix(), label)))
    return [AtlasSource(source.name, source.licence) for source in described.source], _some(items)


def _description(file: Path) -> _Description:
    try:
        return _Description(**tomllib.loads(file.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ExportError(
            f"{file} cannot be read ({getattr(error, 'strerror', None) or error}). An atlas names the source and the licence of its cells: "
            "a [[source]] with folder, name and licence for each."
        ) from None
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(str(part) for part in fault["loc"])
        raise ExportError(f"{file}: {where}: {fault['msg']}; each [[source]] has folder, name and licence") from None


def _some(items: Sequence[tuple[int, Item]]) -> list[tuple[int, Item]]:
    """Of each class the images with the smallest hashes of their names, so many as are embedded."""
    found: list[tuple[int, Item]] = []
    for label in sorted({item.label for _, item in items}):
        of_class = [one for one in items if one[1].label == label]
        of_class.sort(key=lambda one: (name_fraction(one[1].path, "labref-atlas"), one[1].path))
        found += of_class[:_MOST_CANDIDATES]
    return found


def _embedded(
    bundle: Bundle, cells: Path, items: Sequence[tuple[int, Item]], progress: Progress
) -> tuple[list[_Candidate], NDArray[np.float32]]:
    """The images that can be taken, each once, with their latents float32[n, L]."""
    thresholds = Thresholds.of(bundle.manifest.quality)

    def one(listed: tuple[int, Item]) -> tuple[str, _Candidate | None]:
        source, item = listed
        data = (cells / item.path).read_bytes()
        try:
            picture = opened(data)
            cell, colours = prepare_seen(picture, reduced(picture))
        except UnreadableImageError:
            return "", None
        if judge(examine(cell, colours), thresholds).reason is not None:
            return "", None
        piece = cut(picture, cell.centre, np.rint(cell.background).astype(np.uint8))
        file = io.BytesIO()
        # anew from its pixels: what else the file says, such as a comment with a name, is not for other labs
        Image.fromarray(np.asarray(piece)).save(file, "JPEG", quality=_QUALITY, subsampling=0)
        return digest(data), _Candidate(item.label, source, cell.crop, file.getvalue())

    found: dict[str, _Candidate] = {}
    latents: list[NDArray[np.float32]] = []
    task = progress.add_task("cells of the atlas", total=len(items), info="")
    with (
        Embedder.open(bundle, device="cpu", precision="full") as embedder,
        ThreadPoolExecutor(max_workers=usable_cpus()) as pool,
    ):
        for start in range(0, len(items), _BLOCK):
            block = items[start : start + _BLOCK]
            new = {name: made for name, made in pool.map(one, block) if made is not None and name not in found}
            if new:
                latents.append(embedder.embed(np.stack([made.crop for made in new.values()])).latents)
            empty = np.empty((0, 0, 3), np.uint8)  # the crops of thousands of cells are gigabytes
            found |= {name: _Candidate(made.label, made.source, empty, made.jpeg) for name, made in new.items()}
            progress.update(task, advance=len(block))
    size = bundle.manifest.latent_size
    return list(found.values()), np.concatenate([np.empty((0, size), np.float32), *latents])
