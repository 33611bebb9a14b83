"""Memory that was freed goes back to the system."""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from typing import Any

__all__ = ["give_back"]


def give_back() -> None:
    """Give the system what this process freed and its C library still holds.

    glibc keeps freed memory for what comes next, and what lives between keeps it from ever going back: an agent that
    opened and closed the networks of four bundles held 90 MB more than after the first. Takes some milliseconds. Other
    C libraries are left alone.
    """
    trim = _trim()
    if trim is not None:
        trim(0)


@cache
def _trim() -> Any:
    """glibc's malloc_trim(3); None where there is another C library."""
    if sys.platform != "linux":
        return None
    return getattr(ctypes.CDLL(None), "malloc_trim", None)
