"""Number formats of a run: of the weights, and of the forward pass."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import torch

import tc_clip
from tc_clip.protocol import ReadsVideos

PRECISIONS = ("auto", "fp32", "bf16", "fp16", "fp64")


@dataclass(frozen=True)
class Precision:
    """A chosen precision (see `pick_precision`).

    `dtype` is that of weights, gradients and input, `autocast_dtype` that of the forward pass if it differs.
    """

    name: str
    device: torch.device
    dtype: torch.dtype
    autocast_dtype: torch.dtype | None

    def autocast(self) -> AbstractContextManager:
        """Return the context of a forward pass."""
        return torch.autocast(self.device.type, dtype=self.autocast_dtype, enabled=self.autocast_dtype is not None)

    def scaler(self) -> torch.amp.GradScaler:
        """Return the loss scaler, which does nothing except for fp16, whose range loses small gradients."""
        return torch.amp.GradScaler(self.device.type, enabled=self.name == "fp16")


@contextmanager
def weights_in(model: ReadsVideos, precision: Precision) -> Iterator[None]:
    """Around an evaluation: change the format of weights once. Autocast would do it in every forward pass.

    Bit for bit the same. Only parameters that matrix products alone read, which a `VideoClip` names.
    """
    parameters = list(model.product_weights()) if isinstance(model, tc_clip.VideoClip) else []
    dtype = precision.autocast_dtype
    if dtype is None or any(parameter.is_inference() for parameter in parameters):
        yield
        return
    kept = [(parameter, parameter.data) for parameter in parameters]
    try:
        for parameter, data in kept:
            parameter.data = data.to(dtype)
        yield
    finally:
        for parameter, data in kept:
            parameter.data = data


def pick_precision(name: str, device: torch.device, tf32: bool = False) -> Precision:
    """Choose the number format and set whether float32 products on GPUs may use TF32.

    Args:
        name: auto (bf16, or else fp16, with CUDA; else fp32), fp32, bf16, fp16 or fp64.
    """
    if name == "auto":
        name = "fp32" if device.type != "cuda" else "bf16" if torch.cuda.is_bf16_supported(False) else "fp16"
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32
    autocast_dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(name)
    return Precision(name, device, torch.float64 if name == "fp64" else torch.float32, autocast_dtype)
