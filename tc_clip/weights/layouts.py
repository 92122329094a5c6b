"""Names and shapes of weights in every layout: pure translations from dict to dict, without loss in both directions.

"Our" names are those of this package's models.

The layouts: OpenAI's CLIP (open_clip's too), Hugging Face's `CLIPModel`, published checkpoints of TC-CLIP and
ViFi-CLIP.
"""

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

TOKEN_EMBEDDING = "text.token_embedding"
POSITIONS = "vision.positional_embedding"

# Our name or prefix -> OpenAI's. The longest prefix that fits decides.
CLIP_NAMES = {
    "vision.": "visual.",
    "vision.patch_embedding.": "visual.conv1.",
    "vision.projection": "visual.proj",
    "vision.blocks.": "visual.transformer.resblocks.",
    "text.blocks.": "transformer.resblocks.",
    "text.projection": "text_projection",
    "text.positional_embedding": "positional_embedding",
    "text.token_embedding": "token_embedding.weight",
    "text.ln_final.": "ln_final.",
    "logit_scale": "logit_scale",
}
# Our name or prefix -> that of the published checkpoints, which wrap both towers and add the prompts.
PUBLISHED_NAMES = {
    **{
        ours: clips.replace("visual.", "image_encoder.") if ours.startswith("vision.") else f"text_encoder.{clips}"
        for ours, clips in CLIP_NAMES.items()
        if ours != "logit_scale"
    },
    "logit_scale": "logit_scale",
    "prompts.vectors": "prompt_learner.ctx",
    "prompts.layers.": "text_encoder.prompt_generation_layer.",
}
# Our name -> the names of vectors of prompt tuning in ViFi-CLIP's checkpoints: of the first block, of each later one.
_TUNING_VECTORS = {
    "vision.prompt_vectors": ("image_encoder.VPT", "image_encoder.transformer.resblocks.{}.VPT_shallow"),
    "prompts.vectors": ("prompt_learner.ctx", "text_encoder.transformer.resblocks.{}.VPT_shallow"),
}
# Our name or prefix -> Hugging Face's. `_HUGGING_FACE_BLOCK` has the names within a block.
_HUGGING_FACE_NAMES = {
    "vision.class_embedding": "vision_model.embeddings.class_embedding",
    "vision.patch_embedding.weight": "vision_model.embeddings.patch_embedding.weight",
    "vision.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "vision.ln_pre.": "vision_model.pre_layrnorm.",
    "vision.ln_post.": "vision_model.post_layernorm.",
    "vision.projection": "visual_projection.weight",
    "vision.blocks.": "vision_model.encoder.layers.",
    "text.token_embedding": "text_model.embeddings.token_embedding.weight",
    "text.positional_embedding": "text_model.embeddings.position_embedding.weight",
    "text.blocks.": "text_model.encoder.layers.",
    "text.ln_final.": "text_model.final_layer_norm.",
    "text.projection": "text_projection.weight",
    "logit_scale": "logit_scale",
}
_HUGGING_FACE_BLOCK = {
    ".ln_1.": ".layer_norm1.",
    ".ln_2.": ".layer_norm2.",
    ".mlp.c_fc.": ".mlp.fc1.",
    ".mlp.c_proj.": ".mlp.fc2.",
    ".attn.out_proj.": ".self_attn.out_proj.",
}
_TRANSPOSED = ("vision.projection", "text.projection")  # Hugging Face keeps projections as linear layers


