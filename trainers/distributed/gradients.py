"""Gradients summed over the ranks, bucket by bucket, while the backward pass still runs."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from trainers.distributed.processes import Ranks

BUCKET_NUMEL = 8 * 1024 * 1024  # 32 MiB of float32: large enough for the network, small compared to all gradients


class GradientReducer:
    """Sums the gradients of an update over the ranks: once per update, in buckets of one dtype.

    A bucket is sent in the backward pass of a rank's last micro-batches, as soon as the gradients of its parameters are
    complete: the last parameters of the model first, because that pass reaches them first. A rank without a micro-batch
    sends zeros. All ranks send all buckets in the same order, whatever happens to a micro-batch.

    Differs from DistributedDataParallel and from FSDP2, whose reducers need a forward and a backward pass on every rank
    in every update: here a rank may have none, may repeat one after it ran out of memory, and a parameter that no rank
    used keeps its gradient None.

    Args:
        parameters: the same list on every rank.
        dtype: of the sums on the network, None for that of the gradients.

    Example of an update: `start_update`, backward passes, the last within `last_pass`, `send_rest`, `finish`.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], ranks: Ranks, dtype: torch.dtype | None = None) -> None:
        self.parameters = parameters
        self.ranks = ranks
        self.dtype = dtype
        self._buckets = list(buckets_of(reversed(parameters))) if ranks.world_size > 1 else []
        self._bucket_of: dict[Tensor, int] = {
            parameter: number for number, bucket in enumerate(self._buckets) for parameter in bucket
        }
        self._missing = [0] * len(self._buckets)  # parameters of a bucket whose gradients are not complete
        self._sent: list[tuple[Tensor, Callable[[], None]]] = []  # buckets in flight, and what waits for them
        self._is_last = False
        for parameter in self._bucket_of:
            parameter.register_post_accumulate_grad_hook(self._complete)

    def start_update(self) -> None:
        """Begin an update, before its first backward pass."""
        self._sent = []

    @contextmanager
    def last_pass(self) -> Iterator[None]:
        """Around this rank's last backward pass of the update. It may be repeated: what was sent stays sent."""
        self._missing = [len(bucket) for bucket in self._buckets]
        self._is_last = True
        try:
            yield
        finally:
            self._is_last = False

    def send_rest(self) -> None:
        """Send the buckets that were not complete, as of parameters that were not used."""
        while len(self._sent) < len(self._buckets):
            self._send_next()

    def finish(self, used: Sequence[bool]) -> None:
        """Wait for all sums and put them into the parameters.

        Args:
            used: for each parameter, whether any rank has a gradient of it (equal on all ranks).
        """
        is_used = dict(zip(self.parameters, used, strict=True))
        for bucket, (flat, wait) in zip(self._buckets, self._sent, strict=True):
            wait()
            for parameter, total in zip(bucket, flat.split([p.numel() for p in bucket]), strict=True):
                if is_used[parameter]:
                    grad = torch.empty_like(parameter) if parameter.grad is None else parameter.grad
                    parameter.grad = grad.copy_(total.view_as(grad))
        self._sent = []

    def _complete(self, parameter: Tensor) -> None:
        """Note that a backward pass has added to a parameter's gradient all that it adds."""
        if not self._is_last:
            return
        self._missing[self._bucket_of[parameter]] -= 1
        while len(self._sent) < len(self._buckets) and self._missing[len(self._sent)] == 0:
            self._send_next()

    @torch.no_grad()
    def _send_next(self) -> None:
        bucket = self._buckets[len(self._sent)]
        grads = [torch.zeros_like(parameter) if parameter.grad is None else parameter.grad for parameter in bucket]
        flat = torch.cat([grad.reshape(-1) for grad in grads]).to(self.dtype or grads[0].dtype)
        self._sent.append((flat, self.ranks.start_sum(flat)))


def buckets_of(parameters: Iterable[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Yield consecutive parameters of one dtype, at most `BUCKET_NUMEL` elements (or one larger parameter)."""
    bucket: list[nn.Parameter] = []
    numel = 0
    for parameter in parameters:
        if bucket and (parameter.dtype != bucket[0].dtype or numel + parameter.numel() > BUCKET_NUMEL):
            yield bucket
            bucket, numel = [], 0
        bucket.append(parameter)
        numel += parameter.numel()
    if bucket:
        yield bucket
