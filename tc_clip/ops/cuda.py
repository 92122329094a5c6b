"""Faster forms for CUDA: Triton kernels as operators, which CUDA graphs can capture and the compiler keeps as nodes.

The functions are described in `tc_clip.ops`. Cases that the kernels do not take, as float64, take the plain form.
"""

from typing import Any

import torch
from torch import Tensor

import tc_clip.ops.plain as plain
import tc_clip.ops.triton_attention as triton_attention
import tc_clip.ops.triton_merging as triton_merging

linear = plain.linear
feed_forward = plain.feed_forward
joint_attention = plain.joint_attention


def attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    extra: tuple[Tensor, Tensor] | None,
    bias: Tensor | None,
    with_class_weights: bool,
) -> tuple[Tensor, Tensor | None]:
    """Attend without copies of shared keys; frame-wise attention takes PyTorch's choice of kernel."""
    if not triton_attention.is_supported(queries):
        return plain.attention(queries, keys, values, extra, bias, with_class_weights)
    extra_keys, extra_values = (None, None) if extra is None else extra
    bias = None if extra is None else bias
    weights = None
    if with_class_weights:
        with torch.no_grad():
            weights = class_weights_op(queries, keys, extra_keys, bias)
    if extra is None:
        return plain.attention(queries, keys, values, None, None, False)[0], weights
    return attention_op(queries, keys, values, extra_keys, extra_values, bias)[0], weights


@torch.no_grad()
def match_tokens(tokens: Tensor, schedule: tuple[int, ...]) -> Tensor:
    """Match on the Gram matrix of the tokens, in the number format of products."""
    if tokens.dtype == torch.float64:
        return plain.match_tokens(tokens, schedule)
    return match_tokens_op(tokens.to(plain.compute_dtype(tokens)), schedule)


def average_tokens(tokens: Tensor, assignment: Tensor, num_groups: int) -> Tensor:
    """Add the tokens of each group up in the order of their numbers."""
    if tokens.dtype == torch.float64:
        return plain.average_tokens(tokens, assignment, num_groups)
    return average_tokens_op(tokens, assignment, num_groups)[0]


@torch.library.custom_op("tc_clip::attention", mutates_args=(), device_types="cuda")
def attention_op(
    q: Tensor, k: Tensor, v: Tensor, extra_k: Tensor | None, extra_v: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return the output of `tc_clip.ops.attention` (B, T, A, n, h) and log2 of the softmax's sums (B, T, A, n)."""
    return triton_attention.attend(q, k, v, extra_k, extra_v, bias)


@attention_op.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, extra_k: Tensor | None, extra_v: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    return triton_attention.empty_heads(q), q.new_empty(q.shape[:-1], dtype=torch.float32)


@torch.library.custom_op("tc_clip::attention_backward", mutates_args=(), device_types="cuda")
def attention_backward_op(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    extra_k: Tensor | None,
    extra_v: Tensor | None,
    bias: Tensor | None,
    out: Tensor,
    log_sums: Tensor,
) -> list[Tensor]:
    """Return the gradients of queries, keys and values, of extra keys and values if there are any, and of the bias."""
    return triton_attention.attend_backward(grad, q, k, v, extra_k, extra_v, bias, out, log_sums)


@attention_backward_op.register_fake
def _(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    extra_k: Tensor | None,
    extra_v: Tensor | None,
    bias: Tensor | None,
    out: Tensor,
    log_sums: Tensor,
) -> list[Tensor]:
    grads = [triton_attention.empty_heads(x) for x in (q, k, v, extra_k, extra_v) if x is not None]
    return grads if bias is None else [*grads, torch.empty_like(bias)]


def _save_attention(ctx: Any, inputs: tuple[Tensor | None, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)


def _attention_gradients(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    *inputs, out, log_sums = ctx.saved_tensors
    grads = iter(attention_backward_op(grad, *inputs, out, log_sums))
    return tuple(None if x is None else next(grads) for x in inputs)


attention_op.register_autograd(_attention_gradients, setup_context=_save_attention)


@torch.library.custom_op("tc_clip::class_weights", mutates_args=(), device_types="cuda")
def class_weights_op(q: Tensor, k: Tensor, extra_k: Tensor | None, bias: Tensor | None) -> Tensor:
    """Return the class tokens' weights (B, T, N) in float32: see `tc_clip.ops.attention`."""
    return triton_attention.rank_keys(q, k, extra_k, bias)


@class_weights_op.register_fake
def _(q: Tensor, k: Tensor, extra_k: Tensor | None, bias: Tensor | None) -> Tensor:
    return k.new_empty(*k.shape[:2], k.shape[3], dtype=torch.float32)


@torch.library.custom_op("tc_clip::match_tokens", mutates_args=(), device_types="cuda")
def match_tokens_op(tokens: Tensor, schedule: list[int]) -> Tensor:
    """Return each token's merged token, (B, n) int64."""
    return triton_merging.match_gram(triton_merging.gram_matrix(tokens), schedule)


@match_tokens_op.register_fake
def _(tokens: Tensor, schedule: list[int]) -> Tensor:
    return tokens.new_empty(tokens.shape[:2], dtype=torch.long)


@torch.library.custom_op("tc_clip::average_tokens", mutates_args=(), device_types="cuda")
def average_tokens_op(tokens: Tensor, assignment: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
    """Return the mean of each group's tokens (B, K, D), and the groups' sizes (B, K)."""
    return triton_merging.group_means(tokens, assignment, num_groups)


@average_tokens_op.register_fake
def _(tokens: Tensor, assignment: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
    B, _, D = tokens.shape
    return tokens.new_empty(B, num_groups, D), tokens.new_empty(B, num_groups, dtype=torch.int32)


@torch.library.custom_op("tc_clip::average_tokens_backward", mutates_args=(), device_types="cuda")
def average_tokens_backward_op(grad: Tensor, assignment: Tensor, sizes: Tensor) -> Tensor:
    """Return the gradient of the tokens (B, n, D) for that of the means (B, K, D)."""
    return triton_merging.group_means_backward(grad, assignment, sizes)


@average_tokens_backward_op.register_fake
def _(grad: Tensor, assignment: Tensor, sizes: Tensor) -> Tensor:
    return grad.new_empty(*assignment.shape, grad.shape[-1])


def _save_groups(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(inputs[1], output[1])


def _mean_gradients(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor, None, None]:
    assignment, sizes = ctx.saved_tensors
    return average_tokens_backward_op(grad.contiguous(), assignment, sizes), None, None


average_tokens_op.register_autograd(_mean_gradients, setup_context=_save_groups)
