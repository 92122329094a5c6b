"""Temporal contextualization without video-conditional prompts: the text side of ViFi-CLIP (paper, ablations)."""

from tc_clip.attention import ContextAttention
from tc_clip.compositions.base import EXTRA_KEYS, Composition

MODEL = Composition(name="tc_only_clip", options=EXTRA_KEYS | {"local_global_bias": True}, attention=ContextAttention)
