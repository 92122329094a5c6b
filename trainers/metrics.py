"""Accuracies as sums and counts, so that they add up over batches and ranks; and what is computed from them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor


@dataclass
class AccuracyCounts:
    """Counts by class of videos, of right first answers and of right answers among the first five.

    `table` is `(3, C)` int64: videos, top-1, top-5.
    """

    num_classes: int
    table: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.table = torch.zeros(3, self.num_classes, dtype=torch.int64)

    def add(self, top_classes: Tensor, labels: Tensor) -> None:
        """Count a batch.

        Args:
            top_classes: `(B, k)` best classes first, k up to 5.
            labels: `(B,)`.
        """
        hits = top_classes == labels[:, None]
        for row, mask in enumerate((torch.ones_like(labels, dtype=torch.bool), hits[:, 0], hits.any(1))):
            self.table[row] += torch.bincount(labels[mask], minlength=self.num_classes).cpu()

    @property
    def num_videos(self) -> int:
        """Videos counted."""
        return int(self.table[0].sum())

    @property
    def top1(self) -> float:
        """Share of right first answers, in percent."""
        return self._percent(1)

    @property
    def top5(self) -> float | None:
        """Share of right answers among the first five, in percent; None where five answers are all that there are."""
        return self._percent(2) if self.num_classes > 5 else None

    @property
    def mean_class(self) -> float:
        """Mean over the classes that have videos of the share of right first answers, in percent."""
        seen = self.table[0] > 0
        return float((100 * self.table[1][seen] / self.table[0][seen]).double().mean())

    def per_class(self) -> list[dict[str, int]]:
        """Return the counts class by class."""
        return [dict(zip(("videos", "top1", "top5"), row, strict=True)) for row in self.table.T.tolist()]

    def _percent(self, row: int) -> float:
        return 100 * float(self.table[row].sum()) / self.num_videos if self.num_videos else float("nan")


def percent(value: float | None) -> str:
    """Return an accuracy as text; a dash where it means nothing."""
    return "-" if value is None else f"{value:.2f}"


def harmonic_mean(first: float, second: float) -> float:
    """Return the harmonic mean of two accuracies; 0 where one of them is 0."""
    return 2 * first * second / (first + second) if first + second else 0.0


def mean_and_std(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and population standard deviation, as over the three splits of a test set."""
    return float(np.mean(values)), float(np.std(values))
