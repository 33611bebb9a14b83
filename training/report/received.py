"""The counts-only reports that labs sent to the centre: read, held against the model that writes them, put in order.

A lab is known by the id of its own key, where its reports carry one; else by the folder of reports that the file lies
in. A file that neither tells of is a lab of its own. Nothing of a report is signed: it says of which lab it is.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from labref import __version__
from labref.asking.report import REFERENCES
from labref.bundles.schema import parse_json
from labref.bundles.signing import first_fault
from labref.files import read_file
from labref.operations.report import LabReport, ReportShare
from labref.printing import printable

__all__ = ["Gathered", "LeftOut", "Taken", "gather", "order", "when"]

_MOST_BYTES: Final = 4_000_000
_LONGEST: Final = 200  # characters of a name
_CLOSE: Final = 1e-9
_MOST_CELLS: Final = 10**12
_FARTHEST: Final = 1e6  # robust standard deviations
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_UNKEYED: Final = "lab "
"""How the page's name of a lab without a key begins; its number follows."""
_ASK: Final = "ask the lab for `labref report --json --counts-only > numbers.json`"


@dataclass(frozen=True)
class Taken:
    """A report that counts. lab : which lab it is of, as the page calls it.  named : how the centre's folder or file
    calls the lab."""

    file: Path
    lab: str
    named: str
    made: LabReport


@dataclass(frozen=True)
class LeftOut:
    """A file that does not count. why : names no file.  instead : the report that stands in its place; None where the
    file cannot be used."""

    file: Path
    why: str
    instead: Path | None = None


@dataclass(frozen=True)
class Gathered:
    """What was found. taken : by lab and then by time, one report of each bundle in a lab.  notes : what else is to be
    known of them, without a name that a lab or a folder gave."""

    taken: tuple[Taken, ...]
    left_out: tuple[LeftOut, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Read:
    file: Path
    folder: str | None
    made: LabReport
    ignored: frozenset[str]


def gather(paths: Sequence[Path]) -> Gathered:
    """Read the reports in `paths`: files, and folders in which all `.json` files are reports, a folder in them for each
    lab.

    Of the reports of one lab with one bundle the newest counts. Raises ValueError where a folder holds no report, and
    nothing else: a file that cannot be used is left out, with the reason.
    """
    read: list[_Read] = []
    left_out: list[LeftOut] = []
    for file, folder in _files(paths):
        try:
            made, ignored = _report(file)
        except ValueError as error:
            left_out.append(LeftOut(file, printable(str(error))))
        else:
            read.append(_Read(file, folder, made, ignored))
    once: dict[str, _Read] = {}
    for one in read:
        content = hashlib.sha256(one.made.model_dump_json().encode()).hexdigest()
        if content in once:
            left_out.append(LeftOut(one.file, "is the same report as another", once[content].file))
        else:
            once[content] = one
    taken = _newest(_by_lab(list(once.values())), left_out)
    return Gathered(tuple(taken), tuple(left_out), tuple(_notes(taken, list(once.values()))))


def _files(paths: Sequence[Path]) -> Iterator[tuple[Path, str | None]]:
    """Each file once, and the folder of its lab within the folder that was named; None for none."""
    seen: set[str] = set()
    for path in paths:
        found = sorted(path.rglob("*.json")) if path.is_dir() else [path]
        if not found:
            raise ValueError(f"{path} holds no file that ends in .json; {_ASK}")
        for file in found:
            if (place := os.path.realpath(file)) not in seen:  # `resolve` ends at links that lead to each other
                seen.add(place)
                parts = file.relative_to(path).parts if path.is_dir() else ()
                yield file, str(path / parts[0]) if len(parts) > 1 else None


def _report(file: Path) -> tuple[LabReport, frozenset[str]]:
    """A report, and the names of fields that this version does not know and left alone. Raises ValueError that says
    what is wrong, without the file's name."""
    try:
        raw = read_file(file, _MOST_BYTES)
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror or error}") from None
    if raw.lstrip()[:1] == b"<":
        raise ValueError(f"is a page for people, and not the numbers; {_ASK}")
    try:
        values = parse_json(raw)
        json.dumps(values, ensure_ascii=False).encode()  # half a character passes all else, and cannot be written
    except ValueError as error:
        raise ValueError(f"holds no JSON, or was cut off ({str(error)[:120]}); {_ASK}") from None
    if isinstance(values, dict) and {"report", "making", "problem"} <= values.keys():
        values = values["report"]  # the answer of `report.show`
    if not isinstance(values, dict) or "analysers" not in values:
        raise ValueError(f"holds no report of a lab; {_ASK}")
    try:
        made, ignored = _validated(values)
    except ValidationError as error:
        of = str(values.get("version"))[:40]
        why = f"is of labref {of}, which this one ({__version__}) does not understand" if of != __version__ else ""
        raise ValueError(f"{why or 'is not what a report holds'}: {first_fault(error)[:200]}") from None
    if not made.counts_only or any(row.drawn or row.worst for row in made.analysers):
        raise ValueError(f"holds cells, and names that the lab gave: delete it, and {_ASK}")
    if made.k != REFERENCES:
        raise ValueError(f"counts {made.k} references of an answer, and not {REFERENCES}: its figures do not compare")
    if wrong := _impossible(made):
        raise ValueError(f"holds what no lab writes: {wrong}")
    return made, ignored


