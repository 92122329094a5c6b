#!/usr/bin/env python3
"""Train for thousands of updates and watch memory and open files of every process.

    python tests/drills/soak.py --report soak.json

A tiny model trains on the embedded data set, with worker processes. After the first 2,000 opened videos, when the
allocators have settled, resident memory (summed over the processes; shared pages count in each) must grow by less than
5 %, open files must not grow at all, and the run must end normally. Exit status 1 otherwise.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from fault_drill import OVERRIDES, REPOSITORY, family_of, leaves_nothing, lines_of

from video_datasets.shapes.classes import Settings
from video_datasets.shapes.making import make_shapes

NUM_VIDEOS = 96
BATCH = 2
SETTLED = 2000  # opened videos after which memory must not grow
MAX_GROWTH = 0.05


@dataclass(frozen=True)
class Sample:
    """What the processes use at one moment."""

    seconds: float
    updates: int
    rss_mb: float
    main_mb: float
    files: int
    processes: int
    tensors: int = 0  # files in memory, one per tensor: of batches that workers have made and training has not used yet


def measure(pid: int, updates: int, started: float) -> Sample | None:
    """Measure the processes of a run; None if one ended meanwhile."""
    page_mb = os.sysconf("SC_PAGE_SIZE") / 2**20
    sizes, files, tensors = [], 0, 0
    family = family_of(pid)
    try:
        for process in family:
            sizes.append(int(Path(f"/proc/{process}/statm").read_text().split()[1]) * page_mb)
            names = _open_files(process)
            shared = sum(name.startswith("/dev/shm/torch_") for name in names)
            files, tensors = files + len(names) - shared, tensors + shared
    except OSError:
        return None
    return Sample(time.monotonic() - started, updates, sum(sizes), sizes[0], files, len(family), tensors)


def _open_files(pid: int) -> list[str]:
    names = []
    for path in Path(f"/proc/{pid}/fd").iterdir():
        try:
            names.append(os.readlink(path))
        except OSError:
            continue  # closed meanwhile
    return names


def soak(folder: Path, updates: int, num_workers: int, isolate: bool) -> tuple[list[Sample], int, int]:
    """Train; return the samples, the exit status and the updates done."""
    data, output = folder / "data", folder / "run"
    make_shapes(
        data / "shapes", Settings(train_clips=2, val_clips=1, side=32, shots=(2,), base2novel_shots=2), progress=False
    )
    epochs = -(-updates // (NUM_VIDEOS // BATCH))
    changed = {
        "data_root": data,
        "output": output,
        "epochs": epochs,
        "num_workers": num_workers,
        "batch_size": BATCH,
        "total_batch_size": BATCH,
        "save_freq": 10,
        "save_updates": "null",
        "data.isolate": str(isolate).lower(),
        "logging.tensorboard": "true",
        "logging.print_every": 12,  # an epoch has 48 updates: its last one is logged
    }
    kept = [word for word in OVERRIDES.split() if word.partition("=")[0] not in changed]
    words = [*kept, "data=few_shot_shapes", *(f"{key}={value}" for key, value in changed.items())]
    started = time.monotonic()
    samples: list[Sample] = []
    with (folder / "soak.txt").open("w") as log:
        environment = dict(os.environ, OMP_NUM_THREADS="1")
        process = subprocess.Popen(
            [sys.executable, "main.py", "-cn", "few_shot", *words],
            stdout=log,
            stderr=log,
            cwd=REPOSITORY,
            env=environment,
        )
        with leaves_nothing(lambda: family_of(process.pid)):
            while process.poll() is None:
                lines = lines_of(output, "train")
                done = round(lines[-1]["step"]) if lines else 0
                if (sample := measure(process.pid, done, started)) is not None:
                    samples.append(sample)
                time.sleep(0.25)
    lines = lines_of(output, "train")
    return samples, process.returncode, round(lines[-1]["step"]) if lines else 0


def judge(samples: list[Sample], status: int, done: int, wanted: int) -> tuple[dict, list[str]]:
    """Return the figures of a run, and what is wrong, given its exit status and its done and wanted updates."""
    # Only samples with all workers: validation, start and end of the run have others.
    training = [sample for sample in samples if sample.updates > 0]
    usual = statistics.mode(sample.processes for sample in training) if training else 0
    settled = [s for s in training if s.processes == usual and s.updates * BATCH >= SETTLED]
    if status or len(settled) < 20:
        return {"exit_status": status, "samples": len(samples)}, [
            f"the run ended with {status}, {len(settled)} samples"
        ]
    tenth = max(5, len(settled) // 10)
    early, late = settled[:tenth], settled[-tenth:]
    before, after = (statistics.median(sample.rss_mb for sample in part) for part in (early, late))
    # Batches in transit open files (a socket, a pipe, a video), waiting ones hold tensors; a leak raises even the low
    # counts.
    third = max(5, len(settled) // 3)
    first, last = settled[:third], settled[-third:]
    files = [statistics.median(sample.files for sample in part) for part in (first, last)]
    low_files = statistics.quantiles([sample.files for sample in last], n=10)[0]
    tensors = [min(sample.tensors for sample in part) for part in (first, last)]
    figures = {
        "updates": done,
        "video_opens_in_training": done * BATCH,
        "processes": usual,
        "rss_mb_after_2000_opens": round(before, 1),
        "rss_mb_at_the_end": round(after, 1),
        "growth": f"{(after - before) / before:+.2%}",
        "main_process_mb": [round(statistics.median(s.main_mb for s in part), 1) for part in (early, late)],
        "open_files": files,
        "most_open_files": max(sample.files for sample in settled),
        "least_shared_tensors": tensors,
        "most_shared_tensors": max(sample.tensors for sample in settled),
        "seconds": round(samples[-1].seconds),
    }
    wrong = []
    if after > before * (1 + MAX_GROWTH):
        wrong.append(f"memory grew from {before:.0f} to {after:.0f} MB")
    if low_files > files[0]:
        wrong.append(f"open files grew from {files[0]:g} to {low_files:g} and more")
    if tensors[1] > tensors[0]:
        wrong.append(f"shared tensors grew from {tensors[0]} to {tensors[1]} at least")
    if done < wanted:
        wrong.append(f"only {done} updates")
    return figures, wrong


def main(argv: list[str] | None = None) -> int:
    """Run the soak; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--updates", type=int, default=2500, help=f"of {BATCH} videos each")
    parser.add_argument("--workers", type=int, default=2, help="worker processes")
    parser.add_argument("--isolate", action="store_true", help="decode in separate processes (data.isolate=true)")
    parser.add_argument("--report", type=Path, help="write the figures here, as JSON")
    arguments = parser.parse_args(argv)
    if not Path("/proc/self/fd").exists():
        parser.error("needs /proc, which this system does not have")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        samples, status, done = soak(folder, arguments.updates, arguments.workers, arguments.isolate)
        figures, wrong = judge(samples, status, done, arguments.updates)
        if status:
            wrong.append("\n".join((folder / "soak.txt").read_text().splitlines()[-15:]))
    for name, value in figures.items():
        print(f"{name.replace('_', ' '):32s}{value}")
    for line in wrong:
        print(f"WRONG: {line}")
    if arguments.report is not None:
        arguments.report.write_text(json.dumps({**figures, "wrong": wrong}, indent=2) + "\n", encoding="utf-8")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
