"""Repeated bipartite soft matching (ToMe, Bolya et al. 2023) as pure functions: decide without gradient, then average.

A round of matching changes nothing but which seed belongs to which context token, and a mean of means weighted by
their sizes is the mean of all members. So the rounds only have to decide an assignment; the merged tokens are one
differentiable average over it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def merge_schedule(num_tokens: int, num_kept: int, merge_rate: int) -> tuple[int, ...]:
    """Return how many tokens each round merges away until `num_kept` are left.

    Rounds of `merge_rate` come first, as many as fit; then as much as a round can do. A round merges at most half of
    its tokens. Nothing is to be done where `num_tokens <= num_kept`.
    """
    rounds: list[int] = []
    num_left = num_tokens
    for _ in range(max(0, num_tokens - num_kept) // merge_rate):
        rounds.append(min(merge_rate, num_left // 2))
        num_left -= rounds[-1]
    while num_left > num_kept:
        rounds.append(min(num_left - num_kept, num_left // 2))
        num_left -= rounds[-1]
    return tuple(rounds)


@torch.no_grad()
def match_tokens(tokens: Tensor, schedule: tuple[int, ...]) -> Tensor:
    """Decide which merged token each token goes into.

    Args:
        tokens: (B, n, D).
        schedule: tokens merged away in each round (`merge_schedule`).

    Returns:
        (B, n) int64, the merged token's position, below `n - sum(schedule)`.
    """
    B, n, D = tokens.shape
    assignment = torch.arange(n, device=tokens.device).expand(B, n)
    sums = tokens  # Cosine similarity does not see scale, so sums of members serve as well as their means.
    for num_merged in schedule:
        target, sums = _merge_round(sums, num_merged)
        assignment = target.gather(1, assignment)
    return assignment


def _merge_round(sums: Tensor, num_merged: int) -> tuple[Tensor, Tensor]:
    """Merge the `num_merged` even tokens that are most like an odd one; return new positions (B, n) and new sums."""
    B, n, D = sums.shape
    even, odd = sums[:, ::2], sums[:, 1::2]
    directions = F.normalize(sums, dim=-1, eps=1e-12)
    similarity = directions[:, ::2] @ directions[:, 1::2].transpose(1, 2)  # (B, even, odd)
    best, partner = similarity.max(dim=-1)  # (B, even)
    order = best.argsort(dim=-1, descending=True)
    merged, staying = order[:, :num_merged], order[:, num_merged:]
    num_staying = staying.shape[1]

    target = torch.empty(B, n, dtype=torch.long, device=sums.device)
    target[:, 1::2] = torch.arange(num_staying, num_staying + odd.shape[1], device=sums.device)
    rank = torch.arange(num_staying, device=sums.device).expand(B, -1)
    merged_into = partner.gather(1, merged)
    even_target = torch.empty_like(partner)
    even_target.scatter_(1, staying, rank).scatter_(1, merged, merged_into + num_staying)
    target[:, ::2] = even_target

    merged_sums = even.gather(1, merged.unsqueeze(-1).expand(-1, -1, D))
    odd = odd.scatter_add(1, merged_into.unsqueeze(-1).expand(-1, -1, D), merged_sums)
    staying_sums = even.gather(1, staying.unsqueeze(-1).expand(-1, -1, D))
    return target, torch.cat((staying_sums, odd), dim=1)  # (B, n - num_merged, D)


def average_tokens(tokens: Tensor, assignment: Tensor, num_groups: int) -> Tensor:
    """Return the mean of each group's tokens.

    A multiplication with the membership matrix: differentiable, and the same sums in the same order on every run,
    which scattered additions on a GPU are not.

    Args:
        tokens: (B, n, D).
        assignment: (B, n), each token's group; every group has a member.
        num_groups: number of groups (`K`).

    Returns:
        (B, K, D), in the dtype of `tokens`.
    """
    groups = torch.arange(num_groups, device=tokens.device)
    members = (assignment.unsqueeze(1) == groups.unsqueeze(-1)).to(tokens.dtype)  # (B, K, n)
    sizes = members.sum(dim=-1, keepdim=True)  # (B, K, 1)
    with torch.autocast(tokens.device.type, enabled=False):
        return members @ tokens / sizes
