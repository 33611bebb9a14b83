"""`python -m training svomen`: sets of triplets, drawn, shown to people, and scored on any space."""

from __future__ import annotations

import json
import shlex
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from labref.errors import LabrefError
from training.data.images import Split, list_images, load_attributes
from training.measure.latents import Latents, embed_latents, load_latents, on_map, save_latents
from training.measure.triplets import (
    MARGIN,
    TripletSet,
    attribute_triplets,
    draw_triplets,
    read_votes,
    score,
)
from training.progress import progress_bars
from training.report.sheet import write_sheet

__all__ = ["app", "embed"]

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="""SVOMEN, the thesis' measure of visual similarity: of two alternatives, is the one that resembles the reference nearer?

Without people, from experts' attributes:

1. `python -m training svomen attributes --tree held/queries --attributes pbc/attributes.csv --out set.json`
2. `python -m training svomen score set.json --bundle mine.labref --tree held/queries`

With people, as the thesis did it:

1. `python -m training svomen draw --bundle mine.labref --tree held/queries --out people.json`
2. `python -m training svomen sheet people.json --tree held/queries --out ask.html`: ten people open it and send their CSV
3. `python -m training svomen score people.json --votes anna.csv --votes oscar.csv … --bundle mine.labref --tree held/queries`

A set is named by its digest, so a figure names the set that gave it.""",
)
console = Console(stderr=True)

Tree = Annotated[Path | None, typer.Option(help="Folder of class folders that the images lie in.")]
LatentsFile = Annotated[
    Path | None,
    typer.Option("--latents", help="An .npz with `latents` and `paths`, as `python -m training embed` writes."),
]
BundleFile = Annotated[
    Path | None, typer.Option("--bundle", help="A .labref file or a bundle's folder, to embed --tree by.")
]


@contextmanager
def _said() -> Iterator[None]:
    try:
        yield
    except (LabrefError, ValueError, OSError) as error:
        console.print(f"error: {error}", style="red", highlight=False, markup=False)
        raise typer.Exit(1) from None


def _latents(file: Path | None, bundle: Path | None, tree: Path | None, paths: list[str] | None) -> Latents:
    if (file is None) == (bundle is None) or (bundle is not None and tree is None):
        raise typer.BadParameter("give --latents FILE, or --bundle FILE with --tree FOLDER")
    if file is not None:
        return load_latents(file)
    from labref.bundles.bundle import Bundle, install
    from labref.bundles.inference import Embedder

    assert bundle is not None and tree is not None
    with tempfile.TemporaryDirectory(prefix="labref-svomen-") as scratch, progress_bars(console) as progress:
        opened = Bundle.open(bundle) if bundle.is_dir() else install(bundle, Path(scratch))
        total = len(set(paths)) if paths is not None else len(list_images(tree))
        task = progress.add_task("embedding", total=total, info="")
        with Embedder.open(opened) as embedder:
            return embed_latents(embedder, tree, paths, lambda done: progress.update(task, advance=done))


@app.command()
def draw(
    out: Annotated[Path, typer.Option(help="The set to write, JSON.")],
    latents: LatentsFile = None,
    bundle: BundleFile = None,
    tree: Tree = None,
    per_class: Annotated[int, typer.Option(min=1, help="Reference images of each class; the thesis took 100.")] = 100,
    seed: Annotated[int, typer.Option(help="Seed of the draw.")] = 1,
) -> None:
    """Draw triplets for people as the thesis did: one of the eight nearest, against another of them, one of the class,
    or any."""
    with _said():
        drawn = draw_triplets(_latents(latents, bundle, tree, None), per_class=per_class, seed=seed)
        drawn.save(out)
    print(f"{out}: {len(drawn.triplets)} triplets, set {drawn.digest[:12]}")


@app.command()
def attributes(
    attributes: Annotated[Path, typer.Option(help="CSV of expert attributes with a column `path`, as WBCAtt's.")],
    out: Annotated[Path, typer.Option(help="The set to write, JSON.")],
    tree: Tree = None,
    split: Annotated[Path | None, typer.Option(help="A run's split.csv instead of --tree: its held-out part.")] = None,
    per_draw: Annotated[int, typer.Option(min=1, help="Triplets of each kind of draw.")] = 1000,
    margin: Annotated[
        int, typer.Option(min=1, help="Attributes by which the right alternative must be ahead.")
    ] = MARGIN,
    seed: Annotated[int, typer.Option(help="Seed of the draw.")] = 1,
) -> None:
    """Draw the automatic set: the alternative that shares more expert attributes with the reference, by a margin, is
    right.

    A third of the triplets has both alternatives of the reference's class, so that the class alone does not decide.
    """
    if (tree is None) == (split is None):
        raise typer.BadParameter("give --tree FOLDER or --split FILE")
    with _said():
        items = list_images(tree) if tree else Split.from_csv(split.read_text(encoding="utf-8")).holdout  # type: ignore[union-attr]
        drawn = attribute_triplets(items, load_attributes(attributes), per_draw=per_draw, margin=margin, seed=seed)
        drawn.save(out)
    print(f"{out}: {len(drawn.triplets)} triplets of {drawn.how['images']} images, set {drawn.digest[:12]}")


