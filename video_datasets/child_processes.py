"""Signals and lifetime of child processes: they ignore stop signals, and none outlives its parent.

Ctrl-C reaches every process of a terminal, and schedulers send SIGTERM and SIGUSR1 to every process of a job. The main
process handles them after the current step, for which it needs its workers.
"""

import contextlib
import ctypes
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from multiprocessing import forkserver, parent_process, resource_tracker
from multiprocessing.util import get_temp_dir

_STOP_SIGNALS = {getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)}
_PR_SET_PDEATHSIG = 1
# Sockets of processes have paths of at most 107 bytes; multiprocessing appends up to 32 to the folder.
_MAX_SOCKET_FOLDER = 75


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
    _use_short_socket_folder()
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


def die_with_parent(number: int = signal.SIGKILL) -> None:
    """Ask the system to send this process a signal when its parent ends, even if it hangs in a library (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)


def _use_short_socket_folder() -> None:
    """Keep the sockets of processes out of a temporary folder (TMPDIR) with a long path."""
    if os.name != "posix" or len(os.fsencode(tempfile.gettempdir())) <= _MAX_SOCKET_FOLDER:
        return
    before = tempfile.tempdir
    try:
        tempfile.tempdir = next(path for path in ("/tmp", "/var/tmp", "/dev/shm") if os.access(path, os.W_OK))
        get_temp_dir()  # makes a folder there, which multiprocessing uses from now on and removes at the end
    except StopIteration:
        return  # the error of the socket names the path
    finally:
        tempfile.tempdir = before


def _end_with_main_process() -> None:
    main_process = parent_process()
    assert main_process is not None, "runs in a worker"
    main_process.join()
    os.kill(os.getpid(), signal.SIGKILL)
