"""Publishing: the shared store is told of the lab's cells, labels and removals, from the store's outbox.

Each batch is one transaction of the shared store, with how far the lab is by then (`labref.shared.publishing`). A
kill of either side costs a batch that is told again. Where the shared store does not have the mark that the outbox
has, one of the two was restored from a backup, or the lab is new there, or labref.toml now says otherwise which names
and optics others see: then every cell is published again, and what else is there of this lab goes. Ingest never waits
for it: a batch is read in milliseconds, and sent when the store is free again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import threading
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import numpy as np

from labref.cells.decoding import is_of_the_moment
from labref.config import SharedConfig
from labref.errors import LabError, SharedError, StoreError, UnreadableImageError
from labref.lab import Lab
from labref.lab.log import Log
from labref.lab.pictures import Pictures
from labref.shared.address import Address, read_password
from labref.shared.asking import Asking
from labref.shared.publishing import Mark, Publication, Published, SharedBundle
from labref.store import Store
from labref.store.duckdb.noting import BEGIN, CELL, END
from labref.store.memory.books import id_to_int, int_to_id
from labref.tasks.jobs import lower_priority
from labref.times import utc

__all__ = ["Publisher", "Told", "asking_of", "publish", "state"]

_AT_ONCE: Final = 500
_THUMBNAILS_AT_ONCE: Final = 16
_LACKING_AT_ONCE: Final = 5000
"""Of so many cells it is asked at once which have no thumbnail yet."""
_LOOK_SECONDS: Final = 1.0
"""How often the agent looks whether something is to be published; within it, labels of one lab reach the others."""
_WAITS_SECONDS: Final = (1.0, 60.0)
"""After a failure it is tried again so soon, and then more and more seldom."""
_HOLDS_SECONDS: Final = 60.0
"""How often a lab that has nothing to tell looks whether the shared store still has what it was told: it may have been
restored from a backup."""
_FAILURES_SAID: Final = 5
"""After so many failures in a row of the pictures alone somebody is told."""
_BEHIND_SECONDS: Final = 3600.0
"""So long may what the shared store is to be told of wait before /health says so: a server is started anew meanwhile,
a young lab's first cells are published."""
_QUIET_SECONDS, _BUSY_SECONDS = 3.0, 60.0
"""Thumbnails are made once nothing was told for so long, or, while cells come without a pause, so seldom: to make one
takes a seventh of what a cell takes to come in."""
_ACKNOWLEDGED_SECONDS: Final = 5.0
"""How often the outbox is told at most what was sent: that is a transaction of the lab's own store."""


@dataclass(frozen=True)
class Told:
    """What was published. cells : rows sent, each cell counted as often as it was.  gone : cells that were taken out.
    thumbnails : that were sent."""

    cells: int = 0
    gone: int = 0
    thumbnails: int = 0

    def __add__(self, other: Told) -> Told:
        return Told(self.cells + other.cells, self.gone + other.gone, self.thumbnails + other.thumbnails)


Stopped = Callable[[], bool]


def publish(lab: Lab, store: Store, *, stopped: Stopped = lambda: False) -> Iterator[Told]:
    """Tell the shared store everything that it does not know yet; yields what was told in all, after each step, until
    all is told or `stopped()`.

    Raises `SharedError` where the shared store cannot be reached; what it was told until then stays told.
    """
    told = Told()
    with open_publication(lab) as publication:
        news = _News()
        sending = _Sending(lab, store, publication, news)
        thumbnails = _Thumbnails(lab, store, publication, news, stopped)
        while not stopped():
            sent = sending.batch()
            if sent is None:
                sending.acknowledge()
                sent = thumbnails.send()
                if sent is None:
                    break
            told += sent
            yield told
        sending.acknowledge()


def open_publication(lab: Lab) -> Publication:
    """A connection of the lab to its shared store. Raises `SharedError` where it has none, or cannot get there."""
    return Publication(Address.of(lab.config.shared.url), read_password(of_lab=lab.shared_password_file))


