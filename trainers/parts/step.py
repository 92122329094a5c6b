"""Further passes of an update: interpolated weights (Open-VCLIP, Weng et al. 2023)."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from tc_clip.protocol import VideoModel
from trainers.parts.base import Pass, TrainingPart


class InterpolatedStep(TrainingPart):
    """A second pass at `r * start + (1 - r) * w`, `r ~ U(0, largest)` once an update, its gradient added to that at w.

    The gradient is that with respect to the interpolated weights, not multiplied by `1 - r`, as published. Weights that
    the start does not have stay as they are.

    Args:
        start: the start weights by name, of those that are interpolated.
        largest: the largest share of the start weights.
        weight: of the second pass's loss.
    """

    name = "step"

    def __init__(self, model: VideoModel, start: Mapping[str, Tensor], largest: float, weight: float) -> None:
        known = {name: p for name, p in model.named_parameters() if p.requires_grad and name in start}
        self.parameters: list[Tensor] = list(known.values())
        self.start = [start[name].to(parameter) for name, parameter in known.items()]
        self.mixed = [torch.empty_like(parameter) for parameter in self.parameters]
        self.largest = largest
        self.weight = weight

    @torch.no_grad()
    def begin_update(self, rng: np.random.Generator) -> None:
        share = float(rng.uniform(0, self.largest))
        torch._foreach_copy_(self.mixed, self.parameters)
        torch._foreach_lerp_(self.mixed, self.start, share)

    def further_passes(self) -> Iterator[Pass]:
        yield Pass(self.weight, self._interpolated())

    @contextmanager
    def _interpolated(self) -> Iterator[None]:
        """Let the parameters have the interpolated values; their gradients are added to those they have."""
        own = [parameter.data for parameter in self.parameters]
        try:
            for parameter, value in zip(self.parameters, self.mixed, strict=True):
                parameter.data = value
            yield
        finally:
            for parameter, value in zip(self.parameters, own, strict=True):
                parameter.data = value
