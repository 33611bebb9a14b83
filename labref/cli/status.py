"""`labref status`: how a lab and its agent are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import typer

from labref.cli._shared import JsonOption, LabOption, print_json

__all__ = ["add_to"]

_HELP = """placeholder"""


def status(lab: LabOption = None, json: JsonOption = False) -> None:
    from labref.lab import Lab
    from labref.query import status as status_of

    found = status_of(Lab.find(lab))
    if json:
        print_json(found)
    else:
        typer.echo(_text(found))


def _text(found: Mapping[str, Any]) -> str:
    return "\n".join(f"{key}: {value}" for key, value in found.items())


def add_to(app: typer.Typer) -> None:
    app.command(help=_HELP, short_help="How the lab and its agent are.")(status)
