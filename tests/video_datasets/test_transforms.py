"""Pixels against the golden ones, against plain arithmetic and against torchvision."""

from collections import Counter

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional

from video_datasets import sampling, transforms
from video_datasets.decoding import decode
from video_datasets.transforms import TestTransform, TrainTransform, adjust_hue, normalize

PLAIN = {"flip": False, "color_jitter": 0, "grayscale": 0}


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def plain_resize(frame, height, width):
    """Bilinear resize of (H, W, 3), half-pixel centres, no antialiasing, from the definition."""
    rows = np.clip((np.arange(height) + 0.5) * frame.shape[0] / height - 0.5, 0, frame.shape[0] - 1)
    columns = np.clip((np.arange(width) + 0.5) * frame.shape[1] / width - 0.5, 0, frame.shape[1] - 1)
    top, left = np.floor(rows).astype(int), np.floor(columns).astype(int)
    bottom, right = np.minimum(top + 1, frame.shape[0] - 1), np.minimum(left + 1, frame.shape[1] - 1)
    down, across = (rows - top)[:, None, None], (columns - left)[None, :, None]
    frame = frame.astype(np.float64)
    upper = frame[top][:, left] * (1 - across) + frame[top][:, right] * across
    lower = frame[bottom][:, left] * (1 - across) + frame[bottom][:, right] * across
    return upper * (1 - down) + lower * down


@pytest.mark.parametrize("decoder", ["auto", "pyav"])
@pytest.mark.parametrize("video", ["v_SoccerJuggling_g23_c01.avi", "SOX5yA1l24A.mp4", "basketball.mp4"])
def test_golden_pixels(shared_videos, golden_dir, video, decoder):
    golden = np.load(golden_dir / "test_view_pixels.npz")
    name = video.split(".")[0]

    def choose(num_video_frames):
        assert num_video_frames == golden[f"{name}/num_frames"]
        indices = sampling.test_indices(num_video_frames, 16)[0]
        np.testing.assert_array_equal(indices, golden[f"{name}/frame_indices"])
        return indices

    frames = decode(shared_videos / "good" / video, choose, decoder)
    pixels = TestTransform(224)(frames)[0].permute(0, 2, 3, 1).numpy().astype(np.float64)  # (16, 224, 224, 3)
    assert np.abs(pixels[[0, 4, 8, 12]] - golden[f"{name}/pixels"]).mean() <= 0.25
    assert np.abs(pixels.mean((1, 2)) - golden[f"{name}/channel_mean"]).max() <= 0.25


@pytest.mark.parametrize(("height", "width"), [(240, 320), (360, 640), (100, 60), (33, 37)])
def test_resizing_is_plain_bilinear(height, width):
    frames = noise(2, height, width, 3)
    resized = transforms._resize(transforms._to_tensor(frames), 64, 72).permute(0, 2, 3, 1).numpy()
    for got, frame in zip(resized, frames, strict=True):
        difference = np.abs(got - plain_resize(frame, 64, 72))
        assert difference.max() <= 2 and difference.mean() <= 0.35  # rounding alone is 0.25


def test_test_view_is_the_centre_of_the_resized_frame():
    frames = noise(3, 240, 320, 3)
    view = TestTransform(224)(frames)
    assert view.shape == (1, 3, 3, 224, 224) and view.dtype == torch.uint8
    # 240 -> 256 high, 320 -> int(341.33 + .5) = 341 wide; (256 - 224) // 2 = 16, (341 - 224) // 2 = 58
    expected = plain_resize(frames[1], 256, 341)[16:240, 58:282]
    assert np.abs(view[0, 1].permute(1, 2, 0).numpy() - expected).mean() <= 0.35
    portrait = TestTransform(224)(frames.transpose(0, 2, 1, 3))
    assert (portrait[0].transpose(-1, -2).float() - view[0].float()).abs().mean() <= 0.35


