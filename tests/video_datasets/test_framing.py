"""Whole frames as squares: every corner stays in, in training, in evaluation and on the device."""

import numpy as np
import pytest
import torch

from video_datasets.transforms import MEAN, TestTransform, TrainTransform, apply_geometry

SIZE = 32
COLORS = {"top left": (255, 0, 0), "top right": (0, 255, 0), "bottom left": (0, 0, 255), "bottom right": (255, 255, 0)}


def frames(height: int, width: int) -> np.ndarray:
    """Return frames of four flat quarters."""
    picture = np.zeros((2, height, width, 3), dtype=np.uint8)
    picture[:, : height // 2, : width // 2] = COLORS["top left"]
    picture[:, : height // 2, width // 2 :] = COLORS["top right"]
    picture[:, height // 2 :, : width // 2] = COLORS["bottom left"]
    picture[:, height // 2 :, width // 2 :] = COLORS["bottom right"]
    return picture


def train_transform(framing: str, flip: bool = False) -> TrainTransform:
    return TrainTransform(SIZE, flip=flip, color_jitter=0, grayscale=0, framing=framing)


@pytest.mark.parametrize(("height", "width"), [(90, 160), (160, 90), (64, 64), (10, 16)])
@pytest.mark.parametrize("framing", ["letterbox", "stretch"])
def test_the_whole_frame_stays_in(height: int, width: int, framing: str) -> None:
    video = frames(height, width)
    (test,) = TestTransform(SIZE, framing=framing)(video)
    train = train_transform(framing)(video, np.random.default_rng(0))
    assert torch.equal(test, train) and test.shape == (2, 3, SIZE, SIZE)
    shown = (
        (SIZE, SIZE) if framing == "stretch" else (min(SIZE, SIZE * height // width), min(SIZE, SIZE * width // height))
    )
    top, left = (SIZE - shown[0]) // 2, (SIZE - shown[1]) // 2
    bottom, right = top + shown[0] - 1, left + shown[1] - 1
    corners = [(top, left), (top, right), (bottom, left), (bottom, right)]
    for (row, column), color in zip(corners, COLORS.values(), strict=True):
        assert test[0, :, row, column].tolist() == list(color)
    outside = torch.ones(SIZE, SIZE, dtype=torch.bool)
    outside[top : bottom + 1, left : right + 1] = False
    bars = test[0, :, outside]
    assert bars.numel() == 3 * (SIZE**2 - shown[0] * shown[1])
    assert (bars == torch.tensor(MEAN).round().to(torch.uint8)[:, None]).all()


def test_the_crop_loses_what_is_at_the_side() -> None:
    video = np.zeros((2, 64, 128, 3), dtype=np.uint8)
    video[:, :, :16] = 255
    seen = {framing: bool((TestTransform(SIZE, framing=framing)(video)[0, 0, 0] == 255).any()) for framing in
            ("crop", "letterbox", "stretch")}  # fmt: skip
    assert seen == {"crop": False, "letterbox": True, "stretch": True}


def test_frames_are_mirrored_and_the_split_view_is_equal() -> None:
    video, views = frames(90, 160), set()
    for seed in range(8):
        transform = train_transform("letterbox", flip=True)
        view = transform(video, np.random.default_rng(seed))
        split, _ = transform.split(video, np.random.default_rng(seed))
        geometry = transform.draw_geometry(90, 160, np.random.default_rng(seed))
        of_device = apply_geometry(torch.from_numpy(video).permute(0, 3, 1, 2), geometry)
        assert torch.equal(view, split) and torch.equal(view, of_device)
        views.add(tuple(view[0, :, SIZE // 2 - 2, 2].tolist()))
    assert views == {COLORS["top left"], COLORS["top right"]}


def test_wrong_framings() -> None:
    with pytest.raises(ValueError, match="framing must be one of crop, letterbox, stretch, found zoom"):
        train_transform("zoom")
    with pytest.raises(ValueError, match="num_crop must be 1 for whole frames"):
        TestTransform(SIZE, 3, "letterbox")
