"""Videos of one's own to predictions: a model from a checkpoint, files in any number, one line for each bad one."""

import queue
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import tc_clip
from tc_clip.ops.memory import keep_freed_memory
from tc_clip.protocol import VideoModel
from tc_clip.weights.files import CheckpointSource, as_checkpoint
from trainers.distributed.processes import pick_device
from trainers.errors import ConfigError
from trainers.evaluator import score_views
from trainers.precision import Precision, pick_precision
from video_datasets.annotations import VideoRecord
from video_datasets.batches import VideoBatch
from video_datasets.decoding import VideoReadError
from video_datasets.loaders import EvalLoader
from video_datasets.transforms import TestTransform
from video_datasets.video_dataset import BadVideo, VideoDataset
from video_datasets.video_files import VideoFiles
from video_datasets.windows import read_windows
from video_datasets.workers import VideoTimeoutError, VideoWorkerError

MAX_WORKERS = 8
PREFETCH_BATCHES = 2  # of each worker


@dataclass(frozen=True)
class VideoPrediction:
    """The best classes of a video, best first, with their scores (mean softmax over the views, 0 to 1).

    `seconds` is the time from one result to the next, divided by the videos that came together. Where the video could
    not be read, `error` is one line of reason and there are no classes.
    """

    path: str
    classes: tuple[str, ...]
    scores: tuple[float, ...]
    seconds: float
    error: str | None = None


@dataclass(frozen=True)
class Timeline:
    """What is seen when in a long video: `scores` (n, C) of the windows from `starts` to `ends` (n,), in seconds.

    `error` is one line where the video broke off; the windows before it are there.
    """

    path: str
    class_names: tuple[str, ...]
    starts: np.ndarray
    ends: np.ndarray
    scores: np.ndarray
    error: str | None = None


def load_model(
    checkpoint: CheckpointSource | None,
    class_names: Sequence[str],
    *,
    name: str | None = None,
    clip_weights: str | None = None,
    device: str = "auto",
) -> tc_clip.VideoClip:
    """Build the model of a checkpoint, in evaluation mode and on a device.

    Args:
        checkpoint: a file of this project, or a published one (then `name` and `clip_weights`, by default tc_clip and
            ViT-B/16, must fit it), or what `tc_clip.read_checkpoint` returned; None: the start weights.
        class_names: the classes to score.
        name: the model, if the checkpoint does not name it.
        clip_weights: the source of CLIP's weights, if the checkpoint does not name it.
        device: auto, cuda or cpu.

    Raises:
        ConfigError: if neither a checkpoint nor start weights are given, or a class name does not fit.
        WeightsError: if weights cannot be read or do not fit.
    """
    try:
        if checkpoint is not None:
            model = _model_of(as_checkpoint(checkpoint), class_names, name, clip_weights)
        elif name is not None and clip_weights is not None:
            model = tc_clip.create_model(name, class_names=class_names, clip_weights=clip_weights)
        else:
            raise ConfigError("give a checkpoint, or a model and the CLIP weights that it starts from")
    except (tc_clip.WeightsError, ConfigError):
        raise
    except ValueError as error:  # a class name that does not fit, an unknown model
        raise ConfigError(str(error)) from error
    target = pick_device(device, 0)
    if target.type == "cpu":
        keep_freed_memory()
    return model.to(target).eval()


def _model_of(
    checkpoint: tc_clip.Checkpoint, class_names: Sequence[str], name: str | None, clip_weights: str | None
) -> tc_clip.VideoClip:
    if checkpoint.model_info is not None:
        return tc_clip.load_model(checkpoint, class_names, clip_weights)
    clip_weights = clip_weights or "ViT-B/16"
    return tc_clip.create_model(
        name or "tc_clip", class_names=class_names, clip_weights=clip_weights, checkpoint=checkpoint
    )


def inference_precision(model: VideoModel, name: str = "auto") -> Precision:
    """Return the number formats of inference: auto is bf16 where the device computes in it, CPUs included."""
    device = next(model.parameters()).device
    if name == "auto" and device.type == "cpu":
        abilities = torch.cpu.get_capabilities()
        name = "bf16" if abilities.get("avx512_bf16") or abilities.get("amx_bf16") else "fp32"
    return pick_precision(name, device)


