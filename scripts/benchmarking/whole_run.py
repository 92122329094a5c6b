"""The training loop with batches at hand: what a run reaches if reading videos costs nothing."""

import statistics
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from benchmarking.cases import Case, build

from tc_clip.models import VideoClip
from trainers.batches import BatchPlan
from trainers.distributed.processes import Ranks
from trainers.logging.logger import LoggerContainer
from trainers.optim import WarmupCosine, build_adamw
from trainers.precision import pick_precision
from trainers.state import TrainingState
from trainers.trainer import Trainer
from trainers.videos_at_once import VideosAtOnce, memory_of
from video_datasets.batches import VideoBatch
from video_datasets.mixing import Mixing

GROUP = 4  # videos of a micro-batch, as published


@dataclass
class RunReport:
    """Median over the updates of a run; shares of the time. `first_seconds` is the first update, with compilation."""

    videos_per_second: float
    wait_share: float
    host_share: float | None
    videos_at_once: int
    first_seconds: float


class BatchesAtHand:
    """Stands for a loader: the same random micro-batch of videos in memory, again and again."""

    def __init__(self, case: Case, size: int, num_batches: int, group: int = GROUP) -> None:
        shape = (group, 1, case.num_frames, 3, size, size)
        self.num_batches = num_batches
        self.videos = torch.randint(0, 256, shape, dtype=torch.uint8)
        self.labels = torch.arange(group) % case.num_classes
        if case.device == "cuda":
            self.videos, self.labels = self.videos.pin_memory(), self.labels.pin_memory()

    def epoch(self, epoch: int, start: int = 0, stop: int | None = None) -> Iterator[VideoBatch]:
        """Yield the micro-batches of an epoch."""
        numbers = torch.arange(len(self.labels))
        for number in range(start, self.num_batches):
            yield VideoBatch(self.videos, self.labels, numbers, numbers >= 0, number, [])


def measure_run(case: Case, videos_of_update: int, num_updates: int, compiled: bool) -> RunReport:
    """Train for some updates as `main.py` does.

    Args:
        case: model, classes, precision and device; micro-batches are those of the published recipe.
    """
    device = torch.device(case.device)
    model = build(case)
    assert isinstance(model, VideoClip)
    if compiled:
        model.compile(fullgraph=True)
    precision = pick_precision(case.precision, device)
    optimizer = build_adamw(model, lr=1e-7)
    plan = BatchPlan(videos_of_update * num_updates, GROUP, videos_of_update)
    trainer = Trainer(
        TrainingState(model, optimizer, precision.scaler()),
        schedule=WarmupCosine(
            optimizer, epochs=1, warmup_epochs=0, num_micro_batches=plan.num_micro_batches, lr_min=1e-8
        ),
        loader=BatchesAtHand(case, model.input_size, plan.num_micro_batches),
        plan=plan,
        mixing=Mixing(case.num_classes),
        precision=precision,
        ranks=Ranks(device=device),
        log=LoggerContainer(),
        seed=0,
        at_once=VideosAtOnce("auto", GROUP, memory_of(device)),
    )
    reports = list(trainer.run_epoch(0))
    seconds = sum(report.seconds for report in reports[1:])
    hosts = [report.host_seconds for report in reports[1:] if report.host_seconds is not None]
    return RunReport(
        videos_of_update / statistics.median(report.seconds for report in reports[1:]),
        sum(report.wait_seconds for report in reports[1:]) / seconds,
        sum(hosts) / seconds if hosts else None,
        trainer.at_once.number,
        reports[0].seconds,
    )
