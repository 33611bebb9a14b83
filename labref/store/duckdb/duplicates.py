"""Cells that repeat others: fingerprints, what labref found, and what people decided.

Tables: `fingerprint` (a row a cell; NULL hashes where the kept bytes cannot be used), `landmark` (up to two a cell),
`resemblance` (every pair that labref called a duplicate, a possible one or neighbours, and such verdicts taken back,
with how alike they were; the last row of a pair holds, and only neighbours of removed cells are ever deleted),
`duplicate_decision` (what people said of pairs, and took back; the last row of a pair holds). The link itself stands in
`cell`: duplicate_of, duplicate_verdict, duplicate_group. Neighbours are not linked.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final

import duckdb
import numpy as np

from labref.errors import StoreError
from labref.failpoints import failpoint
from labref.store.duckdb import rows, sequence
from labref.store.duckdb.noting import note
from labref.store.duckdb.tables import Access, Tables
from labref.store.duckdb.vocabulary import Decision, word
from labref.store.memory.alike import AlikeBook
from labref.store.memory.books import GroupBook, id_to_int
from labref.store.recording import reason_of
from labref.store.text import from_column, from_nullable, to_column, to_nullable
from labref.store.values import Resemblance
from labref.words import VERSION, Fingerprint, Landmark, Outcome, Verdict

__all__ = [
    "Conflict",
    "Decision",
    "Duplicates",
    "Learnt",
    "Pair",
    "PairCounts",
    "decided",
    "drop_marks",
    "link_as_found",
    "load_alike",
    "load_book",
    "load_groups",
    "load_landmarks",
    "measured",
    "regroup",
    "set_link",
    "write_fingerprints",
    "write_landmarks",
    "write_resemblances",
]

_LINKED: Final = """
    SELECT cell_id AS cell, duplicate_of AS other, duplicate_verdict AS verdict FROM cell WHERE duplicate_of IS NOT NULL"""
_REJECTED: Final = """
    SELECT cell, other, 'rejected' AS verdict FROM said SEMI JOIN cell c ON c.cell_id = said.cell WHERE decision = 'rejected'"""
_NEIGHBOURS: Final = f"SELECT cell, other, 'neighbour' AS verdict FROM ({rows.NEIGHBOURS})"
# a linked cell and the first capture of the same cell that was given a label, where its own was given too and is
# another
_CONFLICTS: Final = """
    SELECT later.cell_id AS cell, first.other, later.verdict FROM (
        SELECT c.cell_id, c.label, c.duplicate_verdict AS verdict,
               CASE WHEN c.duplicate_verdict = 'duplicate' THEN coalesce(c.duplicate_group, o.cell_id)
                    ELSE coalesce(o.duplicate_group, o.cell_id) END AS captured
        FROM cell c JOIN cell o ON o.cell_id = c.duplicate_of WHERE c.label_source <> 'predicted'
    ) later JOIN (
        SELECT coalesce(duplicate_group, cell_id) AS captured, arg_min(cell_id, number) AS other, arg_min(label, number) AS label
        FROM cell WHERE label_source <> 'predicted' GROUP BY ALL
    ) first USING (captured) WHERE later.label <> first.label"""


@dataclass(frozen=True, slots=True)
class Pair:
    """A cell and an earlier one that it repeats, may repeat, or is the neighbour of.

    verdict : that holds now; None for a pair that a person rejected.  found : labref's own; None where it saw nothing
    alike.
    score : correlation after registration, where labref found it.  decision, who, decided_at : the last a person said,
    if anybody.
    """

    cell_id: str
    other: str
    verdict: Verdict | None
    found: Verdict | None
    score: float | None
    found_at: datetime | None
    decision: Decision | None
    who: str | None
    decided_at: datetime | None


@dataclass(frozen=True, slots=True)
class Conflict:
    """A cell whose files, the same bytes all of them, say different classes. label : that it carries.  says : path,
    label, source."""

    cell_id: str
    label: str
    label_source: str
    says: Sequence[tuple[str, str, str]]


@dataclass(frozen=True, slots=True)
class PairCounts:
    """How many cells repeat others. found : cells that are linked as duplicates.  possible : cells that may repeat
    another and that nobody has decided on.  confirmed, rejected : pairs of which people said so last."""

    found: int = 0
    possible: int = 0
    confirmed: int = 0
    rejected: int = 0


@dataclass(frozen=True, slots=True)
class Learnt:
    """A stored cell whose fingerprints and landmarks (as of `NewCell`) were made late; none where its kept bytes cannot
    be used."""

    cell_id: str
    fingerprints: tuple[Fingerprint, ...]
    landmarks: tuple[Landmark, ...] = ()


class Duplicates(Tables):
    """Pairs of cells in one store; `Store.duplicates`. Methods may be called from any thread."""

    def __init__(self, access: Access, regrouped: Callable[[], None]) -> None:
        """access : the store's.  regrouped : called after links between cells have changed and that is committed."""
        super().__init__(access)
        self._regrouped = regrouped
        self._rejected: Set[frozenset[str]] | None = None
        self._possible: Set[str] | None = None

    # looking

    def pairs(self, *, verdict: str | None = None, limit: int | None = None) -> list[Pair]:
        """Pairs that are linked, and pairs that a person rejected; possible ones first, then the newest.

        verdict : only "duplicate", "possible_duplicate" or "rejected" ones; "neighbour" gives the neighbours, which are
        in no other list, because nobody has to look at them.
        """
        chosen = _NEIGHBOURS if verdict == Verdict.NEIGHBOUR else f"{_LINKED} UNION ALL {_REJECTED}"
        return self._pairs(chosen, verdict, limit)

    def conflicting_pairs(self, limit: int | None = None) -> list[Pair]:
        """Captures of one cell, or what may be one, that carry different labels, neither of them predicted, each once:
        a cell and the first capture of it that was given a label."""
        return self._pairs(_CONFLICTS, None, limit)

    def _pairs(self, chosen: str, verdict: str | None, limit: int | None) -> list[Pair]:
        """The pairs that a query chooses: columns cell, other, verdict; it may ask `said` for the last decisions of
        people."""
        query = f"""
            WITH said AS (
                SELECT cell, other, last(decision ORDER BY number) AS decision, last(who ORDER BY number) AS who,
                       last(decided_at ORDER BY number) AS decided_at
                FROM duplicate_decision GROUP BY cell, other
            ), measured AS (
                SELECT cell, other, last(score ORDER BY number) AS score, last(verdict ORDER BY number) AS found,
                       last(found_at ORDER BY number) AS found_at
                FROM resemblance GROUP BY cell, other
            ), pair AS ({chosen})
            SELECT cell, other, verdict, found, score, found_at, decision, who, decided_at
            FROM pair LEFT JOIN measured USING (cell, other) LEFT JOIN said USING (cell, other)
            WHERE $1::VARCHAR IS NULL OR verdict = $1
            ORDER BY verdict = 'possible_duplicate' DESC, verdict = 'rejected', verdict DESC,
                     coalesce(found_at, decided_at) DESC, cell
            """ + ("" if limit is None else f" LIMIT {limit:d}")
        with self._reading() as cursor:
            return [_pair(row) for row in cursor.execute(query, [verdict]).fetchall()]

    def conflicts(self, limit: int | None = None) -> list[Conflict]:
        """Cells whose files say different classes, in the order of their ids."""
        with self._reading() as cursor:
            found = cursor.execute(
                "SELECT f.cell_id, c.label, c.label_source, list((f.path, f.label, f.label_source) ORDER BY f.path) "
                "FROM file f JOIN cell c USING (cell_id) WHERE f.label IS NOT NULL GROUP BY ALL "
                "HAVING count(DISTINCT f.label) > 1 ORDER BY f.cell_id" + ("" if limit is None else f" LIMIT {limit:d}")
            ).fetchall()
        return [
            Conflict(
                cell_id,
                from_column(label),
                source,
                tuple((from_column(path), from_column(said), str(by)) for path, said, by in says),
            )
            for cell_id, label, source, says in found
        ]

    def says(self, ids: Collection[str]) -> dict[str, list[tuple[str, str, str]]]:
        """What the files of cells say of their class, by cell: path, label, source, in the order of the paths. Cells
        whose files say nothing are left out."""
        with self._reading() as cursor:
            found = cursor.execute(
                "SELECT cell_id, list((path, label, label_source) ORDER BY path) FROM file "
                "WHERE label IS NOT NULL AND cell_id IN (SELECT unnest(?::VARCHAR[])) GROUP BY cell_id",
                [list(ids)],
            ).fetchall()
        return {
            cell_id: [(from_column(path), from_column(label), by) for path, label, by in said]
            for cell_id, said in found
        }

    def history(self, cell_id: str) -> list[tuple[str, str, Decision, str | None, datetime]]:
        """What people decided of a cell, oldest first: cell, other, decision, who, when."""
        with self._reading() as cursor:
            found = cursor.execute(
                "SELECT cell, other, decision, who, decided_at FROM duplicate_decision WHERE cell = $1 OR other = $1 "
                "ORDER BY number",
                [cell_id],
            ).fetchall()
        return [
            (
                cell,
                other,
                word(Decision, decision, f"a decision on cell {cell}"),
                from_nullable(who),
                at.replace(tzinfo=UTC),
            )
            for cell, other, decision, who, at in found
        ]

    def rejected(self) -> Set[frozenset[str]]:
        """Pairs of cell ids that a person called different. Microseconds but for the first time."""
        known = self._rejected
        if known is None:
            with self._reading() as cursor:
                known = {
                    frozenset((cell, other))
                    for cell, other, decision in _last_decisions(cursor)
                    if decision is Decision.REJECTED
                }
            self._rejected = known
        return known

    def possible(self) -> Set[str]:
        """Cells that may repeat another and that nobody has decided on. Microseconds but after a change."""
        known = self._possible
        if known is None:
            with self._reading() as cursor:
                known = {
                    cell_id
                    for (cell_id,) in cursor.execute(
                        "SELECT cell_id FROM cell WHERE duplicate_verdict = 'possible_duplicate'"
                    ).fetchall()
                }
            self._possible = known
        return known

    def by_analyser(self) -> dict[str | None, PairCounts]:
        """How many cells of each analyser repeat others; a pair counts where its later cell is from. An analyser
        without any is left out. Some hundredths of a second for a million cells."""
        with self._reading() as cursor:
            linked = cursor.execute(
                "SELECT analyser, count(*) FILTER (duplicate_verdict = 'duplicate'), "
                "count(*) FILTER (duplicate_verdict = 'possible_duplicate') FROM cell WHERE duplicate_of IS NOT NULL "
                "GROUP BY analyser"
            ).fetchall()
            said = cursor.execute(
                "SELECT c.analyser, count(*) FILTER (decision = 'confirmed'), count(*) FILTER (decision = 'rejected') "
                "FROM (SELECT cell, last(decision ORDER BY number) AS decision FROM duplicate_decision "
                "GROUP BY cell, other) d JOIN cell c ON c.cell_id = d.cell WHERE decision <> 'undone' GROUP BY c.analyser"
            ).fetchall()
        found = {from_nullable(analyser): PairCounts(*counts) for analyser, *counts in linked}
        for analyser, confirmed, rejected in said:
            known = found.get(from_nullable(analyser), PairCounts())
            found[from_nullable(analyser)] = replace(known, confirmed=confirmed, rejected=rejected)
        return found

    def drop_cached(self) -> None:
        """Read again what is kept in memory when it is next asked for."""
        self._rejected = self._possible = None

    def fingerprints(self, ids: Collection[str]) -> dict[str, Fingerprint]:
        """The fingerprints of these cells, by id; those that have none are left out. Milliseconds for a hundred."""
        with self._reading() as cursor:
            return fingerprints(cursor, ids)

    # fingerprints made late

    def count_without_fingerprint(self, version: int = VERSION) -> int:
        """How many cells have no fingerprint of that version. Some milliseconds for a million cells."""
        with self._reading() as cursor:
            row = cursor.execute(
                "SELECT (SELECT count(*) FROM cell) - (SELECT count(*) FROM fingerprint WHERE version = ?)", [version]
            ).fetchone()
        return 0 if row is None else max(0, int(row[0]))

    def without_fingerprint(self, version: int = VERSION) -> list[str]:
        """Ids of those cells, in the order they came."""
        with self._reading() as cursor:
            found = cursor.execute(
                "SELECT cell_id FROM cell ANTI JOIN (SELECT cell_id FROM fingerprint WHERE version = ?) USING (cell_id) "
                "ORDER BY cell.number",
                [version],
            ).fetchnumpy()["cell_id"]
        ids: list[str] = found.tolist()
        return ids

    # deciding

    def confirm(self, cell_id: str, who: str | None, other: str | None = None) -> Pair:
        """A person says that a cell repeats another: by default the one it is linked with. Raises StoreError where
        there is none."""
        return self._decide(cell_id, other, Decision.CONFIRMED, who)

    def reject(self, cell_id: str, who: str | None) -> Pair:
        """A person says that a cell does not repeat the one it is linked with; the two are never linked again.

        Raises StoreError where it is linked with none.
        """
        return self._decide(cell_id, None, Decision.REJECTED, who)

    def undo(self, cell_id: str, who: str | None, other: str | None = None, *, own: bool = False) -> Pair:
        """Take back the last decision on a cell; what labref had found itself holds again.

        other : only on this pair.  own : only what they decided themselves. Raises StoreError where there is none, and
        with `own`, where another person decided last.
        """
        return self._decide(cell_id, other, Decision.UNDONE, who, own=own)

    def _decide(
        self, cell_id: str, other: str | None, decision: Decision, who: str | None, *, own: bool = False
    ) -> Pair:
        at = rows.now()
        with self._quiet():
            with self._transaction() as connection:
                if decision is Decision.UNDONE:
                    cell_id, other, by_whom = _last_decided(connection, cell_id, other)
                    if own and by_whom not in (None, who):
                        raise StoreError(f"{by_whom} decided on cell {cell_id} since then: that stays.")
                else:
                    cell_id, other = _linked(connection, cell_id, other)
                link: tuple[str, Verdict] | None = None
                by = f" by {who}" if who else ""
                outcome, reason = Outcome.STORED, f"a person{by} says it is no recapture of cell {other}"
                if decision is Decision.CONFIRMED:
                    link = other, Verdict.DUPLICATE
                    outcome, reason = Outcome.DUPLICATE, f"a recapture of cell {other}, as a person{by} confirmed; kept"
                elif decision is Decision.UNDONE:
                    found = measured(connection, cell_id, other)
                    outcome, reason = Outcome.STORED, f"what was decided of it and cell {other} was taken back{by}"
                    if found is not None and found.verdict.is_one_cell:
                        link = other, found.verdict
                        outcome, reason = Outcome(found.verdict), reason_of(other, found)
                failpoint("duplicates.decide")
                connection.execute(
                    "INSERT INTO duplicate_decision SELECT coalesce(max(number), 0) + 1, ?, ?, ?, ?, ? FROM duplicate_decision",
                    [cell_id, other, str(decision), to_nullable(who), at],
                )
                set_link(connection, cell_id, link, outcome=outcome, reason=reason, at=at)
            self._regrouped()
        self.drop_cached()
        return next(
            (pair for pair in self.pairs() if (pair.cell_id, pair.other) == (cell_id, other)),
            Pair(cell_id, other, None, None, None, None, decision, who, at.replace(tzinfo=UTC)),
        )