class _News:
    """Which cells may have no thumbnail in the shared store. Methods may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cells: set[str] | None = None

    def told(self, cells: Collection[str]) -> None:
        """The shared store was told of these cells."""
        with self._lock:
            if self._cells is not None:
                self._cells.update(cells)
                if len(self._cells) > _LACKING_AT_ONCE:
                    self._cells = None

    def doubt(self) -> None:
        """Any cell of the lab may have none."""
        with self._lock:
            self._cells = None

    def take(self) -> set[str] | None:
        """Those cells, which are no news from then on; None where it may be any cell."""
        with self._lock:
            cells, self._cells = self._cells, set()
        return cells


class _Sending:
    """One connection's work."""

    def __init__(self, lab: Lab, store: Store, publication: Publication, news: _News) -> None:
        self._lab, self._store, self._publication, self._news = lab, store, publication, news
        self._how = _how(lab.config.shared)
        self._acknowledged = time.monotonic()
        self._hold = self._first()

    def _first(self) -> int:
        """The number of the row of the outbox that the shared store was told last."""
        mark, outbox = self._publication.mark, self._store.outbox
        tag = None if mark is None else outbox.tag_of(mark.number)
        if mark is not None and tag is not None and mark.tag == tag + self._how:
            return mark.number
        first = outbox.after(0, 1)
        if not first or first[0].kind != BEGIN:
            outbox.refill()
        return 0

    def batch(self) -> Told | None:
        """Send the next rows of the outbox; None where there are none."""
        store = self._store
        # nobody writes meanwhile, so that what is in memory and what is in the tables is of one moment
        with store.quiet():
            entries = store.outbox.after(self._hold, _AT_ONCE)
            bundle = store.active_bundle()
            if not entries or bundle is None:
                return None
            # whatever came before a new beginning is published again after it
            begins = max((at for at, entry in enumerate(entries) if entry.kind == BEGIN), default=None)
            entries = entries[begins:] if begins is not None else entries
            ids = {entry.cell for entry in entries if entry.kind == CELL and entry.cell is not None}
            # who becomes, or ceases to be, a capture of the same cell says so of all of them
            alike = store.alike
            ids |= {int_to_id(one) for cell_id in ids for one in alike.members(id_to_int(cell_id))}
            found = store.outbox.outgoing(ids, bundle=bundle)
            places = alike.of(np.array([id_to_int(cell.cell_id) for cell in found], np.uint64)).tolist()
        shared = self._lab.config.shared
        cells = [
            Published(
                cell.cell_id,
                cell.digest,
                cell.label,
                str(cell.label_source),
                cell.analyser,
                shared.optics or cell.analyser,
                cell.captured_at,
                cell.stored_at,
                cell.latent,
                int_to_id(place),
                None if cell.fingerprint is None else cell.fingerprint.across,
                None if cell.fingerprint is None else cell.fingerprint.down,
                cell.withheld,
                (cell.slide, cell.path) if shared.send_names else None,
            )
            for cell, place in zip(found, places, strict=True)
        ]
        gone = ids - {cell.cell_id for cell in found}
        ends = any(entry.kind == END for entry in entries)
        known = next(known for known in store.bundles() if known.digest == bundle)
        last = entries[-1]
        self._publication.send(
            SharedBundle(bundle, known.name, known.version, known.latent_size),
            cells,
            gone,
            Mark(last.number, last.tag + self._how),
            begins=begins is not None,
            ends=ends,
        )
        self._hold = last.number
        if ends:
            self._news.doubt()
        else:
            self._news.told([cell.cell_id for cell in cells])
        if time.monotonic() - self._acknowledged > _ACKNOWLEDGED_SECONDS:
            self.acknowledge()
        return Told(len(cells), len(gone))

    @property
    def mark(self) -> int:
        """The number of the last row that was told."""
        return self._hold

    def acknowledge(self) -> None:
        """Let the outbox forget what was told."""
        self._acknowledged = time.monotonic()
        if self._hold and self._store.outbox.told != self._hold:
            self._store.outbox.sent(self._hold)


