"""Every kind of vision attention and of prompts against the reference in float64; illegal combinations."""

import pytest
import torch
import torch.nn.functional as F

import tc_clip
from tc_clip.compositions import compositions
from tc_clip.config import TextConfig, VisionConfig
from tc_clip.context_tokens import SEED_SELECTORS, SUMMARISERS
from tests.tc_clip.comparison import CONTEXT, NAMES, PROMPTS, TINY, build, check, random_video

BIAS = {"local_global_bias": True}
WITH_PROMPTS = PROMPTS | {"video_prompts": True}
CASES = {
    "cross frame": ("cross_frame_clip", {}, 4),
    "cross frame, 1 frame": ("cross_frame_clip", {}, 1),
    "cross frame, bias": ("cross_frame_clip", BIAS, 4),
    "cross frame, prompts": ("cross_frame_clip", WITH_PROMPTS, 3),
    "cross frame, bias, prompts": ("cross_frame_clip", BIAS | WITH_PROMPTS, 3),
    "window": ("window_clip", {}, 4),
    "window, 1 frame": ("window_clip", BIAS, 1),
    "window, 2 frames": ("window_clip", {}, 2),
    "window 2, bias": ("window_clip", {"window": 2} | BIAS, 5),
    "window beyond the video": ("window_clip", {"window": 9}, 4),
    "window, bias, prompts": ("window_clip", BIAS | WITH_PROMPTS, 4),
    "joint": ("joint_clip", {}, 4),
    "joint, bias": ("joint_clip", BIAS, 4),
    "joint, bias, prompts": ("joint_clip", BIAS | WITH_PROMPTS, 3),
    "joint, joint positions": ("joint_clip", {"positional_embedding": "joint", "num_frames": 4}, 4),
    "joint in some blocks": ("joint_clip", BIAS | {"contextual_blocks": "1+3"}, 4),
    "context alone": ("tc_only_clip", {}, 5),
    "context, prompts off": ("tc_clip", {"video_prompts": False}, 5),
    "context in the last blocks": ("tc_clip", {"contextual_blocks": [3, 4]}, 5),
    "context in one block": ("tc_clip", {"contextual_blocks": 2, "prompt_layers": (2, 4)}, 5),
    "prompts alone": ("vp_clip", {}, 5),
    "prompts alone, several layers": ("vp_clip", {"prompt_layers": (1, 2, 4), "detach_context": False}, 4),
    "exact GELU": ("tc_clip", {"activation": "gelu"}, 4),
    "text vectors": ("vifi_clip", {"num_text_vectors": 4}, 2),
    "more text vectors than words": ("vifi_clip", {"num_text_vectors": 7, "text_vector_depth": 3}, 2),
    "text vectors in every block": ("vifi_clip", {"num_text_vectors": 2, "text_vector_depth": 4}, 2),
    "vision vectors": ("vifi_clip", {"num_vision_vectors": 3}, 2),
    "vision vectors in every block": ("vifi_clip", {"num_vision_vectors": 3, "vision_vector_depth": 4}, 2),
    "vectors on both sides": (
        "vifi_clip",
        {"num_text_vectors": 4, "text_vector_depth": 2, "num_vision_vectors": 3, "vision_vector_depth": 2},
        3,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_equals_the_reference(case):
    name, options, num_frames = CASES[case]
    check(build(name, **options), random_video(num_frames))


@pytest.mark.parametrize("selection", sorted(SEED_SELECTORS.keys() - {"pooling_attention"}))  # of SigLIP
@pytest.mark.parametrize("name", ["tc_clip", "vp_clip"])
def test_seed_selections_equal_the_reference(name, selection):
    check(build(name, seed_selection=selection), random_video(3), evaluation=selection == "random")


@pytest.mark.parametrize("summarisation", SUMMARISERS)
def test_summarisations_equal_the_reference(summarisation):
    check(build(summarisation=summarisation, seed_ratio=0.5), random_video(3), evaluation=summarisation == "random")


@pytest.mark.parametrize("summarisation", SUMMARISERS)
def test_repeated_frames_give_finite_context_tokens(summarisation):
    """Equal frames, as in a video at rest, leave clusters without members."""
    model = build(summarisation=summarisation, seed_ratio=1.0)
    video = random_video(1).expand(-1, 6, -1, -1, -1)
    F.cross_entropy(model(video), torch.tensor([0, 1])).backward()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in model.parameters())
    output = model.encode_video(video, with_traces=True)
    for trace in output.traces[:-1]:
        groups = trace.token_groups()  # (B, K, T * P)
        wanted = 6 * 36 if summarisation == "none" else 12
        assert trace.context_tokens.shape[1] == groups.shape[1] == wanted
        assert groups.any(dim=1).sum(dim=1).eq(12 if summarisation == "random" else 6 * 36).all()


@pytest.mark.parametrize("choice", [{"seed_selection": "random"}, {"summarisation": "random"}])
def test_random_choices_vary_in_training_and_are_fixed_in_evaluation(choice):
    model, video = build(**choice), random_video(4, batch=3)
    with torch.no_grad():
        torch.manual_seed(1)
        first = model(video)
        assert not torch.equal(first, model(video))
        torch.manual_seed(1)
        assert torch.equal(first, model(video))
        model.eval()
        together = model(video)
        apart = torch.cat([model(one.unsqueeze(0)) for one in video])
        torch.testing.assert_close(together, apart, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["cross_frame_clip", "window_clip", "joint_clip", "tc_only_clip", "vp_clip"])
def test_one_frame_at_a_time_is_vifi_clip(name):
    """Without other frames, the comparison models are frame-wise CLIP."""
    if name in ("tc_only_clip", "vp_clip"):
        frame_wise = tc_clip.create_model("vifi_clip", class_names=NAMES, **TINY).double()
        model = build(name)
        # The context of a single frame is its own patches: these two differ from frame-wise CLIP, by design.
        assert not torch.allclose(model(random_video(1)), frame_wise(random_video(1)))
        return
    model = build(name)
    frame_wise = tc_clip.create_model("vifi_clip", class_names=NAMES, **TINY).double()
    frame_wise.load_state_dict(model.state_dict())
    torch.testing.assert_close(model(random_video(1)), frame_wise(random_video(1)), rtol=1e-10, atol=1e-10)
    assert not torch.allclose(model(random_video(3)), frame_wise(random_video(3)))


ORDER_INVARIANT = ["vifi_clip", "cross_frame_clip", "window_clip", "joint_clip"]


@pytest.mark.parametrize("name", ORDER_INVARIANT)
def test_a_video_and_its_reverse(name):
    """Equal logits with a symmetric choice of keys and one table of positions; not with positions of space and time."""
    video = random_video(4)
    with torch.no_grad():
        model = build(name)
        torch.testing.assert_close(model(video), model(video.flip(1)), rtol=1e-9, atol=1e-9)
        model = build(name, positional_embedding="joint", num_frames=4)
        assert (model(video) - model(video.flip(1))).abs().max() > 1e-6


def test_templates_average_their_features():
    names = {"class_names": NAMES, **TINY}
    texts = ["a video of {}.", "someone {}, seen from afar"]
    single = []
    for text in texts:
        model = tc_clip.create_model("vanilla_clip", templates=text, **names).double()
        single.append(F.normalize(model.encode_classes(None), dim=-1))
    torch.manual_seed(3)
    state = tc_clip.create_model("vanilla_clip", **names).double().state_dict()
    features = []
    for templates in (*texts, texts):
        model = tc_clip.create_model("vanilla_clip", templates=templates, **names).double()
        model.load_state_dict(state)
        features.append(F.normalize(model.encode_classes(None), dim=-1))
    expected = F.normalize(features[0] + features[1], dim=-1)
    torch.testing.assert_close(features[2], expected, rtol=1e-12, atol=1e-12)
    bare, named = (tc_clip.create_model("vanilla_clip", templates=t, **names).class_tokens for t in (None, "bare"))
    assert torch.equal(bare, named)
    model = tc_clip.create_model("vanilla_clip", templates="actions", **names)
    assert model.class_tokens.shape[0] == 16 * len(NAMES)
    assert model(random_video(2).float()).shape == (2, len(NAMES))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("vifi_clip", {"window": 1}, "vifi_clip has no option 'window'"),
        ("vifi_clip", {"video_prompts": True}, "vifi_clip has no option 'video_prompts'"),
        ("vanilla_clip", {"freeze": "image"}, "vanilla_clip has no option 'freeze'"),
        ("window_clip", {"window": 0}, "window must be at least 1 frame"),
        (
            "tc_clip",
            {"contextual_blocks": [1, 2]},
            r"contextual_blocks: 1 is outside 2\.\.4 .the first block has",
        ),
        ("joint_clip", {"contextual_blocks": 5}, r"contextual_blocks: 5 is outside 1\.\.4"),
        ("joint_clip", {"contextual_blocks": "late"}, "contextual_blocks must be like 12"),
        ("tc_clip", {"contextual_blocks": []}, "needs contextual blocks"),
        ("tc_only_clip", {"vision_depth": 1}, "needs contextual blocks, there are none among 1"),
        (
            "tc_clip",
            {"seed_selection": "best"},
            "seed_selection must be one of class_attention, pooling",
        ),
        ("tc_clip", {"summarisation": "mean"}, "summarisation must be one of merge, kmeans, dpc_knn"),
        ("joint_clip", {"video_prompts": True}, r"prompt_layers \(12,\) name blocks outside 1..4"),
        ("vifi_clip", {"num_text_vectors": -1}, "num_text_vectors must be at least 0"),
        ("vifi_clip", {"num_vision_vectors": 2, "vision_vector_depth": 5}, "vision_vector_depth must be from 1 to 4"),
        ("vifi_clip", {"text_vector_depth": 2}, "text_vector_depth=2 has no effect without num_text_vectors"),
        (
            "vifi_clip",
            {"freeze": "backbone"},
            "freeze=backbone leaves nothing to train: vifi_clip has no parameters but",
        ),
        ("vifi_clip", {"freeze": "vision"}, "freeze must be one of backbone, image, text, not 'vision'"),
        ("vanilla_clip", {"templates": "best"}, "templates must be one of bare, photo"),
        (
            "vanilla_clip",
            {"templates": ["a photo"]},
            "templates need {} for the class name, there is none in 'a photo'",
        ),
        ("vanilla_clip", {"templates": "photo", "prompt_init": "a photo"}, "templates and prompt_init both set"),
        (
            "tc_clip",
            {"activation": "relu"},
            "activation must be one of quick_gelu, gelu, gelu_tanh, swiglu",
        ),
    ],
)
def test_illegal_combinations(name, options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        defaults = {"prompt_layers": (1,)} if name == "tc_clip" else {}
        tc_clip.create_model(name, class_names=NAMES, **TINY | defaults | options)


@pytest.mark.parametrize(
    ("name", "part", "trained"),
    [
        ("vifi_clip", "image", ("text.", "logit_scale")),
        ("vifi_clip", "text", ("vision.", "logit_scale")),
        ("tc_clip", "backbone", ("prompts.", "vision.blocks.")),
    ],
)
def test_frozen_parts_get_no_gradient(name, part, trained):
    model = build(name, freeze=part)
    F.cross_entropy(model(random_video(2)), torch.tensor([0, 1])).backward()
    for parameter_name, parameter in model.named_parameters():
        is_new = parameter_name in model.new_parameter_names()
        expected = is_new if part == "backbone" else parameter_name.startswith(trained)
        assert parameter.requires_grad == expected, parameter_name
        assert (parameter.grad is None) or expected
        if expected and is_new and parameter_name != "vision.blocks.1.attn.local_global_bias":
            assert parameter.grad is not None, parameter_name


def test_prompt_tuning_trains_vectors_alone():
    model = build("vifi_clip", num_text_vectors=4, num_vision_vectors=2, vision_vector_depth=3, freeze="backbone")
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {"prompts.vectors", "vision.prompt_vectors"} == model.prompt_parameter_names()
    F.cross_entropy(model(random_video(2)), torch.tensor([0, 1])).backward()
    assert all(model.get_parameter(name).grad.abs().sum() > 0 for name in trained)


def test_blocks_without_extra_keys_have_no_bias():
    model = build("joint_clip", contextual_blocks="2+4", **BIAS)
    with_bias = [name for name, _ in model.named_parameters() if name.endswith("local_global_bias")]
    assert with_bias == [f"vision.blocks.{i}.attn.local_global_bias" for i in (1, 3)]
    assert model.new_parameter_names() == frozenset(with_bias)


def test_what_is_switched_off_costs_nothing():
    """The comparison models have the parameters of frame-wise CLIP, and no context tokens unless prompts use them."""
    names = set(dict(build("vifi_clip").named_parameters()))
    for name in ("cross_frame_clip", "window_clip", "joint_clip"):
        model = build(name, **CONTEXT)
        assert set(dict(model.named_parameters())) == names and model.vision.context is None


def test_parameter_counts_of_the_paper():
    """ViFi-CLIP 124.3 M, TC-CLIP 127.5 M: all but the token embedding; the rest is bias, vectors and prompt layer."""
    vision = VisionConfig(image_size=224, patch_size=16, width=768, depth=12, embed_dim=512)
    text = TextConfig(width=512, depth=12, embed_dim=512)
    counts = {}
    for name in ("vifi_clip", "tc_clip", "tc_only_clip", "vp_clip"):
        with torch.device("meta"):
            model = compositions()[name].build(vision, text, tc_clip.model_options(name))
        counts[name] = sum(p.numel() for p in model.parameters() if p.requires_grad)
    bias, vectors = 11 * 12 * 2, 4 * 512
    layer = 4 * 512 * 512 + 4 * 512 + 3 * 2 * 512 + 2 * 4 * 512 * 512 + 5 * 512
    assert counts["vifi_clip"] == 149_620_737 - 49408 * 512  # CLIP ViT-B/16 without the token embedding
    assert counts["tc_only_clip"] - counts["vifi_clip"] == bias
    assert counts["vp_clip"] - counts["vifi_clip"] == vectors + layer
    assert counts["tc_clip"] - counts["vifi_clip"] == bias + vectors + layer
    assert (round(counts["vifi_clip"] / 1e6, 1), round(counts["tc_clip"] / 1e6, 1)) == (124.3, 127.5)
