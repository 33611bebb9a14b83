"""Words that every part of labref speaks: outcomes, verdicts, what is wrong with a picture, who gave a label, names of
classes, fingerprints and landmarks. Imports nothing of labref."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "BITS",
    "MEASURES",
    "REMOVED",
    "SHIFTED",
    "STORED",
    "VERSION",
    "Fingerprint",
    "LabelSource",
    "Landmark",
    "Outcome",
    "Quality",
    "Reason",
    "SlideId",
    "Verdict",
    "cell_id_of",
    "hamming",
    "look_of",
    "mixes_scripts",
    "name_key",
    "within_64_bits",
]

VERSION: Final = 2
"""How fingerprints and landmarks are made; those of another version in a store are made anew from the kept bytes.

2: of the crop around the cell nearest the picture's middle, with all that stands about it, and landmarks
(`labref.cells.landmarks`).
"""


BITS: Final = 64
"""Bits of one hash."""
SHIFTED: Final = 5
"""Of the fingerprints of a picture, the first so many are its own and shifted ones; the others are those of the picture
turned and mirrored."""


REMOVED: Final = "removed by "
"""How the reason of each file begins whose cell was removed, by people or by retention."""


class Verdict(StrEnum):
    """What comparing two cells gave; the first two values are the ledger's words.

    NEIGHBOUR: two cells in overlapping pictures of one field, neither a duplicate of the other.
    """

    DUPLICATE = "duplicate"
    POSSIBLE = "possible_duplicate"
    NEIGHBOUR = "neighbour"
    DIFFERENT = "different"

    @property
    def is_one_cell(self) -> bool:
        """Whether the two are one cell, or may be."""
        return self in (Verdict.DUPLICATE, Verdict.POSSIBLE)


class SlideId(NamedTuple):
    """Which slide: two watched folders can each hold one of the same name.

    folder : the watched folder, as text; empty where that is not known.  name : of the slide in it.
    """

    folder: str
    name: str


class Fingerprint(NamedTuple):
    """Difference hashes of a crop, each 64 bit, unsigned: whether the grey value grows from left to right, and from top
    to bottom."""

    across: int
    down: int


def hamming(a: int, b: NDArray[np.uint64], shown: int = 2**BITS - 1) -> NDArray[np.uint8]:
    """Number of differing bits between one hash and each of b uint64[n], as uint8[n]. shown : the bits that count
    (1)."""
    differ = np.bitwise_xor(np.uint64(a), b)
    return np.bitwise_count(differ if shown == 2**BITS - 1 else np.bitwise_and(differ, np.uint64(shown), out=differ))


STORED: Final = 2
"""So many landmarks of a cell are stored: those nearest to its centre. One of them may be a spot that another picture
has not, on the slope of a darker nucleus or cut by the picture's edge."""


class Landmark(NamedTuple):
    """A dark spot of a picture.

    marks : fingerprints of the window around it, the first in place, the others shifted by a few pixels.  shown : which
    of their bits the picture shows (1); the others (0) depend on what lies beyond its edge.
    """

    marks: tuple[Fingerprint, ...]
    shown: Fingerprint


MEASURES: Final = (
    "background_red",
    "background_green",
    "background_blue",
    "focus",
    "density_red",
    "density_green",
    "density_blue",
)
"""Names of the numbers, in order."""


class Outcome(StrEnum):
    """What became of a file; every file found has exactly one."""

    STORED = "stored"
    DUPLICATE = "duplicate"
    POSSIBLE_DUPLICATE = "possible_duplicate"
    REJECTED = "rejected"


class Reason(StrEnum):
    """Why a picture is not taken for a picture of one stained cell, in words for people."""

    NOTHING = "nothing is stained in its middle: it shows background or red cells only"
    COLOUR = "its colours are none that a stain gives: a negative, grey, or channels in another order"
    BLURRED = "it is out of focus"
    SEVERAL = "it shows several cells, none more in its middle than the others"
    CUT = "the cell is cut off by the picture's edge"


