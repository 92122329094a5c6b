"""Layouts of weights beyond CLIP's: open_clip's with a tower of timm (EVA02, PE, SigLIP), PE's own, and SigLIP's own.

Pure translations of names into ours, as in `layouts`.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from tc_clip.weights.layouts import from_clip, rename

TIMM_SIGN, PE_SIGN, SIGLIP_SIGN = (
    "visual.trunk.patch_embed.proj.weight",
    "visual.attn_pool.probe",
    "vision_model.head.probe",
)

# Our name or prefix -> timm's. `_TIMM_BLOCK` has the names within a block.
_TIMM_NAMES = {
    "vision.": "visual.trunk.",
    "vision.class_embedding": "visual.trunk.cls_token",
    "vision.positional_embedding": "visual.trunk.pos_embed",
    "vision.patch_embedding.": "visual.trunk.patch_embed.proj.",
    "vision.ln_pre.": "visual.trunk.norm_pre.",
    "vision.ln_post.": "visual.trunk.norm.",
    "vision.pooling.query": "visual.trunk.attn_pool.latent",
    "vision.pooling.ln.": "visual.trunk.attn_pool.norm.",
    "vision.pooling.attn.out_proj.": "visual.trunk.attn_pool.proj.",
    "vision.pooling.": "visual.trunk.attn_pool.",
    "vision.projection": "visual.trunk.head.weight",
    "vision.projection_bias": "visual.trunk.head.bias",
}
_TIMM_BLOCK = {
    ".norm1.": ".ln_1.",
    ".norm2.": ".ln_2.",
    ".attn.qkv.": ".attn.in_proj_",
    ".attn.proj.": ".attn.out_proj.",
    ".attn.norm.": ".attn.inner_norm.",
    ".mlp.norm.": ".mlp.inner_norm.",
    ".mlp.fc1_g.": ".mlp.c_gate.",
    ".mlp.fc1_x.": ".mlp.c_fc.",
    ".mlp.fc1.": ".mlp.c_fc.",
    ".mlp.fc2.": ".mlp.c_proj.",
}
_TEXT = "text."  # before CLIP's names in open_clip's text tower beside a tower of timm
_PE_NAMES = {
    "vision.pooling.query": "vision.attn_pool.probe",
    "vision.pooling.ln.": "vision.attn_pool.layernorm.",
    "vision.pooling.": "vision.attn_pool.",
}
# Our name or prefix -> that of transformers' `SiglipModel`.
_SIGLIP_NAMES = {
    "vision.patch_embedding.": "vision_model.embeddings.patch_embedding.",
    "vision.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "vision.ln_post.": "vision_model.post_layernorm.",
    "vision.blocks.": "vision_model.encoder.layers.",
    "vision.pooling.query": "vision_model.head.probe",
    "vision.pooling.attn.": "vision_model.head.attention.",
    "vision.pooling.ln.": "vision_model.head.layernorm.",
    "vision.pooling.mlp.": "vision_model.head.mlp.",
    "text.token_embedding": "text_model.embeddings.token_embedding.weight",
    "text.positional_embedding": "text_model.embeddings.position_embedding.weight",
    "text.blocks.": "text_model.encoder.layers.",
    "text.ln_final.": "text_model.final_layer_norm.",
    "text.projection": "text_model.head.weight",
    "text.projection_bias": "text_model.head.bias",
}
_SIGLIP_BLOCK = {
    ".layer_norm1.": ".ln_1.",
    ".layer_norm2.": ".ln_2.",
    ".mlp.fc1.": ".mlp.c_fc.",
    ".mlp.fc2.": ".mlp.c_proj.",
    ".self_attn.": ".attn.",
}
_SINGLE = ("vision.class_embedding", "vision.pooling.query", "vision.positional_embedding")  # with dimensions of size 1


def from_timm_tower(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Translate open_clip's names of a model with a vision tower of timm into ours; unknown names stay."""
    text = {name.removeprefix(_TEXT): value for name, value in tensors.items() if name.startswith(_TEXT)}
    linear = "text_projection.weight" in text
    others = {name: value for name, value in tensors.items() if not name.startswith(_TEXT)}
    ours = from_clip({name.replace("text_projection.weight", "text_projection"): value for name, value in text.items()})
    if linear:
        ours["text.projection"] = ours["text.projection"].T.contiguous()
        if "text_projection.bias" in ours:
            ours["text.projection_bias"] = ours.pop("text_projection.bias")
    towers = _translate(others, _TIMM_NAMES, _TIMM_BLOCK)
    return ours | _join_apart(towers)


def from_perception_encoder(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Translate the names of Perception Encoder's own files, which are CLIP's and a pooling, into ours."""
    return {
        rename(name, _PE_NAMES, to_ours=True): _without_ones(rename(name, _PE_NAMES, to_ours=True), value)
        for name, value in from_clip(tensors).items()
    }


def from_siglip(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Translate the names of transformers' `SiglipModel` into ours; unknown names stay."""
    kept = {name: value for name, value in tensors.items() if not name.endswith(".position_ids")}
    ours = _join_apart(_translate(kept, _SIGLIP_NAMES, _SIGLIP_BLOCK))
    ours["text.projection"] = ours["text.projection"].T.contiguous()
    return ours


LAYOUTS: dict[str, Callable[[Mapping[str, Tensor]], dict[str, Tensor]]] = {
    TIMM_SIGN: from_timm_tower,
    PE_SIGN: from_perception_encoder,
    SIGLIP_SIGN: from_siglip,
}


def _translate(tensors: Mapping[str, Tensor], names: Mapping[str, str], block: Mapping[str, str]) -> dict[str, Tensor]:
    ours = {}
    for name, value in tensors.items():
        name = rename(name, names, to_ours=True)
        for theirs, own in block.items():
            name = name.replace(theirs, own)
        if name == "vision.projection":
            value = value.T.contiguous()
        ours[name] = _without_ones(name, value)
    return ours


def _without_ones(name: str, value: Tensor) -> Tensor:
    """Remove the dimensions of size 1 before a token's channels."""
    if name not in _SINGLE:
        return value
    return value.reshape(value.shape[-1:] if name != "vision.positional_embedding" else value.shape[-2:])


def _join_apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Put projections of queries, keys and values that are apart into one tensor; a missing bias is zero."""
    ours = dict(tensors)
    for name in tensors:
        if ".q_proj.weight" in name:
            stem = name.removesuffix("q_proj.weight")
            names = [f"{stem}{part}_proj" for part in "qkv"]
        elif name.endswith("pooling.q.weight"):
            stem = name.removesuffix("q.weight") + "attn."
            names = [name.removesuffix(".weight"), name.removesuffix("q.weight") + "kv"]
        else:
            continue
        if not all(f"{part}.weight" in ours for part in names):
            continue  # the strict load names what is missing
        weights = [ours.pop(f"{part}.weight") for part in names]
        biases = [
            ours.pop(f"{part}.bias", torch.zeros(len(weight), dtype=weight.dtype))
            for part, weight in zip(names, weights, strict=True)
        ]
        ours[f"{stem}in_proj_weight"], ours[f"{stem}in_proj_bias"] = torch.cat(weights), torch.cat(biases)
    return ours