def _validated(values: dict[str, Any]) -> tuple[LabReport, frozenset[str]]:
    """Fields are only ever added: those that a newer labref has are left alone, and so are its new findings and
    reasons. Raises `ValidationError`."""
    try:
        return LabReport.model_validate(values), frozenset()
    except ValidationError as error:
        unknown = [place for fault in error.errors() if (place := _unknown(fault["type"], fault["loc"]))]
    for place in sorted(set(unknown), key=_order, reverse=True):  # the innermost first, of a list the last
        inner: Any = values
        for step in place[:-1]:
            inner = inner[step]
        del inner[place[-1]]
    return LabReport.model_validate(values), frozenset(
        str(place[-1]) for place in unknown if place[-2:-1] != ("findings",)
    )


def _order(place: tuple[int | str, ...]) -> list[tuple[int, str]]:
    return [(step, "") if isinstance(step, int) else (-1, step) for step in place]


def _unknown(kind: str, place: tuple[int | str, ...]) -> tuple[int | str, ...] | None:
    """Where that stands which a newer labref may have added; None where a fault is no such."""
    if kind == "extra_forbidden":
        return place
    if kind in ("literal_error", "enum") and place[:1] == ("analysers",):
        if place[2:3] == ("findings",):
            return place[:4]
        if place[2:4] == ("pictures", "reasons"):
            return place[:5]
    return None


def _impossible(made: LabReport) -> str | None:
    """What cannot be in a report, although it has the form of one."""
    names = [made.bundle.name or "", made.bundle.version or "", made.version]
    for number, row in enumerate(made.analysers, 1):
        names += [row.analyser or "", *row.lacking, *(one.label for one in row.classes)]
        names += [one.instead or "" for one in row.classes]
        figures = {
            "precision": row.precision, "precision_of_classes": row.precision_of_classes, "novel": row.novel,
            "no_class": row.no_class, "no_cell": row.pictures.no_cell,
        } | {f"precision of class {at}": one.precision for at, one in enumerate(row.classes, 1)}  # fmt: skip
        if wrong := next((name for name, one in figures.items() if not _is_share(one)), None):
            return f"{wrong} of analyser {number} is no share with its interval"
        counts = [
            row.cells,
            row.distinct,
            row.asked,
            *(one.cells for one in row.classes),
            *(one.asked for one in row.classes),
            *(one.n for one in figures.values()),
        ]
        if min(counts) < 0 or max(counts) > _MOST_CELLS:
            return f"a count of analyser {number} is below 0, or above {_MOST_CELLS:,}"
        if not all(0 <= one.instead_share <= 1 for one in row.classes):
            return f"a share of analyser {number} is none"
        measures = [one for one in (row.optics.from_training, row.optics.drift) if one is not None]
        if any(abs(by) > _FARTHEST for one in measures for by in one.model_dump().values()):
            return f"the optics of analyser {number} are off by more than {_FARTHEST:,.0f} standard deviations"
    pseudonyms = [row.pseudonym for row in made.analysers if row.pseudonym is not None]
    if len(set(pseudonyms)) < len(pseudonyms):
        return "one pseudonym of two analysers"
    if max(map(len, names)) > _LONGEST:
        return f"a name of more than {_LONGEST} characters"
    if not _DIGEST.fullmatch(made.bundle.digest):
        return "the bundle's digest is none"
    try:
        if datetime.fromisoformat(made.made_at).tzinfo is None:
            return "when it was made has no time zone"
        datetime.fromisoformat(made.made_at).astimezone(UTC)
    except (ValueError, OverflowError):  # no date, or one before the year 1 or after 9999
        return "when it was made is no date"
    return None


