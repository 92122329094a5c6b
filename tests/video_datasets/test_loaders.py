"""Loaders: what every rank gets, independence of workers and ranks, bad videos, hanging and dying workers."""

import logging
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from video_datasets.annotations import VideoRecord
from video_datasets.crashes import CrashedVideos
from video_datasets.decoding import VideoReadError
from video_datasets.loaders import BadVideoError, EvalLoader, TrainLoader, micro_batches
from video_datasets.transforms import TestTransform, TrainTransform
from video_datasets.video_dataset import VideoDataset
from video_datasets.video_files import FolderFiles, VideoFilesError, open_video_files
from video_datasets.workers import VideoTimeoutError, VideoWorkerError


@pytest.fixture
def train_set(small_videos, small_records):
    return VideoDataset(small_records, open_video_files(small_videos), TrainTransform(32), num_frames=4)


@pytest.fixture
def eval_set(small_videos, small_records):
    return VideoDataset(small_records, open_video_files(small_videos), TestTransform(32), num_frames=4, num_clips=2)


def assert_same(first, second):
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert one.number == other.number
        for name in ("videos", "labels", "indices", "valid"):
            assert torch.equal(getattr(one, name), getattr(other, name)), name


def test_micro_batches_hold_every_video_once_and_follow_from_their_arguments():
    batches = micro_batches(11, 4, seed=3, epoch=1)
    assert [len(batch) for batch in batches] == [4, 4, 3]
    assert sorted(np.concatenate(batches).tolist()) == list(range(11))
    again = micro_batches(11, 4, seed=3, epoch=1)
    assert all((one == other).all() for one, other in zip(batches, again, strict=True))
    order = np.concatenate(batches).tolist()
    for seed, epoch in ((3, 2), (4, 1)):
        assert np.concatenate(micro_batches(11, 4, seed, epoch)).tolist() != order


@pytest.mark.slow
def test_batches_do_not_depend_on_workers_ranks_or_start(train_set):
    plain = list(TrainLoader(train_set, 2, seed=5, num_workers=0).epoch(1))
    assert [batch.number for batch in plain] == list(range(6)) and [len(batch) for batch in plain] == [2] * 5 + [1]
    assert plain[0].videos.shape == (2, 1, 4, 3, 32, 32) and plain[0].labels.dtype == torch.int64
    assert sorted(torch.cat([batch.indices for batch in plain]).tolist()) == list(range(11))
    assert all(batch.labels.tolist() == (batch.indices % 3).tolist() for batch in plain)

    for num_workers in (1, 2):
        loader = TrainLoader(train_set, 2, seed=5, num_workers=num_workers)
        assert loader.num_micro_batches == 6
        other_epoch = list(loader.epoch(0))
        assert_same(list(loader.epoch(1)), plain)
        assert_same(list(loader.epoch(1, start=4)), plain[4:])
        assert not torch.equal(other_epoch[0].videos, plain[0].videos)
        next(loader.epoch(0))  # a read that is given up leaves nothing behind
        assert_same(list(loader.epoch(1)), plain)
        loader.close()

    for world_size in (2, 3):
        shares = [
            list(TrainLoader(train_set, 2, seed=5, num_workers=0, rank=rank, world_size=world_size).epoch(1, start=1))
            for rank in range(world_size)
        ]
        for rank, share in enumerate(shares):
            assert [batch.number for batch in share] == [m for m in range(1, 6) if m % world_size == rank]
        assert_same(sorted(sum(shares, []), key=lambda batch: batch.number), plain[1:])


def test_a_rank_without_a_micro_batch_has_an_empty_epoch(train_set):
    loader = TrainLoader(train_set, 6, seed=0, num_workers=0, rank=3, world_size=4)
    assert loader.num_micro_batches == 2 and list(loader.epoch(0)) == []


def test_workers_are_kept_from_epoch_to_epoch_and_are_as_many_as_asked_for(train_set):
    loader = TrainLoader(train_set, 2, seed=5, num_workers=2)
    list(loader.epoch(0))
    pids = loader._reader._slots[:, 2].tolist()
    assert len(set(pids)) == 2 and os.getpid() not in pids
    list(loader.epoch(1))
    assert loader._reader._slots[:, 2].tolist() == pids


