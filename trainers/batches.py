"""Arithmetic of batches: the micro-batches of an update, and its number of videos. Pure functions of sizes."""

from dataclasses import dataclass

from trainers.errors import ConfigError


@dataclass(frozen=True)
class Update:
    """An update of the weights: micro-batches `[first, last)` of its epoch, `num_videos` videos in all."""

    number: int
    first: int
    last: int
    num_videos: int


@dataclass(frozen=True)
class BatchPlan:
    """Sizes of an epoch: equal on all ranks, and independent of the number of ranks.

    Args:
        num_videos: videos of the training list.
        batch_size: videos of a micro-batch.
        total_batch_size: videos of an update, a multiple of `batch_size`.
        drop_partial: leave out an epoch's last update if it is smaller. A list too small for one update keeps it.

    Raises:
        ConfigError: if the sizes do not fit.
    """

    num_videos: int
    batch_size: int
    total_batch_size: int
    drop_partial: bool = False

    def __post_init__(self) -> None:
        if self.total_batch_size % self.batch_size:
            below = self.total_batch_size // self.batch_size * self.batch_size
            near = " or ".join(str(size) for size in (below, below + self.batch_size) if size)
            raise ConfigError(
                f"total_batch_size={self.total_batch_size} is not a multiple of batch_size={self.batch_size}; "
                f"use {near}, or another batch_size"
            )
        if self.num_videos < 1:
            raise ConfigError("the training list is empty")

    @property
    def accumulation(self) -> int:
        """Micro-batches of a full update, over all ranks."""
        return self.total_batch_size // self.batch_size

    @property
    def num_used_videos(self) -> int:
        """Videos of an epoch that updates use; which ones are left out changes from epoch to epoch."""
        full = self.num_videos // self.total_batch_size * self.total_batch_size
        return full if self.drop_partial and full else self.num_videos

    @property
    def num_micro_batches(self) -> int:
        """Micro-batches of an epoch, over all ranks; the last may be smaller."""
        return -(-self.num_used_videos // self.batch_size)

    @property
    def num_scheduled_micro_batches(self) -> int:
        """Length of an epoch on the schedule. As published, full micro-batches of a dropped update count."""
        return max(self.num_micro_batches, self.num_videos // self.batch_size)

    @property
    def num_updates(self) -> int:
        """Updates of an epoch; the last may be smaller."""
        return -(-self.num_micro_batches // self.accumulation)

    def update(self, number: int) -> Update:
        """Return an epoch's update by number, from 0."""
        first = number * self.accumulation
        last = min(first + self.accumulation, self.num_micro_batches)
        num_videos = min(last * self.batch_size, self.num_used_videos) - first * self.batch_size
        return Update(number, first, last, num_videos)

    def updates(self, first_micro_batch: int = 0) -> list[Update]:
        """Return an epoch's updates from the one that starts at a micro-batch."""
        if first_micro_batch % self.accumulation:
            raise ValueError(f"micro-batch {first_micro_batch} is not the first of an update of {self.accumulation}")
        return [self.update(number) for number in range(first_micro_batch // self.accumulation, self.num_updates)]
