"""Temporal window expansion, as in Open-VCLIP: the tokens of a frame also see the patches of its neighbours."""

from tc_clip.compositions.base import FURTHER, Composition
from tc_clip.frame_attention import NeighbourPatches

MODEL = Composition(
    name="window_clip",
    options=FURTHER | {"window": 1},
    attention=lambda options: NeighbourPatches(options["window"]),
)
