"""`labref map`: the lab's self-organising map: trained, shown, asked."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from labref.cli._shared import JsonOption, LabOption, a_path, counted, map_named, perform, print_json, read_image, say
from labref.errors import LabrefError
from labref.printing import printable
from labref.times import local

if TYPE_CHECKING:
    from PIL.Image import Image

    from labref.lab import Lab

__all__ = ["add_to"]

_HELP = """The lab's map: every cell on a grid of nodes, cells that look alike close together (a self-organising map).

The agent trains it by itself, in the background, once there are 64 cells, and again as the store grows: from the map
before, so that cells stay where people remember them. What comes out worse is kept but not used. A new cell is placed
at once. When the bundle changes, the map is trained from the start: until then there is none. See [map] in labref.toml.

In a lab with several analysers, each that has 200 cells or more gets a map of its own as well: --analyser NAME asks that one,
and a cell's answer names its place there. [map] per_analyser = false leaves them out.

\b
Examples:
  labref map status                              is there a map, how good, is one being trained
  labref map show --out map.png                  a picture of it: classes over the U-matrix
  labref map show --class monocyte --out m.png   one class, what the network takes for another in red
  labref map suspects --grid suspects.png        suspect labels: they disagree with the cells about them
  labref map suspects --analyser "DM96 left"     those of one analyser, on the map of its own cells
  labref map unidentified                        a class for each cell whose label is no opinion
  labref query cell.jpg --by map                 references by the map

Works while the agent runs and while it does not.
"""
_TRAIN_HELP = """Train the map now, and put it in use unless it is as large as the one in use and worse.

While the agent runs it does the work, in the background; this command waits and shows how far it is (Ctrl-C ends the
waiting, not the training). By default training goes on from the map in use; --full starts anew. Worse means: on 2,000
of the lab's cells, always the same ones but for new cells, a quantisation error more than 2 % above that of the map in
use, or a topographic error more than 0.02 above. Such a map is kept; `labref map use NUMBER` puts it in use. Maps of
different sizes are not compared: fewer nodes lie farther from the cells, whatever the map is worth.

Where cells of several analysers are in the lab, the agent trains a map of its own as well for each with 200 or more, of its
cells alone: cells of two microscopes lie apart on the map of all cells, and each has a part of it only. --analyser trains
that map now, from 64 cells on.

\b
Examples:
  labref map train
  labref map train --full --rows 120 --cols 120
  labref map train --analyser "DM96 left"
  labref map train --trainer minisom          MiniSom's own training, 500 steps a node: slow, to compare with

With --json, the new version.

@map.MapVersion
"""
_STATUS_HELP = """Say whether there is a map, how good it is, whether all cells lie on it, and what is due.

\b
Examples:
  labref map status
  labref map status --json

With --json, one object.

@map.MapState
"""
_LIST_HELP = """List every version of the map, in the order they were trained: how good, and whether it was put in use.

\b
Examples:
  labref map list
  labref map list --json

With --json, one object a line.

@map.MapVersion
"""
_USE_HELP = """Put an earlier version of the map in use, or one that was worse. All cells are placed on it first.

The weights of the five newest versions are kept. The next training goes on from the map that is in use then.

\b
Examples:
  labref map use 3
  labref map use 3 --json

With --json, one object.

@map.MapVersion
"""
_SHOW_HELP = """Draw the map as a picture (PNG), after figures 43, 44, 58 and 59 to 77 of the thesis.

Each node bears the digit of the class that most of its cells have, over the U-matrix: light where neighbouring nodes
are far apart (a border between clusters), dark where they are near. --class draws one class alone; what the network
takes for another class is on red. --slide and --patient draw how these cells spread over the map; two of them stand
side by side. A patient is a folder of the export: every cell with that folder on its path. --analyser draws the map of
that one's own cells; where it has none, its cells on the map of all.

\b
Examples:
  labref map show --out map.png
  labref map show --what umatrix --out u.png
  labref map show --class eosinophil --out eosinophil.png
  labref map show --slide "A-1" --slide "A-2" --out two.png
  labref map show --patient 10234 --patient 10311 --out two.png
  labref map show --analyser "DM96 left" --out left.png
  labref map show --json                      what is where, without a picture (unless --out is given)

