"""The golden values, in float64: every number of the published system on the same weights and videos."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import tc_clip
from tc_clip.weights.layouts import to_published

pytestmark = pytest.mark.usefixtures("all_cores")

BOUND = 1e-9  # of a tensor's largest absolute value


def tensors(arrays: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(np.asarray(value)) for name, value in arrays.items()}


def assert_close(actual: torch.Tensor, expected: np.ndarray, bound: float = BOUND) -> None:
    difference = np.abs(actual.detach().numpy() - expected).max()
    assert difference <= bound * np.abs(expected).max(), f"differs by {difference}"


@pytest.fixture(scope="module")
def clip_weights(golden_weights) -> dict[str, torch.Tensor]:
    return tensors(golden_weights.clip_state_dict(0))


@pytest.fixture(scope="module")
def build(golden_weights, clip_weights):
    """Return a function that makes a float64 model from the golden weights."""

    def build(name="tc_clip", class_names=(), tuned: dict | None = None, **options) -> tc_clip.VideoClip:
        checkpoint = None if tuned is None else {"model": tensors(golden_weights.tc_clip_state_dict(0, **tuned))}
        return tc_clip.create_model(
            name,
            class_names=[str(class_name) for class_name in class_names],
            clip_weights=clip_weights,
            checkpoint=checkpoint,
            **options,
        ).double()

    return build


def video_of(golden_weights, seed: int, batch: int, num_frames: int) -> torch.Tensor:
    return torch.from_numpy(golden_weights.video(seed, batch, num_frames)).double()


@pytest.mark.slow
def test_forward(golden_dir, golden_weights, build):
    golden = np.load(golden_dir / "tc_clip_forward.npz")
    model = build(class_names=golden["class_names"], tuned={}).eval()
    length = model.class_tokens.shape[1]
    assert np.array_equal(model.class_tokens, golden["tokens"][:, :length])
    assert not golden["tokens"][:, length:].any()
    video = video_of(golden_weights, 3, 2, 16)
    with torch.no_grad():
        output = model.encode_video(video, with_traces=True)
        text_features = F.normalize(model.encode_classes(output), dim=-1)
        logits = model.score(output)
    assert_close(output.video_features, golden["video_features"])
    assert_close(output.class_tokens, golden["class_tokens"])
    assert_close(text_features, golden["text_features"])
    assert_close(logits, golden["logits"])
    assert np.array_equal(output.context_tokens[12].float().numpy(), golden["context_tokens"])
    for trace, name in ((output.traces[0], "first"), (output.traces[-1], "last")):
        groups = trace.token_groups().numpy()
        assert list(groups.shape) == golden["token_groups_shape"].tolist()
        assert np.array_equal(np.packbits(groups, axis=-1), golden[f"token_groups_{name}_layer"])


@pytest.mark.slow
def test_train_step(golden_dir, golden_weights, build):
    golden = np.load(golden_dir / "tc_clip_train_step.npz")
    model = build(class_names=golden["class_names"], tuned={"num_frames": 8}, num_frames=8)
    logits = model(video_of(golden_weights, 4, 2, 8))
    loss = F.cross_entropy(logits, torch.from_numpy(golden["soft_labels"]))
    loss.backward()
    assert_close(logits, golden["logits"])
    assert_close(loss, golden["loss"])
    gradients = to_published({name: parameter.grad for name, parameter in model.named_parameters()})
    assert set(gradients) == set(golden["parameter_names"])
    for name, norm, samples in zip(
        golden["parameter_names"], golden["grad_norms"], golden["grad_samples"], strict=True
    ):
        gradient = gradients[name].flatten()
        bound = BOUND * norm + 1e-12
        positions = np.linspace(0, gradient.numel() - 1, samples.size).astype(int)
        assert abs(gradient.norm().item() - norm) <= bound, name
        assert np.abs(gradient[positions].numpy() - samples).max() <= bound, name


VARIANTS = {
    "default": ({}, {}),
    "joint": ({"joint_position": True}, {"positional_embedding": "joint"}),
    "prompt_layers_6_12": ({"prompt_layers": 2}, {"prompt_layers": (6, 12)}),
    "k64_a05_r40": ({}, {"num_context_tokens": 64, "seed_ratio": 0.5, "merge_rate": 40}),
    "num_prompt_vectors_8": ({"n_ctx": 8}, {"num_prompt_vectors": 8}),
}


@pytest.fixture(scope="module")
def variants(golden_dir):
    return np.load(golden_dir / "tc_clip_variants.npz")


@pytest.fixture(scope="module")
def variant_names(golden_dir):
    return np.load(golden_dir / "tc_clip_forward.npz")["class_names"][:5]


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_variants(variant, variants, variant_names, golden_weights, build):
    tuned, options = VARIANTS[variant]
    model = build(class_names=variant_names, tuned={"num_frames": 8} | tuned, num_frames=8, **options).eval()
    with torch.no_grad():
        assert_close(model(video_of(golden_weights, 6, 1, 8)), variants[variant])
    if f"{variant}_tokens" in variants:
        tokens = variants[f"{variant}_tokens"]
        assert np.array_equal(model.class_tokens, tokens[:, : model.class_tokens.shape[1]])


@pytest.mark.slow
def test_fresh_model_and_weight_ensemble(variants, variant_names, golden_weights, build):
    fresh = build(class_names=variant_names, num_frames=8).eval()
    tuned = build(class_names=variant_names, tuned={"num_frames": 8}, num_frames=8)
    video = video_of(golden_weights, 6, 1, 8)
    mixed = tc_clip.interpolate_weights(fresh.state_dict(), tuned.state_dict(), 0.7, tuned.new_parameter_names())
    with torch.no_grad():
        for name, parameter in fresh.named_parameters():
            if name.endswith("local_global_bias"):
                parameter.zero_()
        assert_close(fresh(video), variants["fresh_from_clip_bias_zero"])
        fresh.load_state_dict(mixed)
        assert_close(fresh(video), variants["wise_ft_07"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vifi_clip", "vanilla_clip"])
def test_frame_wise(name, golden_dir, golden_weights, build):
    golden = np.load(golden_dir / f"{name}_forward.npz")
    model = build(name, class_names=golden["class_names"]).eval()
    assert np.array_equal(model.class_tokens, golden["tokens"][:, : model.class_tokens.shape[1]])
    with torch.no_grad():
        assert_close(model(video_of(golden_weights, 5, 2, 8)), golden["logits"])


def test_prompts_of_class_names(golden_dir):
    from tc_clip.prompts import clean_class_name, prompt_of, tokenize_prompts

    for key, case in json.loads((golden_dir / "tokens.json").read_text()).items():
        name = key.split("|")[0]
        bare = key.endswith("|bare")
        prompt = clean_class_name(name, True) if bare else prompt_of(name, "a photo of a", True)
        assert prompt == case["prompt"]
        tokens = tokenize_prompts([prompt], [name], case["context_length"])[0].tolist()
        assert tokens == case["tokens"] + [0] * (case["context_length"] - len(case["tokens"]))
