"""Opening the database file, and saying in plain words why it cannot be opened."""

from __future__ import annotations

import os
import re
import threading
from pathlib import Path

import duckdb

from labref.errors import StoreError, StoreLockedError, StoreTooNewError
from labref.store.duckdb.wal import check_log

__all__ = ["connect", "release"]

_open_here: set[str] = set()
_open_here_lock = threading.Lock()


def _key(path: Path) -> str:
    return os.path.normcase(path.resolve())


def connect(path: Path, *, memory_limit: str, threads: int) -> duckdb.DuckDBPyConnection:
    """Open or make a database file for this process alone; `release` it once its connection is closed.

    Raises StoreLockedError where this or another process has it open, StoreTooNewError where a newer DuckDB
    wrote it, StoreError where it is no database, is damaged, or cannot be read.
    """
    key = _key(path)
    with _open_here_lock:
        if key in _open_here:
            raise StoreLockedError(
                f"{path} is already open in this process. Use that Store, or close it before opening another."
            )
        _open_here.add(key)
    try:
        check_log(path)
        return duckdb.connect(
            str(path),
            config={
                "memory_limit": memory_limit,
                "threads": threads,
                # the lab has no internet, and a query must not wait for one
                "autoinstall_known_extensions": False,
                "autoload_known_extensions": False,
                # SQL here names tables only, never a Python variable that happens to be called alike
                "python_enable_replacements": False,
            },
        )
    except duckdb.Error as error:
        release(path)
        raise _explained(path, error) from error
    except RuntimeError as error:  # of DuckDB's, for a name that is not UTF-8
        release(path)
        raise StoreError(f"{str(path)!r} has a name that is not valid UTF-8. Rename the folder.") from error
    except BaseException:
        release(path)
        raise


def release(path: Path) -> None:
    """The file is closed again."""
    with _open_here_lock:
        _open_here.discard(_key(path))


def _explained(path: Path, error: duckdb.Error) -> StoreError:
    text = str(error)
    if "lock on file" in text or "being used by another process" in text:
        process = re.search(r"PID (\d+)", text)
        who = f"process {process[1]}" if process else "another process"
        return StoreLockedError(
            f"{path} is in use by {who}; a store is open in one process at a time. If the agent of this lab runs, "
            "ask it instead (`labref query` and `labref status` do so by themselves); otherwise end that process "
            "and try again."
        )
    if "version number" in text or "storage version" in text:
        return StoreTooNewError(
            f"{path} was written by a newer DuckDB than the {duckdb.__version__} installed here. Install the labref "
            f"that wrote it, or restore a backup made before the upgrade. (DuckDB says: {text})"
        )
    if "not a valid DuckDB database" in text:
        return StoreError(
            f"{path} is not a labref store: it is no DuckDB database. Restore a backup of the lab folder."
        )
    if "Corrupt database" in text or "checksum" in text:
        return StoreError(
            f"{path} is damaged. Look at the disk, and restore a backup (`labref store restore`). (DuckDB says: {text})"
        )
    return StoreError(
        f"{path} cannot be opened. Look at the rights of the file and its folder and at the free disk space. "
        f"(DuckDB says: {text})"
    )
