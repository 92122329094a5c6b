"""Videos in front of other backgrounds, by masks: where a picture shows the scene of another action.

Like the benchmark of Li et al., "Mitigating and Evaluating Static Bias of Action Representations in the Background and
the Foreground" (ICCV 2023): what the mask shows moves as before, in front of a still picture.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional

from video_datasets.decoding import VideoReadError
from video_datasets.segments import split_name

PICTURES = (".jpg", ".jpeg", ".png", ".webp")


@dataclass(frozen=True)
class Placement:
    """How the views of a video were made, so that masks follow them.

    Attributes:
        path: of the video, as the list spells it.
        moments: (V, T) float64, the moment of each frame as a share of the video's frames, from 0 to below 1.
        crop: pictures of the size of the video's frames, uint8 (n, H, W, 3) -> their crops, uint8 (crops, n, 3, S, S);
            view `v` has crop `v % crops`.
    """

    path: str
    moments: np.ndarray
    crop: Callable[[np.ndarray], Tensor]


class BackgroundSwap:
    """Replaces the backgrounds of videos.

    Args:
        masks: folder of masks, white where a video stays as it is. The mask of `a/b.mp4` is `a/b.png`, or the PNG files
            in `a/b`, in the order of their names: one for each frame, or fewer, evenly spread over the video. The name
            of a segment's mask ends like that of the segment, `a/b#t=1.5,4.png`.
        backgrounds: folder of pictures, of which one is drawn for each video.

    Raises:
        ValueError: a folder is missing, or has no picture.
    """

    def __init__(self, masks: Path, backgrounds: Path) -> None:
        for folder in (masks, backgrounds):
            if not folder.is_dir():
                raise ValueError(f"{folder}: is not a folder")
        self.masks = masks
        self.pictures = sorted(path for path in backgrounds.rglob("*") if path.suffix.lower() in PICTURES)
        if not self.pictures:
            raise ValueError(f"{backgrounds}: has no pictures ({', '.join(PICTURES)})")

    def without_mask(self, paths: Iterable[str]) -> list[str]:
        """Return those of the listed paths that have no mask."""
        return [path for path in paths if not self._files(path)]

    def __call__(self, views: Tensor, rng: np.random.Generator, placement: Placement) -> Tensor:
        """Return views in front of one drawn picture: uint8 (V, T, 3, S, S) -> the same shape.

        Raises:
            VideoReadError: a mask or the picture cannot be read.
        """
        picture = self.pictures[int(rng.integers(len(self.pictures)))]
        background = _cover(torch.from_numpy(_read(picture, "RGB")).permute(2, 0, 1), views.shape[-1])  # (3, S, S)
        files = self._files(placement.path)
        if not files:
            raise VideoReadError(placement.path, f"has no mask in {self.masks}")
        changed = []
        for view, (frames, moments) in enumerate(zip(views, placement.moments, strict=True)):
            numbers = (moments * len(files)).astype(int)
            read = {number: _read(files[number], "L") for number in sorted(set(numbers.tolist()))}
            if len({mask.shape for mask in read.values()}) > 1:
                raise VideoReadError(placement.path, f"its masks in {files[0].parent} differ in size")
            masks = np.stack([read[number] for number in numbers.tolist()])[..., None].repeat(3, -1)  # (T, H, W, 3)
            crops, whole = placement.crop(masks), placement.crop(np.full_like(masks[:1], 255))
            share = crops[view % len(crops)].float() / 255
            share = share.where(whole[view % len(crops)] == 255, 1.0)  # bars stay
            changed.append((frames * share + background * (1 - share)).round_().to(torch.uint8))
        return torch.stack(changed)

    def _files(self, path: str) -> list[Path]:
        video, _ = split_name(path)
        name = self.masks / f"{Path(video).with_suffix('')}{path.removeprefix(video)}"
        single = name.with_name(f"{name.name}.png")
        return [single] if single.is_file() else sorted(name.glob("*.png"))


def _read(path: Path, mode: str) -> np.ndarray:
    try:
        with Image.open(path) as picture:
            return np.array(picture.convert(mode))
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise VideoReadError(str(path), f"cannot be read as a picture: {error}") from error


def _cover(picture: Tensor, size: int) -> Tensor:
    """Resize (3, H, W) to a short side of `size`, and return the square in its middle."""
    scale = size / min(picture.shape[-2:])
    sides = [max(size, round(side * scale)) for side in picture.shape[-2:]]
    return functional.center_crop(functional.resize(picture, sides, antialias=True), [size, size])
