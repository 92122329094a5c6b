"""Brownian matching against plain loops in float64, with every attention and both kinds of prompts."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import tc_clip
from tc_clip.adapters import is_adapter
from tc_clip.brownian import BrownianFrames, BrownianTexts

SIZES = {"image_size": 16, "patch_size": 8, "vision_width": 64, "vision_depth": 2, "text_width": 64, "text_depth": 2}
TC = {"num_context_tokens": 4, "merge_rate": 4, "seed_ratio": 1.0, "prompt_layers": [2]}
NAMES = ["vifi_clip", "window_clip", "joint_clip", "cross_frame_clip", "tc_clip", "vp_clip"]
BROWNIAN = {"matching": "brownian", "brownian_width": 6, "brownian_share": 0.3}
CLASSES = ["push", "pull slowly", "open a door"]


def model_of(name: str, classes: list[str] = CLASSES, **options: object) -> tc_clip.VideoClip:
    torch.manual_seed(0)
    more = TC if name in ("tc_clip", "vp_clip") else {}
    model = tc_clip.create_model(name, class_names=classes, embed_dim=64, num_frames=4, **SIZES, **more, **options)
    return model.double().eval()


def brownian_of(name: str, **options: object) -> tc_clip.VideoClip:
    """Return a model with Brownian matching whose own weights are not at their start."""
    model, generator = model_of(name, **BROWNIAN, **options), torch.Generator().manual_seed(2)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "brownian" in key and "log_scale" not in key:
                parameter += torch.randn(parameter.shape, generator=generator).double() * 0.3
    return model


def videos() -> torch.Tensor:
    return torch.randn(2, 4, 3, 16, 16, generator=torch.Generator().manual_seed(1)).double()


def softmax(x: np.ndarray) -> np.ndarray:
    x = np.exp(x - x.max(axis=-1, keepdims=True))
    return x / x.sum(axis=-1, keepdims=True)


def plain_covariance(side: BrownianFrames | BrownianTexts, x: np.ndarray, chosen: int) -> tuple[np.ndarray, np.ndarray]:
    """Return feature and `g` of one set of tokens (n, E), entry by entry."""
    x = (x - x.mean(axis=1, keepdims=True)) / np.sqrt(x.var(axis=1, keepdims=True) + 1e-5)
    x = x * side.norm.weight.detach().numpy() + side.norm.bias.detach().numpy()
    z = x @ side.reduce.weight.detach().numpy().T
    n, r = z.shape
    y = softmax(z @ z[chosen] / math.sqrt(r))[:, None] * z
    d = np.empty((r, r))
    for k in range(r):
        for m in range(r):
            d[k, m] = math.sqrt(sum((y[i, k] - y[i, m]) ** 2 for i in range(n)) / (2 * n) + 1e-5)
    centred = d - d.mean(axis=1)[:, None] - d.mean(axis=0)[None] + d.mean()
    return np.array([centred[k, m] for k in range(r) for m in range(k, r)]), z[chosen]


def plain_video(side: BrownianFrames, tokens: np.ndarray) -> np.ndarray:
    features, g = (np.stack(x) for x in zip(*(plain_covariance(side, x, 0) for x in tokens), strict=True))
    queries, keys = (g @ layer.weight.detach().numpy().T for layer in (side.query, side.key))
    s = softmax(queries @ keys.T / math.sqrt(g.shape[1]))
    return (s @ features + features).mean(axis=0)


def tokens_of(model: tc_clip.VideoClip) -> tuple[torch.Tensor, list[list[torch.Tensor]]]:
    """Return the tokens (B, T, N, E) and those of the texts of every video, by hooks on the parts' inputs."""
    seen: dict[str, tuple] = {}
    hooks = [
        side.register_forward_pre_hook(lambda side, inputs, key=key: seen.update({key: inputs}))
        for key, side in (("video", model.vision.brownian), ("text", model.text.brownian))
    ]
    with torch.no_grad():
        model(videos())
    for hook in hooks:
        hook.remove()
    texts, ends, _ = seen["text"]
    texts = texts if texts.dim() == 4 else texts.expand(2, -1, -1, -1)
    return seen["video"][0], [[x[: end + 1] for x, end in zip(row, ends, strict=True)] for row in texts]


