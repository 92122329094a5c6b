"""Listed videos as items: find, choose frames, decode, transform. All randomness follows from an item's key."""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from video_datasets import sampling
from video_datasets.annotations import VideoRecord
from video_datasets.backgrounds import Placement
from video_datasets.changes import VideoChange
from video_datasets.crashes import CrashedVideos
from video_datasets.decoders import check_decoder
from video_datasets.decoders.base import DecoderError
from video_datasets.decoding import Choose, VideoCrashError, VideoReadError, decode
from video_datasets.device_decoding import EncodedView, read_view
from video_datasets.frame_cache import FrameCache
from video_datasets.isolation import Limits, shared_decoder
from video_datasets.packed_texts import PackedTexts
from video_datasets.randomness import item_rng, views_rng
from video_datasets.stored_frames import opened_frames
from video_datasets.transforms import ColorDraw, TestTransform, TrainTransform
from video_datasets.video_files import VideoFiles

# An unreadable video is replaced, and so is an unreadable replacement. If one video in a hundred is bad, this many in a
# row fail once in 10^16 videos.
_MAX_ATTEMPTS = 8
_FRAMES, _PIXELS, _REPLACEMENT = range(3)


@dataclass(frozen=True, slots=True)
class ItemKey:
    """One item of a micro-batch; all of its randomness follows from the key."""

    index: int
    seed: int = 0
    epoch: int = 0
    micro_batch: int = 0
    position: int = 0


@dataclass(frozen=True, slots=True)
class BadVideo:
    """A listed video that could not be read: its index in the list, its path, and the reason in one line."""

    index: int
    path: str
    reason: str


@dataclass(slots=True)
class VideoItem:
    """One item.

    Attributes:
        videos: uint8 (V, T, 3, S, S); zeros if nothing could be read.
        label: the class, or (C,) bool with all classes.
        index: position in the list of the video that it shows.
        valid: False if nothing could be read.
        number: number of the micro-batch.
        bad_videos: unreadable videos found on the way.
        colors: colour changes that are still to be applied, or None.
        encoded: the view before it is decoded, or None; `videos` has no pixels then.
    """

    videos: Tensor
    label: int | np.ndarray
    index: int
    valid: bool
    number: int
    bad_videos: tuple[BadVideo, ...] = ()
    colors: ColorDraw | None = None
    encoded: EncodedView | None = None


