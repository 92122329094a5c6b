"""How the seed tokens of a video become its context tokens: named choices, pure functions.

Each takes the seeds (B, n, D) of all frames, one after the other, with n > K, the configuration and a random generator
(None: torch's own), and returns a `Summary`. What goes together is decided without gradient; the context tokens carry
gradient to their members.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from tc_clip.config import ContextConfig
from tc_clip.token_merging import average_tokens, match_tokens, merge_schedule

KMEANS_ROUNDS = 10
DPC_NEIGHBOURS = 5


class Summary(NamedTuple):
    """Context tokens (B, K, D), and the context token of each seed (B, n): -1 for a seed that is in none."""

    tokens: Tensor
    assignment: Tensor


Summariser = Callable[[Tensor, ContextConfig, torch.Generator | None], Summary]


def merge(seeds: Tensor, config: ContextConfig, generator: torch.Generator | None) -> Summary:
    """Merge by repeated bipartite matching (the paper's choice; ToMe, Bolya et al. 2023)."""
    schedule = merge_schedule(seeds.shape[1], config.num_context_tokens, config.merge_rate)
    assignment = match_tokens(seeds, schedule)
    return Summary(average_tokens(seeds, assignment, seeds.shape[1] - sum(schedule)), assignment)


def kmeans(seeds: Tensor, config: ContextConfig, generator: torch.Generator | None) -> Summary:
    """Average the clusters of k-means (Lloyd's rounds from seeds at even distances in the sequence).

    A cluster that lost all members, as where frames repeat, gives the seed that it started from.
    """
    K, n = config.num_context_tokens, seeds.shape[1]
    starts = _evenly_spaced(K, n, seeds.device)
    with torch.no_grad():
        points = seeds.to(torch.promote_types(seeds.dtype, torch.float32))
        centres = points[:, starts]
        for _ in range(KMEANS_ROUNDS):
            assignment = torch.cdist(points, centres).argmin(dim=-1)  # (B, n)
            means, empty = _means(points, assignment, K)
            centres = torch.where(empty, centres, means)
        assignment = torch.cdist(points, centres).argmin(dim=-1)
    means, empty = _means(seeds, assignment, K)
    return Summary(torch.where(empty, seeds[:, starts], means), assignment)


def dpc_knn(seeds: Tensor, config: ContextConfig, generator: torch.Generator | None) -> Summary:
    """Average the clusters around density peaks (Rodriguez and Laio 2014; density from nearest neighbours, Du 2016)."""
    K, n = config.num_context_tokens, seeds.shape[1]
    with torch.no_grad():
        points = seeds.to(torch.promote_types(seeds.dtype, torch.float32))
        distance = torch.cdist(points, points) * points.shape[-1] ** -0.5  # (B, n, n)
        nearest = distance.topk(min(DPC_NEIGHBOURS + 1, n), dim=-1, largest=False).values[..., 1:]
        density = (-nearest.square().mean(dim=-1)).exp()  # (B, n)
        # Equal densities: the earlier seed counts as the denser, so that twins are not both peaks.
        place = torch.arange(n, device=seeds.device)
        denser = density.unsqueeze(1) > density.unsqueeze(2)
        denser |= (density.unsqueeze(1) == density.unsqueeze(2)) & (place < place.unsqueeze(1))
        farthest = distance.amax(dim=-1)
        separation = distance.masked_fill(~denser, torch.inf).amin(dim=-1)  # (B, n)
        separation = torch.where(separation.isinf(), farthest, separation)
        peaks = (density * separation).topk(K, dim=-1).indices.sort(dim=-1).values  # (B, K)
        to_peaks = distance.gather(2, peaks.unsqueeze(1).expand(-1, n, -1))  # (B, n, K)
        assignment = to_peaks.argmin(dim=-1)
        # A peak is its own cluster's, also where it has a twin: no cluster is empty.
        assignment = assignment.scatter(1, peaks, torch.arange(K, device=seeds.device).expand_as(peaks))
    return Summary(average_tokens(seeds, assignment, K), assignment)


def sample(seeds: Tensor, config: ContextConfig, generator: torch.Generator | None) -> Summary:
    """Keep seeds at random and drop the others; with a generator of its own the same places of every video."""
    B, n, D = seeds.shape
    K = config.num_context_tokens
    draws = torch.rand((B, n) if generator is None else (n,), generator=generator, device=seeds.device)
    kept = draws.topk(K, dim=-1).indices.sort(dim=-1).values.expand(B, K)
    assignment = torch.full((B, n), -1, device=seeds.device)
    assignment = assignment.scatter(1, kept, torch.arange(K, device=seeds.device).expand(B, K))
    return Summary(seeds.gather(1, kept.unsqueeze(-1).expand(-1, -1, D)), assignment)


def average(seeds: Tensor, config: ContextConfig, generator: torch.Generator | None) -> Summary:
    """Average runs of consecutive seeds, as even as can be."""
    B, n = seeds.shape[:2]
    K = config.num_context_tokens
    assignment = (torch.arange(n, device=seeds.device) * K // n).expand(B, n)
    return Summary(average_tokens(seeds, assignment, K), assignment)


def keep_all(seeds: Tensor, config: ContextConfig, generator: torch.Generator | None) -> Summary:
    """Let every seed be a context token."""
    return Summary(seeds, torch.arange(seeds.shape[1], device=seeds.device).expand(seeds.shape[:2]))


SUMMARISERS: dict[str, Summariser] = {
    "merge": merge,
    "kmeans": kmeans,
    "dpc_knn": dpc_knn,
    "random": sample,
    "average": average,
    "none": keep_all,
}


def _evenly_spaced(count: int, length: int, device: torch.device) -> Tensor:
    return (torch.arange(count, device=device) * 2 + 1) * length // (2 * count)


def _means(tokens: Tensor, assignment: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
    """Return the groups' means (B, K, D), zero where a group is empty, and which are empty (B, K, 1)."""
    groups = torch.arange(num_groups, device=tokens.device)
    members = (assignment.unsqueeze(1) == groups.unsqueeze(-1)).to(tokens.dtype)  # (B, K, n)
    sizes = members.sum(dim=-1, keepdim=True)
    with torch.autocast(tokens.device.type, enabled=False):
        return members @ tokens / sizes.clamp(min=1), sizes == 0