@pytest.mark.parametrize("name", NAMES)
def test_scores_are_the_plain_formulas(name: str) -> None:
    model = brownian_of(name)
    frames, texts = tokens_of(model)
    # The tokens are those of the encoder: their class tokens and ends give the scores of `cosine`.
    plain = model_of(name)
    plain.load_state_dict({key: value for key, value in model.state_dict().items() if not is_adapter(key)})
    with torch.no_grad():
        clip = plain(videos())
        output = plain.encode_video(videos())
        torch.testing.assert_close(frames[:, :, 0], output.class_tokens, rtol=1e-9, atol=1e-11)
        found = model(videos())
    assert frames.shape == (2, 4, 5, 64) and [len(x) for x in texts[0]] == [8, 9, 10]
    expected = np.empty((2, 3))
    for b in range(2):
        video = plain_video(model.vision.brownian, frames[b].numpy())
        for c, text in enumerate(texts[b]):
            feature, _ = plain_covariance(model.text.brownian, text.numpy(), len(text) - 1)
            expected[b, c] = video @ feature / np.linalg.norm(video) / np.linalg.norm(feature)
    scale = math.floor(math.exp(float(model.brownian.log_scale.detach())) / 5)
    mixed = 0.7 * softmax(clip.numpy()) + 0.3 * softmax(scale * expected)
    np.testing.assert_allclose(found.exp(), mixed, rtol=1e-8)
    # In training the scores are apart.
    model.train()
    output = model.encode_video(videos())
    apart = model.brownian_logits(output, model.encode_classes(output)).detach()
    np.testing.assert_allclose(apart, math.exp(float(model.brownian.log_scale.detach())) * expected, rtol=1e-8)
    torch.testing.assert_close(model(videos()).detach(), clip, rtol=1e-9, atol=1e-10)


def test_gradients() -> None:
    torch.manual_seed(0)
    frames, texts = BrownianFrames(5, 3).double(), BrownianTexts(5, 3).double()
    x = torch.randn(2, 3, 4, 5).double().requires_grad_()
    ends = torch.tensor([3, 1, 2])
    visible = torch.arange(4) <= ends.unsqueeze(1)
    assert torch.autograd.gradcheck(frames, (x,))
    assert torch.autograd.gradcheck(lambda x: texts(x, ends, visible), (x,))


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_several_texts_a_class(pooling: str) -> None:
    templates = ["a {}", "a video of {}, moving"]
    several = brownian_of("vifi_clip", prompt_init="", templates=templates, text_pooling=pooling).train()
    flat = brownian_of("vifi_clip", prompt_init="", templates=["{}"]).train()
    flat.set_class_names([text.replace("{}", name) for name in CLASSES for text in templates])
    with torch.no_grad():
        output = several.encode_video(videos())
        found = several.brownian_logits(output, several.encode_classes(output))
        texts = F.normalize(flat.encode_classes(output)[:, 64:], dim=-1)
        if pooling == "max":
            scores = F.normalize(output.brownian, dim=-1) @ texts.T
            scores = scores.unflatten(1, (3, 2)).amax(dim=2)
        else:
            mean = F.normalize(texts.unflatten(0, (3, 2)).mean(dim=1), dim=-1)
            scores = F.normalize(output.brownian, dim=-1) @ mean.T
    torch.testing.assert_close(found, several.brownian.log_scale.detach().exp() * scores, rtol=1e-9, atol=1e-10)


def test_its_weights_are_kept_and_trained_with_a_frozen_clip() -> None:
    model = brownian_of("window_clip", freeze="backbone")
    assert all(("brownian" in key) == p.requires_grad for key, p in model.named_parameters())
    again = model_of("window_clip", **BROWNIAN)
    tc_clip.load_weights(again, {"model": model.state_dict(), "format_version": 2, "model_info": model.info()})
    assert torch.equal(again(videos()), model(videos()))


@pytest.mark.parametrize(
    ("options", "message"), [({"brownian_width": 1}, "brownian_width"), ({"brownian_share": 1.0}, "brownian_share")]
)
def test_other_values_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model_of("vifi_clip", **BROWNIAN | options)
