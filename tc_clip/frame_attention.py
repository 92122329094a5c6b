"""What the tokens of a frame attend to in a block: their own frame, and what a named part adds to it.

The parts are the vision side of the comparison: frame-wise CLIP, temporal contextualization (paper, section 3.2),
cross-frame attention, temporal window expansion (as in Open-VCLIP), joint space-time attention. They hold no weights
and share all of a block's: a part only says which further keys and values a frame's tokens see.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tc_clip.layers import Attention
from tc_clip.ops.attention import attend, attend_and_rank, attend_with_bias, attend_with_channels
from tc_clip.temporal_context import class_attention_among_frames, class_token_attention


class FrameAttention(Attention):
    """Attention of a frame's tokens to the tokens of their frame and to further ones, with a learned bias if wanted."""

    def __init__(self, width: int, num_heads: int, local_global_bias: bool):
        super().__init__(width, num_heads)
        self.local_global_bias = nn.Parameter(torch.empty(num_heads, 1, 2)) if local_global_bias else None
        if local_global_bias:
            nn.init.trunc_normal_(self.local_global_bias, std=0.02)

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, context: tuple[Tensor, Tensor] | None) -> Tensor:
        """Attend from (B, T, A, n, h) to own keys and values (B, T, A, N, h) and to the context's (B, A, K, h)."""
        return attend(queries, keys, values, context, self._bias_of(context))

    def attend_and_rank(
        self, queries: Tensor, keys: Tensor, values: Tensor, context: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor | None]:
        """Attend likewise, and return also the class tokens' weights over their patches (B, T, P), if known."""
        attended, weights = attend_and_rank(queries, keys, values, context, self._bias_of(context))
        return attended, None if weights is None else weights[..., 1:]

    def _bias_of(self, context: tuple[Tensor, Tensor] | None) -> Tensor | None:
        if context is None or self.local_global_bias is None:
            return None
        # Only the difference of the two entries changes a softmax.
        return self.local_global_bias[:, 0, 1] - self.local_global_bias[:, 0, 0]  # (A,)

    def attend_further(self, queries: Tensor, keys: Tensor, values: Tensor, further: tuple[Tensor, Tensor]) -> Tensor:
        """Attend from (B, T, A, n, h) to own keys and values (B, T, A, N, h) and further ones (B, T, A, F, h)."""
        B, T, A, N, h = keys.shape
        keys, values = (torch.cat(pair, dim=3) for pair in zip((keys, values), further, strict=True))
        queries, keys, values = (x.flatten(0, 1) for x in (queries, keys, values))  # (B * T, A, n or N + F, h)
        if self.local_global_bias is None:
            attended = F.scaled_dot_product_attention(queries, keys, values)
        else:
            attended = attend_with_bias(queries, keys, values, self._bias_of_keys(N, keys))
        return attended.unflatten(0, (B, T))  # (B, T, A, n, h)

    def _bias_of_keys(self, num_own: int, keys: Tensor) -> Tensor:
        """Return the bias of each key, (A, N + F). Only the difference of the two entries changes a softmax."""
        difference = self.bias_difference(keys)
        num_further = keys.shape[2] - num_own
        return torch.cat((difference.new_zeros(self.num_heads, num_own), difference.expand(-1, num_further)), dim=1)

    def bias_difference(self, like: Tensor) -> Tensor:
        """Return what further keys get more than own ones, (A, 1), in the type of `like`."""
        return (self.local_global_bias[..., 1] - self.local_global_bias[..., 0]).to(like.dtype)


