"""The cells of other labs that are nearest to a question's, asked beside the lab's own search.

Every cell of the labs and optics that are meant is compared, in the bundle's partition: pgvector's distances, in
float32, choose candidates, and the distances that count are computed here, in float64, as those of the lab's own
index. Enough candidates are fetched that rounding cannot have kept a nearer one out.

Where very many cells are meant, and the partition has an index (`labref.shared.indexing`), the index gives the
candidates, which can miss a near cell; the reply says so. An index looks for cells first and filters them then, so
under a filter it can come to its end before there are enough (pgvector#719): it goes on looking among more of them
(`hnsw.iterative_scan`), and where there still are fewer than asked for, all cells are compared after all.

A server that does not answer costs a question at most `wait_seconds`, and only the first one: from then on it is tried
beside, and questions are told at once that it is out of reach, until it is back.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as TookTooLong
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from labref.errors import SharedError
from labref.shared.address import Address
from labref.shared.connection import connect, in_words, moment, plain
from labref.shared.indexing import name_of
from labref.shared.migrations import require
from labref.store.memory import distances
from labref.words import Fingerprint, LabelSource

if TYPE_CHECKING:
    import psycopg

__all__ = ["COMPARED_AT_MOST", "Asking", "Pending", "Reply", "SharedCell", "Wanted"]

_AGAIN_SECONDS: Final = 10.0
"""A server that could not be reached is tried again after so long."""
_STATEMENT_SECONDS: Final = 30.0
_AT_ONCE: Final = 4
_LEAST: Final = 100
_ENDS: Final = "the shared store is asked no more: labref ends"
COMPARED_AT_MOST: Final = 70_000
"""Where there is an index, so many cells are compared one by one all the same: they lie about in a far larger table."""
_SETTINGS: Final = {
    "jit": "off",  # to compile a statement that runs once takes longer than to run it
    # each worker starts anew and finds no page of the table mapped: three took 1.1 s of CPU for what one does in 0.4
    "max_parallel_workers_per_gather": "0",
    "hnsw.iterative_scan": "relaxed_order",  # they are put in order here
    "hnsw.ef_search": "200",
    "hnsw.max_scan_tuples": "40000",
}
"""Of the connections that ask. An index looks at so many cells at least, and at most."""
_T = TypeVar("_T")


@dataclass(frozen=True)
class Wanted:
    """Whose cells are wanted, beside the lab's own. labs : their names; None for all.  optics : only cells of this
    group of optics; None for all.  reader : whether the asker's own lab counts as any other, as for who has none."""

    labs: tuple[str, ...] | None = None
    optics: str | None = None
    reader: bool = False


@dataclass(frozen=True, slots=True)
class SharedCell:
    """A cell of a lab, as the shared store has it. distance : mean squared error.  place : a cell of the same lab;
    cells with the same one are or may be captures of one physical cell."""

    lab: str
    cell_id: str
    label: str
    label_source: LabelSource
    analyser: str | None
    captured_at: datetime | None
    distance: float
    place: str
    fingerprint: Fingerprint | None

    @property
    def key(self) -> str:
        """What tells it from every other cell; sorted as cell ids are."""
        return f"{self.cell_id}@{self.lab}"


@dataclass(frozen=True)
class Reply:
    """What the shared store answered. cells : nearest first; all that are nearer than the last.  problem : why there
    are none, on one line; None where it answered.  milliseconds : that it was waited for.  exact : whether all cells
    that were meant were compared; where an index chose, one that is nearer than the last can be missing."""

    cells: Sequence[SharedCell]
    problem: str | None
    milliseconds: float
    exact: bool = True


_Found = tuple[list[SharedCell], bool]
"""Cells, nearest first, and whether all that were meant were compared."""


class Pending:
    """A question that was put."""

    def __init__(self, asked: Future[_Found] | None, problem: str | None, wait_seconds: float) -> None:
        self._asked, self._problem, self._wait = asked, problem, wait_seconds

    def reply(self) -> Reply:
        """The answer, once it is there, or after `wait_seconds` that it did not come."""
        began = time.perf_counter()
        cells: Sequence[SharedCell] = ()
        problem, exact = self._problem, True
        if self._asked is not None:
            try:
                cells, exact = self._asked.result(self._wait)
            except TookTooLong:
                problem = f"the shared store did not answer within {self._wait:g} s"
            except CancelledError:
                problem = _ENDS
            except SharedError as error:
                problem = str(error)
        return Reply(cells, problem, round(1e3 * (time.perf_counter() - began), 3), exact)


