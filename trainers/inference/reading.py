"""Video files to batches: files from anywhere, and an error for one bad file does not stop the others."""

import queue
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from tc_clip.config import PixelStatistics
from tc_clip.protocol import ReadsVideos
from trainers.errors import ConfigError
from video_datasets.annotations import VideoRecord
from video_datasets.batches import VideoBatch
from video_datasets.isolation import Limits, isolated, isolates
from video_datasets.loaders import EvalLoader
from video_datasets.sampling import test_indices
from video_datasets.segments import source_of
from video_datasets.transforms import TestTransform, normalize
from video_datasets.video_dataset import BadVideo, VideoDataset
from video_datasets.video_files import FoundSource, VideoFiles
from video_datasets.workers import VideoTimeoutError, VideoWorkerError

PREFETCH_BATCHES = 2  # of each worker

T = TypeVar("T")


@dataclass(frozen=True)
class FileReader:
    """Reads video files in batches, and continues after a file that hangs or crashes its worker.

    Attributes:
        transform: frames to crops.
        num_frames: frames of a view.
        num_clips: temporal views of a video.
        decoder: auto, pyav, decord or torchcodec.
        batch_size: videos of a batch.
        timeout_s: seconds without a video after which a hang is assumed.
        pin_memory: whether batches are in pinned memory.
        files: finds the listed videos; None: their paths are those of files.
    """

    transform: TestTransform
    num_frames: int
    num_clips: int
    decoder: str
    batch_size: int
    timeout_s: float
    pin_memory: bool
    files: VideoFiles | None = None

    def read(self, paths: list[str], num_workers: int) -> Iterator[tuple[VideoBatch, dict[int, str]]]:
        """Yield batches whose `indices` count in `paths`, and the reason for each invalid video by index.

        Args:
            num_workers: processes that read; 0: a thread of this process, with a process that only decodes.
        """
        position = 0
        while position < len(paths):
            first = position
            try:
                for batch in self._batches(paths[first:], num_workers, self.batch_size):
                    yield _shifted(batch, first)
                    position += len(batch)
            except (VideoTimeoutError, VideoWorkerError):
                # Any of the videos in flight can be the cause: read each of them alone.
                num_in_flight = self.batch_size * max(1, num_workers) * (PREFETCH_BATCHES + 1)
                stop = min(len(paths), position + num_in_flight)
                for index in range(position, stop):
                    yield self._read_alone(paths[index], index, min(1, num_workers))
                position = stop

    def _read_alone(self, path: str, index: int, num_workers: int) -> tuple[VideoBatch, dict[int, str]]:
        try:
            (batch,) = self._batches([path], num_workers, 1)
        except VideoTimeoutError:
            batch = self._invalid(BadVideo(0, path, f"no frame came of it for {self.timeout_s:g} s"))
        except VideoWorkerError:
            batch = self._invalid(BadVideo(0, path, "the decoder crashed on it"))
        return _shifted(batch, index)

    def _batches(self, paths: list[str], num_workers: int, batch_size: int) -> Iterator[VideoBatch]:
        dataset = VideoDataset(
            [VideoRecord(path, 0) for path in paths],
            _GivenFiles() if self.files is None else self.files,
            self.transform,
            num_frames=self.num_frames,
            num_clips=self.num_clips,
            decoder=self.decoder,
            isolation=None if num_workers or not isolates() else Limits(None, self.timeout_s, timeout_key=""),
        )
        loader = EvalLoader(
            dataset,
            batch_size,
            num_workers,
            pin_memory=self.pin_memory,
            timeout_s=self.timeout_s,
            max_bad_share=1.0,
            prefetch_batches=PREFETCH_BATCHES,
        )
        if num_workers:
            return iter(loader)
        limit = self.timeout_s * batch_size  # a batch arrives when all its videos are read
        return in_background(loader, limit, f"no video came for {limit:g} s")

    def _invalid(self, bad: BadVideo) -> VideoBatch:
        """Return a batch of one video that could not be read: zeros."""
        size, num_views = self.transform.input_size, self.num_clips * self.transform.num_crops
        videos = torch.zeros(1, num_views, self.num_frames, 3, size, size, dtype=torch.uint8)  # (1, V, T, 3, S, S)
        zero = torch.zeros(1, dtype=torch.long)
        return VideoBatch(videos, zero, zero, torch.zeros(1, dtype=torch.bool), 0, [bad])


