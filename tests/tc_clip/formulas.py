"""Comparing a fast form with its plain formula: values and all gradients."""

import torch
from torch import Tensor

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
