"""Re-encodes videos for fast reading: small, upright, a keyframe every few frames, without sound."""

import os
import time
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.container import OutputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from tqdm import tqdm

from trainers.commands.data.listing import DataError, report_left_out
from trainers.commands.data.progress import Progress, key_of
from trainers.commands.data.watched_pool import Failure, watched_map
from trainers.csv_files import write_csv
from trainers.files import atomic_path
from video_datasets.annotations import read_annotations
from video_datasets.decoders.base import DecoderError, decoder_errors
from video_datasets.decoders.pyav import Orientation, best_video_stream, open_video, upright_rgb
from video_datasets.decoding import VideoReadError
from video_datasets.machine import available_cores
from video_datasets.segments import VideoSegment
from video_datasets.video_files import TarMember, open_video_files

STATE = ".transcode"  # folder below the output: progress, failures


@dataclass(frozen=True)
class Options:
    """How videos are encoded, with how many processes and within which time per video."""

    short_side: int = 256
    keyframe_every: int = 8
    crf: int = 20
    preset: str = "medium"
    workers: int = field(default_factory=available_cores)
    time_limit_s: float = 600.0

    @property
    def encoding(self) -> tuple[int, int, int, str]:
        """The options that change the result."""
        return (self.short_side, self.keyframe_every, self.crf, self.preset)


@dataclass(frozen=True)
class Job:
    """One video to encode."""

    key: str
    path: str
    source: str | TarMember
    target: str
    options: Options


@dataclass
class Outcome:
    """The result of a run.

    Attributes:
        done: videos that exist now.
        kept: how many of them existed before.
        failures: path -> reason.
        bytes_before, bytes_after: total size of the originals and of the results.
    """

    done: int = 0
    kept: int = 0
    failures: dict[str, str] = field(default_factory=dict)
    bytes_before: int = 0
    bytes_after: int = 0

    def count(self, facts: dict[str, Any]) -> None:
        """Count a video of `transcode_video`."""
        self.done += 1
        self.bytes_before += facts["before"]
        self.bytes_after += facts["after"]


def transcode(videos: str | Path, output: Path, options: Options, lists: list[Path] | None = None) -> Outcome:
    """Encode all videos below a root, or those of some lists, into a folder with the same relative paths.

    Raises:
        VideoFilesError, AnnotationError, DataError: the root, a list or the output is wrong.
    """
    jobs = plan(videos, output, options, lists)
    outcome = Outcome()
    with Progress(output / STATE) as progress:
        remaining = []
        for job in jobs:
            facts = progress.known.get(job.key)
            if facts is not None and os.path.isfile(job.target) and os.path.getsize(job.target) == facts["after"]:
                outcome.count(facts)
                outcome.kept += 1
            else:
                remaining.append(job)
        with tqdm(total=len(jobs), initial=outcome.kept, desc="transcode", unit="video", disable=None) as bar:
            for job, result in watched_map(transcode_video, remaining, options.workers, options.time_limit_s):
                if isinstance(result, Failure):
                    outcome.failures[job.path] = result.reason.removeprefix("VideoReadError: ")
                else:
                    progress.add(job.key, result)
                    outcome.count(result)
                bar.update()
    for path in output.rglob(".*.tmp"):  # of processes that were killed
        path.unlink(missing_ok=True)
    write_csv(output / STATE / "failures.csv", ["path", "reason"], sorted(outcome.failures.items()))
    return outcome


def plan(videos: str | Path, output: Path, options: Options, lists: list[Path] | None = None) -> list[Job]:
    """Return a job for every video.

    Raises:
        VideoFilesError, AnnotationError, DataError: as for `transcode`.
    """
    files = open_video_files(videos)
    root, target_root = Path(files.root).resolve(), output.resolve()
    if target_root == root or target_root in root.parents or root in target_root.parents:
        raise DataError(f"{output}: must be a separate folder, outside of the originals in {root}")
    if lists:
        listed = list(
            dict.fromkeys(record.path for path in lists for record in read_annotations(path, multi_label=True))
        )
        files.prepare(listed)
    else:
        found = files.find_all()
        listed = found.videos
        report_left_out(videos, found)
    jobs: list[Job] = []
    missing = []
    for path in tqdm(listed, desc="find", unit="video", disable=None, leave=False):
        try:
            source = files.find(path)
        except VideoReadError:
            missing.append(path)
            continue
        if isinstance(source, VideoSegment):
            raise DataError(
                f"{path}: a list of segments needs the times of the frames, which transcoding does not keep; store "
                "frames instead (pack.py --frames)"
            )
        relative = os.path.relpath(source, files.root) if isinstance(source, str) else source.name
        jobs.append(Job(key_of(source, *options.encoding), path, source, str(output / relative), options))
    if missing:
        raise DataError(f"{files.root}: {len(missing)} listed videos are missing; the first: {missing[0]}")
    if not jobs:
        raise DataError(f"{files.root}: no videos")
    return jobs