@app.command()
def sheet(
    triplets: Annotated[Path, typer.Argument(help="A set that `draw` wrote.")],
    tree: Annotated[Path, typer.Option(help="Folder of class folders that the images lie in.")],
    out: Annotated[Path, typer.Option(help="The HTML page to write.")],
) -> None:
    """One HTML page that asks a person about every triplet, by the keys 1, 2 and 0, and gives their CSV back."""
    with _said(), progress_bars(console) as progress:
        drawn = TripletSet.load(triplets)
        task = progress.add_task("pictures", total=len(drawn.triplets), info="")
        _, pictures = write_sheet(drawn, tree, out, lambda done: progress.update(task, advance=done))
    print(f"{out}: {len(drawn.triplets)} triplets, {pictures} pictures, {out.stat().st_size / 1e6:.1f} MB")


@app.command("score")
def score_command(
    triplets: Annotated[Path, typer.Argument(help="A set that `draw` or `attributes` wrote.")],
    latents: LatentsFile = None,
    bundle: BundleFile = None,
    tree: Tree = None,
    som: Annotated[
        Path | None, typer.Option("--map", help="Score places on this trained map (.npz) instead of latents.")
    ] = None,
    votes: Annotated[
        list[Path] | None, typer.Option(help="CSV of choices (set,triplet,person,choice); repeatable.")
    ] = None,
    people: Annotated[int, typer.Option(min=1, help="People a triplet must have been shown to.")] = 10,
    agree: Annotated[int, typer.Option(min=1, help="Of --people, how many must agree.")] = 8,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object on standard output and nothing else there.")
    ] = False,
) -> None:
    """Score a space: the share of valid triplets whose right alternative is nearer, with its 95 % interval.

    JSON: `svomen` {`value`, `low`, `high`, `n` reference images, `triplets`}, `wilson`, `correct`, `valid`, `ties`,
    `by_draw`, `same_class` (both alternatives of the reference's class), `set` (kind, version, digest, how it was drawn
    and judged), `latents` {`source`, `digest`, `size`}, `command`.
    """
    with _said():
        drawn = TripletSet.load(triplets)
        names = [p for t in drawn.triplets for p in (t.reference, t.alternative_1, t.alternative_2)]
        space = _latents(latents, bundle, tree, names)
        if som is not None:
            from labref.som import load

            space = on_map(space, load(som))
        choices = read_votes(votes, drawn) if votes else None
        figures = score(drawn, space, votes=choices, people=people, agree=agree)
    figures["command"] = shlex.join(["python", "-m", "training", *sys.argv[1:]])
    if as_json:
        print(json.dumps(figures, indent=1, ensure_ascii=False))
        return
    table = Table("triplets", "n", "SVOMEN %", "95 %", title=f"set {drawn.digest[:12]}, {space.source}")
    _row(table, "all", figures["svomen"])
    for name, estimate in figures["by_draw"].items():
        _row(table, name, estimate)
    _row(table, "both of the reference's class", figures["same_class"])
    Console().print(table)


def _row(table: Table, name: str, estimate: dict[str, Any]) -> None:
    low, value, high = (f"{100 * estimate[key]:.1f}" for key in ("low", "value", "high"))
    table.add_row(name, str(estimate["triplets"]), value, f"{low} to {high}")


def embed(
    bundle: Annotated[Path, typer.Option(help="A .labref file or a bundle's folder.")],
    tree: Annotated[Path, typer.Option(help="Folder of class folders.")],
    out: Annotated[Path, typer.Option(help="The .npz to write, with `latents` and `paths`.")],
) -> None:
    """Embed every image of a tree by a bundle, as a lab would, into one `.npz` of `latents` and `paths`."""
    with _said():
        found = _latents(None, bundle, tree, None)
        save_latents(found, out)
    print(f"{out}: {len(found.paths)} latents of {found.values.shape[1]} numbers, {found.digest[:12]}")
