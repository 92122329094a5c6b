"""A pool of processes with a time limit per job. A process that hangs or dies costs its own job, and no other."""

import itertools
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Generic, TypeVar

_START_S = 120.0
Job = TypeVar("Job")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Failure:
    """A job without a result: it took too long, killed its process, or raised; `reason` is one line."""

    reason: str


@dataclass
class _Worker(Generic[Job]):
    process: BaseProcess
    pipe: Connection
    job: Job
    deadline: float
    ready: bool = False  # whether it has started and finished its imports


def watched_map(
    function: Callable[[Job], Result], jobs: Iterable[Job], workers: int, time_limit_s: float
) -> Iterator[tuple[Job, Result | Failure]]:
    """Yield (job, result or Failure) as jobs finish, in any order.

    Args:
        function: importable by name; its errors become Failures.
        jobs: picklable; the next one is taken when a process is free.
        workers: number of processes, 1 or more.
        time_limit_s: seconds per job after which its process is killed and replaced.
    """
    # Spawned, since the caller may have threads.
    context = multiprocessing.get_context("spawn")
    pending = iter(jobs)
    pool: list[_Worker[Job]] = []

    def start(job: Job) -> _Worker[Job]:
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, function, os.getpid()), daemon=True)
        process.start()
        theirs.close()
        # The job is sent when the process is ready: its imports do not count as the job's time.
        return _Worker(process, ours, job, time.monotonic() + _START_S)

    def assign(worker: _Worker[Job], job: Job) -> None:
        worker.job, worker.deadline = job, time.monotonic() + time_limit_s
        worker.pipe.send(job)

    try:
        pool += map(start, itertools.islice(pending, workers))
        while pool:
            nearest = min(worker.deadline for worker in pool) - time.monotonic()
            ready = wait([worker.pipe for worker in pool], timeout=max(0.0, nearest))
            for worker in list(pool):
                late = time.monotonic() >= worker.deadline
                if worker.pipe not in ready and not late:
                    continue
                alive = True
                result: Result | Failure
                if worker.pipe in ready:
                    try:
                        result = worker.pipe.recv()
                        if not worker.ready:
                            worker.ready = True
                            assign(worker, worker.job)
                            continue
                    except (EOFError, OSError):
                        worker.process.join()
                        result, alive = Failure(f"its process died ({_exit_cause(worker.process.exitcode)})"), False
                else:
                    worker.process.kill()
                    worker.process.join()
                    result, alive = Failure(f"took more than {time_limit_s:g} s"), False
                done = worker.job
                following = list(itertools.islice(pending, 1))  # one job, or none
                if following and alive:
                    try:
                        assign(worker, following[0])
                    except OSError:  # it died after its last result
                        alive = False
                if not following or not alive:
                    pool.remove(worker)
                    _end(worker)
                    pool += map(start, following)
                yield done, result
    finally:
        for worker in pool:
            worker.process.kill()
            _end(worker)


def _end(worker: _Worker[Job]) -> None:
    worker.pipe.close()  # this ends a process that waits for a job
    worker.process.join()


def _exit_cause(exit_code: int | None) -> str:
    return f"signal {-exit_code}" if exit_code is not None and exit_code < 0 else f"exit status {exit_code}"


def _serve(pipe: Connection, function: Callable[[Job], Result], parent: int) -> None:
    """Do jobs until the pipe closes or the parent has ended."""
    pipe.send("ready")
    while True:
        try:
            while not pipe.poll(5):
                if os.getppid() != parent:
                    return
            job = pipe.recv()
        except (EOFError, OSError, KeyboardInterrupt):
            return
        result: Result | Failure
        try:
            result = function(job)
        except KeyboardInterrupt:
            return
        except Exception as error:
            result = Failure(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
        pipe.send(result)
