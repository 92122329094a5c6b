"""Changes of test videos: exactly what each does, and that it follows from the seed and the video alone."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from video_datasets.annotations import VideoRecord
from video_datasets.backgrounds import BackgroundSwap, Placement
from video_datasets.changes import CHANGES, VideoChange
from video_datasets.decoding import VideoReadError
from video_datasets.randomness import change_rng
from video_datasets.transforms import TestTransform
from video_datasets.video_dataset import ItemKey, VideoDataset
from video_datasets.video_files import open_video_files

ANYWHERE = Placement("a.mp4", np.empty(0), TestTransform(32))


def frames(num_frames: int = 8, size: int = 32, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.integers(0, 256, (num_frames, 3, size, size), dtype=np.uint8))


def changed(name: str, video: torch.Tensor, seed: int = 3, index: int = 5) -> torch.Tensor:
    return VideoChange(name)(video[None], seed, index, ANYWHERE)[0]


def shown(name: str, num_frames: int, index: int = 5) -> list[int]:
    """Return which of the frames a change shows, from frames that hold their number."""
    video = torch.arange(num_frames, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 4, 4).contiguous()
    result = changed(name, video, index=index)
    assert result.shape == video.shape and (result == result[:, :1, :1, :1]).all()
    return result[:, 0, 0, 0].tolist()


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_follows_from_seed_and_video_and_leaves_its_input(name: str) -> None:
    video = frames()
    before = video.clone()
    first = changed(name, video)
    assert first.dtype == torch.uint8 and first.shape == video.shape and torch.equal(video, before)
    assert not torch.equal(first, video)
    again = pickle.loads(pickle.dumps(VideoChange(name)))
    assert torch.equal(again(video[None], 3, 5, ANYWHERE)[0], first)
    is_drawn = name in ("shuffle", "drop", "noise")
    others = [changed(name, video, seed=4), changed(name, video, index=6)]
    assert any(not torch.equal(other, first) for other in others) == is_drawn


def test_order_changes() -> None:
    assert shown("reverse", 5) == [4, 3, 2, 1, 0]
    assert shown("static", 5) == [2] * 5 and shown("static", 4) == [2] * 4
    assert shown("freeze", 5) == [0, 1, 2, 2, 2] and shown("freeze", 4) == [0, 1, 2, 2]
    assert all(shown(name, 1) == [0] for name in ("reverse", "shuffle", "static", "freeze", "drop"))


def test_shuffle_has_every_frame_once_in_another_order() -> None:
    orders = [shown("shuffle", 4, index) for index in range(300)]
    assert all(sorted(order) == [0, 1, 2, 3] and order != [0, 1, 2, 3] for order in orders)
    assert len({tuple(order) for order in orders}) == 23, "all other orders of four"
    assert shown("shuffle", 2) == [1, 0]


def test_drop_repeats_the_frame_before_a_lost_one() -> None:
    lost = set()
    for index in range(60):
        order = shown("drop", 8, index)
        missing = {n for n in range(8) if n not in order}
        assert len(missing) == 2 and 0 not in missing
        assert order == [max(m for m in range(n + 1) if m not in missing) for n in range(8)]
        lost |= missing
    assert lost == set(range(1, 8))


def test_brightness() -> None:
    video = frames()
    assert torch.equal(changed("dark", video), (video.double() / 2).round().to(torch.uint8))
    assert torch.equal(changed("bright", video), (video.double() * 1.5).round().clamp(max=255).to(torch.uint8))


def test_blur_is_a_gaussian() -> None:
    size, middle = 224, 112
    video = torch.zeros(2, 3, size, size, dtype=torch.uint8)
    video[0, :, middle, middle] = 255
    video[1, :, :, middle:] = 200
    result = changed("blur", video)
    distance = torch.arange(size, dtype=torch.double) - middle
    weights = (-(distance**2) / 8).exp()  # standard deviation 2
    weights /= weights.sum()
    point = (255 * weights[:, None] * weights).round()
    assert (result[0].double() - point).abs().max() <= 1
    edge = (200 * weights.cumsum(0)).round()
    assert (result[1, 0, middle].double() - edge)[8:-8].abs().max() <= 1


def test_noise_has_its_deviation_and_no_mean() -> None:
    video = torch.full((4, 3, 64, 64), 128, dtype=torch.uint8)
    difference = changed("noise", video).double() - 128
    assert difference.std().item() == pytest.approx(25.5, rel=0.02) and abs(difference.mean().item()) < 0.5
    assert not torch.equal(difference[0], difference[1])
    assert changed("noise", torch.full((1, 3, 64, 64), 255, dtype=torch.uint8)).min() < 255, "no overflow to black"


def test_low_resolution_keeps_large_things_and_loses_fine_ones() -> None:
    stripes = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    stripes[..., ::2] = 200
    assert (changed("low_resolution", stripes)[..., 8:24].double() - 100).abs().max() <= 2
    halves = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    halves[..., 16:] = 200
    result = changed("low_resolution", halves)
    assert result[..., :12].max() <= 10 and result[..., 20:].min() >= 190


def test_jpeg_is_that_of_another_encoder() -> None:
    smooth = torch.nn.functional.interpolate(frames(2, 4).float(), size=(32, 32), mode="bilinear").to(torch.uint8)
    expected = [torchvision.io.decode_jpeg(torchvision.io.encode_jpeg(frame, quality=10)) for frame in smooth]
    difference = changed("jpeg", smooth).double() - torch.stack(expected).double()
    assert difference.abs().mean() < 1.5, "another implementation of the transforms rounds otherwise"
    assert (changed("jpeg", smooth).double() - smooth.double()).abs().mean() > 3


def picture(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.astype(np.uint8)).save(path)


def half_mask(columns: slice, height: int = 40, width: int = 48) -> np.ndarray:
    mask = np.zeros((height, width))
    mask[:, columns] = 255
    return mask


@pytest.fixture
def swap(tmp_path: Path) -> BackgroundSwap:
    picture(tmp_path / "scenes" / "green.png", np.full((50, 90, 3), (10, 200, 30)))
    picture(tmp_path / "masks" / "still" / "a.png", half_mask(slice(0, 24)))
    for number in range(3):
        picture(tmp_path / "masks" / "moving" / "a" / f"{number}.png", half_mask(slice(16 * number, 16 * number + 16)))
    return BackgroundSwap(tmp_path / "masks", tmp_path / "scenes")


@pytest.mark.parametrize(("framing", "num_crops"), [("crop", 1), ("crop", 3), ("letterbox", 1), ("stretch", 1)])
def test_a_background_is_replaced_where_the_mask_is_black(swap: BackgroundSwap, framing: str, num_crops: int) -> None:
    transform = TestTransform(32, num_crops, framing)
    video = np.random.default_rng(0).integers(0, 256, (4, 40, 48, 3), dtype=np.uint8)
    views = transform(video)  # (crops, T, 3, S, S)
    placement = Placement("still/a.mp4", np.tile([0.1, 0.3, 0.6, 0.9], (num_crops, 1)), transform)
    result = VideoChange("swap_background", swap)(views, 0, 0, placement)
    # Columns of the frame, through the same geometry: what is left of column 24 stays.
    columns = np.broadcast_to(np.arange(48)[None, None, :, None] * 5, (1, 40, 48, 3)).astype(np.uint8)
    column = transform(columns)[:, :, 0].float() / 5  # (crops, 1, S, S)
    bars = transform(np.zeros_like(columns))[:, :, :1] != 0  # (crops, 1, 1, S, S)
    kept = ((column < 22)[:, :, None] | bars).expand_as(views)
    replaced = ((column > 25)[:, :, None] & ~bars).expand_as(views)
    assert kept.any() and replaced.any() and (framing == "letterbox") == bool(bars.any())
    assert torch.equal(result[kept], views[kept])
    green = torch.tensor([10, 200, 30], dtype=torch.uint8).view(3, 1, 1).expand_as(views)
    assert torch.equal(result[replaced], green[replaced])


def test_masks_of_single_frames_follow_their_moments(swap: BackgroundSwap) -> None:
    transform = TestTransform(48, 1, "stretch")
    views = transform(np.full((3, 40, 48, 3), 255, dtype=np.uint8))
    moments = np.array([[2.5 / 3, 0.5 / 3, 1.5 / 3]])  # frames 2, 0, 1 of three
    result = VideoChange("swap_background", swap)(views, 0, 0, Placement("moving/a.mp4", moments, transform))
    for frame, number in zip(result[0], (2, 0, 1), strict=True):
        kept = (frame == 255).all(0).all(0)  # (S,) columns
        assert kept.nonzero().flatten().tolist() == list(range(16 * number, 16 * number + 16))


def test_backgrounds_are_drawn_for_each_video(swap: BackgroundSwap, tmp_path: Path) -> None:
    for shade in range(5):
        picture(tmp_path / "scenes" / f"{shade}.png", np.full((40, 40, 3), 50 * shade))
    swap = BackgroundSwap(tmp_path / "masks", tmp_path / "scenes")
    transform = TestTransform(32)
    views = transform(np.full((2, 40, 48, 3), 255, dtype=np.uint8))
    placement = Placement("still/a.mp4", np.array([[0.2, 0.7]]), transform)
    corners = [VideoChange("swap", swap)(views, 0, index, placement)[0, :, :, 0, -1].tolist() for index in range(40)]
    assert all(first == second for first, second in corners), "one picture for all frames"
    assert len({tuple(first) for first, _ in corners}) == 6


def test_bad_masks_and_backgrounds_are_one_line(swap: BackgroundSwap, tmp_path: Path) -> None:
    assert swap.without_mask(["still/a.mp4", "still/a.mp4#t=1,2", "moving/a.avi", "b.mp4"]) == [
        "still/a.mp4#t=1,2",
        "b.mp4",
    ]
    picture(tmp_path / "masks" / "still" / "a#t=1.5,2.png", half_mask(slice(0, 24)))
    assert swap.without_mask(["still/a.mp4#t=1.5,2"]) == []
    with pytest.raises(ValueError, match="nothing: is not a folder"):
        BackgroundSwap(tmp_path / "nothing", tmp_path / "scenes")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty: has no pictures \(.jpg"):
        BackgroundSwap(tmp_path / "masks", tmp_path / "empty")
    (tmp_path / "masks" / "still" / "a.png").write_bytes(b"no picture")
    transform = TestTransform(32)
    views = transform(np.zeros((2, 40, 48, 3), dtype=np.uint8))
    with pytest.raises(VideoReadError, match="a.png: cannot be read as a picture"):
        swap(views, change_rng(0, 0, "x"), Placement("still/a.mp4", np.array([[0.2, 0.7]]), transform))
    picture(tmp_path / "masks" / "moving" / "a" / "1.png", np.zeros((20, 20, 3)))
    with pytest.raises(VideoReadError, match="moving/a.mp4: its masks in .*moving/a differ in size"):
        swap(views, change_rng(0, 0, "x"), Placement("moving/a.mp4", np.array([[0.2, 0.5]]), transform))


@pytest.mark.parametrize("num_crops", [1, 3])
def test_a_data_set_changes_the_frames_of_the_plain_views(tmp_path: Path, num_crops: int) -> None:
    files = _stored(tmp_path)
    options = {"num_frames": 4, "num_clips": 2}
    records, transform = [VideoRecord("a.mp4", 0)], TestTransform(32, num_crops)
    plain = VideoDataset(records, files, transform, **options).load(ItemKey(0, seed=7)).videos
    for name in ("reverse", "shuffle", "noise"):
        change = VideoChange(name)
        found = VideoDataset(records, files, transform, change=change, **options).load(ItemKey(0, seed=7)).videos
        assert torch.equal(found, change(plain, 7, 0, ANYWHERE))
    picture(tmp_path / "scenes" / "grey.png", np.full((40, 40, 3), 77))
    for number in range(9):  # of nine frames, the mask of frame n keeps everything if n is even
        picture(tmp_path / "masks" / "a" / f"{number}.png", np.full((40, 48), 0 if number % 2 else 255))
    swap = VideoChange("swap_background", BackgroundSwap(tmp_path / "masks", tmp_path / "scenes"))
    found = VideoDataset(records, files, transform, change=swap, **options).load(ItemKey(0)).videos
    grey = (found == 77).flatten(2).all(2)
    clips = [[0, 2, 5, 7], [1, 3, 6, 8]]  # the frames of `sampling.test_indices` of nine
    from video_datasets.sampling import test_indices

    assert test_indices(9, 4, 2).tolist() == clips
    expected = [[frame % 2 == 1 for frame in clip] for clip in clips for _ in range(num_crops)]
    assert grey.tolist() == expected
    assert torch.equal(found[~grey], plain[~grey])


def _stored(folder: Path):
    """Write a video of nine frames and return the files of its folder."""
    import av

    (folder / "videos").mkdir()
    rng = np.random.default_rng(2)
    with av.open(str(folder / "videos" / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 48, 40, "yuv420p"
        for _ in range(9):
            small = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
            frame = np.asarray(Image.fromarray(small).resize((48, 40)))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return open_video_files(folder / "videos")
