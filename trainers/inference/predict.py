"""Predictions for video files: load the model of a checkpoint, score files or the windows of a long video."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import tc_clip
from tc_clip.ops.memory import keep_freed_memory
from tc_clip.protocol import ReadsVideos, VideoModel
from tc_clip.weights.sources import CheckpointSource, as_checkpoint
from trainers.calibration import soften
from trainers.cuda_graphs import GraphedModel
from trainers.device_copies import DeviceCopies
from trainers.distributed.processes import pick_device
from trainers.errors import ConfigError
from trainers.evaluator import score_views
from trainers.inference.reading import FileReader, in_background, transform_of
from trainers.precision import Precision, pick_precision
from trainers.videos_at_once import VideosAtOnce, memory_of
from video_datasets.batches import VideoBatch
from video_datasets.decoding import VideoReadError
from video_datasets.isolation import isolated
from video_datasets.windows import Window, read_windows
from video_datasets.workers import VideoTimeoutError

MAX_WORKERS = 8
NONE_OF_THESE = "none of these"  # the label of what scores below the threshold


@dataclass(frozen=True)
class VideoPrediction:
    """The best classes of a video, best first, with their scores (mean over the views, 0 to 1).

    `seconds` is the time since the previous result, divided by the number of videos in the batch. If the video could
    not be read, `error` is one line with the reason and there are no classes. `label` is the best class, or
    `NONE_OF_THESE` if it scores less than the threshold. If `several`, a video has any number of classes: `classes` has
    all of the model, `labels` those that reach the threshold, and `label` names these with "; " between them.
    """

    path: str
    classes: tuple[str, ...]
    scores: tuple[float, ...]
    seconds: float
    error: str | None = None
    threshold: float = 0.0
    several: bool = False

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes of the video, best first: those that reach the threshold, or the best of them."""
        reached = [name for name, score in zip(self.classes, self.scores, strict=True) if score >= self.threshold]
        return tuple(reached if self.several else reached[:1])

    @property
    def label(self) -> str | None:
        """The best class, `NONE_OF_THESE`, or None if the video could not be read."""
        return ("; ".join(self.labels) or NONE_OF_THESE) if self.classes else None


@dataclass(frozen=True)
class Timeline:
    """Scores of a long video over time: `scores` (n, C) of the windows from `starts` to `ends` (n,), in seconds.

    A window whose best class scores less than `threshold` has the label `NONE_OF_THESE`; if `several`, a window has all
    classes that reach it. If the video breaks off, `error` is one line with the reason; earlier windows are there.
    """

    path: str
    class_names: tuple[str, ...]
    starts: np.ndarray
    ends: np.ndarray
    scores: np.ndarray
    error: str | None = None
    threshold: float = 0.0
    several: bool = False

    @property
    def labels(self) -> list[str]:
        """The best class of each window, or all that reach the threshold, or `NONE_OF_THESE`."""
        if self.several:
            reached = (np.flatnonzero(scores >= self.threshold) for scores in self.scores)
            return ["; ".join(self.class_names[index] for index in indices) or NONE_OF_THESE for indices in reached]
        best, names = self.scores.argmax(axis=1).tolist(), self.class_names
        known = (self.scores.max(axis=1) >= self.threshold).tolist()
        return [names[label] if is_known else NONE_OF_THESE for label, is_known in zip(best, known, strict=True)]

    def segments(self) -> list[tuple[float, float, str, float]]:
        """Return the stretches of windows with the same label: start, end, label, mean score of the best class."""
        labels, best = self.labels, self.scores.max(axis=1)
        firsts = [0, *(i for i in range(1, len(labels)) if labels[i] != labels[i - 1]), len(labels)]
        return [
            (
                float(self.starts[first]),
                float(self.ends[last - 1]),
                labels[first],
                float(best[first:last].mean()),
            )
            for first, last in zip(firsts, firsts[1:], strict=False)
        ]