def test_the_next_epoch_is_read_while_this_one_is_used(train_set):
    plain = TrainLoader(train_set, 2, seed=5, num_workers=0)
    loader = TrainLoader(train_set, 2, seed=5, num_workers=2, num_epochs=3)
    batches = loader.epoch(0, start=1)
    first = [next(batches) for _ in range(5)]
    assert {key.epoch for key in loader._reader._keys._pending} == {1}
    assert_same(first, list(plain.epoch(0, start=1)))
    pids = loader._reader._slots[:, 2].tolist()
    second = loader.epoch(1)
    first = [next(second)]
    del batches  # of the epoch before, never asked for more than its last one
    assert_same(first + list(second), list(plain.epoch(1)))
    assert_same(list(loader.epoch(2)), list(plain.epoch(2)))
    assert loader._reader._slots[:, 2].tolist() == pids and not loader._reader._keys._pending
    assert_same(list(loader.epoch(0)), list(plain.epoch(0)))
    assert_same(list(loader.epoch(1, stop=2)), list(plain.epoch(1, stop=2)))  # not what was read ahead
    loader.close()


@pytest.mark.slow
def test_the_videos_of_a_batch_are_shared_among_workers(small_videos, small_records):
    dataset = VideoDataset(small_records[:4], SlowFiles(str(small_videos)), TestTransform(32), num_frames=4)
    loader = EvalLoader(dataset, 4, num_workers=2, keep_workers=True)
    list(loader)  # starts the workers
    started = time.monotonic()
    assert len(list(loader)) == 1 and time.monotonic() - started < 3.5, "one worker would need 4 s"
    loader.close()


class SlowFiles(FolderFiles):
    def find(self, listed):
        time.sleep(1)
        return super().find(listed)


@pytest.mark.slow
@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_other_start_methods_give_the_same_batches(train_set, start_method):
    plain = list(TrainLoader(train_set, 4, seed=5, num_workers=0).epoch(0))
    loader = TrainLoader(train_set, 4, seed=5, num_workers=1, start_method=start_method)
    assert_same(list(loader.epoch(0)), plain)


def test_loading_leaves_the_global_generator_alone(train_set):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    list(TrainLoader(train_set, 4, seed=5, num_workers=1).epoch(0))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("world_size", [1, 2, 3, 13])
def test_evaluation_has_every_video_once_without_padding(eval_set, world_size):
    indices = []
    for rank in range(world_size):
        loader = EvalLoader(eval_set, 2, num_workers=0, rank=rank, world_size=world_size)
        batches = list(loader)
        assert len(batches) == len(loader) and sum(len(batch) for batch in batches) == loader.num_videos
        assert all(batch.valid.all() and batch.videos.shape[1:] == (2, 4, 3, 32, 32) for batch in batches)
        assert all(batch.labels.tolist() == (batch.indices % 3).tolist() for batch in batches)
        indices += [index for batch in batches for index in batch.indices.tolist()]
    assert sorted(indices) == list(range(11))


def test_evaluation_with_workers_again_and_again(eval_set):
    plain = list(EvalLoader(eval_set, 3, num_workers=0))
    loader = EvalLoader(eval_set, 3, num_workers=2)
    assert_same(list(loader), plain)
    assert_same(list(loader), plain)


@pytest.mark.parametrize("keep_workers", [False, True])
def test_evaluation_is_read_before_it_is_iterated(eval_set, keep_workers):
    plain = list(EvalLoader(eval_set, 3, num_workers=0))
    loader = EvalLoader(eval_set, 3, num_workers=1, keep_workers=keep_workers)
    for _ in range(2):
        loader.read_ahead()
        loader.read_ahead()  # once is enough
        assert len(loader._reader._keys._pending) == loader._reader._prefetch_videos
        assert_same(list(loader), plain)
    loader.read_ahead()  # never used
    loader.close()
    assert loader._reader._iterator is None
    assert_same(list(loader), plain)
    loader.close()


