"""Cross-frame attention: the tokens of a frame also see the class tokens of the other frames."""

from tc_clip.compositions.base import FURTHER, Composition
from tc_clip.frame_attention import OtherClassTokens

MODEL = Composition(name="cross_frame_clip", options=FURTHER, attention=lambda options: OtherClassTokens())
