"""Bundles against each other over the labs whose counts-only reports the centre has: by lab, class and optics.

A figure over several analysers is the mean of theirs, each alike, with Wilson's interval for the number of independent
draws that would scatter as much (`labref.asking.agreement.weighted`): it says how sure the figure of these analysers
is, and not how others would do. Means of two bundles that are not of the same analysers do not compare. What compares
is a change: the same analyser with one bundle and with the next. The interval of a difference is that of Newcombe
(1998, Statistics in Medicine 17:873, method 10) from the two intervals, and of a mean of differences that of Zou &
Donner (2008, Statistics in Medicine 27:1693). Both take the two figures for independent; where the same cells were
asked, they are wider than they need be.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, Literal

from labref.asking.agreement import Figure, sign_test, weighted
from labref.asking.report import SIX_OF_EIGHT, WIDEST
from labref.cells.optics import FROM_TRAINING
from labref.operations.optics import Measures
from labref.operations.report import LabReport, ReportAnalyser, ReportClass, ReportShare
from labref.printing import printable
from labref.words import name_key
from training.data.classes import common_name
from training.report.received import Gathered, Taken, order, when

__all__ = [
    "AnalyserFigures",
    "Bundle",
    "Change",
    "Changes",
    "ClassFigure",
    "ClassOfBundle",
    "Comparison",
    "Optics",
    "OpticsOfBundle",
    "Shift",
    "compare",
]

Optics = Literal["as trained on", "off", "not told"]
OPTICS: Final[tuple[Optics, ...]] = ("as trained on", "off", "not told")
"""Whether an analyser's background, focus and stain are those that its bundle was trained on."""
_OWN: Final = re.compile(r"class \d+")  # a class that only the lab knows, as `without_names` numbers it


@dataclass(frozen=True)
class Shift:
    """The measure of the optics that is farthest off. by : robust standard deviations of single cells."""

    measure: str
    by: float


@dataclass(frozen=True)
class ClassFigure:
    """A class of one analyser's cells. own : only the lab knows it, so it is no other lab's.  cells : distinct ones.
    enough : whether the figure can be trusted.  fails : fewer than six of eight references are of it, beyond chance.
    instead : the other class that most references have."""

    label: str
    own: bool
    cells: int
    precision: Figure
    enough: bool
    fails: bool
    instead: str | None
    instead_share: float


@dataclass(frozen=True)
class AnalyserFigures:
    """One analyser with one bundle.

    bundle : its letter.  optics : the analyser as the page calls it; of a lab with a key, as its domain in a pool is
    called.  known_again : by what it is found in another report of the lab; None where nothing tells.  basis : whose
    classes count; the precision is None where no person's do.  from_training, drift : None where not told.
    """

    bundle: str
    lab: str
    named: str
    optics: str
    known_again: str | None
    made_at: str
    version: str
    basis: str | None
    cells: int
    asked: int
    precision: Figure
    precision_of_classes: Figure
    enough: bool
    classes: tuple[ClassFigure, ...]
    novel: Figure
    no_class: Figure
    no_cell: Figure
    from_training: Shift | None
    drift: Shift | None

    @property
    def reviewed(self) -> bool:
        """Whether its figures are of classes that people gave."""
        return self.basis == "reviewed" and self.precision_of_classes.value is not None

    @property
    def group(self) -> Optics:
        """Whether its optics are those trained on."""
        if self.from_training is None:
            return "not told"
        return "off" if abs(self.from_training.by) >= FROM_TRAINING else "as trained on"


@dataclass(frozen=True)
class ClassOfBundle:
    """A class with one bundle, over analysers. of_each : what each of them has, and whether it can be trusted."""

    bundle: str
    label: str
    precision: Figure
    enough: bool
    analysers: int
    of_each: tuple[tuple[float, bool], ...]


@dataclass(frozen=True)
class OpticsOfBundle:
    """Analysers of one kind of optics, with one bundle."""

    bundle: str
    optics: Optics
    precision_of_classes: Figure
    enough: bool
    analysers: int


