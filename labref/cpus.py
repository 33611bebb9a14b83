"""How many CPUs this process may use, which can be fewer than the computer has."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Final

__all__ = ["usable_cpus"]

_CGROUPS: Final = Path("/sys/fs/cgroup")
_OWN: Final = Path("/proc/self/cgroup")


def usable_cpus(*, own: Path = _OWN, cgroups: Path = _CGROUPS) -> int:
    """CPUs that this process may use, at least 1: those it is bound to (`taskset`, `docker --cpuset-cpus`, a Windows
    affinity), or fewer where its control group has a smaller quota (`docker --cpus`, systemd's `CPUQuota=`).

    own : the file that names the process' control groups.  cgroups : where these are.  A quota of one and a half CPUs
    counts as two.
    """
    if hasattr(os, "process_cpu_count"):  # Python 3.13; knows Windows' affinity too
        allowed = os.process_cpu_count() or 1
    elif hasattr(os, "sched_getaffinity"):
        allowed = len(os.sched_getaffinity(0))
    else:
        allowed = os.cpu_count() or 1
    quotas = [math.ceil(quota) for quota in _quotas(own, cgroups)]
    return max(1, min([allowed, *quotas]))


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
