"""The command that compares bundles over labs: `labs`; `training.cli.app` takes it in."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from labref.files import replace_file
from labref.printing import printable
from training.report.received import LeftOut, gather

__all__ = ["labs"]

console = Console(stderr=True)


def labs(
    reports: Annotated[
        list[Path], typer.Argument(help="Reports that labs sent, or folders of such: a folder in it for each lab.")
    ],
    out: Annotated[Path | None, typer.Option(metavar="PAGE.html", help="The page to write.")] = None,
    names: Annotated[
        bool, typer.Option("--names", help="Call labs on the page as their folders, or files, are called, too.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="The figures as one JSON object on standard output and nothing else there.")
    ] = False,
) -> None:
    """Compare bundles over all labs: one HTML page from the numbers that labs sent, without an image leaving them.

    Each lab sends what `labref report --json --counts-only` prints. The page says where each bundle fails, worst first,
    by lab, class and optics; what changed from one bundle to the next in the same lab; drift and novelty. It stands
    alone, and holds no picture and no name. Figures of too few cells are grey.

    Reports with the same lab's id are of one lab, and so are those in one folder of a folder that is named here; any
    other file is a lab of its own. `labref key own` gives a lab an id. Of one bundle in a lab the newest report counts.
    A file that cannot be used is named with the reason, the others are shown, and the command exits with 1.

    JSON: `bundles` [{`letter`, `name`, `version`, `digest`, `labs`, `analysers`, `reviewed`, `asked`, `precision`,
    `precision_of_classes`, `novel`, `fails`, `too_few`}], `rows` [each analyser with each bundle: {`bundle`, `lab`,
    `named`, `optics`, `known_again`, `made_at`, `version`, `basis`, `cells`, `asked`, `precision`,
    `precision_of_classes`, `enough`, `classes` [{`label`, `own`, `cells`, `precision`, `enough`, `fails`, `instead`,
    `instead_share`}], `novel`, `no_class`, `no_cell`, `from_training`, `drift` {`measure`, `by`}}], `classes`, `optics`
    (over analysers), `changes` [{`before`, `after`, `analysers`, `classes` [{`before`, `after`, `difference`}], `mean`,
    `better`, `worse`, `p`}], `not_paired`, `files` [{`file`, `lab`}], `left_out` [{`file`, `why`, `instead`}], `notes`;
    every figure is {`value`, `low`, `high` (95 %), `n`}.
    """
    if out is None and not as_json:
        raise typer.BadParameter("say where the page goes: --out page.html, or ask for --json")
    try:
        gathered = gather(reports)
    except (ValueError, OSError) as error:
        _say(str(error))
        raise typer.Exit(1) from None
    for one in gathered.left_out:
        _say_left_out(one)
    if out is not None and out.exists() and not out.is_file():
        _say(f"{out} cannot be written: it is no file. Name one with --out.")
        raise typer.Exit(1)
    read = [one.file for one in gathered.taken] + [one.file for one in gathered.left_out]
    if out is not None and os.path.realpath(out) in map(os.path.realpath, read):
        _say(f"{out} is a report: the page would take its place. Name another file with --out.")
        raise typer.Exit(1)
    if not gathered.taken:
        _say("no report can be used: nothing is written")
        raise typer.Exit(1)
    from training.report.labs import compare
    from training.report.labs_page import as_page

    found = compare(gathered)
    if out is not None:
        try:
            replace_file(out, as_page(found, gathered, names=names))
        except OSError as error:
            _say(f"{out} cannot be written: {error.strerror or error}. Name a file in a folder that exists.")
            raise typer.Exit(1) from None
    files = [{"file": _written(one.file), "lab": one.lab} for one in gathered.taken]
    if as_json:
        left = [
            {"file": _written(one.file), "why": one.why, "instead": one.instead and _written(one.instead)}
            for one in gathered.left_out
        ]
        told: dict[str, Any] = asdict(found) | {"files": files, "left_out": left, "notes": list(gathered.notes)}
        print(json.dumps(told, ensure_ascii=False, allow_nan=False))
    else:
        for row in files:
            print(printable(f"{row['lab']}: {row['file']}"))
        for bundle in found.bundles:
            figure = bundle.precision_of_classes
            share = (
                "not known" if figure.value is None else f"{figure.value:.1%} ({figure.low:.1%} to {figure.high:.1%})"
            )
            print(
                f"{bundle.letter}, {bundle.name} {bundle.version}: precision over classes {share}; labs {bundle.labs}, classes that fail "
                f"{bundle.fails}"
            )
        print(printable(f"written to {out}"))
    if any(one.instead is None for one in gathered.left_out):
        raise typer.Exit(1)


def _written(file: Path) -> str:
    """A file's name in JSON, with the code of what is no text."""
    return os.fsencode(file).decode("utf-8", "backslashreplace")


def _say_left_out(one: LeftOut) -> None:
    if one.instead is None:
        _say(f"{one.file} {one.why}")
    else:
        console.print(
            printable(f"{one.file} does not count: it {one.why}, {one.instead}"),
            highlight=False,
            markup=False,
            soft_wrap=True,
        )


def _say(what: str) -> None:
    console.print(f"error: {printable(what)}", style="red", highlight=False, markup=False, soft_wrap=True)
