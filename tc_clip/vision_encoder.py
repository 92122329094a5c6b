"""CLIP's vision transformer over the frames of a video; `frame_attention` says what a frame sees beyond itself.

Frame tokens (B, T, N, D) and context tokens (B, K, D) are two tensors. A block that contextualizes (paper, 3.2) attends
to the context tokens that the block before it produced, and produces its own for the next one.
"""

from collections.abc import Collection
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tc_clip.checkpointing import recompute_in_backward
from tc_clip.config import ContextConfig, VisionConfig, require_choice
from tc_clip.frame_attention import FrameAttention, VisionAttention
from tc_clip.layers import ResidualBlock, init_tower
from tc_clip.seed_selection import SEED_SELECTORS
from tc_clip.summarisation import SUMMARISERS
from tc_clip.temporal_context import BlockTrace, gather_patches, select_seeds, summarise_seeds


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


class VisionBlock(ResidualBlock):
    """One block: attention of the frame tokens, choice and summary of seeds, feed-forward of frames and context.

    Args:
        config: sizes.
        sees: the part that says what a frame's tokens see.
        local_global_bias: whether logits towards further keys get a learned bias.
    """

    attn: FrameAttention

    def __init__(self, config: VisionConfig, sees: VisionAttention, local_global_bias: bool):
        super().__init__(config.width, config.num_heads, config.activation)
        self.attn = FrameAttention(config.width, config.num_heads, local_global_bias and sees.looks_further)
        self.sees = sees

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
            context: (B, K, D) of the block before, where this block uses it.
            summary: how to make this block's context tokens, or None for none.
            only_class: the last block: the patches' outputs are needed by nobody, so only class tokens go on.
            with_trace: whether to return what was decided.

        Returns:
            Frame tokens (B, T, N or 1, D), context tokens (B, K, D) or None, and the trace or None.
        """
        normed = self.ln_1(frames)
        further = self.attn.keys_values(self.ln_1(context)) if self.sees.uses_context else None  # (B, A, K, h) each
        if only_class:
            keys, values = self.attn.keys_values(normed)  # (B, T, A, N, h)
            queries = self.attn.queries(normed[:, :, :1])  # (B, T, A, 1, h)
        else:
            queries, keys, values = self.attn.queries_keys_values(normed)

        seeds = class_attention = attended = None
        generator = None if summary is None else self._generator(summary, frames.device)
        if summary is not None or with_trace:
            if only_class:  # which patches go on has to be known before
                class_attention = self.sees.class_attention(self.attn, queries, keys, further)
            else:
                attended, class_attention = self.sees.attend_and_rank(self.attn, queries, keys, values, further)
        if summary is not None:
            seeds = select_seeds(class_attention, frames[:, :, 1:], summary, generator)  # (B, T, S)

        if only_class:
            kept = frames[:, :, :1]
            if seeds is not None:
                queries = torch.cat((queries, self.attn.queries(gather_patches(normed, seeds))), dim=3)
                kept = torch.cat((kept, gather_patches(frames, seeds)), dim=2)  # (B, T, 1 + S, D)
            frames = kept
        if attended is None:
            attended = self.sees.attend(self.attn, queries, keys, values, further)
        frames = frames + self.attn.merge_heads(attended)

        context = assignment = None
        if seeds is not None:
            seed_tokens = frames[:, :, 1:] if only_class else gather_patches(frames, seeds)  # (B, T, S, D)
            context, assignment = summarise_seeds(seed_tokens, summary, generator)
        if only_class:
            frames = frames[:, :, :1]
        trace = BlockTrace(class_attention, seeds, assignment, context) if with_trace else None
        frames, context = self._feed_forward_together(frames, context)
        return frames, context, trace

    def _generator(self, summary: ContextConfig, device: torch.device) -> torch.Generator | None:
        """Return the source of random choices: None, torch's own, in training; in evaluation one that starts anew."""
        if self.training or not summary.is_random:
            return None
        return torch.Generator(device).manual_seed(0)

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
        attention: what a frame's tokens see beyond their own frame.
        contextual_blocks: the blocks (from 0) that look further; the others see a frame alone. A part that uses context
            tokens cannot look further in the first block.
        context: how context tokens are made, where the part or anybody else wants them.
        local_global_bias: whether logits towards further keys get a learned bias.
        positional_frames: None for one table of positions for all frames; else the frames of a joint table.
        num_prompt_vectors: learned tokens after the patches (prompt tuning).
        prompt_depth: blocks with prompt vectors of their own.
    """

    def __init__(
        self,
        config: VisionConfig,
        attention: VisionAttention | None = None,
        contextual_blocks: Collection[int] = (),
        context: ContextConfig | None = None,
        local_global_bias: bool = False,
        positional_frames: int | None = None,
        num_prompt_vectors: int = 0,
        prompt_depth: int = 1,
    ):
        super().__init__()
        attention = attention or VisionAttention()
        _check_context(attention, contextual_blocks, context, config.depth)
        self.config = config
        self.attention = attention
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
            VisionBlock(config, attention if i in self.contextual_blocks else VisionAttention(), local_global_bias)
            for i in range(config.depth)
        )
        self.ln_post = nn.LayerNorm(D)
        self.projection = nn.Parameter(torch.randn(D, config.embed_dim) * D**-0.5)
        self.prompt_vectors = None
        if num_prompt_vectors:
            self.prompt_vectors = nn.Parameter(torch.randn(prompt_depth, num_prompt_vectors, D) * 0.02)
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
            produces = (self.attention.uses_context and i + 1 in self.contextual_blocks) or i + 1 in context_blocks
            run = partial(recompute_in_backward, block) if recompute else block
            frames, context, trace = run(
                self._with_prompt_vectors(frames, i),
                context,
                self.context if produces else None,
                only_class=i == len(self.blocks) - 1,
                with_trace=with_traces,
            )
            if i + 1 in context_blocks:
                wanted[i + 1] = self.project(context)  # (B, K, E)
            if with_traces:
                P = self.config.num_patches
                traces.append(trace._replace(class_attention=trace.class_attention[..., :P]))
        return VisionOutput(self.project(frames[:, :, 0]), wanted, tuple(traces))

    def embed(self, video: Tensor) -> Tensor:
        """Turn videos (B, T, 3, H, W) into the first block's frame tokens (B, T, N, D)."""
        self._check(video)
        B, T, _, H, W = video.shape
        patches = self.patch_embedding(video.flatten(0, 1))  # (B * T, D, H / p, W / p)
        patches = patches.flatten(2).transpose(1, 2).unflatten(0, (B, T))  # (B, T, P, D)
        class_tokens = self.class_embedding.to(patches.dtype).expand(B, T, 1, -1)
        tokens = torch.cat((class_tokens, patches), dim=2) + self.positional_embedding  # (B, T, N, D)
        if self.prompt_vectors is not None:
            tokens = torch.cat((tokens, self.prompt_vectors[0].to(tokens.dtype).expand(B, T, -1, -1)), dim=2)
        return self.ln_pre(tokens)

    def _with_prompt_vectors(self, frames: Tensor, block: int) -> Tensor:
        """Put a block's own prompt vectors in the place of what the block before made of its own."""
        if self.prompt_vectors is None or not 0 < block < self.prompt_vectors.shape[0]:
            return frames
        vectors = self.prompt_vectors[block].to(frames.dtype)  # (m, D)
        return torch.cat((frames[:, :, : -len(vectors)], vectors.expand(*frames.shape[:2], -1, -1)), dim=2)

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


def _check_context(
    attention: VisionAttention, blocks: Collection[int], context: ContextConfig | None, depth: int
) -> None:
    """Raise ValueError where the blocks that look further do not fit the part or the depth."""
    first = 1 if attention.uses_context else 0
    if attention.looks_further and not blocks:
        raise ValueError(f"{attention.name} attention needs contextual blocks, there are none among {depth}")
    if blocks and not attention.looks_further:
        raise ValueError(f"{attention.name} attention sees nothing beyond a frame: there are no contextual blocks")
    wrong = [block + 1 for block in blocks if not first <= block < depth]
    if wrong:
        reason = " (the first block has none before it to take context tokens from)" if first else ""
        raise ValueError(f"contextual_blocks: {wrong[0]} is outside {first + 1}..{depth}{reason}")
    if attention.uses_context and context is None:
        raise ValueError(f"{attention.name} attention needs a context configuration")
    if context is not None:
        require_choice("seed_selection", context.seed_selection, SEED_SELECTORS)
        require_choice("summarisation", context.summarisation, SUMMARISERS)
