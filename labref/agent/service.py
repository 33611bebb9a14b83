"""One agent: opens the lab, serves it, and brings its files from the scan and the events into the pipeline."""

from __future__ import annotations

import contextlib
import gc
import json as jsonlib
import os
import random
import signal
import socket
import threading
import time
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, Final, Self

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from labref import __version__
from labref.agent import housekeeping, notify
from labref.agent.moves import Moves
from labref.agent.observed import Observed
from labref.agent.pipeline import Engine, Pipeline, Settled
from labref.agent.retries import Retries
from labref.asking.answer import open_embedder
from labref.asking.room import wanting
from labref.bundles.bundle import Bundle
from labref.bundles.inference import Embedder
from labref.bundles.trial import leave_off
from labref.cpus import keep_to, usable_cpus
from labref.errors import AgentError, LabError, StoreError
from labref.export.layout import Layout
from labref.export.paths import path_to_text
from labref.export.roots import FileNumbers, Roots
from labref.export.scan import GONE, UNREACHABLE, Candidate, ScanReport, Signature, left_alone, look, scan
from labref.export.settle import Settling
from labref.export.watch import Watcher
from labref.files import new_files, replace_file
from labref.lab import Lab
from labref.lab.log import Log, open_log
from labref.lab.mounts import condition_of, is_unmounted, remember_mounts
from labref.lab.pictures import Pictures
from labref.lab.presence import OwnFolder
from labref.operations import perform
from labref.operations.naming import NoCellError, id_of_cell
from labref.printing import printable
from labref.processes import lower_own_priority
from labref.store import FileState, Person, Store
from labref.tasks.context import Adoption, Context
from labref.tasks.jobs import Jobs
from labref.tasks.publishing import Publisher, asking_of
from labref.tasks.reembedding import embed_left
from labref.tasks.turns import Turns
from labref.times import local, utc_now
from labref.web.certificate import TLS
from labref.web.client import AgentClient
from labref.web.desk import open_free_store
from labref.web.metrics import Metrics
from labref.web.server import Serve, Server, bound_socket

__all__ = ["Summary", "run_agent"]

_TICK_SECONDS: Final = 0.25
_MOST_SETTLED: Final = 256  # files kept for the pipeline; a scan waits while there are more
_MOST_SETTLING: Final = 4096
_RESCAN_LEAST_SECONDS: Final = 30.0
_RESCAN_SHARE: Final = 200.0  # where a scan is quick it comes sooner than it must, for watchers that miss changes
_FOLLOW_SECONDS: Final = 30.0  # after a scan, cells follow moved files even where the agent has no pause
_FOLLOW_AGAIN_SECONDS: Final = 10.0  # until the next try, where the store could not be written
_STORE_AGAIN_SECONDS: Final = 5.0  # until the next scan, where the store failed one
_ROOTS_SECONDS: Final = 2.0  # watched folders are looked for this often
_LOOK_AHEAD_SECONDS: Final = 300.0  # the disk that fills and the backup that ages are looked at this often
_LEARNT_AT_ONCE: Final = 65_536
_LOCK_SECONDS: Final = 10.0  # a `labref query` without agent has the store for a moment
_GIVE_UP_SECONDS: Final = 300.0
_PASSES: Final = 2  # of `agent --once`, where a file came to no outcome
_END_SECONDS: Final = 8.0  # whoever ends the agent waits no longer than 10


@dataclass
class Summary:
    """What an agent did.

    found : files with an image's name that were met; each has exactly one of the outcomes stored, duplicate,
    possible_duplicate and rejected, its last one, or was unchanged since an earlier pass. An agent that scanned often
    met those of its last whole scan, and those that it took in.  embedded : cells that went through the networks.
    ignored : other files, and others : the same by their endings.  reserved : folders and files with a name of the
    system's, not looked at.  vanished : files deleted while they were still being written.  unreachable : watched
    folders, and folders in them, that could not be read.  interrupted : asked to end before the pass was whole.
    without_outcome : files that a pass met and that came to no outcome, though it looked for them twice.
    """

    found: int = 0
    stored: int = 0
    duplicate: int = 0
    possible_duplicate: int = 0
    rejected: int = 0
    unchanged: int = 0
    embedded: int = 0
    seconds: float = 0.0
    cells_per_second: float = 0.0
    ignored: int = 0
    others: dict[str, int] = field(default_factory=dict)
    reserved: int = 0
    vanished: int = 0
    unreachable: list[str] = field(default_factory=list)
    interrupted: bool = False
    without_outcome: int = 0


