"""What this process may use of its machine: cores and memory, less what its cgroups (a container's limits) withhold.

Limits hold for a cgroup and all below it, so the tightest on the way from the process's own up to the mounted top
counts. cgroups of both versions are read, also side by side. Limits of those above a container's own cannot be seen.
"""

import math
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import psutil

ROOT = Path("/")

# proc(5), mountinfo: … root, mount point, options, optional fields, "-", type, source, options of the superblock.
CGROUP_MOUNT = re.compile(r"\S+ \S+ \S+ (\S+) (\S+) .*? - (cgroup2?) \S+ (\S+)")
OCTAL_ESCAPE = re.compile(r"\\(\d{3})")


def usable_cores(root: Path = ROOT) -> int:
    """Returns how many threads of this process can be at work at a time, at least 1.

    These are the cores that it may run on (its affinity, which a cpuset also sets), or fewer by the CPU quota of its
    cgroups, rounded up: a quota of 1.5 keeps two threads busy three quarters of the time.

    Args:
        root: where `proc` and the mount points of cgroups are found.
    """
    # Not every system has affinities.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota(root)
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def cpu_quota(root: Path = ROOT) -> float | None:
    """Returns the CPU seconds a second that the tightest of this process's cgroups allows; None without a quota.

    Args:
        root: see `usable_cores`.
    """
    quotas = [_quota(cgroup) for cgroup in _cgroups("cpu", root)]
    return min((quota for quota in quotas if quota is not None), default=None)


def memory_limit(root: Path = ROOT) -> int:
    """Returns the bytes that this process and those beside it may hold: the machine's, or its tightest cgroup's limit.

    Args:
        root: see `usable_cores`.
    """
    limits = [_limit(cgroup) for cgroup in _cgroups("memory", root)]
    return min([psutil.virtual_memory().total, *(limit for limit in limits if limit is not None)])


def available_memory(root: Path = ROOT) -> int:
    """Returns the bytes that can be taken now: what is left of the machine, or of the cgroup with the least left.

    Args:
        root: see `usable_cores`.
    """
    left = [psutil.virtual_memory().available]
    for cgroup in _cgroups("memory", root):
        limit = _limit(cgroup)
        if limit is not None:
            left.append(max(0, limit - _working_set(cgroup)))
    return min(left)


# ---- one cgroup


def _quota(cgroup: Path) -> float | None:
    # Version 2 has both numbers in one file, version 1 in two.
    words = _words(cgroup / "cpu.max") or [*_words(cgroup / "cpu.cfs_quota_us"), *_words(cgroup / "cpu.cfs_period_us")]
    quota, period = [*map(_positive, words), None, None][:2]
    return None if quota is None or period is None else quota / period


def _limit(cgroup: Path) -> int | None:
    # Beyond memory.high nothing is killed, but every allocation waits until pages are written or dropped.
    files = ("memory.max", "memory.high", "memory.limit_in_bytes")
    limits = [_positive(word) for file in files for word in _words(cgroup / file)]
    return min((limit for limit in limits if limit is not None), default=None)


def _working_set(cgroup: Path) -> int:
    """Returns the bytes that are in use, as kubelet counts them.

    That is without the pages of files that have not been used lately. They count as the cgroup's, but are dropped when
    memory is needed.
    """
    words = _words(cgroup / "memory.current") or _words(cgroup / "memory.usage_in_bytes")
    used = next(map(_positive, words), None) or 0
    stat = _words(cgroup / "memory.stat")
    values = dict(zip(stat[::2], stat[1::2], strict=False))
    # In version 1 only the names with `total_` count the cgroups below, as the usage does.
    reclaimable = _positive(values.get("total_inactive_file", values.get("inactive_file", "0")))
    return max(0, used - (reclaimable or 0))


# ---- where they are


def _cgroups(controller: str, root: Path) -> Iterator[Path]:
    """Yields the folders of the process's cgroup and of those above it, wherever a controller may be."""
    paths = _own_paths(root)
    for line in _text(root / "proc/self/mountinfo").splitlines():
        if (mount := CGROUP_MOUNT.match(line)) is None:
            continue
        mounted, point, version, options = mount.groups()
        if version == "cgroup" and controller not in options.split(","):
            continue
        if (path := paths.get("" if version == "cgroup2" else controller)) is not None:
            top = root / _unescaped(point).lstrip("/")
            own = _below(path, PurePosixPath(_unescaped(mounted)))
            yield from (top / folder for folder in (own, *own.parents))


def _own_paths(root: Path) -> dict[str, PurePosixPath]:
    """Returns the process's cgroup by controller; that of version 2 under ""."""
    paths = {}
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        paths.update(dict.fromkeys(controllers.split(","), PurePosixPath(path)))
    return paths


def _below(path: PurePosixPath, mounted: PurePosixPath) -> PurePosixPath:
    """Returns where a cgroup is below a mount point that shows the cgroup `mounted` as its top.

    A path that is not below it is of another namespace than the mount: the top is then the closest that can be seen.
    """
    if ".." in path.parts or not path.is_relative_to(mounted):
        return PurePosixPath()
    return path.relative_to(mounted)


def _unescaped(path: str) -> str:
    return OCTAL_ESCAPE.sub(lambda escape: chr(int(escape[1], 8)), path)


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _words(path: Path) -> list[str]:
    return _text(path).split()


def _positive(word: str) -> int | None:
    """Returns a number; None for what means that there is no limit: `max`, -1."""
    try:
        number = int(word)
    except ValueError:
        return None
    return number if number > 0 else None
