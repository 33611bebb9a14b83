"""Blinded readings, and what people answered in them.

Table `reading`: one row for each reading. `reading_task`: what it asks, drawn once when it is started; its cells stand
under other names than `cell_id`, since a reading is history and stays when cells are removed. `reading_answer`: one row
for each answer, never changed but for `undone`; of a person, a task and an arm the last row that is not undone holds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

from labref.failpoints import failpoint
from labref.store.duckdb import bundles, rows, sequence
from labref.store.duckdb.tables import Tables
from labref.store.duckdb.writing import insert
from labref.store.text import from_column, from_nullable, to_column, to_nullable
from labref.words import LabelSource

__all__ = ["Drawn", "Reading", "ReadingAnswer", "ReadingTask", "Readings", "ShownBeside"]


@dataclass(frozen=True, slots=True)
class Drawn:
    """A cell that was drawn. predicted : what the bundle calls it."""

    cell_id: str
    label: str
    predicted: str


@dataclass(frozen=True, slots=True)
class Reading:
    """A reading. kind : "classes" or "triplets".  arms : how its cells are shown, each in each.  how : everything else
    that decided the draw.  bundle : digest.  who : started it.  ended_at : UTC, None while it goes on.  tasks : how
    many there are."""

    number: int
    title: str
    kind: str
    arms: tuple[str, ...]
    seed: int
    how: Mapping[str, Any]
    bundle: str
    who: str | None
    started_at: datetime
    ended_at: datetime | None
    tasks: int


class ShownBeside(NamedTuple):
    """A cell that is shown beside another. label : its class when the reading was started.  reviewed : whether a person
    had given it; False in readings of before that was written down."""

    cell_id: str
    label: str
    reviewed: bool = False


@dataclass(frozen=True, slots=True)
class ReadingTask:
    """One cell that a reading asks about. label, predicted : when the reading was started.  shown : by arm, the cells
    shown beside it."""

    task: int
    cell: str
    label: str
    predicted: str
    shown: Mapping[str, Sequence[ShownBeside]]
    draw: str = ""


@dataclass(frozen=True, slots=True)
class ReadingAnswer:
    """What somebody answered. choice : None where they could not say.  seconds : that they looked at it."""

    number: int
    task: int
    arm: str
    person: str
    choice: str | None
    seconds: float
    answered_at: datetime
    undone: bool


class Readings(Tables):
    """The readings of one store; `Store.readings`. Methods may be called from any thread."""

    def draw(
        self, bundle: str, sources: Sequence[LabelSource], per_class: int, seed: int, *, right: bool | None = None
    ) -> list[Drawn]:
        """At most so many cells of each class, drawn at random: the same for the same seed and the same cells. Classes
        in order, and the cells of a class in the order in which they were drawn.

        sources : who gave their labels.  right : only cells that the bundle calls as they are labelled, or only those
        that it calls otherwise. Under a second for a million cells.
        """
        only = "" if right is None else f"AND e.predicted_label {'=' if right else '<>'} c.label"
        with self._reading() as cursor:
            table, _ = bundles.space(cursor, bundle)
            found = cursor.execute(
                f"SELECT cell_id, label, predicted_label FROM (SELECT c.cell_id, c.label, e.predicted_label, "
                f"row_number() OVER (PARTITION BY c.label ORDER BY md5(concat($seed, c.cell_id)), c.cell_id) AS place "
                f"FROM cell c JOIN {table} e USING (cell_id) WHERE list_contains($sources, c.label_source) {only}) "
                f"WHERE place <= $most ORDER BY label, place",
                {"seed": f"{seed}:", "sources": [str(source) for source in sources], "most": per_class},
            ).fetchall()
        return [Drawn(cell, from_column(label), from_column(predicted)) for cell, label, predicted in found]

    def start(
        self,
        *,
        title: str,
        kind: str,
        arms: Sequence[str],
        seed: int,
        how: Mapping[str, Any],
        bundle: str,
        who: str | None,
        tasks: Sequence[ReadingTask],
    ) -> Reading:
        """Write a reading down, with its tasks, all or nothing."""
        at = rows.now()
        with self._transaction() as connection:
            row = connection.execute("SELECT coalesce(max(number), 0) + 1 FROM reading").fetchone()
            assert row is not None
            number = int(row[0])
            connection.execute(
                "INSERT INTO reading VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, NULL)",
                [
                    number,
                    to_column(title),
                    kind,
                    list(arms),
                    seed,
                    to_column(json.dumps(how)),
                    bundle,
                    to_nullable(who),
                    at,
                ],
            )
            insert(
                connection,
                "INSERT INTO reading_task",
                {
                    "reading": "BIGINT",
                    "task": "INTEGER",
                    "cell": "VARCHAR",
                    "label": "VARCHAR",
                    "predicted": "VARCHAR",
                    "shown": "VARCHAR",
                    "draw": "VARCHAR",
                },
                [
                    (
                        number,
                        task.task,
                        task.cell,
                        to_column(task.label),
                        to_column(task.predicted),
                        json.dumps(task.shown),
                        task.draw,
                    )
                    for task in tasks
                ],
            )
            failpoint("reading.start")
        return Reading(
            number, title, kind, tuple(arms), seed, how, bundle, who, at.replace(tzinfo=UTC), None, len(tasks)
        )

    def all(self) -> list[Reading]:
        """Every reading, the last first."""
        with self._reading() as cursor:
            found = cursor.execute(
                "SELECT number, title, kind, arms, seed, how, bundle, who, started_at, ended_at, "
                "(SELECT count(*) FROM reading_task t WHERE t.reading = r.number) FROM reading r ORDER BY number DESC"
            ).fetchall()
        return [
            Reading(
                number,
                from_column(title),
                kind,
                tuple(arms),
                seed,
                json.loads(from_column(how)),
                bundle,
                from_nullable(who),
                started.replace(tzinfo=UTC),
                None if ended is None else ended.replace(tzinfo=UTC),
                tasks,
            )
            for number, title, kind, arms, seed, how, bundle, who, started, ended, tasks in found
        ]

    def end(self, number: int, *, ended: bool) -> None:
        """End a reading, or let it go on."""
        with self._transaction() as connection:
            connection.execute(
                "UPDATE reading SET ended_at = ? WHERE number = ?", [rows.now() if ended else None, number]
            )

    def tasks(self, number: int) -> list[ReadingTask]:
        """What a reading asks, in the order in which it was drawn."""
        with self._reading() as cursor:
            found = cursor.execute(
                "SELECT task, cell, label, predicted, shown, draw FROM reading_task WHERE reading = ? ORDER BY task",
                [number],
            ).fetchall()
        return [_task(row) for row in found]

    def task(self, number: int, task: int) -> ReadingTask | None:
        """One task of a reading; None where there is none."""
        with self._reading() as cursor:
            row = cursor.execute(
                "SELECT task, cell, label, predicted, shown, draw FROM reading_task WHERE reading = ? AND task = ?",
                [number, task],
            ).fetchone()
        return None if row is None else _task(row)

    def answers(self, number: int, person: str | None = None) -> list[ReadingAnswer]:
        """What was answered in a reading, oldest first, what was undone too. person : only theirs."""
        only, values = "", list[object]([number])
        if person is not None:
            only, values = "AND person = ?", [number, to_column(person)]
        with self._reading() as cursor:
            found = cursor.execute(
                "SELECT number, task, arm, person, choice, seconds, answered_at, undone FROM reading_answer "
                f"WHERE reading = ? {only} ORDER BY number",
                values,
            ).fetchall()
        return [
            ReadingAnswer(
                row, task, arm, from_column(who), from_nullable(choice), seconds, at.replace(tzinfo=UTC), undone
            )
            for row, task, arm, who, choice, seconds, at, undone in found
        ]

    def answer(
        self, number: int, task: int, arm: str, person: str, choice: str | None, seconds: float
    ) -> tuple[bool, str | None]:
        """Write an answer down, once. Returns whether it was written, and the choice that holds: another answer to the
        same is not written."""
        with self._transaction() as connection:
            there = connection.execute(
                "SELECT choice FROM reading_answer "
                "WHERE reading = ? AND task = ? AND arm = ? AND person = ? AND NOT undone",
                [number, task, arm, to_column(person)],
            ).fetchone()
            if there is not None:
                return False, from_nullable(there[0])
            numbers = sequence.begin(connection)
            connection.execute(
                "INSERT INTO reading_answer VALUES (?, ?, ?, ?, ?, ?, ?, ?, false)",
                [numbers.take(), number, task, arm, to_column(person), to_nullable(choice), seconds, rows.now()],
            )
            sequence.keep(connection, numbers)
            failpoint("reading.answer")
        return True, choice

    def undo(self, number: int, person: str) -> tuple[int, str] | None:
        """Take back the last answer of a person; task and arm, None where there is nothing to take back."""
        with self._transaction() as connection:
            last = connection.execute(
                "SELECT number, task, arm FROM reading_answer WHERE reading = ? AND person = ? AND NOT undone "
                "ORDER BY number DESC LIMIT 1",
                [number, to_column(person)],
            ).fetchone()
            if last is None:
                return None
            connection.execute("UPDATE reading_answer SET undone = true WHERE number = ?", [last[0]])
            failpoint("reading.undo")
        return last[1], last[2]


def _task(row: Sequence[Any]) -> ReadingTask:
    task, cell, label, predicted, shown, draw = row
    return ReadingTask(
        task,
        cell,
        from_column(label),
        from_column(predicted),
        {arm: [ShownBeside(*one) for one in cells] for arm, cells in json.loads(shown).items()},
        draw,
    )
