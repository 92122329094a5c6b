"""Every operation in PyTorch's public operators: for any device, the compiler, the exporter, and as a fallback.

The functions are described in `tc_clip.ops`.
"""

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

import tc_clip.ops.merging as merging

QUICK_GELU_SLOPE = 1.702


class Product(Protocol):
    """A linear layer: `activation(x @ weight.T + bias)`; the activation is "none" or "swish", another name of silu."""

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None, activation: str = "none") -> Tensor: ...


def product(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str = "none") -> Tensor:
    """Return `activation(x @ weight.T + bias)`."""
    y = F.linear(x, weight, bias)
    return y if activation == "none" else F.silu(y)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return `x @ weight.T + bias`."""
    return F.linear(x, weight, bias)


def match_tokens(tokens: Tensor, schedule: tuple[int, ...]) -> Tensor:
    """Match in rounds of one product of all pairs each."""
    return merging.match_tokens(tokens, schedule, _pairwise_products)


def average_tokens(tokens: Tensor, assignment: Tensor, num_groups: int) -> Tensor:
    """Multiply the tokens with the membership matrix of the groups."""
    return merging.average_tokens(tokens, assignment, num_groups, _pairwise_products)


def _pairwise_products(a: Tensor, b: Tensor) -> Tensor:
    return a @ b.mT


def feed_forward(x: Tensor, w_in: Tensor, b_in: Tensor, w_out: Tensor, b_out: Tensor) -> Tensor:
    """Return `quick_gelu(x @ w_in.T + b_in) @ w_out.T + b_out`; training keeps a third of the memory of the formula."""
    if torch.compiler.is_compiling():  # the compiler fuses and recomputes elementwise operations itself
        hidden = F.linear(x, w_in, b_in)
        return F.linear(hidden * torch.sigmoid(QUICK_GELU_SLOPE * hidden), w_out, b_out)
    return feed_forward_with(product, x, w_in, b_in, w_out, b_out)


def feed_forward_with(product: Product, x: Tensor, w_in: Tensor, b_in: Tensor, w_out: Tensor, b_out: Tensor) -> Tensor:
    """Compute `feed_forward` with a device's form of the product.

    `quick_gelu(h) = silu(1.702 h) / 1.702`, and the two factors are part of the weights. The backward pass keeps the
    product before the activation and computes the activation again.
    """
    dtype = compute_dtype(x)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, w_in, b_in, w_out, b_out)):
        return _FeedForward.apply(x, w_in, b_in, w_out, b_out, dtype, product)
    with torch.autocast(x.device.type, enabled=False):
        hidden = product(x.to(dtype), *_scaled(w_in, b_in, dtype), "swish")
        return product(hidden, (w_out / QUICK_GELU_SLOPE).to(dtype), b_out.to(dtype))


class _FeedForward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        w_in: Tensor,
        b_in: Tensor,
        w_out: Tensor,
        b_out: Tensor,
        dtype: torch.dtype,
        product: Product,
    ) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            ctx.dtypes, ctx.product = (x.dtype, dtype), product
            x = x.to(dtype)
            scaled = product(x, *_scaled(w_in, b_in, dtype))  # 1.702 times the hidden tokens
            ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, scaled, w_in, w_out)
            return product(F.silu(scaled), (w_out / QUICK_GELU_SLOPE).to(dtype), b_out.to(dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, scaled, w_in, w_out = ctx.saved_tensors
        (x_dtype, dtype), product = ctx.dtypes, ctx.product
        with torch.autocast(grad.device.type, enabled=False):
            with torch.enable_grad():
                scaled = scaled.detach().requires_grad_()
                activated = F.silu(scaled)
            grad_x = grad_w_in = grad_b_in = grad_w_out = grad_b_out = None
            needs_x, needs_w_in, needs_b_in, needs_w_out, needs_b_out = ctx.needs_input_grad[:5]
            if needs_w_out:
                grad_w_out = weight_grad(grad, activated.detach(), product).to(w_out.dtype).div_(QUICK_GELU_SLOPE)
            if needs_b_out:
                grad_b_out = _column_sums(grad, w_out.dtype)
            # The slope cancels: the derivative of silu(1.702 h) / 1.702 by h is that of silu at 1.702 h.
            grad_hidden = product(grad, w_out.to(dtype).t(), None)
            (grad_hidden,) = torch.autograd.grad(activated, scaled, grad_hidden)
            if needs_w_in:
                grad_w_in = weight_grad(grad_hidden, x, product).to(w_in.dtype)
            if needs_b_in:
                grad_b_in = _column_sums(grad_hidden, w_in.dtype)
            if needs_x:
                grad_x = product(grad_hidden, w_in.to(dtype).t(), None).to(x_dtype)
        return grad_x, grad_w_in, grad_b_in, grad_w_out, grad_b_out, None, None


def weight_grad(grad: Tensor, x: Tensor, product: Product) -> Tensor:
    """Return the gradient (out, in) of a weight from those of its products (..., out) and its inputs (..., in)."""
    return product(grad.flatten(0, -2).t(), x.flatten(0, -2).t(), None)


def compute_dtype(x: Tensor) -> torch.dtype:
    """Return the number format of products of `x`: autocast's, else its own."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def _scaled(weight: Tensor, bias: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return (weight * QUICK_GELU_SLOPE).to(dtype), (bias * QUICK_GELU_SLOPE).to(dtype)


