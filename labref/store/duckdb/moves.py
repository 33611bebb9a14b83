"""What cells are called after their files were moved: the files count that hold the cell now."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Final

import duckdb

from labref.store.duckdb import rows
from labref.store.duckdb.vocabulary import word
from labref.store.recording import LabelChange
from labref.store.text import from_column, from_nullable, to_column
from labref.store.values import FileOfCell
from labref.words import LabelSource, SlideId

__all__ = ["cells_at", "followed", "left_behind", "shared_files"]

_IDS: Final = "SEMI JOIN (SELECT unnest(?::VARCHAR[]) AS cell_id) USING (cell_id)"
_STRAYED: Final = """
    SELECT c.cell_id, c.path, f.cell_id IS NULL AND f.size_bytes IS NULL AS may_hold
    FROM cell c SEMI JOIN (SELECT cell_id, path FROM file_history {ids}) h ON h.cell_id = c.cell_id AND h.path = c.path
    LEFT JOIN file f ON f.path = c.path WHERE f.cell_id IS DISTINCT FROM c.cell_id"""
"""Cells whose own path holds something else by now, or (may_hold) could not be read any more, or is forgotten. The path
said something else since, so it is in the history: asking that costs a tenth of comparing the paths of all cells."""


@dataclass(frozen=True, slots=True)
class _Said:
    """What a file, or a cell, says of its class and slide."""

    path: str
    label: str | None
    source: LabelSource
    slide: SlideId | None


def shared_files(cursor: duckdb.DuckDBPyConnection, cells: Sequence[str] | None = None) -> list[FileOfCell]:
    """The files of these cells; by default of all that came from several files, or whose own path holds something else
    by now while another holds them."""
    ids = [] if cells is None else [list(cells)]
    strayed = _STRAYED.format(ids="WHERE cell_id IS NOT NULL" if cells is None else _IDS)
    asked = (
        "SELECT cell_id FROM file WHERE cell_id IS NOT NULL GROUP BY cell_id HAVING count(*) > 1 UNION SELECT cell_id "
        "FROM strayed"
        if cells is None
        else "SELECT unnest(?::VARCHAR[]) AS cell_id"
    )
    found = cursor.execute(
        f"WITH strayed AS MATERIALIZED ({strayed}), asked AS ({asked}) "
        "SELECT cell_id, f.path, TRUE, f.path = c.path, f.label = c.label "
        "FROM file f JOIN cell c USING (cell_id) SEMI JOIN asked USING (cell_id) "
        "UNION ALL SELECT cell_id, path, may_hold, TRUE, NULL FROM strayed SEMI JOIN file USING (cell_id)",
        2 * ids,
    ).fetchall()
    return [FileOfCell(cell_id, from_column(path), *flags) for cell_id, path, *flags in found]


def cells_at(cursor: duckdb.DuckDBPyConnection, paths: Sequence[str]) -> list[str]:
    """The cells that these files hold, or held before."""
    found = cursor.execute(
        "WITH asked AS (SELECT unnest(?::VARCHAR[]) AS path) SELECT cell_id FROM file SEMI JOIN asked USING (path) "
        "WHERE cell_id IS NOT NULL UNION SELECT cell_id FROM file_history SEMI JOIN asked USING (path) "
        "WHERE cell_id IS NOT NULL",
        [list(map(to_column, paths))],
    ).fetchall()
    return [cell_id for (cell_id,) in found]


def followed(cursor: duckdb.DuckDBPyConnection, gone: Mapping[str, Set[str]]) -> list[LabelChange]:
    """What becomes of cells some of whose paths do not hold them any more. gone : those paths, by cell.

    A label that no file with the cell says any more, and no person gave to labref, gives way to the one that the files
    with the cell say, if they agree: the reviewed ones among them before the others. A file that says nothing takes no
    label away. Where the cell's own path does not hold it any more, another one that does takes its place, and gives
    the slide.
    """
    ids = [list(gone)]
    files: dict[str, list[_Said]] = {}
    for cell_id, *said in cursor.execute(
        f"SELECT cell_id, path, label, label_source, slide, folder FROM file {_IDS} ORDER BY recorded_at, path", ids
    ).fetchall():
        files.setdefault(cell_id, []).append(_said(cell_id, *said))
    by_person = {
        cell_id
        for (cell_id,) in cursor.execute(
            f"SELECT cell_id FROM label_change {_IDS} GROUP BY cell_id HAVING arg_max(path, number) = ''", ids
        ).fetchall()
    }
    found = []
    for cell_id, *said in cursor.execute(
        f"SELECT cell_id, path, label, label_source, slide, folder FROM cell {_IDS}", ids
    ).fetchall():
        cell = _said(cell_id, *said)
        there = [file for file in files.get(cell_id, ()) if file.path not in gone[cell_id]]
        if cell.path not in gone[cell_id] and all(file.path != cell.path for file in there):
            continue  # nobody knows what is there
        other = _followed(cell, there, by_person=cell_id in by_person)
        if other is not None:
            assert cell.label is not None and other.label is not None
            found.append(
                LabelChange(cell_id, other.path, other.slide, other.label, other.source, cell.label, cell.source)
            )
    return found


def left_behind(
    cursor: duckdb.DuckDBPyConnection, changes: Sequence[LabelChange], is_gone: Callable[[str], bool]
) -> list[LabelChange]:
    """The cells of slides whose folder got another name, which have no file any more that could say so: they go with
    the others of their slide.

    changes : of the cells that have one, not yet written.  is_gone : whether it is certain that there is no folder at
    a path. A slide's cells stay where its cells went to several slides, where their folder is still there, or where the
    other slide has a cell that was never one of this: files that were moved to another slide say nothing of those that
    were deleted.
    """
    followed = {change.cell_id: change for change in changes}
    ways: dict[SlideId, set[tuple[SlideId, str | None]]] = {}
    for cell_id, path, slide, folder in cursor.execute(
        f"SELECT cell_id, path, slide, folder FROM cell {_IDS} WHERE slide IS NOT NULL", [list(followed)]
    ).fetchall():
        before, change = SlideId(from_column(folder or ""), from_column(slide)), followed[cell_id]
        if change.path is not None and change.slide is not None and change.slide != before:
            ways.setdefault(before, set()).add((change.slide, _renamed(from_column(path), change.path)))
    renamed: dict[SlideId, tuple[SlideId, str]] = {}
    for before, ((after, old), *others) in ways.items():
        if not others and old is not None and before.folder == after.folder and is_gone(old[:-1]):
            renamed[before] = after, old
    if not renamed:
        return []
    pairs = [(*map(to_column, before), to_column(after.name)) for before, (after, _) in renamed.items()]
    found = cursor.execute(
        "WITH pair AS (SELECT unnest($1::VARCHAR[]) AS folder, unnest($2::VARCHAR[]) AS slide, "
        "unnest($3::VARCHAR[]) AS new), "
        "known AS (SELECT DISTINCT pair.new, pair.folder FROM pair JOIN cell c ON c.slide = pair.new AND c.folder = pair.folder "
        "ANTI JOIN file f ON f.cell_id = c.cell_id AND f.slide = pair.slide AND f.folder = pair.folder), "
        "left_there AS (SELECT c.* FROM cell c SEMI JOIN (FROM pair ANTI JOIN known USING (new, folder)) p "
        "ON c.slide = p.slide AND c.folder = p.folder) "
        "SELECT cell_id, path, label, label_source, slide, folder FROM left_there c ANTI JOIN file f "
        "ON f.cell_id = c.cell_id AND f.path <> c.path ORDER BY number",
        [list(column) for column in zip(*pairs, strict=True)],
    ).fetchall()
    return [
        LabelChange(cell_id, said.path, renamed[said.slide][0], said.label, said.source, said.label, said.source)
        for cell_id, said in ((cell_id, _said(cell_id, *more)) for cell_id, *more in found)
        if cell_id not in followed
        and said.slide is not None
        and said.label is not None
        and said.path.startswith(renamed[said.slide][1])
    ]


def _renamed(before: str, after: str) -> str | None:
    """The folder that has another name where a file is at `after` and was at `before`: its old path, with a separator
    at its end. None where more than one part of the path is another."""
    separator = "\\" if "\\" in before else "/"
    old, new = before.split(separator), after.split(separator)
    others = [at for at, (one, other) in enumerate(zip(old, new, strict=False)) if one != other]
    if len(old) != len(new) or len(others) != 1 or others[0] == len(old) - 1:
        return None
    return separator.join([*old[: others[0] + 1], ""])


def _said(
    cell_id: str, path: str, label: str | None, source: str | None, slide: str | None, folder: str | None
) -> _Said:
    where = f"the label source of cell {cell_id}"
    given = LabelSource.PREDICTED if source is None else word(LabelSource, source, where)
    return _Said(from_column(path), from_nullable(label), given, rows.slide_id(slide, folder))


def _followed(cell: _Said, there: Sequence[_Said], *, by_person: bool) -> _Said | None:
    """What a cell says from now on; None where that is what it says already. there : its files that are there."""
    labelled = sorted((file for file in there if file.label is not None), key=lambda file: -file.source.weight)
    if labelled and not by_person and all(file.label != cell.label for file in labelled):
        best = [file for file in labelled if file.source is labelled[0].source]
        if len({file.label for file in best}) == 1:
            return _Said(best[0].path, best[0].label, best[0].source, best[0].slide or cell.slide)
    if not there or any(file.path == cell.path for file in there):
        return None
    same = [file for file in labelled if file.label == cell.label]
    place = (same or labelled or list(there))[0]
    return _Said(place.path, cell.label, cell.source, place.slide or cell.slide)
