"""A kill, or a full disk, at every step of writing a checkpoint: a good checkpoint always exists."""

import errno
import io
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from trainers import checkpoint as checkpoint_module
from trainers import files as files_module
from trainers import session
from trainers.checkpoint import newest_first, read_newest, read_training_checkpoint, remove_leftovers, save_checkpoint
from trainers.errors import CheckpointError
from trainers.logging.log_file import LogFile
from trainers.logging.metrics_file import MetricsFile
from trainers.run import run

NUM_KEPT = 3
CALLS = ("fsync", "link", "unlink", "replace", "open", "close")


def content(epoch: int) -> dict:
    """Return a checkpoint with some tensors, each of which is a few writes."""
    model = {f"weight{number}": torch.full((40,), float(epoch + number)) for number in range(12)}
    return {"model": model, "optimizer": {"state": {0: {"step": torch.tensor(float(epoch))}}}, "epoch": epoch}


class Steps:
    """Counts the steps of writing, and injects a fault at one of them."""

    def __init__(self, at: int, fault: Callable[[int], None]):
        self.at, self.fault, self.number = at, fault, -1

    def next(self) -> bool:
        self.number += 1
        if self.number == self.at:
            self.fault(self.number)
            return True
        return False


class FaultyFile(io.RawIOBase):
    """A file of which every write is a step; with `torn`, the write at the fault is half done."""

    def __init__(self, path: Path, steps: Steps, torn: bool):
        self.steps, self.torn = steps, torn
        self.handle = os.open(path, os.O_WRONLY | os.O_CREAT)

    def write(self, data) -> int:
        data = memoryview(data).cast("B")
        if self.torn and self.steps.number + 1 == self.steps.at:
            os.write(self.handle, data[: len(data) // 2])
        self.steps.next()
        written = 0
        while written < len(data):
            written += os.write(self.handle, data[written:])
        return written

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self.handle

    def close(self) -> None:
        if not self.closed:
            super().close()
            os.close(self.handle)


class FaultyOs:
    """The module `os` as the code under test sees it: every call that changes files is a step."""

    def __init__(self, steps: Steps):
        self._steps = steps

    def __getattr__(self, name: str):
        if name not in CALLS:
            return getattr(os, name)

        def call(*arguments, **options):
            self._steps.next()
            return getattr(os, name)(*arguments, **options)

        return call


def save_with(path: Path, steps: Steps, torn: bool, epoch: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for module in (checkpoint_module, files_module):
            patch.setattr(module, "os", FaultyOs(steps))
        patch.setattr(checkpoint_module, "open", lambda path, mode: FaultyFile(path, steps, torn), raising=False)
        save_checkpoint(path, content(epoch), NUM_KEPT)


def kill_at(path: Path, at: int, torn: bool, epoch: int) -> bool:
    """Save in a child that is killed at a step; return whether it got that far."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            save_with(path, Steps(at, lambda number: os.kill(os.getpid(), signal.SIGKILL)), torn, epoch)
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


@pytest.fixture
def saved(tmp_path: Path) -> Iterator[Path]:
    """Return `last.pth` of a folder with as many checkpoints as are kept, epochs 3, 2, 1.

    In memory if possible: waiting for a disk hundreds of times takes minutes on a busy machine.
    """
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else tmp_path) as folder:
        for epoch in (1, 2, 3):
            save_checkpoint(Path(folder) / "last.pth", content(epoch), NUM_KEPT)
        yield Path(folder) / "last.pth"


def epochs_of(path: Path) -> list[int]:
    return [read_training_checkpoint(found)["epoch"] for found in newest_first(path)]


@pytest.mark.slow
def test_killed_at_every_step(saved: Path) -> None:
    """At least 200 kills with SIGKILL, of a real process, before and in the middle of every step."""
    num_kills, epoch = 0, 3
    for torn in (False, True):
        at = 0
        while kill_at(saved, at, torn, epoch + 1):
            num_kills += 1
            checkpoint, used, damaged = read_newest(saved)
            assert damaged == [], "every file under its own name is whole"
            assert checkpoint["epoch"] in (epoch, epoch + 1) and used == saved
            assert len(newest_first(saved)) == NUM_KEPT
            if checkpoint["epoch"] == epoch + 1:
                epoch += 1
            at += 1
        epoch += 1
        assert epochs_of(saved) == [epoch, epoch - 1, epoch - 2]
        assert list(saved.parent.glob(".*.tmp")), "the killed ones have left their temporary files"
        remove_leftovers(saved.parent)
        assert len(list(saved.parent.iterdir())) == NUM_KEPT
    assert num_kills >= 200


def out_of_space(number: int) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_out_of_space_at_every_step(saved: Path) -> None:
    num_failures, at, epoch = 0, 0, 3
    while True:
        steps = Steps(at, out_of_space)
        try:
            save_with(saved, steps, False, epoch + 1)
        except CheckpointError as error:
            assert "No space left on device" in str(error)
            num_failures += 1
        if steps.number < at:
            break
        checkpoint, used, damaged = read_newest(saved)
        assert damaged == [] and used == saved and checkpoint["epoch"] in (epoch, epoch + 1)
        epoch = checkpoint["epoch"]
        assert len(epochs_of(saved)) == NUM_KEPT
        assert not list(saved.parent.glob(".*.tmp")), "nothing is left behind"
        at += 1
    assert num_failures >= 50


@pytest.mark.slow
def test_a_full_disk_costs_that_writing_alone(compose_run, small_disk: Path, tmp_path: Path, monkeypatch) -> None:
    """A real file system that fills up and is freed: the run reports it, continues, and ends with the same weights."""
    from trainers.session import TrainingRun

    run(compose_run(output=tmp_path / "whole"))
    output, filler = small_disk / "run", small_disk / "filler"
    save_last, num_saves = TrainingRun._save_last, [0]

    def fill_and_free(self: TrainingRun) -> None:
        num_saves[0] += 1
        self._await_writing()
        if num_saves[0] == 3:
            with pytest.raises(OSError, match="No space left"), filler.open("wb", buffering=0) as file:
                while True:
                    file.write(b"x" * 4096)
        if num_saves[0] == 5:
            assert read_newest(output / "last.pth")[0]["epoch"] == 1
            filler.unlink()
        save_last(self)

    monkeypatch.setattr(TrainingRun, "_save_last", fill_and_free)
    run(compose_run(output=output, keep=1))
    text = (output / "log.txt").read_text()
    assert text.count("NOT SAVED") in (1, 2) and "the run continues, older checkpoints are intact" in text
    checkpoints = [torch.load(folder / "last.pth", weights_only=True) for folder in (tmp_path / "whole", output)]
    assert all(torch.equal(value, checkpoints[1]["model"][name]) for name, value in checkpoints[0]["model"].items())


@pytest.mark.slow
def test_a_disk_that_stays_full_is_an_error_at_the_end(compose_run, tmp_path: Path, monkeypatch) -> None:
    save, num_saves = checkpoint_module.torch.save, [0]

    def full_later(*arguments, **options):
        num_saves[0] += 1
        if num_saves[0] > 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(*arguments, **options)

    monkeypatch.setattr(checkpoint_module.torch, "save", full_later)
    monkeypatch.setattr(session, "LAST_ATTEMPT_S", 0.0)
    expected = r"the training is done, but its end could not be saved: .*last\.pth: cannot write.*No space left"
    with pytest.raises(CheckpointError, match=expected):
        run(compose_run())
    checkpoint = read_newest(tmp_path / "run" / "last.pth")[0]
    assert checkpoint["best"]["epoch"] == 1
    monkeypatch.undo()
    run(compose_run())


class FullDisk(io.StringIO):
    def flush(self) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_logs_on_a_full_disk_do_not_stop_the_run(compose_run, tmp_path: Path, monkeypatch, capfd) -> None:
    def open_on_full_disk(self, path: Path) -> None:
        self._file = FullDisk()

    for logger in (LogFile, MetricsFile):
        monkeypatch.setattr(logger, "__init__", open_on_full_disk)
    run(compose_run(epochs=1, warmup_epochs=0))
    captured = capfd.readouterr()
    for name in ("metrics.jsonl", "log.txt"):
        assert captured.out.count(f"{name} cannot be written") == 1
    assert captured.err == ""