def _how(shared: SharedConfig) -> str:
    """What labref.toml says of all rows in the shared store, as the end of a mark's tag: where that was another, all
    cells are published again."""
    if not shared.optics and not shared.send_names:
        return ""
    return "+" + hashlib.sha256(json.dumps([shared.optics, shared.send_names]).encode()).hexdigest()[:16]


class _Thumbnails:
    """The thumbnails that a connection sends."""

    def __init__(self, lab: Lab, store: Store, publication: Publication, news: _News, stopped: Stopped) -> None:
        self._publication, self._news, self._stopped = publication, news, stopped
        self._pictures = Pictures(lab, lambda cell_id: store.cell(cell_id) is not None)
        self._lacking: list[str] = []
        self._put_off: set[str] = set()  # until the next connection

    def send(self) -> Told | None:
        """Send some thumbnails that are not there yet; None where all are."""
        if not self._lacking:
            new, most = self._news.take(), _LACKING_AT_ONCE + len(self._put_off)
            found = [] if new is not None and not new else self._publication.without_thumbnail(most, new)
            self._lacking = [cell_id for cell_id in found if cell_id not in self._put_off]
            if new is None and len(found) == most:
                self._news.doubt()  # there can be more
        ids, self._lacking = self._lacking[:_THUMBNAILS_AT_ONCE], self._lacking[_THUMBNAILS_AT_ONCE:]
        if not ids:
            return None
        made: dict[str, bytes] = {}
        for cell_id in ids:
            if self._stopped():
                return None
            try:
                made[cell_id] = self._pictures.of_cell(cell_id, "thumb") or b""
            except (LabError, UnreadableImageError) as error:
                if is_of_the_moment(str(error)):  # the computer was short of memory or time
                    self._put_off.add(cell_id)
                else:
                    made[cell_id] = b""
        self._publication.send_thumbnails(made)
        return Told(thumbnails=sum(map(bool, made.values())))


