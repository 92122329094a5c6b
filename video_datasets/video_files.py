"""Finds listed videos in a folder or in uncompressed tars: at the listed path, or else by file name.

Published lists are flat (`name.avi 0`), while public archives unpack into class folders. A video that is not at its
listed path is therefore searched by file name in an index of the root. The index is built once, in the process that
makes the data set, and is sent to the workers with it.
"""

import contextlib
import hashlib
import json
import os
import tarfile
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from video_datasets.decoding import VideoReadError
from video_datasets.packed_texts import TextIndex
from video_datasets.segments import VideoSegment, split_name
from video_datasets.text_files import parse_json

# File names that count as videos when a folder or an archive is searched.
VIDEO_SUFFIXES = frozenset(
    ".3gp .asf .avi .f4v .flv .gif .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogv .ts .vob .webm .wmv".split()
)
# Folders that operating systems and network drives add, with copies and previews that have the names of videos.
SYSTEM_FOLDERS = frozenset({"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information"})


def has_video_suffix(path: str | Path) -> bool:
    """Return whether a file name ends in one of `VIDEO_SUFFIXES`, in upper or lower case; a segment's, before it."""
    return os.path.splitext(split_name(str(path))[0])[1].lower() in VIDEO_SUFFIXES


@dataclass(frozen=True)
class FoundVideos:
    """The videos below a root, and the files that do not count as videos.

    Attributes:
        videos: relative paths, sorted.
        hidden: number of files that are hidden or in hidden folders, or in `SYSTEM_FOLDERS`; those of macOS (`._NAME`)
            have the names of videos.
        others: number of other files by suffix in lower case, `""` for none.
        unreadable: folders that cannot be read.
    """

    videos: list[str]
    hidden: int
    others: Mapping[str, int]
    unreadable: Sequence[str] = ()

    def left_out(self) -> str | None:
        """Return what does not count as a video, in words; None if there is nothing."""
        parts = [f"{self.hidden} hidden or of the operating system (._NAME, __MACOSX)"] if self.hidden else []
        by_number = sorted(self.others.items(), key=lambda item: (-item[1], item[0]))
        parts += [f"{number} {suffix or 'without suffix'}" for suffix, number in by_number[:8]]
        if rest := sum(number for _, number in by_number[8:]):
            parts.append(f"{rest} of {len(by_number) - 8} other suffixes")
        if self.unreadable:
            parts.append(f"all of the folder {self.unreadable[0]}, which cannot be read")
        return f"files that are not read as videos: {', '.join(parts)}" if parts else None


class VideoFilesError(ValueError):
    """A root that cannot be used, a listed path outside of it, or a file name that several files have."""


@dataclass(frozen=True, slots=True)
class TarMember:
    """One video inside an uncompressed tar: its bytes are read without extracting anything."""

    archive: str
    name: str
    offset: int
    size: int

    def read(self) -> bytes:
        """Return the bytes; the archive is opened for this call only, so any process can call it at any time."""
        with open(self.archive, "rb") as file:
            file.seek(self.offset)
            return file.read(self.size)

    def __str__(self) -> str:
        return f"{self.archive}:{self.name}"


FoundSource = str | TarMember | VideoSegment


def open_video_files(root: str | Path, allow_outside: bool = False) -> "VideoFiles":
    """Open a folder of videos, one uncompressed `.tar` of them, or a folder of nothing but such tars.

    A tar's members are read from its index (`write_tar_index`) if that is newer than the tar; this opens tars of many
    videos without a scan.

    Args:
        root: a folder or a tar.
        allow_outside: whether listed paths may lead outside the folder (absolute ones, and those with `..`). Links in
            the folder are always followed: only the owner of the folder can create them, no list can.

    Raises:
        VideoFilesError: there is nothing at `root`, it is a compressed or damaged tar, or two tars share a member.
    """
    root = os.path.abspath(os.path.expanduser(root))
    if os.path.isdir(root):
        archives = _only_tars(root)
        return (
            TarFiles(root, archives, [_tar_members(path) for path in archives])
            if archives
            else FolderFiles(root, allow_outside)
        )
    if os.path.isfile(root):
        return TarFiles(root, [root], [_tar_members(root)])
    raise VideoFilesError(f"{root}: no such folder or .tar of videos (set data_root= or dataset.<name>.root=)")


