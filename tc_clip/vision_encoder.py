"""CLIP's vision transformer over the frames of a video, with the attention of `tc_clip.attention`.

Frame tokens (B, T, N, D) and context tokens (B, K, D) are two tensors. A block with temporal contextualization (paper,
3.2) attends to the context tokens that the block before it produced, and produces its own for the next one.
"""

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tc_clip.adapters import (
    AIM_SCALE,
    AdapterConfig,
    AimAdapters,
    SpaceTimeAdapter,
    T2lAdapters,
    add_block_adapters,
    add_lora,
)
from tc_clip.attention import FrameAttention
from tc_clip.brownian import BrownianFrames
from tc_clip.checkpointing import recompute_in_backward
from tc_clip.compiling import expect_other_sizes
from tc_clip.config import ContextConfig, VisionConfig
from tc_clip.context_tokens import (
    BlockTrace,
    average_places,
    check_context,
    gather_patches,
    select_seeds,
    summarise_seeds,
)
from tc_clip.layers import FeedForward, GatedFeedForward, Modules, ResidualBlock, init_tower
from tc_clip.pooling import AttentionPooling
from tc_clip.rotary import Turns, places_of, turn, turns_of, turns_of_tokens
from tc_clip.temporal import (
    FrameTransformer,
    MessageTokens,
    TemporalBlocks,
    TemporalConfig,
    attend_to_frames,
    build_temporal,
    check_parts,
    shift_channels,
)


class VisionOutput(NamedTuple):
    """The vision encoder's output for a batch of videos, in the joint space.

    Attributes:
        class_tokens: (B, T, E), of the last block.
        context_tokens: block number (from 1) -> (B, K, E), of the requested blocks.
        traces: one `BlockTrace` per block if requested, else empty.
        brownian: (B, F), Brownian distance covariances of all tokens, if the model compares them.
    """

    class_tokens: Tensor
    context_tokens: dict[int, Tensor]
    traces: tuple[BlockTrace, ...]
    brownian: Tensor | None = None

    @property
    def video_features(self) -> Tensor:
        """The mean of the frames' class tokens, L2-normalised after the mean, in float32 at least: (B, E)."""
        dtype = torch.promote_types(self.class_tokens.dtype, torch.float32)
        return F.normalize(self.class_tokens.mean(dim=1, dtype=dtype), dim=-1)


