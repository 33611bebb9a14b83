"""Puts the sub-commands together, and turns labref's errors into one line and an exit code.

The modules of this room do without `from __future__ import annotations`: Typer reads the annotations of every command
at each start, and would have to evaluate them from text.
"""

import contextlib
import copy
import errno
import io
import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.models import CommandInfo, TyperInfo

from labref import __version__
from labref.cli import (
    agent,
    bench,
    bundle,
    config,
    contribute,
    demo,
    doctor,
    duplicates,
    init,
    key,
    label,
    ledger,
    map,
    query,
    reading,
    report,
    review,
    service,
    shared,
    slide,
    status,
    store,
    user,
    web,
)
from labref.cli._help import format_help_of
from labref.errors import LabrefError
from labref.files import own_process
from labref.printing import printable

__all__ = ["app", "main", "whole_for"]

_HELP = """Adaptive reference cells: the lab's own most similar cells, beside the hard one.

A lab is one folder with its configuration (labref.toml), its store and its images. An agent watches the analyser's
export folder, which is never written to, and keeps every cell; a query gives the eight stored cells that look most
like an image, and the classes of the nearest hundred.

\b
See it work, on made-up cells, in a minute or two:
  labref demo

\b
Set up a lab, fill it, ask it:
  labref init lab --watch "D:/CellaVision/Export"
  labref agent --once --lab lab
  labref query cell.jpg --lab lab --grid cell.png

The lab is --lab DIR, else LABREF_LAB, else the nearest parent folder with a labref.toml.

Exit codes: 0 all done, 1 something asked for failed (stderr says what, and the remedy), 2 wrong usage.
"""


class _Group(TyperGroup):
    """Commands whose `LabrefError` is one line on stderr, and exit code 1."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        format_help_of(self)

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]  # typer.Context is what it is given
        try:
            return super().invoke(ctx)
        except LabrefError as error:
            typer.echo(printable(f"error: {error}"), err=True)
            raise typer.Exit(1) from None
        except OSError as error:
            if error.errno == errno.EPIPE or error.errno is None:
                raise  # click ends the command quietly where nobody reads on
            if isinstance(error, FileNotFoundError) and error.filename is None and not _is_somewhere():
                typer.echo(
                    "error: the folder that labref was called in is not there any more; go to another.", err=True
                )
                raise typer.Exit(1) from None
            where = f"{error.filename}: " if error.filename else ""
            typer.echo(f"error: {where}{error.strerror}. Look at the name, its rights and its disk.", err=True)
            raise typer.Exit(1) from None


def _is_somewhere() -> bool:
    """Whether the current folder is there."""
    try:
        os.getcwd()  # noqa: PTH109
    except FileNotFoundError:
        return False
    return True


app = typer.Typer(
    name="labref",
    cls=_Group,
    help=_HELP,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"labref {__version__}")
        raise typer.Exit


@app.callback()
def _labref(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


for _module in (
    init,
    agent,
    query,
    status,
    doctor,
    bench,
    config,
    service,
    ledger,
    duplicates,
    label,
    slide,
    review,
    reading,
    report,
    store,
    contribute,
    bundle,
    key,
    map,
    shared,
    user,
    web,
    demo,
):
    _module.add_to(app)


def main() -> None:
    """Runs the command line; the entry point of the `labref` script."""
    _open_closed_streams()
    own_process()
    for stream in (sys.stdout, sys.stderr):
        # a Windows console or a pipe in a code page without Å or 日本 must not end a command
        if isinstance(stream, io.TextIOWrapper):
            with contextlib.suppress(ValueError, OSError):
                stream.reconfigure(errors="backslashreplace")
    try:
        whole_for(sys.argv[1:])(prog_name="labref")
    except SystemExit as end:
        sys.exit(_flushed(end.code))


def _open_closed_streams() -> None:
    """Open to nowhere what the caller has closed of stdin, stdout and stderr (`>&-`, a service, pythonw).

    Else the next file that is opened, such as the store, has the number 1 or 2, and is written over by a library that
    prints.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDONLY if number == 0 else os.O_WRONLY)  # the lowest number that is free
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            os.set_inheritable(number, True)
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115, PTH123 - as long as the process
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123


def whole_for(arguments: list[str]) -> typer.Typer:
    """`app`, in which only the command that the arguments name has its parameters and sub-commands; the others have
    their names and help. To make what all of them take, Typer takes longer than a command to ask an agent."""
    if "_LABREF_COMPLETE" in os.environ:  # a shell asks what could be typed
        return app
    named = next((argument for argument in arguments if not argument.startswith("-")), None)
    made = copy.copy(app)
    made.registered_commands = [
        info if _name_of(info) == named else _without_parameters(info) for info in app.registered_commands
    ]
    made.registered_groups = [info if info.name == named else _without_commands(info) for info in app.registered_groups]
    return made


def _name_of(info: CommandInfo) -> str | None:
    return info.name or getattr(info.callback, "__name__", None)


def _without_parameters(info: CommandInfo) -> CommandInfo:
    bare = copy.copy(info)
    bare.name, bare.callback = _name_of(info), lambda: None
    return bare


def _without_commands(info: TyperInfo) -> TyperInfo:
    bare = copy.copy(info)
    bare.typer_instance = copy.copy(info.typer_instance)
    if bare.typer_instance is not None:
        bare.typer_instance.registered_commands, bare.typer_instance.registered_groups = [], []
    return bare


def _flushed(code: str | int | None) -> str | int | None:
    """The exit code, or 1 where what was printed could not be written: a full disk, or a reader that has gone."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except (OSError, ValueError) as error:
        if not isinstance(error, BrokenPipeError):
            typer.echo(f"error: what was printed could not be written: {error}", err=True)
        with contextlib.suppress(OSError, ValueError):  # or Python tries once more, and tells of it in its own words
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return code or 1