def mixed_list(shared_videos, tmp_path, small_videos, num_good):
    """Make a root with three videos that cannot be read before some that can."""
    broken = ["a1_trunc60_moov_at_end.mp4", "b_empty.mp4", "e1_broken_middle_zero.mp4"]
    for name in broken:
        (tmp_path / name).symlink_to(shared_videos / "broken" / name)
    for path in small_videos.iterdir():
        (tmp_path / path.name).symlink_to(path)
    records = [VideoRecord(name, 0) for name in broken]
    return records + [VideoRecord(f"v{index:02d}.mp4", index % 3) for index in range(num_good)]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_bad_training_videos_are_replaced_logged_once_and_counted(
    shared_videos, tmp_path, small_videos, caplog, num_workers
):
    records = mixed_list(shared_videos, tmp_path, small_videos, 11)
    dataset = VideoDataset(records, open_video_files(tmp_path), TrainTransform(32), num_frames=4)
    loader = TrainLoader(dataset, 4, seed=0, num_workers=num_workers, max_bad_share=0.25)
    with caplog.at_level(logging.WARNING):
        batches = list(loader.epoch(0)) + list(loader.epoch(1))
    assert sum(len(batch) for batch in batches) == 28
    assert all(batch.valid.all() and (batch.indices >= 3).all() for batch in batches)
    met = [bad.index for batch in batches for bad in batch.bad_videos]
    assert set(met) == {0, 1, 2} == set(loader.bad_videos) and len(met) >= 6
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 3 and any("b_empty.mp4: the file is empty" in line for line in lines)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_too_many_bad_videos_stop_the_run(shared_videos, tmp_path, small_videos, num_workers):
    records = mixed_list(shared_videos, tmp_path, small_videos, 11)
    files = open_video_files(tmp_path)
    pattern = (
        r"^3 of 14 listed videos \(21\.4%\) cannot be read: .*b_empty\.mp4: .*"
        r"\(more than data\.max_bad_share=0\.2 allows: repair them, remove them from the list, or raise it\)$"
    )
    train_set = VideoDataset(records, files, TrainTransform(32), num_frames=4)
    with pytest.raises(BadVideoError, match=pattern):
        list(TrainLoader(train_set, 4, seed=0, num_workers=num_workers, max_bad_share=0.2).epoch(0))
    eval_set = VideoDataset(records, files, TestTransform(32), num_frames=4)
    with pytest.raises(BadVideoError, match=pattern):
        list(EvalLoader(eval_set, 4, num_workers=num_workers, max_bad_share=0.2))


def test_bad_test_videos_stay_in_as_invalid(shared_videos, tmp_path, small_videos):
    records = mixed_list(shared_videos, tmp_path, small_videos, 4)
    dataset = VideoDataset(records, open_video_files(tmp_path), TestTransform(32), num_frames=4)
    batches = list(EvalLoader(dataset, 4, num_workers=1, max_bad_share=1))
    valid = torch.cat([batch.valid for batch in batches])
    assert valid.tolist() == [False] * 3 + [True] * 4
    assert torch.cat([batch.indices for batch in batches]).tolist() == list(range(7))
    assert not batches[0].videos[:3].any() and batches[0].videos[3].any()


def test_a_wrong_root_is_one_line(tmp_path, small_records):
    dataset = VideoDataset(small_records, open_video_files(tmp_path), TrainTransform(32), num_frames=4)
    with pytest.raises(BadVideoError, match=r"of 11 listed videos .* cannot be read: .*: no such file"):
        next(TrainLoader(dataset, 4, seed=0, num_workers=0).epoch(0))
    with pytest.raises(BadVideoError, match=r"^no replacement could be read either: \d+ of 11 listed videos"):
        next(TrainLoader(dataset, 4, seed=0, num_workers=0, max_bad_share=1).epoch(0))


class TrickyFiles(FolderFiles):
    """A root in which finding one of the videos calls `trick`."""

    def __init__(self, root, trick):
        super().__init__(str(root))
        self.trick = trick

    def find(self, listed):
        if listed == "v03.mp4":
            if self.trick == "hang":
                time.sleep(600)
            elif isinstance(self.trick, signal.Signals):
                os.kill(os.getpid(), self.trick)
            elif self.trick == "ambiguous":
                raise VideoFilesError("two files have its name")
            elif self.trick == "unreadable":
                raise VideoReadError(str(self.root), "unreadable")
            elif self.trick == "bug":
                raise KeyError("a bug")
        return super().find(listed)


def tricky_loader(small_videos, small_records, trick, crashed=None, **options):
    files = TrickyFiles(small_videos, trick)
    dataset = VideoDataset(small_records, files, TestTransform(32), num_frames=4, crashed=crashed)
    return EvalLoader(dataset, 2, num_workers=2, **options)


