"""All frames of a video in order, each with the time at which it is shown (`FrameClock`)."""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import av
import numpy as np
from av.video.frame import VideoFrame

from video_datasets.decoders.base import DecoderError, decoder_errors
from video_datasets.decoders.pyav import (
    FrameClock,
    Orientation,
    best_video_stream,
    decode_in_order,
    open_video,
    upright_rgb,
)
from video_datasets.decoding import VideoReadError
from video_datasets.streams import Stream, decode_stream

# Between two frames; as many windows as fit would be opened. In a file one picture can stand for hours.
MAX_STEP_S, MAX_FILE_STEP_S = 60.0, 86_400.0


@dataclass(frozen=True)
class TimedFrame:
    """A frame and when it is shown, in seconds since the first frame; `pixels()` gives it as uint8 RGB (H, W, 3)."""

    start: float
    end: float
    pixels: Callable[[], np.ndarray]


def frames_in_time(path: str | bytes) -> Iterator[TimedFrame]:
    """Yield all frames of a video file (a path, or its bytes) in order (PyAV), upright, in the size of the first one.

    Raises:
        VideoReadError: the file cannot be read, has no frames, or breaks off after those already yielded.
    """
    return _timed(path if isinstance(path, str) else "a video", decode_in_order(path), MAX_FILE_STEP_S)


def stream_in_time(stream: Stream) -> Iterator[TimedFrame]:
    """Yield the frames of a camera or a network stream as `frames_in_time` does, for as long as it lasts.

    Raises:
        VideoReadError: it cannot be opened, has no frames, is lost, or ends without having been a file.
    """
    return _timed(stream.name, decode_stream(stream), MAX_STEP_S)


def _timed(name: str, frames: Iterator[VideoFrame], max_step: float) -> Iterator[TimedFrame]:
    held: VideoFrame | None = None
    shape = (0, 0, Orientation())
    clock, start = FrameClock(), 0.0
    try:
        for frame in frames:
            moment = clock.start_of(frame)
            if moment - start > max_step:
                raise DecoderError(f"its time stamps jump by {moment - start:.0f} s")
            if held is None:
                shape = (frame.width, frame.height, Orientation.of(frame))
            else:
                yield TimedFrame(start, moment, functools.partial(_pixels, name, held, *shape))
            held, start = frame, moment
        if held is not None:
            yield TimedFrame(
                start, start + min(clock.duration, max_step), functools.partial(_pixels, name, held, *shape)
            )
    except DecoderError as error:
        position = f" ({start:.1f} s)" if held is not None else ""
        raise VideoReadError(name, f"{error}{position}") from error
    if held is None:
        raise VideoReadError(name, "PyAV finds no frames")


def seconds_of(path: str) -> float:
    """Return the duration in the header of a video file; 0 if it has none.

    Raises:
        VideoReadError: the file is not a video.
    """
    try:
        with decoder_errors("it cannot be opened", path), open_video(path) as container:
            best_video_stream(container)
            return (container.duration or 0) / av.time_base
    except DecoderError as error:
        raise VideoReadError(path, str(error)) from error


def _pixels(name: str, frame: VideoFrame, width: int, height: int, orientation: Orientation) -> np.ndarray:
    try:
        return upright_rgb(frame, width, height, orientation)
    except DecoderError as error:
        raise VideoReadError(name, str(error)) from error
