"""`labref agent`: watches the export folder, takes every cell in, and answers queries."""

from typing import Annotated

import typer

from labref.cli._shared import JsonOption, LabOption

__all__ = ["add_to"]

_HELP = """Watch the export folder, take every new cell in, and answer queries of this computer.

Runs until it is ended by Ctrl-C or SIGTERM: it then finishes the batch in hand, closes the store and exits 0. A file
is read only when it is complete and has stopped changing; the export folder is never written to. Every file found
ends in one outcome, which `labref ledger` shows. Killed at any moment, it goes on where it was when started again.
Only one agent can work on a lab.

\b
Examples:
  labref agent --lab C:/labref/lab                until it is ended
  labref agent --once                             one full pass over the folder, then exit
  labref agent --once --json                      the same, for a script

With --json, one object at the end; without --once, one comes first.

@lab.AgentReady @lab.AgentSummary

Settings are in the lab's labref.toml; a variable overrides one: LABREF_AGENT__PORT=8123.

\b
  [watch]      folders, polling, poll_seconds, stable_seconds, rescan_seconds, extensions, analyser, layout, labels, ...
  [agent]      port, batch_size, readers, priority, cpus, log_megabytes
  [inference]  device, threads, batch_size, precision
"""


def agent(
    lab: LabOption = None,
    once: Annotated[
        bool, typer.Option("--once", help="One full pass over the folder, then exit.", show_default=False)
    ] = False,
    json: JsonOption = False,
) -> None:
    from labref.agent import run
    from labref.lab import Lab

    run(Lab.find(lab), once=once, json=json)


def add_to(app: typer.Typer) -> None:
    app.command(help=_HELP, short_help="Watch the export folder and take every cell in.")(agent)
