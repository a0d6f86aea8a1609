"""What a process may use: files of cgroups of both versions, and a real cgroup where one can be made."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deployments.machine import available_memory, cpu_quota, memory_limit, usable_cores

ROOT = Path(__file__).parents[2]

MEBIBYTE, GIBIBYTE = 2**20, 2**30
CORES, MEMORY, AVAILABLE = 64, 256 * GIBIBYTE, 200 * GIBIBYTE

V1_UNLIMITED = "9223372036854771712"

V2_MOUNT = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot"
V1_MOUNTS = (
    "31 30 0:27 / /sys/fs/cgroup/systemd rw,nosuid - cgroup cgroup rw,xattr,name=systemd\n"
    "32 30 0:28 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid - cgroup cgroup rw,cpu,cpuacct\n"
    "33 30 0:29 / /sys/fs/cgroup/memory rw,nosuid - cgroup cgroup rw,memory"
)


@pytest.fixture(autouse=True)
def large_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of 64 cores and 256 GiB."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(CORES)))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=MEMORY, available=AVAILABLE))


def made(root: Path, own: str, mounts: str, files: Mapping[str, str]) -> Path:
    """A file system with /proc/self/cgroup, /proc/self/mountinfo, and files below /sys/fs/cgroup; returns its root."""
    mountinfo = f"22 1 254:0 / / rw - ext4 /dev/vda rw\n{mounts}\n24 22 0:5 / /dev/shm rw - tmpfs tmpfs rw\n"
    written = {"proc/self/cgroup": f"{own}\n", "proc/self/mountinfo": mountinfo}
    for name, text in {**written, **{f"sys/fs/cgroup/{name}": text for name, text in files.items()}}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def v2_memory(used: int, inactive_file: int, limit: str = "max", folder: str = "") -> dict[str, str]:
    stat = f"anon 1000\nfile 5000\nactive_file 700\ninactive_file {inactive_file}\n"
    files = {"memory.max": f"{limit}\n", "memory.current": f"{used}\n", "memory.stat": stat}
    return {f"{folder}{name}": text for name, text in files.items()}


# ---- cores


@pytest.mark.parametrize(
    ("cpu_max", "quota", "cores"),
    [
        ("max 100000", None, CORES),
        ("200000 100000", 2.0, 2),
        ("150000 100000", 1.5, 2),
        ("20000 100000", 0.2, 1),
        ("100000 25000", 4.0, 4),
        ("12800000 100000", 128.0, CORES),
        ("max", None, CORES),
        ("", None, CORES),
        ("many 100000", None, CORES),
    ],
)
def test_a_quota_of_version_2_is_rounded_up(tmp_path: Path, cpu_max: str, quota: float | None, cores: int) -> None:
    root = made(tmp_path, "0::/", V2_MOUNT, {"cpu.max": f"{cpu_max}\n"})

    assert cpu_quota(root) == quota
    assert usable_cores(root) == cores


@pytest.mark.parametrize(
    ("quota", "period", "cores"), [("-1", "100000", CORES), ("250000", "100000", 3), ("50000", "100000", 1)]
)
def test_a_quota_of_version_1_stands_in_two_files(tmp_path: Path, quota: str, period: str, cores: int) -> None:
    files = {"cpu,cpuacct/box/cpu.cfs_quota_us": quota, "cpu,cpuacct/box/cpu.cfs_period_us": period}

    assert usable_cores(made(tmp_path, "4:cpu,cpuacct:/box\n0::/", V1_MOUNTS, files)) == cores


@pytest.mark.parametrize(
    "quotas",
    [("max 100000", "300000 100000", "800000 100000"), ("300000 100000", "max 100000", "max 100000")],
    ids=["of an ancestor", "its own"],
)
def test_the_tightest_quota_on_the_way_up_counts(tmp_path: Path, quotas: tuple[str, str, str]) -> None:
    folders = ("a.slice/b.scope/", "a.slice/", "")
    files = {f"{folder}cpu.max": quota for folder, quota in zip(folders, quotas, strict=True)}
    files["other.slice/cpu.max"] = "100000 100000"

    assert usable_cores(made(tmp_path, "0::/a.slice/b.scope", V2_MOUNT, files)) == 3


def test_an_affinity_narrower_than_the_quota_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3})

    assert usable_cores(made(tmp_path, "0::/", V2_MOUNT, {"cpu.max": "400000 100000\n"})) == 1


def test_a_machine_without_cgroups_is_used_whole(tmp_path: Path) -> None:
    assert usable_cores(tmp_path) == CORES
    assert memory_limit(tmp_path) == MEMORY
    assert available_memory(tmp_path) == AVAILABLE


# ---- memory


def test_a_limit_is_less_than_the_machines_memory_and_pages_of_files_are_free(tmp_path: Path) -> None:
    files = v2_memory(used=3 * GIBIBYTE, inactive_file=2 * GIBIBYTE, limit=str(4 * GIBIBYTE))
    root = made(tmp_path, "0::/", V2_MOUNT, files)

    assert memory_limit(root) == 4 * GIBIBYTE
    assert available_memory(root) == 3 * GIBIBYTE


def test_the_cgroup_with_least_left_decides_not_the_one_with_the_lowest_limit(tmp_path: Path) -> None:
    inner = v2_memory(used=1 * GIBIBYTE, inactive_file=0, limit=str(4 * GIBIBYTE), folder="pod/box/")
    outer = v2_memory(used=9 * GIBIBYTE, inactive_file=0, limit=str(10 * GIBIBYTE), folder="pod/")
    root = made(tmp_path, "0::/pod/box", V2_MOUNT, {**inner, **outer})

    assert memory_limit(root) == 4 * GIBIBYTE
    assert available_memory(root) == 1 * GIBIBYTE


def test_a_cgroup_that_is_slowed_down_beyond_a_mark_has_that_limit(tmp_path: Path) -> None:
    files = {**v2_memory(used=0, inactive_file=0, limit=str(8 * GIBIBYTE)), "memory.high": f"{6 * GIBIBYTE}\n"}

    assert memory_limit(made(tmp_path, "0::/", V2_MOUNT, files)) == 6 * GIBIBYTE


@pytest.mark.parametrize(("limit", "expected"), [("-1", MEMORY), (V1_UNLIMITED, MEMORY), (str(GIBIBYTE), GIBIBYTE)])
def test_a_limit_of_version_1_may_be_a_number_that_means_none(tmp_path: Path, limit: str, expected: int) -> None:
    files = {
        "memory/box/memory.limit_in_bytes": limit,
        "memory/box/memory.usage_in_bytes": str(600 * MEBIBYTE),
        "memory/box/memory.stat": f"inactive_file 1\ntotal_inactive_file {100 * MEBIBYTE}\n",
        "memory/memory.limit_in_bytes": V1_UNLIMITED,
    }
    root = made(tmp_path, "3:memory:/box\n0::/", V1_MOUNTS, files)

    assert memory_limit(root) == expected
    assert available_memory(root) == (AVAILABLE if expected == MEMORY else GIBIBYTE - 500 * MEBIBYTE)


def test_more_in_use_than_the_limit_leaves_nothing(tmp_path: Path) -> None:
    # A limit may be lowered below what is in use.
    root = made(tmp_path, "0::/", V2_MOUNT, v2_memory(used=GIBIBYTE, inactive_file=0, limit="1000"))

    assert available_memory(root) == 0


def test_a_limit_without_figures_of_use_is_all_free(tmp_path: Path) -> None:
    root = made(tmp_path, "0::/", V2_MOUNT, {"memory.max": f"{GIBIBYTE}\n"})

    assert available_memory(root) == GIBIBYTE


# ---- where they are


def test_controllers_may_be_spread_over_both_versions(tmp_path: Path) -> None:
    unified = "34 30 0:30 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw"
    files = {
        "cpu,cpuacct/box/cpu.cfs_quota_us": "200000\n",
        "cpu,cpuacct/box/cpu.cfs_period_us": "100000\n",
        **v2_memory(used=0, inactive_file=0, limit=str(GIBIBYTE), folder="unified/sub/"),
    }
    root = made(tmp_path, "4:cpu,cpuacct:/box\n1:name=systemd:/\n0::/sub", f"{V1_MOUNTS}\n{unified}", files)

    assert usable_cores(root) == 2
    assert memory_limit(root) == GIBIBYTE


def test_a_container_sees_its_own_cgroup_as_the_top_of_the_mount(tmp_path: Path) -> None:
    mount = "33 30 0:29 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory"
    own = {"memory/memory.limit_in_bytes": f"{2 * GIBIBYTE}", "memory/job/memory.limit_in_bytes": f"{GIBIBYTE}"}

    assert memory_limit(made(tmp_path, "3:memory:/docker/abc", mount, own)) == 2 * GIBIBYTE
    assert memory_limit(made(tmp_path, "3:memory:/docker/abc/job", mount, own)) == GIBIBYTE


@pytest.mark.parametrize("own", ["/../elsewhere", "/docker/xyz", "/gone"])
def test_a_path_of_another_namespace_leaves_what_the_mount_shows(tmp_path: Path, own: str) -> None:
    mount = V2_MOUNT if own == "/gone" else V2_MOUNT.replace(" / /sys", " /docker/abc /sys")
    files = {"cpu.max": "200000 100000", "elsewhere/cpu.max": "100000 100000"}

    assert usable_cores(made(tmp_path, f"0::{own}", mount, files)) == 2


def test_a_mount_point_may_hold_spaces(tmp_path: Path) -> None:
    mount = V2_MOUNT.replace("/sys/fs/cgroup", r"/sys/fs/cgroup/my\040groups")

    assert usable_cores(made(tmp_path, "0::/", mount, {"my groups/cpu.max": "200000 100000"})) == 2


WORDS = st.one_of(
    st.integers(-(2**63), 2**63).map(str), st.sampled_from(["max", "", "-1", "0", V1_UNLIMITED, "1e9"]), st.text()
)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    texts=st.fixed_dictionaries(
        {
            f"{folder}{name}": st.lists(WORDS, max_size=3).map(" ".join)
            for folder in ("", "a/", "a/b/")
            for name in ("cpu.max", "memory.max", "memory.high", "memory.current", "memory.stat")
        }
    )
)
def test_whatever_the_files_hold_the_machine_is_the_most(tmp_path: Path, texts: dict[str, str]) -> None:
    files = {name: text.encode(errors="replace").decode() for name, text in texts.items()}
    root = made(tmp_path, "0::/a/b", V2_MOUNT, files)

    assert 1 <= usable_cores(root) <= CORES
    assert 0 < memory_limit(root) <= MEMORY
    assert 0 <= available_memory(root) <= AVAILABLE


# ---- a real cgroup


REPORT = """
import os, sys
from pathlib import Path
import torch
from deployments.machine import available_memory, cpu_quota, memory_limit
from deployments.model.devices import default_cache_bytes, start_device

