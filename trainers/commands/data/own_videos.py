"""One's own videos, from folders or from what another program labelled, to a checked data set."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trainers.commands.data.doubts import inspected
from trainers.commands.data.labelled import find_labelled, regrouped
from trainers.commands.data.listing import DataError
from trainers.commands.data.own_dataset import (
    FoundClasses,
    NewDataset,
    Options,
    check_name,
    make_dataset,
    videos_of_folders,
    write_dataset,
)
from trainers.commands.data.sources import detect, read_items
from trainers.commands.data.sources.items import SourceOptions, class_of
from video_datasets.annotations import read_class_names


@dataclass(frozen=True)
class Source:
    """Where the classes of the videos come from.

    Attributes:
        path: a file, or the folder of an export; None: the folders below the videos.
        kind: one of `trainers.commands.data.sources.KINDS`.
        class_names: file of class names, for labels that are numbers.
        field: which labels count, if there are several.
        group: `folder`, a column, or a regular expression; None: segments and copies of one file are a group.
        fps: frames per second by which the source counts frames; None: it counts those of the video.
        skip_missing: leave out labelled videos that are not there.
        check: open every video, and look for copies.
        several: a video can have several classes: `a;b`, or several rows.
    """

    path: Path | None = None
    kind: str = "auto"
    class_names: Path | None = None
    field: str | None = None
    group: str | None = None
    fps: float | None = None
    skip_missing: bool = False
    check: bool = True
    several: bool = False


def collect(videos: Path, source: Source, options: Options) -> FoundClasses:
    """Return the labelled videos of a source, in groups, and checked.

    Raises:
        DataError, AnnotationError, VideoFilesError: one line.
    """
    rule = source.group
    kind = source.kind
    if source.path is not None and kind == "auto":
        kind = detect(source.path)
    if source.several and (source.path is None or kind == "folders"):
        raise DataError("--several-labels: a folder is one class; give the labels with --from")
    if source.path is None or kind == "folders":
        found = videos_of_folders(videos, options.folders)
    else:
        names = None if source.class_names is None else tuple(read_class_names(source.class_names))
        said = SourceOptions(videos, names, rule, source.field)

        def split_label(text: str, location: str) -> list[str]:
            return [class_of(part, said, location) for part in text.split(";")]

        items = read_items(source.path, kind, said)
        found = find_labelled(items, videos, source.fps, source.skip_missing, split_label if source.several else None)
        rule = None if found.groups else rule  # a column has them
    found = regrouped(found, rule)
    return inspected(found, videos) if source.check else found


def new_dataset(
    name: str,
    videos: Path,
    output: Path,
    configs: Path,
    options: Options,
    source: Source = Source(),  # noqa: B008
    overwrite: bool = False,
    dry_run: bool = False,
    report: Callable[[FoundClasses], None] = lambda found: None,
) -> tuple[NewDataset, list[Path]]:
    """Make and write a data set; return it and the paths of its configurations.

    Args:
        name: name of the data set.
        videos: folder or tar of the videos.
        output: folder of lists and class names.
        configs: folder of the configurations.
        options: how to split.
        source: where the classes come from.
        overwrite: replace a data set of this name.
        dry_run: write nothing.
        report: called with what was found, before it is split and written.

    Raises:
        DataError, AnnotationError, VideoFilesError: one line; then nothing is written.
    """
    check_name(name, output, configs, overwrite)
    found = collect(videos, source, options)
    report(found)
    made = make_dataset(found, options)
    paths = [] if dry_run else write_dataset(name, made, videos, output, configs, options)
    return made, paths
