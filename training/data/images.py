"""Class folders → a split written down → prepared crops cached on disk, read as a memory map.

Nothing here holds all images: the cache is one `.npy` memory map of uint8 crops at the network's input size, and
batches are gathered from it; 400,000 crops at 224 px are 60 GB of disk and a few MB of memory.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from labref.cells.image import CROP_SIZE, PREPARATION, CellImage, prepare
from labref.cpus import usable_cpus
from labref.errors import UnreadableImageError
from labref.files import replace_file
from training.data.pool import CACHE, STATE, Pool, is_pool

__all__ = [
    "IMAGE_SUFFIXES",
    "Item",
    "Split",
    "cache_crops",
    "cache_of",
    "list_images",
    "load_attributes",
    "make_split",
    "name_fraction",
    "read_bytes",
    "read_cells",
    "require_pictures",
    "resize_crop",
    "writing_rows",
]

_Taken = TypeVar("_Taken")
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".tif", ".tiff"})


@dataclass(frozen=True)
class Item:
    """One labelled image: its path relative to the data folder (with `/`), and its class folder's name."""

    path: str
    label: str


@dataclass(frozen=True)
class Split:
    """The items of a run by part, each sorted by path, and the class names in order."""

    train: tuple[Item, ...]
    validation: tuple[Item, ...]
    holdout: tuple[Item, ...]
    labels: tuple[str, ...]

    def part(self, name: str) -> tuple[Item, ...]:
        """Items of `train`, `validation` or `holdout`."""
        parts: dict[str, tuple[Item, ...]] = {
            "train": self.train,
            "validation": self.validation,
            "holdout": self.holdout,
        }
        return parts[name]

    @property
    def digest(self) -> str:
        """SHA-256 over every part, path and label; it identifies the split in every figure."""
        return hashlib.sha256(self.to_csv().encode()).hexdigest()

    def to_csv(self) -> str:
        """`part,label,path` lines; the form in which a split is written down."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["part", "label", "path"])
        for name in ("train", "validation", "holdout"):
            writer.writerows((name, item.label, item.path) for item in self.part(name))
        return text.getvalue()

    @staticmethod
    def from_csv(text: str) -> Split:
        """Read what `to_csv` wrote."""
        parts: dict[str, list[Item]] = {"train": [], "validation": [], "holdout": []}
        for row in csv.DictReader(io.StringIO(text)):
            parts[row["part"]].append(Item(row["path"], row["label"]))
        labels = tuple(sorted({item.label for items in parts.values() for item in items}))
        return Split(tuple(parts["train"]), tuple(parts["validation"]), tuple(parts["holdout"]), labels)


def list_images(
    data: Path, domains: Sequence[str] = (), aliases: Mapping[str, str] = MappingProxyType({})
) -> list[Item]:
    """Images of a folder of class folders, sorted by path, or of its folders `domains`, each with class folders; or the
    cells of a pool, one of each physical cell.

    aliases : label by the name of a class folder, where they differ. Raises ValueError where a folder, or a domain, has
    no images, and `PackError` where a pool cannot be read.
    """
    items: list[Item] = []
    if is_pool(data):
        cells = Pool.open(data).cells
        found = {cell.domain for cell in cells.values()}
        if missing := set(domains) - found or ({"any"} if not found else None):
            raise ValueError(
                f"{data}: no cells of {', '.join(sorted(missing))}; `python -m training pool {data}` lists what it has"
            )
        return [
            Item(path, aliases.get(cell.label, cell.label))
            for path, cell in sorted(cells.items())
            if not domains or cell.domain in domains
        ]
    for top in [data / domain for domain in domains] or [data]:
        before = len(items)
        for folder in sorted(entry for entry in top.iterdir() if entry.is_dir()) if top.is_dir() else []:
            label = aliases.get(folder.name, folder.name)
            for root, folders, names in os.walk(folder):
                folders.sort()
                for name in sorted(names):
                    if Path(name).suffix.lower() in IMAGE_SUFFIXES and not name.startswith("."):
                        items.append(Item((Path(root) / name).relative_to(data).as_posix(), label))
        if len(items) == before:
            raise ValueError(f"{top}: no images in class folders; expected {top}/<class>/<image>.jpg")
    return sorted(items, key=lambda item: item.path)


def name_fraction(name: str, salt: str) -> float:
    """A number in [0, 1) that depends on a file's name alone: the first 8 bytes of SHA-256(salt + ":" + name)."""
    return int.from_bytes(hashlib.sha256(f"{salt}:{name}".encode()).digest()[:8], "big") / 2**64


