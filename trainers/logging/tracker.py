"""What experiment trackers have in common: numbers as `kind/name`, one run of the tracker for one output folder.

The tracker's identifier of the run is kept in the output folder, so that a resumed run goes on there. Where a tracker
sends its data, and whether it is offline, its own environment variables say.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainers.errors import ConfigError
from trainers.files import write_text
from trainers.logging.logger import Logger, LogOptions, Values


class Tracker(Logger):
    """A tracker that starts with the first message or number, so that an error of its network cannot end a run."""

    def __init__(self, options: LogOptions) -> None:
        assert options.output is not None
        self._output, self._project = options.output, options.project
        self._config = dict(options.config)
        self._is_started = False

    def start(self, project: str, name: str, run_id: str | None, config: Mapping[str, Any], folder: Path) -> str:
        """Begin a run, or continue the one of an identifier; return its identifier."""
        raise NotImplementedError

    def log_numbers(self, step: int, numbers: Mapping[str, float]) -> None:
        """Log finite numbers."""
        raise NotImplementedError

    def finish(self, failed: bool) -> None:
        """End the run."""
        raise NotImplementedError

    def log_message(self, message: str) -> None:
        """Start with the first message, which is the plan of the run."""
        self._start()

    def log_metrics(self, kind: str, step: int, values: Values) -> None:
        """Log the finite numbers."""
        self._start()
        numbers = {
            f"{kind}/{name}": float(value)
            for name, value in values.items()
            if isinstance(value, int | float) and math.isfinite(value)
        }
        self.log_numbers(step, numbers)

    def log_end(self, reason: str) -> None:
        """Mark the run as failed."""
        self._close(failed=True)

    def close(self) -> None:
        """End the run."""
        self._close(failed=False)

    def _start(self) -> None:
        if self._is_started:
            return
        path = self._output / "trackers.json"
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        name = self._output.resolve().name
        run_id = self.start(self._project, name, known.get(self.name), self._config, self._output)
        self._is_started = True
        write_text(path, json.dumps({**known, self.name: run_id}, indent=2) + "\n")

    def _close(self, failed: bool) -> None:
        if self._is_started:
            self._is_started = False
            self.finish(failed)


def open_tracker(tracker: type[Tracker], options: LogOptions) -> Tracker | None:
    """Return a tracker, or None for a dry run.

    Raises:
        ConfigError: if its package is not installed.
    """
    if options.output is None:
        return None
    try:
        return tracker(options)
    except ImportError as error:
        raise ConfigError(
            f"logging={tracker.name}: the package is not installed ({error}); pip install 'tc-clip[trackers]'"
        ) from error


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of nested mappings by dotted name."""
    values: dict[str, Any] = {}
    for name, value in config.items():
        values |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return values
