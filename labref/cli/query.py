"""`labref query`: the stored cells that look most like an image."""

import contextlib
import sys
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from labref.cli._shared import JsonOption, LabOption, a_path, map_named, print_json, read_image
from labref.errors import LabrefError, UnreadableImageError
from labref.printing import printable

if TYPE_CHECKING:
    from labref.lab import Lab
    from labref.pictures.grid import Shown
    from labref.web.desk import Desk

__all__ = ["add_to", "draw_grid"]

_HELP = """Find the stored cells that look most like an image, and the classes of the nearest hundred.

Works while the lab's agent runs (it is asked) and while it does not; the answer is the same. An image that is itself
in the store is not its own reference, nor is a duplicate of it.

\b
Examples:
  labref query cell.jpg
  labref query cell.jpg --grid cell.png            a picture: the query among its references, and the spread
  labref query cell.jpg --by map                   references by the lab's map, as the thesis picks them
  labref query *.jpg -k 16 --json > answers.jsonl  one JSON object a line

References come from the query's own analyser: the one that --analyser names, else the one the cell came from where it
is in the store, else that of the watched folder the file lies in, of the stored cell it repeats, the lab's only one, or the
one whose background, focus and colour it clearly has; where it is not known, from all, and the answer says so. A cell that a person
reviewed is shown rather than one that is about as near (its distance at most 5 % smaller) and was not; a clearly nearer
cell is never left out. A predicted label is marked with a question mark. A cell that was captured again (`labref duplicates`)
is shown once and counts once among the hundred: its nearest capture, or a more trusted one that is about as near.

A bundle may carry an atlas, cells of the central team's own. While the lab has few cells of a class that the image may be of,
they stand in among the references, each marked "central" with its source and licence. They are never counted as the lab's: not in
the spread, the novelty or the map, and --by map shows none. labref.toml, [atlas] enabled = false, turns them off.

Several labs can share their cells (`labref shared --help`): --shared all then takes references from every lab, --shared
optics from those with the same microscope, --shared "Lund, Malmö" from those two. Each names its lab. The lab's own cells come
first among those that are about equally near, and one picture takes one place. While the shared store is out of reach, the
answer is the lab's own, and says so. Spread, novelty and map are always of the lab's own cells.

An image is of the cell in its middle. Where the cell lies more than 25 pixels from there, the answer says so, and --grid
marks it with four corners, in references as well. Where no cell is near the middle, the middle itself is compared, and the
answer warns.

With --json, one object for each image. An image that cannot be used has none: stderr says why, the others are answered,
and the exit code is 1. --by map gives the cells on the same node of the map by quantisation error, then those on the nearest
nodes; their distances are in latent space all the same.

@query.QueryAnswer
"""


_TOLD = {
    "folder": ", by the watched folder",
    "recapture": ", by the stored cell that it repeats",
    "optics": ", by background, focus and colour",
}


class By(StrEnum):
    """How references are found."""

    LATENT = "latent"
    MAP = "map"


def query(
    images: Annotated[
        list[Path], typer.Argument(parser=a_path, metavar="IMAGE", help="Images of one cell each.", show_default=False)
    ],
    lab: LabOption = None,
    k: Annotated[int, typer.Option("-k", "--k", min=1, max=100, help="How many references.")] = 8,
    by: Annotated[
        By, typer.Option("--by", help="latent: nearest by their latents; map: by their place on the lab's map.")
    ] = By.LATENT,
    analyser: Annotated[
        str | None,
        typer.Option(
            "--analyser",
            metavar="NAME",
            help="The analyser that the images came from, as `labref status` names it. References come from the same one.",
            show_default=False,
        ),
    ] = None,
    any_optics: Annotated[
        bool,
        typer.Option("--any-optics", help="References from every analyser of the lab.", show_default=False),
    ] = False,
    shared: Annotated[
        str,
        typer.Option(
            "--shared",
            metavar="own|optics|all|LAB,...",
            help="Also references of other labs: of the same optics, of all, or of those named; needs a shared store.",
        ),
    ] = "own",
    json: JsonOption = False,
    grid: Annotated[
        Path | None,
        typer.Option(
            "--grid",
            parser=a_path,
            metavar="OUT.png",
            help="Also draw the answer as a picture; for several images OUT-1.png, OUT-2.png, ...",
            show_default=False,
        ),
    ] = None,
) -> None:
    from labref.lab import Lab
    from labref.web.desk import Desk

    failed = False
    where = Lab.find(lab)
    outs: list[Path | None] = [None] * len(images)
    if grid is not None:
        outs = [grid] if len(images) == 1 else [grid.with_stem(f"{grid.stem}-{n}") for n, _ in enumerate(images, 1)]
        for target in filter(None, outs):
            where.refuse_output(target)
            if any(_is_one_file(target, image) for image in images):
                raise LabrefError(
                    f"{target} is an image that is asked about, and would be lost. Give --grid another name."
                )
    with Desk.open(where) as desk:
        for image, out in zip(images, outs, strict=True):
            try:
                _answer(desk, image, k, by, analyser, any_optics, shared, json, out)
            except LabrefError as error:
                typer.echo(printable(f"error: {image}: {error}"), err=True)
                failed = True
    if failed:
        raise typer.Exit(1)