def run_agent(lab: Lab, *, once: bool, json: bool, console: Console | None) -> Summary:
    """See `labref.agent.run`."""
    told = console or Console()
    if not lab.config.watch.folders:
        raise AgentError(f"{lab.config_file} names no folder to watch; add one to [watch] folders")
    # before any thread or child is there: they take both over
    if lab.config.agent.priority == "low":
        lower_own_priority()
    if lab.config.agent.cpus:
        keep_to(lab.config.agent.cpus)
    with contextlib.ExitStack() as stack:
        ending = stack.enter_context(_Ending(lab))
        stack.enter_context(new_files(lab.rights))
        store = stack.enter_context(_own_store(lab))
        lab.clear_incoming()
        log = stack.enter_context(open_log(lab))
        stack.callback(lab.decoder.leave_off)
        agent = _Agent(lab, store, log, once=once)

        def end() -> None:
            ending.begin(log)
            agent.stop()
            leave_off()  # a bundle's first run, which the start may wait for

        # before anybody can see that it runs: who sees it may end it
        stack.enter_context(_until_signalled(end))
        stack.enter_context(agent)
        if once:
            summary = agent.run_once(None if json else console or Console(stderr=True))
        else:
            agent.announce(told, json=json)
            with notify.watched(agent.is_at_work):
                summary = agent.serve()
    if json:
        print(jsonlib.dumps(asdict(summary)), flush=True)
    elif once:
        told.print(_told(summary), highlight=False, markup=False, soft_wrap=True)
    if once and summary.unreachable and not summary.interrupted:
        raise AgentError(
            f"{len(summary.unreachable)} folders could not be read: {', '.join(summary.unreachable[:3])}. Mount them, or give the "
            "agent's user access; the others were taken in."
        )
    if summary.without_outcome:
        raise AgentError(
            f"{summary.without_outcome} of the files found came to no outcome; `labref ledger --check` names them. Start it "
            "again; all others were taken in."
        )
    return summary


def _told(summary: Summary) -> str:
    parts = [
        f"{summary.stored} stored",
        f"{summary.duplicate} duplicates",
        f"{summary.possible_duplicate} possible duplicates",
    ]
    parts += [f"{summary.rejected} rejected", f"{summary.unchanged} unchanged"]
    lines = [f"{summary.found} files found in {summary.seconds:.1f} s: {', '.join(parts)}."]
    if summary.embedded:
        lines.append(f"{summary.embedded} cells embedded, {summary.cells_per_second:.1f} a second.")
    if summary.rejected:
        lines.append("Why: labref ledger --outcome rejected")
    lines += map(printable, left_alone(summary.others, summary.reserved))
    if summary.interrupted:
        lines.append("Ended before the pass was whole; run it again to take in the rest.")
    return "\n".join(lines)


def _there_and_missing(lab: Lab) -> tuple[list[str], list[str]]:
    """The watched folders that are there, and those that are not."""
    found = [(path_to_text(str(folder)), folder.is_dir() and not is_unmounted(lab, folder)) for folder in lab.watched]
    return [folder for folder, there in found if there], [folder for folder, there in found if not there]


def _own_store(lab: Lab) -> Store:
    """The lab's store, for this agent alone. Raises `AgentError` where an agent has it."""
    store, agent = open_free_store(lab, or_agent=lambda: AgentClient.find(lab), patience_seconds=_LOCK_SECONDS)
    if agent is not None:
        raise _already(lab, agent.record.pid, agent.record.started_at)
    assert store is not None
    return store


def _already(lab: Lab, pid: int, started_at: str) -> AgentError:
    return AgentError(
        f"an agent (pid {pid}, since {local(started_at)}) already runs on this lab, {lab.folder}. One is enough; to start another, "
        "end it first (Ctrl-C, or stop the service)."
    )


class _Ending:
    """Sees to it that the process is gone soon after the end began, whatever still works in it: all that is stored is
    whole at any moment, and the next scan finds the rest."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._timer: threading.Timer | None = None

    def begin(self, log: Log) -> None:
        """The end began; from now on the seconds count."""
        if self._timer is None:
            self._timer = threading.Timer(_END_SECONDS, self._force, (log,))
            self._timer.daemon = True
            self._timer.start()

    def _force(self, log: Log) -> None:
        own = ("labref-", "MainThread")
        at_work = [thread.name for thread in threading.enumerate() if thread.name.startswith(own)]
        with contextlib.suppress(Exception):
            log.error("ended by force", after_seconds=_END_SECONDS, threads=at_work)
            self._lab.agent_file.unlink(missing_ok=True)
            text = (
                f"the agent was still at work {_END_SECONDS:.0f} s after it was asked to end, and was ended by force; "
            )
            os.write(2, f"{text}what is stored is whole, and the next scan finds the rest\n".encode())
        os._exit(1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()


@contextlib.contextmanager
def _until_signalled(stop: Callable[[], None]) -> Iterator[None]:
    """Ctrl-C, SIGTERM and Windows' Ctrl-Break call `stop`; a second Ctrl-C interrupts at once.

    It is called from a thread of its own: the main thread, in which Python runs what answers a signal, may just wait
    for a share that is gone.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[int, Any] = {}

    def handle(number: int, _: object) -> None:
        signal.signal(number, signal.SIG_DFL if number != signal.SIGINT else signal.default_int_handler)

    def listen() -> None:
        with contextlib.suppress(OSError):
            while heard := listening.recv(1):
                if heard[0] in before:
                    stop()

    listening, signalling = socket.socketpair()
    signalling.setblocking(False)
    descriptor = signal.set_wakeup_fd(signalling.fileno(), warn_on_full_buffer=False)
    listener = threading.Thread(target=listen, name="labref-signals", daemon=True)
    listener.start()
    for name in ("SIGINT", "SIGTERM", "SIGBREAK"):
        number = getattr(signal, name, None)
        if number is not None:
            before[number] = signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(descriptor)
        signalling.close()
        listener.join(1.0)
        listening.close()


