"""CLIP's vision transformer over the frames of a video, with or without temporal contextualization (paper, 3.2).

Frame tokens (B, T, N, D) and context tokens (B, K, D) are two tensors. A block that contextualizes attends to the
context tokens that the block before it produced, and produces its own for the next one.
"""

from collections.abc import Collection
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tc_clip.checkpointing import recompute_in_backward
from tc_clip.config import ContextConfig, VisionConfig
from tc_clip.kernels import attend
from tc_clip.layers import Attention, ResidualBlock, init_tower
from tc_clip.temporal_context import (
    BlockTrace,
    class_token_attention,
    gather_patches,
    select_seeds,
    summarise_seeds,
)


class VisionOutput(NamedTuple):
    """What the vision encoder says of a batch of videos, in the joint space.

    Attributes:
        class_tokens: (B, T, E), the last block's.
        context_tokens: block number (from 1) -> (B, K, E), of the blocks asked for.
        traces: one `BlockTrace` a block where asked for, else empty.
    """

    class_tokens: Tensor
    context_tokens: dict[int, Tensor]
    traces: tuple[BlockTrace, ...]

    @property
    def video_features(self) -> Tensor:
        """The mean of the frames' class tokens, L2-normalised after the mean: (B, E)."""
        return F.normalize(self.class_tokens.mean(dim=1), dim=-1)


class FrameAttention(Attention):
    """Attention of a frame's tokens to the tokens of their frame and to context tokens shared by all frames."""

    def __init__(self, width: int, num_heads: int, local_global_bias: bool):
        super().__init__(width, num_heads)
        self.local_global_bias = nn.Parameter(torch.empty(num_heads, 1, 2)) if local_global_bias else None
        if local_global_bias:
            nn.init.trunc_normal_(self.local_global_bias, std=0.02)

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, context: tuple[Tensor, Tensor] | None) -> Tensor:
        """Attend from (B, T, A, n, h) to own keys and values (B, T, A, N, h) and to the context's (B, A, K, h)."""
        bias = None
        if context is not None and self.local_global_bias is not None:
            # Only the difference of the two entries changes a softmax.
            bias = self.local_global_bias[:, 0, 1] - self.local_global_bias[:, 0, 0]  # (A,)
        return attend(queries, keys, values, context, bias)


