"""`create_model`: options, class names, weights in every layout, and the errors that a user meets."""

import copy

import pytest
import torch
from safetensors.torch import save_file

import tc_clip
from tc_clip.weights.layouts import to_clip, to_published

TINY = {
    "image_size": 32,
    "patch_size": 16,
    "vision_width": 32,
    "vision_depth": 2,
    "text_width": 32,
    "text_depth": 2,
    "embed_dim": 32,
    "head_width": 16,
}
TC = TINY | {"prompt_layers": (2,), "num_context_tokens": 4}
NAMES = ["waving", "clapping", "jumping"]


def create(name="tc_clip", class_names=NAMES, **options) -> tc_clip.VideoClip:
    torch.manual_seed(0)
    return tc_clip.create_model(name, class_names=class_names, **(TC if name == "tc_clip" else TINY) | options)


def clip_layout(width: int = 64) -> dict[str, torch.Tensor]:
    """Return tiny CLIP weights in OpenAI's layout (heads of 64, as in every CLIP)."""
    sizes = {"vision_width": width, "text_width": width, "embed_dim": width, "head_width": 64}
    model = create("vifi_clip", **sizes)
    ours = dict(model.state_dict()) | {"text.token_embedding": model.text.token_embedding}
    return {name: value.clone() for name, value in to_clip(ours).items()}


def video(num_frames: int = 4, side: int = 32) -> torch.Tensor:
    return torch.randn(2, num_frames, 3, side, side, generator=torch.Generator().manual_seed(1))


def scores(model: tc_clip.VideoClip) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(video())


def test_model_names_and_options():
    assert tc_clip.model_names()[:3] == ("tc_clip", "vifi_clip", "vanilla_clip")
    assert tc_clip.model_options("tc_clip")["num_context_tokens"] == 96
    with pytest.raises(ValueError, match="no model 'tcclip', there are: tc_clip, vifi_clip"):
        create("tcclip")


