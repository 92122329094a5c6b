"""Temporal window expansion, as in Open-VCLIP: the tokens of a frame also attend to the patches of its neighbours."""

from tc_clip.attention import WindowAttention
from tc_clip.compositions.base import EXTRA_KEYS, Composition

MODEL = Composition(
    name="window_clip",
    options=EXTRA_KEYS | {"window": 1},
    attention=WindowAttention,
    attention_options=("window",),
)
