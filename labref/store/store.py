"""The latent store of one lab: cells, their paths and outcomes, and one latent space for each bundle."""

from __future__ import annotations

import contextlib
import gc
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NamedTuple, Self, TypeVar

import duckdb
import numpy as np
from numpy.typing import NDArray

from labref.errors import StoreError, UnstorableError
from labref.failpoints import failpoint
from labref.store.duckdb import (
    backfill,
    blocks,
    bundles,
    clock,
    migrations,
    moves,
    optics,
    origins,
    removal,
    rows,
    scan,
    sequence,
    upkeep,
)
from labref.store.duckdb.blocks import Blocks
from labref.store.duckdb.changes import Changes
from labref.store.duckdb.connection import connect, release
from labref.store.duckdb.contributing import Contribution
from labref.store.duckdb.duplicates import Duplicates, Learnt, load_alike, load_book, load_groups, load_landmarks
from labref.store.duckdb.events import Events
from labref.store.duckdb.exporting import Export
from labref.store.duckdb.keys import Keys
from labref.store.duckdb.maps import Maps
from labref.store.duckdb.noting import note, note_all, refill
from labref.store.duckdb.optics import OpticsBook, OpticsMeasures
from labref.store.duckdb.outbox import Outbox
from labref.store.duckdb.people import People
from labref.store.duckdb.qualities import Qualities
from labref.store.duckdb.queues import Queues
from labref.store.duckdb.readings import Readings
from labref.store.duckdb.rejections import Rejections
from labref.store.duckdb.removal import Due
from labref.store.duckdb.reviews import Reviews
from labref.store.duckdb.slides import Slides
from labref.store.duckdb.tables import Access
from labref.store.duckdb.trash import Trash
from labref.store.duckdb.upkeep import Comparison, Faults
from labref.store.duckdb.vocabulary import word
from labref.store.duckdb.withdrawal import Withdrawal
from labref.store.duckdb.writing import write, write_embeddings, write_labels
from labref.store.memory import distances
from labref.store.memory.alike import AlikeBook
from labref.store.memory.books import MOST_LANDMARKS, CellBook, GroupBook, HashBook, id_to_int, int_to_id
from labref.store.memory.examples import MOST_EXAMPLES, Examples
from labref.store.memory.index import BLOCK_ROWS, Index
from labref.store.memory.origins import Origins
from labref.store.memory.positions import OpenPlacer, Placed
from labref.store.recording import Comparing, Plan, Search, check_embedding, check_new_cell, draw_up
from labref.store.text import from_column, from_nullable, to_column
from labref.store.values import (
    Cell,
    CellEmbedding,
    Counts,
    Embedded,
    FileOfCell,
    FileState,
    Judge,
    LedgerRow,
    Neighbour,
    NewCell,
    Rejected,
    SeenAgain,
    StoredBundle,
)
from labref.words import Fingerprint, LabelSource, Landmark, Outcome, SlideId, cell_id_of

__all__ = ["MEMORY_LIMIT", "THREADS", "Store"]

MEMORY_LIMIT = "1GiB"
"""What DuckDB may use at most, beside the index; it moves larger work to a folder beside the store."""
THREADS = 2
"""Threads of DuckDB: the analyser's PC has other work to do."""

_NOT_OF_A_ROW = (
    OSError,
    MemoryError,
    duckdb.OperationalError,
    duckdb.FatalException,
    duckdb.InterruptException,
    duckdb.PermissionException,
)
"""Errors of the disk, the memory or the database: with any other batch they would be the same."""

_T = TypeVar("_T")

_APART = 100  # cells of others among which each of a slide lies: with more, each is looked up by its key
_CLOSE_SECONDS = 10.0  # that a store waits at most for threads that begin to read while it is closed


class _Known(NamedTuple):
    """What is kept in memory of all cells: label and who gave it, fingerprints, which repeat which, and which may; and
    of the last the landmarks."""

    labels: CellBook[tuple[str, LabelSource]]
    hashes: HashBook
    groups: GroupBook
    alike: AlikeBook
    landmarks: HashBook


class _Spaces(NamedTuple):
    """The bundles of a store after so many commits: the digest of the active one, and of each, in the order they came,
    the table of its latents and what is known of it."""

    commits: int
    active: str | None
    of: dict[str, tuple[str, StoredBundle]]


