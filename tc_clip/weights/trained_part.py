"""Checkpoints of the trained part alone: CLIP's frozen weights are left out, and a fingerprint says which they were.

Such a checkpoint has the entry `start_weights`, the fingerprint of what was left out; `model` has all other weights. It
is loaded into a model of the start weights, whose frozen ones are compared with the fingerprint.
"""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from tc_clip.protocol import VideoModel
from tc_clip.weights.checksum import checksum_of
from tc_clip.weights.files import WeightsError
from tc_clip.weights.layouts import POSITIONS

ENTRY = "start_weights"


def start_names(model: VideoModel) -> frozenset[str]:
    """Return the weights that are not trained and come from the start weights as they are.

    Positions are not among them: those of another input size are interpolated.
    """
    new = model.new_parameter_names()
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    return frozenset(frozen.difference(new, {POSITIONS}))


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of weights by name, the same for every device, order and floating-point format of the run."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(checksum_of([name, tensors[name].to(torch.float32)]).encode())
    return digest.hexdigest()


def with_start(stored: Mapping[str, Tensor], expected: str, model: VideoModel, source: str) -> dict[str, Tensor]:
    """Return stored weights together with those that are left out, which are the model's.

    Args:
        stored: the weights of the checkpoint.
        expected: its `start_weights`.
        model: a model that has its start weights, or at least those that are not trained.
        source: the checkpoint, for the message.

    Raises:
        WeightsError: if the model's are others.
    """
    missing = {name: value for name, value in model.state_dict().items() if name not in stored}
    if fingerprint(missing) != expected:
        raise WeightsError(
            f"{source}: has only what was trained (save=trained), and the {len(missing)} weights that it lacks are not "
            f"those of {model.info()['clip_weights'] or 'a random start'}: give the CLIP weights that its training "
            "started from (trainer.clip_weights, --clip-weights)"
        )
    return {**missing, **stored}
