"""TC-CLIP (Kim et al., ECCV 2024) and the models that it is compared with, as plain PyTorch modules.

The names below are the public interface. They are imported when first used, so that `import tc_clip` costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tc_clip.create import create_model, load_model, model_names, model_options
    from tc_clip.models import VideoClip
    from tc_clip.protocol import VideoModel, VideoTextModel
    from tc_clip.tokenizer import tokenize
    from tc_clip.vision_encoder import VisionOutput
    from tc_clip.weights.downloads import KNOWN_CLIP_WEIGHTS, fetch_clip_weights
    from tc_clip.weights.files import Checkpoint, WeightsError
    from tc_clip.weights.loading import interpolate_weights, load_weights
    from tc_clip.weights.publishing import push_to_hub
    from tc_clip.weights.sources import read_checkpoint

__version__ = "0.1.0"

_HOMES = {
    "create_model": "create",
    "load_model": "create",
    "model_names": "create",
    "model_options": "create",
    "KNOWN_CLIP_WEIGHTS": "weights.downloads",
    "fetch_clip_weights": "weights.downloads",
    "Checkpoint": "weights.files",
    "WeightsError": "weights.files",
    "read_checkpoint": "weights.sources",
    "VideoClip": "models",
    "VideoModel": "protocol",
    "VideoTextModel": "protocol",
    "tokenize": "tokenizer",
    "VisionOutput": "vision_encoder",
    "interpolate_weights": "weights.loading",
    "load_weights": "weights.loading",
    "push_to_hub": "weights.publishing",
}

__all__ = [
    "Checkpoint",
    "KNOWN_CLIP_WEIGHTS",
    "VideoClip",
    "VideoModel",
    "VideoTextModel",
    "VisionOutput",
    "WeightsError",
    "create_model",
    "fetch_clip_weights",
    "interpolate_weights",
    "load_model",
    "load_weights",
    "model_names",
    "model_options",
    "push_to_hub",
    "read_checkpoint",
    "tokenize",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tc_clip' has no attribute {name!r}")
    return getattr(importlib.import_module(f"tc_clip.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
