"""Evaluate the published checkpoints as they were published, and compare every row with its published number.

    python scripts/reproduce.py --checkpoints published --data data --output runs/reproduce

The folder of checkpoints has the files TRAINER/PROTOCOL_DATA[_llm][_SHOTS or _LIST][_p].pth (.pt, .safetensors):
tc_clip/zero_shot_k400.pth, tc_clip/few_shot_hmdb51_16_p.pth, vifi_clip/base2novel_ucf101_1.pth. --list prints all of
them. Lists and videos are checked before a checkpoint is evaluated. A row that cannot be run says why, and the others
follow; started again, the command evaluates only what is new. Further arguments are those of main.py: num_workers=8.

The output folder gets reproduction.json and the results of every evaluation. The exit status is 0 if every row that was
run is within 0.3 of its published number, and 1 if one is not, or none was run.
"""

import argparse
import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path

import yaml

from trainers.commands.reproduction import (
    SUFFIXES,
    TOLERANCE,
    VARIANTS,
    Outcome,
    Row,
    Unit,
    hash_findings,
    known_hashes,
    list_findings,
    published_rows,
    result_findings,
    table,
)
from trainers.commands.shared import make_folder, note
from trainers.config.settings import PROTOCOLS, Part, Settings
from trainers.errors import ConfigError, user_error_types
from trainers.files import write_text
from trainers.paths import CONFIGS
from trainers.reporting.published_numbers import DATASETS
from trainers.reporting.read_results import Document, read_document, results_name

_PAGES = {"tc_clip": "https://github.com/naver-ai/tc-clip links it", "vifi_clip": "the authors' repository links it"}


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    from trainers.config.command_line import composition_errors, one_line_errors

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for every evaluation, as for main.py")
    parser.add_argument("--checkpoints", type=Path, required=True, help="folder of the published checkpoints")
    parser.add_argument("--data", type=Path, help="folder of the data sets, with the lists in lists/ (data_root)")
    parser.add_argument("--lists", type=Path, help="folder of the lists, if it is another (lists_root)")
    parser.add_argument("--output", type=Path, default=Path("runs/reproduce"), help="default: runs/reproduce")
    for name, known in (("trainers", VARIANTS), ("protocols", PROTOCOLS), ("datasets", DATASETS)):
        some = f"some of {','.join(known)} (default: all)"
        parser.add_argument(f"--{name}", type=_some_of(known), default=list(known), metavar="A,B", help=some)
    parser.add_argument("--ledger", type=Path, help="ledger whose hashes of lists are compared (docs/ledger.md)")
    parser.add_argument("--again", action="store_true", help="also evaluate what was evaluated before")
    parser.add_argument("--list", action="store_true", help="print the checkpoints of the rows and whether they exist")
    args = parser.parse_args(argv)
    rows = published_rows(args.trainers, args.protocols, args.datasets)
    if not rows:
        parser.error("no published row has this protocol and data set")
    if args.list:
        print("\n".join(dict.fromkeys(_listed(unit, args.checkpoints) for row in rows for unit in row.units)))
        return 0
    with composition_errors(CONFIGS), one_line_errors():
        for folder in (args.checkpoints, args.data, args.lists, args.ledger):
            if folder is not None and not folder.is_dir():
                raise ConfigError(f"{folder}: no such folder")
        make_folder(args.output)
        compared = reproduce(
            rows,
            args.checkpoints,
            args.output,
            [*_folders(args.data, args.lists), *args.overrides],
            hashes={} if args.ledger is None else known_hashes(args.ledger),
            again=args.again,
        )
    print(table(compared))
    run = [row for row in compared if row["here"] is not None]
    verdicts = [row["within"] for row in run]
    print(
        f"{len(run)} of {len(compared)} rows were run; within +-{TOLERANCE}: {verdicts.count(True)}, "
        f"outside: {verdicts.count(False)}; {args.output / 'reproduction.json'}"
    )
    return 0 if run and False not in verdicts else 1


def reproduce(
    rows: Sequence[Row],
    checkpoints: Path,
    output: Path,
    overrides: Sequence[str],
    hashes: dict[str, dict[str, str]],
    again: bool = False,
) -> list[Document]:
    """Evaluate the units of the rows, and return and write the compared rows.

    Args:
        overrides: of every evaluation.
        hashes: of `known_hashes`.
        again: also evaluate what was evaluated before.

    Raises:
        hydra.errors.HydraException, omegaconf.errors.OmegaConfBaseException, ConfigError: an override is wrong.
    """
    units = list(dict.fromkeys(unit for row in rows for unit in row.units))
    there = [unit for unit in units if _find(unit, checkpoints)[1]]
    # Wrong overrides are errors before any evaluation, also if there is no checkpoint.
    settings = {unit: _settings(unit, checkpoints, output, overrides) for unit in there or units[:1]}
    outcomes = {}
    for unit in units:
        if unit in there:
            note(f"{1 + there.index(unit)}/{len(there)} {unit.folder}")
            outcomes[unit] = _outcome(unit, settings[unit], hashes, again)
        else:
            path = _find(unit, checkpoints)[0]
            outcomes[unit] = Outcome(None, f"no checkpoint; put it at {path} ({_PAGES[unit.trainer]})")
    compared = [row.compare(outcomes) for row in rows]
    write_text(output / "reproduction.json", json.dumps({"tolerance": TOLERANCE, "rows": compared}, indent=2) + "\n")
    return compared