class Asking:
    """Where the shared store is asked. Methods may be called from any thread. `close` ends it."""

    def __init__(
        self,
        address: Address,
        password: Callable[[], str | None],
        wait_seconds: float,
        *,
        compares_at_most: int = COMPARED_AT_MOST,
    ) -> None:
        """password : reads it, as it may be changed.  wait_seconds : that a question waits at most.  compares_at_most :
        cells that are compared one by one where there is an index."""
        self.address, self._password, self._wait = address, password, wait_seconds
        self._compares_at_most = compares_at_most
        self._pool = ThreadPoolExecutor(_AT_ONCE, "labref-shared")
        self._lock = threading.Lock()
        self._idle: list[psycopg.Connection[tuple[Any, ...]]] = []
        self._problem: str | None = None
        self._again = 0.0
        self._closed = False

    def close(self) -> None:
        """End it; questions that still wait get no answer."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            self._closed = True
            for connection in self._idle:
                connection.close()
            self._idle.clear()

    def put(self, bundle: str, latent: NDArray[np.float32], wanted: Wanted, cells: int) -> Pending:
        """Ask for the cells nearest to latent float32[L] in the space of a bundle: so many physical ones, at least,
        where there are as many. Returns at once."""
        with self._lock:
            problem, due = self._problem, time.monotonic() >= self._again
            if problem is not None and due:
                self._again = time.monotonic() + _AGAIN_SECONDS
        with contextlib.suppress(RuntimeError):  # it was closed meanwhile
            if problem is None:
                return Pending(self._pool.submit(self._ask, bundle, latent, wanted, cells), None, self._wait)
            if due:
                self._pool.submit(self._try)
        return Pending(None, problem or _ENDS, self._wait)

    def thumbnail(self, lab: str, cell_id: str) -> bytes | None:
        """JPEG of a cell; None where there is none, or the server is out of reach."""
        if self._problem is not None:
            return None

        def fetch(connection: psycopg.Connection[tuple[Any, ...]]) -> bytes | None:
            row = connection.execute(
                "SELECT jpeg FROM thumbnail WHERE lab = (SELECT id FROM lab WHERE name = %s) AND cell_id = %s",
                [lab, cell_id],
            ).fetchone()
            return None if row is None or not row[0] else bytes(row[0])

        with contextlib.suppress(SharedError, TookTooLong, CancelledError, RuntimeError):  # the last two: it was closed
            return self._pool.submit(self._with_connection, fetch).result(self._wait)
        return None

    def read(self, work: Callable[[psycopg.Connection[tuple[Any, ...]]], _T]) -> _T:
        """What somebody who only reads finds on a connection. Raises `SharedError`."""
        return self._with_connection(work)

    def _ask(self, bundle: str, latent: NDArray[np.float32], wanted: Wanted, cells: int) -> _Found:
        return self._with_connection(
            lambda connection: _nearest(connection, bundle, latent, wanted, cells, self._compares_at_most)
        )

    def _try(self) -> None:
        with contextlib.suppress(SharedError):
            self._with_connection(lambda connection: connection.execute("SELECT 1").fetchone())

    def _with_connection(self, work: Callable[[psycopg.Connection[tuple[Any, ...]]], _T]) -> _T:
        """Do work on a connection. What fails on one that lay idle is done once more on a new one: the server may have
        been started anew meanwhile."""
        with self._lock:
            connection = self._idle.pop() if self._idle else None
        if connection is not None:
            with contextlib.suppress(SharedError):
                return self._done(connection, work)
        try:
            connection = connect(self.address, self._password(), statement_seconds=_STATEMENT_SECONDS)
            with in_words(self.address):
                require(connection, self.address)
                settings = ", ".join(f"set_config('{name}', '{value}', false)" for name, value in _SETTINGS.items())
                connection.execute(f"SELECT {settings}".encode())
        except SharedError as error:
            if connection is not None:
                connection.close()
            with self._lock:
                self._problem, self._again = str(error), time.monotonic() + _AGAIN_SECONDS
            raise
        return self._done(connection, work)

    def _done(
        self,
        connection: psycopg.Connection[tuple[Any, ...]],
        work: Callable[[psycopg.Connection[tuple[Any, ...]]], _T],
    ) -> _T:
        try:
            with in_words(self.address):
                found = work(connection)
        except BaseException:
            connection.close()
            raise
        with self._lock:
            self._problem = None
            if self._closed:
                connection.close()
            else:
                self._idle.append(connection)
        return found


def _nearest(
    connection: psycopg.Connection[tuple[Any, ...]],
    bundle: str,
    latent: NDArray[np.float32],
    wanted: Wanted,
    cells: int,
    compares_at_most: int,
) -> _Found:
    row = connection.execute("SELECT number FROM bundle WHERE digest = %s", [bundle]).fetchone()
    if row is None:
        return [], True
    number = int(row[0])
    where, values = ["bundle = %s", "NOT withheld"], list[Any]([number])
    names = {int(number): str(name) for number, name in connection.execute("SELECT id, name FROM lab").fetchall()}
    if wanted.labs is not None:
        if missing := sorted(set(wanted.labs) - set(names.values())):
            raise SharedError(
                f"the shared store has no lab {missing[0]!r}; it has {', '.join(sorted(names.values())) or 'none at all'}"
            )
        where.append("lab = ANY(%s)")
        values.append([number for number, name in names.items() if name in wanted.labs])
    if not wanted.reader:
        where.append("lab IS DISTINCT FROM (SELECT my_lab())")
    if wanted.optics is not None:
        where.append("optics = %s")
        values.append(plain(wanted.optics, 200))
    condition = " AND ".join(where)
    indexed = _has_index(connection, number) and _about(connection, condition, values) > compares_at_most
    limit = max(_LEAST, cells + cells // 2)
    while True:
        found = _candidates(connection, condition, values, latent, limit, indexed=indexed)
        if indexed and len(found) < limit:
            indexed = False
            continue
        kept = _exactly(found, latent, names, whole=indexed or len(found) < limit)
        if len(found) < limit or len({(one.lab, one.place) for one in kept}) >= cells:
            return kept, not indexed
        limit *= 2


def _has_index(connection: psycopg.Connection[tuple[Any, ...]], number: int) -> bool:
    """Whether a bundle's partition has an index that can be used. number : of the bundle."""
    row = connection.execute(
        "SELECT FROM pg_catalog.pg_index WHERE indexrelid = to_regclass(%s) AND indisvalid",
        [f"labref.{name_of(number)}"],
    ).fetchone()
    return row is not None


