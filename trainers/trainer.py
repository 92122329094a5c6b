"""The training loop: epochs of exact updates over one global sequence of micro-batches."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tc_clip.protocol import VideoModel
from trainers.batches import BatchPlan, Update
from trainers.distributed.processes import Ranks
from trainers.errors import TrainingError
from trainers.logging.run_log import RunLog
from trainers.optim import WarmupCosine
from trainers.precision import Precision
from video_datasets.batch_colors import change_batch_colors
from video_datasets.batches import VideoBatch
from video_datasets.loaders import TrainLoader
from video_datasets.mixing import Mixing
from video_datasets.randomness import micro_batch_rng
from video_datasets.transforms import normalize


@dataclass
class UpdateReport:
    """What an update did, summed over the ranks."""

    update: Update
    loss: float
    rates: list[float]
    seconds: float
    wait_seconds: float  # spent waiting for videos, mean over the ranks
    grad_norm: float | None  # before clipping; None where the loss was not finite
    skipped: bool = False  # loss or gradient were not finite, and the weights stay as they were
    wishes: tuple[bool, ...] = ()  # see `Trainer.wishes`, of any rank


@dataclass
class EpochReport:
    """Sums over an epoch's updates (since the resuming, where it was resumed)."""

    loss_sum: float = 0.0
    num_videos: int = 0
    num_finite: int = 0  # videos of the updates that were not skipped
    num_updates: int = 0
    seconds: float = 0.0
    wait_seconds: float = 0.0
    num_skipped: int = 0
    bad_videos: set[str] = field(default_factory=set)

    def add(self, report: UpdateReport) -> None:
        """Add an update; the loss of a skipped one does not count."""
        if report.skipped:
            self.num_skipped += 1
        else:
            self.loss_sum += report.loss * report.update.num_videos
        self.num_videos += report.update.num_videos
        self.num_finite += 0 if report.skipped else report.update.num_videos
        self.num_updates += 1
        self.seconds += report.seconds
        self.wait_seconds += report.wait_seconds

    @property
    def loss(self) -> float:
        """Mean over the videos; NaN where every update was skipped."""
        return self.loss_sum / self.num_finite if self.num_finite else float("nan")

    def values(self) -> dict[str, float | int]:
        """Return what is worth logging."""
        return {
            "loss": self.loss,
            "videos_per_second": self.num_videos / self.seconds,
            "wait_share": self.wait_seconds / self.seconds,
            "bad_videos": len(self.bad_videos),
            **({"skipped_updates": self.num_skipped} if self.num_skipped else {}),
        }


