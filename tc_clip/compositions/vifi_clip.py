"""ViFi-CLIP: CLIP applied frame by frame, fully fine-tuned or, with learned vectors, tuned by prompts."""

from tc_clip.compositions.base import LEARNED_VECTORS, TRAINED, Composition

MODEL = Composition(name="vifi_clip", options=TRAINED | LEARNED_VECTORS)
