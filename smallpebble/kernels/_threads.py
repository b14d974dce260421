"""How many threads the kernels use when nobody has said: settings, then what the system grants."""

from __future__ import annotations

import os

MOST = 256  # POOL_MOST_THREADS of csrc/pool.h


def available_cores(root: str = "/sys/fs/cgroup") -> tuple[int, str]:
    """Cores this process may use, and what limits them: its affinity mask or its cgroup's quota."""
    if hasattr(os, "sched_getaffinity"):
        cores, limit = len(os.sched_getaffinity(0)), "the affinity mask"
    else:
        cores, limit = os.cpu_count() or 1, "the number of processors"
    quota = _quota(root)
    if quota is not None and quota < cores:
        return max(1, quota), "the CPU quota of the container"
    return cores, limit


def _quota(root: str) -> int | None:
    """The CPU quota of a cgroup (v2, else v1) in whole cores, rounded up; None without one."""
    try:
        with open(os.path.join(root, "cpu.max")) as file:
            quota, period = file.read().split()
    except (OSError, ValueError):
        try:
            with open(os.path.join(root, "cpu", "cpu.cfs_quota_us")) as file:
                quota = file.read().strip()
            with open(os.path.join(root, "cpu", "cpu.cfs_period_us")) as file:
                period = file.read().strip()
        except (OSError, ValueError):  # not there, or not text
            return None
    try:
        quota, period = int(quota), int(period)
    except ValueError:  # "max"
        return None
    return -(-quota // period) if quota > 0 and period > 0 else None


def default_threads() -> tuple[int, str]:
    """The number of threads to begin with, and where it comes from."""
    ignored = ""
    for name in ("SMALLPEBBLE_NUM_THREADS", "OMP_NUM_THREADS"):
        text = os.environ.get(name, "").split(",")[0].strip()
        if text.isdigit() and int(text) >= 1:
            return min(int(text), MOST), name + ignored
        if text:
            ignored += f" ({name}={text!r} is not a number of threads, and ignored)"
    cores, limit = available_cores()
    return min(cores, MOST), limit + ignored


source = "no compiled kernels"


def start(pool) -> None:
    """Give the pool its number of threads."""
    threads, origin = default_threads()
    use(pool, threads, origin)


def use(pool, threads: int, origin: str) -> None:
    """Let the pool use `threads`, and remember who said so."""
    global source
    pool.set_num_threads(threads, available_cores()[0])
    source = origin
