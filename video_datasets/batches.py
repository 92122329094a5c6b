"""Items to batches."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from video_datasets.transforms import ColorDraw
from video_datasets.video_dataset import BadVideo, VideoItem


@dataclass
class VideoBatch:
    """A micro-batch, or a batch of an evaluation.

    videos: uint8 (B, V, T, 3, H, W), V = 1 in training. labels: int64 (B,). indices: int64 (B,), which listed videos
    these are (in training, a replaced one by its replacement). valid: bool (B,), False where a test video could not be
    read and its pixels are zeros. number: of the micro-batch in its epoch, or of the batch in this rank's evaluation.
    bad_videos: those met while this batch was read, seen before or not. colors: what is still to be done to the colours
    of each video (`batch_colors`), or None.
    """

    videos: Tensor
    labels: Tensor
    indices: Tensor
    valid: Tensor
    number: int
    bad_videos: list[BadVideo]
    colors: list[ColorDraw] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "VideoBatch":
        """Return the batch with its tensors on a device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "VideoBatch":
        """Return the batch with its tensors in pinned memory; PyTorch's DataLoader calls it."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, change) -> "VideoBatch":
        tensors = {name: change(getattr(self, name)) for name in ("videos", "labels", "indices", "valid")}
        return replace(self, **tensors)


def collate(items: Sequence[VideoItem | Exception]) -> VideoBatch | Exception:
    """Stack items into a batch; an error among them is handed on instead, to be raised where it is one line."""
    for item in items:
        if isinstance(item, Exception):
            return item
    return VideoBatch(
        videos=torch.stack([item.videos for item in items]),
        labels=torch.tensor([item.label for item in items]),
        indices=torch.tensor([item.index for item in items]),
        valid=torch.tensor([item.valid for item in items]),
        number=items[0].number,
        bad_videos=[bad for item in items for bad in item.bad_videos],
        colors=None if items[0].colors is None else [item.colors for item in items],
    )
