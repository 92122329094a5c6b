"""Checkpoints: complete or missing, plain, checked, several of them, and a damaged one is never used."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from tc_clip.weights.checksum import checksum_of
from trainers import checkpoint as checkpoint_module
from trainers.checkpoint import (
    DamagedCheckpointError,
    newest_first,
    read_newest,
    read_training_checkpoint,
    remove_leftovers,
    save_checkpoint,
)
from trainers.errors import CheckpointError


def content(epoch: int) -> dict:
    return {"model": {"weight": torch.full((50,), float(epoch)), "bias": torch.arange(3)}, "epoch": epoch, "best": None}


def save(path: Path, *epochs: int, keep: int = 1) -> None:
    for epoch in epochs:
        save_checkpoint(path, content(epoch), keep)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_written_as_a_whole_and_read_safely(tmp_path: Path) -> None:
    save(tmp_path / "last.pth", 3)
    stored = torch.load(tmp_path / "last.pth", weights_only=True)
    assert stored["epoch"] == 3 and stored["format_version"] == 2 and len(stored["checksum"]) == 64
    assert read_training_checkpoint(tmp_path / "last.pth")["epoch"] == 3
    assert names(tmp_path) == ["last.pth"]


def test_the_last_ones_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "last.pth"
    save(path, 1, 2, 3, 4, 5, keep=3)
    assert names(tmp_path) == ["last.pth", "last_1.pth", "last_2.pth"]
    assert [read_training_checkpoint(found)["epoch"] for found in newest_first(path)] == [5, 4, 3]
    save(path, 6, keep=2)
    assert [read_training_checkpoint(found)["epoch"] for found in newest_first(path)] == [6, 5]
    save(path, 7, keep=1)
    assert names(tmp_path) == ["last.pth"]


def test_file_systems_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*arguments):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(checkpoint_module.os, "link", no_links)
    save(tmp_path / "last.pth", 1, 2, 3, keep=2)
    assert [read_training_checkpoint(found)["epoch"] for found in newest_first(tmp_path / "last.pth")] == [3, 2]
    assert names(tmp_path) == ["last.pth", "last_1.pth"]


@pytest.mark.parametrize("moment", ["save", "fsync", "replace", "link"])
def test_a_failed_write_leaves_the_old_files(tmp_path: Path, monkeypatch, moment: str) -> None:
    path = tmp_path / "last.pth"
    save(path, 1, 2, keep=2)

    def fail(*arguments, **options):
        raise OSError(28, "No space left on device")

    owner = torch if moment == "save" else checkpoint_module.os
    monkeypatch.setattr(owner, moment, fail)
    if moment == "link":  # without links the files are renamed, and that fails too
        monkeypatch.setattr(checkpoint_module.os, "replace", fail)
    with pytest.raises(CheckpointError, match=r"last\.pth: cannot write the checkpoint: .*No space left"):
        save(path, 3, keep=2)
    monkeypatch.undo()
    assert [read_training_checkpoint(found)["epoch"] for found in newest_first(path)] == [2, 1]
    assert names(tmp_path) == ["last.pth", "last_1.pth"]


def test_every_changed_byte_is_noticed_or_is_no_content(tmp_path: Path) -> None:
    path = tmp_path / "last.pth"
    save(path, 1)
    good, whole = path.read_bytes(), read_training_checkpoint(path)
    rng = np.random.default_rng(0)
    noticed = 0
    for index in rng.choice(len(good), 400, replace=False):
        damaged = bytearray(good)
        damaged[index] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            # Neither padding nor time stamps of the archive are content.
            assert checksum_of(read_training_checkpoint(path)) == checksum_of(whole)
        except CheckpointError:
            noticed += 1
    assert noticed > 100


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_cut_off_file_is_skipped(tmp_path: Path, share: float) -> None:
    path = tmp_path / "last.pth"
    save(path, 1, 2, keep=2)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    checkpoint, used, damaged = read_newest(path)
    assert (checkpoint["epoch"], used.name) == (1, "last_1.pth")
    assert [error.path for error in damaged] == [path] and str(path) in str(damaged[0])


def test_a_changed_weight_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "last.pth"
    save(path, 1, 2, keep=2)
    changed = torch.load(path, weights_only=True)
    changed["model"]["weight"][7] += 1e-6
    torch.save(changed, path)
    with pytest.raises(DamagedCheckpointError, match="its checksum does not match its content"):
        read_training_checkpoint(path)
    assert read_newest(path)[0]["epoch"] == 1


def test_a_missing_last_is_replaced_by_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "last.pth"
    assert read_newest(path) is None and read_newest(tmp_path / "nowhere" / "last.pth") is None
    save(path, 1, 2, keep=2)
    path.unlink()
    assert read_newest(path)[0]["epoch"] == 1


def test_only_damaged_checkpoints_are_an_error_that_names_them(tmp_path: Path) -> None:
    save(tmp_path / "last.pth", 1, 2, keep=2)
    for name in names(tmp_path):
        (tmp_path / name).write_bytes(b"PK\x03\x04")
    with pytest.raises(CheckpointError, match=r"last\.pth: .*last_1\.pth: .*no good checkpoint is left.*auto_resume"):
        read_newest(tmp_path / "last.pth")


class Hostile:
    def __reduce__(self):
        return os.system, ("touch was_run",)


def test_a_hostile_pickle_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({**content(1), "format_version": 2, "config": Hostile()}, tmp_path / "last.pth")
    with pytest.raises(
        CheckpointError, match=r"last\.pth: cannot be read as weights \(it holds a pickled object \S*system"
    ):
        read_newest(tmp_path / "last.pth")
    assert names(tmp_path) == ["last.pth"]


def test_a_foreign_checkpoint_is_not_continued(tmp_path: Path) -> None:
    torch.save({"model": {}}, tmp_path / "last.pth")
    with pytest.raises(CheckpointError, match="not a checkpoint that this version can continue"):
        read_newest(tmp_path / "last.pth")


def test_leftovers_of_killed_writers_are_removed(tmp_path: Path) -> None:
    save(tmp_path / "last.pth", 1)
    for name in (".last.pth.ab12.tmp", ".best.pth.cd.tmp", ".last.pth.77.link.tmp", ".other.tmp"):
        (tmp_path / name).write_bytes(b"half")
    remove_leftovers(tmp_path)
    assert names(tmp_path) == [".other.tmp", "last.pth"]


def test_different_values_have_different_checksums() -> None:
    values = [None, 0, False, 0.0, "0", "", [], {}, (), [0], (0,), {0: 0}, [[0], []], [[], [0]], ["a", "b"], ["ab", ""]]
    values += [
        torch.zeros(2),
        torch.zeros(2, dtype=torch.float64),
        torch.zeros(1, 2),
        torch.zeros(0),
        torch.tensor(0.0),
    ]
    values += [torch.zeros(2, dtype=torch.bfloat16), {"a": torch.zeros(2)}, {"b": torch.zeros(2)}]
    assert len({checksum_of(value) for value in values}) == len(values)
    assert checksum_of(torch.arange(6).reshape(2, 3).T) == checksum_of(torch.arange(6).reshape(2, 3).T.contiguous())
    with pytest.raises(TypeError, match="plain values, not a PosixPath"):
        checksum_of({"path": Path("a")})
