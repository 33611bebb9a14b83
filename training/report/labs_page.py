"""The page that compares bundles over labs: what `training.report.labs` found, drawn, worst first; no image and no name
of a cell is in it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from labref.asking.agreement import Figure
from labref.asking.report import REFERENCES, SIX_OF_EIGHT, WIDEST
from labref.cells.optics import DRIFT, FROM_TRAINING
from training.report.blocks import TEMPLATES, Block, More, Section, Table, Text
from training.report.charts import Axis, Chart, Column, Line, Point, columns, forest, scatter
from training.report.labs import AnalyserFigures, Change, ClassFigure, Comparison
from training.report.received import Gathered

__all__ = ["as_page"]

_WORST: Final = 15  # lines of what fails, without those that fail beyond chance
_OPEN: Final = 60  # lines of a drawing that are shown at once
_NAMED: Final = 30  # points in the plane that are named
_NOVEL: Final = 0.02  # twice what the p-value of 1 % leads to expect, as a lab's report has it
_NO_CELL: Final = 0.05
_SHARES: Final = Axis(
    0.0,
    1.0,
    [(value, f"{value:.0%}") for value in (0.0, 0.25, 0.5, 0.75, 1.0)],
    limit=(SIX_OF_EIGHT, f"six of {REFERENCES} references"),
)


def as_page(found: Comparison, gathered: Gathered, *, names: bool = False) -> str:
    """The page as HTML. names : labs are called as the centre's folders and files call them, too."""
    number = {bundle.letter: place for place, bundle in enumerate(found.bundles)}
    pen = _Pen(number, names)
    days = sorted(one.made.made_at[:10] for one in gathered.taken)
    labs = len({row.lab for row in found.rows} | {one.lab for one in gathered.taken})
    head: list[Block] = [
        Text(
            f"{_many(len(gathered.taken), 'report')} of {_many(labs, 'lab')}, made from {days[0]} to {days[-1]}: numbers alone. Precision is the "
            f"share of a cell’s {REFERENCES} references that have its class, in its own lab, where people gave the classes."
        ),
        Text(
            "Each bundle has a letter, a mark and a colour. A line through a mark is its 95 % interval. Grey and hollow: too few "
            f"cells to trust it. The dashed line: six of {REFERENCES}; what is surely below fails.",
            "small",
        ),
    ]
    sections = [
        Section("bundles", "Bundles", _bundles(found, pen)),
        Section("fails", "Where a bundle fails, worst first", _fails(found, pen)),
        Section("changes", "What changed from bundle to bundle in the same lab", _changes(found, pen)),
        Section("labs", "Each analyser", _analysers(found, pen)),
        Section("classes", "Classes", _classes(found, pen)),
        Section("optics", "Optics", _optics(found, pen)),
        Section("condition", "Drift, novelty and pictures that are no cell", _condition(found, pen)),
        Section("left", "What is not in it", _left(gathered)),
    ]
    return TEMPLATES.get_template("labs.html").render(labs=labs, head=head, sections=sections)


class _Pen:
    """How the page writes: which number a bundle has, and whether labs are named."""

    def __init__(self, numbers: dict[str, int], names: bool) -> None:
        self._numbers, self._names = numbers, names

    def bundle(self, letter: str) -> tuple[str, int]:
        return letter, self._numbers[letter]

    def analyser(self, row: AnalyserFigures | Change) -> str:
        return f"{row.named}: {row.optics}" if self._names and row.named else row.optics


def _many(n: int, what: str) -> str:
    more = f"{what[:-1]}ies" if what.endswith("y") else f"{what}es" if what.endswith("s") else f"{what}s"
    return f"{n:,} {what if n == 1 else more}"


def _share(figure: Figure) -> str:
    if figure.value is None or figure.low is None or figure.high is None:
        return "nothing to measure"
    return f"{figure.value:.1%} ({figure.low:.0%} to {figure.high:.0%})"


