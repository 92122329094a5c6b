"""Several texts a class: descriptions from a file, and how their features or scores become the class's."""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

POOLINGS = ("mean", "max")


@cache
def read_descriptions(path: str | Path) -> dict[str, tuple[str, ...]]:
    """Read `{"class name": ["a text", "another"]}` from a JSON file; a single text needs no list.

    Raises:
        ValueError: if the file cannot be read or has another form.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"descriptions={path}: cannot be read: {error}") from error
    return as_descriptions(content, path)


def as_descriptions(content: object, path: str | Path) -> dict[str, tuple[str, ...]]:
    """Return the texts of each class name, checked.

    Args:
        content: `{"class name": ["a text", "another"]}`; a single text needs no list.
        path: the file, for messages.

    Raises:
        ValueError: if it has another form.
    """
    if not isinstance(content, dict):
        raise ValueError(f'descriptions={path}: must be a JSON object, {{"class name": ["a text", ...]}}')
    found = {}
    for name, value in content.items():
        texts = [value] if isinstance(value, str) else value
        if (
            not isinstance(name, str)
            or not isinstance(texts, list)
            or not texts
            or not all(isinstance(x, str) and x.strip() for x in texts)
        ):
            raise ValueError(f"descriptions={path}: {name!r} must have a text or a list of texts")
        found[name] = tuple(texts)
    return found


def pool_features(features: Tensor, counts: Sequence[int]) -> Tensor:
    """Return the mean of each class's normalised text features (..., texts, E): (..., C, E).

    Args:
        counts: texts of each class, which follow one another; a single number if all classes have as many.
    """
    if tuple(counts) == (1,):
        return features
    features = F.normalize(features, dim=-1)
    if len(counts) == 1:
        return features.unflatten(-2, (-1, counts[0])).mean(dim=-2)
    share = torch.zeros(len(counts), sum(counts), device=features.device, dtype=features.dtype)
    share[_classes(counts, features.device), torch.arange(sum(counts), device=features.device)] = 1
    return (share / share.sum(dim=1, keepdim=True)) @ features


def pool_scores(scores: Tensor, counts: Sequence[int]) -> Tensor:
    """Return the largest of each class's scores (B, texts): (B, C); `counts` as in `pool_features`."""
    if len(counts) == 1:
        return scores.unflatten(-1, (-1, counts[0])).amax(dim=-1)
    lowest = torch.full((len(scores), len(counts)), -torch.inf, device=scores.device, dtype=scores.dtype)
    classes = _classes(counts, scores.device).expand_as(scores)
    return lowest.scatter_reduce(1, classes, scores, reduce="amax")


def _classes(counts: Sequence[int], device: torch.device) -> Tensor:
    """Return the class of each text."""
    numbers = torch.arange(len(counts), device=device)
    return numbers.repeat_interleave(torch.tensor(counts, device=device))
