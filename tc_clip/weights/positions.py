"""Positional embeddings for another input size or another number of frames than they were trained with."""

import torch
import torch.nn.functional as F
from torch import Tensor


def interpolate_in_space(positions: Tensor, grid: int, num_class: int = 1) -> Tensor:
    """Resample positions (..., 1 + P, D) of a square grid of patches to `grid` x `grid`; a class token keeps its own.

    Bicubic, with antialiasing if the grid shrinks, as in open_clip.
    """
    first, patches = positions[..., :num_class, :], positions[..., num_class:, :]
    D, old = patches.shape[-1], round(patches.shape[-2] ** 0.5)
    pictures = patches.reshape(-1, old, old, D).permute(0, 3, 1, 2)  # (1 or T, D, old, old)
    pictures = F.interpolate(pictures, size=(grid, grid), mode="bicubic", antialias=True, align_corners=False)
    patches = pictures.permute(0, 2, 3, 1).reshape(*positions.shape[:-2], grid**2, D)
    return torch.cat((first, patches), dim=-2)


def interpolate_in_time(positions: Tensor, num_frames: int) -> Tensor:
    """Resample joint positions (T, N, D) to another number of frames, linearly."""
    T, N, D = positions.shape
    series = positions.reshape(T, N * D).T.unsqueeze(0)  # (1, N * D, T)
    resampled = F.interpolate(series, size=num_frames, mode="linear", align_corners=False)
    return resampled[0].T.reshape(num_frames, N, D)