def _points(figure: Figure) -> str:
    """A difference in points of per cent."""
    if figure.value is None or figure.low is None or figure.high is None:
        return "nothing to measure"
    return f"{100 * figure.value:+.1f} ({100 * figure.low:+.1f} to {100 * figure.high:+.1f}) points".replace("-", "−")


def _estimate(figure: Figure) -> str:
    """For a table, whose interval goes below the value."""
    if figure.value is None or figure.low is None or figure.high is None:
        return "–"
    return f"{figure.value:.4f} ({figure.low:.4f} to {figure.high:.4f})"


def _drawn(title: str, told: str, lines: Sequence[Line], axis: Axis = _SHARES) -> list[Block]:
    """A drawing, its end where it is long, and the same as a table."""
    if not lines:
        return []
    table = Table(
        title,
        ["", "bundle", "value", "n", ""],
        [
            (
                line.label,
                "" if line.bundle is None else line.bundle[0],
                "–" if line.figure is None else _estimate(line.figure),
                "–" if line.figure is None else line.figure.n,
                line.said,
            )
            for line in lines
        ],
    )
    blocks: list[Block] = [forest(title, told, lines[:_OPEN], axis)]
    if len(lines) > _OPEN:
        blocks.append(More(f"the other {len(lines) - _OPEN} lines", [forest(title, told, lines[_OPEN:], axis)]))
    return [*blocks, More("these figures as a table", [table])]


def _bundles(found: Comparison, pen: _Pen) -> list[Block]:
    lines = [
        Line(
            label=f"{one.name} {one.version}".strip(),
            bundle=pen.bundle(one.letter),
            figure=one.precision_of_classes,
            said=(
                f"{_share(one.precision_of_classes)}, {_many(one.labs, 'lab')}, {one.reviewed} of {_many(one.analysers, 'analyser')}"
                if one.reviewed
                else f"nobody reviewed a cell; {_many(one.labs, 'lab')}"
            ),
            others=[
                (row.precision_of_classes.value or 0.0, row.enough)
                for row in found.rows
                if row.bundle == one.letter and row.reviewed
            ],
        )
        for one in found.bundles
    ]
    rows = [
        (
            f"{one.letter}: {one.name} {one.version}".strip(),
            one.digest[:12],
            one.labs,
            f"{one.reviewed} of {one.analysers}",
            f"{one.asked:,}",
            _estimate(one.precision),
            _estimate(one.precision_of_classes),
            _estimate(one.novel),
            f"{one.fails} ({one.too_few} too few)",
        )
        for one in found.bundles
    ]
    head = [
        "bundle", "digest", "labs", "analysers reviewed", "cells asked", "precision over cells", "… over classes",
        "nothing resembles it", "classes that fail",
    ]  # fmt: skip
    text = (
        "Precision over classes, the mean of the analysers where people reviewed cells, each alike; a stroke is one of them. "
        "Two bundles that are not in the same labs do not compare by it: see what changed in the same lab."
    )
    told = "; ".join(f"{line.bundle[0] if line.bundle else ''} {line.label}: {line.said}" for line in lines)
    return [
        Text(text),
        forest("Precision over classes of each bundle", told, lines, _SHARES),
        Table("Bundles, in the order in which labs reported them first", head, rows),
    ]


def _fails(found: Comparison, pen: _Pen) -> list[Block]:
    blocks: list[Block] = []
    for bundle in reversed(found.bundles):
        pairs = [
            (row, one) for row in found.rows if row.bundle == bundle.letter and row.reviewed for one in row.classes
        ]
        told = [(row, one) for row, one in pairs if one.precision.value is not None]
        failing = sorted((pair for pair in told if pair[1].fails), key=lambda pair: pair[1].precision.high or 0)
        others = sorted(
            (pair for pair in told if pair[1].enough and not pair[1].fails),
            key=lambda pair: pair[1].precision.value or 0,
        )
        few = sorted(
            (p for p in told if not p[1].enough and not p[1].fails), key=lambda pair: pair[1].precision.value or 0
        )
        shown = [*failing, *others[: max(_WORST - len(failing), 0)]]
        blocks.append(Text(f"{bundle.letter}: {bundle.name} {bundle.version}", "heading"))
        if not told:
            blocks.append(Text("Nobody reviewed a cell in a lab with this bundle: where it fails is not known."))
            continue
        what = (
            f"{_many(len(failing), 'class')} of an analyser {'fails' if len(failing) == 1 else 'fail'}: fewer than six of {REFERENCES} references are of it, beyond chance."
            if failing
            else "No class of an analyser fails beyond chance."
        )
        blocks.append(Text(f"{what} {_few_said(few)}"))
        blocks += _drawn(f"The worst classes of {bundle.letter}", what, [_worst(row, one, pen) for row, one in shown])
        if few:
            lines = [_worst(row, one, pen) for row, one in few]
            blocks.append(
                More(
                    f"{_many(len(few), 'class')} with too few cells",
                    _drawn(f"Too few cells, {bundle.letter}", what, lines),
                )
            )
    return blocks


