"""What a training logs while it runs: updates, epochs, throughput, the time left, advice on loading."""

import importlib.util
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch

from trainers.batches import BatchPlan
from trainers.logging.loading_advice import cores_of_a_process, loading_advice
from trainers.logging.logger import LoggerContainer
from trainers.logging.plan import duration
from trainers.trainer import UpdateReport

ESTIMATE_AFTER = 5  # updates that the estimate leaves out: they also start workers and kernels


@dataclass
class UpdateSums:
    """Sums over updates: of an epoch (since the run resumed, if it did), or since the last line of the log."""

    loss_sum: float = 0.0
    num_videos: int = 0
    num_finite: int = 0  # videos of the updates that were not skipped
    seconds: float = 0.0
    wait_seconds: float = 0.0
    host_seconds: float | None = None  # None on a CPU
    num_skipped: int = 0
    num_updates: int = 0

    def add(self, report: UpdateReport) -> None:
        """Add an update; the loss of a skipped one does not count."""
        if report.skipped:
            self.num_skipped += 1
        else:
            self.loss_sum += report.loss * report.update.num_videos
            self.num_finite += report.update.num_videos
        self.num_updates += 1
        self.num_videos += report.update.num_videos
        self.seconds += report.seconds
        self.wait_seconds += report.wait_seconds
        if report.host_seconds is not None:
            self.host_seconds = (self.host_seconds or 0.0) + report.host_seconds

    @property
    def loss(self) -> float:
        """Mean over the videos; NaN if every update was skipped."""
        return self.loss_sum / self.num_finite if self.num_finite else float("nan")

    @property
    def videos_per_second(self) -> float:
        """Videos of all processes per second."""
        return self.num_videos / self.seconds

    @property
    def wait_share(self) -> float:
        """Share of the time that the model waited for videos."""
        return self.wait_seconds / self.seconds

    @property
    def shares(self) -> dict[str, float]:
        """Shares of the time: waiting for videos; with a GPU also the program's own, waiting for nothing."""
        host = {} if self.host_seconds is None else {"host_share": self.host_seconds / self.seconds}
        return {"wait_share": self.wait_share, **host}

    @property
    def waiting(self) -> str:
        """These shares in words."""
        host = self.shares.get("host_share")
        return f"waiting for data {self.wait_share:.0%}" + ("" if host is None else f", host {host:.0%}")