def fingerprints(cursor: duckdb.DuckDBPyConnection, ids: Collection[str]) -> dict[str, Fingerprint]:
    """The fingerprints of these cells, by id; those that have none are left out."""
    columns = ["cell_id", "version", "across", "down"]
    return {
        cell_id: Fingerprint(across, down)
        for cell_id, version, across, down in rows.look_up(cursor, "fingerprint", columns, "cell_id", list(ids))
        if version == VERSION and across is not None
    }


def write_fingerprints(connection: duckdb.DuckDBPyConnection, made: Sequence[tuple[str, Fingerprint | None]]) -> None:
    """Write the fingerprints of cells that have none."""
    if made:
        across = [None if mark is None else mark.across for _, mark in made]
        down = [None if mark is None else mark.down for _, mark in made]
        connection.execute(
            "INSERT INTO fingerprint SELECT unnest($1::VARCHAR[]), $2, unnest($3::UBIGINT[]), unnest($4::UBIGINT[])",
            [[cell_id for cell_id, _ in made], VERSION, across, down],
        )


def drop_marks(connection: duckdb.DuckDBPyConnection, ids: Sequence[str]) -> None:
    """Take the fingerprints and landmarks of cells out, so that they are made anew."""
    for table in ("fingerprint", "landmark"):
        connection.execute(f"DELETE FROM {table} WHERE cell_id IN (SELECT unnest(?::VARCHAR[]))", [list(ids)])


