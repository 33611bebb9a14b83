"""The colour of each class, for pictures on paper and for pages on light and on dark ground.

The colours are chosen for people who see all colours and for those who do not: their least distance (OKLab) from each
other, in normal sight and in simulated protanopia and deuteranopia (Machado et al. 2009), is as large as a search could
make it. Between the eight classes of normal blood it is at least 0.12, and between any two of the listed at least 0.05;
0.02 is just noticeable. Each has a contrast of at least 3 : 1 to its ground. Beyond some ten classes colours alone tell
nobody apart what is seen for a moment, so a class is never shown by its colour alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Final, NamedTuple

__all__ = ["LISTED", "Colour", "colour_of"]


class Colour(NamedTuple):
    """light, dark : "#rrggbb" on light and on dark ground."""

    light: str
    dark: str


LISTED: Final[Mapping[str, Colour]] = {
    "neutrophil": Colour("#1e20a3", "#839ffc"),
    "lymphocyte": Colour("#043f0a", "#79ff9c"),
    "monocyte": Colour("#c27f05", "#ee9e10"),
    "eosinophil": Colour("#9a5505", "#b15901"),
    "basophil": Colour("#471ff5", "#7b50fc"),
    "erythroblast": Colour("#b76c84", "#c18f94"),
    "ig": Colour("#c06cda", "#9b5896"),
    "platelet": Colour("#215465", "#5fe6fc"),
    "segmented neutrophil": Colour("#2765a5", "#8cadde"),
    "band neutrophil": Colour("#104375", "#3986c3"),
    "variant lymphocyte": Colour("#45532e", "#95d7a2"),
    "promonocyte": Colour("#9b8c62", "#deeb12"),
    "promyelocyte": Colour("#a361fb", "#a57499"),
    "myelocyte": Colour("#b51f9e", "#cc3e6a"),
    "metamyelocyte": Colour("#662135", "#fc5858"),
    "blast": Colour("#2e3f52", "#dcccd3"),
    "prolymphocyte": Colour("#466f45", "#65e468"),
    "plasma cell": Colour("#0d9296", "#72c2b9"),
    "smudge cell": Colour("#7d7d53", "#ede3d6"),
    "giant thrombocyte": Colour("#0593bf", "#24a0cc"),
    "thrombocyte aggregation": Colour("#306355", "#5cadb5"),
    "artefact": Colour("#505c80", "#bda880"),
    "unidentified": Colour("#616a74", "#8f8f65"),
}
"""By name: small letters, one cell of the class."""
_ALSO: Final[Mapping[str, str]] = {
    "immature granulocyte": "ig",
    "lymphocyte variant": "variant lymphocyte",
    "blast, no lineage spec": "blast",
    "blast no lineage spec": "blast",
    "neutrophil segmented": "segmented neutrophil",
    "neutrophil band": "band neutrophil",
    "arifact": "artefact",
    "artifact": "artefact",
    "thrombocyte": "platelet",
}
_OTHERS: Final = (
    Colour("#2504d0", "#6863ce"),
    Colour("#f24eb0", "#c26e12"),
    Colour("#516bd1", "#847ffc"),
    Colour("#760a03", "#fbc031"),
    Colour("#be651a", "#9dbdff"),
    Colour("#1f4fcc", "#55776f"),
    *(LISTED[name] for name in ("plasma cell", "prolymphocyte", "promonocyte", "giant thrombocyte", "artefact")),
)
"""For a class that is not listed; several may share one."""


def colour_of(label: str) -> Colour:
    """The colour of a class. It is the same everywhere, whatever case the name is in, and every name has one."""
    name = " ".join(label.casefold().replace("_", " ").split())
    for known in (name, name.removesuffix("s")):
        if (found := LISTED.get(_ALSO.get(known, known))) is not None:
            return found
    return _OTHERS[hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()[0] % len(_OTHERS)]