def _about(connection: psycopg.Connection[tuple[Any, ...]], condition: str, values: Sequence[Any]) -> float:
    """How many cells meet a condition, about, by PostgreSQL's own statistics: to count them takes as long as to compare
    them."""
    row = connection.execute(
        f"EXPLAIN (FORMAT JSON) SELECT FROM cell WHERE {condition}".encode(), values, prepare=False
    ).fetchone()
    return 0.0 if row is None else float(row[0][0]["Plan"]["Plan Rows"])


def _candidates(
    connection: psycopg.Connection[tuple[Any, ...]],
    condition: str,
    values: Sequence[Any],
    latent: NDArray[np.float32],
    limit: int,
    *,
    indexed: bool,
) -> list[tuple[Any, ...]]:
    """Rows of the nearest cells that meet a condition, by pgvector's distances. indexed : by the index, which can miss
    some and give fewer; else all are compared."""
    size = f"({len(latent)})" if indexed else ""  # the index is of this expression, and of no other
    query = "[" + ",".join(map(repr, latent.tolist())) + "]"
    with contextlib.ExitStack() as stack:
        if indexed:
            stack.enter_context(connection.transaction())
            connection.execute("SET LOCAL enable_sort = off")  # what else there is compares all cells
        return connection.execute(
            # first which are the nearest, then what else is known of them: else all of each row is carried along
            f"SELECT lab, cell_id, label, label_source, analyser, {moment('captured_at')}, place, across, down, latent::text, away "
            f"FROM (SELECT lab AS of_lab, cell_id AS of_cell, latent::vector{size} <-> %s::vector{size} AS away "
            f"FROM cell WHERE {condition} ORDER BY away LIMIT %s) AS nearest "
            "JOIN cell ON bundle = %s AND lab = of_lab AND cell_id = of_cell".encode(),
            [query, *values, limit, values[0]],
            prepare=False,  # each time with its own values: partitions and the index are chosen by them
        ).fetchall()


def _exactly(
    found: Sequence[tuple[Any, ...]], latent: NDArray[np.float32], names: dict[int, str], *, whole: bool
) -> list[SharedCell]:
    """The cells with their distances in float64, nearest first: those of which it is certain that no cell that was not
    fetched is nearer. whole : whether all were fetched."""
    if not found:
        return []
    latents = np.stack([np.fromstring(row[9][1:-1], np.float32, sep=",") for row in found])
    away = distances.exact(latents, latent)
    # pgvector sums in float32: its distances are off by no more than so much of themselves
    slack = (len(latent) + 20) * 2.0**-24
    limit = np.inf if whole else max(float(row[10]) for row in found) ** 2 * (1 - 4 * slack) / len(latent)
    cells = [
        SharedCell(
            names[row[0]],
            row[1],
            row[2],
            LabelSource(row[3]),
            row[4],
            row[5],
            float(distance),
            row[6],
            None if row[7] is None or row[8] is None else Fingerprint(row[7] % 2**64, row[8] % 2**64),
        )
        for row, distance in zip(found, away, strict=True)
        if distance <= limit and row[0] in names  # a lab can come while the question is under way
    ]
    return sorted(cells, key=lambda one: (one.distance, one.cell_id, one.lab))
