"""From what a source labels to videos with classes: files found, frames turned into seconds, splits and groups."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from trainers.commands.data.groups import divided, groups_of
from trainers.commands.data.listing import DataError
from trainers.commands.data.own_dataset import FoundClasses
from trainers.commands.data.sources.items import Item, VideoFinder
from video_datasets.decoding import VideoReadError, frame_times
from video_datasets.segments import segment_name
from video_datasets.video_files import VideoFiles, VideoFilesError, open_video_files

_SHOWN = 3  # missing videos that a message names


def find_labelled(
    items: Iterable[Item],
    root: Path,
    fps: float | None = None,
    skip_missing: bool = False,
    split_label: Callable[[str, str], list[str]] | None = None,
) -> FoundClasses:
    """Return the videos and segments that a source labels.

    Args:
        items: what it labels.
        root: folder or tar of the videos.
        fps: frames per second by which the source counts frames; None: it counts those of the video.
        skip_missing: leave out videos that are not below the root.
        split_label: returns the classes in a label, for messages with its location, if a video can have several; those
            of all its rows are joined. None: one class each.

    Raises:
        DataError: a video is missing, has two classes or two splits, or a segment is wrong.
    """
    try:
        files = open_video_files(root)
    except (OSError, VideoFilesError) as error:
        raise DataError(f"{root}: cannot be read: {error}") from error
    finder, seconds = VideoFinder(files), _Frames(files, fps)
    found: dict[str, tuple[Item, str]] = {}
    labels: dict[str, dict[str, None]] = {}
    missing: list[str] = []
    paths: dict[str, str | None] = {}
    for item in tqdm(items, desc="find videos", unit="video", disable=None, leave=False):
        if item.path not in paths:
            try:
                paths[item.path] = finder.find(item.path)
            except VideoReadError:
                paths[item.path] = None
                missing.append(f"{item.location}: {item.path}")
            except VideoFilesError as error:
                raise DataError(f"{item.location}: {error}") from error
        path = paths[item.path]
        if path is None:
            continue
        name = _name(item, path, seconds)
        before, _ = found.setdefault(name, (item, path))
        if before.split != item.split:
            splits = f"{before.split!r} and {item.split!r}"
            raise DataError(f"{item.location}: {name!r} has the splits {splits} ({before.location})")
        if split_label is not None:
            labels.setdefault(name, {}).update(dict.fromkeys(split_label(item.label, item.location)))
        elif before.label != item.label:
            raise DataError(
                f"{item.location}: {name!r} has the classes {before.label!r} and {item.label!r} ({before.location}); "
                "if a video can have several, give --several-labels"
            )
    if missing and not (skip_missing and found):
        more = f", and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        raise DataError(
            f"{len(missing)} videos have no such file below {root}: {'; '.join(missing[:_SHOWN])}{more} "
            "(--videos names the folder; --skip-missing leaves them out)"
        )
    notes = [f"{len(missing)} videos are missing and left out, the first: {missing[0]}"] if missing else []
    of_name = {name: item for name, (item, _) in found.items()}
    if split_label is None:
        joint = [item.label for item in of_name.values() if ";" in item.label]
        if joint:
            notes.append(
                f"{len(joint)} labels have a ';', as {joint[0]!r}: if these are classes, give --several-labels"
            )
        return _with_splits(of_name, notes)
    of_name = {name: replace(item, label=";".join(sorted(labels[name]))) for name, item in of_name.items()}
    return replace(_with_splits(of_name, notes), several=True)


def regrouped(found: FoundClasses, rule: str | None) -> FoundClasses:
    """Return the videos with their groups: by a rule, or those of the source, or else by their files.

    Raises:
        DataError: the rule is wrong, or the splits of the source divide its groups.
    """
    names = [name for name, _ in found.videos]
    groups = groups_of(names, rule)
    if rule is None:
        groups |= found.groups
    notes = found.notes
    if found.held is not None and (both := divided(groups, found.held)):
        text = f"{len(both)} groups are on both sides of the given split, as {both[0][0]!r} and {both[0][1]!r}"
        if rule is not None or found.groups:
            raise DataError(f"{text}; give a split that agrees with --group, or none")
        notes = (*notes, f"{text}: segments of one video")
    return replace(found, groups=groups, notes=notes)


def _name(item: Item, path: str, seconds: "_Frames") -> str:
    start, end = item.start, item.end
    if item.frames is not None:
        start, end = seconds.of(path, item.frames, item.location)
    if (start is None) != (end is None):
        raise DataError(f"{item.location}: needs both start and end, or none")
    try:
        return path if start is None or end is None else segment_name(path, start, end)
    except ValueError as error:
        raise DataError(f"{item.location}: {error}") from error


def _with_splits(items: dict[str, Item], notes: list[str]) -> FoundClasses:
    """Return the items with the split of the source; validation is its `val`, or else its `test`."""
    splits = {item.split for item in items.values()}
    held: frozenset[str] | None = None
    if splits != {None}:
        without = next((item for item in items.values() if item.split is None), None)
        if without is not None:
            raise DataError(f"{without.location}: has no split, others have one")
        if "train" not in splits or len(splits) < 2:
            raise DataError(
                f"the source has the split {', '.join(sorted(map(str, splits)))} only; it needs train and val"
            )
        kept = "val" if "val" in splits else "test"
        left_out = [name for name, item in items.items() if item.split not in ("train", kept)]
        if left_out:
            notes.append(f"{len(left_out)} videos of the test split are in no list: val is validated and tested")
        items = {name: item for name, item in items.items() if item.split in ("train", kept)}
        held = frozenset(name for name, item in items.items() if item.split == kept)
    groups = {name: item.group for name, item in items.items() if item.group}
    return FoundClasses([(name, item.label) for name, item in items.items()], held, tuple(notes), groups)


class _Frames:
    """Turns the frames of a segment into seconds."""

    def __init__(self, files: VideoFiles, fps: float | None):
        self._files, self._fps = files, fps
        self._path, self._times = "", [0.0]

    def of(self, path: str, frames: tuple[int, int], location: str) -> tuple[float, float]:
        """Return when the first frame begins and the last one ends."""
        first, last = frames
        if first > last:
            raise DataError(f"{location}: a segment from frame {first} to {last}")
        if self._fps is not None:  # from the middle between two frames
            return max(0.0, (first - 0.5) / self._fps), (last + 0.5) / self._fps
        if path != self._path:
            source = self._files.find(path)
            try:
                self._times = frame_times(getattr(source, "source", source)).tolist()  # type: ignore[arg-type]
            except VideoReadError as error:
                raise DataError(f"{location}: its frames cannot be counted: {error}") from error
            self._path = path
        times = self._times
        if last > len(times):  # one frame more, which tools count in some files, is tolerated
            raise DataError(
                f"{location}: ends at frame {last}, {path} has {len(times)}; if the tool counts at another rate, give "
                "it with --fps"
            )
        if first >= len(times):
            raise DataError(f"{location}: begins at frame {first}, {path} has {len(times)}")
        step = times[-1] / (len(times) - 1) if len(times) > 1 else 0.04
        return times[first], times[last + 1] if last + 1 < len(times) else times[-1] + max(step, 0.001)
