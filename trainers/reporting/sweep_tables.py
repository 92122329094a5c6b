"""Tables of sweeps: a row for each combination of swept values, top-1 as mean and deviation over the seeds."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from trainers.errors import ConfigError
from trainers.metrics import mean_and_std
from trainers.reporting.read_results import is_averaged, read_documents, read_json, rows_of
from trainers.sweeps import JOB


def sweep_tables(folders: Iterable[Path]) -> tuple[list[str], list[str]]:
    """Return a Markdown table for each sweep below the folders, and notes on jobs that cannot be read."""
    jobs: dict[Path, list[tuple[dict[str, str], list[dict[str, Any]]]]] = {}
    notes = []
    for path in sorted({path for folder in folders for path in folder.rglob(JOB)}):
        try:
            values = {str(key): str(value) for key, value in read_json(path).items()}
            rows = [row for row in rows_of(read_documents(path.parent).values()) if row["top1"] is not None]
            jobs.setdefault(path.parent.parent, []).append((values, rows))
        except (ConfigError, KeyError, TypeError, AttributeError) as error:
            notes.append(f"{path}: left out ({error!r})")
    return [_table(folder, found) for folder, found in jobs.items()], notes


def _table(folder: Path, jobs: list[tuple[dict[str, str], list[dict[str, Any]]]]) -> str:
    keys = list(dict.fromkeys(key for values, _ in jobs for key in values if key != "seed"))
    cells: dict[tuple[str, ...], dict[str, list[float]]] = {}
    for values, rows in jobs:
        group = cells.setdefault(tuple(values.get(key, "") for key in keys), {})
        for row in rows:
            group.setdefault(_column(row), []).append(float(row["top1"]))
    columns = list(dict.fromkeys(column for group in cells.values() for column in group))
    head = [*(f"`{key}`" for key in keys), "seeds", *columns]
    lines = [f"### {folder}, top-1 in percent", "", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for values_of, group in sorted(cells.items(), key=lambda item: [_order(value) for value in item[0]]):
        texts = [_mean(group.get(column, [])) for column in columns]
        seeds = max((len(found) for found in group.values()), default=0)
        lines.append(f"| {' | '.join([*values_of, str(seeds), *texts])} |")
    return "\n".join(lines) + "\n"


def _column(row: Mapping[str, Any]) -> str:
    ensemble = "" if row.get("wise_ft") is None else f", wise_ft={row['wise_ft']:g}"
    averaged = ", averaged" if is_averaged(row) else ""
    return f"{row['name']} ({row['part']}{averaged}{ensemble})"


def _mean(values: list[float]) -> str:
    mean, std = mean_and_std(values) if values else (0.0, 0.0)
    return "" if not values else f"{mean:.2f}" + (f" +- {std:.2f}" if len(values) > 1 else "")


def _order(value: str) -> tuple[float, str]:
    try:
        return float(value), ""
    except ValueError:
        return float("inf"), value
