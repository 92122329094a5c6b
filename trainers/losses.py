"""The loss of training: logits and soft targets to a sum over videos, with weights of the classes."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from trainers.errors import ConfigError
from video_datasets.text_files import read_text_file


class _WeightedLoss:
    """A loss whose terms of a class are multiplied by a factor.

    Args:
        weights: `(C,)`, the factors; None: 1.
    """

    def __init__(self, weights: Tensor | None = None) -> None:
        self.weights = weights

    def _weights_of(self, logits: Tensor) -> Tensor | None:
        """Return the factors in the type and on the device of the logits."""
        return None if self.weights is None else self.weights.to(logits)


class SigmoidLoss(_WeightedLoss):
    """Binary cross entropy of every class, summed over classes and videos: a video has any number of classes.

    It is the negative logarithm of the probability of a video's classes, of which each is a draw of its own.
    """

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the sum for logits (B, C) and targets (B, C), 0 to 1, of the same type."""
        return F.binary_cross_entropy_with_logits(logits, targets, self._weights_of(logits), reduction="sum")


class CrossEntropy(_WeightedLoss):
    """Cross entropy with soft targets, summed over videos."""

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the sum for logits (B, C) and targets (B, C) of the same type."""
        return F.cross_entropy(logits, targets, self._weights_of(logits), reduction="sum")


Loss = CrossEntropy | SigmoidLoss
LOSSES: dict[str, type[Loss]] = {"cross_entropy": CrossEntropy, "sigmoid": SigmoidLoss}


def start_bias(mean_logit: float, num_labels: int, num_videos: int, num_classes: int) -> float:
    """Return the bias at which the mean logit has the probability that a class is one of a video's.

    Args:
        mean_logit: over videos and classes, without a bias.
        num_labels: classes of all videos, counted with one more that is there and one that is not.
    """
    share = (num_labels + 1) / (num_videos * num_classes + 2)
    return math.log(share / (1 - share)) - mean_logit


def balanced_weights(labels: Sequence[int], num_classes: int) -> Tensor:
    """Return weights `(C,)` float64 in inverse proportion to the videos of a class, whose mean over the videos is 1.

    A class without videos has the weight 1.
    """
    counts = np.bincount(labels, minlength=num_classes)
    weights = len(labels) / (np.count_nonzero(counts) * np.maximum(counts, 1))
    return torch.from_numpy(np.where(counts > 0, weights, 1.0))


def read_class_weights(path: Path, class_names: Sequence[str]) -> Tensor:
    """Read weights `(C,)` float64 from CSV lines `name,weight`, one for each class; a header line is left out.

    Raises:
        ConfigError: if the file cannot be read, a class is missing, unknown or there twice, or a weight is not above 0.
    """
    where = f"class_weights={path}"
    try:
        rows = [row for row in csv.reader(read_text_file(path).splitlines(), strict=True) if row]
    except (OSError, ValueError, csv.Error) as error:
        raise ConfigError(f"{where}: cannot be read: {error}") from error
    if rows and [cell.strip() for cell in rows[0]] == ["name", "weight"]:
        rows = rows[1:]
    found: dict[str, float] = {}
    for row in rows:
        name = row[0].strip()
        try:
            _, value = row
            weight = float(value)
        except ValueError:
            raise ConfigError(f"{where}: expected `name,weight`, found {','.join(row)!r}") from None
        if name not in class_names or name in found or not 0 < weight < float("inf"):
            problem = "no such class" if name not in class_names else "listed twice" if name in found else "not above 0"
            raise ConfigError(f"{where}: {name!r} with weight {weight:g}: {problem}")
        found[name] = weight
    missing = [name for name in class_names if name not in found]
    if missing:
        raise ConfigError(f"{where}: {len(missing)} classes have no weight; the first: {missing[0]!r}")
    return torch.tensor([found[name] for name in class_names], dtype=torch.double)
