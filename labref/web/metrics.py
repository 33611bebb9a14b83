"""Numbers for the lab's monitoring, in Prometheus' text format. Counts and seconds only: no path, slide or label."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest

__all__ = ["Metrics"]

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """One agent's metrics, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.info = Info("labref", "Version, bundle and execution provider.", registry=registry)
        self.files = Counter("labref_files", "Files given an outcome.", ["outcome"], registry=registry)
        self.embedded = Counter("labref_cells_embedded", "Cells that went through the networks.", registry=registry)
        self.embedding = Histogram(
            "labref_embedding_seconds", "Seconds a batch spends in the networks.", buckets=_SECONDS, registry=registry
        )
        self.recording = Histogram(
            "labref_recording_seconds", "Seconds a batch takes to be stored.", buckets=_SECONDS, registry=registry
        )
        self.queries = Histogram(
            "labref_query_seconds", "Seconds to answer a query.", ["result"], buckets=_SECONDS, registry=registry
        )
        self.scan_seconds = Gauge("labref_last_scan_seconds", "Seconds the last full scan took.", registry=registry)
        self.scan_at = Gauge("labref_last_scan_timestamp_seconds", "When the last full scan ended.", registry=registry)
        self.waiting = Gauge("labref_files_waiting", "Files found that are still being written.", registry=registry)
        self.in_flight = Gauge("labref_files_in_flight", "Files being read, embedded or stored.", registry=registry)
        self.blocked = Gauge(
            "labref_storage_blocked", "1 while the lab's disk or store takes nothing.", registry=registry
        )
        self.stalled = Gauge(
            "labref_stalled_seconds",
            "Seconds that the longest piece of work takes so far: a scan's step, reading a file, a batch in the networks "
            "or in the store.",
            registry=registry,
        )
        self.unreachable = Gauge("labref_folders_unreachable", "Watched folders that are not there.", registry=registry)

    def text(self) -> bytes:
        """All metrics as Prometheus' text."""
        return generate_latest(self._registry)