With --json, one object.

@map.MapPicture
"""
_NODE_HELP = """List the cells on one node of the map, nearest to the node first.

\b
Examples:
  labref map node 12 40
  labref map node 12 40 --grid node.png       their images
  labref map node 12 40 --json

With --json, one object a line.

@map.MapCellRow
"""
_SUSPECTS_HELP = """List suspect labels: cells whose label disagrees with the labels about them, most surprising first. Look at these again.

Only labels that a person or the analyser gave are doubted, and only those are believed, each for cells of its own
analyser. With --analyser they are judged on that one's own map, where it has one, else on the map of all cells. Two witnesses are heard: the cells about it on the map, each counted by its nearness, exp(-d²/2r²) with r two
nodes, and, of the 300 most surprising, its 30 nearest cells. The surprise is the logarithm of how many times more of
them are of another class than of the cell's own; it is less for a class of few cells, which lies among others whether
it is right or wrong. Labels that are no opinion are left out: see `labref map unidentified`. Correct one with `labref label`.

\b
Examples:
  labref map suspects
  labref map suspects --limit 24 --grid suspects.png
  labref map suspects --analyser "DM96 left"
  labref map suspects --json

With --json, one object a line.

@map.MapSuspect
"""
_UNIDENTIFIED_HELP = """List cells whose label is no opinion, such as "Unidentified", with the class that the cells about them suggest.

The clearest come first. Nothing is changed: give a class with `labref label`.

\b
Examples:
  labref map unidentified
  labref map unidentified --limit 24 --grid unidentified.png
  labref map unidentified --json

With --json, one object a line.

@map.MapUnidentified
"""
_CLASSIFY_HELP = """Say what class the neighbourhood on the map gives: to images, or, without any, how often it is a cell's own label.

Only cells of the same analyser are believed, where that is known.

\b
Examples:
  labref map classify cell.jpg            the class that most cells about its node have
  labref map classify                     of the labelled cells, itself left out: how many agree, class by class
  labref map classify --analyser "DM96 left"
  labref map classify --json

With --json, one object a line: of an image, or without images of a class.