def test_three_crops_are_start_end_middle_of_the_long_side():
    # The short side has the input's size: nothing is resized. The slack of 19 is odd: published ends are at 2 * 9.
    wide = noise(1, 32, 51, 3)
    views = TestTransform(32, num_crops=3)(wide)
    picture = torch.from_numpy(wide).permute(0, 3, 1, 2)
    assert views.shape == (3, 1, 3, 32, 32)
    for view, left in zip(views, (0, 18, 9), strict=True):
        assert torch.equal(view, picture[..., left : left + 32])
    views = TestTransform(32, num_crops=3)(wide.transpose(0, 2, 1, 3))
    for view, top in zip(views, (0, 18, 9), strict=True):
        assert torch.equal(view, picture.transpose(-1, -2)[..., top : top + 32, :])


def test_crop_boxes_are_the_published_ones():
    transform = TrainTransform(224)
    boxes = Counter(transform.crop_box(256, 341, rng) for rng in map(np.random.default_rng, range(4000)))
    sides = [256, 224, 192, 168]  # int(256 x {1, .875, .75, .66})
    expected = set()
    for i, height in enumerate(sides):
        for width in sides[max(0, i - 1) : i + 2]:
            down, right = (256 - height) // 4, (341 - width) // 4
            for row, column in ((0, 0), (0, 4), (4, 0), (4, 4), (2, 2)):
                expected.add((row * down, column * right, height, width))
    assert set(boxes) == expected
    # ten pairs of sides are equally likely
    sizes = Counter()
    for (_, _, height, width), count in boxes.items():
        sizes[height, width] += count
    assert len(sizes) == 10 and min(sizes.values()) > 320 and max(sizes.values()) < 480


def test_a_crop_side_snaps_to_the_input():
    # short side int(256 / 224 * 98) = 112: sides 112, 98, 84, 73; with an input of 96, 98 snaps and 84 does not
    transform = TrainTransform(96)
    sides = {transform.crop_box(112, 150, np.random.default_rng(seed))[2] for seed in range(200)}
    assert sides == {112, 96, 84, 73}
    # a picture may be smaller than the input; the crop stays inside
    for seed in range(100):
        top, left, height, width = TrainTransform(32, crop_scales=(1,)).crop_box(31, 31, np.random.default_rng(seed))
        assert (top, left, height, width) == (0, 0, 31, 31)


def test_a_training_view_is_its_crop_resized():
    frames = noise(3, 256, 300, 3)
    for seed in range(6):
        view = TrainTransform(224, **PLAIN)(frames, np.random.default_rng(seed))
        assert view.shape == (3, 3, 224, 224) and view.dtype == torch.uint8 and view.is_contiguous()
        top, left, height, width = TrainTransform(224).crop_box(256, 300, np.random.default_rng(seed))
        for got, frame in zip(view, frames, strict=True):
            expected = plain_resize(frame[top : top + height, left : left + width], 224, 224)
            assert np.abs(got.permute(1, 2, 0).numpy() - expected).mean() <= 0.35


def test_flip_mirrors_half_of_the_videos():
    frames = noise(2, 64, 80, 3)
    mirrored = 0
    for seed in range(200):
        plain = TrainTransform(56, **PLAIN)(frames, np.random.default_rng(seed))
        flipped = TrainTransform(56, **{**PLAIN, "flip": True})(frames, np.random.default_rng(seed))
        if torch.equal(flipped, plain.flip(-1)):
            mirrored += 1
        else:
            assert torch.equal(flipped, plain)
    assert 70 < mirrored < 130


def test_jitter_is_per_frame_or_per_video():
    frames = np.repeat(noise(1, 64, 64, 3), 6, axis=0)
    options = {**PLAIN, "color_jitter": 1}
    per_frame = TrainTransform(56, **options)(frames, np.random.default_rng(1))
    assert len({frame.numpy().tobytes() for frame in per_frame}) == 6
    per_video = TrainTransform(56, jitter_per_frame=False, **options)(frames, np.random.default_rng(1))
    assert all(torch.equal(frame, per_video[0]) for frame in per_video)
    assert torch.equal(per_video[0], per_frame[0])
    assert not torch.equal(per_video, TrainTransform(56, **PLAIN)(frames, np.random.default_rng(1)))


