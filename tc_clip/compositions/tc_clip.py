"""Temporally contextualized CLIP (the paper): context tokens of the block before, prompts that look at the video."""

from tc_clip.compositions.base import FURTHER, Composition
from tc_clip.frame_attention import ContextTokens

MODEL = Composition(
    name="tc_clip",
    options=FURTHER | {"local_global_bias": True, "video_prompts": True},
    attention=lambda options: ContextTokens(),
)