def _column_sums(grad: Tensor, dtype: torch.dtype) -> Tensor:
    return grad.flatten(0, -2).sum(0, dtype=dtype)


def attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    extra: tuple[Tensor, Tensor] | None,
    bias: Tensor | None,
    with_class_weights: bool,
) -> tuple[Tensor, Tensor | None]:
    """Attend with PyTorch's choice of kernel; extra keys that frames share are copied to every frame."""
    weights = class_weights(queries, keys, extra, bias) if with_class_weights else None
    B, T, _, N, _ = keys.shape
    if extra is not None:
        extra_keys, extra_values = (x if x.dim() == keys.dim() else _for_frames(x, T) for x in extra)
        keys, values = torch.cat((keys, extra_keys), dim=3), torch.cat((values, extra_values), dim=3)
    queries, keys, values = (x.flatten(0, 1) for x in (queries, keys, values))  # (B * T, A, n or N + K, h)
    if bias is None or extra is None:
        return F.scaled_dot_product_attention(queries, keys, values).unflatten(0, (B, T)), weights
    bias = bias.to(keys.dtype).unsqueeze(1).expand(-1, keys.shape[2] - N)
    bias = F.pad(bias, (N, 0)).unsqueeze(1)  # (A, 1, N + K)
    if not (bias.requires_grad and torch.is_grad_enabled()):
        attended = F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias[None])
    else:
        # With a mask that needs a gradient the kernels materialise the weights. With the bias as one more channel,
        # constant 1 in the queries, the fused kernels return its gradient.
        ones = queries.new_ones(*queries.shape[:-1], 1)
        channel = bias.mT.expand(keys.shape[0], -1, -1, -1) / queries.shape[-1] ** -0.5
        attended = _attention_with_channels(queries, keys, values, ones, channel)
    return attended.unflatten(0, (B, T)), weights  # (B, T, A, n, h)


