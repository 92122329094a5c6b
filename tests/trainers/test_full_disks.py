"""A disk that is full for a while: the cache gives room back, and checkpoints are written when there is room.

A run fails only if its end cannot be saved although it waited.
"""

import errno
from pathlib import Path

import pytest
import torch

from trainers import checkpoint as checkpoint_module
from trainers import session
from trainers.checkpoint import read_newest
from trainers.disk import OutputDisk, checkpoint_bytes, share_disk, tensor_bytes
from trainers.run import run
from video_datasets import frame_cache
from video_datasets.frame_cache import FrameCache
from video_datasets.stored_frames import StoreSettings

RAW = StoreSettings(None, None, None)


def fill(folder: Path, rest: int = 0) -> None:
    """Write a file that leaves `rest` bytes of a disk."""
    with (folder / "filler").open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(b"x" * 4096)
    if rest:
        with (folder / "filler").open("r+b") as file:
            file.truncate((folder / "filler").stat().st_size - rest)


def entries(cache: Path, num_bytes: int) -> None:
    """Write entries into a cache's folder, as an earlier run left them."""
    (cache / "00").mkdir(parents=True)
    for number in range(num_bytes // 100_000):
        (cache / "00" / f"{number}.frames").write_bytes(b"x" * 100_000)


def test_output_and_cache_on_a_full_disk(compose_run, small_disk: Path, tmp_path: Path, monkeypatch) -> None:
    """Whatever fills the disk, a checkpoint is not what fails: four epochs are saved, and a restart works."""
    monkeypatch.setattr(frame_cache, "room_to_leave", lambda folder: 0)
    output, cache = small_disk / "run", small_disk / "cache"
    entries(cache, 13_000_000)
    fill(small_disk)
    settings = {"output": output, "epochs": 4, "data__cache": cache, "data__cache_format": "raw"}
    run(compose_run(**settings, keep=1))
    text = (output / "log.txt").read_text()
    assert "NOT SAVED" not in text and "gave back" in text and "on the disk of the output folder" in text
    content, path, damaged = read_newest(output / "last.pth")
    assert (content["epoch"], path.name, damaged) == (4, "last.pth", [])
    assert (output / "best.pth").exists() and (output / "results.json").exists()
    run(compose_run(**settings, keep=1))  # a restart finds the finished run


def test_room_is_made_of_entries_on_the_same_disk_alone(tmp_path: Path, small_disk: Path) -> None:
    entries(small_disk / "cache", 5_000_000)
    cache, messages = FrameCache(small_disk / "cache", 10**9, RAW), []
    fill(small_disk, rest=3_000_000)
    disk = OutputDisk(small_disk, cache, messages.append)
    assert disk.is_shared and not disk.make_room(1_000_000) and messages == []
    assert disk.make_room(4_000_000) and len(messages) == 1
    assert 2_000_000 < cache.num_bytes < 4_000_000, "no more than is needed"
    elsewhere = OutputDisk(tmp_path, cache, messages.append)
    assert not elsewhere.is_shared and not elsewhere.make_room(1 << 60) and cache.num_bytes > 0
    assert not share_disk(tmp_path / "x" / "y", small_disk) and share_disk(tmp_path / "x", tmp_path / "z")


class Disk:
    """Lets writes of checkpoints fail while `full(number)` is true of the number of the write."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, full) -> None:
        self.num_writes, save = 0, torch.save

        def write(*arguments, **options) -> None:
            self.num_writes += 1
            if full(self.num_writes):
                raise OSError(errno.ENOSPC, "No space left on device")
            save(*arguments, **options)

        monkeypatch.setattr(checkpoint_module.torch, "save", write)
        monkeypatch.setattr(session, "LAST_ATTEMPT_S", 0.0)


def content_of(folder: Path) -> list[dict]:
    return [torch.load(folder / name, weights_only=True) for name in ("best.pth", "last.pth")]


@pytest.mark.slow
def test_a_run_whose_disk_was_full_until_its_end_is_whole(compose_run, tmp_path: Path, monkeypatch) -> None:
    """Nothing could be written before the end: best and last checkpoint are those of a run with room."""
    run(compose_run(output=tmp_path / "whole"))
    waits: list[float] = []
    Disk(monkeypatch, lambda number: len(waits) < 2)
    monkeypatch.setattr(session.TrainingRun, "_stop_requested_within", lambda self, seconds: waits.append(seconds))
    run(compose_run())
    text = (tmp_path / "run" / "log.txt").read_text()
    assert "for room: free the disk" in text and text.count("NOT SAVED") == 2, "once for each file"
    for whole, late in zip(content_of(tmp_path / "whole"), content_of(tmp_path / "run"), strict=True):
        assert whole["best"] | {"seconds": 0} == late["best"] | {"seconds": 0} and whole["epoch"] == late["epoch"]
        assert all(torch.equal(value, late["model"][name]) for name, value in whole["model"].items())
    assert (tmp_path / "run" / "results.json").exists()


def test_the_newest_is_written_as_soon_as_there_is_room(compose_run, tmp_path: Path, monkeypatch) -> None:
    """In the middle of an epoch, not at its end."""
    monkeypatch.setattr(session, "RETRY_S", 0.0)
    disk, positions = Disk(monkeypatch, lambda number: number in (1, 2)), []
    save_last = session.TrainingRun._save_last

    def note(self: session.TrainingRun) -> None:
        save_last(self)
        self._await_writing()
        positions.append((self.state.position.epoch, self.state.position.micro_batch, self.failed_save is None))

    monkeypatch.setattr(session.TrainingRun, "_save_last", note)
    run(compose_run(total_batch_size=2))
    assert disk.num_writes > 3
    epoch, micro_batch, _ = next(position for position in positions if position[2])
    failed = [position for position in positions if not position[2]]
    assert len(failed) >= 1 and (epoch, micro_batch) > failed[-1][:2], positions


def test_sizes(compose_run) -> None:
    weight = torch.zeros(10, dtype=torch.float64)
    assert tensor_bytes({"a": [weight, (weight,)], "b": 3, "c": None}) == 160
    model = torch.nn.Linear(3, 2)
    model.bias.requires_grad = False
    assert checkpoint_bytes(model) == 4 * 8 + 2 * 4 * 6
