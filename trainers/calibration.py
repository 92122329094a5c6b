"""Calibration after training: one temperature, fitted on the scores of a validation, which no order of classes changes.

Guo et al., "On Calibration of Modern Neural Networks" (arXiv 1706.04599). It is applied to the mean scores of a video's
views; with one view that is the softmax of the logits divided by the temperature.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from trainers.metrics import CalibrationError

RANGE = (0.01, 100.0)  # of the temperature
SMALLEST = 1e-38  # score, in place of 0


@dataclass(frozen=True)
class Calibration:
    """A fitted temperature, and what it changes on the list that it was fitted on.

    `ece_before` and `ece_after` are in percent; `nll_...` are mean negative log-likelihoods.
    """

    temperature: float
    ece_before: float
    ece_after: float
    nll_before: float
    nll_after: float
    videos: int
    list: str


def soften(scores: Tensor, temperature: float) -> Tensor:
    """Return scores (..., C), which sum to 1, with their logarithms divided by a temperature, normalised again."""
    return (scores.clamp_min(SMALLEST).log() / temperature).softmax(-1)


def fit_temperature(scores: Tensor, labels: Tensor) -> float:
    """Return the temperature with the smallest negative log-likelihood.

    That is convex in `1 / temperature`, so that a golden-section search over its logarithm finds the smallest value.

    Args:
        scores: `(N, C)` float64, N of 1 or more.
        labels: `(N,)`.
    """
    ratio = (math.sqrt(5) - 1) / 2
    low, high = map(math.log, RANGE)
    while high - low > 1e-6:
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        if _nll(soften(scores, math.exp(left)), labels) <= _nll(soften(scores, math.exp(right)), labels):
            high = right
        else:
            low = left
    return math.exp((low + high) / 2)


def calibrate(scores: Tensor, labels: Tensor, list_name: str) -> Calibration:
    """Fit a temperature to the scores (N, C) and labels (N,) of a list, N of 1 or more."""
    scores = scores.double()
    temperature = fit_temperature(scores, labels)
    after = soften(scores, temperature)
    return Calibration(
        temperature=temperature,
        ece_before=_ece(scores, labels),
        ece_after=_ece(after, labels),
        nll_before=_nll(scores, labels),
        nll_after=_nll(after, labels),
        videos=len(labels),
        list=list_name,
    )


def _nll(scores: Tensor, labels: Tensor) -> float:
    return float(-scores.gather(1, labels[:, None]).clamp_min(SMALLEST).log().mean())


def _ece(scores: Tensor, labels: Tensor) -> float:
    metric = CalibrationError("ece", scores.shape[1])
    targets = torch.nn.functional.one_hot(labels, scores.shape[1]).bool()
    metric.add(scores, scores.topk(1, dim=-1).indices, targets)
    return metric.value() or 0.0