def _is_share(one: ReportShare) -> bool:
    if one.value is None or one.low is None or one.high is None:
        return one.value is None and one.low is None and one.high is None and one.n >= 0
    return -_CLOSE <= one.low <= one.value + _CLOSE and one.value <= one.high + _CLOSE <= 1 + 2 * _CLOSE and one.n > 0


def _by_lab(read: Sequence[_Read]) -> list[Taken]:
    keys: dict[str, set[str]] = {}  # of the labs whose reports lie in a folder
    for one in read:
        if one.folder is not None and one.made.lab is not None:
            keys.setdefault(one.folder, set()).add(one.made.lab)
    numbers: dict[str, str] = {}
    taken = []
    for one in read:
        beside = keys.get(one.folder or "", set())
        key = one.made.lab or (next(iter(beside)) if len(beside) == 1 else None)
        place = one.folder or str(one.file)
        lab = numbers.setdefault(place, f"{_UNKEYED}{len(numbers) + 1}") if key is None else key[:8]
        taken.append(Taken(one.file, lab, Path(place).name if one.folder else one.file.stem, one.made))
    return taken


def order(lab: str) -> tuple[int, str]:
    """By what labs are ordered: by their id, and then those without a key by their number."""
    return (int(lab.removeprefix(_UNKEYED)), "") if lab.startswith(_UNKEYED) else (0, lab)


def when(one: Taken) -> tuple[datetime, str]:
    """By what reports are ordered: when one was made, and its file."""
    return datetime.fromisoformat(one.made.made_at).astimezone(UTC), str(one.file)


def _newest(read: Sequence[Taken], left_out: list[LeftOut]) -> list[Taken]:
    found: dict[tuple[str, str], list[Taken]] = {}
    for one in read:
        found.setdefault((one.lab, one.made.bundle.digest), []).append(one)
    taken = []
    for reports in found.values():
        *older, last = sorted(reports, key=when)
        taken.append(last)
        for one in older:
            why = "is older than another" if when(one)[0] < when(last)[0] else "is of the same moment as another"
            left_out.append(LeftOut(one.file, f"{why} of the same lab and bundle", last.file))
    return sorted(taken, key=lambda one: (order(one.lab), *when(one)))


def _places(read: Sequence[_Read]) -> tuple[dict[str, set[str]], dict[str, set[str]]]:
    """The folders in which reports of each lab with a key lie, and the labs with a key in each folder."""
    folders: dict[str, set[str]] = {}
    labs: dict[str, set[str]] = {}
    for one in read:
        if one.made.lab is not None and one.folder is not None:
            folders.setdefault(one.made.lab[:8], set()).add(one.folder)
            labs.setdefault(one.folder, set()).add(one.made.lab[:8])
    return folders, labs


def _notes(taken: Sequence[Taken], read: Sequence[_Read]) -> Iterator[str]:
    versions = sorted({one.made.version for one in taken})
    if len(versions) > 1:
        yield f"The reports are of several versions of labref: {', '.join(map(printable, versions))}. See the changelog for what a newer one reckons otherwise."
    ignored = sorted({printable(name[:60]) for one in read for name in one.ignored})
    if ignored:
        yield f"Fields of a newer labref were left alone: {', '.join(ignored[:10])}."
    late = datetime.now(UTC) + timedelta(days=1)
    for one in taken:
        if when(one)[0] > late:
            yield f"A report of {one.lab} says that it is of {one.made.made_at[:10]}: its computer's clock is wrong, and the order of its reports may be."
    folders, ids = _places(read)
    for lab, found in sorted(folders.items()):
        if len(found) > 1:
            yield (
                f"Reports of {lab} lie in {len(found)} folders. They carry the id of one lab and count as its own: where the folders are "
                "of several labs, one was made as a copy of another, or a report lies in the wrong folder."
            )
    for own in sorted({tuple(sorted(found)) for found in ids.values() if len(found) > 1}):
        yield f"One folder holds reports of {' and '.join(own)}: each counts as a lab of its own."
    unkeyed = sorted({one.lab for one in taken if one.made.lab is None and one.lab.startswith(_UNKEYED)})
    if unkeyed:
        yield (
            f"{len(unkeyed)} {'lab' if len(unkeyed) == 1 else 'labs'} without a key of their own: they are told apart by "
            "their folder, or file. `labref key own` gives a lab a key, and its reports then carry its id."
        )
