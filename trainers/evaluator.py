"""Evaluation: every video once over all ranks, the views' scores summed, sums and counts returned."""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor

from tc_clip.protocol import VideoModel
from trainers.cuda_graphs import GraphedModel
from trainers.device_copies import DeviceCopies
from trainers.distributed.interrupts import Interrupts
from trainers.distributed.processes import Ranks
from trainers.errors import RunInterrupted
from trainers.metrics import MeanAveragePrecision, Metric
from trainers.precision import Precision, weights_in
from trainers.videos_at_once import VideosAtOnce
from video_datasets.annotations import NO_CLASS
from video_datasets.batches import VideoBatch
from video_datasets.loaders import BadVideoError
from video_datasets.transforms import normalize

NUM_TOP = 5


@dataclass(frozen=True)
class Prediction:
    """Best classes of a video, by index, best first, and their scores (mean over the views, each in 0 to 1).

    `label` and `others` are the video's own classes, as in a `VideoRecord`.
    """

    index: int
    label: int
    classes: tuple[int, ...]
    scores: tuple[float, ...]
    others: tuple[int, ...] = ()

    @property
    def labels(self) -> tuple[int, ...]:
        """All classes of the video."""
        return () if self.label == NO_CLASS else (self.label, *self.others)


@dataclass
class Evaluation:
    """Result of one pass over a list of videos, the same on every rank.

    `metrics` has the values of all metrics by name, in percent. Unreadable videos are counted apart and are in no
    metric. `predictions` has all others, in the list's order. `class_precisions`, of lists with any number of classes a
    video, is the average precision of each class in percent, None without a video.
    """

    metrics: dict[str, float | None]
    predictions: list[Prediction] = field(default_factory=list)
    unreadable: list[tuple[str, str]] = field(default_factory=list)  # (path, reason)
    seconds: float = 0.0
    class_precisions: tuple[float | None, ...] | None = None

    def values(self) -> dict[str, float | int | None]:
        """Return the numbers to log."""
        return {
            **self.metrics,
            "videos": len(self.predictions),
            "unreadable": len(self.unreadable),
            "seconds": self.seconds,
        }


def score_views(
    model: VideoModel | GraphedModel,
    batches: Sequence[Tensor],
    precision: Precision,
    at_once: VideosAtOnce,
    copies: DeviceCopies,
) -> list[Tensor]:
    """Return for each batch the views' `class_scores`, summed: `(B, C)`, at least float32, on the model's device.

    Args:
        batches: uint8 `(B, V, T, 3, H, W)` each. Views of several batches go through the model together.
        at_once: how many views that is; fewer if the memory does not suffice.
    """
    views = [batch.flatten(0, 1) for batch in batches]  # (B * V, T, 3, H, W) each
    total = sum(map(len, views))
    scores: list[Tensor] = []  # (b, C) each
    done, count, full = 0, 0, ""
    while done < total:
        if full and not at_once.lower(count):
            raise torch.OutOfMemoryError(full)
        full, count = "", at_once.next_of(total - done)
        try:
            with at_once.measured(count):
                pieces = [copies.start(part) for part in _cut(views, done, done + count)]
                copies.finish(*pieces)
                pixels = normalize(torch.cat(pieces), precision.dtype, *model.pixels)
                with precision.autocast():
                    logits = model(pixels)
                scores.append(class_scores(model, logits.to(precision.dtype)))
            done += count
        except torch.OutOfMemoryError as error:
            full = str(error).partition("\n")[0]
    by_batch = torch.cat(scores).split([len(part) for part in views])
    return [part.unflatten(0, batch.shape[:2]).sum(1) for part, batch in zip(by_batch, batches, strict=True)]


def class_scores(model: object, logits: Tensor) -> Tensor:
    """Return the scores, 0 to 1, of logits (..., C): softmax, or sigmoid for a model with any number of classes."""
    return logits.sigmoid() if getattr(model, "scores", "softmax") == "sigmoid" else logits.softmax(-1)


def _cut(parts: Sequence[Tensor], start: int, stop: int) -> Iterator[Tensor]:
    """Yield the rows `[start, stop)` of tensors that follow each other."""
    for part in parts:
        if start < len(part) and stop > 0:
            yield part[max(start, 0) : stop]
        start, stop = start - len(part), stop - len(part)