@pytest.mark.slow
def test_a_hanging_worker_is_an_error_that_names_its_video(small_videos, small_records):
    loader = tricky_loader(small_videos, small_records, "hang", timeout_s=3)
    started = time.monotonic()
    numbers = []
    pattern = r"^no video came for 3 s \(data\.timeout_s\): worker 1 \(pid \d+\) is reading 'v03\.mp4' for \d+ s$"
    with pytest.raises(VideoTimeoutError, match=pattern):
        for batch in loader:
            numbers.append(batch.number)
    assert numbers == [0] and time.monotonic() - started < 30


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trick", "start_method", "num_deaths"),
    [(signal.SIGABRT, "forkserver", 1), (signal.SIGKILL, "forkserver", 2), (signal.SIGKILL, "fork", 2)],
)
def test_a_dying_worker_costs_its_video_alone(
    small_videos, small_records, tmp_path, caplog, trick, start_method, num_deaths
):
    """A decoder that aborts is the video's fault at once, a SIGKILL (as for memory) if it happens again."""
    crashed = CrashedVideos(tmp_path / "crashed.jsonl")
    loader = tricky_loader(small_videos, small_records, trick, start_method=start_method, crashed=crashed)
    batches = list(loader)
    assert torch.cat([batch.indices for batch in batches]).tolist() == list(range(11))
    bad = small_records.index(VideoRecord("v03.mp4", small_records[3].label))
    assert [index for index in range(11) if not torch.cat([batch.valid for batch in batches])[index]] == [bad]
    assert loader.bad_videos[bad].reason == f"the decoder crashed on it ({trick.name})"
    assert loader.bad_videos[bad].path == str(small_videos / "v03.mp4")
    assert len(re.findall("a data worker died", caplog.text)) == num_deaths
    assert "is reading 'v03.mp4'" in caplog.text and "that video is left out, by new workers" in caplog.text
    whole = list(tricky_loader(small_videos, small_records, None))
    for ours, theirs in zip(batches, whole, strict=True):
        assert torch.equal(ours.videos[ours.valid], theirs.videos[ours.valid]), "the others are read as ever"
    # After a restart no worker meets it, and the line says why and what to do.
    again = CrashedVideos(tmp_path / "crashed.jsonl")
    restarted = tricky_loader(small_videos, small_records, trick, start_method=start_method, crashed=again)
    list(restarted)
    assert restarted.bad_videos[bad].reason == (
        f"the decoder crashed on it before ({trick.name}); remove its line in {again.path} to read it again"
    )


def test_a_worker_that_dies_in_training_changes_no_other_item(small_videos, small_records):
    def batches_of(trick):
        files = TrickyFiles(small_videos, trick)
        dataset = VideoDataset(small_records, files, TrainTransform(32), num_frames=4)
        loader = TrainLoader(dataset, 2, seed=3, num_workers=1, max_bad_share=1.0)
        read = [batch for epoch in (0, 1) for batch in loader.epoch(epoch)]
        loader.close()
        return read

    died, refused = batches_of(signal.SIGSEGV), batches_of("unreadable")
    assert any(batch.bad_videos for batch in died)
    for ours, theirs in zip(died, refused, strict=True):
        assert torch.equal(ours.videos, theirs.videos) and torch.equal(ours.indices, theirs.indices)


@pytest.mark.slow
def test_workers_that_die_for_no_video_are_an_error(small_videos, small_records, monkeypatch):
    loader = tricky_loader(small_videos, small_records, None)
    monkeypatch.setattr("video_datasets.workers.settle_worker", die)
    with pytest.raises(VideoWorkerError, match="died 3 times in a row .SIGKILL., the last: it had read no video"):
        list(loader)


def die(dies_with_parent, worker):
    os.kill(os.getpid(), signal.SIGKILL)


def test_records_of_crashes_survive_damage(tmp_path, caplog):
    path = tmp_path / "crashed.jsonl"
    CrashedVideos(path).add("a\udcff.mp4", "SIGABRT")
    with path.open("a") as file:
        file.write('{"video": "b.mp4", "rea')
    assert list(CrashedVideos(path).reasons) == ["a\udcff.mp4"]
    assert "a line cannot be read and is ignored" in caplog.text
    CrashedVideos(tmp_path / "none" / "crashed.jsonl").add("c.mp4", "SIGABRT")
    assert "a restart reads c.mp4 again" in caplog.text


def test_fatal_errors_of_a_worker_are_one_line_and_bugs_keep_their_traceback(small_videos, small_records):
    with pytest.raises(VideoFilesError, match="^two files have its name$"):
        list(tricky_loader(small_videos, small_records, "ambiguous"))
    with pytest.raises(KeyError, match="a bug"):
        list(tricky_loader(small_videos, small_records, "bug"))


