"""What the requests and answers of all operations have in common.

Every model refuses a field that it does not know. Answers are not validated while a lab works: the tests hold each row
that an operation gives against its model, and the models are what the OpenAPI document shows.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from labref.words import LabelSource

__all__ = [
    "Answer",
    "BundleName",
    "BundleSignature",
    "Failure",
    "FilePath",
    "Folder",
    "GivenLabel",
    "JobEnded",
    "JobRunning",
    "Limit",
    "Problem",
    "Progress",
    "ProgressSaid",
    "Request",
    "Seen",
    "StoredCell",
    "Text",
    "Who",
]

Text = Annotated[str, Field(pattern=r"^[^\x00]*$")]
"""A text without the character NUL, which neither a path nor the store can hold."""
FilePath = Annotated[str, Field(pattern=r"^[^\x00]*$", min_length=1, max_length=4096)]
"""A path on the computer of the lab, absolute."""
Folder = Annotated[
    Text | None,
    Field(
        description="The asker's folder: a path that is not absolute is looked for below it and the watched folders."
    ),
]
"""Where a person is who names a file."""
Who = Annotated[
    Text | None,
    Field(
        description="Who says so, as they are to be named: at most 200 characters, each of which can be seen; see "
        "`labref.operations.naming.person`."
    ),
]
"""The name of a person."""
Seen = Annotated[
    Text | None,
    Field(description="The class that whoever says so saw: where the cell carries another by now, nothing is changed."),
]
"""What a person saw when they decided."""
Limit = Annotated[int, Field(ge=1, le=1_000_000_000)]
"""At most so many rows."""


class Request(BaseModel):
    """The parameters of an operation."""

    model_config = ConfigDict(extra="forbid")


class Answer(BaseModel):
    """A JSON object of an answer."""

    model_config = ConfigDict(extra="forbid", defer_build=True, allow_inf_nan=False)


class ProgressSaid(Answer):
    """How far an operation is."""

    done: int = Field(description="How much is done.")
    total: int = Field(description="The total; 0 where it is not known.")
    text: str = Field(description="What is being done.")
    waits: bool = Field(
        default=False,
        description="Whether nothing is done yet, as other work of the lab comes first; `text` says which.",
    )


class Progress(Answer):
    """A row that says how far an operation is. It can come at any time, and is no part of the result."""

    progress: ProgressSaid


class Problem(Answer):
    """What failed."""

    kind: str = Field(description="Name of the error: LabrefError, or the more special one of `labref.errors`.")
    message: str = Field(description="What failed, where, and what to do next.")


class Failure(Answer):
    """A request that failed. As the last row of a stream: the operation ended there."""

    error: Problem


class BundleName(Answer):
    """Which bundle."""

    name: str | None = Field(description="Its name; null where the store does not know the bundle.")
    version: str | None = Field(description="Its version; null where the store does not know the bundle.")
    digest: str = Field(description="SHA-256 of its manifest, 64 hexadecimal characters.")


class BundleSignature(Answer):
    """Why a bundle is in the lab: who signed it, or what else."""

    state: Literal["signed", "revoked", "unsigned", "before", "unknown"] = Field(
        description="`signed` by a key that the lab trusts, or trusted until another took over; `revoked`: by a key that was revoked here "
        "since; `unsigned`: somebody said that it may come in so; `before`: it came when labref knew no signatures; `unknown`: it lies in "
        "the lab's folder, and nothing says why."
    )
    key: str | None = Field(description="Id of the key that signed it, 16 hexadecimal characters; null where none did.")
    key_name: str | None = Field(description="Whose key that is, as the key says; null where none signed.")
    number: int | None = Field(
        description="Its number among the bundles of its name, as it was signed; null where nobody signed it."
    )


class GivenLabel(Answer):
    """A class, and who gave it."""

    label: str = Field(description="The class.")
    label_source: LabelSource = Field(description="Who gave it.")


class StoredCell(Answer):
    """A stored cell: which it is, what it is called, where it is from."""

    cell_id: str = Field(description="The cell: 16 hexadecimal characters.")
    label: str = Field(description="Its class.")
    label_source: LabelSource = Field(description="Who gave the class.")
    slide: str | None = Field(description="The slide it came from; it can name a patient.")
    analyser: str | None = Field(description="The analyser it came from.")
    captured_at: str | None = Field(description="When it was captured, ISO 8601, UTC.")


class JobRunning(Answer):
    """A background job at work."""

    name: str = Field(description="Which job.")
    done: int = Field(description="How much is done.")
    total: int = Field(description="The total; 0 where it is not known.")
    text: str = Field(description="What is being done.")
    started_at: str = Field(description="Since when, ISO 8601, UTC.")


class JobEnded(Answer):
    """How a background job ended last."""

    at: str = Field(description="When, ISO 8601, UTC.")
    outcome: Literal["done", "stopped", "failed"] = Field(description="How.")
    message: str | None = Field(description="Why it failed; else null.")
