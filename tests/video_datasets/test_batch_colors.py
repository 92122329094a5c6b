"""Colours changed per batch on the training device, compared with the workers, who change one frame at a time."""

import numpy as np
import pytest
import torch

from video_datasets.batch_colors import change_batch_colors
from video_datasets.transforms import TrainTransform, change_colors

B, T, S = 6, 5, 16


def frames_of(number: int) -> np.ndarray:
    """Return smooth colourful frames (T, 20, 24, 3), with greys, black and white among them."""
    rng = np.random.default_rng(number)
    frames = rng.integers(0, 256, (T, 20, 24, 3), dtype=np.uint8)
    frames[:, :4] = frames[:, :4, :, :1]
    frames[:, 4, :5] = 0
    frames[:, 5, :5] = 255
    return frames


def devices():
    return ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("device", devices())
@pytest.mark.parametrize("jitter_per_frame", [True, False])
def test_batch_equals_one_frame_after_the_other(device, jitter_per_frame):
    transform = TrainTransform(S, color_jitter=0.8, grayscale=0.4, jitter_per_frame=jitter_per_frame)
    whole = torch.stack([transform(frames_of(n), np.random.default_rng(n)) for n in range(B)])
    parts = [transform.split(frames_of(n), np.random.default_rng(n)) for n in range(B)]
    draws = [draw for _, draw in parts]
    assert {draw.gray for draw in draws} == {True, False}
    assert {draw.orders is None for draw in draws} == {True, False}
    views = torch.stack([view for view, _ in parts])
    one_by_one = torch.stack([change_colors(view, draw) for view, draw in parts])
    assert torch.equal(one_by_one, whole)
    batch = change_batch_colors(views.clone().to(device), draws).cpu()
    difference = (batch.int() - whole.int()).abs()
    # Rounding may differ in the last bit, which a following operation may amplify.
    assert difference.max() <= 2 and (difference > 0).float().mean() < 0.01
    assert (batch != views).float().mean() > 0.3


def test_nothing_to_change():
    transform = TrainTransform(S, color_jitter=0, grayscale=0)
    view, draw = transform.split(frames_of(0), np.random.default_rng(0))
    assert torch.equal(change_batch_colors(view[None].clone(), [draw])[0], view)
