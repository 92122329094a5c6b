"""A frame-wise CLIP of another model's weights: what distillation compares a model with."""

from tc_clip.models import VideoClip
from tc_clip.text_encoder import TextEncoder
from tc_clip.vision_encoder import VisionEncoder


def frame_wise_clip(model: VideoClip) -> VideoClip:
    """Return a frozen CLIP with those weights of a model that CLIP has; it sees frame by frame, its texts are plain."""
    positions = model.vision.positional_embedding
    vision = VisionEncoder(model.vision.config, positional_frames=None if positions.dim() == 2 else positions.shape[0])
    copy = VideoClip(
        name=f"frame-wise {model.name}",
        vision=vision,
        text=TextEncoder(model.text.config, model.text.tokenizer),
        prompts=None,
        num_frames=model.num_frames,
        context_length=model.context_length,
        prompt_init=model.prompt_init,
        split_camel_case=model.split_camel_case,
        trainable=False,
        templates=model.templates,
        descriptions=model.descriptions,
        text_pooling=model.text_pooling,
        matching="cosine" if model.brownian is not None else model.matching,
        pixels=model.pixels,
        logit_bias=model.logit_bias is not None,
    )
    copy.to(model.logit_scale.device, model.logit_scale.dtype)
    weights = model.state_dict()
    copy.load_state_dict({name: weights[name] for name in copy.state_dict()})
    copy.text.token_embedding.copy_(model.text.token_embedding)
    copy.set_class_names(model.class_names)
    return copy.eval()
