"""Temporal contextualization without video-conditional prompts: the text side of ViFi-CLIP (paper, ablations)."""

from tc_clip.compositions.base import FURTHER, Composition
from tc_clip.frame_attention import ContextTokens

MODEL = Composition(
    name="tc_only_clip",
    options=FURTHER | {"local_global_bias": True},
    attention=lambda options: ContextTokens(),
)
