"""The checksum inside a checkpoint: SHA-256 over its values, so that a changed bit is noticed in every file format."""

import hashlib
from collections.abc import Iterator
from typing import Any

import torch


def checksum_of(content: Any) -> str:
    """Return the SHA-256 sum of plain containers, values and tensors, in their order.

    Raises:
        TypeError: if a value is of another kind.
    """
    digest = hashlib.sha256()
    for piece in _pieces(content):
        digest.update(piece)
    return digest.hexdigest()


def _pieces(value: Any) -> Iterator[bytes | memoryview]:
    """Yield a value as bytes. Every piece starts with its kind and length, so two values never give the same bytes."""
    if isinstance(value, torch.Tensor):
        yield f"tensor {value.dtype} {tuple(value.shape)};".encode()
        if value.numel():
            yield value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
    elif isinstance(value, dict):
        yield f"dict {len(value)};".encode()
        for key, item in value.items():
            yield from _pieces(key)
            yield from _pieces(item)
    elif isinstance(value, list | tuple):
        yield f"{'list' if isinstance(value, list) else 'tuple'} {len(value)};".encode()
        for item in value:
            yield from _pieces(item)
    elif value is None or isinstance(value, bool | int | float | str):
        text = repr(value).encode()
        yield f"{type(value).__name__} {len(text)};".encode() + text
    else:
        raise TypeError(f"a checkpoint holds plain values, not a {type(value).__name__}")
