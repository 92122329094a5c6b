"""Parts that join the frames of a video: channel shift, message tokens, and what follows the last vision block.

- channel shift (STDD, AAAI 2025): some channels of a frame's keys and values are those of its neighbours
- message tokens (X-CLIP, Ni et al., ECCV 2022): in every block `m_t = W c_t` of the class tokens,
  `m + attention(norm(m))` over the frames; a message is a further key and value of its frame
- `kronecker`, `causal` (CLAVER, ICLR 2025): blocks on all tokens of a video, a learned vector added to each frame; a
  token attends to itself and to the tokens of all other frames, or of those before (`attention.KroneckerAttention`)
- `frames` (X-CLIP): blocks on the frames' features in the joint space, `c + blocks(c + positions)`
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tc_clip.attention import Attention, FrameAttention, KroneckerAttention
from tc_clip.config import MAX_SIZE, VisionConfig, require_choice
from tc_clip.layers import Modules, ResidualBlock, init_tower

KINDS = ("kronecker", "causal", "frames")
STARTS = ("last", "random")


@dataclass(frozen=True)
class TemporalConfig:
    """What joins the frames besides the attention.

    Args:
        channel_shift: share of a head's channels of keys and values that come from the frame before, and as many from
            the frame after; 0: none.
        message_tokens: whether a frame has a message token in every block.
        temporal: one of `KINDS`, after the last block, or None.
        temporal_blocks: its blocks.
        temporal_start: start weights of `kronecker` and `causal`: those of the "last" vision blocks, or "random".
        text_update_layers: layers in which the texts' features attend to a video's patches (X-CLIP); 0: none.
    """

    channel_shift: float = 0.0
    message_tokens: bool = False
    temporal: str | None = None
    temporal_blocks: int = 4
    temporal_start: str = "last"
    text_update_layers: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.channel_shift <= 0.5:
            raise ValueError(f"channel_shift must be from 0 to 0.5, not {self.channel_shift}")
        if self.temporal is not None:
            require_choice("temporal", self.temporal, KINDS)
        require_choice("temporal_start", self.temporal_start, STARTS)
        if not 1 <= self.temporal_blocks <= MAX_SIZE:
            raise ValueError(f"temporal_blocks must be at least 1, not {self.temporal_blocks}")
        if not 0 <= self.text_update_layers <= MAX_SIZE:
            raise ValueError(f"text_update_layers must be at least 0, not {self.text_update_layers}")


def shift_channels(x: Tensor, share: float) -> Tensor:
    """Take the first channels of the frame before and the next ones of the frame after; the ends keep their own.

    Args:
        x: (B, T, ..., h).
        share: of the channels, for each direction; their number is rounded down.
    """
    count = int(share * x.shape[-1])
    before, after, own = x.split((count, count, x.shape[-1] - 2 * count), dim=-1)
    before = torch.cat((before[:, :1], before[:, :-1]), dim=1)
    after = torch.cat((after[:, 1:], after[:, -1:]), dim=1)
    return torch.cat((before, after, own), dim=-1)


def attend_to_frames(attention: Attention, x: Tensor) -> Tensor:
    """Attend from every frame (..., T, D) to all frames: (..., T, D)."""
    queries, keys, values = attention.queries_keys_values(x)  # (..., A, T, h) each
    return attention.merge_heads(F.scaled_dot_product_attention(queries, keys, values))


class MessageTokens(nn.Module):
    """The message tokens of a block."""

    def __init__(self, width: int, num_heads: int, norm_eps: float):
        super().__init__()
        self.start = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, norm_eps)
        self.attn = Attention(width, num_heads)

    def forward(self, class_tokens: Tensor) -> Tensor:
        """Return the messages (B, T, D) of class tokens (B, T, D)."""
        messages = self.start(class_tokens)
        return messages + attend_to_frames(self.attn, self.norm(messages))


class TemporalBlocks(nn.Module):
    """Blocks on all tokens of a video, with a learned vector a frame.

    Args:
        blocks: vision blocks with `KroneckerAttention`.
        num_frames, width: of the vectors, which start at 0.
        start: see `TemporalConfig`.
    """

    def __init__(self, blocks: Modules[ResidualBlock], num_frames: int, width: int, start: str):
        super().__init__()
        self.blocks = blocks
        self.start = start
        self.positions = nn.Parameter(torch.zeros(num_frames, 1, width))
        init_tower(blocks, width)

    def forward(self, frames: Tensor, only_class: bool, recompute: bool) -> Tensor:
        """Run on frame tokens (B, T, N, D): the same, or class tokens (B, T, 1, D)."""
        frames = frames + self.positions
        for number, block in enumerate(self.blocks, start=1):
            last = number == len(self.blocks)
            frames, _, _ = block(frames, None, None, only_class and last, False, recompute)
        return frames

    @torch.no_grad()
    def init_from(self, blocks: Modules[ResidualBlock]) -> None:
        """Copy the last of the vision blocks, if that is the start."""
        if self.start != "last":
            return
        for own, block in zip(self.blocks, blocks[-len(self.blocks) :], strict=True):
            state = block.state_dict()
            own.load_state_dict({name: state[name] for name in own.state_dict()})


class _FrameBlock(ResidualBlock):
    def forward(self, x: Tensor) -> Tensor:
        return self.feed_forward(x + attend_to_frames(self.attn, self.ln_1(x)))


class FrameTransformer(nn.Module):
    """`c + blocks(c + positions)` of the frames' features (B, T, E); positions start at 0."""

    def __init__(self, config: VisionConfig, num_blocks: int, num_frames: int):
        super().__init__()
        width, heads = config.embed_dim, config.embed_dim // config.head_width
        if width % config.head_width:
            raise ValueError(f"temporal=frames needs features of whole heads: {width} of {config.head_width}")
        activation = "gelu" if config.activation == "swiglu" else config.activation
        self.positions = nn.Parameter(torch.zeros(num_frames, width))
        self.blocks: Modules[_FrameBlock] = Modules(
            _FrameBlock(width, heads, activation, norm_eps=config.norm_eps) for _ in range(num_blocks)
        )
        init_tower(self.blocks, width)

    def forward(self, features: Tensor) -> Tensor:
        x = features + self.positions
        for block in self.blocks:
            x = block(x)
        return features + x


