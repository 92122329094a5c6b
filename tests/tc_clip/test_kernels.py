"""The faster forms of layers against their plain formulas: values and all gradients, in every form that can run."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tc_clip import kernels

TOLERANCE = {torch.float64: 1e-11, torch.float32: 2e-5, torch.bfloat16: 4e-2}


def random(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, dtype=torch.float64, generator=generator).to(dtype).requires_grad_()


def compare(ours, plain, inputs: list[Tensor | None]) -> None:
    """Compare values and gradients of two functions; the plain one computes in float64."""
    dtype = next(x.dtype for x in inputs if x is not None)
    doubles = [None if x is None else x.detach().double().requires_grad_() for x in inputs]
    out, expected = ours(*inputs), plain(*doubles)
    weights = torch.randn(expected.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    (out.double() * weights).sum().backward()
    (expected * weights).sum().backward()
    pairs = [(out, expected)] + [(x.grad, y.grad) for x, y in zip(inputs, doubles, strict=True) if x is not None]
    for number, (value, wanted) in enumerate(pairs):
        error = (value.double() - wanted).norm() / wanted.norm()
        assert error <= TOLERANCE[dtype], f"number {number}: relative difference {error}"


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


FORMS = {
    "flash, twice": (kernels._SharedContextAttention.apply, torch.float64),
    "flash, twice, float32": (kernels._SharedContextAttention.apply, torch.float32),
    "materialised": (kernels._MaterialisedAttention.apply, torch.float64),
    "materialised, bfloat16": (kernels._MaterialisedAttention.apply, torch.bfloat16),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("num_queries", [11, 1])
@pytest.mark.parametrize("case", ["bias", "no bias", "no context"])
def test_attention(form, num_queries, case, monkeypatch):
    function, dtype = FORMS[form]
    if case == "no context" and form.startswith("flash"):
        pytest.skip("this form is for shared context alone")
    monkeypatch.setattr(kernels, "_CHUNK_BYTES", 2 * 4 * num_queries * 17 * dtype.itemsize)  # two frames a chunk
    inputs = attention_inputs(dtype, num_queries, case != "no context", case == "bias")
    compare(function, plain_attention, inputs)


@pytest.mark.parametrize("with_context", [True, False])
@pytest.mark.parametrize("with_bias", [True, False])
def test_attention_of_other_devices(with_context, with_bias, monkeypatch):
    """What runs on GPUs, and under the compiler, on the CPU."""
    if with_bias and not with_context:
        pytest.skip("a bias is of the context")
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)

    def ours(q, k, v, context_k, context_v, bias):
        return kernels.attend(q, k, v, (context_k, context_v) if with_context else None, bias)

    compare(ours, plain_attention, attention_inputs(torch.float64, 11, with_context, with_bias))


def plain_feed_forward(x, w_in, b_in, w_out, b_out):
    hidden = x @ w_in.T + b_in
    return hidden * torch.sigmoid(1.702 * hidden) @ w_out.T + b_out


@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_feed_forward(dtype):
    shapes = ((2, 5, 8), (32, 8), (32,), (8, 32), (8,))
    inputs = [random(*shape, dtype=dtype) for shape in shapes]
    compare(kernels.feed_forward, plain_feed_forward, inputs)
    with torch.no_grad():
        out = kernels.feed_forward(*inputs)
        expected = plain_feed_forward(*(x.double() for x in inputs))
    assert (out.double() - expected).norm() <= TOLERANCE[dtype] * expected.norm()


def test_feed_forward_under_autocast_returns_gradients_of_the_weights_kind():
    inputs = [random(*shape, dtype=torch.float32) for shape in ((2, 5, 8), (32, 8), (32,), (8, 32), (8,))]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = kernels.feed_forward(*inputs)
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert {x.grad.dtype for x in inputs} == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("form", ["dense", "every second row", "transposed"])
def test_linear(dtype, form):
    def ours(x, weight, bias):
        if form == "every second row":
            x = x[:, ::2]
        if form == "transposed":
            x = x.transpose(0, 1)
        return kernels.linear(x, weight, bias)

    def plain(x, weight, bias):
        x = {"dense": x, "every second row": x[:, ::2], "transposed": x.transpose(0, 1)}[form]
        return x @ weight.T + bias

    compare(ours, plain, [random(2, 6, 8, dtype=dtype), random(12, 8, dtype=dtype), random(12, dtype=dtype)])


def test_linear_forms_in_float64():
    """The form with products of its own, which float32 on CPUs runs, to float64's precision."""
    compare(kernels._Linear.apply, lambda x, w, b: x @ w.T + b, [random(3, 4, 8), random(12, 8), random(12)])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("form", ["dense", "every second row", "transposed"])
def test_pairwise_products(dtype, form):
    pick = {"dense": lambda x: x, "every second row": lambda x: x[:, ::2], "transposed": lambda x: x.mT}[form]
    a, b = random(2, 8, 8, dtype=dtype), random(2, 8, 8, dtype=dtype)
    compare(lambda a, b: kernels.pairwise_products(pick(a), pick(b)), lambda a, b: pick(a) @ pick(b).mT, [a, b])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_products_with_one(dtype):
    tokens, vectors = random(2, 3, 5, 4, 8, dtype=dtype), random(2, 3, 4, 8, dtype=dtype)
    expected = torch.einsum("btnah,btah->btan", tokens, vectors)
    torch.testing.assert_close(kernels.products_with_one(tokens.transpose(2, 3), vectors), expected)