def make_split(items: Sequence[Item], *, holdout: float, validation: float) -> Split:
    """Split by name hash: the same file name is always in the same part, whatever else is in the folder."""
    parts: dict[str, list[Item]] = {"train": [], "validation": [], "holdout": []}
    for item in items:
        name = item.path.rsplit("/", 1)[-1]
        if name_fraction(name, "labref-holdout") < holdout:
            part = "holdout"
        elif name_fraction(name, "labref-validation") < validation:
            part = "validation"
        else:
            part = "train"
        parts[part].append(item)
    labels = tuple(sorted({item.label for item in items}))
    return Split(tuple(parts["train"]), tuple(parts["validation"]), tuple(parts["holdout"]), labels)


def resize_crop(crop: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """A crop uint8[256, 256, 3] at `size` px, as the exported trunk rescales it (bilinear; at half size the mean of
    four)."""
    if size == CROP_SIZE:
        return crop
    if CROP_SIZE % size == 0:
        return np.asarray(Image.fromarray(crop).reduce(CROP_SIZE // size))
    return np.asarray(Image.fromarray(crop).resize((size, size), Image.Resampling.BILINEAR))


def cache_of(data: Path, otherwise: Path) -> Path:
    """The folder of the cached crops of the images in `data`: a pool's is in it, so that a lab that withdraws is gone
    from there too."""
    return data / CACHE if is_pool(data) else otherwise


def _pool(folder: Path) -> Pool:
    """The pool in a folder. It is read again where it was changed alone: cells are asked for in many parts, and to read
    a million of them takes seconds."""
    try:
        state = (folder / STATE).stat()
    except OSError:
        return Pool.open(folder)
    return _pool_of(folder, (state.st_ino, state.st_mtime_ns))


@lru_cache(maxsize=1)
def _pool_of(folder: Path, written: tuple[int, int]) -> Pool:
    return Pool.open(folder)


def require_pictures(data: Path) -> None:
    """Raise ValueError where `data` is a pool: its crops cannot stand for the pictures that they were cut from."""
    if is_pool(data):
        raise ValueError(f"{data} is a pool: it holds prepared crops, and this needs the whole pictures of a folder")


def read_bytes(data: Path, items: Sequence[Item]) -> list[bytes]:
    """The bytes of the file of each image; of a pool's cells, those of their pictures."""
    if not is_pool(data):
        return [(data / item.path).read_bytes() for item in items]
    found = {path: picture for path, picture, _ in _pool(data).pictures([item.path for item in items])}
    return [found[item.path] for item in items]


def read_cells(
    data: Path, items: Sequence[Item], take: Callable[[CellImage], _Taken], *, missing: bool = False
) -> list[_Taken | None]:
    """What `take` makes of each image, prepared; None for one that cannot be decoded. A pool's cells were prepared in
    their labs.

    missing : None also for a file that is gone or cannot be read; else OSError is raised.
    """
    if is_pool(data):
        made = {path: take(cell) for path, cell in _pool(data).prepared([item.path for item in items])}
        return [made.get(item.path) for item in items]

    def one(item: Item) -> _Taken | None:
        try:
            return take(prepare((data / item.path).read_bytes()))
        except UnreadableImageError:
            return None
        except OSError:
            if missing:
                return None
            raise

    with ThreadPoolExecutor(max_workers=usable_cpus()) as pool:
        return list(pool.map(one, items))


def cache_crops(
    data: Path,
    items: Sequence[Item],
    size: int,
    folder: Path,
    advance: Callable[[int], None] = lambda _: None,
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Prepared crops of `items` as a read-only memory map uint8[n, size, size, 3], and bool[n], which of the images
    could be read.

    The cache's name depends on the items, the size and the version of the preparation. A cache that was stopped
    half-way is continued. advance : called with the number of images done.
    """
    key = hashlib.sha256(
        repr(([(item.path) for item in items], size, f"preparation-{PREPARATION['version']}")).encode()
    ).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    path, state_path = folder / f"crops-{size}-{key}.npy", folder / f"crops-{size}-{key}.state.npy"
    state = _state(state_path, len(items)) if path.exists() else None
    if state is None:
        np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(len(items), size, size, 3)).flush()
        state = np.zeros(len(items), dtype=np.uint8)
        _keep_state(state_path, state)
    waiting = np.flatnonzero(state == 0)
    advance(len(items) - len(waiting))
    for start in range(0, len(waiting), 512):
        chunk = waiting[start : start + 512].tolist()
        made = read_cells(
            data, [items[index] for index in chunk], lambda cell: resize_crop(cell.crop, size), missing=True
        )
        with writing_rows(path) as write:
            for index, crop in zip(chunk, made, strict=True):
                state[index] = 2 if crop is None else 1
                if crop is not None:
                    write(index, crop[None])
        _keep_state(state_path, state)
        advance(len(chunk))
    return np.load(path, mmap_mode="r"), state == 1


def _state(path: Path, count: int) -> NDArray[np.uint8] | None:
    """What is done of a cache: 0 for not done, 1 for done, 2 for unreadable. None where it does not say."""
    try:
        state: NDArray[np.uint8] = np.load(path)
    except (OSError, ValueError, EOFError):  # none, or cut off
        return None
    return state if state.shape == (count,) else None


def _keep_state(path: Path, state: NDArray[np.uint8]) -> None:
    text = io.BytesIO()
    np.save(text, state)
    replace_file(path, text.getvalue())


@contextlib.contextmanager
def writing_rows(path: Path) -> Iterator[Callable[[int, NDArray[Any]], None]]:
    """A function that writes rows [n, ...] into an array in a `.npy` file, from a row on; they are on the disk at the
    end. It raises OSError where the disk is full: to write into a memory map would kill the process there."""
    there = np.load(path, mmap_mode="r")
    offset, each, kind = there.offset, there[:1].nbytes, there.dtype
    with path.open("r+b") as file:

        def write(start: int, rows: NDArray[Any]) -> None:
            file.seek(offset + start * each)
            file.write(np.ascontiguousarray(rows, kind).tobytes())

        try:
            yield write
            file.flush()
            os.fsync(file.fileno())
        except OSError as error:
            raise OSError(error.errno, error.strerror, error.filename or str(path)) from None


def batches(
    rows: NDArray[np.int64], batch_size: int, *, seed: int | None, start: int = 0, drop_last: bool = False
) -> Iterator[NDArray[np.int64]]:
    """The batches of `rows`, shuffled by `seed` (None: in order). start : number of the first batch, for an epoch that
    is resumed."""
    order = rows if seed is None else np.random.default_rng(seed).permutation(rows)
    end = len(order) - len(order) % batch_size if drop_last and len(order) >= batch_size else len(order)
    for first in range(start * batch_size, end, batch_size):
        yield order[first : first + batch_size]


def load_attributes(file: Path) -> dict[str, tuple[str, ...]]:
    """Expert attributes by image name, from a CSV with a column `path` and one column for each attribute (as
    WBCAtt's)."""
    with file.open(newline="", encoding="utf-8") as source:
        return {row.pop("path").rsplit("/", 1)[-1]: tuple(row.values()) for row in csv.DictReader(source)}
