"""Messages on standard output, and a progress bar on a terminal."""

import logging
import sys

from tqdm import tqdm

from trainers.logging.logger import Logger, LogOptions


class Console(Logger):
    """The terminal.

    Args:
        bar: whether to show a progress bar, which messages do not tear.
    """

    name = "the console"
    retries = True

    def __init__(self, bar: bool) -> None:
        self.shows_bar = bar
        self._bar: tqdm | None = None

    def log_message(self, message: str) -> None:
        """Print a message."""
        tqdm.write(message, file=sys.stdout)
        sys.stdout.flush()

    def log_progress(self, title: str, done: int, total: int, note: str = "") -> None:
        """Move the bar; it disappears at its end."""
        if not self.shows_bar:
            return
        if self._bar is None:
            self._bar = tqdm(total=total, initial=done, desc=title, leave=False, dynamic_ncols=True)
        self._bar.set_postfix_str(note, refresh=False)
        self._bar.update(done - self._bar.n)
        if done == total:
            self.close()

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def open_logger(options: LogOptions) -> Logger:
    """Return the console."""
    return Console(options.bar)


def quiet_libraries(is_main: bool) -> None:
    """Show warnings of the other packages of this project once, from the main process.

    Unreadable training videos are left to the trainer, which knows those of all processes.
    """
    for name in ("tc_clip", "video_datasets"):
        logging.getLogger(name).setLevel(logging.WARNING if is_main else logging.CRITICAL)
    logging.getLogger("video_datasets.loaders").setLevel(logging.CRITICAL)
