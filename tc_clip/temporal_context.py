"""From a block's frames to the context tokens of their video (paper, section 3.2; TC-CLIP, Kim et al. 2024)."""

from typing import NamedTuple

import torch
from torch import Tensor

from tc_clip.config import ContextConfig
from tc_clip.token_merging import average_tokens, match_tokens, merge_schedule, take_rows


class BlockTrace(NamedTuple):
    """What a block decided, for pictures and tests.

    Attributes:
        class_attention: (B, T, P), weights of the class token's query over its frame's patches, mean over the heads.
        seed_indices: (B, T, S), the patches that became seeds, by descending weight; None where there are no seeds.
        assignment: (B, T * S), the context token that each seed went into, frame after frame; None likewise.
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
        groups[rows, self.assignment, patches] = True
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
    own = (keys @ query.unsqueeze(-1)).squeeze(-1)  # (B, T, A, N)
    if context_keys is None:
        return _softmax(own)[..., 1:].mean(dim=2)  # (B, T, P)
    context = (query.transpose(1, 2) @ context_keys.transpose(-1, -2)).transpose(1, 2)  # (B, T, A, K)
    if bias is not None:
        own, context = own + bias[:, :, 0], context + bias[:, :, 1]
    N = own.shape[-1]
    return _softmax(torch.cat((own, context), dim=-1))[..., 1:N].mean(dim=2)  # (B, T, P)


def select_seeds(class_attention: Tensor, num_seeds: int) -> Tensor:
    """Return the patches (B, T, S) with the highest weights (B, T, P) of each frame, in descending order."""
    return class_attention.topk(num_seeds, dim=-1).indices


def gather_patches(tokens: Tensor, patches: Tensor) -> Tensor:
    """Take the patches (B, T, S), counted without the class token, out of frame tokens (B, T, N, D): (B, T, S, D)."""
    B, T = patches.shape[:2]
    return take_rows(tokens.flatten(0, 1), patches.flatten(0, 1) + 1).unflatten(0, (B, T))


def summarise_seeds(seeds: Tensor, config: ContextConfig) -> tuple[Tensor, Tensor]:
    """Merge the seed tokens of all frames into the video's context tokens.

    Args:
        seeds: (B, T, S, D), values after the attention residual.
        config: number of context tokens and merge rate.

    Returns:
        Context tokens (B, K, D) and the context token of each seed (B, T * S). All seeds are context tokens where
        there are no more than `num_context_tokens`.
    """
    seeds = seeds.flatten(1, 2)  # (B, T * S, D)
    schedule = merge_schedule(seeds.shape[1], config.num_context_tokens, config.merge_rate)
    assignment = match_tokens(seeds, schedule)
    if not schedule:
        return seeds, assignment
    return average_tokens(seeds, assignment, seeds.shape[1] - sum(schedule)), assignment


def _softmax(logits: Tensor) -> Tensor:
    """Softmax over the last dimension, in float32 at least: seeds are ranked by small differences."""
    return logits.softmax(dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))
