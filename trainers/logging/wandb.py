"""Weights & Biases. `WANDB_MODE=offline` keeps the run in the output folder, for `wandb sync` later."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainers.logging.logger import Logger, LogOptions
from trainers.logging.tracker import Tracker, open_tracker


class WeightsAndBiases(Tracker):
    """A run of Weights & Biases; its steps are a metric, since a resumed run repeats some."""

    name = "wandb"

    def __init__(self, options: LogOptions) -> None:
        import wandb

        super().__init__(options)
        self._wandb = wandb

    def start(self, project: str, name: str, run_id: str | None, config: Mapping[str, Any], folder: Path) -> str:
        """Begin or continue a run."""
        self._run = self._wandb.init(
            project=project, name=name, id=run_id, resume="allow", config=dict(config), dir=str(folder)
        )
        self._run.define_metric("*", step_metric="step")
        return str(self._run.id)

    def log_numbers(self, step: int, numbers: Mapping[str, float]) -> None:
        """Log numbers with their step."""
        self._run.log({**numbers, "step": step})

    def finish(self, failed: bool) -> None:
        """End the run."""
        self._run.finish(exit_code=int(failed))


def open_logger(options: LogOptions) -> Logger | None:
    """Open a run of Weights & Biases."""
    return open_tracker(WeightsAndBiases, options)
