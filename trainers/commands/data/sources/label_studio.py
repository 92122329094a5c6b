"""Exports of Label Studio in JSON (full or `JSON-MIN`): choices for whole videos, labels of a timeline as segments."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from trainers.commands.data.listing import DataError
from trainers.commands.data.sources.items import Item, SourceOptions, class_of, read_json, seconds
from video_datasets.video_files import has_video_suffix

_TIMELINE = "timelinelabels"


def read_tasks(path: Path, options: SourceOptions) -> list[Item]:
    """Return the labels of every task: of the annotation marked as ground truth, or else of its first one.

    Raises:
        DataError: a task is wrong.
    """
    tasks = read_json(path)
    if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
        raise DataError(f"{path}: expected a list of tasks; export as JSON or JSON-MIN")
    items: list[Item] = []
    for number, task in enumerate(tasks):
        location = f"{path}: task {task.get('id', number)}"
        data = task.get("data", task)
        video = _video_of(data, location)
        if "annotations" not in task and "completions" not in task:
            items += _minimal(task, video, options, location)
            continue
        made = [entry for entry in task.get("annotations", task.get("completions")) or [] if isinstance(entry, dict)]
        made = [entry for entry in made if not entry.get("was_cancelled")]
        made.sort(key=lambda entry: not entry.get("ground_truth"))
        for result in made[0].get("result", []) if made else []:
            items += _results(result, video, options, location)
    return items


def _results(result: Mapping[str, Any], video: str, options: SourceOptions, location: str) -> Iterator[Item]:
    """Yield the items of one result; those of other types (boxes, text) have none."""
    kind, value = result.get("type"), result.get("value")
    if options.field is not None and result.get("from_name") != options.field or not isinstance(value, dict):
        return
    if kind == "choices":
        for choice in value.get("choices", []):
            yield Item(video, class_of(choice, options, location), location)
    elif kind == _TIMELINE:
        yield from _timeline(value, video, options, location)
    elif kind == "labels" and {"start", "end"} <= value.keys():  # of the sound of the video, in seconds
        span = seconds(value["start"], location), seconds(value["end"], location)
        for label in value.get("labels", []):
            yield Item(video, class_of(label, options, location), location, *span)


def _timeline(value: Mapping[str, Any], video: str, options: SourceOptions, location: str) -> Iterator[Item]:
    for span in value.get("ranges", []):
        first, last = (span.get("start"), span.get("end")) if isinstance(span, dict) else (None, None)
        if type(first) is not int or type(last) is not int or first < 1:
            raise DataError(f"{location}: {span!r} is not a range of frames, from 1")
        for label in value.get(_TIMELINE, []):
            yield Item(video, class_of(label, options, location), location, frames=(first - 1, last - 1))


def _minimal(task: Mapping[str, Any], video: str, options: SourceOptions, location: str) -> Iterator[Item]:
    """Yield the items of a task of JSON-MIN: the values of the fields that a user made, by their names."""
    own = {"id", "annotator", "annotation_id", "created_at", "updated_at", "lead_time"}
    fields = {name: value for name, value in task.items() if name not in own and value != video}
    if options.field is not None:
        fields = {options.field: fields.get(options.field)}
    for name, value in fields.items():
        if isinstance(value, list):
            for entry in value:
                if isinstance(entry, dict) and _TIMELINE in entry:
                    yield from _timeline(entry, video, options, location)
        elif isinstance(value, dict) and "choices" in value:
            for choice in value["choices"]:
                yield Item(video, class_of(choice, options, location), location)
        elif isinstance(value, str) and (len(fields) == 1 or name in ("choice", "label", "class")):
            yield Item(video, class_of(value, options, location), location)


def _video_of(data: Mapping[str, Any], location: str) -> str:
    """Return the address of the video of a task: the value `video`, or the only one with the suffix of a video."""
    if isinstance(data.get("video"), str):
        return str(data["video"])
    found = [value for value in data.values() if isinstance(value, str) and has_video_suffix(value.split("?")[0])]
    if len(found) != 1:
        raise DataError(f"{location}: names {len(found)} videos in its data; expected one, as `video`")
    return found[0]
