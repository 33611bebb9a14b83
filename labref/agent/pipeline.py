"""From settled files to stored cells: threads that read and prepare, one that embeds, one that stores, bounded queues
between.

A batch is stored in one transaction, after the original bytes of its cells are on the disk: killed at any moment, a
file is either stored whole or not at all, and a file not stored is found again by the next scan.
"""

from __future__ import annotations

import contextlib
import math
import os
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar

from labref.agent.reader import Known, NotYet, Prepared, Read, Refused, StorageError, read_cell
from labref.bundles.inference import Embedder
from labref.cells.decoding import StoppedError
from labref.cells.examination import Examined
from labref.cells.quality import DEFAULTS as QUALITY_DEFAULTS
from labref.cells.quality import Measured, judge
from labref.cells.quality import Thresholds as QualityThresholds
from labref.cells.sameness import DEFAULTS, Thresholds
from labref.errors import AgentError, LabrefError, LayoutError, StoreError, UnstorableError
from labref.export.layout import Layout, PathMeaning
from labref.export.paths import path_to_text
from labref.export.scan import Candidate, Signature
from labref.failpoints import failpoint
from labref.lab import Lab
from labref.lab.judge import Judge
from labref.lab.log import Log
from labref.lab.suspects import KILLED, Suspects
from labref.store import LedgerRow, NewCell, Rejected, SeenAgain, Store
from labref.tasks.turns import Turns
from labref.web.metrics import Metrics
from labref.words import Quality

__all__ = ["Engine", "Pipeline", "Settled", "Tally"]

_T = TypeVar("_T")

_IDLE_SECONDS: Final = 0.2  # an incomplete batch waits this long for more cells
_COMMIT_FILES: Final = 256  # most files in one transaction
_RETRY_SECONDS: Final = (1.0, 60.0)  # first and longest wait before the disk is tried again
_IN_HAND_SECONDS: Final = 3.0  # what is not embedded so long after the end began is left to the next scan
_CLOSE_SECONDS: Final = 60.0


class Engine:
    """The lab's embedder, opened when it is first needed: a pass that finds nothing new never loads the networks."""

    def __init__(self, open_embedder: Callable[[], Embedder]) -> None:
        self._open = open_embedder
        self._lock = threading.Lock()
        self._embedder: Embedder | None = None

    def embedder(self) -> Embedder:
        """The one embedder. Safe from several threads."""
        with self._lock:
            if self._embedder is None:
                self._embedder = self._open()
            return self._embedder

    @property
    def opened(self) -> Embedder | None:
        """The embedder where it is open already."""
        return self._embedder

    def replace(self, embedder: Embedder) -> None:
        """Answer and embed by another from now on. Who still works with the one before may end that; then its memory is
        freed."""
        with self._lock:
            self._embedder = embedder

    def close(self) -> None:
        """Free the networks."""
        with self._lock:
            if self._embedder is not None:
                self._embedder.close()
                self._embedder = None


@dataclass
class Tally:
    """What became of files since the agent started.

    outcomes : outcomes recorded; a file can have had several.  embedded : cells that went through the networks.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    embedded: int = 0


@dataclass(frozen=True)
class Settled:
    """A file's outcome as the store has it now. path : as text.  signature : None where it is to be tried again."""

    path: str
    signature: Signature | None
    outcome: str
    reason: str | None


@dataclass(frozen=True)
class _Record:
    candidate: Candidate
    signature: Signature | None
    entry: NewCell | SeenAgain | Rejected
    bundle: str | None = None
    """digest of the bundle that embedded it, where it is a new cell"""


