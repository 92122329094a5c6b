"""Re-encode videos so that training reads them fast: small, upright, a keyframe every few frames, without sound.

    python scripts/data/transcode.py --videos data/k400 --output data/k400_fast
    python scripts/data/pack.py --videos data/k400_fast --output data/k400_fast.tar

Reading 16 frames of a 10 s Kinetics video then costs a third to a quarter. Every frame is kept, in order (time stamps
are not: the result has a constant rate), and the number of frames is checked. Files keep their relative paths and
names, whatever their suffix, so the lists stay as they are; inside they are MP4. Originals are only read. A second
start goes on where the first one stopped. Videos that cannot be decoded to the end are left out and listed in
failures.csv.

Exit status: 0 all is there; 1 some videos failed; 2 the question is wrong.
"""

import argparse
import os
import shutil
import sys
import time
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from tqdm import tqdm

from trainers.commands.data.listing import DataError, all_videos
from trainers.commands.data.progress import Progress, key_of
from trainers.commands.data.watched_pool import Failure, watched_map
from trainers.csv_files import write_csv
from trainers.files import atomic_path
from video_datasets.annotations import AnnotationError, read_annotations
from video_datasets.decoders.pyav import PYAV_ERRORS, best_video_stream, open_video, quarter_turns, upright_rgb
from video_datasets.decoding import VideoReadError
from video_datasets.machine import available_cores
from video_datasets.video_files import TarMember, VideoFilesError, open_video_files

STATE = ".transcode"  # folder below the output: progress, failures


@dataclass(frozen=True)
class Options:
    """How to encode, and with what."""

    short_side: int = 256
    keyframe_every: int = 8
    crf: int = 20
    preset: str = "medium"
    workers: int = field(default_factory=available_cores)
    time_limit_s: float = 600.0

    @property
    def encoding(self) -> tuple[int, int, int, str]:
        """What the content of the result depends on."""
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
    """What was done: videos that are there now, how many of them before this start, failures by path, bytes."""

    done: int = 0
    kept: int = 0
    failures: dict[str, str] = field(default_factory=dict)
    bytes_before: int = 0
    bytes_after: int = 0


def transcode_video(job: Job) -> dict[str, Any]:
    """Encode a video to its target, which appears whole or not at all; return frames, bytes and seconds.

    Raises:
        VideoReadError: the video does not decode to the end, or the result does not have its frames.
    """
    start = time.perf_counter()
    content = job.source if isinstance(job.source, str) else job.source.read()
    size = os.path.getsize(job.source) if isinstance(job.source, str) else job.source.size
    os.makedirs(os.path.dirname(job.target), exist_ok=True)
    with atomic_path(Path(job.target)) as temporary:
        try:
            num_frames = _encode(content, str(temporary), job.options)
        except PYAV_ERRORS as error:
            raise VideoReadError(job.path, str(error).split("\n")[0].split(": '")[0]) from error
        with open_video(str(temporary)) as result:
            found = result.streams.video[0].frames
        if found != num_frames:
            raise VideoReadError(job.path, f"{num_frames} frames became {found}")
    return {
        "frames": num_frames,
        "before": size,
        "after": os.path.getsize(job.target),
        "seconds": round(time.perf_counter() - start, 3),
    }


def _encode(content: str | bytes, target: str, options: Options) -> int:
    """Decode in order and encode; return the number of frames."""
    num_frames = 0
    with open_video(content) as source, av.open(target, "w", format="mp4") as result:
        video = best_video_stream(source)
        if video is None:
            raise ValueError("it has no video stream that can be decoded")
        rate = Fraction(video.average_rate or 25).limit_denominator(10_000)
        stream = None
        for frame in source.decode(video):
            if stream is None:
                stream = _add_stream(result, rate, _target_size(frame, options.short_side), options)
            if quarter_turns(frame):
                pixels = upright_rgb(frame, frame.width, frame.height)
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            picture = frame.reformat(stream.width, stream.height, "yuv420p", interpolation="BICUBIC")
            if num_frames == 0:
                # Else a reader would take the colours of high-definition videos for those of small ones.
                stream.codec_context.colorspace = picture.colorspace
                stream.codec_context.color_range = picture.color_range
            # Published videos have time stamps that repeat or run back; the order of frames is what counts.
            picture.pts, picture.time_base = num_frames, 1 / rate
            picture.pict_type = 0
            result.mux(stream.encode(picture))
            num_frames += 1
        if stream is None:
            raise ValueError("it has no frames")
        result.mux(stream.encode())
    return num_frames


def _add_stream(result: Any, rate: Fraction, size: tuple[int, int], options: Options) -> Any:
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


def _target_size(frame: Any, short_side: int) -> tuple[int, int]:
    """Return width and height, upright, even, with the short side at most `short_side`."""
    width, height = frame.width, frame.height
    if quarter_turns(frame) % 2:
        width, height = height, width
    scale = min(1.0, short_side / min(width, height))
    return max(2, 2 * round(width * scale / 2)), max(2, 2 * round(height * scale / 2))


