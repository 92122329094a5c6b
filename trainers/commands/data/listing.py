"""Making annotation lists: draws, subsets of classes, counts, and writing all files of a data set together."""

import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from video_datasets.annotations import VideoRecord, labels_text, read_class_names
from video_datasets.segments import split_name
from video_datasets.video_files import FoundVideos

_LOG = logging.getLogger(__name__)
MANIFEST_VERSION = 1


class DataError(ValueError):
    """Data that cannot be prepared as requested; the message is one line that says what to change."""


def report_left_out(root: str | Path, found: FoundVideos) -> None:
    """Log which files below a root are not read as videos, if there are any."""
    left_out = found.left_out()
    if left_out is not None:
        _LOG.warning("%s: %s", root, left_out)


def draw(
    records: Sequence[VideoRecord], count: int, seed: Sequence[int], class_names: Sequence[str], name: str
) -> list[VideoRecord]:
    """Draw `count` videos of every class, by label and then in the order of `records`.

    A class's draw depends only on the seed, its label and its own videos. A draw of more videos contains any draw of
    fewer.

    Args:
        name: name of the list, for the error.

    Raises:
        DataError: a class has too few videos.
    """
    by_label: dict[int, list[VideoRecord]] = {label: [] for label in range(len(class_names))}
    for record in records:
        by_label[record.label].append(record)
    drawn = []
    for label, videos in by_label.items():
        if len(videos) < count:
            raise DataError(f"{name}: needs {count} videos per class, {class_names[label]!r} has {len(videos)}")
        order = np.random.default_rng([*seed, label]).permutation(len(videos))
        drawn += [videos[index] for index in sorted(order[:count])]
    return drawn


def relabel(
    records: Iterable[VideoRecord], class_names: Sequence[str], chosen_names: Sequence[str]
) -> list[VideoRecord]:
    """Keep the videos of the chosen classes; a label becomes the position of its class in `chosen_names`.

    Raises:
        DataError: a chosen name is not among the class names.
    """
    unknown = sorted(set(chosen_names) - set(class_names))
    if unknown:
        raise DataError(f"the class {unknown[0]!r} is not one of the data set's {len(class_names)}")
    new_label = {name: label for label, name in enumerate(chosen_names)}
    return [
        VideoRecord(record.path, new_label[class_names[record.label]])
        for record in records
        if class_names[record.label] in new_label
    ]


def normalized_name(name: str) -> str:
    """Return what all spellings of a class name share: its letters and digits, in lower case."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def list_text(records: Iterable[VideoRecord]) -> str:
    """Return the records as the lines of a list; a segment has four columns.

    Raises:
        DataError: the format cannot hold a path.
    """
    lines = []
    for record in records:
        if record.path != record.path.strip() or any(sign in record.path for sign in "\n\r\t"):
            raise DataError(
                f"{record.path!r}: a list cannot hold a path that begins or ends with a space, or has lines or tabs"
            )
        path, segment = split_name(record.path)
        columns = record.path[len(path) :].removeprefix("#t=").replace(",", "\t")
        labels = labels_text(record.labels)
        lines.append(f"{path} {labels}\n" if segment is None else f"{path}\t{labels}\t{columns}\n")
    return "".join(lines)


def names_text(names: Sequence[str]) -> str:
    """Return class names as a CSV file `id,name`."""
    quoted = [f'"{name.replace(chr(34), chr(34) * 2)}"' if set(name) & set(',"') else name for name in names]
    return "".join(["id,name\n", *(f"{label},{name}\n" for label, name in enumerate(quoted))])


def counts(records: Sequence[VideoRecord]) -> dict[str, int]:
    """Return the size of a list: its videos, its classes, and the fewest and most videos of one of these."""
    by_label = Counter(label for record in records for label in record.labels)
    return {
        "videos": len(records),
        "classes": len(by_label),
        "fewest_a_class": min(by_label.values(), default=0),
        "most_a_class": max(by_label.values(), default=0),
    }


def size_table(lists: Mapping[str, Sequence[VideoRecord]], published: Mapping[str, int | None] | None = None) -> str:
    """Return the sizes of lists as a table, with the sizes of the published lists as last column if given."""
    rows = []
    for name, records in lists.items():
        size = counts(records)
        per_class = f"{size['fewest_a_class']}-{size['most_a_class']}"
        row = [name, f"{size['videos']:,}", str(size["classes"]), per_class]
        if published is not None:
            number = published.get(name)
            row.append("" if number is None else f"{number:,}")
        rows.append(row)
    header = ["list", "videos", "classes", "per class"]
    return table(rows, header if published is None else [*header, "published"])


def read_labels(folder: Path, name: str) -> list[str]:
    """Return the class names of one of this project's files."""
    return read_class_names(folder / f"{name}.csv")


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_together(output: Path, files: Mapping[str, str], manifest_name: str, facts: Mapping[str, object]) -> None:
    """Write text files below a folder, and a manifest with their hashes; on an error none of them is created.

    All are written to a temporary folder first and moved when complete, the manifest last.

    Args:
        output: the folder; created if missing.
        files: relative path -> content.
        manifest_name: file name of the manifest.
        facts: other content of the manifest.

    Raises:
        DataError: the folder cannot be written.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".making-", dir=output))
    except OSError as error:
        raise DataError(f"{output}: cannot be written: {error.strerror or error}") from error
    try:
        hashes = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in files.items()}
        manifest = {"version": MANIFEST_VERSION, **facts, "files": hashes}
        everything = {**files, manifest_name: json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"}
        for name, text in everything.items():
            path = staging / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text.encode())
        for name in everything:
            (output / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(staging / name, output / name)
    except OSError as error:
        raise DataError(f"{output}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def table(rows: Sequence[Sequence[object]], header: Sequence[str]) -> str:
    """Return rows as aligned text: the first column aligned left, all others right."""
    texts = [list(header), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in texts) for column in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in texts
    )
