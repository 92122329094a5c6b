"""Heads on the features of frames, and their training: a grid of learning rates and weight decays at once.

Both heads start as the zero classifier of the frames' mean, so no start is random.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainers.metrics import create_metrics

MAX_ATTENTION_HEADS = 8
SCORED_AT_ONCE = 256  # views


class LinearHead(nn.Module):
    """A linear classifier of the mean of the frames."""

    def __init__(self, width: int, num_frames: int, num_classes: int):
        super().__init__()
        self.classifier = _zero_classifier(width, num_classes)

    def forward(self, frames: Tensor) -> Tensor:
        """Score standardised features of frames (B, T, E): logits (B, C)."""
        return self.classifier(frames.mean(dim=1))


class AttentiveHead(nn.Module):
    """One learned query attends with several heads to the frames; a linear classifier of what it reads.

    A query is learned, so its product with the keys' projection is one vector `query` of each head, and its product
    with the positions of the frames one number `position` of each frame: both are learned as such.
    """

    def __init__(self, width: int, num_frames: int, num_classes: int):
        super().__init__()
        A = next(count for count in range(MAX_ATTENTION_HEADS, 0, -1) if width % count == 0)
        self.query = nn.Parameter(torch.zeros(A, width))
        self.position = nn.Parameter(torch.zeros(A, num_frames))
        self.values = nn.Parameter(torch.eye(width).unflatten(0, (A, -1)))  # (A, h, E)
        self.classifier = _zero_classifier(width, num_classes)

    def forward(self, frames: Tensor) -> Tensor:
        """Score standardised features of frames (B, T, E): logits (B, C)."""
        scores = torch.einsum("bte,ae->bat", frames, self.query) * frames.shape[-1] ** -0.5
        read = (scores + self.position).softmax(dim=-1) @ frames  # (B, A, E)
        return self.classifier(torch.einsum("bae,ahe->bah", read, self.values).flatten(1))


HEADS: dict[str, type[LinearHead] | type[AttentiveHead]] = {"linear": LinearHead, "attentive": AttentiveHead}


@dataclass(frozen=True)
class Choice:
    """A kind of head (of `HEADS`), and the learning rate and weight decay of its AdamW."""

    kind: str
    lr: float
    weight_decay: float

    def __str__(self) -> str:
        return f"{self.kind}, learning rate {self.lr:g}, weight decay {self.weight_decay:g}"


@dataclass(frozen=True)
class Standard:
    """Mean and deviation (E,) of every channel, which standardise features."""

    mean: Tensor
    deviation: Tensor

    @classmethod
    def of(cls, frames: Tensor) -> "Standard":
        """Measure features (..., E), in float64; a channel that hardly varies is not enlarged."""
        values = frames.flatten(0, -2).double()
        deviation, mean = torch.std_mean(values, dim=0, correction=0)
        smallest = 1e-4 * float(deviation.max())
        deviation = torch.where(deviation > smallest, deviation, torch.ones_like(deviation))
        return cls(mean.to(frames.dtype), deviation.to(frames.dtype))

    def __call__(self, frames: Tensor) -> Tensor:
        """Standardise features (..., E)."""
        return (frames - self.mean) / self.deviation


def train_heads(
    choices: Sequence[Choice],
    frames: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    epochs: int,
    batch_size: int,
    seed: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[nn.Module]:
    """Train a head for every choice, all with the same batches in the same order.

    AdamW without decay of the classifier's bias; each update's rate is `lr (1 + cos(pi update / updates)) / 2`.

    Args:
        frames: standardised features (n, V, T, E); each view is a sample. Their device and type are those of the heads.
        labels: (n,) int64.
        progress: called after each update, with the number of updates done and that of all.
    """
    (n, V, T, E), device = frames.shape, frames.device
    samples, targets = frames.flatten(0, 1), labels.repeat_interleave(V)  # (n * V, T, E), (n * V,)
    heads: list[nn.Module] = [HEADS[choice.kind](E, T, num_classes).to(device, frames.dtype) for choice in choices]
    groups = [
        {"params": parameters, "lr": choice.lr, "base": choice.lr, "weight_decay": decay}
        for head, choice in zip(heads, choices, strict=True)
        for parameters, decay in (
            ([x for x in head.parameters() if x.dim() > 1], choice.weight_decay),
            ([x for x in head.parameters() if x.dim() == 1], 0.0),
        )
    ]
    optimizer = torch.optim.AdamW(groups)
    total, done = epochs * math.ceil(n * V / batch_size), 0
    order = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for batch in torch.randperm(n * V, generator=order).to(device).split(batch_size):
            for group in optimizer.param_groups:
                group["lr"] = group["base"] * (1 + math.cos(math.pi * done / total)) / 2
            optimizer.zero_grad()
            losses = [F.cross_entropy(logits, targets[batch]) for _, logits in _run(heads, samples[batch])]
            torch.stack(losses).sum().backward()
            optimizer.step()
            done += 1
            progress(done, total)
    return heads


def _run(heads: Sequence[nn.Module], frames: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yield the number of each head and its logits (B, C); those of a kind are computed together."""
    for kind in HEADS.values():
        numbers = [number for number, head in enumerate(heads) if isinstance(head, kind)]
        if not numbers:
            continue
        first = heads[numbers[0]]
        stacked = {
            name: torch.stack([heads[number].get_parameter(name) for number in numbers])
            for name, _ in first.named_parameters()
        }
        logits = torch.vmap(_call, in_dims=(None, 0, None))(first, stacked, frames)  # (heads, B, C)
        yield from zip(numbers, logits, strict=True)


