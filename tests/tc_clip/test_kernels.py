"""The faster forms of layers against their plain formulas: values and all gradients, in every form that can run."""

import pytest
import torch

from tc_clip.ops import kernels
from tests.tc_clip.formulas import TOLERANCE, compare, random


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
