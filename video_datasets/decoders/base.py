"""What a decoder offers: a video opened, its number of frames, frames by index."""

import re
from abc import ABC, abstractmethod

import numpy as np


class DecoderError(Exception):
    """One decoder cannot read a video; the message is one line without the path."""


class VideoReader(ABC):
    """One opened video.

    A reader lives for one video: readers that are kept open are what long runs have hung on and leaked memory by.

    Args:
        content: a path, or the bytes of a video file.

    Raises:
        DecoderError: the video cannot be opened.
    """

    @abstractmethod
    def __init__(self, content: str | bytes):
        pass

    @property
    @abstractmethod
    def num_frames(self) -> int:
        """Number of frames, 1 or more.

        Raises:
            DecoderError: the video has no frames, or they cannot be counted.
        """

    @abstractmethod
    def read(self, indices: np.ndarray) -> np.ndarray:
        """Decode frames: uint8 RGB (T, H, W, 3), upright.

        Args:
            indices: (T,) positions in display order, ascending, each once.

        Raises:
            DecoderError: a frame cannot be decoded.
        """


def one_line(error: BaseException, content: str | bytes) -> str:
    """Return a library's error message without time stamps, source lines, stack traces and the path of the video."""
    text = str(error).strip().split("\n")[0]
    if isinstance(content, str):
        text = text.replace(f": '{content}'", "").replace(f" {content}...", "")
    text = re.sub(r"\[\d\d:\d\d:\d\d\] \S+?:\d+: ", "", text)
    text = re.sub(r"^\[Errno \d+\] ", "", text)
    return text[:160] or type(error).__name__
