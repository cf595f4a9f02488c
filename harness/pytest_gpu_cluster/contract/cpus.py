"""The CPUs that this process may use, which in a container are fewer than the machine has."""

from __future__ import annotations

import contextlib
import math
import os
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")


def usable_cpus(cgroups: Path = CGROUPS) -> int:
    """Return their number, at least 1: by the affinity, and by the quota of the cgroup.

    A cgroup's own files are found where a container has them, at the top of its mount.
    """
    allowed = len(os.sched_getaffinity(0))
    return max(1, math.ceil(min(allowed, _quota(cgroups))))


def _quota(cgroups: Path) -> float:
    """Return the CPUs of the cgroup; infinity where there is no limit, or none is shown."""
    with contextlib.suppress(OSError, ValueError):  # version 2: "max 100000", "150000 100000"
        limit, period = (cgroups / "cpu.max").read_text().split()
        return math.inf if limit == "max" else int(limit) / int(period)
    with contextlib.suppress(OSError, ValueError):  # version 1: -1 for no limit
        limit_us = int((cgroups / "cpu" / "cpu.cfs_quota_us").read_text())
        period_us = int((cgroups / "cpu" / "cpu.cfs_period_us").read_text())
        return limit_us / period_us if limit_us > 0 else math.inf
    return math.inf
