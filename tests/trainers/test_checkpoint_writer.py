"""`last.pth` is written while training continues, and is there when the run ends, however it ends."""

import threading
from functools import partial
from pathlib import Path

import pytest
import torch

from trainers import evaluator, session
from trainers.checkpoint_writer import CheckpointWriter
from trainers.errors import CheckpointError
from trainers.run import run
from trainers.trainer import Trainer

OPTIONS = {"epochs": 1, "warmup_epochs": 0}


def test_one_after_the_other_and_an_error_once() -> None:
    written = []

    def write(number: int) -> None:
        written.append((number, threading.current_thread() is threading.main_thread()))
        if number == 2:
            raise CheckpointError("last.pth: no space")

    writer = CheckpointWriter()
    assert writer.is_done and not writer.is_pending and writer.finish() is None
    writer.start(partial(write, 1))
    assert writer.finish() is None
    writer.start(partial(write, 2))
    assert writer.finish() == "last.pth: no space" and writer.finish() is None
    writer.start(partial(write, 3))
    writer.close()
    assert writer.is_done and writer.finish() is None
    assert written == [(1, False), (2, False), (3, False)]


def test_the_run_does_not_wait(compose_run, tmp_path: Path, monkeypatch) -> None:
    """The write before the validation ends only when the validation has begun; the copy is that of its start."""
    validating = threading.Event()
    save, score, snapshots = session.save_checkpoint, evaluator.score_views, []

    def slow(path, content, keep):
        assert validating.wait(60), "the run waits for the checkpoint"
        save(path, content, keep)

    def scored(model, *arguments):
        snapshots.append({name: value.clone() for name, value in model.state_dict().items()})
        with torch.no_grad():
            model.logit_scale.add_(1)
        validating.set()
        return score(model, *arguments)

    monkeypatch.setattr(session, "save_checkpoint", slow)
    monkeypatch.setattr(evaluator, "score_views", scored)
    monkeypatch.setattr(session.TrainingRun, "_save", stop)
    with pytest.raises(KeyboardInterrupt):
        run(compose_run(**OPTIONS))
    stored = torch.load(tmp_path / "run" / "last.pth", weights_only=True)["model"]
    assert all(torch.equal(value, snapshots[0][name]) for name, value in stored.items())


def stop(*_: object) -> None:
    raise KeyboardInterrupt


def test_the_newest_is_there_after_an_error(compose_run, tmp_path: Path, monkeypatch) -> None:
    mixed = Trainer._mixed

    def fail(self, item, epoch):
        if item.batch.number >= 4:
            raise KeyError("a fault of the program")
        return mixed(self, item, epoch)

    monkeypatch.setattr(Trainer, "_mixed", fail)
    with pytest.raises(KeyError):
        run(compose_run(save_updates=1, **OPTIONS))
    assert torch.load(tmp_path / "run" / "last.pth", weights_only=True)["micro_batch"] == 4
