"""Faster forms of what the transformers compute most: linear layers, feed-forward parts, attention to shared context.

Each is the same function as the plain formula in its docstring, with all gradients (tests compare in float64); which
form runs depends on device and number format alone. Measured gains stand in BENCHMARKS.md.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

QUICK_GELU_SLOPE = 1.702

_HAS_ONEDNN = torch.backends.mkldnn.is_available()
# Attention weights of one chunk where they are materialised: what stays in a CPU's cache.
_CHUNK_BYTES = 2 << 20


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return `x @ weight.T + bias`.

    In float32 on CPUs through oneDNN, whose products are twice as fast as PyTorch's choice (MKL) on AMD's CPUs and as
    fast on Intel's.
    """
    if not _onednn_is_faster(x) or _compute_dtype(x) != x.dtype:
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        return _Linear.apply(x, weight, bias)
    return _product(x, weight, bias)


def pairwise_products(a: Tensor, b: Tensor) -> Tensor:
    """Return `a @ b.mT` of (B, n, D) and (B, m, D): (B, n, m).

    On CPUs one `linear` a video, which in float32 and bf16 takes half to three quarters of the batched product's time.
    """
    if a.device.type != "cpu" or torch.compiler.is_compiling():
        return a @ b.mT
    return torch.stack([linear(rows, columns, None) for rows, columns in zip(a, b, strict=True)])


def products_with_one(x: Tensor, vector: Tensor) -> Tensor:
    """Return `x @ vector` of (..., n, h) and (..., h): (..., n).

    A matrix product copies heads that lie side by side in memory; in float32 on CPUs sums are three times as fast.
    """
    if _onednn_is_faster(x) and _compute_dtype(x) == x.dtype:
        return (x * vector.unsqueeze(-2)).sum(dim=-1)
    return (x @ vector.unsqueeze(-1)).squeeze(-1)


def feed_forward(x: Tensor, w_in: Tensor, b_in: Tensor, w_out: Tensor, b_out: Tensor) -> Tensor:
    """Return `quick_gelu(x @ w_in.T + b_in) @ w_out.T + b_out`.

    `quick_gelu(h) = silu(1.702 h) / 1.702`, and the two factors go into the weights. The backward pass keeps the
    product before the activation and computes the activation again: a third of the memory.
    """
    if torch.compiler.is_compiling():  # which fuses and recomputes elementwise operations by itself
        hidden = F.linear(x, w_in, b_in)
        return F.linear(hidden * torch.sigmoid(QUICK_GELU_SLOPE * hidden), w_out, b_out)
    dtype = _compute_dtype(x)
    if torch.is_grad_enabled() and (x.requires_grad or w_in.requires_grad):
        return _FeedForward.apply(x, w_in, b_in, w_out, b_out, dtype)
    with torch.autocast(x.device.type, enabled=False):
        x = x.to(dtype)
        hidden = _product(x, *_scaled(w_in, b_in, dtype), activation="swish")
        return _product(hidden, (w_out / QUICK_GELU_SLOPE).to(dtype), b_out.to(dtype))


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
    B, T = queries.shape[:2]
    if queries.device.type == "cpu" and not torch.compiler.is_compiling():
        if queries.dtype in (torch.bfloat16, torch.float16):
            return _MaterialisedAttention.apply(queries, keys, values, *(context or (None, None)), bias)
        if context is not None:
            return _SharedContextAttention.apply(queries, keys, values, *context, bias)
    queries, keys, values = (x.flatten(0, 1) for x in (queries, keys, values))
    if context is None:
        return F.scaled_dot_product_attention(queries, keys, values).unflatten(0, (B, T))
    keys, values = _with_context((keys, values), context, T)  # (B * T, A, N + K, h)
    if bias is None:
        return F.scaled_dot_product_attention(queries, keys, values).unflatten(0, (B, T))
    num_context = context[0].shape[2]
    bias = F.pad(bias.to(keys.dtype).unsqueeze(1).expand(-1, num_context), (keys.shape[2] - num_context, 0))
    return attend_with_bias(queries, keys, values, bias).unflatten(0, (B, T))


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


