"""`labref demo`: a simulated analyser, a real agent, and what came of it."""

from pathlib import Path
from typing import Annotated

import typer

from labref.cli._shared import a_path

__all__ = ["add_to"]

_HELP = """Show labref at work: simulate an analyser, run a real agent on a new lab, ask for reference cells.

Draws blood cells of eight classes as two analysers would see them (a dozen slides), drops them into a folder in
CellaVision's layout, among them copies, a truncated file, a file that is no image and one that is written slowly,
while an agent takes them in; then asks for the references of cells the lab has never seen, draws the answers as
pictures, and says what became of every file. Its bundle carries an atlas, cells drawn as a third microscope shows them:
where the young lab has few cells of a class they stand in, marked "central". With --images there is none. Ends by itself
in about a minute, needs no network and no data, and touches nothing but its own folder.

\b
Examples:
  labref demo
  labref demo --open                              and look at the lab's pages in the browser
  labref demo --keep demo-lab                     in a folder of your choice
  labref demo --images pbc --cells 400            with real images, flat or in class folders
"""


def demo(
    images: Annotated[
        Path | None,
        typer.Option(
            "--images",
            parser=a_path,
            metavar="DIR",
            help="Use a sample of the real images in DIR (flat, or one folder a class) instead of drawn ones.",
            show_default=False,
        ),
    ] = None,
    keep: Annotated[
        Path | None,
        typer.Option(
            "--keep",
            parser=a_path,
            metavar="DIR",
            help="Where to put the demo's export folder, lab and pictures. Default: a new temporary folder.",
            show_default=False,
        ),
    ] = None,
    cells: Annotated[
        int,
        typer.Option("--cells", min=20, max=2000, help="How many cells the analyser exports, as far as time allows."),
    ] = 160,
    seed: Annotated[int, typer.Option("--seed", min=0, help="The same seed draws the same cells.")] = 1,
    open_: Annotated[
        bool,
        typer.Option("--open", help="Open the lab's pages in the browser, until Ctrl-C.", show_default=False),
    ] = False,
) -> None:
    from labref.demo.show import show

    if images is not None and not images.is_dir():
        raise typer.BadParameter(f"{images} is no folder", param_hint="--images")
    show(images=images, keep=keep, cells=cells, seed=seed, pages=open_)


def add_to(app: typer.Typer) -> None:
    app.command(help=_HELP, short_help="Simulate an analyser and see labref at work.")(demo)
