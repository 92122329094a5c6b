"""Video files to frames: the right ones, upright, with decord or PyAV.

decord decodes by default and PyAV what decord cannot open. What each gets wrong on real files decides the rest:

- AVI: decord and PyAV seek to wrong frames where B-frames are packed (HMDB-51), and containers claim a frame too many.
  Decoding in order is exact and counts the frames, so AVIs go to PyAV in order, whichever decoder is asked for.
- Rotation metadata: decord applies it, PyAV reports it.
- Several video streams: both take the best one, as players do.
- Edit lists: decord ignores them and counts frames that are not shown; `decoder="pyav"` does not.

A reader lives for one call: readers kept alive are what long runs have hung on and leaked memory by.
"""

import functools
import importlib.util
import io
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

DECODERS = ("auto", "decord", "pyav")

# PyAV holds decoded frames (YUV, 1.5 bytes a pixel) until their number is known and the wanted ones are chosen. Above
# this many bytes it lets them go and decodes twice: 10 s at 640x360 are 115 MB, a minute of HD would be 2 GB.
_HELD_BYTES = 192 << 20


class VideoReadError(Exception):
    """A video that cannot be read; `path` names it, `reason` is one line."""

    def __init__(self, path: str, reason: str):
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class VideoBytes(Protocol):
    """A video that is not a file of its own; `str()` names it in errors."""

    def read(self) -> bytes:
        """Return all bytes of the video."""


class _DecoderError(Exception):
    """One decoder gave up; the message is one line."""


def check_decoder(decoder: str) -> None:
    """Raise ValueError for an unknown decoder, and ImportError for one that is not installed."""
    if decoder not in DECODERS:
        raise ValueError(f"decoder {decoder!r} is unknown; there are {', '.join(DECODERS)}")
    if decoder == "decord" and not _has_decord():
        raise ImportError("decoder decord is not installed (it has no wheel for this platform); use auto or pyav")


def decode(source: str | Path | VideoBytes, choose: Callable[[int], np.ndarray], decoder: str = "auto") -> np.ndarray:
    """Decode chosen frames of a video: uint8 RGB (T, H, W, 3), upright.

    Args:
        source: a path, or an object whose `read()` returns the bytes of the video.
        choose: number of frames of the video -> indices (T,) in display order, repeats and any order allowed. It is
            called once a decoder tried, so it must give the same answer to the same number.
        decoder: `decord` or `pyav` alone, or `auto`: decord, then PyAV for what decord cannot read.

    Raises:
        VideoReadError: no decoder can read the video, or it has no frames.
    """
    check_decoder(decoder)
    name = os.fspath(source) if isinstance(source, str | Path) else str(source)
    try:
        if isinstance(source, str | Path):
            content: str | bytes = name
            with open(name, "rb") as file:
                head = file.read(12)
        else:
            content = source.read()
            head = content[:12]
    except OSError as error:
        raise VideoReadError(name, error.strerror or str(error)) from error
    if not head:
        raise VideoReadError(name, "the file is empty")

    reasons = []
    for read in _readers(decoder, is_avi=head[:4] == b"RIFF" and head[8:12] == b"AVI "):
        try:
            return read(content, choose)
        except _DecoderError as error:
            reasons.append(str(error))
    raise VideoReadError(name, "; ".join(reasons))


@dataclass(frozen=True)
class TimedFrame:
    """A frame and when it is shown, in seconds since the first frame; `pixels()` gives it as uint8 RGB (H, W, 3)."""

    start: float
    end: float
    pixels: Callable[[], np.ndarray]


def frames_in_time(path: str) -> Iterator[TimedFrame]:
    """Yield all frames of a video file in order, decoded one after the other (PyAV), upright.

    Raises:
        VideoReadError: the file cannot be read, has no frames, or breaks off after those already yielded.
    """
    import av

    held, first, began = None, None, 0.0
    duration = 0.0  # of the frame before
    end = 0.0
    try:
        for frame in _pyav_frames(path):
            first = first or frame
            if held is not None:
                moment = end + duration if frame.time is None else frame.time - began
                # A stream may repeat a time stamp or step back; shown time never does.
                moment = max(moment, end)
                yield TimedFrame(end, moment, functools.partial(_rgb, held, first))
                duration, end = moment - end, moment
            else:
                began = frame.time or 0.0
                duration = float(frame.duration * frame.time_base) if frame.duration and frame.time_base else 0.04
            held = frame
        if held is not None:
            yield TimedFrame(end, end + duration, functools.partial(_rgb, held, first))
    except (av.error.FFmpegError, ValueError, OSError, _DecoderError) as error:
        where = f" after {end:.1f} s" if held is not None else ""
        raise VideoReadError(path, f"PyAV cannot decode it{where} ({_first_line(error, path)})") from error
    if held is None:
        raise VideoReadError(path, "PyAV finds no frames")


