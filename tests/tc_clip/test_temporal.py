"""What joins the frames (shift, messages, temporal tokens, Kronecker blocks, X-CLIP's texts) against plain loops.

The loops compute one token, head and frame at a time in float64; values and the gradients of all parameters agree.
"""

import math
from collections.abc import Iterable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tc_clip
from tc_clip.adapters import is_adapter

SIZES = {"image_size": 16, "patch_size": 8, "vision_width": 64, "vision_depth": 2, "text_width": 64, "text_depth": 2}
SIZES |= {"embed_dim": 64, "head_width": 32}
TC = {"num_context_tokens": 4, "merge_rate": 4, "seed_ratio": 1.0, "prompt_layers": [2]}
CLASSES = ["push", "pull slowly", "open a door"]
T = 4


def model_of(name: str, **options: object) -> tc_clip.VideoClip:
    torch.manual_seed(0)
    more = TC if name in ("tc_clip", "vp_clip") else {}
    model = tc_clip.create_model(name, class_names=CLASSES, num_frames=T, **SIZES, **more, **options).double()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if is_adapter(key):  # much of it is zero at the start
                parameter += torch.randn(parameter.shape).double() * 0.1
    return model


def videos() -> Tensor:
    return torch.randn(2, T, 3, 16, 16, generator=torch.Generator().manual_seed(1)).double()


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    return layer.weight @ x + layer.bias


def norm(layer: nn.LayerNorm, x: Tensor) -> Tensor:
    x = x - x.mean()
    return x / ((x * x).mean() + layer.eps).sqrt() * layer.weight + layer.bias


def bottleneck(layers: nn.Sequential, x: Tensor) -> Tensor:
    hidden = linear(layers[0], x)
    return linear(layers[2], 0.5 * hidden * (1 + torch.erf(hidden / math.sqrt(2))))


def heads(attn: nn.Module, x: Tensor, part: int) -> Tensor:
    """Return query (0), key (1) or value (2) of one token (D,): (A, h)."""
    rows = slice(part * 64, (part + 1) * 64)
    return (attn.in_proj_weight[rows] @ x + attn.in_proj_bias[rows]).reshape(2, 32)


