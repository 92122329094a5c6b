"""Processes of a run: start, sums over ranks, one gradient reduction an update, end.

Gradients are reduced by hand, once an update, and not by DistributedDataParallel: ranks may take different numbers of
an update's micro-batches, none among them, which DDP's bucket hooks do not allow.
"""

import contextlib
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tc_clip.protocol import TorchModule
from trainers.distributed.interrupts import Interrupts
from trainers.distributed.monitor import Monitor
from trainers.distributed.rendezvous import fresh_store
from trainers.errors import ConfigError, ErrorOnAnotherRank, LostProcessError

LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited")
MARGIN_S = 120  # by which the library waits longer than the monitor, which can say for whom
BUCKET_NUMEL = 8 * 1024 * 1024  # 32 MiB of float32: large enough for the network, small beside the gradients themselves


@dataclass(frozen=True)
class Ranks:
    """Where this process stands in the run, and the reductions over all of its processes.

    A single process needs no process group: every method is then the identity. With a monitor, a process that does
    not come to a reduction is named (`LostProcessError`, or a message of the monitor and the end of this process).
    """

    rank: int = 0
    world_size: int = 1
    device: torch.device = torch.device("cpu")
    monitor: Monitor | None = None

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def note(self, doing: str) -> None:
        """Tell the other processes where this one is."""
        if self.monitor is not None:
            self.monitor.note(doing)

    def spread_stop(self, reason: str) -> None:
        """Let the other processes know that this one is asked to stop."""
        if self.monitor is not None:
            self.monitor.spread_stop(reason)

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum of a tensor over the ranks; the argument stays as it is."""
        if self.world_size == 1:
            return values
        total = values.detach().to(self.device, copy=True)
        with self._waiting("adding up numbers"):
            dist.all_reduce(total)
        return total.to(values.device)

    def gather(self, value: object) -> list:
        """Return every rank's picklable value, in the order of ranks, on every rank."""
        if self.world_size == 1:
            return [value]
        values: list = [None] * self.world_size
        with self._waiting("comparing notes"):
            dist.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world_size > 1:
            with self._waiting("waiting for all"):
                dist.barrier()

    def broadcast(self, value: object) -> object:
        """Return rank 0's picklable value on every rank."""
        if self.world_size == 1:
            return value
        values = [value]
        with self._waiting("taking over from process 0"):
            dist.broadcast_object_list(values, src=0, device=self.device)
        return values[0]

    def broadcast_model(self, model: TorchModule) -> None:
        """Give every rank the parameters and buffers of rank 0."""
        if self.world_size == 1:
            return
        with self._waiting("taking over weights from process 0"):
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
            with self._waiting("adding up gradients"):
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

    @contextlib.contextmanager
    def _waiting(self, what: str) -> Iterator[None]:
        if self.monitor is None:
            yield
            return
        with self.monitor.waiting(what):
            try:
                yield
            except RuntimeError as error:
                if not any(words in str(error) for words in LOST):
                    raise
                lost = error
            else:
                return
        raise LostProcessError(self.monitor.describe_lost()) from lost


