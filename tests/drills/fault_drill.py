#!/usr/bin/env python3
"""Kill a training run many times at random moments, and compare its result with that of an uninterrupted run.

    python tests/drills/fault_drill.py --kills 50 --report drill.json

Trains a tiny model on a few clips of the embedded data set, in two processes by default. At random moments (start,
update, writing, validation) it sends SIGKILL to one process or to all, waits until the others have noticed, and starts
all of them again, as `torchrun --max_restarts` does. No worker may survive the kill. When a run is done, its last and
best checkpoints must equal those of the uninterrupted run bit for bit, and its log must have the same losses, each
once. Then another run begins, until there were enough kills. Exit status 1 if anything differs.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import runpy
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from video_datasets.shapes.classes import Settings
from video_datasets.shapes.making import make_shapes

REPOSITORY = Path(__file__).resolve().parents[2]
PATIENCE_S = 300.0  # an update takes less, even on a busy machine
PARTING_S = 45.0  # time for the others to notice a kill
LAST_LINES = 40  # lines of the log to show if a run failed
OVERRIDES = (
    "trainer=vifi_clip_tiny shot=2 num_frames=4 input_size=24 trainer.options.vision_width=64 "
    "trainer.options.vision_depth=1 trainer.options.text_width=64 trainer.options.text_depth=1 "
    "trainer.options.embed_dim=32 batch_size=4 total_batch_size=16 test_batch_size=8 num_workers=1 warmup_epochs=1 "
    "lr=1e-3 lr_min=1e-5 save_freq=2 save_updates=1 keep=3 device=cpu precision=fp32 data.decoder=pyav num_clip=1 "
    "logging.tensorboard=false logging.print_every=1 logging.progress=lines distributed_timeout=3"
)


@dataclass
class Drill:
    """Counts and times of a drill."""

    kills: int = 0
    of_one: int = 0
    noticed: int = 0  # kills of one process that the others noticed, and exited
    of_all: int = 0
    starts: int = 0
    resumed: int = 0
    rounds: int = 0
    damaged: int = 0
    leftovers: int = 0
    seconds: float = 0.0


class Job:
    """The processes of one start of a run."""

    def __init__(self, command: list[str], num_processes: int, log: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.log = log
        # Forked from this process, which has imported all modules: imports take half of a start.
        context = multiprocessing.get_context("fork")
        self.processes = []
        for rank in range(num_processes):
            environment = {"OMP_NUM_THREADS": "1"}
            if num_processes > 1:
                environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(num_processes)}
                environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            process = context.Process(target=_train, args=(command, environment, log))
            process.start()
            self.processes.append(process)

    @property
    def is_parallel(self) -> bool:
        """Whether there are several processes."""
        return len(self.processes) > 1

    def statuses(self) -> list[int | None]:
        """Return every process's exit status, None while it runs."""
        return [process.exitcode for process in self.processes]

    def kill(self, ranks: list[int]) -> None:
        """Kill some processes."""
        for rank in ranks:
            self.processes[rank].kill()

    def end(self, patience_s: float) -> list[int]:
        """Wait for all processes, kill those that do not end, and return their exit statuses."""
        deadline = time.monotonic() + patience_s
        while None in self.statuses() and time.monotonic() < deadline:
            time.sleep(0.02)
        self.kill([rank for rank, status in enumerate(self.statuses()) if status is None])
        for process in self.processes:
            process.join()
        return self.statuses()

    def family(self) -> list[int]:
        """Return the processes and all their descendants: workers and fork servers."""
        return [process for parent in self.processes for process in family_of(parent.pid)]


def _train(command: list[str], environment: dict[str, str], log: Path) -> None:
    """Run `main.py` as the main program of this process."""
    with log.open("a", encoding="utf-8") as file:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(file.fileno(), stream.fileno())
    os.environ.update(environment)
    os.chdir(REPOSITORY)
    sys.argv = command
    runpy.run_path(command[0], run_name="__main__")


@contextlib.contextmanager
def leaves_nothing(family: Callable[[], list[int]]) -> Iterator[None]:
    """Around processes: if this one is stopped, by an error or a signal, they are killed with all their descendants."""
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    except BaseException:
        for process in family():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def family_of(pid: int) -> list[int]:
    """Return a process and all its descendants."""
    found, pending = [pid], [pid]
    while pending:
        for path in Path(f"/proc/{pending.pop()}/task").glob("*/children"):
            try:
                children = [int(child) for child in path.read_text().split()]
            except OSError:
                continue  # the process has just ended
            found += children
            pending += children
    return found