def _is_one_file(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except (OSError, ValueError):  # one of them is not there
        return False


def _answer(
    desk: "Desk",
    image: Path,
    k: int,
    by: By,
    analyser: str | None,
    any_optics: bool,
    shared: str,
    json: bool,
    grid: Path | None,
) -> None:
    data = read_image(desk.lab, image)
    answer = desk.ask(
        data,
        name=str(image),
        k=k,
        by=by.value,
        analyser=analyser,
        any_optics=any_optics,
        path=image,
        shared=shared,
    )
    if json:
        print_json(answer)
    else:
        typer.echo(_text(printable(answer), by))
    sys.stdout.flush()
    if grid is not None:
        draw_grid(desk.lab, answer, data, grid)


def draw_grid(lab: "Lab", answer: Mapping[str, Any], data: bytes, out: Path) -> None:
    """Draws an answer with the images that the lab keeps, to the picture file `out`.

    Raises `LabrefError` where the picture cannot be written.
    """
    from labref.cells.image import prepare_pixels
    from labref.pictures.grid import draw
    from labref.pictures.saving import save
    from labref.tasks.publishing import asking_of

    of_others = any(reference["origin"] == "shared" for reference in answer["references"])
    asking = asking_of(lab) if of_others else None

    def shown(reference: Mapping[str, Any]) -> "Shown":
        if reference["origin"] == "shared":
            kept = None if asking is None else asking.thumbnail(reference["lab"], reference["cell_id"])
        elif reference["origin"] == "central":
            kept = lab.central_image(answer["bundle"][:12], reference["cell_id"])
        else:
            kept = lab.kept_image(reference["cell_id"])
        try:
            image = None if kept is None else lab.decoder.decode(kept)
        except UnreadableImageError:
            if reference["origin"] != "shared":
                raise
            image = None  # what another lab sent costs this one no picture of its own
        return image, None if image is None else prepare_pixels(image).centre

    with contextlib.nullcontext() if asking is None else contextlib.closing(asking):
        references = [shown(reference) for reference in answer["references"]]
    picture = draw(
        answer,
        lab.decoder.decode(data),
        [image for image, _ in references],
        [centre for _, centre in references],
        [shown(cell) for cell in answer["contrast"]],
    )
    try:
        save(picture, out)
    except (OSError, ValueError) as error:
        raise LabrefError(
            f"the grid could not be written to {out}: {error}. Give --grid a file name that ends in .png, in a folder "
            "that exists and can be written to."
        ) from None


def _text(answer: Mapping[str, Any], by: By = By.LATENT) -> str:
    """An answer for people. by : how the references were asked for."""
    from labref.cells.centring import doubt, remark

    prediction, novelty = answer["prediction"], answer["novelty"]
    lines = [f"{answer['image']}"]
    for said in filter(None, (doubt(answer.get("quality")), remark(answer.get("cell")))):
        text = said.text[0].lower() + said.text[1:]
        lines.append(f"  WARNING: {text}" if said.kind == "warning" else f"  {text}")
    if answer["duplicate_of"]:
        lines.append(f"  already in the store: duplicate of {answer['duplicate_of']}")
    if novelty["is_novel"]:
        from labref.pictures.grid import how_far

        how = (
            "no cell is stored yet"
            if novelty["score"] is None
            else f"novelty {novelty['score']:.2f}, 1 is the limit"
            if novelty["p"] is None
            else how_far(novelty["p"])
        )
        lines.append(f"  WARNING: nothing in this lab resembles this cell ({how})")
    elif novelty["no_class"]:
        lines.append("  WARNING: no class of this lab resembles this cell")
    references = answer["references"]
    optics = answer["optics"]
    if not references and optics["only"]:
        lines.append(
            f"  no other cell came from {optics['analyser']}; --any-optics takes references from all analysers"
        )
    elif optics["only"] and optics["how"] != "single":
        told = _TOLD.get(optics["how"], "")
        lines.append(
            f"  references from {optics['analyser']} alone{told} ({optics['cells']} cells); --any-optics takes all"
        )
    elif optics["how"] == "folder":
        lines.append(f"  no cell came from {optics['analyser']} yet: references from all analysers")
    elif optics["how"] == "unknown" and len({r["analyser"] for r in references if r["origin"] == "lab"}) > 1:
        lines.append("  the microscope is not known: references mix those of several; --analyser NAME keeps to one")
    reply = answer.get("shared")
    if reply is not None and reply["problem"] is not None:
        lines.append(f"  none of other labs: {reply['problem']}")
    elif reply is not None:
        if not reply["have_cells"]:
            lines.append("  none of other labs: those that are meant have no such cells in the space of this bundle")
        elif not reply["labs"]:
            lines.append("  none of other labs: none of theirs is clearly nearer than this lab's own")
        if not reply["exact"]:
            lines.append("  of other labs an index chose, as they have very many cells: a near one can be missing")
    shown = [(f"{rank:3d}", r) for rank, r in enumerate(references, 1)]
    others = [(" or", r) for r in answer["contrast"]]
    width = max((len(_named(r)) for _, r in (*shown, *others)), default=0)
    central = sum(r["origin"] == "central" for r in references)
    if central:
        lines.append(
            f"  central: {central} of {len(references)} references, cells of other microscopes that came with the bundle, as this lab "
            "has few of their class"
        )
    if shown and by is By.MAP:
        lines.append(
            "  by map: first the cells on the same node, then those on the nodes about it, whatever their distance:"
        )
    lines += [_line(mark, r, width) for mark, r in shown]
    if others:
        lines.append("  other classes to compare:")
        lines += [_line(mark, r, width) for mark, r in others]
    place = answer["map"]
    if place is not None:
        about = (
            ""
            if place["label"] is None
            else f": {place['label']} {place['share']:.1%} of the {place['cells']} cells about it"
        )
        lines.append(f"  {map_named(place)}, node {place['row']} {place['column']}{about}")
    spread = answer["distribution"]
    if spread["n"]:
        shares = ", ".join(f"{label} {share:.1%}" for label, share in spread["weights"].items() if share >= 0.0005)
        lines.append(f"  nearest {spread['n']}, weighted: {shares}")
    by_network = f"{prediction['label']} {prediction['probability']:.1%}"
    lines.append(
        f"  predicted: {by_network}"
        if prediction["shown"]
        else f"  prediction withheld ({by_network}): {prediction['reason']}"
    )
    return "\n".join(lines)


def _named(reference: Mapping[str, Any]) -> str:
    return str(reference["label"]) + ("?" if reference["label_source"] == "predicted" else "")


def _line(mark: str, reference: Mapping[str, Any], width: int) -> str:
    """A reference on a line. mark : what stands before it.  width : of the column of classes."""
    parts = {"central": ("source", "licence"), "shared": ("lab", "analyser")}.get(
        reference["origin"], ("slide", "analyser")
    )
    where = ", ".join(reference[key] for key in parts if reference.get(key))
    source, distance = reference["label_source"], reference["distance"]
    line = f"  {mark}  {_named(reference):<{width}}  {distance:<9.4g} {source:<9}  {reference['cell_id']}  {where}".rstrip()
    return f"{line}  (may be the very cell)" if reference["may_be_same"] else line


def add_to(app: typer.Typer) -> None:
    app.command(help=_HELP, short_help="Find the stored cells most like an image.", no_args_is_help=True)(query)