def test_unknown_option_lists_the_known_ones():
    with pytest.raises(TypeError, match="tc_clip has no option 'seed_rate'.*seed_ratio"):
        create(seed_rate=0.5)
    with pytest.raises(TypeError, match="vifi_clip has no option 'seed_ratio'"):
        create("vifi_clip", seed_ratio=0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed_ratio": 0.0}, r"seed_ratio must be in \(0, 1\]"),
        ({"num_context_tokens": 0}, "num_context_tokens must be from 1 to 1000000, not"),
        ({"prompt_layers": (3,)}, r"outside 1..2"),
        ({"prompt_layers": "late"}, "prompt_layers must be like 12"),
        ({"num_prompt_vectors": 3}, "'a photo of a' has 4 words for 3 prompt vectors"),
        ({"prompt_init": "a didgeridoo"}, "'didgeridoo' is .* tokens"),
        ({"positional_embedding": "time"}, "'space' or 'joint'"),
        ({"image_size": 33}, "33 is not a multiple of patch_size 16"),
        ({"head_width": 24}, "not a multiple of the head width"),
        ({"context_length": 78}, "context_length 78"),
        ({"context_length": 2}, "context_length must be at least 3, not 2"),
        ({"context_length": [30]}, r"context_length must be a whole number, not \[30\]"),
        ({"prompt_init": 1}, "prompt_init must be text, not 1"),
        ({"prompt_layers": True}, "prompt_layers must be like 12, '6\\+12' or \\[6, 12\\], not True"),
        ({"prompt_layers": [1.5]}, "prompt_layers must be like 12"),
        ({"contextual_blocks": {"a": 1}}, "contextual_blocks must be like 12"),
        ({"prompt_layers": {1: 2}}, "prompt_layers must be like 12"),
        ({"seed_ratio": "0.3"}, "seed_ratio must be a number, not '0.3'"),
        ({"num_frames": True}, "num_frames must be a whole number, not True"),
        ({"image_size": 2**31}, "image_size must be from 1 to 1000000"),
        ({"activation": 3}, "activation must be text"),
        ({"embed_dim": 64}, "embed_dim .64. must be the text width .32."),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        create(**options)


def test_seed_ratio_that_leaves_no_seed():
    model = create(seed_ratio=0.2)  # a fifth of four patches
    with pytest.raises(ValueError, match="leaves no seed token"):
        model(video())


def test_class_names_too_long_or_missing():
    with pytest.raises(ValueError, match=r"class name 'a very.*needs 35 tokens.*context_length is 30"):
        create(class_names=["waving", " ".join(["a very", *["long"] * 23, "name with words"])])
    with pytest.raises(ValueError, match="at least one class name"):
        create(class_names=[])
    with pytest.raises(ValueError, match="list of at least one"):
        create().set_class_names("waving")


def test_set_class_names_is_the_same_path_as_creation():
    model = create(class_names=["something else entirely"])
    expected = scores(create())
    scores(model)  # fills the cache with the other names
    model.set_class_names(NAMES)
    assert torch.equal(scores(model), expected)
    assert model.class_names == tuple(NAMES)


def test_camel_case_rule_can_differ_by_class_set():
    model = create(class_names=["YoYo"])
    split = model.class_tokens.clone()
    model.set_class_names(["YoYo"], split_camel_case=False)
    assert not torch.equal(split, model.class_tokens)
    model.set_class_names(["Yo Yo"], split_camel_case=False)
    assert torch.equal(split, model.class_tokens)


def test_cached_text_follows_the_weights():
    model = create()
    before = scores(model)
    with torch.no_grad():
        model.text.projection.mul_(-1)
    assert not torch.allclose(scores(model), before)
    fresh = copy.deepcopy(model)
    assert torch.equal(scores(fresh), scores(model))
    model.load_state_dict(create().state_dict())
    assert torch.equal(scores(model), before)
    model.double()
    with torch.no_grad():
        torch.testing.assert_close(model(video().double()).float(), before, rtol=1e-4, atol=1e-4)


def test_text_runs_once_for_many_batches(monkeypatch):
    model = create().eval()
    runs = []
    run = model.text.run
    monkeypatch.setattr(model.text, "run", lambda *args: runs.append(args) or run(*args))
    with torch.no_grad():
        for _ in range(3):
            model(video())
    assert len(runs) == 1


def test_training_computes_the_text_every_time():
    model = create().train()
    model(video()).sum().backward()
    assert model.text.blocks[0].mlp.c_fc.weight.grad.abs().sum() > 0
    assert model.prompts.vectors.grad.abs().sum() > 0


def test_parameter_groups():
    model = create()
    assert "prompts.vectors" in model.prompt_parameter_names()
    assert not any("local_global_bias" in name for name in model.prompt_parameter_names())
    assert "vision.blocks.1.attn.local_global_bias" in model.new_parameter_names()
    assert "vision.blocks.0.attn.local_global_bias" not in dict(model.named_parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert create("vifi_clip").prompt_parameter_names() == frozenset()
    vanilla = create("vanilla_clip")
    assert not vanilla.trainable and not any(parameter.requires_grad for parameter in vanilla.parameters())


def test_prompts_start_from_clip():
    model = create("tc_clip")
    words = [320, 1125, 539, 320]  # a photo of a
    assert torch.equal(model.prompts.vectors, model.text.token_embedding[words])
    layer, block = model.prompts.layers[0], model.text.blocks[1]
    assert torch.equal(layer.attn.in_proj_weight, block.attn.in_proj_weight)
    assert torch.equal(layer.ln_1_kv.weight, block.ln_1.weight)


@pytest.mark.parametrize("kind", ["state dict", "pth", "safetensors", "half"])
def test_clip_weights_from_everywhere(kind, tmp_path):
    tensors = clip_layout()
    source = tensors
    if kind == "pth":
        source = tmp_path / "clip.pth"
        torch.save(tensors, source)
    elif kind == "safetensors":
        source = tmp_path / "clip.safetensors"
        save_file(tensors, source)
    elif kind == "half":
        source = {name: value.half() for name, value in tensors.items()} | {"input_resolution": torch.tensor(32)}
    model = tc_clip.create_model("vifi_clip", class_names=NAMES, clip_weights=source)
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    bound = 1e-3 if kind == "half" else 0
    got = model.vision.blocks[1].mlp.c_fc.weight
    torch.testing.assert_close(got, tensors["visual.transformer.resblocks.1.mlp.c_fc.weight"], rtol=bound, atol=bound)
    torch.testing.assert_close(model.text.token_embedding, tensors["token_embedding.weight"], rtol=bound, atol=bound)


def test_sizes_come_from_the_weights():
    with pytest.raises(ValueError, match="vision_width=32 does not fit the weights, which have 64"):
        tc_clip.create_model("vifi_clip", class_names=NAMES, clip_weights=clip_layout(), vision_width=32)


def test_clip_weights_that_do_not_fit():
    tensors = clip_layout()
    del tensors["visual.ln_post.weight"]
    tensors["visual.surprise"] = torch.zeros(1)
    with pytest.raises(tc_clip.WeightsError, match="1 missing: vision.ln_post.weight; 1 unknown: .*surprise"):
        tc_clip.create_model("vifi_clip", class_names=NAMES, clip_weights=tensors)
    with pytest.raises(tc_clip.WeightsError, match="neither a file nor one of: ViT-B/32, ViT-B/16"):
        tc_clip.create_model("vifi_clip", class_names=NAMES, clip_weights="ViT-B/61")
    with pytest.raises(tc_clip.WeightsError, match="no CLIP weights"):
        tc_clip.create_model("vifi_clip", class_names=NAMES, clip_weights={"weight": torch.zeros(1)})


def published(model: tc_clip.VideoClip) -> dict:
    tensors = {f"module.{name}": value for name, value in to_published(model.state_dict()).items()}
    tensors["module.prompt_learner.token_prefix"] = torch.zeros(3, 1, 32)
    tensors["module.prompt_learner.token_suffix"] = torch.zeros(3, 25, 32)
    return {"model": tensors, "epoch": 9}


def perturb(model: tc_clip.VideoClip) -> tc_clip.VideoClip:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("layout", ["ours", "published", "file"])
def test_checkpoints_round_trip(layout, tmp_path):
    tuned = perturb(create())
    checkpoint = {"ours": {"model": tuned.state_dict(), "model_info": tuned.info()}, "published": published(tuned)}.get(
        layout
    )
    model = create()
    if layout == "file":
        checkpoint = tmp_path / "best.pth"
        torch.save(published(tuned), checkpoint)
    report = tc_clip.load_weights(model, checkpoint)
    assert report.layout == ("ours" if layout == "ours" else "published")
    assert torch.equal(scores(model), scores(tuned))


def test_model_from_its_own_checkpoint(tmp_path):
    tuned = perturb(create(seed_ratio=0.5))
    path = tmp_path / "best.pth"
    torch.save({"model": tuned.state_dict(), "model_info": tuned.info()}, path)
    model = tc_clip.load_model(path, NAMES)
    assert model.vision.context.seed_ratio == 0.5
    assert torch.equal(scores(model), scores(tuned))


def test_checkpoint_of_another_start_is_refused():
    tuned = tc_clip.create_model("vifi_clip", class_names=NAMES, clip_weights=clip_layout())
    checkpoint = {"model": tuned.state_dict(), "model_info": tuned.info()}
    with pytest.raises(tc_clip.WeightsError, match="clip_weights"):
        tc_clip.create_model("vifi_clip", class_names=NAMES, checkpoint=checkpoint)
    other = {name: value + 1 if name == "token_embedding.weight" else value for name, value in clip_layout().items()}
    with pytest.raises(tc_clip.WeightsError, match="token embedding"):
        tc_clip.create_model("vifi_clip", class_names=NAMES, clip_weights=other, checkpoint=checkpoint)


def test_wrong_checkpoints():
    model = create()
    with pytest.raises(tc_clip.WeightsError, match="missing: .*prompts"):
        tc_clip.load_weights(model, {"model": create("vifi_clip").state_dict()})
    with pytest.raises(tc_clip.WeightsError, match="of another size"):
        tc_clip.load_weights(model, {"model": create(num_prompt_vectors=6).state_dict()})
    with pytest.raises(tc_clip.WeightsError, match="unknown layout"):
        tc_clip.load_weights(model, {"model": {"fc.weight": torch.zeros(1)}})
    with pytest.raises(tc_clip.WeightsError, match="holds no weights"):
        tc_clip.load_weights(model, {"epoch": 3})
    broken = published(create())
    del broken["model"]["module.image_encoder.transformer.resblocks.1.attn.k_proj.weight"]
    with pytest.raises(tc_clip.WeightsError, match="missing: vision.blocks.1.attn.in_proj_weight"):
        tc_clip.load_weights(model, broken)


def test_joint_positions_are_interpolated_in_time(caplog):
    joint = {"positional_embedding": "joint"}
    four = perturb(create(num_frames=4, **joint))
    eight = create(num_frames=8, **joint)
    report = tc_clip.load_weights(eight, {"model": four.state_dict()})
    assert "4 frames interpolated in time to 8" in report.changed[0]
    assert "interpolated in time" in caplog.text
    positions = eight.vision.positional_embedding
    torch.testing.assert_close(positions.mean(dim=0), four.vision.positional_embedding.mean(dim=0))
    with pytest.raises(ValueError, match="joint positions for 8 frames, the video has 4"):
        eight(video(4))
    with pytest.raises(tc_clip.WeightsError, match="positional_embedding='space'"):
        tc_clip.load_weights(eight, {"model": create().state_dict()})


def test_video_of_a_wrong_shape():
    with pytest.raises(ValueError, match=r"\(B, T, 3, 32, 32\), not \(2, 4, 3, 48, 48\)"):
        create()(video(side=48))


def test_weight_ensemble_keeps_new_parameters():
    base, tuned = create(), perturb(create())
    kept = tuned.new_parameter_names()
    mixed = tc_clip.interpolate_weights(base.state_dict(), tuned.state_dict(), 0.25, kept)
    for name, value in mixed.items():
        expected = (
            tuned.state_dict()[name] if name in kept else base.state_dict()[name].lerp(tuned.state_dict()[name], 0.25)
        )
        torch.testing.assert_close(value, expected)
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        tc_clip.interpolate_weights(base.state_dict(), tuned.state_dict(), 1.5)


def test_autocast_and_half_precision_run():
    model = create().eval()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(video()).isfinite().all()
    model.train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(video()).float().logsumexp(dim=-1).sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_random_weights_are_the_same_for_the_same_seed():
    assert torch.equal(scores(create()), scores(create()))


def test_weights_of_whole_numbers_are_refused():
    tuned = create()
    whole = {name: value.to(torch.int64) for name, value in tuned.state_dict().items()}
    with pytest.raises(tc_clip.WeightsError, match=r"not the weights of this tc_clip: \d+ of whole numbers: "):
        tc_clip.load_weights(create(), {"model": whole})
    tc_clip.load_weights(create(), {"model": {name: value.half() for name, value in tuned.state_dict().items()}})


@pytest.mark.parametrize(
    "change",
    [
        {"name": 3},
        {"name": "no such model"},
        {"sizes": "x"},
        {"sizes": {"vision": 1.5}},
        {"sizes": {"vision": {"image_size": 2**40}}},
        {"options": 1.5},
        {"options": {"prompt_init": 3}},
        {"clip_weights": 0.5},
    ],
)
def test_a_checkpoint_with_a_damaged_description_is_refused_with_its_name(tmp_path, change):
    tuned = create()
    path = tmp_path / "best.pth"
    torch.save({"model": tuned.state_dict(), "model_info": tuned.info() | change}, path)
    with pytest.raises(tc_clip.WeightsError, match=r"best\.pth: .*(from its model_info|token embedding)"):
        tc_clip.load_model(path, NAMES)


def test_names_that_do_not_fit_are_the_callers_mistake(tmp_path):
    tuned = create()
    torch.save({"model": tuned.state_dict(), "model_info": tuned.info()}, tmp_path / "best.pth")
    with pytest.raises(ValueError, match="class name 'a very") as caught:
        tc_clip.load_model(tmp_path / "best.pth", ["a" + " very" * 40 + " long name"])
    assert not isinstance(caught.value, tc_clip.WeightsError)