def write_landmarks(connection: duckdb.DuckDBPyConnection, made: Sequence[tuple[str, Fingerprint, int]]) -> None:
    """Write landmarks of cells that have none: the cell, the landmark, the number of the cell."""
    if made:
        connection.execute(
            "INSERT INTO landmark (cell_id, version, across, down, number) SELECT unnest($1::VARCHAR[]), $2, "
            "unnest($3::UBIGINT[]), unnest($4::UBIGINT[]), unnest($5::BIGINT[])",
            [
                [cell_id for cell_id, *_ in made],
                VERSION,
                [mark.across for _, mark, _ in made],
                [mark.down for _, mark, _ in made],
                [number for *_, number in made],
            ],
        )


def write_resemblances(
    connection: duckdb.DuckDBPyConnection, found: Sequence[tuple[str, str, Resemblance]], at: datetime
) -> None:
    """Write down what comparing cells gave: the later cell of each pair, the earlier one, their resemblance."""
    if not found:
        return
    numbers = sequence.begin(connection)
    connection.execute(
        "INSERT INTO resemblance (cell, other, score, verdict, found_at, number) SELECT unnest($1::VARCHAR[]), "
        "unnest($2::VARCHAR[]), unnest($3::DOUBLE[]), unnest($4::VARCHAR[]), $5, unnest($6::BIGINT[])",
        [
            [cell_id for cell_id, *_ in found],
            [other for _, other, _ in found],
            [float(resemblance.score) for *_, resemblance in found],
            [str(resemblance.verdict) for *_, resemblance in found],
            at,
            [numbers.take() for _ in found],
        ],
    )
    sequence.keep(connection, numbers)