@map.ImageOnMap @map.ClassOnMap
"""


class Trainer(StrEnum):
    """How a map is trained."""

    BATCH = "batch"
    MINISOM = "minisom"


class What(StrEnum):
    """What a picture of the whole map shows."""

    BOTH = "both"
    DIGITS = "digits"
    UMATRIX = "umatrix"


OutOption = Annotated[
    Path | None,
    typer.Option("--out", parser=a_path, metavar="OUT.png", help="Where the picture goes.", show_default=False),
]
GridOption = Annotated[
    Path | None,
    typer.Option("--grid", parser=a_path, metavar="OUT.png", help="Also draw the cells.", show_default=False),
]

AnalyserOption = Annotated[
    str | None, typer.Option("--analyser", metavar="NAME", help="Only cells of this analyser.", show_default=False)
]

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


@app.command(help=_TRAIN_HELP, short_help="Train the map now.")
def train(
    lab: LabOption = None,
    rows: Annotated[
        int | None, typer.Option("--rows", min=1, max=1000, help="Rows of nodes.", show_default=False)
    ] = None,
    cols: Annotated[
        int | None, typer.Option("--cols", min=1, max=1000, help="Columns of nodes.", show_default=False)
    ] = None,
    sigma: Annotated[
        float | None, typer.Option("--sigma", min=1, help="Radius to start with, nodes.", show_default=False)
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Of what is random.", show_default=False)] = None,
    trainer: Annotated[Trainer, typer.Option("--trainer", help="batch, or MiniSom's own.")] = Trainer.BATCH,
    full: Annotated[bool, typer.Option("--full", help="Start anew, not from the map in use.")] = False,
    analyser: Annotated[
        str | None,
        typer.Option("--analyser", metavar="NAME", help="A map of this one's cells alone.", show_default=False),
    ] = None,
    json: JsonOption = False,
) -> None:
    from labref.lab import Lab

    parameters = {"rows": rows, "columns": cols, "sigma": sigma, "seed": seed, "trainer": trainer.value, "full": full}
    parameters |= _on_map_of(analyser)
    _tell(perform(Lab.find(lab), "map.train", **parameters), json, _version)


@app.command(help=_STATUS_HELP, short_help="Is there a map, how good, what is due.")
def status(lab: LabOption = None, json: JsonOption = False) -> None:
    from labref.lab import Lab

    _tell(perform(Lab.find(lab), "map.status"), json, _status)


@app.command("list", help=_LIST_HELP, short_help="Every version of the map.")
def list_(lab: LabOption = None, json: JsonOption = False) -> None:
    from labref.lab import Lab

    _tell(perform(Lab.find(lab), "map.list"), json, _version)


@app.command(help=_USE_HELP, short_help="Put another version in use.")
def use(
    number: Annotated[int, typer.Argument(metavar="NUMBER", min=1, show_default=False)],
    lab: LabOption = None,
    json: JsonOption = False,
) -> None:
    from labref.lab import Lab

    _tell(perform(Lab.find(lab), "map.use", number=number), json, _version)


@app.command(help=_SHOW_HELP, short_help="Draw the map.")
def show(
    lab: LabOption = None,
    out: OutOption = None,
    what: Annotated[What, typer.Option("--what", help="The digits, the U-matrix, or both.")] = What.BOTH,
    label: Annotated[
        str | None, typer.Option("--class", metavar="NAME", help="Only this class.", show_default=False)
    ] = None,
    slide: Annotated[
        list[str] | None,
        typer.Option("--slide", metavar="NAME", help="How a slide spreads: its name or key.", show_default=False),
    ] = None,
    patient: Annotated[
        list[str] | None, typer.Option("--patient", metavar="NAME", help="How a patient spreads.", show_default=False)
    ] = None,
    analyser: AnalyserOption = None,
    json: JsonOption = False,
) -> None:
    from labref.lab import Lab

    if out is None and not json:
        raise typer.BadParameter("say where the picture goes: --out map.png")
    if label is not None and (slide or patient):
        raise typer.BadParameter("--class stands alone; leave out --slide and --patient")
    if len(slide or []) + len(patient or []) > 2:
        raise typer.BadParameter("at most two slides or patients stand side by side")
    where = Lab.find(lab)
    if out is not None:
        where.refuse_output(out)
    first, *parts = perform(where, "map.cells", patients=patient or [], **_on_map_of(analyser))
    cells = {name: [value for part in parts for value in part[name]] for name in (parts[0] if parts else {})}
    if analyser is not None:
        kept = [at for at, name in enumerate(cells.get("analyser", [])) if name == analyser]
        cells = {name: [values[at] for at in kept] for name, values in cells.items()}
    if out is not None:
        _save(_picture(first, cells, what, label, slide or [], patient or [], analyser), out, "--out")
    if json:
        print_json(_located(first, cells, out))
    else:
        number, own = first["map"]["number"], first["map"]["analyser"]
        whose = (
            ""
            if analyser is None
            else f" of {analyser}"
            if own is not None
            else f" of all cells, as {analyser} has none of its own"
        )
        say(f"{out}: map {number}{whose}, {counted(len(cells.get('node', [])), 'cell')}")


@app.command(help=_NODE_HELP, short_help="The cells on one node.")
def node(
    row: Annotated[int, typer.Argument(metavar="ROW", min=0, show_default=False)],
    column: Annotated[int, typer.Argument(metavar="COL", min=0, show_default=False)],
    lab: LabOption = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most this many.")] = 100,
    analyser: Annotated[
        str | None,
        typer.Option("--analyser", metavar="NAME", help="On the map of this one's own cells.", show_default=False),
    ] = None,
    grid: GridOption = None,
    json: JsonOption = False,
) -> None:
    from labref.lab import Lab

    where = Lab.find(lab)
    if grid is not None:
        where.refuse_output(grid)
    rows = list(perform(where, "map.node", row=row, column=column, limit=limit, **_on_map_of(analyser)))
    _tell(rows, json, _cell, otherwise=f"no cell lies on node {row} {column}; `labref map show` says where some do")
    if grid is not None:
        subtitle = "nearest to the node first; the number is the quantisation error"
        lines = [(f"{r['quantization_error']:.3g}", f"network: {r['predicted']}") for r in rows]
        _sheet(where, f"Node {row} {column}", subtitle, rows, lines, grid)


@app.command(help=_SUSPECTS_HELP, short_help="Suspect labels: they disagree with the cells about them.")
def suspects(
    lab: LabOption = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most this many.")] = 50,
    analyser: AnalyserOption = None,
    grid: GridOption = None,
    json: JsonOption = False,
) -> None:
    _list(
        "map.suspects",
        _suspect,
        "Suspect labels",
        "most surprising first: the label it carries in bold, and what most cells about it have",
        lambda row: (
            f"about it: {row['neighbourhood']} {row['share']:.0%}",
            f"network: {row['predicted']}",
            row["cell_id"],
        ),
        "no label is suspect: none disagrees with the cells about it",
        lab,
        limit,
        analyser,
        grid,
        json,
    )


@app.command(help=_UNIDENTIFIED_HELP, short_help="A class for cells whose label is no opinion.")
def unidentified(
    lab: LabOption = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most this many.")] = 50,
    analyser: AnalyserOption = None,
    grid: GridOption = None,
    json: JsonOption = False,
) -> None:
    _list(
        "map.unidentified",
        _unidentified,
        "Cells whose label is no opinion",
        "the clearest first: the label it carries in bold, and what most cells about it have",
        lambda row: (f"{row['suggested']} {row['share']:.0%}", f"network: {row['predicted']}", row["cell_id"]),
        "no cell on the map has a label that is no opinion",
        lab,
        limit,
        analyser,
        grid,
        json,
    )


def _list(
    operation: str,
    line: Callable[[Mapping[str, Any]], str],
    title: str,
    subtitle: str,
    below: Callable[[Mapping[str, Any]], tuple[str, ...]],
    otherwise: str,
    lab: Path | None,
    limit: int,
    analyser: str | None,
    grid: Path | None,
    json: bool,
) -> None:
    """Print the cells that an operation lists, and draw them where that is wanted. below : lines under a picture."""
    from labref.lab import Lab

    where = Lab.find(lab)
    if grid is not None:
        where.refuse_output(grid)
    rows = list(perform(where, operation, limit=limit, **_only(analyser)))
    _tell(rows, json, line, otherwise=otherwise)
    if grid is not None:
        _sheet(where, title, subtitle, rows, [below(row) for row in rows], grid)


def _on_map_of(analyser: str | None) -> dict[str, str]:
    return {} if analyser is None else {"analyser": analyser}


def _only(analyser: str | None) -> dict[str, list[str]]:
    """The parameter that asks for the cells of one analyser."""
    return {} if analyser is None else {"analysers": [analyser]}


@app.command(help=_CLASSIFY_HELP, short_help="The class that the neighbourhood gives.")
def classify(
    images: Annotated[
        list[Path] | None, typer.Argument(parser=a_path, metavar="[IMAGE]...", show_default=False)
    ] = None,
    lab: LabOption = None,
    analyser: AnalyserOption = None,
    json: JsonOption = False,
) -> None:
    from labref.lab import Lab

    where = Lab.find(lab)
    if images:
        _classify_images(where, images, analyser, json)
        return
    _tell(
        perform(where, "map.classify", **_only(analyser)),
        json,
        _class,
        otherwise="no cell has a label that a person or the analyser gave",
    )


def _classify_images(lab: "Lab", images: Sequence[Path], analyser: str | None, json: bool) -> None:
    from labref.web.desk import Desk

    failed = False
    with Desk.open(lab) as desk:
        for image in images:
            try:
                answer = desk.ask(read_image(lab, image), name=str(image), k=1, by="map", path=image, analyser=analyser)
            except LabrefError as error:
                say(f"error: {image}: {error}", err=True)
                failed = True
                continue
            place = answer["map"]
            if json:
                print_json({"image": answer["image"], "map": place})
            else:
                said = (
                    "no cell is near"
                    if place["label"] is None
                    else f"{place['label']} {place['share']:.1%} of {place['cells']} cells"
                )
                say(f"{answer['image']}: {said}, node {place['row']} {place['column']} of {map_named(place)}")
    if failed:
        raise typer.Exit(1)


# --- output ---


def _tell(rows: Iterable[Mapping[str, Any]], json: bool, line: Any, *, otherwise: str | None = None) -> None:
    """Print rows as JSON or, by `line`, for people."""
    told = False
    for row in rows:
        told = True
        if json:
            print_json(row)
        else:
            typer.echo(line(printable(row)))
    if not told and not json and otherwise is not None:
        say(otherwise)


def _version(row: Mapping[str, Any]) -> str:
    used = "in use" if row["in_use"] else "" if row["weights_kept"] else "weights gone"
    moved = "" if row["moved_far"] is None else f", {row['moved_far']:.1%} of cells moved more than 3 nodes"
    whose = "" if row["analyser"] is None else f"of {row['analyser']}  "
    return (
        f"map {row['number']}  {whose}{row['rows']}×{row['columns']}  {row['cells']:,} cells  QE {row['qe']:.4g}  TE {row['te']:.4f}  "
        f"{local(row['trained_at'])}  {row['seconds']:.1f} s  {used}\n    {row['said']}{moved}"
    )


def _status(row: Mapping[str, Any]) -> str:
    lines = []
    if row["map"] is not None:
        lines += [_version(row["map"]), f"{row['placed']:,} of {row['cells']:,} cells lie on it"]
    elif row["problem"]:
        lines.append(f"no map is in use: {row['problem']}")
    elif row["cells"] < row["fewest_cells"]:
        lines.append(f"no map yet: it is trained from {row['fewest_cells']} cells on, and there are {row['cells']}")
    else:
        lines.append("no map yet for the bundle in use")
    lines += [_version(one) for one in row["own"]]
    if row["own_to_come"]:
        lines.append(f"a map of its own is to come, one after another, for: {', '.join(row['own_to_come'])}")
    if row["training"] is not None:
        training = row["training"]
        lines.append(f"being trained: {training['text']} ({training['done']} of {training['total']})")
    elif row["due"] is not None:
        lines.append(f"due for training: {row['due']}; the agent does it, or `labref map train`")
    if row["last"] is not None and row["last"]["outcome"] == "failed":
        lines.append(f"the last training failed: {row['last']['message']}")
    if not row["config"]["enabled"]:
        lines.append("the agent does not train it ([map] enabled = false)")
    elif not row["config"]["per_analyser"]:
        lines.append("no analyser gets a map of its own ([map] per_analyser = false)")
    return "\n".join(lines)


def _cell(row: Mapping[str, Any]) -> str:
    slide = row["slide"] or ""
    return (
        f"{row['cell_id']}  {row['label']:<16} {row['label_source']:<9}  {row['quantization_error']:<7.3g} "
        f"network: {row['predicted']:<16} {slide}"
    ).rstrip()


def _suspect(row: Mapping[str, Any]) -> str:
    return (
        f"{row['cell_id']}  {row['label']:<16} about it {row['neighbourhood']} {row['share']:.0%}, network: {row['predicted']}; "
        f"node {row['row']} {row['column']} of map {row['map']}  surprise {row['surprise']:.2f}  {row['path']}"
    )


def _unidentified(row: Mapping[str, Any]) -> str:
    return (
        f"{row['cell_id']}  {row['label']:<16} about it {row['suggested']} {row['share']:.0%}, network: {row['predicted']}; "
        f"node {row['row']} {row['column']} of map {row['map']}  {row['path']}"
    )


def _class(row: Mapping[str, Any]) -> str:
    others = ", ".join(f"{label} {cells}" for label, cells in row["mistaken_for"].items())
    name = "all classes" if row["label"] is None else row["label"]
    return f"{name:<20} {row['cells']:>8,} cells  {row['agree']:>6.1%} agree  {others}".rstrip()


# --- pictures ---


def _picture(
    first: Mapping[str, Any],
    cells: Mapping[str, list[Any]],
    what: What,
    label: str | None,
    slides: Sequence[str],
    patients: Sequence[str],
    analyser: str | None,
) -> "Image":
    import numpy as np

    from labref.pictures import map as picture
    from labref.som import load, u_matrix

    version = first["map"]
    shown = picture.Shown(
        u=u_matrix(load(Path(first["weights"])).get_weights()),
        nodes=np.array(cells.get("node", []), np.int64),
        labels=np.array(cells.get("label", []), np.str_),
        predicted=np.array(cells.get("predicted", []), np.str_),
        title=_title(version, analyser) + (f": {label}" if label else ""),
        subtitle=(
            f"{version['rows']}×{version['columns']} nodes  ·  {len(cells.get('node', [])):,} cells  ·  quantisation error "
            f"{version['qe']:.3g}, topographic error {version['te']:.3f}  ·  trained {local(version['trained_at'], day=True)}  ·  bundle "
            f"{version['bundle'][:12]}"
        ),
    )
    if label is not None:
        if label not in shown.classes:
            known = ", ".join(shown.classes) or "none"
            raise LabrefError(f"no cell on the map is called {label!r}; classes are: {known}")
        return picture.draw_class(shown, label)
    parts = [(f"Slide {name}", _of_slide(cells, name)) for name in slides]
    parts += [(f"Patient {name}", _are(cells.get("patient", []), name)) for name in patients]
    if parts:
        for name, chosen in parts:
            if not chosen.any():
                raise LabrefError(f"{name}: no cell of it lies on the map; `labref status --json` lists the slides")
        return picture.draw_spread(shown, parts)
    return picture.draw_map(shown, digits=what is not What.UMATRIX, background=what is not What.DIGITS)


def _title(version: Mapping[str, Any], analyser: str | None) -> str:
    """What a picture of a map is called. analyser : whose cells alone are drawn."""
    if version["analyser"] is not None:
        return f"Map {version['number']}: of the cells of {version['analyser']}"
    return f"Map {version['number']} of all cells" + (f": those of {analyser}" if analyser else "")


def _of_slide(cells: Mapping[str, list[Any]], slide: str) -> Any:
    """Which cells are of the slide with this name or key. Raises `LabrefError` where several have the name."""
    names, keys = cells.get("slide", []), cells.get("slide_key", [])
    named = sorted({key for name, key in zip(names, keys, strict=True) if name == slide})
    if len(named) > 1:
        raise LabrefError(
            f"{len(named)} slides are called {slide}, in several watched folders: {', '.join(named)}. Give the key of the one "
            "that is meant; `labref slide list` shows where each lies."
        )
    return _are(keys, slide) if slide in keys else _are(names, slide)


def _are(values: Sequence[str | None], name: str) -> Any:
    import numpy as np

    return np.array([value == name for value in values], np.bool_)


def _located(first: Mapping[str, Any], cells: Mapping[str, list[Any]], out: Path | None) -> dict[str, Any]:
    from labref.som import load, u_matrix

    columns = first["map"]["columns"]
    nodes = cells.get("node", [])
    names = ("cell_id", "label", "label_source", "predicted", "slide", "slide_key", "analyser", "patient")
    located = {name: cells.get(name, []) for name in names}
    located |= {"row": [n // columns for n in nodes], "column": [n % columns for n in nodes]}
    u = u_matrix(load(Path(first["weights"])).get_weights()).round(5).tolist()
    return {"map": first["map"], "umatrix": u, "cells": located, "out": None if out is None else str(out)}


def _sheet(
    lab: "Lab",
    title: str,
    subtitle: str,
    rows: Sequence[Mapping[str, Any]],
    lines: Sequence[tuple[str, ...]],
    out: Path,
) -> None:
    from labref.pictures.sheet import Tile, draw_sheet

    tiles = []
    for row, said in zip(rows, lines, strict=True):
        kept = lab.kept_image(row["cell_id"])
        tiles.append(Tile(None if kept is None else lab.decoder.decode(kept), row["label"], said))
    _save(draw_sheet(title, subtitle, tiles), out, "--grid")


def _save(picture: "Image", out: Path, option: str) -> None:
    from labref.pictures.saving import save

    try:
        save(picture, out)
    except (OSError, ValueError) as error:
        raise LabrefError(
            f"the picture could not be written to {out}: {error}. Give {option} a file name that ends in .png, in a folder "
            "that exists and can be written to."
        ) from None


def add_to(parent: typer.Typer) -> None:
    parent.add_typer(app, name="map", help=_HELP, short_help="The lab's map: train, show, ask.")