def check_parts(
    parts: TemporalConfig, config: VisionConfig, attention: type[FrameAttention], adapters: str | None
) -> None:
    """Raise ValueError if parts do not fit each other, the attention or the weights."""
    if (parts.message_tokens or adapters == "t2l") and attention.sees_patches:
        raise ValueError(
            f"message_tokens and adapters=t2l do not work with {attention.name} attention, which would see those of "
            "other frames too: use vifi_clip, cross_frame_clip or tc_clip"
        )
    if parts.message_tokens and adapters == "t2l":
        raise ValueError("message_tokens=true and adapters=t2l both give a frame a further key: choose one")
    if parts.message_tokens and not config.class_token:
        raise ValueError("message_tokens needs weights with class tokens")


def build_temporal(
    parts: TemporalConfig,
    config: VisionConfig,
    num_frames: int,
    make_block: Callable[[Callable[[int, int], FrameAttention]], ResidualBlock],
    blocks: Modules[ResidualBlock],
) -> TemporalBlocks | FrameTransformer | None:
    """Return what follows the last of the vision blocks, or None.

    Raises:
        ValueError: if more blocks are to be copied than there are.
    """
    if parts.temporal is None:
        return None
    if parts.temporal == "frames":
        return FrameTransformer(config, parts.temporal_blocks, num_frames)
    if parts.temporal_start == "last" and parts.temporal_blocks > len(blocks):
        raise ValueError(f"temporal_blocks={parts.temporal_blocks}: there are only {len(blocks)} blocks to copy")
    attention = partial(KroneckerAttention, is_causal=parts.temporal == "causal")
    own: Modules[ResidualBlock] = Modules(make_block(attention) for _ in range(parts.temporal_blocks))
    temporal = TemporalBlocks(own, num_frames, config.width, parts.temporal_start)
    temporal.init_from(blocks)
    return temporal