class VideoDataset:
    """Map-style data set over `ItemKey`s. Picklable; loading an item leaves no state behind.

    With a `TrainTransform` an item is one random view, and an unreadable video is replaced by another one of the set.
    With a `TestTransform` an item is `num_clips` temporal views times the transform's crops (clip by clip), and an
    unreadable video stays in, as zeros, with `valid=False`.

    Args:
        records: the list of videos.
        files: finds the listed videos.
        transform: makes a view; its type decides whether items are for training.
        num_frames: frames per view, `T`.
        num_clips: temporal views per video in testing.
        random_test_views: draw the frames of several temporal views as the published code does, seeded per video,
            instead of evenly.
        decoder: one of `video_datasets.decoders.DECODER_NAMES`.
        isolation: decode in a separate process with these limits.
        cache: stores decoded frames for later epochs, or None.
        crashed: videos that ended a process that read them; they count as unreadable, and are not read again.
        colors_later: leave the colours of training views to `batch_colors`, and return the drawn changes.
        decode_later: leave the decoding of training views to `device_decoding`, and with it their colours. All videos
            must be stored frames.
        change: changes the test views, or None.
        num_classes: C, if a video can have any number of classes: its label is then (C,) bool; None: one class each.

    Raises:
        VideoFilesError: a listed path leads outside the root or is ambiguous.
        ImportError: the decoder is not installed.
    """

    def __init__(
        self,
        records: Sequence[VideoRecord],
        files: VideoFiles,
        transform: TrainTransform | TestTransform,
        num_frames: int,
        num_clips: int = 1,
        random_test_views: bool = False,
        decoder: str = "auto",
        isolation: Limits | None = None,
        cache: FrameCache | None = None,
        colors_later: bool = False,
        decode_later: bool = False,
        crashed: CrashedVideos | None = None,
        change: VideoChange | None = None,
        num_classes: int | None = None,
    ):
        check_decoder(decoder)
        if not records:
            raise ValueError("a data set needs at least one video")
        if num_frames < 1 or num_clips < 1:
            raise ValueError(f"num_frames {num_frames} and num_clips {num_clips} must be 1 or more")
        self.training = isinstance(transform, TrainTransform)
        if self.training and num_clips != 1:
            raise ValueError(f"training items have one view, found num_clips {num_clips}")
        if self.training and change is not None:
            raise ValueError("a change is for test views")
        self._paths = PackedTexts([record.path for record in records])
        if num_classes is None:
            self._labels = np.array([record.label for record in records], dtype=np.int64)
        else:
            self._labels = np.zeros((len(records), num_classes), dtype=bool)
            for row, record in zip(self._labels, records, strict=True):
                row[list(record.labels)] = True
        files.prepare(record.path for record in records)
        self.files = files
        self.transform = transform
        self.num_frames = num_frames
        self.num_clips = num_clips
        self.random_test_views = random_test_views
        self.decoder = decoder
        self._read = partial(decode, decoder=decoder) if isolation is None else shared_decoder(decoder, isolation)
        self.cache = cache
        self.colors_later = colors_later
        self.decode_later = decode_later
        self.change = change
        self.crashed = crashed or CrashedVideos()

    def __len__(self) -> int:
        return len(self._labels)

    @property
    def num_views(self) -> int:
        """Views per item, `V`."""
        return 1 if isinstance(self.transform, TrainTransform) else self.num_clips * self.transform.num_crops

    def path(self, index: int) -> str:
        """Return the path of a video as written in the list."""
        return self._paths[index]

    def location(self, index: int) -> str:
        """Return the root and the listed path of a video, joined."""
        return os.path.join(self.files.root, self._paths[index])

    def label(self, index: int) -> int | np.ndarray:
        """Return the class of a video, or (C,) bool with its classes."""
        return self._labels[index] if self._labels.ndim > 1 else int(self._labels[index])

    def __getitem__(self, key: ItemKey) -> VideoItem:
        return self.load(key)

    def load(self, key: ItemKey, note_reading: Callable[[int], None] = lambda index: None) -> VideoItem:
        """Read the item of a key; `note_reading` is called with the index of every video before it is opened.

        Raises:
            VideoFilesError: two files have the name of the listed one.
        """
        with _one_thread():
            return self._load(key, note_reading)

    def _load(self, key: ItemKey, note_reading: Callable[[int], None]) -> VideoItem:
        transform = self.transform
        index = key.index
        bad_videos: list[BadVideo] = []
        for attempt in range(_MAX_ATTEMPTS if self.training else 1):
            note_reading(index)
            try:
                colors: ColorDraw | None = None
                encoded: EncodedView | None = None
                if isinstance(transform, TrainTransform) and self.decode_later:
                    encoded, colors = self._encoded_view(transform, index, key, attempt)
                    videos = torch.empty(1, self.num_frames, 3, 0, 0, dtype=torch.uint8)
                elif isinstance(transform, TrainTransform):
                    videos, colors = self._train_view(transform, index, key, attempt)
                else:
                    videos = self._test_views(transform, index, key)
            except VideoReadError as error:
                if isinstance(error, VideoCrashError):
                    self.crashed.add(self.location(index), error.cause)
                bad_videos.append(BadVideo(index, error.path, error.reason))
                if self.training:
                    index = int(_rng(key, attempt, _REPLACEMENT).integers(len(self)))
                continue
            return VideoItem(
                videos, self.label(index), index, True, key.micro_batch, tuple(bad_videos), colors, encoded
            )
        size = transform.input_size
        nothing = torch.zeros(self.num_views, self.num_frames, 3, size, size, dtype=torch.uint8)
        return VideoItem(nothing, self.label(key.index), key.index, False, key.micro_batch, tuple(bad_videos))

    def _train_view(
        self, transform: TrainTransform, index: int, key: ItemKey, attempt: int
    ) -> tuple[Tensor, ColorDraw | None]:
        def choose(num_video_frames: int) -> np.ndarray:
            # A new generator for each call: a second decoder gets the same draws as the first.
            return sampling.train_indices(num_video_frames, self.num_frames, _rng(key, attempt, _FRAMES))

        frames = self._decode(index, choose)  # (T, H, W, 3)
        rng = _rng(key, attempt, _PIXELS)
        if self.colors_later:
            view, colors = transform.split(frames, rng)
            return view[None], colors  # (1, T, 3, S, S)
        return transform(frames, rng)[None], None

    def _encoded_view(
        self, transform: TrainTransform, index: int, key: ItemKey, attempt: int
    ) -> tuple[EncodedView, ColorDraw]:
        source = self.files.find(self.path(index))
        try:
            with opened_frames(source) as stored:
                if stored is None:
                    raise DecoderError("is a video, not stored frames; set data.decode_on_device=false")
                rng = _rng(key, attempt, _FRAMES)
                indices = sampling.train_indices(stored.num_frames, self.num_frames, rng)
                rng = _rng(key, attempt, _PIXELS)
                view = read_view(stored, indices, transform, rng)
        except DecoderError as error:
            raise VideoReadError(str(source), str(error)) from error
        except OSError as error:
            raise VideoReadError(str(source), error.strerror or str(error)) from error
        return view, transform.draw_colors(self.num_frames, rng)

    def _test_views(self, transform: TestTransform, index: int, key: ItemKey) -> Tensor:
        is_random = self.random_test_views and self.num_clips > 1
        moments = np.empty(0)

        def choose(num_video_frames: int) -> np.ndarray:
            nonlocal moments
            if is_random:
                rng = views_rng(key.seed, index)
                views = sampling.random_test_indices(num_video_frames, self.num_frames, self.num_clips, rng)
            else:
                views = sampling.test_indices(num_video_frames, self.num_frames, self.num_clips)
            moments = (views + 0.5) / num_video_frames  # (num_clips, T)
            return views.reshape(-1)

        # A cache of fixed views does not call `choose`, which knows the moments of the frames.
        moves = self.change is not None and self.change.swap is not None
        fixed = None if is_random or moves else f"{self.num_clips} test views of {self.num_frames} frames"
        frames = self._decode(index, choose, fixed)  # (num_clips * T, H, W, 3)
        crops = transform(frames)  # (num_crops, num_clips * T, 3, S, S)
        crops = crops.unflatten(1, (self.num_clips, self.num_frames))  # (num_crops, num_clips, T, 3, S, S)
        views = crops.transpose(0, 1).flatten(0, 1)  # (V, T, 3, S, S)
        if self.change is None:
            return views
        placement = Placement(self.path(index), moments.repeat(transform.num_crops, axis=0), transform)
        return self.change(views, key.seed, index, placement)

    def _decode(self, index: int, choose: Choose, fixed: str | None = None) -> np.ndarray:
        if reason := self.crashed.reasons.get(self.location(index)):
            raise VideoReadError(self.location(index), reason)
        source = self.files.find(self.path(index))
        return self._read(source, choose) if self.cache is None else self.cache.read(source, choose, self._read, fixed)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Limit PyTorch to one thread, as in workers: with one frame, several threads mostly wait for each other."""
    num_threads = torch.get_num_threads()
    if num_threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


def _rng(key: ItemKey, attempt: int, purpose: int) -> np.random.Generator:
    return item_rng(key.seed, key.epoch, key.micro_batch, key.position, attempt, purpose)
