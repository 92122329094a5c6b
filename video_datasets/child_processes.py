"""How the processes that this one starts take signals, and that none of them outlives it.

Ctrl-C reaches every process of a terminal, and schedulers send SIGTERM and SIGUSR1 to every process of a job. The main
process answers them after the step that is under way, for which it needs its workers.
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
    """Block the signals that ask for a stop: a process that is started meanwhile never gets them, this one later."""
    if not hasattr(signal, "pthread_sigmask"):
        yield  # Windows
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start_fork_server() -> None:
    """Start the server that forks workers, unless it runs, so that it and they live through the signals of a stop."""
    with stop_signals_blocked():
        resource_tracker.ensure_running()  # unblocks some of the signals
        with stop_signals_blocked():
            forkserver.ensure_running()


def settle_worker(dies_with_parent: bool, worker: int) -> None:
    """Prepare a worker process: deaf to the signals of a stop, and gone when its parent is.

    Args:
        dies_with_parent: for workers of a fork server, whose death it then shares. A parent that is a thread may end
            before its process.
    """
    # The server waits for its workers when the main process is killed, and PyTorch's workers look at the server alone:
    # each would keep the other alive for ever.
    threading.Thread(target=_end_with_main_process, name="main process", daemon=True).start()
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
    if dies_with_parent:
        die_with_parent()


def die_with_parent() -> None:
    """Ask the system to kill this process when its parent ends, also where it hangs in a library (Linux alone)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _end_with_main_process() -> None:
    parent_process().join()
    os.kill(os.getpid(), signal.SIGKILL)
