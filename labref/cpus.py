"""How many CPUs this process may use, which can be fewer than the computer has, and keeping it to fewer."""

from __future__ import annotations

import contextlib
import math
import os
from pathlib import Path
from typing import Final

import psutil

__all__ = ["keep_to", "usable_cpus"]

_CGROUPS: Final = Path("/sys/fs/cgroup")
_OWN: Final = Path("/proc/self/cgroup")
_kept_to: int | None = None  # by `keep_to`, also where the system binds no process


def usable_cpus(*, own: Path = _OWN, cgroups: Path = _CGROUPS) -> int:
    """CPUs that this process may use, at least 1: those it is bound to (`taskset`, `docker --cpuset-cpus`, a Windows
    affinity), or fewer where its control group has a smaller quota (`docker --cpus`, systemd's `CPUQuota=`).

    own : the file that names the process' control groups.  cgroups : where these are.  A quota of one and a half CPUs
    counts as two.
    """
    if hasattr(os, "process_cpu_count"):  # Python 3.13; an environment variable has a say in it
        allowed = os.process_cpu_count() or 1
    else:
        allowed = len(_bound_to()) or os.cpu_count() or 1
    quotas = [math.ceil(quota) for quota in _quotas(own, cgroups)]
    most = [] if _kept_to is None else [_kept_to]
    return max(1, min([allowed, *quotas, *most]))


def keep_to(count: int) -> None:
    """Keep this process, its threads and the processes that it starts from now on to `count` CPUs: the last of those
    that it may use, for other programs are often bound to the first. Call it before there are threads.

    macOS binds no process: there `usable_cpus` alone, and so the number of threads, is kept to it.
    """
    global _kept_to
    _kept_to = count
    allowed = _bound_to()
    if count < len(allowed):
        with contextlib.suppress(psutil.Error, OSError, ValueError):  # a sandbox may forbid it
            psutil.Process().cpu_affinity(allowed[-count:])


def _bound_to() -> list[int]:
    """The CPUs that this process is bound to; empty where the system binds none."""
    if not hasattr(psutil.Process, "cpu_affinity"):
        return []
    try:
        return sorted(psutil.Process().cpu_affinity())
    except (psutil.Error, OSError):
        return []


def _quotas(own: Path, cgroups: Path) -> list[float]:
    """The quotas, in CPUs, of the process' control group and of all above it."""
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):  # no Linux
        return []
    found: list[float] = []
    names: tuple[str, ...]
    for line in lines:
        _, controllers, path = [*line.split(":", 2), "", "", ""][:3]
        if controllers == "":
            top, names = cgroups, ("cpu.max",)
        elif "cpu" in controllers.split(","):
            top = next((at for name in (controllers, "cpu") if (at := cgroups / name).is_dir()), cgroups)
            names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        else:
            continue
        # in a container the path is often one of the computer outside, and only the top is to be seen
        below = Path(path.lstrip("/"))
        for folder in (top / below, *(top / above for above in below.parents), top):
            quota = _quota(folder, names)
            if quota is not None:
                found.append(quota)
    return found


def _quota(folder: Path, names: tuple[str, ...]) -> float | None:
    try:
        words = [word for name in names for word in (folder / name).read_text(encoding="ascii").split()]
        quota, period = float(words[0]), float(words[1])
    except (OSError, ValueError, IndexError):  # no such file, or "max"
        return None
    return quota / period if quota > 0 and period > 0 else None
