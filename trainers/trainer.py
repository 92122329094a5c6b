"""The training loop: epochs of exact updates over one global sequence of micro-batches."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datasets.batch_colors import change_batch_colors
from datasets.batches import VideoBatch
from datasets.loaders import TrainLoader
from datasets.mixing import Mixing
from datasets.randomness import micro_batch_rng
from datasets.transforms import normalize
from trainers.batches import BatchPlan, Update
from trainers.distributed import Ranks
from trainers.errors import TrainingError
from trainers.optim import WarmupCosine
from trainers.precision import Precision
from trainers.run_log import RunLog


@dataclass
class UpdateReport:
    """What an update did, summed over the ranks."""

    update: Update
    loss: float
    rates: list[float]
    seconds: float
    wait_seconds: float  # spent waiting for videos, mean over the ranks
    grad_norm: float | None


@dataclass
class EpochReport:
    """Sums over an epoch's updates (since the resuming, where it was resumed)."""

    loss_sum: float = 0.0
    num_videos: int = 0
    num_updates: int = 0
    seconds: float = 0.0
    wait_seconds: float = 0.0
    bad_videos: set[str] = field(default_factory=set)

    def add(self, report: UpdateReport) -> None:
        """Add an update."""
        self.loss_sum += report.loss * report.update.num_videos
        self.num_videos += report.update.num_videos
        self.num_updates += 1
        self.seconds += report.seconds
        self.wait_seconds += report.wait_seconds

    def values(self) -> dict[str, float | int]:
        """Return what is worth logging."""
        return {
            "loss": self.loss_sum / self.num_videos,
            "videos_per_second": self.num_videos / self.seconds,
            "wait_share": self.wait_seconds / self.seconds,
            "bad_videos": len(self.bad_videos),
        }


