"""How many threads compute: no more than there are processors for, and than can be started.

A process may use fewer processors than the machine has: those of its affinity mask, and as much of them as the quotas
of its control groups allow (`cpu.max` in version 2, `cpu.cfs_quota_us` in version 1), as in a container. With more
threads than that, all wait for the one that has to pause.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

# Threads besides those that compute: progress bars, and one to spare.
_OTHERS = 2


def processors(proc: Path = Path("/proc/self")) -> int:
    """The processors that this process may use, at least one; a quota of half a processor more counts as one more.

    Args:
        proc: directory with the files `cgroup` and `mountinfo` of a process.
    """
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = min(_quotas(proc), default=math.inf)
    return found if quota >= found else max(1, math.floor(quota + 0.5))


def limit_threads() -> None:
    """Let PyTorch use no more threads than there are processors, and than can be started; the kernels follow it.

    The number in OMP_NUM_THREADS is the user's choice, and is lowered only if so many cannot be started.
    """
    import torch

    present = torch.get_num_threads()
    wanted = present if os.environ.get("OMP_NUM_THREADS") else min(present, processors())
    # PyTorch and the kernels have threads of their own, and neither could do with fewer later.
    startable = _startable(2 * (wanted - 1) + _OTHERS)
    wanted = min(wanted, 1 + max(0, startable - _OTHERS) // 2)
    if wanted < present:
        torch.set_num_threads(wanted)


def _startable(count: int) -> int:
    """How many of so many threads can run beside this one."""
    end, started = threading.Event(), list[threading.Thread]()
    with contextlib.suppress(RuntimeError):
        while len(started) < count:
            thread = threading.Thread(target=end.wait, daemon=True)
            thread.start()
            started.append(thread)
    end.set()
    for thread in started:
        thread.join()
    return len(started)


def _quotas(proc: Path) -> Iterator[float]:
    """The quotas of the process's control groups and of all groups above them, in processors."""
    try:
        groups = (proc / "cgroup").read_text().splitlines()
        mounts = [line.split() for line in (proc / "mountinfo").read_text().splitlines()]
    except OSError:
        return  # not Linux
    for line in groups:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        for fields in mounts:
            kind, options = fields[fields.index("-") + 1], fields[-1].split(",")
            if kind != ("cgroup" if controllers else "cgroup2") or (controllers and "cpu" not in options):
                continue
            # In a container the mount shows only the groups below its root.
            group = PurePosixPath(path)
            group = group.relative_to(fields[3]) if group.is_relative_to(fields[3]) else PurePosixPath()
            for above in (group, *group.parents):
                yield from _quota(Path(fields[4]) / above)


def _quota(group: Path) -> Iterator[float]:
    """The quota of one control group, if it has one."""
    # "max" is no quota.
    with contextlib.suppress(OSError, ValueError):
        quota, period = (group / "cpu.max").read_text().split()
        yield int(quota) / int(period)
    with contextlib.suppress(OSError, ValueError):
        quota, period = ((group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        # -1 is no quota.
        if int(quota) > 0:
            yield int(quota) / int(period)
