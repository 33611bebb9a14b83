"""References from other labs, by the shared store (`labref.shared`), beside the lab's own.

Own first. Among cells that are about equally near (5 %, as in `labref.asking.references`), the lab's own come before
those of other labs, whoever gave their labels; among those of other labs the more trusted label comes first. A cell
of another lab thus takes the place of an own one only where it is clearly nearer.

One picture, one place. A cell that the lab has itself is its own, whatever another lab says of the same picture.
Cells of several labs that are one picture, or nearly (each of their two fingerprints differs in fewer than two bits,
as the thesis has it for duplicates), take one place: the own one's, else that of the nearest, or of a more trusted
one that is about as near. So does what its lab holds, or may hold, for captures of one physical cell. Neither the
picture that is asked about nor what is nearly that picture is a reference.

Cells of other labs are references alone: they count neither in the spread nor in the novelty nor on the map, which
say what is usual in this lab.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from labref.asking.analysers import Optics
from labref.errors import LabrefError
from labref.shared.asking import Asking, Pending, Reply, SharedCell, Wanted
from labref.store import Neighbour, Store
from labref.store.memory.books import id_to_int
from labref.words import Fingerprint, cell_id_of

__all__ = ["EVERY", "OPTICS", "OWN", "Others", "apart", "nearly_one", "others_of", "own_first"]

OWN: Final = "own"
OPTICS: Final = "optics"
EVERY: Final = "all"
_FEWER_BITS: Final = 2  # thesis: two hashes that differ in fewer bits are of one cell
_OWN_TRUST: Final = 1000


@dataclass(frozen=True)
class Others:
    """Whose cells a question wants beside the lab's own.

    asking : the shared store.  which : "optics", "all", or names of labs with commas between.  group : the lab's name
    of its optics, "" where the analyser's name is.  reader : whether there is no own lab.
    """

    asking: Asking
    which: str
    group: str = ""
    reader: bool = False

    def put(self, bundle: str, latent: NDArray[np.float32], optics: Optics, cells: int) -> Pending:
        """Ask, and go on."""
        wanted = self._wanted(optics)
        if isinstance(wanted, str):
            return Pending(None, wanted, 0.0)
        return self.asking.put(bundle, latent, wanted, cells)

    def _wanted(self, optics: Optics) -> Wanted | str:
        if self.which == EVERY:
            return Wanted(reader=self.reader)
        if self.which == OPTICS:
            group = self.group or optics.analyser
            if group is None:
                return "the microscope of the image is not known, so nobody else's is known to be the same"
            return Wanted(optics=group, reader=self.reader)
        names = unicodedata.normalize("NFC", self.which).split(",")  # as labs are named
        labs = tuple(name.strip() for name in names if name.strip())
        return Wanted(labs, reader=self.reader) if labs else f"{self.which!r} names no lab"


def others_of(asking: Asking | None, which: str, group: str) -> Others | None:
    """What `--shared` says; None for the lab's own cells alone. Raises `LabrefError` where the lab has no shared
    store."""
    if which in ("", OWN):
        return None
    if asking is None:
        raise LabrefError(
            "this lab has no shared store, so there are no cells of other labs; labref.toml, [shared], names one."
        )
    return Others(asking, which, group)


def apart(
    store: Store,
    reply: Reply,
    own: Sequence[Neighbour],
    *,
    digest: str | None,
    fingerprint: Fingerprint | None,
    stand_in: Callable[[Sequence[Neighbour], Mapping[str, int]], Neighbour],
) -> tuple[dict[Neighbour, float], dict[str, SharedCell], dict[str, int]]:
    """Of the cells of other labs those that may take a place beside the lab's own: each with the distance of the
    nearest capture of the same cell, ordered by it; the cells by their key; and how much each is trusted.

    own : the lab's own cells that are near, one of each physical cell.  digest, fingerprint : of the picture that is
    asked about, where they are known.
    """
    asked = None if digest is None else cell_id_of(digest)
    cells = [
        one
        for one in reply.cells
        if one.cell_id != asked
        and id_to_int(one.cell_id) not in store.label_book
        and not nearly_one(one.fingerprint, fingerprint)
    ]
    marks = store.duplicates.fingerprints([one.cell_id for one in own]) if cells else {}
    groups: list[list[SharedCell]] = []
    by_place: dict[tuple[str, str], list[SharedCell]] = {}
    by_picture: dict[str, list[SharedCell]] = {}
    for one in cells:
        if any(nearly_one(one.fingerprint, mark) for mark in marks.values()):
            continue
        group = by_place.get((one.lab, one.place)) or by_picture.get(one.cell_id)
        if group is None:
            group = next((known for known in groups if nearly_one(known[0].fingerprint, one.fingerprint)), None)
        if group is None:
            group = []
            groups.append(group)
        group.append(one)
        by_place.setdefault((one.lab, one.place), group)
        by_picture.setdefault(one.cell_id, group)
    trust = {one.key: one.label_source.weight for one in cells}
    nearest = {}
    for group in groups:
        shown = stand_in([Neighbour(one.key, one.distance) for one in group], trust)
        nearest[shown] = group[0].distance
    return nearest, {one.key: one for one in cells}, trust


def own_first(trust: Mapping[str, int]) -> dict[str, int]:
    """The trust in the lab's own cells, so that each comes before those of others."""
    return {cell_id: weight + _OWN_TRUST for cell_id, weight in trust.items()}


def nearly_one(one: Fingerprint | None, other: Fingerprint | None) -> bool:
    """Whether two pictures are nearly one by their fingerprints."""
    if one is None or other is None:
        return False
    return (one.across ^ other.across).bit_count() < _FEWER_BITS and (one.down ^ other.down).bit_count() < _FEWER_BITS
