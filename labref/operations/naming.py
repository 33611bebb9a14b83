"""Cells and classes by what people call them: an id or its beginning, a path, a class by any of its names."""

from __future__ import annotations

import contextlib
import hmac
import os
import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from labref.bundles.bundle import Bundle
from labref.errors import LabrefError
from labref.export.layout import ClassNames, name_key
from labref.export.paths import path_from_text, path_to_text
from labref.export.scan import Signature
from labref.files import digest_of
from labref.printing import unprintable
from labref.store import Cell, Store
from labref.tasks.context import Context
from labref.words import SlideId, look_of, mixes_scripts

__all__ = [
    "LEAST_ID",
    "Classes",
    "NoCellError",
    "NoSuchNameError",
    "SeveralCellsError",
    "cell_named",
    "class_names",
    "earlier_slide_keys",
    "find_cells",
    "id_of_cell",
    "person",
    "slide_key",
    "slide_keys",
    "stored_cell",
    "told_apart",
]

LEAST_ID: Final = 4
"""Characters of a cell's id, at least, that stand for the whole."""
_ID: Final = re.compile(f"[0-9a-fA-F]{{{LEAST_ID},16}}")
_DIGEST: Final = re.compile("[0-9a-fA-F]{17,64}")
_MOST_LABEL: Final = 200  # characters
_MOST_NAME: Final = 200  # characters of a person's name
_SHOWN: Final = 5  # cells or files that a message names


class NoSuchNameError(LabrefError):
    """Nothing in the lab has this name, or this number."""


class SeveralSlidesError(LabrefError):
    """Slides in several watched folders have this name."""


class NoCellError(NoSuchNameError):
    """No cell in the lab has this name."""


class SeveralCellsError(LabrefError):
    """Several cells or files have this name."""


def person(who: str | None) -> str | None:
    """The name of a person, as they are to be named, without spaces around it; None for None.

    Raises `LabrefError` where it is empty, longer than 200 characters, or holds what cannot be seen.
    """
    if who is None:
        return None
    name = unicodedata.normalize("NFC", who.strip())
    if not name:
        raise LabrefError("who is empty; give the name of the person, or leave it out.")
    if len(name) > _MOST_NAME:
        raise LabrefError(f"who has at most {_MOST_NAME} characters, this one has {len(name)}; give a person's name.")
    if (character := unprintable(name)) is not None:
        raise LabrefError(f"who {name!r} holds the character {character}, which cannot be seen; write it anew.")
    return name


# cells


def cell_named(context: Context, name: str, *, folder: str | None = None) -> str:
    """The id of the cell that is called `name`; see `find_cells`. Raises `LabrefError` where there is none, or
    several."""
    found = find_cells(context, [name], folder=folder)[name]
    if isinstance(found, LabrefError):
        raise found
    return found


def stored_cell(context: Context, name: str, *, folder: str | None = None) -> Cell:
    """The cell that is called `name`; see `find_cells`. Raises `LabrefError` where there is none, or several."""
    cell_id = cell_named(context, name, folder=folder)
    found = context.store.cell(cell_id)
    if found is None:  # removed in this moment
        raise NoCellError(f"no cell {cell_id} in this lab any more")
    return found


def id_of_cell(store: Store, text: str) -> str:
    """The id that begins with `text`, in upper or lower case, or that of the cell whose digest begins so. A whole id is
    returned as it is, whether there is such a cell or not.

    Raises `LabrefError` where no cell's id begins so, or those of several do.
    """
    found = _by_id(store, text)
    if found is None and len(text) == 16 and _ID.fullmatch(text):
        return text.lower()
    if found is None:
        raise NoCellError(
            f"no cell's id begins with {text!r}; give at least {LEAST_ID} of its 16 characters, 0-9 and a-f."
        )
    if isinstance(found, LabrefError):
        raise found
    return found


