"""Folders of Hugging Face `datasets`: a VideoFolder with metadata, or a saved data set with a column of videos."""

import json
from pathlib import Path
from typing import Any

from trainers.commands.data.listing import DataError
from trainers.commands.data.sources.items import SPLITS, Item, SourceOptions, class_of, read_text
from trainers.commands.data.sources.tables import columns_of, item_of, read_csv
from video_datasets.text_files import parse_json, split_lines


def read_folder(path: Path, options: SourceOptions) -> list[Item]:
    """Return the labels of a folder: of every `metadata.csv` and `metadata.jsonl`, or of a saved data set.

    Paths in a metadata file count from its folder. A folder named like a split gives the split.

    Raises:
        DataError: a file is wrong, or the package `datasets`, which saved data sets need, is missing.
    """
    if path.is_file():
        return _metadata(path, options)
    found = sorted(file for name in ("metadata.csv", "metadata.jsonl") for file in path.rglob(name))
    if found:
        return [item for file in found for item in _metadata(file, options)]
    return _saved(path, options)


def _metadata(path: Path, options: SourceOptions) -> list[Item]:
    items = read_csv(path, options) if path.suffix == ".csv" else _json_lines(path, options)
    folder = path.parent
    try:
        below = folder.resolve().relative_to(options.root.resolve()).as_posix()
    except ValueError:
        below = "."
    split = SPLITS.get(folder.name.lower())
    prefix = "" if below == "." else f"{below}/"
    return [
        Item(f"{prefix}{item.path}", item.label, item.location, item.start, item.end, item.split or split, item.group)
        for item in items
    ]


def _json_lines(path: Path, options: SourceOptions) -> list[Item]:
    items = []
    for number, line in enumerate(split_lines(read_text(path)), start=1):
        if not line.strip():
            continue
        location = f"{path}:{number}"
        try:
            row = parse_json(line)
        except (json.JSONDecodeError, ValueError) as error:
            raise DataError(f"{location}: is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise DataError(f"{location}: expected an object")
        items.append(item_of(row, columns_of(list(row), options, location), options, location))
    return items


def _saved(path: Path, options: SourceOptions) -> list[Item]:
    """Return the labels of a data set that `save_to_disk` wrote; its videos are files, named by their paths."""
    try:
        import datasets  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise DataError(f"{path}: a saved data set needs the package: pip install datasets") from error
    loaded = datasets.load_from_disk(str(path))
    parts = loaded if isinstance(loaded, dict) else {"": loaded}
    items: list[Item] = []
    for split, part in parts.items():
        videos = [name for name, feature in part.features.items() if type(feature).__name__ == "Video"]
        labels = [name for name in ("label", "class", "action") if name in part.features]
        label = options.field or (labels[0] if labels else "")
        if len(videos) != 1 or label not in part.features:
            raise DataError(f"{path}: needs one column of videos and one of labels, has {', '.join(part.features)}")
        names = getattr(part.features[label], "names", None)
        chosen = SourceOptions(options.root, tuple(names), options.group, options.field) if names else options
        for number, row in enumerate(part.cast_column(videos[0], datasets.Video(decode=False))):
            location = f"{path}: {split} {number}"
            items.append(_saved_item(row, videos[0], label, chosen, location, SPLITS.get(split.lower())))
    return items


def _saved_item(
    row: dict[str, Any], video: str, label: str, options: SourceOptions, location: str, split: str | None
) -> Item:
    named = row[video].get("path") if isinstance(row[video], dict) else row[video]
    if not named:
        raise DataError(f"{location}: its videos are not files but bytes inside of the data set; save them as files")
    group = str(row[options.group]) if options.group and row.get(options.group) is not None else None
    return Item(str(named), class_of(row[label], options, location), location, split=split, group=group)
