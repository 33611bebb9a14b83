"""`labref status`: how a lab and its agent are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import typer

from labref.cli._shared import JsonOption, LabOption, print_json
from labref.cli.bundle import change_lines

__all__ = ["add_to"]

_HELP = """Say how the lab and its agent are: what is stored, which bundle, which device, what is watched.

Works while the agent runs and while it does not.

\b
Examples:
  labref status
  labref status --lab C:/labref/lab
  labref status --json

\b
With --json, one object: lab (folder), version (of labref), bundle {name, version, digest}, without_latent (cells still
to be embedded by it), bundle_change (null, or the change under way, as `labref bundle activate --json` says), provider
and provider_line (where the networks run, and why), cells (stored), outcomes {outcome: files}, labels, label_sources,
slides and analysers {name: cells}, watch [{folder, how (unwatched while no agent runs; missing when it is not there)}], and
agent, null while none runs, else {pid, port, started_at, state, problem (null, or what keeps it from storing),
waiting (files still being written), in_flight, embedded, last_scan_at, last_scan_seconds}.
"""


def status(lab: LabOption = None, json: JsonOption = False) -> None:
    from labref.lab import Lab
    from labref.query import status as status_of

    found = status_of(Lab.find(lab))
    if json:
        print_json(found)
    else:
        typer.echo(_text(found))


def _text(found: Mapping[str, Any]) -> str:
    bundle, agent = found["bundle"], found["agent"]
    lines = [("lab", found["lab"]), ("labref", found["version"])]
    if agent is None:
        lines.append(("agent", "no agent runs; start one with `labref agent`"))
    else:
        state = f"{agent['state']}, process {agent['pid']}, port {agent['port']}, since {agent['started_at']}"
        lines.append(("agent", state))
        if agent["problem"]:
            lines.append(("", f"PROBLEM: {agent['problem']}"))
        busy = agent["waiting"] + agent["in_flight"]
        scan = f", last scan {agent['last_scan_at']}" if agent["last_scan_at"] else ""
        lines.append(("", f"{busy} files on their way, {agent['embedded']} cells embedded since its start{scan}"))
    lines += [("watches", f"{watch['folder']} ({watch['how']})") for watch in found["watch"]]
    lines.append(("bundle", f"{bundle['name']} {bundle['version']} ({bundle['digest'][:12]})"))
    if found["without_latent"]:
        lines.append(
            ("", f"{found['without_latent']} cells are still to be embedded by it, and no references until then")
        )
    if found["bundle_change"] is not None:
        lines += [("", line) for line in change_lines(found["bundle_change"])]
    lines.append(("device", found["provider_line"]))
    lines.append(("files", _counted(found["outcomes"])))
    lines.append(("cells", str(found["cells"])))
    if found["cells"]:
        lines.append(("classes", _counted(found["labels"])))
        lines.append(("given by", _counted(found["label_sources"])))
        lines.append(("from", f"{len(found['slides'])} slides, {len(found['analysers'])} named analysers"))
    return "\n".join(f"{name:<10}{value}" for name, value in lines)


def _counted(counts: Mapping[str, int]) -> str:
    largest = sorted(counts.items(), key=lambda item: -item[1])
    return ", ".join(f"{number} {name.replace('_', ' ')}" for name, number in largest)


def add_to(app: typer.Typer) -> None:
    app.command(help=_HELP, short_help="How the lab and its agent are.")(status)
