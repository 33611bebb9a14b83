"""Options and output that several commands share."""

import getpass
import json
import os
import shlex
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from labref.printing import counted, printable

if TYPE_CHECKING:
    from labref.lab import Lab

__all__ = [
    "JsonOption",
    "LabOption",
    "WhoOption",
    "a_path",
    "counted",
    "here",
    "map_named",
    "named",
    "perform",
    "print_json",
    "program",
    "quoted",
    "read_image",
    "say",
    "without_progress",
]


def map_named(place: Mapping[str, Any]) -> str:
    """The map that an answer's place is on: `map 3`, or `map 4 of DM96`, of that analyser's cells alone."""
    return f"map {place['map']}" + (f" of {place['analyser']}" if place["analyser"] is not None else "")


def a_path(text: str) -> Path:
    """A path as it stands on the command line, with `~` expanded. Raises `LabError` where it is empty, which would be
    the current folder, begins with the home folder of nobody, or holds the character NUL."""
    from labref.errors import LabError

    if not text.strip():
        raise LabError(f"{text!r} is no path: name a file or folder, or . for the current folder.")
    if text.startswith("~") or "\0" in text:
        from labref.lab import absolute

        return absolute(Path(text))
    return Path(text)


def read_image(lab: "Lab", image: Path) -> bytes:
    """The bytes of an image's file, at most as many as the lab takes. Raises `LabrefError` where it is larger, or
    cannot be read."""
    from labref.errors import LabrefError
    from labref.files import LargeFileError, read_file

    most = lab.config.watch.max_file_megabytes
    try:
        return read_file(image, int(most * 1e6), streams=True)
    except LargeFileError:
        raise LabrefError(f"larger than {most:g} MB, so no image of a cell ([watch] max_file_megabytes)") from None
    except OSError as error:
        raise LabrefError(f"cannot be read: {error.strerror or error}. Check the path and the permissions.") from None


LabOption = Annotated[
    Path | None,
    typer.Option(
        "--lab",
        parser=a_path,
        metavar="DIR",
        help="The lab's folder. Default: LABREF_LAB, else the nearest parent folder with a labref.toml.",
        show_default=False,
    ),
]

WhoOption = Annotated[
    str | None,
    typer.Option("--who", metavar="NAME", help="Who decides. Default: your login name.", show_default=False),
]

JsonOption = Annotated[
    bool, typer.Option("--json", help="Print JSON on stdout, and nothing else there.", show_default=False)
]


def print_json(value: Mapping[str, Any]) -> None:
    """One JSON object on one line, in ASCII: any path and any label survives any console and pipe."""
    typer.echo(json.dumps(value, allow_nan=False))


def say(line: str, *, err: bool = False) -> None:
    """One line for people, on stdout, or on stderr; what a terminal would obey is written as its code."""
    typer.echo(printable(line), err=err)


def perform(lab: "Lab", name: str, /, **parameters: Any) -> Iterator[dict[str, Any]]:
    """Rows of an operation (see `labref.operations`) but those of its progress; see `without_progress`."""
    from labref.web import desk

    yield from without_progress(desk.run(lab, name, **parameters))


def named(who: str | None) -> str:
    """The name of the person who calls the command: what --who says, else the login name. Raises `LabrefError` for a
    name that nobody could read."""
    from labref.operations.naming import person

    if who is None:
        try:
            who = getpass.getuser()
        except (OSError, KeyError, ImportError):  # a service account without a name
            who = "unknown"
    name = person(who)
    assert name is not None
    return name


def here() -> str | None:
    """The folder that the command was called in, as an operation takes it."""
    from labref.web import desk

    return desk.here()


def without_progress(rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Rows but those of progress, which a terminal shows on stderr meanwhile. What they wait for is a line of its own
    there, on a terminal or not."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(
        *columns,
        console=console,
        transient=True,
        disable=not console.is_terminal,
        redirect_stdout=sys.stdout.isatty(),  # rows that go to a file must not land on stderr
    ) as shown:
        task = waited_for = None
        for row in rows:
            if set(row) != {"progress"}:
                yield row
                continue
            said = row["progress"]
            if said.get("waits") and said["text"] != waited_for:
                waited_for = said["text"]
                shown.console.print(printable(waited_for), markup=False, highlight=False, soft_wrap=True)
            values = {"completed": said["done"], "total": said["total"] or None, "description": said["text"]}
            if task is None:
                task = shown.add_task(**values)
            else:
                shown.update(task, **values)


def quoted(path: Path) -> str:
    """A path as it is typed in this system's shell."""
    text = str(path)
    if os.name == "nt":
        return f'"{text}"' if " " in text else text
    return shlex.quote(text)


def program() -> str:
    """How the command is typed here: its name where that is found, else by the Python that runs it."""
    return "labref" if shutil.which("labref") else f"{quoted(Path(sys.executable))} -m labref"
