"""Batches on their way to the device, which computes meanwhile."""

import time
from collections import deque

import torch
from torch import Tensor

MOST_AHEAD = 2**30  # bytes of copies that the device has not begun to use


class DeviceCopies:
    """Copies tensors to a GPU on a stream of their own; on other devices the tensors themselves.

    The host does not wait for the device, except for copies to be used that were made long before: without that, it
    would fill the memory with them.

    Attributes:
        device_seconds: time that the host waited for the device.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.device_seconds = 0.0
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._ahead: deque[tuple[torch.cuda.Event, int]] = deque()  # when the device began to use copies, their bytes

    @property
    def is_asynchronous(self) -> bool:
        """Whether a copy can be made while the device computes."""
        return self._stream is not None

    def start(self, x: Tensor) -> Tensor:
        """Start the copy of a tensor, which should be in pinned memory; `finish` comes before its use."""
        if self._stream is None:
            return x.to(self.device)
        self._make_room()
        with torch.cuda.stream(self._stream):
            return x.to(self.device, non_blocking=True)

    def finish(self, *copies: Tensor) -> None:
        """Let the device wait for copies, before it uses them."""
        if self._stream is None:
            return
        stream = torch.cuda.current_stream(self.device)
        stream.wait_stream(self._stream)
        for copy in copies:
            copy.record_stream(stream)
        event = torch.cuda.Event()
        event.record(stream)
        self._ahead.append((event, sum(copy.nbytes for copy in copies)))

    def _make_room(self) -> None:
        while sum(size for _, size in self._ahead) > MOST_AHEAD:
            event, _ = self._ahead.popleft()
            start = time.perf_counter()
            event.synchronize()
            self.device_seconds += time.perf_counter() - start
        while self._ahead and self._ahead[0][0].query():
            self._ahead.popleft()
