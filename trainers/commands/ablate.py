"""Run a named list of variants with several seeds, and print a table of mean +- std.

    python scripts/ablate.py temporal_models --output runs/temporal_models --jobs 2
    python scripts/ablate.py temporal_models --output runs/temporal_models --table
    python scripts/ablate.py contextualization epochs=2 --output runs/contextualization --seeds 1 2

A list is a file of configs/ablations: overrides that all runs share, columns (usually data sets) and variants with
their own overrides. It can name a run before all others, whose weights they start from. Every run is a separate process
with its own folder. A second start resumes runs that were stopped, repeats those that failed, and leaves finished ones
unchanged. A run that fails leaves its cell incomplete.
"""

import argparse
import dataclasses
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import yaml

from trainers.checkpoint import BEST
from trainers.commands import convert_checkpoint
from trainers.errors import ConfigError
from trainers.files import write_text
from trainers.paths import CONFIGS, PROGRAM
from trainers.reporting.read_results import read_document, read_json, results_name
from video_datasets.machine import available_cores
from video_datasets.shapes.classes import Settings, ShapesError
from video_datasets.shapes.making import make_shapes

KEYS = {"title", "protocol", "seeds", "shapes", "start", "common", "columns", "parts", "variants"}
START = "start.safetensors"


class AblationError(Exception):
    """A list or a run cannot be used; the message is one line that says what to do."""


@dataclasses.dataclass(frozen=True)
class Ablation:
    """A list of variants.

    Attributes:
        title: heading of the table.
        protocol: of all runs.
        seeds: of the runs of a cell.
        shapes: settings of the shapes data sets that the runs need, by the name of the folder.
        start: overrides of a run of a frame-wise model, `protocol=` among them. All other runs start from its best
            weights, as `trainer.clip_weights`. Without any, there is no such run.
        common: overrides of all runs.
        columns: overrides by column.
        parts: the evaluations of a run that enter the table, val or test, by title. Without any: the last.
        variants: overrides by row.
    """

    title: str
    protocol: str
    seeds: tuple[int, ...]
    shapes: dict[str, dict[str, Any]]
    start: list[str]
    common: list[str]
    columns: dict[str, list[str]]
    parts: dict[str, str]
    variants: dict[str, list[str]]


@dataclasses.dataclass(frozen=True)
class Run:
    """One run: a cell of the table with one seed."""

    column: str
    variant: str
    seed: int
    folder: Path
    command: tuple[str, ...]  # the arguments of the training command


