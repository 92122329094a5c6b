"""Frames of a video as JPEG in one file, each readable by itself: what `pack.py --frames` and `data.cache` write.

A file is `MAGIC`, the frames one after the other, a JSON object about them, its length in four bytes, `MAGIC`. It can
be a file of a folder, a member of a tar, or bytes; `video_datasets.decoding.decode` reads it like a video that consists
of the stored frames.
"""

import functools
import io
import json
import os
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, Protocol, runtime_checkable

import numpy as np

from video_datasets.decoders.base import MAX_PIXELS, DecoderError
from video_datasets.segments import VideoSegment

MAGIC = b"TCFRAME1"
_TAIL = 1 << 14  # bytes at the end that usually contain the whole description


@dataclass(frozen=True)
class StoreSettings:
    """What is stored of a video.

    Attributes:
        frames: number of evenly spaced frames; None for all.
        short_side: pixels; larger frames were resized to it. None for their own size.
        quality: of JPEG, 1 to 100; None for raw pixels.
    """

    frames: int | None = 64
    short_side: int | None = 256
    quality: int | None = 90

    def positions(self, num_video_frames: int) -> np.ndarray:
        """Return which of a video's frames are stored, `i * num_video_frames // frames`; all if there are fewer.

        If `frames` is a multiple of twice the frames of all temporal views, one test view of the stored frames has the
        same frames as one of the video.
        """
        if self.frames is None or self.frames >= num_video_frames:
            return np.arange(num_video_frames)
        return np.arange(self.frames) * num_video_frames // self.frames

    def __str__(self) -> str:
        frames = "all frames" if self.frames is None else f"at most {self.frames} evenly spaced frames"
        size = "" if self.short_side is None else f", short side at most {self.short_side}"
        return f"{frames} of a video{size}, " + ("raw" if self.quality is None else f"JPEG quality {self.quality}")


class FramesWriter:
    """Writes the frames of one video to an open file, one at a time, so that none is held.

    Args:
        file: opened for writing, at its beginning.
        settings: what is stored.
        write: called with each piece of bytes instead of `file.write`.
    """

    def __init__(self, file: BinaryIO, settings: StoreSettings, write: Callable[[bytes], Any] | None = None):
        self._write = file.write if write is None else write
        self._settings = settings
        self._sizes: list[int] = []
        self._shape: tuple[int, ...] = ()
        self._crc = 0
        self._write(MAGIC)

    def add(self, frame: np.ndarray) -> None:
        """Add a frame, uint8 (H, W, 3), already resized. All frames have one size."""
        if self._sizes and frame.shape != self._shape:
            raise ValueError(f"a frame of {frame.shape} after frames of {self._shape}")
        self._shape = frame.shape
        data = encode_jpeg(frame, self._settings.quality) if self._settings.quality else frame.tobytes()
        self._sizes.append(len(data))
        self._crc = zlib.crc32(data, self._crc)
        self._write(data)

    def finish(self, num_video_frames: int, positions: Sequence[int], times: Sequence[float] | None = None) -> None:
        """Write the description.

        Args:
            num_video_frames: frames of the video.
            positions: which of them were added, ascending.
            times: when each of these is shown, in seconds since the first frame; None if unknown.
        """
        if len(positions) != len(self._sizes) or not self._sizes:
            raise ValueError(f"{len(self._sizes)} frames were added, {len(positions)} positions given")
        description = {
            **asdict(self._settings),
            "size": self._shape[:2],
            "num_video_frames": num_video_frames,
            "positions": None if len(positions) == num_video_frames else [int(p) for p in positions],
            "times": None if times is None else [round(float(time), 4) for time in times],
            "bytes": self._sizes,
            "crc32": self._crc,
        }
        text = json.dumps(description, separators=(",", ":")).encode()
        self._write(text + len(text).to_bytes(4, "little") + MAGIC)


@runtime_checkable
class FilePart(Protocol):
    """A part of a file, as a member of a tar."""

    archive: str
    offset: int
    size: int

    def read(self) -> bytes:
        """Return the bytes of the part."""