def _readers(decoder: str, is_avi: bool) -> list[Callable[[str | bytes, Callable[[int], np.ndarray]], np.ndarray]]:
    if decoder == "pyav" or is_avi:
        return [_decode_with_pyav]
    if decoder == "decord":
        return [_decode_with_decord]
    return [_decode_with_decord, _decode_with_pyav] if _has_decord() else [_decode_with_pyav]


def _has_decord() -> bool:
    return importlib.util.find_spec("decord") is not None


def _decode_with_decord(content: str | bytes, choose: Callable[[int], np.ndarray]) -> np.ndarray:
    import decord
    from decord._ffi.base import DECORDError

    decord.logging.set_level(decord.logging.QUIET)  # a damaged file is one error of ours, not a page of FFmpeg's
    # DECORDError derives from Exception alone.
    failures = (RuntimeError, DECORDError)
    try:
        reader = decord.VideoReader(
            content if isinstance(content, str) else io.BytesIO(content), ctx=decord.cpu(0), num_threads=1
        )
        num_video_frames = len(reader)
    except failures as error:
        raise _DecoderError(f"decord cannot open it ({_first_line(error, content)})") from error
    if num_video_frames < 1:
        raise _DecoderError("decord finds no frames")
    wanted, places = _wanted(choose, num_video_frames)
    try:
        frames = reader.get_batch(wanted.tolist()).asnumpy()
    except failures as error:
        raise _DecoderError(f"decord cannot decode it ({_first_line(error, content)})") from error
    return frames[places] if len(places) != len(wanted) or (places[1:] < places[:-1]).any() else frames


def _decode_with_pyav(content: str | bytes, choose: Callable[[int], np.ndarray]) -> np.ndarray:
    import av

    failures = (av.error.FFmpegError, ValueError, OSError)
    held: list | None = []
    held_bytes = 0
    num_video_frames = 0
    try:
        for frame in _pyav_frames(content):
            num_video_frames += 1
            if held is not None:
                held.append(frame)
                held_bytes += sum(plane.buffer_size for plane in frame.planes)
                if held_bytes > _HELD_BYTES:
                    held = None
    except failures as error:
        where = f"after {num_video_frames} frames" if num_video_frames else "from the start"
        raise _DecoderError(f"PyAV cannot decode it {where} ({_first_line(error, content)})") from error
    if num_video_frames == 0:
        raise _DecoderError("PyAV finds no frames")

    wanted, places = _wanted(choose, num_video_frames)
    frames: list[np.ndarray] = []
    try:
        if held is not None:
            frames = [_rgb(held[index], held[0]) for index in wanted]
        else:
            first = None
            for index, frame in enumerate(_pyav_frames(content)):
                first = first or frame
                if index == wanted[len(frames)]:
                    frames.append(_rgb(frame, first))
                    if len(frames) == len(wanted):
                        break
    except failures as error:
        raise _DecoderError(f"PyAV cannot convert its frames ({_first_line(error, content)})") from error
    return np.stack(frames)[places]


def _pyav_frames(content: str | bytes):
    """Yield the frames of the best video stream in display order."""
    import av

    source = content if isinstance(content, str) else io.BytesIO(content)
    # HMDB-51 has files whose metadata is not UTF-8.
    with av.open(source, metadata_errors="ignore") as container:
        stream = container.streams.best("video")
        if stream is None:
            raise _DecoderError("PyAV finds no video stream")
        stream.codec_context.thread_count = 1  # a worker is one thread; workers are what there are many of
        yield from container.decode(stream)


def _rgb(frame, first) -> np.ndarray:
    """Convert a PyAV frame to upright RGB (H, W, 3), in the size of the video's first frame."""
    pixels = frame.to_ndarray(format="rgb24", width=first.width, height=first.height)
    return np.rot90(pixels, round(frame.rotation / 90))


def _wanted(choose: Callable[[int], np.ndarray], num_video_frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the frames to decode, each once and ascending, and for every frame asked for its place among them."""
    indices = np.asarray(choose(num_video_frames))
    if indices.ndim != 1 or len(indices) == 0 or indices.min() < 0 or indices.max() >= num_video_frames:
        raise ValueError(f"frames {indices.tolist()} were chosen from a video of {num_video_frames}")
    return np.unique(indices, return_inverse=True)


def _first_line(error: BaseException, content: str | bytes) -> str:
    """Return a decoder's message without time stamps, source lines, stack traces and the path, which stands before."""
    text = str(error).strip().split("\n")[0]
    if isinstance(content, str):
        text = text.replace(f": '{content}'", "").replace(f" {content}...", "")
    text = re.sub(r"\[\d\d:\d\d:\d\d\] \S+?:\d+: ", "", text)
    text = re.sub(r"^\[Errno \d+\] ", "", text)
    return text[:160] or type(error).__name__
