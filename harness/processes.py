"""All processes that a server consists of, Ray's included, and the memory that they take together."""

import os
import re
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import psutil

SAMPLE_EVERY_S = 0.2
SHARED_MEMORY = "/dev/shm/"
SHARED = "shared memory"
MEGABYTE = 1e6
WORTH_NAMING_MB = 5


class ProcessTree:
    """A process and all that descend from it. Ray's daemons and workers descend from the launcher."""

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)

    def processes(self) -> list[psutil.Process]:
        """Those alive now, the root first."""
        try:
            return [self._root, *self._root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def memory(self) -> dict[str, int]:
        """Bytes that each role takes; their sum is what the processes take together, what they share counted once.

        Private memory and files by proportional set size. Shared memory by what is allocated in /dev/shm, since
        objects there take memory also while no process has them mapped.
        """
        roles: Counter[str] = Counter()
        mapped = 0
        files: dict[tuple[int, int], int] = {}
        for process in self.processes():
            sizes = _proportional_sizes(process.pid)
            mapped += sizes.get("Pss_Shmem", 0)
            roles[_role(process)] += sizes.get("Pss", 0) - sizes.get("Pss_Shmem", 0)
            files.update(_open_shared_memory(process.pid))
        roles[SHARED] = max(mapped, sum(files.values()))
        return dict(roles)


def measurable() -> bool:
    """Whether the kernel reports proportional set sizes. Some sandboxes' kernels leave them out, or say zero."""
    return bool(_proportional_sizes(os.getpid()).get("Pss"))


def _role(process: psutil.Process) -> str:
    """What a process is in the service: the deployment of a replica, or the program that it runs."""
    try:
        # Ray's workers say in their title what they are, and a while also what they do: `ray::ProxyActor.method`.
        worker = re.match(r"ray::(?:ServeReplica:[^:]*:)?(\w+)", " ".join(process.cmdline()))
        return worker[1] if worker else process.name()
    except psutil.Error:
        return "ended"


def _proportional_sizes(pid: int) -> dict[str, int]:
    """Bytes of a process's mappings in all (`Pss`) and of shared memory (`Pss_Shmem`); empty for one that has ended."""
    # Some sandboxes lack the quick roll-up. Mapping by mapping, only the name tells which ones are shared memory.
    if rollup := _read(pid, "smaps_rollup"):
        return _fields(rollup)
    sizes: Counter[str] = Counter()
    for mapping in re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", _read(pid, "smaps"), flags=re.MULTILINE):
        size = _fields(mapping).get("Pss", 0)
        sizes["Pss"] += size
        sizes["Pss_Shmem"] += size if SHARED_MEMORY in mapping.partition("\n")[0] else 0
    return dict(sizes)


def _read(pid: int, name: str) -> str:
    """A file of a process's folder in /proc; nothing if it is not there, or the process has just ended."""
    try:
        return Path(f"/proc/{pid}/{name}").read_text()
    except OSError:
        return ""


def _fields(text: str) -> dict[str, int]:
    return {name: int(value) * 1024 for name, value in re.findall(r"^(Pss\w*):\s+(\d+) kB", text, re.MULTILINE)}


def _open_shared_memory(pid: int) -> dict[tuple[int, int], int]:
    """Allocated bytes of each file in /dev/shm that a process holds open, deleted ones (Ray's store) included."""
    found = {}
    try:
        for entry in os.scandir(f"/proc/{pid}/fd"):
            if os.readlink(entry.path).startswith(SHARED_MEMORY):
                status = entry.stat()
                found[status.st_dev, status.st_ino] = status.st_blocks * 512
    except OSError:
        # The process, or the file, has just been closed.
        return found
    return found


@dataclass(frozen=True)
class Growth:
    """How much more memory a server takes than it did when idle, in MB.

    Attributes:
        by_role: see `ProcessTree.memory`.
    """

    by_role: dict[str, float]

    @classmethod
    def between(cls, idle: dict[str, int], peak: dict[str, int]) -> "Growth":
        """From one sample to another."""
        return cls({role: (peak.get(role, 0) - idle.get(role, 0)) / MEGABYTE for role in idle | peak})

    @property
    def total(self) -> float:
        """Of all roles together."""
        return sum(self.by_role.values())

    def __str__(self) -> str:
        largest = sorted(self.by_role.items(), key=lambda item: -abs(item[1]))
        named = [f"{role} {value:.0f}" for role, value in largest if abs(value) >= WORTH_NAMING_MB]
        return ", ".join(named) or "nothing worth naming"


class MemorySampler:
    """Samples a tree's memory in a thread while its context lasts."""

    def __init__(self, tree: ProcessTree) -> None:
        self._tree = tree
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="memory-sampler", daemon=True)
        self.samples: list[dict[str, int]] = []

    def __enter__(self) -> "MemorySampler":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._thread.join()

    @property
    def peak(self) -> dict[str, int]:
        """The sample with the most bytes in all."""
        return max(self.samples, key=lambda sample: sum(sample.values()))

    def _sample(self) -> None:
        while True:
            self.samples.append(self._tree.memory())
            if self._stopped.wait(SAMPLE_EVERY_S):
                return


def idle_memory(tree: ProcessTree, seconds: float = 3.0) -> dict[str, int]:
    """What a server takes while nobody asks it anything: the sample with the median sum.

    Raises:
        RuntimeError: the kernel does not say what processes take.
    """
    if not measurable():
        raise RuntimeError("This kernel reports no proportional set size (Pss in /proc/PID/smaps): memory is unknown.")
    with MemorySampler(tree) as sampler:
        time.sleep(seconds)
    ordered = sorted(sampler.samples, key=lambda sample: sum(sample.values()))
    return ordered[len(ordered) // 2]