class StoredFrames:
    """An opened file of stored frames.

    Args:
        file: the file; offset, size: the part of it that holds the frames.
        segment: only the frames of this segment of the video count, except in `check`; None: all.

    Raises:
        DecoderError: it is damaged.
    """

    def __init__(self, file: BinaryIO, offset: int, size: int, segment: VideoSegment | None = None):
        self._file, self._offset = file, offset
        start = max(0, size - _TAIL)
        tail = self._read(start, size - start).tobytes()
        if len(tail) < 12 or tail[-8:] != MAGIC:
            raise DecoderError("the stored frames are not complete")
        length = int.from_bytes(tail[-12:-8], "little")
        end = size - 12 - length  # of the frames
        if end < len(MAGIC):
            raise DecoderError("the description of the stored frames is damaged")
        text = tail[-12 - length : -12] if length <= len(tail) - 12 else self._read(end, length).tobytes()
        try:
            self.facts: dict[str, Any] = json.loads(text)
            facts = self.facts
            self.settings = StoreSettings(facts["frames"], facts["short_side"], facts["quality"])
            self.height, self.width = (int(side) for side in facts["size"])
            self.num_video_frames = int(facts["num_video_frames"])
            sizes = np.array(facts["bytes"], dtype=np.int64)
            self._starts = len(MAGIC) + np.concatenate([[0], np.cumsum(sizes)])
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            raise DecoderError(f"the description of the stored frames is damaged ({error!r:.80})") from error
        is_sound = sizes.ndim == 1 and len(sizes) > 0 and sizes.min() > 0 and self._starts[-1] == end
        if not is_sound or min(self.height, self.width) < 1 or self.height * self.width > MAX_PIXELS:
            raise DecoderError("the description of the stored frames is damaged")
        self._all_starts = self._starts
        if segment is not None:
            self._starts = self._starts[slice(*self._part(segment, len(sizes)))]

    @property
    def num_frames(self) -> int:
        """Number of stored frames."""
        return len(self._starts) - 1

    def encoded(self, indices: np.ndarray) -> list[np.ndarray]:
        """Return the bytes of some stored frames, uint8 (n,) each.

        Raises:
            DecoderError: the file ends before.
        """
        starts = self._starts
        return [self._read(int(starts[i]), int(starts[i + 1] - starts[i])) for i in indices]

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Return some stored frames: uint8 RGB (T, H, W, 3).

        Raises:
            DecoderError: one is damaged.
        """
        frames = np.empty((len(indices), self.height, self.width, 3), dtype=np.uint8)
        for frame, data in zip(frames, self.encoded(indices), strict=True):
            if self.settings.quality is not None:
                frame[:] = decode_jpeg(data, self.height, self.width)
            elif data.size != frame.size:
                raise DecoderError("a stored frame has a wrong size")
            else:
                frame.reshape(-1)[:] = data
        return frames

    def check(self) -> None:
        """Read every byte of all frames and compare their checksum.

        Raises:
            DecoderError: they have changed since they were written.
        """
        crc = 0
        for start, stop in pairwise(self._all_starts.tolist()):
            crc = zlib.crc32(self._read(start, stop - start).data, crc)
        if crc != self.facts["crc32"]:
            raise DecoderError("the stored frames have changed since they were written (checksum)")

    def _part(self, segment: VideoSegment, num_frames: int) -> tuple[int, int]:
        """Return the part of `_starts` with the frames of a segment."""
        times = self.facts.get("times")
        if not isinstance(times, list) or len(times) != num_frames:
            raise DecoderError("the times of the stored frames are unknown, so it has no segments")
        first, stop = segment.frames(np.array(times, dtype=np.float64))
        return first, stop + 1  # with the end of the last one

    def _read(self, start: int, size: int) -> np.ndarray:
        data = np.empty(size, dtype=np.uint8)
        self._file.seek(self._offset + start)
        if self._file.readinto(data) != size:  # type: ignore[attr-defined]
            raise DecoderError("the stored frames are cut short")
        return data


@contextmanager
def opened_frames(source: object, segment: VideoSegment | None = None) -> Iterator[StoredFrames | None]:
    """Open a source of `video_datasets.decoding.decode` if it holds stored frames; None if it holds anything else.

    Of a segment (`segment`, or the source) only the frames within count.

    Raises:
        OSError: it cannot be opened.
        DecoderError: it holds stored frames and is damaged.
    """
    if isinstance(source, VideoSegment):
        segment, source = source, source.source
    with _opened(source) as (file, offset, size):
        file.seek(offset)
        yield StoredFrames(file, offset, size, segment) if file.read(len(MAGIC)) == MAGIC else None


@contextmanager
def _opened(source: object) -> Iterator[tuple[BinaryIO, int, int]]:
    if isinstance(source, str | Path):
        with open(source, "rb", buffering=0) as file:
            yield file, 0, os.fstat(file.fileno()).st_size
    elif isinstance(source, FilePart):
        with open(source.archive, "rb", buffering=0) as file:
            yield file, source.offset, source.size
    else:
        content = source if isinstance(source, bytes) else source.read()  # type: ignore[attr-defined]
        yield io.BytesIO(content), 0, len(content)


def encode_jpeg(frame: np.ndarray, quality: int) -> bytes:
    """Encode uint8 RGB (H, W, 3) as JPEG with half the resolution of colours, as most videos have."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def decode_jpeg(data: np.ndarray, height: int, width: int) -> np.ndarray:
    """Decode a JPEG, uint8 (n,), of a known size to uint8 RGB (H, W, 3).

    Raises:
        DecoderError: it is damaged or has another size.
    """
    if jpeg_size(data) != (height, width):  # before memory is allocated for it
        raise DecoderError(f"a stored frame is no JPEG of {width}x{height} pixels")
    try:
        frame = _jpeg_decoder()(data)
    except (RuntimeError, OSError, SyntaxError) as error:
        raise DecoderError(f"a stored frame is damaged ({' '.join(str(error).split())[:80]})") from error
    if frame.shape != (height, width, 3):
        raise DecoderError(f"a stored frame has the shape {frame.shape}")
    return frame


def jpeg_size(data: np.ndarray) -> tuple[int, int] | None:
    """Return height and width in the header of a JPEG; None if there is none."""
    head = data[:1024].tobytes()
    at = 2
    while at + 9 <= len(head) and head[at] == 0xFF:
        if head[at + 1] in (0xC0, 0xC1, 0xC2):
            return int.from_bytes(head[at + 5 : at + 7], "big"), int.from_bytes(head[at + 7 : at + 9], "big")
        at += 2 + int.from_bytes(head[at + 2 : at + 4], "big")
    return None


@functools.cache
def _jpeg_decoder() -> Callable[[np.ndarray], np.ndarray]:
    """Return torchvision's decoder, which takes half the time of Pillow's, in processes that have imported torch.

    Both are libjpeg-turbo and give the same pixels.
    """
    if "torch" in sys.modules:
        import torch
        from torchvision.io import ImageReadMode
        from torchvision.io import decode_jpeg as decode

        if hasattr(torch.ops.image, "decode_jpeg"):
            return lambda data: decode(torch.from_numpy(data), ImageReadMode.RGB).permute(1, 2, 0).numpy()
    from PIL import Image

    return lambda data: np.asarray(Image.open(io.BytesIO(data.data)).convert("RGB"))
