"""From a block's frames to the context tokens of their video (paper, section 3.2; TC-CLIP, Kim et al. 2024).

Some patches of each frame are its seeds (`SEED_SELECTORS`, named choices). The seeds of all frames become the context
tokens (`SUMMARISERS`, likewise). Both decide without gradient; context tokens carry gradient to their members.
"""

from collections.abc import Callable, Collection
from typing import NamedTuple

import torch
from torch import Tensor

from tc_clip.attention import FrameAttention
from tc_clip.config import ContextConfig, VisionConfig, require_choice
from tc_clip.ops import average_tokens, match_tokens
from tc_clip.ops.merging import count_members, merge_schedule, take_rows

KMEANS_ROUNDS = 10
DPC_NEIGHBOURS = 5


class BlockTrace(NamedTuple):
    """What a block decided, for pictures and tests.

    Attributes:
        class_attention: (B, T, P), weights of the class token's query for its frame's patches, averaged over the heads.
        seed_indices: (B, T, S), the patches that became seeds, by descending weight; None without seeds.
        assignment: (B, T * S), the context token of each seed, frame after frame, -1 for none; None without seeds.
        context_tokens: (B, K, D), before the feed-forward layers; None without seeds.
    """

    class_attention: Tensor
    seed_indices: Tensor | None
    assignment: Tensor | None
    context_tokens: Tensor | None

    def token_groups(self) -> Tensor:
        """Return the patches of each context token: (B, K, T * P) bool, patch `p` of frame `t` at `t * P + p`.

        Raises:
            ValueError: if the block made no context tokens.
        """
        if self.context_tokens is None or self.seed_indices is None or self.assignment is None:
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
def select_seeds(
    class_attention: Tensor, patches: Tensor, config: ContextConfig, generator: torch.Generator | None
) -> Tensor:
    """Choose the seeds of each frame.

    Args:
        class_attention: (B, T, P), weights of the class token's query for its frame's patches.
        patches: (B, T, P, D), before the block.
        config: number and choice of seeds.
        generator: of random choices; None for torch's own.

    Returns:
        (B, T, S), indices of patches.
    """
    select = SEED_SELECTORS[config.seed_selection]
    return select(class_attention, patches, config.num_seeds(patches.shape[2]), generator)


def gather_patches(tokens: Tensor, patches: Tensor, first_patch: int = 1) -> Tensor:
    """Gather the patches (B, T, S), counted from the first, of frame tokens (B, T, N, D): (B, T, S, D)."""
    B, T = patches.shape[:2]
    return take_rows(tokens.flatten(0, 1), patches.flatten(0, 1) + first_patch).unflatten(0, (B, T))


class Summary(NamedTuple):
    """Context tokens (B, K, D), and the context token of each seed (B, n): -1 for a seed that is in none."""

    tokens: Tensor
    assignment: Tensor


def summarise_seeds(seeds: Tensor, config: ContextConfig, generator: torch.Generator | None = None) -> Summary:
    """Make the video's context tokens of the seed tokens of all frames.

    Args:
        seeds: (B, T, S, D), values after the attention residual.
        config: number of context tokens, and how they are made.
        generator: of random choices; None for torch's own.

    Returns:
        Context tokens (B, K, D) and the context token of each seed (B, T * S). If there are no more seeds than
        `num_context_tokens`, all of them are context tokens.
    """
    seeds = seeds.flatten(1, 2)  # (B, T * S, D)
    few = seeds.shape[1] <= config.num_context_tokens
    return SUMMARISERS["none" if few else config.summarisation](seeds, config, generator)


# Choices of seeds: from the class tokens' attention (B, T, P), the patches before the block (B, T, P, D), the number of
# seeds and a random generator (None: torch's own) to the chosen patches (B, T, S).
SeedSelector = Callable[[Tensor, Tensor, int, torch.Generator | None], Tensor]


def by_class_attention(attention: Tensor, patches: Tensor, num_seeds: int, generator: torch.Generator | None) -> Tensor:
    """Choose the patches that the class token attends to most, in descending order (the paper's choice)."""
    return attention.topk(num_seeds, dim=-1).indices


def at_random(attention: Tensor, patches: Tensor, num_seeds: int, generator: torch.Generator | None) -> Tensor:
    """Choose patches at random; a given generator chooses the same patches in every video of the batch."""
    shape = attention.shape if generator is None else attention.shape[1:]
    draws = torch.rand(shape, generator=generator, device=attention.device)
    return draws.topk(num_seeds, dim=-1).indices.expand(attention.shape[0], -1, -1)


