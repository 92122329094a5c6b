"""The training loop: epochs of exact updates over one global sequence of micro-batches."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainers.batches import BatchPlan, Update
from trainers.distributed.processes import Ranks
from trainers.errors import TrainingError
from trainers.logging.logger import LoggerContainer
from trainers.optim import WarmupCosine
from trainers.precision import Precision
from trainers.state import TrainingState
from video_datasets.batch_colors import change_batch_colors
from video_datasets.batches import VideoBatch
from video_datasets.loaders import TrainLoader
from video_datasets.mixing import Mixing
from video_datasets.randomness import micro_batch_rng
from video_datasets.transforms import normalize
from video_datasets.video_dataset import BadVideo

Flags = tuple[bool, ...]


@dataclass
class UpdateReport:
    """What an update did, summed over the ranks."""

    update: Update
    loss: float
    rates: dict[str, float]  # learning rate of each parameter group
    seconds: float
    wait_seconds: float  # spent waiting for videos, mean over the ranks
    grad_norm: float | None  # before clipping; None if the loss was not finite
    loss_scale: float | None  # after the update; None without a loss scaler
    skipped: bool  # loss or gradient were not finite, and the weights did not change
    any_rank: Flags  # for each stop flag, whether any rank set it


class Trainer:
    """Runs updates on a model. Ranks take an epoch's micro-batches in turn and sum their gradients once per update.

    Args:
        state: model, optimizer and loss scaler, which updates change.
        loader: yields this rank's micro-batches of an epoch.
        plan: sizes of the epoch.
        mixing: MixUp, CutMix and label smoothing on a micro-batch; returns soft targets.
        video_name: name of a video by its index, for messages.
        clip_grad_norm: largest norm of an update's gradient, or None.
        max_bad_videos: number of unreadable videos, over all ranks, above which training stops.
        max_skipped: number of consecutive updates without a finite loss and gradient at which training stops.
        sample_frames: whether to log the frames of each epoch's first videos.
    """

    def __init__(
        self,
        state: TrainingState,
        *,
        schedule: WarmupCosine,
        loader: TrainLoader,
        plan: BatchPlan,
        mixing: Mixing,
        precision: Precision,
        ranks: Ranks,
        log: LoggerContainer,
        seed: int,
        video_name: Callable[[int], str] = str,
        clip_grad_norm: float | None = None,
        max_bad_videos: float = float("inf"),
        max_skipped: int = 10,
        sample_frames: bool = False,
    ) -> None:
        self.state = state
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
        self.sample_frames = sample_frames
        self.parameters = [parameter for parameter in state.model.parameters() if parameter.requires_grad]
        self.bad_videos: dict[str, str] = {}  # path -> reason, of all ranks since the start

    def run_epoch(
        self, epoch: int, first_micro_batch: int = 0, stop_flags: Callable[[], Flags] = tuple
    ) -> Iterator[UpdateReport]:
        """Run an epoch's updates from a micro-batch on, and yield a report after each.

        Args:
            stop_flags: called on every rank in every update; a report has, for each flag, whether any rank set it.

        Raises:
            TrainingError: if too many consecutive losses are not finite, or too many videos cannot be read.
        """
        self.state.model.train()
        batches = iter(self.loader.epoch(epoch, first_micro_batch, self.plan.num_micro_batches))
        for update in self.plan.updates(first_micro_batch):
            yield self._run_update(epoch, update, batches, stop_flags)

    def _run_update(
        self, epoch: int, update: Update, batches: Iterator[VideoBatch], stop_flags: Callable[[], Flags]
    ) -> UpdateReport:
        start = time.perf_counter()
        state = self.state
        self.ranks.set_activity(f"epoch {epoch + 1}, update {update.number + 1} of {self.plan.num_updates}")
        rates = self.schedule.set_rates(epoch, update.first)
        state.optimizer.zero_grad(set_to_none=True)
        # A rank without a micro-batch in this update would not initialise the scaler's tensors.
        state.scaler.scale(torch.zeros((), device=self.ranks.device))
        wait_seconds = 0.0
        done: list[tuple[VideoBatch, Tensor]] = []
        for number in range(update.first, update.last):
            if number % self.ranks.world_size != self.ranks.rank:
                continue
            wait_start = time.perf_counter()
            batch = next(batches)
            wait_seconds += time.perf_counter() - wait_start
            if batch.number != number:
                raise RuntimeError(f"the loader yielded micro-batch {batch.number} instead of {number}")
            if self.sample_frames and number == 0:
                self.log.log_frames(epoch * self.plan.num_micro_batches, batch.videos[:4, 0])
            # The mean over the update's videos on all ranks: every micro-batch adds its share of the sum.
            loss = self._loss_sum(batch, epoch) / update.num_videos
            state.scaler.scale(loss).backward()
            done.append((batch, loss.detach()))
        sums = self._reduce_numbers(done, wait_seconds, stop_flags())
        grad_norm, suspects = None, []
        is_finite = sums.num_not_finite == 0
        if is_finite:
            grad_norm, is_finite = self._step(sums.used)
            suspects = [batch for batch, _ in done]
        else:
            suspects = [batch for batch, loss in done if not torch.isfinite(loss)]
        if is_finite:
            state.skipped["in_a_row"] = 0
        else:
            self._skip(epoch, update, "loss" if sums.num_not_finite else "gradient", suspects)
        return UpdateReport(
            update=update,
            loss=sums.loss,
            rates={group["name"]: rate for group, rate in zip(state.optimizer.param_groups, rates, strict=True)},
            seconds=time.perf_counter() - start,
            wait_seconds=sums.wait_seconds / self.ranks.world_size,
            grad_norm=grad_norm,
            loss_scale=state.scaler.get_scale() if state.scaler.is_enabled() else None,
            skipped=not is_finite,
            any_rank=sums.any_rank,
        )

    def _loss_sum(self, batch: VideoBatch, epoch: int) -> Tensor:
        """Return the cross entropy with soft targets, summed over a micro-batch's videos."""
        videos = batch.videos[:, 0].to(self.ranks.device, non_blocking=True)  # (B, T, 3, H, W)
        labels = batch.labels.to(self.ranks.device, non_blocking=True)
        if batch.colors is not None:
            videos = change_batch_colors(videos, batch.colors)
        rng = micro_batch_rng(self.seed, epoch, batch.number)
        pixels = normalize(videos, self.precision.dtype, *self.state.model.pixels)
        videos, targets = self.mixing(pixels, labels, rng)
        # Random numbers of the model (random seed tokens, dropout) follow from the micro-batch too, so that a run can
        # resume exactly without the state of a generator.
        torch.manual_seed(int(rng.integers(2**63)))
        with self.precision.autocast():
            logits = self.state.model(videos)  # (B, C)
        return F.cross_entropy(logits.to(self.precision.dtype), targets.to(self.precision.dtype), reduction="sum")

    def _reduce_numbers(self, done: list[tuple[VideoBatch, Tensor]], wait_seconds: float, flags: Flags) -> "_Sums":
        """Sum an update's loss, waiting time and flags over the ranks, and find out which parameters have gradients.

        One small reduction before that of the gradients, so that all ranks decide alike.
        """
        losses = torch.stack([loss for _, loss in done]).cpu().double() if done else torch.zeros(0, dtype=torch.double)
        not_finite = ~torch.isfinite(losses)
        num_bad = sum(len(batch.bad_videos) for batch, _ in done)
        numbers = torch.tensor([losses.sum(), not_finite.sum(), num_bad, wait_seconds, *flags], dtype=torch.double)
        has_grad = torch.tensor([parameter.grad is not None for parameter in self.parameters], dtype=torch.double)
        total = self.ranks.sum(torch.cat([numbers, has_grad])).tolist()
        if total[2]:
            self._report_bad_videos([video for batch, _ in done for video in batch.bad_videos])
        any_rank, used = total[4 : 4 + len(flags)], total[4 + len(flags) :]
        return _Sums(
            total[0], int(total[1]), total[3], tuple(count > 0 for count in any_rank), [count > 0 for count in used]
        )

    def _skip(self, epoch: int, update: Update, what: str, batches: list[VideoBatch]) -> None:
        """Count a skipped update, name its videos, and stop after `max_skipped` in a row."""
        skipped = self.state.skipped
        self.state.optimizer.zero_grad(set_to_none=True)
        skipped["total"] += 1
        skipped["in_a_row"] += 1
        names = [(batch.number, [self.video_name(index) for index in batch.indices.tolist()]) for batch in batches]
        gathered = sorted(item for items in self.ranks.all_gather(names) for item in items)
        videos = "; ".join(f"micro-batch {number}: {', '.join(paths)}" for number, paths in gathered)
        where = f"epoch {epoch + 1}, update {update.number + 1}"
        self.log.warning(
            f"{where}: the {what} is not finite, the update is skipped ({skipped['in_a_row']} in a row, "
            f"{skipped['total']} in all): {videos}"
        )
        if skipped["in_a_row"] >= self.max_skipped:
            self.ranks.raise_together(
                TrainingError(
                    f"the {what} is not finite in {skipped['in_a_row']} updates in a row (max_skipped), the last "
                    f"of them {where} ({videos}); lower lr, try precision=fp32, or look at these videos"
                )
            )

    def _report_bad_videos(self, bad_videos: list[BadVideo]) -> None:
        """Log each unreadable video of any rank once, and stop if there are more than `max_bad_videos`."""
        found = [(video.path, video.reason) for video in bad_videos]
        for path, reason in (item for items in self.ranks.all_gather(found) for item in items):
            if path not in self.bad_videos:
                self.bad_videos[path] = reason
                self.log.warning(f"{path}: cannot be read, replaced by another video: {reason}")
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

        Return the gradient's norm before clipping, and whether the update was good: one whose gradient is not finite
        changes nothing and counts as skipped, unless the loss scaler of fp16 is still searching for its scale.
        """
        self.ranks.sum_gradients(self.parameters, used)
        scaler = self.state.scaler
        # After the sum, so that all ranks see the same infinities and skip the same updates.
        scaler.unscale_(self.state.optimizer)
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        total_norm = nn.utils.get_total_norm(gradients)
        grad_norm = float(total_norm)
        if self.clip_grad_norm is not None:
            nn.utils.clip_grads_with_norm_(self.parameters, self.clip_grad_norm, total_norm)
        is_finite = math.isfinite(grad_norm)
        if scaler.is_enabled():
            searching = scaler.get_scale() > 1
            scaler.step(self.state.optimizer)  # skips the step if a gradient is not finite
            scaler.update()
            return grad_norm, is_finite or searching
        if is_finite:
            self.state.optimizer.step()
        return grad_norm, is_finite


@dataclass(frozen=True)
class _Sums:
    """Sums over the ranks of one update; `used`: for each parameter, whether any rank has a gradient of it."""

    loss: float
    num_not_finite: int
    wait_seconds: float
    any_rank: Flags
    used: list[bool]
