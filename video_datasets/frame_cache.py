"""Frames of videos on a fast disk, filled in the first epoch, so that later epochs decode no video.

As JPEG, an entry holds some frames of a video (`stored_frames`), and the frames that are read have been JPEG whether or
not there was room to store them: results do not depend on what the cache holds. As raw pixels, it holds all frames (or
those that an evaluation takes, which are always the same), and the pixels are those of the video.
Larger videos are stored at the size that the transforms start from.

An entry is written once, under a temporary name until it is complete, and never changed: any number of processes of one
machine can share a folder. Both the size of the folder and the room on its disk, which others fill too, are looked at
again for every piece that is written. When the cache is full its entries stay: an epoch visits every video once, so a
cache that replaced entries would lose each one just before its next use.
"""

import contextlib
import errno
import hashlib
import logging
import os
import shutil
import socket
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np

from video_datasets.decoders.base import DecoderError
from video_datasets.decoding import Change, Choose, Source, VideoReadError
from video_datasets.segments import VideoSegment
from video_datasets.stored_frames import FramesWriter, StoreSettings, decode_jpeg, encode_jpeg, opened_frames
from video_datasets.transforms import shrink

logger = logging.getLogger(__name__)

# A video of more bytes is not stored raw: 300 frames of 640x480 are 276 MB.
_MAX_RAW_BYTES = 1 << 30
_STALE_S = 3600.0
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class Decode(Protocol):
    """`video_datasets.decoding.decode` with a decoder."""

    def __call__(self, source: Source, choose: Choose, *, change: Change | None = None) -> np.ndarray:
        """Decode chosen frames, and change them piece by piece."""


class _Full(Exception):  # noqa: N818
    """The cache may not grow; the message says why."""


