"""Adapters: the identity at the start, plain formulas in float64 with every attention, and what they leave frozen."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tc_clip
from tc_clip.adapters import LowRank, is_adapter

SIZES = {"image_size": 16, "patch_size": 8, "vision_width": 64, "vision_depth": 2, "text_width": 64, "text_depth": 2}
TC = {"num_context_tokens": 4, "merge_rate": 4, "seed_ratio": 1.0, "prompt_layers": [2]}
NAMES = ["vifi_clip", "window_clip", "joint_clip", "cross_frame_clip", "tc_clip", "vp_clip"]
KINDS = ["lora", "st_adapter", "aim"]
LORA = {"adapters": "lora", "lora_projections": "q+k+v+out", "lora_rank": 3, "lora_alpha": 6.0}


def model_of(name: str, **options: object) -> tc_clip.VideoClip:
    torch.manual_seed(0)
    more = TC if name in ("tc_clip", "vp_clip") else {}
    classes = ["push", "pull slowly", "open a door"]
    options = {"embed_dim": 64, "num_frames": 4, **SIZES, **more, **options}
    return tc_clip.create_model(name, class_names=classes, **options).double()


def with_adapters(name: str, **options: object) -> tuple[tc_clip.VideoClip, tc_clip.VideoClip]:
    """Return a model with adapters that do something, and one without them but with the same other weights."""
    model, plain = model_of(name, freeze="backbone", **options), model_of(name)
    assert isinstance(model, tc_clip.VideoClip)
    plain.load_state_dict({key: value for key, value in model.state_dict().items() if not is_adapter(key)})
    torch.testing.assert_close(model(videos()), plain(videos()), rtol=1e-12, atol=1e-12)  # the identity at the start
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if is_adapter(key):
                parameter += torch.randn(parameter.shape).double() * 0.1
    return model, plain


def videos() -> Tensor:
    return torch.randn(2, 4, 3, 16, 16, generator=torch.Generator().manual_seed(1)).double()


@pytest.mark.parametrize("name", NAMES)
def test_lora_is_a_change_of_the_weights(name: str) -> None:
    model, plain = with_adapters(name, **LORA)
    weights = plain.state_dict()
    for key, module in model.named_modules():
        if isinstance(module, LowRank):
            change = {part: module.up[part] @ module.down[part] * 2 for part in "qkv"}  # alpha / rank
            weights[key.replace("lora", "in_proj_weight")] += torch.cat([change[part].detach() for part in "qkv"])
            weights[key.replace("lora", "out_proj.weight")] += (module.up["out"] @ module.down["out"] * 2).detach()
    plain.load_state_dict(weights)
    torch.testing.assert_close(model(videos()), plain(videos()), rtol=1e-9, atol=1e-10)
    merged = model.with_lora_merged()
    assert merged.info()["options"]["adapters"] is None and model.info()["options"]["adapters"] == "lora"
    assert merged.state_dict().keys() == plain.state_dict().keys()
    torch.testing.assert_close(merged(videos()), model(videos()), rtol=1e-9, atol=1e-10)


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    return x @ layer.weight.T + layer.bias


@pytest.mark.parametrize("name", NAMES)
def test_st_adapter_is_a_convolution_before_the_block(name: str) -> None:
    model, plain = with_adapters(name, adapters="st_adapter", adapter_width=24)

    def before(block: nn.Module, inputs: tuple) -> tuple:
        adapter, frames = adapters[block], inputs[0]
        conv = nn.Conv3d(24, 24, (3, 1, 1), padding=(1, 0, 0), groups=24).double()
        conv.load_state_dict({"weight": adapter.conv.weight[..., None, None], "bias": adapter.conv.bias})
        hidden = linear(adapter.down, frames[:, :, 1:]).unflatten(2, (2, 2))  # (B, T, h, w, R)
        hidden = conv(hidden.permute(0, 4, 1, 2, 3)).permute(0, 2, 3, 4, 1).flatten(2, 3)
        return (frames[:, :, :1], frames[:, :, 1:] + linear(adapter.up, hidden)), *inputs[1:]

    adapters = {}
    for block, other in zip(plain.vision.blocks, model.vision.blocks, strict=True):
        adapters[block] = other.adapter
        block.register_forward_pre_hook(lambda block, inputs: (torch.cat(before(block, inputs)[0], 2), *inputs[1:]))
    torch.testing.assert_close(model(videos()), plain(videos()), rtol=1e-9, atol=1e-10)


def bottleneck(layers: nn.Sequential, x: Tensor) -> Tensor:
    return linear(layers[2], F.gelu(linear(layers[0], x)))


@pytest.mark.parametrize("name", NAMES)
def test_aim_is_its_three_adapters(name: str) -> None:
    model, plain = with_adapters(name, adapters="aim")
    positions = model.vision.frame_positions
    embed, merges = plain.vision.positional_embedding, {}
    plain.vision.positional_embedding = nn.Parameter((embed + positions).detach())  # (T, N, D)

    def along_frames(block: nn.Module, inputs: tuple) -> tuple:
        frames, attention = inputs[0], nn.MultiheadAttention(64, block.attn.num_heads, batch_first=True).double()
        weights = block.attn.state_dict()
        attention.load_state_dict(
            {key: value for key, value in weights.items() if "bias" not in key or "proj" in key}
            if "local_global_bias" in weights
            else weights
        )
        x = block.ln_1(frames).transpose(1, 2).flatten(0, 1)  # (B * N, T, D)
        x = attention(x, x, x)[0].unflatten(0, (len(frames), -1)).transpose(1, 2)
        return frames + bottleneck(merges[block].time, x), *inputs[1:]

    for block, other in zip(plain.vision.blocks, model.vision.blocks, strict=True):
        merges[block] = other.adapter
        block.register_forward_pre_hook(along_frames)
        block.mlp.register_forward_hook(
            lambda mlp, inputs, out, a=other.adapter: out + 0.5 * bottleneck(a.feed_forward, inputs[0])
        )
        block.attn.out_proj.register_forward_hook(
            lambda layer, inputs, out, a=other.adapter: out + bottleneck(a.space, out)
        )
    torch.testing.assert_close(model(videos()), plain(videos()), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_only_adapters_are_trained_and_kept_by_an_ensemble(kind: str) -> None:
    model, _ = with_adapters("window_clip", adapters=kind)
    F.cross_entropy(model(videos()), torch.tensor([0, 2])).backward()
    found = {key for key, parameter in model.named_parameters() if parameter.grad is not None}
    adapters = {key for key, _ in model.named_parameters() if is_adapter(key)}
    assert found == adapters == model.parameter_groups()["adapters"] == model.new_parameter_names()
    again = model_of("window_clip", adapters=kind)
    tc_clip.load_weights(again, {"model": model.state_dict(), "format_version": 2, "model_info": model.info()})
    torch.testing.assert_close(again(videos()), model(videos()), rtol=1e-12, atol=1e-12)


def test_frozen_weights_keep_no_input() -> None:
    model, _ = with_adapters("vifi_clip", adapters="lora", adapter_sides="text")
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(tuple(x.shape)) or x, lambda x: x):
        model(videos())
    assert sizes and not any(size[:2] == (2, 4) and len(size) > 3 for size in sizes)  # nothing of the vision encoder


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"adapters": "houlsby"}, "adapters must be one of lora, st_adapter, aim"),
        ({"adapters": "lora", "lora_projections": "q+w"}, "lora_projections must be one of q, k, v, out"),
        ({"adapters": "lora", "lora_rank": 0}, "must be at least 1"),
        ({"adapter_sides": "left"}, "adapter_sides must be one of"),
    ],
)
def test_wrong_values_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model_of("vifi_clip", **options)