class Trainer:
    """Runs updates on a model. Ranks take an epoch's micro-batches in turn and sum their gradients once an update.

    Args:
        loader: gives this rank's micro-batches of an epoch.
        plan: sizes of the epoch.
        mixing: MixUp, CutMix and label smoothing on a micro-batch; gives soft targets.
        clip_grad_norm: largest norm of an update's gradient, or None.
        max_bad_videos: unreadable videos, over all ranks, past which training stops.
        video_name: name of a video by its index, for messages.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        optimizer: torch.optim.Optimizer,
        schedule: WarmupCosine,
        loader: TrainLoader,
        plan: BatchPlan,
        mixing: Mixing,
        precision: Precision,
        ranks: Ranks,
        log: RunLog,
        seed: int,
        video_name: Callable[[int], str] = str,
        clip_grad_norm: float | None = None,
        max_bad_videos: float = float("inf"),
        sample_frames: bool = False,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.schedule = schedule
        self.loader = loader
        self.plan = plan
        self.mixing = mixing
        self.precision = precision
        self.ranks = ranks
        self.log = log
        self.seed = seed
        self.video_name = video_name
        self.clip_grad_norm = clip_grad_norm
        self.max_bad_videos = max_bad_videos
        self.sample_frames = sample_frames
        self.scaler = precision.scaler()
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.bad_videos: dict[str, str] = {}  # path -> reason, of all ranks since the start

    def run_epoch(self, epoch: int, first_micro_batch: int = 0) -> Iterator[UpdateReport]:
        """Run an epoch's updates from a micro-batch on, and yield after each what it did.

        Raises:
            TrainingError: where a loss is not finite, or too many videos cannot be read.
        """
        self.model.train()
        batches = iter(self.loader.epoch(epoch, start=first_micro_batch))
        for update in self.plan.updates(first_micro_batch):
            yield self._run_update(epoch, update, batches)

    def _run_update(self, epoch: int, update: Update, batches: Iterator[VideoBatch]) -> UpdateReport:
        start = time.perf_counter()
        rates = self.schedule.set_rates(epoch, update.first)
        self.optimizer.zero_grad(set_to_none=True)
        # A rank without a micro-batch in this update has not yet told the scaler its device.
        self.scaler.scale(torch.zeros((), device=self.ranks.device))
        wait_seconds = 0.0
        done: list[tuple[VideoBatch, Tensor]] = []
        for number in range(update.first, update.last):
            if number % self.ranks.world_size != self.ranks.rank:
                continue
            wait_start = time.perf_counter()
            batch = next(batches)
            wait_seconds += time.perf_counter() - wait_start
            if batch.number != number:
                raise RuntimeError(f"the loader gave micro-batch {batch.number} in place of {number}")
            if self.sample_frames and number == 0:
                self.log.sample_frames(batch.videos[:4, 0], epoch * self.plan.num_micro_batches)
            # The mean over the update's videos, wherever they are: every micro-batch brings its share of the sum.
            loss = self._loss_sum(batch, epoch) / update.num_videos
            self.scaler.scale(loss).backward()
            done.append((batch, loss.detach()))
        loss, wait_seconds, used = self._reduce_numbers(epoch, done, wait_seconds)
        grad_norm = self._step(used)
        seconds = time.perf_counter() - start
        return UpdateReport(update, loss, rates, seconds, wait_seconds / self.ranks.world_size, grad_norm)

    def _loss_sum(self, batch: VideoBatch, epoch: int) -> Tensor:
        """Return the cross entropy with soft targets, summed over a micro-batch's videos."""
        videos = batch.videos[:, 0].to(self.ranks.device, non_blocking=True)  # (B, T, 3, H, W)
        labels = batch.labels.to(self.ranks.device, non_blocking=True)
        if batch.colors is not None:
            videos = change_batch_colors(videos, batch.colors)
        rng = micro_batch_rng(self.seed, epoch, batch.number)
        videos, targets = self.mixing(normalize(videos, dtype=self.precision.dtype), labels, rng)
        with self.precision.autocast():
            logits = self.model(videos)  # (B, C)
        return F.cross_entropy(logits.to(self.precision.dtype), targets.to(self.precision.dtype), reduction="sum")

    def _reduce_numbers(
        self, epoch: int, done: list[tuple[VideoBatch, Tensor]], wait_seconds: float
    ) -> tuple[float, float, list[bool]]:
        """Sum an update's loss and waiting time over the ranks, and find out which parameters have gradients.

        Everything in one small reduction, ahead of the gradients', so that a rank in trouble stops all of them.
        """
        losses = torch.stack([loss for _, loss in done]).double().cpu() if done else torch.zeros(0, dtype=torch.double)
        finite = torch.isfinite(losses)
        num_bad = sum(len(batch.bad_videos) for batch, _ in done)
        numbers = torch.tensor([losses.sum(), (~finite).sum(), num_bad, wait_seconds], dtype=torch.double)
        has_grad = torch.tensor([parameter.grad is not None for parameter in self.parameters], dtype=torch.double)
        total = self.ranks.sum(torch.cat([numbers, has_grad])).tolist()
        if total[1]:
            bad_batches = [batch for (batch, _), is_finite in zip(done, finite.tolist(), strict=True) if not is_finite]
            self.ranks.raise_together(self._not_finite(epoch, bad_batches) if bad_batches else None)
        if total[2]:
            self._note_bad_videos([video for batch, _ in done for video in batch.bad_videos])
        return total[0], total[3], [count > 0 for count in total[4:]]

    def _not_finite(self, epoch: int, batches: list[VideoBatch]) -> TrainingError:
        names = "; ".join(
            f"micro-batch {batch.number}: {', '.join(self.video_name(index) for index in batch.indices.tolist())}"
            for batch in batches
        )
        return TrainingError(
            f"the loss is not finite in epoch {epoch + 1} ({names}); "
            "lower lr, try precision=fp32, or look at these videos"
        )

    def _note_bad_videos(self, bad_videos: list) -> None:
        """Log each unreadable video once, whichever rank met it, and stop past the configured number."""
        found = [(video.path, video.reason) for video in bad_videos]
        for path, reason in (item for items in self.ranks.gather(found) for item in items):
            if path not in self.bad_videos:
                self.bad_videos[path] = reason
                self.log.warning(f"{path}: cannot be read, another video takes its place: {reason}")
        if len(self.bad_videos) > self.max_bad_videos:
            first = "; ".join(f"{path}: {reason}" for path, reason in list(self.bad_videos.items())[:3])
            self.ranks.raise_together(
                TrainingError(
                    f"{len(self.bad_videos)} of {self.plan.num_videos} training videos cannot be read, more than "
                    f"data.max_bad_share allows; the first: {first}"
                )
            )

    def _step(self, used: list[bool]) -> float | None:
        """Sum gradients over the ranks and update the weights; return the gradient's norm where it is clipped."""
        self.ranks.sum_gradients(self.parameters, used)
        # After the sum, so that all ranks see the same infinities and skip the same updates.
        self.scaler.unscale_(self.optimizer)
        grad_norm = None
        if self.clip_grad_norm is not None:
            grad_norm = float(nn.utils.clip_grad_norm_(self.parameters, self.clip_grad_norm))
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return grad_norm
