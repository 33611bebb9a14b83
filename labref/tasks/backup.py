"""Backup and restoring of a lab.

A backup holds the store as it is at one moment, the original bytes of every cell, the bundles, the maps and the
configuration. It is a folder, or one `.zip` file (stored, not compressed: images do not get smaller):

    BACKUP/backup.json                      what the backup holds; written last, so without it there is no backup
    BACKUP/files/<sha256>                   the store, the list of its images, labref.toml, bundles, maps; backup.json
                                            gives their names
    BACKUP/images/<ab>/<cd>/<sha256>        the original bytes, named as in the lab

The same folder can be backed up into again. Only images that it lacks are copied. The earlier backup stays whole until
the new backup.json replaces the earlier one. The lab's token is a secret and is not backed up; restoring makes a new
token. A backup can be read by those who may read the lab (labref.files).

While a backup is written, everything that is not whole is in BACKUP/.labref-backup-* or, of a .zip file, beside it
under such a name. No other file of the folder is touched.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import re
import shutil
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Callable, Container, Generator, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import IO, Any, Final, Protocol

from labref import __version__
from labref.bundles.bundle import NO_ARCHIVE
from labref.config import MOST_BYTES, Config, load_config, successors, watch_instead
from labref.errors import ConfigError, LabError
from labref.export.paths import path_to_text
from labref.failpoints import failpoint
from labref.files import NoFileError, Rights, digest_of, give, give_all, open_file, sync_folder
from labref.lab import Lab, absolute, new_token, refuse_in_lab, refuse_own
from labref.progress import Pace, Steps
from labref.store import Store
from labref.store.duckdb.upkeep import digests_of
from labref.times import utc, utc_now

__all__ = ["Backup", "restore", "write"]

FORMAT: Final = 1
_RECORD: Final = "backup.json"
_CONFIG: Final = "labref.toml"
_NAME: Final = re.compile(r"(?:[\w.+-]+/){0,4}[\w.+-]+")
_DIGEST: Final = re.compile("[0-9a-f]{64}")
_FOLDERS: Final = ("bundles", "maps")
_FILES: Final = "files"
_IMAGES: Final = "images.txt"
_STORE: Final = "store.duckdb"
_OLD_PART: Final = re.compile(r"[0-9a-f]{64}\.part")  # what earlier versions left when they were killed
_SCRATCH: Final = ".labref-backup-"
_CHUNK: Final = 1 << 20
_MOST_RECORD: Final = 500_000_000  # bytes; it names each kept image that is missing
_MOST_IMAGE: Final = 4_096_000_000  # bytes; [watch] max_file_megabytes may be no more
_LINE: Final = 100  # bytes; a digest is 64 characters
_NO_RECORD: Final = (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)
_SAME: Final = ("cell", "file")  # tables whose number of rows no migration changes


class _Target(Protocol):
    """Where a backup is written. Each `add` writes a whole file or nothing; there is no backup before `finish`."""

    @property
    def scratch(self) -> Path: ...
    def has(self, name: str, digest: str) -> bool: ...
    def add(self, name: str, source: IO[bytes]) -> None: ...
    def finish(self, record: dict[str, Any]) -> None: ...
    def discard(self) -> None: ...


class _FolderTarget:
    def __init__(self, folder: Path, rights: Rights) -> None:
        if folder.exists():
            if not folder.is_dir():
                raise LabError(f"{folder} is a file. Choose a folder, or a new file that ends in .zip.")
            if not (folder / _RECORD).is_file() and (odd := next(_foreign(folder), None)) is not None:
                raise LabError(
                    f"{folder} is not empty and holds no backup, but {odd.name!r}. Choose an empty folder, or an earlier backup."
                )
        folder.mkdir(parents=True, exist_ok=True)
        if not any(_foreign(folder)):  # else it is not the backup's alone to close
            give(folder, rights)
        for name in (_RECORD, _FILES, "images"):
            give_all(folder / name, rights)
        for leftover in _left_over(folder):  # of a backup that was killed
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        self._rights = rights
        self.folder = self.scratch = folder
        self._parts = Path(tempfile.mkdtemp(prefix=_SCRATCH, dir=folder))
        self._changed: set[Path] = set()

    def has(self, name: str, digest: str) -> bool:
        with contextlib.suppress(OSError):
            return digest_of(self.folder / name) == digest
        return False

    def add(self, name: str, source: IO[bytes]) -> None:
        path = self.folder / name
        if not path.parent.is_dir():
            path.parent.mkdir(parents=True, exist_ok=True)
            for made in path.parents[: name.count("/")]:
                give(made, self._rights)
        part = self._parts / path.name
        failpoint("backup.write")
        with part.open("wb") as out:
            give(part, self._rights)
            shutil.copyfileobj(source, out, _CHUNK)
            out.flush()
            failpoint("backup.fsync")
            os.fsync(out.fileno())
        failpoint("backup.rename")
        os.replace(part, path)
        self._changed.update(path.parents[: 1 + name.count("/")])

    def finish(self, record: dict[str, Any]) -> None:
        for folder in sorted(self._changed, key=lambda path: len(path.parts), reverse=True):
            failpoint("backup.sync")
            sync_folder(folder)  # the names of the files must be on the disk before backup.json lists them
        self.add(_RECORD, io.BytesIO(json.dumps(record, indent=2).encode()))
        sync_folder(self.folder)
        failpoint("backup.recorded", may_fail=False)
        kept = {entry["sha256"] for entry in record["files"].values()}
        for path in (self.folder / _FILES).iterdir():
            if path.name not in kept and _DIGEST.fullmatch(path.name):
                path.unlink()

    def discard(self) -> None:
        """Leave nothing that is not whole."""
        shutil.rmtree(self._parts, ignore_errors=True)


def _foreign(folder: Path) -> Iterator[Path]:
    """Entries of the folder that are not what an interrupted backup leaves behind."""
    for path in folder.iterdir():
        if path.name == _FILES and path.is_dir():
            yield from (one for one in path.iterdir() if not re.fullmatch(r"[0-9a-f]{64}(\.part)?", one.name))
        elif path.name == "images" and path.is_dir():
            yield from (one for one in path.iterdir() if not re.fullmatch("[0-9a-f]{2}", one.name))
        elif not path.name.startswith(_SCRATCH) and path.name not in (_RECORD, f"{_RECORD}.part"):
            yield path


def _left_over(folder: Path) -> Iterator[Path]:
    """What a backup that was killed, by this version or one before, left unfinished."""
    yield from folder.glob(_SCRATCH + "*")
    yield from folder.glob(f"{_RECORD}.part")
    for top in (_FILES, "images"):
        yield from (path for path in (folder / top).rglob("*.part") if _OLD_PART.fullmatch(path.name))


class _ZipTarget:
    def __init__(self, file: Path, rights: Rights) -> None:
        if os.path.lexists(file):
            raise LabError(f"{file} is there already. Choose another name; a backup never replaces a file.")
        self.file, self.scratch = file, file.parent
        self._part = file.with_name(f"{_SCRATCH}{file.name}")  # the next try goes over what a killed one left
        failpoint("backup.write")
        self._part.unlink(missing_ok=True)
        self._out = self._part.open("xb")
        give(self._part, rights)
        self._zip = zipfile.ZipFile(self._out, "w", zipfile.ZIP_STORED)

    def has(self, name: str, digest: str) -> bool:
        return False

    def add(self, name: str, source: IO[bytes]) -> None:
        failpoint("backup.write")
        with self._zip.open(name, "w", force_zip64=True) as out:
            shutil.copyfileobj(source, out, _CHUNK)

    def finish(self, record: dict[str, Any]) -> None:
        self.add(_RECORD, io.BytesIO(json.dumps(record, indent=2).encode()))
        self._zip.close()
        failpoint("backup.fsync")
        self._out.flush()
        os.fsync(self._out.fileno())
        self._out.close()
        failpoint("backup.rename")
        os.replace(self._part, self.file)

    def discard(self) -> None:
        """Close and delete the part file, where `finish` has not renamed it."""
        with contextlib.suppress(OSError, ValueError):
            self._zip.close()
        with contextlib.suppress(OSError, ValueError):
            self._out.close()
        with contextlib.suppress(OSError):
            self._part.unlink()


def write(lab: Lab, store: Store, target: Path) -> Steps[dict[str, Any]]:
    """Back a lab up into the folder `target`, or into a new file where `target` ends in .zip.

    The store may be read and written meanwhile. Yields progress; returns {`target`, `bytes`, `cells`, `images_copied`,
    `missing` [digest]}. `missing` are the kept images that are missing or damaged in the lab, and so are not in the
    backup. Every file written is read back and compared with its digest. Raises `LabError` where the backup cannot be
    written; the lab, and an earlier backup in the folder, are then unchanged.
    """
    _refuse_inside(lab, target)
    try:
        destination: _FolderTarget | _ZipTarget
        target.parent.mkdir(parents=True, exist_ok=True)
        kind = _ZipTarget if target.suffix.lower() == ".zip" else _FolderTarget
        destination = kind(target, lab.rights)
        with contextlib.ExitStack() as stack:
            stack.callback(destination.discard)
            return (yield from _write(lab, store, target, destination))
    except OSError as error:
        look = "Look at its disk"
        if error.errno == errno.EROFS:  # for a service of systemd's all is read-only but what its unit names
            look = (
                "Look at its disk; an agent that runs as a service writes in the lab only, and where `labref service install "
                "--writable FOLDER` says"
            )
        raise LabError(
            f"the backup {target} cannot be written: {error.strerror or error}. {look}; the lab is as it was."
        ) from None


def _write(lab: Lab, store: Store, target: Path, destination: _Target) -> Steps[dict[str, Any]]:
    files: dict[str, dict[str, Any]] = {}
    added: list[str] = []
    missing: list[str] = []
    pace = Pace()

    def add(name: str, path: Path) -> None:
        with path.open("rb") as source:
            files[name] = _described(source, sys.maxsize)
            digest = str(files[name]["sha256"])
            if _file_name(digest) not in added and not destination.has(_file_name(digest), digest):
                source.seek(0)
                destination.add(_file_name(digest), source)
                added.append(_file_name(digest))

    yield 0, 0, "the store is copied"
    with tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=destination.scratch) as scratch:
        snapshot, listed = Path(scratch) / "store", Path(scratch) / "images"
        tables = store.copy_to(snapshot)
        add(_STORE, snapshot)
        size_of_images = 0
        with listed.open("w", encoding="ascii") as listing:
            for number, (digest, size) in enumerate(digests_of(snapshot)):
                name = _image_name(digest)
                try:
                    if not destination.has(name, digest):
                        destination.add(name, io.BytesIO(lab.read_image(digest)))
                        added.append(name)
                except LabError:
                    missing.append(digest)
                    continue
                listing.write(digest + "\n")
                size_of_images += size
                if pace.due():
                    yield number, tables["cell"], "kept images copied"
        add(_IMAGES, listed)
    for path in _other_files(lab):
        add(path.relative_to(lab.folder).as_posix(), path)
    record = {
        "format": FORMAT,
        "labref": __version__,
        "at": utc_now(),
        "schema": store.schema_version,
        "tables": tables,
        "missing": missing,
        "files": files,
    }
    destination.finish(record)
    with Backup.open(target) as backup:
        # files of an earlier backup were read when they were looked for
        yield from backup.verify(only=set(added))
    return {
        "target": str(target),
        "bytes": size_of_images + sum(entry["bytes"] for entry in files.values()),
        "cells": tables["cell"],
        "images_copied": sum(name.startswith("images/") for name in added),
        "missing": missing,
    }


def _file_name(digest: str) -> str:
    return f"{_FILES}/{digest}"


def _image_name(digest: str) -> str:
    return f"images/{digest[:2]}/{digest[2:4]}/{digest}"


def _refuse_inside(lab: Lab, target: Path) -> None:
    lab.refuse_output(target)
    if (os.path.realpath(target) + os.sep).startswith(os.path.realpath(lab.folder) + os.sep):
        raise LabError(f"{target} lies in {lab.folder}. Choose a place outside the lab, best on another disk.")


def _other_files(lab: Lab) -> Iterator[Path]:
    yield lab.config_file
    for name in _FOLDERS:
        for path in sorted((lab.folder / name).rglob("*")):
            if path.is_file() and not any(part.startswith(".") for part in path.relative_to(lab.folder).parts):
                yield path


def _described(source: IO[bytes], most: int, out: IO[bytes] | None = None) -> dict[str, Any]:
    """Read `source` to its end, or until it has more than `most` bytes: {`bytes`: those read, `sha256`: their digest}.
    out : a file to copy the bytes to."""
    digest, size = hashlib.sha256(), 0
    while size <= most and (chunk := source.read(_CHUNK)):
        digest.update(chunk)
        size += len(chunk)
        if out is not None:
            out.write(chunk)
    return {"bytes": size, "sha256": digest.hexdigest()}


class Backup:
    """An open backup; `close` or the end of a `with` closes it. record : the content of its backup.json."""

    def __init__(
        self, path: Path, record: dict[str, Any], opener: Callable[[str], IO[bytes]], close: Callable[[], None]
    ):
        """Not called directly: see `open`."""
        self.path, self.record = path, record
        self._opener, self.close = opener, close

    def read(self, stored: str) -> IO[bytes]:
        """Open one of its files, by its name in the backup."""
        return self._opener(stored)

    @staticmethod
    def open(path: Path) -> Backup:
        """Open a backup. Raises `LabError` where there is none, or it is damaged, or a newer labref made it."""
        opened = contextlib.ExitStack()
        try:
            if path.is_dir():
                opener: Callable[[str], IO[bytes]] = lambda name: open_file(path / name)  # noqa: E731
            else:
                opener = opened.enter_context(zipfile.ZipFile(opened.enter_context(open_file(path)))).open
            with opener(_RECORD) as source:
                raw = source.read(_MOST_RECORD + 1)
            if len(raw) > _MOST_RECORD:
                raise ValueError(f"its {_RECORD} is longer than {_MOST_RECORD / 1e6:g} MB")
            record = json.loads(raw)
            made_by, number = str(record["labref"]), int(record["format"])
            record["at"] = utc(datetime.fromisoformat(record["at"]))  # an earlier labref wrote +00:00
            names = list(record["files"])
            digests = [str(entry["sha256"]) for entry in record["files"].values()]
            sizes = [int(entry["bytes"]) for entry in record["files"].values()]
            complete = {_CONFIG, _IMAGES, _STORE} <= set(names) and int(record["tables"]["cell"]) >= 0
            complete = complete and number >= 1 and min(sizes) >= 0
        except NoFileError as error:
            opened.close()
            raise LabError(f"{path} is no backup of a lab: {error.strerror}.") from None
        except (*_NO_RECORD, *NO_ARCHIVE) as error:
            opened.close()
            raise LabError(f"{path} is no backup of a lab, or is damaged: {error or type(error).__name__}.") from None
        if number > FORMAT:
            raise LabError(
                f"{path} was made by labref {made_by}, which is newer than {__version__}. Install that labref."
            )
        plain = all(_NAME.fullmatch(name) and ".." not in name.split("/") for name in names)
        if not complete or not plain or not all(map(_DIGEST.fullmatch, digests)):
            raise LabError(f"{path} is damaged: its {_RECORD} lacks something, or names files that no lab has.")
        return Backup(path, record, opener, opened.close)

    def verify(self, *, into: Path | None = None, only: Container[str] | None = None) -> Steps[None]:
        """Read every file and compare it with its digest. Yields progress.

        into : an existing folder that the files are also copied to.  only : names (in the backup) of the files to read;
        by default all. Raises `LabError` for the first file that is missing or differs from its digest.
        """
        pace = Pace()
        total = int(self.record["tables"]["cell"])
        for number, (name, stored, digest, most) in enumerate(self._files()):
            if only is not None and stored not in only:
                continue
            with contextlib.ExitStack() as stack:
                try:
                    source = stack.enter_context(self._opener(stored))
                except (OSError, *NO_ARCHIVE):
                    raise LabError(f"the backup {self.path} lacks {name}, or it is damaged; use another one.") from None
                out = None
                if into is not None:
                    (into / name).parent.mkdir(parents=True, exist_ok=True)
                    failpoint("restore.write")
                    out = stack.enter_context((into / name).open("xb"))
                try:
                    found = _described(source, most, out)["sha256"]
                    if out is not None:
                        out.flush()
                        os.fsync(out.fileno())
                except NO_ARCHIVE:
                    found = ""
                except OSError as error:
                    if error.errno is not None:  # of the disk; without a number it is of a decompressor
                        raise
                    found = ""
            if found != digest:
                raise LabError(f"{name} of the backup {self.path} is damaged; use another one.")
            if pace.due():
                yield number, total, "files verified"

    def analysers(self) -> dict[str, str]:
        """The analysers of single watched folders, as the lab's labref.toml names them; empty where it is wrong."""
        try:
            with self.read(_file_name(self.record["files"][_CONFIG]["sha256"])) as source:
                named = tomllib.loads(source.read(MOST_BYTES).decode("utf-8-sig"))["watch"]["analysers"]
            return {str(folder): str(analyser) for folder, analyser in named.items()}
        except (OSError, KeyError, ValueError, TypeError, AttributeError, *NO_ARCHIVE):
            return {}

    def _files(self) -> Iterator[tuple[str, str, str, int]]:
        """(name in the lab, name in the backup, digest, bytes that it has at most) of every file. The images come last;
        the list of images is a file as well, and comes before them."""
        files: dict[str, dict[str, Any]] = self.record["files"]
        for name, entry in files.items():
            yield name, _file_name(entry["sha256"]), str(entry["sha256"]), int(entry["bytes"])
        with contextlib.closing(self._listed(files)) as listed:
            for digest in listed:
                yield _image_name(digest), _image_name(digest), digest, _MOST_IMAGE

    def _listed(self, files: dict[str, dict[str, Any]]) -> Generator[str, None, None]:
        """Digests of the images."""
        with self._opener(_file_name(files[_IMAGES]["sha256"])) as listing:
            while True:
                try:
                    line = listing.readline(_LINE)
                except (OSError, *NO_ARCHIVE):
                    line = b"?"
                if not line:
                    return
                digest = line.decode("ascii", "replace").strip()
                if not _DIGEST.fullmatch(digest):
                    raise LabError(f"the list of images of the backup {self.path} is damaged; use another one.")
                yield digest

    def __enter__(self) -> Backup:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _configuration(backup: Backup, file: Path, watch: Sequence[Path]) -> tuple[Config, dict[Path, Path]]:
    """The lab's labref.toml, written to `file`, watching `watch` where that names folders; and which of these takes the
    place of which folder. Raises `LabError` where it is no configuration that this labref can use."""
    stored = _file_name(backup.record["files"][_CONFIG]["sha256"])
    try:
        with backup.read(stored) as source:
            file.write_bytes(source.read(MOST_BYTES))
    except (OSError, *NO_ARCHIVE):
        raise LabError(f"{_CONFIG} of the backup {backup.path} is missing or damaged; use another one.") from None
    try:
        if not watch:
            config = load_config(file)
            return config, {folder: folder for folder in config.watch.folders}
        before = load_config(file).watch.folders
        watch_instead(file, watch)
        return load_config(file), {folder: folder for folder in before} | successors(before, watch)
    except ConfigError as error:
        raise LabError(
            f"the {_CONFIG} of the backup {backup.path} cannot be used by this labref, and nothing was restored: "
            f"{str(error).replace(str(file), _CONFIG)}"
        ) from None


