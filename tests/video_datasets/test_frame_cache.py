"""Decoded frames kept for later epochs: the same pixels, in bounded space, with several processes at work."""

import multiprocessing
import os
import pickle
from collections import namedtuple
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from trainers.commands.data.storing import Job, store_video
from video_datasets import frame_cache, stored_frames
from video_datasets.annotations import VideoRecord
from video_datasets.decoding import VideoReadError, decode
from video_datasets.frame_cache import FrameCache
from video_datasets.stored_frames import StoreSettings, encode_jpeg
from video_datasets.transforms import TestTransform, TrainTransform
from video_datasets.video_dataset import ItemKey, VideoDataset
from video_datasets.video_files import open_video_files

NUM_FRAMES = 12
RAW = StoreSettings(None, None, None)


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

    def __call__(self, source, choose, *, change=None):
        self.num_calls += 1
        frames = self.frames[choose(len(self.frames))]
        return frames if change is None else change(frames)


def stored_bytes(folder) -> int:
    return sum(path.stat().st_size for path in folder.glob("*/*.frames"))


def choice(*indices: int):
    return lambda num_video_frames: np.array(indices)


def test_other_frames_of_a_video_come_from_the_cache(tmp_path, video):
    cache, decoder = FrameCache(tmp_path / "cache", 10**6, RAW), Decoder()
    np.testing.assert_array_equal(cache.read(video, choice(3, 1), decoder), decoder.frames[[3, 1]])
    assert decoder.num_calls == 2  # once for the frames, once for all
    np.testing.assert_array_equal(cache.read(video, choice(5, 5, 0), decoder), decoder.frames[[5, 5, 0]])
    again = pickle.loads(pickle.dumps(cache))
    np.testing.assert_array_equal(again.read(video, choice(11), decoder), decoder.frames[[11]])
    assert decoder.num_calls == 2


def test_fixed_choices_keep_their_frames_alone(tmp_path, video):
    cache, decoder = FrameCache(tmp_path / "cache", 10**6, RAW), Decoder()
    for _ in range(2):
        np.testing.assert_array_equal(cache.read(video, choice(2, 4), decoder, "views"), decoder.frames[[2, 4]])
    assert decoder.num_calls == 1
    assert cache.num_bytes == stored_bytes(tmp_path / "cache") < 2 * 6 * 8 * 3 + 300
    cache.read(video, choice(2, 4), decoder, "other views")
    assert decoder.num_calls == 2


def test_a_changed_file_is_decoded_again(tmp_path, video):
    cache, decoder = FrameCache(tmp_path / "cache", 10**6, RAW), Decoder()
    cache.read(video, choice(1), decoder, "views")
    os.utime(video, ns=(1, 1))
    cache.read(video, choice(1), decoder, "views")
    assert decoder.num_calls == 2


def test_size_is_bounded(tmp_path, caplog):
    entry = NUM_FRAMES * 6 * 8 * 3 + 300
    cache, decoder = FrameCache(tmp_path / "cache", int(2.5 * entry), RAW), Decoder()
    for number in range(4):
        path = tmp_path / f"{number}.bin"
        path.write_bytes(b"x")
        np.testing.assert_array_equal(cache.read(path, choice(0), decoder), decoder.frames[[0]])
    stored = stored_bytes(tmp_path / "cache")
    assert 1.8 * entry < cache.num_bytes == stored < 2 * entry
    assert caplog.text.count("is full") == 1
    assert decoder.num_calls == 2 + 2 + 1 + 1
    assert FrameCache(tmp_path / "cache", 10**6, RAW).num_bytes == stored  # counted again


def test_a_damaged_entry_is_rebuilt(tmp_path, video, caplog):
    cache, decoder = FrameCache(tmp_path / "cache", 10**6, RAW), Decoder()
    cache.read(video, choice(1), decoder)
    (entry,) = (tmp_path / "cache").glob("*/*.frames")
    entry.write_bytes(entry.read_bytes()[:200])
    np.testing.assert_array_equal(cache.read(video, choice(7), decoder), decoder.frames[[7]])
    assert "damaged" in caplog.text
    assert decoder.num_calls == 4


