"""Signals and lifetime of child processes: they ignore stop signals, and none outlives its parent.

Ctrl-C reaches every process of a terminal, and schedulers send SIGTERM and SIGUSR1 to every process of a job. The main
process handles them after the current step, for which it needs its workers.
"""

import contextlib
import ctypes
import os
import signal
import sys
import threading
from collections.abc import Iterator
from multiprocessing import forkserver, parent_process, resource_tracker

_STOP_SIGNALS = {getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)}
_PR_SET_PDEATHSIG = 1


@contextlib.contextmanager
def stop_signals_blocked() -> Iterator[None]:
    """Block the stop signals: a process started meanwhile never receives them, this one receives them afterwards."""
    if not hasattr(signal, "pthread_sigmask"):
        yield  # Windows
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start_fork_server() -> None:
    """Start the server that forks workers, unless it runs; it and the workers ignore stop signals."""
    with stop_signals_blocked():
        resource_tracker.ensure_running()  # unblocks some of the signals
        with stop_signals_blocked():
            forkserver.ensure_running()


def settle_worker(dies_with_parent: bool, worker: int) -> None:
    """Prepare a worker process: it ignores stop signals, and ends when the main process ends.

    Args:
        dies_with_parent: whether the system also kills it with its direct parent. For workers of a fork server only:
            with other start methods the parent is a thread, which may end before its process.
        worker: index of the worker (unused; PyTorch passes it).
    """
    # If the main process is killed, the server waits for its workers, and PyTorch's workers watch the server only:
    # each would keep the other alive for ever.
    threading.Thread(target=_end_with_main_process, name="main process", daemon=True).start()
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
    if dies_with_parent:
        die_with_parent()


def die_with_parent() -> None:
    """Ask the system to kill this process when its parent ends, even if it hangs in a library (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _end_with_main_process() -> None:
    main_process = parent_process()
    assert main_process is not None, "runs in a worker"
    main_process.join()
    os.kill(os.getpid(), signal.SIGKILL)
