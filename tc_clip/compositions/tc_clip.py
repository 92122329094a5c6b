"""Temporally contextualized CLIP (the paper): context tokens of the block before, prompts that attend to the video."""

from tc_clip.attention import ContextAttention
from tc_clip.compositions.base import EXTRA_KEYS, Composition

MODEL = Composition(
    name="tc_clip",
    options=EXTRA_KEYS | {"local_global_bias": True, "video_prompts": True},
    attention=ContextAttention,
)
