"""PyAV 14 to 19: decodes every frame in order, which is exact for all containers.

Everything of this project that reads a video with PyAV opens it here.
"""

import errno
import io
import os
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

import av
import numpy as np
from av.container import InputContainer
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from video_datasets.decoders.base import (
    MAX_PIXELS,
    DecoderError,
    VideoReader,
    decoder_errors,
    one_line,
)

_VERSION = int(av.__version__.split(".")[0])

# What FFmpeg may take a file for: containers and streams of video, whatever the name says. Playlists (HLS, DASH,
# concat), which open other files and addresses, are not among them, nor are pictures, subtitles and devices.
_FORMATS = (
    "amv apng asf av1 avi dv flv gif gxf h261 h263 h264 hevc ivf kux m4v matroska mjpeg mov mpeg mpegts mpegvideo mxf "
    "nsv nut obu ogg rm vc1 vvc wtv yuv4mpegpipe"
).split()
_LIMITS = {"max_pixels": str(MAX_PIXELS)}  # also for the frames that FFmpeg decodes to learn about a stream

_OPEN_OPTIONS: dict[str, Any] = {
    "options": {"format_whitelist": ",".join(_FORMATS), "protocol_whitelist": "file", **_LIMITS},
    # HMDB-51 has tags that are not UTF-8. PyAV 19 always reads them; before, they were an error unless ignored.
    **({} if _VERSION >= 19 else {"metadata_errors": "ignore"}),
}

# Decoded frames (YUV, 1.5 bytes per pixel) are kept until their number is known and the wanted ones are chosen. Above
# this many bytes they are dropped and decoded twice: 10 s at 640x360 take 115 MB, a minute of HD would take 2 GB.
_MAX_KEPT_BYTES = 192 << 20


def open_video(source: str | bytes | BinaryIO) -> InputContainer:
    """Open a video for reading: a path, the bytes of a video file, or a binary file. No other file is opened.

    Raises:
        Exception: whatever PyAV raises for a damaged file; see `decoder_errors`.
    """
    if isinstance(source, bytes):
        source = io.BytesIO(source)
    if isinstance(source, str):
        source = os.path.abspath(source)  # which no protocol's name begins
    return av.open(source, "r", **_OPEN_OPTIONS)


def best_video_stream(container: InputContainer) -> VideoStream:
    """Return the video stream that players show, set to decode in one thread.

    A cover picture is no video. A worker is one thread: parallelism comes from many workers.

    Raises:
        DecoderError: FFmpeg knows none that it can decode.
    """
    stream = container.streams.best("video")
    if isinstance(stream, VideoStream) and Disposition.attached_pic in stream.disposition:
        stream = max(video_streams(container), key=lambda video: video.width * video.height, default=None)
    if not isinstance(stream, VideoStream) or stream.codec_context is None:
        raise DecoderError("PyAV finds no video stream that it can decode")
    stream.codec_context.options = _LIMITS  # a stream can change its size later
    stream.codec_context.thread_count = 1
    return stream


def video_streams(container: InputContainer) -> list[VideoStream]:
    """Return the video streams that are no cover pictures."""
    return [video for video in container.streams.video if Disposition.attached_pic not in video.disposition]


def decode_in_order(content: str | bytes) -> Iterator[VideoFrame]:
    """Yield the frames of the best video stream in display order.

    Raises:
        DecoderError: there is no video stream, it cannot be decoded, or breaks off after the frames already yielded.
    """
    num_frames = 0
    try:
        with open_video(content) as container:
            for frame in container.decode(best_video_stream(container)):
                num_frames += 1
                yield frame
    except DecoderError:
        raise
    except Exception as error:  # as in `decoder_errors`
        position = f"after {num_frames} frames" if num_frames else "from the start"
        # FFmpeg's word for frames above its limit of pixels, among other things.
        limit = (
            f", or frames above {MAX_PIXELS // 10**6} megapixels"
            if getattr(error, "errno", None) == errno.EINVAL
            else ""
        )
        raise DecoderError(f"PyAV cannot decode it {position} ({one_line(error, content)}{limit})") from error


