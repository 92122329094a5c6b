"""Jobs of a sweep (`-m lr=1e-5,2e-5 seed=1,2,3`): a folder below `output` for each, named by its swept values.

A job returns its metric, which sweepers such as Optuna's optimise. A job that was done is not repeated, and one that
was stopped resumes. Imports nothing heavy.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, open_dict

from trainers.config.command_line import SweepError, one_line_errors, read_override
from trainers.errors import ConfigError

if TYPE_CHECKING:
    from trainers.config.settings import Settings

JOB = "sweep.json"  # in a job's folder: its swept values
MAX_NAME = 120  # characters of the name of a job's folder
_EXCLUDED = "hydra.job.config.override_dirname.exclude_keys"


def with_swept_keys(arguments: Sequence[str]) -> list[str]:
    """Return a command line; that of a sweep has one more argument, the keys that all jobs share.

    A job knows its own values only, wherever it runs. Without this list it could not say which of them are swept.

    Raises:
        ConfigError: if `output` is swept.
    """
    if not {"-m", "--multirun"} & set(arguments):
        return list(arguments)
    read = [override for argument in arguments if (override := read_override(argument)) is not None]
    if any(override.key_or_group == "output" and override.is_sweep_override() for override in read):
        raise ConfigError("output= is the folder of all jobs of a sweep: give one folder")
    shared = [override.key_or_group for override in read if not override.is_sweep_override()]
    return [*arguments, f"{_EXCLUDED}=[{','.join(dict.fromkeys(shared))}]"]


def run_job(cfg: DictConfig) -> float | None:
    """Run one job in its folder, unless it was done; return its metric, None without a result (`dry_run`).

    Raises:
        SweepError: the job has failed and printed why; other jobs can go on.
    """
    from hydra.core.hydra_config import HydraConfig

    hydra = HydraConfig.get()
    shared = set(hydra.job.config.override_dirname.exclude_keys)
    values = dict(override.lstrip("+").split("=", 1) for override in hydra.overrides.task if "=" in override)
    values = {key: value for key, value in sorted(values.items()) if key not in shared}
    try:
        with one_line_errors(debug=cfg.debug):
            return _run(cfg, values)
    except SystemExit as stop:
        if stop.code == 2:
            raise SweepError(job_name(values)) from stop
        raise


def job_name(values: Mapping[str, str]) -> str:
    """Return the name of the folder of a job: `lr-1e-05_seed-1`, of letters that no shell and no key has to quote."""
    name = "_".join(f"{key}-{value}" for key, value in values.items())
    plain = re.sub(r"[^\w.+-]+", "-", name, flags=re.ASCII)
    if plain == name and len(name) <= MAX_NAME:
        return name
    return f"{plain[:MAX_NAME]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def objective(rows: Sequence[Mapping[str, Any]], metric: str) -> float | None:
    """Return what a job reports: a metric of the list that chose its epoch or, of a test, the mean over its lists.

    Args:
        rows: of the results file; those of the first weights count.
        metric: `top1` counts if the rows do not have it.
    """
    judged = ([row for row in rows if row["part"] == part] for part in ("held_out", "val"))
    rows = next(filter(None, judged), list(rows))
    rows = [row for row in rows if (row["weights"], row["wise_ft"]) == (rows[0]["weights"], rows[0]["wise_ft"])]
    values = [row.get(metric, row["top1"]) for row in rows]
    return None if None in values or not values else fmean(values)


def finished_rows(settings: "Settings") -> list[dict[str, Any]] | None:
    """Return the rows of the results of a run that has been done with these settings; None if it has to run."""
    import yaml

    from trainers.config.secrets import hide_in_config
    from trainers.reporting.ledger import recipe_of
    from trainers.reporting.read_results import read_document, results_name

    results = settings.folder / results_name(settings.eval)
    config = settings.folder / ("config.yaml" if settings.eval is None else f"eval_{settings.eval}_config.yaml")
    if settings.dry_run or not settings.auto_resume or not (results.is_file() and config.is_file()):
        return None
    if results.stat().st_mtime < config.stat().st_mtime:
        return None  # it was started again, and has not ended yet
    try:
        stored, wanted = yaml.safe_load(config.read_text(encoding="utf-8")), hide_in_config(settings.to_dict())
        same = [{**recipe_of(values), "resume": values["resume"]} for values in (stored, wanted)]
        return list(read_document(results)["results"]) if same[0] == same[1] else None
    except (ConfigError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError):
        return None  # of another version, or damaged: the run finds out


def _run(cfg: DictConfig, values: Mapping[str, str]) -> float | None:
    from trainers.config.resolve import resolve

    if "output" in cfg and isinstance(cfg.output, str):
        with open_dict(cfg):
            cfg.output = str(Path(cfg.output) / job_name(values))
    settings = resolve(cfg)
    is_main = int(os.environ.get("RANK", 0)) == 0
    rows = finished_rows(settings)
    if rows is None:
        from trainers.files import write_text
        from trainers.run import run  # imports torch

        rows = [row.fields() for row in run(settings)]
        if is_main and rows:
            write_text(settings.folder / JOB, json.dumps(values, indent=2) + "\n")
        verb = "result"
    else:
        verb = "was done before; result"
    value = objective(rows, settings.best_metric)
    if is_main and value is not None:
        os.write(1, f"{settings.output}: {verb}: {settings.best_metric} {value:.2f}\n".encode())
    return value
