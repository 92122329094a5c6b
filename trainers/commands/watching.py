"""`tc-clip predict --camera` and `--stream`: one line for every window, until Ctrl-C."""

import argparse
import contextlib
import json
import signal
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import numpy as np

from trainers.commands.shared import note
from trainers.errors import ConfigError

if TYPE_CHECKING:
    from tc_clip.protocol import VideoModel
    from trainers.inference.labelled import LabelledVideo
    from trainers.inference.predict import VideoPrediction
    from video_datasets.streams import Stream

WINDOW_S = 2.0


def stream_of(args: argparse.Namespace) -> "Stream | None":
    """Return the camera or the stream that the arguments name, None if they name neither.

    Raises:
        ConfigError: they cannot be one, or are given with something that needs files.
    """
    if args.camera is None and args.stream is None:
        return None
    if args.videos or (args.camera is not None and args.stream is not None):
        raise ConfigError("give videos, or --camera, or --stream; one of them")
    if args.csv or args.views > 1 or args.graphs:
        raise ConfigError("--csv, --views and --graphs are for files; a stream has --json (one line a window)")
    from video_datasets.streams import camera, network_stream

    try:
        return network_stream(args.stream) if args.stream is not None else camera(args.camera)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def watch_stream(model: "VideoModel", stream: "Stream", args: argparse.Namespace, save: Path | None) -> int:
    """Predict a stream window by window until it ends or the user stops it; return the number of windows.

    Raises:
        ConfigError: the stream is lost for good, or a file cannot be written.
    """
    from trainers.inference.live import StreamLostError, Watch
    from trainers.inference.output_files import STANDARD_OUTPUT, opened_for_writing

    window = args.window or WINDOW_S
    num_windows, recording = 0, Recording(save) if save else None
    watch = Watch(
        model,
        stream,
        window,
        args.stride or window / 2,
        top=args.top,
        num_crops=args.crops,
        precision=args.precision,
        timeout_s=args.timeout,
        threshold=args.threshold,
        temperature=args.temperature,
        retries=args.retries,
        on_note=note,
        on_frame=recording.write if recording else None,
    )
    lost: StreamLostError | None = None
    with contextlib.ExitStack() as stack:
        stack.enter_context(_stopped_cleanly())
        lines = stack.enter_context(opened_for_writing(args.json)) if args.json else None
        if recording:
            stack.enter_context(contextlib.closing(recording))
        windows = stack.enter_context(contextlib.closing(watch.windows()))
        try:
            for start, end, found in windows:
                num_windows += 1
                if recording:
                    recording.caption = found
                _show(start, end, found, lines, quiet=args.json == STANDARD_OUTPUT)
        except StreamLostError as error:
            lost = error
    dropped = f"; {watch.num_dropped} were left out, because the model is slower" if watch.num_dropped else ""
    note(f"{num_windows} windows of {stream.name}{dropped}")
    if recording and recording.video:
        note(f"{save}: {recording.video.end:.1f} s")
    if lost is not None:
        raise ConfigError(str(lost))
    return num_windows


class Recording:
    """A labelled video of a stream: `.NAME.*.tmp` until it is closed, and nothing if no frame came."""

    def __init__(self, path: Path):
        self.caption: VideoPrediction | None = None
        self.video: LabelledVideo | None = None
        self._path = path
        self._file = contextlib.ExitStack()
        self._lock = threading.Lock()
        self._is_closed = False

    def write(self, pixels: np.ndarray, start: float, end: float) -> None:
        """Add a frame with the newest prediction; called by the thread that reads.

        Raises:
            ConfigError: it cannot be written.
        """
        from trainers.files import atomic_path
        from trainers.inference.labelled import LabelledVideo

        with self._lock:
            if self._is_closed:
                return
            try:
                if self.video is None:
                    self.video = LabelledVideo(self._file.enter_context(atomic_path(self._path)), in_parts=True)
                self.video.write(pixels, start, end, self.caption)
            except OSError as error:
                raise self._unwritable(error) from error

    def close(self) -> None:
        """Finish the file and give it its name.

        Raises:
            ConfigError: it cannot be written.
        """
        with self._lock:
            self._is_closed = True
            try:
                if self.video is not None:
                    self.video.close()
                self._file.close()
            except OSError as error:
                raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> ConfigError:
        return ConfigError(f"{self._path}: cannot be written: {error.strerror or error}")


def _show(start: float, end: float, found: "VideoPrediction", lines: TextIO | None, quiet: bool) -> None:
    """Print the line of a window, and write its line of JSON."""
    from trainers.inference.output_files import record_of

    if not quiet:
        print(f"{start:7.1f} - {end:7.1f} s  {found.label}  {100 * found.scores[0]:.1f} %", flush=True)
    if lines is not None:
        times = {"start_s": round(start, 3), "end_s": round(end, 3), "time": datetime.now(UTC).isoformat()}
        lines.write(json.dumps({**times, **record_of(found)}, ensure_ascii=False) + "\n")
        lines.flush()


@contextlib.contextmanager
def _stopped_cleanly() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM end the block without an error."""
    before = None
    if threading.current_thread() is threading.main_thread():
        before = signal.signal(signal.SIGTERM, _stop)
    try:
        with contextlib.suppress(KeyboardInterrupt):
            yield
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def _stop(number: int, frame: object) -> None:
    raise KeyboardInterrupt
