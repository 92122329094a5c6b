"""Checkpoints: whole or not there, plain, and only for the run that they belong to."""

from pathlib import Path

import pytest
import torch

from trainers import checkpoint as checkpoint_module
from trainers.checkpoint import load_training_checkpoint, save_checkpoint
from trainers.errors import CheckpointError

RUN = {"seed": 1, "lr": 0.1}


def test_written_whole_and_read_safely(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "last.pth", {"model": {"weight": torch.ones(2)}, "run": RUN, "epoch": 3})
    stored = torch.load(tmp_path / "last.pth", weights_only=True)
    assert stored["epoch"] == 3 and stored["format_version"] == 1
    assert load_training_checkpoint(tmp_path / "last.pth", RUN)["epoch"] == 3
    assert [path.name for path in tmp_path.iterdir()] == ["last.pth"]


@pytest.mark.parametrize("moment", ["save", "fsync", "replace"])
def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch, moment: str) -> None:
    path = tmp_path / "last.pth"
    save_checkpoint(path, {"model": {}, "run": RUN, "epoch": 1})

    def fail(*arguments, **options):
        raise OSError(28, "No space left on device")

    owner = torch if moment == "save" else checkpoint_module.os
    monkeypatch.setattr(owner, moment, fail)
    with pytest.raises(CheckpointError, match=r"last\.pth: cannot write the checkpoint: .*No space left"):
        save_checkpoint(path, {"model": {}, "run": RUN, "epoch": 2})
    monkeypatch.undo()
    assert load_training_checkpoint(path, RUN)["epoch"] == 1
    assert [found.name for found in tmp_path.iterdir()] == ["last.pth"]


def test_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "last.pth"
    save_checkpoint(path, {"model": {"weight": torch.ones(1000)}, "run": RUN, "epoch": 1})
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(CheckpointError, match=r"last\.pth: cannot be read .*auto_resume=false"):
        load_training_checkpoint(path, RUN)


def test_a_foreign_checkpoint_is_not_continued(tmp_path: Path) -> None:
    path = tmp_path / "last.pth"
    torch.save({"model": {}}, path)
    with pytest.raises(CheckpointError, match="not a checkpoint that this version can continue"):
        load_training_checkpoint(path, RUN)
    save_checkpoint(path, {"model": {}, "run": RUN, "epoch": 1})
    with pytest.raises(CheckpointError, match="belongs to another run: lr was 0.1, is 0.2; choose another output="):
        load_training_checkpoint(path, {**RUN, "lr": 0.2})
