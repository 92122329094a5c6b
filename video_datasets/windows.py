"""A long video as a sequence of windows in time, decoded once from start to end in bounded memory."""

import functools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from video_datasets.decoding import VideoReadError
from video_datasets.isolation import Decoder, DecoderHere
from video_datasets.transforms import TestTransform

if TYPE_CHECKING:
    from video_datasets.timed_frames import TimedFrame


@dataclass
class Window:
    """A piece of a video: `start` to `end` in seconds, and its crops' frames, uint8 (V, T, 3, S, S)."""

    start: float
    end: float
    videos: Tensor


@dataclass
class _OpenWindow:
    """A window that is being filled: frames at its times, and some of all others in case the video ends early."""

    start: float
    frames: list[Tensor] = field(default_factory=list)  # each (V, 3, S, S)
    spare: list[tuple[float, Tensor]] = field(default_factory=list)  # time at which it is shown first, and the frame
    step: int = 1  # one of every `step` frames is kept as spare
    num_seen: int = 0

    def keep(self, moment: float, crops: Callable[[], Tensor], num_frames: int) -> None:
        """Keep some frames as spares: evenly spread over the window, at least `num_frames`, at most twice as many."""
        if self.num_seen % self.step == 0:
            self.spare.append((moment, crops()))
            if len(self.spare) > 2 * num_frames:
                self.spare, self.step = self.spare[::2], 2 * self.step
        self.num_seen += 1

    def ended(self, end: float, num_frames: int) -> Window:
        """Return the window of a video that ends before the window does."""
        begins = np.array([moment for moment, _ in self.spare])
        moments = self.start + (np.arange(num_frames) + 0.5) * (end - self.start) / num_frames
        shown = np.maximum(np.searchsorted(begins, moments, side="right") - 1, 0)
        return Window(self.start, end, torch.stack([self.spare[index][1] for index in shown], dim=1))


def read_windows(
    path: str,
    window_s: float,
    stride_s: float,
    num_frames: int,
    transform: TestTransform,
    decoder: Decoder | None = None,
) -> Iterator[Window]:
    """Yield the windows of a video in the order of time.

    Windows start every `stride_s` seconds and consist of the frames shown at the middles of `num_frames` equal parts.
    Times are those of the frames, so videos of variable frame rate are cut correctly. The rest at the end that no whole
    window covers becomes one shorter window, and so does a video shorter than a window.

    Args:
        path: a video file.
        window_s: length of a window in seconds.
        stride_s: seconds between the starts of two windows.
        num_frames: frames per window, `T`.
        transform: makes the crops of a frame.
        decoder: reads the file; None: this process itself.

    Raises:
        ValueError: the window or the stride is not above 0.
        VideoReadError: the file cannot be read, or breaks off after the windows already yielded.
    """
    return windows_of((decoder or DecoderHere()).frames_in_time(path), window_s, stride_s, num_frames, transform)


def windows_of(
    frames: Iterable["TimedFrame"], window_s: float, stride_s: float, num_frames: int, transform: TestTransform
) -> Iterator[Window]:
    """Yield the windows of frames that come in the order of time; arguments, windows and errors as `read_windows`."""
    if window_s <= 0 or stride_s <= 0:
        raise ValueError(f"window ({window_s:g} s) and stride ({stride_s:g} s) must be above 0")
    offsets = (np.arange(num_frames) + 0.5) * window_s / num_frames  # of the wanted times in a window
    opened: deque[_OpenWindow] = deque()
    num_opened, covered, end = 0, 0.0, 0.0
    damage = None
    try:
        for frame in frames:
            end = frame.end
            while num_opened * stride_s < end:
                opened.append(_OpenWindow(num_opened * stride_s))
                num_opened += 1
            crops = functools.cache(lambda frame=frame: transform(frame.pixels()[None])[:, 0])  # once, if at all
            for window in opened:
                while len(window.frames) < num_frames and window.start + offsets[len(window.frames)] < end:
                    window.frames.append(crops())
                window.keep(max(frame.start, window.start), crops, num_frames)
            while opened and len(opened[0].frames) == num_frames:
                done = opened.popleft()
                covered = done.start + window_s
                yield Window(done.start, covered, torch.stack(done.frames, dim=1))  # (V, T, 3, S, S)
    except VideoReadError as error:
        damage = error
    if opened and end > covered:
        yield opened[0].ended(end, num_frames)
    if damage is not None:
        raise damage