class Pipeline:
    """The threads and queues of one agent.

    layout : what a path says.  is_recorded : whether the ledger has this path with this reason for its rejection
    already, or has an outcome that the reason must not replace.
    on_settled : called, by the storing thread, with the files of each stored batch.
    patient : True waits and tries again while the lab's disk takes nothing; False gives up with an `AgentError`.
    turns : of new cells and of a change of the bundle.
    """

    def __init__(
        self,
        lab: Lab,
        store: Store,
        engine: Engine,
        layout: Layout,
        *,
        readers: int,
        is_recorded: Callable[[str, str], bool],
        on_settled: Callable[[Sequence[Settled]], None],
        log: Log,
        metrics: Metrics,
        patient: bool,
        turns: Turns,
    ) -> None:
        self._lab, self._store, self._engine, self._layout = lab, store, engine, layout
        self._batch_size = lab.config.agent.batch_size
        self._max_bytes = int(lab.config.watch.max_file_megabytes * 1e6)
        self._is_recorded = is_recorded
        self._on_settled = on_settled
        self._log, self._metrics, self._patient, self._turns = log, metrics, patient, turns
        self._judge: Judge | None = None
        self._judged_by: tuple[str | None, QualityThresholds] = (None, QUALITY_DEFAULTS)
        self.suspects = Suspects(lab.suspects_file)
        self._layout_told = False
        self.tally = Tally()
        self.problem: str | None = None
        self.failure: BaseException | None = None
        self._stopping = threading.Event()
        self._dead = threading.Event()
        self._closing_since: float | None = None
        self._at_work: dict[str, float] = {}
        self._paths: set[str] = set()
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._returned: queue.SimpleQueue[NotYet] = queue.SimpleQueue()
        self._candidates: queue.Queue[Candidate | None] = queue.Queue(maxsize=4 * self._batch_size)
        self._ready: queue.Queue[Read | None] = queue.Queue(maxsize=2 * self._batch_size)
        self._commits: queue.Queue[list[_Record] | None] = queue.Queue(maxsize=2)
        self._readers = [
            threading.Thread(target=self._run, args=(self._read_all,), name=f"labref-read-{n}", daemon=True)
            for n in range(readers)
        ]
        self._embedding = threading.Thread(target=self._run, args=(self._embed_all,), name="labref-embed", daemon=True)
        self._storing = threading.Thread(target=self._run, args=(self._store_all,), name="labref-store", daemon=True)
        for thread in (*self._readers, self._embedding, self._storing):
            thread.start()

    @property
    def slow_patterns(self) -> list[str]:
        """What people are told of the layout's patterns that take too long."""
        return self._layout.slow

    def use(self, layout: Layout) -> None:
        """Say by this layout from now on what paths say: another bundle may know other classes."""
        self._layout = layout

    def offer(self, candidate: Candidate, *, timeout: float = 0.0) -> bool:
        """Take a settled file in; False where there is no room after `timeout` seconds. A file already in flight counts
        as taken.

        Raises what ended the pipeline, where something did.
        """
        self.check()
        with self._lock:
            if candidate.path in self._paths:
                return True
            self._paths.add(candidate.path)
        try:
            if timeout > 0:
                self._candidates.put(candidate, timeout=timeout)
            else:
                self._candidates.put_nowait(candidate)
        except queue.Full:
            self._done(candidate)
            return False
        return True

    def check(self) -> None:
        """Raise what ended the pipeline, where something did."""
        if self.failure is not None:
            raise self.failure

    def returned(self) -> list[NotYet]:
        """Files that were not finished after all, since the last call."""
        found = []
        with contextlib.suppress(queue.Empty):
            while True:
                found.append(self._returned.get_nowait())
        return found

    @property
    def in_flight(self) -> int:
        """Files taken in and not yet stored or returned."""
        return len(self._paths)

    def holds(self, path: str) -> bool:
        """Whether the file at `path` is in flight."""
        return path in self._paths

    def wait_idle(self, timeout: float) -> bool:
        """Wait until nothing is in flight, at most `timeout` seconds; True where that is so."""
        with self._idle:
            return self._idle.wait_for(lambda: not self._paths or self._dead.is_set(), timeout)

    def stalled(self) -> tuple[float, str]:
        """How long, in seconds, the thread that is longest at one piece of work is at it, and its name; 0 where none
        works."""
        at_work = self._at_work.copy()
        if not at_work:
            return 0.0, ""
        name = min(at_work, key=at_work.__getitem__)
        return time.monotonic() - at_work[name], name

    def close(self) -> None:
        """End: files not yet read are left to the next scan, cells in hand are embedded and stored, the threads ended.

        Cells that are not embedded within some seconds are left to the next scan as well. Raises `AgentError` where a
        thread does not end within a minute.
        """
        self._closing_since = self._closing_since or time.monotonic()
        self._stopping.set()
        deadline = time.monotonic() + _CLOSE_SECONDS
        for _ in self._readers:
            self._put(self._candidates, None, deadline)
        for thread in self._readers:
            self._join(thread, deadline)
        self._put(self._ready, None, deadline)
        self._join(self._embedding, deadline)
        self._put(self._commits, None, deadline)
        self._join(self._storing, deadline)

    def _join(self, thread: threading.Thread, deadline: float) -> None:
        thread.join(max(deadline - time.monotonic(), 0.0))
        if thread.is_alive():
            raise AgentError(
                f"the agent had to leave one of its threads ({thread.name}) at work: it did not end within "
                f"{_CLOSE_SECONDS:.0f} s. What is stored is whole; the rest is found again by the next scan."
            )

    @contextlib.contextmanager
    def _working(self) -> Iterator[None]:
        name = threading.current_thread().name
        self._at_work[name] = time.monotonic()
        try:
            yield
        finally:
            del self._at_work[name]

    # the threads

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            if self.failure is None:
                self.failure = error
                if not isinstance(error, LabrefError):
                    first = (str(error).splitlines() or [""])[0]
                    self.failure = AgentError(
                        f"the agent had to stop: {type(error).__name__}: {first}. What is stored is whole; start it again."
                    )
                    self.failure.__cause__ = error
            self._log.error("pipeline failed", thread=threading.current_thread().name, error=type(error).__name__)
            self._dead.set()
            with self._idle:
                self._idle.notify_all()

    def _put(self, target: queue.Queue[_T], item: _T, deadline: float = math.inf) -> None:
        while not self._dead.is_set() and time.monotonic() < deadline:
            with contextlib.suppress(queue.Full):
                target.put(item, timeout=0.5)
                return

    def _get(self, source: queue.Queue[_T], timeout: float | None = None) -> _T | None:
        """The next item; None at the end, or where `timeout` seconds (then queue.Empty is raised) brought none."""
        if timeout is not None:
            return source.get(timeout=timeout)
        while not self._dead.is_set():
            with contextlib.suppress(queue.Empty):
                return source.get(timeout=0.5)
        return None

    def _give_back(self, candidate: Candidate, result: NotYet) -> None:
        # both at once: whoever waits for idleness finds it among the returned, and who takes it from there can offer it
        # again
        with self._idle:
            self._returned.put(result)
            self._paths.discard(candidate.path)
            if not self._paths:
                self._idle.notify_all()

    def _done(self, *candidates: Candidate) -> None:
        with self._idle:
            self._paths.difference_update(candidate.path for candidate in candidates)
            if not self._paths:
                self._idle.notify_all()

    def _place(self, candidate: Candidate) -> PathMeaning:
        below = candidate.path[len(candidate.root) :].replace(os.sep, "/")
        return self._layout.place(path_to_text(below.lstrip("/")), candidate.root)

    def _is_stored(self, digest: str) -> bool:
        return self._store.has_digest(digest) is not None

    def _examine(self, data: bytes) -> Examined:
        return self._lab.decoder.examine(data, stopped=self._stopping.is_set)

    def _judge_quality(self, measured: Measured) -> Quality:
        """Whether a picture shows a cell, by the thresholds of the bundle in use."""
        with contextlib.suppress(LabrefError):  # where the bundle cannot be used, whoever embeds says so
            opened = self._engine.opened
            digest = self._store.active_bundle() if opened is None else opened.bundle.digest
            known = self._judged_by
            if known[0] != digest:  # once for each bundle: a whole one is verified where it is opened
                bundle = self._lab.bundle(self._store) if opened is None else opened.bundle
                known = self._judged_by = digest, QualityThresholds.of(bundle.manifest.quality)
            return judge(measured, known[1])
        return judge(measured)

    def _read_all(self) -> None:
        while (candidate := self._get(self._candidates)) is not None:
            with self._working():
                result = None if self._stopping.is_set() else self._read(candidate)
            if result is None:
                self._done(candidate)
            elif isinstance(result, NotYet):
                self._give_back(candidate, result)
            else:
                self._put(self._ready, result)

    def _read(self, candidate: Candidate) -> Read | None:
        waits = _waits()
        while True:
            try:
                return read_cell(
                    candidate,
                    place=self._place,
                    is_stored=self._is_stored,
                    removed=self._store.removed,
                    keep=self._lab.store_image,
                    heal=self._lab.heal_image,
                    examine=self._examine,
                    judge=self._judge_quality,
                    is_admitted=self._store.qualities.admitted,
                    max_bytes=self._max_bytes,
                )
            except StoppedError:
                if self._stopping.is_set():
                    return None  # the next scan finds it again
                # somebody else of this process ended his work, whose picture had the decoding process just before
            except LayoutError as error:
                if not self._layout_told:
                    self._layout_told = True
                    self._log.warning("a pattern of the layout takes too long", pattern=self.slow_patterns)
                return Refused(candidate, None, str(error))
            except StorageError as error:
                if not self._try_again(f"the kept images: {error}", str(error), next(waits)):
                    return None
            except StoreError as error:  # the file is not at fault
                if not self._try_again(str(error), type(error.__cause__ or error).__name__, next(waits)):
                    return None
            except Exception as error:
                # one odd file must not end the agent; the message could hold the path, so it is not logged
                name = self._lab.pseudonym(candidate.path)
                self._log.error("reading failed", file=name, error=type(error).__name__)
                return Refused(candidate, None, f"cannot be used: {type(error).__name__} while it was prepared")

    def _embed_all(self) -> None:
        ended = False
        while not ended:
            batch: list[Prepared | Known | Refused] = []
            cells = 0
            item = self._get(self._ready)
            while item is not None:
                assert not isinstance(item, NotYet)
                batch.append(item)
                cells += isinstance(item, Prepared)
                if cells >= self._batch_size or len(batch) >= _COMMIT_FILES:
                    break
                try:
                    item = self._get(self._ready, _IDLE_SECONDS)
                except queue.Empty:
                    break
            else:
                ended = True
            turn = self._turns.new(cells, stopped=self._stopping.is_set) if cells else contextlib.nullcontext()
            with turn:
                if batch and self._is_late():
                    self._done(*(item.candidate for item in batch))
                elif batch:
                    with self._working():
                        records = self._embed(batch)
                    self._put(self._commits, records)

    def _is_late(self) -> bool:
        """Whether the end began so long ago that nothing more is embedded."""
        return self._closing_since is not None and time.monotonic() - self._closing_since > _IN_HAND_SECONDS

    def _embed(self, batch: Sequence[Prepared | Known | Refused]) -> list[_Record]:
        prepared = [item for item in batch if isinstance(item, Prepared)]
        records = [_record(item) for item in batch if not isinstance(item, Prepared)]
        if not prepared:
            return records
        embedder = self._engine.embedder()
        started = time.perf_counter()
        described = self.suspects.describe(
            embedder, [item.digest for item in prepared], [item.crop for item in prepared]
        )
        self._metrics.embedding.observe(time.perf_counter() - started)
        self._metrics.embedded.inc(len(prepared))
        self.tally.embedded += len(prepared)
        for item, made in zip(prepared, described, strict=True):
            if isinstance(made, str):
                seen = item.signature if made == KILLED else None  # the others are tried at each scan
                records.append(_record(Refused(item.candidate, seen, made)))
                continue
            cell = NewCell(
                cell_id=item.digest[:16],
                digest=item.digest,
                path=path_to_text(item.candidate.path),
                size_bytes=item.signature.size_bytes,
                mtime_ns=item.signature.mtime_ns,
                width=item.width,
                height=item.height,
                label=item.place.label,
                label_source=item.place.label_source,
                slide=item.place.slide,
                analyser=item.place.analyser,
                captured_at=item.captured_at,
                predicted_label=made.label,
                predicted_probability=made.probability,
                latent=made.latent,
                probabilities=made.probabilities,
                measures=item.measures,
                quality=item.quality,
                fingerprints=item.fingerprints,
                landmarks=item.landmarks,
                ctime_ns=item.signature.ctime_ns,
                inode=item.signature.inode,
                folder=path_to_text(item.candidate.root),
            )
            records.append(_Record(item.candidate, item.signature, cell, embedder.bundle.digest))
        return records

    def _store_all(self) -> None:
        ended = False
        while not ended:
            batch = self._get(self._commits)
            if batch is None:
                return
            with contextlib.suppress(queue.Empty):
                while len(batch) < _COMMIT_FILES:
                    more = self._commits.get_nowait()
                    if more is None:
                        ended = True
                        break
                    if len(_spaces(batch) | _spaces(more)) > 1:  # the bundle was changed in between
                        self._store_batch(batch)
                        batch = []
                    batch.extend(more)
            self._store_batch(batch)

    def _store_batch(self, batch: list[_Record]) -> None:
        with self._working():
            self._store_records(batch)

    def _store_records(self, batch: list[_Record]) -> None:
        fresh = [record for record in batch if not self._is_as_recorded(record)]
        recorded = self._record(fresh)
        if recorded is None:
            self._done(*(record.candidate for record in batch))
            return
        rows = [row for _, row in recorded]
        if self.problem is not None:
            self.problem = None
            self._metrics.blocked.set(0)
            self._log.info("the lab's disk takes files again")
        self.tally.outcomes.update(row.outcome for row in rows)
        for record, row in recorded:
            self._metrics.files.labels(outcome=str(row.outcome)).inc()
            if isinstance(record.entry, NewCell) and record.entry.quality is not None:
                self._metrics.judged(record.entry.quality.reason)
        self._on_settled([Settled(row.path, record.signature, row.outcome, row.reason) for record, row in recorded])
        self._done(*(record.candidate for record in batch))
        if rows:
            counts = Counter(str(row.outcome) for row in rows)
            self._log.info("batch stored", files=len(rows), **counts)
            for record in fresh:
                if isinstance(record.entry, Rejected):
                    name = self._lab.pseudonym(record.candidate.path)
                    self._log.warning("file rejected", file=name, reason=record.entry.reason)

    def _record(self, records: Sequence[_Record]) -> list[tuple[_Record, LedgerRow]] | None:
        """Write records, again and again while the lab's disk takes nothing; None where that was given up.

        Where the store cannot keep a row, the others are written: the batch is halved until the row is alone. Its file
        is rejected, and tried again at the next scan. Returns what was written.
        """
        waits = _waits()
        while records:
            try:
                return list(zip(records, self._write(records), strict=True))
            except UnstorableError as error:
                fault = error
                break
            except (StoreError, OSError) as error:
                cause = error.__cause__ or error
                if not self._try_again(_in_words(error), type(cause).__name__, next(waits)):
                    return None
        else:
            return []
        if len(records) > 1:
            half = len(records) // 2
            first = self._record(records[:half])
            rest = None if first is None else self._record(records[half:])
            return None if first is None or rest is None else first + rest
        (record,) = records
        name = self._lab.pseudonym(record.candidate.path)
        # the message could quote the row, so it is not logged
        self._log.error("a file could not be stored", file=name, error=type(fault.__cause__ or fault).__name__)
        rejection = Rejected(record.entry.path, None, None, str(fault))
        if record.entry == rejection:
            return []  # the store keeps not even this; `ledger --check` names the file
        if self._is_recorded(rejection.path, rejection.reason):
            return []
        return self._record([_Record(record.candidate, None, rejection)])

    def _write(self, records: Sequence[_Record]) -> list[LedgerRow]:
        """Write records in one transaction, after the bytes of their cells are on the disk."""
        started = time.perf_counter()
        failpoint("agent.sync")
        self._lab.sync_images(record.entry.digest for record in records if isinstance(record.entry, NewCell))
        # without a new cell the space does not matter
        bundle = next(iter(_spaces(records)), None) or self._store.active_bundle()
        assert bundle is not None
        judge = self._judging()
        rows = self._store.record(
            [record.entry for record in records],
            bundle=bundle,
            judge=judge,
            candidate_bits=judge.thresholds.candidate_bits,
        )
        failpoint("agent.recorded", may_fail=False)
        self._metrics.recording.observe(time.perf_counter() - started)
        return rows

    def _judging(self) -> Judge:
        """Who compares new cells with stored ones, by the thresholds of the bundle in use."""
        opened = self._engine.opened
        thresholds = DEFAULTS if opened is None else Thresholds.of(opened.bundle.manifest.duplicates)
        if self._judge is None or self._judge.thresholds != thresholds:
            self._judge = Judge(self._lab, thresholds)
        return self._judge

    def _is_as_recorded(self, record: _Record) -> bool:
        return (
            isinstance(record.entry, Rejected)
            and record.signature is None
            and self._is_recorded(record.entry.path, record.entry.reason)
        )

    def _try_again(self, problem: str, logged: str, wait: float) -> bool:
        """Say that the lab's disk or store takes nothing, and wait; False where this is the end.

        logged : the problem without what a database may quote of the rows it refused.
        """
        first = self.problem is None
        self.problem = problem
        self._metrics.blocked.set(1)
        if first:
            self._log.error("nothing can be stored; nothing is lost, it is tried again", problem=logged)
        if not self._patient and self.failure is None:
            self.failure = AgentError(
                f"nothing more can be stored in {self._lab.folder}: {problem}. Free space or mend it and start again; what is "
                "stored is whole, and the other files are found again."
            )
        if self.failure is not None:
            self._dead.set()
            with self._idle:
                self._idle.notify_all()
            return False
        return not self._stopping.wait(wait)