@dataclass(frozen=True)
class VisionAttention:
    """A frame's tokens see their own frame alone: frame-wise CLIP, and the base of the other parts.

    Attributes:
        name: the part's name in messages.
        looks_further: whether there are keys beyond the frame's own, which a local-global bias can tell apart.
        uses_context: whether the further keys are context tokens, which the block before must make.
    """

    name: ClassVar[str] = "frame_wise"
    looks_further: ClassVar[bool] = False
    uses_context: ClassVar[bool] = False

    def attend(
        self,
        attention: FrameAttention,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        context: tuple[Tensor, Tensor] | None,
    ) -> Tensor:
        """Attend from (B, T, A, n, h) to keys and values (B, T, A, N, h) and what else is seen: (B, T, A, n, h).

        Args:
            attention: the block's attention.
            queries: some or all tokens of each frame.
            keys: all tokens of each frame.
            values: likewise.
            context: keys and values of the context tokens, (B, A, K, h) each, for a part that uses them, else None.
        """
        return attention.attend(queries, keys, values, context)

    def attend_and_rank(
        self,
        attention: FrameAttention,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        context: tuple[Tensor, Tensor] | None,
    ) -> tuple[Tensor, Tensor]:
        """Return what `attend` and what `class_attention` return; some kernels know the second from the first."""
        attended, weights = attention.attend_and_rank(queries, keys, values, context)
        if weights is None:
            weights = self.class_attention(attention, queries, keys, context)
        return attended, weights

    def class_attention(
        self, attention: FrameAttention, queries: Tensor, keys: Tensor, context: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        """Return the class tokens' softmax weights over their own patches, mean over the heads: (B, T, P)."""
        context_keys = None if context is None else context[0]
        return class_token_attention(queries, keys, context_keys, attention.local_global_bias)


@dataclass(frozen=True)
class ContextTokens(VisionAttention):
    """A frame's tokens see the context tokens that the block before made of the whole video: TC-CLIP."""

    name: ClassVar[str] = "context_tokens"
    looks_further: ClassVar[bool] = True
    uses_context: ClassVar[bool] = True


@dataclass(frozen=True)
class OtherFrames(VisionAttention):
    """A frame's tokens see some tokens of other frames: `sees` says which, all else follows from it."""

    looks_further: ClassVar[bool] = True

    def sees(self, frame: int, other: int) -> slice | None:
        """Return which tokens of the frame `other` the tokens of `frame` see (0 is its class token), or None."""
        raise NotImplementedError

    def attend(self, attention, queries, keys, values, context):  # noqa: D102
        T, N = keys.shape[1], keys.shape[3]
        parts, order = [], []
        flat = [x.transpose(2, 3).flatten(1, 2) for x in (keys, values)]  # (B, T * N, A, h) each
        for group in _groups(self, T, N, keys.device):
            own = (x[:, group.frames] for x in (queries, keys, values))
            if group.tokens.shape[1]:
                further = tuple(x[:, group.tokens].transpose(2, 3) for x in flat)  # (B, g, A, F, h) each
                parts.append(attention.attend_further(*own, further))  # (B, g, A, n, h)
            else:
                parts.append(attention.attend(*own, None))
            order.append(group.frames)
        if len(parts) == 1:
            return parts[0]
        return torch.cat(parts, dim=1)[:, torch.cat(order).argsort()]  # (B, T, A, n, h)

    def attend_and_rank(self, attention, queries, keys, values, context):  # noqa: D102
        attended = self.attend(attention, queries, keys, values, context)
        return attended, self.class_attention(attention, queries, keys, context)

    def class_attention(self, attention, queries, keys, context):  # noqa: D102
        visible = _visibility(self, keys.shape[1], keys.shape[3], keys.device)
        return class_attention_among_frames(queries, keys, visible, attention.local_global_bias)


@dataclass(frozen=True)
class OtherClassTokens(OtherFrames):
    """Cross-frame attention: the class tokens of all other frames."""

    name: ClassVar[str] = "cross_frame"

    def sees(self, frame: int, other: int) -> slice | None:  # noqa: D102
        return slice(0, 1)


@dataclass(frozen=True)
class NeighbourPatches(OtherFrames):
    """Temporal window expansion: the patches of the frames up to `window` before and after, those that exist."""

    name: ClassVar[str] = "window"
    window: int = 1

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ValueError(f"window must be at least 1 frame, not {self.window} (vifi_clip sees one frame alone)")

    def sees(self, frame: int, other: int) -> slice | None:  # noqa: D102
        return slice(1, None) if abs(frame - other) <= self.window else None


@dataclass(frozen=True)
class AllTokens(OtherFrames):
    """Joint space-time attention: all tokens of all other frames."""

    name: ClassVar[str] = "joint"

    def sees(self, frame: int, other: int) -> slice | None:  # noqa: D102
        return slice(None)

    def attend(self, attention, queries, keys, values, context):
        """See `VisionAttention.attend`. All tokens are one long sequence, so no key is copied."""
        T, n, N = keys.shape[1], queries.shape[3], keys.shape[3]
        queries, keys, values = (x.transpose(1, 2).flatten(2, 3) for x in (queries, keys, values))  # (B, A, T * n, h)
        if attention.local_global_bias is None:
            attended = F.scaled_dot_product_attention(queries, keys, values)
        else:
            # One channel a frame: its product is 1 between tokens of one frame, and 0 between frames.
            B, A = keys.shape[:2]
            frame = torch.eye(T, dtype=keys.dtype, device=keys.device)
            own = -attention.bias_difference(keys).unsqueeze(-1) / keys.shape[-1] ** -0.5  # (A, 1, 1)
            asked = frame.repeat_interleave(n, dim=0).expand(B, A, -1, -1)  # (B, A, T * n, T)
            answered = (frame.repeat_interleave(N, dim=0) * own).expand(B, -1, -1, -1)  # (B, A, T * N, T)
            attended = attend_with_channels(queries, keys, values, asked, answered)
        return attended.unflatten(2, (T, n)).transpose(1, 2)  # (B, T, A, n, h)


class _Group(NamedTuple):
    """Frames (g,) that see equally many further tokens, and which: (g, F), counted over all frames' tokens."""

    frames: Tensor
    tokens: Tensor


@lru_cache(maxsize=64)
def _groups(part: OtherFrames, num_frames: int, num_tokens: int, device: torch.device) -> tuple[_Group, ...]:
    """Return the frames by the number of further tokens: within a group no mask is needed, so kernels stay fused."""
    of_count: dict[int, list[tuple[int, list[int]]]] = {}
    for frame in range(num_frames):
        tokens = [token for _, seen in _seen(part, frame, num_frames, num_tokens) for token in seen]
        of_count.setdefault(len(tokens), []).append((frame, tokens))
    return tuple(
        _Group(
            torch.tensor([frame for frame, _ in members], device=device),
            torch.tensor([tokens for _, tokens in members], dtype=torch.long, device=device),
        )
        for members in of_count.values()
    )


@lru_cache(maxsize=64)
def _visibility(part: OtherFrames, num_frames: int, num_tokens: int, device: torch.device) -> Tensor:
    """Return whether the tokens of each frame see each token of each frame, their own included: (T, T, N) bool."""
    visible = torch.zeros(num_frames, num_frames, num_tokens, dtype=torch.bool)
    for frame in range(num_frames):
        visible[frame, frame] = True
        for other, seen in _seen(part, frame, num_frames, num_tokens):
            visible[frame, other, [token - other * num_tokens for token in seen]] = True
    return visible.to(device)


def _seen(part: OtherFrames, frame: int, num_frames: int, num_tokens: int) -> list[tuple[int, range]]:
    """Return the other frames that a frame sees tokens of, with the tokens, counted over all frames'."""
    found = []
    for other in range(num_frames):
        seen = None if other == frame else part.sees(frame, other)
        if seen is not None:
            found.append((other, range(other * num_tokens, (other + 1) * num_tokens)[seen]))
    return found