def set_link(
    connection: duckdb.DuckDBPyConnection,
    cell_id: str,
    link: tuple[str, Verdict] | None,
    *,
    outcome: Outcome,
    reason: str | None,
    at: datetime,
) -> None:
    """Link a stored cell with an earlier one, or with none, and say so in the ledger; what it said before is kept as
    history."""
    other, verdict = (None, None) if link is None else (link[0], str(link[1]))
    members = _members(connection, [cell_id] if other is None else [cell_id, other])
    connection.execute(
        "UPDATE cell SET duplicate_of = ?, duplicate_verdict = ? WHERE cell_id = ?", [other, verdict, cell_id]
    )
    _regroup(connection, members)
    note(connection, list({*members, cell_id}))
    # the file that the cell was stored from; copies of its bytes are duplicates of the cell itself
    stored_from = "cell_id = ? AND duplicate_of IS DISTINCT FROM cell_id"
    rows.keep_history(connection, stored_from, [cell_id], at)
    failpoint("duplicates.files")
    connection.execute(
        f"UPDATE file SET outcome = ?, reason = ?, duplicate_of = ?, recorded_at = ? WHERE {stored_from}",
        [str(outcome), None if reason is None else to_column(reason), other, at, cell_id],
    )


def link_as_found(
    connection: duckdb.DuckDBPyConnection, cell_id: str, other: str, found: Resemblance, at: datetime
) -> None:
    """Link a stored cell with an earlier one, as labref found the two alike; see `set_link`."""
    set_link(
        connection,
        cell_id,
        (other, found.verdict),
        outcome=Outcome(found.verdict),
        reason=reason_of(other, found),
        at=at,
    )


