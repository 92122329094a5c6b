"""Measure what the models cost, side by side in one run: time a video, multiply-adds, peak memory.

The yardsticks: `plain` is the readable implementation in tests/plain, which runs the text encoder over the full
context length for every video and materialises attention; `frames` is the frame-wise vifi_clip. Equality with `plain`
is checked in float64 before anything is timed. Rounds are interleaved, so a noisy moment hits every case alike.
"""

import argparse
import json
import multiprocessing
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

import tc_clip  # noqa: E402
from datasets.annotations import read_class_names  # noqa: E402
from tc_clip.weights import to_published  # noqa: E402
from tests.plain.plain_clip import PlainClip  # noqa: E402

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
TINY = {"image_size": 48, "patch_size": 8, "vision_width": 64, "vision_depth": 3, "text_width": 64, "text_depth": 3}


@dataclass(frozen=True)
class Case:
    """One thing to measure: a model, doing inference or training steps, in a precision."""

    model: str
    mode: str
    precision: str
    batch: int
    num_frames: int
    num_classes: int
    device: str

    @property
    def title(self) -> str:
        return f"{self.model} {self.mode} {self.precision}"


@dataclass
class Measurement:
    """Medians and counts of a case; seconds and multiply-adds are a video's."""

    case: Case
    seconds_a_video: float
    videos_a_second: float
    giga_multiply_adds: float
    peak_memory_mib: float
    seconds_of_rounds: list[float]


class PlainModel(torch.nn.Module):
    """The plain implementation with a model's weights, as a module that can be timed and trained alike."""

    def __init__(self, model: tc_clip.VideoClip):
        super().__init__()
        published = to_published(model.state_dict())
        self.names = list(published)
        self.weights = torch.nn.ParameterList([value.detach().clone() for value in published.values()])
        self.register_buffer("token_embedding", model.text.token_embedding)
        missing = model.context_length - model.class_tokens.shape[1]
        self.register_buffer("tokens", F.pad(model.class_tokens, (0, missing)))
        self.config = model.vision.context
        self.prompt_layers = model.prompts.config.prompt_layers
        self.head_width = model.vision.config.head_width

    def forward(self, video: torch.Tensor) -> torch.Tensor:
        plain = PlainClip(
            dict(zip(self.names, self.weights, strict=True)),
            self.token_embedding,
            num_context_tokens=self.config.num_context_tokens,
            seed_ratio=self.config.seed_ratio,
            merge_rate=self.config.merge_rate,
            prompt_layers=self.prompt_layers,
            head_width=self.head_width,
        )
        return plain.logits(video, self.tokens)


def build(name: str, num_classes: int, num_frames: int) -> torch.nn.Module:
    """Create a model of full geometry with random weights; `plain` and `frames` are the yardsticks."""
    torch.manual_seed(0)
    names = class_names(num_classes)
    model = tc_clip.create_model(
        {"plain": "tc_clip", "frames": "vifi_clip"}.get(name, name), class_names=names, num_frames=num_frames
    )
    return PlainModel(model) if name == "plain" else model


def class_names(num_classes: int) -> list[str]:
    """Return as many class names as wanted: those of Kinetics-400, then their pairs."""
    names = read_class_names(REPOSITORY / "labels" / "k400.csv")
    pairs = (f"{first} and {second}" for first in names for second in names if first != second)
    while len(names) < num_classes:
        names.append(next(pairs))
    return names[:num_classes]


def step_of(case: Case, model: torch.nn.Module) -> Callable[[], None]:
    """Return a function that runs one batch of the case and waits for the device."""
    device = torch.device(case.device)
    side = 224
    video = torch.randn(case.batch, case.num_frames, 3, side, side, device=device)
    labels = torch.arange(case.batch, device=device) % case.num_classes
    dtype = PRECISIONS[case.precision]
    autocast = torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)
    training = case.mode == "training"
    model.train(training)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def step() -> None:
        if training:
            with autocast:
                loss = F.cross_entropy(model(video).float(), labels)
            loss.backward()
            for parameter in parameters:
                parameter.grad = None
        else:
            with torch.no_grad(), autocast:
                model(video)
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step