def size_of(source: str | TarMember) -> int:
    """Return the bytes of a video file."""
    return os.path.getsize(source) if isinstance(source, str) else source.size


def transcode_video(job: Job) -> dict[str, Any]:
    """Encode a video to its target, which appears whole or not at all; return frames, bytes and seconds.

    Raises:
        VideoReadError: the video does not decode to the end, or the result has another number of frames.
    """
    start = time.perf_counter()
    content = job.source if isinstance(job.source, str) else job.source.read()
    os.makedirs(os.path.dirname(job.target), exist_ok=True)
    with atomic_path(Path(job.target)) as temporary:
        try:
            with decoder_errors("it cannot be transcoded", content):
                num_frames = _encode(content, str(temporary), job.options)
        except DecoderError as error:
            raise VideoReadError(job.path, str(error)) from error
        with open_video(str(temporary)) as result:
            found = result.streams.video[0].frames
        if found != num_frames:
            raise VideoReadError(job.path, f"{num_frames} frames became {found}")
    return {
        "frames": num_frames,
        "before": size_of(job.source),
        "after": os.path.getsize(job.target),
        "seconds": round(time.perf_counter() - start, 3),
    }


def _encode(content: str | bytes, target: str, options: Options) -> int:
    """Decode in order and encode; return the number of frames."""
    num_frames = 0
    with open_video(content) as source, av.open(target, "w", format="mp4") as result:
        video = best_video_stream(source)
        rate = Fraction(video.average_rate or 25).limit_denominator(10_000)
        stream, orientation = None, Orientation()
        for frame in source.decode(video):
            if stream is None:
                orientation = Orientation.of(frame)
                stream = _add_stream(result, rate, _target_size(frame, orientation, options.short_side), options)
            if any(orientation):
                pixels = upright_rgb(frame, frame.width, frame.height, orientation)
                frame = VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            picture = frame.reformat(stream.width, stream.height, "yuv420p", interpolation="BICUBIC")
            if num_frames == 0:
                # Without these, readers would guess the colour space from the size, which has changed.
                stream.codec_context.colorspace = picture.colorspace
                stream.codec_context.color_range = picture.color_range
            # Published videos have time stamps that repeat or step back; only the order of frames counts.
            picture.pts, picture.time_base = num_frames, 1 / rate
            picture.pict_type = 0
            result.mux(stream.encode(picture))
            num_frames += 1
        if stream is None:
            raise DecoderError("it has no frames")
        result.mux(stream.encode())
    return num_frames


def _add_stream(result: OutputContainer, rate: Fraction, size: tuple[int, int], options: Options) -> VideoStream:
    settings = {
        "crf": str(options.crf),
        "preset": options.preset,
        "tune": "fastdecode",
        "g": str(options.keyframe_every),
        "keyint_min": str(options.keyframe_every),
        "sc_threshold": "0",
        "bf": "0",
        "threads": "1",
    }
    stream = result.add_stream("libx264", rate=rate, options=settings)
    stream.width, stream.height = size
    stream.pix_fmt = "yuv420p"
    stream.codec_context.time_base = 1 / rate
    return stream


def _target_size(frame: VideoFrame, orientation: Orientation, short_side: int) -> tuple[int, int]:
    """Return width and height, upright, even, with the short side at most `short_side`."""
    width, height = frame.width, frame.height
    if orientation.swap:
        width, height = height, width
    scale = min(1.0, short_side / min(width, height))
    return max(2, 2 * round(width * scale / 2)), max(2, 2 * round(height * scale / 2))
