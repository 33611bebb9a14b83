"""A stored cell as a question: what `query` says of its bytes, and what the lab knows of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Literal

from pydantic import Field

from labref.asking.answer import MOST_REFERENCES, answer, answer_for_stored
from labref.asking.sharing import others_of
from labref.errors import LabrefError
from labref.operations import operation
from labref.operations import query as asked
from labref.operations.label import LabelChange, changes_of
from labref.operations.models import Answer, GivenLabel, StoredCell, Text
from labref.operations.naming import slide_keys, stored_cell, told_apart
from labref.progress import Row
from labref.roles import Role
from labref.store import Cell
from labref.store.memory.books import id_to_int
from labref.tasks.context import Context
from labref.times import utc
from labref.words import SlideId

__all__ = ["CellOfSlide", "CellReference", "CellShown", "OtherCapture", "ReferenceRecord"]


class CellOfSlide(StoredCell):
    """A stored cell, with the key of its slide."""

    slide_key: str | None = Field(description="What stands for its slide in addresses.")
    slide_folder: str | None = Field(
        description="The watched folder that its slide lies in, where several have the slide's name; else null."
    )


class CellReference(asked.Reference, CellOfSlide):
    """A cell that resembles this one."""


class OtherCapture(CellOfSlide):
    """Another picture of the same cell, or of what may be the same."""

    certain: bool = Field(description="False where nobody has decided yet whether it is the same cell.")


class ReferenceRecord(Answer):
    """What a person said of this cell as a reference, or of a reference of it."""

    cell_id: str = Field(description="The reference.")
    query: str | None = Field(description="The cell that it is no good reference of; null for any.")
    rejected: bool = Field(description="Whether it was called no good, or that was taken back.")
    who: str | None = Field(description="Who said so, where known.")
    at: str = Field(description="When, ISO 8601, UTC.")


class CellShown(CellOfSlide):
    """A stored cell, the cells that look most like it, and what they say of it."""

    stored_at: str = Field(description="When it was stored, ISO 8601, UTC.")
    path: str = Field(description="Its file in the export folder; it can name a patient.")
    width: int = Field(description="Width of its picture, pixels.")
    height: int = Field(description="Height of its picture, pixels.")
    bundle: str = Field(description="Digest of the bundle that was asked.")
    quality: asked.PictureQuality | None = Field(
        description="Whether its picture shows one stained cell; null where it was not judged."
    )
    is_doubted: bool = Field(
        description="Whether it is no reference because of its picture, as no person has decided on it."
    )
    predicted: asked.Prediction = Field(description="The class that the networks give.")
    prediction: asked.ShownPrediction = Field(description="The same, and whether it is shown to people, else why not.")
    probabilities: dict[str, float] = Field(description="Probability of each class of the bundle.")
    references: list[CellReference] = Field(description="The references, nearest first.")
    contrast: list[CellReference] = Field(
        description="The nearest cell of each plausible class that the references do not show, nearest first."
    )
    distribution: asked.Distribution = Field(description="The classes of the nearest hundred cells.")
    novelty: asked.Novelty = Field(description="How unlike everything else in the lab the cell is.")
    optics: asked.Optics = Field(description="Which optics the references are from.")
    map: asked.MapPlace | None = Field(description="Its place on the lab's map; null while there is none.")
    shared: asked.SharedReply | None = Field(
        description="What the shared store answered; null where no other lab's cells were wanted."
    )
    stored_as: GivenLabel = Field(description="The class that it was stored with.")
    changes: list[LabelChange] = Field(description="Each change of its class since, oldest first.")
    captures: list[OtherCapture] = Field(description="Other captures of the same physical cell.")
    judgements: list[ReferenceRecord] = Field(
        description="What people said of it as a reference, and of its references, oldest first."
    )


@operation("cell.show", CellShown, role=Role.VIEW)
def show(
    context: Context,
    *,
    cell: Annotated[
        Text,
        Field(description="The cell: its id, a beginning of it, or the path of one of its files.", max_length=4096),
    ],
    k: Annotated[int, Field(ge=1, le=MOST_REFERENCES, description="How many references.")] = 8,
    by: Annotated[
        Literal["latent", "map"],
        Field(
            description="How references are found: the nearest by their latents, or by their place on the lab's map."
        ),
    ] = "latent",
    any_optics: Annotated[bool, Field(description="Take references from every analyser of the lab.")] = False,
    shared: asked.SharedFrom = "own",
) -> Iterator[Row]:
    """Show a stored cell among the cells that look most like it, and what the lab knows of it.

    The answer is that of `query` for its bytes, made of what is stored.
    """
    found = stored_cell(context, cell)
    cell_id = found.cell_id
    embedder = context.embedder()
    others = others_of(context.asking, shared, context.lab.config.shared.optics)
    told = answer_for_stored(
        context.lab, context.store, embedder.bundle, found, k=k, by=by, any_optics=any_optics, others=others
    )
    if told is None:  # of another bundle: re-embedding is under way
        data = context.lab.kept_image(cell_id)
        if data is None:
            raise LabrefError(
                f"cell {cell_id} has no latent of the bundle in use, and its kept image is missing; restore it from a backup."
            )
        told = answer(
            context.lab,
            context.store,
            embedder,
            data,
            name=cell_id,
            k=k,
            by=by,
            any_optics=any_optics,
            others=others,
        )
    book = context.store.slides.book
    captures = _captures(context, cell_id)
    slides = {
        # of a cell of the central team's own there is none
        row["cell_id"]: None if row["slide"] is None else book.slide(id_to_int(row["cell_id"]))
        for row in (*told["references"], *told["contrast"])
    }
    apart = _apart(context, {found.slide_id, *slides.values(), *(one.slide_id for one, _ in captures)})
    keep = (
        "quality",
        "bundle",
        "predicted",
        "prediction",
        "probabilities",
        "distribution",
        "novelty",
        "optics",
        "map",
        "shared",
    )
    yield {
        **_of_slide(found, apart),
        "stored_at": utc(found.added_at, timespec="seconds"),
        "path": found.path,
        "width": found.width,
        "height": found.height,
        **{name: told[name] for name in keep},
        "is_doubted": cell_id in context.store.qualities.doubted(),
        **{name: [row | apart[slides[row["cell_id"]]] for row in told[name]] for name in ("references", "contrast")},
        **changes_of(context, found),
        "captures": [_of_slide(one, apart) | {"certain": certain} for one, certain in captures],
        "judgements": [
            {
                "cell_id": said.cell_id,
                "query": said.query,
                "rejected": said.rejected,
                "who": said.who,
                "at": utc(said.at, timespec="seconds"),
            }
            for said in context.store.rejections.history(cell_id)
        ],
    }


def _of_slide(cell: Cell, apart: Mapping[SlideId | None, Row]) -> Row:
    """A cell as `CellOfSlide`. apart : of `_apart`."""
    return {
        "cell_id": cell.cell_id,
        "label": cell.label,
        "label_source": str(cell.label_source),
        "slide": cell.slide,
        **apart[cell.slide_id],
        "analyser": cell.analyser,
        "captured_at": None if cell.captured_at is None else utc(cell.captured_at),
    }


def _apart(context: Context, slides: Iterable[SlideId | None]) -> dict[SlideId | None, Row]:
    """What tells each of these slides from others; of no slide, nothing."""
    there = [slide for slide in slides if slide is not None]
    keys, folders = slide_keys(context, there), told_apart(context, there)
    found: dict[SlideId | None, Row] = {None: {"slide_key": None, "slide_folder": None}}
    return found | {slide: {"slide_key": keys[slide], "slide_folder": folders[slide]} for slide in there}


def _captures(context: Context, cell_id: str) -> list[tuple[Cell, bool]]:
    """Other captures of a cell, and what may be one, oldest first; whether each certainly is."""
    store = context.store
    certain = [one for one in store.duplicate_group(cell_id) if one != cell_id]
    cells = store.cells([*certain, *store.may_be_same(cell_id)])
    return [
        (one, one.cell_id in certain) for one in sorted(cells.values(), key=lambda one: (one.added_at, one.cell_id))
    ]
