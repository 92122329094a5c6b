"""Videos and class names as a user gives them on a command line."""

import glob
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path

from trainers.config.keys import did_you_mean
from trainers.errors import ConfigError
from trainers.paths import LABELS
from video_datasets.annotations import read_annotations, read_class_names, with_segment
from video_datasets.segments import split_name
from video_datasets.text_files import read_text_file, split_lines
from video_datasets.video_files import FolderFiles

_LOG = logging.getLogger(__name__)
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)


def find_videos(arguments: Sequence[str | Path]) -> list[str]:
    """Return the videos that the arguments name, each once, in order.

    Args:
        arguments: files, segments of files (`clip.mp4#t=1.5,4`), folders (with their subfolders), globs
            (`'clips/**/*.mp4'`), and lists: annotation lists as training reads them (`.txt`, `.json`), and `.txt` files
            of paths without labels. Listed paths are relative to the working folder or to the list's folder.

    Raises:
        ConfigError: if a folder, a glob or a list names no video, or one is an address. A missing file stays in: it is
            a bad video.
    """
    found: dict[str, None] = {}
    for argument in map(str, arguments):
        if _ADDRESS.match(argument) and not os.path.exists(argument):
            raise ConfigError(
                f"{argument}: is an address, not a file; download it first, or watch a live stream with "
                "tc-clip predict --stream ADDRESS"
            )
        if os.path.isdir(argument):
            inside = FolderFiles(argument).find_all()
            left_out = inside.left_out()
            if not inside.videos:
                raise ConfigError(
                    f"{argument}: there is no video in this folder" + (f"; {left_out}" if left_out else "")
                )
            if left_out:
                _LOG.warning("%s: %s", argument, left_out)
            found |= dict.fromkeys(os.path.join(argument, path) for path in inside.videos)
        elif argument.lower().endswith((".txt", ".json")):
            found |= dict.fromkeys(_listed(Path(argument)))
        elif glob.has_magic(argument) and not os.path.exists(argument):
            matching = [path for path in sorted(glob.glob(argument, recursive=True)) if os.path.isfile(path)]
            if not matching:
                raise ConfigError(f"{argument}: no file matches")
            found |= dict.fromkeys(matching)
        else:
            found[argument] = None
    if not found:
        raise ConfigError("no video is given")
    return list(found)


def read_classes(words: Sequence[str], at_least: int = 2) -> list[str]:
    """Return class names from words, a file, or the name of a label set.

    Args:
        words: class names; or one word: a file (`.csv` or `.json` as the label files, else one name per line), or a
            label set of this project (`hmdb51` for `labels/hmdb51.csv`).
        at_least: number of classes that are needed; the score of a single class is always 1.

    Raises:
        ConfigError: if there are too few names, or one twice.
        AnnotationError: if a label file is wrong.
    """
    names = [word.strip() for word in words if word.strip()]
    if len(names) == 1:
        path = Path(names[0])
        if (LABELS / f"{names[0]}.csv").is_file():
            names = read_class_names(LABELS / f"{names[0]}.csv")
        elif path.is_file():
            labels = path.suffix.lower() in (".csv", ".json")
            names = read_class_names(path) if labels else _lines(path)
        elif path.suffix.lower() in (".csv", ".json", ".txt"):
            raise ConfigError(f"{path}: no such file of class names")
    if len(names) < at_least:
        word = names[0] if names else ""
        known = sorted(path.stem for path in LABELS.glob("*.csv"))
        raise ConfigError(
            f"{len(names)} class names are too few: give at least {at_least}, a file, or a label set"
            f"{did_you_mean(word, known) or ' (' + ', '.join(known) + ')'}"
        )
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"the class {twice[0]!r} is given twice")
    return names


def stems_of(videos: Sequence[str]) -> list[str]:
    """Return a file name without suffix for each video: the video's own, numbered if another video has the same."""
    stems: list[str] = []
    for video in videos:
        path, segment = split_name(video)
        stem, number = Path(path).stem + ("" if segment is None else "_{:g}-{:g}".format(*segment)), 1
        while (unique := stem if number == 1 else f"{stem}_{number}") in stems:
            number += 1
        stems.append(unique)
    return stems


def _listed(path: Path) -> list[str]:
    if path.suffix.lower() == ".json":
        return [_existing([record.path], path.parent) for record in read_annotations(path, multi_label=True)]
    videos = []
    for line in _lines(path):
        if len(columns := line.split("\t")) == 4:
            line = with_segment(str(path), columns[0], *columns[2:])
        # A label can follow after any space, as in annotation lists; the name itself can also end in a number.
        front, *label = line.rsplit(maxsplit=1)
        has_label = bool(label) and label[0].lstrip("+-").isdecimal()
        videos.append(_existing([line, front] if has_label else [line], path.parent))
    return videos


def _existing(names: Sequence[str], folder: Path) -> str:
    """Return the first of the names that is a file, in the working folder or in `folder`, else the last in `folder`."""
    candidates = [candidate for name in names for candidate in (name, str(folder / name))]
    return next(
        (name for name in candidates if os.path.isfile(name) or os.path.isfile(split_name(name)[0])), candidates[-1]
    )


def _lines(path: Path) -> list[str]:
    try:
        lines = split_lines(read_text_file(path))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error
    return [line.strip() for line in lines if line.strip()]
