"""Trackio. It writes to a local database (`TRACKIO_DIR`), or to a Space (`TRACKIO_SPACE_ID`)."""

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainers.logging.logger import Logger, LogOptions
from trainers.logging.tracker import Tracker, flat, open_tracker


class Trackio(Tracker):
    """A run of Trackio, which knows runs by name: that of the output folder and some letters."""

    name = "trackio"

    def __init__(self, options: LogOptions) -> None:
        import trackio

        super().__init__(options)
        self._trackio = trackio

    def start(self, project: str, name: str, run_id: str | None, config: Mapping[str, Any], folder: Path) -> str:
        """Begin or continue a run."""
        run_id = run_id or f"{name}-{uuid.uuid4().hex[:6]}"
        self._run = self._trackio.init(project, name=run_id, resume="allow", config=flat(config), embed=False)
        return run_id

    def log_numbers(self, step: int, numbers: Mapping[str, float]) -> None:
        """Log numbers."""
        self._run.log(dict(numbers), step=step)

    def finish(self, failed: bool) -> None:
        """End the run."""
        self._run.finish()


def open_logger(options: LogOptions) -> Logger | None:
    """Open a run of Trackio."""
    return open_tracker(Trackio, options)
