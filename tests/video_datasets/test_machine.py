"""How many cores and how much memory a process may use, and the number of workers that follows."""

import subprocess
import sys
from pathlib import Path

import pytest

from video_datasets import machine
from video_datasets.machine import available_cores, pick_num_workers, total_memory

GIB = 2**30


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a root folder of a machine with 32 cores and 64 GiB."""
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda pid: set(range(32)), raising=False)
    write(tmp_path, "proc/meminfo", f"MemTotal: {64 * 2**20} kB\nMemAvailable: 1000 kB\n")
    return tmp_path


def write(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_without_a_container_the_machine_counts(root: Path) -> None:
    assert available_cores(root) == 32 and total_memory(root) == 64 * GIB


def test_limits_of_a_container(root: Path) -> None:
    """Version 2: one hierarchy; the tightest limit of a group and of those around it holds."""
    write(root, "proc/self/cgroup", "0::/pods/mine\n")
    write(root, "sys/fs/cgroup/pods/mine/cpu.max", "max 100000\n")
    write(root, "sys/fs/cgroup/pods/cpu.max", "650000 100000\n")
    write(root, "sys/fs/cgroup/pods/mine/memory.max", f"{16 * GIB}\n")
    write(root, "sys/fs/cgroup/pods/memory.max", "max\n")
    assert available_cores(root) == 6 and total_memory(root) == 16 * GIB


def test_limits_of_an_older_container(root: Path) -> None:
    """Version 1: a hierarchy for each controller, several of which can share a folder."""
    write(root, "proc/self/cgroup", "4:memory:/job\n3:cpu,cpuacct:/job\n0::/\n")
    write(root, "sys/fs/cgroup/cpu/job/cpu.cfs_quota_us", "50000\n")
    write(root, "sys/fs/cgroup/cpu/job/cpu.cfs_period_us", "100000\n")
    write(root, "sys/fs/cgroup/memory/job/memory.limit_in_bytes", f"{8 * GIB}\n")
    assert available_cores(root) == 1 and total_memory(root) == 8 * GIB


def test_a_system_that_reports_no_memory(tmp_path: Path) -> None:
    assert total_memory(tmp_path) is None and available_cores(tmp_path) >= 1


@pytest.mark.parametrize(
    ("cores", "gib", "processes", "on_gpu", "expected"),
    [
        (16, 128, 1, True, 15),
        (128, 1024, 1, True, 16),
        (64, 512, 8, True, 7),
        (2, 16, 1, False, 1),
        (16, 64, 1, False, 5),
        (16, 8, 1, True, 5),
        (16, 1, 4, True, 1),
        (4, None, 1, True, 3),
    ],
)
def test_number_of_workers(cores: int, gib: int | None, processes: int, on_gpu: bool, expected: int) -> None:
    memory = None if gib is None else gib * GIB
    assert pick_num_workers(cores, memory, processes, on_gpu) == expected


def test_the_limit_of_open_files_is_raised() -> None:
    """In a process of its own: the limit of this one stays."""
    program = """
import resource
from video_datasets.machine import free_file_handles
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 500))
first = free_file_handles()
assert resource.getrlimit(resource.RLIMIT_NOFILE) == (500, 500)
assert 400 < first < 500, first
files = [open("/dev/null") for _ in range(10)]
assert free_file_handles() == first - 10
"""
    pytest.importorskip("resource")
    subprocess.run([sys.executable, "-c", program], check=True)
