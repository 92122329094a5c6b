"""The ledger: one JSON file per finished run, which others can check, compare and put into one folder.

An entry is the run's results file with the configuration that determines its numbers, hashes, commit, versions,
hardware and time. It names no folder of the machine. `collect_results.py` reads entries like results files.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trainers.config.parts import without_unused_parts
from trainers.files import make_writable, write_text

FORMAT = 1
# Keys (and all below them) of the machine, of what is written, and of speed: they determine no result.
NOT_IN_RECIPE = (
    *("output", "resume", "auto_resume", "dry_run", "debug", "logging"),
    *("data_root", "lists_root", "labels_root", "label_files", "dataset"),
    *("device", "num_workers", "videos_at_once", "test_batch_size", "cuda_graphs", "distributed_timeout"),
    *("save_minutes", "save_updates", "keep", "keep_every", "max_skipped"),
    *("trainer.checkpointing", "trainer.compile"),
    *("data.bad_videos", "data.cache", "data.cache_gb", "data.timeout_s", "data.allow_outside"),
    *("data.isolate", "data.isolate_memory_mb", "data.isolate_timeout_s", "data.decode_on_device"),
    *("data.train.class_names", "data.val.class_names"),  # their content has a hash in each row
)


def recipe_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a configuration (`Settings.to_dict`) determines the numbers of a run, without folders."""
    recipe = _without(without_unused_parts(config), "")
    for section in recipe["data"]["test"]:
        section.pop("class_names", None)
    if config["data"]["cache"] is None or config["data"]["cache_format"] == "raw":  # its pixels are those of the videos
        for name in ("cache_format", "cache_frames"):
            recipe["data"].pop(name, None)
    return recipe


def sha256_of_values(values: Any) -> str:
    """Return the SHA-256 of plain values: of their JSON with sorted keys."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def make_entry(
    document: Mapping[str, Any], config: Mapping[str, Any], environment: Mapping[str, Any], started: datetime
) -> dict[str, Any]:
    """Return the entry of a run that has just finished.

    Args:
        document: its results file.
        config: its configuration, secrets hidden.
        environment: as `environment.json` has it.
        started: when this process began with it, with a time zone.
    """
    finished = datetime.now(UTC)
    recipe = recipe_of(config)
    machine = {name: value for name, value in environment.items() if name not in ("command", "packages")}
    return {
        "ledger_format": FORMAT,
        "started": started.astimezone(UTC).isoformat(timespec="seconds"),
        "finished": finished.isoformat(timespec="seconds"),
        "seconds": round((finished - started).total_seconds(), 1),
        "evaluates": config["eval"],
        "configuration_sha256": sha256_of_values(recipe),
        "configuration": recipe,
        "environment": machine,
        **{name: _without_folders(value) for name, value in document.items()},
    }


def write_entry(folder: Path, entry: Mapping[str, Any]) -> Path:
    """Write an entry into the folder of a ledger; its name says what was run, and two entries never share one.

    Raises:
        ConfigError: if it cannot be written.
    """
    make_writable(folder, "logging.ledger")
    time = re.sub(r"[^0-9T]", "", entry["finished"].partition("+")[0])
    words = [entry["data"], entry["trainer"], *filter(None, [entry["evaluates"]]), time, sha256_of_values(entry)[:8]]
    path = folder / f"results_{re.sub(r'[^A-Za-z0-9_.-]', '-', '_'.join(words))}.json"
    write_text(path, json.dumps(entry, indent=1) + "\n")
    return path


def _without(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    found = {}
    for name, value in values.items():
        if f"{prefix}{name}" not in NOT_IN_RECIPE:
            found[name] = _without(value, f"{prefix}{name}.") if isinstance(value, Mapping) else _without_folders(value)
    return found


def _without_folders(value: Any) -> Any:
    """Return plain values with paths shortened: an absolute one to its name, copied containers."""
    if isinstance(value, Mapping):
        return {name: _without_folders(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_folders(item) for item in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value