class _Taken(FileState):
    """What the ledger has of a file that this agent has taken in."""

    __slots__ = ()


class _Agent:
    """An agent at work, from `__enter__` to `__exit__`. Its methods are for one thread, but for `stop` and what HTTP
    asks."""

    def __init__(self, lab: Lab, store: Store, log: Log, *, once: bool) -> None:
        self._lab, self._store, self._log, self._once = lab, store, log, once
        self._watch = lab.config.watch
        self._metrics = Metrics()
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._settling = Settling(self._watch)
        self._settled: deque[Candidate] = deque()
        self._held: dict[str, tuple[str, bool]] = {}
        # for `_known`, `_reasons` and `_tried_again`, which the storing thread changes
        self._noting = threading.Lock()
        self._noted: list[Settled] | None = None  # while the ledger is read
        self._known: dict[str, FileState] = {}
        self._learnt: list[tuple[str, int, int | None]] = []
        self._file_numbers = FileNumbers()
        self._revision = -1  # of the ledger that is remembered: none yet
        self._reasons: dict[str, str] = {}
        self._retries = Retries(lab.decoder.limits)
        self._watcher: Watcher | None = None
        self._look_due = 0.0
        self._moves = Moves(store, Roots(lab.watched, lab.excluded(), self._watch.system_names), self._watch.extensions)
        self._filled: set[str] | None = None  # by the last scan, until cells follow it
        self._follow_due = 0.0
        self._scan_ended = time.monotonic()
        self._unchanged: array[int] = array("q")
        self._met: array[int] = array("q")  # by a pass of `agent --once`
        self._tried_again: set[str] = set()
        self._scanned = False
        self._last_report = ScanReport()
        self._last_scan: tuple[str, float] | None = None
        self._wanting: str | None = None
        self._state = "starting"
        self._unread: str | None = None  # why the store cannot be read
        self._moved_at = time.monotonic()
        self._metrics.stalled.set_function(lambda: self._stalled()[0])
        self._started_at = utc_now()
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> _Agent:
        with contextlib.ExitStack() as stack:
            self._own_folder = stack.enter_context(contextlib.closing(OwnFolder(self._lab.folder)))
            bundle = self._lab.bundle(self._store)
            # threads inherit their priority: the networks that answer must not get a background job's
            self._opening = stack.enter_context(ThreadPoolExecutor(1, "labref-open"))
            self._opening.submit(int).result()
            self._engine = Engine(lambda: self._open_active(bundle))
            stack.callback(self._engine.close)
            if not self._once:
                self._lab.decoder.warm()
                # side by side: both take seconds in a large lab, and people wait
                with ThreadPoolExecutor(1, "labref-index") as reading:
                    read = reading.submit(self._store.read_ahead)
                    self._engine.embedder()
                    read.result()
            turns = Turns()
            self._pipeline = Pipeline(
                self._lab,
                self._store,
                self._engine,
                self._layout(bundle),
                readers=self._lab.config.agent.readers or max(2, usable_cpus() // 2),
                is_recorded=self._is_recorded,
                on_settled=self._note,
                log=self._log,
                metrics=self._metrics,
                patient=not self._once,
                turns=turns,
            )
            stack.callback(self._pipeline.close)
            self._jobs = Jobs(self._log)
            stack.callback(self._jobs.close)
            asking = asking_of(self._lab)
            if asking is not None:
                stack.callback(asking.close)
            publisher = None
            if self._lab.config.shared.url and not self._once:
                publisher = Publisher(self._lab, self._store, self._log)
                stack.callback(publisher.close)
            self._context = Context(
                self._lab,
                self._store,
                self._engine.embedder,
                self._jobs,
                self._adopt,
                self._status,
                lambda: self._pipeline.suspects,
                publisher,
                asking,
                turns,
            )
            self._server = stack.enter_context(self._addresses())
            self._metrics.state = Observed(self._context, self._healthy)
            stack.enter_context(self._scraped())
            self._log.info("agent started", version=__version__, bundle=bundle.short, once=self._once)
            self._write_record()
            stack.callback(self._lab.agent_file.unlink, missing_ok=True)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        self._state = "ending"
        self._stack.close()
        self._log.info("agent ended", embedded=self._pipeline.tally.embedded, error=kind.__name__ if kind else None)

    def stop(self) -> None:
        """Ask the agent to end. Safe from a signal handler."""
        self._stop.set()
        self._wake.set()

    def announce(self, console: Console, *, json: bool) -> None:
        """Say that the agent is ready."""
        embedder = self._engine.embedder()
        if json:
            ready = {
                "event": "ready",
                "pid": os.getpid(),
                "port": self._server.port,
                "provider_line": embedder.provider_line,
                "missing": _there_and_missing(self._lab)[1],
            }
            print(jsonlib.dumps(ready), flush=True)
            return
        there, missing = _there_and_missing(self._lab)
        lines = [f"labref {__version__}, lab {self._lab.folder}", embedder.provider_line]
        lines += [
            f"WARNING: {folder} is not there; mount it, or correct [watch] folders in {self._lab.config_file}. It is taken "
            "in as soon as it is there."
            for folder in missing
        ]
        lines.append(f"watching {', '.join(there) or 'no folder yet'}; Ctrl-C ends it")
        for line in lines:
            console.print(printable(line), highlight=False, markup=False, soft_wrap=True)

    def run_once(self, console: Console | None) -> Summary:
        """One full pass over the export folders."""
        started = time.perf_counter()
        self._state = "scanning"
        left = 0
        with _progress(console, self._progress):
            for _ in range(_PASSES):
                self._scan()
                self._take_in_whole()
                left = 0 if self._stop.is_set() else self._without_outcome()
                if not left:
                    break
                self._log.error("files came to no outcome", files=left)
            if not self._stop.is_set():
                self._follow_moves()
                for _ in embed_left(self._context, stopped=self._stop.is_set):  # an agent that stays has a job for it
                    pass
        self._pipeline.check()
        interrupted = self._stop.is_set()
        self._pipeline.close()
        self._pipeline.check()
        return self._summary(time.perf_counter() - started, interrupted=interrupted, without_outcome=left)

    def _take_in_whole(self) -> None:
        """Go on until every file that was scanned has its outcome, or the agent is asked to end."""
        while not self._stop.is_set():
            self._pump(_TICK_SECONDS)
            if self._settled:
                continue
            if self._settling:
                self._stop.wait(_TICK_SECONDS)
            elif self._pipeline.wait_idle(_TICK_SECONDS):
                self._pump()  # what was returned just before
                if not self._settled and not self._settling and not self._held and not self._pipeline.in_flight:
                    return
            self._check()
            seconds, where = self._stalled()
            if seconds > _GIVE_UP_SECONDS:
                raise AgentError(f"the pass came to nothing more: {_no_progress(seconds, where)}. Start it again.")

    def _without_outcome(self) -> int:
        """How many of the files that the last scan met have no outcome."""
        with self._noting:
            known = {*map(hash, self._known), *map(hash, self._tried_again)}
        return len({*self._met} - known)

    def _check(self) -> None:
        """Raise what ended the pipeline or keeps the HTTP side from answering, where something did."""
        self._pipeline.check()
        self._server.check()

    def serve(self) -> Summary:
        """Watch and scan until asked to end."""
        started = time.perf_counter()
        self._server.begin()  # whoever asks first need not wait for it
        watcher = Watcher(
            self._lab.watched,
            extensions=self._watch.extensions,
            polling=self._watch.polling,
            wake=self._wake,
            log=self._log,
        )
        next_scan = roots_due = housekeeping_due = wanting_due = 0.0
        with contextlib.closing(watcher):
            while not self._stop.is_set():
                self._wake.clear()
                self._moved_at = time.monotonic()
                self._check()
                now = time.monotonic()
                if now >= roots_due:
                    if self._own_folder.is_here() is False:
                        raise AgentError(
                            f"{self._lab.folder} was moved or replaced while its agent ran. Start an agent where the lab is now."
                        )
                    # watched first, scanned then: what comes between is seen twice rather than never
                    if watcher.ensure():
                        next_scan = 0.0
                    self._watcher = watcher  # who asks before would hear that all is missing
                    self._metrics.unreachable.set(sum(how == "missing" for how in watcher.methods().values()))
                    roots_due = now + _ROOTS_SECONDS
                if now >= housekeeping_due:
                    self._patiently(lambda: housekeeping.housekeep(self._context))
                    if now >= wanting_due:
                        self._patiently(self._look_ahead)
                        wanting_due = now + _LOOK_AHEAD_SECONDS
                    housekeeping_due = now + housekeeping.SECONDS
                if self._revision != self._store.revision and self._patiently(self._remember_files):
                    next_scan = 0.0
                if self._take_hints(watcher):
                    next_scan = min(next_scan, now + 1.0)
                if now >= next_scan:
                    self._state = "scanning"
                    took = self._scan_patiently(watcher)
                    self._state = "watching"
                    if took is None:
                        next_scan = time.monotonic() + _STORE_AGAIN_SECONDS
                    elif watcher.must_poll():
                        # a slow share is not asked without pause
                        next_scan = time.monotonic() + max(self._watch.poll_seconds, 4 * took)
                    else:
                        pause = min(self._watch.rescan_seconds, max(_RESCAN_LEAST_SECONDS, _RESCAN_SHARE * took))
                        next_scan = time.monotonic() + pause * random.uniform(0.9, 1.1)
                self._pump(_TICK_SECONDS)
                if self._settled:
                    continue
                busy = self._settling or self._held or self._pipeline.in_flight
                if not busy or time.monotonic() - self._scan_ended > _FOLLOW_SECONDS:
                    self._follow_moves_patiently()
                self._wake.wait(_TICK_SECONDS if busy else min(1.0, max(next_scan - time.monotonic(), 0.05)))
        return self._summary(time.perf_counter() - started, interrupted=False)

    def _patiently(self, work: Callable[[], object]) -> bool:
        """Do work that reads the store; False where the store fails. The agent goes on, and does it again later."""
        try:
            work()
        except StoreError as error:
            if self._unread is None:
                self._log.error("the store cannot be read; it is tried again", error=type(error.__cause__).__name__)
            self._unread = str(error)
            return False
        self._unread = None
        return True

    def _scan_patiently(self, watcher: Watcher) -> float | None:
        """Seconds that a scan took; None where the store failed it."""
        took: list[float] = []
        self._patiently(lambda: took.append(self._scan(watcher)))
        return took[0] if took else None

    def _follow_moves(self) -> None:
        """Let cells be called as their files say that are still there, once a scan is whole and its files stored."""
        changed = 0
        if self._filled is not None:
            changed = self._moves.follow_scan(self._unchanged, self._filled)
            self._filled = None
        if self._moves.changed:
            changed += self._moves.follow_changed()
        if changed:
            self._log.info("cells followed files that were moved", cells=changed)

    def _follow_moves_patiently(self) -> None:
        """The same; where the store cannot be written, nothing is forgotten, and a later call tries it again."""
        if time.monotonic() < self._follow_due:
            return
        try:
            self._follow_moves()
        except StoreError as error:  # a full disk
            self._follow_due = time.monotonic() + _FOLLOW_AGAIN_SECONDS
            self._log.warning(
                "cells could not follow files that were moved; it is tried again", error=type(error.__cause__).__name__
            )

    # bringing files in

    def _scan(self, watcher: Watcher | None = None) -> float:
        """Look at every file once; those that are new or changed go on. Returns the seconds it took."""
        started = time.perf_counter()
        self._remember_files()
        report = ScanReport()
        self._file_numbers = FileNumbers()  # something else may be mounted there by now
        unchanged: array[int] = array("q")
        met: array[int] = array("q")
        filled: set[str] = set()
        if not self._scanned:
            self._unchanged = unchanged  # progress is told of the first scan, while it goes on
        pumped = time.monotonic()
        for candidate in scan(
            self._lab.watched,
            extensions=self._watch.extensions,
            excluded=self._lab.excluded(),
            reserved=self._watch.system_names,
            report=report,
        ):
            if self._stop.is_set():
                break
            filled.add(candidate.root)
            if self._once:
                met.append(hash(path_to_text(candidate.path)))
            name = self._consider(candidate, observe=self._scanned)
            if name is not None:
                unchanged.append(hash(name))
            self._moved_at = time.monotonic()
            while (
                len(self._settled) > _MOST_SETTLED or len(self._settling) > _MOST_SETTLING
            ) and not self._stop.is_set():
                self._pump(_TICK_SECONDS)
                if len(self._settled) <= _MOST_SETTLED:
                    self._stop.wait(_TICK_SECONDS)
            if time.monotonic() - pumped > _TICK_SECONDS:
                if watcher is not None and self._take_hints(watcher):
                    watcher.want_scan()  # after this one
                self._pump()
                pumped = time.monotonic()
        self._write_learnt()
        took = time.perf_counter() - started
        if not self._stop.is_set():
            empty = [root for root in self._lab.watched if str(root) not in filled]
            report.unreachable += [str(root) for root in empty if is_unmounted(self._lab, root)]
            remember_mounts(self._lab, filled)
            self._scanned = True
            self._unchanged, self._filled, self._scan_ended = unchanged, filled, time.monotonic()
            self._met = met
            if set(report.unreadable) - set(self._last_report.unreadable):
                self._log.warning("folders could not be read", folders=len(report.unreadable))
            self._last_report = report
            if watcher is not None:
                watcher.compare(report.walked)
            self._last_scan = (utc_now(), took)
            self._metrics.scan_seconds.set(took)
            self._metrics.scan_at.set_to_current_time()
            self._log.info(
                "scan ended",
                seconds=round(took, 3),
                unchanged=len(unchanged),
                ignored=report.ignored,
                reserved=report.reserved,
                unreachable=len(report.unreachable),
                unreadable=len(report.unreadable),
            )
        return took

    def _consider(self, candidate: Candidate, *, observe: bool, event: bool = False) -> str | None:
        """Let a file go on where it is new or changed; where it is neither, return its name as text.

        event : the system said that it changed, so it is read again even where it looks as it did.
        """
        if self._pipeline.holds(candidate.path):
            # it may have changed after it was read: looked at again once it has its outcome
            told = event or self._held.get(candidate.path, ("", False))[1]
            self._held[candidate.path] = candidate.root, told
            return None
        name = path_to_text(candidate.path)
        state = self._known.get(name)
        if state is not None:
            signature = candidate.signature
            if signature is None:
                if state.size_bytes is None and self._reasons.get(name) == candidate.refusal:
                    return name
            elif not event and self._is_as_known(name, state, candidate.root, signature):
                if not self._retries.take(name):
                    return name
                observe = False  # it stood still before
            elif state.size_bytes is None:
                observe = False  # tried before and looked at since
        if self._settling.add(candidate, observe=observe):
            self._settled.append(candidate)
        return None

    def _is_as_known(self, name: str, state: FileState, root: str, seen: Signature) -> bool:
        """Whether a file looks as the ledger has it; learns what an older labref did not write down of it."""
        inode = self._file_numbers.of(root, seen.inode)
        if not state.is_of(seen.size_bytes, seen.mtime_ns, seen.ctime_ns, inode):
            return False
        if state.ctime_ns is None:
            self._learnt.append((name, seen.ctime_ns, inode))
            self._known[name] = state._replace(ctime_ns=seen.ctime_ns, inode=inode)
            if len(self._learnt) >= _LEARNT_AT_ONCE:
                self._write_learnt()
        return True

    def _write_learnt(self) -> None:
        learnt, self._learnt = self._learnt, []
        if learnt:
            try:
                self._store.learn_file_numbers(learnt)
            except StoreError as error:  # a full disk: the agent's next start learns it again
                self._log.warning(
                    "what files look like could not be written down", error=type(error.__cause__).__name__
                )

    def _take_hints(self, watcher: Watcher) -> bool:
        """Look at the files that events named; True where a scan is wanted as well."""
        hints, wanted = watcher.hints()
        if hints:
            roots = Roots(self._lab.watched, self._lab.excluded(), self._watch.system_names)
            homes = filter(None, (roots.home(path, root) for path, root in hints.items()))
            self._look_at({path: (root, True) for path, root in homes})
        return wanted

    def _look_at(self, paths: dict[str, tuple[str, bool]]) -> None:
        """Look at files: path → watched folder, and whether an event told of it."""
        for path, (root, event) in paths.items():
            candidate = look(path, root)
            if candidate is not None:
                self._consider(candidate, observe=True, event=event)

    def _pump(self, timeout: float = 0.0) -> None:
        """Move files on: returned ones back to waiting, settled ones into the pipeline as far as it has room.

        timeout : wait so long, in seconds, for room for the next one.
        """
        self._moved_at = time.monotonic()
        for back in self._pipeline.returned():
            if back.changed:
                now = look(back.candidate.path, back.candidate.root)
                if now is None:
                    now = self._settling.gone(back.candidate)
                given_up = self._settling.changed(now)
                if given_up is not None:
                    self._settled.append(given_up)
            elif not self._settling.unfinished(back.candidate):
                self._settled.append(replace(back.candidate, refusal=back.reason))
        if time.monotonic() >= self._look_due:
            free = {path: why for path, why in self._held.items() if not self._pipeline.holds(path)}
            for path in free:
                del self._held[path]
            self._look_at(free)
            self._settled.extend(self._settling.settled())
            # thousands may wait, and to look at each takes time that the pipeline needs
            self._look_due = time.monotonic() + _TICK_SECONDS
        while self._settled and self._pipeline.offer(self._settled[0], timeout=timeout):
            self._settled.popleft()
            timeout = 0.0
        self._metrics.waiting.set(len(self._settling))
        self._metrics.in_flight.set(self._pipeline.in_flight)

    def _note(self, settled: Sequence[Settled]) -> None:
        """Remember what the store now has; called by the storing thread."""
        with self._noting:
            changed = [file.path for file in settled if file.outcome == "duplicate" or file.path in self._known]
            for file in settled:
                self._remember(file)
            if self._noted is not None:
                self._noted.extend(settled)
        self._moves.changed.extend(changed)

    def _remember(self, file: Settled) -> None:
        seen = file.signature
        self._known[file.path] = (
            _Taken(None, None, file.outcome)
            if seen is None
            else _Taken(seen.size_bytes, seen.mtime_ns, file.outcome, seen.ctime_ns, seen.inode)
        )
        if file.signature is None and file.reason is not None:
            self._reasons[file.path] = file.reason
        else:
            self._reasons.pop(file.path, None)
        self._retries.note(file.path, file.reason if file.outcome == "rejected" else None)

    def _is_recorded(self, path: str, reason: str) -> bool:
        # what is gone, or out of reach for now, keeps the outcome it had
        kept = reason in (GONE, UNREACHABLE)
        with self._noting:
            recorded = path in self._known if kept else self._reasons.get(path) == reason
            if recorded:
                self._tried_again.add(path)
        return recorded

    def _remember_files(self) -> None:
        """Read what the ledger has of every file, for the first time or after rows were taken out of it."""
        if self._revision != self._store.revision:
            revision = self._store.revision
            with self._noting:
                self._noted = []
            # seconds for a million files, in which the storing thread goes on
            known = self._store.known_files()
            reasons = self._read_reasons(known)
            self._revision = revision  # not before: what failed is done again
            with self._noting:
                for path, state in self._known.items():
                    if isinstance(state, _Taken) and path in known:
                        known[path] = _Taken(*known[path])
                self._known = known
                self._reasons.update(reasons)
                for file in self._noted:
                    self._remember(file)
                self._noted = None
            gc.freeze()  # or each full collection would look at a million of them

    def _read_reasons(self, known: dict[str, FileState]) -> dict[str, str]:
        """The reasons of files that are tried at every scan: only a new reason is written down again. Those that are
        tried later are handed to `Retries`."""
        reasons: dict[str, str] = {}
        if any(state.outcome == "rejected" for state in known.values()):
            for row in self._store.ledger(outcome="rejected"):
                state = known.get(row.path)
                if row.reason is None or state is None:
                    continue
                if state.size_bytes is None:
                    reasons[row.path] = row.reason
                else:
                    self._retries.recall(row.path, row.reason, row.at.timestamp())
        return reasons

    # answering

    def _layout(self, bundle: Bundle) -> Layout:
        return Layout(self._watch, bundle.manifest.labels, self._lab.analysers, self._store.given_classes)

    def _open_active(self, bundle: Bundle) -> Embedder:
        with self._lab.ways_out(self._store):
            return self._open_embedder(bundle)

    def _open_embedder(self, bundle: Bundle) -> Embedder:
        embedder = open_embedder(self._lab, bundle)
        self._log.info("inference", provider=embedder.provider, why=embedder.provider_line)
        self._metrics.info.info({"version": __version__, "bundle": bundle.short, "provider": embedder.provider})
        return embedder

    def _adopt(self, bundle: Bundle) -> Adoption:
        embedder: Embedder = self._opening.submit(self._open_embedder, bundle).result()

        def use() -> None:
            self._engine.replace(embedder)
            self._pipeline.use(self._layout(bundle))
            self._log.info("bundle switched", bundle=bundle.short)

        return Adoption(embedder, use)

    def _addresses(self) -> Server:
        """The agent's addresses, not bound yet."""
        web = self._lab.config.web
        tls = self._tls(web.address, web.port)
        # the token is read now: one that is damaged is said at the start, not to whoever calls first
        return Server(partial(self._make_web, self._lab.token()), self._lab.config.agent.port, tls)

    def _tls(self, address: str, port: int) -> TLS | None:
        """HTTPS at an address, with the certificate of labref.toml, [web]; None where there is none."""
        web, folder = self._lab.config.web, self._lab.folder
        if web.certificate is None or web.key is None:
            return None
        return TLS(address, port, folder / web.certificate, folder / web.key)

    @contextlib.contextmanager
    def _scraped(self) -> Iterator[None]:
        """Answer a monitoring server on another computer, where labref.toml says at which address."""
        wanted = self._lab.config.metrics
        if not wanted.address or self._once:
            yield
            return
        from labref.web.certificate import Certificate
        from labref.web.scraped import scraped_app
        from labref.web.serving import serving

        tls = self._tls(wanted.address, wanted.port)
        certificate = None if tls is None else Certificate(tls)
        token = self._lab.metrics_token()
        bound = bound_socket(wanted.address, wanted.port, "[metrics] address and port")
        with serving(scraped_app(self._metrics, token), bound, tls, certificate):
            yield

    def _make_web(self, token: str) -> Serve:
        """What answers at them; its modules are loaded for the first caller."""
        from labref.web.application import Answers, make_app
        from labref.web.guard import Elsewhere
        from labref.web.serving import serving
        from labref.web.timed import Timed
        from labref.web.visitors import IDLE, LASTS, Entrance, Visitor

        def visitor(person: Person | None) -> Visitor | None:
            return None if person is None else Visitor(person.name, person.role)

        people = self._store.people
        entrance = Entrance(
            sign_in=lambda code, session: visitor(people.sign_in(code, session, LASTS)),
            signed_in=lambda session: visitor(people.of_session(session, IDLE)),
            stays=lambda session: people.of_session(session, IDLE, used=False) is not None,
            sign_out=people.sign_out,
        )
        answers = Answers(
            perform=lambda name, parameters, data: perform(self._context, name, parameters, data),
            image=self._kept_image,
            healthy=self._healthy,
            proof=lambda nonce, mark: self._own_folder.proofs(self._lab.token(), nonce, mark),
            entrance=entrance,
            latest=self._store.last_number,
            pictures=Pictures(
                self._lab,
                lambda cell: bool(self._store.labelled([cell])),
                None if self._context.asking is None else self._context.asking.thumbnail,
                self._store.trash.holds,
            ),
        )
        web = self._lab.config.web
        hosts = {*web.names}
        if web.certificate is not None:
            hosts.add(f"[{web.address}]" if ":" in web.address else web.address)
        app = make_app(
            answers,
            self._metrics,
            token=token,
            max_bytes=int(self._watch.max_file_megabytes * 1e6),
            log=self._log,
            elsewhere=Elsewhere(hosts, web.proxy),
            pictures_a_minute=web.pictures_a_minute,
        )
        return partial(serving, Timed(app, self._metrics))

    def _kept_image(self, cell: str) -> bytes | None:
        try:
            return self._lab.kept_image(id_of_cell(self._store, cell))
        except NoCellError:
            return None

    def _healthy(self) -> str:
        """See `Answers`. Looks at no folder: a share that hangs must not keep the answer."""
        if (self._pipeline.problem or self._pipeline.failure or self._unread) is not None:
            return "storage"
        if not self.is_at_work():
            return "no progress"
        if self._watcher is None:
            return "folder" if self._last_report.unreachable else "ok"
        if "missing" in self._watcher.methods().values() or self._last_report.unreachable:
            return "folder"
        return self._wanting or "ok"

    def _look_ahead(self) -> None:
        """What /health says where nothing is wrong yet."""
        embedder = self._context.embedder()
        self._wanting = "provider" if embedder.fallback is not None else wanting(self._lab, self._store)
        publisher = self._context.publisher
        if self._wanting is None and publisher is not None and publisher.is_behind():
            self._wanting = "shared"

    def _stalled(self) -> tuple[float, str]:
        """How long, in seconds, the longest piece of work takes so far, and the thread at it."""
        if not hasattr(self, "_pipeline"):
            return 0.0, ""
        own = time.monotonic() - self._moved_at
        return max(self._pipeline.stalled(), (own, "labref-scan"))

    def is_at_work(self) -> bool:
        """Whether no piece of work takes longer than any should; see `labref.agent.notify`."""
        return self._stalled()[0] <= self._lab.config.agent.stalled_seconds

    def _problem(self) -> str | None:
        seconds, where = self._stalled()
        stalled = seconds > self._lab.config.agent.stalled_seconds
        return self._pipeline.problem or self._unread or (_no_progress(seconds, where) if stalled else None)

    def _status(self) -> dict[str, Any]:
        methods = self._watcher.methods() if self._watcher is not None else {}
        otherwise = "one pass" if self._once else "unwatched"
        watch = [
            {"folder": path_to_text(str(root)), "how": condition_of(self._lab, root) or methods.get(root, otherwise)}
            for root in self._lab.watched
        ]
        at, took = self._last_scan or (None, None)
        agent = {
            "pid": os.getpid(),
            "port": self._server.port,
            "started_at": self._started_at,
            "state": self._state,
            "problem": self._problem(),
            "certificate_problem": self._server.certificate_problem(),
            "waiting": len(self._settling),
            "in_flight": self._pipeline.in_flight,
            "embedded": self._pipeline.tally.embedded,
            "last_scan_at": at,
            "last_scan_seconds": took,
            "unreadable": [path_to_text(folder) for folder in self._last_report.unreadable],
            "others": dict(self._last_report.others.most_common()),
            "reserved": self._last_report.reserved,
            "slow_patterns": self._pipeline.slow_patterns,
            "jobs": self._jobs.status(),
        }
        return {"watch": watch, "agent": agent}

    def _write_record(self) -> None:
        values = {"pid": os.getpid(), "port": self._server.port, "started_at": self._started_at}
        try:
            replace_file(self._lab.agent_file, jsonlib.dumps(values) + "\n")
        except OSError as error:
            raise LabError(
                f"{self._lab.agent_file} cannot be written: {error.strerror}. Make room on its disk where it is full; "
                "else give the agent's user access."
            ) from None

    def _progress(self) -> str:
        tally = self._pipeline.tally
        done = sum(tally.outcomes.values())
        return f"{done} files taken in, {tally.embedded} cells embedded, {len(self._unchanged)} unchanged"

    def _summary(self, seconds: float, *, interrupted: bool, without_outcome: int = 0) -> Summary:
        tally = self._pipeline.tally
        # by file: one can have had several outcomes, and have been met unchanged at the scans before or after them
        with self._noting:
            taken = {path: state.outcome for path, state in self._known.items() if isinstance(state, _Taken)}
            tried_again = self._tried_again.copy()
        outcomes = Counter(map(str, taken.values()))
        unchanged = len({*self._unchanged, *map(hash, tried_again)}.difference(map(hash, taken)))
        return Summary(
            found=sum(outcomes.values()) + unchanged,
            stored=outcomes["stored"],
            duplicate=outcomes["duplicate"],
            possible_duplicate=outcomes["possible_duplicate"],
            rejected=outcomes["rejected"],
            unchanged=unchanged,
            embedded=tally.embedded,
            seconds=round(seconds, 3),
            cells_per_second=round(tally.embedded / seconds, 2) if seconds > 0 else 0.0,
            ignored=self._last_report.ignored,
            others=dict(self._last_report.others.most_common()),
            reserved=self._last_report.reserved,
            vanished=self._settling.vanished,
            unreachable=[
                path_to_text(folder) for folder in (*self._last_report.unreachable, *self._last_report.unreadable)
            ],
            interrupted=interrupted,
            without_outcome=without_outcome,
        )


def _no_progress(seconds: float, thread: str) -> str:
    work = {
        "labref-scan": "the watched folders do not answer",
        "labref-embed": "a batch of cells is still in the networks",
        "labref-store": "a batch of files is still being stored",
    }.get(thread, "a file is still being read")
    return f"no progress for {seconds:.0f} s: {work}"


@contextlib.contextmanager
def _progress(console: Console | None, describe: Callable[[], str]) -> Iterator[None]:
    """Shows `describe()` on a terminal, some times a second, until the block ends; elsewhere nothing."""
    if console is None or not console.is_terminal:
        yield
        return
    ended = threading.Event()
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=None)

        def update() -> None:
            while not ended.wait(0.2):
                progress.update(task, description=describe())

        thread = threading.Thread(target=update, name="labref-progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