class ProgressReporter:
    """Logs the updates and epochs of a training.

    Args:
        plan: sizes of an epoch.
        print_every: updates between lines of the log.
        device: whose memory is reported.
        num_workers: processes that read training videos, on each rank.
        is_validated: whether an epoch ends with a validation.
    """

    def __init__(
        self,
        log: LoggerContainer,
        plan: BatchPlan,
        *,
        epochs: int,
        print_every: int,
        device: torch.device,
        num_workers: int,
        is_validated: Callable[[int], bool],
    ) -> None:
        self.log = log
        self.plan = plan
        self.epochs = epochs
        self.print_every = print_every
        self.device = device
        self.num_workers = num_workers
        self.is_validated = is_validated
        self.validation_seconds = 0.0  # of the last validation, for the estimate
        self._epoch = self._first_update = 0
        self._whole, self._recent = UpdateSums(), UpdateSums()
        self._updates, self._seconds = 0, 0.0  # of this process, for the estimate
        self._reported_wait_share = -1.0

    def start_epoch(self, epoch: int, first_update: int) -> None:
        """Begin an epoch at one of its updates."""
        self._epoch, self._first_update = epoch, first_update
        self._whole, self._recent = UpdateSums(), UpdateSums()
        self.log.log_progress(f"epoch {epoch + 1}/{self.epochs}", first_update, self.plan.num_updates)

    def log_update(self, report: UpdateReport) -> None:
        """Log an update."""
        number = report.update.number + 1
        self._whole.add(report)
        self._recent.add(report)
        self._updates += 1
        if self._updates > ESTIMATE_AFTER:
            self._seconds += report.seconds
        seconds_left = self._seconds_left(number)
        if self._updates == 2 * ESTIMATE_AFTER:
            self.log.info(f"estimate: {duration(seconds_left)} of training left")
        left = f"ETA {duration(seconds_left)}" if self._updates > ESTIMATE_AFTER else "ETA unknown yet"
        note = f"loss {report.loss:.3f}, {self._recent.videos_per_second:.1f} videos/s, {left}"
        self.log.log_progress(f"epoch {self._epoch + 1}/{self.epochs}", number, self.plan.num_updates, note)
        if number % self.print_every == 0 or number == self.plan.num_updates:
            self._log_numbers(report, left)
            self._recent = UpdateSums()

    def end_epoch(self, num_bad_videos: int) -> None:
        """Log an epoch.

        Args:
            num_bad_videos: unreadable training videos since the run started.
        """
        whole, step = self._whole, (self._epoch + 1) * self.plan.num_micro_batches
        values: dict[str, float | int] = {
            "epoch": self._epoch + 1,
            "loss": whole.loss,
            "videos_per_second": whole.videos_per_second,
            **whole.shares,
            "bad_videos": num_bad_videos,
            "updates": whole.num_updates,
        }
        if whole.num_skipped:
            values["skipped_updates"] = whole.num_skipped
        self.log.log_metrics("epoch", step, values)
        first = self._first_update + 1
        since = "" if first == 1 else f" (of updates {first} to {self.plan.num_updates}, since the run resumed)"
        self.log.info(
            f"epoch {self._epoch + 1}/{self.epochs} done{since}: loss {whole.loss:.4f}, "
            f"{whole.videos_per_second:.1f} videos/s, "
            f"{whole.waiting} of the time, {duration(whole.seconds)}"
            + (f", {num_bad_videos} unreadable videos" if num_bad_videos else "")
            + (f", {whole.num_skipped} updates skipped (loss not finite)" if whole.num_skipped else "")
        )
        advice = loading_advice(whole.wait_share, whole.videos_per_second, self.num_workers, cores_of_a_process())
        # Every epoch's line has the share; the advice is repeated only if it has become much worse.
        if advice is not None and whole.wait_share >= self._reported_wait_share + 0.1:
            self.log.warning(advice)
            self._reported_wait_share = whole.wait_share

    def _log_numbers(self, report: UpdateReport, left: str) -> None:
        recent, update = self._recent, report.update
        rate, *other_rates = report.rates.items()
        values: dict[str, float | int | str | None] = {
            "epoch": self._epoch + update.last / self.plan.num_micro_batches,
            "loss": recent.loss,
            "lr": rate[1],
            "videos_per_second": recent.videos_per_second,
            **recent.shares,
            "updates": recent.num_updates,
            "memory_gib": peak_memory_gib(self.device),
        }
        values |= {f"lr_{name}": value for name, value in other_rates}
        if report.loss_scale is not None:
            values["loss_scale"] = report.loss_scale
        if report.grad_norm is not None and math.isfinite(report.grad_norm):
            values["grad_norm"] = report.grad_norm
        self.log.log_metrics("train", self._epoch * self.plan.num_micro_batches + update.last, values)
        if not self.log.shows_bar:
            self.log.info(
                f"epoch {self._epoch + 1}/{self.epochs}, update {update.number + 1}/{self.plan.num_updates}: "
                f"loss {recent.loss:.4f}, lr {rate[1]:.2e}, {recent.videos_per_second:.1f} videos/s, "
                f"{recent.waiting}, {left}"
            )

    def _seconds_left(self, done: int) -> float:
        """Return the estimated time of all updates and validations that are left after `done` updates of the epoch."""
        by_update = self._seconds / max(1, self._updates - ESTIMATE_AFTER)
        validations = sum(self.is_validated(epoch) for epoch in range(self._epoch, self.epochs))
        updates_left = (self.epochs - self._epoch) * self.plan.num_updates - done
        return by_update * updates_left + validations * self.validation_seconds


def peak_memory_gib(device: torch.device) -> float:
    """Return the largest memory so far: of this process's tensors on its GPU, or of the process itself on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    if importlib.util.find_spec("resource") is None:  # Windows has no such figure
        return float("nan")
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB here
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