@dataclass(frozen=True, slots=True)
class Quality:
    """The judgement whether a picture shows one stained cell; see `labref.cells.quality`.

    is_cell : whether it can be read as one; a cell that the edge cuts off can.  reason : what is wrong with it, None
    where nothing is.  focus : fine detail over contrast at a quarter of the scale; sharp cells have 0.3 to 2.5, by the
    microscope.
    """

    is_cell: bool
    reason: Reason | None
    focus: float


class LabelSource(StrEnum):
    """Who gave a label."""

    REVIEWED = "reviewed"
    ANALYSER = "analyser"
    PREDICTED = "predicted"

    @property
    def weight(self) -> int:
        """How much it counts: a person over the analyser, the analyser over the network."""
        return {"reviewed": 2, "analyser": 1, "predicted": 0}[self.value]


def cell_id_of(digest: str) -> str:
    """Name of the cell with these bytes: the first 16 of the 64 hexadecimal characters of their SHA-256.

    The same bytes are the same cell, so a file read again after a crash cannot become a second one. Sixty-four
    bits keep the chance of two different files sharing a name below 3e-6 for ten million cells.
    """
    return digest[:16]


@lru_cache(maxsize=4096)
def name_key(name: str) -> str:
    """`name` without the differences between spellings of one class: case, punctuation, the plural."""
    words = re.sub(r"[\W_]+", " ", unicodedata.normalize("NFC", name)).casefold().split()
    return " ".join(
        word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")) else word
        for word in words
    )


_LIKE_LATIN: Final = str.maketrans(
    "АВЕЅІЈКМНОРСТУХаеѕіјкорсухһԁԛԝӏΑΒΕΖΗΙΚΜΝΟΡΤΥΧαικνορυѵɑı|",
    "ABESIJKMHOPCTYXaesijkopcyxhdqwlABEZHIKMNOPTYXaikvopuvail",
)
"""Letters and signs that look like Latin letters, and those."""
_ACCENTS: Final = re.compile("[\u0300-\u036f]")
_ONE_STROKE: Final = str.maketrans("i10", "llo")
"""What people take for each other within a word: l, I and 1; O and 0."""
_SMALL_CAPITAL: Final = "LATIN LETTER SMALL CAPITAL "
_CASED: Final = frozenset({"LATIN", "CYRILLIC", "ARMENIAN", "CHEROKEE", "COPTIC", "GEORGIAN"})
"""Scripts whose letters are taken for each other's. Greek ones stand beside Latin ones in one word, as in γδT."""


def look_of(name: str) -> str:
    """`name` without what people overlook: as `name_key`, and without spaces, accents, the width of letters, and what
    tells letters and digits from others that look like them, of this script or another."""
    letters = _ACCENTS.sub("", unicodedata.normalize("NFKD", name.translate(_LIKE_LATIN)))
    plain = "".join(map(_as_letter, letters))
    key = name_key(plain.translate(_LIKE_LATIN)).replace(" ", "")
    return key.translate(_ONE_STROKE).replace("rn", "m").replace("vv", "w")


def _as_letter(character: str) -> str:
    """A small capital as the letter that it is; any other character as it is."""
    called = unicodedata.name(character, "")
    letter = called.removeprefix(_SMALL_CAPITAL)
    return letter.lower() if letter != called and len(letter) == 1 else character


def mixes_scripts(name: str) -> bool:
    """Whether a word of `name` mixes letters of scripts that are taken for each other's: nobody writes so on purpose,
    and the word reads as another."""
    return any(
        len({unicodedata.name(letter, "").split(" ")[0] for letter in word if letter.isalpha()} & _CASED) > 1
        for word in re.split(r"[\W\d_]+", unicodedata.normalize("NFKC", name))
    )


def within_64_bits(number: int) -> int:
    """A size or a time as the store keeps it: brought to the limits of 64 bits with a sign."""
    return min(max(number, -(2**63)), 2**63 - 1)
