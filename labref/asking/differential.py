"""The differential of a smear: how many of a hundred leukocytes each class has.

Only leukocytes are counted (ICSH 2014, CLSI H20-A2): erythroblasts are given for a hundred leukocytes beside them;
smudge cells, platelets, artefacts and cells that nobody could name are counted apart. A class that labref does not
know counts as a leukocyte.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from labref.export.layout import name_key

__all__ = ["Differential", "Kind", "differential", "is_abstention", "kind_of"]


class Kind(StrEnum):
    """How a class counts in the differential."""

    LEUKOCYTE = "leukocyte"
    ERYTHROBLAST = "erythroblast"
    OTHER = "other"


_ERYTHROBLASTS: Final = frozenset(
    {"erythroblast", "normoblast", "nrbc", "erb", "nucleated red cell", "nucleated red blood cell", "megaloblast"}
)
_NO_OPINION: Final = frozenset(
    {
        *("unidentified", "ui", "young unidentified", "unknown", "not classed", "not classified", "unclassified"),
        *("unclassifiable", "not identified", "undetermined", "indeterminate"),
        *(
            "oidentifierad",
            "ej identifierad",
            "ej klassad",
            "okänd",
            "nicht identifiziert",
            "nicht klassifiziert",
            "unbekannt",
        ),
    }
)
_OTHERS: Final = frozenset(
    {
        *("smudge cell", "smear cell", "basket cell", "gumprecht shadow", "smu"),
        *("platelet", "thrombocyte", "plt", "giant thrombocyte", "giant platelet", "gt"),
        *("thrombocyte aggregation", "platelet clump", "platelet aggregation", "erc", "megakaryocyte"),
        *("arifact", "artifact", "artefact", "art", "debris", "stain deposit", "dirt", "no cell", "not a cell"),
        *("erythrocyte", "red cell", "red blood cell", "rbc", "parasite"),
        "unusable",
        *_NO_OPINION,
    }
)


def is_abstention(label: str) -> bool:
    """Whether a label says only that whoever gave it could not tell the class, as CellaVision's "Unidentified"."""
    return name_key(label) in _NO_OPINION


@dataclass(frozen=True)
class Differential:
    """What a smear has. leukocytes : how many were counted.  shares : of each class of leukocytes, 0 to 1; they sum to
    1.  erythroblasts : for a hundred leukocytes; None where none was counted."""

    leukocytes: int
    shares: dict[str, float]
    erythroblasts: float | None


def kind_of(label: str) -> Kind:
    """How the class of that name counts."""
    key = name_key(label)
    if key in _ERYTHROBLASTS:
        return Kind.ERYTHROBLAST
    return Kind.OTHER if key in _OTHERS else Kind.LEUKOCYTE


def differential(counts: Mapping[str, int]) -> Differential:
    """The differential of so many cells of each class."""
    counted = {label: count for label, count in counts.items() if kind_of(label) is Kind.LEUKOCYTE and count}
    leukocytes = sum(counted.values())
    erythroblasts = sum(count for label, count in counts.items() if kind_of(label) is Kind.ERYTHROBLAST)
    return Differential(
        leukocytes,
        {label: count / leukocytes for label, count in counted.items()},
        100 * erythroblasts / leukocytes if leukocytes else None,
    )
