"""`labref bench`: how fast this computer runs the networks, and the settings to choose."""

from typing import TYPE_CHECKING, Annotated

import typer

from labref.cli._shared import JsonOption, LabOption, print_json

if TYPE_CHECKING:
    from rich.table import Table

    from labref.doctor.speed import Way
    from labref.operations.condition import Speed

__all__ = ["add_to"]

_HELP = """Measure how fast this computer runs the lab's networks, and which settings are best here.

Each way is measured in turn: the CPU with some numbers of threads, the GPU where there is one, the bundle's trunks, and
normal and low priority, and for the best of these smaller and larger batches. Beside each, programs on all processors
say how much of their work they keep meanwhile, as the analyser's own software would. The best way is the one with most
cells a second of those that leave them three quarters (--leave). With --write its settings are written into labref.toml,
where comments and all else stay; an agent takes them when it is started again. Stop the agent before, and do nothing
else on the computer: both are measured too.

It takes about ten seconds for each way.

\b
Examples:
  labref bench --lab C:/labref/lab
  labref bench --write
  labref bench --seconds 5 --json             steadier figures, one object for each way

With --json, one object for each way.

@condition.Speed
"""


def bench(
    lab: LabOption = None,
    seconds: Annotated[
        float, typer.Option("--seconds", min=0.1, max=600.0, help="Seconds for each of a way's four figures.")
    ] = 2.0,
    leave: Annotated[
        float, typer.Option("--leave", min=0.0, max=1.0, help="Share of their work that other programs are to keep.")
    ] = 0.75,
    write: Annotated[bool, typer.Option("--write", help="Write the best settings into labref.toml.")] = False,
    json: JsonOption = False,
) -> None:
    from rich.console import Console

    from labref.config import set_values
    from labref.doctor import speed
    from labref.errors import LabError
    from labref.lab import Lab
    from labref.web.client import AgentClient

    found = Lab.find(lab)
    console = Console(stderr=True)
    if AgentClient.find(found) is not None:
        console.print("The agent runs, and is measured with all else: stop it for figures that hold.", soft_wrap=True)
    bundle = speed.bundle_in_use(found)
    with console.status("") as line:

        def measure(wanted: "list[Way]") -> "list[Speed]":
            found = []
            for number, way in enumerate(wanted, start=1):
                batches = "" if way.batch_size is None else f", {way.batch_size} crops at once"
                line.update(
                    f"{number} of {len(wanted)}: {way.device}, {way.threads} threads, {way.priority} priority{batches}"
                )
                found.append(speed.measure(bundle, way, seconds))
            return found

        measured = measure(speed.ways(bundle))
        chosen = speed.best(measured, leave)
        if chosen is None:
            raise LabError(f"the networks cannot be run on this computer: {measured[0].problem}")
        others = measure(speed.other_batches(chosen))
        usual, chosen = chosen, speed.of_best_batch(chosen, others, leave)
    measured = [one.model_copy(update={"best": one is chosen}) for one in (*measured, *others)]
    if json:
        for one in measured:
            print_json(one.model_dump(mode="json"))
    else:
        Console().print(_table(measured))
        if chosen.left is not None and chosen.left < leave:
            typer.echo(f"No way leaves other programs {leave:.0%} of their work; the best one leaves most.")
    if write:
        settings: dict[tuple[str, str], str | int] = {
            ("inference", "device"): chosen.device,
            ("inference", "threads"): chosen.threads,
            ("inference", "batch_size"): 0 if chosen is usual else chosen.batch_size or 0,
            ("agent", "priority"): chosen.priority,
        }
        if any(one.device == chosen.device and one.precision != chosen.precision for one in measured):
            settings["inference", "precision"] = chosen.precision  # else it is not for this bundle to say
        set_values(found.config_file, settings)
        if not json:
            said = ", ".join(f"[{section}] {key} = {value!r}" for (section, key), value in settings.items())
            typer.echo(f"Written into {found.config_file}: {said}. Start the agent again.")


def _table(measured: "list[Speed]") -> "Table":
    from rich.table import Table

    table = Table("device", "threads", "batch", "trunk", "priority", "cells/s", "one cell", "others keep", "", box=None)
    for one in measured:
        figures = (
            ("", "", "", one.problem or "")
            if one.cells_a_second is None or one.milliseconds_a_cell is None or one.left is None
            else (
                f"{one.cells_a_second:.1f}",
                f"{one.milliseconds_a_cell:.0f} ms",
                f"{one.left:.0%}",
                "← best" if one.best else "",
            )
        )
        table.add_row(
            one.device, str(one.threads), str(one.batch_size or ""), one.trunk or one.precision, one.priority, *figures
        )
    return table


def add_to(app: typer.Typer) -> None:
    app.command(help=_HELP, short_help="How fast this computer is, and the settings to choose.")(bench)
