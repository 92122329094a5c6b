"""Segments in JSON as ActivityNet publishes them: videos by their names, each with a subset and a list of segments."""

from pathlib import Path

from trainers.commands.data.listing import DataError
from trainers.commands.data.sources.items import Item, SourceOptions, class_of, read_json, seconds, split_of


def read_segments(path: Path, options: SourceOptions) -> list[Item]:
    """Return the segments of `{"database": {"NAME": {"subset": ..., "annotations": [...]}}}`.

    An annotation is `{"segment": [start, end], "label": ...}`. The object `database` can be the whole file. Videos
    without annotations (the test set) are left out.

    Raises:
        DataError: an entry is wrong.
    """
    content = read_json(path)
    entries = content.get("database", content) if isinstance(content, dict) else None
    if not isinstance(entries, dict):
        raise DataError(f'{path}: expected {{"database": {{"name": {{"annotations": [...]}}}}}}')
    items = []
    for name, entry in entries.items():
        if not isinstance(entry, dict) or not isinstance(entry.get("annotations"), list):
            continue
        split = split_of(entry.get("subset"), f"{path}: {name}")
        for number, annotation in enumerate(entry["annotations"]):
            location = f"{path}: {name}: annotation {number}"
            segment = annotation.get("segment") if isinstance(annotation, dict) else None
            if not isinstance(segment, list) or len(segment) != 2:
                raise DataError(f'{location}: expected {{"segment": [start, end], "label": ...}}')
            start, end = (seconds(time, location) for time in segment)
            items.append(Item(name, class_of(annotation.get("label"), options, location), location, start, end, split))
    return items
