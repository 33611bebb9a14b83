"""What the pages of figures consist of, and the templates that show it; each page needs nothing beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from jinja2 import Environment, PackageLoader, StrictUndefined

from training.report.charts import Chart

__all__ = ["TEMPLATES", "Block", "MadeBy", "Missing", "More", "Picture", "Section", "Table", "Text"]

TEMPLATES = Environment(
    loader=PackageLoader("training.report"),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=StrictUndefined,
)


@dataclass(frozen=True)
class Table:
    """rows : what each is called, and its cells. An estimate's interval goes below it, so that tables stay narrow."""

    kind: ClassVar[str] = "table"
    caption: str
    head: Sequence[Any]
    rows: Sequence[Sequence[Any]]


@dataclass(frozen=True)
class Picture:
    """data : the PNG in base 64.  alt : what it shows, for who cannot see it."""

    kind: ClassVar[str] = "picture"
    data: str
    alt: str
    caption: str


@dataclass(frozen=True)
class Text:
    """kind : "paragraph", "small", "heading" or "warning"."""

    text: str
    kind: str = "paragraph"


@dataclass(frozen=True)
class MadeBy:
    """command : what made the figures above.  split : digest of what they were measured on."""

    kind: ClassVar[str] = "made_by"
    command: str
    split: str


@dataclass(frozen=True)
class Missing:
    """command : what would make the figures that are not there.  rows : which, where it is not all of them."""

    kind: ClassVar[str] = "missing"
    command: str
    rows: Sequence[str] = ()


@dataclass(frozen=True)
class More:
    """What is shown to who asks for it. summary : what it is.  blocks : all of it."""

    kind: ClassVar[str] = "more"
    summary: str
    blocks: Sequence[Block]


Block = Table | Picture | Text | MadeBy | Missing | Chart | More
"""What a section consists of."""


@dataclass(frozen=True)
class Section:
    """anchor : its id within the page."""

    anchor: str
    title: str
    blocks: Sequence[Block]
