"""The kernels for GPUs in Triton's interpreter, which runs them on the CPU, against plain formulas.

`test_triton.py` runs this file in a process of its own: the interpreter has to be chosen before Triton is imported. It
has no products of bf16, so the half format here is fp16.
"""

import pytest
import torch
from torch import Tensor

from tc_clip.ops import plain, triton_attention, triton_merging
from tc_clip.ops.merging import merge_schedule

torch.set_num_threads(1)
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3}


def heads(*outer: int, num_heads: int, width: int, parts: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Return `parts` random tensors (..., A, n, h) that lie side by side in memory, as a projection leaves them."""
    *batch, n = outer
    x = torch.randn(*batch, n, parts, num_heads, width).to(dtype)
    return tuple(part.transpose(-3, -2) for part in x.unbind(-3))


def assert_close(actual: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    """Compare with the largest value as the measure: sums cancel."""
    assert actual.shape == expected.shape
    assert (actual.double() - expected).abs().max() <= TOLERANCE[dtype] * expected.abs().max()


# Videos, frames, queries, keys, extra keys, heads, width; sizes that fill no block, one query, widths of 8 to 40.
CASES = [
    (2, 3, 5, 5, 4, 2, 16, torch.float32),
    (1, 2, 37, 37, 9, 1, 40, torch.float32),
    (2, 1, 1, 20, 3, 2, 8, torch.float32),
    (1, 2, 35, 35, 33, 1, 16, torch.float16),
]


@pytest.mark.parametrize(
    ("has_bias", "is_shared"), [(True, True), (False, False)], ids=["shared, bias", "own, no bias"]
)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_attention(case, has_bias, is_shared):
    B, T, n, N, K, A, h, dtype = case
    torch.manual_seed(0)
    q, k, v = heads(B, T, N, num_heads=A, width=h, parts=3, dtype=dtype)
    q = q[:, :, :, :n]
    extra = heads(*((B,) if is_shared else (B, T)), K, num_heads=A, width=h, parts=2, dtype=dtype)
    bias = torch.randn(A) if has_bias else None
    inputs = [x.double().requires_grad_() for x in (q, k, v, *extra)]
    exact_bias = None if bias is None else bias.double().requires_grad_()
    expected, weights = plain.attention(*inputs[:3], tuple(inputs[3:]), exact_bias, True)
    grad = torch.randn_like(expected)
    wanted = inputs if exact_bias is None else [*inputs, exact_bias]
    gradients = torch.autograd.grad(expected, wanted, grad)

    out, log_sums = triton_attention.attend(q, k, v, *extra, bias)
    assert_close(out, expected, dtype)
    assert_close(triton_attention.rank_keys(q, k, extra[0], bias), weights, dtype)
    actual = triton_attention.attend_backward(grad.to(dtype), q, k, v, *extra, bias, out, log_sums)
    for one, other in zip(actual, gradients, strict=True):
        assert_close(one, other, dtype)


def test_attention_without_extra_keys():
    q, k, v = heads(1, 2, 19, num_heads=2, width=24, parts=3, dtype=torch.float32)
    expected, weights = plain.attention(q.double(), k.double(), v.double(), None, None, True)
    assert_close(triton_attention.attend(q, k, v, None, None, None)[0], expected, torch.float32)
    assert_close(triton_attention.rank_keys(q, k, None, None), weights, torch.float32)


def seeds_of(kind: str, *shape: int) -> Tensor:
    tokens = torch.randn(*shape)
    if kind == "equal scores":
        tokens = tokens.sign()
    elif kind == "not a number":
        tokens[0, 1, 0] = torch.nan
    elif kind == "zeros":
        tokens[:, ::3] = 0
    return tokens


@pytest.mark.parametrize("kind", ["random", "equal scores", "not a number", "zeros"])
@pytest.mark.parametrize(
    "sizes", [(13, 4, 3, 3), (61, 12, 40, 2), (2, 1, 1, 1), (7, 3, 100, 1), (40, 6, 9, 2)], ids=str
)
def test_matching(sizes, kind):
    """Every token goes where the plain rounds put it, equal scores and NaN included."""
    num_tokens, num_kept, rate, batch = sizes
    torch.manual_seed(0)
    tokens = seeds_of(kind, batch, num_tokens, 6)
    schedule = merge_schedule(num_tokens, num_kept, rate)
    assignment = triton_merging.match_gram(triton_merging.gram_matrix(tokens), list(schedule))
    assert torch.equal(assignment, plain.match_tokens(tokens, schedule))


def test_averages():
    torch.manual_seed(0)
    tokens = torch.randn(2, 30, 24)
    assignment = torch.cat((torch.arange(7).expand(2, 7), torch.randint(7, (2, 23))), dim=1)
    exact = tokens.double().requires_grad_()
    expected = plain.average_tokens(exact, assignment, 7)
    grad = torch.randn(2, 7, 24)
    (expected_grad,) = torch.autograd.grad(expected, exact, grad.double())
    means, sizes = triton_merging.group_means(tokens, assignment, 7)
    assert_close(means, expected, torch.float32)
    assert_close(triton_merging.group_means_backward(grad, assignment, sizes), expected_grad, torch.float32)