def predict(model: VideoModel, paths: Sequence[str | Path], **options) -> list[VideoPrediction]:
    """Return a prediction for every video, in order; the options are those of `iter_predictions`."""
    return list(iter_predictions(model, paths, **options))


def iter_predictions(
    model: VideoModel,
    paths: Sequence[str | Path],
    *,
    top: int = 5,
    num_clips: int = 1,
    num_crops: int = 1,
    batch_size: int = 4,
    num_workers: int | None = None,
    precision: str = "auto",
    decoder: str = "auto",
    timeout_s: float = 60.0,
) -> Iterator[VideoPrediction]:
    """Yield a prediction for every video, in order, as they come.

    Args:
        model: with its class names, on its device.
        paths: video files.
        top: how many classes to report.
        num_clips: temporal views of a video; num_crops: spatial views, 1 or 3.
        batch_size: videos read together; views of one forward pass.
        num_workers: processes that decode; 0: a thread of this one; None: 0 for one video, else a process a core.
        precision: auto, fp32, bf16, fp16 or fp64.
        decoder: auto, decord or pyav.
        timeout_s: seconds after which a video that is being read counts as hanging, and is a bad one.
    """
    paths = [str(path) for path in paths]
    if not paths:
        return
    if num_workers is None:
        num_workers = 0 if len(paths) == 1 else min(MAX_WORKERS, len(paths), torch.get_num_threads() or 1)
    formats = inference_precision(model, precision)
    reader = _Reader(
        transform=TestTransform(model.input_size, num_crops),
        num_frames=model.num_frames,
        num_clips=num_clips,
        decoder=decoder,
        batch_size=min(batch_size, len(paths)),
        timeout_s=timeout_s,
        pin_memory=formats.device.type == "cuda",
    )
    num_shown = min(top, len(model.class_names))
    model.eval()
    started = time.perf_counter()
    for batch, reasons in reader.read(paths, num_workers):
        with torch.inference_mode():
            scores = score_views(model, batch.videos, formats, batch_size) / batch.videos.shape[1]
        best = scores.topk(num_shown, dim=-1)
        values, classes = best.values.tolist(), best.indices.tolist()
        now = time.perf_counter()
        seconds, started = (now - started) / len(batch), now
        for row, index in enumerate(batch.indices.tolist()):
            if batch.valid[row]:
                names = tuple(model.class_names[place] for place in classes[row])
                yield VideoPrediction(paths[index], names, tuple(values[row]), seconds)
            else:
                yield VideoPrediction(paths[index], (), (), seconds, reasons[index])


def predict_timeline(
    model: VideoModel,
    path: str | Path,
    window_s: float,
    stride_s: float,
    *,
    num_crops: int = 1,
    batch_size: int = 4,
    precision: str = "auto",
    timeout_s: float = 60.0,
) -> Timeline:
    """Score a long video window by window; see `video_datasets.windows.read_windows` for what a window is.

    Raises:
        ValueError: where window or stride are not above 0.
        VideoReadError: where not even the first window can be read.
    """
    formats = inference_precision(model, precision)
    transform = TestTransform(model.input_size, num_crops)
    windows = read_windows(str(path), window_s, stride_s, model.num_frames, transform)
    model.eval()
    spans, scores, error = [], [], None
    waiting: list = []

    def score() -> None:
        views = torch.stack([window.videos for window in waiting])  # (n, V, T, 3, S, S)
        with torch.inference_mode():
            scores.append((score_views(model, views, formats, batch_size) / num_crops).float().cpu().numpy())
        spans.extend((window.start, window.end) for window in waiting)
        waiting.clear()

    try:
        for window in in_background(windows, timeout_s, f"{path}: nothing came of it for {timeout_s:g} s"):
            waiting.append(window)
            if len(waiting) == batch_size:
                score()
    except (VideoReadError, VideoTimeoutError) as problem:
        error = problem
    if waiting:
        score()
    if not spans:
        raise error or VideoReadError(str(path), "it has no frames")
    starts, ends = np.array(spans).T
    reason = error.reason if isinstance(error, VideoReadError) else None if error is None else str(error)
    return Timeline(str(path), model.class_names, starts, ends, np.concatenate(scores), reason)