def find_cells(
    context: Context, names: Iterable[str], *, folder: str | None = None
) -> dict[str, str | NoCellError | SeveralCellsError]:
    """The id of the cell that each name means, or the error to raise where it means no cell, or several. A name is the
    cell's id, a beginning of it that no other id has, the SHA-256 of its bytes, or the path of one of its files.

    A path is absolute, or below a watched folder, or below `folder`, where the asker is. Where no file is written so,
    it may differ in the Unicode form, in a `\\` for `/`, and, on a folder that tells no upper from lower case, in case.
    A file that holds other bytes by now than those of its cell is no name of it.
    """
    store, found = context.store, dict[str, str | NoCellError | SeveralCellsError]()
    wanted = dict.fromkeys(names)
    whole = store.labelled([name.lower() for name in wanted if len(name) == 16 and _ID.fullmatch(name)])
    for name in wanted:
        if name.lower() in whole and len(name) == 16:
            found[name] = name.lower()
    if len(found) == len(wanted):  # as pages ask, whose addresses hold whole ids
        return found
    own = [Path(path_from_text(folder))] if folder else []
    bases = [*own, *context.lab.watched]
    ignore_case = any(_ignores_case(base) for base in bases)
    files: dict[str, dict[str, str | None]] = {}
    for spelling in (_as_written, _slashes):
        tried = {
            name: _paths(spelling(name), bases)
            for name in wanted
            if name not in found and name not in files and spelling(name)
        }
        files |= _files(tried, store.cells_of_files({path for paths in tried.values() for path in paths}))
    files = _beside(store, files, context.lab.watched, ignore_case=ignore_case)
    for name in wanted:
        if name not in found and name not in files and (by_id := _by_id(store, name)) is not None:
            found[name] = by_id
    left = {
        name: _paths(_slashes(name) or name, bases)
        for name in wanted
        if name not in found and name not in files and name
    }
    if left:
        like = store.files_like({path for paths in left.values() for path in paths}, ignore_case=ignore_case)
        files |= _all_files(left, like)
    changed = _changed(context, files)
    for name, there in files.items():
        found[name] = _only(name, there, changed)
    for name in wanted:
        if name not in found:
            found[name] = NoCellError(
                f"no cell {name!r} in this lab; give a cell's id, or its first characters, or the path of its file as "
                "`labref ledger` shows it."
            )
    return found


def _as_written(name: str) -> str:
    return name


def _slashes(name: str) -> str:
    """A Windows path with slashes for its backslashes, on another system; empty where that changes nothing."""
    return name.replace("\\", "/") if os.name != "nt" and "\\" in name else ""


def _paths(name: str, bases: Sequence[Path]) -> list[str]:
    """The absolute paths that `name` may mean: below each of `bases`, or below the current folder where there are
    none."""
    path = Path(path_from_text(name))
    with contextlib.suppress(RuntimeError):  # ~ of somebody who has no home here
        path = path.expanduser()
    return list(dict.fromkeys(path_to_text(os.path.abspath(base / path)) for base in (bases or [Path()])))  # noqa: PTH100


def _files(tried: Mapping[str, Sequence[str]], cells: Mapping[str, str | None]) -> dict[str, dict[str, str | None]]:
    """The files that each name means, and their cells. cells : by path, of the files that there are."""
    found = {name: {path: cells[path] for path in paths if path in cells} for name, paths in tried.items()}
    return {name: there for name, there in found.items() if there}


def _all_files(
    tried: Mapping[str, Sequence[str]], like: Mapping[str, Mapping[str, str | None]]
) -> dict[str, dict[str, str | None]]:
    """The same where a path may mean several files. like : the files, and their cells, by each of these paths."""
    found = {
        name: {file: cell for path in paths for file, cell in like.get(path, {}).items()}
        for name, paths in tried.items()
    }
    return {name: there for name, there in found.items() if there}


def _beside(
    store: Store, files: Mapping[str, dict[str, str | None]], watched: Sequence[Path], *, ignore_case: bool
) -> dict[str, dict[str, str | None]]:
    """The files that names mean, with those of the other watched folders that people read the same: of two names in one
    folder that differ in the form alone, the one that is written so is meant; of two folders nobody can say."""
    tried = {
        name: [path for path in _paths(name, watched) if path not in there]
        for name, there in files.items()
        if len(watched) > 1 and (ignore_case or not name.isascii()) and not os.path.isabs(path_from_text(name))  # noqa: PTH117
    }
    asked = {path for paths in tried.values() for path in paths}
    alike = _all_files(tried, store.files_like(asked, ignore_case=ignore_case)) if asked else {}
    return {name: alike.get(name, {}) | there for name, there in files.items()}


