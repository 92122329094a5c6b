"""Processes of a run: start, sums over ranks, one gradient reduction an update, end.

Gradients are reduced by hand, once an update, and not by DistributedDataParallel: ranks may take different numbers of
an update's micro-batches, none among them, which DDP's bucket hooks do not allow.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trainers.errors import ConfigError, ErrorOnAnotherRank

BUCKET_NUMEL = 8 * 1024 * 1024  # 32 MiB of float32: large enough for the network, small beside the gradients themselves


@dataclass(frozen=True)
class Ranks:
    """Where this process stands in the run, and the reductions over all of its processes.

    A single process needs no process group: every method is then the identity.
    """

    rank: int = 0
    world_size: int = 1
    device: torch.device = torch.device("cpu")

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum of a tensor over the ranks; the argument stays as it is."""
        if self.world_size == 1:
            return values
        total = values.detach().to(self.device, copy=True)
        dist.all_reduce(total)
        return total.to(values.device)

    def gather(self, value: object) -> list:
        """Return every rank's picklable value, in the order of ranks, on every rank."""
        if self.world_size == 1:
            return [value]
        values: list = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world_size > 1:
            dist.barrier()

    def broadcast_model(self, model: nn.Module) -> None:
        """Give every rank the parameters and buffers of rank 0."""
        if self.world_size == 1:
            return
        for tensor in (*model.parameters(), *model.buffers()):
            dist.broadcast(tensor.detach(), src=0)

    def sum_gradients(self, parameters: Sequence[nn.Parameter], used: Sequence[bool]) -> None:
        """Sum gradients over the ranks, in flat buckets of one type each.

        A rank without a gradient contributes zeros. A parameter that no rank uses keeps its gradient None, so that the
        optimizer passes over it as in a single process.

        Args:
            parameters: the same list on every rank.
            used: for each parameter whether any rank has a gradient of it (equal on all ranks).
        """
        if self.world_size == 1:
            return
        for bucket in _buckets(parameter for parameter, is_used in zip(parameters, used, strict=True) if is_used):
            for parameter in bucket:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            flat = torch.cat([parameter.grad.reshape(-1) for parameter in bucket])
            dist.all_reduce(flat)
            sizes = [parameter.numel() for parameter in bucket]
            for parameter, grad in zip(bucket, flat.split(sizes), strict=True):
                parameter.grad.copy_(grad.view_as(parameter))

    def raise_together(self, error: Exception | None) -> None:
        """Raise on every rank where any rank has an error: the ranks' own, or one that says nothing.

        Equal errors (a wrong path is wrong for all) are told by the first rank that has them. Collective.
        """
        if self.world_size == 1:
            if error is not None:
                raise error
            return
        messages = self.gather(None if error is None else f"{type(error).__name__}: {error}")
        failed = [message for message in messages if message is not None]
        if not failed:
            return
        if error is not None and messages.index(messages[self.rank]) == self.rank:
            raise error
        raise ErrorOnAnotherRank(failed[0])


def start_distributed(device: str = "auto", timeout_minutes: float = 30) -> Ranks:
    """Join the processes that torchrun started, or stand alone where it did not start this one.

    Args:
        device: auto (a GPU if there is one), cuda or cpu. NCCL connects GPUs, gloo CPUs; LOCAL_RANK picks the GPU.
        timeout_minutes: how long a process waits for the others in a reduction.

    Raises:
        ConfigError: where the GPU that the device names is not there.
    """
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    rank = int(os.environ.get("RANK", 0))
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    chosen = pick_device(device, local_rank)
    if world_size == 1:
        return Ranks(device=chosen)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    dist.init_process_group(
        "nccl" if chosen.type == "cuda" else "gloo",
        rank=rank,
        world_size=world_size,
        timeout=timedelta(minutes=timeout_minutes),
        device_id=chosen if chosen.type == "cuda" else None,
    )
    return Ranks(rank, world_size, chosen)


def stop_distributed() -> None:
    """Leave the process group, if there is one."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def pick_device(device: str, local_rank: int) -> torch.device:
    """Return the device of a process (see `start_distributed`)."""
    num_gpus = torch.cuda.device_count()
    if device == "cpu" or (device == "auto" and num_gpus == 0):
        return torch.device("cpu")
    num_processes = max(local_rank + 1, int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    if num_processes > num_gpus:
        raise ConfigError(
            f"{num_processes} processes on a machine with {num_gpus} GPUs: start at most as many processes as GPUs "
            "(torchrun --nproc_per_node), or set device=cpu"
        )
    return torch.device("cuda", local_rank)


def _buckets(parameters: Iterable[nn.Parameter]) -> Iterable[list[nn.Parameter]]:
    """Yield runs of parameters of one type, up to `BUCKET_NUMEL` elements each (a larger parameter stands alone)."""
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