class Publisher:
    """The agent's threads that publish. What they cannot send they send later: after a failure they wait, up to a
    minute.

    Thumbnails have a thread and a connection of their own, at low priority: a picture takes a decoding process, which
    on a busy computer takes long to start, and labels do not wait for it.
    """

    def __init__(self, lab: Lab, store: Store, log: Log) -> None:
        self._lab, self._store, self._log = lab, store, log
        self._stop = threading.Event()
        self._came = threading.Event()
        self._news = _News()
        self._mark: int | None = None
        self._told_at = float("-inf")
        self.problem: str | None = None
        """Why the shared store cannot be told; None while it can."""
        self._threads = [
            threading.Thread(target=self._run, args=(work,), name=name, daemon=True)
            for name, work in (("labref-publish", self._publish), ("labref-thumbnails", self._send_thumbnails))
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """End it; what was not sent is sent by the next agent. Nobody waits for a picture that is being decoded."""
        self._stop.set()
        self._came.set()
        self._threads[0].join(30)

    def waiting(self) -> tuple[int, datetime | None]:
        """How many rows are still to be told, and since when the first of them waits, UTC."""
        waiting = self._store.outbox.waiting(self._mark)
        return waiting.rows, waiting.since

    def lag_seconds(self) -> float:
        """How long the first of the rows that are to be told waits; 0 where none does."""
        since = self.waiting()[1]
        return 0.0 if since is None else max(0.0, (datetime.now(UTC) - since).total_seconds())

    def is_behind(self) -> bool:
        """Whether the shared store has not been told for so long that somebody has to see to it."""
        return is_behind(self.waiting()[1])

    def _run(self, work: Callable[[Publication, Callable[[], None]], None]) -> None:
        """Do work on a connection until the agent ends; on another one where it fails."""
        failures = 0

        def well() -> None:
            nonlocal failures
            failures = 0

        while not self._stop.is_set():
            told = work == self._publish  # of two threads that cannot get there one says so
            try:
                with open_publication(self._lab) as publication:
                    work(publication, well)
                return
            except SharedError as error:  # said once, not every minute; it names no patient
                if told and self.problem is None:
                    self._log.warning("the shared store cannot be told of cells", error=str(error))
                elif not told and failures == _FAILURES_SAID and self.problem is None:
                    self._log.warning("small pictures cannot be sent to the shared store", error=str(error))
                self.problem = str(error) if told else self.problem
            except StoreError as error:  # a full disk: the agent says so
                self.problem = str(error) if told else self.problem
            except Exception as error:  # its fault must not end the thread; its message may name a file
                if self._stop.is_set():
                    return  # a picture was given up, as the agent ends
                self.problem = f"it met {type(error).__name__}; see the log" if told else self.problem
                self._log.error("publishing failed", error=type(error).__name__)
            first, most = _WAITS_SECONDS
            self._stop.wait(min(most, first * 2**failures) * random.uniform(0.8, 1.2))
            failures = min(failures + 1, 10)

    def _publish(self, publication: Publication, well: Callable[[], None]) -> None:
        """Tell what happens to cells, until the agent ends or it fails."""
        sending = _Sending(self._lab, self._store, publication, self._news)
        seen, looked = -1, time.monotonic()
        while not self._stop.is_set():
            number = self._store.last_number()
            told = sending.batch() if number != seen else None
            if told is None and time.monotonic() - looked > _HOLDS_SECONDS:
                publication.look()
                looked = time.monotonic()
            self._mark = sending.mark
            well()
            if self.problem is not None:
                self.problem = None
                self._log.info("the shared store is told of cells again")
            if told is not None:
                self._told_at = time.monotonic()
                self._came.set()
                continue
            seen = number
            sending.acknowledge()
            self._stop.wait(_LOOK_SECONDS)

    def _send_thumbnails(self, publication: Publication, well: Callable[[], None]) -> None:
        """The same for thumbnails."""
        lower_priority()
        self._news.doubt()  # what was to be sent on a connection that broke is not known
        thumbnails = _Thumbnails(self._lab, self._store, publication, self._news, self._stop.is_set)
        while not self._stop.is_set():
            self._came.clear()
            self._wait_for_quiet()
            if self._stop.is_set():
                return  # what wakes this thread up may have come just before
            if thumbnails.send() is None:
                well()
                self._came.wait()

    def _wait_for_quiet(self) -> None:
        """Wait until no more cells come, but not for ever."""
        deadline = time.monotonic() + _BUSY_SECONDS
        while not self._stop.is_set():
            now = time.monotonic()
            wait = min(self._told_at + _QUIET_SECONDS, deadline) - now
            if wait <= 0:
                return
            self._stop.wait(wait)


def is_behind(since: datetime | None) -> bool:
    """Whether what the shared store is to be told of waits for so long that somebody has to see to it. since : when the
    first of it came, UTC; None where nothing waits."""
    return since is not None and (datetime.now(UTC) - since).total_seconds() > _BEHIND_SECONDS


def state(lab: Lab, store: Store, publisher: Publisher | None) -> dict[str, object] | None:
    """What `labref status` says of the shared store: see `labref.operations.status.SharedState`; None where the lab has
    none."""
    if not lab.config.shared.url:
        return None
    if publisher is None:
        waiting = store.outbox.waiting()
        rows, since = waiting.rows, waiting.since
    else:
        rows, since = publisher.waiting()
    with contextlib.suppress(SharedError):
        return {
            "server": str(Address.of(lab.config.shared.url)),
            "waiting": rows,
            "since": None if since is None else utc(since),
            "problem": None if publisher is None else publisher.problem,
        }
    return None


def asking_of(lab: Lab) -> Asking | None:
    """Where the lab asks for cells of others; None where it has no shared store. Raises `SharedError` where labref.toml
    names one that it may not go to."""
    shared = lab.config.shared
    if not shared.url:
        return None
    return Asking(Address.of(shared.url), lambda: read_password(of_lab=lab.shared_password_file), shared.wait_seconds)
