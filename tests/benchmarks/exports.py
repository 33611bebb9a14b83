"""What benchmarks share: export folders, of real cells where there are some, else of drawn ones; processes; how they
tell what they found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from labref.demo.analyser import FolderSource, Source, SyntheticSource

__all__ = [
    "REAL_CELLS",
    "benchmark_process",
    "choose_source",
    "labref_process",
    "process_of_tests",
    "tell",
    "write_cells",
]

REPOSITORY: Final = Path(__file__).resolve().parents[2]
REAL_CELLS: Final = REPOSITORY.parent / "shared" / "data" / "pbc"


def choose_source(images: Path | None, seed: int) -> tuple[Source, str]:
    """Where cells come from, and a word for it: the folder `images`, else ../shared/data/pbc, else drawn cells."""
    if images is None and REAL_CELLS.is_dir():
        images = REAL_CELLS
    if images is None:
        return SyntheticSource(seed=seed), "drawn"
    return FolderSource(images, seed=seed), str(images)


def write_cells(source: Source, folder: Path, n: int, *, first: int = 0) -> list[Path]:
    """Write the next `n` cells of `source` below `folder`, in class folders, numbered from `first`."""
    written = []
    for number, specimen in enumerate(source.take(n), first):
        path = folder / (specimen.label or "cells") / f"{number:06d}{specimen.suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(specimen.data)
        written.append(path)
    return written


def labref_process(*arguments: str | Path, passed: Sequence[str] = (), **settings: object) -> subprocess.Popen[str]:
    """The `labref` command in a process of its own, its output piped.

    settings : keys of labref.toml's [watch], as LABREF_WATCH__* variables; of the caller's own LABREF_* only those of
    the names `passed` are passed on.
    """
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("LABREF_") or name in passed
    }
    environment |= {f"LABREF_WATCH__{name.upper()}": str(value) for name, value in settings.items()}
    return _started("labref", [str(argument) for argument in arguments], environment)


def benchmark_process(name: str, *arguments: str) -> subprocess.Popen[str]:
    """`python -m tests.benchmarks.<name> <arguments>` in a process of its own, its output piped."""
    return process_of_tests(f"benchmarks.{name}", *arguments)


def process_of_tests(name: str, *arguments: str, **variables: str) -> subprocess.Popen[str]:
    """`python -m tests.<name> <arguments>` in a process of its own, its output piped. variables : of its environment,
    over those of this process."""
    return _started(f"tests.{name}", arguments, os.environ | variables)


def _started(module: str, arguments: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        env=environment,
        # Windows: so that Ctrl-Break can be sent to it alone
        creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
    )


def tell(figures: Mapping[str, Any], *, as_json: bool) -> None:
    """Print what a benchmark found: one JSON object, or a line for each figure."""
    if as_json:
        print(json.dumps(figures))
    else:
        for name, value in figures.items():
            print(f"{name}: {value}")
