"""Attention to a shared context in every form that can run, against the plain formula."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tc_clip.frame_attention import ContextTokens, FrameAttention, NeighbourPatches, VisionAttention
from tc_clip.ops import attention
from tests.tc_clip.formulas import TOLERANCE, compare, random


def plain_attention(q: Tensor, k: Tensor, v: Tensor, context_k, context_v, bias) -> Tensor:
    """Attend with everything written out."""
    T, N = q.shape[1], k.shape[3]
    if context_k is not None:
        k, v = (
            torch.cat((own, shared.unsqueeze(1).expand(-1, T, -1, -1, -1)), dim=3)
            for own, shared in ((k, context_k), (v, context_v))
        )
    logits = q @ k.mT * q.shape[-1] ** -0.5
    if bias is not None:
        logits = logits + F.pad(bias[:, None].expand(-1, k.shape[3] - N), (N, 0))[:, None]
    return logits.softmax(-1) @ v


def attention_inputs(dtype: torch.dtype, num_queries: int, with_context: bool, with_bias: bool) -> list:
    B, T, A, N, K, h = 2, 3, 4, 11, 6, 8
    tensors = [random(B, T, A, n, h, dtype=dtype, seed=seed) for seed, n in enumerate((num_queries, N, N))]
    context = [random(B, A, K, h, dtype=dtype, seed=seed) for seed in (5, 6)] if with_context else [None, None]
    return [*tensors, *context, random(A, dtype=dtype) if with_bias else None]


def plain_first_weights(q: Tensor, k: Tensor, context_k, bias) -> Tensor:
    """Return the first query's weights over its frame's own keys, mean over the heads: (B, T, N)."""
    N = k.shape[3]
    one_hot = torch.eye(N, dtype=k.dtype).expand(*k.shape[:3], -1, -1)
    context_v = None if context_k is None else torch.zeros(*context_k.shape[:3], N, dtype=k.dtype)
    return plain_attention(q[:, :, :, :1], k, one_hot, context_k, context_v, bias)[:, :, :, 0].mean(dim=2)


def materialised(*inputs):
    return attention._MaterialisedAttention.apply(*inputs, False)[0]


FORMS = {
    "flash, twice": (attention._SharedContextAttention.apply, torch.float64),
    "flash, twice, float32": (attention._SharedContextAttention.apply, torch.float32),
    "materialised": (materialised, torch.float64),
    "materialised, bfloat16": (materialised, torch.bfloat16),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("num_queries", [11, 1])
@pytest.mark.parametrize("case", ["bias", "no bias", "no context"])
def test_attention(form, num_queries, case, monkeypatch):
    function, dtype = FORMS[form]
    if case == "no context" and form.startswith("flash"):
        pytest.skip("this form is for shared context alone")
    monkeypatch.setattr(attention, "_CHUNK_BYTES", 2 * 4 * num_queries * 17 * dtype.itemsize)  # two frames a chunk
    inputs = attention_inputs(dtype, num_queries, case != "no context", case == "bias")
    compare(function, plain_attention, inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("with_gradient", [False, True])
@pytest.mark.parametrize("case", ["bias", "no bias", "no context"])
def test_attention_and_what_first_queries_attend_to(dtype, with_gradient, case, monkeypatch):
    """Whatever form runs of itself, with queries, keys and values side by side in memory as a layer makes them."""
    convolved = []
    run = attention._convolved_attention
    monkeypatch.setattr(attention, "_convolved_attention", lambda *args: convolved.append(args) or run(*args))
    B, T, A, n, K, h = 2, 3, 4, 33, 6, 16
    projected = random(B, T, n, 3 * A * h, dtype=dtype)
    q, k, v = (x.unflatten(-1, (A, h)).transpose(2, 3) for x in projected.split(A * h, dim=-1))
    context = [random(B, A, K, h, dtype=dtype, seed=seed) for seed in (5, 6)] if case != "no context" else None
    bias = random(A, dtype=torch.float32) if case == "bias" else None
    with torch.set_grad_enabled(with_gradient):
        out, first = attention.attend_and_rank(q, k, v, context, bias)
        assert torch.equal(attention.attend(q, k, v, context, bias), out)
    context_k, context_v = context or (None, None)
    doubles = [None if x is None else x.detach().double() for x in (q, k, v, context_k, context_v, bias)]
    expected = plain_attention(*doubles)
    assert (out.double() - expected).norm() <= TOLERANCE[dtype] * expected.norm()
    q, k, _, context_k, _, bias = doubles
    assert len(convolved) == (2 if dtype == torch.float32 and not with_gradient else 0)
    assert (first is not None) == (dtype == torch.bfloat16 or bool(convolved))
    if first is not None:
        assert not first.requires_grad and first.dtype == torch.float32
        expected = plain_first_weights(q, k, context_k, bias)
        assert (first.double() - expected).norm() <= TOLERANCE[dtype] * expected.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("part", [VisionAttention(), ContextTokens(), NeighbourPatches()])
def test_class_attention_is_the_same_as_a_by_product(part, dtype):
    """It chooses the seeds: read off what attention computes, or computed for itself."""
    B, T, A, N, K, h = 2, 3, 4, 33, 6, 16
    layer = FrameAttention(A * h, A, part.looks_further).to(dtype).requires_grad_(False)
    q, k, v = (random(B, T, A, N, h, dtype=dtype, seed=seed).detach() for seed in range(3))
    context = (
        tuple(random(B, A, K, h, dtype=dtype, seed=seed).detach() for seed in (5, 6)) if part.uses_context else None
    )
    attended, weights = part.attend_and_rank(layer, q, k, v, context)
    assert torch.equal(attended, part.attend(layer, q, k, v, context))
    expected = part.class_attention(layer, q, k, context).double()
    assert weights.shape == (B, T, N - 1)
    assert (weights.double() - expected).norm() <= TOLERANCE[dtype] * expected.norm()


@pytest.mark.parametrize("with_context", [True, False])
@pytest.mark.parametrize("with_bias", [True, False])
def test_attention_of_other_devices(with_context, with_bias, monkeypatch):
    """What runs on GPUs, and under the compiler, on the CPU."""
    if with_bias and not with_context:
        pytest.skip("a bias is of the context")
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)

    def ours(q, k, v, context_k, context_v, bias):
        return attention.attend(q, k, v, (context_k, context_v) if with_context else None, bias)

    compare(ours, plain_attention, attention_inputs(torch.float64, 11, with_context, with_bias))