class VisionBlock(ResidualBlock):
    """One block: attention of the frame tokens, choice and summary of seeds, feed-forward of frames and context."""

    attn: FrameAttention

    def __init__(self, width: int, num_heads: int, local_global_bias: bool):
        super().__init__(width, num_heads)
        self.attn = FrameAttention(width, num_heads, local_global_bias)

    def forward(
        self,
        frames: Tensor,
        context: Tensor | None,
        summary: ContextConfig | None,
        only_class: bool,
        with_trace: bool,
    ) -> tuple[Tensor, Tensor | None, BlockTrace | None]:
        """Run the block.

        Args:
            frames: (B, T, N, D).
            context: (B, K, D) of the block before, or None where this block looks at its own frame only.
            summary: how to make this block's context tokens, or None for none.
            only_class: the last block: the patches' outputs are needed by nobody, so only class tokens go on.
            with_trace: whether to return what was decided.

        Returns:
            Frame tokens (B, T, N or 1, D), context tokens (B, K, D) or None, and the trace or None.
        """
        normed = self.ln_1(frames)
        context_keys_values = None if context is None else self.attn.keys_values(self.ln_1(context))
        if only_class:
            keys, values = self.attn.keys_values(normed)  # (B, T, A, N, h)
            queries = self.attn.queries(normed[:, :, :1])  # (B, T, A, 1, h)
        else:
            queries, keys, values = self.attn.queries_keys_values(normed)

        class_attention = seeds = None
        if summary is not None or with_trace:
            context_keys = None if context_keys_values is None else context_keys_values[0]
            class_attention = class_token_attention(queries, keys, context_keys, self.attn.local_global_bias)
        if summary is not None:
            seeds = select_seeds(class_attention, summary.num_seeds(frames.shape[2] - 1))  # (B, T, S)

        if only_class:
            kept = frames[:, :, :1]
            if seeds is not None:
                queries = torch.cat((queries, self.attn.queries(gather_patches(normed, seeds))), dim=3)
                kept = torch.cat((kept, gather_patches(frames, seeds)), dim=2)  # (B, T, 1 + S, D)
            frames = kept
        frames = frames + self.attn.merge_heads(self.attn.attend(queries, keys, values, context_keys_values))

        context = assignment = None
        if seeds is not None:
            seed_tokens = frames[:, :, 1:] if only_class else gather_patches(frames, seeds)  # (B, T, S, D)
            context, assignment = summarise_seeds(seed_tokens, summary)
        if only_class:
            frames = frames[:, :, :1]
        trace = BlockTrace(class_attention, seeds, assignment, context) if with_trace else None
        frames, context = self._feed_forward_together(frames, context)
        return frames, context, trace

    def _feed_forward_together(self, frames: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if context is None:
            return self.feed_forward(frames), None
        B, T, N, D = frames.shape
        tokens = torch.cat((frames.flatten(1, 2), context), dim=1)  # (B, T * N + K, D)
        tokens = self.feed_forward(tokens)
        return tokens[:, : T * N].unflatten(1, (T, N)), tokens[:, T * N :]


class VisionEncoder(nn.Module):
    """A vision transformer that reads videos.

    Args:
        config: sizes.
        context: how context tokens are made, or None for a frame-wise encoder.
        contextual_blocks: the blocks (from 0, never the first) that attend to the context tokens of the one before.
        positional_frames: None for one table of positions for all frames; else the frames of a joint table.
    """

    def __init__(
        self,
        config: VisionConfig,
        context: ContextConfig | None = None,
        contextual_blocks: Collection[int] = (),
        positional_frames: int | None = None,
    ):
        super().__init__()
        if contextual_blocks and (context is None or min(contextual_blocks) < 1):
            raise ValueError("contextual blocks need a context configuration and a block before them")
        self.config = config
        self.context = context
        self.checkpointing = False  # compute blocks again in the backward pass: a third more time, little memory
        self.contextual_blocks = frozenset(contextual_blocks)
        D, N = config.width, 1 + config.num_patches
        self.patch_embedding = nn.Conv2d(3, D, config.patch_size, stride=config.patch_size, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(D) * D**-0.5)
        # Five times CLIP's own start, so that a model from random weights sees places as clearly as colours.
        positions = torch.randn(N, D) * 5 * D**-0.5
        if positional_frames is not None:
            positions = positions.repeat(positional_frames, 1, 1)
        self.positional_embedding = nn.Parameter(positions)
        self.ln_pre = nn.LayerNorm(D)
        self.blocks = nn.ModuleList(
            VisionBlock(
                D, config.num_heads, i in self.contextual_blocks and context is not None and context.local_global_bias
            )
            for i in range(config.depth)
        )
        self.ln_post = nn.LayerNorm(D)
        self.projection = nn.Parameter(torch.randn(D, config.embed_dim) * D**-0.5)
        init_tower(self.blocks, D)

    def forward(self, video: Tensor, context_blocks: Collection[int] = (), with_traces: bool = False) -> VisionOutput:
        """Encode videos.

        Args:
            video: (B, T, 3, H, W), normalised.
            context_blocks: numbers (from 1) of the blocks whose context tokens are wanted.
            with_traces: whether to return what each block decided.

        Raises:
            ValueError: where the video does not fit the encoder.
        """
        frames = self.embed(video)  # (B, T, N, D)
        context = None
        wanted: dict[int, Tensor] = {}
        traces = []
        recompute = self.checkpointing and torch.is_grad_enabled()
        for i, block in enumerate(self.blocks):
            produces = i + 1 in self.contextual_blocks or i + 1 in context_blocks
            run = partial(recompute_in_backward, block) if recompute else block
            frames, context, trace = run(
                frames,
                context if i in self.contextual_blocks else None,
                self.context if produces else None,
                only_class=i == len(self.blocks) - 1,
                with_trace=with_traces,
            )
            if i + 1 in context_blocks:
                wanted[i + 1] = self.project(context)  # (B, K, E)
            if with_traces:
                traces.append(trace)
        return VisionOutput(self.project(frames[:, :, 0]), wanted, tuple(traces))

    def embed(self, video: Tensor) -> Tensor:
        """Turn videos (B, T, 3, H, W) into the first block's frame tokens (B, T, N, D)."""
        self._check(video)
        B, T, _, H, W = video.shape
        patches = self.patch_embedding(video.flatten(0, 1))  # (B * T, D, H / p, W / p)
        patches = patches.flatten(2).transpose(1, 2).unflatten(0, (B, T))  # (B, T, P, D)
        class_tokens = self.class_embedding.to(patches.dtype).expand(B, T, 1, -1)
        tokens = torch.cat((class_tokens, patches), dim=2) + self.positional_embedding  # (B, T, N, D)
        return self.ln_pre(tokens)

    def project(self, tokens: Tensor) -> Tensor:
        """Take tokens (..., D) to the joint space (..., E)."""
        return self.ln_post(tokens) @ self.projection

    def _check(self, video: Tensor) -> None:
        side = self.config.image_size
        if video.dim() != 5 or video.shape[2:] != (3, side, side):
            raise ValueError(f"the model reads videos of shape (B, T, 3, {side}, {side}), not {tuple(video.shape)}")
        positions = self.positional_embedding
        if positions.dim() == 3 and positions.shape[0] != video.shape[1]:
            raise ValueError(
                f"the model has joint positions for {positions.shape[0]} frames, the video has {video.shape[1]}: "
                "create the model with num_frames of the video"
            )