class Trainer:
    """Runs updates on a model. Ranks take an epoch's micro-batches in turn and sum their gradients once an update.

    Args:
        loader: gives this rank's micro-batches of an epoch.
        plan: sizes of the epoch.
        mixing: MixUp, CutMix and label smoothing on a micro-batch; gives soft targets.
        clip_grad_norm: largest norm of an update's gradient, or None.
        max_bad_videos: unreadable videos, over all ranks, past which training stops.
        max_skipped: updates in a row without a finite loss and gradient at which training stops.
        wishes: questions put to every rank at every update; a report has those that any rank answers with yes.
        video_name: name of a video by its index, for messages.
    """

    def __init__(
        self,
        model: VideoModel,
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
        max_skipped: int = 10,
        wishes: Callable[[], tuple[bool, ...]] = tuple,
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
        self.max_skipped = max_skipped
        self.wishes = wishes
        self.skipped = {"total": 0, "in_a_row": 0}
        self.sample_frames = sample_frames
        self.scaler = precision.scaler()
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.bad_videos: dict[str, str] = {}  # path -> reason, of all ranks since the start

    def run_epoch(self, epoch: int, first_micro_batch: int = 0) -> Iterator[UpdateReport]:
        """Run an epoch's updates from a micro-batch on, and yield after each what it did.

        Raises:
            TrainingError: where too many losses in a row are not finite, or too many videos cannot be read.
        """
        self.model.train()
        batches = iter(self.loader.epoch(epoch, start=first_micro_batch))
        for update in self.plan.updates(first_micro_batch):
            yield self._run_update(epoch, update, batches)

    def _run_update(self, epoch: int, update: Update, batches: Iterator[VideoBatch]) -> UpdateReport:
        start = time.perf_counter()
        self.ranks.set_activity(f"epoch {epoch + 1}, update {update.number + 1} of {self.plan.num_updates}")
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
        numbers = self._reduce_numbers(done, wait_seconds)
        grad_norm, bad_batches = None, []
        is_finite = numbers.num_not_finite == 0
        if is_finite:
            grad_norm, is_finite = self._step(numbers.used)
            bad_batches = [batch for batch, _ in done]
        else:
            bad_batches = [batch for batch, loss in done if not torch.isfinite(loss)]
        if is_finite:
            self.skipped["in_a_row"] = 0
        else:
            what = "loss" if numbers.num_not_finite else "gradient"
            self._skip(epoch, update, what, bad_batches)
        seconds = time.perf_counter() - start
        wait_seconds = numbers.wait_seconds / self.ranks.world_size
        return UpdateReport(
            update, numbers.loss, rates, seconds, wait_seconds, grad_norm, not is_finite, numbers.wishes
        )

    def _loss_sum(self, batch: VideoBatch, epoch: int) -> Tensor:
        """Return the cross entropy with soft targets, summed over a micro-batch's videos."""
        videos = batch.videos[:, 0].to(self.ranks.device, non_blocking=True)  # (B, T, 3, H, W)
        labels = batch.labels.to(self.ranks.device, non_blocking=True)
        if batch.colors is not None:
            videos = change_batch_colors(videos, batch.colors)
        rng = micro_batch_rng(self.seed, epoch, batch.number)
        videos, targets = self.mixing(normalize(videos, dtype=self.precision.dtype), labels, rng)
        # What a model leaves to chance (random seed tokens, dropout) follows from the micro-batch too, so that runs can
        # go on exactly: no generator's state needs to be kept.
        torch.manual_seed(int(rng.integers(2**63)))
        with self.precision.autocast():
            logits = self.model(videos)  # (B, C)
        return F.cross_entropy(logits.to(self.precision.dtype), targets.to(self.precision.dtype), reduction="sum")

    def _reduce_numbers(self, done: list[tuple[VideoBatch, Tensor]], wait_seconds: float) -> "_Numbers":
        """Sum an update's loss and waiting time over the ranks, and find out which parameters have gradients.

        Everything in one small reduction, ahead of the gradients', so that all ranks decide alike.
        """
        losses = torch.stack([loss for _, loss in done]).cpu().double() if done else torch.zeros(0, dtype=torch.double)
        not_finite = ~torch.isfinite(losses)
        num_bad = sum(len(batch.bad_videos) for batch, _ in done)
        wishes = self.wishes()
        numbers = torch.tensor([losses.sum(), not_finite.sum(), num_bad, wait_seconds, *wishes], dtype=torch.double)
        has_grad = torch.tensor([parameter.grad is not None for parameter in self.parameters], dtype=torch.double)
        total = self.ranks.sum(torch.cat([numbers, has_grad])).tolist()
        if total[2]:
            self._note_bad_videos([video for batch, _ in done for video in batch.bad_videos])
        granted, used = total[4 : 4 + len(wishes)], total[4 + len(wishes) :]
        return _Numbers(
            total[0], int(total[1]), total[3], tuple(count > 0 for count in granted), [count > 0 for count in used]
        )

    def _skip(self, epoch: int, update: Update, what: str, batches: list[VideoBatch]) -> None:
        """Count an update that is left out, name its videos, and stop past the configured number in a row."""
        self.optimizer.zero_grad(set_to_none=True)
        self.skipped["total"] += 1
        self.skipped["in_a_row"] += 1
        names = [(batch.number, [self.video_name(index) for index in batch.indices.tolist()]) for batch in batches]
        gathered = sorted(item for items in self.ranks.all_gather(names) for item in items)
        videos = "; ".join(f"micro-batch {number}: {', '.join(paths)}" for number, paths in gathered)
        where = f"epoch {epoch + 1}, update {update.number + 1}"
        self.log.warning(
            f"{where}: the {what} is not finite, the update is skipped ({self.skipped['in_a_row']} in a row, "
            f"{self.skipped['total']} in all): {videos}"
        )
        if self.skipped["in_a_row"] >= self.max_skipped:
            self.ranks.raise_together(
                TrainingError(
                    f"the {what} is not finite in {self.skipped['in_a_row']} updates in a row (max_skipped), the last "
                    f"of them {where} ({videos}); lower lr, try precision=fp32, or look at these videos"
                )
            )

    def _note_bad_videos(self, bad_videos: list) -> None:
        """Log each unreadable video once, whichever rank met it, and stop past the configured number."""
        found = [(video.path, video.reason) for video in bad_videos]
        for path, reason in (item for items in self.ranks.all_gather(found) for item in items):
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

    def _step(self, used: list[bool]) -> tuple[float, bool]:
        """Sum gradients over the ranks and update the weights.

        Return the gradient's norm before clipping, and whether the update counts: one whose gradient is not finite is
        left out and does not count, except where the loss scaler of fp16 is still searching for its scale.
        """
        self.ranks.sum_gradients(self.parameters, used)
        # After the sum, so that all ranks see the same infinities and skip the same updates.
        self.scaler.unscale_(self.optimizer)
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        total_norm = nn.utils.get_total_norm(gradients)
        grad_norm = float(total_norm)
        if self.clip_grad_norm is not None:
            nn.utils.clip_grads_with_norm_(self.parameters, self.clip_grad_norm, total_norm)
        is_finite = math.isfinite(grad_norm)
        if self.scaler.is_enabled():
            searching = self.scaler.get_scale() > 1
            self.scaler.step(self.optimizer)  # leaves the weights alone where a gradient is not finite
            self.scaler.update()
            return grad_norm, is_finite or searching
        if is_finite:
            self.optimizer.step()
        return grad_norm, is_finite


@dataclass(frozen=True)
class _Numbers:
    """Sums over the ranks of one update; `used`: for each parameter, whether any rank has a gradient of it."""

    loss: float
    num_not_finite: int
    wait_seconds: float
    wishes: tuple[bool, ...]
    used: list[bool]
