"""A list of videos with its classes and the facts of its data set, read and checked before the run starts."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from video_datasets.annotations import VideoRecord, read_annotations, read_class_names
from video_datasets.decoders.base import DecoderError
from video_datasets.decoding import VideoReadError
from video_datasets.label_words import LabelComparison, compare_labels
from video_datasets.stored_frames import opened_frames
from video_datasets.video_files import VideoFiles, VideoFilesError, open_video_files


@dataclass(frozen=True)
class VideoList:
    """Videos of one annotation list.

    `name` is used in tables and file names; test sets of one `group` are averaged.
    """

    name: str
    group: str
    records: list[VideoRecord]
    files: VideoFiles
    class_names: list[str]
    flip: bool
    split_camel_case: bool
    list_path: Path
    class_names_path: Path
    left_out: int = 0  # videos that `without` removed
    stored: str | None = None  # which frames its files have, if they are stored frames; None for videos

    @cached_property
    def label_comparison(self) -> LabelComparison | None:
        """The labels compared with the class words in the paths, if these have any."""
        return compare_labels(self.records, self.class_names)

    @property
    def chance(self) -> float:
        """Top-1 of guessing, in percent."""
        if all(len(record.labels) == 1 for record in self.records):
            return 100 / len(self.class_names)
        return 100 * sum(len(record.labels) for record in self.records) / len(self.records) / len(self.class_names)

    def without(self, paths: Collection[str]) -> "VideoList":
        """Return the list without the videos of some paths, spelled as in the list."""
        kept = [record for record in self.records if record.path not in paths]
        return replace(self, records=kept, left_out=self.left_out + len(self.records) - len(kept))

    def missing(self) -> list[str]:
        """Look for the file of every listed video; return the reason for each that is missing."""
        reasons = []
        for record in self.records:
            try:
                self.files.find(record.path)
            except VideoReadError as error:
                reasons.append(str(error))
        return reasons


def read_video_list(
    *,
    name: str,
    group: str,
    root: str,
    list_path: Path,
    class_names_path: Path,
    flip: bool,
    split_camel_case: bool,
    opened: dict[str, VideoFiles],
    allow_outside: bool = False,
    multi_label: bool = False,
) -> VideoList:
    """Read a list and its class names, and open the folder or tar of its videos.

    Args:
        opened: opened roots, whose index is shared; a new root is added.
        allow_outside: listed paths can lead out of the root.
        multi_label: a video can have any number of classes.

    Raises:
        AnnotationError: the list or the class names are wrong.
        VideoFilesError: the root cannot be opened.
    """
    class_names = read_class_names(class_names_path)
    records = read_annotations(list_path, len(class_names), multi_label)
    if root not in opened:
        opened[root] = open_video_files(root, allow_outside)
    opened[root].prepare(record.path for record in records)
    facts = (flip, split_camel_case, list_path, class_names_path)
    return VideoList(name, group, records, opened[root], class_names, *facts, stored=_stored(records, opened[root]))


def _stored(records: list[VideoRecord], files: VideoFiles) -> str | None:
    """Return which frames the files of a list have, from a few of them; None if they are videos."""
    found = {}
    for record in records[:: max(1, len(records) // 8)]:
        try:
            with opened_frames(files.find(record.path)) as frames:
                found[None if frames is None else str(frames.settings)] = True
        except (VideoReadError, VideoFilesError, DecoderError, OSError):
            continue  # counted when it is read
    kinds = [kind or "videos" for kind in found]
    return None if kinds in ([], ["videos"]) else " or ".join(kinds)