def in_background(items: Iterable, timeout_s: float, complaint: str) -> Iterator:
    """Iterate in another thread, two items ahead, and give up where nothing comes for `timeout_s`.

    Decoders leave Python while they work, so a thread is enough to overlap them with the model. One that hangs is left
    behind: threads cannot be ended, and a daemon does not keep the program alive.

    Raises:
        VideoTimeoutError: with the complaint as its message.
    """
    done = queue.Queue(maxsize=2)
    stopped = threading.Event()

    def put(kind: str, value: object) -> bool:
        while not stopped.is_set():
            try:
                done.put((kind, value), timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in items:
                if not put("item", item):
                    return
            put("end", None)
        except Exception as error:  # it is raised again where the items are used
            put("error", error)

    threading.Thread(target=work, daemon=True, name="decoding").start()
    try:
        while True:
            try:
                kind, value = done.get(timeout=timeout_s)
            except queue.Empty:
                raise VideoTimeoutError(complaint) from None
            if kind == "end":
                return
            if kind == "error":
                raise value
            yield value
    finally:
        stopped.set()


class _GivenFiles(VideoFiles):
    """Videos wherever the user has them, by the path that was given."""

    def __init__(self):
        super().__init__("")

    def find(self, listed: str) -> str:
        return listed

    def prepare(self, listed: Iterable[str]) -> None:
        """Do nothing: there is no root to look into."""

    def _exists(self, path: str) -> bool:
        return Path(path).is_file()

    def _source(self, path: str) -> str:
        return path

    def _index(self) -> dict[str, list[str]]:
        return {}


@dataclass(frozen=True)
class _Reader:
    """Reads any videos in batches, and goes on after one that hangs or brings its worker down."""

    transform: TestTransform
    num_frames: int
    num_clips: int
    decoder: str
    batch_size: int
    timeout_s: float
    pin_memory: bool

    def read(self, paths: list[str], num_workers: int) -> Iterator[tuple[VideoBatch, dict[int, str]]]:
        """Yield batches whose indices count in `paths`, and the reason for each invalid video by index."""
        position = 0
        while position < len(paths):
            first = position
            try:
                for batch in self._batches(paths[first:], num_workers, self.batch_size):
                    yield _shifted(batch, first)
                    position += len(batch)
            except (VideoTimeoutError, VideoWorkerError):
                # Which of the videos underway it was is found by reading each of them alone.
                underway = self.batch_size * max(1, num_workers) * (PREFETCH_BATCHES + 1)
                stop = min(len(paths), position + underway)
                for index in range(position, stop):
                    yield self._read_alone(paths[index], index, min(1, num_workers))
                position = stop

    def _read_alone(self, path: str, index: int, num_workers: int) -> tuple[VideoBatch, dict[int, str]]:
        try:
            (batch,) = self._batches([path], num_workers, 1)
        except (VideoTimeoutError, VideoWorkerError) as error:
            hangs = f"no frame came of it for {self.timeout_s:g} s"
            reason = hangs if isinstance(error, VideoTimeoutError) else "it brought the decoder down"
            batch = self._nothing(BadVideo(0, path, reason))
        return _shifted(batch, index)

    def _batches(self, paths: list[str], num_workers: int, batch_size: int) -> Iterator[VideoBatch]:
        dataset = VideoDataset(
            [VideoRecord(path, 0) for path in paths],
            _GivenFiles(),
            self.transform,
            num_frames=self.num_frames,
            num_clips=self.num_clips,
            decoder=self.decoder,
        )
        loader = EvalLoader(
            dataset,
            batch_size,
            num_workers,
            pin_memory=self.pin_memory,
            timeout_s=self.timeout_s,
            max_bad_share=1.0,
            prefetch_batches=PREFETCH_BATCHES,
        )
        if num_workers:
            return iter(loader)
        limit = self.timeout_s * batch_size  # a batch comes as a whole
        return in_background(loader, limit, f"no video came for {limit:g} s")

    def _nothing(self, bad: BadVideo) -> VideoBatch:
        size, num_views = self.transform.input_size, self.num_clips * self.transform.num_crops
        videos = torch.zeros(1, num_views, self.num_frames, 3, size, size, dtype=torch.uint8)
        one: Tensor = torch.zeros(1, dtype=torch.long)
        return VideoBatch(videos, one, one, torch.zeros(1, dtype=torch.bool), 0, [bad])


def _shifted(batch: VideoBatch, by: int) -> tuple[VideoBatch, dict[int, str]]:
    batch.indices = batch.indices + by
    return batch, {bad.index + by: bad.reason for bad in batch.bad_videos}
