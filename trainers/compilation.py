"""Whether the model of a run is compiled, and if not, why."""

import os
import shutil
from importlib.util import find_spec
from typing import Literal

import torch

from tc_clip.protocol import VideoModel


def compile_model(model: VideoModel, setting: bool | Literal["auto"], device: torch.device) -> str:
    """Compile a model in place, or not; return in words what was decided.

    Args:
        setting: "auto" compiles where it makes the model faster and can work; what then cannot be compiled runs as it
            is, with a warning. With True that is an error.
    """
    reason = why_not(device) if setting == "auto" else None if setting else "trainer.compile=false"
    if reason is not None:
        return f"no: {reason}"
    if setting == "auto":
        import torch._dynamo  # takes a second to import

        torch._dynamo.config.suppress_errors = True
    model.compile(fullgraph=setting is True)
    return "yes, in the first update and the first evaluation"


def why_not(device: torch.device) -> str | None:
    """Return why a model should not be compiled for a device, or None if it should."""
    if device.type != "cuda":
        return "it is for GPUs of NVIDIA" if device.type != "cpu" else "on a CPU it is no faster"
    if find_spec("triton") is None:
        return "this PyTorch has no Triton"
    named = os.environ.get("CC")
    if not any(shutil.which(name) for name in ([named] if named else ("gcc", "clang"))):
        return f"there is no C compiler ({f'CC={named}' if named else 'gcc, clang'}), which Triton needs"
    return None
