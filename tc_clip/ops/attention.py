"""Attention of many frames to their own tokens and to a context that all of them share, in the form that is fastest.

All forms are the same function as the plain formula of `attend`, with all gradients (tests compare in float64); which
one runs depends on device, number format and whether a gradient is wanted. Measured gains stand in docs/benchmarks.md.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from tc_clip.ops.kernels import onednn_is_faster

# Attention weights of one chunk where they are materialised: what stays in a CPU's cache.
_CHUNK_BYTES = 2 << 20


def attend(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    context: tuple[Tensor, Tensor] | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """Attend from each frame's queries to its own keys and to context keys that all frames of the video share.

    Args:
        queries: (B, T, A, n, h).
        keys, values: (B, T, A, N, h).
        context: keys and values (B, A, K, h), or None.
        bias: (A,), added to the logits towards the context, or None.

    Returns:
        (B, T, A, n, h): `softmax(queries @ all_keys.T / sqrt(h) + bias) @ all_values`.
    """
    return _attend(queries, keys, values, context, bias, False)[0]


def attend_and_rank(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    context: tuple[Tensor, Tensor] | None = None,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Attend as `attend` does; return besides it what each frame's first query attends to where that costs nothing.

    Returns:
        (B, T, A, n, h), and the first query's weights over its frame's own keys, mean over the heads, without gradient,
        (B, T, N) in float32 at least; None in their place where the kernel keeps its weights to itself.
    """
    return _attend(queries, keys, values, context, bias, True)


def attend_with_bias(queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
    """Attend with a bias (A, L) a key, through a fused kernel in evaluation and in training.

    A mask that wants a gradient makes the kernels fall back to materialised attention. Written as one more channel,
    of the constant 1 in the queries and of the bias in the keys, the bias gets its gradient from the fused kernel.
    """
    if not (bias.requires_grad and torch.is_grad_enabled()):
        return F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias[None, :, None])
    one = queries.new_ones(*queries.shape[:-1], 1)
    extra = (bias / queries.shape[-1] ** -0.5).expand(keys.shape[0], -1, -1).unsqueeze(-1)
    return attend_with_channels(queries, keys, values, one, extra)


def attend_with_channels(queries: Tensor, keys: Tensor, values: Tensor, asked: Tensor, answered: Tensor) -> Tensor:
    """Attend with further channels (..., n, c) of queries and of keys, whose products add to the scaled logits."""
    width, num_channels = queries.shape[-1], asked.shape[-1]
    padding = -num_channels % 8  # kernels want widths in multiples of 8; the other channels stay zero
    attended = F.scaled_dot_product_attention(
        torch.cat((queries, F.pad(asked, (0, padding))), dim=-1),
        torch.cat((keys, F.pad(answered, (0, padding))), dim=-1),
        F.pad(values, (0, num_channels + padding)),
        scale=width**-0.5,
    )
    return attended[..., :width]


def _attend(
    queries: Tensor, keys: Tensor, values: Tensor, context: tuple[Tensor, Tensor] | None, bias, with_first: bool
) -> tuple[Tensor, Tensor | None]:
    if queries.device.type == "cpu" and not torch.compiler.is_compiling():
        if queries.dtype in (torch.bfloat16, torch.float16):
            return _MaterialisedAttention.apply(queries, keys, values, *(context or (None, None)), bias, with_first)
        inputs = (queries, keys, values, *(context or ()), bias)
        with_gradient = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)
        if not with_gradient and _convolutions_are_faster(queries):
            return _convolved_attention(queries, keys, values, context, bias, with_first)
        if context is not None:
            return _SharedContextAttention.apply(queries, keys, values, *context, bias), None
    return _fused_attention(queries, keys, values, context, bias), None


