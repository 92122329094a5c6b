"""The facts of one video and whether it decodes, for the verification. Runs in worker processes."""

import base64
import hashlib
import io
import os
import time
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from video_datasets.decoders.base import DecoderError, decoder_errors
from video_datasets.decoders.pyav import best_video_stream, open_video, quarter_turns, upright_rgb
from video_datasets.decoding import VideoReadError, decode
from video_datasets.sampling import test_indices
from video_datasets.stored_frames import StoredFrames, opened_frames
from video_datasets.video_files import TarMember

LEVELS = ("ok", "note", "warning", "error")
# A container may claim one frame more than it has, as undamaged AVIs of HMDB-51 do.
FRAME_TOLERANCE = 1
_DIGEST_BYTES = 1 << 16
_THUMBNAIL_HEIGHT = 96


@dataclass(frozen=True)
class Job:
    """One video to check: `full` decodes every frame in order, else the frames of one test view are decoded."""

    key: str
    source: str | TarMember
    full: bool
    num_frames: int
    thumbnail: bool
    decoder: str = "auto"


@dataclass
class VideoFacts:
    """The facts of a video.

    Attributes:
        frames: frames that were decoded or counted.
        claimed_frames: number that the container claims, None if it has none.
        width, height, fps, codec: of the video stream; upright.
        bytes: size of the file.
        digest: hash of the size, the beginning and the end.
        seconds: time of the check.
        findings: (level, kind, text), with a level of `LEVELS`.
        thumbnail: a JPEG in base64.
    """

    frames: int | None = None
    claimed_frames: int | None = None
    width: int | None = None
    height: int | None = None
    fps: float | None = None
    codec: str | None = None
    bytes: int = 0
    digest: str = ""
    seconds: float = 0.0
    findings: list[tuple[str, str, str]] = field(default_factory=list)
    thumbnail: str | None = None

    @classmethod
    def from_dict(cls, facts: dict[str, Any]) -> "VideoFacts":
        """Return the facts that `dataclasses.asdict` or JSON holds."""
        return cls(**{**facts, "findings": [tuple(finding) for finding in facts["findings"]]})

    def add(self, level: str, kind: str, text: str) -> None:
        """Add a finding."""
        self.findings.append((level, kind, text))


def inspect_video(job: Job) -> dict[str, Any]:
    """Check a video; return its `VideoFacts` as a dict. A fault of the video is a finding, not an error."""
    start = time.perf_counter()
    facts = VideoFacts()
    try:
        content = _content(job.source)
        facts.bytes, facts.digest = _size_and_digest(content)
        if facts.bytes == 0:
            raise OSError(None, "the file is empty")
        with opened_frames(content) as stored:
            if stored is not None:
                picture: np.ndarray | VideoFrame | None = _read_stored(stored, job, facts)
            else:
                picture = _decode_all(content, facts) if job.full else _decode_wanted(job, content, facts)
    except DecoderError as error:
        facts.add("error", "unreadable", str(error))
        picture = None
    except OSError as error:
        facts.add("error", "unreadable", error.strerror or str(error))
        picture = None
    if facts.frames is not None and 0 < facts.frames < job.num_frames:
        facts.add("note", "short", f"{facts.frames} frames, a view has {job.num_frames}: frames repeat")
    if picture is not None and (job.thumbnail or any(level in LEVELS[2:] for level, _, _ in facts.findings)):
        try:
            facts.thumbnail = _thumbnail(picture)
        except DecoderError as error:  # its pixels are of a kind that cannot be converted
            facts.add("error", "unreadable", str(error))
    facts.seconds = round(time.perf_counter() - start, 4)
    return asdict(facts)


def _content(source: str | TarMember) -> str | bytes:
    return source if isinstance(source, str) else source.read()


