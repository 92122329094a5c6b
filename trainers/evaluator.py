"""Evaluation: every video once over all ranks, the views' softmax scores summed, sums and counts returned."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tc_clip.protocol import VideoModel
from trainers.distributed.interrupts import Interrupts
from trainers.distributed.processes import Ranks
from trainers.errors import RunInterrupted
from trainers.metrics import Metric, create_metrics
from trainers.precision import Precision
from video_datasets.batches import VideoBatch
from video_datasets.loaders import BadVideoError, EvalLoader
from video_datasets.transforms import normalize

NUM_TOP = 5


@dataclass(frozen=True)
class Prediction:
    """Best classes of a video, by index, best first, and their scores (mean over the views, each in 0 to 1)."""

    index: int
    label: int
    classes: tuple[int, ...]
    scores: tuple[float, ...]


@dataclass
class Evaluation:
    """Result of one pass over a list of videos, the same on every rank.

    `metrics` has the values of all metrics by name, in percent. Unreadable videos are counted apart and are in no
    metric. `predictions` has all others, in the list's order.
    """

    metrics: dict[str, float | None]
    predictions: list[Prediction] = field(default_factory=list)
    unreadable: list[tuple[str, str]] = field(default_factory=list)  # (path, reason)
    seconds: float = 0.0

    def values(self) -> dict[str, float | int | None]:
        """Return the numbers to log."""
        return {
            **self.metrics,
            "videos": len(self.predictions),
            "unreadable": len(self.unreadable),
            "seconds": self.seconds,
        }


def score_views(model: VideoModel, videos: Tensor, precision: Precision, views_at_once: int) -> Tensor:
    """Return the views' softmax scores, summed.

    Args:
        videos: uint8 `(B, V, T, 3, H, W)`.
        views_at_once: views of one forward pass, which limits the memory for any V.

    Returns:
        `(B, C)`, at least float32, on the model's device.
    """
    B, V = videos.shape[:2]
    scores = []
    for views in videos.flatten(0, 1).split(views_at_once):  # (b, T, 3, H, W)
        pixels = normalize(views.to(precision.device, non_blocking=True), precision.dtype, *model.pixels)
        with precision.autocast():
            logits = model(pixels)
        scores.append(logits.to(precision.dtype).softmax(-1))  # (b, C)
    return torch.cat(scores).unflatten(0, (B, V)).sum(1)  # (B, C)


@torch.no_grad()
def score_videos(
    model: VideoModel, loader: EvalLoader, precision: Precision, views_at_once: int
) -> Iterator[tuple[VideoBatch, Tensor]]:
    """Yield this rank's batches with their scores `(B, C)`; scores of invalid videos have no meaning."""
    model.eval()
    for batch in loader:
        yield batch, score_views(model, batch.videos, precision, views_at_once)


def evaluate(
    model: VideoModel,
    loader: EvalLoader,
    *,
    num_classes: int,
    num_videos: int,
    precision: Precision,
    ranks: Ranks,
    views_at_once: int,
    max_bad_share: float = 1.0,
    interrupts: Interrupts | None = None,
) -> Evaluation:
    """Evaluate the model with its class names on a list of videos. Collective.

    Args:
        num_videos: length of the list, compared with the number of videos that all ranks have seen.
        max_bad_share: share of the list that may be unreadable, over all ranks; one video may be in any case.
        interrupts: a stop that it requests on any rank ends the evaluation on all.

    Raises:
        BadVideoError: if more videos cannot be read.
        RunInterrupted: if a stop was requested.
        RuntimeError: if the ranks together did not see every video exactly once.
    """
    start = time.perf_counter()
    metrics = create_metrics(num_classes)
    predictions: list[Prediction] = []
    unreadable: list[tuple[int, str, str]] = []
    with ranks.errors_together():  # a rank with an error waits here until the others are done
        for batch, scores in score_videos(model, loader, precision, views_at_once):
            if interrupts is not None and interrupts.requested is not None:
                ranks.announce_stop(interrupts.requested)
                break
            predictions += _predictions(batch, scores, metrics)
            unreadable += [(video.index, video.path, video.reason) for video in batch.bad_videos]
    if interrupts is not None:
        reason = next((reason for reason in ranks.all_gather(interrupts.requested) if reason is not None), None)
        if reason is not None:
            raise RunInterrupted(reason)
    for metric in metrics:
        metric.sums = ranks.sum(metric.sums)
    gathered = ranks.all_gather((predictions, unreadable))
    predictions = sorted((item for part, _ in gathered for item in part), key=lambda item: item.index)
    unreadable = sorted(item for _, part in gathered for item in part)
    seen = [item.index for item in predictions] + [index for index, _, _ in unreadable]
    if sorted(seen) != list(range(num_videos)):
        raise RuntimeError(f"{len(seen)} videos seen, {len(set(seen))} of them different, of a list of {num_videos}")
    if len(unreadable) > max(1, max_bad_share * num_videos):
        first = "; ".join(f"{path}: {why}" for _, path, why in unreadable[:3])
        raise BadVideoError(
            f"{len(unreadable)} of {num_videos} listed videos cannot be read: {first} (more than data.max_bad_share="
            f"{max_bad_share:g} allows: repair them or take them off the list, or raise it)"
        )
    seconds = time.perf_counter() - start
    values = {name: value for metric in metrics for name, value in metric.values()}
    return Evaluation(values, predictions, [(path, reason) for _, path, reason in unreadable], seconds)


def _predictions(batch: VideoBatch, scores: Tensor, metrics: Sequence[Metric]) -> list[Prediction]:
    """Add a batch's readable videos to the metrics and return the predictions."""
    scores = scores / batch.videos.shape[1]
    top = scores.topk(min(NUM_TOP, scores.shape[1]), dim=-1)
    scores, classes, values = scores.cpu(), top.indices.cpu(), top.values.cpu()
    for metric in metrics:
        metric.add(scores[batch.valid], classes[batch.valid], batch.labels[batch.valid])
    return [
        Prediction(
            int(batch.indices[row]), int(batch.labels[row]), tuple(classes[row].tolist()), tuple(values[row].tolist())
        )
        for row in batch.valid.nonzero().flatten().tolist()
    ]
