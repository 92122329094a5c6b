"""Reads the official annotation files of data sets into records with this project's labels.

A label is the position in the published order of class names, whatever numbers or order the official files have. A
mistake in a file is a DataError that names file and line.
"""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from trainers.commands.data.listing import DataError, normalized_name
from video_datasets.annotations import VideoRecord
from video_datasets.text_files import parse_json


def read_ucf101(folder: Path, class_names: Sequence[str]) -> dict[str, list[VideoRecord]]:
    """Read `trainlist0x.txt`, `testlist0x.txt` and `classInd.txt`: train1, val1, train2, ... with flat file names."""
    label_of = {name: label for label, name in enumerate(class_names)}
    index = _one_file(folder, "classInd.txt")
    for location, line in _lines(index):
        number, name = _cells(location, line, "number name")
        if label_of.get(name) is None or number != str(label_of[name] + 1):
            raise DataError(f"{location}: class {line!r} contradicts the published order of classes")
    parts = {}
    for split in (1, 2, 3):
        for part, name in (("train", f"trainlist0{split}.txt"), ("val", f"testlist0{split}.txt")):
            records = []
            for location, line in _lines(_one_file(folder, name)):
                path, number = line, ""
                if part == "train":
                    path, number = _cells(location, line, "Class/video.avi number")
                class_name, _, video = path.partition("/")
                if class_name not in label_of or not video:
                    raise DataError(f"{location}: expected Class/video.avi with a class of UCF-101, found {path!r}")
                if number and number != str(label_of[class_name] + 1):
                    raise DataError(f"{location}: {path!r} has number {number}, its class {label_of[class_name] + 1}")
                records.append(VideoRecord(video, label_of[class_name]))
            parts[f"{part}{split}"] = records
    return parts


def read_hmdb51(folder: Path, class_names: Sequence[str]) -> dict[str, list[VideoRecord]]:
    """Read `<class>_test_split<n>.txt` (1: training, 2: test, 0: neither): train1, val1, train2, ..."""
    parts: dict[str, list[VideoRecord]] = {}
    for split in (1, 2, 3):
        train, val = parts.setdefault(f"train{split}", []), parts.setdefault(f"val{split}", [])
        for label, name in enumerate(class_names):
            for location, line in _lines(_one_file(folder, f"{name.replace(' ', '_')}_test_split{split}.txt")):
                video, use = _cells(location, line, "video.avi 0, 1 or 2")
                if use not in ("0", "1", "2"):
                    raise DataError(f"{location}: expected 0, 1 or 2 after the video, found {use!r}")
                if use != "0":
                    (train if use == "1" else val).append(VideoRecord(video, label))
    return parts


def read_ssv2(folder: Path, class_names: Sequence[str]) -> dict[str, list[VideoRecord]]:
    """Read `train.json` and `validation.json` (with any prefix): train and validation, by their templates."""
    label_of = {normalized_name(name): label for label, name in enumerate(class_names)}
    parts = {}
    for part in ("train", "validation"):
        path = _one_file(folder, f"{part}.json", f"*-{part}.json")
        try:
            entries = parse_json(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise DataError(f"{path}:{getattr(error, 'lineno', 1)}: is not JSON: {error}") from error
        if not isinstance(entries, list):
            raise DataError(f'{path}: expected a list of {{"id", "template"}}')
        records = []
        for number, entry in enumerate(entries):
            location = f"{path}: entry {number}"
            video, template = (entry.get(key) if isinstance(entry, dict) else None for key in ("id", "template"))
            if not isinstance(video, str | int) or not isinstance(template, str):
                raise DataError(f'{location}: expected "id" and "template"')
            label = label_of.get(normalized_name(template))
            if label is None:
                raise DataError(f"{location}: the template {template!r} is not a class of Something-Something v2")
            records.append(VideoRecord(f"{video}.webm", label))
        parts[part] = records
    return parts


def read_kinetics(path: Path, part: str, class_names: Sequence[str]) -> list[VideoRecord]:
    """Read a CSV with the columns label, youtube_id, time_start, time_end: `part/<id>_<start>_<end>.mp4`.

    Repeated lines, which the published files have, are dropped.
    """
    label_of = {normalized_name(name): label for label, name in enumerate(class_names)}
    needed = ("label", "youtube_id", "time_start", "time_end")
    records: dict[str, tuple[int, int]] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = [name for name in needed if name not in (reader.fieldnames or ())]
            if missing:
                raise DataError(f"{path}:1: the column {missing[0]} is missing; expected {', '.join(needed)}")
            for row in reader:
                location = f"{path}:{reader.line_num}"
                if any(not row[name] for name in needed):
                    raise DataError(f"{location}: an empty cell among {', '.join(needed)}")
                label = label_of.get(normalized_name(row["label"]))
                if label is None:
                    raise DataError(f"{location}: the label {row['label']!r} is not a class of this data set")
                try:
                    start, end = (round(float(row[name])) for name in ("time_start", "time_end"))
                except ValueError:
                    raise DataError(f"{location}: the times must be numbers of seconds") from None
                video = f"{part}/{row['youtube_id']}_{start:06d}_{end:06d}.mp4"
                if records.setdefault(video, (label, reader.line_num))[0] != label:
                    raise DataError(f"{location}: {video} has a different label in line {records[video][1]}")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: is not CSV text: {error}") from error
    return [VideoRecord(video, label) for video, (label, _) in records.items()]


def kinetics_file(folder: Path, part: str) -> Path:
    """Return the CSV of train, val or test (also as `validate.csv`, `kinetics_400_train.csv` and the like)."""
    other = {"val": "validate"}.get(part, part)
    return _one_file(folder, f"{part}.csv", f"{other}.csv", f"*_{part}.csv", f"*_{other}.csv")


def _one_file(folder: Path, *patterns: str) -> Path:
    """Return the only file below a folder that matches the first pattern with a match."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of annotation files")
    for pattern in patterns:
        found = sorted(folder.rglob(pattern))
        if len(found) > 1:
            raise DataError(f"{folder}: {pattern} is found twice: {found[0]} and {found[1]}; give one's folder")
        if found:
            return found[0]
    raise DataError(f"{folder}: no {' or '.join(patterns)} in it or its sub-folders")


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield (file:line, content) of every line that is not empty."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"{path}:{number}", line.strip()


def _cells(location: str, line: str, expected: str) -> tuple[str, str]:
    """Split a line at its last space."""
    parts = line.rsplit(maxsplit=1)
    if len(parts) != 2:
        raise DataError(f"{location}: expected `{expected}`, found {line!r}")
    return parts[0], parts[1]
