"""A lab tells the shared store of its cells: each batch in one transaction, with how far the lab is by then.

So a batch is there whole with its mark, or not at all, whoever is killed: after a break the lab reads the mark and goes
on behind it. A batch says how cells are, not what changed, and a cell has one row; what is told twice is there once.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from labref.errors import SharedError
from labref.failpoints import failpoint
from labref.shared.address import Address
from labref.shared.connection import connect, in_words, plain
from labref.shared.migrations import require

__all__ = ["Mark", "Publication", "Published", "SharedBundle"]


@dataclass(frozen=True)
class SharedBundle:
    """The bundle in whose space the latents are."""

    digest: str
    name: str
    version: str
    latent_size: int


@dataclass(frozen=True)
class Mark:
    """How far a lab has published: number of a row of its outbox, and its tag with how rows were written."""

    number: int
    tag: str


@dataclass(frozen=True, slots=True, eq=False)
class Published:
    """A cell as the shared store has it. latent : float32[L].  place : one cell of those that are or may be captures of
    the same physical cell.  across, down : its fingerprint, unsigned, 64 bit; None where it has none.  names : slide
    and path, only where the lab's setting says so."""

    cell_id: str
    digest: str
    label: str
    label_source: str
    analyser: str | None
    optics: str | None
    captured_at: datetime | None
    stored_at: datetime
    latent: NDArray[np.float32]
    place: str
    across: int | None
    down: int | None
    withheld: bool
    names: tuple[str | None, str] | None = None


