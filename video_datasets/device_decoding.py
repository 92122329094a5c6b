"""Training views from stored JPEG frames on the training device: decode, resize, crop and flip there.

The worker processes only read bytes and draw; the draws are those of `TrainTransform`. On CPU tensors the views equal
those of the workers bit for bit; GPUs decode and interpolate with other rounding.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from video_datasets.decoders.base import DecoderError
from video_datasets.decoding import VideoReadError
from video_datasets.stored_frames import StoredFrames, jpeg_size
from video_datasets.stored_frames import decode_jpeg as decode_one
from video_datasets.transforms import Geometry, TrainTransform, apply_geometry


@dataclass
class EncodedView:
    """The frames of a training view as JPEG, and how they become the view.

    Attributes:
        data: uint8 (n,), the JPEGs one after the other; one tensor, which moves between processes as one.
        sizes: bytes of each of the T frames.
        stored_size: height and width of the frames.
        geometry: the drawn crop and flip, and the sizes.
    """

    data: Tensor
    sizes: list[int]
    stored_size: tuple[int, int]
    geometry: Geometry


def read_view(
    stored: StoredFrames, indices: np.ndarray, transform: TrainTransform, rng: np.random.Generator
) -> EncodedView:
    """Read the chosen frames of a view, and draw its crop and flip, the first draws of `TrainTransform`.

    Raises:
        DecoderError: they are no JPEG of the size of the stored frames.
    """
    if stored.settings.quality is None:
        raise DecoderError("its stored frames are not JPEG; set data.decode_on_device=false")
    jpegs = stored.encoded(indices)
    size = stored.height, stored.width
    if any(jpeg_size(jpeg) != size for jpeg in jpegs):
        raise DecoderError(f"a stored frame is no JPEG of {stored.width}x{stored.height} pixels")
    geometry = transform.draw_geometry(*size, rng)
    return EncodedView(torch.from_numpy(np.concatenate(jpegs)), [len(jpeg) for jpeg in jpegs], size, geometry)


def decode_views(views: Sequence[EncodedView], device: torch.device | str) -> Tensor:
    """Make the views of a batch: uint8 (B, T, 3, S, S) on a device.

    Raises:
        VideoReadError: a frame is damaged.
    """
    jpegs = [jpeg for view in views for jpeg in view.data.split(view.sizes)]
    try:
        # CUDA: all frames of the batch in one call of nvJPEG.
        frames = decode_jpeg(jpegs, ImageReadMode.RGB, device=str(device))
    except RuntimeError:
        frames = [frame.to(device) for view in views for frame in _decode_each(view)]
    videos, first = [], 0
    for view in views:
        video = torch.stack(frames[first : first + len(view.sizes)])  # (T, 3, H, W)
        videos.append(apply_geometry(video.contiguous(memory_format=torch.channels_last), view.geometry))
        first += len(view.sizes)
    return torch.stack(videos)


def _decode_each(view: EncodedView) -> Iterator[Tensor]:
    """Yield the frames (3, H, W) of a view, decoded on the CPU, which reads damaged data as far as it goes."""
    height, width = view.stored_size
    for jpeg in view.data.split(view.sizes):
        try:
            yield torch.from_numpy(np.ascontiguousarray(decode_one(jpeg.numpy(), height, width))).permute(2, 0, 1)
        except DecoderError as error:
            raise VideoReadError("a stored video", f"{error}; check the store with verify.py --full") from error
