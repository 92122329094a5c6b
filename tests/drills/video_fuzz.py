#!/usr/bin/env python3
"""Read damaged videos, and files that are no videos: no traceback, no hang, no silent acceptance.

    python tests/drills/video_fuzz.py --mutants 3000 --seed 1

A mutant is one of a few small videos with changed, missing, repeated or foreign bytes, or no video under the name of
one. Each is decoded (`auto`, and every installed decoder), read in time, and checked as `verify --full` does, in a
process that may die. What is wrong: an error that is not one line of a video's, more than `--limit` seconds, or the
acceptance of what is no video. A process that dies costs its video and is counted. Exit status 1 if anything is wrong;
the mutants at fault are kept in `--output`. The same seed makes the same mutants.
"""

import argparse
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

from trainers.commands.data.inspect_video import Job, inspect_video
from trainers.commands.data.watched_pool import Failure, watched_map
from video_datasets.decoders import DECODERS
from video_datasets.decoding import VideoReadError, decode
from video_datasets.sampling import test_indices
from video_datasets.timed_frames import frames_in_time

NUM_FRAMES = 8
# Name, codec, pixel format.
SOURCES = (
    ("h264.mp4", "libx264", "yuv420p"),
    ("h264.mov", "libx264", "yuv420p"),
    ("mpeg4.avi", "mpeg4", "yuv420p"),
    ("h264.mkv", "libx264", "yuv420p"),
    ("mpeg2.ts", "mpeg2video", "yuv420p"),
    ("mpeg1.mpg", "mpeg1video", "yuv420p"),
    ("mjpeg.mov", "mjpeg", "yuvj420p"),
    ("frames.gif", "gif", "rgb8"),
)
HLS = "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{}\n#EXT-X-ENDLIST\n"
NO_VIDEOS = (
    HLS.format("{source}"),
    HLS.format("http://192.0.2.1/v.ts"),
    "ffconcat version 1.0\nfile {source}\n",
    "ffconcat version 1.0\nfile tcp://192.0.2.1:9\n",
    "v=0\nc=IN IP4 192.0.2.1\nm=video 9 RTP/AVP 96\n",
    "<MPD type='static'><BaseURL>{source}</BaseURL></MPD>",
    "<html>404 Not Found</html>",
    "{source}\n" * 50,
    "\0" * 3000,
)


@dataclass(frozen=True)
class Mutant:
    """A file to read; `is_video`: whether it was a video before it was damaged."""

    number: int
    path: str
    change: str
    is_video: bool


def make_sources(folder: Path) -> list[Path]:
    """Write a short video of each kind; return the paths."""
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (12, 48, 64, 3), dtype=np.uint8)
    paths = []
    for name, codec, pix_fmt in SOURCES:
        paths.append(folder / name)
        with av.open(str(paths[-1]), "w") as container:
            stream = container.add_stream(codec, rate=25)
            stream.width, stream.height, stream.pix_fmt = 64, 48, pix_fmt
            for picture in pictures:
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=pix_fmt)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
    return paths


