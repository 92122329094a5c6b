"""Exports of FiftyOne: `labels.json` (classes or temporal detections) and `samples.json` (FiftyOneDataset)."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from trainers.commands.data.listing import DataError
from trainers.commands.data.sources.items import SPLITS, Item, SourceOptions, class_of, read_json, seconds


def read_export(path: Path, options: SourceOptions) -> list[Item]:
    """Return the labels of an export, from its folder or its file.

    Raises:
        DataError: an entry is wrong, or there are several fields of labels.
    """
    if path.is_dir():
        path = path / ("samples.json" if (path / "samples.json").is_file() else "labels.json")
    content = read_json(path)
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected an object with `labels` or `samples`")
    if isinstance(content.get("samples"), list):
        return list(_samples(content["samples"], options, path))
    if not isinstance(content.get("labels"), dict):
        raise DataError(f"{path}: has neither `labels` nor `samples`")
    classes = content.get("classes")
    if isinstance(classes, list) and options.class_names is None:
        options = SourceOptions(options.root, tuple(map(str, classes)), options.group, options.field)
    items: list[Item] = []
    for name, labels in content["labels"].items():
        location = f"{path}: {name}"
        for label in labels if isinstance(labels, list) else [] if labels is None else [labels]:
            items.append(_item(name, label, options, location))
    return items


def _item(video: str, label: object, options: SourceOptions, location: str, split: str | None = None) -> Item:
    """Return the item of a class, or of a temporal detection: frames from 1, or seconds."""
    if not isinstance(label, dict):
        return Item(video, class_of(label, options, location), location, split=split)
    name = class_of(label.get("label"), options, location)
    support, times = label.get("support"), label.get("timestamps")
    if isinstance(times, list) and len(times) == 2:
        start, end = (seconds(time, location) for time in times)
        return Item(video, name, location, start, end, split)
    if support is None:
        return Item(video, name, location, split=split)
    if not (isinstance(support, list) and len(support) == 2 and all(type(n) is int and n > 0 for n in support)):
        raise DataError(f"{location}: the support {support!r} is not two frames, from 1")
    return Item(video, name, location, split=split, frames=(support[0] - 1, support[1] - 1))


def _samples(samples: list[Any], options: SourceOptions, path: Path) -> Iterator[Item]:
    fields = {field for sample in samples if isinstance(sample, dict) for field, _ in _label_fields(sample)}
    if options.field is not None:
        fields &= {options.field}
    if len(fields) != 1:
        raise DataError(f"{path}: has the fields of labels {sorted(fields)}; name one with --field")
    (field,) = fields
    for number, sample in enumerate(samples):
        location = f"{path}: sample {number}"
        if not isinstance(sample, dict) or not isinstance(sample.get("filepath"), str):
            raise DataError(f"{location}: has no filepath")
        splits = {SPLITS[tag.lower()] for tag in sample.get("tags") or [] if str(tag).lower() in SPLITS}
        if len(splits) > 1:
            raise DataError(f"{location}: has the tags of several splits")
        for name, labels in _label_fields(sample):
            if name == field:
                for label in labels:
                    yield _item(sample["filepath"], label, options, location, *splits)


def _label_fields(sample: Mapping[str, Any]) -> Iterator[tuple[str, list[Any]]]:
    """Yield the fields with classes or temporal detections, with their labels."""
    for name, value in sample.items():
        kind = value.get("_cls") if isinstance(value, dict) else None
        if kind in ("Classification", "TemporalDetection"):
            yield name, [value]
        elif kind in ("Classifications", "TemporalDetections"):
            yield name, list(value.get("classifications") or value.get("detections") or [])