def check_equality() -> float:
    """Compare the model with the plain implementation in float64 on a tiny geometry; return the largest difference."""
    torch.manual_seed(0)
    model = tc_clip.create_model(
        "tc_clip", class_names=class_names(20), prompt_layers=(3,), num_context_tokens=12, embed_dim=64, **TINY
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model = model.double().eval()
    video = torch.randn(2, 8, 3, 48, 48, dtype=torch.float64)
    with torch.no_grad():
        difference = (model(video) - PlainModel(model).double()(video)).abs().max().item()
    if not difference <= 1e-9:
        raise SystemExit(f"the model differs from the plain implementation by {difference}: nothing was timed")
    return difference


def peak_memory(case: Case) -> float:
    """Return the memory in MiB that one step takes beyond model and input, measured where nothing else runs."""
    model = build(case.model, case.num_classes, case.num_frames).to(case.device)
    step = step_of(case, model)
    if case.device == "cuda":
        step()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    step()
    Path("/proc/self/clear_refs").write_text("5")  # lets the kernel's record of the peak start anew
    before = _resident_mib("VmRSS")
    step()
    return _resident_mib("VmHWM") - before


def _resident_mib(field: str) -> float:
    """Return this process's resident memory, now (VmRSS) or at most (VmHWM), in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 2**10


def measure(cases: list[Case], repeats: int, with_memory: bool) -> list[Measurement]:
    """Measure the cases: rounds interleaved in this process, memory each in a process of its own."""
    memory = {case: float("nan") for case in cases}
    if with_memory:
        context = multiprocessing.get_context("spawn")
        for case in cases:
            say(f"memory of {case.title}")
            if case.device == "cuda":
                memory[case] = peak_memory(case)
            else:
                with context.Pool(1) as pool:
                    memory[case] = pool.apply(peak_memory, (case,))
    models: dict[str, torch.nn.Module] = {}
    steps, operations = {}, {}
    for case in cases:
        key = f"{case.model} {case.num_classes}"
        if key not in models:
            models[key] = build(case.model, case.num_classes, case.num_frames).to(case.device)
        steps[case] = (models[key], step_of(case, models[key]))
        say(f"warm-up of {case.title}")
        _set_mode(models[key], case)
        steps[case][1]()
        with FlopCounterMode(display=False) as counter:
            steps[case][1]()
        operations[case] = counter.get_total_flops() / 2 / case.batch / 1e9
    times: dict[Case, list[float]] = {case: [] for case in cases}
    for round_number in range(repeats):
        for case, (model, step) in steps.items():
            _set_mode(model, case)
            if case.mode == "inference":
                step()  # fills the caches that the mode change emptied
            start = time.perf_counter()
            step()
            times[case].append((time.perf_counter() - start) / case.batch)
            say(f"round {round_number + 1}/{repeats}: {case.title} {times[case][-1]:.3f} s a video")
    return [
        Measurement(
            case=case,
            seconds_a_video=statistics.median(times[case]),
            videos_a_second=1 / statistics.median(times[case]),
            giga_multiply_adds=operations[case],
            peak_memory_mib=memory[case],
            seconds_of_rounds=times[case],
        )
        for case in cases
    ]


def _set_mode(model: torch.nn.Module, case: Case) -> None:
    model.train(case.mode == "training")


def table(measurements: list[Measurement]) -> str:
    """Write the measurements as a markdown table with each case's ratio to `plain` in float32 and in its precision."""
    rows = [
        "| model | mode | precision | s/video | videos/s | speed / plain | GMAC/video | peak MiB | / plain |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    plain = {(m.case.mode, m.case.precision): m for m in measurements if m.case.model == "plain"}
    for m in measurements:
        reference = plain.get((m.case.mode, m.case.precision)) or plain.get((m.case.mode, "fp32"))
        speed = f"{reference.seconds_a_video / m.seconds_a_video:.2f}" if reference else ""
        memory = f"{m.peak_memory_mib / reference.peak_memory_mib:.2f}" if reference else ""
        rows.append(
            f"| {m.case.model} | {m.case.mode} | {m.case.precision} | {m.seconds_a_video:.3f} "
            f"| {m.videos_a_second:.3f} | {speed} | {m.giga_multiply_adds:.1f} | {m.peak_memory_mib:.0f} | {memory} |"
        )
    return "\n".join(rows)


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
    print(line, file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> list[Measurement]:
    """Run the benchmark from command-line arguments."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["plain", "tc_clip", "frames"], help="plain, frames, or models")
    parser.add_argument("--modes", nargs="+", default=["inference"], choices=["inference", "training"])
    parser.add_argument("--precisions", nargs="+", default=["fp32"], choices=list(PRECISIONS))
    parser.add_argument("--batch", type=int, default=1, help="videos a step")
    parser.add_argument("--frames", type=int, default=16, help="frames a video")
    parser.add_argument("--classes", type=int, default=400, help="number of class names")
    parser.add_argument("--repeats", type=int, default=3, help="timed rounds; the median counts")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--no-memory", action="store_true", help="leave out the peak memory (a process a case)")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args(arguments)
    say(f"equality with the plain implementation, float64: largest difference {check_equality():.1e}")
    cases = [
        Case(model, mode, precision, options.batch, options.frames, options.classes, options.device)
        for mode in options.modes
        for precision in options.precisions
        for model in options.models
    ]
    measurements = measure(cases, options.repeats, not options.no_memory)
    print(", ".join(f"{key} {value}" for key, value in machine().items()))
    print(f"{options.frames} frames, 224 px, {options.classes} classes, batch {options.batch}, {options.device}\n")
    print(table(measurements))
    if options.json:
        content = {"machine": machine(), "measurements": [asdict(m) for m in measurements]}
        options.json.write_text(json.dumps(content, indent=1))
    return measurements


if __name__ == "__main__":
    main()