@dataclass(frozen=True)
class Bundle:
    """A bundle that labs have. letter : what the page calls it.  labs, analysers : how many have it; reviewed : of how
    many analysers people's classes count.  fails : how many classes of analysers do."""

    letter: str
    name: str
    version: str
    digest: str
    labs: int
    analysers: int
    reviewed: int
    asked: int
    precision: Figure
    precision_of_classes: Figure
    novel: Figure
    fails: int
    too_few: int


@dataclass(frozen=True)
class Change:
    """What one analyser's figure, or a class of it, became. difference : after minus before."""

    lab: str
    named: str
    optics: str
    label: str | None
    before: Figure
    after: Figure
    difference: Figure


@dataclass(frozen=True)
class Changes:
    """The analysers that had one bundle and then the next. analysers : the precision over classes of each.  classes :
    each class, the mean over analysers (`optics` is then how many).  mean : over analysers.  p : of the sign test."""

    before: str
    after: str
    analysers: tuple[Change, ...]
    classes: tuple[Change, ...]
    mean: Figure
    better: int
    worse: int
    p: float | None


@dataclass(frozen=True)
class Comparison:
    """All of it. rows : each analyser with each bundle, by lab.  not_paired : labs with several bundles whose analysers
    nothing tells again."""

    bundles: tuple[Bundle, ...]
    rows: tuple[AnalyserFigures, ...]
    classes: tuple[ClassOfBundle, ...]
    optics: tuple[OpticsOfBundle, ...]
    changes: tuple[Changes, ...]
    not_paired: tuple[str, ...]


def compare(gathered: Gathered) -> Comparison:
    """The figures of `training.report.received.gather`'s reports."""
    letters = _letters(gathered.taken)
    rows = [row for one in gathered.taken for row in _rows(one, letters, _told_again(one, gathered.taken))]
    return Comparison(
        tuple(_bundle(letter, digest, gathered.taken, rows) for digest, letter in letters.items()),
        tuple(rows),
        tuple(_classes(rows, list(letters.values()))),
        tuple(
            _optics(letter, group, found)
            for group in OPTICS
            for letter in letters.values()
            if (found := [row for row in rows if row.bundle == letter and row.group == group])
        ),
        tuple(_changes(rows)),
        tuple(_not_paired(rows)),
    )


def is_enough(figure: Figure) -> bool:
    """Whether a figure can be trusted: its interval is not wider than a report of a lab allows."""
    return figure.low is not None and figure.high is not None and figure.high - figure.low <= WIDEST


def difference(before: Figure, after: Figure) -> Figure:
    """After minus before, with Newcombe's interval; no figure where one of them is none. n : of the smaller."""
    if None in (before.value, before.low, before.high, after.value, after.low, after.high):
        return Figure(None, None, None, 0)
    low, up = _reach(before), _reach(after)
    by = float(after.value or 0) - float(before.value or 0)
    return Figure(by, by - math.hypot(up[0], low[1]), by + math.hypot(up[1], low[0]), min(before.n, after.n))


def mean_difference(parts: Sequence[Figure]) -> Figure:
    """The mean of independent differences. n : how many there are."""
    known = [part for part in parts if part.value is not None]
    if not known:
        return Figure(None, None, None, 0)
    mean = math.fsum(float(part.value or 0) for part in known) / len(known)
    down, up = (math.hypot(*sides) / len(known) for sides in zip(*map(_reach, known), strict=True))
    return Figure(mean, mean - down, mean + up, len(known))


def _reach(figure: Figure) -> tuple[float, float]:
    """How far the interval reaches below the value and above it."""
    value = float(figure.value or 0)
    return value - float(figure.low or 0), float(figure.high or 0) - value


def _letters(taken: Sequence[Taken]) -> dict[str, str]:
    """A letter for each bundle, by its digest, in the order in which labs reported them first."""
    first = dict.fromkeys(one.made.bundle.digest for one in sorted(taken, key=when))
    return {digest: _letter(number) for number, digest in enumerate(first)}


