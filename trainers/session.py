"""A training run from first to last epoch: epochs, validation, checkpoints, continuing, and what is told meanwhile."""

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainers.checkpoint import BEST, LAST, load_training_checkpoint, save_checkpoint
from trainers.evaluator import Evaluation
from trainers.loading_advice import cores_of_a_process, loading_advice
from trainers.plan import duration
from trainers.trainer import EpochReport, Trainer, UpdateReport

ESTIMATE_AFTER = 5  # updates until the time of one is believed; the first ones also start workers and kernels


@dataclass
class Position:
    """Where a run stands: the next micro-batch, and the numbers of the best validation (None before the first)."""

    epoch: int = 0
    micro_batch: int = 0
    best: dict[str, float | int] | None = None


class TrainingRun:
    """Trains for a number of epochs, and can go on where it was interrupted.

    Args:
        validate: evaluates the model on the validation list; the model is in training mode again afterwards.
        output: folder of the checkpoints.
        save_freq: epochs between validations (each followed by writing `last.pth`).
        keep_every: epochs between kept copies, or None.
        save_updates: updates between further writings of `last.pth`, or None.
        run_numbers: what must be equal for a run to be continued.
        config: stored in checkpoints.
        print_every: updates between lines of the log.
    """

    def __init__(
        self,
        trainer: Trainer,
        validate: Callable[[], Evaluation],
        *,
        output: Path,
        epochs: int,
        save_freq: int,
        keep_every: int | None,
        save_updates: int | None,
        run_numbers: dict[str, Any],
        config: dict[str, Any],
        print_every: int,
    ) -> None:
        self.trainer = trainer
        self.validate = validate
        self.output = output
        self.epochs = epochs
        self.save_freq = save_freq
        self.keep_every = keep_every
        self.save_updates = save_updates
        self.run_numbers = run_numbers
        self.config = config
        self.print_every = print_every
        self.position = Position()
        self._seconds = 0.0  # of this process's updates, for the estimate
        self._updates = 0
        self._validation_seconds = 0.0

    @property
    def step(self) -> int:
        """Micro-batches consumed since the run began."""
        return self.position.epoch * self.trainer.plan.num_micro_batches + self.position.micro_batch

    def load_last(self) -> bool:
        """Go on from `last.pth`; return False where there is none.

        Raises:
            CheckpointError: where it is damaged or belongs to another run.
        """
        path = self.output / LAST
        if not path.exists():
            return False
        checkpoint = load_training_checkpoint(path, self.run_numbers)
        self.trainer.model.load_state_dict(checkpoint["model"])
        self.trainer.optimizer.load_state_dict(checkpoint["optimizer"])
        if checkpoint["scaler"] is not None:
            self.trainer.scaler.load_state_dict(checkpoint["scaler"])
        self.position = Position(checkpoint["epoch"], checkpoint["micro_batch"], checkpoint["best"])
        return True

    def fit(self) -> Position:
        """Train until the last epoch is done; return the final position."""
        while self.position.epoch < self.epochs:
            self._run_epoch()
        return self.position

    def is_validated(self, epoch: int) -> bool:
        """Whether an epoch ends with validation and checkpoint: every `save_freq`, and the last."""
        return (epoch + 1) % self.save_freq == 0 or epoch + 1 == self.epochs

    def _run_epoch(self) -> None:
        log, plan, epoch = self.trainer.log, self.trainer.plan, self.position.epoch
        report = EpochReport()
        recent = EpochReport()
        first = self.position.micro_batch // plan.accumulation
        log.start_bar(f"epoch {epoch + 1}/{self.epochs}", plan.num_updates, first)
        for done in self.trainer.run_epoch(epoch, self.position.micro_batch):
            self.position.micro_batch = done.update.last
            report.add(done)
            recent.add(done)
            self._count(done)
            log.advance_bar(f"loss {done.loss:.3f}, {recent.num_videos / recent.seconds:.1f} videos/s, {self._eta()}")
            if (done.update.number + 1) % self.print_every == 0 or done.update.last == plan.num_micro_batches:
                self._tell(done, recent)
                recent = EpochReport()
            ends_epoch = done.update.last == plan.num_micro_batches
            if self.save_updates and (done.update.number + 1) % self.save_updates == 0 and not ends_epoch:
                self._save_last()
        log.close_bar()
        report.bad_videos = set(self.trainer.bad_videos)
        values = report.values()
        step = (epoch + 1) * plan.num_micro_batches
        log.metrics("epoch", step, {"epoch": epoch + 1, **values})
        log.info(
            f"epoch {epoch + 1}/{self.epochs} done: loss {values['loss']:.4f}, "
            f"{values['videos_per_second']:.1f} videos/s, "
            f"waiting for data {values['wait_share']:.0%} of the time, {duration(report.seconds)}"
            + (f", {values['bad_videos']} unreadable videos" if values["bad_videos"] else "")
        )
        speed = values["wait_share"], values["videos_per_second"]
        advice = loading_advice(*speed, self.config["num_workers"], cores_of_a_process())
        if advice is not None:
            log.warning(advice)
        self.position.epoch, self.position.micro_batch = epoch + 1, 0
        if self.is_validated(epoch):
            self._validate_and_save(epoch)

    def _validate_and_save(self, epoch: int) -> None:
        log = self.trainer.log
        start = time.perf_counter()
        evaluation = self.validate()
        self._validation_seconds = time.perf_counter() - start
        top1 = evaluation.counts.top1
        log.metrics("val", self.step, {"epoch": epoch + 1, **evaluation.values()})
        is_best = self.position.best is None or top1 > self.position.best["top1"]
        if is_best:
            self.position.best = {"epoch": epoch + 1, **evaluation.values()}
        log.info(
            f"epoch {epoch + 1}/{self.epochs} validation: top-1 {top1:.2f} %, top-5 {evaluation.counts.top5:.2f} % of "
            f"{evaluation.counts.num_videos:,} videos, {duration(evaluation.seconds)}"
            + (f", {len(evaluation.unreadable)} unreadable" if evaluation.unreadable else "")
            + (", the best so far" if is_best else f" (best: {self.position.best['top1']:.2f} %)")
        )
        if self.trainer.ranks.is_main and is_best:
            save_checkpoint(self.output / BEST, self._checkpoint(with_optimizer=False))
        self._save_last()
        if self.trainer.ranks.is_main and self.keep_every and (epoch + 1) % self.keep_every == 0:
            _copy(self.output / LAST, self.output / f"epoch_{epoch + 1:03d}.pth")

    def _save_last(self) -> None:
        # `last.pth` comes after `best.pth`: a run cut between the two repeats the epoch and finds the same.
        if self.trainer.ranks.is_main:
            save_checkpoint(self.output / LAST, self._checkpoint(with_optimizer=True))
        self.trainer.ranks.barrier()

    def _checkpoint(self, with_optimizer: bool) -> dict[str, Any]:
        trainer = self.trainer
        return {
            "model": {name: value.detach().cpu() for name, value in trainer.model.state_dict().items()},
            "model_info": trainer.model.info(),
            "optimizer": trainer.optimizer.state_dict() if with_optimizer else None,
            "scaler": trainer.scaler.state_dict() if with_optimizer and trainer.scaler.is_enabled() else None,
            "epoch": self.position.epoch,
            "micro_batch": self.position.micro_batch,
            "best": self.position.best,
            "run": self.run_numbers,
            "config": self.config,
        }

    def _count(self, done: UpdateReport) -> None:
        """Measure updates for the estimate, and tell it once it is worth something."""
        self._updates += 1
        if self._updates > ESTIMATE_AFTER:
            self._seconds += done.seconds
        if self._updates == 2 * ESTIMATE_AFTER:
            self.trainer.log.info(f"estimate: {duration(self._seconds_left())} of training left")

    def _seconds_left(self) -> float:
        """Return the estimated time of the updates and of the known validations that are left."""
        plan = self.trainer.plan
        done = self.position.epoch * plan.num_updates + -(-self.position.micro_batch // plan.accumulation)
        by_update = self._seconds / max(1, self._updates - ESTIMATE_AFTER)
        validations = sum(self.is_validated(epoch) for epoch in range(self.position.epoch, self.epochs))
        return by_update * (self.epochs * plan.num_updates - done) + validations * self._validation_seconds

    def _eta(self) -> str:
        return f"ETA {duration(self._seconds_left())}" if self._updates > ESTIMATE_AFTER else "ETA unknown yet"

    def _tell(self, done: UpdateReport, recent: EpochReport) -> None:
        log, plan = self.trainer.log, self.trainer.plan
        values = {
            "epoch": self.position.epoch + done.update.last / plan.num_micro_batches,
            "loss": recent.loss_sum / recent.num_videos,
            "lr": done.rates[0],
            "videos_per_second": recent.num_videos / recent.seconds,
            "wait_share": recent.wait_seconds / recent.seconds,
        }
        groups = self.trainer.optimizer.param_groups
        values |= {f"lr_{group['name']}": rate for group, rate in zip(groups[1:], done.rates[1:], strict=True)}
        if self.trainer.scaler.is_enabled():
            values["loss_scale"] = self.trainer.scaler.get_scale()
        if done.grad_norm is not None:
            values["grad_norm"] = done.grad_norm
        log.metrics("train", self.step, values)
        if not log.show_bar:
            log.info(
                f"epoch {self.position.epoch + 1}/{self.epochs}, update {done.update.number + 1}/{plan.num_updates}: "
                f"loss {values['loss']:.4f}, lr {values['lr']:.2e}, {values['videos_per_second']:.1f} videos/s, "
                f"waiting for data {values['wait_share']:.0%}, {self._eta()}"
            )


def _copy(source: Path, target: Path) -> None:
    """Keep a copy, a hard link where the file system has them: `last.pth` is replaced, never written into."""
    target.unlink(missing_ok=True)
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)
