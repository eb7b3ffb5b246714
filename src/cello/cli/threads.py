"""How many threads a command computes with, and how they wait for each other.

Threads of OpenMP, which torch and the native engine use, keep their cores busy for milliseconds while
they wait. Beside another busy process, or under a quota, that takes the core from the very thread
that they wait for. The wait is read from the environment when torch is loaded; hence nothing here
imports torch before that.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Collection, Iterator, MutableMapping
from dataclasses import dataclass
from pathlib import Path

WAITS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")
"""Variables with which a user says how threads wait."""

COUNTS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""Variables with which a user says how many threads there are."""

SHORTEST = 0.2
"""Seconds over which the use of the processors is measured at least: it is told in hundredths."""


def wait_asleep(environment: MutableMapping[str, str] = os.environ) -> bool:
    """Let threads that wait give up their cores, unless the user said how they wait.

    Args:
        environment: the variables that are read when torch is loaded.

    Returns:
        Whether a variable was set.
    """
    if any(name in environment for name in WAITS):
        return False
    environment["OMP_WAIT_POLICY"] = "PASSIVE"
    return True


def begin() -> None:
    """Begin a command: called once, by the process that is the command, and best before torch is loaded.

    Where torch is loaded already, the process starts anew, with the same words.
    """
    global _since
    if wait_asleep() and "torch" in sys.modules and os.name == "posix":
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    _since = Use.now(_affinity())


@dataclass(frozen=True)
class Use:
    """Seconds of processors up to a moment.

    Args:
        clock: the moment.
        all: of all processes, on the processors that this one may use.
        own: of this process, all its threads.
    """

    clock: float
    all: float
    own: float

    @classmethod
    def now(cls, processors: Collection[int], stat: Path = Path("/proc/stat")) -> Use | None:
        """Read them; ``None`` where the system does not tell.

        Args:
            processors: the numbers of those to count.
            stat: the kernel's table.
        """
        try:
            lines = [line.split() for line in stat.read_text().splitlines()]
            names = {f"cpu{number}" for number in processors}
            rows = [[int(n) for n in line[1:]] for line in lines if line and line[0] in names]
        except (OSError, ValueError):
            return None
        # user, nice, system, idle, iowait, irq, softirq, steal; guests are a part of user.
        ticks = sum(sum(row[:3]) + sum(row[5:8]) for row in rows)
        times = os.times()
        return cls(time.monotonic(), ticks / os.sysconf("SC_CLK_TCK"), times.user + times.system)

    def others(self, later: Use) -> float:
        """Return how many processors the others kept busy from here on, on average."""
        used = later.all - self.all - (later.own - self.own)
        return max(0.0, used / (later.clock - self.clock))


_since: Use | None = None


def free(most: int, processes: int = 1) -> int:
    """Return how many threads to compute with.

    That is `most`, or fewer where the processors that this process may use, its control group's
    quota, or what other processes have used since :func:`begin` leave less.

    Args:
        most: what torch would take.
        processes: how many share the machine for the same work.

    Returns:
        At least 1; `most` where the user has said how many, for each process, in the environment.
    """
    if any(name in os.environ for name in COUNTS):
        return most
    processors, others = _affinity(), 0.0
    if _since is not None:
        time.sleep(max(0.0, _since.clock + SHORTEST - time.monotonic()))
        now = Use.now(processors)
        others = 0.0 if now is None else _since.others(now)
    return fitting(most, len(processors), quota(), others, processes)


def fitting(
    most: int, processors: int, quota: float | None, others: float, processes: int = 1
) -> int:
    """Return how many threads fit; see :func:`free`.

    Args:
        most: what torch would take.
        processors: how many this process may use.
        quota: how many the control group may use; ``None`` for all.
        others: how many of them other processes keep busy.
        processes: how many share what is left.
    """
    limit = float(most)
    # A rest of a quota is time that one more thread can use; a rest of a core is shared.
    if quota is not None:
        limit = min(limit, math.ceil(quota))
    limit = min(limit, math.floor(processors - others + 0.5))
    return max(1, int(limit) // processes)


def quota(
    cgroup: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")
) -> float | None:
    """Return how many processors the control groups of this process may use together.

    Args:
        cgroup: the names of the groups; of version 1 and 2.
        root: where the groups' files are.

    Returns:
        The least quota of a group and those above it; ``None`` for no quota.
    """
    try:
        lines = cgroup.read_text().splitlines()
    except OSError:
        return None
    quotas = []
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        # In a container the name may be that of outside: then only the root is there.
        for folder in _upwards(name):
            for mount in ("", "unified") if not controllers else ("cpu", "cpu,cpuacct"):
                quotas.append(_quota(root / mount / folder))
    return min((found for found in quotas if found is not None), default=None)


def _upwards(name: str) -> Iterator[str]:
    path = Path(name.lstrip("/"))
    yield str(path)
    yield from map(str, path.parents)


def _quota(group: Path) -> float | None:
    """The quota in a group's own files, whichever version they are of."""
    try:
        if (group / "cpu.max").exists():
            most, period = (group / "cpu.max").read_text().split()
        else:
            most = (group / "cpu.cfs_quota_us").read_text()
            period = (group / "cpu.cfs_period_us").read_text()
        return int(most) / int(period) if int(most) > 0 else None
    except (OSError, ValueError, ZeroDivisionError):  # no such file; "max"
        return None


def _affinity() -> Collection[int]:
    if sys.platform == "linux":
        return os.sched_getaffinity(0)
    return range(os.cpu_count() or 1)
