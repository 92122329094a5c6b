"""Metrics of an evaluation: sums over videos, which are merged over batches and ranks, and the value they give.

Every metric is one value with a name, in percent. To add one, write its class here and list it in `METRICS`; `metrics`
of the configuration chooses by name. The log, `results.json`, the tables, TensorBoard, the reports and `best_metric`
iterate over the (name, value) pairs of an evaluation.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from trainers.errors import ConfigError

NUM_BINS = 15  # of the calibration error
_UNIT = 2.0**-40  # of summed confidences: sums of whole numbers do not depend on their order


class Metric(ABC):
    """A value in percent of videos with one class or, with `multi_label`, any number of them.

    Attributes:
        pattern: regular expression of its names.
        higher_is_better: whether the best validation has the highest value.
        sums: a tensor that `add` changes; `merge` joins those of several ranks.
    """

    pattern: ClassVar[str]
    higher_is_better: ClassVar[bool] = True

    def __init__(self, name: str, num_classes: int, multi_label: bool = False) -> None:
        self.name = name
        self.num_classes = num_classes
        self.multi_label = multi_label
        self.sums = torch.zeros(0)

    @classmethod
    @abstractmethod
    def title(cls, name: str) -> str:
        """Return the title, in tables, of the metric with a name."""

    @abstractmethod
    def add(self, scores: Tensor, top_classes: Tensor, targets: Tensor) -> None:
        """Add a batch of videos to the sums.

        Args:
            scores: `(B, C)` mean scores of the views, 0 to 1.
            top_classes: `(B, k)` the classes of highest score, best first, k up to 5.
            targets: `(B, C)` bool, the classes of each video.
        """

    def merge(self, sums: Sequence[Tensor]) -> None:
        """Replace the sums by those of all ranks."""
        self.sums = torch.stack(list(sums)).sum(0)

    @abstractmethod
    def value(self) -> float | None:
        """Return the value: NaN without videos, None if it has no meaning for these classes."""


class TopK(Metric):
    """Share of videos with a right class among the best k. `sums` is `(2,)`: videos, hits."""

    pattern = r"top([1-9]\d*)"

    def __init__(self, name: str, num_classes: int, multi_label: bool = False) -> None:
        super().__init__(name, num_classes, multi_label)
        self.k = int(name.removeprefix("top"))
        self.sums = torch.zeros(2, dtype=torch.int64)

    @classmethod
    def title(cls, name: str) -> str:
        """Return "top-5" of `top5`."""
        return f"top-{name.removeprefix('top')}"

    def add(self, scores: Tensor, top_classes: Tensor, targets: Tensor) -> None:
        """Count a batch."""
        best = top_classes[:, : self.k]
        if self.k > top_classes.shape[1]:
            best = scores.topk(min(self.k, self.num_classes), dim=-1).indices
        hits = targets.gather(1, best).any(1)
        self.sums += torch.tensor([len(hits), int(hits.sum())])

    def value(self) -> float | None:
        """Return the accuracy; None for k classes or fewer, unless k is 1."""
        if self.k > 1 and self.num_classes <= self.k:
            return None
        videos, hits = self.sums.tolist()
        return 100 * float(hits) / videos if videos else float("nan")


class MeanClass(Metric):
    """Mean over the classes of their share of videos whose best class they are. `sums` is `(2, C)`: videos, hits."""

    pattern = "mean_class"

    def __init__(self, name: str, num_classes: int, multi_label: bool = False) -> None:
        super().__init__(name, num_classes, multi_label)
        self.sums = torch.zeros(2, num_classes, dtype=torch.int64)

    @classmethod
    def title(cls, name: str) -> str:
        """Return "by class"."""
        return "by class"

    def add(self, scores: Tensor, top_classes: Tensor, targets: Tensor) -> None:
        """Count a batch."""
        self.sums[0] += targets.sum(0)
        self.sums[1] += (targets & _one_hot(top_classes[:, 0], self.num_classes)).sum(0)

    def value(self) -> float | None:
        """Return the mean over the classes that have videos."""
        seen = self.sums[0] > 0
        return float((100 * self.sums[1][seen] / self.sums[0][seen]).double().mean())


class MeanAveragePrecision(Metric):
    """Mean over the classes of the average precision of the videos, ordered by the class's score.

    `sums` is `(N, 2 * C)` float64: scores and targets of all videos. Videos of equal score share a rank.
    """

    pattern = "map"

    def __init__(self, name: str, num_classes: int, multi_label: bool = False) -> None:
        super().__init__(name, num_classes, multi_label)
        self.sums = torch.zeros(0, 2 * num_classes, dtype=torch.double)

    @classmethod
    def title(cls, name: str) -> str:
        """Return "mAP"."""
        return "mAP"

    def add(self, scores: Tensor, top_classes: Tensor, targets: Tensor) -> None:
        """Keep a batch."""
        self.merge([self.sums, torch.cat((scores.double(), targets.double()), dim=1)])

    def merge(self, sums: Sequence[Tensor]) -> None:
        """Join the videos."""
        self.sums = torch.cat(list(sums))

    def scores_and_targets(self) -> tuple[Tensor, Tensor]:
        """Return scores (N, C) and targets (N, C), float64, of all videos."""
        scores, targets = self.sums.split(self.num_classes, dim=1)
        return scores, targets

    def of_classes(self) -> tuple[float | None, ...]:
        """Return the average precision of each class in percent, None without a video."""
        scores, targets = self.sums.numpy().reshape(-1, 2, self.num_classes).transpose(1, 2, 0)  # (C, N) each
        found = [average_precision(*of_class) for of_class in zip(scores, targets > 0, strict=True)]
        return tuple(None if value is None else 100 * value for value in found)

    def value(self) -> float | None:
        """Return the mean over the classes that have videos."""
        known = [value for value in self.of_classes() if value is not None]
        return float(np.mean(known)) if known else float("nan")


class MacroF1(Metric):
    """Mean over the classes of F1, of the best class of a video or, with several labels, of the scores of 0.5 and more.

    `sums` is `(3, C)`: right predictions, predictions, videos of each class.
    """

    pattern = "macro_f1"

    def __init__(self, name: str, num_classes: int, multi_label: bool = False) -> None:
        super().__init__(name, num_classes, multi_label)
        self.sums = torch.zeros(3, num_classes, dtype=torch.int64)

    @classmethod
    def title(cls, name: str) -> str:
        """Return "macro F1"."""
        return "macro F1"

    def add(self, scores: Tensor, top_classes: Tensor, targets: Tensor) -> None:
        """Count a batch."""
        predicted = scores >= 0.5 if self.multi_label else _one_hot(top_classes[:, 0], self.num_classes)
        self.sums += torch.stack([(predicted & targets).sum(0), predicted.sum(0), targets.sum(0)])

    def value(self) -> float | None:
        """Return the mean over the classes that have videos or predictions."""
        right, predicted, videos = self.sums.double()
        used = predicted + videos > 0
        return float((200 * right[used] / (predicted + videos)[used]).mean())


class CalibrationError(Metric):
    """Expected calibration error: mean difference of confidence and accuracy, in 15 bins of equal width.

    Of the best class of a video or, with several labels, of every class of it. `sums` is `(3, bins)`: number, right
    ones, confidence in units of 2^-40.
    """

    pattern = "ece"
    higher_is_better = False

    def __init__(self, name: str, num_classes: int, multi_label: bool = False) -> None:
        super().__init__(name, num_classes, multi_label)
        self.sums = torch.zeros(3, NUM_BINS, dtype=torch.int64)

    @classmethod
    def title(cls, name: str) -> str:
        """Return "ECE"."""
        return "ECE"

    def add(self, scores: Tensor, top_classes: Tensor, targets: Tensor) -> None:
        """Count a batch."""
        if not self.multi_label:
            scores, targets = scores.gather(1, top_classes[:, :1]), targets.gather(1, top_classes[:, :1])
        confidence, right = scores.double().flatten().clamp(0, 1), targets.flatten()
        edges = torch.arange(1, NUM_BINS, dtype=torch.double) / NUM_BINS
        bins = torch.bucketize(confidence, edges)  # (low, high] each
        for row, amounts in enumerate((torch.ones_like(bins), right.long(), (confidence / _UNIT).round().long())):
            self.sums[row].index_add_(0, bins, amounts)

    def value(self) -> float | None:
        """Return the error."""
        number, right, confidence = self.sums.double()
        total = float(number.sum())
        return 100 * float((confidence * _UNIT - right).abs().sum()) / total if total else float("nan")


METRICS: tuple[type[Metric], ...] = (TopK, MeanClass, MeanAveragePrecision, MacroF1, CalibrationError)
KNOWN = "top1, top5 (any topK), mean_class, map, macro_f1, ece"


def metric_class(name: str) -> type[Metric] | None:
    """Return the class of the metric with a name; None if there is no such metric."""
    return next((metric for metric in METRICS if re.fullmatch(metric.pattern, name)), None)


def create_metrics(names: Sequence[str], num_classes: int, multi_label: bool = False) -> list[Metric]:
    """Return metrics by name, without videos yet.

    Raises:
        ConfigError: if there is no such metric, or a name comes twice.
    """
    metrics = []
    for number, name in enumerate(names):
        metric = metric_class(name)
        if metric is None:
            raise ConfigError(f"metrics: {name} must be one of {KNOWN}")
        if name in names[:number]:
            raise ConfigError(f"metrics: {name} is listed twice")
        metrics.append(metric(name, num_classes, multi_label))
    return metrics


def metric_titles(names: Iterable[str]) -> dict[str, str]:
    """Return the title of each of the names that is a metric's, by name and in order; others are left out."""
    return {name: found.title(name) for name in names if (found := metric_class(name)) is not None}


