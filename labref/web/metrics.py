"""Numbers for the lab's monitoring, in Prometheus' text format. Counts, bytes and seconds only: no path, slide, class
or name of an analyser.

Names follow Prometheus' conventions (prometheus.io/docs/practices/naming): base units at the end of the name, `_total`
for what only grows. `deploy/monitoring` has alert rules and a dashboard for them, and `deploy/README.md` says each.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import psutil
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from labref.words import Outcome, Reason

__all__ = ["HEALTH", "METRICS_TYPE", "LabState", "Metrics"]

HEALTH: Final = ("ok", "storage", "no progress", "folder", "provider", "disk", "backup", "shared")
"""What /health can say."""
METRICS_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
"""Media type of Prometheus' text."""
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


@dataclass(frozen=True)
class LabState:
    """What is so at the moment.

    health : one of HEALTH.  cells : by who gave their label.  doubted, possible_duplicates : cells that wait for a
    decision on their picture, or whether they repeat another.  store_bytes, disk_free_bytes, disk_total_bytes : None
    where the system does not say.  disk_full_seconds : until the disk is full at the lab's own rate; None where there
    is none.  last_backup, map_trained : seconds since 1970; None where there is none.  drifting_past,
    drifting_training : analysers whose optics are off from those of their own past, and from those that the bundle was
    trained on.  gpu_unused : whether the computer has a GPU that was to be used and is not.  shared_waiting,
    shared_lag_seconds : changes that the shared store is still to be told of, and how long the first of them waits;
    None where the lab has none.
    """

    health: str
    cells: Mapping[str, int]
    doubted: int
    possible_duplicates: int
    store_bytes: int | None
    disk_free_bytes: int | None
    disk_total_bytes: int | None
    disk_full_seconds: float | None
    last_backup: float | None
    map_trained: float | None
    drifting_past: int
    drifting_training: int
    gpu_unused: bool
    shared_waiting: int | None = None
    shared_lag_seconds: float | None = None


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
        self.pictures = Counter(
            "labref_pictures_judged",
            "New cells whose picture was judged, by what is wrong with it (see labref.words.Reason); none where nothing is.",
            ["wrong"],
            registry=registry,
        )
        self.asked = Counter(
            "labref_cells_asked",
            "Cells that somebody was shown references of: novel where nothing in the lab resembles the cell.",
            ["novel"],
            registry=registry,
        )
        self.requests = Histogram(
            "labref_http_request_seconds",
            "Seconds to answer a request, by what it asks for and the class of its status.",
            ["kind", "status"],
            buckets=_SECONDS,
            registry=registry,
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
        self.state: Callable[[], LabState | None] = lambda: None
        """Says what is so at the moment; None where the store cannot be asked. It may take a fraction of a second."""
        # what is there from the start is there as zero: an alert on its rate sees the first of it
        for outcome in Outcome:
            self.files.labels(outcome=str(outcome))
        for result in ("answered", "failed"):
            self.queries.labels(result=result)
        for novel in ("true", "false"):
            self.asked.labels(novel=novel)
        for wrong in ("none", *(reason.name.lower() for reason in Reason)):
            self.pictures.labels(wrong=wrong)
        registry.register(_State(lambda: self.state()))
        registry.register(_Process())

    def judged(self, reason: Reason | None) -> None:
        """The picture of a new cell was judged."""
        self.pictures.labels(wrong="none" if reason is None else reason.name.lower()).inc()

    def text(self) -> bytes:
        """All metrics as Prometheus' text."""
        return generate_latest(self._registry)


class _State(Collector):
    """What is so at the moment, asked at each scrape."""

    def __init__(self, state: Callable[[], LabState | None]) -> None:
        self._state = state

    def describe(self) -> list[Metric]:
        return []  # not asked before there is a lab

    def collect(self) -> Iterator[Metric]:
        found = self._state()
        if found is None:
            return
        health = GaugeMetricFamily("labref_health", "What /health says.", labels=["labref_health"])
        for word in HEALTH:
            health.add_metric([word], word == found.health)
        yield health
        cells = GaugeMetricFamily("labref_cells", "Cells stored, by who gave their label.", labels=["label_source"])
        for source, count in found.cells.items():
            cells.add_metric([source], count)
        yield cells
        waiting = GaugeMetricFamily("labref_decisions_waiting", "Cells that wait for a decision.", labels=["queue"])
        waiting.add_metric(["pictures"], found.doubted)
        waiting.add_metric(["duplicates"], found.possible_duplicates)
        yield waiting
        drifting = GaugeMetricFamily(
            "labref_analysers_drifting", "Analysers whose background, focus or stain is off.", labels=["than"]
        )
        drifting.add_metric(["past"], found.drifting_past)
        drifting.add_metric(["training"], found.drifting_training)
        yield drifting
        for name, text, value in (
            ("labref_store_bytes", "Size of the store's file.", found.store_bytes),
            ("labref_disk_free_bytes", "Free on the disk that holds the lab.", found.disk_free_bytes),
            ("labref_disk_bytes", "Size of the disk that holds the lab.", found.disk_total_bytes),
            ("labref_disk_full_seconds", "Until this disk is full, at the lab's own rate.", found.disk_full_seconds),
            ("labref_last_backup_timestamp_seconds", "When the last backup was whole.", found.last_backup),
            ("labref_map_trained_timestamp_seconds", "When the map in use was trained.", found.map_trained),
            ("labref_gpu_unused", "1 where a GPU was to be used and is not.", float(found.gpu_unused)),
            ("labref_shared_waiting", "Changes to be told to the shared store.", found.shared_waiting),
            ("labref_shared_lag_seconds", "How long the first of these waits.", found.shared_lag_seconds),
        ):
            if value is not None:
                yield GaugeMetricFamily(name, text, value=value)


class _Process(Collector):
    """The agent's process and its children, by the names that Prometheus' clients have for a process. That of its
    Python client knows Linux only."""

    def __init__(self) -> None:
        self._process = psutil.Process()

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        own = self._process
        with contextlib.suppress(psutil.Error, OSError):
            spent = own.cpu_times()
            yield CounterMetricFamily("process_cpu_seconds", "CPU seconds spent.", value=spent.user + spent.system)
            yield GaugeMetricFamily("process_resident_memory_bytes", "Resident memory.", value=own.memory_info().rss)
            yield GaugeMetricFamily(
                "process_start_time_seconds", "When the process started, since 1970.", value=own.create_time()
            )
            yield GaugeMetricFamily("process_threads", "Threads.", value=own.num_threads())
            handles = own.num_fds() if hasattr(own, "num_fds") else own.num_handles()
            yield GaugeMetricFamily("process_open_fds", "Open files, or handles on Windows.", value=handles)
        memory, count = 0, 0
        with contextlib.suppress(psutil.Error, OSError):
            for child in own.children(recursive=True):
                with contextlib.suppress(psutil.Error, OSError):  # ended meanwhile
                    memory, count = memory + child.memory_info().rss, count + 1
        yield GaugeMetricFamily("labref_children", "Processes that decode pictures.", value=count)
        yield GaugeMetricFamily("labref_children_resident_memory_bytes", "Their resident memory.", value=memory)