def _changed(context: Context, files: Mapping[str, Mapping[str, str | None]]) -> set[str]:
    """Those of these files that hold other bytes than those of the cell that the ledger names. One that is gone, or out
    of reach, is the file that it was."""
    store = context.store
    states = store.states_of_files(
        {path for there in files.values() for path, cell in there.items() if cell is not None}
    )
    doubtful: dict[str, int] = {}
    for path, state in states.items():
        with contextlib.suppress(OSError, ValueError):
            seen = Signature.of(os.stat(path_from_text(path)))
            if not state.is_of(seen.size_bytes, seen.mtime_ns, seen.ctime_ns, None):
                doubtful[path] = seen.size_bytes
    # touched only, or other bytes?
    most = int(context.lab.config.watch.max_file_megabytes * 1e6)
    changed = {path for path, size in doubtful.items() if size > most}
    for path, named in store.file_digests([path for path in doubtful if path not in changed]).items():
        with contextlib.suppress(OSError):
            if digest_of(path_from_text(path)) != named:
                changed.add(path)
    return changed


def _only(
    name: str, files: Mapping[str, str | None], changed: Collection[str]
) -> str | NoCellError | SeveralCellsError:
    """The cell of these files, where all are of one. changed : files that hold other bytes than those of their cell."""
    cells = set(files.values())
    if len(cells) > 1:
        shown = ", ".join(sorted(files)[:_SHOWN])
        count = "two" if len(files) == 2 else str(len(files))
        return SeveralCellsError(f"{count} files have this path: {shown}; give the whole path, or the cell's id.")
    (cell,) = cells
    if cell is None:
        return NoCellError(
            f"no cell came from this file, {next(iter(files))}: it was rejected (`labref ledger --path`)."
        )
    other = next((path for path in files if path in changed), None)
    if other is not None:
        return NoCellError(
            f"{other} holds other bytes by now than those of cell {cell}, which came from it. The agent reads it again at its "
            f"next scan (without one, `labref agent --once`); say {cell} where that cell is meant."
        )
    return cell


def _by_id(store: Store, text: str) -> str | SeveralCellsError | None:
    if _DIGEST.fullmatch(text):
        cell = store.cell(text[:16].lower())
        return cell.cell_id if cell is not None and cell.digest.startswith(text.lower()) else None
    if not _ID.fullmatch(text):
        return None
    ids = store.cells_beginning(text.lower(), _SHOWN + 1)
    if len(ids) > 1:
        shown = ", ".join(ids[:_SHOWN]) + (", …" if len(ids) > _SHOWN else "")
        return SeveralCellsError(f"several cells' ids begin with {text!r}: {shown}; give more of its characters.")
    return ids[0] if ids else None


def _ignores_case(folder: Path) -> bool:
    """Whether a folder's file system ignores case: `A` and `a` are one name there."""
    for part in (folder, *folder.parents):
        other = part.with_name(part.name.swapcase()) if part.name else part
        if other != part:
            try:
                return part.samefile(other)
            except OSError:
                return False
    return os.name == "nt"


# classes


def slide_key(context: Context, slide: SlideId) -> str:
    """The key that stands for a slide in web addresses, 20 hexadecimal characters, because a slide's name can identify
    a patient.

    Without the lab's token nobody can find the name from the key, not even by trying names.
    """
    return slide_keys(context, [slide])[slide]


def slide_keys(context: Context, slides: Iterable[SlideId]) -> dict[SlideId, str]:
    """What stands for each of these slides; see `slide_key`."""
    token = context.lab.token().encode()
    return {slide: _key(token, f"{slide.folder}\0{slide.name}") for slide in slides}


def earlier_slide_keys(context: Context, names: Iterable[str]) -> dict[str, str]:
    """What stood for the slides of these names before the watched folder counted: it is in links that people kept."""
    token = context.lab.token().encode()
    return {name: _key(token, name) for name in names}