def still_running(processes: Iterable[int], patience_s: float) -> list[int]:
    """Wait until these processes have ended; return those that have not."""
    deadline = time.monotonic() + patience_s
    while (left := [pid for pid in processes if _is_running(pid)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def _is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"  # ended, but its parent has not read its status


def lines_of(output: Path, kind: str) -> list[dict]:
    """Return the complete lines of a kind in metrics.jsonl, without the values that depend on time."""
    path = output / "metrics.jsonl"
    if not path.exists():
        return []
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            values = json.loads(line)
        except ValueError:
            continue  # a kill interrupted this line; the next start drops it
        if values["kind"] == kind:
            names = ("step", "epoch", "loss", "lr", "top1", "top5", "videos")
            found.append({name: values[name] for name in names if name in values})
    return found


def differences(expected: Path, found: Path) -> list[str]:
    """Return the differences between the results of two runs; none if they are equal bit for bit."""
    wrong = []
    for name in ("last.pth", "best.pth"):
        one, other = (torch.load(folder / name, weights_only=True) for folder in (expected, found))
        for key in ("epoch", "micro_batch", "skipped"):
            if one[key] != other[key]:
                wrong.append(f"{name}: {key} is {other[key]}, not {one[key]}")
        if {**one["best"], "seconds": 0} != {**other["best"], "seconds": 0}:
            wrong.append(f"{name}: the best validation differs")
        wrong += [
            f"{name}: {weight} differs"
            for weight in one["model"]
            if not torch.equal(one["model"][weight], other["model"][weight])
        ]
        if name == "last.pth":
            states = one["optimizer"]["state"], other["optimizer"]["state"]
            wrong += [
                f"{name}: the optimizer's {value} of parameter {number} differs"
                for number, values in states[0].items()
                for value in values
                if not torch.equal(values[value], states[1][number][value])
            ]
    for kind in ("train", "val"):
        if lines_of(expected, kind) != lines_of(found, kind):
            wrong.append(f"metrics.jsonl: the lines of {kind} differ")
    return wrong


def command_of(data: Path, output: Path, epochs: int) -> list[str]:
    """Return the command of the training run."""
    paths = [f"data_root={data}", f"output={output}", f"epochs={epochs}", "data=few_shot_shapes"]
    return [str(REPOSITORY / "main.py"), "-cn", "few_shot", *OVERRIDES.split(), *paths]


def _tail(log: Path) -> str:
    """Return path and last lines of a log; a temporary folder is removed with the drill."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n  ".join([f"{log} ends with", *lines[-LAST_LINES:]])


def uninterrupted(command: list[str], num_processes: int, folder: Path) -> float:
    """Run without a kill; return the seconds until the first update."""
    start = time.monotonic()
    job = Job(command, num_processes, folder / "uninterrupted.txt")
    first = None
    with leaves_nothing(job.family):
        while None in job.statuses():
            if first is None and lines_of(folder / "uninterrupted", "train"):
                first = time.monotonic() - start
            time.sleep(0.05)
    if any(statuses := job.end(1)):
        raise SystemExit(f"the uninterrupted run ended with {statuses}; {_tail(job.log)}")
    return first or 0.0


def wait_for_moment(
    job: Job, output: Path, rng: random.Random, start_s: float, patience_s: float, to_the_end: bool
) -> None:
    """Wait until it is time for a kill, or the processes have ended.

    A third of the kills happen while the processes start (in the time that the first start took), the others a random
    moment after a random number of updates.
    """
    began = time.monotonic()
    wanted = len(lines_of(output, "train")) + rng.randint(1, 9)
    starting, moment = rng.random() < 1 / 3, rng.random()
    while None in job.statuses() and time.monotonic() - began < patience_s:
        if not to_the_end and starting and time.monotonic() - began > moment * start_s:
            return
        if not to_the_end and len(lines_of(output, "train")) >= wanted:
            time.sleep(0.5 * moment)
            return
        time.sleep(0.01)


@dataclass
class Progress:
    """Number of updates of a run, and when it last increased."""

    updates: int = -1
    since: float = field(default_factory=time.monotonic)


def one_start(
    job: Job,
    output: Path,
    rng: random.Random,
    counts: Drill,
    kills: int,
    start_s: float,
    progress: Progress,
    wrong: list[str],
) -> bool:
    """Kill one start of a run, or let it end if there were enough kills; return whether the run must be resumed."""
    enough = counts.kills >= kills
    wait_for_moment(job, output, rng, start_s, 4 * PATIENCE_S if enough else PATIENCE_S, to_the_end=enough)
    statuses = job.statuses()
    if all(status == 0 for status in statuses):
        job.end(1)
        return False
    if any(status not in (None, 0) for status in statuses) or enough:
        wrong.append(f"processes ended with {job.end(30)} without a kill; {_tail(job.log)}")
        return False
    kill_one = job.is_parallel and rng.random() < 0.5
    ranks = [rng.randrange(len(statuses))] if kill_one else list(range(len(statuses)))
    done, family = len(lines_of(output, "train")), job.family()
    job.kill(ranks)
    ended = [status == -signal.SIGKILL for status in job.end(PARTING_S)]
    if any(ended[rank] for rank in ranks):  # else the run was done before the kill
        counts.kills += 1
        counts.of_one, counts.of_all = counts.of_one + kill_one, counts.of_all + (not kill_one)
    if kill_one and any(ended[rank] for rank in ranks):
        counts.noticed += sum(ended) == 1
    if orphans := still_running(family, 60):
        wrong.append(f"{len(orphans)} processes still run after a kill: {orphans}")
    counts.leftovers += len(list(output.glob(".*.tmp")))
    if done > progress.updates:
        progress.updates, progress.since = done, time.monotonic()
    if time.monotonic() - progress.since > 4 * PATIENCE_S:
        wrong.append(f"the run does not get beyond {done} updates; {_tail(job.log)}")
    return True


def drill(folder: Path, kills: int, num_processes: int, epochs: int, seed: int) -> tuple[Drill, list[str]]:
    """Kill runs this many times; return the counts, and what went wrong."""
    import trainers.run  # noqa: F401  (for the processes forked from this one)

    torch.set_num_threads(1)  # threads do not survive a fork
    rng, counts, start = random.Random(seed), Drill(), time.monotonic()
    data = folder / "data"
    make_shapes(
        data / "shapes", Settings(train_clips=2, val_clips=1, side=32, shots=(2,), base2novel_shots=2), progress=False
    )
    first = uninterrupted(command_of(data, folder / "uninterrupted", epochs), num_processes, folder)
    wrong: list[str] = []
    while counts.kills < kills and not wrong:
        counts.rounds += 1
        output = folder / f"round_{counts.rounds}"
        log = folder / f"round_{counts.rounds}.txt"
        progress = Progress()
        going = True
        while going and not wrong:
            job = Job(command_of(data, output, epochs), num_processes, log)
            counts.starts += 1
            with leaves_nothing(job.family):
                going = one_start(job, output, rng, counts, kills, first, progress, wrong)
        if not wrong:
            wrong += differences(folder / "uninterrupted", output)
        text = log.read_text(encoding="utf-8")
        counts.resumed += text.count("resumes at epoch")
        counts.damaged += text.count("resuming from last_")
    counts.seconds = time.monotonic() - start
    return counts, wrong


def main(argv: list[str] | None = None) -> int:
    """Run the drill; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=50, help="SIGKILLs at random moments")
    parser.add_argument("--processes", type=int, default=2, help="processes of the run (gloo on the CPU)")
    parser.add_argument("--epochs", type=int, default=8, help="length of the run; 6 updates per epoch")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and of the processes to kill")
    parser.add_argument("--folder", type=Path, help="folder of the runs (default: a temporary folder)")
    parser.add_argument("--report", type=Path, help="write the figures here, as JSON")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.folder or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        counts, wrong = drill(folder, arguments.kills, arguments.processes, arguments.epochs, arguments.seed)
        if wrong:
            logs = sorted(folder.glob("round_*.txt"))
            wrong.append("the end of the log:\n" + "\n".join(logs[-1].read_text().splitlines()[-15:]) if logs else "")
    figures = {
        "kills": counts.kills,
        "kills_of_one_process": counts.of_one,
        "others_noticed_and_exited": counts.noticed,
        "kills_of_all_processes": counts.of_all,
        "processes": arguments.processes,
        "starts": counts.starts,
        "starts_that_resumed_from_a_checkpoint": counts.resumed,
        "runs_finished_and_compared": counts.rounds,
        "temporary_files_left_by_kills": counts.leftovers,
        "damaged_checkpoints": counts.damaged,
        "seconds": round(counts.seconds),
        "equal_bit_for_bit": not wrong,
    }
    for name, value in figures.items():
        print(f"{name.replace('_', ' '):40s}{value}")
    for line in wrong:
        print(f"WRONG: {line}")
    if arguments.report is not None:
        arguments.report.write_text(json.dumps({**figures, "wrong": wrong}, indent=2) + "\n", encoding="utf-8")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
