"""Measure seconds, multiply-adds and memory of cases in interleaved rounds, and the limits of the machine."""

import functools
import math
import multiprocessing
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from benchmarking.cases import PRECISIONS, Case, Model, PlainModel, build, set_mode, step_of, video_of
from benchmarking.profiling import Profile, profile_step
from torch.utils.flop_counter import FlopCounterMode

from tc_clip import ops
from tc_clip.ops.memory import keep_freed_memory, release_freed_memory
from trainers.optim import build_adamw

CPU_ROUND_S, GPU_ROUND_S = 5.0, 0.3  # least duration of the repeats in a round
MATMUL_SIZES = ((3168, 768, 3072), (3168, 3072, 768), (4096, 4096, 4096))  # rows, inner size, columns
REPEAT_BELOW_S = 20.0  # on CPUs, shorter steps are timed at least twice


Shape = Sequence[int]


@dataclass
class Measurement:
    """Medians and counts of a case; seconds and multiply-adds are per video. NaN if not measured."""

    case: Case
    seconds_per_video: float
    giga_multiply_adds: float
    peak_memory_mib: float
    seconds_of_rounds: list[float]
    num_parameters: int | None = None  # all but the token embedding
    first_step_seconds: float = float("nan")  # with compilation
    num_launches: int | None = None  # of a step on a GPU
    busy_share: float = float("nan")  # of a step, in which a kernel of the GPU ran

    @property
    def videos_per_second(self) -> float:
        """The throughput."""
        return 1 / self.seconds_per_video


def measure(
    cases: list[Case], rounds: int, on_round: Callable[[list[Measurement]], None] = lambda measurements: None
) -> list[Measurement]:
    """Time the cases in interleaved rounds, so that a disturbance affects all cases alike.

    Args:
        on_round: called after every round with what is known then.
    """
    bench = _Bench()
    operations: dict[Case, float] = {}
    sizes: dict[Case, int] = {}
    times: dict[Case, list[float]] = {case: [] for case in cases}
    profiles: dict[Case, Profile] = {}
    firsts: dict[Case, float] = {}
    for case in cases:
        log(f"warm-up: {case.title}")
        model, step = bench.prepare(case)
        start = time.perf_counter()
        step()
        firsts[case] = time.perf_counter() - start
        operations[case] = _counted(case, step)
        if case.device == "cuda":
            profiles[case] = profile_step(step, case.device)
        sizes[case] = sum(parameter.numel() for parameter in model.parameters())
        del model, step
        bench.make_room(case)
        log(f"  {time.perf_counter() - start:.1f} s")

    def known() -> list[Measurement]:
        found = [
            Measurement(case, statistics.median(times[case]), operations[case], float("nan"), times[case], sizes[case])
            for case in cases
        ]
        for measurement in found:
            measurement.first_step_seconds = firsts[measurement.case]
            if (profile := profiles.get(measurement.case)) is not None:
                measurement.num_launches, measurement.busy_share = profile.num_launches, profile.busy_share
        return found

    for number in range(rounds):
        for case in cases:
            model, step = bench.prepare(case)
            set_mode(case, model)
            # Untimed steps of the same case, as in a run: they fill the caches that a change of mode or precision
            # emptied, and allocate the memory that the previous case released. On CPUs the second training step still
            # allocates memory and is up to a tenth slower than later ones.
            for _ in range(2 if case.device == "cpu" and case.mode == "training" else 1):
                step()
            seconds = _timed(step, case.device) / case.batch
            times[case].append(seconds)
            del model, step
            bench.make_room(case)
            log(f"round {number + 1}/{rounds}: {case.title}: {seconds:.4f} s/video")
        on_round(known())
    return known()


class _Bench:
    """Models and steps of cases. On CPUs only one trained model exists at a time: `plain` takes most of the memory."""

    def __init__(self) -> None:
        self._models: dict[tuple[str, int, str], tuple[Model, torch.optim.Optimizer | None]] = {}
        self._steps: dict[Case, Callable[[], torch.Tensor]] = {}

    def prepare(self, case: Case) -> tuple[Model, Callable[[], torch.Tensor]]:
        """Return the model and the step of a case; cases with the same model share it."""
        if case not in self._steps:
            key = self._key(case)
            if key not in self._models:
                model = build(case)
                # The state of the optimizer is twice the size of the model.
                self._models[key] = model, build_adamw(model, lr=1e-7) if case.mode == "training" else None
            self._steps[case] = step_of(case, *self._models[key])
        return self._models[self._key(case)][0], self._steps[case]

    def make_room(self, case: Case) -> None:
        """Drop a model that trained on a CPU, unless it was compiled."""
        if case.device == "cpu":
            if case.mode == "training" and not self._compiles(case):
                self._models.clear()
                self._steps.clear()
            release_freed_memory()

    def _key(self, case: Case) -> tuple[str, int, str]:
        return case.model, case.num_classes, case.variant if self._compiles(case) else ""

    def _compiles(self, case: Case) -> bool:
        return case.variant in ("compiled", "graph")


