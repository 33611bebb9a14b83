"""What cells are called after their files were moved: where the file that gave a label is gone, those that are there
count."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import duckdb

from labref.failpoints import failpoint
from labref.store.duckdb import sequence
from labref.store.duckdb.writing import insert
from labref.store.text import from_column, from_nullable, to_column, to_nullable
from labref.words import LabelSource

__all__ = ["Moved", "files_of", "moved", "shared_files", "write"]

_IDS: Final = "SEMI JOIN (SELECT unnest(?::VARCHAR[]) AS cell_id) USING (cell_id)"


@dataclass(frozen=True, slots=True)
class _Said:
    """What a file, or a cell, says of its class and slide."""

    path: str
    label: str | None
    source: LabelSource
    slide: str | None


@dataclass(frozen=True, slots=True)
class Moved:
    """A cell whose file, slide or label is another from now on. previous, previous_source : its label before."""

    cell_id: str
    path: str
    slide: str | None
    label: str
    label_source: LabelSource
    previous: str
    previous_source: LabelSource

    @property
    def relabelled(self) -> bool:
        """Whether its label, or who gave it, changed."""
        return (self.label, self.label_source) != (self.previous, self.previous_source)


def shared_files(cursor: duckdb.DuckDBPyConnection) -> list[tuple[str, str]]:
    """Cell and path of all files whose cell came from several."""
    found = cursor.execute(
        "SELECT cell_id, path FROM file SEMI JOIN (SELECT cell_id FROM file WHERE cell_id IS NOT NULL GROUP BY cell_id "
        "HAVING count(*) > 1) USING (cell_id)"
    ).fetchall()
    return [(cell_id, from_column(path)) for cell_id, path in found]


def files_of(cursor: duckdb.DuckDBPyConnection, cells: Sequence[str]) -> list[tuple[str, str]]:
    """Cell and path of all files of these cells."""
    found = cursor.execute(f"SELECT cell_id, path FROM file {_IDS}", [list(cells)]).fetchall()
    return [(cell_id, from_column(path)) for cell_id, path in found]


def moved(cursor: duckdb.DuckDBPyConnection, gone: Mapping[str, Set[str]]) -> list[Moved]:
    """What becomes of cells some of whose files are gone. gone : the paths that are, by cell.

    A label that no file there says any more, and no person gave to labref, gives way to the one that the files there
    say, if they agree: the reviewed ones among them before the others. A file that says nothing takes no label away.
    Where the cell's own file is gone, another one that is there takes its place, and gives the slide.
    """
    ids = [list(gone)]
    files: dict[str, list[_Said]] = {}
    for cell_id, *said in cursor.execute(
        f"SELECT cell_id, path, label, label_source, slide FROM file {_IDS} ORDER BY recorded_at, path", ids
    ).fetchall():
        files.setdefault(cell_id, []).append(_said(*said))
    by_person = {
        cell_id
        for (cell_id,) in cursor.execute(
            f"SELECT cell_id FROM label_change {_IDS} GROUP BY cell_id HAVING arg_max(path, number) = ''", ids
        ).fetchall()
    }
    found = []
    for cell_id, *said in cursor.execute(
        f"SELECT cell_id, path, label, label_source, slide FROM cell {_IDS}", ids
    ).fetchall():
        cell = _said(*said)
        there = [file for file in files.get(cell_id, ()) if file.path not in gone[cell_id]]
        other = _followed(cell, there, by_person=cell_id in by_person)
        if other is not None:
            assert cell.label is not None and other.label is not None
            found.append(Moved(cell_id, other.path, other.slide, other.label, other.source, cell.label, cell.source))
    return found


def _said(path: str, label: str | None, source: str | None, slide: str | None) -> _Said:
    given = LabelSource.PREDICTED if source is None else LabelSource(source)
    return _Said(from_column(path), from_nullable(label), given, from_nullable(slide))


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


def write(connection: duckdb.DuckDBPyConnection, changes: Sequence[Moved], at: datetime) -> None:
    """Write what became of cells, and the history of their labels."""
    failpoint("moves.write")
    connection.execute(
        "UPDATE cell SET label = m.label, label_source = m.source, path = m.path, slide = m.slide FROM (SELECT "
        "unnest($1::VARCHAR[]) AS cell_id, unnest($2::VARCHAR[]) AS label, unnest($3::VARCHAR[]) AS source, "
        "unnest($4::VARCHAR[]) AS path, unnest($5::VARCHAR[]) AS slide) m WHERE cell.cell_id = m.cell_id",
        [
            [change.cell_id for change in changes],
            [to_column(change.label) for change in changes],
            [str(change.label_source) for change in changes],
            [to_column(change.path) for change in changes],
            [to_nullable(change.slide) for change in changes],
        ],
    )
    numbers = sequence.begin(connection)
    columns = ("cell_id", "path", "label", "label_source", "previous", "previous_source")
    insert(
        connection,
        "INSERT INTO label_change",
        dict.fromkeys(columns, "VARCHAR") | {"changed_at": "TIMESTAMP", "number": "BIGINT"},
        [
            (
                change.cell_id,
                to_column(change.path),
                to_column(change.label),
                str(change.label_source),
                to_column(change.previous),
                str(change.previous_source),
                at,
                numbers.take(),
            )
            for change in changes
            if change.relabelled
        ],
    )
    sequence.keep(connection, numbers)
