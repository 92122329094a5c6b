"""Seconds, multiply-adds and memory of cases, rounds interleaved; and the machine's own limits."""

import functools
import multiprocessing
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from benchmarking.cases import PRECISIONS, Case, build, set_mode, step_of, video_of
from torch.utils.flop_counter import FlopCounterMode

from tc_clip.ops.memory import keep_freed_memory, release_freed_memory
from trainers.optim import build_adamw

CPU_MOMENT_S, GPU_MOMENT_S = 5.0, 0.3  # that the repeats of a round fill
TWICE_BELOW_S = 20.0  # steps on CPUs that take less are timed twice at least


@dataclass
class Measurement:
    """Medians and counts of a case; seconds and multiply-adds are a video's. NaN where not measured."""

    case: Case
    seconds_a_video: float
    giga_multiply_adds: float
    peak_memory_mib: float
    seconds_of_rounds: list[float]
    num_parameters: int | None = None  # all but the token embedding

    @property
    def videos_a_second(self) -> float:
        """Return the throughput."""
        return 1 / self.seconds_a_video


def measure(cases: list[Case], rounds: int) -> list[Measurement]:
    """Time the cases, rounds interleaved, so that a noisy moment hits every case alike."""
    bench = _Bench()
    operations, sizes = {}, {}
    times: dict[Case, list[float]] = {case: [] for case in cases}
    for case in cases:
        say(f"warm-up: {case.title}")
        start = time.perf_counter()
        model, step = bench.prepare(case)
        operations[case] = _counted(case, step)
        sizes[case] = sum(parameter.numel() for parameter in model.parameters())
        del model, step
        bench.make_room(case)
        say(f"  {time.perf_counter() - start:.1f} s")
    for number in range(rounds):
        for case in cases:
            model, step = bench.prepare(case)
            set_mode(case, model)
            # As in a run, the steps before are of the same case: they fill the caches that a change of mode or
            # precision emptied, and take the memory that the case before gave back to the system. On CPUs a second
            # step of training still takes some, and is up to a tenth slower than those after it.
            for _ in range(2 if case.device == "cpu" and case.mode == "training" else 1):
                step()
            seconds = _timed(step, case.device) / case.batch
            times[case].append(seconds)
            del model, step
            bench.make_room(case)
            say(f"round {number + 1}/{rounds}: {case.title}: {seconds:.4f} s a video")
    return [
        Measurement(
            case,
            statistics.median(times[case]),
            operations[case],
            float("nan"),
            times[case],
            sizes[case],
        )
        for case in cases
    ]


class _Bench:
    """Models and steps of cases. On CPUs one that trains stands alone: that of `plain` takes most of the memory."""

    def __init__(self):
        self._models: dict[tuple, tuple[torch.nn.Module, torch.optim.Optimizer | None]] = {}
        self._steps: dict[Case, Callable[[], torch.Tensor]] = {}

    def prepare(self, case: Case) -> tuple[torch.nn.Module, Callable[[], torch.Tensor]]:
        """Return the model and the step of a case; cases that differ in nothing that changes a model share it."""
        if case not in self._steps:
            key = self._key(case)
            if key not in self._models:
                model = build(case)
                # Its state is twice the model's size.
                self._models[key] = model, build_adamw(model, lr=1e-7) if case.mode == "training" else None
            self._steps[case] = step_of(case, *self._models[key])
        return self._models[self._key(case)][0], self._steps[case]

    def make_room(self, case: Case) -> None:
        """Drop a model that trained on a CPU, unless it took a compilation."""
        if case.device == "cpu":
            if case.mode == "training" and not self._compiles(case):
                self._models.clear()
                self._steps.clear()
            release_freed_memory()

    def _key(self, case: Case) -> tuple:
        return case.model, case.num_classes, case.variant if self._compiles(case) else ""

    def _compiles(self, case: Case) -> bool:
        return case.variant in ("compiled", "graph")


def _counted(case: Case, step) -> float:
    """Run a first step and return the multiply-adds of a video, in 1e9; a compiled step is not counted."""
    if case.variant in ("compiled", "graph"):
        step()
        return float("nan")
    if case.mode == "inference" and case.model != "plain":
        step()  # fills the cache of what all videos share
    with FlopCounterMode(display=False, custom_mapping=_flop_formulas()) as counter:
        step()
    return counter.get_total_flops() / 2 / case.batch / 1e9