def _call(head: nn.Module, parameters: dict[str, Tensor], frames: Tensor) -> Tensor:
    return torch.func.functional_call(head, parameters, (frames,))


@torch.no_grad()
def score(heads: Sequence[nn.Module], frames: Tensor) -> Iterator[tuple[slice, list[Tensor]]]:
    """Yield stretches of the videos (n, V, T, E), and for each head their mean softmax scores of the views (b, C)."""
    n, V = frames.shape[:2]
    step = max(1, SCORED_AT_ONCE // V)
    for first in range(0, n, step):
        part = slice(first, min(n, first + step))
        by_number = dict(_run(heads, frames[part].flatten(0, 1)))
        yield part, [by_number[number].softmax(-1).unflatten(0, (-1, V)).mean(1) for number in range(len(heads))]


def assess(heads: Sequence[nn.Module], frames: Tensor, labels: Tensor, num_classes: int) -> list[tuple[float, float]]:
    """Return the top-1 accuracy of each head in percent, and its mean loss; a head that diverged has 0 and infinity."""
    metrics = [create_metrics(("top1",), num_classes)[0] for _ in heads]
    losses = [0.0] * len(heads)
    for part, scores in score(heads, frames):
        targets = F.one_hot(labels[part], num_classes).bool().cpu()
        for number, of_head in enumerate(scores):
            of_head = of_head.cpu()
            metrics[number].add(of_head, of_head.topk(1).indices, targets)
            losses[number] -= float(of_head[targets].double().clamp_min(1e-38).log().sum())
    found = []
    for metric, loss in zip(metrics, losses, strict=True):
        diverged = not math.isfinite(loss)
        found.append((0.0, math.inf) if diverged else (metric.value() or 0.0, loss / len(labels)))
    return found


def held_out(labels: Tensor, share: float, seed: int) -> Tensor:
    """Return which videos (n,) are held out: a share of each class, at least one of two or more, never the last one."""
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    order = torch.Generator().manual_seed(seed)
    for label in labels.unique().tolist():
        own = (labels == label).nonzero().flatten()
        count = min(max(1, round(share * len(own))), len(own) - 1)
        chosen[own[torch.randperm(len(own), generator=order)[:count]]] = True
    return chosen


def _zero_classifier(width: int, num_classes: int) -> nn.Linear:
    classifier = nn.Linear(width, num_classes)
    nn.init.zeros_(classifier.weight)
    nn.init.zeros_(classifier.bias)
    return classifier
