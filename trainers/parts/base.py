"""The hooks of a part of training. Each does nothing unless a part overrides it."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any, ClassVar, NamedTuple

import numpy as np
from torch import Tensor, nn

from tc_clip.protocol import VideoModel, VideoTextModel
from tc_clip.vision_encoder import VisionOutput


class Outputs(NamedTuple):
    """What a forward pass returned: logits (B, C) and, if a part asked for features, what they were compared from.

    Attributes:
        vision: of the vision encoder, or None.
        texts: features of the classes, not normalised, (C, E) or (B, C, E), or None.
    """

    logits: Tensor
    vision: VisionOutput | None = None
    texts: Tensor | None = None


class Pass(NamedTuple):
    """A further pass over a micro-batch: its loss is the cross entropy times `weight`, within `context`."""

    weight: float
    context: AbstractContextManager[None]


class TrainingPart:
    """A part of training. It follows from settings, seed and micro-batch, and from the state that it stores.

    Attributes:
        name: of the part, in checkpoints.
        needs_features: whether `further_loss` or `further_logits` needs the features of `Outputs`.
        is_per_micro_batch: whether `begin_micro_batch` changes the model, so that micro-batches cannot run together.
        weights_file: name of the file of `final_weights`.
    """

    name: ClassVar[str]
    needs_features: bool = False
    is_per_micro_batch: ClassVar[bool] = False
    weights_file: ClassVar[str] = ""

    def trained(self) -> nn.Module | None:
        """Return what the part trains besides the model; a checkpoint stores it apart from the model's weights."""
        return None

    def begin_update(self, rng: np.random.Generator) -> None:
        """Prepare for an update; all ranks have equal generators."""

    def begin_micro_batch(self, rng: np.random.Generator) -> None:
        """Prepare for the passes over a micro-batch."""

    def further_loss(self, videos: Tensor, outputs: Outputs) -> Tensor | None:
        """Return a loss to add to the cross entropy, a mean over the videos (B, T, 3, H, W), or None.

        A micro-batch can run in pieces, several can run together: a video's share is not to depend on the others.
        """

    def further_logits(self, outputs: Outputs) -> Iterator[Tensor]:
        """Yield logits (B, C) whose cross entropy is added to that of the model's; it needs `needs_features`."""
        return iter(())

    def further_passes(self) -> Iterator[Pass]:
        """Yield the passes over a micro-batch that follow the usual one."""
        return iter(())

    def after_update(self) -> None:
        """Note that an update changed the weights; a skipped update does not count."""

    def after_epoch(self, epoch: int) -> None:
        """Note that all updates of an epoch (from 0) are done."""

    def state(self) -> dict[str, Any]:
        """Return what the part must know to continue, besides what it trains, as plain containers and tensors."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what `state` returned."""

    def final_weights(self) -> dict[str, Tensor] | None:
        """Return weights of the whole model that are tested after training besides the best, or None."""
        return None


def run_model(model: VideoModel, videos: Tensor, with_features: bool) -> Outputs:
    """Score videos (B, T, 3, H, W); features need a `VideoTextModel`."""
    if not with_features:
        return Outputs(model(videos))
    text_model: VideoTextModel = model  # type: ignore[assignment]  # parts that need features check it
    vision = text_model.encode_video(videos)
    texts = text_model.encode_classes(vision)
    return Outputs(text_model.score(vision, texts), vision, texts)
