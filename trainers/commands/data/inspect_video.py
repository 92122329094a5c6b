"""The facts of one video and whether it decodes, for the verification. Runs in worker processes."""

import base64
import hashlib
import io
import os
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from video_datasets.decoders import is_exact
from video_datasets.decoders.base import DecoderError, decoder_errors
from video_datasets.decoders.pyav import Orientation, best_video_stream, open_video, upright_rgb
from video_datasets.decoding import VideoReadError, decode
from video_datasets.sampling import test_indices
from video_datasets.segments import VideoSegment, segment_name
from video_datasets.stored_frames import StoredFrames, opened_frames
from video_datasets.video_files import FoundSource

LEVELS = ("ok", "note", "warning", "error")
# A container may claim one frame more than it has, as undamaged AVIs of HMDB-51 do.
FRAME_TOLERANCE = 1
DURATION_TOLERANCE = 3
_DIGEST_BYTES = 1 << 16
_THUMBNAIL_HEIGHT = 96


@dataclass(frozen=True)
class Job:
    """One video to check: `full` decodes every frame in order, else the frames of one test view are decoded."""

    key: str
    source: FoundSource
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
        segment = job.source if isinstance(job.source, VideoSegment) else None
        if segment is not None:  # two segments of a file have different contents
            facts.digest += segment_name("", segment.start, segment.end)
        if facts.bytes == 0:
            raise OSError(None, "the file is empty")
        with opened_frames(content, segment) as stored:
            if stored is not None:
                picture: np.ndarray | None = _read_stored(stored, job, facts)
            else:
                is_whole = job.full and segment is None
                picture = _decode_all(job, content, facts) if is_whole else _decode_wanted(job, content, facts)
    except DecoderError as error:
        facts.add("error", "unreadable", str(error))
        picture = None
    except OSError as error:
        facts.add("error", "unreadable", error.strerror or str(error))
        picture = None
    if facts.frames is not None and 0 < facts.frames < job.num_frames:
        facts.add("note", "short", f"{facts.frames} frames, a view has {job.num_frames}: frames repeat")
    if picture is not None and (job.thumbnail or any(level in LEVELS[2:] for level, _, _ in facts.findings)):
        facts.thumbnail = _thumbnail(picture)
    facts.seconds = round(time.perf_counter() - start, 4)
    return asdict(facts)


def _content(source: FoundSource) -> str | bytes:
    whole = source.source if isinstance(source, VideoSegment) else source
    return str(whole) if isinstance(whole, str | Path) else whole.read()


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


def content_hash(source: FoundSource) -> str:
    """Return the SHA-256 of the whole content of a video's file.

    Raises:
        OSError: it cannot be read.
    """
    content = _content(source)
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    with open(content, "rb") as file:
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


@dataclass
class _View:
    """One test view as training reads it: number of frames of the video, indices (T,) and frames (T, H, W, 3)."""

    num_video_frames: int
    indices: np.ndarray
    frames: np.ndarray


def _read_view(job: Job, facts: VideoFacts, decoder: str) -> _View | None:
    """Decode the frames of one test view; None, with a finding, if they cannot be decoded."""
    chosen: list[tuple[int, np.ndarray]] = []

    def choose(num_video_frames: int) -> np.ndarray:
        chosen.append((num_video_frames, test_indices(num_video_frames, job.num_frames)[0]))
        return chosen[-1][1]

    try:
        frames = decode(job.source, choose, decoder)  # (T, H, W, 3)
    except VideoReadError as error:
        facts.add("error", "unreadable", error.reason)
        return None
    return _View(*chosen[-1], frames)


