"""Matching and merging of seed tokens on CUDA, as Triton kernels: a round takes three launches and no synchronisation.

Dot products of sums are sums of dot products. One product of all tokens of a video, the Gram matrix, therefore holds
everything that later rounds need: a merge adds rows and columns, and the diagonal holds the squared norms. A round on
the Gram matrix of `m` tokens (paper, section 3.2; ToMe, Bolya et al. 2023):

1. `_find_partners`: the best odd partner of each even token, and its score;
2. `_choose`: the rank of its score decides whether an even token merges or stays, and its new position. Tokens with the
   same partner form a list (`first`, `following`), in the order of their ranks;
3. `_contract`: the Gram matrix of the tokens that are left, in their new order.

Order among equals is that of the plain form: the first partner of the best, the first token of equal scores, NaN before
all others. Sums run in a fixed order, so that a step repeats bit for bit. Shapes depend on sizes alone, so that all of
it can be captured in a CUDA graph; in a compiled graph each operator is one node.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_NONE = tl.constexpr(2147483647)  # larger than any token's number


@triton.jit
def _find_partners(gram, scores, partners, m, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr):
    video = tl.program_id(0)
    rows = tl.program_id(1) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    num_even, num_odd = (m + 1) // 2, m // 2
    is_row = rows < num_even
    gram += video.to(tl.int64) * m * m
    best = tl.full((BLOCK_ROWS,), float("-inf"), tl.float32)
    partner = tl.zeros((BLOCK_ROWS,), tl.int32)
    found_nan = tl.zeros((BLOCK_ROWS,), tl.int32)
    start = 0
    while start < num_odd:
        columns = start + tl.arange(0, BLOCK_COLUMNS)
        is_column = columns < num_odd
        square = tl.load(gram + (2 * columns + 1).to(tl.int64) * (m + 1), mask=is_column, other=1.0)
        norm = _norm(square)
        inside = is_row[:, None] & is_column[None, :]
        at = gram + (2 * rows).to(tl.int64)[:, None] * m + (2 * columns + 1)[None, :]
        product = tl.load(at, mask=inside, other=0.0)
        cosine = product / norm[None, :]
        is_nan = (cosine != cosine) & inside
        cosine = tl.where(inside & (cosine == cosine), cosine, float("-inf"))
        # The first of the largest, and the first NaN before all of them, as torch.max has it.
        largest = tl.max(cosine, axis=1)
        ties = (cosine == largest[:, None]) & inside & (cosine == cosine)
        best_at = tl.min(tl.where(ties, columns[None, :], m), axis=1)
        nan_at = tl.min(tl.where(is_nan, columns[None, :], m), axis=1)
        take = ((largest > best) | ((start == 0) & (best_at < m))) & (found_nan == 0)
        best = tl.where(take, largest, best)
        partner = tl.where(take, best_at, partner)
        first_nan = (nan_at < m) & (found_nan == 0)
        partner = tl.where(first_nan, nan_at, partner)
        found_nan = tl.where(nan_at < m, 1, found_nan)
        start += BLOCK_COLUMNS
    square = tl.load(gram + (2 * rows).to(tl.int64) * (m + 1), mask=is_row, other=1.0)
    score = tl.where(found_nan == 1, float("nan"), best / _norm(square))
    tl.store(scores + video * num_even + rows, score, mask=is_row)
    tl.store(partners + video * num_even + rows, partner, mask=is_row)


@triton.jit
def _norm(square):
    """Length of a vector from its square, at least 1e-12; NaN stays NaN."""
    return tl.where(square != square, square, tl.maximum(tl.sqrt(tl.maximum(square, 0.0)), 1e-12))


@triton.jit
def _choose(
    scores, partners, positions, sources, merged, targets, first, following,
    m, num_merged, num_rounds, number, num_tokens,
    BLOCK: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    video = tl.program_id(0)
    num_even, num_odd = (m + 1) // 2, m // 2
    num_staying = num_even - num_merged
    num_left = m - num_merged
    scores += video * num_even
    partners += video * num_even
    positions += (video * num_rounds + number) * num_tokens
    sources += video * num_tokens
    merged += video * num_tokens
    targets += video * num_tokens
    first += video * num_tokens
    following += video * num_tokens
    start = 0
    while start < num_even:
        rows = start + tl.arange(0, BLOCK)
        is_row = rows < num_even
        score = tl.load(scores + rows, mask=is_row, other=0.0)
        rank = tl.zeros((BLOCK,), tl.int32)
        other_start = 0
        while other_start < num_even:
            others = other_start + tl.arange(0, CHUNK)
            is_other = others < num_even
            other = tl.load(scores + others, mask=is_other, other=0.0)
            # Larger first, NaN first of all, equal ones by their number: a stable descending sort.
            a, b = other[None, :], score[:, None]
            larger = (a > b) | ((a != a) & (b == b))
            equal = (a == b) | ((a != a) & (b != b))
            before = (larger | (equal & (others[None, :] < rows[:, None]))) & is_other[None, :]
            rank += tl.sum(before.to(tl.int32), axis=1)
            other_start += CHUNK
        partner = tl.load(partners + rows, mask=is_row, other=0)
        merges = is_row & (rank < num_merged)
        stays = is_row & (rank >= num_merged)
        target = num_staying + partner
        tl.store(positions + 2 * rows, tl.where(merges, target, rank - num_merged), mask=is_row)
        tl.store(sources + rank - num_merged, 2 * rows, mask=stays)
        tl.store(merged + rank, 2 * rows, mask=merges)
        tl.store(targets + rank, target, mask=merges)
        start += BLOCK
    start = 0
    while start < num_odd:
        rows = start + tl.arange(0, BLOCK)
        is_row = rows < num_odd
        tl.store(positions + 2 * rows + 1, num_staying + rows, mask=is_row)
        tl.store(sources + num_staying + rows, 2 * rows + 1, mask=is_row)
        start += BLOCK
    tl.debug_barrier()
    start = 0
    while start < num_left:  # the first of the tokens that merge into each
        rows = start + tl.arange(0, BLOCK)
        found = tl.full((BLOCK,), _NONE, tl.int32)
        other_start = 0
        while other_start < num_merged:
            others = other_start + tl.arange(0, CHUNK)
            to = tl.load(targets + others, mask=others < num_merged, other=-1)
            number_of = tl.where(to[None, :] == rows[:, None], others[None, :], _NONE)
            found = tl.minimum(found, tl.min(number_of, axis=1))
            other_start += CHUNK
        tl.store(first + rows, tl.where(found == _NONE, -1, found), mask=rows < num_left)
        start += BLOCK
    start = 0
    while start < num_merged:  # and the one after each of them
        rows = start + tl.arange(0, BLOCK)
        own = tl.load(targets + rows, mask=rows < num_merged, other=-2)
        found = tl.full((BLOCK,), _NONE, tl.int32)
        other_start = 0
        while other_start < num_merged:
            others = other_start + tl.arange(0, CHUNK)
            to = tl.load(targets + others, mask=others < num_merged, other=-1)
            is_next = (to[None, :] == own[:, None]) & (others[None, :] > rows[:, None])
            found = tl.minimum(found, tl.min(tl.where(is_next, others[None, :], _NONE), axis=1))
            other_start += CHUNK
        tl.store(following + rows, tl.where(found == _NONE, -1, found), mask=rows < num_merged)

        start += BLOCK


@triton.jit
def _contract(gram, contracted, sources, merged, first, following, m, num_left, num_tokens, BLOCK: tl.constexpr):
    video, row = tl.program_id(0), tl.program_id(1)
    columns = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    is_column = columns < num_left
    gram += video.to(tl.int64) * m * m
    contracted += video.to(tl.int64) * num_left * num_left + row.to(tl.int64) * num_left
    sources += video * num_tokens
    merged += video * num_tokens
    first += video * num_tokens
    following += video * num_tokens
    source_columns = tl.load(sources + columns, mask=is_column, other=0)
    first_columns = tl.load(first + columns, mask=is_column, other=-1)
    total = tl.zeros((BLOCK,), tl.float32)
    source = tl.load(sources + row)
    member = tl.load(first + row)
    more = 1
    while more == 1:
        at = gram + source.to(tl.int64) * m
        total += tl.load(at + source_columns, mask=is_column, other=0.0)
        number = first_columns
        while tl.max(number, axis=0) >= 0:
            joins = number >= 0
            column = tl.load(merged + number, mask=joins, other=0)
            total += tl.load(at + column, mask=joins, other=0.0)
            number = tl.load(following + number, mask=joins, other=-1)
        if member >= 0:
            source = tl.load(merged + member)
            member = tl.load(following + member)
        else:
            more = 0
    tl.store(contracted + columns, total, mask=is_column)


@triton.jit
def _follow(positions, assignment, num_tokens, num_rounds, BLOCK: tl.constexpr):
    video = tl.program_id(0)
    tokens = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_token = tokens < num_tokens
    position = tokens
    number = 0
    while number < num_rounds:
        position = tl.load(positions + (video * num_rounds + number) * num_tokens + position, mask=is_token, other=0)
        number += 1
    tl.store(assignment + video * num_tokens + tokens, position.to(tl.int64), mask=is_token)


@triton.jit
def _group_mean(
    tokens, assignment, means, sizes, num_tokens, num_groups, width, sxb, sxn, BLOCK: tl.constexpr, PADDED: tl.constexpr
):
    video, group = tl.program_id(0), tl.program_id(1)
    numbers = tl.arange(0, BLOCK)
    columns = tl.arange(0, PADDED)
    total = tl.zeros((PADDED,), tl.float32)
    size = 0
    start = 0
    while start < num_tokens:
        at = start + numbers
        group_of = tl.load(assignment + video.to(tl.int64) * num_tokens + at, mask=at < num_tokens, other=-1)
        waiting = tl.where(group_of == group, at, _NONE)
        token = tl.min(waiting, axis=0)
        while token < num_tokens:  # in ascending order, so that a sum repeats bit for bit
            row = tokens + video.to(tl.int64) * sxb + token.to(tl.int64) * sxn
            total += tl.load(row + columns, mask=columns < width, other=0.0).to(tl.float32)
            size += 1
            waiting = tl.where(waiting == token, _NONE, waiting)
            token = tl.min(waiting, axis=0)
        start += BLOCK
    at_group = video.to(tl.int64) * num_groups + group
    tl.store(means + at_group * width + columns, (total / size).to(means.dtype.element_ty), mask=columns < width)
    tl.store(sizes + at_group, size)


@triton.jit
def _group_mean_grad(grad, assignment, sizes, grad_tokens, num_tokens, num_groups, width, PADDED: tl.constexpr):
    video, token = tl.program_id(0).to(tl.int64), tl.program_id(1)
    columns = tl.arange(0, PADDED)
    group = video * num_groups + tl.load(assignment + video * num_tokens + token)
    size = tl.load(sizes + group).to(tl.float32)
    row = tl.load(grad + group * width + columns, mask=columns < width, other=0.0).to(tl.float32)
    at = grad_tokens + (video * num_tokens + token) * width + columns
    tl.store(at, (row / size).to(grad_tokens.dtype.element_ty), mask=columns < width)


def gram_matrix(tokens: Tensor) -> Tensor:
    """Return the products of all pairs of tokens (B, n, D), summed in float32: (B, n, n) float32."""
    if tokens.dtype == torch.float32:
        return torch.bmm(tokens, tokens.mT)
    if tokens.device.type == "cuda":
        return torch.bmm(tokens, tokens.mT, out_dtype=torch.float32)
    return torch.bmm(tokens.float(), tokens.float().mT)


def match_gram(gram: Tensor, schedule: list[int]) -> Tensor:
    """Run the rounds of `schedule` on Gram matrices (B, n, n) in float32: (B, n) int64, each token's merged token."""
    B, n, _ = gram.shape
    gram, num_rounds = gram.contiguous(), len(schedule)

    def numbers(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.int32, device=gram.device)

    scores, partners = gram.new_empty(B, (n + 1) // 2), numbers(B, (n + 1) // 2)
    positions, lists = numbers(B, num_rounds, n), numbers(5, B, n)
    sources, merged, targets, first, following = lists
    m = n
    for number, num_merged in enumerate(schedule):
        num_left = m - num_merged
        _find_partners[(B, triton.cdiv((m + 1) // 2, 16))](gram, scores, partners, m, BLOCK_ROWS=16, BLOCK_COLUMNS=128)
        _choose[(B,)](
            scores, partners, positions, sources, merged, targets, first, following,
            m, num_merged, num_rounds, number, n, BLOCK=128, CHUNK=64,
        )  # fmt: skip
        if number + 1 < num_rounds:
            contracted = gram.new_empty(B, num_left, num_left)
            grid = (B, num_left, triton.cdiv(num_left, 512))
            _contract[grid](gram, contracted, sources, merged, first, following, m, num_left, n, BLOCK=512)
            gram = contracted
        m = num_left
    assignment = torch.empty(B, n, dtype=torch.long, device=gram.device)
    _follow[(B, triton.cdiv(n, 256))](positions, assignment, n, num_rounds, BLOCK=256)
    return assignment


def group_means(tokens: Tensor, assignment: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
    """Return the mean of each group's tokens (B, K, D), and the groups' sizes (B, K) int32; see `tc_clip.ops`."""
    B, n, D = tokens.shape
    tokens = tokens if tokens.stride(-1) == 1 else tokens.contiguous()
    means, sizes = tokens.new_empty(B, num_groups, D), tokens.new_empty(B, num_groups, dtype=torch.int32)
    _group_mean[(B, num_groups)](
        tokens, assignment.contiguous(), means, sizes, n, num_groups, D, tokens.stride(0), tokens.stride(1),
        BLOCK=1024, PADDED=triton.next_power_of_2(D),
    )  # fmt: skip
    return means, sizes


def group_means_backward(grad: Tensor, assignment: Tensor, sizes: Tensor) -> Tensor:
    """Return the gradient of the tokens (B, n, D) for that of the means (B, K, D)."""
    (B, K, D), n = grad.shape, assignment.shape[1]
    grad_tokens = grad.new_empty(B, n, D)
    _group_mean_grad[(B, n)](
        grad, assignment.contiguous(), sizes, grad_tokens, n, K, D, PADDED=triton.next_power_of_2(D)
    )
    return grad_tokens