def _few_said(few: Sequence[tuple[AnalyserFigures, ClassFigure]]) -> str:
    return (
        f"Of {len(few)} more there are too few cells to tell."
        if few
        else "Of every class there are cells enough to tell."
    )


def _worst(row: AnalyserFigures, one: ClassFigure, pen: _Pen) -> Line:
    said = f"{_share(one.precision)}, n = {one.precision.n}"
    if one.fails:
        said += ", fails"
    elif not one.enough:
        said += ", too few"
    if one.instead is not None and (one.precision.value or 0) < 1:
        said += f"; {one.instead} {one.instead_share:.0%}"
    label = f"{one.label} of its own" if one.own else one.label
    # the class first: a long name of a lab is cut off
    return Line(
        f"{label}: {pen.analyser(row)}", pen.bundle(row.bundle), one.precision, said, not one.enough and not one.fails
    )


def _changes(found: Comparison, pen: _Pen) -> list[Block]:
    blocks: list[Block] = []
    if found.not_paired:
        blocks.append(
            Text(
                f"Not compared, as their analysers are only numbered, by how many cells they have: {', '.join(found.not_paired)}. "
                "A lab with a key of its own (labref key own) gives each a pseudonym that stays.",
                "warning",
            )
        )
    if not found.changes:
        return [*blocks, Text("No analyser was reported with two bundles yet.")]
    title = {bundle.letter: f"{bundle.letter} ({bundle.name} {bundle.version})" for bundle in found.bundles}
    for step in found.changes:
        half = max(
            (
                abs(end)
                for one in (*step.analysers, *step.classes)
                for end in (one.difference.low, one.difference.high)
                if end is not None
            ),
            default=0.1,
        )
        reach = next((reach for reach in (0.1, 0.2, 0.5, 1.0) if half <= reach), 1.0)
        axis = Axis(
            -reach,
            reach,
            [
                (value, f"{100 * value:+.0f}".replace("-", "−").replace("+0", "0"))
                for value in (-reach, -reach / 2, 0.0, reach / 2, reach)
            ],
            zero=0.0,
        )
        chance = "" if step.p is None else f" (sign test p = {step.p:.2g})"
        what = (
            f"From {title[step.before]} to {title[step.after]}: {_points(step.mean)} over {_many(step.mean.n, 'analyser')}, better in "
            f"{step.better}, worse in {step.worse}{chance}."
        )
        blocks.append(Text(f"From {step.before} to {step.after}", "heading"))
        blocks.append(Text(what))
        whole = Line("all, the mean", pen.bundle(step.after), step.mean, f"{_points(step.mean)}{_way(step.mean)}")
        for name, changes in (("analyser", step.analysers), ("class", step.classes)):
            lines = [
                Line(
                    pen.analyser(one) if one.label is None else f"{one.label}, {one.optics}",
                    pen.bundle(step.after),
                    one.difference,
                    f"{_points(one.difference)}{_way(one.difference)}",
                    (one.difference.high or 0) - (one.difference.low or 0) > 2 * WIDEST,
                )
                for one in changes
            ]
            blocks += _drawn(
                f"From {step.before} to {step.after}, by {name}",
                what,
                [*lines, *([whole] if name == "analyser" else [])],
                axis,
            )
    blocks.append(
        Text(
            "Precision over classes after, minus before, of the same analyser. Intervals are Newcombe’s (1998), which take the two "
            "figures for independent: where the same cells were asked they are wider than need be. Cells and labels may have come in between.",
            "small",
        )
    )
    return blocks


