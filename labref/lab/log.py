"""The agent's log: JSON lines in LAB/logs/labref.log, rotated. No path, slide or folder name of an export is ever
logged."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from logging.handlers import RotatingFileHandler
from typing import Any, cast

import structlog
from structlog.typing import FilteringBoundLogger

from labref.lab import Lab

__all__ = ["Log", "open_log"]

Log = FilteringBoundLogger

_OLD_FILES = 5


@contextlib.contextmanager
def open_log(lab: Lab) -> Iterator[Log]:
    """A logger that writes to the lab's log until the block ends; every line holds `event`, `level` and `at` (UTC)."""
    lab.log_file.parent.mkdir(parents=True, exist_ok=True)
    handler = RotatingFileHandler(
        lab.log_file,
        maxBytes=int(lab.config.agent.log_megabytes * 1e6),
        backupCount=_OLD_FILES,
        encoding="utf-8",
        delay=True,
    )
    handler.handleError = lambda record: None  # type: ignore[method-assign]  # a full disk must not end the agent
    # a logger of its own, not a named one: labref as a library changes nobody's logging
    target = logging.Logger("labref.agent", logging.INFO)
    target.addHandler(handler)
    log: Any = structlog.wrap_logger(
        target,
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
            structlog.processors.JSONRenderer(sort_keys=False),
        ],
        cache_logger_on_first_use=False,
    )
    try:
        yield cast(Log, log)
    finally:
        with contextlib.suppress(OSError):  # on a full disk; what the agent itself says of that must get through
            handler.close()
