"""Video files to frames: the right ones, upright, with the decoders of `video_datasets.decoders`.

The right frames are those that FFmpeg gives when it decodes all of the video stream that players choose, in order.
`auto` and `pyav` give these. `decord` and `torchcodec` seek, and get some files wrong (DATASETS.md, Decoders). They
read only what begins as MP4, MOV or Matroska. Everything else is decoded in order by PyAV, whichever decoder is asked
for: in AVI they seek to wrong frames if B-frames are packed (HMDB-51), in MPEG streams decord does, and a playlist
would make decord open other files.
"""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from video_datasets.decoders import check_decoder, decoders_for, is_exact
from video_datasets.decoders.base import DecoderError, OrderNeededError, VideoReader, check_bytes, decoder_errors
from video_datasets.segments import VideoBytes, VideoSegment
from video_datasets.stored_frames import FilePart, opened_frames


class VideoReadError(Exception):
    """A video that cannot be read; `path` names it, `reason` is one line."""

    def __init__(self, path: str, reason: str):
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class VideoCrashError(VideoReadError):
    """A video on which a decoder ended its process by a signal, whose name is `cause`."""

    def __init__(self, path: str, reason: str, cause: str):
        super().__init__(path, reason)
        self.cause = cause


Source = str | Path | VideoBytes | VideoSegment

_FIRST_ATOMS = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")

# Number of frames of a video -> indices of the wanted frames.
Choose = Callable[[int], np.ndarray]
# Frames (t, H, W, 3) -> the same frames, smaller.
Change = Callable[[np.ndarray], np.ndarray]


def decode(source: Source, choose: Choose, decoder: str = "auto", change: Change | None = None) -> np.ndarray:
    """Decode chosen frames of a video: uint8 RGB (T, H, W, 3), upright.

    Args:
        source: a path, an object whose `read()` returns the bytes of the video, or a segment of either, whose frames
            are counted as if it were a video of its own. Only exact decoders read segments: `auto` if another is asked
            for.
        choose: number of frames of the video -> indices (T,) in display order; repeats and any order are allowed. It is
            called once for each decoder that is tried, and must return the same indices for the same number.
        decoder: `auto`, or the name of one of `video_datasets.decoders.DECODERS`.
        change: applied to a few frames at a time, so that not all are held at their full size.

    Raises:
        VideoReadError: no decoder can read the video, or it has no frames.
    """
    check_decoder(decoder)
    name = os.fspath(source) if isinstance(source, str | Path) else str(source)
    segment: VideoSegment | None = None
    if isinstance(source, VideoSegment):
        segment, source = source, source.source
        decoder = decoder if is_exact(decoder) else "auto"
    try:
        content = _content(source)
        with opened_frames(content, segment) as stored:
            if stored is not None:
                indices = _checked(choose(stored.num_frames), stored.num_frames)
                check_bytes(len(indices), stored.width, stored.height)
                frames = stored.read(indices)
                return frames if change is None else change(frames)
        if isinstance(content, FilePart):
            content = content.read()
        head = content[:12] if isinstance(content, bytes) else _first_bytes(content)
    except OSError as error:
        raise VideoReadError(name, error.strerror or str(error)) from error
    except DecoderError as error:
        raise VideoReadError(name, str(error)) from error
    if not head:
        raise VideoReadError(name, "the file is empty")

    reason = ""
    for candidate in decoders_for(decoder, may_seek=_may_seek(head)):
        try:
            with decoder_errors(f"{candidate.title} cannot open it", content):
                reader = candidate.load()(content)
                num_frames = reader.num_frames
                if num_frames < 1:
                    raise DecoderError(f"{candidate.title} finds no frames")
                width, height = reader.frame_size
            first, stop = (0, num_frames) if segment is None else segment.frames(reader.times)
            indices = first + _checked(choose(stop - first), stop - first)
            if change is None:
                check_bytes(len(indices), width, height)
            wanted, positions = np.unique(indices, return_inverse=True)
            with decoder_errors(f"{candidate.title} cannot decode it", content):
                frames = reader.read(wanted) if change is None else _changed(reader, wanted, change)
        except DecoderError as error:
            reason = str(error)
            if not (candidate.is_exact or isinstance(error, OrderNeededError)):
                break
        else:
            return frames if np.array_equal(wanted, indices) else frames[positions]
    raise VideoReadError(name, reason)


def frame_times(source: str | Path | VideoBytes) -> np.ndarray:
    """Return when each frame of a video file begins, in seconds since the first one: float64 (F,).

    Raises:
        VideoReadError: it cannot be read.
    """
    reason = ""
    try:
        content = _content(source)
        content = content.read() if isinstance(content, FilePart) else content
        head = content[:12] if isinstance(content, bytes) else _first_bytes(content)
        for candidate in decoders_for("auto", may_seek=_may_seek(head)):
            try:
                with decoder_errors(f"{candidate.title} cannot open it", content):
                    return candidate.load()(content).times
            except DecoderError as error:
                reason = str(error)
    except OSError as error:
        reason = error.strerror or str(error)
    raise VideoReadError(str(source), reason)


def _content(source: str | Path | VideoBytes) -> str | bytes | FilePart:
    """Return a path or the bytes of a source; a part of a file, which may be a large store, is not read yet."""
    if isinstance(source, str | Path):
        return os.fspath(source)
    return source if isinstance(source, FilePart) else source.read()


def _first_bytes(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(12)


def _may_seek(head: bytes) -> bool:
    """Return whether a video's first 12 bytes are those of Matroska, or of an atom that MP4 and MOV begin with."""
    return head[:4] == b"\x1a\x45\xdf\xa3" or head[4:8] in _FIRST_ATOMS


def _changed(reader: VideoReader, indices: np.ndarray, change: Change) -> np.ndarray:
    pieces: list[np.ndarray] = []
    for piece in reader.pieces(indices):
        pieces.append(change(piece))
        if len(pieces) == 1:
            check_bytes(len(indices), pieces[0].shape[2], pieces[0].shape[1])
    return np.concatenate(pieces)


def _checked(indices: np.ndarray, num_video_frames: int) -> np.ndarray:
    indices = np.asarray(indices)
    if indices.ndim != 1 or len(indices) == 0 or indices.min() < 0 or indices.max() >= num_video_frames:
        raise ValueError(f"frames {indices.tolist()} were chosen from a video of {num_video_frames}")
    return indices
