"""Seeds and context tokens, written down a second time: the ways to choose seeds and to summarise them.

Selectors take attention (B, T, P), the patches before the block (B, T, P, D) and the number of seeds, and return
(B, T, S). Summarisers take seeds (B, n, D), the number of context tokens and the merge rate, and return (B, K, D). Both
as in evaluation: what is random is drawn from a generator that starts at 0 each time, the same of every video.
"""

import torch
from torch import Tensor


def _drawn(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def _evenly(count: int, length: int) -> list[int]:
    """The middles of `count` equal stretches of `length` places."""
    return [int((i + 0.5) * length / count) for i in range(count)]


def _highest(score: Tensor, count: int) -> Tensor:
    return score.argsort(dim=-1, descending=True)[..., :count]


SELECT = {
    "class_attention": lambda attention, patches, count: _highest(attention, count),
    "random": lambda attention, patches, count: _highest(_drawn(*attention.shape[1:]).expand(attention.shape), count),
    "all": lambda attention, patches, count: torch.arange(attention.shape[-1]).expand(attention.shape),
    "top_norm": lambda attention, patches, count: _highest((patches**2).sum(dim=-1), count),
    "uniform_grid": lambda attention, patches, count: torch.tensor(_evenly(count, attention.shape[-1])).expand(
        *attention.shape[:2], -1
    ),
}


def merge(x: Tensor, num_kept: int, merge_rate: int) -> Tensor:
    """Merge tokens by rounds of bipartite matching until `num_kept` are left."""
    size = torch.ones_like(x[..., :1])
    for _ in range(int((x.shape[1] - num_kept) / merge_rate)):
        x, size = _merge_round(x, size, min(merge_rate, x.shape[1] // 2))
    while x.shape[1] > num_kept:
        x, size = _merge_round(x, size, min(x.shape[1] - num_kept, x.shape[1] // 2))
    return x


def _merge_round(x: Tensor, size: Tensor, r: int) -> tuple[Tensor, Tensor]:
    D = x.shape[-1]
    with torch.no_grad():
        unit = x / x.norm(dim=-1, keepdim=True)
        best, partner = (unit[:, ::2] @ unit[:, 1::2].transpose(1, 2)).max(dim=-1)
        order = best.argsort(dim=-1, descending=True)
        merged, stay = order[:, :r, None], order[:, r:, None]
        target = partner.unsqueeze(-1).gather(1, merged)
    weighted = x * size
    even, odd = weighted[:, ::2], weighted[:, 1::2]
    odd = odd.scatter_add(1, target.expand(-1, -1, D), even.gather(1, merged.expand(-1, -1, D)))
    odd_size = size[:, 1::2].scatter_add(1, target, size[:, ::2].gather(1, merged))
    new_size = torch.cat((size[:, ::2].gather(1, stay), odd_size), dim=1)
    return torch.cat((even.gather(1, stay.expand(-1, -1, D)), odd), dim=1) / new_size, new_size


def _kmeans(tokens: Tensor, num_kept: int) -> Tensor:
    starts = [tokens[i] for i in _evenly(num_kept, len(tokens))]
    centres = [start.detach() for start in starts]
    for _ in range(10):
        groups = _nearest(tokens, centres)
        centres = [torch.stack(g).mean(dim=0).detach() if g else c for g, c in zip(groups, centres, strict=True)]
    groups = _nearest(tokens, centres)
    return torch.stack([torch.stack(g).mean(dim=0) if g else s for g, s in zip(groups, starts, strict=True)])


def _nearest(tokens: Tensor, centres: list[Tensor]) -> list[list[Tensor]]:
    groups: list[list[Tensor]] = [[] for _ in centres]
    for token in tokens:
        distances = [(token - centre).norm().item() for centre in centres]
        groups[distances.index(min(distances))].append(token)
    return groups


def _dpc_knn(tokens: Tensor, num_kept: int) -> Tensor:
    points = tokens.detach()
    n = len(points)
    distance = [[(a - b).norm().item() / points.shape[1] ** 0.5 for b in points] for a in points]
    nearest = [sorted(row)[1:6] for row in distance]
    density = [-sum(d * d for d in row) / len(row) for row in nearest]
    score = []
    for i in range(n):
        denser = [distance[i][j] for j in range(n) if density[j] > density[i] or (density[j] == density[i] and j < i)]
        score.append(torch.tensor(density[i]).exp().item() * (min(denser) if denser else max(distance[i])))
    peaks = sorted(sorted(range(n), key=lambda i: -score[i])[:num_kept])
    groups: list[list[Tensor]] = [[] for _ in peaks]
    for i in range(n):
        groups[peaks.index(i) if i in peaks else min(range(num_kept), key=lambda k: distance[i][peaks[k]])].append(
            tokens[i]
        )
    return torch.stack([torch.stack(group).mean(dim=0) for group in groups])


def _average(tokens: Tensor, num_kept: int) -> Tensor:
    groups: list[list[Tensor]] = [[] for _ in range(num_kept)]
    for i, token in enumerate(tokens):
        groups[int(i * num_kept / len(tokens))].append(token)
    return torch.stack([torch.stack(group).mean(dim=0) for group in groups])


def _sample(x: Tensor, num_kept: int) -> Tensor:
    return x[:, _highest(_drawn(x.shape[1]), num_kept).sort().values]


def _each(summarise):
    return lambda x, num_kept, merge_rate: torch.stack([summarise(tokens, num_kept) for tokens in x])


SUMMARISE = {
    "merge": merge,
    "kmeans": _each(_kmeans),
    "dpc_knn": _each(_dpc_knn),
    "random": lambda x, num_kept, merge_rate: _sample(x, num_kept),
    "average": _each(_average),
    "none": lambda x, num_kept, merge_rate: x,
}
