"""Readers of labels that other programs wrote: one module per group of formats, in one table.

To add a format: write a function `(path, options) -> list[Item]`, and add its line to `FORMATS`.
"""

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from trainers.commands.data.listing import DataError
from trainers.commands.data.sources.items import Item, SourceOptions, read_text
from video_datasets.text_files import parse_json

Reader = Callable[[Path, SourceOptions], list[Item]]


class Format(NamedTuple):
    """One format: the module of this package and its function, and its name in messages."""

    module: str
    function: str
    title: str


FORMATS = {
    "csv": Format("tables", "read_csv", "a table with a header"),
    "list": Format("tables", "read_list", "lines `path label`"),
    "frames_list": Format("tables", "read_frames_list", "lines `path frames label`"),
    "hf": Format("huggingface", "read_folder", "a folder of Hugging Face datasets"),
    "activitynet": Format("activitynet", "read_segments", "segments as in ActivityNet"),
    "cvat": Format("cvat", "read_xml", "an export of CVAT"),
    "label_studio": Format("label_studio", "read_tasks", "an export of Label Studio"),
    "fiftyone": Format("fiftyone", "read_export", "an export of FiftyOne"),
}
KINDS = ("auto", "folders", *FORMATS)


def read_items(path: Path, kind: str, options: SourceOptions) -> list[Item]:
    """Return what a source labels.

    Args:
        kind: one of `KINDS` except `folders`; `auto`: as the content shows.

    Raises:
        DataError: it cannot be read, or its kind is not clear.
    """
    name = detect(path) if kind == "auto" else kind
    entry = FORMATS[name]
    read: Reader = getattr(importlib.import_module(f"{__name__}.{entry.module}"), entry.function)
    try:
        items = read(path, options)
    except (AttributeError, KeyError, TypeError) as error:  # a value has another type than the format says
        raise DataError(f"{path}: is not {entry.title}: {error} (--kind names another format)") from error
    if not items:
        raise DataError(f"{path}: as {entry.title} it has no labelled video (--kind names another format)")
    return items


def detect(path: Path) -> str:
    """Return the kind of a source: a name of `FORMATS`, or `folders` for a folder without labels in files.

    Raises:
        DataError: it is not clear.
    """
    if path.is_dir():
        return _detect_folder(path)
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv"):
        return "csv"
    if suffix == ".xml":
        return "cvat"
    if suffix in (".jsonl", ".ndjson"):
        return "hf"
    if suffix == ".json":
        return _detect_json(path)
    from trainers.commands.data.sources.tables import kind_of_lines

    return kind_of_lines(path)


def _detect_folder(path: Path) -> str:
    def has(name: str) -> bool:
        return (path / name).is_file() or any(path.glob(f"*/{name}"))

    if (path / "samples.json").is_file() or (path / "labels.json").is_file():
        return "fiftyone"
    if (path / "annotations.xml").is_file():
        return "cvat"
    saved = any(has(name) for name in ("dataset_dict.json", "state.json"))
    if saved or any(has(name) for name in ("metadata.csv", "metadata.jsonl")):
        return "hf"
    return "folders"


def _detect_json(path: Path) -> str:
    try:
        content = parse_json(read_text(path))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: is not JSON: {error.msg}") from error
    except ValueError as error:
        raise DataError(f"{path}: is not JSON: {error}") from error
    first = content[0] if isinstance(content, list) and content else None
    if isinstance(first, dict) and ("annotations" in first or "completions" in first or "annotator" in first):
        return "label_studio"
    if isinstance(content, dict):
        if "samples" in content or isinstance(content.get("labels"), dict):
            return "fiftyone"
        entries = content.get("database", content)
        if isinstance(entries, dict) and any(isinstance(x, dict) and "annotations" in x for x in entries.values()):
            return "activitynet"
    raise DataError(f"{path}: it is not clear what wrote it; name its format with --kind ({', '.join(KINDS[1:])})")
