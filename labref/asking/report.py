"""The report before a lab goes live: what its own references are worth, analyser by analyser.

Precision. Distinct cells of an analyser are asked as questions, each left out in turn: their references are found as a
query's are (`labref.asking.references.find`), so a cell is not its own reference, nor are its duplicates. Only classes
that people gave count: the questions are cells that a person reviewed, and of the eight references of a question those
that a person reviewed are called right or wrong. A reference that may be the very cell is called neither. The precision
of a question is the share that is right; a question none of whose references was reviewed is counted apart. Where
nobody reviewed a cell of the analyser, the same is made with the classes that the analyser gave; that says how well
both agree, and not how right either is.

Own against central against both. Where the bundle carries an atlas, the same questions are asked of the atlas alone,
and of both as a query is (`labref.asking.central`), whatever the lab's setting says. The class of a cell of the atlas
always counts: the central team gave it.

Sample. Of each class as many cells are asked as there are, up to an equal share of the sample; what a rare class does
not use is left to the others. The precision of a class is thus that of a random sample of it. Over all cells, each
class counts by how many cells it has; over classes, each counts alike. Cells are drawn by the seed and the analyser's
name, so the same lab gives the same report.

Intervals are Wilson's, 95 % (`labref.asking.agreement`). A class is too small to trust where its interval is wider than
0.2, or where it has so few cells that the eight references could not all be of it.

Novelty is that of a random sample of an analyser's cells, whatever their class. Recaptures and the judgements of
pictures are counted over all cells.

Twenty answers are drawn at random among the cells that may be asked, and the twenty worst are those of the questions
with the lowest precision, then with the smallest share of their own class among the nearest hundred.
"""

from __future__ import annotations

import functools
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from labref import __version__
from labref.asking import marks, references
from labref.asking.agreement import Figure, mean_share, share, weighted
from labref.asking.analysers import Telling
from labref.asking.answer import central_of, probability_by_label, withheld
from labref.asking.central import Central, fill
from labref.asking.drift import overview
from labref.asking.prediction import Prediction, predict
from labref.bundles.bundle import Bundle
from labref.export.layout import ClassNames, name_key
from labref.lab import Lab
from labref.progress import Pace, Row, Steps
from labref.store import Cell, Neighbour, PairCounts, QualityCounts, Store
from labref.store.memory.books import int_to_id
from labref.times import utc
from labref.words import LabelSource

__all__ = ["EXAMPLES", "REFERENCES", "SAMPLE", "SIX_OF_EIGHT", "WIDEST", "Called", "make", "without_names"]

SAMPLE: Final = 1000
"""Cells of an analyser that are asked, unless somebody wants more or fewer."""
REFERENCES: Final = 8
"""References of an answer."""
EXAMPLES: Final = 20
"""Answers that are drawn at random, and the number of the worst."""
WIDEST: Final = 0.2
"""The widest interval of a figure that can be trusted."""
SIX_OF_EIGHT: Final = 0.75
"""A class whose precision is surely below is called wrong."""
_NOVELTY_SAMPLE: Final = 300
_USUALLY_NOVEL: Final = 0.02  # twice what the p-value of 1 % leads to expect
_USUALLY_NO_CELL: Final = 0.05
_AT_ONCE: Final = 100  # cells that are read together


@dataclass(frozen=True, slots=True)
class _Tally:
    """Of the references of a question: how many have its class, and how many have a class that counts."""

    right: int
    counted: int

    @property
    def precision(self) -> float | None:
        """Share of the counted references that is right; None where none counts."""
        return self.right / self.counted if self.counted else None


@dataclass(frozen=True, slots=True)
class _Asked:
    """A cell that was asked, and what came of it. own : of the lab's own references.  central, both : of the atlas
    alone, and of both; None without an atlas.  among : share of its class among the nearest hundred."""

    cell: Cell
    found: references.Found
    prediction: Prediction
    own: _Tally
    central: _Tally | None
    both: _Tally | None
    among: float


