"""Drawings of figures with their intervals, as SVG that stands in a page: no script, and no colour that says something
alone. `training/report/templates/charts.html` writes them."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

import scipy  # its parts load when they are first used

from labref.asking.agreement import Figure

__all__ = ["Axis", "Chart", "Column", "Line", "Point", "columns", "forest", "scatter"]

_LINE: Final = 22  # px of one line
_TOP: Final = 26
_LABEL: Final = 310
_PLOT: Final = 380
_TEXT: Final = 440
_WIDTH: Final = _LABEL + _PLOT + _TEXT
_ROOM: Final = 288  # px of a label, before the letter of its bundle; the whole is its title
_CHANCE: Final = 0.025
_SHAPES: Final = ("circle", "square", "triangle", "diamond", "upside", "cross")


@dataclass(frozen=True)
class Axis:
    """What is drawn along the width. ticks : (value, text).  limit : a value that parts good from bad, and what it is;
    None for none.  zero : a value that gets a line; None for none."""

    low: float
    high: float
    ticks: Sequence[tuple[float, str]]
    limit: tuple[float, str] | None = None
    zero: float | None = None

    def at(self, value: float) -> float:
        """Its place, px; at the end of the axis where it lies beyond."""
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return round(_LABEL + 10 + share * (_PLOT - 20), 1)


@dataclass(frozen=True)
class Line:
    """A line of a drawing. bundle : its letter, and its number, which has a shape and a colour of its own; None for
    none.  figure : with its interval; None where nothing is to be drawn.  grey : too few cells to trust it.  others :
    what it is the mean of, and whether each can be trusted.  said : beside it, in words."""

    label: str
    bundle: tuple[str, int] | None
    figure: Figure | None
    said: str
    grey: bool = False
    others: Sequence[tuple[float, bool]] = ()


@dataclass(frozen=True)
class Point:
    """A point in the plane. y : with its interval."""

    x: float
    y: Figure
    bundle: tuple[str, int]
    label: str
    grey: bool = False


@dataclass(frozen=True)
class Column:
    """A narrow column of bars. high : the value at its right end.  limit : beyond which a bar is called out."""

    title: str
    high: float
    limit: float | None
    said: Callable[[float], str]


@dataclass(frozen=True)
class _Shape:
    """An element of SVG. tip : what is told of it where somebody points at it."""

    tag: str
    attributes: dict[str, Any]
    text: str = ""
    tip: str = ""


@dataclass(frozen=True)
class Chart:
    """A drawing. title, told : what it is and what it shows, for who cannot see it."""

    kind: ClassVar[str] = "chart"
    title: str
    told: str
    width: float
    height: float
    shapes: list[_Shape] = field(default_factory=list)

    def add(self, tag: str, text: str = "", tip: str = "", **attributes: Any) -> None:
        """Draw something. attributes : of SVG; a `_` at the end is left out, and others are hyphens."""
        named = {name.rstrip("_").replace("_", "-"): value for name, value in attributes.items()}
        self.shapes.append(_Shape(tag, named, text, tip))


def forest(title: str, told: str, lines: Sequence[Line], axis: Axis) -> Chart:
    """Figures below each other, each with its interval."""
    chart = Chart(title, told, _WIDTH, _TOP + _LINE * len(lines) + 10)
    bottom = chart.height - 8
    for value, text in axis.ticks:
        chart.add("line", x1=axis.at(value), x2=axis.at(value), y1=_TOP - 6, y2=bottom, class_="grid")
        chart.add("text", text, x=axis.at(value), y=_TOP - 11, class_="tick")
    if axis.zero is not None:
        chart.add("line", x1=axis.at(axis.zero), x2=axis.at(axis.zero), y1=_TOP - 6, y2=bottom, class_="zero")
    if axis.limit is not None:
        at = axis.at(axis.limit[0])
        chart.add("line", tip=axis.limit[1], x1=at, x2=at, y1=_TOP - 6, y2=bottom, class_="limit")
    before = None
    for number, line in enumerate(lines):
        y = _TOP + _LINE * number + _LINE / 2
        if line.label != before:
            if number:
                chart.add("line", x1=0, x2=_WIDTH, y1=y - _LINE / 2, y2=y - _LINE / 2, class_="part")
            _label(chart, line.label, y)
            before = line.label
        if line.figure is not None and line.figure.value is not None:
            for value, trusted in line.others:
                chart.add(
                    "line",
                    x1=axis.at(value),
                    x2=axis.at(value),
                    y1=y - 6,
                    y2=y + 6,
                    class_="one" if trusted else "one few",
                )
            _mark(chart, line, axis, y)
        if line.bundle is not None:
            chart.add("text", line.bundle[0], x=_LABEL - 6, y=y + 4, class_="letter" + _few(line.grey))
        chart.add("text", line.said, x=_LABEL + _PLOT + 6, y=y + 4, class_="said" + _few(line.grey))
    return chart


def scatter(title: str, told: str, points: Sequence[Point], across: Axis, y_title: str, x_title: str) -> Chart:
    """Points in the plane, up to 1, each with its interval; named where there is room, else where somebody points."""
    height = 330
    floor = 0.25 * int(4 * min((one.y.low or 0.0 for one in points), default=0.0))
    rows = [floor + step * (1 - floor) / 4 for step in range(5)]
    named: list[tuple[float, float, float]] = []
    chart = Chart(title, told, _WIDTH, height)
    left, top, bottom = 60, 20, height - 46
    width = _WIDTH - left - 240

    def x_of(value: float) -> float:
        return round(
            left + (min(max(value, across.low), across.high) - across.low) / (across.high - across.low) * width, 1
        )

    def y_of(value: float) -> float:
        return round(bottom - (value - floor) / (1 - floor) * (bottom - top), 1)

    for value in rows:
        chart.add("line", x1=left, x2=left + width, y1=y_of(value), y2=y_of(value), class_="grid")
        chart.add("text", f"{100 * value:g}%", x=left - 8, y=y_of(value) + 4, class_="letter few")
    for value, text in across.ticks:
        chart.add("line", x1=x_of(value), x2=x_of(value), y1=bottom, y2=bottom + 5, class_="zero")
        chart.add("text", text, x=x_of(value), y=bottom + 18, class_="tick")
    chart.add("text", x_title, x=left + width / 2, y=height - 8, class_="tick")
    chart.add("text", y_title, x=left, y=12, class_="said few")
    if across.limit is not None:
        at = x_of(across.limit[0])
        chart.add("line", x1=at, x2=at, y1=top, y2=bottom, class_="limit")
        chart.add("text", across.limit[1], x=at + 5, y=bottom - 6, class_="said few")
    for point in points:
        if point.y.value is None or point.y.low is None or point.y.high is None:
            continue
        x, kind = x_of(point.x), _kind(point.bundle, point.grey)
        chart.add("line", x1=x, x2=x, y1=y_of(point.y.low), y2=y_of(point.y.high), class_=f"whisker {kind}")
        _shape(chart, point.bundle[1], x, y_of(point.y.value), kind, point.label)
        y, end = y_of(point.y.value), x + 9 + 7.5 * len(point.label)
        if all(abs(y - other) > 13 or end < left_ or x > right for other, left_, right in named):
            chart.add("text", point.label, x=x + 9, y=y + 4, class_="said" + _few(point.grey))
            named.append((y, x, end))
    return chart


def columns(
    title: str, told: str, heads: Sequence[Column], rows: Sequence[tuple[str, tuple[str, int], Sequence[Figure | None]]]
) -> Chart:
    """Bars in narrow columns, a line for each of `rows`: its name, its bundle, and a figure for each column; an
    interval is drawn where it has one."""
    chart = Chart(title, told, _WIDTH, _TOP + 16 + _LINE * len(rows) + 6)
    step = (_WIDTH - _LABEL) / len(heads)
    for number, head in enumerate(heads):
        left = _LABEL + 8 + number * step
        chart.add("text", head.title, x=left, y=16, class_="head")
        for row, (_, _, figures) in enumerate(rows):
            _bar(chart, head, figures[number], left, step, _TOP + 16 + _LINE * row + _LINE / 2)
        if head.limit is not None:
            at = round(left + _share(head.limit, head.high) * (step - 84), 1)
            chart.add("line", x1=at, x2=at, y1=_TOP, y2=chart.height - 6, class_="limit")
    before = None
    for row, (name, bundle, _) in enumerate(rows):
        y = _TOP + 16 + _LINE * row + _LINE / 2
        if name != before:
            _label(chart, name, y)
            before = name
        chart.add("text", bundle[0], x=_LABEL - 6, y=y + 4, class_="letter")
    return chart


def _bar(chart: Chart, head: Column, figure: Figure | None, left: float, step: float, y: float) -> None:
    width = step - 84
    if figure is None or figure.value is None:
        chart.add("text", "not told", x=left, y=y + 4, class_="said few")
        return
    beyond = head.limit is not None and _is_beyond(figure, head.limit)
    long = round(_share(abs(figure.value), head.high) * width, 1)
    chart.add("rect", x=left, y=y - 5, width=max(long, 1), height=10, class_="bar beyond" if beyond else "bar")
    if figure.low is not None and figure.high is not None:
        ends = [round(left + _share(value, head.high) * width, 1) for value in (figure.low, figure.high)]
        chart.add("line", x1=ends[0], x2=ends[1], y1=y, y2=y, class_="whisker bare")
    said = head.said(figure.value)
    chart.add(
        "text", f"{said} !" if beyond else said, x=left + width + 6, y=y + 4, class_="said strong" if beyond else "said"
    )


def _is_beyond(figure: Figure, limit: float) -> bool:
    """Whether a figure lies above a limit; a share, beyond chance: were it the limit, so many would be found once in
    forty times at most. One of eight is not beyond 2 %, though Wilson's interval begins above it."""
    assert figure.value is not None
    if figure.low is None or abs(figure.value) < limit:
        return abs(figure.value) >= limit
    return float(scipy.special.bdtrc(round(figure.value * figure.n) - 1, figure.n, limit)) <= _CHANCE