def _way(figure: Figure) -> str:
    """What an interval beside 0 says."""
    if figure.low is not None and figure.low > 0:
        return " ▲ better"
    return " ▼ worse" if figure.high is not None and figure.high < 0 else ""


def _analysers(found: Comparison, pen: _Pen) -> list[Block]:
    lines = []
    for row in found.rows:
        name = pen.analyser(row)
        if not row.reviewed:
            said = "not known: nobody reviewed a cell" if row.basis != "reviewed" else "nothing to measure"
            lines.append(Line(name, pen.bundle(row.bundle), None, said, grey=True))
            continue
        few = "" if row.enough else ", too few"
        said = f"{_share(row.precision_of_classes)}, n = {row.precision_of_classes.n}{few}"
        others = [(one.precision.value or 0.0, one.enough) for one in row.classes if one.precision.value is not None]
        lines.append(Line(name, pen.bundle(row.bundle), row.precision_of_classes, said, not row.enough, others))
    lines = _together(lines)
    text = "Precision over classes of each analyser, the worst first; a stroke is a class."
    told = f"{_many(len(lines), 'line')}, the worst first"
    return [Text(text), *_drawn("Precision over classes of each analyser", told, lines)]


def _together(lines: Iterable[Line]) -> list[Line]:
    """The lines of one analyser below each other, the analyser with the lowest last value first; those without a value
    at the end."""
    groups: dict[str, list[Line]] = {}
    for line in lines:
        groups.setdefault(line.label, []).append(line)

    def rank(group: list[Line]) -> tuple[bool, float]:
        values = [line.figure.value for line in group if line.figure is not None and line.figure.value is not None]
        return not values, values[-1] if values else 0.0

    return [line for group in sorted(groups.values(), key=rank) for line in group]


def _classes(found: Comparison, pen: _Pen) -> list[Block]:
    lines = [
        Line(
            one.label,
            pen.bundle(one.bundle),
            one.precision,
            f"{_share(one.precision)}, {_many(one.analysers, 'analyser')}, n = {one.precision.n}{'' if one.enough else ', too few'}",
            not one.enough,
            one.of_each,
        )
        for one in found.classes
    ]
    if not lines:
        return [Text("No class has a figure yet.")]
    text = (
        "The mean over analysers, each alike; a stroke is one of them, a pale one has too few cells. Classes that only one lab "
        "knows are not here, and bundles that are in different labs do not compare by it."
    )
    return [Text(text), *_drawn("Precision of each class", f"{_many(len(lines), 'line')}, the worst first", lines)]


def _optics(found: Comparison, pen: _Pen) -> list[Block]:
    lines = [
        Line(
            {"as trained on": "as trained on", "off": f"off by {FROM_TRAINING:g} or more", "not told": "not told"}[
                one.optics
            ],
            pen.bundle(one.bundle),
            one.precision_of_classes,
            f"{_share(one.precision_of_classes)}, {_many(one.analysers, 'analyser')}{'' if one.enough else ', too few'}"
            if one.analysers
            else "nobody reviewed a cell",
            not one.enough,
        )
        for one in found.optics
    ]
    rows = [row for row in found.rows if row.reviewed and row.from_training is not None]
    points = [
        Point(
            abs(row.from_training.by),
            row.precision_of_classes,
            pen.bundle(row.bundle),
            f"{row.bundle} {pen.analyser(row)}" if len(rows) <= _NAMED else "",
            not row.enough,
        )
        for row in rows
        if row.from_training is not None
    ]
    text = (
        "Background, focus and stain of an analyser’s cells against those that its bundle was trained on: the measure that is "
        f"farthest off, in robust standard deviations of single cells. From {FROM_TRAINING:g} on labref withholds the networks’ class."
    )
    blocks: list[Block] = [Text(text), *_drawn("Precision by optics", "the mean over analysers of each kind", lines)]
    if points:
        most = max(4.0, *(point.x for point in points))
        step = max(1, round(most / 6))
        across = Axis(
            0.0, most, [(value, f"{value}") for value in range(0, int(most) + 1, step)], limit=(FROM_TRAINING, "off")
        )
        told = "; ".join(f"{point.label} {point.x:.1f}: {_share(point.y)}" for point in points[:_NAMED])
        blocks.insert(
            1,
            scatter(
                "Precision and distance from the training",
                told,
                points,
                across,
                "precision over classes",
                "robust standard deviations off the cells trained on",
            ),
        )
    return blocks


