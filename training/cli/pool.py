"""The commands of a pool: `ingest` and `pool`; `training.cli.app` takes them in."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from labref.errors import LabrefError
from labref.printing import counted, printable
from training.data import ingest as pools
from training.progress import progress_bars

__all__ = ["ingest", "pool"]

console = Console(stderr=True)
_Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output and nothing else there.")]


def _say(error: Exception | str) -> None:
    console.print(f"error: {printable(str(error))}", style="red", highlight=False, markup=False, soft_wrap=True)


def ingest(
    packs: Annotated[list[Path], typer.Argument(help="Packs that labs wrote with `labref contribute`, in any order.")],
    into: Annotated[Path, typer.Option(help="The pool.")],
    as_json: _Json = False,
) -> None:
    """Take packs of labs into a pool: verified, merged, one picture of each cell.

    A pack is refused where no lab that the pool trusts signed it, where anything of it was changed, where it is older
    than what the lab gave since, or where its tables are not what a pack's are; then nothing of it is kept, and the
    others are taken in. Recaptures within a lab and across labs are found as a lab finds them: one of them is trained
    on, and none where their labels disagree.

    A command that was stopped goes on when it is given again. What is in the pool already is not taken in twice.

    JSON: `packs` [{`pack`, `lab`, `number`, `known`, `cells`, `removed`, `recaptures`, `error`}].
    """
    rows: list[dict[str, Any]] = []
    try:
        with progress_bars(console) as progress:

            def step(name: str, total: int) -> Callable[[int], None]:
                task = progress.add_task(name, total=total, info="")
                return lambda done: progress.update(task, advance=done)

            waiting = dict.fromkeys(packs)
            while waiting:
                later: dict[Path, str] = {}
                for pack in waiting:
                    row: dict[str, Any] = {"pack": str(pack), "error": None}
                    try:
                        done = pools.ingest(into, pack, step)
                    except pools.MissingPackError as error:
                        later[pack] = str(error)
                        continue
                    except (LabrefError, OSError) as error:
                        row["error"] = str(error)
                    else:
                        row |= vars(done) | {"error": None}
                    rows.append(row)
                if len(later) == len(waiting):
                    rows += [{"pack": str(pack), "error": why} for pack, why in later.items()]
                    break
                waiting = dict.fromkeys(later)
    except KeyboardInterrupt:
        console.print("stopped; the same command goes on")
        raise typer.Exit(130) from None
    for row in rows:
        if row["error"] is not None:
            _say(row["error"])
        elif not as_json:
            what = (
                "is in the pool already"
                if row["known"]
                else f"{counted(row['cells'], 'cell')}, {row['recaptures']} of them recaptures, {row['removed']} taken back"
            )
            print(f"{row['pack']}: number {row['number']} of the lab {row['lab']}: {what}")
    if as_json:
        print(json.dumps({"packs": rows}))
    if any(row["error"] is not None for row in rows):
        raise typer.Exit(1)


def pool(
    folder: Annotated[Path, typer.Argument(metavar="POOL", help="The pool; made with --trust where it is not there.")],
    trust: Annotated[
        list[Path] | None,
        typer.Option(help="Public key of a lab whose packs may come in; compare its id by telephone. Repeatable."),
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Also the key of a lab that was withdrawn.")] = False,
    withdraw: Annotated[
        str | None, typer.Option(metavar="LAB", help="Take a lab out with all that it gave; the id of its key.")
    ] = None,
    as_json: _Json = False,
) -> None:
    """List what a pool holds: each lab, its packs with their licence or consent, its domains, what is left out.

    With --trust a lab's packs may come in from now on. With --withdraw a lab is taken out again: its packs, pictures
    and cached crops are deleted, and none of its packs comes in any more. Networks that were trained on its cells stay:
    the settings of each run name the domains that it was trained on.

    JSON: `labs` [{`lab`, `name`, `state`, `newest`, `packs` [{`number`, `consent`, `cells`, `removed`, `dates`,
    `labref`}], `domains` {domain: cells}, `left_out` {reason: cells}}], `cells` (trained on).
    """
    try:
        for file in trust or ():
            key = pools.trust(folder, file, again=again)
            console.print(
                f"packs of the lab {key.title} may come in. Compare the id with the lab by another way than the file came by.",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )
        if withdraw is not None:
            gone = pools.withdraw(folder, withdraw.strip().lower())
            console.print(
                f"the lab {withdraw} is withdrawn: {counted(gone, 'pack')} {'is' if gone == 1 else 'are'} deleted, and nothing of it comes in any more",
                soft_wrap=True,
            )
        pools.refresh(folder)
        found = pools.labs(folder)
    except (LabrefError, OSError) as error:
        _say(error)
        raise typer.Exit(1) from None
    total = sum(sum(lab.domains.values()) for lab in found)
    if as_json:
        rows = [
            {
                "lab": lab.key.id,
                "name": lab.key.name,
                "state": lab.state,
                "newest": lab.newest or None,
                "packs": [
                    {name: getattr(pack, name) for name in ("number", "consent", "cells", "removed", "dates", "labref")}
                    for pack in lab.packs
                ],
                "domains": dict(lab.domains),
                "left_out": dict(lab.left_out),
            }
            for lab in found
        ]
        print(json.dumps({"labs": rows, "cells": total}))
        return
    for lab in found:
        print(f"{lab.key.title}: {lab.state}")
        for pack in lab.packs:
            print(f"  pack {pack.number}: {counted(pack.cells, 'cell')}, {pack.removed} taken back, {pack.consent}")
        for domain, cells in lab.domains.items():
            print(f"  domain {domain}: {counted(cells, 'cell')} to train on")
        for reason, cells in lab.left_out.items():
            print(f"  left out, {reason}: {counted(cells, 'cell')}")
    labs = sum(bool(lab.domains) for lab in found)
    print(f"{counted(total, 'cell')} of {counted(labs, 'lab')}")
