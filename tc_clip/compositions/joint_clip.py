"""Joint space-time attention: all tokens of all frames attend to each other."""

from tc_clip.attention import JointAttention
from tc_clip.compositions.base import EXTRA_KEYS, Composition

MODEL = Composition(name="joint_clip", options=EXTRA_KEYS, attention=JointAttention)