def attend(attn: nn.Module, query: Tensor, seen: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Attend from a query (A, h) to pairs of key and value: (D,)."""
    keys, values = zip(*seen, strict=True)
    out = []
    for head in range(2):
        weights = torch.stack([(query[head] @ key[head] / math.sqrt(32)).exp() for key in keys])
        out.append(sum(w * value[head] for w, value in zip(weights / weights.sum(), values, strict=True)))
    return linear(attn.out_proj, torch.cat(out))


def pairs(attn: nn.Module, tokens: Iterable[Tensor]) -> list[tuple[Tensor, Tensor]]:
    return [(heads(attn, x, 1), heads(attn, x, 2)) for x in tokens]


def feed_forward(block: nn.Module, x: Tensor) -> Tensor:
    hidden = linear(block.mlp.c_fc, norm(block.ln_2, x))
    return x + linear(block.mlp.c_proj, hidden / (1 + (-1.702 * hidden).exp()))


def shifted(x: list[list[tuple[Tensor, Tensor]]], share: float) -> list[list[tuple[Tensor, Tensor]]]:
    """Return keys and values [frame][token] with the channels of the neighbours."""
    c, out = int(share * 32), []
    for t in range(T):
        before, after = x[max(t - 1, 0)], x[min(t + 1, T - 1)]
        of_frame = []
        for n in range(len(x[t])):
            sides = [
                torch.cat((before[n][i][:, :c], after[n][i][:, c : 2 * c], x[t][n][i][:, 2 * c :]), dim=1)
                for i in range(2)
            ]
            of_frame.append((sides[0], sides[1]))
        out.append(of_frame)
    return out


def run_block(block: nn.Module, x: list[list[Tensor]], name: str, share: float) -> list[list[Tensor]]:
    """Run a block on the tokens [frame][token] of one video."""
    attn, adapter = block.attn, block.adapter
    own = shifted([pairs(attn, [norm(block.ln_1, token) for token in frame]) for frame in x], share)
    messages: list[Tensor] = []
    if block.messages is not None:
        starts = [linear(block.messages.start, frame[0]) for frame in x]
        normed = [norm(block.messages.norm, m) for m in starts]
        inner = block.messages.attn
        messages = [
            m + attend(inner, heads(inner, y, 0), pairs(inner, normed)) for m, y in zip(starts, normed, strict=True)
        ]
    elif adapter is not None:
        normed = [norm(block.ln_1, sum(x[t]) / len(x[t]) + adapter.tokens[t]) for t in range(T)]
        messages = [attend(attn, heads(attn, y, 0), pairs(attn, normed)) for y in normed]
    out: list[list[Tensor]] = []
    for t in range(T):
        seen = list(own[t])
        if messages:
            seen += pairs(attn, [norm(block.ln_1, messages[t])])
        for s in range(T):
            if s != t and name == "cross_frame_clip":
                seen.append(own[s][0])
            if s != t and (name == "joint_clip" or (name == "window_clip" and abs(s - t) == 1)):
                seen += own[s][0 if name == "joint_clip" else 1 :]
        frame = []
        for token in x[t]:
            y = attend(attn, heads(attn, norm(block.ln_1, token), 0), seen)
            if adapter is not None:
                y = y + bottleneck(adapter.space, y)
            frame.append(feed_forward(block, token + y))
        out.append(frame)
    return out


def run_kronecker(temporal: nn.Module, x: list[list[Tensor]], causal: bool) -> list[list[Tensor]]:
    x = [[token + temporal.positions[t, 0] for token in x[t]] for t in range(T)]
    for block in temporal.blocks:
        seen = [pairs(block.attn, [norm(block.ln_1, token) for token in frame]) for frame in x]
        out: list[list[Tensor]] = []
        for t in range(T):
            others = [pair for s in range(T) if s != t and (s < t or not causal) for pair in seen[s]]
            out.append([])
            for n, token in enumerate(x[t]):
                query = heads(block.attn, norm(block.ln_1, token), 0)
                out[t].append(feed_forward(block, token + attend(block.attn, query, [seen[t][n], *others])))
        x = out
    return x


def plain_logits(model: tc_clip.VideoClip, texts: Tensor, options: dict) -> Tensor:
    """Return the logits (B, C) of the videos and features of texts (C, E)."""
    vision, rows = model.vision, []
    for embedded in vision.embed(videos()):
        x = [list(frame) for frame in embedded]
        for block in vision.blocks:
            x = run_block(block, x, model.name, options.get("channel_shift", 0.0))
        if options.get("temporal") in ("kronecker", "causal"):
            x = run_kronecker(vision.temporal, x, options["temporal"] == "causal")
        projected = [[norm(vision.ln_post, token) @ vision.projection for token in frame] for frame in x]
        features = [frame[0] for frame in projected]
        if options.get("temporal") == "frames":
            y = [features[t] + vision.temporal.positions[t] for t in range(T)]
            for block in vision.temporal.blocks:
                normed = [norm(block.ln_1, c) for c in y]
                seen = pairs(block.attn, normed)
                y = [
                    feed_forward(block, c + attend(block.attn, heads(block.attn, z, 0), seen))
                    for c, z in zip(y, normed, strict=True)
                ]
            features = [c + z for c, z in zip(features, y, strict=True)]
        updated = list(texts)
        if model.feature_prompts is not None:
            patches = [sum(projected[t][n] for t in range(T)) / T for n in range(1, 5)]
            for layer in model.feature_prompts.layers:
                seen = pairs(layer.attn, [norm(layer.ln_1_kv, patch) for patch in patches])
                updated = [
                    feed_forward(layer, u + attend(layer.attn, heads(layer.attn, norm(layer.ln_1, u), 0), seen))
                    for u in updated
                ]
            updated = [text + model.feature_prompts.scale * u for text, u in zip(texts, updated, strict=True)]
        if model.matching == "frame_mean":
            video = sum(c / c.norm() for c in features) / T
        else:
            video = sum(features) / sum(features).norm()
        rows.append(torch.stack([video @ u / u.norm() for u in updated]))
    return model.logit_scale.exp() * torch.stack(rows)


XCLIP = {"message_tokens": True, "temporal": "frames", "temporal_blocks": 1, "text_update_layers": 2}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vifi_clip", {"channel_shift": 0.25}),
        ("cross_frame_clip", {"channel_shift": 0.1, "message_tokens": True}),
        ("window_clip", {"channel_shift": 0.25}),
        ("joint_clip", {"channel_shift": 0.25}),
        ("vifi_clip", {"temporal": "kronecker", "temporal_blocks": 2, "matching": "frame_mean"}),
        ("cross_frame_clip", {"temporal": "causal", "temporal_blocks": 1}),
        ("vifi_clip", XCLIP),
        ("vifi_clip", {**XCLIP, "temporal": "kronecker"}),
        ("vifi_clip", {"adapters": "t2l", "adapter_sides": "vision", "freeze": "backbone"}),
        ("cross_frame_clip", {"adapters": "t2l", "adapter_sides": "vision", "temporal": "frames"}),
    ],
)
def test_scores_and_gradients_are_the_plain_loops(name: str, options: dict) -> None:
    model = model_of(name, **options)
    texts = model.encode_text(model.text_rows)
    labels = torch.tensor([2, 0])
    trained = {key: parameter for key, parameter in model.named_parameters() if parameter.requires_grad}
    logits, plain = model(videos()), plain_logits(model, texts, options)
    torch.testing.assert_close(logits, plain, rtol=1e-9, atol=1e-10)
    found, expected = (
        torch.autograd.grad(F.cross_entropy(x, labels), list(trained.values()), retain_graph=True, allow_unused=True)
        for x in (logits, plain)
    )
    for key, a, b in zip(trained, found, expected, strict=True):
        # An out of reach weight has no gradient in the loops; the model may compute zeros.
        assert a is not None, key
        torch.testing.assert_close(a, torch.zeros_like(a) if b is None else b, rtol=1e-7, atol=1e-10, msg=key)


def test_texts_of_t2l_have_an_adapter_after_attention() -> None:
    model = model_of("vifi_clip", adapters="t2l", freeze="backbone")
    plain = model_of("vifi_clip")
    plain.load_state_dict({key: value for key, value in model.state_dict().items() if not is_adapter(key)})
    for block, other in zip(plain.text.blocks, model.text.blocks, strict=True):

        def add(layer: nn.Module, inputs: tuple, out: Tensor, adapter: nn.Module = other.attn.adapter) -> Tensor:
            flat = [x + bottleneck(adapter, x) for x in out.reshape(-1, 64)]
            return torch.stack(flat).reshape(out.shape)

        block.attn.out_proj.register_forward_hook(add)
    torch.testing.assert_close(model.encode_classes(None), plain.encode_classes(None), rtol=1e-9, atol=1e-10)
    assert not torch.allclose(model.encode_classes(None), model_of("vifi_clip").encode_classes(None))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("tc_clip", {"message_tokens": True, "channel_shift": 0.25, "temporal": "kronecker", "temporal_blocks": 1}),
        ("tc_clip", {"adapters": "t2l", "temporal": "frames", "matching": "brownian", "brownian_width": 6}),
        ("vp_clip", {"message_tokens": True, "temporal": "causal", "temporal_blocks": 1}),
        ("window_clip", {"temporal": "kronecker", "temporal_blocks": 2, "text_update_layers": 1}),
        ("vifi_clip", {**XCLIP, "templates": "photo", "prompt_init": "", "text_pooling": "max"}),
    ],
)
def test_parts_compose_and_a_checkpoint_has_them(name: str, options: dict) -> None:
    model = model_of(name, **options)
    model.set_checkpointing(True)
    F.cross_entropy(model(videos()), torch.tensor([0, 2])).backward()
    unused = {key for key, p in model.named_parameters() if p.requires_grad and p.grad is None}
    assert not any(is_adapter(key) and "brownian" not in key for key in unused)
    again = model_of(name, **options)
    tc_clip.load_weights(again, {"model": model.state_dict(), "format_version": 2, "model_info": model.info()})
    with torch.no_grad():
        model.eval(), again.eval()
        torch.testing.assert_close(again(videos()), model(videos()), rtol=1e-12, atol=1e-12)
        output = model.encode_video(videos(), with_traces=True)
        # The class token's weights are those of patches: a message's is not among them.
        assert all(trace.class_attention.shape == (2, T, 4) for trace in output.traces)
        torch.testing.assert_close(model.score(output), model(videos()), rtol=1e-9, atol=1e-10)
        assert model.with_class_names(["jump"])(videos()).shape == (2, 1)


def test_temporal_blocks_start_as_copies_or_at_random() -> None:
    torch.manual_seed(0)
    more = {"class_names": CLASSES, "num_frames": T, "temporal": "kronecker", "temporal_blocks": 2}
    for start in ("last", "random"):
        vision = tc_clip.create_model("vifi_clip", temporal_start=start, **more, **SIZES).vision
        for own, block in zip(vision.temporal.blocks, vision.blocks, strict=True):
            assert torch.equal(own.mlp.c_fc.weight, block.mlp.c_fc.weight) == (start == "last")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("window_clip", {"message_tokens": True}, "do not work with window attention"),
        ("joint_clip", {"adapters": "t2l"}, "do not work with joint attention"),
        ("vifi_clip", {"message_tokens": True, "adapters": "t2l"}, "choose one"),
        ("tc_clip", {"text_update_layers": 1}, "needs video_prompts=false"),
        ("vifi_clip", {"text_update_layers": 1, "matching": "brownian"}, "a matching other than brownian"),
        ("vifi_clip", {"temporal": "kronecker", "temporal_blocks": 3}, "there are only 2 blocks to copy"),
        ("vifi_clip", {"temporal": "recurrent"}, "temporal must be one of kronecker, causal, frames"),
        ("vifi_clip", {"temporal_start": "zero"}, "temporal_start must be one of last, random"),
        ("vifi_clip", {"channel_shift": 0.6}, "channel_shift must be from 0 to 0.5"),
        ("vifi_clip", {"temporal_blocks": 0}, "temporal_blocks must be at least 1"),
        ("vifi_clip", {"text_update_layers": -1}, "text_update_layers must be at least 0"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(name: str, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        model_of(name, **options)
    assert "\n" not in str(caught.value)


def test_a_video_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="joint positions for 4 frames, the video has 3"):
        model_of("vifi_clip", temporal="frames")(videos()[:, :3])