class Store:
    """A lab's store, open for this process alone; closed by `close` or at the end of a `with`.

    All methods may be called from any thread. Writes happen one at a time; reads do not wait for them and see what
    was committed. What `record` has returned survives the end of the process, however it ends.
    """

    def __init__(self, path: Path, memory_limit: str, threads: int, open_placer: OpenPlacer | None = None) -> None:
        """Not called directly: see `create` and `open`."""
        self.path = path
        self._settings = (memory_limit, threads)
        self._connection = _connect(path, memory_limit, threads)
        self._file: IO[bytes] | None = None  # of the store, once its blocks were read
        self._reading_file = threading.Lock()
        self._broken = False
        self._writing = threading.RLock()
        self._closed = False
        self._indexes: dict[str, Index] = {}
        self._examples: dict[str, Examples] = {}
        self._counted = Examples()
        self._known: _Known | None = None
        access = Access(self._reading, self._transaction, self.quiet)
        self.maps = Maps(access, path.parent / "maps", open_placer)
        """The lab's maps; see labref.store.duckdb.maps."""
        self.changes = Changes(access, self._relabelled)
        """Going from one bundle to another; see labref.store.duckdb.changes."""
        self.reviews = Reviews(access, self._reviewed)
        """Labels that people give, and their history; see labref.store.duckdb.reviews."""
        self.optics = OpticsMeasures(access)
        """What was measured of the cells' optics; see labref.store.duckdb.optics."""
        self.duplicates = Duplicates(access, self._regrouped)
        """Cells that repeat others, and what people decided of them; see labref.store.duckdb.duplicates."""
        self.trash = Trash(access, self._came_back)
        """Cells that were removed and that can be brought back; see labref.store.duckdb.trash."""
        self.withdrawal = Withdrawal(access, self.reload)
        """Cells that people take out by name; see labref.store.duckdb.withdrawal."""
        self.events = Events(access, self.reviews)
        """What the store tells other systems, and what they told it; see labref.store.duckdb.events."""
        self.people = People(access)
        """Who may look at the lab's pages; see labref.store.duckdb.people."""
        self.keys = Keys(access)
        """Which keys sign bundles, and why each bundle came in; see labref.store.duckdb.keys."""
        self.slides = Slides(access)
        """The cells of each slide, and who approved it; see labref.store.duckdb.slides."""
        self.qualities = Qualities(access)
        """Whether pictures show one stained cell; see labref.store.duckdb.qualities."""
        self.rejections = Rejections(access)
        """References that people called no good; see labref.store.duckdb.rejections."""
        self.queues = Queues(access, self.reviews)
        """What waits for review; see labref.store.duckdb.queues."""
        self.outbox = Outbox(access)
        """What the shared store is still to be told; see labref.store.duckdb.outbox."""
        self.readings = Readings(access)
        """Blinded readings; see labref.store.duckdb.readings."""
        self._optics_book: OpticsBook | None = None
        self._origins = Origins.none()
        self._locating = threading.Lock()
        self._removed: NDArray[np.uint64] | None = None
        self.revision = 0
        """Grows when outcomes were taken out of the ledger; whoever remembers them has to read them again."""
        self._commits = 0
        self._known_spaces: _Spaces | None = None
        self._last_number = (-1, 0)

    # opening and closing

    @classmethod
    def create(
        cls,
        path: Path,
        *,
        memory_limit: str = MEMORY_LIMIT,
        threads: int = THREADS,
        open_placer: OpenPlacer | None = None,
    ) -> Self:
        """Make a new, empty store and open it, as `open`. Raises StoreError where the path is taken or cannot be
        written."""
        if path.exists():
            raise StoreError(f"{path} is there already. Open it, or choose another folder.")
        # made under another name first, so that a kill leaves no half-made store under the real one
        draft = path.with_name(f"{path.name}.new")
        for left in (draft, draft.with_name(f"{draft.name}.wal")):
            left.unlink(missing_ok=True)
        cls(draft, memory_limit, threads).close()
        failpoint("store.create")
        os.replace(draft, path)
        return cls.open(path, memory_limit=memory_limit, threads=threads, open_placer=open_placer)

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        memory_limit: str = MEMORY_LIMIT,
        threads: int = THREADS,
        open_placer: OpenPlacer | None = None,
    ) -> Self:
        """Open a store, bringing its schema up to date.

        open_placer : reads the lab's maps; without it none is in use.

        Raises StoreLockedError where a process has it open, StoreTooNewError (the store untouched) where a newer
        labref wrote it, StoreError where it is missing, no store, or damaged.
        """
        if not path.is_file():
            raise StoreError(
                f"{path} is missing. Restore a backup of the lab folder, or make a new lab with `labref init`."
            )
        return cls(path, memory_limit, threads, open_placer)

    def close(self) -> None:
        """Close the store; a second time does nothing."""
        with self._writing:
            if not self._closed:
                self._closed = True
                _close(self._connection)
                if self._file is not None:  # not before: that would end DuckDB's lock of the file
                    self._file.close()
                release(self.path)
                self._indexes.clear()
                self._examples.clear()
                self._known = None
                self.maps.drop_cached()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def schema_version(self) -> int:
        """Version of the schema; grows with labref."""
        with self._reading() as cursor:
            return migrations.schema_version(cursor)

    # bundles

    def add_bundle(self, digest: str, *, name: str, version: str, latent_size: int, labels: Sequence[str]) -> None:
        """Make room for the latents of a bundle, float32[latent_size]; a bundle known already is left alone.

        digest : SHA-256 of the bundle. labels : the columns of its probabilities, in order.
        """
        with self._transaction() as connection:
            bundles.add(connection, digest, name=name, version=version, latent_size=latent_size, labels=labels)

    def set_active_bundle(
        self, digest: str, *, name: str, version: str, latent_size: int, labels: Sequence[str]
    ) -> None:
        """Make a bundle the one that answers, added first if need be; atomic, and kept as history."""
        with self._transaction() as connection:
            bundles.add(connection, digest, name=name, version=version, latent_size=latent_size, labels=labels)
            bundles.activate(connection, digest)
            note_all(connection)

    def active_bundle(self) -> str | None:
        """Digest of the active bundle, or None before the first."""
        return self._spaces().active

    def bundles(self) -> list[StoredBundle]:
        """All bundles whose latents the store has room for, in the order they came."""
        return [bundle for _, bundle in self._spaces().of.values()]

    # writing

    @contextlib.contextmanager
    def quiet(self) -> Iterator[None]:
        """No other thread writes until the block ends; reads go on."""
        with self._writing:
            yield

    def record(
        self,
        batch: Sequence[NewCell | SeenAgain | Rejected],
        *,
        bundle: str,
        judge: Judge | None = None,
        candidate_bits: int = 0,
    ) -> list[LedgerRow]:
        """Write what became of some files, all or nothing, and return their ledger rows in the same order.

        bundle : digest of the bundle that made the latents. A cell whose digest is known already, or comes twice, is
        one more path of the cell. A cell whose fingerprint differs from that of an earlier one, of this batch or before
        and of whatever class, in at most `candidate_bits` is shown to `judge` with it; where that finds the same cell
        again, it is stored too, marked and linked. So are cells whose pictures have a landmark of its own; neighbours
        in one field are remembered, and not linked. A path that has an outcome already gets the new one; what it said
        before stays in its history.

        Raises StoreError, nothing written, where the database cannot write; UnstorableError, a kind of it, where a row
        of the batch is at fault: a cell that does not fit the bundle, a value that a column cannot hold.
        """
        if not batch:
            return []
        try:
            return self._record(batch, bundle, judge, candidate_bits)
        except Exception as error:
            if self._closed or isinstance(error.__cause__ or error, _NOT_OF_A_ROW):
                raise
            cause = error.__cause__ or error
            said = str(error) if cause is error else (str(cause).splitlines() or [""])[0]
            said = said if isinstance(cause, StoreError) else f"{type(cause).__name__}: {said}"
            raise UnstorableError(f"the store cannot keep it: {said}") from cause

    def _record(
        self, batch: Sequence[NewCell | SeenAgain | Rejected], bundle: str, judge: Judge | None, candidate_bits: int
    ) -> list[LedgerRow]:
        with self._writing:
            batch = [self._unless_removed(item) for item in batch]
            known = self._in_memory()
            with self._reading() as cursor:
                table, space = bundles.space(cursor, bundle)
                for item in batch:
                    if isinstance(item, NewCell):
                        check_new_cell(item, space)
                wanted = {cell_id_of(item.digest) for item in batch if not isinstance(item, Rejected)}
                plan = draw_up(
                    batch,
                    states=rows.states(cursor, [cell_id for cell_id in wanted if id_to_int(cell_id) in known.labels]),
                    files=rows.file_rows(cursor, list({item.path for item in batch})),
                    search=Search(known.hashes, known.landmarks),
                    state_of=lambda cell_id: rows.states(cursor, [cell_id])[cell_id],
                    comparing=Comparing(judge, candidate_bits, self.duplicates.rejected()),
                    at=rows.now(),
                    numbers=sequence.begin(cursor),
                )
            placed = self._place(plan.embedded, [cell.analyser for cell in plan.embedded], bundle)
            with self._transaction() as connection:
                write(connection, plan, table, space)
                self.maps.write(connection, placed)
            self._remember(plan, bundle)
            if plan.linked:
                self.duplicates.drop_cached()
            self.maps.remember(bundle, placed)
            return plan.rows

    def learn_fingerprints(self, learnt: Sequence[Learnt], *, judge: Judge, candidate_bits: int) -> None:
        """Write the fingerprints of stored cells that had none, and link those cells as `record` would have; one
        transaction.

        What people decided stays. A link that an earlier version made and `judge` does not confirm is removed.
        """
        with self._writing:
            known = self._in_memory()
            search = Search(known.hashes, known.landmarks)
            comparing = Comparing(judge, candidate_bits, self.duplicates.rejected())
            with self._transaction() as connection:
                backfill.learn(connection, learnt, search, comparing)
            search.apply()
            self._regrouped()
            self.duplicates.drop_cached()

    def add_embeddings(self, cells: Sequence[CellEmbedding], *, bundle: str) -> None:
        """Give stored cells their place in the space of a bundle, all or none; cells that have one there are left as
        they are.

        Raises StoreError for a cell that the store does not have, or whose numbers are not finite.
        """
        with self._writing:
            with self._reading() as cursor:
                table, space = bundles.space(cursor, bundle)
                for cell in cells:
                    check_embedding(cell, space)
                ids = [cell.cell_id for cell in cells]
                there = {row[0] for row in rows.look_up(cursor, table, ["cell_id"], "cell_id", ids)}
            stored = self.cells(ids)
            if unknown := [cell_id for cell_id in ids if cell_id not in stored]:
                raise StoreError(f"{self.path} has no cell {unknown[0]} to embed")
            fresh = [cell for cell in cells if cell.cell_id not in there]
            placed = self._place(fresh, [stored[cell.cell_id].analyser for cell in fresh], bundle)
            with self._transaction() as connection:
                failpoint("embed.write")
                write_embeddings(connection, fresh, table, space)
                if bundle == bundles.active(connection):
                    note(connection, [cell.cell_id for cell in fresh])
                self.maps.write(connection, placed)
            self.maps.remember(bundle, placed)
            self._examples.pop(bundle, None)
            self._add_to_index(bundle, [(cell, stored[cell.cell_id].analyser) for cell in fresh])

    # files that were moved: see labref.store.duckdb.moves

    def shared_files(self, cells: Collection[str] | None = None) -> list[FileOfCell]:
        """The files of these cells; by default of all that came from several files, or whose own path holds something
        else by now while another holds them."""
        with self._reading() as cursor:
            return moves.shared_files(cursor, None if cells is None else list(cells))

    def cells_at(self, paths: Collection[str]) -> list[str]:
        """The cells that these files hold, or held before."""
        with self._reading() as cursor:
            return moves.cells_at(cursor, list(paths))

    def follow(self, gone: Mapping[str, Set[str]], *, is_gone: Callable[[str], bool] = lambda folder: False) -> int:
        """Let cells be called as the files say that hold them; returns how many changed.

        gone : by cell, the paths that do not hold it any more. What a person said to labref stays, and so does the
        label of a cell that no file holds, or whose files all do.  is_gone : whether it is certain that there is no
        folder at a path: where a slide's folder got another name, the cells without a file go with the others.
        """
        with self._writing:
            with self._reading() as cursor:
                changes = moves.followed(cursor, gone)
                changes += moves.left_behind(cursor, changes, is_gone)
            if changes:
                with self._transaction() as connection:
                    failpoint("moves.write")
                    write_labels(connection, changes, rows.now())
                labels = self._in_memory().labels
                for change in changes:
                    labels.change(id_to_int(change.cell_id), (change.label, change.label_source))
                self.slides.moved((id_to_int(change.cell_id), change.slide) for change in changes)
                self._origins = Origins.none()
            return len(changes)

    # upkeep: see labref.store.duckdb.upkeep

    def faults(self) -> Faults:
        """What the store holds and where it does not agree with itself; under a second for a million cells."""
        with self._reading() as cursor:
            return upkeep.faults(cursor)

    def digests(self, prefix: str = "") -> dict[str, int]:
        """Digest and size in bytes of the original of every cell whose digest begins with `prefix`."""
        with self._reading() as cursor:
            return upkeep.digests(cursor, prefix)

    @contextlib.contextmanager
    def comparison(self) -> Iterator[Comparison]:
        """Compare the ledger with the files that are in the export folders."""
        with self._reading() as cursor:
            yield Comparison(cursor)

    def index_agrees(self, bundle: str) -> bool:
        """Whether what is kept in memory has exactly the cells that the database has; True where nothing is kept."""
        with self._writing, self._reading() as cursor:
            index, known = self._indexes.get(bundle), self._known
            table = bundles.space(cursor, bundle)[0]
            return (index is None or index.checksum() == upkeep.checksum(cursor, table)) and (
                known is None or len(known.labels) == upkeep.checksum(cursor, "cell")[0]
            )

    def learn_file_numbers(self, files: Sequence[tuple[str, int, int | None]]) -> None:
        """Write down path, ctime (nanoseconds) and inode number of files that are recorded without."""
        with self._transaction() as connection:
            upkeep.learn_file_numbers(connection, files)

    def read_again(self, paths: Sequence[str]) -> None:
        """Let the agent read these files again at its next scan, whatever they look like."""
        with self._transaction() as connection:
            upkeep.read_again(connection, paths)
        self.revision += 1

    def file_digests(self, paths: Sequence[str]) -> dict[str, str]:
        """The digest of the cell that came from each of these files, by path; those without a cell are left out."""
        with self._reading() as cursor:
            return upkeep.file_digests(cursor, paths)

    def sample(self, most: int) -> list[str]:
        """Ids of so many cells at most, chosen at random, other ones each time."""
        with self._reading() as cursor:
            return upkeep.sample(cursor, most)

    def forget_latents(self, ids: Sequence[str], *, bundle: str) -> None:
        """Take the latents of these cells, and their places on maps, out of the space of a bundle: they are embedded
        again."""
        with self._writing:
            with self._transaction() as connection:
                table, _ = bundles.space(connection, bundle)
                for name in (table, "map_position"):
                    connection.execute(
                        f"DELETE FROM {name} WHERE cell_id IN (SELECT unnest(?::VARCHAR[]))", [list(ids)]
                    )
                note(connection, list(ids))
            self.reload()

    def remove_faults(self, faults: Faults) -> None:
        """Take out what stands for nothing, as `faults` found it; the files concerned are taken in again."""
        with self._writing:
            with self._transaction() as connection:
                upkeep.remove_faults(connection, faults.found)
                refill(connection)
            self.reload()

    def due(self, *, days: int, cells: int, at_least: int, reviewed: bool, limit: int) -> list[Due]:
        """Cells that retention may remove; see `labref.store.duckdb.removal.due`."""
        with self._reading() as cursor:
            return removal.due(cursor, days=days, cells=cells, at_least=at_least, reviewed=reviewed, limit=limit)

    def growth(self, since: datetime) -> tuple[int, int, datetime | None]:
        """How many cells were added since a moment, the bytes of their originals, and when the first of them was (UTC);
        None where none was. since : with a time zone."""
        with self._reading() as cursor:
            cells, size, first = upkeep.growth(cursor, since.astimezone(UTC).replace(tzinfo=None))
        return cells, size, None if first is None else first.replace(tzinfo=UTC)

    def allowance(self, percent: float) -> int:
        """How many cells retention may remove now; see `labref.store.duckdb.removal.allowance`."""
        with self._reading() as cursor:
            return removal.allowance(cursor, percent)

    def sign_of_life(self) -> None:
        """Write down that the lab is alive now: time counts for retention where it was seen to pass."""
        with self._transaction() as connection:
            clock.sign(connection)

    def jumps(self, days: int) -> list[tuple[datetime, datetime]]:
        """The steps of the clock that do not count where retention asks for so many days, UTC, oldest first."""
        with self._reading() as cursor:
            return clock.jumps(cursor, clock.values(days))

    def remove(self, cells: Sequence[Due]) -> int:
        """Move cells to the trash, all or none, and return how many; see `labref.store.duckdb.removal.remove`. Their
        kept bytes stay."""
        with self._writing:
            with self._transaction() as connection:
                removed = removal.remove(connection, cells)
            self.reload()
        return removed

    def removed_digests(self) -> list[str]:
        """Digests of all cells that were removed for good: not of those in the trash."""
        with self._reading() as cursor:
            return removal.removed_digests(cursor)

    @contextlib.contextmanager
    def exporting(self, scratch: Path) -> Iterator[Export]:
        """The cells as they are now, on their way into a Parquet file. scratch : a file for the meantime, not there
        yet."""
        with self._reading(into=scratch.parent) as cursor, contextlib.closing(Export(cursor, scratch)) as export:
            yield export

    @contextlib.contextmanager
    def contributing(self, scratch: Path | None = None) -> Iterator[Contribution]:
        """The reviewed cells, on their way into a pack for the centre. scratch : a file for the meantime, not there
        yet; None where none will be written."""
        with (
            self._reading(into=None if scratch is None else scratch.parent) as cursor,
            contextlib.closing(Contribution(cursor, scratch)) as contribution,
        ):
            yield contribution

    def removed(self, digest: str) -> str | None:
        """Why the cell with these bytes was removed, in the ledger's words; None where it was not. Microseconds."""
        removed, number = self._removed, id_to_int(cell_id_of(digest))
        if removed is None:
            with self._writing, self._reading() as cursor:
                removed = self._removed = removal.removed_ids(cursor)
        if not len(removed) or removed[np.searchsorted(removed, np.uint64(number)) % len(removed)] != number:
            return None
        with self._reading() as cursor:
            return removal.reason(cursor, cell_id_of(digest))

    def reload(self) -> None:
        """Read again what is kept in memory, after rows were taken out of the database; writes wait meanwhile."""
        with self._writing:
            self._known = self._removed = self._optics_book = None
            self._origins = Origins.none()
            self.duplicates.drop_cached()
            self.slides.drop_cached()
            self.rejections.drop_cached()
            self.qualities.drop_cached()
            self.maps.drop_cached()
            indexed = list(self._indexes)
            self._indexes.clear()
            self._examples.clear()
            for bundle in indexed:
                self.build_index(bundle)
            self.revision += 1

    def blocks(self) -> Blocks | None:
        """Read every block of the file from the disk, those of indexes too, and compare its checksum; see
        `labref.store.duckdb.blocks.read`. Some 3 s a GB in the system's memory. None on Windows, where an open
        store cannot be read."""
        with self._reading() as cursor, self._reading_file:
            try:
                self._file = self._file or self.path.open("rb", buffering=0)
            except PermissionError:
                if sys.platform == "win32":
                    return None
                raise
            return blocks.read(cursor, self._file, self.quiet)

    def read_all(self) -> dict[str, int]:
        """Read every block of every table, whose checksums DuckDB compares; rows by table. Raises StoreError for a
        damaged one."""
        with self._reading() as cursor:
            return {table: count for table, (count, _) in upkeep.fingerprints(cursor).items()}

    def copy_to(self, target: Path) -> dict[str, int]:
        """Copy the store as it is at this moment into a new database file, while others read and write; rows by table.

        Raises StoreError where it cannot be written, or is not the same afterwards; the file is then of no use.
        """
        with self._reading(into=target) as cursor:
            return upkeep.copy_database(cursor, target)

    def _place(
        self, cells: Sequence[NewCell | CellEmbedding], analysers: Sequence[str | None], bundle: str
    ) -> list[tuple[int, Placed]]:
        """Where cells of these analysers lie on the maps in use in the space of a bundle."""
        if not cells or not self.maps.in_space(bundle):
            return []
        ids = np.array([id_to_int(cell.cell_id) for cell in cells], np.uint64)
        return self.maps.place(bundle, ids, np.stack([cell.latent for cell in cells]), analysers)

    def _unless_removed(self, item: NewCell | SeenAgain | Rejected) -> NewCell | SeenAgain | Rejected:
        """What retention removed is not taken in again, under whatever name it comes."""
        reason = None if isinstance(item, Rejected) else self.removed(item.digest)
        if isinstance(item, Rejected) or reason is None:
            return item
        return Rejected(item.path, item.size_bytes, item.mtime_ns, reason, item.ctime_ns, item.inode)

    def _remember(self, plan: Plan, bundle: str) -> None:
        """Bring the memory up to what was committed."""
        plan.search.apply()
        known = self._in_memory()
        labels, groups = known.labels, known.groups
        for cell in plan.embedded:
            labels.add(id_to_int(cell.cell_id), cell.carries())
        for change in plan.label_changes:
            labels.change(id_to_int(change.cell_id), (change.label, change.label_source))
        if plan.label_changes or any(cell.quality is not None and cell.quality.reason for cell in plan.embedded):
            self.qualities.drop_cached()
        for cell_id, group in plan.groups.items():
            groups.add(id_to_int(cell_id), id_to_int(group))
        found_alike = [
            (id_to_int(cell), id_to_int(other)) for cell, other, found in plan.resemblances if found.verdict.is_one_cell
        ]
        if found_alike:
            alike = known.alike.joined(found_alike)
            if alike is None:
                with self._reading() as cursor:
                    alike = load_alike(cursor)
            self._known = known._replace(alike=alike)
        self.slides.came(
            (id_to_int(cell.cell_id), cell.slide_id, row[-1])
            for cell, row in zip(plan.embedded, plan.cells, strict=True)
        )
        self.slides.moved((id_to_int(change.cell_id), change.slide) for change in plan.label_changes)
        if self._optics_book is not None:  # read first after this commit, it has them
            for cell in plan.embedded:
                self._optics_book.add(cell.cell_id, cell.analyser)
        # last: whom a reader finds there has a label
        self._add_to_index(bundle, [(cell, cell.analyser) for cell in plan.embedded])

    def _add_to_index(self, bundle: str, cells: Sequence[tuple[NewCell | CellEmbedding, str | None]]) -> None:
        index = self._indexes.get(bundle)
        if index is not None and cells:
            book = self._optics()
            index.add(
                np.array([id_to_int(cell.cell_id) for cell, _ in cells], np.uint64),
                np.stack([cell.latent for cell, _ in cells]),
                np.array([book.code(analyser) for _, analyser in cells], np.uint32),
            )

    # files

    def known_files(self) -> dict[str, FileState]:
        """How every file that the ledger has looked, and its outcome, by path."""
        known: dict[str, FileState] = {}
        state = partial(tuple.__new__, FileState)  # a million of them, without a step of Python each
        with self._reading() as cursor, _uncollected():
            for part in upkeep.file_states(cursor):
                paths, sizes, times, outcomes, changes, inodes = (part[column].tolist() for column in part)
                states = map(state, zip(sizes, times, map(sys.intern, outcomes), changes, inodes, strict=True))
                known.update(zip(map(from_column, paths), states, strict=True))
        return known

    def ledger(
        self,
        *,
        path: str | None = None,
        outcome: str | None = None,
        limit: int | None = None,
        removed: bool | None = None,
    ) -> Iterator[LedgerRow]:
        """The outcome of every file, or of one path, or those with one outcome: oldest first.

        A path that the ledger does not have stands for those that differ from it in the form of Unicode alone.

        limit : only that many, the newest.  removed : only files of removed cells, or only the others. Rows are read as
        they are used, never all at once.
        """
        where = {}
        if outcome is not None:
            where["outcome"] = str(Outcome(outcome))
        with self._reading() as cursor:
            if path is None:
                yield from rows.ledger(cursor, "file", where, limit, removed=removed)
                return
            there = next(rows.look_up(cursor, "file", ["path"], "path", [to_column(path)]), None)
            alike = (
                [path] if there or path.isascii() else rows.files_like(cursor, [path], ignore_case=False).get(path, {})
            )
            for one in alike:
                yield from rows.ledger(cursor, "file", where | {"path": to_column(one)}, limit, removed=removed)

    def history(self, path: str) -> list[LedgerRow]:
        """The outcomes a path had before its present one, oldest first."""
        with self._reading() as cursor:
            return list(rows.ledger(cursor, "file_history", {"path": to_column(path)}))

    # cells

    def last_number(self) -> int:
        """The largest number that a row has been given (`labref.store.duckdb.sequence`): it grows with each cell, label
        and decision. Nothing is read while nothing is written."""
        commits, number = self._commits, self._last_number
        if number[0] != commits:
            with self._reading() as cursor:
                number = self._last_number = (commits, sequence.begin(cursor).last)
        return number[1]

    def recent(self, *, after: int = 0, before: int | None = None, limit: int) -> list[tuple[int, Cell]]:
        """The cells that came last, the last first, each with its number. after, before : only those whose number is
        larger, or smaller."""
        with self._reading() as cursor:
            return rows.recent(cursor, after, before, limit)

    def has_digest(self, digest: str) -> str | None:
        """The cell with these bytes (SHA-256, 64 hexadecimal characters), or None. Microseconds, from any thread."""
        cell_id = cell_id_of(digest)
        return cell_id if id_to_int(cell_id) in self._in_memory().labels else None

    def cell(self, cell_id: str) -> Cell | None:
        """One cell, or None where there is none of that id."""
        return self.cells([cell_id]).get(cell_id)

    def cells(self, ids: Collection[str]) -> dict[str, Cell]:
        """The cells of these ids, by id; ids the store does not have are left out."""
        with self._reading() as cursor:
            return rows.cells(cursor, list(ids))

    def cells_of_slide(self, slide: SlideId, ids: Collection[str]) -> dict[str, Cell]:
        """As `cells`, of cells of one slide: faster where they came one after the other."""
        first, last = self.slides.book.span(slide)
        if last - first > _APART * len(ids):
            return self.cells(ids)
        with self._reading() as cursor:
            found = rows.cells_of_slide(cursor, slide, first, last)
        return {cell_id: found[cell_id] for cell_id in ids if cell_id in found}

    def labels(self, ids: Collection[str]) -> dict[str, str]:
        """The labels of these cells, by id, from memory; ids the store does not have are left out."""
        return {cell_id: label for cell_id, (label, _) in self.labelled(ids).items()}

    def labelled(self, ids: Collection[str]) -> dict[str, tuple[str, LabelSource]]:
        """The labels of these cells and who gave them, by id, from memory; ids the store does not have are left out."""
        found = self._in_memory().labels.of([id_to_int(cell_id) for cell_id in ids])
        return {cell_id: label for cell_id, label in zip(ids, found, strict=True) if label is not None}

    def label_counts(self) -> dict[str, int]:
        """How many cells carry each label; from memory."""
        counts: dict[str, int] = {}
        for (label, _), number in self._in_memory().labels.counts().items():
            counts[label] = counts.get(label, 0) + number
        return counts

    @property
    def label_book(self) -> CellBook[tuple[str, LabelSource]]:
        """The label of every cell and who gave it, by id; from memory. Only the store changes it."""
        return self._in_memory().labels

    def origins(self) -> Origins:
        """Slide, analyser and time of every cell, in memory; the first call reads them, a second for a million."""
        with self._locating:
            before = self._origins
            with self._reading() as cursor:
                found = origins.read_on(cursor, before)
            if self._origins is before:  # else cells moved meanwhile, and the next call reads them
                self._origins = found
            return found

    def given_classes(self) -> set[str]:
        """The classes that people or the analyser gave to cells; from memory."""
        return {label for label, source in list(self._in_memory().labels.values) if source is not LabelSource.PREDICTED}

    def paths(self, cell_id: str) -> list[str]:
        """All paths at which the bytes of a cell were found, oldest first."""
        with self._reading() as cursor:
            return [row.path for row in rows.ledger(cursor, "file", {"cell_id": cell_id})]

    def path_labels(self, cell_id: str) -> list[dict[str, str | None]]:
        """What each file of a cell says of it, oldest first: {`path`, `label`, `label_source`}, None where it says
        nothing."""
        with self._reading() as cursor:
            return rows.path_labels(cursor, cell_id)

    def cells_beginning(self, prefix: str, most: int) -> list[str]:
        """Cells whose id begins with these 1 to 16 hexadecimal characters, in order, at most so many; from memory."""
        first, last = id_to_int(prefix.ljust(16, "0")), id_to_int(prefix.ljust(16, "f"))
        return [int_to_id(number) for number in self._in_memory().labels.between(first, last, most)]

    def cells_of_files(self, paths: Collection[str]) -> dict[str, str | None]:
        """The cell that came from each of these files, by path, None for one that gave none; files that the ledger does
        not have are left out."""
        with self._reading() as cursor:
            return rows.cells_of_files(cursor, list(paths))

    def states_of_files(self, paths: Collection[str]) -> dict[str, FileState]:
        """How each of these files looked when it was read, by path; files that the ledger does not have are left
        out."""
        with self._reading() as cursor:
            return rows.states_of_files(cursor, list(paths))

    def files_like(self, paths: Collection[str], *, ignore_case: bool) -> dict[str, dict[str, str | None]]:
        """Files of the ledger whose paths differ from one of these in their Unicode form only, and, where
        `ignore_case`, in upper and lower case: by that path, {path in the ledger: its cell, or None}. Reads all
        paths."""
        with self._reading() as cursor:
            return rows.files_like(cursor, list(paths), ignore_case=ignore_case)

    def counts(self) -> Counts:
        """How many files and cells there are, by what. Slides may identify patients: not for logs or metrics."""
        by: list[dict[Any, int]] = []
        with self._reading() as cursor:
            cursor.begin()  # all counts of one moment; closing the cursor ends it
            outcomes: dict[str, int] = dict.fromkeys(map(str, Outcome), 0)
            outcomes.update(cursor.execute("SELECT outcome, count(*) FROM file GROUP BY outcome").fetchall())
            for column in ("label", "label_source", "analyser"):
                cursor.execute(f"SELECT {column}, count(*) AS n FROM cell GROUP BY {column} ORDER BY n DESC, {column}")
                by.append({from_nullable(value): n for value, n in cursor.fetchall()})
            slides = cursor.execute(
                "SELECT slide, CASE WHEN slide IS NOT NULL THEN coalesce(folder, '') END AS folder, count(*) AS n FROM cell "
                "GROUP BY ALL ORDER BY n DESC, slide, folder"
            ).fetchall()
        labels, sources, analysers = by
        by_slide = {rows.slide_id(slide, folder): n for slide, folder, n in slides}
        return Counts(sum(outcomes.values()), sum(labels.values()), outcomes, labels, sources, by_slide, analysers)

    def candidates(
        self, fingerprints: Sequence[Fingerprint], bits: int, landmarks: Sequence[Landmark] = ()
    ) -> list[str]:
        """Ids of the cells that one with these fingerprints and landmarks may repeat, or be the neighbour of; see
        `Search`."""
        known = self._in_memory()
        return Search(known.hashes, known.landmarks).candidates(fingerprints, landmarks, bits)

    def analysers(self) -> dict[str | None, int]:
        """How many cells came from each analyser, None for one without a name; from memory."""
        return self._optics().counts()

    def is_of(self, cell_id: str, analyser: str) -> bool:
        """Whether a cell came from this analyser; from memory."""
        return cell_id in self.those_of([cell_id], analyser)

    def those_of(self, ids: Collection[str], analyser: str) -> set[str]:
        """Those of these cells that came from this analyser; from memory."""
        return self._book_of_optics().those_of(ids, analyser)

    def are_of(self, numbers: NDArray[np.uint64], analyser: str) -> NDArray[np.bool_]:
        """Which of these cells came from this analyser: bool[n]; from memory. numbers : uint64[n], ids as integers."""
        return self._book_of_optics().are_of(numbers, analyser)

    def duplicate_group(self, cell_id: str) -> list[str]:
        """The cell and all that are linked with it as duplicates, directly or through others, oldest first; from
        memory."""
        known = self._in_memory()
        labels, groups = known.labels, known.groups
        (group,) = groups.of(np.array([id_to_int(cell_id)], np.uint64)).tolist()
        members = groups.members(group)
        if len(members) == 1:  # as most cells are
            return [int_to_id(group)] if group in labels else []
        there = zip(members, labels.of(members), strict=True)
        return [int_to_id(member) for member, label in there if label is not None]

    @property
    def groups(self) -> GroupBook:
        """Which cells are captures of one physical cell: those linked as duplicates, not possible ones. From memory."""
        return self._in_memory().groups

    @property
    def alike(self) -> AlikeBook:
        """Which cells are or may be captures of one physical cell: those linked as duplicates, and possible ones that
        nobody has decided on. From memory."""
        return self._in_memory().alike

    def may_be_same(self, cell_id: str) -> set[str]:
        """The cells that may be captures of the same physical cell as this one; those that certainly are, itself among
        them, are left out. From memory."""
        known = self._in_memory()
        others = {int_to_id(one) for one in known.alike.members(id_to_int(cell_id))}
        return others - set(self.duplicate_group(cell_id))

    # latents

    def embedded(self, ids: Collection[str], *, bundle: str) -> dict[str, Embedded]:
        """What the networks of a bundle say of these cells, by id; cells without a latent in its space are left out."""
        latents, said = self.latents(ids, bundle=bundle), self.predicted(ids, bundle=bundle)
        return {
            cell_id: Embedded(latents[cell_id], *said[cell_id])
            for cell_id in ids
            if cell_id in latents and cell_id in said
        }

    def predicted(self, ids: Collection[str], *, bundle: str) -> dict[str, tuple[str, float]]:
        """What the networks of a bundle call these cells, and the probability of that class, by id; cells without a
        latent in its space are left out."""
        with self._reading() as cursor:
            columns = ["cell_id", "predicted_label", "predicted_probability"]
            return {
                cell_id: (from_column(label), probability)
                for cell_id, label, probability in rows.look_up(
                    cursor, self._space(bundle)[0], columns, "cell_id", list(ids)
                )
            }

    def latents(self, ids: Collection[str], *, bundle: str, from_disk: bool = False) -> dict[str, NDArray[np.float32]]:
        """Latents float32[L] of these cells in the space of a bundle, by id; cells without one are left out.

        from_disk : as the database has them, even where they are in memory.
        """
        index = None if from_disk else self._indexes.get(bundle)
        if index is not None:
            known = index.latents(np.array([id_to_int(cell_id) for cell_id in ids], np.uint64))
            return {cell_id: known[number] for cell_id in ids if (number := id_to_int(cell_id)) in known}
        with self._reading() as cursor:
            return rows.latents(cursor, self._space(bundle)[0], list(ids))

    def embedding(self, cell_id: str, *, bundle: str) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
        """Latent float32[L] and probabilities float32[c] of a cell in the space of a bundle; None where it has none
        there."""
        with self._reading() as cursor:
            table, _ = self._space(bundle)
            found = next(rows.look_up(cursor, table, ["latent", "probabilities"], "cell_id", [cell_id]), None)
        return None if found is None else (np.array(found[0], np.float32), np.array(found[1], np.float32))

    def read_ahead(self) -> None:
        """Read all that answers need into memory: the index of the active bundle's latents, the slides, and what is
        known of each cell. Two threads read side by side; writes wait meanwhile."""
        with (
            self._writing,
            self._reading() as cursor,  # here: where the database is mended, whoever reads takes the lock of writers
            ThreadPoolExecutor(1, "labref-known") as beside,
        ):
            known = beside.submit(_load_known, cursor) if self._known is None else None
            self.build_index()
            _ = self.slides.book
            if known is not None:
                self._known = known.result()

    def build_index(self, bundle: str | None = None) -> None:
        """Keep the latents of a bundle (default: the active one) in memory, so that `nearest` takes milliseconds.

        Some 300 MB for a million cells with 50 latents. Writes wait meanwhile; answers do not change.
        """
        with self._writing:
            digest = bundle or self.active_bundle()
            if digest is None:
                raise StoreError(f"{self.path} has no active bundle to index; activate one first.")
            if digest in self._indexes:
                return
            with self._reading() as cursor:
                table, space = bundles.space(cursor, digest)
                index, book = Index(space.latent_size), self._optics()
                index.groups = book.codes
                group_of = optics.codes(cursor, book)
                for ids, latents in _ahead(scan.blocks(cursor, table, space.latent_size, BLOCK_ROWS)):
                    index.add(ids, latents, group_of(ids))
            self._indexes[digest] = index

    def drop_index(self, bundle: str) -> None:
        """Free the memory of a bundle's index; `nearest` then reads the database in its space."""
        with self._writing:
            self._indexes.pop(bundle, None)
            self._examples.pop(bundle, None)

    @property
    def index_bytes(self) -> int:
        """Memory that the indexes take, bytes."""
        return sum(index.nbytes for index in self._indexes.values())

    def every_latent(
        self, *, bundle: str, analyser: str | None = None
    ) -> Iterator[tuple[NDArray[np.uint64], NDArray[np.float32]]]:
        """All cells in the space of a bundle, in blocks: ids uint64[n] and latents float32[n, L], not to be changed.
        analyser : only cells that came from this one."""
        index = self._indexes.get(bundle)
        if index is not None:
            if analyser is None or analyser in index.groups:
                yield from index.blocks(None if analyser is None else index.groups[analyser])
            return
        with self._reading() as cursor:
            table, space = bundles.space(cursor, bundle)
            book = self._optics()
            group_of = optics.codes(cursor, book) if analyser is not None else None
            for ids, latents in scan.blocks(cursor, table, space.latent_size, BLOCK_ROWS):
                chosen = slice(None) if group_of is None else group_of(ids) == book.codes.get(analyser, -1)
                yield ids[chosen], latents[chosen]

    def nearest(
        self,
        latent: NDArray[np.float32],
        *,
        bundle: str,
        k: int,
        exclude: Collection[str] = (),
        analyser: str | None = None,
    ) -> list[Neighbour]:
        """The k cells nearest to latent float32[L], exactly: nearest first, equal ones by cell_id.

        distance: mean squared error, in float64. exclude : cell ids that may not appear. analyser : only cells that
        came from this one; None takes all. The answer is the same, bit for bit, from the index in memory and without
        it. Fewer than k where the store has fewer.

        Raises StoreError for a bundle the store does not know, ValueError for a latent that does not fit it.
        """
        query = np.ascontiguousarray(latent, np.float32)
        barred = {id_to_int(cell_id) for cell_id in exclude}
        index = self._indexes.get(bundle)
        if index is not None:
            _check_query(query, index.latent_size)
            group = None
            if analyser is not None:
                if analyser not in index.groups:
                    return []
                group = index.groups[analyser]
            ids, found = index.nearest(query, k + len(barred), group)
        else:
            with self._reading() as cursor:
                table, space = bundles.space(cursor, bundle)
                _check_query(query, space.latent_size)
                only, values = "TRUE", {}
                if analyser is not None:
                    only = "cell_id IN (SELECT cell_id FROM cell WHERE analyser = $analyser)"
                    values = {"analyser": to_column(analyser)}
                ids, found = scan.nearest(cursor, table, query, k + len(barred), only, values)
        pairs = zip(ids.tolist(), found.tolist(), strict=True)
        return [Neighbour(int_to_id(number), distance) for number, distance in pairs if number not in barred][:k]

    def examples(
        self, latent: NDArray[np.float32], *, bundle: str, without: Collection[str], exclude: Collection[str] = ()
    ) -> dict[str, list[Neighbour]]:
        """By class, the cells nearest to latent float32[L], nearest first, at most 32 of each class: of one with more
        than `MOST_EXAMPLES` cells, among a sample of them.

        without : classes that are left out.  exclude : cell ids that may not appear. Raises StoreError for a bundle
        that the store does not know.
        """
        query = np.ascontiguousarray(latent, np.float32)
        examples = self._examples.setdefault(bundle, Examples())
        examples.follow(self._in_memory().labels, _label)
        barred = {id_to_int(cell_id) for cell_id in exclude}

        def latents_of(ids: list[int]) -> Mapping[int, NDArray[np.float32]]:
            found = self.latents([int_to_id(number) for number in ids], bundle=bundle)
            return {id_to_int(cell_id): one for cell_id, one in found.items()}

        return {
            label: [
                Neighbour(int_to_id(number), distance)
                for number, distance in examples.nearest(query, label, latents_of)
                if number not in barred
            ]
            for label in examples.labels
            if label not in without
        }

    def distinct(self, labels: Collection[str], *, analyser: str | None = None) -> dict[str, int]:
        """By class, how many physical cells there are of these classes, each counted once however often it was
        captured. analyser : only those that came from this one. From memory; of a class with more than `MOST_EXAMPLES`
        captures it is reckoned from a sample of so many."""
        examples = self._counted
        examples.follow(self._in_memory().labels, _label)
        totals = self.label_counts()
        found: dict[str, int] = {}
        for label in labels:
            chosen = examples.chosen(label)
            kept = chosen if analyser is None else self._book_of_optics().numbers_of(chosen, analyser)
            cells = len(np.unique(self.groups.of(np.array(kept, np.uint64))))
            share = 1.0 if len(chosen) < MOST_EXAMPLES else max(1.0, totals.get(label, 0) / len(chosen))
            found[label] = round(cells * share)
        return found

    # inside

    def _spaces(self) -> _Spaces:
        """What is known of the bundles: read again when something was written since."""
        commits, known = self._commits, self._known_spaces
        if known is None or known.commits != commits or self._closed:
            with self._reading() as cursor:
                known = self._known_spaces = _Spaces(commits, bundles.active(cursor), bundles.spaces(cursor))
        return known

    def _space(self, bundle: str) -> tuple[str, StoredBundle]:
        """As `bundles.space`."""
        found = self._spaces().of.get(bundle)
        if found is None:
            with self._reading() as cursor:
                found = bundles.space(cursor, bundle)
        return found

    def _book_of_optics(self) -> OpticsBook:
        """The analyser of every cell."""
        book = self._optics()
        if book.cells is None:
            with self._writing, self._reading() as cursor:
                book.cells = book.cells or optics.load_cells(cursor)
        return book

    def _optics(self) -> OpticsBook:
        book = self._optics_book
        if book is None:
            with self._writing, self._reading() as cursor:
                if self._optics_book is None:
                    self._optics_book = optics.load(cursor)
                book = self._optics_book
        return book

    def _reviewed(self, carried: Mapping[str, tuple[str, LabelSource]]) -> None:
        """Some cells carry these labels, by id, because people gave them or took them back."""
        with self._writing:
            labels = self._in_memory().labels
            for cell_id, label in carried.items():
                labels.change(id_to_int(cell_id), label)
            self.qualities.drop_cached()

    def _relabelled(self) -> None:
        """Read again which labels cells carry; readers see all of them changed at once."""
        with self._writing, self._reading() as cursor:
            if self._known is not None:
                self._known = _load_known(cursor)
            self.qualities.drop_cached()

    def _regrouped(self) -> None:
        """Read again which cells repeat which; readers see all of it changed at once, and do not wait."""
        with self._writing, self._reading() as cursor:
            if self._known is not None:
                self._known = self._known._replace(groups=load_groups(cursor), alike=load_alike(cursor))

    def _came_back(self) -> None:
        """Cells came out of the trash: those that carry predictions get that of the active bundle, and all a place on
        the maps in use."""
        with self._writing:
            self.reload()
            self.changes.predict()
            for bundle in self.bundles():
                self.maps.catch_up(bundle.digest)

    @contextlib.contextmanager
    def _reading(self, *, into: Path | None = None) -> Iterator[duckdb.DuckDBPyConnection]:
        """A cursor of its own for one reader: microseconds to make, and no other thread can disturb it.

        into : where it writes what it reads, outside the lab; more often than the store, that is what fails.
        """
        self._mend()
        try:
            if self._closed:
                raise duckdb.ConnectionException("it was closed")
            cursor = self._connection.cursor()
        except duckdb.ConnectionException as error:
            raise StoreError(f"{self.path} is closed; open it again before asking it.") from error
        try:
            yield cursor
        except duckdb.Error as error:
            if self._closed:  # while it read
                raise StoreError(f"{self.path} is closed; open it again before asking it.") from error
            self._broken |= isinstance(error, duckdb.FatalException)
            if into is not None:
                raise StoreError(
                    f"{into} cannot be written: {error}. Look at the free space and the rights of its disk; the lab is as it "
                    "was. If they are well, `labref store check` says whether the store can be read."
                ) from error
            raise StoreError(f"{self.path} cannot be read: {error}. {_remedy(error)}") from error
        finally:
            cursor.close()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[duckdb.DuckDBPyConnection]:
        with self._writing:
            if self._closed:
                raise StoreError(f"{self.path} is closed; open it again before writing.")
            self._mend()
            try:
                failpoint("store.begin")
                self._connection.begin()
                yield self._connection
                failpoint("store.commit")
                self._connection.commit()
                self._commits += 1
                failpoint("store.committed", may_fail=False)
            except BaseException as error:
                self._broken |= isinstance(error, duckdb.FatalException)
                with contextlib.suppress(duckdb.Error):  # a failed begin or commit leaves nothing to undo
                    self._connection.rollback()
                if isinstance(error, duckdb.Error | OSError):
                    raise StoreError(
                        f"{self.path} cannot be written, and nothing of it is kept: {error}. Look at the free disk space and "
                        "the rights of the lab folder. Then give the command again; a running agent goes on by itself."
                    ) from error
                raise

    def _mend(self) -> None:
        """After a failed checkpoint (a full disk) DuckDB refuses all until the file is opened anew; then nothing is
        lost."""
        if not self._broken:
            return
        with self._writing:
            if self._broken and not self._closed:
                _close(self._connection)
                release(self.path)
                failpoint("store.mend", may_fail=False)
                self._connection = _connect(self.path, *self._settings)
                self._broken = False
                # whether the commit that failed came through is for the file to say
                self.reload()

    def _in_memory(self) -> _Known:
        """What is known of all cells, read from the database when first asked for."""
        known = self._known
        if known is None:
            with self._writing, self._reading() as cursor:
                if self._known is None:
                    self._known = _load_known(cursor)
                known = self._known
        return known


