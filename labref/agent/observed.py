"""What the metrics say of the lab as it is at the moment."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Final

from labref.asking.drift import overview
from labref.asking.room import room
from labref.bundles.bundle import Bundle
from labref.errors import BundleError, LabrefError
from labref.lab.backups import last_backup
from labref.tasks.context import Context
from labref.web.metrics import LabState

__all__ = ["Observed"]

_SECONDS: Final = 30.0  # for which what was found serves: monitoring asks every 15 to 60 s, and a large lab takes 0.1 s


class Observed:
    """Says what is so; what was found serves for half a minute. May be called from any thread."""

    def __init__(self, context: Context, health: Callable[[], str]) -> None:
        """health : says what /health says."""
        self._context, self._health = context, health
        self._looking = threading.Lock()
        self._found: LabState | None = None
        self._until = 0.0

    def __call__(self) -> LabState | None:
        """None where the store cannot be asked."""
        with self._looking:
            if time.monotonic() >= self._until:
                try:
                    self._found = self._look()
                except (LabrefError, OSError):
                    self._found = None
                self._until = time.monotonic() + _SECONDS
            return self._found

    def _look(self) -> LabState:
        lab, store, publisher = self._context.lab, self._context.store, self._context.publisher
        cells: Counter[str] = Counter()
        for (_, source), count in store.label_book.counts().items():
            cells[str(source)] += count
        bundle: Bundle | None
        try:
            embedder = self._context.embedder()
            bundle, unused = embedder.bundle, embedder.fallback is not None
        except BundleError:  # what is stored can be told all the same
            bundle, unused = None, False
        active = None if bundle is None else store.maps.active(bundle.digest)
        off = [{warning["than"] for warning in row["warnings"]} for row in overview(store, bundle)]
        disk, made = room(lab, store, cells.total()), last_backup(lab)
        days = None if disk is None else disk["days_left"]
        return LabState(
            health=self._health(),
            cells=cells,
            doubted=len(store.qualities.doubted()),
            possible_duplicates=len(store.duplicates.possible()),
            store_bytes=lab.store_file.stat().st_size,
            disk_free_bytes=None if disk is None else disk["free"],
            disk_total_bytes=None if disk is None else disk["total"],
            disk_full_seconds=None if days is None else 86_400 * days,
            last_backup=None if made is None else made.moment.timestamp(),
            map_trained=None if active is None else active.version.trained_at.timestamp(),
            drifting_past=sum("past" in than for than in off),
            drifting_training=sum("training" in than for than in off),
            gpu_unused=unused,
            shared_waiting=None if publisher is None else publisher.waiting()[0],
            shared_lag_seconds=None if publisher is None else publisher.lag_seconds(),
        )
