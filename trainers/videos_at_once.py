"""How many videos go through a model at once: a given number, or as many as the memory of the device holds."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, Protocol

import torch

MOST = 64  # a GPU is busy with fewer, and kernels count the elements of 64 videos in 32 bits
SHARE = 0.85  # of the memory, the rest for fragments and for libraries


class Memory(Protocol):
    """What is measured of the memory of a device, in bytes."""

    def start(self) -> None:
        """Begin to measure."""

    def used(self) -> int:
        """Return the most that was in use at a time since `start`, beyond what was in use then."""

    def available(self) -> int:
        """Return what can be allocated now."""


class CudaMemory:
    """The memory of a GPU, from the counts of PyTorch's allocator: reading them does not wait for the GPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._before = 0

    def start(self) -> None:
        """See `Memory.start`."""
        torch.cuda.reset_peak_memory_stats(self.device)
        self._before = torch.cuda.memory_allocated(self.device)

    def used(self) -> int:
        """See `Memory.used`."""
        return torch.cuda.max_memory_allocated(self.device) - self._before

    def available(self) -> int:
        """See `Memory.available`."""
        free, _ = torch.cuda.mem_get_info(self.device)
        return free + torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)


def memory_of(device: torch.device) -> Memory | None:
    """Return the memory of a GPU; None for devices that larger batches do not make faster, as CPUs."""
    return CudaMemory(device) if device.type == "cuda" else None


class VideosAtOnce:
    """The number of videos of the next pass through a model: it grows while more fit, and is halved if they do not.

    Memory grows at most in proportion to the videos, so what a small pass needs says how many fit.

    Args:
        setting: the number, or "auto".
        first: with "auto", the videos of the first pass, and of all passes if there is no memory to measure.
        memory: of the device.
        reserve: returns the bytes that will be needed besides the passes and are not allocated yet.

    Attributes:
        number: videos of the next pass.
    """

    def __init__(
        self,
        setting: int | Literal["auto"],
        first: int,
        memory: Memory | None = None,
        reserve: Callable[[], int] = lambda: 0,
    ) -> None:
        self.number = first if setting == "auto" else setting
        self._memory = memory if setting == "auto" and first < MOST else None
        self._reserve = reserve

    def next_of(self, left: int) -> int:
        """Return the videos (or groups of one video) of the next pass if `left` are left, in passes of equal size."""
        return even_share(left, self.number)

    @contextmanager
    def measured(self, count: int) -> Iterator[None]:
        """Around a pass of `count` videos: learn from it how many fit."""
        memory = self._memory
        if memory is None or count < self.number:
            yield
            return
        memory.start()
        yield
        fit = int((SHARE * memory.available() - self._reserve()) * count / max(1, memory.used()))
        if min(MOST, fit) < 1.1 * self.number:
            self._memory = None  # found
        else:
            self.number = min(MOST, fit)

    def lower(self, count: int) -> bool:
        """Take half of the `count` videos that did not fit from now on; return whether that is possible."""
        self._memory = None
        if count > 1:
            self.number = count // 2
            release_memory()
        return count > 1


def even_share(left: int, most: int) -> int:
    """Return the size of the next part of `left`, of the fewest parts of about equal size that are at most `most`."""
    return -(-left // -(-left // max(1, most)))


def release_memory() -> None:
    """Return the memory that PyTorch keeps for later to the GPU, so that it can be allocated in other pieces."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
