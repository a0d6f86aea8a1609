"""All processes that a server consists of, Ray's included, and the memory that they take together."""

import os
import re
import threading
import time
from pathlib import Path
from types import TracebackType

import psutil

from benchmarks.spread import Spread

SAMPLE_EVERY_S = 0.2
SHARED_MEMORY = "/dev/shm/"


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

    def memory(self) -> int:
        """Bytes that the processes take together, with what they share counted once.

        Private memory and files by proportional set size. Shared memory by what is allocated in /dev/shm, since
        objects there take memory also while no process has them mapped.
        """
        private, mapped = 0, 0
        files: dict[tuple[int, int], int] = {}
        for process in self.processes():
            sizes = _proportional_sizes(process.pid)
            mapped += sizes.get("Pss_Shmem", 0)
            private += sizes.get("Pss", 0) - sizes.get("Pss_Shmem", 0)
            files.update(_open_shared_memory(process.pid))
        return private + max(mapped, sum(files.values()))


def _proportional_sizes(pid: int) -> dict[str, int]:
    """The sums of a process's mappings in bytes; empty for one that has just ended."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return {}
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


class MemorySampler:
    """Samples a tree's memory in a thread while its context lasts."""

    def __init__(self, tree: ProcessTree) -> None:
        self._tree = tree
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="memory-sampler", daemon=True)
        self.samples: list[int] = []

    def __enter__(self) -> "MemorySampler":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._thread.join()

    @property
    def peak(self) -> int:
        """The most bytes that were seen."""
        return max(self.samples)

    def _sample(self) -> None:
        while True:
            self.samples.append(self._tree.memory())
            if self._stopped.wait(SAMPLE_EVERY_S):
                return


def idle_memory(tree: ProcessTree, seconds: float = 3.0) -> Spread:
    """What a server takes while nobody asks it anything."""
    with MemorySampler(tree) as sampler:
        time.sleep(seconds)
    return Spread.of(sampler.samples)
