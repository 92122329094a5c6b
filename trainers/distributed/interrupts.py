"""Signals that ask a run to stop: recorded at once, obeyed after the current update.

SIGTERM and SIGUSR1 come from schedulers that take a machine back, SIGINT from Ctrl-C. A run that they stop saves its
state and exits with `REQUEUE`: started again, it resumes.
"""

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self, TypeAlias

from trainers.errors import RunInterrupted

Handler: TypeAlias = Callable[[int, FrameType | None], Any] | int | signal.Handlers | None
SIGNALS = (signal.SIGTERM, signal.SIGINT) + ((signal.SIGUSR1,) if hasattr(signal, "SIGUSR1") else ())


class Interrupts:
    """While entered, records the first such signal as `requested`, which replaces the signal's usual effect.

    A second Ctrl-C ends the run at once (KeyboardInterrupt). In a thread other than the main one, signals are ignored.

    Args:
        verbose: whether to report the stop on standard error.
    """

    def __init__(self, verbose: bool = True) -> None:
        self.requested: str | None = None
        self._verbose = verbose
        self._before: dict[signal.Signals, Handler] = {}
        self._mask: set[int | signal.Signals] | None = None
        self._by_keyboard = False

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._record) for number in SIGNALS}
            if hasattr(signal, "pthread_sigmask"):
                # The parent process may have blocked them, as the fork server of the workers does.
                self._mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._mask is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before, self._mask = {}, None

    def request(self, reason: str) -> None:
        """Request a stop, as a signal does."""
        self.requested = self.requested or reason

    def check(self) -> None:
        """Raise RunInterrupted if a stop was requested; for moments when nothing is left to save."""
        if self.requested is not None:
            raise RunInterrupted(self.requested)

    def _record(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._by_keyboard:
            raise KeyboardInterrupt
        self._by_keyboard = self._by_keyboard or number == signal.SIGINT
        first = self.requested is None
        self.request(signal.Signals(number).name)
        if first and self._verbose:
            # Not through a stream's buffer: the signal may have interrupted a write to it.
            again = "; Ctrl-C again stops at once" if number == signal.SIGINT else ""
            os.write(2, f"\n{self.requested}: stopping after this step{again}\n".encode())
