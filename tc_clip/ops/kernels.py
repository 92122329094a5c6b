"""Faster forms of what the transformers compute most: linear layers, feed-forward parts, products of pairs.

Each is the same function as the plain formula in its docstring, with all gradients (tests compare in float64); which
form runs depends on device and number format alone. Measured gains stand in docs/benchmarks.md.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

QUICK_GELU_SLOPE = 1.702

_HAS_ONEDNN = torch.backends.mkldnn.is_available()
# Without AVX-512, oneDNN has no bf16 products at all.
_HAS_ONEDNN_BF16 = _HAS_ONEDNN and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def onednn_is_faster(x: Tensor) -> bool:
    """Return whether oneDNN's products of `x` are at least as fast as PyTorch's choice."""
    return _HAS_ONEDNN and x.device.type == "cpu" and x.dtype == torch.float32 and not torch.compiler.is_compiling()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return `x @ weight.T + bias`.

    In float32 on CPUs through oneDNN, whose products are twice as fast as PyTorch's choice (MKL) on AMD's CPUs and as
    fast on Intel's.
    """
    if not onednn_is_faster(x) or _compute_dtype(x) != x.dtype:
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
    products = [linear(rows, columns, None) for rows, columns in zip(a, b, strict=True)]
    return torch.stack(products) if len(products) > 1 else products[0].unsqueeze(0)


def products_with_one(x: Tensor, vector: Tensor) -> Tensor:
    """Return `x @ vector` of (..., n, h) and (..., h): (..., n).

    A matrix product copies heads that lie side by side in memory; in float32 on CPUs sums are three times as fast.
    """
    if onednn_is_faster(x) and _compute_dtype(x) == x.dtype:
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


def _compute_dtype(x: Tensor) -> torch.dtype:
    """Return the format in which autocast, or else the input, wants products of `x`."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str = "none") -> Tensor:
    """Return `activation(x @ weight.T + bias)`; "swish" is oneDNN's name of silu."""
    has_onednn = {torch.float32: _HAS_ONEDNN, torch.bfloat16: _HAS_ONEDNN_BF16}.get(x.dtype, False)
    if has_onednn and x.device.type == "cpu":
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