def yardstick_share(case: Case, rounds: int) -> float:
    """Return the time of the plain implementation's vision side relative to a materialised frame-wise one.

    Args:
        case: of the model `plain` in inference.
    """
    model, video = build(case).eval(), video_of(case)
    dtype = PRECISIONS[case.precision]
    times: dict[bool, list[float]] = {False: [], True: []}

    def step(frame_wise: bool) -> None:
        with torch.no_grad(), torch.autocast(case.device, dtype=dtype, enabled=dtype is not None):
            model.encode_video(video, frame_wise)
        if case.device == "cuda":
            torch.cuda.synchronize()

    for number in range(rounds + 1):
        for frame_wise, seconds in times.items():
            start = time.perf_counter()
            step(frame_wise)
            if number:  # the first is a warm-up
                seconds.append(time.perf_counter() - start)
    share = statistics.median(times[False]) / statistics.median(times[True])
    say(f"vision side of plain: {share:.2f} x a frame-wise one")
    return share


def _timed(step, device: str) -> float:
    """Return the seconds of a step: the mean over as many as fill a moment."""
    start = time.perf_counter()
    step()
    once = time.perf_counter() - start
    if device == "cpu":
        repeats = int(CPU_MOMENT_S / once)
        if repeats < 2:
            if once >= TWICE_BELOW_S:
                return once
            step()
            return (time.perf_counter() - start) / 2
    else:
        repeats = max(3, int(GPU_MOMENT_S / once))
    start = time.perf_counter()
    for _ in range(repeats):
        step()
    return (time.perf_counter() - start) / repeats


def _flop_formulas() -> dict:
    """Return formulas of the operators that torch's counter does not know."""

    def linear(x, weight, *_, out_shape=None, **__) -> int:
        return 2 * functools.reduce(lambda a, b: a * b, x) * weight[0]

    def attention(query, key, *_, out_shape=None, **__) -> int:
        batch, heads, length, width = query
        return 4 * batch * heads * length * key[2] * width

    def attention_backward(_, query, key, *__, out_shape=None, **___) -> int:
        return attention(query, key) * 5 // 2

    def convolution(x, weight, *_, out_shape=None, **__) -> int:
        return 2 * x[0] * x[2] * x[3] * functools.reduce(lambda a, b: a * b, weight)  # of one place each

    ops = torch.ops
    return {
        ops.mkldnn._linear_pointwise: linear,
        ops.mkldnn._convolution_pointwise: convolution,
        ops.aten._scaled_dot_product_flash_attention_for_cpu: attention,
        ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward,
    }


def peak_memory(case: Case) -> float:
    """Return the memory in MiB that forward and backward take beyond model and input, in a process of its own."""
    if case.device == "cuda":
        return _peak_memory(case)
    with multiprocessing.get_context("spawn").Pool(1, keep_freed_memory) as pool:
        return pool.apply(_peak_memory, (case,))


def _peak_memory(case: Case) -> float:
    step = step_of(case, build(case))
    if case.device == "cuda":
        step()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # lets the kernel's record of the peak start anew
    before = _resident_mib("VmRSS")
    step()
    return _resident_mib("VmHWM") - before


def _resident_mib(field: str) -> float:
    """Return this process's resident memory, now (VmRSS) or at most (VmHWM), in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 2**10


def matmul_rate(device: str, precision: str, seconds: float = 1.0) -> float:
    """Return the best rate of a matrix product that was found on the machine, in 1e9 multiply-adds a second.

    Sizes of the model's own layers and larger ones; in float32 on CPUs both PyTorch's product and oneDNN's.
    """
    dtype = PRECISIONS[precision] or torch.float32
    best = 0.0
    for rows, inner, columns in ((3168, 768, 3072), (3168, 3072, 768), (4096, 4096, 4096)):
        scale = 8 if device == "cuda" else 1
        x = torch.randn(rows * scale, inner, device=device, dtype=dtype)
        weight = torch.randn(columns, inner, device=device, dtype=dtype)
        products = [lambda x=x, weight=weight: torch.nn.functional.linear(x, weight)]
        if device == "cpu" and torch.backends.mkldnn.is_available():
            products.append(
                lambda x=x, weight=weight: torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
            )
        for product in products:
            product()
            fastest, until = float("inf"), time.perf_counter() + seconds / 6
            while time.perf_counter() < until or fastest == float("inf"):
                start = time.perf_counter()
                product()
                if device == "cuda":
                    torch.cuda.synchronize()
                fastest = min(fastest, time.perf_counter() - start)
            best = max(best, x.shape[0] * inner * columns / fastest / 1e9)
    return best


def machine() -> dict[str, str]:
    """Say what the figures were measured on."""
    facts = {
        "date": time.strftime("%Y-%m-%d"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cpu": _cpu_name(),
        "threads": str(torch.get_num_threads()),
    }
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
    return facts


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def say(line: str) -> None:
    """Tell progress, apart from the result."""
    print(line, file=sys.stderr, flush=True)
