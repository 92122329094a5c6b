"""A camera or a network stream, watched window by window."""

import contextlib
import functools
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch

from tc_clip.protocol import VideoModel
from trainers.calibration import soften
from trainers.device_copies import DeviceCopies
from trainers.evaluator import score_views
from trainers.inference.predict import VideoPrediction, inference_precision
from trainers.inference.reading import transform_of
from trainers.videos_at_once import VideosAtOnce, memory_of
from video_datasets.decoding import VideoReadError
from video_datasets.isolation import isolated
from video_datasets.streams import Stream
from video_datasets.timed_frames import TimedFrame
from video_datasets.windows import Window, windows_of

STEADY_S = 60.0  # a connection that lasted so long makes earlier losses forgotten
_WAITING = 2  # windows
_TURN_S = 0.1

OnFrame = Callable[[np.ndarray, float, float], None]


class StreamLostError(Exception):
    """A stream cannot be opened, or was lost, once more than it is retried; the message is one line."""


@dataclass
class Watch:
    """Follows a stream, and predicts its windows while they come.

    If the model is slower than real time, windows are lost, the oldest first. A source that is read faster than that
    (a file behind an address) waits.

    Attributes:
        model: with its class names, on its device.
        stream: what is watched.
        window_s: length of a window; stride_s: between the starts of two, in seconds.
        retries: how often in a row a lost stream is opened again, after 1, 2, 4, ... seconds, at most 30.
        on_note: called with one line when the stream is lost.
        on_frame: called with the pixels of every frame (H, W, 3), its start and end in seconds since the beginning, in
            another thread; while the reading is more than a window behind, frames are left out.
        num_dropped: windows that were lost.
    """

    model: VideoModel
    stream: Stream
    window_s: float
    stride_s: float
    top: int = 5
    num_crops: int = 1
    precision: str = "auto"
    timeout_s: float = 60.0
    threshold: float = 0.0
    temperature: float | None = None
    retries: int = 5
    on_note: Callable[[str], None] = lambda line: None
    on_frame: OnFrame | None = None
    num_dropped: int = 0
    _found: "queue.Queue[Window | Exception | None]" = field(default_factory=lambda: queue.Queue(_WAITING))
    _stopped: threading.Event = field(default_factory=threading.Event)
    _began: float | None = None  # when the first frame came

    def windows(self) -> Generator[tuple[float, float, VideoPrediction], None, None]:
        """Yield start and end of each window, in seconds since the first frame, and what is in it.

        Raises:
            StreamLostError: after the last retry.
        """
        formats = inference_precision(self.model, self.precision)
        at_once, copies = VideosAtOnce("auto", 1, memory_of(formats.device)), DeviceCopies(formats.device)
        top = min(self.top, len(self.model.class_names))
        self.model.eval()
        reader = threading.Thread(target=self._read, daemon=True, name="stream")
        reader.start()
        try:
            while (item := self._next()) is not None:
                started = time.perf_counter()
                with torch.inference_mode():
                    (scores,) = score_views(self.model, [item.videos[None]], formats, at_once, copies)  # (1, C)
                    scores = scores / self.num_crops
                    scores = scores if self.temperature is None else soften(scores, self.temperature)
                    values, labels = (found[0].tolist() for found in scores.float().topk(top, dim=-1))
                names = tuple(self.model.class_names[label] for label in labels)
                seconds = time.perf_counter() - started
                found = VideoPrediction(self.stream.name, names, tuple(values), seconds, threshold=self.threshold)
                yield item.start, item.end, found
        finally:
            self._stopped.set()
            reader.join(timeout=5.0)

    def _next(self) -> Window | None:
        """Return the next window, or None at the end; waits in short turns, so that Ctrl-C is heard."""
        while True:
            with contextlib.suppress(queue.Empty):
                item = self._found.get(timeout=_TURN_S)
                if isinstance(item, Exception):
                    raise item
                return item

    def _read(self) -> None:
        """Put windows, and the end or an error after them, into the queue (in a thread)."""
        try:
            self._put(self._follow())
        except Exception as error:  # raised again in the thread that takes the windows
            self._put(error)

    def _follow(self) -> Exception | None:
        """Read until the stream ends; return the error if it is lost for good."""
        num_lost = 0
        while not self._stopped.is_set():
            opened = time.monotonic()
            try:
                self._read_once()
                return None
            except VideoReadError as error:
                num_lost = 1 if time.monotonic() - opened > STEADY_S else num_lost + 1
                if num_lost > self.retries:
                    again = f" (tried {num_lost} times)" if num_lost > 1 else ""
                    return StreamLostError(f"{self.stream.name}: {error.reason}{again}")
                wait = min(30.0, 2.0 ** (num_lost - 1))
                self.on_note(f"{self.stream.name}: {error.reason}; retry {num_lost} of {self.retries} in {wait:g} s")
                self._stopped.wait(wait)
        return None

    def _read_once(self) -> None:
        """Read one connection."""
        transform, pace = transform_of(self.model, self.num_crops), _Pace()
        frames = self._frames(pace)
        for window in windows_of(frames, self.window_s, self.stride_s, self.model.num_frames, transform):
            moved = Window(window.start + pace.offset, window.end + pace.offset, window.videos)
            while not self._stopped.is_set():
                with contextlib.suppress(queue.Full):
                    self._found.put(moved, timeout=_TURN_S)
                    break
                if pace.behind() > self.stride_s:
                    with contextlib.suppress(queue.Empty):
                        self._found.get_nowait()
                        self.num_dropped += 1

    def _frames(self, pace: "_Pace") -> Iterator[TimedFrame]:
        """Yield the frames of a new connection."""
        for frame in isolated(timeout_s=self.timeout_s).stream_in_time(self.stream):
            if self._stopped.is_set():
                return
            if pace.opened is None:
                pace.opened = time.monotonic()
                self._began = pace.opened if self._began is None else self._began
                pace.offset = pace.opened - self._began
            pace.end = frame.end
            if self.on_frame is None:
                yield frame
                continue
            pixels = frame.pixels()
            if pace.behind() <= self.window_s:
                self.on_frame(pixels, frame.start + pace.offset, frame.end + pace.offset)
            yield TimedFrame(frame.start, frame.end, functools.partial(np.asarray, pixels))

    def _put(self, item: Exception | None) -> None:
        while not self._stopped.is_set():
            with contextlib.suppress(queue.Full):
                self._found.put(item, timeout=_TURN_S)
                return


@dataclass
class _Pace:
    """How a connection runs: when its first frame came, its time in the whole, and the time of its last frame."""

    opened: float | None = None
    offset: float = 0.0
    end: float = 0.0

    def behind(self) -> float:
        """Return the seconds that the reading is behind the source, if that runs in real time."""
        return 0.0 if self.opened is None else time.monotonic() - self.opened - self.end
