"""Decoded frames on a fast disk, so that later epochs need no decoder. The pixels are the same as without it.

A training view takes other frames in every epoch, so all frames of a video are stored; an evaluation always takes the
same frames, and only those are stored. Larger videos are stored at the size that the transforms start from. An entry is
written once, under a temporary name until it is complete, and never changed: any number of processes of one machine can
share a folder. When the folder is full, its entries stay: an epoch visits every video once, so a cache that replaced
entries would lose each one just before its next use.
"""

import contextlib
import hashlib
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from video_datasets.decoding import Choose, VideoBytes, VideoReadError
from video_datasets.transforms import shrink

logger = logging.getLogger(__name__)

# A video with more decoded bytes than this is not stored: 300 frames of 640x480 are 276 MB.
_MAX_DECODED_BYTES = 1 << 30
_STALE_S = 3600.0
Decode = Callable[[str | Path | VideoBytes, Choose], np.ndarray]


class FrameCache:
    """Decoded frames in a folder of bounded size. Picklable; every process opens it for itself.

    Args:
        folder: created if missing; on a local disk, or in memory (/dev/shm).
        max_bytes: size that the folder never exceeds.
        short_side: pixels; frames with a longer short side are resized to it. None stores all at their own size.
        decoder: name of the decoder, part of an entry's key: decoders count the frames of odd files differently.
    """

    def __init__(self, folder: str | Path, max_bytes: int, short_side: int | None = None, decoder: str = "auto"):
        self.folder = Path(folder)
        self.max_bytes = max_bytes
        self.short_side = short_side
        self.decoder = decoder
        self._is_full = False
        self._refused: set[str] = set()
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._locked() as ledger:
            self._write(ledger, self._count())

    def read(
        self, source: str | Path | VideoBytes, choose: Choose, decode: Decode, fixed: str | None = None
    ) -> np.ndarray:
        """Return the chosen frames of a video, uint8 (T, H, W, 3), from the cache or else from the decoder.

        Args:
            source, choose: as for `video_datasets.decoding.decode`.
            decode: called with both if the frames are not stored.
            fixed: name of a choice that never changes: only those frames are stored. None stores all frames.

        Raises:
            VideoReadError: from the decoder.
        """
        try:
            key = self._key(source, fixed)
        except OSError:
            return decode(source, choose)  # which raises the error
        stored = self._load(key)
        if stored is not None:
            return np.array(stored) if fixed else stored[choose(len(stored))]
        choices: list[tuple[int, np.ndarray]] = []

        def choose_and_keep(num_video_frames: int) -> np.ndarray:
            choices.append((num_video_frames, choose(num_video_frames)))
            return choices[-1][1]

        frames = self._shrink(decode(source, choose_and_keep))
        num_video_frames, indices = choices[-1]
        if fixed:
            self._store(key, frames.shape, lambda: frames)
        else:
            shape = (num_video_frames, *frames.shape[1:])
            self._store(key, shape, lambda: self._all_frames(source, decode, shape, indices, frames))
        return frames

    @property
    def num_bytes(self) -> int:
        """Return the bytes of all entries, including those being written."""
        with self._locked() as ledger:
            return self._read(ledger)

    def _shrink(self, frames: np.ndarray) -> np.ndarray:
        return frames if self.short_side is None else shrink(frames, self.short_side)

    def _all_frames(
        self,
        source: str | Path | VideoBytes,
        decode: Decode,
        shape: tuple[int, ...],
        indices: np.ndarray,
        frames: np.ndarray,
    ) -> np.ndarray | None:
        """Decode the whole video; None if its frames differ from those decoded before."""
        try:
            whole = self._shrink(decode(source, np.arange))
        except VideoReadError:
            return None  # damaged outside of the frames that were wanted
        return whole if whole.shape == shape and np.array_equal(whole[indices], frames) else None

    def _store(self, key: str, shape: tuple[int, ...], make: Callable[[], np.ndarray | None]) -> None:
        size = int(np.prod(shape, dtype=np.int64)) + 128  # of the header
        if self._is_full or key in self._refused or size > _MAX_DECODED_BYTES:
            return
        temporary = self.folder / f".{key}.{socket.gethostname()}.{os.getpid()}.{size}.tmp"
        with self._locked() as ledger:
            used = self._read(ledger)
            if used + size > self.max_bytes:
                self._is_full = True
                logger.info(
                    "the frame cache %s is full (%.1f GB): other videos are decoded in every epoch",
                    self.folder,
                    used / 1e9,
                )
                return
            temporary.touch()
            self._write(ledger, used + size)
        stored = 0
        try:
            frames = make()
            if frames is None:
                self._refused.add(key)
            else:
                with temporary.open("wb") as file:
                    np.save(file, frames)
                target = self._path(key)
                target.parent.mkdir(exist_ok=True)
                stored = 0 if target.exists() else size  # 0: another process was faster
                temporary.replace(target)
        except OSError as error:
            self._is_full = True
            stored = 0
            logger.warning("the frame cache %s cannot be written (%s): it stops growing", self.folder, error.strerror)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            if not stored:
                with self._locked() as ledger:
                    self._write(ledger, self._read(ledger) - size)

    def _load(self, key: str) -> np.ndarray | None:
        path = self._path(key)
        try:
            return np.load(path, mmap_mode="r", allow_pickle=False)
        except FileNotFoundError:
            return None
        except (ValueError, EOFError, OSError) as error:
            logger.warning("%s is damaged (%s) and will be rebuilt", path, error)
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
            return None

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.npy"

    def _key(self, source: str | Path | VideoBytes, fixed: str | None) -> str:
        """Return a name that changes with the file, its size, its time, and the form in which frames are stored."""
        file = os.stat(source if isinstance(source, str | Path) else getattr(source, "archive", str(source)))
        facts = (str(source), file.st_size, file.st_mtime_ns, self.short_side, self.decoder, fixed)
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
    def _read(ledger: int) -> int:
        return int(os.pread(ledger, 32, 0) or b"0")

    @staticmethod
    def _write(ledger: int, num_bytes: int) -> None:
        os.pwrite(ledger, b"%020d" % max(0, num_bytes), 0)

    def _count(self) -> int:
        """Return the bytes of all entries and of those being written; remove what was left unfinished."""
        total = sum(path.stat().st_size for path in self.folder.glob("*/*.npy"))
        for path in self.folder.glob(".*.tmp"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > _STALE_S:
                    path.unlink()
                else:
                    total += int(path.name.split(".")[-2])
        return total
