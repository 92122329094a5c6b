"""Decoded frames to network input: section 2 of the published protocols, on 8-bit pixels.

Views stay uint8 until `normalize`, which runs on the training device: that moves a quarter of the bytes.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional

MEAN = (123.675, 116.28, 103.53)  # ImageNet's, on 0..255
STD = (58.395, 57.12, 57.375)
# The short side before the crop is 256 for an input of 224.
SHORT_SIDE_RATIO = 256 / 224


def normalize(
    videos: Tensor, dtype: torch.dtype = torch.float32, mean: Sequence[float] = MEAN, std: Sequence[float] = STD
) -> Tensor:
    """Subtract the mean and divide by the std of the channels: uint8 (..., 3, H, W) -> `dtype`, on the same device."""
    # non_blocking: without it the host would wait until the device is idle.
    means, stds = (torch.tensor(x, dtype=dtype).view(3, 1, 1).to(videos.device, non_blocking=True) for x in (mean, std))
    return videos.to(dtype).sub_(means).div_(stds)


# How frames become squares: the crop keeps scale and shape, the letterbox the whole frame and its shape, with bars of
# the mean colour, and stretching the whole frame alone.
FRAMINGS = ("crop", "letterbox", "stretch")


class ColorDraw(NamedTuple):
    """The colour changes drawn for a view.

    Attributes:
        orders: (T, 4) int, each frame's jitter operations in the order in which they are applied (0 brightness,
            1 contrast, 2 saturation, 3 hue), or None for no jitter.
        values: (T, 4) float, each operation's value, by operation; None likewise.
        gray: whether the view is turned grey.
    """

    orders: np.ndarray | None
    values: np.ndarray | None
    gray: bool


class Geometry(NamedTuple):
    """How frames become a view.

    Attributes:
        scaled: height and width to which they are resized first.
        box: top, left, height, width of the crop.
        size: side of the view.
        flip: whether it is mirrored.
        padded: whether bars fill the square, instead of a second resizing.
    """

    scaled: tuple[int, int]
    box: tuple[int, int, int, int]
    size: int
    flip: bool
    padded: bool = False


def apply_geometry(video: Tensor, geometry: Geometry) -> Tensor:
    """Resize, crop, resize and flip frames: uint8 (T, 3, H, W) -> (T, 3, S, S), on their device."""
    video = _resize(video, *geometry.scaled)
    top, left, height, width = geometry.box
    video = video[..., top : top + height, left : left + width]
    video = _pad(video, geometry.size) if geometry.padded else _resize(video, geometry.size, geometry.size)
    return (video.flip(-1) if geometry.flip else video).contiguous()


class TrainTransform:
    """One random training view: multi-scale crop, flip, colour jitter, greyscale.

    Args:
        input_size: side of the square view in pixels.
        flip: mirror half of the videos; off if class names contain directions (Something-Something).
        color_jitter: probability that a video is jittered.
        brightness, contrast, saturation: largest relative change.
        hue: largest shift, as a fraction of the colour circle.
        grayscale: probability that a video is turned grey.
        jitter_per_frame: draw new jitter values for every frame (as published), or once per video.
        crop_scales: sides of the crop relative to the short side; width and height at most one step apart.
        framing: one of `FRAMINGS`; without crop, `crop_scales` means nothing.
    """

    def __init__(
        self,
        input_size: int,
        flip: bool = True,
        color_jitter: float = 0.8,
        brightness: float = 0.4,
        contrast: float = 0.4,
        saturation: float = 0.2,
        hue: float = 0.1,
        grayscale: float = 0.2,
        jitter_per_frame: bool = True,
        crop_scales: Sequence[float] = (1, 0.875, 0.75, 0.66),
        framing: str = "crop",
    ):
        for name, value in (("color_jitter", color_jitter), ("grayscale", grayscale)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} is a probability, found {value}")
        for name, value in (("brightness", brightness), ("contrast", contrast), ("saturation", saturation)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must be in [0, 1], found {value}")
        if not 0 <= hue <= 0.5:
            raise ValueError(f"hue must be in [0, 0.5], found {hue}")
        if not crop_scales or not all(0 < scale <= 1 for scale in crop_scales):
            raise ValueError(f"crop_scales must be in (0, 1], found {list(crop_scales)}")
        self.input_size = input_size
        self.flip = flip
        self.color_jitter = color_jitter
        self.jitter_ranges = [(1 - change, 1 + change) for change in (brightness, contrast, saturation)] + [(-hue, hue)]
        self.grayscale = grayscale
        self.jitter_per_frame = jitter_per_frame
        self.crop_scales = tuple(crop_scales)
        self.framing = _checked_framing(framing)

    def __call__(self, frames: np.ndarray, rng: np.random.Generator) -> Tensor:
        """Make a view of uint8 frames (T, H, W, 3): uint8 (T, 3, S, S). All draws come from `rng`."""
        video, draw = self.split(frames, rng)
        return change_colors(video, draw).contiguous()

    def split(self, frames: np.ndarray, rng: np.random.Generator) -> tuple[Tensor, ColorDraw]:
        """Make a view without changing its colours, and return the colour changes that `__call__` would apply."""
        geometry = self.draw_geometry(frames.shape[1], frames.shape[2], rng)
        return apply_geometry(_to_tensor(frames), geometry), self.draw_colors(len(frames), rng)

    def draw_geometry(self, height: int, width: int, rng: np.random.Generator) -> "Geometry":
        """Draw crop and flip of a view of (height, width) frames; `draw_colors` comes after it."""
        if self.framing == "crop":
            scaled = _scaled_size(height, width, self.short_side)
            box = self.crop_box(*scaled, rng)
        else:
            scaled = _whole_size(height, width, self.input_size, self.framing)
            box = (0, 0, *scaled)
        flip = bool(self.flip and rng.random() < 0.5)
        return Geometry(scaled, box, self.input_size, flip, padded=self.framing == "letterbox")

    @property
    def short_side(self) -> int:
        """Pixels of the short side of the frames that the crop is taken from."""
        return _short_side(self.input_size)

    def crop_box(self, height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
        """Draw a crop of a (height, width) picture: top, left, height, width."""
        sides = [int(min(height, width) * scale) for scale in self.crop_scales]
        sides = [self.input_size if abs(side - self.input_size) <= 2 else side for side in sides]
        num_sides = len(sides)
        pairs = [(i, j) for i in range(num_sides) for j in range(num_sides) if abs(i - j) <= 1]
        row, column = pairs[rng.integers(len(pairs))]
        # A snapped side may be a pixel or two larger than a picture that is smaller than the input.
        crop_height, crop_width = min(sides[row], height), min(sides[column], width)
        # In steps of a quarter of the free space: corners at 0 and 4, the centre at 2.
        down, right = ((0, 0), (0, 4), (4, 0), (4, 4), (2, 2))[rng.integers(5)]
        return down * ((height - crop_height) // 4), right * ((width - crop_width) // 4), crop_height, crop_width

    def draw_colors(self, num_frames: int, rng: np.random.Generator) -> ColorDraw:
        """Draw the colour changes of a view."""
        orders = values = None
        if rng.random() < self.color_jitter:
            low, high = np.array(self.jitter_ranges).T  # (4,), (4,)
            num_draws = num_frames if self.jitter_per_frame else 1
            draws = [(rng.permutation(4), rng.uniform(low, high)) for _ in range(num_draws)]
            orders, values = (np.broadcast_to(np.stack(column), (num_frames, 4)) for column in zip(*draws, strict=True))
        return ColorDraw(orders, values, bool(rng.random() < self.grayscale))


def change_colors(video: Tensor, draw: ColorDraw) -> Tensor:
    """Jitter and grey a view: uint8 (T, 3, S, S) -> the same shape."""
    operations = (
        functional.adjust_brightness,
        functional.adjust_contrast,
        functional.adjust_saturation,
        adjust_hue,
    )
    if draw.orders is not None and draw.values is not None:
        jittered = torch.empty_like(video)
        for index, frame in enumerate(video):
            for operation in draw.orders[index]:
                frame = operations[operation](frame, float(draw.values[index, operation]))
            jittered[index] = frame
        video = jittered
    return functional.rgb_to_grayscale(video, num_output_channels=3) if draw.gray else video


class TestTransform:
    """Deterministic test views: the centre crop, three crops along the long side (start, end, middle), or all of it.

    Args:
        input_size: side of the square views in pixels.
        num_crops: 1 or 3; 1 without crop.
        framing: one of `FRAMINGS`.
    """

    __test__ = False  # pytest would take it for a test by its name

    def __init__(self, input_size: int, num_crops: int = 1, framing: str = "crop"):
        self.framing = _checked_framing(framing)
        if num_crops not in (1, 3):
            raise ValueError(f"num_crop must be 1 or 3, found {num_crops}")
        if framing != "crop" and num_crops != 1:
            raise ValueError(f"num_crop must be 1 for whole frames (framing={framing}), found {num_crops}")
        self.input_size = input_size
        self.num_crops = num_crops

    @property
    def short_side(self) -> int:
        """Pixels of the short side of the frames that the crops are taken from."""
        return _short_side(self.input_size) if self.num_crops == 1 else self.input_size

    def __call__(self, frames: np.ndarray) -> Tensor:
        """Make the views of uint8 frames (T, H, W, 3): uint8 (num_crops, T, 3, S, S)."""
        size = self.input_size
        if self.framing != "crop":
            scaled = _whole_size(frames.shape[1], frames.shape[2], size, self.framing)
            return _pad(_resize(_to_tensor(frames), *scaled), size).contiguous()[None]
        video = _resize_short_side(_to_tensor(frames), self.short_side)  # (T, 3, H, W)
        height, width = video.shape[-2:]
        if self.num_crops == 1:
            corners = [((height - size) // 2, (width - size) // 2)]
        elif width >= height:
            middle = (width - size) // 2  # as published, the end is twice the middle: a pixel less if the slack is odd
            corners = [(0, 0), (0, 2 * middle), (0, middle)]
        else:
            middle = (height - size) // 2
            corners = [(0, 0), (2 * middle, 0), (middle, 0)]
        return torch.stack([video[..., top : top + size, left : left + size] for top, left in corners])


def adjust_hue(frames: Tensor, turn: float | Tensor) -> Tensor:
    """Shift the hue of uint8 pictures (..., 3, H, W) by a fraction `turn` of the colour circle.

    Equal to torchvision's up to 1 of 255 levels (this rounds, that truncates), in a sixth of its time, which is a third
    of the time of decoding.

    Args:
        turn: one value, or a tensor (..., 1, 1) with one per picture.
    """
    red, green, blue = frames.float().unbind(-3)
    value = torch.maximum(torch.maximum(red, green), blue)
    low = torch.minimum(torch.minimum(red, green), blue)
    chroma = value - low
    # The largest channel, as 0 and 1: selecting by multiplication takes a tenth of the time of torch.where on a CPU.
    is_red = torch.eq(red, value, out=torch.empty_like(value))
    is_green = torch.eq(green, value, out=torch.empty_like(value)).mul_(1 - is_red)
    is_blue = 1 - is_red - is_green
    difference = (green - blue).mul_(is_red).addcmul_(blue - red, is_green).addcmul_(red - green, is_blue)
    # Grey pixels have no hue; any value works, since their chroma is 0.
    sector = difference.div_(chroma.clamp(min=1)).add_(is_green, alpha=2).add_(is_blue, alpha=4).add_(6 * turn)
    sector.sub_((sector / 6).floor_().mul_(6))  # [0, 6]: red, yellow, green, cyan, blue, magenta, red

    turned = torch.empty_like(frames)
    for channel, centre in enumerate((3, 2, 4)):
        away = (sector - centre).abs_()
        share = (away.sub_(1) if channel == 0 else 2 - away).clamp_(0, 1)
        turned[..., channel, :, :] = torch.addcmul(low, share, chroma).round_()
    return turned


def shrink(frames: np.ndarray, short_side: int) -> np.ndarray:
    """Resize uint8 frames (T, H, W, 3) to a short side, as the transforms' first step; smaller frames stay the same."""
    if min(frames.shape[1:3]) <= short_side:
        return frames
    return _resize_short_side(_to_tensor(frames), short_side).permute(0, 2, 3, 1).contiguous().numpy()


