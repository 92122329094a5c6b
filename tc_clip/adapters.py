"""Small trained parts of a frozen CLIP: LoRA, ST-Adapter, AIM, T2L. All but the last change nothing at the start.

- `lora` (Hu et al., arXiv 2106.09685): `W x + (alpha / rank) B A x` for chosen projections of the attention, A normal,
  B zero; `Attention.merge_lora` writes it into W
- `st_adapter` (Pan et al., arXiv 2206.13559): before a block, `x + U conv(V x)` on patch tokens, `conv` depthwise over
  three frames, zero at the start
- `aim` (Yang et al., arXiv 2302.03024): in a block, the frozen attention along the frames for every token place and an
  adapter without skip; an adapter with skip after spatial attention; a third, times 0.5, beside the feed-forward part
- `t2l` (EZ-CLIP, arXiv 2312.08010): in a block of the vision encoder a temporal token a frame, `P_t` + the mean of
  the frame's tokens; these attend to one another by the frozen attention, and join their frames as a further key and
  value; in blocks of both encoders an adapter with skip after the attention
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tc_clip.config import require_choice

KINDS = ("lora", "st_adapter", "aim", "t2l")
PROJECTIONS = ("q", "k", "v", "out")
SIDES = ("both", "vision", "text")
AIM_SCALE = 0.5


@dataclass(frozen=True)
class AdapterConfig:
    """Adapters of a model.

    Args:
        adapters: one of `KINDS`, or None.
        adapter_width: hidden channels; None: 384 for ST-Adapter, a quarter of the width for AIM and T2L.
        adapter_sides: encoders with LoRA or T2L; the other kinds are for the vision encoder alone.
        lora_rank: rank of LoRA.
        lora_alpha: LoRA's products are scaled by `lora_alpha / lora_rank`.
        lora_projections: some of `PROJECTIONS`, as "q+v".
    """

    adapters: str | None = None
    adapter_width: int | None = None
    adapter_sides: str = "both"
    lora_rank: int = 8
    lora_alpha: float = 8.0
    lora_projections: str = "q+v"

    def __post_init__(self) -> None:
        require_choice("adapter_sides", self.adapter_sides, SIDES)
        if self.adapters is not None:
            require_choice("adapters", self.adapters, KINDS)
        for name in self.projections:
            require_choice("lora_projections", name, PROJECTIONS)
        if self.lora_rank < 1 or (self.adapter_width is not None and self.adapter_width < 1):
            raise ValueError("lora_rank and adapter_width must be at least 1")

    @property
    def projections(self) -> tuple[str, ...]:
        """Projections with LoRA."""
        return tuple(self.lora_projections.split("+"))

    def of_side(self, side: str) -> str | None:
        """Return the kind of adapters of an encoder, "vision" or "text", or None."""
        if self.adapters in ("lora", "t2l"):
            return self.adapters if self.adapter_sides in ("both", side) else None
        return self.adapters if side == "vision" else None


class LowRank(nn.Module):
    """LoRA of an attention's projections; it is called with the input and the output of a projection."""

    def __init__(self, width: int, config: AdapterConfig):
        super().__init__()
        self.scale = config.lora_alpha / config.lora_rank
        rank, names = config.lora_rank, config.projections
        self.down = nn.ParameterDict({name: nn.Parameter(torch.randn(rank, width) * width**-0.5) for name in names})
        self.up = nn.ParameterDict({name: nn.Parameter(torch.zeros(width, rank)) for name in names})

    def forward(self, x: Tensor, out: Tensor, names: Sequence[str]) -> Tensor:
        """Add to projections (..., len(names) * D), side by side, of tokens (..., D)."""
        parts = list(out.chunk(len(names), dim=-1))
        for number, name in enumerate(names):
            if name in self.down:
                added = F.linear(F.linear(x, self.down[name]), self.up[name] * self.scale)
                parts[number] = parts[number] + added
        return torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0]

    def product(self, name: str) -> Tensor:
        """Return what is added to the weight of a projection."""
        return self.up[name] @ self.down[name] * self.scale


class SpaceTimeAdapter(nn.Module):
    """`x + U conv(V x)` on the patch tokens of frames (B, T, N, D); the class tokens pass by."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.down = nn.Linear(width, hidden)
        self.conv = nn.Conv1d(hidden, hidden, 3, padding=1, groups=hidden)  # kernel 3 x 1 x 1: along frames alone
        self.up = nn.Linear(hidden, width)
        for x in (self.conv.weight, self.conv.bias, self.up.bias):
            assert x is not None
            nn.init.zeros_(x)

    def forward(self, frames: Tensor) -> Tensor:
        patches = frames[:, :, 1:]
        x = self.down(patches).permute(0, 2, 3, 1)  # (B, P, R, T)
        x = self.conv(x.flatten(0, 1)).unflatten(0, x.shape[:2]).permute(0, 3, 1, 2)  # (B, T, P, R)
        return torch.cat((frames[:, :, :1], patches + self.up(x)), dim=2)


class Bottleneck(nn.Sequential):
    """`W2 gelu(W1 x)`, W2 zero at the start."""

    def __init__(self, width: int, hidden: int):
        super().__init__(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        for x in self[2].parameters():
            nn.init.zeros_(x)


class AimAdapters(nn.Module):
    """The three adapters of a block of AIM."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.time, self.space, self.feed_forward = (Bottleneck(width, hidden) for _ in range(3))


class T2lAdapters(nn.Module):
    """The temporal tokens of a block of T2L and its adapter."""

    def __init__(self, width: int, hidden: int, num_frames: int):
        super().__init__()
        self.tokens = nn.Parameter(torch.zeros(num_frames, width))
        self.space = Bottleneck(width, hidden)

    def temporal_tokens(self, frames: Tensor) -> Tensor:
        """Return the temporal tokens (B, T, 1, D) of frame tokens (B, T, N, D)."""
        return (frames.mean(dim=2) + self.tokens).unsqueeze(2)


_NEW_PARTS = {"lora", "adapter", "frame_positions", "brownian", "messages", "temporal", "feature_prompts"}


def is_adapter(name: str) -> bool:
    """Return whether a parameter belongs to an adapter or another part that CLIP does not have, by its name."""
    return not _NEW_PARTS.isdisjoint(name.split("."))


def add_lora(attentions: Iterable[nn.Module], width: int, config: AdapterConfig) -> None:
    """Give attentions (`tc_clip.attention.Attention`) LoRA."""
    for attention in attentions:
        attention.lora = LowRank(width, config)


def add_text_adapters(attentions: Iterable[nn.Module], width: int, config: AdapterConfig) -> None:
    """Give the attentions of a text encoder its adapters, if it has any."""
    if config.of_side("text") == "lora":
        add_lora(attentions, width, config)
    elif config.of_side("text") == "t2l":
        for attention in attentions:
            attention.adapter = Bottleneck(width, config.adapter_width or width // 4)


def add_block_adapters(blocks: Iterable[nn.Module], width: int, config: AdapterConfig, num_frames: int) -> None:
    """Give vision blocks the adapters of ST-Adapter, AIM or T2L."""
    for block in blocks:
        if config.adapters == "st_adapter":
            block.adapter = SpaceTimeAdapter(width, config.adapter_width or 384)
        elif config.adapters == "t2l":
            block.adapter = T2lAdapters(width, config.adapter_width or width // 4, num_frames)
        else:
            block.adapter = AimAdapters(width, config.adapter_width or width // 4)
