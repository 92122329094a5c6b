"""Attention: the weights that every kind has, and one class for each kind of attention of the vision encoder.

The kinds are the comparison of the paper. They differ in the extra keys that the tokens of a frame attend to, besides
those of their own frame:

| class | extra keys |
|---|---|
| `FrameAttention` | none: frame-wise CLIP |
| `ContextAttention` | the context tokens of the block before: TC-CLIP (paper, section 3.2) |
| `CrossFrameAttention` | the class tokens of the other frames |
| `WindowAttention` | the patches of neighbouring frames, as in Open-VCLIP |
| `JointAttention` | all tokens of the other frames |
| `KroneckerAttention` | all tokens of the other frames, but of its own frame a token sees itself alone: CLAVER |

A kind overrides one method: `attend`, or `visible_tokens` if its extra keys are tokens of other frames. `tc_clip.ops`
computes all of them.
"""

from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tc_clip import ops
from tc_clip.adapters import PROJECTIONS, Bottleneck, LowRank


class Linear(nn.Linear):
    """A linear layer in the form that is fastest on its device."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.linear(x, self.weight, self.bias)


class Attention(nn.Module):
    """The weights of multi-head attention, and its projections.

    One weight holds the projections of queries, keys and values one above the other, as in CLIP.
    """

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.width = width
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = Linear(width, width)
        self.inner_norm: nn.LayerNorm | None = None  # of the heads' outputs (EVA02)
        self.lora: LowRank | None = None
        self.adapter: Bottleneck | None = None  # of the output (T2L's texts)
        nn.init.normal_(self.in_proj_weight, std=width**-0.5)

    def queries(self, x: Tensor) -> Tensor:
        """Project tokens (..., n, D) to queries (..., A, n, D / A)."""
        return self.split_heads(self._project(x, 0, 1))

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Project tokens (..., n, D) to keys and values, each (..., A, n, D / A)."""
        keys, values = self.project_keys_values(x).split(self.width, dim=-1)
        return self.split_heads(keys), self.split_heads(values)

    def queries_keys_values(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Project tokens (..., n, D) to queries, keys and values, each (..., A, n, D / A), in one multiplication."""
        queries, keys, values = self.project(x).split(self.width, dim=-1)
        return self.split_heads(queries), self.split_heads(keys), self.split_heads(values)

    def project(self, x: Tensor) -> Tensor:
        """Project tokens (..., n, D) to queries, keys and values side by side: (..., n, 3 * D)."""
        return self._project(x, 0, 3)

    def project_keys_values(self, x: Tensor) -> Tensor:
        """Project tokens (..., n, D) to keys and values side by side: (..., n, 2 * D)."""
        return self._project(x, 1, 3)

    @torch.no_grad()
    def merge_lora(self) -> None:
        """Write LoRA's products into the weights, and remove it."""
        if self.lora is None:
            return
        rows = dict(zip(PROJECTIONS, (*self.in_proj_weight.chunk(3), self.out_proj.weight), strict=True))
        for name in self.lora.down:
            rows[name] += self.lora.product(name)
        self.lora = None

    def split_heads(self, x: Tensor) -> Tensor:
        """Split channels (..., n, D) by head: (..., A, n, D / A)."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(-3, -2)

    @staticmethod
    def join_heads(x: Tensor) -> Tensor:
        """Put the heads' outputs (..., A, n, D / A) side by side: (..., n, D)."""
        return x.transpose(-3, -2).flatten(-2)

    def merge_heads(self, x: Tensor) -> Tensor:
        """Put the heads' outputs (..., A, n, D / A) side by side and project them: (..., n, D)."""
        joined = self.join_heads(x)
        return self.project_out(joined if self.inner_norm is None else self.inner_norm(joined))

    def project_out(self, x: Tensor) -> Tensor:
        """Project the heads' outputs, side by side (..., D), to the residual stream."""
        out = self.out_proj(x)
        out = out if self.lora is None else self.lora(x, out, ("out",))
        return out if self.adapter is None else out + self.adapter(out)

    def _project(self, x: Tensor, first: int, stop: int) -> Tensor:
        rows = slice(first * self.width, stop * self.width)
        out = ops.linear(x, self.in_proj_weight[rows], self.in_proj_bias[rows])
        return out if self.lora is None else self.lora(x, out, PROJECTIONS[first:stop])


class FrameAttention(Attention):
    """Frame-wise attention, and the base class of the other kinds: the tokens of a frame attend to their own frame.

    Args:
        width, num_heads: sizes.
        local_global_bias: whether logits of extra keys get a learned bias; without effect if there are none.

    Attributes:
        name: of the kind, in messages.
        has_extra_keys: whether there are keys beyond the frame's own.
        uses_context: whether the extra keys are context tokens, which the block before must produce.
        uses_class_tokens: whether the extra keys are class tokens, which the encoder must have.
        sees_patches: whether the extra keys are patches of other frames.
        first_patch: number of the first patch among a frame's tokens.
    """

    name: ClassVar[str] = "frame_wise"
    has_extra_keys: ClassVar[bool] = False
    uses_context: ClassVar[bool] = False
    uses_class_tokens: ClassVar[bool] = False
    sees_patches: ClassVar[bool] = False
    first_patch: int = 1

    def __init__(self, width: int, num_heads: int, local_global_bias: bool = False):
        super().__init__(width, num_heads)
        self.local_global_bias: nn.Parameter | None = None  # (A, 1, 2): of own and of extra keys
        if local_global_bias and self.has_extra_keys:
            self.local_global_bias = nn.Parameter(torch.empty(num_heads, 1, 2))
            nn.init.trunc_normal_(self.local_global_bias, std=0.02)

    def attend(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        context: tuple[Tensor, Tensor] | None,
        with_class_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend from the tokens of each frame to what this kind lets them attend to.

        Args:
            queries: (B, T, A, n, h), some or all tokens of each frame.
            keys, values: (B, T, A, N, h), all tokens of each frame.
            context: keys and values of the context tokens, (B, A, K, h) each, for a kind that uses them, else None.
            with_class_weights: whether to return the weights of each frame's first query, its class token.

        Returns:
            (B, T, A, n, h), and the class tokens' weights of the tokens of their frames, averaged over the heads,
            (B, T, N), or None.
        """
        return ops.attention(queries, keys, values, with_class_weights=with_class_weights)

    def bias_of_extra_keys(self) -> Tensor | None:
        """Return what logits of extra keys get more than those of own keys, (A,): only this changes a softmax."""
        if self.local_global_bias is None:
            return None
        return self.local_global_bias[:, 0, 1] - self.local_global_bias[:, 0, 0]


class ContextAttention(FrameAttention):
    """Attention also to the context tokens that the block before made of the whole video: TC-CLIP."""

    name = "context_tokens"
    has_extra_keys = True
    uses_context = True

    def attend(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        context: tuple[Tensor, Tensor] | None,
        with_class_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """See `FrameAttention.attend`."""
        return ops.attention(queries, keys, values, context, self.bias_of_extra_keys(), with_class_weights)


class OtherFramesAttention(FrameAttention):
    """Base class of attention also to some tokens of other frames; `visible_tokens` chooses them."""

    has_extra_keys = True

    def __init__(self, width: int, num_heads: int, local_global_bias: bool = False):
        super().__init__(width, num_heads, local_global_bias)
        self._groups: dict[tuple[int, int, torch.device], list[_Group]] = {}

    def visible_tokens(self, frame: int, other: int) -> slice | None:
        """Return the tokens of the frame `other` that those of `frame` attend to (0 is its class token), or None."""
        raise NotImplementedError

    def attend(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        context: tuple[Tensor, Tensor] | None,
        with_class_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """See `FrameAttention.attend`."""
        all_keys, all_values = (x.transpose(2, 3).flatten(1, 2) for x in (keys, values))  # (B, T * N, A, h)
        attended, weights = [], []
        groups = self._frames_by_extra_keys(keys.shape[1], keys.shape[3], keys.device)
        for frames, tokens in groups:
            extra = None
            if tokens.shape[1]:
                extra = all_keys[:, tokens].transpose(2, 3), all_values[:, tokens].transpose(2, 3)  # (B, g, A, F, h)
            own = queries[:, frames], keys[:, frames], values[:, frames]
            out, class_weights = ops.attention(*own, extra, self.bias_of_extra_keys(), with_class_weights)
            attended.append(out)  # (B, g, A, n, h)
            if class_weights is not None:
                weights.append(class_weights)  # (B, g, N)
        if len(groups) > 1:
            order = torch.cat([frames for frames, _ in groups]).argsort()
            attended, weights = ([torch.cat(x, dim=1)[:, order]] if x else [] for x in (attended, weights))
        return attended[0], weights[0] if weights else None

    def _frames_by_extra_keys(self, num_frames: int, num_tokens: int, device: torch.device) -> list["_Group"]:
        """Group the frames by their number of extra keys: within a group no mask is needed, so kernels stay fused."""
        key = num_frames, num_tokens, device
        if key in self._groups:
            return self._groups[key]
        by_count: dict[int, list[tuple[int, list[int]]]] = {}
        for frame in range(num_frames):
            tokens: list[int] = []
            for other in range(num_frames):
                visible = None if other == frame else self.visible_tokens(frame, other)
                if visible is not None:
                    tokens += range(other * num_tokens, (other + 1) * num_tokens)[visible]
            by_count.setdefault(len(tokens), []).append((frame, tokens))
        groups = [
            _Group(
                torch.tensor([frame for frame, _ in members], device=device),
                torch.tensor([tokens for _, tokens in members], dtype=torch.long, device=device),
            )
            for members in by_count.values()
        ]
        if not torch.compiler.is_compiling():  # a traced program's tensors are not to be kept
            self._groups[key] = groups
        return groups


class _Group(NamedTuple):
    """Frames (g,) with equally many extra keys, and the tokens (g, F) of these keys, counted over all frames."""

    frames: Tensor
    tokens: Tensor


class CrossFrameAttention(OtherFramesAttention):
    """Attention also to the class tokens of all other frames."""

    name = "cross_frame"
    uses_class_tokens = True

    def visible_tokens(self, frame: int, other: int) -> slice | None:
        """See `OtherFramesAttention.visible_tokens`."""
        return slice(0, 1)


class WindowAttention(OtherFramesAttention):
    """Attention also to the patches of the frames up to `window` before and after, those that exist."""

    name = "window"
    sees_patches = True

    def __init__(self, width: int, num_heads: int, local_global_bias: bool = False, window: int = 1):
        super().__init__(width, num_heads, local_global_bias)
        if window < 1:
            raise ValueError(f"window must be at least 1 frame, not {window} (vifi_clip attends to one frame alone)")
        self.window = window

    def visible_tokens(self, frame: int, other: int) -> slice | None:
        """See `OtherFramesAttention.visible_tokens`."""
        return slice(self.first_patch, None) if abs(frame - other) <= self.window else None


class JointAttention(FrameAttention):
    """Attention also to all tokens of all other frames: joint space-time attention."""

    name = "joint"
    has_extra_keys = True
    sees_patches = True

    def attend(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        context: tuple[Tensor, Tensor] | None,
        with_class_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """See `FrameAttention.attend`."""
        return ops.joint_attention(queries, keys, values, self.bias_of_extra_keys(), with_class_weights)


class KroneckerAttention(FrameAttention):
    """Attention to all tokens of the other frames and to the token itself (CLAVER, ICLR 2025); no class weights.

    Args:
        is_causal: whether frames that follow are hidden.
    """

    name = "kronecker"
    has_extra_keys = True
    sees_patches = True

    def __init__(self, width: int, num_heads: int, is_causal: bool = False):
        super().__init__(width, num_heads)
        self.is_causal = is_causal

    def attend(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        context: tuple[Tensor, Tensor] | None,
        with_class_weights: bool = False,
    ) -> tuple[Tensor, None]:
        """See `FrameAttention.attend`; the queries are the first tokens of each frame, one or more."""
        T, N, n = keys.shape[1], keys.shape[3], queries.shape[3]
        queries, keys, values = (x.transpose(1, 2).flatten(2, 3) for x in (queries, keys, values))  # (B, A, T * N, h)
        visible = self.visible(T, N, n, keys.device)
        attended = F.scaled_dot_product_attention(queries, keys, values, attn_mask=visible)  # (B, A, T * n, h)
        return attended.unflatten(2, (T, n)).transpose(1, 2), None

    def visible(self, num_frames: int, num_tokens: int, num_queries: int, device: torch.device) -> Tensor:
        """Return which of the T * N tokens the first n tokens of each frame attend to: (T * n, T * N)."""
        frames = torch.ones(num_frames, num_frames, dtype=torch.bool, device=device)
        frames = frames.tril(-1) if self.is_causal else ~torch.eye(num_frames, dtype=torch.bool, device=device)
        own = torch.eye(num_frames, dtype=torch.bool, device=device)[:, None, :, None]
        itself = torch.eye(num_queries, num_tokens, dtype=torch.bool, device=device)[None, :, None]
        return (frames[:, None, :, None] | (own & itself)).flatten(2, 3).flatten(0, 1)
