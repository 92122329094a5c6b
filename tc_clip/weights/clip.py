"""CLIP's own weights: read from every public layout, with the facts in their files, and the sizes that they imply."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tc_clip.config import ACTIVATION_NAMES, CLIP_HEAD_WIDTH, TextConfig, VisionConfig, require_choice
from tc_clip.weights.downloads import KNOWN_CLIP_WEIGHTS, fetch_clip_weights
from tc_clip.weights.files import WeightsError, read_tensors
from tc_clip.weights.layouts import (
    POSITIONS,
    TOKEN_EMBEDDING,
    example_names,
    from_clip,
    from_hugging_face,
    without_module,
)

_IGNORED = ("input_resolution", "context_length", "vocab_size")  # numbers that only OpenAI's archives hold


@dataclass(frozen=True)
class ClipWeights:
    """CLIP's weights by our names, at least float32, and the facts that its files state.

    Attributes:
        tensors: by our names.
        source: the file, for messages.
        activation: "quick_gelu" or "gelu", or None if no file states it.
        head_widths: channels of an attention head in vision and text, or None if no file states them (64 in all of
            OpenAI's models).
    """

    tensors: dict[str, Tensor]
    source: str
    activation: str | None = None
    head_widths: tuple[int, int] | None = None


def read_clip_weights(source: str | Path | Mapping[str, Tensor]) -> ClipWeights:
    """Read CLIP's weights: OpenAI's archives, and open_clip's and Hugging Face's files with the `.json` next to them.

    Args:
        source: a known name (`KNOWN_CLIP_WEIGHTS`), a file, or a state dict.

    Raises:
        WeightsError: if it cannot be read, or is not a CLIP with a vision transformer.
    """
    activation = head_widths = None
    if isinstance(source, Mapping):
        tensors, label = source, "the state dict"
    else:
        known = KNOWN_CLIP_WEIGHTS.get(str(source))
        path = Path(source) if known is None else fetch_clip_weights(str(source))
        if not path.is_file():
            names = ", ".join(KNOWN_CLIP_WEIGHTS)
            raise WeightsError(f"clip_weights {str(source)!r} is neither a file nor one of: {names}")
        tensors, label = read_tensors(path), str(path)
        activation, head_widths = (known.activation, None) if known else _facts_next_to(path)
    tensors = without_module(tensors)
    if activation is None and any(name in tensors for name in _IGNORED):
        activation = "quick_gelu"  # only OpenAI's archives hold these numbers
    tensors = {name: value for name, value in tensors.items() if name not in _IGNORED}
    if "visual.layer1.0.conv1.weight" in tensors:
        raise WeightsError(f"{label}: a CLIP with a ResNet; this package reads those with a vision transformer")
    if "visual.conv1.weight" in tensors:
        ours = from_clip(tensors)
    elif "vision_model.embeddings.patch_embedding.weight" in tensors:
        ours = from_hugging_face(tensors)
    else:
        raise WeightsError(f"{label}: no CLIP weights, there is no 'visual.conv1.weight' {example_names(tensors)}")
    return ClipWeights({name: _at_least_float32(value) for name, value in ours.items()}, label, activation, head_widths)


def _facts_next_to(path: Path) -> tuple[str | None, tuple[int, int] | None]:
    """Return the activation and the head widths from the configuration of open_clip or Hugging Face in its folder."""
    for name, read in (("open_clip_config.json", _open_clip_facts), ("config.json", _hugging_face_facts)):
        file = path.with_name(name)
        if not file.is_file():
            continue
        try:
            activation, head_widths = read(json.loads(file.read_text(encoding="utf-8")))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise WeightsError(
                f"{file}: is not the configuration of a CLIP ({type(error).__name__}: {error})"
            ) from error
        try:
            require_choice("the activation", activation, ACTIVATION_NAMES)
        except ValueError as error:
            raise WeightsError(f"{file}: {error}") from error
        return activation, head_widths
    return None, None


def _open_clip_facts(config: Mapping[str, Any]) -> tuple[str, tuple[int, int]]:
    model = config["model_cfg"]
    text = model["text_cfg"]
    activation = "quick_gelu" if model.get("quick_gelu", False) else "gelu"
    return activation, (model["vision_cfg"].get("head_width", CLIP_HEAD_WIDTH), text["width"] // text["heads"])


def _hugging_face_facts(config: Mapping[str, Any]) -> tuple[str, tuple[int, int]]:
    # Missing keys have the defaults of transformers, which are CLIP ViT-B/32's.
    defaults = {"vision_config": (768, 12), "text_config": (512, 8)}
    activations, widths = set(), []
    for tower, (width, heads) in defaults.items():
        values = config[tower] or {}
        activations.add(values.get("hidden_act", "quick_gelu"))
        widths.append(values.get("hidden_size", width) // values.get("num_attention_heads", heads))
    if len(activations) != 1:
        raise ValueError(f"the towers have different activations, {' and '.join(sorted(activations))}")
    return activations.pop(), (widths[0], widths[1])


def sizes_of(
    tensors: Mapping[str, Tensor],
    head_widths: tuple[int, int] = (CLIP_HEAD_WIDTH, CLIP_HEAD_WIDTH),
    activation: str = "quick_gelu",
) -> tuple[VisionConfig, TextConfig]:
    """Return the sizes of both towers.

    Args:
        tensors: by our names; their shapes give all sizes but the following.
        head_widths: channels of an attention head in vision and text.
        activation: "quick_gelu" or "gelu".

    Raises:
        WeightsError: if a weight is missing whose shape is needed.
    """
    try:
        patch = tensors["vision.patch_embedding.weight"]
        num_positions = tensors[POSITIONS].shape[-2]
        vision_projection = tensors["vision.projection"]
        text_positions = tensors["text.positional_embedding"]
        text_projection = tensors["text.projection"]
    except KeyError as error:
        raise WeightsError(f"the weights have no {error.args[0]!r}, so the model's sizes are unknown") from None
    patch_size, grid = patch.shape[-1], round((num_positions - 1) ** 0.5)
    vision = VisionConfig(
        image_size=grid * patch_size,
        patch_size=patch_size,
        width=patch.shape[0],
        depth=_count_blocks(tensors, "vision.blocks."),
        embed_dim=vision_projection.shape[1],
        head_width=head_widths[0],
        activation=activation,
    )
    embedding = tensors.get(TOKEN_EMBEDDING)
    vocabulary = {} if embedding is None else {"vocab_size": embedding.shape[0]}
    text = TextConfig(
        width=text_positions.shape[1],
        depth=_count_blocks(tensors, "text.blocks."),
        embed_dim=text_projection.shape[1],
        max_length=text_positions.shape[0],
        head_width=head_widths[1],
        activation=activation,
        **vocabulary,
    )
    return vision, text


def _at_least_float32(value: Tensor) -> Tensor:
    return value.to(torch.promote_types(value.dtype, torch.float32))


def _count_blocks(tensors: Mapping[str, Tensor], prefix: str) -> int:
    return len({name.removeprefix(prefix).split(".")[0] for name in tensors if name.startswith(prefix)})
