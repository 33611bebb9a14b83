"""Background, focus and colour of each analyser's cells: shown with their drift, and measured where cells were stored
without them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from labref.asking.drift import overview
from labref.cells.optics import measure
from labref.lab import Lab
from labref.operations import operation
from labref.operations.models import Answer, Progress
from labref.progress import Row
from labref.roles import Role
from labref.store import Store
from labref.tasks import filling
from labref.tasks.context import Context
from labref.tasks.jobs import Job

__all__ = [
    "JOB",
    "Measured",
    "Measures",
    "OpticsState",
    "OpticsWarning",
    "due",
]

JOB: Final = "optics"
"""Name of the agent's job that measures cells that were stored without measures."""


class Measures(Answer):
    """One number for each measure of a cell's optics; `labref.cells.optics` says how they are made."""

    background_red: float = Field(description="Background, red channel.")
    background_green: float = Field(description="Background, green channel.")
    background_blue: float = Field(description="Background, blue channel.")
    focus: float = Field(description="Focus.")
    density_red: float = Field(description="Optical density of the stain, red channel.")
    density_green: float = Field(description="Optical density of the stain, green channel.")
    density_blue: float = Field(description="Optical density of the stain, blue channel.")


class OpticsWarning(Answer):
    """A measure that is far off."""

    measure: str = Field(description="Which measure.")
    than: Literal["past", "training"] = Field(
        description="What it is far from: the lab's own past, or the cells that the bundle was trained on."
    )
    shift: float = Field(description="By how many robust standard deviations of single cells.")


class OpticsState(Answer):
    """The cells of one analyser: what they look like, and whether that changes."""

    analyser: str | None = Field(description="The analyser; null for the cells of one without a name.")
    cells: int = Field(description="Its cells.")
    today: int = Field(description="Those of them that were measured in the last 24 hours.")
    median: Measures | None = Field(
        description="Medians of its latest cells: background 0 to 255; null before any cell is measured."
    )
    drift: Measures | None = Field(
        description="How far today's cells are off those before, in robust standard deviations of single cells; null "
        "with too few cells to tell."
    )
    from_training: Measures | None = Field(
        description="Likewise, off the cells that the bundle was trained on; null where the bundle does not tell of them."
    )
    warnings: list[OpticsWarning] = Field(description="What is far off.")


class Measured(Answer):
    """The result of measuring."""

    measured: int = Field(description="Cells that were measured.")


@operation("optics.show", OpticsState, role=Role.VIEW)
def show(context: Context) -> Iterator[Row]:
    """Say what the cells of each analyser look like, and whether that has changed."""
    yield from overview(context.store, context.lab.bundle(context.store))


@operation("optics.measure", Progress, Measured)
def measure_all(context: Context) -> Iterator[Row]:
    """Measure, from their kept bytes, the optics of the cells that were stored without measures."""
    _, before = context.store.optics.counts()
    yield from _measure(context.lab, context.store)
    yield {"measured": context.store.optics.counts()[1] - before}


def due(context: Context) -> Job | None:
    """The agent's job where cells have no measures, as in a lab that an older labref filled; else None."""
    return filling.due(context, JOB, context.store.optics.counts, lambda: _measure(context.lab, context.store))


def _measure(lab: Lab, store: Store) -> Iterator[Row]:
    def made(data: bytes) -> NDArray[np.float32]:
        return measure(lab.decoder.prepare(data))

    optics = store.optics
    yield from filling.fill(lab, store, optics.missing(), made, optics.add, "cells whose optics are measured")
