"""Checkpoints written by a thread while training continues."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from trainers.errors import CheckpointError


class CheckpointWriter:
    """Writes one checkpoint after the other in a thread.

    Not `torch.distributed.checkpoint.async_save`: it writes a folder of shards by all ranks, where one rank has
    everything, and knows neither the older checkpoints nor the checksum.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[None] | None = None

    @property
    def is_pending(self) -> bool:
        """Whether `finish` has something to report."""
        return self._writing is not None

    @property
    def is_done(self) -> bool:
        """Whether the last checkpoint has been written, or has failed."""
        return self._writing is None or self._writing.done()

    def start(self, write: Callable[[], None]) -> None:
        """Start to write a checkpoint, whose tensors must not change any more. Call `finish` before.

        Args:
            write: raises CheckpointError if it cannot.
        """
        self._writing = self._thread.submit(write)

    def finish(self) -> str | None:
        """Wait for the last checkpoint; return why it could not be written, once."""
        writing, self._writing = self._writing, None
        try:
            if writing is not None:
                writing.result()
        except CheckpointError as error:
            return str(error)
        return None

    def close(self) -> None:
        """Wait for the last checkpoint and end the thread."""
        self._thread.shutdown()
