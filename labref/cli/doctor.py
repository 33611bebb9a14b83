"""`labref doctor`: what is wrong, or will be, and what to do."""

from typing import Annotated

import typer

from labref.cli._shared import JsonOption, LabOption, counted, print_json
from labref.printing import printable

__all__ = ["add_to"]

_HELP = """Look for everything that goes wrong in a lab, and say what to do about it. Nothing is changed.

It looks at this computer (Python, packages, ONNX Runtime, GPU), the configuration, the export folders, the rights, the
store, the bundle and its networks, the disk, the last backup, the clock, the ports and the service. It works while the
agent runs and while it does not. Run it as the user that runs the agent: rights are this user's.

\b
Examples:
  labref doctor --lab C:/labref/lab
  labref doctor --no-speed                        without two seconds of networks
  labref doctor --json                            one object for each finding

Exit codes: 0 nothing is wrong, 1 something is, 2 wrong usage, 3 nothing is wrong yet, but something will be.

With --json, one object for each finding.

@condition.Finding
"""
_MARKS = {
    "fine": ("ok", "green"),
    "note": ("note", "blue"),
    "warning": ("WARNING", "yellow"),
    "problem": ("PROBLEM", "red"),
}


def doctor(
    lab: LabOption = None,
    speed: Annotated[bool, typer.Option("--speed/--no-speed", help="Run the networks for two seconds.")] = True,
    json: JsonOption = False,
) -> None:
    from labref.doctor import examine
    from labref.operations.condition import State

    worst = {State.FINE: 0, State.NOTE: 0, State.WARNING: 0, State.PROBLEM: 0}
    for finding in examine(lab, speed=speed):
        worst[finding.state] += 1
        if json:
            print_json(finding.model_dump(mode="json"))
            continue
        mark, colour = _MARKS[finding.state]
        typer.echo(typer.style(f"{mark:<8}", fg=colour) + printable(f"{finding.check:<12}{finding.says}"))
        if finding.remedy is not None:
            typer.echo(f"{'':<20}" + printable(f"→ {finding.remedy}"))
    problems, warnings = worst[State.PROBLEM], worst[State.WARNING]
    if not json:
        typer.echo("")
        typer.echo(
            "Nothing is wrong."
            if not problems + warnings
            else f"{counted(problems, 'problem')}, {counted(warnings, 'warning')}."
        )
    if problems or warnings:
        raise typer.Exit(1 if problems else 3)


def add_to(app: typer.Typer) -> None:
    app.command(help=_HELP, short_help="What is wrong, or will be, and what to do.")(doctor)