def _fused_attention(
    queries: Tensor, keys: Tensor, values: Tensor, context: tuple[Tensor, Tensor] | None, bias: Tensor | None
) -> Tensor:
    """`attend` by PyTorch's choice of kernel, with the context copied to every frame."""
    B, T = queries.shape[:2]
    queries, keys, values = (x.flatten(0, 1) for x in (queries, keys, values))
    if context is None:
        return F.scaled_dot_product_attention(queries, keys, values).unflatten(0, (B, T))
    keys, values = (
        torch.cat((own, shared.unsqueeze(1).expand(-1, T, -1, -1, -1).flatten(0, 1)), dim=2)  # (B * T, A, N + K, h)
        for own, shared in zip((keys, values), context, strict=True)
    )
    if bias is None:
        return F.scaled_dot_product_attention(queries, keys, values).unflatten(0, (B, T))
    num_context = context[0].shape[2]
    bias = F.pad(bias.to(keys.dtype).unsqueeze(1).expand(-1, num_context), (keys.shape[2] - num_context, 0))
    return attend_with_bias(queries, keys, values, bias).unflatten(0, (B, T))


def _convolved_attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    context: tuple[Tensor, Tensor] | None,
    bias: Tensor | None,
    with_first: bool,
) -> tuple[Tensor, Tensor | None]:
    """`attend_and_rank` without gradient, frame by frame, all heads of a frame in one product.

    Tokens stay as the layers before and after have them, heads side by side. The context is written beside the keys
    and values of a frame once a video, and the bias comes with the product.
    """
    B, T, A, n, h = queries.shape
    N, D = keys.shape[3], A * h
    L = N + (0 if context is None else context[0].shape[2])
    out = queries.new_empty(B, T, n, D)
    first = queries.new_empty(B, T, N) if with_first else None
    scaled = queries.new_empty(n, A, h)
    all_keys, all_values = queries.new_empty(A, L, h), queries.new_empty(A, h, L)
    offsets = None if bias is None else F.pad(bias.to(queries.dtype)[:, None].expand(-1, L - N), (N, 0)).flatten()
    for b in range(B):
        if context is not None:
            all_keys[:, N:], all_values[:, :, N:] = context[0][b], context[1][b].mT
        for t in range(T):
            all_keys[:, :N], all_values[:, :, :N] = keys[b, t], values[b, t].mT
            torch.mul(queries[b, t].transpose(0, 1), h**-0.5, out=scaled)
            weights = _grouped_products(scaled.view(n, D), all_keys.view(A * L, h), offsets, A).view(n, A, L)
            torch.softmax(weights, dim=-1, out=weights)
            if first is not None:
                first[b, t] = weights[0, :, :N].mean(dim=0)
            out[b, t] = _grouped_products(weights.view(n, A * L), all_values.view(D, L), None, A)
    return out.unflatten(-1, (A, h)).transpose(2, 3), first


def _grouped_products(x: Tensor, weight: Tensor, bias: Tensor | None, groups: int) -> Tensor:
    """Return `x_g @ weight_g.T + bias_g` of each group, side by side, for (n, groups * d) and (groups * m, d).

    As a convolution over n places: it is the one way to oneDNN's float32 products of several matrices.
    """
    n, width = x.shape
    places = x.as_strided((1, width, 1, n), (n * width, 1, n * width, width))  # channels last
    weight = weight.view(*weight.shape, 1, 1)
    out = torch.ops.mkldnn._convolution_pointwise(
        places, weight, bias, [0, 0], [1, 1], [1, 1], groups, "none", [], ""
    )  # (1, groups * m, 1, n)
    return out.permute(0, 2, 3, 1).reshape(n, -1)


def _convolutions_are_faster(queries: Tensor) -> bool:
    n, h = queries.shape[3:]
    return onednn_is_faster(queries) and n >= 32 and h % 16 == 0