def from_clip(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Translate tensors by OpenAI's names into ours; unknown names stay as they are."""
    return {rename(name, CLIP_NAMES, to_ours=True): value for name, value in tensors.items()}


def to_clip(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Translate tensors by our names into OpenAI's layout, which open_clip also uses."""
    return {rename(name, CLIP_NAMES, to_ours=False): value for name, value in tensors.items()}


def from_hugging_face(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Translate tensors by the names of Hugging Face's `CLIPModel` into ours; unknown names stay as they are."""
    ours = {}
    for name, value in tensors.items():
        if ".self_attn." in name:
            joined = _join_projections(name, tensors)
            if joined is None:
                continue
            name, value = joined
            name = name.replace(".self_attn.in_proj_", ".attn.in_proj_")
        for ours_part, theirs in _HUGGING_FACE_BLOCK.items():
            name = name.replace(theirs, ours_part)
        name = rename(name, _HUGGING_FACE_NAMES, to_ours=True)
        ours[name] = value.T.contiguous() if name in _TRANSPOSED else value
    return ours


def to_hugging_face(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Translate tensors by our names into the layout of Hugging Face's `CLIPModel`."""
    theirs: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if name in _TRANSPOSED:
            value = value.T.contiguous()
        name = rename(name, _HUGGING_FACE_NAMES, to_ours=False)
        for ours_part, their_part in _HUGGING_FACE_BLOCK.items():
            name = name.replace(ours_part, their_part)
        if ".attn.in_proj_" in name:
            theirs |= _split_projections(name.replace(".attn.", ".self_attn."), value)
        else:
            theirs[name] = value
    return theirs


def to_published(tensors: Mapping[str, Tensor], split_vision_projections: bool = True) -> dict[str, Tensor]:
    """Translate tensors by our names (weights, or their gradients) into the layout of published checkpoints.

    Args:
        tensors: by our names.
        split_vision_projections: True for TC-CLIP's layout (vision q, k and v apart), False for ViFi-CLIP's.

    Returns:
        The same tensors by published names, without the `module.` that training with several GPUs adds.
    """
    published: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if name in _TUNING_VECTORS and value.dim() == 3:
            first, later = _TUNING_VECTORS[name]
            published |= {later.format(i) if i else first: vectors for i, vectors in enumerate(value)}
            continue
        name = rename(name, PUBLISHED_NAMES, to_ours=False).replace("local_global_bias", "local_global_bias_table")
        if split_vision_projections and name.startswith("image_encoder.") and ".attn.in_proj_" in name:
            published |= _split_projections(name, value)
        else:
            published[name] = value
    return published


def from_published(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Translate tensors by published names, without `module.`, into ours; unknown names stay as they are."""
    ours, tensors = _join_tuning_vectors(tensors)
    for name, value in tensors.items():
        if name.startswith("image_encoder.") and ".attn." in name:
            joined = _join_projections(name, tensors)
            if joined is None:
                continue
            name, value = joined
        name = name.replace("local_global_bias_table", "local_global_bias")
        ours[rename(name, PUBLISHED_NAMES, to_ours=True)] = value
    return ours


def _join_tuning_vectors(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the vectors of ViFi-CLIP's prompt tuning by our names, each (depth, n, D), and all other tensors."""
    rest = dict(tensors)
    ours: dict[str, Tensor] = {}
    if any(name.startswith(PUBLISHED_NAMES["prompts.layers."]) for name in rest):
        return ours, rest  # TC-CLIP's prompts, which one set of vectors starts
    for name, (first, later) in _TUNING_VECTORS.items():
        names = [first]
        while later.format(len(names)) in rest:
            names.append(later.format(len(names)))
        if first in rest and len({rest[name].shape for name in names}) == 1:  # else the strict load reports them
            ours[name] = torch.stack([rest.pop(name) for name in names])
    return ours, rest


def rename(name: str, names: Mapping[str, str], to_ours: bool) -> str:
    """Replace the longest known prefix; a name without one stays, and the strict load reports it."""
    pairs = [(theirs, ours) if to_ours else (ours, theirs) for ours, theirs in names.items()]
    fitting = [(old, new) for old, new in pairs if (name.startswith(old) if old.endswith(".") else name == old)]
    if not fitting:
        return name
    old, new = max(fitting, key=lambda pair: len(pair[0]))
    return new + name.removeprefix(old)


def _join_projections(name: str, tensors: Mapping[str, Tensor]) -> tuple[str, Tensor] | None:
    """Return the name and value of a projection in the layout that has queries, keys and values in one tensor.

    The queries become that tensor; for keys and values, which are in it, return None. If one of the three is missing,
    the queries keep their name, and the strict load reports that in_proj is missing. Other tensors do not change.
    """
    if ".q_proj." in name:
        parts = [name.replace(".q_proj.", f".{part}_proj.") for part in "qkv"]
        if all(part in tensors for part in parts):
            return name.replace(".q_proj.", ".in_proj_"), torch.cat([tensors[part] for part in parts])
    elif ".k_proj." in name or ".v_proj." in name:
        return None
    return name, tensors[name]


def _split_projections(name: str, value: Tensor) -> dict[str, Tensor]:
    """Split `...in_proj_weight` or `...in_proj_bias` into those of queries, keys and values."""
    stem, kind = name.rsplit("in_proj_", 1)
    parts = zip("qkv", value.chunk(3), strict=True)
    return {f"{stem}{part}_proj.{kind}": chunk for part, chunk in parts}


def without_module(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove the `module.` that training with several GPUs puts before every name."""
    return {name.removeprefix("module."): value for name, value in tensors.items()}


def example_names(names: Collection[object]) -> str:
    """Return a few names for an error message, in parentheses."""
    return f"(it holds {some_of([str(name) for name in names])})" if names else "(it is empty)"


def some_of(names: Sequence[str], limit: int = 3) -> str:
    """Return the first names and how many more there are."""
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