def read_ablation(path: Path) -> Ablation:
    """Read a list.

    Raises:
        AblationError: if it does not exist or is not valid.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        unknown = sorted(content.keys() - KEYS)
        if unknown:
            raise AblationError(f"{path}: unknown key {unknown[0]}; there are {', '.join(sorted(KEYS))}")
        return Ablation(
            title=content["title"],
            protocol=content["protocol"],
            seeds=tuple(content.get("seeds", (1, 2, 3))),
            shapes={name: dict(values or {}) for name, values in content.get("shapes", {}).items()},
            start=_overrides(content.get("start")),
            common=_overrides(content.get("common")),
            columns={str(name): _overrides(value) for name, value in content.get("columns", {"top-1": []}).items()},
            parts=_parts(content.get("parts", {})),
            variants={str(name): _overrides(value) for name, value in content["variants"].items()},
        )
    except FileNotFoundError:
        available = ", ".join(sorted(file.stem for file in path.parent.glob("*.yaml")))
        raise AblationError(f"{path}: no such list; there are {available}") from None
    except (KeyError, AttributeError, TypeError, ValueError, yaml.YAMLError) as error:
        raise AblationError(f"{path}: is not a list of variants ({' '.join(str(error).split())})") from error


def _overrides(value: Any) -> list[str]:
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, str) and "=" in item for item in value):
        raise ValueError(f"overrides are a list of key=value, not {value!r}")
    return value


def _parts(value: dict[str, str]) -> dict[str, str]:
    if not all(part in ("val", "test") for part in value.values()):
        raise ValueError(f"parts are val or test by title, not {value!r}")
    return value


def plan(
    ablation: Ablation, output: Path, seeds: list[int] | None, variants: list[str] | None, extra: list[str]
) -> list[Run]:
    """Return the runs, seed by seed: the table is complete for the first seed early.

    Raises:
        AblationError: if there is no such variant.
    """
    for name in variants or ():
        if name not in ablation.variants:
            raise AblationError(f"no variant {name}; there are {', '.join(ablation.variants)}")
    runs = []
    for seed, column, variant in itertools.product(
        seeds or ablation.seeds, ablation.columns, variants or ablation.variants
    ):
        folder = output / _slug(column) / _slug(variant) / f"seed{seed}"
        own = [*ablation.common, *ablation.columns[column], *ablation.variants[variant], *extra]
        if ablation.start:
            own.append(f"trainer.clip_weights={(output / START).as_posix()}")
        runs.append(_run(ablation, output, (column, variant, seed), folder, ablation.protocol, own))
    return runs


def start_run(ablation: Ablation, output: Path, extra: list[str]) -> Run | None:
    """Return the run whose weights all others start from, if the list has one."""
    if not ablation.start:
        return None
    protocols = [word.partition("=")[2] for word in ablation.start if word.startswith("protocol=")]
    protocol = protocols[-1] if protocols else ablation.protocol
    own = [*(word for word in ablation.start if not word.startswith("protocol=")), *extra]
    return _run(ablation, output, ("start", "start", ablation.seeds[0]), output / "start", protocol, own)


def _run(
    ablation: Ablation, output: Path, cell: tuple[str, str, int], folder: Path, protocol: str, own: list[str]
) -> Run:
    if ablation.shapes:
        own = [*own, f"data_root={(output / 'data').as_posix()}"]
    command = ("-cn", protocol, *own, f"seed={cell[2]}", f"output={folder.as_posix()}")
    return Run(*cell, folder, command)


def write_start(run: Run, target: Path) -> None:
    """Write the best weights of a finished run in CLIP's layout.

    Raises:
        AblationError: if they do not fit it.
    """
    if convert_checkpoint.main([str(run.folder / BEST), str(target), "--to", "clip", "--force"]):
        raise AblationError(f"{run.folder}: its weights cannot be those that other runs start from (see above)")


def _slug(text: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "._-" else "_" for letter in text)


def make_data(ablation: Ablation, output: Path) -> None:
    """Create the shapes data sets that the list needs, unless they exist.

    Raises:
        AblationError, ShapesError: if their settings are not valid.
    """
    for name, values in ablation.shapes.items():
        try:
            settings = Settings(**values)
        except TypeError as error:
            raise AblationError(f"shapes.{name}: {error}") from error
        make_shapes(output / "data" / name, settings)


def run_command(run: Run, threads: int) -> None:
    """Train in a separate process, whose output goes to console.txt.

    Raises:
        AblationError: if it fails.
    """
    run.folder.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    console = run.folder / "console.txt"
    with console.open("w", encoding="utf-8") as file:
        command = [sys.executable, "-m", "trainers.commands.train", *run.command, "logging.progress=lines"]
        done = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=environment, check=False)
    if done.returncode:
        lines = console.read_text(encoding="utf-8").strip().splitlines()
        raise AblationError(f"status {done.returncode}: {lines[-1] if lines else 'no output'} (see {console})")


def settings_of(run: Run) -> list[str]:
    """Return the overrides that a finished run must have been started with."""
    return [word for word in run.command if not word.startswith(("output=", "data_root=", "trainer.clip_weights="))]


def is_finished(run: Run) -> bool:
    """Return whether a run has finished with these settings.

    Raises:
        AblationError: if its folder has a run with other settings.
    """
    note = run.folder / "ablation.json"
    if not note.is_file():
        return False
    started = read_json(note)["settings"]
    if started != settings_of(run):
        differing = sorted(set(started) ^ set(settings_of(run)))
        raise AblationError(
            f"{run.folder}: has a run with other settings ({', '.join(differing) or 'in another order'}): "
            "choose another --output"
        )
    return (run.folder / results_name(None)).is_file()


def run_all(runs: list[Run], jobs: int, start: Callable[[Run, int], None]) -> dict[Run, str]:
    """Start the runs that have not finished, `jobs` at a time; return the errors of those that failed."""
    missing = [run for run in runs if not is_finished(run)]
    log(f"{len(runs)} runs, {len(runs) - len(missing)} of them already finished")
    threads = max(1, available_cores() // jobs)
    errors: dict[Run, str] = {}

    def work(run: Run) -> float:
        run.folder.mkdir(parents=True, exist_ok=True)
        note = json.dumps({"settings": settings_of(run)}, indent=1) + "\n"
        write_text(run.folder / "ablation.json", note)
        began = time.perf_counter()
        start(run, threads)
        return time.perf_counter() - began

    with ThreadPoolExecutor(jobs) as pool:
        futures = {pool.submit(work, run): run for run in missing}
        try:
            for number, future in enumerate(as_completed(futures), 1):
                run = futures[future]
                title = f"[{number}/{len(missing)}] {run.column}, {run.variant}, seed {run.seed}"
                error = future.exception()
                if error is None:
                    log(f"{title}: top-1 {result_of(run)['top1']:.2f} % in {future.result():.0f} s")
                elif isinstance(error, AblationError):
                    errors[run] = str(error)
                    log(f"{title}: failed, {error}")
                else:
                    raise error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return errors


def result_of(run: Run, part: str | None = None) -> dict[str, Any]:
    """Return a row of results of the last weights: of a part, or the final test or else the best validation.

    Raises:
        AblationError: if the run has no such evaluation.
    """
    document = read_document(run.folder / results_name(None))
    rows = [row for row in document["results"] if row["wise_ft"] is None and part in (None, row["part"])]
    if not rows:
        raise AblationError(f"{run.folder}: has no evaluation of {part}")
    return ([row for row in rows if row["part"] == "test"] or rows)[-1]


def cells_of(runs: list[Run], parts: dict[str, str]) -> dict[tuple[str, str], dict[str, Any]]:
    """Return mean and standard deviation of each (variant, column, or column and part) over the finished seeds."""
    results: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for run in runs:
        for title, part in parts.items() if parts else [("", None)]:
            key = (run.variant, f"{run.column}, {title}" if title else run.column)
            results.setdefault(key, []).extend([result_of(run, part)] if is_finished(run) else [])
    return {
        key: {
            "seeds": len(rows),
            "top1": [row["top1"] for row in rows],
            "mean": statistics.fmean(row["top1"] for row in rows) if rows else None,
            "std": statistics.stdev(row["top1"] for row in rows) if len(rows) > 1 else None,
            "chance": rows[0]["chance"] if rows else None,
            "videos": rows[0]["videos"] if rows else None,
        }
        for key, rows in results.items()
    }


def table(ablation: Ablation, cells: dict[tuple[str, str], dict[str, Any]]) -> str:
    """Return the table as Markdown."""
    variants = list(dict.fromkeys(variant for variant, _ in cells))
    columns = list(dict.fromkeys(column for _, column in cells))
    header = [column + _chance([cells[variant, column] for variant in variants]) for column in columns]
    lines = [f"| variant | {' | '.join(header)} |", "|---|" + "---:|" * len(columns)]
    for variant in variants:
        texts = [_cell(cells[variant, column], len(ablation.seeds)) for column in columns]
        lines.append(f"| {variant} | {' | '.join(texts)} |")
    return "\n".join(lines)


def _chance(cells: list[dict[str, Any]]) -> str:
    known = {cell["chance"] for cell in cells if cell["chance"] is not None}
    return f" (chance {known.pop():.1f})" if len(known) == 1 else ""


def _cell(cell: dict[str, Any], num_seeds: int) -> str:
    if not cell["seeds"]:
        return ""
    deviation = "" if cell["std"] is None else f" +- {cell['std']:.1f}"
    return f"{cell['mean']:.1f}{deviation}" + (f" ({cell['seeds']} seeds)" if cell["seeds"] != num_seeds else "")


def log(line: str) -> None:
    """Print a line to standard error."""
    print(line, file=sys.stderr, flush=True)


def main(argv: list[str] | None = None, start: Callable[[Run, int], None] = run_command) -> int:
    """Run the command line; return the exit status: 1 if a run failed, 2 if nothing can be run."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("name", help="a list of configs/ablations, or a file")
    parser.add_argument("overrides", nargs="*", help="more key=value for every run, right after the name")
    parser.add_argument("--output", type=Path, required=True, help="folder of the runs, the data and the table")
    parser.add_argument("--seeds", type=int, nargs="+", help="instead of those of the list")
    parser.add_argument("--variants", nargs="+", help="only these")
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time; the cores are divided among them")
    parser.add_argument("--table", action="store_true", help="only print the table of the finished runs")
    parser.add_argument("--dry-run", action="store_true", help="print the commands and stop")
    options = parser.parse_args(argv)
    try:
        return _main(options, start)
    except (AblationError, ConfigError, ShapesError) as error:
        print(f"ablate: {error}", file=sys.stderr)
        return 2


