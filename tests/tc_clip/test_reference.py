"""The models against the reference in float64: logits and all gradients, over geometries and options."""

import pytest
import torch

import tc_clip
from tests.tc_clip.comparison import NAMES, build, check, full_tokens, random_video, reference_of

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
def test_tc_clip_equals_the_reference(case):
    options, num_frames = CASES[case]
    check(build(**options), random_video(num_frames))


def test_vifi_clip_equals_the_reference():
    check(build("vifi_clip"), random_video(4))


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


@pytest.mark.parametrize("prompt_layers", [(4,), (2, 4)])
def test_prompt_attention_of_a_class(prompt_layers):
    """With one prompt vector all classes have equal weights; with several each has its own, whatever the others are."""
    model = build(prompt_layers=prompt_layers, num_prompt_vectors=1, prompt_init="a").eval()
    with torch.no_grad():
        output = model.encode_video(random_video(4))
        found = model.prompt_attention(output)
        assert len(found) == len(prompt_layers)
        for weights in found:
            assert weights.shape == (2, len(NAMES), 12)
            torch.testing.assert_close(weights, weights[:, :1].expand_as(weights), rtol=1e-12, atol=1e-12)
        model = build(prompt_layers=prompt_layers).eval()
        together = model.prompt_attention(output)
        model.set_class_names(NAMES[2:3])
        for weights, alone in zip(together, model.prompt_attention(output), strict=True):
            torch.testing.assert_close(weights[:, 2:3], alone, rtol=1e-10, atol=1e-12)
            torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, len(NAMES)).double(), rtol=1e-10, atol=0)
            assert (weights[:, 0] - weights[:, 1]).abs().max() > 1e-6
    assert build("vifi_clip").prompt_attention(output) == []


def test_videos_of_a_batch_are_independent():
    model = build().eval()
    video = random_video(4, batch=3)
    with torch.no_grad():
        together = model(video)
        apart = torch.cat([model(one.unsqueeze(0)) for one in video])
    torch.testing.assert_close(together, apart, rtol=1e-10, atol=1e-10)


@pytest.mark.slow
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
            expected = reference_of(model).logits(video, full_tokens(model))
            torch.testing.assert_close(model(video), expected, rtol=1e-9, atol=1e-10)
