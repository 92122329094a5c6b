"""The formulas of `tc_clip.ops`, and the comparison of a form with its formula: values and all gradients."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

TOLERANCE = {torch.float64: 1e-11, torch.float32: 2e-5, torch.bfloat16: 4e-2}


def random(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, dtype=torch.float64, generator=generator).to(dtype).requires_grad_()


def compare(form: Callable, formula: Callable, inputs: list[Tensor | None]) -> None:
    """Compare values and gradients of two functions; the formula computes in float64."""
    dtype = next(x.dtype for x in inputs if x is not None)
    doubles = [None if x is None else x.detach().double().requires_grad_() for x in inputs]
    inputs = [None if x is None else x.detach().clone().requires_grad_() for x in inputs]
    out, expected = form(*inputs), formula(*doubles)
    weights = torch.randn(expected.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    (out.double() * weights).sum().backward()
    (expected * weights).sum().backward()
    pairs = [(out, expected)] + [(x.grad, y.grad) for x, y in zip(inputs, doubles, strict=True) if x is not None]
    for number, (value, wanted) in enumerate(pairs):
        assert_near(value, wanted, TOLERANCE[dtype], f"number {number}")


def assert_near(value: Tensor, expected: Tensor, tolerance: float, name: str = "value") -> None:
    error = (value.double() - expected).norm() / expected.norm()
    assert error <= tolerance, f"{name}: relative difference {error}"


def feed_forward(x: Tensor, w_in: Tensor, b_in: Tensor, w_out: Tensor, b_out: Tensor) -> Tensor:
    hidden = x @ w_in.T + b_in
    return hidden * torch.sigmoid(1.702 * hidden) @ w_out.T + b_out


def attention_weights(q: Tensor, k: Tensor, extra_k: Tensor | None, bias: Tensor | None) -> Tensor:
    """Return (B, T, A, n, N + K); extra keys are (B, A, K, h), shared by the frames, or (B, T, A, K, h)."""
    N = k.shape[3]
    if extra_k is not None:
        k = torch.cat((k, per_frame(extra_k, q.shape[1])), dim=3)
    logits = q @ k.mT * q.shape[-1] ** -0.5
    if bias is not None:
        logits = logits + F.pad(bias[:, None].expand(-1, k.shape[3] - N), (N, 0))[:, None]
    return logits.softmax(-1)


def attention(q: Tensor, k: Tensor, v: Tensor, extra_k=None, extra_v=None, bias=None) -> Tensor:
    weights = attention_weights(q, k, extra_k, bias)
    return weights @ (v if extra_v is None else torch.cat((v, per_frame(extra_v, q.shape[1])), dim=3))


def others(x: Tensor) -> Tensor:
    """Return the tokens of all other frames for each frame: (B, T, A, N, h) to (B, T, A, (T - 1) * N, h)."""
    T = x.shape[1]
    return torch.stack([torch.cat([x[:, s] for s in range(T) if s != t], dim=2) for t in range(T)], dim=1)


def per_frame(x: Tensor, num_frames: int) -> Tensor:
    return x if x.dim() == 5 else x.unsqueeze(1).expand(-1, num_frames, -1, -1, -1)