@pytest.mark.slow
def test_a_slow_consumer_is_no_hang(train_set):
    batches = TrainLoader(train_set, 4, seed=0, num_workers=1, timeout_s=5).epoch(0)
    next(batches)
    time.sleep(5.5)
    assert [batch.number for batch in batches] == [1, 2]


def test_misuse_is_an_error(train_set, eval_set):
    with pytest.raises(ValueError, match="batch_size must be 1 or more"):
        TrainLoader(train_set, 0, seed=0, num_workers=0)
    with pytest.raises(ValueError, match=r"rank 2 must be in \[0, world_size=2\)"):
        EvalLoader(eval_set, 1, num_workers=0, rank=2, world_size=2)
    with pytest.raises(ValueError, match="needs a data set with a TrainTransform"):
        TrainLoader(eval_set, 1, seed=0, num_workers=0)
    with pytest.raises(ValueError, match="needs a data set with a TestTransform"):
        EvalLoader(train_set, 1, num_workers=0)
    with pytest.raises(ValueError, match="num_workers must be 0 or more"):
        EvalLoader(eval_set, 1, num_workers=-1)
    with pytest.raises(ValueError, match="start_method 'thread' is not one of"):
        EvalLoader(eval_set, 1, num_workers=1, start_method="thread")


@pytest.mark.gpu
def test_batches_in_pinned_memory_go_to_the_gpu(train_set):
    for num_workers in (0, 1):
        batch = next(TrainLoader(train_set, 4, seed=0, num_workers=num_workers, pin_memory=True).epoch(0))
        assert batch.videos.is_pinned() and batch.to("cuda", non_blocking=True).videos.is_cuda


def test_importing_the_package_is_cheap_and_its_names_are_there(repository):
    code = (
        "import sys, video_datasets; heavy = {'torch', 'torchvision', 'decord', 'av', 'numpy'} & set(sys.modules); "
        "assert not heavy, heavy; assert all(getattr(video_datasets, name) for name in video_datasets.__all__); "
        "assert not {'decord', 'av'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=repository)


def test_too_few_file_handles_are_refused(train_set, eval_set, monkeypatch):
    monkeypatch.setattr("video_datasets.loaders.free_file_handles", lambda: 35)
    for make in (lambda: TrainLoader(train_set, 2, 0, 2), lambda: EvalLoader(eval_set, 2, 2)):
        with pytest.raises(VideoWorkerError, match=r"2 workers need up to 36 open files, .* may open 35 more: raise"):
            make()
    monkeypatch.setattr("video_datasets.loaders.free_file_handles", lambda: 36)
    TrainLoader(train_set, 2, 0, 2)


def test_too_little_shared_memory_is_refused_before_a_worker_waits_for_it(train_set, eval_set, monkeypatch):
    monkeypatch.setattr("video_datasets.loaders.free_shared_memory", lambda: 100_000)
    with pytest.raises(
        VideoWorkerError, match=r"2 workers need 0 MB of shared memory .*/dev/shm has 0 MB free: enlarge"
    ):
        TrainLoader(train_set, 4, seed=0, num_workers=2)  # 2 x 8 + 4 videos of 4 x 3 x 32 x 32 bytes
    with pytest.raises(VideoWorkerError, match="lower num_workers, batch_size or test_batch_size"):
        EvalLoader(eval_set, 4, num_workers=2)
    assert TrainLoader(train_set, 4, seed=0, num_workers=0).shared_bytes == 0
    loader = TrainLoader(train_set, 1, seed=0, num_workers=2)  # 2 x 2 + 1 videos
    assert loader.shared_bytes == 5 * train_set.num_frames * 3 * 32 * 32
    EvalLoader(eval_set, 1, num_workers=1)
    with pytest.raises(VideoWorkerError, match="need 0 MB of shared memory"):  # the next epoch's are there too
        EvalLoader(eval_set, 1, num_workers=1, shared_bytes=loader.shared_bytes)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    with pytest.raises(VideoWorkerError, match="2 workers of each of 4 processes need"):
        TrainLoader(train_set, 1, seed=0, num_workers=2)
    monkeypatch.setattr("video_datasets.loaders.free_shared_memory", lambda: None)
    TrainLoader(train_set, 4, seed=0, num_workers=2)
