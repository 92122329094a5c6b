"""What of this machine a process may use: cores and memory, with the limits of its container."""

import os
from collections.abc import Iterator
from pathlib import Path

# Measured: a worker's own memory while it decodes 16 frames of 320 x 240 (270 MB) and of 1920 x 1080 (510 MB).
WORKER_BYTES = 750_000_000
MAX_WORKERS = 16
FILE_HANDLES = 4096  # the limit to ask for where the system sets none


def available_cores(root: Path = Path("/")) -> int:
    """Return the cores that this process may use: those it is bound to, limited by its container's quota.

    Args:
        root: of the file system, for tests.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for folder in _control_groups(root, "cpu"):
        quota = _numbers(folder / "cpu.max") or (
            _numbers(folder / "cpu.cfs_quota_us") + _numbers(folder / "cpu.cfs_period_us")
        )
        if len(quota) == 2 and quota[0] > 0:
            cores = min(cores, quota[0] // quota[1])
    return max(1, cores)


def total_memory(root: Path = Path("/")) -> int | None:
    """Return the machine's memory in bytes, or its container's limit; None if the system does not report it."""
    try:
        lines = (root / "proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    found = [1024 * int(line.split()[1]) for line in lines if line.startswith("MemTotal:")]
    for folder in _control_groups(root, "memory"):
        found += [limit for name in ("memory.max", "memory.limit_in_bytes") for limit in _numbers(folder / name)]
    return min(found, default=None)


def free_shared_memory(folder: Path = Path("/dev/shm")) -> int | None:
    """Return the bytes of memory that processes can still share; None if the system does not limit it like this."""
    try:
        status = os.statvfs(folder)
    except (OSError, AttributeError):  # macOS, Windows
        return None
    return status.f_bavail * status.f_frsize


def free_file_handles() -> int | None:
    """Return how many more files this process may open, after raising its limit to the most that it may set itself.

    None if the system has no such limit.
    """
    try:
        import resource
    except ImportError:  # Windows
        return None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = hard if hard != resource.RLIM_INFINITY else max(soft, FILE_HANDLES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError):
            wanted = soft  # the limit that there is stays
        soft = wanted
    try:
        in_use = len(os.listdir("/dev/fd"))
    except OSError:
        in_use = 0
    return None if soft == resource.RLIM_INFINITY else soft - in_use


def pick_num_workers(cores: int, memory: int | None, num_processes: int, on_gpu: bool) -> int:
    """Return how many workers should read videos for each process of a run.

    With a GPU, all cores of a process but one. Without, a third of them: reading and training share the cores, and
    training on a video takes at least twice as long as reading it.

    Args:
        cores, memory: of the machine; memory in bytes, or None.
        num_processes: of the run on this machine.
    """
    share = cores // num_processes
    count = min(share - 1 if on_gpu else share // 3, MAX_WORKERS)
    if memory is not None:
        count = min(count, memory // 2 // num_processes // WORKER_BYTES)
    return max(1, count)


def _control_groups(root: Path, controller: str) -> Iterator[Path]:
    """Yield the folders of this process's control groups, versions 1 and 2, and of those around them."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / (controller if controllers else "")
        group = top / path.lstrip("/")
        yield from [group, *(parent for parent in group.parents if parent.is_relative_to(top))]


def _numbers(path: Path) -> list[int]:
    """Return the whole numbers of a small file; none if it is missing or says `max`."""
    try:
        words = path.read_text(encoding="utf-8").split()
        return [int(word) for word in words]
    except (OSError, ValueError):
        return []
