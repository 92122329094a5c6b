"""Colour jitter and greyscale of a whole batch on the training device, with each frame's own draws, in few kernels.

Equal to `transforms.change_colors` on one video at a time, up to 1 of 255 levels. Workers keep crop, resize and flip:
these take a tenth of the time of the colours there, and make the batch smaller before it moves.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from video_datasets.transforms import ColorDraw, adjust_hue

_GRAY = (0.2989, 0.587, 0.114)  # torchvision's weights


def change_batch_colors(videos: Tensor, draws: Sequence[ColorDraw]) -> Tensor:
    """Jitter and grey views on their device, in place: uint8 (B, T, 3, S, S), and one draw per view."""
    T = videos.shape[1]
    frames = videos.flatten(0, 1)  # (B * T, 3, S, S)
    orders = np.concatenate([np.full((T, 4), -1) if draw.orders is None else draw.orders for draw in draws])
    values = np.concatenate([np.zeros((T, 4)) if draw.values is None else draw.values for draw in draws])
    # For each of the four positions in the order and each operation: the frames with that operation at that position.
    groups = [np.flatnonzero(orders[:, position] == operation) for position in range(4) for operation in range(4)]
    group_values = [values[rows, number % 4] for number, rows in enumerate(groups)]
    sizes = [len(rows) for rows in groups]
    # One transfer each, not one per group.
    all_rows = torch.from_numpy(np.concatenate(groups)).to(videos.device, non_blocking=True)
    all_factors = torch.from_numpy(np.concatenate(group_values)).to(videos.device, torch.float32, non_blocking=True)
    for number, (chosen, factor) in enumerate(zip(all_rows.split(sizes), all_factors.split(sizes), strict=True)):
        if sizes[number]:
            frames[chosen] = _OPERATIONS[number % 4](frames[chosen], factor.view(-1, 1, 1, 1))
    gray = [b for b, draw in enumerate(draws) if draw.gray]
    if gray:
        chosen = torch.tensor(gray).to(videos.device, non_blocking=True)
        videos[chosen] = _gray(videos[chosen]).to(torch.uint8)
    return videos


def _brightness(frames: Tensor, factor: Tensor) -> Tensor:
    return _to_bytes(frames * factor)


def _contrast(frames: Tensor, factor: Tensor) -> Tensor:
    return _blend(frames, _gray(frames).floor_().mean(dim=(-3, -2, -1), keepdim=True), factor)


def _saturation(frames: Tensor, factor: Tensor) -> Tensor:
    return _blend(frames, _gray(frames).floor_(), factor)


def _hue(frames: Tensor, turn: Tensor) -> Tensor:
    return adjust_hue(frames, turn.squeeze(-1))


_OPERATIONS = (_brightness, _contrast, _saturation, _hue)


def _blend(frames: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    return _to_bytes((frames * factor).add_((1 - factor) * other))


def _gray(frames: Tensor) -> Tensor:
    """Return the luminance (..., 1, H, W) of frames (..., 3, H, W), float32."""
    red, green, blue = frames.unbind(-3)
    return red.mul(_GRAY[0]).add_(green, alpha=_GRAY[1]).add_(blue, alpha=_GRAY[2]).unsqueeze(-3)


def _to_bytes(frames: Tensor) -> Tensor:
    return frames.clamp_(0, 255).to(torch.uint8)