def damage(content: bytes, other: bytes, rng: np.random.Generator) -> tuple[bytes, str]:
    """Return a damaged copy of a file's bytes, and what was done; `other` is another file's bytes."""
    data = bytearray(content)
    at = int(rng.integers(len(data)))
    length = int(rng.integers(1, max(2, len(data) // 4)))
    kind = str(rng.choice(["bits", "head", "cut", "zeros", "noise", "remove", "repeat", "splice", "size", "tail"]))
    match kind:
        case "bits":  # anywhere
            for place in rng.integers(len(data), size=int(rng.integers(1, 40))):
                data[place] ^= 1 << int(rng.integers(8))
        case "head":  # where containers describe themselves
            for place in rng.integers(min(400, len(data)), size=int(rng.integers(1, 6))):
                data[place] = int(rng.integers(256))
        case "cut":
            del data[at:]
        case "zeros":
            data[at : at + length] = bytes(len(data[at : at + length]))
        case "noise":
            data[at : at + length] = rng.bytes(len(data[at : at + length]))
        case "remove":
            del data[at : at + length]
        case "repeat":
            data[at:at] = data[at : at + length]
        case "splice":
            data[at:] = other[int(rng.integers(len(other))) :]
        case "size":  # numbers of four bytes: sizes, counts, durations
            for _ in range(int(rng.integers(1, 4))):
                place = int(rng.integers(max(1, len(data) - 4)))
                data[place : place + 4] = [b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff"][int(rng.integers(3))]
        case "tail":  # an index at the end
            place = max(0, len(data) - int(rng.integers(1, 600)))
            data[place : place + 16] = rng.bytes(16)
    return bytes(data), kind


def make_mutants(folder: Path, number: int, seed: int) -> Iterator[Mutant]:
    """Write the mutants one by one; every tenth is no video."""
    folder.mkdir(parents=True, exist_ok=True)
    sources = make_sources(folder)
    contents = [path.read_bytes() for path in sources]
    for index in range(number):
        rng = np.random.default_rng([seed, index])
        chosen, other = (int(one) for one in rng.integers(len(sources), size=2))
        path = folder / f"{index:05d}{sources[chosen].suffix}"
        is_video = index % 10 != 9
        if is_video:
            content, change = damage(contents[chosen], contents[other], rng)
        else:
            text = NO_VIDEOS[index // 10 % len(NO_VIDEOS)].replace("{source}", str(sources[other]))
            content, change = text.encode(), "no video"
        path.write_bytes(content)
        yield Mutant(index, str(path), f"{sources[chosen].name}: {change}", is_video)


def read(mutant: Mutant) -> dict[str, str]:
    """Read a mutant in every way; return what came of each: `read`, or the reason against it.

    Raises:
        AssertionError: a reason is not one line, or what is no video was read.
        Exception: any other error is a fault of the reader.
    """
    found: dict[str, str] = {}
    for name in ("auto", *(name for name, decoder in DECODERS.items() if decoder.is_installed)):
        try:
            frames = decode(mutant.path, lambda count: test_indices(count, NUM_FRAMES)[0], name)
            assert frames.shape[0] == NUM_FRAMES and frames.shape[3] == 3, frames.shape
            found[name] = "read"
        except VideoReadError as error:
            found[name] = error.reason
    try:
        last = 0.0
        for number, frame in enumerate(frames_in_time(mutant.path)):
            assert frame.end >= frame.start >= last, "time runs backwards"
            last = frame.start
            if number < NUM_FRAMES:
                frame.pixels()
        found["in time"] = "read"
    except VideoReadError as error:
        found["in time"] = error.reason
    facts = inspect_video(Job("", mutant.path, True, NUM_FRAMES, False, "auto"))
    errors = [text for level, _, text in facts["findings"] if level == "error"]
    found["verify"] = "; ".join(errors) or "read"
    for way, reason in found.items():
        assert reason and "\n" not in reason and "Traceback" not in reason, (way, reason)
        assert mutant.is_video or reason != "read", f"{way} accepts what is no video"
    return found


def run(folder: Path, number: int, seed: int, workers: int, limit_s: float) -> tuple[Counter[str], list[str]]:
    """Read all mutants; return how many came to what, and a line for each fault. Files without a fault are deleted."""
    outcomes: Counter[str] = Counter()
    faults: list[str] = []
    for mutant, result in watched_map(read, make_mutants(folder, number, seed), workers, limit_s):
        if isinstance(result, Failure):
            died = result.reason.startswith("its process died")
            outcomes["died" if died else "fault"] += 1
            if not died:
                faults.append(f"{mutant.path} ({mutant.change}): {result.reason}")
                continue
        else:
            outcomes["read" if "read" in result.values() else "refused"] += 1
        Path(mutant.path).unlink()
    return outcomes, faults


def main() -> int:
    """Run the drill; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutants", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--limit", type=float, default=20.0, help="seconds for a mutant (20)")
    parser.add_argument("--output", type=Path, help="folder of the mutants at fault (default: a temporary one)")
    args = parser.parse_args()
    folder = args.output or Path(tempfile.mkdtemp(prefix="video_fuzz_"))
    outcomes, faults = run(folder, args.mutants, args.seed, args.workers, args.limit)
    print(f"seed {args.seed}: " + ", ".join(f"{count} {what}" for what, count in sorted(outcomes.items())))
    print("\n".join(faults) or "no fault")
    if not faults and args.output is None:
        shutil.rmtree(folder)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
