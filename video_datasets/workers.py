"""Worker processes that read videos. One that dies costs its video; one that hangs is an error that names it."""

import contextlib
import itertools
import logging
import multiprocessing
import os
import signal
import time
from collections import Counter, deque
from collections.abc import Generator, Iterable, Iterator
from functools import partial
from multiprocessing.util import Finalize
from typing import Protocol, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from video_datasets import crashes
from video_datasets.batches import VideoBatch, collate
from video_datasets.child_processes import settle_worker, start_fork_server
from video_datasets.decoders import packages_for
from video_datasets.video_dataset import ItemKey, VideoDataset, VideoItem
from video_datasets.video_files import VideoFilesError

logger = logging.getLogger(__name__)

_MAX_UNEXPLAINED = 3  # deaths in a row without a video that no video explains

# How often a wait for a video checks the workers and the time limit.
_POLL_S = 2.0
_PRELOAD = ["torch", "torchvision.transforms.v2.functional", "video_datasets.workers"]


class VideoTimeoutError(RuntimeError):
    """No video arrived in time; the message names the video that each busy worker is reading."""


class VideoWorkerError(RuntimeError):
    """Worker processes die again and again; the message names what they were reading."""


class _WorkerDied(Exception):  # noqa: N818
    """Workers died; `args` are their process ids."""


