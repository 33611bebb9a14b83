"""What `labref doctor`, `labref config` and `labref service` say. They are no
operations: they have to work where a lab cannot be opened."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Literal

from pydantic import Field

from labref.operations.models import Answer

__all__ = ["ConfigChecked", "Finding", "ServiceState", "SettingShown", "Speed", "State"]


class State(StrEnum):
    """How bad a finding is: `fine`; `note`, which needs nothing; `warning`, which will be a problem; `problem`."""

    FINE = "fine"
    NOTE = "note"
    WARNING = "warning"
    PROBLEM = "problem"


class Finding(Answer):
    """What one check of `labref doctor` found."""

    check: str = Field(description="The check, by its name.")
    state: State = Field(description="How bad it is.")
    says: str = Field(description="What was found.")
    remedy: str | None = Field(default=None, description="What to do; null where there is nothing to do.")


class Speed(Answer):
    """How fast one way to run the networks is on this computer."""

    device: str = Field(description="Where: cpu or cuda.")
    threads: int = Field(description="CPU threads.")
    precision: str = Field(description="auto or full, as in labref.toml.")
    priority: str = Field(description="normal, or low: other programs go before.")
    batch_size: int | None = Field(default=None, description="Crops that went through the networks at once.")
    trunk: str | None = Field(default=None, description="The trunk that ran: full, float16 or int8.")
    cells_a_second: float | None = Field(default=None, description="In batches, as cells are taken in.")
    milliseconds_a_cell: float | None = Field(default=None, description="Of one cell alone, as somebody asks.")
    left: float | None = Field(
        default=None, description="Share of their work that programs on all processors keep while cells are embedded."
    )
    problem: str | None = Field(default=None, description="Why it could not be measured; else null.")
    best: bool = Field(default=False, description="Whether it is the one to choose.")


class SettingShown(Answer):
    """One setting of a lab."""

    section: str = Field(description="Its section in labref.toml.")
    key: str = Field(description="Its name there.")
    value: Any = Field(description="The value in use.")
    default: Any = Field(description="The value where nobody sets it.")
    source: str = Field(description='"default", the path of the labref.toml, or the name of a variable.')
    text: str = Field(description="What it is.")


class ConfigChecked(Answer):
    """The settings of a lab can be used."""

    ok: bool = Field(description="True; where they cannot be used, stderr says why.")
    file: str = Field(description="The labref.toml.")
    changed: int = Field(description="Settings that are not the default.")


class ServiceState(Answer):
    """What the system knows of the agent's service."""

    kind: Literal["systemd", "winsw", "task"] | None = Field(
        description="How it is registered: as a systemd unit, a service by WinSW, or a task; null where it is not."
    )
    state: str = Field(description="Its state, in the system's words.")
    file: str | None = Field(description="The file that describes it; null where it is not known.")