def _waits() -> Iterator[float]:
    """Seconds to wait before each new try of the disk: twice as long every time, up to a minute."""
    wait, longest = _RETRY_SECONDS
    while True:
        yield wait
        wait = min(2 * wait, longest)


def _spaces(records: Sequence[_Record]) -> set[str]:
    return {record.bundle for record in records if record.bundle is not None}


def _record(item: Known | Refused) -> _Record:
    path = path_to_text(item.candidate.path)
    if isinstance(item, Refused):
        seen = item.signature
        if seen is None:
            return _Record(item.candidate, None, Rejected(path, None, None, item.reason))
        rejection = Rejected(path, seen.size_bytes, seen.mtime_ns, item.reason, seen.ctime_ns, seen.inode)
        return _Record(item.candidate, seen, rejection)
    entry = SeenAgain(
        path=path,
        size_bytes=item.signature.size_bytes,
        mtime_ns=item.signature.mtime_ns,
        digest=item.digest,
        label=item.place.label,
        label_source=item.place.label_source,
        slide=item.place.slide,
        ctime_ns=item.signature.ctime_ns,
        inode=item.signature.inode,
        folder=path_to_text(item.candidate.root),
    )
    return _Record(item.candidate, item.signature, entry)


def _in_words(error: StoreError | OSError) -> str:
    return str(error) if isinstance(error, StoreError) else error.strerror or type(error).__name__
