"""The folder of a run: its files, its lock, and how it is begun, opened and repeated."""

from __future__ import annotations

import contextlib
import json
import os
import time
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.config import RunConfig
from training.data.images import (
    Split,
    cache_crops,
    cache_of,
    list_images,
    load_attributes,
    make_split,
    writing_rows,
)
from training.data.pool import Pool, is_pool
from training.settings import SettingsError

__all__ = [
    "HALF_TAUGHT",
    "Attributes",
    "Run",
    "RunError",
    "domain_codes",
    "fill_rows",
    "held",
    "is_seen",
    "load_attribute_codes",
    "load_part",
    "read_arrays",
    "read_json",
    "require_networks",
    "require_new",
    "rows_done",
    "with_domains",
    "write_json",
]


HALF_TAUGHT = "distil.json"
"""File of a folder in which a student is being taught; it goes when the student is a run."""
_SEEN_SECONDS = 120.0
_BLOCKS_KEPT = 10  # blocks of rows, after which it is written down how many are done


class RunError(Exception):
    """A run cannot go on; the message says why and what to do."""


def write_json(path: Path, values: Mapping[str, Any] | list[Any]) -> None:
    """Write JSON so that a reader sees the old file or the new one, never half of one."""
    temporary = path.with_suffix(path.suffix + ".part")
    temporary.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def read_json(file: Path, needs: Collection[str], remedy: str) -> dict[str, Any]:
    """The JSON object in a file that a run wrote, with the keys that it `needs`; empty where there is no file.

    remedy : what to do where the file is damaged, which `RunError` says.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise RunError(f"{file} is damaged, or cannot be read: {error}. {remedy}") from None
    if not isinstance(found, dict) or not found.keys() >= set(needs):
        raise RunError(f"{file} is damaged: it does not hold what it is for. {remedy}")
    return found


def read_arrays(file: Path, names: Sequence[str], remedy: str) -> dict[str, NDArray[Any]]:
    """The arrays of these names in an `.npz` that a run wrote, all [n, ...] with the same n.

    remedy : what to do where the file is missing or damaged, which `RunError` says.
    """
    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in names}
    except (OSError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise RunError(f"{file} is damaged, or cannot be read: {error}. {remedy}") from None
    if len({array.shape[:1] for array in found.values()}) != 1 or () in {array.shape for array in found.values()}:
        raise RunError(f"{file} is damaged: its arrays are not of the same cells. {remedy}")
    return found


def rows_done(path: Path, remedy: str) -> int:
    """How many rows of an array that `fill_rows` makes are done. remedy : what to do where that cannot be read, which
    `RunError` says."""
    if not path.exists():
        return 0
    return int(read_json(path.with_suffix(".json"), ("done",), remedy).get("done", 0))


def fill_rows(
    path: Path,
    shape: tuple[int, ...],
    dtype: type[np.generic],
    make: Callable[[int, int], NDArray[Any]],
    *,
    at_once: int,
    remedy: str,
    advance: Callable[[int], None],
) -> None:
    """Make an array of this shape in the `.npy` file `path`, block by block; where that was stopped it goes on.

    make : the rows from one number up to another, at most `at_once` of them.  remedy : see `rows_done`.  advance :
    called with the number of rows of each block. Raises OSError where the disk is full.
    """
    done = rows_done(path, remedy)
    if not done:
        np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape).flush()
    for first in range(done, shape[0], _BLOCKS_KEPT * at_once):
        end = min(first + _BLOCKS_KEPT * at_once, shape[0])
        with writing_rows(path) as write:
            for start in range(first, end, at_once):
                made = make(start, min(start + at_once, end))
                write(start, made)
                advance(len(made))
        write_json(path.with_suffix(".json"), {"done": end})


def is_seen(file: Path) -> bool:
    """Whether a file is there that another computer has just written: one that shares its folder may see it later."""
    deadline = time.monotonic() + _SEEN_SECONDS
    while not (found := file.exists()) and time.monotonic() < deadline:
        time.sleep(0.5)
    return found


@contextlib.contextmanager
def held(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Lock `folder`, so that only one command at a time trains in it. The lock ends with its process, even by a kill.

    wait : True waits while another command holds the lock; with False, `RunError` is raised.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(folder / ".lock", timeout=-1 if wait else 0)
    try:
        lock.acquire()
    except Timeout:
        raise RunError(f"another command is training in {folder}; wait until it is done, or stop it") from None
    try:
        yield
    finally:
        lock.release()


@dataclass(frozen=True)
class Run:
    """A run: its folder, its configuration, the images it learns from, and its split.

    adopted : the origin of networks that were not trained in this run: the bundle that they were adopted from
    (`training.networks.adopt`), how their encoder was changed to overlook neighbours (`training.networks.overlook`),
    and how they were taught by another run (`training.networks.distil`). None for a run that trains its networks.
    Files: `run.json`, `split.csv`, `classifier.keras` with `history.csv`,
    `features/`, `encoder.keras`, `vae_history.csv`, `figures.json` and the pictures beside it.
    """

    folder: Path
    config: RunConfig
    data: Path
    split: Split
    adopted: Mapping[str, Any] | None = None

    @staticmethod
    def plan(folder: Path, data: Path, config: RunConfig) -> Run:
        """The run that `create` begins, with the split that `config` makes of the images; nothing is written. Raises
        ValueError where a folder has no images."""
        config = with_domains(config, data)
        items = list_images(data, config.domains, config.aliases)
        return Run(folder, config, data, make_split(items, holdout=config.holdout, validation=config.validation))

    @staticmethod
    def create(
        folder: Path,
        data: Path,
        config: RunConfig,
        split: Split | None = None,
        adopted: Mapping[str, Any] | None = None,
    ) -> Run:
        """Begin a run in `folder`, or open the run that is there. That run must have the same configuration, and the
        same split where `split` is given; else `RunError` is raised.

        split : replaces the split that `config` makes of the images.  adopted : see `Run`.
        """
        folder.mkdir(parents=True, exist_ok=True)
        config = with_domains(config, data)
        if (folder / HALF_TAUGHT).exists() and not (adopted and "distilled" in adopted):
            raise _half_taught(folder)
        if (folder / "run.json").exists():
            run = Run.open(folder, data)
            if run.config != config or (split is not None and run.split.digest != split.digest):
                raise RunError(
                    f"{folder} holds a run with other settings. Resume it with `python -m training resume {folder}`, "
                    "or name a new folder."
                )
            return run
        split = split or Run.plan(folder, data, config).split
        if not split.train or len(split.labels) < 2:
            raise RunError(f"{data}: a classifier needs images of at least two classes, found {len(split.labels)}")
        (folder / "split.csv").write_text(split.to_csv(), encoding="utf-8")
        values: dict[str, Any] = {"config": config.to_json(), "data": str(data.resolve()), "split": split.digest}
        write_json(folder / "run.json", values | ({"adopted": dict(adopted)} if adopted else {}))
        return Run(folder, config, data, split, adopted)

    @staticmethod
    def open(folder: Path, data: Path | None = None) -> Run:
        """Open the run in `folder`. data : the folder of its images, where they have been moved."""
        config, place, digest, adopted = _described(folder)
        try:
            split = Split.from_csv((folder / "split.csv").read_text(encoding="utf-8"))
        except (OSError, KeyError, ValueError) as error:
            raise _no_run(folder, error) from None
        if split.digest != digest:
            raise RunError(f"{folder}/split.csv was changed after the run began; restore it, or begin a new run")
        return Run(folder, config, data or place, split, adopted)

    @staticmethod
    def repeat(run: Path, new: Path, data: Path | None = None) -> Run:
        """Begin in `new` the run that `run`'s `run.json` describes. Raises `RunError` where the images give another
        split."""
        config, place, split, adopted = _described(run)
        if adopted and "distilled" in adopted:
            raise RunError(f"{run} was taught by another run: repeat that, and then `python -m training distil`.")
        if adopted:
            bundle = adopted.get("bundle")
            raise RunError(
                f"{run} was taught to overlook neighbours: repeat the run that it was made of, and then `python -m training overlook`."
                if bundle is None
                else f"{run} was not trained: it holds the networks of bundle {bundle[:12]}. Adopt that again with "
                "`python -m training adopt`."
            )
        found = Run.plan(new, data or place, config).split
        if found.digest != split:
            raise RunError(
                f"{data or place} gives split {found.digest[:16]}, the run was on {split[:16]}: images were added, removed "
                "or renamed. Name the folder that it was trained on with --data."
            )
        return Run.create(new, data or place, config)

    @property
    def cache(self) -> Path:
        """Folder of cached crops; shared by runs beside each other, or on one pool."""
        return cache_of(self.data, self.folder.parent / "cache")


def with_domains(config: RunConfig, data: Path) -> RunConfig:
    """The settings with the domains that a pool has, where they name none: each optics of each lab. Raises `PackError`
    where a pool cannot be read."""
    return replace(config, domains=Pool.open(data).domains) if is_pool(data) and not config.domains else config


def _described(folder: Path) -> tuple[RunConfig, Path, str, Mapping[str, Any] | None]:
    """The content of `run.json` in `folder`: settings, folder of the images, digest of the split, and `adopted` (see
    `Run`).

    Raises `RunError` where the file is missing or cannot be used.
    """
    file = folder / "run.json"
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        config = RunConfig.from_json(values["config"])
        return config, Path(values["data"]), str(values["split"]), values.get("adopted")
    except SettingsError as error:
        raise RunError(f"{file}: {error}") from None
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise _no_run(folder, error) from None


def _half_taught(folder: Path) -> RunError:
    return RunError(
        f"{folder} holds a student that is not taught to its end: give the same `python -m training distil` again."
    )


def _no_run(folder: Path, error: Exception) -> RunError:
    if (folder / HALF_TAUGHT).exists():
        return _half_taught(folder)
    return RunError(f"{folder} holds no run: {error}. Begin one with `python -m training train`.")


def require_new(folder: Path) -> None:
    """Raise `RunError` where `folder` holds a run."""
    if (folder / "run.json").exists():
        raise RunError(f"{folder} holds a run already; name a new folder")


def require_networks(run: Run) -> None:
    """Raise `RunError` where `run` has no trained classifier, or no encoder."""
    for name in ("classifier.keras", "encoder.keras"):
        if not (run.folder / name).exists():
            raise RunError(f"{run.folder} has no {name}; train it to its end, or adopt a bundle")


@dataclass(frozen=True)
class Attributes:
    """Expert attributes of some cells. sizes : number of values of each attribute.  codes : int64[n, attributes], the
    value of each, -1 where it is not known."""

    sizes: tuple[int, ...]
    codes: NDArray[np.int64]


def load_attribute_codes(run: Run, part: str) -> Attributes:
    """Attributes of the images of `part`, in the order of the split; none (sizes empty) where the run names no file.

    The values are numbered over the training part, so that the numbers do not depend on what is held out.
    """
    if not run.config.attributes:
        return Attributes((), np.empty((len(run.split.part(part)), 0), np.int64))
    table = load_attributes(run.data / run.config.attributes)
    trained = [table[name] for item in run.split.train if (name := item.path.rsplit("/", 1)[-1]) in table]
    if not trained:
        raise RunError(f"{run.config.attributes} has no line for any training image; correct `attributes` of the run")
    values = [sorted(set(column)) for column in zip(*trained, strict=True)]
    unknown = ("",) * len(values)
    codes = [
        [known.index(value) if value in known else -1 for known, value in zip(values, row, strict=True)]
        for row in (table.get(item.path.rsplit("/", 1)[-1], unknown) for item in run.split.part(part))
    ]
    return Attributes(tuple(len(known) for known in values), np.array(codes, np.int64))


def domain_codes(run: Run, part: str) -> NDArray[np.int64]:
    """Number int64[n] of the domain of each image of `part`: its folder's place among the run's domains."""
    place = {domain: number for number, domain in enumerate(run.config.domains)}
    return np.array([place.get(item.path.split("/", 1)[0], 0) for item in run.split.part(part)], np.int64)


def load_part(
    run: Run, part: str, advance: Callable[[int], None] = lambda _: None
) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
    """Crops, rows and targets of `part` ("train", "validation" or "holdout") of `run`.

    crops : memory map uint8[n, s, s, 3] at the classifier's input size.  rows : int64[m], those that could be read.
    targets : int64[n], class indices.  advance : called with the number of images done.
    """
    items = run.split.part(part)
    crops, good = cache_crops(run.data, items, run.config.classifier.input_size, run.cache, advance)
    index = {label: number for number, label in enumerate(run.split.labels)}
    targets = np.array([index[item.label] for item in items], dtype=np.int64)
    return crops, np.flatnonzero(good).astype(np.int64), targets
