"""`labref query`: the stored cells that look most like an image."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from labref.asking.answer import MOST_REFERENCES, answer
from labref.asking.prediction import Because
from labref.asking.sharing import others_of
from labref.operations import operation
from labref.operations.models import Answer, StoredCell, Text
from labref.progress import Row
from labref.roles import Role
from labref.tasks.context import Context
from labref.words import LabelSource, Reason

__all__ = [
    "CellFound",
    "Distribution",
    "MapPlace",
    "Novelty",
    "Optics",
    "PictureQuality",
    "Prediction",
    "QueryAnswer",
    "Reference",
    "SharedFrom",
    "SharedReply",
    "ShownPrediction",
    "Timings",
]


class CellFound(Answer):
    """Where in its picture the cell was found. Pixels are of the picture as a person sees it."""

    found: bool = Field(description="Whether there is a cell near the middle; if not, the middle itself was compared.")
    row: float = Field(description="Row of the cell's centre, pixels; 0 is the centre of the uppermost row.")
    column: float = Field(description="Column of the cell's centre, pixels; 0 is the centre of the leftmost column.")
    moved: float = Field(description="How far that is from the picture's own middle, pixels.")
    others: int = Field(description="How many other cells are in the picture.")


class PictureQuality(Answer):
    """Whether a picture shows one stained cell. A stored cell whose picture is doubted is no reference until a person
    gives it a class or calls it a good one."""

    is_cell: bool = Field(description="Whether it can be read as one cell; a cell that the edge cuts off can.")
    reason: Reason | None = Field(description="What is wrong with the picture, in words; null where nothing is.")
    focus: float = Field(description="Fine detail over contrast; sharp cells have 0.3 to 2.5, by the microscope.")


class Prediction(Answer):
    """The class that the bundle's networks give."""

    label: str = Field(description="The most probable class.")
    probability: float = Field(description="Its probability, 0 to 1.")


class ShownPrediction(Prediction):
    """The class that the networks give, and whether a person is shown it."""

    shown: bool = Field(description="Whether it is shown to people; the references speak first.")
    because: Because | None = Field(
        description="Why it is not: nothing here resembles the cell; no class of this lab does, or the lab has none of "
        "that class; its optics are not those of the training; most cells like it are called otherwise."
    )
    reason: str | None = Field(description="That in words.")


class Reference(StoredCell):
    """A cell that resembles the image: a stored one, or one of the bundle's atlas, which stands in where the lab has
    too few cells of a class."""

    cell_id: str = Field(
        description="The cell: 16 hexadecimal characters; those of a cell of the atlas stand after `central-`."
    )
    label_source: LabelSource | Literal["central"] = Field(  # type: ignore[assignment]  # wider than a stored cell's
        description="Who gave the class; `central`: the central team."
    )
    distance: float = Field(description="Mean squared error between the latents of cell and image.")
    path: str = Field(description="Its file in the export folder; it can name a patient. Empty for a central cell.")
    duplicate_of: str | None = Field(description="The earlier cell that it repeats.")
    captures: int = Field(description="How many captures of this physical cell the lab has, this one among them.")
    origin: Literal["lab", "central", "shared"] = Field(
        description="Whose cell it is: the lab's own, the central team's, from another microscope, or another lab's."
    )
    lab: str | None = Field(
        description="The other lab whose cell it is, by the shared store; null for the lab's own and for central cells."
    )
    source: str | None = Field(description="The data set that a central cell is from; null for the lab's own.")
    licence: str | None = Field(description="The licence of a central cell; null for the lab's own.")
    may_be_same: bool = Field(
        description="Whether it may be a capture of the very cell that is asked about: laid over each other they agree, and "
        "nobody has decided."
    )


class Distribution(Answer):
    """The classes of the nearest hundred physical cells."""

    n: int = Field(description="How many cells these are.")
    weights: dict[str, float] = Field(
        description="Share of each class, weighted by distance, largest first; they add up to 1."
    )


class Novelty(Answer):
    """How unlike everything in the lab the image is."""

    score: float | None = Field(
        description="Mean distance of the nearest cells over the bundle's threshold; null in an empty store."
    )
    is_novel: bool = Field(
        description="Whether nothing here resembles it: `p` is at most 0.01, or, with fewer than 99 cells, the score is "
        "above 1 and no cell lies as far from the others."
    )
    p: float | None = Field(
        description="Share of the lab's own cells, each left out in turn, that lie as far from their nearest three; null "
        "with fewer than 20 cells."
    )
    class_p: float | None = Field(description="The same within the class that it fits best.")
    class_label: str | None = Field(description="That class.")
    no_class: bool = Field(
        description="Whether no class of this lab resembles it: `class_p` is at most 0.01, or the networks give it a class "
        "that they hardly give any cell of this lab, and it is far from these."
    )
    words: str | None = Field(description="What of this a person should know.")


