"""File events of the export folders: hints that a file should be looked at, or that a folder should be scanned
sooner."""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Final, Literal

from structlog.typing import FilteringBoundLogger
from watchdog import events
from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver, ObservedWatch

from labref.export.roots import is_network_folder

__all__ = ["Watcher"]

_INOTIFY: Final = re.compile(r"^inotify wd:\S+ ino:([0-9a-f]+) ", re.MULTILINE)
_MOST_HINTS: Final = 20_000
_EVENTS: Final = [
    getattr(events, name)
    for name in (
        "FileCreatedEvent",
        "FileModifiedEvent",
        "FileClosedEvent",
        "FileMovedEvent",
        "FileAttribEvent",
        "DirCreatedEvent",
        "DirMovedEvent",
    )
    if hasattr(events, name)
]


class Watcher:
    """Watches the folders `roots`; for one thread, but that hints come in from others.

    polling : True watches nothing (whoever owns this scans often instead), False uses events everywhere, "auto" uses
    events but on network shares. wake : called when there is something to look at.
    """

    def __init__(
        self,
        roots: Sequence[Path],
        *,
        extensions: Iterable[str],
        polling: bool | Literal["auto"],
        wake: threading.Event,
        log: FilteringBoundLogger,
    ) -> None:
        self._roots = list(roots)
        self._endings = tuple(extensions)
        self._polling = polling
        self._wake = wake
        self._log = log
        self._observer: BaseObserver | None = None
        self._watches: dict[Path, tuple[tuple[int, int], ObservedWatch | None]] = {}
        self._missing: set[Path] = set()
        self._proven: set[Path] = set()  # folders that the system lists as watched, where it says so at all
        self._incomplete: set[Path] = set()
        self._silent: dict[Path, Set[int]] = {}  # inode numbers of folders that the last scan found unwatched
        self._lock = threading.Lock()
        self._hints: dict[str, str] = {}
        self._scan_wanted = False

    def ensure(self) -> bool:
        """Watch every folder that is there and not yet watched, let go of those that went; True where one came (scan
        it)."""
        came = False
        for root in self._roots:
            identity = _identity(root)
            known = self._watches.get(root)
            if known is not None and (known[0] != identity or not self._is_alive(root, known[1])):
                self._unwatch(root, known[1])
                known = None
            if identity is None and root not in self._missing:
                self._log.warning("a watched folder is not there", folder=self._number(root))
                self._missing.add(root)
            if known is None and identity is not None:
                self._missing.discard(root)
                self._watches[root] = (identity, self._watch(root))
                came = True
        return came

    def must_poll(self) -> bool:
        """Whether some folder that is there brings no events."""
        return "polling" in self.methods().values()

    def methods(self) -> dict[Path, str]:
        """For each folder: "events", "polling", or "missing"."""
        found = dict.fromkeys(self._roots, "missing")
        for root, (_, watch) in self._watches.items():
            found[root] = "polling" if watch is None or root in self._incomplete else "events"
        return found

    def compare(self, walked: Mapping[str, Set[int]]) -> None:
        """Poll the watched folders of which the system does not watch every folder, as when its limit was reached.

        walked : inode numbers of the folders that a scan found in each watched folder, without links.
        """
        watched = _inotify_inodes()
        silent = {root: walked.get(str(root), frozenset()) - watched for root in self._proven}
        # a folder that has just come is watched a moment later; one that was silent at the scan before stays so
        incomplete = {root for root, inodes in silent.items() if inodes & self._silent.get(root, frozenset())}
        self._silent = silent
        for root in incomplete - self._incomplete:
            self._log.warning("some folders bring no file events, polling instead", folder=self._number(root))
        self._incomplete = incomplete

    def hints(self) -> tuple[dict[str, str], bool]:
        """What came since the last call: files to look at (path: watched folder), and whether a scan is wanted."""
        with self._lock:
            taken, self._hints = self._hints, {}
            wanted, self._scan_wanted = self._scan_wanted, False
        return taken, wanted

    def close(self) -> None:
        """Stop watching."""
        if self._observer is not None:
            self._observer.stop()
            self._observer.join()
            self._observer = None
        self._watches.clear()

    def _number(self, root: Path) -> int:
        return self._roots.index(root)

    def _watch(self, root: Path) -> ObservedWatch | None:
        if self._polling is True or (self._polling == "auto" and is_network_folder(root)):
            self._log.info("watching", folder=self._number(root), how="polling")
            return None
        try:
            if self._observer is None:
                self._observer = Observer()
                self._observer.daemon = True
                self._observer.start()
            watch = self._observer.schedule(_Handler(self, str(root)), str(root), recursive=True, event_filter=_EVENTS)
        except Exception as error:  # inotify's limits, a share without events: each system has its own kind
            self._log.warning(
                "no file events here, polling instead", folder=self._number(root), error=type(error).__name__
            )
            return None
        with contextlib.suppress(OSError):
            if os.stat(root).st_ino in _inotify_inodes():
                self._proven.add(root)
        self._log.info("watching", folder=self._number(root), how="events")
        return watch

    def _is_alive(self, root: Path, watch: ObservedWatch | None) -> bool:
        """Whether a watch still brings events: a folder deleted and made again can have the same number, and a share
        that was mounted again has."""
        if watch is None:
            return True
        emitting = self._observer is not None and any(
            emitter.watch == watch and emitter.is_alive() for emitter in self._observer.emitters
        )
        if not emitting or root not in self._proven:
            return emitting
        try:
            return os.stat(root).st_ino in _inotify_inodes()
        except OSError:
            return False

    def _unwatch(self, root: Path, watch: ObservedWatch | None) -> None:
        del self._watches[root]
        self._proven.discard(root)
        self._incomplete.discard(root)
        if watch is not None and self._observer is not None:
            with contextlib.suppress(Exception):  # the system let go of it already
                self._observer.unschedule(watch)

    def _hint(self, path: str, root: str) -> None:
        name = Path(path).name
        if name.startswith(".") or not name.lower().endswith(self._endings):
            return
        with self._lock:
            if len(self._hints) < _MOST_HINTS:
                self._hints[path] = root
            else:
                self._scan_wanted = True
        self._wake.set()

    def want_scan(self) -> None:
        """Say that a scan is wanted."""
        with self._lock:
            self._scan_wanted = True
        self._wake.set()


class _Handler(events.FileSystemEventHandler):
    def __init__(self, watcher: Watcher, root: str) -> None:
        self._watcher = watcher
        self._root = root

    def on_any_event(self, event: events.FileSystemEvent) -> None:
        # what lies in a new or moved folder may have come before its watch
        if event.is_directory:
            self._watcher.want_scan()
            return
        for path in (event.src_path, event.dest_path):
            if path:
                self._watcher._hint(os.fsdecode(path), self._root)


def _inotify_inodes() -> frozenset[int]:
    """Inode numbers of what this process watches by inotify, as Linux lists it; empty elsewhere."""
    found: set[int] = set()
    with contextlib.suppress(OSError):
        for number in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):  # closed meanwhile
                if os.readlink(f"/proc/self/fd/{number}") == "anon_inode:inotify":  # noqa: PTH115
                    listed = Path(f"/proc/self/fdinfo/{number}").read_text(encoding="ascii")
                    found.update(int(inode, 16) for inode in _INOTIFY.findall(listed))
    return frozenset(found)


def _identity(root: Path) -> tuple[int, int] | None:
    try:
        status = os.stat(root)
    except OSError:
        return None
    return (status.st_dev, status.st_ino) if root.is_dir() else None
