"""A hierarchy of cell classes: group of haematopoiesis (the thesis' appendix, figures 49 to 52), class, and fine class.

Names are those of the public data sets' folders and those of a CellaVision export, of any case.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["LEVELS", "CellClass", "Level", "at_level", "class_group", "class_id", "class_of", "common_name", "fine_id"]

Level = Literal["group", "class", "fine"]
LEVELS: tuple[Level, ...] = ("group", "class", "fine")
OTHER = "other"


@dataclass(frozen=True)
class CellClass:
    """A class of cells.

    code : short identifier, as in the file names of an export.  group : of haematopoiesis; "other" for anything else.
    names : folder names that mean this class, lower case.  of : code of the coarser class that contains this one, or
    None.
    """

    code: str
    group: str
    names: tuple[str, ...]
    of: str | None = None


_CLASSES = (
    CellClass("NE", "myelopoiesis", ("neutrophil",)),
    CellClass("SNE", "myelopoiesis", ("segmented neutrophils", "segmented_neutrophil", "segmented neutrophil"), "NE"),
    CellClass("BNE", "myelopoiesis", ("band neutrophils", "band_neutrophil", "band neutrophil"), "NE"),
    CellClass("EO", "myelopoiesis", ("eosinophils", "eosinophil")),
    CellClass("BA", "myelopoiesis", ("basophil", "basophils")),
    CellClass("IG", "myelopoiesis", ("ig", "immature granulocyte")),
    CellClass("PMY", "myelopoiesis", ("promyelocyte",), "IG"),
    CellClass("MY", "myelopoiesis", ("myelocyte",), "IG"),
    CellClass("MMY", "myelopoiesis", ("metamyelocyte",), "IG"),
    CellClass("LY", "lymphopoiesis", ("lymphocyte", "lymphocytes")),
    CellClass("VLY", "lymphopoiesis", ("lymphocyte, variant", "variant lymphocyte")),
    CellClass("PLY", "lymphopoiesis", ("prolymphocyte",)),
    CellClass("PC", "lymphopoiesis", ("plasma cells", "plasma cell")),
    CellClass("MO", "monopoiesis", ("monocyte", "monocytes")),
    CellClass("PMO", "monopoiesis", ("promonocyte",)),
    CellClass("ERB", "erythropoiesis", ("erythroblast", "erythroblasts")),
    # a blast of unknown lineage belongs to none of the four groups
    CellClass("BL", "blasts", ("blast, no lineage spec", "blast")),
    CellClass("PLT", "thrombopoiesis", ("platelet", "thrombocyte")),
    CellClass("GT", "thrombopoiesis", ("giant thrombocyte",)),
    CellClass("ERC", "thrombopoiesis", ("thrombocyte aggregation",)),
    CellClass("SMU", OTHER, ("smudge cells", "smudge cell")),
    CellClass("ART", OTHER, ("arifact", "artifact", "artefact")),  # the first is how an export spells it
    CellClass("UI", OTHER, ("unidentified",)),
    CellClass("YUI", OTHER, ("young unidentified",)),
)
_BY_NAME = {name: known for known in _CLASSES for name in known.names}
_BY_CODE = {known.code: known for known in _CLASSES}


def class_of(label: str) -> CellClass | None:
    """The class that a folder's name means, or None."""
    return _BY_NAME.get(label.strip().lower())


def common_name(label: str) -> str:
    """The class that a lab's label means, under one name for all labs; the label itself where it means none that is
    known, without what would part a path."""
    known = class_of(label)
    return label.strip().replace("/", " ").replace("\\", " ") if known is None else min(known.names, key=len)


def class_id(label: str) -> str:
    """Short identifier of a class; the class's own name where it has no identifier."""
    known = class_of(label)
    return known.code if known else label


def class_group(label: str) -> str:
    """Group of a class; "other" for an unknown class."""
    known = class_of(label)
    return known.group if known else OTHER


def fine_id(label: str, name: str) -> str | None:
    """The fine class of an image, by its folder and by the code before the first `_` of its name; None where the two do
    not tell it.

    ("neutrophil", "SNE_1.jpg") → "SNE"; ("lymphocyte", "LY_2.jpg") → "LY"; ("ig", "IG_3.jpg") → None: an immature
    granulocyte of unknown stage.
    """
    known = class_of(label)
    if known is None:
        return label
    if not any(other.of == known.code for other in _CLASSES):
        return known.code
    finer = _BY_CODE.get(name.split("_", 1)[0].upper())
    return finer.code if finer is not None and finer.of == known.code else None


def at_level(label: str, name: str, level: Level) -> str | None:
    """The class of an image at a level: its group, the name of its folder, or its fine class (None where unknown)."""
    if level == "group":
        return class_group(label)
    return label if level == "class" else fine_id(label, name)
