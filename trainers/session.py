"""A training run from first to last epoch: epochs, validation, checkpoints, continuing, and what is told meanwhile."""

import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trainers.checkpoint import BEST, LAST, read_newest, remove_leftovers, save_checkpoint
from trainers.continuing import compare_runs
from trainers.distributed.interrupts import Interrupts
from trainers.errors import CheckpointError, RunInterrupted
from trainers.evaluator import Evaluation
from trainers.logging.loading_advice import cores_of_a_process, loading_advice
from trainers.logging.plan import duration
from trainers.logging.run_log import peak_memory_gib
from trainers.metrics import format_metrics
from trainers.trainer import EpochReport, Trainer, UpdateReport

ESTIMATE_AFTER = 5  # updates until the time of one is believed; the first ones also start workers and kernels


@dataclass
class Position:
    """Where a run stands: the next micro-batch, and the numbers of the best validation (None before the first).

    An epoch whose micro-batches are all done, but not its validation, stands at the micro-batch after its last.
    """

    epoch: int = 0
    micro_batch: int = 0
    best: dict[str, float | int] | None = None


class TrainingRun:
    """Trains for a number of epochs, and can go on where it was interrupted.

    Args:
        validate: evaluates the model on the validation list; the model is in training mode again afterwards.
        note_best: is given every evaluation that is the best so far, on every process.
        note_validation: is given every evaluation and its step (micro-batches since the run began).
        output: folder of the checkpoints.
        save_freq: epochs between validations. `last.pth` is written after every epoch, and again after its validation.
        keep_every: epochs between kept copies, or None.
        save_updates: updates between further writings of `last.pth`, or None.
        save_minutes: minutes after which `last.pth` is written within an epoch, or None.
        keep: how many of the last checkpoints to have.
        fixed_facts: what must be equal for a run to be continued (`trainers.continuing`).
        config: stored in checkpoints, and compared.
        interrupts: asks for a stop.
        print_every: updates between lines of the log.
        best_metric: name of the metric whose highest value is the best validation.
        num_workers: processes that read training videos, on each rank.
    """

    def __init__(
        self,
        trainer: Trainer,
        validate: Callable[[], Evaluation],
        *,
        note_best: Callable[[Evaluation], None],
        note_validation: Callable[[Evaluation, int], None] = lambda evaluation, step: None,
        output: Path,
        epochs: int,
        save_freq: int,
        keep_every: int | None,
        save_updates: int | None,
        save_minutes: float | None,
        keep: int,
        fixed_facts: dict[str, Any],
        config: dict[str, Any],
        print_every: int,
        num_workers: int,
        interrupts: Interrupts,
        best_metric: str = "top1",
    ) -> None:
        self.trainer = trainer
        self.validate = validate
        self.note_best = note_best
        self.note_validation = note_validation
        self.output = output
        self.epochs = epochs
        self.save_freq = save_freq
        self.keep_every = keep_every
        self.save_updates = save_updates
        self.save_minutes = save_minutes
        self.keep = keep
        self.fixed_facts = fixed_facts
        self.config = config
        self.print_every = print_every
        self.num_workers = num_workers
        self.interrupts = interrupts
        self.best_metric = best_metric
        self.position = Position()
        self.failed_save: str | None = None  # why `last.pth` is not of the present position, where it is not
        self._damaged: list[Path] = []
        self._saved_at = time.monotonic()
        trainer.wishes = self._wishes
        self._seconds = 0.0  # of this process's updates, for the estimate
        self._updates = 0
        self._told_wait_share = -1.0
        self._validation_seconds = 0.0

    @property
    def step(self) -> int:
        """Micro-batches consumed since the run began."""
        return self.position.epoch * self.trainer.plan.num_micro_batches + self.position.micro_batch

    @property
    def awaits_validation(self) -> bool:
        """Whether the epoch's micro-batches are done and its validation is not."""
        return self.position.micro_batch == self.trainer.plan.num_micro_batches

    def load_last(self) -> list[str] | None:
        """Go on from the newest good checkpoint; return what there is to say about it, or None where there is none.

        Process 0 reads and gives the others what it read: they may not see its disk, or see an older state of it.

        Raises:
            CheckpointError: where all are damaged, or belong to another run.
        """
        ranks = self.trainer.ranks
        read, error = None, None
        try:
            if ranks.is_main:
                read = self._read_last()
        except Exception as problem:
            error = problem
        ranks.raise_together(error)
        read = ranks.broadcast(read)
        if read is None:
            return None
        checkpoint, lines, self._damaged = read
        error = None
        try:
            self._restore(checkpoint)
        except (KeyError, ValueError, RuntimeError) as problem:
            reason = " ".join(str(problem).split())
            error = CheckpointError(f"{self.output / LAST}: does not fit this model and optimizer: {reason}")
        ranks.raise_together(error)
        return lines

    def _read_last(self) -> tuple[dict[str, Any], list[str], list[Path]] | None:
        """Read and compare the newest good checkpoint; return it, what to say, and the damaged ones before it."""
        found = read_newest(self.output / LAST)
        if found is None:
            return None
        checkpoint, path, damaged = found
        differences = compare_runs(str(path), checkpoint, self.fixed_facts, self.config)
        lines = [f"warning: {error}; going on from {path.name}, the one before it" for error in damaged]
        if path.name != LAST and not damaged:
            lines.append(f"warning: {self.output / LAST} is missing; going on from {path.name}, the one before it")
        lines += [f"goes on with another configuration: {line}" for line in differences]
        return checkpoint, lines, [error.path for error in damaged]

    def _restore(self, checkpoint: dict[str, Any]) -> None:
        trainer = self.trainer
        trainer.model.load_state_dict(checkpoint["model"])
        trainer.optimizer.load_state_dict(checkpoint["optimizer"])
        if checkpoint["scaler"] is not None and trainer.scaler.is_enabled():
            trainer.scaler.load_state_dict(checkpoint["scaler"])
        trainer.skipped = dict(checkpoint["skipped"])
        self.position = Position(checkpoint["epoch"], checkpoint["micro_batch"], checkpoint["best"])

    def fit(self) -> Position:
        """Train until the last epoch is done; return the final position.

        Raises:
            RunInterrupted: where a stop was asked for; the run is saved then.
            CheckpointError: where the disk did not take the last checkpoint of the run.
        """
        if self.trainer.ranks.is_main:
            remove_leftovers(self.output)
            for path in self._damaged:
                # Kept for whoever wants to know, out of the way of the good ones.
                path.replace(path.with_suffix(".damaged"))
        self._saved_at = time.monotonic()
        while self.position.epoch < self.epochs:
            self._run_epoch()
        if self.failed_save is not None:
            self._save_last()
        if self.position.best is None:
            raise CheckpointError(f"the training is done, but {self.output / BEST} could never be written")
        if self.failed_save is not None:
            raise CheckpointError(f"the training is done, but its end could not be saved: {self.failed_save}")
        return self.position

    def is_validated(self, epoch: int) -> bool:
        """Whether an epoch ends with validation and checkpoint: every `save_freq`, and the last."""
        return (epoch + 1) % self.save_freq == 0 or epoch + 1 == self.epochs

    def _wishes(self) -> tuple[bool, bool]:
        """Answer, for this process, whether to stop and whether a checkpoint is due by the clock (process 0's)."""
        reason = self.interrupts.requested
        ranks = self.trainer.ranks
        if reason is not None:
            ranks.announce_stop(reason)
        due = self.save_minutes is not None and time.monotonic() - self._saved_at >= 60 * self.save_minutes
        return reason is not None, ranks.is_main and due

    def _run_epoch(self) -> None:
        log, plan, epoch = self.trainer.log, self.trainer.plan, self.position.epoch
        report = EpochReport()
        recent = EpochReport()
        first = self.position.micro_batch // plan.accumulation
        # An epoch that awaits its validation only has told all of this.
        if not self.awaits_validation:
            log.start_bar(f"epoch {epoch + 1}/{self.epochs}", plan.num_updates, first)
            for done in self.trainer.run_epoch(epoch, self.position.micro_batch):
                self.position.micro_batch = done.update.last
                report.add(done)
                recent.add(done)
                self._count(done)
                speed = recent.num_videos / recent.seconds
                log.advance_bar(f"loss {done.loss:.3f}, {speed:.1f} videos/s, {self._eta()}")
                if (done.update.number + 1) % self.print_every == 0 or self.awaits_validation:
                    self._tell(done, recent)
                    recent = EpochReport()
                if not self.awaits_validation:
                    self._after_update(done)
            log.close_bar()
            self._tell_epoch(report)
            self._after_update(done)
        if self.is_validated(epoch):
            self._save_last()  # whatever happens to the validation
            self._validate(epoch)
        self.position.epoch, self.position.micro_batch = epoch + 1, 0
        self._save_last()
        if self.trainer.ranks.is_main and self.keep_every and (epoch + 1) % self.keep_every == 0:
            self._keep_copy(f"epoch_{epoch + 1:03d}.pth")

    def _after_update(self, done: UpdateReport) -> None:
        """Save where it is time, and leave where a stop is asked for."""
        stop, due = done.wishes
        by_count = self.save_updates and (done.update.number + 1) % self.save_updates == 0
        if stop or ((due or by_count) and not self.awaits_validation):
            self._save_last()
        if stop:
            log, epoch = self.trainer.log, self.position.epoch
            log.close_bar()
            reason = self.interrupts.requested or "another process was asked"
            log.info(f"stopped ({reason}) in epoch {epoch + 1} after update {done.update.number + 1}, {self._kept()}")
            raise RunInterrupted(reason)

    def _kept(self) -> str:
        return "saved" if self.failed_save is None else "not saved, see above"

    def _tell_epoch(self, report: EpochReport) -> None:
        log, epoch = self.trainer.log, self.position.epoch
        report.bad_videos = set(self.trainer.bad_videos)
        values = report.values()
        log.metrics("epoch", self.step, {"epoch": epoch + 1, **values})
        log.info(
            f"epoch {epoch + 1}/{self.epochs} done: loss {values['loss']:.4f}, "
            f"{values['videos_per_second']:.1f} videos/s, "
            f"waiting for data {values['wait_share']:.0%} of the time, {duration(report.seconds)}"
            + (f", {values['bad_videos']} unreadable videos" if values["bad_videos"] else "")
            + (f", {report.num_skipped} updates skipped (loss not finite)" if report.num_skipped else "")
        )
        speed = values["wait_share"], values["videos_per_second"]
        advice = loading_advice(*speed, self.num_workers, cores_of_a_process())
        # Every epoch's line has the share; the advice comes again only where it has become much worse.
        if advice is not None and values["wait_share"] >= self._told_wait_share + 0.1:
            log.warning(advice)
            self._told_wait_share = values["wait_share"]

    def _validate(self, epoch: int) -> None:
        log = self.trainer.log
        self.trainer.ranks.set_activity(f"validation of epoch {epoch + 1}")
        start = time.perf_counter()
        try:
            evaluation = self.validate()
        except RunInterrupted as stop:
            log.info(f"stopped ({stop}) in the validation of epoch {epoch + 1}, {self._kept()}")
            raise
        self._validation_seconds = time.perf_counter() - start
        log.metrics("val", self.step, {"epoch": epoch + 1, **evaluation.values()})
        self.note_validation(evaluation, self.step)
        best = {"epoch": epoch + 1, **evaluation.values()}
        previous = (self.position.best or {}).get(self.best_metric)
        is_best = previous is None or best[self.best_metric] > previous
        log.info(
            f"epoch {epoch + 1}/{self.epochs} validation: {format_metrics(evaluation.metrics)} of "
            f"{len(evaluation.predictions):,} videos, {duration(evaluation.seconds)}"
            + (f", {len(evaluation.unreadable)} unreadable" if evaluation.unreadable else "")
            + (", the best so far" if is_best else f" (best: {previous:.2f} %)")
        )
        self.position.epoch, self.position.micro_batch = epoch + 1, 0
        if is_best:
            best_before, self.position.best = self.position.best, best
            if self._save(BEST, with_optimizer=False) is not None:
                self.position.best = best_before  # what is called the best is what `best.pth` holds
            else:
                self.note_best(evaluation)

    def _save_last(self) -> None:
        # `last.pth` comes after `best.pth`: a run cut between the two repeats the validation and finds the same.
        self._saved_at = time.monotonic()
        self.failed_save = self._save(LAST, with_optimizer=True)

    def _save(self, name: str, with_optimizer: bool) -> str | None:
        """Write a checkpoint on process 0; return why it could not be written. That costs this writing, not the run."""
        reason = None
        if self.trainer.ranks.is_main:
            keep = self.keep if name == LAST else 1
            try:
                save_checkpoint(self.output / name, self._checkpoint(with_optimizer), keep)
            except CheckpointError as error:
                reason = str(error)
                self.trainer.log.warning(
                    f"NOT SAVED: {reason}; the run goes on, the checkpoints from before are untouched: free the disk"
                )
        return self.trainer.ranks.broadcast(reason)

    def _keep_copy(self, name: str) -> None:
        if self.failed_save is None:
            try:
                _copy(self.output / LAST, self.output / name)
            except OSError as error:
                self.trainer.log.warning(f"NOT KEPT: {self.output / name}: {error}; the run goes on")

    def _checkpoint(self, with_optimizer: bool) -> dict[str, Any]:
        trainer = self.trainer
        return {
            "model": _on_cpu(dict(trainer.model.state_dict())),
            "model_info": trainer.model.info(),
            "optimizer": _on_cpu(trainer.optimizer.state_dict()) if with_optimizer else None,
            "scaler": trainer.scaler.state_dict() if with_optimizer and trainer.scaler.is_enabled() else None,
            "epoch": self.position.epoch,
            "micro_batch": self.position.micro_batch,
            "best": self.position.best,
            "skipped": dict(trainer.skipped),
            "run": self.fixed_facts,
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
            "loss": recent.loss,
            "lr": done.rates[0],
            "videos_per_second": recent.num_videos / recent.seconds,
            "wait_share": recent.wait_seconds / recent.seconds,
            "memory_gib": peak_memory_gib(self.trainer.ranks.device),
        }
        groups = self.trainer.optimizer.param_groups
        values |= {f"lr_{group['name']}": rate for group, rate in zip(groups[1:], done.rates[1:], strict=True)}
        if self.trainer.scaler.is_enabled():
            values["loss_scale"] = self.trainer.scaler.get_scale()
        if done.grad_norm is not None and math.isfinite(done.grad_norm):
            values["grad_norm"] = done.grad_norm
        log.metrics("train", self.step, values)
        if not log.show_bar:
            log.info(
                f"epoch {self.position.epoch + 1}/{self.epochs}, update {done.update.number + 1}/{plan.num_updates}: "
                f"loss {values['loss']:.4f}, lr {values['lr']:.2e}, {values['videos_per_second']:.1f} videos/s, "
                f"waiting for data {values['wait_share']:.0%}, {self._eta()}"
            )


def _on_cpu(value: Any) -> Any:
    """Return nested containers with their tensors on the CPU."""
    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    if isinstance(value, dict):
        return {key: _on_cpu(item) for key, item in value.items()}
    return type(value)(_on_cpu(item) for item in value) if isinstance(value, list | tuple) else value


def _copy(source: Path, target: Path) -> None:
    """Keep a copy, a hard link where the file system has them: `last.pth` is replaced, never written into."""
    target.unlink(missing_ok=True)
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)
