"""The training loop: epochs of exact updates over one global sequence of micro-batches."""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from trainers.batches import BatchPlan, Update
from trainers.device_copies import DeviceCopies
from trainers.distributed.gradients import GradientReducer
from trainers.distributed.processes import Ranks
from trainers.errors import TrainingError
from trainers.logging.logger import LoggerContainer
from trainers.losses import CrossEntropy
from trainers.optim import WarmupCosine
from trainers.parts.base import Outputs, Pass, run_model
from trainers.precision import Precision
from trainers.state import TrainingState
from trainers.videos_at_once import VideosAtOnce, even_share
from video_datasets.batch_colors import change_batch_colors
from video_datasets.batches import VideoBatch
from video_datasets.mixing import Mixing
from video_datasets.randomness import micro_batch_rng, part_rng
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
    host_seconds: float | None  # waiting for nothing, on this process; None on a CPU
    grad_norm: float | None  # before clipping; None if the loss was not finite
    loss_scale: float | None  # after the update; None without a loss scaler
    skipped: bool  # loss or gradient were not finite, and the weights did not change
    any_rank: Flags  # for each stop flag, whether any rank set it


class MicroBatches(Protocol):
    """What yields this rank's micro-batches of an epoch, as `TrainLoader` does."""

    def epoch(self, epoch: int, start: int = 0, stop: int | None = None) -> Iterator[VideoBatch]:
        """Yield them, from number `start` to before `stop`."""
        raise NotImplementedError


