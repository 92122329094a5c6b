"""Video-conditional prompts on a frame-wise vision encoder, whose last block's seeds become context tokens for them."""

from tc_clip.compositions.base import TRAINED, VIDEO_PROMPTS, Composition

MODEL = Composition(name="vp_clip", options=TRAINED | {"video_prompts": True} | VIDEO_PROMPTS)