class _SharedContextAttention(torch.autograd.Function):
    """`attend` as two calls of the CPU's flash kernel, to own and to context keys, put together by their log-sum-exps.

    The context is not copied to every frame. The kernel's backward pass, given the outcome of the whole softmax,
    returns the gradients of each part; that of the bias follows from them:
    with weights p and logits l, sum dl = sum p (do . v) - sum p (do . o), and the first sum is v . dv.
    """

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, context_k: Tensor, context_v: Tensor, bias: Tensor | None):
        B, T, A, n, h = q.shape
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        own, own_lse = flash(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1))  # (B * T, A, n, h), (B * T, A, n)
        shared, shared_lse = flash(_by_video(q), context_k, context_v)  # (B, A, T * n, h), (B, A, T * n)
        shared = shared.unflatten(2, (T, n)).transpose(1, 2)  # (B, T, A, n, h)
        shared_lse = shared_lse.unflatten(2, (T, n)).transpose(1, 2)  # (B, T, A, n)
        if bias is not None:
            shared_lse = shared_lse + bias.to(shared_lse.dtype)[:, None]
        own, own_lse = own.unflatten(0, (B, T)), own_lse.unflatten(0, (B, T))
        share = torch.sigmoid(shared_lse - own_lse)  # the context's part of the weights
        out = own.lerp_(shared, share.unsqueeze(-1))
        ctx.save_for_backward(q, k, v, context_k, context_v, bias, out, torch.logaddexp(own_lse, shared_lse), share)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        q, k, v, context_k, context_v, bias, out, lse, share = ctx.saved_tensors
        B, T, A, n, h = q.shape
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        parts = (x.flatten(0, 1) for x in (grad, q, k, v, out, lse))
        grad_q, grad_k, grad_v = flash(*parts, 0.0, False)
        shared_lse = lse if bias is None else lse - bias.to(lse.dtype)[:, None]
        shared = (_by_video(grad), _by_video(q), context_k, context_v, _by_video(out), _by_video(shared_lse))
        shared_grad_q, grad_context_k, grad_context_v = flash(*shared, 0.0, False)
        grad_q = grad_q.unflatten(0, (B, T)).add_(shared_grad_q.unflatten(2, (T, n)).transpose(1, 2))
        grad_bias = None
        if bias is not None:
            grad_bias = (context_v * grad_context_v).sum((0, 2, 3))  # (A,)
            grad_bias = (grad_bias - (share * (grad * out).sum(-1)).sum((0, 1, 3))).to(bias.dtype)
        own = grad_q, grad_k.unflatten(0, (B, T)), grad_v.unflatten(0, (B, T))
        return *own, grad_context_k, grad_context_v, grad_bias