class FrameClock:
    """When the frames of a video begin, in seconds since the first one.

    Where time stamps step back, as in recordings that were joined, a new part follows the one before.
    """

    def __init__(self) -> None:
        self._began: float | None = None  # time stamp of second 0
        self._now = 0.0
        self.duration = 0.04  # of the frame before

    def start_of(self, frame: VideoFrame) -> float:
        """Return when the next frame begins; called with every frame, in order."""
        if self._began is None:
            self._began = frame.time or 0.0
            ticks = getattr(frame, "duration", None)  # PyAV has it from 14.3 on
            if ticks and frame.time_base:
                self.duration = float(ticks * frame.time_base)
            return 0.0
        moment = self._now + self.duration if frame.time is None else frame.time - self._began
        if frame.time is not None and moment < self._now - 1e-6:
            moment = self._now + self.duration
            self._began = frame.time - moment
        moment = max(moment, self._now)
        self.duration, self._now = moment - self._now, moment
        return moment


class Orientation(NamedTuple):
    """How a stored picture becomes upright: rows and columns swapped, then columns reversed, then rows reversed."""

    swap: bool = False
    mirror: bool = False
    flip: bool = False

    @classmethod
    def of(cls, frame: VideoFrame) -> "Orientation":
        """Read the display matrix of a frame, to the nearest of the eight; PyAV only reports it."""
        data: Any = frame.side_data.get("DISPLAYMATRIX")
        if data is None:
            return cls()
        # A stored point (x, y) is shown at (a x + c y, b x + d y).
        a, b, _, c, d = np.frombuffer(bytes(data), np.int32)[:5].astype(np.int64).tolist()
        if abs(b) + abs(c) > abs(a) + abs(d):
            return cls(True, c < 0, b < 0)
        return cls(False, a < 0, d < 0)

    def apply(self, pixels: np.ndarray) -> np.ndarray:
        """Return the upright view of a picture (H, W, 3): (H, W, 3) or (W, H, 3)."""
        if self.swap:
            pixels = pixels.transpose(1, 0, 2)
        return pixels[:: -1 if self.flip else 1, :: -1 if self.mirror else 1]


def upright_rgb(frame: VideoFrame, width: int, height: int, orientation: Orientation) -> np.ndarray:
    """Convert a frame to uint8 RGB of a stored size, and turn it upright: (height, width, 3) or (width, height, 3).

    Raises:
        DecoderError: it cannot be converted.
    """
    options: dict[str, Any]
    if _VERSION >= 17:
        options = {"threads": 1}  # threads of its own for each frame cost more than they save
    else:  # converts colours as if every video were BT.601 in the limited range
        space, color_range = frame.colorspace, frame.color_range
        options = {"src_colorspace": space, "dst_colorspace": "ITU601", "src_color_range": color_range}
    with decoder_errors("PyAV cannot convert its frames"):
        return orientation.apply(frame.reformat(width, height, "rgb24", **options).to_ndarray())


class PyavReader(VideoReader):
    """A video decoded with PyAV from start to end. All frames have the size and orientation of the first one."""

    def __init__(self, content: str | bytes):
        self._content = content
        self._num_frames = 0
        self._kept: list[VideoFrame] | None = []  # all frames, or None if they are too large to keep
        self._times: list[float] = []
        kept_bytes, clock = 0, FrameClock()
        for frame in decode_in_order(content):
            if self._num_frames == 0:
                self._width, self._height = frame.width, frame.height
                self._orientation = Orientation.of(frame)
            self._num_frames += 1
            self._times.append(clock.start_of(frame))
            if self._kept is not None:
                self._kept.append(frame)
                kept_bytes += sum(plane.buffer_size for plane in frame.planes)
                if kept_bytes > _MAX_KEPT_BYTES:
                    self._kept = None
        if self._num_frames == 0:
            raise DecoderError("PyAV finds no frames")

    @property
    def num_frames(self) -> int:
        """Number of frames, counted by decoding them."""
        return self._num_frames

    @property
    def times(self) -> np.ndarray:
        """Times of the decoded frames."""
        return np.array(self._times)

    @property
    def frame_size(self) -> tuple[int, int]:
        """Width and height of the first frame, as stored."""
        return self._width, self._height

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Decode frames, as the base class says."""
        return np.concatenate(list(self.pieces(indices)))

    def pieces(self, indices: np.ndarray) -> Iterator[np.ndarray]:
        """Decode frames one by one, in one pass."""
        for frame in self._frames(indices):
            yield upright_rgb(frame, self._width, self._height, self._orientation)[None]

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