def transcode(videos: str | Path, output: Path, options: Options, lists: list[Path] | None = None) -> Outcome:
    """Encode all videos below a root, or those of some lists, into a folder with the same relative paths.

    Raises:
        VideoFilesError, AnnotationError, DataError: where the root, a list or the output is wrong.
    """
    jobs = plan(videos, output, options, lists)
    outcome = Outcome()
    with Progress(output / STATE) as progress:
        todo = []
        for job in jobs:
            facts = progress.known.get(job.key)
            if facts is not None and os.path.isfile(job.target) and os.path.getsize(job.target) == facts["after"]:
                _count(outcome, facts)
                outcome.kept += 1
            else:
                todo.append(job)
        with tqdm(total=len(jobs), initial=outcome.kept, desc="transcode", unit="video", disable=None) as bar:
            for job, result in watched_map(transcode_video, todo, options.workers, options.time_limit_s):
                if isinstance(result, Failure):
                    outcome.failures[job.path] = result.reason.removeprefix("VideoReadError: ")
                else:
                    progress.add(job.key, result)
                    _count(outcome, result)
                bar.update()
    _remove_leftovers(output)
    write_csv(output / STATE / "failures.csv", ["path", "reason"], sorted(outcome.failures.items()))
    return outcome


def plan(videos: str | Path, output: Path, options: Options, lists: list[Path] | None = None) -> list[Job]:
    """Return a job for every video.

    Raises:
        as `transcode`.
    """
    files = open_video_files(videos)
    root, target_root = Path(files.root).resolve(), output.resolve()
    if target_root == root or target_root in root.parents or root in target_root.parents:
        raise DataError(f"{output}: must be a folder of its own, apart from the originals in {root}")
    if lists:
        listed = list(dict.fromkeys(record.path for path in lists for record in read_annotations(path)))
        files.prepare(listed)
    else:
        listed = all_videos(files)
    jobs, missing = [], []
    for path in tqdm(listed, desc="find", unit="video", disable=None, leave=False):
        try:
            source = files.find(path)
        except VideoReadError:
            missing.append(path)
            continue
        below = os.path.relpath(source, files.root) if isinstance(source, str) else source.name
        target = str(output / below)
        jobs.append(Job(key_of(source, *options.encoding), path, source, target, options))
    if missing:
        raise DataError(f"{files.root}: {len(missing)} listed videos are not there; the first: {missing[0]}")
    if not jobs:
        raise DataError(f"{files.root}: no videos")
    return jobs


def _count(outcome: Outcome, facts: dict[str, Any]) -> None:
    outcome.done += 1
    outcome.bytes_before += facts["before"]
    outcome.bytes_after += facts["after"]


def _remove_leftovers(output: Path) -> None:
    """Remove what killed processes were making."""
    for path in output.rglob(".*.tmp"):
        path.unlink(missing_ok=True)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    default = Options()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", required=True, help="folder or .tar of the originals")
    parser.add_argument("--output", type=Path, required=True, help="folder of the results")
    parser.add_argument("--list", type=Path, nargs="+", default=[], help="only the videos of these lists")
    parser.add_argument("--short-side", type=int, default=default.short_side, help="pixels; never enlarged (256)")
    parser.add_argument("--keyframe-every", type=int, default=default.keyframe_every, help="frames (8)")
    parser.add_argument("--crf", type=int, default=default.crf, help="quality, 0 (lossless) to 51 (default: 20)")
    parser.add_argument("--preset", default=default.preset, help="of x264: ultrafast to veryslow (medium)")
    parser.add_argument("--workers", type=int, default=default.workers, help="processes (default: %(default)s)")
    parser.add_argument("--time-limit", type=float, default=default.time_limit_s, help="seconds a video (600)")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and stop")
    args = parser.parse_args(argv)
    options = Options(
        args.short_side, args.keyframe_every, args.crf, args.preset, max(1, args.workers), args.time_limit
    )
    try:
        if args.dry_run:
            jobs = plan(args.videos, args.output, options, args.list)
            size = sum(os.path.getsize(j.source) if isinstance(j.source, str) else j.source.size for j in jobs)
            free = shutil.disk_usage(next(p for p in (args.output, *args.output.resolve().parents) if p.exists())).free
            print(f"{len(jobs):,} videos, {size / 1e9:.2f} GB; {free / 1e9:.0f} GB are free at {args.output}")
            return 0
        outcome = transcode(args.videos, args.output, options, args.list)
    except (DataError, AnnotationError, VideoFilesError, OSError) as error:
        print(f"transcode: {error}", file=sys.stderr)
        return 2
    before, after = outcome.bytes_before / 1e9, outcome.bytes_after / 1e9
    print(
        f"{outcome.done:,} videos in {args.output} ({outcome.kept:,} were there): {before:.2f} GB became {after:.2f} GB"
    )
    for path, reason in sorted(outcome.failures.items())[:10]:
        print(f"failed: {path}: {reason}", file=sys.stderr)
    if outcome.failures:
        print(f"{len(outcome.failures):,} videos failed: {args.output / STATE / 'failures.csv'}", file=sys.stderr)
    return 1 if outcome.failures else 0