def _remedy(error: duckdb.Error) -> str:
    """What to do where the store cannot be read: a full disk or memory damages nothing."""
    full = isinstance(error, duckdb.OutOfMemoryException) or re.search(
        r"no space left|not enough space", str(error), re.I
    )
    if full:
        return "Look at the free memory and the free space of the lab's disk; nothing is lost."
    return "If this stays, restore a backup."


def _connect(path: Path, memory_limit: str, threads: int) -> duckdb.DuckDBPyConnection:
    connection = connect(path, memory_limit=memory_limit, threads=threads)
    try:
        migrations.apply(connection)
    except BaseException as error:
        connection.close()
        release(path)
        if isinstance(error, StoreError):
            raise type(error)(f"{path} cannot be used: {error}.") from None
        if isinstance(error, duckdb.Error | OSError):
            raise StoreError(
                f"{path} cannot be brought up to date and is as it was: {error}. Look at the free disk space, or "
                "restore a backup."
            ) from error
        raise
    return connection


def _close(connection: duckdb.DuckDBPyConnection) -> None:
    """Close a connection. While a thread makes a cursor of it, which takes microseconds, DuckDB refuses to."""
    deadline = time.monotonic() + _CLOSE_SECONDS
    while True:
        try:
            connection.close()
        except duckdb.ResourceInUseException:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.001)
        else:
            return


