"""What a decoder offers: a video opened, its number of frames, frames by index."""

import contextlib
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator

import numpy as np

# A small file can decode to any size: frames of more pixels (8K has 33 million), and more bytes of frames of one video
# (64 of 4K are 1.6 GB) are refused before they are decoded.
MAX_PIXELS = 36_000_000
MAX_BYTES = 2 << 30
_PIECE = 16  # frames


class DecoderError(Exception):
    """One decoder cannot read a video; the message is one line without the path."""


class OrderNeededError(DecoderError):
    """Only decoding every frame in order is known to give the right frames of a video."""


@contextlib.contextmanager
def decoder_errors(what: str, content: str | bytes = b"") -> Iterator[None]:
    """Around calls of a decoding library: whatever it raises becomes a `DecoderError`, `<what> (<reason>)`.

    A damaged file can lead a library to any error, so no list of expected ones is complete.

    Args:
        what: as "PyAV cannot decode it".
        content: the video, whose path is left out of the reason.
    """
    try:
        yield
    except DecoderError:
        raise
    except Exception as error:
        raise DecoderError(f"{what} ({one_line(error, content)})") from error


def check_bytes(num_frames: int, width: int, height: int) -> None:
    """Check the memory of the wanted frames before they are decoded.

    Raises:
        DecoderError: it is too much.
    """
    size = 3 * num_frames * width * height
    if size > MAX_BYTES:
        raise DecoderError(
            f"{num_frames} frames of {width}x{height} pixels take {size / 1e9:.1f} GB, more than "
            f"{MAX_BYTES / 1e9:.1f} GB; reduce their size (transcode.py) or the views"
        )


class VideoReader(ABC):
    """One opened video.

    A reader lives for one video: readers that are kept open are what long runs have hung on and leaked memory by.

    Any error of the library may leave a method: `decode` reports it as the video's.

    Args:
        content: a path, or the bytes of a video file.

    Raises:
        DecoderError: the video cannot be opened, or has frames of more than `MAX_PIXELS`.
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

    @property
    def times(self) -> np.ndarray:
        """When each frame begins, in seconds since the first one, ascending: (num_frames,).

        Raises:
            OrderNeededError: this decoder does not know it.
        """
        raise OrderNeededError("its decoder does not know the times of its frames")

    @property
    @abstractmethod
    def frame_size(self) -> tuple[int, int]:
        """Width and height of a frame."""

    @abstractmethod
    def read(self, indices: np.ndarray) -> np.ndarray:
        """Decode frames: uint8 RGB (T, H, W, 3), upright.

        Args:
            indices: (T,) positions in display order, ascending, each once.

        Raises:
            DecoderError: a frame cannot be decoded.
        """

    def pieces(self, indices: np.ndarray) -> Iterator[np.ndarray]:
        """Decode frames as `read` does, a few at a time, so that not all are held at their full size."""
        for start in range(0, len(indices), _PIECE):
            yield self.read(indices[start : start + _PIECE])


def one_line(error: BaseException, content: str | bytes) -> str:
    """Return a library's error message without time stamps, source lines, stack traces and the path of the video."""
    text = str(error).strip().split("\n")[0]
    if isinstance(content, str):
        text = text.replace(f" {content}...", "")
    text = re.sub(r": '.*", "", text)  # the path, or the function that failed
    text = re.sub(r"\[\d\d:\d\d:\d\d\] \S+?:\d+: ", "", text)
    text = re.sub(r"^\[Errno \d+\] ", "", text)
    return text[:160] or type(error).__name__