def told_apart(context: Context, slides: Iterable[SlideId]) -> dict[SlideId, str | None]:
    """What people are told these slides apart by: the watched folder, where several have the name; else None."""
    book = context.store.slides.book
    return {slide: slide.folder if len(book.named(slide.name)) > 1 else None for slide in slides}


def _key(token: bytes, slide: str) -> str:
    return hmac.new(token, b"slide:" + slide.encode("utf-8", "surrogatepass"), "sha256").hexdigest()[:20]


def class_names(context: Context, bundle: Bundle) -> ClassNames:
    """Which names stand for which class, by this bundle and labref.toml, [watch.labels]."""
    return ClassNames(bundle.manifest.labels, context.lab.config.watch.labels)


class Classes:
    """The classes of this lab, by any of their names."""

    def __init__(self, context: Context) -> None:
        store = context.store
        active = store.active_bundle()
        bundle = next(bundle for bundle in store.bundles() if bundle.digest == active)
        own = context.lab.config.watch.labels
        self._names = ClassNames(bundle.labels, own)
        self._known = {*bundle.labels, *own.values(), *store.label_counts()}
        self._looks = {look_of(label): label for label in self._known}

    def all(self) -> set[str]:
        """The labels that a cell can be given without `new`."""
        return set(self._known)

    def label(self, name: str, *, new: bool) -> str:
        """The label that `name` stands for. Raises `LabrefError` where it is empty, holds what cannot be seen, or is no
        class of this lab and not `new`."""
        name = unicodedata.normalize("NFC", name.strip())
        if not name:
            raise LabrefError("no label is given")
        if (character := unprintable(name)) is not None:
            raise LabrefError(
                f"the label {name!r} holds the character {character}, which cannot be seen; write it anew"
            )
        if len(name) > _MOST_LABEL:
            raise LabrefError(f"a label has at most {_MOST_LABEL} characters, this one has {len(name)}")
        label = name if name in self._known else self._names.label(name)
        if label not in self._known:
            if not new:
                raise LabrefError(f"{label!r} is no class of this lab; {self._hint(label)} With --new it becomes one.")
            if mixes_scripts(label):
                raise LabrefError(
                    f"{label!r} mixes letters of two scripts in one word, and reads as another word; write it anew."
                )
            twin = self._looks.setdefault(look_of(label), label)
            if twin != label:
                raise LabrefError(
                    f"{label!r} would be a class of its own beside {twin!r}, which looks the same; say {twin!r}, or name the new class so "
                    "that people can tell it from that."
                )
            self._known.add(label)
        return label

    def _hint(self, name: str) -> str:
        """A hint which class may be meant. A single class is proposed only where it is clearly the nearest, because
        people believe a proposal."""
        key = name_key(name)
        keys = dict(self._names.known()) | {name_key(label): label for label in self._known}
        keys = {known: label for known, label in keys.items() if label in self._known}
        meant = {label for known, label in keys.items() if key and known.startswith(key)}
        if not meant and key:
            meant = {label for known, label in keys.items() if any(word.startswith(key) for word in known.split())}
        if not meant and key:
            steps = {known: _steps(key, known) for known in keys}
            nearest = min(steps.values())
            if nearest <= max(1, len(key) // 4):
                meant = {keys[known] for known, count in steps.items() if count <= nearest + 1}
        if len(meant) == 1:
            return f"did you mean {meant.pop()!r}?"
        if meant:
            return f"did you mean one of {', '.join(map(repr, sorted(meant)))}?"
        return f"known are {', '.join(sorted(self._known))}."


def _steps(one: str, other: str) -> int:
    """How many letters have to be put in, taken out, changed, or swapped with their neighbour to make `one` a beginning
    of `other`: the least optimal string alignment distance."""
    before: list[int] = []
    last = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        row = [i]
        for j, b in enumerate(other, 1):
            best = min(last[j] + 1, row[j - 1] + 1, last[j - 1] + (a != b))
            if i > 1 and j > 1 and a == other[j - 2] and one[i - 2] == b:
                best = min(best, before[j - 2] + 1)
            row.append(best)
        before, last = last, row
    return min(last)
