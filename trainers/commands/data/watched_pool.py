"""Work shared out to processes that are watched: one that hangs or dies costs its own job, and nothing else."""

import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any


@dataclass(frozen=True)
class Failure:
    """A job that gave no result: it took too long, killed its process, or raised; `reason` is one line."""

    reason: str


@dataclass
class _Worker:
    process: multiprocessing.Process
    pipe: Connection
    job: Any
    deadline: float
    ready: bool = False  # whether it has started and imported what it needs


def watched_map(
    function: Callable[[Any], Any], jobs: Iterable[Any], workers: int, time_limit_s: float
) -> Iterator[tuple[Any, Any]]:
    """Yield (job, result or Failure) as jobs are done, in any order.

    Args:
        function: importable by name; its errors become Failures.
        jobs: picklable; taken one by one as processes are free.
        workers: processes, 1 or more.
        time_limit_s: seconds of a job after which its process is killed and another one started.
    """
    # Spawned: the caller may hold threads, and a decoder that breaks its process breaks nothing here.
    context = multiprocessing.get_context("spawn")
    pending = iter(jobs)
    pool: list[_Worker] = []

    def start(job: Any) -> _Worker:
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, function, os.getpid()), daemon=True)
        process.start()
        theirs.close()
        # The job is sent when the process says that it is ready: its imports are no fault of the job.
        return _Worker(process, ours, job, time.monotonic() + _START_S)

    def give(worker: _Worker, job: Any) -> None:
        worker.job, worker.deadline = job, time.monotonic() + time_limit_s
        worker.pipe.send(job)

    try:
        for job in pending:
            pool.append(start(job))
            if len(pool) == workers:
                break
        while pool:
            nearest = min(worker.deadline for worker in pool) - time.monotonic()
            ready = wait([worker.pipe for worker in pool], timeout=max(0.0, nearest))
            for worker in list(pool):
                late = time.monotonic() >= worker.deadline
                if worker.pipe not in ready and not late:
                    continue
                alive = True
                if worker.pipe in ready:
                    try:
                        result = worker.pipe.recv()
                        if not worker.ready:
                            worker.ready = True
                            give(worker, worker.job)
                            continue
                    except (EOFError, OSError):
                        worker.process.join()
                        result, alive = Failure(f"its process died ({_how(worker.process.exitcode)})"), False
                else:
                    worker.process.kill()
                    worker.process.join()
                    result, alive = Failure(f"took more than {time_limit_s:g} s"), False
                done = worker.job
                job = next(pending, _NOTHING)
                if job is not _NOTHING and alive:
                    try:
                        give(worker, job)
                    except OSError:  # it died after its last answer
                        alive = False
                if job is _NOTHING or not alive:
                    pool.remove(worker)
                    _end(worker)
                    if job is not _NOTHING:
                        pool.append(start(job))
                yield done, result
    finally:
        for worker in pool:
            worker.process.kill()
            _end(worker)


_NOTHING = object()
_START_S = 120.0


def _end(worker: _Worker) -> None:
    worker.pipe.close()  # a process that waits for a job ends on this
    worker.process.join()


def _how(exit_code: int | None) -> str:
    return f"signal {-exit_code}" if exit_code is not None and exit_code < 0 else f"exit status {exit_code}"


def _serve(pipe: Connection, function: Callable[[Any], Any], parent: int) -> None:
    """Do jobs until the pipe closes, or the parent is gone."""
    pipe.send("ready")
    while True:
        try:
            while not pipe.poll(5):
                if os.getppid() != parent:
                    return
            job = pipe.recv()
        except (EOFError, OSError, KeyboardInterrupt):
            return
        try:
            result = function(job)
        except KeyboardInterrupt:
            return
        except Exception as error:
            result = Failure(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
        pipe.send(result)
