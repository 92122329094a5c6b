"""The state of a training: everything that training changes and a checkpoint stores."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tc_clip.protocol import VideoModel
from tc_clip.weights.trained_part import ENTRY, with_start
from trainers.parts.base import TrainingPart

Best = dict[str, float | int | None]  # epoch and numbers of the best validation


@dataclass
class Position:
    """How far a run is: the next micro-batch, and the best validation (None before the first).

    If all micro-batches of an epoch are done but its validation is not, `micro_batch` is the number of micro-batches.
    """

    epoch: int = 0
    micro_batch: int = 0
    best: Best | None = None

    def step(self, num_micro_batches: int) -> int:
        """Return the micro-batches since the run began, of which an epoch has `num_micro_batches`."""
        return self.epoch * num_micro_batches + self.micro_batch


@dataclass
class TrainingState:
    """Model, optimizer, loss scaler, position, number of skipped updates (in all, in a row), parts of training.

    Attributes:
        left_out: frozen weights that checkpoints do not have.
        start_weights: the fingerprint of these (`tc_clip.weights.trained_part`).
    """

    model: VideoModel
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    position: Position = field(default_factory=Position)
    skipped: dict[str, int] = field(default_factory=lambda: {"total": 0, "in_a_row": 0})
    parts: Sequence[TrainingPart] = ()
    left_out: frozenset[str] = frozenset()
    start_weights: str | None = None

    def trained_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the model and of its parts that updates change."""
        modules = [part.trained() for part in self.parts]
        of_parts = [parameter for module in modules if module is not None for parameter in module.parameters()]
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad] + of_parts

    def content(self, with_optimizer: bool, weights: Mapping[str, Tensor] | None = None) -> dict[str, Any]:
        """Return a copy of the state as a checkpoint stores it (see `trainers.checkpoint`), tensors on the CPU.

        Args:
            weights: of the model, instead of the present ones.
        """
        stored = self.model.state_dict() if weights is None else weights
        parts = {part.name: _on_cpu(_state_of(part)) for part in self.parts} if with_optimizer else {}
        return {
            **({"parts": parts} if parts else {}),
            "model": _on_cpu({name: value for name, value in stored.items() if name not in self.left_out}),
            **({} if self.start_weights is None else {ENTRY: self.start_weights}),
            "model_info": self.model.info(),
            "optimizer": _on_cpu(self.optimizer.state_dict()) if with_optimizer else None,
            "scaler": self.scaler.state_dict() if with_optimizer and self.scaler.is_enabled() else None,
            "epoch": self.position.epoch,
            "micro_batch": self.position.micro_batch,
            "best": self.position.best,
            "skipped": dict(self.skipped),
        }

    def restore(self, content: dict[str, Any]) -> None:
        """Take over the state in a checkpoint.

        Raises:
            KeyError, ValueError, RuntimeError, TypeError: if it does not fit the model or the optimizer.
        """
        for name, value in self.model.state_dict().items():
            stored = content["model"].get(name, value)
            if stored.is_floating_point() != value.is_floating_point():
                raise ValueError(f"{name} has values of {stored.dtype}, not of {value.dtype}")
        weights = content["model"]
        if content.get(ENTRY) is not None:
            weights = with_start(weights, content[ENTRY], self.model, "its weights")
        self.model.load_state_dict(weights)
        self.optimizer.load_state_dict(content["optimizer"])
        if content["scaler"] is not None and self.scaler.is_enabled():
            self.scaler.load_state_dict(content["scaler"])
        for part in self.parts:
            stored = content["parts"][part.name]
            if (module := part.trained()) is not None:
                module.load_state_dict(stored["trained"])
            part.restore(stored["state"])
        self.skipped = dict(content["skipped"])
        self.position = Position(content["epoch"], content["micro_batch"], content["best"])


def _state_of(part: TrainingPart) -> dict[str, Any]:
    module = part.trained()
    trained: dict[str, Tensor] = {} if module is None else dict(module.state_dict())
    return {"trained": trained, "state": part.state()}


def _on_cpu(value: Any) -> Any:
    """Return nested containers with copies of their tensors on the CPU."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _on_cpu(item) for key, item in value.items()}
    return type(value)(_on_cpu(item) for item in value) if isinstance(value, list | tuple) else value
