"""Changes of test videos that show what a model's accuracy rests on: order, motion, sharpness, background.

A change is a function of uint8 frames `(T, 3, H, W)`, one view after sampling and cropping, and of a generator that
follows from the seed, the index of the video and the name of the change (`randomness.change_rng`). So the plain frames
and the changed ones are the same frames, for any number of workers and processes.
"""

import io
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional

from video_datasets.backgrounds import BackgroundSwap, Placement
from video_datasets.randomness import change_rng

JPEG_QUALITY = 10
LOST_SHARE = 0.25  # of the frames that `drop` loses
NOISE = 0.1  # standard deviation, as a share of 255
REDUCTION = 4  # of the sides, in `low_resolution`
BLUR_SIDE = 112  # pixels of the side for which the standard deviation of `blur` is 1 pixel

FrameChange = Callable[[Tensor, np.random.Generator], Tensor]


def reverse(frames: Tensor, rng: np.random.Generator) -> Tensor:
    """Return the frames from the last to the first."""
    return frames.flip(0)


def shuffle(frames: Tensor, rng: np.random.Generator) -> Tensor:
    """Return the frames in a drawn order, which is another one than before if there are two frames or more."""
    order = np.arange(len(frames))
    while len(order) > 1 and np.array_equal(order, np.arange(len(order))):
        order = rng.permutation(len(order))
    return frames[torch.from_numpy(order)]


def static(frames: Tensor, rng: np.random.Generator) -> Tensor:
    """Return the middle frame, repeated."""
    return frames[len(frames) // 2].expand_as(frames).clone()


def freeze(frames: Tensor, rng: np.random.Generator) -> Tensor:
    """Return the first half of the frames; the picture stops at the middle one."""
    return frames[torch.arange(len(frames)).clamp_max(len(frames) // 2)]


def drop(frames: Tensor, rng: np.random.Generator) -> Tensor:
    """Return the frames with a drawn quarter lost, never the first: the frame before them stays in the picture."""
    number = min(len(frames) - 1, round(LOST_SHARE * len(frames)))
    shown = np.arange(len(frames))
    shown[1 + rng.choice(len(frames) - 1, number, replace=False) if number else []] = 0
    return frames[torch.from_numpy(np.maximum.accumulate(shown))]


def blur(frames: Tensor, rng: np.random.Generator) -> Tensor:
    """Return the frames under a Gaussian blur, whose standard deviation is 2 pixels for a side of 224."""
    deviation = min(frames.shape[-2:]) / BLUR_SIDE
    return functional.gaussian_blur(frames, [2 * math.ceil(3 * deviation) + 1] * 2, [deviation] * 2)


def noise(frames: Tensor, rng: np.random.Generator) -> Tensor:
    """Return the frames with Gaussian noise, drawn for every value."""
    drawn = torch.from_numpy(rng.standard_normal(tuple(frames.shape), dtype=np.float32))
    return (frames + 255 * NOISE * drawn).round_().clamp_(0, 255).to(torch.uint8)


def low_resolution(frames: Tensor, rng: np.random.Generator) -> Tensor:
    """Return the frames, made four times smaller and as large as before again."""
    height, width = frames.shape[-2:]
    small = functional.resize(frames, [max(1, height // REDUCTION), max(1, width // REDUCTION)], antialias=True)
    return functional.resize(small, [height, width], antialias=False)


def jpeg(frames: Tensor, rng: np.random.Generator) -> Tensor:
    """Return the frames as JPEG of a low quality shows them."""
    shown = []
    for frame in frames:
        file = io.BytesIO()
        Image.fromarray(frame.permute(1, 2, 0).numpy()).save(file, "JPEG", quality=JPEG_QUALITY)
        shown.append(torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1))
    return torch.stack(shown)


def dark(frames: Tensor, rng: np.random.Generator) -> Tensor:
    """Return the frames with half their brightness."""
    return (frames * 0.5).round_().to(torch.uint8)


def bright(frames: Tensor, rng: np.random.Generator) -> Tensor:
    """Return the frames one and a half times as bright."""
    return (frames * 1.5).round_().clamp_(0, 255).to(torch.uint8)


CHANGES: Mapping[str, FrameChange] = MappingProxyType(
    {
        change.__name__: change
        for change in (reverse, shuffle, static, freeze, drop, blur, noise, low_resolution, jpeg, dark, bright)
    }
)


@dataclass(frozen=True)
class VideoChange:
    """A change of the test views of a data set's videos; picklable.

    Attributes:
        name: one of `CHANGES`; with a background swap any name.
        swap: replaces the backgrounds instead, or None.
    """

    name: str
    swap: BackgroundSwap | None = None

    def __call__(self, views: Tensor, seed: int, index: int, placement: Placement) -> Tensor:
        """Return the changed views of video `index`: uint8 (V, T, 3, S, S) -> the same shape.

        Raises:
            VideoReadError: a mask or a background cannot be read.
        """
        rng = change_rng(seed, index, self.name)
        if self.swap is not None:
            return self.swap(views, rng, placement)
        return torch.stack([CHANGES[self.name](view, rng) for view in views])
