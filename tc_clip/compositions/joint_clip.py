"""Joint space-time attention: all tokens of all frames see each other."""

from tc_clip.compositions.base import FURTHER, Composition
from tc_clip.frame_attention import AllTokens

MODEL = Composition(name="joint_clip", options=FURTHER, attention=lambda options: AllTokens())
