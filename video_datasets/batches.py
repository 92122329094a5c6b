"""Items collated into batches."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from video_datasets.device_decoding import EncodedView, decode_views
from video_datasets.transforms import ColorDraw
from video_datasets.video_dataset import BadVideo, VideoItem


@dataclass
class VideoBatch:
    """A micro-batch, or a batch of an evaluation.

    Attributes:
        videos: uint8 (B, V, T, 3, H, W), V = 1 in training.
        labels: int64 (B,); bool (B, C) if a video can have any number of classes.
        indices: int64 (B,), positions in the list; in training, of the replacement of an unreadable video.
        valid: bool (B,), False for a test video that could not be read; its pixels are zeros.
        number: index of the micro-batch in its epoch, or of the batch in this rank's evaluation.
        bad_videos: unreadable videos found while this batch was read, whether or not found before.
        colors: the colour changes of each video that are still to be applied (`batch_colors`), or None.
        encoded: the views before they are decoded (`device_decoding`), or None; `videos` has no pixels then.
    """

    videos: Tensor
    labels: Tensor
    indices: Tensor
    valid: Tensor
    number: int
    bad_videos: list[BadVideo]
    colors: list[ColorDraw] | None = None
    encoded: list[EncodedView] | None = None

    def training_views(self, device: torch.device | str) -> Tensor:
        """Return the views of a training batch on a device, before `colors`: uint8 (B, T, 3, S, S)."""
        if self.encoded is not None:
            return decode_views(self.encoded, device)
        return self.videos[:, 0].to(device, non_blocking=True)

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "VideoBatch":
        """Return the batch with its tensors on a device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "VideoBatch":
        """Return the batch with its tensors in pinned memory."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, change: Callable[[Tensor], Tensor]) -> "VideoBatch":
        return replace(
            self,
            videos=change(self.videos),
            labels=change(self.labels),
            indices=change(self.indices),
            valid=change(self.valid),
        )


def collate(items: Sequence[VideoItem], pin_memory: bool = False) -> VideoBatch:
    """Stack items into a batch, in pinned memory if asked."""
    colors = [item.colors for item in items if item.colors is not None]
    encoded = [item.encoded for item in items if item.encoded is not None]
    videos = torch.empty(len(items), *items[0].videos.shape, dtype=torch.uint8, pin_memory=pin_memory)
    batch = VideoBatch(
        videos=torch.stack([item.videos for item in items], out=videos),
        labels=torch.from_numpy(np.array([item.label for item in items])),
        indices=torch.tensor([item.index for item in items]),
        valid=torch.tensor([item.valid for item in items]),
        number=items[0].number,
        bad_videos=[bad for item in items for bad in item.bad_videos],
        colors=colors if len(colors) == len(items) else None,
        encoded=encoded if len(encoded) == len(items) else None,
    )
    return batch.pin_memory() if pin_memory else batch