class Optics(Answer):
    """Which optics the references are from."""

    analyser: str | None = Field(description="The analyser of the image; null where it is not known.")
    only: bool = Field(description="Whether only cells from that analyser were looked at.")
    how: Literal["asked", "stored", "folder", "recapture", "single", "optics", "unknown", "any"] = Field(
        description="How the analyser is known: the question named it, the image is stored, its file lies in a watched "
        "folder that has one, it is another picture of a stored cell, the lab has no other, its optics tell, it is not "
        "known, or the question wanted references from any."
    )
    cells: int = Field(description="How many cells there were to look at.")


class MapPlace(Answer):
    """Where the image lies on the lab's map, and what it would be by its neighbours there."""

    row: int = Field(description="Row of its node, from 0.")
    column: int = Field(description="Column of its node, from 0.")
    label: str | None = Field(
        description="The class that most cells about the node have, of the same analyser as the references; null where "
        "no cell is near."
    )
    share: float | None = Field(description="Share of that class among them, weighted by nearness.")
    cells: int = Field(description="How many physical cells they are.")
    map: int = Field(description="Number of the map's version.")
    analyser: str | None = Field(
        description="The analyser whose cells alone lie on that map; null where it is the map of all cells."
    )


class SharedReply(Answer):
    """What the shared store answered."""

    labs: list[str] = Field(description="The other labs whose cells are among the references.")
    problem: str | None = Field(
        description="Why there are none of other labs: it is out of reach, or too slow. Null where it answered."
    )
    have_cells: bool | None = Field(
        description="Whether the labs and optics that are meant have any cell in the space of this bundle. Null where it did "
        "not answer."
    )
    exact: bool | None = Field(
        description="Whether all cells that were meant were compared; false where an index chose, which can miss a near one. "
        "Null where it did not answer."
    )
    waited_ms: float = Field(description="How long the answer waited for it beyond the lab's own search, milliseconds.")


SharedFrom = Annotated[
    Text,
    Field(
        max_length=4096,
        description="Whose cells are references beside the lab's own: `own`: nobody's; `optics`: those of the same optics of "
        "every lab; `all`; or names of labs with commas between. Others need a shared store.",
    ),
]


class Timings(Answer):
    """What the answer took, milliseconds."""

    prepare: float = Field(description="Decoding the image and finding the cell.")
    embed: float = Field(description="The networks.")
    search: float = Field(description="Finding the references.")
    total: float = Field(description="All together.")


class QueryAnswer(Answer):
    """The stored cells that look most like an image, and what they say of it."""

    image: str = Field(description="The name that the question gave the image.")
    bundle: str = Field(description="Digest of the bundle that was asked.")
    cell: CellFound = Field(description="Where in the picture the cell was found.")
    quality: PictureQuality = Field(description="Whether the picture shows one stained cell.")
    predicted: Prediction = Field(description="The class that the networks give.")
    prediction: ShownPrediction = Field(description="The same, and whether it is shown to people, else why not.")
    probabilities: dict[str, float] = Field(description="Probability of each class of the bundle.")
    references: list[Reference] = Field(description="The references, nearest first.")
    contrast: list[Reference] = Field(
        description="The nearest cell of each plausible class that the references do not show, nearest first."
    )
    distribution: Distribution = Field(description="The classes of the nearest hundred cells.")
    novelty: Novelty = Field(description="How unlike everything in the lab the image is.")
    optics: Optics = Field(description="Which optics the references are from.")
    duplicate_of: str | None = Field(description="The stored cell that the image is or repeats.")
    map: MapPlace | None = Field(description="Its place on the lab's map; null while there is none.")
    shared: SharedReply | None = Field(
        description="What the shared store answered; null where no other lab's cells were wanted."
    )
    timings_ms: Timings = Field(description="What the answer took, milliseconds.")


@operation("query", QueryAnswer, single=True, takes_bytes=True, role=Role.VIEW)
def query(
    context: Context,
    data: bytes,
    *,
    name: Annotated[Text, Field(description="What the answer calls the image.")] = "",
    k: Annotated[int, Field(ge=1, le=MOST_REFERENCES, description="How many references.")] = 8,
    by: Annotated[
        Literal["latent", "map"],
        Field(
            description="How references are found: the nearest by their latents, or by their place on the lab's map."
        ),
    ] = "latent",
    analyser: Annotated[
        Text | None,
        Field(
            description="The analyser that the image came from, where it is known; references come from the same one."
        ),
    ] = None,
    any_optics: Annotated[bool, Field(description="Take references from every analyser of the lab.")] = False,
    path: Annotated[
        Text | None,
        Field(
            description="The image's file on the lab's computer, absolute: its watched folder tells the analyser. It is "
            "not read.",
            max_length=4096,
        ),
    ] = None,
    shared: SharedFrom = "own",
) -> Iterator[Row]:
    """Find the stored cells that look most like an image, and the classes of the nearest hundred. The body is the
    image's file.

    An image that is itself in the store is not its own reference, nor is a duplicate of it.
    """
    context.lab.decoder.warm()  # beside the networks, where neither is there yet
    yield answer(
        context.lab,
        context.store,
        context.embedder(),
        data,
        name=name,
        k=k,
        by=by,
        analyser=analyser or None,
        any_optics=any_optics,
        path=path or None,
        others=others_of(context.asking, shared, context.lab.config.shared.optics),
    )