def _main(options: argparse.Namespace, start: Callable[[Run, int], None]) -> int:
    path = Path(options.name)
    if path.suffix != ".yaml":
        path = CONFIGS / "ablations" / f"{options.name}.yaml"
    ablation = read_ablation(path)
    runs = plan(ablation, options.output, options.seeds, options.variants, _overrides(options.overrides))
    if options.dry_run:
        first = start_run(ablation, options.output, _overrides(options.overrides))
        print("\n".join(_commands([first, *runs] if first else runs)))
        return 0
    errors = {}
    if not options.table:
        make_data(ablation, options.output)
        first = start_run(ablation, options.output, _overrides(options.overrides))
        if first is not None:
            failed = run_all([first], 1, start)
            if failed:
                raise AblationError(f"the run that all others start from failed: {failed[first]}")
            write_start(first, options.output / START)
        errors = run_all(runs, max(1, options.jobs), start)
    cells = cells_of(runs, ablation.parts)
    text = table(ablation, cells)
    print(f"{ablation.title}\n\n{text}")
    options.output.mkdir(parents=True, exist_ok=True)
    write_text(options.output / "table.md", f"{ablation.title}\n\n{text}\n")
    content = [{"variant": variant, "column": column, **cell} for (variant, column), cell in cells.items()]
    facts = {"title": ablation.title, "protocol": ablation.protocol, "common": ablation.common, "cells": content}
    write_text(options.output / "table.json", json.dumps(facts, indent=1) + "\n")
    return 1 if errors else 0


def _commands(runs: list[Run]) -> Iterator[str]:
    for run in runs:
        quoted = [f"'{word}'" if any(letter in word for letter in " [],") else word for word in run.command]
        yield f"{PROGRAM} {' '.join(quoted)}"
