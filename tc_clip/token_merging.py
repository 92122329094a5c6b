"""Repeated bipartite soft matching (ToMe, Bolya et al. 2023) as pure functions: decide without gradient, then average.

A round of matching changes nothing but which seed belongs to which context token, and a mean of means weighted by
their sizes is the mean of all members. So the rounds only have to decide an assignment; the merged tokens are one
differentiable average over it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from tc_clip.kernels import pairwise_products


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
    odd = sums[:, 1::2]
    directions = F.normalize(sums, dim=-1, eps=1e-12)
    similarity = pairwise_products(directions[:, ::2], directions[:, 1::2])  # (B, even, odd)
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

    # The even tokens stand at twice their number in `sums`.
    merged_sums = take_rows(sums, 2 * merged)
    new_sums = torch.cat((take_rows(sums, 2 * staying), odd), dim=1)  # (B, n - num_merged, D)
    rows = merged_into + num_staying + _row_offsets(B, n - num_merged, sums.device)
    new_sums.view(-1, D).index_add_(0, rows.flatten(), merged_sums.flatten(0, 1))
    return target, new_sums


def take_rows(x: Tensor, rows: Tensor) -> Tensor:
    """Take rows (B, m) of each (n, D) of `x` (B, n, D): (B, m, D). Copies whole rows, which `gather` does not."""
    B, n = x.shape[:2]
    rows = (rows + _row_offsets(B, n, x.device)).flatten()
    return x.flatten(0, 1).index_select(0, rows).unflatten(0, (B, -1))


def _row_offsets(batch: int, num_rows: int, device: torch.device) -> Tensor:
    """Return where each batch element's rows begin in the flattened tensor, (B, 1)."""
    return torch.arange(0, batch * num_rows, num_rows, device=device).unsqueeze(1)


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
