"""Measure speed and memory of the models in one run, as Markdown tables and JSON.

The references: `plain` is the readable implementation (tc_clip/reference.py), which runs the text encoder over the
full context length for every video and materialises attention; `frames` is the frame-wise vifi_clip; the machine's
best matmul rate, and the bare video decoders. Equality with `plain` is checked in float64 before anything is timed.
Rounds are interleaved, so a disturbance affects all cases alike.

Without options it measures everything that docs/benchmarks.md shows: on a CPU in about 25 minutes with 21 GB of
memory, on a GPU in at most 8 minutes.
"""

import argparse
import json
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from benchmarking.cases import PRECISIONS, SIZES, VARIANTS, Case, build, check_equality, step_of
from benchmarking.loading import measure_loading
from benchmarking.measuring import Measurement, baseline_ratio, log, machine, matmul_rate, measure, peak_memory
from benchmarking.methods import measure_methods, methods_table
from benchmarking.profiling import kernel_table, profile_step
from benchmarking.report import Results, replace_section, report
from benchmarking.whole_run import measure_run

import tc_clip
from tc_clip.ops.memory import keep_freed_memory
from trainers.optim import build_adamw

PARTS = ("matmul", "baseline", "inference", "training", "growth", "run", "memory", "loading")
FURTHER = ("methods",)  # of docs/methods.md


def cases_of(parts: list[str], device: str, num_frames: int = 16, size: str = "ViT-B/16") -> list[Case]:
    """Return the cases of the published tables."""
    cpu = device == "cpu"

    def case(model: str, mode: str, precision: str, batch: int, classes: int = 400, variant: str = "") -> Case:
        return Case(model, mode, precision, batch, num_frames, classes, device, size, variant)

    cases = []
    if "inference" in parts:
        if cpu:
            cases += [case(model, "inference", "fp32", 1) for model in ("plain", "tc_clip", "frames")]
            cases += [case(model, "inference", "bf16", 1) for model in ("tc_clip", "frames")]
        else:
            cases += [case(model, "inference", "bf16", 16) for model in ("plain", "tc_clip", "frames")]
            cases += [case(model, "inference", "bf16", 16, variant="graph") for model in ("tc_clip", "frames")]
            cases += [case(m, "inference", "bf16", 1, variant=v) for v in ("", "graph") for m in ("tc_clip", "frames")]
    if "training" in parts:
        batch, classes = (2, 200) if cpu else (8, 400)
        if cpu:
            cases += [case(model, "training", "fp32", batch, classes) for model in ("plain", "tc_clip", "frames")]
            cases += [case("tc_clip", "training", "fp32", batch, classes, "checkpointing")]
        else:
            cases += [case("plain", "training", "bf16", batch, classes)]
            cases += [case("tc_clip", "training", "bf16", batch, classes, "checkpointing")]
            cases += [case(m, "training", "bf16", batch, classes, "compiled") for m in ("tc_clip", "frames")]
            cases += [case(m, "training", "bf16", 32, classes, "compiled") for m in ("tc_clip", "frames")]
        cases += [case(model, "training", "bf16", batch, classes) for model in ("tc_clip", "frames")]
    if "growth" in parts:
        cases += [case("tc_clip", "inference", "bf16", 1 if cpu else 16, classes) for classes in (100, 1600)]
    return cases


