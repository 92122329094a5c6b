"""All entries of a checkpoint except its weights, as JSON in the metadata of a safetensors file."""

import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor

METADATA = "checkpoint"  # the key of the metadata
OTHERS = "other/"  # prefix of the names of tensors that are not weights


def pack(values: Mapping[str, Any], tensors: dict[str, Tensor]) -> str:
    """Return plain values as JSON; add their tensors to `tensors`, under names that start with `OTHERS`.

    Raises:
        TypeError: if a value is of another kind.
    """
    return json.dumps(_pack(values, OTHERS, tensors))


def unpack(text: str, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return what `pack` wrote.

    Raises:
        ValueError, TypeError, KeyError: if it is damaged.
    """
    return _unpack(json.loads(text), tensors)


def _pack(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """Return a value for JSON; add tensors to `tensors`. A value that JSON would change becomes [kind, content]."""
    if isinstance(value, Tensor):
        tensors[path] = value.contiguous()
        return ["tensor", path]
    if isinstance(value, Mapping):
        items = enumerate(value.items())
        return ["dict", [[_pack(k, f"{path}{i}k", tensors), _pack(v, f"{path}{i}/", tensors)] for i, (k, v) in items]]
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return [kind, [_pack(item, f"{path}{i}/", tensors) for i, item in enumerate(value)]]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a {type(value).__name__} cannot be written to safetensors")


def _unpack(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(value, list):
        return value
    kind, content = value
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {_unpack(key, tensors): _unpack(item, tensors) for key, item in content}
    items = [_unpack(item, tensors) for item in content]
    return tuple(items) if kind == "tuple" else items