def load_book(cursor: duckdb.DuckDBPyConnection) -> Mapping[str, Any]:
    """Both hashes, ids and ages of the cells that have a fingerprint of the present version, as arrays."""
    return cursor.execute(
        "SELECT f.across, f.down, ('0x' || c.cell_id)::UBIGINT AS id, c.number::UINTEGER AS age FROM cell c "
        "JOIN fingerprint f USING (cell_id) WHERE f.version = ? AND f.across IS NOT NULL",
        [VERSION],
    ).fetchnumpy()


def load_landmarks(cursor: duckdb.DuckDBPyConnection, most: int) -> Mapping[str, Any]:
    """The landmarks of the present version, of the cells that came last, at most so many, oldest first; as
    `load_book`."""
    return cursor.execute(
        "FROM (SELECT across, down, ('0x' || cell_id)::UBIGINT AS id, number::UINTEGER AS age FROM landmark WHERE version = ? "
        f"ORDER BY number DESC LIMIT {most:d}) ORDER BY age",
        [VERSION],
    ).fetchnumpy()


def load_groups(cursor: duckdb.DuckDBPyConnection) -> GroupBook:
    """The groups of the cells that are linked as duplicates. Some 40 ms for 200,000 of them among a million."""
    found = cursor.execute(
        "SELECT ('0x' || cell_id)::UBIGINT AS id, ('0x' || duplicate_group)::UBIGINT AS first FROM cell "
        "WHERE duplicate_group IS NOT NULL AND duplicate_group <> cell_id ORDER BY number"
    ).fetchnumpy()
    return GroupBook(np.asarray(found["id"], np.uint64), np.asarray(found["first"], np.uint64))