def _condition(found: Comparison, pen: _Pen) -> list[Block]:
    shares = [
        figure.value
        for row in found.rows
        for figure in (row.novel, row.no_class, row.no_cell)
        if figure.value is not None
    ]
    shifts = [abs(shift.by) for row in found.rows for shift in (row.from_training, row.drift) if shift is not None]
    most, far = max([0.1, *shares]), max([4.0, *shifts])
    heads = [
        Column("nothing resembles it", most, _NOVEL, lambda value: f"{value:.1%}"),
        Column("no class does", most, None, lambda value: f"{value:.1%}"),
        Column("no cell", most, _NO_CELL, lambda value: f"{value:.1%}"),
        Column("drift since before", far, DRIFT, _signed),
        Column("off the training", far, FROM_TRAINING, _signed),
    ]

    def of(row: AnalyserFigures) -> list[Figure | None]:
        told = [None if shift is None else Figure(shift.by, None, None, 1) for shift in (row.drift, row.from_training)]
        return [row.novel, row.no_class, row.no_cell, *told]

    rows = [(pen.analyser(row), pen.bundle(row.bundle), of(row)) for row in found.rows]
    table = Table(
        "Drift, novelty and pictures that are no cell",
        [
            "",
            "bundle",
            "nothing resembles it",
            "no class resembles it",
            "no cell",
            "drift since before",
            "off the training",
        ],
        [
            (
                pen.analyser(row),
                row.bundle,
                *(_estimate(figure) for figure in (row.novel, row.no_class, row.no_cell)),
                *(
                    "–" if shift is None else f"{shift.by:+.2f} {shift.measure}"
                    for shift in (row.drift, row.from_training)
                ),
            )
            for row in found.rows
        ],
    )
    if not rows:
        return [Text("No report has an analyser.")]
    beyond = "A dark bar with ! is beyond the dashed line, shares beyond chance."
    text = (
        "Shares of cells that nothing in their lab resembles, that no class does, and of pictures that are no cell; and how far "
        f"background, focus and stain are off: the farthest measure, in robust standard deviations. {beyond}"
    )
    drawings: list[Block] = [_condition_chart(heads, rows[:_OPEN])]
    if len(rows) > _OPEN:
        drawings.append(More(f"the other {len(rows) - _OPEN} lines", [_condition_chart(heads, rows[_OPEN:])]))
    return [Text(text), *drawings, More("these figures as a table", [table])]


def _signed(value: float) -> str:
    return f"{value:+.1f}".replace("-", "−")


def _condition_chart(
    heads: Sequence[Column], rows: Sequence[tuple[str, tuple[str, int], Sequence[Figure | None]]]
) -> Chart:
    return columns("Drift, novelty and pictures that are no cell", f"{_many(len(rows), 'line')}, by lab", heads, rows)


def _left(gathered: Gathered) -> list[Block]:
    blocks: list[Block] = [Text(note.replace("`", ""), "warning") for note in gathered.notes]
    why: dict[str, int] = {}
    for one in gathered.left_out:
        why[one.why] = why.get(one.why, 0) + 1
    if why:
        blocks.append(
            Table(
                "Files that do not count",
                ["why", "files"],
                [(text.replace("`", ""), n) for text, n in sorted(why.items())],
            )
        )
    return blocks or [Text("All files count.")]
