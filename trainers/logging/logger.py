"""The interface of a logger, and the container that passes everything a run logs to all loggers.

A logger is one module: it defines a `Logger` and `open_logger`, and is named in `logging.loggers`. One in this package
is named by its module (`console`), any other by its full dotted name.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from torch import Tensor

from trainers.config.secrets import hide_secrets
from trainers.errors import ConfigError, RunInterrupted
from trainers.evaluator import Evaluation
from trainers.video_lists import VideoList

Values = Mapping[str, float | int | str | None]


@dataclass(frozen=True)
class LogOptions:
    """What loggers are opened with.

    Args:
        output: the run's folder; None for a dry run, which writes no files.
        bar: whether the console shows a progress bar instead of one line per update.
        tensorboard: whether to write TensorBoard files.
        resumed_step: step that training starts from; later entries of the files are dropped, since the run logs them
            again. None for an evaluation, which adds to the existing files.
        repeats_validation: whether the run also repeats the validation at `resumed_step`.
        config: the configuration without secrets, for a logger that stores it.
        project: name of the project in a tracker.
    """

    output: Path | None
    bar: bool = False
    tensorboard: bool = False
    resumed_step: int | None = None
    repeats_validation: bool = False
    config: Mapping[str, Any] = field(default_factory=dict)
    project: str = "tc-clip"


class Logger:
    """One destination of what a run logs. Methods do nothing unless a subclass overrides them.

    A step is the number of micro-batches since the run began, over all ranks. An error in a method does not end the
    run: the container warns once, and calls the logger again only if it `retries`, as for a disk that may be freed.
    """

    name = "logger"
    retries = False
    shows_bar = False

    def log_message(self, message: str) -> None:
        """Log one message, which can have several lines."""

    def log_metrics(self, kind: str, step: int, values: Values) -> None:
        """Log numbers (and a few texts) by name; `kind` is train, epoch, val or test."""

    def log_progress(self, title: str, done: int, total: int, note: str = "") -> None:
        """Show how much of an epoch is done; the first call of an epoch is before its first update."""

    def log_frames(self, step: int, videos: Tensor) -> None:
        """Log training frames, uint8 `(B, T, 3, H, W)`."""

    def log_validation(self, step: int, evaluation: Evaluation, videos: VideoList) -> None:
        """Log single classes and videos of a validation; `log_metrics` gets its numbers."""

    def log_end(self, reason: str) -> None:
        """Log why the run ends early; standard error has that message already."""

    def close(self) -> None:
        """Write what is left and close."""


class LoggerContainer(Logger):
    """Passes everything to several loggers. Only the main process has any; on others the container is empty.

    As a context manager it logs the error that ends the run, and closes the loggers.
    """

    name = "the log"

    def __init__(self, loggers: Sequence[Logger] = ()) -> None:
        self._loggers = list(loggers)
        self._reported: set[str] = set()
        self.shows_bar = any(logger.shows_bar for logger in loggers)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, Exception) and not isinstance(error, RunInterrupted):
            self.log_end(f"ended early: {type(error).__name__}: {error}")
        self.close()

    def info(self, message: str) -> None:
        """Log a message."""
        self.log_message(message)

    def warning(self, message: str) -> None:
        """Log a problem that does not end the run."""
        self.log_message(f"warning: {message}")

    def log_message(self, message: str) -> None:
        """Log a message, without secrets."""
        self._call(lambda logger: logger.log_message(hide_secrets(message)))

    def log_metrics(self, kind: str, step: int, values: Values) -> None:
        """Log numbers."""
        self._call(lambda logger: logger.log_metrics(kind, step, values))

    def log_progress(self, title: str, done: int, total: int, note: str = "") -> None:
        """Show progress."""
        self._call(lambda logger: logger.log_progress(title, done, total, note))

    def log_frames(self, step: int, videos: Tensor) -> None:
        """Log training frames."""
        self._call(lambda logger: logger.log_frames(step, videos))

    def log_validation(self, step: int, evaluation: Evaluation, videos: VideoList) -> None:
        """Log single classes and videos of a validation."""
        self._call(lambda logger: logger.log_validation(step, evaluation, videos))

    def log_end(self, reason: str) -> None:
        """Log why the run ends early, without secrets."""
        self._call(lambda logger: logger.log_end(hide_secrets(reason)))

    def close(self) -> None:
        """Close all loggers in reverse order: the console, the first one, can still show a warning."""
        self._loggers.reverse()
        self._call(lambda logger: logger.close())
        self._loggers.clear()

    def _call(self, call: Callable[[Logger], None]) -> None:
        for logger in list(self._loggers):
            try:
                call(logger)
            except Exception as error:  # whatever it is, a log must not end a run
                if not logger.retries:
                    self._loggers.remove(logger)
                if logger.name not in self._reported:
                    self._reported.add(logger.name)
                    self.warning(f"{logger.name} cannot be written ({error}); the run continues")


class LoggerModule(Protocol):
    """What a logger's module defines."""

    def open_logger(self, options: LogOptions) -> Logger | None:
        """Return the logger, or None if the options switch it off."""


def open_loggers(names: Sequence[str], options: LogOptions) -> LoggerContainer:
    """Open the loggers of some modules. One whose library fails is reported, and the run goes on without it.

    Raises:
        ConfigError: if there is no such module, or it cannot write.
    """
    loggers: list[Logger] = []
    failures: list[str] = []
    try:
        for name in names:
            module = _module(name)
            try:
                logger = module.open_logger(options)
            except (OSError, ConfigError):
                raise
            except Exception as error:  # whatever it is, a log must not end a run
                failures.append(f"{name} cannot be opened ({error}); the run continues")
                continue
            loggers += [] if logger is None else [logger]
    except OSError as error:
        LoggerContainer(loggers).close()
        raise ConfigError(
            f"{error.filename or options.output}: cannot be written: {error.strerror or error}"
        ) from error
    container = LoggerContainer(loggers)
    for failure in failures:
        container.warning(failure)
    return container


def _module(name: str) -> LoggerModule:
    try:
        return importlib.import_module(name if "." in name else f"trainers.logging.{name}")
    except ImportError as error:
        raise ConfigError(f"logging.loggers: {name} cannot be imported ({error})") from error