def load_alike(cursor: duckdb.DuckDBPyConnection) -> AlikeBook:
    """The groups of the cells that repeat or may repeat others: those that are linked, and those that labref found
    alike beside; a person's word counts more."""
    linked = cursor.execute(
        "SELECT cell_id, duplicate_of, duplicate_verdict FROM cell WHERE duplicate_of IS NOT NULL ORDER BY number"
    ).fetchall()
    beside = cursor.execute(
        "SELECT cell, other FROM (SELECT cell, other, arg_max(verdict, number) AS verdict, min(number) AS number "
        "FROM resemblance GROUP BY cell, other) alike SEMI JOIN cell c ON c.cell_id = alike.cell "
        "SEMI JOIN cell o ON o.cell_id = alike.other WHERE verdict IN (?, ?) ORDER BY alike.number",
        [str(Verdict.DUPLICATE), str(Verdict.POSSIBLE)],
    ).fetchall()
    apart = {(cell, other) for cell, other, decision in _last_decisions(cursor) if decision is Decision.REJECTED}
    same = [(cell, other) for cell, other, verdict in linked if verdict == Verdict.DUPLICATE]
    possible = [(cell, other) for cell, other, verdict in linked if verdict == Verdict.POSSIBLE]
    possible += [pair for pair in beside if pair not in apart]
    return AlikeBook(
        *([(id_to_int(one), id_to_int(other)) for one, other in pairs] for pairs in (same, possible, list(apart)))
    )


def decided(connection: duckdb.DuckDBPyConnection) -> set[str]:
    """Cells whose link is a person's: they confirmed or rejected it, and did not take that back."""
    return {cell for cell, _, decision in _last_decisions(connection) if decision is not Decision.UNDONE}


def _last_decisions(cursor: duckdb.DuckDBPyConnection) -> Iterator[tuple[str, str, Decision]]:
    found = cursor.execute(
        "SELECT cell, other, last(decision ORDER BY number) FROM duplicate_decision GROUP BY cell, other"
    ).fetchall()
    return ((cell, other, word(Decision, decision, f"a decision on cell {cell}")) for cell, other, decision in found)


def _last_decided(connection: duckdb.DuckDBPyConnection, cell_id: str, of: str | None) -> tuple[str, str, str | None]:
    """The pair of a cell that was decided on last, and by whom. of : the other cell of the pair, or None. Raises
    StoreError."""
    found = connection.execute(
        "SELECT cell, other, decision, who FROM duplicate_decision WHERE cell = $1 OR other = $1 ORDER BY number DESC",
        [cell_id],
    ).fetchall()
    seen: set[tuple[str, str]] = set()
    for cell, other, decision, who in found:
        if of is not None and of not in (cell, other):
            continue
        if (cell, other) not in seen and decision != Decision.UNDONE:
            return str(cell), str(other), from_nullable(who)
        seen.add((cell, other))
    raise StoreError(f"nobody has decided on cell {cell_id}, so there is nothing to undo; see `labref duplicates`.")


