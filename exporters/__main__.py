"""`python -m exporters`: ship a trained run as a bundle."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

app = typer.Typer(help="Ship a trained run as a bundle that labs run without TensorFlow.", no_args_is_help=True)


@app.callback()
def _commands() -> None:
    """Ship a trained run as a bundle that labs run without TensorFlow."""


@app.command()
def bundle(
    run: Annotated[Path, typer.Argument(help="Folder of a run that `python -m training train` made.")],
    out: Annotated[Path, typer.Option(help="The bundle file to write, as starter.labref.")],
    figures: Annotated[
        Path | None, typer.Option(help="JSON of `python -m training evaluate`, for the manifest and the model card.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="The run's images, where they lie elsewhere by now.")] = None,
    reduced: Annotated[
        bool, typer.Option(help="Also ship float16 and int8 trunks, each only if its references are the full one's.")
    ] = True,
    mantissa_bits: Annotated[
        int,
        typer.Option(
            min=8, max=23, help="Round the trunk's weights to so many bits of mantissa: 12 packs 28 % smaller."
        ),
    ] = 23,
    agreement_queries: Annotated[
        int, typer.Option(min=1, help="Held-out cells that reduced trunks are judged on.")
    ] = 500,
    agreement_references: Annotated[
        int, typer.Option(min=9, help="Cells trained on that they are compared among.")
    ] = 3000,
    atlas: Annotated[
        Path | None,
        typer.Option(
            help="Let the bundle carry cells of yours, for labs that have too few of a class: a folder of class folders, "
            "with a file atlas.toml that names each source and its licence."
        ),
    ] = None,
    per_class: Annotated[int, typer.Option(min=1, max=1000, help="Cells of each class that the atlas holds.")] = 60,
) -> None:
    """Convert trunk and encoder to ONNX, check them against Keras on held-out crops, add golden outputs, manifest and
    model card, and pack one file.

    Without --figures the card says that nothing was measured. The usual order:

    python -m exporters bundle runs/mine --out mine.labref

    python -m training evaluate --bundle mine.labref --references DIR --queries DIR --json > runs/mine/figures.json

    python -m exporters bundle runs/mine --out mine.labref --figures runs/mine/figures.json
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ["KERAS_BACKEND"] = "tensorflow"  # what tf2onnx reads, whichever backend trained the run
    console = Console(stderr=True)
    from exporters.bundles import ExportError, export_bundle
    from exporters.precision import PRECISIONS
    from labref.errors import LabrefError
    from training.progress import progress_bars
    from training.run import Run, RunError

    try:
        with progress_bars(console) as progress:
            shipped, parity = export_bundle(
                Run.open(run, data),
                out,
                progress,
                figures,
                precisions=PRECISIONS if reduced else (),
                agreement_cells=(agreement_queries, agreement_references),
                mantissa_bits=mantissa_bits,
                atlas=atlas,
                per_class=per_class,
            )
    except (ExportError, RunError, LabrefError, OSError) as error:
        console.print(f"error: {error}", style="red", highlight=False)
        raise typer.Exit(1) from None
    print(
        f"{out}: bundle {shipped.short} “{shipped.manifest.name}”, {out.stat().st_size / 1e6:.1f} MB; largest difference from Keras on "
        f"{parity.crops} held-out crops: probabilities {parity.probabilities:.2g}, latents {parity.latents:.2g}"
    )
    for trunk in shipped.manifest.trunks:
        stay = min(estimate["value"] for estimate in trunk.agreement.values())
        told = trunk.measured
        print(
            f"{trunk.precision} trunk {'shipped' if trunk.admitted else 'not shipped'}: {stay:.2f} of 8 references stay (at least "
            f"{told['limit']} must), {told['ms_per_cell_one_thread']:.1f} ms a cell on one core, the full one "
            f"{told['ms_per_cell_one_thread_full']:.1f}"
        )


@app.command(name="atlas")
def atlas_(
    bundle: Annotated[Path, typer.Argument(help="The bundle that shall carry the atlas.")],
    cells: Annotated[
        Path,
        typer.Option(
            help="Folder of class folders, with a file atlas.toml: a [[source]] with folder, name and licence for each data "
            "set, and [labels] where class folders have other names than the bundle's classes."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The bundle file to write; it may be the same.")],
    per_class: Annotated[int, typer.Option(min=1, max=1000, help="Cells of each class that the atlas holds.")] = 60,
) -> None:
    """Let a bundle carry cells of the central team's own, for labs that have too few of a class.

    Those of each class are chosen to cover it. What the bundle's run held out, copies, pictures that are doubted, and
    cells whose neighbours mostly carry another label are left out. The networks stay as they are.
    """
    console = Console(stderr=True)
    from exporters.bundles import ExportError, with_atlas
    from labref.errors import LabrefError
    from training.progress import progress_bars

    try:
        with progress_bars(console) as progress:
            made = with_atlas(bundle, cells, out, progress, per_class)
    except (ExportError, LabrefError, OSError, ValueError) as error:
        console.print(f"error: {error}", style="red", highlight=False)
        raise typer.Exit(1) from None
    held = made.manifest.atlas
    print(
        f"{out}: bundle {made.short} “{made.manifest.name}”, {out.stat().st_size / 1e6:.1f} MB, with an atlas of {held['cells']} cells: "
        + ", ".join(f"{label} {count}" for label, count in held["classes"].items())
    )


@app.command(name="figures")
def figures_(
    bundle: Annotated[Path, typer.Argument(help="The bundle that was measured.")],
    figures: Annotated[Path, typer.Option(help="JSON of `python -m training evaluate`.")],
    out: Annotated[Path, typer.Option(help="The bundle file to write; it may be the same.")],
) -> None:
    """Put measured figures into a bundle's manifest and on its model card, without exporting it again."""
    from exporters.bundles import ExportError, with_figures
    from labref.errors import LabrefError

    try:
        made = with_figures(bundle, figures, out)
    except (ExportError, LabrefError, OSError, ValueError) as error:
        Console(stderr=True).print(f"error: {error}", style="red", highlight=False)
        raise typer.Exit(1) from None
    print(f"{out}: bundle {made.short} “{made.manifest.name}”, with the figures of {figures}")


if __name__ == "__main__":
    app()