def all_patches(attention: Tensor, patches: Tensor, num_seeds: int, generator: torch.Generator | None) -> Tensor:
    """Choose every patch, in reading order, whatever the number of seeds."""
    return torch.arange(attention.shape[-1], device=attention.device).expand(attention.shape)


def by_norm(attention: Tensor, patches: Tensor, num_seeds: int, generator: torch.Generator | None) -> Tensor:
    """Choose the patches of the largest norm, in descending order."""
    return patches.detach().norm(dim=-1).topk(num_seeds, dim=-1).indices


def uniform_grid(attention: Tensor, patches: Tensor, num_seeds: int, generator: torch.Generator | None) -> Tensor:
    """Choose patches at even distances in reading order, the same in every frame."""
    chosen = _evenly_spaced(num_seeds, attention.shape[-1], attention.device)
    return chosen.expand(*attention.shape[:2], -1)


SEED_SELECTORS: dict[str, SeedSelector] = {
    "class_attention": by_class_attention,
    "pooling_attention": by_class_attention,  # the encoder gives the weights of the pooling's query
    "random": at_random,
    "all": all_patches,
    "top_norm": by_norm,
    "uniform_grid": uniform_grid,
}


# Summaries of the seeds (B, n, D) of all frames, one frame after the other, with n > K; random generator as above.
Summariser = Callable[[Tensor, ContextConfig, torch.Generator | None], Summary]


def merge(seeds: Tensor, config: ContextConfig, generator: torch.Generator | None) -> Summary:
    """Merge by repeated bipartite matching (the paper's choice; ToMe, Bolya et al. 2023)."""
    schedule = merge_schedule(seeds.shape[1], config.num_context_tokens, config.merge_rate)
    assignment = match_tokens(seeds, schedule)
    return Summary(average_tokens(seeds, assignment, seeds.shape[1] - sum(schedule)), assignment)


def kmeans(seeds: Tensor, config: ContextConfig, generator: torch.Generator | None) -> Summary:
    """Average the clusters of k-means (Lloyd's rounds from seeds at even distances in the sequence).

    A cluster without members, as with repeated frames, gives the seed that it started from.
    """
    K, n = config.num_context_tokens, seeds.shape[1]
    starts = _evenly_spaced(K, n, seeds.device)
    with torch.no_grad():
        points = seeds.to(torch.promote_types(seeds.dtype, torch.float32))
        centres = points[:, starts]
        for _ in range(KMEANS_ROUNDS):
            assignment = torch.cdist(points, centres).argmin(dim=-1)  # (B, n)
            centres = _means(points, assignment, centres)
        assignment = torch.cdist(points, centres).argmin(dim=-1)
    return Summary(_means(seeds, assignment, seeds[:, starts]), assignment)


def dpc_knn(seeds: Tensor, config: ContextConfig, generator: torch.Generator | None) -> Summary:
    """Average the clusters around density peaks (Rodriguez and Laio 2014; density from nearest neighbours, Du 2016)."""
    K, n = config.num_context_tokens, seeds.shape[1]
    with torch.no_grad():
        points = seeds.to(torch.promote_types(seeds.dtype, torch.float32))
        distance = torch.cdist(points, points) * points.shape[-1] ** -0.5  # (B, n, n)
        nearest = distance.topk(min(DPC_NEIGHBOURS + 1, n), dim=-1, largest=False).values[..., 1:]
        density = (-nearest.square().mean(dim=-1)).exp()  # (B, n)
        # Equal densities: the earlier seed counts as the denser, so that twins are not both peaks.
        position = torch.arange(n, device=seeds.device)
        denser = density.unsqueeze(1) > density.unsqueeze(2)
        denser |= (density.unsqueeze(1) == density.unsqueeze(2)) & (position < position.unsqueeze(1))
        farthest = distance.amax(dim=-1)
        separation = distance.masked_fill(~denser, torch.inf).amin(dim=-1)  # (B, n)
        separation = torch.where(separation.isinf(), farthest, separation)
        peaks = (density * separation).topk(K, dim=-1).indices.sort(dim=-1).values  # (B, K)
        to_peaks = distance.gather(2, peaks.unsqueeze(1).expand(-1, n, -1))  # (B, n, K)
        assignment = to_peaks.argmin(dim=-1)
        # A peak is in its own cluster, even if it has a twin: no cluster is empty.
        assignment = assignment.scatter(1, peaks, torch.arange(K, device=seeds.device).expand_as(peaks))
    return Summary(average_tokens(seeds, assignment, K), assignment)