class Publication:
    """A connection by which one lab publishes; closed at the end of a `with`. Methods raise `SharedError`."""

    def __init__(self, address: Address, password: str | None) -> None:
        self._address = address
        self._connection = connect(address, password)
        self._bundles: dict[str, int] = {}
        try:
            with in_words(address):
                require(self._connection, address)
                row = self._connection.execute(
                    "SELECT id, name, sent, tag, generation FROM lab WHERE role = current_user"
                ).fetchone()
            if row is None:
                raise SharedError(
                    f"{address.user} is the role of no lab in {address}. The owner makes one: `labref shared lab add NAME`."
                )
            self._lab, self.name, number, tag, self._generation = row
            self.mark: Mark | None = None if number is None else Mark(number, tag)
            """How far the lab is."""
        except BaseException:
            self._connection.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()

    def send(
        self,
        bundle: SharedBundle,
        cells: Sequence[Published],
        gone: Collection[str],
        mark: Mark,
        *,
        begins: bool = False,
        ends: bool = False,
    ) -> None:
        """Publish a batch. gone : ids of cells that are no longer there, or have no latent of this bundle.  mark :
        how far the lab is then.  begins : whether all its cells come from here on; `ends` : whether all have come, so
        that what is of before goes."""
        number = self._bundle(bundle)
        with in_words(self._address), self._connection.transaction():
            generation = self._generation_now(" FOR UPDATE") + begins
            self._write(number, generation, cells)
            self._take_out(gone)
            if ends:
                self._sweep(generation)
            failpoint("shared.mark", may_fail=False)
            self._connection.execute(
                "UPDATE lab SET sent = %s, tag = %s, generation = %s, published_at = now() WHERE id = %s",
                [mark.number, mark.tag, generation, self._lab],
            )
            failpoint("shared.commit", may_fail=False)
        self.mark = mark
        failpoint("shared.committed", may_fail=False)

    def look(self) -> None:
        """See whether the shared store has what it was told last."""
        with in_words(self._address):
            self._generation_now()

    def _generation_now(self, held: str = "") -> int:
        """The lab's present generation. held : SQL by which nobody changes it before the transaction ends. Raises
        `SharedError` where the shared store is not as it was left."""
        row = self._connection.execute(
            f"SELECT sent, tag, generation FROM lab WHERE id = %s{held}".encode(), [self._lab]
        ).fetchone()
        expected = (None, None) if self.mark is None else (self.mark.number, self.mark.tag)
        if row is None or row[:2] != expected:
            raise SharedError(
                f"{self._address} is not as {self.name} left it: it was restored or mended, which is seen to by itself; or somebody "
                f"else publishes as {self.name}. Two labs cannot be one: give each a role of its own, with `labref shared lab add NAME`."
            )
        return int(row[2])

    def without_thumbnail(self, most: int, among: Collection[str] | None = None) -> list[str]:
        """Ids of cells of this lab that have no thumbnail yet, at most so many. among : ids of the cells that are
        looked at; without them all of the lab's are, which takes a second for a million."""
        condition, values = ("", []) if among is None else ("AND cell_id = ANY(%s) ", [list(among)])
        with in_words(self._address):
            found = self._connection.execute(
                f"SELECT cell_id FROM cell WHERE lab = %s {condition}AND NOT EXISTS (SELECT FROM thumbnail t "
                "WHERE t.lab = cell.lab AND t.cell_id = cell.cell_id) LIMIT %s".encode(),
                [self._lab, *values, most],
            ).fetchall()
        return [cell_id for (cell_id,) in found]

    def send_thumbnails(self, made: Mapping[str, bytes]) -> None:
        """Publish thumbnails, JPEG, by cell; an empty one stands for a picture that there is not. Cells that are gone
        meanwhile get none."""
        with in_words(self._address), self._connection.transaction():
            self._connection.execute(
                "INSERT INTO thumbnail (lab, cell_id, jpeg) SELECT %(lab)s, made.* "
                "FROM unnest(%(ids)s::text[], %(jpegs)s::bytea[]) AS made (cell_id, jpeg) "
                "WHERE EXISTS (SELECT FROM cell WHERE cell.lab = %(lab)s AND cell.cell_id = made.cell_id) "
                "ON CONFLICT DO NOTHING",
                {"lab": self._lab, "ids": list(made), "jpegs": list(made.values())},
            )

    def _bundle(self, bundle: SharedBundle) -> int:
        number = self._bundles.get(bundle.digest)
        if number is None:
            import psycopg

            values = [bundle.digest, plain(bundle.name, 200), plain(bundle.version, 200), bundle.latent_size]
            add = "SELECT add_bundle(%s, %s, %s, %s)"
            with in_words(self._address):
                try:
                    row = self._connection.execute(add, values).fetchone()
                except psycopg.errors.UniqueViolation:  # another lab was about to add it, and has by now
                    row = self._connection.execute(add, values).fetchone()
            assert row is not None
            number = self._bundles[bundle.digest] = int(row[0])
        return number

    def _write(self, bundle: int, generation: int, cells: Sequence[Published]) -> None:
        if not cells:
            return
        columns: dict[str, tuple[str, list[Any]]] = {
            "withheld": ("bool", [cell.withheld for cell in cells]),
            "optics": ("text", [_nullable(cell.optics, 200) for cell in cells]),
            "latent": ("text", [_vector(cell.latent) for cell in cells]),
            "cell_id": ("text", [cell.cell_id for cell in cells]),
            "digest": ("bytea", [bytes.fromhex(cell.digest) for cell in cells]),
            "label": ("text", [plain(cell.label, 1000) for cell in cells]),
            "label_source": ("text", [cell.label_source for cell in cells]),
            "analyser": ("text", [_nullable(cell.analyser, 200) for cell in cells]),
            "place": ("text", [cell.place for cell in cells]),
            "across": ("int8", [_signed(cell.across) for cell in cells]),
            "down": ("int8", [_signed(cell.down) for cell in cells]),
            "captured_at": ("timestamptz", [cell.captured_at for cell in cells]),
            "stored_at": ("timestamptz", [cell.stored_at for cell in cells]),
        }
        ids = columns["cell_id"][1]
        # a cell is in the space of one bundle: that of the lab
        self._connection.execute(
            "DELETE FROM cell WHERE lab = %s AND cell_id = ANY(%s) AND bundle <> %s", [self._lab, ids, bundle]
        )
        names = ", ".join(columns)
        given = ", ".join(f"%s::{kind}[]" for kind, _ in columns.values())
        chosen = ", ".join("latent::vector" if name == "latent" else name for name in columns)
        changed = ", ".join(f"{name} = excluded.{name}" for name in (*columns, "generation") if name != "cell_id")
        self._connection.execute(
            f"INSERT INTO cell (bundle, lab, generation, {names}) SELECT %s, %s, %s, {chosen} "
            f"FROM unnest({given}) AS given ({names}) "
            f"ON CONFLICT (lab, cell_id, bundle) DO UPDATE SET {changed}".encode(),
            [bundle, self._lab, generation, *(values for _, values in columns.values())],
        )
        named = [
            (cell.cell_id, _nullable(cell.names[0], 4000), plain(cell.names[1], 40_000))
            for cell in cells
            if cell.names is not None
        ]
        self._connection.execute("DELETE FROM named WHERE lab = %s AND cell_id = ANY(%s)", [self._lab, ids])
        if named:
            self._connection.execute(
                "INSERT INTO named (lab, cell_id, slide, path) SELECT %s, * FROM unnest(%s::text[], %s::text[], %s::text[])",
                [self._lab, *map(list, zip(*named, strict=True))],
            )

    def _take_out(self, gone: Collection[str]) -> None:
        if gone:
            for table in ("cell", "thumbnail", "named"):
                self._connection.execute(
                    f"DELETE FROM {table} WHERE lab = %s AND cell_id = ANY(%s)".encode(), [self._lab, list(gone)]
                )

    def _sweep(self, generation: int) -> None:
        """Take out what is of before the lab published everything, and what says that there is no picture: it is tried
        again."""
        self._connection.execute("SET LOCAL statement_timeout = 0")  # of a large lab, from a slow disk
        self._connection.execute("DELETE FROM cell WHERE lab = %s AND generation < %s", [self._lab, generation])
        self._connection.execute("DELETE FROM thumbnail WHERE lab = %s AND length(jpeg) = 0", [self._lab])
        for table in ("thumbnail", "named"):
            self._connection.execute(
                f"DELETE FROM {table} t WHERE lab = %s AND NOT EXISTS (SELECT FROM cell WHERE cell.lab = t.lab "
                "AND cell.cell_id = t.cell_id)".encode(),
                [self._lab],
            )


def _nullable(text: str | None, most: int) -> str | None:
    return None if text is None else plain(text, most)


def _vector(latent: NDArray[np.float32]) -> str:
    """float32[L] as pgvector reads it, to the last bit."""
    return f"[{','.join(map(repr, latent.tolist()))}]"


def _signed(bits: int | None) -> int | None:
    """64 bits as PostgreSQL's signed number."""
    return None if bits is None else bits - 2**64 if bits >= 2**63 else bits