class _MaterialisedAttention(torch.autograd.Function):
    """`attend_and_rank` with its weights written out, a few frames at a time, and again in the backward pass.

    For bf16 and fp16 on CPUs, where products are so fast that the flash kernel takes twice the time of this.
    """

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, context_k, context_v, bias, with_first: bool):
        ctx.save_for_backward(q, k, v, context_k, context_v, bias)
        B, T, A, n, h = q.shape
        N = k.shape[3]
        first = None
        if with_first:
            first = q.new_empty(B * T, N, dtype=torch.promote_types(q.dtype, torch.float32))
        out = q.new_empty(B, T, n, A, h).transpose(2, 3)  # heads side by side in memory, as the next layer wants them
        for frames, (q_, k_, v_), mask in _chunks(q, k, v, context_k, context_v, bias):
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
    def backward(ctx, grad: Tensor, _):
        q, k, v, context_k, context_v, bias = ctx.saved_tensors
        B, T, A, N, h = k.shape
        grad_q, grad_k, grad_v = (torch.empty_like(x.transpose(2, 3)).transpose(2, 3) for x in (q, k, v))
        has_context = context_k is not None
        total = torch.promote_types(q.dtype, torch.float32)  # of sums over frames
        grad_context = [torch.zeros_like(x, dtype=total) for x in (context_k, context_v) if has_context]
        grad_bias = None if bias is None else torch.zeros(A, dtype=total)
        for frames, (q_, k_, v_), mask in _chunks(q, k, v, context_k, context_v, bias):
            grad_ = grad.flatten(0, 1)[frames].flatten(0, 1)
            weights = _weights(q_, k_, mask)
            grad_values = torch.bmm(weights.transpose(1, 2), grad_).unflatten(0, (-1, A))  # (frames, A, N + K, h)
            grad_logits = torch.bmm(grad_, v_.transpose(1, 2))
            grad_logits = torch._softmax_backward_data(grad_logits, weights, -1, weights.dtype)
            grad_queries = torch.bmm(grad_logits, k_).mul_(h**-0.5)
            grad_keys = torch.bmm(grad_logits.transpose(1, 2), q_).mul_(h**-0.5).unflatten(0, (-1, A))
            grad_q.flatten(0, 1)[frames] = grad_queries.unflatten(0, (-1, A))
            grad_k.flatten(0, 1)[frames] = grad_keys[:, :, :N]
            grad_v.flatten(0, 1)[frames] = grad_values[:, :, :N]
            if has_context:
                video = frames.start // T
                grad_context[0][video] += grad_keys[:, :, N:].sum(0, dtype=total)
                grad_context[1][video] += grad_values[:, :, N:].sum(0, dtype=total)
            if bias is not None:
                grad_bias += grad_logits[..., N:].unflatten(0, (-1, A)).sum((0, 2, 3), dtype=total)
        grad_context = [x.to(q.dtype) for x in grad_context] if has_context else (None, None)
        return grad_q, grad_k, grad_v, *grad_context, None if bias is None else grad_bias.to(bias.dtype), None


def _chunks(q: Tensor, k: Tensor, v: Tensor, context_k: Tensor | None, context_v: Tensor | None, bias: Tensor | None):
    """Yield frames of one video as a slice of B * T, their (frames * A, n, h) tensors, and the mask or None.

    Keys and values are good until the next chunk.
    """
    B, T, A, n, h = q.shape
    N, K = k.shape[3], 0 if context_k is None else context_k.shape[2]
    at_once = min(T, max(1, _CHUNK_BYTES // (A * n * (N + K) * q.element_size())))
    mask = None if bias is None else F.pad(bias.to(q.dtype)[:, None, None].expand(-1, 1, K), (N, 0))  # (A, 1, N + K)
    # The context is written beside the keys and values of a chunk's frames once a video.
    together = [x.new_empty(at_once, A, N + K, h) for x in (k, v)] if K else []
    for b in range(B):
        for all_of, shared in zip(together, (context_k, context_v), strict=False):
            all_of[:, :, N:] = shared[b]
        for t in range(0, T, at_once):
            stop = min(t + at_once, T)
            part = [x[b, t:stop] for x in (q, k, v)]
            for place, all_of in enumerate(together, start=1):
                all_of[: stop - t, :, :N] = part[place]
                part[place] = all_of[: stop - t]
            chunk_mask = None if mask is None else mask.repeat(stop - t, 1, 1)
            yield slice(b * T + t, b * T + stop), [x.flatten(0, 1) for x in part], chunk_mask


def _weights(queries: Tensor, keys: Tensor, mask: Tensor | None) -> Tensor:
    """Return the attention weights (n, N, L) of queries (n, N, h) to keys (n, L, h)."""
    scale = queries.shape[-1] ** -0.5
    if mask is None:
        mask, beta = queries.new_zeros(1), 0
    else:
        beta = 1
    logits = torch.baddbmm(mask, queries, keys.transpose(1, 2), beta=beta, alpha=scale)
    return torch.softmax(logits, -1, out=logits)


def _by_video(x: Tensor) -> Tensor:
    """Put the frames of (B, T, A, n, ...) one after the other: (B, A, T * n, ...)."""
    return x.transpose(1, 2).flatten(2, 3)
