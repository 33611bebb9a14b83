"""A map as an npz file, without pickled objects."""

from __future__ import annotations

import contextlib
import os
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from labref.errors import LabrefError
from labref.som.training import as_minisom

if TYPE_CHECKING:
    from minisom import MiniSom

__all__ = ["load", "save"]

_FORMAT: Final = 1


def save(som: MiniSom, path: Path) -> None:
    """Write a map: its format, weights float32[rows, cols, L], σ and learning rate.

    The file is written whole or not at all: a temporary file beside it is flushed to the disk, and then renamed. `load`
    returns the same weights, where the map came from `train` or `load`: these weights fit float32.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            np.savez(
                file,
                format=np.int64(_FORMAT),
                weights=som.get_weights().astype(np.float32),
                sigma=np.float64(som._sigma),
                learning_rate=np.float64(som._learning_rate),
            )
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def load(path: Path) -> MiniSom:
    """Read a map that `save` wrote. Raises `LabrefError` where the file is missing, damaged, or of a newer labref."""
    try:
        # the file is opened here because NumPy leaves a file open that is no archive
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            version = int(file["format"])
            fields: dict[str, Any] = {name: file[name] for name in ("weights", "sigma", "learning_rate")}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise LabrefError(
            f"the map {path.name} cannot be read ({type(error).__name__}); train it anew with `labref map train`"
        ) from None
    weights = fields["weights"]
    if version > _FORMAT:
        raise LabrefError(f"the map {path.name} is of format {version}, written by a newer labref; upgrade labref")
    if weights.ndim != 3 or 0 in weights.shape or weights.dtype != np.float32 or not np.isfinite(weights).all():
        raise LabrefError(f"the map {path.name} is damaged; train it anew with `labref map train`")
    return as_minisom(weights, sigma=float(fields["sigma"]), learning_rate=float(fields["learning_rate"]), seed=0)
