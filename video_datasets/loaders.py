"""Batches for training and evaluation, distributed over ranks.

A training epoch is one global sequence of micro-batches, a function of (seed, epoch, batch size) only; ranks take
them in turn. In an evaluation exactly one rank reads each video, once.
"""

import logging
import os
from collections.abc import Generator, Iterator
from itertools import chain

import numpy as np

from video_datasets.batches import VideoBatch
from video_datasets.machine import free_file_handles, free_shared_memory
from video_datasets.randomness import order_rng
from video_datasets.video_dataset import BadVideo, ItemKey, VideoDataset
from video_datasets.workers import BatchReader, VideoWorkerError

logger = logging.getLogger(__name__)

_MIN_AHEAD = 8  # videos that a worker may read ahead, if its batches have that many


class BadVideoError(RuntimeError):
    """More listed videos are unreadable than `max_bad_share` allows."""


def micro_batches(
    num_videos: int, batch_size: int, seed: int, epoch: int, labels: np.ndarray | None = None
) -> list[np.ndarray]:
    """Return an epoch's micro-batches as int64 indices; the last one may be smaller.

    Args:
        labels: classes of the videos, for an epoch with equally many videos of each class (`balanced_order`); None:
            every video once.
    """
    rng = order_rng(seed, epoch)
    order = rng.permutation(num_videos) if labels is None else balanced_order(labels, rng)
    return [order[start : start + batch_size] for start in range(0, num_videos, batch_size)]