@torch.no_grad()
def score_videos(
    model: VideoModel,
    loader: Iterable[VideoBatch],
    precision: Precision,
    at_once: VideosAtOnce,
    cuda_graphs: bool = False,
) -> Iterator[tuple[VideoBatch, Tensor]]:
    """Yield this rank's batches, without their videos, with their mean scores `(B, C)` on the device.

    Nothing waits for the device. Scores of invalid videos have no meaning.
    """
    model.eval()
    scorer = GraphedModel(model) if cuda_graphs else model
    copies = DeviceCopies(precision.device)
    waiting: list[VideoBatch] = []
    for batch in chain(loader, [None]):
        if batch is not None:
            waiting.append(batch)
        num_views = sum(batch.videos.shape[0] * batch.videos.shape[1] for batch in waiting)
        if waiting and (batch is None or num_views >= at_once.number):
            scored = score_views(scorer, [batch.videos for batch in waiting], precision, at_once, copies)
            for done, scores in zip(waiting, scored, strict=True):
                yield replace(done, videos=done.videos.new_empty(0)), scores / done.videos.shape[1]
            waiting = []


def evaluate(
    model: VideoModel,
    loader: Iterable[VideoBatch],
    *,
    metrics: Sequence[Metric],
    num_videos: int,
    precision: Precision,
    ranks: Ranks,
    at_once: VideosAtOnce,
    cuda_graphs: bool = False,
    max_bad_share: float = 1.0,
    interrupts: Interrupts | None = None,
) -> Evaluation:
    """Evaluate the model with its class names on a list of videos. Collective.

    Args:
        metrics: without videos yet; the evaluation has their values.
        num_videos: length of the list, compared with the number of videos that all ranks have seen.
        cuda_graphs: see `GraphedModel`.
        max_bad_share: share of the list that may be unreadable, over all ranks; one video may be in any case.
        interrupts: a stop that it requests on any rank ends the evaluation on all.

    Raises:
        BadVideoError: if more videos cannot be read.
        RunInterrupted: if a stop was requested.
        RuntimeError: if the ranks together did not see every video exactly once.
    """
    start = time.perf_counter()
    predictions: list[Prediction] = []
    unreadable: list[tuple[int, str, str]] = []
    scored: list[tuple[VideoBatch, Tensor]] = []
    # A rank with an error waits here until the others are done.
    with ranks.errors_together(), weights_in(model, precision):
        for batch, scores in score_videos(model, loader, precision, at_once, cuda_graphs):
            if interrupts is not None and interrupts.requested is not None:
                ranks.announce_stop(interrupts.requested)
                break
            scored.append((batch, scores))
            unreadable += [(video.index, video.path, video.reason) for video in batch.bad_videos]
        predictions = _predictions(scored, metrics)
    if interrupts is not None:
        reason = next((reason for reason in ranks.all_gather(interrupts.requested) if reason is not None), None)
        if reason is not None:
            raise RunInterrupted(reason)
    gathered = ranks.all_gather((predictions, unreadable, [metric.sums for metric in metrics]))
    predictions = sorted((item for part, _, _ in gathered for item in part), key=lambda item: item.index)
    unreadable = sorted(item for _, part, _ in gathered for item in part)
    for number, metric in enumerate(metrics):
        metric.merge([sums[number] for _, _, sums in gathered])
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
    values = {metric.name: metric.value() for metric in metrics}
    precisions = next((item.of_classes() for item in metrics if isinstance(item, MeanAveragePrecision)), None)
    return Evaluation(
        values,
        predictions,
        [(path, reason) for _, path, reason in unreadable],
        seconds,
        precisions if any(metric.multi_label for metric in metrics) else None,
    )


def _predictions(scored: Sequence[tuple[VideoBatch, Tensor]], metrics: Sequence[Metric]) -> list[Prediction]:
    """Add the readable videos to the metrics and return the predictions. Waits for the device, once."""
    if not scored:
        return []
    all_scores = torch.cat([scores for _, scores in scored])
    top = all_scores.topk(min(NUM_TOP, all_scores.shape[1]), dim=-1)
    scores, classes, values = all_scores.cpu(), top.indices.cpu(), top.values.cpu()
    valid, labels, indices = (
        torch.cat([getattr(batch, name) for batch, _ in scored]) for name in ("valid", "labels", "indices")
    )
    several = labels.dim() > 1
    targets = labels[valid] if several else F.one_hot(labels[valid], scores.shape[1]).bool()
    for metric in metrics:
        metric.add(scores[valid], classes[valid], targets)
    own = (
        [row.nonzero().flatten().tolist() or [NO_CLASS] for row in targets] if several else labels[valid, None].tolist()
    )
    rows = (x[valid].tolist() for x in (indices, classes, values))
    return [
        Prediction(index, label, tuple(best), tuple(shares), tuple(others))
        for (label, *others), index, best, shares in zip(own, *rows, strict=True)
    ]