def test_jitter_and_greyscale_have_their_probabilities():
    frames = noise(1, 32, 32, 3)
    changed = grey = 0
    for seed in range(400):
        plain = TrainTransform(28, **PLAIN)(frames, np.random.default_rng(seed))
        jittered = TrainTransform(28, **{**PLAIN, "color_jitter": 0.8})(frames, np.random.default_rng(seed))
        changed += not torch.equal(jittered, plain)
        greyed = TrainTransform(28, **{**PLAIN, "grayscale": 0.2})(frames, np.random.default_rng(seed))
        if torch.equal(greyed[:, 0], greyed[:, 1]) and torch.equal(greyed[:, 0], greyed[:, 2]):
            grey += 1
        else:
            assert torch.equal(greyed, plain)
    assert 290 < changed < 350 and 55 < grey < 110


def test_jitter_ranges_and_orders(monkeypatch):
    calls = []

    def note(name):
        return lambda frame, value: calls.append((name, value)) or frame

    for name in ("adjust_brightness", "adjust_contrast", "adjust_saturation"):
        monkeypatch.setattr(transforms.functional, name, note(name))
    monkeypatch.setattr(transforms, "adjust_hue", note("adjust_hue"))
    frames = noise(60, 32, 32, 3)
    for seed in range(10):
        TrainTransform(28, **{**PLAIN, "color_jitter": 1})(frames, np.random.default_rng(seed))
    assert len(calls) == 4 * 600
    orders = {tuple(name for name, _ in calls[i : i + 4]) for i in range(0, len(calls), 4)}
    assert len(orders) == 24
    for name, low, high in (
        ("adjust_brightness", 0.6, 1.4),
        ("adjust_contrast", 0.6, 1.4),
        ("adjust_saturation", 0.8, 1.2),
        ("adjust_hue", -0.1, 0.1),
    ):
        values = [value for called, value in calls if called == name]
        room = 0.02 * (high - low)
        assert low <= min(values) < low + room and high - room < max(values) <= high


@pytest.mark.parametrize("turn", [-0.5, -0.1, -0.03, 0.0, 0.07, 0.1])
def test_hue_is_torchvisions_up_to_rounding(turn):
    frame = torch.from_numpy(noise(3, 200, 200))
    frame[:, :20] = frame[:1, :20]  # greys
    frame[:, 20:24] = 0
    frame[:, 24:28] = 255
    turned = adjust_hue(frame, turn)
    difference = (turned.int() - functional.adjust_hue(frame, turn).int()).abs()
    assert difference.max() <= 1 and difference.float().mean() < 0.1
    assert torch.equal(turned[:, :28], frame[:, :28])
    if turn == 0:
        assert torch.equal(turned, frame)


def test_normalisation_is_imagenets():
    videos = torch.from_numpy(noise(2, 3, 3, 4, 5))
    before = videos.clone()
    for dtype in (torch.float32, torch.float64):
        normalised = normalize(videos, dtype)
        assert normalised.dtype == dtype and torch.equal(videos, before)
        mean = np.array([123.675, 116.28, 103.53]).reshape(3, 1, 1)
        std = np.array([58.395, 57.12, 57.375]).reshape(3, 1, 1)
        np.testing.assert_allclose(normalised.numpy(), (videos.numpy() - mean) / std, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"color_jitter": 1.5}, "color_jitter is a probability"),
        ({"grayscale": -1}, "grayscale is a probability"),
        ({"hue": 0.6}, "hue must be in"),
        ({"contrast": 2}, "contrast must be in"),
        ({"crop_scales": (1.2,)}, "crop_scales must be in"),
    ],
)
def test_misuse_is_an_error(options, message):
    with pytest.raises(ValueError, match=message):
        TrainTransform(224, **options)


def test_two_crops_are_an_error():
    with pytest.raises(ValueError, match="num_crop must be 1 or 3, found 2"):
        TestTransform(224, num_crops=2)
