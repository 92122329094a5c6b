"""Faster forms for eager PyTorch on CPUs: products in oneDNN, attention without copies of what frames share.

The functions are described in `tc_clip.ops`. If this PyTorch or this CPU lacks an operator, the plain form is used.
docs/benchmarks.md has measured gains.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

import tc_clip.ops.merging as merging
import tc_clip.ops.plain as plain
from tc_clip.ops.plain import joint_attention as joint_attention  # there is no faster form

# Bytes of the attention weights that `_MaterialisedAttention` computes at once: they stay in the cache.
_CHUNK_BYTES = 2 << 20


def _has_operators(*names: str) -> bool:
    """Return whether this PyTorch has all operators, by names like "aten.linear"."""
    return all(hasattr(getattr(torch.ops, name.split(".")[0]), name.split(".")[1]) for name in names)


_HAS_ONEDNN = torch.backends.mkldnn.is_available() and _has_operators("mkldnn._linear_pointwise")
# oneDNN has no bf16 products for CPUs without AVX-512.
_HAS_ONEDNN_BF16 = (
    _HAS_ONEDNN and _has_operators("mkldnn._is_mkldnn_bf16_supported") and torch.ops.mkldnn._is_mkldnn_bf16_supported()
)
_HAS_FLASH = _has_operators(
    "aten._scaled_dot_product_flash_attention_for_cpu", "aten._scaled_dot_product_flash_attention_for_cpu_backward"
)
_HAS_SOFTMAX_BACKWARD = _has_operators("aten._softmax_backward_data")


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return `x @ weight.T + bias`, in float32 by oneDNN.

    Its products are twice as fast as PyTorch's choice (MKL) on AMD's CPUs and equally fast on Intel's.
    """
    if not _HAS_ONEDNN or x.dtype != torch.float32 or plain.compute_dtype(x) != x.dtype:
        return plain.linear(x, weight, bias)
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        return _Linear.apply(x, weight, bias)
    return _product(x, weight, bias)


def match_tokens(tokens: Tensor, schedule: tuple[int, ...]) -> Tensor:
    """Match with one `linear` per video and round."""
    return merging.match_tokens(tokens, schedule, _pairwise_products)


def average_tokens(tokens: Tensor, assignment: Tensor, num_groups: int) -> Tensor:
    """Average with one `linear` per video."""
    return merging.average_tokens(tokens, assignment, num_groups, _pairwise_products)


def _pairwise_products(a: Tensor, b: Tensor) -> Tensor:
    """Return `a @ b.mT` by one `linear` per video: half to three quarters of the batched product's time."""
    products = [linear(rows, columns, None) for rows, columns in zip(a, b, strict=True)]
    return torch.stack(products) if len(products) > 1 else products[0].unsqueeze(0)


def feed_forward(x: Tensor, w_in: Tensor, b_in: Tensor, w_out: Tensor, b_out: Tensor) -> Tensor:
    """Return `quick_gelu(x @ w_in.T + b_in) @ w_out.T + b_out`, in float32 and bf16 by oneDNN."""
    return plain.feed_forward_with(_product, x, w_in, b_in, w_out, b_out)


def attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    extra: tuple[Tensor, Tensor] | None,
    bias: Tensor | None,
    with_class_weights: bool,
) -> tuple[Tensor, Tensor | None]:
    """Attend without copies of extra keys that frames share."""
    is_half = queries.dtype in (torch.bfloat16, torch.float16)
    if extra is not None and extra[0].dim() == keys.dim():  # each frame has its own extra keys
        return plain.attention(queries, keys, values, extra, bias, with_class_weights)
    if is_half and _HAS_SOFTMAX_BACKWARD:
        extra_keys, extra_values = extra or (None, None)
        return _MaterialisedAttention.apply(queries, keys, values, extra_keys, extra_values, bias, with_class_weights)
    if extra is None or is_half or not _HAS_FLASH:
        return plain.attention(queries, keys, values, extra, bias, with_class_weights)
    weights = plain.class_weights(queries, keys, extra, bias) if with_class_weights else None
    return _SharedKeysAttention.apply(queries, keys, values, *extra, bias), weights


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str = "none") -> Tensor:
    """Return `activation(x @ weight.T + bias)`; see `plain.product`."""
    if (_HAS_ONEDNN and x.dtype == torch.float32) or (_HAS_ONEDNN_BF16 and x.dtype == torch.bfloat16):
        return torch.ops.mkldnn._linear_pointwise(_dense(x), _dense(weight), bias, activation, [], "")
    return plain.product(x, weight, bias, activation)


def _dense(x: Tensor) -> Tensor:
    """Return `x` with rows, or columns, that follow one another: oneDNN needs a hundred times longer for others."""
    return x if x.is_contiguous() or (x.dim() == 2 and x.t().is_contiguous()) else x.contiguous()


