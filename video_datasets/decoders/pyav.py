"""PyAV 14 to 19: decodes every frame in order, which is exact for all containers.

Everything of this project that reads a video with PyAV opens it here.
"""

import io
from collections.abc import Iterator
from typing import Any, BinaryIO

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from video_datasets.decoders.base import DecoderError, VideoReader, one_line

# What PyAV raises for files that it cannot read.
PYAV_ERRORS = (av.error.FFmpegError, ValueError, OSError)

_VERSION = int(av.__version__.split(".")[0])

# HMDB-51 has tags that are not UTF-8. PyAV 19 always reads them; before, they were an error unless ignored.
_OPEN_OPTIONS: dict[str, Any] = {} if _VERSION >= 19 else {"metadata_errors": "ignore"}

# Decoded frames (YUV, 1.5 bytes per pixel) are kept until their number is known and the wanted ones are chosen. Above
# this many bytes they are dropped and decoded twice: 10 s at 640x360 take 115 MB, a minute of HD would take 2 GB.
_MAX_KEPT_BYTES = 192 << 20


def open_video(source: str | bytes | BinaryIO) -> InputContainer:
    """Open a video for reading: a path, the bytes of a video file, or a binary file.

    Raises:
        av.error.FFmpegError, ValueError, OSError: see `PYAV_ERRORS`.
    """
    if isinstance(source, bytes):
        source = io.BytesIO(source)
    return av.open(source, "r", **_OPEN_OPTIONS)


def best_video_stream(container: InputContainer) -> VideoStream | None:
    """Return the video stream that players show, set to decode in one thread; None if FFmpeg knows none.

    A worker is one thread: parallelism comes from many workers.
    """
    stream = container.streams.best("video")
    if not isinstance(stream, VideoStream) or stream.codec_context is None:
        return None
    stream.codec_context.thread_count = 1
    return stream


def decode_in_order(content: str | bytes) -> Iterator[VideoFrame]:
    """Yield the frames of the best video stream in display order.

    Raises:
        DecoderError: there is no video stream.
        av.error.FFmpegError, ValueError, OSError: see `PYAV_ERRORS`.
    """
    with open_video(content) as container:
        stream = best_video_stream(container)
        if stream is None:
            raise DecoderError("PyAV finds no video stream that it can decode")
        yield from container.decode(stream)


def quarter_turns(frame: VideoFrame) -> int:
    """Return how many quarter turns, counter-clockwise, put a frame upright; PyAV only reports rotation."""
    return round(frame.rotation / 90) % 4


def upright_rgb(frame: VideoFrame, width: int, height: int) -> np.ndarray:
    """Convert a frame to uint8 RGB of a stored size, and turn it upright: (height, width, 3) or (width, height, 3)."""
    if _VERSION < 17:  # which converts colours as if every video were BT.601 in the limited range
        space, color_range = frame.colorspace, frame.color_range
        frame = frame.reformat(
            width, height, "rgb24", src_colorspace=space, dst_colorspace="ITU601", src_color_range=color_range
        )
    return np.rot90(frame.to_ndarray(format="rgb24", width=width, height=height), quarter_turns(frame))


class PyavReader(VideoReader):
    """A video decoded with PyAV from start to end. All frames have the size of the first one."""

    def __init__(self, content: str | bytes):
        self._content = content
        self._num_frames = 0
        self._kept: list[VideoFrame] | None = []  # all frames, or None if they are too large to keep
        kept_bytes = 0
        try:
            for frame in decode_in_order(content):
                if self._num_frames == 0:
                    self._width, self._height = frame.width, frame.height
                self._num_frames += 1
                if self._kept is not None:
                    self._kept.append(frame)
                    kept_bytes += sum(plane.buffer_size for plane in frame.planes)
                    if kept_bytes > _MAX_KEPT_BYTES:
                        self._kept = None
        except PYAV_ERRORS as error:
            position = f"after {self._num_frames} frames" if self._num_frames else "from the start"
            raise DecoderError(f"PyAV cannot decode it {position} ({one_line(error, content)})") from error
        if self._num_frames == 0:
            raise DecoderError("PyAV finds no frames")

    @property
    def num_frames(self) -> int:
        """Number of frames, counted by decoding them."""
        return self._num_frames

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Decode frames, as the base class says."""
        try:
            frames = [upright_rgb(frame, self._width, self._height) for frame in self._frames(indices)]
        except PYAV_ERRORS as error:
            raise DecoderError(f"PyAV cannot convert its frames ({one_line(error, self._content)})") from error
        return np.stack(frames)

    def _frames(self, indices: np.ndarray) -> Iterator[VideoFrame]:
        kept = self._kept
        if kept is not None:
            yield from (kept[index] for index in indices)
            return
        wanted = iter(indices.tolist())
        next_wanted = next(wanted, None)
        for index, frame in enumerate(decode_in_order(self._content)):
            if index == next_wanted:
                yield frame
                next_wanted = next(wanted, None)
                if next_wanted is None:
                    return
