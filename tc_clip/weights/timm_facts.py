"""What open_clip's configuration leaves to timm: the architecture of a vision tower, by its name."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from tc_clip.config import Rotary
from tc_clip.weights.files import WeightsError


def timm_facts(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of `VisionConfig` that the tensors of a tower of timm do not have.

    Args:
        config: open_clip's `vision_cfg`.

    Raises:
        WeightsError: if timm does not know the tower, or this package does not read its kind.
    """
    import timm  # takes a second
    from timm.layers import RotaryEmbeddingCat
    from timm.models.eva import Eva, EvaBlock
    from timm.models.vision_transformer import Block, VisionTransformer

    name = config["timm_model_name"]
    try:
        with torch.device("meta"):
            tower = timm.create_model(name, pretrained=False, num_classes=0, global_pool=config.get("timm_pool", ""))
    except Exception as error:  # an unknown name, options that a tower does not have
        raise WeightsError(f"timm {timm.__version__} does not build the vision tower {name} ({error})") from error
    if not isinstance(tower, Eva | VisionTransformer) or not all(
        type(block) in (EvaBlock, Block) for block in tower.blocks
    ):
        raise WeightsError(f"the vision tower {name} is not a kind that this package reads")
    rope = getattr(tower, "rope", None)
    if rope is not None and (type(rope) is not RotaryEmbeddingCat or rope.in_pixels or rope.rotate_half):
        raise WeightsError(f"the rotary positions of {name} are not of a kind that this package reads")
    block: Any = tower.blocks[0]
    pool = tower.attn_pool
    facts: dict[str, Any] = {
        "head_width": tower.embed_dim // block.attn.num_heads,
        "norm_eps": tower.norm.eps,
        "activation": "swiglu" if hasattr(block.mlp, "fc1_g") else _activation(block.mlp, name),
        "pool_heads": 0 if pool is None else pool.num_heads,
    }
    if rope is not None:
        facts["rotary"] = Rotary(
            reference=(rope.ref_feat_shape or tower.patch_embed.grid_size)[0],
            offset=rope.grid_offset,
            order="xy" if rope.grid_indexing == "xy" else "yx",
            temperature=rope.temperature,
        )
    return facts


def _activation(mlp: nn.Module, name: str) -> str:
    act = mlp.get_submodule("act")
    if not isinstance(act, nn.GELU):
        raise WeightsError(f"the activation of {name}, {type(act).__name__}, is not one that this package has")
    return "gelu_tanh" if act.approximate == "tanh" else "gelu"