class _Linear(torch.autograd.Function):
    """`linear` with its three products in oneDNN."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        ctx.has_bias = bias is not None
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = _product(grad, weight.t(), None)
        if ctx.needs_input_grad[1]:
            grad_weight = plain.weight_grad(grad, x, _product)
        if ctx.has_bias and ctx.needs_input_grad[2]:
            grad_bias = grad.flatten(0, -2).sum(0)
        return grad_x, grad_weight, grad_bias


class _SharedKeysAttention(torch.autograd.Function):
    """Attention as two calls of the CPU's flash kernel, to own and to shared keys, combined by their log-sum-exps.

    The shared keys are not copied to every frame. The kernel's backward pass, given the output of the whole softmax,
    returns the gradients of own and of shared keys. The gradient of the bias follows from them: with weights p and
    logits l, sum dl = sum p (do . v) - sum p (do . o), and the first sum is v . dv.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, shared_k: Tensor, shared_v: Tensor, bias: Tensor | None
    ) -> Tensor:
        B, T, A, n, h = q.shape
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        out, own_lse = flash(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1))  # (B * T, A, n, h), (B * T, A, n)
        out, own_lse = out.unflatten(0, (B, T)), own_lse.unflatten(0, (B, T))
        shared, shared_lse = flash(_by_video(q), shared_k, shared_v)  # (B, A, T * n, h), (B, A, T * n)
        shared = shared.unflatten(2, (T, n)).transpose(1, 2)  # (B, T, A, n, h)
        shared_lse = shared_lse.unflatten(2, (T, n)).transpose(1, 2)  # (B, T, A, n)
        if bias is not None:
            shared_lse = shared_lse + bias.to(shared_lse.dtype)[:, None]
        share = torch.sigmoid(shared_lse - own_lse)  # sum of the weights of shared keys
        out = out.lerp_(shared, share.unsqueeze(-1))
        lse = torch.logaddexp(own_lse, shared_lse)
        ctx.save_for_backward(q, k, v, shared_k, shared_v, bias, out, lse, share)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, shared_k, shared_v, bias, out, lse, share = ctx.saved_tensors
        B, T, A, n, h = q.shape
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        own = (x.flatten(0, 1) for x in (grad, q, k, v, out, lse))
        grad_q, grad_k, grad_v = (x.unflatten(0, (B, T)) for x in flash(*own, 0.0, False))
        shared_lse = lse if bias is None else lse - bias.to(lse.dtype)[:, None]
        shared = (_by_video(grad), _by_video(q), shared_k, shared_v, _by_video(out), _by_video(shared_lse))
        shared_grad_q, grad_shared_k, grad_shared_v = flash(*shared, 0.0, False)
        grad_q = grad_q.add_(shared_grad_q.unflatten(2, (T, n)).transpose(1, 2))
        grad_bias = None
        if bias is not None:
            grad_bias = (shared_v * grad_shared_v).sum((0, 2, 3))  # (A,)
            grad_bias = (grad_bias - (share * (grad * out).sum(-1)).sum((0, 1, 3))).to(bias.dtype)
        return grad_q, grad_k, grad_v, grad_shared_k, grad_shared_v, grad_bias


def _by_video(x: Tensor) -> Tensor:
    """Concatenate the frames of (B, T, A, n, ...): (B, A, T * n, ...)."""
    return x.transpose(1, 2).flatten(2, 3)