def _decode_wanted(job: Job, content: str | bytes, facts: VideoFacts) -> np.ndarray | None:
    """Decode the frames of one test view, and compare them with the right ones if the decoder is not exact.

    A segment is read by exact decoders only; with `full` it is compared with decoding in order.
    """
    header = _read_header(content, facts)
    view = _read_view(job, facts, job.decoder)
    if view is None:
        return None
    facts.frames = view.num_video_frames
    facts.height, facts.width = view.frames.shape[1:3]
    is_segment = isinstance(job.source, VideoSegment)
    if not is_segment:
        header.compare(facts)
    if job.full if is_segment else not is_exact(job.decoder):
        right: list[int] = []

        def choose(num_video_frames: int) -> np.ndarray:
            right.append(num_video_frames)
            return np.minimum(view.indices, num_video_frames - 1)

        try:
            frames = decode(job.source, choose, "pyav" if is_segment else "auto")
        except VideoReadError as error:
            facts.add("warning", "wrong frames", f"{job.decoder} reads it, but in order it fails: {error.reason}")
        else:
            _compare_frames(
                job.decoder,
                header.rounding,
                view,
                right[-1],
                dict(zip(view.indices.tolist(), frames, strict=True)),
                facts,
            )
    return view.frames[len(view.frames) // 2]


def _compare_frames(
    decoder: str, rounding: float, view: _View, count: int, right: dict[int, np.ndarray], facts: VideoFacts
) -> None:
    """Add a finding if a view is not what decoding in order gives: `count` frames, of which `right` are some."""
    limit = 0.0 if is_exact(decoder) else rounding
    wrong = 0
    for index, frame in zip(view.indices.tolist(), view.frames, strict=True):
        expected = right.get(index) if index < count else None
        is_right = expected is not None and expected.shape == frame.shape
        wrong += not (is_right and np.abs(frame.astype(np.int16) - expected).mean() <= limit)
    counted = "" if view.num_video_frames == count else f", and counts {view.num_video_frames} instead of {count}"
    if wrong or counted:
        text = f"{decoder} gets {wrong} of {len(view.frames)} frames wrong{counted}: use data.decoder=auto"
        facts.add("warning", "wrong frames", text)


@dataclass(frozen=True)
class _Header:
    """What a file says of itself.

    Attributes:
        frames: number of frames; None if unknown.
        discarded: how many of them are not shown.
        is_counted: whether that is a count, not an estimate from the duration, which may be too small.
        rounding: mean difference, of 255, up to which decoders differ for equal frames: FFmpeg's versions round
            differently, and take 10 bits to 8 in different ways.
    """

    frames: int | None = None
    discarded: int = 0
    is_counted: bool = True
    rounding: float = 0.5

    def compare(self, facts: VideoFacts) -> None:
        """Add findings if frames are not shown, or if their number is another one."""
        if self.discarded:
            facts.add("note", "edit list", f"{self.discarded} stored frames are not shown")
        if self.frames is None or facts.frames is None:
            return
        missing = self.frames - self.discarded - facts.frames
        if abs(missing) > FRAME_TOLERANCE if self.is_counted else missing > DURATION_TOLERANCE:
            text = f"{facts.frames} frames decode, the file claims {self.frames - self.discarded}"
            facts.add("warning", "frame count", text)


def _read_header(content: str | bytes, facts: VideoFacts) -> _Header:
    """Record the facts in the container if it can be opened. If not, decoding reports the fault."""
    try:
        with decoder_errors("", content), open_video(content) as container:
            stream = best_video_stream(container)
            header = _record_stream(container, stream, facts)
            discarded = sum(packet.is_discard for packet in container.demux(stream))
            return replace(header, discarded=discarded)
    except DecoderError:
        facts.codec = None
    return _Header()


def _decode_all(job: Job, content: str | bytes, facts: VideoFacts) -> np.ndarray | None:
    """Decode every frame in order; compare with the container's claim, and with what training reads."""
    decoded = discarded = damaged = 0
    first: VideoFrame | None = None
    orientation = Orientation()
    picture: np.ndarray | None = None
    header = _Header()
    unreadable = VideoFacts()
    view = _read_view(job, unreadable, job.decoder)
    wanted = set() if view is None else set(view.indices.tolist())
    right: dict[int, np.ndarray] = {}
    try:
        with decoder_errors("fails", content), open_video(content) as container:
            stream = best_video_stream(container)
            header = _record_stream(container, stream, facts)
            for packet in container.demux(stream):
                discarded += packet.is_discard
                for frame in packet.decode():
                    damaged += bool(frame.is_corrupt)
                    if first is None:
                        first, orientation = frame, Orientation.of(frame)
                        picture = upright_rgb(frame, frame.width, frame.height, orientation)
                    if decoded in wanted:
                        right[decoded] = upright_rgb(frame, first.width, first.height, orientation)
                    decoded += 1
    except DecoderError as error:
        facts.add("error", "unreadable", f"after {decoded} frames: {error}" if decoded else str(error))
        return picture
    if picture is None:
        facts.add("error", "unreadable", "it has no frames")
        return None
    facts.frames = decoded
    facts.height, facts.width = picture.shape[:2]
    if damaged:
        facts.add("warning", "damaged", f"{damaged} frames are damaged")
    replace(header, discarded=discarded).compare(facts)
    facts.findings += unreadable.findings
    if view is not None:
        _compare_frames(job.decoder, header.rounding, view, decoded, right, facts)
    return picture


def _record_stream(container: InputContainer, stream: VideoStream, facts: VideoFacts) -> _Header:
    facts.codec = stream.codec_context.codec.canonical_name
    facts.width, facts.height = stream.codec_context.width, stream.codec_context.height
    facts.fps = round(float(stream.average_rate), 3) if stream.average_rate else None
    facts.claimed_frames = stream.frames or _frames_by_duration(container, stream)
    bits = max((component.bits for component in stream.format.components), default=8) if stream.format else 8
    return _Header(facts.claimed_frames, 0, stream.frames > 0, 0.5 if bits == 8 else 4.0)


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
    if duration and "matroska" in container.format.name:  # which counts from zero, not from the first frame
        duration -= (container.start_time or 0) / 1e6
    if not duration or not stream.average_rate:
        return None
    return round(duration * float(stream.average_rate))


def _thumbnail(picture: np.ndarray) -> str:
    """Return a small JPEG of an RGB array, in base64."""
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(picture))
    width = max(1, round(image.width * _THUMBNAIL_HEIGHT / image.height))
    buffer = io.BytesIO()
    image.resize((width, _THUMBNAIL_HEIGHT)).save(buffer, "JPEG", quality=80)
    return base64.b64encode(buffer.getvalue()).decode()