def room_to_leave(folder: Path) -> int:
    """Return the bytes of a folder's disk that a cache leaves free: 10 GB, or 5 % of a larger disk."""
    return max(10_000_000_000, shutil.disk_usage(folder).total // 20)


class FrameCache:
    """Frames of videos in a folder of bounded size. Picklable; every process opens it for itself.

    Args:
        folder: created if missing; on a local disk, or in memory (/dev/shm).
        max_bytes: size that the folder never exceeds.
        settings: what is stored of a video; a cache of raw pixels stores all frames.
        decoder: name of the decoder, part of an entry's key: decoders count the frames of odd files differently.
        reserve: bytes that stay free on the disk besides `room_to_leave`, for what others will write to it.
    """

    def __init__(
        self, folder: str | Path, max_bytes: int, settings: StoreSettings, decoder: str = "auto", reserve: int = 0
    ):
        if settings.quality is None and settings.frames is not None:
            raise ValueError("a cache of raw pixels stores all frames")
        self.folder = Path(folder)
        self.max_bytes = max_bytes
        self.settings = settings
        self.decoder = decoder
        self._refused: set[str] = set()
        self._reported = ""  # why it does not grow, as it was logged
        self._entry_bytes = 1 << 20  # of the last entry: about as large as the next
        self.folder.mkdir(parents=True, exist_ok=True)
        self._leave_free = room_to_leave(self.folder) + reserve
        try:
            with self._locked() as ledger:
                self._write_size(ledger, self._count())
        except OSError as error:
            if error.errno not in _DISK_FULL:
                raise
            self._report(f"its disk is full ({error.strerror})")

    def read(self, source: Source, choose: Choose, decode: Decode, fixed: str | None = None) -> np.ndarray:
        """Return the chosen frames of a video, uint8 (T, H, W, 3), from the cache or else from the decoder.

        Args:
            source, choose: as for `video_datasets.decoding.decode`. The number of frames that `choose` gets is that of
                the frames to choose from: the stored ones, or of a cache of raw pixels those of the video.
            decode: called if the frames are not stored.
            fixed: name of a choice that never changes: a cache of raw pixels stores those frames alone.

        Raises:
            VideoReadError: from the decoder.
        """
        is_raw = self.settings.quality is None
        fixed = fixed if is_raw else None
        try:
            key = self._key(source, fixed)
        except OSError:
            return decode(source, choose)  # which raises the error
        frames = self._load(self._path(key), np.arange if fixed else choose)
        if frames is not None:
            return frames
        if _holds_stored_frames(source):
            return decode(source, choose)
        read = self._decode_raw if is_raw else self._decode_as_jpeg
        return read(key, source, choose, decode, fixed)

    @property
    def num_bytes(self) -> int:
        """Return the bytes of all entries, including those being written."""
        with self._locked() as ledger:
            return self._read_size(ledger)

    def give_back(self, num_bytes: int) -> int:
        """Delete entries until at least so many bytes are free, or none is left; return the bytes."""
        freed = 0
        for path in self.folder.glob("*/*.frames"):
            if freed >= num_bytes:
                break
            freed += self._delete(path)
        return freed

    def _load(self, path: Path, choose: Choose) -> np.ndarray | None:
        """Return frames of an entry; None if there is none, or it is damaged."""
        try:
            with opened_frames(path) as stored:
                if stored is None:
                    raise DecoderError("it holds no frames")
                return stored.read(choose(stored.num_frames))
        except FileNotFoundError:
            return None
        except (DecoderError, OSError) as error:
            logger.warning("%s is damaged (%s) and will be rebuilt", path, error)
            self._delete(path)
            return None

    def _decode_as_jpeg(
        self, key: str, source: Source, choose: Choose, decode: Decode, fixed: str | None
    ) -> np.ndarray:
        """Decode the frames to store, store them, and return the chosen ones as they were stored."""
        num_video_frames = 0
        positions = indices = np.empty(0)

        def choose_chosen(num_frames: int) -> np.ndarray:
            return self.settings.positions(num_frames)[choose(len(self.settings.positions(num_frames)))]

        def choose_stored(num_frames: int) -> np.ndarray:
            nonlocal num_video_frames, positions, indices
            num_video_frames, positions = num_frames, self.settings.positions(num_frames)
            indices = choose(len(positions))
            return positions

        if key not in self._refused and self._has_room(self._entry_bytes):
            try:
                frames = self._decode_small(source, choose_stored, decode)
            except VideoReadError:  # perhaps damaged outside of the chosen frames
                self._refused.add(key)
            else:
                self._store(key, frames, num_video_frames, positions)
                return self._as_stored(frames[indices])
        return self._as_stored(self._decode_small(source, choose_chosen, decode))

    def _decode_raw(self, key: str, source: Source, choose: Choose, decode: Decode, fixed: str | None) -> np.ndarray:
        """Decode the chosen frames, then store them if they are fixed, or else all frames."""
        num_video_frames = 0
        indices = np.empty(0)

        def choose_and_keep(num_frames: int) -> np.ndarray:
            nonlocal num_video_frames, indices
            num_video_frames, indices = num_frames, choose(num_frames)
            return indices

        frames = self._decode_small(source, choose_and_keep, decode)
        num_stored = len(indices) if fixed else num_video_frames
        size = num_stored * frames[0].nbytes
        if key in self._refused or size > _MAX_RAW_BYTES or not self._has_room(size):
            return frames
        if fixed:
            self._store(key, frames, num_video_frames, indices)
            return frames
        try:
            whole = self._decode_small(source, np.arange, decode)
        except VideoReadError:
            whole = frames[:0]  # damaged outside of the frames that were wanted
        if len(whole) == num_video_frames and np.array_equal(whole[indices], frames):
            self._store(key, whole, num_video_frames, np.arange(num_video_frames))
        else:
            self._refused.add(key)
        return frames

    def _decode_small(self, source: Source, choose: Choose, decode: Decode) -> np.ndarray:
        side = self.settings.short_side
        return decode(source, choose, change=None if side is None else partial(shrink, short_side=side))

    def _as_stored(self, frames: np.ndarray) -> np.ndarray:
        """Return frames as they are after storing."""
        quality = self.settings.quality
        assert quality is not None
        stored = np.empty_like(frames)
        for frame, target in zip(frames, stored, strict=True):
            target[:] = decode_jpeg(np.frombuffer(bytearray(encode_jpeg(frame, quality)), np.uint8), *frame.shape[:2])
        return stored

    def _store(self, key: str, frames: np.ndarray, num_video_frames: int, positions: np.ndarray) -> None:
        """Write an entry, unless the cache may not grow."""
        temporary = self.folder / f".{key}.{socket.gethostname()}.{os.getpid()}.tmp"
        try:
            with temporary.open("wb", buffering=0) as file:

                def write(data: bytes) -> None:
                    with self._locked() as ledger:
                        size = self._read_size(ledger)
                        self._check_room(size, len(data))
                        file.write(data)
                        self._write_size(ledger, size + len(data))

                writer = FramesWriter(file, self.settings, write)
                for frame in frames:
                    writer.add(frame)
                writer.finish(num_video_frames, positions.tolist())
                self._entry_bytes = file.tell()
            target = self._path(key)
            target.parent.mkdir(exist_ok=True)
            if target.exists():  # another process was faster
                self._delete(temporary)
            else:
                temporary.replace(target)
        except _Full as full:
            self._report(str(full))
            self._delete(temporary)
        except OSError as error:
            self._report(f"it cannot be written ({error.strerror})")
            self._delete(temporary)

    def _has_room(self, num_bytes: int) -> bool:
        """Return whether an entry of about this size may be written now."""
        try:
            with self._locked() as ledger:
                self._check_room(self._read_size(ledger), num_bytes)
        except _Full as full:
            self._report(str(full))
            return False
        except OSError as error:
            self._report(f"it cannot be written ({error.strerror})")
            return False
        return True

    def _check_room(self, used: int, num_bytes: int) -> None:
        if used + num_bytes > self.max_bytes:
            raise _Full(f"it is full ({used / 1e9:.1f} GB, data.cache_gb)")
        if shutil.disk_usage(self.folder).free - num_bytes < self._leave_free:
            raise _Full(f"it leaves {self._leave_free / 1e9:.1f} GB of its disk free ({used / 1e9:.1f} GB are its own)")

    def _report(self, reason: str) -> None:
        kind = reason.split("(")[0]
        if kind != self._reported:
            self._reported = kind
            logger.warning("the frame cache %s does not grow: %s; other videos are decoded again", self.folder, reason)

    def _delete(self, path: Path) -> int:
        """Delete a file and return its bytes, 0 if another process was faster."""
        with contextlib.suppress(OSError), self._locked() as ledger:
            size = path.stat().st_size
            path.unlink()
            self._write_size(ledger, self._read_size(ledger) - size)
            return size
        return 0

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.frames"

    def _key(self, source: Source, fixed: str | None) -> str:
        """Return a name that changes with the file, its size, its time, the segment, and the form of stored frames."""
        whole = source.source if isinstance(source, VideoSegment) else source
        file = os.stat(whole if isinstance(whole, str | Path) else getattr(whole, "archive", str(whole)))
        facts = (str(source), file.st_size, file.st_mtime_ns, str(self.settings), self.decoder, fixed)
        return hashlib.sha256(repr(facts).encode("utf-8", "surrogateescape")).hexdigest()[:32]

    @contextlib.contextmanager
    def _locked(self) -> Iterator[int]:
        """Hold the folder's lock, and yield the descriptor of the file that holds its size."""
        import fcntl  # not on Windows, which therefore has no cache

        ledger = os.open(self.folder / "size", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(ledger, fcntl.LOCK_EX)
            yield ledger
        finally:
            os.close(ledger)  # and the lock with it

    @staticmethod
    def _read_size(ledger: int) -> int:
        return int(os.pread(ledger, 32, 0) or b"0")

    @staticmethod
    def _write_size(ledger: int, num_bytes: int) -> None:
        os.pwrite(ledger, b"%020d" % max(0, num_bytes), 0)

    def _count(self) -> int:
        """Return the bytes of all entries and of those being written; remove what was left unfinished.

        Entries of earlier versions, which this one cannot read, are removed too.
        """
        for path in self.folder.glob("[0-9a-f][0-9a-f]/*.npy"):
            path.unlink(missing_ok=True)
        total = 0
        for pattern, limit in (("*/*.frames", float("inf")), (".*.tmp", _STALE_S)):
            for path in self.folder.glob(pattern):
                with contextlib.suppress(FileNotFoundError):
                    facts = path.stat()
                    if time.time() - facts.st_mtime > limit:
                        path.unlink()
                    else:
                        total += facts.st_size
        return total


def _holds_stored_frames(source: Source) -> bool:
    try:
        with opened_frames(source) as stored:
            return stored is not None
    except (DecoderError, OSError):
        return True  # the decoder reports it