def is_better(name: str, value: float | None, best: float | None) -> bool:
    """Return whether a value of a metric is better than the best so far, or the first."""
    if best is None or value is None:
        return best is None
    metric = metric_class(name)
    return value > best if metric is None or metric.higher_is_better else value < best


def average_precision(scores: np.ndarray, targets: np.ndarray) -> float | None:
    """Return the mean, over the right ones, of the precision down to each; None without a right one.

    Args:
        scores: `(N,)`; equal scores share the rank of the last of them.
        targets: `(N,)` bool.
    """
    if not targets.any():
        return None
    order = np.argsort(-scores, kind="stable")
    hits, ends = np.cumsum(targets[order]), np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    return float(np.sum(np.diff(hits[ends], prepend=0) * hits[ends] / (ends + 1)) / hits[-1])


def format_metrics(values: Mapping[str, float | None]) -> str:
    """Return the values of all metrics in one line of text."""
    return ", ".join(f"{title} {percent(values.get(name))} %" for name, title in metric_titles(values).items())


def percent(value: float | None) -> str:
    """Return a percentage as text; a dash for None."""
    return "-" if value is None else f"{value:.2f}"


def harmonic_mean(first: float, second: float) -> float:
    """Return the harmonic mean of two accuracies; 0 if one of them is 0."""
    return 2 * first * second / (first + second) if first + second else 0.0


def mean_and_std(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and population standard deviation, as over the three splits of a test set."""
    return float(np.mean(values)), float(np.std(values))


def _one_hot(classes: Tensor, num_classes: int) -> Tensor:
    return torch.zeros(len(classes), num_classes, dtype=torch.bool).scatter_(1, classes[:, None], True)