class Trainer:
    """Runs updates on a model. Ranks take an epoch's micro-batches in turn and sum their gradients once per update.

    A micro-batch is the group of videos that is mixed and draws its random numbers together. How many videos go through
    the model at once is another matter: it changes speed and memory, and nothing else.

    Args:
        state: model, optimizer and loss scaler, which updates change.
        loader: yields this rank's micro-batches of an epoch.
        plan: sizes of the epoch.
        mixing: MixUp, CutMix and label smoothing on a micro-batch; returns soft targets.
        loss: sum over videos of logits (B, C) and soft targets (B, C).
        video_name: name of a video by its index, for messages.
        clip_grad_norm: largest norm of an update's gradient, or None.
        max_bad_videos: number of unreadable videos, over all ranks, above which training stops.
        max_skipped: number of consecutive updates without a finite loss and gradient at which training stops.
        at_once: how many videos go through the model at once; None: one micro-batch.
        gradient_dtype: in which gradients are summed over the ranks, None for their own.
        sample_frames: whether to log the frames of each epoch's first videos.
    """

    def __init__(
        self,
        state: TrainingState,
        *,
        schedule: WarmupCosine,
        loader: MicroBatches,
        plan: BatchPlan,
        mixing: Mixing,
        precision: Precision,
        ranks: Ranks,
        log: LoggerContainer,
        seed: int,
        loss: Callable[[Tensor, Tensor], Tensor] | None = None,
        video_name: Callable[[int], str] = str,
        clip_grad_norm: float | None = None,
        max_bad_videos: float = float("inf"),
        max_skipped: int = 10,
        at_once: VideosAtOnce | None = None,
        gradient_dtype: torch.dtype | None = None,
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
        self.loss = loss or CrossEntropy()
        self.video_name = video_name
        self.clip_grad_norm = clip_grad_norm
        self.max_bad_videos = max_bad_videos
        self.max_skipped = max_skipped
        self.at_once = at_once or VideosAtOnce(plan.batch_size, plan.batch_size)
        self.sample_frames = sample_frames
        self.parameters = state.trained_parameters()
        self.bad_videos: dict[str, str] = {}  # path -> reason, of all ranks since the start
        # Whether the model draws random numbers, or a part changes it: this belongs to one micro-batch.
        self._draws_numbers = any(part.is_per_micro_batch for part in state.parts)
        self._needs_features = any(part.needs_features for part in state.parts)
        self._copies = DeviceCopies(ranks.device)
        self._reducer = GradientReducer(self.parameters, ranks, gradient_dtype)

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
        arriving = self.loader.epoch(epoch, first_micro_batch, self.plan.num_micro_batches)
        batches = _Arriving(iter(arriving), self._copies)
        for update in self.plan.updates(first_micro_batch):
            yield self._run_update(epoch, update, batches, stop_flags)
        for part in self.state.parts:
            part.after_epoch(epoch)

    def _run_update(
        self, epoch: int, update: Update, batches: "_Arriving", stop_flags: Callable[[], Flags]
    ) -> UpdateReport:
        start = time.perf_counter()
        state = self.state
        batches.wait_seconds = self._copies.device_seconds = 0.0
        self.ranks.set_activity(f"epoch {epoch + 1}, update {update.number + 1} of {self.plan.num_updates}")
        rates = self.schedule.set_rates(epoch, update.first)
        # A rank without a micro-batch in this update would not initialise the scaler's tensors.
        state.scaler.scale(torch.zeros((), device=self.ranks.device))
        for part in state.parts:
            part.begin_update(part_rng(self.seed, epoch, update.first, f"{part.name} of an update"))
        done: list[_Arrived] = []
        losses = None
        self._reducer.start_update()
        while losses is None:  # again from the start, in smaller pieces, if the memory does not suffice
            state.optimizer.zero_grad(set_to_none=True)
            losses = self._try_update(epoch, update, batches, done)
        self._reducer.send_rest()
        sums = self._reduce_numbers([item.batch for item in done], losses, batches.wait_seconds, stop_flags())
        self._reducer.finish(sums.used)
        grad_norm, suspects = None, []
        is_finite = sums.num_not_finite == 0
        if is_finite:
            grad_norm, is_finite = self._step()
            suspects = [item.batch for item in done]
        else:
            suspects = [item.batch for item, loss in zip(done, losses, strict=True) if not torch.isfinite(loss)]
        if is_finite:
            state.skipped["in_a_row"] = 0
            for part in state.parts:
                part.after_update()
        else:
            self._skip(epoch, update, "loss" if sums.num_not_finite else "gradient", suspects)
        seconds = time.perf_counter() - start
        host_seconds = max(0.0, seconds - batches.wait_seconds - self._copies.device_seconds)
        return UpdateReport(
            update=update,
            loss=sums.loss,
            rates={group["name"]: rate for group, rate in zip(state.optimizer.param_groups, rates, strict=True)},
            seconds=seconds,
            wait_seconds=sums.wait_seconds / self.ranks.world_size,
            host_seconds=host_seconds if self._copies.is_asynchronous else None,
            grad_norm=grad_norm,
            loss_scale=state.scaler.get_scale() if state.scaler.is_enabled() else None,
            skipped=not is_finite,
            any_rank=sums.any_rank,
        )

    def _try_update(
        self, epoch: int, update: Update, batches: "_Arriving", done: list["_Arrived"]
    ) -> list[Tensor] | None:
        """Add up this rank's gradients; return the micro-batches' losses, or None if the memory did not suffice.

        Args:
            done: micro-batches that have arrived before; those that arrive now are added.
        """
        size = self.at_once.number
        try:
            losses: list[Tensor] = []
            numbers = self._numbers(update)
            while len(losses) < len(numbers):
                count = self._groups_at_once(len(numbers) - len(losses))
                size = count * self.plan.batch_size
                while len(done) < len(losses) + count:
                    done.append(self._next(batches, numbers[len(done)], epoch))
                items, is_last = done[len(losses) : len(losses) + count], len(losses) + count == len(numbers)
                losses += self._add_gradients(items, epoch, update.num_videos, is_last)
            following = self.plan.num_updates > update.number + 1
            if following:
                numbers = self._numbers(self.plan.update(update.number + 1))
                batches.start_copies(self._groups_at_once(len(numbers)) if numbers else 0)
            return losses
        except torch.OutOfMemoryError as error:
            reason = str(error).partition("\n")[0]
        # Here, and not in the handler, which keeps the tensors of the pass.
        if self._draws_numbers or not self.at_once.lower(min(size, self.at_once.number)):
            raise torch.OutOfMemoryError(reason)
        self.log.info(f"out of memory: {self.at_once.number} videos at once from now on (rank {self.ranks.rank})")
        return None

    def _numbers(self, update: Update) -> range:
        """Return this rank's micro-batches of an update."""
        world_size = self.ranks.world_size
        return range(update.first + (self.ranks.rank - update.first) % world_size, update.last, world_size)

    def _groups_at_once(self, left: int) -> int:
        """Return how many micro-batches the next pass has."""
        return 1 if self._draws_numbers else even_share(left, self.at_once.number // self.plan.batch_size)

    def _next(self, batches: "_Arriving", number: int, epoch: int) -> "_Arrived":
        item = batches.next()
        if item.batch.number != number:
            raise RuntimeError(f"the loader yielded micro-batch {item.batch.number} instead of {number}")
        if self.sample_frames and number == 0:
            self.log.log_frames(epoch * self.plan.num_micro_batches, item.batch.training_views("cpu")[:4])
        return item

    def _add_gradients(self, items: Sequence["_Arrived"], epoch: int, num_videos: int, is_last: bool) -> list[Tensor]:
        """Run forward and backward pass of micro-batches together; return the share of each in the update's loss.

        A single micro-batch can be more videos than go through the model at once: it is mixed as a whole, and split.

        Args:
            num_videos: of the update on all ranks; its loss is the mean over them, of which this is a share.
            is_last: whether these are this rank's last micro-batches of the update.
        """
        mixed = [self._mixed(item, epoch) for item in items]
        videos, targets = (torch.cat(x) if len(x) > 1 else x[0] for x in zip(*mixed, strict=True))
        sizes = [len(item.batch) for item in items]
        most = len(videos) if len(items) > 1 or self._draws_numbers else self.at_once.next_of(len(videos))
        before = self._generator_state() if len(items) > 1 or most < len(videos) else None
        losses: list[Tensor] = []
        num_left = len(videos)
        for piece, target in zip(videos.split(most), targets.split(most), strict=True):
            num_left -= len(piece)
            parts = sizes if len(items) > 1 else [len(piece)]
            with self.at_once.measured(len(piece)):
                with self.precision.autocast():
                    outputs = run_model(self.state.model, piece, self._needs_features)
                if before is not None and not torch.equal(before, self._generator_state()):
                    self._draws_numbers = True
                    del outputs
                    return [
                        loss
                        for item in items
                        for loss in self._add_gradients([item], epoch, num_videos, is_last and item is items[-1])
                    ]
                before = None
                sums = self._losses(piece, outputs, target, parts, num_videos)
                again = [further for part in self.state.parts for further in part.further_passes()]
                for number in range(len(again) + 1):
                    is_end = is_last and not num_left and number == len(again)
                    with self._reducer.last_pass() if is_end else nullcontext():
                        if number == 0:
                            self.state.scaler.scale(sum(sums[1:], start=sums[0])).backward()
                        else:
                            self._run_again(again[number - 1], piece, target, num_videos)
            losses += [loss.detach() for loss in sums]
        return losses if len(items) > 1 else [sum(losses[1:], start=losses[0])]

    def _losses(
        self, videos: Tensor, outputs: Outputs, targets: Tensor, sizes: Sequence[int], num_videos: int
    ) -> list[Tensor]:
        """Return the shares in the update's loss of consecutive videos, `sizes` of them each."""
        pairs = zip(outputs.logits.split(sizes), targets.split(sizes), strict=True)
        losses = [self._loss_sum(*pair) / num_videos for pair in pairs]
        for part in self.state.parts:
            for logits in part.further_logits(outputs):
                triples = zip(losses, logits.split(sizes), targets.split(sizes), strict=True)
                losses = [loss + self._loss_sum(x, target) / num_videos for loss, x, target in triples]
            added = part.further_loss(videos, outputs)
            if added is not None:
                losses = [loss + added * (size / num_videos) for loss, size in zip(losses, sizes, strict=True)]
        return losses

    def _run_again(self, further: Pass, videos: Tensor, targets: Tensor, num_videos: int) -> None:
        """Run a further pass of a part, forward and backward; it has only the cross entropy."""
        with further.context:
            with self.precision.autocast():
                logits = self.state.model(videos)
            loss = self._loss_sum(logits, targets) * (further.weight / num_videos)
            self.state.scaler.scale(loss).backward()

    def _mixed(self, item: "_Arrived", epoch: int) -> tuple[Tensor, Tensor]:
        """Return a micro-batch's mixed videos (B, T, 3, H, W) and their soft targets (B, C)."""
        batch = item.batch
        videos, labels = item.take()
        if batch.encoded is not None:
            videos = batch.training_views(self.ranks.device)
        if batch.colors is not None:
            # In place: on a CPU the batch itself has to stay as it is, for a second try.
            videos = change_batch_colors(videos if self._copies.is_asynchronous else videos.clone(), batch.colors)
        rng = micro_batch_rng(self.seed, epoch, batch.number)
        pixels = normalize(videos, self.precision.dtype, *self.state.model.pixels)
        videos, targets = self.mixing(pixels, labels, rng)
        for part in self.state.parts:
            part.begin_micro_batch(part_rng(self.seed, epoch, batch.number, part.name))
        # Random numbers of the model (random seed tokens, dropout) follow from the micro-batch too, so that a run can
        # resume exactly without the state of a generator.
        torch.manual_seed(int(rng.integers(2**63)))
        return videos, targets

    def _loss_sum(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the loss, summed over videos."""
        return self.loss(logits.to(self.precision.dtype), targets.to(self.precision.dtype))

    def _generator_state(self) -> Tensor:
        """Return the state of the generators that a model on this device draws from."""
        state = torch.get_rng_state()
        if self.ranks.device.type == "cpu":
            return state
        return torch.cat((state, torch.get_device_module(self.ranks.device).get_rng_state()))

    def _reduce_numbers(
        self, done: list[VideoBatch], shares: list[Tensor], wait_seconds: float, flags: Flags
    ) -> "_Sums":
        """Sum an update's loss, waiting time and flags over the ranks, and find out which parameters have gradients.

        So that all ranks decide alike.
        """
        start = time.perf_counter()
        losses = torch.stack(shares).cpu().double() if shares else torch.zeros(0, dtype=torch.double)
        not_finite = ~torch.isfinite(losses)
        num_bad = sum(len(batch.bad_videos) for batch in done)
        numbers = torch.tensor([losses.sum(), not_finite.sum(), num_bad, wait_seconds, *flags], dtype=torch.double)
        has_grad = torch.tensor([parameter.grad is not None for parameter in self.parameters], dtype=torch.double)
        total = self.ranks.sum(torch.cat([numbers, has_grad])).tolist()
        self._copies.device_seconds += time.perf_counter() - start  # and for the other ranks
        if total[2]:
            self._report_bad_videos([video for batch in done for video in batch.bad_videos])
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

    def _step(self) -> tuple[float, bool]:
        """Update the weights.

        Return the gradient's norm before clipping, and whether the update was good: one whose gradient is not finite
        changes nothing and counts as skipped, unless the loss scaler of fp16 is still searching for its scale.
        """
        scaler = self.state.scaler
        # After the sum, so that all ranks see the same infinities and skip the same updates.
        scaler.unscale_(self.state.optimizer)
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        total_norm = nn.utils.get_total_norm(gradients)
        start = time.perf_counter()
        grad_norm = float(total_norm)
        self._copies.device_seconds += time.perf_counter() - start
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


class _Arrived:
    """A micro-batch, and the copy of its videos and labels that is on its way to the device."""

    def __init__(self, batch: VideoBatch, copies: DeviceCopies) -> None:
        self.batch = batch
        self._copies = copies
        self._copy: tuple[Tensor, Tensor] | None = self._start()

    def take(self) -> tuple[Tensor, Tensor]:
        """Return videos (B, T, 3, H, W) and labels (B,) on the device; a second call copies them again."""
        copy = self._copy or self._start()
        self._copy = None
        self._copies.finish(*copy)
        return copy

    def _start(self) -> tuple[Tensor, Tensor]:
        return self._copies.start(self.batch.videos[:, 0]), self._copies.start(self.batch.labels)


class _Arriving:
    """A loader's micro-batches; counts the seconds spent waiting for them."""

    def __init__(self, batches: Iterator[VideoBatch], copies: DeviceCopies) -> None:
        self.wait_seconds = 0.0
        self._batches = batches
        self._copies = copies
        self._ahead: deque[_Arrived] = deque()

    def next(self) -> _Arrived:
        return self._ahead.popleft() if self._ahead else self._read()

    def start_copies(self, count: int) -> None:
        """Start the copies of the next micro-batches, while the device still computes."""
        while self._copies.is_asynchronous and len(self._ahead) < count:
            self._ahead.append(self._read())

    def _read(self) -> _Arrived:
        start = time.perf_counter()
        batch = next(self._batches)
        self.wait_seconds += time.perf_counter() - start
        return _Arrived(batch, self._copies)
