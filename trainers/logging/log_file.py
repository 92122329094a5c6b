"""Messages with their time in `log.txt`."""

from datetime import datetime
from pathlib import Path

from trainers.logging.logger import Logger, LogOptions


class LogFile(Logger):
    """A text file that messages are appended to."""

    name = "log.txt"
    retries = True

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8", errors="backslashreplace")

    def log_message(self, message: str) -> None:
        """Append a message."""
        self._file.write(f"{datetime.now().isoformat(' ', 'milliseconds').replace('.', ',')} {message}\n")
        self._file.flush()

    def log_end(self, reason: str) -> None:
        """Append why the run ends early."""
        self.log_message(reason)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def open_logger(options: LogOptions) -> Logger | None:
    """Open `log.txt`."""
    return None if options.output is None else LogFile(options.output / "log.txt")
