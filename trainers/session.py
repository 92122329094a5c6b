"""A training from first to last epoch: epochs, validations, checkpoints, stops."""

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from trainers.checkpoint import BEST, LAST, remove_leftovers, save_checkpoint
from trainers.checkpoint_writer import CheckpointWriter
from trainers.disk import OutputDisk, tensor_bytes
from trainers.distributed.interrupts import Interrupts
from trainers.errors import CheckpointError, RunInterrupted
from trainers.evaluator import Evaluation
from trainers.logging.plan import duration
from trainers.metrics import format_metrics, is_better
from trainers.progress import ProgressReporter
from trainers.state import Best
from trainers.trainer import Trainer, UpdateReport

RETRY_S = 60  # between attempts to write a checkpoint that could not be written
# The same at the end of the training.
NUM_LAST_ATTEMPTS = 61
LAST_ATTEMPT_S = 10.0


@dataclass
class _UnsavedBest:
    """The best validation, if `best.pth` could not be written: its numbers, and on process 0 a copy of the content."""

    values: Best
    evaluation: Evaluation
    content: dict[str, Any]


class TrainingRun:
    """Trains from the position of the trainer's state to the last epoch.

    Args:
        trainer: its state has the position to start from.
        validate: evaluates the model on the validation list and makes it ready to train again.
        read_ahead: starts to read the validation's first videos; called before the last update of an epoch.
        on_validation: called with every evaluation and its step (micro-batches since the run began).
        on_best: called, on every process, with every evaluation that is the best so far.
        output: folder of the checkpoints.
        disk: makes room for them.
        epochs: number of epochs.
        save_freq: epochs between validations, from the first on. `last.pth` is written after every epoch, and again
            after its validation.
        keep_every: epochs between copies that are kept, or None.
        save_updates: updates between further writes of `last.pth`, or None.
        save_minutes: minutes after which `last.pth` is written within an epoch, or None.
        keep: how many of the last checkpoints to keep.
        best_metric: name of the metric whose best value is the best validation.
        patience: validations in a row without a better one after which training ends, or None.
        run_facts: what checkpoints store besides the state: facts and configuration of the run.
        damaged: checkpoints that could not be read; they are renamed.
        print_every: updates between lines of the log.
        num_workers: processes that read training videos, on each rank.
        interrupts: requests a stop.
    """

    def __init__(
        self,
        trainer: Trainer,
        validate: Callable[[], Evaluation],
        *,
        read_ahead: Callable[[], None],
        on_validation: Callable[[Evaluation, int], None],
        on_best: Callable[[Evaluation], None],
        output: Path,
        disk: OutputDisk,
        epochs: int,
        save_freq: int,
        keep_every: int | None,
        save_updates: int | None,
        save_minutes: float | None,
        keep: int,
        best_metric: str,
        patience: int | None,
        run_facts: dict[str, Any],
        damaged: Sequence[Path],
        print_every: int,
        num_workers: int,
        interrupts: Interrupts,
    ) -> None:
        self.trainer = trainer
        self.state = trainer.state
        self.plan = trainer.plan
        self.ranks = trainer.ranks
        self.log = trainer.log
        self.validate = validate
        self.read_ahead = read_ahead
        self.on_validation = on_validation
        self.on_best = on_best
        self.output = output
        self.disk = disk
        self.epochs = epochs
        self.save_freq = save_freq
        self.keep_every = keep_every
        self.save_updates = save_updates
        self.save_minutes = save_minutes
        self.keep = keep
        self.best_metric = best_metric
        self.patience = patience
        self.run_facts = run_facts
        self.damaged = damaged
        self.interrupts = interrupts
        self.failed_save: str | None = None  # why `last.pth` is older than the position, if it is
        self.unsaved_best: _UnsavedBest | None = None
        self._reported: set[str] = set()  # checkpoints whose failure is in the log
        self.progress = ProgressReporter(
            self.log,
            self.plan,
            epochs=epochs,
            print_every=print_every,
            device=self.ranks.device,
            num_workers=num_workers,
            is_validated=self.is_validated,
        )
        self._saved_at = time.monotonic()
        self._writer = CheckpointWriter()

    def fit(self) -> Best:
        """Train until the last epoch is done; return epoch and numbers of the best validation.

        Raises:
            RunInterrupted: if a stop was requested; the run is saved then.
            CheckpointError: if the last checkpoint of the run could not be written.
        """
        if self.ranks.is_main:
            remove_leftovers(self.output)
            for path in self.damaged:
                path.replace(path.with_suffix(".damaged"))  # kept for inspection, out of the way of the good ones
        self._saved_at = time.monotonic()
        position = self.state.position
        try:
            while position.epoch < self.epochs and not self._is_out_of_patience:
                self._run_epoch()
            if position.epoch < self.epochs:
                self.log.info(
                    f"training ends after epoch {position.epoch} of {self.epochs}: {self.patience} validations in a "
                    f"row were not better in {self.best_metric} than the best (patience)"
                )
            self._save_the_end()
        finally:
            self._await_writing()
            self._writer.close()
        if position.best is None or self.unsaved_best is not None:
            raise CheckpointError(
                f"the training is done, but its best weights could not be written to {self.output / BEST}"
            )
        if self.failed_save is not None:
            raise CheckpointError(f"the training is done, but its end could not be saved: {self.failed_save}")
        for part in self.state.parts:
            if weights := part.final_weights():
                content = self._content(with_optimizer=False, weights=weights) | {"best": None}
                reason = self._save(part.weights_file, content)
                if reason is not None:
                    raise CheckpointError(f"the training is done, but {reason}")
        return position.best

    def is_validated(self, epoch: int) -> bool:
        """Return whether an epoch ends with a validation: as published the first, every `save_freq` later, the last."""
        return epoch % self.save_freq == 0 or epoch + 1 == self.epochs

    @property
    def _is_out_of_patience(self) -> bool:
        """Whether the last validations were not better than the best; it follows from the position alone."""
        best = self.state.position.best if self.unsaved_best is None else self.unsaved_best.values
        if self.patience is None or best is None or self._awaits_validation:
            return False
        since = range(int(best["epoch"] or 0), self.state.position.epoch)
        return sum(map(self.is_validated, since)) >= self.patience

    @property
    def _awaits_validation(self) -> bool:
        """Whether the epoch's micro-batches are done and its validation is not."""
        return self.state.position.micro_batch == self.plan.num_micro_batches

    @property
    def _step(self) -> int:
        """Micro-batches since the run began."""
        return self.state.position.step(self.plan.num_micro_batches)

    def _stop_flags(self) -> tuple[bool, bool]:
        """Return, for this process, whether a stop is requested, and whether a checkpoint is due (on process 0)."""
        reason = self.interrupts.requested
        if reason is not None:
            self.ranks.announce_stop(reason)
        waited = time.monotonic() - self._saved_at
        due = self.save_minutes is not None and waited >= 60 * self.save_minutes
        due = due or (self._is_behind and waited >= RETRY_S)
        return reason is not None, self.ranks.is_main and due

    @property
    def _is_behind(self) -> bool:
        """Whether the last or the best checkpoint could not be written."""
        return self.failed_save is not None or self.unsaved_best is not None

    def _run_epoch(self) -> None:
        position, epoch = self.state.position, self.state.position.epoch
        if not self._awaits_validation:  # else the epoch was logged before the run was interrupted
            self.progress.start_epoch(epoch, position.micro_batch // self.plan.accumulation)
            self._read_validation_ahead(epoch)
            for report in self.trainer.run_epoch(epoch, position.micro_batch, self._stop_flags):
                position.micro_batch = report.update.last
                self.progress.log_update(report)
                if not self._awaits_validation:
                    self._after_update(report)
                    self._read_validation_ahead(epoch)
            self.progress.end_epoch(len(self.trainer.bad_videos))
            self._after_update(report)
        if self.is_validated(epoch):
            self._save_last()  # so that a failed validation does not cost the epoch
            self._validate(epoch)
        position.epoch, position.micro_batch = epoch + 1, 0
        self._save_last()
        if self.ranks.is_main and self.keep_every and (epoch + 1) % self.keep_every == 0:
            self._keep_copy(f"epoch_{epoch + 1:03d}.pth")

    def _read_validation_ahead(self, epoch: int) -> None:
        """Start to read the validation's videos if the next update is the last before it."""
        left = self.plan.num_micro_batches - self.state.position.micro_batch
        if left <= self.plan.accumulation and self.is_validated(epoch):
            self.read_ahead()

    def _after_update(self, report: UpdateReport) -> None:
        """Save if a checkpoint is due, and stop if a stop is requested."""
        if self._writer.is_done:
            self._await_writing()  # to report a failure
        stop, due = report.any_rank
        number = report.update.number + 1
        by_count = self.save_updates and number % self.save_updates == 0
        if stop or ((due or by_count) and not self._awaits_validation):
            self._save_last()
        if stop:
            reason = self.interrupts.requested or "by another process"
            epoch = self.state.position.epoch + 1
            self.log.info(f"stopped ({reason}) in epoch {epoch} after update {number}, {self._saved_or_not()}")
            raise RunInterrupted(reason)

    def _saved_or_not(self) -> str:
        self._await_writing()
        return "saved" if self.failed_save is None else "not saved, see above"

    def _validate(self, epoch: int) -> None:
        log, position = self.log, self.state.position
        self.ranks.set_activity(f"validation of epoch {epoch + 1}")
        start = time.perf_counter()
        try:
            evaluation = self.validate()
        except RunInterrupted as stop:
            log.info(f"stopped ({stop}) in the validation of epoch {epoch + 1}, {self._saved_or_not()}")
            raise
        self.progress.validation_seconds = time.perf_counter() - start
        values: Best = {"epoch": epoch + 1, **evaluation.values()}
        log.log_metrics("val", self._step, values)
        self.on_validation(evaluation, self._step)
        best_before = position.best if self.unsaved_best is None else self.unsaved_best.values
        value, best = values[self.best_metric], (best_before or {}).get(self.best_metric)
        is_best = is_better(self.best_metric, value, best)
        log.info(
            f"epoch {epoch + 1}/{self.epochs} validation: {format_metrics(evaluation.metrics)} of "
            f"{len(evaluation.predictions):,} videos, {duration(evaluation.seconds)}"
            + (f", {len(evaluation.unreadable)} unreadable" if evaluation.unreadable else "")
            + (", the best so far" if is_best else f" (best: {best:.2f} %)")
        )
        position.epoch, position.micro_batch = epoch + 1, 0
        if is_best:
            saved_before, position.best = position.best, values
            content = self._content(with_optimizer=False)
            if self._save(BEST, content) is None:
                self.unsaved_best = None
                self.on_best(evaluation)
            else:
                position.best = saved_before  # the best is what `best.pth` holds
                self.unsaved_best = _UnsavedBest(values, evaluation, content)

    def _save_last(self) -> None:
        """Copy the state and let it be written to `last.pth` while the run continues."""
        # `last.pth` comes after `best.pth`: a run killed between the two repeats the validation with the same result.
        self._saved_at = time.monotonic()
        self._await_writing()
        unsaved = self.unsaved_best
        if unsaved is not None and self._save(BEST, unsaved.content) is None:
            self.unsaved_best, self.state.position.best = None, unsaved.values
            self.on_best(unsaved.evaluation)
        if self.ranks.is_main:
            self._writer.start(partial(self._write, LAST, self._content(with_optimizer=True)))

    def _await_writing(self) -> None:
        """Wait until `last.pth` has been written, on process 0; the others learn of a failure at the end."""
        if self._writer.is_pending:
            self.failed_save = self._writer.finish()
            self._note(LAST, self.failed_save)

    def _save_the_end(self) -> None:
        """Write what could not be written; wait for room, since a finished training is not lost to a full disk."""
        for attempt in range(NUM_LAST_ATTEMPTS + 1):
            self._await_writing()
            self.failed_save = self.ranks.broadcast(self.failed_save)
            if not self._is_behind or attempt == NUM_LAST_ATTEMPTS:
                return
            if attempt == 1:
                minutes = NUM_LAST_ATTEMPTS * LAST_ATTEMPT_S / 60
                self.log.warning(f"the training is done and waits {minutes:.0f} minutes for room: free the disk")
            if attempt and self.ranks.broadcast(self._stop_requested_within(LAST_ATTEMPT_S)):
                return
            self._save_last()

    def _stop_requested_within(self, seconds: float) -> bool:
        """Wait, and return whether a stop is requested."""
        end = time.monotonic() + seconds
        while self.ranks.is_main and self.interrupts.requested is None and time.monotonic() < end:
            time.sleep(min(0.5, seconds))
        return self.interrupts.requested is not None

    def _content(self, with_optimizer: bool, weights: Mapping[str, Tensor] | None = None) -> dict[str, Any]:
        """Return what a checkpoint stores, on process 0; an empty dict on the others."""
        return {**self.state.content(with_optimizer, weights), **self.run_facts} if self.ranks.is_main else {}

    def _save(self, name: str, content: dict[str, Any]) -> str | None:
        """Write a checkpoint on process 0; return why it could not be written, which does not end the run."""
        self._await_writing()
        reason = None
        if self.ranks.is_main:
            try:
                self._write(name, content)
            except CheckpointError as error:
                reason = str(error)
            self._note(name, reason)
        return self.ranks.broadcast(reason)

    def _write(self, name: str, content: dict[str, Any]) -> None:
        """Write a checkpoint, if necessary into room that the frame cache leaves.

        Raises:
            CheckpointError: if there is no room.
        """
        keep = self.keep if name == LAST else 1
        size = tensor_bytes(content)
        self.disk.make_room(size)
        try:
            save_checkpoint(self.output / name, content, keep)
        except CheckpointError:
            if not self.disk.make_room(size, missing=size):
                raise
            save_checkpoint(self.output / name, content, keep)

    def _note(self, name: str, reason: str | None) -> None:
        """Log why a checkpoint could not be written: once, however often it is tried."""
        if reason is not None and name not in self._reported:
            self.log.warning(
                f"NOT SAVED: {reason}; the run continues, older checkpoints are intact, and the newest is "
                "written when there is room: free the disk"
            )
        self._reported = self._reported - {name} if reason is None else self._reported | {name}

    def _keep_copy(self, name: str) -> None:
        self._await_writing()
        if self.failed_save is None:
            try:
                _copy(self.output / LAST, self.output / name)
            except OSError as error:
                self.log.warning(f"NOT KEPT: {self.output / name}: {error}; the run continues")


def _copy(source: Path, target: Path) -> None:
    """Keep a copy, a hard link if the file system has them: `last.pth` is replaced, never written into."""
    target.unlink(missing_ok=True)
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)