def _settings(unit: Unit, checkpoints: Path, output: Path, overrides: Sequence[str]) -> Settings:
    import torch

    from trainers.config.compose import compose_config

    precision = "fp16" if torch.cuda.is_available() else "fp32"  # published; CPUs have none
    found = [*unit.overrides(), f"resume={_quoted(_find(unit, checkpoints)[0])}", f"precision={precision}"]
    found += [f"output={_quoted(output / unit.folder)}", "data.max_bad_share=1", "logging.tensorboard=false"]
    settings = compose_config(unit.protocol, [*found, "logging.pictures=false", "logging.report=false", *overrides])
    if unit.protocol == "zero_shot":  # the row's data set alone: another can be missing
        tests = [section for section in settings.data.test if section["dataset"] == unit.dataset]
        settings = replace(settings, data=replace(settings.data, test=tests))
    return settings


def _outcome(unit: Unit, settings: Settings, hashes: dict[str, dict[str, str]], again: bool) -> Outcome:
    """Check lists and videos of a unit, evaluate it, and say what can explain a difference."""
    try:
        findings, missing = _check_data(unit, settings)
        document = None if again else _earlier(settings)
        if document is None:
            from trainers.run import run

            run(settings)
            document = read_document(settings.folder / results_name(settings.eval))
    except Exception as error:
        if not isinstance(error, (*user_error_types(), RuntimeError, OSError)):
            raise
        return Outcome(None, " ".join(str(error).split()))  # the other rows go on
    findings += hash_findings(document, hashes) + result_findings(document, unit.variant, missing)
    return Outcome(document, None, findings)


def _check_data(unit: Unit, settings: Settings) -> tuple[list[str], int]:
    """Return how the lists differ from the published ones, and how many videos are missing.

    Raises:
        ConfigError: a list is missing, or all of its videos are.
        AnnotationError, VideoFilesError: a list is wrong, or there is no folder of videos.
    """
    from trainers import build
    from trainers.config.lists import list_entries

    parts: tuple[Part, ...] = ("val", "test") if unit.protocol == "base2novel" else (settings.eval or "test",)
    for part in parts:
        for entry in list_entries(settings, part):
            if not entry.class_names_path.is_file():
                advice = "; scripts/data/import_splits.py copies FROSTER's names" if unit.variant == "LLM" else ""
                raise ConfigError(f"{entry.name}: no class names at {entry.class_names_path}{advice}")
            if not entry.list_path.is_file():
                raise ConfigError(f"{entry.name}: no list at {entry.list_path} (lists_root; DATASETS.md)")
    findings, total = [], 0
    lists = build.read_lists(settings, parts)
    for part in parts:
        for entry, videos in zip(list_entries(settings, part), lists[part], strict=True):
            missing = videos.missing()
            if len(missing) == len(videos.records):
                raise ConfigError(f"{entry.name}: none of its {len(missing):,} videos is in {entry.root}; {missing[0]}")
            findings += list_findings(entry.name, entry.list_name, len(videos.records), len(missing))
            total += len(missing)
    return findings, total


def _earlier(settings: Settings) -> Document | None:
    """Return the results of an earlier evaluation of the same checkpoint, lists and configuration, if there are any."""
    from trainers.reporting.ledger import recipe_of
    from trainers.reporting.write_results import sha256_if_there, sha256_of

    path = settings.folder / results_name(settings.eval)
    config = settings.folder / f"eval_{settings.eval}_config.yaml"
    if not (path.is_file() and config.is_file()):
        return None
    document = read_document(path)
    same = document["weights_sha256"] == sha256_of(Path(str(settings.resume)))
    same = same and recipe_of(yaml.safe_load(config.read_text(encoding="utf-8"))) == recipe_of(settings.to_dict())
    hashes = {
        found[name]: found[f"{name}_sha256"]
        for row in document["results"]
        for found in (row["files"],)
        for name in ("list", "class_names")
    }
    same = same and all(sha256_if_there(Path(file)) == known for file, known in hashes.items())
    return document if same else None


def _some_of(known: Collection[str]) -> Callable[[str], list[str]]:
    """Return an argparse type: known words with commas between them."""

    def read(text: str) -> list[str]:
        unknown = [word for word in text.split(",") if word not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {','.join(known)}")
        return text.split(",")

    return read


def _find(unit: Unit, checkpoints: Path) -> tuple[Path, bool]:
    """Return the checkpoint of a unit, and whether it exists."""
    paths = [checkpoints / f"{unit.checkpoint}{suffix}" for suffix in SUFFIXES]
    return next(((path, True) for path in paths if path.is_file()), (paths[0], False))


def _listed(unit: Unit, checkpoints: Path) -> str:
    path, exists = _find(unit, checkpoints)
    return f"{'found  ' if exists else 'missing'}  {path}"


def _folders(data: Path | None, lists: Path | None) -> list[str]:
    found = [] if data is None else [f"data_root={_quoted(data)}"]
    lists = lists if lists is not None or data is None else data / "lists"
    return found + ([] if lists is None else [f"lists_root={_quoted(lists)}"])


def _quoted(path: Path) -> str:
    """Return a path as a value of the command line's grammar."""
    text = str(path).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{text}'"