def restore(source: Path, folder: Path, *, watch: Sequence[Path] = ()) -> Steps[Lab]:
    """Restore the backup `source` as a lab in `folder`, which must be empty or not exist. Yields progress.

    The computer may be another than the one that the backup was made on. Every file is compared with its digest. The
    store is brought to this labref's schema, and read whole. Where anything fails, nothing is left behind.

    watch : the export folders of the restored lab; by default those of the lab that was backed up. Raises `LabError`,
    and other `LabrefError`.
    """
    folder = absolute(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise LabError(f"{folder} is not empty. Choose a folder that does not exist yet, or an empty one.")
    refuse_in_lab(folder)
    with contextlib.ExitStack() as stack:
        backup = stack.enter_context(Backup.open(source))
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            staging = Path(tempfile.mkdtemp(prefix=".labref-restore-", dir=folder.parent))
            stack.callback(shutil.rmtree, staging, ignore_errors=True)
            # before hours of copying, and before anything stands under its name
            checked = staging / f".{_CONFIG}"
            config, named = _configuration(backup, checked, [absolute(path) for path in watch])
            refuse_own(folder, Lab(folder, config).watched)
            yield from backup.verify(into=staging)
            (staging / _IMAGES).unlink()
            os.replace(checked, staging / _CONFIG)
            for name in ("images", "bundles", "logs"):
                (staging / name).mkdir(exist_ok=True)
            new_token(staging)
            yield 0, 0, "the store is read"
            with Store.open(staging / _STORE) as store:
                if any(old != new for old, new in named.items()):
                    folders = {path_to_text(str(old)): path_to_text(str(new)) for old, new in named.items()}
                    store.slides.locate(folders)
                    store.slides.rename(folders)
                tables = store.read_all()
            wrong = [
                name for name, number in backup.record["tables"].items() if name in _SAME and tables[name] != number
            ]
            if wrong:
                raise LabError(f"the store of the backup {source} does not hold what was recorded; use another one.")
            Lab(staging, config).give_rights()
            if folder.exists():
                folder.rmdir()
            for below, _, _ in os.walk(staging, topdown=False):
                sync_folder(Path(below))
            failpoint("restore.finish")
            os.replace(staging, folder)
            sync_folder(folder.parent)
        except OSError as error:
            raise LabError(f"the lab cannot be restored into {folder}: {error.strerror or error}.") from None
    return Lab.open(folder)
