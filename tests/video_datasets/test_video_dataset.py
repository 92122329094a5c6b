"""Items: their content, the source of their randomness, and the handling of unreadable videos."""

import pickle
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from video_datasets import sampling
from video_datasets.annotations import VideoRecord
from video_datasets.decoding import decode
from video_datasets.randomness import item_rng, micro_batch_rng, order_rng, views_rng
from video_datasets.transforms import TestTransform, TrainTransform
from video_datasets.video_dataset import ItemKey, VideoDataset
from video_datasets.video_files import VideoFilesError, open_video_files


def train_dataset(folder, records, **options):
    return VideoDataset(records, open_video_files(folder), TrainTransform(32), num_frames=4, **options)


def test_a_training_item_is_a_function_of_its_key(small_videos, small_records):
    dataset = train_dataset(small_videos, small_records)
    key = ItemKey(index=4, seed=7, epoch=2, micro_batch=5, position=1)
    item = dataset[key]
    assert item.videos.shape == (1, 4, 3, 32, 32) and item.videos.dtype == torch.uint8
    assert (item.label, item.index, item.valid, item.number, item.bad_videos) == (1, 4, True, 5, ())
    dataset[ItemKey(3, 7, 2, 5, 0)]
    assert torch.equal(pickle.loads(pickle.dumps(dataset))[key].videos, item.videos)
    for change in ({"seed": 8}, {"epoch": 3}, {"micro_batch": 6}, {"position": 2}):
        assert not torch.equal(dataset[replace(key, **change)].videos, item.videos), change


def test_items_are_made_by_one_thread_and_leave_the_number_alone(small_videos, small_records, monkeypatch):
    dataset = train_dataset(small_videos, small_records)
    seen = []

    class CountingThreads(TrainTransform):
        def __call__(self, frames, rng):
            seen.append(torch.get_num_threads())
            return super().__call__(frames, rng)

    dataset.transform = CountingThreads(32)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        dataset[ItemKey(0)]
        assert seen == [1] and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_both_decoders_give_one_item(small_videos, small_records):
    key = ItemKey(2, 1, 1, 1, 1)
    auto, pyav = (train_dataset(small_videos, small_records, decoder=decoder)[key] for decoder in ("auto", "pyav"))
    assert torch.equal(auto.videos, pyav.videos)


def test_test_views_are_clips_times_crops(small_videos, small_records):
    files = open_video_files(small_videos)
    dataset = VideoDataset(small_records, files, TestTransform(32, num_crops=3), num_frames=4, num_clips=2)
    item = dataset[ItemKey(6)]
    assert dataset.num_views == 6 and item.videos.shape == (6, 4, 3, 32, 32)
    for clip in range(2):
        frames = decode(files.find("v06.mp4"), lambda n, clip=clip: sampling.test_indices(n, 4, 2)[clip])
        assert torch.equal(item.videos[3 * clip : 3 * clip + 3], TestTransform(32, num_crops=3)(frames))


def test_random_test_views_are_seeded_per_video(small_videos, small_records):
    files = open_video_files(small_videos)
    dataset = VideoDataset(small_records, files, TestTransform(32), 4, num_clips=2, random_test_views=True)
    item = dataset[ItemKey(6, seed=3, micro_batch=1)]
    assert torch.equal(dataset[ItemKey(6, seed=3, micro_batch=4)].videos, item.videos)
    indices = sampling.random_test_indices(26, 4, 2, views_rng(3, 6))
    frames = decode(files.find("v06.mp4"), lambda n: indices.reshape(-1))
    assert torch.equal(item.videos.flatten(0, 1), TestTransform(32)(frames)[0])
    assert not torch.equal(dataset[ItemKey(6, seed=4)].videos, item.videos)