class _MaterialisedAttention(torch.autograd.Function):
    """Attention with materialised weights, for a few frames at a time, computed again in the backward pass.

    For bf16 and fp16: their products are so fast that the flash kernel needs twice the time.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        shared_k: Tensor | None,
        shared_v: Tensor | None,
        bias: Tensor | None,
        with_class_weights: bool,
    ) -> tuple[Tensor, Tensor | None]:
        ctx.save_for_backward(q, k, v, shared_k, shared_v, bias)
        B, T, A, n, h = q.shape
        N = k.shape[3]
        first = None
        if with_class_weights:
            first = q.new_empty(B * T, N, dtype=torch.promote_types(q.dtype, torch.float32))
        out = q.new_empty(B, T, n, A, h).transpose(2, 3)  # heads side by side in memory, as the next layer needs them
        for frames, q_, k_, v_, mask in _chunks(q, k, v, shared_k, shared_v, bias):
            weights = _weights(q_, k_, mask)
            out.flatten(0, 1)[frames] = torch.bmm(weights, v_).unflatten(0, (-1, A))
            if first is not None:
                first[frames] = weights[:, 0, :N].unflatten(0, (-1, A)).mean(dim=1, dtype=first.dtype)
        if first is None:
            return out, None
        first = first.unflatten(0, (B, T))
        ctx.mark_non_differentiable(first)
        return out, first

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
        q, k, v, shared_k, shared_v, bias = ctx.saved_tensors
        B, T, A, N, h = k.shape
        grad_q, grad_k, grad_v = (torch.empty_like(x.transpose(2, 3)).transpose(2, 3) for x in (q, k, v))
        total = torch.promote_types(q.dtype, torch.float32)  # of sums over frames
        grad_shared_k, grad_shared_v, grad_bias = (
            None if x is None else torch.zeros_like(x, dtype=total) for x in (shared_k, shared_v, bias)
        )
        for frames, q_, k_, v_, mask in _chunks(q, k, v, shared_k, shared_v, bias):
            grad_ = grad.flatten(0, 1)[frames].flatten(0, 1)
            weights = _weights(q_, k_, mask)
            grad_values = torch.bmm(weights.transpose(1, 2), grad_).unflatten(0, (-1, A))  # (frames, A, N + K, h)
            grad_logits = torch.bmm(grad_, v_.transpose(1, 2))
            grad_logits = torch.ops.aten._softmax_backward_data(grad_logits, weights, -1, weights.dtype)
            grad_queries = torch.bmm(grad_logits, k_).mul_(h**-0.5)
            grad_keys = torch.bmm(grad_logits.transpose(1, 2), q_).mul_(h**-0.5).unflatten(0, (-1, A))
            grad_q.flatten(0, 1)[frames] = grad_queries.unflatten(0, (-1, A))
            grad_k.flatten(0, 1)[frames] = grad_keys[:, :, :N]
            grad_v.flatten(0, 1)[frames] = grad_values[:, :, :N]
            video = frames.start // T
            if grad_shared_k is not None and grad_shared_v is not None:
                grad_shared_k[video] += grad_keys[:, :, N:].sum(0, dtype=total)
                grad_shared_v[video] += grad_values[:, :, N:].sum(0, dtype=total)
            if grad_bias is not None:
                grad_bias += grad_logits[..., N:].unflatten(0, (-1, A)).sum((0, 2, 3), dtype=total)
        shared_and_bias = ((grad_shared_k, q), (grad_shared_v, q), (grad_bias, bias))
        converted = (None if x is None else x.to(like.dtype) for x, like in shared_and_bias)
        return grad_q, grad_k, grad_v, *converted, None


def _chunks(
    q: Tensor, k: Tensor, v: Tensor, shared_k: Tensor | None, shared_v: Tensor | None, bias: Tensor | None
) -> Iterator[tuple[slice, Tensor, Tensor, Tensor, Tensor | None]]:
    """Yield frames of one video as a slice of B * T, their (frames * A, n or N + K, h) tensors, and the mask or None.

    Keys and values are valid until the next chunk.
    """
    B, T, A, n, h = q.shape
    N, K = k.shape[3], 0 if shared_k is None else shared_k.shape[2]
    num_frames = min(T, max(1, _CHUNK_BYTES // (A * n * (N + K) * q.element_size())))
    mask = None if bias is None else F.pad(bias.to(q.dtype)[:, None, None].expand(-1, 1, K), (N, 0))  # (A, 1, N + K)
    all_k, all_v = (x.new_empty(num_frames, A, N + K, h) for x in (k, v))
    for b in range(B):
        if shared_k is not None and shared_v is not None:  # written once per video
            all_k[:, :, N:], all_v[:, :, N:] = shared_k[b], shared_v[b]
        for t in range(0, T, num_frames):
            stop = min(t + num_frames, T)
            if K:
                all_k[: stop - t, :, :N], all_v[: stop - t, :, :N] = k[b, t:stop], v[b, t:stop]
                k_, v_ = all_k[: stop - t], all_v[: stop - t]
            else:
                k_, v_ = k[b, t:stop], v[b, t:stop]
            chunk_mask = None if mask is None else mask.repeat(stop - t, 1, 1)
            frames = slice(b * T + t, b * T + stop)
            yield frames, q[b, t:stop].flatten(0, 1), k_.flatten(0, 1), v_.flatten(0, 1), chunk_mask


def _weights(queries: Tensor, keys: Tensor, mask: Tensor | None) -> Tensor:
    """Return the attention weights (n, N, L) of queries (n, N, h) to keys (n, L, h)."""
    scale = queries.shape[-1] ** -0.5
    if mask is None:
        mask, beta = queries.new_zeros(1), 0
    else:
        beta = 1
    logits = torch.baddbmm(mask, queries, keys.transpose(1, 2), beta=beta, alpha=scale)
    return torch.softmax(logits, -1, out=logits)
