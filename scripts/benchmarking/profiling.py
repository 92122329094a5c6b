"""One step by kernel: how many launches, how long the device works, and which kernels take the time."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile


@dataclass
class Profile:
    """A step: `seconds` of it, those in which a kernel ran, and seconds and launches of each kernel, longest first.

    On a CPU the kernels are PyTorch's operators, each without those that it calls.
    """

    seconds: float
    busy_seconds: float
    kernels: list[tuple[str, float, int]]

    @property
    def num_launches(self) -> int:
        """Kernels, copies and fills of the step."""
        return sum(count for _, _, count in self.kernels)

    @property
    def busy_share(self) -> float:
        """Share of the step in which a kernel ran."""
        return self.busy_seconds / self.seconds


def profile_step(step: Callable[[], object], device: str) -> Profile:
    """Run a step twice, with the profiler for the kernels, and without it for the time.

    Args:
        step: waits for the device at its end, and has run before.
    """
    on_gpu = device == "cuda"
    start = time.perf_counter()
    step()
    seconds = time.perf_counter() - start
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as profiler:
        step()
    wanted = DeviceType.CUDA if on_gpu else DeviceType.CPU
    events = [event for event in profiler.events() or () if event.device_type == wanted]
    spent: defaultdict[str, list[float]] = defaultdict(lambda: [0.0, 0])
    for event in events:
        entry = spent[event.name]
        entry[0] += (event.time_range.elapsed_us() if on_gpu else event.self_cpu_time_total) / 1e6
        entry[1] += 1
    kernels = sorted(((name, total, int(count)) for name, (total, count) in spent.items()), key=lambda row: -row[1])
    return Profile(seconds, _union((e.time_range.start, e.time_range.end) for e in events) / 1e6, kernels)


def kernel_table(title: str, found: Profile, least_ms: float = 0.1) -> str:
    """Return the kernels as Markdown, longest first."""
    total = sum(seconds for _, seconds, _ in found.kernels)
    rows = [
        f"{title}: {1e3 * found.seconds:.1f} ms a step, kernels {1e3 * total:.1f} ms in {found.num_launches} launches, "
        f"busy {found.busy_share:.0%}",
        "",
        "| ms | launches | kernel |",
        "|---|---|---|",
    ]
    for name, seconds, count in found.kernels:
        if 1e3 * seconds >= least_ms:
            rows.append(f"| {1e3 * seconds:.2f} | {count} | `{name[:110].replace('|', '/')}` |")
    return "\n".join(rows) + "\n"


def _union(intervals: Iterable[tuple[float, float]]) -> float:
    """Return the length of the union of intervals."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(intervals):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total
