"""The classes of the lab's cells, as pages, keys and other systems call them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

from pydantic import Field

from labref.asking.differential import Kind, kind_of
from labref.export.layout import name_key
from labref.operations import operation
from labref.operations.models import Answer
from labref.operations.naming import Classes
from labref.progress import Row
from labref.roles import Role
from labref.tasks.context import Context

__all__ = ["CellClass"]


class CellClass(Answer):
    """A class of cells that the lab knows."""

    label: str = Field(description="Its name, as labels have it.")
    code: str = Field(description="A short name, two to four letters.")
    key: str | None = Field(description="The key that gives a cell this class on the pages; null where all are taken.")
    style: str = Field(description="Name of its style on the pages: the same for the same label.")
    cells: int = Field(description="How many stored cells carry it.")
    kind: Kind = Field(description="How a differential counts it: `leukocyte`; `erythroblast` and `other`, apart.")


class _Known(NamedTuple):
    code: str
    key: str


_KNOWN: Final[Mapping[str, _Known]] = {
    "neutrophil": _Known("NEU", "n"),
    "segmented neutrophil": _Known("SNE", "s"),
    "band neutrophil": _Known("BNE", "b"),
    "eosinophil": _Known("EO", "e"),
    "basophil": _Known("BA", "a"),
    "lymphocyte": _Known("LY", "l"),
    "lymphocyte variant": _Known("VLY", "v"),
    "variant lymphocyte": _Known("VLY", "v"),
    "monocyte": _Known("MO", "m"),
    "promonocyte": _Known("PMO", "o"),
    "promyelocyte": _Known("PMY", "p"),
    "myelocyte": _Known("MY", "y"),
    "metamyelocyte": _Known("MMY", "t"),
    "immature granulocyte": _Known("IG", "i"),
    "ig": _Known("IG", "i"),
    "blast": _Known("BL", "x"),
    "blast no lineage spec": _Known("BL", "x"),
    "prolymphocyte": _Known("PLY", "r"),
    "plasma cell": _Known("PC", "c"),
    "erythroblast": _Known("ERB", "w"),
    "smudge cell": _Known("SMU", "k"),
    "platelet": _Known("PLT", "h"),
    "giant thrombocyte": _Known("GT", "j"),
    "thrombocyte aggregation": _Known("ERC", "f"),
    "artefact": _Known("ART", "d"),
    "arifact": _Known("ART", "d"),
    "unidentified": _Known("UI", "q"),
}
"""By `name_key`. On pages lower-case letters give classes, but for u (undo) and g (go); what else a page can do is on
other keys."""
_SPARE: Final = "123456789z0"


@operation("classes.list", CellClass, role=Role.VIEW)
def list_(context: Context) -> Iterator[Row]:
    """List the classes that cells of this lab can be given, with the key of each."""
    counts = context.store.label_counts()
    taken: set[str] = set()
    spare = iter(_SPARE)
    rows: list[Row] = []
    labels = Classes(context).all()
    for label in sorted(labels, key=lambda label: (name_key(label) not in _KNOWN, label)):
        known = _KNOWN.get(name_key(label))
        key = known.key if known is not None and known.key not in taken else next(spare, None)
        if key is not None:
            taken.add(key)
        code = known.code if known is not None else "".join(filter(str.isalnum, label))[:4].upper() or "?"
        style = f"c-{hashlib.sha256(label.encode()).hexdigest()[:8]}"
        row = {"label": label, "code": code, "key": key, "style": style, "cells": counts.get(label, 0)}
        rows.append(row | {"kind": str(kind_of(label))})
    yield from sorted(rows, key=lambda row: str(row["label"]))
