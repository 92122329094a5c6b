"""The kinds of vision attention: visible tokens, the bias of extra keys, the weights of the class tokens."""

import pytest
import torch

from tc_clip import attention
from tests.tc_clip.formulas import random

B, T, A, N, K, h = 2, 4, 2, 5, 3, 8
KINDS = {
    "frame-wise": attention.FrameAttention,
    "context": attention.ContextAttention,
    "cross-frame": attention.CrossFrameAttention,
    "window": attention.WindowAttention,
    "joint": attention.JointAttention,
}


def inputs_of(kind: str) -> tuple:
    q, k, v = (random(B, T, A, N, h, seed=seed).detach() for seed in range(3))
    context = tuple(random(B, A, K, h, seed=seed).detach() for seed in (5, 6)) if kind == "context" else None
    return q, k, v, context


def build(kind: str, bias: float | None = None, **options: int) -> attention.FrameAttention:
    layer = KINDS[kind](A * h, A, bias is not None, **options).double().requires_grad_(False)
    if bias is not None and layer.local_global_bias is not None:
        layer.local_global_bias.copy_(torch.tensor([0.0, bias]))
    return layer


def visible(kind: str, frame: int, **options: int) -> set[tuple[int, int]]:
    """Return the (frame, token) pairs whose values change what the tokens of a frame attend to."""
    layer, (q, k, v, context) = build(kind, **options), inputs_of(kind)
    out, _ = layer.attend(q, k, v, context)
    found = set()
    for other in range(T):
        for token in range(N):
            changed = v.clone()
            changed[:, other, :, token] += 1
            difference = layer.attend(q, k, changed, context)[0] - out
            if difference[:, frame].abs().max() > 1e-6:
                found.add((other, token))
    return found


def tokens(frames: list[int], which: range) -> set[tuple[int, int]]:
    return {(frame, token) for frame in frames for token in which}


@pytest.mark.parametrize("frame", [0, 2])
def test_visible_tokens(frame):
    own, others = tokens([frame], range(N)), [other for other in range(T) if other != frame]
    assert visible("frame-wise", frame) == visible("context", frame) == own
    assert visible("cross-frame", frame) == own | tokens(others, range(1))
    assert visible("joint", frame) == tokens(list(range(T)), range(N))
    for window in (1, 2):
        near = [other for other in others if abs(other - frame) <= window]
        assert visible("window", frame, window=window) == own | tokens(near, range(1, N))


@pytest.mark.parametrize("kind", KINDS)
def test_a_bias_hides_extra_keys_or_own_keys(kind):
    q, k, v, context = inputs_of(kind)
    alone, weights_alone = build("frame-wise").attend(q, k, v, None, with_class_weights=True)
    hidden, weights = build(kind, bias=-50.0).attend(q, k, v, context, with_class_weights=True)
    torch.testing.assert_close(hidden, alone)
    torch.testing.assert_close(weights, weights_alone)
    _, weights = build(kind, bias=50.0).attend(q, k, v, context, with_class_weights=True)
    assert weights.sum(dim=-1).max() < 1e-9 if KINDS[kind].has_extra_keys else torch.equal(weights, weights_alone)


@pytest.mark.parametrize("kind", KINDS)
def test_the_class_tokens_weights(kind):
    """They are those of the first query, whatever other queries there are."""
    q, k, v, context = inputs_of(kind)
    layer = build(kind, bias=0.5)
    out, weights = layer.attend(q, k, v, context, with_class_weights=True)
    assert weights.shape == (B, T, N)
    assert layer.attend(q, k, v, context)[1] is None
    first, weights_alone = layer.attend(q[:, :, :, :1], k, v, context, with_class_weights=True)
    torch.testing.assert_close(weights, weights_alone)
    torch.testing.assert_close(out[:, :, :, :1], first)
    total = weights.sum(dim=-1)
    assert (total < 1 - 1e-6).all() if layer.has_extra_keys else torch.allclose(total, torch.ones_like(total))


def test_a_window_has_at_least_one_frame():
    with pytest.raises(ValueError, match="window must be at least 1 frame, not 0"):
        build("window", window=0)
