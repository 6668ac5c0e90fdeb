"""How many processors there are for this process."""

import math
import os
from pathlib import Path


def bound_processors() -> int:
    """The processors that this process is bound to, all of the machine by default."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor_count(root: Path = Path("/")) -> int:
    """Those that it is bound to, but no more than its time, rounded up, that control groups allow, as in containers.

    At least 1; `root` is where the system's folders lie.
    """
    return max(1, min(bound_processors(), math.ceil(min(_quota(root), 1e6))))


def _quota(root: Path) -> float:
    """Seconds of computing in a second, the least that the process's groups and those above them allow."""
    limits = [math.inf]
    try:
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)  # version 2: no controllers
            if controllers and "cpu" not in controllers.split(","):
                continue
            folder = root / "sys/fs/cgroup" / controllers
            limits += [_limit(folder / group.relative_to("/")) for group in (Path(path), *Path(path).parents)]
    except (OSError, ValueError):  # not Linux, or written otherwise
        pass
    return min(limits)


def _limit(group: Path) -> float:
    files = [group / name for name in ("cpu.max", "cpu.cfs_quota_us", "cpu.cfs_period_us")]  # version 2; version 1
    quota, period = " ".join(file.read_text() for file in files if file.is_file()).split() or ("max", "1")
    return math.inf if quota in ("max", "-1") else int(quota) / int(period)
