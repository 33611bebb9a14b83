"""Latents of named images, wherever they come from: a file, a bundle and a tree of images, or positions on a map."""

from __future__ import annotations

import hashlib
import os
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labref.bundles.inference import Embedder
from labref.som import winners
from training.data.images import Item, list_images
from training.measure.evaluate import embed_tree

__all__ = ["Latents", "embed_latents", "load_latents", "on_map", "save_latents"]


@dataclass(frozen=True)
class Latents:
    """Latents of images. items : path (relative to the tree) and label of each image.  values : float32[n, L].
    source : where the latents come from, for messages."""

    items: tuple[Item, ...]
    values: NDArray[np.float32]
    source: str

    @property
    def paths(self) -> tuple[str, ...]:
        """Path of each image."""
        return tuple(item.path for item in self.items)

    @property
    def digest(self) -> str:
        """SHA-256 over paths and values; it identifies the latents in a figure."""
        whole = hashlib.sha256("\n".join(self.paths).encode())
        whole.update(np.ascontiguousarray(self.values, dtype="<f4").tobytes())
        return whole.hexdigest()

    def rows(self, paths: Sequence[str]) -> NDArray[np.int64]:
        """The row of each path: int64[n]. Raises ValueError that names the first path without latents."""
        places = {path: row for row, path in enumerate(self.paths)}
        missing = [path for path in paths if path not in places]
        if missing:
            raise ValueError(
                f"{self.source} has no latents of {len(missing)} images, {missing[0]} the first; embed the tree that "
                "the triplets were drawn from"
            )
        return np.array([places[path] for path in paths], dtype=np.int64)


def load_latents(file: Path) -> Latents:
    """Read an `.npz` with `latents` float32[n, L], `paths` str[n] and, where they are not the first folder of each
    path, `labels` str[n]. Raises ValueError where it holds anything else."""
    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as arrays:
            values, paths = arrays["latents"].astype(np.float32), [str(p).replace("\\", "/") for p in arrays["paths"]]
            labels = arrays["labels"].tolist() if "labels" in arrays else [path.split("/", 1)[0] for path in paths]
    except (KeyError, TypeError, ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{file} holds no latents: {error}. `python -m training embed` writes such a file.") from None
    if values.ndim != 2 or not len(values) == len(paths) == len(labels) or not np.isfinite(values).all():
        raise ValueError(f"{file}: latents must be finite, one row a path; found {values.shape} and {len(paths)} paths")
    return Latents(tuple(Item(path, str(label)) for path, label in zip(paths, labels, strict=True)), values, file.name)


def save_latents(latents: Latents, file: Path) -> None:
    """Write what `load_latents` reads."""
    temporary = file.with_name(file.name + ".part")
    with temporary.open("wb") as out:
        labels = np.array([item.label for item in latents.items])
        np.savez_compressed(out, latents=latents.values, paths=np.array(latents.paths), labels=labels)
    os.replace(temporary, file)


def embed_latents(
    embedder: Embedder,
    tree: Path,
    paths: Sequence[str] | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> Latents:
    """Embed `paths` of `tree` (None: every image of its class folders) as a lab would; unreadable images are left
    out."""
    items = list_images(tree) if paths is None else [Item(path, path.split("/", 1)[0]) for path in sorted(set(paths))]
    done = embed_tree(embedder, tree, items, advance=advance)
    return Latents(done.items, done.latents, f"bundle {embedder.bundle.short}")


def on_map(latents: Latents, trained: Any) -> Latents:
    """Where `latents` lie on a trained map (`labref.som`): float32[n, 2], row and column of each one's winning node."""
    nodes, _ = winners(trained, latents.values)
    rows, columns, _ = np.shape(trained.get_weights())
    places = np.stack([nodes // columns, nodes % columns], axis=1).astype(np.float32)
    return Latents(latents.items, places, f"{latents.source} on a map of {rows}×{columns}")