def joint_attention(
    queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None, with_class_weights: bool
) -> tuple[Tensor, Tensor | None]:
    """Attend with all tokens of a video as one sequence."""
    weights = _joint_class_weights(queries, keys, bias) if with_class_weights else None
    T, n, N = keys.shape[1], queries.shape[3], keys.shape[3]
    queries, keys, values = (x.transpose(1, 2).flatten(2, 3) for x in (queries, keys, values))  # (B, A, T * n, h)
    if bias is None:
        attended = F.scaled_dot_product_attention(queries, keys, values)
    else:
        # One channel per frame: its product is 1 between tokens of one frame, and 0 between frames. A softmax with
        # `-bias` for own keys is the one with `bias` for the others.
        B, A = keys.shape[:2]
        frame = torch.eye(T, dtype=keys.dtype, device=keys.device)
        own_bias = -bias.to(keys.dtype)[:, None, None] / keys.shape[-1] ** -0.5  # (A, 1, 1)
        query_channels = frame.repeat_interleave(n, dim=0).expand(B, A, -1, -1)  # (B, A, T * n, T)
        key_channels = (frame.repeat_interleave(N, dim=0) * own_bias).expand(B, -1, -1, -1)  # (B, A, T * N, T)
        attended = _attention_with_channels(queries, keys, values, query_channels, key_channels)
    return attended.unflatten(2, (T, n)).transpose(1, 2), weights  # (B, T, A, n, h)


def _attention_with_channels(
    queries: Tensor, keys: Tensor, values: Tensor, query_channels: Tensor, key_channels: Tensor
) -> Tensor:
    """Attend with additional channels (..., n, c) of queries and keys, whose products add to the scaled logits."""
    width, num_channels = queries.shape[-1], query_channels.shape[-1]
    padding = -num_channels % 8  # kernels want widths in multiples of 8; the other channels stay zero
    attended = F.scaled_dot_product_attention(
        torch.cat((queries, F.pad(query_channels, (0, padding))), dim=-1),
        torch.cat((keys, F.pad(key_channels, (0, padding))), dim=-1),
        F.pad(values, (0, num_channels + padding)),
        scale=width**-0.5,
    )
    return attended[..., :width]


@torch.no_grad()
def class_weights(queries: Tensor, keys: Tensor, extra: tuple[Tensor, Tensor] | None, bias: Tensor | None) -> Tensor:
    """Return the weights of each frame's first query: see `tc_clip.ops.attention`."""
    query = queries[:, :, :, 0] * queries.shape[-1] ** -0.5  # (B, T, A, h)
    logits = (keys @ query.unsqueeze(-1)).squeeze(-1)  # (B, T, A, N)
    N = logits.shape[-1]
    if extra is not None:
        extra_keys = extra[0]
        if extra_keys.dim() == keys.dim():
            extra_logits = (extra_keys @ query.unsqueeze(-1)).squeeze(-1)  # (B, T, A, K)
        else:
            extra_logits = (query.transpose(1, 2) @ extra_keys.mT).transpose(1, 2)
        if bias is not None:
            extra_logits = extra_logits + bias.unsqueeze(-1)
        logits = torch.cat((logits, extra_logits), dim=-1)
    return _softmax(logits)[..., :N].mean(dim=2)  # (B, T, N)


@torch.no_grad()
def _joint_class_weights(queries: Tensor, keys: Tensor, bias: Tensor | None) -> Tensor:
    """Return the weights of each frame's first query in joint attention for the keys of its frame: (B, T, N)."""
    T, N = keys.shape[1], keys.shape[3]
    query = queries[:, :, :, 0].transpose(1, 2) * queries.shape[-1] ** -0.5  # (B, A, T, h)
    logits = query @ keys.transpose(1, 2).flatten(2, 3).mT  # (B, A, T, T * N)
    if bias is not None:
        others = 1 - torch.eye(T, dtype=logits.dtype, device=keys.device).repeat_interleave(N, dim=1)  # (T, T * N)
        logits = logits + others * bias[:, None, None]
    weights = _softmax(logits).unflatten(-1, (T, N)).diagonal(dim1=2, dim2=3)  # (B, A, N, T)
    return weights.permute(0, 3, 1, 2).mean(dim=2)


def _softmax(logits: Tensor) -> Tensor:
    """Softmax over the last dimension, in float32 at least: seeds are ranked by small differences."""
    return logits.softmax(dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))


def _for_frames(x: Tensor, num_frames: int) -> Tensor:
    """Repeat what frames share: (B, A, K, h) to (B, T, A, K, h)."""
    return x.unsqueeze(1).expand(-1, num_frames, -1, -1, -1)
