"""What CLIP's two transformers are made of: attention, feed-forward, residual block."""

import copy
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tc_clip.ops.kernels import feed_forward, linear

M = TypeVar("M", bound=nn.Module)


class Linear(nn.Linear):
    """A linear layer that runs the fastest form of its product."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class FeedForward(nn.Module):
    """Two linear layers, "quick_gelu" or "gelu" between them; the hidden width is four times the width."""

    def __init__(self, width: int, activation: str):
        super().__init__()
        self.activation = activation
        self.c_fc = nn.Linear(width, 4 * width)
        self.c_proj = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        if self.activation == "gelu":
            return linear(F.gelu(linear(x, self.c_fc.weight, self.c_fc.bias)), self.c_proj.weight, self.c_proj.bias)
        return feed_forward(x, self.c_fc.weight, self.c_fc.bias, self.c_proj.weight, self.c_proj.bias)


class Attention(nn.Module):
    """Parameters of multi-head attention and the steps that every kind of attention here takes with them.

    One weight holds the projections of queries, keys and values one above the other, as in CLIP. Callers put the
    steps together: which tokens ask, which answer, with what bias.
    """

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.width = width
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = Linear(width, width)
        nn.init.normal_(self.in_proj_weight, std=width**-0.5)

    def queries(self, x: Tensor) -> Tensor:
        """Project tokens (..., n, D) to queries (..., A, n, D / A)."""
        return self.split_heads(self._project(x, 0, 1))[0]

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Project tokens (..., n, D) to keys and values, each (..., A, n, D / A)."""
        return self.split_heads(self.project_keys_values(x))

    def queries_keys_values(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Project tokens (..., n, D) to queries, keys and values, each (..., A, n, D / A), in one multiplication."""
        return self.split_heads(self.project(x))

    def merge_heads(self, x: Tensor) -> Tensor:
        """Put the heads' outputs (..., A, n, D / A) side by side, (..., n, D), and project them."""
        return self.out_proj(self.join_heads(x))

    def project(self, x: Tensor) -> Tensor:
        """Project tokens (..., n, D) to queries, keys and values side by side: (..., n, 3 * D)."""
        return self._project(x, 0, 3)

    def project_keys_values(self, x: Tensor) -> Tensor:
        """Project tokens (..., n, D) to keys and values side by side: (..., n, 2 * D)."""
        return self._project(x, 1, 3)

    def split_heads(self, projected: Tensor) -> tuple[Tensor, ...]:
        """Split projections that stand side by side, (..., n, parts * D), by part and head: each (..., A, n, D / A)."""
        parts = projected.split(self.width, dim=-1)
        return tuple(part.unflatten(-1, (self.num_heads, -1)).transpose(-3, -2) for part in parts)

    @staticmethod
    def join_heads(x: Tensor) -> Tensor:
        """Put the heads' outputs (..., A, n, D / A) side by side: (..., n, D)."""
        return x.transpose(-3, -2).flatten(-2)

    def _project(self, x: Tensor, first: int, stop: int) -> Tensor:
        rows = slice(first * self.width, stop * self.width)
        return linear(x, self.in_proj_weight[rows], self.in_proj_bias[rows])


class ResidualBlock(nn.Module):
    """The parameters of one pre-norm transformer block."""

    def __init__(self, width: int, num_heads: int, activation: str = "quick_gelu"):
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = Attention(width, num_heads)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = FeedForward(width, activation)

    def feed_forward(self, x: Tensor) -> Tensor:
        """Return `x + mlp(ln_2(x))`."""
        return x + self.mlp(self.ln_2(x))


def init_tower(blocks: nn.ModuleList, width: int) -> None:
    """Initialise the blocks of a tower from random numbers, with the standard deviations of CLIP's training."""
    out_std = width**-0.5 * (2 * len(blocks)) ** -0.5
    for block in blocks:
        nn.init.normal_(block.attn.in_proj_weight, std=width**-0.5)
        nn.init.normal_(block.attn.out_proj.weight, std=out_std)
        nn.init.normal_(block.mlp.c_fc.weight, std=(2 * width) ** -0.5)
        nn.init.normal_(block.mlp.c_proj.weight, std=out_std)
        for layer in (block.attn.out_proj, block.mlp.c_fc, block.mlp.c_proj):
            nn.init.zeros_(layer.bias)


def share_weights(module: M) -> M:
    """Return a copy of a module whose parameters and buffers are the same tensors."""
    return copy.deepcopy(module, {id(x): x for x in (*module.parameters(), *module.buffers())})
