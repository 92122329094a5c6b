"""Labels in tables and lines: CSV with a header, `path label`, `path frames label`."""

import csv
import io
from collections.abc import Iterator, Mapping
from pathlib import Path

from trainers.commands.data.listing import DataError
from trainers.commands.data.sources.items import Item, SourceOptions, class_of, read_text, seconds, split_of
from video_datasets.annotations import AnnotationError, with_segment
from video_datasets.segments import split_name
from video_datasets.text_files import split_lines

# Names of the columns, in lower case; the first that a table has counts.
COLUMNS = {
    "path": ("path", "file_name", "filename", "filepath", "file", "video", "video_path", "video_id", "id"),
    "label": ("label", "class", "class_name", "action", "category", "labels"),
    "split": ("split", "subset", "set"),
    "start": ("start", "start_s", "start_time", "time_start", "t_start", "begin"),
    "end": ("end", "end_s", "end_time", "time_end", "t_end", "stop"),
    "group": ("group",),
}


def read_csv(path: Path, options: SourceOptions) -> list[Item]:
    """Return the items of a CSV or TSV whose header names `path`, `label`, and perhaps `split`, `start`, `end`.

    Raises:
        DataError: a line is wrong.
    """
    text = read_text(path)
    header = next((line for line in split_lines(text) if line.strip()), "")
    delimiter = max(",\t;", key=header.count)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True, restkey="", restval="")
    try:
        names = [(name or "").strip() for name in reader.fieldnames or []]
        reader.fieldnames = names
        columns = columns_of(names, options, f"{path}:1")
        return [
            item_of(row, columns, options, f"{path}:{reader.line_num}")
            for row in reader
            if _has_all_cells(row, f"{path}:{reader.line_num}")
        ]
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: is not CSV: {error}") from error


def columns_of(names: list[str], options: SourceOptions, location: str) -> dict[str, str]:
    """Return the name of each column of `COLUMNS` that a table has.

    Raises:
        DataError: there is none of paths or of labels.
    """
    by_lower = {name.lower(): name for name in names}
    found = {
        key: next(by_lower[name] for name in known if name in by_lower)
        for key, known in COLUMNS.items()
        if not by_lower.keys().isdisjoint(known)
    }
    if options.field is not None:
        found["label"] = options.field
    if options.group is not None:  # a column, or else a rule
        found.pop("group", None)
        found |= {"group": options.group} if options.group in names else {}
    for key in ("path", "label"):
        if found.get(key) not in names:
            wanted = found.get(key) or " or ".join(COLUMNS[key][:4])
            raise DataError(
                f"{location}: expected the header `path,label`; no column {wanted} among {', '.join(names)}"
            )
    if ("start" in found) != ("end" in found):
        raise DataError(f"{location}: a table with one of the columns start and end needs the other one")
    return found


def item_of(row: Mapping[str, object], columns: Mapping[str, str], options: SourceOptions, location: str) -> Item:
    """Return the item of a row.

    Raises:
        DataError: a cell is wrong.
    """
    cells = {key: row.get(name) for key, name in columns.items()}
    path = str(cells["path"] or "").strip()
    if not path:
        raise DataError(f"{location}: there is no path")
    return Item(
        path,
        class_of(cells["label"], options, location),
        location,
        seconds(cells.get("start"), location),
        seconds(cells.get("end"), location),
        split_of(cells.get("split"), location),
        str(cells["group"]).strip() if cells.get("group") else None,
    )


def _has_all_cells(row: Mapping[str, object], location: str) -> bool:
    if "" in row and row[""]:
        raise DataError(f"{location}: has more cells than the header (quotes around text with a comma)")
    return any(row.values())


def read_list(path: Path, options: SourceOptions) -> list[Item]:
    """Return the items of lines `path label` or, with tabs, `path`, `label`, `start`, `end`.

    Raises:
        DataError: a line is wrong.
    """
    items = []
    for location, line in _lines(path):
        columns = line.split("\t")
        if len(columns) == 4:
            try:
                name = with_segment(location, columns[0], *columns[2:])
            except AnnotationError as error:
                raise DataError(str(error)) from error
            video, segment = split_name(name)
            assert segment is not None
            items.append(Item(video, class_of(columns[1], options, location), location, *segment))
        else:
            video, *label = columns if len(columns) == 2 else line.rsplit(maxsplit=1)
            items.append(Item(video, class_of(label[0] if label else None, options, location), location))
    return _named(items, options, path)


def read_frames_list(path: Path, options: SourceOptions) -> list[Item]:
    """Return the items of lines `path frames label`; the number of frames is not used.

    Raises:
        DataError: a line is wrong.
    """
    items = []
    for location, line in _lines(path):
        words = line.rsplit(maxsplit=2)
        if len(words) != 3 or not words[1].isdecimal():
            raise DataError(f"{location}: expected `path frames label`, found {line[:60]!r}")
        items.append(Item(words[0], class_of(words[2], options, location), location))
    return _named(items, options, path)


def kind_of_lines(path: Path) -> str:
    """Return `list`, or `frames_list` if the word before the label is a number behind the path.

    Raises:
        DataError: it is not clear.
    """
    kinds = set()
    for _, line in _lines(path):
        words = line.rsplit(maxsplit=2)
        is_counted = len(words) == 3 and "\t" not in line and words[1].isdecimal()
        kinds.add("frames_list" if is_counted else "list")
    if len(kinds) != 1:
        raise DataError(f"{path}: are its lines `path label` or `path frames label`? Give --kind list or frames_list")
    return kinds.pop()


def _named(items: list[Item], options: SourceOptions, path: Path) -> list[Item]:
    if options.class_names is None and all(item.label.isdecimal() for item in items):
        raise DataError(f"{path}: its labels are numbers; give their names with --class-names FILE")
    return items


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(split_lines(read_text(path)), start=1):
        if line.strip():
            yield f"{path}:{number}", line.strip()