class BatchReader:
    """Reads batches of a data set in order, their videos one by one in worker processes.

    Args:
        dataset: the data set to read.
        num_workers: number of processes. 0 reads in this process, where a hang cannot be detected.
        pin_memory: yield batches in pinned memory.
        timeout_s: seconds without a video after which a hang is assumed.
        start_method: `forkserver` forks workers from a clean process that has imported torch once (about 3 s): safe
            with CUDA, NCCL and threads in this process, and fast from the second worker on. `spawn` imports torch in
            every worker; `fork` is instant, and may deadlock on a lock that another thread holds.
        prefetch_videos: videos that every worker reads ahead.
        keep_workers: keep the workers for the next `read`; otherwise they end with it.
    """

    def __init__(
        self,
        dataset: VideoDataset,
        num_workers: int,
        pin_memory: bool = False,
        timeout_s: float = 300,
        start_method: str | None = "forkserver",
        prefetch_videos: int = 8,
        keep_workers: bool = True,
    ):
        if num_workers < 0:
            raise ValueError(f"num_workers must be 0 or more, found {num_workers}")
        if timeout_s <= 0:
            raise ValueError(f"timeout_s must be more than 0, found {timeout_s}")
        known = multiprocessing.get_all_start_methods()
        if start_method not in known:
            if start_method != "forkserver":
                raise ValueError(f"start_method {start_method!r} is not one of {', '.join(known)}")
            start_method = "spawn"  # Windows
        self._dataset = dataset
        self._num_workers = num_workers
        self._pin_memory = pin_memory
        self._timeout_s = timeout_s
        self._start_method = start_method
        self._prefetch_videos = prefetch_videos
        self._keep_workers = keep_workers
        self._loader: DataLoader[VideoItem | Exception] | None = None
        self._iterator: _LoaderIterator | None = None
        self._keys = _Keys()
        self._deaths: Counter[int] = Counter()  # by index of the video
        self._unexplained = 0
        # Of each worker: index of the video that it reads or -1, time.monotonic_ns() of the start, pid.
        self._slots = torch.full((num_workers, 3), -1, dtype=torch.int64)

    def read(self, batches: Iterable[list[ItemKey]]) -> Generator[VideoBatch]:
        """Start to read, and return an iterator over the batch of every list of keys, in order. One read at a time.

        If a worker dies, its video is recorded in the data set's `crashed`, and new workers read the videos that have
        not arrived: what an item is does not depend on the process that reads it.

        Raises:
            VideoTimeoutError, VideoWorkerError: see there.
            VideoFilesError: two files have the name of a listed video.
        """
        if self._num_workers == 0:
            return (collate([self._dataset.load(key) for key in keys], self._pin_memory) for keys in batches)
        batches, to_read = itertools.tee(batches)
        self._keys.begin(itertools.chain.from_iterable(to_read))
        return self._receive(batches, self._start())

    def close(self) -> None:
        """End the workers."""
        if self._iterator is not None:
            # The loader has no public method for this. If left to the garbage collector, it may happen after the queues
            # to the workers are gone, and then waits 5 s for each worker.
            self._iterator._shutdown_workers()
            self._end_workers()
        self._loader = self._iterator = None

    def _receive(
        self, batches: Iterable[list[ItemKey]], iterator: Iterator[VideoItem | Exception]
    ) -> Generator[VideoBatch]:
        """Yield the batches whose videos come from the loader."""
        finished = False
        try:
            for keys in batches:
                items: list[VideoItem] = []
                while len(items) < len(keys):
                    try:
                        item = self._next(iterator)
                    except _WorkerDied as death:
                        self._replace_workers(set(death.args))
                        iterator = self._start()
                        continue
                    self._keys.received()
                    self._unexplained = 0
                    if isinstance(item, Exception):
                        raise item
                    items.append(item)
                yield collate(items, self._pin_memory)
            finished = True
        finally:
            # Workers of an unfinished read are busy with its batches; starting new ones is faster than waiting.
            if not (finished and self._keep_workers):
                self.close()

    def _start(self) -> Iterator[VideoItem | Exception]:
        if self._loader is not None:
            try:
                return iter(self._loader)  # the one iterator of kept workers, reset
            except RuntimeError:  # kept workers that have died or do not respond: start new ones
                self.close()
        context = multiprocessing.get_context(self._start_method)
        if self._start_method == "forkserver":
            context.set_forkserver_preload([*_PRELOAD, *packages_for(self._dataset.decoder)])
            start_fork_server()
        self._slots = torch.full((self._num_workers, 3), -1, dtype=torch.int64).share_memory_()
        self._loader = DataLoader(
            _WatchedDataset(self._dataset, self._slots),
            batch_size=None,  # a video at a time
            sampler=self._keys,
            num_workers=self._num_workers,
            pin_memory=self._pin_memory,  # a thread receives the videos; `collate` pins them
            timeout=min(_POLL_S, self._timeout_s),
            prefetch_factor=self._prefetch_videos,
            persistent_workers=self._keep_workers,
            multiprocessing_context=context,
            worker_init_fn=partial(settle_worker, self._start_method == "forkserver"),
            generator=torch.Generator(),  # unused; without it the loader would draw from the global generator
        )
        self._iterator = iterator = cast(_LoaderIterator, iter(self._loader))
        # Before multiprocessing waits for them at the end of this process.
        self._end_workers = Finalize(self, _kill, args=(iterator._workers,), exitpriority=10)
        return iterator

    def _next(self, iterator: Iterator[VideoItem | Exception]) -> VideoItem | Exception:
        started = time.monotonic()
        while True:
            try:
                return next(iterator)
            except (RuntimeError, OSError, EOFError) as error:
                # The loader's own limit is one poll; after it, the same iterator can wait for the same video again.
                timed_out = str(error).startswith("DataLoader timed out")
                # A death shows in many ways: as the loader's error, or when a video of the dead worker is opened.
                if dead := self._dead_workers(wait_s=0.0 if timed_out else 1.0):
                    raise _WorkerDied(*dead) from error
                if not timed_out:
                    raise
            if time.monotonic() - started >= self._timeout_s:
                message = f"no video came for {self._timeout_s:g} s (data.timeout_s): {self._describe(None)}"
                self._kill_busy_workers()
                raise VideoTimeoutError(message)

    def _dead_workers(self, wait_s: float) -> list[int]:
        """Return the process ids of workers that have ended; a death is known a moment after its effects."""
        assert self._iterator is not None
        deadline = time.monotonic() + wait_s
        while True:
            dead = [process.pid for process in self._iterator._workers if not process.is_alive() and process.pid]
            if dead or time.monotonic() >= deadline:
                return dead
            time.sleep(0.05)

    def _replace_workers(self, pids: set[int]) -> None:
        """Record the videos that dead workers were reading, and end the others, which may wait for a lock of theirs.

        Raises:
            VideoWorkerError: the deaths go on, and no video explains them.
        """
        assert self._iterator is not None
        doing = self._describe(pids)
        codes = {process.pid: process.exitcode for process in self._iterator._workers}
        if self._start_method == "forkserver":  # of direct children, PyTorch takes the death for a failure
            _kill(self._iterator._workers)
        explained = False
        for index, _, pid in self._slots.tolist():
            if pid not in pids or index < 0:
                continue
            self._deaths[index] += 1
            code = codes.get(pid)
            # Other deaths are the video's fault only if they happen on it twice.
            if code is None or -code in crashes.SIGNALS or self._deaths[index] > 1:
                self._dataset.crashed.add(self._dataset.location(index), _cause(code))
                explained = True
        self.close()
        self._unexplained = 0 if explained else self._unexplained + 1
        cause = ", ".join(sorted({_cause(codes.get(pid)) for pid in pids}))
        if self._unexplained >= _MAX_UNEXPLAINED:
            raise VideoWorkerError(
                f"data workers died {self._unexplained} times in a row ({cause}), the last: {doing}; look for too "
                "little memory or shared memory"
            )
        what = "that video is left out" if explained else "all is read again"
        logger.warning("a data worker died (%s): %s; %s, by new workers", cause, doing, what)

    def _kill_busy_workers(self) -> None:
        """Kill workers that hang; ending the others would wait 5 s for each of them."""
        if self._start_method != "forkserver":
            return  # PyTorch's signal handler treats the death of direct children as a failure
        for index, _, pid in self._slots.tolist():
            if index >= 0:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def _describe(self, pids: set[int] | None) -> str:
        """Describe what the workers of the given processes, or all busy workers, are reading."""
        now = time.monotonic_ns()
        lines = []
        for worker, (index, since, pid) in enumerate(self._slots.tolist()):
            if pid in pids if pids is not None else index >= 0:
                doing = "was between two videos"
                if index >= 0:
                    doing = f"is reading {self._dataset.path(index)!r} for {(now - since) / 1e9:.0f} s"
                lines.append(f"worker {worker} (pid {pid}) {doing}")
        if not lines:
            return "no worker is reading a video" if pids is None else "it had read no video yet"
        return "; ".join(lines)


