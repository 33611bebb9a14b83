"""Options and output that several commands share."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["JsonOption", "LabOption", "print_json", "program", "quoted"]

LabOption = Annotated[
    Path | None,
    typer.Option(
        "--lab",
        metavar="DIR",
        help="The lab's folder. Default: LABREF_LAB, else the nearest parent folder with a labref.toml.",
        show_default=False,
    ),
]

JsonOption = Annotated[
    bool, typer.Option("--json", help="Print JSON on stdout, and nothing else there.", show_default=False)
]


def print_json(value: Mapping[str, Any]) -> None:
    """One JSON object on one line, in ASCII: any path and any label survives any console and pipe."""
    typer.echo(json.dumps(value, allow_nan=False))


def quoted(path: Path) -> str:
    """A path as it is typed in this system's shell."""
    text = str(path)
    if os.name == "nt":
        return f'"{text}"' if " " in text else text
    return shlex.quote(text)


def program() -> str:
    """How the command is typed here: its name where that is found, else by the Python that runs it."""
    return "labref" if shutil.which("labref") else f"{quoted(Path(sys.executable))} -m labref"
