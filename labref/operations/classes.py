"""The classes of the lab's cells, as pages, keys and other systems call them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Set
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

__all__ = ["ABBREVIATIONS", "CellClass", "known_names", "style_of"]


class CellClass(Answer):
    """A class of cells that the lab knows."""

    label: str = Field(description="Its name, as labels have it.")
    full_name: str | None = Field(
        description="What it stands for, where the label is an abbreviation that labref knows, such as `ig`; else null."
    )
    code: str = Field(description="A short name, two to four letters.")
    key: str | None = Field(description="The key that gives a cell this class on the pages; null where all are taken.")
    style: str = Field(description="Name of its style on the pages: the same for the same label.")
    cells: int = Field(description="How many stored cells carry it.")
    icsh: str | None = Field(
        description="Its name in the recommendations of the ICSH for reporting blood cells (2015), where they have one; "
        "null too for a class that the lab made."
    )
    loinc: str | None = Field(
        description="LOINC of its share of a hundred leukocytes in blood, for reports to other systems; null where there "
        "is none."
    )
    kind: Kind = Field(description="How a differential counts it: `leukocyte`; `erythroblast` and `other`, apart.")


class _Known(NamedTuple):
    """code, key : as in `CellClass`.  icsh, loinc : likewise, None where there is none."""

    code: str
    key: str
    icsh: str | None = None
    loinc: str | None = None


_KNOWN: Final[Mapping[str, _Known]] = {
    "neutrophil": _Known("NEU", "n", "Neutrophil", "26511-6"),
    "segmented neutrophil": _Known("SNE", "s", "Segmented neutrophil", "26505-8"),
    "band neutrophil": _Known("BNE", "b", "Band neutrophil", "26508-2"),
    "eosinophil": _Known("EO", "e", "Eosinophil", "26450-7"),
    "basophil": _Known("BA", "a", "Basophil", "30180-4"),
    "lymphocyte": _Known("LY", "l", "Lymphocyte", "26478-8"),
    "lymphocyte variant": _Known("VLY", "v", "Reactive lymphocyte", "13046-8"),
    "variant lymphocyte": _Known("VLY", "v", "Reactive lymphocyte", "13046-8"),
    "monocyte": _Known("MO", "m", "Monocyte", "26485-3"),
    "promonocyte": _Known("PMO", "o", "Promonocyte", "30466-7"),
    "promyelocyte": _Known("PMY", "p", "Promyelocyte", "26524-9"),
    "myelocyte": _Known("MY", "y", "Myelocyte", "26498-6"),
    "metamyelocyte": _Known("MMY", "t", "Metamyelocyte", "28541-1"),
    "immature granulocyte": _Known("IG", "i", None, "38518-7"),
    "ig": _Known("IG", "i", None, "38518-7"),
    "blast": _Known("BL", "x", "Blast cell", "26446-5"),
    "blast no lineage spec": _Known("BL", "x", "Blast cell", "26446-5"),
    "prolymphocyte": _Known("PLY", "r", "Prolymphocyte", "30465-9"),
    "plasma cell": _Known("PC", "c", "Plasma cell", "13047-6"),
    "erythroblast": _Known("ERB", "w", "Nucleated red blood cell", "19048-8"),
    "smudge cell": _Known("SMU", "k", "Smudge cell", "34992-8"),
    "platelet": _Known("PLT", "h", "Platelet"),
    "giant thrombocyte": _Known("GT", "j", "Giant platelet"),
    "thrombocyte aggregation": _Known("ERC", "f", "Platelet clump"),
    "artefact": _Known("ART", "d"),
    "arifact": _Known("ART", "d"),
    "unidentified": _Known("UI", "q"),
}
"""By `name_key`. LOINC: those of the panel 24318-8, manual differential of blood, 38518-7 and 19048-8.

On pages lower-case letters give classes, but for u (undo) and g (go); what else a page can do is on other keys."""
_SPARE: Final = "123456789z0"

_AMBIGUOUS: Final = {"ERC", "PMO"}
"""Codes that others use for another class: erythrocyte; promyelocyte, in the data set of LMU Munich."""
ABBREVIATIONS: Final[Mapping[str, str]] = {
    known.code.lower(): name for name, known in reversed([*_KNOWN.items()]) if known.code not in _AMBIGUOUS
}
"""What a label that is one of the codes above stands for, the first name that has it, by `name_key`; `ig` is a class of
the data set pbc."""


def known_names() -> Set[str]:
    """Names of the classes that labref knows whatever the lab calls its own, as `name_key` gives them."""
    return _KNOWN.keys()


def style_of(label: str) -> str:
    """Name of the style of a class on pages."""
    return f"c-{hashlib.sha256(label.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"


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
        row = {
            "label": label,
            "full_name": ABBREVIATIONS.get(name_key(label)),
            "code": code,
            "key": key,
            "style": style_of(label),
            "cells": counts.get(label, 0),
        }
        names = (None, None) if known is None else (known.icsh, known.loinc)
        rows.append(row | {"icsh": names[0], "loinc": names[1], "kind": str(kind_of(label))})
    yield from sorted(rows, key=lambda row: str(row["label"]))