class _LoaderIterator(Protocol):
    """What is used of the iterator of a DataLoader with workers; its processes are not public."""

    _workers: list[multiprocessing.Process]

    def __iter__(self) -> Iterator[VideoItem | Exception]: ...

    def __next__(self) -> VideoItem | Exception: ...

    def _shutdown_workers(self) -> None: ...


class _Keys(Sampler[ItemKey]):
    """The items of the current read. Stays in the main process, so kept workers need not know of epochs.

    Iterating again gives first those that were given and not received.
    """

    def __init__(self) -> None:
        self.begin(())

    def begin(self, keys: Iterable[ItemKey]) -> None:
        self._rest = iter(keys)
        self._pending: deque[ItemKey] = deque()

    def received(self) -> None:
        """Note that the first of the given items has come."""
        self._pending.popleft()

    def __iter__(self) -> Iterator[ItemKey]:
        yield from list(self._pending)
        for key in self._rest:
            self._pending.append(key)
            yield key


class _WatchedDataset(Dataset["VideoItem | Exception"]):
    """A data set that records in shared memory what each worker reads: a row with the video, the start, and the pid."""

    def __init__(self, dataset: VideoDataset, slots: Tensor):
        self._dataset = dataset
        self._slots = slots  # (num_workers, 3): index or -1, time.monotonic_ns(), pid

    def __getitem__(self, key: ItemKey) -> VideoItem | Exception:
        worker = get_worker_info()
        assert worker is not None, "runs in a worker"
        slot = self._slots[worker.id].numpy()

        def note_reading(index: int) -> None:
            slot[:] = index, time.monotonic_ns(), os.getpid()

        try:
            return self._dataset.load(key, note_reading)
        except VideoFilesError as error:
            return error  # raised here, the loader would turn it into a traceback in a traceback
        finally:
            slot[0] = -1


def _kill(processes: list[multiprocessing.Process]) -> None:
    """Kill the workers that are still running; they ignore other signals."""
    for process in processes:
        if process.is_alive():
            process.kill()


def _cause(code: int | None) -> str:
    """Describe an exit status as `multiprocessing` gives it."""
    if code is None:
        return "killed"
    return signal.Signals(-code).name if -code in set(signal.Signals) else f"exit status {code}"
