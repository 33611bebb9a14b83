"""`labref shared publish`: the shared store is told of everything that it does not know of this lab."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Annotated, Final

from pydantic import Field

from labref.errors import SharedError
from labref.operations import operation
from labref.operations.models import Answer, Progress
from labref.progress import Row, progress
from labref.tasks import publishing
from labref.tasks.context import Context

__all__ = ["LabAccess", "LabTakenOut", "PublishedNow", "SharedBundle", "SharedCheck", "SharedLab"]

_PATIENCE_SECONDS: Final = 30.0


class PublishedNow(Answer):
    """The shared store knows everything of this lab."""

    cells: int = Field(description="Cells that this lab has.")
    rebuilt: bool = Field(description="Whether all of them were published again.")


class SharedLab(Answer):
    """A lab in the shared store, or a reader of it."""

    name: str = Field(description="What the others see it called.")
    role: str = Field(description="Its role in PostgreSQL.")
    cells: int = Field(description="Its cells that are there.")
    published_at: str | None = Field(description="When it published last, ISO 8601, UTC; null where it has not yet.")
    reads_only: bool = Field(default=False, description="Whether it is no lab, but a reader, which has no cells.")


class LabAccess(Answer):
    """What a lab, or a reader, needs to get into the shared store."""

    name: str = Field(description="What the others see it called.")
    url: str = Field(description="The [shared] url of its labref.toml.")
    password: str = Field(description="Shown this once, and kept nowhere.")
    renewed: bool = Field(
        description="Whether the name was there already: its password of before lets nobody in any more."
    )


class LabTakenOut(Answer):
    """A lab, or a reader, was taken out of the shared store."""

    name: str = Field(description="What it was called.")
    cells: int = Field(description="Its cells that were there.")


class SharedBundle(Answer):
    """The cells of one bundle in the shared store."""

    bundle: str = Field(description="The bundle's digest.")
    name: str = Field(description="The bundle's name.")
    cells: int = Field(description="How many cells are in its space.")
    bytes: int = Field(description="Their size, without pictures and index.")
    index_bytes: int | None = Field(description="Size of the index for questions; null where there is none.")
    wants_index: bool = Field(
        description="Whether they are so many that questions want an index, and there is none: `labref shared index`."
    )


class SharedCheck(Answer):
    """Whether a shared store is whole."""

    version: int = Field(description="Of its schema.")
    newest: int = Field(description="The newest version of the schema that this labref knows.")
    bytes: int = Field(description="Size of the database.")
    labs: list[SharedLab] = Field(description="The labs that are in it.")
    bundles: list[SharedBundle] = Field(description="The bundles in whose space cells are.")
    faults: dict[str, int] = Field(description="What is wrong, and how often; empty where it is whole.")


@operation("shared.publish", PublishedNow, Progress)
def publish(
    context: Context,
    *,
    rebuild: Annotated[
        bool, Field(description="Publish every cell again, and take out what else is there of this lab.")
    ] = False,
) -> Iterator[Row]:
    """Tell the shared store of every cell, label and removal that it does not know yet. An agent does so by itself."""
    store = context.store
    if not context.lab.config.shared.url:
        raise SharedError(
            "this lab has no shared store. Its owner prints what to write into labref.toml: `labref shared lab add NAME`."
        )
    if rebuild:
        store.outbox.refill()
    if context.publisher is None:
        total = store.outbox.waiting().rows
        for told in publishing.publish(context.lab, store):
            yield progress(min(told.cells + told.gone, total), total, "cells published")
    else:
        yield from _wait(context.publisher)
    yield {"cells": store.counts().cells, "rebuilt": rebuild}


def _wait(publisher: publishing.Publisher) -> Iterator[Row]:
    """Until the agent has told everything; its failures count once they last."""
    total = waiting = publisher.waiting()[0]
    moved = time.monotonic()
    while True:
        rows = publisher.waiting()[0]
        if rows != waiting:
            waiting, moved = rows, time.monotonic()
        if not rows and publisher.problem is None:
            return
        if publisher.problem is not None and time.monotonic() - moved > _PATIENCE_SECONDS:
            raise SharedError(f"{publisher.problem} The agent tries again by itself.")
        yield progress(max(0, total - rows), total, "changes published")
        time.sleep(0.5)