def start_distributed(device: str = "auto", timeout_minutes: float = 30, interrupts: Interrupts | None = None) -> Ranks:
    """Join the processes that torchrun started, or stand alone where it did not start this one.

    Args:
        device: auto (a GPU if there is one), cuda or cpu. NCCL connects GPUs, gloo CPUs; LOCAL_RANK picks the GPU.
        timeout_minutes: how long a process waits for the others, to start and in a reduction.
        interrupts: is told where another process is asked to stop.

    Raises:
        ConfigError: where the GPU that the device names is not there, or the processes cannot be connected.
    """
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    rank = int(os.environ.get("RANK", 0))
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    chosen = pick_device(device, local_rank)
    if world_size == 1:
        return Ranks(device=chosen)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    timeout = timedelta(minutes=timeout_minutes)
    try:
        store, rank, world_size = next(dist.rendezvous("env://", rank, world_size, timeout=timeout))
        store = fresh_store(store, rank, world_size, timeout)
        dist.init_process_group(
            "nccl" if chosen.type == "cuda" else "gloo",
            store=store,
            rank=rank,
            world_size=world_size,
            timeout=timeout + timedelta(seconds=MARGIN_S),
            device_id=chosen if chosen.type == "cuda" else None,
        )
    except (RuntimeError, ValueError, TimeoutError) as error:
        raise ConfigError(_no_connection(error, world_size, timeout_minutes)) from error
    request_stop = interrupts.request if interrupts is not None else (lambda reason: None)
    monitor = Monitor(
        dist.PrefixStore("monitor", store.clone()), rank, world_size, 60 * timeout_minutes, request_stop=request_stop
    )
    return Ranks(rank, world_size, chosen, monitor)


def _no_connection(error: Exception, world_size: int, timeout_minutes: float) -> str:
    where = f"{os.environ.get('MASTER_ADDR', '(MASTER_ADDR not set)')}:{os.environ.get('MASTER_PORT', '(no port)')}"
    text = next(iter(str(error).strip().splitlines()), type(error).__name__)
    if "EADDRINUSE" in str(error) or "address already in use" in str(error).lower():
        return f"{where}: this port is in use by another program; choose another MASTER_PORT (torchrun --master_port)"
    if "imed out" in str(error) or "clients joined" in str(error):
        return (
            f"{where}: not all {world_size} processes came together in {timeout_minutes:g} min (distributed_timeout): "
            f"start all of them with this address, and look for one that failed ({text})"
        )
    return f"{where}: the {world_size} processes cannot be connected: {text}"


def stop_distributed(ranks: Ranks) -> None:
    """End the monitor and leave the process group, if there are any."""
    if ranks.monitor is not None:
        ranks.monitor.close()
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def pick_device(device: str, local_rank: int) -> torch.device:
    """Return the device of a process (see `start_distributed`)."""
    num_gpus = torch.cuda.device_count()
    if device == "cpu" or (device == "auto" and num_gpus == 0):
        return torch.device("cpu")
    if num_gpus == 0:
        raise ConfigError("device=cuda: there is no GPU that CUDA can use here (nvidia-smi?); set device=cpu or auto")
    num_processes = max(local_rank + 1, int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    if num_processes > num_gpus:
        raise ConfigError(
            f"{num_processes} processes on a machine with {num_gpus} GPUs: start at most as many processes as GPUs "
            "(torchrun --nproc_per_node), or set device=cpu"
        )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        is_usable = torch.cuda.is_available()
    if not is_usable:
        raise ConfigError(_unusable_gpus(num_gpus, " ".join(str(warning.message) for warning in caught)))
    return torch.device("cuda", local_rank)


def _unusable_gpus(num_gpus: int, reason: str) -> str:
    """Return one line on GPUs that the driver counts and CUDA cannot use.

    Args:
        reason: PyTorch's warning; it holds the driver's CUDA version, as 12040 for 12.4, if that is too old.
    """
    build = f"this build of PyTorch ({torch.__version__}) is made for CUDA {torch.version.cuda}"
    if found := re.search(r"driver .* too old \(found version (\d+)\)", reason):
        major, minor = divmod(int(found[1]), 1000)
        driver = f"{major}.{minor // 10}"
        return (
            f"the NVIDIA driver is too old: {build}, the driver runs CUDA {driver} at most; install a build of PyTorch "
            f'for CUDA {driver} or older (INSTALL.md, "Other builds of PyTorch"), update the driver, or set device=cpu'
        )
    cause = " ".join(reason.split()).removeprefix("CUDA initialization: ") or "no reason is given"
    return f"{num_gpus} GPUs are here, but CUDA cannot use them: {cause} ({build}); set device=cpu to do without"


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
