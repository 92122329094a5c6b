"""Stores frames of videos as JPEG: every video becomes a member of a few large tars."""

import os
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from tqdm import tqdm

from trainers.commands.data.listing import DataError, report_left_out
from trainers.commands.data.progress import Progress, key_of
from trainers.commands.data.watched_pool import Failure, watched_map
from trainers.csv_files import write_csv
from trainers.files import atomic_path
from video_datasets.annotations import read_annotations
from video_datasets.decoders.base import DecoderError
from video_datasets.decoding import VideoReadError
from video_datasets.machine import available_cores
from video_datasets.segments import VideoSegment, segment_name
from video_datasets.stored_frames import FramesWriter, StoreSettings, opened_frames
from video_datasets.timed_frames import TimedFrame, frames_in_time
from video_datasets.transforms import shrink
from video_datasets.video_files import (
    PACK_STATE,
    UNFINISHED,
    FoundSource,
    VideoFiles,
    index_path,
    open_video_files,
    write_tar_index,
)

# Frames that may be wanted are kept as decoded until the number of frames is known; above this many bytes the video
# is decoded twice instead.
_MAX_KEPT_BYTES = 256 << 20


@dataclass(frozen=True)
class Options:
    """What is stored, with how many processes, within which time per video, in tars of about which size."""

    settings: StoreSettings = StoreSettings()
    shard_bytes: int = 20_000_000_000
    workers: int = field(default_factory=available_cores)
    time_limit_s: float = 600.0


@dataclass(frozen=True)
class Job:
    """One video to store: `name` is that of the member, `target` a file for its frames."""

    key: str
    name: str
    source: FoundSource
    target: str
    settings: StoreSettings


@dataclass
class Stored:
    """The result of a run: videos that are stored now, how many of them before, failures (path -> reason), bytes."""

    done: int = 0
    kept: int = 0
    failures: dict[str, str] = field(default_factory=dict)
    num_bytes: int = 0


def store(
    videos: str | Path, output: Path, options: Options, lists: list[Path] | None = None, overwrite: bool = False
) -> Stored:
    """Store the frames of all videos below a root, or of those of some lists, in a folder of tars.

    Every tar appears whole or not at all. A run that was interrupted continues with the videos that are missing.

    Raises:
        VideoFilesError, AnnotationError, DataError: the root, a list or the output is wrong.
    """
    jobs = plan(videos, output, options, lists)
    state = output / PACK_STATE
    if overwrite:
        for path in [*output.glob("*.tar"), *output.glob("*.tar.index"), *state.glob("*")]:
            path.unlink()
    if any(output.glob("*.tar")) and not state.exists():
        raise DataError(f"{output}: contains tars of another kind; choose another --output")
    stored = Stored()
    with Progress(state) as progress:
        (state / UNFINISHED).touch()
        for path in state.glob("*.part"):  # of processes that were killed
            path.unlink()
        with _Shards(output, progress.known, options.shard_bytes) as shards:
            remaining = []
            for job in jobs:
                if job.name not in shards.names:
                    remaining.append(job)
                elif job.key not in progress.known:
                    raise DataError(
                        f"{output}: {job.name} is in it with other settings, or has changed since; choose another "
                        "--output, or start again with --overwrite"
                    )
            stored.kept = stored.done = len(jobs) - len(remaining)
            with tqdm(total=len(jobs), initial=stored.kept, desc="store", unit="video", disable=None) as bar:
                for job, result in watched_map(store_video, remaining, options.workers, options.time_limit_s):
                    if isinstance(result, Failure):
                        stored.failures[job.name] = result.reason.removeprefix("VideoReadError: ")
                        Path(job.target).unlink(missing_ok=True)
                    else:
                        progress.add(job.key, {**result, **shards.add(job.name, Path(job.target))})
                        stored.done += 1
                    bar.update()
    write_csv(state / "failures.csv", ["path", "reason"], sorted(stored.failures.items()))
    if not stored.done:
        name, reason = next(iter(stored.failures.items()))
        raise DataError(f"{videos}: none of the videos can be read; the first: {name}: {reason}")
    (state / UNFINISHED).unlink()
    stored.num_bytes = sum(path.stat().st_size for path in output.glob("*.tar"))
    return stored


def plan(videos: str | Path, output: Path, options: Options, lists: list[Path] | None = None) -> list[Job]:
    """Return a job for every video.

    Raises:
        VideoFilesError, AnnotationError, DataError: as for `store`.
    """
    files = open_video_files(videos)
    root, target = Path(files.root).resolve(), output.resolve()
    if target == root or target in root.parents or root in target.parents:
        raise DataError(f"{output}: must be a separate folder, outside of the videos in {root}")
    jobs: dict[str, Job] = {}
    for source in _sources(files, lists):
        name = _member_name(source, files.root)
        key = key_of(source, str(options.settings))
        part = output / PACK_STATE / f"{len(jobs)}.part"
        jobs.setdefault(name, Job(key, name, source, str(part), options.settings))
    return list(jobs.values())


def _member_name(source: FoundSource, root: str) -> str:
    """Return the name of a video's member: its path below the root, and its segment."""
    if isinstance(source, VideoSegment):
        found = source.source
        assert isinstance(found, FoundSource)
        return segment_name(_member_name(found, root), source.start, source.end)
    return Path(os.path.relpath(source, root)).as_posix() if isinstance(source, str) else source.name


