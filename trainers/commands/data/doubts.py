"""What is doubtful in one's own videos, found before anything is written: files, copies, leaks, labels."""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from trainers.commands.data.groups import joined
from trainers.commands.data.inspect_video import content_hash
from trainers.commands.data.listing import DataError, normalized_name
from trainers.commands.data.own_dataset import FoundClasses
from video_datasets.decoding import VideoReadError
from video_datasets.isolation import isolated
from video_datasets.segments import split_name
from video_datasets.video_files import FoundSource, TarMember, open_video_files


def inspected(found: FoundClasses, root: Path) -> FoundClasses:
    """Return the videos that can be opened, with copies of one content in one group, and notes on what is doubtful.

    Raises:
        DataError: no video can be opened.
    """
    files = open_video_files(root)
    sources: dict[str, FoundSource] = {}
    for name, _ in found.videos:
        path = split_name(name)[0]
        sources.setdefault(path, files.find(path))
    bad = dict(_unreadable(sources))
    notes = list(found.notes)
    if bad:
        path, reason = next(iter(bad.items()))
        if len(bad) == len(sources):
            raise DataError(f"{root}: no video can be opened; the first: {path}: {reason}")
        notes.append(f"{len(bad)} files cannot be opened and are left out, the first: {path}: {reason}")
    videos = [(name, label) for name, label in found.videos if split_name(name)[0] not in bad]
    kept = {name for name, _ in videos}
    groups = {name: group for name, group in found.groups.items() if name in kept}
    copies = _copies({path: source for path, source in sources.items() if path not in bad})
    notes += _notes_on_copies(videos, copies, found.held)
    names: dict[str, list[str]] = {}
    for name, _ in videos:
        names.setdefault(split_name(name)[0], []).append(name)
        groups.setdefault(name, split_name(name)[0])
    groups = joined(groups, [[name for path in paths for name in names[path]] for paths in copies])
    held = None if found.held is None else found.held & kept
    return replace(
        found, videos=videos, groups=groups, held=held, notes=(*notes, *_notes_on_labels(replace(found, videos=videos)))
    )


def class_table(found: FoundClasses, most: int = 40) -> list[str]:
    """Return the number of videos of each class, most frequent first."""
    counts = Counter(found.labels()).most_common()
    lines = [f"{count:>7,}  {label}" for label, count in counts[:most]]
    return lines + ([f"    ...  and {len(counts) - most} more classes"] if len(counts) > most else [])


def _unreadable(sources: dict[str, FoundSource]) -> Iterator[tuple[str, str]]:
    """Yield the files whose first frame cannot be decoded, in a process apart, and the reasons."""
    decode = isolated()
    for path, source in tqdm(sources.items(), desc="open videos", unit="video", disable=None, leave=False):
        try:
            decode(source, _first)
        except VideoReadError as error:
            yield path, error.reason


def _first(num_frames: int) -> np.ndarray:
    return np.zeros(1, dtype=np.int64)


def _copies(sources: dict[str, FoundSource]) -> list[list[str]]:
    """Return the files of equal content, in groups of two or more."""
    by_size: dict[int, list[str]] = {}
    for path, source in sources.items():
        size = source.size if isinstance(source, TarMember) else os.path.getsize(str(source))
        by_size.setdefault(size, []).append(path)
    by_content: dict[str, list[str]] = {}
    candidates = [path for paths in by_size.values() if len(paths) > 1 for path in paths]
    for path in tqdm(candidates, desc="compare", unit="video", disable=None, leave=False):
        by_content.setdefault(content_hash(sources[path]), []).append(path)
    return [paths for paths in by_content.values() if len(paths) > 1]


def _notes_on_copies(
    videos: list[tuple[str, str]], copies: list[list[str]], held: frozenset[str] | None
) -> Iterator[str]:
    if not copies:
        return
    first, other = copies[0][:2]
    number = sum(len(paths) - 1 for paths in copies)
    yield f"{number} files are copies of others, as {first!r} and {other!r}; a drawn split keeps them together"
    labels: dict[str, set[str]] = {}
    sides: dict[str, set[bool]] = {}
    for name, label in videos:
        path = split_name(name)[0]
        if path == name:
            labels.setdefault(path, set()).add(label)
        sides.setdefault(path, set()).add(held is not None and name in held)
    mixed = [paths for paths in copies if len(set().union(*(labels.get(path, set()) for path in paths))) > 1]
    if mixed:
        yield f"{len(mixed)} contents have copies in several classes, as {mixed[0][0]!r} and {mixed[0][1]!r}"
    leaks = [paths for paths in copies if len(set().union(*(sides[path] for path in paths))) > 1]
    if leaks:
        yield (
            f"leak: {len(leaks)} contents are in training and in validation of the given split, the first: "
            f"{', '.join(leaks[0][:2])}"
        )


def _notes_on_labels(found: FoundClasses) -> Iterator[str]:
    counts = Counter(found.labels())
    spelled: dict[str, list[str]] = {}
    for label in sorted(counts):
        spelled.setdefault(normalized_name(label) or label, []).append(label)
    for labels in spelled.values():
        if len(labels) > 1:
            yield f"classes that differ in capitals, spaces or signs only: {', '.join(map(repr, labels))}"
    single = [label for label, count in counts.items() if count == 1]
    if single:
        yield f"{len(single)} classes have one video, as {single[0]!r}"
    most, fewest = max(counts.values()), min(counts.values())
    if most >= 20 * fewest:
        yield f"classes have {fewest} to {most} videos"