# Only now, since imports take long with less than a core.
for folder in sys.argv[2:]:
    Path(folder, "cgroup.procs").write_text(str(os.getpid()))
# Counted, since it is allocated here.
held = bytearray(os.urandom(2**20)) * 400

device = start_device("cpu", 0.0, None)
before = available_memory()
# Fills the cgroup with pages of a file, which the kernel drops when memory is needed.
path = Path(sys.argv[1])
path.write_bytes(bytes(200 * 2**20))
path.read_bytes()
print(torch.get_num_threads(), cpu_quota(), memory_limit(), default_cache_bytes(device), before - available_memory())
"""


class Cgroup:
    """A new cgroup with a CPU quota and a memory limit, of either version, below the mounted top.

    Raises:
        OSError: none can be made here.
    """

    def __init__(self, quota_us: int, memory_bytes: int) -> None:
        top = Path("/sys/fs/cgroup")
        name = f"segment-anything-test-{os.getpid()}"
        unified = (top / "cgroup.controllers").exists()
        self._folders = [top / name] if unified else [top / "cpu" / name, top / "memory" / name]
        limits = {
            "cpu.max" if unified else "cpu.cfs_quota_us": f"{quota_us} 100000" if unified else str(quota_us),
            "memory.max" if unified else "memory.limit_in_bytes": str(memory_bytes),
        }
        try:
            for folder in self._folders:
                folder.mkdir()
            for file, limit in limits.items():
                path = next(folder / file for folder in self._folders if (folder / file).exists())
                path.write_text(limit)
        except (OSError, StopIteration) as error:
            self.remove()
            raise OSError("no cgroup with these controllers can be made") from error

    def run(self, program: str, *arguments: str) -> str:
        """Runs a Python program that joins the cgroup, whose folders follow its arguments; returns what it printed."""
        command = [sys.executable, "-c", program, *arguments, *map(str, self._folders)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=True).stdout

    def remove(self) -> None:
        """Removes it; no process may be left in it."""
        for folder in self._folders:
            if folder.exists():
                folder.rmdir()


@pytest.fixture
def cgroup() -> Iterator[Cgroup]:
    """One that grants 0.8 of a core and 1.5 GiB."""
    try:
        made_here = Cgroup(80_000, 1536 * MEBIBYTE)
    except OSError as error:
        pytest.skip(str(error))
    yield made_here
    made_here.remove()


def test_in_a_real_cgroup_torch_and_the_cache_follow_its_limits(cgroup: Cgroup, tmp_path: Path) -> None:
    threads, quota, limit, cache, taken = cgroup.run(REPORT, str(tmp_path / "file")).split()

    assert int(threads) == 1
    assert float(quota) == 0.8
    assert int(limit) == 1536 * MEBIBYTE
    # An eighth of what the 400 megabytes that the process holds leave of the limit.
    assert 100 * MEBIBYTE < int(cache) < 142 * MEBIBYTE
    assert int(taken) < 60 * MEBIBYTE