def load_model(
    checkpoint: CheckpointSource | None,
    class_names: Sequence[str],
    *,
    name: str | None = None,
    clip_weights: str | None = None,
    pixels: str | None = None,
    device: str = "auto",
) -> tc_clip.VideoClip:
    """Build the model of a checkpoint, in evaluation mode and on a device.

    Args:
        checkpoint: a file of this project, `hf://owner/name[@revision][/file]`, or a published one (then `name` and
            `clip_weights`, by default tc_clip and ViT-B/16, must fit it), or what `tc_clip.read_checkpoint` returned;
            None: the start weights.
        class_names: the classes to score.
        name: the model, if the checkpoint does not name it.
        clip_weights: the source of CLIP's weights, if the checkpoint does not name it.
        pixels: "recipe" or "weights", if no checkpoint of this project states it.
        device: auto, cuda or cpu.

    Raises:
        ConfigError: if neither a checkpoint nor start weights are given, or a class name does not fit.
        WeightsError: if weights cannot be read or do not fit.
    """
    options = {} if pixels is None else {"pixels": pixels}
    try:
        if checkpoint is not None:
            model = _model_of(as_checkpoint(checkpoint), class_names, name, clip_weights, options)
        elif name is not None and clip_weights is not None:
            model = tc_clip.create_model(name, class_names=class_names, clip_weights=clip_weights, **options)
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
    checkpoint: tc_clip.Checkpoint,
    class_names: Sequence[str],
    name: str | None,
    clip_weights: str | None,
    options: Mapping[str, Any],
) -> tc_clip.VideoClip:
    if checkpoint.model_info is not None:
        if options:
            raise ConfigError("pixels: the checkpoint states them itself; leave it out")
        return tc_clip.load_model(checkpoint, class_names, clip_weights)
    clip_weights = clip_weights or "ViT-B/16"
    return tc_clip.create_model(
        name or "tc_clip", class_names=class_names, clip_weights=clip_weights, checkpoint=checkpoint, **options
    )


def temperature_of(checkpoint: tc_clip.Checkpoint) -> tuple[float, str] | None:
    """Return the temperature that a training with `calibrate` fitted, and where, in words; None if there is none.

    Raises:
        ConfigError: if it is no number above 0.
    """
    stored = checkpoint.content.get("calibration")
    if stored is None:
        return None
    temperature = stored.get("temperature") if isinstance(stored, dict) else None
    if not isinstance(temperature, float) or not 0 < temperature < float("inf"):
        raise ConfigError(f"{checkpoint.source}: its temperature is no number above 0; train again with calibrate=true")
    return temperature, f"fitted on {stored.get('videos')} videos of {stored.get('list')}"


def gives_several(model: VideoModel) -> bool:
    """Return whether the model was trained for any number of classes a video, each with a score of its own."""
    return getattr(model, "scores", "softmax") == "sigmoid"


def inference_precision(model: ReadsVideos, name: str = "auto") -> Precision:
    """Return the number formats of inference; auto is bf16 if the device, GPU or CPU, computes in it, else fp32."""
    device = next(model.parameters()).device
    if name == "auto" and device.type == "cpu":
        abilities = torch.cpu.get_capabilities()
        name = "bf16" if abilities.get("avx512_bf16") or abilities.get("amx_bf16") else "fp32"
    return pick_precision(name, device)


def workers_for(paths: Sequence[str], num_workers: int | None) -> int:
    """Return the processes that decode; None: 0 for one video, else one process per core, at most 8."""
    if num_workers is not None:
        return num_workers
    return 0 if len(paths) == 1 else min(MAX_WORKERS, len(paths), torch.get_num_threads() or 1)


