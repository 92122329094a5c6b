"""Repeated bipartite soft matching (ToMe, Bolya et al. 2023) as pure functions: decide without gradient, then average.

A round of matching only changes which seed belongs to which context token, and a mean of means, weighted by sizes, is
the mean of all members. So the rounds decide an assignment, and the merged tokens are one differentiable average.

`products` is a device's form of `a @ b.mT` for (B, n, D) and (B, m, D).
"""

from collections.abc import Callable

import torch
from torch import Tensor

Products = Callable[[Tensor, Tensor], Tensor]


def merge_schedule(num_tokens: int, num_kept: int, merge_rate: int) -> tuple[int, ...]:
    """Return how many tokens each round merges away until `num_kept` are left.

    Rounds of `merge_rate` come first, as many as fit; then rounds that merge as many as they can. A round merges at
    most half of its tokens. There are no rounds if `num_tokens <= num_kept`.
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
def match_tokens(tokens: Tensor, schedule: tuple[int, ...], products: Products) -> Tensor:
    """Decide which merged token each token goes into.

    See `tc_clip.ops.match_tokens`.
    """
    B, n, D = tokens.shape
    offsets = _row_offsets(B, n, tokens.device)
    # Cosine similarity does not depend on scale, so sums of members serve as well as their means. A merged token is
    # kept in the row of one of its members; `rows` are the rows in use, in the order of the merged tokens.
    sums = tokens.reshape(B * n, D).clone()
    owners = rows = torch.arange(n, device=tokens.device) + offsets  # (B, n), into `sums`
    for num_merged in schedule:
        rows, new_owners = _merge_round(sums, rows, num_merged, products)
        owners = new_owners[owners]
    positions = torch.empty(B * n, dtype=torch.long, device=tokens.device)
    positions[rows] = torch.arange(rows.shape[1], device=tokens.device).expand_as(rows)
    return positions[owners]


def _merge_round(sums: Tensor, rows: Tensor, num_merged: int, products: Products) -> tuple[Tensor, Tensor]:
    """Merge the `num_merged` even tokens that are most similar to an odd one, each into that one.

    Args:
        sums: (B * n, D), changed in place: rows of even tokens are added to those of the odd tokens they merge into.
        rows: (B, m), the tokens' rows in `sums`.
        num_merged: at most half of `m`.

    Returns:
        Rows of the tokens afterwards (B, m - num_merged), even ones that stay first, and for every row of `sums` the
        row that it is now part of, (B * n,).
    """
    even_rows, odd_rows = rows[:, ::2], rows[:, 1::2]
    even, odd = _rows(sums, even_rows), _rows(sums, odd_rows)  # (B, even, D), (B, odd, D)
    even_norms, odd_norms = (x.norm(dim=-1).clamp_(min=1e-12) for x in (even, odd))
    cosines = products(even, odd).div_(odd_norms.unsqueeze(1))  # without the norms of the even tokens
    best, partner = cosines.max(dim=-1)  # (B, even)
    order = (best / even_norms).argsort(dim=-1, descending=True, stable=True)
    merged, staying = order[:, :num_merged], order[:, num_merged:]
    merged_rows = even_rows.gather(1, merged)
    target_rows = odd_rows.gather(1, partner.gather(1, merged))
    sums.index_add_(0, target_rows.flatten(), _rows(sums, merged_rows).flatten(0, 1))
    new_owners = torch.arange(sums.shape[0], device=sums.device)  # `len` would fix the batch size of an export
    new_owners[merged_rows] = target_rows
    return torch.cat((even_rows.gather(1, staying), odd_rows), dim=1), new_owners


def take_rows(x: Tensor, rows: Tensor) -> Tensor:
    """Select rows (B, m) of each (n, D) of `x` (B, n, D): (B, m, D). Copies whole rows, unlike `gather`."""
    B, n = x.shape[:2]
    return _rows(x.flatten(0, 1), rows + _row_offsets(B, n, x.device))


def _rows(x: Tensor, rows: Tensor) -> Tensor:
    """Select rows (B, m) of `x` (n, D): (B, m, D)."""
    return x.index_select(0, rows.flatten()).unflatten(0, rows.shape)


def _row_offsets(batch: int, num_rows: int, device: torch.device) -> Tensor:
    """Return the first row of each batch element in the flattened tensor, (B, 1)."""
    return torch.arange(0, batch * num_rows, num_rows, device=device).unsqueeze(1)


def count_members(tokens: Tensor, assignment: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
    """Return the membership matrix (B, K, n) of tokens in groups, 0 or 1, and the groups' sizes (B, K, 1)."""
    groups = torch.arange(num_groups, device=tokens.device)
    members = (assignment.unsqueeze(1) == groups.unsqueeze(-1)).to(tokens.dtype)
    return members, members.sum(dim=-1, keepdim=True)


def average_tokens(tokens: Tensor, assignment: Tensor, num_groups: int, products: Products) -> Tensor:
    """Return the mean of each group's tokens.

    A product with the membership matrix: differentiable, and with the same order of additions in every run, unlike
    scattered additions on a GPU.
    """
    members, sizes = count_members(tokens, assignment, num_groups)
    with torch.autocast(tokens.device.type, enabled=False):
        return products(members, tokens.mT) / sizes
