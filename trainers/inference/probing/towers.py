"""Vision towers of timm as backbones without a text side: a video's frames, each one alone."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tc_clip.config import PixelStatistics
from tc_clip.vision_encoder import VisionOutput
from tc_clip.weights.files import read_tensors
from trainers.errors import ConfigError

PREFIX = "timm:"  # before the name of a tower


class TimmTower(nn.Module):
    """A tower of timm with its weights (a `tc_clip.protocol.VideoBackbone`).

    Args:
        name: as `timm.create_model` accepts it.
        weights: a file of its weights; None: those that timm downloads.
        num_frames: frames of a video.

    Raises:
        ConfigError: if timm does not build it, or the weights do not fit.
        WeightsError: if the file cannot be read.
    """

    def __init__(self, name: str, weights: Path | None, num_frames: int):
        import timm  # takes a second

        super().__init__()
        tensors = None if weights is None else read_tensors(weights)
        source = {} if tensors is None else {"source": "", "state_dict": tensors}
        try:
            tower = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=source, num_classes=0)
        except Exception as error:  # an unknown name, weights of another tower, no network
            reason = " ".join(str(error).split())[:300]
            raise ConfigError(f"{PREFIX}{name}: timm {timm.__version__} cannot load it: {reason}") from error
        self.tower: nn.Module = tower
        facts: Any = tower.pretrained_cfg
        if facts["input_size"][0] != 3:
            raise ConfigError(f"{PREFIX}{name}: reads pictures of {facts['input_size'][0]} channels, not 3")
        self.name = f"{PREFIX}{name}"
        self.input_size = int(facts["input_size"][-1])
        self.num_frames = num_frames
        mean, deviation = (tuple(255 * float(value) for value in facts[key]) for key in ("mean", "std"))
        self.pixels: PixelStatistics = (mean, deviation)  # type: ignore[assignment]

    def info(self) -> dict[str, Any]:
        """Return plain values that describe the model."""
        return {"options": {}, "sizes": {"image_size": self.input_size}}

    def encode_video(self, video: Tensor) -> VisionOutput:
        """Encode videos (B, T, 3, H, W), normalised: pooled features of the frames (B, T, E)."""
        features: Tensor = self.tower(video.flatten(0, 1))  # (B * T, E)
        return VisionOutput(features.unflatten(0, video.shape[:2]), {}, ())


def load_tower(name: str, weights: str | None, num_frames: int, device: torch.device) -> TimmTower:
    """Load a tower on a device, in evaluation mode; the arguments and errors are those of `TimmTower`."""
    return TimmTower(name, None if weights is None else Path(weights), num_frames).to(device).eval()