def make(lab: Lab, store: Store, bundle: Bundle, *, sample: int = SAMPLE, seed: int = 1) -> Steps[Row]:
    """The report, as the JSON value that `labref.operations.report.LabReport` describes.

    sample : cells of each analyser that are asked, at most.  seed : of what is drawn. A question takes some hundredths
    of a second in a lab of up to 100,000 cells.
    """
    counts = store.analysers()
    analysers = sorted(counts, key=lambda name: (-counts[name], name or ""))
    optics = {row["analyser"]: row for row in overview(store, bundle)}
    pairs, pictures = store.duplicates.by_analyser(), store.qualities.by_analyser()
    carried = _carried(store)
    rows: list[Row] = []
    for number, analyser in enumerate(analysers):
        steps = _of_analyser(lab, store, bundle, analyser, _own(carried, analyser), sample, seed)
        row = yield from _within(steps, number, len(analysers))
        row |= {
            "optics": {name: optics[analyser][name] for name in ("median", "from_training", "drift", "warnings")},
            "recaptures": asdict(pairs.get(analyser, PairCounts())),
            "pictures": _pictures(pictures.get(analyser)),
        }
        rows.append(row | {"findings": _findings(row)})
    manifest = bundle.manifest
    totals = store.counts()
    return {
        "made_at": utc(datetime.now(UTC), timespec="seconds"),
        "version": __version__,
        "bundle": {"name": manifest.name, "version": manifest.version, "digest": bundle.digest},
        "atlas": bool(bundle.manifest.atlas),
        "atlas_shown": bool(bundle.manifest.atlas) and lab.config.atlas.enabled,
        "sample": sample,
        "seed": seed,
        "k": REFERENCES,
        "counts_only": False,
        "cells": totals.cells,
        "outcomes": {str(name): n for name, n in totals.outcomes.items()},
        "analysers": rows,
    }


@dataclass(frozen=True, slots=True)
class Called:
    """What the packs of a lab call it. lab : id of its own key.  optics : analyser → its pseudonym."""

    lab: str
    optics: Callable[[str | None], str]


def without_names(report: Row, known: Collection[str], called_by: Called | None = None) -> Row:
    """The numbers of a report alone: no picture, no cell, and no name that the lab gave. Analysers are numbered, and so
    are classes whose name is not among `known`, in the order of their name.

    called_by : with it the report carries what the lab's packs carry, so that the centre knows lab and analysers again.
    """
    keys = {name_key(name) for name in known}
    seen = {one["label"] for row in report["analysers"] for one in row["classes"]}
    seen |= {label for row in report["analysers"] for one in row["findings"] for label in one["labels"]}
    seen |= {one["instead"] for row in report["analysers"] for one in row["classes"] if one["instead"] is not None}
    strangers = sorted(label for label in seen if name_key(label) not in keys)
    called = {label: f"class {number}" for number, label in enumerate(strangers, 1)}

    def label_of(label: str | None) -> str | None:
        return None if label is None else called.get(label, label)

    def of_class(one: Row) -> Row:
        return one | {"label": label_of(one["label"]), "instead": label_of(one["instead"])}

    return report | {
        "counts_only": True,
        "lab": None if called_by is None else called_by.lab,
        "analysers": [
            row
            | {
                "analyser": f"analyser {number}",
                "pseudonym": None if called_by is None else called_by.optics(row["analyser"]),
                "classes": [of_class(one) for one in row["classes"]],
                "findings": [one | {"labels": [label_of(label) for label in one["labels"]]} for one in row["findings"]],
                "drawn": [],
                "worst": [],
            }
            for number, row in enumerate(report["analysers"], 1)
        ],
    }


# which cells are asked


@dataclass(frozen=True, slots=True)
class _Carried:
    """Every cell and what it carries. ids : uint64[n].  analysers : int32[n], index in `names`, -1 for none.  codes :
    int64[n], index in `values`."""

    ids: NDArray[np.uint64]
    analysers: NDArray[np.int32]
    names: Sequence[str]
    codes: NDArray[np.int64]
    values: Sequence[tuple[str, LabelSource]]
    distinct: NDArray[np.uint64]


def _carried(store: Store) -> _Carried:
    origins, book = store.origins(), store.label_book
    codes = book.codes_of(origins.ids)
    there = codes >= 0
    ids = origins.ids[there]
    return _Carried(
        ids, origins.analysers[there], origins.analyser_names, codes[there], list(book.values), store.groups.of(ids)
    )


def _own(carried: _Carried, analyser: str | None) -> _Carried:
    """Those of one analyser."""
    code = -1 if analyser is None else list(carried.names).index(analyser)
    chosen = carried.analysers == code
    return _Carried(
        carried.ids[chosen],
        carried.analysers[chosen],
        carried.names,
        carried.codes[chosen],
        carried.values,
        carried.distinct[chosen],
    )