def test_an_unreadable_training_video_is_replaced(small_videos, small_records, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    for path in small_videos.iterdir():
        (tmp_path / path.name).symlink_to(path)
    records = [VideoRecord("broken.mp4", 0), VideoRecord("none.mp4", 1), *small_records]
    dataset = train_dataset(tmp_path, records)
    shown = Counter()
    for position in range(40):
        read = []
        item = dataset.load(ItemKey(position % 2, 1, 0, 0, position), read.append)
        assert item.valid and item.index >= 2 and item.label == records[item.index].label
        assert [bad.index for bad in item.bad_videos] == read[:-1] and read[0] == position % 2
        assert read[-1] == item.index
        again = dataset[ItemKey(position % 2, 1, 0, 0, position)]
        assert again.index == item.index and torch.equal(again.videos, item.videos)
        shown[item.index] += 1
    assert len(shown) > 6  # by chance, not always the next one
    bad = dataset[ItemKey(1)].bad_videos[0]
    assert bad.path.endswith("none.mp4") and bad.reason.startswith("no such file")


def test_where_nothing_can_be_read(tmp_path):
    dataset = train_dataset(tmp_path, [VideoRecord("a.mp4", 0), VideoRecord("b.mp4", 0)])
    item = dataset[ItemKey(0)]
    assert not item.valid and len(item.bad_videos) == 8 and item.videos.shape == (1, 4, 3, 32, 32)
    test = VideoDataset([VideoRecord("a.mp4", 5)], open_video_files(tmp_path), TestTransform(32), 4)
    item = test[ItemKey(0)]
    assert (item.valid, item.index, item.label, len(item.bad_videos)) == (False, 0, 5, 1) and not item.videos.any()


def test_ambiguous_names_are_found_when_the_data_set_is_made(tmp_path):
    for folder in "ab":
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "v.mp4").touch()
    with pytest.raises(VideoFilesError, match=r"'a/v\.mp4' and 'b/v\.mp4'"):
        train_dataset(tmp_path, [VideoRecord("v.mp4", 0)])


def test_paths_are_kept_as_listed(tmp_path):
    paths = ["a b.mp4", "été/v.avi", "x", "日本.webm"]
    dataset = train_dataset(tmp_path, [VideoRecord(path, i) for i, path in enumerate(paths)])
    assert [dataset.path(i) for i in range(4)] == paths and [dataset.label(i) for i in range(4)] == [0, 1, 2, 3]


def test_misuse_is_an_error(small_videos, small_records):
    files = open_video_files(small_videos)
    with pytest.raises(ValueError, match="at least one video"):
        VideoDataset([], files, TestTransform(32), 4)
    with pytest.raises(ValueError, match="one view, found num_clips 2"):
        VideoDataset(small_records, files, TrainTransform(32), 4, num_clips=2)
    with pytest.raises(ValueError, match="num_frames 0"):
        VideoDataset(small_records, files, TestTransform(32), 0)
    with pytest.raises(ValueError, match="decoder 'x' is unknown"):
        VideoDataset(small_records, files, TestTransform(32), 4, decoder="x")


def test_no_two_purposes_share_numbers():
    generators = [
        order_rng(0, 0),
        order_rng(0, 1),
        order_rng(1, 0),
        micro_batch_rng(0, 0, 0),
        micro_batch_rng(0, 0, 1),
        micro_batch_rng(0, 1, 0),
        item_rng(0, 0, 0, 0),
        item_rng(0, 0, 0, 0, 0),
        item_rng(0, 0, 0, 0, 0, 0),
        item_rng(0, 0, 0, 1),
        item_rng(0, 0, 1, 0),
        views_rng(0, 0),
        views_rng(0, 1),
    ]
    draws = {generator.bytes(16) for generator in generators}
    assert len(draws) == len(generators)
    assert np.array_equal(micro_batch_rng(3, 1, 2).random(4), micro_batch_rng(3, 1, 2).random(4))
    with pytest.raises(ValueError, match="seed must be 0 or more"):
        order_rng(-1, 0)