def test_videos_that_cannot_be_kept_are_decoded(tmp_path, video):
    class Damaged(Decoder):
        def __call__(self, source, choose, *, change=None):
            indices = choose(len(self.frames))
            if 9 in indices:
                raise VideoReadError(str(source), "damaged at frame 9")
            return super().__call__(source, choose, change=change)

    cache, decoder = FrameCache(tmp_path / "cache", 10**6, RAW), Damaged()
    for _ in range(2):
        np.testing.assert_array_equal(cache.read(video, choice(1), decoder), decoder.frames[[1]])
    assert cache.num_bytes == 0
    assert list((tmp_path / "cache").glob(".*.tmp")) == []
    with pytest.raises(VideoReadError, match="frame 9"):
        cache.read(video, choice(9), decoder)


def test_unfinished_entries_of_dead_processes_are_cleared(tmp_path):
    folder = tmp_path / "cache"
    folder.mkdir()
    old, young = folder / ".a.host.1.tmp", folder / ".b.host.2.tmp"
    old.write_bytes(b"x" * 1000)
    young.write_bytes(b"x" * 300)
    os.utime(old, (1, 1))
    (folder / "ab").mkdir()
    (folder / "ab" / "earlier.npy").write_bytes(b"an entry of an earlier version")
    assert FrameCache(folder, 10**6, RAW).num_bytes == 300
    assert not old.exists() and young.exists() and not list((folder / "ab").iterdir())


def _fill(folder, paths, max_bytes):
    cache, decoder = FrameCache(folder, max_bytes, RAW), Decoder()
    for path in paths:
        np.testing.assert_array_equal(cache.read(path, choice(4), decoder), decoder.frames[[4]])


def test_processes_share_a_folder(tmp_path):
    """Three processes fill it with the same videos, in another order each; its size stays true and bounded."""
    entry = NUM_FRAMES * 6 * 8 * 3 + 300
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
    stored = stored_bytes(tmp_path / "cache")
    assert 6 * entry < stored <= 8 * entry
    assert FrameCache(tmp_path / "cache", 8 * entry, RAW).num_bytes == stored


@pytest.mark.parametrize("transform", [TrainTransform(24), TestTransform(24, 1), TestTransform(24, 3)])
def test_items_are_the_same_with_and_without_cache(tmp_path, transform, made_video):
    """Also if frames are larger than the transforms need, and are therefore stored smaller."""
    files = open_video_files(made_video.parent)
    records = [VideoRecord(made_video.name, 0)]
    cache = FrameCache(tmp_path / "cache", 10**8, StoreSettings(None, transform.short_side, None))
    plain = VideoDataset(records, files, transform, num_frames=4)
    cached = VideoDataset(records, files, transform, num_frames=4, cache=cache)
    for epoch in (0, 0, 1, 2):
        key = ItemKey(0, epoch=epoch)
        assert torch.equal(cached.load(key).videos, plain.load(key).videos)
    assert cache.num_bytes > 0


def load(cache: FrameCache, made_video, transform, epoch: int) -> torch.Tensor:
    files = open_video_files(made_video.parent)
    dataset = VideoDataset([VideoRecord(made_video.name, 0)], files, transform, num_frames=4, cache=cache)
    return dataset.load(ItemKey(0, epoch=epoch)).videos


@pytest.mark.parametrize("transform", [TrainTransform(24), TestTransform(24, 3)])
def test_jpeg_items_do_not_depend_on_what_the_cache_holds(tmp_path, transform, made_video):
    """Stored now, stored before, or not stored for want of room: the same pixels, those of a store of such frames."""
    settings = StoreSettings(8, transform.short_side)
    cache = FrameCache(tmp_path / "cache", 10**8, settings)
    full = FrameCache(tmp_path / "full", 10, settings)
    packed = tmp_path / "packed"
    packed.mkdir()
    store_video(Job("", "v", str(made_video), str(packed / "made.mp4"), settings))
    for epoch in range(4):
        item = load(cache, made_video, transform, epoch)
        assert torch.equal(item, load(cache, made_video, transform, epoch))
        assert torch.equal(item, load(full, made_video, transform, epoch))
        assert torch.equal(item, load(full, packed / "made.mp4", transform, epoch))
    assert cache.num_bytes > 0 and full.num_bytes == 0
    assert not torch.equal(item, load(None, made_video, transform, epoch))


