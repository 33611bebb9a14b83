"""`labref service`: the agent as a service, which starts with the computer."""

from pathlib import Path
from typing import Annotated

import typer

from labref.cli._shared import JsonOption, LabOption, a_path, print_json, say

__all__ = ["add_to"]

_HELP = """The lab's agent as a service of the system: it starts with the computer, before anybody logs in, and again when it fails.

\b
  labref service install --user labref            Linux, systemd; with sudo
  labref service install --winsw WinSW-x64.exe    Windows, a service
  labref service install                          Windows, a task of the Task Scheduler
  labref service status
  labref service renew                            after an upgrade; install.sh of a stick does it by itself
  labref service remove
  labref service container FOLDER                 Docker, Podman

One service for a computer, called labref-agent. Linux has been tried as far as can be without starting it (systemd-analyze
verify, security 1.5 of 10), Windows with a stub of its programs only.
"""
_INSTALL = """Register the agent of this lab as a service, and start it. As administrator: with sudo, or in an administrator's prompt.

Linux: a systemd unit that may write in the lab, in the folders that --writable names (for backups), and nowhere else, that is
started again when it fails, and when it has not said for three minutes that it is at work. A GPU wants --gpu.

Windows: with --winsw a service that is ended in good order. WinSW (github.com/winsw/winsw, MIT licence) is one program
that the lab's IT brings along; it is copied into LAB/service. Without it a task of the Task Scheduler; it asks for the
user's password, and ending the task ends the agent hard, which loses nothing.

\b
  labref service install --user labref --writable /mnt/backup
  labref service install --write .                only write the file, to be looked at
"""
_CONTAINER = """Write the definition of a container into a stick's folder: Dockerfile, and compose.yaml with the lab's folders.

The stick's folder (`make wheelhouse PLATFORM=manylinux`, with RUNTIME=cuda for an NVIDIA GPU) has it already; this writes it
anew. The container runs as a user of its own, with a read-only root, and says whether the agent is well. It was checked with
hadolint and never run: there was no Docker where labref was made.

\b
  labref service container /media/stick/wheelhouse
  docker compose -f container/compose.yaml up -d --build         in that folder
"""
_RENEW = """Write the service's file as this labref writes it, with what was chosen when it was registered. As administrator.

For after an upgrade, and where `[web]` or `[metrics]` has a new address: `labref doctor` says where it is due. User, GPU and
folders stay as they are; the file before stays beside it, as FILE.before. An agent that runs is started anew where the file
changed (on Windows it takes the file at its next start). Changes of your own belong in a drop-in: `systemctl edit labref-agent`.
"""
_REMOVE = """Take the service out of the system. Its agent ends in good order; the lab stays as it is."""
_STATUS = """Say whether the service is registered, and what the system says of it. Exit code 1 where it is not.

With --json, one object.

@condition.ServiceState
"""


def install(
    lab: LabOption = None,
    user: Annotated[
        str | None,
        typer.Option(
            "--user", metavar="NAME", help="Who the agent runs as. Default: the lab's owner.", show_default=False
        ),
    ] = None,
    winsw: Annotated[
        Path | None,
        typer.Option("--winsw", parser=a_path, metavar="FILE", help="WinSW's program, on Windows.", show_default=False),
    ] = None,
    gpu: Annotated[bool, typer.Option("--gpu", help="Let the agent use a GPU's devices.", show_default=False)] = False,
    writable: Annotated[
        list[Path] | None,
        typer.Option(
            "--writable",
            parser=a_path,
            metavar="FOLDER",
            help="A folder that the agent may write in beside the lab, as for backups. Give it again for another. Linux.",
            show_default=False,
        ),
    ] = None,
    write: Annotated[
        Path | None,
        typer.Option(
            "--write",
            parser=a_path,
            metavar="FOLDER",
            help="Write the file here, and register nothing.",
            show_default=False,
        ),
    ] = None,
) -> None:
    from labref.errors import LabError
    from labref.lab import Lab
    from labref.service import install as install_service
    from labref.service import registered
    from labref.web.client import AgentClient

    found = Lab.find(lab)
    # of a service that is registered, the agent is started anew
    if write is None and registered(found).kind is None and AgentClient.find(found) is not None:
        raise LabError("an agent runs on this lab already, and the service's could not start beside it. End it first.")
    steps = install_service(found, user=user, winsw=winsw, gpu=gpu, writable=writable or (), only_write=write)
    for line in steps:
        say(line)


def remove(lab: LabOption = None) -> None:
    from labref.lab import Lab
    from labref.service import remove as remove_service

    for line in remove_service(Lab.find(lab)):
        say(line)


def renew(lab: LabOption = None) -> None:
    from labref.lab import Lab
    from labref.service import renew as renew_service

    for line in renew_service(Lab.find(lab)):
        say(line)


def status(lab: LabOption = None, json: JsonOption = False) -> None:
    from labref.lab import Lab
    from labref.operations.condition import ServiceState
    from labref.service import NAME, registered

    found = registered(Lab.find(lab))
    if json:
        shown = ServiceState(kind=found.kind, state=found.state, file=None if found.file is None else str(found.file))
        print_json(shown.model_dump(mode="json"))
    else:
        say(f"{NAME}: {found.state}" + ("" if found.kind is None else f" ({found.kind}, {found.file})"))
    if found.kind is None:
        raise typer.Exit(1)


def container(
    stick: Annotated[
        Path, typer.Argument(parser=a_path, metavar="FOLDER", help="The folder that `make wheelhouse` made.")
    ],
) -> None:
    from labref.service import write_container

    for line in write_container(stick):
        say(line)


def add_to(app: typer.Typer) -> None:
    group = typer.Typer(
        help=_HELP, short_help="The agent as a service of the system.", no_args_is_help=True, rich_markup_mode=None
    )
    group.command(help=_INSTALL, short_help="Register the agent as a service.")(install)
    group.command(help=_CONTAINER, short_help="Write the definition of a container.")(container)
    group.command(help=_RENEW, short_help="Write the service's file anew, after an upgrade.")(renew)
    group.command(help=_REMOVE, short_help="Take the service out of the system.")(remove)
    group.command(help=_STATUS, short_help="Whether it is registered, and how it is.")(status)
    app.add_typer(group, name="service")
