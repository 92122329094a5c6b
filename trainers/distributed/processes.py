"""The processes of a run: start, collective operations over the ranks, end."""

import contextlib
import os
import re
import signal
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from tc_clip.protocol import TorchModule
from trainers.distributed.interrupts import Interrupts
from trainers.distributed.monitor import Monitor
from trainers.distributed.rendezvous import fresh_store
from trainers.errors import ConfigError, ErrorOnAnotherRank, LostProcessError, RunInterrupted
from video_datasets.child_processes import die_with_parent

Value = TypeVar("Value")

LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited")
MARGIN_S = 120  # how much longer the library waits than the monitor, which can name the missing process


@dataclass(frozen=True)
class Ranks:
    """The rank of this process, and the collective operations over all processes of the run.

    A single process needs no process group: every method is then the identity. With a monitor, a process that does
    not reach a collective operation is named (`LostProcessError`, or a message of the monitor, which ends this
    process).
    """

    rank: int = 0
    world_size: int = 1
    device: torch.device = torch.device("cpu")
    monitor: Monitor | None = None

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and logs."""
        return self.rank == 0

    def set_activity(self, activity: str) -> None:
        """Publish what this process does, as "epoch 1, update 3 of 40"."""
        if self.monitor is not None:
            self.monitor.set_activity(activity)

    def announce_stop(self, reason: str) -> None:
        """Inform the other processes that this one was asked to stop."""
        if self.monitor is not None:
            self.monitor.announce_stop(reason)

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum of a tensor over the ranks; the argument is not changed."""
        if self.world_size == 1:
            return values
        total = values.detach().to(self.device, copy=True)
        with self._waiting("all_reduce"):
            dist.all_reduce(total)
        return total.to(values.device)

    def all_gather(self, value: Value) -> list[Value]:
        """Return every rank's picklable value, in the order of ranks, on every rank."""
        if self.world_size == 1:
            return [value]
        values = [value] * self.world_size
        with self._waiting("all_gather"):
            dist.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world_size > 1:
            with self._waiting("barrier"):
                dist.barrier()

    def broadcast(self, value: Value) -> Value:
        """Return rank 0's picklable value on every rank."""
        if self.world_size == 1:
            return value
        values = [value]
        with self._waiting("broadcast from process 0"):
            dist.broadcast_object_list(values, src=0, device=self.device)
        return values[0]

    def broadcast_model(self, model: TorchModule) -> None:
        """Give every rank the parameters and buffers of rank 0."""
        if self.world_size == 1:
            return
        with self._waiting("broadcast of weights from process 0"):
            for tensor in (*model.parameters(), *model.buffers()):
                dist.broadcast(tensor.detach(), src=0)

    def start_sum(self, values: Tensor) -> Callable[[], None]:
        """Start to sum a tensor over the ranks, in place; the returned function waits until it is done."""
        with self._waiting("all_reduce of gradients", until_done=False):
            work = dist.all_reduce(values, async_op=True)

        def wait() -> None:
            with self._waiting("all_reduce of gradients"):
                work.wait()

        return wait

    def raise_together(self, error: Exception | None) -> None:
        """Raise on every rank if any rank has an error: its own error, or `ErrorOnAnotherRank`. Collective.

        Of equal errors (a wrong path is wrong on all ranks) only the first rank raises its own.
        """
        if self.world_size == 1:
            if error is not None:
                raise error
            return
        messages = self.all_gather(None if error is None else f"{type(error).__name__}: {error}")
        failed = [message for message in messages if message is not None]
        if not failed:
            return
        if error is not None and messages.index(messages[self.rank]) == self.rank:
            raise error
        raise ErrorOnAnotherRank(failed[0])

    @contextlib.contextmanager
    def errors_together(self) -> Iterator[None]:
        """Around code of every rank: raise an error of any rank on all of them (`raise_together`). Collective."""
        error = None
        try:
            yield
        except Exception as problem:
            error = problem
        self.raise_together(error)

    @contextlib.contextmanager
    def _waiting(self, what: str, until_done: bool = True) -> Iterator[None]:
        """Around collective operations, until their results are there (`until_done`).

        NCCL's calls return when the operation is queued on the GPU; without the wait at the end, a process would hang
        in the next thing that needs a result, which nobody watches.
        """
        if self.monitor is None:
            yield
            return
        with self.monitor.waiting(what):
            try:
                yield
                if until_done and self.device.type == "cuda":
                    torch.cuda.current_stream(self.device).synchronize()
            except RuntimeError as error:
                if not any(words in str(error) for words in LOST):
                    raise
                lost = error
            else:
                return
        raise LostProcessError(self.monitor.describe_lost()) from lost


