"""What `init`, `store restore` and `agent` print with --json. No agent is asked for it, so there is no operation
here."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from labref.operations.models import Answer, BundleName, BundleSignature

__all__ = ["AgentReady", "AgentSummary", "LabMade", "LabRestored", "RestoredFolder"]


class LabMade(Answer):
    """A lab that `labref init` made."""

    lab: str = Field(description="Its folder.")
    config: str = Field(description="Its labref.toml.")
    store: str = Field(description="The file of its store.")
    bundle: BundleName = Field(description="The bundle that was installed.")
    signature: BundleSignature = Field(description="Who signed it.")
    watch: list[str] = Field(description="The export folders that it watches.")


class RestoredFolder(Answer):
    """An export folder of a restored lab."""

    folder: str = Field(description="The folder.")
    there: bool = Field(description="Whether it is there, on this computer.")
    analyser: str | None = Field(description="Its own analyser, where [watch.analysers] names one; else null.")


class LabRestored(Answer):
    """A lab that `labref store restore` made."""

    lab: str = Field(description="Its folder.")
    cells: int = Field(description="Cells in it.")
    # a field called `schema` would hide a method of pydantic's
    schema_: int = Field(alias="schema", description="Version of the store's schema.")
    made_at: str = Field(description="When the backup was made, ISO 8601, UTC.")
    made_by: str = Field(description="Version of labref that made it.")
    watch: list[RestoredFolder] = Field(description="The export folders that it watches.")
    without_folder: dict[str, str] = Field(
        description="Analysers of single folders that no watched folder has now, by the folder that had them."
    )


class AgentReady(Answer):
    """The agent's first line, where it runs without --once."""

    event: Literal["ready"] = Field(description="ready: it answers from now on.")
    pid: int = Field(description="Its process.")
    port: int = Field(description="The port of 127.0.0.1 that it answers on.")
    provider_line: str = Field(description="Where the networks run, and why.")
    missing: list[str] = Field(description="Watched folders that are not there.")


class AgentSummary(Answer):
    """What an agent did, when it ends. Each file counts once, by its last outcome."""

    found: int = Field(description="Files with an image's name that it met.")
    stored: int = Field(description="New cells.")
    duplicate: int = Field(description="Cells that repeat a stored one.")
    possible_duplicate: int = Field(description="Cells that perhaps repeat a stored one; kept, for review.")
    rejected: int = Field(description="Files that are no usable image.")
    unchanged: int = Field(description="Files that were known already and have not changed.")
    embedded: int = Field(description="Cells that went through the networks.")
    seconds: float = Field(description="How long it took.")
    cells_per_second: float = Field(description="Cells embedded per second.")
    ignored: int = Field(description="Files that are no image by their name.")
    others: dict[str, int] = Field(description="How many of these, by the ending of their name.")
    reserved: int = Field(
        description="The system's own folders and files ([watch] system_names) and hidden folders, not looked at."
    )
    vanished: int = Field(description="Files deleted while they were being written.")
    unreachable: list[str] = Field(description="Folders that could not be read.")
    interrupted: bool = Field(description="Whether it was ended before the pass was whole.")
    without_outcome: int = Field(
        description="Files that a pass met and that came to no outcome, though it looked for them twice."
    )
