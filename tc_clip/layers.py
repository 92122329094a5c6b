"""What the two transformers share: feed-forward layers, residual blocks, lists of blocks, their start weights."""

import copy
from collections.abc import Iterator
from typing import Generic, TypeVar, cast, overload

import torch.nn.functional as F
from torch import Tensor, nn

from tc_clip import ops
from tc_clip.attention import Attention


class FeedForward(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, width: int, activation: str, hidden_width: int = 0):
        super().__init__()
        self.activation = activation
        self.c_fc = nn.Linear(width, hidden_width or 4 * width)
        self.c_proj = nn.Linear(hidden_width or 4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        if self.activation == "quick_gelu":
            return ops.feed_forward(x, self.c_fc.weight, self.c_fc.bias, self.c_proj.weight, self.c_proj.bias)
        hidden = F.gelu(
            ops.linear(x, self.c_fc.weight, self.c_fc.bias),
            approximate="tanh" if self.activation == "gelu_tanh" else "none",
        )
        return ops.linear(hidden, self.c_proj.weight, self.c_proj.bias)


class GatedFeedForward(FeedForward):
    """SwiGLU (Shazeer 2020): a second linear layer gates the hidden one, which can be normalised (EVA02)."""

    def __init__(self, width: int, hidden_width: int, norm_eps: float | None):
        super().__init__(width, "swiglu", hidden_width)
        self.c_gate = nn.Linear(width, hidden_width)
        self.inner_norm = None if norm_eps is None else nn.LayerNorm(hidden_width, norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        gate = F.silu(ops.linear(x, self.c_gate.weight, self.c_gate.bias))
        hidden = gate * ops.linear(x, self.c_fc.weight, self.c_fc.bias)
        if self.inner_norm is not None:
            hidden = self.inner_norm(hidden)
        return ops.linear(hidden, self.c_proj.weight, self.c_proj.bias)


class ResidualBlock(nn.Module):
    """The weights of one pre-norm transformer block."""

    def __init__(self, width: int, num_heads: int, activation: str, hidden_width: int = 0, norm_eps: float = 1e-5):
        super().__init__()
        self.ln_1 = nn.LayerNorm(width, norm_eps)
        self.attn = Attention(width, num_heads)
        self.ln_2 = nn.LayerNorm(width, norm_eps)
        self.mlp = FeedForward(width, activation, hidden_width)

    def feed_forward(self, x: Tensor) -> Tensor:
        """Return `x + mlp(ln_2(x))`."""
        return x + self.mlp(self.ln_2(x))


M = TypeVar("M", bound=nn.Module)
Member = TypeVar("Member", bound=nn.Module, covariant=True)


class Modules(nn.ModuleList, Generic[Member]):
    """A list of modules of one class, which `nn.ModuleList` hides from type checkers."""

    def __iter__(self) -> Iterator[Member]:
        return cast(Iterator[Member], super().__iter__())

    @overload
    def __getitem__(self, idx: slice) -> "Modules[Member]": ...
    @overload
    def __getitem__(self, idx: int) -> Member: ...
    def __getitem__(self, idx: int | slice) -> "Member | Modules[Member]":
        return cast("Member | Modules[Member]", super().__getitem__(idx))


def init_tower(blocks: Modules[ResidualBlock], width: int) -> None:
    """Draw the start weights of a tower's blocks, with the standard deviations of CLIP's training."""
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
