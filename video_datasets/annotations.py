"""Annotation lists and class-name files: text on disk to checked Python values.

Both formats of each kind that published TC-CLIP, ViFi-CLIP and X-CLIP runs use are read unchanged. Every mistake is an
error of one line that starts with the file and, if known, the line.
"""

import csv
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from video_datasets.segments import segment_name
from video_datasets.text_files import parse_json, read_text_file, split_lines, whole_number

NO_CLASS = -1  # label of a video without a class


class AnnotationError(ValueError):
    """An annotation list or class-name file with a mistake; the message starts with `file:line: ` or `file: `."""


@dataclass(frozen=True, slots=True)
class VideoRecord:
    """One listed video: its path as written in the list, and its class (0-based).

    The path of a segment ends in `#t=start,end` (`video_datasets.segments`). In a list with several classes a video,
    `others` has those after the first, and a video without a class has the label `NO_CLASS`.
    """

    path: str
    label: int
    others: tuple[int, ...] = ()

    @property
    def labels(self) -> tuple[int, ...]:
        """All classes of the video; none or several only in lists that were read with `multi_label`."""
        return () if self.label == NO_CLASS else (self.label, *self.others)


def read_annotations(path: str | Path, num_classes: int | None = None, multi_label: bool = False) -> list[VideoRecord]:
    """Read an annotation list: lines `relative/path.mp4 label`, or `.json`: `[{"filename": ..., "label": [int]}, ...]`.

    A segment of a video, in seconds, has a line of four columns with tabs between them, `path`, `label`, `start`,
    `end`, or the entries `start` and `end`. Paths may contain spaces. Blank lines, a byte order mark and the line ends
    of Windows and old Macs are tolerated.

    Args:
        multi_label: whether a video can have any number of classes: `3,7`, or `-` for none; in JSON `[3, 7]` and `[]`.

    Raises:
        AnnotationError: the file is missing, empty or not text, a label is not an integer in `[0, num_classes)`, a
            video is listed twice, or has not one class without `multi_label`.
    """
    path = Path(path)
    text = _read_text(path)
    entries = _json_entries(path, text) if path.suffix.lower() == ".json" else _line_entries(path, text)

    records: list[VideoRecord] = []
    seen: dict[str, tuple[str, tuple[int, ...]]] = {}
    for location, video, labels in entries:
        for label in labels:
            if label < 0 or (num_classes is not None and label >= num_classes):
                valid = f"0..{num_classes - 1}" if num_classes is not None else "0 or more"
                raise AnnotationError(f"{location}: label {label} of {video!r} is out of range, labels are {valid}")
            if labels.count(label) > 1:
                raise AnnotationError(f"{location}: {video!r} has the label {label} twice")
        if len(labels) != 1 and not multi_label:
            raise AnnotationError(
                f"{location}: {video!r} has {labels_text(labels) if labels else 'no class'}, one class is needed here; "
                "training and evaluation take any number of classes with loss=sigmoid"
            )
        if video in seen:
            first_location, first = seen[video]
            what = (
                "again"
                if first == labels
                else f"with label {labels_text(labels)}, before with label {labels_text(first)}"
            )
            raise AnnotationError(f"{location}: {video!r} is listed {what}; first at {first_location}")
        seen[video] = (location, labels)
        records.append(VideoRecord(video, labels[0], labels[1:]) if labels else VideoRecord(video, NO_CLASS))
    if not records:
        raise AnnotationError(f"{path}: the list has no videos")
    return records


def labels_text(labels: Iterable[int]) -> str:
    """Return the labels of a video as a list has them: `3`, `3,7`, or `-` for none."""
    return ",".join(map(str, labels)) or "-"


def read_class_names(path: str | Path) -> list[str]:
    """Read class names in the order of their ids, from CSV `id,name` with a header line or from JSON `{"0": "name"}`.

    Raises:
        AnnotationError: the ids are not exactly `0..n-1`, or a name is empty or given twice.
    """
    path = Path(path)
    text = _read_text(path)
    entries = _json_names(path, text) if path.suffix.lower() == ".json" else _csv_names(path, text)

    names: dict[int, str] = {}
    first_of_name: dict[str, int] = {}
    for location, class_id, name in entries:
        if not name:
            raise AnnotationError(f"{location}: class {class_id} has an empty name")
        if class_id in names:
            raise AnnotationError(f"{location}: class {class_id} is named twice, {names[class_id]!r} and {name!r}")
        if name in first_of_name:
            raise AnnotationError(f"{location}: classes {first_of_name[name]} and {class_id} share the name {name!r}")
        names[class_id] = name
        first_of_name[name] = class_id
    if not names:
        raise AnnotationError(f"{path}: the file has no classes")
    missing = [class_id for class_id in range(len(names)) if class_id not in names]
    if missing:
        odd = sorted(class_id for class_id in names if not 0 <= class_id < len(names))
        raise AnnotationError(
            f"{path}: the ids of {len(names)} classes are 0..{len(names) - 1}, "
            f"but {missing[0]} is missing and {odd[0]} is used"
        )
    return [names[class_id] for class_id in range(len(names))]