def _counted(case: Case, step: Callable[[], torch.Tensor]) -> float:
    """Run a first step and return the multiply-adds per video, in 1e9; NaN for a compiled step."""
    if case.variant in ("compiled", "graph"):
        return float("nan")
    if case.mode == "inference" and case.model != "plain":
        step()  # fills the cache of the text features that all videos share
    with FlopCounterMode(display=False, custom_mapping=_flop_formulas()) as counter:
        step()
    return counter.get_total_flops() / 2 / case.batch / 1e9


def baseline_ratio(case: Case, rounds: int) -> float:
    """Return the time of the plain implementation's vision side relative to a materialised frame-wise one.

    Args:
        case: inference of the model `plain`.
    """
    model, video = build(case).eval(), video_of(case)
    assert isinstance(model, PlainModel)
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
    ratio = statistics.median(times[False]) / statistics.median(times[True])
    log(f"vision side of plain: {ratio:.2f} times the time of a frame-wise one")
    return ratio


def _timed(step: Callable[[], torch.Tensor], device: str) -> float:
    """Return the seconds of a step: the mean over as many as fill a round."""
    start = time.perf_counter()
    step()
    once = time.perf_counter() - start
    if device == "cpu":
        repeats = int(CPU_ROUND_S / once)
        if repeats < 2:
            if once >= REPEAT_BELOW_S:
                return once
            step()
            return (time.perf_counter() - start) / 2
    else:
        repeats = max(3, int(GPU_ROUND_S / once))
    start = time.perf_counter()
    for _ in range(repeats):
        step()
    return (time.perf_counter() - start) / repeats


def _flop_formulas() -> dict[Any, Callable[..., int]]:
    """Return the formulas of operators that torch's counter does not know."""

    def linear(x: Shape, weight: Shape, *_: object, **__: object) -> int:
        return 2 * math.prod(x) * weight[0]

    def attention(query: Shape, key: Shape, *_: object, **__: object) -> int:
        batch, heads, length, width = query
        return 4 * batch * heads * length * key[2] * width

    def attention_backward(_: Shape, query: Shape, key: Shape, *__: object, **___: object) -> int:
        return attention(query, key) * 5 // 2

    formulas: dict[str, Callable[..., int]] = {
        "mkldnn._linear_pointwise": linear,
        "aten._scaled_dot_product_flash_attention_for_cpu": attention,
        "aten._scaled_dot_product_flash_attention_for_cpu_backward": attention_backward,
    }
    known: dict[Any, Callable[..., int]] = {}
    for name, formula in formulas.items():
        namespace, operator = name.split(".")
        if hasattr(getattr(torch.ops, namespace), operator):  # not in every version of PyTorch
            known[getattr(getattr(torch.ops, namespace), operator)] = formula
    return known


def peak_memory(case: Case) -> float:
    """Return the memory in MiB that forward and backward pass take beyond model and input, in a separate process."""
    if case.device == "cuda":
        return _peak_memory(case)
    with multiprocessing.get_context("spawn").Pool(1, keep_freed_memory) as pool:
        return pool.apply(_peak_memory, (case,))


def _peak_memory(case: Case) -> float:
    step = step_of(case, build(case))
    if case.device == "cuda":
        step()
        allocated = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        return (torch.cuda.max_memory_allocated() - allocated) / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # resets the kernel's record of the peak
    before = _resident_mib("VmRSS")
    step()
    return _resident_mib("VmHWM") - before


def _resident_mib(field: str) -> float:
    """Return the resident memory of this process in MiB, now (VmRSS) or at its peak (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 2**10


def matmul_rate(device: str, precision: str, seconds: float = 1.0) -> float:
    """Return the highest measured rate of a matrix product, in 1e9 multiply-adds per second.

    Sizes are those of the model's layers and larger ones; both PyTorch's product and the package's own are tried.
    """
    dtype = PRECISIONS[precision] or torch.float32
    best = 0.0
    for rows, inner, columns in MATMUL_SIZES:
        scale = 8 if device == "cuda" else 1
        x = torch.randn(rows * scale, inner, device=device, dtype=dtype)
        weight = torch.randn(columns, inner, device=device, dtype=dtype)
        for linear in (F.linear, ops.linear):
            product = functools.partial(linear, x, weight, None)
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
    """Return date, versions and hardware of a measurement."""
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


def log(line: str) -> None:
    """Print progress to standard error."""
    print(line, file=sys.stderr, flush=True)
