"""Room on the disk of the output folder: a cache of frames on the same disk gives it back before a write fails."""

import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch

from tc_clip.protocol import TorchModule
from video_datasets.frame_cache import FrameCache

_MARGIN = 1 << 20  # for what a file system adds to a file


class OutputDisk:
    """The disk of an output folder.

    Args:
        output: the folder, which exists.
        cache: the run's cache of frames, or None.
        warn: called with one line when the cache gives room back.
    """

    def __init__(self, output: Path, cache: FrameCache | None, warn: Callable[[str], None]):
        self._output = output
        self._cache = cache if cache is not None and share_disk(output, cache.folder) else None
        self._warn = warn

    @property
    def is_shared(self) -> bool:
        """Whether the cache is on this disk."""
        return self._cache is not None

    def make_room(self, num_bytes: int, missing: int = 0) -> bool:
        """Let the cache delete entries if the disk has less room than a file needs; return whether it did.

        Args:
            num_bytes: of the file.
            missing: bytes to free even if the disk seems to have room, as after a write that failed by a quota.
        """
        if self._cache is None:
            return False
        missing = max(missing, num_bytes + _MARGIN - shutil.disk_usage(self._output).free)
        freed = self._cache.give_back(missing) if missing > 0 else 0
        if freed:
            self._warn(f"the disk is full: the cache of frames gave back {freed / 1e6:.0f} MB for a checkpoint")
        return freed > 0


def share_disk(first: Path, second: Path) -> bool:
    """Return whether two folders, which need not exist yet, are on one disk."""
    return _existing(first).stat().st_dev == _existing(second).stat().st_dev


def tensor_bytes(value: Any) -> int:
    """Return the bytes of all tensors in nested containers."""
    if isinstance(value, torch.Tensor):
        return value.nbytes
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return sum(map(tensor_bytes, items))


def checkpoint_bytes(model: TorchModule, left_out: Collection[str] = ()) -> int:
    """Return about how large a checkpoint of a model, without some weights, with an AdamW optimizer is."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    stored = [value for name, value in model.state_dict().items() if name not in left_out]
    return tensor_bytes(stored) + 2 * tensor_bytes(trained)


def _existing(path: Path) -> Path:
    path = path.absolute()
    return next(parent for parent in (path, *path.parents) if parent.exists())
