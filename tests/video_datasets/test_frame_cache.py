"""Decoded frames kept for later epochs: the same pixels, in bounded space, with several processes at work."""

import multiprocessing
import os
import pickle

import numpy as np
import pytest
import torch

from video_datasets.annotations import VideoRecord
from video_datasets.decoding import VideoReadError
from video_datasets.frame_cache import FrameCache
from video_datasets.transforms import TestTransform, TrainTransform
from video_datasets.video_dataset import ItemKey, VideoDataset
from video_datasets.video_files import open_video_files

NUM_FRAMES = 12


@pytest.fixture
def video(tmp_path):
    path = tmp_path / "video.bin"
    path.write_bytes(b"a video")
    return path


class Decoder:
    """Returns frames of random pixels, and counts its calls."""

    def __init__(self, num_frames: int = NUM_FRAMES, height: int = 6, width: int = 8):
        self.frames = np.random.default_rng(0).integers(0, 256, (num_frames, height, width, 3), dtype=np.uint8)
        self.num_calls = 0

    def __call__(self, source, choose):
        self.num_calls += 1
        return self.frames[choose(len(self.frames))]


def choice(*indices: int):
    return lambda num_video_frames: np.array(indices)


def test_other_frames_of_a_video_come_from_the_cache(tmp_path, video):
    cache, decoder = FrameCache(tmp_path / "cache", 10**6), Decoder()
    np.testing.assert_array_equal(cache.read(video, choice(3, 1), decoder), decoder.frames[[3, 1]])
    assert decoder.num_calls == 2  # once for the frames, once for all
    np.testing.assert_array_equal(cache.read(video, choice(5, 5, 0), decoder), decoder.frames[[5, 5, 0]])
    again = pickle.loads(pickle.dumps(cache))
    np.testing.assert_array_equal(again.read(video, choice(11), decoder), decoder.frames[[11]])
    assert decoder.num_calls == 2


def test_fixed_choices_keep_their_frames_alone(tmp_path, video):
    cache, decoder = FrameCache(tmp_path / "cache", 10**6), Decoder()
    for _ in range(2):
        np.testing.assert_array_equal(cache.read(video, choice(2, 4), decoder, "views"), decoder.frames[[2, 4]])
    assert decoder.num_calls == 1
    assert cache.num_bytes == 2 * 6 * 8 * 3 + 128
    cache.read(video, choice(2, 4), decoder, "other views")
    assert decoder.num_calls == 2


def test_a_changed_file_is_decoded_again(tmp_path, video):
    cache, decoder = FrameCache(tmp_path / "cache", 10**6), Decoder()
    cache.read(video, choice(1), decoder, "views")
    os.utime(video, ns=(1, 1))
    cache.read(video, choice(1), decoder, "views")
    assert decoder.num_calls == 2


def test_size_is_bounded(tmp_path, caplog):
    entry = NUM_FRAMES * 6 * 8 * 3 + 128
    cache, decoder = FrameCache(tmp_path / "cache", int(2.5 * entry)), Decoder()
    caplog.set_level("INFO")
    for number in range(4):
        path = tmp_path / f"{number}.bin"
        path.write_bytes(b"x")
        np.testing.assert_array_equal(cache.read(path, choice(0), decoder), decoder.frames[[0]])
    assert cache.num_bytes == 2 * entry == sum(p.stat().st_size for p in (tmp_path / "cache").glob("*/*.npy"))
    assert "is full" in caplog.text
    assert decoder.num_calls == 2 + 2 + 1 + 1
    assert FrameCache(tmp_path / "cache", 10**6).num_bytes == 2 * entry  # counted again


def test_a_damaged_entry_is_rebuilt(tmp_path, video, caplog):
    cache, decoder = FrameCache(tmp_path / "cache", 10**6), Decoder()
    cache.read(video, choice(1), decoder)
    (entry,) = (tmp_path / "cache").glob("*/*.npy")
    entry.write_bytes(entry.read_bytes()[:200])
    np.testing.assert_array_equal(cache.read(video, choice(7), decoder), decoder.frames[[7]])
    assert "damaged" in caplog.text
    assert decoder.num_calls == 4


def test_videos_that_cannot_be_kept_are_decoded(tmp_path, video):
    class Damaged(Decoder):
        def __call__(self, source, choose):
            indices = choose(len(self.frames))
            if 9 in indices:
                raise VideoReadError(str(source), "damaged at frame 9")
            return super().__call__(source, choose)

    cache, decoder = FrameCache(tmp_path / "cache", 10**6), Damaged()
    for _ in range(2):
        np.testing.assert_array_equal(cache.read(video, choice(1), decoder), decoder.frames[[1]])
    assert cache.num_bytes == 0
    assert list((tmp_path / "cache").glob(".*.tmp")) == []
    with pytest.raises(VideoReadError, match="frame 9"):
        cache.read(video, choice(9), decoder)


def test_unfinished_entries_of_dead_processes_are_cleared(tmp_path):
    folder = tmp_path / "cache"
    folder.mkdir()
    old, young = folder / ".a.host.1.1000.tmp", folder / ".b.host.2.300.tmp"
    old.touch()
    young.touch()
    os.utime(old, (1, 1))
    assert FrameCache(folder, 10**6).num_bytes == 300
    assert not old.exists() and young.exists()


def _fill(folder, paths, max_bytes):
    cache, decoder = FrameCache(folder, max_bytes), Decoder()
    for path in paths:
        np.testing.assert_array_equal(cache.read(path, choice(4), decoder), decoder.frames[[4]])


def test_processes_share_a_folder(tmp_path):
    """Three processes fill it with the same videos, in another order each; its size stays true and bounded."""
    entry = NUM_FRAMES * 6 * 8 * 3 + 128
    paths = [tmp_path / f"{number}.bin" for number in range(12)]
    for path in paths:
        path.write_bytes(b"x")
    context = multiprocessing.get_context("fork")
    orders = (paths, paths[::-1], paths[6:] + paths[:6])
    processes = [context.Process(target=_fill, args=(tmp_path / "cache", order, 8 * entry)) for order in orders]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    stored = sum(path.stat().st_size for path in (tmp_path / "cache").glob("*/*.npy"))
    assert stored <= 8 * entry
    assert FrameCache(tmp_path / "cache", 8 * entry).num_bytes == stored


@pytest.mark.parametrize("transform", [TrainTransform(24), TestTransform(24, 1), TestTransform(24, 3)])
def test_items_are_the_same_with_and_without_cache(tmp_path, transform, made_video):
    """Also if frames are larger than the transforms need, and are therefore stored smaller."""
    files = open_video_files(made_video.parent)
    records = [VideoRecord(made_video.name, 0)]
    cache = FrameCache(tmp_path / "cache", 10**8, transform.short_side)
    plain = VideoDataset(records, files, transform, num_frames=4)
    cached = VideoDataset(records, files, transform, num_frames=4, cache=cache)
    for epoch in (0, 0, 1, 2):
        key = ItemKey(0, epoch=epoch)
        assert torch.equal(cached.load(key).videos, plain.load(key).videos)
    assert cache.num_bytes > 0


@pytest.fixture(scope="module")
def made_video(tmp_path_factory):
    import av

    path = tmp_path_factory.mktemp("videos") / "made.mp4"
    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(20):
            pixels = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path