class _Linear(torch.autograd.Function):
    """`linear` with its three products in oneDNN."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        x, weight = ctx.saved_tensors
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = _product(grad, weight.t(), None)
        if ctx.needs_input_grad[1]:
            grad_weight = _weight_grad(grad, x)
        if ctx.has_bias and ctx.needs_input_grad[2]:
            grad_bias = grad.flatten(0, -2).sum(0)
        return grad_x, grad_weight, grad_bias


class _FeedForward(torch.autograd.Function):
    """`feed_forward`; weights come as they are kept, the products are in `dtype`."""

    @staticmethod
    def forward(ctx, x: Tensor, w_in: Tensor, b_in: Tensor, w_out: Tensor, b_out: Tensor, dtype: torch.dtype) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            ctx.dtypes = x.dtype, dtype
            x = x.to(dtype)
            scaled = _product(x, *_scaled(w_in, b_in, dtype))  # 1.702 times the hidden tokens
            ctx.save_for_backward(x, scaled, w_in, w_out)
            return _product(F.silu(scaled), (w_out / QUICK_GELU_SLOPE).to(dtype), b_out.to(dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        x, scaled, w_in, w_out = ctx.saved_tensors
        x_dtype, dtype = ctx.dtypes
        with torch.autocast(x.device.type, enabled=False):
            grad_w_out = _weight_grad(grad, F.silu(scaled)).to(w_out.dtype).div_(QUICK_GELU_SLOPE)
            grad_b_out = _column_sums(grad, w_out.dtype)
            # The slope cancels: the derivative of silu(1.702 h) / 1.702 by h is that of silu at 1.702 h.
            grad_hidden = _product(grad, w_out.to(dtype).t(), None)
            grad_hidden = torch.ops.aten.silu_backward(grad_hidden, scaled)
            grad_w_in = _weight_grad(grad_hidden, x).to(w_in.dtype)
            grad_b_in = _column_sums(grad_hidden, w_in.dtype)
            grad_x = _product(grad_hidden, w_in.to(dtype).t(), None).to(x_dtype)
        return grad_x, grad_w_in, grad_b_in, grad_w_out, grad_b_out, None


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
    """`attend` with its weights written out, a few frames at a time, and again in the backward pass.

    For bf16 and fp16 on CPUs, where products are so fast that the flash kernel takes twice the time of this.
    """

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, context_k: Tensor | None, context_v: Tensor | None, bias):
        ctx.save_for_backward(q, k, v, context_k, context_v, bias)
        B, T, A, n, h = q.shape
        out = q.new_empty(B, T, n, A, h).transpose(2, 3)  # heads side by side in memory, as the next layer wants them
        for frames, (q_, k_, v_), mask in _chunks(q, k, v, context_k, context_v, bias):
            weights = _weights(q_, k_, mask)
            out.flatten(0, 1)[frames] = torch.bmm(weights, v_).unflatten(0, (-1, A))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
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
        return grad_q, grad_k, grad_v, *grad_context, None if bias is None else grad_bias.to(bias.dtype)


def _chunks(q: Tensor, k: Tensor, v: Tensor, context_k: Tensor | None, context_v: Tensor | None, bias: Tensor | None):
    """Yield frames of one video as a slice of B * T, their (frames * A, n, h) tensors, and the mask or None."""
    B, T, A, n, h = q.shape
    N, K = k.shape[3], 0 if context_k is None else context_k.shape[2]
    at_once = min(T, max(1, _CHUNK_BYTES // (A * n * (N + K) * q.element_size())))
    mask = None if bias is None else F.pad(bias.to(q.dtype)[:, None, None].expand(-1, 1, K), (N, 0))  # (A, 1, N + K)
    for b in range(B):
        for t in range(0, T, at_once):
            stop = min(t + at_once, T)
            part = [x[b, t:stop] for x in (q, k, v)]
            if K:
                part[1:] = _with_context(part[1:], (context_k[b : b + 1], context_v[b : b + 1]), stop - t)
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


def _with_context(own: list[Tensor] | tuple[Tensor, ...], context: tuple[Tensor, Tensor], num_frames: int):
    """Append each video's context (B, A, K, h) to the keys and values (B * T, A, N, h) of its frames."""
    return [
        torch.cat((x, shared.unsqueeze(1).expand(-1, num_frames, -1, -1, -1).flatten(0, 1)), dim=2)
        for x, shared in zip(own, context, strict=True)
    ]


def _by_video(x: Tensor) -> Tensor:
    """Put the frames of (B, T, A, n, ...) one after the other: (B, A, T * n, ...)."""
    return x.transpose(1, 2).flatten(2, 3)


def _onednn_is_faster(x: Tensor) -> bool:
    return _HAS_ONEDNN and x.device.type == "cpu" and x.dtype == torch.float32 and not torch.compiler.is_compiling()


def _compute_dtype(x: Tensor) -> torch.dtype:
    """Return the format in which autocast, or else the input, wants products of `x`."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str = "none") -> Tensor:
    """Return `activation(x @ weight.T + bias)`; "swish" is oneDNN's name of silu."""
    if x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16) and _HAS_ONEDNN:
        # oneDNN takes a hundred times longer over rows that do not follow one another.
        return torch.ops.mkldnn._linear_pointwise(_dense(x), _dense(weight), bias, activation, [], "")
    y = F.linear(x, weight, bias)
    return y if activation == "none" else F.silu(y)


def _dense(x: Tensor) -> Tensor:
    return x if x.is_contiguous() or (x.dim() == 2 and x.t().is_contiguous()) else x.contiguous()


def _weight_grad(grad: Tensor, x: Tensor) -> Tensor:
    """Return the gradient (out, in) of a weight from those of its products (..., out) and its inputs (..., in)."""
    return _product(grad.flatten(0, -2).t(), x.flatten(0, -2).t(), None)


def _column_sums(grad: Tensor, dtype: torch.dtype) -> Tensor:
    return grad.flatten(0, -2).sum(0, dtype=dtype)


def _scaled(weight: Tensor, bias: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return (weight * QUICK_GELU_SLOPE).to(dtype), (bias * QUICK_GELU_SLOPE).to(dtype)