class VisionBlock(ResidualBlock):
    """One block: attention of the frame tokens, choice and summary of seeds, feed-forward of frames and context.

    Args:
        config: sizes.
        attention: makes the block's attention from width and number of heads.
    """

    attn: FrameAttention
    mlp: FeedForward

    def __init__(self, config: VisionConfig, attention: Callable[[int, int], FrameAttention]):
        width, eps = config.width, config.norm_eps
        super().__init__(width, config.num_heads, config.activation, config.hidden_width, eps)
        self.attn = attention(width, config.num_heads)
        self.attn.first_patch = int(config.class_token)
        if config.inner_norm:
            self.attn.inner_norm = nn.LayerNorm(width, eps)
        if config.activation == "swiglu":
            self.mlp = GatedFeedForward(width, config.hidden_width, eps if config.inner_norm else None)
        self.adapter: SpaceTimeAdapter | AimAdapters | T2lAdapters | None = None
        self.messages: MessageTokens | None = None
        self.channel_shift = 0.0

    def forward(
        self,
        frames: Tensor,
        context: Tensor | None,
        summary: ContextConfig | None,
        only_class: bool,
        with_trace: bool,
        recompute: bool = False,
        turns: Turns | None = None,
        context_turns: Turns | None = None,
        pooling_weights: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None, BlockTrace | None]:
        """Run the block.

        Args:
            frames: (B, T, N, D).
            context: (B, K, D) of the block before, for a block that uses it.
            summary: how to make this block's context tokens, or None for none.
            only_class: the last block of an encoder that pools by class tokens: nothing needs the patches' outputs, so
                it computes only those of the class tokens and the seeds.
            with_trace: whether to return what was decided.
            recompute: whether the backward pass computes the block again, all but its decisions.
            turns: of the frame tokens (N, h), with rotary positions.
            context_turns: of the context tokens (B, 1, K, h), if their keys turn.
            pooling_weights: (B, T, N), the pooling query's weights of the tokens, for seeds and trace; None: those of
                the class token.

        Returns:
            Frame tokens (B, T, N, D), or class tokens (B, T, 1, D); context tokens (B, K, D) or None; the trace or
            None.
        """
        inputs = frames, context, summary, only_class, with_trace, turns, context_turns, pooling_weights
        return recompute_in_backward(self._run, *inputs) if recompute else self._run(*inputs)

    def _run(
        self,
        frames: Tensor,
        context: Tensor | None,
        summary: ContextConfig | None,
        only_class: bool,
        with_trace: bool,
        turns: Turns | None,
        context_turns: Turns | None,
        pooling_weights: Tensor | None,
    ) -> tuple[Tensor, Tensor | None, BlockTrace | None]:
        first = self.attn.first_patch
        if isinstance(self.adapter, SpaceTimeAdapter):
            frames = self.adapter(frames)
        elif isinstance(self.adapter, AimAdapters):
            frames = frames + self.adapter.time(self._attend_along_frames(self.ln_1(frames)))
        normed = self.ln_1(frames)
        context_keys_values = None
        if context is not None and self.attn.uses_context:
            context_keys, context_values = self.attn.keys_values(self.ln_1(context))  # (B, A, K, h) each
            context_keys_values = turn(context_keys, context_turns), context_values
        if only_class:
            queries = self.attn.queries(normed[:, :, :1])  # (B, T, A, 1, h); a class token never turns
            keys, values = self.attn.keys_values(normed)  # (B, T, A, N, h) each
        else:
            queries, keys, values = self.attn.queries_keys_values(normed)
            queries = turn(queries, turns)
        keys = turn(keys, turns)
        if self.channel_shift:
            keys, values = (shift_channels(x, self.channel_shift) for x in (keys, values))
        keys, values = self._with_message(frames, keys, values)
        needs_weights = summary is not None or with_trace
        attended, class_weights = self.attn.attend(
            queries, keys, values, context_keys_values, with_class_weights=needs_weights and pooling_weights is None
        )
        weights = class_weights if pooling_weights is None else pooling_weights
        weights = None if weights is None else weights[..., : frames.shape[2]]  # not of a message
        residual = frames[:, :, :1] if only_class else frames
        if weights is None or not needs_weights:
            return self.feed_forward(residual + self._merge_heads(attended)), None, None

        seeds = generator = assignment = new_context = None
        if summary is not None:
            generator = self._generator(summary, frames.device)
            seeds = select_seeds(weights[..., first:], frames[:, :, first:], summary, generator)  # (B, T, S)
            if only_class:
                queries = self.attn.queries(gather_patches(normed, seeds, first))  # (B, T, A, S, h)
                queries = turn(queries, None if turns is None else turns.at(seeds.unsqueeze(2) + first))
                attended_seeds, _ = self.attn.attend(queries, keys, values, context_keys_values)
                attended = torch.cat((attended, attended_seeds), dim=3)
                residual = torch.cat((residual, gather_patches(frames, seeds, first)), dim=2)
        frames = residual + self._merge_heads(attended)  # (B, T, N or 1 or 1 + S, D)
        if summary is not None and seeds is not None:
            seed_tokens = frames[:, :, 1:] if only_class else gather_patches(frames, seeds, first)  # (B, T, S, D)
            new_context, assignment = summarise_seeds(seed_tokens, summary, generator)
        if only_class:
            frames = frames[:, :, :1]
        trace = None
        if with_trace or (turns is not None and summary is not None and summary.context_places == "mean"):
            trace = BlockTrace(weights[..., first:], seeds, assignment, new_context)
        frames, new_context = self._feed_forward_together(frames, new_context)
        return frames, new_context, trace

    def feed_forward(self, x: Tensor) -> Tensor:
        """Return `x + mlp(ln_2(x))`, and what the adapter adds."""
        if not isinstance(self.adapter, AimAdapters):
            return super().feed_forward(x)
        normed = self.ln_2(x)
        return x + self.mlp(normed) + AIM_SCALE * self.adapter.feed_forward(normed)

    def _merge_heads(self, attended: Tensor) -> Tensor:
        x = self.attn.merge_heads(attended)
        return x + self.adapter.space(x) if isinstance(self.adapter, AimAdapters | T2lAdapters) else x

    def _with_message(self, frames: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append the key and value of each frame's message or temporal token, if there is one."""
        if self.messages is not None:
            tokens = self.messages(frames[:, :, 0]).unsqueeze(2)  # (B, T, 1, D)
        elif isinstance(self.adapter, T2lAdapters):
            tokens = self._attend_along_frames(self.ln_1(self.adapter.temporal_tokens(frames)))
        else:
            return keys, values
        further = self.attn.keys_values(self.ln_1(tokens))  # (B, T, A, 1, h) each
        return torch.cat((keys, further[0]), dim=3), torch.cat((values, further[1]), dim=3)

    def _attend_along_frames(self, x: Tensor) -> Tensor:
        """Attend with the block's own weights from each token of (B, T, N, D) to those of its place in all frames."""
        return attend_to_frames(self.attn, x.transpose(1, 2)).transpose(1, 2)

    def _generator(self, summary: ContextConfig, device: torch.device) -> torch.Generator | None:
        """Return the source of random choices: None, torch's own, in training; in evaluation one with a fixed seed."""
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
    """A vision transformer for videos.

    Args:
        config: sizes.
        attention: the kind of attention of the contextual blocks; the others attend frame by frame.
        attention_options: additional arguments of its class.
        contextual_blocks: the blocks (from 0) with extra keys. The first block cannot use context tokens.
        context: how context tokens are made, if the attention or the prompts use them.
        local_global_bias: whether logits of extra keys get a learned bias.
        positional_frames: None for one table of positions for all frames; else the number of frames of a joint table.
        num_prompt_vectors: learned tokens after the patches (prompt tuning).
        prompt_depth: blocks with their own prompt vectors.
        adapters: adapters of the blocks.
        num_frames: frames of a video, for parts with a table of frames.
        temporal: what joins the frames besides the attention.

    Raises:
        ValueError: if the contextual blocks do not fit the attention or the depth, or a choice of `context` is unknown.
    """

    rotary_cos: Tensor | None
    rotary_sin: Tensor | None

    def __init__(
        self,
        config: VisionConfig,
        attention: type[FrameAttention] = FrameAttention,
        attention_options: Mapping[str, Any] | None = None,
        contextual_blocks: Collection[int] = (),
        context: ContextConfig | None = None,
        local_global_bias: bool = False,
        positional_frames: int | None = None,
        num_prompt_vectors: int = 0,
        prompt_depth: int = 1,
        adapters: AdapterConfig | None = None,
        num_frames: int = 0,
        temporal: TemporalConfig | None = None,
    ):
        super().__init__()
        check_context(attention, contextual_blocks, context, config)
        self.config = config
        self.attention = attention
        self.context = context
        self.checkpointing = False  # compute blocks again in the backward pass: a third more time, little memory
        self.is_compiled = False
        self.contextual_blocks = frozenset(contextual_blocks)
        D, N = config.width, config.num_tokens
        self.patch_embedding: nn.Module = nn.Conv2d(
            3, D, config.patch_size, stride=config.patch_size, bias=config.patch_bias
        )
        self.class_embedding = nn.Parameter(torch.randn(D) * D**-0.5) if config.class_token else None
        # Five times CLIP's own scale, so that a model from random weights separates positions as well as colours.
        positions = torch.randn(N, D) * 5 * D**-0.5
        if positional_frames is not None:
            positions = positions.repeat(positional_frames, 1, 1)
        self.positional_embedding = nn.Parameter(positions)
        self.ln_pre = nn.LayerNorm(D, config.norm_eps) if config.pre_norm else None
        contextual = partial(attention, local_global_bias=local_global_bias, **(attention_options or {}))
        self.blocks: Modules[VisionBlock] = Modules(
            VisionBlock(config, contextual if i in self.contextual_blocks else FrameAttention)
            for i in range(config.depth)
        )
        self.ln_post = nn.LayerNorm(D, config.norm_eps)
        self.projection: nn.Parameter | None = None
        if config.projection != "none":
            self.projection = nn.Parameter(torch.randn(D, config.embed_dim) * D**-0.5)
        self.projection_bias: nn.Parameter | None = None
        if config.projection == "bias":
            self.projection_bias = nn.Parameter(torch.zeros(config.embed_dim))
        self.brownian: BrownianFrames | None = None
        self.pooling: AttentionPooling | None = None
        if config.pooling == "attention":
            activation = "gelu" if config.activation == "swiglu" else config.activation
            self.pooling = AttentionPooling(D, config.pool_heads, activation, config.hidden_width, config.norm_eps)
        self.prompt_vectors: nn.Parameter | None = None
        if num_prompt_vectors:
            self.prompt_vectors = nn.Parameter(torch.randn(prompt_depth, num_prompt_vectors, D) * 0.02)
        init_tower(self.blocks, D)
        self.frame_positions: nn.Parameter | None = None
        kind = None if adapters is None else adapters.of_side("vision")
        if kind in ("st_adapter", "aim") and (not config.class_token or config.rotary is not None):
            raise ValueError(f"adapters={kind} needs weights with class tokens and without rotary positions")
        if adapters is not None and kind == "lora":
            add_lora((block.attn for block in self.blocks), D, adapters)
        elif adapters is not None and kind is not None:
            add_block_adapters(self.blocks, D, adapters, num_frames)
            if kind == "aim":
                self.frame_positions = nn.Parameter(torch.zeros(num_frames, 1, D))
        parts = temporal or TemporalConfig()
        check_parts(parts, config, attention, kind)
        for block in self.blocks:
            block.channel_shift = parts.channel_shift
            block.messages = MessageTokens(D, config.num_heads, config.norm_eps) if parts.message_tokens else None
        self.temporal = build_temporal(parts, config, num_frames, partial(VisionBlock, config), self.blocks)
        self.patches_as_context = parts.text_update_layers > 0  # the texts' context: the patches' mean over the frames
        has_table = kind in ("aim", "t2l") or self.temporal is not None
        self.fixed_frames = num_frames if has_table else positional_frames
        self._add_turns(num_prompt_vectors)

    def _add_turns(self, num_prompt_vectors: int) -> None:
        """Compute the turns of the frame tokens, which are no weights."""
        config = self.config
        tables: tuple[Tensor | None, Tensor | None] = (None, None)
        if config.rotary is not None:
            sizes = config.grid_size, int(config.class_token), num_prompt_vectors, config.head_width
            tables = turns_of_tokens(*sizes, config.rotary)
        self.register_buffer("rotary_cos", tables[0], persistent=False)
        self.register_buffer("rotary_sin", tables[1], persistent=False)

    def forward(self, video: Tensor, context_blocks: Collection[int] = (), with_traces: bool = False) -> VisionOutput:
        """Encode videos.

        Args:
            video: (B, T, 3, H, W), normalised.
            context_blocks: numbers (from 1) of the blocks whose context tokens are returned.
            with_traces: whether to return what each block decided.

        Raises:
            ValueError: if the video does not fit the encoder.
        """
        frames = self.embed(video)  # (B, T, N, D)
        context = context_turns = None
        requested: dict[int, Tensor] = {}
        traces: list[BlockTrace] = []
        recompute = self.checkpointing and torch.is_grad_enabled()
        turns = (
            None if self.rotary_cos is None or self.rotary_sin is None else Turns(self.rotary_cos, self.rotary_sin)
        )  # (N, h) each
        asked = () if self.patches_as_context else context_blocks
        reads_patches = self.pooling is not None or self.brownian is not None or self.patches_as_context
        only_class = not reads_patches and not isinstance(self.temporal, TemporalBlocks)
        for i, block in enumerate(self.blocks):
            produces = (self.attention.uses_context and i + 1 in self.contextual_blocks) or i + 1 in asked
            frames = self._with_prompt_vectors(frames, i)
            if self.is_compiled:
                expect_other_sizes(frames, 0)
                expect_other_sizes(context, 0)
            frames, context, trace = block(
                frames,
                context,
                self.context if produces else None,
                only_class=only_class and i == len(self.blocks) - 1,
                with_trace=with_traces,
                recompute=recompute,
                turns=turns,
                context_turns=context_turns,
                pooling_weights=self._pooling_weights(frames) if produces or with_traces else None,
            )
            if i + 1 in asked:
                requested[i + 1] = self.project(context)  # (B, K, E)
            context_turns = self._turns_of_context(trace)
            if trace is not None and with_traces:
                P = self.config.num_patches
                traces.append(trace._replace(class_attention=trace.class_attention[..., :P]))
        if isinstance(self.temporal, TemporalBlocks):
            frames = self.temporal(frames, not reads_patches, recompute)
        tokens = None
        if self.brownian is not None or self.patches_as_context:
            tokens = self.project(frames[:, :, : self.config.num_tokens])  # (B, T, N, E)
            if self.patches_as_context:
                patches = tokens[:, :, int(self.config.class_token) :].mean(dim=1)  # (B, P, E)
                requested |= dict.fromkeys(context_blocks, patches)
        features = self._pool(frames)
        brownian = None if self.brownian is None else self.brownian(tokens)
        return VisionOutput(features, requested, tuple(traces), brownian)

    def _pool(self, frames: Tensor) -> Tensor:
        """Return the frames' features (B, T, E) of their tokens (B, T, N, D) after the last block."""
        if self.pooling is None:
            features = self.project(frames[:, :, 0])
        else:
            features = self._to_joint(self.pooling(self.ln_post(frames)))
        return self.temporal(features) if isinstance(self.temporal, FrameTransformer) else features

    def _pooling_weights(self, frames: Tensor) -> Tensor | None:
        """Return the pooling query's weights of frame tokens (B, T, N), if they choose seeds; else None.

        They do in an encoder without class tokens, and with seed_selection=pooling_attention.
        """
        chosen = self.context is not None and self.context.seed_selection == "pooling_attention"
        if self.pooling is None or (self.config.class_token and not chosen):
            return None
        with torch.no_grad():
            return self.pooling.weights(self.ln_post(frames))

    def _turns_of_context(self, trace: BlockTrace | None) -> Turns | None:
        """Return the turns of a block's context tokens (B, 1, K, h) by the mean place of their seeds, if they turn."""
        rotary, context = self.config.rotary, self.context
        if trace is None or rotary is None or context is None or context.context_places == "none":
            return None
        if trace.seed_indices is None or trace.assignment is None or trace.context_tokens is None:
            return None
        places = places_of(self.config.grid_size, rotary).to(trace.seed_indices.device)[trace.seed_indices.flatten(1)]
        means = average_places(places, trace.assignment, trace.context_tokens.shape[1])  # (B, K, 2)
        cos, sin = turns_of(means, self.config.head_width, rotary)
        dtype = self.positional_embedding.dtype
        return Turns(cos.to(dtype).unsqueeze(1), sin.to(dtype).unsqueeze(1))

    def compile(self, **options: Any) -> None:
        """Compile the blocks in place: each kind of block once. The options are those of `torch.compile`."""
        self.is_compiled = True
        for block in (*self.blocks, *([] if self.temporal is None else self.temporal.blocks)):
            block.compile(**options)

    def embed(self, video: Tensor) -> Tensor:
        """Embed videos (B, T, 3, H, W) as the first block's frame tokens (B, T, N, D)."""
        self._check(video)
        B, T, _, H, W = video.shape
        patches = self.patch_embedding(video.flatten(0, 1))  # (B * T, D, H / p, W / p)
        patches = patches.flatten(2).transpose(1, 2).unflatten(0, (B, T))  # (B, T, P, D)
        if self.class_embedding is not None:
            class_tokens = self.class_embedding.to(patches.dtype).expand(B, T, 1, -1)
            patches = torch.cat((class_tokens, patches), dim=2)
        tokens = patches + self.positional_embedding  # (B, T, N, D)
        if self.frame_positions is not None:
            tokens = tokens + self.frame_positions
        if self.prompt_vectors is not None:
            tokens = torch.cat((tokens, self.prompt_vectors[0].to(tokens.dtype).expand(B, T, -1, -1)), dim=2)
        return tokens if self.ln_pre is None else self.ln_pre(tokens)

    def _with_prompt_vectors(self, frames: Tensor, block: int) -> Tensor:
        """Replace the last tokens by the block's own prompt vectors, if it has any."""
        if self.prompt_vectors is None or not 0 < block < self.prompt_vectors.shape[0]:
            return frames
        vectors = self.prompt_vectors[block].to(frames.dtype)  # (m, D)
        return torch.cat((frames[:, :, : -len(vectors)], vectors.expand(*frames.shape[:2], -1, -1)), dim=2)

    def project(self, tokens: Tensor) -> Tensor:
        """Project tokens (..., D) to the joint space (..., E); attention pools each of them alone."""
        tokens = self.ln_post(tokens)
        return self._to_joint(tokens if self.pooling is None else self.pooling.alone(tokens))

    def _to_joint(self, x: Tensor) -> Tensor:
        if self.projection is None:
            return x
        x = x @ self.projection
        return x if self.projection_bias is None else x + self.projection_bias

    def _check(self, video: Tensor) -> None:
        side = self.config.image_size
        if video.dim() != 5 or video.shape[2:] != (3, side, side):
            raise ValueError(f"the model reads videos of shape (B, T, 3, {side}, {side}), not {tuple(video.shape)}")
        if self.fixed_frames is not None and self.fixed_frames != video.shape[1]:
            raise ValueError(
                f"the model has joint positions for {self.fixed_frames} frames, the video has {video.shape[1]}: "
                "create the model with num_frames of the video"
            )
