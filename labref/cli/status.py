"""`labref status`: how a lab and its agent are."""

from collections.abc import Mapping
from typing import Any

import typer

from labref.cli._shared import JsonOption, LabOption, counted, print_json
from labref.cli.bundle import change_lines
from labref.cli.key import signature_line
from labref.errors import LabrefError
from labref.printing import printable
from labref.times import local

__all__ = ["add_to"]

_HELP = """Say how the lab and its agent are: what is stored, which bundle, which device, what is watched.

Works while the agent runs and while it does not. Exit code 1 where somebody has to see to something: a watched folder
that is not there, an agent that cannot store cells, background work that failed. stderr says what, and what to do.

\b
Examples:
  labref status
  labref status --lab C:/labref/lab
  labref status --json

With --json, one object.

@status.Status
"""

_REMEDIES = {
    **dict.fromkeys(
        ("background_red", "background_green", "background_blue"), "look at the lamp and the white balance"
    ),
    "focus": "look at the focus, the objective and the immersion oil",
    **dict.fromkeys(("density_red", "density_green", "density_blue"), "look at the stain, its age and its times"),
}


def status(lab: LabOption = None, json: JsonOption = False) -> None:
    from labref.lab import Lab
    from labref.web.desk import status as status_of

    found = status_of(Lab.find(lab))
    if json:
        print_json(found)
    else:
        typer.echo(_text(printable(found)))
    if found["attention"]:
        raise LabrefError(f"the lab needs attention: {'. '.join(found['attention'])}")


def _text(found: Mapping[str, Any]) -> str:
    from labref.export.scan import left_alone

    bundle, agent = found["bundle"], found["agent"]
    lines = [("lab", found["lab"]), ("labref", found["version"])]
    if agent is None:
        lines.append(("agent", "no agent runs; start one with `labref agent`"))
    else:
        state = f"{agent['state']}, process {agent['pid']}, port {agent['port']}, since {local(agent['started_at'])}"
        lines.append(("agent", state))
        if agent["problem"]:
            lines.append(("", f"PROBLEM: {agent['problem']}"))
        busy = agent["waiting"] + agent["in_flight"]
        scan = f", last scan {local(agent['last_scan_at'])}" if agent["last_scan_at"] else ""
        lines.append(("", f"{busy} files on their way, {agent['embedded']} cells embedded since its start{scan}"))
        lines += [("", line) for line in left_alone(agent["others"], agent["reserved"])]
        running = agent["jobs"]["running"]
        if running is not None:
            share = f", {running['done']} of {running['total']}" if running["total"] else ""
            lines.append(("", f"works on {running['name']}: {running['text']}{share}"))
        for name, ended in agent["jobs"]["ended"].items():
            if ended["outcome"] == "failed":
                lines.append(("", f"PROBLEM with {name} ({local(ended['at'])}): {ended['message']}"))
    lines += [("watches", f"{watch['folder']} ({watch['how']})") for watch in found["watch"]]
    lines.append(("bundle", f"{bundle['name']} {bundle['version']} ({bundle['digest'][:12]})"))
    lines.append(("", signature_line(found["signature"])))
    if found["without_latent"]:
        lines.append(
            ("", f"{found['without_latent']} cells are still to be embedded by it, and no references until then")
        )
    if found["bundle_change"] is not None:
        lines += [("", line) for line in change_lines(found["bundle_change"])]
    lines.append(("device", found["provider_line"]))
    if (disk := found["disk"]) is not None:
        left = (
            ""
            if disk["days_left"] is None
            else f", for {disk['days_left']:,.0f} days at {disk['cells_a_day']:,.0f} cells a day"
        )
        lines.append(("disk", f"{disk['free'] / 1e9:.1f} GB free of {disk['total'] / 1e9:.1f} GB{left}"))
    backup = found["backup"]
    lines.append(
        (
            "backup",
            "none yet" if backup is None else f"{local(backup['at'])}, {backup['cells']} cells, {backup['target']}",
        )
    )
    if (shared := found["shared"]) is not None:
        behind = (
            f", {counted(shared['waiting'], 'change')} to tell, since {local(shared['since'])}"
            if shared["waiting"]
            else ", nothing to tell"
        )
        lines.append(("shared", f"{shared['server']}{behind}"))
        if shared["problem"]:
            lines.append(("", f"not told now; it is tried again: {shared['problem']}"))
    lines.append(("files", _counted(found["outcomes"])))
    lines.append(("cells", str(found["cells"])))
    if trash := found["trash"]:
        first, last = local(trash["first_until"]), local(trash["last_until"])
        until = f"until {first}" if first == last else f"the first until {first}, the last until {last}"
        lines.append(("trash", f"{trash['cells']} removed cells can be brought back, {until} (`labref store trash`)"))
    if found["cells"]:
        lines.append(("classes", _counted(found["labels"])))
        lines.append(("given by", _counted(found["label_sources"])))
        lines.append(
            ("from", f"{counted(len(found['slides']), 'slide')}, {counted(len(found['analysers']), 'named analyser')}")
        )
        lines += [line for optics in found["optics"] for line in _optics(optics)]
    return "\n".join(f"{name:<10}{value}" for name, value in lines)


def _optics(optics: Mapping[str, Any]) -> list[tuple[str, str]]:
    """One optics: what it is like, and what it drifts from."""
    name = optics["analyser"] or "(analyser without a name)"
    median = optics["median"]
    if median is None:
        return [("optics", f"{name}: {optics['cells']} cells, not measured yet")]
    background, density = (
        "/".join(format(median[f"{what}_{channel}"], form) for channel in ("red", "green", "blue"))
        for what, form in (("background", ".0f"), ("density", ".2f"))
    )
    told = f"{name}: {optics['cells']} cells, {optics['today']} today; background {background}, focus {median['focus']:.2f}"
    lines = [("optics", f"{told}, colour (optical density) {density}")]
    for warning in optics["warnings"]:
        than = "the lab's own past" if warning["than"] == "past" else "the cells that the bundle was trained on"
        away = f"{abs(warning['shift']):.1f} robust standard deviations {'above' if warning['shift'] > 0 else 'below'}"
        lines.append(
            ("", f"WARNING: {warning['measure'].replace('_', ' ')} is {away} {than}; {_REMEDIES[warning['measure']]}")
        )
    return lines


def _counted(counts: Mapping[str, int]) -> str:
    largest = sorted(counts.items(), key=lambda item: -item[1])
    return ", ".join(f"{number} {name.replace('_', ' ')}" for name, number in largest)


def add_to(app: typer.Typer) -> None:
    app.command(help=_HELP, short_help="How the lab and its agent are.")(status)