def _linked(connection: duckdb.DuckDBPyConnection, cell_id: str, other: str | None) -> tuple[str, str]:
    """The later and the earlier cell of a pair. Raises StoreError."""
    row = connection.execute("SELECT duplicate_of, number FROM cell WHERE cell_id = ?", [cell_id]).fetchone()
    if row is None:
        raise StoreError(f"this lab has no cell {cell_id}; `labref duplicates` lists those in question.")
    if other is None:
        if row[0] is None:
            raise StoreError(
                f"cell {cell_id} is linked with no other; `labref duplicates` lists those that are. To say that it repeats "
                "one, use `labref duplicates confirm CELL --of OTHER`."
            )
        return cell_id, str(row[0])
    of = connection.execute("SELECT number FROM cell WHERE cell_id = ?", [other]).fetchone()
    if of is None or other == cell_id:
        raise StoreError(f"cell {cell_id} cannot be a recapture of {other}: name two cells of this lab.")
    return (cell_id, other) if row[1] > of[0] else (other, cell_id)


def measured(connection: duckdb.DuckDBPyConnection, cell_id: str, other: str) -> Resemblance | None:
    """What labref found last of a cell and an earlier one; None where it saw nothing alike."""
    row = connection.execute(
        "SELECT score, verdict FROM resemblance WHERE cell = ? AND other = ? ORDER BY number DESC LIMIT 1",
        [cell_id, other],
    ).fetchone()
    return (
        None
        if row is None
        else Resemblance(float(row[0]), word(Verdict, row[1], f"the verdict on cells {cell_id} and {other}"))
    )


def regroup(connection: duckdb.DuckDBPyConnection, ids: Sequence[str]) -> None:
    """Name the groups of these cells anew, after cells came or went."""
    _regroup(connection, _members(connection, ids))


def _members(connection: duckdb.DuckDBPyConnection, ids: Sequence[str]) -> list[str]:
    """All cells of the groups that these belong to."""
    found = connection.execute(
        "WITH root AS (SELECT DISTINCT coalesce(duplicate_group, cell_id) AS id FROM cell "
        "WHERE cell_id IN (SELECT unnest(?::VARCHAR[]))) "
        "SELECT DISTINCT cell_id FROM cell, root WHERE cell_id = root.id OR duplicate_group = root.id",
        [list(ids)],
    ).fetchall()
    return [cell_id for (cell_id,) in found]


def _regroup(connection: duckdb.DuckDBPyConnection, members: Sequence[str]) -> None:
    """Name each cell's group after the first of its chain again, where links between them have changed."""
    found = connection.execute(
        "SELECT cell_id, duplicate_of, duplicate_verdict, duplicate_group FROM cell "
        "WHERE cell_id IN (SELECT unnest(?::VARCHAR[]))",
        [list(members)],
    ).fetchall()
    follows = {cell: other for cell, other, verdict, _ in found if verdict == Verdict.DUPLICATE}
    for cell_id, _, _, before in found:
        root = cell_id
        while root in follows:  # ends: links lead from later cells to earlier ones
            root = follows[root]
        group = None if root == cell_id else root
        if group != before:
            connection.execute("UPDATE cell SET duplicate_group = ? WHERE cell_id = ?", [group, cell_id])


def _pair(row: Sequence[Any]) -> Pair:
    cell, other, verdict, found, score, found_at, decision, who, decided_at = row
    return Pair(
        cell,
        other,
        None if verdict == Decision.REJECTED else word(Verdict, verdict, f"the verdict on cell {cell}"),
        None if found is None else word(Verdict, found, f"the verdict on cells {cell} and {other}"),
        score,
        None if found_at is None else found_at.replace(tzinfo=UTC),
        None if decision is None else word(Decision, decision, f"a decision on cell {cell}"),
        from_nullable(who),
        None if decided_at is None else decided_at.replace(tzinfo=UTC),
    )