def sample(seeds: Tensor, config: ContextConfig, generator: torch.Generator | None) -> Summary:
    """Keep seeds at random and drop the others; a given generator keeps the same positions in every video."""
    B, n, D = seeds.shape
    K = config.num_context_tokens
    draws = torch.rand((B, n) if generator is None else (n,), generator=generator, device=seeds.device)
    kept = draws.topk(K, dim=-1).indices.sort(dim=-1).values.expand(B, K)
    assignment = torch.full((B, n), -1, device=seeds.device)
    assignment = assignment.scatter(1, kept, torch.arange(K, device=seeds.device).expand(B, K))
    return Summary(seeds.gather(1, kept.unsqueeze(-1).expand(-1, -1, D)), assignment)


def average(seeds: Tensor, config: ContextConfig, generator: torch.Generator | None) -> Summary:
    """Average runs of consecutive seeds, of as equal lengths as possible."""
    B, n = seeds.shape[:2]
    K = config.num_context_tokens
    assignment = (torch.arange(n, device=seeds.device) * K // n).expand(B, n)
    return Summary(average_tokens(seeds, assignment, K), assignment)


def keep_all(seeds: Tensor, config: ContextConfig, generator: torch.Generator | None) -> Summary:
    """Make every seed a context token."""
    return Summary(seeds, torch.arange(seeds.shape[1], device=seeds.device).expand(seeds.shape[:2]))


SUMMARISERS: dict[str, Summariser] = {
    "merge": merge,
    "kmeans": kmeans,
    "dpc_knn": dpc_knn,
    "random": sample,
    "average": average,
    "none": keep_all,
}


@torch.no_grad()
def average_places(places: Tensor, assignment: Tensor, num_tokens: int) -> Tensor:
    """Return the mean place (B, K, 2) of each context token's seeds.

    Args:
        places: (B, n, 2), of the seeds.
        assignment: (B, n), the context token of each seed, -1 for none.
    """
    return _means(places, assignment, places.new_zeros(len(places), num_tokens, 2))


def _evenly_spaced(count: int, length: int, device: torch.device) -> Tensor:
    return (torch.arange(count, device=device) * 2 + 1) * length // (2 * count)


def _means(tokens: Tensor, assignment: Tensor, if_empty: Tensor) -> Tensor:
    """Return the means (B, K, D) of the groups of tokens (B, n, D), and `if_empty` (B, K, D) for groups without any."""
    members, sizes = count_members(tokens, assignment, if_empty.shape[1])
    with torch.autocast(tokens.device.type, enabled=False):
        return torch.where(sizes == 0, if_empty, members @ tokens / sizes.clamp(min=1))


def check_context(
    attention: type[FrameAttention], blocks: Collection[int], context: ContextConfig | None, config: VisionConfig
) -> None:
    """Raise ValueError if the contextual blocks do not fit the attention or the depth, or the encoder lacks a part."""
    depth = config.depth
    if attention.uses_class_tokens and not config.class_token:
        raise ValueError(f"{attention.name} attention needs class tokens, which these weights do not have")
    first = 1 if attention.uses_context else 0
    if attention.has_extra_keys and not blocks:
        raise ValueError(f"{attention.name} attention needs contextual blocks, there are none among {depth}")
    if blocks and not attention.has_extra_keys:
        raise ValueError(f"{attention.name} attention has no extra keys: there are no contextual blocks")
    wrong = [block + 1 for block in blocks if not first <= block < depth]
    if wrong:
        reason = " (the first block has no block before it to get context tokens from)" if first else ""
        raise ValueError(f"contextual_blocks: {wrong[0]} is outside {first + 1}..{depth}{reason}")
    if attention.uses_context and context is None:
        raise ValueError(f"{attention.name} attention needs a context configuration")
    if context is not None:
        require_choice("seed_selection", context.seed_selection, SEED_SELECTORS)
        require_choice("summarisation", context.summarisation, SUMMARISERS)
        if context.seed_selection == "pooling_attention" and config.pooling != "attention":
            raise ValueError(
                "seed_selection=pooling_attention needs attention pooling, which these weights do not have"
            )
