"""Views decoded on the training device, here the CPU: the same pixels and draws as in the workers."""

import numpy as np
import pytest
import torch

from video_datasets.annotations import VideoRecord
from video_datasets.batches import collate
from video_datasets.decoding import VideoReadError
from video_datasets.stored_frames import FramesWriter, StoreSettings
from video_datasets.transforms import TrainTransform
from video_datasets.video_dataset import ItemKey, VideoDataset
from video_datasets.video_files import open_video_files

SIZES = ((40, 56), (64, 48), (27, 27))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory):
    """Return a folder of stored frames of several sizes, larger and smaller than the input."""
    folder = tmp_path_factory.mktemp("stored")
    rng = np.random.default_rng(0)
    for number, (height, width) in enumerate(SIZES):
        with (folder / f"{number}.mp4").open("wb") as file:
            writer = FramesWriter(file, StoreSettings())
            for _ in range(9):
                writer.add(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
            writer.finish(9, list(range(9)))
    return folder


def batch_of(folder, keys, **options):
    records = [VideoRecord(f"{number}.mp4", number) for number in range(len(SIZES))]
    dataset = VideoDataset(records, open_video_files(folder), TrainTransform(28), num_frames=4, **options)
    return collate([dataset.load(key) for key in keys])


@pytest.mark.parametrize("epoch", range(4))
def test_views_equal_those_of_the_workers(folder, epoch: int) -> None:
    keys = [ItemKey(index, 7, epoch, 0, index) for index in range(len(SIZES))]
    worker = batch_of(folder, keys, colors_later=True)
    device = batch_of(folder, keys, decode_later=True)
    assert device.videos.numel() == 0 and device.encoded is not None
    assert torch.equal(device.training_views("cpu"), worker.training_views("cpu"))
    for first, second in zip(worker.colors, device.colors, strict=True):
        assert first.gray == second.gray
        for mine, other in zip(first[:2], second[:2], strict=True):
            assert (mine is None) == (other is None) and (mine is None or np.array_equal(mine, other))


def test_videos_and_damaged_frames_count_as_unreadable(folder, tmp_path) -> None:
    (tmp_path / "0.mp4").write_bytes(b"a video, not stored frames")
    (tmp_path / "1.mp4").write_bytes((folder / "1.mp4").read_bytes()[:-30])
    (tmp_path / "2.mp4").write_bytes((folder / "2.mp4").read_bytes())
    batch = batch_of(tmp_path, [ItemKey(index, 1, position=index) for index in range(3)], decode_later=True)
    assert set(batch.indices.tolist()) == {2}, "replaced by the one that can be read"
    reasons = {bad.reason for bad in batch.bad_videos}
    assert any("not stored frames" in reason for reason in reasons) and any("complete" in reason for reason in reasons)
    (tmp_path / "2.mp4").unlink()
    assert not batch_of(tmp_path, [ItemKey(0), ItemKey(2)], decode_later=True).valid.any()


def test_a_frame_that_the_device_cannot_decode_is_one_line(folder) -> None:
    batch = batch_of(folder, [ItemKey(0)], decode_later=True)
    batch.encoded[0].data[:20] = 0
    with pytest.raises(VideoReadError, match="no JPEG of 56x40 .*verify.py --full") as caught:
        batch.training_views("cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.gpu
def test_views_on_a_gpu_are_near_those_of_the_workers(folder) -> None:
    keys = [ItemKey(index, 7, 1, 0, index) for index in range(len(SIZES))]
    expected = batch_of(folder, keys, colors_later=True).training_views("cpu").int()
    found = batch_of(folder, keys, decode_later=True).training_views("cuda").cpu().int()
    assert (found - expected).abs().float().mean() < 3