def _first_of_each(cells: _Carried, chosen: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Places of the chosen cells, one capture of each physical cell."""
    (at,) = np.nonzero(chosen)
    return at[np.sort(np.unique(cells.distinct[at], return_index=True)[1])]


def _shares(sizes: Mapping[str, int], sample: int) -> dict[str, int]:
    """How many cells of each class are asked: all of a rare one, and of the others alike. sizes : of each class."""
    left, shares = sample, dict[str, int]()
    for number, (label, size) in enumerate(sorted(sizes.items(), key=lambda item: (item[1], item[0]))):
        shares[label] = min(size, left // (len(sizes) - number))
        left -= shares[label]
    return shares


# one analyser


def _within(steps: Steps[Row], number: int, total: int) -> Steps[Row]:
    """The steps of one analyser of several, as steps of the whole, in thousandths."""
    try:
        while True:
            done, of, text = next(steps)
            yield int(1000 * (number + done / max(of, 1))), 1000 * total, text
    except StopIteration as ended:
        row: Row = ended.value
        return row


def _of_analyser(
    lab: Lab, store: Store, bundle: Bundle, analyser: str | None, cells: _Carried, sample: int, seed: int
) -> Steps[Row]:
    rng = np.random.default_rng([seed, zlib.crc32((analyser or "").encode("utf-8", "surrogatepass"))])
    everyone = _first_of_each(cells, np.ones(len(cells.ids), np.bool_))
    basis, may, counts = _basis(cells)
    by_class: dict[str, list[int]] = {}
    for place in may.tolist():
        by_class.setdefault(cells.values[cells.codes[place]][0], []).append(place)
    shares = _shares({label: len(places) for label, places in by_class.items()}, sample)
    chosen: list[int] = []
    for label in sorted(by_class):
        chosen += rng.choice(by_class[label], shares[label], replace=False).tolist()
    pool = may if len(may) else everyone
    drawn = rng.choice(pool, min(EXAMPLES, len(pool)), replace=False).tolist()
    tried = rng.choice(everyone, min(_NOVELTY_SAMPLE, sample, len(everyone)), replace=False).tolist()

    wanted = list(dict.fromkeys([*chosen, *drawn]))
    names = ClassNames(bundle.manifest.labels, lab.config.watch.labels)
    asked: dict[int, _Asked] = {}
    total, pace = len(wanted) + len(tried), Pace()
    barred, show_same = withheld(lab, store), not lab.config.duplicates.withhold_possible
    central = central_of(lab, bundle)
    yield 0, total, "the references of cells are looked up"
    for done, (place, cell) in enumerate(_cells(store, cells, wanted)):
        answer = None if cell is None else _ask(store, bundle, cell, counts, barred, names, show_same, central)
        if answer is not None:
            asked[place] = answer
        if pace.due():
            yield done, total, "the references of cells are looked up"
    novel: list[marks.Marks] = []
    for done, (_, cell) in enumerate(_cells(store, cells, tried)):
        if cell is not None:
            novel += marks.found(store, bundle, [cell], names).values()
        if pace.due():
            yield len(wanted) + done, total, "cells are compared with all others"

    questions = [asked[place] for place in chosen if place in asked]
    sizes = {label: len(places) for label, places in by_class.items()}
    classes = [_class(label, size, questions) for label, size in sorted(sizes.items())]
    shown = [one for one in questions if one.prediction.shown]
    worst = sorted(
        (one for one in questions if one.own.right < one.own.counted),
        key=lambda one: (one.own.precision or 0.0, one.among, one.cell.cell_id),
    )
    given = {name_key(names.label(label)) for label, source in _held(cells) if source is not LabelSource.PREDICTED}
    return {
        "analyser": analyser,
        "cells": len(cells.ids),
        "distinct": len(everyone),
        "reviewed": len(_first_of_each(cells, _has_source(cells, (LabelSource.REVIEWED,)))),
        "basis": basis,
        "asked": len(questions),
        "not_counted": sum(not one.own.counted for one in questions),
        "without_latent": len(set(wanted)) - len(asked),
        **_over_classes(classes, "precision"),
        "central": None if central is None else _over_classes(classes, "central"),
        "both": None if central is None else _over_classes(classes, "both"),
        "classes": classes,
        "lacking": sorted(label for label in bundle.manifest.labels if name_key(names.label(label)) not in given),
        "prediction_shown": asdict(share(len(shown), len(questions))),
        "prediction_right": asdict(
            share(
                sum(_same(names.label(one.cell.label), names.label(one.prediction.label)) for one in shown), len(shown)
            )
        ),
        "novel": asdict(share(sum(one.is_novel for one in novel), len(novel))),
        "no_class": asdict(share(sum(one.no_class and not one.is_novel for one in novel), len(novel))),
        "drawn": [_example(asked[place]) for place in drawn if place in asked],
        "worst": [_example(one) for one in worst[:EXAMPLES]],
    }


def _held(cells: _Carried) -> Iterator[tuple[str, LabelSource]]:
    return (cells.values[code] for code in np.unique(cells.codes).tolist())


def _has_source(cells: _Carried, sources: Collection[LabelSource]) -> NDArray[np.bool_]:
    known = np.array([source in sources for _, source in cells.values] or [False], np.bool_)
    return known[cells.codes]


def _basis(cells: _Carried) -> tuple[str | None, NDArray[np.intp], frozenset[str]]:
    """Whose classes count, the cells that may be asked, and the sources of the references that count."""
    for basis, sources in (
        ("reviewed", (LabelSource.REVIEWED,)),
        ("analyser", (LabelSource.REVIEWED, LabelSource.ANALYSER)),
    ):
        may = _first_of_each(cells, _has_source(cells, sources))
        if len(may):
            return basis, may, frozenset(map(str, sources))
    return None, np.empty(0, np.intp), frozenset()


def _cells(store: Store, cells: _Carried, places: Sequence[int]) -> Iterator[tuple[int, Cell | None]]:
    """The cells at these places, in order; None for one that is no longer there."""
    for start in range(0, len(places), _AT_ONCE):
        some = places[start : start + _AT_ONCE]
        ids = [int_to_id(number) for number in cells.ids[some].tolist()]
        found = store.cells(ids)
        for place, cell_id in zip(some, ids, strict=True):
            yield place, found.get(cell_id)


def _ask(
    store: Store,
    bundle: Bundle,
    cell: Cell,
    counts: Collection[str],
    barred: Collection[str],
    names: ClassNames,
    show_same: bool,
    central: Central | None,
) -> _Asked | None:
    """The lab's own references of a cell, and those with an atlas; None where it has no latent of the bundle in
    use."""
    embedding = store.embedding(cell.cell_id, bundle=bundle.digest)
    if embedding is None:
        return None
    latent, probabilities = embedding
    by_label = probability_by_label(bundle, probabilities)
    measures = functools.cache(lambda: store.optics.of(cell.cell_id))
    found = references.find(
        store,
        bundle=bundle,
        latent=latent,
        digest=cell.digest,
        stored=cell,
        k=REFERENCES,
        telling=Telling(measures=measures),
        withheld=barred,
        show_same=show_same,
        probabilities=by_label,
        placed=False,
    )
    predicted = max(by_label.items(), key=lambda item: item[1])
    own = {
        one.cell_id: _same(one.label, cell.label) if one.label_source in counts and not one.may_be_same else None
        for one in found.references
    }
    alone, both = (None, None) if central is None else _with_atlas(store, central, cell, found, latent, by_label, own)
    return _Asked(
        cell,
        found,
        predict(store, bundle, predicted, found, names, measures),
        _tally(own.values()),
        alone,
        both,
        sum(weight for label, weight in found.distribution.weights.items() if _same(label, cell.label)),
    )


def _with_atlas(
    store: Store,
    central: Central,
    cell: Cell,
    found: references.Found,
    latent: NDArray[np.float32],
    probabilities: Mapping[str, float],
    own: Mapping[str, bool | None],
) -> tuple[_Tally, _Tally]:
    """What the references of the atlas alone are, and those of both. own : whether each of the lab's own references is
    right; None where its class does not count."""
    nearest = np.argsort(central.atlas.distances(latent), kind="stable")[:REFERENCES]
    both = fill(
        store,
        central,
        latent,
        own=[Neighbour(one.cell_id, one.distance) for one in found.references],
        labels={one.label for one in found.references},
        probabilities=probabilities,
        k=REFERENCES,
        analyser=found.optics.analyser if found.optics.only else None,
    )
    return (
        _tally(_same(label, cell.label) for label in central.labels[nearest].tolist()),
        _tally(
            own[one.cell_id] if one.cell_id in own else _same(central.label(one.cell_id), cell.label) for one in both
        ),
    )


def _tally(right: Iterable[bool | None]) -> _Tally:
    """right : of each reference; None where its class does not count."""
    counted = [one for one in right if one is not None]
    return _Tally(sum(counted), len(counted))


def _same(one: str, other: str) -> bool:
    return name_key(one) == name_key(other)


def _class(label: str, size: int, questions: Sequence[_Asked]) -> dict[str, Any]:
    """What is told of a class. size : distinct cells that may be asked."""
    own = [one for one in questions if one.cell.label == label]
    precision = _mean_precision(one.own for one in own)
    with_atlas = {
        which: None if not own or tallies[0] is None else asdict(_mean_precision(tallies))
        for which, tallies in (("central", [one.central for one in own]), ("both", [one.both for one in own]))
    }
    others = Counter(
        reference.label for one in own for reference in one.found.references if not _same(reference.label, label)
    )
    instead = min(others.items(), key=lambda item: (-item[1], item[0]), default=None)
    return {
        "label": label,
        "cells": size,
        "asked": len(own),
        "precision": asdict(precision),
        **with_atlas,
        "best": min(1.0, (size - 1) / REFERENCES),
        "enough": size > REFERENCES and _width(precision) <= WIDEST,
        "instead": None if instead is None else instead[0],
        "instead_share": 0.0 if instead is None else instead[1] / sum(len(one.found.references) for one in own),
    }


def _mean_precision(tallies: Iterable[_Tally | None]) -> Figure:
    """The mean over the questions that have a reference that counts."""
    return mean_share([value for one in tallies if one is not None and (value := one.precision) is not None])


def _over_classes(classes: Sequence[Mapping[str, Any]], figure: str) -> Row:
    """A figure of the classes, over cells and over classes."""
    figures = [(float(row["cells"]), Figure(**row[figure])) for row in classes if row[figure] is not None]
    return {
        "precision": asdict(weighted(figures)),
        "precision_of_classes": asdict(weighted([(1.0, one) for _, one in figures])),
    }


def _width(figure: Figure) -> float:
    return 1.0 if figure.low is None or figure.high is None else figure.high - figure.low


def _pictures(counts: QualityCounts | None) -> Row:
    if counts is None:
        return {"judged": 0, "no_cell": asdict(share(0, 0)), "reasons": {}, "waiting": 0}
    return {
        "judged": counts.judged,
        "no_cell": asdict(share(counts.no_cell, counts.judged)),
        "reasons": {str(reason): n for reason, n in counts.reasons.items()},
        "waiting": counts.waiting,
    }


def _example(one: _Asked) -> Row:
    """An answer that is shown. No slide and no file is named."""
    return {
        **_plain(one.cell.cell_id, one.cell.label, str(one.cell.label_source), one.cell.captured_at),
        "right": one.own.right,
        "counted": one.own.counted,
        "is_novel": one.found.novelty.is_novel,
        "no_class": one.found.novelty.no_class,
        "predicted": one.prediction.label,
        "probability": one.prediction.probability,
        "because": one.prediction.because,
        "references": [
            {
                "cell_id": reference.cell_id,
                "label": reference.label,
                "label_source": reference.label_source,
                "captured_at": reference.captured_at,
                "distance": reference.distance,
                "right": _same(reference.label, one.cell.label),
            }
            for reference in one.found.references
        ],
    }


def _plain(cell_id: str, label: str, source: str, captured_at: datetime | None) -> Row:
    return {
        "cell_id": cell_id,
        "label": label,
        "label_source": source,
        "captured_at": None if captured_at is None else utc(captured_at),
    }


def _findings(row: Row) -> list[Row]:
    """What speaks against going live ("settle"), and what should be known ("know"), the gravest first."""
    found: list[Row] = []

    def say(level: str, what: str, n: int = 0, labels: Sequence[str] = ()) -> None:
        found.append({"level": level, "what": what, "n": n, "labels": list(labels)})

    if row["basis"] != "reviewed":
        say("settle", "nothing reviewed", row["distinct"])
    if row["without_latent"]:
        say("settle", "not embedded", row["without_latent"])
    classes = row["classes"]
    wrong = [one["label"] for one in classes if one["best"] == 1.0 and (one["precision"]["high"] or 1.0) < SIX_OF_EIGHT]
    if wrong:
        say("settle", "wrong classes", len(wrong), wrong)
    for than in ("training", "past"):
        off = [one["measure"] for one in row["optics"]["warnings"] if one["than"] == than]
        if off:
            say("settle" if than == "training" else "know", f"optics {than}", len(off))
    if (row["novel"]["low"] or 0.0) > _USUALLY_NOVEL:
        say("know", "many novel", round(row["novel"]["value"] * row["novel"]["n"]))
    if (row["pictures"]["no_cell"]["low"] or 0.0) > _USUALLY_NO_CELL:
        say("know", "many no cell", round(row["pictures"]["no_cell"]["value"] * row["pictures"]["no_cell"]["n"]))
    small = [one["label"] for one in classes if not one["enough"] and one["label"] not in wrong]
    if small:
        say("know", "small classes", len(small), small)
    if row["lacking"]:
        say("know", "lacking classes", len(row["lacking"]), row["lacking"])
    if row["recaptures"]["possible"]:
        say("know", "possible recaptures", row["recaptures"]["possible"])
    if row["pictures"]["waiting"]:
        say("know", "doubted pictures", row["pictures"]["waiting"])
    return found