def _to_tensor(frames: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)  # (T, 3, H, W), channels last in memory


def _short_side(input_size: int) -> int:
    return int(SHORT_SIDE_RATIO * input_size)


def _resize_short_side(video: Tensor, short_side: int) -> Tensor:
    """Resize (T, 3, H, W) so that the short side has `short_side` pixels, keeping the aspect ratio."""
    return _resize(video, *_scaled_size(video.shape[-2], video.shape[-1], short_side))


def _scaled_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    scale = short_side / min(height, width)
    return int(height * scale + 0.5), int(width * scale + 0.5)


def _checked_framing(framing: str) -> str:
    if framing not in FRAMINGS:
        raise ValueError(f"framing must be one of {', '.join(FRAMINGS)}, found {framing}")
    return framing


def _whole_size(height: int, width: int, size: int, framing: str) -> tuple[int, int]:
    """Return height and width of a whole frame within a square: its long side fits, or both sides do."""
    if framing == "stretch":
        return size, size
    scale = size / max(height, width)
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def _pad(video: Tensor, size: int) -> Tensor:
    """Put frames (T, 3, H, W) into the middle of a square of the mean colour."""
    height, width = video.shape[-2:]
    if (height, width) == (size, size):
        return video
    color = torch.tensor(MEAN, device=video.device).round().to(video.dtype)
    square = color.view(3, 1, 1).expand(*video.shape[:-2], size, size).clone()
    top, left = (size - height) // 2, (size - width) // 2
    square[..., top : top + height, left : left + width] = video
    return square


def _resize(video: Tensor, height: int, width: int) -> Tensor:
    if video.shape[-2:] == (height, width):
        return video
    # Without antialiasing, as OpenCV's INTER_LINEAR: published weights were trained with it.
    return functional.resize(video, [height, width], antialias=False)