class VideoFiles(ABC):
    """The videos below one root. Picklable, holds no open file."""

    def __init__(self, root: str, allow_outside: bool = False):
        self.root = root
        self.allow_outside = allow_outside
        self._by_name: TextIndex | None = None
        self._unreadable: list[str] = []  # folders, of the last walk

    def find(self, listed: str) -> FoundSource:
        """Return the source of a listed video for `decode`: a path, a member of a tar, or a segment of either.

        A file with the name of the segment, as a store of frames has it, comes first.

        Raises:
            VideoReadError: there is no such video.
            VideoFilesError: the path leads outside the root, or several files have its name and none has its path.
        """
        path = self._inside(listed)
        if self._exists(path):
            return self._source(path)
        video, segment = split_name(path)
        if segment is None:
            return self._find_by_name(path, listed)
        if self._exists(video):
            return VideoSegment(self._source(video), *segment)
        try:
            return self._find_by_name(path, listed)
        except VideoReadError:
            return VideoSegment(self._find_by_name(video, listed), *segment)

    def _find_by_name(self, path: str, listed: str) -> str | TarMember:
        if self._by_name is None:
            self._by_name = self._index()
        found = sorted(self._by_name.texts[position] for position in self._by_name.find(_file_name(path)))
        if len(found) > 1:
            raise VideoFilesError(
                f"{self.root}: {listed!r} does not exist as listed, and two files have its name: "
                f"{found[0]!r} and {found[1]!r}; list the video with its folder"
            )
        if not found:
            raise VideoReadError(os.path.join(self.root, path), "no such file, and none of its name below the root")
        return self._source(found[0])

    def prepare(self, listed: Iterable[str]) -> None:
        """Build the index now if the list needs it, so that workers receive it and do not walk the root themselves.

        A sample of about 64 listed paths decides; other misses are looked up when they are read.

        Raises:
            VideoFilesError: a listed path leads outside the root, or (if the index is built) is ambiguous.
        """
        paths = [(entry, self._inside(entry)) for entry in listed]
        sample = paths[:: max(1, len(paths) // 64)]
        if self._by_name is None and not all(
            self._exists(path) or self._exists(split_name(path)[0]) for _, path in sample
        ):
            self._by_name = self._index()
        if self._by_name is not None:
            several = self._by_name.may_be_several(_file_name(split_name(path)[0]) for _, path in paths)
            for position in np.flatnonzero(several).tolist():
                with contextlib.suppress(VideoReadError):  # a missing video is one when it is read
                    self.find(paths[position][0])

    def find_all(self) -> FoundVideos:
        """Return the videos below the root, and what was left out; every tool that takes a folder uses this."""
        videos: list[str] = []
        others: Counter[str] = Counter()
        hidden = 0
        for path in self._paths():
            if "/." in f"/{path}" or not SYSTEM_FOLDERS.isdisjoint(path.split("/")[:-1]):
                hidden += 1
            elif has_video_suffix(path):
                videos.append(path)
            else:
                others[os.path.splitext(path)[1].lower()] += 1
        return FoundVideos(sorted(videos), hidden, others, self._unreadable)

    def videos(self) -> list[str]:
        """Return the relative path of every video, sorted."""
        return self.find_all().videos

    def _index(self) -> TextIndex:
        """Return the relative paths by their file names."""
        return TextIndex(self._paths(), _file_name)

    def _inside(self, listed: str) -> str:
        """Return the listed path relative to the root, normalised, with forward slashes."""
        if listed.startswith("/") or ".." in listed or os.path.isabs(listed):
            relative = os.path.relpath(os.path.join(self.root, listed), self.root).replace(os.sep, "/")
            if (relative == ".." or relative.startswith("../")) and not self.allow_outside:
                raise VideoFilesError(
                    f"{self.root}: the listed path {listed!r} leads outside the root "
                    "(data.allow_outside=true allows it)"
                )
            return relative
        return listed[2:] if listed.startswith("./") else listed

    @abstractmethod
    def _exists(self, path: str) -> bool:
        """Return whether there is a video at a normalised path."""

    @abstractmethod
    def _source(self, path: str) -> str | TarMember:
        """Return the source of the video at a normalised path."""

    @abstractmethod
    def _paths(self) -> Iterable[str]:
        """Return the relative path of every file below the root, each once, in any order."""


def _file_name(path: str) -> str:
    return path.rpartition("/")[2]


class FolderFiles(VideoFiles):
    """Videos in a folder and its subfolders."""

    def _exists(self, path: str) -> bool:
        return os.path.isfile(os.path.join(self.root, path))

    def _source(self, path: str) -> str:
        return os.path.join(self.root, path)

    def _paths(self) -> Iterator[str]:
        visited: set[tuple[int, int]] = set()  # links are followed; a folder linked into itself must not loop for ever
        pending = [""]
        self._unreadable = []
        while pending:
            folder = pending.pop()
            absolute = os.path.join(self.root, folder)
            try:
                status = os.stat(absolute)
                with os.scandir(absolute) as opened:
                    entries = list(opened)
            except OSError:
                if not folder:
                    raise
                self._unreadable.append(folder)
                continue
            if (status.st_dev, status.st_ino) in visited:
                continue
            visited.add((status.st_dev, status.st_ino))
            folders = []
            for entry in entries:
                path = f"{folder}/{entry.name}" if folder else entry.name
                if _is(entry.is_dir):
                    folders.append(path)
                elif _is(entry.is_file):
                    yield path
            pending += sorted(folders, reverse=True)  # the order decides the path of a folder that is linked twice


def _is(kind: Callable[[], bool]) -> bool:
    """Return whether a folder's entry is of a kind; a link that leads to itself is of none."""
    try:
        return kind()
    except OSError:
        return False


class TarFiles(VideoFiles):
    """Videos in uncompressed tars.

    Args:
        root: the tar or the folder of tars.
        archives: the tars.
        members: for each tar, name -> (offset, size).

    Raises:
        VideoFilesError: two tars have a member of the same name.
    """

    def __init__(self, root: str, archives: Sequence[str], members: Sequence[Mapping[str, tuple[int, int]]]):
        super().__init__(root)
        self.archives = list(archives)
        first_in: dict[str, int] = {}
        for number, of_archive in enumerate(members):
            for name in of_archive:
                if (first := first_in.setdefault(name, number)) != number:
                    archives_of_it = f"{self.archives[first]} and {self.archives[number]}"
                    raise VideoFilesError(f"{root}: {name!r} is in two tars, {archives_of_it}")
        self._members = TextIndex(first_in)
        self._archive_of = np.array(list(first_in.values()), np.int32)
        places = [place for of_archive in members for place in of_archive.values()]
        self._places = np.array(places, np.int64).reshape(-1, 2)  # (members, 2): offset, size

    def _exists(self, path: str) -> bool:
        return bool(self._members.find(path))

    def _source(self, path: str) -> TarMember:
        (position,) = self._members.find(path)
        offset, size = self._places[position].tolist()
        return TarMember(self.archives[self._archive_of[position]], path, offset, size)

    def _paths(self) -> Iterable[str]:
        return (self._members.texts[position] for position in range(len(self._members.texts)))


def index_path(path: str | Path) -> Path:
    """Return the path of a tar's index: `<tar>.index`."""
    return Path(os.path.abspath(path) + _INDEX)


def write_tar_index(path: str | Path, target: Path | None = None) -> Path:
    """Write the index of a tar to `target`, or else to `index_path`; return the path.

    Raises:
        VideoFilesError: the tar cannot be read.
    """
    path = os.path.abspath(path)
    members = _scan_tar(path)
    index = {"version": 2, "bytes": os.path.getsize(path), "sha256": _digest(members), "members": members}
    target = index_path(path) if target is None else target
    target.write_text(json.dumps(index), encoding="utf-8")
    return target


_INDEX = ".index"
# Folder beside tars that are being written; while it contains the file UNFINISHED, some are missing.
PACK_STATE = ".pack"
UNFINISHED = "unfinished"


def _only_tars(folder: str) -> list[str]:
    """Return the tars of a folder that contains only tars and their indexes; an empty list for any other folder.

    Raises:
        VideoFilesError: some of the tars are not written yet.
    """
    tars = []
    if os.path.exists(os.path.join(folder, PACK_STATE, UNFINISHED)):
        raise VideoFilesError(f"{folder}: is not complete: run the same pack.py command again, which continues")
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith(".tar") and entry.is_file():
                tars.append(entry.path)
            elif not entry.name.endswith(".tar" + _INDEX) and entry.name != PACK_STATE:
                return []
    return sorted(tars)


def _tar_members(path: str) -> Mapping[str, tuple[int, int]]:
    index = path + _INDEX
    try:
        is_newer = os.stat(index).st_mtime_ns >= os.stat(path).st_mtime_ns
    except FileNotFoundError:
        return _scan_tar(path)
    try:
        found = parse_json(Path(index).read_text(encoding="utf-8"))
        size = os.path.getsize(path)
        if is_newer and found["version"] in (1, 2) and found["bytes"] == size:
            members = {name: (offset, length) for name, (offset, length) in found["members"].items()}
            if found["version"] == 2 and found["sha256"] != _digest(members):
                raise ValueError("its checksum does not match its content")
            if not all(_is_within(*place, size) for place in members.values()):
                raise ValueError("it names places outside the tar")
            return members
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise VideoFilesError(f"{index}: is not the index of a tar ({repr(error)[:200]}); remove it") from error
    return _scan_tar(path)


def _digest(members: Mapping[str, tuple[int, int]]) -> str:
    return hashlib.sha256(json.dumps(members, sort_keys=True).encode()).hexdigest()


def _is_within(offset: object, length: object, size: int) -> bool:
    return type(offset) is int and type(length) is int and 0 <= offset <= size and 0 <= length <= size - offset


def _scan_tar(path: str) -> dict[str, tuple[int, int]]:
    try:
        with tarfile.open(path, "r:") as archive:
            # If a name comes twice, the later member counts, as after unpacking.
            return {
                str(PurePosixPath(member.name)).lstrip("/"): (member.offset_data, member.size)
                for member in archive
                if member.isreg() and not member.issparse()
            }
    except (tarfile.TarError, OSError) as error:
        raise VideoFilesError(f"{path}: is not a readable uncompressed .tar ({error}); unpack it first") from error