def _read_text(path: Path) -> str:
    try:
        return read_text_file(path)
    except OSError as error:
        raise AnnotationError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise AnnotationError(f"{path}: {error}") from error


def _read_json(path: Path, text: str) -> object:
    try:
        return parse_json(text, object_pairs_hook=_Pairs)
    except json.JSONDecodeError as error:
        raise AnnotationError(f"{path}:{error.lineno}: is not JSON: {error.msg}") from error
    except ValueError as error:
        raise AnnotationError(f"{path}: is not JSON: {error}") from error


class _Pairs(list[tuple[str, object]]):
    """The items of a JSON object, kept as a list so that repeated keys are detected."""


def _line_entries(path: Path, text: str) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    for number, line in enumerate(split_lines(text), start=1):
        line = line.strip()
        if not line:
            continue
        location = f"{path}:{number}"
        start = end = None
        if len(columns := line.split("\t")) == 4:
            line, start, end = "\t".join(columns[:2]), *columns[2:]
        parts = line.rsplit(maxsplit=1)
        if len(parts) != 2:
            raise AnnotationError(f"{location}: expected `path label`, found {_short(line)}")
        try:
            labels = () if parts[1] == "-" else tuple(map(whole_number, parts[1].split(",")))
        except ValueError:
            raise AnnotationError(
                f"{location}: expected `path label`, the label {_short(parts[1])} is not an integer"
            ) from None
        yield location, with_segment(location, parts[0], start, end), labels


def with_segment(location: str, video: str, start: object, end: object) -> str:
    """Return the path of a video with its segment, if it has one.

    Raises:
        AnnotationError: the times, in seconds, are wrong; the message begins with `location`.
    """
    if start is None and end is None:
        return video
    try:
        if isinstance(start, bool) or isinstance(end, bool):
            raise TypeError
        return segment_name(video, float(start), float(end))  # type: ignore[arg-type]
    except TypeError:
        raise AnnotationError(
            f"{location}: {video!r} needs both start and end in seconds, or none, found {_short([start, end])}"
        ) from None
    except (ValueError, OverflowError) as error:  # a whole number can be too large
        raise AnnotationError(f"{location}: {video!r}: {error}") from None


def _json_entries(path: Path, text: str) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    document = _read_json(path, text)
    if not isinstance(document, list) or isinstance(document, _Pairs):
        raise AnnotationError(f'{path}: expected a list of {{"filename": ..., "label": [...]}}')
    for number, pairs in enumerate(document):
        location = f"{path}: entry {number}"
        entry = dict(pairs) if isinstance(pairs, _Pairs) else {}
        video, label = entry.get("filename"), entry.get("label")
        labels: list[Any] = label if isinstance(label, list) and not isinstance(label, _Pairs) else [label]
        if not isinstance(video, str) or not video.strip():
            raise AnnotationError(f'{location}: has no "filename"')
        if not all(isinstance(item, int) and not isinstance(item, bool) for item in labels):
            raise AnnotationError(f'{location}: the "label" of {video!r} must be one integer, found {_short(label)}')
        yield location, with_segment(location, video, entry.get("start"), entry.get("end")), tuple(labels)


def _csv_names(path: Path, text: str) -> Iterator[tuple[str, int, str]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        first = True
        for row in reader:
            if not any(cell.strip() for cell in row):
                continue
            header, first = first and [cell.strip().lower() for cell in row] == ["id", "name"], False
            if header:
                continue
            location = f"{path}:{reader.line_num}"
            if len(row) != 2:
                raise AnnotationError(
                    f"{location}: expected `id,name` (quotes around a name with commas), found {len(row)} cells"
                )
            try:
                class_id = whole_number(row[0])
            except ValueError:
                raise AnnotationError(f"{location}: the id {_short(row[0])} is not an integer") from None
            yield location, class_id, row[1].strip()
    except csv.Error as error:
        raise AnnotationError(f"{path}:{reader.line_num}: is not CSV: {error}") from error


def _json_names(path: Path, text: str) -> Iterator[tuple[str, int, str]]:
    document = _read_json(path, text)
    if not isinstance(document, _Pairs):
        raise AnnotationError(f'{path}: expected an object {{"0": "name", ...}}')
    for key, name in document:
        try:
            class_id = whole_number(key)
        except ValueError:
            raise AnnotationError(f"{path}: the id {_short(key)} is not an integer") from None
        if not isinstance(name, str):
            raise AnnotationError(f"{path}: the name of class {key} is not text: {_short(name)}")
        yield str(path), class_id, name.strip()


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
