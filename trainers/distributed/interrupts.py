"""Signals that ask a run to stop: noted at once, answered after the update that is under way.

SIGTERM and SIGUSR1 come from schedulers that take a machine back, SIGINT from Ctrl-C. A run that stops for them saves
and leaves with `REQUEUE`, which says: start me again, and I go on.
"""

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Self

from trainers.errors import RunInterrupted

SIGNALS = (signal.SIGTERM, signal.SIGINT) + ((signal.SIGUSR1,) if hasattr(signal, "SIGUSR1") else ())


class Interrupts:
    """While entered, notes the first such signal as `requested` in place of its usual effect.

    A second Ctrl-C leaves at once (KeyboardInterrupt). In a thread other than the main one it notes nothing.

    Args:
        speak: whether to say on standard error what happens now.
    """

    def __init__(self, speak: bool = True) -> None:
        self.requested: str | None = None
        self._speak = speak
        self._before: dict[int, object] = {}
        self._mask: set[int] | None = None
        self._by_keyboard = False

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
            if hasattr(signal, "pthread_sigmask"):
                # Whoever started this process may have blocked them, as the fork server of our workers has.
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
        """Ask for a stop, as a signal does."""
        self.requested = self.requested or reason

    def check(self) -> None:
        """Raise RunInterrupted where a stop is asked for; for moments when nothing is left to be saved."""
        if self.requested is not None:
            raise RunInterrupted(self.requested)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._by_keyboard:
            raise KeyboardInterrupt
        self._by_keyboard = self._by_keyboard or number == signal.SIGINT
        first = self.requested is None
        self.request(signal.Signals(number).name)
        if first and self._speak:
            # Not through a stream's buffer, which the signal may have interrupted.
            again = "; Ctrl-C again leaves at once" if number == signal.SIGINT else ""
            os.write(2, f"\n{self.requested}: stopping after this step{again}\n".encode())