def predict(model: VideoModel, paths: Sequence[str | Path], **options: Any) -> list[VideoPrediction]:
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
    cuda_graphs: bool = False,
    threshold: float = 0.0,
    temperature: float | None = None,
) -> Iterator[VideoPrediction]:
    """Yield a prediction for every video, in order, each when its batch is scored and the next one has been started.

    A model for any number of classes a video (`gives_several`) has no use for `top` and `temperature`.

    Args:
        model: with its class names, on its device.
        paths: video files.
        top: number of classes to report.
        num_clips: temporal views of a video; num_crops: spatial views, 1 or 3.
        batch_size: videos that are read together; on a CPU also the views of one pass through the model.
        num_workers: processes that decode; 0: a thread of this process; None: as `workers_for` chooses.
        precision: auto, fp32, bf16, fp16 or fp64.
        decoder: auto, pyav, decord or torchcodec.
        timeout_s: seconds after which a video that is being read is assumed to hang; it gets an error.
        temperature: of a calibration (`temperature_of`), which divides the logarithms of the scores, or None.
        cuda_graphs: replay the model as a CUDA graph for batches of a size that comes again.
        threshold: score (0 to 1) below which the best class is not the label of a video.
    """
    names = [str(path) for path in paths]
    if not names:
        return
    formats = inference_precision(model, precision)
    reader = FileReader(
        transform=transform_of(model, num_crops),
        num_frames=model.num_frames,
        num_clips=num_clips,
        decoder=decoder,
        batch_size=min(batch_size, len(names)),
        timeout_s=timeout_s,
        pin_memory=formats.device.type == "cuda",
    )
    at_once, copies = VideosAtOnce("auto", batch_size, memory_of(formats.device)), DeviceCopies(formats.device)
    several = gives_several(model)
    num_shown = len(model.class_names) if several else min(top, len(model.class_names))
    model.eval()
    scorer = GraphedModel(model) if cuda_graphs else model

    @torch.inference_mode()
    def scored() -> Iterator[tuple[VideoBatch, dict[int, str], torch.return_types.topk]]:
        for batch, reasons in reader.read(names, workers_for(names, num_workers)):
            (scores,) = score_views(scorer, [batch.videos], formats, at_once, copies)  # (B, C)
            scores = scores / batch.videos.shape[1]
            scores = scores if temperature is None or several else soften(scores, temperature)
            yield replace(batch, videos=batch.videos.new_empty(0)), reasons, scores.topk(num_shown, dim=-1)

    started = time.perf_counter()
    for done, _ in pairwise(chain(scored(), [None])):  # waits for a batch when the next one is under way
        assert done is not None, "only the last is"
        batch, reasons, best = done
        values, classes = best.values.tolist(), best.indices.tolist()
        now = time.perf_counter()
        seconds, started = (now - started) / len(batch), now
        for row, index in enumerate(batch.indices.tolist()):
            if batch.valid[row]:
                best_names = tuple(model.class_names[label] for label in classes[row])
                yield VideoPrediction(
                    names[index], best_names, tuple(values[row]), seconds, threshold=threshold, several=several
                )
            else:
                yield VideoPrediction(names[index], (), (), seconds, reasons[index])


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
    threshold: float = 0.0,
    temperature: float | None = None,
) -> Timeline:
    """Score a long video window by window; `video_datasets.windows.read_windows` defines the windows.

    Args:
        threshold: score (0 to 1) below which the best class is not the label of a window; the others are those of
            `iter_predictions`.

    Raises:
        ValueError: if the window or the stride is not above 0.
        VideoReadError: if not even the first window can be read.
    """
    formats = inference_precision(model, precision)
    transform = transform_of(model, num_crops)
    at_once, copies = VideosAtOnce("auto", batch_size, memory_of(formats.device)), DeviceCopies(formats.device)
    decoder = isolated(timeout_s=timeout_s)
    windows = read_windows(str(path), window_s, stride_s, model.num_frames, transform, decoder)
    model.eval()
    spans: list[tuple[float, float]] = []
    scores: list[Tensor] = []
    waiting: list[Window] = []
    error: VideoReadError | VideoTimeoutError | None = None

    def score() -> None:
        views = torch.stack([window.videos for window in waiting])  # (n, V, T, 3, S, S)
        with torch.inference_mode():
            (scored,) = score_views(model, [views], formats, at_once, copies)
            scored = scored / num_crops
            scored = scored if temperature is None or gives_several(model) else soften(scored, temperature)
            scores.append(scored.float())  # stays on the device: nothing waits for it
        spans.extend((window.start, window.end) for window in waiting)
        waiting.clear()

    try:
        for window in in_background(windows, timeout_s, f"no frame came of it for {timeout_s:g} s"):
            waiting.append(window)
            if len(waiting) == batch_size:
                score()
    except (VideoReadError, VideoTimeoutError) as problem:
        error = problem
    if waiting:
        score()
    reason = error.reason if isinstance(error, VideoReadError) else None if error is None else str(error)
    if not spans:
        raise VideoReadError(str(path), reason or "it has no frames") from error
    starts, ends = np.array(spans).T
    values = torch.cat(scores).cpu().numpy()
    return Timeline(str(path), model.class_names, starts, ends, values, reason, threshold, gives_several(model))