def _ahead(items: Iterator[_T]) -> Iterator[_T]:
    """The items, each fetched while the one before it is worked on."""
    with ThreadPoolExecutor(1, "labref-ahead") as fetching:
        coming = fetching.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = fetching.submit(next, items, None)
            yield item


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Without garbage collection, which looks at all that is new again and again while a million values are made."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _load_known(cursor: duckdb.DuckDBPyConnection) -> _Known:
    ids, codes, values = rows.carried(cursor, "label", "label_source")
    labels = [(from_column(label), word(LabelSource, source, "a cell's label source")) for label, source in values]
    marks = load_book(cursor)
    book = HashBook()
    by_age = np.argsort(marks["age"], kind="stable")  # those stored last are searched once more
    book.add(*(np.asarray(marks[column])[by_age] for column in ("across", "down", "id", "age")))
    marks = load_landmarks(cursor, MOST_LANDMARKS)
    landmarks = HashBook(most=MOST_LANDMARKS)
    landmarks.add(marks["across"], marks["down"], marks["id"], marks["age"])
    return _Known(CellBook(ids, codes, labels), book, load_groups(cursor), load_alike(cursor), landmarks)


def _label(carried: tuple[str, LabelSource]) -> str:
    return carried[0]


def _check_query(query: NDArray[np.float32], latent_size: int) -> None:
    if query.shape != (latent_size,):
        raise ValueError(f"a latent of shape {query.shape} was asked for in a space of shape ({latent_size},)")
    if not float(np.abs(query).max(initial=0.0)) <= distances.LARGEST_VALUE:
        raise ValueError("the latent asked for is not finite; the bundle or its runtime is broken")
