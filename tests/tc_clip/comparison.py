"""Tiny models, their references, and the comparison of the two: logits and the gradient of every weight."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
import torch.nn.functional as F

import tc_clip
from tc_clip.reference import ReferenceClip
from tc_clip.weights.layouts import to_published

TINY = {
    "image_size": 48,
    "patch_size": 8,
    "vision_width": 48,
    "vision_depth": 4,
    "text_width": 32,
    "text_depth": 4,
    "embed_dim": 32,
    "head_width": 16,
}
NAMES = ["riding a bike", "ApplyEyeMakeup", "brush_hair", "playing didgeridoo", "yo-yo"]
CONTEXT = {"num_context_tokens": 12, "merge_rate": 10}
PROMPTS = CONTEXT | {"prompt_layers": (4,)}
DEFAULTS = {"tc_clip": PROMPTS, "vp_clip": PROMPTS, "tc_only_clip": CONTEXT}


def build(name: str = "tc_clip", seed: int = 0, **options: Any) -> tc_clip.VideoClip:
    """Create a tiny float64 model whose parameters all differ from zero and one."""
    torch.manual_seed(seed)
    options = TINY | DEFAULTS.get(name, {}) | options
    model = tc_clip.create_model(name, class_names=NAMES, **options).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def reference_options(model: tc_clip.VideoClip) -> dict[str, Any]:
    """Return what the reference needs besides the weights."""
    vision, prompts = model.vision, model.video_prompts
    context = {} if vision.context is None else asdict(vision.context)
    context.pop("context_places", None)  # of rotary positions, which the reference has not
    return {
        **context,
        "attention": vision.attention.name,
        "contextual_blocks": sorted(vision.contextual_blocks),
        "makes_context": vision.context is not None,
        "window": getattr(vision.blocks[-1].attn, "window", 1),
        "activation": vision.config.activation,
        "prompt_layers": model.prompt_layers,
        "detach_context": prompts is None or prompts.config.detach_context,
        "head_width": vision.config.head_width,
    }


def reference_names(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return tensors by the reference's names: the published ones, vectors of several blocks in one tensor."""
    vectors = {"vision.prompt_vectors": "image_encoder.prompt_vectors", "prompts.vectors": "prompt_learner.ctx"}
    deep = {name: value for name, value in tensors.items() if name in vectors and value.dim() == 3}
    rest = {name: value for name, value in tensors.items() if name not in deep}
    return to_published(rest) | {vectors[name]: value for name, value in deep.items()}


def reference_of(model: tc_clip.VideoClip, gradients: bool = False) -> ReferenceClip:
    """Return the reference with a copy of the model's weights."""
    weights = {name: value.detach().clone() for name, value in reference_names(model.state_dict()).items()}
    if gradients:
        weights = {name: value.requires_grad_() for name, value in weights.items()}
    return ReferenceClip(weights, model.text.token_embedding, **reference_options(model))


def full_tokens(model: tc_clip.VideoClip) -> torch.Tensor:
    """Return the class prompts at full context length, as the published code runs them."""
    missing = model.context_length - model.class_tokens.shape[1]
    return F.pad(model.class_tokens, (0, missing))


def random_video(num_frames: int, batch: int = 2, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, num_frames, 3, 48, 48, dtype=torch.float64, generator=generator)


def check(model: tc_clip.VideoClip, video: torch.Tensor, evaluation: bool = False) -> None:
    """Compare logits in training and in evaluation, and all gradients; with `evaluation` all of it in evaluation."""
    model.train(not evaluation)
    reference = reference_of(model, gradients=True)
    expected = reference.logits(video, full_tokens(model))
    logits = model(video)
    torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-10)
    labels = torch.tensor([0, 3])
    F.cross_entropy(expected, labels).backward()
    F.cross_entropy(logits, labels).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    gradients = reference_names(gradients)
    assert gradients.keys() == {name for name, weight in reference.weights.items() if weight.grad is not None}
    for name in gradients:
        weight = reference.weights[name]
        scale = weight.grad.norm().item()
        difference = (gradients[name] - weight.grad).abs().max().item()
        assert difference <= 1e-9 * scale + 1e-12, f"gradient of {name} differs by {difference} of {scale}"
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(model(video), expected.detach(), rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(model(video), expected.detach(), rtol=1e-9, atol=1e-10)  # now from the cache