def main(arguments: list[str] | None = None) -> Results:
    """Run the benchmark from command-line arguments."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS + FURTHER, help="what to measure")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument(
        "--rounds", type=int, help="timed rounds, of which the median is reported; default 3 on CPUs, 5 on GPUs"
    )
    parser.add_argument("--frames", type=int, default=16, help="frames per video")
    parser.add_argument("--size", default="ViT-B/16", choices=list(SIZES), help="tiny is for tests")
    parser.add_argument("--video", type=Path, help="video to read; default: a generated one")
    parser.add_argument("--update", type=Path, help="document in which the figures replace the section of this device")
    parser.add_argument("--json", type=Path, help="also write the figures to this file, each as soon as it is known")
    parser.add_argument("--profile", type=Path, help="write the kernels of a step of each case to this file, and stop")
    own = parser.add_argument_group("your own cases instead of those of the parts (each option takes several values)")
    own.add_argument("--models", nargs="+", help="plain, frames, models by name, or all: every model that trains")
    own.add_argument("--modes", nargs="+", default=["inference"], choices=["inference", "training"])
    own.add_argument("--precisions", nargs="+", default=["fp32"], choices=list(PRECISIONS))
    own.add_argument("--variants", nargs="+", default=[""], choices=list(VARIANTS))
    own.add_argument("--batches", nargs="+", type=int, default=[1], help="videos per step")
    own.add_argument("--classes", nargs="+", type=int, default=[400], help="numbers of class names")
    options = parser.parse_args(arguments)
    start = time.perf_counter()
    device, parts = options.device, options.parts
    if device == "cpu":
        keep_freed_memory()  # as every run does
    words = sys.argv[1:] if arguments is None else arguments
    equality = check_equality(device)
    log(f"equality with the plain implementation, float64, logits and gradients: largest difference {equality:.1e}")
    cases = cases_of(parts, device, options.frames, options.size)
    if options.models:
        every = [name for name in tc_clip.model_names() if name != "vanilla_clip"]  # costs the same as vifi_clip
        models = [model for name in options.models for model in (every if name == "all" else [name])]
        cases = [
            Case(model, mode, precision, batch, options.frames, classes, device, options.size, variant)
            for mode in options.modes
            for classes in options.classes
            for batch in options.batches
            for precision in options.precisions
            for variant in options.variants
            for model in models
        ]
    results = Results(device, equality, {}, [])
    if options.profile:
        write_profiles(cases, options.profile)
        return results

    def write() -> None:
        """Write what is known, so that a benchmark that is stopped has measured something."""
        if options.json:
            options.json.write_text(json.dumps(content_of(results, words, start), indent=1) + "\n")

    if "methods" in parts:
        precision, batch, classes = ("fp32", 1, 20) if device == "cpu" else ("bf16", 8, 400)
        case = Case("frames", "training", precision, batch, options.frames, classes, device, options.size)
        figures = measure_methods(case, options.rounds or 3)
        print(f"{case.title}, {options.frames} frames; {machine()}\n\n{methods_table(figures)}")
        return results

    precisions = sorted({case.precision for case in cases})
    results.rates |= {p: matmul_rate(device, p) for p in precisions} if "matmul" in parts else {}
    write()
    memory: dict[Case, float] = {}
    for case in cases if "memory" in parts else ():  # first, while this process uses little itself
        if case.mode == "training" and case.variant != "graph":
            log(f"memory of {case.title}")
            memory[case] = peak_memory(case)
    rounds = options.rounds or (3 if device == "cpu" else 5)
    if "baseline" in parts and not options.models:
        precision, batch = ("fp32", 1) if device == "cpu" else ("bf16", 16)
        case = Case("plain", "inference", precision, batch, options.frames, 20, device, options.size)
        results.baseline_ratio = baseline_ratio(case, rounds)
        write()

    # One mode after the other: the models of both modes together, with their optimizers, take more than 24 GB.
    for mode in dict.fromkeys(case.mode for case in cases):
        before = results.measurements

        def add(found: list[Measurement], before: list[Measurement] = before) -> None:
            for m in found:
                m.peak_memory_mib = memory.get(m.case, float("nan"))
            results.measurements = before + found
            write()

        add(measure([case for case in cases if case.mode == mode], rounds, add))
    if "run" in parts and not options.models:
        log("the training loop with batches at hand")
        case = Case("tc_clip", "training", "fp32" if device == "cpu" else "bf16", 4, options.frames, 200, device)
        case = replace(case, size=options.size)
        on_gpu = device == "cuda"
        results.run = measure_run(case, 256 if on_gpu else 4, 6 if on_gpu else 3, compiled=on_gpu)
        write()
    results.loading = measure_loading(options.video, options.rounds or 9) if "loading" in parts else None
    write()
    minutes = (time.perf_counter() - start) / 60
    text = report(results, " ".join(["python scripts/benchmark.py", *words]), options.frames, minutes)
    print(text)
    if options.update:
        options.update.write_text(replace_section(options.update.read_text(), device, text))
    return results


def content_of(results: Results, words: list[str], start: float) -> dict[str, Any]:
    """Return the figures as plain values."""
    return {
        "machine": machine(),
        "command": words,
        "minutes": (time.perf_counter() - start) / 60,
        "equality": results.equality,
        "giga_multiply_adds_per_second": results.rates,
        "baseline_ratio": results.baseline_ratio,
        "measurements": [asdict(m) for m in results.measurements],
        "run": None if results.run is None else asdict(results.run),
        "loading": None if results.loading is None else asdict(results.loading),
    }


def write_profiles(cases: list[Case], path: Path) -> None:
    """Write the kernel tables of the cases, each as soon as it is known."""
    tables = ["# One step by kernel\n", ", ".join(f"{key} {value}" for key, value in machine().items()) + "."]
    for case in cases:
        log(f"profile: {case.title}")
        model = build(case)
        step = step_of(case, model, build_adamw(model, lr=1e-7) if case.mode == "training" else None)
        step()
        tables += ["", f"## {case.title}\n", kernel_table(case.model, profile_step(step, case.device))]
        path.write_text("\n".join(tables))


if __name__ == "__main__":
    main()
