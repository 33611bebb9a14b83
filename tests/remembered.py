"""What each process of tests does once, where labref does it again and again.

The starter's trunk is opened once, and run once for each picture: its answers are those of ONNX Runtime; they are kept,
as the tests show the same few hundred pictures to it thousands of times. The tables of a new store are made once, and
then copied. Processes of their own, such as agents, do all of it as ever.
"""

from __future__ import annotations

import hashlib
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

import numpy as np

from labref import failpoints
from labref.bundles import inference
from labref.bundles.bundle import Bundle
from labref.store import store as stores
from labref.store.duckdb import migrations

__all__ = ["copying_stores", "remembering"]

_MOST: Final = 4000  # pictures, of 17 kB each


class _Remembering:
    """A session of ONNX Runtime for a trunk of full precision, whose answers for one picture are the same in every
    batch."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self._known: dict[bytes, list[Any]] = {}
        self._lock = threading.Lock()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run(self, names: list[str], fed: dict[str, Any]) -> list[Any]:
        (crops,) = fed.values()
        keys = [hashlib.blake2b(crop, key=",".join(names).encode()).digest() for crop in crops]
        with self._lock:
            answers = [self._known.get(key) for key in keys]
        new = [at for at, answer in enumerate(answers) if answer is None]
        if new:
            made = self._session.run(names, dict.fromkeys(fed, crops[new]))
            for row, at in enumerate(new):
                answers[at] = [values[row] for values in made]
            with self._lock:
                self._known.update((keys[at], answers[at]) for at in new)
                while len(self._known) > _MOST:
                    del self._known[next(iter(self._known))]
        return [np.stack(values) for values in zip(*answers, strict=True)]


@contextmanager
def remembering(starter: Bundle) -> Iterator[None]:
    """Until it ends, every `Embedder` on the trunk of `starter` shares one session that remembers."""
    opened: dict[Any, _Remembering] = {}
    real = inference._session
    wanted = starter.manifest.files["trunk.onnx"]["sha256"]

    def session(bundle: Bundle, name: str, providers: list[str], threads: int) -> Any:
        file = Path(bundle.folder, name)
        if name != "trunk.onnx" or not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != wanted:
            return real(bundle, name, providers, threads)
        key = (*providers, threads)
        if key not in opened:
            opened[key] = _Remembering(real(bundle, name, providers, threads))
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
            key = (migrations.__version__, steps)
            if key not in copied:
                made = folder / f"{len(copied)}.duckdb"
                real(made, memory_limit, threads).close()
                stores.release(made)
                copied[key] = made
            shutil.copyfile(copied[key], path)
        return real(path, memory_limit, threads)

    with patch.object(stores, "_connect", connect):
        yield
