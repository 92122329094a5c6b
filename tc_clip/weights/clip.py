"""CLIP's own weights: read from every public layout, with the facts in their files, and the sizes that they imply."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tc_clip.config import CLIP_HEAD_WIDTH, TextConfig, VisionConfig
from tc_clip.weights.downloads import KNOWN_CLIP_WEIGHTS, fetch_clip_weights
from tc_clip.weights.facts import (
    HUGGING_FACE_CONFIG,
    OPEN_CLIP_CONFIG,
    OPENAI_FACTS,
    WeightFacts,
    check_vocabulary,
    facts_next_to,
)
from tc_clip.weights.families import LAYOUTS
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
    family = next((read for sign, read in LAYOUTS.items() if sign in tensors), None)
    if family is not None:
        ours = family(tensors)
        scalars = [name for name in ("logit_scale", "logit_bias") if name in ours and ours[name].numel() == 1]
        ours |= {name: ours[name].reshape(()) for name in scalars}  # some files have them with a dimension
    elif "visual.conv1.weight" in tensors:
        ours = from_clip(tensors)
    elif "vision_model.embeddings.patch_embedding.weight" in tensors:
        ours = from_hugging_face(tensors)
    elif any(name.endswith(("token_embedding.weight", "token_embedding")) for name in tensors):
        raise WeightsError(f"{label}: only a text encoder, the vision encoder is missing {example_names(tensors)}")
    else:
        raise WeightsError(f"{label}: no CLIP weights, there is no 'visual.conv1.weight' {example_names(tensors)}")
    if not any(name.startswith("text.") for name in ours):
        raise WeightsError(f"{label}: only a vision encoder, the text encoder is missing {example_names(tensors)}")
    if family is not None and not facts.vision:
        raise WeightsError(
            f"{label}: heads, positions and activation of these weights are not known: put the {OPEN_CLIP_CONFIG} or "
            f"{HUGGING_FACE_CONFIG} that was published with them in the same folder"
        )
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
        if files.tokenizer is not None:
            facts = replace(facts, tokenizer_file=files.tokenizer)
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
    facts: WeightFacts | None = None,
) -> tuple[VisionConfig, TextConfig]:
    """Return the sizes of both towers.

    Args:
        tensors: by our names; their shapes and names give what follows from them.
        head_widths: channels of an attention head in vision and text, if `facts` have no others.
        activation: likewise.
        facts: what tensors do not have.

    Raises:
        WeightsError: if a weight is missing whose shape is needed, or the facts do not fit.
    """
    try:
        patch = tensors["vision.patch_embedding.weight"]
        num_positions = tensors[POSITIONS].shape[-2]
        text_positions = tensors["text.positional_embedding"]
        text_projection = tensors["text.projection"]
        hidden, text_hidden = (tensors[f"{side}.blocks.0.mlp.c_fc.weight"].shape[0] for side in ("vision", "text"))
        pools = "vision.pooling.query" in tensors
        vision_projection = tensors.get("vision.projection") if pools else tensors["vision.projection"]
    except KeyError as error:
        raise WeightsError(f"the weights have no {error.args[0]!r}, so the model's sizes are unknown") from None
    has_class_token = "vision.class_embedding" in tensors
    patch_size, grid = patch.shape[-1], round((num_positions - has_class_token) ** 0.5)
    of_vision: dict[str, Any] = {"head_width": head_widths[0], "activation": activation}
    of_text: dict[str, Any] = {"head_width": head_widths[1], "activation": activation}
    if facts is not None:
        of_vision, of_text = of_vision | dict(facts.vision), of_text | dict(facts.text)
    embedding = tensors.get(TOKEN_EMBEDDING)
    if embedding is not None:
        of_text["vocab_size"] = embedding.shape[0]
    projection = "none" if vision_projection is None else "matrix"
    try:
        vision = VisionConfig(
            image_size=grid * patch_size,
            patch_size=patch_size,
            width=patch.shape[0],
            depth=_count_blocks(tensors, "vision.blocks."),
            embed_dim=patch.shape[0] if vision_projection is None else vision_projection.shape[1],
            mlp_width=0 if hidden == 4 * patch.shape[0] else hidden,
            inner_norm="vision.blocks.0.attn.inner_norm.weight" in tensors,
            class_token=has_class_token,
            pre_norm="vision.ln_pre.weight" in tensors,
            patch_bias="vision.patch_embedding.bias" in tensors,
            pooling="attention" if pools else "class",
            projection="bias" if "vision.projection_bias" in tensors else projection,
            **of_vision,
        )
        text = TextConfig(
            width=text_positions.shape[1],
            depth=_count_blocks(tensors, "text.blocks."),
            embed_dim=text_projection.shape[1],
            max_length=text_positions.shape[0],
            mlp_width=0 if text_hidden == 4 * text_positions.shape[1] else text_hidden,
            **of_text,
        )
    except ValueError as error:
        raise WeightsError(f"the weights and their configuration do not fit: {error}") from error
    return vision, text


def _at_least_float32(value: Tensor) -> Tensor:
    return value.to(torch.promote_types(value.dtype, torch.float32))


def _count_blocks(tensors: Mapping[str, Tensor], prefix: str) -> int:
    return len({name.removeprefix(prefix).split(".")[0] for name in tensors if name.startswith(prefix)})