def _share(value: float, high: float) -> float:
    return min(max(value / high, 0.0), 1.0)


def _label(chart: Chart, text: str, y: float) -> None:
    short = text if _width(text) <= _ROOM else f"{_that_fits(text, _ROOM - _width('…'))}…"
    chart.add("text", short, tip=text if short != text else "", x=0, y=y + 4, class_="label")


def _width(text: str) -> float:
    """Of text of 13 px, about, px: rather too much than too little."""
    return sum(
        13.5 if unicodedata.east_asian_width(one) in "WF" else 10.0 if one.isupper() or one in "mw…" else 7.8
        for one in text
    )


def _that_fits(text: str, room: float) -> str:
    while text and _width(text) > room:
        text = text[:-1]
    return text


def _few(grey: bool) -> str:
    return " few" if grey else ""


def _kind(bundle: tuple[str, int] | None, grey: bool) -> str:
    return "few" if grey else "bare" if bundle is None else f"b{bundle[1] % len(_SHAPES)}"


def _mark(chart: Chart, line: Line, axis: Axis, y: float) -> None:
    figure, kind = line.figure, _kind(line.bundle, line.grey)
    if figure is None or figure.value is None or figure.low is None or figure.high is None:
        return
    chart.add("line", x1=axis.at(figure.low), x2=axis.at(figure.high), y1=y, y2=y, class_=f"whisker {kind}")
    _shape(
        chart,
        0 if line.bundle is None else line.bundle[1],
        axis.at(figure.value),
        y,
        kind,
        f"{line.label}: {line.said}",
    )


def _shape(chart: Chart, number: int, x: float, y: float, kind: str, tip: str) -> None:
    """The mark of a bundle: hollow where there are too few cells."""
    shape, r = _SHAPES[number % len(_SHAPES)], 5.0
    named = f"mark {kind}"
    if shape == "circle":
        chart.add("circle", tip=tip, cx=x, cy=y, r=r, class_=named)
        return
    corners: dict[str, list[tuple[float, float]]] = {
        "square": [(-r, -r), (r, -r), (r, r), (-r, r)],
        "triangle": [(0, -r - 1), (r + 1, r), (-r - 1, r)],
        "diamond": [(0, -r - 2), (r + 2, 0), (0, r + 2), (-r - 2, 0)],
        "upside": [(0, r + 1), (r + 1, -r), (-r - 1, -r)],
        "cross": [
            (-2, -6),
            (2, -6),
            (2, -2),
            (6, -2),
            (6, 2),
            (2, 2),
            (2, 6),
            (-2, 6),
            (-2, 2),
            (-6, 2),
            (-6, -2),
            (-2, -2),
        ],
    }
    points = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in corners[shape])
    chart.add("polygon", tip=tip, points=points, class_=named)
