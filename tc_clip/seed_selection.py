"""Which patches of a frame become seed tokens (paper, section 3.2): named choices, pure functions.

Each takes the class tokens' attention (B, T, P), the patches before the block (B, T, P, D), the number of seeds and a
random generator (None: torch's own), and returns the chosen patches (B, T, S). Decided without gradient.
"""

from collections.abc import Callable

import torch
from torch import Tensor

SeedSelector = Callable[[Tensor, Tensor, int, torch.Generator | None], Tensor]


def by_class_attention(attention: Tensor, patches: Tensor, num_seeds: int, generator: torch.Generator | None) -> Tensor:
    """Choose the patches that the class token attends to most, in descending order (the paper's choice)."""
    return attention.topk(num_seeds, dim=-1).indices


def at_random(attention: Tensor, patches: Tensor, num_seeds: int, generator: torch.Generator | None) -> Tensor:
    """Choose patches at random; with a generator of its own the same of every video of the batch."""
    shape = attention.shape if generator is None else attention.shape[1:]
    draws = torch.rand(shape, generator=generator, device=attention.device)
    return draws.topk(num_seeds, dim=-1).indices.expand(attention.shape[0], -1, -1)


def all_patches(attention: Tensor, patches: Tensor, num_seeds: int, generator: torch.Generator | None) -> Tensor:
    """Choose every patch, in reading order; the number of seeds has no say."""
    return torch.arange(attention.shape[-1], device=attention.device).expand(attention.shape)


def by_norm(attention: Tensor, patches: Tensor, num_seeds: int, generator: torch.Generator | None) -> Tensor:
    """Choose the patches of the largest norm, in descending order."""
    return patches.detach().norm(dim=-1).topk(num_seeds, dim=-1).indices


def uniform_grid(attention: Tensor, patches: Tensor, num_seeds: int, generator: torch.Generator | None) -> Tensor:
    """Choose patches at even distances in reading order, the same of every frame."""
    num_patches = attention.shape[-1]
    chosen = (torch.arange(num_seeds, device=attention.device) * 2 + 1) * num_patches // (2 * num_seeds)
    return chosen.expand(*attention.shape[:2], -1)


SEED_SELECTORS: dict[str, SeedSelector] = {
    "class_attention": by_class_attention,
    "random": at_random,
    "all": all_patches,
    "top_norm": by_norm,
    "uniform_grid": uniform_grid,
}
