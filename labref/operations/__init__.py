"""What a lab can be asked to do: named operations, done by the running agent, or here while none runs.

The agent alone opens the store while it runs, so a command names an operation and its parameters, and gets JSON rows
back; it does not know who did the work. An operation `group.verb` is a function of `labref.operations.<group>`:

    @operation("label.set")
    def set_label(context: Context, *, cell_id: str, label: str) -> Iterator[Row]: ...

Rows are yielded as they come. One that takes long yields `progress(done, total, text)` every few seconds, at least:
a connection that is silent for two minutes counts as dead, and one whose asker has gone ends at its next row.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Callable, Iterator
from typing import Any

from labref.errors import LabrefError
from labref.progress import Row
from labref.tasks.context import Context

__all__ = [
    "Operation",
    "operation",
    "perform",
]

Operation = Callable[..., Iterator[Row]]


_REGISTRY: dict[str, Operation] = {}


def operation(name: str) -> Callable[[Operation], Operation]:
    """Register a function as the operation `group.verb`, in the module `labref.operations.<group>`."""

    def register(function: Operation) -> Operation:
        if name in _REGISTRY:
            raise ValueError(f"operation {name} is there already")
        _REGISTRY[name] = function
        return function

    return register


def perform(context: Context, name: str, parameters: dict[str, Any]) -> Iterator[Row]:
    """Do an operation here. Raises `LabrefError` where it is unknown, or takes other parameters, before the first row; and
    where the operating system fails it, such as by a full disk."""
    function = _find(name)
    try:
        inspect.signature(function).bind(context, **parameters)
    except TypeError as error:
        raise LabrefError(f"operation {name}: {error}. The command and the agent are of different versions.") from None
    return _in_words(context, function(context, **parameters))


def _in_words(context: Context, rows: Iterator[Row]) -> Iterator[Row]:
    try:
        yield from rows
    except OSError as error:  # its file name could name a patient
        raise LabrefError(
            f"{error.strerror or type(error).__name__}: what was begun in {context.lab.folder} is not finished. Look at the free disk "
            "space and the rights of the folder, and do it again."
        ) from error


def _find(name: str) -> Operation:
    group = name.split(".")[0]
    if name not in _REGISTRY and group.isidentifier() and importlib.util.find_spec(f"{__name__}.{group}"):
        importlib.import_module(f"{__name__}.{group}")
    if name not in _REGISTRY:
        raise LabrefError(f"this labref has no operation {name!r}; the command and the agent are of different versions")
    return _REGISTRY[name]
