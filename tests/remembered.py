"""What a run of the tests does once, where labref does it again and again.

The starter's trunk is run once for each picture: its answers are those of ONNX Runtime; they are kept in a folder for
all processes of the run, as the tests show the same few hundred pictures to it thousands of times. The tables of a new
store are made once, and then copied. What Typer makes of all of labref's commands, it makes once. A file of a bundle is
packed once. Processes that are started, and not forked (`tests.forking`), do all of it as ever.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final
from unittest.mock import patch

import numpy as np
import typer.testing

from labref import __version__, failpoints
from labref.bundles import inference
from labref.bundles.bundle import Bundle
from labref.cli import app
from labref.store import store as stores
from labref.store.duckdb import migrations
from labref.store.duckdb.connection import release

__all__ = ["copying_stores", "keeping_commands", "packing_once", "remembering"]

_MOST: Final = 4000  # pictures, of 17 kB each
_LARGE: Final = 1 << 20  # bytes


class _Remembering:
    """A session of ONNX Runtime for a trunk of full precision, whose answers for one picture are the same in every
    batch. It is opened for a picture that no process has shown to it yet."""

    def __init__(self, open_session: Callable[[], Any], folder: Path) -> None:
        self._open, self._folder = open_session, folder
        self._known: dict[bytes, list[Any]] = {}
        self._lock = threading.Lock()
        folder.mkdir(parents=True, exist_ok=True)

    @cached_property
    def _session(self) -> Any:
        return self._open()

    @cached_property
    def _about(self) -> dict[str, Any]:
        """What the session says of itself."""
        file = self._folder / "about.json"
        if not file.exists():
            ports = {
                way: [[port.name, port.type, port.shape] for port in getattr(self._session, f"get_{way}")()]
                for way in ("inputs", "outputs")
            }
            _write(file, json.dumps(ports | {"providers": self._session.get_providers()}).encode())
        about: dict[str, Any] = json.loads(file.read_bytes())
        return about

    def _ports(self, way: str) -> list[SimpleNamespace]:
        return [SimpleNamespace(name=name, type=kind, shape=shape) for name, kind, shape in self._about[way]]

    def get_inputs(self) -> list[SimpleNamespace]:
        return self._ports("inputs")

    def get_outputs(self) -> list[SimpleNamespace]:
        return self._ports("outputs")

    def get_providers(self) -> list[str]:
        return list(self._about["providers"])

    def _told(self, key: bytes) -> list[Any] | None:
        """The answer that some process has got for this picture."""
        try:
            found: list[Any] = pickle.loads((self._folder / key.hex()).read_bytes())
        except FileNotFoundError:
            return None
        return found

    def run(self, names: list[str], fed: dict[str, Any], options: Any = None) -> list[Any]:
        (crops,) = fed.values()
        keys = [hashlib.blake2b(crop, key=",".join(names).encode()).digest() for crop in crops]
        with self._lock:
            answers = [self._known.get(key) for key in keys]
        asked = [at for at, answer in enumerate(answers) if answer is None]
        for at in asked:
            answers[at] = self._told(keys[at])
        new = [at for at in asked if answers[at] is None]
        if new:
            with self._lock:
                session = self._session
            made = session.run(names, dict.fromkeys(fed, crops[new]), options)
            for row, at in enumerate(new):
                answers[at] = [values[row] for values in made]
                _write(self._folder / keys[at].hex(), pickle.dumps(answers[at]))
        if asked:
            with self._lock:
                self._known.update((keys[at], answer) for at in asked if (answer := answers[at]) is not None)
                while len(self._known) > _MOST:
                    del self._known[next(iter(self._known))]
        return [np.stack(values) for values in zip(*answers, strict=True)]


def _write(file: Path, data: bytes) -> None:
    """Write a file that other processes may be reading or writing."""
    draft = file.with_name(f"{file.name}.{os.getpid()}.{threading.get_ident()}")
    draft.write_bytes(data)
    os.replace(draft, file)


@contextmanager
def remembering(starter: Bundle, folder: Path) -> Iterator[None]:
    """Until it ends, every `Embedder` on the trunk of `starter` shares one session that remembers, in `folder`.

    Each session of ONNX Runtime has one thread, whatever is asked for: several wait for each other by spinning, and a
    picture took up to twice the processor's time.
    """
    opened: dict[Any, _Remembering] = {}
    real = inference._session
    wanted = starter.manifest.files["trunk.onnx"]["sha256"]

    def session(bundle: Bundle, name: str, providers: list[str], threads: int) -> Any:
        file = Path(bundle.folder, name)
        if name != "trunk.onnx" or not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != wanted:
            return real(bundle, name, providers, 1)
        key = (*providers, threads)
        if key not in opened:
            place = folder / hashlib.sha256(repr(key).encode()).hexdigest()[:16]
            # of the starter's own folder: that of `bundle` may be gone when the first new picture comes
            opened[key] = _Remembering(partial(real, starter, name, providers, 1), place)
        inference._check_ports(bundle, name, opened[key])
        return opened[key]

    with patch.object(inference, "_session", session):
        yield


@contextmanager
def copying_stores(folder: Path) -> Iterator[None]:
    """Until it ends, a new store is a copy of one that the migrations made in `folder`; not where a test has changed
    the migrations, or where it may fail at one."""
    real = stores._connect
    copied: dict[Any, Path] = {}

    def connect(path: Path, memory_limit: str, threads: int) -> Any:
        if failpoints._armed is None and path.suffix == ".new" and not path.exists() and path.parent.is_dir():
            steps = tuple((step.version, step.step) for step in migrations._REGISTRY)
            key = (__version__, steps)
            if key not in copied:
                made = folder / f"{len(copied)}.duckdb"
                real(made, memory_limit, threads).close()
                release(made)
                copied[key] = made
            shutil.copyfile(copied[key], path)
            return SimpleNamespace(close=lambda: None)  # `Store.create` opens it to have its tables made
        return real(path, memory_limit, threads)

    with patch.object(stores, "_connect", connect):
        yield


class _Packing:
    """A compressor of `zipfile` that looks in a folder for what it has compressed before, where that is large."""

    def __init__(self, compressor: Any, folder: Path) -> None:
        self._compressor, self._folder, self._parts = compressor, folder, bytearray()

    def compress(self, data: bytes) -> bytes:
        self._parts += data
        return b""

    def flush(self) -> bytes:
        file = self._folder / hashlib.sha256(self._parts).hexdigest()
        try:
            return file.read_bytes()
        except FileNotFoundError:
            packed: bytes = self._compressor.compress(self._parts) + self._compressor.flush()
        if len(self._parts) > _LARGE:
            _write(file, packed)
        return packed


@contextmanager
def packing_once(folder: Path) -> Iterator[None]:
    """Until it ends, what `zipfile` compresses at its usual level, as `pack` does, is compressed once if it is large.
    The bytes are the same, and kept in `folder`. The starter's trunk takes 2 s of a core each time."""
    folder.mkdir(exist_ok=True)
    real = zipfile._get_compressor  # type: ignore[attr-defined]

    def get_compressor(kind: int, level: int | None = None) -> Any:
        made = real(kind, level)
        return _Packing(made, folder) if (kind, level) == (zipfile.ZIP_DEFLATED, None) else made

    with patch.object(zipfile, "_get_compressor", get_compressor):
        yield


@contextmanager
def keeping_commands() -> Iterator[None]:
    """Until it ends, `typer.testing.CliRunner` has the commands of `labref` made from their parameters once: to make
    them takes longer than most of them do. `labref` itself makes only the one that is called (`whole_for`)."""
    made: list[Any] = []
    real = typer.testing._get_command  # type: ignore[attr-defined]

    def get_command(asked: typer.Typer) -> Any:
        if asked is not app:
            return real(asked)
        if not made:
            made.append(real(app))
        return made[0]

    with patch.object(typer.testing, "_get_command", get_command):
        yield
