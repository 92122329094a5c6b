"""A part of a video, from one time to another, that is read as if it were a video of its own.

A segment is a column of an annotation list and has a name, `clip.mp4#t=1.5,4`, as in media fragments of the web. The
name stands wherever that of a video does: in predictions, in features, in lists of bad videos.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from video_datasets.decoders.base import DecoderError

# Times are compared in tenths of a millisecond: a store of frames keeps them so, and annotations are coarser.
_TICKS = 10_000
_MAX_S = 1e9
_NAME = re.compile(r"(.+)#t=(\d+(?:\.\d+)?),(\d+(?:\.\d+)?)", re.DOTALL)


class VideoBytes(Protocol):
    """A video that is not a file by itself; `str()` names it in errors."""

    def read(self) -> bytes:
        """Return all bytes of the video."""


@dataclass(frozen=True, slots=True)
class VideoSegment:
    """The frames of a video that begin at `start` or later, and before `end`; seconds since its first frame."""

    source: str | Path | VideoBytes
    start: float
    end: float

    def __str__(self) -> str:
        return segment_name(str(self.source), self.start, self.end)

    def frames(self, times: np.ndarray) -> tuple[int, int]:
        """Return the first frame and the one behind the last, from the times of all frames, ascending, (F,).

        Raises:
            DecoderError: no frame is within.
        """
        ticks = np.rint(times * _TICKS)
        first, stop = (int(np.searchsorted(ticks, round(time * _TICKS))) for time in (self.start, self.end))
        if first >= stop:
            raise DecoderError(
                f"no frame begins from {_seconds(self.start)} to {_seconds(self.end)} s; the last one of the video "
                f"begins at {times[-1]:.2f} s"
            )
        return first, stop


def segment_name(path: str, start: float, end: float) -> str:
    """Return the name of a segment of a video.

    Raises:
        ValueError: `start` is not 0 or more, or not before `end`.
    """
    if not 0 <= start < end < _MAX_S:  # NaN is none of it
        raise ValueError(f"a segment from {start:g} to {end:g} s: the start must be 0 or more, and before the end")
    if _seconds(start) == _seconds(end):
        raise ValueError(f"a segment from {start} to {end} s is shorter than 0.1 ms")
    return f"{path}#t={_seconds(start)},{_seconds(end)}"


def split_name(name: str) -> tuple[str, tuple[float, float] | None]:
    """Return the path of a video and the segment that a name ends with, if it is one that `segment_name` returns."""
    if (found := _NAME.fullmatch(name)) is None:
        return name, None
    start, end = float(found[2]), float(found[3])
    try:
        segment_name(found[1], start, end)
    except ValueError:
        return name, None
    return found[1], (start, end)


def source_of(name: str) -> str | VideoSegment:
    """Return what a name on a command line stands for: a file of that name, or else a segment of a file."""
    path, segment = split_name(name)
    return name if segment is None or os.path.exists(name) else VideoSegment(path, *segment)


def _seconds(time: float) -> str:
    return f"{time:.4f}".rstrip("0").rstrip(".")
