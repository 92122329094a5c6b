"""Cross-frame attention: the tokens of a frame also attend to the class tokens of the other frames."""

from tc_clip.attention import CrossFrameAttention
from tc_clip.compositions.base import EXTRA_KEYS, Composition

MODEL = Composition(name="cross_frame_clip", options=EXTRA_KEYS, attention=CrossFrameAttention)
