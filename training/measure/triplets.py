"""SVOMEN (the thesis' section 4.7): how often a latent space agrees with the right choice in triplets of a reference
image and two alternatives.

A set of triplets is one JSON file, with a format version and named by its digest. People's choices are CSV files, one
line for each choice. There are two kinds of set. *human*: drawn around a model's neighbours, as in the thesis, and
judged by people. *attributes*: drawn without a model; the right alternative follows from the experts' attributes of the
images (WBCAtt).
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.data.images import Item
from training.measure.evaluate import K, nearest
from training.measure.latents import Latents
from training.measure.statistics import bootstrap, share

__all__ = [
    "FORMAT_VERSION",
    "Triplet",
    "TripletSet",
    "attribute_triplets",
    "draw_triplets",
    "read_votes",
    "score",
]

FORMAT_VERSION = 1
FORMAT = "labref-triplets"
MARGIN = 3
"""The right alternative must share at least this many attributes more with the reference than the other alternative
does, of eleven. Two experts differ on 0.43 of the eleven on average (WBCAtt's re-annotation, 96.1 % agreement), so a
difference of three is not one expert's error."""
_DRAWS = ("close-close", "close-class", "close-random")
_ATTRIBUTE_DRAWS = ("class-class", "class-random", "random-random")


@dataclass(frozen=True)
class Triplet:
    """A reference image and two alternatives, by path in their tree.

    draw : how the alternatives were drawn.  same_class : True where both are of the reference's class, so that the
    class does not decide between them.  right : 1 or 2, the alternative that resembles the reference more, in a set of
    kind `attributes`; None where people decide.
    """

    reference: str
    alternative_1: str
    alternative_2: str
    draw: str
    same_class: bool
    right: int | None = None


@dataclass(frozen=True)
class TripletSet:
    """A set of triplets. kind : "human" or "attributes".  how : the seed, and everything else that decided the
    draw."""

    kind: str
    how: Mapping[str, Any]
    triplets: tuple[Triplet, ...]

    @property
    def digest(self) -> str:
        """SHA-256 over format version, kind and every triplet; its first 12 characters name the set in figures and
        votes."""
        lines = [f"{FORMAT} {FORMAT_VERSION} {self.kind}", *(repr(tuple(asdict(t).values())) for t in self.triplets)]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values; `from_json` is its inverse."""
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "kind": self.kind,
            "digest": self.digest,
            "how": dict(self.how),
            "triplets": [{"number": number, **asdict(t)} for number, t in enumerate(self.triplets)],
        }

    def save(self, file: Path) -> None:
        """Write the set as JSON."""
        file.write_text(json.dumps(self.to_json(), indent=0, ensure_ascii=False) + "\n", encoding="utf-8")

    @staticmethod
    def load(file: Path) -> TripletSet:
        """Read a set. Raises ValueError where the file holds no set, has a newer format, or was changed."""
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
            if values["format"] != FORMAT or int(values["format_version"]) > FORMAT_VERSION:
                raise ValueError(f"format {values['format']} {values['format_version']}, known is {FORMAT} 1")
            triplets = tuple(
                Triplet(**{name: t[name] for name in Triplet.__dataclass_fields__}) for t in values["triplets"]
            )
            found = TripletSet(str(values["kind"]), dict(values["how"]), triplets)
            digest = values["digest"]
        except (KeyError, TypeError, ValueError, OSError) as error:
            raise ValueError(f"{file} is no set of triplets: {type(error).__name__} {error}") from None
        if digest != found.digest:
            raise ValueError(f"{file} was changed after it was drawn: its digest does not fit. Draw it again.")
        return found


def draw_triplets(latents: Latents, *, per_class: int = 100, seed: int = 1) -> TripletSet:
    """Triplets to ask people about, drawn as the thesis drew its 1,900.

    `per_class` reference images of each class at random; the close alternative is one of the reference's eight nearest
    by mean squared error; the other, by a method picked at random, is another of the eight (close-close), any image of
    the reference's class (close-class) or any image at all (close-random). Which of the two is shown as number 1 is
    drawn too.
    """
    rng = np.random.default_rng(seed)
    labels = np.array([item.label for item in latents.items])
    rows: list[int] = []
    for label in sorted(set(labels.tolist())):
        members = np.flatnonzero(labels == label)
        rows += rng.permutation(members)[:per_class].tolist()
    if len(latents.paths) <= K:
        raise ValueError(f"{latents.source}: more than {K} images are needed to draw neighbours from")
    same = np.zeros((len(rows), len(latents.paths)), dtype=bool)
    same[np.arange(len(rows)), rows] = True
    close, _ = nearest(latents.values[rows], latents.values, same)
    triplets = []
    for row, eight in zip(rows, close, strict=True):
        first = int(rng.choice(eight))
        method = str(rng.choice(_DRAWS))
        pool = {
            "close-close": eight,
            "close-class": np.flatnonzero(labels == labels[row]),
            "close-random": np.arange(len(labels)),
        }[method]
        pool = pool[(pool != row) & (pool != first)]
        if not len(pool):  # the only one of its class
            continue
        pair = [first, int(rng.choice(pool))]
        rng.shuffle(pair)
        triplets.append(_triplet(latents.items, row, pair, method, None))
    how = {"seed": seed, "per_class": per_class, "latents": latents.digest, "source": latents.source}
    return TripletSet("human", how, tuple(triplets))


def _triplet(items: Sequence[Item], row: int, pair: Sequence[int], draw: str, right: int | None) -> Triplet:
    first, second = (items[number] for number in pair)
    same = items[row].label == first.label == second.label
    return Triplet(items[row].path, first.path, second.path, draw, same, right)


def attribute_triplets(
    items: Sequence[Item],
    attributes: Mapping[str, tuple[str, ...]],
    *,
    per_draw: int = 1000,
    margin: int = MARGIN,
    seed: int = 1,
) -> TripletSet:
    """Triplets whose right alternative is told by expert attributes; no model takes part in the draw.

    A reference image is drawn at random from a class drawn at random; its two alternatives are both of its class
    (class-class), one of its class and one of any (class-random), or both of any (random-random), `per_draw` of each.
    Kept where one alternative shares at least `margin` attributes more with the reference than the other does: that one
    is right. Images without attributes are left out. Raises ValueError where too few triplets have such a margin.
    """
    known = sorted((item for item in set(items) if _name(item) in attributes), key=lambda item: item.path)
    labels = np.array([item.label for item in known])
    classes = [label for label in sorted(set(labels.tolist())) if (labels == label).sum() >= 3]
    if not classes:
        raise ValueError(f"{len(known)} of {len(set(items))} images have attributes: too few to draw triplets from")
    members = {label: np.flatnonzero(labels == label) for label in classes}
    values = [attributes[_name(item)] for item in known]
    every = np.arange(len(known))
    rng = np.random.default_rng(seed)
    triplets: list[Triplet] = []
    seen: set[tuple[int, frozenset[int]]] = set()

    def alike(a: int, b: int) -> int:
        return sum(x == y for x, y in zip(values[a], values[b], strict=True))

    for draw in _ATTRIBUTE_DRAWS:
        found, tries = 0, 0
        while found < per_draw:
            tries += 1
            if tries > 2000 * per_draw:
                raise ValueError(
                    f"only {found} of {per_draw} triplets {draw} have a margin of {margin}; ask for fewer or a smaller margin"
                )
            own = members[classes[rng.integers(len(classes))]]
            # as rng.choice draws, without what it checks each time
            reference = int(own[rng.integers(len(own))])
            pools = [own if kind == "class" else every for kind in draw.split("-")]
            pair = [int(pool[rng.integers(len(pool))]) for pool in pools]
            rng.shuffle(pair)
            key = (reference, frozenset(pair))
            if reference in pair or pair[0] == pair[1] or key in seen:
                continue
            difference = alike(reference, pair[0]) - alike(reference, pair[1])
            if abs(difference) < margin:
                continue
            seen.add(key)
            triplets.append(_triplet(known, reference, pair, draw, 1 if difference > 0 else 2))
            found += 1
    paths = [item.path for item in known]
    table = hashlib.sha256(repr(list(zip(paths, values, strict=True))).encode())
    how = {
        "seed": seed,
        "per_draw": per_draw,
        "margin": margin,
        "of": len(values[0]),
        "images": len(known),
        "images_digest": hashlib.sha256("\n".join(paths).encode()).hexdigest(),
        "attributes": table.hexdigest(),
    }
    return TripletSet("attributes", how, tuple(triplets))


def _name(item: Item) -> str:
    return item.path.rsplit("/", 1)[-1]


def read_votes(files: Sequence[Path], triplets: TripletSet) -> dict[int, dict[str, int]]:
    """What people chose: by the triplet's number, person → 1, 2 or 0 (neither resembles it).

    Each file is CSV with the columns `set` (the first 12 characters of the set's digest or more), `triplet` (its
    number), `person` and `choice`. Raises ValueError for choices of another set, unknown triplets, and a person who
    says two things.
    """
    votes: dict[int, dict[str, int]] = {}
    for file in files:
        with file.open(newline="", encoding="utf-8-sig") as source:
            for line, row in enumerate(csv.DictReader(source), start=2):
                where = f"{file}, line {line}"
                try:
                    name, number, person = row["set"].strip(), int(row["triplet"]), row["person"].strip()
                    choice = int(row["choice"])
                except (KeyError, TypeError, ValueError, AttributeError):
                    raise ValueError(f"{where}: needs the columns set, triplet, person, choice") from None
                if len(name) < 12 or not triplets.digest.startswith(name):
                    raise ValueError(f"{where}: a choice on set {name}, this is set {triplets.digest[:12]}")
                if not 0 <= number < len(triplets.triplets) or choice not in (0, 1, 2) or not person:
                    raise ValueError(f"{where}: no such triplet, choice or person")
                if votes.setdefault(number, {}).setdefault(person, choice) != choice:
                    raise ValueError(f"{where}: {person} chose twice, and differently; keep one of the two lines")
    return votes


def judged(
    triplets: TripletSet, votes: Mapping[int, Mapping[str, int]], *, people: int = 10, agree: int = 8
) -> tuple[list[Triplet], dict[str, Any]]:
    """The valid triplets, each with `right` as people decided, and the numbers of valid and invalid ones.

    Valid: at least `people` people were asked and the same alternative was chosen by at least `agree` of `people` of
    them (the thesis' eight of ten, as a share where more were asked). Choice 0 counts as asked.
    """
    valid: list[Triplet] = []
    undecided = unasked = 0
    chosen: Counter[int] = Counter()
    for number, triplet in enumerate(triplets.triplets):
        given = Counter(votes.get(number, {}).values())
        chosen.update(given)
        asked = sum(given.values())
        if asked < people:
            unasked += 1
            continue
        winner = 1 if given[1] > given[2] else 2
        if given[winner] * people >= agree * asked:
            valid.append(replace(triplet, right=winner))
        else:
            undecided += 1
    persons = {person for each in votes.values() for person in each}
    text = repr(sorted((number, sorted(each.items())) for number, each in votes.items()))
    return valid, {
        "people": len(persons),
        "needed": f"{agree} of {people}",
        "undecided": undecided,
        "too_few_asked": unasked,
        "choices": {str(choice): chosen[choice] for choice in (0, 1, 2)},
        "votes_digest": hashlib.sha256(text.encode()).hexdigest(),
    }


def score(
    triplets: TripletSet,
    latents: Latents,
    *,
    votes: Mapping[int, Mapping[str, int]] | None = None,
    people: int = 10,
    agree: int = 8,
) -> dict[str, Any]:
    """SVOMEN of a space: the share of valid triplets whose right alternative lies nearer to the reference.

    JSON: `svomen` (an estimate: value, 95 % interval by bootstrap over reference images), `wilson`, `correct`, `valid`,
    `ties` (equally near alternatives earn no point, as both in one node of a map), `by_draw`, `same_class` (both
    alternatives of the reference's class) and `set` {kind, format_version, digest, …}, which names what was measured,
    `latents`.
    """
    named: dict[str, Any] = {
        "kind": triplets.kind,
        "format_version": FORMAT_VERSION,
        "digest": triplets.digest,
        "triplets": len(triplets.triplets),
        **triplets.how,
    }
    if votes is not None:
        valid, told = judged(triplets, votes, people=people, agree=agree)
        named |= told
    else:
        valid = [triplet for triplet in triplets.triplets if triplet.right is not None]
        if not valid:
            raise ValueError("this set is for people to judge: give their choices with --votes")
    if not valid:
        raise ValueError("no triplet is valid: too few people agree, or too few were asked")
    points, ties = _points(valid, latents)
    references = [triplet.reference for triplet in valid]

    def estimate(chosen: NDArray[np.bool_]) -> dict[str, Any]:
        rows = np.flatnonzero(chosen)
        return bootstrap(points[rows], clusters=[references[row] for row in rows]).to_json() | {"triplets": len(rows)}

    draws = np.array([triplet.draw for triplet in valid])
    same = np.array([triplet.same_class for triplet in valid])
    return {
        "svomen": estimate(np.ones(len(valid), dtype=bool)),
        "wilson": share(int(points.sum()), len(valid)).to_json(),
        "correct": int(points.sum()),
        "valid": len(valid),
        "ties": ties,
        "by_draw": {draw: estimate(draws == draw) for draw in sorted(set(draws.tolist()))},
        "same_class": estimate(same),
        "set": named,
        "latents": {"source": latents.source, "digest": latents.digest, "size": latents.values.shape[1]},
    }


def _points(valid: Sequence[Triplet], latents: Latents) -> tuple[NDArray[np.float64], int]:
    columns = [
        latents.values[latents.rows([getattr(triplet, name) for triplet in valid])].astype(np.float64)
        for name in ("reference", "alternative_1", "alternative_2")
    ]
    first, second = (((columns[0] - other) ** 2).mean(axis=1) for other in columns[1:])
    right_is_first = np.array([triplet.right == 1 for triplet in valid])
    points = np.where(right_is_first, first < second, second < first).astype(np.float64)
    return points, int((first == second).sum())
