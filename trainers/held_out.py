"""Part of a training list for choices alone: classes or videos that are not trained, the same for every method."""

import hashlib
from collections.abc import Iterable
from dataclasses import replace

from trainers.errors import ConfigError
from trainers.video_lists import VideoList
from video_datasets.annotations import VideoRecord
from video_datasets.segments import split_name


def hold_out_classes(videos: VideoList, seed: int, share: float) -> tuple[VideoList, VideoList]:
    """Return a list without a share of its classes, and the videos of these classes; labels count within each.

    Which classes follows from `seed` and their names, not from the order of the list. At least two, and all but two.

    Raises:
        ConfigError: there are fewer than four classes with videos.
    """
    present = {record.label for record in videos.records}
    names = [name for label, name in enumerate(videos.class_names) if label in present]
    if len(names) < 4:
        raise ConfigError(f"choose.by=held_out: {videos.name} has videos of {len(names)} classes; it needs 4 or more")
    number = min(max(2, round(share * len(names))), len(names) - 2)
    chosen = set(_drawn(names, seed)[:number])
    kept = [label for label, name in enumerate(videos.class_names) if name not in chosen]
    held = [label for label, name in enumerate(videos.class_names) if name in chosen]
    return _of_classes(videos, kept), replace(_of_classes(videos, held), name=f"{videos.name}_held_out")


def hold_out_videos(videos: VideoList, seed: int, share: float) -> tuple[VideoList, VideoList]:
    """Return a list without a share of the videos of each class, and these videos.

    Which videos follows from `seed` and their paths, not from the order of the list. Of a class with two videos or more
    at least one is held out and one stays. Segments of one video are held out or trained together, if necessary fewer.

    Raises:
        ConfigError: no class has two videos.
    """
    files: dict[int, set[str]] = {}  # of each class
    labels: dict[str, set[int]] = {}  # of each file: segments can have different classes
    for record in videos.records:
        file = _file_of(record)
        files.setdefault(record.label, set()).add(file)
        labels.setdefault(file, set()).add(record.label)
    left = {label: len(of_class) for label, of_class in files.items()}
    held: set[str] = set()
    for label in sorted(files):
        number = min(max(1, round(share * len(files[label]))), len(files[label]) - 1)
        for file in _drawn(files[label] - held, seed):
            if len(files[label]) - left[label] < number and all(left[other] > 1 for other in labels[file]):
                held.add(file)
                left |= {other: left[other] - 1 for other in labels[file]}
    if not held:
        raise ConfigError(f"choose.by=held_out: no class of {videos.name} has two videos; choose.by=validation is left")
    kept, out = ([one for one in videos.records if (_file_of(one) in held) == is_held] for is_held in (False, True))
    return replace(videos, records=kept), replace(videos, records=out, name=f"{videos.name}_held_out")


def shared_videos(one: VideoList, other: VideoList) -> list[str]:
    """Return the videos or segments of a list whose files another list of the same folder or tar has too."""
    if one.files is not other.files:
        return []
    files = set(map(_file_of, other.records))
    return [record.path for record in one.records if _file_of(record) in files]


def _file_of(record: VideoRecord) -> str:
    return split_name(record.path)[0]


def _drawn(names: Iterable[str], seed: int) -> list[str]:
    """Return names in an order that is random, but the same for a seed on every machine."""
    return sorted(names, key=lambda name: hashlib.sha256(f"{seed}\0{name}".encode("utf-8", "surrogateescape")).digest())


def _of_classes(videos: VideoList, labels: list[int]) -> VideoList:
    number = {label: index for index, label in enumerate(labels)}
    records = [VideoRecord(one.path, number[one.label]) for one in videos.records if one.label in number]
    return replace(videos, records=records, class_names=[videos.class_names[label] for label in labels])
