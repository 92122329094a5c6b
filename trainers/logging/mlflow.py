"""MLflow. `MLFLOW_TRACKING_URI` names a server or a folder; without it, MLflow takes its own default."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainers.logging.logger import Logger, LogOptions
from trainers.logging.tracker import Tracker, flat, open_tracker

_LONGEST_VALUE = 500  # characters of a parameter that every MLflow takes
_MOST_AT_ONCE = 100  # parameters of one request


class MLflow(Tracker):
    """A run of MLflow; the project is its experiment."""

    name = "mlflow"

    def __init__(self, options: LogOptions) -> None:
        from mlflow import entities
        from mlflow.tracking import MlflowClient

        super().__init__(options)
        self._entities, self._client = entities, MlflowClient()

    def start(self, project: str, name: str, run_id: str | None, config: Mapping[str, Any], folder: Path) -> str:
        """Begin or continue a run."""
        if run_id is None:
            experiment = self._client.get_experiment_by_name(project)
            number = experiment.experiment_id if experiment else self._client.create_experiment(project)
            run_id = self._client.create_run(number, run_name=name).info.run_id
            values = [self._entities.Param(key, str(value)[:_LONGEST_VALUE]) for key, value in flat(config).items()]
            for first in range(0, len(values), _MOST_AT_ONCE):
                self._client.log_batch(run_id, params=values[first : first + _MOST_AT_ONCE])
        else:
            self._client.update_run(run_id, status="RUNNING")
        self._run_id = run_id
        return run_id

    def log_numbers(self, step: int, numbers: Mapping[str, float]) -> None:
        """Log numbers."""
        now = int(1000 * time.time())
        metrics = [self._entities.Metric(name, value, now, step) for name, value in numbers.items()]
        self._client.log_batch(self._run_id, metrics=metrics)

    def finish(self, failed: bool) -> None:
        """End the run."""
        self._client.set_terminated(self._run_id, "FAILED" if failed else "FINISHED")


def open_logger(options: LogOptions) -> Logger | None:
    """Open a run of MLflow."""
    return open_tracker(MLflow, options)
