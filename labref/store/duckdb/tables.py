"""What all that reads and writes tables of a store has from it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import ClassVar

import duckdb

__all__ = ["Access", "OfCells", "Tables"]


@dataclass(frozen=True, slots=True)
class Access:
    """A store's ways to its database, each a context manager.

    reading : a cursor of its own, which waits for nobody.  transaction : the connection, in a transaction that is
    committed at the end of the block; one at a time.  quiet : no other thread writes until the block ends; transactions
    can be within it.
    """

    reading: Callable[[], AbstractContextManager[duckdb.DuckDBPyConnection]]
    transaction: Callable[[], AbstractContextManager[duckdb.DuckDBPyConnection]]
    quiet: Callable[[], AbstractContextManager[None]]


class Tables:
    """Some tables of one store, opened to other rooms as an attribute of `Store`."""

    def __init__(self, access: Access) -> None:
        """access : the store's."""
        self._reading, self._transaction, self._quiet = access.reading, access.transaction, access.quiet


class OfCells(Tables):
    """A table with a row for each cell; cells that an older labref stored can lack theirs."""

    table: ClassVar[str]

    def counts(self) -> tuple[int, int]:
        """How many cells there are, and how many have a row. A millisecond."""
        with self._reading() as cursor:
            row = cursor.execute(f"SELECT (SELECT count(*) FROM cell), (SELECT count(*) FROM {self.table})").fetchone()
        assert row is not None
        return int(row[0]), int(row[1])

    def missing(self) -> list[str]:
        """Ids of the cells without a row, in the order they came."""
        with self._reading() as cursor:
            found = cursor.execute(
                f"SELECT cell_id FROM cell ANTI JOIN {self.table} USING (cell_id) ORDER BY cell.number"
            ).fetchnumpy()
        ids: list[str] = found["cell_id"].tolist()
        return ids
