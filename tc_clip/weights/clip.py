"""CLIP's own weights: read from every public layout, with the facts in their files, and the sizes that they imply."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from tc_clip.config import CLIP_HEAD_WIDTH, TextConfig, VisionConfig
from tc_clip.weights.downloads import KNOWN_CLIP_WEIGHTS, fetch_clip_weights
from tc_clip.weights.facts import OPENAI_FACTS, WeightFacts, check_vocabulary, facts_next_to
from tc_clip.weights.files import WeightsError, read_tensors, sha256_of
from tc_clip.weights.hub import KNOWN_HUB_WEIGHTS, fetch_hub_weights
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
    """CLIP's weights by our names, at least float32, and the facts that its files state."""

    tensors: dict[str, Tensor]
    facts: WeightFacts


def read_clip_weights(source: str | Path | Mapping[str, Tensor]) -> ClipWeights:
    """Read CLIP's weights: OpenAI's archives, and open_clip's and Hugging Face's files with the `.json` next to them.

    Args:
        source: a known name (`KNOWN_CLIP_WEIGHTS`), a file, or a state dict.

    Raises:
        WeightsError: if it cannot be read, is not a CLIP with a vision transformer, or has another vocabulary.
    """
    facts = WeightFacts()
    if isinstance(source, Mapping):
        tensors = source
    else:
        path, facts = _find(str(source))
        tensors = read_tensors(path)
    tensors = without_module(tensors)
    if facts.activation is None and any(name in tensors for name in _IGNORED):
        facts = replace(OPENAI_FACTS, source=facts.source, sha256=facts.sha256)  # only OpenAI's archives hold these
    label = facts.source
    tensors = {name: value for name, value in tensors.items() if name not in _IGNORED}
    if "visual.layer1.0.conv1.weight" in tensors:
        raise WeightsError(f"{label}: a CLIP with a ResNet; this package reads those with a vision transformer")
    if "visual.conv1.weight" in tensors:
        ours = from_clip(tensors)
    elif "vision_model.embeddings.patch_embedding.weight" in tensors:
        ours = from_hugging_face(tensors)
    elif any(name.endswith(("token_embedding.weight", "token_embedding")) for name in tensors):
        raise WeightsError(f"{label}: only a text encoder, the vision encoder is missing {example_names(tensors)}")
    else:
        raise WeightsError(f"{label}: no CLIP weights, there is no 'visual.conv1.weight' {example_names(tensors)}")
    if not any(name.startswith("text.") for name in ours):
        raise WeightsError(f"{label}: only a vision encoder, the text encoder is missing {example_names(tensors)}")
    if TOKEN_EMBEDDING in ours:
        facts = check_vocabulary(facts, len(ours[TOKEN_EMBEDDING]))
    return ClipWeights({name: _at_least_float32(value) for name, value in ours.items()}, facts)


def _find(source: str) -> tuple[Path, WeightFacts]:
    """Return the file of a known name or a path, and the facts that are published with it."""
    if source in KNOWN_CLIP_WEIGHTS:
        path, facts = fetch_clip_weights(source), KNOWN_CLIP_WEIGHTS[source].facts
    elif source in KNOWN_HUB_WEIGHTS:
        files = fetch_hub_weights(source)
        path = files.weights
        facts = replace(facts_next_to(path), licence=KNOWN_HUB_WEIGHTS[source].licence, revision=files.revision)
    else:
        path = Path(source)
        if not path.is_file():
            names = ", ".join((*KNOWN_CLIP_WEIGHTS, *KNOWN_HUB_WEIGHTS))
            raise WeightsError(f"clip_weights {source!r} is neither a file nor one of: {names}")
        facts = facts_next_to(path)
    return path, replace(facts, source=str(path), sha256=sha256_of(path))


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
