"""Annotation lists in the making: draws, halves, what they hold in numbers, and writing them all or not at all."""

import hashlib
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from video_datasets.annotations import VideoRecord, read_class_names
from video_datasets.video_files import FolderFiles, TarFiles, VideoFiles, has_video_suffix

MANIFEST_VERSION = 1


class DataError(ValueError):
    """Data that cannot be prepared as asked; the message is one line that says what to do."""


def draw(
    records: Sequence[VideoRecord], count: int, seed: Sequence[int], class_names: Sequence[str], what: str
) -> list[VideoRecord]:
    """Draw `count` videos of every class, by label and then in the order of `records`.

    A class's draw follows from the seed, its label and its own videos alone, and one of more videos contains one of
    fewer.

    Args:
        what: the list that is made, for the error.

    Raises:
        DataError: a class has fewer videos.
    """
    by_label: dict[int, list[VideoRecord]] = {label: [] for label in range(len(class_names))}
    for record in records:
        by_label[record.label].append(record)
    drawn = []
    for label, videos in by_label.items():
        if len(videos) < count:
            raise DataError(f"{what}: {count} videos a class are wanted, {class_names[label]!r} has {len(videos)}")
        order = np.random.default_rng([*seed, label]).permutation(len(videos))
        drawn += [videos[index] for index in sorted(order[:count])]
    return drawn


def relabel(
    records: Iterable[VideoRecord], class_names: Sequence[str], chosen_names: Sequence[str]
) -> list[VideoRecord]:
    """Keep the videos of some classes, with labels that count within these.

    Raises:
        DataError: a chosen name is not among the class names.
    """
    unknown = sorted(set(chosen_names) - set(class_names))
    if unknown:
        raise DataError(f"the class {unknown[0]!r} is not one of the data set's {len(class_names)}")
    place = {name: index for index, name in enumerate(chosen_names)}
    return [
        VideoRecord(record.path, place[class_names[record.label]])
        for record in records
        if class_names[record.label] in place
    ]


def all_videos(files: VideoFiles) -> list[str]:
    """Return the path of every video below a root, sorted."""
    if isinstance(files, TarFiles):
        names = sorted(files.members)
    else:
        assert isinstance(files, FolderFiles)
        root = Path(files.root)
        names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
    return [name for name in names if has_video_suffix(name)]


def list_text(records: Iterable[VideoRecord]) -> str:
    """Return the records as the lines of a list.

    Raises:
        DataError: a path that the format cannot hold.
    """
    lines = []
    for record in records:
        if record.path != record.path.strip() or "\n" in record.path or "\r" in record.path:
            raise DataError(f"{record.path!r}: a list cannot hold a path that begins or ends with a space or has lines")
        lines.append(f"{record.path} {record.label}\n")
    return "".join(lines)


def names_text(names: Sequence[str]) -> str:
    """Return class names as a CSV file `id,name`."""
    quoted = [f'"{name.replace(chr(34), chr(34) * 2)}"' if set(name) & set(',"') else name for name in names]
    return "".join(["id,name\n", *(f"{label},{name}\n" for label, name in enumerate(quoted))])


def counts(records: Sequence[VideoRecord]) -> dict[str, int]:
    """Return the size of a list: videos, classes, and the fewest and most videos of a class that it has."""
    by_label = Counter(record.label for record in records)
    return {
        "videos": len(records),
        "classes": len(by_label),
        "fewest_a_class": min(by_label.values(), default=0),
        "most_a_class": max(by_label.values(), default=0),
    }


def read_labels(folder: Path, name: str) -> list[str]:
    """Return the class names of one of the project's own files."""
    return read_class_names(folder / f"{name}.csv")


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_together(output: Path, files: Mapping[str, str], manifest_name: str, facts: Mapping[str, object]) -> None:
    """Write text files below a folder, and a manifest with their hashes; on an error nothing of it is there.

    All are written to a folder beside their places first and moved when whole, the manifest last.

    Args:
        files: relative path -> content.
        facts: further content of the manifest.

    Raises:
        DataError: where the folder cannot be written.
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
    """Return rows as aligned text: the first column to the left, all others to the right."""
    texts = [list(header), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in texts) for column in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in texts
    )
