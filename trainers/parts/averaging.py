"""Averages of the weights over a run: SWA, a normal curve over the epochs (Gaussian), EMA.

- SWA (arXiv 1803.05407): the mean of the weights at the ends of chosen epochs
- Gaussian: the same, an epoch weighted by a normal curve of its number
- EMA: `s <- decay * s + (1 - decay) * w` after every update, from the start weights on
"""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from tc_clip.protocol import VideoModel
from trainers.parts.base import TrainingPart


class _Averaging(TrainingPart):
    """A running average of the trained weights; the model's other weights do not change."""

    name = "averaging"
    weights_file: ClassVar[str] = "averaged.pth"

    def __init__(self, model: VideoModel) -> None:
        self.model = model
        self.trained_weights = {
            name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad
        }
        self.average: dict[str, Tensor] = {}
        self.total = 0.0  # the sum of the weights of what was averaged

    @torch.no_grad()
    def add(self, weight: float) -> None:
        """Add the present weights to the average."""
        if weight == 0:
            return
        self.total += weight
        if not self.average:
            self.average = {name: value.clone() for name, value in self.trained_weights.items()}
        else:
            self._move(weight / self.total)

    def _move(self, share: float) -> None:
        torch._foreach_lerp_(list(self.average.values()), list(self.trained_weights.values()), share)

    def state(self) -> dict[str, Any]:
        return {"total": self.total, "average": self.average}

    def restore(self, state: dict[str, Any]) -> None:
        self.total = state["total"]
        self.average = {name: value.to(self.trained_weights[name]) for name, value in state["average"].items()}

    def final_weights(self) -> dict[str, Tensor] | None:
        return {**self.model.state_dict(), **self.average} if self.average else None


class EpochAverage(_Averaging):
    """The mean of the weights at the ends of the epochs `first` to `last` (from 1), each weighted.

    Args:
        curve: None for equal weights (SWA); mean and standard deviation of a normal curve, in epochs.
    """

    def __init__(self, model: VideoModel, first: int, last: int, curve: tuple[float, float] | None = None) -> None:
        super().__init__(model)
        self.first, self.last, self.curve = first, last, curve

    def after_epoch(self, epoch: int) -> None:
        number = epoch + 1
        if self.first <= number <= self.last:
            self.add(1.0 if self.curve is None else math.exp(-0.5 * ((number - self.curve[0]) / self.curve[1]) ** 2))


class ExponentialAverage(_Averaging):
    """The exponential moving average of the weights, from the start weights on."""

    def __init__(self, model: VideoModel, decay: float) -> None:
        super().__init__(model)
        self.decay = decay
        self.add(1.0)

    @torch.no_grad()
    def after_update(self) -> None:
        self._move(1 - self.decay)
