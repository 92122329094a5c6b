"""From a block's frames to the context tokens of their video (paper, section 3.2; TC-CLIP, Kim et al. 2024)."""

from typing import NamedTuple

import torch
from torch import Tensor

from tc_clip.config import ContextConfig
from tc_clip.ops.kernels import products_with_one
from tc_clip.seed_selection import SEED_SELECTORS
from tc_clip.summarisation import SUMMARISERS, Summary
from tc_clip.token_merging import take_rows


class BlockTrace(NamedTuple):
    """What a block decided, for pictures and tests.

    Attributes:
        class_attention: (B, T, P), weights of the class token's query over its frame's patches, mean over the heads.
        seed_indices: (B, T, S), the patches that became seeds, by descending weight; None where there are no seeds.
        assignment: (B, T * S), the context token that each seed went into, frame after frame, -1 for none; None
            likewise.
        context_tokens: (B, K, D), before the feed-forward part; None likewise.
    """

    class_attention: Tensor
    seed_indices: Tensor | None
    assignment: Tensor | None
    context_tokens: Tensor | None

    def token_groups(self) -> Tensor:
        """Return (B, K, T * P) bool: which patches of which frame (`t * P + p`) went into each context token.

        Raises:
            ValueError: where the block made no context tokens.
        """
        if self.context_tokens is None:
            raise ValueError("this block made no context tokens")
        B, T, P = self.class_attention.shape
        offsets = torch.arange(T, device=self.seed_indices.device).view(1, T, 1) * P
        patches = (self.seed_indices + offsets).flatten(1)  # (B, T * S)
        groups = torch.zeros(B, self.context_tokens.shape[1], T * P, dtype=torch.bool, device=patches.device)
        rows = torch.arange(B, device=patches.device).unsqueeze(1).expand_as(patches)
        kept = self.assignment >= 0
        groups[rows[kept], self.assignment[kept], patches[kept]] = True
        return groups


@torch.no_grad()
def class_token_attention(queries: Tensor, keys: Tensor, context_keys: Tensor | None, bias: Tensor | None) -> Tensor:
    """Return the class tokens' softmax weights over their own patches, averaged over the heads.

    Args:
        queries: (B, T, A, N, h), the class token's first.
        keys: (B, T, A, N, h), the frame's own.
        context_keys: (B, A, K, h), or None.
        bias: (A, 1, 2), added to logits towards own tokens and towards context tokens, or None.

    Returns:
        (B, T, P): the softmax runs over all N + K keys, the class token's and the context's weights are left out.
    """
    query = queries[:, :, :, 0] * queries.shape[-1] ** -0.5  # (B, T, A, h)
    own = products_with_one(keys, query)  # (B, T, A, N)
    if context_keys is None:
        return _softmax(own)[..., 1:].mean(dim=2)  # (B, T, P)
    context = (query.transpose(1, 2) @ context_keys.transpose(-1, -2)).transpose(1, 2)  # (B, T, A, K)
    if bias is not None:
        own, context = own + bias[:, :, 0], context + bias[:, :, 1]
    N = own.shape[-1]
    return _softmax(torch.cat((own, context), dim=-1))[..., 1:N].mean(dim=2)  # (B, T, P)


@torch.no_grad()
def class_attention_among_frames(queries: Tensor, keys: Tensor, visible: Tensor, bias: Tensor | None) -> Tensor:
    """Return the class tokens' softmax weights over their own patches where they see tokens of other frames too.

    Args:
        queries: (B, T, A, N, h), the class token's first.
        keys: (B, T, A, N, h), every frame's.
        visible: (T, T, N) bool, which tokens of which frames each frame sees, its own included.
        bias: (A, 1, 2), added to logits towards own tokens and towards others, or None.

    Returns:
        (B, T, P), averaged over the heads; the softmax runs over all that is seen.
    """
    T, N = visible.shape[1:]
    query = queries[:, :, :, 0].transpose(1, 2) * queries.shape[-1] ** -0.5  # (B, A, T, h)
    logits = query @ keys.transpose(1, 2).flatten(2, 3).transpose(-1, -2)  # (B, A, T, T * N)
    logits = logits.unflatten(-1, (T, N))
    if bias is not None:
        own = torch.eye(T, dtype=torch.bool, device=keys.device).unsqueeze(-1)  # (T, T, 1)
        logits = logits + torch.where(own, bias[:, :, :1, None], bias[:, :, 1:, None])  # (A, T, T, 1)
    weights = _softmax(logits.masked_fill(~visible, -torch.inf).flatten(-2)).unflatten(-1, (T, N))
    own_weights = weights.diagonal(dim1=2, dim2=3).movedim(-1, 1)  # (B, T, A, N)
    return own_weights[..., 1:].mean(dim=2)


@torch.no_grad()
def select_seeds(
    class_attention: Tensor, patches: Tensor, config: ContextConfig, generator: torch.Generator | None
) -> Tensor:
    """Choose the seeds of each frame.

    Args:
        class_attention: (B, T, P), see `class_token_attention`.
        patches: (B, T, P, D), before the block.
        config: number and choice of seeds.
        generator: of random choices; None for torch's own.

    Returns:
        (B, T, S), patches by number.
    """
    select = SEED_SELECTORS[config.seed_selection]
    return select(class_attention, patches, config.num_seeds(patches.shape[2]), generator)


def gather_patches(tokens: Tensor, patches: Tensor) -> Tensor:
    """Take the patches (B, T, S), counted without the class token, out of frame tokens (B, T, N, D): (B, T, S, D)."""
    B, T = patches.shape[:2]
    return take_rows(tokens.flatten(0, 1), patches.flatten(0, 1) + 1).unflatten(0, (B, T))


def summarise_seeds(seeds: Tensor, config: ContextConfig, generator: torch.Generator | None = None) -> Summary:
    """Turn the seed tokens of all frames into the video's context tokens.

    Args:
        seeds: (B, T, S, D), values after the attention residual.
        config: number of context tokens, and how they are made.
        generator: of random choices; None for torch's own.

    Returns:
        Context tokens (B, K, D) and the context token of each seed (B, T * S). All seeds are context tokens where
        there are no more than `num_context_tokens`.
    """
    seeds = seeds.flatten(1, 2)  # (B, T * S, D)
    few = seeds.shape[1] <= config.num_context_tokens
    return SUMMARISERS["none" if few else config.summarisation](seeds, config, generator)


def _softmax(logits: Tensor) -> Tensor:
    """Softmax over the last dimension, in float32 at least: seeds are ranked by small differences."""
    return logits.softmax(dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))
