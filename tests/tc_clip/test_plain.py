"""The models against the plain implementation in float64: logits and all gradients, over geometries and options."""

import pytest
import torch
import torch.nn.functional as F

import tc_clip
from tc_clip.weights import to_published
from tests.plain.plain_clip import PlainClip

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
TC_DEFAULTS = {"num_context_tokens": 12, "merge_rate": 10, "prompt_layers": (4,)}


def build(name: str = "tc_clip", seed: int = 0, **options) -> tc_clip.VideoClip:
    """Create a tiny float64 model whose parameters all differ from zero and one."""
    torch.manual_seed(seed)
    if name == "tc_clip":
        options = TC_DEFAULTS | options
    model = tc_clip.create_model(name, class_names=NAMES, **TINY | options).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def plain_of(model: tc_clip.VideoClip, gradients: bool = False) -> PlainClip:
    """Return the plain implementation with a copy of the model's weights."""
    weights = {name: value.detach().clone() for name, value in to_published(model.state_dict()).items()}
    if gradients:
        weights = {name: value.requires_grad_() for name, value in weights.items()}
    context, prompts = model.vision.context, model.prompts
    options = (
        {}
        if context is None
        else {
            "num_context_tokens": context.num_context_tokens,
            "seed_ratio": context.seed_ratio,
            "merge_rate": context.merge_rate,
        }
    )
    return PlainClip(
        weights,
        model.text.token_embedding,
        contextual=context is not None,
        prompt_layers=() if prompts is None else prompts.config.prompt_layers,
        detach_context=prompts is None or prompts.config.detach_context,
        head_width=model.vision.config.head_width,
        **options,
    )


def full_tokens(model: tc_clip.VideoClip) -> torch.Tensor:
    """Return the class prompts at full context length, as the published way runs them."""
    missing = model.context_length - model.class_tokens.shape[1]
    return F.pad(model.class_tokens, (0, missing))


def random_video(num_frames: int, batch: int = 2, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, num_frames, 3, 48, 48, dtype=torch.float64, generator=generator)


CASES = {
    "default": ({}, 8),
    "1 frame, fewer seeds than context tokens": ({}, 1),
    "3 frames": ({}, 3),
    "16 frames": ({}, 16),
    "joint positions": ({"positional_embedding": "joint", "num_frames": 6}, 6),
    "few seeds": ({"seed_ratio": 0.1}, 8),
    "all patches are seeds": ({"seed_ratio": 1.0}, 4),
    "one context token": ({"num_context_tokens": 1}, 4),
    "odd sizes": ({"num_context_tokens": 7, "merge_rate": 13, "seed_ratio": 0.37}, 5),
    "one full round": ({"merge_rate": 1000}, 8),
    "no bias": ({"local_global_bias": False}, 4),
    "two prompt layers": ({"prompt_layers": "2+4"}, 4),
    "early prompt layer": ({"prompt_layers": 1}, 4),
    "three prompt layers": ({"prompt_layers": [1, 3, 4]}, 4),
    "other depths": ({"vision_depth": 3, "text_depth": 5, "prompt_layers": (2, 5)}, 4),
    "deep vision": ({"vision_depth": 6, "text_depth": 2, "prompt_layers": (2,)}, 4),
    "long text": ({"context_length": 77}, 4),
    "many prompt vectors": ({"num_prompt_vectors": 9}, 4),
    "gradient through the context": ({"detach_context": False}, 4),
}


@pytest.mark.parametrize("case", CASES)
def test_tc_clip_equals_plain(case):
    options, num_frames = CASES[case]
    check(build(**options), random_video(num_frames))


def test_vifi_clip_equals_plain():
    check(build("vifi_clip"), random_video(4))


def check(model: tc_clip.VideoClip, video: torch.Tensor) -> None:
    """Compare logits in training and in evaluation, and the gradient of every parameter."""
    plain = plain_of(model, gradients=True)
    expected = plain.logits(video, full_tokens(model))
    logits = model(video)
    torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-10)
    labels = torch.tensor([0, 3])
    F.cross_entropy(expected, labels).backward()
    F.cross_entropy(logits, labels).backward()
    gradients = to_published({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, weight in plain.weights.items():
        scale = weight.grad.norm().item()
        difference = (gradients[name] - weight.grad).abs().max().item()
        assert difference <= 1e-9 * scale + 1e-12, f"gradient of {name} differs by {difference} of {scale}"
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(model(video), expected.detach(), rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(model(video), expected.detach(), rtol=1e-9, atol=1e-10)  # now from the cache


def test_chunks_of_classes_change_nothing(monkeypatch):
    import tc_clip.prompts

    video = random_video(4)
    for options in ({}, {"prompt_layers": (2, 4)}):
        model = build(**options).eval()
        with torch.no_grad():
            whole = model(video)
            monkeypatch.setattr(tc_clip.prompts, "MAX_TOKENS_AT_ONCE", 1)
            torch.testing.assert_close(model(video), whole, rtol=1e-12, atol=1e-12)
            monkeypatch.undo()


def test_several_videos_do_not_see_each_other():
    model = build().eval()
    video = random_video(4, batch=3)
    with torch.no_grad():
        together = model(video)
        apart = torch.cat([model(one.unsqueeze(0)) for one in video])
    torch.testing.assert_close(together, apart, rtol=1e-10, atol=1e-10)


def test_geometry_of_clip_b32_and_l14():
    """Depths, widths and patch sizes of other CLIPs, cut in depth to keep the test short."""
    torch.manual_seed(0)
    for image_size, patch_size, width, text_width in ((224, 32, 768, 512), (224, 14, 1024, 768)):
        model = tc_clip.create_model(
            "tc_clip",
            class_names=NAMES[:2],
            image_size=image_size,
            patch_size=patch_size,
            vision_width=width,
            vision_depth=2,
            text_width=text_width,
            text_depth=2,
            embed_dim=text_width,
            prompt_layers=(2,),
        )
        model = model.double().eval()
        video = torch.randn(1, 2, 3, image_size, image_size, dtype=torch.float64)
        with torch.no_grad():
            expected = plain_of(model).logits(video, full_tokens(model))
            torch.testing.assert_close(model(video), expected, rtol=1e-9, atol=1e-10)
