"""CLIP frame by frame, not trained: bare class names, a template, or an ensemble of templates."""

from tc_clip.compositions.base import COMMON, Composition

MODEL = Composition(name="vanilla_clip", options=COMMON | {"prompt_init": ""}, trainable=False)