def _sources(files: VideoFiles, lists: list[Path] | None) -> Iterator[FoundSource]:
    if lists:
        listed = list(
            dict.fromkeys(record.path for path in lists for record in read_annotations(path, multi_label=True))
        )
        files.prepare(listed)
    else:
        found = files.find_all()
        listed = found.videos
        report_left_out(files.root, found)
    if not listed:
        raise DataError(f"{files.root}: no videos")
    missing = []
    for path in tqdm(listed, desc="find", unit="video", disable=None, leave=False):
        try:
            yield files.find(path)
        except VideoReadError:
            missing.append(path)
    if missing:
        raise DataError(f"{files.root}: {len(missing)} listed videos are missing; the first: {missing[0]}")


def store_video(job: Job) -> dict[str, Any]:
    """Write the frames of a video to the job's target; return their number and the bytes.

    Raises:
        VideoReadError: the video cannot be decoded to its end.
    """
    torch.set_num_threads(1)
    segment = job.source if isinstance(job.source, VideoSegment) else None
    source = job.source if segment is None else segment.source
    content = source if isinstance(source, str) else source.read()  # type: ignore[union-attr]
    try:
        with open(job.target, "wb") as file:
            num_stored = _write_frames(content, file, job.settings, segment)
    except VideoReadError as error:
        raise VideoReadError(job.name, error.reason) from error
    with opened_frames(job.target) as written:
        assert written is not None
        written.check()
    return {"frames": num_stored, "bytes": os.path.getsize(job.target)}


def _write_frames(
    content: str | bytes, file: BinaryIO, settings: StoreSettings, segment: VideoSegment | None = None
) -> int:
    """Write the wanted frames of a video or of its segment one by one, and return their number."""
    if segment is None:
        return _write_video(lambda: frames_in_time(content), file, settings)
    try:
        first, stop = segment.frames(np.array([frame.start for frame in frames_in_time(content)]))
    except DecoderError as error:
        raise VideoReadError(str(segment), str(error)) from error
    return _write_video(lambda: islice(frames_in_time(content), first, stop), file, settings)


def _write_video(frames: Callable[[], Iterable[TimedFrame]], file: BinaryIO, settings: StoreSettings) -> int:
    writer = FramesWriter(file, settings)

    def add(frame: TimedFrame) -> None:
        pixels = frame.pixels()
        writer.add(pixels if settings.short_side is None else shrink(pixels[None], settings.short_side)[0])

    times: list[float] = []
    kept: list[TimedFrame] | None = []
    max_kept = 0
    for frame in frames():
        if settings.frames is None:
            add(frame)
        elif kept is not None:
            if not times:
                max_kept = _MAX_KEPT_BYTES // (frame.pixels().nbytes // 2)  # YUV has half the bytes of RGB
            kept.append(frame)
            if len(kept) > max_kept:
                kept = None
        times.append(frame.start)
    positions = settings.positions(len(times)).tolist()
    if settings.frames is not None:
        wanted = set(positions)
        for index, frame in enumerate(frames() if kept is None else kept):
            if index in wanted:
                add(frame)
    writer.finish(len(times), positions, [times[index] - times[0] for index in positions])
    return len(positions)


class _Shards:
    """Tars that grow one after the other. The one that grows is in the state's folder.

    Args:
        output: folder of the finished tars.
        known: earlier results: the name, the tar's number and the end of each member. What a killed process wrote
            behind the last known end is removed.
        max_bytes: a tar that is larger is finished.
    """

    def __init__(self, output: Path, known: dict[str, dict[str, Any]], max_bytes: int):
        self._output, self._max_bytes = output, max_bytes
        self._number = len(list(output.glob("*.tar")))
        self._end = 0
        self.names: set[str] = set()
        growing = self._growing.exists()
        for facts in known.values():
            if facts["shard"] < self._number or (facts["shard"] == self._number and growing):
                self.names.add(facts["name"])
            if facts["shard"] == self._number:
                self._end = max(self._end, facts["end"])
        self._open(self._end if growing else 0)

    def __enter__(self) -> "_Shards":
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is None and self._end:
            self._finish()
        self._file.close()
        if kind is None:
            self._growing.unlink(missing_ok=True)
            for path in self._output.glob("*.tar"):
                if not index_path(path).exists():
                    _write_index(path)

    def add(self, name: str, content: Path) -> dict[str, Any]:
        """Move a file into a tar; return what `known` must have of it."""
        if self._end > self._max_bytes:
            self._finish()
            self._number += 1
            self._open(0)
        member = tarfile.TarInfo(name)
        member.size = content.stat().st_size
        with content.open("rb") as file:
            self._archive.addfile(member, file)
        self._file.flush()
        content.unlink()
        self._end = self._file.tell()
        return {"name": name, "shard": self._number, "end": self._end}

    @property
    def _growing(self) -> Path:
        return self._output / PACK_STATE / f"{self._number:05d}.tar"

    def _open(self, end: int) -> None:
        self._file = self._growing.open("r+b" if end else "wb")
        self._file.truncate(end)
        self._file.seek(end)
        self._archive = tarfile.open(fileobj=self._file, mode="w", format=tarfile.PAX_FORMAT)  # noqa: SIM115
        self._end = end

    def _finish(self) -> None:
        self._archive.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        finished = self._output / self._growing.name
        os.replace(self._growing, finished)
        _write_index(finished)


def _write_index(path: Path) -> None:
    with atomic_path(index_path(path)) as temporary:
        write_tar_index(path, temporary)