def start_distributed(device: str = "auto", timeout_minutes: float = 30, interrupts: Interrupts | None = None) -> Ranks:
    """Join the processes that torchrun started; without torchrun, return a single rank.

    Args:
        device: auto (a GPU if CUDA can use one), cuda, mps (an Apple GPU, for one process) or cpu. NCCL connects GPUs,
            gloo CPUs; LOCAL_RANK selects the GPU.
        timeout_minutes: how long a process waits for the others, at the start and in a collective operation.
        interrupts: receives the stop request of another process.

    Raises:
        ConfigError: if there is no such GPU, or the processes cannot be connected.
    """
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    rank = int(os.environ.get("RANK", 0))
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    chosen = pick_device(device, local_rank)
    if world_size == 1:
        return Ranks(device=chosen)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        die_with_parent(signal.SIGTERM)  # if torchrun is killed, the run saves and stops: nobody would restart it
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
    own_store = dist.PrefixStore("monitor", store.clone())  # type: ignore[attr-defined]  # torch's stubs lack clone
    monitor = Monitor(own_store, rank, world_size, 60 * timeout_minutes, request_stop=request_stop)
    return Ranks(rank, world_size, chosen, monitor)


@contextlib.contextmanager
def distributed(device: str, timeout_minutes: float, interrupts: Interrupts) -> Iterator[Ranks]:
    """Around a run: start the processes (see `start_distributed`), stop them, and report an error to the others."""
    ranks = start_distributed(device, timeout_minutes, interrupts)
    try:
        yield ranks
    except (ErrorOnAnotherRank, RunInterrupted):
        raise
    except Exception as error:
        if ranks.monitor is not None:
            ranks.monitor.announce_failure(f"{type(error).__name__}: {error}")
        raise
    # Not after an error: leaving the process group would wait for processes that wait for this one.
    stop_distributed(ranks)


def _no_connection(error: Exception, world_size: int, timeout_minutes: float) -> str:
    where = f"{os.environ.get('MASTER_ADDR', '(MASTER_ADDR not set)')}:{os.environ.get('MASTER_PORT', '(no port)')}"
    text = next(iter(str(error).strip().splitlines()), type(error).__name__)
    if "EADDRINUSE" in str(error) or "address already in use" in str(error).lower():
        return f"{where}: this port is in use by another program; choose another MASTER_PORT (torchrun --master_port)"
    if "imed out" in str(error) or "clients joined" in str(error):
        return (
            f"{where}: not all {world_size} processes connected within {timeout_minutes:g} min (distributed_timeout): "
            f"start all of them with this address, and look for one that failed ({text})"
        )
    return f"{where}: the {world_size} processes cannot be connected: {text}"


def stop_distributed(ranks: Ranks) -> None:
    """End the monitor and leave the process group, if there is one."""
    if ranks.monitor is not None:
        ranks.monitor.close()
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def pick_device(device: str, local_rank: int) -> torch.device:
    """Return the device of a process (see `start_distributed`)."""
    if device == "mps":
        return _apple_gpu()
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


def _apple_gpu() -> torch.device:
    """Return the GPU of an Apple machine; it works for a single process."""
    if not torch.backends.mps.is_available():
        is_built = torch.backends.mps.is_built()
        reason = "this machine has no Apple GPU" if is_built else "this build of PyTorch is not built for Apple GPUs"
        raise ConfigError(f"device=mps: {reason}; set device=auto or cpu")
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ConfigError("device=mps: an Apple GPU works for one process; start one, or set device=cpu")
    return torch.device("mps")


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