class Disk:
    """A disk of 100 GB of which others leave `free` bytes, as the cache sees it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder, free: float):
        self.free = free
        usage = namedtuple("usage", "total free")
        patched = SimpleNamespace(disk_usage=lambda _: usage(int(1e11), int(self.free - stored_bytes(folder))))
        monkeypatch.setattr(frame_cache, "shutil", patched)


def test_the_disk_keeps_room_whoever_fills_it(tmp_path, monkeypatch, caplog):
    disk = Disk(monkeypatch, tmp_path / "cache", 1e10 + 5000)
    cache, decoder = FrameCache(tmp_path / "cache", 10**9, RAW), Decoder()

    def read(name: str) -> None:
        (tmp_path / name).write_bytes(b"x")
        np.testing.assert_array_equal(cache.read(tmp_path / name, choice(0), decoder), decoder.frames[[0]])

    for number in range(4):
        read(f"{number}.bin")
    assert 3000 < stored_bytes(tmp_path / "cache") < 5000, "the disk has 10 GB left"
    assert caplog.text.count("leaves 10.0 GB of its disk free") == 1
    disk.free += 2000  # another program has deleted something
    read("4.bin")
    assert 5000 < stored_bytes(tmp_path / "cache") < 7000
    disk.free = 1e10
    before = stored_bytes(tmp_path / "cache")
    read("5.bin")
    assert stored_bytes(tmp_path / "cache") == before
    reserved = FrameCache(tmp_path / "reserved", 10**9, RAW, reserve=10**6)
    disk.free = 1e10 + 10**6
    reserved.read(tmp_path / "5.bin", choice(0), decoder)
    assert reserved.num_bytes == 0


def test_a_disk_that_fills_while_an_entry_is_written_costs_that_entry(tmp_path, video, monkeypatch):
    disk = Disk(monkeypatch, tmp_path / "cache", 2e10)
    settings = StoreSettings(NUM_FRAMES, None, 90)
    cache, decoder = FrameCache(tmp_path / "cache", 10**9, settings), Decoder()
    pieces = []

    def encode_and_fill(frame, quality):
        pieces.append(frame)
        disk.free = 0 if len(pieces) == 5 else disk.free
        return encode_jpeg(frame, quality)

    monkeypatch.setattr(stored_frames, "encode_jpeg", encode_and_fill)
    assert cache.read(video, choice(0, 11), decoder).shape == (2, 6, 8, 3)
    assert len(pieces) == 5 and cache.num_bytes == 0 and list((tmp_path / "cache").glob(".*.tmp")) == []


def test_entries_are_given_back(tmp_path):
    cache, decoder = FrameCache(tmp_path / "cache", 10**9, RAW), Decoder()
    for number in range(6):
        (tmp_path / f"{number}.bin").write_bytes(b"x")
        cache.read(tmp_path / f"{number}.bin", choice(0), decoder)
    before = cache.num_bytes
    freed = cache.give_back(before // 3)
    assert before // 3 <= freed < before // 2 and cache.num_bytes == stored_bytes(tmp_path / "cache") == before - freed
    assert cache.give_back(10**9) == before - freed and cache.num_bytes == 0
    assert cache.give_back(1) == 0


@pytest.mark.parametrize("settings", [StoreSettings(16, 36), StoreSettings(None, 36, None)])
def test_frames_are_held_at_their_small_size(tmp_path, settings, made_video):
    """However large the video: what is held of it at full size is a few frames."""
    sizes = []

    def read(source, choose, *, change=None):
        def note(piece):
            sizes.append(piece.nbytes)
            return change(piece)

        return decode(source, choose, "pyav", change=note)

    FrameCache(tmp_path / "cache", 10**9, settings).read(made_video, choice(3, 5), read)
    assert len(sizes) >= 16 and max(sizes) == 48 * 64 * 3


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
