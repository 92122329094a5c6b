"""What every reader of labels returns, and how the videos that it names are found."""

import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from trainers.commands.data.listing import DataError
from video_datasets.decoding import VideoReadError
from video_datasets.segments import VideoSegment
from video_datasets.text_files import parse_json, read_text_file
from video_datasets.video_files import FoundSource, TarMember, VideoFiles, VideoFilesError

# Names of splits, in folders and in files.
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "eval"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_UPLOAD = re.compile(r"^[0-9a-f]{8}-(?=.)")  # what Label Studio puts before the name of an uploaded file


@dataclass(frozen=True, slots=True)
class Item:
    """One labelled video or segment.

    Attributes:
        path: of the video, as the source names it: below the root, an address, a name without suffix.
        label: name of its class.
        location: in the source, for messages.
        start, end: of the segment, in seconds; None for the whole video.
        split: `train`, `val`, `test`, or None.
        group: what it was cut from; None if unknown.
        frames: the segment's first and last frame, from 0, instead of seconds.
    """

    path: str
    label: str
    location: str
    start: float | None = None
    end: float | None = None
    split: str | None = None
    group: str | None = None
    frames: tuple[int, int] | None = None


@dataclass(frozen=True)
class SourceOptions:
    """What the user says about a source.

    Attributes:
        root: folder or tar of the videos.
        class_names: names of labels that are numbers, or None.
        group: column of the groups, if the source has it.
        field: the field of labels, if there are several.
    """

    root: Path
    class_names: tuple[str, ...] | None = None
    group: str | None = None
    field: str | None = None


def read_text(path: Path) -> str:
    """Return the text of a file.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return read_text_file(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error


def read_json(path: Path) -> Any:
    """Return the content of a JSON file.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return parse_json(read_text(path))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: is not JSON: {error.msg}") from error
    except ValueError as error:
        raise DataError(f"{path}: is not JSON: {error}") from error


def split_of(name: object, location: str) -> str | None:
    """Return the split of a name; None for an empty one.

    Raises:
        DataError: it is unknown.
    """
    text = str(name or "").strip().lower()
    if text and text not in SPLITS:
        raise DataError(f"{location}: the split {name!r} is unknown; there are {', '.join(sorted(SPLITS))}")
    return SPLITS.get(text)


def class_of(label: object, options: SourceOptions, location: str) -> str:
    """Return the name of a class: text as it is, a number as the class names say.

    Raises:
        DataError: it is empty, or a number without a name.
    """
    text = "" if label is None or isinstance(label, bool | dict | list) else str(label).strip()
    if not text:
        raise DataError(f"{location}: there is no label")
    if options.class_names is None or not re.fullmatch(r"\d+", text):
        return text
    if int(text) >= len(options.class_names):
        raise DataError(f"{location}: the label {text} is not one of the {len(options.class_names)} class names")
    return options.class_names[int(text)]


def seconds(value: object, location: str) -> float | None:
    """Return a time in seconds; None for an empty one.

    Raises:
        DataError: it is not a number.
    """
    if value is None or value == "":
        return None
    try:
        if isinstance(value, bool):
            raise TypeError
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):  # a whole number can be too large
        raise DataError(f"{location}: {str(value)[:60]!r} is not a time in seconds") from None


class VideoFinder:
    """Finds the videos that a source names below a root: paths of other machines, addresses, names without suffix."""

    def __init__(self, files: VideoFiles):
        self._files = files
        self._by_stem: dict[str, list[str]] | None = None

    def find(self, named: str) -> str:
        """Return the path of a video below the root.

        Raises:
            VideoReadError: there is none.
            VideoFilesError: there are several.
        """
        names = list(dict.fromkeys(self._spellings(named)))
        for name in names:
            try:
                return self._listed(self._files.find(name))
            except VideoReadError:
                continue
        stems = self._stems()
        for name in names:
            found = stems.get(name.rpartition("/")[2], [])
            if len(found) > 1:
                raise VideoFilesError(f"{self._files.root}: {named!r} can be {found[0]!r} or {found[1]!r}")
            if found:
                return found[0]
        raise VideoReadError(named, "no such video below the root")

    def _listed(self, source: FoundSource) -> str:
        if isinstance(source, VideoSegment):  # of a name that already ends in one
            raise VideoFilesError(f"{source}: give the times of a segment as start and end")
        if isinstance(source, TarMember):
            return source.name
        return Path(os.path.relpath(source, self._files.root)).as_posix()

    def _spellings(self, named: str) -> Iterable[str]:
        path = named.replace("\\", "/")
        if "://" in path or path.startswith("/data/"):  # an address, or Label Studio's own
            try:
                parts = urlsplit(path)
            except ValueError:  # is no address
                return
            path = unquote(parse_qs(parts.query).get("d", [parts.path])[0]).lstrip("/")
        root = self._files.root.rstrip("/") + "/"
        if path.startswith(root):
            yield path.removeprefix(root)
            return
        outside = path.startswith("/") or ".." in path.split("/") or ":" in path.split("/")[0]
        if not outside:
            yield path
        name = path.rpartition("/")[2]
        yield name
        yield _UPLOAD.sub("", name)

    def _stems(self) -> dict[str, list[str]]:
        if self._by_stem is None:
            self._by_stem = {}
            for path in self._files.videos():
                stem = path.rpartition("/")[2].rpartition(".")[0]
                for name in {stem, stem.removeprefix("v_")}:  # as ActivityNet's files are named
                    self._by_stem.setdefault(name, []).append(path)
        return self._by_stem