def _letter(number: int) -> str:
    """A to Z, then AA and so on."""
    return ("" if number < 26 else _letter(number // 26 - 1)) + chr(ord("A") + number % 26)


def _told_again(one: Taken, taken: Sequence[Taken]) -> bool:
    """Whether a lab's only analyser is in each of its reports, and no two of them give it different pseudonyms: it
    needs none to be found again."""
    of_lab = [other.made.analysers for other in taken if other.lab == one.lab]
    names = {row.pseudonym for rows in of_lab for row in rows} - {None}
    return len(names) < 2 and all(len(rows) == 1 for rows in of_lab)


def _rows(one: Taken, letters: Mapping[str, str], alone: bool) -> list[AnalyserFigures]:
    return [
        _row(one, letters[one.made.bundle.digest], number, row, alone)
        for number, row in enumerate(one.made.analysers, 1)
    ]


def _row(one: Taken, letter: str, number: int, row: ReportAnalyser, alone: bool) -> AnalyserFigures:
    made: LabReport = one.made
    named = f", analyser {number}" if row.pseudonym is None else f"-{row.pseudonym[:8]}"
    of_classes = _figure(row.precision_of_classes)
    return AnalyserFigures(
        bundle=letter,
        lab=one.lab,
        named=printable(one.named),
        optics=f"{one.lab}{named}",
        known_again="the only one" if alone else row.pseudonym,
        made_at=made.made_at,
        version=printable(made.version),
        basis=row.basis,
        cells=row.cells,
        asked=row.asked,
        precision=_figure(row.precision),
        precision_of_classes=of_classes,
        enough=is_enough(of_classes),
        classes=tuple(_classes_of(row.classes)),
        novel=_figure(row.novel),
        no_class=_figure(row.no_class),
        no_cell=_figure(row.pictures.no_cell),
        from_training=_farthest(row.optics.from_training),
        drift=_farthest(row.optics.drift),
    )


def _classes_of(classes: Iterable[ReportClass]) -> list[ClassFigure]:
    """The classes of an analyser; two names of one class are one, and count by their cells."""
    by_name: dict[str, list[ReportClass]] = {}
    for one in classes:
        by_name.setdefault(name_key(_called(one.label)), []).append(one)
    found = []
    for same in by_name.values():
        precision = weighted([(float(one.cells), _figure(one.precision)) for one in same])
        largest = max(same, key=lambda one: one.cells)
        enough = all(one.best == 1.0 for one in same) and is_enough(precision)
        found.append(
            ClassFigure(
                label=_called(largest.label),
                own=bool(_OWN.fullmatch(largest.label)),
                cells=sum(one.cells for one in same),
                precision=precision,
                enough=enough,
                fails=all(one.best == 1.0 for one in same)
                and precision.high is not None
                and precision.high < SIX_OF_EIGHT,
                instead=None if largest.instead is None else _called(largest.instead),
                instead_share=largest.instead_share,
            )
        )
    return found


def _called(label: str) -> str:
    return printable(common_name(label))


def _figure(one: ReportShare) -> Figure:
    return Figure(one.value, one.low, one.high, one.n)


def _farthest(measures: Measures | None) -> Shift | None:
    if measures is None:
        return None
    name, by = max(measures.model_dump().items(), key=lambda item: abs(item[1]))
    return Shift(name, by)


def _bundle(letter: str, digest: str, taken: Sequence[Taken], rows: Sequence[AnalyserFigures]) -> Bundle:
    told = next(one.made.bundle for one in taken if one.made.bundle.digest == digest)
    own = [row for row in rows if row.bundle == letter]
    reviewed = [row for row in own if row.reviewed]
    classes = [one for row in reviewed for one in row.classes]
    return Bundle(
        letter=letter,
        name=printable(told.name or "(no name)"),
        version=printable(told.version or ""),
        digest=digest,
        labs=len({row.lab for row in own}),
        analysers=len(own),
        reviewed=len(reviewed),
        asked=sum(row.asked for row in reviewed),
        precision=weighted([(1.0, row.precision) for row in reviewed]),
        precision_of_classes=weighted([(1.0, row.precision_of_classes) for row in reviewed]),
        novel=weighted([(1.0, row.novel) for row in own]),
        fails=sum(one.fails for one in classes),
        too_few=sum(not one.enough and not one.fails for one in classes),
    )


def _classes(rows: Sequence[AnalyserFigures], letters: Sequence[str]) -> list[ClassOfBundle]:
    """By class and then by bundle; the class that fewest references have with the last bundle first."""
    found: dict[str, dict[str, list[ClassFigure]]] = {}
    called: dict[str, str] = {}
    for row in rows:
        for one in row.classes if row.reviewed else ():
            if not one.own and one.precision.value is not None:
                key = name_key(one.label)
                called.setdefault(key, one.label)
                found.setdefault(key, {}).setdefault(row.bundle, []).append(one)
    made = {
        key: [
            ClassOfBundle(
                letter,
                called[key],
                figure := weighted([(1.0, one.precision) for one in of[letter]]),
                is_enough(figure),
                len(of[letter]),
                tuple((float(one.precision.value or 0), one.enough) for one in of[letter]),
            )
            for letter in letters
            if letter in of
        ]
        for key, of in found.items()
    }
    return [
        one
        for rows_ in sorted(made.values(), key=lambda rows_: (not rows_[-1].enough, rows_[-1].precision.value or 0))
        for one in rows_
    ]


def _optics(letter: str, group: Optics, rows: Sequence[AnalyserFigures]) -> OpticsOfBundle:
    reviewed = [row for row in rows if row.reviewed]
    figure = weighted([(1.0, row.precision_of_classes) for row in reviewed])
    return OpticsOfBundle(letter, group, figure, is_enough(figure), len(reviewed))


def _changes(rows: Sequence[AnalyserFigures]) -> list[Changes]:
    """From each bundle to the one that the same analyser had next."""
    histories: dict[tuple[str, str], list[AnalyserFigures]] = {}
    for row in rows:  # in the order of time within a lab
        if row.known_again is not None and row.reviewed:
            histories.setdefault((row.lab, row.known_again), []).append(row)
    steps: dict[tuple[str, str], list[tuple[AnalyserFigures, AnalyserFigures]]] = {}
    for history in histories.values():
        for before, after in pairwise(history):
            steps.setdefault((before.bundle, after.bundle), []).append((before, after))
    return [_step(*letters, pairs) for letters, pairs in sorted(steps.items())]


def _step(before: str, after: str, pairs: Sequence[tuple[AnalyserFigures, AnalyserFigures]]) -> Changes:
    analysers = [_change(new, None, old.precision_of_classes, new.precision_of_classes) for old, new in pairs]
    by_class: dict[str, list[Change]] = {}
    for old, new in pairs:
        had = {name_key(one.label): one for one in old.classes if not one.own}
        for one in new.classes:
            key = name_key(one.label)
            if not one.own and key in had:
                change = _change(new, one.label, had[key].precision, one.precision)
                if change.difference.value is not None:
                    by_class.setdefault(key, []).append(change)
    classes = [
        Change(
            lab="",
            named="",
            optics=f"{len(some)} analyser{'s' if len(some) > 1 else ''}",
            label=some[0].label,
            before=weighted([(1.0, one.before) for one in some]),
            after=weighted([(1.0, one.after) for one in some]),
            difference=mean_difference([one.difference for one in some]),
        )
        for some in by_class.values()
    ]
    better, worse = (sum(sign * float(one.difference.value or 0) > 0 for one in analysers) for sign in (1, -1))
    return Changes(
        before,
        after,
        tuple(sorted(analysers, key=lambda one: one.difference.value or 0)),
        tuple(sorted(classes, key=lambda one: one.difference.value or 0)),
        mean_difference([one.difference for one in analysers]),
        better,
        worse,
        sign_test(better, worse),
    )


def _change(row: AnalyserFigures, label: str | None, before: Figure, after: Figure) -> Change:
    return Change(row.lab, row.named, row.optics, label, before, after, difference(before, after))


def _not_paired(rows: Sequence[AnalyserFigures]) -> list[str]:
    bundles: dict[str, set[str]] = {}
    for row in rows:
        bundles.setdefault(row.lab, set()).add(row.bundle)
    return sorted({row.lab for row in rows if row.known_again is None and len(bundles[row.lab]) > 1}, key=order)
