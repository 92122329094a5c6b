"""Metrics of an evaluation: sums over videos, which are added over batches and ranks, and the values they give.

Every metric yields its values as (name, value). To add one, write its class here and list it in `METRICS`: the log,
`results.json`, the tables, TensorBoard, the reports and `best_metric` iterate over that list.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor


class Metric(ABC):
    """Sums over videos in one tensor, `sums`, and values in percent, of which higher is better.

    `titles` has the name of each value, as in `results.json`, and its title in tables, in the order of `values`.
    """

    titles: ClassVar[Mapping[str, str]]

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.sums = torch.zeros(0)

    @abstractmethod
    def add(self, scores: Tensor, top_classes: Tensor, labels: Tensor) -> None:
        """Add a batch of videos to the sums.

        Args:
            scores: `(B, C)` mean softmax scores of the views.
            top_classes: `(B, k)` the classes of highest score, best first, k up to 5.
            labels: `(B,)`.
        """

    @abstractmethod
    def values(self) -> Iterator[tuple[str, float | None]]:
        """Yield the values by name; None for a value that has no meaning for these classes."""


class Accuracy(Metric):
    """Top-1 and top-5 accuracy, and the mean of the classes' top-1 accuracies.

    `sums` is `(3, C)` int64: of each class the videos, those whose best class is right, and those with a right class
    among the best five.
    """

    titles = {"top1": "top-1", "top5": "top-5", "mean_class": "by class"}

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.sums = torch.zeros(3, num_classes, dtype=torch.int64)

    def add(self, scores: Tensor, top_classes: Tensor, labels: Tensor) -> None:
        """Count a batch."""
        hits = top_classes == labels[:, None]
        for row, mask in enumerate((torch.ones_like(labels, dtype=torch.bool), hits[:, 0], hits.any(1))):
            self.sums[row] += torch.bincount(labels[mask], minlength=self.num_classes).cpu()

    def values(self) -> Iterator[tuple[str, float | None]]:
        """Yield the accuracies: NaN without videos; top-5 is None for five classes or fewer."""
        num_videos = int(self.sums[0].sum())
        top1, top5 = (100 * float(row.sum()) / num_videos if num_videos else float("nan") for row in self.sums[1:])
        seen = self.sums[0] > 0
        yield "top1", top1
        yield "top5", top5 if self.num_classes > 5 else None
        yield "mean_class", float((100 * self.sums[1][seen] / self.sums[0][seen]).double().mean())


METRICS: tuple[type[Metric], ...] = (Accuracy,)


def create_metrics(num_classes: int) -> list[Metric]:
    """Return all metrics, without videos yet."""
    return [metric(num_classes) for metric in METRICS]


def metric_titles() -> dict[str, str]:
    """Return the title of every value by its name."""
    return {name: title for metric in METRICS for name, title in metric.titles.items()}


def format_metrics(values: Mapping[str, float | None]) -> str:
    """Return the values of all metrics in one line of text."""
    return ", ".join(f"{title} {percent(values.get(name))} %" for name, title in metric_titles().items())


def percent(value: float | None) -> str:
    """Return a percentage as text; a dash for None."""
    return "-" if value is None else f"{value:.2f}"


def harmonic_mean(first: float, second: float) -> float:
    """Return the harmonic mean of two accuracies; 0 if one of them is 0."""
    return 2 * first * second / (first + second) if first + second else 0.0


def mean_and_std(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and population standard deviation, as over the three splits of a test set."""
    return float(np.mean(values)), float(np.std(values))