def balanced_order(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return as many indices as there are labels, of each class equally many, up to one.

    The videos of a class are drawn without replacement, and again from the start when all have been drawn. Which
    classes have one more is drawn too.
    """
    classes = rng.permutation(np.unique(labels))
    order = []
    for number, label in enumerate(classes):
        count = len(labels) // len(classes) + (number < len(labels) % len(classes))
        videos = np.flatnonzero(labels == label)
        rounds = [rng.permutation(videos) for _ in range(-(-count // len(videos)))]
        order += [np.concatenate(rounds)[:count]] if rounds else []
    return rng.permutation(np.concatenate(order))


class TrainLoader:
    """Micro-batches of an epoch, for one rank. Workers are kept from epoch to epoch.

    Args:
        dataset: a training data set.
        batch_size: videos per micro-batch.
        seed: seed of the order and of everything drawn for a video.
        num_workers, pin_memory, timeout_s, start_method: see `BatchReader`.
        prefetch_batches: batches whose videos are read ahead, at least, and at most by each worker.
        rank, world_size: index of this process, and number of processes.
        max_bad_share: largest share of the list that this rank may find unreadable.
        num_epochs: the epochs that follow one another. While the last batches of one are used, the first of the next
            are read. 0: each epoch alone.
        balanced: equally many videos of each class in an epoch, instead of every video once.
    """

    def __init__(
        self,
        dataset: VideoDataset,
        batch_size: int,
        seed: int,
        num_workers: int,
        rank: int = 0,
        world_size: int = 1,
        pin_memory: bool = False,
        timeout_s: float = 300,
        max_bad_share: float = 0.01,
        start_method: str = "forkserver",
        prefetch_batches: int = 2,
        num_epochs: int = 0,
        balanced: bool = False,
    ):
        _check(batch_size, rank, world_size)
        if not dataset.training:
            raise ValueError("TrainLoader needs a data set with a TrainTransform")
        self.dataset = dataset
        self.batch_size = batch_size
        self._seed = seed
        self._rank, self._world_size = rank, world_size
        ahead, self.shared_bytes = _checked_ahead(dataset, batch_size, num_workers, prefetch_batches)
        self._reader = BatchReader(dataset, num_workers, pin_memory, timeout_s, start_method, ahead)
        self._bad = _BadVideos(len(dataset), max_bad_share)
        self._num_epochs = num_epochs
        self._labels = np.array([dataset.label(index) for index in range(len(dataset))]) if balanced else None
        self._reading: Generator[VideoBatch] | None = None  # what `epoch` yields if called with `_next`
        self._next: tuple[int, int, int | None] | None = None

    @property
    def num_micro_batches(self) -> int:
        """Micro-batches per epoch, over all ranks."""
        return -(-len(self.dataset) // self.batch_size)

    @property
    def bad_videos(self) -> dict[int, BadVideo]:
        """The distinct unreadable videos that this rank has found, by index."""
        return self._bad.found

    def epoch(self, epoch: int, start: int = 0, stop: int | None = None) -> Iterator[VideoBatch]:
        """Yield this rank's micro-batches: each number `start <= m < stop` with `m % world_size == rank`, in order.

        Args:
            stop: None: all micro-batches of the epoch.

        Raises:
            BadVideoError, VideoTimeoutError, VideoWorkerError, VideoFilesError: one line each.
        """
        if self._reading is None or self._next != (epoch, start, stop):
            self._stop_reading()
            epochs = [(epoch, start), *((later, 0) for later in range(epoch + 1, self._num_epochs))]
            self._reading = self._reader.read(chain.from_iterable(self._keys(*begin, stop) for begin in epochs))
        self._next = None
        left = len(self._numbers(start, stop))
        try:
            while left:
                batch = next(self._reading)
                self._bad.add(batch)
                if not batch.valid.all():
                    raise BadVideoError(f"no replacement could be read either: {self._bad.describe()}")
                left -= 1
                if not left and epoch + 1 < self._num_epochs:
                    self._next = (epoch + 1, 0, stop)
                elif not left:
                    next(self._reading, None)  # ends it, and keeps the workers
                yield batch
        finally:
            if left:
                self._stop_reading()

    def close(self) -> None:
        """End the workers."""
        self._stop_reading()
        self._reader.close()

    def _numbers(self, start: int, stop: int | None) -> range:
        """Return the numbers of this rank's micro-batches."""
        first = start + (self._rank - start) % self._world_size
        return range(first, len(range(self.num_micro_batches)[:stop]), self._world_size)

    def _keys(self, epoch: int, start: int, stop: int | None) -> Iterator[list[ItemKey]]:
        batches = micro_batches(len(self.dataset), self.batch_size, self._seed, epoch, self._labels)
        for number in self._numbers(start, stop):
            yield [ItemKey(int(index), self._seed, epoch, number, i) for i, index in enumerate(batches[number])]

    def _stop_reading(self) -> None:
        if self._reading is not None:
            self._reading.close()
            self._reading = self._next = None


class EvalLoader:
    """Every video exactly once over the ranks (`rank::world_size`), in order, without padding.

    An unreadable video stays in with `valid=False`, so that it counts as listed; more of them than `max_bad_share` of
    the list are an error (one is always tolerated). Arguments as for `TrainLoader`; `seed` only matters for random test
    views. Workers live for one iteration, unless `keep_workers`. `shared_bytes` is what other loaders of this process
    have in shared memory at the same time (`TrainLoader.shared_bytes`).
    """

    def __init__(
        self,
        dataset: VideoDataset,
        batch_size: int,
        num_workers: int,
        rank: int = 0,
        world_size: int = 1,
        pin_memory: bool = False,
        timeout_s: float = 300,
        max_bad_share: float = 0.01,
        seed: int = 0,
        start_method: str = "forkserver",
        prefetch_batches: int = 2,
        keep_workers: bool = False,
        shared_bytes: int = 0,
    ):
        _check(batch_size, rank, world_size)
        if dataset.training:
            raise ValueError("EvalLoader needs a data set with a TestTransform")
        self.dataset = dataset
        self.batch_size = batch_size
        self._seed = seed
        self._indices = range(rank, len(dataset), world_size)
        largest = min(batch_size, max(1, len(self._indices)))
        ahead, _ = _checked_ahead(dataset, largest, num_workers, prefetch_batches, shared_bytes)
        self._reader = BatchReader(dataset, num_workers, pin_memory, timeout_s, start_method, ahead, keep_workers)
        self._bad = _BadVideos(len(dataset), max_bad_share, num_tolerated=1)
        self._reading: Generator[VideoBatch] | None = None  # what the next iteration yields

    def __len__(self) -> int:
        """Return this rank's number of batches."""
        return -(-len(self._indices) // self.batch_size)

    @property
    def num_videos(self) -> int:
        """This rank's number of videos."""
        return len(self._indices)

    @property
    def bad_videos(self) -> dict[int, BadVideo]:
        """The distinct unreadable videos that this rank has found, by index."""
        return self._bad.found

    def read_ahead(self) -> None:
        """Let the workers read the first videos of the next iteration now. Nothing is read without workers."""
        if self._reading is None:
            self._reading = self._reader.read(self._keys())

    def __iter__(self) -> Iterator[VideoBatch]:
        self.read_ahead()
        reading, self._reading = self._reading, None
        assert reading is not None
        for batch in reading:
            self._bad.add(batch)
            yield batch

    def close(self) -> None:
        """End the workers."""
        self._reading = None
        self._reader.close()

    def _keys(self) -> Iterator[list[ItemKey]]:
        return (
            [
                ItemKey(index, self._seed, micro_batch=number, position=i)
                for i, index in enumerate(self._indices[number * self.batch_size : (number + 1) * self.batch_size])
            ]
            for number in range(len(self))
        )


class _BadVideos:
    """The distinct unreadable videos of a list: each is logged once; more than a share of the list are an error."""

    def __init__(self, num_listed: int, max_share: float, num_tolerated: int = 0):
        if not 0 <= max_share <= 1:
            raise ValueError(f"max_bad_share must be in [0, 1], found {max_share}")
        self.found: dict[int, BadVideo] = {}
        self._num_listed = num_listed
        self._max_share = max_share
        self._max_number = max(num_tolerated, max_share * num_listed)

    def add(self, batch: VideoBatch) -> None:
        for bad in batch.bad_videos:
            if bad.index not in self.found:
                self.found[bad.index] = bad
                logger.warning("cannot read video %s: %s", bad.path, bad.reason)
        if len(self.found) > self._max_number:
            raise BadVideoError(
                f"{self.describe()} (more than data.max_bad_share={self._max_share:g} "
                "allows: repair them, remove them from the list, or raise it)"
            )

    def describe(self) -> str:
        share = len(self.found) / self._num_listed
        first = "; ".join(f"{bad.path}: {bad.reason}" for bad in list(self.found.values())[:3])
        more = f"; and {len(self.found) - 3} more" if len(self.found) > 3 else ""
        return f"{len(self.found)} of {self._num_listed} listed videos ({share:.1%}) cannot be read: {first}{more}"


def _checked_ahead(
    dataset: VideoDataset, batch_size: int, num_workers: int, prefetch_batches: int, beside: int = 0
) -> tuple[int, int]:
    """Return how many videos every worker reads ahead, and the bytes of shared memory that all of them fill.

    Enough for `prefetch_batches` batches in all, and for a worker's part of them while others read a long video.

    Args:
        beside: bytes that other loaders fill at the same time.

    Raises:
        VideoWorkerError: too few open files or too little shared memory for the videos on their way.
    """
    if not num_workers:
        return 1, 0
    batches = prefetch_batches * batch_size
    ahead = min(batches, max(_MIN_AHEAD, -(-batches // num_workers)))
    in_flight = num_workers * ahead + batch_size
    _check_file_handles(num_workers, in_flight)
    needed = in_flight * dataset.num_views * dataset.num_frames * 3 * dataset.transform.input_size**2
    _check_shared_memory(needed + beside, num_workers)
    return ahead, needed


def _check_file_handles(num_workers: int, in_flight: int) -> None:
    """Raise VideoWorkerError if this process cannot open the files that connect it to its workers and their videos.

    Measured: 5 for each worker, and one for each video that has arrived.
    """
    left = free_file_handles()
    needed = num_workers * 8 + 2 * in_flight
    if left is not None and needed > left:
        raise VideoWorkerError(
            f"{num_workers} workers need up to {needed} open files, this process may open {max(left, 0)} more: raise "
            "the limit (ulimit -n 4096; docker run --ulimit nofile=4096), or lower num_workers"
        )


def _check_shared_memory(needed: int, num_workers: int) -> None:
    """Raise VideoWorkerError if the videos that wait for this process, so many bytes, do not fit into shared memory.

    A worker that cannot write a video there says nothing, and the video would never come.
    """
    free = free_shared_memory()
    num_processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # torchrun's: processes on this machine
    needed *= num_processes
    if free is not None and needed > free:
        workers = f"{num_workers} workers" + (f" of each of {num_processes} processes" if num_processes > 1 else "")
        raise VideoWorkerError(
            f"{workers} need {needed / 1e6:.0f} MB of shared memory for their videos, /dev/shm has "
            f"{free / 1e6:.0f} MB free: enlarge it (docker run --shm-size=8g), or lower num_workers, batch_size or "
            "test_batch_size"
        )


def _check(batch_size: int, rank: int, world_size: int) -> None:
    if batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more, found {batch_size}")
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} must be in [0, world_size={world_size})")
