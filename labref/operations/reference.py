"""References that a person calls no good, and the record of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field

from labref.errors import LabrefError
from labref.operations import operation
from labref.operations.models import Answer, Text, Who
from labref.operations.naming import cell_named, person
from labref.progress import Row
from labref.roles import Role
from labref.tasks.context import Context

__all__ = ["ReferenceJudged"]


class ReferenceJudged(Answer):
    """What a person said of a reference."""

    cell_id: str = Field(description="The cell that was shown as a reference.")
    query: str | None = Field(description="The cell that was asked about; null where the judgement is for any.")
    rejected: bool = Field(description="Whether it is no good reference from now on.")
    changed: bool = Field(description="Whether that is new.")


_Cell = Annotated[Text, Field(description="The reference: its id, or a beginning of it.", max_length=4096)]
_Query = Annotated[
    Text | None,
    Field(
        description="The cell that it was a reference of: for this one it is no good. Null: for any; its picture is no good.",
        max_length=4096,
    ),
]


@operation("reference.reject", ReferenceJudged, role=Role.REVIEW)
def reject(context: Context, *, cell: _Cell, query: _Query = None, who: Who = None) -> Iterator[Row]:
    """Say that a stored cell is no good reference, for one cell or for any: it is not given as one from now on. It
    stays in the lab, with its label."""
    yield _judge(context, cell, query, who, rejected=True)


@operation("reference.undo", ReferenceJudged, role=Role.REVIEW)
def undo(context: Context, *, cell: _Cell, query: _Query = None, who: Who = None) -> Iterator[Row]:
    """Take back that a stored cell is no good reference, for that cell or for any. Both stay in its record.

    Of a cell whose picture is doubted this says that it is a good reference all the same."""
    yield _judge(context, cell, query, who, rejected=False)


def _judge(context: Context, cell: str, query: str | None, who: str | None, *, rejected: bool) -> Row:
    who = person(who)
    cell_id = cell_named(context, cell)
    of = None if query is None else cell_named(context, query)
    if of == cell_id:
        raise LabrefError(f"cell {cell_id} is never a reference of itself, so it cannot be a bad one")
    rejections = context.store.rejections
    if not rejected and of is None and cell_id in context.store.qualities.doubted():
        rejections.accept(cell_id, who)
        context.store.qualities.drop_cached()
        return {"cell_id": cell_id, "query": None, "rejected": False, "changed": True}
    changed = (rejections.reject if rejected else rejections.undo)(cell_id, of, who)
    context.store.qualities.drop_cached()
    return {"cell_id": cell_id, "query": of, "rejected": rejected, "changed": changed}
