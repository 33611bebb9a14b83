"""Going from one bundle to another: the wish, which cells are still without a latent, the report, the switch, and the
way back.

Tables: `bundle_change` (a wish a row; the open one, if any, has no end), `embedding_failure` (cells that a bundle's
networks cannot be given, and why). The active bundle is the last row of `activation`, so a switch is one row in one
transaction.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import duckdb

from labref.errors import StoreError
from labref.failpoints import failpoint
from labref.store.duckdb import bundles, sequence, trash
from labref.store.duckdb.noting import note, note_all
from labref.store.duckdb.rows import now
from labref.store.duckdb.tables import Access, Tables
from labref.store.text import from_column, to_column

__all__ = ["Change", "Changes", "Coverage"]


@dataclass(frozen=True)
class Change:
    """A wish to change to another bundle that has not ended yet.

    digest : of the bundle wished for.  wished_at : UTC.  switch : whether to switch as soon as all cells are embedded.
    leave_out : switch although some cells cannot be embedded.  report : what the switch would change, once it is known.
    """

    digest: str
    wished_at: datetime
    switch: bool
    leave_out: bool
    report: Mapping[str, Any] | None


@dataclass(frozen=True)
class Coverage:
    """How many of the lab's cells have a latent in one bundle's space, and how many cannot get one."""

    cells: int
    embedded: int
    failed: int

    @property
    def missing(self) -> int:
        """Cells that are still to be embedded."""
        return max(0, self.cells - self.embedded - self.failed)


class Changes(Tables):
    """The changes of bundle of one store; `Store.changes`. Methods may be called from any thread."""

    def __init__(self, access: Access, relabelled: Callable[[], None]) -> None:
        """access : the store's.  relabelled : called after cells got other labels."""
        super().__init__(access)
        self._relabelled = relabelled
        self._switched: float | None = None

    # what there is

    def pending(self) -> Change | None:
        """The wish that has not ended, or None. A millisecond."""
        with self._reading() as cursor:
            return _pending(cursor)

    def coverage(self, digest: str) -> Coverage:
        """How far the space of a bundle is filled. Milliseconds. Raises StoreError where the store does not know the
        bundle."""
        with self._reading() as cursor:
            table, _ = bundles.space(cursor, digest)
            row = cursor.execute(
                f"SELECT (SELECT count(*) FROM cell), (SELECT count(*) FROM {table}), "
                "(SELECT count(*) FROM embedding_failure WHERE digest = ?)",
                [digest],
            ).fetchone()
        assert row is not None
        return Coverage(*row)

    def missing(self, digest: str) -> list[str]:
        """Ids of the cells without a latent in the space of a bundle, but those that cannot get one; in the order they
        came."""
        with self._reading() as cursor:
            table, _ = bundles.space(cursor, digest)
            found = cursor.execute(
                f"SELECT cell_id FROM cell ANTI JOIN {table} USING (cell_id) WHERE cell_id NOT IN "
                "(SELECT cell_id FROM embedding_failure WHERE digest = ?) ORDER BY cell.number",
                [digest],
            ).fetchnumpy()
        ids: list[str] = found["cell_id"].tolist()
        return ids

    def failures(self, digest: str) -> dict[str, str]:
        """Cells that cannot be embedded by a bundle, with the reason of each."""
        with self._reading() as cursor:
            found = cursor.execute(
                "SELECT cell_id, reason FROM embedding_failure WHERE digest = ? ORDER BY number", [digest]
            ).fetchall()
        return {cell_id: from_column(reason) for cell_id, reason in found}

    def activations(self) -> list[tuple[str, datetime]]:
        """Which bundle was active since when (UTC), oldest first; the last is the active one."""
        with self._reading() as cursor:
            found = cursor.execute("SELECT digest, activated_at FROM activation ORDER BY number").fetchall()
        return [(digest, at.replace(tzinfo=UTC)) for digest, at in found]

    def sample(self, per_class: int) -> dict[str, tuple[int, list[str]]]:
        """Of each class the number of its cells, and up to `per_class` of them, always the same ones: ids are digests,
        so the smallest ones are a random choice."""
        with self._reading() as cursor:
            found = cursor.execute(
                "SELECT label, count(*), min(cell_id, $1) FROM cell GROUP BY label ORDER BY label", [per_class]
            ).fetchall()
        return {from_column(label): (count, list(ids)) for label, count, ids in found}

    # changing

    def wish(self, digest: str, *, switch: bool) -> None:
        """Write down that the lab shall change to a bundle that the store has; a wish for another one ends. What could
        not be embedded is tried again."""
        with self._transaction() as connection:
            bundles.space(connection, digest)
            open_now = _pending(connection)
            if open_now is not None and open_now.digest == digest:
                connection.execute("UPDATE bundle_change SET switch = switch OR ? WHERE ended_at IS NULL", [switch])
            else:
                _end(connection, "superseded")
                connection.execute(
                    "INSERT INTO bundle_change SELECT coalesce(max(number), 0) + 1, ?, ?, ?, false, NULL, NULL, NULL "
                    "FROM bundle_change",
                    [digest, now(), switch],
                )
            connection.execute("DELETE FROM embedding_failure WHERE digest = ?", [digest])
            failpoint("bundle.wish")

    def want_switch(self, digest: str, *, leave_out: bool) -> None:
        """Let the open wish for a bundle end in a switch. Raises StoreError where there is no such wish."""
        with self._transaction() as connection:
            open_now = _pending(connection)
            if open_now is None or open_now.digest != digest:
                raise StoreError(f"no change to bundle {digest[:12]} is under way; activate it first.")
            connection.execute(
                "UPDATE bundle_change SET switch = true, leave_out = ? WHERE ended_at IS NULL", [leave_out]
            )

    def cancel(self) -> None:
        """End the open wish; the latents made for it stay."""
        with self._transaction() as connection:
            _end(connection, "cancelled")

    def report(self, digest: str, report: Mapping[str, Any]) -> None:
        """Keep what the switch to a bundle would change, with the open wish for it."""
        with self._transaction() as connection:
            connection.execute(
                "UPDATE bundle_change SET report = ? WHERE ended_at IS NULL AND digest = ?",
                [json.dumps(report), digest],
            )
            failpoint("bundle.report")

    def fail(self, digest: str, reasons: Mapping[str, str]) -> None:
        """Write down which cells cannot be embedded by a bundle, and why."""
        with self._transaction() as connection:
            numbers = sequence.begin(connection)
            connection.executemany(
                "INSERT INTO embedding_failure (digest, cell_id, reason, failed_at, number) VALUES (?, ?, ?, ?, ?)",
                [[digest, cell_id, to_column(reason), now(), numbers.take()] for cell_id, reason in reasons.items()],
            )
            sequence.keep(connection, numbers)

    def retry(self, digest: str) -> None:
        """Forget which cells could not be embedded by a bundle, so that they are tried again."""
        with self._transaction() as connection:
            connection.execute("DELETE FROM embedding_failure WHERE digest = ?", [digest])

    def switch(self, digest: str) -> None:
        """Make a bundle the active one, and end the wish for it, in one transaction.

        Cells that carry the prediction of the bundle before get that of the new one, where they have been embedded by
        it.
        """
        with self._transaction() as connection:
            bundles.activate(connection, digest)
            open_now = _pending(connection)
            _end(connection, "switched" if open_now is None or open_now.digest == digest else "superseded")
            failpoint("bundle.relabel")
            changed = _predict(connection, digest)
            note_all(connection)
            failpoint("bundle.switch")
        self._switched = time.monotonic()
        if changed:
            self._relabelled()

    def seconds_since_switch(self) -> float:
        """How long ago this process switched, whatever the computer's clock says; infinite where it never did."""
        return math.inf if self._switched is None else time.monotonic() - self._switched

    def predict(self) -> int:
        """Give every cell that carries a prediction that of the active bundle; returns how many changed."""
        with self._transaction() as connection:
            digest = bundles.active(connection)
            changed = 0 if digest is None else _predict(connection, digest)
        if changed:
            self._relabelled()
        return changed

    def drop(self, digest: str) -> None:
        """Delete the latents of a bundle. Raises StoreError where it is the active one, or a change to it is under
        way."""
        with self._transaction() as connection:
            open_now = _pending(connection)
            if bundles.active(connection) == digest:
                raise StoreError(
                    f"bundle {digest[:12]} is the active one and cannot be dropped; activate another first."
                )
            if open_now is not None and open_now.digest == digest:
                raise StoreError(
                    f"a change to bundle {digest[:12]} is under way; give it up with `labref bundle rollback` first."
                )
            table, _ = bundles.space(connection, digest)
            connection.execute("DELETE FROM embedding_failure WHERE digest = ?", [digest])
            connection.execute("DELETE FROM bundle WHERE digest = ?", [digest])
            failpoint("bundle.drop")
            connection.execute(f"DROP TABLE {table}")
            trash.drop_table(connection, table)


def _pending(cursor: duckdb.DuckDBPyConnection) -> Change | None:
    row = cursor.execute(
        "SELECT digest, wished_at, switch, leave_out, report FROM bundle_change WHERE ended_at IS NULL"
    ).fetchone()
    if row is None:
        return None
    digest, wished_at, switch, leave_out, report = row
    return Change(
        digest, wished_at.replace(tzinfo=UTC), switch, leave_out, None if report is None else json.loads(report)
    )


def _end(connection: duckdb.DuckDBPyConnection, outcome: str) -> None:
    connection.execute("UPDATE bundle_change SET ended_at = ?, outcome = ? WHERE ended_at IS NULL", [now(), outcome])


def _predict(connection: duckdb.DuckDBPyConnection, digest: str) -> int:
    table, _ = bundles.space(connection, digest)
    found = connection.execute(
        f"UPDATE cell SET label = e.predicted_label FROM {table} e WHERE cell.cell_id = e.cell_id "
        "AND cell.label_source = 'predicted' AND cell.label <> e.predicted_label RETURNING cell.cell_id"
    ).fetchall()
    note(connection, [cell_id for (cell_id,) in found])
    return len(found)