def _size_and_digest(content: str | bytes) -> tuple[int, str]:
    if isinstance(content, bytes):
        size, parts = len(content), (content[:_DIGEST_BYTES], content[-_DIGEST_BYTES:])
    else:
        with open(content, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            head = file.read(_DIGEST_BYTES)
            file.seek(max(0, size - _DIGEST_BYTES))
            parts = (head, file.read())
    return size, hashlib.sha256(b"".join([str(size).encode(), *parts])).hexdigest()[:24]


def content_hash(source: str | TarMember) -> str:
    """Return the SHA-256 of a video's whole content.

    Raises:
        OSError: it cannot be read.
    """
    if not isinstance(source, str):
        return hashlib.sha256(source.read()).hexdigest()
    with open(source, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_stored(stored: StoredFrames, job: Job, facts: VideoFacts) -> np.ndarray:
    """Read the frames of one test view, or with `full` every frame, whose checksum is compared."""
    indices = test_indices(stored.num_frames, job.num_frames)[0]
    facts.frames, facts.width, facts.height = stored.num_frames, stored.width, stored.height
    facts.codec = "stored frames"
    if job.full:
        stored.check()
        indices = np.arange(stored.num_frames)
    for index in indices:
        picture: np.ndarray = stored.read(np.array([index]))[0]
    return picture


def _decode_wanted(job: Job, content: str | bytes, facts: VideoFacts) -> np.ndarray | None:
    """Decode the frames of one test view, as evaluation does."""
    _read_header(content, facts)

    def choose(num_video_frames: int) -> np.ndarray:
        facts.frames = num_video_frames
        return test_indices(num_video_frames, job.num_frames)[0]

    try:
        frames = decode(job.source, choose, job.decoder)  # (T, H, W, 3)
    except VideoReadError as error:
        facts.frames = None
        facts.add("error", "unreadable", error.reason)
        return None
    facts.height, facts.width = frames.shape[1:3]
    _compare(facts, facts.claimed_frames)
    return frames[len(frames) // 2]


def _read_header(content: str | bytes, facts: VideoFacts) -> None:
    """Record the facts in the container if it can be opened. If not, decoding reports the fault."""
    try:
        with decoder_errors("", content), open_video(content) as container:
            _record_stream(container, best_video_stream(container), facts)
    except DecoderError:
        facts.codec = None


def _decode_all(content: str | bytes, facts: VideoFacts) -> VideoFrame | None:
    """Decode every frame in order and compare their number with the container's claim."""
    first: VideoFrame | None = None
    decoded = discarded = damaged = 0
    try:
        with decoder_errors("fails", content), open_video(content) as container:
            stream = best_video_stream(container)
            _record_stream(container, stream, facts)
            for packet in container.demux(stream):
                discarded += packet.is_discard
                for frame in packet.decode():
                    decoded += 1
                    damaged += bool(frame.is_corrupt)
                    if first is None:
                        first = frame
    except DecoderError as error:
        facts.add("error", "unreadable", f"after {decoded} frames: {error}" if decoded else str(error))
        return first
    if first is None:
        facts.add("error", "unreadable", "it has no frames")
        return None
    facts.frames = decoded
    if quarter_turns(first) % 2:
        facts.width, facts.height = facts.height, facts.width
    if discarded:
        facts.add("note", "edit list", f"{discarded} stored frames are not shown")
    if damaged:
        facts.add("warning", "damaged", f"{damaged} frames are damaged")
    _compare(facts, None if facts.claimed_frames is None else facts.claimed_frames - discarded)
    return first


def _compare(facts: VideoFacts, expected: int | None) -> None:
    if expected is not None and facts.frames is not None and abs(expected - facts.frames) > FRAME_TOLERANCE:
        facts.add("warning", "frame count", f"{facts.frames} frames decode, the file claims {expected}")


def _record_stream(container: InputContainer, stream: VideoStream, facts: VideoFacts) -> None:
    facts.codec = stream.codec_context.codec.canonical_name
    facts.width, facts.height = stream.codec_context.width, stream.codec_context.height
    facts.fps = round(float(stream.average_rate), 3) if stream.average_rate else None
    facts.claimed_frames = stream.frames or _frames_by_duration(container, stream)


def _frames_by_duration(container: InputContainer, stream: VideoStream) -> int | None:
    """Return duration times frame rate, for containers that do not count frames (Matroska); None if one is missing."""
    duration = None
    if stream.duration and stream.time_base:
        duration = float(stream.duration * stream.time_base)
    elif stream.metadata.get("DURATION"):
        hours, minutes, seconds = stream.metadata["DURATION"].split(":")
        duration = 3600 * int(hours) + 60 * int(minutes) + float(seconds)
    elif container.duration and len(container.streams) == 1:  # otherwise it may be that of the sound
        duration = container.duration / 1e6
    if not duration or not stream.average_rate:
        return None
    return round(duration * float(stream.average_rate))


def _thumbnail(picture: np.ndarray | VideoFrame) -> str:
    """Return a small upright JPEG of an RGB array or a PyAV frame, in base64."""
    from PIL import Image

    if isinstance(picture, VideoFrame):
        picture = upright_rgb(picture, picture.width, picture.height)
    image = Image.fromarray(np.ascontiguousarray(picture))
    width = max(1, round(image.width * _THUMBNAIL_HEIGHT / image.height))
    buffer = io.BytesIO()
    image.resize((width, _THUMBNAIL_HEIGHT)).save(buffer, "JPEG", quality=80)
    return base64.b64encode(buffer.getvalue()).decode()
