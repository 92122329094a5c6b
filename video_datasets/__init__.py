"""Videos on disk to batches of tensors: lists, decoding, frame sampling, transforms, mixing, loaders.

Knows no configuration, no model and no process group; rank and world size are arguments. Names are imported when they
are first used, so `import video_datasets` costs nothing.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from video_datasets.annotations import AnnotationError, VideoRecord, read_annotations, read_class_names
    from video_datasets.batches import VideoBatch
    from video_datasets.decoding import VideoReadError, decode
    from video_datasets.loaders import BadVideoError, EvalLoader, TrainLoader, micro_batches
    from video_datasets.mixing import Mixing
    from video_datasets.randomness import micro_batch_rng
    from video_datasets.transforms import TestTransform, TrainTransform, normalize
    from video_datasets.video_dataset import BadVideo, ItemKey, VideoDataset
    from video_datasets.video_files import VIDEO_SUFFIXES, VideoFilesError, has_video_suffix, open_video_files
    from video_datasets.windows import Window, read_windows
    from video_datasets.workers import VideoTimeoutError, VideoWorkerError

_MODULES = {
    "annotations": ("AnnotationError", "VideoRecord", "read_annotations", "read_class_names"),
    "batches": ("VideoBatch",),
    "decoding": ("VideoReadError", "decode"),
    "loaders": ("BadVideoError", "EvalLoader", "TrainLoader", "micro_batches"),
    "mixing": ("Mixing",),
    "randomness": ("micro_batch_rng",),
    "transforms": ("TestTransform", "TrainTransform", "normalize"),
    "video_dataset": ("BadVideo", "ItemKey", "VideoDataset"),
    "video_files": ("VIDEO_SUFFIXES", "VideoFilesError", "has_video_suffix", "open_video_files"),
    "windows": ("Window", "read_windows"),
    "workers": ("VideoTimeoutError", "VideoWorkerError"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "AnnotationError",
    "BadVideo",
    "BadVideoError",
    "EvalLoader",
    "ItemKey",
    "Mixing",
    "TestTransform",
    "TrainLoader",
    "TrainTransform",
    "VIDEO_SUFFIXES",
    "VideoBatch",
    "VideoDataset",
    "VideoFilesError",
    "VideoReadError",
    "VideoRecord",
    "VideoTimeoutError",
    "VideoWorkerError",
    "Window",
    "decode",
    "has_video_suffix",
    "micro_batch_rng",
    "micro_batches",
    "normalize",
    "open_video_files",
    "read_annotations",
    "read_class_names",
    "read_windows",
]


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'video_datasets' has no attribute {name!r}")
    return getattr(importlib.import_module(f"video_datasets.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
