"""An index for questions over very many cells: HNSW, one for each bundle's partition that has grown past a size.

Without one every cell is compared, and a question misses none. With one, questions that mean very many cells take it,
which can miss a near cell; those under a filter that leaves fewer compare all of them as before
(`labref.shared.asking`). Cells may come and go while an index is made.
"""

from __future__ import annotations

import contextlib
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from labref.errors import SharedError
from labref.progress import Steps
from labref.shared.address import Address
from labref.shared.connection import connect, in_words
from labref.shared.migrations import require

if TYPE_CHECKING:
    import psycopg

__all__ = ["INDEX_ABOVE", "MEMORY_MB", "Partition", "index", "name_of", "partitions"]

INDEX_ABOVE: Final = 300_000
"""More cells of one bundle want an index: deploy/shared.md has what was measured."""
MEMORY_MB: Final = 1000
"""What the server may use while it makes one."""
_LOCK: Final = 6_102_017_002
"""Number of the advisory lock that whoever makes an index holds."""
_LOOK_SECONDS: Final = 1.0
_CONNECTIONS, _CANDIDATES = 16, 64  # HNSW's m and ef_construction: pgvector's own


@dataclass(frozen=True)
class Partition:
    """The cells of one bundle. bundle : its digest.  cells : how many.  bytes : their size, without pictures and
    index.  index_bytes : None where there is none that can be used."""

    number: int
    bundle: str
    name: str
    latent_size: int
    cells: int
    bytes: int
    index_bytes: int | None

    @property
    def wants_index(self) -> bool:
        """Whether it has grown past the size, and has none."""
        return self.cells > INDEX_ABOVE and self.index_bytes is None


def name_of(number: int) -> str:
    """The name of the index of a bundle's partition. number : the bundle's."""
    return f"cell_{number}_nearest"


def partitions(connection: psycopg.Connection[tuple[Any, ...]]) -> list[Partition]:
    """The partitions, oldest bundle first."""
    found = connection.execute(
        "SELECT number, digest, name, latent_size, (SELECT count(*) FROM cell WHERE cell.bundle = number), "
        "coalesce(pg_table_size(to_regclass('labref.cell_' || number)), 0), "
        "(SELECT pg_relation_size(indexrelid) FROM pg_catalog.pg_index JOIN pg_catalog.pg_class c ON c.oid = indexrelid "
        "WHERE indrelid = to_regclass('labref.cell_' || number) AND relname = 'cell_' || number || '_nearest' AND indisvalid) "
        "FROM bundle ORDER BY number"
    ).fetchall()
    return [Partition(*row) for row in found]


def index(
    address: Address, password: str | None, *, above: int = INDEX_ABOVE, memory_mb: int = MEMORY_MB
) -> Steps[list[Partition]]:
    """Make an index for each partition of more cells than `above` that has none; returns those partitions.

    memory_mb : that the server may use for it; where the index does not fit, it takes far longer. Raises `SharedError`
    where the user is not the owner, or somebody else makes one.
    """
    with (
        connect(address, password, statement_seconds=0) as connection,
        connect(address, password) as watching,
        in_words(address),
    ):
        require(connection, address)
        row = connection.execute("SELECT pg_try_advisory_lock(%s)", [_LOCK]).fetchone()
        if row is None or not row[0]:
            raise SharedError(f"somebody else makes an index in {address} just now. Wait until it is there.")
        connection.execute("SELECT set_config('maintenance_work_mem', %s, false)", [f"{memory_mb}MB"])
        wanting = [one for one in partitions(connection) if one.cells > above and one.index_bytes is None]
        for one in wanting:
            yield from _make(connection, watching, one)
        return [one for one in partitions(connection) if one.number in {made.number for made in wanting}]


def _make(
    connection: psycopg.Connection[tuple[Any, ...]], watching: psycopg.Connection[tuple[Any, ...]], of: Partition
) -> Steps[None]:
    named, size = name_of(of.number), of.latent_size
    text = f"cells of bundle {of.name} indexed"
    # what an attempt that was broken off left cannot be used
    connection.execute(f"DROP INDEX IF EXISTS labref.{named}".encode())
    statement = (
        f"CREATE INDEX CONCURRENTLY {named} ON labref.cell_{of.number} USING hnsw ((latent::vector({size})) vector_l2_ops) "
        f"WITH (m = {_CONNECTIONS}, ef_construction = {_CANDIDATES})"
    )
    with ThreadPoolExecutor(1, "labref-index") as beside:
        making = beside.submit(connection.execute, statement.encode())
        try:
            while not making.done():
                row = watching.execute(
                    "SELECT tuples_done FROM pg_catalog.pg_stat_progress_create_index WHERE relid = %s::regclass",
                    [f"labref.cell_{of.number}"],
                ).fetchone()
                yield 0 if row is None else min(int(row[0]), of.cells), of.cells, text
                time.sleep(_LOOK_SECONDS)
        except BaseException:
            with contextlib.suppress(Exception):  # the first error counts
                connection.cancel()
            raise
        making.result()
    yield of.cells, of.cells, text
