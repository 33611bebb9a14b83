"""What all that reads and writes tables of a store has from it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import duckdb

__all__ = ["Access", "Tables"]


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