def framing_of(model: ReadsVideos) -> str:
    """Return how frames became squares in a model's training."""
    return str(model.info().get("options", {}).get("framing", "crop"))


def transform_of(model: ReadsVideos, num_crops: int = 1) -> TestTransform:
    """Return how a model reads frames: its size, and the framing that it was trained with.

    Raises:
        ConfigError: if it reads whole frames, of which there are no 3 crops.
    """
    try:
        return TestTransform(model.input_size, num_crops, framing_of(model))
    except ValueError as error:
        raise ConfigError(str(error)) from error


def read_views(model: ReadsVideos, paths: Sequence[str]) -> Tensor:
    """Return one view of each video, uint8 (n, T, 3, S, S), as the model reads them.

    Raises:
        VideoReadError: if a video cannot be read.
    """
    transform = transform_of(model)
    return torch.cat(
        [transform(isolated()(source_of(path), lambda n: test_indices(n, model.num_frames)[0])) for path in paths]
    )


@dataclass(frozen=True)
class VideoTransform:
    """Turns a video file into a model's input: one view, float32, normalised, (1, T, 3, S, S).

    Attributes:
        num_frames: frames of the view (T).
        input_size: side of the frames, in pixels (S).
        pixels: statistics that normalise the input.
        framing: how frames become squares.
    """

    num_frames: int
    input_size: int
    pixels: PixelStatistics
    framing: str = "crop"

    def __call__(self, path: str | Path) -> Tensor:
        """Read a video.

        Raises:
            VideoReadError: if it cannot be read.
        """
        frames = isolated()(source_of(str(path)), lambda n: test_indices(n, self.num_frames)[0])  # (T, H, W, 3)
        return normalize(TestTransform(self.input_size, framing=self.framing)(frames), torch.float32, *self.pixels)


def in_background(items: Iterable[T], timeout_s: float, message: str) -> Iterator[T]:
    """Iterate in another thread, two items ahead, and raise an error if no item comes for `timeout_s`.

    Decoders release Python's lock while they work, so a thread is enough to decode while the model computes. A thread
    that hangs cannot be ended; it is a daemon and does not keep the program alive.

    Raises:
        VideoTimeoutError: with `message`.
        Exception: any error of the iterable.
    """
    done: queue.Queue[tuple[T] | Exception | None] = queue.Queue(maxsize=2)  # an item, an error, or the end
    stopped = threading.Event()

    def put(value: tuple[T] | Exception | None) -> bool:
        while not stopped.is_set():
            try:
                done.put(value, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in items:
                if not put((item,)):
                    return
            put(None)
        except Exception as error:  # raised again in the thread that uses the items
            put(error)

    threading.Thread(target=work, daemon=True, name="decoding").start()
    try:
        while True:
            try:
                value = done.get(timeout=timeout_s)
            except queue.Empty:
                raise VideoTimeoutError(message) from None
            if value is None:
                return
            if isinstance(value, Exception):
                raise value
            yield value[0]
    finally:
        stopped.set()


class _GivenFiles(VideoFiles):
    """Videos in any folder, by the paths that the user gave."""

    def __init__(self) -> None:
        super().__init__("")

    def find(self, listed: str) -> FoundSource:
        return source_of(listed)

    def prepare(self, listed: Iterable[str]) -> None:
        """Do nothing: there is no root to search."""

    def _exists(self, path: str) -> bool:
        return Path(path).is_file()

    def _source(self, path: str) -> str:
        return path

    def _paths(self) -> Iterator[str]:
        return iter(())


def _shifted(batch: VideoBatch, by: int) -> tuple[VideoBatch, dict[int, str]]:
    batch.indices = batch.indices + by
    return batch, {bad.index + by: bad.reason for bad in batch.bad_videos}
